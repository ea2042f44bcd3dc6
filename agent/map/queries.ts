/**
 * Questions to the cluster map. None of them changes anything; all are cheap but where they say so.
 *
 * @module
 */

import type { ControlError } from "./errors.ts";
import { pgOf } from "./hash.ts";
import { isOn } from "./levels.ts";
import {
  type ClusterMap,
  COPIES_MAX,
  type DiskEntry,
  type NodeEntry,
  type PgEntry,
  type Pool,
  type Written,
} from "./model.ts";
import { isInZones } from "./zones.ts";

/**
 * Finds a disk by its name.
 *
 * @param map the map to look in
 * @param name any string
 */
export function findDisk(map: ClusterMap, name: string): DiskEntry | undefined {
  const index = diskIndexOf(map.disks, name);
  return map.disks[index]?.name === name ? map.disks[index] : undefined;
}

/** Index of the first disk whose name is not below `name`. */
export function diskIndexOf(disks: readonly DiskEntry[], name: string): number {
  let low = 0;
  let high = disks.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (disks[middle].name < name) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** The error for a disk that is not there. */
export function diskMissing(name: string): ControlError {
  return {
    code: "missing",
    message: `there is no disk named ${JSON.stringify(name)}`,
    hint: "'kelpie disk list' shows the disks that there are",
  };
}

/**
 * Finds a node by its id.
 *
 * @param map the map to look in
 * @param id any number
 */
export function findNode(map: ClusterMap, id: number): NodeEntry | undefined {
  const { nodes } = map;
  let low = 0;
  let high = nodes.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (nodes[middle].id < id) low = middle + 1;
    else high = middle;
  }
  return nodes[low]?.id === id ? nodes[low] : undefined;
}

/** Finds a node by the uuid of its store; looks at all nodes. */
export function findNodeByUuid(map: ClusterMap, uuid: string): NodeEntry | undefined {
  return map.nodes.find((node) => node.uuid === uuid);
}

/** Finds a node by its name; looks at all nodes. */
export function findNodeByName(map: ClusterMap, name: string): NodeEntry | undefined {
  return map.nodes.find((node) => node.name === name);
}

/** The error for a node that is not there. */
export function nodeMissing(id: number): ControlError {
  return { code: "missing", message: `there is no node with id ${id}` };
}

/** What is known of a disk's leases once the one that it has is over, in which it may have been written. */
export function writtenAfter(map: ClusterMap, { lease, generation, written }: DiskEntry): Written {
  if (lease === null || !isOn(map, 2)) return written;
  const { node } = lease;
  return node === written.node
    ? { ...written, generation }
    : { node, generation, before: written.generation };
}

/**
 * A disk whose lease is over, however it has ended.
 *
 * @param isUnwritten its holder says that nothing was written under it
 */
export function withoutLease(map: ClusterMap, disk: DiskEntry, isUnwritten = false): DiskEntry {
  const written = isUnwritten ? disk.written : writtenAfter(map, disk);
  return { ...disk, lease: null, written };
}

/** The newest generation under which others than a node may have changed a disk, as far as its leases are over; 0: none. */
export function writtenByOthers({ written }: DiskEntry, node: number): number {
  return written.node === node ? written.before : written.generation;
}

/** Whether a node is up, in the very run in which it took a lease: somebody may be using the disk there. */
export function isHolding(
  node: NodeEntry | undefined,
  lease: DiskEntry["lease"],
): boolean {
  return node?.state === "up" && node.incarnation === lease?.incarnation;
}

/**
 * Why something that nobody may use a disk for cannot be done: another node has it open, or had it open when it died.
 *
 * @param self uuid of the node that is asked
 * @returns null where no other node has its lease
 */
export function heldElsewhere(map: ClusterMap, disk: DiskEntry, self: string): ControlError | null {
  const { name, lease } = disk;
  const holder = lease === null ? undefined : findNode(map, lease.node);
  if (holder === undefined || holder.uuid === self) return null;
  if (isHolding(holder, lease)) {
    return {
      code: "busy",
      message: `disk ${name} is open on node ${holder.name}`,
      hint: "stop the guest there",
    };
  }
  // There is no guest any more that could be stopped.
  const since = holder.state === "up" ? "whose agent has started anew since" : "which is down";
  return {
    code: "busy",
    message: `disk ${name} was open on node ${holder.name}, ${since}, and was not closed`,
    hint:
      `open it once here: 'kelpie disk write ${name} /dev/null' changes nothing; then try again`,
  };
}

/** Nodes that may hold data, up or down, in or out: all but witnesses. */
export function storageNodes(map: Pick<ClusterMap, "nodes">): readonly NodeEntry[] {
  return map.nodes.filter((node) => !node.witness);
}

