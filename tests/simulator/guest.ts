/**
 * A guest: requests of random kinds to one disk, and the histories of what they did.
 *
 * @module
 */
import { BLOCK_BYTES, CHUNK_BYTES } from "../../agent/base/limits.ts";
import type { Prng } from "../../agent/base/prng.ts";
import { BlockKind, BlockRequest, type BlockRequestOwner } from "../../agent/blk/target.ts";
import type { Volume } from "../../agent/volume/volume.ts";
import { BlockHistory } from "./history.ts";
import { GUEST_OFFSET, type SimNode } from "./node.ts";

/** Requests that a guest has under way. */
const DEPTH = 8;
const BLOCKS_MAX = 4;
const SLOT_BYTES = BLOCKS_MAX * BLOCK_BYTES;

/** What is known of a disk, whichever guest has it. */
export class DiskOracle {
  readonly histories: BlockHistory[] = [];
  /** Byte offsets of runs of blocks that guests use. */
  readonly places: number[] = [];
  #nextValue = 1;
  readonly #flushed = new Set<number>();
  #acknowledged: { value: number; endMs: number }[] = [];
  writes = 0;
  reads = 0;
  flushes = 0;
  failedFlushes = 0;

  constructor(
    readonly id: number,
    readonly name: string,
    readonly sizeBytes: number,
    random: Prng,
  ) {
    const chunks = Math.floor(sizeBytes / CHUNK_BYTES);
    for (let i = 0; i < 6; i++) {
      const chunk = i < 2 ? i : random.below(chunks);
      const place = chunk * CHUNK_BYTES + random.below(1024 - BLOCKS_MAX) * BLOCK_BYTES;
      if (this.places.some((other) => Math.abs(other - place) < SLOT_BYTES)) continue;
      this.places.push(place);
      for (let block = 0; block < BLOCKS_MAX; block++) {
        this.histories.push(new BlockHistory(`${name} at ${place + block * BLOCK_BYTES}`));
      }
    }
  }

  historyOf(place: number, block: number): BlockHistory {
    return this.histories[place * BLOCKS_MAX + block];
  }

  nextValue(): number {
    return this.#nextValue++;
  }

  acknowledged(value: number, endMs: number): void {
    this.writes++;
    this.#acknowledged.push({ value, endMs });
  }

  /** A flush that was sent at `startMs` has succeeded. */
  flushed(startMs: number): void {
    this.flushes++;
    for (const { value, endMs } of this.#acknowledged) {
      if (endMs <= startMs) this.#flushed.add(value);
    }
    this.#acknowledged = this.#acknowledged.filter(({ endMs }) => endMs > startMs);
  }

  /** Replicas that hold blocks of these places have all crashed. */
  lost(nowMs: number, isConcerned: (chunk: number) => boolean): void {
    this.places.forEach((place, at) => {
      if (!isConcerned(Math.floor(place / CHUNK_BYTES))) return;
      for (let block = 0; block < BLOCKS_MAX; block++) {
        this.historyOf(at, block).lost(nowMs, (value) => this.#flushed.has(value));
      }
    });
  }
}

interface Slot {
  readonly request: BlockRequest;
  readonly buffer: number;
  startMs: number;
  place: number;
  block: number;
  count: number;
  values: number[];
  isBusy: boolean;
}

/** One running guest. */
export class Guest implements BlockRequestOwner {
  isStopped = false;
  isFenced = false;
  /** Only reads, each block once. */
  #sweep: (() => void) | null = null;
  #sweepAt = 0;
  readonly #slots: Slot[] = [];
  #whenIdle: (() => void) | null = null;
  /** When the oldest request under way was sent; −1: none is. */
  get oldestMs(): number {
    let oldest = -1;
    for (const slot of this.#slots) {
      if (slot.isBusy && (oldest < 0 || slot.startMs < oldest)) oldest = slot.startMs;
    }
    return oldest;
  }

