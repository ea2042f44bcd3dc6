/**
 * Placement groups: who holds the chunks of each, and how that may change.
 *
 *     target    where replicas shall be                 ── set-targets ──
 *     inSync    hold every acknowledged write            ◀── in-sync ── joining ◀── start-joining
 *     joining   get all new writes, pull the old ones     ── node-down, drop-member, lose-groups, drop-unclean, trim ──▶ out
 *     unclean   ⊆ inSync, lost unsynced writes in a crash ◀── node-up (another boot, no clean stop)
 *
 *     all of inSync unclean ── unsettle ──▶ unsettled ── settled ──▶ inSync = [settler], joining = the others
 *
 * # What users of the map promise
 *
 * The rules below are safe together with these, and not without them:
 *
 * 1. A write is acknowledged when every member (`inSync` and `joining`) of the newest map that the holder
 *    knows has it, and replicas refuse a holder whose map is older than the PG's `changedEpoch`. So a
 *    write that is acknowledged is at every member of that entry.
 * 2. A FLUSH waits, as reads and writes do, while a PG that it has to sync has unclean members or is
 *    unsettled, and counts a member's sync only for writes that the same run of the member (or one that
 *    kept its page cache) had acknowledged. So before it succeeds every member of the entry has, synced,
 *    all that was acknowledged.
 * 3. A node serves pulls for a PG, and reads, only as a member in sync that is not unclean in its own map,
 *    and only after the `node-up` of its run is in that map.
 * 4. A FLUSH that owes writes acknowledged under a map older than `settledEpoch` fails, or writes them
 *    again first: settling may have lost them.
 * 5. Who holds state about a PG (writes that wait, a pull that goes on) compares `changedEpoch` and
 *    `joinedEpochs`: when maps were skipped, equal lists of members do not mean that nobody was away in
 *    between; such writes are sent again to all members, such a pull starts over.
 *
 * # Why nobody gets into `inSync` who lacks an acknowledged write
 *
 * There are four ways in:
 *
 * - `in-sync`: the node reports that it has pulled everything. It has been a member since `joinedEpoch`
 *   without interruption, in the same incarnation (a restart takes it out of `joining`, whether it was
 *   clean or not, because what it knew of its pull is gone), and it says on which map's `joinedEpoch` its
 *   report rests: a report from before a drop finds a newer one. New writes since `joinedEpoch` were
 *   acknowledged by it (1); older ones it has pulled from a member in sync (3). A lease that was not given
 *   back begins a new `joinedEpoch`: its holder may have left writes on some members only, and who joins
 *   compares with a member in sync once more after those are there for good. While anybody is unclean
 *   the report waits; `unsettle` sends joiners away, since what they pulled from somebody before the
 *   crash may be newer than what will be settled.
 * - `settled`: all members that are left are unclean, so only synced writes are owed (2), and each of them
 *   has those. The settler is one of them and takes the newest of all.
 * - Pools without disks (`set-targets`, `create-disk` and `set-copies`): nothing was ever written to a disk of the pool
 *   that is still there, and layers of deleted disks are never read again, so there is nothing to lack.
 *   As soon as there is a disk, new places come by `start-joining` only. Whether there is one is read
 *   from the map to which the command is applied, so it does not matter what its proposer saw.
 * - `change-disk` with another number of copies, at level 1: only to entries whose members in sync all hold the
 *   disk's data already ({@linkcode poolsForOtherCopies}); above it `finish-copies`: the same, and see `copies.ts`.
 *
 * And who is in `inSync` stays complete: it gets every write before it is acknowledged, or leaves before.
 * A crash that loses unsynced writes marks it unclean in the command that makes the new run known, and
 * nobody talks to that run before (3). `clean` and an equal boot mean that nothing was lost, but for what may have rotted at its log's
 * end where that is `torn`: then it leaves, while somebody else in sync is up and clean, and joins by what differs.
 *
 * # Why the last member in sync stays
 *
 * `node-down`, `node-leave` and `drop-member` leave an only member in place: the data is only there, so
 * the PG waits until the node is back. When it comes back with its page cache, I/O goes on at once;
 * otherwise it is unclean, alone, is unsettled and settles with itself: what was flushed is there. If somebody else comes in sync
 * before (it had copied all, and was syncing it), that one has everything, and `in-sync` lets the one that is down go.
 * The same with `lose-groups` (and `lost` of `node-up`): a node that runs without the data path of a PG of which it is the
 * only member is unclean, and settles (`joining.ts` sees to that) only when the path is back.
 * `drop-unclean` and `trim` need others that are clean and up. The one way out is `remove-node` with
 * `force` and `acceptLoss`, which is recorded.
 *
 * # Late, repeated and foreign commands
 *
 * Every command names PGs and is checked against each PG as it is now: where its premise is gone, that PG
 * stays. Commands about a node carry its incarnation and are refused as stale when it has started again.
 * Targets are compared-and-set on `targetsEpoch`, splits on `pgBits`. So commands may come twice or late.
 *
 * @module
 */

