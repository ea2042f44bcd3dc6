/**
 * Placement, the state: which node is in which PG while a new table is worked out, beside the old one.
 *
 *     members   PG 0: [ node, node, node ]  PG 1: [ … ]      width entries each, the first size[pg] used
 *     old       PG 0: [ node, node, … ]                      previous members that are usable still
 *     counts    per node: PGs that it is in
 *
 * Invariants: no node twice in a PG; never more than `zoneHigh` of a zone in one; `counts` and `moved`
 * match `members`. Whoever exchanges a member asks {@linkcode PgTable.fits} before.
 *
 * `work` counts the entries that searches looked at, so that searches can be bounded without a clock.
 *
 * @module
 */

import type { Shares, Topology } from "./placement_shares.ts";

/** A PG table in the making. Nodes are indexes of the topology. */
export class PgTable {
  readonly pgCount: number;
  readonly nodeCount: number;
  /** Most members of a PG. */
  readonly width: number;
  /** PGs that each node is in. */
  readonly counts: Int32Array;
  /** PGs that each node is in and was not in before. */
  readonly newCounts: Int32Array;
  /** Replicas that came to nodes which did not have them. */
  moved = 0;
  /** Entries that searches looked at so far. */
  work = 0;

  readonly #members: Int32Array;
  readonly #sizes: Uint8Array;
  /** Previous members; PG p has those from #oldStarts[p] to #oldStarts[p + 1]. */
  readonly #old: Int32Array;
  readonly #oldStarts: Int32Array;
  /** Of each node: where it stands in `old` for PGs that it was in and is not in now, in any order. */
  readonly #gone: number[][];
  /** Of each entry of `old`: where it stands in its node's list of those, and its PG. */
  readonly #goneAt: Int32Array;
  readonly #oldPg: Int32Array;
  /** Of each node: where it stands in `members`, in any order. */
  readonly #slots: number[][];
  /** Of each entry of `members`: where it stands in its node's list of slots. */
  readonly #slotAt: Int32Array;
  readonly #zoneOf: Int32Array;
  readonly #zoneLow: Int32Array;
  readonly #zoneHigh: Int32Array;

  /**
   * An empty table.
   *
   * @param topology the usable nodes
   * @param shares what each should have
   * @param old previous members of each PG, as indexes of the topology, none twice
   */
  constructor(
    readonly topology: Topology,
    readonly shares: Shares,
    old: readonly (readonly number[])[],
  ) {
    this.pgCount = old.length;
    this.nodeCount = topology.ids.length;
    this.width = topology.width;
    this.#zoneOf = Int32Array.from(topology.zoneOf);
    this.#zoneLow = Int32Array.from(topology.zoneLow);
    this.#zoneHigh = Int32Array.from(topology.zoneHigh);
    this.counts = new Int32Array(this.nodeCount);
    this.newCounts = new Int32Array(this.nodeCount);
    this.#members = new Int32Array(this.pgCount * this.width);
    this.#sizes = new Uint8Array(this.pgCount);
    this.#oldStarts = new Int32Array(this.pgCount + 1);
    for (let pg = 0; pg < this.pgCount; pg++) {
      this.#oldStarts[pg + 1] = this.#oldStarts[pg] + old[pg].length;
    }
    this.#old = Int32Array.from(old.flat());
    this.#gone = Array.from({ length: this.nodeCount }, () => []);
    this.#goneAt = new Int32Array(this.#old.length);
    this.#oldPg = new Int32Array(this.#old.length);
    this.#slots = Array.from({ length: this.nodeCount }, () => []);
    this.#slotAt = new Int32Array(this.pgCount * this.width);
    for (let pg = 0; pg < this.pgCount; pg++) {
      for (let at = this.#oldStarts[pg]; at < this.#oldStarts[pg + 1]; at++) {
        this.#oldPg[at] = pg;
        this.#goneAt[at] = this.#gone[this.#old[at]].push(at) - 1;
      }
    }
  }

  /** Members of a PG now. */
  size(pg: number): number {
    return this.#sizes[pg];
  }

