/**
 * What is true of every map that `apply` makes, checked again of every map that comes from somewhere.
 *
 * @module
 */

import { targetOf } from "./copies.ts";
import type { ControlError } from "./errors.ts";
import {
  checkAttributes,
  checkCopies,
  checkCopiesMin,
  checkFacts,
  checkLimits,
  checkSchedule,
  checkSettings,
  checkSize,
  checkTime,
  checkUuid,
  checkWeight,
  isLevel,
} from "./fields.ts";
import {
  type ClusterMap,
  COPIES_MAX,
  type DiskEntry,
  DISKS_MAX,
  ID_MAX,
  type LayerEntry,
  LAYERS_MAX,
  type LossEntry,
  LOSSES_MAX,
  MEMBERS_MAX,
  MOVES_MAX,
  NODE_ID_MAX,
  type NodeEntry,
  NODES_MAX,
  PG_BITS_MAX,
  PG_BITS_MIN,
  type PgEntry,
  type Pool,
  SCHEDULES_MAX,
  SNAPSHOTS_MAX,
  SNAPSHOTS_PER_DISK_MAX,
  TRASH_MAX,
  VOTERS_MAX,
} from "./model.ts";
import { unsettledNodes } from "./flatten.ts";
import { checkDiskName, checkSnapshotName } from "./names.ts";
import { disksWithData, findPool, poolOf } from "./queries.ts";
import {
  checkZoneNames,
  isSameZones,
  isUsed,
  poolOfPlace,
  sortedZones,
  zonedPools,
  zonedPoolsMax,
} from "./zones.ts";

/**
 * Checks every invariant of a map, as after decoding: types are right already, values may be anything.
 *
 * @param map of which nothing is known but its types
 * @returns null for a map that `apply` could have made, else an error with code `corrupt`
 */
export function checkMap(map: ClusterMap): ControlError | null {
  const places = new Map<number, Place>();
  const reason = reasonAgainstCounters(map) ?? reasonAgainstNodes(map) ??
    reasonAgainstLayers(map, places) ?? reasonAgainstDisks(map, places) ??
    reasonAgainstPools(map) ?? reasonAgainstLosses(map);
  return reason === null
    ? null
    : { code: "corrupt", message: `the cluster map is damaged: ${reason}` };
}

function reasonAgainstCounters(map: ClusterMap): string | null {
  if (!isCount(map.epoch)) return `its epoch is ${map.epoch}`;
  if (!isLevel(map.level)) return `its level is ${map.level}`;
  if (!isNext(map.nextDisk, ID_MAX)) return `its next disk id is ${map.nextDisk}`;
  if (!isNext(map.nextLayer, ID_MAX)) return `its next layer id is ${map.nextLayer}`;
  if (!isNext(map.nextNode, NODE_ID_MAX)) return `its next node id is ${map.nextNode}`;
  if (!isCount(map.targetsEpoch) || map.targetsEpoch > map.epoch) {
    return `its targets are of epoch ${map.targetsEpoch}`;
  }
  if (!Number.isInteger(map.pgBits) || map.pgBits < PG_BITS_MIN || map.pgBits > PG_BITS_MAX) {
    return `it has 2^${map.pgBits} PGs`;
  }
  return checkSettings(map.settings)?.message ?? null;
}

function reasonAgainstNodes(map: ClusterMap): string | null {
  if (map.nodes.length > NODES_MAX) return `it has ${map.nodes.length} nodes`;
  if (map.nodes.length === 0) {
    return map.clusterId === "" && map.pools.length === 0 && map.voters.length === 0
      ? null
      : "it has no nodes";
  }
  const error = checkUuid(map.clusterId);
  if (error !== null) return error.message;
  const uuids = new Set<string>();
  const names = new Set<string>();
  let previousId = 0;
  for (const node of map.nodes) {
    const reason = reasonAgainstNode(node, map);
    if (reason !== null) return `node ${node.id}: ${reason}`;
    if (node.id <= previousId) return `node ${node.id} is out of order or there twice`;
    previousId = node.id;
    if (uuids.has(node.uuid)) return `node ${node.id}: its uuid is there twice`;
    uuids.add(node.uuid);
    if (names.has(node.name)) return `node ${node.id}: its name is there twice`;
    names.add(node.name);
  }
  return reasonAgainstVoters(map);
}