import { changed, stale, unchanged } from "./change.ts";
import { type ControlError, failure, invalid, type Result, success } from "./errors.ts";
import {
  type Applied,
  type ClusterMap,
  COPIES_MAX,
  type DiskEntry,
  type DropUnclean,
  type GroupBits,
  type GroupCommand,
  type Groups,
  ID_MAX,
  type InSync,
  MEMBERS_MAX,
  type NodeEntry,
  PG_BITS_MAX,
  type PgEntry,
  type Pool,
  type SetTargets,
  type Settled,
  type SplitGroups,
  type StartJoining,
  type Trim,
  type Unsettle,
} from "./model.ts";
import { isOn } from "./levels.ts";
import { disksWithData, findNode, findPool, hasDisks, nodeMissing } from "./queries.ts";
import {
  isInZones,
  maySplit,
  noNodeFor,
  type Place,
  poolOfPlace,
  reasonAgainstZonedPool,
} from "./zones.ts";

/** Carries out a command about PGs; see `apply`. */
export function applyGroupCommand(map: ClusterMap, command: GroupCommand): Result<Applied> {
  switch (command.kind) {
    case "drop-unclean":
      return dropUnclean(map, command);
    case "unsettle":
      return unsettle(map, command);
    case "settled":
      return settled(map, command);
    case "set-targets":
      return setTargets(map, command);
    case "start-joining":
      return startJoining(map, command);
    case "in-sync":
      return inSync(map, command);
    case "trim":
      return trim(map, command);
    case "split-groups":
      return splitGroups(map, command);
  }
}

// --------------------------------------------------------------------------------------- commands

function dropUnclean(map: ClusterMap, command: DropUnclean): Result<Applied> {
  const { node } = command;
  if (findNode(map, node) === undefined) return { ok: false, error: nodeMissing(node) };
  return editGroups(map, command, (pg) => {
    if (!pg.unclean.includes(node) || !hasCleanOther(map, pg, node)) return pg;
    return withoutMember(pg, node, map.epoch + 1);
  });
}

function unsettle(map: ClusterMap, command: Unsettle): Result<Applied> {
  return editGroups(map, command, (pg) => {
    if (pg.unsettled || pg.unclean.length < pg.inSync.length) return pg;
    return { ...pg, ...NOBODY_JOINS, unsettled: true, changedEpoch: map.epoch + 1 };
  });
}

function settled(map: ClusterMap, command: Settled): Result<Applied> {
  const { node } = command;
  const error = reasonAgainstRun(map, command);
  if (error !== null) return error;
  const epoch = map.epoch + 1;
  return editGroups(map, command, (pg) => {
    if (settlerOf(map, pg) !== node) return pg;
    const joining = pg.inSync.filter((each) => each !== node && isUp(map, each));
    return {
      target: pg.target,
      inSync: [node],
      joining,
      joinedEpochs: joining.map(() => epoch),
      unclean: NOBODY,
      unsettled: false,
      settledEpoch: epoch,
      changedEpoch: epoch,
    };
  });
}

function startJoining(map: ClusterMap, command: StartJoining): Result<Applied> {
  const { node } = command;
  const error = reasonAgainstRun(map, command);
  if (error !== null) return error;
  const epoch = map.epoch + 1;
  return editGroups(map, command, (pg) => {
    const isMember = pg.inSync.includes(node) || pg.joining.includes(node);
    const isFull = pg.inSync.length + pg.joining.length >= MEMBERS_MAX;
    if (isMember || isFull || pg.unsettled || !pg.target.includes(node)) return pg;
    const joining = [...pg.joining, node];
    const joinedEpochs = [...pg.joinedEpochs, epoch];
    return { ...pg, joining, joinedEpochs, changedEpoch: epoch };
  });
}

/**
 * Who has gone down as the only one in sync leaves now that it is not the only one any more: it would have left if it had gone down
 * later. So where several are in sync, all of them are up.
 */
