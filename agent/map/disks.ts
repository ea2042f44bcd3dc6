/**
 * Commands about disks, their leases, and the settings.
 *
 * # Leases
 *
 * A lease belongs to one run of the agent on one node: (node, incarnation). Its number, the generation,
 * fences: replicas refuse every other one than the map's. What keeps two holders apart:
 *
 * - a lease is given away only when it is free, or its holder cannot come back to it (the node has
 *   another incarnation) or is down in the map. A holder that is down but does not know stops serving by
 *   itself T_SERVE after its last renewal, and the leader proposes the taking only T_GRANT after it can
 *   have been renewed last; that time is kept by the leader, since a map has no clock;
 * - whoever is to have a lease next may be in the log right behind its release, before that is applied:
 *   they are applied in this order, or the taking finds the lease held and is refused;
 * - the same holder may take its own lease again (another front end of the same agent): the generation
 *   rises, and the agent itself knows what is in flight;
 * - a command that is delivered twice finds another generation (`release-lease`, `reconciled`) or the
 *   number of its proposal used up (`proposals.ts`).
 *
 * `settled` says how far all members are known to be equal. A clean release settles its own generation;
 * any other end leaves it, and the next holder reconciles before it serves.
 *
 * `written` says under which leases that are over the disk may have been changed, and by whom last: a guest that its agent has left
 * running, and that comes back when the agent has started again, must not go on if others have (`vhost/session.ts`). A lease counts
 * unless its holder says at its end that it has written nothing; a rollback counts as somebody else's.
 *
 * # Another number of copies, or other zones
 *
 * is another pool, and a chunk has the same PG number in every pool (`pgCount` is the cluster's): see `copies.ts`. At
 * level 1 a disk may change pools at once, where everybody who is in sync in the new one's PG is in sync in the old one's:
 * then every acknowledged write is where it will be read. Otherwise its data would have to move first.
 * Front ends of disks of one family share layers, so a disk that has relatives cannot change alone.
 *
 * @module
 */

import { changed, stale, unchanged } from "./change.ts";
import { applyCopiesCommand } from "./copies.ts";
import { failure, type Result, success } from "./errors.ts";
import {
  checkAttributes,
  checkCopies,
  checkCopiesMin,
  checkLimits,
  checkSettings,
  checkSize,
  checkTime,
  limitNumbers,
  limitsOf,
} from "./fields.ts";
import { poolsForDisk, poolsForOtherCopies, withJoinersAnew } from "./groups.ts";
import { collectLayers, withLayer } from "./layers.ts";
import { isOn } from "./levels.ts";
import {
  type Applied,
  type Attributes,
  type ChangeDisk,
  type ChangeSettings,
  type ClusterMap,
  COPIES_MAX,
  type CreateDisk,
  type DeleteDisk,
  type DiskCommand,
  type DiskEntry,
  DISKS_MAX,
  type ForceReleaseLease,
  ID_MAX,
  type MapEffect,
  NO_LIMITS,
  type Pool,
  type Reconciled,
  type ReleaseLease,
  type RenameDisk,
  type ResizeDisk,
  type Settings,
  SNAPSHOTS_MAX,
  type TakeLease,
  UNWRITTEN,
} from "./model.ts";
import { checkDiskName } from "./names.ts";
import {
  diskIndexOf,
  diskMissing,
  findDisk,
  findNode,
  isHolding,
  nodeMissing,
  poolIdOf,
  poolOfFamily,
  withoutLease,
  writtenAfter,
} from "./queries.ts";
import {
  completed,
  drained,
  drainingLayer,
  reasonAgainstTrash,
  takingOf,
  trashed,
} from "./snapshots.ts";
import { checkZones, sortedZones } from "./zones.ts";

