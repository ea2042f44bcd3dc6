/**
 * Opening a store: superblock, checkpoint, replay, and the steps that make the result safe to build
 * upon.
 *
 * 1. The newest valid superblock; refuse other hosts and newer formats.
 * 2. Its checkpoint. If that cannot be read, the other superblock's, with its longer log, if all of
 *    it is still there.
 * 3. Replay (replay.ts). What had been durable and is gone is damage, and refused unless the caller
 *    accepts it.
 *    Where damage is accepted nobody knows what the writes that are gone had changed, so all stamps
 *    become unknown; and blocks are poisoned whose place a record of the log has given to another one, since what freed them is gone.
 *    Blocks that may have been torn: see below. What cannot be read, however often
 *    it is tried, ends the log like what was torn; but it may have been acknowledged by a process that
 *    was killed, so the caller is told ({@linkcode OpenOptions.mayHaveLost}). So it is where a block that does not match
 *    was surely not torn by the end of a process, or a record is missing that was surely there.
 *    Whoever opens the store may look at META and refuse it (`admit`): until here nothing was written.
 * 4. Sync: what was read may so far be in the page cache only, left by a process that was killed.
 *    Everything that follows relies on it, so it must be durable before anything is overwritten.
 * 5. Unless the store was closed cleanly, a checkpoint of the result, so that the torn tail that
 *    was ignored can never come back. Segments of the old checkpoint and of the old log stay
 *    untouched until its superblock is durable: a crash in here leads back to step 1 with all of
 *    its input in place.
 * 6. A superblock that says "not clean" and names the place where the log goes on: right where it
 *    ended, so that neither stops nor crashes cost space, or in a new segment where that cannot be.
 *    Where nothing but it leads there, it is written to both places: a disk that loses one of them leaves the other.
 *    New segments get sequences that were never used. Before the log goes on, what the following
 *    segment may hold of the ignored tail is overwritten: it would claim to follow.
 *
 * @module
 */
import { BLOCK_BYTES, CHUNK_BLOCKS } from "../base/limits.ts";
import { ENOSPC, type Window } from "../platform/platform.ts";
import { Applier, LayerState } from "./applier.ts";
import {
  checkpointPayloadBytesExact,
  checkpointSegmentsFor,
  loadCheckpoint,
  type LoadedCheckpoint,
  writeCheckpoint,
} from "./checkpoint.ts";
import { ChecksumCache } from "./checksum_cache.ts";
import { type Core, type Machine, WORK_BYTES } from "./core.ts";
import { StoreError } from "./errors.ts";
import {
  entryBlock,
  entryChecksums,
  entryChunk,
  entryCount,
  entryFlags,
  EntryKind,
  entryKind,
  entryLayer,
  entryNext,
  FORMAT_BASE,
  hasData,
  ID_BYTES,
  idWords,
  META_REMOVED,
  NO_SEGMENT,
  RECORD_WORD,
  RecordHeader,
  SegmentHeader,
  SegmentKind,
  segmentsMax,
  type Superblock,
} from "./format.ts";
import { Index } from "./index.ts";
import { type LogPosition, type RecordLog, WRITE_TRIES_MAX } from "./log.ts";
import { LogReader } from "./log_reader.ts";
import { decodeMetaItems, MetaTable } from "./meta.ts";
import {
  findStrays,
  type LogEnd,
  type LogScan,
  scanLog,
  type WalkedRecord,
  walkLog,
} from "./replay.ts";
import { Segments, SegmentState } from "./segments.ts";
import { readSuperblocks, writeSuperblock } from "./superblock.ts";
import type { Task, TaskIo } from "./task.ts";

/**
 * Segment sequences of one opening: each opening begins at the next multiple, so none of its
 * sequences was ever used, seen or unseen. 2^28 segments of 16 MiB are 4 PiB; 2^25 openings fit
 * below 2^53.
 */
const SEQUENCES_PER_OPEN = 2 ** 28;

/**
 * Segments whose worth of lsns is left out after a crash: records that were torn are in the log's last segment, where it goes
 * on, and in the one that follows it, and no record that counts may ever have one of theirs (lives.ts, replay.ts). Those that
 * could be read are known. There are no more of the others than blocks, and a block may have been tried so many times.
 */
const LSN_SEGMENTS_PER_CRASH = 2 * WRITE_TRIES_MAX;

