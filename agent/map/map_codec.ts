/**
 * The cluster map as bytes: MessagePack, versioned, the same bytes for the same map everywhere.
 *
 *     [ "kelpie.map", version,                 version 4:
 *       [ epoch, next disk, next layer,
 *         settings,
 *         [ disk, … ],                         sorted by name
 *         cluster id, next node,               16 bytes, or null without nodes
 *         [ node, … ],                         sorted by id
 *         [ voter, … ], PG bits, targets epoch,
 *         [ pool, … ],                         sorted by id
 *         [ loss, … ],
 *         level,
 *         [ layer, … ],                        sorted by id
 *         [ [ disk, deleted in ms, expires in ms ], … ],        the trash, sorted by the disks' ids
 *         [ [ node, … ], … ] ] ]               who has absorbed or flattened layers: each list once, in the order of its first layer
 *
 *     settings: [ copies, copiesMin or null, outAfterMs, flags, trashMs ]
 *     pool: [ copies, PGs ], with zones: [ copies, PGs, id, 0, [ zone, … ] ], or that of a family:
 *           [ copies, PGs, id, family, id of the pool that it goes to, left out where that is `copies` ]; PGs are bytes: groups_codec.ts;
 *           or [ pool, copies that it has reached ]
 *     disk: [ id, name, size in bytes, [ newest layer ], created in ms, flags, copies, generation,
 *             { key: value, … },               attributes, sorted by key
 *             copiesMin or null, family, [ node, incarnation ] or null, settled,
 *             [ snapshot, … ],                 oldest first
 *             [ iops, bytes/s, burst iops, burst bytes/s, burst s ] or null, where there are no limits
 *             [ schedule, … ],                 sorted by name
 *             [ placedEpoch, settledBefore, pool, left out where it is `copies` ], left out (or null) where both are 0 and pool is `copies`
 *             [ node, generation, before ] ]   written; left out where all are 0
 *     snapshot: [ name, layer, size in bytes, created in ms, flags, taking ]
 *     schedule: [ name, every ms, keep, daily, weekly, monthly, created in ms ]
 *     layer: [ id, parent, index of the list of those that have absorbed it, or left out ], or, while it is being flattened,
 *            [ id, parent, null, disk, since, index of the list of those that have flattened it ]
 *     node: [ id, uuid (16 bytes), name, address, zone, capacity in bytes, weight or null, flags,
 *             incarnation, boot id, version, protocol, request sequence, changed in ms, protocol min ]
 *     loss: [ epoch, ms, node, name, copies, PGs ]
 *
 *     flags of settings: bit 0 trusted network
 *     flags of a disk:   bit 0 read-only, bit 1 zeroes are detected
 *     flags of a snapshot: bit 0 protected, bit 1 drained, bit 2 aborted
 *     flags of a node:   bit 0 witness, bit 1 down, bits 2–3 availability: 0 in, 1 out, 2 draining
 *     other bits are zero, and checked
 *
 * Version 4 is that of levels above 1. Version 3 never was of a level that a release had; it is not read. Version 2 is that of level 1: it
 * ends after the losses, its settings after the flags, its disks after `settled`, and its nodes after the time, since all that speak level 1
 * speak it as their oldest. Disks have one layer there, all of them, and nothing of what came with level 2.
 *
 * Version 1 is that of one host: it ends after the disks, its settings are [ copies ], and its disks end
 * after the attributes. It is read as a map without nodes, in which every disk is a family by itself and
 * settled; `adopt` makes it a cluster of one. It allowed up to 8 copies, which one host never made:
 * more than `COPIES_MAX` are read as that.
 *
 * Positions are only appended, and only with a new version; a golden file is kept for every version. A version
 * is written where the map's level is the one that it came with, and not before: whoever reads it can.
 * Decoding trusts nothing: types, ranges, order and every invariant of the map are checked.
 *
 * @module
 */

