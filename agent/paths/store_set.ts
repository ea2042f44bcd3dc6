/**
 * Several data paths of one node, each a store and a failure unit of its own, where one store stood.
 *
 *     replication, volumes ─▶ StoreSet ─┬─ by the chunk's slot ─▶ the one store that holds it
 *                                       ├─ sync, layers, scrub ─▶ all that work
 *                                       └─ META ───────────────▶ all that work, with a count of changes
 *
 * Who is a member of placement groups are nodes; which path of a node holds a group is the node's own business, and is in
 * the table of `slots.ts`.
 *
 * Invariants:
 * - A chunk is on one path. What lies on another one is left over from before: it is never read, listed or
 *   compared, and is dropped. Before a group goes to a path, what that has left over of it is dropped, durably: since it was left there
 *   layers may have been absorbed or flattened, and its stamps say nothing about that.
 * - The table is durable on every path that works before anything is done by it. So whichever paths are left, they know what
 *   the others hold.
 * - A path that fails, or is not there, is lost for the rest of the run. Nothing on it counts as empty: operations
 *   on its chunks fail, and syncs fail, until the map in force does not take this node to hold any of it. So a flush that
 *   covered writes on that path does not succeed by what is left.
 * - Where this node is the only member in sync of a group on a lost path, the table keeps it there, until it is back.
 * - META is changed on all paths that work, in the same order, the count last; a change is done when it is durable on all of
 *   them. So the path with the highest count has everything that was done, and those that were away have a lower one.
 * - An operation comes back through its owner exactly once, never from inside `submit`; per I/O there is one look-up of the
 *   layer, and nothing is allocated.
 *
 * - Where the paths are filled differently, groups move from the fullest to the emptiest (`mover.ts`), one at a time.
 *
 * What this cannot know by itself: that a path which is there was left behind by others which are all gone now. Whoever starts
 * the set says how high the count was (`SetEvents.leftBehind`), as long as that is remembered somewhere else.
 *
 * @module
 */
import { toHex } from "../base/bytes.ts";
import { mix32 } from "../map/hash.ts";
import {
  type ClusterMap,
  disksOfLayers,
  hasDisks,
  type LayerEntry,
  type Pool,
} from "../map/map.ts";
import type { Arena } from "../base/arena.ts";
import { EINVAL, EIO, ENODEV, type Log, type Window } from "../platform/platform.ts";
import {
  type ChunkList,
  chunkList,
  type LocalPaths,
  type LocalStore,
  type Stamp,
} from "../replication/local_store.ts";
import { type Done, StoreError } from "../store/errors.ts";
import { Operation, OperationKind, type OperationOwner } from "../store/operation.ts";
import { OperationList } from "../store/operation_list.ts";
import type { ScrubProgress } from "../store/scrub.ts";
import type { StoreState, StoreStats } from "../store/stats.ts";
import type { Store, StoreIdentity } from "../store/store.ts";
import type { NodeStore } from "./node_store.ts";
import {
  COUNT_KEY,
  COUNT_STEP,
  decodeCount,
  encodeCount,
  encodeRecord,
  type KnownPath,
  RECORD_KEY,
} from "./record.ts";
import { NO_PATH, planSlots, SLOT_MASK, slotsOf } from "./slots.ts";
import { type Move, Mover } from "./mover.ts";
import { mergeStats } from "./stats.ts";

/** Milliseconds between looks at whether a group should move to another path. */
const LOOK_MS = 1000;
/** Difference of how full two paths are, as a share of their capacity, from which on groups move. */
const DIFFERENCE_MIN = 0.1;

/** Left-over chunks that are looked at, and dropped, per tick and path. */
const LEFTOVERS_PER_TICK = 256;

/** `ok`: works. `failed`: stopped working in this run. `missing`: could not be opened. `left-out`: was not named. */
export type PathState = "ok" | "failed" | "missing" | "left-out";

/** One path, for status. */
export interface PathStatus {
  readonly location: string;
  readonly state: PathState;
  /** Why it does not work, in words; "" when it does. */
  readonly reason: string;
  /** Bytes of live data; 0 when it does not work. */
  readonly usedBytes: number;
  /** Bytes of data that fit; of a lost path what fitted when it was last open. */
  readonly capacityBytes: number;
  readonly isFull: boolean;
  /** Slots whose chunks are there, of 16384. */
  readonly slots: number;
}

/** A path that the set is made of. */
export interface SetPath extends KnownPath {
  /** Open; null: the path is lost. */
  readonly store: Store | null;
  readonly state: PathState;
  readonly reason: string;
}

/** What the set wants to be known. */
export interface SetEvents {
  /** A path has failed: the set goes on without it. */
  pathFailed(location: string, reason: string): void;
  /**
   * Paths were left behind: whichever are there at a later start, one at least must have a count of changes like this. To be
   * remembered somewhere else than on the paths, for as long as that can be.
   *
   * @param nodeId whose paths they are: 32 hexadecimal digits
   */
  leftBehind(nodeId: string, count: number): void;
}

class Member {
  readonly id: number;
  readonly storeId: string;
  location: string;
  capacityBytes: number;
  /** Null: lost. */
  store: Store | null;
  state: PathState;
  reason: string;
  /** Epoch in force when it was lost; −1: it works. */
  lostEpoch: number;
  /** Where the search for what is left over goes on: a layer, and a chunk; −1: it is done. */
  leftoverLayer = 0;
  leftoverChunk = 0;
  /** …among the chunks of this group, of so many; 1: of all. */
  leftoverGroup = 0;
  leftoverGroups = 1;
  /** Whether something left over was dropped here that no sync has covered. */
  hasDropped = false;
  /** Why it does not count though its store works: it refused what the others took; "": it counts. */
  refusal = "";
  /** Failed in this run: still turned, until what it had is given back. */
  failed: Store | null = null;

