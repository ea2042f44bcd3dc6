/**
 * Copies one chunk of one layer from another node's replica over this one's.
 *
 *     describe ─▶ read a run ─▶ write it ─▶ … ─▶ free and zero the rest ─▶ describe again ─▶ stamp
 *                                                                          │ rewritten meanwhile
 *                                                                          └─▶ from the beginning
 *
 * Invariants:
 * - While it is under way the chunk's stamp is unknown, durably: a crash leaves a chunk that equals nothing.
 * - A block that was written live meanwhile (`live`) is not touched: what was written is newer than what is copied, or
 *   will be followed here by what is newer.
 * - Where the layer absorbs another one, the content of both is copied into it, whatever the source has merged of it so far.
 * - Where the layer is being flattened, what it is read through to is copied into it as well: what this node has copied already must not
 *   be lost because the source has not. Of one description all is read as it was described, whatever the map says by then.
 * - The stamp is set last, behind everything in the log. It is the source's from before the first block was read:
 *   everything up to it is in what was copied, and everything after it comes here live.
 *
 * @module
 */
import type { Arena } from "../base/arena.ts";
import { BLOCK_BYTES, BLOCK_SHIFT, CHUNK_BLOCKS } from "../base/limits.ts";
import { EBADMSG, type Window } from "../platform/platform.ts";
import { Operation, OperationKind, type OperationOwner } from "../store/operation.ts";
import { readDescription, verifyBlocks } from "./answers.ts";
import { add, has, SET_WORDS } from "./block_set.ts";
import { type LocalStore, Stamp } from "./local_store.ts";
import { DESCRIPTION_BYTES, type Head, MessageFlag, MessageType, Status } from "./messages.ts";
import type { PeerRequest, PeerRequestOwner, Peers } from "./peers.ts";
import type { DiskView } from "./view.ts";

/** Blocks of one read: long enough to be cheap, short enough to let guests through. */
export const PULL_BLOCKS_MAX = 64;
/** Beginnings anew because the source's chunk was rewritten, before somebody else has to decide. */
const RESTARTS_MAX = 16;

/** What a pull needs around it. */
export interface PullHost {
  readonly store: LocalStore;
  readonly peers: Peers;
  readonly window: Window;
  readonly arena: Arena;
  /** Bytes may be read now; otherwise `ready` is called when they may. */
  mayRead(bytes: number, ready: () => void): boolean;
  /** The source has no time for a read: `again` is called a little later. */
  later(again: () => void): void;
  /** Bytes were copied. */
  copied(bytes: number): void;
  /** Nothing of a copy that was aborted is on its way into the store any more. */
  ended(pull: ChunkPull): void;
  /** A layer, and the one that it absorbs, if it does: what they hold together is copied into the first. */
  pairOf(layer: number): readonly number[];
  /** Whether the layer is being flattened: then all that it is read through is copied into it. */
  isFlattened(layer: number): boolean;
}

/** Blocks of a chunk that were written live, and the last such write. */
export class LiveBlocks {
  readonly bits = new Uint32Array(SET_WORDS);
  readonly last = new Stamp();

  /** Adds a write. */
  add(block: number, count: number, generation: number, sequence: number): void {
    for (let i = block; i < block + count; i++) add(this.bits, i);
    this.last.set(generation, sequence);
  }

  /** Whether a block was written. */
  has(block: number): boolean {
    return has(this.bits, block);
  }
}

const enum Step {
  Idle,
  /** The stamp is being made unknown, behind all that is on its way into the store. */
  Marking,
  Describing,
  Reading,
  Writing,
  Clearing,
  Checking,
}

/** One chunk being copied; used once. */
export class ChunkPull implements PeerRequestOwner, OperationOwner {
  /** The source's stamp from before the first read. */
  readonly start = new Stamp();
  /** …and from after the last one. */
  readonly end = new Stamp();
  #step = Step.Idle;
  #request: PeerRequest | null = null;
  readonly #data = new Uint32Array(SET_WORDS);
  readonly #zeros = new Uint32Array(SET_WORDS);
  readonly #ownData = new Uint32Array(SET_WORDS);
  readonly #ownZero = new Uint32Array(SET_WORDS);
  #rewrites = 0;
  /** The description is of all that the layer is read through. */
  #isThroughChain = false;
  #restarts = 0;
  #block = 0;
  #runStart = 0;
  #runBlocks = 0;
  #operations = 0;
  #failure = 0;
  #buffer = 0;
  #bufferBytes = 0;
  #isAborted = false;
  #isOver = false;