function reasonAgainstNode(node: NodeEntry, map: ClusterMap): string | null {
  const error = checkFacts(node) ?? checkWeight(node.weight) ?? checkTime(node.changedMs);
  if (error !== null) return error.message;
  if (!isIdBelow(node.id, map.nextNode)) return "its id was never given";
  if (!isIdBelow(node.incarnation, ID_MAX + 1)) return `its incarnation is ${node.incarnation}`;
  if (node.protocolMin > map.level || node.protocol < map.level) {
    return `it speaks levels ${node.protocolMin} to ${node.protocol}, and the cluster ${map.level}`;
  }
  return isCount(node.requestSequence) ? null : `its last request is ${node.requestSequence}`;
}

function reasonAgainstVoters(map: ClusterMap): string | null {
  const { voters } = map;
  if (voters.length < 1 || voters.length > VOTERS_MAX) return `it has ${voters.length} voters`;
  const known = new Set(map.nodes.map((node) => node.id));
  for (const [index, id] of voters.entries()) {
    if (!known.has(id)) return `voter ${id} is no node`;
    if (index > 0 && id <= voters[index - 1]) return `voter ${id} is out of order or there twice`;
  }
  return null;
}

/** What has to be known of a layer, so that nobody has to walk through its chain. */
interface Place {
  readonly layer: LayerEntry;
  /** The oldest layer of its chain. */
  readonly root: number;
  /** How many layers its chain has. */
  readonly depth: number;
  /** How many layers lie right above it, and the last of them. */
  children: number;
  child: LayerEntry | null;
}

/** Puts the layers in order into `places`, which is empty before. */
function reasonAgainstLayers(map: ClusterMap, places: Map<number, Place>): string | null {
  if (map.layers.length > SNAPSHOTS_MAX) return `it has ${map.layers.length} layers`;
  // Many layers may have one list.
  const sorted = new Set<readonly number[]>();
  let previous = 0;
  for (const layer of map.layers) {
    const { id, parent, absorbedBy } = layer;
    if (!isIdBelow(id, map.nextLayer)) return `layer ${id} was never given`;
    if (id <= previous) return `layer ${id} is out of order or there twice`;
    previous = id;
    const below = places.get(parent);
    if (parent !== 0 && below === undefined) {
      return `layer ${id} lies above ${parent}, which is unknown`;
    }
    const { root, depth } = below ?? { root: id, depth: 0 };
    places.set(id, { layer, root, depth: depth + 1, children: 0, child: null });
    if (below !== undefined) {
      below.children++;
      below.child = layer;
    }
    if (absorbedBy === null || sorted.has(absorbedBy)) continue;
    const isSorted = absorbedBy.every((node, at) =>
      isIdBelow(node, map.nextNode) && (at === 0 || node > absorbedBy[at - 1])
    );
    if (!isSorted) return `layer ${id}: who has absorbed it is not in order`;
    sorted.add(absorbedBy);
  }
  for (const { layer: { id, absorbedBy }, children, child } of places.values()) {
    if (absorbedBy === null) continue;
    if (children !== 1) return `layer ${id} is being absorbed, and has ${children} children`;
    if (child!.absorbedBy !== null) return `layer ${id} is absorbed into one that is, too`;
  }
  return null;
}

/** See the head of `flatten.ts`. */
function reasonAgainstFlattening(map: ClusterMap): string | null {
  for (const { id, parent, absorbedBy, flatten } of map.layers) {
    if (flatten === undefined) continue;
    const disk = map.disks.find((each) => each.id === flatten.disk);
    if (parent === 0 || absorbedBy !== null || disk?.layers.includes(id) !== true) {
      return `layer ${id} cannot be flattened`;
    }
    if (!isCount(flatten.since) || flatten.since > map.epoch) {
      return `layer ${id} has been flattened since epoch ${flatten.since}`;
    }
    const { by } = flatten;
    const isSorted = by.every((node, at) =>
      isIdBelow(node, map.nextNode) && (at === 0 || node > by[at - 1])
    );
    if (!isSorted) return `layer ${id}: who has flattened it is not in order`;
    const unsettled = unsettledNodes(poolOf(map, disk));
    const stray = by.find((node) => unsettled.has(node));
    if (stray !== undefined) {
      return `layer ${id} is flattened on node ${stray}, which is no member yet`;
    }
  }
  return null;
}