  constructor(path: SetPath) {
    this.id = path.id;
    this.storeId = path.storeId;
    this.location = path.location;
    this.capacityBytes = path.capacityBytes;
    this.store = path.store;
    this.state = path.state;
    this.reason = path.reason;
    this.lostEpoch = path.store === null ? 0 : -1;
  }
}

/** A group that is about to go to a path. */
interface Assigned {
  readonly group: number;
  readonly member: Member;
}

/** A chunk on a path that the table does not look for there. */
interface Leftover {
  readonly member: Member;
  readonly layer: number;
  readonly chunk: number;
}

/** A sync of all paths; reused. */
class SyncJoin implements OperationOwner {
  operation: Operation | null = null;
  pending = 0;
  result = 0;
  readonly parts: Operation[] = [];

  constructor(readonly set: StoreSet, paths: number) {
    for (let i = 0; i < paths; i++) {
      const part = new Operation(this, 0);
      part.kind = OperationKind.Sync;
      this.parts.push(part);
    }
  }

  operationDone(part: Operation): void {
    if (part.result < 0) this.result = part.result;
    if (--this.pending === 0) this.set.syncDone(this);
  }
}

/** See the head of the file. */
export class StoreSet implements LocalStore, LocalPaths, NodeStore {
  readonly paths: LocalPaths = this;
  /** {@inheritDoc LocalStore.damageListener} */
  damageListener: ((layer: number, chunk: number, block: number) => void) | null = null;

  readonly #members: Member[];
  /** By id of the path: its store, null when it is lost. */
  readonly #stores: (Store | null)[] = new Array(256).fill(null);
  /** Those that work, in the order of their ids. */
  #working: Member[] = [];
  #table: Uint8Array;
  /** Of each layer of the map: what the slots of its chunks start from. */
  #mixes = new Map<number, number>();
  #layerList: number[] = [];
  readonly #log: Log;
  readonly #events: SetEvents;
  #count: number;
  /** Epoch of the map that is in force, and of the one that was prepared last. */
  #epoch = -1;
  #preparedEpoch = -1;
  /** Pools with disks of the map that was prepared last, and its disks. */
  #mapPools: readonly Pool[] | null = null;
  #mapLayers: readonly LayerEntry[] | null = null;
  /** Lost paths that the map in force, and the one prepared last, take this node to hold data on. */
  #owed: ReadonlySet<number> = NONE;
  #owedNext: ReadonlySet<number> = NONE;
  /** {@inheritDoc LocalPaths.lossEpoch} */
  lossEpoch = 0;
  /** A path was added in this run: groups that hold nothing may go there. */
  #isSpread: boolean;
  readonly #finished = new OperationList();
  readonly #answers: { done: Done; error: StoreError | null }[] = [];
  readonly #joins: SyncJoin[] = [];
  #drops = 0;
  /** What waits until no left-over chunk is being dropped. */
  readonly #afterDrops: (() => void)[] = [];
  /** The table is being written. */
  #isTableBusy = false;
  /** What it is about to be; null: it stays. */
  #tableNext: Uint8Array | null = null;
  /** Paths that were lost in this run. */
  #losses = 0;
  /** What waits until it is not. */
  readonly #afterTable: (() => void)[] = [];
  /** What waits until the group that moves has moved, or not. */
  readonly #afterMove: (() => void)[] = [];
  readonly #mover: Mover | null;
  /** What is submitted to the group that moves, while it must not be changed. */
  readonly #held: (() => void)[] = [];
  readonly #differenceMin: number;
  #map: ClusterMap | null = null;
  #self = 0;
  #lookMs = 0;
  readonly #lists = new Map<number, ChunkList[]>();
  #isClosing = false;
  /** Clean since before this run. */
  readonly wasClean: boolean;
  readonly identity: StoreIdentity;

