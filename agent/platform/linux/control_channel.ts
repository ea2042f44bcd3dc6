/**
 * Control messages between main threads: {@linkcode ControlChannel} over the runtime's TCP, with the handshake and the records of
 * `wire/`.
 *
 *     node A                                              node B
 *       send(address of B) ──▶ queue ──▶ outgoing ═════▶ incoming ──▶ controlReceived
 *       controlReceived ◀── incoming ◀═════ outgoing ◀── queue ◀── send(address of A)
 *
 * Each direction has a connection of its own, made by who has something to say. On it, the other side only counts:
 *
 *     outgoing ▶  record: one message        ◀ incoming  record: u32 messages received so far
 *
 * The count is what tells a peer that is gone from one that is quiet: TCP alone would keep sending to a host that lost its power for
 * minutes, and the connection would be of no use after that host is back.
 *
 * Bounds: messages and bytes queued per address, addresses, incoming connections, strangers ({@linkcode HANDSHAKES_MAX} at once,
 * {@linkcode HANDSHAKES_PER_SECOND_MAX}, {@linkcode HANDSHAKE_MS_MAX}, 512 bytes of buffer each). What waits when a connection fails is dropped: the
 * protocols above send what still matters again.
 *
 * @module
 */
import { type CipherSuite, nodeCipherSuite } from "../../wire/cipher.ts";
import {
  Handshake,
  HANDSHAKE_BYTES_MAX,
  HANDSHAKE_MS_MAX,
  HandshakeError,
  type HandshakeErrorCode,
  type HandshakeResult,
  HANDSHAKES_MAX,
  HANDSHAKES_PER_SECOND_MAX,
  type Identity,
} from "../../wire/handshake.ts";
import { RECORD_OVERHEAD_BYTES, RecordOpener, RecordSealer } from "../../wire/sealed_stream.ts";
import { CONTROL_BYTES_MAX, type ControlChannel, type ControlListener } from "../network.ts";
import type { Log, Random } from "../platform.ts";
import { formatAddress, parseAddress } from "../address.ts";
import { opensslCipherSuite } from "./openssl.ts";

/** Messages and bytes that wait for one address: a snapshot in parts and what goes on beside it. */
export const QUEUE_MESSAGES_MAX = 1024, QUEUE_BYTES_MAX = 8 * CONTROL_BYTES_MAX;
/** Addresses with a connection or a queue. */
export const ADDRESSES_MAX = 1024;
/** Authenticated incoming connections. */
export const INCOMING_MAX = 1024;
/** What was sent and not counted by the other end for this long means that it is gone. */
export const COUNT_MS_MAX = 4000;
/** An outgoing connection without messages is closed after this long. */
const IDLE_MS_MAX = 60_000;
/** First and longest wait before connecting again, doubled each time, half of it by chance. */
const BACKOFF_MS_MIN = 50, BACKOFF_MS_MAX = 2000;
/** An attempt that has taken this long is not worth waiting for when the peer has just been heard of. */
const STALE_MS = 300;
/** How often timers are looked at. */
const TICK_MS = 250;
/** Read buffer of a connection; grows up to one record. */
const BUFFER_BYTES_MIN = 16 * 1024;
const COUNT_BYTES = 4;
/** Most bytes sealed into one write. */
const WRITE_BYTES_MAX = 256 * 1024;
/** Failures are logged this often per address, and for strangers together. */
const WARN_MS = 10_000;

/** What may go wrong on one connection: its text is for people. */
class ChannelError extends Error {
  override readonly name = "ChannelError";
}

/** Bytes from a connection: no more than asked for is buffered. */
class Reader {
  #buffer: Uint8Array<ArrayBuffer>;
  #start = 0;
  #end = 0;

  constructor(readonly connection: Deno.Conn, bytes: number) {
    this.#buffer = new Uint8Array(bytes);
  }

  /** What is there and not taken. */
  get have(): Uint8Array<ArrayBuffer> {
    return this.#buffer.subarray(this.#start, this.#end);
  }

  take(bytes: number): void {
    this.#start += bytes;
  }

