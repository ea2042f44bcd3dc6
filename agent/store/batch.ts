/**
 * A batch: the record that is being put together or written, with the operations that wait for it.
 *
 *     arena   | segment header, 1 block | record header, 4 blocks |
 *                                        ▲ headerAt
 *
 * Entries are laid out in the record header as operations come in; data stays where the operations
 * have it. One vectored write brings header and data to the disk. When the batch is the first of
 * its segment the segment header goes in front, in the same write.
 *
 * A write that does not fit whole is cut, and its parts go to several records, of which a crash may
 * leave some. Only the entry with its last block may therefore set the chunk's stamp; those before
 * say that it is unknown.
 *
 * A batch's number says its place in the log for good. Its lsn and its place on disk are given when
 * it is written, and anew when that fails.
 *
 * @module
 */
import { BLOCK_BYTES, BLOCK_SHIFT } from "../base/limits.ts";
import type { IoVector, Window } from "../platform/platform.ts";
import {
  DATA_BLOCKS_MAX,
  ENTRY_BYTES,
  EntryKind,
  FORMAT_ABSORB,
  FORMAT_BASE,
  HEADER_BLOCKS_MAX,
  headerBlocksOf,
  RECORD_BYTES,
  STAMP_UNKNOWN,
  writeU64,
} from "./format.ts";
import type { Operation } from "./operation.ts";

/** Arena bytes of a batch. */
export const BATCH_BYTES = (1 + HEADER_BLOCKS_MAX) * BLOCK_BYTES;

const HEADER_BYTES_MAX = HEADER_BLOCKS_MAX * BLOCK_BYTES;
const ENTRY_WORDS = ENTRY_BYTES / 4;

/** Where a batch is in its life. */
export const enum BatchState {
  /** Not in use, or being filled. */
  Filling = 0,
  /** Complete, waiting for its turn to be written. */
  Closed = 1,
  Writing = 2,
  Written = 3,
  Failed = 4,
}

/** See the head of the file. */
export class Batch implements IoVector {
  state = BatchState.Filling;
  /** Place in the log: +1 per batch, whatever happens to it. */
  number = 0;
  /** The segment's header goes with it. */
  bringsHeader = false;
  /** Given when it is placed. */
  lsn = 0;
  segment = 0;
  /** First block of the record within the segment. */
  block = 0;

  /** Arena offset of the record header. */
  readonly headerAt: number;
  headerBytes = RECORD_BYTES;
  /** Lowest version of a record that knows all entries. */
  version = FORMAT_BASE;
  entryCount = 0;
  dataBlocks = 0;
  /** Blocks, header included, that it may grow to. */
  room = 0;

  /** Operations that are done when it is applied, linked through `next`. */
  operations: Operation | null = null;
  #lastOperation: Operation | null = null;

  // The scatter list: entry 0 is the header.
  count = 1;
  readonly offsets: Uint32Array<ArrayBuffer> = new Uint32Array(1 + DATA_BLOCKS_MAX);
  readonly lengths: Uint32Array<ArrayBuffer> = new Uint32Array(1 + DATA_BLOCKS_MAX);

  readonly #u32: Uint32Array;
  /** Word of the last entry when it is a write that a following one may continue, or 0. */
  #mergeWord = 0;
  #mergeLayer = 0;
  #mergeChunk = 0;
  /** Block that a continuation begins with. */
  #mergeBlock = 0;
  #mergeGeneration = 0;
  #mergeFlags = 0;

  /**
   * @param slot which of the log's batches this is
   * @param at arena offset of `BATCH_BYTES`
   */
  constructor(window: Window, readonly slot: number, at: number) {
    this.#u32 = window.u32;
    this.headerAt = at + BLOCK_BYTES;
  }

  /** Empties it. */
  begin(number: number, room: number): void {
    this.state = BatchState.Filling;
    this.number = number;
    this.room = room;
    this.headerBytes = RECORD_BYTES;
    this.version = FORMAT_BASE;
    this.entryCount = 0;
    this.dataBlocks = 0;
    this.operations = null;
    this.#lastOperation = null;
    this.count = 1;
    this.#mergeWord = 0;
  }

  /** Header blocks now. */
  get headerBlocks(): number {
    return headerBlocksOf(this.headerBytes);
  }

  /** Location offset of the first data block from the record's first block. */
  get blocks(): number {
    return this.headerBlocks + this.dataBlocks;
  }

