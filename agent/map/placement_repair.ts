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
 * All searches together look at no more than about {@linkcode WORK_MAX} entries, and polishing at
 * {@linkcode WORK_POLISH_MAX}. Should that not be enough, the
 * table obeys all rules of zones and is out of balance by what the figures say.
 *
 * @module
 */

import { mixPair } from "./hash.ts";
import type { PgTable } from "./placement_table.ts";

/** Most entries that the searches for one table look at; about a quarter of a second. */
const WORK_MAX = 60_000_000;

/**
 * Most entries that one search for a chain without cost looks at. Such chains are short if there are
 * any; in a large cluster where much has moved a search for one that is not there would see it all.
 */
const WORK_FREE_MAX = 10_000;

/** Most nodes of a cluster whose table is polished: the graph of exchanges is their square. */
const NODES_POLISHED_MAX = 200;

/** Most entries that polishing looks at. */
const WORK_POLISH_MAX = 20_000_000;

/** Moves for each of which one more is allowed to level with. */
const MOVES_PER_LEVELLING = 25;

/** Partners of a direct exchange that are tried in vain before other zones are given up. */
const TRIES_MAX = 6;

/** PGs or nodes in between that are tried for a chain of two before all chains are searched. */
const SAMPLES_MAX = 12;

/**
 * Exchanges members until every node is in its band.
 *
 * @param table with every PG full
 * @param movedMinimum a lower bound of the moves; at it, nothing is searched any more
 */
export function repair(table: PgTable, movedMinimum: number): void {
  const direct = new DirectSearch(table);
  const chains = new ChainSearch(table);
  for (let node = 0; node < table.nodeCount; node++) fillUp(table, direct, chains, node);
  for (let node = 0; node < table.nodeCount; node++) drawOff(table, direct, chains, node);
  if (table.nodeCount <= NODES_POLISHED_MAX) polish(table, movedMinimum);
  level(table, direct);
}

/** Exchanges members until a node has `low` PGs, or nothing helps. */
function fillUp(table: PgTable, direct: DirectSearch, chains: ChainSearch, node: number): void {
  const { counts, shares } = table;
  const lacking = () => shares.low[node] - counts[node];
  const isGiver = (other: number) => counts[other] > shares.low[other];
  while (lacking() > 0 && table.goneCount(node) > 0 && chains.gain(node, true));
  while (lacking() > 0) {
    if (direct.gain(node, lacking(), isGiver)) continue;
    if (direct.gainOverAnother(node, isGiver)) continue;
    if (!chains.gain(node, false)) return;
  }
}

/** Exchanges members until a node has no more than `high` PGs, or nothing helps. */
function drawOff(table: PgTable, direct: DirectSearch, chains: ChainSearch, node: number): void {
  const { counts, shares } = table;
  const surplus = () => counts[node] - shares.high[node];
  const isTaker = (other: number) => counts[other] < shares.high[other];
  while (surplus() > 0 && chains.lose(node, true));
  while (surplus() > 0) {
    if (direct.lose(node, surplus(), isTaker)) continue;
    if (direct.loseOverAnother(node, isTaker)) continue;
    if (!chains.lose(node, false)) return;
  }
}

/** Spends a few moves on coming nearer to the quotas. */
function level(table: PgTable, direct: DirectSearch): void {
  const { counts, shares } = table;
  const movedMax = table.moved + Math.floor(table.moved / MOVES_PER_LEVELLING);
  const isGiver = (other: number) => counts[other] > shares.quota[other];
  for (let node = 0; node < table.nodeCount; node++) {
    for (;;) {
      const wanted = Math.min(shares.quota[node] - counts[node], movedMax - table.moved);
      if (wanted <= 0 || table.work > WORK_MAX || !direct.gain(node, wanted, isGiver)) break;
    }
  }
}

/** Exchanges with whoever is farthest from where he should be. */
class DirectSearch {
  readonly #table: PgTable;
  /** Per zone: the best partner in it, or −1. */
  readonly #best: Int32Array;
  /** How full a partner is; the less the better. */
  readonly #levels: Float64Array;
  /** Partners to try, the best first. */
  readonly #partners: number[] = [];

  constructor(table: PgTable) {
    this.#table = table;
    this.#best = new Int32Array(table.topology.zones.length);
    this.#levels = new Float64Array(table.nodeCount);
  }

