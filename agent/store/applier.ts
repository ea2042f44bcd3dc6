/**
 * What a record means: the one place where entries change the index, the layer table and the META
 * map, used alike by the running log and by replay.
 *
 * Invariants:
 * - WRITE, FREE, ZERO are absolute: the last one in the log's order wins, whatever was there. So
 *   replay may begin before the moment a fuzzy checkpoint was taken. ABSORB is not: replay applies
 *   nothing to a chunk that the checkpoint has already (image_times.ts). A checkpoint of before the
 *   store's first ABSORB does not say what it has, and need not. FILL, which is a WRITE of those
 *   blocks that are holes at its place in the log, relies on the same.
 * - RELOCATE and POISON take effect on a block only if the index still has it at its old location,
 *   so they never undo a newer write. They name the layer that the block was in when they were put
 *   into the log; by the time they are applied another one may have absorbed it (absorbed.ts).
 * - Entries for layers that are not there, or are being deleted, change nothing.
 * - Stamps (stamps.ts) change with the content, in the same call: WRITE, FREE and ZERO set them
 *   unless their generation is 0, and make them unknown where the entry says so; STAMP sets them
 *   alone; RELOCATE and POISON leave them. Entries of version 1 leave them too. ABSORB leaves them
 *   but for a chunk with neither stamp nor blocks, which takes over the other's; FILL leaves them but
 *   for such a chunk, which gets that of the entry.
 *
 * @module
 */
import { BLOCK_BYTES, CHUNK_BLOCKS } from "../base/limits.ts";
import { Absorbed } from "./absorbed.ts";
import {
  entryBlock,
  entryChecksums,
  entryChunk,
  entryCount,
  entryFlags,
  entryFrom,
  entryGeneration,
  EntryKind,
  entryKind,
  entryLayer,
  FORMAT_STAMPS,
  recordVersion,
  STAMP_UNKNOWN,
} from "./format.ts";
import type { ImageTimes } from "./image_times.ts";
import { type Index, IndexKind } from "./index.ts";
import { Stamps } from "./stamps.ts";

/**
 * Shortest run whose checksums stay on disk: below it, four bytes a block in the index cost less
 * than a run's own entry and the page read that a miss takes.
 */
export const RUN_BLOCKS_MIN = 4;

const PAGE_WORDS = BLOCK_BYTES / 4;

/** State of a layer. */
export const enum LayerState {
  Live = 1,
  /** LAYER_DELETE is in the log; its blocks are being freed. */
  Deleting = 2,
}

/** Told where blocks have come to lie. */
export interface PlacedListener {
  /** `count` blocks from `location` on are live now. */
  blocksPlaced(location: number, count: number): void;
}

/** See the head of the file. */
export class Applier {
  readonly layers: Map<number, LayerState> = new Map();
  /** Stamps of the chunks: changed here only. */
  readonly stamps: Stamps = new Stamps();
  /** Which layers may hold what others were written to: changed here only. */
  readonly absorbed: Absorbed = new Absorbed();
  /** Replay: what the checkpoint has already; null: nothing is said of it. */
  times: ImageTimes | null = null;
  /** Replay: lsn of the record that is being applied. */
  lsn = 0;
  readonly #index: Index;
  readonly #u32: Uint32Array;
  readonly #placed: PlacedListener;

  /** @param u32 the window that records lie in */
  constructor(index: Index, u32: Uint32Array, placed: PlacedListener) {
    this.#index = index;
    this.#u32 = u32;
    this.#placed = placed;
  }

  /**
   * Applies the entry at word `word` (META and META_BATCH excepted: those are the caller's).
   *
   * @param word where the entry lies in memory
   * @param headerWord where its record's header lies in memory
   * @param headerLocation where that header lies on the disk
   * @param dataLocation where the entry's first data block lies on the disk
   */
  apply(word: number, headerWord: number, headerLocation: number, dataLocation: number): void {
    const u32 = this.#u32;
    const index = this.#index;
    const layer = entryLayer(u32, word);
    const kind = entryKind(u32, word);
    switch (kind) {
      case EntryKind.LayerCreate:
        this.layers.set(layer, LayerState.Live);
        if (!index.hasLayer(layer)) index.createLayer(layer);
        return;
      case EntryKind.LayerDelete:
        if (this.layers.has(layer)) this.layers.set(layer, LayerState.Deleting);
        this.stamps.dropLayer(layer);
        this.absorbed.drop(layer);
        return;
      case EntryKind.Meta:
      case EntryKind.MetaBatch:
        return;
    }
    const chunk = entryChunk(u32, word);
    const count = entryCount(u32, word);
    if (kind === EntryKind.Relocate || kind === EntryKind.Poison) {
      this.#moveAnywhere(word, headerWord, headerLocation, dataLocation, 0, count);
      return;
    }
    if (this.layers.get(layer) !== LayerState.Live) return;
    if (kind === EntryKind.Absorb) {
      this.#absorb(layer, entryFrom(u32, word), chunk);
      return;
    }
    const { times } = this;
    // Before the blocks: it is about what was there.
    if (kind === EntryKind.Fill) this.#fillStamp(word, layer, chunk);
    if (times === null || !times.hasBlocks(layer, chunk, this.lsn)) {
      this.#change(word, headerWord, headerLocation, dataLocation);
    }
    if (kind === EntryKind.Fill) return;
    if (times !== null && times.hasStamp(layer, chunk, this.lsn)) return;
    if (recordVersion(u32, headerWord) >= FORMAT_STAMPS) this.#stamp(word, layer, chunk, kind);
  }

