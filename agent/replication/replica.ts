/**
 * This node's replica: carries out what the sequencers of disks, here and on other nodes, ask of the local store.
 *
 *     own volumes ── apply ──┐
 *                            ├─▶ guard (map) ─▶ joining? ─▶ store ─▶ done ─▶ answer
 *     links ──── received ───┘
 *
 * Invariants:
 * - A message that was sent under a newer map than ours waits, and with it everything behind it on its link, until that map
 *   is here. One that was sent under an older map is refused as stale if its group has changed since, or its lease is not the one
 *   that the map knows. So at any time every replica of a group accepts writes of one lease only, and only from a sequencer that
 *   knows all members.
 * - Writes of one chunk are applied in the order of their numbers. One that is not above the chunk's stamp has been
 *   applied before (it was sent again): it is acknowledged and not applied again.
 * - An answer is sent when the store has applied the operation, never before.
 * - What a peer says is checked before it is used; rubbish ends that connection, and nothing else.
 *
 * Bounds: `OPERATIONS_MAX` operations of peers under way; above that links are not read. Per link at most the messages that
 * were already received wait (`STASH_MAX`); more than that is a peer that does not keep to the rules.
 *
 * @module
 */
import type { Arena } from "../base/arena.ts";
import { getU32 } from "../base/bytes.ts";
import {
  BLOCK_BYTES,
  BLOCK_SHIFT,
  CHUNK_BLOCKS,
  CHUNK_BYTES,
  DISK_BYTES_MAX,
  TRANSFER_BLOCKS_MAX,
} from "../base/limits.ts";
import type { PeerTransport } from "../platform/network.ts";
import { EBADMSG, ECANCELED, EIO, ENOMEM, type Log, type Window } from "../platform/platform.ts";
import { Operation, OperationKind, type OperationOwner } from "../store/operation.ts";
import { add, SET_WORDS } from "./block_set.ts";
import { chunkList, compareStamps, type LocalStore, Stamp } from "./local_store.ts";
import {
  type Findings,
  INSPECT_WORDS,
  type InspectionQuery,
  packFindings,
  type Replacement,
  unpackReplacements,
} from "./findings.ts";
import { pairOf, stampOfPair } from "./pairs.ts";
import {
  ANSWER,
  DESCRIPTION_WORDS,
  EXTRA_BYTES_MAX,
  Head,
  HEAD_BYTES,
  MessageFlag,
  MessageType,
  setU64,
  STAMP_ENTRY_BYTES,
  Status,
} from "./messages.ts";
import { type Pace, REQUEST_BYTES } from "./pace.ts";
import type { ClusterView, DiskView, GroupView } from "./view.ts";

/** Operations of peers under way at a time. */
export const OPERATIONS_MAX = 2048;
/** Messages of one link that wait for a map or for room. */
const STASH_MAX = 4096;
/** Layers of a read. */
const LAYERS_MAX = 128;
/** Entries of one answer to Stamps and List: as many as fit the data buffer. */
const STAMP_ENTRIES_MAX = 2048;
const STAMP_BUFFER_BYTES = Math.ceil(STAMP_ENTRIES_MAX * STAMP_ENTRY_BYTES / BLOCK_BYTES) *
  BLOCK_BYTES;

/** A write, discard or zeroing on its way through the local store. */
export class LocalWrite implements OperationOwner {
  readonly operation: Operation = new Operation(this, 0);
  /** Told when it is applied. */
  target: LocalWriteOwner | null = null;
  /** Epoch under which it was accepted. */
  epoch = 0;
  /** Writes that were accepted before this one, and came once more: done when this one is. */
  followers: LocalWrite[] | null = null;
  /** It is one of those: its data is not needed. */
  isFollower = false;
  next: LocalWrite | null = null;
  previous: LocalWrite | null = null;
  replica: Replica | null = null;

  /** {@inheritDoc OperationOwner.operationDone} */
  operationDone(operation: Operation): void {
    this.replica!.writeDone(this);
    const { followers } = this;
    this.followers = null;
    this.target!.localWriteDone(this, operation.result);
    for (const write of followers ?? []) write.target!.localWriteDone(write, operation.result);
  }
}

/** Who a local write belongs to. */
export interface LocalWriteOwner {
  /** @param result 0 or a negative errno */
  localWriteDone(write: LocalWrite, result: number): void;
}

/** What catching up wants to know of live writes; see `joining.ts`. */
export interface JoiningHook {
  /** True while this node catches up on the group. */
  isJoining(group: GroupView): boolean;
  /**
   * A live write is about to be applied.
   *
   * @returns whether it is to be applied at all, and whether the chunk must stay of unknown stamp
   */
  liveWrite(group: GroupView, operation: Operation): LiveWrite;
  /** The chunk is complete, so its stamp says all. */
  isComplete(group: GroupView, layer: number, chunk: number): boolean;
  /** The chunk is being replaced by another node's. */
  isReplacing(group: GroupView, layer: number, chunk: number): boolean;
  /** Something of a copy that was given up is still on its way into a layer in the store. */
  isEnding(layer: number): boolean;
}

/** A block of which somebody wants to know whether it is changed meanwhile; see {@linkcode Replica.watch}. */
export interface WatchedBlock {
  readonly layer: number;
  readonly chunk: number;
  readonly block: number;
  /** Something has been on its way to it since the watch began. Set by the replica. */
  isChanged: boolean;
}

/** A chunk of which somebody wants to know which blocks are changed meanwhile; see {@linkcode Replica.watchChunk}. */
export interface WatchedChunk {
  /** A layer, and the one that it absorbs, if it does. */
  readonly layers: readonly number[];
  readonly chunk: number;
  /** Set of blocks that something has been on its way to since the watch began. Added to by the replica. */
  readonly changed: Uint32Array;
}

/** Looks at chunks on behalf of other nodes: `inspection.ts`. */
export interface ChunkInspector {
  /** @returns false: not now */
  inspect(
    query: InspectionQuery,
    done: (result: number, findings: Findings) => void,
  ): boolean;
}

/** Replaces blocks that match their checksums: `repair.ts`. */
export interface BlockReplacer {
  /**
   * Notes blocks to be replaced by what another node has. What is noted already, or too much, is left out: whoever has found them finds
   * them again.
   *
   * @param layer that is not absorbed by another one
   * @param source in sync, and not this node
   */
  replace(layer: number, chunk: number, source: number, list: readonly Replacement[]): void;
}

