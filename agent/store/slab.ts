/**
 * A heap of 32-bit words for the index: many small blocks, packed, nothing for the garbage collector.
 *
 * Each size class is a dense array of blocks over its own pages of 64 KiB. Freeing a block moves the last one of its class
 * into the gap, so that a class never strands memory: at most one page of it is partly filled. That is why every block says
 * who owns it, and why its owner is told when it moves.
 *
 *     block   owner a | owner b | the owner's words …
 *     handle = (page << 10 | unit) + 1,  unit = word offset in the page / 16;  0 is "none"
 *
 * Invariant: a handle stays valid until its block is freed or the owner is told of another one.
 *
 * @module
 */

/** Words of a page: 64 KiB. */
const PAGE_WORDS = 16384;
/** Words per unit of a handle. */
const UNIT_WORDS = 16;
const UNIT_BITS = 10;
const UNIT_MASK = (1 << UNIT_BITS) - 1;
/** Words at the start of a block that say who owns it. */
const OWNER_WORDS = 2;
/** Classes go up in steps of 16 words to 512 and in steps of 32 words above: at most 6 % is slack above 256 words. */
const FINE_WORDS_MAX = 512;
const CLASS_WORDS_MAX = 2144;
/** Largest block, in words of its owner. */
export const SLAB_WORDS_MAX = CLASS_WORDS_MAX - OWNER_WORDS;
const FINE_CLASSES = FINE_WORDS_MAX / UNIT_WORDS;
const CLASSES = FINE_CLASSES + (CLASS_WORDS_MAX - FINE_WORDS_MAX) / 32;
/** Empty pages that are kept for reuse; the rest goes back to the system. */
const SPARE_PAGES_MAX = 2;

/** Told that a block is somewhere else now. */
export interface MoveListener {
  /**
   * @param a owner, as given to `allocate`
   * @param b likewise
   * @param handle where its block is from now on
   */
  blockMoved(a: number, b: number, handle: number): void;
}

/** See the head of the file. */
export class SlabHeap {
  /** Pages as 32-bit words; the words of `handle` start at {@linkcode SlabHeap.wordOf} of page `pageOf`. */
  readonly pages: Uint32Array<ArrayBuffer>[] = [];
  /** The same pages as 16-bit halves. */
  readonly halves: Uint16Array<ArrayBuffer>[] = [];
  readonly #listener: MoveListener;
  readonly #pageClass: number[] = [];
  /** Pages of each class, all full but the last. */
  readonly #classPages: number[][] = Array.from({ length: CLASSES }, () => []);
  /** Blocks of each class. */
  readonly #classBlocks = new Float64Array(CLASSES);
  /** Page numbers without memory. */
  readonly #absent: number[] = [];
  /** Page numbers with memory but no class. */
  readonly #spare: number[] = [];
  /** Words of all blocks. */
  #usedWords = 0;

  constructor(listener: MoveListener) {
    this.#listener = listener;
  }

