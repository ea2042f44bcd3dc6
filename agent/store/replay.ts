/**
 * Finds the log after a start, and walks it.
 *
 * The log is the chain of segments that begins at the superblock's replay position; each segment's header names
 * the one after it. Two passes:
 *
 * 1. {@linkcode scanLog} reads headers only. It finds where the chain of valid records ends, and the highest lsn that
 *    any record, before or after that end, says is durable. If the end lies beyond that lsn it is the torn tail of
 *    a crash: records that nobody was promised. If it does not, something that had been durable is gone: damage.
 * 2. {@linkcode walkLog} hands the records out in order. Of those past the durable lsn it checks the data as well, and stops
 *    at the first whose data is not all there.
 *
 *     lsn   | … replayed, data not read …  durable | replayed, data checked | torn | ignored, even if valid |
 *
 * How a segment's end is told from the log's end: the header of the following segment names the last lsn that counts
 * before it. Reaching exactly that lsn leads on; falling short is a gap; records with higher ones are
 * left-overs of a failed write and do not count.
 *
 * @module
 */
import { BLOCK_BYTES } from "../base/limits.ts";
import type { Window } from "../platform/platform.ts";
import {
  entryChecksums,
  entryCount,
  entryKind,
  entryNext,
  hasData,
  RECORD_WORD,
  RecordHeader,
  SegmentHeader,
  SegmentKind,
} from "./format.ts";
import type { LogPosition } from "./log.ts";
import type { LogReader } from "./log_reader.ts";
import type { Segments } from "./segments.ts";
import type { Task } from "./task.ts";

/** Blocks read ahead when walking from record to record. */
const AHEAD_BLOCKS = 64;

/** Records of one segment that count. */
export interface LogSpan {
  readonly segment: number;
  readonly sequence: number;
  readonly firstBlock: number;
  readonly firstLsn: number;
  /** Last lsn that counts; below `firstLsn` when none does. */
  lastLsn: number;
}

/** Something durable that is gone. */
export interface LogDamage {
  readonly segment: number;
  readonly block: number;
  readonly lsn: number;
  readonly reason: string;
}

/** What {@linkcode scanLog} found. */
export interface LogScan {
  readonly spans: LogSpan[];
  readonly damage: LogDamage[];
  /** Everything up to here is known to have been durable. */
  syncedLsn: number;
  /** Highest lsn seen anywhere, counting or not. */
  lsnMax: number;
  /** Highest segment sequence seen. */
  sequenceMax: number;
  /** lsn of the last record that counts (before its data is checked). */
  endLsn: number;
  /** The segment named to follow the last one, or −1: must stay as it is while this log may be read again. */
  tailNext: number;
}

/**
 * First pass.
 *
 * @param syncedLsn known durable from elsewhere
 */
export function* scanLog(
  reader: LogReader,
  segments: Segments,
  start: LogPosition,
  syncedLsn: number,
): Task<LogScan> {
  const scan: LogScan = {
    spans: [],
    damage: [],
    syncedLsn,
    lsnMax: Math.max(syncedLsn, start.lsn - 1),
    sequenceMax: start.sequence,
    endLsn: start.lsn - 1,
    tailNext: -1,
  };
  const record = new RecordHeader();
  const header = new SegmentHeader();
  const following = new SegmentHeader();
  let { segment, sequence, block } = start;
  let lsn = start.lsn;
  /** Damage was passed over: the header of this segment may be what is damaged. */
  let resumed = false;
  // A segment follows another at most once: more would be a loop, which sequences rule out anyway.
  for (let hops = 0; hops <= segments.count; hops++) {
    // The header: when the replay position is at the start of a segment that was never written, there is no log.
    const hasHeader = (yield* reader.segmentHeader(segment, header)) &&
      header.kind === SegmentKind.Log && header.sequence === sequence;
    let next = -1;
    let lastLsn = Infinity;
    let reused = false;
    if (hasHeader) {
      if (block === 1 && header.startLsn > lsn) lsn = header.startLsn;
      next = scan.tailNext = header.next < segments.count ? header.next : -1;
      if (next >= 0 && (yield* reader.segmentHeader(next, following))) {
        if (isSuccessor(following, segment, sequence)) lastLsn = following.previousEndLsn;
        else {
          reused = following.sequence > sequence;
          next = -1;
        }
      } else {
        next = -1;
      }
    }
    const span: LogSpan = { segment, sequence, firstBlock: block, firstLsn: lsn, lastLsn: lsn - 1 };
    scan.spans.push(span);
    while ((hasHeader || resumed) && lsn <= lastLsn) {
      const at = yield* reader.record(segment, block, sequence, record, AHEAD_BLOCKS);
      if (at < 0 || record.lsn !== lsn) break;
      note(scan, record);
      span.lastLsn = scan.endLsn = lsn;
      block += record.headerBlocks + record.dataBlocks;
      lsn++;
    }
    if (next >= 0 && lsn === lastLsn + 1) {
      segment = next;
      ({ sequence } = following);
      block = 1;
      lsn = following.startLsn;
      resumed = false;
      scan.sequenceMax = Math.max(scan.sequenceMax, sequence);
      continue;
    }
    // The chain ends here. What lies beyond tells whether it may.
    const beyond = yield* probe(reader, segments, scan, { segment, sequence, block, lsn });
    if (reused) {
      scan.damage.push({
        segment,
        block,
        lsn,
        reason: "the segment that followed has been used for something else since",
      });
    } else if (scan.syncedLsn >= lsn) {
      scan.damage.push({ segment, block, lsn, reason: describe(reader, hasHeader) });
    } else {
      return scan;
    }
    if (beyond === null) return scan;
    ({ segment, sequence, block, lsn } = beyond);
    resumed = true;
  }
  return scan;
}

