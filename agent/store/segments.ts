/**
 * The table of segments: what each is used for, how much of it is live, and when it may be used
 * again.
 *
 *      Free ──take()──▶ Next ──▶ Open ──▶ Sealed ──(no live block)──▶ Pending ──reclaim()──▶ Free
 *      Free ──take()──▶ Checkpoint ──(a newer one is in force)──▶ Free
 *      Free ──▶ Busy (being allocated or punched) ──▶ Free
 *
 * Invariants:
 * - A segment leaves Pending only when nothing can need its old content any more:
 *   1. the records that made its last block dead are durable, so that a crash cannot bring the
 *      block back;
 *   2. it lies before the durable replay start, so that replay does not walk through it;
 *   3. nobody is reading from it (`pins`);
 *   4. it died before the running checkpoint began. Otherwise a block could die, its segment be
 *      used again and get the same block at the same location, all within one fuzzy checkpoint, and
 *      a RELOCATE that replay repeats would mistake the new location for the old one.
 * - "Ready" means free and allocated on the disk: writing to it cannot fail for want of space.
 *
 * @module
 */
import { BLOCK_BYTES } from "../base/limits.ts";
import { NO_SEGMENT, SEGMENTS_OFFSET_BLOCKS } from "./format.ts";
import { Lives } from "./lives.ts";

/** What a segment is used for now. */
export const enum SegmentState {
  Free = 0,
  /** Free, with an allocation or punch under way. */
  Busy = 1,
  /** Chosen to follow the open one. */
  Next = 2,
  /** The head of the log. */
  Open = 3,
  Sealed = 4,
  /** Without live blocks, but not free yet. */
  Pending = 5,
  /** Part of a checkpoint, in force or being written. */
  Checkpoint = 6,
}

/** See the head of the file. */
export class Segments {
  readonly segmentBytes: number;
  /** Blocks of a segment, header included. */
  readonly segmentBlocks: number;
  readonly #shift: number;
  /** Segments of the store. */
  count = 0;

  /** {@linkcode SegmentState} of each. Change it through the methods only. */
  state: Uint8Array = new Uint8Array(0);
  /** Live data blocks of each. */
  live: Int32Array = new Int32Array(0);
  /**
   * Sequence under which each was opened last, as far as the log needs it: 0 for those that replay
   * has nothing to do with. Whose records lie in them is the business of `lives`.
   */
  sequence: Float64Array = new Float64Array(0);
  /** Readers of each: nothing in it may change. */
  pins: Int32Array = new Int32Array(0);
  /** Batches written or being written to each that the index does not know yet. */
  unapplied: Int32Array = new Int32Array(0);
  /** Last lsn that counts before each, as its header says. */
  previousEndLsn: Float64Array = new Float64Array(0);
  /** Segment of the log that each follows. */
  previous: Uint32Array = new Uint32Array(0);
  /** lsn at which each died. */
  #deathLsn: Float64Array = new Float64Array(0);
  /** Checkpoints begun when each died. */
  #deathEpoch: Float64Array = new Float64Array(0);
  #allocated: Uint8Array = new Uint8Array(0);

  /** Free segments, allocated or not. */
  freeCount = 0;
  /** Free segments that are allocated. */
  readyCount = 0;
  /** Live data blocks of all. */
  liveBlocks = 0;
  /** Segments without live blocks that may not be used yet. */
  readonly pending: number[] = [];
  /** Whose records lie in each. */
  readonly lives = new Lives(0);
  /** Something happened that may let pending ones become free. */
  reclaimable = false;

  /** Checkpoints begun so far. */
  checkpointEpoch = 0;
  /** A checkpoint is being written. */
  checkpointRunning = false;

  constructor(segmentBytes: number, count: number) {
    this.segmentBytes = segmentBytes;
    this.segmentBlocks = segmentBytes / BLOCK_BYTES;
    this.#shift = Math.log2(this.segmentBlocks);
    this.resize(count);
  }