import { Packr } from "msgpackr";
import { toHex } from "../base/bytes.ts";
import { failure, type Result, success } from "./errors.ts";
import { limitNumbers, limitsOf } from "./fields.ts";
import { decodeGroups, encodeGroups } from "./groups_codec.ts";
import { checkMap } from "./invariants.ts";
import {
  type Attributes,
  type Availability,
  type ClusterMap,
  COPIES_MAX,
  DEFAULT_SETTINGS,
  type DiskEntry,
  DISKS_MAX,
  EMPTY_MAP,
  type LayerEntry,
  LAYERS_MAX,
  type Lease,
  type Limits,
  type LossEntry,
  LOSSES_MAX,
  MAP_BYTES_MAX,
  MOVES_MAX,
  NO_LIMITS,
  type NodeEntry,
  NODES_MAX,
  PG_BITS_MAX,
  type Pool,
  type Schedule,
  SCHEDULES_MAX,
  type Settings,
  type SnapshotEntry,
  SNAPSHOTS_MAX,
  SNAPSHOTS_PER_DISK_MAX,
  TRASH_MAX,
  type TrashEntry,
  UNWRITTEN,
  type Written,
  ZONED_POOLS_MAX,
  ZONES_MAX,
} from "./model.ts";

/** The newest version that {@linkcode encodeMap} writes and {@linkcode decodeMap} reads. */
export const MAP_VERSION = 4;

/** The version that maps of a level are written in. */
function versionOf(level: number): number {
  return level === 1 ? 2 : MAP_VERSION;
}

const MAGIC = "kelpie.map";

/** Of settings. */
const FLAG_TRUSTED_NETWORK = 1;
/** Of a disk. */
const FLAG_READ_ONLY = 1;
const FLAG_DETECT_ZEROES = 2;
/** Of a snapshot. */
const FLAG_PROTECTED = 1;
const FLAG_DRAINED = 2;
const FLAG_ABORTED = 4;
/** Of a node. */
const FLAG_WITNESS = 1;
const FLAG_DOWN = 2;
const AVAILABILITY_SHIFT = 2;
const AVAILABILITIES: readonly Availability[] = ["in", "out", "draining"];

const UUID_BYTES = 16;

/** Plain MessagePack: no records, no extensions, smallest headers. */
const packr = new Packr({ useRecords: false, variableMapSize: true, moreTypes: false });

/**
 * Encodes a map.
 *
 * @param map that keeps its invariants
 * @returns bytes of the caller's own, or an error with code `limit` where they would be more than
 * `MAP_BYTES_MAX`
 */
export function encodeMap(map: ClusterMap): Result<Uint8Array<ArrayBuffer>> {
  const version = versionOf(map.level);
  const lists = new ListTable();
  const packed = packr.pack([MAGIC, version, [
    map.epoch,
    map.nextDisk,
    map.nextLayer,
    settingsFields(map.settings, version),
    map.disks.map((disk) => diskFields(disk, version)),
    map.clusterId === "" ? null : bytesOfHex(map.clusterId),
    map.nextNode,
    map.nodes.map((node) => nodeFields(node, version)),
    map.voters,
    map.pgBits,
    map.targetsEpoch,
    map.pools.map(poolFields),
    map.losses.map((
      { epoch, nowMs, node, name, pool, pgs },
    ) => [epoch, nowMs, node, name, pool, pgs]),
    ...(version === 2 ? [] : [
      map.level,
      map.layers.map((layer) => layerFields(layer, lists)),
      map.trash.map(({ disk, deletedMs, expiresMs }) => [
        diskFields(disk, version),
        deletedMs,
        expiresMs,
      ]),
      lists.lists,
    ]),
  ]]);
  if (packed.length > MAP_BYTES_MAX) {
    return failure(
      "limit",
      `the cluster map would have ${packed.length} bytes, and ${MAP_BYTES_MAX} is the most`,
      "delete disks that are not needed, or shorten their attributes",
    );
  }
  // msgpackr returns a slice of its own buffer, which the next call writes again.
  return success(new Uint8Array(packed));
}

