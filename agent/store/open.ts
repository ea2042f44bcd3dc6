/**
 * Opening a store: superblock, checkpoint, replay, and the steps that make the result safe to build upon.
 *
 * 1. The newest valid superblock; refuse other hosts and newer formats.
 * 2. Its checkpoint. If that cannot be read, the other superblock's, with its longer log, if all of it is still there.
 * 3. Replay (replay.ts). What had been durable and is gone is damage, and refused unless the caller accepts it.
 * 4. Sync: what was read may so far be in the page cache only, left by a process that was killed. Everything that
 *    follows relies on it, so it must be durable before anything is overwritten.
 * 5. Unless the store was closed cleanly, a checkpoint of the result, so that the torn tail that was ignored can never come
 *    back. Segments of the old checkpoint and of the old log stay untouched until its superblock is durable: a crash
 *    in here leads back to step 1 with all of its input in place.
 * 6. A superblock that says "not clean" and names a new segment for the log, with sequences that were never used.
 *
 * @module
 */
import type { Window } from "../platform/platform.ts";
import { Applier } from "./applier.ts";
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
  entryChunk,
  entryCount,
  entryFlags,
  EntryKind,
  entryKind,
  entryLayer,
  entryNext,
  hasData,
  ID_BYTES,
  idWords,
  META_REMOVED,
  NO_SEGMENT,
  RECORD_WORD,
  segmentsMax,
  type Superblock,
} from "./format.ts";
import { Index } from "./index.ts";
import type { LogPosition, RecordLog } from "./log.ts";
import { LogReader } from "./log_reader.ts";
import { type LogScan, scanLog, type WalkedRecord, walkLog } from "./replay.ts";
import { Segments, SegmentState } from "./segments.ts";
import { readSuperblocks, writeSuperblock } from "./superblock.ts";
import type { Task, TaskIo } from "./task.ts";

/**
 * Segment sequences of one opening: each opening begins at the next multiple, so none of its sequences was ever used,
 * seen or unseen. 2^28 segments of 16 MiB are 4 PiB; 2^25 openings fit below 2^53.
 */
const SEQUENCES_PER_OPEN = 2 ** 28;

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
  readonly meta = new Map<string, Uint8Array>();
  placed: (location: number, count: number) => void = () => {};

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

/** A consistent state found on the disk. */
interface Found {
  readonly rebuilt: Rebuilt;
  readonly checkpoint: LoadedCheckpoint;
  readonly scans: LogScan[];
  /** lsn of the last record that counts. */
  readonly endLsn: number;
  readonly lsnMax: number;
  readonly sequenceMax: number;
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
  let found = yield* restore(io, machine, newest, [positionOf(newest)], options);
  if (found instanceof StoreError && found.code === "DAMAGED" && other !== null) {
    machine.logger.warn("trying the checkpoint before the damaged one", { reason: found.message });
    const starts = [positionOf(other), positionOf(newest)];
    const older = yield* restore(io, machine, other, starts, { ...options, acceptDamage: false });
    if (!(older instanceof StoreError)) found = older;
  }
  if (found instanceof StoreError) return found;
  return yield* takeOver(io, machine, newest, found, options, parts);
}

