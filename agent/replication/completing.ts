/**
 * Completes chunks of this node's replica that lack writes, though it is in sync: copies them from another replica in sync that has these
 * writes. On behalf of a check (`checking.ts`), which has seen that both stand still.
 *
 *     noted ─▶ stamp here a, watch ─▶ stamp there s ─▶ read all of it ─▶ stamp there s still, here a still, nothing has come? ─▶ in one go:
 *                                                                             unknown stamp, blocks, zeros, holes, stamp s
 *
 * Invariants:
 * - Nothing is changed before all of the other one's chunk is here, and is known to be its chunk as of s: its stamp was s before and after,
 *   and nothing was rewritten. Nothing is changed if anything has come to the chunk here meanwhile, done or on its way, or the group's
 *   members have: then the check finds what there is to find.
 * - What is changed is submitted in one go, so whatever comes later is applied behind it. A crash leaves a part of it from the beginning:
 *   its stamp is unknown then, which equals nothing, and is completed again. Afterwards the chunk is what s stands for, all of it.
 * - Writes up to s may still come (they were on their way for all that time): what they would do is done. They are held until what they
 *   are part of is applied, and given back then, as any write that has been applied before.
 * - Only where a < s, s known: the other one has carried out a write that this one has not. It never goes back to fewer.
 * - Only a layer by itself. One that is being merged with another, or made independent, is left alone until that is over.
 * - The last of a store's space is for guests.
 *
 * The other way would be to leave the group and join it again. But who joins copies every chunk whose stamp is another one than that of
 * whoever it copies from, also where it has more writes than that one: of two replicas that each lack what the other one has, the one that
 * left would lose what it alone has.
 *
 * Bounds: one chunk at a time, {@linkcode QUEUE_MAX} that wait; {@linkcode TRIES_MAX} ticks for one that has to wait for guests or for room.
 *
 * @module
 */
import type { Arena } from "../base/arena.ts";
import { BLOCK_SHIFT, CHUNK_BLOCKS, CHUNK_BYTES } from "../base/limits.ts";
import type { Log, Window } from "../platform/platform.ts";
import { Operation, OperationKind, type OperationOwner } from "../store/operation.ts";
import { readDescription, verifyBlocks } from "./answers.ts";
import { has, SET_WORDS } from "./block_set.ts";
import { compareStamps, type LocalStore, Stamp } from "./local_store.ts";
import { DESCRIPTION_BYTES, type Head, MessageFlag, MessageType, Status } from "./messages.ts";
import type { PeerRequest, PeerRequestOwner, Peers } from "./peers.ts";
import type { ChunkCompleter, LocalWrite, Replica, WatchedChunk } from "./replica.ts";
import type { ClusterView, GroupView } from "./view.ts";

/** Chunks that wait. */
const QUEUE_MAX = 64;
/** Ticks for which one is tried again that had to wait. */
const TRIES_MAX = 200;
/** Blocks of one read. */
const READ_BLOCKS_MAX = 256;

interface LaggingChunk {
  readonly layer: number;
  readonly chunk: number;
  /** Node that has what is lacking. */
  readonly source: number;
  tries: number;
}

/** A run of the other one's data. */
interface Run {
  readonly block: number;
  readonly count: number;
  /** In the arena. */
  readonly offset: number;
  readonly checksums: Uint32Array<ArrayBuffer>;
}

const enum Step {
  Idle,
  Describing,
  Reading,
  Checking,
  /** What is changed is on its way into the store. */
  Writing,
}

/** See the head of the file. */
export class Completer implements PeerRequestOwner, OperationOwner, ChunkCompleter, WatchedChunk {
  /** Chunks completed so far. */
  completed = 0;
  readonly #store: LocalStore;
  readonly #replica: Replica;
  readonly #peers: Peers;
  readonly #window: Window;
  readonly #arena: Arena;
  readonly #log: Log;
  #view: ClusterView | null = null;
  readonly #queue: LaggingChunk[] = [];
  #step = Step.Idle;
  #current: LaggingChunk | null = null;
  /** The group when it began. */
  #group: GroupView | null = null;
  #request: PeerRequest | null = null;
  /** Stamps here and there when it began. */
  readonly #here = new Stamp();
  readonly #there = new Stamp();
  readonly #now = new Stamp();
  #rewrites = 0;
  readonly #data = new Uint32Array(SET_WORDS);
  readonly #zeros = new Uint32Array(SET_WORDS);
  /** The next block to be read, and how many are being read from there. */
  #block = 0;
  #count = 0;
  readonly #runs: Run[] = [];
  #operations = 0;
  #errno = 0;
  /** Writes that are part of what is on its way into the store. */
  readonly #held: LocalWrite[] = [];
  /** The one in hand has to wait. */
  #isPutOff = false;
  /** {@inheritDoc WatchedChunk.layers} */
  layers: readonly number[] = [];
  /** {@inheritDoc WatchedChunk.changed} */
  readonly changed = new Uint32Array(SET_WORDS);