/** Lists of nodes, each once: thousands of layers may wait for the same node. */
class ListTable {
  readonly lists: (readonly number[])[] = [];
  readonly #indices = new Map<readonly number[] | string, number>();

  /** Index of a list that is equal to this one. */
  indexOf(list: readonly number[]): number {
    const known = this.#indices.get(list);
    if (known !== undefined) return known;
    const key = list.join();
    const index = this.#indices.get(key) ?? this.lists.push(list) - 1;
    this.#indices.set(key, index);
    this.#indices.set(list, index);
    return index;
  }
}

function poolFields({ reached, ...pool }: Pool): unknown[] {
  return reached === undefined ? kindFields(pool) : [kindFields(pool), reached];
}

function kindFields({ id, copies, zones, family, to, pgs }: Pool): unknown[] {
  const fields = [copies, encodeGroups(pgs)];
  if (family !== 0) return [...fields, id, family, ...(to === copies ? [] : [to])];
  return zones.length === 0 ? fields : [...fields, id, family, zones];
}

function layerFields(
  { id, parent, absorbedBy, flatten }: LayerEntry,
  lists: ListTable,
): unknown[] {
  if (flatten !== undefined) {
    return [id, parent, null, flatten.disk, flatten.since, lists.indexOf(flatten.by)];
  }
  return absorbedBy === null ? [id, parent] : [id, parent, lists.indexOf(absorbedBy)];
}

function settingsFields(settings: Settings, version: number): unknown[] {
  return [
    settings.copies,
    settings.copiesMin,
    settings.outAfterMs,
    settings.trustedNetwork ? FLAG_TRUSTED_NETWORK : 0,
    ...(version === 2 ? [] : [settings.trashMs]),
  ];
}

function diskFields(disk: DiskEntry, version: number): unknown[] {
  return [
    disk.id,
    disk.name,
    disk.sizeBytes,
    // The others follow from the trees of layers.
    disk.layers.slice(0, 1),
    disk.createdMs,
    (disk.readOnly ? FLAG_READ_ONLY : 0) | (disk.detectZeroes ? FLAG_DETECT_ZEROES : 0),
    disk.copies,
    disk.generation,
    Object.fromEntries(Object.entries(disk.attributes).toSorted(byKey)),
    disk.copiesMin,
    disk.family,
    disk.lease === null ? null : [disk.lease.node, disk.lease.incarnation],
    disk.settled,
    ...(version === 2 ? [] : [
      disk.snapshots.map(snapshotFields),
      limitsFields(disk.limits),
      disk.schedules.map(scheduleFields),
    ]),
    ...(version === 2 ? [] : lastFields(disk)),
  ];
}

function lastFields(disk: DiskEntry): unknown[] {
  const placement = placementFields(disk);
  const { node, generation, before } = disk.written;
  if (generation === 0) return placement;
  return [...(placement.length === 0 ? [null] : placement), [node, generation, before]];
}

function placementFields({ copies, pool, placedEpoch, settledBefore }: DiskEntry): unknown[] {
  if (pool !== copies) return [[placedEpoch, settledBefore, pool]];
  return placedEpoch === 0 ? [] : [[placedEpoch, settledBefore]];
}

function snapshotFields(snapshot: SnapshotEntry): unknown[] {
  const { name, layer, sizeBytes, createdMs, isProtected, taking, isDrained, isAborted } = snapshot;
  const flags = (isProtected ? FLAG_PROTECTED : 0) | (isDrained ? FLAG_DRAINED : 0) |
    (isAborted ? FLAG_ABORTED : 0);
  return [name, layer, sizeBytes, createdMs, flags, taking];
}

function limitsFields(limits: Limits): number[] | null {
  const fields = limitNumbers(limits);
  return fields.every((each) => each === 0) ? null : fields;
}

