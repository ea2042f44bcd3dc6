/**
 * What placement must do, said a second time and naively: the rules of zones, the band around the
 * ideal, and the fewest moves that lead there, by a minimum-cost flow.
 *
 *     source ─width─► PG ─zoneLow…zoneHigh─► (PG, zone) ─1, price─► node ─low…high─► sink
 *
 * The price of an edge is 0 where the node was in the PG and 1 where it was not. Successive shortest
 * paths; a lower bound is capacity with a large negative price.
 *
 * @module
 */
import type { Placement, PlacementInput, PlacementNode } from "../../agent/map/placement.ts";

/** Price of a unit that a lower bound asks for: more than all moves together. */
const BOUND_PRICE = 1e6;

/** The rules of a pool. */
export interface Rules {
  width: number;
  usable: PlacementNode[];
  /** Names of zones; a node without one has a name of its own. */
  zoneOf: Map<number, string>;
  /** Fewest and most replicas of a PG in each zone. */
  zoneBounds: Map<string, { low: number; high: number }>;
}

/** The rules that hold for nodes and copies. */
export function rulesOf(nodes: readonly PlacementNode[], copies: number): Rules {
  const usable = nodes.filter(({ weight }) => weight > 0).sort((a, b) => a.id - b.id);
  const width = Math.min(copies, usable.length);
  const zoneOf = new Map(usable.map(({ id, zone }) => [id, zone === "" ? `own ${id}` : zone]));
  const sizes = new Map<string, number>();
  for (const zone of zoneOf.values()) sizes.set(zone, (sizes.get(zone) ?? 0) + 1);
  // Deal replicas to zones in rounds: whoever has room gets one, until all are dealt.
  let full = 0;
  let left = width;
  while (left > 0) {
    const takers = [...sizes.values()].filter((size) => size > full).length;
    if (left < takers) break;
    left -= takers;
    full++;
  }
  const zoneBounds = new Map([...sizes].map(([zone, size]) => [zone, {
    low: Math.min(size, full),
    high: Math.min(size, left > 0 ? full + 1 : full),
  }]));
  return { width, usable, zoneOf, zoneBounds };
}

/** Whole numbers of PGs within 3 % of an ideal, or beside it. */
export function bandOf(ideal: number, pgCount: number): { low: number; high: number } {
  const epsilon = 1e-6;
  return {
    low: Math.min(Math.floor(ideal + epsilon), Math.ceil(ideal * 0.97 - epsilon)),
    high: Math.min(
      pgCount,
      Math.max(Math.ceil(ideal - epsilon), Math.floor(ideal * 1.03 + epsilon)),
    ),
  };
}

/** Everything that is wrong with a table; empty: nothing. */
export function faultsOf(input: PlacementInput, { targets, nodes }: Placement): string[] {
  const faults: string[] = [];
  const { width, usable, zoneOf, zoneBounds } = rulesOf(input.nodes, input.copies);
  if (targets.length !== input.pgCount) faults.push(`${targets.length} PGs`);
  const counts = new Map<number, number>(usable.map(({ id }) => [id, 0]));
  targets.forEach((ids, pg) => {
    if (ids.length !== width) faults.push(`PG ${pg} has ${ids.length} members, not ${width}`);
    if (new Set(ids).size !== ids.length) faults.push(`PG ${pg} has a node twice: ${ids}`);
    const stay = previousOf(input, pg).filter((id, at, all) =>
      ids.includes(id) && all.indexOf(id) === at
    );
    if (stay.some((id, at) => ids[at] !== id)) faults.push(`PG ${pg}: ${stay} became ${ids}`);
    for (const [zone, { low, high }] of zoneBounds) {
      const count = ids.filter((id) => zoneOf.get(id) === zone).length;
      if (count < low || count > high) {
        faults.push(`PG ${pg} has ${count} replicas in zone ${zone}, not ${low} to ${high}`);
      }
    }
    for (const id of ids) {
      const count = counts.get(id);
      if (count === undefined) faults.push(`PG ${pg} names node ${id}, which takes nothing`);
      else counts.set(id, count + 1);
    }
  });
  for (const { id, after, ideal } of nodes) {
    const count = counts.get(id) ?? 0;
    if (count !== after) faults.push(`node ${id} has ${count} PGs, the figures say ${after}`);
    const { low, high } = bandOf(ideal, input.pgCount);
    if (count < low || count > high) {
      faults.push(`node ${id} has ${count} PGs and should have ${ideal.toFixed(2)}`);
    }
  }
  return faults;
}