/** Completes chunks that lack writes: `completing.ts`. */
export interface ChunkCompleter {
  /** Notes a chunk to be copied from another node, in sync, that has more writes of it. What is noted already, or too much, is left out. */
  complete(layer: number, chunk: number, source: number): void;
  /**
   * A write comes whose part in its chunk is on its way into the store already.
   *
   * @returns true: it is kept, and goes to {@linkcode Replica.heldDone}
   */
  holds(write: LocalWrite): boolean;
}

/** Answer of {@linkcode JoiningHook.liveWrite}. */
export const enum LiveWrite {
  Apply,
  /** Apply; the chunk's stamp stays unknown. */
  ApplyUnknown,
  /** Was applied before. */
  Skip,
}

/** Carries out Pull: replaces a chunk by that of another node. */
export interface Puller {
  /**
   * @param done told 0, or a negative errno, or `Status.Stale`/`Status.Busy`
   */
  pullFor(
    disk: DiskView,
    group: GroupView,
    layer: number,
    chunk: number,
    from: number,
    done: (status: number) => void,
  ): void;
}

/** A peer's request under way. */
class RemoteOperation implements OperationOwner, LocalWriteOwner {
  readonly write = new LocalWrite();
  readonly read: Operation = new Operation(this, 0);
  readonly checksums = new Uint32Array(TRANSFER_BLOCKS_MAX);
  readonly layers: number[] = [];
  readonly head = new Head();
  link: Link | null = null;
  bufferOffset = 0;
  bufferBytes = 0;

  constructor(readonly replica: Replica) {
    this.write.target = this;
    this.write.replica = replica;
    this.write.operation.checksums = this.checksums;
    this.read.checksums = this.checksums;
  }

  localWriteDone(_write: LocalWrite, result: number): void {
    this.replica.answerOperation(this, result);
  }

  operationDone(operation: Operation): void {
    this.replica.answerOperation(this, operation.result);
  }
}

/** A message that waits. */
interface Stashed {
  readonly head: Uint8Array<ArrayBuffer>;
  readonly dataOffset: number;
  readonly dataBytes: number;
}

/** A connection over which a peer asks. */
class Link {
  /** Messages received while waiting, oldest first. */
  readonly stash: Stashed[] = [];
  isPaused = false;
  isDraining = false;
  /** The peer has broken the rules: until the connection has ended nothing of it counts. */
  isBroken = false;
  /** Answers for which the transport had no room, encoded. */
  readonly answers: { head: Uint8Array<ArrayBuffer>; offset: number; bytes: number }[] = [];

  constructor(
    readonly link: number,
    readonly node: number,
    readonly incarnation: number,
  ) {}
}

/** What a handler makes of a message. */
const enum Verdict {
  /** Answered, or under way. */
  Taken,
  /** Not now: keep it, and what follows it on the link. */
  Wait,
  /** It breaks the rules. */
  Broken,
}

/** Counters of the replica; they only rise. */
export interface ReplicaCounters {
  writes: number;
  writtenBytes: number;
  reads: number;
  readBytes: number;
  syncs: number;
  stale: number;
  repeated: number;
}

/** See the head of the file. */
export class Replica {
  /** What was done here for guests of other nodes, as {@linkcode Pace} counts it. */
  guestWork = 0;
  /** How fast others may copy from here; null: as they like. Set, and its time passed, by whoever knows. */
  pace: Pace | null = null;
  readonly counters: ReplicaCounters = {
    writes: 0,
    writtenBytes: 0,
    reads: 0,
    readBytes: 0,
    syncs: 0,
    stale: 0,
    repeated: 0,
  };
  joining: JoiningHook | null = null;
  puller: Puller | null = null;
  inspector: ChunkInspector | null = null;
  replacer: BlockReplacer | null = null;
  completer: ChunkCompleter | null = null;
  /** Told of damaged blocks that peers wanted to read. */
  damaged: (layers: readonly number[], chunk: number, block: number, blockCount: number) => void =
    () => {};
  view: ClusterView | null = null;
  /** This node's incarnation in the map. */
  incarnation = 0;

  readonly #store: LocalStore;
  readonly #window: Window;
  readonly #arena: Arena;
  readonly #transport: PeerTransport;
  readonly #log: Log;
  readonly #links = new Map<number, Link>();
  readonly #free: RemoteOperation[] = [];
  #operations = 0;
  /** Writes under way, oldest first. */
  #first: LocalWrite | null = null;
  #last: LocalWrite | null = null;
  /** Writes that had been applied before, to be given back at the end of the turn. */
  readonly #repeatedWrites: LocalWrite[] = [];
  /** Links with something that waits for room or for older writes. */
  #isWaiting = false;
  readonly #rewrites = new Map<number, Map<number, number>>();
  #watched: WatchedBlock | null = null;
  readonly #watchedChunks = new Set<WatchedChunk>();
  readonly #head = new Head();
  readonly #stamp = new Stamp();
  readonly #poisoned = new Uint32Array(SET_WORDS);
  readonly #list = chunkList(STAMP_ENTRIES_MAX);
  readonly #scratch = new Uint8Array(HEAD_BYTES + EXTRA_BYTES_MAX);
  readonly #scratchHead = new Uint32Array(this.#scratch.buffer, 0, HEAD_BYTES / 4);
  readonly #scratchWords = new Uint32Array(this.#scratch.buffer, HEAD_BYTES);
  readonly #arenaView: DataView;

  constructor(options: {
    store: LocalStore;
    window: Window;
    arena: Arena;
    transport: PeerTransport;
    log: Log;
  }) {
    this.#store = options.store;
    this.#window = options.window;
    this.#arena = options.arena;
    this.#transport = options.transport;
    this.#log = options.log;
    this.#arenaView = new DataView(options.window.bytes.buffer);
  }

  // ------------------------------------------------------------------------------- local writes

