/**
 * The log: fills batches, writes them back to back into segments, applies them in order, syncs.
 *
 *     submit ─▶ filling ─close()─▶ closed ─place()─▶ writing (≤ 8) ─▶ written ─▶ applied ─▶ synced
 *                 1                 queue              ring, in order of number
 *
 * Invariants:
 * - Batches are placed, applied to the index and completed in the order of their numbers.
 * - `appliedNumber` and `appliedLsn` name the last batch that the index knows; what a sync that
 *   begins now makes durable is exactly all batches up to there.
 * - lsns rise by one from record to record and jump only at the start of a segment, whose header
 *   says what counts of the segment before. An lsn is never given twice.
 * - Records of one segment and sequence never differ at one place, but where one opening of the store
 *   has ignored what another had written there: then the later one has the higher lsn (lives.ts).
 * - The segment that follows the open one is chosen (and allocated) before the open one is written,
 *   because its header names it: replay follows `next` and never searches.
 *
 * When a write fails, nothing more is issued until all writes under way have ended. Then the
 * segment is sealed at the last good record and every batch from the failed one on is placed anew,
 * with new lsns, in the segment that follows; if the failed one was the first of its segment, the
 * same segment is tried again, since the one before names it. `WRITE_TRIES_MAX` failures in a row,
 * or one failed sync, end the store: after a failed fsync the kernel may have dropped the data and
 * called it clean. No sync that ends later counts, whoever asked for it.
 *
 * @module
 */
import { BLOCK_BYTES, BLOCK_SHIFT } from "../base/limits.ts";
import { type Disk, ENOSPC, type Window } from "../platform/platform.ts";
import { Batch, BATCH_BYTES, BatchState } from "./batch.ts";
import {
  encodeRecord,
  encodeSegmentHeader,
  EntryKind,
  NO_SEGMENT,
  SegmentHeader,
  SegmentKind,
} from "./format.ts";
import { type Operation, OperationKind } from "./operation.ts";
import { type Segments, SegmentState } from "./segments.ts";

/** Batches with the disk at once: enough to keep a fast disk busy at depth 1 per batch. */
export const BATCHES_IN_FLIGHT_MAX = 8;
/** All batches: those in flight, one being filled and some that wait for their turn. */
export const BATCHES = BATCHES_IN_FLIGHT_MAX + 4;
/**
 * Failed writes in a row after which the store gives up: the medium is gone, not one sector of it.
 */
export const WRITE_TRIES_MAX = 4;
/** Arena bytes of the log. */
export const LOG_BYTES = BATCHES * BATCH_BYTES;

/** Entries of the operations that name a range of blocks and bring none. */
const ENTRY_OF: Readonly<Record<number, EntryKind>> = {
  [OperationKind.Free]: EntryKind.Free,
  [OperationKind.Zero]: EntryKind.Zero,
  [OperationKind.Stamp]: EntryKind.Stamp,
};

/** What the log asks of the store around it. */
export interface LogOwner {
  /** Enters the record of a written batch into the index. */
  applyBatch(batch: Batch): void;
  /** The operation is durable (Sync) or applied (all others). */
  operationApplied(operation: Operation): void;
  /** Everything up to `syncedLsn` is durable now. */
  synced(): void;
  /** The disk failed for good. */
  logFailed(reason: string): void;
}

/** A place in the log. */
export interface LogPosition {
  segment: number;
  sequence: number;
  block: number;
  lsn: number;
  /** Last lsn that counts before this place. */
  previousEndLsn: number;
}

/** How the log reaches the disk: tokens are the store's business. */
export interface LogTokens {
  /** Token of the write of batch slot `slot`. */
  batch(slot: number): number;
  readonly sync: number;
}

/** See the head of the file. */
export class RecordLog {
  /** lsn of the last batch that the index knows. */
  appliedLsn = 0;
  /** Its number. */
  appliedNumber = 0;
  /** Everything up to this lsn is durable. */
  syncedLsn = 0;
  /** Highest lsn ever given. */
  lastLsn = 0;
  /** Highest segment sequence ever given. */
  lastSequence = 0;
  /** Set once the disk has failed for good. */
  failed = false;