  /** Grows or shrinks the table; segments that go away must be free. New ones are free. */
  resize(count: number): void {
    const old = this.count;
    for (let i = count; i < old; i++) {
      if (this.state[i] !== SegmentState.Free) throw new Error(`segment ${i} is in use`);
      this.freeCount--;
      this.readyCount -= this.#allocated[i];
    }
    this.state = resized(this.state, new Uint8Array(count));
    this.live = resized(this.live, new Int32Array(count));
    this.sequence = resized(this.sequence, new Float64Array(count));
    this.pins = resized(this.pins, new Int32Array(count));
    this.unapplied = resized(this.unapplied, new Int32Array(count));
    this.previousEndLsn = resized(this.previousEndLsn, new Float64Array(count));
    this.previous = resized(this.previous, new Uint32Array(count));
    this.#deathLsn = resized(this.#deathLsn, new Float64Array(count));
    this.#deathEpoch = resized(this.#deathEpoch, new Float64Array(count));
    this.#allocated = resized(this.#allocated, new Uint8Array(count));
    this.lives.resize(count);
    this.freeCount += Math.max(0, count - old);
    this.count = count;
  }

  /** Segment that `location` lies in; may be out of range for a location that was not checked. */
  of(location: number): number {
    return location - SEGMENTS_OFFSET_BLOCKS >>> this.#shift;
  }

  /** Location of the first block of `segment`. */
  start(segment: number): number {
    return SEGMENTS_OFFSET_BLOCKS + segment * this.segmentBlocks;
  }

  /** Byte offset of `segment` on the disk. */
  offsetBytes(segment: number): number {
    return this.start(segment) * BLOCK_BYTES;
  }

  /** True when the blocks lie within one segment and past its header. Checks what a file says. */
  isDataRange(location: number, count: number): boolean {
    if (location < SEGMENTS_OFFSET_BLOCKS) return false;
    const segment = this.of(location);
    const block = location - this.start(segment);
    return segment < this.count && block >= 1 && block + count <= this.segmentBlocks;
  }

  /** True when the index may refer to something in `segment`. */
  isOfLog(segment: number): boolean {
    const state = this.state[segment];
    return state === SegmentState.Open || state === SegmentState.Sealed ||
      state === SegmentState.Pending;
  }

  /** Counts `count` blocks from `location` as live. */
  addLive(location: number, count: number): void {
    this.live[this.of(location)] += count;
    this.liveBlocks += count;
  }

  /** Counts them as dead as of the record `lsn`. */
  removeLive(location: number, count: number, lsn: number): void {
    const segment = this.of(location);
    const left = this.live[segment] -= count;
    this.liveBlocks -= count;
    if (left <= 0) {
      if (left < 0) throw new Error(`segment ${segment} has ${left} live blocks`);
      this.settle(segment, lsn);
    }
  }

  /** Makes `segment` pending when it is sealed, applied and without live blocks. */
  settle(segment: number, lsn: number): void {
    if (
      this.state[segment] !== SegmentState.Sealed || this.live[segment] !== 0 ||
      this.unapplied[segment] !== 0
    ) {
      return;
    }
    this.state[segment] = SegmentState.Pending;
    this.#deathLsn[segment] = lsn;
    this.#deathEpoch[segment] = this.checkpointEpoch;
    this.pending.push(segment);
    this.reclaimable = true;
  }

  /** Takes a reader away from `segment`. */
  unpin(segment: number): void {
    if (--this.pins[segment] === 0 && this.state[segment] === SegmentState.Pending) {
      this.reclaimable = true;
    }
  }

  /** The cleaner is done with `segment`: what it relocated counts as having died now. */
  cleaned(segment: number, lsn: number): void {
    this.#deathEpoch[segment] = this.checkpointEpoch;
    this.#deathLsn[segment] = Math.max(this.#deathLsn[segment], lsn);
    this.unpin(segment);
  }

