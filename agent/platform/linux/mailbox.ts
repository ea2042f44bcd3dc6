/**
 * Messages to a worker that is blocked in the kernel most of the time and so gets none of the runtime's.
 *
 * A byte ring in shared memory, one producer, one consumer, and an eventfd as the bell:
 *
 *     word 0: head (bytes consumed, mod 2^32)   word 1: tail (bytes produced, mod 2^32)
 *     then the ring: frames of [u32 length][length bytes, padded to 4]
 *
 * Invariants: tail − head ≤ ring size; a frame is visible only once it is complete (tail is stored
 * atomically, after the bytes). A frame that does not fit waits on the producer's side.
 *
 * @module
 */
import { pack, unpack } from "msgpackr";
import { signalEventFd } from "./libc.ts";

/** Bytes of the ring: the largest message (a cluster map of 64 KiB) fits several times. */
const RING_BYTES = 1024 * 1024;
/** Longest message, in bytes. */
const MESSAGE_BYTES_MAX = RING_BYTES / 2;
/** Messages that wait on the producer's side: control requests, bounded by those who ask. */
const WAITING_MAX = 4096;

/** Memory of one mailbox. Make it on the producer's side and post it to the worker. */
export function createMailbox(): SharedArrayBuffer {
  return new SharedArrayBuffer(8 + RING_BYTES);
}

/** The producing end. */
export class MailboxSender {
  readonly #words: Uint32Array<SharedArrayBuffer>;
  readonly #bytes: Uint8Array<SharedArrayBuffer>;
  readonly #waiting: Uint8Array[] = [];
  #timer: ReturnType<typeof setTimeout> | null = null;

  /** @param bellFd eventfd that the worker watches */
  constructor(memory: SharedArrayBuffer, readonly bellFd: number) {
    this.#words = new Uint32Array(memory, 0, 2);
    this.#bytes = new Uint8Array(memory, 8);
  }

  /** Sends a message. Throws a RangeError when it is too large or too many wait. */
  send(message: unknown): void {
    const bytes: Uint8Array = pack(message);
    if (bytes.length > MESSAGE_BYTES_MAX) {
      throw new RangeError(
        `a control message of ${bytes.length} bytes is larger than ${MESSAGE_BYTES_MAX}`,
      );
    }
    if (this.#waiting.length >= WAITING_MAX) {
      throw new RangeError("the data plane does not take its messages; it may hang");
    }
    this.#waiting.push(bytes);
    this.#flush();
  }

  #flush(): void {
    let sent = false;
    while (this.#waiting.length > 0 && this.#write(this.#waiting[0])) {
      this.#waiting.shift();
      sent = true;
    }
    if (sent) signalEventFd(this.bellFd);
    if (this.#waiting.length > 0 && this.#timer === null) {
      this.#timer = setTimeout(() => {
        this.#timer = null;
        this.#flush();
      }, 5);
    }
  }

  #write(bytes: Uint8Array): boolean {
    const head = Atomics.load(this.#words, 0);
    const tail = Atomics.load(this.#words, 1);
    const padded = (bytes.length + 3) & ~3;
    if (((tail - head) >>> 0) + 4 + padded > RING_BYTES) return false;
    let at = tail;
    for (let shift = 0; shift < 32; shift += 8) {
      this.#bytes[at++ % RING_BYTES] = bytes.length >>> shift;
    }
    const start = at % RING_BYTES;
    const first = Math.min(bytes.length, RING_BYTES - start);
    this.#bytes.set(bytes.subarray(0, first), start);
    this.#bytes.set(bytes.subarray(first), 0);
    Atomics.store(this.#words, 1, (tail + 4 + padded) >>> 0);
    return true;
  }
}

/** The consuming end. */
export class MailboxReceiver {
  readonly #words: Uint32Array<SharedArrayBuffer>;
  readonly #bytes: Uint8Array<SharedArrayBuffer>;

  constructor(memory: SharedArrayBuffer) {
    this.#words = new Uint32Array(memory, 0, 2);
    this.#bytes = new Uint8Array(memory, 8);
  }

  /** The next message, or undefined when there is none. */
  receive(): unknown {
    const head = Atomics.load(this.#words, 0);
    const tail = Atomics.load(this.#words, 1);
    if (head === tail) return undefined;
    let length = 0;
    for (let i = 0; i < 4; i++) length |= this.#bytes[(head + i) % RING_BYTES] << (8 * i);
    const message = new Uint8Array(length);
    for (let i = 0; i < length; i++) message[i] = this.#bytes[(head + 4 + i) % RING_BYTES];
    Atomics.store(this.#words, 0, (head + 4 + ((length + 3) & ~3)) >>> 0);
    return unpack(message);
  }
}
