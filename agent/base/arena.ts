/**
 * The arena's allocator: a binary buddy system over page numbers.
 *
 *     arena   | 1 MiB block | 1 MiB block | … | reserved | reserved |
 *     block     order 0: one page of 4 KiB … order 8: 256 pages
 *     buddy     page ^ (1 << order)
 *
 * Free blocks of each order form a doubly linked list through two arrays indexed by their first page.
 * `#state` says of each page whether it heads a free or a used block and of which order. Single pages
 * are by far the most frequent: a short stack of them is kept unmerged in front of the lists, so that
 * the usual pair of allocate and release is a push and a pop. When a larger block cannot be found,
 * the stack is emptied into the lists and the search is repeated.
 *
 * Invariants: a page belongs to exactly one block; no two free buddies of one order stay unmerged
 * outside the stack; lists and stack together with the used blocks cover the arena.
 *
 * Nothing is allocated after construction; every call takes at most `ORDERS` steps (or, when the
 * stack is emptied, `STACK_PAGES_MAX` times as many).
 *
 * @module
 */
import { ARENA_BYTES, BLOCK_BYTES, BLOCK_SHIFT, TRANSFER_BYTES_MAX } from "./limits.ts";

/** Pages of 4 KiB up to blocks of the longest transfer. */
const ORDERS = Math.log2(TRANSFER_BYTES_MAX / BLOCK_BYTES) + 1;
const ORDER_MAX = ORDERS - 1;
const PAGES_PER_TOP_BLOCK = 1 << ORDER_MAX;

/**
 * Single pages kept unmerged: twice the deepest queue of small requests that was worth measuring,
 * and at most 1 MiB of memory that larger requests have to ask back.
 */
const STACK_PAGES_MAX = 256;

/** `#state` of a page that is not the first of a block. */
const INSIDE = 0;
/** `#state` of the first page of a free block: FREE + order. */
const FREE = 16;
/** `#state` of the first page of a used block: USED + order. */
const USED = 32;
/** `#state` of a page on the stack. */
const STACKED = 48;
/** `#state` of the first page of a reserved area. */
const RESERVED = 49;

/** End of a list. */
const NONE = -1;

/** Hands out buffers of the arena. */
export class Arena {
  /** Bytes that are managed, reserved ones included. */
  readonly sizeBytes: number;

  readonly #state: Uint8Array;
  readonly #next: Int32Array;
  readonly #previous: Int32Array;
  readonly #heads = new Int32Array(ORDERS).fill(NONE);
  readonly #stack = new Int32Array(STACK_PAGES_MAX);
  #stackPages = 0;
  #reservedFrom: number;
  #usedPages = 0;

  /** @param sizeBytes a multiple of 1 MiB */
  constructor(sizeBytes: number = ARENA_BYTES) {
    const pages = sizeBytes / BLOCK_BYTES;
    assert(Number.isInteger(pages / PAGES_PER_TOP_BLOCK) && pages > 0, "size", sizeBytes);
    this.sizeBytes = sizeBytes;
    this.#state = new Uint8Array(pages).fill(INSIDE);
    this.#next = new Int32Array(pages).fill(NONE);
    this.#previous = new Int32Array(pages).fill(NONE);
    this.#reservedFrom = pages;
    // From the top, so that the lists begin with the lowest pages.
    for (let page = pages - PAGES_PER_TOP_BLOCK; page >= 0; page -= PAGES_PER_TOP_BLOCK) {
      this.#link(page, ORDER_MAX);
    }
  }

  /** Bytes below the reserved areas. */
  get roomBytes(): number {
    return this.#reservedFrom * BLOCK_BYTES;
  }

  /** Bytes below the reserved areas while none of them is allocated; 0 otherwise. */
  get idleBytes(): number {
    const bytes = this.#reservedFrom * BLOCK_BYTES;
    return this.freeBytes === bytes ? bytes : 0;
  }

  /** Bytes in use: allocated (rounded up) and reserved. */
  get usedBytes(): number {
    return this.#usedPages * BLOCK_BYTES;
  }

  /** Bytes not in use. They may lie in pieces. */
  get freeBytes(): number {
    return this.sizeBytes - this.usedBytes;
  }

  /**
   * Takes a buffer, aligned to its size rounded up to a power of two of pages. Its content is what
   * the last user left.
   *
   * @param lengthBytes 1…1 MiB
   * @returns its offset, or −1 when there is no room
   */
  allocate(lengthBytes: number): number {
    if (lengthBytes <= BLOCK_BYTES && this.#stackPages > 0 && lengthBytes > 0) {
      const page = this.#stack[--this.#stackPages];
      this.#state[page] = USED;
      this.#usedPages++;
      return page << BLOCK_SHIFT;
    }
    const order = orderOf(lengthBytes);
    let page = this.#take(order);
    if (page === NONE && this.#stackPages > 0) {
      this.#mergeStack();
      page = this.#take(order);
    }
    if (page === NONE) return -1;
    this.#state[page] = USED + order;
    this.#usedPages += 1 << order;
    return page << BLOCK_SHIFT;
  }

