/**
 * What a record means: the one place where entries change the index, the layer table and the META
 * map, used alike by the running log and by replay.
 *
 * Invariants:
 * - WRITE, FREE, ZERO are absolute: the last one in the log's order wins, whatever was there. So
 *   replay may begin before the moment a fuzzy checkpoint was taken.
 * - RELOCATE and POISON take effect on a block only if the index still has it at its old location,
 *   so they never undo a newer write.
 * - Entries for layers that are not there, or are being deleted, change nothing.
 * - Stamps (stamps.ts) change with the content, in the same call: WRITE, FREE and ZERO set them
 *   unless their generation is 0, and make them unknown where the entry says so; STAMP sets them
 *   alone; RELOCATE and POISON leave them. Entries of version 1 leave them too.
 *
 * @module
 */
import { BLOCK_BYTES } from "../base/limits.ts";
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
  /** Entries applied. */
  entries = 0;
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
    this.entries++;
    switch (kind) {
      case EntryKind.LayerCreate:
        this.layers.set(layer, LayerState.Live);
        if (!index.hasLayer(layer)) index.createLayer(layer);
        return;
      case EntryKind.LayerDelete:
        if (this.layers.has(layer)) this.layers.set(layer, LayerState.Deleting);
        this.stamps.dropLayer(layer);
        return;
      case EntryKind.Meta:
      case EntryKind.MetaBatch:
        return;
    }
    if (this.layers.get(layer) !== LayerState.Live) return;
    const chunk = entryChunk(u32, word);
    const block = entryBlock(u32, word);
    const count = entryCount(u32, word);
    switch (kind) {
      case EntryKind.Write: {
        const sums = entryChecksums(word);
        this.#set(layer, chunk, block, count, dataLocation, sums, headerWord, headerLocation);
        break;
      }
      case EntryKind.Free:
        index.free(layer, chunk, block, count);
        break;
      case EntryKind.Zero:
        index.zero(layer, chunk, block, count);
        break;
      case EntryKind.Stamp:
        break;
      case EntryKind.Relocate:
      case EntryKind.Poison:
        this.#move(word, headerWord, headerLocation, dataLocation, 0, count);
        return;
    }
    if (recordVersion(u32, headerWord) >= FORMAT_STAMPS) this.#stamp(word, layer, chunk, kind);
  }

  /**
   * Replay: of a WRITE or RELOCATE of which not all blocks are there, applies some that are. What
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
    if (this.layers.get(layer) !== LayerState.Live) return;
    if (entryKind(u32, word) === EntryKind.Relocate) {
      this.#move(word, headerWord, headerLocation, dataLocation, from, from + count);
      return;
    }
    const sums = entryChecksums(word) + from;
    const block = entryBlock(u32, word) + from;
    const location = dataLocation + from;
    const chunk = entryChunk(u32, word);
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

  /** RELOCATE and POISON: compare and set, run by run, blocks `first` to `count` of the entry. */
  #move(
    word: number,
    headerWord: number,
    headerLocation: number,
    dataLocation: number,
    first: number,
    count: number,
  ): void {
    const u32 = this.#u32;
    const index = this.#index;
    const layer = entryLayer(u32, word);
    const chunk = entryChunk(u32, word);
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