/** What {@linkcode openStore} may be told. */
export interface OpenOptions {
  /** 16 bytes: which host this is. */
  readonly hostId: Uint8Array;
  /** Take over a store that belongs to another host. */
  readonly adopt?: boolean;
  /** Open although durable data is gone; what is left is served. */
  readonly acceptDamage?: boolean;
  /** Grow to this size. */
  readonly capacityBytes?: number;
  /**
   * Called before anything is written when more may be missing than what was under way, or will be at the next start: the first sync
   * failed, something could not be read where the log may go on, or does not match there although it was written whole, or damage was accepted. A start that follows one on the same run of the machine normally finds all that
   * was acknowledged, and says so to others; this one must not.
   */
  readonly mayHaveLost?: () => void;
  /**
   * Called before anything is written when blocks of guests at the log's end do not match and are as they were before, or the log ends
   * before records that are there. Where the machine has not been rebooted since, the end of the process has cut short what nobody was
   * promised, as good as always; or something had been acknowledged and has rotted, and nothing here can tell. Others have it. Only of
   * the very last record's header nobody can tell that there was one.
   */
  readonly foundTorn?: () => void;
  /**
   * Asked when the values of META are known and nothing has been written yet: why this store must not be opened,
   * or null.
   */
  readonly admit?: (meta: (key: string) => Uint8Array | undefined) => string | null;
}

/** What the store makes once the geometry is known. */
export interface CoreParts {
  /** Makes the log upon the segments. */
  makeLog(core: Omit<Core, "log">): RecordLog;
}

/** State of an opening: index, tables and segments as they are rebuilt. */
class Rebuilt {
  readonly segments: Segments;
  readonly index: Index;
  readonly applier: Applier;
  readonly meta = new MetaTable();
  placed: (location: number, count: number) => void = () => {};
  /** Blocks of the log that do not match and may have been torn. */
  tornBlocks = 0;
  /** Highest version of a record. */
  format = 0;
  /** layer → chunks that such blocks were written to. */
  readonly doubtful = new Map<number, Set<number>>();
  /** Where damage may be accepted: by segment, what records of the log have put there. */
  claims: Map<number, Claims> | null = null;
  /** The first entry of META that is part of the log and cannot be read. */
  lostMeta: { lsn: number; location: number } | null = null;

  constructor(
    readonly machine: Machine,
    readonly storeId: Uint8Array,
    readonly storeWords: Uint32Array,
    superblock: Superblock,
  ) {
    this.segments = new Segments(superblock.segmentBytes, superblock.segmentCount);
    // Live blocks are counted when all is done, from the index itself.
    this.index = new Index();
    this.applier = new Applier(this.index, machine.window.u32, {
      blocksPlaced: (location, count) => this.placed(location, count),
    });
  }
}

/** What records have put into the blocks of a segment. */
class Claims {
  /** Layers that the records name. */
  readonly layers: Uint32Array;
  /** {@linkcode placeOf}; 0: nothing. */
  readonly places: Float64Array;

  constructor(blocks: number) {
    this.layers = new Uint32Array(blocks);
    this.places = new Float64Array(blocks);
  }
}

/** {@linkcode Claims}: values of META. */
const META_PLACE = -1;

/** Which block of a layer, as one number above 0. */
function placeOf(chunk: number, block: number): number {
  return chunk * CHUNK_BLOCKS + block + 1;
}

/** A consistent state found on the disk. */
interface Found {
  readonly rebuilt: Rebuilt;
  readonly checkpoint: LoadedCheckpoint;
  readonly scans: LogScan[];
  /** lsn of the last record that counts. */
  readonly endLsn: number;
  /** Place after it; null when it is not known for certain. */
  readonly end: LogEnd | null;
  readonly lsnMax: number;
  readonly sequenceMax: number;
  /** See {@linkcode OpenOptions.mayHaveLost}. */
  readonly mayHaveLost: boolean;
  /** See {@linkcode OpenOptions.foundTorn}. */
  readonly isTorn: boolean;
}

/** Opens the store on `machine.disk`. */
export function* openStore(
  io: TaskIo,
  machine: Machine,
  options: OpenOptions,
  parts: CoreParts,
): Task<Core | StoreError> {
  const pair = yield* readSuperblocks(io, machine.window, machine.buffers.superblock);
  if (pair instanceof StoreError) return pair;
  const { newest, other } = pair;
  const refused = refuse(newest, machine, options);
  if (refused !== null) return refused;
  if (pair.otherDamaged) {
    machine.logger.warn("one of the two superblocks cannot be read: using the other", {
      sequence: newest.sequence,
    });
  }
  const starts = [positionOf(newest)];
  let found = yield* restore(io, machine, newest, starts, options, pair.otherDamaged);
  if (found instanceof StoreError && found.code === "DAMAGED" && other !== null) {
    machine.logger.warn("trying the checkpoint before the damaged one", { reason: found.message });
    const both = [positionOf(other), positionOf(newest)];
    const older = yield* restore(
      io,
      machine,
      other,
      both,
      { ...options, acceptDamage: false },
      false,
    );
    if (!(older instanceof StoreError)) found = older;
  }
  if (found instanceof StoreError) return found;
  const { meta } = found.rebuilt;
  const unfit = options.admit?.((key) => meta.get(key)) ?? null;
  if (unfit !== null) return new StoreError("LEVEL", unfit);
  if (found.mayHaveLost) options.mayHaveLost?.();
  if (found.isTorn) options.foundTorn?.();
  return yield* takeOver(io, machine, newest, found, options, parts);
}

