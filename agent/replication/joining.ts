/**
 * Catching up: how a replica that lacks writes becomes one that has them all.
 *
 *     map: joining ─▶ list the source's chunks ─▶ pull those that differ ─▶ sync ─▶ report "in sync" ─▶ map: in sync
 *                     live writes come in all the while
 *
 * and the settling of a group of which every replica has crashed:
 *
 *     map: unsettled ─▶ list everyone's chunks ─▶ pull the highest of each ─▶ sync ─▶ report "settled"
 *
 * Invariants:
 * - A chunk is *complete* once it holds everything that was acknowledged: its stamp equalled the source's, or it was pulled.
 *   Until then live writes leave its stamp unknown, so that no crash can make it look complete.
 * - The source gives its list and chunks only under the epoch at which this node joined, and after all that it accepted before
 *   that is in its store; whatever it accepted later comes here live. So what was acknowledged is in one of the two.
 * - A chunk that neither the source's list nor this node's own had, when both were complete, is complete as it is: nothing had
 *   been written to it, so the first write that comes live is the first of all. Whatever could make it otherwise begins a new
 *   job: a lease that was not given back has a new `joinedEpoch` (map/groups.ts), since its holder may have left writes at the
 *   source alone. (A disk that came into the pool meanwhile was in sync here before: its chunks are complete, too.)
 * - A pulled chunk with live writes is complete only when those have reached the source's stamp: a live write that is in what
 *   was copied and still on its way here must not be mistaken for one that was applied.
 * - Such writes are waited for only while their run can still send them. Once its lease is over, or its node is not up, the chunk
 *   is copied afresh: what had come here live is at the source too (it was below the stamp that was waited for), or was
 *   acknowledged to nobody.
 * - A layer and the one that it absorbs are one here (`pairs.ts`): where either's stamps differ, what both hold is copied into the
 *   first, and the second one's chunk gets the source's stamp and nothing else. A source does not answer those who do not know of the pair
 *   yet, nor those who know of one that is over and whose first layer is absorbed itself by now; who learns of it looks at the list again.
 * - A layer that is being flattened is one here with all that it is read through: that is compared, and that is copied into it.
 * - A job is about the chunks of disks that are in its pool now. A disk that gets another number of copies, and so another pool,
 *   takes its chunks along: nobody in the group that it has left gives them any more. Who joins where it comes to begins anew there,
 *   by another `joinedEpoch` (`map/copies.ts`).
 * - What is copied on behalf of a disk's holder, who brings its replicas in line, ends where its group or the lease changes, or its source
 *   goes down: a job that begins would write to the same chunk. The holder begins anew as well. Until it ends the group waits for it.
 * - What such a copy has given to the store is taken back, or is waited for before the holder hears which stamps there are here: nobody may
 *   copy from here what is about to be changed.
 * - It also ends where a live write comes to the chunk: the disk is open, and a copy that does not know of live writes would undo them. What
 *   it has given to the store already goes before the write; then the chunk is copied anew, around what comes live.
 * - A group is reported only after a sync that covers everything pulled.
 * - Fewest copies first; within a group in the order of the list.
 *
 * How fast: as `pace.ts` lets it, here and at the source. A group is reported when the one before it is in the map for at least
 * as long as that took, so that changes of the map, each of which has every node sync, do not take all of the disks' time.
 *
 * @module
 */
import type { Arena } from "../base/arena.ts";
import { CHUNK_BLOCKS, CHUNK_BYTES } from "../base/limits.ts";
import { settlerOf } from "../map/map.ts";
import type { Log, Window } from "../platform/platform.ts";
import { Operation, OperationKind, type OperationOwner } from "../store/operation.ts";
import type { Discards } from "./discards.ts";
import { chunkList, compareStamps, isKnown, type LocalStore, Stamp } from "./local_store.ts";
import {
  getU64,
  type Head,
  MessageFlag,
  MessageType,
  STAMP_ENTRY_BYTES,
  Status,
} from "./messages.ts";
import { stampOfPair } from "./pairs.ts";
import type { PeerRequest, PeerRequestOwner, Peers } from "./peers.ts";
import type { Pace } from "./pace.ts";
import { ChunkPull, LiveBlocks, type PullHost } from "./pull.ts";
import { type JoiningHook, LiveWrite, type Puller, type Replica } from "./replica.ts";
import { type ClusterView, type DiskView, type GroupView, keyOf } from "./view.ts";

/** Chunks copied at a time. */
const PULLS_MAX = 6;
/** Groups whose lists are compared at a time. */
const LISTS_MAX = 16;
/** Chunks of this node's own store looked at in one go. */
const LIST_MAX = 1024;
/** Milliseconds without copying after a chunk could not be read, and after the source was busy. */
const FAILED_PAUSE_MS = 500, BUSY_PAUSE_MS = 20;
/** Milliseconds after which a report that changed nothing is made again. */
const REPORT_AGAIN_MS = 2000;

/**
 * Shortest and longest time for which groups that are complete wait for others, in milliseconds, so that one change of the map
 * is for many: each costs every node a sync.
 */
const GATHER_MS_MIN = 50, GATHER_MS_MAX = 1000;

/** Reports for consensus. */
export interface JoiningEvents {
  /**
   * This node holds everything that was acknowledged in these groups.
   *
   * @param pool its id
   * @param epoch of the map on which that rests
   */
  inSync(pool: number, groups: readonly number[], epoch: number): void;
  /** This node's replica of these groups has the highest of what every replica had. */
  settled(pool: number, groups: readonly number[]): void;
}

/** How far catching up is. */
export interface JoiningProgress {
  /** Groups that join or are being settled here. */
  readonly groups: number;
  /** Chunks known to be left, and those done, of these groups. */
  readonly chunksLeft: number;
  readonly chunksDone: number;
  /** Bytes copied since the start of the agent. */
  readonly copiedBytes: number;
  /** What stands in the way, in words; null when nothing does. */
  readonly stuck: string | null;
}