  /** Bytes of all pages. */
  get memoryBytes(): number {
    return (this.pages.length - this.#absent.length) * PAGE_WORDS * 4;
  }

  /** Bytes of all blocks. */
  get usedBytes(): number {
    return this.#usedWords * 4;
  }

  /** Words that a block asked for with `words` really has for its owner. */
  static capacityOf(words: number): number {
    return classWords(classOf(words)) - OWNER_WORDS;
  }

  /** Page of a handle. */
  static pageOf(handle: number): number {
    return (handle - 1) >>> UNIT_BITS;
  }

  /** Offset of the owner's first word within its page. */
  static wordOf(handle: number): number {
    return ((handle - 1) & UNIT_MASK) * UNIT_WORDS + OWNER_WORDS;
  }

  /**
   * Allocates a block. Its content is undefined.
   *
   * @param words 1…{@linkcode SLAB_WORDS_MAX}
   * @param a owner, for {@linkcode MoveListener.blockMoved}
   * @param b likewise
   */
  allocate(words: number, a: number, b: number): number {
    const sizeClass = classOf(words);
    const size = classWords(sizeClass);
    const perPage = Math.floor(PAGE_WORDS / size);
    const slot = this.#classBlocks[sizeClass] % perPage;
    const pages = this.#classPages[sizeClass];
    if (slot === 0) pages.push(this.#addPage(sizeClass));
    this.#classBlocks[sizeClass]++;
    this.#usedWords += size;
    const page = pages[pages.length - 1];
    const at = slot * size;
    this.pages[page][at] = a;
    this.pages[page][at + 1] = b;
    return handleOf(page, at);
  }

  /** Says who owns a block from now on. */
  setOwner(handle: number, a: number, b: number): void {
    const page = this.pages[SlabHeap.pageOf(handle)];
    const at = SlabHeap.wordOf(handle) - OWNER_WORDS;
    page[at] = a;
    page[at + 1] = b;
  }

  /** Frees a block; another one of its class may move. */
  free(handle: number): void {
    const page = SlabHeap.pageOf(handle);
    const at = SlabHeap.wordOf(handle) - OWNER_WORDS;
    const sizeClass = this.#pageClass[page];
    const size = classWords(sizeClass);
    const perPage = Math.floor(PAGE_WORDS / size);
    const pages = this.#classPages[sizeClass];
    const slot = --this.#classBlocks[sizeClass] % perPage;
    this.#usedWords -= size;
    const lastPage = pages[pages.length - 1];
    const last = slot * size;
    if (lastPage !== page || last !== at) {
      const from = this.pages[lastPage], to = this.pages[page];
      for (let i = 0; i < size; i++) to[at + i] = from[last + i];
      this.#listener.blockMoved(to[at], to[at + 1], handle);
    }
    if (slot === 0) {
      pages.pop();
      this.#dropPage(lastPage);
    }
  }

  /** Words that the owner of a handle has. */
  capacity(handle: number): number {
    return classWords(this.#pageClass[SlabHeap.pageOf(handle)]) - OWNER_WORDS;
  }

  #addPage(sizeClass: number): number {
    let page = this.#spare.pop();
    if (page === undefined) {
      page = this.#absent.pop() ?? this.pages.length;
      const words = new Uint32Array(PAGE_WORDS);
      this.pages[page] = words;
      this.halves[page] = new Uint16Array(words.buffer);
    }
    this.#pageClass[page] = sizeClass;
    return page;
  }

  #dropPage(page: number): void {
    if (this.#spare.length < SPARE_PAGES_MAX) {
      this.#spare.push(page);
      return;
    }
    this.pages[page] = EMPTY_WORDS;
    this.halves[page] = EMPTY_HALVES;
    this.#absent.push(page);
  }
}

const EMPTY_WORDS = new Uint32Array(0);
const EMPTY_HALVES = new Uint16Array(0);

function handleOf(page: number, word: number): number {
  return ((page << UNIT_BITS) | (word / UNIT_WORDS)) + 1;
}

function classOf(ownerWords: number): number {
  if (!(ownerWords > 0 && ownerWords <= SLAB_WORDS_MAX)) {
    throw new RangeError(`slab: a block of ${ownerWords} words; it must be 1 to ${SLAB_WORDS_MAX}`);
  }
  const words = ownerWords + OWNER_WORDS;
  return words <= FINE_WORDS_MAX
    ? Math.ceil(words / UNIT_WORDS) - 1
    : FINE_CLASSES + Math.ceil((words - FINE_WORDS_MAX) / 32) - 1;
}

function classWords(sizeClass: number): number {
  return sizeClass < FINE_CLASSES
    ? (sizeClass + 1) * UNIT_WORDS
    : FINE_WORDS_MAX + (sizeClass - FINE_CLASSES + 1) * 32;
}
