/**
 * Whose header page is this? To be asked of every page that checksums are taken from and that came from the disk.
 *
 * The index says of a block of a long run only where its checksum lies: a word of a header page of its record. Header and data
 * are one write. Where the disk loses that write, an older record is still there; if it has the same layout its blocks match
 * its checksums, and only the header can tell that all of it is stale.
 *
 *     header   | magic, store, sequence, lsn, entries, checksums … | more checksums … | … |
 *                page 0: proves itself                              pages 1 to 3: proven by the header as a whole
 *     around   three blocks before the page, three behind it
 *
 * - Page 0 has the words that say whose it is; lives.ts knows what they have to be. Its other words are not looked at: they are
 *   compared one by one, so one that is damaged costs its block and no other.
 * - A page further on has no such words. It counts as part of the header that begins up to three blocks before it, belongs
 *   there and is as long as that, if that header's checksum matches: so a header that was written over in part is found out,
 *   too. Here a damaged word costs all blocks whose checksums are on those pages; only records of very many small entries are
 *   that long.
 * - A page of a segment of which nothing is known (lives.ts) is believed.
 *
 * @module
 */
import { BLOCK_BYTES } from "../base/limits.ts";
import type { Window } from "../platform/platform.ts";
import {
  decodeRecord,
  HEADER_BLOCKS_MAX,
  peekRecord,
  readU64,
  RECORD_WORD,
  RecordHeader,
} from "./format.ts";
import type { Segments } from "./segments.ts";

const REACH_BLOCKS = HEADER_BLOCKS_MAX - 1;
/** Most blocks that {@linkcode HeaderProof.isPart} looks at. */
export const AROUND_BLOCKS = 2 * REACH_BLOCKS + 1;

/** See the head of the file. */
export class HeaderProof {
  readonly #window: Window;
  readonly #segments: Segments;
  readonly #storeWords: Uint32Array;
  readonly #record = new RecordHeader();

  /** @param storeWords the store's id as four words */
  constructor(window: Window, segments: Segments, storeWords: Uint32Array) {
    this.#window = window;
    this.#segments = segments;
    this.#storeWords = storeWords;
  }

  /**
   * True when the block by itself shows that it is page 0 of a record that belongs there, and when
   * nothing is known of its segment.
   *
   * @param at arena offset of the block
   * @param location where it was read from: within a segment, past its header
   */
  isFirst(at: number, location: number): boolean {
    const segment = this.#segments.of(location);
    return this.#segments.lives.sequenceOf(segment) === 0 || this.#headerBlocks(at, location) > 0;
  }

  /** Blocks of the header that begins there and belongs there; 0: none does. */
  #headerBlocks(at: number, location: number): number {
    const { lives } = this.#segments;
    const segment = this.#segments.of(location);
    const sequence = lives.sequenceOf(segment);
    const headerBlocks = peekRecord(this.#window, at, this.#storeWords, sequence);
    const lsn = readU64(this.#window.u32, (at >>> 2) + RECORD_WORD.lsn);
    const lsnMin = lives.lsnMin(segment, location - this.#segments.start(segment));
    return lsn >= lsnMin ? headerBlocks : 0;
  }

  /** First location of the blocks that {@linkcode isPart} needs for the page at `location`. */
  startOf(location: number): number {
    const segment = this.#segments.of(location);
    return Math.max(location - REACH_BLOCKS, this.#segments.start(segment) + 1);
  }

  /** The location past the last of them: up to {@linkcode AROUND_BLOCKS} later. */
  endOf(location: number): number {
    const segment = this.#segments.of(location);
    const end = this.#segments.start(segment) + this.#segments.segmentBlocks;
    return Math.min(location + REACH_BLOCKS + 1, end);
  }

  /**
   * True when a page shows, with the blocks around it, that it is part of the header of a record that
   * belongs there.
   *
   * @param at arena offset of the blocks from {@linkcode startOf} to {@linkcode endOf}
   * @param location where the page was read from
   */
  isPart(at: number, location: number): boolean {
    const start = this.startOf(location);
    const end = this.endOf(location);
    const { segmentBlocks } = this.#segments;
    const segmentEnd = this.#segments.start(this.#segments.of(location)) + segmentBlocks;
    if (this.isFirst(at + (location - start) * BLOCK_BYTES, location)) return true;
    for (let first = location - 1; first >= start; first--) {
      const header = at + (first - start) * BLOCK_BYTES;
      const headerBlocks = this.#headerBlocks(header, first);
      if (first + headerBlocks <= location || first + headerBlocks > end) continue;
      const left = segmentEnd - first;
      if (decodeRecord(this.#window, header, headerBlocks, left, this.#record)) return true;
    }
    return false;
  }
}