function inSync(map: ClusterMap, command: InSync): Result<Applied> {
  const { node, basedOnEpoch } = command;
  const error = reasonAgainstRun(map, command);
  if (error !== null) return error;
  if (!Number.isSafeInteger(basedOnEpoch) || basedOnEpoch < 0 || basedOnEpoch > map.epoch) {
    return failure("invalid", `there has been no map of epoch ${basedOnEpoch} yet`);
  }
  return editGroups(map, command, (pg) => {
    const index = pg.joining.indexOf(node);
    if (index < 0 || pg.joinedEpochs[index] > basedOnEpoch || pg.unclean.length > 0) return pg;
    const staying = isOn(map, 2) ? pg.inSync.filter((each) => isUp(map, each)) : pg.inSync;
    return {
      ...pg,
      inSync: [...staying, node],
      joining: pg.joining.toSpliced(index, 1),
      joinedEpochs: pg.joinedEpochs.toSpliced(index, 1),
      changedEpoch: map.epoch + 1,
    };
  });
}

/**
 * Members outside the target leave once the whole target is in sync. Where targets have changed faster
 * than nodes could join, surplus ones leave before, as long as as many members as the pool has copies
 * stay and at least twice as many are there: otherwise {@linkcode MEMBERS_MAX} could keep the target from
 * ever joining.
 */
function trim(map: ClusterMap, command: Trim): Result<Applied> {
  const pool = findPool(map, command.pool);
  if (pool === undefined) return poolMissing(command.pool);
  const most = copiesMostOf(pool);
  return editGroups(map, command, (pg) => {
    const allUp = pg.inSync.every((each) => isUp(map, each));
    if (pg.unclean.length > 0 || !allUp) return pg;
    const isComplete = pg.target.every((each) => pg.inSync.includes(each));
    let surplus = isComplete
      ? pg.inSync.length
      : isCrowded(pool, pg.inSync.length)
      ? pg.inSync.length - most
      : 0;
    const staying = pg.inSync.filter((each) => pg.target.includes(each) || surplus-- <= 0);
    if (staying.length === pg.inSync.length) return pg;
    return { ...pg, inSync: staying, changedEpoch: map.epoch + 1 };
  });
}

/** As many as disks may ask for are enough for a family's own, which has the targets of two pools. */
function copiesMostOf({ family, copies }: Pool): number {
  return family === 0 ? copies : COPIES_MAX;
}

/** Whether a PG of a pool has so many members in sync that some leave before the whole target has come (`trim`). */
export function isCrowded(pool: Pool, inSync: number): boolean {
  return inSync > 2 * copiesMostOf(pool);
}

function setTargets(map: ClusterMap, command: SetTargets): Result<Applied> {
  const pool = findPool(map, command.pool);
  if (pool === undefined) return poolMissing(command.pool);
  const reason = reasonAgainstTargets(map, pool, command);
  if (reason !== null) return { ok: false, error: invalid(reason) };
  if (command.basedOnTargetsEpoch !== map.targetsEpoch) {
    return stale(
      `the targets were computed for epoch ${command.basedOnTargetsEpoch}, and what they are computed ` +
        `from changed in epoch ${map.targetsEpoch}`,
    );
  }
  const epoch = map.epoch + 1;
  const isEmpty = !hasDisks(map, pool.id);
  const pgs = pool.pgs.slice();
  let isChanged = false;
  for (const [index, target] of command.changes) {
    const next = isEmpty
      ? retargetedEmpty(map, pgs[index], target, epoch)
      : retargeted(pgs[index], target, epoch);
    if (next === pgs[index]) continue;
    pgs[index] = next;
    isChanged = true;
  }
  if (!isChanged) return unchanged(map);
  return changed(map, { pools: withPool(map.pools, { ...pool, pgs }), targetsEpoch: epoch });
}

/**
 * A PG with another target. Joiners that are no longer wanted leave: nobody relies on them.
 *
 * @param epoch of the map that gets it
 */
export function retargeted(pg: PgEntry, target: readonly number[], epoch: number): PgEntry {
  if (sameList(pg.target, target)) return pg;
  const keeps = pg.joining.map((each) => target.includes(each));
  if (keeps.every((each) => each)) return { ...pg, target: [...target] };
  return {
    ...pg,
    target: [...target],
    joining: pg.joining.filter((_, index) => keeps[index]),
    joinedEpochs: pg.joinedEpochs.filter((_, index) => keeps[index]),
    changedEpoch: epoch,
  };
}