function refuse(superblock: Superblock, machine: Machine, options: OpenOptions): StoreError | null {
  const isSame = superblock.hostId.every((byte, i) => byte === options.hostId[i]);
  if (!isSame && options.adopt !== true) {
    return new StoreError(
      "OTHER_HOST",
      "the store belongs to another host: if it was moved here for good, open it with adopt; it must never be " +
        "open on two hosts",
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
 * Rebuilds the state from the checkpoint of `superblock` and the logs from `starts` on, oldest first: one, or two when the
 * newest checkpoint is damaged and the log before it has to be replayed as well.
 */
function* restore(
  io: TaskIo,
  machine: Machine,
  superblock: Superblock,
  starts: ReturnType<typeof positionOf>[],
  options: OpenOptions,
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
  const scans: LogScan[] = [];
  let endLsn = 0;
  let lsnMax = superblock.syncedLsn;
  let sequenceMax = Math.max(superblock.nextSequence, checkpoint.sequenceMax);
  for (let i = 0; i < starts.length; i++) {
    const start = starts[i];
    if (start.clean) {
      endLsn = Math.max(endLsn, start.lsn - 1);
      lsnMax = Math.max(lsnMax, start.lsn - 1);
      continue;
    }
    const scan = yield* scanLog(reader, segments, start, start.syncedLsn);
    const isLast = i === starts.length - 1;
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
      (record) => replayRecord(rebuilt, reader, window, record),
    );
    if (walked.error !== null) {
      const { segment, block, lsn, reason } = walked.error;
      return new StoreError(
        "IO",
        `record ${lsn} at block ${block} of segment ${segment}: ${reason}`,
      );
    }
    if (!isLast && walked.endLsn < starts[i + 1].previousEndLsn) {
      return new StoreError(
        "DAMAGED",
        "the checkpoint of the index cannot be read, and the log from the one before it on is no longer complete",
      );
    }
    scans.push(scan);
    endLsn = walked.endLsn;
    lsnMax = Math.max(lsnMax, scan.lsnMax);
    sequenceMax = Math.max(sequenceMax, scan.sequenceMax);
  }
  return { rebuilt, checkpoint, scans, endLsn, lsnMax, sequenceMax };
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
      `stale: restore from a replica or a backup, or open with acceptDamage to go on with what is left`,
  );
}

/** Applies one record of the log. */
function* replayRecord(
  rebuilt: Rebuilt,
  reader: LogReader,
  window: Window,
  walked: WalkedRecord,
): Task {
  const { record, at, location } = walked;
  const { u32 } = window;
  const headerWord = at >>> 2;
  let word = headerWord + RECORD_WORD.entries;
  let data = location + record.headerBlocks;
  const metas: { data: number; keyBytes: number; valueBytes: number; removed: boolean }[] = [];
  for (let i = 0; i < record.entryCount; i++) {
    const kind = entryKind(u32, word);
    if (kind === EntryKind.Meta) {
      metas.push({
        data,
        keyBytes: entryLayer(u32, word),
        valueBytes: entryChunk(u32, word),
        removed: (entryFlags(u32, word) & META_REMOVED) !== 0,
      });
    } else {
      rebuilt.applier.apply(word, headerWord, location, data);
    }
    if (hasData(kind)) data += entryCount(u32, word);
    word = entryNext(u32, word);
  }
  // Last, since reading their data takes the buffer that the record lies in.
  for (const { data, keyBytes, valueBytes, removed } of metas) {
    const blocks = Math.ceil((keyBytes + valueBytes) / 4096);
    const buffer = yield* reader.load(data, blocks, blocks);
    if (buffer < 0) continue;
    const key = new TextDecoder().decode(window.bytes.slice(buffer, buffer + keyBytes));
    const value = buffer + keyBytes;
    if (removed) rebuilt.meta.delete(key);
    else rebuilt.meta.set(key, window.bytes.slice(value, value + valueBytes));
  }
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
  if (!isClean) {
    const result = yield* io.sync();
    if (result < 0) {
      return new StoreError("IO", `syncing the store while opening it failed (errno ${-result})`);
    }
  }
  const bad = assignSegments(found);
  if (bad !== null) return bad;
  let sequence = Math.floor(found.sequenceMax / SEQUENCES_PER_OPEN) * SEQUENCES_PER_OPEN +
    SEQUENCES_PER_OPEN;
  // One lsn is left out, so that the first record of this opening proves by its syncedLsn that it began.
  const lsn = Math.max(found.lsnMax, found.endLsn) + 1;
  const unfinished = {
    ...machine,
    storeId: rebuilt.storeId,
    storeWords: rebuilt.storeWords,
    segments,
    index,
    applier: rebuilt.applier,
    meta: rebuilt.meta,
    cache: new ChecksumCache(machine.tunables.checksumCacheBytes),
    superblock: { ...newest, hostId: options.hostId.slice(0, ID_BYTES) },
    checkpointSegments: checkpoint.segments,
    checkpointBytes: checkpoint.bytes,
    checkpointEntries: 0,
    locked: false,
  };
  const log = parts.makeLog(unfinished);
  const core: Core = Object.assign(unfinished, { log });
  const grown = grow(core, options);
  if (grown !== null) return grown;
  const forCheckpoint = isClean
    ? 0
    : checkpointSegmentsFor(checkpointPayloadBytesExact(core), segments.segmentBytes);
  const failed = yield* allocateReady(io, core, 2 + forCheckpoint);
  if (failed !== null) return failed;
  const open = segments.take(SegmentState.Open);
  const next = segments.take(SegmentState.Next);
  const position: LogPosition = {
    segment: open,
    sequence: ++sequence,
    block: 1,
    lsn: lsn + 1,
    previousEndLsn: lsn,
  };
  if (isClean) {
    core.superblock = {
      ...core.superblock,
      sequence: newest.sequence + 1,
      clean: false,
      replaySegment: position.segment,
      replaySequence: position.sequence,
      replayBlock: position.block,
      replayLsn: position.lsn,
      previousEndLsn: position.previousEndLsn,
      syncedLsn: lsn,
      nextSequence: sequence + 1,
    };
    const { superblock } = core;
    const result = yield* writeSuperblock(io, core.window, core.buffers.superblock, superblock);
    if (result < 0) {
      return new StoreError("IO", `writing the superblock failed (errno ${-result})`);
    }
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
  log.begin(open, next, lsn, position.sequence, sequence);
  index.freed = {
    blocksFreed: (location, count) => segments.removeLive(location, count, log.appliedLsn),
  };
  rebuilt.placed = (location, count) => segments.addLive(location, count);
  return core;
}

/** Adds segments up to the capacity that was asked for; the superblock that is written next says so. */
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
  const { segments, index } = found.rebuilt;
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
  // The log that was replayed, and what would be looked at to find its end, stays until the next superblock.
  const keep = (segment: number, sequence: number) => {
    if (segment < 0 || segments.state[segment] === SegmentState.Checkpoint) return;
    segments.assign(segment, SegmentState.Sealed, sequence, true);
  };
  for (const scan of found.scans) {
    for (const { segment, sequence } of scan.spans) keep(segment, sequence);
    if (scan.tailNext >= 0 && segments.state[scan.tailNext] === SegmentState.Free) {
      keep(scan.tailNext, scan.sequenceMax);
    }
  }
  for (let segment = 0; segment < segments.count; segment++) segments.settle(segment, 0);
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
    if (result < 0) {
      return new StoreError(
        result === -28 ? "FULL" : "IO",
        `allocating a segment failed (errno ${-result}): free some space on the file system`,
      );
    }
  }
  return null;
}
