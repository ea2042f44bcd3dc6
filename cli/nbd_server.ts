/**
 * The loop of `kelpie nbd`: sockets and disks on one ring, one thread.
 *
 *     ┌─▶ ring.dispatch     bytes that came ─▶ handshake or transmission ─▶ pieces
 *     │   exports           publish, reap ─▶ replies; resume who had to wait
 *     │   flush             one SEND per connection for all that this turn brought
 *     └── ring.enter        sleeps until a socket or a disk has something
 *
 * Everything on the way of a request is synchronous. What is not (asking the agent, opening a disk) runs beside it in the
 * runtime's event loop, which gets its turns while there is such work, and otherwise ten times a second.
 *
 * @module
 */
import type { AdminClient } from "../agent/admin_client.ts";
import { runsOf } from "../agent/nbd/extents.ts";
import {
  type Agreement,
  Handshake,
  type HandshakeHost,
  type TlsMode,
} from "../agent/nbd/handshake.ts";
import type { ByteStream } from "../agent/nbd/protocol.ts";
import { type NbdRequest, Transmission, type TransmissionHost } from "../agent/nbd/transmission.ts";
import { EventFdWatcher } from "../agent/platform/linux/eventfd.ts";
import { Ring } from "../agent/platform/linux/ring.ts";
import { runtimeTurn } from "../agent/platform/linux/runtime_turn.ts";
import {
  Tcp,
  type TcpConnection,
  type TcpHandler,
  type TcpListening,
} from "../agent/platform/linux/tcp.ts";
import type { TlsContext, TlsStream } from "../agent/platform/linux/tls.ts";
import { type Acquired, Exports, type Session } from "./nbd_exports.ts";

/** Longest sleep: signals are looked at in between, more often where somebody is connected. */
const SLEEP_MS = 100, SLEEP_ALONE_MS = 250;
/** Sleep while something asynchronous is under way: the runtime gets a turn after each. */
const SLEEP_BUSY_MS = 1;
/** Between looks at what only time tells. */
const TICK_MS = 100;
/** Longest handshake. */
const HANDSHAKE_MS = 20_000;
/** Longest wait for the last words of a connection, and for requests under way when the server stops. */
const LINGER_MS = 5_000;
/** Part of an export that is asked for at once; the agent says less where it is much. */
const EXTENTS_BYTES_MAX = 16 * 1024 ** 3;
/** Complaints about clients in {@linkcode COMPLAINTS_MS}: whoever can connect must not be able to fill a log. */
const COMPLAINTS_MAX = 10, COMPLAINTS_MS = 10_000;
/** A client's host that does not answer for half a minute is gone; one that only does not read is waited for. */
const PATIENCE = { userTimeoutMs: 0, keepaliveIdleS: 30 };

/** How to serve. */
export interface NbdServerOptions {
  readonly client: AdminClient;
  readonly runDir: string;
  /** Numeric `ip:port`, or null. */
  readonly address: string | null;
  /** Path where no file is, or null. */
  readonly socket: string | null;
  /** Files are loaded; null: no TLS. */
  readonly tls: TlsContext | null;
  readonly isReadOnly: boolean;
  /** Only these; empty: all. */
  readonly exports: readonly string[];
  readonly connectionsMax: number;
  /** Told where it listens, once it does. */
  readonly ready: (addresses: readonly string[]) => void;
  /** Something that people should know. */
  readonly warn: (message: string) => void;
}

/** See the head of the file. */
export class NbdServer {
  readonly options: NbdServerOptions;
  readonly exports: Exports;
  readonly tcp: Tcp;
  readonly #ring = new Ring();
  readonly #clients = new Set<Client>();
  /** Asynchronous work under way. */
  #jobs = 0;
  #complaints = 0;
  #complaintsEndMs = 0;
  readonly #listening: TcpListening[] = [];
  #nextTickMs = 0;
  #nextTurnMs = 0;

