/**
 * What a change about a node would do, before it is made: what moves, how much, how long. Pure.
 *
 *     map + change ──▶ map after it ──▶ placement (targets.ts) ──▶ plan (plan.ts)
 *
 * The targets are those that the leader will compute, from the same map by the same function. Bytes are estimates:
 * the map does not know how much a PG holds, only how much nodes have reported. A PG is taken to hold in proportion
 * to the size of its pool's disks, by as much as explains what the nodes have.
 *
 * @module
 */

import { success } from "./errors.ts";
import type { Result } from "./errors.ts";
import { apply } from "./map.ts";
import type { Availability, ClusterMap, NodeEntry, PgEntry, Pool } from "./model.ts";
import { planChange, type TableChange } from "./plan.ts";
import { disksWithData, hasDisks, poolIdOf } from "./queries.ts";
import { placePool, takersOf } from "./targets.ts";

/**
 * What a node gives to moving data, in bytes per second and direction, where nothing better is known: what one
 * disk and one connection of 1 Gbit/s do.
 */
export const COPY_RATE_ASSUMED_BYTES = 100 * 1024 * 1024;

/** A change about one node; what is left out stays. `isRemoved`: it is not there any more. */
export interface NodeChange {
  readonly availability?: Availability;
  readonly weight?: number | null;
  readonly zone?: string;
  readonly isRemoved?: boolean;
}

/** What is known about nodes beside the map. */
export interface PreviewConditions {
  /** Bytes of live data on nodes, by id; nodes that have not said are missing. */
  readonly usedBytes: ReadonlyMap<number, number>;
  /** The rate at which data is being copied to some node now, in bytes per second; null: to none. */
  readonly rateBytesPerSecond: number | null;
}

/** What a change means for a node. */
export interface PreviewNode {
  readonly id: number;
  /** Replicas of PGs that come. */
  readonly comes: number;
  /** Replicas of PGs that leave. */
  readonly goes: number;
  /** Null: nobody has said how much there is. */
  readonly receivesBytes: number | null;
  readonly sendsBytes: number | null;
}

/** What a change means. */
export interface Preview {
  /** `targetsEpoch` of the map that it is of. */
  readonly targetsEpoch: number;
  /** Replicas of PGs that are made on nodes which did not have them. */
  readonly movedReplicas: number;
  /** The fewest that any balanced placement would move. */
  readonly minimumReplicas: number;
  /** An estimate; null: nobody has said how much there is. */
  readonly movedBytes: number | null;
  /** Time of the slowest node, if guests leave it the rate; null: not known. */
  readonly seconds: number | null;
  readonly rateBytesPerSecond: number;
  /** The rate is that of the copying that goes on now; else it is assumed. */
  readonly isRateMeasured: boolean;
  /** Replicas of which nobody who is there has the data. */
  readonly replicasWithoutSource: number;
  /** PGs that will have fewer replicas than now: there are not enough nodes for them. */
  readonly groupsWithFewer: number;
  /** PGs of the node that stay there, because no node takes data, or too few do to be written to. */
  readonly groupsImmovable: number;
  /** Nodes that have to do with it, by id. */
  readonly nodes: readonly PreviewNode[];
}

/**
 * Says what a change about a node will do.
 *
 * PGs are not split for it, which the leader may do where nodes take data again that took none.
 *
 * @param map the map now
 * @param node id
 * @param change see there
 * @returns the plan, or the map's own error when the change cannot be made
 *
 * @example
 * ```ts
 * import { foundCluster } from "./map.ts";
 * import { previewNodeChange } from "./preview.ts";
 *
 * const founder = {
 *   clusterId: "c".repeat(32),
 *   uuid: "a".repeat(32),
 *   name: "host-1",
 *   address: "192.0.2.1:7460",
 *   zone: "",
 *   capacityBytes: 1e12,
 *   witness: false,
 *   version: "1.0.0",
 *   protocol: 1,
 *   bootId: "",
 *   nowMs: 0,
 * };
 * const map = foundCluster(founder);
 * if (!map.ok) throw new Error(map.error.message);
 * const conditions = { usedBytes: new Map(), rateBytesPerSecond: null };
 * const plan = previewNodeChange(map.value, 1, { weight: 1 }, conditions);
 * if (!plan.ok || plan.value.movedReplicas !== 0) throw new Error("one node has nowhere to move data to");
 * ```
 */