function scheduleFields(schedule: Schedule): unknown[] {
  const { name, everyMs, keep, keepDaily, keepWeekly, keepMonthly, createdMs } = schedule;
  return [name, everyMs, keep, keepDaily, keepWeekly, keepMonthly, createdMs];
}

function nodeFields(node: NodeEntry, version: number): unknown[] {
  return [
    node.id,
    bytesOfHex(node.uuid),
    node.name,
    node.address,
    node.zone,
    node.capacityBytes,
    node.weight,
    (node.witness ? FLAG_WITNESS : 0) | (node.state === "down" ? FLAG_DOWN : 0) |
    (AVAILABILITIES.indexOf(node.availability) << AVAILABILITY_SHIFT),
    node.incarnation,
    node.bootId,
    node.version,
    node.protocol,
    node.requestSequence,
    node.changedMs,
    ...(version === 2 ? [] : [node.protocolMin]),
  ];
}

function bytesOfHex(hex: string): Uint8Array {
  return Uint8Array.from(
    { length: hex.length / 2 },
    (_, index) => parseInt(hex.slice(2 * index, 2 * index + 2), 16),
  );
}

function byKey(a: [string, string], b: [string, string]): number {
  return a[0] < b[0] ? -1 : 1;
}

/**
 * Decodes a map, from a file or a peer.
 *
 * @param bytes anything; not kept
 * @returns the map, or an error: `corrupt` for bytes that are no map, `limit` for a newer version
 */
export function decodeMap(bytes: Uint8Array): Result<ClusterMap> {
  if (bytes.length > MAP_BYTES_MAX) {
    return corrupt(`it has ${bytes.length} bytes, and ${MAP_BYTES_MAX} is the most`);
  }
  let decoded: unknown;
  try {
    decoded = packr.unpack(bytes);
  } catch {
    return corrupt("it is not MessagePack");
  }
  if (!Array.isArray(decoded) || decoded.length !== 3 || decoded[0] !== MAGIC) {
    return corrupt(`it does not begin with ${MAGIC}`);
  }
  const version: unknown = decoded[1];
  if (typeof version !== "number" || !Number.isInteger(version) || version < 1) {
    return corrupt("its version is not a number");
  }
  if (version > MAP_VERSION) {
    return failure(
      "limit",
      `the cluster map has version ${version}, and this Kelpie reads up to ${MAP_VERSION}`,
      "use the Kelpie that wrote it, or a newer one",
    );
  }
  if (version === 3) return corrupt("version 3 was never that of a release");
  const map = version === 1
    ? readMapV1(decoded[2])
    : version === 2
    ? readMapV2(decoded[2])
    : readMap(decoded[2]);
  if (map === null) return corrupt("a field has the wrong type, or too many entries");
  if (version >= 2 && version !== versionOf(map.level)) {
    return corrupt(`version ${version} is not that of level ${map.level}`);
  }
  const error = checkMap(map);
  return error === null ? success(map) : { ok: false, error };
}

function corrupt(reason: string): Result<ClusterMap> {
  return failure("corrupt", `the cluster map is damaged: ${reason}`);
}

/** The same without what version 4 appended. */
function readMapV2(value: unknown): ClusterMap | null {
  if (!Array.isArray(value) || value.length !== 13) return null;
  const nodes = extended(value[7], 14, [1]);
  const disks = extended(value[4], 13, [[], null, []]);
  const settings = extended([value[3]], 4, [DEFAULT_SETTINGS.trashMs])?.[0];
  if (nodes === null || disks === null || settings === undefined) return null;
  const layers = layersOfV2(value[4]);
  return readMap([
    ...value.with(7, nodes).with(4, disks).with(3, settings),
    1,
    layers,
    [],
    [],
  ]);
}

