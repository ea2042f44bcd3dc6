/**
 * How the PGs of a map are, in numbers for people. Pure; looks at every PG once.
 *
 * Only pools that have disks count: nobody was ever promised anything about the others.
 *
 * @module
 */

import { CHUNK_BYTES } from "../base/limits.ts";
import { pgOf } from "./hash.ts";
import type { ClusterMap, DiskEntry, PgEntry, Pool } from "./model.ts";
import {
  copiesMinOfPool,
  disksWithData,
  findPool,
  groupCanRead,
  groupCanWrite,
  hasDisks,
  poolOf,
} from "./queries.ts";

/**
 * Counts of PGs. One PG may be in several of them: only `whole` excludes all others but `misplaced` and
 * `joining`, which say that something moves and not that something is missing.
 */
export interface GroupSummary {
  /** PGs of pools that have disks. */
  readonly total: number;
  /** Every copy that the PG shall have is in sync, or as many elsewhere; it can be read and written. */
  readonly whole: number;
  /** Fewer members in sync than its target has; of a family that gets other copies: than it had before. */
  readonly degraded: number;
  /** Fewer in sync than a disk of its pool needs to be written: writes wait. */
  readonly belowMin: number;
  /** Members lost unsynced writes in a crash and the others, or all of them, have to settle what holds: I/O waits. */
  readonly unclean: number;
  /** No member in sync is up: I/O waits until one is back. */
  readonly unreachable: number;
  /** Has members that catch up. */
  readonly joining: number;
  /** Has members outside its target, which leave when the target has everything. */
  readonly misplaced: number;
  /** Why the first PG that cannot be read cannot, in words; "" when all can. */
  readonly unreadableReason: string;
  /** Why the first PG that can be read and not be written cannot, in words; "" when all can. */
  readonly unwritableReason: string;
}

/** Counts the PGs of a map. */
export function summarizeGroups(map: ClusterMap): GroupSummary {
  const summary = {
    total: 0,
    whole: 0,
    degraded: 0,
    belowMin: 0,
    unclean: 0,
    unreachable: 0,
    joining: 0,
    misplaced: 0,
    unreadableReason: "",
    unwritableReason: "",
  };
  const up = new Set(map.nodes.filter((node) => node.state === "up").map((node) => node.id));
  for (const pool of map.pools) {
    if (!hasDisks(map, pool.id)) continue;
    const copiesMin = copiesMinOfPool(map, pool);
    const wanted = tableBehind(map, pool).pgs;
    for (const [index, pg] of pool.pgs.entries()) {
      summary.total++;
      const isDegraded = pg.inSync.length < wanted[index].target.length;
      const isBelow = pg.inSync.length < copiesMin;
      const isUnclean = pg.unclean.length > 0 || pg.unsettled;
      const isUnreachable = !pg.inSync.some((id) => up.has(id));
      if (isDegraded) summary.degraded++;
      if (isBelow) summary.belowMin++;
      if (isUnclean) summary.unclean++;
      if (isUnreachable) summary.unreachable++;
      if (!isDegraded && !isBelow && !isUnclean && !isUnreachable) summary.whole++;
      if (pg.joining.length > 0) summary.joining++;
      if (isMisplaced(pg)) summary.misplaced++;
      if ((isUnclean || isUnreachable) && summary.unreadableReason === "") {
        summary.unreadableReason = groupCanRead(map, pg) ?? "";
      } else if (isBelow && summary.unwritableReason === "") {
        summary.unwritableReason = groupCanWrite(map, pg, copiesMin) ?? "";
      }
    }
  }
  return summary;
}

/** The pool whose targets say how many copies there should be now: of a family's own the one that it comes from. */
function tableBehind(map: ClusterMap, pool: Pool): Pool {
  const disk = pool.family === 0
    ? undefined
    : disksWithData(map).find(({ family }) => family === pool.family);
  return disk === undefined ? pool : findPool(map, disk.pool)!;
}

function isMisplaced(pg: PgEntry): boolean {
  return pg.inSync.some((id) => !pg.target.includes(id));
}

/** Fewest complete copies that any part of each disk has, by the disk's id. */
export function copiesInSync(map: ClusterMap): ReadonlyMap<number, number> {
  const ofPool = new Map<number, number>();
  const found = new Map<number, number>();
  for (const disk of map.disks) found.set(disk.id, fewestCopies(map, disk, ofPool));
  return found;
}

/** `ofPool` keeps what holds for disks that are in every PG. */
function fewestCopies(map: ClusterMap, disk: DiskEntry, ofPool: Map<number, number>): number {
  const pool = poolOf(map, disk);
  // A map without nodes is that of a store of one host.
  if (pool === undefined) return 1;
  const { pgs } = pool;
  const chunks = Math.ceil(disk.sizeBytes / CHUNK_BYTES);
  if (chunks < pgs.length) {
    // Its chunks are in PGs one after the other.
    const first = pgOf(disk.family, 0, pgs.length);
    let fewest = Infinity;
    for (let chunk = 0; chunk < chunks; chunk++) {
      fewest = Math.min(fewest, pgs[(first + chunk) % pgs.length].inSync.length);
    }
    return fewest;
  }
  let fewest = ofPool.get(pool.id);
  if (fewest === undefined) {
    fewest = pgs.reduce((least, pg) => Math.min(least, pg.inSync.length), Infinity);
    ofPool.set(pool.id, fewest);
  }
  return fewest;
}

/** What a node has to do with PGs. */
export interface NodeGroups {
  /** PGs that it is a member of, in sync or joining. */
  readonly held: number;
  /** PGs that it shall hold. */
  readonly wanted: number;
  /** PGs that name it in any way: a node that none names can be removed. */
  readonly named: number;
  /** PGs of pools with disks of which it has the only complete copy. */
  readonly only: number;
}

/** Counts the PGs of every node, by its id; nodes of no PG are missing. All pools count, but for `only`. */
export function groupsOfNodes(map: ClusterMap): ReadonlyMap<number, NodeGroups> {
  const counts = new Map<number, { held: number; wanted: number; named: number; only: number }>();
  const of = (id: number) => {
    let entry = counts.get(id);
    if (entry === undefined) {
      entry = { held: 0, wanted: 0, named: 0, only: 0 };
      counts.set(id, entry);
    }
    return entry;
  };
  for (const pool of map.pools) {
    const counted = hasDisks(map, pool.id);
    for (const { target, inSync, joining } of pool.pgs) {
      for (const id of inSync) of(id).held++;
      for (const id of joining) of(id).held++;
      for (const id of target) of(id).wanted++;
      for (const id of new Set([...target, ...inSync, ...joining])) of(id).named++;
      if (counted && inSync.length === 1) of(inSync[0]).only++;
    }
  }
  return counts;
}

/** Counts of a node that no PG names. */
export const NO_GROUPS: NodeGroups = { held: 0, wanted: 0, named: 0, only: 0 };
