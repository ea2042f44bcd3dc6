/**
 * What placement makes of a map: the targets that the leader sets, and that a preview shows before. One
 * computation for both, so that what was shown is what happens.
 *
 * Invariant: nobody who has to hand data over takes a PG below the fewest copies with which its disks may be written
 * (`copiesMinToBe`), as long as the nodes that have it are there. Where the nodes that take data are fewer than that, PGs keep
 * places on nodes that are being drained, or that are not in the zones of the pool (`zones.ts`), and that goes on when there is room
 * elsewhere: a drain that waits is better than guests that do. The same where nobody takes data: then all PGs keep all places.
 *
 * @module
 */

import type { ClusterMap, NodeEntry, PgEntry, Pool } from "./model.ts";
import { place, type Placement } from "./placement.ts";
import { targetOf } from "./copies.ts";
import { isNamed } from "./groups.ts";
import {
  copiesMinOfPool,
  copiesMinToBe,
  disksWithData,
  findPool,
  hasDisks,
  storageNodes,
} from "./queries.ts";
import { isInZones, zonesText } from "./zones.ts";

/** The table that placement makes of a pool's targets and the nodes as they are. Pure; takes milliseconds. */
export function placePool(map: ClusterMap, pool: Pool): Placement {
  return pool.family === 0 ? placeShared(map, pool) : placeFamily(map, pool);
}

/** That of a family's own follows from those of the pools that it comes from and goes to. */
function placeFamily(map: ClusterMap, pool: Pool): Placement {
  const [before, after] = endsOf(map, pool);
  const [from, to] = [placeShared(map, before), placeShared(map, after)];
  // Where nobody takes data everything stays as it is.
  const keep = (target: number[], { target: old }: PgEntry) => target.length > 0 ? target : old;
  const targets = pool.pgs.map((_, pg) => [
    ...targetOf(
      { target: keep(from.targets[pg], before.pgs[pg]) },
      { target: keep(to.targets[pg], after.pgs[pg]) },
    ),
  ]);
  const movedMinimum = targets.reduce(
    (sum, target, pg) => sum + target.filter((id) => !pool.pgs[pg].target.includes(id)).length,
    0,
  );
  return { ...to, targets, movedMinimum };
}

/** The pools that a family comes from and goes to. */
function endsOf(map: ClusterMap, own: Pool): readonly [from: Pool, to: Pool] {
  const disk = disksWithData(map).find(({ family }) => family === own.family);
  return [findPool(map, disk?.pool ?? own.to)!, findPool(map, own.to)!];
}

function placeShared(map: ClusterMap, pool: Pool): Placement {
  const placement = place({
    pgCount: pool.pgs.length,
    copies: pool.copies,
    previous: pool.pgs.map((entry) => entry.target),
    nodes: map.nodes.map((node) => ({
      id: node.id,
      zone: node.zone,
      weight: weightIn(pool.zones, node),
    })),
  });
  return { ...placement, targets: keptAtMin(map, pool, placement.targets) };
}

/** The targets with places of nodes that are to give their data away, where there would be too few to write to. */
function keptAtMin(map: ClusterMap, pool: Pool, targets: number[][]): number[][] {
  const copiesMin = Math.min(copiesMinOfPool(map, pool, copiesMinToBe), pool.copies);
  // No targets at all: nobody takes data, and everything stays as it is.
  const isShort = (target: readonly number[]) => target.length > 0 && target.length < copiesMin;
  if (!targets.some(isShort)) return targets;
  const giving = new Set(
    map.nodes.filter((node) => isGiving(pool, node)).map(({ id }) => id),
  );
  const isInside = new Set(
    map.nodes.filter((node) => isInZones(pool.zones, node)).map(({ id }) => id),
  );
  return targets.map((target, pg) => {
    if (!isShort(target)) return target;
    const { inSync, target: before }: PgEntry = pool.pgs[pg];
    // Those first that have it, so that whoever is gone need not come back for it; of all those that are in the zones.
    // Where nobody takes data the target has kept some of them already.
    const others = [...inSync, ...before].filter((id, i, ids) =>
      giving.has(id) && !target.includes(id) && ids.indexOf(id) === i
    ).sort((a, b) => Number(isInside.has(b)) - Number(isInside.has(a)));
    return [...target, ...others.slice(0, copiesMin - target.length)];
  });
}

