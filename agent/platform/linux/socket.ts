/**
 * Unix stream sockets that carry descriptors, watched through the ring.
 *
 * Control traffic only: a message per queue set-up, not per I/O. So readiness comes from POLL_ADD and
 * the transfer is a plain non-blocking recvmsg(2) or sendmsg(2).
 *
 * @module
 */
import { concatenated } from "../../base/bytes.ts";
import {
  addressOf,
  check,
  closeFd,
  errno,
  libc,
  mapMemory,
  resultOf,
  SystemError,
  viewOf,
} from "./libc.ts";
import { IORING_OP_ASYNC_CANCEL, IORING_OP_POLL_ADD, type Ring, type RingHandler } from "./ring.ts";

const AF_UNIX = 1, SOCK_STREAM = 1, SOCK_NONBLOCK = 0o4000, SOCK_CLOEXEC = 0o2000000;
const SOL_SOCKET = 1, SCM_RIGHTS = 1, SO_PEERCRED = 17;
const MSG_DONTWAIT = 0x40, MSG_NOSIGNAL = 0x4000, MSG_CMSG_CLOEXEC = 0x40000000, MSG_CTRUNC = 8;
const POLLIN = 1, POLLERR = 8, POLLHUP = 16;
const EAGAIN = 11, EINTR = 4, ENFILE = 23, EMFILE = 24, EPIPE = 32, ECONNRESET = 104;
/** What sending and receiving end with. */
const SOCKET_ERRORS = [EAGAIN, EINTR, EPIPE, ECONNRESET];
const TWO32 = 0x1_0000_0000;

/** Bytes taken from a socket at once. */
const RECEIVE_BYTES = 8192;
/** Most descriptors the kernel passes in one message: SCM_MAX_FD. */
const FDS_MAX = 253;
/** Replies that wait for a front end that does not read: more than any well-behaved one leaves unread. */
const UNSENT_BYTES_MAX = 64 * 1024;
/** Connections waiting to be accepted. */
const BACKLOG = 16;
/** sun_path with its NUL. */
const PATH_BYTES_MAX = 108;

/** Told what happens on a connection. */
export interface ConnectionListener {
  /** `bytes` is only valid during the call; the descriptors now belong to the callee. */
  received(bytes: Uint8Array<ArrayBuffer>, fds: number[]): void;
  /** The peer is gone or the socket failed; called once. */
  disconnected(reason: string): void;
}

/** Scratch memory for msghdr, iovec, control messages and data; one per thread is enough. */
const SCRATCH_BYTES = 32768;
const scratchAddress = mapMemory({ lengthBytes: SCRATCH_BYTES, flags: 0x22 });
const scratch = viewOf(scratchAddress, SCRATCH_BYTES);
const scratchWords = new Uint32Array(scratch.buffer);
const HEADER_AT = 0, VECTOR_AT = 64, CONTROL_AT = 128, DATA_AT = 4096;
const CONTROL_BYTES = 16 + FDS_MAX * 4 + 4;
const headerView = new Uint8Array(scratch.buffer, HEADER_AT, 56);

function setHeader(dataBytes: number, controlBytes: number): void {
  scratch.fill(0, 0, VECTOR_AT + 16);
  setAddress(HEADER_AT + 16, scratchAddress + VECTOR_AT);
  scratchWords[(HEADER_AT + 24) >> 2] = 1;
  if (controlBytes > 0) {
    setAddress(HEADER_AT + 32, scratchAddress + CONTROL_AT);
    scratchWords[(HEADER_AT + 40) >> 2] = controlBytes;
  }
  setAddress(VECTOR_AT, scratchAddress + DATA_AT);
  scratchWords[(VECTOR_AT + 8) >> 2] = dataBytes;
}

function setAddress(at: number, address: number): void {
  scratchWords[at >> 2] = address;
  scratchWords[(at >> 2) + 1] = address / TWO32;
}