/** A list of lists of a length, each of them with more at its end. */
function extended(value: unknown, length: number, more: unknown[]): unknown[][] | null {
  if (!Array.isArray(value)) return null;
  const isRight = value.every((each) => Array.isArray(each) && each.length === length);
  return isRight ? value.map((each) => [...each, ...more]) : null;
}

/** Every disk has one layer of its own. */
function layersOfV2(disks: unknown[][]): unknown[] {
  const layers = disks.flatMap((disk) => isNumbers(disk[3]) ? disk[3].slice(0, 1) : []);
  return layers.toSorted((a, b) => a - b).map((id) => [id, 0]);
}

function readMap(value: unknown): ClusterMap | null {
  if (!Array.isArray(value) || value.length !== 17) return null;
  const [epoch, nextDisk, nextLayer] = value;
  const settings = readSettings(value[3]);
  const lists = readList(value[16], (list) => isNumbers(list) ? list : null, SNAPSHOTS_MAX);
  if (lists === null) return null;
  const layers = readList(value[14], (layer) => readLayer(layer, lists), SNAPSHOTS_MAX);
  if (layers === null) return null;
  const parents = new Map(layers.map(({ id, parent }) => [id, parent]));
  const disks = readList(value[4], (disk) => readDisk(disk, parents), DISKS_MAX);
  const trash = readList(value[15], (entry) => readTrash(entry, parents), TRASH_MAX);
  const clusterId = value[5] === null ? "" : readUuid(value[5]);
  const nextNode = value[6];
  const nodes = readList(value[7], readNode, NODES_MAX);
  const voters = value[8];
  const pgBits = value[9];
  const targetsEpoch = value[10];
  const level = value[13];
  if (!isNumbers([epoch, nextDisk, nextLayer, nextNode, pgBits, targetsEpoch, level])) return null;
  if (!(pgBits >= 0 && pgBits <= PG_BITS_MAX)) return null;
  const pools = readList(
    value[11],
    (item) => readPool(item, 2 ** pgBits, level > 1),
    COPIES_MAX + ZONED_POOLS_MAX + MOVES_MAX,
  );
  const losses = readList(value[12], readLoss, LOSSES_MAX);
  const readable = settings !== null && disks !== null && clusterId !== null && nodes !== null &&
    isNumbers(voters) && pools !== null && losses !== null && trash !== null;
  if (!readable) return null;
  return {
    epoch,
    level,
    clusterId,
    nextDisk,
    nextLayer,
    nextNode,
    settings,
    nodes,
    voters,
    pgBits,
    targetsEpoch,
    pools,
    disks,
    layers,
    trash,
    losses,
  };
}

function readLayer(value: unknown, lists: readonly number[][]): LayerEntry | null {
  if (!Array.isArray(value) || value.length < 2) return null;
  if (value.length === 6) return readFlattened(value, lists);
  if (value.length > 3) return null;
  const [id, parent, list] = value;
  if (!isNumbers([id, parent])) return null;
  if (value.length === 2) return { id, parent, absorbedBy: null };
  return Number.isInteger(list) && list >= 0 && list < lists.length
    ? { id, parent, absorbedBy: lists[list] }
    : null;
}

function readFlattened(value: unknown[], lists: readonly number[][]): LayerEntry | null {
  const [id, parent, absorbed, disk, since, list] = value;
  const numbers = [id, parent, disk, since, list];
  if (!isNumbers(numbers) || absorbed !== null || lists[numbers[4]] === undefined) return null;
  const flatten = { disk: numbers[2], since: numbers[3], by: lists[numbers[4]] };
  return { id: numbers[0], parent: numbers[1], absorbedBy: null, flatten };
}

function readTrash(value: unknown, parents: Parents): TrashEntry | null {
  if (!Array.isArray(value) || value.length !== 3) return null;
  const disk = readDisk(value[0], parents);
  const [, deletedMs, expiresMs] = value;
  return disk === null || !isNumbers([deletedMs, expiresMs])
    ? null
    : { disk, deletedMs, expiresMs };
}