function refuse(superblock: Superblock, machine: Machine, options: OpenOptions): StoreError | null {
  const isSame = superblock.hostId.every((byte, i) => byte === options.hostId[i]);
  if (!isSame && options.adopt !== true) {
    return new StoreError(
      "OTHER_HOST",
      "the store belongs to another host, and must never be open on two: take it over only if it was moved here for good",
    );
  }
  const end = endBytes(superblock.segmentBytes, superblock.segmentCount);
  if (end > machine.disk.sizeBytesMax) {
    return new StoreError(
      "DAMAGED",
      `the store needs ${end} bytes, the device has ${machine.disk.sizeBytesMax}: it has been cut short`,
    );
  }
  return null;
}

/** Bytes of a store with so many segments. */
export function endBytes(segmentBytes: number, segmentCount: number): number {
  return 1024 * 1024 + segmentBytes * segmentCount;
}

function positionOf(superblock: Superblock): LogPosition & { syncedLsn: number; clean: boolean } {
  return {
    segment: superblock.replaySegment,
    sequence: superblock.replaySequence,
    block: superblock.replayBlock,
    lsn: superblock.replayLsn,
    previousEndLsn: superblock.previousEndLsn,
    syncedLsn: superblock.syncedLsn,
    clean: superblock.clean,
  };
}

/**
 * Rebuilds the state from the checkpoint of `superblock` and the logs from `starts` on, oldest
 * first: one, or two when the newest checkpoint is damaged and the log before it has to be replayed
 * as well.
 *
 * @param isDoubtful there may have been a newer superblock: look for proof
 */
