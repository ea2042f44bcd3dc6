/**
 * UDP for gossip: {@linkcode Datagrams} over `node:dgram`, which works without unstable flags (the runtime's own
 * `Deno.listenDatagram` needs one) and in the compiled program.
 *
 * Names are resolved once per {@linkcode RESOLVE_MS} and address, so that not every datagram costs a look-up. What cannot be sent is dropped: that is what
 * datagrams are like.
 *
 * @module
 */
import { createSocket, type Socket } from "node:dgram";
import { Reminders } from "../../base/reminders.ts";
import { DATAGRAM_BYTES_MAX, type DatagramListener, type Datagrams } from "../network.ts";
import type { Log } from "../platform.ts";
import { encodeSocketAddress, formatAddress, parseAddress } from "../address.ts";
import { resolveAddress } from "./resolve.ts";

/** How long a resolved name is used, and after which time one that nobody knew is looked up again, in milliseconds. */
const RESOLVE_MS = 30_000, RESOLVE_AGAIN_MS = 2000;
/** Names remembered; the oldest makes room. */
const NAMES_MAX = 1024;
/** Errors are logged this often, in milliseconds, and one of the same words this often. */
const WARN_MS = 10_000, WARN_AGAIN_MS = 30 * 60_000;
/** Errors that are remembered as logged: some for each address. */
const WARNED_MAX = 1024;

interface Name {
  numeric: string | null;
  resolvedMs: number;
  isResolving: boolean;
}

/** See the head of the file. */
export class UdpDatagrams implements Datagrams {
  /** To be set before {@linkcode listen}. */
  listener: DatagramListener = { datagramReceived() {} };
  /** Datagrams that were not sent since the address is not known, or the system refused. */
  dropped = 0;
  readonly #log: Log;
  readonly #nowMs: () => number;
  readonly #names = new Map<string, Name>();
  #socket: Socket | null = null;
  #isV6 = false;
  #warnedMs = -Infinity;
  readonly #warned = new Reminders({ againMs: WARN_AGAIN_MS, most: WARNED_MAX });

  /** @param options.nowMs monotonic milliseconds */
  constructor(options: { readonly log: Log; readonly nowMs: () => number }) {
    this.#log = options.log;
    this.#nowMs = options.nowMs;
  }

  /**
   * Binds. Rejects when the address is in use, is not this host's or is not known.
   *
   * @param address `host:port`; port 0: any
   * @returns the numeric address
   */
  async listen(address: string): Promise<string> {
    const numeric = parseAddress(await resolveAddress(address))!;
    this.#isV6 = numeric.host.includes(":");
    const socket = createSocket(this.#isV6 ? "udp6" : "udp4");
    await new Promise<void>((resolve, reject) => {
      socket.once("error", reject);
      socket.bind(numeric.port, numeric.host, () => {
        socket.removeListener("error", reject);
        resolve();
      });
    });
    socket.on("error", (error) => this.#warn((error as Error).message));
    socket.on("message", (bytes, from) => {
      if (bytes.length === 0 || bytes.length > DATAGRAM_BYTES_MAX) return;
      // An IPv4 sender to a socket for both looks like ::ffff:192.0.2.1.
      const host = from.address.replace(/^::ffff:(?=[0-9.]+$)/i, "");
      this.listener.datagramReceived(
        formatAddress(host, from.port),
        new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.length).slice(),
      );
    });
    this.#socket = socket;
    const bound = socket.address();
    return formatAddress(bound.address, bound.port);
  }

  /** {@inheritDoc Datagrams.send} */
  send(address: string, bytes: Uint8Array): void {
    if (bytes.length === 0 || bytes.length > DATAGRAM_BYTES_MAX) {
      throw new RangeError(
        `datagram of ${bytes.length} bytes; the limit is ${DATAGRAM_BYTES_MAX}`,
      );
    }
    const numeric = this.#resolve(address);
    const socket = this.#socket;
    const to = numeric === null ? null : parseAddress(numeric);
    if (socket === null || to === null) {
      this.dropped++;
      return;
    }
    const host = this.#isV6 && !to.host.includes(":") ? `::ffff:${to.host}` : to.host;
    socket.send(bytes.slice(), to.port, host, (error) => {
      if (!error) return;
      this.dropped++;
      this.#warn(`sending to ${address}: ${error.message}`);
    });
  }

  /** Closes the socket. */
  close(): void {
    this.#socket?.close();
    this.#socket = null;
  }

  /** The numeric form of an address, as far as it is known by now. */
  #resolve(address: string): string | null {
    if (encodeSocketAddress(address) !== null) return address;
    if (parseAddress(address) === null) return null;
    let name = this.#names.get(address);
    if (name === undefined) {
      name = { numeric: null, resolvedMs: -Infinity, isResolving: false };
      if (this.#names.size >= NAMES_MAX) this.#names.delete(this.#names.keys().next().value!);
      this.#names.set(address, name);
    }
    const validMs = name.numeric === null ? RESOLVE_AGAIN_MS : RESOLVE_MS;
    if (!name.isResolving && this.#nowMs() - name.resolvedMs >= validMs) {
      this.#lookUp(address, name);
    }
    return name.numeric;
  }

  #lookUp(address: string, name: Name): void {
    name.isResolving = true;
    resolveAddress(address).then(
      (numeric) => name.numeric = numeric,
      (error: Error) => this.#warn(error.message),
    ).finally(() => {
      name.isResolving = false;
      name.resolvedMs = this.#nowMs();
    });
  }

  #warn(reason: string): void {
    const now = this.#nowMs();
    if (now - this.#warnedMs < WARN_MS || !this.#warned.isDue(reason, now)) return;
    this.#warnedMs = now;
    this.#log.warn("gossip is not sent", { reason });
  }
}
