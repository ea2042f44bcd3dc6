/**
 * Another number of copies for a disk that is in use, or copies in other zones (`zones.ts`). Disks with as many copies in the same zones
 * have one pool of PGs together, and all of a family (a disk, its snapshots and clones) share their places: so a family goes from one such
 * pool, P, to another, N.
 *
 *     pool P ── set-copies N ──▶ a pool of the family's own ── finish-copies ──▶ pool N
 *                                │  PGs as in P, member by member                ▲
 *                                │  targets: those of P and of N together        │ all members of N's PGs
 *                                └─ start-joining, in-sync, trim: as ever ───────┘ are in sync here
 *
 *     ── set-copies P ──▶ the targets are P's alone; finish-copies leads back there
 *
 * There is no way of copying but the one that there is for every PG: the family's own pool is a pool, and what `groups.ts` says and
 * promises of PGs holds for it as for others. Only its beginning and its end are new.
 *
 * # Invariants
 *
 * - A disk's data is in exactly one pool, the same for all of its family: the family's own, or else that which it belongs to (its
 *   `pool`; see `poolIdOf`). A chunk has the same PG number in every pool.
 * - `copies` and `pool` of the disks change at the end only: until then `copiesMin` is what it was, and whoever may be read, and must have
 *   a write, is who is in sync, or joins, in the family's own PGs. What becomes of N's PGs meanwhile makes no guest wait.
 * - P and N are there as long as the family's own pool is: P has the disks, and N is where a family goes (`isUsed`).
 * - The target of each of the family's PGs is that of P's and that of N's PG of the same number, and changes with them, in the same
 *   command ({@linkcode withMoves}). So nobody who has the data leaves before the end but for the reasons that there are in P, too, and
 *   who is back joins again.
 * - `changedEpoch` of every PG that it comes to (of its own pool at the beginning, of N's at the end) is the epoch in which it comes. So a
 *   holder whose map is older, and who therefore does not know everybody who must have a write, is refused by all who know better:
 *   promise 1 of `groups.ts` would not hold otherwise for a disk that comes into PGs which have not changed for long.
 *
 * # Why no acknowledged write is lost
 *
 * - At the beginning each of the new PGs has the members of the old one. Who joins begins anew (another `joinedEpoch`): what it knew of
 *   its pull is kept by pool.
 * - At the end everybody who is in sync *or joins* in N's PG is in sync in the family's, in the map to which the command is applied,
 *   and nobody there is unclean: they hold every acknowledged write, by the invariants of `groups.ts`. Who joins there joins for the
 *   sake of other disks; it begins anew, and compares the family's chunks as well. With that it does not matter what a holder that died
 *   has left half-written where.
 * - While the replicas of one of the disks are being brought in line after an unclean end of its lease, the end waits, so that this is
 *   begun and finished among the same nodes. (A lease that is taken later, or whose holder has died, is dealt with in N, as ever.)
 * - A FLUSH asks the members of the PGs as they are now for what they have acknowledged, whichever pool that was in. Whether writes were
 *   lost by settling follows the disk: `settledEpochOf`.
 *
 * Who was a member in the family's own PGs only drops its chunks when it is none of N's, and these are whole (`tidy.ts`); it is not asked for them
 * any more, since whoever would has an older map and is refused.
 *
 * # Late, repeated, never
 *
 * `finish-copies` names a pool by a number that is never given twice, and its premise is looked at when it is applied: it may come at
 * any time. If it never comes (no leader, or N's PGs do not become whole), the family stays as it is, with at least the copies that it
 * had. The last disk of a family takes its pool along.
 *
 * @module
 */

