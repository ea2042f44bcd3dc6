/**
 * In which zones the copies of disks are kept.
 *
 *     disk ── belongs to ──▶ pool of (copies, zones) ──▶ PGs ── targets ──▶ nodes of these zones
 *
 * Zones are those of a pool, and all disks with as many copies in the same zones have one pool together, as those have that are kept
 * anywhere. So the number of PGs does not grow with that of disks, the shares of nodes are even over all of them, and a family comes
 * there and goes as it does to another number of copies, by `copies.ts`: there is nothing else that moves data for it.
 *
 * # Invariants
 *
 * - The zones of a pool never change: sorted, each once, none "". No two pools have the same number of copies and the same zones. One
 *   with zones is made by the command that brings its first disk, or has its first family set out for it, and goes with the one after which
 *   no disk belongs to it, in the trash or not, and no family is on its way there ({@linkcode isUsed}).
 * - Its targets are nodes of its zones, placed among them as others are among all: one replica in each zone while there are enough
 *   zones, by weight, as few moves as can be; fewer than its copies where there are fewer nodes, and more as nodes come. A node outside is
 *   to it what one is that is being drained: it gets nothing, keeps what it has until others are in sync, and stays where writes would
 *   have to wait without it (`targets.ts`).
 * - Where no node of its zones takes data, all targets stay what they are. Nothing is dropped because a zone is empty: members leave
 *   when the whole target is in sync, as everywhere.
 * - A zone is a name that nodes have, and may lose. Whether some node has it is asked when a disk is to be kept there, and never again:
 *   `zonesProblem` of `targets.ts` tells people.
 *
 * # Bounds
 *
 * {@linkcode ZONED_POOLS_MAX} pools with zones, and together no more PGs than {@linkcode ZONED_SHARE} of the largest pools have
 * ({@linkcode zonedPoolsMax}): then one more pool is refused, and so is a split of PGs. A pool has up to {@linkcode ZONES_MAX} zones.
 *
 * @module
 */

import type { ControlError } from "./errors.ts";
import { checkZone } from "./fields.ts";
import {
  type ClusterMap,
  type DiskEntry,
  type NodeEntry,
  PG_BITS_MAX,
  type Pool,
  ZONED_POOLS_MAX,
  ZONES_MAX,
} from "./model.ts";

/** As many of the largest pools have as many PGs as all pools with zones may have together. */
const ZONED_SHARE = 4;

/** Zones that there are, as a message names them; more are counted. */
const NAMED_MAX = 12;

/** Where disks belong that are alike in that: which pool is theirs. */
export interface Place {
  /** 1…`COPIES_MAX`. */
  readonly copies: number;
  /** Sorted, each once; empty: anywhere. */
  readonly zones: readonly string[];
}

/** Zones as a pool has them: sorted, each once. */
export function sortedZones(zones: readonly string[]): readonly string[] {
  return [...new Set(zones)].sort();
}

/** Whether a node may hold what is kept in some zones. */
export function isInZones(zones: readonly string[], { zone }: Pick<NodeEntry, "zone">): boolean {
  return zones.length === 0 || zones.includes(zone);
}

/** Whether two lists of zones are the same. */
export function isSameZones(a: readonly string[], b: readonly string[]): boolean {
  return a.length === b.length && a.every((zone, index) => zone === b[index]);
}

/** The pool of all disks that belong somewhere, of no family alone; undefined: there is none. */
export function poolOfPlace(
  map: Pick<ClusterMap, "pools">,
  { copies, zones }: Place,
): Pool | undefined {
  return map.pools.find((pool) =>
    pool.family === 0 && pool.copies === copies && isSameZones(pool.zones, zones)
  );
}

/** Whether a pool with zones is still that of a disk, or a family goes there. */
export function isUsed(
  { id }: Pool,
  disks: readonly Pick<DiskEntry, "pool">[],
  pools: readonly Pool[],
): boolean {
  return disks.some((disk) => disk.pool === id) || pools.some(({ to }) => to === id);
}

/** Most pools with zones in a map of 2^`pgBits` PGs. */
export function zonedPoolsMax(pgBits: number): number {
  return Math.min(ZONED_POOLS_MAX, ZONED_SHARE * 2 ** (PG_BITS_MAX - pgBits));
}