/** In a pool without disks there is nothing to pull: the target is in sync as far as it is up. */
function retargetedEmpty(
  map: ClusterMap,
  pg: PgEntry,
  target: readonly number[],
  epoch: number,
): PgEntry {
  const up = target.filter((each) => isUp(map, each));
  if (up.length === 0) return retargeted(pg, target, epoch);
  const isSame = sameList(pg.target, target) && sameList(pg.inSync, up) &&
    pg.joining.length === 0 && pg.unclean.length === 0;
  return isSame ? pg : freshGroup([...target], up, epoch);
}

function reasonAgainstTargets(map: ClusterMap, pool: Pool, command: SetTargets): string | null {
  const { changes } = command;
  if (pool.family !== 0) return `the targets of pool ${pool.id} follow from those of others`;
  if (changes.length > pool.pgs.length) return `${changes.length} PGs are more than there are`;
  const seen = new Set<number>();
  for (const [index, target] of changes) {
    if (!isIndex(index, pool.pgs.length)) return `pool ${pool.id} has no PG ${index}`;
    if (seen.has(index)) return `PG ${index} is named twice`;
    seen.add(index);
    if (target.length < 1 || target.length > pool.copies) {
      return `PG ${index} cannot have ${target.length} places in a pool of ${pool.copies} copies`;
    }
    if (new Set(target).size < target.length) return `the target of PG ${index} has a node twice`;
    for (const id of target) {
      const node = findNode(map, id);
      if (node === undefined) return `the target of PG ${index} names node ${id}, which is unknown`;
      if (node.witness) return `the target of PG ${index} names witness ${node.name}`;
    }
  }
  return null;
}

/**
 * Joiners leave: what they know of their pull is kept by PG, and half of its chunks would move to another
 * one. Splits are rare, and chunks that are complete already are found so by their stamps.
 */
function splitGroups(map: ClusterMap, command: SplitGroups): Result<Applied> {
  if (command.pgBits !== map.pgBits) {
    return stale(`there are 2^${map.pgBits} PGs already, not 2^${command.pgBits}`);
  }
  if (map.pgBits >= PG_BITS_MAX) {
    return failure("limit", `there are 2^${PG_BITS_MAX} PGs, which is the most`);
  }
  if (!maySplit(map)) {
    return failure(
      "limit",
      `with 2^${map.pgBits + 1} PGs there would be too many of the pools with zones`,
      "give fewer different sets of zones to disks",
    );
  }
  const epoch = map.epoch + 1;
  const halves = editPools(
    map.pools,
    (pg) => pg.joining.length === 0 ? pg : { ...pg, ...NOBODY_JOINS, changedEpoch: epoch },
  );
  const pools = halves.map((pool) => ({ ...pool, pgs: [...pool.pgs, ...pool.pgs] }));
  return changed(map, { pgBits: map.pgBits + 1, pools, targetsEpoch: epoch });
}

// --------------------------------------------------------------------- what happens to whole nodes

/**
 * A node leaves every PG that has somebody else in sync.
 *
 * @param map the map before
 * @param node id
 * @param mustBeClean only where a clean one that is up is left
 * @returns the very pools of the map when nothing changed
 */
export function poolsWithoutMember(
  map: ClusterMap,
  node: number,
  mustBeClean: boolean,
): readonly Pool[] {
  return editPools(map.pools, (pg) => {
    const isMember = pg.inSync.includes(node);
    if (!isMember && !pg.joining.includes(node)) return pg;
    const mayLeave = mustBeClean ? hasCleanOther(map, pg, node) : pg.inSync.length > 1;
    return isMember && !mayLeave ? pg : withoutMember(pg, node, map.epoch + 1);
  });
}

/**
 * A node has started again: it leaves `joining`, and where it is in sync it becomes unclean if it lost
 * unsynced writes.
 *
 * @param map the map before
 * @param node id
 * @param keptAll nothing that it had acknowledged was lost
 * @returns the very pools of the map when nothing changed
 */
export function poolsAfterStart(
  map: ClusterMap,
  node: number,
  keptAll: boolean,
): readonly Pool[] {
  const epoch = map.epoch + 1;
  return editPools(map.pools, (pg) => {
    if (pg.joining.includes(node)) return withoutMember(pg, node, epoch);
    if (keptAll || !pg.inSync.includes(node) || pg.unclean.includes(node)) return pg;
    return { ...pg, unclean: [...pg.unclean, node], changedEpoch: epoch };
  });
}