class ChunkState {
  isComplete = false;
  live: LiveBlocks | null = null;
  /** What it was complete with: that may be on its way into the store, which does not tell of it yet. */
  readonly upTo = new Stamp();
  /** The chunk's stamp before the first live write. */
  readonly base = new Stamp();
  pull: ChunkPull | null = null;
  /** The source's stamp of a pull that waits for live writes to reach it. */
  awaited: Stamp | null = null;
  /** Waits in its group's list. */
  isListed = false;
  /** Its content is not to be trusted, whatever its stamp was: it is copied whole. */
  mustPull = false;
  /** It is being copied on behalf of its disk's holder. */
  isAsked = false;
  highestAt = 0;
  readonly highest = new Stamp();
}

const enum Phase {
  Waiting,
  Listing,
  Pulling,
  Syncing,
  Reported,
}

/** A chunk that is being copied on behalf of its disk's holder. */
interface Asked {
  readonly pull: ChunkPull;
  /** Its group, as it was then. */
  readonly group: GroupView;
}

/** One group that joins, or is being settled. */
class GroupJob implements PeerRequestOwner {
  phase = Phase.Waiting;
  source = 0;
  request: PeerRequest | null = null;
  readonly chunks = new Map<number, Map<number, ChunkState>>();
  /** Stamps of the source's chunks in layers that are being absorbed, by layer and chunk. */
  readonly lower = new Map<number, Map<number, Stamp>>();
  /** Chunks to pull. */
  readonly todo: { layer: number; chunk: number }[] = [];
  pulling = 0;
  done = 0;
  /** Sources that did not answer with a list. */
  tries = 0;
  /** Settling: members still to be listed. */
  others: number[] = [];
  /** A source was asked for a newer epoch than it had, or could not be: again at the next tick. */
  mustRetry = false;
  stuck: string | null = null;
  /** Nothing is copied before: something could not be. */
  pauseUntilMs = 0;
  /** When it was reported. */
  reportedMs = 0;

  constructor(
    readonly owner: Joining,
    /** Id of its pool. */
    readonly pool: number,
    readonly group: number,
    /** Epoch since which this node is a member in this capacity. */
    readonly since: number,
    readonly isSettling: boolean,
  ) {}

  state(layer: number, chunk: number): ChunkState {
    let chunks = this.chunks.get(layer);
    if (chunks === undefined) this.chunks.set(layer, chunks = new Map());
    let state = chunks.get(chunk);
    if (state === undefined) chunks.set(chunk, state = new ChunkState());
    return state;
  }

  find(layer: number, chunk: number): ChunkState | undefined {
    return this.chunks.get(layer)?.get(chunk);
  }

  answered(
    request: PeerRequest,
    head: Head,
    _extra: Uint8Array,
    dataOffset: number,
    dataBytes: number,
  ): void {
    this.request = null;
    this.owner.listed(this, request.node, head, dataOffset, dataBytes);
  }
}

/** See the head of the file. */
export class Joining implements JoiningHook, Puller, PullHost, OperationOwner {
  readonly store: LocalStore;
  readonly peers: Peers;
  readonly window: Window;
  readonly arena: Arena;
  readonly #replica: Replica;
  readonly #log: Log;
  readonly #events: JoiningEvents;
  readonly #pace: Pace;
  #view: ClusterView | null = null;
  readonly #jobs = new Map<number, GroupJob>();
  /** Pulls asked for by the holder of a disk. */
  readonly #asked = new Map<number, Map<number, Asked>>();
  /** Those that have ended, of which something is still on its way into the store. */
  readonly #ending = new Set<ChunkPull>();
  #pulls = 0;
  #copiedBytes = 0;
  #nowMs = 0;
  readonly #waiting: { bytes: number; ready: () => void }[] = [];
  /** Reads that the source put off, until the next tick. */
  readonly #refused: (() => void)[] = [];
  readonly #sync: Operation = new Operation(this, 0);
  #syncing: GroupJob[] | null = null;
  /** When the last report was made; null: it is in the map. */
  #reportedMs: number | null = null;
  /** No further report before, unless it is the last. */
  #gatherUntilMs = -Infinity;
  readonly #stamp = new Stamp();
  /** Where the store lists chunks. */
  readonly #chunks = chunkList(LIST_MAX);
  readonly #arenaView: DataView;
  readonly #discards: Discards;
  constructor(options: {
    store: LocalStore;
    discards: Discards;
    peers: Peers;
    window: Window;
    arena: Arena;
    replica: Replica;
    log: Log;
    events: JoiningEvents;
    /** How fast data may come in; its time passes with {@linkcode Joining.tick}. */
    pace: Pace;
  }) {
    this.store = options.store;
    this.#discards = options.discards;
    this.peers = options.peers;
    this.window = options.window;
    this.arena = options.arena;
    this.#replica = options.replica;
    this.#log = options.log;
    this.#events = options.events;
    this.#pace = options.pace;
    this.#arenaView = new DataView(options.window.bytes.buffer);
    this.#sync.kind = OperationKind.Sync;
  }

  // -------------------------------------------------------------------------------------- groups