import { changed, stale, unchanged } from "./change.ts";
import { failure, type Result, success } from "./errors.ts";
import { checkCopies } from "./fields.ts";
import { flattenedLayer } from "./flatten.ts";
import { type PoolForDisk, poolsForDisk, retargeted, withJoinersAnew, withPool } from "./groups.ts";
import {
  type Applied,
  type ClusterMap,
  COPIES_MAX,
  type DiskEntry,
  type FinishCopies,
  ID_MAX,
  type MapEffect,
  MOVES_MAX,
  PG_BITS_MAX,
  type PgEntry,
  type Pool,
  type SetCopies,
} from "./model.ts";
import {
  arrived,
  copiesMinToBe,
  diskMissing,
  disksWithData,
  findDisk,
  findNode,
  findPool,
  isHolding,
  isOpenGroup,
  poolOfFamily,
  settledEpochOf,
  zonesOf,
} from "./queries.ts";
import { checkZones, isSameZones, isUsed, type Place, poolOfPlace, sortedZones } from "./zones.ts";

/** Carries out a command about copies; see `apply`. */
export function applyCopiesCommand(
  map: ClusterMap,
  command: SetCopies | FinishCopies,
): Result<Applied> {
  return command.kind === "set-copies" ? setCopies(map, command) : finishCopies(map, command);
}

function setCopies(map: ClusterMap, command: SetCopies): Result<Applied> {
  const { name } = command;
  const disk = findDisk(map, name);
  if (disk === undefined) return { ok: false, error: diskMissing(name) };
  const own = poolOfFamily(map, disk.family);
  const now = placeOf(map, own === undefined ? disk : arrived(disk, own));
  const place: Place = {
    copies: command.copies ?? now.copies,
    zones: command.zones === undefined ? now.zones : sortedZones(command.zones),
  };
  const from = zonesOf(map, disk);
  const error = checkCopies(place.copies) ?? checkZones(map, place.zones, [...from, ...now.zones]);
  if (error !== null) return { ok: false, error };
  if (isSamePlace(place, now)) return unchanged(map);
  const { copies } = place;
  const family = familyOf(map, disk.family);
  const strict = family.find(({ copiesMin }) => (copiesMin ?? 0) > copies);
  if (strict !== undefined) {
    return failure(
      "invalid",
      `writes of disk ${strict.name} wait for ${strict.copiesMin} copies, and ${copies} cannot be as many`,
      `'kelpie disk set ${strict.name} --copies-min ${copies}', or 'auto', first`,
    );
  }
  const flattened = family.find((each) => flattenedLayer(map, each) !== undefined);
  if (own === undefined && flattened !== undefined) {
    return failure(
      "busy",
      `disk ${flattened.name} is being flattened`,
      `try again when that is done, or give it up: kelpie disk flatten ${flattened.name} --cancel`,
    );
  }
  // A map that nobody has adopted yet: there are no PGs.
  if (map.nodes.length === 0) return placed(map, family, { copies, to: copies }, null);
  const begun = own === undefined ? beginning(map, disk) : success(own);
  if (!begun.ok) return begun;
  const nextDisk = own === undefined ? map.nextDisk + 1 : map.nextDisk;
  const found = poolsTo(map, disk, { ...place, id: COPIES_MAX + nextDisk });
  if (!found.ok) return found;
  const { pools, id: to } = found.value;
  const isMade = pools !== map.pools;
  const next = withMove({ ...map, pools }, { ...begun.value, copies, to });
  return changed(map, {
    pools: next,
    // Of the numbers that disks, and pools, are given in turn.
    nextDisk: nextDisk + (to === COPIES_MAX + nextDisk ? 1 : 0),
    // Targets that a command has made up are not those that the leader would compute.
    ...(isMade ? { targetsEpoch: map.epoch + 1 } : {}),
  }, effectsOf(map, family));
}

/** Where a disk belongs. */
function placeOf(map: ClusterMap, disk: DiskEntry): Place {
  return { copies: disk.copies, zones: zonesOf(map, disk) };
}

function isSamePlace(a: Place, b: Place): boolean {
  return a.copies === b.copies && isSameZones(a.zones, b.zones);
}

