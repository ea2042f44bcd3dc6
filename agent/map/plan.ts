/**
 * What a change of placement will do before it is done: what moves, how much, how long. Plain data for
 * a program to print; nothing here decides anything.
 *
 * A replica that comes to a node is copied from a node that had it. Which one is chosen at the time of
 * copying, so each that had it and is not absent is taken to send an equal part. Every node
 * sends and receives at the same time, at the given rate in each direction; the slowest one is how long
 * the change takes. Guests, which go first, may make it longer.
 *
 * @module
 */

import type { PgTargets } from "./placement.ts";

/** The change of one pool's table. */
export interface TableChange {
  /** The table so far; shorter by a power of two where PGs are split, empty for a new pool. */
  readonly before: PgTargets;
  /** The table to come. */
  readonly after: PgTargets;
  /** Bytes of one replica of each PG of `after`: of every one by its number, or an average. */
  readonly bytesOfPg: number | readonly number[];
  /** No balanced table moves fewer replicas: `movedMinimum` of a placement. */
  readonly movedMinimum: number;
}

/** How a change is carried out. */
export interface PlanConditions {
  /** What a node gives to it, in bytes per second, in each direction; more than 0. */
  readonly rateBytesPerSecond: number;
  /** Nodes that cannot send: down, or gone. */
  readonly absent: ReadonlySet<number>;
}

/** What a change means for a node. */
export interface NodePlan {
  readonly id: number;
  /** Replicas that come. */
  readonly comes: number;
  /** Replicas that leave. */
  readonly goes: number;
  readonly receivesBytes: number;
  readonly sendsBytes: number;
  /** Time that the node needs. */
  readonly seconds: number;
}

/** What a change means altogether. */
export interface ChangePlan {
  /** Nodes that have to do with it, by id. */
  readonly nodes: NodePlan[];
  /** Replicas that come to nodes which did not have them. */
  readonly movedReplicas: number;
  readonly movedBytes: number;
  /** No balanced table moves fewer replicas. */
  readonly minimumReplicas: number;
  /** What they would be in bytes, at the average of each pool. */
  readonly minimumBytes: number;
  /** Replicas that nobody present can send: new, or out of reach until somebody returns. */
  readonly replicasWithoutSource: number;
  /** Time of the slowest node. */
  readonly seconds: number;
}

interface NodeSums {
  comes: number;
  goes: number;
  receivesBytes: number;
  sendsBytes: number;
}

/**
 * Adds up what a change of some pools will do.
 *
 * @param changes of all pools that it touches
 * @throws {RangeError} on a rate that is not above 0
 *
 * @example
 * ```ts
 * import { planChange } from "./plan.ts";
 *
 * const change = { before: [[1, 2]], after: [[1, 3]], bytesOfPg: 1000, movedMinimum: 1 };
 * const plan = planChange([change], { rateBytesPerSecond: 100, absent: new Set([2]) });
 * // Node 1 sends all of it, because node 2 is absent.
 * if (plan.movedBytes !== 1000 || plan.seconds !== 10) throw new Error("10 s at 100 bytes/s");
 * ```
 */
export function planChange(
  changes: readonly TableChange[],
  { rateBytesPerSecond, absent }: PlanConditions,
): ChangePlan {
  if (!(rateBytesPerSecond > 0)) {
    throw new RangeError(`plan: a rate of ${rateBytesPerSecond} bytes/s takes for ever`);
  }
  const sums = new Map<number, NodeSums>();
  const total = {
    movedReplicas: 0,
    movedBytes: 0,
    minimumReplicas: 0,
    minimumBytes: 0,
    replicasWithoutSource: 0,
  };
  for (const change of changes) {
    change.after.forEach((after, pg) => {
      const before = membersBefore(change.before, pg);
      const bytes = bytesOf(change, pg);
      const comes = after.filter((id) => !before.includes(id));
      const sources = before.filter((id) => !absent.has(id));
      for (const id of before) if (!after.includes(id)) sumsOf(sums, id).goes++;
      for (const id of comes) {
        sumsOf(sums, id).comes++;
        sumsOf(sums, id).receivesBytes += sources.length > 0 ? bytes : 0;
        for (const source of sources) sumsOf(sums, source).sendsBytes += bytes / sources.length;
      }
      total.movedReplicas += comes.length;
      if (sources.length > 0) total.movedBytes += bytes * comes.length;
      else total.replicasWithoutSource += comes.length;
    });
    total.minimumReplicas += change.movedMinimum;
    total.minimumBytes += change.movedMinimum * averageBytes(change);
  }
  const nodes = [...sums].sort(([left], [right]) => left - right).map(([id, node]) => ({
    id,
    ...node,
    seconds: Math.max(node.receivesBytes, node.sendsBytes) / rateBytesPerSecond,
  }));
  return {
    nodes,
    ...total,
    seconds: nodes.reduce((most, node) => Math.max(most, node.seconds), 0),
  };
}

function membersBefore(before: PgTargets, pg: number): readonly number[] {
  return before.length === 0 ? [] : [...new Set(before[pg & (before.length - 1)])];
}

function bytesOf({ bytesOfPg }: TableChange, pg: number): number {
  return typeof bytesOfPg === "number" ? bytesOfPg : bytesOfPg[pg] ?? 0;
}

function averageBytes({ bytesOfPg, after }: TableChange): number {
  if (typeof bytesOfPg === "number") return bytesOfPg;
  return after.length === 0 ? 0 : bytesOfPg.reduce((sum, each) => sum + each, 0) / after.length;
}

function sumsOf(sums: Map<number, NodeSums>, id: number): NodeSums {
  let node = sums.get(id);
  if (node === undefined) {
    node = { comes: 0, goes: 0, receivesBytes: 0, sendsBytes: 0 };
    sums.set(id, node);
  }
  return node;
}