  constructor(options: NbdServerOptions) {
    this.options = options;
    this.tcp = new Tcp(this.#ring, PATIENCE);
    this.exports = new Exports({
      client: options.client,
      runDir: options.runDir,
      eventFds: new EventFdWatcher(this.#ring),
      isReadOnly: options.isReadOnly,
      names: options.exports,
      sleep: (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds)),
      warn: options.warn,
    });
  }

  /**
   * Serves until the signal aborts; what is under way then is finished.
   *
   * @throws SystemError when it cannot listen
   */
  async run(signal: AbortSignal): Promise<void> {
    const accepted = (connection: TcpConnection) => this.#accept(connection);
    const { address, socket } = this.options;
    const listening = this.#listening;
    try {
      if (socket !== null) listening.push(this.tcp.listenUnix(socket, accepted));
      if (address !== null) listening.push(this.tcp.listen(address, accepted));
      this.options.ready(listening.map((each) => each.address));
      while (!signal.aborted) await this.#turn();
      await this.#stop();
    } finally {
      // Only what this server has made.
      if (listening[0]?.address === socket) await Deno.remove(socket!).catch(() => {});
      this.#ring.close();
    }
  }

  /** Finishes what is under way, and gives every disk back. */
  async #stop(): Promise<void> {
    const endMs = performance.now() + LINGER_MS;
    for (const each of this.#listening) each.close();
    for (const client of this.#clients) client.stop();
    while (this.#clients.size > 0 && performance.now() < endMs) await this.#turn();
    for (const client of this.#clients) client.connection.close("the server stops");
    let isDone = false;
    this.job(
      this.exports.close().finally(() => {
        isDone = true;
      }),
    );
    while (!isDone) await this.#turn();
  }

  /** Remembers that something asynchronous is under way, which must not fail. */
  job(work: Promise<unknown>): void {
    this.#jobs++;
    work.catch((error) => this.options.warn(`unexpected: ${error?.message ?? error}`))
      .finally(() => this.#jobs--);
  }

  #accept(connection: TcpConnection): void {
    const client = new Client(this, connection);
    connection.handler = client;
    if (this.#clients.size >= this.options.connectionsMax) {
      this.options.warn(`a client was sent away: ${this.#clients.size} are connected already`);
      return connection.close("too many connections");
    }
    if (!connection.attach()) return connection.close("no memory for another connection");
    this.#clients.add(client);
    client.start();
  }

  /** Says why a client was cut off, unless there are too many of the kind. */
  complain(address: string, reason: string): void {
    if (++this.#complaints > COMPLAINTS_MAX) return;
    const rest = this.#complaints < COMPLAINTS_MAX ? "" : "; more of the kind are not told for now";
    this.options.warn(`the client at ${address} was cut off: ${reason}${rest}`);
  }

  /** A client is gone, and nothing of it is under way. */
  forget(client: Client): void {
    this.#clients.delete(client);
  }

  async #turn(): Promise<void> {
    this.#ring.dispatch();
    this.#serve();
    for (const client of this.#clients) client.endTurn();
    this.tcp.deliverClosed();
    this.tcp.flush();
    const nowMs = performance.now();
    if (nowMs >= this.#nextTickMs) this.#tick(nowMs);
    this.#sleep();
    if (this.#jobs > 0 || nowMs >= this.#nextTurnMs) {
      this.#nextTurnMs = nowMs + this.#restMs;
      await runtimeTurn();
    }
  }

  /** What the disks have done, and what can be begun therefore. */
  #serve(): void {
    const { open } = this.exports;
    for (let i = 0; i < open.length; i++) {
      const session = open[i];
      session.publish();
      session.reap();
      session.queue.resume();
      session.publish();
    }
  }

  #sleep(): void {
    const { open } = this.exports;
    let isReady = false;
    for (let i = 0; i < open.length; i++) isReady = open[i].arm() || isReady;
    this.#ring.enter(isReady ? 0 : this.#jobs > 0 ? SLEEP_BUSY_MS : this.#restMs);
    for (let i = 0; i < open.length; i++) open[i].disarm();
  }

  /** Longest time between two turns of the runtime. */
  get #restMs(): number {
    return this.#clients.size > 0 ? SLEEP_MS : SLEEP_ALONE_MS;
  }

  #tick(nowMs: number): void {
    this.#nextTickMs = nowMs + TICK_MS;
    // What found no descriptors left waits to be accepted.
    for (const each of this.#listening) each.setAccepting(true);
    for (const session of this.exports.open) session.check();
    for (const client of this.#clients) client.tick(nowMs);
    this.tcp.trim();
    if (nowMs < this.#complaintsEndMs) return;
    this.#complaintsEndMs = nowMs + COMPLAINTS_MS;
    this.#complaints = 0;
  }
}

/** One connection. */
class Client implements TcpHandler, HandshakeHost, TransmissionHost {
  readonly connection: TcpConnection;
  readonly #server: NbdServer;
  readonly #handshake: Handshake;
  readonly #startedMs = performance.now();
  #tls: TlsStream | null = null;
  #acquired: Acquired | null = null;
  #transmission: Transmission | null = null;
  /** When it is to be closed, whether or not its last words have gone out; 0: it goes on. */
  #closesAtMs = 0;
  #reason = "";
  /** The connection is gone. */
  #isGone = false;
  #isStopping = false;
  #isReleased = false;

  constructor(server: NbdServer, connection: TcpConnection) {
    this.#server = server;
    this.connection = connection;
    const mode: TlsMode = server.options.tls === null ? "off" : "required";
    this.#handshake = new Handshake(this, connection, mode);
  }

  start(): void {
    this.#handshake.start();
  }

  get #stream(): ByteStream {
    return this.#tls ?? this.connection;
  }

  // Bytes ----------------------------------------------------------------------------------------

  /** {@inheritDoc TcpHandler.connected} */
  connected(): void {}

  /** {@inheritDoc TcpHandler.sent} */
  sent(): void {}

  /** {@inheritDoc TcpHandler.received} */
  received(): void {
    this.#pump();
  }

  #pump(): void {
    if (this.#closesAtMs > 0 || this.#isGone || this.#isStopping) return;
    for (;;) {
      const tls = this.#tls;
      if (tls === null) {
        this.#step();
        // The rest of what came belongs to TLS, if that has begun just now.
        if (this.#tls === null) return;
        continue;
      }
      const before = this.connection.inputStart;
      const problem = tls.receive();
      if (problem !== null) return this.close(problem === "" ? null : problem);
      const start = tls.inputStart;
      this.#step();
      const hasMoved = tls.inputStart !== start || this.connection.inputStart !== before;
      if (!hasMoved || this.#closesAtMs > 0 || this.#isGone) return;
    }
  }

  #step(): void {
    if (this.#transmission === null) this.#handshake.step();
    // Requests may lie behind the handshake.
    this.#transmission?.step();
  }

  /** The end of a turn: what is queued goes out, and there may be room again for what comes. */
  endTurn(): void {
    const { connection } = this;
    if (this.#isGone) return this.#settle();
    if (this.#tls !== null) {
      if (connection.inputEnd > connection.inputStart) this.#pump();
      const problem = this.#tls.send();
      if (problem !== null) this.close(problem);
    }
    const failure = this.#acquired?.session.failure ?? null;
    if (failure !== null) this.close(failure);
    if (this.#isStopping && (this.#transmission?.inFlight ?? 0) === 0) this.close(null);
    if (this.#closesAtMs > 0 && this.#isSent()) {
      this.#tls?.close();
      this.#server.tcp.flushNow(connection);
      connection.close(this.#reason);
    } else if (!connection.isReceiving && !connection.isPaused) this.#server.tcp.dirty(connection);
  }

  #isSent(): boolean {
    return this.#stream.queuedBytes === 0 && this.connection.queuedBytes === 0 &&
      this.connection.sending === 0;
  }

  tick(nowMs: number): void {
    if (this.#isGone) return;
    if (this.#closesAtMs > 0) {
      if (nowMs > this.#closesAtMs) this.connection.close(this.#reason);
    } else if (this.#transmission === null && nowMs > this.#startedMs + HANDSHAKE_MS) {
      this.close(`the handshake took longer than ${HANDSHAKE_MS / 1000} s`);
    }
  }

  /** Takes no more requests; ends when those that are under way are done. */
  stop(): void {
    this.#isStopping = true;
    this.connection.pause(true);
  }

  /** {@inheritDoc HandshakeHost.close} */
  close(reason: string | null): void {
    if (this.#closesAtMs > 0 || this.#isGone) return;
    if (reason !== null) this.#server.complain(this.connection.address, reason);
    this.#closesAtMs = performance.now() + LINGER_MS;
    this.#reason = reason ?? "in good order";
    this.connection.pause(true);
    if (this.#tls !== null) {
      this.#tls.send();
    }
  }

  /** {@inheritDoc TcpHandler.closed} */
  closed(): void {
    this.#isGone = true;
    this.#tls?.close();
    this.#transmission?.close();
    this.#settle();
  }

  /** Gives the export back, once nothing of this client is under way. */
  #settle(): void {
    const { session } = this.#acquired ?? {};
    const isLost = session !== undefined && session.failure !== null;
    if (this.#transmission !== null && !this.#transmission.isOver && !isLost) return;
    this.#server.forget(this);
    if (session !== undefined) this.#release(session);
  }

  #release(session: Session): void {
    if (this.#isReleased) return;
    this.#isReleased = true;
    this.#server.job(this.#server.exports.release(session));
  }

  // Handshake -----------------------------------------------------------------------------------

  /** {@inheritDoc HandshakeHost.list} */
  list(): void {
    this.#server.job(
      this.#server.exports.list().then((names) => {
        this.#handshake.listed(names);
        this.#pump();
      }),
    );
  }

  /** {@inheritDoc HandshakeHost.find} */
  find(name: string, open: boolean): void {
    this.#server.job(open ? this.#acquire(name) : this.#describe(name));
  }

  async #describe(name: string): Promise<void> {
    const found = await this.#server.exports.describe(name);
    this.#handshake.found(found);
    this.#pump();
  }

  async #acquire(name: string): Promise<void> {
    const acquired = await this.#server.exports.acquire(name);
    if ("answer" in acquired) this.#handshake.found(acquired);
    else if (this.#isGone || this.#closesAtMs > 0 || this.#isStopping) {
      await this.#server.exports.release(acquired.session);
    } else {
      this.#acquired = acquired;
      this.#handshake.found(acquired.info);
    }
    this.#pump();
  }

  /** {@inheritDoc HandshakeHost.startTls} */
  startTls(): void {
    this.#tls = this.#server.options.tls!.accept(this.connection);
    this.connection.bytesWanted = 1;
    this.#handshake.secured(this.#tls);
  }

  /** {@inheritDoc HandshakeHost.agreed} */
  agreed(agreement: Agreement): void {
    const { session } = this.#acquired!;
    this.#transmission = new Transmission(this, this.#stream, session.queue, agreement);
  }

  // Transmission --------------------------------------------------------------------------------

  /** {@inheritDoc TransmissionHost.findExtents} */
  findExtents(request: NbdRequest): void {
    const { session } = this.#acquired!;
    const known = session.extents.find(request.offsetBytes, session.queue.changes);
    if (known !== null) return this.#transmission!.extents(request, known);
    this.#server.job(this.#askExtents(request, session));
  }

  async #askExtents(request: NbdRequest, session: Session): Promise<void> {
    const { changes } = session.queue;
    const { offsetBytes, lengthBytes } = request;
    let runs: number[] = [];
    try {
      const bytes = Math.min(EXTENTS_BYTES_MAX, session.info.sizeBytes - offsetBytes);
      runs = runsOf(await session.findExtents(offsetBytes, bytes));
      if (session.canRemember) session.extents.store(offsetBytes, runs, changes);
    } catch {
      // Nobody can tell now. Reading it all is never wrong.
    }
    if (runs.length === 0) runs = [lengthBytes, 0];
    this.#transmission!.extents(request, runs);
  }
}