/** That nothing is kept which nobody needs: see the head of `layers.ts`. */
function reasonAgainstLeftovers(
  places: ReadonlyMap<number, Place>,
  needed: ReadonlySet<number>,
): string | null {
  for (const { layer, children, child } of places.values()) {
    const { id, parent, absorbedBy, flatten } = layer;
    if (needed.has(id) || absorbedBy !== null || children > 1) continue;
    if (children === 0) return `layer ${id} is nobody's`;
    const absorbs = places.get(parent)?.layer.absorbedBy != null;
    if (flatten !== undefined) continue;
    if (!absorbs && child!.absorbedBy === null) return `layer ${id} is not needed, nor absorbed`;
  }
  return null;
}

function reasonAgainstTrash({ trash }: ClusterMap): string | null {
  if (trash.length > TRASH_MAX) return `there are ${trash.length} disks in the trash`;
  let previousId = 0;
  for (const { disk, deletedMs, expiresMs } of trash) {
    if (disk.id <= previousId) return `disk ${disk.id} in the trash is out of order or there twice`;
    previousId = disk.id;
    const error = checkTime(deletedMs) ?? checkTime(expiresMs);
    if (error !== null) return `disk ${disk.id} in the trash: ${error.message}`;
    if (disk.lease !== null) return `disk ${disk.id} in the trash is open`;
    if (disk.snapshots.some(({ taking, isAborted }) => taking !== 0 && !isAborted)) {
      return `a snapshot of disk ${disk.id} in the trash is being taken`;
    }
  }
  return null;
}

function reasonAgainstDisks(map: ClusterMap, places: ReadonlyMap<number, Place>): string | null {
  if (map.disks.length > DISKS_MAX) return `it has ${map.disks.length} disks`;
  let previousName = "";
  for (const { name } of map.disks) {
    if (name <= previousName) return `disk ${name} is out of order or there twice`;
    previousName = name;
  }
  const reason = reasonAgainstTrash(map);
  if (reason !== null) return reason;
  const ids = new Set<number>();
  const newest = new Set<number>();
  const familyOfRoot = new Map<number, number>();
  const nodes = new Set(map.nodes.map((node) => node.id));
  const relatives = new Map<number, DiskEntry>();
  for (const disk of disksWithData(map)) {
    const reason = reasonAgainstDisk(disk, map, nodes) ?? reasonAgainstChain(disk, places) ??
      reasonAgainstSnapshots(disk, map);
    if (reason !== null) return `disk ${JSON.stringify(disk.name)}: ${reason}`;
    if (ids.has(disk.id)) return `disk id ${disk.id} is there twice`;
    ids.add(disk.id);
    const [top] = disk.layers;
    if (places.get(top)!.children > 0) return `disk ${disk.name}: others lie above layer ${top}`;
    for (const id of [top, ...disk.snapshots.map(({ layer }) => layer)]) {
      const place = places.get(id);
      // A disk is made of a snapshot with one layer more.
      if (place === undefined || (id !== top && place.depth >= LAYERS_MAX)) {
        return `layer ${id} of a snapshot of disk ${disk.name} is unknown, or too high up`;
      }
      if (newest.has(id)) return `layer ${id} is the newest of two disks or snapshots`;
      newest.add(id);
      if (place.layer.absorbedBy !== null) return `layer ${id} is needed, and being absorbed`;
      const family = familyOfRoot.get(place.root) ?? disk.family;
      if (family !== disk.family) return `layer ${id} is of families ${family} and ${disk.family}`;
      familyOfRoot.set(place.root, family);
    }
    const relative = relatives.get(disk.family) ?? disk;
    if (relative.copies !== disk.copies) {
      return `family ${disk.family} has ${relative.copies} and ${disk.copies} copies`;
    }
    if (relative.pool !== disk.pool) {
      return `family ${disk.family} is of pools ${relative.pool} and ${disk.pool}`;
    }
    const isTogether = relative.placedEpoch === disk.placedEpoch &&
      relative.settledBefore === disk.settledBefore;
    if (!isTogether) return `disks of family ${disk.family} came into their pool at two times`;
    relatives.set(disk.family, relative);
  }
  return reasonAgainstTaking(map) ?? reasonAgainstFlattening(map) ??
    reasonAgainstLeftovers(places, newest);
}