  /**
   * Gives a buffer back.
   *
   * @param offset what {@linkcode allocate} returned
   * @param lengthBytes the length that was asked for, or any that rounds to the same size
   */
  release(offset: number, lengthBytes: number): void {
    const order = orderOf(lengthBytes);
    const page = offset >>> BLOCK_SHIFT;
    if (this.#state[page] !== USED + order || (offset & (BLOCK_BYTES - 1)) !== 0) {
      this.#refuse(offset, lengthBytes);
    }
    this.#usedPages -= 1 << order;
    if (order === 0 && this.#stackPages < STACK_PAGES_MAX) {
      this.#state[page] = STACKED;
      this.#stack[this.#stackPages++] = page;
    } else {
      this.#merge(page, order);
    }
  }

  /**
   * Takes a fixed area for the life of the arena, from its top; meant for start-up.
   *
   * @param lengthBytes 1…; rounded up to a multiple of 1 MiB
   * @returns its offset, or −1 when the top of the arena has no such room
   */
  reserve(lengthBytes: number): number {
    assert(lengthBytes > 0, "length", lengthBytes);
    this.#mergeStack();
    const pages = Math.ceil(lengthBytes / TRANSFER_BYTES_MAX) * PAGES_PER_TOP_BLOCK;
    const first = this.#reservedFrom - pages;
    if (first < 0) return -1;
    for (let page = first; page < this.#reservedFrom; page += PAGES_PER_TOP_BLOCK) {
      if (this.#state[page] !== FREE + ORDER_MAX) return -1;
    }
    for (let page = first; page < this.#reservedFrom; page += PAGES_PER_TOP_BLOCK) {
      this.#unlink(page, ORDER_MAX);
    }
    this.#state[first] = RESERVED;
    this.#reservedFrom = first;
    this.#usedPages += pages;
    return first * BLOCK_BYTES;
  }

  /** Unlinks a free block of `order`, splitting a larger one where need be. */
  #take(order: number): number {
    let from = order;
    while (from <= ORDER_MAX && this.#heads[from] === NONE) from++;
    if (from > ORDER_MAX) return NONE;
    const page = this.#heads[from];
    this.#unlink(page, from);
    while (from > order) this.#link(page + (1 << --from), from);
    return page;
  }

  /** Puts a block on its list, joined with its buddy as often as that one is free as well. */
  #merge(page: number, order: number): void {
    this.#state[page] = INSIDE;
    while (order < ORDER_MAX && this.#state[page ^ (1 << order)] === FREE + order) {
      this.#unlink(page ^ (1 << order), order);
      page &= ~(1 << order);
      order++;
    }
    this.#link(page, order);
  }

  #mergeStack(): void {
    while (this.#stackPages > 0) this.#merge(this.#stack[--this.#stackPages], 0);
  }

  #link(page: number, order: number): void {
    const head = this.#heads[order];
    this.#state[page] = FREE + order;
    this.#next[page] = head;
    this.#previous[page] = NONE;
    if (head !== NONE) this.#previous[head] = page;
    this.#heads[order] = page;
  }

  #unlink(page: number, order: number): void {
    const next = this.#next[page];
    const previous = this.#previous[page];
    if (next !== NONE) this.#previous[next] = previous;
    if (previous !== NONE) this.#next[previous] = next;
    else this.#heads[order] = next;
    this.#state[page] = INSIDE;
  }

  #refuse(offset: number, lengthBytes: number): never {
    const state = this.#state[offset >>> BLOCK_SHIFT];
    const is = state === STACKED || state >= FREE && state < USED
      ? "free already"
      : state === RESERVED
      ? "reserved"
      : state >= USED && state < STACKED
      ? `a buffer of ${BLOCK_BYTES << (state - USED)} bytes`
      : "no start of a buffer";
    throw new Error(`arena: release(${offset}, ${lengthBytes}), but that is ${is}`);
  }
}

/** Order of the smallest block that holds `lengthBytes`. */
function orderOf(lengthBytes: number): number {
  if (!(lengthBytes > 0 && lengthBytes <= TRANSFER_BYTES_MAX)) {
    throw new Error(`arena: length ${lengthBytes} is not within 1…${TRANSFER_BYTES_MAX}`);
  }
  return 32 - Math.clz32((lengthBytes - 1) >>> BLOCK_SHIFT);
}

function assert(condition: boolean, name: string, value: number): void {
  if (!condition) throw new Error(`arena: ${name} ${value} is out of range`);
}