/**
 * Sends bytes and descriptors on a socket without blocking.
 *
 * @returns bytes sent, or a negative errno
 */
export function sendWithFds(
  fd: number,
  bytes: Uint8Array,
  fds: readonly number[] = [],
): number {
  const length = Math.min(bytes.length, SCRATCH_BYTES - DATA_AT);
  scratch.set(bytes.subarray(0, length), DATA_AT);
  setHeader(length, fds.length > 0 ? 16 + fds.length * 4 : 0);
  if (fds.length > 0) {
    scratchWords[CONTROL_AT >> 2] = 16 + fds.length * 4;
    scratchWords[(CONTROL_AT >> 2) + 1] = 0;
    scratchWords[(CONTROL_AT >> 2) + 2] = SOL_SOCKET;
    scratchWords[(CONTROL_AT >> 2) + 3] = SCM_RIGHTS;
    for (let i = 0; i < fds.length; i++) scratchWords[(CONTROL_AT >> 2) + 4 + i] = fds[i];
    // msg_controllen counts the padded length.
    scratchWords[(HEADER_AT + 40) >> 2] = 16 + Math.ceil(fds.length / 2) * 8;
  }
  return resultOf(
    () => libc.sendmsg(fd, headerView, MSG_DONTWAIT | MSG_NOSIGNAL),
    SOCKET_ERRORS,
  );
}

/**
 * Receives bytes and descriptors without blocking.
 *
 * @returns bytes received (0 at the end), or a negative errno; descriptors are appended to `fds`
 */
export function receiveWithFds(fd: number, fds: number[]): number {
  setHeader(RECEIVE_BYTES, CONTROL_BYTES);
  const result = resultOf(
    () => libc.recvmsg(fd, headerView, MSG_DONTWAIT | MSG_CMSG_CLOEXEC),
    SOCKET_ERRORS,
  );
  if (result < 0) return result;
  const controlBytes = scratchWords[(HEADER_AT + 40) >> 2];
  let at = 0;
  while (at + 16 <= controlBytes) {
    const word = (CONTROL_AT + at) >> 2;
    const length = scratchWords[word];
    if (length < 16) break;
    if (scratchWords[word + 2] === SOL_SOCKET && scratchWords[word + 3] === SCM_RIGHTS) {
      const count = (length - 16) >> 2;
      for (let i = 0; i < count; i++) fds.push(scratchWords[word + 4 + i] | 0);
    }
    at += (length + 7) & ~7;
  }
  if ((scratchWords[(HEADER_AT + 48) >> 2] & MSG_CTRUNC) !== 0) {
    for (const received of fds.splice(0)) closeFd(received);
    return -EMSGSIZE;
  }
  return result;
}
const EMSGSIZE = 90;

/** The bytes of the last {@linkcode receiveWithFds}. */
export function receivedBytes(length: number): Uint8Array<ArrayBuffer> {
  return new Uint8Array(scratch.buffer, DATA_AT, length);
}

/** sockaddr_un of a path. Throws a RangeError when the path is too long for a socket. */
export function unixAddress(path: string): Uint8Array<ArrayBuffer> {
  const encoded = new TextEncoder().encode(path);
  if (encoded.length >= PATH_BYTES_MAX) {
    throw new RangeError(
      `socket path ${path} has ${encoded.length} bytes; the system allows ${
        PATH_BYTES_MAX - 1
      }: use a shorter --run-dir`,
    );
  }
  const address = new Uint8Array(2 + PATH_BYTES_MAX);
  address[0] = AF_UNIX;
  address.set(encoded, 2);
  return address.subarray(0, 2 + encoded.length + 1) as Uint8Array<ArrayBuffer>;
}

/** Connects to a unix socket, blocking. Throws {@linkcode SystemError}. */
export function connectUnix(path: string): number {
  const fd = check(libc.socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), "socket");
  const address = unixAddress(path);
  if (libc.connect(fd, address, address.length) < 0) {
    const code = errno();
    closeFd(fd);
    throw new SystemError(`connect ${path}`, code);
  }
  return fd;
}