/** That somebody will complete what is being taken. */
function reasonAgainstTaking({ disks }: ClusterMap): string | null {
  const begun = new Set<number>();
  const waiting = new Set<number>();
  for (const { snapshots } of disks) {
    const last = snapshots.at(-1);
    if (last === undefined || last.taking === 0 || last.isAborted) continue;
    (last.isDrained ? begun : waiting).add(last.taking);
  }
  for (const taking of begun) {
    if (!waiting.has(taking)) return `snapshots of epoch ${taking} wait for nobody`;
  }
  return null;
}

function reasonAgainstDisk(
  disk: DiskEntry,
  map: ClusterMap,
  nodes: ReadonlySet<number>,
): string | null {
  const error = checkDiskName(disk.name) ?? checkSize(disk.sizeBytes) ??
    checkCopies(disk.copies) ?? checkCopiesMin(disk.copiesMin, disk.copies) ??
    checkTime(disk.createdMs) ?? checkAttributes(disk.attributes);
  if (error !== null) return error.message;
  if (!isIdBelow(disk.id, map.nextDisk)) return `its id is ${disk.id}`;
  if (!isIdBelow(disk.family, map.nextDisk)) return `its family is ${disk.family}`;
  if (!isCount(disk.generation) || disk.generation > ID_MAX) {
    return `its generation is ${disk.generation}`;
  }
  if (!isCount(disk.settled) || disk.settled > disk.generation) {
    return `it is settled up to generation ${disk.settled} of ${disk.generation}`;
  }
  const { written } = disk;
  // A rollback is before the lease that comes next.
  const writtenMax = disk.generation + (written.node === 0 ? 1 : 0);
  const isWritten = isIdBelow(written.node + 1, map.nextNode + 1) && isCount(written.before) &&
    isCount(written.generation) && written.before <= written.generation &&
    written.generation <= writtenMax;
  if (!isWritten) {
    return `it was written by node ${written.node} under generation ${written.generation}, and by another one under ${written.before}`;
  }
  if (!isCount(disk.placedEpoch) || disk.placedEpoch > map.epoch) {
    return `it was placed in epoch ${disk.placedEpoch}`;
  }
  if (!isCount(disk.settledBefore) || disk.settledBefore > disk.placedEpoch) {
    return `it was settled in epoch ${disk.settledBefore} before epoch ${disk.placedEpoch}`;
  }
  if (disk.lease !== null) {
    const { node, incarnation } = disk.lease;
    if (!nodes.has(node)) return `node ${node}, which has its lease, is unknown`;
    if (!isIdBelow(incarnation, ID_MAX + 1)) return `its lease is of incarnation ${incarnation}`;
    if (disk.generation === 0) return "it has a lease without a generation";
  }
  return checkLimits(disk.limits)?.message ?? null;
}

function reasonAgainstChain(
  { layers }: DiskEntry,
  places: ReadonlyMap<number, Place>,
): string | null {
  if (layers.length < 1 || layers.length > LAYERS_MAX) return `it has ${layers.length} layers`;
  const isChain = layers.every((id, at) =>
    places.get(id)?.layer.parent === (at + 1 < layers.length ? layers[at + 1] : 0)
  );
  return isChain ? null : `its layers are ${layers.slice(0, 9).join(", ")}`;
}

function reasonAgainstSnapshots(disk: DiskEntry, map: ClusterMap): string | null {
  const { snapshots, schedules } = disk;
  if (snapshots.length > SNAPSHOTS_PER_DISK_MAX) return `it has ${snapshots.length} snapshots`;
  if (schedules.length > SCHEDULES_MAX) return `it has ${schedules.length} schedules`;
  const names = new Set<string>();
  for (const [index, snapshot] of snapshots.entries()) {
    const { name, layer, sizeBytes, createdMs, taking, isDrained, isAborted } = snapshot;
    const error = checkSnapshotName(name) ?? checkSize(sizeBytes) ?? checkTime(createdMs);
    if (error !== null) return error.message;
    if (names.has(name) && !isAborted) return `its snapshot ${name} is there twice`;
    names.add(name);
    if (!isCount(taking) || taking > map.epoch) {
      return `snapshot ${name} is taken in epoch ${taking}`;
    }
    const isLast = index === snapshots.length - 1;
    if (taking !== 0 && (!isLast || layer !== disk.layers[1])) {
      return `snapshot ${name} is being taken, and not the newest`;
    }
    if (taking === 0 && (!isDrained || isAborted)) return `snapshot ${name} is complete and is not`;
    if (isDrained && isAborted) return `snapshot ${name} was given up and is still there`;
  }
  for (const [index, schedule] of schedules.entries()) {
    const error = checkSchedule(schedule);
    if (error !== null) return error.message;
    if (index > 0 && schedule.name <= schedules[index - 1].name) {
      return `schedule ${schedule.name} is out of order or there twice`;
    }
  }
  return null;
}

