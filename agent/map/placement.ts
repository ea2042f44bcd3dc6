/**
 * Placement: which nodes the replicas of every PG of a pool should be on. A pure function, computed by
 * the leader and stored in the map.
 *
 *     old table, nodes ──► shares   what each node should have          placement_shares.ts
 *                          keep     members that may stay               placement_fill.ts
 *                          fill     free places, by lottery             placement_fill.ts
 *                          repair   exchanges until all is balanced     placement_repair.ts
 *                      ──► new table, figures
 *
 * Why not a formula (rendezvous hashing, CRUSH)? Hashing alone is uneven by the square root of a
 * node's PGs, and what evens it out again moves data that need not move. The table is small
 * (16,384 PGs × 3 are 100 KiB), it is in the map anyway because in-sync sets are, and a table can be
 * exactly as even, and as quiet, as one wants. Why not one minimum-cost flow, as garage does? A
 * thousand nodes and 16,384 PGs have 16 million edges. Keeping everything first makes what is left to
 * do as small as the change.
 *
 * Invariants of every result:
 *
 * - one replica per node, `min(copies, usable nodes)` of them in each PG;
 * - one per zone where there are as many zones as copies, else as evenly over the zones as possible;
 * - every node within 3 % of its ideal, or at a whole number beside it (`placement_shares.ts` says what the ideal is);
 * - members that stay keep their order; those that come stand behind them;
 * - the same input, nodes in any order, gives the same result everywhere.
 *
 * Moves, counted as replicas that come to nodes which did not have them, are a few per cent more than
 * the least that lead into the bands: those that level. Tests hold the total below 1.1 times the
 * minimum.
 *
 * @module
 */

import { fill, membersKept } from "./placement_fill.ts";
import { leastMoves } from "./placement_bound.ts";
import { repair } from "./placement_repair.ts";
import {
  type PlacementNode,
  type Shares,
  sharesOf,
  type Topology,
  topologyOf,
} from "./placement_shares.ts";
import { PgTable } from "./placement_table.ts";

export { BALANCE, type PlacementNode } from "./placement_shares.ts";

/** Most copies that placement is made for. */
export const PLACEMENT_COPIES_MAX = 5;

/** Most PGs of a pool: 1,000 nodes have 49 PGs of three copies each with a quarter of it. */
export const PG_COUNT_MAX = 65536;

/** Replicas of each PG: lists of node ids. */
export type PgTargets = readonly (readonly number[])[];

/** What a table is computed from. */
export interface PlacementInput {
  /** A power of two, 1…{@linkcode PG_COUNT_MAX}. */
  readonly pgCount: number;
  /** 1…{@linkcode PLACEMENT_COPIES_MAX}. */
  readonly copies: number;
  /**
   * The table so far: none for a new pool, else a power of two up to `pgCount`. With fewer, PGs are
   * split: PG p had the members of `previous[p & (previous.length − 1)]`. May name nodes that are gone.
   */
  readonly previous: PgTargets;
  /** All nodes of the cluster, in any order; ids are unique, weights finite and not negative. */
  readonly nodes: readonly PlacementNode[];
}

/** What a node has to do with a table. */
export interface PlacementFigure {
  readonly id: number;
  /** PGs that it had. */
  readonly before: number;
  /** PGs that it has. */
  readonly after: number;
  /** PGs that it should have, as a fraction: see `placement_shares.ts`. */
  readonly ideal: number;
}

/** A table and what it means. */
export interface Placement {
  /** New lists of node ids, owned by the caller. */
  readonly targets: number[][];
  /** Every node of the input and of the old table, by id. */
  readonly nodes: PlacementFigure[];
  /** Replicas that come to nodes which did not have them. */
  readonly moved: number;
  /** No balanced table moves fewer. */
  readonly movedMinimum: number;
  /**
   * The largest distance of a node from its ideal, as a fraction of it; 0.03 is 3 %. Nodes that are at
   * a whole number beside their ideal count as balanced.
   */
  readonly imbalance: number;
}

/**
 * Computes the table of a pool.
 *
 * Where no node has a weight above 0 there is nowhere to go: nodes of the cluster keep what they have.
 *
 * @throws {RangeError} on counts out of range, a weight that is no number ≥ 0, an id that is there twice
 *
 * @example
 * ```ts
 * import { place } from "./placement.ts";
 *
 * const nodes = [1, 2, 3, 4].map((id) => ({ id, zone: "", weight: 1 }));
 * const first = place({ pgCount: 256, copies: 3, previous: [], nodes });
 * const next = place({ pgCount: 256, copies: 3, previous: first.targets, nodes: nodes.slice(1) });
 * if (next.moved !== first.nodes[0].after) throw new Error("only what node 1 had moves");
 * ```
 */
