/**
 * Placement, second half: exchanges until every node is in its band, with as few moves as possible.
 *
 * The table is a flow: PGs give `width` units each, through zones, to nodes that take `low`…`high`. An
 * *exchange* `goes → comes` puts `comes` in the place of `goes` in one PG. A *chain* of exchanges
 *
 *     comes₀ ◄─ PG a ─ goes₀ = comes₁ ◄─ PG b ─ goes₁ = comes₂ ◄─ PG c ─ goes₂
 *
 * is an augmenting path: only the counts of its ends change, comes₀ gains a PG and the last one loses
 * one. It helps where direct exchanges are not possible: all PGs of those that have too much are
 * closed to a node because their zones are. As long as the table is not in its band there is a
 * chain, because a whole solution exists (`placement_shares.ts`).
 *
 * 1. *Repair*: nodes below their band, then those above it. For each: a chain that costs nothing
 *    (only old members that come back), else one exchange with whoever is farthest on the other side,
 *    else the shortest chain (breadth first).
 * 2. *Polish*, where the moves are more than a lower bound: cycles of negative cost in the graph of
 *    exchanges (Bellman and Ford), as in a minimum-cost flow (M. Klein, 1967). It is exact but for
 *    cycles that pass a PG twice, and it is for small clusters: in large ones there is always
 *    somebody to exchange with directly.
 * 3. *Level*: a few more moves, in proportion, towards the quotas. A node that was filled to the low
 *    end of its band ends at its ideal.
 *
 * All searches together look at no more than {@linkcode WORK_MAX} entries. Should that not be enough, the
 * table obeys all rules of zones and is out of balance by what the figures say.
 *
 * @module
 */

import { mixPair } from "./hash.ts";
import type { PgTable } from "./placement_table.ts";

/** Most entries that the searches for one table look at; about a quarter of a second. */
const WORK_MAX = 60_000_000;

/** Most nodes of a cluster whose table is polished: the graph of exchanges is their square. */
const NODES_POLISHED_MAX = 64;

/** Moves for each of which one more is allowed to level with. */
const MOVES_PER_LEVELLING = 25;

/** Nodes that a direct exchange is tried with before chains are searched. */
const TRIES_MAX = 4;

/**
 * Exchanges members until every node is in its band.
 *
 * @param table with every PG full
 * @param movedMinimum a lower bound of the moves; at it, nothing is searched any more
 */
export function repair(table: PgTable, movedMinimum: number): void {
  const { low, high } = table.shares;
  const search = new ChainSearch(table);
  for (let node = 0; node < table.nodeCount; node++) {
    while (table.counts[node] < low[node] && gain(table, search, node));
  }
  for (let node = 0; node < table.nodeCount; node++) {
    while (table.counts[node] > high[node] && lose(table, search, node));
  }
  if (table.nodeCount <= NODES_POLISHED_MAX) polish(table, movedMinimum);
  level(table);
}

/** Finds one more PG for a node. */
function gain(table: PgTable, search: ChainSearch, node: number): boolean {
  if (search.gain(node, true)) return true;
  const { counts, shares } = table;
  const isGiver = (other: number) => other !== node && counts[other] > shares.low[other];
  for (const other of extremes(table, isGiver, -1, node)) {
    if (exchangeOne(table, other, node)) return true;
  }
  return search.gain(node, false);
}

/** Takes a PG from a node. */
function lose(table: PgTable, search: ChainSearch, node: number): boolean {
  if (search.lose(node, true)) return true;
  const { counts, shares } = table;
  const isTaker = (other: number) => other !== node && counts[other] < shares.high[other];
  for (const other of extremes(table, isTaker, 1, node)) {
    if (exchangeOne(table, node, other)) return true;
  }
  return search.lose(node, false);
}

/**
 * The nodes that have least (`sign` 1) or most (`sign` −1) for their ideal, one after the other, at
 * most {@linkcode TRIES_MAX}. Between equal ones a hash decides.
 */
function* extremes(
  table: PgTable,
  isCandidate: (node: number) => boolean,
  sign: 1 | -1,
  seed: number,
): Generator<number> {
  const tried: number[] = [];
  while (tried.length < TRIES_MAX) {
    let best = -1;
    let bestLevel = 0;
    for (let node = 0; node < table.nodeCount; node++) {
      if (!isCandidate(node) || tried.includes(node)) continue;
      const level = sign * levelOf(table, node);
      if (best >= 0 && level > bestLevel) continue;
      if (best >= 0 && level === bestLevel && mixPair(node, seed) > mixPair(best, seed)) continue;
      best = node;
      bestLevel = level;
    }
    table.work += table.nodeCount;
    if (best < 0) return;
    tried.push(best);
    yield best;
  }
}

/** How full a node is: 1 at its ideal. A step beyond the band counts more than any step within. */
function levelOf(table: PgTable, node: number): number {
  const { counts, shares } = table;
  const count = counts[node];
  const level = count / Math.max(shares.ideal[node], 1e-9);
  if (count > shares.high[node]) return level + 1e12;
  return count < shares.low[node] ? level - 1e12 : level;
}