  /**
   * Frees the pending segments that may be.
   *
   * @param syncedLsn durable up to here
   * @param replaySequence sequence of the segment where replay would start
   * @param freed told of each
   */
  reclaim(syncedLsn: number, replaySequence: number, freed: (segment: number) => void): void {
    this.reclaimable = false;
    const pending = this.pending;
    let kept = 0;
    for (let i = 0; i < pending.length; i++) {
      const segment = pending[i];
      if (
        this.#deathLsn[segment] <= syncedLsn && this.sequence[segment] < replaySequence &&
        this.pins[segment] === 0 &&
        !(this.checkpointRunning && this.#deathEpoch[segment] === this.checkpointEpoch)
      ) {
        this.#free(segment);
        freed(segment);
      } else {
        pending[kept++] = segment;
      }
    }
    pending.length = kept;
  }

  /** Pending segments that only wait for a sync (`deathLsn` above `syncedLsn`). */
  pendingSync(syncedLsn: number): number {
    let count = 0;
    for (const segment of this.pending) if (this.#deathLsn[segment] > syncedLsn) count++;
    return count;
  }

  /** Pending segments that replay would walk through: only a checkpoint frees them. */
  pendingReplay(replaySequence: number): number {
    let count = 0;
    for (const segment of this.pending) if (this.sequence[segment] >= replaySequence) count++;
    return count;
  }

  #free(segment: number): void {
    this.state[segment] = SegmentState.Free;
    this.freeCount++;
    this.readyCount += this.#allocated[segment];
  }

  /**
   * Takes a ready segment for `state`, the lowest first so that the file stays short.
   *
   * @returns NO_SEGMENT when there is none
   */
  take(state: SegmentState): number {
    if (this.readyCount === 0) return NO_SEGMENT;
    const segment = this.#find(1);
    this.state[segment] = state;
    this.freeCount--;
    this.readyCount--;
    return segment;
  }

  /** Gives back a segment that was taken (Next, Open or Checkpoint) and holds nothing of value. */
  giveBack(segment: number): void {
    this.live[segment] = 0;
    this.#free(segment);
  }

  /** Start-up: says what a segment is before anything was taken. */
  assign(segment: number, state: SegmentState, sequence: number, allocated: boolean): void {
    if (this.state[segment] === SegmentState.Free) {
      this.freeCount--;
      this.readyCount -= this.#allocated[segment];
    }
    this.state[segment] = state;
    this.sequence[segment] = sequence;
    this.#allocated[segment] = allocated ? 1 : 0;
    if (state === SegmentState.Free) this.#free(segment);
  }

  /**
   * A free segment to allocate (`allocated` 0) or to punch (1, from the end), now Busy; or
   * NO_SEGMENT.
   */
  takeBusy(allocated: 0 | 1): number {
    const segment = allocated === 0 ? this.#find(0) : this.#findLast();
    if (segment === NO_SEGMENT) return segment;
    this.state[segment] = SegmentState.Busy;
    this.freeCount--;
    this.readyCount -= this.#allocated[segment];
    return segment;
  }

  /** The allocation or punch of a Busy segment has ended. */
  endBusy(segment: number, allocated: boolean): void {
    this.#allocated[segment] = allocated ? 1 : 0;
    this.#free(segment);
  }

  /** First free segment that is allocated (1) or not (0). */
  #find(allocated: number): number {
    for (let i = 0; i < this.count; i++) {
      if (this.state[i] === SegmentState.Free && this.#allocated[i] === allocated) return i;
    }
    return NO_SEGMENT;
  }

  #findLast(): number {
    for (let i = this.count - 1; i >= 0; i--) {
      if (this.state[i] === SegmentState.Free && this.#allocated[i] === 1) return i;
    }
    return NO_SEGMENT;
  }
}

function resized<T extends Uint8Array | Int32Array | Uint32Array | Float64Array>(
  from: T,
  to: T,
): T {
  to.set(from.length > to.length ? from.subarray(0, to.length) : from);
  return to;
}