function readMapV1(value: unknown): ClusterMap | null {
  if (!Array.isArray(value) || value.length !== 5) return null;
  const [epoch, nextDisk, nextLayer] = value;
  const settings = readSettingsV1(value[3]);
  const disks = readList(value[4], readDiskV1, DISKS_MAX);
  if (!isNumbers([epoch, nextDisk, nextLayer]) || settings === null || disks === null) return null;
  const layers = disks.flatMap((disk) => disk.layers).toSorted((a, b) => a - b)
    .map((id): LayerEntry => ({ id, parent: 0, absorbedBy: null }));
  return { ...EMPTY_MAP, epoch, nextDisk, nextLayer, settings, disks, layers };
}

function readSettings(value: unknown): Settings | null {
  if (!Array.isArray(value) || value.length !== 5) return null;
  const [copies, copiesMin, outAfterMs, flags, trashMs] = value;
  const readable = isNumbers([copies, outAfterMs, trashMs]) && isNumberOrNull(copiesMin) &&
    (flags === 0 || flags === FLAG_TRUSTED_NETWORK);
  if (!readable) return null;
  return { copies, copiesMin, outAfterMs, trustedNetwork: flags === FLAG_TRUSTED_NETWORK, trashMs };
}

function readSettingsV1(value: unknown): Settings | null {
  if (!Array.isArray(value) || value.length !== 1 || !isNumbers(value)) return null;
  return { ...DEFAULT_SETTINGS, copies: copiesOfV1(value[0]) };
}

/** Of each layer the one below. */
type Parents = ReadonlyMap<number, number>;

function readDisk(value: unknown, parents: Parents): DiskEntry | null {
  if (!Array.isArray(value) || value.length < 16 || value.length > 18) return null;
  const isPlain = value.length === 16 || (value.length === 18 && value[16] === null);
  const placement = isPlain ? [0, 0, value[6]] : readPlacement(value[16], value[6]);
  if (placement === null) return null;
  const flags = value[5];
  if (flags !== (flags & (FLAG_READ_ONLY | FLAG_DETECT_ZEROES))) return null;
  const disk = readDiskV1(value.slice(0, 9).with(5, flags & FLAG_READ_ONLY));
  const snapshots = readList(value[13], readSnapshot, SNAPSHOTS_PER_DISK_MAX);
  const limits = value[14] === null ? NO_LIMITS : readLimits(value[14]);
  const schedules = readList(value[15], readSchedule, SCHEDULES_MAX);
  const copiesMin = value[9];
  const lease = value[11] === null ? null : readLease(value[11]);
  const written = value.length === 18 ? readWritten(value[17]) : UNWRITTEN;
  const [family, settled] = [value[10], value[12]];
  const readable = isNumbers([family, settled]) && isNumberOrNull(copiesMin) && lease !== undefined;
  if (disk === null || !readable || disk.layers.length !== 1 || written === null) return null;
  if (snapshots === null || limits === null || schedules === null) return null;
  return {
    ...disk,
    layers: boundedChain(parents, disk.layers[0]),
    copies: value[6],
    pool: placement[2],
    copiesMin,
    family,
    lease,
    settled,
    written,
    snapshots,
    limits,
    schedules,
    detectZeroes: (flags & FLAG_DETECT_ZEROES) !== 0,
    placedEpoch: placement[0],
    settledBefore: placement[1],
  };
}

/** `placedEpoch`, `settledBefore` and the pool of a disk of which these are not all what they are where nothing is said. */
function readPlacement(value: unknown, copies: unknown): number[] | null {
  if (!isNumbers(value)) return null;
  const [placedEpoch, , pool] = value;
  if (value.length === 3) return pool === copies ? null : value;
  return value.length === 2 && placedEpoch !== 0 && typeof copies === "number"
    ? [...value, copies]
    : null;
}

