/**
 * Placement, first half: which old members a PG keeps, and who takes the places that are free.
 *
 * *Keep*: everybody who may stay. A PG with too many members (fewer copies, or two nodes that are in
 * one zone now) loses those that have most above their quota.
 *
 * *Fill*: a lottery. In each PG, first a zone and then a node of it are drawn by hash, with chances in
 * proportion to what they still need. So PGs do not resemble each other, whatever the weights are,
 * and a node shares its PGs with many others. What a node lacks to the low end of its band goes
 * before what it lacks to its quota: otherwise it would be moved to it later, at a price. A zone that
 * needs all the room that is left (usual where there are hardly more zones than copies) is taken
 * without drawing.
 *
 * Neither needs to be perfect: `placement_repair.ts` exchanges members until every node is in its band.
 *
 * @module
 */

import { mixPair } from "./hash.ts";
import type { Shares, Topology } from "./placement_shares.ts";
import type { PgTable } from "./placement_table.ts";

/**
 * Chooses the members that each PG keeps.
 *
 * @param old previous members of each PG that are usable still
 * @returns the same, without those that have to go; their order is kept
 */
export function membersKept(
  topology: Topology,
  shares: Shares,
  old: readonly (readonly number[])[],
): number[][] {
  const counts = new Int32Array(topology.ids.length);
  for (const members of old) {
    for (const node of members) counts[node]++;
  }
  return old.map((members) => {
    let kept = [...members];
    for (;;) {
      const candidates = excess(topology, kept);
      if (candidates.length === 0) return kept;
      const surplus = (node: number) => counts[node] - shares.quota[node];
      const goes = candidates.reduce((worst, node) =>
        surplus(node) > surplus(worst) ? node : worst
      );
      counts[goes]--;
      kept = kept.filter((node) => node !== goes);
    }
  });
}

/** Members of which one has to go; none when the PG is right or has too few. */
function excess(topology: Topology, members: readonly number[]): readonly number[] {
  const { zoneOf, zoneLow, zoneHigh, width } = topology;
  const inZone = (zone: number) => members.filter((node) => zoneOf[node] === zone).length;
  const crowded = members.filter((node) => inZone(zoneOf[node]) > zoneHigh[zoneOf[node]]);
  if (crowded.length > 0) return crowded;
  // With what other zones must have, there may be no room for all.
  const owed = members.length + zonesOwed(topology, inZone);
  if (owed <= width) return [];
  return members.filter((node) => inZone(zoneOf[node]) > zoneLow[zoneOf[node]]);
}

/** Replicas that zones lack to their least. */
function zonesOwed({ zoneLow }: Topology, inZone: (zone: number) => number): number {
  // With a zone for each replica the least is 0; else there are no more zones than replicas.
  let owed = 0;
  if (zoneLow[0] === 0) return owed;
  for (let zone = 0; zone < zoneLow.length; zone++) {
    owed += Math.max(0, zoneLow[zone] - inZone(zone));
  }
  return owed;
}

/**
 * Fills every free place of a table.
 *
 * @param table whose PGs have no member too many
 */
export function fill(table: PgTable): void {
  const lottery = new Lottery(table);
  for (let pg = 0; pg < table.pgCount; pg++) {
    if (table.size(pg) < table.width) lottery.draw(pg);
  }
}

/** More than any ticket: 32 bits of a hash, divided by a need. */
const RANK = 2 ** 33;

/** What zones and nodes need, kept while PGs are filled one after the other. */
class Lottery {
  readonly #table: PgTable;
  /** Per zone: sum of what its nodes lack to the low ends of their bands. */
  readonly #lacking: Int32Array;
  /** Per zone: sum of what its nodes lack to their quotas. */
  readonly #wanting: Int32Array;
  /** Per zone: replicas of it in the PGs that are still to be filled. */
  readonly #present: Int32Array;
  /** PGs that are still to be filled. */
  #open = 0;
  /** All nodes can come to their quotas: none has more now, as in a new pool. */
  readonly #isExact: boolean;
  /** Per zone, in the PG that is being filled: the ticket; low ones win. */
  readonly #tickets: Float64Array;

