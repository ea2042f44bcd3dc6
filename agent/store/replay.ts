/**
 * Finds the log after a start, and walks it.
 *
 * The log is the chain of segments that begins at the superblock's replay position; each segment's
 * header names the one after it. Two passes:
 *
 * 1. {@linkcode scanLog} reads headers only. It finds where the chain of valid records ends, and
 *    the highest lsn that any record, before or after that end, says is durable. If the end lies
 *    beyond that lsn it is the torn tail of a crash: records that nobody was promised. If it does
 *    not, something that had been durable is gone: damage.
 * 2. {@linkcode walkLog} hands the records out in order. Of those past the durable lsn it checks
 *    the data as well. META that is not all there ends the log. A block of anything else that does
 *    not match was torn by the crash, or it was durable and has rotted since: nobody can tell. That
 *    is no reason to give up what lies behind it, which may be META that others were promised. The
 *    record is handed out with the blocks that are bad, and counts without them (open.ts).
 *    Where the machine went on and only the process was killed, it can be told now and then: what a write of a killed process
 *    leaves is a beginning of it, and it had at most `BATCHES_IN_FLIGHT_MAX` records under way. Good data behind bad in one record,
 *    and a bad record with that many behind it, were whole once and may have been acknowledged: the walk says so (`isRotten`). So was
 *    a record that is missing with that many behind it, though the log ends there: the scan says so (`isGap`).
 *
 *     lsn   | replayed, data not read   durable | replayed, data checked | torn | ignored, valid or not
 *                                                                          ▲
 *                                          first header or META that is not valid
 *
 * The disk may have lost a record without a word. Such a gap looks like the end of the log, and what lies behind it tells: it
 * says what was durable. With the first record of a segment its header is lost, so what lies behind is looked for in all of the
 * segment, wherever the header there is not newer than that of the one before. (The whole of a segment that is lost cannot be
 * told from one that was never written; nor can what was lost last.)
 *
 * How a segment's end is told from the log's end: the header of the following segment names the
 * last lsn that counts before it. Reaching exactly that lsn leads on; falling short is a gap;
 * records with higher ones are left-overs of a failed write and do not count.
 *
 * @module
 */
import { BLOCK_BYTES } from "../base/limits.ts";
import type { Window } from "../platform/platform.ts";
import {
  entryChecksums,
  entryCount,
  EntryKind,
  entryKind,
  entryNext,
  hasData,
  NO_SEGMENT,
  RECORD_WORD,
  RecordHeader,
  SegmentHeader,
  SegmentKind,
} from "./format.ts";
import { BATCHES_IN_FLIGHT_MAX, type LogPosition } from "./log.ts";
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
  /**
   * Segment that its header names as the following one; NO_SEGMENT when the header cannot be read.
   */
  readonly next: number;
}

