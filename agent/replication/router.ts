/**
 * A disk's way from its volume to its replicas: the sequencer's side of replication.
 *
 *     volume ─ submit ─▶ Read  ─▶ local store, or a replica's node
 *                        Write ─▶ every member of the chunk's group: this node's replica by a call, others by a message
 *                        Sync  ─▶ every node that holds writes of this disk that were not synced since
 *
 *     write:   waiting ──▶ sent ──▶ all members have acknowledged ──▶ done
 *                 ▲          │ ▲
 *                 └──────────┘ └─ map changed: new members get it, old ones are no longer waited for
 *
 * Invariants:
 * - A write is done when every member of its group, by the newest map that this node has, has acknowledged it; the group
 *   is open, its in-sync set has at least `copiesMin` members, and this node may serve. Until then it waits; it does not fail.
 * - Writes of one chunk are sent to every node in the order in which they were submitted, also when they are sent again. Their numbers
 *   rise in that order. A number stands for all writes up to it: where a group was settled, which may have lost some, those under way
 *   get new ones, since others may have had them by the old ones, with what was lost.
 * - A sync is done when every node that acknowledged a write of this disk, and still is a member, has synced after that
 *   acknowledgement. If a group with writes that were not synced had to be settled after all of its replicas had crashed,
 *   they may be gone: every sync fails that covers one of them, until one that covers all of them has failed.
 * - A disk whose number of copies is changed goes to other groups (`map/copies.ts`), to this file as if all of its groups changed at once:
 *   what is under way is sent to whoever is a member now and was none, and those that are none any more are waited for no longer.
 * - No read returns something older than what an earlier one returned: a read waits for the writes under way that overlap it.
 *   What only some of the replicas have must not be seen, since the others may be those that stay. Where this node's replica
 *   is the only member there is nothing to wait for.
 * - Snapshots: what comes after the map has begun one goes to the new layer. Once nothing is on its way to the old one, and what is
 *   there is synced, the holder says so (`drained`); the replicas refuse later writes to it. Where snapshots of several disks are taken
 *   together, no write to the new layer is given back before the map says that all of them are complete.
 * - Nothing is read and nothing is acknowledged after `serveUntil`: by then another node may hold the lease.
 *
 * @module
 */
import { getU32 } from "../base/bytes.ts";
import { BLOCK_BYTES, BLOCK_SHIFT, CHUNK_BYTES } from "../base/limits.ts";
import type { Arena } from "../base/arena.ts";
import { EBADMSG, EIO, type Log, type Window } from "../platform/platform.ts";
import { Operation, OperationKind, type OperationOwner } from "../store/operation.ts";
import { OperationList } from "../store/operation_list.ts";
import type { LocalStore } from "./local_store.ts";
import { type Head, MessageFlag, MessageType, Status } from "./messages.ts";
import type { PeerRequest, PeerRequestOwner, Peers } from "./peers.ts";
import { LocalWrite, type LocalWriteOwner, type Replica } from "./replica.ts";
import { MEMBERS_MAX, takingOf } from "../map/map.ts";
import type { ClusterView, DiskView, GroupView } from "./view.ts";

/** Times that a read asks all replicas before it fails: what the disk could not read once it may read the next time. */
const READ_ROUNDS_MAX = 4;

/** Whether a result says that data cannot be had from where it was looked for. */
function isMediumError(result: number): boolean {
  return result === -EBADMSG || result === -EIO;
}

/** What routers share. */
export interface RouterHost {
  readonly store: LocalStore;
  readonly replica: Replica;
  readonly peers: Peers;
  readonly window: Window;
  readonly arena: Arena;
  readonly log: Log;
  readonly view: ClusterView;
  readonly incarnation: number;
  /** Something is to be tried again soon: set by routers, until the next tick. */
  wantsTick: boolean;
  /** This node has been in touch with the cluster's majority lately enough to serve. */
  readonly mayServe: boolean;
  /** A replica cannot do what it was asked: it should leave its groups. */
  memberFailed(node: number, status: number): void;
  /** A block of this node's replica is damaged: have it healed from another one. */
  damaged(layers: readonly number[], chunk: number, block: number, blockCount: number): void;
  /** A guest's request of so many bytes is under way. */
  worked(bytes: number): void;
  /** Nothing is on its way any more into the layer that a snapshot is taken of, and all of it is synced. */
  drained(router: DiskRouter): void;
  takeSlot(): WriteSlot;
  releaseSlot(slot: WriteSlot): void;
  /** Calls `router.endTurn()` at the end of this turn. */
  atEndOfTurn(router: DiskRouter): void;
}

/** How far a write is at one node. */
const enum NodeState {
  Sent = 1,
  Acknowledged,
  /** Refused under a newer map than ours. */
  Stale,
  Failed,
}

/** One write on its way to its group's members. Used again and again; belongs to the host while free. */
export class WriteSlot implements LocalWriteOwner, PeerRequestOwner {
  router: DiskRouter | null = null;
  operation: Operation | null = null;
  group = 0;
  /** False while it waits to be sent at all. */
  isStarted = false;
  /** It begins anew, by another number: its layer is the one that it was sent to before. */
  isAnew = false;
  /** Epoch at which it was last sent. */
  epoch = 0;
  /** Epoch at which it was started. */
  startedEpoch = 0;
  nodeCount = 0;
  readonly nodes = new Int32Array(MEMBERS_MAX);
  readonly states = new Uint8Array(MEMBERS_MAX);
  /** Incarnation of the node that acknowledged. */
  readonly incarnations = new Uint32Array(MEMBERS_MAX);
  readonly requests: (PeerRequest | null)[] = new Array(MEMBERS_MAX).fill(null);
  readonly local = new LocalWrite();
  /** The store has the local write: its buffers may not be given back before it is done. */
  isLocalUnderWay = false;
  /** …and it is to be applied once more after that. */
  isLocalAgain = false;
  /** This node's replica has been given it before. */
  wasLocal = false;
  /** The errno with which it ends as soon as its buffers are free; 0: none. */
  failure = 0;
  next: WriteSlot | null = null;
  previous: WriteSlot | null = null;

  constructor() {
    this.local.target = this;
  }

  /** {@inheritDoc LocalWriteOwner.localWriteDone} */
  localWriteDone(_write: LocalWrite, result: number): void {
    this.isLocalUnderWay = false;
    this.router!.localDone(this, result);
  }

  /** {@inheritDoc PeerRequestOwner.answered} */
  answered(request: PeerRequest, head: Head): void {
    const index = this.requests.indexOf(request);
    if (index >= 0) this.requests[index] = null;
    this.router!.nodeDone(this, request.node, head.status);
  }
}

