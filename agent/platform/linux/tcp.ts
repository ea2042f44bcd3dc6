/**
 * TCP and unix stream sockets by io_uring, for the data worker and for `kelpie nbd`: connections with a queue of their own on the way out and a buffer in which whole records lie
 * together on the way in. It knows nothing of what the bytes mean.
 *
 *     out   8 MiB   |······|── in flight ──|── queued ──|···|      reserve (room in one piece) ▶ commit ▶ flush
 *     in    2.5 MiB |······|── received ──|···· RECV goes here ····|
 *
 * Invariants:
 * - At most one SEND and one RECV of a connection are in the ring. What is queued while a SEND is in flight goes with the next one, so
 *   everything of one turn, and everything of the time that the kernel took, is one send.
 * - A record that must lie in one piece is never split over the end of the out buffer: the rest of the end is skipped.
 * - A connection's place, memory and descriptor are used again only after the kernel has let go of each of its requests.
 * - Until {@linkcode TcpConnection.attach} a connection has 2 × 512 bytes, whatever the other end sends.
 * - The handler is called from the ring's dispatch only; `closed` exactly once, also after {@linkcode TcpConnection.close}
 *   (from {@linkcode Tcp.deliverClosed}).
 *
 * Figures are in `tests/bench/peers.ts`.
 *
 * @module
 */
import { decodeSocketAddress, encodeSocketAddress } from "../address.ts";
import {
  check,
  closeFd,
  describeErrno,
  errno,
  libc,
  MAP_ANONYMOUS,
  MAP_FIXED,
  MAP_NORESERVE,
  MAP_PRIVATE,
  mapMemory,
  viewOf,
} from "./libc.ts";
import {
  IORING_OP_ACCEPT,
  IORING_OP_ASYNC_CANCEL,
  IORING_OP_CONNECT,
  IORING_OP_RECV,
  IORING_OP_SEND,
  type Ring,
} from "./ring.ts";
import { unixAddress } from "./socket.ts";

/** Connections of one worker: two for each pair of 256 nodes, and those in their handshake. */
export const CONNECTIONS_MAX = 1024;
/** Bytes queued on the way out of one connection: eight of the longest messages. */
export const OUT_BYTES = 8 * 1024 * 1024;
/** Bytes received and not taken of one connection: two of the longest records. */
export const IN_BYTES = 5 * 512 * 1024;
/** Bytes of each direction's buffer before {@linkcode TcpConnection.attach}. */
export const SMALL_BYTES = 512;

/** A send that is no longer than this is nearly always over when it has been submitted: less than any socket's buffer. */
const INLINE_BYTES_MAX = 64 * 1024;
/** Connections that wait in the kernel to be accepted. */
const BACKLOG = 128;
const SLOT_BYTES = 2048, SLOT_OUT_AT = 512, SLOT_ADDRESS_AT = 1024;
const TWO32 = 0x1_0000_0000;
const AF_UNIX = 1;
const SOCK_STREAM = 1, SOCK_NONBLOCK = 0o4000, SOCK_CLOEXEC = 0o2000000;
const SOL_SOCKET = 1, SO_REUSEADDR = 2, SO_KEEPALIVE = 9;
const IPPROTO_TCP = 6, IPPROTO_IPV6 = 41, IPV6_V6ONLY = 26;
const TCP_NODELAY = 1, TCP_KEEPIDLE = 4, TCP_KEEPINTVL = 5, TCP_KEEPCNT = 6;
const TCP_CONGESTION = 13, TCP_USER_TIMEOUT = 18;
/** Longest name of a congestion control algorithm, with the 0 behind it. */
const TCP_CA_NAME_MAX = 16;
/**
 * A peer that takes nothing for this long is gone. Gossip finds out sooner whether the node is dead; this is for connections that
 * a device on the way has forgotten.
 */