/** A pool by its id; one below `COPIES_MAX` is that of all disks with so many copies anywhere, if there has been such a disk. */
export function findPool(map: Pick<ClusterMap, "pools">, id: number): Pool | undefined {
  return map.pools.find((pool) => pool.id === id);
}

/** The pool that a family has for itself while it goes from one to another; undefined: it does not. */
export function poolOfFamily(map: Pick<ClusterMap, "pools">, family: number): Pool | undefined {
  return map.pools.find((pool) => pool.family === family);
}

/** Id of the pool that a disk's data is in now. */
export function poolIdOf(
  map: Pick<ClusterMap, "pools">,
  disk: Pick<DiskEntry, "family" | "pool">,
): number {
  return poolOfFamily(map, disk.family)?.id ?? disk.pool;
}

/** The pool that a disk's data is in now; undefined only in a map without nodes. */
export function poolOf(
  map: Pick<ClusterMap, "pools">,
  disk: Pick<DiskEntry, "family" | "pool">,
): Pool | undefined {
  return poolOfFamily(map, disk.family) ?? findPool(map, disk.pool);
}

/** The zones that a disk is kept in, sorted; empty: it may be anywhere. While its family goes elsewhere: those where it was. */
export function zonesOf(
  map: Pick<ClusterMap, "pools">,
  disk: Pick<DiskEntry, "pool">,
): readonly string[] {
  return findPool(map, disk.pool)?.zones ?? [];
}

/** Whether a pool has a disk, in the trash or not; without one nobody was ever promised anything about its data. */
export function hasDisks(map: ClusterMap, pool: number): boolean {
  const own = map.pools.filter(({ family }) => family !== 0);
  const isIn = (disk: DiskEntry) =>
    (own.find(({ family }) => family === disk.family)?.id ?? disk.pool) === pool;
  return map.disks.some(isIn) || map.trash.some(({ disk }) => isIn(disk));
}

/**
 * The newest epoch in which a PG was settled that held data of a disk at that time: writes that were acknowledged under older maps and
 * not flushed may be gone.
 *
 * @param disk of which the PG holds chunks now
 * @param family of the PG's pool
 * @returns where the disk was in another pool before, what held for any of the PGs there; 0: never
 */
export function settledEpochOf(
  disk: Pick<DiskEntry, "placedEpoch" | "settledBefore">,
  pg: Pick<PgEntry, "settledEpoch">,
  family: number,
): number {
  // What became of a PG before the disk came there is others' business. A family's own pool begins with what held for the family.
  const isOwn = family !== 0 || pg.settledEpoch > disk.placedEpoch;
  return isOwn ? pg.settledEpoch : disk.settledBefore;
}

/** Every disk that has data: those that there are, and those in the trash. */
export function disksWithData(map: Pick<ClusterMap, "disks" | "trash">): readonly DiskEntry[] {
  return map.trash.length === 0 ? map.disks : [...map.disks, ...map.trash.map(({ disk }) => disk)];
}

/**
 * The number of the PG that a chunk of a disk belongs to, in whichever pool its data is.
 *
 * @param map that the disk is of
 * @param disk one of its disks
 * @param chunk index of the chunk on the disk
 */
export function pgOfChunk(map: ClusterMap, disk: Pick<DiskEntry, "family">, chunk: number): number {
  return pgOf(disk.family, chunk, 2 ** map.pgBits);
}

/** All members of a PG: who gets its writes. In sync first; a new array. */
export function members(pg: PgEntry): readonly number[] {
  return pg.joining.length === 0 ? pg.inSync : [...pg.inSync, ...pg.joining];
}

/** Whether a PG's in-sync set is to be trusted: nobody in it has crashed with unsynced writes, and it is not being settled. */
export function isOpenGroup(pg: PgEntry): boolean {
  return pg.unclean.length === 0 && !pg.unsettled;
}

/**
 * The node that a node reads a PG from: itself if it may be, else always the same under one map.
 *
 * @param options.group the PG's number in its pool
 * @param options.self id of the node that reads
 * @param options.isUp whether the map has a node as up
 * @returns 0: nobody may be read from
 */
export function readerOf(options: {
  readonly pg: PgEntry;
  readonly group: number;
  readonly self: number;
  readonly isUp: (node: number) => boolean;
}): number {
  const { pg, group, self, isUp } = options;
  if (!isOpenGroup(pg)) return 0;
  const { inSync } = pg;
  if (inSync.includes(self)) return self;
  // Spread over the replicas that are up, the same for everyone: their caches then hold different parts.
  const up = inSync.filter(isUp);
  const among = up.length > 0 ? up : inSync;
  return among[group % among.length] ?? 0;
}

