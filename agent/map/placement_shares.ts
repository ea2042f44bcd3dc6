/**
 * Placement, the goal: how many PGs of a pool each node should have.
 *
 * **Zones.** A node without a zone is a zone of its own. Let `width` be the replicas that a PG can
 * have: `copies`, or the number of usable nodes where those are fewer. Each PG has at most `cap`
 * replicas in a zone of n nodes (never more than n), with the smallest `cap` for which `width`
 * replicas find room; and it has at least `cap − 1` there (or n), or `cap` where all room is needed. With as many zones as copies `cap`
 * is 1: one replica per zone. With fewer, that is "as evenly as possible".
 *
 * **The ideal: water-filling.** A node of weight w should be in the fraction x = min(1, λ·w) of all
 * PGs: proportional to its weight, but at most one replica of each PG. A zone's sum of x is cut to
 * what its PGs allow, `min(cap − 1, n)`…`min(cap, n)`; inside a zone that was cut its own λ takes the
 * place of the common one. λ is where all sums together are `width`. Both are monotone in λ, so
 * bisection finds them:
 *
 *     x │            ______ 1            zone │          ________ cap
 *       │         ／                      sum │      ___／
 *       │     ／                              │   ／
 *       │ ／                                  │───  cap − 1
 *       └──────────────── λ                   └──────────────── λ
 *
 * The ideal is thus the table that is proportional to the weights among all tables that the zones
 * allow. It can be reached: with x as fractions in every PG all rules hold, and a flow with whole
 * bounds that has a fractional solution has a whole one within ⌊ideal⌋…⌈ideal⌉.
 *
 * **The band.** A node may have `low`…`high` PGs: within {@linkcode BALANCE} of its ideal, and where no
 * whole number is, the whole numbers around it. Nothing moves for a node inside its band. `quota` is a
 * whole number in it, used where something moves anyway; quotas add up exactly, in every zone and
 * altogether (largest remainders, ties by hashes of ids).
 *
 * Only +, −, ×, ÷ and rounding of doubles are used, in the order of node ids: every machine gets the
 * same numbers.
 *
 * @module
 */

import { mix32 } from "./hash.ts";

/** How far from its ideal a node may be before anything moves for it. */
export const BALANCE = 0.03;

/** Halvings of λ: enough for weights that differ by 2^64, to the last bit of a double. */
const HALVINGS = 128;

/** The least that a node counts beside the heaviest: less comes to no PG, and would be lost in rounding or divide by nothing. */
const SCALE_MIN = 2 ** -64;

/** Share of a PG that counts as rounding of doubles. */
const ROUNDING = 1e-6;

/** A node as placement sees it. */
export interface PlacementNode {
  /** 1…65535, unique. */
  readonly id: number;
  /** Failure domain; "" is a zone of its own. */
  readonly zone: string;
  /** Usually bytes of capacity; 0 takes nothing (a witness, out, draining). */
  readonly weight: number;
}

/** The usable nodes and zones of a pool. Nodes are named by their index here: the order of ids. */
export interface Topology {
  /** Node ids, ascending; only nodes of a weight above 0. */
  readonly ids: readonly number[];
  readonly weights: readonly number[];
  /** Zone of each node, as an index. */
  readonly zoneOf: readonly number[];
  /** Nodes of each zone, ascending; zones are in the order of their first nodes. */
  readonly zones: readonly (readonly number[])[];
  /** Replicas of every PG: copies, or fewer where there are fewer nodes. */
  readonly width: number;
  /** Fewest replicas of a PG in each zone. */
  readonly zoneLow: readonly number[];
  /** Most replicas of a PG in each zone. */
  readonly zoneHigh: readonly number[];
  /** Fewest and most are the same: replicas never move from one zone to another. */
  readonly isFixed: boolean;
}

/** What each node, by its index in the {@linkcode Topology}, should have; in PGs. */
export interface Shares {
  /** Proportional to the weight as far as is possible; fractions. */
  readonly ideal: Float64Array;
  /** Fewest PGs of the band. */
  readonly low: Int32Array;
  /** Most PGs of the band. */
  readonly high: Int32Array;
  /** The ideal rounded, so that all add up. */
  readonly quota: Int32Array;
}

/**
 * Finds the usable nodes, their zones, and what a PG may have in each zone.
 *
 * @param nodes in any order
 * @param copies 1 or more
 * @throws {RangeError} on a weight that is no number ≥ 0, or an id that is there twice
 */
export function topologyOf(nodes: readonly PlacementNode[], copies: number): Topology {
  const usable = usableNodes(nodes);
  const zones: number[][] = [];
  const zoneOf: number[] = [];
  const named = new Map<string, number>();
  usable.forEach(({ zone }, index) => {
    let at = zone === "" ? undefined : named.get(zone);
    if (at === undefined) {
      at = zones.push([]) - 1;
      if (zone !== "") named.set(zone, at);
    }
    zones[at].push(index);
    zoneOf.push(at);
  });
  const width = Math.min(copies, usable.length);
  let cap = 0;
  while (sum(zones.map(({ length }) => Math.min(cap, length))) < width) cap++;
  const zoneHigh = zones.map(({ length }) => Math.min(cap, length));
  // What the other zones cannot take, a zone must: all of it, if there is just room for all.
  const isFixed = sum(zoneHigh) === width;
  return {
    ids: usable.map(({ id }) => id),
    weights: usable.map(({ weight }) => weight),
    zoneOf,
    zones,
    width,
    zoneLow: isFixed ? zoneHigh : zoneHigh.map((high) => Math.min(Math.max(cap - 1, 0), high)),
    zoneHigh,
    isFixed,
  };
}

