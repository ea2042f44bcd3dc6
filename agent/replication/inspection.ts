/**
 * Looks at one chunk of this node's replica: reads and verifies every block that is asked for, and says what each of them is, so
 * that replicas can be compared (`checking.ts`).
 *
 *     begin: stamp, watch, kinds of blocks ─▶ read a run ─▶ checksum ─▶ … ─▶ end: stamp, blocks that something came to meanwhile
 *
 * Invariants:
 * - What is said of a block that is not among the changed ones is what it was at every stamp from the first one to the last one: it was
 *   read after the watch had begun, and nothing came to it, done or still on its way, before the watch has ended.
 * - Checksums are computed over what was read, which the store has verified: a block that does not match its own checksum is damaged, and
 *   has none.
 * - A layer and the one that it absorbs are looked at as one (`pairs.ts`).
 * - It is over soon, so that whoever asked does not take this node for one that does not answer: after LOOK_MS, and as soon as `pace.ts`
 *   wants guests to come first, it ends with what it has. Blocks that it has not come to count as changed; if it has come to none, it is
 *   refused. At most INSPECTIONS_MAX at a time, a buffer each; more are refused.
 *
 * @module
 */
import type { Arena } from "../base/arena.ts";
import { BLOCK_BYTES, BLOCK_SHIFT, CHUNK_BLOCKS } from "../base/limits.ts";
import { EBADMSG, EIO, type Window } from "../platform/platform.ts";
import { Operation, OperationKind, type OperationOwner } from "../store/operation.ts";
import { add, has, SET_WORDS } from "./block_set.ts";
import { Findings, type InspectionQuery } from "./findings.ts";
import type { LocalStore } from "./local_store.ts";
import { Status } from "./messages.ts";
import type { Pace } from "./pace.ts";
import { stampOfPair } from "./pairs.ts";
import type { Replica, WatchedChunk } from "./replica.ts";

/** Chunks looked at at a time, for all who ask. */
export const INSPECTIONS_MAX = 8;
/** Milliseconds after which a look ends with what it has: a fifth of `UNREACHABLE_MS`. */
const LOOK_MS = 400;
/** Blocks of one read: long enough to be cheap, short enough to let guests through. */
const READ_BLOCKS_MAX = 64;

/** One look at a chunk; see the head of the file. */
export class Inspection implements OperationOwner, WatchedChunk {
  readonly findings = new Findings();
  readonly #host: Inspector;
  readonly layers: readonly number[];
  readonly chunk: number;
  readonly isQuiet: boolean;
  readonly #done: (result: number, findings: Findings) => void;
  readonly #wanted: Uint32Array;
  readonly #operation = new Operation(this, 0);
  readonly #buffer: number;
  #block = 0;
  /** Something was read. */
  #hasRead = false;
  #startMs = 0;

  constructor(
    host: Inspector,
    query: InspectionQuery,
    buffer: number,
    done: (result: number, findings: Findings) => void,
  ) {
    this.#host = host;
    this.layers = [...query.pair];
    this.chunk = query.chunk;
    this.isQuiet = query.isQuiet;
    this.#wanted = query.wanted.slice();
    this.#buffer = buffer;
    this.#done = done;
  }

  get changed(): Uint32Array {
    return this.findings.changed;
  }

  begin(): void {
    const { store, replica, nowMs } = this.#host;
    const { begin, data, zeros, damaged } = this.findings;
    this.#startMs = nowMs;
    replica.watchChunk(this);
    stampOfPair(store, this.layers, this.chunk, begin);
    store.describeChain(this.layers, this.chunk, data, zeros, damaged);
    for (let i = 0; i < SET_WORDS; i++) {
      // What is known to be damaged is read as well: it may have been the disk's whim, and whoever heals hears of it.
      data[i] = (data[i] | damaged[i]) & this.#wanted[i];
      zeros[i] &= this.#wanted[i];
      damaged[i] = 0;
    }
    this.#next();
  }