/** Carries out a command about disks; see `apply`. */
export function applyDiskCommand(map: ClusterMap, command: DiskCommand): Result<Applied> {
  switch (command.kind) {
    case "create-disk":
      return createDisk(map, command);
    case "delete-disk":
      return deleteDisk(map, command);
    case "resize-disk":
      return resizeDisk(map, command);
    case "rename-disk":
      return renameDisk(map, command);
    case "change-disk":
      return changeDisk(map, command);
    case "take-lease":
      return takeLease(map, command);
    case "release-lease":
      return releaseLease(map, command);
    case "force-release-lease":
      return forceReleaseLease(map, command);
    case "reconciled":
      return reconciled(map, command);
    case "set-copies":
    case "finish-copies":
      return applyCopiesCommand(map, command);
    case "change-settings":
      return changeSettings(map, command);
  }
}

function createDisk(map: ClusterMap, command: CreateDisk): Result<Applied> {
  const copies = command.copies ?? map.settings.copies;
  const copiesMin = command.copiesMin ?? null;
  const zones = sortedZones(command.zones ?? []);
  const error = checkDiskName(command.name) ?? checkSize(command.sizeBytes) ??
    checkCopies(copies) ?? checkCopiesMin(copiesMin, copies) ?? checkZones(map, zones) ??
    checkAttributes(command.attributes ?? {}) ?? checkTime(command.nowMs);
  if (error !== null) return { ok: false, error };
  if (findDisk(map, command.name) !== undefined) return taken(command.name);
  if (map.disks.length >= DISKS_MAX) {
    return failure("limit", `there are ${DISKS_MAX} disks, which is the most`);
  }
  if (map.nextDisk > ID_MAX || map.nextLayer > ID_MAX) {
    return failure("limit", `all ${ID_MAX} disk or layer ids have been used`);
  }
  if (map.layers.length >= SNAPSHOTS_MAX) {
    return failure("limit", `${SNAPSHOTS_MAX} layers are the most of one cluster`);
  }
  // The disk's number makes that of a pool, too, where one is made.
  const pools = poolsForDisk(map, { copies, zones, id: COPIES_MAX + map.nextDisk });
  if (!pools.ok) return pools;
  const layer = map.nextLayer;
  const disk: DiskEntry = {
    id: map.nextDisk,
    name: command.name,
    sizeBytes: command.sizeBytes,
    layers: [layer],
    createdMs: command.nowMs,
    readOnly: command.readOnly ?? false,
    copies,
    pool: pools.value.id,
    copiesMin,
    family: map.nextDisk,
    placedEpoch: 0,
    settledBefore: 0,
    generation: 0,
    lease: null,
    settled: 0,
    written: UNWRITTEN,
    attributes: { ...command.attributes },
    snapshots: [],
    limits: NO_LIMITS,
    schedules: [],
    detectZeroes: command.detectZeroes ?? false,
  };
  const fields = {
    nextDisk: map.nextDisk + 1,
    nextLayer: layer + 1,
    layers: withLayer(map.layers, layer, 0),
    ...withPools(map, pools.value.pools),
    disks: insert(map.disks, disk),
  };
  return changed(map, fields, [
    { kind: "layer-created", layer },
    { kind: "disk-added", disk },
  ]);
}

function deleteDisk(map: ClusterMap, command: DeleteDisk): Result<Applied> {
  const disk = findDisk(map, command.name);
  if (disk === undefined) return { ok: false, error: diskMissing(command.name) };
  if (command.id !== undefined && command.id !== disk.id) {
    return stale(`disk ${disk.name} is another one by now`);
  }
  const kept = disk.snapshots.find((snapshot) => snapshot.isProtected);
  if (kept !== undefined) {
    return failure(
      "busy",
      `snapshot ${disk.name}@${kept.name} is protected`,
      `'kelpie disk snapshot unprotect ${disk.name}@${kept.name}' first`,
    );
  }
  let { trash } = map;
  const removed: MapEffect = { kind: "disk-removed", disk };
  if (command.trashedMs !== undefined && map.settings.trashMs > 0) {
    const error = checkTime(command.trashedMs);
    if (error !== null) return { ok: false, error };
    const full = reasonAgainstTrash(map);
    if (full !== null) return full;
    const entry = trashed(map, disk, command.trashedMs);
    trash = [...map.trash, entry].toSorted((a, b) => a.disk.id - b.disk.id);
  }
  // Snapshots that were begun together with one of this disk do not wait for it.
  const together = completed(without(map.disks, disk), takingOf(disk)?.taking ?? 0);
  const collected = collectLayers({ ...map, disks: together.disks, trash });
  return changed(map, collected.fields, [removed, ...together.effects, ...collected.effects]);
}