/** The chain of a layer that comes from anywhere: what is no tree is not followed for ever, and refused by `checkMap`. */
function boundedChain(parents: Parents, newest: number): number[] {
  const chain = [newest];
  let at = newest;
  while (chain.length <= LAYERS_MAX) {
    const parent = parents.get(at) ?? 0;
    if (parent === 0 || parent >= at) break;
    chain.push(parent);
    at = parent;
  }
  return chain;
}

function readSnapshot(value: unknown): SnapshotEntry | null {
  if (!Array.isArray(value) || value.length !== 6) return null;
  const [name, layer, sizeBytes, createdMs, flags, taking] = value;
  const readable = typeof name === "string" &&
    isNumbers([layer, sizeBytes, createdMs, flags, taking]) &&
    flags === (flags & (FLAG_PROTECTED | FLAG_DRAINED | FLAG_ABORTED));
  return readable
    ? {
      name,
      layer,
      sizeBytes,
      createdMs,
      isProtected: (flags & FLAG_PROTECTED) !== 0,
      taking,
      isDrained: (flags & FLAG_DRAINED) !== 0,
      isAborted: (flags & FLAG_ABORTED) !== 0,
    }
    : null;
}

function readLimits(value: unknown): Limits | null {
  return isNumbers(value) && value.length === 5 ? limitsOf(value) : null;
}

function readSchedule(value: unknown): Schedule | null {
  if (!Array.isArray(value) || value.length !== 7) return null;
  const [name, ...numbers] = value;
  if (typeof name !== "string" || !isNumbers(numbers)) return null;
  const [everyMs, keep, keepDaily, keepWeekly, keepMonthly, createdMs] = numbers;
  return { name, everyMs, keep, keepDaily, keepWeekly, keepMonthly, createdMs };
}

function readLease(value: unknown): Lease | undefined {
  if (!isNumbers(value) || value.length !== 2) return undefined;
  return { node: value[0], incarnation: value[1] };
}

function readWritten(value: unknown): Written | null {
  if (!isNumbers(value) || value.length !== 3 || value[1] === 0) return null;
  return { node: value[0], generation: value[1], before: value[2] };
}

function readDiskV1(value: unknown): DiskEntry | null {
  if (!Array.isArray(value) || value.length !== 9) return null;
  const [id, name, sizeBytes, layers, createdMs, flags, copies, generation] = value;
  const attributes = readAttributes(value[8]);
  const readable = isNumbers([id, sizeBytes, createdMs, copies, generation]) && isNumbers(layers) &&
    typeof name === "string" && (flags === 0 || flags === FLAG_READ_ONLY);
  if (!readable || attributes === null) return null;
  return {
    id,
    name,
    sizeBytes,
    layers,
    createdMs,
    readOnly: flags === FLAG_READ_ONLY,
    copies: copiesOfV1(copies),
    pool: copiesOfV1(copies),
    copiesMin: null,
    family: id,
    placedEpoch: 0,
    settledBefore: 0,
    generation,
    lease: null,
    settled: generation,
    written: UNWRITTEN,
    attributes,
    snapshots: [],
    limits: NO_LIMITS,
    schedules: [],
    detectZeroes: false,
  };
}

/** Most copies of version 1. */
const COPIES_MAX_V1 = 8;

function copiesOfV1(copies: number): number {
  return copies > COPIES_MAX && copies <= COPIES_MAX_V1 ? COPIES_MAX : copies;
}