  /**
   * Applies a write, discard or zeroing of a disk that is served here, or of a peer that has passed the guard. The
   * operation's `layers`, chunk, blocks, buffer, checksums, generation and sequence are set; the write comes back to its
   * target, never from inside this call.
   *
   * Writes of one chunk come in order, but one may come once more when the map has changed. It must not be applied behind one
   * that was accepted after it and is still on its way into the store: the chunk's stamp does not tell of that yet, or tells of
   * nothing, while a write that the log had to cut is there in part.
   *
   * @param isAgain it may have come before
   */
  apply(write: LocalWrite, group: GroupView, isAgain: boolean): void {
    const { operation } = write;
    write.replica = this;
    write.isFollower = false;
    operation.stampUnknown = false;
    if (this.joining !== null && this.joining.isJoining(group)) {
      const live = this.joining.liveWrite(group, operation);
      const isSkipped = live === LiveWrite.Skip;
      if ((isSkipped || (isAgain && live === LiveWrite.Apply)) && this.#follows(write)) return;
      if (isSkipped) return this.#repeated(write);
      operation.stampUnknown = live === LiveWrite.ApplyUnknown;
    } else if (this.completer?.holds(write) === true) return;
    else {
      this.#store.stampOf(operation.layers[0], operation.chunk, this.#stamp);
      if (compareStamps(operation, this.#stamp) <= 0) return this.#repeated(write);
      if (isAgain && this.#follows(write)) return;
    }
    this.#track(write);
    this.#store.submit(operation);
  }

  /** Whether a write is on its way into the store already, perhaps with later ones: then it is done when the last of those is. */
  #follows(write: LocalWrite): boolean {
    const later = this.#laterOnItsWay(write.operation);
    if (later === null) return false;
    this.counters.repeated++;
    write.isFollower = true;
    (later.followers ??= []).push(write);
    return true;
  }

  /** The last write on its way into the store that is of the same chunk, and not before this one; null: none. */
  #laterOnItsWay(operation: Operation): LocalWrite | null {
    for (let other = this.#last; other !== null; other = other.previous) {
      const isSame = other.operation.layers[0] === operation.layers[0] &&
        other.operation.chunk === operation.chunk;
      if (isSame) return compareStamps(other.operation, operation) >= 0 ? other : null;
    }
    return null;
  }

  /** A write that is not above its chunk's stamp: what it would do has been done, and perhaps overwritten. */
  #repeated(write: LocalWrite): void {
    this.counters.repeated++;
    this.#repeatedWrites.push(write);
  }

  /**
   * A write that was held is done.
   *
   * @param result 0, or the errno of what it was part of
   */
  heldDone(write: LocalWrite, result: number): void {
    if (result === 0) this.#repeated(write);
    else write.target!.localWriteDone(write, result);
  }

  #track(write: LocalWrite): void {
    if (this.#watched !== null) this.#noteWrite(this.#watched, write.operation);
    if (this.#watchedChunks.size > 0) this.#noteInChunks(write.operation);
    write.epoch = this.view!.epoch;
    write.previous = this.#last;
    write.next = null;
    if (this.#last === null) this.#first = write;
    else this.#last.next = write;
    this.#last = write;
  }

  /** From {@linkcode LocalWrite}: the store has applied it. */
  writeDone(write: LocalWrite): void {
    if (write.previous === null) this.#first = write.next;
    else write.previous.next = write.next;
    if (write.next === null) this.#last = write.previous;
    else write.next.previous = write.previous;
    write.previous = null;
    write.next = null;
  }

  /**
   * Lets a layer's writes of earlier leases than `generation` come to an end. What waits for space is taken back: nobody has been told
   * that it is there, nor will be. In a store that is full whoever has the disk next would wait for space, too, and could not make any.
   *
   * @returns whether nothing of the layer that was accepted before `epoch` is still on its way into the store; otherwise to be asked again
   */
  endEarlier(epoch: number, layer: number, generation: number): boolean {
    let isDrained = this.joining?.isEnding(layer) !== true, isOld = false;
    // Accepted in the order of the list, and epochs only rise.
    for (let write = this.#first; write !== null && write.epoch < epoch; write = write.next) {
      if (write.operation.layers[0] !== layer) continue;
      isDrained = false;
      isOld ||= write.operation.generation < generation;
    }
    if (isOld) {
      // Also where this node joins: it has begun anew with the lease, so what is copied there leaves out nothing of before.
      this.#withdraw(({ operation }) =>
        operation.layers[0] === layer && operation.generation < generation
      );
    }
    return isDrained;
  }

  /**
   * Takes writes back that wait for space: they fail with −ECANCELED. But for those of groups that this node catches up on: what is
   * copied there leaves out what has been written meanwhile.
   */
  withdraw(isWanted: (write: LocalWrite) => boolean): void {
    this.#withdraw((write) => isWanted(write) && !this.#isJoining(write.operation));
  }

  #withdraw(isWanted: (write: LocalWrite) => boolean): void {
    const operations = new Set<Operation>();
    for (let write = this.#first; write !== null; write = write.next) {
      if (isWanted(write)) operations.add(write.operation);
    }
    if (operations.size > 0) this.#store.withdraw((operation) => operations.has(operation));
  }

  #isJoining({ layers, chunk }: Operation): boolean {
    const disk = this.view?.diskOfLayer(layers[0]);
    if (disk === undefined || this.joining === null) return false;
    return this.joining.isJoining(this.view!.groupOf(disk, chunk));
  }

  /** The same for the writes of one group, since its last change. */
  isDrainedOf(group: GroupView): boolean {
    const epoch = group.entry.changedEpoch;
    for (let write = this.#first; write !== null && write.epoch < epoch; write = write.next) {
      const disk = this.view!.diskOfLayer(write.operation.layers[0]);
      if (disk === undefined || disk.pool !== group.pool) continue;
      if (this.view!.groupOf(disk, write.operation.chunk).group === group.group) return false;
    }
    return true;
  }

  /**
   * Notes from now on whether anything but who watches changes a block: what is on its way to it already, live writes that are
   * accepted, and copies that begin. One block at a time; the next one, or null, ends the watch.
   */
  watch(watched: WatchedBlock | null): void {
    this.#watched = watched;
    if (watched === null) return;
    const { layer, chunk } = watched;
    const disk = this.view?.diskOfLayer(layer);
    watched.isChanged = disk !== undefined &&
      this.joining?.isReplacing(this.view!.groupOf(disk, chunk), layer, chunk) === true;
    for (let write = this.#first; write !== null; write = write.next) {
      this.#noteWrite(watched, write.operation);
    }
  }