/** A flush under way; reused. */
class SyncSlot implements PeerRequestOwner, OperationOwner {
  operation: Operation | null = null;
  /** The disk's clock when it began: what was acknowledged later is not its business. */
  clock = 0;
  /** Nodes that were asked and have not answered, with the request (null: this node). */
  readonly pending = new Map<number, PeerRequest | null>();
  /** Nodes that have synced for this. */
  readonly done = new Set<number>();
  isFailed = false;
  /** For a snapshot: what it finds lost, the guest has still to be told. */
  isOurs = false;
  /** The errno with which it ends as soon as nothing is under way; 0: none. */
  failure = 0;
  /** Nodes are still to be asked. */
  isIncomplete = false;
  /** Not finished before this turn ends: its owner is still in `submit`. */
  isFresh = false;
  readonly local: Operation = new Operation(this, 0);

  constructor(readonly router: DiskRouter) {
    this.local.kind = OperationKind.Sync;
  }

  answered(request: PeerRequest, head: Head): void {
    this.router.syncAnswered(this, request.node, head.status);
  }

  operationDone(operation: Operation): void {
    this.router.syncAnswered(this, this.router.host.view.self, operation.result);
  }
}

/** Whether a node in this state is still to get the write, and nothing is under way there. */
function isUnsent(state: NodeState): boolean {
  return state === NodeState.Stale || state === NodeState.Failed;
}

/** The epoch since which a node joins a group; −1: it does not. */
function joinedEpochOf({ entry }: GroupView, node: number): number {
  const at = entry.joining.indexOf(node);
  return at < 0 ? -1 : entry.joinedEpochs[at];
}

/** In place of the node that a read is sent to: the map, the lease, or the right to serve stands in its way. */
const NOWHERE = 0;
/** …or a write of this disk that is under way and overlaps it. */
const BEHIND_WRITE = -1;

/** A read that replicas could not answer. */
interface ReadTrouble {
  /** Who failed in this round. */
  readonly asked: number[];
  rounds: number;
  /** This node's own replica is one of those. */
  isOwn: boolean;
}

/** Counters of one disk's replication. */
export interface RouterCounters {
  remoteReads: number;
  repairs: number;
  resent: number;
}

/** See the head of the file. */
export class DiskRouter implements PeerRequestOwner {
  readonly counters: RouterCounters = { remoteReads: 0, repairs: 0, resent: 0 };
  /** The replicas agree, and this node's lease is known to them: requests may go out. */
  isOpen = false;
  /** Generation of the lease held; 0: none. */
  generation = 0;

  #first: WriteSlot | null = null;
  #last: WriteSlot | null = null;
  /** The newest number of a write. */
  #sequence = 0;
  /** Writes that wait to be sent. */
  #waitingWrites = 0;
  readonly #waitingReads = new OperationList();
  /** See {@linkcode DiskRouter.forget}. */
  #isForgotten = false;
  /** Reads of snapshots that are gone: they fail at the end of the turn. */
  readonly #gone = new OperationList();
  /** One of those waits for a write that is under way. */
  #isReadBlocked = false;
  readonly #syncs: SyncSlot[] = [];
  /** Members of the groups that have writes which were not synced. */
  readonly #syncNodes = new Set<number>();
  readonly #freeSyncs: SyncSlot[] = [];
  readonly #remoteReads = new Map<Operation, PeerRequest>();
  /** Rises with every acknowledgement of a replica. */
  #clock = 0;
  /** Per node: the clock at its last acknowledgement, and at the start of the last sync that covers it. */
  readonly #dirtied = new Map<number, number>();
  readonly #synced = new Map<number, number>();
  /**
   * Per group, by number (which a chunk keeps, whichever pool its disk is in): the clock at the last finished write, and the epoch of the
   * map under which the first since the last sync was finished. If the group is settled in a later one, that write may be gone.
   */
  #groupDirtied = new Float64Array(0);
  /** Groups of which that is not 0. */
  #dirtyGroups: number[] = [];
  #groupSince = new Float64Array(0);
  /** The epoch in which the disk came to its pool, by the last map; −1: there was none. */
  #placedEpoch = -1;
  /** Per group: the clock at the last finished write that may be lost, until the guest has been told; 0: none. */
  #groupLost = new Float64Array(0);
  /** Epoch of the map that writes were looked at under. */
  #epoch = 0;
  /** The errno with which everything fails, since the lease is lost; 0: it is not. */
  #abandoned = 0;
  /** …but for reads that need none. */
  #isSparing = false;
  /** Something was refused under a map that is not newer than ours: look again at the next tick. */
  #mustResend = false;
  /** Some node has refused a write, or it could not be sent there: what follows in its chunk must not overtake it. */
  #hasUnsent = false;
  /** Some write is to be applied here once more. */
  #hasAgain = false;
  /** Reads that came back damaged or unread. */
  readonly #troubles = new Map<Operation, ReadTrouble>();
  /** Is being given back with an error: for good, whoever asks for a recovery. */
  #failing: Operation | null = null;
  /** The layer that a snapshot is being taken of, as far as it is synced; 0: it is not. */
  drainedLayer = 0;
  /** The layer that is being synced for that; 0: none is. */
  #drainingLayer = 0;
  readonly #drainSync: Operation = new Operation({ operationDone: () => this.#drainSynced() }, 0);

  /** @param isReader it only reads what is never written to: it has no lease, and nothing to sync */
  constructor(readonly host: RouterHost, readonly diskId: number, readonly isReader = false) {}

  // ------------------------------------------------------------------------------------- state

