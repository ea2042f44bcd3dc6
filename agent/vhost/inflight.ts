/**
 * Requests in flight, remembered in memory that outlives this process (INFLIGHT_SHMFD, split rings).
 *
 * The front end keeps the file, and hands it to the next back end, which does again what was in flight. One queue
 * region per queue, each rounded up to 64 bytes; layout and rules are those of `vhost-user.rst`, "Inflight I/O tracking":
 *
 *     region   0 features u64 (0) | 8 version u16 (1; 0: never used) | 10 descriptor count u16
 *              12 last batch head u16 | 14 used idx u16 | 16 state, one per descriptor
 *     state    0 inflight u8 | 1 padding | 6 next u16 | 8 counter u64
 *
 * After the regions, and known to this back end alone, 64 bytes of device state:
 *
 *     0 magic u32 | 4 version u32 (1) | 8 value u32 | 12 its complement u32 | 16 fenced u32 | 20 identity u32 (0: not told)
 *     24 generation u32 (0: the rings stand still) | 28 zeros
 *
 * It holds what the front end would not tell a new back end again: QEMU does not repeat a guest's change of
 * the write cache mode, and a guest that chose write-through must not lose it with our process. Nor must a guest go on that was cut
 * off because others have had its disk: `fenced` is a magic then. A guest that boots anew has another area. Nor would QEMU notice that
 * another disk has the name, and so the socket, of the one that the requests are for: that is what `identity` tells. `generation`
 * is that of the lease under which the rings were left running, for whoever finds them so to see whether others have written since.
 *
 * Order of stores (the process may be killed between any two; stores of one thread become visible in program order):
 *
 *     taken      counter, then inflight = 1
 *     batch      next = last batch head, last batch head = it; …; idx of the used ring; inflight = 0 for each; used idx
 *
 * So at any moment a head is either not taken (its entry lies in the available ring, past used idx + number in
 * flight), in flight, or used; and where `used idx` lags behind the ring's, the heads of the last batch are listed.
 *
 * Invariant: what is read from the area is checked before use; its worst content makes this device do requests that
 * the guest did not ask for now, never touch what the guest could not have named itself.
 *
 * @module
 */
import type { Window } from "../platform/platform.ts";
import type { MappedPiece } from "./host.ts";

/** Header of a queue region, and size of a descriptor's state. */
const ENTRY_BYTES = 16;
/** Regions start on cache lines of their own, as other back ends lay them out too. */
const REGION_ALIGNMENT_BYTES = 64;
/** Of the split layout. */
const REGION_VERSION = 1;
const STATE_BYTES = 64;
const STATE_MAGIC = 0x5450_6c65;
const STATE_VERSION = 1;
const FENCED_MAGIC = 0x6465_6366;

/** Bytes of the region of one queue. */
export function regionBytes(queueSize: number): number {
  return Math.ceil((ENTRY_BYTES + queueSize * ENTRY_BYTES) / REGION_ALIGNMENT_BYTES) *
    REGION_ALIGNMENT_BYTES;
}

/** Bytes of the whole area. */
export function inflightBytes(queueCount: number, queueSize: number): number {
  return queueCount * regionBytes(queueSize) + STATE_BYTES;
}

/** The area of one front end, mapped. */
export class InflightArea {
  /**
   * @param window the window that holds it
   * @param piece where; owned by the caller
   * @param queueCount regions
   * @param queueSize descriptors per region
   */
  constructor(
    readonly window: Window,
    readonly piece: MappedPiece,
    readonly queueCount: number,
    readonly queueSize: number,
  ) {}

  /** The region of a queue; null when the area has none for it, or too small a one. */
  queue(index: number, size: number): InflightQueue | null {
    if (index >= this.queueCount || size > this.queueSize) return null;
    return new InflightQueue(
      this.window,
      this.piece.offset + index * regionBytes(this.queueSize),
      this.queueSize,
    );
  }

  #stateAt(): number {
    const at = this.queueCount * regionBytes(this.queueSize);
    return at + STATE_BYTES <= this.piece.length ? (this.piece.offset + at) >>> 2 : -1;
  }

  /** Remembers a value of the device, 0…2^32−1. */
  saveState(value: number): void {
    const at = this.#stateAt();
    if (at < 0) return;
    const words = this.window.u32;
    words[at + 2] = value;
    words[at + 3] = ~value;
    words[at + 1] = STATE_VERSION;
    words[at] = STATE_MAGIC;
  }

  /** A word of the device's state; 0 where there is no room for that. */
  #word(index: number): number {
    const at = this.#stateAt();
    return at < 0 ? 0 : this.window.u32[at + index];
  }

  #setWord(index: number, value: number): void {
    const at = this.#stateAt();
    if (at >= 0) this.window.u32[at + index] = value;
  }

  /** Whoever has this area must not go on: {@linkcode isFenced} for every back end from now on. */
  markFenced(): void {
    this.#setWord(4, FENCED_MAGIC);
  }

  /** The guest that it belongs to was cut off from its disk for good. */
  get isFenced(): boolean {
    return this.#word(4) === FENCED_MAGIC;
  }

  /** What the requests in flight are for; 0: nobody has said. */
  get identity(): number {
    return this.#word(5);
  }

  set identity(value: number) {
    this.#setWord(5, value);
  }

  /** Generation of the lease under which the rings run, or were left; 0: they stand still, in good order. */
  get generation(): number {
    return this.#word(6);
  }

  set generation(value: number) {
    this.#setWord(6, value);
  }

  /** The value saved last, or −1 when there is none. */
  loadState(): number {
    const at = this.#stateAt();
    if (at < 0) return -1;
    const words = this.window.u32;
    const value = words[at + 2];
    const isThere = words[at] === STATE_MAGIC && words[at + 1] === STATE_VERSION &&
      words[at + 3] === ~value >>> 0;
    return isThere ? value : -1;
  }
}