function* restore(
  io: TaskIo,
  machine: Machine,
  superblock: Superblock,
  starts: ReturnType<typeof positionOf>[],
  options: OpenOptions,
  isDoubtful: boolean,
): Task<Found | StoreError> {
  const { window, buffers } = machine;
  const storeWords = idWords(superblock.storeId);
  const rebuilt = new Rebuilt(machine, superblock.storeId, storeWords, superblock);
  const checkpoint = yield* loadCheckpoint(io, rebuilt, superblock);
  if (typeof checkpoint === "string") {
    return new StoreError(
      "DAMAGED",
      `the checkpoint of the index cannot be read: ${checkpoint}. Restore the store from a replica or a backup`,
    );
  }
  const { segments } = rebuilt;
  const reader = new LogReader({
    io,
    window,
    segments,
    storeId: superblock.storeId,
    storeWords,
    buffer: buffers.work,
    bufferBytes: WORK_BYTES,
  });
  if (options.acceptDamage === true) rebuilt.claims = new Map();
  const scans: LogScan[] = [];
  let isDamageAccepted = false, isRotten = false, isCut = false;
  let endLsn = 0;
  let end: LogEnd | null = null;
  let lsnMax = superblock.syncedLsn;
  let sequenceMax = Math.max(superblock.nextSequence, checkpoint.sequenceMax);
  for (let i = 0; i < starts.length; i++) {
    const start = starts[i];
    const isOver = start.clean && !isDoubtful && !(yield* goesOnBehind(reader, start));
    if (isOver) {
      endLsn = Math.max(endLsn, start.lsn - 1);
      lsnMax = Math.max(lsnMax, start.lsn - 1);
      end = yield* endOf(reader, start);
      continue;
    }
    const isLast = i === starts.length - 1;
    // What came before a later checkpoint was durable with it.
    const durableLsn = isLast ? 0 : starts[i + 1].previousEndLsn;
    const syncedLsn = Math.max(start.syncedLsn, durableLsn);
    const scan = yield* scanLog(reader, segments, start, syncedLsn);
    if (isDoubtful || scan.isHeaderLost) yield* doubt(reader, rebuilt, scan, isDoubtful);
    if (!isLast) limitSpans(scan, starts[i + 1].previousEndLsn);
    if (scan.damage.length > 0 && options.acceptDamage !== true) return damaged(scan, segments);
    for (const { segment, block, lsn, reason } of scan.damage) {
      machine.damage.add({
        what: "record",
        layer: 0,
        chunk: 0,
        block: 0,
        offsetBytes: segments.offsetBytes(segment) + block * 4096,
        message: `record ${lsn}: ${reason}`,
      });
    }
    const walked = yield* walkLog(
      reader,
      window,
      segments,
      scan,
      (record) => {
        claim(rebuilt, record);
        return replayRecord(rebuilt, reader, window, record);
      },
    );
    isRotten ||= walked.isRotten || (isLast && scan.isGap);
    isCut ||= isLast && scan.recordMax > walked.endLsn;
    if (walked.error !== null) {
      const { segment, block, lsn, reason } = walked.error;
      return new StoreError(
        "IO",
        `record ${lsn} at block ${block} of segment ${segment}: ${reason}`,
      );
    }
    if (rebuilt.lostMeta !== null) {
      const { lsn, location } = rebuilt.lostMeta;
      rebuilt.lostMeta = null;
      const offsetBytes = location * BLOCK_BYTES;
      const message = `the values that record ${lsn} sets are damaged`;
      if (options.acceptDamage !== true) {
        return new StoreError(
          "DAMAGED",
          `${message}: byte ${offsetBytes} of the file. They had been made durable: restore from a replica or a ` +
            `backup, or accept the damage to go on with the values from before`,
        );
      }
      isDamageAccepted = true;
      machine.damage.add({ what: "record", layer: 0, chunk: 0, block: 0, offsetBytes, message });
    }
    // Writes are gone: no content is any longer what its stamp says.
    if (scan.damage.length > 0) {
      isDamageAccepted = true;
      rebuilt.applier.stamps.dropAll();
      poisonReused(rebuilt);
    }
    if (!isLast && walked.endLsn < starts[i + 1].previousEndLsn) {
      return new StoreError(
        "DAMAGED",
        "the checkpoint of the index cannot be read, and the log from the one before it on is no longer complete",
      );
    }
    scans.push(scan);
    endLsn = walked.endLsn;
    end = scan.damage.length === 0 ? walked.end : null;
    lsnMax = Math.max(lsnMax, scan.lsnMax);
    sequenceMax = Math.max(sequenceMax, scan.sequenceMax);
  }
  forgetDoubtful(rebuilt, machine);
  rebuilt.applier.times = null;
  rebuilt.claims = null;
  if (reader.failures > 0) {
    machine.logger.warn("the disk could not read a place that the log's newest part may lie in", {
      errno: reader.error,
    });
  }
  const mayHaveLost = reader.failures > 0 || isDamageAccepted || isRotten;
  const isTorn = isCut || rebuilt.doubtful.size > 0;
  return { rebuilt, checkpoint, scans, endLsn, end, lsnMax, sequenceMax, mayHaveLost, isTorn };
}

/**
 * Whether a record lies where a log was closed cleanly: the superblock that says that the log goes on from there is lost then. Its lsn is
 * above the one that would be next, since every opening leaves one out.
 */
function* goesOnBehind(reader: LogReader, start: LogPosition): Task<boolean> {
  const { segment, block, sequence, lsn } = start;
  const record = new RecordHeader();
  const at = yield* reader.record(segment, block, sequence, record, 1);
  return at >= 0 && record.lsn >= lsn;
}

/** Where a log that was closed cleanly ended. */
function* endOf(reader: LogReader, start: LogPosition): Task<LogEnd | null> {
  const header = new SegmentHeader();
  const { segment, sequence, block } = start;
  const isThere = (yield* reader.segmentHeader(segment, header)) &&
    header.kind === SegmentKind.Log && header.sequence === sequence;
  return isThere ? { segment, sequence, block, next: header.next } : null;
}

/** Adds to the damage when the log is shown to have gone on where it seems to end. */
function* doubt(
  reader: LogReader,
  rebuilt: Rebuilt,
  scan: LogScan,
  isSuperblockLost: boolean,
): Task {
  const { segments } = rebuilt;
  const stray = yield* findStrays(reader, segments, scan, (walked) => claim(rebuilt, walked));
  if (stray.syncedLsn <= Math.max(scan.endLsn, scan.syncedLsn)) return;
  scan.damage.push({
    segment: stray.segment,
    block: 0,
    lsn: scan.endLsn + 1,
    reason: isSuperblockLost
      ? "the newest superblock is lost, and with it the way to what was written after it"
      : "a segment's header is damaged, and the way to what was written after it is lost",
  });
}

/** Of a log that another one follows, what lies past `lastLsn` does not count. */
function limitSpans(scan: LogScan, lastLsn: number): void {
  for (const span of scan.spans) span.lastLsn = Math.min(span.lastLsn, lastLsn);
}