const USER_TIMEOUT_MS = 8000;
/** Memory that a connection without anything under way keeps of each of its buffers: it is warm, and used again first. */
const WARM_BYTES = 256 * 1024;
const KEEPALIVE_IDLE_S = 3, KEEPALIVE_INTERVAL_S = 2, KEEPALIVE_PROBES = 3;
const MSG_NOSIGNAL = 0x4000, MSG_DONTWAIT = 0x40;
const EINTR = 4, EAGAIN = 11, ENFILE = 23, EMFILE = 24, ECANCELED = 125;

/** How a dead TCP connection is noticed. */
export interface TcpPatience {
  /** Milliseconds that sent bytes may stay unacknowledged; 0: as long as the kernel likes. */
  readonly userTimeoutMs: number;
  /** Silence before the other end is asked whether it is there. */
  readonly keepaliveIdleS: number;
}

/** Peers' patience: gossip finds out sooner whether a node is dead. */
const PEER_PATIENCE: TcpPatience = {
  userTimeoutMs: USER_TIMEOUT_MS,
  keepaliveIdleS: KEEPALIVE_IDLE_S,
};

/** Told what happens on one connection. */
export interface TcpHandler {
  /** An outgoing connection is made. */
  connected(): void;
  /** Bytes came: {@linkcode TcpConnection.input} from `inputStart` to `inputEnd`; take them by moving `inputStart`. */
  received(): void;
  /** Something of the queue has gone out. */
  sent(): void;
  /** It is gone; nothing follows. */
  closed(reason: string): void;
}

/** A connection; see the head of the file. */
export class TcpConnection {
  handler: TcpHandler | null = null;
  /** Numeric address of the other end. */
  address = "";
  fd = -1;
  /** Requests of it in the ring. */
  inRing = 0;
  isReceiving = false;
  isConnecting = false;
  /** Not to be used any more; waits for the kernel, and for `closed` to be delivered. */
  isClosed = false;
  closeReason = "";
  isDirty = false;
  /** Receiving waits until this is false again. */
  isPaused = false;

  input: Uint8Array<ArrayBuffer>;
  inputAddress: number;
  inputStart = 0;
  inputEnd = 0;
  /** Bytes from `inputStart` on that must fit in one piece: the length of the record that has begun. */
  bytesWanted = 1;
  /** Receive no more than what is wanted: there is nothing behind it that may be taken now. */
  isExact = true;
  /** Only answers come: while nothing is asked, receiving begins with whatever call comes next. */
  isAsking = false;

  output: Uint8Array<ArrayBuffer>;
  outputAddress: number;
  /** First byte that is not sent yet. */
  #head = 0;
  /** End of what is queued. */
  #tail = 0;
  /** Where the part at the end of the buffer stops, while the queue goes on at its start; 0: it does not. */
  #wrap = 0;
  /** Bytes of the SEND in the ring; 0: none. */
  sending = 0;
  /** Its big buffers, or null. */
  buffers: Buffers | null = null;
  /** Ends of what was used of them since the last {@linkcode trim}. */
  #outputPeak = 0;
  inputPeak = 0;

  constructor(readonly tcp: Tcp, readonly slot: number, readonly slotAddress: number) {
    this.input = tcp.slab.subarray(slot * SLOT_BYTES, slot * SLOT_BYTES + SMALL_BYTES);
    this.inputAddress = slotAddress;
    this.output = tcp.slab.subarray(
      slot * SLOT_BYTES + SLOT_OUT_AT,
      slot * SLOT_BYTES + SLOT_OUT_AT + SMALL_BYTES,
    );
    this.outputAddress = slotAddress + SLOT_OUT_AT;
  }

  /** Bytes queued and not sent. */
  get queuedBytes(): number {
    return this.#wrap > 0 ? this.#wrap - this.#head + this.#tail : this.#tail - this.#head;
  }