/** Where a walk ended: the place right after the last record that counts. */
export interface LogEnd {
  readonly segment: number;
  readonly sequence: number;
  readonly block: number;
  readonly next: number;
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
  /** Highest lsn of a record that is there, counting or not; 0: none is. */
  recordMax: number;
  /** Highest segment sequence seen. */
  sequenceMax: number;
  /** lsn of the last record that counts (before its data is checked). */
  endLsn: number;
  /**
   * A segment header on the way is damaged: what followed it can only be found by looking
   * everywhere.
   */
  isHeaderLost: boolean;
  /** The log ends at a record that had been written: see the head of the file. */
  isGap: boolean;
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
    recordMax: 0,
    sequenceMax: start.sequence,
    endLsn: start.lsn - 1,
    isHeaderLost: false,
    isGap: false,
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
    // The header: when the replay position is at the start of a segment that was never written,
    // there is no log.
    const hasHeader = (yield* reader.segmentHeader(segment, header)) &&
      header.kind === SegmentKind.Log && header.sequence === sequence;
    let next = -1;
    let lastLsn = Infinity;
    if (hasHeader) {
      // It was given, even where nothing of its record is there: writes before it had failed, and so may its own have.
      scan.lsnMax = Math.max(scan.lsnMax, header.startLsn);
      if (block === 1 && header.startLsn > lsn) lsn = header.startLsn;
      next = header.next < segments.count ? header.next : -1;
      const isThere = next >= 0 && (yield* reader.segmentHeader(next, following)) &&
        isSuccessor(following, segment, header);
      if (isThere) lastLsn = following.previousEndLsn;
      else next = -1;
    }
    const span: LogSpan = {
      segment,
      sequence,
      firstBlock: block,
      firstLsn: lsn,
      lastLsn: lsn - 1,
      next: hasHeader ? header.next : NO_SEGMENT,
    };
    scan.spans.push(span);
    // Where the log goes on within a segment its header was there: it has rotted, and the records say themselves whose they are.
    const isHeaderRotten = !hasHeader && block > 1;
    if (isHeaderRotten) scan.isGap = true;
    while ((hasHeader || isHeaderRotten || resumed) && lsn <= lastLsn) {
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
    if (scan.lsnMax >= lsn + BATCHES_IN_FLIGHT_MAX) scan.isGap = true;
    if (scan.syncedLsn < lsn) return scan;
    scan.damage.push({ segment, block, lsn, reason: describe(reader, hasHeader) });
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

/**
 * True when `next` is the header of the segment that was opened right after `segment`, whose header
 * is `header`. One that was opened before a failed write made the log begin `segment` anew says
 * that it follows lsns from before that: it does not count.
 */
function isSuccessor(next: SegmentHeader, segment: number, header: SegmentHeader): boolean {
  return next.kind === SegmentKind.Log && next.sequence > header.sequence &&
    next.previous === segment && next.startLsn > next.previousEndLsn &&
    next.previousEndLsn >= header.startLsn;
}

function noteRecord(scan: LogScan, lsn: number): void {
  scan.lsnMax = Math.max(scan.lsnMax, lsn);
  scan.recordMax = Math.max(scan.recordMax, lsn);
}

function note(scan: LogScan, record: RecordHeader): void {
  scan.syncedLsn = Math.max(scan.syncedLsn, record.syncedLsn);
  noteRecord(scan, record.lsn);
  scan.sequenceMax = Math.max(scan.sequenceMax, record.segmentSequence);
}

/**
 * Looks for valid records past the end of the chain: in the rest of its last segment and in the
 * segments after that. Notes whether a header that should have announced them is lost.
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
  const following = new SegmentHeader();
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
    if (!isKnown) {
      scan.isHeaderLost ||=
        (yield* claimedSequence(reader, segments, segment, sequence - 1, 0)) > 0;
      break;
    }
    if (header.next >= segments.count) break;
    const next = header.next;
    const isNewer = (yield* reader.segmentHeader(next, following)) &&
      following.sequence > sequence;
    if (!isNewer) {
      // Its header may be damaged or lost: believe its records, if they are newer than this segment.
      const claimed = yield* claimedSequence(reader, segments, next, sequence, from.lsn);
      if (claimed === 0) break;
      scan.isHeaderLost = true;
      ({ segment, sequence } = { segment: next, sequence: claimed });
    } else if (isSuccessor(following, segment, header)) {
      ({ segment, sequence } = { segment: next, sequence: following.sequence });
    } else {
      // It may be in use again, by a log of which a lost superblock tells.
      scan.isHeaderLost = true;
      break;
    }
    block = 1;
  }
  return found;
}

/**
 * Looks for proof that the log went on after the end of the chain: to be asked when the newer
 * superblock or a segment header may have been lost. Segments whose records never became durable
 * prove nothing; those written after a later sync do.
 *
 * @param stray told of each such record
 * @returns the highest lsn that any record outside the chain says is durable, and where it says so
 */
export function* findStrays(
  reader: LogReader,
  segments: Segments,
  scan: LogScan,
  stray: (walked: WalkedRecord) => void,
): Task<{ syncedLsn: number; segment: number }> {
  const header = new SegmentHeader();
  const record = new RecordHeader();
  const last = scan.spans[scan.spans.length - 1].sequence;
  const found = { syncedLsn: 0, segment: 0 };
  for (let segment = 0; segment < segments.count; segment++) {
    const isStray = (yield* reader.segmentHeader(segment, header)) &&
      header.kind === SegmentKind.Log && header.sequence > last;
    if (!isStray) continue;
    scan.sequenceMax = Math.max(scan.sequenceMax, header.sequence);
    for (let block = 1; block < segments.segmentBlocks;) {
      const at = yield* reader.record(segment, block, header.sequence, record, AHEAD_BLOCKS);
      if (at < 0) {
        block++;
        continue;
      }
      noteRecord(scan, record.lsn);
      if (record.syncedLsn > found.syncedLsn) {
        found.syncedLsn = record.syncedLsn;
        found.segment = segment;
      }
      stray({ record, at, location: segments.start(segment) + block, bad: null });
      block += record.headerBlocks + record.dataBlocks;
    }
  }
  return found;
}

/**
 * Highest sequence above `above` that a record in `segment` claims; 0: none does. Not only the first one is asked, which may
 * never have reached the disk; where the disk cannot read it nothing more is looked for.
 *
 * @param lsnMin records with a lower lsn were ignored before
 */
function* claimedSequence(
  reader: LogReader,
  segments: Segments,
  segment: number,
  above: number,
  lsnMin: number,
): Task<number> {
  const { failures } = reader;
  let highest = 0;
  for (let block = 1; block < segments.segmentBlocks && reader.failures === failures; block++) {
    const sequence = yield* reader.claim(segments.start(segment) + block, lsnMin, AHEAD_BLOCKS);
    if (sequence > above && sequence > highest) highest = sequence;
  }
  return highest;
}

/** A record handed out by {@linkcode walkLog}. Valid until the walk goes on. */
export interface WalkedRecord {
  readonly record: RecordHeader;
  /** Arena offset of its header. */
  readonly at: number;
  /** Location of its header. */
  readonly location: number;
  /**
   * By data block of the record: 1 where it does not match its checksum; never one of META. Null
   * where all match, or the record is known to be durable and its data was not looked at.
   */
  readonly bad: Uint8Array | null;
}

/**
 * Second pass: calls `apply` for each record that counts.
 *
 * @param apply a task, since it may have to read the record's data
 * @returns lsn of the last record applied, what cut the walk short where that was no torn META, and whether something had been
 * written whole and does not match now: see the head of the file
 */
export function* walkLog(
  reader: LogReader,
  window: Window,
  segments: Segments,
  scan: LogScan,
  apply: (walked: WalkedRecord) => Task,
): Task<{ endLsn: number; end: LogEnd; error: LogDamage | null; isRotten: boolean }> {
  const record = new RecordHeader();
  let isRotten = false;
  let left = 0;
  for (const { firstLsn, lastLsn } of scan.spans) left += Math.max(0, lastLsn - firstLsn + 1);
  let endLsn = scan.spans[0].firstLsn - 1;
  let end: LogEnd = { ...scan.spans[0], block: scan.spans[0].firstBlock };
  for (const { segment, sequence, firstBlock, firstLsn, lastLsn, next } of scan.spans) {
    let block = firstBlock;
    end = { segment, sequence, block, next };
    for (let lsn = firstLsn; lsn <= lastLsn; lsn++) {
      let at = yield* reader.record(segment, block, sequence, record, AHEAD_BLOCKS);
      if (at < 0 || record.lsn !== lsn) {
        // It was there a moment ago.
        const error = { segment, block, lsn, reason: "it can no longer be read" };
        return { endLsn, end, error, isRotten };
      }
      left--;
      const location = segments.start(segment) + block;
      let bad: Uint8Array | null = null;
      if (lsn > scan.syncedLsn && record.dataBlocks > 0) {
        const checked = yield* checkData(reader, window, location, at, record);
        const isBad = checked.isMetaBad || checked.bad !== null;
        if (isBad && (checked.isHole || left >= BATCHES_IN_FLIGHT_MAX)) isRotten = true;
        if (checked.isMetaBad) return { endLsn, end, error: null, isRotten };
        ({ bad } = checked);
        at = yield* reader.record(segment, block, sequence, record, AHEAD_BLOCKS);
        if (at < 0) {
          const error = { segment, block, lsn, reason: "read error" };
          return { endLsn, end, error, isRotten };
        }
      }
      yield* apply({ record, at, location, bad });
      endLsn = lsn;
      block += record.headerBlocks + record.dataBlocks;
      end = { segment, sequence, block, next };
    }
  }
  return { endLsn, end, error: null, isRotten };
}

/**
 * Checks every data block of a record against its checksum.
 *
 * @returns `isHole`: data that matches lies behind data that does not; zeros may have been there before
 */
function* checkData(
  reader: LogReader,
  window: Window,
  location: number,
  at: number,
  record: RecordHeader,
): Task<{ isMetaBad: boolean; bad: Uint8Array | null; isHole: boolean }> {
  const checksums = new Uint32Array(record.dataBlocks);
  const isMeta = new Uint8Array(record.dataBlocks);
  let count = 0;
  let word = (at >>> 2) + RECORD_WORD.entries;
  for (let i = 0; i < record.entryCount; i++) {
    const kind = entryKind(window.u32, word);
    if (hasData(kind)) {
      const blocks = entryCount(window.u32, word);
      const first = entryChecksums(word);
      if (kind === EntryKind.Meta || kind === EntryKind.MetaBatch) {
        isMeta.fill(1, count, count + blocks);
      }
      for (let j = 0; j < blocks; j++) checksums[count++] = window.u32[first + j];
    }
    word = entryNext(window.u32, word);
  }
  const data = location + record.headerBlocks;
  let bad: Uint8Array | null = null;
  let isMetaBad = false, isHole = false;
  for (let i = 0; i < count; i++) {
    const buffer = yield* reader.load(data + i, 1, count - i);
    if (buffer >= 0 && window.kernel.checksum(buffer, BLOCK_BYTES) === checksums[i]) {
      if (bad !== null && !window.kernel.isZero(buffer, BLOCK_BYTES)) isHole = true;
      continue;
    }
    if (isMeta[i] === 1) isMetaBad = true;
    bad ??= new Uint8Array(count);
    bad[i] = 1;
  }
  return { isMetaBad, bad, isHole };
}