function resizeDisk(map: ClusterMap, command: ResizeDisk): Result<Applied> {
  const error = checkSize(command.sizeBytes);
  if (error !== null) return { ok: false, error };
  const disk = findDisk(map, command.name);
  if (disk === undefined) return { ok: false, error: diskMissing(command.name) };
  const previousBytes = disk.sizeBytes;
  if (command.sizeBytes === previousBytes) return unchanged(map);
  if (command.sizeBytes < previousBytes && command.shrink !== true) {
    return failure(
      "invalid",
      `${command.sizeBytes} bytes are less than the ${previousBytes} bytes that disk ` +
        `${disk.name} has; what lies beyond would be lost`,
      "allow it with 'shrink' (on the command line: --shrink)",
    );
  }
  // Asked here and not only before: somebody may have opened it while what lies beyond was being forgotten.
  if (command.sizeBytes < previousBytes && disk.lease !== null && isOn(map, 2)) {
    const holder = findNode(map, disk.lease.node);
    return failure(
      "busy",
      `disk ${disk.name} is in use on node ${holder?.name ?? disk.lease.node}, and can only grow`,
      "stop the guest there",
    );
  }
  const next = { ...disk, sizeBytes: command.sizeBytes };
  return changed(map, { disks: replaced(map.disks, disk, next) }, [
    { kind: "disk-resized", disk: next, previousBytes },
  ]);
}

function renameDisk(map: ClusterMap, command: RenameDisk): Result<Applied> {
  const error = checkDiskName(command.newName);
  if (error !== null) return { ok: false, error };
  const disk = findDisk(map, command.name);
  if (disk === undefined) return { ok: false, error: diskMissing(command.name) };
  if (command.newName === command.name) return unchanged(map);
  if (findDisk(map, command.newName) !== undefined) return taken(command.newName);
  const next = { ...disk, name: command.newName };
  return changed(map, { disks: insert(without(map.disks, disk), next) }, [
    { kind: "disk-renamed", disk: next, previousName: command.name },
  ]);
}

function changeDisk(map: ClusterMap, command: ChangeDisk): Result<Applied> {
  const disk = findDisk(map, command.name);
  if (disk === undefined) return { ok: false, error: diskMissing(command.name) };
  const next: DiskEntry = {
    ...disk,
    readOnly: command.readOnly ?? disk.readOnly,
    copies: command.copies ?? disk.copies,
    pool: isOn(map, 2) ? disk.pool : command.copies ?? disk.pool,
    copiesMin: command.copiesMin === undefined ? disk.copiesMin : command.copiesMin,
    attributes: command.attributes === undefined ? disk.attributes : { ...command.attributes },
    limits: command.limits === undefined ? disk.limits : limitsOf(command.limits),
    detectZeroes: command.detectZeroes ?? disk.detectZeroes,
  };
  const error = checkCopies(next.copies) ?? checkCopiesMin(next.copiesMin, next.copies) ??
    checkAttributes(next.attributes) ?? checkLimits(next.limits);
  if (error !== null) return { ok: false, error };
  const same = next.readOnly === disk.readOnly && next.copies === disk.copies &&
    next.copiesMin === disk.copiesMin && sameAttributes(next.attributes, disk.attributes) &&
    next.detectZeroes === disk.detectZeroes &&
    limitNumbers(next.limits).join() === limitNumbers(disk.limits).join();
  if (same) return unchanged(map);
  if (next.copies !== disk.copies && isOn(map, 2)) {
    return failure("invalid", "another number of copies is set by itself", "use 'set-copies'");
  }
  const most = Math.min(next.copies, poolOfFamily(map, disk.family)?.copies ?? next.copies);
  if ((next.copiesMin ?? 0) > most) {
    return failure(
      "invalid",
      `copiesMin of ${next.copiesMin} is more than the ${most} copies that disk ${disk.name} is to have`,
    );
  }
  const pools = poolsForOtherCopies(map, disk, next.copies);
  if (!pools.ok) return pools;
  const fields = { disks: replaced(map.disks, disk, next), ...withPools(map, pools.value) };
  return changed(map, fields, [{ kind: "disk-changed", disk: next }]);
}