  // Counters.
  recordsWritten = 0;
  blocksWritten = 0;
  writeErrors = 0;
  syncs = 0;
  /** Highest lsn that a record on the disk says is durable. */
  notedSyncedLsn = 0;
  /**
   * A write met ENOSPC although its segment was allocated: tried again by {@linkcode retryNoSpace}.
   */
  noSpace = false;
  #retriesNoSpace = false;

  readonly #disk: Disk;
  readonly #window: Window;
  readonly #segments: Segments;
  readonly #owner: LogOwner;
  readonly #tokens: LogTokens;
  readonly #storeId: Uint8Array;
  readonly #storeWords: Uint32Array;

  readonly #batches: Batch[] = [];
  readonly #idle: Batch[] = [];
  #open: Batch | null = null;
  #lastNumber = 0;
  /** Closed, not yet written: oldest first. At most BATCHES. */
  readonly #closed: Batch[] = [];
  #closedBlocks = 0;
  /** Written or being written: a ring, oldest at #first. */
  readonly #flight: Batch[] = [];
  #writing = 0;
  /** A write failed: nothing is issued until those under way have ended. */
  #draining = false;
  #failures = 0;
  #errno = 0;

  // The head.
  #segment = NO_SEGMENT;
  #next = NO_SEGMENT;
  #block = 0;
  #headerWritten = false;
  /** lsn of the last placed record that counts. */
  #endLsn = 0;
  readonly #header = new SegmentHeader();

  /** Operation of which blocks up to #partBlocks have been appended. */
  #part: Operation | null = null;
  #partBlocks = 0;

  // Syncs: those that wait for the next one, those whose target is fixed, those under way.
  #queuedSyncs: Operation | null = null;
  #lastQueuedSync: Operation | null = null;
  #armedSyncs: Operation | null = null;
  #armedNumber = 0;
  #runningSyncs: Operation | null = null;
  #syncRunning = false;
  #syncLsn = 0;
  #syncNumber = 0;
  #syncedNumber = 0;

  /** A checkpoint wants to know where the batch with this number ends up; 0: nothing wanted. */
  #watchNumber = 0;
  #watched: LogPosition | null = null;

  constructor(options: {
    disk: Disk;
    window: Window;
    segments: Segments;
    owner: LogOwner;
    tokens: LogTokens;
    storeId: Uint8Array;
    storeWords: Uint32Array;
    /** Arena offset of `LOG_BYTES`. */
    at: number;
  }) {
    this.#disk = options.disk;
    this.#window = options.window;
    this.#segments = options.segments;
    this.#owner = options.owner;
    this.#tokens = options.tokens;
    this.#storeId = options.storeId;
    this.#storeWords = options.storeWords;
    for (let i = 0; i < BATCHES; i++) {
      const batch = new Batch(options.window, i, options.at + i * BATCH_BYTES);
      this.#batches.push(batch);
      this.#idle.push(batch);
    }
  }

  /**
   * Begins the log.
   *
   * @param head.segment in state Open; with `block` 1 it has no header yet, otherwise the log goes
   *   on where it ended
   * @param head.next in state Next; what the header of the segment names, if it has one
   * @param lsn highest lsn ever seen; all that counts is durable
   * @param lastSequence highest segment sequence ever given
   */
  begin(
    head: { segment: number; sequence: number; block: number; next: number; isNew: boolean },
    lsn: number,
    lastSequence: number,
  ): void {
    this.lastLsn =
      this.appliedLsn =
      this.syncedLsn =
      this.#endLsn =
        lsn;
    this.notedSyncedLsn = lsn;
    this.lastSequence = lastSequence;
    this.#segment = head.segment;
    this.#next = head.next;
    this.#block = head.block;
    this.#headerWritten = !head.isNew;
    this.#segments.sequence[head.segment] = head.sequence;
    this.#segments.previous[head.segment] = NO_SEGMENT;
    this.#segments.previousEndLsn[head.segment] = lsn;
    const { lives } = this.#segments;
    if (head.isNew) lives.begin(head.segment, head.sequence);
    else lives.goOn(head.segment, head.block, head.sequence, lsn + 1);
  }