function damaged(scan: LogScan, segments: Segments): StoreError {
  const { segment, block, lsn, reason } = scan.damage[0];
  return new StoreError(
    "DAMAGED",
    `record ${lsn} had been made durable and is gone: block ${block} of segment ${segment}, byte ` +
      `${
        segments.offsetBytes(segment) + block * 4096
      } of the file: ${reason}. Writes from there on may be missing or ` +
      `stale: restore from a replica or a backup, or accept the damage to go on with what is left`,
  );
}

/** A META or META_BATCH entry whose data is still to be read. */
interface MetaEntry {
  readonly kind: EntryKind;
  readonly data: number;
  readonly blocks: number;
  readonly checksums: Uint32Array;
  /** META: bytes of the key. META_BATCH: bytes of all items. */
  readonly first: number;
  /** META: bytes of the value. META_BATCH: items. */
  readonly second: number;
  readonly isRemoved: boolean;
}

/** Applies one record of the log. */
function* replayRecord(
  rebuilt: Rebuilt,
  reader: LogReader,
  window: Window,
  walked: WalkedRecord,
): Task {
  const { record, at, location, bad } = walked;
  const { u32 } = window;
  rebuilt.format = Math.max(rebuilt.format, record.version);
  rebuilt.applier.lsn = record.lsn;
  const headerWord = at >>> 2;
  let word = headerWord + RECORD_WORD.entries;
  const first = location + record.headerBlocks;
  let data = first;
  const metas: MetaEntry[] = [];
  for (let i = 0; i < record.entryCount; i++) {
    const kind = entryKind(u32, word);
    if (kind === EntryKind.Meta || kind === EntryKind.MetaBatch) {
      const blocks = entryCount(u32, word);
      const sums = entryChecksums(word);
      metas.push({
        kind,
        data,
        blocks,
        checksums: u32.slice(sums, sums + blocks),
        first: entryLayer(u32, word),
        second: entryChunk(u32, word),
        isRemoved: (entryFlags(u32, word) & META_REMOVED) !== 0,
      });
    } else {
      const blocks = hasData(kind) ? entryCount(u32, word) : 0;
      const torn = bad?.subarray(data - first, data - first + blocks);
      if (torn?.includes(1)) replayTorn(rebuilt, window, walked, word, data, torn);
      else rebuilt.applier.apply(word, headerWord, location, data);
    }
    if (hasData(kind)) data += entryCount(u32, word);
    word = entryNext(u32, word);
  }
  // Last, since reading their data takes the buffer that the record lies in.
  for (const meta of metas) {
    if (yield* replayMeta(rebuilt, reader, window, meta)) continue;
    rebuilt.lostMeta ??= { lsn: record.lsn, location: meta.data };
  }
}

/**
 * Applies a WRITE, FILL or RELOCATE of which some blocks do not match: the others count, the bad ones
 * stay where they were. See "Torn or rotten" at the head of the file.
 *
 * @param torn by block of the entry: 1 where it is bad
 */
function replayTorn(
  rebuilt: Rebuilt,
  window: Window,
  walked: WalkedRecord,
  word: number,
  data: number,
  torn: Uint8Array,
): void {
  const { u32 } = window;
  const headerWord = walked.at >>> 2;
  for (let from = 0; from < torn.length;) {
    if (torn[from] === 1) {
      rebuilt.tornBlocks++;
      from++;
      continue;
    }
    const next = torn.indexOf(1, from);
    const count = (next < 0 ? torn.length : next) - from;
    rebuilt.applier.applyPart(word, headerWord, walked.location, data, from, count);
    from += count;
  }
  if (entryKind(u32, word) === EntryKind.Relocate) return;
  const layer = entryLayer(u32, word);
  let chunks = rebuilt.doubtful.get(layer);
  if (chunks === undefined) rebuilt.doubtful.set(layer, chunks = new Set());
  chunks.add(entryChunk(u32, word));
}

/** Notes what a record has put where. */
function claim({ claims, segments, machine }: Rebuilt, walked: WalkedRecord): void {
  if (claims === null) return;
  const { u32 } = machine.window;
  const { record, at, location, bad } = walked;
  const segment = segments.of(location);
  let own = claims.get(segment);
  if (own === undefined) claims.set(segment, own = new Claims(segments.segmentBlocks));
  const start = location - segments.start(segment) + record.headerBlocks;
  let word = (at >>> 2) + RECORD_WORD.entries;
  let data = 0;
  for (let entry = 0; entry < record.entryCount; entry++) {
    const kind = entryKind(u32, word);
    const isMeta = kind === EntryKind.Meta || kind === EntryKind.MetaBatch;
    const count = hasData(kind) ? entryCount(u32, word) : 0;
    for (let i = 0; i < count; i++, data++) {
      if (bad?.[data] === 1) continue;
      own.layers[start + data] = entryLayer(u32, word);
      own.places[start + data] = isMeta
        ? META_PLACE
        : placeOf(entryChunk(u32, word), entryBlock(u32, word) + i);
    }
    word = entryNext(u32, word);
  }
}

