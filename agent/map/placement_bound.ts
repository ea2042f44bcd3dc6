/**
 * Placement: a lower bound of the moves that any balanced table needs. It tells the search when there is
 * nothing left to find, and an operator how far a plan is from the best.
 *
 * Moves are additions: a place that an old member does not keep. So each bound says how many places
 * cannot be kept, in three ways of which the largest counts:
 *
 * - *altogether*: of a PG stay no more old members than its zones allow, of a node no more than its band
 *   allows, of a zone no more than both;
 * - *zones*: each must come to its least, and nodes below their band must be filled whatever else
 *   happens;
 * - *one zone against the rest*: where a PG has two old members in a zone that may have one, the other
 *   place goes outside of the zone; what the zone then lacks is added elsewhere. Both count.
 *
 * @module
 */

import type { Shares, Topology } from "./placement_shares.ts";

/**
 * The bound, in replicas.
 *
 * @param old previous members of each PG that are usable still, as indexes of the topology, none twice
 */
export function leastMoves(
  topology: Topology,
  shares: Shares,
  old: readonly (readonly number[])[],
): number {
  const tally = new Tally(topology, old);
  const stay = staying(topology, shares, tally);
  const within = additionsWithin(topology, shares, tally, stay);
  const ofZones = within.reduce((total, additions) => total + additions, 0);
  const stayAltogether = Math.min(tally.stay, stay.reduce((total, each) => total + each, 0));
  const ofPgs = topology.width * old.length - stayAltogether;
  const ofOneZone = within.map((additions, zone) => additions + tally.additionsOutside(zone));
  return Math.max(ofZones, ofPgs, ...ofOneZone);
}

function sumOf(members: readonly number[], amount: (node: number) => number): number {
  return members.reduce((total, node) => total + amount(node), 0);
}

/** Most old members that can stay in each zone. */
function staying({ zones }: Topology, shares: Shares, tally: Tally): number[] {
  return zones.map((members, zone) =>
    Math.min(
      tally.stayInZone[zone],
      sumOf(members, (node) => Math.min(tally.counts[node], shares.high[node])),
    )
  );
}

/** Fewest additions in each zone. */
function additionsWithin(
  topology: Topology,
  shares: Shares,
  tally: Tally,
  stay: readonly number[],
): number[] {
  const { zones, zoneLow, zoneHigh, width } = topology;
  const most = zones.map((members, zone) =>
    Math.min(tally.pgCount * zoneHigh[zone], sumOf(members, (node) => shares.high[node]))
  );
  const mostOfAll = most.reduce((total, each) => total + each, 0);
  return zones.map((members, zone) => {
    const least = Math.max(
      tally.pgCount * zoneLow[zone],
      sumOf(members, (node) => shares.low[node]),
      tally.pgCount * width - (mostOfAll - most[zone]),
    );
    const lacking = sumOf(
      members,
      (node) => Math.max(0, shares.low[node] - tally.counts[node]),
    );
    return Math.max(0, least - stay[zone], lacking);
  });
}

/** What the old table has. */
class Tally {
  readonly pgCount: number;
  /** Old members that can stay if PGs only obey their zones. */
  stay = 0;
  /** Per zone: the same, of its own. */
  readonly stayInZone: Int32Array;
  /** PGs of each node. */
  readonly counts: Int32Array;
  readonly #topology: Topology;
  /** PGs by the number of their old members. */
  readonly #bySize: number[] = [];
  /** Per zone: additions outside of it that PGs need more, or less (< 0), because of members in it. */
  readonly #outside: Int32Array;

  constructor(topology: Topology, old: readonly (readonly number[])[]) {
    this.#topology = topology;
    this.pgCount = old.length;
    this.counts = new Int32Array(topology.ids.length);
    this.stayInZone = new Int32Array(topology.zones.length);
    this.#outside = new Int32Array(topology.zones.length);
    const least = topology.zoneLow.reduce((total, each) => total + each, 0);
    for (const members of old) this.#add(members, least);
  }

  #add(members: readonly number[], least: number): void {
    const { zoneOf, zoneLow, zoneHigh, width } = this.#topology;
    const size = members.length;
    this.#bySize[size] = (this.#bySize[size] ?? 0) + 1;
    const inZone = new Map<number, number>();
    for (const node of members) {
      this.counts[node]++;
      inZone.set(zoneOf[node], (inZone.get(zoneOf[node]) ?? 0) + 1);
    }
    // What all zones must have, whoever is there, leaves less for the others.
    let spare = width - least;
    for (const [zone, count] of inZone) {
      const able = Math.min(count, zoneHigh[zone]);
      const above = Math.min(spare, Math.max(0, able - zoneLow[zone]));
      spare -= above;
      this.stay += Math.min(count, zoneLow[zone]) + above;
      this.stayInZone[zone] += able;
      const room = width - zoneHigh[zone];
      this.#outside[zone] += Math.max(0, room - (size - count)) - Math.max(0, room - size);
    }
  }

  /** Fewest additions outside of a zone: of `width` places it can take no more than `zoneHigh`. */
  additionsOutside(zone: number): number {
    const room = this.#topology.width - this.#topology.zoneHigh[zone];
    return this.#bySize.reduce(
      (total, pgs, size) => total + pgs * Math.max(0, room - size),
      this.#outside[zone],
    );
  }
}