  /**
   * Gives a node PGs of the fullest nodes for which `isGiver`.
   *
   * @param wanted most PGs to give it
   * @returns whether it got one
   */
  gain(node: number, wanted: number, isGiver: (other: number) => boolean): boolean {
    this.#findPartners(node, isGiver, -1);
    return this.#tryPartners(node, wanted, -1);
  }

  /** Gives PGs of a node to the emptiest nodes for which `isTaker`; else as `gain`. */
  lose(node: number, wanted: number, isTaker: (other: number) => boolean): boolean {
    this.#findPartners(node, isTaker, 1);
    return this.#tryPartners(node, wanted, 1);
  }

  /** Two exchanges: a node takes the place of another, who takes that of a giver elsewhere. */
  gainOverAnother(node: number, isGiver: (other: number) => boolean): boolean {
    const table = this.#table;
    for (let sample = 0; sample < SAMPLES_MAX; sample++) {
      const pg = mixPair(mixPair(node, table.counts[node]), sample) % table.pgCount;
      if (table.has(pg, node)) continue;
      for (let place = 0; place < table.width; place++) {
        const other = table.member(pg, place);
        if (!table.fits(pg, other, node)) continue;
        if (!this.gain(other, 1, (giver) => giver !== node && isGiver(giver))) continue;
        table.exchange(pg, other, node);
        return true;
      }
    }
    return false;
  }

  /** Two exchanges: another takes the place of a node, and a taker that of the other elsewhere. */
  loseOverAnother(node: number, isTaker: (other: number) => boolean): boolean {
    const table = this.#table;
    for (let sample = 0; sample < SAMPLES_MAX; sample++) {
      const draw = mixPair(mixPair(node, table.counts[node]), sample);
      const pg = table.pgAt(node, draw % table.counts[node]);
      const other = mixPair(draw, pg) % table.nodeCount;
      if (table.has(pg, other) || !table.fits(pg, node, other)) continue;
      if (!this.lose(other, 1, (taker) => taker !== node && isTaker(taker))) continue;
      table.exchange(pg, node, other);
      return true;
    }
    return false;
  }