  /**
   * Requests that wait for something else than a replica's answer. A read behind a write that is under way waits for that write's
   * answers: it is the guest's own doing, as is a flush that comes back at the end of this turn.
   */
  get waiting(): number {
    let count = this.#waitingWrites;
    for (let read = this.#waitingReads.first; read !== null; read = read.next) {
      if (this.#sourceOf(read) !== BEHIND_WRITE) count++;
    }
    for (const sync of this.#syncs) if (this.#isStuck(sync)) count++;
    return count;
  }

  /** Why requests wait, in words; null when none does. */
  get waitingReason(): string | null {
    if (this.waiting === 0) return null;
    const { mayServe, view } = this.host;
    if (!mayServe) return "this node is cut off from the majority of the cluster";
    const disk = view.disk(this.diskId);
    if (disk === undefined) return "the disk is gone";
    if (!this.isOpen && !this.isReader) {
      return "the replicas are being brought in line after an unclean hand-over";
    }
    const settling = "replicas are being settled after a crash";
    for (let slot = this.#first; slot !== null; slot = slot.next) {
      if (slot.isStarted) continue;
      const group = disk.groups[slot.group];
      if (!group.isOpen) return settling;
      if (group.entry.inSync.length < disk.copiesMin) {
        return `${group.entry.inSync.length} of at least ${disk.copiesMin} copies are there`;
      }
    }
    let reads = 0;
    for (let read = this.#waitingReads.first; read !== null; read = read.next) {
      if (!view.groupOf(disk, read.chunk).isOpen) return settling;
      if (this.#sourceOf(read) !== BEHIND_WRITE) reads++;
    }
    if (this.#syncs.some((sync) => this.#isStuck(sync))) {
      if (this.#dirtyGroups.some((group) => !disk.groups[group].isOpen)) return settling;
      if (reads + this.#waitingWrites === 0) {
        return "a replica has started anew, or its store has failed, and has to be asked to sync again";
      }
    }
    return "no replica that is in sync can be reached";
  }

  /** Writes that nothing stands in the way of and that have not been given back all the same: none at the end of a turn. */
  get overdue(): number {
    let count = 0;
    for (let slot = this.#first; slot !== null; slot = slot.next) if (this.#isDone(slot)) count++;
    return count;
  }

  /** Writes that are not done. */
  get writesUnderWay(): number {
    let count = 0;
    for (let slot = this.#first; slot !== null; slot = slot.next) count++;
    return count;
  }

  /**
   * A lease is held: requests may come; they wait until {@linkcode open}. Writes that are under way since an
   * earlier lease of this node become the new one's, in their order.
   */
  begin(generation: number): void {
    this.generation = generation;
    this.isOpen = false;
    this.#abandoned = 0;
    this.#epoch = this.host.view.epoch;
    for (let slot = this.#first; slot !== null; slot = slot.next) {
      slot.isAnew = false;
      this.#restart(slot);
    }
    const disk = this.host.view.disk(this.diskId);
    const groups = disk?.groups ?? [];
    this.#resize(groups.length);
    // What this very guest owes since before a group was settled is owed still.
    if (disk !== undefined) this.#noteLosses(disk, false);
    // What the holder before acknowledged may be unsynced anywhere: the first sync goes everywhere.
    this.#clock++;
    this.#dirtyGroups = [];
    // Only groups that chunks of the disk are in: what becomes of the others is not this guest's business.
    const chunks = Math.min(groups.length, Math.ceil((disk?.entry.sizeBytes ?? 0) / CHUNK_BYTES));
    for (let chunk = 0; chunk < chunks; chunk++) {
      const { group } = this.host.view.groupOf(disk!, chunk);
      this.#groupSince[group] = this.host.view.epoch;
      this.#groupDirtied[group] = this.#clock;
      this.#dirtyGroups.push(group);
    }
    for (const node of disk?.nodes ?? []) this.#dirtied.set(node, this.#clock);
    this.drainedLayer = 0;
  }

  #restart(slot: WriteSlot): void {
    slot.operation!.generation = this.generation;
    for (let i = 0; i < slot.nodeCount; i++) {
      const request = slot.requests[i];
      if (request !== null) this.host.peers.cancel(request);
      slot.requests[i] = null;
    }
    slot.nodeCount = 0;
    slot.isLocalAgain = false;
    if (!slot.isStarted) return;
    this.#waitingWrites++;
    slot.isStarted = false;
  }

  /** The replicas agree: go. */
  open(): void {
    this.isOpen = true;
    this.resume();
  }

  /** The lease has been given back, with nothing under way. */
  end(): void {
    this.isOpen = false;
    this.generation = 0;
    this.#abandoned = 0;
    this.drainedLayer = 0;
    // What is synced for a snapshot is nobody's business any more: the lease's end says that it is drained.
    for (const sync of [...this.#syncs]) {
      sync.failure = -EIO;
      this.#syncStep(sync);
    }
    this.#dirtied.clear();
    this.#synced.clear();
    this.#groupDirtied.fill(0);
    this.#groupLost.fill(0);
    this.#dirtyGroups.length = 0;
  }

  /**
   * The lease is lost, or the front end is: everything that is under way fails as soon as its buffers are free, which those are at
   * once that wait for space in this node's store. The guest must not be told: to it nothing of this has happened. Replicas may
   * differ from now on, so the lease must not be given back as if they did not.
   *
   * @param isSparing reads that need no lease are not failed: they go on. What they hold of the volume's share of transfers may be what its
   *   other requests wait for, which have to fail before the lease can end.
   */
  abandon(errno: number, isSparing = false): void {
    this.#isSparing = isSparing;
    this.isOpen = false;
    // What still comes, as volumes pass on what waited for room, fails at the next tick.
    this.#abandoned = errno;
    const local = new Set<LocalWrite>();
    for (let slot = this.#first; slot !== null; slot = slot.next) {
      if (slot.isLocalUnderWay) local.add(slot.local);
    }
    if (local.size > 0) this.host.replica.withdraw((write) => local.has(write));
    for (let slot = this.#first; slot !== null;) {
      const next: WriteSlot | null = slot.next;
      slot.failure = errno;
      this.#finishIfDone(slot);
      slot = next;
    }
    for (const [operation, request] of [...this.#remoteReads]) {
      if (isSparing && operation.isLeaseless) continue;
      this.host.peers.cancel(request);
      this.#remoteReads.delete(operation);
      this.#waitingReads.push(operation);
    }
    for (let count = this.#waitingReads.count; count > 0; count--) {
      const read = this.#waitingReads.shift();
      if (isSparing && read.isLeaseless) this.#read(read);
      else this.#fail(read, errno);
    }
    for (const sync of [...this.#syncs]) {
      sync.failure = errno;
      this.#syncStep(sync);
    }
  }

  /**
   * Nobody is served by this reader any more, nor will it hear of maps and of time: what other nodes were asked for, or waits, fails at
   * the end of this turn, and so does what volumes pass on later.
   */
  forget(): void {
    this.#isForgotten = true;
    for (const [operation, request] of this.#remoteReads) {
      this.host.peers.cancel(request);
      this.#waitingReads.push(operation);
    }
    this.#remoteReads.clear();
    this.#retryReads();
  }

  /** Whether what is read has gone: whoever reads it is about to be cut off. */
  #isGone(operation: Operation): boolean {
    return this.isReader &&
      (this.#isForgotten || !this.host.view.isReadable(operation.layers[0]));
  }

  #resize(groups: number): void {
    if (this.#groupDirtied.length === groups) return;
    const dirtied = new Float64Array(groups);
    const since = new Float64Array(groups);
    const losses = new Float64Array(groups);
    for (let i = 0; i < groups; i++) {
      // A split: the new group holds what the one it comes from may have left unsynced.
      const from = this.#groupDirtied.length > 0 ? i % this.#groupDirtied.length : -1;
      dirtied[i] = from < 0 ? 0 : this.#groupDirtied[from];
      since[i] = from < 0 ? 0 : this.#groupSince[from];
      losses[i] = from < 0 ? 0 : this.#groupLost[from];
    }
    this.#groupDirtied = dirtied;
    this.#groupSince = since;
    this.#groupLost = losses;
    this.#dirtyGroups = [...dirtied.keys()].filter((group) => dirtied[group] > 0);
  }

  // ------------------------------------------------------------------------------------- submit

  /** Takes an operation of the volume; it comes back through its owner exactly once, never from inside this call. */
  submit(operation: Operation): void {
    operation.result = 0;
    const hasData = operation.kind === OperationKind.Read || operation.kind === OperationKind.Write;
    this.host.worked(hasData ? operation.blockCount << BLOCK_SHIFT : 0);
    // Its memory may have been that of a read that got on in the end.
    if (this.#troubles.size > 0) this.#troubles.delete(operation);
    switch (operation.kind) {
      case OperationKind.Read:
        return this.#read(operation);
      case OperationKind.Sync:
        return this.#sync(operation);
      default:
        return this.#write(operation);
    }
  }

  /** Lets go on what waited: the map, the right to serve, or the lease has changed. */
  resume(): void {
    if (this.#abandoned !== 0) return this.abandon(this.#abandoned, this.#isSparing);
    if (this.#waitingWrites > 0) this.#startWaiting();
    this.#finishReady();
    for (let count = this.#waitingReads.count; count > 0; count--) {
      this.#read(this.#waitingReads.shift());
    }
    for (const sync of [...this.#syncs]) this.#syncStep(sync);
    this.#drain();
  }

  /**
   * The map has changed: what is under way is sent to whoever must have it now. Nothing comes back from inside this; `resume`
   * follows.
   *
   * @param isJump maps in between were not seen: what is acknowledged may have been undone by a replica that left and came back
   */
  mapChanged(isJump: boolean): void {
    const { view } = this.host;
    const disk = view.disk(this.diskId);
    this.#epoch = view.epoch;
    if (disk === undefined) return;
    if (disk.draining !== this.drainedLayer) this.drainedLayer = 0;
    this.#resize(disk.groups.length);
    const isMoved = this.#placedEpoch >= 0 && this.#placedEpoch !== disk.entry.placedEpoch;
    this.#placedEpoch = disk.entry.placedEpoch;
    this.#noteLosses(disk, isMoved && !isJump);
    const settled = new Set<number>();
    for (let slot = this.#first; slot !== null; slot = slot.next) {
      const group = view.groupOf(disk, slot.operation!.chunk);
      slot.group = group.group;
      const settledEpoch = view.settledEpochOf(disk, group);
      if (slot.isStarted && settledEpoch > slot.startedEpoch) {
        // Of a disk that has just come from another pool the one epoch of all its groups says nothing more: see `#noteLosses`.
        const isKnown = isMoved && !isJump && settledEpoch === disk.entry.settledBefore;
        if (isKnown) slot.startedEpoch = settledEpoch;
        else settled.add(slot.group);
      }
      if (settled.has(slot.group)) {
        slot.operation!.sequence = ++this.#sequence;
        slot.isAnew ||= slot.isStarted;
        if (slot.isStarted) this.#restart(slot);
      } else if (slot.isStarted) this.#reroute(slot, group, isJump);
    }
    if (this.#hasUnsent) this.#lookForUnsent();
    for (const [operation, request] of [...this.#remoteReads]) {
      const group = view.groupOf(disk, operation.chunk);
      // A repair asks others than the one to read from.
      const isChoice = request.node === group.readFrom || this.#troubles.has(operation);
      if (group.isOpen && group.entry.inSync.includes(request.node) && isChoice) continue;
      this.host.peers.cancel(request);
      this.#remoteReads.delete(operation);
      this.#waitingReads.push(operation);
    }
  }

  /** Once in a while. */
  tick(): void {
    if (this.#abandoned !== 0 && (this.#first !== null || this.waiting > 0)) {
      this.abandon(this.#abandoned, this.#isSparing);
    }
    if (this.#mustResend) {
      this.#mustResend = false;
      this.#resendAll();
    }
    if (this.#waitingReads.count > 0 || this.#waitingWrites > 0) this.resume();
    for (const sync of [...this.#syncs]) if (sync.isIncomplete) this.#syncStep(sync);
    this.#drain();
  }

  // ----------------------------------------------------------------------------------- snapshots

  /** A snapshot is being taken: once nothing is on its way into its layer, that is synced. */
  #drain(): void {
    const disk = this.host.view.disk(this.diskId);
    const layer = disk?.draining ?? 0;
    if (layer === 0 || layer === this.drainedLayer || this.#drainingLayer !== 0) return;
    if (!this.isOpen || !this.host.mayServe || !this.#holdsLease(disk!)) return;
    if (this.#hasWrites(layer)) return;
    if (takingOf(disk!.entry)!.isAborted) return this.#drained(layer);
    this.#drainingLayer = layer;
    this.#drainSync.kind = OperationKind.Sync;
    this.#sync(this.#drainSync);
    this.#syncs[this.#syncs.length - 1].isOurs = true;
  }

  #drainSynced(): void {
    const layer = this.#drainingLayer;
    this.#drainingLayer = 0;
    const isWanted = this.host.view.disk(this.diskId)?.draining === layer && this.isOpen;
    // Since the map has had the snapshot nothing was sent to the old layer.
    if (this.#drainSync.result === 0 && isWanted) this.#drained(layer);
  }

  /** Whether anything is on its way to a layer. */
  #hasWrites(layer: number): boolean {
    for (let slot = this.#first; slot !== null; slot = slot.next) {
      const isSent = slot.isStarted || slot.isAnew;
      if (isSent && slot.operation!.layers[0] === layer) return true;
    }
    return false;
  }

  #drained(layer: number): void {
    this.drainedLayer = layer;
    this.host.drained(this);
  }

  // -------------------------------------------------------------------------------------- writes

  #write(operation: Operation): void {
    // The volume's own number, but where that has been given away.
    if (operation.sequence <= this.#sequence) operation.sequence = this.#sequence + 1;
    this.#sequence = operation.sequence;
    const slot = this.host.takeSlot();
    slot.router = this;
    slot.operation = operation;
    slot.isStarted = false;
    slot.isAnew = false;
    slot.isLocalAgain = false;
    slot.wasLocal = false;
    slot.failure = 0;
    slot.nodeCount = 0;
    slot.previous = this.#last;
    slot.next = null;
    if (this.#last === null) this.#first = slot;
    else this.#last.next = slot;
    this.#last = slot;
    // Those that wait came first. If they may go now, they go first; what they still wait for, it waits for as well.
    if (++this.#waitingWrites === 1) this.#start(slot);
    else this.#startWaiting();
  }

  /** Sends what waits, in order, as far as it may go. */
  #startWaiting(): void {
    for (let slot = this.#first; slot !== null;) {
      const next: WriteSlot | null = slot.next;
      if (!slot.isStarted && !this.#isBehind(slot)) this.#start(slot);
      slot = next;
    }
  }

  /** Whether an earlier write of the same chunk waits to be sent. */
  #isBehind(slot: WriteSlot): boolean {
    const { chunk } = slot.operation!;
    for (let other = this.#first; other !== null && other !== slot; other = other.next) {
      if (!other.isStarted && other.operation !== null && other.operation.chunk === chunk) {
        return true;
      }
    }
    return false;
  }

  /** Whether writes of a group may go out and be acknowledged. */
  #canWrite(disk: DiskView, group: GroupView): boolean {
    return this.isOpen && this.host.mayServe && group.isOpen &&
      group.entry.inSync.length >= disk.copiesMin && this.#holdsLease(disk);
  }

  #holdsLease(disk: DiskView): boolean {
    return disk.holder === this.host.view.self && disk.entry.generation === this.generation &&
      disk.entry.lease?.incarnation === this.host.incarnation;
  }

  #start(slot: WriteSlot): void {
    const { view } = this.host;
    const disk = view.disk(this.diskId);
    if (disk === undefined) return;
    const operation = slot.operation!;
    const group = view.groupOf(disk, operation.chunk);
    slot.group = group.group;
    // A map that this router has not been told of yet: what is under way has to be looked at first.
    if (view.epoch !== this.#epoch || !this.#canWrite(disk, group)) return;
    // Whatever it was made for: a snapshot that has begun meanwhile gets no write that is sent only now.
    if (!slot.isAnew) operation.layers = disk.entry.layers;
    // Where older layers lie below, forgetting blocks would bring their content back.
    if (operation.kind === OperationKind.Free && operation.layers.length > 1) {
      operation.kind = OperationKind.Zero;
    }
    slot.isStarted = true;
    this.#waitingWrites--;
    slot.epoch = view.epoch;
    slot.startedEpoch = view.epoch;
    for (const node of group.members) this.#send(slot, node);
  }

  #send(slot: WriteSlot, node: number): void {
    let index = 0;
    while (index < slot.nodeCount && slot.nodes[index] !== node) index++;
    if (index === slot.nodeCount) {
      if (index === MEMBERS_MAX) throw new Error("router: a group has too many members");
      slot.nodeCount++;
      slot.nodes[index] = node;
    }
    slot.incarnations[index] = this.host.view.node(node)?.incarnation ?? 0;
    if (this.#hasUnsent && this.#isBehindUnsent(slot, index)) return;
    slot.states[index] = NodeState.Sent;
    if (node === this.host.view.self) this.#sendLocal(slot);
    else this.#sendRemote(slot, index, node);
  }

  /**
   * Whether a node lacks an earlier write of the same chunk, which was refused or could not be sent: to a node that has the later
   * one, the earlier one would look as if it had been applied before. Then this one waits for the same as that one.
   */
  #isBehindUnsent(slot: WriteSlot, index: number): boolean {
    const node = slot.nodes[index];
    const { chunk } = slot.operation!;
    for (let other = this.#first; other !== slot && other !== null; other = other.next) {
      if (!other.isStarted || other.operation!.chunk !== chunk) continue;
      for (let i = 0; i < other.nodeCount; i++) {
        const state = other.states[i];
        if (other.nodes[i] !== node || !isUnsent(state)) continue;
        this.#takeBack(slot, index, state, other.incarnations[i]);
        return true;
      }
    }
    return false;
  }

  /** A write has to be sent to a node once more, behind an earlier one that waits in this state. */
  #takeBack(slot: WriteSlot, index: number, state: NodeState, incarnation: number): void {
    const request = slot.requests[index];
    if (request !== null) this.host.peers.cancel(request);
    slot.requests[index] = null;
    slot.states[index] = state;
    slot.incarnations[index] = incarnation;
  }

  /** A node has not taken a write. What was sent to it behind that one may reach another start of its agent: not before this one. */
  #notTaken(slot: WriteSlot, index: number, state: NodeState): void {
    slot.states[index] = state;
    this.#hasUnsent = true;
    const node = slot.nodes[index];
    const { chunk } = slot.operation!;
    for (let later = slot.next; later !== null; later = later.next) {
      if (!later.isStarted || later.operation!.chunk !== chunk) continue;
      for (let i = 0; i < later.nodeCount; i++) {
        if (later.nodes[i] !== node || later.requests[i] === null) continue;
        this.#takeBack(later, i, state, slot.incarnations[index]);
      }
    }
  }

  /** What was unsent may have been sent. */
  #lookForUnsent(): void {
    this.#hasUnsent = false;
    for (let slot = this.#first; slot !== null && !this.#hasUnsent; slot = slot.next) {
      for (let i = 0; i < slot.nodeCount; i++) {
        if (isUnsent(slot.states[i])) this.#hasUnsent = true;
      }
    }
  }

  #sendLocal(slot: WriteSlot): void {
    const operation = slot.operation!;
    const { operation: local } = slot.local;
    if (slot.isLocalUnderWay || this.#isBehindAgain(slot)) {
      // Once more when its buffers are free: what is under way was accepted for another membership. What follows it in its chunk
      // goes behind that: to who joins the one that comes later would look as if it had been applied before.
      slot.isLocalAgain = true;
      this.#hasAgain = true;
      return;
    }
    const { view } = this.host;
    const disk = view.disk(this.diskId);
    const isHolder = disk?.holder === view.self && disk.entry.generation === operation.generation;
    // Under a lease that is over this node's replica takes no more than others do: the write begins anew when the lease is back, or fails.
    if (disk === undefined || !isHolder) return;
    local.kind = operation.kind;
    local.layers = operation.layers;
    local.chunk = operation.chunk;
    local.block = operation.block;
    local.blockCount = operation.blockCount;
    local.buffer = operation.buffer;
    local.checksums = operation.checksums;
    local.generation = operation.generation;
    local.sequence = operation.sequence;
    slot.isLocalAgain = false;
    slot.isLocalUnderWay = true;
    const group = view.groupOf(disk, operation.chunk);
    this.host.replica.apply(slot.local, group, slot.wasLocal);
    slot.wasLocal = true;
  }

  /** Whether an earlier write of the same chunk is to be applied here once more. */
  #isBehindAgain(slot: WriteSlot): boolean {
    if (!this.#hasAgain) return false;
    const { chunk } = slot.operation!;
    for (let other = this.#first; other !== slot && other !== null; other = other.next) {
      if (other.isLocalAgain && other.operation!.chunk === chunk) return true;
    }
    return false;
  }

  /** What waited behind a write that was to be applied here once more goes on. */
  #sendHeld(): void {
    const { self } = this.host.view;
    this.#hasAgain = false;
    for (let slot = this.#first; slot !== null; slot = slot.next) {
      if (!slot.isLocalAgain) continue;
      if (slot.isLocalUnderWay) {
        this.#hasAgain = true;
        continue;
      }
      slot.isLocalAgain = false;
      const isHere = slot.isStarted && slot.nodes.subarray(0, slot.nodeCount).includes(self);
      if (isHere) this.#sendLocal(slot);
    }
  }

  #sendRemote(slot: WriteSlot, index: number, node: number): void {
    const operation = slot.operation!;
    const type = operation.kind === OperationKind.Write
      ? MessageType.Write
      : operation.kind === OperationKind.Free
      ? MessageType.Free
      : MessageType.Zero;
    const old = slot.requests[index];
    if (old !== null) this.host.peers.cancel(old);
    const request = this.host.peers.take(type, slot);
    slot.requests[index] = request;
    if (request === null) {
      // All requests are under way: in order again, a little later.
      slot.states[index] = NodeState.Stale;
      this.#hasUnsent = true;
      this.#mustResend = true;
      this.host.wantsTick = true;
      return;
    }
    const { head } = request;
    head.disk = this.diskId;
    head.layer = operation.layers[0];
    head.chunk = operation.chunk;
    head.block = operation.block;
    head.count = operation.blockCount;
    head.generation = operation.generation;
    head.sequence = operation.sequence;
    if (operation.kind === OperationKind.Write) {
      request.extra = operation.checksums;
      request.extraWords = operation.blockCount;
      request.dataOffset = operation.buffer;
      request.dataBytes = operation.blockCount << BLOCK_SHIFT;
    }
    request.wasSent = slot.epoch !== this.host.view.epoch;
    this.host.peers.submit(node, request);
  }

  /**
   * The map has changed under a write that was sent: everyone who has not acknowledged gets it again if the group has
   * changed since (what was sent before may be refused, and what follows must not overtake it), as do new members.
   */
  #reroute(slot: WriteSlot, group: GroupView, isJump: boolean): void {
    const { view } = this.host;
    const isOld = isJump || group.entry.changedEpoch > slot.epoch;
    for (let i = 0; i < slot.nodeCount; i++) {
      const node = slot.nodes[i];
      if (group.members.includes(node)) {
        // Another start of that node's agent: what it had acknowledged while it joined does not count any more.
        const incarnation = view.node(node)?.incarnation ?? 0;
        const isOther = incarnation !== slot.incarnations[i];
        // Who joins has begun anew: what it had before is nothing to it, and its source may have got this write only later.
        const isAnew = joinedEpochOf(group, node) > slot.epoch;
        const isUndone = slot.states[i] === NodeState.Acknowledged && (isJump || isOther || isAnew);
        const isMended = slot.states[i] === NodeState.Failed && isOther;
        if (isUndone || isMended || (isOld && slot.states[i] !== NodeState.Acknowledged)) {
          this.counters.resent++;
          this.#send(slot, node);
        }
        continue;
      }
      const request = slot.requests[i];
      if (request !== null) this.host.peers.cancel(request);
      slot.requests[i] = null;
      this.#removeNode(slot, i--);
    }
    for (const node of group.members) {
      if (!slot.nodes.subarray(0, slot.nodeCount).includes(node)) this.#send(slot, node);
    }
    if (isOld) slot.epoch = view.epoch;
  }

  #removeNode(slot: WriteSlot, index: number): void {
    const last = --slot.nodeCount;
    slot.nodes[index] = slot.nodes[last];
    slot.states[index] = slot.states[last];
    slot.incarnations[index] = slot.incarnations[last];
    slot.requests[index] = slot.requests[last];
    slot.requests[last] = null;
  }

  /** Sends everything that is not acknowledged again, in order. */
  #resendAll(): void {
    for (let slot = this.#first; slot !== null; slot = slot.next) {
      if (!slot.isStarted) continue;
      for (let i = 0; i < slot.nodeCount; i++) {
        if (slot.states[i] === NodeState.Sent || slot.states[i] === NodeState.Stale) {
          this.counters.resent++;
          slot.epoch = -1; // So that it goes marked as sent before.
          this.#send(slot, slot.nodes[i]);
        }
      }
      slot.epoch = this.host.view.epoch;
    }
    if (this.#hasUnsent) this.#lookForUnsent();
  }

  /** This node's replica has applied a write, or could not. */
  localDone(slot: WriteSlot, result: number): void {
    if (slot.failure !== 0) return this.#finishIfDone(slot);
    const { self } = this.host.view;
    const isSameLease = slot.local.operation.generation === slot.operation!.generation;
    const isAgain = slot.isLocalAgain;
    slot.isLocalAgain = false;
    if (isSameLease && !isAgain) return this.nodeDone(slot, self, result);
    // It was sent under an earlier lease or membership: once more, now that its buffers are free.
    const isHere = slot.isStarted && slot.nodes.subarray(0, slot.nodeCount).includes(self);
    if (isHere) this.#sendLocal(slot);
    if (this.#hasAgain) this.#sendHeld();
    if (!isHere) this.#finishIfDone(slot);
  }

  /** A replica has answered a write. */
  nodeDone(slot: WriteSlot, node: number, status: number): void {
    let index = 0;
    while (index < slot.nodeCount && slot.nodes[index] !== node) index++;
    if (index === slot.nodeCount) return this.#finishIfDone(slot);
    if (status === Status.Ok) {
      slot.states[index] = NodeState.Acknowledged;
      this.#dirtied.set(node, ++this.#clock);
      return this.#finishIfDone(slot);
    }
    if (status > 0) {
      // Refused: the map that says why is on its way, and will have the write sent again.
      this.#notTaken(slot, index, NodeState.Stale);
      this.#mustResend = true;
      this.host.wantsTick = true;
      return;
    }
    // Its store has failed: it leaves the group, or starts anew and gets the write again. The guest waits.
    this.#notTaken(slot, index, NodeState.Failed);
    this.host.memberFailed(node, status);
  }

  #isDone(slot: WriteSlot): boolean {
    if (!slot.isStarted || slot.isLocalUnderWay) return false;
    const disk = this.host.view.disk(this.diskId);
    if (disk === undefined) return false;
    const group = this.host.view.groupOf(disk, slot.operation!.chunk);
    if (!this.#canWrite(disk, group)) return false;
    for (let i = 0; i < slot.nodeCount; i++) {
      if (slot.states[i] !== NodeState.Acknowledged) return false;
    }
    if (disk.isHeldBack && slot.operation!.layers[0] === disk.entry.layers[0]) return false;
    return slot.nodeCount >= group.members.length;
  }

  #finishIfDone(slot: WriteSlot): void {
    if (slot.failure !== 0) {
      if (!slot.isLocalUnderWay) this.#finish(slot, slot.failure);
    } else if (this.#isDone(slot)) this.#finish(slot, 0);
  }

  /** Finishes what is done now that something else has changed. */
  #finishReady(): void {
    for (let slot = this.#first; slot !== null;) {
      const next: WriteSlot | null = slot.next;
      this.#finishIfDone(slot);
      slot = next;
    }
  }

  #finish(slot: WriteSlot, result: number): void {
    const operation = slot.operation!;
    if (result === 0) this.#dirtyGroup(slot.group);
    this.#unlink(slot);
    operation.result = result;
    operation.owner.operationDone(operation);
    if (this.#isReadBlocked) this.#retryReads();
    this.#drain();
  }

  #dirtyGroup(group: number): void {
    if (this.#groupDirtied[group] === 0) {
      this.#groupSince[group] = this.host.view.epoch;
      this.#dirtyGroups.push(group);
    }
    this.#groupDirtied[group] = ++this.#clock;
  }

  #unlink(slot: WriteSlot): void {
    if (slot.previous === null) this.#first = slot.next;
    else slot.previous.next = slot.next;
    if (slot.next === null) this.#last = slot.previous;
    else slot.next.previous = slot.previous;
    for (let i = 0; i < slot.nodeCount; i++) {
      const request = slot.requests[i];
      if (request !== null) this.host.peers.cancel(request);
      slot.requests[i] = null;
    }
    if (!slot.isStarted) this.#waitingWrites--;
    this.host.releaseSlot(slot);
  }

  // --------------------------------------------------------------------------------------- reads

  #read(operation: Operation): void {
    if (this.#isGone(operation)) {
      this.#gone.push(operation);
      return this.host.atEndOfTurn(this);
    }
    const node = this.#sourceOf(operation);
    if (node <= NOWHERE) {
      if (node === BEHIND_WRITE) this.#isReadBlocked = true;
      return this.#waitingReads.push(operation);
    }
    this.#readAt(operation, node);
  }

  /**
   * Reads at a node, through the layers that are the disk's or the snapshot's now: those that it was made for may lie below another one by
   * now, have been merged, or have been cut off from what lay below them, which may be there for others still.
   */
  #readAt(operation: Operation, node: number): void {
    const { view } = this.host;
    operation.layers = this.isReader
      ? view.chain(operation.layers[0])
      : view.disk(this.diskId)?.entry.layers ?? operation.layers;
    if (node === view.self) this.host.store.submit(operation);
    else this.#readFrom(operation, node);
  }

  /** The node whose replica is to be read, or why none may be: {@linkcode NOWHERE}, {@linkcode BEHIND_WRITE}. */
  #sourceOf(operation: Operation): number {
    const { view, mayServe } = this.host;
    const disk = view.disk(this.diskId);
    if (disk === undefined || !mayServe) return NOWHERE;
    // A read-only view of a disk that is open elsewhere has no lease, and needs none; nor does it when this one is lost.
    const isSpared = this.#abandoned !== 0 && this.#isSparing && operation.isLeaseless;
    const isHolder = this.generation > 0 && !isSpared;
    if (isHolder && (!this.isOpen || !this.#holdsLease(disk))) return NOWHERE;
    const { readFrom, members } = view.groupOf(disk, operation.chunk);
    if (readFrom === 0) return NOWHERE;
    const isAlone = members.length === 1 && members[0] === view.self;
    const isBehind = !isAlone && this.#first !== null && this.#overlapsWrite(operation);
    return isBehind ? BEHIND_WRITE : readFrom;
  }

  #overlapsWrite(operation: Operation): boolean {
    for (let slot = this.#first; slot !== null; slot = slot.next) {
      const write = slot.operation!;
      if (
        write.chunk === operation.chunk && write.block < operation.block + operation.blockCount &&
        operation.block < write.block + write.blockCount
      ) return true;
    }
    return false;
  }

  #retryReads(): void {
    this.#isReadBlocked = false;
    for (let count = this.#waitingReads.count; count > 0; count--) {
      this.#read(this.#waitingReads.shift());
    }
  }

  #readFrom(operation: Operation, node: number): void {
    const { peers } = this.host;
    const request = peers.take(MessageType.Read, this);
    if (request === null) return this.#waitingReads.push(operation);
    const { head } = request;
    head.disk = this.diskId;
    head.layer = operation.layers[0];
    head.chunk = operation.chunk;
    head.block = operation.block;
    head.count = operation.blockCount;
    request.context = operation;
    if (operation.layers.length > 1) head.flags |= MessageFlag.Chain;
    request.word[0] = operation.layers[0];
    request.extra = request.word;
    request.extraWords = 1;
    this.#remoteReads.set(operation, request);
    this.counters.remoteReads++;
    peers.submit(node, request);
  }

  /** {@inheritDoc PeerRequestOwner.answered} */
  answered(
    request: PeerRequest,
    head: Head,
    extra: Uint8Array,
    dataOffset: number,
    dataBytes: number,
  ): void {
    const operation = request.context as Operation;
    this.#remoteReads.delete(operation);
    const { arena } = this.host;
    const isWhole = dataBytes === operation.blockCount << BLOCK_SHIFT &&
      extra.length >= operation.blockCount * 4;
    let status = head.status;
    if (status === Status.Ok) {
      status = isWhole && this.#deliver(operation, extra, dataOffset) ? 0 : -EBADMSG;
    }
    if (dataBytes > 0) arena.release(dataOffset, dataBytes);
    if (status === 0) {
      this.#repair(operation);
      operation.result = 0;
      operation.owner.operationDone(operation);
      return;
    }
    // A node that stops, or has no memory, says nothing about the data.
    if (status > 0 || !isMediumError(status)) {
      this.#waitingReads.push(operation);
      this.host.wantsTick = true;
      return;
    }
    operation.badBlock = head.block;
    if (!this.#readElsewhere(operation, request.node)) this.#fail(operation, status);
  }

  #fail(operation: Operation, errno: number): void {
    this.#troubles.delete(operation);
    this.#failing = operation;
    operation.result = errno;
    operation.owner.operationDone(operation);
    this.#failing = null;
  }

  /** Copies verified blocks to where they are wanted; false when one does not match its checksum. */
  #deliver(operation: Operation, extra: Uint8Array, from: number): boolean {
    const { kernel } = this.host.window;
    const { buffer, sink } = operation;
    // A sink takes blocks from the operation's buffer: for the time being that is what came.
    if (sink !== null) operation.buffer = from;
    let isRight = true;
    for (let i = 0; i < operation.blockCount && isRight; i++) {
      const offset = i << BLOCK_SHIFT;
      const sum = sink !== null
        ? sink.takeBlock(operation, i)
        : kernel.copyAndChecksum(buffer + offset, from + offset, BLOCK_BYTES);
      isRight = sum === getU32(extra, i * 4);
    }
    operation.buffer = buffer;
    operation.isTaken = isRight && sink !== null;
    return isRight;
  }

  /**
   * The local store could not give what was read, because it is damaged or the disk fails: asks other replicas.
   *
   * @returns false when they were all asked often enough; then the damage is all there is
   */
  recover(operation: Operation): boolean {
    if (operation.kind !== OperationKind.Read || operation === this.#failing) return false;
    if (this.#isForgotten) return false;
    if (this.host.store.paths?.isLost(operation.layers[0], operation.chunk) === true) {
      // The map that says where to read from is on its way, or that there is nowhere: then the guest waits.
      this.#waitingReads.push(operation);
      return true;
    }
    return isMediumError(operation.result) && this.#readElsewhere(operation, this.host.view.self);
  }

  #readElsewhere(operation: Operation, failed: number): boolean {
    const { view } = this.host;
    const disk = view.disk(this.diskId);
    if (disk === undefined) return false;
    if (this.#isGone(operation)) {
      // It is over, as when it is looked at next.
      this.#waitingReads.push(operation);
      return true;
    }
    let trouble = this.#troubles.get(operation);
    if (trouble === undefined) {
      this.#troubles.set(operation, trouble = { asked: [], rounds: 0, isOwn: false });
    }
    const { asked } = trouble;
    asked.push(failed);
    if (failed === view.self) trouble.isOwn = true;
    const group = view.groupOf(disk, operation.chunk);
    const mayAsk = group.isOpen && this.host.mayServe;
    const other = mayAsk ? group.entry.inSync.find((node) => !asked.includes(node)) : undefined;
    if (other === undefined) {
      if (mayAsk && ++trouble.rounds >= READ_ROUNDS_MAX) return false;
      asked.length = 0;
      this.#waitingReads.push(operation);
    } else this.#readAt(operation, other);
    return true;
  }

  /** What this node's replica could not give is healed from the one that could. */
  #repair(operation: Operation): void {
    const trouble = this.#troubles.get(operation);
    if (trouble === undefined) return;
    this.#troubles.delete(operation);
    const disk = this.host.view.disk(this.diskId);
    if (disk === undefined || !trouble.isOwn) return;
    this.counters.repairs++;
    this.host.damaged(operation.layers, operation.chunk, operation.block, operation.blockCount);
  }

  // --------------------------------------------------------------------------------------- syncs

  #sync(operation: Operation): void {
    const sync = this.#freeSyncs.pop() ?? new SyncSlot(this);
    sync.operation = operation;
    sync.clock = this.#clock;
    sync.isFailed = false;
    sync.isOurs = false;
    sync.failure = 0;
    sync.isFresh = true;
    this.#syncs.push(sync);
    this.host.atEndOfTurn(this);
    this.#syncStep(sync);
  }

  /** Finishes syncs for which there was nothing to do. */
  endTurn(): void {
    for (let count = this.#gone.count; count > 0; count--) this.#fail(this.#gone.shift(), -EIO);
    for (const sync of [...this.#syncs]) {
      if (!sync.isFresh) continue;
      sync.isFresh = false;
      this.#syncStep(sync);
    }
  }

  /** Asks every node that a sync needs and that has not been asked, and finishes it when none is left. */
  #syncStep(sync: SyncSlot): void {
    if (sync.failure !== 0) return this.#abandonSync(sync);
    if (this.isReader) {
      if (!sync.isFresh) this.#endSync(sync, 0);
      return;
    }
    const { view, mayServe } = this.host;
    const disk = view.disk(this.diskId);
    if (disk === undefined || !mayServe || !this.isOpen || !this.#holdsLease(disk)) return;
    sync.isIncomplete = false;
    const needed = this.#syncNodes;
    needed.clear();
    for (const at of this.#dirtyGroups) {
      for (const node of disk.groups[at].members) needed.add(node);
    }
    for (const [node, request] of sync.pending) {
      if (needed.has(node)) continue;
      if (request !== null) this.host.peers.cancel(request);
      else if (node === view.self) continue; // The store has the operation.
      sync.pending.delete(node);
    }
    for (const node of needed) {
      const isClean = (this.#dirtied.get(node) ?? 0) <= (this.#synced.get(node) ?? 0);
      if (isClean || sync.pending.has(node) || sync.done.has(node)) continue;
      this.#askToSync(sync, node);
    }
    if (sync.pending.size > 0 || sync.isIncomplete || sync.isFresh) return;
    if (this.#areGroupsOpen(sync, disk)) this.#syncDone(sync, disk);
  }

  /** Whether the groups with writes that were not synced can be trusted; notes when one has lost some. */
  #areGroupsOpen(sync: SyncSlot, disk: DiskView): boolean {
    for (const at of this.#dirtyGroups) {
      if (!disk.groups[at].isOpen) return false;
      if (this.#groupLost[at] > 0) sync.isFailed = true;
    }
    return true;
  }

  /**
   * Groups that were settled since their first write that was not synced may have lost all that was acknowledged so
   * far; what is acknowledged from here on is in the replicas that were settled.
   *
   * @param isKnown the disk has just come from another pool, of which every map was seen: what was settled there was noted, group by
   *   group, and the one epoch that the map keeps of it for all of them says nothing more
   */
  #noteLosses(disk: DiskView, isKnown: boolean): void {
    for (const at of this.#dirtyGroups) {
      const settledEpoch = this.host.view.settledEpochOf(disk, disk.groups[at]);
      if (settledEpoch <= this.#groupSince[at]) continue;
      this.#groupSince[at] = settledEpoch;
      if (isKnown && settledEpoch === disk.entry.settledBefore) continue;
      this.#groupLost[at] = this.#groupDirtied[at];
    }
  }

  #askToSync(sync: SyncSlot, node: number): void {
    if (node === this.host.view.self) {
      sync.pending.set(node, null);
      this.host.store.submit(sync.local);
      return;
    }
    const request = this.host.peers.take(MessageType.Sync, sync);
    if (request === null) {
      sync.isIncomplete = true;
      this.host.wantsTick = true;
      return;
    }
    request.head.disk = this.diskId;
    request.head.incarnation = this.host.view.node(node)?.incarnation ?? 0;
    sync.pending.set(node, request);
    this.host.peers.submit(node, request);
  }

  /** A node has synced, or could not. */
  syncAnswered(sync: SyncSlot, node: number, status: number): void {
    if (!sync.pending.delete(node)) return;
    if (status === Status.Ok) {
      sync.done.add(node);
      const before = this.#synced.get(node) ?? 0;
      this.#synced.set(node, Math.max(before, sync.clock));
    } else if (status > 0) {
      // Another start of that node's agent than we know of: asked again when the map has come.
      sync.isIncomplete = true;
      this.host.wantsTick = true;
      return;
    } else {
      // Its store has failed. It leaves, or starts anew and says that it may have lost something.
      sync.isIncomplete = true;
      this.host.memberFailed(node, status);
      return;
    }
    this.#syncStep(sync);
  }

  /** Whether a sync waits and nobody has been asked who would answer. */
  #isStuck(sync: SyncSlot): boolean {
    return sync.pending.size === 0 && !sync.isFresh;
  }

  #abandonSync(sync: SyncSlot): void {
    for (const [node, request] of sync.pending) {
      if (request === null) continue;
      this.host.peers.cancel(request);
      sync.pending.delete(node);
    }
    if (sync.pending.size === 0 && !sync.isFresh) this.#endSync(sync, sync.failure);
  }

  #syncDone(sync: SyncSlot, disk: DiskView): void {
    // The guest's own flush is the one that has to say what is lost.
    if (sync.isFailed && sync.isOurs) return this.#endSync(sync, -EIO);
    let kept = 0;
    for (const at of this.#dirtyGroups) {
      if (this.#groupDirtied[at] > sync.clock) this.#dirtyGroups[kept++] = at;
      else this.#groupDirtied[at] = 0;
      if (this.#groupLost[at] <= sync.clock) this.#groupLost[at] = 0;
    }
    this.#dirtyGroups.length = kept;
    if (sync.isFailed) {
      // The others under way may cover what this one has just told of.
      for (const other of this.#syncs) if (!other.isOurs) other.isFailed = true;
      this.host.log.error(
        "writes that were not flushed yet may be lost: every replica of them failed",
        { disk: disk.entry.name },
      );
    }
    this.#endSync(sync, sync.isFailed ? -EIO : 0);
  }

  #endSync(sync: SyncSlot, result: number): void {
    this.#syncs.splice(this.#syncs.indexOf(sync), 1);
    const operation = sync.operation!;
    sync.operation = null;
    sync.pending.clear();
    sync.done.clear();
    this.#freeSyncs.push(sync);
    operation.result = result;
    operation.owner.operationDone(operation);
  }
}
