/**
 * What a node does about layers that are made independent of their parents: it copies into each what it is read through to, chunk by chunk,
 * in its own store, and says so when all of it is durable (`map/flatten.ts` says what the map makes of that).
 *
 *     map: L is flattened ─▶ chunks of the layers below ─▶ read what L lacks ─▶ fill ─▶ … ─▶ sync ─▶ "flattened" ─▶ map: L has no parent
 *
 * No node waits for another, and nothing goes over the network: layers of a family lie in the same places. What is read through L is the
 * same before, while and after.
 *
 * Invariants:
 * - Each chunk of L ends with the stamp that the chain had for it (`pairs.ts`), also where nothing is to be copied: what lay below may be
 *   zeros, or have been discarded. A replica that got L's chunk as a copy, or by absorbing L's parent, has that stamp already, and when the
 *   parent is gone there is nothing that would tell that the two are the same.
 * - A block is filled only where L has nothing at the moment at which the fill is applied (`OperationKind.Fill`): a guest's write is
 *   never overwritten, whenever it comes. What the layers below hold never changes.
 * - Nothing is filled after the parent is cut off, when a guest may have made a hole where the parent had data: the map cuts it only when
 *   this node has given its word, and the word is given when nothing is under way any more. One run begins when nothing of any other
 *   is under way.
 * - Only from what is known to be right: in groups in which this node is in sync and nobody has crashed with unsynced writes, and while
 *   none of its data paths is lost. Where it joins a group of the pool it waits.
 * - A chunk that is being replaced by another node's copy is not filled, but looked at again later: its stamp is unknown meanwhile, and a
 *   fill could make it look like one that is known. The copy brings what lies below with it (`ClusterView.isFlattened`, `pull.ts`).
 * - A block that is damaged is not left out: reading it tells whoever heals, and the chunk is looked at again later.
 * - Where this node is no member, what it has of L may be of any age: it loses its stamps. Otherwise a chunk that was not filled could be
 *   taken for one that was, once it joins again. That is done before anything is compared there (`discards.ts`).
 * - The word is given after a sync that covers all of it, under a map in which this node's place in every group of the pool is what it
 *   was since the chunks were looked at.
 *
 * Pace: as catching up (`pace.ts`), of one allowance. A store that is nearly full is left alone: the last of its space is for guests.
 *
 * @module
 */
import type { Arena } from "../base/arena.ts";
import { BLOCK_BYTES, BLOCK_SHIFT, CHUNK_BLOCKS } from "../base/limits.ts";
import { EBADMSG, EIO, type Window } from "../platform/platform.ts";
import { Operation, OperationKind, type OperationOwner } from "../store/operation.ts";
import { isPathLost, placesOf } from "./absorbing.ts";
import { has, remove, SET_WORDS } from "./block_set.ts";
import type { Discards } from "./discards.ts";
import { chunkList, isKnown, type LocalStore, Stamp } from "./local_store.ts";
import type { Pace } from "./pace.ts";
import { stampOfPair } from "./pairs.ts";
import type { JoiningHook } from "./replica.ts";
import type { ClusterView, DiskView } from "./view.ts";

/** Blocks of one copy: long enough to be cheap, short enough to let guests through. */
const FILL_BLOCKS_MAX = 64;
/** Copies under way at a time. */
const FILLS_MAX = 8;
/** Chunks looked at in one go, and stamps that are set or taken away at a time. */
const LIST_MAX = 64;
/** Chunks that one step looks at where nothing has to be copied. */
const LOOKS_MAX = 256;
/** Milliseconds after which the word is given again, and after which what could not be done is tried again. */
const AGAIN_MS = 1000;

const enum Phase {
  /** Something was in the way: again in a while. */
  Waiting,
  Copying,
  /** Looking at what L has in groups that are none of this node's business. */
  Marking,
  Syncing,
  /** Done: said again until the map has it. */
  Told,
}

/** How far flattening is on this node. */
export interface FlatteningProgress {
  /** Layers that are still to be flattened here. */
  readonly layers: number;
  /** Bytes copied since the start of the agent. */
  readonly copiedBytes: number;
  /** What stands in the way, in words; null when nothing does. */
  readonly stuck: string | null;
}