/**
 * Damage was accepted: a record that is lost may have made blocks dead whose segment was used again since. What is there now matches
 * the checksums of the records that brought it, and must not be taken for those blocks.
 */
function poisonReused({ claims, index, segments, applier: { absorbed } }: Rebuilt): void {
  if (claims === null) return;
  const stale: [layer: number, chunk: number, block: number][] = [];
  index.eachRun((layer, chunk, block, location, count) => {
    const segment = segments.of(location);
    const own = claims.get(segment);
    if (own === undefined) return;
    const start = location - segments.start(segment);
    for (let i = 0; i < count; i++) {
      const place = own.places[start + i], label = own.layers[start + i];
      const isIt = place === placeOf(chunk, block + i) &&
        (label === layer || absorbed.layersOf(label).includes(layer));
      if (place !== 0 && !isIt) stale.push([layer, chunk, block + i]);
    }
  });
  for (const [layer, chunk, block] of stale) index.poison(layer, chunk, block, 1);
}

/** All of the log is applied: chunks of which a part is missing do not hold what any stamp says. */
function forgetDoubtful(rebuilt: Rebuilt, machine: Machine): void {
  const { doubtful, tornBlocks, applier: { stamps, absorbed } } = rebuilt;
  if (tornBlocks === 0) return;
  let chunkCount = 0;
  for (const [layer, chunks] of doubtful) {
    chunkCount += chunks.size;
    // What was written to this layer may be another one's by now.
    for (const each of [layer, ...absorbed.layersOf(layer)]) {
      for (const chunk of chunks) stamps.clear(each, chunk);
    }
  }
  // Ordinary after a power failure.
  machine.logger.info("blocks written shortly before the crash are as they were before", {
    blocks: tornBlocks,
    chunks: chunkCount,
  });
}

/** Takes the values of an entry; false when they cannot be read. */
function* replayMeta(
  rebuilt: Rebuilt,
  reader: LogReader,
  window: Window,
  entry: MetaEntry,
): Task<boolean> {
  const { kind, data, blocks, checksums, first, second, isRemoved } = entry;
  const buffer = yield* reader.load(data, blocks, blocks);
  if (buffer < 0) return false;
  for (let i = 0; i < blocks; i++) {
    if (window.kernel.checksum(buffer + i * BLOCK_BYTES, BLOCK_BYTES) !== checksums[i]) {
      return false;
    }
  }
  const { meta } = rebuilt;
  if (kind === EntryKind.MetaBatch) {
    return decodeMetaItems(window, buffer, first, second, (key, value) => meta.set(key, value));
  }
  const key = new TextDecoder().decode(window.bytes.slice(buffer, buffer + first));
  const value = buffer + first;
  meta.set(key, isRemoved ? null : window.bytes.slice(value, value + second));
  return true;
}