/**
 * A node has lost a data path: it leaves the PGs that were there, but for those that nobody else holds. Of those it is unclean,
 * though it has nothing: so they wait until it settles. Pools without disks have nothing to lose.
 *
 * @param map the map before
 * @param node id
 * @param lost passes {@linkcode checkGroupBits}
 * @returns the very pools of the map when nothing changed
 */
export function poolsAfterLoss(map: ClusterMap, node: number, lost: GroupBits): readonly Pool[] {
  if (lost.length === 0) return map.pools;
  const epoch = map.epoch + 1;
  const isLost = lostGroups(lost, 2 ** map.pgBits);
  let isChanged = false;
  const pools = map.pools.map((pool) => {
    if (!hasDisks(map, pool.id)) return pool;
    const done = new Map<PgEntry, PgEntry>();
    const pgs = pool.pgs.map((pg, index) => {
      if (!isLost[index]) return pg;
      let next = done.get(pg);
      if (next === undefined) done.set(pg, next = withoutLost(pg, node, epoch));
      return next;
    });
    if (pgs.every((pg, index) => pg === pool.pgs[index])) return pool;
    isChanged = true;
    return { ...pool, pgs };
  });
  return isChanged ? pools : map.pools;
}

function withoutLost(pg: PgEntry, node: number, epoch: number): PgEntry {
  const isOnly = pg.inSync.length === 1 && pg.inSync[0] === node;
  if (!isOnly) {
    const isMember = pg.inSync.includes(node) || pg.joining.includes(node);
    return isMember ? withoutMember(pg, node, epoch) : pg;
  }
  return pg.unclean.includes(node) ? pg : { ...pg, unclean: [node], changedEpoch: epoch };
}

/** Which of so many PGs are in a set. */
function lostGroups(bits: GroupBits, groups: number): Uint8Array {
  const lost = new Uint8Array(groups);
  const count = 8 * bits.length;
  for (let number = 0; number < Math.max(count, groups); number++) {
    const bit = number % count;
    if ((bits[bit >>> 3] >>> (bit & 7) & 1) !== 0) lost[number % groups] = 1;
  }
  return lost;
}

/** Why a list of numbers is no set of PGs; null: it is one. */
export function checkGroupBits(bits: GroupBits): ControlError | null {
  const { length } = bits;
  const isLength = length === 0 || (8 * length <= 2 ** PG_BITS_MAX && (length & length - 1) === 0);
  if (!isLength) return invalid(`a set of PGs cannot have ${length} bytes`);
  const isRight = bits.every((byte) => Number.isInteger(byte) && byte >= 0 && byte <= 255);
  return isRight ? null : invalid("a set of PGs is made of bytes");
}

/** Result of {@linkcode poolsWithoutNode}. */
export interface Forgotten {
  readonly pools: readonly Pool[];
  /** PGs of each pool with disks whose only complete copy was there. */
  readonly lost: readonly { readonly pool: number; readonly pgs: number }[];
}

/**
 * A node is forgotten: it leaves every list. Where nobody else is in sync an heir takes over, one alone
 * (two might differ in what they happen to have): a node that is up and should have the data anyway, or
 * else any that may hold some, in the pool's zones if there is one.
 *
 * @param map the map before
 * @param node id
 * @returns null when an heir is needed and there is none
 */
export function poolsWithoutNode(map: ClusterMap, node: number): Forgotten | null {
  const epoch = map.epoch + 1;
  const anywhere = candidatesOf(map, []).filter((each) => each.id !== node);
  const lost: { pool: number; pgs: number }[] = [];
  const pools: Pool[] = [];
  for (const pool of map.pools) {
    const inZones = anywhere.filter((each) => isInZones(pool.zones, each));
    const candidates = inZones.length > 0 ? inZones : anywhere;
    let lostCount = 0;
    const pgs: PgEntry[] = [];
    for (const [index, pg] of pool.pgs.entries()) {
      const isOnly = pg.inSync.length === 1 && pg.inSync[0] === node;
      const left = pg.target.filter((each) => each !== node);
      if (!isOnly && left.length > 0) {
        const isMember = pg.inSync.includes(node) || pg.joining.includes(node);
        const staying = isMember ? withoutMember(pg, node, epoch) : pg;
        pgs.push(left.length === pg.target.length ? staying : { ...staying, target: left });
        continue;
      }
      const heir = [...left, ...pg.joining, ...placesFor(candidates, index, 1)]
        .find((each) => each !== node && isUp(map, each));
      if (!isOnly) {
        const staying = withoutMember(pg, node, epoch);
        pgs.push({ ...staying, target: [heir ?? staying.inSync[0]] });
        continue;
      }
      if (heir === undefined) return null;
      lostCount++;
      const target = left.length > 0 ? left : [heir];
      pgs.push({ ...freshGroup(target, [heir], epoch), settledEpoch: epoch });
    }
    if (lostCount > 0 && hasDisks(map, pool.id)) {
      lost.push({ pool: copiesWanted(map, pool), pgs: lostCount });
    }
    pools.push({ ...pool, pgs });
  }
  return { pools, lost };
}