/** Puts `comes` in the place of `goes` in some PG: best where it was, or where `goes` was not. */
function exchangeOne(table: PgTable, goes: number, comes: number): boolean {
  const count = table.counts[goes];
  const start = mixPair(mixPair(goes, comes), table.counts[comes]) % count;
  const wanted = table.newCounts[goes] > 0 ? 0 : 1;
  let found = -1;
  for (let step = 0; step < count; step++) {
    table.work++;
    const pg = table.pgAt(goes, (start + step) % count);
    if (table.has(pg, comes) || !table.fits(pg, goes, comes)) continue;
    if (found < 0) found = pg;
    if (table.cost(pg, comes) - table.cost(pg, goes) > wanted) continue;
    found = pg;
    break;
  }
  if (found < 0) return false;
  table.exchange(found, goes, comes);
  return true;
}

/** Shortest chains, by breadth-first search. */
class ChainSearch {
  readonly #table: PgTable;
  /** Round in which a node was reached last. */
  readonly #reached: Int32Array;
  #round = 0;
  /** How a node was reached: from which node, by an exchange in which PG. */
  readonly #from: Int32Array;
  readonly #through: Int32Array;
  readonly #queue: Int32Array;

  constructor(table: PgTable) {
    this.#table = table;
    this.#reached = new Int32Array(table.nodeCount);
    this.#from = new Int32Array(table.nodeCount);
    this.#through = new Int32Array(table.nodeCount);
    this.#queue = new Int32Array(table.nodeCount);
  }

