/**
 * The in-memory index of one store: (layer, chunk, block) → where the block is and how to verify it.
 *
 * Value of a block:
 *
 * | value | meaning |
 * |---|---|
 * | hole | never written, or forgotten: older layers show through |
 * | {@linkcode ZERO} | reads as zeros, whatever older layers hold |
 * | {@linkcode POISON} | known to be damaged: must not be returned as data |
 * | location, aux, direct | block number in the file; `aux` is the checksum itself (direct), or says where it is |
 *
 * Positional checksums (not direct) keep sequential data compact: `aux` is the distance, in 4-byte words, from the first
 * word of the data block back to its checksum in the record's header: `word = location × 1024 − aux`. Along a run both the
 * location and the word rise by one from block to block, so `aux` rises by 1023.
 *
 * A layer is a two-level table of chunk handles (4 bytes per chunk). A handle leads to a node in the slab heap:
 *
 *     LIST    header | location u32[cap] | aux u32[cap] | key u16[cap]         sorted by start; 10 bytes per entry
 *             key = start (10 bits) | direct (1) << 10 | length code (5) << 11
 *     RANKED  header | present 32 words | direct 32 words | location u32[cap] | aux u32[cap]   8 bytes per block
 *
 *     header = kind | count << 2      count: entries of a LIST, present blocks of a RANKED node
 *
 * A chunk is a LIST while it has few entries, whatever they cover; many entries over many blocks make it RANKED, and a long
 * run over a RANKED chunk may make it a LIST again.
 *
 * Memory, all of it counted: a disk of which all blocks were written at random costs 0.22 % of its data, half of them
 * 0.22 %, a quarter 0.24 %, an eighth 0.28 % (the sparser a chunk, the more its bitmaps weigh); sequential data one 10-byte
 * entry per run of 1024, 512, … blocks, at least 64 bytes and 4 in the table per chunk. Besides, up to 0.75 MiB in
 * partly filled pages. `tests/store/index_test.ts` holds these.
 *
 * Invariants: runs of a LIST never overlap and never touch where they could be one; every displaced location is reported once
 * to the {@linkcode FreedListener}; `blockCount` is exact.
 *
 * @module
 */
import { CHUNK_BLOCKS } from "../base/limits.ts";
import { CHUNKS_MAX } from "./format.ts";
import { type MoveListener, SLAB_WORDS_MAX, SlabHeap } from "./slab.ts";

/** Location of a block that reads as zeros. */
export const ZERO = 0xffff_ffff;
/** Location of a block that is known to be damaged. */
export const POISON = 0xffff_fffe;
/** First location that means something else than a place. */
export const LOCATION_END = POISON;
/** What {@linkcode Index.locate} says of a hole. */
export const HOLE = -1;

/** What {@linkcode Index.find} found. */
export const enum IndexKind {
  /** Never written, or forgotten. */
  Absent = 0,
  Zero = 1,
  Poison = 2,
  /** Data, with the checksums at hand. */
  Direct = 3,
  /** Data, with the checksums in the record's header. */
  Run = 4,
}

/** Rise of `aux` from block to block of a positional run. */
const AUX_STEP = 1023;
const KIND_LIST = 1;
const KIND_RANKED = 2;
/** A LIST of more entries than this becomes RANKED, if it covers {@linkcode RANKED_BLOCKS_MIN} blocks. */
const LIST_ENTRIES_MAX = 64;
/** Below this many blocks the bitmaps of a RANKED node cost more than they save. */
const RANKED_BLOCKS_MIN = 128;
/** A run of at least this many blocks over a RANKED chunk makes us look whether it is a LIST again. */
const RELIST_BLOCKS_MIN = 64;
/** …which it becomes with up to this many entries: fewer than the way back, so that it does not flap. */
const RELIST_ENTRIES_MAX = 32;
const BITMAP_WORDS = CHUNK_BLOCKS / 32;
const RANKED_HEAD_WORDS = 1 + 2 * BITMAP_WORDS;
const LEAF_CHUNKS = 1024;
const LEAF_SHIFT = 10;
/** Longest export of a chunk, in words. */
export const CHUNK_EXPORT_WORDS_MAX = RANKED_HEAD_WORDS + 2 * CHUNK_BLOCKS;

/** Lengths that an entry can have; longer or other runs take several. */
const LENGTHS: readonly number[] = [
  ...Array.from({ length: 16 }, (_, i) => i + 1),
  24,
  32,
  48,
  64,
  96,
  128,
  192,
  256,
  384,
  512,
  768,
  1024,
];
/** Longest code whose length is ≤ the index. */
const CODE_OF = new Uint8Array(CHUNK_BLOCKS + 1);
for (let length = 1, code = 0; length <= CHUNK_BLOCKS; length++) {
  if (code + 1 < LENGTHS.length && LENGTHS[code + 1] <= length) code++;
  CODE_OF[length] = code;
}
const LENGTH_OF = Uint16Array.from(LENGTHS);

/** Told which places no longer hold live data. */
export interface FreedListener {
  /** `count` blocks from `location` on are dead now. */
  blocksFreed(location: number, count: number): void;
}

/** Told of changes of layers that are watched, before they are made: chains.ts. Nothing may be changed in the call. */
export interface OwnersListener {
  /** Some block of the chunk becomes a hole in a layer that is watched, or is one no longer. */
  ownersChanged(layer: number, chunk: number): void;
  /** Blocks of a layer that is watched, none of them a hole, get another value: as {@linkcode Index.place}. */
  blocksPlaced(
    layer: number,
    chunk: number,
    block: number,
    count: number,
    location: number,
    aux: number,
    direct: number,
  ): void;
  /** A layer was made. */
  layerCreated(layer: number): void;
}

/** A layer, for those who ask for it often: see {@linkcode Index.watch}. */
export type LayerReference = Layer;

/** See {@linkcode Index.eachRun}. */
export type RunVisitor = (
  layer: number,
  chunk: number,
  block: number,
  location: number,
  count: number,
) => void;

class Layer {
  readonly leaves: (Uint32Array<ArrayBuffer> | null)[] = [];
  /** Data blocks. */
  blockCount = 0;
  /** Leaves with memory. */
  leafCount = 0;
  /** First leaf that a dropping layer may still have. */
  dropLeaf = 0;
  /** The listener is told who has its blocks. */
  isWatched = false;
  constructor(readonly id: number) {}
}

/** A chunk block by block, while two nodes are made one. */
class Spread {
  readonly present = new Uint8Array(CHUNK_BLOCKS);
  readonly locations = new Uint32Array(CHUNK_BLOCKS);
  readonly auxes = new Uint32Array(CHUNK_BLOCKS);
  readonly directs = new Uint8Array(CHUNK_BLOCKS);
  /** Data blocks put since {@linkcode begin}. */
  given = 0;
  /** Blocks that nothing was known of before. */
  filled = 0;
  #freed: FreedListener | null = null;
  #isBelow = false;
  /** Dead blocks that have not been told of. */
  #location = 0;
  #count = 0;

  /** @param isBelow what is there already stays; otherwise it dies */
  begin(freed: FreedListener | null, isBelow: boolean): void {
    this.#freed = freed;
    this.#isBelow = isBelow;
    this.given = 0;
    this.filled = 0;
  }