/** The pools with the one that a disk is to belong to; `id` is that of one that is made for it. */
function poolsTo(
  map: ClusterMap,
  disk: DiskEntry,
  place: Place & { readonly id: number },
): Result<PoolForDisk> {
  const pools = poolsForDisk(map, { ...place, near: findPool(map, disk.pool) });
  // There is always a way back, also where nobody takes data any more.
  return !pools.ok && poolOfPlace(map, place)?.id === disk.pool
    ? success({ pools: map.pools, id: disk.pool })
    : pools;
}

/**
 * Most families with a pool of their own at a time: together they have no more PGs than one pool may have, which take less than 1 MiB
 * of a map in which no two are alike.
 */
function movesMax({ pgBits }: ClusterMap): number {
  return Math.min(MOVES_MAX, 2 ** (PG_BITS_MAX - pgBits));
}

/** A pool of a family's own, which leads nowhere yet but to where it comes from. It takes a disk's number. */
function beginning(map: ClusterMap, disk: DiskEntry): Result<Pool> {
  const most = movesMax(map);
  if (map.pools.filter(({ family }) => family !== 0).length >= most) {
    return failure(
      "busy",
      `${
        most === 1 ? "one disk is" : `${most} disks are`
      } getting other copies already, which is the most at a time`,
      "'kelpie disk list' shows them; try again when one is done",
    );
  }
  // Disks' numbers are never given twice, so one of them makes a number that no pool had before.
  const id = COPIES_MAX + map.nextDisk;
  if (id > ID_MAX) return failure("limit", `all ${ID_MAX} ids have been used`);
  const from = findPool(map, disk.pool)!;
  if (!from.pgs.every(isOpenGroup)) {
    return failure(
      "unavailable",
      `nodes that hold data of disk ${disk.name} have crashed, and their copies have to be settled first`,
      "try again in a moment; 'kelpie status' shows what stands in the way",
    );
  }
  const epoch = map.epoch + 1;
  return success({
    id,
    copies: disk.copies,
    zones: [],
    family: disk.family,
    to: disk.pool,
    pgs: mapEach(from.pgs, (pg) => ({
      ...withJoinersAnew(pg, epoch),
      settledEpoch: settledEpochOf(disk, pg, from.family),
    })),
  });
}

/** The pools with a family's own as it is now, and the targets that follow from that. */
function withMove(map: ClusterMap, own: Pool): readonly Pool[] {
  const pools = withPool(map.pools, own);
  return withPool(pools, targeted({ ...map, pools }, own, map.epoch + 1));
}

function finishCopies(map: ClusterMap, command: FinishCopies): Result<Applied> {
  const own = findPool(map, command.pool);
  if (own === undefined || own.family === 0) {
    return stale(`no copies are being changed in pool ${command.pool} any more`);
  }
  const reason = reasonAgainstFinish(map, own);
  if (reason !== null) return failure("busy", reason);
  return placed(map, familyOf(map, own.family), own, own);
}

/** A family has a number of copies, and is in the pool of all that belong where it does. */
function placed(
  map: ClusterMap,
  family: readonly DiskEntry[],
  { copies, to }: Pick<Pool, "copies" | "to">,
  own: Pool | null,
): Result<Applied> {
  const epoch = map.epoch + 1;
  const ids = new Set(family.map(({ id }) => id));
  const settledBefore = (own?.pgs ?? []).reduce((last, pg) => Math.max(last, pg.settledEpoch), 0);
  const move = (disk: DiskEntry): DiskEntry =>
    ids.has(disk.id)
      ? {
        ...arrived(disk, { copies, to }),
        ...(own === null ? {} : { placedEpoch: epoch, settledBefore }),
      }
      : disk;
  const disks = map.disks.map(move);
  const trash = map.trash.map((entry) => ({ ...entry, disk: move(entry.disk) }));
  const pools = map.pools.flatMap((pool) => {
    if (pool.id === own?.id) return [];
    if (own === null || pool.id !== to) return [pool];
    return [{ ...pool, pgs: mapEach(pool.pgs, (pg) => withJoinersAnew(pg, epoch)) }];
  });
  const next = { ...map, disks, trash };
  return changed(map, { disks, trash, pools }, effectsOf(next, family));
}