  /**
   * Gives it the big buffers: whoever is there is known now. Nothing may be unsent or not taken beyond what fits.
   *
   * @returns false: no memory
   */
  attach(): boolean {
    const buffers = this.tcp.takeBuffers();
    if (buffers === null) return false;
    buffers.input.set(this.input.subarray(this.inputStart, this.inputEnd));
    this.inputEnd -= this.inputStart;
    this.inputStart = 0;
    this.buffers = buffers;
    this.input = buffers.input;
    this.inputAddress = buffers.inputAddress;
    this.isExact = false;
    this.bytesWanted = 1;
    if (this.sending === 0) this.#attachOutput();
    return true;
  }

  /** A SEND from the small buffer has to end first. */
  #attachOutput(): void {
    const buffers = this.buffers!;
    const queued = this.queuedBytes;
    // The small one never wraps: a handshake's messages fit one after the other.
    buffers.output.set(this.output.subarray(this.#head, this.#head + queued));
    this.output = buffers.output;
    this.outputAddress = buffers.outputAddress;
    this.#head = 0;
    this.#tail = queued;
    this.#wrap = 0;
  }

  /**
   * Finds room for `bytes` in one piece. Changes nothing; what fits now fits until {@linkcode commit}.
   *
   * @returns offset in `output`, or −1
   */
  reserve(bytes: number): number {
    const size = this.output.length;
    if (this.isClosed) return -1;
    if (this.#wrap > 0) return this.#tail + bytes < this.#head ? this.#tail : -1;
    if (this.#tail + bytes <= size) return this.#tail;
    return bytes < this.#head ? 0 : -1;
  }

  /**
   * Queues what was written to `output` at `at`.
   *
   * @param at what {@linkcode reserve} returned for at least as many bytes, with no commit in between
   */
  commit(at: number, bytes: number): void {
    if (at !== this.#tail) {
      this.#wrap = this.#tail;
      this.#tail = 0;
    }
    this.#tail += bytes;
    if (this.#tail > this.#outputPeak) this.#outputPeak = this.#tail;
    this.tcp.dirty(this);
  }

  /** Gives the memory of buffers back that a burst has left behind, where nothing is under way. */
  trim(): void {
    const { buffers } = this;
    if (buffers === null || this.output !== buffers.output) return;
    if (this.queuedBytes === 0 && this.#outputPeak > WARM_BYTES) {
      discard(buffers.outputAddress + WARM_BYTES, OUT_BYTES - WARM_BYTES);
      this.#outputPeak = 0;
    }
    // A RECV may be waiting to write there: the addresses stay good.
    if (this.inputStart === this.inputEnd && this.inputPeak > WARM_BYTES) {
      discard(buffers.inputAddress + WARM_BYTES, IN_BYTES - WARM_BYTES);
      this.inputPeak = 0;
    }
  }

  /** Queues a copy of `bytes`. False: no room. */
  push(bytes: Uint8Array): boolean {
    const at = this.reserve(bytes.length);
    if (at < 0) return false;
    this.output.set(bytes, at);
    this.commit(at, bytes.length);
    return true;
  }

  /** Bytes that can be sent in one piece. */
  get sendable(): number {
    return (this.#wrap > 0 ? this.#wrap : this.#tail) - this.#head;
  }

  /** Where they are. */
  get sendableAt(): number {
    return this.#head;
  }

  /** Some bytes have gone out. */
  sentBytes(bytes: number): void {
    this.#head += bytes;
    if (this.#wrap > 0 && this.#head === this.#wrap) {
      this.#head = 0;
      this.#wrap = 0;
    }
    if (this.#wrap === 0 && this.#head === this.#tail) {
      // Empty: begin again at the start, whose pages are warm.
      this.#head = 0;
      this.#tail = 0;
    }
    if (this.buffers !== null && this.output !== this.buffers.output) this.#attachOutput();
  }

  /** Closes it, at once and in the middle of whatever it was doing. `closed` follows from the loop. */
  close(reason: string): void {
    this.tcp.close(this, reason);
  }

  /** Stops receiving, or goes on. */
  pause(isPaused: boolean): void {
    this.isPaused = isPaused;
    if (!isPaused) this.tcp.dirty(this);
  }
}

/** The big buffers of a connection, in mapped memory. */
interface Buffers {
  readonly input: Uint8Array<ArrayBuffer>;
  readonly inputAddress: number;
  readonly output: Uint8Array<ArrayBuffer>;
  readonly outputAddress: number;
}

/** A listening socket. */
export interface TcpListening {
  /** Numeric address, with the port that the kernel chose where 0 was asked for; or the path. */
  readonly address: string;
  /** Accepts (true) or leaves what comes in the kernel's backlog. */
  setAccepting(isAccepting: boolean): void;
  /** Stops listening. */
  close(): void;
}

/** All TCP of one worker. */
export class Tcp {
  readonly #ring: Ring;
  readonly #receiveKind: number;
  readonly #sendKind: number;
  readonly #connectKind: number;
  readonly #cancelKind: number;
  readonly #slabAddress: number;
  /** Small buffers and socket addresses, {@linkcode SLOT_BYTES} per connection. */
  readonly slab: Uint8Array<ArrayBuffer>;
  readonly #connections: (TcpConnection | null)[] = [];
  readonly #freeSlots: number[] = [];
  readonly #freeBuffers: Buffers[] = [];
  readonly #listenings: Listening[] = [];
  #dirty: TcpConnection[] = [];
  #flushing: TcpConnection[] = [];
  readonly #closed: TcpConnection[] = [];
  #open = 0;
  #attached = 0;
  readonly #patience: TcpPatience;

  /** @param ring the worker's */
  constructor(ring: Ring, patience: TcpPatience = PEER_PATIENCE) {
    this.#ring = ring;
    this.#patience = patience;
    this.#receiveKind = ring.register({ ringDone: (slot, result) => this.#received(slot, result) });
    this.#sendKind = ring.register({ ringDone: (slot, result) => this.#sent(slot, result) });
    this.#connectKind = ring.register({
      ringDone: (slot, result) => this.#connected(slot, result),
    });
    this.#cancelKind = ring.register({ ringDone() {} });
    const bytes = CONNECTIONS_MAX * SLOT_BYTES;
    this.#slabAddress = mapMemory({ lengthBytes: bytes, flags: MAP_PRIVATE | MAP_ANONYMOUS });
    this.slab = viewOf(this.#slabAddress, bytes);
  }

  /** Connections that have a place, closed ones included that the kernel has not let go of. */
  get connections(): number {
    return this.#open;
  }

  /**
   * Bytes of buffers that connections hold: a kilobyte each, and {@linkcode IN_BYTES} + {@linkcode OUT_BYTES} (of address space; what was never
   * used takes no memory) for those that are attached.
   */
  get bufferBytes(): number {
    return this.#open * 2 * SMALL_BYTES + this.#attached * (IN_BYTES + OUT_BYTES);
  }

  /** True when {@linkcode deliverClosed} or {@linkcode flush} has something to do. */
  get hasWork(): boolean {
    return this.#dirty.length > 0 || this.#closed.length > 0;
  }

  /**
   * Listens. Throws {@linkcode SystemError}, or RangeError when the address is not numeric.
   *
   * @param address numeric `ip:port`; port 0: any
   * @param accepted gets each connection; it must set its handler before it returns
   */
  listen(address: string, accepted: (connection: TcpConnection) => void): TcpListening {
    const encoded = encodeSocketAddress(address);
    if (encoded === null) throw new RangeError(`cannot listen on ${address}: not numeric`);
    const fd = check(
      libc.socket(encoded[0], SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0),
      "socket",
    );
    let bound: string;
    try {
      setOption(fd, SOL_SOCKET, SO_REUSEADDR, 1);
      // [::] means both, on every machine.
      if (encoded.length > 16) setOption(fd, IPPROTO_IPV6, IPV6_V6ONLY, 0);
      check(libc.bind(fd, encoded, encoded.length), `bind ${address}`);
      check(libc.listen(fd, BACKLOG), `listen ${address}`);
      const name = new Uint8Array(28), length = new Uint8Array(new Uint32Array([28]).buffer);
      check(libc.getsockname(fd, name, length), `getsockname ${address}`);
      bound = decodeSocketAddress(name);
    } catch (error) {
      closeFd(fd);
      throw error;
    }
    return this.#listening(fd, bound, accepted);
  }

  /**
   * Listens on a path where no file is, for this user only. The file is the caller's to remove, once it stands for nothing
   * any more. Throws {@linkcode SystemError}, or RangeError when the path is too long for a socket.
   */
  listenUnix(path: string, accepted: (connection: TcpConnection) => void): TcpListening {
    const address = unixAddress(path);
    const fd = check(
      libc.socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0),
      "socket",
    );
    // Nobody else may connect, not even in the moment before a chmod.
    const mask = Deno.umask(0o177);
    try {
      check(libc.bind(fd, address, address.length), `bind ${path}`);
      check(libc.listen(fd, BACKLOG), `listen ${path}`);
    } catch (error) {
      closeFd(fd);
      throw error;
    } finally {
      Deno.umask(mask);
    }
    return this.#listening(fd, path, accepted);
  }

  #listening(
    fd: number,
    address: string,
    accepted: (connection: TcpConnection) => void,
  ): TcpListening {
    const listening = new Listening(this, this.#ring, fd, address, accepted);
    this.#listenings.push(listening);
    listening.setAccepting(true);
    return listening;
  }

  /**
   * Connects.
   *
   * @param address numeric `ip:port`
   * @returns null when there are too many connections, or no descriptor, or the address is not numeric
   */
  connect(address: string, handler: TcpHandler): TcpConnection | null {
    const encoded = encodeSocketAddress(address);
    if (encoded === null) return null;
    const fd = libc.socket(encoded[0], SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) return null;
    const connection = this.adopt(fd, address);
    if (connection === null) return null;
    connection.handler = handler;
    connection.isConnecting = true;
    const at = connection.slot * SLOT_BYTES + SLOT_ADDRESS_AT;
    this.slab.set(encoded, at);
    const addressAt = connection.slotAddress + SLOT_ADDRESS_AT;
    connection.inRing++;
    this.#ring.prepare(
      this.#connectKind,
      connection.slot,
      IORING_OP_CONNECT,
      0,
      fd,
      addressAt >>> 0,
      addressAt / TWO32,
      0,
      encoded.length,
      0,
      0,
    );
    return connection;
  }

  /** Takes over a descriptor; closes it and returns null when there are too many connections. */
  adopt(fd: number, address: string): TcpConnection | null {
    const slot = this.#freeSlots.pop() ?? this.#connections.length;
    if (slot >= CONNECTIONS_MAX) {
      closeFd(fd);
      return null;
    }
    // Without effect on unix sockets, of which the kernel knows itself how the other end is.
    setOption(fd, IPPROTO_TCP, TCP_NODELAY, 1);
    setOption(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
    setOption(fd, IPPROTO_TCP, TCP_KEEPIDLE, this.#patience.keepaliveIdleS);
    setOption(fd, IPPROTO_TCP, TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S);
    setOption(fd, IPPROTO_TCP, TCP_KEEPCNT, KEEPALIVE_PROBES);
    setOption(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, this.#patience.userTimeoutMs);
    avoidPacing(fd);
    const connection = new TcpConnection(this, slot, this.#slabAddress + slot * SLOT_BYTES);
    connection.fd = fd;
    connection.address = address;
    this.#connections[slot] = connection;
    this.#open++;
    return connection;
  }

  /** Starts to receive on an accepted connection whose handler is set. */
  start(connection: TcpConnection): void {
    this.#arm(connection);
  }

  /** Big buffers, from those that came back or new ones; null: no memory. */
  takeBuffers(): Buffers | null {
    const free = this.#freeBuffers.pop();
    if (free !== undefined) {
      this.#attached++;
      return free;
    }
    try {
      const address = mapMemory({
        lengthBytes: OUT_BYTES + IN_BYTES,
        flags: MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
      });
      this.#attached++;
      return {
        outputAddress: address,
        output: viewOf(address, OUT_BYTES),
        inputAddress: address + OUT_BYTES,
        input: viewOf(address + OUT_BYTES, IN_BYTES),
      };
    } catch {
      return null;
    }
  }

  /** Remembers that a connection has something to send or may receive again. */
  dirty(connection: TcpConnection): void {
    if (connection.isDirty) return;
    connection.isDirty = true;
    this.#dirty.push(connection);
  }

  /** See {@linkcode TcpConnection.close}. */
  close(connection: TcpConnection, reason: string): void {
    if (connection.isClosed) return;
    connection.isClosed = true;
    connection.closeReason = reason;
    this.#closed.push(connection);
    libc.shutdown(connection.fd, 2);
    // Shutdown ends RECV and SEND; a CONNECT that gets no answer has to be asked to end.
    if (connection.isConnecting) this.#cancel(this.#connectKind, connection.slot);
  }

  #cancel(kind: number, token: number): void {
    this.#ring.prepare(
      this.#cancelKind,
      0,
      IORING_OP_ASYNC_CANCEL,
      0,
      -1,
      token,
      kind,
      0,
      0,
      0,
      0,
    );
  }

  /** Tells handlers what was closed since the last turn. To be called once a turn, after the ring's dispatch. */
  deliverClosed(): void {
    // A handler may close others: they are told in the same turn.
    for (let i = 0; i < this.#closed.length; i++) {
      const connection = this.#closed[i];
      const handler = connection.handler;
      connection.handler = null;
      handler?.closed(connection.closeReason);
      this.#release(connection);
    }
    this.#closed.length = 0;
  }

  /** Sends what this turn has queued. To be called at its very end. */
  flush(): void {
    const flushing = this.#dirty;
    this.#dirty = this.#flushing;
    this.#flushing = flushing;
    for (let i = 0; i < flushing.length; i++) {
      const connection = flushing[i];
      connection.isDirty = false;
      if (connection.isClosed) continue;
      this.#flush(connection);
      this.#arm(connection);
    }
    flushing.length = 0;
  }

  /** Sends the last words of a connection that is about to be closed, as far as the kernel takes them without waiting. */
  flushNow(connection: TcpConnection): void {
    const bytes = connection.sendable;
    if (connection.sending > 0 || bytes === 0) return;
    const at = connection.sendableAt;
    libc.send(
      connection.fd,
      connection.output.subarray(at, at + bytes),
      BigInt(bytes),
      MSG_DONTWAIT | MSG_NOSIGNAL,
    );
  }

  #flush(connection: TcpConnection): void {
    const bytes = connection.sendable;
    if (bytes === 0 || connection.isConnecting) return;
    if (connection.sending > 0) {
      // It goes when that has ended.
      if (connection.queuedBytes > connection.sending) this.#ring.awaitInline();
      return;
    }
    connection.sending = bytes;
    connection.inRing++;
    const address = connection.outputAddress + connection.sendableAt;
    this.#ring.prepare(
      this.#sendKind,
      connection.slot,
      IORING_OP_SEND,
      0,
      connection.fd,
      address >>> 0,
      address / TWO32,
      bytes,
      0,
      0,
      MSG_NOSIGNAL,
    );
    // What the kernel may take in part only, or what has more behind it, is waited for.
    if (bytes <= INLINE_BYTES_MAX && bytes === connection.queuedBytes) this.#ring.noteInline();
  }

  /** Puts a RECV into the ring, if there is none and there is room. */
  #arm(connection: TcpConnection): void {
    if (
      connection.isReceiving || connection.isPaused || connection.isClosed ||
      connection.isConnecting
    ) return;
    const { input, bytesWanted } = connection;
    let start = connection.inputStart, end = connection.inputEnd;
    if (start === end) {
      start = 0;
      end = 0;
    } else if (start + bytesWanted > input.length || end === input.length) {
      // The record that has begun does not fit behind the others: it begins again at the start.
      input.copyWithin(0, start, end);
      end -= start;
      start = 0;
    }
    connection.inputStart = start;
    connection.inputEnd = end;
    let room = input.length - end;
    if (connection.isExact) room = Math.min(room, bytesWanted - (end - start));
    if (room <= 0) return;
    connection.isReceiving = true;
    connection.inRing++;
    const address = connection.inputAddress + end;
    this.#ring.prepare(
      this.#receiveKind,
      connection.slot,
      IORING_OP_RECV,
      0,
      connection.fd,
      address >>> 0,
      address / TWO32,
      room,
      0,
      0,
      0,
    );
    if (connection.isAsking) this.#ring.noteIdle();
  }