  /** The map has changed: jobs begin, end, and find other sources. */
  mapChanged(view: ClusterView): void {
    const before = this.#view;
    this.#view = view;
    const pairs = [...view.absorbed()].filter(([layer]) => before?.absorberOf(layer) === 0);
    const wanted = new Set<number>();
    this.#endAsked();
    for (const pool of view.pools()) {
      for (const group of pool) {
        const { entry } = group;
        const at = entry.joining.indexOf(view.self);
        const isSettler = settlerOf(view.map, entry) === view.self;
        if (at < 0 && !isSettler) continue;
        const key = keyOf(group.pool, group.group);
        wanted.add(key);
        const since = isSettler ? entry.changedEpoch : entry.joinedEpochs[at];
        const job = this.#jobs.get(key);
        if (job?.since === since && job.isSettling === isSettler) {
          this.#reconsider(job, group);
          if (pairs.length > 0) this.#pairUp(job, pairs);
          continue;
        }
        if (job !== undefined) this.#drop(job);
        this.#jobs.set(key, new GroupJob(this, group.pool, group.group, since, isSettler));
      }
    }
    for (const [key, job] of this.#jobs) {
      if (wanted.has(key)) continue;
      this.#drop(job);
      this.#jobs.delete(key);
    }
    this.#noteReported();
    this.#step();
  }

  /** Whether what was reported last is in the map now: then the next report waits for as long as that took. */
  #noteReported(): void {
    if (this.#reportedMs === null || this.#isReporting()) return;
    const tookMs = this.#nowMs - this.#reportedMs;
    this.#reportedMs = null;
    this.#gatherUntilMs = this.#nowMs +
      Math.min(GATHER_MS_MAX, Math.max(GATHER_MS_MIN, tookMs));
  }

  #isReporting(): boolean {
    for (const job of this.#jobs.values()) if (job.phase === Phase.Reported) return true;
    return false;
  }