function effectsOf(map: ClusterMap, family: readonly DiskEntry[]): MapEffect[] {
  const ids = new Set(family.map(({ id }) => id));
  return map.disks.filter(({ id }) => ids.has(id)).map((disk) => ({ kind: "disk-changed", disk }));
}

/** All disks of a family, those in the trash as well. */
function familyOf(map: ClusterMap, family: number): readonly DiskEntry[] {
  return disksWithData(map).filter((disk) => disk.family === family);
}

// ----------------------------------------------------------------------------------------- the end

/**
 * What a family's own pool waits for before its disks belong where it goes.
 *
 * @param own a family's pool
 * @returns in words, beginning in lower case; null: for nothing
 */
export function reasonAgainstFinish(map: ClusterMap, own: Pool): string | null {
  const to = findPool(map, own.to)!;
  const family = familyOf(map, own.family);
  const unsettled = family.find((disk) => isBeingOpened(map, disk));
  if (unsettled !== undefined) {
    return `the copies of disk ${unsettled.name} are being brought in line after an unclean hand-over`;
  }
  const isBack = family.some(({ pool }) => pool === own.to);
  const copiesMin = family.reduce(
    (most, disk) => Math.max(most, copiesMinToBe(map, arrived(disk, own))),
    1,
  );
  const checked = new Map<PgEntry, PgEntry>();
  for (const [index, pg] of own.pgs.entries()) {
    const wanted = to.pgs[index];
    if (checked.get(pg) === wanted) continue;
    checked.set(pg, wanted);
    const reason = reasonAgainstGroup(map, { pg, wanted, isBack, copiesMin });
    if (reason !== null) return reason;
  }
  return null;
}

/** Whether whoever holds a disk's lease has still to bring its replicas in line. One whose run is over will not. */
function isBeingOpened(map: ClusterMap, { lease, settled, generation }: DiskEntry): boolean {
  if (lease === null || settled >= generation - 1) return false;
  return isHolding(findNode(map, lease.node), lease);
}

function reasonAgainstGroup(
  map: ClusterMap,
  { pg, wanted, isBack, copiesMin }: {
    readonly pg: PgEntry;
    readonly wanted: PgEntry;
    readonly isBack: boolean;
    readonly copiesMin: number;
  },
): string | null {
  if (!isOpenGroup(pg) || !isOpenGroup(wanted)) {
    return "nodes have crashed, and their copies have to be settled first";
  }
  const nameOf = (id: number) => findNode(map, id)?.name ?? `node ${id}`;
  const missing = [...wanted.inSync, ...wanted.joining].find((id) => !pg.inSync.includes(id));
  if (missing !== undefined) {
    return findNode(map, missing)?.state === "up"
      ? `data is being copied to node ${nameOf(missing)}`
      : `node ${nameOf(missing)} is down`;
  }
  // Where it comes from it may be as thin as it is.
  if (isBack) return null;
  const absent = wanted.target.find((id) => !wanted.inSync.includes(id));
  if (absent !== undefined) {
    return findNode(map, absent)?.state === "up"
      ? `data is being copied to node ${nameOf(absent)}`
      : `node ${nameOf(absent)} is down`;
  }
  return wanted.inSync.length >= copiesMin
    ? null
    : `too few nodes take data for ${copiesMin} copies, which are the fewest to write to`;
}

/** How far a family is on its way to other copies. */
export interface MoveProgress {
  /** Id of the family's own pool. */
  readonly pool: number;
  /** Copies that its disks have until then, and where. */
  readonly from: Place;
  /** Copies that they are to have, and where. */
  readonly to: Place;
  /** It goes back to where it comes from: it was cancelled. */
  readonly isBack: boolean;
  /** Copies of PGs that have to be made on nodes which had none, and those of them that are complete. */
  readonly wanted: number;
  readonly done: number;
  /** What it waits for, in words; null: it is done in a moment. */
  readonly waitsFor: string | null;
}

/** How much of what has to be copied is there: 0…100. */
export function percentOf({ wanted, done }: Pick<MoveProgress, "wanted" | "done">): number {
  return wanted === 0 ? 100 : Math.floor(100 * done / wanted);
}

