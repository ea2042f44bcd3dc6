/**
 * A guest: requests of random kinds to one disk, and the histories of what they did.
 *
 * @module
 */
import { BLOCK_BYTES, CHUNK_BYTES } from "../../agent/base/limits.ts";
import { Prng } from "../../agent/base/prng.ts";
import { BlockKind, BlockRequest, type BlockRequestOwner } from "../../agent/blk/target.ts";
import type { Volume } from "../../agent/volume/volume.ts";
import { Changes } from "./changes.ts";
import { BlockHistory } from "./history.ts";
import { GUEST_OFFSET, type SimNode } from "./node.ts";

/** Requests that a guest has under way. */
const DEPTH = 8;
/** Blocks of one place. */
export const BLOCKS_MAX = 4;
const SLOT_BYTES = BLOCKS_MAX * BLOCK_BYTES;

/** A write that no flush has made sure of. */
interface Unflushed {
  readonly id: number;
  readonly endMs: number;
  readonly history: BlockHistory;
  readonly place: number;
  readonly generation: number;
}

/** What is known of a disk, whichever guest has it. */
export class DiskOracle {
  readonly histories: BlockHistory[] = [];
  /** Byte offsets of runs of blocks that guests use. */
  readonly places: number[] = [];
  readonly changes = new Changes();
  #nextId = 1;
  #flushed = new Set<number>();
  #unflushed: Unflushed[] = [];
  /** Acknowledged, not flushed, and then all replicas crashed. */
  #endangered: Unflushed[] = [];
  #lastLossMs = -Infinity;
  /** When a flush told of a loss last. */
  #lastFailureMs = -Infinity;
  #lastFlushMs = -1;
  /** Highest generation of which a write was acknowledged. */
  #generation = 0;
  writes = 0;
  reads = 0;
  zeroings = 0;
  flushes = 0;
  failedFlushes = 0;
  losses = 0;