  /** The member at place 0…`size − 1` of a PG. Places stay until a member is exchanged. */
  member(pg: number, place: number): number {
    return this.#members[pg * this.width + place];
  }

  /** Says whether a node is in a PG. */
  has(pg: number, node: number): boolean {
    const start = pg * this.width;
    const end = start + this.#sizes[pg];
    for (let at = start; at < end; at++) {
      if (this.#members[at] === node) return true;
    }
    return false;
  }

  /** Says whether a node was in a PG. */
  had(pg: number, node: number): boolean {
    return this.#oldAt(pg, node) >= 0;
  }

  #oldAt(pg: number, node: number): number {
    const end = this.#oldStarts[pg + 1];
    for (let at = this.#oldStarts[pg]; at < end; at++) {
      if (this.#old[at] === node) return at;
    }
    return -1;
  }

  /** Old members of a PG that are not in it now. */
  gone(pg: number): number[] {
    const left: number[] = [];
    for (let at = this.#oldStarts[pg]; at < this.#oldStarts[pg + 1]; at++) {
      if (!this.has(pg, this.#old[at])) left.push(this.#old[at]);
    }
    return left;
  }

  /** How many PGs there are where a node was and is no longer. */
  goneCount(node: number): number {
    return this.#gone[node].length;
  }

  /** The one of them at place 0…`goneCount − 1`, in any order. */
  goneAt(node: number, place: number): number {
    return this.#oldPg[this.#gone[node][place]];
  }

  /** A PG where a node is: the one at place 0…`counts[node] − 1` of its list, in any order. */
  pgAt(node: number, place: number): number {
    return Math.floor(this.#slots[node][place] / this.width);
  }

  /** Members of a PG that are in a zone. */
  zoneCount(pg: number, zone: number): number {
    const start = pg * this.width;
    const end = start + this.#sizes[pg];
    let count = 0;
    for (let at = start; at < end; at++) {
      if (this.#zoneOf[this.#members[at]] === zone) count++;
    }
    return count;
  }

  /** Says whether `comes`, which is not in the PG, may take the place of `goes`, which is. */
  fits(pg: number, goes: number, comes: number): boolean {
    const zoneOut = this.#zoneOf[goes];
    const zoneIn = this.#zoneOf[comes];
    if (zoneOut === zoneIn) return true;
    return this.zoneCount(pg, zoneIn) < this.#zoneHigh[zoneIn] &&
      (this.#zoneLow[zoneOut] === 0 || this.zoneCount(pg, zoneOut) > this.#zoneLow[zoneOut]);
  }

  /** What it costs that a node is in a PG: 1 where it was not before. */
  cost(pg: number, node: number): number {
    return this.had(pg, node) ? 0 : 1;
  }

  /** Puts a node that is not in a PG there; the PG has room. */
  add(pg: number, node: number): void {
    this.#put(pg, pg * this.width + this.#sizes[pg]++, node);
  }

  /** Puts `comes` in the place of `goes`. */
  exchange(pg: number, goes: number, comes: number): void {
    let slot = pg * this.width;
    while (this.#members[slot] !== goes) slot++;
    removeAt(this.#slots[goes], this.#slotAt, slot);
    this.counts[goes]--;
    const oldAt = this.#oldAt(pg, goes);
    if (oldAt >= 0) {
      this.#goneAt[oldAt] = this.#gone[goes].push(oldAt) - 1;
    } else {
      this.newCounts[goes]--;
      this.moved--;
    }
    this.#put(pg, slot, comes);
  }

  #put(pg: number, slot: number, node: number): void {
    this.#members[slot] = node;
    this.#slotAt[slot] = this.#slots[node].push(slot) - 1;
    this.counts[node]++;
    const oldAt = this.#oldAt(pg, node);
    if (oldAt >= 0) {
      removeAt(this.#gone[node], this.#goneAt, oldAt);
    } else {
      this.newCounts[node]++;
      this.moved++;
    }
  }
}

/** Takes `item` out of a list without order; `places` says where in it each item stands. */
function removeAt(list: number[], places: Int32Array, item: number): void {
  const last = list.pop()!;
  if (last === item) return;
  list[places[item]] = last;
  places[last] = places[item];
}
