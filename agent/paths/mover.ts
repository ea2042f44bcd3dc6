/**
 * Moves a group's chunks from one data path of a node to another, while they are used.
 *
 *     copy chunk by chunk ─▶ copy again what was changed meanwhile ─▶ hold changes ─▶ the rest ─▶ sync ─▶ table ─▶ let go
 *
 * Invariants:
 * - Until the table says otherwise, durably, the group is where it was: reads and changes go there. From then on it is where it was
 *   copied to. There is no state in between, whenever a crash comes; what the table does not point at is left over, and dropped.
 * - A change that is submitted while a group moves makes its chunk be copied again. Before the last ones are copied, changes are
 *   held, and all that were submitted before have been applied. So both copies are equal when the table changes, and
 *   what was acknowledged is durable in the new one.
 * - A chunk that is being copied has no known stamp at its new place until it is complete.
 * - Only a group that this node is in sync for moves, clean and in all pools; when that changes, or one of the paths fails, or
 *   something cannot be read, the move ends and nothing has happened.
 *
 * Bounds: one group at a time, one chunk at a time, `BYTES_PER_SECOND`; changes are held for a few chunks and syncs.
 *
 * @module
 */
import type { Arena } from "../base/arena.ts";
import { BLOCK_BYTES, BLOCK_SHIFT, CHUNK_BLOCKS, TRANSFER_BLOCKS_MAX } from "../base/limits.ts";
import type { Window } from "../platform/platform.ts";
import { chunkList, Stamp } from "../replication/local_store.ts";
import { Operation, OperationKind } from "../store/operation.ts";
import type { Store } from "../store/store.ts";

/** Bytes that are copied per second: what a disk has to spare beside its guests. */
const BYTES_PER_SECOND = 32 * 1024 * 1024;
/** Chunks that may be left to be copied when changes are held. */
const LEFT_MAX = 4;
/** Times that what was changed meanwhile is copied again before the move is given up: its guest is too busy. */
const ROUNDS_MAX = 20;
/** Longest time over which unused allowance is saved up. */
const BURST_MS = 100;
/** Chunks listed at a time. */
const LIST_MAX = 64;

/** What a move needs around it. */
export interface MoverHost {
  readonly window: Window;
  readonly arena: Arena;
  /** Layers of the map, with what the slots of their chunks start from. */
  readonly layers: ReadonlyMap<number, number>;
  /** Writes down that the group is there; false when it could not. */
  commit(group: number, to: number, done: (isDone: boolean) => void): void;
  /** Lets go what was held, to wherever the table says. */
  release(): void;
  /** A move is over: what it left at `path` (an id) is to be dropped. */
  over(move: Move, path: number): void;
}

/** A group on its way. */
export interface Move {
  readonly group: number;
  /** Groups of the map. */
  readonly groups: number;
  readonly from: Store;
  readonly fromId: number;
  readonly to: Store;
  readonly toId: number;
}

/** Starts something, and is told its result: 0, or negative. */
type Step = (done: (result: number) => void) => void;

/** See the head of the file. */
export class Mover {
  /** Groups moved, and bytes copied, so far. */
  moved = 0;
  copiedBytes = 0;
  /** Changes of the group are to be held. */
  isFrozen = false;
  /** Groups that could not be moved in this run. */
  readonly unmovable = new Set<number>();
  readonly #host: MoverHost;
  #move: Move | null = null;
  #steps: Generator<Step, boolean, number> | null = null;
  /** Chunks, by layer, that were changed since they were copied, or were not there then. */
  readonly #dirty = new Map<number, Set<number>>();
  #dirtyCount = 0;
  #isAborted = false;
  #isStepping = false;
  #allowance = 0;
  #nowMs = 0;
  /** Goes on when there is allowance. */
  #paced: (() => void) | null = null;
  readonly #operation: Operation;
  #operationDone: (result: number) => void = () => {};
  readonly #maps = [0, 1, 2].map(() => new Uint32Array(CHUNK_BLOCKS / 32));

  constructor(host: MoverHost) {
    this.#host = host;
    const owner = {
      operationDone: (operation: Operation) => this.#operationDone(operation.result),
    };
    this.#operation = new Operation(owner, TRANSFER_BLOCKS_MAX);
  }

  /** The move under way; null: none. */
  get move(): Move | null {
    return this.#move;
  }