  /** @param random draws the places that guests use; or those of another disk */
  constructor(
    readonly id: number,
    readonly name: string,
    public sizeBytes: number,
    random: Prng | readonly number[],
  ) {
    if (!(random instanceof Prng)) {
      this.places.push(...random);
      return;
    }
    const chunks = Math.floor(sizeBytes / CHUNK_BYTES);
    for (let i = 0; i < 6; i++) {
      const chunk = i < 2 ? i : random.below(chunks);
      const place = chunk * CHUNK_BYTES + random.below(1024 - BLOCKS_MAX) * BLOCK_BYTES;
      if (this.places.some((other) => Math.abs(other - place) < SLOT_BYTES)) continue;
      this.places.push(place);
      for (let block = 0; block < BLOCKS_MAX; block++) {
        const at = place + block * BLOCK_BYTES;
        // What was settled was made durable before anybody could read it.
        this.histories.push(new BlockHistory(`${name} at ${at}`, (id) => this.#flushed.add(id)));
      }
    }
  }

  /**
   * The disk has been rolled back, while nobody had it open: it holds this from now on, and what it held until then is another disk.
   *
   * @param content by place, then by block; all of it durable, since it is that of a snapshot
   * @param id of the other disk, in the trash
   * @returns what is known of the other disk
   */
  rolledBack(content: readonly number[], id: number, nowMs: number): DiskOracle {
    const old = new DiskOracle(id, `old-${id}`, this.sizeBytes, this.places);
    old.histories.push(...this.histories);
    // Numbers are given once, and what is durable of one disk is nothing else of the other.
    old.#flushed = this.#flushed;
    old.#unflushed = this.#unflushed;
    old.#endangered = this.#endangered;
    old.#lastLossMs = this.#lastLossMs;
    old.#lastFlushMs = this.#lastFlushMs;
    this.#unflushed = [];
    this.#endangered = [];
    this.changes.rolledBack(content, nowMs);
    for (const [at, value] of content.entries()) {
      this.#flushed.add(value);
      const { name } = this.histories[at];
      const begin = { value, atMs: nowMs };
      this.histories[at] = new BlockHistory(name, (flushed) => this.#flushed.add(flushed), begin);
    }
    return old;
  }

  historyOf(place: number, block: number): BlockHistory {
    return this.histories[place * BLOCKS_MAX + block];
  }

  nextId(): number {
    return this.#nextId++;
  }

  /** A write of the lease `generation` is acknowledged. */
  acknowledged(
    id: number,
    endMs: number,
    place: number,
    block: number,
    generation: number,
    isDurable: boolean,
  ): void {
    if (generation < this.#generation) {
      throw new Error(
        `${this.name}: a write of generation ${generation} was acknowledged after one of ${this.#generation}`,
      );
    }
    this.#generation = generation;
    const history = this.historyOf(place, block);
    history.writeEnds(id, endMs);
    this.changes.ends(id, endMs);
    if (isDurable) this.#flushed.add(id);
    else this.#unflushed.push({ id, endMs, history, place, generation });
  }

  /** A flush that was sent at `startMs` under the lease `generation` has succeeded. */
  flushed(startMs: number, generation: number): void {
    this.flushes++;
    this.#lastFlushMs = Math.max(this.#lastFlushMs, startMs);
    for (const { id, endMs } of this.#unflushed) if (endMs <= startMs) this.#flushed.add(id);
    this.#unflushed = this.#unflushed.filter(({ endMs }) => endMs > startMs);
    for (const each of this.#endangered) {
      if (each.endMs > startMs || each.generation !== generation) continue;
      each.history.mustHave(each.id);
      this.#flushed.add(each.id);
    }
    this.#endangered = this.#endangered.filter(({ endMs }) => endMs > startMs);
  }

  /** A flush has failed: only a loss may do that. All that are under way when one tells of a loss do. */
  flushFailed(startMs: number, nowMs: number): void {
    this.failedFlushes++;
    const isToldOf = startMs <= this.#lastFailureMs;
    if (!isToldOf && this.#lastLossMs < Math.min(startMs, this.#lastFlushMs)) {
      throw new Error(`${this.name}: a flush failed although nothing was lost`);
    }
    if (!isToldOf) this.#lastFailureMs = nowMs;
    this.#endangered = this.#endangered.filter(({ endMs }) => endMs > startMs);
  }

  /** Replicas that hold blocks of these places have all crashed. */
  lost(nowMs: number, isConcerned: (chunk: number) => boolean): void {
    this.changes.lost(nowMs);
    // A new holder does not know what the one before it had written, and fears for all of the disk.
    for (let chunk = 0; chunk * CHUNK_BYTES < this.sizeBytes; chunk++) {
      if (!isConcerned(chunk)) continue;
      this.#lastLossMs = nowMs;
      break;
    }
    this.places.forEach((place, at) => {
      if (!isConcerned(Math.floor(place / CHUNK_BYTES))) return;
      this.losses++;
      for (let block = 0; block < BLOCKS_MAX; block++) {
        this.historyOf(at, block).lost(nowMs, (id) => this.#flushed.has(id));
      }
      this.#endangered.push(...this.#unflushed.filter((each) => each.place === at));
      this.#unflushed = this.#unflushed.filter((each) => each.place !== at);
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
  /** Blocks that are changed, and the number of each change. */
  changes: { readonly place: number; readonly block: number; readonly id: number }[];
  isDurable: boolean;
  isBusy: boolean;
}

/** One running guest: it begins when its node has the disk's lease. */
export class Guest implements BlockRequestOwner {
  isStopped = false;
  isFenced = false;
  /** It hears no more how its requests end. */
  #isGone = false;
  isBegun = false;
  /** Only reads, each block once. */
  #sweep: (() => void) | null = null;
  #sweepAt = 0;
  /** Changes nothing for a while. */
  #isReading = false;
  readonly #slots: Slot[] = [];
  #whenIdle: (() => void) | null = null;
  /** When it was made, if it has not begun. */
  readonly madeMs: number;

  /** When the oldest request under way was sent; −1: none is. */
  get oldestMs(): number {
    if (!this.isBegun) return this.madeMs;
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
    this.madeMs = node.world.nowMs;
    for (let i = 0; i < DEPTH; i++) {
      this.#slots.push({
        request: new BlockRequest(this, 8),
        buffer: GUEST_OFFSET + memoryOffset + i * SLOT_BYTES,
        startMs: 0,
        place: 0,
        block: 0,
        count: 0,
        changes: [],
        isDurable: false,
        isBusy: false,
      });
      this.#slots[i].request.tag = i;
    }
  }

  get #nowMs(): number {
    return this.node.world.nowMs;
  }

  /** What it waits for, in words. */
  describe(): string {
    if (!this.isBegun) return "it waits for the lease";
    const parts = this.#slots.filter((slot) => slot.isBusy).map((slot) =>
      `kind ${slot.request.kind} at ${slot.request.offsetBytes} since ${slot.startMs.toFixed(0)}`
    );
    return `it is at generation ${this.volume.generation} and waits for ${parts.join(", ")}`;
  }

  /** The lease is there. */
  begin(): void {
    if (this.isBegun || this.isStopped) return;
    this.isBegun = true;
    this.#schedule(0);
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

  /** It is killed; `done` when nothing of it is under way. */
  leave(done: () => void): void {
    this.#isGone = true;
    this.drain(done);
  }

  #checkIdle(): void {
    if (this.#whenIdle === null || this.#slots.some((slot) => slot.isBusy)) return;
    const done = this.#whenIdle;
    this.#whenIdle = null;
    done();
  }

  #kind(): BlockKind {
    if (this.random.chance(0.01)) this.#isReading = !this.#isReading;
    if (this.#isReading) return this.random.chance(0.1) ? BlockKind.Flush : BlockKind.Read;
    const draw = this.random.fraction();
    if (draw < 0.08) return BlockKind.Flush;
    if (draw < 0.45) return BlockKind.Read;
    if (draw < 0.51) return BlockKind.Discard;
    return draw < 0.57 ? BlockKind.WriteZeroes : BlockKind.Write;
  }

  #issue(slot: Slot): void {
    const { oracle, random } = this;
    const { request } = slot;
    const isSweep = this.#sweep !== null;
    const kind = isSweep ? BlockKind.Read : this.#kind();
    if (isSweep) {
      if (this.#sweepAt >= oracle.places.length) return;
      slot.place = this.#sweepAt++;
      slot.block = 0;
      slot.count = BLOCKS_MAX;
    } else {
      // Some are written all the time, some so rarely that what was lost there is still seen at the end.
      slot.place = Math.floor(oracle.places.length * random.fraction() ** 3);
      slot.block = random.below(BLOCKS_MAX);
      slot.count = 1 + random.below(BLOCKS_MAX - slot.block);
    }
    slot.startMs = this.#nowMs;
    slot.isBusy = true;
    slot.changes = [];
    request.kind = kind;
    request.unmap = random.chance(0.5);
    request.offsetBytes = 0;
    request.lengthBytes = 0;
    request.segmentCount = 0;
    request.forceUnitAccess = kind === BlockKind.Write && random.chance(0.1);
    slot.isDurable = request.forceUnitAccess;
    if (kind !== BlockKind.Flush) {
      request.offsetBytes = oracle.places[slot.place] + slot.block * BLOCK_BYTES;
      request.lengthBytes = slot.count * BLOCK_BYTES;
    }
    if (kind === BlockKind.Read || kind === BlockKind.Write) {
      request.segmentCount = 1;
      request.segmentWindows[0] = 0;
      request.segmentOffsets[0] = slot.buffer;
      request.segmentLengths[0] = request.lengthBytes;
    }
    if (kind !== BlockKind.Read && kind !== BlockKind.Flush) {
      const words = this.node.window.u32;
      const isZero = kind !== BlockKind.Write;
      const change = (place: number, block: number) => {
        const id = oracle.nextId();
        slot.changes.push({ place, block, id });
        oracle.historyOf(place, block).writeStarts(id, this.#nowMs, isZero);
        oracle.changes.begins(place * BLOCKS_MAX + block, id, isZero, this.#nowMs);
        return id;
      };
      if (isZero && random.chance(0.1)) {
        // A whole chunk, whoever else is in it.
        const chunk = Math.floor(request.offsetBytes / CHUNK_BYTES);
        request.offsetBytes = chunk * CHUNK_BYTES;
        request.lengthBytes = CHUNK_BYTES;
        oracle.places.forEach((at, place) => {
          if (Math.floor(at / CHUNK_BYTES) !== chunk) return;
          for (let block = 0; block < BLOCKS_MAX; block++) change(place, block);
        });
      } else if (isZero) {
        for (let i = 0; i < slot.count; i++) change(slot.place, slot.block + i);
      }
      for (let i = 0; i < slot.count && !isZero; i++) {
        const id = change(slot.place, slot.block + i);
        const at = (slot.buffer + i * BLOCK_BYTES) >>> 2;
        words.fill(id, at, at + BLOCK_BYTES / 4);
      }
    }
    this.volume.submit(request);
  }

  requestDone(request: BlockRequest): void {
    const slot = this.#slots[request.tag];
    slot.isBusy = false;
    if (this.isFenced || this.#isGone) return this.#checkIdle();
    if (request.result !== 0 && this.node.process?.isSilent === true) return this.#checkIdle();
    const nowMs = this.#nowMs;
    const { oracle } = this;
    const { generation } = this.volume;
    if (request.kind === BlockKind.Flush) {
      if (request.result === 0) oracle.flushed(slot.startMs, generation);
      else oracle.flushFailed(slot.startMs, nowMs);
      return this.#checkIdle();
    }
    if (request.result !== 0 && slot.isDurable) {
      // Written, and then lost before it was flushed: as a flush that fails.
      oracle.flushFailed(slot.startMs, nowMs);
      return this.#checkIdle();
    }
    if (request.result !== 0) {
      throw new Error(
        `${oracle.name} at ${request.offsetBytes} on node ${this.node.id}: a guest saw an I/O error ` +
          `(${request.result}) of a request of kind ${request.kind}`,
      );
    }
    if (request.kind !== BlockKind.Read) {
      if (request.kind === BlockKind.Write) oracle.writes++;
      else oracle.zeroings++;
      for (const { id, place, block } of slot.changes) {
        oracle.acknowledged(id, nowMs, place, block, generation, slot.isDurable);
      }
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