  /**
   * @param options.paths all that are known; one at least is open. Their META is equal
   * @param options.table as it is in META
   * @param options.count of changes of META so far
   * @param options.isSpread a path was added: see `slots.ts` for what may go there
   */
  constructor(options: {
    paths: readonly SetPath[];
    table: Uint8Array;
    count: number;
    isSpread: boolean;
    log: Log;
    events: SetEvents;
    /** For copying between paths; left out: groups stay where they are. */
    memory?: { readonly window: Window; readonly arena: Arena };
    differenceMin?: number;
  }) {
    this.#members = options.paths.map((path) => new Member(path)).sort((a, b) => a.id - b.id);
    this.#table = options.table;
    this.#count = options.count;
    this.#isSpread = options.isSpread;
    this.#differenceMin = options.differenceMin ?? DIFFERENCE_MIN;
    this.#mover = options.memory === undefined ? null : this.#makeMover(options.memory);
    this.#log = options.log;
    this.#events = options.events;
    for (const member of this.#members) {
      const { store } = member;
      this.#stores[member.id] = store;
      if (store === null) continue;
      store.damageListener = (layer, chunk, block) => {
        if (this.#storeOf(layer, chunk) === store) this.damageListener?.(layer, chunk, block);
      };
    }
    this.#working = this.#members.filter((member) => member.store !== null);
    if (this.#working.length === 0) throw new Error("store set: no path works");
    const stores = this.#working.map((member) => member.store!);
    this.wasClean = stores.every((store) => store.wasClean);
    this.identity = stores[0].identity;
  }

  // ── Routing ────────────────────────────────────────────────────────────────────────────────────

  /** The store of a chunk; null when its path is lost, or nothing is known of its layer. */
  #storeOf(layer: number, chunk: number): Store | null {
    const mix = this.#mixes.get(layer);
    return mix === undefined ? null : this.#stores[this.#table[mix + chunk & SLOT_MASK]];
  }

  /** {@inheritDoc LocalStore.submit} */
  submit(operation: Operation): void {
    if (operation.kind === OperationKind.Sync) return this.#sync(operation);
    const { layers, chunk } = operation;
    const store = this.#storeOf(layers[0], chunk);
    // Only layers of one family have their chunks on one path.
    if (operation.kind === OperationKind.Absorb && this.#storeOf(layers[1], chunk) !== store) {
      operation.result = -EINVAL;
      this.#finished.push(operation);
      return;
    }
    if (store !== null) {
      const isHeld = this.#mover !== null && this.#mover.move !== null &&
        operation.kind !== OperationKind.Read && this.#isChangeHeld(operation);
      if (isHeld) this.#held.push(() => this.submit(operation));
      else store.submit(operation);
      return;
    }
    operation.result = -ENODEV;
    this.#finished.push(operation);
  }

  /** {@inheritDoc LocalStore.withdraw} */
  withdraw(isWanted: (operation: Operation) => boolean): void {
    for (const { store } of this.#working) store!.withdraw(isWanted);
  }

  #sync(operation: Operation): void {
    if (this.#owed.size > 0) {
      operation.result = -EIO;
      this.#finished.push(operation);
      return;
    }
    const working = this.#working;
    const join = this.#joins.pop() ?? new SyncJoin(this, this.#members.length);
    join.operation = operation;
    join.pending = working.length;
    join.result = 0;
    for (let i = 0; i < working.length; i++) working[i].store!.submit(join.parts[i]);
  }

  /** From {@linkcode SyncJoin}. */
  syncDone(join: SyncJoin): void {
    const operation = join.operation!;
    join.operation = null;
    this.#joins.push(join);
    operation.result = join.result;
    operation.owner.operationDone(operation);
  }

  /** {@inheritDoc LocalStore.hasRoom} */
  hasRoom(layer: number, chunk: number, bytes: number): boolean {
    return this.#storeOf(layer, chunk)?.hasRoom(layer, chunk, bytes) === true;
  }

  /** {@inheritDoc LocalStore.stampOf} */
  stampOf(layer: number, chunk: number, stamp: Stamp): boolean {
    const store = this.#storeOf(layer, chunk);
    if (store !== null) return store.stampOf(layer, chunk, stamp);
    stamp.set(0, 0);
    return false;
  }

  /** {@inheritDoc LocalStore.describeChunk} */
  describeChunk(
    layer: number,
    chunk: number,
    data: Uint32Array,
    zeros: Uint32Array,
    poisoned: Uint32Array,
  ): number {
    const store = this.#storeOf(layer, chunk);
    if (store !== null) return store.describeChunk(layer, chunk, data, zeros, poisoned);
    for (const words of [data, zeros, poisoned]) words.fill(0);
    return 0;
  }

  /** {@inheritDoc NodeStore.offsetOf} */
  offsetOf(layer: number, chunk: number, block: number): number {
    return this.#storeOf(layer, chunk)?.offsetOf(layer, chunk, block) ?? -1;
  }

  /** {@inheritDoc NodeStore.holds} */
  holds(layer: number, chunk: number, block: number): boolean {
    return this.#storeOf(layer, chunk)?.holds(layer, chunk, block) ?? false;
  }

  /** {@inheritDoc NodeStore.isDamaged} */
  isDamaged(layer: number, chunk: number, block: number): boolean {
    return this.#storeOf(layer, chunk)?.isDamaged(layer, chunk, block) ?? false;
  }

  /** The data path that has a chunk, as it was given; null: it is lost, or nothing is known of the layer. */
  locationOf(layer: number, chunk: number): string | null {
    const store = this.#storeOf(layer, chunk);
    return this.#working.find((member) => member.store === store)?.location ?? null;
  }

  /** {@inheritDoc LocalStore.describeChain} Layers of one family have a chunk on one path. */
  describeChain(
    layers: readonly number[],
    chunk: number,
    data: Uint32Array,
    zeros: Uint32Array,
    poisoned: Uint32Array,
  ): number {
    const store = layers.length === 0 ? null : this.#storeOf(layers[0], chunk);
    if (store !== null) return store.describeChain(layers, chunk, data, zeros, poisoned);
    for (const words of [data, zeros, poisoned]) words.fill(0);
    return 0;
  }

  /** {@inheritDoc LocalStore.dropChunk} */
  dropChunk(layer: number, chunk: number, done: Done): void {
    const store = this.#storeOf(layer, chunk);
    if (store !== null) {
      if (!this.#isHeld(layer, chunk)) return store.dropChunk(layer, chunk, done);
      this.#held.push(() => this.dropChunk(layer, chunk, done));
      return;
    }
    this.#later(done, new StoreError("IO", "the chunk's path is lost"));
  }

  /** {@inheritDoc LocalStore.listChunks} A group is on one path; a whole layer is on all of them. */
  listChunks(layer: number, from: number, list: ChunkList, step = 1, offset = 0): void {
    list.count = 0;
    list.next = -1;
    if (step > 1) {
      const store = this.#storeOf(layer, offset);
      if (store?.hasLayer(layer)) store.listChunks(layer, from, list, step, offset);
      return;
    }
    const parts = this.#listsOf(list.chunks.length);
    const working = this.#working;
    let end = Infinity;
    for (let i = 0; i < working.length; i++) {
      const part = parts[i];
      part.count = 0;
      part.next = -1;
      if (!working[i].store!.hasLayer(layer)) continue;
      working[i].store!.listChunks(layer, from, part);
      if (part.next >= 0) end = Math.min(end, part.next);
    }
    const at = new Uint32Array(working.length);
    for (;;) {
      let least = Infinity;
      let which = -1;
      for (let i = 0; i < working.length; i++) {
        if (at[i] < parts[i].count && parts[i].chunks[at[i]] < least) {
          least = parts[i].chunks[at[i]];
          which = i;
        }
      }
      if (which < 0 || least >= end) break;
      if (list.count === list.chunks.length) {
        list.next = least;
        return;
      }
      const index = at[which]++;
      if (this.#storeOf(layer, least) !== working[which].store) continue;
      list.chunks[list.count] = least;
      list.generations[list.count] = parts[which].generations[index];
      list.sequences[list.count++] = parts[which].sequences[index];
    }
    if (end !== Infinity) list.next = end;
  }

  #listsOf(length: number): ChunkList[] {
    let lists = this.#lists.get(length);
    if (lists === undefined) {
      lists = this.#members.map(() => chunkList(length));
      this.#lists.set(length, lists);
    }
    return lists;
  }

  // ── Layers ─────────────────────────────────────────────────────────────────────────────────────

  /** {@inheritDoc LocalStore.hasLayer} */
  hasLayer(layer: number): boolean {
    return this.#working.every(({ store }) => store!.hasLayer(layer));
  }

  /** {@inheritDoc LocalStore.layers} */
  layers(): number[] {
    const layers = new Set(this.#working.flatMap(({ store }) => store!.layers()));
    return [...layers].sort((a, b) => a - b);
  }

  /** {@inheritDoc LocalStore.createLayer} */
  createLayer(layer: number, done: Done): void {
    const lacking = this.#working.filter(({ store }) => !store!.hasLayer(layer));
    this.#onAll(lacking, (store, each) => store.createLayer(layer, each), done);
  }

  /** {@inheritDoc LocalStore.deleteLayer} */
  deleteLayer(layer: number, done: Done): void {
    const having = this.#working.filter(({ store }) => store!.hasLayer(layer));
    this.#onAll(having, (store, each) => store.deleteLayer(layer, each), done);
  }

  /** Bytes of data that a layer holds on all paths. */
  layerBytes(layer: number): number {
    return this.#working.reduce((sum, { store }) => sum + store!.layerBytes(layer), 0);
  }

  /**
   * Has something done on some paths; those that fail in it are lost, and count no more.
   *
   * @param isAlike what some have done and others refuse must not be so: those others are lost, too
   */
  #onAll(
    members: readonly Member[],
    run: (store: Store, each: Done) => void,
    done: Done,
    isAlike = false,
  ): void {
    if (members.length === 0) return this.#later(done, null);
    let left = members.length;
    let isDone = false;
    let loss: StoreError | null = null;
    const refusals: [Member, StoreError][] = [];
    for (const member of members) {
      const store = member.store!;
      run(store, (error) => {
        if (error === null) isDone = true;
        else if (store.state === "failed") loss = error;
        else refusals.push([member, error]);
        if (--left > 0) return;
        if (isAlike && isDone) {
          for (const [each, { message }] of refusals) each.refusal = message;
          this.#noteFailures();
          return done(null);
        }
        done(refusals.length > 0 ? refusals[0][1] : isDone ? null : loss);
      });
    }
  }

  // ── META ───────────────────────────────────────────────────────────────────────────────────────

  /** As `Store.setMetaBatch`, on all paths that work. */
  setMetaBatch(
    entries: readonly { readonly key: string; readonly value: Uint8Array | null }[],
    done: Done,
  ): void {
    this.#noteFailures();
    const counted = [...entries, { key: COUNT_KEY, value: encodeCount(++this.#count) }];
    this.#onAll(this.#working, (store, each) => store.setMetaBatch(counted, each), done, true);
  }

  /** As `Store.getMeta`. */
  getMeta(key: string): Uint8Array | null {
    return this.#working[0].store!.getMeta(key);
  }

  /** As `Store.metaKeys`, but for what is this set's own. */
  metaKeys(): string[] {
    const keys = this.#working[0].store!.metaKeys();
    return keys.filter((key) => key !== RECORD_KEY && key !== COUNT_KEY);
  }

  /** Writes paths and table. */
  #remember(table: Uint8Array, done: Done): void {
    const value = encodeRecord({ paths: this.#members, table });
    this.setMetaBatch([{ key: RECORD_KEY, value }], done);
  }

  /** The group that is on its way from one path to another; −1: none. */
  get movingGroup(): number {
    return this.#mover?.move?.group ?? -1;
  }

  /** Groups that were moved from one path to another. */
  get movedGroups(): number {
    return this.#mover?.moved ?? 0;
  }

  // ── Moving ─────────────────────────────────────────────────────────────────────────────────────

  #makeMover({ window, arena }: { window: Window; arena: Arena }): Mover {
    // deno-lint-ignore no-this-alias
    const set = this;
    return new Mover({
      window,
      arena,
      get layers() {
        return set.#mixes;
      },
      commit: (group, to, done) => this.#moved(group, to, done),
      release: () => {
        for (const run of this.#held.splice(0)) run();
      },
      over: ({ group, groups }, path) => {
        const member = this.#members.find(({ id }) => id === path)!;
        const isAllSearched = member.leftoverLayer >= 0 && member.leftoverGroups === 1;
        if (isAllSearched) search(member, 0, 1);
        else search(member, group, groups);
        for (const run of this.#afterMove.splice(0)) run();
      },
    });
  }

  /** The same for a change, which an absorb is of two chunks: of one family, and so of one group. */
  #isChangeHeld({ kind, layers, chunk }: Operation): boolean {
    const isHeld = this.#isHeld(layers[0], chunk);
    if (kind !== OperationKind.Absorb) return isHeld;
    return this.#isHeld(layers[1], chunk) || isHeld;
  }

  /** Notes that a chunk of the group that moves is changed; true: not now. */
  #isHeld(layer: number, chunk: number): boolean {
    const move = this.#mover?.move ?? null;
    if (move === null) return false;
    const slot = this.#mixes.get(layer)! + chunk & SLOT_MASK;
    if ((slot & move.groups - 1) !== move.group) return false;
    if (this.#mover!.isFrozen) return true;
    this.#mover!.changed(layer, chunk);
    return false;
  }

  /** Writes down that a group is on another path now. */
  #moved(group: number, to: number, done: (isDone: boolean) => void): void {
    if (this.#isTableBusy) {
      this.#afterTable.push(() => this.#moved(group, to, done));
      return;
    }
    const move = this.#mover!.move!;
    // It may have been lost, or given up, while it waited.
    if (!this.#mayMove(move)) return done(false);
    const table = this.#table.slice();
    for (let slot = group; slot < table.length; slot += move.groups) table[slot] = to;
    this.#writeTable(table, (error) => {
      if (error === null) this.#log.debug("a group has moved to another data path", { group, to });
      done(error === null);
    });
  }

  /** Makes a table durable, and uses it then. */
  #writeTable(table: Uint8Array, done: Done): void {
    this.#isTableBusy = true;
    this.#tableNext = table;
    this.#remember(table, (error) => {
      this.#isTableBusy = false;
      this.#tableNext = null;
      if (error === null) this.#table = table;
      // Some path may have it nevertheless, by a loss that was noted meanwhile.
      else this.#remember(this.#table, () => {});
      done(error);
      for (const run of this.#afterTable.splice(0)) run();
    });
  }

  #mayMove({ group, groups, fromId, from, toId, to }: Move): boolean {
    const map = this.#map;
    if (map === null || 2 ** map.pgBits !== groups || this.#isClosing) return false;
    if (this.#stores[fromId] !== from || this.#stores[toId] !== to) return false;
    let isHere = false;
    for (const { id, pgs } of map.pools) {
      if (!hasDisks(map, id)) continue;
      const { inSync, unclean, joining } = pgs[group];
      if (joining.includes(this.#self) || unclean.includes(this.#self)) return false;
      isHere ||= inSync.includes(this.#self);
    }
    return isHere && this.#table[group] === fromId;
  }

  /** Begins to move a group from the fullest path to the emptiest, if that is worth it. */
  #look(nowMs: number): void {
    const mover = this.#mover;
    const map = this.#map;
    if (mover === null || map === null || mover.move !== null || nowMs < this.#lookMs) return;
    this.#lookMs = nowMs + LOOK_MS;
    const working = this.#working;
    const isBusy = working.length < 2 || this.#epoch < 0 || this.#preparedEpoch !== this.#epoch ||
      this.#drops > 0 || working.some(({ leftoverLayer }) => leftoverLayer >= 0);
    if (isBusy) return;
    const shares = working.map((member) => {
      const { liveBytes, usableBytes } = member.store!.stats();
      return { member, liveBytes, usableBytes, share: liveBytes / Math.max(1, usableBytes) };
    }).sort((a, b) => a.share - b.share);
    const [to, from] = [shares[0], shares[shares.length - 1]];
    if (from.share - to.share < this.#differenceMin) return;
    const groups = 2 ** map.pgBits;
    const movable: Move[] = [];
    for (let group = 0; group < groups; group++) {
      const move = {
        group,
        groups,
        from: from.member.store!,
        fromId: from.member.id,
        to: to.member.store!,
        toId: to.member.id,
      };
      if (this.#mayMove(move)) movable.push(move);
    }
    // Each holds about as much as the others; one that would only turn the difference around stays.
    const bytes = from.liveBytes / Math.max(1, movable.length);
    const isWorthIt = to.share + bytes / to.usableBytes < from.share - bytes / from.usableBytes;
    const move = movable.find(({ group }) => !mover.unmovable.has(group));
    if (move !== undefined && isWorthIt) mover.begin(move);
  }

  // ── LocalPaths ─────────────────────────────────────────────────────────────────────────────────

  /** {@inheritDoc LocalPaths.prepare} */
  prepare(map: ClusterMap, self: number, done: (error: Error | null) => void): boolean {
    this.#noteFailures();
    this.#learnLayers(map);
    this.#map = map;
    this.#self = self;
    const move = this.#mover?.move ?? null;
    if (move !== null && !this.#mayMove(move)) this.#mover!.abort();
    // Leases change often, and who is in a group seldom.
    const pools = map.pools.filter((pool) => hasDisks(map, pool.id));
    const isSame = !this.#isSpread && this.#mapPools?.length === pools.length &&
      pools.every((pool, index) => pool === this.#mapPools![index]);
    if (isSame) {
      this.#preparedEpoch = map.epoch;
      return true;
    }
    const again = () => {
      if (this.prepare(map, self, done)) done(null);
    };
    // What is being dropped must not be taken for what a group begins with.
    if (this.#isTableBusy || this.#drops > 0) {
      (this.#isTableBusy ? this.#afterTable : this.#afterDrops).push(again);
      return false;
    }
    const { table, owed } = planSlots(
      map,
      self,
      this.#table,
      this.#members.map(({ id, lostEpoch, store, capacityBytes }) => ({
        id,
        lostEpoch,
        capacityBytes: store?.stats().usableBytes ?? capacityBytes,
      })),
      this.#preparedEpoch,
      (group, isNew) => (isNew || this.#isSpread) && this.#isEmpty(map, group),
    );
    const losses = this.#losses;
    const settled = () => {
      this.#owedNext = owed;
      this.#mapPools = pools;
      this.#preparedEpoch = map.epoch;
      this.#isSpread = false;
    };
    if (table === null) {
      settled();
      return true;
    }
    const assigned = this.#assigned(map, table);
    const isOnItsWay = assigned.some(({ group, member }) =>
      this.#mover?.move?.group === group && this.#mover.move.toId === member.id
    );
    if (isOnItsWay) {
      this.#mover!.abort();
      this.#afterMove.push(again);
      return false;
    }
    this.#clear(map, assigned, table, (error) => {
      if (error !== null) return done(error);
      this.#writeTable(table, (error) => {
        if (error !== null) return done(error);
        // The plan knows nothing of a path that was lost meanwhile, nor of what is owed for it.
        if (this.#losses !== losses) return again();
        settled();
        done(null);
      });
    });
    return false;
  }

  /** Groups of which some slots get another path by a table, and that path. */
  #assigned(map: ClusterMap, table: Uint8Array): Assigned[] {
    const groups = 2 ** map.pgBits;
    const assigned: Assigned[] = [];
    for (let group = 0; group < groups; group++) {
      for (let slot = group; slot < table.length; slot += groups) {
        if (table[slot] === NO_PATH || table[slot] === this.#table[slot]) continue;
        // All slots of a group that get a path get the same.
        const member = this.#members.find(({ id }) => id === table[slot])!;
        assigned.push({ group, member });
        break;
      }
    }
    return assigned;
  }

  /** Drops, durably, what paths have left over of groups that are about to go there. May call back at once. */
  #clear(
    map: ClusterMap,
    assigned: readonly Assigned[],
    table: Uint8Array,
    done: (error: StoreError | null) => void,
  ): void {
    // Where all that was left over has been looked for, and made durable as dropped, there is none.
    const suspects = assigned.filter(({ member }) =>
      member.leftoverLayer >= 0 || member.hasDropped
    );
    if (suspects.length === 0) return done(null);
    this.#isTableBusy = true;
    let failure: StoreError | null = null;
    const over = () => {
      this.#isTableBusy = false;
      done(failure);
      if (failure === null) return;
      for (const run of this.#afterTable.splice(0)) run();
    };
    const leftovers = this.#leftoversOf(2 ** map.pgBits, suspects, table);
    let left = 0;
    const dropped = (error: StoreError | null) => {
      failure ??= error;
      if (--left === 0) step();
    };
    const step = () => {
      const some: Leftover[] = [];
      while (failure === null && some.length < LEFTOVERS_PER_TICK) {
        const next = leftovers.next();
        if (next.done === true) break;
        some.push(next.value);
      }
      if (failure !== null) return over();
      if (some.length === 0) return sync();
      left = some.length;
      for (const { member: { store }, layer, chunk } of some) {
        if (store !== null) store.dropChunk(layer, chunk, dropped);
        else dropped(new StoreError("IO", "a data path has failed"));
      }
    };
    const sync = () => {
      const members = new Set(suspects.map(({ member }) => member));
      const unsynced = [...members].filter(({ hasDropped }) => hasDropped);
      let left = unsynced.length;
      if (left === 0) return over();
      for (const member of unsynced) {
        const operationDone = ({ result }: Operation) => {
          if (result === 0) member.hasDropped = false;
          else {failure ??= new StoreError(
              "IO",
              `a data path could not be synced (errno ${-result})`,
            );}
          if (--left === 0) over();
        };
        const operation = new Operation({ operationDone }, 0);
        operation.kind = OperationKind.Sync;
        const { store } = member;
        operation.result = -EIO;
        if (store === null) operationDone(operation);
        else store.submit(operation);
      }
    };
    step();
  }

  /** What {@linkcode #clear} has to drop, chunk by chunk. */
  *#leftoversOf(
    groups: number,
    assigned: readonly Assigned[],
    table: Uint8Array,
  ): Generator<Leftover> {
    const list = chunkList(LEFTOVERS_PER_TICK);
    for (const { group, member } of assigned) {
      for (const [layer, mix] of [...this.#mixes]) {
        let from = 0;
        do {
          list.count = 0;
          list.next = -1;
          if (member.store?.hasLayer(layer)) {
            member.store.listChunks(layer, from, list, groups, group - mix & groups - 1);
          }
          from = list.next;
          for (let i = 0; i < list.count; i++) {
            const slot = mix + list.chunks[i] & SLOT_MASK;
            if (this.#table[slot] === member.id || table[slot] !== member.id) continue;
            member.hasDropped = true;
            yield { member, layer, chunk: list.chunks[i] };
          }
        } while (from >= 0);
      }
    }
  }

  #learnLayers(map: ClusterMap): void {
    if (map.layers === this.#mapLayers) return;
    this.#mapLayers = map.layers;
    const mixes = new Map<number, number>();
    for (const [layer, { family }] of disksOfLayers(map)) mixes.set(layer, mix32(family));
    // Those of disks that have gone are kept until they are deleted here.
    for (const [layer, mix] of this.#mixes) {
      if (!mixes.has(layer) && this.#working.some(({ store }) => store!.hasLayer(layer))) {
        mixes.set(layer, mix);
      }
    }
    for (const layer of mixes.keys()) if (!this.#mixes.has(layer)) this.#searchAlso(layer);
    this.#mixes = mixes;
    this.#layerList = [...mixes.keys()].sort((a, b) => a - b);
  }

  /** A layer is known now that paths may have had before: after a start the first map may be older than what they hold. */
  #searchAlso(layer: number): void {
    const [list] = this.#listsOf(1);
    for (const member of this.#working) {
      const isSearched = member.leftoverLayer >= 0 && member.leftoverGroups === 1;
      if (isSearched || !member.store!.hasLayer(layer)) continue;
      list.count = 0;
      member.store!.listChunks(layer, 0, list);
      if (list.count > 0) search(member, 0, 1);
    }
  }

  /** Whether this node holds no chunk of a group, in any pool. */
  #isEmpty(map: ClusterMap, group: number): boolean {
    const groups = 2 ** map.pgBits;
    const [list] = this.#listsOf(1);
    for (const [layer, mix] of this.#mixes) {
      const first = group - mix & groups - 1;
      const store = this.#storeOf(layer, first);
      if (store === null) return false;
      if (!store.hasLayer(layer)) continue;
      let from = 0;
      do {
        store.listChunks(layer, from, list, groups, first);
        if (list.count > 0) return false;
        from = list.next;
      } while (from >= 0);
    }
    return true;
  }

  /** {@inheritDoc LocalPaths.installed} */
  installed(): void {
    this.#epoch = this.#preparedEpoch;
    if ([...this.#owed].some((id) => !this.#owedNext.has(id))) this.lossEpoch = this.#epoch;
    this.#owed = this.#owedNext;
  }

  /** {@inheritDoc LocalPaths.isImpaired} */
  get isImpaired(): boolean {
    return this.#working.length < this.#members.length ||
      this.#working.some(({ store }) => store!.state === "failed");
  }

  /** {@inheritDoc LocalPaths.isLost} */
  isLost(layer: number, chunk: number): boolean {
    if (!this.#mixes.has(layer)) return false;
    const store = this.#storeOf(layer, chunk);
    return store === null || store.state === "failed";
  }

  /** {@inheritDoc LocalPaths.lossOf} */
  lossOf(group: number): string | null {
    const id = this.#table[group & SLOT_MASK];
    const member = this.#members.find((each) => each.id === id);
    return member === undefined || member.store !== null ? null : describeLoss(member);
  }

  /** {@inheritDoc LocalPaths.owed} */
  owed(): Uint8Array | null {
    return this.#owed.size === 0 ? null : this.lost();
  }

  /** Slots on lost paths: see `slotsOf`. Empty: none. */
  lost(): Uint8Array<ArrayBuffer> {
    const ids = this.#members.filter(({ store }) => store === null).map(({ id }) => id);
    return slotsOf(this.#table, new Set(ids));
  }

  /** All paths that are known, for status; not those that were left out and that nothing is missed of. */
  pathStatus(): PathStatus[] {
    const slots = new Uint32Array(256);
    for (const id of this.#table) slots[id]++;
    const shown = this.#members.filter(({ id, state }) => state !== "left-out" || slots[id] > 0);
    return shown.map((member): PathStatus => {
      const { store } = member;
      const stats = store === null || store.state === "closed" ? undefined : store.stats();
      return {
        location: member.location === "" ? `path ${member.id}` : member.location,
        state: member.state,
        reason: member.reason,
        usedBytes: stats?.liveBytes ?? 0,
        capacityBytes: stats?.usableBytes ?? member.capacityBytes,
        isFull: stats?.full ?? false,
        slots: slots[member.id],
      };
    });
  }

  // ── Failure ────────────────────────────────────────────────────────────────────────────────────

  /** Paths whose store has stopped are lost from now on; the last one is kept, for what it says. */
  #noteFailures(): void {
    let isLost = false;
    for (let i = 0; i < this.#working.length; i++) {
      const member = this.#working[i];
      const isFailed = member.store!.state === "failed" || member.refusal !== "";
      if (!isFailed || this.#working.length === 1) continue;
      const reason = member.store!.stats().failed ?? member.refusal;
      member.capacityBytes = member.store!.stats().usableBytes;
      member.failed = member.store;
      member.store = null;
      member.state = "failed";
      member.reason = reason;
      member.lostEpoch = Math.max(0, this.#epoch);
      this.#stores[member.id] = null;
      this.#working = this.#working.filter((each) => each !== member);
      i--;
      this.#losses++;
      // Until a map says otherwise.
      if (this.#table.includes(member.id) || this.#tableNext?.includes(member.id)) {
        this.#owed = new Set([...this.#owed, member.id]);
        this.#owedNext = new Set([...this.#owedNext, member.id]);
      }
      const move = this.#mover?.move ?? null;
      if (move !== null && !this.#mayMove(move)) this.#mover!.abort();
      // The next map has to be looked at, whether its groups have changed or not.
      this.#mapPools = null;
      this.#log.error("a data path has failed; the others go on", {
        path: member.location,
        reason,
      });
      this.#events.pathFailed(member.location, reason);
      isLost = true;
    }
    if (!isLost) return;
    // From here on the others count for more, whatever the one that is lost has still got.
    this.#count += COUNT_STEP;
    const count = this.#count + 1;
    // Not over one that is being written, and is used when it is.
    this.#remember(this.#tableNext ?? this.#table, (error) => {
      if (error === null) this.#events.leftBehind(toHex(this.identity.nodeId), count);
    });
  }

  // ── Life ───────────────────────────────────────────────────────────────────────────────────────

  /** What the set is doing: it has failed when its last path has. */
  get state(): StoreState {
    if (this.#isClosing) return "closing";
    return this.#working.length === 1 ? this.#working[0].store!.state : "open";
  }

  /** As `Store.endTurn`, for all paths. */
  endTurn(): void {
    const members = this.#members;
    for (let i = 0; i < members.length; i++) {
      const store = members[i].store ?? members[i].failed;
      if (store !== null) store.endTurn();
    }
    this.#noteFailures();
    if (this.#answers.length > 0) {
      for (const { done, error } of this.#answers.splice(0)) done(error);
    }
    for (let count = this.#finished.count; count > 0; count--) {
      const operation = this.#finished.shift();
      operation.owner.operationDone(operation);
    }
  }

  /** As `Store.tick`, for all paths. */
  tick(nowMs: number): void {
    for (const member of this.#members) (member.store ?? member.failed)?.tick(nowMs);
    if (!this.#isClosing) {
      for (const member of this.#working) this.#dropLeftovers(member);
      this.#look(nowMs);
    }
    this.#mover?.tick(nowMs);
    this.endTurn();
  }

  /** Nothing that a tick would do soon. */
  get idle(): boolean {
    return this.#finished.count === 0 && this.#answers.length === 0 && this.#drops === 0 &&
      (this.#mover?.move ?? null) === null &&
      this.#working.every(({ store, leftoverLayer }) => store!.idle && leftoverLayer < 0);
  }

  /** Something was submitted that the disk of its path has not written yet. */
  get hasUnwritten(): boolean {
    return this.#working.some(({ store }) => store!.hasUnwritten);
  }

  /** Drops what lies on a path and belongs to another one, a little at a time: after the first map, and after a move. */
  #dropLeftovers(member: Member): void {
    if (member.leftoverLayer < 0 || this.#epoch < 0 || this.#drops > 0) return;
    // A map is about to change who holds what.
    if (this.#preparedEpoch !== this.#epoch || this.#afterDrops.length > 0) return;
    // What a group is copied to is not left over; and reads that wait here may be of what has just moved.
    if (this.#isTableBusy || (this.#mover?.move ?? null) !== null) return;
    if (member.store!.stats().queuedOperations > 0) return;
    const layer = this.#layerList.find((each) => each >= member.leftoverLayer);
    if (layer === undefined) {
      member.leftoverLayer = -1;
      return;
    }
    if (layer > member.leftoverLayer) member.leftoverChunk = 0;
    member.leftoverLayer = layer;
    const store = member.store!;
    const [list] = this.#listsOf(LEFTOVERS_PER_TICK);
    list.count = 0;
    list.next = -1;
    if (store.hasLayer(layer)) {
      const { leftoverChunk, leftoverGroup, leftoverGroups } = member;
      const first = leftoverGroup - this.#mixes.get(layer)! & leftoverGroups - 1;
      store.listChunks(layer, leftoverChunk, list, leftoverGroups, first);
    }
    for (let i = 0; i < list.count; i++) {
      const chunk = list.chunks[i];
      if (this.#storeOf(layer, chunk) === store) continue;
      this.#drops++;
      member.hasDropped = true;
      store.dropChunk(layer, chunk, () => {
        if (--this.#drops > 0) return;
        for (const run of this.#afterDrops.splice(0)) run();
      });
    }
    if (list.next >= 0) member.leftoverChunk = list.next;
    else {
      member.leftoverLayer++;
      member.leftoverChunk = 0;
    }
  }

  /** As `Store.close`, for all paths. */
  close(done: Done): void {
    this.#isClosing = true;
    this.#mover?.abort();
    const members = this.#members.filter(({ store, failed }) => (store ?? failed) !== null);
    let left = members.length;
    let fault: StoreError | null = null;
    for (const member of members) {
      (member.store ?? member.failed)!.close((error) => {
        fault ??= error;
        if (--left === 0) done(fault);
        else this.#closed(member);
      });
    }
  }

  /** A path is closed before others: until they are, it is as one that is lost, and what was on it is not taken for empty. */
  #closed(member: Member): void {
    if (member.store === null || this.#working.length === 1) return;
    // It may have something to give back still.
    member.failed = member.store;
    member.store = null;
    this.#stores[member.id] = null;
    this.#working = this.#working.filter((each) => each !== member);
  }

  /** As `Store.stats`: sums of all paths that work. */
  stats(): StoreStats {
    return mergeStats(this.#working.map(({ store }) => store!.stats()));
  }

  /** As `Store.scrubNow`, on all paths at a time. */
  scrubNow(
    layers: readonly number[] | null,
    progress: (progress: ScrubProgress) => boolean | void,
    done: Done,
  ): void {
    const all = new Map<Member, ScrubProgress>();
    const each = (member: Member) => (part: ScrubProgress) => {
      all.set(member, { ...part });
      const sum = { ...part, checkedBlocks: 0, totalBlocks: 0 };
      for (const { checkedBlocks, totalBlocks } of all.values()) {
        sum.checkedBlocks += checkedBlocks;
        sum.totalBlocks += totalBlocks;
      }
      return progress(sum);
    };
    let left = this.#working.length;
    let fault: StoreError | null = null;
    for (const member of this.#working) {
      member.store!.scrubNow(layers, each(member), (error) => {
        fault ??= error;
        if (--left === 0) done(fault);
      });
    }
  }

  /** Calls back at the end of the turn: not from inside the call that asked. */
  #later(done: Done, error: StoreError | null): void {
    this.#answers.push({ done, error });
  }
}

const NONE: ReadonlySet<number> = new Set();

/** Looks for what is left over on a path, from the beginning: in one group of so many. */
function search(member: Member, group: number, groups: number): void {
  member.leftoverLayer = 0;
  member.leftoverChunk = 0;
  member.leftoverGroup = group;
  member.leftoverGroups = groups;
}

/** In words, for messages: which path, and what is the matter with it. */
function describeLoss({ id, location, state, reason }: Member): string {
  const name = location === "" ? `data path ${id}` : location;
  if (state === "ok") return `${name}, which is closed`;
  if (state === "left-out") return `${name}, which the agent was not given`;
  if (state === "missing") return `${name}, which is missing (${reason})`;
  return `${name}, which has failed (${reason})`;
}

/** The count of changes in a store's META. */
export function countOf(store: Store): number {
  return decodeCount(store.getMeta(COUNT_KEY));
}