  /** Rising blocks. */
  put(block: number, location: number, aux: number, direct: number): void {
    if (this.present[block] === 0) this.filled++;
    else if (this.#isBelow) return;
    else if (this.locations[block] < LOCATION_END) {
      const dead = this.locations[block];
      if (this.#count > 0 && dead === this.#location + this.#count) this.#count++;
      else {
        this.end();
        this.#location = dead;
        this.#count = 1;
      }
    }
    if (location < LOCATION_END) this.given++;
    this.present[block] = 1;
    this.locations[block] = location;
    this.auxes[block] = aux;
    this.directs[block] = direct;
  }

  /** Tells of what is left to be told. */
  end(): void {
    if (this.#count > 0) this.#freed!.blocksFreed(this.#location, this.#count);
    this.#count = 0;
  }
}

/** See the head of the file. */
export class Index implements MoveListener {
  /** Data blocks of all layers. */
  blockCount = 0;
  /** Told of every block that dies by a change. Set it when the changes begin to count. */
  freed: FreedListener = { blocksFreed() {} };
  /** Told of changes of watched layers. */
  owners: OwnersListener | null = null;
  readonly #heap = new SlabHeap(this);
  readonly #layers = new Map<number, Layer>();
  #lastLayer: Layer | null = null;
  #leafCount = 0;
  /** A chunk's entries while it is rebuilt: up to 1024 before, two more after. */
  readonly #starts = new Uint16Array(CHUNK_BLOCKS + 2);
  readonly #lengths = new Uint16Array(CHUNK_BLOCKS + 2);
  readonly #locations = new Uint32Array(CHUNK_BLOCKS + 2);
  readonly #auxes = new Uint32Array(CHUNK_BLOCKS + 2);
  readonly #directs = new Uint8Array(CHUNK_BLOCKS + 2);
  #entries = 0;
  /** What one layer of several holds: {@linkcode describeChain}. */
  readonly #maps = [0, 1, 2].map(() => new Uint32Array(BITMAP_WORDS));
  /** Made when the first chunk is absorbed that needs it. */
  #spread: Spread | null = null;

  /** Bytes that the index holds, free lists and slack included. */
  get memoryBytes(): number {
    return this.#heap.memoryBytes + this.#leafCount * LEAF_CHUNKS * 4;
  }

  // ------------------------------------------------------------------------------------- layers

  /** Makes an empty layer, unless it is there already. */
  createLayer(id: number): void {
    if (this.#layers.has(id)) return;
    this.#layers.set(id, new Layer(id));
    this.owners?.layerCreated(id);
  }

  /** A layer by itself; null when it is not there. */
  reference(id: number): LayerReference | null {
    return this.#layers.get(id) ?? null;
  }

  /** The same, and its changes are told to the listener from now on. */
  watch(id: number): LayerReference | null {
    const layer = this.reference(id);
    if (layer !== null) layer.isWatched = true;
    return layer;
  }

  hasLayer(id: number): boolean {
    return this.#layers.has(id);
  }

  /** Ids of all layers, ascending. */
  layers(): number[] {
    return [...this.#layers.keys()].sort((a, b) => a - b);
  }

  /** Data blocks of one layer; 0 when it is not there. */
  layerBlockCount(id: number): number {
    return this.#layers.get(id)?.blockCount ?? 0;
  }

  /**
   * Drops up to `chunkBudget` chunks of a layer, and at the end the layer itself.
   *
   * @returns true when the layer is gone
   */
  dropLayerStep(id: number, chunkBudget: number): boolean {
    const layer = this.#layers.get(id);
    if (layer === undefined) return true;
    while (layer.dropLeaf < layer.leaves.length) {
      const leaf = layer.leaves[layer.dropLeaf];
      if (leaf !== null && leaf !== undefined) {
        for (let i = 0; i < LEAF_CHUNKS; i++) {
          if (leaf[i] === 0) continue;
          if (chunkBudget-- <= 0) return false;
          const chunk = (layer.dropLeaf << LEAF_SHIFT) + i;
          this.#change(layer, chunk, 0, CHUNK_BLOCKS, true, 0, 0, 0);
        }
        layer.leaves[layer.dropLeaf] = null;
        this.#leafCount--;
      }
      layer.dropLeaf++;
    }
    this.#layers.delete(id);
    if (this.#lastLayer === layer) this.#lastLayer = null;
    return true;
  }

  /** First chunk ≥ `from` of which the layer knows something, or −1. Changes in between do no harm. */
  nextChunk(id: number, from: number): number {
    const layer = this.#layers.get(id);
    if (layer === undefined) return -1;
    let chunk = from;
    for (let at = chunk >>> LEAF_SHIFT; at < layer.leaves.length; at++) {
      const leaf = layer.leaves[at];
      if (leaf !== null && leaf !== undefined) {
        for (let i = chunk & (LEAF_CHUNKS - 1); i < LEAF_CHUNKS; i++) {
          if (leaf[i] !== 0) return (at << LEAF_SHIFT) + i;
        }
      }
      chunk = (at + 1) << LEAF_SHIFT;
    }
    return -1;
  }

  // ------------------------------------------------------------------------------------ changes

  /**
   * The blocks are at `location` and on, their checksums in the record's header before them.
   *
   * @param page location of the header block that holds the first checksum
   * @param word its index among the 4-byte words of that block, 0…1023; the others follow
   */
  setRun(
    layer: number,
    chunk: number,
    block: number,
    count: number,
    location: number,
    page: number,
    word: number,
  ): void {
    const aux = (location - page) * 1024 - word;
    this.#change(this.#layer(layer), chunk, block, count, false, location, aux, 0);
  }

  /** The block is at `location` and has this checksum. */
  setDirect(
    layer: number,
    chunk: number,
    block: number,
    location: number,
    checksum: number,
  ): void {
    this.#change(this.#layer(layer), chunk, block, 1, false, location, checksum, 1);
  }

  /**
   * The blocks are at `location` and on, their checksums as the head of the file says: for copies of what an index has.
   *
   * @param aux of the block that lies `past` blocks before the first
   * @param direct 1: `aux` is the checksum, and it is one block
   */
  place(
    layer: number,
    chunk: number,
    block: number,
    count: number,
    location: number,
    aux: number,
    past: number,
    direct: number,
  ): void {
    const own = (aux + past * AUX_STEP) >>> 0;
    this.#change(this.#layer(layer), chunk, block, count, false, location, own, direct);
  }

  /** The blocks read as zeros. */
  zero(layer: number, chunk: number, block: number, count: number): void {
    this.#change(this.#layer(layer), chunk, block, count, false, ZERO, 0, 0);
  }

  /** The blocks are damaged. */
  poison(layer: number, chunk: number, block: number, count: number): void {
    this.#change(this.#layer(layer), chunk, block, count, false, POISON, 0, 0);
  }

  /** The blocks become holes. */
  free(layer: number, chunk: number, block: number, count: number): void {
    this.#change(this.#layer(layer), chunk, block, count, true, 0, 0, 0);
  }

  /**
   * Moves one block, if it is still where the caller thinks.
   *
   * @returns whether it was, and so was moved
   */
  relocate(
    layer: number,
    chunk: number,
    block: number,
    oldLocation: number,
    newLocation: number,
    aux: number,
    direct: number,
  ): boolean {
    if (this.locate(layer, chunk, block) !== oldLocation) return false;
    this.#change(this.#layer(layer), chunk, block, 1, false, newLocation, aux, direct);
    return true;
  }

  /**
   * Gives a chunk's holes in `into` what `from` has there, and leaves `from` nothing of the chunk. What `into` has already stays;
   * what `from` has of the same blocks is dead. Both layers must exist.
   *
   * Where `into` knows nothing of the chunk the node changes hands; otherwise one pass over both makes the new one.
   */
  absorb(into: number, from: number, chunk: number): void {
    const giving = this.#handle(from, chunk);
    if (giving === 0) return;
    const source = this.#layer(from), target = this.#layer(into);
    if (source.isWatched) this.owners?.ownersChanged(from, chunk);
    if (target.isWatched) this.owners?.ownersChanged(into, chunk);
    const taking = this.#handle(into, chunk);
    if (taking === 0) {
      const count = this.#dataBlocks(giving);
      this.#heap.setOwner(giving, into, chunk);
      this.#setHandle(target, chunk, giving);
      this.#setHandle(source, chunk, 0);
      source.blockCount -= count;
      target.blockCount += count;
      return;
    }
    const spread = this.#spread ??= new Spread();
    spread.present.fill(0);
    const given = this.#spreadOut(giving, spread, null, false);
    source.blockCount -= given;
    const before = target.blockCount;
    target.blockCount -= this.#dataBlocks(taking);
    this.#spreadOut(taking, spread, this.freed, false);
    target.blockCount += this.#loadSpread(spread);
    this.blockCount += target.blockCount - before - given;
    // Freeing may move the other one: its handle is the table's.
    this.#heap.free(giving);
    this.#setHandle(source, chunk, 0);
    this.#storeEntries(target, chunk, this.#handle(into, chunk));
  }

  /**
   * Makes a chunk, of which nothing is known here, what a read through layers of another index comes upon.
   *
   * @param into layer of this index
   * @param slot chunk of that layer
   * @param layers of `source`, newest first, watched there; null where one is not there
   * @param chunk of those
   */
  copyThrough(
    into: number,
    slot: number,
    source: Index,
    layers: readonly (LayerReference | null)[],
    chunk: number,
  ): void {
    const spread = this.#spread ??= new Spread();
    spread.present.fill(0);
    for (let i = 0, holes = CHUNK_BLOCKS; i < layers.length && holes > 0; i++) {
      const layer = layers[i];
      if (layer === null) continue;
      const handle = handleIn(layer, chunk);
      if (handle === 0) continue;
      source.#spreadOut(handle, spread, null, true);
      holes -= spread.filled;
    }
    const target = this.#layer(into);
    this.#count(target, this.#loadSpread(spread));
    this.#storeEntries(target, slot, 0);
  }

  /** Makes the scratch entries what `spread` has. Returns how many data blocks that are. */
  #loadSpread(spread: Spread): number {
    let blocks = 0;
    this.#entries = 0;
    for (let block = 0; block < CHUNK_BLOCKS; block++) {
      if (spread.present[block] === 0) continue;
      const location = spread.locations[block];
      if (location < LOCATION_END) blocks++;
      this.#append(block, 1, location, spread.auxes[block], spread.directs[block]);
    }
    return blocks;
  }

  /** Data blocks of a node. */
  #dataBlocks(handle: number): number {
    const page = SlabHeap.pageOf(handle), base = SlabHeap.wordOf(handle);
    const words = this.#heap.pages[page];
    const count = words[base] >>> 2;
    let blocks = 0;
    if ((words[base] & 3) === KIND_RANKED) {
      const first = base + RANKED_HEAD_WORDS;
      for (let at = first; at < first + count; at++) if (words[at] < LOCATION_END) blocks++;
      return blocks;
    }
    const keys = keysAt(base, listCapacity(this.#heap.capacity(handle)));
    const halves = this.#heap.halves[page];
    for (let i = 0; i < count; i++) {
      if (words[base + 1 + i] < LOCATION_END) blocks += LENGTH_OF[halves[keys + i] >>> 11];
    }
    return blocks;
  }

  /**
   * Writes a node's blocks over those in `spread`, or below them.
   *
   * @param freed told of data that is written over; null: there is none
   * @returns data blocks of the node
   */
  #spreadOut(
    handle: number,
    spread: Spread,
    freed: FreedListener | null,
    isBelow: boolean,
  ): number {
    const page = SlabHeap.pageOf(handle), base = SlabHeap.wordOf(handle);
    const words = this.#heap.pages[page];
    const count = words[base] >>> 2;
    spread.begin(freed, isBelow);
    if ((words[base] & 3) === KIND_RANKED) {
      const capacity = rankedCapacity(this.#heap.capacity(handle));
      let at = base + RANKED_HEAD_WORDS;
      for (let block = 0; block < CHUNK_BLOCKS; block++) {
        const word = base + 1 + (block >>> 5);
        if ((words[word] >>> (block & 31) & 1) === 0) continue;
        spread.put(
          block,
          words[at],
          words[at + capacity],
          words[word + BITMAP_WORDS] >>> (block & 31) & 1,
        );
        at++;
      }
    } else {
      const capacity = listCapacity(this.#heap.capacity(handle));
      const keys = keysAt(base, capacity), halves = this.#heap.halves[page];
      for (let i = 0; i < count; i++) {
        const key = halves[keys + i];
        const start = key & 1023, length = LENGTH_OF[key >>> 11];
        const location = words[base + 1 + i], aux = words[base + 1 + capacity + i];
        for (let past = 0; past < length; past++) {
          spread.put(start + past, shifted(location, past), aux + past * AUX_STEP, key >>> 10 & 1);
        }
      }
    }
    spread.end();
    return spread.given;
  }

  // ----------------------------------------------------------------------------------- look-ups

  /** Location of one block, {@linkcode ZERO}, {@linkcode POISON}, or {@linkcode HOLE}. */
  locate(layer: number, chunk: number, block: number): number {
    const handle = this.#handle(layer, chunk);
    if (handle === 0) return HOLE;
    const page = SlabHeap.pageOf(handle), base = SlabHeap.wordOf(handle);
    const words = this.#heap.pages[page];
    const header = words[base];
    if ((header & 3) === KIND_RANKED) {
      if ((words[base + 1 + (block >>> 5)] >>> (block & 31) & 1) === 0) return HOLE;
      return words[base + RANKED_HEAD_WORDS + rankOf(words, base, header >>> 2, block)];
    }
    const capacity = listCapacity(this.#heap.capacity(handle));
    const halves = this.#heap.halves[page];
    const keys = keysAt(base, capacity);
    const at = lastAtOrBefore(halves, keys, header >>> 2, block);
    if (at < 0) return HOLE;
    const key = halves[keys + at];
    const past = block - (key & 1023);
    if (past >= LENGTH_OF[key >>> 11]) return HOLE;
    const location = words[base + 1 + at];
    return location < LOCATION_END ? location + past : location;
  }

  // What `find` found. Valid until the next call or change.
  /** What the run is. */
  kind: IndexKind = IndexKind.Absent;
  /** Location of its first block, for Direct and Run. */
  location = 0;
  /** Direct: checksum of its first block. */
  checksum = 0;
  /** Run: location of the header block that holds the checksum of the first block… */
  page = 0;
  /** …and the index of the 4-byte word there, 0…1023. The following words belong to the following blocks. */
  word = 0;
  #foundWords: Uint32Array = EMPTY;
  #foundAux = 0;

  /**
   * Looks up the longest run from `block` on that is of one kind, lies in one piece and, for Run, has its checksums in one
   * piece.
   *
   * @param count blocks of interest, ≥ 1
   * @returns blocks of the run, 1…`count`; the fields say what they are
   */
  find(layer: number, chunk: number, block: number, count: number): number {
    return this.#findIn(this.#handle(layer, chunk), block, count);
  }

  /** As {@linkcode find}, in a layer that is watched; one that has been dropped since has nothing. */
  findOf(layer: LayerReference, chunk: number, block: number, count: number): number {
    return this.#findIn(handleIn(layer, chunk), block, count);
  }

  #findIn(handle: number, block: number, count: number): number {
    if (handle === 0) {
      this.kind = IndexKind.Absent;
      return count;
    }
    const page = SlabHeap.pageOf(handle), base = SlabHeap.wordOf(handle);
    const words = this.#heap.pages[page];
    const nodeWords = this.#heap.capacity(handle);
    return (words[base] & 3) === KIND_RANKED
      ? this.#findRanked(words, base, rankedCapacity(nodeWords), block, count)
      : this.#findList(
        words,
        this.#heap.halves[page],
        base,
        listCapacity(nodeWords),
        block,
        count,
      );
  }

  /** What `find` says of a hole. */
  miss(): void {
    this.kind = IndexKind.Absent;
  }

  /** As {@linkcode hasChunk}, of a layer that is watched; one that has been dropped since has nothing. */
  hasChunkOf(layer: LayerReference, chunk: number): boolean {
    return handleIn(layer, chunk) !== 0;
  }

  /** After a Direct run: checksum of its block `index`. */
  checksumAt(index: number): number {
    return this.#foundWords[this.#foundAux + index];
  }

  #findList(
    words: Uint32Array,
    halves: Uint16Array,
    base: number,
    capacity: number,
    block: number,
    count: number,
  ): number {
    const entries = words[base] >>> 2;
    const keys = keysAt(base, capacity);
    const at = lastAtOrBefore(halves, keys, entries, block);
    const end = block + count;
    let stop = 0;
    if (at >= 0) {
      const key = halves[keys + at];
      stop = (key & 1023) + LENGTH_OF[key >>> 11];
    }
    if (stop <= block) {
      this.kind = IndexKind.Absent;
      const next = at + 1 < entries ? halves[keys + at + 1] & 1023 : end;
      return Math.min(next, end) - block;
    }
    const key = halves[keys + at];
    const past = block - (key & 1023);
    const location = words[base + 1 + at];
    const aux = words[base + 1 + capacity + at];
    this.#found(location, past, aux, key >>> 10 & 1);
    this.#foundWords = words;
    this.#foundAux = base + 1 + capacity + at;
    // An odd length is stored as several entries, neighbouring direct ones are entries each: join them.
    for (let next = at + 1; next < entries && stop < end; next++) {
      const nextKey = halves[keys + next];
      if ((nextKey & 1023) !== stop) break;
      const isNext = this.#goesOn(
        stop - block,
        words[base + 1 + next],
        words[base + 1 + capacity + next],
        nextKey >>> 10 & 1,
      );
      if (!isNext) break;
      stop += LENGTH_OF[nextKey >>> 11];
    }
    return Math.min(stop, end) - block;
  }

  #findRanked(
    words: Uint32Array,
    base: number,
    capacity: number,
    block: number,
    count: number,
  ): number {
    const end = block + count;
    const present = base + 1, directs = base + 1 + BITMAP_WORDS;
    let b = block + 1;
    if ((words[present + (block >>> 5)] >>> (block & 31) & 1) === 0) {
      this.kind = IndexKind.Absent;
      while (b < end && (words[present + (b >>> 5)] >>> (b & 31) & 1) === 0) b++;
      return b - block;
    }
    let at = base + RANKED_HEAD_WORDS + rankOf(words, base, words[base] >>> 2, block);
    this.#found(
      words[at],
      0,
      words[at + capacity],
      words[directs + (block >>> 5)] >>> (block & 31) & 1,
    );
    this.#foundWords = words;
    this.#foundAux = at + capacity;
    for (; b < end; b++) {
      if ((words[present + (b >>> 5)] >>> (b & 31) & 1) === 0) break;
      at++;
      const direct = words[directs + (b >>> 5)] >>> (b & 31) & 1;
      if (!this.#goesOn(b - block, words[at], words[at + capacity], direct)) break;
    }
    return b - block;
  }

  #found(location: number, past: number, aux: number, direct: number): void {
    if (location >= LOCATION_END) {
      this.kind = location === ZERO ? IndexKind.Zero : IndexKind.Poison;
      return;
    }
    this.location = location + past;
    if (direct === 1) {
      this.kind = IndexKind.Direct;
      this.checksum = aux;
      return;
    }
    this.kind = IndexKind.Run;
    const distance = (aux + past * AUX_STEP) >>> 0;
    const blocks = (distance + 1023) >>> 10;
    this.page = this.location - blocks;
    this.word = (blocks << 10) - distance;
  }

  /** Whether an entry goes on where the run found so far, `length` blocks long, ends. */
  #goesOn(length: number, location: number, aux: number, direct: number): boolean {
    switch (this.kind) {
      case IndexKind.Zero:
        return location === ZERO;
      case IndexKind.Poison:
        return location === POISON;
      case IndexKind.Direct:
        return direct === 1 && location === this.location + length;
      default: {
        if (direct === 1 || location !== this.location + length) return false;
        return location * 1024 - aux === this.page * 1024 + this.word + length;
      }
    }
  }

  /**
   * Visits every run of places in the index: by layer, chunk and block. A run is as long as blocks and locations go on
   * together, however they are verified. For start-up and background work.
   *
   * @param visit called with layer, chunk, first block, its location, and the number of blocks
   */
  eachRun(visit: RunVisitor): void {
    for (const layer of this.layers()) {
      for (let chunk = this.nextChunk(layer, 0); chunk >= 0;) {
        this.eachRunOf(layer, chunk, visit);
        chunk = this.nextChunk(layer, chunk + 1);
      }
    }
  }

  /** Visits the runs of one chunk, as {@linkcode eachRun} does. */
  eachRunOf(layer: number, chunk: number, visit: RunVisitor): void {
    const handle = this.#handle(layer, chunk);
    if (handle === 0) return;
    const words = this.#heap.pages[SlabHeap.pageOf(handle)];
    const base = SlabHeap.wordOf(handle);
    if ((words[base] & 3) === KIND_RANKED) {
      visitRanked(words, base, layer, chunk, visit);
      return;
    }
    for (let block = 0; block < CHUNK_BLOCKS;) {
      const count = this.find(layer, chunk, block, CHUNK_BLOCKS - block);
      if (this.kind === IndexKind.Direct || this.kind === IndexKind.Run) {
        visit(layer, chunk, block, this.location, count);
      }
      block += count;
    }
  }

  /** True when something is known of the chunk: data, zeros or damage. */
  hasChunk(layer: number, chunk: number): boolean {
    return this.#handle(layer, chunk) !== 0;
  }

  /**
   * First chunk ≥ `from` of which the layer may know something, or {@linkcode CHUNKS_MAX}; looks at `leavesMax` leaves of
   * 1024 chunks and then says where to go on.
   */
  skip(id: number, from: number, leavesMax: number): number {
    const leaves = this.#layers.get(id)?.leaves;
    if (leaves === undefined) return CHUNKS_MAX;
    let at = from >>> LEAF_SHIFT;
    const end = Math.min(leaves.length, at + leavesMax);
    for (; at < end; at++) if (leaves[at] !== null) return Math.max(from, at * LEAF_CHUNKS);
    return at >= leaves.length ? CHUNKS_MAX : at * LEAF_CHUNKS;
  }

  /**
   * Says what a chunk of this very layer holds, block by block: bit b of word w stands for block 32 w + b. What is in none of
   * the three maps is a hole.
   *
   * @param data set where there is data, 32 words, the caller's, overwritten; so are the others
   * @param zeros set where the blocks read as zeros
   * @param poisoned set where the data is known to be damaged
   * @returns blocks of data
   */
  describe(
    layer: number,
    chunk: number,
    data: Uint32Array,
    zeros: Uint32Array,
    poisoned: Uint32Array,
  ): number {
    data.fill(0, 0, BITMAP_WORDS);
    zeros.fill(0, 0, BITMAP_WORDS);
    poisoned.fill(0, 0, BITMAP_WORDS);
    const handle = this.#handle(layer, chunk);
    if (handle === 0) return 0;
    const page = SlabHeap.pageOf(handle), base = SlabHeap.wordOf(handle);
    const words = this.#heap.pages[page];
    const count = words[base] >>> 2;
    let blocks = 0;
    if ((words[base] & 3) === KIND_RANKED) {
      let at = base + RANKED_HEAD_WORDS;
      for (let group = 0; group < BITMAP_WORDS; group++) {
        for (let left = words[base + 1 + group]; left !== 0; left &= left - 1) {
          const location = words[at++];
          const map = location < LOCATION_END ? data : location === ZERO ? zeros : poisoned;
          map[group] |= left & -left;
          if (map === data) blocks++;
        }
      }
      return blocks;
    }
    const capacity = listCapacity(this.#heap.capacity(handle));
    const halves = this.#heap.halves[page];
    const keys = keysAt(base, capacity);
    for (let i = 0; i < count; i++) {
      const key = halves[keys + i];
      const location = words[base + 1 + i];
      const length = LENGTH_OF[key >>> 11];
      const map = location < LOCATION_END ? data : location === ZERO ? zeros : poisoned;
      setBits(map, key & 1023, length);
      if (map === data) blocks += length;
    }
    return blocks;
  }

  /**
   * The same of what a read through several layers, newest first, comes upon: of each block what the first layer says that is no
   * hole there.
   */
  describeChain(
    layers: readonly number[],
    chunk: number,
    data: Uint32Array,
    zeros: Uint32Array,
    poisoned: Uint32Array,
  ): number {
    data.fill(0, 0, BITMAP_WORDS);
    zeros.fill(0, 0, BITMAP_WORDS);
    poisoned.fill(0, 0, BITMAP_WORDS);
    const maps = this.#maps;
    let open = CHUNK_BLOCKS;
    for (let i = 0; i < layers.length && open > 0; i++) {
      if (!this.hasChunk(layers[i], chunk)) continue;
      this.describe(layers[i], chunk, maps[0], maps[1], maps[2]);
      open = 0;
      for (let w = 0; w < BITMAP_WORDS; w++) {
        const holes = ~(data[w] | zeros[w] | poisoned[w]);
        data[w] |= maps[0][w] & holes;
        zeros[w] |= maps[1][w] & holes;
        poisoned[w] |= maps[2][w] & holes;
        open += popcount(~(data[w] | zeros[w] | poisoned[w]));
      }
    }
    let blocks = 0;
    for (let w = 0; w < BITMAP_WORDS; w++) blocks += popcount(data[w]);
    return blocks;
  }

  // ---------------------------------------------------------------------------- export, import

  /**
   * Writes one chunk for a checkpoint: the node without its slack. See the head of the file for the layout.
   *
   * @param target room for {@linkcode CHUNK_EXPORT_WORDS_MAX} words at `offset`
   * @returns words written; 0 for a chunk of which nothing is known
   */
  exportChunk(layer: number, chunk: number, target: Uint32Array, offset: number): number {
    const handle = this.#handle(layer, chunk);
    if (handle === 0) return 0;
    const page = SlabHeap.pageOf(handle), base = SlabHeap.wordOf(handle);
    const words = this.#heap.pages[page];
    const header = words[base];
    const count = header >>> 2;
    target[offset] = header;
    let at = offset + 1;
    if ((header & 3) === KIND_RANKED) {
      const capacity = rankedCapacity(this.#heap.capacity(handle));
      for (let i = 1; i < RANKED_HEAD_WORDS; i++) target[at++] = words[base + i];
      const first = base + RANKED_HEAD_WORDS;
      for (let i = 0; i < count; i++) target[at++] = words[first + i];
      for (let i = 0; i < count; i++) target[at++] = words[first + capacity + i];
      return at - offset;
    }
    const capacity = listCapacity(this.#heap.capacity(handle));
    for (let i = 0; i < count; i++) target[at++] = words[base + 1 + i];
    for (let i = 0; i < count; i++) target[at++] = words[base + 1 + capacity + i];
    const halves = this.#heap.halves[page];
    const keys = keysAt(base, capacity);
    for (let i = 0; i < count; i += 2) {
      const high = i + 1 < count ? halves[keys + i + 1] : 0;
      target[at++] = (halves[keys + i] | high << 16) >>> 0;
    }
    return at - offset;
  }

  /**
   * Takes a chunk in that {@linkcode exportChunk} wrote. The chunk must be unknown so far; the layer must exist.
   *
   * @param end end of the words that may be read
   * @param locationEnd locations must lie below
   * @returns words read, or −1 when they are not a valid chunk (then nothing has changed)
   */
  importChunk(
    layer: number,
    chunk: number,
    source: Uint32Array,
    offset: number,
    end: number,
    locationEnd: number,
  ): number {
    if (offset >= end || this.#handle(layer, chunk) !== 0) return -1;
    const header = source[offset];
    const count = header >>> 2;
    if (count === 0 || count > CHUNK_BLOCKS) return -1;
    return (header & 3) === KIND_RANKED
      ? this.#importRanked(layer, chunk, source, offset, end, locationEnd, count)
      : (header & 3) === KIND_LIST
      ? this.#importList(layer, chunk, source, offset, end, locationEnd, count)
      : -1;
  }

  #importList(
    layer: number,
    chunk: number,
    source: Uint32Array,
    offset: number,
    end: number,
    locationEnd: number,
    count: number,
  ): number {
    const size = 1 + 2 * count + ((count + 1) >>> 1);
    if (offset + size > end) return -1;
    let next = 0;
    for (let i = 0; i < count; i++) {
      const pair = source[offset + 1 + 2 * count + (i >>> 1)];
      const key = (i & 1) === 0 ? pair & 0xffff : pair >>> 16;
      const code = key >>> 11;
      const start = key & 1023;
      const direct = key >>> 10 & 1;
      const location = source[offset + 1 + i];
      if (code >= LENGTHS.length || start < next) return -1;
      const length = LENGTH_OF[code];
      next = start + length;
      if (next > CHUNK_BLOCKS || (direct === 1 && length !== 1)) return -1;
      if (location < LOCATION_END && location + length > locationEnd) return -1;
      this.#starts[i] = start;
      this.#lengths[i] = length;
      this.#locations[i] = location;
      this.#auxes[i] = source[offset + 1 + count + i];
      this.#directs[i] = direct;
    }
    this.#entries = count;
    const table = this.#layer(layer);
    for (let i = 0; i < count; i++) {
      if (this.#locations[i] < LOCATION_END) this.#count(table, this.#lengths[i]);
    }
    this.#storeEntries(table, chunk, 0);
    return size;
  }

  #importRanked(
    layer: number,
    chunk: number,
    source: Uint32Array,
    offset: number,
    end: number,
    locationEnd: number,
    count: number,
  ): number {
    const size = RANKED_HEAD_WORDS + 2 * count;
    if (offset + size > end) return -1;
    let present = 0;
    for (let i = 1; i <= BITMAP_WORDS; i++) {
      present += popcount(source[offset + i]);
      if ((source[offset + BITMAP_WORDS + i] & ~source[offset + i]) !== 0) return -1;
    }
    if (present !== count) return -1;
    let blocks = 0;
    for (let i = 0; i < count; i++) {
      const location = source[offset + RANKED_HEAD_WORDS + i];
      if (location >= LOCATION_END) continue;
      if (location >= locationEnd) return -1;
      blocks++;
    }
    const handle = this.#heap.allocate(RANKED_HEAD_WORDS + 2 * count, layer, chunk);
    const words = this.#heap.pages[SlabHeap.pageOf(handle)];
    const base = SlabHeap.wordOf(handle);
    const capacity = rankedCapacity(this.#heap.capacity(handle));
    for (let i = 0; i < RANKED_HEAD_WORDS; i++) words[base + i] = source[offset + i];
    for (let i = 0; i < count; i++) {
      words[base + RANKED_HEAD_WORDS + i] = source[offset + RANKED_HEAD_WORDS + i];
      words[base + RANKED_HEAD_WORDS + capacity + i] =
        source[offset + RANKED_HEAD_WORDS + count + i];
    }
    const table = this.#layer(layer);
    this.#count(table, blocks);
    this.#setHandle(table, chunk, handle);
    return size;
  }

  /**
   * Begins an image of everything, for a checkpoint. Changes made while it is written may or may not be in it: what replay
   * repeats makes up for that.
   *
   * @param layers of these layers: those that the checkpoint names
   */
  beginImage(layers: readonly number[] = this.layers()): IndexImage {
    return new IndexImage(this, layers);
  }

  /**
   * Bytes that an image takes at the most as things are: a block of the heap has two words more than its node, which are those
   * of layer and chunk, and is never shorter than the node's export.
   */
  get imageBytes(): number {
    return this.#heap.usedBytes;
  }

  /**
   * Takes one part of an image in. Makes the layers that it names.
   *
   * @param words where it lies
   * @param byteOffset its start, a multiple of 4
   * @param byteLength its length
   * @param items chunks in it
   * @returns false when it is not a valid part; some of it may be in the index then
   */
  loadImage(words: Uint32Array, byteOffset: number, byteLength: number, items: number): boolean {
    let at = byteOffset >>> 2;
    const end = at + (byteLength >>> 2);
    for (let i = 0; i < items; i++) {
      if (at + 2 >= end) return false;
      this.createLayer(words[at]);
      const size = this.importChunk(words[at], words[at + 1], words, at + 2, end, LOCATION_END);
      if (size < 0) return false;
      at += 2 + size;
    }
    return at === end;
  }

  // --------------------------------------------------------------------------------- internals

  #layer(id: number): Layer {
    const last = this.#lastLayer;
    if (last !== null && last.id === id) return last;
    const layer = this.#layers.get(id);
    if (layer === undefined) throw new Error(`index: there is no layer ${id}`);
    this.#lastLayer = layer;
    return layer;
  }

  /** Handle of a chunk's node; 0 when there is none, or no such layer. */
  #handle(id: number, chunk: number): number {
    let layer = this.#lastLayer;
    if (layer === null || layer.id !== id) {
      layer = this.#layers.get(id) ?? null;
      if (layer === null) return 0;
      this.#lastLayer = layer;
    }
    return handleIn(layer, chunk);
  }

  /** {@inheritDoc MoveListener.blockMoved} */
  blockMoved(layer: number, chunk: number, handle: number): void {
    this.#layers.get(layer)!.leaves[chunk >>> LEAF_SHIFT]![chunk & (LEAF_CHUNKS - 1)] = handle;
  }

  #setHandle(layer: Layer, chunk: number, handle: number): void {
    const at = chunk >>> LEAF_SHIFT;
    let leaf = layer.leaves[at];
    if (leaf === null || leaf === undefined) {
      if (handle === 0) return;
      while (layer.leaves.length < at) layer.leaves.push(null);
      leaf = new Uint32Array(LEAF_CHUNKS);
      layer.leaves[at] = leaf;
      this.#leafCount++;
    }
    leaf[chunk & (LEAF_CHUNKS - 1)] = handle;
  }

  #count(layer: Layer, blocks: number): void {
    layer.blockCount += blocks;
    this.blockCount += blocks;
  }

  #displace(layer: Layer, location: number, count: number): void {
    if (location >= LOCATION_END) return;
    this.#count(layer, -count);
    this.freed.blocksFreed(location, count);
  }