  #noteWrite(watched: WatchedBlock, { layers, chunk, block, blockCount }: Operation): void {
    watched.isChanged ||= layers[0] === watched.layer && chunk === watched.chunk &&
      block <= watched.block && watched.block < block + blockCount;
  }

  /** The same as {@linkcode watch} for all blocks of a chunk; any number at a time, each until {@linkcode unwatchChunk}. */
  watchChunk(watched: WatchedChunk): void {
    this.#watchedChunks.add(watched);
    for (const layer of watched.layers) {
      const disk = this.view?.diskOfLayer(layer);
      const isReplacing = disk !== undefined &&
        this.joining?.isReplacing(
            this.view!.groupOf(disk, watched.chunk),
            layer,
            watched.chunk,
          ) === true;
      if (isReplacing) watched.changed.fill(0xffff_ffff);
    }
    for (let write = this.#first; write !== null; write = write.next) {
      this.#noteInChunks(write.operation);
    }
  }

  /** Ends a watch. */
  unwatchChunk(watched: WatchedChunk): void {
    this.#watchedChunks.delete(watched);
  }

  #noteInChunks({ layers, chunk, block, blockCount }: Operation): void {
    for (const watched of this.#watchedChunks) {
      if (watched.chunk !== chunk || !watched.layers.includes(layers[0])) continue;
      for (let i = block; i < block + blockCount; i++) add(watched.changed, i);
    }
  }

  /** Whether no write of a chunk is on its way into any of some layers in the store. */
  isIdle(layers: readonly number[], chunk: number): boolean {
    for (let write = this.#first; write !== null; write = write.next) {
      const { operation } = write;
      if (operation.chunk === chunk && layers.includes(operation.layers[0])) return false;
    }
    return true;
  }

  /** A chunk (or one block of it) is about to be replaced by another node's, here where nobody copies from. */
  replacing(layer: number, chunk: number, block = -1): void {
    if (this.#watched?.layer === layer && this.#watched.chunk === chunk) {
      this.#watched.isChanged = true;
    }
    for (const watched of this.#watchedChunks) {
      if (watched.chunk !== chunk || !watched.layers.includes(layer)) continue;
      if (block < 0) watched.changed.fill(0xffff_ffff);
      else add(watched.changed, block);
    }
  }

  /** A chunk (or one block of it) is changed otherwise than by live writes: who copies it from here begins again. */
  rewriting(layer: number, chunk: number, block = -1): void {
    this.replacing(layer, chunk, block);
    let chunks = this.#rewrites.get(layer);
    if (chunks === undefined) this.#rewrites.set(layer, chunks = new Map());
    chunks.set(chunk, (chunks.get(chunk) ?? 0) + 1);
  }

  #rewriteCount(layer: number, chunk: number): number {
    return this.#rewrites.get(layer)?.get(chunk) ?? 0;
  }

  // ------------------------------------------------------------------------------------- links

  /** A peer may ask now. */
  linkUp(link: number, node: number, incarnation: number): void {
    this.#links.set(link, new Link(link, node, incarnation));
  }

  /** The peer is gone; operations under way are applied all the same, their answers dropped. */
  linkDown(link: number): void {
    const state = this.#links.get(link);
    if (state === undefined) return;
    this.#links.delete(link);
    for (const { dataOffset, dataBytes } of state.stash) this.#releaseData(dataOffset, dataBytes);
    for (const { offset, bytes } of state.answers) this.#releaseData(offset, bytes);
    this.#dropFollowers(state);
  }

  /** What came once more on a link that is gone has nobody to be told, and its data is released: it must not take the room of others. */
  #dropFollowers(state: Link): void {
    for (let write = this.#first; write !== null; write = write.next) {
      if (write.followers === null) continue;
      write.followers = write.followers.filter(({ target }) => {
        if (!(target instanceof RemoteOperation) || target.link !== state) return true;
        target.link = null;
        this.#free.push(target);
        this.#isWaiting = true;
        return false;
      });
    }
  }

  /** The transport has room again. */
  linkReady(link: number): void {
    const state = this.#links.get(link);
    if (state === undefined) return;
    while (state.answers.length > 0) {
      const { head, offset, bytes } = state.answers[0];
      if (!this.#transport.send(link, head, head.length, offset, bytes)) return;
      state.answers.shift();
      this.#releaseData(offset, bytes);
    }
    this.#drain(state);
  }

  /** True for a link over which a peer asks. */
  isTheirs(link: number): boolean {
    return this.#links.has(link);
  }

  /** The map has changed: what waited for it goes on. */
  mapChanged(view: ClusterView, incarnation: number): void {
    this.view = view;
    this.incarnation = incarnation;
    for (const state of [...this.#links.values()]) this.#drain(state);
  }

  /** Gives back what needed no work, and lets links go on that waited for room or for older writes. */
  endTurn(): void {
    for (let count = this.#repeatedWrites.length; count > 0; count--) {
      const write = this.#repeatedWrites.shift()!;
      write.target!.localWriteDone(write, 0);
    }
    if (!this.#isWaiting) return;
    this.#isWaiting = false;
    for (const state of this.#links.values()) if (state.stash.length > 0) this.#drain(state);
  }

  /**
   * A peer asks. The buffer belongs to this replica now.
   *
   * @returns false when the peer breaks the rules, and its connection has to end
   */
  received(
    link: number,
    bytes: Uint8Array,
    headBytes: number,
    dataOffset: number,
    dataBytes: number,
  ): boolean {
    const state = this.#links.get(link);
    if (state === undefined || state.isBroken) {
      this.#releaseData(dataOffset, dataBytes);
      return true;
    }
    const verdict = state.stash.length > 0 || state.isDraining
      ? Verdict.Wait
      : this.#handle(state, bytes, headBytes, dataOffset, dataBytes);
    if (verdict === Verdict.Taken) return true;
    if (verdict === Verdict.Broken || state.stash.length >= STASH_MAX) {
      this.#releaseData(dataOffset, dataBytes);
      state.isBroken = true;
      return false;
    }
    state.stash.push({ head: bytes.slice(0, headBytes), dataOffset, dataBytes });
    this.#pause(state, true);
    return true;
  }

  #pause(state: Link, isPaused: boolean): void {
    if (state.isPaused === isPaused) return;
    state.isPaused = isPaused;
    this.#transport.pause(state.link, isPaused);
  }

  #drain(state: Link): void {
    if (state.isDraining || state.isBroken) return;
    state.isDraining = true;
    while (state.stash.length > 0) {
      const { head, dataOffset, dataBytes } = state.stash[0];
      const verdict = this.#handle(state, head, head.length, dataOffset, dataBytes);
      if (verdict === Verdict.Wait) break;
      state.stash.shift();
      if (verdict === Verdict.Broken) {
        this.#releaseData(dataOffset, dataBytes);
        this.#log.warn("a peer sent a message that cannot be right: its connection ends", {
          node: state.node,
        });
        state.isBroken = true;
        this.#transport.drop(state.link);
        break;
      }
    }
    state.isDraining = false;
    if (state.stash.length === 0 && !state.isBroken) this.#pause(state, false);
  }

  #handle(
    state: Link,
    bytes: Uint8Array,
    headBytes: number,
    dataOffset: number,
    dataBytes: number,
  ): Verdict {
    const head = this.#head;
    if (headBytes < HEAD_BYTES) return Verdict.Broken;
    if (!head.decode(bytes) || (head.type & ANSWER) !== 0) return Verdict.Broken;
    const extraBytes = headBytes - HEAD_BYTES;
    if (extraBytes > EXTRA_BYTES_MAX || extraBytes % 4 !== 0) return Verdict.Broken;
    if (this.view === null || head.epoch > this.view.epoch) return Verdict.Wait;
    if (state.answers.length > 0) return this.#waitForRoom();
    switch (head.type) {
      case MessageType.Write:
      case MessageType.Free:
      case MessageType.Zero:
        return this.#write(state, bytes, extraBytes, dataOffset, dataBytes);
      case MessageType.Sync:
        return dataBytes > 0 ? Verdict.Broken : this.#sync(state);
      case MessageType.Read:
        return dataBytes > 0 ? Verdict.Broken : this.#read(state, bytes, extraBytes);
      case MessageType.Stamps:
        return dataBytes > 0 ? Verdict.Broken : this.#stamps(state);
      case MessageType.List:
        return dataBytes > 0 ? Verdict.Broken : this.#listGroup(state);
      case MessageType.Describe:
        return dataBytes > 0 ? Verdict.Broken : this.#describe(state, bytes, extraBytes);
      case MessageType.Pull:
        return dataBytes > 0 ? Verdict.Broken : this.#pull(state);
      case MessageType.Chunks:
        return dataBytes > 0 ? Verdict.Broken : this.#listLayer(state);
      case MessageType.Inspect:
        return dataBytes > 0 ? Verdict.Broken : this.#inspect(state, bytes, extraBytes);
      case MessageType.Replace:
        return dataBytes > 0 ? Verdict.Broken : this.#replace(state, bytes, extraBytes);
      case MessageType.Complete:
        return dataBytes > 0 || extraBytes > 0 ? Verdict.Broken : this.#complete(state);
      default:
        return Verdict.Broken;
    }
  }

  #waitForRoom(): Verdict {
    this.#isWaiting = true;
    return Verdict.Wait;
  }

  #take(state: Link): RemoteOperation | null {
    let operation = this.#free.pop();
    if (operation === undefined) {
      if (this.#operations >= OPERATIONS_MAX) return null;
      this.#operations++;
      operation = new RemoteOperation(this);
    }
    operation.link = state;
    operation.bufferOffset = 0;
    operation.bufferBytes = 0;
    operation.head.set(this.#head);
    return operation;
  }

  // ------------------------------------------------------------------------------------- guard

  /** The group that the message is about, or null when it is stale: then it has been answered. */
  #guard(state: Link, isChange: boolean): GroupView | null {
    const { view } = this;
    const head = this.#head;
    const disk = view!.disk(head.disk);
    if (disk === undefined || !view!.isOfFamily(disk, head.layer)) return this.#stale(state);
    const group = view!.groupOf(disk, head.chunk);
    if (group === undefined || head.epoch < group.entry.changedEpoch) return this.#stale(state);
    const isRecovery = (head.flags & MessageFlag.Recovery) !== 0;
    if (isChange) {
      const isHolder = disk.holder === state.node && disk.entry.generation === head.generation &&
        view!.isWritable(disk, head.layer);
      if (!isHolder || !group.isOpen || !group.members.includes(view!.self)) {
        return this.#stale(state);
      }
    } else if (!isRecovery) {
      if (!group.isOpen || !group.entry.inSync.includes(view!.self)) return this.#stale(state);
    } else if (!this.#mayCopy(group)) return this.#stale(state);
    return group;
  }

  /** Whether others may copy the group from here: it is in sync and has lost nothing, or is being settled among those that were. */
  #mayCopy({ entry }: GroupView): boolean {
    const { self } = this.view!;
    return entry.inSync.includes(self) && (entry.unsettled || !entry.unclean.includes(self));
  }

  #busy(state: Link): Verdict {
    this.#answer(state, Status.Busy);
    return Verdict.Taken;
  }

  #stale(state: Link): null {
    this.counters.stale++;
    this.#answer(state, Status.Stale);
    return null;
  }

  // ------------------------------------------------------------------------------------- writes

  #write(
    state: Link,
    bytes: Uint8Array,
    extraBytes: number,
    dataOffset: number,
    dataBytes: number,
  ): Verdict {
    const head = this.#head;
    const hasData = head.type === MessageType.Write;
    const countMax = hasData ? TRANSFER_BLOCKS_MAX : CHUNK_BLOCKS;
    const isSane = head.count >= 1 && head.count <= countMax &&
      head.block + head.count <= CHUNK_BLOCKS && head.generation > 0 &&
      head.sequence > 0 &&
      dataBytes === (hasData ? head.count << BLOCK_SHIFT : 0) &&
      extraBytes === (hasData ? head.count * 4 : 0);
    if (!isSane) return Verdict.Broken;
    // What was sent again may still be on its way into the store from the first time: `apply` looks, and what follows on the link goes on.
    const isAgain = (head.flags & MessageFlag.Again) !== 0;
    const operation = this.#take(state);
    if (operation === null) return this.#waitForRoom();
    const group = this.#guard(state, true);
    if (group === null) {
      this.#free.push(operation);
      this.#releaseData(dataOffset, dataBytes);
      return Verdict.Taken;
    }
    const { write } = operation;
    const { operation: target } = write;
    operation.bufferOffset = dataOffset;
    operation.bufferBytes = dataBytes;
    if (operation.layers.length > 1) operation.layers.length = 1;
    operation.layers[0] = head.layer;
    target.layers = operation.layers;
    target.chunk = head.chunk;
    target.block = head.block;
    target.blockCount = head.count;
    target.buffer = dataOffset;
    for (let i = 0; i < extraBytes / 4; i++) {
      operation.checksums[i] = getU32(bytes, HEAD_BYTES + i * 4);
    }
    this.counters.writes++;
    this.counters.writtenBytes += dataBytes;
    this.guestWork += REQUEST_BYTES + dataBytes;
    target.kind = head.type === MessageType.Write
      ? OperationKind.Write
      : head.type === MessageType.Free
      ? OperationKind.Free
      : OperationKind.Zero;
    target.generation = head.generation;
    target.sequence = head.sequence;
    this.apply(write, group, isAgain);
    if (write.isFollower) {
      // However often links break, what waits for room holds its data once.
      this.#releaseData(dataOffset, dataBytes);
      operation.bufferBytes = 0;
    }
    return Verdict.Taken;
  }

  #sync(state: Link): Verdict {
    const head = this.#head;
    if (head.incarnation !== 0 && head.incarnation !== this.incarnation) {
      this.#stale(state);
      return Verdict.Taken;
    }
    // It would be taken for a sync of what has been lost meanwhile.
    if (head.epoch < (this.#store.paths?.lossEpoch ?? 0)) {
      this.#stale(state);
      return Verdict.Taken;
    }
    const operation = this.#take(state);
    if (operation === null) return this.#waitForRoom();
    this.counters.syncs++;
    operation.read.kind = OperationKind.Sync;
    this.#store.submit(operation.read);
    return Verdict.Taken;
  }

  // -------------------------------------------------------------------------------------- reads

  #read(state: Link, message: Uint8Array, extraBytes: number): Verdict {
    const head = this.#head;
    const layers = extraBytes / 4;
    const isSane = head.count >= 1 && head.count <= TRANSFER_BLOCKS_MAX &&
      head.block + head.count <= CHUNK_BLOCKS && layers >= 1 && layers <= LAYERS_MAX;
    if (!isSane) return Verdict.Broken;
    const operation = this.#take(state);
    if (operation === null) return this.#waitForRoom();
    if (this.#guard(state, false) === null) {
      this.#free.push(operation);
      return Verdict.Taken;
    }
    const bytes = head.count << BLOCK_SHIFT;
    const isRecovery = (head.flags & MessageFlag.Recovery) !== 0;
    // A snapshot that is deleted by now, and merged into the layer above: the asker's map is older.
    const isMerged = !isRecovery && !this.view!.isReadable(head.layer);
    const absorbed = layers > 1 ? getU32(message, HEAD_BYTES + 4) : 0;
    if (isMerged || (isRecovery && this.#isHalf(absorbed))) {
      this.#free.push(operation);
      this.#stale(state);
      return Verdict.Taken;
    }
    // Put off, not kept waiting: what comes behind it on the link is for guests.
    if (isRecovery && this.pace?.take(bytes) === false) {
      this.#free.push(operation);
      return this.#busy(state);
    }
    const buffer = this.#arena.allocate(bytes);
    if (buffer < 0) {
      this.#free.push(operation);
      return this.#waitForRoom();
    }
    if (!isRecovery) this.guestWork += REQUEST_BYTES + bytes;
    operation.bufferOffset = buffer;
    operation.bufferBytes = bytes;
    operation.layers.length = 0;
    for (let i = 0; i < layers; i++) {
      operation.layers.push(getU32(message, HEAD_BYTES + i * 4));
    }
    const { read } = operation;
    read.kind = OperationKind.Read;
    // The map's own array: the store finds its way by it.
    read.layers = (head.flags & MessageFlag.Chain) !== 0
      ? this.view!.chain(head.layer)
      : operation.layers;
    read.chunk = head.chunk;
    read.block = head.block;
    read.blockCount = head.count;
    read.buffer = buffer;
    read.sink = null;
    this.counters.reads++;
    this.counters.readBytes += bytes;
    this.#store.submit(read);
    return Verdict.Taken;
  }

  // ------------------------------------------------------------------------------------- stamps

  #stamps(state: Link): Verdict {
    const head = this.#head;
    const { view } = this;
    const disk = view!.disk(head.disk);
    if (disk === undefined || !view!.isWritable(disk, head.layer)) {
      this.#stale(state);
      return Verdict.Taken;
    }
    // Writes of the lease before must be in the store: none is accepted any more.
    const { generation } = disk.entry;
    if (!this.endEarlier(head.epoch, head.layer, generation)) return this.#busy(state);
    const buffer = this.#arena.allocate(STAMP_BUFFER_BYTES);
    if (buffer < 0) return this.#waitForRoom();
    const list = this.#list;
    let entries = 0;
    this.#store.listChunks(head.layer, head.chunk, list);
    for (let i = 0; i < list.count; i++) {
      if (list.generations[i] > 0 && list.generations[i] <= head.generation) continue;
      const group = view!.groupOf(disk, list.chunks[i]);
      const isMine = group.entry.inSync.includes(view!.self) ||
        (group.entry.joining.includes(view!.self) &&
          this.joining?.isComplete(group, head.layer, list.chunks[i]) === true);
      if (isMine) this.#putStamp(buffer, entries++, head.layer, i);
    }
    const { next } = list;
    this.#answerStamps(state, buffer, entries, next >= 0, head.layer, Math.max(0, next));
    return Verdict.Taken;
  }

  #listGroup(state: Link): Verdict {
    const head = this.#head;
    const { view } = this;
    const group = view!.pool(head.pool)[head.group];
    // What a lost data path held would look as if it had never been there.
    const isLost = group !== undefined && (this.#store.paths?.lossOf(group.group) ?? null) !== null;
    const isOld = group === undefined || head.epoch < group.entry.changedEpoch;
    if (isOld || isLost || !this.#mayCopy(group)) {
      this.#stale(state);
      return Verdict.Taken;
    }
    if (!this.isDrainedOf(group)) return this.#busy(state);
    const buffer = this.#arena.allocate(STAMP_BUFFER_BYTES);
    if (buffer < 0) return this.#waitForRoom();
    const list = this.#list;
    let entries = 0;
    let layer = 0, next = -1;
    for (const [candidate, disk] of view!.layersOf(head.pool)) {
      if (candidate < head.layer || !this.#store.hasLayer(candidate)) continue;
      layer = candidate;
      const from = candidate === head.layer ? head.chunk : 0;
      const first = view!.firstChunk(disk, group.group);
      this.#store.listChunks(candidate, from, list, disk.groups.length, first);
      next = list.next;
      for (let i = 0; i < list.count; i++) {
        if (entries === STAMP_ENTRIES_MAX) {
          next = list.chunks[i];
          break;
        }
        this.#putStamp(buffer, entries++, candidate, i);
      }
      if (next >= 0) break;
      if (entries === STAMP_ENTRIES_MAX) {
        // The next layer from its beginning, if there is one.
        layer++;
        next = 0;
        break;
      }
    }
    this.#answerStamps(state, buffer, entries, next >= 0, layer, Math.max(0, next));
    return Verdict.Taken;
  }

  /** Puts entry `i` of the list into the answer. */
  #putStamp(buffer: number, index: number, layer: number, i: number): void {
    const view = this.#arenaView;
    const at = buffer + index * STAMP_ENTRY_BYTES;
    view.setUint32(at, layer, true);
    view.setUint32(at + 4, this.#list.chunks[i], true);
    view.setUint32(at + 8, this.#list.generations[i], true);
    view.setUint32(at + 12, 0, true);
    setU64(view, at + 16, this.#list.sequences[i]);
  }

  #answerStamps(
    state: Link,
    buffer: number,
    entries: number,
    more: boolean,
    layer: number,
    chunk: number,
  ): void {
    const head = this.#head;
    head.argument = entries;
    head.layer = layer;
    head.chunk = chunk;
    head.flags = more ? MessageFlag.More : 0;
    const used = Math.ceil(entries * STAMP_ENTRY_BYTES / BLOCK_BYTES) * BLOCK_BYTES;
    // Nothing of what the buffer held before goes out.
    this.#window.bytes.fill(0, buffer + entries * STAMP_ENTRY_BYTES, buffer + used);
    this.#reply(state, head, Status.Ok, 0, buffer, used, STAMP_BUFFER_BYTES);
  }

  /**
   * Whether what is asked for is a part of what is one here: the asker's map is older, and what is left of it would mislead. Where the layer
   * is being absorbed its content is in the one above by now, also when the asker still believes that it absorbs another one itself.
   *
   * @param absorbedThere the layer that it absorbs on the asker's map; 0: none
   */
  #isHalf(absorbedThere: number): boolean {
    const { view } = this;
    const { layer, flags } = this.#head;
    if (view!.absorberOf(layer) !== 0) return true;
    if ((flags & MessageFlag.Chain) !== 0) return false;
    const absorbed = view!.absorbedInto(layer);
    return absorbed !== 0 && absorbed !== absorbedThere;
  }

  #describe(state: Link, message: Uint8Array, extraBytes: number): Verdict {
    const head = this.#head;
    if (extraBytes !== 0 && extraBytes !== 8) return Verdict.Broken;
    const group = this.#guard(state, false);
    if (group === null) return Verdict.Taken;
    const absorbed = extraBytes === 0 ? 0 : getU32(message, HEAD_BYTES + 4);
    if (this.#isHalf(absorbed)) {
      this.#stale(state);
      return Verdict.Taken;
    }
    if (this.#store.paths?.isLost(head.layer, head.chunk) === true) {
      this.#stale(state);
      return Verdict.Taken;
    }
    if (!this.isDrainedOf(group)) return this.#busy(state);
    const words = this.#scratchWords;
    words.fill(0, 0, DESCRIPTION_WORDS);
    const half = DESCRIPTION_WORDS / 2;
    const data = words.subarray(0, half), zeros = words.subarray(half, DESCRIPTION_WORDS);
    const isChain = (head.flags & MessageFlag.Chain) !== 0;
    const pair = isChain ? this.view!.chain(head.layer) : pairOf(head.layer, absorbed);
    stampOfPair(this.#store, pair, head.chunk, this.#stamp);
    this.#store.describeChain(pair, head.chunk, data, zeros, this.#poisoned);
    // What is damaged must not come out as a hole: whoever copies is to find out when it reads.
    for (let i = 0; i < half; i++) data[i] |= this.#poisoned[i];
    head.generation = this.#stamp.generation;
    head.sequence = this.#stamp.sequence;
    head.argument = this.#rewriteCount(head.layer, head.chunk);
    this.#reply(state, head, Status.Ok, DESCRIPTION_WORDS, 0, 0, 0);
    return Verdict.Taken;
  }

  /** The chunks of a layer, of groups in which this node is in sync. */
  #listLayer(state: Link): Verdict {
    const head = this.#head;
    const { view } = this;
    const disk = view!.diskOfLayer(head.layer);
    if (disk === undefined) {
      this.#stale(state);
      return Verdict.Taken;
    }
    const buffer = this.#arena.allocate(STAMP_BUFFER_BYTES);
    if (buffer < 0) return this.#waitForRoom();
    const list = this.#list;
    let entries = 0;
    this.#store.listChunks(head.layer, head.chunk, list);
    for (let i = 0; i < list.count; i++) {
      const { entry } = view!.groupOf(disk, list.chunks[i]);
      if (entry.inSync.includes(view!.self)) this.#putStamp(buffer, entries++, head.layer, i);
    }
    const { next } = list;
    this.#answerStamps(state, buffer, entries, next >= 0, head.layer, Math.max(0, next));
    return Verdict.Taken;
  }

  #inspect(state: Link, message: Uint8Array, extraBytes: number): Verdict {
    const head = this.#head;
    const isSane = extraBytes === INSPECT_WORDS * 4 && head.chunk < DISK_BYTES_MAX / CHUNK_BYTES;
    if (!isSane) return Verdict.Broken;
    const layer = getU32(message, HEAD_BYTES), absorbed = getU32(message, HEAD_BYTES + 4);
    const group = this.#guard(state, false);
    if (group === null) return Verdict.Taken;
    const disk = this.view!.disk(head.disk)!;
    const isForeign = absorbed !== 0 && !this.view!.isOfFamily(disk, absorbed);
    const isLost = this.#store.paths?.isLost(head.layer, head.chunk) === true;
    if (isLost || isForeign || layer !== head.layer || this.#isHalf(absorbed)) {
      this.#stale(state);
      return Verdict.Taken;
    }
    const isChain = (head.flags & MessageFlag.Chain) !== 0;
    const pair = isChain ? this.view!.chain(layer) : pairOf(layer, absorbed);
    const wanted = new Uint32Array(SET_WORDS);
    for (let i = 0; i < SET_WORDS; i++) wanted[i] = getU32(message, HEAD_BYTES + 8 + i * 4);
    const answer = new Head();
    answer.set(head);
    const { changedEpoch } = group.entry;
    const query = { pair, chunk: head.chunk, wanted, isQuiet: head.argument === 1 };
    const isTaken = this.inspector?.inspect(query, (result, findings) => {
      if (this.#links.get(state.link) === state) {
        this.#inspected(state, answer, changedEpoch, result, findings);
      }
    });
    return isTaken === true ? Verdict.Taken : this.#busy(state);
  }

  #inspected(
    state: Link,
    head: Head,
    changedEpoch: number,
    result: number,
    findings: Findings,
  ): void {
    const { view } = this;
    const disk = view!.disk(head.disk);
    const group = disk && view!.groupOf(disk, head.chunk);
    if (group?.entry.changedEpoch !== changedEpoch) {
      return this.#reply(state, head, Status.Stale, 0, 0, 0, 0);
    }
    const buffer = result === 0 ? this.#arena.allocate(BLOCK_BYTES) : -1;
    if (buffer < 0) {
      return this.#reply(state, head, result === 0 ? Status.Busy : result, 0, 0, 0, 0);
    }
    const sums = this.#window.u32.subarray(buffer >>> 2, (buffer + BLOCK_BYTES) >>> 2);
    const extraWords = packFindings(findings, this.#scratchWords, sums);
    head.generation = findings.end.generation;
    head.sequence = findings.end.sequence;
    head.argument = findings.isIdle ? 0 : 1;
    this.#reply(state, head, Status.Ok, extraWords, buffer, BLOCK_BYTES, BLOCK_BYTES);
  }

  #replace(state: Link, message: Uint8Array, extraBytes: number): Verdict {
    const { layer, chunk, argument: source } = this.#head;
    const extra = message.subarray(HEAD_BYTES, HEAD_BYTES + extraBytes);
    const list = unpackReplacements(extra);
    if (list === null || chunk >= DISK_BYTES_MAX / CHUNK_BYTES) return Verdict.Broken;
    if (!this.#mayTakeFrom(state, source)) return Verdict.Taken;
    this.replacer?.replace(layer, chunk, source, list);
    this.#answer(state, Status.Ok);
    return Verdict.Taken;
  }

  #complete(state: Link): Verdict {
    const { layer, chunk, argument: source } = this.#head;
    if (chunk >= DISK_BYTES_MAX / CHUNK_BYTES) return Verdict.Broken;
    if (!this.#mayTakeFrom(state, source)) return Verdict.Taken;
    this.completer?.complete(layer, chunk, source);
    this.#answer(state, Status.Ok);
    return Verdict.Taken;
  }

  /** Whether the chunk here is to be changed by what another node has; else it has been answered. */
  #mayTakeFrom(state: Link, source: number): boolean {
    const group = this.#guard(state, false);
    if (group === null) return false;
    const view = this.view!;
    const isOther = source !== view.self && group.entry.inSync.includes(source);
    if (isOther && view.absorberOf(this.#head.layer) === 0) return true;
    this.#stale(state);
    return false;
  }

  #pull(state: Link): Verdict {
    const head = this.#head;
    const { view } = this;
    const disk = view!.disk(head.disk);
    const isHolder = disk !== undefined && disk.holder === state.node &&
      disk.entry.generation === head.generation && view!.isWritable(disk, head.layer);
    if (!isHolder || this.puller === null) {
      this.#stale(state);
      return Verdict.Taken;
    }
    const group = view!.groupOf(disk, head.chunk);
    if (head.epoch < group.entry.changedEpoch || !group.members.includes(view!.self)) {
      this.#stale(state);
      return Verdict.Taken;
    }
    const { layer, chunk, argument } = head;
    const answer = new Head();
    answer.set(head);
    this.puller.pullFor(disk, group, layer, chunk, argument, (status) => {
      if (this.#links.get(state.link) === state) this.#reply(state, answer, status, 0, 0, 0, 0);
    });
    return Verdict.Taken;
  }

  // ------------------------------------------------------------------------------------ answers

  /** From {@linkcode RemoteOperation}. */
  answerOperation(operation: RemoteOperation, result: number): void {
    const { head } = operation;
    // Numbers of links are used again: it has to be the very one.
    const link = operation.link!;
    const state = this.#links.get(link.link) === link ? link : undefined;
    operation.link = null;
    const offset = operation.bufferOffset;
    const bytes = operation.bufferBytes;
    const isData = head.type === MessageType.Read && result === 0;
    this.#free.push(operation);
    this.#isWaiting = true;
    if (state === undefined) return this.#releaseData(offset, bytes);
    if (result === -ECANCELED || (result < 0 && this.#isLost(operation))) {
      // Not this node has failed, but a path of it, or the lease is over: the map that says so is on its way.
      this.#releaseData(offset, bytes);
      this.counters.stale++;
      return this.#reply(state, head, Status.Stale, 0, 0, 0, 0);
    }
    if (!isData) {
      this.#releaseData(offset, bytes);
      if (head.type === MessageType.Read && (result === -EBADMSG || result === -EIO)) {
        this.damaged(operation.read.layers, head.chunk, head.block, head.count);
        head.block = operation.read.badBlock;
      }
      this.#reply(state, head, result, 0, 0, 0, 0);
      return;
    }
    const { kernel } = this.#window;
    const { isSummed } = operation.read;
    for (let i = 0; i < head.count; i++) {
      this.#scratchWords[i] = isSummed
        ? operation.checksums[i]
        : kernel.checksum(offset + (i << BLOCK_SHIFT), BLOCK_BYTES);
    }
    this.#reply(state, head, Status.Ok, head.count, offset, bytes, bytes);
  }

  /** Whether an operation failed for the loss of a data path. */
  #isLost({ head }: RemoteOperation): boolean {
    const { paths } = this.#store;
    if (paths === undefined) return false;
    return head.type === MessageType.Sync ? paths.isImpaired : paths.isLost(head.layer, head.chunk);
  }

  #answer(state: Link, status: number): void {
    this.#reply(state, this.#head, status, 0, 0, 0, 0);
  }

  /**
   * Sends an answer made of `head` and the first words of the scratch table; the buffer is released once it is sent.
   *
   * @param dataBytes of the buffer that go out
   * @param heldBytes of the buffer that are allocated
   */
  #reply(
    state: Link,
    head: Head,
    status: number,
    extraWords: number,
    dataOffset: number,
    dataBytes: number,
    heldBytes: number,
  ): void {
    head.type |= ANSWER;
    head.status = status;
    head.epoch = this.view!.epoch;
    head.encode(this.#scratchHead);
    const headBytes = HEAD_BYTES + extraWords * 4;
    const isSent = state.answers.length === 0 &&
      this.#transport.send(state.link, this.#scratch, headBytes, dataOffset, dataBytes);
    if (isSent) return this.#releaseData(dataOffset, heldBytes);
    // Bounded by the operations under way: no new request of this link is taken while answers wait.
    if (heldBytes > dataBytes && dataBytes > 0) {
      // The rest of a table's buffer is not worth a second length.
      const copy = this.#arena.allocate(dataBytes);
      if (copy >= 0) {
        this.#window.bytes.copyWithin(copy, dataOffset, dataOffset + dataBytes);
        this.#releaseData(dataOffset, heldBytes);
        dataOffset = copy;
      } else {
        this.#releaseData(dataOffset, heldBytes);
        head.status = -ENOMEM;
        head.encode(this.#scratchHead);
        dataBytes = 0;
      }
    } else if (dataBytes === 0) this.#releaseData(dataOffset, heldBytes);
    state.answers.push({
      head: this.#scratch.slice(0, headBytes),
      offset: dataOffset,
      bytes: dataBytes,
    });
  }

  #releaseData(offset: number, bytes: number): void {
    if (bytes > 0) this.#arena.release(offset, bytes);
  }
}