function describe(reader: LogReader, hasHeader: boolean): string {
  if (reader.error !== 0) return `the disk cannot read it (errno ${reader.error})`;
  return hasHeader ? "the record there is damaged" : "the segment's header is damaged";
}

/** True when `header` is of the segment that was opened right after `segment`. */
function isSuccessor(header: SegmentHeader, segment: number, sequence: number): boolean {
  return header.kind === SegmentKind.Log && header.sequence > sequence &&
    header.previous === segment && header.startLsn > header.previousEndLsn;
}

function note(scan: LogScan, record: RecordHeader): void {
  scan.syncedLsn = Math.max(scan.syncedLsn, record.syncedLsn);
  scan.lsnMax = Math.max(scan.lsnMax, record.lsn);
  scan.sequenceMax = Math.max(scan.sequenceMax, record.segmentSequence);
}

/**
 * Looks for valid records past the end of the chain: in the rest of its last segment and in the segments after that.
 *
 * @returns where the first one lies, or null
 */
function* probe(
  reader: LogReader,
  segments: Segments,
  scan: LogScan,
  from: { segment: number; sequence: number; block: number; lsn: number },
): Task<LogPosition | null> {
  const record = new RecordHeader();
  const header = new SegmentHeader();
  let found: LogPosition | null = null;
  let { segment, sequence, block } = from;
  for (let hops = 0; hops <= segments.count; hops++) {
    while (block < segments.segmentBlocks) {
      const at = yield* reader.record(segment, block, sequence, record, AHEAD_BLOCKS);
      if (at < 0 || record.lsn < from.lsn) {
        block++;
        continue;
      }
      note(scan, record);
      found ??= { segment, sequence, block, lsn: record.lsn, previousEndLsn: 0 };
      block += record.headerBlocks + record.dataBlocks;
    }
    const isKnown = (yield* reader.segmentHeader(segment, header)) && header.sequence === sequence;
    if (!isKnown || header.next >= segments.count) break;
    const next = header.next;
    if (!(yield* reader.segmentHeader(next, header))) {
      // Its header may be what is damaged: believe its records, if they are newer than this segment.
      const claimed = yield* claimedSequence(reader, segments, next, sequence);
      if (claimed === 0) break;
      ({ segment, sequence } = { segment: next, sequence: claimed });
    } else if (isSuccessor(header, segment, sequence)) {
      ({ segment, sequence } = { segment: next, sequence: header.sequence });
    } else {
      break;
    }
    block = 1;
  }
  return found;
}

/** Sequence that the first record of `segment` claims, when it is above `above`; else 0. */
function* claimedSequence(
  reader: LogReader,
  segments: Segments,
  segment: number,
  above: number,
): Task<number> {
  const sequence = yield* reader.claim(segments.start(segment) + 1);
  return sequence > above ? sequence : 0;
}

/** A record handed out by {@linkcode walkLog}. Valid until the walk goes on. */
export interface WalkedRecord {
  readonly record: RecordHeader;
  /** Arena offset of its header. */
  readonly at: number;
  /** Location of its header. */
  readonly location: number;
}

/**
 * Second pass: calls `apply` for each record that counts.
 *
 * @param apply a task, since it may have to read the record's data
 * @returns lsn of the last record applied, and whether the walk was cut short by torn data
 */
export function* walkLog(
  reader: LogReader,
  window: Window,
  segments: Segments,
  scan: LogScan,
  apply: (walked: WalkedRecord) => Task,
): Task<{ endLsn: number; error: LogDamage | null }> {
  const record = new RecordHeader();
  let endLsn = scan.spans[0].firstLsn - 1;
  for (const { segment, sequence, firstBlock, firstLsn, lastLsn } of scan.spans) {
    let block = firstBlock;
    for (let lsn = firstLsn; lsn <= lastLsn; lsn++) {
      let at = yield* reader.record(segment, block, sequence, record, AHEAD_BLOCKS);
      if (at < 0 || record.lsn !== lsn) {
        // It was there a moment ago.
        return { endLsn, error: { segment, block, lsn, reason: "it can no longer be read" } };
      }
      const location = segments.start(segment) + block;
      if (lsn > scan.syncedLsn && record.dataBlocks > 0) {
        if (!(yield* isDataIntact(reader, window, location, at, record))) {
          return { endLsn, error: null };
        }
        at = yield* reader.record(segment, block, sequence, record, AHEAD_BLOCKS);
        if (at < 0) return { endLsn, error: { segment, block, lsn, reason: "read error" } };
      }
      yield* apply({ record, at, location });
      endLsn = lsn;
      block += record.headerBlocks + record.dataBlocks;
    }
  }
  return { endLsn, error: null };
}

/** Checks every data block of a record against its checksum. */
function* isDataIntact(
  reader: LogReader,
  window: Window,
  location: number,
  at: number,
  record: RecordHeader,
): Task<boolean> {
  const checksums = new Uint32Array(record.dataBlocks);
  let count = 0;
  let word = (at >>> 2) + RECORD_WORD.entries;
  for (let i = 0; i < record.entryCount; i++) {
    if (hasData(entryKind(window.u32, word))) {
      const blocks = entryCount(window.u32, word);
      const first = entryChecksums(word);
      for (let j = 0; j < blocks; j++) checksums[count++] = window.u32[first + j];
    }
    word = entryNext(window.u32, word);
  }
  const data = location + record.headerBlocks;
  for (let i = 0; i < count; i++) {
    const buffer = yield* reader.load(data + i, 1, count - i);
    if (buffer < 0) return false;
    if (window.kernel.checksum(buffer, BLOCK_BYTES) !== checksums[i]) return false;
  }
  return true;
}
