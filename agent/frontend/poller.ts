/**
 * Waits for the few descriptors of a front end with one epoll(7) call.
 *
 * Eventfds are watched edge-triggered and never read: each write to one wakes once, so a wake-up costs
 * one system call instead of two. The socket is watched level-triggered.
 *
 * @module
 */
import { check, closeFd, resultOf, SystemError } from "../platform/linux/libc.ts";

const { symbols: libc } = Deno.dlopen("libc.so.6", {
  epoll_create1: { parameters: ["i32" /* int flags */], result: "i32" },
  epoll_ctl: {
    parameters: ["i32", /* int epfd */ "i32", /* int op */ "i32", /* int fd */ "buffer"],
    result: "i32",
  },
  epoll_wait: {
    parameters: [
      "i32",
      /* int epfd */ "buffer",
      "i32",
      /* int maxevents */ "i32", /* int timeout */
    ],
    result: "i32",
  },
});

const EPOLL_CLOEXEC = 0o2000000;
const EPOLL_CTL_ADD = 1, EPOLL_CTL_DEL = 2;
const EPOLLIN = 1, EPOLLRDHUP = 0x2000, EPOLLET = 0x80000000;
const EINTR = 4;
const WAIT_ERRORS = [EINTR];

/** struct epoll_event is packed on x86_64 only. */
const EVENT_BYTES = Deno.build.arch === "x86_64" ? 12 : 16;
const EVENT_DATA = EVENT_BYTES - 8;

/** A front end watches three descriptors: socket, call, error. */
const EVENTS_MAX = 4;

/** An epoll instance. Each descriptor has a token 0…30; tokens are reported as bits. */
export class Poller {
  readonly #fd = check(libc.epoll_create1(EPOLL_CLOEXEC), "epoll_create1");
  readonly #events = new Uint8Array(EVENTS_MAX * EVENT_BYTES);

  /** Watches a socket for bytes and for its end. */
  addSocket(fd: number, token: number): void {
    this.#add(fd, EPOLLIN | EPOLLRDHUP, token);
  }

  /** Watches an eventfd: every write to it is reported once. */
  addEventFd(fd: number, token: number): void {
    this.#add(fd, EPOLLIN | EPOLLET, token);
  }

  #add(fd: number, events: number, token: number): void {
    const event = new Uint8Array(EVENT_BYTES);
    new DataView(event.buffer).setUint32(0, events >>> 0, true);
    event[EVENT_DATA] = token;
    check(libc.epoll_ctl(this.#fd, EPOLL_CTL_ADD, fd, event), "epoll_ctl");
  }

  /** Stops watching. */
  remove(fd: number): void {
    libc.epoll_ctl(this.#fd, EPOLL_CTL_DEL, fd, new Uint8Array(EVENT_BYTES));
  }

  /**
   * Blocks the thread until something happens.
   *
   * @param timeoutMs whole milliseconds; 0 only looks
   * @returns the tokens of what happened as bits; 0 after the timeout or a signal
   */
  wait(timeoutMs: number): number {
    const count = resultOf(
      () => libc.epoll_wait(this.#fd, this.#events, EVENTS_MAX, timeoutMs),
      WAIT_ERRORS,
    );
    if (count === -EINTR) return 0;
    if (count < 0) throw new SystemError("epoll_wait", -count);
    let tokens = 0;
    for (let index = 0; index < count; index++) {
      tokens |= 1 << this.#events[index * EVENT_BYTES + EVENT_DATA];
    }
    return tokens;
  }

  close(): void {
    closeFd(this.#fd);
  }
}
