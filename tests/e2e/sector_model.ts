/**
 * The oracle of the crash test: which value each sector of a disk may hold.
 *
 *     value    0: zeros                       n: the sector of writing number n
 *     sector   word 0: n    word i: filling(n, sector) + i · STEP
 *
 * Of each sector it knows the value that was acknowledged last, and the one of a request that is under way or whose
 * end nobody saw. It must hold one of these, whole. A sector has one request under way at the most.
 *
 * @module
 */
import { SECTOR_BYTES } from "../../agent/base/limits.ts";

const SECTOR_WORDS = SECTOR_BYTES / 4;
const NONE = 0xffffffff;
/** Odd, from the golden ratio. */
const STEP = 0x9e3779b9;

/** See the head of the file. */
export class SectorModel {
  /** The value that was acknowledged last. */
  readonly #acknowledged: Uint32Array;
  /** The value that it may hold instead, or NONE. */
  readonly #pending: Uint32Array;
  /** Number of the acknowledgement, to tell what a flush has covered. */
  readonly #acknowledgedAt: Uint32Array;
  readonly #isBusy: Uint8Array;
  #acknowledgements = 0;
  #flushedUpTo = 0;
  #writings = 0;

  /** @param sectorCount sectors of the disk, all zeros */
  constructor(readonly sectorCount: number) {
    this.#acknowledged = new Uint32Array(sectorCount);
    this.#pending = new Uint32Array(sectorCount).fill(NONE);
    this.#acknowledgedAt = new Uint32Array(sectorCount);
    this.#isBusy = new Uint8Array(sectorCount);
  }

  /** Whether any sector of a range has a request under way. */
  isBusy(sector: number, count: number): boolean {
    return this.#isBusy.subarray(sector, sector + count).includes(1);
  }

  /** A read begins. */
  beginRead(sector: number, count: number): void {
    this.#isBusy.fill(1, sector, sector + count);
  }

  /** A read has ended. */
  endRead(sector: number, count: number): void {
    this.#isBusy.fill(0, sector, sector + count);
  }

  /** A write begins: fills `words` from `first` on with what it writes. */
  beginWrite(sector: number, count: number, words: Uint32Array, first: number): void {
    const value = ++this.#writings;
    this.#begin(sector, count, value);
    for (let i = 0; i < count; i++) stamp(words, first + i * SECTOR_WORDS, sector + i, value);
  }

  /** A discard or write-zeroes begins. */
  beginZero(sector: number, count: number): void {
    this.#begin(sector, count, 0);
  }

  #begin(sector: number, count: number, value: number): void {
    this.#pending.fill(value, sector, sector + count);
    this.#isBusy.fill(1, sector, sector + count);
  }

  /** What began with {@linkcode beginWrite} or {@linkcode beginZero} was acknowledged. */
  acknowledge(sector: number, count: number): void {
    this.#acknowledgements++;
    for (let i = sector; i < sector + count; i++) {
      this.#acknowledged[i] = this.#pending[i];
      this.#pending[i] = NONE;
      this.#acknowledgedAt[i] = this.#acknowledgements;
    }
    this.#isBusy.fill(0, sector, sector + count);
  }

  /** A flush begins; to be given to {@linkcode flushed} when it is acknowledged. */
  beginFlush(): number {
    return this.#acknowledgements;
  }

  flushed(begun: number): void {
    this.#flushedUpTo = Math.max(this.#flushedUpTo, begun);
  }

  /** Nobody will hear of what is under way: it may have happened or not. */
  abandon(): void {
    this.#isBusy.fill(0);
  }

  /** Sectors of which it is not known what they hold. */
  get openCount(): number {
    return this.#pending.reduce((sum, value) => sum + (value === NONE ? 0 : 1), 0);
  }

  /**
   * Holds what was read against what may be there.
   *
   * @param words the sectors, from index `first` on
   * @param settle what was read is what is there from now on
   * @throws Error that names the first sector that is wrong, and how
   */
  verify(
    sector: number,
    count: number,
    words: Uint32Array,
    first: number,
    { settle = false }: { settle?: boolean } = {},
  ): void {
    for (let i = 0; i < count; i++) {
      const at = first + i * SECTOR_WORDS;
      const value = words[at];
      const isOne = value === this.#acknowledged[sector + i] ||
        (value === this.#pending[sector + i] && value !== NONE);
      if (!isOne || !isStamp(words, at, sector + i, value)) {
        throw new Error(this.#explain(sector + i, words, at));
      }
      if (!settle) continue;
      this.#acknowledged[sector + i] = value;
      this.#pending[sector + i] = NONE;
    }
  }

  #explain(sector: number, words: Uint32Array, at: number): string {
    const value = words[at];
    const found = isStamp(words, at, sector, value)
      ? value === 0 ? "zeros" : `writing ${value}`
      : `a mix, or damage, that begins with ${words.slice(at, at + 4).join(" ")}`;
    const isFlushed = this.#acknowledgedAt[sector] <= this.#flushedUpTo;
    const pending = this.#pending[sector] === NONE ? "" : ` or ${this.#pending[sector]}`;
    return `sector ${sector} holds ${found}, not writing ${this.#acknowledged[sector]} ` +
      `(acknowledged${isFlushed ? " and flushed" : ", not flushed"})${pending}; ` +
      `the newest writing is ${this.#writings}`;
  }
}

function fillingOf(sector: number, value: number): number {
  return (Math.imul(sector, 0x85ebca6b) ^ Math.imul(value, 0xc2b2ae35)) | 0;
}

function stamp(words: Uint32Array, at: number, sector: number, value: number): void {
  words[at] = value;
  let filling = fillingOf(sector, value);
  for (let i = 1; i < SECTOR_WORDS; i++) {
    filling = (filling + STEP) | 0;
    words[at + i] = filling;
  }
}

function isStamp(words: Uint32Array, at: number, sector: number, value: number): boolean {
  let filling = fillingOf(sector, value);
  for (let i = 1; i < SECTOR_WORDS; i++) {
    filling = (filling + STEP) | 0;
    if (words[at + i] !== (value === 0 ? 0 : filling >>> 0)) return false;
  }
  return true;
}