/** Steps 4 to 6. */
function* takeOver(
  io: TaskIo,
  machine: Machine,
  newest: Superblock,
  found: Found,
  options: OpenOptions,
  parts: CoreParts,
): Task<Core | StoreError> {
  const { rebuilt, checkpoint } = found;
  const { segments, index } = rebuilt;
  const isClean = found.scans.length === 0;
  // Also a clean end may be known to the page cache only, where the process was killed while it closed. The superblock that comes
  // next goes over the one that counts if this one is lost.
  const result = yield* io.sync();
  if (result < 0) {
    // What a process that was killed has left may have been dropped, and count as clean.
    options.mayHaveLost?.();
    return new StoreError("IO", `syncing the store while opening it failed (errno ${-result})`);
  }
  const bad = assignSegments(found);
  if (bad !== null) return bad;
  const goesOn = canGoOn(found);
  let sequence = Math.floor(found.sequenceMax / SEQUENCES_PER_OPEN) * SEQUENCES_PER_OPEN +
    SEQUENCES_PER_OPEN;
  // One lsn at least is left out, so that the first record of this opening proves by its syncedLsn
  // that it began.
  const lsn = Math.max(found.lsnMax, found.endLsn) + 1 +
    (isClean ? 0 : LSN_SEGMENTS_PER_CRASH * segments.segmentBlocks);
  const unfinished = {
    ...machine,
    storeId: rebuilt.storeId,
    storeWords: rebuilt.storeWords,
    segments,
    index,
    applier: rebuilt.applier,
    meta: rebuilt.meta,
    cache: new ChecksumCache(machine.tunables.checksumCacheBytes),
    // Where the newest superblock is lost, the one before it tells nothing of the run that is.
    wasClean: newest.clean && !found.mayHaveLost,
    superblock: {
      ...newest,
      format: Math.max(newest.format, FORMAT_BASE, rebuilt.format),
      hostId: options.hostId.slice(0, ID_BYTES),
    },
    checkpointSegments: checkpoint.segments,
    checkpointBytes: checkpoint.bytes,
    imageLayers: null,
    locked: false,
  };
  const log = parts.makeLog(unfinished);
  const core: Core = Object.assign(unfinished, { log });
  const grown = grow(core, options);
  if (grown !== null) return grown;
  const forCheckpoint = isClean
    ? 0
    : checkpointSegmentsFor(checkpointPayloadBytesExact(core), segments.segmentBytes);
  const head = goesOn
    ? yield* goOn(io, core, found.end!)
    : yield* beginAnew(io, core, forCheckpoint, ++sequence);
  if (head instanceof StoreError) return head;
  for (let segment = 0; segment < segments.count; segment++) segments.settle(segment, 0);
  const failed = yield* allocateReady(io, core, forCheckpoint);
  if (failed !== null) return failed;
  const position: LogPosition = {
    segment: head.segment,
    sequence: head.sequence,
    block: head.block,
    lsn: lsn + 1,
    previousEndLsn: found.endLsn,
  };
  if (isClean) {
    const error = yield* writeNextSuperblock(io, core, {
      clean: false,
      replaySegment: position.segment,
      replaySequence: position.sequence,
      replayBlock: position.block,
      replayLsn: position.lsn,
      previousEndLsn: position.previousEndLsn,
      syncedLsn: lsn,
      nextSequence: sequence + 1,
    });
    if (error !== null) return error;
  } else {
    const failure = yield* writeCheckpoint(io, core, {
      clean: false,
      position: () => position,
      nextSequence: () => ++sequence,
      appliedLsn: () => lsn,
      synced: () => {},
    });
    if (failure !== null) return failure.error;
  }
  if (isClean || head.isNew) {
    // Once more, to the other place. Where the log begins in a new segment, or goes on from a clean end with a record that no longer
    // fits there, nothing but the superblock leads to it; a disk that loses one of the two writes leaves the other.
    const error = yield* writeNextSuperblock(io, core, {});
    if (error !== null) return error;
  }
  log.begin(head, lsn, sequence);
  index.freed = {
    blocksFreed: (location, count) => segments.removeLive(location, count, log.appliedLsn),
  };
  rebuilt.placed = (location, count) => segments.addLive(location, count);
  return core;
}

/** Writes the superblock that follows the one in force, to the place of the one before that. */
function* writeNextSuperblock(
  io: TaskIo,
  core: Core,
  changes: Partial<Superblock>,
): Task<StoreError | null> {
  const superblock = {
    ...core.superblock,
    ...changes,
    sequence: core.superblock.sequence + 1,
  };
  const result = yield* writeSuperblock(io, core.window, core.buffers.superblock, superblock);
  if (result < 0) {
    return new StoreError("IO", `writing the superblock failed (errno ${-result})`);
  }
  core.superblock = superblock;
  return null;
}

/** Where the log of this opening begins. */
interface Head extends LogEnd {
  /** The segment has no header yet. */
  readonly isNew: boolean;
}

/**
 * True when the log can go on where it ended: place and following segment are known, and the latter
 * holds nothing. It holds something where the block that had replaced it has rotted, unless a later
 * record says that it was durable. One in the log's last segment would say so, since the following
 * one was chosen before; so the last segment itself, which was chosen one segment earlier still,
 * holds nothing past the end of the log.
 */
function canGoOn(found: Found): boolean {
  const { end, rebuilt: { segments } } = found;
  if (end === null || end.next >= segments.count || end.next === end.segment) return false;
  const state = segments.state[end.segment];
  return (state === SegmentState.Sealed || state === SegmentState.Free) &&
    segments.live[end.next] === 0 && segments.state[end.next] !== SegmentState.Checkpoint;
}

