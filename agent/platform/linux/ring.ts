/**
 * One io_uring, owned by the thread that made it.
 *
 * Invariants:
 * - SINGLE_ISSUER | DEFER_TASKRUN: completions appear only inside our own `enter`, so the shared head and tail
 *   words need no atomics on any architecture: the system call orders them.
 * - Every prepared entry completes exactly once, delivered to the handler of its kind from
 *   {@linkcode Ring.dispatch}, never from inside `prepare`.
 * - The submission queue never overflows: a full one is submitted first.
 * - TASKRUN_FLAG: where something has happened that only an `enter` makes a completion of, a word in shared memory says so, and
 *   without that there is no need to ask.
 *
 * An entry carries 64 bits of user data: low half the handler's own token, high half the kind.
 *
 * Layouts: io_uring(7), <linux/io_uring.h>.
 *
 * @module
 */
import {
  closeFd,
  errno,
  libc,
  MAP_POPULATE,
  MAP_SHARED,
  mapMemory,
  pointerTo,
  SystemError,
  viewOf,
} from "./libc.ts";

/** Opcodes in use (<linux/io_uring.h>). */
export const IORING_OP_NOP = 0;
export const IORING_OP_READV = 1;
export const IORING_OP_WRITEV = 2;
export const IORING_OP_FSYNC = 3;
export const IORING_OP_POLL_ADD = 6;
export const IORING_OP_SYNC_FILE_RANGE = 8;
export const IORING_OP_ACCEPT = 13;
export const IORING_OP_ASYNC_CANCEL = 14;
export const IORING_OP_CONNECT = 16;
export const IORING_OP_FALLOCATE = 17;
export const IORING_OP_READ = 22;
export const IORING_OP_WRITE = 23;
export const IORING_OP_SEND = 26;
export const IORING_OP_RECV = 27;

/** fsync_flags: fdatasync. */
export const IORING_FSYNC_DATASYNC = 1;
/** sqe flag: run in a kernel worker at once. */
export const IOSQE_ASYNC = 1 << 4;

const SYS_IO_URING_SETUP = 425;
const SYS_IO_URING_ENTER = 426;
const SETUP_CQSIZE = 1 << 3;
const SETUP_CLAMP = 1 << 4;
const SETUP_SUBMIT_ALL = 1 << 7;
const SETUP_TASKRUN_FLAG = 1 << 9;
const SETUP_SINGLE_ISSUER = 1 << 12;
const SETUP_DEFER_TASKRUN = 1 << 13;
const ENTER_GETEVENTS = 1;
const ENTER_EXT_ARG = 1 << 3;
const OFFSET_SQES = 0x10000000;
const EINTR = 4, EAGAIN = 11, EBUSY = 16, ETIME = 62;

/** Entries of the submission queue. A full queue is submitted early, so this is a batch size, not a limit. */
const SUBMISSION_ENTRIES = 1024;
/** Entries of the completion queue: room for all that can be in flight, so that it never overflows. */
const COMPLETION_ENTRIES = 16384;

/**
 * Longest sleep for more completions than one, in milliseconds: those that end with their submission nearly always do so, and
 * when one does not the others must not wait for it. Longer than the kernel's tick, 4 ms on most machines: a timer that is due before
 * that is the processor's next one, set when the sleep begins and taken back when it ends, and on a virtual machine either leaves the
 * guest. With 1 ms a round trip of two sleeps took 24.6 µs on one processor, with 5 ms or none 18.8.
 */
const INLINE_WAIT_MS_MAX = 5;

/**
 * Calls in a row that may fail with what `io_uring_enter` does not fail with as it is used here: a single one is what the runtime has
 * left in errno (`libc.ts`), in place of the end of a sleep, for one.
 */
const ODD_FAILURES_MAX = 8;

/** Receives the completions of one kind. */
export interface RingHandler {
  /**
   * @param token what `prepare` was given
   * @param result bytes or negative errno
   */
  ringDone(token: number, result: number): void;
}

/** An io_uring and its dispatch. */
export class Ring {
  readonly fd: number;
  readonly #handlers: RingHandler[] = [];
  readonly #sqHead: Uint32Array<ArrayBuffer>;
  readonly #sqes: Uint32Array<ArrayBuffer>;
  readonly #cqes: Uint32Array<ArrayBuffer>;
  readonly #cqeResults: Int32Array<ArrayBuffer>;
  readonly #sqMask: number;
  readonly #cqMask: number;
  readonly #sqHeadIndex: number;
  readonly #sqTailIndex: number;
  readonly #sqFlagsIndex: number;
  readonly #cqHeadIndex: number;
  readonly #cqTailIndex: number;
  readonly #cqesIndex: number;
  #tail: number;
  #toSubmit = 0;
  /** Of them, those of {@linkcode Ring.noteInline}; below 0: somebody waits for one. */
  #inline = 0;
  /** Entries not submitted that nothing hangs on: see {@linkcode noteIdle}. */
  #idle = 0;
  /** Odd failures since a call has last ended as calls do. */
  #oddFailures = 0;
  /** struct io_uring_getevents_arg followed by its struct timespec. */
  readonly #argument: Uint32Array<ArrayBuffer>;
  readonly #argumentPointer: Deno.PointerObject;
  readonly #argumentSize = 24n;