  constructor(options: {
    store: LocalStore;
    replica: Replica;
    peers: Peers;
    window: Window;
    arena: Arena;
    log: Log;
  }) {
    this.#store = options.store;
    this.#replica = options.replica;
    this.#peers = options.peers;
    this.#window = options.window;
    this.#arena = options.arena;
    this.#log = options.log;
  }

  /** {@inheritDoc WatchedChunk.chunk} */
  get chunk(): number {
    return this.#current?.chunk ?? 0;
  }

  /** Chunks that wait. */
  get waiting(): number {
    return this.#queue.length + (this.#current === null ? 0 : 1);
  }

  /** {@inheritDoc ChunkCompleter.complete} */
  complete(layer: number, chunk: number, source: number): void {
    const isSame = (other: LaggingChunk | null) => other?.layer === layer && other.chunk === chunk;
    if (isSame(this.#current) || this.#queue.some(isSame)) return;
    if (this.#queue.length >= QUEUE_MAX) return;
    this.#queue.push({ layer, chunk, source, tries: 0 });
    this.#next();
  }

  /** {@inheritDoc ChunkCompleter.holds} */
  holds(write: LocalWrite): boolean {
    const current = this.#current;
    const { layers, chunk } = write.operation;
    const isPart = this.#step === Step.Writing && current !== null && chunk === current.chunk &&
      layers[0] === current.layer && compareStamps(write.operation, this.#there) <= 0;
    if (isPart) this.#held.push(write);
    return isPart;
  }

  /** The map has changed. */
  mapChanged(view: ClusterView): void {
    this.#view = view;
    if (this.#step === Step.Idle || this.#step === Step.Writing) return;
    const isSame = this.#groupNow()?.entry.changedEpoch === this.#group!.entry.changedEpoch;
    if (!isSame) this.#over();
  }

  /** Time passes. */
  tick(): void {
    this.#isPutOff = false;
    this.#next();
  }

  /** The group of the chunk in hand, where it may be completed; null: it may not. */
  #groupNow(): GroupView | null {
    const view = this.#view;
    const { layer, chunk, source } = this.#current!;
    const disk = view?.diskOfLayer(layer);
    if (view === null || disk === undefined || !view.isInOrder(disk)) return null;
    const isMerged = view.absorberOf(layer) !== 0 || view.absorbedInto(layer) !== 0;
    if (isMerged || view.isFlattened(layer)) return null;
    const group = view.groupOf(disk, chunk);
    const { inSync } = group.entry;
    const isRight = group.isOpen && inSync.includes(view.self) && inSync.includes(source) &&
      source !== view.self && view.node(source)?.state === "up";
    return isRight ? group : null;
  }

  #next(): void {
    while (this.#step === Step.Idle && !this.#isPutOff && this.#queue.length > 0) {
      this.#current = this.#queue.shift()!;
      this.#begin(this.#current);
    }
  }

  #begin({ layer, chunk }: LaggingChunk): void {
    this.#group = this.#groupNow();
    const isLost = this.#store.paths?.isLost(layer, chunk) === true;
    if (this.#group === null || isLost) return this.#over();
    if (!this.#store.hasRoom(layer, chunk, CHUNK_BYTES)) return this.#putOff();
    this.layers = [layer];
    this.changed.fill(0);
    this.#replica.watchChunk(this);
    this.#store.stampOf(layer, chunk, this.#here);
    if (this.#isDisturbed()) return this.#over();
    this.#ask(Step.Describing, 0, 0);
  }

  /** Whether anything has come to the chunk here since it began, or is on its way. */
  #isDisturbed(): boolean {
    const { layer, chunk } = this.#current!;
    this.#store.stampOf(layer, chunk, this.#now);
    return this.changed.some((word) => word !== 0) || compareStamps(this.#now, this.#here) !== 0;
  }

  #ask(step: Step, block: number, count: number): void {
    this.#step = step;
    const { layer, chunk, source } = this.#current!;
    const isRead = step === Step.Reading;
    const request = this.#peers.take(isRead ? MessageType.Read : MessageType.Describe, this);
    if (request === null) return this.#putOff();
    const { head } = request;
    head.flags = MessageFlag.Recovery;
    head.disk = this.#view!.diskOfLayer(layer)!.entry.id;
    head.layer = layer;
    head.chunk = chunk;
    head.block = block;
    head.count = count;
    if (isRead) {
      request.extra = Uint32Array.of(layer);
      request.extraWords = 1;
    }
    this.#request = request;
    this.#peers.submit(source, request);
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
      this.#taken(extra, dataOffset, dataBytes);
    } else {
      if (dataBytes > 0) this.#arena.release(dataOffset, dataBytes);
      if (head.status === Status.Busy) this.#putOff();
      else if (head.status !== Status.Ok || extra.length !== DESCRIPTION_BYTES) this.#over();
      else if (this.#step === Step.Describing) this.#described(head, extra);
      else this.#checked(head);
    }
    this.#next();
  }

  #described(head: Head, extra: Uint8Array): void {
    this.#there.set(head.generation, head.sequence);
    // Unknown is below all that is known, and not above itself.
    if (compareStamps(this.#there, this.#here) <= 0) return this.#over();
    this.#rewrites = head.argument;
    readDescription(extra, this.#data, this.#zeros);
    this.#block = 0;
    this.#readNext();
  }

  #readNext(): void {
    let block = this.#block;
    while (block < CHUNK_BLOCKS && !has(this.#data, block)) block++;
    if (block === CHUNK_BLOCKS) return this.#ask(Step.Checking, 0, 0);
    let end = block + 1;
    const most = Math.min(CHUNK_BLOCKS, block + READ_BLOCKS_MAX);
    while (end < most && has(this.#data, end)) end++;
    this.#block = block;
    this.#count = end - block;
    this.#ask(Step.Reading, block, this.#count);
  }

  #taken(extra: Uint8Array, offset: number, bytes: number): void {
    const count = this.#count;
    const checksums = verifyBlocks(this.#window.kernel, offset, bytes, count, extra);
    if (checksums === null) {
      if (bytes > 0) this.#arena.release(offset, bytes);
      return this.#over();
    }
    this.#runs.push({ block: this.#block, count, offset, checksums });
    this.#block += count;
    if (this.#isDisturbed()) this.#over();
    else this.#readNext();
  }

  /** All of the other one's chunk is here. */
  #checked(head: Head): void {
    this.#now.set(head.generation, head.sequence);
    const isStill = compareStamps(this.#now, this.#there) === 0 && head.argument === this.#rewrites;
    if (!isStill || this.#isDisturbed()) return this.#over();
    const { layer, chunk } = this.#current!;
    this.#replica.unwatchChunk(this);
    this.#replica.rewriting(layer, chunk);
    this.#step = Step.Writing;
    this.#errno = 0;
    // Counted once more, so that completions cannot end it before all are submitted.
    this.#operations = 1;
    const unknown = this.#operation(OperationKind.Stamp, 0, 1);
    unknown.stampUnknown = true;
    this.#store.submit(unknown);
    for (const { block, count, offset, checksums } of this.#runs) {
      const write = this.#operation(OperationKind.Write, block, count);
      write.buffer = offset;
      write.checksums = checksums;
      this.#store.submit(write);
    }
    this.#clear();
    const stamp = this.#operation(OperationKind.Stamp, 0, 1);
    stamp.generation = this.#there.generation;
    stamp.sequence = this.#there.sequence;
    this.#store.submit(stamp);
    this.#operationOver();
  }

  /** What the other one has as zeros, or not at all, is so here, whatever is there. */
  #clear(): void {
    for (let block = 0; block < CHUNK_BLOCKS;) {
      const isData = has(this.#data, block), isZero = has(this.#zeros, block);
      let end = block + 1;
      while (
        end < CHUNK_BLOCKS && has(this.#data, end) === isData && has(this.#zeros, end) === isZero
      ) end++;
      const kind = isZero ? OperationKind.Zero : OperationKind.Free;
      if (!isData) this.#store.submit(this.#operation(kind, block, end - block));
      block = end;
    }
  }

  #operation(kind: OperationKind, block: number, count: number): Operation {
    const operation = new Operation(this, 0);
    operation.kind = kind;
    operation.layers = this.layers;
    operation.chunk = this.chunk;
    operation.block = block;
    operation.blockCount = count;
    this.#operations++;
    return operation;
  }

  /** {@inheritDoc OperationOwner.operationDone} */
  operationDone({ result }: Operation): void {
    if (result !== 0) this.#errno ||= result;
    this.#operationOver();
  }

  #operationOver(): void {
    if (--this.#operations > 0) return;
    const { layer, chunk, source } = this.#current!;
    const held = this.#held.splice(0);
    this.#replica.rewriting(layer, chunk);
    this.#over();
    if (this.#errno === 0) {
      this.completed++;
      this.#log.warn("a chunk that lacked writes was copied from another replica", {
        disk: this.#view?.diskOfLayer(layer)?.entry.name,
        chunk,
        from: source,
      });
    }
    for (const write of held) this.#replica.heldDone(write, this.#errno);
    this.#next();
  }

  /** Guests of the other node come first, or there is no room: from the beginning, a little later. */
  #putOff(): void {
    const current = this.#current!;
    this.#over();
    this.#isPutOff = true;
    if (++current.tries < TRIES_MAX) this.#queue.push(current);
  }

  /** It is done, or cannot be. */
  #over(): void {
    if (this.#request !== null) this.#peers.cancel(this.#request);
    this.#request = null;
    this.#replica.unwatchChunk(this);
    for (const { offset, count } of this.#runs) this.#arena.release(offset, count << BLOCK_SHIFT);
    this.#runs.length = 0;
    this.#current = null;
    this.#group = null;
    this.#step = Step.Idle;
  }
}
