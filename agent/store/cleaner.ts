/**
 * The cleaner: moves the live blocks out of segments that are mostly garbage, so that the segments
 * become free.
 *
 *     victim   | header | record | record | …
 *                         entries ─▶ does the index still have the block here? ─▶ pieces
 *                                    (in the layer that it was written to, or in one that absorbed it)
 *     window of ≤ 256 blocks ─▶ one read ─▶ check ─▶ RELOCATE entries in the log ─▶ applied ─▶ next window
 *
 * Which one: the highest (1 − u) · age / (1 + u), where u is the live part and age the segments
 * written since (Rosenblum and Ousterhout, "The Design and Implementation of a Log-Structured File
 * System", 1992); when space is short, simply the lowest u.
 *
 * When, and how fast: nothing while enough segments are free; as they get fewer, more and more
 * blocks are moved for each block that users write; next to the writes' limit, without pause. Idle
 * stores are cleaned slowly when much is garbage.
 *
 * Invariants:
 * - The victim is pinned until its relocations are applied, and counts as having died no earlier
 *   than that.
 * - A block that does not match its checksum, or whose checksum cannot be known, is not copied: it
 *   becomes POISON, so that the damage stays known. The checksum is the index's where that has it, and
 *   otherwise that of a header which belongs there (lives.ts): an older record that the disk has kept
 *   instead must not be copied as if it were what the index means.
 * - Nothing is lost if a header of the victim is damaged, or not the one that belongs there: what the
 *   index still has in there is found by walking the index.
 *
 * @module
 */
import { BLOCK_BYTES, CHUNK_BLOCKS } from "../base/limits.ts";
import { BlockFault, faultMessage } from "./block_fault.ts";
import type { Core, Damage } from "./core.ts";
import { READER_BYTES, WORK_BYTES } from "./core.ts";
import {
  entryBlock,
  entryChecksums,
  entryChunk,
  entryCount,
  EntryKind,
  entryKind,
  entryLayer,
  entryNext,
  hasData,
  NO_SEGMENT,
  RECORD_WORD,
  RecordHeader,
  SegmentHeader,
} from "./format.ts";
import { IndexKind } from "./index.ts";
import { LogReader } from "./log_reader.ts";
import { SegmentState } from "./segments.ts";
import { type Task, type TaskIo, type Tasks, Wait } from "./task.ts";

/** Blocks of a window: what is read and relocated at a time. */
const WINDOW_BLOCKS = WORK_BYTES / BLOCK_BYTES;
/** Most pieces of a window: one for each block. */
const PIECES_MAX = WINDOW_BLOCKS;
/**
 * Chunks looked at per turn when the index is walked for a damaged victim: about half a
 * millisecond.
 */
const WALK_CHUNKS_PER_TURN = 64;
/** A store that did nothing for so long is idle, in milliseconds. */
const IDLE_AFTER_MS = 2000;
/**
 * Blocks moved per millisecond in an idle store: 16 MiB/s, hardly to be felt when work comes back.
 */
const IDLE_BLOCKS_PER_MS = 4;
/**
 * A victim must give back at least this part of itself once its blocks have been copied with new
 * headers, or cleaning a full store would turn in circles. It bounds what cleaning costs to 32
 * blocks moved for each one won.
 */
const GAIN_MIN = 1 / 32;
/** Blocks header-read ahead. */
const AHEAD_BLOCKS = READER_BYTES / BLOCK_BYTES;

/** What the store tells the cleaner each turn. */
export interface CleanerSituation {
  /**
   * The log may take segments for what is moved; otherwise it must fit what is left of the head.
   */
  mayTake: boolean;
  /** Blocks left in the head. */
  headRoom: number;
  /** Writes wait for space. */
  isFull: boolean;
  /** Writes wait while no more than so many segments are ready. */
  writeLimit: number;
  nowMs: number;
  /** Milliseconds since something was written. */
  idleMs: number;
  /** Blocks that users wrote so far. */
  userBlocks: number;
  /** Deleted layers are being dropped: that gives space without copying, and goes first. */
  isDropping: boolean;
}

/**
 * Times that a block is read before it is given up for good: where somebody reads it, what the disk could not read once is
 * there the next time; here it would be gone.
 */
const READ_TRIES = 6;

/** See the head of the file. */
export class Cleaner {
  /** A victim is being cleaned. */
  running = false;
  segmentsCleaned = 0;
  blocksRelocated = 0;