  /** Reads the next run, if it may. */
  #next(): void {
    while (this.#block < CHUNK_BLOCKS && !this.#isToBeRead(this.#block)) this.#block++;
    if (this.#block === CHUNK_BLOCKS) return this.#end(0);
    const most = Math.min(CHUNK_BLOCKS, this.#block + READ_BLOCKS_MAX);
    let end = this.#block + 1;
    while (end < most && this.#isToBeRead(end)) end++;
    const count = end - this.#block;
    const isLate = this.#host.nowMs - this.#startMs >= LOOK_MS;
    if (isLate || !this.#host.mayRead(count << BLOCK_SHIFT)) return this.#stop();
    this.#hasRead = true;
    const operation = this.#operation;
    operation.kind = OperationKind.Read;
    operation.layers = this.layers;
    operation.chunk = this.chunk;
    operation.block = this.#block;
    operation.blockCount = count;
    operation.buffer = this.#buffer;
    operation.sink = null;
    this.#host.store.submit(operation);
  }

  /** Ends with what there is. */
  #stop(): void {
    if (!this.#hasRead) return this.#end(Status.Busy);
    for (let block = this.#block; block < CHUNK_BLOCKS; block++) {
      if (this.#isToBeRead(block)) add(this.findings.changed, block);
    }
    this.#end(0);
  }

  #isToBeRead(block: number): boolean {
    return has(this.findings.data, block) && !has(this.findings.damaged, block);
  }

  /** {@inheritDoc OperationOwner.operationDone} */
  operationDone({ result, badBlock, block, blockCount }: Operation): void {
    const { kernel } = this.#host.window;
    if (result === 0) {
      for (let i = 0; i < blockCount; i++) {
        const at = this.#buffer + (i << BLOCK_SHIFT);
        this.findings.checksums[block + i] = kernel.checksum(at, BLOCK_BYTES);
      }
      this.#block = block + blockCount;
      return this.#next();
    }
    const isMedium = result === -EBADMSG || result === -EIO;
    if (!isMedium) return this.#end(result);
    // Once is enough, though it may be healed at any moment. What came with it is read without it.
    const isWithin = badBlock >= block && badBlock < block + blockCount;
    add(this.findings.damaged, isWithin ? badBlock : block);
    this.#next();
  }

  #end(result: number): void {
    const { store, replica } = this.#host;
    stampOfPair(store, this.layers, this.chunk, this.findings.end);
    this.findings.isIdle = replica.isIdle(this.layers, this.chunk);
    replica.unwatchChunk(this);
    this.#host.ended(this, this.#buffer);
    this.#done(result, this.findings);
  }
}

/** Looks at chunks; see the head of the file. */
export class Inspector {
  readonly store: LocalStore;
  readonly replica: Replica;
  readonly window: Window;
  readonly #arena: Arena;
  readonly #pace: Pace;
  readonly #underWay = new Set<Inspection>();
  nowMs = 0;

  constructor(options: {
    store: LocalStore;
    replica: Replica;
    window: Window;
    arena: Arena;
    /** Shared with copying from here; its time passes elsewhere. */
    pace: Pace;
  }) {
    this.store = options.store;
    this.replica = options.replica;
    this.window = options.window;
    this.#arena = options.arena;
    this.#pace = options.pace;
  }

  /**
   * Begins a look.
   *
   * @param done told 0, `Status.Busy` or a negative errno of the store, and what was found; from inside this call only where nothing is read
   * @returns false: not now, too many are under way
   */
  inspect(
    query: InspectionQuery,
    done: (result: number, findings: Findings) => void,
  ): boolean {
    if (this.#underWay.size >= INSPECTIONS_MAX) return false;
    const buffer = this.#arena.allocate(READ_BLOCKS_MAX << BLOCK_SHIFT);
    if (buffer < 0) return false;
    const inspection = new Inspection(this, query, buffer, done);
    this.#underWay.add(inspection);
    inspection.begin();
    return true;
  }

  /** Whether damage of a chunk is looked for by somebody who does not want it healed. */
  isQuiet(layer: number, chunk: number): boolean {
    for (const inspection of this.#underWay) {
      if (inspection.isQuiet && inspection.chunk === chunk && inspection.layers.includes(layer)) {
        return true;
      }
    }
    return false;
  }

  /** From an inspection: whether it may read now. */
  mayRead(bytes: number): boolean {
    return this.#pace.take(bytes);
  }

  /** From an inspection: it has ended. */
  ended(inspection: Inspection, buffer: number): void {
    this.#underWay.delete(inspection);
    this.#arena.release(buffer, READ_BLOCKS_MAX << BLOCK_SHIFT);
  }

  /** True while time should pass often. */
  get isBusy(): boolean {
    return this.#underWay.size > 0;
  }

  /** Time passes. */
  tick(nowMs: number): void {
    this.nowMs = nowMs;
  }
}