  /**
   * @param live blocks that are written live while this goes on, or null where none can be
   * @param done told 0, a negative errno, or a `Status` above 0; not when aborted
   */
  constructor(
    readonly host: PullHost,
    readonly disk: DiskView,
    readonly layer: number,
    readonly chunk: number,
    readonly from: number,
    readonly live: LiveBlocks | null,
    readonly done: (status: number) => void,
  ) {}

  /** Begins. */
  begin(): void {
    const unknown = this.#operation(OperationKind.Stamp, 0, 1);
    unknown.stampUnknown = true;
    this.#step = Step.Marking;
    this.host.store.submit(unknown);
  }

  /** Nothing of it is on its way into the store. */
  get isStill(): boolean {
    return this.#operations === 0;
  }

  /** Ends it without a word; what is with the store is applied all the same. */
  abort(): void {
    if (this.#isOver) return;
    this.#isAborted = true;
    if (this.#request !== null) {
      this.host.peers.cancel(this.#request);
      this.#request = null;
    }
    if (this.#operations === 0) this.#releaseBuffer();
  }

  #describe(step: Step): void {
    this.#step = step;
    if (step === Step.Describing) this.#isThroughChain = this.host.isFlattened(this.layer);
    this.#ask(MessageType.Describe, 0, 0);
  }

  #ask(type: MessageType, block: number, count: number): void {
    const request = this.host.peers.take(type, this);
    if (request === null) return this.#end(Status.Busy);
    const { head } = request;
    head.flags = MessageFlag.Recovery;
    head.disk = this.disk.entry.id;
    head.layer = this.layer;
    head.chunk = this.chunk;
    head.block = block;
    head.count = count;
    const pair = this.#isThroughChain ? [this.layer] : this.host.pairOf(this.layer);
    if (this.#isThroughChain) head.flags |= MessageFlag.Chain;
    if (type === MessageType.Read || pair.length > 1) {
      request.extra = Uint32Array.from(pair);
      request.extraWords = pair.length;
    }
    this.#request = request;
    this.host.peers.submit(this.from, request);
  }

  /** {@inheritDoc PeerRequestOwner.answered} */
  answered(
    _request: PeerRequest,
    head: Head,
    extra: Uint8Array,
    dataOffset: number,
    dataBytes: number,
  ): void {
    this.#request = null;
    if (this.#step === Step.Reading && head.status === Status.Ok) {
      this.#buffer = dataOffset;
      this.#bufferBytes = dataBytes;
      return this.#write(extra);
    }
    if (dataBytes > 0) this.host.arena.release(dataOffset, dataBytes);
    // Its guests come first. What was copied so far stays: only this read is asked for again.
    if (this.#step === Step.Reading && head.status === Status.Busy) {
      return this.host.later(this.#read);
    }
    if (head.status !== Status.Ok) return this.#end(head.status);
    if (extra.length !== DESCRIPTION_BYTES) return this.#end(-EBADMSG);
    if (this.#step === Step.Describing) this.#described(head, extra);
    else this.#checked(head);
  }

  #described(head: Head, extra: Uint8Array): void {
    readDescription(extra, this.#data, this.#zeros);
    this.start.set(head.generation, head.sequence);
    this.#rewrites = head.argument;
    this.#block = 0;
    this.#readNext();
  }

  /** Whether the source has data, or zeros, in a block that is to be copied. */
  #isWanted(block: number, described: Uint32Array): boolean {
    return has(described, block) && this.live?.has(block) !== true;
  }

  #readNext(): void {
    let block = this.#block;
    while (block < CHUNK_BLOCKS && !this.#isWanted(block, this.#data)) block++;
    if (block === CHUNK_BLOCKS) return this.#clear();
    let end = block + 1;
    const limit = Math.min(CHUNK_BLOCKS, block + PULL_BLOCKS_MAX);
    while (end < limit && this.#isWanted(end, this.#data)) end++;
    this.#runStart = block;
    this.#runBlocks = end - block;
    this.#step = Step.Reading;
    if (this.host.mayRead(this.#runBlocks << BLOCK_SHIFT, this.#read)) this.#read();
  }

  readonly #read = () => {
    if (!this.#isAborted) this.#ask(MessageType.Read, this.#runStart, this.#runBlocks);
  };

  #write(extra: Uint8Array): void {
    const { kernel } = this.host.window;
    const count = this.#runBlocks;
    const checksums = verifyBlocks(kernel, this.#buffer, this.#bufferBytes, count, extra);
    if (checksums === null) return this.#end(-EBADMSG);
    this.#step = Step.Writing;
    this.host.copied(count * BLOCK_BYTES);
    // Counted once more, so that completions cannot end the step before all are submitted.
    this.#operations++;
    for (let i = 0; i < count;) {
      if (this.live?.has(this.#runStart + i) === true) {
        i++;
        continue;
      }
      let end = i + 1;
      while (end < count && this.live?.has(this.#runStart + end) !== true) end++;
      const operation = this.#operation(OperationKind.Write, this.#runStart + i, end - i);
      operation.buffer = this.#buffer + (i << BLOCK_SHIFT);
      operation.checksums = checksums.subarray(i, end);
      this.host.store.submit(operation);
      i = end;
    }
    this.#block = this.#runStart + count;
    this.#operationOver();
  }

  /** What the source does not have is forgotten, what it has as zeros becomes zeros. */
  #clear(): void {
    this.#step = Step.Clearing;
    this.#operations++;
    const poisoned = new Uint32Array(SET_WORDS);
    this.host.store.describeChunk(
      this.layer,
      this.chunk,
      this.#ownData,
      this.#ownZero,
      poisoned,
    );
    for (let i = 0; i < poisoned.length; i++) this.#ownData[i] |= poisoned[i];
    for (let block = 0; block < CHUNK_BLOCKS;) {
      const kind = this.#clearing(block);
      let end = block + 1;
      while (end < CHUNK_BLOCKS && this.#clearing(end) === kind) end++;
      if (kind !== null) this.host.store.submit(this.#operation(kind, block, end - block));
      block = end;
    }
    this.#operationOver();
  }

  #clearing(block: number): OperationKind | null {
    if (this.live?.has(block) === true || this.#isWanted(block, this.#data)) return null;
    const isZeroHere = has(this.#ownZero, block);
    if (this.#isWanted(block, this.#zeros)) {
      return isZeroHere ? null : OperationKind.Zero;
    }
    return isZeroHere || has(this.#ownData, block) ? OperationKind.Free : null;
  }

  #operation(kind: OperationKind, block: number, count: number): Operation {
    const operation = new Operation(this, 0);
    operation.kind = kind;
    operation.layers = [this.layer];
    operation.chunk = this.chunk;
    operation.block = block;
    operation.blockCount = count;
    operation.generation = 0;
    operation.sequence = 0;
    this.#operations++;
    return operation;
  }

  /** {@inheritDoc OperationOwner.operationDone} */
  operationDone(operation: Operation): void {
    if (operation.result !== 0 && this.#failure === 0) this.#failure = operation.result;
    this.#operationOver();
  }

  #operationOver(): void {
    if (--this.#operations > 0) return;
    if (this.#isAborted || this.#isOver) {
      this.#releaseBuffer();
      return this.host.ended(this);
    }
    if (this.#step === Step.Marking) {
      if (this.#failure !== 0) return this.#end(this.#failure);
      this.#describe(Step.Describing);
    } else if (this.#step === Step.Writing) {
      this.#releaseBuffer();
      if (this.#failure !== 0) return this.#end(this.#failure);
      this.#readNext();
    } else if (this.#step === Step.Clearing) {
      if (this.#failure !== 0) return this.#end(this.#failure);
      this.#describe(Step.Checking);
    }
  }

  #checked(head: Head): void {
    this.end.set(head.generation, head.sequence);
    const isOther = !this.#isThroughChain && this.host.isFlattened(this.layer);
    if (head.argument === this.#rewrites && !isOther) return this.#end(0);
    if (++this.#restarts > RESTARTS_MAX) return this.#end(Status.Busy);
    this.#describe(Step.Describing);
  }

  #releaseBuffer(): void {
    if (this.#bufferBytes > 0) this.host.arena.release(this.#buffer, this.#bufferBytes);
    this.#bufferBytes = 0;
  }

  #end(status: number): void {
    if (this.#isOver || this.#isAborted) return;
    this.#isOver = true;
    if (this.#operations === 0) this.#releaseBuffer();
    this.done(status);
  }
}