  /**
   * Finds all candidates of the node's own zone, whose exchanges always suit the zones, and of each
   * other zone the emptiest (`sign` 1) or fullest (`sign` −1). Sorts them; between equal ones a hash
   * decides.
   */
  #findPartners(node: number, isCandidate: (other: number) => boolean, sign: 1 | -1): void {
    const table = this.#table;
    const { zoneOf, zones, isFixed } = table.topology;
    const own = zoneOf[node];
    const levels = this.#levels;
    const partners = this.#partners;
    partners.length = 0;
    for (const other of zones[own]) {
      if (other === node || !isCandidate(other)) continue;
      levels[other] = sign * levelOf(table, other);
      partners.push(other);
    }
    table.work += zones[own].length;
    const isBetter = (left: number, right: number) =>
      levels[left] - levels[right] || mixPair(left, node) - mixPair(right, node);
    if (!isFixed) {
      const best = this.#best.fill(-1);
      for (let other = 0; other < table.nodeCount; other++) {
        const zone = zoneOf[other];
        if (zone === own || !isCandidate(other)) continue;
        levels[other] = sign * levelOf(table, other);
        if (best[zone] < 0 || isBetter(other, best[zone]) < 0) best[zone] = other;
      }
      for (const other of best) if (other >= 0) partners.push(other);
      table.work += table.nodeCount + best.length;
    }
    partners.sort(isBetter);
  }

  /**
   * Exchanges with the partners, the best first, until a better one may be among those that were not
   * looked at. Gives up other zones after a few that do not fit.
   */
  #tryPartners(node: number, wanted: number, sign: 1 | -1): boolean {
    const { zoneOf } = this.#table.topology;
    let done = 0;
    let failures = 0;
    let levelAfter = Infinity;
    for (const partner of this.#partners) {
      if (done === wanted || this.#levels[partner] > levelAfter) return true;
      if (failures >= TRIES_MAX && zoneOf[partner] !== zoneOf[node]) continue;
      if (sign < 0 ? this.#exchange(partner, node) : this.#exchange(node, partner)) {
        done++;
        levelAfter = Math.min(levelAfter, sign * levelOf(this.#table, partner));
      } else {
        failures++;
      }
    }
    return done > 0;
  }

  /** Puts `comes` in the place of `goes` in some PG: best where it was, or where `goes` was not. */
  #exchange(goes: number, comes: number): boolean {
    const table = this.#table;
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
}

/** How full a node is: 1 at its ideal. A step beyond the band counts more than any step within. */
function levelOf(table: PgTable, node: number): number {
  const { counts, shares } = table;
  const count = counts[node];
  const level = count / Math.max(shares.ideal[node], 1e-9);
  if (count > shares.high[node]) return level + 1e12;
  return count < shares.low[node] ? level - 1e12 : level;
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
    return this.#search(node, this.#workMax(isFree), (comes, visit) => {
      const end = isFree ? table.goneCount(comes) : table.pgCount;
      const start = mixPair(comes, node);
      for (let step = 0; step < end; step++) {
        const at = (start + step) % end;
        const pg = isFree ? table.goneAt(comes, at) : at;
        table.work += table.width;
        if (table.has(pg, comes)) continue;
        for (let place = 0; place < table.width; place++) {
          const goes = table.member(pg, place);
          if (!table.fits(pg, goes, comes)) continue;
          const isEnd = table.counts[goes] > low[goes];
          if (visit(goes, pg, isEnd)) return;
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
    return this.#search(node, this.#workMax(isFree), (goes, visit) => {
      const consider = (pg: number, comes: number) => {
        table.work++;
        if (table.has(pg, comes) || !table.fits(pg, goes, comes)) return false;
        return visit(comes, pg, table.counts[comes] < high[comes]);
      };
      for (let place = 0; place < table.counts[goes]; place++) {
        const pg = table.pgAt(goes, place);
        if (isFree) {
          table.work += table.width;
          for (const comes of table.gone(pg)) if (consider(pg, comes)) return;
        } else {
          for (let comes = 0; comes < table.nodeCount; comes++) if (consider(pg, comes)) return;
        }
      }
    }, (pg, reached, from) => table.exchange(pg, from, reached));
  }

  #workMax(isFree: boolean): number {
    return isFree ? Math.min(WORK_MAX, this.#table.work + WORK_FREE_MAX) : WORK_MAX;
  }

  /**
   * @param workMax how far the count of work may go
   * @param expand tells `visit` all nodes that one exchange leads to, through which PG, and whether the
   * chain can end there; until `visit` says that it does
   * @param apply carries one exchange out
   */
  #search(
    start: number,
    workMax: number,
    expand: (
      node: number,
      visit: (reached: number, pg: number, isEnd: boolean) => boolean,
    ) => void,
    apply: (pg: number, reached: number, from: number) => void,
  ): boolean {
    const round = ++this.#round;
    const queue = this.#queue;
    let queued = 0;
    queue[queued++] = start;
    this.#reached[start] = round;
    let end = -1;
    for (let taken = 0; taken < queued && end < 0; taken++) {
      if (this.#table.work > workMax) return false;
      const node = queue[taken];
      expand(node, (reached, pg, isEnd) => {
        if (this.#reached[reached] === round || this.#passes(node, start, pg)) return false;
        this.#reached[reached] = round;
        this.#from[reached] = node;
        this.#through[reached] = pg;
        queue[queued++] = reached;
        if (isEnd) end = reached;
        return isEnd;
      });
    }
    if (end < 0) return false;
    for (let at = end; at !== start; at = this.#from[at]) {
      apply(this.#through[at], at, this.#from[at]);
    }
    return true;
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
  const workMax = table.work + WORK_POLISH_MAX;
  while (table.moved > movedMinimum && table.work <= workMax && graph.cancelOne());
}

/**
 * The graph of exchanges: a node for each node of the cluster, an edge from `goes` to `comes` for their
 * cheapest exchange, and a *pool* that leads to all who may lose a PG and is reached from all who may
 * gain one. Costs are −1 (a moved replica goes, an old one comes back), 0 or 1.
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
      if (counts[node] > shares.low[node]) this.#cost[this.#pool * nodes + node] = 0;
      if (counts[node] < shares.high[node]) this.#cost[node * nodes + this.#pool] = 0;
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
      this.#table.work += nodes ** 2;
      last = this.#relax();
      if (last < 0) return null;
    }
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