  constructor(
    readonly node: SimNode,
    readonly volume: Volume,
    readonly oracle: DiskOracle,
    readonly random: Prng,
    readonly memoryOffset: number,
  ) {
    for (let i = 0; i < DEPTH; i++) {
      this.#slots.push({
        request: new BlockRequest(this, 8),
        buffer: GUEST_OFFSET + memoryOffset + i * SLOT_BYTES,
        startMs: 0,
        place: 0,
        block: 0,
        count: 0,
        values: [],
        isBusy: false,
      });
      this.#slots[i].request.tag = i;
    }
    this.#schedule(0);
  }

  get #nowMs(): number {
    return this.node.world.nowMs;
  }

  #schedule(delayMs: number): void {
    this.node.world.after(delayMs, () => {
      if (this.isStopped) return;
      for (const slot of this.#slots) {
        if (!slot.isBusy && (this.#sweep !== null || this.random.chance(0.4))) this.#issue(slot);
      }
      this.node.turn();
      this.#schedule(this.random.fraction() * 100);
    });
  }

  /** Reads every block once; `done` when all have been checked. */
  sweep(done: () => void): void {
    this.#sweep = done;
    this.#sweepAt = 0;
  }

  /** Stops asking; `done` when nothing is under way. */
  drain(done: () => void): void {
    this.isStopped = true;
    this.#whenIdle = done;
    this.#checkIdle();
  }

  #checkIdle(): void {
    if (this.#whenIdle === null || this.#slots.some((slot) => slot.isBusy)) return;
    const done = this.#whenIdle;
    this.#whenIdle = null;
    done();
  }

  #issue(slot: Slot): void {
    const { oracle, random } = this;
    const { request } = slot;
    const isSweep = this.#sweep !== null;
    const kind = isSweep
      ? BlockKind.Read
      : random.chance(0.08)
      ? BlockKind.Flush
      : random.chance(0.4)
      ? BlockKind.Read
      : BlockKind.Write;
    if (isSweep) {
      if (this.#sweepAt >= oracle.places.length) return;
      slot.place = this.#sweepAt++;
      slot.block = 0;
      slot.count = BLOCKS_MAX;
    } else {
      slot.place = random.below(oracle.places.length);
      slot.block = random.below(BLOCKS_MAX);
      slot.count = 1 + random.below(BLOCKS_MAX - slot.block);
    }
    slot.startMs = this.#nowMs;
    slot.isBusy = true;
    request.kind = kind;
    request.forceUnitAccess = false;
    request.offsetBytes = 0;
    request.lengthBytes = 0;
    request.segmentCount = 0;
    if (kind !== BlockKind.Flush) {
      request.offsetBytes = oracle.places[slot.place] + slot.block * BLOCK_BYTES;
      request.lengthBytes = slot.count * BLOCK_BYTES;
      request.segmentCount = 1;
      request.segmentWindows[0] = 0;
      request.segmentOffsets[0] = slot.buffer;
      request.segmentLengths[0] = request.lengthBytes;
    }
    if (kind === BlockKind.Write) {
      const words = this.node.window.u32;
      slot.values = [];
      for (let i = 0; i < slot.count; i++) {
        const value = oracle.nextValue();
        slot.values.push(value);
        const at = (slot.buffer + i * BLOCK_BYTES) >>> 2;
        words.fill(value, at, at + BLOCK_BYTES / 4);
        oracle.historyOf(slot.place, slot.block + i).writeStarts(value, this.#nowMs);
      }
    }
    this.volume.submit(request);
  }

  requestDone(request: BlockRequest): void {
    const slot = this.#slots[request.tag];
    slot.isBusy = false;
    if (this.isFenced) return;
    const nowMs = this.#nowMs;
    const { oracle } = this;
    if (request.kind === BlockKind.Flush) {
      if (request.result === 0) oracle.flushed(slot.startMs);
      else oracle.failedFlushes++;
      return this.#checkIdle();
    }
    if (request.result !== 0) {
      throw new Error(
        `${oracle.name}: a guest saw an I/O error (${request.result}) of a request of kind ${request.kind}`,
      );
    }
    if (request.kind === BlockKind.Write) {
      slot.values.forEach((value, i) => {
        oracle.historyOf(slot.place, slot.block + i).writeEnds(value, nowMs);
        oracle.acknowledged(value, nowMs);
      });
    } else this.#check(slot, nowMs);
    this.#checkIdle();
  }

  #check(slot: Slot, nowMs: number): void {
    const words = this.node.window.u32;
    for (let i = 0; i < slot.count; i++) {
      const at = (slot.buffer + i * BLOCK_BYTES) >>> 2;
      const value = words[at];
      for (let word = 1; word < BLOCK_BYTES / 4; word += 97) {
        if (words[at + word] !== value) {
          throw new Error(`${this.oracle.name}: a block mixes ${value} and ${words[at + word]}`);
        }
      }
      this.oracle.reads++;
      this.oracle.historyOf(slot.place, slot.block + i).read(value, slot.startMs, nowMs);
    }
    if (this.#sweep === null || this.#sweepAt < this.oracle.places.length) return;
    if (this.#slots.some((other) => other.isBusy)) return;
    const done = this.#sweep;
    this.#sweep = null;
    this.isStopped = true;
    done();
  }
}