/**
 * How far a family is; null: its copies are not being changed.
 *
 * @param family id
 */
export function moveOf(map: ClusterMap, family: number): MoveProgress | null {
  const own = poolOfFamily(map, family);
  const from = disksWithData(map).find((disk) => disk.family === family)?.pool;
  if (own === undefined || from === undefined) return null;
  const [before, after] = [findPool(map, from)!, findPool(map, own.to)!];
  let wanted = 0;
  let done = 0;
  for (const [index, { inSync }] of own.pgs.entries()) {
    for (const id of after.pgs[index].target) {
      if (before.pgs[index].target.includes(id)) continue;
      wanted++;
      if (inSync.includes(id)) done++;
    }
  }
  return {
    pool: own.id,
    from: { copies: before.copies, zones: before.zones },
    to: { copies: after.copies, zones: after.zones },
    isBack: before === after,
    wanted,
    done,
    waitsFor: reasonAgainstFinish(map, own),
  };
}

// ------------------------------------------------------------------------------------- on the way

/**
 * A map after a change, with the pools that follow from it: targets of families' own are those of the pools that they come from and go to,
 * and a family without disks has none; nor are there any with zones that nobody needs.
 *
 * @param before the map before, of which this has held
 * @param map whose epoch is that of the change
 * @returns the very map where nothing follows
 */
export function withMoves(before: ClusterMap, map: ClusterMap): ClusterMap {
  const isSame = before.pools === map.pools && before.disks === map.disks &&
    before.trash === map.trash;
  if (isSame || map.pools.every(({ id }) => id <= COPIES_MAX)) return map;
  const disks = disksWithData(map);
  const families = new Set(disks.map(({ family }) => family));
  const left = map.pools.filter(({ family }) => family === 0 || families.has(family));
  const used = left.filter((pool) => pool.zones.length === 0 || isUsed(pool, disks, left));
  const next = { ...map, pools: used };
  let isChanged = used.length < map.pools.length;
  const pools = used.map((pool) => {
    if (pool.family === 0) return pool;
    const moved = targeted(next, pool, map.epoch);
    if (moved !== pool) isChanged = true;
    return moved;
  });
  return isChanged ? { ...map, pools } : map;
}

/** A family's own pool with the targets that it should have. */
function targeted(map: ClusterMap, own: Pool, epoch: number): Pool {
  const disk = disksWithData(map).find(({ family }) => family === own.family)!;
  const [from, to] = [findPool(map, disk.pool)!, findPool(map, own.to)!];
  const done = new Map<PgEntry, [PgEntry, PgEntry, PgEntry]>();
  let isChanged = false;
  const pgs = own.pgs.map((pg, index) => {
    const [before, after] = [from.pgs[index], to.pgs[index]];
    const known = done.get(pg);
    if (known !== undefined && known[0] === before && known[1] === after) return known[2];
    const target = targetOf(before, after);
    const isSame = target.length === pg.target.length &&
      target.every((id) => pg.target.includes(id));
    const next = isSame ? pg : retargeted(pg, target, epoch);
    if (next !== pg) isChanged = true;
    done.set(pg, [before, after, next]);
    return next;
  });
  return isChanged ? { ...own, pgs } : own;
}

/** Where replicas of a PG shall be whose family goes from one pool to another. */
export function targetOf(
  from: Pick<PgEntry, "target">,
  to: Pick<PgEntry, "target">,
): readonly number[] {
  return [...from.target, ...to.target.filter((id) => !from.target.includes(id))];
}

/** `edit` of each entry, once for each object: entries that were shared stay so. */
function mapEach(pgs: readonly PgEntry[], edit: (pg: PgEntry) => PgEntry): readonly PgEntry[] {
  const done = new Map<PgEntry, PgEntry>();
  return pgs.map((pg) => {
    let edited = done.get(pg);
    if (edited === undefined) done.set(pg, edited = edit(pg));
    return edited;
  });
}