class Job {
  phase = Phase.Waiting;
  /** Nothing is done before, or it is said again then. */
  nextMs = -Infinity;
  isFailed = false;
  /** Something has to be looked at again. */
  isIncomplete = false;
  /** Why, as far as it is worth telling. */
  stuck: string | null = null;
  /** The map does not want it any more. */
  isOver = false;
  places = "";
  groups: DiskView["groups"] | null = null;
  /** Which of the layers below is looked through, and from which chunk on. */
  at = 0;
  from = 0;

  constructor(readonly layer: number, readonly since: number) {}
}

/** One run of blocks being copied. */
class Copy implements OperationOwner {
  readonly operation: Operation = new Operation(this, FILL_BLOCKS_MAX);
  job: Job | null = null;
  buffer = 0;
  bytes = 0;
  constructor(readonly owner: Flattener) {}

  operationDone(operation: Operation): void {
    this.owner.copyDone(this, operation);
  }
}

/** See the head of the file. */
export class Flattener implements OperationOwner {
  /** Bytes copied since the start. */
  copiedBytes = 0;
  readonly #store: LocalStore;
  readonly #discards: Discards;
  readonly #window: Window;
  readonly #arena: Arena;
  readonly #pace: Pace;
  readonly #joining: JoiningHook;
  readonly #flattened: (layers: readonly number[], epoch: number) => void;
  #view: ClusterView | null = null;
  readonly #jobs = new Map<number, Job>();
  /** The one that is being worked on. */
  #job: Job | null = null;
  /** Operations under way, of whichever job. */
  #underWay = 0;
  readonly #free: Copy[] = [];
  readonly #sync: Operation = new Operation(this, 0);
  readonly #list = chunkList(LIST_MAX);
  /** Next of the list, once all before are done with. */
  #listAt = 0;
  /** The chunk in hand, −1: none; and which of its blocks are still to be copied. */
  #chunk = -1;
  readonly #needed = new Uint32Array(SET_WORDS);
  readonly #own = new Uint32Array(SET_WORDS);
  readonly #zeros = new Uint32Array(SET_WORDS);
  readonly #poisoned = new Uint32Array(SET_WORDS);
  readonly #stamp = new Stamp();

  /** @param options.flattened these layers have everything here, durably, on a map of this epoch: for the map, until it says so */
  constructor(options: {
    store: LocalStore;
    discards: Discards;
    window: Window;
    arena: Arena;
    /** Its time passes elsewhere. */
    pace: Pace;
    joining: JoiningHook;
    flattened: (layers: readonly number[], epoch: number) => void;
  }) {
    this.#store = options.store;
    this.#discards = options.discards;
    this.#window = options.window;
    this.#arena = options.arena;
    this.#pace = options.pace;
    this.#joining = options.joining;
    this.#flattened = options.flattened;
    this.#sync.kind = OperationKind.Sync;
    for (let i = 0; i < FILLS_MAX; i++) this.#free.push(new Copy(this));
  }

  /** How far it is. */
  get progress(): FlatteningProgress {
    let layers = 0;
    let stuck: string | null = null;
    for (const job of this.#jobs.values()) {
      if (job.phase === Phase.Told) continue;
      layers++;
      stuck ??= job.stuck;
    }
    return { layers, copiedBytes: this.copiedBytes, stuck };
  }

  /** True while time should pass often. */
  get isBusy(): boolean {
    return this.#underWay > 0 || (this.#job !== null && this.#job.phase !== Phase.Told);
  }