/** Pools that have zones. */
export function zonedPools({ pools }: Pick<ClusterMap, "pools">): readonly Pool[] {
  return pools.filter(({ zones }) => zones.length > 0);
}

/** Whether PGs may be split: with twice as many there would not be too many of pools with zones. */
export function maySplit(map: Pick<ClusterMap, "pools" | "pgBits">): boolean {
  return map.pgBits < PG_BITS_MAX && zonedPools(map).length <= zonedPoolsMax(map.pgBits + 1);
}

/** Why there cannot be one more pool with zones; null: there can. */
export function reasonAgainstZonedPool(map: ClusterMap): ControlError | null {
  const { length } = zonedPools(map);
  if (length < zonedPoolsMax(map.pgBits)) return null;
  return {
    code: "limit",
    message:
      `disks have ${length} different sets of zones with numbers of copies already, which is the most`,
    hint:
      "choose one that there is ('kelpie disk list' shows them); one goes with the last disk that has it, " +
      "also in the trash",
  };
}

/**
 * Checks zones that copies are to be kept in: how many, their names, and that there are nodes in all of them.
 *
 * @param zones as somebody has asked for them
 * @param known zones that need not be asked for: those that a disk has
 */
export function checkZones(
  map: ClusterMap,
  zones: readonly string[],
  known: readonly string[] = [],
): ControlError | null {
  const error = checkZoneNames(zones);
  if (error !== null) return error;
  const names = [...new Set(map.nodes.flatMap(({ zone, witness }) => witness ? [] : [zone]))]
    .filter((zone) => zone !== "").sort();
  const strange = zones.find((zone) => !names.includes(zone) && !known.includes(zone));
  if (strange === undefined) return null;
  const shown = names.slice(0, NAMED_MAX).join(", ");
  const more = names.length > NAMED_MAX ? ` and ${names.length - NAMED_MAX} more` : "";
  return {
    code: "invalid",
    message: `no node that stores data is in zone ${strange}; ` +
      (names.length === 0 ? "none has a zone of a name" : `there are ${shown}${more}`),
    hint: "'kelpie node list' shows who is where, 'kelpie node zone NODE ZONE' changes it",
  };
}

/** Checks zones by themselves: how many, and their names. */
export function checkZoneNames(zones: readonly string[]): ControlError | null {
  if (new Set(zones).size > ZONES_MAX) {
    return {
      code: "invalid",
      message: `${zones.length} zones are too many: ${ZONES_MAX} is the most`,
      hint: "leave out the zones for a disk that may be anywhere",
    };
  }
  for (const zone of zones) {
    const error = zone === ""
      ? {
        code: "invalid",
        message: "a zone without a name is that of one node, and cannot be one of several",
        hint: "'kelpie node zone NODE ZONE' gives nodes a zone",
      } as const
      : checkZone(zone);
    if (error !== null) return error;
  }
  return null;
}

/** The error for a place of which no node takes data. */
export function noNodeFor(zones: readonly string[]): ControlError {
  if (zones.length === 0) {
    return { code: "unavailable", message: "no node that is up and in can hold data" };
  }
  return {
    code: "unavailable",
    message: `no node of ${zonesText(zones)} is up and in: none can hold data`,
    hint: "start one, 'kelpie node undrain' one, or choose other zones",
  };
}

/** From where to where copies go, for people: `2 → 3`, `2 anywhere → 3 in a, b`. */
export function moveText(from: Place, to: Place): string {
  const isAnywhere = from.zones.length === 0 && to.zones.length === 0;
  const textOf = (place: Place) =>
    isAnywhere ? `${place.copies}` : `${place.copies} ${inZonesText(place.zones) || "anywhere"}`;
  return `${textOf(from)} → ${textOf(to)}`;
}

/** `in a, b`; "" where there are no zones. */
export function inZonesText(zones: readonly string[]): string {
  return zones.length === 0 ? "" : `in ${zones.join(", ")}`;
}

/** `zone a`, `zones a and b`, for people. */
export function zonesText(zones: readonly string[]): string {
  if (zones.length < 2) return `zone ${zones.join()}`;
  return `zones ${zones.slice(0, -1).join(", ")} and ${zones[zones.length - 1]}`;
}