/** How many copies of a disk there can be: what it asks for, or fewer where the nodes of its zones are fewer. */
export function copiesOf(map: ClusterMap, disk: Pick<DiskEntry, "copies" | "pool">): number {
  const zones = zonesOf(map, disk);
  let nodes = 0;
  for (const node of map.nodes) if (!node.witness && isInZones(zones, node)) nodes++;
  return Math.min(disk.copies, Math.max(1, nodes));
}

/** Of a disk, or of one as it will be elsewhere: what says how few copies it may be written with. */
type Asking = Pick<DiskEntry, "copies" | "copiesMin" | "pool">;

/**
 * Fewest members in sync with which a disk may be written. Its own number, or that of the settings, or
 * with c = {@linkcode copiesOf}: 1 up to two copies (a plain majority would stop a cluster of two hosts
 * at the first loss), else a majority of c. Never more than c.
 *
 * Nodes that are down or out count for c: forgetting them (`remove-node`), or taking them out of the disk's zones, is what
 * lowers it, so that no timer decides to write to a single copy. Nodes that have come count once all of the pool's data has as many
 * copies (`growth.ts`), so that guests do not wait for what they have yet to copy.
 */
export function copiesMinOf(map: ClusterMap, disk: Asking): number {
  const { reached = COPIES_MAX } = findPool(map, disk.pool) ?? {};
  return copiesMinWith(map, disk, Math.min(reached, copiesOf(map, disk)));
}

/** The same when the disk has all the copies that there can be. */
export function copiesMinToBe(map: ClusterMap, disk: Asking): number {
  return copiesMinWith(map, disk, copiesOf(map, disk));
}

function copiesMinWith(map: ClusterMap, disk: Asking, copies: number): number {
  const asked = disk.copiesMin ?? map.settings.copiesMin;
  if (asked !== null) return Math.min(asked, copies);
  return copies <= 2 ? 1 : Math.floor(copies / 2) + 1;
}

/**
 * Fewest members in sync with which every disk of a pool may be written; 1 for a pool without disks. Disks that go from one pool to
 * another count for the one that they come from and, as they will be there, for the one that they go to: the places of their data are
 * those of both.
 *
 * @param of asks for that of one disk: as it is now, or {@linkcode copiesMinToBe}
 */
export function copiesMinOfPool(
  map: ClusterMap,
  pool: Pick<Pool, "id" | "family">,
  of: (map: ClusterMap, disk: Asking) => number = copiesMinOf,
): number {
  let most = 1;
  for (const disk of map.disks) {
    const own = poolOfFamily(map, disk.family);
    const isIn = pool.family === 0 ? disk.pool === pool.id : own?.id === pool.id;
    if (isIn) most = Math.max(most, of(map, disk));
    if (pool.family !== 0 || own?.to !== pool.id) continue;
    most = Math.max(most, of(map, arrived(disk, own)));
  }
  return most;
}

/** A disk as it will be when its family is where it goes. */
export function arrived(disk: DiskEntry, own: Pick<Pool, "copies" | "to">): DiskEntry {
  return { ...disk, copies: own.copies, pool: own.to };
}

/**
 * Says why a PG cannot be read now.
 *
 * @param map that the PG is of
 * @param pg one of its PGs
 * @returns null when it can, else the reason in words, beginning in lower case
 */
export function groupCanRead(map: ClusterMap, pg: PgEntry): string | null {
  if (pg.unsettled) {
    return `all its copies were on nodes that crashed (${namesOf(map, pg.inSync)}); ` +
      "they have to agree first";
  }
  if (pg.unclean.length > 0) {
    return `${namesOf(map, pg.unclean)} crashed, and has not left yet or has to be settled`;
  }
  if (pg.inSync.every((id) => findNode(map, id)?.state !== "up")) {
    return `the only complete copy is on ${namesOf(map, pg.inSync)}, which is down`;
  }
  return null;
}

/**
 * Says why a PG cannot be written now.
 *
 * @param map that the PG is of
 * @param pg one of its PGs
 * @param copiesMin see {@linkcode copiesMinOf}
 * @returns null when it can, else the reason in words, beginning in lower case
 */
export function groupCanWrite(map: ClusterMap, pg: PgEntry, copiesMin: number): string | null {
  const reason = groupCanRead(map, pg);
  if (reason !== null) return reason;
  if (pg.inSync.length >= copiesMin) return null;
  return `only ${namesOf(map, pg.inSync)} ${pg.inSync.length === 1 ? "has" : "have"} a complete ` +
    `copy, and ${copiesMin} copies are the fewest to write to`;
}

/** Names of nodes for people. */
function namesOf(map: ClusterMap, ids: readonly number[]): string {
  return ids.map((id) => findNode(map, id)?.name ?? `node ${id}`).join(", ");
}