  readonly #core: Core;
  readonly #damage: (damage: Damage) => void;
  #situation: CleanerSituation = {
    mayTake: false,
    headRoom: 0,
    isFull: false,
    writeLimit: 0,
    nowMs: 0,
    idleMs: 0,
    userBlocks: 0,
    isDropping: false,
  };
  #stopping = false;
  #foundNothingMs = -1;
  /** Blocks that may be moved now; below 0: in debt. */
  #allowance = 0;
  #allowanceMs = 0;
  #allowanceUserBlocks = 0;
  /**
   * Victims that could not be emptied: the disk cannot read what is in there. Tried again after a
   * restart.
   */
  readonly #stuck = new Set<number>();

  // Pieces of the window.
  #pieces = 0;
  readonly #layer = new Uint32Array(PIECES_MAX);
  readonly #chunk = new Uint32Array(PIECES_MAX);
  readonly #block = new Uint16Array(PIECES_MAX);
  readonly #count = new Uint16Array(PIECES_MAX);
  readonly #location = new Uint32Array(PIECES_MAX);
  /** Checksums of the pieces' blocks, by place in the window. */
  readonly #sums = new Uint32Array(WINDOW_BLOCKS);
  /** 0 where the checksum is not known. */
  readonly #isKnown = new Uint8Array(WINDOW_BLOCKS);
  /** Checksums that the index has itself, of the run that was found last. */
  readonly #direct = new Uint32Array(CHUNK_BLOCKS);
  #windowStart = 0;

  constructor(core: Core, damage: (damage: Damage) => void) {
    this.#core = core;
    this.#damage = damage;
  }

  /** Ends the cleaner at its next step. */
  stop(): void {
    this.#stopping = true;
  }

  /** `segment` is free: whatever was wrong with its content is gone. */
  forget(segment: number): void {
    this.#stuck.delete(segment);
  }

  /** Called each turn: starts cleaning when it is time. The situation is kept by reference. */
  consider(tasks: Tasks, situation: CleanerSituation): void {
    this.#situation = situation;
    if (this.running || this.#stopping || situation.isDropping) return;
    // Having found nothing worth cleaning, it looks again after the next tick.
    if (this.#foundNothingMs === situation.nowMs) return;
    if (this.#urgency() < 0 && !this.#isIdleWork()) return;
    if (this.#choose() === NO_SEGMENT) {
      this.#foundNothingMs = situation.nowMs;
      return;
    }
    this.running = true;
    this.#allowance = 0;
    this.#allowanceMs = situation.nowMs;
    this.#allowanceUserBlocks = situation.userBlocks;
    tasks.start((io) => this.#run(io));
  }

  /**
   * How short space is: below 0 when it is not, 1 and more when writes wait or are about to.
   */
  #urgency(): number {
    const { segments, tunables } = this.#core;
    const { writeLimit } = this.#situation;
    // Pending ones will be free after the next sync or checkpoint.
    const available = segments.freeCount + segments.pending.length;
    const floor = writeLimit + 2;
    const target = Math.max(
      floor + tunables.readySegments,
      Math.floor(segments.count * tunables.cleanFreeRatio),
    );
    return (target - available) / (target - floor);
  }

  #isIdleWork(): boolean {
    const { segments, tunables, checkpointSegments } = this.#core;
    if (this.#situation.idleMs < IDLE_AFTER_MS) return false;
    const used = segments.count - segments.freeCount - segments.pending.length -
      checkpointSegments.length;
    const usedBlocks = Math.max(0, used - 2) * (segments.segmentBlocks - 1);
    return usedBlocks - segments.liveBlocks > usedBlocks * tunables.cleanGarbageRatio;
  }

  /** The segment to clean next, or NO_SEGMENT. */
  #choose(): number {
    const { segments, log } = this.#core;
    const blocks = segments.segmentBlocks - 1;
    const { mayTake, headRoom } = this.#situation;
    const isUrgent = this.#urgency() >= 0.75;
    let best = NO_SEGMENT;
    let bestScore = 0;
    for (let segment = 0; segment < segments.count; segment++) {
      if (segments.state[segment] !== SegmentState.Sealed) continue;
      const live = segments.live[segment];
      // Copies need headers too.
      const gain = blocks - live - (live + 31 >>> 5) - 1;
      if (live === 0 || gain < blocks * GAIN_MIN || segments.unapplied[segment] > 0) continue;
      if (this.#stuck.has(segment) || (!mayTake && needed(live) > headRoom)) continue;
      const u = live / blocks;
      const age = Math.min(segments.count, log.lastSequence - segments.sequence[segment] + 1);
      const score = isUrgent ? 1 - u : (1 - u) * age / (1 + u);
      if (score > bestScore) {
        best = segment;
        bestScore = score;
      }
    }
    return best;
  }

  *#run(io: TaskIo): Task {
    const { segments, log } = this.#core;
    while (
      !this.#stopping && !this.#situation.isDropping &&
      (this.#urgency() >= 0 || this.#isIdleWork())
    ) {
      const victim = this.#choose();
      if (victim === NO_SEGMENT) break;
      segments.pins[victim]++;
      yield* this.#clean(io, victim);
      segments.cleaned(victim, log.appliedLsn);
      if (segments.live[victim] === 0) this.segmentsCleaned++;
    }
    this.running = false;
  }

  *#clean(io: TaskIo, victim: number): Task {
    const { segments, window, storeId, storeWords, buffers, logger } = this.#core;
    const reader = new LogReader({
      io,
      window,
      segments,
      storeId,
      storeWords,
      buffer: buffers.reader,
      bufferBytes: READER_BYTES,
    });
    const header = new SegmentHeader();
    this.#pieces = 0;
    let sequence = segments.lives.sequenceOf(victim);
    if (sequence === 0 && (yield* reader.segmentHeader(victim, header))) ({ sequence } = header);
    if (sequence !== 0) yield* this.#cleanRecords(io, reader, victim, sequence);
    if (segments.live[victim] > 0 && !this.#stopping) yield* this.#cleanByIndex(io, reader, victim);
    // Blocks of a layer that has been deleted meanwhile are not moved: they go away by themselves.
    if (segments.live[victim] > 0 && !this.#stopping && !this.#situation.isDropping) {
      this.#stuck.add(victim);
      logger.warn("a segment cannot be cleaned", { segment: victim, live: segments.live[victim] });
    }
  }

  /** Goes from record to record and collects what is live. */
  *#cleanRecords(io: TaskIo, reader: LogReader, victim: number, sequence: number): Task {
    const { segments, window: { u32 } } = this.#core;
    const record = new RecordHeader();
    let block = 1;
    while (segments.live[victim] > 0 && !this.#stopping) {
      const at = yield* reader.record(victim, block, sequence, record, AHEAD_BLOCKS);
      if (at < 0 || record.lsn < segments.lives.lsnMin(victim, block)) break;
      let data = segments.start(victim) + block + record.headerBlocks;
      block += record.headerBlocks + record.dataBlocks;
      // The buffer stays as it is until the next record is read: collecting reads into another one.
      let word = (at >>> 2) + RECORD_WORD.entries;
      for (let entry = 0; entry < record.entryCount; entry++) {
        const kind = entryKind(u32, word);
        const count = entryCount(u32, word);
        const isBlocks = kind === EntryKind.Write || kind === EntryKind.Relocate ||
          kind === EntryKind.Fill;
        if (isBlocks) {
          const layer = entryLayer(u32, word);
          const chunk = entryChunk(u32, word);
          const first = entryBlock(u32, word);
          const sums = entryChecksums(word);
          for (let i = 0; i < count;) {
            const owner = this.#find(layer, chunk, first + i, count - i, data + i);
            const run = this.#found;
            if (owner >= 0) {
              const isDirect = this.#takeDirect(run);
              for (let taken = 0; taken < run;) {
                const fits = this.#fit(data + i + taken, run - taken);
                if (fits === 0) {
                  yield* this.#flush(io);
                  continue;
                }
                const from = i + taken;
                const [words, at] = isDirect ? [this.#direct, taken] : [u32, sums + from];
                this.#add(owner, chunk, first + from, fits, data + from, words, at, true);
                taken += fits;
              }
            }
            i += run;
          }
        }
        if (hasData(kind)) data += count;
        word = entryNext(u32, word);
      }
    }
    yield* this.#flush(io);
  }

  /** Blocks for which the last answer of {@linkcode #find} holds. */
  #found = 0;

  /**
   * Looks a block up that a record brought: in the layer that the record names, and in those that have
   * absorbed that.
   *
   * @param location where the record has it
   * @returns the layer that has it there; −1 when none has
   */
  #find(layer: number, chunk: number, block: number, count: number, location: number): number {
    const { index, applier } = this.#core;
    let missing = index.find(layer, chunk, block, count);
    if (isDataAt(index, location)) {
      this.#found = missing;
      return layer;
    }
    for (const other of applier.absorbed.layersOf(layer)) {
      const run = index.find(other, chunk, block, count);
      if (isDataAt(index, location)) {
        this.#found = run;
        return other;
      }
      missing = Math.min(missing, run);
    }
    this.#found = missing;
    return -1;
  }

  /** Takes the checksums of the run that `find` has just found, if the index has them itself; says whether. */
  #takeDirect(count: number): boolean {
    const { index } = this.#core;
    if (index.kind !== IndexKind.Direct) return false;
    for (let i = 0; i < count; i++) {
      this.#direct[i] = i === 0 ? index.checksum : index.checksumAt(i);
    }
    return true;
  }

  /**
   * Walks the whole index for what it still has in the victim. Slow, and only needed when headers
   * are damaged.
   */
  *#cleanByIndex(io: TaskIo, reader: LogReader, victim: number): Task {
    const { segments, index } = this.#core;
    const start = segments.start(victim);
    const end = start + segments.segmentBlocks;
    let looked = 0;
    for (const layer of index.layers()) {
      for (let chunk = index.nextChunk(layer, 0); chunk >= 0;) {
        for (let block = 0; block < CHUNK_BLOCKS;) {
          let run = index.find(layer, chunk, block, CHUNK_BLOCKS - block);
          if (isDataAt(index, index.location) && index.location >= start && index.location < end) {
            run = Math.min(run, WINDOW_BLOCKS);
            yield* this.#flush(io);
            yield* this.#addFromIndex(reader, layer, chunk, block, run);
          }
          block += run;
        }
        if (segments.live[victim] === 0 || this.#stopping) return;
        if (++looked % WALK_CHUNKS_PER_TURN === 0) yield Wait.Turn;
        chunk = index.nextChunk(layer, chunk + 1);
      }
    }
    yield* this.#flush(io);
  }

  /** Adds a run with the checksums that the index has or points to. */
  *#addFromIndex(
    reader: LogReader,
    layer: number,
    chunk: number,
    block: number,
    wanted: number,
  ): Task {
    const { index, window: { u32 } } = this.#core;
    const count = index.find(layer, chunk, block, wanted);
    if (!isDataAt(index, index.location)) return;
    const { location } = index;
    if (this.#takeDirect(count)) {
      this.#add(layer, chunk, block, count, location, this.#direct, 0, true);
      return;
    }
    let { page, word } = index;
    for (let i = 0; i < count;) {
      const onPage = Math.min(count - i, BLOCK_BYTES / 4 - word);
      const at = yield* reader.headerPage(page);
      this.#add(layer, chunk, block + i, onPage, location + i, u32, (at >>> 2) + word, at >= 0);
      i += onPage;
      page++;
      word = 0;
    }
  }

  /** How many of `count` blocks from `location` on still fit the window. */
  #fit(location: number, count: number): number {
    if (this.#pieces === 0) return Math.min(count, WINDOW_BLOCKS);
    if (this.#pieces === PIECES_MAX || location < this.#windowStart) return 0;
    return Math.max(0, Math.min(count, this.#windowStart + WINDOW_BLOCKS - location));
  }

  #add(
    layer: number,
    chunk: number,
    block: number,
    count: number,
    location: number,
    sums: Uint32Array,
    first: number,
    isKnown: boolean,
  ): void {
    if (this.#pieces === 0) this.#windowStart = location;
    const piece = this.#pieces++;
    this.#layer[piece] = layer;
    this.#chunk[piece] = chunk;
    this.#block[piece] = block;
    this.#count[piece] = count;
    this.#location[piece] = location;
    const place = location - this.#windowStart;
    this.#isKnown.fill(isKnown ? 1 : 0, place, place + count);
    if (!isKnown) return;
    for (let i = 0; i < count; i++) this.#sums[place + i] = sums[first + i];
  }

  /** Reads the window, checks it, relocates it, and waits until that is applied. */
  *#flush(io: TaskIo): Task {
    if (this.#pieces === 0) return;
    const { log, buffers } = this.#core;
    yield* this.#pace();
    const last = this.#pieces - 1;
    const blocks = this.#location[last] + this.#count[last] - this.#windowStart;
    const result = yield* io.read(
      this.#windowStart * BLOCK_BYTES,
      buffers.work,
      blocks * BLOCK_BYTES,
    );
    for (let piece = 0; piece <= last && !this.#stopping; piece++) {
      yield* this.#relocate(io, piece, result >= 0);
    }
    const { number } = log;
    this.#pieces = 0;
    while (log.appliedNumber < number && !log.failed) yield Wait.Turn;
  }

  *#relocate(io: TaskIo, piece: number, isRead: boolean): Task {
    const place = this.#location[piece] - this.#windowStart;
    const count = this.#count[piece];
    for (let i = 0; i < count;) {
      let good = 0;
      while (i + good < count && (yield* this.#isGood(io, place + i + good, isRead))) good++;
      yield* this.#appendCopies(piece, i, good);
      i += good;
      if (i < count) yield* this.#appendPoison(piece, i++);
      if (this.#stopping) return;
    }
  }

  /** Checks one block of the window; reads it again by itself when it does not match, or was not read. */
  *#isGood(io: TaskIo, place: number, isRead: boolean): Task<boolean> {
    const { window: { kernel }, buffers } = this.#core;
    const at = buffers.work + place * BLOCK_BYTES;
    if (this.#isKnown[place] === 0) return false;
    if (isRead && kernel.checksum(at, BLOCK_BYTES) === this.#sums[place]) return true;
    for (let tries = 0; tries < READ_TRIES; tries++) {
      const result = yield* io.read((this.#windowStart + place) * BLOCK_BYTES, at, BLOCK_BYTES);
      if (result >= 0) return kernel.checksum(at, BLOCK_BYTES) === this.#sums[place];
    }
    return false;
  }

  *#appendCopies(piece: number, first: number, count: number): Task {
    const { log, buffers } = this.#core;
    const place = this.#location[piece] - this.#windowStart;
    for (let i = first; i < first + count;) {
      // Once begun, a victim is finished even if space has become scarcer: that is what gives space
      // back.
      const taken = !log.hasPart
        ? log.appendRelocation(
          this.#layer[piece],
          this.#chunk[piece],
          this.#block[piece] + i,
          first + count - i,
          this.#location[piece] + i,
          buffers.work + (place + i) * BLOCK_BYTES,
          this.#sums,
          place + i,
        )
        : 0;
      i += taken;
      this.blocksRelocated += taken;
      this.#allowance -= taken;
      if (taken === 0) {
        if (this.#stopping || log.failed) return;
        yield Wait.Turn;
      }
    }
  }

  *#appendPoison(piece: number, i: number): Task {
    const { log } = this.#core;
    const layer = this.#layer[piece];
    const chunk = this.#chunk[piece];
    const block = this.#block[piece] + i;
    const from = this.#location[piece] + i;
    const isKnown = this.#isKnown[from - this.#windowStart] === 1;
    this.#damage({
      what: "block",
      layer,
      chunk,
      block,
      offsetBytes: from * BLOCK_BYTES,
      message: `${
        faultMessage(isKnown ? BlockFault.Mismatch : BlockFault.NoHeader)
      }; found while cleaning`,
    });
    const entry = {
      kind: EntryKind.Poison,
      layer,
      chunk,
      block,
      count: 1,
      generation: 0,
      sequence: 0,
      from,
    };
    while (log.hasPart || !log.appendEntry(entry)) {
      if (this.#stopping || log.failed) return;
      yield Wait.Turn;
    }
  }

  /** Waits until as much may be moved as has been. */
  *#pace(): Task {
    for (;;) {
      const { nowMs, userBlocks } = this.#situation;
      const urgency = this.#urgency();
      if (urgency >= 1 || this.#stopping) {
        this.#allowance = 0;
        return;
      }
      // Between none and all of the log's bandwidth: at half the shortage, two blocks for each that
      // users write.
      const perUserBlock = urgency > 0 ? 2 * urgency / (1 - urgency) : 0;
      const perMs = IDLE_BLOCKS_PER_MS * (1 + 15 * Math.max(0, urgency));
      this.#allowance += (userBlocks - this.#allowanceUserBlocks) * perUserBlock +
        (nowMs - this.#allowanceMs) * perMs;
      this.#allowance = Math.min(this.#allowance, WINDOW_BLOCKS);
      this.#allowanceMs = nowMs;
      this.#allowanceUserBlocks = userBlocks;
      if (this.#allowance >= 0) return;
      yield Wait.Turn;
    }
  }
}

/** Blocks of the log that so many live blocks take, headers included, at the most. */
function needed(live: number): number {
  return live + 1 + 4 * Math.ceil(live / (WINDOW_BLOCKS - 8));
}

/** True when `find` has found data that lies at `location`. */
function isDataAt(index: Core["index"], location: number): boolean {
  return (index.kind === IndexKind.Direct || index.kind === IndexKind.Run) &&
    index.location === location;
}