/** What changes with the pools: targets that a command has made up are not those that the leader would compute. */
function withPools(map: ClusterMap, pools: readonly Pool[]): Partial<ClusterMap> {
  return pools === map.pools ? {} : { pools, targetsEpoch: map.epoch + 1 };
}

function takeLease(map: ClusterMap, command: TakeLease): Result<Applied> {
  const disk = map.disks.find((each) => each.id === command.id);
  if (disk === undefined) return diskGone(command.id);
  if (command.generation !== undefined && command.generation !== disk.generation) {
    return stale(`disk ${disk.name} has been given to somebody meanwhile`);
  }
  const node = findNode(map, command.node);
  if (node === undefined) return { ok: false, error: nodeMissing(command.node) };
  if (node.incarnation !== command.incarnation || node.state !== "up") {
    return stale(`node ${node.name} has not asked for disk ${disk.name} in its present run`);
  }
  if (node.witness) return failure("invalid", `node ${node.name} is a witness and serves no disks`);
  const holder = disk.lease === null ? undefined : findNode(map, disk.lease.node);
  if (holder !== undefined && holder.id !== node.id && isHolding(holder, disk.lease)) {
    return failure(
      "busy",
      `disk ${disk.name} is open on node ${holder.name}`,
      "stop the guest there, or migrate it here",
    );
  }
  if (disk.generation >= ID_MAX) {
    return failure("limit", `disk ${disk.name} has used all ${ID_MAX} generations`);
  }
  const lease = { node: command.node, incarnation: command.incarnation };
  const written = writtenAfter(map, disk);
  const next = { ...disk, generation: disk.generation + 1, lease, written };
  const isUnclean = disk.settled < disk.generation;
  const pools = isUnclean ? withJoinersAfresh(map, poolIdOf(map, disk)) : map.pools;
  return changed(map, { disks: replaced(map.disks, disk, next), pools }, [
    { kind: "lease-taken", disk: next },
  ]);
}

/**
 * Whoever joins begins again, by comparing stamps. The last holder may have left a write on members in sync after they had told a
 * joiner what they have, and before it came to the joiner: on all of those the disk's new holder sees no difference that it
 * would have to settle, and no joiner would ever look again.
 */
function withJoinersAfresh(map: ClusterMap, id: number): readonly Pool[] {
  const epoch = map.epoch + 1;
  return map.pools.map((pool) => {
    if (pool.id !== id || pool.pgs.every((pg) => pg.joining.length === 0)) return pool;
    const pgs = pool.pgs.map((pg) => pg.joining.length === 0 ? pg : withJoinersAnew(pg, epoch));
    return { ...pool, pgs };
  });
}