  /** What a WRITE, FILL, FREE or ZERO makes of the index. */
  #change(word: number, headerWord: number, headerLocation: number, dataLocation: number): void {
    const u32 = this.#u32;
    const index = this.#index;
    const layer = entryLayer(u32, word);
    const chunk = entryChunk(u32, word);
    const block = entryBlock(u32, word);
    const count = entryCount(u32, word);
    switch (entryKind(u32, word)) {
      case EntryKind.Write: {
        const sums = entryChecksums(word);
        this.#set(layer, chunk, block, count, dataLocation, sums, headerWord, headerLocation);
        break;
      }
      case EntryKind.Fill:
        this.#fill(word, 0, count, headerWord, headerLocation, dataLocation);
        break;
      case EntryKind.Free:
        index.free(layer, chunk, block, count);
        break;
      case EntryKind.Zero:
        index.zero(layer, chunk, block, count);
        break;
    }
  }

  /** FILL: those of `count` blocks from `from` on that are holes get their data. */
  #fill(
    word: number,
    from: number,
    count: number,
    headerWord: number,
    headerLocation: number,
    dataLocation: number,
  ): void {
    const u32 = this.#u32;
    const index = this.#index;
    const layer = entryLayer(u32, word);
    const chunk = entryChunk(u32, word);
    const block = entryBlock(u32, word);
    const sums = entryChecksums(word);
    const end = from + count;
    for (let i = from; i < end;) {
      const run = index.find(layer, chunk, block + i, end - i);
      if (index.kind === IndexKind.Absent) {
        const to = dataLocation + i;
        this.#set(layer, chunk, block + i, run, to, sums + i, headerWord, headerLocation);
      }
      i += run;
    }
  }

  /** FILL: a chunk that held nothing gets a stamp. */
  #fillStamp(word: number, layer: number, chunk: number): void {
    const { times, lsn, stamps } = this;
    const u32 = this.#u32;
    const generation = entryGeneration(u32, word);
    if (generation === 0 || (times !== null && times.hasStamp(layer, chunk, lsn))) return;
    if (stamps.has(layer, chunk) || this.#index.hasChunk(layer, chunk)) return;
    stamps.set(layer, chunk, generation, u32[word + 6], u32[word + 7]);
  }

  /** ABSORB: see {@linkcode Index.absorb}. */
  #absorb(into: number, from: number, chunk: number): void {
    if (this.layers.get(from) !== LayerState.Live) return;
    const { times, lsn, stamps } = this;
    const index = this.#index;
    this.absorbed.add(from, into);
    // The stamps are looked at after the index: where this one is open, so are both chunks.
    if (times === null || !times.hasStamp(into, chunk, lsn)) {
      const isNothing = !stamps.has(into, chunk) && !index.hasChunk(into, chunk);
      if (isNothing && stamps.find(from, chunk)) {
        const { generation, sequence } = stamps;
        stamps.set(into, chunk, generation, sequence >>> 0, Math.floor(sequence / 2 ** 32));
      }
    }
    if (times === null || !times.hasBlocks(into, chunk, lsn)) {
      index.absorb(into, from, chunk);
    } else if (!times.hasBlocks(from, chunk, lsn)) {
      index.free(from, chunk, 0, CHUNK_BLOCKS);
    }
  }

  /**
   * The layer that has a block at a place now: the one that it was found in, or one that has absorbed
   * that since.
   *
   * @param location where it lies; `POISON` for one that was known to be damaged
   * @returns −1 when none has it there any more
   */
  ownerOf(layer: number, chunk: number, block: number, location: number): number {
    const index = this.#index;
    if (index.locate(layer, chunk, block) === location) return layer;
    for (const other of this.absorbed.layersOf(layer)) {
      if (index.locate(other, chunk, block) === location) return other;
    }
    return -1;
  }

  /**
   * Replay: of a WRITE, FILL or RELOCATE of which not all blocks are there, applies some that are. What
   * becomes of the stamp is the caller's business. Everything else is left alone, as by
   * {@linkcode apply}.
   *
   * @param from first of the entry's blocks that are applied
   * @param count how many
   */
  applyPart(
    word: number,
    headerWord: number,
    headerLocation: number,
    dataLocation: number,
    from: number,
    count: number,
  ): void {
    const u32 = this.#u32;
    const layer = entryLayer(u32, word);
    if (entryKind(u32, word) === EntryKind.Relocate) {
      this.#moveAnywhere(word, headerWord, headerLocation, dataLocation, from, from + count);
      return;
    }
    if (this.layers.get(layer) !== LayerState.Live) return;
    const sums = entryChecksums(word) + from;
    const block = entryBlock(u32, word) + from;
    const location = dataLocation + from;
    const chunk = entryChunk(u32, word);
    if (this.times !== null && this.times.hasBlocks(layer, chunk, this.lsn)) return;
    if (entryKind(u32, word) === EntryKind.Fill) {
      this.#fill(word, from, count, headerWord, headerLocation, dataLocation);
      return;
    }
    this.#set(layer, chunk, block, count, location, sums, headerWord, headerLocation);
  }

  /** What the entry makes of its chunk's stamp. */
  #stamp(word: number, layer: number, chunk: number, kind: EntryKind): void {
    const u32 = this.#u32;
    const generation = entryGeneration(u32, word);
    if (generation === 0 && kind !== EntryKind.Stamp && entryFlags(u32, word) === 0) return;
    if (generation === 0 || (entryFlags(u32, word) & STAMP_UNKNOWN) !== 0) {
      this.stamps.clear(layer, chunk);
    } else {
      this.stamps.set(layer, chunk, generation, u32[word + 6], u32[word + 7]);
    }
  }

  /** Enters blocks at their location, with the checksums from word `sums` on. */
  #set(
    layer: number,
    chunk: number,
    block: number,
    count: number,
    location: number,
    sums: number,
    headerWord: number,
    headerLocation: number,
  ): void {
    if (count < RUN_BLOCKS_MIN) {
      for (let i = 0; i < count; i++) {
        this.#index.setDirect(layer, chunk, block + i, location + i, this.#u32[sums + i]);
      }
    } else {
      const offset = sums - headerWord;
      const page = headerLocation + (offset >>> 10);
      this.#index.setRun(layer, chunk, block, count, location, page, offset & PAGE_WORDS - 1);
    }
    this.#placed.blocksPlaced(location, count);
  }

  /** RELOCATE and POISON: blocks `first` to `count` of the entry, wherever they are now. */
  #moveAnywhere(
    word: number,
    headerWord: number,
    headerLocation: number,
    dataLocation: number,
    first: number,
    count: number,
  ): void {
    const layer = entryLayer(this.#u32, word);
    this.#move(layer, word, headerWord, headerLocation, dataLocation, first, count);
    for (const other of this.absorbed.layersOf(layer)) {
      this.#move(other, word, headerWord, headerLocation, dataLocation, first, count);
    }
  }

  /** Compares and sets, run by run, what is in one layer. */
  #move(
    layer: number,
    word: number,
    headerWord: number,
    headerLocation: number,
    dataLocation: number,
    first: number,
    count: number,
  ): void {
    const u32 = this.#u32;
    const index = this.#index;
    const chunk = entryChunk(u32, word);
    if (this.layers.get(layer) !== LayerState.Live) return;
    if (this.times !== null && this.times.hasBlocks(layer, chunk, this.lsn)) return;
    const block = entryBlock(u32, word);
    const from = entryFrom(u32, word);
    const sums = entryChecksums(word);
    const poisons = entryKind(u32, word) === EntryKind.Poison;
    for (let i = first; i < count;) {
      let run = this.#stillThere(layer, chunk, block, i, count, from);
      if (run === 0) {
        i += index.find(layer, chunk, block + i, count - i);
        continue;
      }
      // The index may hold in pieces what lies in one.
      for (let more = run; more > 0 && i + run < count; run += more) {
        more = this.#stillThere(layer, chunk, block, i + run, count, from);
      }
      if (poisons) index.poison(layer, chunk, block + i, run);
      else {
        const to = dataLocation + i;
        this.#set(layer, chunk, block + i, run, to, sums + i, headerWord, headerLocation);
      }
      i += run;
    }
  }

  /** Blocks from `block + i` on that still lie at `from + i` and on; 0 when the first does not. */
  #stillThere(
    layer: number,
    chunk: number,
    block: number,
    i: number,
    count: number,
    from: number,
  ): number {
    const run = this.#index.find(layer, chunk, block + i, count - i);
    const { kind, location } = this.#index;
    const isData = kind === IndexKind.Direct || kind === IndexKind.Run;
    return isData && location === from + i ? run : 0;
  }
}