  /** The source may have left, or a new lease may have made an end of what live writes were awaited. */
  #reconsider(job: GroupJob, group: GroupView): void {
    const view = this.#view!;
    for (const [layer, chunks] of job.chunks) {
      const disk = this.#diskOf(job, layer);
      for (const [chunk, state] of chunks) {
        if (disk === undefined) {
          this.#endPull(job, state);
          continue;
        }
        if (state.isComplete) continue;
        const { live, awaited } = state;
        const isLeftOver = live !== null && isKnown(live.last) && isOver(view, disk, live.last);
        const isVain = awaited !== null && !isComing(view, disk, awaited);
        if (!isLeftOver && !isVain) continue;
        this.#endPull(job, state);
        state.awaited = null;
        state.live = null;
        state.mustPull = true;
        this.#enqueue(job, layer, chunk, state);
      }
      if (disk === undefined) job.chunks.delete(layer);
    }
    // One that has crashed with unsynced writes may have given what is older than what was acknowledged.
    const isSourceUnclean = group.entry.unclean.includes(job.source);
    const isSourceGone = !job.isSettling && job.source !== 0 &&
      (!group.entry.inSync.includes(job.source) || isSourceUnclean);
    if (!isSourceGone || job.phase === Phase.Reported) return;
    if (job.request !== null) this.peers.cancel(job.request);
    job.request = null;
    this.#abortPulls(job);
    if (isSourceUnclean) this.#distrust(job);
    job.source = 0;
    if (job.phase !== Phase.Syncing || isSourceUnclean) job.phase = Phase.Waiting;
  }

  /**
   * Layers have become pairs. What is complete of them by itself is right: it was copied before the source knew. The rest is compared
   * and copied as a pair.
   */
  #pairUp(job: GroupJob, pairs: readonly (readonly [layer: number, into: number])[]): void {
    if (job.phase === Phase.Reported) return;
    for (const [layer, into] of pairs) {
      for (const [chunk, state] of job.chunks.get(into) ?? []) {
        if (state.pull === null) continue;
        this.#endPull(job, state);
        this.#enqueue(job, into, chunk, state);
      }
      for (const [chunk, state] of job.chunks.get(layer) ?? []) {
        this.#endPull(job, state);
        // Settling does not look at what is being absorbed, and has compared the other layer with all who have it.
        if (!state.isComplete && !job.isSettling) this.#mustPull(job, into, chunk);
      }
      job.chunks.delete(layer);
    }
    const isPaired = (layer: number) => pairs.some(([each]) => each === layer);
    const todo = job.todo.filter(({ layer }) => !isPaired(layer));
    job.todo.length = 0;
    job.todo.push(...todo);
    if (job.isSettling || job.phase === Phase.Waiting) return;
    if (job.request !== null) this.peers.cancel(job.request);
    job.request = null;
    job.phase = Phase.Waiting;
    job.source = 0;
  }

  /** A chunk is copied, whatever was known of it. */
  #mustPull(job: GroupJob, layer: number, chunk: number): void {
    const state = job.state(layer, chunk);
    if (state.isComplete) job.done--;
    state.isComplete = false;
    state.awaited = null;
    state.mustPull = true;
    this.#enqueue(job, layer, chunk, state);
  }

  /** The disk of a layer; undefined where it is gone, or has left the job's pool. */
  #diskOf(job: GroupJob, layer: number): DiskView | undefined {
    const disk = this.#view!.diskOfLayer(layer);
    return disk?.pool === job.pool ? disk : undefined;
  }

  /** Nothing that was copied or compared counts: all of it is looked at again, against another source. */
  #distrust(job: GroupJob): void {
    for (const [layer, chunks] of job.chunks) {
      for (const [chunk, state] of chunks) {
        state.isComplete = false;
        state.awaited = null;
        state.mustPull = true;
        this.#enqueue(job, layer, chunk, state);
      }
    }
    job.done = 0;
  }

  #abortPulls(job: GroupJob): void {
    for (const [layer, chunks] of job.chunks) {
      for (const [chunk, state] of chunks) {
        if (state.pull === null) continue;
        this.#endPull(job, state);
        this.#enqueue(job, layer, chunk, state);
      }
    }
  }

  #endPull(job: GroupJob, state: ChunkState): void {
    if (state.pull === null) return;
    state.pull.abort();
    state.pull = null;
    job.pulling--;
    this.#pulls--;
  }

  #enqueue(job: GroupJob, layer: number, chunk: number, state: ChunkState): void {
    if (state.isListed || state.pull !== null || state.isAsked) return;
    state.isListed = true;
    job.todo.push({ layer, chunk });
    this.#goOn(job);
  }

  /** There is more to do where nothing was left: a sync that is under way does not cover it. */
  #goOn(job: GroupJob): void {
    if (job.phase !== Phase.Syncing && job.phase !== Phase.Reported) return;
    // The group of a job that is about to end may be there no more.
    const { inSync = [], unclean = [] } = this.#view!.pool(job.pool)[job.group]?.entry ?? {};
    const hasSource = inSync.includes(job.source) && !unclean.includes(job.source);
    // The source may have left when there was nothing more to copy from it: another one is compared with.
    if (!job.isSettling && !hasSource) job.source = 0;
    job.phase = job.isSettling || hasSource ? Phase.Pulling : Phase.Waiting;
    if (this.#syncing !== null) this.#syncing = this.#syncing.filter((each) => each !== job);
  }

  #drop(job: GroupJob): void {
    if (job.request !== null) this.peers.cancel(job.request);
    job.request = null;
    for (const [layer, chunks] of job.chunks) {
      for (const [chunk, state] of chunks) {
        this.#endPull(job, state);
        // Its end would be noted in a job that is over.
        if (state.isAsked) this.#giveUpAsked(layer, chunk);
      }
    }
    job.chunks.clear();
    job.todo.length = 0;
  }

  /** How far it is. */
  get progress(): JoiningProgress {
    let chunksLeft = 0;
    let chunksDone = 0;
    let stuck: string | null = null;
    for (const job of this.#jobs.values()) {
      chunksLeft += job.todo.length + job.pulling;
      chunksDone += job.done;
      stuck ??= job.stuck;
    }
    const groups = this.#jobs.size;
    return { groups, chunksLeft, chunksDone, copiedBytes: this.#copiedBytes, stuck };
  }

  /** Starts what there is room for. */
  #step(): void {
    const view = this.#view;
    if (view === null || this.#jobs.size === 0) return;
    let listing = 0;
    const jobs: GroupJob[] = [];
    for (const job of this.#jobs.values()) {
      if (job.phase === Phase.Listing) listing++;
      else if (job.phase === Phase.Waiting || job.phase === Phase.Pulling) jobs.push(job);
    }
    if (jobs.length > 1) {
      const copiesOf = (job: GroupJob) => view.pool(job.pool)[job.group]?.entry.inSync.length ?? 0;
      jobs.sort((a, b) => copiesOf(a) - copiesOf(b));
    }
    for (const job of jobs) {
      if (job.phase === Phase.Waiting && listing < LISTS_MAX) {
        if (this.#beginListing(job)) listing++;
      }
      if (job.phase !== Phase.Pulling || this.#nowMs < job.pauseUntilMs) continue;
      // As many as there are now: what comes back at once waits for the next step.
      for (let count = job.todo.length; count > 0 && this.#pulls < PULLS_MAX; count--) {
        this.#beginPull(job);
      }
      if (job.todo.length === 0 && job.pulling === 0 && !this.#isAwaiting(job)) {
        job.phase = Phase.Syncing;
      }
    }
    this.#startSync();
  }

  /** Whether a chunk is not complete though it is not for this job to copy it: live writes, or the holder's copy, are to come. */
  #isAwaiting(job: GroupJob): boolean {
    for (const chunks of job.chunks.values()) {
      for (const state of chunks.values()) if (state.awaited !== null || state.isAsked) return true;
    }
    return false;
  }

  // --------------------------------------------------------------------------------------- lists

  #beginListing(job: GroupJob): boolean {
    const view = this.#view!;
    // What chunks of it say here will not be true any more in a moment.
    if (this.#discards.isBusyWith(view, job.group)) return false;
    const loss = job.isSettling ? this.store.paths?.lossOf(job.group) ?? null : null;
    if (loss !== null) {
      // What is lost is not empty: whoever settled now would make it so for everyone.
      job.stuck = `the only copy of placement group ${job.group} is on ${loss}`;
      return false;
    }
    const group = view.pool(job.pool)[job.group];
    const isUp = (node: number) => node !== view.self && view.node(node)?.state === "up";
    if (job.isSettling) {
      job.others = group.entry.inSync.filter(isUp);
      for (const chunks of job.chunks.values()) {
        for (const state of chunks.values()) state.highest.set(0, 0);
      }
      job.phase = Phase.Listing;
      this.#listNextMember(job);
      return true;
    }
    const sources = group.entry.inSync.filter(isUp);
    if (sources.length === 0 || !group.isOpen) {
      job.stuck = "no replica to copy from is up";
      return false;
    }
    job.stuck = null;
    job.source = sources[(job.group + job.tries) % sources.length];
    for (const chunks of job.chunks.values()) {
      for (const state of chunks.values()) state.highestAt = 0;
    }
    job.lower.clear();
    job.phase = Phase.Listing;
    this.#list(job, job.source, 0, 0);
    return true;
  }

  #listNextMember(job: GroupJob): void {
    const node = job.others.pop();
    if (node !== undefined) return this.#list(job, node, 0, 0);
    for (const [layer, chunks] of job.chunks) {
      for (const [chunk, state] of chunks) {
        this.store.stampOf(layer, chunk, this.#stamp);
        if (compareStamps(state.highest, this.#stamp) > 0) {
          this.#enqueue(job, layer, chunk, state);
        }
      }
    }
    job.phase = Phase.Pulling;
  }

  #list(job: GroupJob, node: number, layer: number, chunk: number): void {
    const request = this.peers.take(MessageType.List, job);
    if (request === null) {
      job.mustRetry = true;
      return;
    }
    const { head } = request;
    head.flags = MessageFlag.Recovery;
    head.pool = job.pool;
    head.group = job.group;
    head.layer = layer;
    head.chunk = chunk;
    job.request = request;
    this.peers.submit(node, request);
  }

  /** From {@linkcode GroupJob}: a part of a list. */
  listed(
    job: GroupJob,
    node: number,
    head: Head,
    dataOffset: number,
    dataBytes: number,
  ): void {
    const count = head.argument;
    if (head.status !== Status.Ok || count * STAMP_ENTRY_BYTES > dataBytes) {
      if (dataBytes > 0) this.arena.release(dataOffset, dataBytes);
      // The map that says why is on its way, or it is a passing fault; the next time another one is asked.
      job.phase = Phase.Waiting;
      job.source = 0;
      job.tries++;
      return;
    }
    const view = this.#arenaView;
    for (let i = 0; i < count; i++) {
      const at = dataOffset + i * STAMP_ENTRY_BYTES;
      const layer = view.getUint32(at, true);
      const chunk = view.getUint32(at + 4, true);
      const sequence = getU64(view, at + 16);
      if (!this.#isOf(job, layer, chunk) || sequence < 0) continue;
      this.#compare(job, node, layer, chunk, view.getUint32(at + 8, true), sequence);
    }
    if (dataBytes > 0) this.arena.release(dataOffset, dataBytes);
    if ((head.flags & MessageFlag.More) !== 0) this.#list(job, node, head.layer, head.chunk);
    else if (job.isSettling) this.#listNextMember(job);
    else this.#listIsComplete(job);
    this.#step();
  }

  /** Whether a peer's entry can be right. */
  #isOf(job: GroupJob, layer: number, chunk: number): boolean {
    const view = this.#view!;
    const disk = view.diskOfLayer(layer);
    return disk !== undefined && disk.pool === job.pool &&
      this.store.hasLayer(layer) && chunk * CHUNK_BYTES < 2 ** 53 &&
      view.groupOf(disk, chunk).group === job.group;
  }

  #compare(
    job: GroupJob,
    node: number,
    layer: number,
    chunk: number,
    generation: number,
    sequence: number,
  ): void {
    const into = this.#view!.absorberOf(layer);
    if (into !== 0) return this.#compareLower(job, layer, into, chunk, generation, sequence);
    const state = job.state(layer, chunk);
    state.highestAt = state.highestAt === 0 ? node : state.highestAt;
    if (job.isSettling) {
      if (compareStamps({ generation, sequence }, state.highest) > 0) {
        state.highest.set(generation, sequence);
        state.highestAt = node;
      }
      return;
    }
    const isInHand = state.pull !== null || state.awaited !== null || state.isAsked;
    if (state.isComplete || isInHand) return;
    const own = this.#stamp;
    const together = this.#view!.together(layer);
    if (state.live === null) stampOfPair(this.store, together, chunk, own);
    else own.set(state.base.generation, state.base.sequence);
    const isEqual = !state.mustPull && isKnown(own) && own.generation === generation &&
      own.sequence === sequence;
    if (!isEqual) return this.#enqueue(job, layer, chunk, state);
    this.#complete(job, layer, chunk, state, own);
  }

  /**
   * The source's chunk of a layer that is being absorbed. All who are in sync have the same there, or had it before they merged it:
   * a replica that crashed has it as well, so settling needs no look at it.
   */
  #compareLower(
    job: GroupJob,
    layer: number,
    into: number,
    chunk: number,
    generation: number,
    sequence: number,
  ): void {
    if (job.isSettling) return;
    let stamps = job.lower.get(layer);
    if (stamps === undefined) job.lower.set(layer, stamps = new Map());
    const stamp = new Stamp();
    stamp.set(generation, sequence);
    stamps.set(chunk, stamp);
    if (!this.#isLowerSame(job, layer, chunk)) this.#mustPull(job, into, chunk);
  }

  /** Whether this node's chunk of a layer that is being absorbed is the source's. An unknown stamp equals nothing, another one included. */
  #isLowerSame(job: GroupJob, layer: number, chunk: number): boolean {
    const stamp = job.lower.get(layer)?.get(chunk);
    this.store.stampOf(layer, chunk, this.#stamp);
    return stamp !== undefined && isKnown(stamp) && compareStamps(stamp, this.#stamp) === 0;
  }

  /** Both layers of a pair are in the first one now: the second keeps nothing but the source's stamp. */
  #emptyLower(job: GroupJob, into: number, chunk: number): void {
    const layer = this.#view!.absorbedInto(into);
    if (layer === 0 || !this.store.hasLayer(layer)) return;
    if (job.isSettling || this.#isLowerSame(job, layer, chunk)) return;
    const stamp = job.lower.get(layer)?.get(chunk);
    const operation = new Operation(this, 0);
    operation.kind = OperationKind.Free;
    operation.layers = [layer];
    operation.chunk = chunk;
    operation.blockCount = CHUNK_BLOCKS;
    operation.generation = stamp?.generation ?? 0;
    operation.sequence = stamp?.sequence ?? 0;
    operation.stampUnknown = stamp === undefined || !isKnown(stamp);
    this.store.submit(operation);
  }

  /** {@inheritDoc PullHost.pairOf} */
  pairOf(layer: number): readonly number[] {
    return this.#view!.pair(layer);
  }

  /** {@inheritDoc PullHost.isFlattened} */
  isFlattened(layer: number): boolean {
    return this.#view!.isFlattened(layer);
  }

  /** What the source does not have is left over from before, unless it came live. */
  #listIsComplete(job: GroupJob): void {
    const view = this.#view!;
    const list = this.#chunks;
    for (const [layer, disk] of view.layersOf(job.pool)) {
      if (!this.store.hasLayer(layer)) continue;
      const first = view.firstChunk(disk, job.group);
      let from = 0;
      do {
        this.store.listChunks(layer, from, list, disk.groups.length, first);
        from = list.next;
        for (let i = 0; i < list.count; i++) {
          const chunk = list.chunks[i];
          const into = view.absorberOf(layer);
          if (into !== 0) {
            // Those that the source has were compared.
            if (job.lower.get(layer)?.has(chunk) !== true) this.#mustPull(job, into, chunk);
            continue;
          }
          // What this node has merged already and the source has not.
          const absorbed = view.absorbedInto(layer);
          if (absorbed !== 0 && job.find(layer, chunk) === undefined) {
            const isMerged = this.#isLowerSame(job, absorbed, chunk) &&
              list.generations[i] === this.#stamp.generation &&
              list.sequences[i] === this.#stamp.sequence;
            if (isMerged) continue;
          }
          // What this node has copied into it already and the source has not.
          if (view.isFlattened(layer) && job.find(layer, chunk) === undefined) {
            stampOfPair(this.store, view.chain(layer).slice(1), chunk, this.#stamp);
            const isCopied = isKnown(this.#stamp) &&
              list.generations[i] === this.#stamp.generation &&
              list.sequences[i] === this.#stamp.sequence;
            if (isCopied) continue;
          }
          const state = job.find(layer, chunk);
          if (state !== undefined && (state.highestAt !== 0 || state.isComplete)) continue;
          // It is copied like any other: the source describes it as empty.
          this.#enqueue(job, layer, chunk, state ?? job.state(layer, chunk));
        }
      } while (from >= 0);
    }
    // What came live meanwhile may still be on its way into the store, and its chunk not listed.
    for (const [layer, chunks] of job.chunks) {
      for (const [chunk, state] of chunks) {
        const isInHand = state.isComplete || state.awaited !== null;
        if (!isInHand && state.highestAt === 0) this.#enqueue(job, layer, chunk, state);
      }
    }
    job.phase = Phase.Pulling;
  }

  // --------------------------------------------------------------------------------------- pulls

  #beginPull(job: GroupJob): void {
    const { layer, chunk } = job.todo.shift()!;
    const disk = this.#diskOf(job, layer);
    if (disk === undefined) return;
    const state = job.state(layer, chunk);
    state.isListed = false;
    if (state.isComplete || state.pull !== null || state.isAsked) return;
    const from = job.isSettling ? state.highestAt : job.source;
    if (!job.isSettling) state.live ??= new LiveBlocks();
    if (job.isSettling) this.#replica.rewriting(layer, chunk);
    else this.#replica.replacing(layer, chunk);
    const pull = new ChunkPull(
      this,
      disk,
      layer,
      chunk,
      from,
      state.live,
      (status) => this.#pulled(job, layer, chunk, state, pull, status),
    );
    state.pull = pull;
    job.pulling++;
    this.#pulls++;
    pull.begin();
  }

  #pulled(
    job: GroupJob,
    layer: number,
    chunk: number,
    state: ChunkState,
    pull: ChunkPull,
    status: number,
  ): void {
    if (state.pull !== pull) return;
    state.pull = null;
    job.pulling--;
    this.#pulls--;
    if (status !== 0) {
      if (status < 0) {
        job.stuck = `chunk ${chunk} of layer ${layer} cannot be copied from node ${pull.from} ` +
          `(errno ${-status})`;
        this.#log.warn("a chunk could not be copied; trying again", {
          layer,
          chunk,
          from: pull.from,
          errno: -status,
        });
        this.#otherSource(job);
      }
      this.#enqueue(job, layer, chunk, state);
      job.pauseUntilMs = this.#nowMs + (status < 0 ? FAILED_PAUSE_MS : BUSY_PAUSE_MS);
      return;
    }
    job.stuck = null;
    const { live } = state;
    // What was copied may hold part of what the source got meanwhile: complete once that has come here, too.
    const isBehind = live === null || compareStamps(live.last, pull.end) < 0;
    const isMoved = compareStamps(pull.start, pull.end) !== 0;
    const isAwaited = isBehind && !job.isSettling &&
      (isMoved || (live !== null && isKnown(live.last)));
    const disk = isAwaited ? this.#diskOf(job, layer) : undefined;
    if (!isAwaited) this.#complete(job, layer, chunk, state, pull.start);
    else if (disk !== undefined && isComing(this.#view!, disk, pull.end)) {
      state.awaited = new Stamp();
      state.awaited.set(pull.end.generation, pull.end.sequence);
    } else {
      state.live = null;
      state.mustPull = true;
      this.#enqueue(job, layer, chunk, state);
    }
    this.#step();
  }

  #otherSource(job: GroupJob): void {
    if (job.isSettling) return;
    const view = this.#view!;
    const { inSync } = view.pool(job.pool)[job.group].entry;
    const sources = inSync.filter((node) => node !== view.self && view.node(node)?.state === "up");
    if (sources.length < 2) return;
    job.source = sources[(sources.indexOf(job.source) + 1) % sources.length];
  }

  /** The chunk holds everything: its stamp is that of the source, or of the last live write after it. */
  #complete(
    job: GroupJob,
    layer: number,
    chunk: number,
    state: ChunkState,
    stamp: Stamp,
  ): void {
    const { live } = state;
    const isLiveLater = live !== null && compareStamps(live.last, stamp) > 0;
    const { generation, sequence } = isLiveLater ? live.last : stamp;
    this.store.stampOf(layer, chunk, this.#stampNow);
    // A live write that makes it unknown may be on its way into the store.
    const isSame = live === null && isKnown(this.#stampNow) &&
      this.#stampNow.generation === generation &&
      this.#stampNow.sequence === sequence;
    if (!isSame) this.#setStamp(layer, chunk, generation, sequence);
    if (state.mustPull) this.#emptyLower(job, layer, chunk);
    this.#endPull(job, state);
    state.isComplete = true;
    state.upTo.set(generation, sequence);
    state.awaited = null;
    state.live = null;
    state.mustPull = false;
    job.done++;
  }
  readonly #stampNow = new Stamp();

  #setStamp(layer: number, chunk: number, generation: number, sequence: number): void {
    const operation = new Operation(this, 0);
    operation.kind = OperationKind.Stamp;
    operation.layers = [layer];
    operation.chunk = chunk;
    operation.blockCount = 1;
    operation.generation = generation;
    operation.sequence = sequence;
    operation.stampUnknown = generation === 0;
    this.store.submit(operation);
  }

  // ---------------------------------------------------------------------------------- live writes

  /** {@inheritDoc JoiningHook.isJoining} */
  isJoining(group: GroupView): boolean {
    const job = this.#jobs.get(keyOf(group.pool, group.group));
    return job !== undefined && !job.isSettling;
  }

  /** {@inheritDoc JoiningHook.isComplete} */
  isComplete(group: GroupView, layer: number, chunk: number): boolean {
    const job = this.#jobs.get(keyOf(group.pool, group.group));
    return job?.find(layer, chunk)?.isComplete === true;
  }

  /** {@inheritDoc JoiningHook.isReplacing} */
  isReplacing(group: GroupView, layer: number, chunk: number): boolean {
    const job = this.#jobs.get(keyOf(group.pool, group.group));
    const pull = job?.find(layer, chunk)?.pull ?? null;
    return pull !== null || this.#asked.get(layer)?.has(chunk) === true;
  }

  /** {@inheritDoc JoiningHook.liveWrite} */
  liveWrite(group: GroupView, operation: Operation): LiveWrite {
    const job = this.#jobs.get(keyOf(group.pool, group.group))!;
    const layer = operation.layers[0];
    const { chunk } = operation;
    const isNew = job.phase >= Phase.Pulling && job.find(layer, chunk) === undefined;
    const state = job.state(layer, chunk);
    if (isNew) state.isComplete = true;
    // The holder has begun anew, without this copy, and opened the disk: it may be older than what has been written since.
    if (state.isAsked) this.#giveUpAsked(layer, chunk);
    if (state.isComplete) {
      this.store.stampOf(layer, chunk, this.#stamp);
      const isOld = compareStamps(operation, this.#stamp) <= 0 ||
        compareStamps(operation, state.upTo) <= 0;
      return isOld ? LiveWrite.Skip : LiveWrite.Apply;
    }
    const isFirst = state.live === null || !isKnown(state.live.last);
    state.live ??= new LiveBlocks();
    if (isFirst && this.#discards.isBusyWith(this.#view!, job.group)) state.base.set(0, 0);
    else if (isFirst && state.pull === null) {
      stampOfPair(this.store, this.#view!.together(layer), chunk, state.base);
    }
    // One that came here before it joined again, and that later ones have overwritten: what is here is not what it was any more, and
    // must not be taken for it, though its stamp is the source's.
    if (isFirst && isKnown(state.base) && compareStamps(operation, state.base) <= 0) {
      state.mustPull = true;
    }
    const { live } = state;
    if (compareStamps(operation, live.last) <= 0) return LiveWrite.Skip;
    live.add(operation.block, operation.blockCount, operation.generation, operation.sequence);
    if (state.awaited !== null && compareStamps(live.last, state.awaited) >= 0) {
      // This very write completes the chunk, and carries the stamp.
      state.isComplete = true;
      state.upTo.set(operation.generation, operation.sequence);
      state.awaited = null;
      state.live = null;
      job.done++;
      return LiveWrite.Apply;
    }
    return LiveWrite.ApplyUnknown;
  }

  // ------------------------------------------------------------------- on behalf of a disk's holder

  /** {@inheritDoc Puller.pullFor} */
  pullFor(
    disk: DiskView,
    group: GroupView,
    layer: number,
    chunk: number,
    from: number,
    done: (status: number) => void,
  ): void {
    this.#giveUpAsked(layer, chunk);
    const job = this.#jobs.get(keyOf(group.pool, group.group));
    const state = job !== undefined && !job.isSettling ? job.state(layer, chunk) : null;
    if (state !== null) {
      this.#endPull(job!, state);
      if (state.isComplete) job!.done--;
      state.isComplete = false;
      state.isAsked = true;
      state.awaited = null;
      // Nobody writes to the disk while its holder brings it in line.
      state.live = null;
      this.#goOn(job!);
    }
    this.#replica.rewriting(layer, chunk);
    const pull = new ChunkPull(this, disk, layer, chunk, from, null, (status) => {
      if (this.#asked.get(layer)?.get(chunk)?.pull === pull) this.#asked.get(layer)!.delete(chunk);
      this.#replica.rewriting(layer, chunk);
      if (state !== null) state.isAsked = false;
      if (status === 0) {
        const isHalf = state !== null && this.#view!.absorbedInto(layer) !== 0;
        if (isHalf) this.#mustPull(job!, layer, chunk);
        else if (state !== null) this.#complete(job!, layer, chunk, state, pull.start);
        else this.#setStamp(layer, chunk, pull.start.generation, pull.start.sequence);
      } else if (state !== null) this.#mustPull(job!, layer, chunk);
      done(status);
      if (status === 0) this.#step();
    });
    let chunks = this.#asked.get(layer);
    if (chunks === undefined) this.#asked.set(layer, chunks = new Map());
    chunks.set(chunk, { pull, group });
    pull.begin();
  }

  /** Ends what is copied for holders who have begun anew, or are none any more, or from who does not answer: nobody else would. */
  #endAsked(): void {
    const view = this.#view!;
    for (const [layer, chunks] of this.#asked) {
      const disk = view.diskOfLayer(layer);
      for (const [chunk, { pull, group }] of chunks) {
        const now = disk && view.groupOf(disk, chunk);
        const isSame = now !== undefined && now.pool === group.pool && now.group === group.group &&
          now.entry.changedEpoch === group.entry.changedEpoch;
        const isLease = disk?.entry.generation === pull.disk.entry.generation;
        const isUp = view.node(pull.from)?.state === "up";
        if (!isSame || !isLease || !isUp) this.#giveUpAsked(layer, chunk);
      }
      if (chunks.size === 0) this.#asked.delete(layer);
    }
  }

  /** Ends what is copied of a chunk on behalf of its disk's holder, if anything is, and says so. */
  #giveUpAsked(layer: number, chunk: number): void {
    const chunks = this.#asked.get(layer);
    const asked = chunks?.get(chunk);
    if (asked === undefined) return;
    const { pull } = asked;
    chunks!.delete(chunk);
    pull.abort();
    if (!pull.isStill) {
      this.#ending.add(pull);
      this.store.withdraw(({ owner }) => owner === pull);
    }
    pull.done(Status.Busy);
  }

  // ---------------------------------------------------------------------------------------- pace

  /** {@inheritDoc PullHost.mayRead} */
  mayRead(bytes: number, ready: () => void): boolean {
    if (this.#waiting.length === 0 && this.#pace.take(bytes)) return true;
    this.#waiting.push({ bytes, ready });
    return false;
  }

  /** {@inheritDoc PullHost.later} */
  later(again: () => void): void {
    this.#refused.push(again);
  }

  /** {@inheritDoc PullHost.ended} */
  ended(pull: ChunkPull): void {
    if (this.#ending.delete(pull)) this.#replica.rewriting(pull.layer, pull.chunk);
  }

  /** {@inheritDoc JoiningHook.isEnding} */
  isEnding(layer: number): boolean {
    for (const pull of this.#ending) if (pull.layer === layer) return true;
    return false;
  }

  /** {@inheritDoc PullHost.copied} */
  copied(bytes: number): void {
    this.#copiedBytes += bytes;
  }

  /** Time passes; several times a second while anything joins. */
  tick(nowMs: number): void {
    this.#nowMs = nowMs;
    this.#pace.advance(nowMs);
    while (this.#waiting.length > 0 && this.#pace.take(this.#waiting[0].bytes)) {
      this.#waiting.shift()!.ready();
    }
    for (const again of this.#refused.splice(0)) again();
    for (const job of this.#jobs.values()) {
      // A report may be lost on its way to consensus.
      const isLate = job.phase === Phase.Reported && nowMs - job.reportedMs >= REPORT_AGAIN_MS;
      if (isLate) job.phase = Phase.Syncing;
      if (!job.mustRetry) continue;
      job.mustRetry = false;
      if (job.phase === Phase.Listing && job.request === null) job.phase = Phase.Waiting;
    }
    this.#step();
  }

  /** True while anything joins: then time has to pass often. */
  get isBusy(): boolean {
    return this.#jobs.size > 0 || this.#pulls > 0 || this.#waiting.length > 0 ||
      this.#refused.length > 0;
  }

  // ---------------------------------------------------------------------------------------- sync

  #startSync(): void {
    if (this.#syncing !== null) return;
    const jobs: GroupJob[] = [];
    let others = 0;
    for (const job of this.#jobs.values()) {
      if (job.phase === Phase.Syncing) jobs.push(job);
      else if (job.phase !== Phase.Reported) others++;
    }
    if (jobs.length === 0) return;
    // The last ones go at once.
    if (others > 0 && (this.#isReporting() || this.#nowMs < this.#gatherUntilMs)) return;
    this.#syncing = jobs;
    this.store.submit(this.#sync);
  }

  /** {@inheritDoc OperationOwner.operationDone} */
  operationDone(operation: Operation): void {
    if (operation !== this.#sync) return;
    const jobs = this.#syncing!;
    this.#syncing = null;
    if (operation.result !== 0) return;
    const reports = new Map<string, { job: GroupJob; groups: number[] }>();
    for (const job of jobs) {
      // Something may have come up while the disk worked.
      const isCurrent = this.#jobs.get(keyOf(job.pool, job.group)) === job;
      if (!isCurrent || job.phase !== Phase.Syncing || job.todo.length > 0) continue;
      job.phase = Phase.Reported;
      job.reportedMs = this.#nowMs;
      this.#reportedMs = this.#nowMs;
      const key = `${job.isSettling} ${job.pool}`;
      const report = reports.get(key);
      if (report === undefined) reports.set(key, { job, groups: [job.group] });
      else report.groups.push(job.group);
    }
    for (const { job, groups } of reports.values()) {
      if (job.isSettling) this.#events.settled(job.pool, groups);
      else this.#events.inSync(job.pool, groups, this.#view!.epoch);
    }
    this.#startSync();
  }
}

/** Whether the run that wrote with this stamp cannot write any more: its lease has been given back, or taken. What it left here may be nowhere else. */
function isOver(view: ClusterView, { entry }: DiskView, { generation }: Stamp): boolean {
  const { lease } = entry;
  return generation < entry.generation || lease === null ||
    view.node(lease.node)?.incarnation !== lease.incarnation;
}

/** Whether a write with this stamp is still to be expected here, as one that was accepted elsewhere. */
function isComing(view: ClusterView, disk: DiskView, stamp: Stamp): boolean {
  return isKnown(stamp) && !isOver(view, disk, stamp) &&
    view.node(disk.holder)?.state === "up";
}