/** Replicas that came to nodes which did not have them. */
export function movesOf(input: PlacementInput, targets: readonly (readonly number[])[]): number {
  return targets.reduce((total, ids, pg) => {
    const before = previousOf(input, pg);
    return total + ids.filter((id) => !before.includes(id)).length;
  }, 0);
}

/** The previous members of a PG, also where PGs are split. */
export function previousOf({ previous }: PlacementInput, pg: number): readonly number[] {
  return previous.length === 0 ? [] : previous[pg % previous.length];
}

/**
 * The fewest moves that lead into the bands.
 *
 * @param ideals by node id
 */
export function fewestMoves(input: PlacementInput, ideals: ReadonlyMap<number, number>): number {
  const { width, usable, zoneOf, zoneBounds } = rulesOf(input.nodes, input.copies);
  const zones = [...zoneBounds.keys()];
  const { pgCount } = input;
  const source = 0;
  const sink = 1;
  const nodeAt = new Map(usable.map(({ id }, index) => [id, 2 + index]));
  const pgAt = (pg: number) => 2 + usable.length + pg * (1 + zones.length);
  const flow = new Flow(pgAt(pgCount));
  for (const { id } of usable) {
    const { low, high } = bandOf(ideals.get(id) ?? 0, pgCount);
    flow.edgeWithBounds(nodeAt.get(id)!, sink, low, high);
  }
  for (let pg = 0; pg < pgCount; pg++) {
    flow.edge(source, pgAt(pg), width, 0);
    const before = previousOf(input, pg);
    zones.forEach((zone, index) => {
      const { low, high } = zoneBounds.get(zone)!;
      flow.edgeWithBounds(pgAt(pg), pgAt(pg) + 1 + index, low, high);
    });
    for (const { id } of usable) {
      const zone = pgAt(pg) + 1 + zones.indexOf(zoneOf.get(id)!);
      flow.edge(zone, nodeAt.get(id)!, 1, before.includes(id) ? 0 : 1);
    }
  }
  return flow.run(source, sink, pgCount * width);
}

/** Minimum-cost flow by successive shortest paths. */
class Flow {
  #to: number[] = [];
  #room: number[] = [];
  #price: number[] = [];
  #edges: number[][];

  constructor(vertices: number) {
    this.#edges = Array.from({ length: vertices }, () => []);
  }

  edge(from: number, to: number, room: number, price: number): void {
    if (room === 0) return;
    this.#edges[from].push(this.#to.push(to) - 1);
    this.#edges[to].push(this.#to.push(from) - 1);
    this.#room.push(room, 0);
    this.#price.push(price, -price);
  }

  edgeWithBounds(from: number, to: number, low: number, high: number): void {
    this.edge(from, to, low, -BOUND_PRICE);
    this.edge(from, to, high - low, 0);
  }

  /** Sends `amount` and returns what it costs without the prices of bounds. */
  run(source: number, sink: number, amount: number): number {
    let total = 0;
    for (let unit = 0; unit < amount; unit++) {
      const price = this.#sendOne(source, sink);
      if (price === Infinity) throw new Error(`only ${unit} of ${amount} units have a way`);
      total += price;
    }
    return total - BOUND_PRICE * Math.round(total / BOUND_PRICE);
  }

  #sendOne(source: number, sink: number): number {
    const distance = new Float64Array(this.#edges.length).fill(Infinity);
    const by = new Int32Array(this.#edges.length).fill(-1);
    const isQueued = new Uint8Array(this.#edges.length);
    const queue = [source];
    distance[source] = 0;
    for (let taken = 0; taken < queue.length; taken++) {
      const from = queue[taken];
      isQueued[from] = 0;
      for (const edge of this.#edges[from]) {
        const to = this.#to[edge];
        if (this.#room[edge] === 0 || distance[from] + this.#price[edge] >= distance[to]) continue;
        distance[to] = distance[from] + this.#price[edge];
        by[to] = edge;
        if (isQueued[to] === 0) queue.push(to);
        isQueued[to] = 1;
      }
    }
    if (distance[sink] === Infinity) return Infinity;
    for (let at = sink; at !== source; at = this.#to[by[at] ^ 1]) {
      this.#room[by[at]]--;
      this.#room[by[at] ^ 1]++;
    }
    return distance[sink];
  }
}