function reasonAgainstPools(map: ClusterMap): string | null {
  let previous = 0;
  const storage = new Set(map.nodes.filter((node) => !node.witness).map((node) => node.id));
  for (const pool of map.pools) {
    const error = checkCopies(pool.copies);
    if (error !== null) return error.message;
    if (pool.id <= previous) return `pool ${pool.id} is out of order or there twice`;
    previous = pool.id;
    const reason = reasonAgainstPool(pool, map, storage);
    if (reason !== null) return reason;
  }
  const stray = disksWithData(map).find((disk) => !isOfPool(map, disk));
  if (stray !== undefined) {
    return `disk ${stray.name}: there is no pool ${stray.pool} of ${stray.copies} copies`;
  }
  return reasonAgainstPlaces(map) ?? reasonAgainstMoves(map);
}

function isOfPool(map: ClusterMap, { copies, pool: id }: DiskEntry): boolean {
  if (map.nodes.length === 0) return id === copies;
  const pool = findPool(map, id);
  return pool !== undefined && pool.family === 0 && pool.copies === copies;
}

/** What `zones.ts` says of pools that are those of all disks of a place. */
function reasonAgainstPlaces(map: ClusterMap): string | null {
  const disks = disksWithData(map);
  for (const pool of map.pools) {
    const { id, copies, zones, family, to } = pool;
    if (id > COPIES_MAX && !isIdBelow(id - COPIES_MAX, map.nextDisk)) {
      return `pool ${id} was never made`;
    }
    if (family !== 0) {
      if (zones.length > 0) return `pool ${id} is that of a family, and has zones`;
      continue;
    }
    if (to !== 0) return `pool ${id} is of no family, and goes to pool ${to}`;
    if (zones.length === 0) {
      if (id !== copies) return `pool ${id} is that of ${copies} copies`;
      continue;
    }
    const error = checkZoneNames(zones);
    if (error !== null) return error.message;
    if (id <= COPIES_MAX) return `pool ${id} has zones`;
    if (!isSameZones(zones, sortedZones(zones))) return `zones of pool ${id} are out of order`;
    if (poolOfPlace(map, pool) !== pool) return `pool ${id} is there twice`;
    if (!isUsed(pool, disks, map.pools)) return `pool ${id} has zones, and no disk`;
  }
  const { length } = zonedPools(map);
  return length <= zonedPoolsMax(map.pgBits) ? null : `${length} pools have zones`;
}

/** What `copies.ts` says of pools that families have for themselves. */
function reasonAgainstMoves(map: ClusterMap): string | null {
  const families = new Set<number>();
  for (const { id, copies, family, to: goal, pgs } of map.pools) {
    if (family === 0) continue;
    if (id <= COPIES_MAX) return `pool ${id} is of family ${family}`;
    if (families.has(family)) return `family ${family} has two pools`;
    families.add(family);
    const disk = disksWithData(map).find((each) => each.family === family);
    if (disk === undefined) return `pool ${id} is of family ${family}, which has no disks`;
    const from = findPool(map, disk.pool);
    const to = findPool(map, goal);
    if (from === undefined || to === undefined) return `pool ${id} goes to none`;
    if (to.family !== 0 || to.copies !== copies) {
      return `pool ${id} of ${copies} copies goes to pool ${goal}`;
    }
    const stray = pgs.findIndex(({ target }, index) => {
      const wanted = targetOf(from.pgs[index], to.pgs[index]);
      return target.length !== wanted.length || !wanted.every((node) => target.includes(node));
    });
    if (stray >= 0) return `PG ${stray} of pool ${id} has other targets than those of its ends`;
  }
  return families.size <= MOVES_MAX ? null : `${families.size} families have pools of their own`;
}