export function previewNodeChange(
  map: ClusterMap,
  node: number,
  change: NodeChange,
  conditions: PreviewConditions,
): Result<Preview> {
  const changed = mapAfter(map, node, change);
  if (!changed.ok) return changed;
  const bytesOf = bytesByPool(map, conditions.usedBytes);
  const tables: TableChange[] = [];
  const isStaying = changed.value.nodes.some(({ id }) => id === node);
  let groupsWithFewer = 0;
  let groupsImmovable = 0;
  for (const pool of map.pools) {
    if (!hasDisks(map, pool.id)) continue;
    const placement = placePool(changed.value, pool);
    const takers = takersOf(changed.value, pool);
    const isNowhere = takers.length === 0;
    // A node that is to give its data away stays where there would be too few copies to write to (targets.ts).
    const isGiving = isStaying && !takers.some(({ id }) => id === node);
    const before = pool.pgs.map((pg) => pg.target);
    placement.targets.forEach((target, pg) => {
      // What has nowhere to go, and is not on this node, does not stand in its way.
      const isImmovable = isNowhere ? before[pg].includes(node) : isGiving && target.includes(node);
      if (isImmovable) groupsImmovable++;
      else if (target.length < before[pg].length) groupsWithFewer++;
    });
    tables.push({
      before,
      // Where there is nobody to take it, the targets stay.
      after: placement.targets.map((target, pg) => target.length > 0 ? target : before[pg]),
      bytesOfPg: bytesOf?.get(pool.id) ?? 0,
      movedMinimum: placement.movedMinimum,
    });
  }
  const { rateBytesPerSecond: measured } = conditions;
  const isRateMeasured = measured !== null && measured > 0;
  const rateBytesPerSecond = isRateMeasured ? measured : COPY_RATE_ASSUMED_BYTES;
  const isAbsent = ({ id, state }: NodeEntry) =>
    state === "down" || (change.isRemoved === true && id === node);
  const absent = new Set(map.nodes.filter(isAbsent).map(({ id }) => id));
  const plan = planChange(tables, { rateBytesPerSecond, absent });
  const isKnown = bytesOf !== null;
  return success({
    targetsEpoch: map.targetsEpoch,
    movedReplicas: plan.movedReplicas,
    minimumReplicas: plan.minimumReplicas,
    movedBytes: isKnown ? Math.round(plan.movedBytes) : null,
    seconds: isKnown ? plan.seconds : null,
    rateBytesPerSecond,
    isRateMeasured,
    replicasWithoutSource: plan.replicasWithoutSource,
    groupsWithFewer,
    groupsImmovable,
    nodes: plan.nodes.map(({ id, comes, goes, receivesBytes, sendsBytes }) => ({
      id,
      comes,
      goes,
      receivesBytes: isKnown ? Math.round(receivesBytes) : null,
      sendsBytes: isKnown ? Math.round(sendsBytes) : null,
    })),
  });
}

function mapAfter(map: ClusterMap, node: number, change: NodeChange): Result<ClusterMap> {
  const { availability, weight, zone, isRemoved } = change;
  let next = map;
  for (
    const command of [
      ...(availability === undefined
        ? []
        : [{ kind: "set-availability", node, availability } as const]),
      ...(weight === undefined ? [] : [{ kind: "set-weight", node, weight } as const]),
      ...(zone === undefined ? [] : [{ kind: "set-zone", node, zone } as const]),
    ]
  ) {
    const result = apply(next, command);
    if (!result.ok) return result;
    next = result.value.map;
  }
  // Whether it may be removed is another question, which the map answers when it is asked to.
  if (isRemoved === true) next = { ...next, nodes: next.nodes.filter(({ id }) => id !== node) };
  return success(next);
}

/** Bytes of one replica of a PG, by pool; null when no node has said what it has. */
function bytesByPool(
  map: ClusterMap,
  usedBytes: ReadonlyMap<number, number>,
): ReadonlyMap<number, number> | null {
  if (usedBytes.size === 0) return null;
  const sizes = new Map<number, number>();
  for (const disk of disksWithData(map)) {
    const id = poolIdOf(map, disk);
    sizes.set(id, (sizes.get(id) ?? 0) + disk.sizeBytes);
  }
  let known = 0;
  for (const bytes of usedBytes.values()) known += bytes;
  let expected = 0;
  for (const pool of map.pools) {
    const sizeOfPg = (sizes.get(pool.id) ?? 0) / pool.pgs.length;
    for (const pg of pool.pgs) expected += sizeOfPg * countReporting(pg, usedBytes);
  }
  const share = expected > 0 ? known / expected : 0;
  const bytesOf = ({ id, pgs }: Pool) => (sizes.get(id) ?? 0) / pgs.length * share;
  return new Map(map.pools.map((pool) => [pool.id, bytesOf(pool)]));
}

function countReporting(pg: PgEntry, usedBytes: ReadonlyMap<number, number>): number {
  let count = 0;
  for (const id of pg.inSync) if (usedBytes.has(id)) count++;
  return count;
}