/** Copies that the disks of a pool should have. */
function copiesWanted(map: ClusterMap, { family, copies }: Pool): number {
  const disk = family === 0 ? undefined : disksWithData(map).find((each) => each.family === family);
  return disk?.copies ?? copies;
}

/** Whether any PG of any pool names a node. */
export function isNamed(map: ClusterMap, node: number): boolean {
  return map.pools.some((pool) =>
    pool.pgs.some((pg) =>
      pg.target.includes(node) || pg.inSync.includes(node) || pg.joining.includes(node)
    )
  );
}

// ------------------------------------------------------------------------- what happens with disks

/** The pools with one for disks of a place. */
export interface PoolForDisk {
  /** The very pools of the map when nothing changed. */
  readonly pools: readonly Pool[];
  /** Id of the disks' pool. */
  readonly id: number;
}

/**
 * The pools with one for a disk that comes to a place: a new one, or one from another pool. Targets that the leader has computed stay
 * where they can be used; without any a simple placement serves until it computes some.
 *
 * @param map the map before
 * @param options.id of the pool, should it have to be made for zones: above {@linkcode COPIES_MAX}, and never given
 * @param options.near the pool that the disk comes from: of a pool that is made for zones as much as can be is where that is
 * @returns an error when no node can hold data there, or there are too many pools
 */
export function poolsForDisk(
  map: ClusterMap,
  { copies, zones, id: newId, near }: Place & { readonly id: number; readonly near?: Pool },
): Result<PoolForDisk> {
  const pool = poolOfPlace(map, { copies, zones });
  const id = pool?.id ?? (zones.length === 0 ? copies : newId);
  if (map.nodes.length === 0 || hasDisks(map, id)) return success({ pools: map.pools, id });
  const candidates = candidatesOf(map, zones);
  if (candidates.length === 0) return { ok: false, error: noNodeFor(zones) };
  const isNew = pool === undefined && zones.length > 0;
  const error = isNew ? reasonAgainstZonedPool(map) : null;
  if (error !== null) return { ok: false, error };
  if (id > ID_MAX) return failure("limit", `all ${ID_MAX} ids have been used`);
  const epoch = map.epoch + 1;
  const known = new Map<string, PgEntry>();
  const isCandidate = new Set(candidates.map((each) => each.id));
  const pgs: PgEntry[] = [];
  for (let index = 0; index < 2 ** map.pgBits; index++) {
    const old = pool?.pgs[index];
    if (old !== undefined && old.unclean.length === 0 && old.inSync.every((id) => isUp(map, id))) {
      pgs.push(old);
      continue;
    }
    const wanted = old?.target.filter((id) => isUp(map, id)) ?? [];
    const kept = isNew && near !== undefined
      ? near.pgs[index].target.filter((id) => isCandidate.has(id)).slice(0, copies)
      : [];
    const places = wanted.length > 0 ? wanted : placesFor(candidates, index, copies, kept);
    const key = places.join();
    if (!known.has(key)) known.set(key, freshGroup(places, places, epoch));
    pgs.push(known.get(key)!);
  }
  if (pool !== undefined && pgs.every((pg, index) => pg === pool.pgs[index])) {
    return success({ pools: map.pools, id });
  }
  return success({
    pools: withPool(map.pools, { id, copies, zones, family: 0, to: 0, pgs }),
    id,
  });
}

/**
 * The pools with one that holds a disk which gets another number of copies, at level 1. A chunk has the same PG number
 * in every pool, so it is enough to compare entries of one number.
 *
 * @param map the map before
 * @param disk as it is
 * @param copies that it is to have
 * @returns the very pools of the map when nothing changed; an error when data would have to move first
 */
