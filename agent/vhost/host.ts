/**
 * What a vhost-user session needs of the machine: mapping, descriptors, sockets, the disk's lease.
 *
 * `platform/linux` implements it beside its rings and sockets; tests implement it with counters. Nothing here is
 * called per I/O but {@linkcode VhostHost.schedule} and {@linkcode VhostHost.signal}, once per batch.
 *
 * Ownership of descriptors: every descriptor that reaches a session belongs to that session, which hands it on
 * (`watchKick`, `send`) or closes it (`closeFd`), each exactly once.
 *
 * @module
 */
import type { VhostSession } from "./session.ts";

/**
 * A part of a mapping: contiguous in its file, in guest address space and in its window. The pieces of one mapping
 * follow one another without a gap.
 */
export interface MappedPiece {
  /** Index of the window. */
  readonly window: number;
  /** Byte offset in the window. */
  readonly offset: number;
  /** Bytes, > 0. */
  readonly length: number;
}

/**
 * The machine, as a session sees it. No method calls back into the session before it returns, but for `send`, which may
 * find the connection gone and say so.
 */
export interface VhostHost {
  /**
   * Maps a part of a shared file into windows, readable and writable. The descriptor stays the caller's.
   *
   * @param fd memfd, hugetlbfs or shared-memory file
   * @param fileOffset first byte
   * @param lengthBytes bytes, > 0
   * @returns the pieces in order, or a negative errno: −EINVAL when the file is shorter than the range
   */
  map(fd: number, fileOffset: number, lengthBytes: number): readonly MappedPiece[] | number;
  /** Takes one result of `map` away (the same array); its bytes read as zeros from now on. */
  unmap(pieces: readonly MappedPiece[]): void;
  /** Makes a file of zeros that cannot shrink. Returns its descriptor, or a negative errno. */
  createShared(lengthBytes: number): number;
  /** Closes a descriptor. */
  closeFd(fd: number): void;
  /**
   * Watches a kick eventfd, which becomes the host's. From now on `session.kicked(queueIndex)` follows every
   * signal; calls without a signal do no harm.
   */
  watchKick(session: VhostSession, queueIndex: number, fd: number): void;
  /**
   * Stops watching and closes the descriptor. The front end may hand the same eventfd in again at once: a
   * signal that a read still under way takes from it must not be lost (write it back before closing).
   */
  unwatchKick(session: VhostSession, queueIndex: number): void;
  /** Adds 1 to a call or error eventfd: a plain write(2), never through the ring. Must not block. */
  signal(fd: number): void;
  /** Sends a reply on the session's connection. The bytes and the descriptors become the host's. */
  send(session: VhostSession, bytes: Uint8Array<ArrayBuffer>, fds: readonly number[]): void;
  /** Sends a request of ours on the back end's channel. Must not block; may be dropped. */
  sendBackendRequest(session: VhostSession, fd: number, bytes: Uint8Array<ArrayBuffer>): void;
  /**
   * `session.turn()` is due: to be called once, when the events at hand are handled and before the loop sleeps. Not
   * sent again before that call.
   */
  schedule(session: VhostSession): void;
  /**
   * The loop looks at the rings by itself for a while before it sleeps: a ring that has run empty asks for no kick then,
   * but tells the host by {@linkcode polled}.
   */
  readonly isPolling: boolean;
  /**
   * Some ring of the session asks for no kick: `session.poll()` is to be called again and again, and
   * `session.stopPolling()` before the loop sleeps. Not sent again before that.
   */
  polled(session: VhostSession): void;
  /**
   * The device is closed (`VhostDevice.isOpen`) and a ring has requests.
   *
   * @returns true: it is open after all; false: `session.resume()` follows, some time, and the ring needs no kick until then
   */
  admit(session: VhostSession): boolean;
  /** The rings want to run: asks for the disk's lease. Answered by `session.leaseGranted()`, some time. */
  acquire(session: VhostSession): void;
  /**
   * All rings stand still and nothing is in flight: the lease may go to another. Also sent while the lease is
   * still waited for; no grant follows then.
   *
   * @param isUnclean what the back end before has left under way is still unknown: the next holder has to be told, as this one was
   */
  release(session: VhostSession, isUnclean: boolean): void;
  /** The guest's driver broke the rules: the device stands still until it is reset. For the log. */
  broken(session: VhostSession, queueIndex: number, reason: string): void;
  /** A request of the front end was refused; it was told so. For the log. */
  refused(session: VhostSession, reason: string): void;
  /** Something about the front end that people should know. For the log. */
  noted(session: VhostSession, what: string): void;
  /** The front end broke the protocol (or was told to go): close its connection. For the log. */
  hangUp(session: VhostSession, reason: string): void;
  /** The session is over: nothing in flight, nothing mapped, nothing open. The last call it makes. */
  closed(session: VhostSession): void;
}

/** Makes a number out of errno results: pieces, or why not. */
export function isErrno(result: readonly MappedPiece[] | number): result is number {
  return typeof result === "number";
}