/** Goes on at `end`. */
function* goOn(io: TaskIo, core: Core, end: LogEnd): Task<Head | StoreError> {
  const { segments, window, buffers } = core;
  segments.assign(end.segment, SegmentState.Open, end.sequence, true);
  segments.assign(end.next, SegmentState.Next, 0, true);
  const offset = segments.offsetBytes(end.next);
  const allocated = yield* io.allocate(offset, segments.segmentBytes);
  if (allocated < 0) return allocationFailed(allocated);
  // Durable with the superblock, at the latest: nothing is appended before.
  window.bytes.fill(0, buffers.superblock, buffers.superblock + BLOCK_BYTES);
  const result = yield* io.write(offset, buffers.superblock, BLOCK_BYTES);
  if (result < 0) {
    return new StoreError("IO", `writing to the store while opening it failed (errno ${-result})`);
  }
  return { ...end, isNew: false };
}

/** Begins in a segment of its own. */
function* beginAnew(
  io: TaskIo,
  core: Core,
  forCheckpoint: number,
  sequence: number,
): Task<Head | StoreError> {
  const { segments } = core;
  const failed = yield* allocateReady(io, core, 2 + forCheckpoint);
  if (failed !== null) return failed;
  const segment = segments.take(SegmentState.Open);
  const next = segments.take(SegmentState.Next);
  return { segment, sequence, block: 1, next, isNew: true };
}

/**
 * Adds segments up to the capacity that was asked for; the superblock that is written next says so.
 */
function grow(core: Core, options: OpenOptions): StoreError | null {
  const { segments, disk } = core;
  if (options.capacityBytes === undefined) return null;
  const count = Math.floor((options.capacityBytes - endBytes(0, 0)) / segments.segmentBytes);
  if (count <= segments.count) return null;
  if (count > segmentsMax(segments.segmentBytes) || options.capacityBytes > disk.sizeBytesMax) {
    return new StoreError(
      "INVALID",
      `a capacity of ${options.capacityBytes} bytes is more than the device's ${disk.sizeBytesMax}, or than ` +
        `${segmentsMax(segments.segmentBytes)} segments`,
    );
  }
  segments.resize(count);
  core.superblock.segmentCount = count;
  return null;
}

/** Says of each segment what it is, counts live blocks. */
function assignSegments(found: Found): StoreError | null {
  const { segments, index, applier } = found.rebuilt;
  // Blocks of deleted layers that the checkpoint still knows may lie in segments that were used
  // again since.
  for (const [id, state] of [...applier.layers]) {
    if (state !== LayerState.Deleting) continue;
    index.dropLayerStep(id, Infinity);
    applier.layers.delete(id);
  }
  let bad = 0;
  index.eachRun((_layer, _chunk, _block, location, count) => {
    if (segments.isDataRange(location, count)) segments.addLive(location, count);
    else bad++;
  });
  if (bad > 0) {
    return new StoreError(
      "DAMAGED",
      `${bad} extents of the index lie outside the store's segments`,
    );
  }
  for (let segment = 0; segment < segments.count; segment++) {
    if (segments.live[segment] > 0) segments.assign(segment, SegmentState.Sealed, 0, true);
  }
  for (const segment of found.checkpoint.segments) {
    if (segments.live[segment] > 0) {
      return new StoreError("DAMAGED", `segment ${segment} is both checkpoint and log`);
    }
    segments.assign(segment, SegmentState.Checkpoint, 0, true);
  }
  // The log that was replayed stays until the next superblock.
  const keep = (segment: number, sequence: number) => {
    if (segment < 0 || segments.state[segment] === SegmentState.Checkpoint) return;
    segments.assign(segment, SegmentState.Sealed, sequence, true);
  };
  for (const scan of found.scans) {
    for (const { segment, sequence, firstBlock, firstLsn, lastLsn } of scan.spans) {
      keep(segment, sequence);
      // One without a record that counts may have begun for nothing: see lives.ts.
      if (Math.min(lastLsn, found.endLsn) < firstLsn) continue;
      segments.lives.goOn(segment, firstBlock, sequence, firstLsn);
    }
  }
  return null;
}

/** Allocates free segments until `count` are ready. */
export function* allocateReady(io: TaskIo, core: Core, count: number): Task<StoreError | null> {
  const { segments } = core;
  while (segments.readyCount < count) {
    const segment = segments.takeBusy(0);
    if (segment === NO_SEGMENT) {
      return new StoreError(
        "FULL",
        `the store needs ${count} free segments of ${segments.segmentBytes} bytes and has ${segments.readyCount}: ` +
          `open it with a larger capacity`,
      );
    }
    const result = yield* io.allocate(segments.offsetBytes(segment), segments.segmentBytes);
    segments.endBusy(segment, result >= 0);
    if (result < 0) return allocationFailed(result);
  }
  return null;
}

function allocationFailed(result: number): StoreError {
  return new StoreError(
    result === -ENOSPC ? "FULL" : "IO",
    `allocating a segment failed (errno ${-result}): free some space on the file system`,
  );
}