  /** Where the next record goes. Exact when nothing is under way. */
  head(): LogPosition {
    return {
      segment: this.#segment,
      sequence: this.#segments.sequence[this.#segment],
      block: this.#block,
      lsn: this.lastLsn + 1,
      previousEndLsn: this.#endLsn,
    };
  }

  /** Blocks that have been appended but have no place yet. */
  get unplacedBlocks(): number {
    return this.#closedBlocks + (this.#open !== null ? this.#open.blocks : 0);
  }

  /** Blocks left in the head segment after all that has been appended; 0 when that is not known. */
  get headRoom(): number {
    if (this.#draining) return 0;
    return Math.max(0, this.#segments.segmentBlocks - this.#block - this.unplacedBlocks);
  }

  /** True when every batch has been applied. */
  get isDrained(): boolean {
    return this.#flight.length === 0 && this.#closed.length === 0 &&
      (this.#open === null || this.#open.entryCount === 0);
  }

  /** True when no sync is wanted or under way. */
  get isSynced(): boolean {
    return !this.#syncRunning && this.#queuedSyncs === null && this.#armedSyncs === null;
  }

  /** True when a write could be appended now. */
  get hasBatch(): boolean {
    return this.#open !== null || this.#begin() !== null;
  }

  /** Number of the batch that what was appended last belongs to. */
  get number(): number {
    return this.#open !== null && this.#open.entryCount > 0 ? this.#open.number : this.#lastClosed;
  }
  #lastClosed = 0;

  /** True while blocks of an operation remain to be appended. */
  get hasPart(): boolean {
    return this.#part !== null;
  }

  /**
   * Remembers that a checkpoint covers what is applied now: {@linkcode checkpointPosition} will
   * tell where the first record after it lies.
   */
  watch(): void {
    this.#watchNumber = this.appliedNumber + 1;
    this.#watched = null;
  }

  /**
   * Where replay has to start for the checkpoint that called {@linkcode watch}; null: not yet
   * known.
   */
  checkpointPosition(): LogPosition | null {
    if (this.#watched !== null) return this.#watched;
    return this.#flight.length === 0 && this.#closed.length === 0 ? this.head() : null;
  }

  // ── Appending ──────────────────────────────────────────────────────────────────────────────────

  /** A batch to fill, or null when all are in use. */
  #begin(): Batch | null {
    if (this.#open !== null) return this.#open;
    const batch = this.#idle.pop();
    if (batch === undefined) return null;
    let room = this.#segments.segmentBlocks - 1;
    if (this.#closed.length === 0 && !this.#draining) {
      // Nothing is waiting: it will go right to the head.
      const left = this.#segments.segmentBlocks - this.#block;
      if (left >= 2) room = left;
    }
    batch.begin(++this.#lastNumber, room);
    this.#open = batch;
    return batch;
  }

  /**
   * Appends as much of a write, fill, free, zero, stamp or absorb as there is room for now. The operation comes back
   * through `operationApplied`.
   *
   * @returns true when all of it is appended; otherwise it must be offered again before any other
   */
  append(operation: Operation): boolean {
    const isFill = operation.kind === OperationKind.Fill;
    const hasBlocks = operation.kind === OperationKind.Write ||
      (isFill && operation.blockCount > 0);
    if (!hasBlocks) return this.#appendRange(operation);
    let from = this.#part === operation ? this.#partBlocks : 0;
    const count = operation.blockCount;
    while (from < count) {
      const batch = this.#open ?? this.#begin();
      if (batch === null) break;
      const taken = isFill ? batch.addFill(operation, from) : batch.addWrite(operation, from);
      from += taken;
      if (from === count) {
        batch.attach(operation);
        this.#part = null;
        return true;
      }
      this.close();
    }
    this.#part = from > 0 ? operation : null;
    this.#partBlocks = from;
    return false;
  }

  #appendRange(operation: Operation): boolean {
    const batch = this.#withEntry();
    if (batch === null) return false;
    if (operation.kind === OperationKind.Absorb) batch.addAbsorb(operation);
    else if (operation.kind === OperationKind.Fill) batch.addFillStamp(operation);
    else batch.addRange(ENTRY_OF[operation.kind], operation);
    batch.attach(operation);
    return true;
  }

  /** A batch that an entry without data fits in, or null. */
  #withEntry(): Batch | null {
    let batch = this.#begin();
    if (batch === null) return null;
    if (!batch.fitsEntry()) {
      this.close();
      batch = this.#begin();
    }
    return batch;
  }

  /** Appends an entry without data for the store itself; false when there is no room now. */
  appendEntry(
    entry: {
      kind: EntryKind;
      layer: number;
      chunk: number;
      block: number;
      count: number;
      generation: number;
      sequence: number;
      from: number;
    },
  ): boolean {
    const batch = this.#withEntry();
    if (batch === null) return false;
    batch.addEntry(entry);
    return true;
  }

  /**
   * Appends a run of copied blocks, as many as there is room for.
   *
   * @returns blocks taken; 0 when there is no room now
   */
  appendRelocation(
    layer: number,
    chunk: number,
    block: number,
    count: number,
    from: number,
    buffer: number,
    checksums: Uint32Array,
    first: number,
  ): number {
    let batch = this.#begin();
    if (batch === null) return 0;
    let taken = batch.fit(count, 32);
    if (taken === 0) {
      this.close();
      batch = this.#begin();
      if (batch === null) return 0;
      taken = batch.fit(count, 32);
      if (taken === 0) return 0;
    }
    batch.addRelocation(layer, chunk, block, taken, from, buffer, checksums, first);
    return taken;
  }

  /** Appends a META_BATCH entry; false when there is no room now. See {@linkcode Batch.addMeta}. */
  appendMeta(
    byteLength: number,
    items: number,
    buffer: number,
    count: number,
    checksums: Uint32Array,
  ): boolean {
    let batch = this.#begin();
    if (batch === null) return false;
    if (batch.fit(count, 32) < count) {
      this.close();
      batch = this.#begin();
      if (batch === null) return false;
      // At the very end of a segment: it will go to the next one.
      if (batch.fit(count, 32) < count) batch.room = this.#segments.segmentBlocks - 1;
    }
    batch.addMeta(byteLength, items, buffer, count, checksums);
    return true;
  }

  /** Appends a record without entries, that only tells what is durable. */
  appendNote(): void {
    const batch = this.#begin();
    if (batch === null || batch.entryCount > 0) return;
    this.#close(batch);
  }

  /** Closes the open batch, if anything is in it, and writes what may be written. */
  close(): void {
    const batch = this.#open;
    if (batch !== null && (batch.entryCount > 0)) this.#close(batch);
  }

  #close(batch: Batch): void {
    this.#open = null;
    this.#lastClosed = batch.number;
    batch.state = BatchState.Closed;
    this.#closed.push(batch);
    this.#closedBlocks += batch.blocks;
    this.issue();
  }

  // ── Writing ────────────────────────────────────────────────────────────────────────────────────

  /** Writes closed batches as far as slots and segments allow. */
  issue(): void {
    while (
      this.#closed.length > 0 && this.#flight.length < BATCHES_IN_FLIGHT_MAX && !this.#draining &&
      (!this.noSpace || this.#retriesNoSpace) && !this.failed
    ) {
      const batch = this.#closed[0];
      if (!this.#place(batch)) return;
      this.#closed.shift();
      this.#closedBlocks -= batch.blocks;
      this.#flight.push(batch);
      this.#write(batch);
    }
  }

  /** Gives the batch its place; false when there is no segment for it now. */
  #place(batch: Batch): boolean {
    const blocks = batch.blocks;
    if (this.#block + blocks > this.#segments.segmentBlocks && !this.#nextSegment()) return false;
    batch.lsn = ++this.lastLsn;
    batch.segment = this.#segment;
    batch.block = this.#block;
    this.#block += blocks;
    this.#endLsn = batch.lsn;
    this.#segments.unapplied[batch.segment]++;
    return true;
  }

  /** Seals the head and moves on to the segment that was chosen to follow it. */
  #nextSegment(): boolean {
    const segments = this.#segments;
    const after = segments.take(SegmentState.Next);
    if (after === NO_SEGMENT) return false;
    const sealed = this.#segment;
    this.#segment = this.#next;
    segments.previous[this.#segment] = sealed;
    this.#next = after;
    this.#block = 1;
    this.#headerWritten = false;
    segments.state[this.#segment] = SegmentState.Open;
    segments.sequence[this.#segment] = ++this.lastSequence;
    segments.lives.begin(this.#segment, this.lastSequence);
    segments.previousEndLsn[this.#segment] = this.#endLsn;
    segments.live[this.#segment] = 0;
    segments.state[sealed] = SegmentState.Sealed;
    segments.settle(sealed, this.appliedLsn);
    return true;
  }

  #write(batch: Batch): void {
    const segments = this.#segments;
    const { headerBlocks } = batch;
    encodeRecord(this.#window, batch.headerAt, this.#storeWords, this.#fieldsOf(batch));
    batch.offsets[0] = batch.headerAt;
    batch.lengths[0] = headerBlocks << BLOCK_SHIFT;
    let location = segments.start(batch.segment) + batch.block;
    batch.bringsHeader = !this.#headerWritten;
    if (batch.bringsHeader) {
      this.#headerWritten = true;
      this.#encodeHeader(batch);
      batch.offsets[0] -= BLOCK_BYTES;
      batch.lengths[0] += BLOCK_BYTES;
      location--;
    }
    batch.state = BatchState.Writing;
    this.#writing++;
    this.recordsWritten++;
    this.blocksWritten += batch.blocks;
    this.#disk.write(
      this.#tokens.batch(batch.slot),
      location * BLOCK_BYTES,
      batch,
    );
  }

  readonly #fields = {
    version: 0,
    segmentSequence: 0,
    lsn: 0,
    syncedLsn: 0,
    entryCount: 0,
    dataBlocks: 0,
    headerBytes: 0,
  };

  #fieldsOf(batch: Batch) {
    const fields = this.#fields;
    fields.version = batch.version;
    fields.segmentSequence = this.#segments.sequence[batch.segment];
    fields.lsn = batch.lsn;
    fields.syncedLsn = this.syncedLsn;
    fields.entryCount = batch.entryCount;
    fields.dataBlocks = batch.dataBlocks;
    fields.headerBytes = batch.headerBytes;
    if (this.syncedLsn > this.notedSyncedLsn) this.notedSyncedLsn = this.syncedLsn;
    return fields;
  }

  #encodeHeader(batch: Batch): void {
    const header = this.#header;
    header.kind = SegmentKind.Log;
    header.sequence = this.#segments.sequence[batch.segment];
    header.next = this.#next;
    header.previous = this.#segments.previous[batch.segment];
    header.startLsn = batch.lsn;
    header.previousEndLsn = this.#segments.previousEndLsn[batch.segment];
    header.checkpointId = 0;
    encodeSegmentHeader(this.#window, batch.headerAt - BLOCK_BYTES, this.#storeId, header);
  }

  /** The write of batch slot `slot` has ended. */
  batchDone(slot: number, result: number): void {
    const batch = this.#batches[slot];
    this.#writing--;
    if (result < 0) {
      batch.state = BatchState.Failed;
      this.writeErrors++;
      this.#draining = true;
      if (result === -ENOSPC) {
        this.noSpace = true;
        this.#retriesNoSpace = false;
      } else {
        this.#errno = -result;
        // There is room, as far as anybody knows: what fails otherwise now is not to be waited for.
        if (this.#retriesNoSpace) this.noSpace = false;
      }
    } else {
      // A short one may fit where a long one did not: while some have failed it says nothing.
      if (!this.#draining) this.noSpace = false;
      batch.state = BatchState.Written;
    }
    this.#apply();
    if (this.#draining && this.#writing === 0 && !this.failed) {
      // Of those that were under way together, all failures count as one.
      if (!this.noSpace && ++this.#failures >= WRITE_TRIES_MAX) {
        this.fail(
          `writing to the disk failed ${this.#failures} times in a row (errno ${this.#errno})`,
        );
        return;
      }
      this.#placeAnew();
    }
    this.#progressSyncs();
    this.issue();
  }

  /** Applies written batches from the oldest on, up to the first that is not written. */
  #apply(): void {
    const flight = this.#flight;
    while (flight.length > 0 && flight[0].state === BatchState.Written && !this.failed) {
      const batch = flight.shift()!;
      // Progress: whatever fails from here on does so for the first time.
      this.#failures = 0;
      if (batch.number === this.#watchNumber) this.#notePosition(batch);
      this.appliedLsn = batch.lsn;
      this.appliedNumber = batch.number;
      this.#owner.applyBatch(batch);
      // Only now: while it counts as unapplied, the segment cannot be taken for dead half-way
      // through.
      this.#segments.unapplied[batch.segment]--;
      this.#segments.settle(batch.segment, batch.lsn);
      let operation = batch.operations;
      batch.operations = null;
      this.#idle.push(batch);
      while (operation !== null) {
        const next: Operation | null = operation.next;
        operation.next = null;
        operation.result = 0;
        this.#owner.operationApplied(operation);
        operation = next;
      }
    }
  }

  #notePosition(batch: Batch): void {
    this.#watched = {
      segment: batch.segment,
      sequence: this.#segments.sequence[batch.segment],
      block: batch.block,
      lsn: batch.lsn,
      previousEndLsn: this.appliedLsn,
    };
  }

  /**
   * All writes have ended and the oldest batch in flight has failed: takes back every segment
   * opened after its own, seals that one before it, and queues the batches again.
   */
  #placeAnew(): void {
    const segments = this.#segments;
    const failed = this.#flight[0];
    const isFirst = failed.bringsHeader;
    this.#takeBackAfter(failed.segment);
    for (const batch of this.#flight) {
      segments.unapplied[batch.segment]--;
      batch.state = BatchState.Closed;
      this.#closedBlocks += batch.blocks;
    }
    this.#closed.unshift(...this.#flight);
    this.#flight.length = 0;
    this.#segment = failed.segment;
    segments.state[failed.segment] = SegmentState.Open;
    if (isFirst) {
      this.#block = 1;
      this.#headerWritten = false;
      this.#endLsn = segments.previousEndLsn[failed.segment];
    } else {
      this.#block = segments.segmentBlocks;
      this.#headerWritten = true;
      this.#endLsn = failed.lsn - 1;
    }
    this.#draining = false;
  }

  /** Makes the first segment opened after `segment` the next one again and frees the later ones. */
  #takeBackAfter(segment: number): void {
    const segments = this.#segments;
    const opened: number[] = [];
    for (let i = 0; i < segments.count; i++) {
      const state = segments.state[i];
      if (
        (state === SegmentState.Open || state === SegmentState.Sealed) &&
        segments.sequence[i] > segments.sequence[segment]
      ) {
        opened.push(i);
      }
    }
    if (opened.length === 0) return;
    opened.sort((a, b) => segments.sequence[a] - segments.sequence[b]);
    segments.giveBack(this.#next);
    for (let i = opened.length - 1; i > 0; i--) segments.giveBack(opened[i]);
    this.#next = opened[0];
    segments.state[this.#next] = SegmentState.Next;
  }

  /** Tries again after ENOSPC. */
  retryNoSpace(): void {
    if (!this.noSpace) return;
    this.#retriesNoSpace = true;
    this.issue();
  }

  // ── Syncing ────────────────────────────────────────────────────────────────────────────────────

  /** Queues a sync; done when everything appended before it is durable. */
  sync(operation: Operation): void {
    operation.next = null;
    if (this.#lastQueuedSync === null) this.#queuedSyncs = operation;
    else this.#lastQueuedSync.next = operation;
    this.#lastQueuedSync = operation;
  }

  /** End of a turn: closes the open batch and moves syncs on. */
  endTurn(): void {
    this.close();
    this.#progressSyncs();
  }

  #progressSyncs(): void {
    if (this.failed) return;
    if (this.#armedSyncs === null && this.#queuedSyncs !== null) {
      // What was appended before lies in closed batches: close() ran, or runs with the turn's end.
      if (this.#open !== null && this.#open.entryCount > 0) return;
      this.#armedSyncs = this.#queuedSyncs;
      this.#queuedSyncs = this.#lastQueuedSync = null;
      this.#armedNumber = this.#lastClosed;
    }
    if (this.#armedSyncs === null) return;
    if (this.#armedNumber <= this.#syncedNumber) {
      const syncs = this.#armedSyncs;
      this.#armedSyncs = null;
      this.#finishSyncs(syncs);
      return;
    }
    if (this.#syncRunning || this.appliedNumber < this.#armedNumber) return;
    this.#syncRunning = true;
    this.#runningSyncs = this.#armedSyncs;
    this.#armedSyncs = null;
    this.#syncLsn = this.appliedLsn;
    this.#syncNumber = this.appliedNumber;
    this.syncs++;
    this.#disk.sync(this.#tokens.sync);
  }

  /** The disk's sync has ended. */
  syncDone(result: number): void {
    this.#syncRunning = false;
    // After one that failed the kernel calls clean what it has dropped: success says nothing any more.
    if (this.failed) return;
    if (result < 0) {
      return this.fail(`the disk could not make written data durable (fsync: errno ${-result})`);
    }
    if (this.#syncLsn > this.syncedLsn) this.syncedLsn = this.#syncLsn;
    this.#syncedNumber = Math.max(this.#syncedNumber, this.#syncNumber);
    const syncs = this.#runningSyncs;
    this.#runningSyncs = null;
    this.#owner.synced();
    this.#finishSyncs(syncs);
    this.#progressSyncs();
  }

  #finishSyncs(first: Operation | null): void {
    let operation = first;
    while (operation !== null) {
      const next: Operation | null = operation.next;
      operation.next = null;
      operation.result = 0;
      this.#owner.operationApplied(operation);
      operation = next;
    }
  }

  /**
   * A sync that a checkpoint asked for after everything up to `lsn` had been applied has completed.
   */
  noteSynced(lsn: number): void {
    if (lsn > this.syncedLsn) this.syncedLsn = lsn;
  }

  /** Gives the store up: whatever waits for the log comes back with `operation.result` = −EIO. */
  fail(reason: string): void {
    if (this.failed) return;
    this.failed = true;
    this.#owner.logFailed(reason);
  }

  /**
   * Takes every operation that waits for the log, linked through `next`, those with a sync
   * included. Buffers of batches being written may still be read by the disk until `writing` is 0.
   */
  takeAll(take: (operation: Operation) => void): void {
    const lists: (Operation | null)[] = [];
    for (const batch of [...this.#flight, ...this.#closed, ...(this.#open ? [this.#open] : [])]) {
      lists.push(batch.operations);
      batch.operations = null;
    }
    lists.push(this.#runningSyncs, this.#armedSyncs, this.#queuedSyncs);
    this.#runningSyncs =
      this.#armedSyncs =
      this.#queuedSyncs =
      this.#lastQueuedSync =
        null;
    this.#part = null;
    for (const list of lists) {
      let operation = list;
      while (operation !== null) {
        const next: Operation | null = operation.next;
        operation.next = null;
        take(operation);
        operation = next;
      }
    }
  }

  /** Writes and syncs with the disk. */
  get underWay(): number {
    return this.#writing + (this.#syncRunning ? 1 : 0);
  }

  /** The head's segment and the one chosen to follow it. */
  get segment(): number {
    return this.#segment;
  }
  /** See {@linkcode segment}. */
  get next(): number {
    return this.#next;
  }
}