function releaseLease(map: ClusterMap, command: ReleaseLease): Result<Applied> {
  const disk = map.disks.find((each) => each.id === command.id);
  if (disk === undefined) return diskGone(command.id);
  if (disk.lease?.node !== command.node || disk.generation !== command.generation) {
    return stale(`generation ${command.generation} of disk ${disk.name} is over already`);
  }
  const ended = { ...withoutLease(map, disk, command.unwritten), settled: command.generation };
  if (drainingLayer(disk) === 0) return released(map, disk, ended);
  // Everything that it gave out has come back, also what belongs to a snapshot that is being taken.
  const done = drained(map, ended);
  if (!done.ok) return done;
  const { disks } = done.value.map;
  const next = disks.find((each) => each.id === disk.id)!;
  return success({
    map: done.value.map,
    effects: [
      { kind: "lease-released", disk: next, previous: disk.lease },
      ...done.value.effects,
    ],
  });
}

function forceReleaseLease(map: ClusterMap, command: ForceReleaseLease): Result<Applied> {
  const disk = map.disks.find((each) => each.id === command.id);
  if (disk === undefined) return diskGone(command.id);
  if (disk.generation !== command.generation) {
    return stale(`disk ${disk.name} has generation ${disk.generation} now`);
  }
  return disk.lease === null
    ? unchanged(map)
    : released(map, disk, withoutLease(map, disk, command.unwritten));
}

function released(map: ClusterMap, disk: DiskEntry, next: DiskEntry): Result<Applied> {
  return changed(map, { disks: replaced(map.disks, disk, next) }, [
    { kind: "lease-released", disk: next, previous: disk.lease! },
  ]);
}

function reconciled(map: ClusterMap, command: Reconciled): Result<Applied> {
  const disk = map.disks.find((each) => each.id === command.id);
  if (disk === undefined) return diskGone(command.id);
  if (disk.lease === null || disk.generation !== command.generation) {
    return stale(`generation ${command.generation} of disk ${disk.name} is over already`);
  }
  if (disk.settled >= command.generation - 1) return unchanged(map);
  const next = { ...disk, settled: command.generation - 1 };
  return changed(map, { disks: replaced(map.disks, disk, next) }, [
    { kind: "disk-reconciled", disk: next },
  ]);
}

function changeSettings(map: ClusterMap, command: ChangeSettings): Result<Applied> {
  const old = map.settings;
  const settings: Settings = {
    copies: command.copies ?? old.copies,
    copiesMin: command.copiesMin === undefined ? old.copiesMin : command.copiesMin,
    outAfterMs: command.outAfterMs ?? old.outAfterMs,
    trustedNetwork: command.trustedNetwork ?? old.trustedNetwork,
    trashMs: command.trashMs ?? old.trashMs,
  };
  const error = checkSettings(settings);
  if (error !== null) return { ok: false, error };
  const same = settings.copies === old.copies && settings.copiesMin === old.copiesMin &&
    settings.outAfterMs === old.outAfterMs && settings.trustedNetwork === old.trustedNetwork &&
    settings.trashMs === old.trashMs;
  return same ? unchanged(map) : changed(map, { settings });
}

function diskGone(id: number): Result<Applied> {
  return failure("missing", `there is no disk with id ${id}`);
}

function taken(name: string): Result<Applied> {
  return failure("exists", `there is already a disk named ${JSON.stringify(name)}`);
}

function insert(disks: readonly DiskEntry[], disk: DiskEntry): readonly DiskEntry[] {
  return disks.toSpliced(diskIndexOf(disks, disk.name), 0, disk);
}

function without(disks: readonly DiskEntry[], disk: DiskEntry): readonly DiskEntry[] {
  return disks.toSpliced(disks.indexOf(disk), 1);
}

/** `next` in the place of `disk`; both have the same name. */
function replaced(
  disks: readonly DiskEntry[],
  disk: DiskEntry,
  next: DiskEntry,
): readonly DiskEntry[] {
  return disks.with(disks.indexOf(disk), next);
}

function sameAttributes(a: Attributes, b: Attributes): boolean {
  const keys = Object.keys(a);
  return keys.length === Object.keys(b).length && keys.every((key) => a[key] === b[key]);
}