  /** Throws {@linkcode SystemError} when the kernel refuses io_uring. */
  constructor() {
    const params = new Uint32Array(30);
    const wanted = SETUP_CQSIZE | SETUP_CLAMP | SETUP_SUBMIT_ALL;
    let fd = -1;
    // Linux before 6.1 has no DEFER_TASKRUN; the ring works without it, only slower.
    for (const extra of [SETUP_SINGLE_ISSUER | SETUP_DEFER_TASKRUN | SETUP_TASKRUN_FLAG, 0]) {
      params.fill(0);
      params[1] = COMPLETION_ENTRIES;
      params[2] = wanted | extra;
      fd = libc.ioUringSetup(
        SYS_IO_URING_SETUP,
        SUBMISSION_ENTRIES,
        new Uint8Array(params.buffer),
      );
      if (fd >= 0) break;
      const code = errno();
      if (extra === 0) {
        throw new SystemError(
          "io_uring_setup (kelpie needs Linux 5.19 or later with io_uring allowed, see kernel.io_uring_disabled)",
          code,
        );
      }
    }
    this.fd = fd;
    const sqEntries = params[0], cqEntries = params[1];
    const sqOffsets = params.subarray(10, 20), cqOffsets = params.subarray(20, 30);
    const ringBytes = Math.max(sqOffsets[6] + sqEntries * 4, cqOffsets[5] + cqEntries * 16);
    const ringAddress = mapMemory({
      lengthBytes: ringBytes,
      flags: MAP_SHARED | MAP_POPULATE,
      fd,
    });
    const sqesAddress = mapMemory({
      lengthBytes: sqEntries * 64,
      flags: MAP_SHARED | MAP_POPULATE,
      fd,
      offset: OFFSET_SQES,
    });
    const ring = new Uint32Array(viewOf(ringAddress, ringBytes).buffer);
    this.#sqHead = ring;
    this.#cqes = ring;
    this.#cqeResults = new Int32Array(ring.buffer);
    this.#sqes = new Uint32Array(viewOf(sqesAddress, sqEntries * 64).buffer);
    this.#sqHeadIndex = sqOffsets[0] >>> 2;
    this.#sqTailIndex = sqOffsets[1] >>> 2;
    this.#sqFlagsIndex = sqOffsets[4] >>> 2;
    this.#sqMask = ring[sqOffsets[2] >>> 2];
    this.#cqHeadIndex = cqOffsets[0] >>> 2;
    this.#cqTailIndex = cqOffsets[1] >>> 2;
    this.#cqMask = ring[cqOffsets[2] >>> 2];
    this.#cqesIndex = cqOffsets[5] >>> 2;
    // The indirection array stays the identity for ever.
    for (let i = 0; i < sqEntries; i++) ring[(sqOffsets[6] >>> 2) + i] = i;
    this.#tail = ring[this.#sqTailIndex];
    const argumentAddress = mapMemory({ lengthBytes: 4096, flags: 0x22 });
    this.#argument = new Uint32Array(viewOf(argumentAddress, 4096).buffer);
    const timespecAddress = argumentAddress + 64;
    this.#argument[4] = timespecAddress >>> 0;
    this.#argument[5] = Math.floor(timespecAddress / 0x1_0000_0000);
    this.#argumentPointer = pointerTo(argumentAddress);
  }

  /** Registers a handler and returns its kind, which `prepare` takes. */
  register(handler: RingHandler): number {
    return this.#handlers.push(handler) - 1;
  }