  /**
   * Reads once.
   *
   * @param wanted bytes that must fit from `have`'s first on
   * @param isExact read no further than that
   * @returns false: the other end has closed the connection
   */
  async read(wanted: number, isExact: boolean): Promise<boolean> {
    if (this.#start === this.#end) this.#start = this.#end = 0;
    if (this.#start + wanted > this.#buffer.length) {
      const buffer = wanted > this.#buffer.length ? new Uint8Array(wanted) : this.#buffer;
      buffer.set(this.have);
      this.#end -= this.#start;
      this.#start = 0;
      this.#buffer = buffer;
    }
    const end = isExact ? this.#start + wanted : this.#buffer.length;
    const bytes = await this.connection.read(this.#buffer.subarray(this.#end, end));
    if (bytes === null) return false;
    this.#end += bytes;
    return true;
  }

  /** Goes on with a buffer of the usual size, after the handshake. */
  grow(): void {
    const buffer = new Uint8Array(BUFFER_BYTES_MIN);
    buffer.set(this.have);
    this.#end -= this.#start;
    this.#start = 0;
    this.#buffer = buffer;
  }
}

async function writeAll(connection: Deno.Conn, bytes: Uint8Array): Promise<void> {
  for (let at = 0; at < bytes.length;) at += await connection.write(bytes.subarray(at));
}

function close(connection: Deno.Conn | null): void {
  try {
    connection?.close();
  } catch {
    // Closed already: by the other task that uses it.
  }
}

/** What waits for one address, and the connection to it. */
interface Outgoing {
  readonly address: string;
  queue: Uint8Array[];
  queuedBytes: number;
  connection: Deno.Conn | null;
  /** Aborts connecting. */
  abort: AbortController | null;
  /** A task connects or sends. */
  isRunning: boolean;
  isWriting: boolean;
  sealer: RecordSealer | null;
  sent: number;
  counted: number;
  /** When the oldest message that is not counted was sent. */
  waitingSinceMs: number;
  usedMs: number;
  startedMs: number;
  isUp: boolean;
  failures: number;
  retryAtMs: number;
  warnedMs: number;
  /** Why it was closed from here; empty: it was not. */
  verdict: string;
  lastError: string;
  refusal: HandshakeErrorCode | null;
}

interface Incoming {
  readonly connection: Deno.Conn;
  readonly startedMs: number;
  usedMs: number;
  peer: Identity | null;
}

/** State of an outgoing connection, for people. */
export interface ControlStatus {
  readonly address: string;
  readonly isUp: boolean;
  readonly queuedBytes: number;
  /** Why the last connection ended; empty: none has. */
  readonly lastError: string;
  /** Why its handshake failed; null: it did not, or nobody was reached. */
  readonly refusal: HandshakeErrorCode | null;
}

/** See the head of the file. */
export class TcpControlChannel implements ControlChannel {
  /** To be set before {@linkcode listen}. */
  listener: ControlListener = { controlReceived() {} };
  readonly #secret: Uint8Array;
  readonly #random: Random;
  readonly #log: Log;
  readonly #suite: CipherSuite;
  readonly #nowMs: () => number;
  readonly #countMsMax: number;
  #self: Identity;
  #server: Deno.TcpListener | null = null;
  readonly #outgoing = new Map<string, Outgoing>();
  /** Authenticated, by uuid. */
  readonly #incoming = new Map<string, Incoming>();
  /** In their handshake, in order of their beginning. */
  readonly #strangers = new Set<Incoming>();
  readonly #timer: number;
  #wake: (() => void) | null = null;
  #tokens = HANDSHAKES_PER_SECOND_MAX;
  #tokensMs: number;
  #warnedMs = -Infinity;
  #isClosed = false;

  /**
   * @param options.nowMs monotonic milliseconds
   * @param options.countMsMax other than {@linkcode COUNT_MS_MAX}
   */
  constructor(
    options: {
      readonly secret: Uint8Array;
      readonly self: Identity;
      readonly random: Random;
      readonly log: Log;
      readonly nowMs: () => number;
      readonly suite?: CipherSuite;
      readonly countMsMax?: number;
    },
  ) {
    this.#secret = options.secret.slice();
    this.#self = options.self;
    this.#random = options.random;
    this.#log = options.log;
    this.#nowMs = options.nowMs;
    this.#suite = options.suite ?? opensslCipherSuite() ?? nodeCipherSuite;
    this.#countMsMax = options.countMsMax ?? COUNT_MS_MAX;
    this.#tokensMs = options.nowMs();
    this.#timer = setInterval(() => this.#tick(), Math.min(TICK_MS, this.#countMsMax / 4));
  }

  /**
   * Starts to listen. Throws what the runtime throws when it cannot.
   *
   * @param address `host:port`; port 0: any
   * @returns the numeric address
   */
  listen(address: string): string {
    const parsed = parseAddress(address);
    if (parsed === null) throw new RangeError(`"${address}" is not host:port or [ipv6]:port`);
    const server = Deno.listen({ hostname: parsed.host, port: parsed.port });
    this.#server = server;
    this.#accept(server);
    return formatAddress(server.addr.hostname, server.addr.port);
  }

  /** Who this node is from now on; connections that are there stay as they are, unless `reconnect`. */
  setSelf(self: Identity, { reconnect = false } = {}): void {
    this.#self = self;
    if (!reconnect) return;
    for (const outgoing of this.#outgoing.values()) close(outgoing.connection);
  }

  /** Outgoing connections, for people. */
  status(): ControlStatus[] {
    return [...this.#outgoing.values()].map((
      { address, isUp, queuedBytes, lastError, refusal },
    ) => ({ address, isUp, queuedBytes, lastError, refusal }));
  }

  /** Authenticated incoming connections. */
  get incomingCount(): number {
    return this.#incoming.size;
  }

  /** {@inheritDoc ControlChannel.send} */
  send(address: string, bytes: Uint8Array): boolean {
    if (bytes.length === 0 || bytes.length > CONTROL_BYTES_MAX) {
      throw new RangeError(
        `control channel: a message of ${bytes.length} bytes; the limit is ${CONTROL_BYTES_MAX}`,
      );
    }
    if (this.#isClosed) return false;
    let outgoing = this.#outgoing.get(address);
    if (outgoing === undefined) {
      if (this.#outgoing.size >= ADDRESSES_MAX || parseAddress(address) === null) return false;
      outgoing = this.#open(address);
    }
    if (
      outgoing.queue.length >= QUEUE_MESSAGES_MAX ||
      outgoing.queuedBytes + bytes.length > QUEUE_BYTES_MAX
    ) return false;
    outgoing.queue.push(bytes.slice());
    outgoing.queuedBytes += bytes.length;
    outgoing.usedMs = this.#nowMs();
    if (outgoing.isUp) this.#write(outgoing);
    else if (!outgoing.isRunning && this.#nowMs() >= outgoing.retryAtMs) this.#run(outgoing);
    return true;
  }

  /** Closes every connection and stops listening. */
  close(): void {
    this.#isClosed = true;
    clearInterval(this.#timer);
    this.#server?.close();
    this.#wake?.();
    for (const outgoing of this.#outgoing.values()) {
      outgoing.abort?.abort();
      close(outgoing.connection);
    }
    for (const { connection } of [...this.#strangers, ...this.#incoming.values()]) {
      close(connection);
    }
    this.#outgoing.clear();
  }

  /** A node has connected, so it can be connected to: at once, however long it has been away. */
  #reached(address: string): void {
    const outgoing = this.#outgoing.get(address);
    if (outgoing === undefined || outgoing.isUp) return;
    outgoing.failures = 0;
    outgoing.retryAtMs = 0;
    if (!outgoing.isRunning) {
      if (outgoing.queue.length > 0) this.#run(outgoing);
    } else if (this.#nowMs() - outgoing.startedMs > STALE_MS) {
      // Begun while nothing arrived there; the kernel would try again only after seconds.
      outgoing.verdict = "begun anew: the peer can be reached again";
      outgoing.abort?.abort();
      close(outgoing.connection);
    }
  }

  #tick(): void {
    const now = this.#nowMs();
    const passed = now - this.#tokensMs;
    this.#tokensMs = now;
    this.#tokens = Math.min(
      HANDSHAKES_PER_SECOND_MAX,
      this.#tokens + passed * HANDSHAKES_PER_SECOND_MAX / 1000,
    );
    if (this.#tokens >= 1) this.#wake?.();
    for (const stranger of this.#strangers) {
      if (now - stranger.startedMs < HANDSHAKE_MS_MAX) break;
      close(stranger.connection);
    }
    for (const { connection, usedMs } of this.#incoming.values()) {
      // The other end would have closed it long before: it is gone.
      if (now - usedMs > 2 * IDLE_MS_MAX) close(connection);
    }
    for (const outgoing of this.#outgoing.values()) this.#check(outgoing, now);
  }

  #check(outgoing: Outgoing, now: number): void {
    if (outgoing.isUp) {
      if (outgoing.sent !== outgoing.counted && now - outgoing.waitingSinceMs > this.#countMsMax) {
        outgoing.verdict = "the peer takes nothing any more";
        close(outgoing.connection);
      } else if (outgoing.queue.length === 0 && now - outgoing.usedMs > IDLE_MS_MAX) {
        outgoing.verdict = "there was nothing to say for a while";
        close(outgoing.connection);
      }
    } else if (outgoing.isRunning) {
      if (now - outgoing.startedMs > HANDSHAKE_MS_MAX) {
        outgoing.verdict = `no answer within ${HANDSHAKE_MS_MAX / 1000} s`;
        outgoing.abort?.abort();
        close(outgoing.connection);
      }
    } else if (outgoing.queue.length > 0) {
      if (now >= outgoing.retryAtMs) this.#run(outgoing);
    } else if (now - outgoing.usedMs > IDLE_MS_MAX) this.#outgoing.delete(outgoing.address);
  }

  // ------------------------------------------------------------------------------------- handshake

  /** Runs a handshake on a connection; its reader has at most a message buffered, and nothing afterwards. */
  async #handshake(
    connection: Deno.Conn,
    role: "initiator" | "responder",
    reader: Reader,
  ): Promise<HandshakeResult> {
    const handshake = new Handshake({
      role,
      secret: this.#secret,
      purpose: "control",
      self: this.#self,
      random: this.#random,
    });
    for (;;) {
      const output = handshake.output();
      if (output !== null) await writeAll(connection, output);
      if (handshake.error !== null) throw handshake.error;
      if (handshake.result !== null) return handshake.result;
      const wanted = handshake.bytesWanted(reader.have);
      if (reader.have.length >= wanted || await reader.read(wanted, true)) {
        reader.take(handshake.receive(reader.have));
      } else handshake.ended(reader.have);
    }
  }

  // -------------------------------------------------------------------------------------- outgoing

  #open(address: string): Outgoing {
    const outgoing: Outgoing = {
      address,
      queue: [],
      queuedBytes: 0,
      connection: null,
      abort: null,
      isRunning: false,
      isWriting: false,
      sealer: null,
      sent: 0,
      counted: 0,
      waitingSinceMs: 0,
      usedMs: 0,
      startedMs: 0,
      isUp: false,
      failures: 0,
      retryAtMs: 0,
      warnedMs: -Infinity,
      verdict: "",
      lastError: "",
      refusal: null,
    };
    this.#outgoing.set(address, outgoing);
    return outgoing;
  }

  /** One connection, from connecting to its end. */
  async #run(outgoing: Outgoing): Promise<void> {
    outgoing.isRunning = true;
    outgoing.startedMs = this.#nowMs();
    outgoing.verdict = "";
    let reason = "";
    let refusal: HandshakeErrorCode | null = null;
    try {
      await this.#connect(outgoing);
    } catch (error) {
      reason = (error as Error).message;
      if (error instanceof HandshakeError) refusal = error.code;
    }
    close(outgoing.connection);
    outgoing.sealer?.close();
    outgoing.connection = null;
    outgoing.sealer = null;
    const now = this.#nowMs();
    const wasUp = outgoing.isUp;
    outgoing.isUp = false;
    outgoing.isRunning = false;
    outgoing.lastError = outgoing.verdict || reason;
    outgoing.refusal = outgoing.verdict === "" ? refusal : null;
    outgoing.queue = [];
    outgoing.queuedBytes = 0;
    outgoing.failures = wasUp && now - outgoing.startedMs > 1000 ? 0 : outgoing.failures + 1;
    const most = Math.min(
      BACKOFF_MS_MAX,
      BACKOFF_MS_MIN * 2 ** Math.min(outgoing.failures, 16),
    );
    outgoing.retryAtMs = now + most / 2 + most / 2 * (this.#random.u32() / 2 ** 32);
    if (this.#isClosed || now - outgoing.warnedMs < WARN_MS || wasUp) return;
    outgoing.warnedMs = now;
    // A node without a number connects to those only that are to take it in; its owner says how that goes.
    this.#log[this.#self.node === 0 ? "debug" : "warn"]("a control connection failed", {
      address: outgoing.address,
      reason: outgoing.lastError,
    });
  }

  async #connect(outgoing: Outgoing): Promise<void> {
    const { host, port } = parseAddress(outgoing.address)!;
    outgoing.abort = new AbortController();
    const connection = await Deno.connect({
      hostname: host,
      port,
      signal: outgoing.abort.signal,
    });
    outgoing.abort = null;
    outgoing.connection = connection;
    if (this.#isClosed) throw new ChannelError("the agent stops");
    connection.setNoDelay(true);
    connection.setKeepAlive(true);
    const reader = new Reader(connection, HANDSHAKE_BYTES_MAX);
    const result = await this.#handshake(connection, "initiator", reader);
    outgoing.sealer = new RecordSealer(this.#suite, result.sealingKey, true);
    outgoing.sent = outgoing.counted = 0;
    outgoing.isUp = true;
    this.#write(outgoing);
    const opener = this.#opener(result.openingKey, COUNT_BYTES);
    const count = new Uint8Array(COUNT_BYTES);
    try {
      for (;;) {
        await this.#readRecord(reader, opener, () => count);
        const counted = new DataView(count.buffer).getUint32(0, true);
        if ((outgoing.sent - counted) >>> 0 > (outgoing.sent - outgoing.counted) >>> 0) {
          throw new ChannelError("the peer has counted more than was sent");
        }
        outgoing.counted = counted;
        outgoing.waitingSinceMs = this.#nowMs();
      }
    } finally {
      opener.close();
    }
  }

  #opener(key: Uint8Array, headBytesMax: number): RecordOpener {
    const bounds = { headBytesMax, dataBytesMax: 0, dataBytesMultiple: 1 };
    return new RecordOpener(this.#suite, key, true, bounds);
  }

  /** Writes what is queued, and what is queued meanwhile; one of these per connection. */
  async #write(outgoing: Outgoing): Promise<void> {
    const { connection, sealer } = outgoing;
    if (outgoing.isWriting || connection === null || sealer === null) return;
    outgoing.isWriting = true;
    try {
      while (outgoing.queue.length > 0 && outgoing.connection === connection) {
        await writeAll(connection, this.#sealQueued(outgoing, sealer));
      }
    } catch {
      close(connection); // Its reader ends it.
    }
    outgoing.isWriting = false;
    // A connection that followed while this one failed has a queue of its own.
    if (outgoing.isUp && outgoing.queue.length > 0) this.#write(outgoing);
  }

  /** Takes messages from the queue and seals them, one record each. */
  #sealQueued(outgoing: Outgoing, sealer: RecordSealer): Uint8Array {
    let count = 0, bytes = 0;
    for (const message of outgoing.queue) {
      if (count > 0 && bytes + message.length > WRITE_BYTES_MAX) break;
      count++;
      bytes += RECORD_OVERHEAD_BYTES + message.length;
    }
    const records = new Uint8Array(bytes);
    let at = 0;
    for (const message of outgoing.queue.splice(0, count)) {
      at += sealer.seal(message, null, records.subarray(at));
      outgoing.queuedBytes -= message.length;
    }
    if (outgoing.sent === outgoing.counted) outgoing.waitingSinceMs = this.#nowMs();
    outgoing.sent = (outgoing.sent + count) >>> 0;
    return records;
  }

  // -------------------------------------------------------------------------------------- incoming

  async #accept(server: Deno.TcpListener): Promise<void> {
    while (!this.#isClosed) {
      try {
        const connection = await server.accept();
        this.#serve(connection);
        this.#tokens--;
      } catch (error) {
        if (this.#isClosed) return;
        // Out of descriptors, or the connection ended before it was accepted: with the next tick.
        this.#log.warn("accepting a control connection failed", {
          reason: (error as Error).message,
        });
        this.#tokens = Math.min(this.#tokens, 0);
      }
      if (this.#tokens < 1) await new Promise<void>((resolve) => this.#wake = resolve);
      this.#wake = null;
    }
  }

  async #serve(connection: Deno.TcpConn): Promise<void> {
    const now = this.#nowMs();
    const incoming: Incoming = { connection, startedMs: now, usedMs: now, peer: null };
    for (const oldest of this.#strangers) {
      if (this.#strangers.size < HANDSHAKES_MAX) break;
      this.#strangers.delete(oldest);
      close(oldest.connection);
    }
    this.#strangers.add(incoming);
    try {
      connection.setNoDelay(true);
      connection.setKeepAlive(true);
      const reader = new Reader(connection, HANDSHAKE_BYTES_MAX);
      const result = await this.#handshake(connection, "responder", reader);
      this.#strangers.delete(incoming);
      this.#admit(incoming, result.peer);
      reader.grow();
      await this.#receive(incoming, reader, result);
    } catch (error) {
      const now = this.#nowMs();
      if (!this.#isClosed && incoming.peer === null && now - this.#warnedMs >= WARN_MS) {
        this.#warnedMs = now;
        const { hostname, port } = connection.remoteAddr;
        this.#log.warn("a control connection was not made", {
          peer: formatAddress(hostname, port),
          reason: (error as Error).message,
        });
      }
    }
    this.#strangers.delete(incoming);
    const { peer } = incoming;
    if (peer !== null && this.#incoming.get(peer.uuid) === incoming) {
      this.#incoming.delete(peer.uuid);
    }
    close(connection);
  }

  /** Takes an authenticated connection in the place of an older one; throws when it is not wanted. */
  #admit(incoming: Incoming, peer: Identity): void {
    const older = this.#incoming.get(peer.uuid);
    if (older === undefined && this.#incoming.size >= INCOMING_MAX) {
      throw new ChannelError(`there are ${INCOMING_MAX} connections already`);
    }
    // Who does not know its incarnation yet has only just begun: the older connection may be of a host that lost its power, which
    // nobody has heard the end of.
    const isOlder = peer.incarnation > 0 && (older?.peer?.incarnation ?? 0) > peer.incarnation;
    if (isOlder) {
      throw new ChannelError(`node ${peer.uuid} has a connection of a later incarnation`);
    }
    incoming.peer = peer;
    this.#incoming.set(peer.uuid, incoming);
    this.#reached(peer.address);
    if (older !== undefined) close(older.connection);
    // It is there: no reason to wait any longer before it is tried again.
    const outgoing = this.#outgoing.get(peer.address);
    if (outgoing !== undefined) {
      outgoing.failures = 0;
      outgoing.retryAtMs = 0;
    }
  }

  async #receive(incoming: Incoming, reader: Reader, result: HandshakeResult): Promise<void> {
    const { connection } = incoming;
    const peer = incoming.peer!;
    const sealer = new RecordSealer(this.#suite, result.sealingKey, true);
    const opener = this.#opener(result.openingKey, CONTROL_BYTES_MAX);
    const count = new Uint8Array(COUNT_BYTES);
    const record = new Uint8Array(RECORD_OVERHEAD_BYTES + COUNT_BYTES);
    let received = 0;
    let message = count;
    try {
      for (;;) {
        await this.#readRecord(reader, opener, (bytes) => message = new Uint8Array(bytes));
        // The older connection's rest must not come behind the newer one's beginning.
        if (this.#isClosed || this.#incoming.get(peer.uuid) !== incoming) return;
        received = (received + 1) >>> 0;
        incoming.usedMs = this.#nowMs();
        this.listener.controlReceived(peer, message);
        const next = opener.recordBytes(reader.have, 0, reader.have.length);
        // Counted once for all that came together.
        if (next > 0 && next <= reader.have.length) continue;
        new DataView(count.buffer).setUint32(0, received, true);
        sealer.seal(count, null, record);
        await writeAll(connection, record);
      }
    } finally {
      sealer.close();
      opener.close();
    }
  }

  /** Reads and opens one record into what `place` gives for its length. */
  async #readRecord(
    reader: Reader,
    opener: RecordOpener,
    place: (bytes: number) => Uint8Array,
  ): Promise<void> {
    for (;;) {
      const bytes = opener.recordBytes(reader.have, 0, reader.have.length);
      if (bytes < 0) throw new ChannelError("a record of impossible size");
      if (bytes > 0 && reader.have.length >= bytes) {
        const to = place(opener.headBytes(reader.have, 0));
        const isRight = to.length === opener.headBytes(reader.have, 0) &&
          opener.open(reader.have, 0, to, null);
        reader.take(bytes);
        if (!isRight) throw new ChannelError("a record was changed on the way");
        return;
      }
      if (!await reader.read(bytes || RECORD_OVERHEAD_BYTES, false)) {
        throw new ChannelError("the other end closed the connection");
      }
    }
  }
}