export function place(input: PlacementInput): Placement {
  checkInput(input);
  const { pgCount, copies, previous, nodes } = input;
  const topology = topologyOf(nodes, copies);
  const before = Array.from(
    { length: pgCount },
    (_, pg) => [...new Set(previous.length === 0 ? [] : previous[pg & (previous.length - 1)])],
  );
  if (topology.width === 0) return placementKept(before, nodes);
  const indexes = new Map(topology.ids.map((id, index) => [id, index]));
  const old = before.map((ids) =>
    ids.filter((id) => indexes.has(id)).map((id) => indexes.get(id)!)
  );
  const shares = sharesOf(topology, pgCount);
  const kept = membersKept(topology, shares, old);
  const movedMinimum = leastMoves(topology, shares, old);

  const table = new PgTable(topology, shares, old);
  kept.forEach((members, pg) => members.forEach((node) => table.add(pg, node)));
  fill(table);
  repair(table, movedMinimum);

  const targets = before.map((ids, pg) => idsOf(table, pg, ids));
  return {
    targets,
    nodes: figuresOf(before, targets, nodes, topology, shares),
    moved: table.moved,
    movedMinimum,
    imbalance: imbalanceOf(table),
  };
}

function checkInput({ pgCount, copies, previous }: PlacementInput): void {
  const isPower = (count: number) => Number.isInteger(count) && (count & (count - 1)) === 0;
  if (!(pgCount >= 1 && pgCount <= PG_COUNT_MAX && isPower(pgCount))) {
    throw new RangeError(`placement: ${pgCount} PGs are no power of two up to ${PG_COUNT_MAX}`);
  }
  if (!(Number.isInteger(copies) && copies >= 1 && copies <= PLACEMENT_COPIES_MAX)) {
    throw new RangeError(`placement: ${copies} copies are not 1 to ${PLACEMENT_COPIES_MAX}`);
  }
  const length = previous.length;
  if (length !== 0 && !(length <= pgCount && isPower(length))) {
    throw new RangeError(`placement: a table of ${length} PGs does not become one of ${pgCount}`);
  }
}

/** The result where no node takes anything: everything stays where it is. */
function placementKept(before: number[][], nodes: readonly PlacementNode[]): Placement {
  const known = new Set(nodes.map(({ id }) => id));
  const targets = before.map((ids) => ids.filter((id) => known.has(id)));
  return {
    targets,
    nodes: figuresOf(before, targets, nodes),
    moved: 0,
    movedMinimum: 0,
    imbalance: 0,
  };
}

/** Members of a PG: those that stay in their order, then those that came. */
function idsOf(table: PgTable, pg: number, before: readonly number[]): number[] {
  const now: number[] = [];
  for (let place = 0; place < table.size(pg); place++) {
    now.push(table.topology.ids[table.member(pg, place)]);
  }
  return [
    ...before.filter((id) => now.includes(id)),
    ...now.filter((id) => !before.includes(id)),
  ];
}

function figuresOf(
  before: PgTargets,
  after: PgTargets,
  nodes: readonly PlacementNode[],
  topology?: Topology,
  shares?: Shares,
): PlacementFigure[] {
  const had = countsOf(before);
  const has = countsOf(after);
  const ideals = new Map(topology?.ids.map((id, index) => [id, shares!.ideal[index]]));
  const ids = new Set([...nodes.map(({ id }) => id), ...had.keys()]);
  return [...ids].sort((left, right) => left - right).map((id) => ({
    id,
    before: had.get(id) ?? 0,
    after: has.get(id) ?? 0,
    ideal: ideals.get(id) ?? 0,
  }));
}

function countsOf(targets: PgTargets): Map<number, number> {
  const counts = new Map<number, number>();
  for (const ids of targets) {
    for (const id of ids) counts.set(id, (counts.get(id) ?? 0) + 1);
  }
  return counts;
}

function imbalanceOf({ counts, shares, nodeCount }: PgTable): number {
  let worst = 0;
  for (let node = 0; node < nodeCount; node++) {
    const distance = Math.abs(counts[node] - shares.ideal[node]);
    if (distance >= 1) worst = Math.max(worst, distance / shares.ideal[node]);
  }
  return worst;
}
