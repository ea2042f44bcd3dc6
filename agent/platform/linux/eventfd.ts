/**
 * Eventfds watched through the ring: guest kicks and the mailbox's bell.
 *
 * @module
 */
import { closeFd, libc, mapMemory, signalEventFd } from "./libc.ts";
import {
  IORING_OP_ASYNC_CANCEL,
  IORING_OP_POLL_ADD,
  IORING_OP_READ,
  type Ring,
  type RingHandler,
} from "./ring.ts";

/** Eventfds one worker can watch: a disk has up to 64 queues. */
const WATCHES_MAX = 65536;
const TWO32 = 0x1_0000_0000;
const EIGHT = 8n;
const POLLIN = 1;
const EINTR = 4, EAGAIN = 11;

const enum WatchMode {
  /** One READ is in the ring. */
  Read,
  /** One POLL_ADD is in the ring; read(2) follows it. */
  Poll,
  /** Nothing is in the ring. */
  Broken,
}

/** Told when a watched eventfd was signalled. */
export interface EventFdListener {
  eventFdSignalled(): void;
}

/**
 * Watches eventfds: one READ per descriptor is always in the ring. A watch owns its descriptor, and closes
 * it only once the kernel has let go of the READ.
 */
export class EventFdWatcher implements RingHandler {
  readonly #ring: Ring;
  readonly #kind: number;
  readonly #cancelKind: number;
  readonly #address: number;
  readonly #fds: number[] = [];
  /** null: cancelled, waiting for its READ to end. */
  readonly #listeners: (EventFdListener | null)[] = [];
  readonly #modes: WatchMode[] = [];
  readonly #free: number[] = [];
  readonly #scratch = new Uint8Array(8);

  constructor(ring: Ring) {
    this.#ring = ring;
    this.#kind = ring.register(this);
    this.#cancelKind = ring.register({ ringDone() {} });
    // The value read is of no interest: all watches share one place for it.
    this.#address = mapMemory({ lengthBytes: 4096, flags: 0x22 });
  }

  /**
   * Starts watching. Takes ownership of `fd`.
   *
   * @returns the watch, for {@linkcode unwatch}, or −1 when there are too many
   */
  watch(fd: number, listener: EventFdListener): number {
    const watch = this.#free.pop() ?? this.#fds.length;
    if (watch >= WATCHES_MAX) return -1;
    this.#fds[watch] = fd;
    this.#listeners[watch] = listener;
    this.#modes[watch] = WatchMode.Read;
    this.#arm(watch);
    return watch;
  }

  /** Stops watching; the listener is not called again. The descriptor is closed soon after. */
  unwatch(watch: number): void {
    this.#listeners[watch] = null;
    if (this.#modes[watch] === WatchMode.Broken) {
      this.#release(watch);
      return;
    }
    // user_data of the entry to cancel: low half the token, high half the kind.
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

  #arm(watch: number): void {
    if (this.#modes[watch] === WatchMode.Poll) {
      this.#ring.prepare(
        this.#kind,
        watch,
        IORING_OP_POLL_ADD,
        0,
        this.#fds[watch],
        0,
        0,
        0,
        0,
        0,
        POLLIN,
      );
      return;
    }
    this.#ring.prepare(
      this.#kind,
      watch,
      IORING_OP_READ,
      0,
      this.#fds[watch],
      this.#address >>> 0,
      this.#address / TWO32,
      8,
      0,
      0,
      0,
    );
  }

  /** A READ or poll ended. */
  ringDone(watch: number, result: number): void {
    const listener = this.#listeners[watch];
    if (listener === null) {
      // The front end may hand the same eventfd in again: a signal taken after the end is put back.
      if (this.#modes[watch] === WatchMode.Read && result === 8) {
        signalEventFd(this.#fds[watch]);
      }
      this.#release(watch);
      return;
    }
    if (this.#modes[watch] === WatchMode.Poll && result > 0) {
      result = libc.read(this.#fds[watch], this.#scratch, EIGHT);
      // Another reader was quicker: nothing to tell, keep watching.
      if (result < 0) result = -EINTR;
    } else if (result === -EAGAIN) {
      // A kernel that honours O_NONBLOCK here would spin on READ.
      this.#modes[watch] = WatchMode.Poll;
    }
    if (result === 8 || result === -EINTR || result === -EAGAIN) this.#arm(watch);
    // A descriptor that cannot be read (not an eventfd) stays silent, instead of spinning.
    else this.#modes[watch] = WatchMode.Broken;
    if (result === 8) listener.eventFdSignalled();
  }

  #release(watch: number): void {
    closeFd(this.#fds[watch]);
    this.#fds[watch] = -1;
    this.#modes[watch] = WatchMode.Read;
    this.#free.push(watch);
  }
}