function reasonAgainstPool(
  pool: Pool,
  map: ClusterMap,
  storage: ReadonlySet<number>,
): string | null {
  if (pool.pgs.length !== 2 ** map.pgBits) return `pool ${pool.id} has ${pool.pgs.length} PGs`;
  const { reached = 1 } = pool;
  const isReached = isIdBelow(reached, Math.max(2, pool.copies)) &&
    (pool.reached === undefined || pool.family === 0);
  if (!isReached) return `pool ${pool.id} has reached ${reached} copies`;
  const checked = new Set<PgEntry>();
  for (const [index, pg] of pool.pgs.entries()) {
    if (checked.has(pg)) continue;
    checked.add(pg);
    const targetsMax = pool.family === 0 ? pool.copies : 2 * COPIES_MAX;
    const reason = reasonAgainstGroup(pg, targetsMax, map.epoch, storage);
    if (reason !== null) return `PG ${index} of pool ${pool.id}: ${reason}`;
  }
  return null;
}

function reasonAgainstGroup(
  pg: PgEntry,
  targetsMax: number,
  epoch: number,
  storage: ReadonlySet<number>,
): string | null {
  if (pg.target.length < 1 || pg.target.length > targetsMax) {
    return `it has ${pg.target.length} targets`;
  }
  if (pg.inSync.length < 1) return "nobody is in sync";
  if (pg.inSync.length + pg.joining.length > MEMBERS_MAX) return "it has too many members";
  for (const list of [pg.target, pg.inSync, pg.joining]) {
    const stranger = list.find((id) => !storage.has(id));
    if (stranger !== undefined) return `node ${stranger} is unknown or stores nothing`;
  }
  if (hasTwice(pg.target)) return "a target is there twice";
  if (hasTwice([...pg.inSync, ...pg.joining])) return "a member is there twice";
  if (hasTwice(pg.unclean) || pg.unclean.some((id) => !pg.inSync.includes(id))) {
    return "somebody is unclean who is not in sync";
  }
  if (pg.unsettled && pg.unclean.length < pg.inSync.length) return "it is unsettled without need";
  if (pg.unsettled && pg.joining.length > 0) return "somebody joins although it is unsettled";
  if (!isCount(pg.changedEpoch) || pg.changedEpoch > epoch) {
    return `it changed in epoch ${pg.changedEpoch}`;
  }
  if (!isCount(pg.settledEpoch) || pg.settledEpoch > pg.changedEpoch) {
    return `it was settled in epoch ${pg.settledEpoch}`;
  }
  if (pg.joinedEpochs.length !== pg.joining.length) return "joiners and their epochs do not match";
  const stray = pg.joinedEpochs.find((each) => !isCount(each) || each > pg.changedEpoch);
  return stray === undefined ? null : `somebody joined in epoch ${stray}`;
}

function reasonAgainstLosses(map: ClusterMap): string | null {
  if (map.losses.length > LOSSES_MAX) return `it has ${map.losses.length} losses`;
  const index = map.losses.findIndex((loss) => !isLoss(loss, map));
  return index < 0 ? null : `loss ${index} cannot be`;
}

function isLoss(loss: LossEntry, map: ClusterMap): boolean {
  return isCount(loss.epoch) && loss.epoch <= map.epoch && checkTime(loss.nowMs) === null &&
    isIdBelow(loss.node, map.nextNode) && loss.name.length <= 63 &&
    checkCopies(loss.pool) === null && isCount(loss.pgs) && loss.pgs <= 2 ** PG_BITS_MAX;
}

/** Lists of members are short: comparing each with each is faster than a set. */
function hasTwice(list: readonly number[]): boolean {
  return list.some((id, index) => list.indexOf(id) !== index);
}

function isCount(value: number): boolean {
  return Number.isSafeInteger(value) && value >= 0;
}

function isNext(value: number, idMax: number): boolean {
  return Number.isInteger(value) && value >= 1 && value <= idMax + 1;
}

function isIdBelow(value: number, next: number): boolean {
  return Number.isInteger(value) && value >= 1 && value < next;
}