  /** Begins; there must be none under way. */
  begin(move: Move): void {
    if (this.#move !== null) throw new Error("mover: a group is on its way already");
    this.#move = move;
    this.#isAborted = false;
    this.#dirty.clear();
    this.#dirtyCount = 0;
    this.#steps = this.#run(move);
    this.#go(0);
  }

  /** A chunk of the group is about to be changed. */
  changed(layer: number, chunk: number): void {
    let chunks = this.#dirty.get(layer);
    if (chunks === undefined) this.#dirty.set(layer, chunks = new Set());
    if (!chunks.has(chunk)) this.#dirtyCount++;
    chunks.add(chunk);
  }

  /** Gives up, as soon as what is under way has ended; not any more once the table is being written. */
  abort(): void {
    if (this.#move === null) return;
    this.#isAborted = true;
    this.#goOn();
  }

  /** Time passes. */
  tick(nowMs: number): void {
    const elapsedMs = Math.min(BURST_MS, Math.max(0, nowMs - this.#nowMs));
    this.#nowMs = nowMs;
    const most = BYTES_PER_SECOND * BURST_MS / 1000;
    this.#allowance = Math.min(most, this.#allowance + BYTES_PER_SECOND * elapsedMs / 1000);
    this.#goOn();
  }

  #goOn(): void {
    if (this.#paced === null || (this.#allowance <= 0 && !this.#isAborted)) return;
    const go = this.#paced;
    this.#paced = null;
    go();
  }

  /** Steps until something has to be waited for. */
  #go(result: number): void {
    let next = this.#steps!.next(result);
    while (!next.done) {
      // What is done at once goes on in this loop, not deeper and deeper.
      const here: number[] = [];
      this.#isStepping = true;
      next.value((result) => {
        if (this.#isStepping) here.push(result);
        else this.#go(result);
      });
      this.#isStepping = false;
      if (here.length === 0) return;
      next = this.#steps!.next(here[0]);
    }
    const move = this.#move!;
    this.#move = null;
    this.#steps = null;
    this.isFrozen = false;
    if (next.value) this.moved++;
    else if (!this.#isAborted) this.unmovable.add(move.group);
    this.#host.release();
    this.#host.over(move, next.value ? move.fromId : move.toId);
  }

  *#run(move: Move): Generator<Step, boolean, number> {
    if (!(yield* this.#isApplied(move)) || !(yield* this.#copyAll(move))) return false;
    for (let round = 0; this.#dirtyCount > LEFT_MAX; round++) {
      if (round >= ROUNDS_MAX || !(yield* this.#copyChanged(move))) return false;
    }
    this.isFrozen = true;
    if (!(yield* this.#copyChanged(move))) return false;
    if ((yield* this.#sync(move.to)) < 0 || this.#isAborted) return false;
    return (yield (done) =>
      this.#host.commit(move.group, move.toId, (isDone) => done(isDone ? 0 : -1))) === 0;
  }

  /** Waits until all that was submitted before is applied; false when something waits for more than that. */
  *#isApplied({ from }: Move): Generator<Step, boolean, number> {
    if ((yield* this.#sync(from)) < 0) return false;
    // What had found no place in a batch has one now, which the next sync covers, or it waits for room.
    const { waitingWrites, queuedOperations } = from.stats();
    if (waitingWrites + queuedOperations > 0) this.#isAborted = true;
    return !this.#isAborted && (yield* this.#sync(from)) >= 0;
  }

  *#copyAll(move: Move): Generator<Step, boolean, number> {
    const list = chunkList(LIST_MAX);
    for (const [layer, mix] of [...this.#host.layers]) {
      const first = move.group - mix & move.groups - 1;
      let from = 0;
      do {
        list.count = 0;
        list.next = -1;
        if (this.#isAborted) return false;
        if (move.from.hasLayer(layer)) {
          move.from.listChunks(layer, from, list, move.groups, first);
        }
        from = list.next;
        for (const chunk of list.chunks.slice(0, list.count)) {
          if (!(yield* this.#copyChunk(move, layer, chunk))) return false;
        }
      } while (from >= 0);
    }
    return true;
  }

  *#copyChanged(move: Move): Generator<Step, boolean, number> {
    const changed = [...this.#dirty].flatMap(([layer, chunks]) =>
      [...chunks].map((chunk) => [layer, chunk] as const)
    );
    this.#dirty.clear();
    this.#dirtyCount = 0;
    // What is not among these any more must be there to be copied.
    if (!(yield* this.#isApplied(move))) return false;
    for (const [layer, chunk] of changed) {
      if (!(yield* this.#copyChunk(move, layer, chunk))) return false;
    }
    return true;
  }

  *#copyChunk(move: Move, layer: number, chunk: number): Generator<Step, boolean, number> {
    const { from, to } = move;
    yield (done) => {
      if (this.isFrozen || this.#allowance > 0 || this.#isAborted) done(0);
      else this.#paced = () => done(0);
    };
    if (this.#isAborted) return false;
    const isThere = to.hasLayer(layer);
    if (isThere) {
      const result = yield (done) => to.dropChunk(layer, chunk, (error) => done(error ? -1 : 0));
      if (result < 0) return false;
    }
    // The layer is gone, and the disk with it: nothing of it counts.
    if (!from.hasLayer(layer)) return true;
    if (!isThere) return false;
    const stamp = new Stamp();
    const isKnown = from.stampOf(layer, chunk, stamp);
    const [data, zeros, poisoned] = this.#maps.map((words) => words.slice());
    from.describeChunk(layer, chunk, data, zeros, poisoned);
    // What is damaged cannot be copied as it is.
    if (poisoned.some((word) => word !== 0)) return false;
    for (const [block, count] of runsOf(data)) {
      if (!(yield* this.#copyBlocks(move, layer, chunk, block, count))) return false;
    }
    for (const [block, count] of runsOf(zeros)) {
      const result = yield* this.#change(to, OperationKind.Zero, layer, chunk, block, count);
      if (result < 0) return false;
    }
    if (!isKnown) return !this.#isAborted;
    const { generation, sequence } = stamp;
    const result = yield* this.#change(
      to,
      OperationKind.Stamp,
      layer,
      chunk,
      0,
      1,
      generation,
      sequence,
    );
    return result >= 0 && !this.#isAborted;
  }

  *#copyBlocks(
    move: Move,
    layer: number,
    chunk: number,
    block: number,
    count: number,
  ): Generator<Step, boolean, number> {
    const { window, arena } = this.#host;
    const bytes = count << BLOCK_SHIFT;
    const buffer = arena.allocate(bytes);
    if (buffer < 0) {
      // Guests have it all: another time.
      this.#isAborted = true;
      return false;
    }
    this.#operation.buffer = buffer;
    let result = yield* this.#change(move.from, OperationKind.Read, layer, chunk, block, count);
    if (result >= 0) {
      for (let i = 0; i < count; i++) {
        this.#operation.checksums[i] = window.kernel.checksum(
          buffer + (i << BLOCK_SHIFT),
          BLOCK_BYTES,
        );
      }
      result = yield* this.#change(move.to, OperationKind.Write, layer, chunk, block, count);
    }
    arena.release(buffer, bytes);
    this.#allowance -= bytes;
    this.copiedBytes += bytes;
    return result >= 0;
  }

  *#change(
    store: Store,
    kind: OperationKind,
    layer: number,
    chunk: number,
    block: number,
    count: number,
    generation = 0,
    sequence = 0,
  ): Generator<Step, number, number> {
    return yield (done) => {
      const operation = this.#operation;
      operation.kind = kind;
      operation.layers = [layer];
      operation.chunk = chunk;
      operation.block = block;
      operation.blockCount = count;
      operation.generation = generation;
      operation.sequence = sequence;
      operation.stampUnknown = false;
      this.#operationDone = done;
      store.submit(operation);
    };
  }

  *#sync(store: Store): Generator<Step, number, number> {
    return yield* this.#change(store, OperationKind.Sync, 0, 0, 0, 1);
  }
}

/** Runs of bits that are set, each no longer than one transfer. */
function* runsOf(words: Uint32Array): Generator<[first: number, count: number]> {
  for (let block = 0; block < CHUNK_BLOCKS;) {
    const isSet = (at: number) => (words[at >>> 5] >>> (at & 31) & 1) !== 0;
    if (!isSet(block)) {
      block++;
      continue;
    }
    let count = 1;
    while (count < TRANSFER_BLOCKS_MAX && block + count < CHUNK_BLOCKS && isSet(block + count)) {
      count++;
    }
    yield [block, count];
    block += count;
  }
}