  /**
   * Queues one entry. Goes to the kernel with the next {@linkcode enter}.
   *
   * @param flags sqe flags
   * @param address host address, low and high 32 bits
   * @param offset file offset, low and high 32 bits
   */
  prepare(
    kind: number,
    token: number,
    opcode: number,
    flags: number,
    fd: number,
    addressLow: number,
    addressHigh: number,
    length: number,
    offsetLow: number,
    offsetHigh: number,
    operationFlags: number,
  ): void {
    if (this.#toSubmit > this.#sqMask) this.submit();
    const sqes = this.#sqes;
    const at = (this.#tail & this.#sqMask) << 4;
    sqes[at] = opcode | (flags << 8);
    sqes[at + 1] = fd;
    sqes[at + 2] = offsetLow;
    sqes[at + 3] = offsetHigh;
    sqes[at + 4] = addressLow;
    sqes[at + 5] = addressHigh;
    sqes[at + 6] = length;
    sqes[at + 7] = operationFlags;
    sqes[at + 8] = token;
    sqes[at + 9] = kind;
    sqes[at + 10] = 0;
    sqes[at + 11] = 0;
    sqes[at + 12] = 0;
    sqes[at + 13] = 0;
    sqes[at + 14] = 0;
    sqes[at + 15] = 0;
    this.#tail = (this.#tail + 1) >>> 0;
    this.#toSubmit++;
  }

  /** The entry prepared last waits for what nobody expects now: it may go with any later call. */
  noteIdle(): void {
    this.#idle++;
  }

  /** Entries that were not submitted yet, but for those of {@linkcode noteIdle}. */
  get unsubmitted(): number {
    return this.#toSubmit - this.#idle;
  }

  /**
   * Something has happened that only a call makes completions of. Where the kernel does not say so (before 6.1), completions come
   * without a call.
   */
  get isSignalled(): boolean {
    return this.#sqHead[this.#sqFlagsIndex] !== 0;
  }

  /**
   * The entry prepared last will have ended when it has been submitted, as good as always, and nobody waits for that: the sleep
   * that submits it goes on over its end.
   */
  noteInline(): void {
    if (this.#inline >= 0) this.#inline++;
  }

  /** Somebody does wait for one of those: the sleep ends with any completion, as others do. */
  awaitInline(): void {
    this.#inline = -1;
  }

  /** Submits all that was prepared, and asks for no completions. */
  submit(): void {
    this.#inline = 0;
    this.#idle = 0;
    while (this.#toSubmit > 0) {
      this.#sqHead[this.#sqTailIndex] = this.#tail;
      const result = libc.ioUringEnter(
        SYS_IO_URING_ENTER,
        this.fd,
        this.#toSubmit,
        0,
        0,
        null,
        0n,
      );
      if (result >= 0) {
        this.#oddFailures = 0;
        this.#toSubmit -= result;
        if (result === 0) return;
      } else {
        const code = errno();
        if (code === EBUSY || code === EAGAIN) {
          // Completions must be reaped first: let the kernel flush them into the queue.
          this.#enter(0, ENTER_GETEVENTS, null, 0n);
          return;
        }
        if (code !== EINTR) this.#noteOddFailure(code);
      }
    }
  }

  /** Throws when there were too many in a row. */
  #noteOddFailure(code: number): void {
    if (++this.#oddFailures >= ODD_FAILURES_MAX) throw new SystemError("io_uring_enter", code);
  }

  #enter(
    wait: number,
    flags: number,
    argument: Deno.PointerObject | null,
    argumentSize: bigint,
  ): void {
    this.#idle = 0;
    this.#sqHead[this.#sqTailIndex] = this.#tail;
    const result = libc.ioUringEnter(
      SYS_IO_URING_ENTER,
      this.fd,
      this.#toSubmit,
      wait,
      flags,
      argument,
      argumentSize,
    );
    if (result >= 0) {
      this.#oddFailures = 0;
      this.#toSubmit -= result;
      return;
    }
    const code = errno();
    // The submissions of this call were taken before the wait began.
    this.#toSubmit = (this.#tail - this.#sqHead[this.#sqHeadIndex]) >>> 0;
    if (code === ETIME || code === EINTR || code === EBUSY || code === EAGAIN) {
      this.#oddFailures = 0;
    } else this.#noteOddFailure(code);
  }

  /** Completions that wait to be dispatched. */
  get ready(): number {
    return (this.#cqes[this.#cqTailIndex] - this.#cqes[this.#cqHeadIndex]) >>> 0;
  }

  /**
   * Submits all that was prepared and lets the kernel post completions.
   *
   * @param waitMs 0: do not wait; otherwise up to this many milliseconds for at least one completion, besides those of
   *   {@linkcode noteInline}
   */
  enter(waitMs: number): void {
    const inline = Math.max(0, this.#inline);
    this.#inline = 0;
    if (waitMs <= 0) {
      this.#enter(0, ENTER_GETEVENTS, null, 0n);
      return;
    }
    if (inline > 0) waitMs = Math.min(waitMs, INLINE_WAIT_MS_MAX);
    const seconds = Math.floor(waitMs / 1000);
    this.#argument[16] = seconds;
    this.#argument[17] = 0;
    this.#argument[18] = Math.floor((waitMs - seconds * 1000) * 1_000_000);
    this.#argument[19] = 0;
    this.#enter(
      1 + inline,
      ENTER_GETEVENTS | ENTER_EXT_ARG,
      this.#argumentPointer,
      this.#argumentSize,
    );
  }

  /**
   * Hands the completions that are there now to their handlers; those that handlers cause wait for the
   * next call, so that one busy source cannot keep the others out.
   *
   * @returns how many were handed out
   */
  dispatch(): number {
    const cqes = this.#cqes;
    let head = cqes[this.#cqHeadIndex];
    const end = cqes[this.#cqTailIndex];
    let count = 0;
    while (head !== end) {
      const at = this.#cqesIndex + ((head & this.#cqMask) << 2);
      const token = cqes[at];
      const kind = cqes[at + 1];
      const result = this.#cqeResults[at + 2];
      head = (head + 1) >>> 0;
      // Released before the handler runs: a handler may prepare, submit and so make new completions.
      cqes[this.#cqHeadIndex] = head;
      count++;
      this.#handlers[kind].ringDone(token, result);
    }
    return count;
  }

  /** Closes the ring; what is in flight is cancelled by the kernel. Mapped memory stays until exit. */
  close(): void {
    closeFd(this.fd);
  }
}
