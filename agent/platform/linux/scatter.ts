/**
 * Scatter lists in memory that the kernel can read: `struct iovec[]`, handed out by number.
 *
 *     list      entry 0                        entry 1 …
 *     entry     | base u64 | length u64 |
 *
 * Invariants:
 * - The memory is mapped once and never moves, so the kernel may hold an address for as long as a request takes.
 * - A list belongs to one request from {@linkcode ScatterLists.take} to {@linkcode ScatterLists.release}.
 *
 * @module
 */
import { addressOf, mapMemory, pointerTo, viewOf } from "./libc.ts";

const ENTRY_BYTES = 16;
const ENTRY_WORDS = ENTRY_BYTES / 4;
const MAP_PRIVATE_ANONYMOUS = 0x22;
const TWO32 = 0x1_0000_0000;

/** A fixed number of lists of a fixed length. */
export class ScatterLists {
  readonly #entriesMax: number;
  readonly #address: number;
  readonly #words: Uint32Array<ArrayBuffer>;
  readonly #pointers: Deno.PointerObject[] = [];
  /** Entries of each list, and the first that is not done with. */
  readonly #counts: Uint16Array;
  readonly #first: Uint16Array;
  readonly #free: number[] = [];

  /**
   * @param count lists
   * @param entriesMax entries of each, 1…1024 (the kernel's IOV_MAX)
   */
  constructor(count: number, entriesMax: number) {
    this.#entriesMax = entriesMax;
    const bytes = count * entriesMax * ENTRY_BYTES;
    this.#address = mapMemory({ lengthBytes: bytes, flags: MAP_PRIVATE_ANONYMOUS });
    const view = viewOf(this.#address, bytes);
    if (addressOf(view) !== this.#address) throw new Error("the view moved");
    this.#words = new Uint32Array(view.buffer);
    this.#counts = new Uint16Array(count);
    this.#first = new Uint16Array(count);
    for (let list = count - 1; list >= 0; list--) {
      this.#free.push(list);
      this.#pointers[list] = pointerTo(this.#address + list * entriesMax * ENTRY_BYTES);
    }
  }

  /** Takes an empty list. Throws when all are in use: the callers' own bounds are below that. */
  take(): number {
    const list = this.#free.pop();
    if (list === undefined) throw new Error("more requests in flight than scatter lists");
    this.#counts[list] = 0;
    this.#first[list] = 0;
    return list;
  }

  /** Gives a list back. */
  release(list: number): void {
    this.#free.push(list);
  }

  /** Appends a range of `length` bytes at host address `address`; joined with the one before where they touch. */
  add(list: number, address: number, length: number): void {
    const words = this.#words;
    const count = this.#counts[list];
    let word = (list * this.#entriesMax + count) * ENTRY_WORDS;
    if (count > 0) {
      const before = word - ENTRY_WORDS;
      if (words[before] + words[before + 1] * TWO32 + words[before + 2] === address) {
        words[before + 2] += length;
        return;
      }
      if (count === this.#entriesMax) throw new Error("scatter list too long");
    }
    words[word++] = address;
    words[word++] = address / TWO32;
    words[word++] = length;
    words[word] = 0;
    this.#counts[list] = count + 1;
  }

  /** Moves the list past `bytes`, of which fewer than all of its bytes are left out. */
  advance(list: number, bytes: number): void {
    const words = this.#words;
    const base = list * this.#entriesMax * ENTRY_WORDS;
    let left = bytes;
    let entry = this.#first[list];
    while (left > 0 && left >= words[base + entry * ENTRY_WORDS + 2]) {
      left -= words[base + entry * ENTRY_WORDS + 2];
      entry++;
    }
    if (left > 0) {
      const word = base + entry * ENTRY_WORDS;
      const address = words[word] + words[word + 1] * TWO32 + left;
      words[word] = address;
      words[word + 1] = address / TWO32;
      words[word + 2] -= left;
    }
    this.#first[list] = entry;
  }

  /** Entries left. */
  count(list: number): number {
    return this.#counts[list] - this.#first[list];
  }

  /** Host address of entry `index` of those left: where its bytes are. */
  entryAddress(list: number, index: number): number {
    const word = (list * this.#entriesMax + this.#first[list] + index) * ENTRY_WORDS;
    return this.#words[word] + this.#words[word + 1] * TWO32;
  }

  /** Bytes of entry `index` of those left. */
  entryBytes(list: number, index: number): number {
    return this.#words[(list * this.#entriesMax + this.#first[list] + index) * ENTRY_WORDS + 2];
  }

  /** Host address of what is left of the list itself. */
  address(list: number): number {
    return this.#address + (list * this.#entriesMax + this.#first[list]) * ENTRY_BYTES;
  }

  /** {@linkcode address} as a pointer. */
  pointer(list: number): Deno.PointerObject {
    return this.#first[list] === 0 ? this.#pointers[list] : pointerTo(this.address(list));
  }
}