export function poolsForOtherCopies(
  map: ClusterMap,
  disk: DiskEntry,
  copies: number,
): Result<readonly Pool[]> {
  if (copies === disk.copies) return success(map.pools);
  const isRelative = (each: DiskEntry) => each.family === disk.family && each.id !== disk.id;
  if (disksWithData(map).some(isRelative)) {
    return failure(
      "invalid",
      `disk ${disk.name} shares data with others, which need as many copies`,
    );
  }
  const from = findPool(map, disk.copies);
  if (from === undefined) return success(map.pools);
  if (from.pgs.some((pg) => pg.unclean.length > 0)) {
    return failure("unavailable", "nodes have crashed, and their copies have to be settled first");
  }
  const to = findPool(map, copies);
  if (to !== undefined && hasDisks(map, copies)) {
    const fits = to.pgs.every((pg, index) => {
      const held = from.pgs[index].inSync;
      return pg.unclean.length === 0 && pg.inSync.every((id) => held.includes(id)) &&
        pg.joining.every((id) => held.includes(id));
    });
    return fits ? success(map.pools) : failure(
      "busy",
      `disks with ${copies} copies are on other nodes than disk ${disk.name}`,
      `make a disk with ${copies} copies and copy the data`,
    );
  }
  const epoch = map.epoch + 1;
  const pgs = mapShared(from.pgs, (pg) => ({
    ...pg,
    ...NOBODY_JOINS,
    target: pg.target.slice(0, copies),
    changedEpoch: epoch,
  }));
  return success(withPool(map.pools, poolAnywhere(copies, pgs)));
}

/** A PG in which whoever joins begins anew, and everybody else has to look again. */
export function withJoinersAnew(pg: PgEntry, epoch: number): PgEntry {
  return { ...pg, joinedEpochs: pg.joining.map(() => epoch), changedEpoch: epoch };
}

/**
 * A pool all of whose PGs are on one node.
 *
 * @param copies of the pool
 * @param pgBits of the map
 * @param node id
 * @param epoch of the map that gets it
 */
export function poolOnOneNode(copies: number, pgBits: number, node: number, epoch: number): Pool {
  const pg = freshGroup([node], [node], epoch);
  return poolAnywhere(copies, Array.from({ length: 2 ** pgBits }, () => pg));
}

/** The pool of all disks with so many copies that may be anywhere. */
function poolAnywhere(copies: number, pgs: readonly PgEntry[]): Pool {
  return { id: copies, copies, zones: [], family: 0, to: 0, pgs };
}

/** `pool` in its place among the others, or instead of the one with its id. */
export function withPool(pools: readonly Pool[], pool: Pool): readonly Pool[] {
  const others = pools.filter((each) => each.id !== pool.id);
  return [...others, pool].toSorted((a, b) => a.id - b.id);
}

/**
 * The node that makes the members of an unsettled PG agree: the lowest of them that is up.
 *
 * @returns 0 when the PG is settled, or none of them is up
 */
export function settlerOf(map: ClusterMap, pg: PgEntry): number {
  if (!pg.unsettled) return 0;
  let settler = 0;
  for (const id of pg.inSync) {
    if ((settler === 0 || id < settler) && isUp(map, id)) settler = id;
  }
  return settler;
}

// ------------------------------------------------------------------------------------------ parts

const NOBODY: readonly number[] = [];

const NOBODY_JOINS = { joining: NOBODY, joinedEpochs: NOBODY } as const;

function freshGroup(target: readonly number[], inSync: readonly number[], epoch: number): PgEntry {
  return {
    ...NOBODY_JOINS,
    target,
    inSync,
    unclean: NOBODY,
    unsettled: false,
    settledEpoch: 0,
    changedEpoch: epoch,
  };
}

/** Nodes that may get data now that is kept in some zones. */
function candidatesOf(map: ClusterMap, zones: readonly string[]): readonly NodeEntry[] {
  return map.nodes.filter((node) =>
    !node.witness && node.state === "up" && node.availability === "in" && isInZones(zones, node)
  );
}

/** Where data could be: those of `kept`, then candidates in turn, of different zones as far as there are. */
function placesFor(
  candidates: readonly NodeEntry[],
  pg: number,
  copies: number,
  kept: readonly number[] = [],
): number[] {
  const places = candidates.filter(({ id }) => kept.includes(id));
  for (const isZoneNew of [true, false]) {
    for (let step = 0; step < candidates.length && places.length < copies; step++) {
      const node = candidates[(pg + step) % candidates.length];
      if (places.includes(node)) continue;
      if (isZoneNew && places.some((each) => each.zone === node.zone && node.zone !== "")) continue;
      places.push(node);
    }
  }
  return places.map((node) => node.id);
}