  #received(slot: number, result: number): void {
    const connection = this.#connections[slot]!;
    connection.inRing--;
    connection.isReceiving = false;
    if (connection.isClosed) return this.#release(connection);
    if (result === -EINTR || result === -EAGAIN) return this.#arm(connection);
    if (result <= 0) {
      connection.close(
        result === 0 ? "the other end closed it" : `receiving failed: ${describeErrno(result)}`,
      );
      return;
    }
    connection.inputEnd += result;
    if (connection.inputEnd > connection.inputPeak) connection.inputPeak = connection.inputEnd;
    connection.handler!.received();
    if (!connection.isClosed) this.#arm(connection);
  }

  #sent(slot: number, result: number): void {
    const connection = this.#connections[slot]!;
    connection.inRing--;
    connection.sending = 0;
    if (connection.isClosed) return this.#release(connection);
    if (result < 0 && result !== -EINTR && result !== -EAGAIN) {
      connection.close(`sending failed: ${describeErrno(result)}`);
      return;
    }
    // A short send leaves the rest at the head of the queue, and it goes first.
    connection.sentBytes(Math.max(0, result));
    if (connection.sendable > 0) this.dirty(connection);
    connection.handler!.sent();
  }

  #connected(slot: number, result: number): void {
    const connection = this.#connections[slot]!;
    connection.inRing--;
    connection.isConnecting = false;
    if (connection.isClosed) return this.#release(connection);
    if (result < 0) {
      connection.close(
        result === -ECANCELED ? "cancelled" : `connecting failed: ${describeErrno(result)}`,
      );
      return;
    }
    connection.handler!.connected();
    this.dirty(connection);
  }

  /** Frees a closed connection once nothing refers to it any more. */
  #release(connection: TcpConnection): void {
    if (connection.inRing > 0 || connection.handler !== null || connection.fd < 0) return;
    closeFd(connection.fd);
    connection.fd = -1;
    if (connection.buffers !== null) {
      discard(connection.buffers.outputAddress, OUT_BYTES + IN_BYTES);
      this.#freeBuffers.push(connection.buffers);
      connection.buffers = null;
      this.#attached--;
    }
    this.#connections[connection.slot] = null;
    this.#freeSlots.push(connection.slot);
    this.#open--;
  }

  /** See {@linkcode TcpConnection.trim}; of all. */
  trim(): void {
    for (const connection of this.#connections) connection?.trim();
  }

  /** Closes every socket. Handlers hear of it from {@linkcode deliverClosed}. */
  closeAll(): void {
    for (const listening of this.#listenings.splice(0)) listening.close();
    for (const connection of this.#connections) connection?.close("the agent stops");
  }
}

class Listening implements TcpListening {
  readonly #ring: Ring;
  readonly #tcp: Tcp;
  readonly #kind: number;
  readonly #cancelKind: number;
  readonly #peer = mapMemory({ lengthBytes: 4096, flags: MAP_PRIVATE | MAP_ANONYMOUS });
  readonly #peerView: Uint8Array<ArrayBuffer>;
  #fd: number;
  #isAccepting = false;
  #isArmed = false;
  #isClosed = false;

  constructor(
    tcp: Tcp,
    ring: Ring,
    fd: number,
    readonly address: string,
    readonly accepted: (connection: TcpConnection) => void,
  ) {
    this.#ring = ring;
    this.#tcp = tcp;
    this.#fd = fd;
    this.#peerView = viewOf(this.#peer, 64);
    this.#kind = ring.register({ ringDone: (_token, result) => this.#done(result) });
    this.#cancelKind = ring.register({ ringDone() {} });
  }

  setAccepting(isAccepting: boolean): void {
    this.#isAccepting = isAccepting;
    if (isAccepting && !this.#isArmed && !this.#isClosed) this.#arm();
  }

  #arm(): void {
    this.#isArmed = true;
    this.#peerView[32] = 28; // socklen_t
    this.#peerView.fill(0, 33, 36);
    const lengthAddress = this.#peer + 32;
    this.#ring.prepare(
      this.#kind,
      0,
      IORING_OP_ACCEPT,
      0,
      this.#fd,
      this.#peer >>> 0,
      this.#peer / TWO32,
      0,
      // sqe.addr2 shares its place with the offset.
      lengthAddress >>> 0,
      lengthAddress / TWO32,
      SOCK_CLOEXEC | SOCK_NONBLOCK,
    );
  }

  #done(result: number): void {
    this.#isArmed = false;
    if (this.#isClosed) {
      if (result >= 0) closeFd(result);
      closeFd(this.#fd);
      this.#fd = -1;
      return;
    }
    if (result >= 0) {
      // Clients of unix sockets have no addresses: they go by the one that they have connected to.
      const isUnix = this.#peerView[0] === AF_UNIX && this.#peerView[1] === 0;
      const peer = isUnix ? this.address : decodeSocketAddress(this.#peerView);
      const connection = this.#tcp.adopt(result, peer);
      if (connection !== null) {
        this.accepted(connection);
        if (!connection.isClosed) this.#tcp.start(connection);
      }
    } else if (result === -EMFILE || result === -ENFILE) {
      // It stays in the backlog; the owner asks again with its next tick.
      this.#isAccepting = false;
    }
    if (this.#isAccepting && !this.#isArmed && !this.#isClosed) this.#arm();
  }

  close(): void {
    if (this.#isClosed) return;
    this.#isClosed = true;
    if (!this.#isArmed) {
      closeFd(this.#fd);
      this.#fd = -1;
      return;
    }
    this.#ring.prepare(
      this.#cancelKind,
      0,
      IORING_OP_ASYNC_CANCEL,
      0,
      -1,
      0,
      this.#kind,
      0,
      0,
      0,
      0,
    );
  }
}

/** Gives memory back to the system; it reads as zeros, and views of it stay good. */
function discard(address: number, lengthBytes: number): void {
  mapMemory({
    address,
    lengthBytes,
    flags: MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE,
  });
}

/** An option that is a number; without it the connection works all the same. */
function setOption(fd: number, level: number, name: number, value: number): void {
  const bytes = new Uint8Array(new Int32Array([value]).buffer);
  if (libc.setsockopt(fd, level, name, bytes, 4) < 0) errno();
}

/**
 * Takes a connection from BBR, which many machines have as their default. It paces what it sends by timers, and on a link that is
 * kept busy it sends next to nothing for a fifth of a second every ten seconds, to measure the link anew: all guests would
 * wait. On a link of 1 Gbit/s it carried 98 MB/s, with 17 of 219 intervals of 100 ms below half of that; CUBIC 114, with none.
 * Any other algorithm is the administrator's choice and stays.
 */
function avoidPacing(fd: number): void {
  const name = new Uint8Array(TCP_CA_NAME_MAX);
  const length = new Uint8Array(new Uint32Array([TCP_CA_NAME_MAX]).buffer);
  const result = libc.getsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, name, length);
  // Unix sockets have none.
  if (result < 0) return void errno();
  if (!new TextDecoder().decode(name).startsWith("bbr")) return;
  for (const other of ["cubic", "reno"]) {
    const bytes = new TextEncoder().encode(other);
    // Without privileges only what the system allows, of which Reno always is one.
    if (libc.setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, bytes, bytes.length) === 0) return;
    errno();
  }
}