/** Process id of the peer, or 0 when it cannot be told. */
export function peerPid(fd: number): number {
  const credentials = new Uint32Array(3);
  const length = new Uint32Array([12]);
  const result = libc.getsockopt(
    fd,
    SOL_SOCKET,
    SO_PEERCRED,
    new Uint8Array(credentials.buffer),
    new Uint8Array(length.buffer),
  );
  return result < 0 ? 0 : credentials[0];
}

/** One accepted connection. */
export class Connection {
  listener: ConnectionListener | null = null;
  /** Process at the other end; 0 when unknown. */
  readonly peerPid: number;
  #unsent: Uint8Array = new Uint8Array(0);
  #closed = false;

  /** Made by {@linkcode SocketWatcher}. */
  constructor(readonly fd: number, readonly watcher: SocketWatcher, readonly watch: number) {
    this.peerPid = peerPid(fd);
  }

  /** Sends bytes, with descriptors attached to the first. A peer that does not read is cut off. */
  send(bytes: Uint8Array, fds: readonly number[] = []): void {
    if (this.#closed) return;
    if (this.#unsent.length > 0) {
      if (fds.length > 0 || this.#unsent.length + bytes.length > UNSENT_BYTES_MAX) {
        this.#fail("the peer does not read its replies");
        return;
      }
      this.#unsent = concatenated(this.#unsent, bytes);
      return;
    }
    const result = sendWithFds(this.fd, bytes, fds);
    if (result < 0 && result !== -EAGAIN) {
      this.#fail(`send failed with errno ${-result}`);
      return;
    }
    const sent = Math.max(0, result);
    if (sent < bytes.length) {
      if (sent === 0 && fds.length > 0) {
        this.#fail("the peer does not read its replies");
        return;
      }
      this.#unsent = bytes.slice(sent);
    }
  }

  /** Closes the connection; the listener hears nothing more. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.listener = null;
    this.watcher.remove(this.watch);
  }

  #fail(reason: string): void {
    const listener = this.listener;
    this.close();
    listener?.disconnected(reason);
  }

  /** The socket became readable. Called by the watcher. */
  readable(): void {
    if (this.#unsent.length > 0) {
      const rest = this.#unsent;
      this.#unsent = new Uint8Array(0);
      this.send(rest);
    }
    // Bounded per wake-up, so that a flood does not keep the data path out; the poll is level-triggered.
    for (let i = 0; i < 4 && !this.#closed; i++) {
      const fds: number[] = [];
      const result = receiveWithFds(this.fd, fds);
      if (result === -EAGAIN || result === -EINTR) return;
      if (result <= 0) {
        for (const fd of fds) closeFd(fd);
        this.#fail(result === 0 ? "the peer closed the connection" : `errno ${-result}`);
        return;
      }
      const listener = this.listener;
      if (listener === null) { for (const fd of fds) closeFd(fd); }
      else listener.received(receivedBytes(result).slice(), fds);
    }
  }
}

interface Watched {
  readonly fd: number;
  readonly ready: () => void;
  removed: boolean;
  /** Not polled until {@linkcode SocketWatcher.resume}. */
  isPaused: boolean;
}

/** Polls sockets through the ring. */
export class SocketWatcher implements RingHandler {
  readonly #ring: Ring;
  readonly #kind: number;
  readonly #cancelKind: number;
  readonly #watched: (Watched | null)[] = [];
  readonly #free: number[] = [];
  readonly #paused: number[] = [];

  constructor(ring: Ring) {
    this.#ring = ring;
    this.#kind = ring.register(this);
    this.#cancelKind = ring.register({ ringDone() {} });
  }