/** Whether a node is to hold nothing of a pool, and may have to for a while: not those that nobody expects to come back. */
function isGiving({ zones }: Pool, node: NodeEntry): boolean {
  return !node.witness && node.availability !== "out" && weightIn(zones, node) === 0;
}

/** Where the targets of a pool are not what placement makes of the nodes. */
export function targetChanges(
  map: ClusterMap,
  pool: Pool,
): (readonly [pg: number, target: readonly number[]])[] {
  const { targets } = placePool(map, pool);
  const changes: (readonly [number, readonly number[]])[] = [];
  for (let pg = 0; pg < pool.pgs.length; pg++) {
    const target = targets[pg];
    const { target: old } = pool.pgs[pg];
    const isSame = target.length === old.length && target.every((id, i) => id === old[i]);
    if (!isSame && target.length > 0) changes.push([pg, target]);
  }
  return changes;
}

/** What a node counts in placement: nothing when it is to hold nothing. */
export function weightOf(node: NodeEntry): number {
  if (node.witness || node.availability !== "in") return 0;
  return node.weight ?? node.capacityBytes;
}

/** What a node counts in the placement of what is kept in some zones. */
export function weightIn(zones: readonly string[], node: NodeEntry): number {
  return isInZones(zones, node) ? weightOf(node) : 0;
}

/**
 * Nodes that take data of a pool: of a family's own, that of the pool that it comes from, or of the one that it goes to.
 *
 * @param pool of the map, or of one before it
 */
export function takersOf(map: ClusterMap, pool: Pool): readonly NodeEntry[] {
  const ends = pool.family === 0 ? [pool] : endsOf(map, pool);
  return map.nodes.filter((node) => ends.some(({ zones }) => weightIn(zones, node) > 0));
}

/** How much of what a node holds others would hold without it; `nothing`: there is nothing with more than one copy. */
export type Remaking = "all" | "some" | "none" | "nothing";

/**
 * How much of what lies on a node that is down is made anew on others when it is out: what has other copies, where there are
 * as many other nodes that take it, and are up, as it has copies.
 *
 * @param node its id
 */
export function remakingOf(map: ClusterMap, node: number): Remaking {
  const entry = map.nodes.find(({ id }) => id === node);
  let made = 0, lacking = 0, single = 0;
  for (const pool of map.pools) {
    if (entry === undefined || !hasDisks(map, pool.id) || !isInZones(pool.zones, entry)) continue;
    const others = takersOf(map, pool).filter(({ id, state }) => id !== node && state === "up");
    if (pool.copies === 1) single++;
    else if (others.length >= pool.copies) made++;
    else lacking++;
  }
  if (made + lacking === 0) return "nothing";
  if (made === 0) return "none";
  return lacking + single === 0 ? "all" : "some";
}

/** Share of the storage nodes that may be down together before nobody is declared out any more. */
const BRAKE_SHARE = 1 / 3;

/**
 * The storage nodes that are down together where they are so many that the leader declares none of them out; null: they are not, and
 * who is down for `outAfter` is out. One that is drained counts for nothing: its data is elsewhere, and it may be switched off for
 * good, which must not keep the next one that fails from being out.
 */
export function brakeOf(map: ClusterMap): { readonly down: number; readonly of: number } | null {
  const isDown = ({ state }: NodeEntry) => state === "down";
  const known = storageNodes(map).filter(({ availability }) => availability !== "out");
  // Nearly always: only where it matters are all groups looked through for who is drained.
  if (known.filter(isDown).length < 2) return null;
  const storage = known.filter(({ id, availability }) =>
    availability !== "draining" || isNamed(map, id)
  );
  const down = storage.filter(isDown).length;
  return down > 1 && down >= storage.length * BRAKE_SHARE ? { down, of: storage.length } : null;
}

/**
 * Why disks do not lie as they should in the zones that they are kept in.
 *
 * @param pool that they belong to
 * @returns in words, beginning in lower case; null: they do, or will, or may be anywhere
 */
export function zonesProblem(map: ClusterMap, pool: Pool): string | null {
  const { zones, copies } = pool;
  const { length } = zones.length === 0 ? [] : takersOf(map, pool);
  if (zones.length === 0 || length >= copies) return null;
  if (length === 0) return `no node of ${zonesText(zones)} takes data, so all stays where it is`;
  return `${zonesText(zones)} ${zones.length === 1 ? "has" : "have"} ${length} ${
    length === 1 ? "node that takes" : "nodes that take"
  } data, too few for ${copies} copies`;
}