  /** True when none of the blocks is a hole. */
  #hasAll(layer: Layer, chunk: number, block: number, count: number): boolean {
    for (const end = block + count; block < end;) {
      const run = this.find(layer.id, chunk, block, end - block);
      if (this.kind === IndexKind.Absent) return false;
      block += run;
    }
    return true;
  }

  /** Gives the blocks a new value, or none (`isHole`). */
  #change(
    layer: Layer,
    chunk: number,
    block: number,
    count: number,
    isHole: boolean,
    location: number,
    aux: number,
    direct: number,
  ): void {
    if (layer.isWatched) {
      // Who moves a block has it before and after.
      if (isHole || !this.#hasAll(layer, chunk, block, count)) {
        this.owners?.ownersChanged(layer.id, chunk);
      } else this.owners?.blocksPlaced(layer.id, chunk, block, count, location, aux, direct);
    }
    if (!isHole && location < LOCATION_END) this.#count(layer, count);
    const handle = handleIn(layer, chunk);
    if (handle === 0) {
      if (isHole) return;
      this.#entries = 0;
      this.#append(block, count, location, aux, direct);
      this.#storeEntries(layer, chunk, 0);
      return;
    }
    const page = SlabHeap.pageOf(handle), base = SlabHeap.wordOf(handle);
    const words = this.#heap.pages[page];
    if ((words[base] & 3) === KIND_RANKED) {
      this.#changeRanked(layer, chunk, handle, block, count, isHole, location, aux, direct);
      return;
    }
    const capacity = listCapacity(this.#heap.capacity(handle));
    if (
      count === 1 && !isHole &&
      this.#replaceOne(layer, page, base, capacity, block, location, aux, direct)
    ) return;
    this.#loadList(page, base, capacity, block, count, isHole, location, aux, direct, layer);
    this.#storeEntries(layer, chunk, handle);
  }

  /** Fast way for a single block that is an entry of its own already. */
  #replaceOne(
    layer: Layer,
    page: number,
    base: number,
    capacity: number,
    block: number,
    location: number,
    aux: number,
    direct: number,
  ): boolean {
    const words = this.#heap.pages[page], halves = this.#heap.halves[page];
    const keys = keysAt(base, capacity);
    const at = lastAtOrBefore(halves, keys, words[base] >>> 2, block);
    // Without a checksum of its own it might have to join its neighbours: leave that to the slow way.
    if (at < 0 || direct === 0 || (halves[keys + at] & 0xfbff) !== block) return false;
    this.#displace(layer, words[base + 1 + at], 1);
    words[base + 1 + at] = location;
    words[base + 1 + capacity + at] = aux;
    halves[keys + at] = block | 1 << 10;
    return true;
  }

  /** Loads a LIST into the scratch entries with the change applied. */
  #loadList(
    page: number,
    base: number,
    capacity: number,
    block: number,
    count: number,
    isHole: boolean,
    location: number,
    aux: number,
    direct: number,
    layer: Layer,
  ): void {
    const words = this.#heap.pages[page], halves = this.#heap.halves[page];
    const keys = keysAt(base, capacity);
    const entries = words[base] >>> 2;
    const end = block + count;
    let isPlaced = isHole;
    this.#entries = 0;
    for (let i = 0; i < entries; i++) {
      const key = halves[keys + i];
      const start = key & 1023;
      const stop = start + LENGTH_OF[key >>> 11];
      const oldLocation = words[base + 1 + i];
      const oldAux = words[base + 1 + capacity + i];
      const oldDirect = key >>> 10 & 1;
      if (!isPlaced && start >= block) {
        // Before an entry that begins inside or behind; what begins earlier comes first.
        this.#append(block, count, location, aux, direct);
        isPlaced = true;
      }
      if (stop <= block || start >= end) {
        this.#append(start, stop - start, oldLocation, oldAux, oldDirect);
        continue;
      }
      if (start < block) {
        this.#append(start, block - start, oldLocation, oldAux, oldDirect);
        if (!isPlaced) {
          this.#append(block, count, location, aux, direct);
          isPlaced = true;
        }
      }
      const from = Math.max(start, block), to = Math.min(stop, end);
      this.#displace(layer, shifted(oldLocation, from - start), to - from);
      if (stop > end) {
        const past = end - start;
        this.#append(
          end,
          stop - end,
          shifted(oldLocation, past),
          (oldAux + past * AUX_STEP) >>> 0,
          oldDirect,
        );
      }
    }
    if (!isPlaced) this.#append(block, count, location, aux, direct);
  }

  /** Appends to the scratch entries, joining what goes on. */
  #append(start: number, length: number, location: number, aux: number, direct: number): void {
    const last = this.#entries - 1;
    if (last >= 0 && this.#starts[last] + this.#lengths[last] === start) {
      const before = this.#locations[last];
      const isSame = location >= LOCATION_END
        ? before === location
        : direct === 0 && this.#directs[last] === 0 && before < LOCATION_END &&
          before + this.#lengths[last] === location &&
          ((this.#auxes[last] + this.#lengths[last] * AUX_STEP) >>> 0) === aux;
      if (isSame) {
        this.#lengths[last] += length;
        return;
      }
    }
    const at = this.#entries++;
    this.#starts[at] = start;
    this.#lengths[at] = length;
    this.#locations[at] = location;
    this.#auxes[at] = location >= LOCATION_END ? 0 : aux;
    this.#directs[at] = location >= LOCATION_END ? 0 : direct;
  }

  /** Makes the scratch entries the chunk's node, in whichever form fits. */
  #storeEntries(layer: Layer, chunk: number, oldHandle: number): void {
    if (this.#entries === 0) {
      if (oldHandle !== 0) this.#heap.free(oldHandle);
      this.#setHandle(layer, chunk, 0);
      return;
    }
    let coded = 0, present = 0;
    for (let i = 0; i < this.#entries; i++) {
      present += this.#lengths[i];
      for (let left = this.#lengths[i]; left > 0; coded++) left -= LENGTH_OF[CODE_OF[left]];
    }
    if (coded > LIST_ENTRIES_MAX && present >= RANKED_BLOCKS_MIN) {
      this.#storeRanked(layer, chunk, oldHandle, present);
      return;
    }
    const wanted = 1 + Math.ceil(coded * 5 / 2);
    let handle = oldHandle;
    if (handle === 0 || this.#heap.capacity(handle) !== SlabHeap.capacityOf(wanted)) {
      if (handle !== 0) this.#heap.free(handle);
      handle = this.#heap.allocate(wanted, layer.id, chunk);
      this.#setHandle(layer, chunk, handle);
    }
    const page = SlabHeap.pageOf(handle), base = SlabHeap.wordOf(handle);
    const words = this.#heap.pages[page], halves = this.#heap.halves[page];
    const capacity = listCapacity(this.#heap.capacity(handle));
    const keys = keysAt(base, capacity);
    words[base] = KIND_LIST | coded << 2;
    let at = 0;
    for (let i = 0; i < this.#entries; i++) {
      const location = this.#locations[i], aux = this.#auxes[i];
      for (let past = 0; past < this.#lengths[i]; at++) {
        const code = CODE_OF[this.#lengths[i] - past];
        words[base + 1 + at] = shifted(location, past);
        words[base + 1 + capacity + at] = location >= LOCATION_END ? 0 : aux + past * AUX_STEP;
        halves[keys + at] = (this.#starts[i] + past) | this.#directs[i] << 10 | code << 11;
        past += LENGTH_OF[code];
      }
    }
  }

  #storeRanked(layer: Layer, chunk: number, oldHandle: number, present: number): void {
    if (oldHandle !== 0) this.#heap.free(oldHandle);
    const handle = this.#heap.allocate(RANKED_HEAD_WORDS + 2 * present, layer.id, chunk);
    this.#setHandle(layer, chunk, handle);
    const words = this.#heap.pages[SlabHeap.pageOf(handle)];
    const base = SlabHeap.wordOf(handle);
    const capacity = rankedCapacity(this.#heap.capacity(handle));
    words[base] = KIND_RANKED | present << 2;
    words.fill(0, base + 1, base + RANKED_HEAD_WORDS);
    let at = base + RANKED_HEAD_WORDS;
    for (let i = 0; i < this.#entries; i++) {
      const location = this.#locations[i], aux = this.#auxes[i], direct = this.#directs[i];
      for (let past = 0; past < this.#lengths[i]; past++) {
        const block = this.#starts[i] + past;
        words[base + 1 + (block >>> 5)] |= 1 << (block & 31);
        if (direct === 1) words[base + 1 + BITMAP_WORDS + (block >>> 5)] |= 1 << (block & 31);
        words[at] = shifted(location, past);
        words[at + capacity] = location >= LOCATION_END ? 0 : aux + past * AUX_STEP;
        at++;
      }
    }
  }

  #changeRanked(
    layer: Layer,
    chunk: number,
    handle: number,
    block: number,
    count: number,
    isHole: boolean,
    location: number,
    aux: number,
    direct: number,
  ): void {
    let base = SlabHeap.wordOf(handle);
    let words = this.#heap.pages[SlabHeap.pageOf(handle)];
    const present = words[base] >>> 2;
    const rank = rankOf(words, base, present, block);
    let inside = 0;
    for (let b = block; b < block + count; b++) {
      if ((words[base + 1 + (b >>> 5)] >>> (b & 31) & 1) === 0) continue;
      this.#displace(layer, words[base + RANKED_HEAD_WORDS + rank + inside], 1);
      inside++;
    }
    const placed = isHole ? 0 : count;
    const after = present - inside + placed;
    if (after === 0) {
      this.#heap.free(handle);
      this.#setHandle(layer, chunk, 0);
      return;
    }
    if (after !== present) {
      handle = this.#resizeRanked(layer, chunk, handle, present, rank, inside, placed);
      base = SlabHeap.wordOf(handle);
      words = this.#heap.pages[SlabHeap.pageOf(handle)];
    }
    const capacity = rankedCapacity(this.#heap.capacity(handle));
    const first = base + RANKED_HEAD_WORDS + rank;
    for (let i = 0; i < count; i++) {
      const b = block + i;
      const word = base + 1 + (b >>> 5), bit = 1 << (b & 31);
      if (isHole) {
        words[word] &= ~bit;
        words[word + BITMAP_WORDS] &= ~bit;
        continue;
      }
      words[word] |= bit;
      if (direct === 1) words[word + BITMAP_WORDS] |= bit;
      else words[word + BITMAP_WORDS] &= ~bit;
      words[first + i] = shifted(location, i);
      words[first + capacity + i] = location >= LOCATION_END ? 0 : aux + i * AUX_STEP;
    }
    const isSparse = after < RANKED_BLOCKS_MIN / 2;
    if (isSparse || count >= RELIST_BLOCKS_MIN) this.#relist(layer, chunk, handle, isSparse);
  }

  /** Makes room for `placed` entries where `inside` are now, at `rank`; in a new node where the size asks for it. */
  #resizeRanked(
    layer: Layer,
    chunk: number,
    handle: number,
    present: number,
    rank: number,
    inside: number,
    placed: number,
  ): number {
    const after = present - inside + placed;
    const wanted = RANKED_HEAD_WORDS + 2 * after;
    const oldWords = this.#heap.pages[SlabHeap.pageOf(handle)];
    const oldBase = SlabHeap.wordOf(handle);
    const oldCapacity = rankedCapacity(this.#heap.capacity(handle));
    const oldFirst = oldBase + RANKED_HEAD_WORDS;
    if (SlabHeap.capacityOf(wanted) === this.#heap.capacity(handle)) {
      const to = oldFirst + rank + placed, from = oldFirst + rank + inside;
      const end = oldFirst + present;
      oldWords.copyWithin(to, from, end);
      oldWords.copyWithin(to + oldCapacity, from + oldCapacity, end + oldCapacity);
      oldWords[oldBase] = KIND_RANKED | after << 2;
      return handle;
    }
    const next = this.#heap.allocate(wanted, layer.id, chunk);
    const words = this.#heap.pages[SlabHeap.pageOf(next)];
    const base = SlabHeap.wordOf(next);
    const capacity = rankedCapacity(this.#heap.capacity(next));
    const first = base + RANKED_HEAD_WORDS;
    words[base] = KIND_RANKED | after << 2;
    for (let i = 1; i < RANKED_HEAD_WORDS; i++) words[base + i] = oldWords[oldBase + i];
    for (let i = 0; i < rank; i++) {
      words[first + i] = oldWords[oldFirst + i];
      words[first + capacity + i] = oldWords[oldFirst + oldCapacity + i];
    }
    for (let from = rank + inside, to = rank + placed; from < present; from++, to++) {
      words[first + to] = oldWords[oldFirst + from];
      words[first + capacity + to] = oldWords[oldFirst + oldCapacity + from];
    }
    this.#heap.free(handle);
    this.#setHandle(layer, chunk, next);
    return next;
  }

  /** Turns a RANKED chunk into a LIST, if few entries suffice or few blocks are left. */
  #relist(layer: Layer, chunk: number, handle: number, always: boolean): void {
    const base = SlabHeap.wordOf(handle);
    const words = this.#heap.pages[SlabHeap.pageOf(handle)];
    const capacity = rankedCapacity(this.#heap.capacity(handle));
    this.#entries = 0;
    let at = base + RANKED_HEAD_WORDS;
    for (let b = 0; b < CHUNK_BLOCKS; b++) {
      if ((words[base + 1 + (b >>> 5)] >>> (b & 31) & 1) === 0) continue;
      const direct = words[base + 1 + BITMAP_WORDS + (b >>> 5)] >>> (b & 31) & 1;
      this.#append(b, 1, words[at], words[at + capacity], direct);
      if (!always && this.#entries > RELIST_ENTRIES_MAX) return;
      at++;
    }
    this.#storeEntries(layer, chunk, handle);
  }
}

/** Walks all chunks of an index and writes them out, part by part. See {@linkcode Index.beginImage}. */
export class IndexImage {
  /** Chunks in the part that {@linkcode fill} wrote last. */
  items = 0;
  readonly #index: Index;
  readonly #layers: readonly number[];
  #layer = 0;
  #chunk = 0;

  constructor(index: Index, layers: readonly number[]) {
    this.#index = index;
    this.#layers = layers;
  }

  /** Layer that it goes on with: all before it, and of it all chunks before `chunk`, are through; −1 at the end. */
  get layer(): number {
    return this.#layer < this.#layers.length ? this.#layers[this.#layer] : -1;
  }
  /** See {@linkcode layer}. */
  get chunk(): number {
    return this.#chunk;
  }

  /**
   * Writes the next part: whole chunks, each as layer, chunk and its export.
   *
   * @param words where to
   * @param byteOffset start, a multiple of 4
   * @param byteLengthMax room there, at least 8 bytes more than the longest export
   * @returns bytes written; 0 at the end
   */
  fill(words: Uint32Array, byteOffset: number, byteLengthMax: number): number {
    const start = byteOffset >>> 2;
    const end = start + (byteLengthMax >>> 2);
    let at = start;
    this.items = 0;
    while (this.#layer < this.#layers.length && at + 2 + CHUNK_EXPORT_WORDS_MAX <= end) {
      const layer = this.#layers[this.#layer];
      const chunk = this.#index.nextChunk(layer, this.#chunk);
      if (chunk < 0) {
        this.#layer++;
        this.#chunk = 0;
        continue;
      }
      words[at] = layer;
      words[at + 1] = chunk;
      at += 2 + this.#index.exportChunk(layer, chunk, words, at + 2);
      this.#chunk = chunk + 1;
      this.items++;
    }
    return (at - start) * 4;
  }
}

const EMPTY = new Uint32Array(0);

/** Handle of a chunk's node; 0 when there is none. */
function handleIn(layer: Layer, chunk: number): number {
  const leaf = layer.leaves[chunk >>> LEAF_SHIFT];
  return leaf === null || leaf === undefined ? 0 : leaf[chunk & (LEAF_CHUNKS - 1)];
}

/** Visits the runs of a RANKED chunk: block by block through the bitmap, a quarter of a billion of them per TiB. */
function visitRanked(
  words: Uint32Array,
  base: number,
  layer: number,
  chunk: number,
  visit: RunVisitor,
): void {
  let at = base + RANKED_HEAD_WORDS;
  let first = 0, location = 0, count = 0;
  for (let group = 0; group < BITMAP_WORDS; group++) {
    for (let left = words[base + 1 + group]; left !== 0; left &= left - 1) {
      const block = (group << 5) + 31 - Math.clz32(left & -left);
      const next = words[at++];
      if (count > 0 && next === location + count && block === first + count) {
        count++;
        continue;
      }
      if (count > 0) visit(layer, chunk, first, location, count);
      first = block;
      location = next;
      count = next < LOCATION_END ? 1 : 0;
    }
  }
  if (count > 0) visit(layer, chunk, first, location, count);
}

/** Sets `count` bits from bit `from` on. */
function setBits(map: Uint32Array, from: number, count: number): void {
  for (const end = from + count; from < end;) {
    const bit = from & 31;
    const length = Math.min(32 - bit, end - from);
    map[from >>> 5] |= (0xffff_ffff >>> (32 - length)) << bit;
    from += length;
  }
}

function shifted(location: number, by: number): number {
  return location >= LOCATION_END ? location : location + by;
}

/** Entries that a LIST node of `words` words has room for: 10 bytes each behind the header. */
function listCapacity(words: number): number {
  return Math.floor((words - 1) * 2 / 5);
}

/** Index of a LIST's first key, in 16-bit halves of the page. */
function keysAt(base: number, capacity: number): number {
  return (base + 1 + 2 * capacity) * 2;
}

function rankedCapacity(words: number): number {
  return (words - RANKED_HEAD_WORDS) >>> 1;
}

/** Last entry that starts at or before `block`, or −1. */
function lastAtOrBefore(halves: Uint16Array, keys: number, entries: number, block: number): number {
  let low = 0, high = entries;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if ((halves[keys + middle] & 1023) <= block) low = middle + 1;
    else high = middle;
  }
  return low - 1;
}

/** Present blocks before `block`. */
function rankOf(words: Uint32Array, base: number, present: number, block: number): number {
  if (present === CHUNK_BLOCKS) return block;
  let rank = 0;
  const last = block >>> 5;
  for (let i = 0; i < last; i++) rank += popcount(words[base + 1 + i]);
  const rest = block & 31;
  if (rest > 0) rank += popcount(words[base + 1 + last] << (32 - rest));
  return rank;
}

function popcount(word: number): number {
  let v = word - (word >>> 1 & 0x55555555);
  v = (v & 0x33333333) + (v >>> 2 & 0x33333333);
  return Math.imul((v + (v >>> 4)) & 0x0f0f0f0f, 0x01010101) >>> 24;
}

if (RANKED_HEAD_WORDS + 2 * CHUNK_BLOCKS > SLAB_WORDS_MAX) {
  throw new Error("index: a full chunk does not fit into a slab block");
}
