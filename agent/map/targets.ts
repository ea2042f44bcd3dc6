/**
 * What placement makes of a map: the targets that the leader sets, and that a preview shows before. One
 * computation for both, so that what was shown is what happens.
 *
 * @module
 */

import type { ClusterMap, NodeEntry, Pool } from "./model.ts";
import { place, type Placement } from "./placement.ts";

/** The table that placement makes of a pool's targets and the nodes as they are. Pure; takes milliseconds. */
export function placePool(map: ClusterMap, pool: Pool): Placement {
  return place({
    pgCount: pool.pgs.length,
    copies: pool.copies,
    previous: pool.pgs.map((entry) => entry.target),
    nodes: map.nodes.map((node) => ({ id: node.id, zone: node.zone, weight: weightOf(node) })),
  });
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