  /** The map has changed. */
  mapChanged(view: ClusterView): void {
    const isSame = this.#view?.map.layers === view.map.layers;
    this.#view = view;
    if (isSame) return;
    const wanted = new Set<number>();
    for (const { id, flatten } of view.map.layers) {
      if (flatten === undefined || flatten.by.includes(view.self)) continue;
      wanted.add(id);
      const job = this.#jobs.get(id);
      if (job?.since === flatten.since) continue;
      if (job !== undefined) this.#end(job);
      this.#jobs.set(id, new Job(id, flatten.since));
    }
    for (const [id, job] of this.#jobs) if (!wanted.has(id)) this.#end(job);
  }

  #end(job: Job): void {
    job.isOver = true;
    this.#jobs.delete(job.layer);
    if (this.#job === job) this.#job = null;
  }

  /** Time passes. */
  tick(nowMs: number): void {
    const view = this.#view;
    if (view === null || this.#jobs.size === 0) return;
    if (view.node(view.self)?.witness !== false) return;
    const told: number[] = [];
    for (const job of this.#jobs.values()) {
      if (job.phase !== Phase.Told || nowMs < job.nextMs) continue;
      if (this.#hasMoved(view, job)) job.phase = Phase.Waiting;
      else {
        job.nextMs = nowMs + AGAIN_MS;
        told.push(job.layer);
      }
    }
    if (told.length > 0) this.#flattened(told, view.epoch);
    // Never beside anything that another run has left.
    if (this.#job === null && this.#underWay === 0) this.#job = this.#next(view, nowMs);
    if (this.#job !== null) this.#step(view, this.#job, nowMs);
  }

  #next(view: ClusterView, nowMs: number): Job | null {
    for (const job of this.#jobs.values()) {
      if (job.phase !== Phase.Waiting || nowMs < job.nextMs) continue;
      const disk = view.diskOfLayer(job.layer);
      if (disk === undefined) continue;
      job.stuck = isPathLost(this.#store, disk) ? "a data path of this node is lost" : null;
      job.nextMs = nowMs + AGAIN_MS;
      if (job.stuck !== null || !isSettled(view, disk)) continue;
      job.phase = Phase.Copying;
      job.isFailed = false;
      job.isIncomplete = false;
      job.places = placesOf(view, disk);
      job.groups = disk.groups;
      job.at = 0;
      job.from = 0;
      this.#chunk = -1;
      this.#list.count = 0;
      this.#listAt = 0;
      // Another one's turn comes before this one's next.
      this.#jobs.delete(job.layer);
      this.#jobs.set(job.layer, job);
      return job;
    }
    return null;
  }

  /** Whether this node's places in groups are not what they were when the job began. */
  #hasMoved(view: ClusterView, job: Job): boolean {
    const disk = view.diskOfLayer(job.layer);
    if (disk === undefined) return true;
    if (disk.groups === job.groups) return false;
    if (placesOf(view, disk) !== job.places) return true;
    job.groups = disk.groups;
    return false;
  }

  /** Gives it up for now. */
  #wait(job: Job, nowMs: number): void {
    job.phase = Phase.Waiting;
    job.nextMs = nowMs + AGAIN_MS;
    if (this.#job === job) this.#job = null;
  }

  #step(view: ClusterView, job: Job, nowMs: number): void {
    const disk = view.diskOfLayer(job.layer);
    if (disk === undefined || job.isFailed || this.#hasMoved(view, job)) {
      return this.#wait(job, nowMs);
    }
    if (job.phase === Phase.Copying && !this.#copySome(view, disk, job)) return;
    if (this.#underWay > 0) return;
    if (job.isFailed || job.isIncomplete) return this.#wait(job, nowMs);
    if (job.phase === Phase.Copying) {
      // What a path that was lost meanwhile had was not among the chunks.
      if (isPathLost(this.#store, disk)) return this.#wait(job, nowMs);
      job.phase = Phase.Marking;
      job.from = 0;
    }
    if (job.phase === Phase.Marking && !this.#markSome(view, disk, job)) return;
    if (job.phase !== Phase.Marking) return;
    job.phase = Phase.Syncing;
    this.#underWay++;
    this.#store.submit(this.#sync);
  }

  // ------------------------------------------------------------------------------------- copying

  /** Begins what may be begun now; true: all chunks are done with, but for what is under way. */
  #copySome(view: ClusterView, disk: DiskView, job: Job): boolean {
    const below = view.chain(job.layer).slice(1);
    for (let looks = 0; looks < LOOKS_MAX;) {
      if (this.#chunk >= 0) {
        if (!this.#copyChunk(view, disk, job, below)) return false;
        this.#chunk = -1;
        continue;
      }
      if (this.#underWay >= LIST_MAX) return false;
      if (this.#listAt === this.#list.count && !this.#listMore(job, below)) return true;
      if (this.#listAt === this.#list.count) continue;
      looks++;
      this.#look(view, disk, job, below, this.#list.chunks[this.#listAt++]);
    }
    return false;
  }

  /** Fills the list with chunks of the layers below; false: there are no more. */
  #listMore(job: Job, below: readonly number[]): boolean {
    this.#listAt = 0;
    this.#list.count = 0;
    while (job.at < below.length) {
      if (job.from >= 0 && this.#store.hasLayer(below[job.at])) {
        this.#store.listChunks(below[job.at], job.from, this.#list);
        job.from = this.#list.next;
        return true;
      }
      job.at++;
      job.from = 0;
    }
    return false;
  }

  /** Finds out what is to be copied of a chunk. */
  #look(
    view: ClusterView,
    disk: DiskView,
    job: Job,
    below: readonly number[],
    chunk: number,
  ): void {
    const group = view.groupOf(disk, chunk);
    if (!group.entry.inSync.includes(view.self)) return;
    if (this.#isElsewhere(view, disk, job, chunk)) return;
    const needed = this.#needed, own = this.#own, zeros = this.#zeros, poisoned = this.#poisoned;
    this.#store.describeChunk(job.layer, chunk, own, zeros, poisoned);
    for (let i = 0; i < SET_WORDS; i++) own[i] |= zeros[i] | poisoned[i];
    this.#store.describeChain(below, chunk, needed, zeros, poisoned);
    let left = 0, held = 0;
    for (let i = 0; i < SET_WORDS; i++) {
      needed[i] = (needed[i] | poisoned[i]) & ~own[i];
      left |= needed[i];
      held |= own[i];
    }
    if (left !== 0) this.#chunk = chunk;
    else if (held === 0) this.#passStamp(job, below, chunk);
  }

  /** Gives a chunk that holds nothing, and is to hold nothing, the stamp of the chain below; not if it has one when that is applied. */
  #passStamp(job: Job, below: readonly number[], chunk: number): void {
    if (this.#store.stampOf(job.layer, chunk, this.#stamp)) return;
    stampOfPair(this.#store, below, chunk, this.#stamp);
    if (!isKnown(this.#stamp)) return;
    const operation = new Operation(this, 0);
    operation.kind = OperationKind.Fill;
    operation.layers = [job.layer];
    operation.chunk = chunk;
    operation.generation = this.#stamp.generation;
    operation.sequence = this.#stamp.sequence;
    this.#underWay++;
    this.#store.submit(operation);
  }

  /** Whether a chunk is being copied from another node, or lost: then it is looked at again later. */
  #isElsewhere(view: ClusterView, disk: DiskView, job: Job, chunk: number): boolean {
    const group = view.groupOf(disk, chunk);
    const isElsewhere = this.#joining.isReplacing(group, job.layer, chunk) ||
      this.#store.paths?.isLost(job.layer, chunk) === true;
    if (isElsewhere) job.isIncomplete = true;
    return isElsewhere;
  }

  /** Begins copies of the chunk in hand; true: all of it is on its way. */
  #copyChunk(view: ClusterView, disk: DiskView, job: Job, below: readonly number[]): boolean {
    const chunk = this.#chunk;
    const needed = this.#needed;
    if (this.#isElsewhere(view, disk, job, chunk)) return true;
    for (let block = 0; block < CHUNK_BLOCKS;) {
      if (!has(needed, block)) {
        block++;
        continue;
      }
      let end = block + 1;
      const limit = Math.min(CHUNK_BLOCKS, block + FILL_BLOCKS_MAX);
      while (end < limit && has(needed, end)) end++;
      if (!this.#copy(job, below, chunk, block, end - block)) return false;
      for (let i = block; i < end; i++) remove(needed, i);
      block = end;
    }
    return true;
  }

  /** Begins one copy; false: not now. */
  #copy(
    job: Job,
    below: readonly number[],
    chunk: number,
    block: number,
    blockCount: number,
  ): boolean {
    const bytes = blockCount << BLOCK_SHIFT;
    const hasRoom = this.#store.hasRoom(job.layer, chunk, bytes);
    job.stuck = hasRoom ? null : "its store is nearly full";
    if (!hasRoom || this.#free.length === 0) return false;
    const buffer = this.#arena.allocate(bytes);
    if (buffer < 0) return false;
    if (!this.#pace.take(bytes)) {
      this.#arena.release(buffer, bytes);
      return false;
    }
    const copy = this.#free.pop()!;
    copy.job = job;
    copy.buffer = buffer;
    copy.bytes = bytes;
    const { operation } = copy;
    operation.kind = OperationKind.Read;
    operation.layers = below;
    operation.chunk = chunk;
    operation.block = block;
    operation.blockCount = blockCount;
    operation.buffer = buffer;
    operation.sink = null;
    this.#underWay++;
    this.#store.submit(operation);
    return true;
  }

  /** From {@linkcode Copy}: it is read, or filled in. */
  copyDone(copy: Copy, operation: Operation): void {
    const job = copy.job!;
    const isRead = operation.kind === OperationKind.Read;
    if (operation.result !== 0) {
      const isDamaged = operation.result === -EBADMSG || operation.result === -EIO;
      if (isRead && isDamaged) {
        // Whoever heals has been told of it.
        job.isIncomplete = true;
        job.stuck = "blocks that it is to copy are damaged";
      } else job.isFailed = true;
    } else if (!isRead) this.copiedBytes += copy.bytes;
    else if (this.#fill(copy, job, operation)) return;
    copy.job = null;
    this.#arena.release(copy.buffer, copy.bytes);
    this.#free.push(copy);
    this.#underWay--;
  }

  /** Puts what was read where the layer has nothing; false: not any more, or not now. */
  #fill(copy: Copy, job: Job, operation: Operation): boolean {
    const view = this.#view!;
    const disk = view.diskOfLayer(job.layer);
    if (job.isOver || disk === undefined || this.#hasMoved(view, job)) return false;
    if (this.#isElsewhere(view, disk, job, operation.chunk)) return false;
    const { kernel } = this.#window;
    for (let i = 0; i < operation.blockCount; i++) {
      operation.checksums[i] = kernel.checksum(copy.buffer + (i << BLOCK_SHIFT), BLOCK_BYTES);
    }
    stampOfPair(this.#store, operation.layers, operation.chunk, this.#stamp);
    operation.kind = OperationKind.Fill;
    operation.layers = [job.layer];
    operation.generation = this.#stamp.generation;
    operation.sequence = this.#stamp.generation === 0 ? 0 : this.#stamp.sequence;
    operation.stampUnknown = false;
    this.#store.submit(operation);
    return true;
  }

  // ------------------------------------------------------------------------------ marking, syncing

  /** Takes known stamps away where this node is no member; true: all chunks are done with. */
  #markSome(view: ClusterView, disk: DiskView, job: Job): boolean {
    while (job.from >= 0 && this.#underWay === 0) {
      const list = this.#list;
      if (!this.#store.hasLayer(job.layer)) return true;
      this.#store.listChunks(job.layer, job.from, list);
      job.from = list.next;
      for (let i = 0; i < list.count; i++) {
        const { entry } = view.groupOf(disk, list.chunks[i]);
        if (entry.inSync.includes(view.self) || list.generations[i] === 0) continue;
        const operation = new Operation(this, 0);
        operation.kind = OperationKind.Stamp;
        operation.layers = [job.layer];
        operation.chunk = list.chunks[i];
        operation.blockCount = 1;
        operation.stampUnknown = true;
        this.#underWay++;
        this.#discards.begin(operation, job.layer, operation.chunk);
        this.#store.submit(operation);
      }
    }
    return this.#underWay === 0;
  }

  /** {@inheritDoc OperationOwner.operationDone} */
  operationDone(operation: Operation): void {
    this.#underWay--;
    this.#discards.end(operation);
    const job = this.#job;
    if (job === null) return;
    if (operation.result !== 0) job.isFailed = true;
    if (operation !== this.#sync || job.isFailed || job.phase !== Phase.Syncing) return;
    const disk = this.#view!.diskOfLayer(job.layer);
    const isOther = disk === undefined || isPathLost(this.#store, disk) ||
      this.#hasMoved(this.#view!, job);
    if (isOther) job.isFailed = true;
    else {
      job.phase = Phase.Told;
      job.stuck = null;
      job.nextMs = -Infinity;
      this.#job = null;
    }
  }
}

/** Whether this node joins no group of a disk's pool, and nobody in those in which it is in sync has still to be brought in line. */
function isSettled(view: ClusterView, disk: DiskView): boolean {
  return disk.groups.every(({ entry, isOpen }) =>
    !entry.joining.includes(view.self) && (isOpen || !entry.inSync.includes(view.self))
  );
}
