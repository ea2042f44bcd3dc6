/**
 * Checksums of long runs, which the index does not hold: pages of record headers, as read from the
 * disk.
 *
 * The index says of a block of a long run only where its checksum lies: a word of a header page.
 * The page is kept here, 1024 words each, found by its location through a small open-addressed
 * table and replaced by the clock algorithm.
 *
 *     table   location ─▶ page          (linear probing, deletion by shifting back)
 *     words   | page 0: 1024 words | page 1 | …
 *
 * A page is what the log has written there, or what the disk had there once that has shown to be of the
 * record in question (header_proof.ts): its words are compared one by one, so a damaged header costs
 * only the blocks whose words are damaged. Pages of a segment that becomes free are dropped before it
 * is written again.
 *
 * @module
 */
import { BLOCK_BYTES } from "../base/limits.ts";

const PAGE_WORDS = BLOCK_BYTES / 4;

/** Fewest pages: one read needs up to two at a time, and others run beside it. */
const PAGES_MIN = 16;

const NONE = -1;

/** See the head of the file. */
export class ChecksumCache {
  /** Pages of capacity. */
  readonly pages: number;
  hits = 0;
  misses = 0;

  readonly #words: Uint32Array;
  /** Location of each page; 0 when empty (location 0 is a superblock). */
  readonly #location: Uint32Array;
  /** Asked for since the hand passed. */
  readonly #used: Uint8Array;
  readonly #table: Int32Array;
  readonly #mask: number;
  #hand = 0;
  #count = 0;

  /** @param capacityBytes rounded to pages of 4 KiB; at least 16 of them */
  constructor(capacityBytes: number) {
    this.pages = Math.max(PAGES_MIN, Math.floor(capacityBytes / BLOCK_BYTES));
    this.#words = new Uint32Array(this.pages * PAGE_WORDS);
    this.#location = new Uint32Array(this.pages);
    this.#used = new Uint8Array(this.pages);
    const slots = 2 ** Math.ceil(Math.log2(this.pages * 2));
    this.#table = new Int32Array(slots).fill(NONE);
    this.#mask = slots - 1;
  }

  /** Bytes of memory. */
  get bytes(): number {
    return this.#words.byteLength + this.#location.byteLength + this.#used.byteLength +
      this.#table.byteLength;
  }

  /** Pages in use. */
  get count(): number {
    return this.#count;
  }

  /** The page of the header block at `location`, or −1. */
  find(location: number): number {
    const slot = this.#slotOf(location);
    const page = this.#table[slot];
    if (page === NONE) {
      this.misses++;
      return NONE;
    }
    this.hits++;
    this.#used[page] = 1;
    return page;
  }

  /** Word `word` (0…1023) of page `page`. */
  word(page: number, word: number): number {
    return this.#words[page * PAGE_WORDS + word];
  }

  /** Copies the header block at word `from` of `u32` in, as the page of `location`. */
  put(location: number, u32: Uint32Array, from: number): void {
    let page = this.#table[this.#slotOf(location)];
    if (page === NONE) {
      page = this.#evict();
      this.#location[page] = location;
      this.#table[this.#slotOf(location)] = page;
      this.#count++;
    }
    this.#used[page] = 1;
    const words = this.#words;
    let to = page * PAGE_WORDS;
    for (const end = to + PAGE_WORDS; to < end; to++, from++) words[to] = u32[from];
  }

  /** Forgets the page of `location`, if it is there. */
  drop(location: number): void {
    const page = this.#table[this.#slotOf(location)];
    if (page !== NONE) this.#remove(page);
  }

  /** Forgets all pages from location `start` up to `end`. */
  dropRange(start: number, end: number): void {
    if (this.#count === 0) return;
    for (let page = 0; page < this.pages; page++) {
      const location = this.#location[page];
      if (location >= start && location < end) this.#remove(page);
    }
  }

  /** An empty page: the first that nobody asked for since the hand came by last. */
  #evict(): number {
    for (;;) {
      const page = this.#hand;
      this.#hand = page + 1 === this.pages ? 0 : page + 1;
      if (this.#location[page] === 0) return page;
      if (this.#used[page] === 0) {
        this.#remove(page);
        return page;
      }
      this.#used[page] = 0;
    }
  }

  #remove(page: number): void {
    const table = this.#table;
    const mask = this.#mask;
    let hole = this.#slotOf(this.#location[page]);
    table[hole] = NONE;
    this.#location[page] = 0;
    this.#used[page] = 0;
    this.#count--;
    // Move up what probed past the hole.
    for (let slot = hole + 1 & mask; table[slot] !== NONE; slot = slot + 1 & mask) {
      const home = hash(this.#location[table[slot]]) & mask;
      if ((slot - home & mask) >= (slot - hole & mask)) {
        table[hole] = table[slot];
        table[slot] = NONE;
        hole = slot;
      }
    }
  }

  /** The slot that holds `location`, or the empty one where it would go. */
  #slotOf(location: number): number {
    const table = this.#table;
    const mask = this.#mask;
    let slot = hash(location) & mask;
    for (;;) {
      const page = table[slot];
      if (page === NONE || this.#location[page] === location) return slot;
      slot = slot + 1 & mask;
    }
  }
}

function hash(location: number): number {
  const mixed = Math.imul(location ^ location >>> 16, 0x9e3779b1);
  return mixed ^ mixed >>> 15;
}