  /**
   * Gives a node one more PG; somebody with more than the low end of its band loses one.
   *
   * @param isFree only old members may come (back) anywhere: the chain costs nothing
   */
  gain(node: number, isFree: boolean): boolean {
    const table = this.#table;
    const { low } = table.shares;
    return this.#search(node, (comes, visit) => {
      const pgs = isFree ? table.oldPgsOf(comes) : null;
      const end = pgs === null ? table.pgCount : pgs.length;
      const start = end === 0 ? 0 : mixPair(comes, node) % end;
      for (let step = 0; step < end; step++) {
        const at = start + step < end ? start + step : start + step - end;
        const pg = pgs === null ? at : pgs[at];
        const size = table.size(pg);
        table.work += size;
        if (table.has(pg, comes)) continue;
        for (let place = 0; place < size; place++) {
          const goes = table.member(pg, place);
          if (!table.fits(pg, goes, comes)) continue;
          visit(goes, pg, table.counts[goes] > low[goes] ? levelOf(table, goes) : -Infinity);
        }
      }
    }, (pg, reached, from) => table.exchange(pg, reached, from));
  }

  /**
   * Takes a PG from a node; somebody with less than the high end of its band gets one more.
   *
   * @param isFree only old members may come (back) anywhere: the chain costs nothing
   */
  lose(node: number, isFree: boolean): boolean {
    const table = this.#table;
    const { high } = table.shares;
    return this.#search(node, (goes, visit) => {
      const consider = (pg: number, comes: number) => {
        table.work++;
        if (table.has(pg, comes) || !table.fits(pg, goes, comes)) return;
        visit(comes, pg, table.counts[comes] < high[comes] ? -levelOf(table, comes) : -Infinity);
      };
      for (let place = 0; place < table.counts[goes]; place++) {
        const pg = table.pgAt(goes, place);
        if (isFree) { for (const comes of table.oldMembers(pg)) consider(pg, comes); }
        else for (let comes = 0; comes < table.nodeCount; comes++) consider(pg, comes);
      }
    }, (pg, reached, from) => table.exchange(pg, from, reached));
  }

  /**
   * @param expand tells `visit` all nodes that one exchange leads to, through which PG, and how good
   * each is as an end of the chain (−∞: it is none)
   * @param apply carries one exchange out
   */
  #search(
    start: number,
    expand: (
      node: number,
      visit: (reached: number, pg: number, merit: number) => void,
    ) => void,
    apply: (pg: number, reached: number, from: number) => void,
  ): boolean {
    const round = ++this.#round;
    const queue = this.#queue;
    let queued = 0;
    queue[queued++] = start;
    this.#reached[start] = round;
    for (let taken = 0; taken < queued; taken++) {
      if (this.#table.work > WORK_MAX) return false;
      const node = queue[taken];
      let end = -1;
      let endMerit = -Infinity;
      expand(node, (reached, pg, merit) => {
        if (this.#reached[reached] === round || this.#passes(node, start, pg)) return;
        this.#reached[reached] = round;
        this.#from[reached] = node;
        this.#through[reached] = pg;
        queue[queued++] = reached;
        if (merit <= endMerit) return;
        end = reached;
        endMerit = merit;
      });
      if (end < 0) continue;
      for (let at = end; at !== start; at = this.#from[at]) {
        apply(this.#through[at], at, this.#from[at]);
      }
      return true;
    }
    return false;
  }

  /** Says whether the chain to `node` has an exchange in this PG: a second could break its zones. */
  #passes(node: number, start: number, pg: number): boolean {
    for (let at = node; at !== start; at = this.#from[at]) {
      if (this.#through[at] === pg) return true;
    }
    return false;
  }
}

/** Cancels cycles of negative cost: what is left is a minimum, or its work is done. */
function polish(table: PgTable, movedMinimum: number): void {
  const graph = new ExchangeGraph(table);
  while (table.moved > movedMinimum && table.work <= WORK_MAX && graph.cancelOne());
}

/**
 * The graph of exchanges: a node for each node of the cluster, an edge from `goes` to `comes` for their
 * cheapest exchange, and a *pool* that all who may lose a PG give to and all who may gain one take
 * from. Costs are −1 (a moved replica goes, an old one comes back), 0 or 1.
 */
class ExchangeGraph {
  readonly #table: PgTable;
  readonly #nodes: number;
  readonly #pool: number;
  /** Cost and PG of the edge `goes × nodes + comes`; cost 2: there is none. */
  readonly #cost: Int8Array;
  readonly #pg: Int32Array;
  readonly #distance: Int32Array;
  readonly #from: Int32Array;

  constructor(table: PgTable) {
    this.#table = table;
    this.#pool = table.nodeCount;
    this.#nodes = table.nodeCount + 1;
    this.#cost = new Int8Array(this.#nodes ** 2);
    this.#pg = new Int32Array(this.#nodes ** 2);
    this.#distance = new Int32Array(this.#nodes);
    this.#from = new Int32Array(this.#nodes);
  }

  /** Finds one negative cycle and carries its exchanges out; false: there is none that can be. */
  cancelOne(): boolean {
    this.#measure();
    const cycle = this.#findCycle();
    if (cycle === null) return false;
    const table = this.#table;
    const seen = new Set<number>();
    const exchanges: { pg: number; goes: number; comes: number }[] = [];
    cycle.forEach((goes, index) => {
      const comes = cycle[(index + 1) % cycle.length];
      if (goes === this.#pool || comes === this.#pool) return;
      const pg = this.#pg[goes * this.#nodes + comes];
      seen.add(pg);
      exchanges.push({ pg, goes, comes });
    });
    if (seen.size < exchanges.length) return false;
    for (const { pg, goes, comes } of exchanges) table.exchange(pg, goes, comes);
    return true;
  }

  #measure(): void {
    const table = this.#table;
    const { counts, shares } = table;
    const nodes = this.#nodes;
    this.#cost.fill(2);
    for (let node = 0; node < this.#pool; node++) {
      if (counts[node] < shares.high[node]) this.#cost[this.#pool * nodes + node] = 0;
      if (counts[node] > shares.low[node]) this.#cost[node * nodes + this.#pool] = 0;
    }
    for (let pg = 0; pg < table.pgCount; pg++) {
      for (let comes = 0; comes < this.#pool; comes++) {
        if (table.has(pg, comes)) continue;
        const price = table.cost(pg, comes);
        for (let place = 0; place < table.size(pg); place++) {
          const goes = table.member(pg, place);
          const cost = price - table.cost(pg, goes);
          const edge = goes * nodes + comes;
          if (cost >= this.#cost[edge] || !table.fits(pg, goes, comes)) continue;
          this.#cost[edge] = cost;
          this.#pg[edge] = pg;
        }
      }
    }
    table.work += table.pgCount * this.#pool * table.width;
  }

  /** Nodes of a negative cycle in its order (Bellman and Ford), or null. */
  #findCycle(): number[] | null {
    const nodes = this.#nodes;
    this.#distance.fill(0);
    this.#from.fill(-1);
    let last = -1;
    for (let round = 0; round < nodes; round++) {
      last = this.#relax();
      if (last < 0) return null;
    }
    this.#table.work += nodes ** 2;
    // After as many rounds as there are nodes, going back that far ends in the cycle.
    for (let step = 0; step < nodes; step++) last = this.#from[last];
    const cycle = [last];
    for (let at = this.#from[last]; at !== last; at = this.#from[at]) cycle.push(at);
    return cycle.reverse();
  }

  /** One round; returns a node whose distance fell, or −1. */
  #relax(): number {
    const nodes = this.#nodes;
    let fell = -1;
    for (let from = 0; from < nodes; from++) {
      for (let to = 0; to < nodes; to++) {
        const cost = this.#cost[from * nodes + to];
        if (cost === 2 || this.#distance[from] + cost >= this.#distance[to]) continue;
        this.#distance[to] = this.#distance[from] + cost;
        this.#from[to] = from;
        fell = to;
      }
    }
    return fell;
  }
}

/** Spends a few moves on coming nearer to the quotas. */
function level(table: PgTable): void {
  const { counts, shares } = table;
  const movedMax = table.moved + Math.floor(table.moved / MOVES_PER_LEVELLING);
  for (let node = 0; node < table.nodeCount; node++) {
    const isGiver = (other: number) => counts[other] > shares.quota[other];
    while (counts[node] < shares.quota[node] && table.moved < movedMax) {
      let isDone = false;
      for (const other of extremes(table, isGiver, -1, node)) {
        isDone = exchangeOne(table, other, node);
        if (isDone) break;
      }
      if (!isDone || table.work > WORK_MAX) break;
    }
  }
}