function usableNodes(nodes: readonly PlacementNode[]): PlacementNode[] {
  const sorted = [...nodes].sort((left, right) => left.id - right.id);
  sorted.forEach(({ id, weight }, index) => {
    if (!(weight >= 0 && weight < Infinity)) {
      throw new RangeError(`placement: node ${id} has a weight of ${weight}`);
    }
    if (index > 0 && sorted[index - 1].id === id) {
      throw new RangeError(`placement: node ${id} is there twice`);
    }
  });
  return sorted.filter(({ weight }) => weight > 0);
}

/**
 * What each node should have.
 *
 * @param topology of the pool
 * @param pgCount PGs of the pool
 */
export function sharesOf(topology: Topology, pgCount: number): Shares {
  const ideal = idealsOf(topology).map((fraction) => fraction * pgCount);
  const low = new Int32Array(ideal.length);
  const high = new Int32Array(ideal.length);
  ideal.forEach((share, index) => {
    low[index] = Math.min(
      Math.floor(share + ROUNDING),
      Math.ceil(share * (1 - BALANCE) - ROUNDING),
    );
    high[index] = Math.min(
      pgCount,
      Math.max(Math.ceil(share - ROUNDING), Math.floor(share * (1 + BALANCE) + ROUNDING)),
    );
  });
  return { ideal, low, high, quota: quotasOf(topology, ideal, pgCount) };
}

/** In which fraction of all PGs each node should be. */
function idealsOf(topology: Topology): Float64Array {
  const { zones, weights, zoneLow, zoneHigh, width } = topology;
  const ideal = new Float64Array(weights.length);
  if (width === 0) return ideal;
  const heaviest = Math.max(...weights);
  const scaled = weights.map((weight) => Math.max(SCALE_MIN, weight / heaviest));
  const levelMax = 1 / Math.min(...scaled);
  const wanted = (zone: number, level: number) => {
    let total = 0;
    for (const node of zones[zone]) total += Math.min(1, level * scaled[node]);
    return total;
  };
  const allowed = (zone: number, level: number) =>
    Math.min(zoneHigh[zone], Math.max(zoneLow[zone], wanted(zone, level)));
  const common = levelWhere(width, levelMax, (level) => {
    let total = 0;
    for (let zone = 0; zone < zones.length; zone++) total += allowed(zone, level);
    return total;
  });
  zones.forEach((members, zone) => {
    const share = allowed(zone, common);
    const level = share === wanted(zone, common)
      ? common
      : levelWhere(share, levelMax, (each) => wanted(zone, each));
    for (const node of members) ideal[node] = Math.min(1, level * scaled[node]);
  });
  return ideal;
}

/** The level, 0…`levelMax`, at which the monotone `total` comes to `goal`. */
function levelWhere(goal: number, levelMax: number, total: (level: number) => number): number {
  let below = 0;
  let above = levelMax;
  for (let halving = 0; halving < HALVINGS; halving++) {
    const middle = below + (above - below) / 2;
    if (total(middle) < goal) below = middle;
    else above = middle;
  }
  return above;
}

/** Rounds the ideals, first of the zones, then of the nodes in each. */
function quotasOf(topology: Topology, ideal: Float64Array, pgCount: number): Int32Array {
  const { zones, ids, width } = topology;
  const quota = new Int32Array(ideal.length);
  const ofZones = rounded(
    zones.map((members) => sum(members.map((node) => ideal[node]))),
    zones.map((members) => ids[members[0]]),
    width * pgCount,
  );
  zones.forEach((members, zone) => {
    const shares = members.map((node) => ideal[node]);
    rounded(shares, members.map((node) => ids[node]), ofZones[zone]).forEach((whole, index) => {
      quota[members[index]] = whole;
    });
  });
  return quota;
}

/** Rounds `shares` to whole numbers that add up to `total`: largest remainders are rounded up. */
function rounded(shares: readonly number[], ids: readonly number[], total: number): number[] {
  const wholes = shares.map((share) => Math.floor(share + ROUNDING));
  // In whole units of rounding, so that equal shares are equal and hashes decide between them.
  const remainders = shares.map((share, index) => Math.round((share - wholes[index]) / ROUNDING));
  const order = shares.map((_, index) => index).sort((left, right) =>
    remainders[right] - remainders[left] || mix32(ids[left]) - mix32(ids[right])
  );
  const missing = total - sum(wholes);
  for (let index = 0; index < missing; index++) wholes[order[index % order.length]]++;
  return wholes;
}

function sum(numbers: readonly number[]): number {
  let total = 0;
  for (const each of numbers) total += each;
  return total;
}