function readNode(value: unknown): NodeEntry | null {
  if (!Array.isArray(value) || value.length !== 15) return null;
  const uuid = readUuid(value[1]);
  const [id, , name, address, zone, capacityBytes, weight, flags, incarnation, bootId] = value;
  const [version, protocol, requestSequence, changedMs, protocolMin] = value.slice(10);
  const numbers = [id, capacityBytes, flags, incarnation, protocol, requestSequence, changedMs];
  const readable = isNumbers([...numbers, protocolMin]) && isNumberOrNull(weight) &&
    [name, address, zone, bootId, version].every((each) => typeof each === "string");
  const availability = AVAILABILITIES[flags >> AVAILABILITY_SHIFT];
  if (!readable || uuid === null || availability === undefined || !Number.isInteger(flags)) {
    return null;
  }
  return {
    id,
    uuid,
    name,
    address,
    zone,
    capacityBytes,
    weight,
    witness: (flags & FLAG_WITNESS) !== 0,
    state: (flags & FLAG_DOWN) !== 0 ? "down" : "up",
    availability,
    incarnation,
    bootId,
    version,
    protocolMin,
    protocol,
    requestSequence,
    changedMs,
  };
}

function readPool(value: unknown, pgCount: number, mayBeOther: boolean): Pool | null {
  const isGrowing = mayBeOther && Array.isArray(value) && Array.isArray(value[0]);
  if (!isGrowing) return readKind(value, pgCount, mayBeOther);
  const [fields, reached] = value;
  const pool = readKind(fields, pgCount, mayBeOther);
  return pool === null || value.length !== 2 || typeof reached !== "number"
    ? null
    : { ...pool, reached };
}

function readKind(value: unknown, pgCount: number, mayBeOther: boolean): Pool | null {
  if (!Array.isArray(value) || value.length < 2 || value.length > (mayBeOther ? 5 : 2)) return null;
  const [copies, table, id = copies, family = 0, last] = value;
  if (!isNumbers([copies, id, family]) || !(table instanceof Uint8Array)) return null;
  const kind = readKindOfPool(value.length, copies, family, last);
  const pgs = kind === null ? null : decodeGroups(table, pgCount);
  return kind === null || pgs === null ? null : { id, copies, ...kind, family, pgs };
}

/** What the number of fields of a pool, and the last of five, say. */
function readKindOfPool(
  length: number,
  copies: number,
  family: number,
  last: unknown,
): Pick<Pool, "zones" | "to"> | null {
  if (length === 2) return { zones: [], to: 0 };
  if (family !== 0) {
    if (length === 4) return { zones: [], to: copies };
    return length === 5 && typeof last === "number" && last !== copies
      ? { zones: [], to: last }
      : null;
  }
  const zones = readList(last, (zone) => typeof zone === "string" ? zone : null, ZONES_MAX);
  return zones === null || zones.length === 0 ? null : { zones, to: 0 };
}

function readLoss(value: unknown): LossEntry | null {
  if (!Array.isArray(value) || value.length !== 6) return null;
  const [epoch, nowMs, node, name, pool, pgs] = value;
  if (!isNumbers([epoch, nowMs, node, pool, pgs]) || typeof name !== "string") return null;
  return { epoch, nowMs, node, name, pool, pgs };
}

/** 16 bytes as 32 hexadecimal digits. */
function readUuid(value: unknown): string | null {
  if (!(value instanceof Uint8Array) || value.length !== UUID_BYTES) return null;
  return toHex(value);
}

function readAttributes(value: unknown): Attributes | null {
  if (typeof value !== "object" || value === null) return null;
  if (Object.getPrototypeOf(value) !== Object.prototype) return null;
  const entries = Object.entries(value);
  return entries.every(([, each]) => typeof each === "string") ? Object.fromEntries(entries) : null;
}

/** Reads a list of at most `lengthMax` items; nothing is read of one that is longer. */
function readList<T>(
  value: unknown,
  read: (item: unknown) => T | null,
  lengthMax: number,
): T[] | null {
  if (!Array.isArray(value) || value.length > lengthMax) return null;
  const items: T[] = [];
  for (const each of value) {
    const item = read(each);
    if (item === null) return null;
    items.push(item);
  }
  return items;
}

function isNumbers(value: unknown): value is number[] {
  return Array.isArray(value) && value.every((each) => typeof each === "number");
}

function isNumberOrNull(value: unknown): value is number | null {
  return value === null || typeof value === "number";
}