function isUp(map: ClusterMap, id: number): boolean {
  return findNode(map, id)?.state === "up";
}

/** Whether a member in sync other than `node` is up and clean. */
function hasCleanOther(map: ClusterMap, pg: PgEntry, node: number): boolean {
  return pg.inSync.some((each) => each !== node && !pg.unclean.includes(each) && isUp(map, each));
}

function withoutMember(pg: PgEntry, node: number, epoch: number): PgEntry {
  const index = pg.joining.indexOf(node);
  return {
    target: pg.target,
    inSync: without(pg.inSync, node),
    joining: without(pg.joining, node),
    joinedEpochs: index < 0 ? pg.joinedEpochs : pg.joinedEpochs.toSpliced(index, 1),
    unclean: without(pg.unclean, node),
    unsettled: pg.unsettled,
    settledEpoch: pg.settledEpoch,
    changedEpoch: epoch,
  };
}

function without(list: readonly number[], node: number): readonly number[] {
  return list.includes(node) ? list.filter((each) => each !== node) : list;
}

function sameList(a: readonly number[], b: readonly number[]): boolean {
  return a.length === b.length && a.every((each, index) => each === b[index]);
}

/** `edit` of each entry, once for each object: entries that were shared stay so. */
function mapShared(pgs: readonly PgEntry[], edit: (pg: PgEntry) => PgEntry): readonly PgEntry[] {
  const done = new Map<PgEntry, PgEntry>();
  let isChanged = false;
  const next = pgs.map((pg) => {
    let edited = done.get(pg);
    if (edited === undefined) done.set(pg, edited = edit(pg));
    if (edited !== pg) isChanged = true;
    return edited;
  });
  return isChanged ? next : pgs;
}

/** {@linkcode mapShared} of all pools; the very same array when nothing changed. */
function editPools(
  pools: readonly Pool[],
  edit: (pg: PgEntry) => PgEntry,
): readonly Pool[] {
  let isChanged = false;
  const next = pools.map((pool) => {
    const pgs = mapShared(pool.pgs, edit);
    if (pgs === pool.pgs) return pool;
    isChanged = true;
    return { ...pool, pgs };
  });
  return isChanged ? next : pools;
}

/** `edit` of the PGs that a command names. */
function editGroups(
  map: ClusterMap,
  command: Groups,
  edit: (pg: PgEntry) => PgEntry,
): Result<Applied> {
  const pool = findPool(map, command.pool);
  if (pool === undefined) return poolMissing(command.pool);
  if (command.pgs.length > pool.pgs.length) {
    return failure("invalid", `${command.pgs.length} PGs are more than there are`);
  }
  const done = new Map<PgEntry, PgEntry>();
  let pgs: PgEntry[] | null = null;
  for (const index of command.pgs) {
    if (!isIndex(index, pool.pgs.length)) {
      return failure("invalid", `pool ${pool.id} has no PG ${index}`);
    }
    const pg = (pgs ?? pool.pgs)[index];
    let next = done.get(pg);
    if (next === undefined) done.set(pg, next = edit(pg));
    if (next === pg) continue;
    pgs ??= pool.pgs.slice();
    pgs[index] = next;
  }
  if (pgs === null) return unchanged(map);
  return changed(map, { pools: withPool(map.pools, { ...pool, pgs }) });
}

function isIndex(value: number, count: number): boolean {
  return Number.isInteger(value) && value >= 0 && value < count;
}

function poolMissing(pool: number): Result<Applied> {
  const text = String(pool).slice(0, 20);
  return failure(
    "missing",
    pool > COPIES_MAX
      ? `there is no pool ${text} (any more)`
      : `no disk with ${text} copies has been made yet`,
  );
}

/** The run of a node that a command is about: known, up, the present one, and one that stores. */
function reasonAgainstRun(
  map: ClusterMap,
  command: { readonly node: number; readonly incarnation: number },
): Result<Applied> | null {
  const node = findNode(map, command.node);
  if (node === undefined) return { ok: false, error: nodeMissing(command.node) };
  if (node.witness) return failure("invalid", `node ${node.name} is a witness and stores nothing`);
  if (node.incarnation !== command.incarnation) {
    return stale(`node ${node.name} has started again since (incarnation ${node.incarnation})`);
  }
  return node.state === "up" ? null : stale(`node ${node.name} is down`);
}
