/**
 * Reads segment and record headers, for replay, the cleaner and scrub.
 *
 * @module
 */
import { BLOCK_BYTES, BLOCK_SHIFT } from "../base/limits.ts";
import { EBADMSG, type Window } from "../platform/platform.ts";
import {
  claimedSequence,
  decodeRecord,
  decodeSegmentHeader,
  peekRecord,
  readU64,
  RECORD_WORD,
  type RecordHeader,
  type SegmentHeader,
} from "./format.ts";
import { AROUND_BLOCKS, HeaderProof } from "./header_proof.ts";
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
  readonly #proof: HeaderProof;
  /** Locations that the buffer holds. */
  #start = 0;
  #end = 0;
  /** errno of the last read that failed, or 0. */
  error = 0;
  /** Places that could not be read, however often it was tried. */
  failures = 0;

  /**
   * @param options.buffer arena offset
   * @param options.bufferBytes at least `AROUND_BLOCKS` blocks
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
    this.#proof = new HeaderProof(options.window, options.segments, options.storeWords);
    if (this.#bufferBlocks < AROUND_BLOCKS) throw new Error("log reader: buffer too small");
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
   * none, or one with an lsn below `lsnMin`.
   */
  *claim(location: number, lsnMin: number, aheadBlocks: number): Task<number> {
    const at = yield* this.load(location, 1, aheadBlocks);
    if (at < 0 || !(readU64(this.#window.u32, (at >>> 2) + RECORD_WORD.lsn) >= lsnMin)) return 0;
    return claimedSequence(this.#window, at, this.#storeWords);
  }

  /**
   * Reads a header page that checksums are to be taken from: one that is not of a record that belongs
   * there once more, with what lies around it. See header_proof.ts.
   *
   * @returns its arena offset, valid until the next call; −errno when the disk failed; −EBADMSG when
   *   it is none that belongs there
   */
  *headerPage(location: number): Task<number> {
    if (!this.#segments.isDataRange(location, 1)) return -EBADMSG;
    const proof = this.#proof;
    const page = yield* this.load(location, 1, 1);
    if (page < 0) return -this.error;
    if (proof.isFirst(page, location)) return page;
    const start = proof.startOf(location);
    const blocks = proof.endOf(location) - start;
    const around = yield* this.load(start, blocks, blocks);
    if (around < 0) return -this.error;
    if (!proof.isPart(around, location)) return -EBADMSG;
    return around + (location - start) * BLOCK_BYTES;
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
