/**
 * Reads segment and record headers, for replay and for the cleaner.
 *
 * @module
 */
import { BLOCK_BYTES, BLOCK_SHIFT } from "../base/limits.ts";
import type { Window } from "../platform/platform.ts";
import {
  claimedSequence,
  decodeRecord,
  decodeSegmentHeader,
  HEADER_BLOCKS_MAX,
  peekRecord,
  type RecordHeader,
  type SegmentHeader,
} from "./format.ts";
import type { Segments } from "./segments.ts";
import type { Task, TaskIo } from "./task.ts";

/** Times that a place is read before it counts as one that cannot be. */
const READ_TRIES = 4;

/** See the head of the file. Reads ahead into one buffer: what it returned before is then gone. */
export class LogReader {
  readonly #io: TaskIo;
  readonly #window: Window;
  readonly #segments: Segments;
  readonly #storeId: Uint8Array;
  readonly #storeWords: Uint32Array;
  readonly #buffer: number;
  readonly #bufferBlocks: number;
  /** Locations that the buffer holds. */
  #start = 0;
  #end = 0;
  /** errno of the last read that failed, or 0. */
  error = 0;
  /** Places that could not be read, however often it was tried. */
  failures = 0;

  /**
   * @param options.buffer arena offset
   * @param options.bufferBytes at least `HEADER_BLOCKS_MAX` blocks
   */
  constructor(options: {
    io: TaskIo;
    window: Window;
    segments: Segments;
    storeId: Uint8Array;
    storeWords: Uint32Array;
    buffer: number;
    bufferBytes: number;
  }) {
    this.#io = options.io;
    this.#window = options.window;
    this.#segments = options.segments;
    this.#storeId = options.storeId;
    this.#storeWords = options.storeWords;
    this.#buffer = options.buffer;
    this.#bufferBlocks = options.bufferBytes / BLOCK_BYTES;
    if (this.#bufferBlocks < HEADER_BLOCKS_MAX) throw new Error("log reader: buffer too small");
  }

  /**
   * Makes blocks available that lie within one segment.
   *
   * @param aheadBlocks blocks worth reading along with them, if they must be read
   * @returns their arena offset, or −1 when the disk failed (see `error`)
   */
  *load(location: number, blocks: number, aheadBlocks: number): Task<number> {
    if (location >= this.#start && location + blocks <= this.#end) {
      return this.#buffer + (location - this.#start) * BLOCK_BYTES;
    }
    const segments = this.#segments;
    const end = segments.start(segments.of(location)) + segments.segmentBlocks;
    const count = Math.min(Math.max(blocks, aheadBlocks), end - location, this.#bufferBlocks);
    this.#start = this.#end = 0;
    let result = yield* this.#io.read(location * BLOCK_BYTES, this.#buffer, count << BLOCK_SHIFT);
    let read = count;
    // What was read ahead may be to blame; and what the disk could not read once it may read the next time.
    for (let tries = 1; result < 0 && tries < READ_TRIES; tries++) {
      read = blocks;
      result = yield* this.#io.read(location * BLOCK_BYTES, this.#buffer, blocks << BLOCK_SHIFT);
    }
    if (result < 0) {
      this.error = -result;
      this.failures++;
      return -1;
    }
    this.#start = location;
    this.#end = location + read;
    return this.#buffer;
  }

  /** Reads the header of `segment` into `header`; false when it is damaged or of another store. */
  *segmentHeader(segment: number, header: SegmentHeader): Task<boolean> {
    const at = yield* this.load(this.#segments.start(segment), 1, 1);
    return at >= 0 && decodeSegmentHeader(this.#window, at, this.#storeId, header);
  }

  /**
   * Segment sequence that a record header at `location` claims, whatever it is; 0 when there is
   * none.
   */
  *claim(location: number): Task<number> {
    const at = yield* this.load(location, 1, 1);
    return at < 0 ? 0 : claimedSequence(this.#window, at, this.#storeWords);
  }

  /**
   * Reads and checks the record header at `block` of `segment`.
   *
   * @returns its arena offset, valid until the next call; −1 when there is no valid record of that
   *   segment sequence
   */
  *record(
    segment: number,
    block: number,
    sequence: number,
    record: RecordHeader,
    aheadBlocks: number,
  ): Task<number> {
    const left = this.#segments.segmentBlocks - block;
    if (left < 1) return -1;
    const location = this.#segments.start(segment) + block;
    let at = yield* this.load(location, 1, aheadBlocks);
    if (at < 0) return -1;
    const headerBlocks = peekRecord(this.#window, at, this.#storeWords, sequence);
    if (headerBlocks === 0 || headerBlocks > left) return -1;
    if (headerBlocks > 1) {
      at = yield* this.load(location, headerBlocks, aheadBlocks);
      if (at < 0) return -1;
    }
    return decodeRecord(this.#window, at, headerBlocks, left, record) ? at : -1;
  }
}
