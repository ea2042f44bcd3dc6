/**
 * Pools that could have more copies than they have had so far: since nodes have come, or gone to a pool's zones.
 *
 * How many copies a disk must have to be written follows from how many there can be (`copiesMinOf`), and that from how many nodes there
 * are. A node that has just come has nothing yet. If it counted at once, two that join a host whose disks are in use would make
 * guests wait until all data is on one of them. So a pool remembers how many copies all of it has had (`reached`) and counts with
 * those, until all of it has more.
 *
 * Invariants:
 * - It only lets a pool be as thin as the commands before have let it be: what has been reached falls with the nodes (`remove-node`,
 *   `set-zone`) and with nothing else. Nodes that are down, out, dropped or drained count as they always do.
 * - It is there only where it says something: in pools to which disks belong, below what there could be; else it is left out.
 * - What placement aims at, and what a family waits for that goes to another pool, is what there can be (`copiesMinToBe`).
 *
 * @module
 */

import { isOn } from "./levels.ts";
import type { ClusterMap, DiskEntry, Pool } from "./model.ts";
import { copiesOf, disksWithData, findPool, hasDisks } from "./queries.ts";

/**
 * A map after a change, with what its pools have reached.
 *
 * @param before the map before, of which this has held
 * @returns the very map where nothing follows
 */
export function withReached(before: ClusterMap, map: ClusterMap): ClusterMap {
  if (!isOn(map, 2)) return map;
  const isMarked = ({ reached }: Pool) => reached !== undefined;
  const mayChange = before.pools.some(isMarked) || hasOtherPlaces(before, map);
  if (!mayChange) return map;
  let isChanged = false;
  const pools = map.pools.map((pool) => {
    const reached = reachedOf(before, map, pool);
    if (reached === pool.reached) return pool;
    isChanged = true;
    const { reached: _, ...others } = pool;
    return reached === undefined ? others : { ...others, reached };
  });
  return isChanged ? { ...map, pools } : map;
}

/** Whether there are other nodes, or nodes in other zones. */
function hasOtherPlaces({ nodes: before }: ClusterMap, { nodes }: ClusterMap): boolean {
  if (before === nodes) return false;
  return before.length !== nodes.length || nodes.some(({ zone }, at) => zone !== before[at].zone);
}

function reachedOf(before: ClusterMap, map: ClusterMap, pool: Pool): number | undefined {
  const isHome = (disk: DiskEntry) => disk.pool === pool.id;
  const was = findPool(before, pool.id);
  const isKept = was !== undefined && pool.family === 0 && disksWithData(before).some(isHome) &&
    disksWithData(map).some(isHome);
  if (!isKept) return undefined;
  const place = { copies: pool.copies, pool: pool.id };
  const possible = copiesOf(map, place);
  const counted = Math.min(copiesOf(before, place), was.reached ?? possible);
  if (counted >= possible) return undefined;
  const reached = Math.max(counted, fewestCopies(map, pool));
  return reached < possible ? reached : undefined;
}

/** Copies in sync that every PG has of the disks that belong to a pool, where their data is now. */
function fewestCopies(map: ClusterMap, { id }: Pool): number {
  const families = new Set<number>();
  for (const disk of disksWithData(map)) if (disk.pool === id) families.add(disk.family);
  let fewest = Infinity;
  for (const pool of map.pools) {
    const isOne = pool.id === id ? hasDisks(map, id) : families.has(pool.family);
    if (!isOne) continue;
    for (const { inSync } of pool.pgs) fewest = Math.min(fewest, inSync.length);
  }
  return fewest;
}
