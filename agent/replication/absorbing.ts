/**
 * What a node does about layers that nobody needs any more: it merges each into its only child, chunk by chunk, in its own
 * store, and says so when all of it is durable (`map/layers.ts` says what the map makes of that).
 *
 *     map: L is absorbed by K ─▶ every chunk of L, as far as this node is in sync ─▶ sync ─▶ "absorbed" ─▶ map: L is gone
 *
 * No node waits for another: what a pair (K, L) holds together is the same before, while and after, and wherever replicas are
 * compared or copied the two count as one (`pairs.ts`).
 *
 * Invariants:
 * - Only what is known to be right is merged: the chunks of groups in which this node is in sync and nobody has crashed with unsynced
 *   writes. Where it joins, it waits until it is in sync, or gone from there.
 * - A chunk of K that is being replaced by another node's copy is not merged into, but looked at again later. What is copied may have been
 *   described before there was a pair, and whatever is not in it is freed: that would be L's blocks. And a chunk that had nothing yet would
 *   get L's stamp with them, and be taken for whole while half of it is copied.
 * - Where it is no member, what it has may be of any age: L's chunks are forgotten, and all of K's there lose their stamps. After
 *   L has gone from the map nothing else would tell them from what the others have under the same stamps. Should it become one
 *   meanwhile, that is done before anything is compared there (`discards.ts`).
 * - While a data path of this node is lost that has chunks of the disk, nothing is said: what is on it is not listed, and not merged, and
 *   it may come back as it was, or be the only copy. The map would forget L, and the node delete it, with all that it has there.
 *   The same holds while a group in which it is in sync is not open.
 * - "Absorbed" is said after a sync that covers all of it, and only if this node's place in every group of the pool has stayed what it was
 *   since the chunks were looked at; otherwise it begins again.
 *
 * Pace: {@linkcode UNDER_WAY_MAX} chunks at a time and per tick: an entry of the log and some work on the index each.
 *
 * @module
 */
import type { Discards } from "./discards.ts";
import { chunkList, type LocalStore, Stamp } from "./local_store.ts";
import { Operation, OperationKind, type OperationOwner } from "../store/operation.ts";
import type { JoiningHook } from "./replica.ts";
import type { ClusterView, DiskView, GroupView } from "./view.ts";

/** Chunks being absorbed, forgotten or marked at a time. */
const UNDER_WAY_MAX = 32;
/** Milliseconds after which it is said again that a layer is absorbed, and after which one that could not be is looked at again. */
const AGAIN_MS = 1000;

/** What remains to be done about one layer. */
const enum Phase {
  /** Looking at L's chunks. */
  Absorbing,
  /** Looking at K's chunks in groups that are none of this node's business. */
  Marking,
  Syncing,
  /** Done: said again until the map has it. */
  Told,
  /** Something was in the way: again in a while. */
  Waiting,
}

class Job {
  phase = Phase.Absorbing;
  /** Where the list goes on. */
  from = 0;
  underWay = 0;
  isFailed = false;
  /** A group that is joined was met, or a chunk that is being replaced. */
  isIncomplete = false;
  /** What this node was in each group when it began. */
  places = "";
  /** Nothing is done before, or it is said again then. */
  nextMs = -Infinity;
  constructor(readonly layer: number, readonly into: number) {}
}

/** See the head of the file. */
export class Absorbing implements OperationOwner {
  /** Chunks absorbed since the start. */
  chunks = 0;
  readonly #store: LocalStore;
  readonly #discards: Discards;
  readonly #joining: JoiningHook;
  readonly #absorbed: (layers: readonly number[]) => void;
  #view: ClusterView | null = null;
  readonly #jobs = new Map<number, Job>();
  readonly #list = chunkList(UNDER_WAY_MAX);
  readonly #jobOf = new Map<Operation, Job>();
  readonly #stamp = new Stamp();

  /** @param options.absorbed these layers are absorbed here, durably: for the map, until it says so */
  constructor(options: {
    store: LocalStore;
    discards: Discards;
    joining: JoiningHook;
    absorbed: (layers: readonly number[]) => void;
  }) {
    this.#store = options.store;
    this.#discards = options.discards;
    this.#joining = options.joining;
    this.#absorbed = options.absorbed;
  }

