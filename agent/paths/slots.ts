/**
 * Which of a node's data paths holds which chunks: a table of slots, and how it follows the cluster map.
 *
 *     slot of a chunk   (mix32(family) + chunk) & (SLOTS − 1)        the group of the finest possible map
 *     group of a chunk  (mix32(family) + chunk) & (2^pgBits − 1)     = slot & (2^pgBits − 1)
 *     table[slot]       id of the path that holds it here; 0: none yet
 *
 * A slot does not name its pool: a disk that gets another number of copies changes pools, and its chunks stay where
 * they are. All slots of a group are assigned together, so a group is on one path, and fails with it; when a group is split,
 * both halves find what they hold where it was.
 *
 * Invariants:
 * - A slot of which this node holds data that counts (it is in sync for a group of the slot, in a pool with disks) keeps its
 *   path, whether that works or not: a path that is lost is never taken for an empty one.
 * - A slot leaves a lost path only when nobody relies on it here any more: this node is in none of the slot's groups, or has
 *   begun to join all of them anew since the path was lost, and so copies everything.
 * - What holds nothing goes to where there is most room, by the number of groups and the capacity of the paths.
 * - The plan is a function of what goes into it: the same on every run.
 *
 * @module
 */
import { type ClusterMap, hasDisks, PG_BITS_MAX } from "../map/map.ts";

/** Slots of a node: as many as a pool can have groups. */
export const SLOTS = 2 ** PG_BITS_MAX;
/** Of a chunk: see the head of the file. */
export const SLOT_MASK = SLOTS - 1;
/** In the table: no path. */
export const NO_PATH = 0;

/** A path as the plan sees it. */
export interface PlannedPath {
  /** 1…255 */
  readonly id: number;
  /** Relative to others: bytes that fit. */
  readonly capacityBytes: number;
  /** Epoch of the map that was in force when it was lost; −1: it works. */
  readonly lostEpoch: number;
}

/** What to do with the table. */
export interface SlotPlan {
  /** The new table; null: it stays. */
  readonly table: Uint8Array | null;
  /** Ids of lost paths that this node is still taken to hold data on: the map has to learn that it does not. */
  readonly owed: ReadonlySet<number>;
}

/** This node's part in the groups of a slot. */
const enum Part {
  None,
  /** In a group, but only since it began to join. */
  Joins,
  /** In sync for one. */
  Holds,
}

/**
 * Brings the table in line with a map.
 *
 * @param map that is about to be in force
 * @param self this node's id in it
 * @param table one id for each slot; not changed
 * @param paths all that the table may name, and all that work
 * @param knownEpoch of the map that the table was brought in line with last; −1: none in this run
 * @param isEmpty whether this node holds nothing of a group, although its slots have a path. `isNew`: it has begun to join
 *   the group since that map. Null: none is known to be empty
 */
export function planSlots(
  map: ClusterMap,
  self: number,
  table: Uint8Array,
  paths: readonly PlannedPath[],
  knownEpoch = -1,
  isEmpty: ((group: number, isNew: boolean) => boolean) | null = null,
): SlotPlan {
  const groups = 2 ** map.pgBits;
  const lostEpoch = new Map(paths.map((path) => [path.id, path.lostEpoch]));
  const working = paths.filter((path) => path.lostEpoch < 0);
  const isWorking = (id: number) => (lostEpoch.get(id) ?? 0) < 0;
  const pools = map.pools.filter((pool) => hasDisks(map, pool.id));
  const owed = new Set<number>();
  const load = new Map<number, number>(working.map((path) => [path.id, 0]));
  /** Groups to assign. */
  const todo: number[] = [];
  let next: Uint8Array | null = null;
  const set = (slot: number, id: number) => {
    if ((next ?? table)[slot] === id) return;
    next ??= table.slice();
    next[slot] = id;
  };
  for (let group = 0; group < groups; group++) {
    let part: Part = Part.None;
    let joinedEpoch = Infinity;
    let isOwed = false;
    for (const { pgs } of pools) {
      const pg = pgs[group];
      const at = pg.joining.indexOf(self);
      if (pg.inSync.includes(self)) {
        part = Part.Holds;
        // An unclean member is waited for, not written to.
        isOwed ||= !pg.unclean.includes(self);
      } else if (at >= 0) {
        if (part === Part.None) part = Part.Joins;
        joinedEpoch = Math.min(joinedEpoch, pg.joinedEpochs[at]);
        isOwed = true;
      }
    }
    let mustAssign = false;
    for (let slot = group; slot < SLOTS; slot += groups) {
      const id = table[slot];
      if (id !== NO_PATH && !isWorking(id)) {
        const isFree = part === Part.None ||
          (part === Part.Joins && joinedEpoch > (lostEpoch.get(id) ?? -1));
        if (isFree) set(slot, NO_PATH);
        else if (isOwed) owed.add(id);
      }
      mustAssign ||= part !== Part.None && (next ?? table)[slot] === NO_PATH;
    }
    if (part === Part.None) continue;
    const isNew = part === Part.Joins && joinedEpoch > knownEpoch;
    if (!mustAssign && isEmpty !== null && isWorking(table[group]) && isEmpty(group, isNew)) {
      for (let slot = group; slot < SLOTS; slot += groups) set(slot, NO_PATH);
      mustAssign = true;
    }
    if (mustAssign) todo.push(group);
    else add(load, (next ?? table)[group]);
  }
  for (const group of todo) {
    // Its other slots may have a path already: they stay together.
    let id = NO_PATH;
    for (let slot = group; slot < SLOTS && id === NO_PATH; slot += groups) {
      id = (next ?? table)[slot];
    }
    if (id === NO_PATH) id = roomiest(working, load);
    if (id === NO_PATH) break;
    add(load, id);
    for (let slot = group; slot < SLOTS; slot += groups) {
      if ((next ?? table)[slot] === NO_PATH) set(slot, id);
    }
  }
  return { table: next, owed };
}

function add(load: Map<number, number>, id: number): void {
  const before = load.get(id);
  if (before !== undefined) load.set(id, before + 1);
}

/** The working path that would be least full with one more group; the first of several. */
function roomiest(working: readonly PlannedPath[], load: ReadonlyMap<number, number>): number {
  let best = NO_PATH;
  let least = Infinity;
  for (const { id, capacityBytes } of working) {
    const share = (load.get(id)! + 1) / Math.max(1, capacityBytes);
    if (share >= least) continue;
    least = share;
    best = id;
  }
  return best;
}

/**
 * The slots of some paths as a set of bits, as short as it can be: bit b stands for every slot that is b modulo its length.
 *
 * @returns a power of two of bytes, up to 2048; empty: none
 */
export function slotsOf(table: Uint8Array, ids: ReadonlySet<number>): Uint8Array<ArrayBuffer> {
  let count = SLOTS;
  const isIn = (slot: number) => ids.has(table[slot]);
  let isAny = false;
  for (let slot = 0; slot < SLOTS; slot++) isAny ||= isIn(slot);
  if (!isAny) return new Uint8Array(0);
  while (count > 8) {
    const half = count / 2;
    let isPeriodic = true;
    for (let slot = 0; slot < half && isPeriodic; slot++) {
      isPeriodic = isIn(slot) === isIn(slot + half);
    }
    if (!isPeriodic) break;
    count = half;
  }
  const bits = new Uint8Array(count / 8);
  for (let slot = 0; slot < count; slot++) {
    if (isIn(slot)) bits[slot >>> 3] |= 1 << (slot & 7);
  }
  return bits;
}