  /** Links an operation that is done when the batch is applied. */
  attach(operation: Operation): void {
    operation.next = null;
    if (this.#lastOperation === null) this.operations = operation;
    else this.#lastOperation.next = operation;
    this.#lastOperation = operation;
  }

  /**
   * Blocks of data out of `wanted` that fit.
   *
   * @param fixedBytes header bytes needed besides the checksums
   */
  fit(wanted: number, fixedBytes: number): number {
    let blocks = Math.min(wanted, DATA_BLOCKS_MAX - this.dataBlocks);
    const header = this.headerBytes + fixedBytes;
    blocks = Math.min(blocks, (HEADER_BYTES_MAX - header) >> 2);
    if (blocks <= 0) return 0;
    const headerBlocks = (header + 4 * blocks + BLOCK_BYTES - 1) >>> BLOCK_SHIFT;
    return Math.max(0, Math.min(blocks, this.room - this.dataBlocks - headerBlocks));
  }

  /** True when an entry without data fits. */
  fitsEntry(): boolean {
    const header = this.headerBytes + ENTRY_BYTES;
    return header <= HEADER_BYTES_MAX && headerBlocksOf(header) + this.dataBlocks <= this.room;
  }

  /**
   * Adds blocks `from`… of a write; continues the entry before when that ends where this begins.
   *
   * @returns blocks taken, 0 when none fits
   */
  addWrite(operation: Operation, from: number): number {
    const layer = operation.layers[0];
    const block = operation.block + from;
    const u32 = this.#u32;
    const wanted = operation.blockCount - from;
    let merges = this.#mergeWord !== 0 && this.#mergeBlock === block &&
      this.#mergeLayer === layer && this.#mergeChunk === operation.chunk &&
      this.#mergeGeneration === operation.generation;
    let count = this.fit(wanted, merges ? 0 : ENTRY_BYTES);
    if (merges && stampFlags(operation, count < wanted) !== this.#mergeFlags) {
      merges = false;
      count = this.fit(wanted, ENTRY_BYTES);
    }
    if (count === 0) return 0;
    const flags = stampFlags(operation, count < wanted);
    if (merges) {
      u32[this.#mergeWord + 1] += count;
      writeU64(u32, this.#mergeWord + 6, operation.sequence);
    } else {
      this.#mergeWord = this.#entry(EntryKind.Write, block, count, layer, operation.chunk);
      u32[this.#mergeWord] |= flags << 8;
      u32[this.#mergeWord + 4] = operation.generation;
      writeU64(u32, this.#mergeWord + 6, operation.sequence);
      this.#mergeFlags = flags;
      this.#mergeLayer = layer;
      this.#mergeChunk = operation.chunk;
      this.#mergeGeneration = operation.generation;
    }
    this.#mergeBlock = block + count;
    let word = this.headerAt + this.headerBytes >>> 2;
    const checksums = operation.checksums;
    for (let i = from; i < from + count; i++) u32[word++] = checksums[i];
    this.headerBytes += 4 * count;
    this.#data(operation.buffer + (from << BLOCK_SHIFT), count);
    return count;
  }

  /** Adds an entry without data; {@linkcode fitsEntry} has said that it fits. */
  addEntry(entry: {
    kind: EntryKind;
    layer: number;
    chunk: number;
    block: number;
    count: number;
    generation: number;
    sequence: number;
    from: number;
  }): void {
    const word = this.#entry(entry.kind, entry.block, entry.count, entry.layer, entry.chunk);
    this.#u32[word + 4] = entry.generation;
    this.#u32[word + 5] = entry.from;
    writeU64(this.#u32, word + 6, entry.sequence);
    this.#mergeWord = 0;
  }

  /** Adds a free, zero or stamp operation; {@linkcode fitsEntry} has said that it fits. */
  addRange(kind: EntryKind, operation: Operation): void {
    const { block, blockCount, chunk } = operation;
    const isStamp = kind === EntryKind.Stamp;
    const word = this.#entry(
      kind,
      isStamp ? 0 : block,
      isStamp ? 1 : blockCount,
      operation.layers[0],
      chunk,
    );
    if (!isStamp) this.#u32[word] |= stampFlags(operation, false) << 8;
    this.#u32[word + 4] = operation.generation;
    writeU64(this.#u32, word + 6, operation.sequence);
    this.#mergeWord = 0;
  }

  /** Adds an absorb; {@linkcode fitsEntry} has said that it fits. */
  addAbsorb(operation: Operation): void {
    const [into, from] = operation.layers;
    const word = this.#entry(EntryKind.Absorb, 0, 1, into, operation.chunk);
    this.#u32[word + 5] = from;
    this.version = FORMAT_ABSORB;
    this.#mergeWord = 0;
  }

  /** Adds a fill of no blocks, which is about the stamp; {@linkcode fitsEntry} has said that it fits. */
  addFillStamp({ layers, chunk, generation, sequence }: Operation): void {
    const word = this.#entry(EntryKind.Fill, 0, 0, layers[0], chunk);
    this.#u32[word + 4] = generation;
    writeU64(this.#u32, word + 6, sequence);
    this.version = FORMAT_ABSORB;
    this.#mergeWord = 0;
  }

  /**
   * Adds blocks `from`… of a fill.
   *
   * @returns blocks taken, 0 when none fits
   */
  addFill(operation: Operation, from: number): number {
    const count = this.fit(operation.blockCount - from, ENTRY_BYTES);
    if (count === 0) return 0;
    const { layers, chunk, generation, sequence, checksums, buffer } = operation;
    const word = this.#entry(EntryKind.Fill, operation.block + from, count, layers[0], chunk);
    this.#u32[word + 4] = generation;
    writeU64(this.#u32, word + 6, sequence);
    let to = word + ENTRY_WORDS;
    for (let i = from; i < from + count; i++) this.#u32[to++] = checksums[i];
    this.headerBytes += 4 * count;
    this.#data(buffer + (from << BLOCK_SHIFT), count);
    this.version = FORMAT_ABSORB;
    this.#mergeWord = 0;
    return count;
  }

  /**
   * Adds `count` copied blocks; {@linkcode fit} has said that they fit.
   *
   * @param buffer arena offset of the data, untouched until the batch is applied
   * @param checksums checksums of the blocks, from index `first` on
   */
  addRelocation(
    layer: number,
    chunk: number,
    block: number,
    count: number,
    from: number,
    buffer: number,
    checksums: Uint32Array,
    first: number,
  ): void {
    const word = this.#entry(EntryKind.Relocate, block, count, layer, chunk);
    this.#u32[word + 5] = from;
    let to = word + ENTRY_WORDS;
    for (let i = first; i < first + count; i++) this.#u32[to++] = checksums[i];
    this.headerBytes += 4 * count;
    this.#data(buffer, count);
    this.#mergeWord = 0;
  }

  /**
   * Adds a META_BATCH entry; it fits.
   *
   * @param byteLength bytes of all items
   * @param items their number
   * @param buffer arena offset of its `count` data blocks
   */
  addMeta(
    byteLength: number,
    items: number,
    buffer: number,
    count: number,
    checksums: Uint32Array,
  ): void {
    const word = this.#entry(EntryKind.MetaBatch, 0, count, byteLength, items);
    for (let i = 0; i < count; i++) this.#u32[word + ENTRY_WORDS + i] = checksums[i];
    this.headerBytes += 4 * count;
    this.#data(buffer, count);
    this.#mergeWord = 0;
  }

  /** Lays out the fixed part of an entry without data; returns its word. */
  #entry(kind: EntryKind, block: number, count: number, layer: number, chunk: number): number {
    const u32 = this.#u32;
    const word = this.headerAt + this.headerBytes >>> 2;
    u32[word] = kind | block << 16;
    u32[word + 1] = count;
    u32[word + 2] = layer;
    u32[word + 3] = chunk;
    u32[word + 4] = 0;
    u32[word + 5] = 0;
    u32[word + 6] = 0;
    u32[word + 7] = 0;
    this.headerBytes += ENTRY_BYTES;
    this.entryCount++;
    return word;
  }

  /** Appends data to the scatter list, joined with the range before where they touch. */
  #data(buffer: number, count: number): void {
    const last = this.count - 1;
    const bytes = count << BLOCK_SHIFT;
    if (last > 0 && this.offsets[last] + this.lengths[last] === buffer) {
      this.lengths[last] += bytes;
    } else {
      this.offsets[this.count] = buffer;
      this.lengths[this.count] = bytes;
      this.count++;
    }
    this.dataBlocks += count;
  }
}

/** What the entry of a change, or of a part of it that others follow, says of the stamp. */
function stampFlags(operation: Operation, isPart: boolean): number {
  return operation.stampUnknown || (isPart && operation.generation !== 0) ? STAMP_UNKNOWN : 0;
}