  constructor(table: PgTable) {
    this.#table = table;
    const { zones, zoneOf } = table.topology;
    this.#lacking = new Int32Array(zones.length);
    this.#wanting = new Int32Array(zones.length);
    this.#present = new Int32Array(zones.length);
    this.#tickets = new Float64Array(zones.length);
    zoneOf.forEach((zone, node) => {
      this.#lacking[zone] += this.#lacks(node);
      this.#wanting[zone] += this.#wants(node);
    });
    this.#isExact = table.counts.every((count, node) => count <= table.shares.quota[node]);
    for (let pg = 0; pg < table.pgCount; pg++) this.#count(pg, 1);
  }

  /** Fills one PG. PGs are filled in ascending order. */
  draw(pg: number): void {
    this.#count(pg, -1);
    const { zones } = this.#table.topology;
    for (let zone = 0; zone < zones.length; zone++) {
      this.#tickets[zone] = this.#ticket(zone, pg);
    }
    while (this.#table.size(pg) < this.#table.width) {
      const zone = this.#zoneFor(pg);
      const node = this.#nodeFor(pg, zone);
      this.#lacking[zone] -= this.#lacks(node);
      this.#wanting[zone] -= this.#wants(node);
      this.#table.add(pg, node);
      this.#lacking[zone] += this.#lacks(node);
      this.#wanting[zone] += this.#wants(node);
      this.#tickets[zone] = this.#ticket(zone, pg);
    }
  }

  /** Takes a PG that has room into the sums, or out of them. */
  #count(pg: number, sign: 1 | -1): void {
    const size = this.#table.size(pg);
    if (size === this.#table.width) return;
    this.#open += sign;
    for (let place = 0; place < size; place++) {
      this.#present[this.#table.topology.zoneOf[this.#table.member(pg, place)]] += sign;
    }
  }

  #lacks(node: number): number {
    return Math.max(0, this.#table.shares.low[node] - this.#table.counts[node]);
  }

  #wants(node: number): number {
    return Math.max(0, this.#table.shares.quota[node] - this.#table.counts[node]);
  }

  #zoneFor(pg: number): number {
    const { zoneLow, zoneHigh } = this.#table.topology;
    const inZone = (zone: number) => this.#table.zoneCount(pg, zone);
    const room = this.#table.width - this.#table.size(pg);
    const most = zonesOwed(this.#table.topology, inZone) === room ? zoneLow : zoneHigh;
    const tickets = this.#tickets;
    let best = -1;
    for (let zone = 0; zone < tickets.length; zone++) {
      if (best >= 0 && tickets[zone] >= tickets[best]) continue;
      if (inZone(zone) < most[zone]) best = zone;
    }
    return best;
  }

  /**
   * A zone's ticket in a PG; the lowest wins. Each rank is below the next: now or never, to reach the
   * band or the quotas; below its band; below its quotas; the others.
   */
  #ticket(zone: number, pg: number): number {
    const wanting = this.#wanting[zone];
    if (wanting === 0) return RANK * 4;
    const lacking = this.#lacking[zone];
    const chance = mixPair(zone, pg) + 1;
    // Places for it in the PGs after this one.
    const places = this.#open * this.#table.topology.zoneHigh[zone] - this.#present[zone];
    if (lacking > places) return chance / lacking;
    if (wanting > places && this.#isExact) return RANK + chance / wanting;
    return lacking > 0 ? RANK * 2 + chance / lacking : RANK * 3 + chance / wanting;
  }

  /** A node of a zone that is not full in the PG; one that has most room where none needs more. */
  #nodeFor(pg: number, zone: number): number {
    const { topology, shares, counts } = this.#table;
    const isLacking = this.#lacking[zone] > 0;
    let best = -1;
    let bestTicket = 0;
    for (const node of topology.zones[zone]) {
      if (this.#table.has(pg, node)) continue;
      const need = isLacking ? this.#lacks(node) : this.#wants(node);
      const ticket = need > 0
        ? (mixPair(node, ~pg) + 1) / need
        : RANK + counts[node] - shares.quota[node];
      if (best >= 0 && ticket >= bestTicket) continue;
      best = node;
      bestTicket = ticket;
    }
    return best;
  }
}