/** The region of one queue. */
export class InflightQueue {
  readonly #bytes: Uint8Array<ArrayBuffer>;
  readonly #u16: Uint16Array<ArrayBuffer>;
  readonly #u32: Uint32Array<ArrayBuffer>;
  /** Byte offset of the region. */
  readonly #at: number;
  readonly #size: number;
  /** Next counter. A Number: at a million requests a second it stays exact for 285 years. */
  #counter = 0;
  /** Nobody had used the region before {@linkcode recover}. */
  wasFresh = false;

  /** @param at byte offset of the region in the window, a multiple of 4 */
  constructor(window: Window, at: number, size: number) {
    this.#bytes = window.bytes;
    this.#u16 = window.u16;
    this.#u32 = window.u32;
    this.#at = at;
    this.#size = size;
  }

  /**
   * Brings the region in line with the used ring and lists what was in flight.
   *
   * @param usedIdx idx of the used ring
   * @param queueSize descriptors of the ring, at most those of the region
   * @param heads receives the heads in flight, oldest first
   * @returns how many, at most `queueSize`
   */
  recover(usedIdx: number, queueSize: number, heads: Uint16Array): number {
    const u16 = this.#u16;
    const base = this.#at >>> 1;
    this.wasFresh = u16[base + 4] !== REGION_VERSION;
    if (this.wasFresh) {
      this.#bytes.fill(0, this.#at, this.#at + ENTRY_BYTES + this.#size * ENTRY_BYTES);
      u16[base + 5] = this.#size;
      u16[base + 7] = usedIdx;
      u16[base + 4] = REGION_VERSION;
      this.#counter = 0;
      return 0;
    }
    // The last batch was published, but perhaps not struck off the list.
    let lag = (usedIdx - u16[base + 7]) & 0xffff;
    if (lag > queueSize) lag = 0;
    for (let head = u16[base + 6]; lag > 0 && head < this.#size; lag--) {
      this.#bytes[this.#stateAt(head)] = 0;
      head = u16[(this.#stateAt(head) >>> 1) + 3];
    }
    u16[base + 7] = usedIdx;
    return this.#list(queueSize, heads);
  }

  #list(queueSize: number, heads: Uint16Array): number {
    const found: { head: number; counter: number }[] = [];
    let newest = -1;
    for (let head = 0; head < queueSize; head++) {
      const at = this.#stateAt(head);
      if (this.#bytes[at] === 0) continue;
      const word = at >>> 2;
      // Kept below 2^53 whatever is there, so that counting on from the newest stays exact.
      const counter = (this.#u32[word + 3] & 0xfffff) * 2 ** 32 + this.#u32[word + 2];
      if (counter > newest) newest = counter;
      found.push({ head, counter });
    }
    found.sort((a, b) => a.counter - b.counter);
    for (let index = 0; index < found.length; index++) heads[index] = found[index].head;
    this.#counter = newest + 1;
    return found.length;
  }

  #stateAt(head: number): number {
    return this.#at + ENTRY_BYTES + head * ENTRY_BYTES;
  }

  /** As if {@linkcode recover} had not found it fresh: nobody has used the ring since. */
  leaveFresh(): void {
    this.#u16[(this.#at >>> 1) + 4] = 0;
  }

  /** A chain was taken from the available ring. Not for those done again: they keep their age. */
  taken(head: number): void {
    const at = this.#at + ENTRY_BYTES + head * ENTRY_BYTES;
    const word = at >>> 2;
    const counter = this.#counter++;
    this.#u32[word + 2] = counter;
    this.#u32[word + 3] = counter / 2 ** 32;
    this.#bytes[at] = 1;
  }

  /** A used element was written, not yet published. */
  used(head: number): void {
    const base = this.#at >>> 1;
    this.#u16[((this.#at + ENTRY_BYTES + head * ENTRY_BYTES) >>> 1) + 3] = this.#u16[base + 6];
    this.#u16[base + 6] = head;
  }

  /**
   * The batch was published: the used ring's idx is `usedIdx` now.
   *
   * @param heads its heads, the first `count` of which are meant
   */
  published(heads: Uint16Array, count: number, usedIdx: number): void {
    for (let index = 0; index < count; index++) {
      this.#bytes[this.#at + ENTRY_BYTES + heads[index] * ENTRY_BYTES] = 0;
    }
    this.#u16[(this.#at >>> 1) + 7] = usedIdx;
  }
}