  /**
   * Listens on a path; an old socket file there is replaced. The socket is owner-only.
   *
   * @returns a function that stops listening and removes the file, unless it is another socket's by now
   */
  listen(path: string, accepted: (connection: Connection) => void): () => void {
    // Clients must be able to name it.
    unixAddress(path);
    const fd = check(
      libc.socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0),
      "socket",
    );
    // Bound under another name first and renamed over the old one: clients never find the path missing, and
    // the mode is right before anyone can connect.
    // The name is shorter than any socket's of ours, so it fits where theirs does; disks' names never begin with a dot.
    const fresh = `${path.slice(0, path.lastIndexOf("/") + 1)}.new`;
    let ino: number | null;
    try {
      try {
        Deno.removeSync(fresh, { recursive: true });
      } catch (error) {
        if (!(error instanceof Deno.errors.NotFound)) throw error;
      }
      const address = unixAddress(fresh);
      check(libc.bind(fd, address, address.length), `bind ${path}`);
      Deno.chmodSync(fresh, 0o600);
      check(libc.listen(fd, BACKLOG), `listen ${path}`);
      ({ ino } = Deno.lstatSync(fresh));
      Deno.renameSync(fresh, path);
    } catch (error) {
      closeFd(fd);
      throw error;
    }
    const watch = this.#add(fd, () => {
      for (let i = 0; i < BACKLOG; i++) {
        const peer = libc.accept4(fd, null, null, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (peer < 0) {
          // Out of descriptors: the connection stays in the backlog and would wake us again and again.
          const code = errno();
          if (code === EMFILE || code === ENFILE) this.#watched[watch]!.isPaused = true;
          return;
        }
        accepted(this.adopt(peer));
      }
    });
    return () => {
      this.remove(watch);
      try {
        // Who has the name now may have taken it before it was given up here.
        if (Deno.lstatSync(path).ino === ino) Deno.removeSync(path);
      } catch {
        // Someone else removed it: that is what was wanted.
      }
    };
  }

  /** Watches a connected socket; takes ownership of the descriptor. */
  adopt(fd: number): Connection {
    let connection: Connection | null = null;
    const watch = this.#add(fd, () => connection!.readable());
    connection = new Connection(fd, this, watch);
    return connection;
  }

  #add(fd: number, ready: () => void): number {
    const watch = this.#free.pop() ?? this.#watched.length;
    this.#watched[watch] = { fd, ready, removed: false, isPaused: false };
    this.#arm(watch);
    return watch;
  }

  #arm(watch: number): void {
    const fd = this.#watched[watch]!.fd;
    this.#ring.prepare(
      this.#kind,
      watch,
      IORING_OP_POLL_ADD,
      0,
      fd,
      0,
      0,
      0,
      0,
      0,
      POLLIN | POLLERR | POLLHUP,
    );
  }

  /** Stops watching and closes the descriptor as soon as the kernel has let go of it. */
  remove(watch: number): void {
    const watched = this.#watched[watch];
    if (watched === null || watched === undefined || watched.removed) return;
    watched.removed = true;
    libc.shutdown(watched.fd, 2);
    this.#ring.prepare(
      this.#cancelKind,
      0,
      IORING_OP_ASYNC_CANCEL,
      0,
      -1,
      watch,
      this.#kind,
      0,
      0,
      0,
      0,
    );
  }

  /** A poll ended. */
  ringDone(watch: number, result: number): void {
    const watched = this.#watched[watch]!;
    if (!watched.removed && result >= 0) watched.ready();
    if (watched.removed) {
      closeFd(watched.fd);
      this.#watched[watch] = null;
      this.#free.push(watch);
    } else if (watched.isPaused) this.#paused.push(watch);
    else this.#arm(watch);
  }

  /** Polls again what was paused for want of descriptors; to be called now and then. */
  resume(): void {
    for (const watch of this.#paused.splice(0)) {
      const watched = this.#watched[watch];
      if (watched === null) continue;
      watched.isPaused = false;
      if (watched.removed) this.ringDone(watch, 0);
      else this.#arm(watch);
    }
  }
}

if (addressOf(scratch) !== scratchAddress) throw new Error("the scratch view moved");