  /** Layers that this node has still to absorb. */
  get layersLeft(): number {
    let left = 0;
    for (const job of this.#jobs.values()) if (job.phase !== Phase.Told) left++;
    return left;
  }

  /** True while time should pass often. */
  get isBusy(): boolean {
    for (const { phase } of this.#jobs.values()) {
      if (phase !== Phase.Told && phase !== Phase.Waiting) return true;
    }
    return false;
  }

  /** The map has changed. */
  mapChanged(view: ClusterView): void {
    const isSame = this.#view?.map.layers === view.map.layers;
    this.#view = view;
    if (isSame) return;
    const absorbed = view.absorbed();
    for (const { id, absorbedBy } of view.map.layers) {
      const isDone = absorbedBy === null || absorbedBy.includes(view.self);
      const job = this.#jobs.get(id);
      if (isDone) this.#jobs.delete(id);
      else if (job === undefined) this.#jobs.set(id, new Job(id, absorbed.get(id)!));
    }
    for (const id of this.#jobs.keys()) if (!absorbed.has(id)) this.#jobs.delete(id);
  }

  /** Time passes. */
  tick(nowMs: number): void {
    const view = this.#view;
    if (view === null || this.#jobs.size === 0) return;
    const isWitness = view.node(view.self)?.witness !== false;
    if (isWitness) return;
    let room = UNDER_WAY_MAX - this.#jobOf.size;
    const told: number[] = [];
    for (const job of this.#jobs.values()) {
      if (job.phase === Phase.Told) {
        if (nowMs < job.nextMs) continue;
        job.nextMs = nowMs + AGAIN_MS;
        told.push(job.layer);
        continue;
      }
      if (job.phase === Phase.Waiting) {
        if (nowMs < job.nextMs) continue;
        this.#restart(job);
      }
      if (room > 0 && job.underWay === 0) room -= this.#step(view, job, nowMs);
    }
    if (told.length > 0) this.#absorbed(told);
  }

  #restart(job: Job): void {
    job.phase = Phase.Absorbing;
    job.from = 0;
    job.isFailed = false;
    job.isIncomplete = false;
    job.places = "";
  }

  /** Does some of what is next; returns how many operations it has begun. */
  #step(view: ClusterView, job: Job, nowMs: number): number {
    const disk = view.diskOfLayer(job.layer);
    if (disk === undefined) return 0;
    if (job.places === "") job.places = placesOf(view, disk);
    if (job.isFailed || job.places !== placesOf(view, disk) || isPathLost(this.#store, disk)) {
      job.phase = Phase.Waiting;
      job.nextMs = nowMs + AGAIN_MS;
      return 0;
    }
    const before = job.underWay;
    while (job.underWay === 0 && job.phase <= Phase.Marking) {
      const layer = job.phase === Phase.Absorbing ? job.layer : job.into;
      const isOver = job.from < 0 || !this.#store.hasLayer(layer);
      if (isOver) this.#nextPhase(view, disk, job, nowMs);
      else this.#look(view, disk, job, layer);
    }
    return job.underWay - before;
  }

  #nextPhase(view: ClusterView, disk: DiskView, job: Job, nowMs: number): void {
    job.from = 0;
    if (job.phase === Phase.Absorbing) {
      job.phase = Phase.Marking;
      return;
    }
    const isUnsure = ({ entry, isOpen }: GroupView) => entry.inSync.includes(view.self) && !isOpen;
    if (job.isIncomplete || disk.groups.some(isUnsure)) {
      job.phase = Phase.Waiting;
      job.nextMs = nowMs + AGAIN_MS;
      return;
    }
    job.phase = Phase.Syncing;
    this.#submit(job, OperationKind.Sync, 0);
  }

  #look(view: ClusterView, disk: DiskView, job: Job, layer: number): void {
    const list = this.#list;
    this.#store.listChunks(layer, job.from, list);
    job.from = list.next;
    for (let i = 0; i < list.count; i++) {
      const chunk = list.chunks[i];
      const group = view.groupOf(disk, chunk);
      const { inSync, joining } = group.entry;
      if (joining.includes(view.self) || (inSync.includes(view.self) && !group.isOpen)) {
        job.isIncomplete = true;
      } else if (inSync.includes(view.self)) {
        if (job.phase !== Phase.Absorbing) continue;
        if (this.#joining.isReplacing(group, job.into, chunk)) job.isIncomplete = true;
        else this.#submit(job, OperationKind.Absorb, chunk);
      } else if (job.phase === Phase.Absorbing) this.#forget(job, chunk);
      else if (this.#store.stampOf(layer, chunk, this.#stamp)) {
        this.#submit(job, OperationKind.Stamp, chunk);
      }
    }
  }

  #forget(job: Job, chunk: number): void {
    const token = {};
    job.underWay++;
    this.#discards.begin(token, job.layer, chunk);
    this.#store.dropChunk(job.layer, chunk, (error) => {
      this.#discards.end(token);
      job.underWay--;
      if (error !== null) job.isFailed = true;
    });
  }

  #submit(job: Job, kind: OperationKind, chunk: number): void {
    const operation = new Operation(this, 0);
    operation.kind = kind;
    operation.layers = kind === OperationKind.Absorb ? [job.into, job.layer] : [job.into];
    operation.chunk = chunk;
    operation.blockCount = 1;
    operation.stampUnknown = kind === OperationKind.Stamp;
    job.underWay++;
    this.#jobOf.set(operation, job);
    if (kind === OperationKind.Stamp) this.#discards.begin(operation, job.into, chunk);
    this.#store.submit(operation);
  }

  /** {@inheritDoc OperationOwner.operationDone} */
  operationDone(operation: Operation): void {
    const job = this.#jobOf.get(operation)!;
    this.#jobOf.delete(operation);
    this.#discards.end(operation);
    job.underWay--;
    if (operation.result !== 0) job.isFailed = true;
    else if (operation.kind === OperationKind.Absorb) this.chunks++;
    if (job.phase !== Phase.Syncing || this.#jobs.get(job.layer) !== job) return;
    const view = this.#view!;
    const disk = view.diskOfLayer(job.layer);
    const isSame = disk !== undefined && placesOf(view, disk) === job.places;
    // Otherwise it is begun again at the next tick.
    if (job.isFailed || !isSame || isPathLost(this.#store, disk)) {
      return void (job.phase = Phase.Waiting);
    }
    job.phase = Phase.Told;
    job.nextMs = -Infinity;
  }
}

/**
 * Whether anything of a disk is on a data path of this node that is lost, also in groups in which it is no member: what is there is
 * neither listed nor changed, and may come back as it was.
 */
export function isPathLost({ paths }: LocalStore, disk: DiskView): boolean {
  return paths !== undefined && paths.isImpaired &&
    disk.groups.some(({ group }) => paths.lossOf(group) !== null);
}

/** What this node is in each group of a disk's pool, and since when it has been. */
export function placesOf(view: ClusterView, disk: DiskView): string {
  return disk.groups.map(({ entry, isOpen }) => {
    const at = entry.joining.indexOf(view.self);
    if (at >= 0) return `j${entry.joinedEpochs[at]}`;
    if (!entry.inSync.includes(view.self)) return "";
    return isOpen ? "i" : `u${entry.changedEpoch}`;
  }).join();
}
