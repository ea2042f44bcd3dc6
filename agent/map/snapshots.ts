/**
 * Commands about snapshots, clones, the trash, and what the cluster does by a schedule.
 *
 * # Taking a snapshot
 *
 *     create-snapshots   the disk gets a new newest layer; what was the newest is the snapshot's
 *                        nobody holds the lease ─▶ complete
 *                        somebody holds it ─▶ "taking": new writes go to the new layer at once; those that were given out before
 *                        are finished in the old one, and synced
 *     snapshot-taken     the holder says so ─▶ drained; all that were begun together are drained ─▶ all are complete
 *     release-lease      in good order says the same; after any other end of a lease the next holder brings both layers in line
 *                        first, and then says it
 *     abort-snapshots    they will not be there; the layer is still waited for, since replicas may differ in it
 *
 * Several disks at one point in time: their holders give no write to a new layer back before all of the snapshots are complete.
 * A guest that has not got the answer to a write cannot have made another one because of it, so no disk's snapshot holds a write
 * that depends on one that another disk's lacks.
 *
 * A disk that is deleted meanwhile is not waited for: the others are complete without it. In the trash nobody would finish what is on
 * its way, so its own snapshot is given up; if it is restored, whoever has it next brings its layers in line.
 *
 * Invariants:
 * - a complete snapshot's layers are never written to; all replicas hold the same in them, synced where its disk was in use until it was
 *   complete (of one that nobody has they hold what was written: replicas sync it by themselves, `replication/closing.ts`);
 * - only a disk's newest snapshot may be "taking", and a disk takes one at a time;
 * - of those that are taken together and were not given up, at least one is not drained, and its disk is not in the trash: there is
 *   always somebody whose word, or whose end, completes them;
 * - a snapshot that is not complete can be neither read, cloned nor rolled back to.
 *
 * # Rolling back
 *
 * gives the disk a new layer above the snapshot's; what the disk held until then is a disk of its own in the trash, so nothing is
 * lost by a mistake. Only while nobody has the disk open.
 *
 * # Deleting
 *
 * takes the name away; what becomes of layers that nobody needs any more: `layers.ts`.
 *
 * @module
 */

import { changed, stale, unchanged } from "./change.ts";
import { type ControlError, failure, type Result } from "./errors.ts";
import { checkAttributes, checkSchedule, checkTime } from "./fields.ts";
import { flattenDisk, flattened } from "./flatten.ts";
import { chainOf, collectLayers, findLayer, withAbsorbed, withLayer } from "./layers.ts";
import {
  type AbortSnapshots,
  type Absorbed,
  type Applied,
  type ChangeSnapshot,
  type CloneDisk,
  type ClusterMap,
  type CreateSnapshots,
  type DeleteSchedule,
  type DeleteSnapshot,
  type DiskEntry,
  DISKS_MAX,
  ID_MAX,
  LAYERS_MAX,
  type MapEffect,
  NO_LIMITS,
  type PurgeDisk,
  type RestoreDisk,
  type RollbackDisk,
  type Schedule,
  SCHEDULES_MAX,
  type SetSchedule,
  SNAPSHOT_DISKS_MAX,
  type SnapshotCommand,
  type SnapshotEntry,
  SNAPSHOTS_MAX,
  SNAPSHOTS_PER_DISK_MAX,
  type SnapshotTaken,
  TRASH_MAX,
  type TrashEntry,
  UNWRITTEN,
} from "./model.ts";
import { checkDiskName, checkSnapshotName } from "./names.ts";
import {
  diskIndexOf,
  diskMissing,
  findDisk,
  findNode,
  isHolding,
  withoutLease,
} from "./queries.ts";

/** Carries out a command about snapshots and what belongs to them; see `apply`. */
export function applySnapshotCommand(map: ClusterMap, command: SnapshotCommand): Result<Applied> {
  switch (command.kind) {
    case "create-snapshots":
      return createSnapshots(map, command);
    case "snapshot-taken":
      return snapshotTaken(map, command);
    case "abort-snapshots":
      return abortSnapshots(map, command);
    case "delete-snapshot":
      return deleteSnapshot(map, command);
    case "change-snapshot":
      return changeSnapshot(map, command);
    case "clone-disk":
      return cloneDisk(map, command);
    case "rollback-disk":
      return rollbackDisk(map, command);
    case "restore-disk":
      return restoreDisk(map, command);
    case "purge-disk":
      return purgeDisk(map, command);
    case "absorbed":
      return absorbed(map, command);
    case "flatten-disk":
      return flattenDisk(map, command);
    case "flattened":
      return flattened(map, command);
    case "set-schedule":
      return setSchedule(map, command);
    case "delete-schedule":
      return deleteSchedule(map, command);
  }
}

// --------------------------------------------------------------------------------------- snapshots

/** The snapshot of a disk with this name, complete or not. */
export function findSnapshot(disk: DiskEntry, name: string): SnapshotEntry | undefined {
  return disk.snapshots.find((snapshot) => snapshot.name === name && !snapshot.isAborted);
}

/** The snapshot that is being taken of a disk, if one is: writes of before may still be on their way to its layer. */
export function takingOf(disk: DiskEntry): SnapshotEntry | undefined {
  const last = disk.snapshots.at(-1);
  return last !== undefined && last.taking !== 0 ? last : undefined;
}

/** The layer below the newest one, while writes that were given out before a snapshot may still arrive there; 0: none. */
export function drainingLayer(disk: DiskEntry): number {
  const taking = takingOf(disk);
  return taking !== undefined && !taking.isDrained ? taking.layer : 0;
}

function createSnapshots(map: ClusterMap, command: CreateSnapshots): Result<Applied> {
  const error = checkSnapshotName(command.name) ?? checkTime(command.nowMs);
  if (error !== null) return { ok: false, error };
  const count = command.disks.length;
  if (count < 1 || count > SNAPSHOT_DISKS_MAX || new Set(command.disks).size !== count) {
    return failure(
      "invalid",
      `a snapshot of ${count} disks at once cannot be taken: 1 to ${SNAPSHOT_DISKS_MAX} can, each once`,
    );
  }
  const byId = new Map(map.disks.map((disk) => [disk.id, disk]));
  const chosen: DiskEntry[] = [];
  for (const id of command.disks) {
    const disk = byId.get(id);
    if (disk === undefined) return failure("missing", `there is no disk with id ${id}`);
    const refusal = reasonAgainstSnapshot(map, disk, command.name);
    if (refusal !== null) return refusal;
    chosen.push(disk);
  }
  if (map.nextLayer + count - 1 > ID_MAX) {
    return failure("limit", `all ${ID_MAX} layer ids have been used`);
  }
  // Every snapshot has a layer of its own.
  if (map.layers.length + count > SNAPSHOTS_MAX) {
    return failure(
      "limit",
      `${SNAPSHOTS_MAX} snapshots and layers are the most of one cluster`,
      "delete snapshots that are not needed",
    );
  }
  // Where one of them has to be waited for, the others are complete only together with it.
  const taking = chosen.some((disk) => disk.lease !== null) ? map.epoch + 1 : 0;
  const layers = [...map.layers];
  const effects: MapEffect[] = [];
  for (const [index, disk] of chosen.entries()) {
    const layer = map.nextLayer + index;
    const snapshot: SnapshotEntry = {
      name: command.name,
      layer: disk.layers[0],
      sizeBytes: disk.sizeBytes,
      createdMs: command.nowMs,
      isProtected: false,
      taking,
      isDrained: disk.lease === null,
      isAborted: false,
    };
    const next: DiskEntry = {
      ...disk,
      layers: [layer, ...disk.layers],
      snapshots: [...disk.snapshots, snapshot],
    };
    byId.set(disk.id, next);
    layers.push({ id: layer, parent: disk.layers[0], absorbedBy: null });
    effects.push({ kind: "layer-created", layer }, { kind: "snapshots-changed", disk: next });
  }
  const disks = map.disks.map((disk) => byId.get(disk.id)!);
  return changed(map, { disks, layers, nextLayer: map.nextLayer + count }, effects);
}

function reasonAgainstSnapshot(
  map: ClusterMap,
  disk: DiskEntry,
  name: string,
): Result<Applied> | null {
  if (findSnapshot(disk, name) !== undefined) {
    return failure(
      "exists",
      `disk ${disk.name} has a snapshot named ${name} already`,
      "choose another name, or delete that one",
    );
  }
  // First: what such a disk's last snapshot waits for does not come by itself.
  const disorder = disorderOf(map, disk);
  if (disorder !== null) return { ok: false, error: disorder };
  if (takingOf(disk) !== undefined) {
    return failure(
      "busy",
      `a snapshot of disk ${disk.name} is being taken`,
      "try again in a moment",
    );
  }
  if (disk.snapshots.length >= SNAPSHOTS_PER_DISK_MAX) {
    return failure(
      "limit",
      `disk ${disk.name} has ${SNAPSHOTS_PER_DISK_MAX} snapshots, which is the most`,
      "delete some that are not needed",
    );
  }
  if (disk.layers.length >= LAYERS_MAX) {
    return failure(
      "limit",
      `disk ${disk.name} is read through ${LAYERS_MAX} layers, which is the most`,
      "bring back or remove nodes that are down, so that deleted snapshots can be merged",
    );
  }
  return null;
}

/**
 * Why a disk's replicas may differ until somebody opens it: whoever had it open is not there any more. What was on its way into a
 * snapshot of it does not arrive before either.
 *
 * @returns null where somebody has it open, or it was closed in good order
 */
export function disorderOf(map: ClusterMap, disk: DiskEntry): ControlError | null {
  const { lease } = disk;
  const holder = lease === null ? undefined : findNode(map, lease.node);
  if (isHolding(holder, lease) || (lease === null && disk.settled >= disk.generation)) return null;
  return {
    code: "busy",
    message: lease === null
      ? `disk ${disk.name} was not closed in good order, and its replicas may differ`
      : `the agent that had disk ${disk.name} open is not there any more, and its replicas may differ`,
    hint: hintToOpen(disk),
  };
}

/** Only who opens a disk to write brings its replicas in line; a write of nothing does. */
function hintToOpen({ name }: DiskEntry): string {
  return `start its guest, or open it once: 'kelpie disk write ${name} /dev/null' changes nothing`;
}

/** The disk with a change of its newest snapshot. */
function withNewest(disk: DiskEntry, change: Partial<SnapshotEntry>): DiskEntry {
  const { snapshots } = disk;
  return {
    ...disk,
    snapshots: snapshots.with(-1, { ...snapshots[snapshots.length - 1], ...change }),
  };
}

function snapshotTaken(map: ClusterMap, command: SnapshotTaken): Result<Applied> {
  const disk = map.disks.find((each) => each.id === command.id);
  if (disk === undefined) return failure("missing", `there is no disk with id ${command.id}`);
  const layer = drainingLayer(disk);
  const isHolder = disk.lease !== null && disk.generation === command.generation;
  if (!isHolder || layer === 0 || layer !== command.layer) {
    return stale(`the snapshot of disk ${disk.name} is not waited for any more`);
  }
  return drained(map, disk);
}

/**
 * Nothing is on its way any more into the snapshot that is being taken of a disk.
 *
 * @param map of which `disk` is an entry, or will be: it takes the place of the one with its id
 * @param disk of which a snapshot is waited for: it has a {@linkcode drainingLayer}
 */
export function drained(map: ClusterMap, disk: DiskEntry): Result<Applied> {
  const { taking, isAborted } = takingOf(disk)!;
  const next = isAborted ? withoutNewest(disk) : withNewest(disk, { isDrained: true });
  const disks = map.disks.map((each) => each.id === disk.id ? next : each);
  const effects: MapEffect[] = [{ kind: "snapshots-changed", disk: next }];
  if (!isAborted) {
    const together = completed(disks, taking);
    return changed(map, { disks: together.disks }, [
      // The disk's own is among them when they are complete.
      ...(together.effects.length === 0 ? effects : together.effects),
    ]);
  }
  const collected = collectLayers({ ...map, disks });
  return changed(map, collected.fields, [...effects, ...collected.effects]);
}

/**
 * Completes the snapshots that were begun together, if nobody is waited for any more.
 *
 * @param disks of the map as a command has left it
 * @param taking in which epoch they were begun
 * @returns the disks, and an effect for each that has a snapshot more
 */
export function completed(
  disks: readonly DiskEntry[],
  taking: number,
): { disks: readonly DiskEntry[]; effects: MapEffect[] } {
  const members = new Set(disks.filter((disk) => {
    const last = takingOf(disk);
    return last !== undefined && last.taking === taking && !last.isAborted;
  }));
  const effects: MapEffect[] = [];
  for (const disk of members) if (drainingLayer(disk) !== 0) return { disks, effects };
  if (members.size === 0) return { disks, effects };
  const next = disks.map((disk) => {
    if (!members.has(disk)) return disk;
    const complete = withNewest(disk, { taking: 0 });
    effects.push({ kind: "snapshots-changed", disk: complete });
    return complete;
  });
  return { disks: next, effects };
}

/**
 * The disk without the snapshot that is being taken of it: gone at once where nothing is on its way into it, else when that has
 * arrived. The same disk where none is.
 */
export function givenUp(disk: DiskEntry): DiskEntry {
  const last = takingOf(disk);
  if (last === undefined || last.isAborted) return disk;
  return last.isDrained ? withoutNewest(disk) : withNewest(disk, { isAborted: true });
}

function withoutNewest(disk: DiskEntry): DiskEntry {
  return { ...disk, snapshots: disk.snapshots.slice(0, -1) };
}

function abortSnapshots(map: ClusterMap, { taking }: AbortSnapshots): Result<Applied> {
  const isMeant = (disk: DiskEntry) => {
    const last = takingOf(disk);
    return last !== undefined && last.taking === taking && !last.isAborted;
  };
  if (taking === 0 || !map.disks.some(isMeant)) {
    return stale("these snapshots are complete, or were given up already");
  }
  const effects: MapEffect[] = [];
  const disks = map.disks.map((disk) => {
    if (!isMeant(disk)) return disk;
    const next = givenUp(disk);
    effects.push({ kind: "snapshots-changed", disk: next });
    return next;
  });
  const collected = collectLayers({ ...map, disks });
  return changed(map, collected.fields, [...effects, ...collected.effects]);
}

function deleteSnapshot(map: ClusterMap, command: DeleteSnapshot): Result<Applied> {
  const found = completeSnapshot(map, command.disk, command.name);
  if (!found.ok) return found;
  const { disk, snapshot } = found.value;
  if (command.layer !== undefined && command.layer !== snapshot.layer) {
    return stale(`snapshot ${disk.name}@${snapshot.name} is another one by now`);
  }
  if (snapshot.isProtected) {
    return failure(
      "busy",
      `snapshot ${disk.name}@${snapshot.name} is protected`,
      `'kelpie disk snapshot unprotect ${disk.name}@${snapshot.name}' first`,
    );
  }
  const next = { ...disk, snapshots: disk.snapshots.filter((each) => each !== snapshot) };
  const disks = map.disks.with(map.disks.indexOf(disk), next);
  const collected = collectLayers({ ...map, disks });
  return changed(map, collected.fields, [
    { kind: "snapshots-changed", disk: collectedDisk(collected.fields.disks, next) },
    ...collected.effects,
  ]);
}

function changeSnapshot(map: ClusterMap, command: ChangeSnapshot): Result<Applied> {
  const found = completeSnapshot(map, command.disk, command.name);
  if (!found.ok) return found;
  const { disk, snapshot } = found.value;
  const name = command.newName ?? snapshot.name;
  const error = checkSnapshotName(name);
  if (error !== null) return { ok: false, error };
  if (name !== snapshot.name && findSnapshot(disk, name) !== undefined) {
    return failure("exists", `disk ${disk.name} has a snapshot named ${name} already`);
  }
  const isProtected = command.isProtected ?? snapshot.isProtected;
  if (name === snapshot.name && isProtected === snapshot.isProtected) return unchanged(map);
  const snapshots = disk.snapshots.with(disk.snapshots.indexOf(snapshot), {
    ...snapshot,
    name,
    isProtected,
  });
  const next = { ...disk, snapshots };
  return changed(map, { disks: map.disks.with(map.disks.indexOf(disk), next) }, [
    { kind: "snapshots-changed", disk: next },
  ]);
}

/** A snapshot that can be used. */
function completeSnapshot(
  map: ClusterMap,
  diskName: string,
  name: string,
): Result<{ disk: DiskEntry; snapshot: SnapshotEntry }> {
  const disk = findDisk(map, diskName);
  if (disk === undefined) return { ok: false, error: diskMissing(diskName) };
  const snapshot = findSnapshot(disk, name);
  if (snapshot === undefined) {
    return failure(
      "missing",
      `disk ${diskName} has no snapshot named ${JSON.stringify(name)}`,
      `'kelpie disk snapshot list ${diskName}' shows those that it has`,
    );
  }
  if (snapshot.taking !== 0) {
    return failure("busy", `snapshot ${diskName}@${name} is being taken`, "try again in a moment");
  }
  return { ok: true, value: { disk, snapshot } };
}

function collectedDisk(disks: readonly DiskEntry[], disk: DiskEntry): DiskEntry {
  return disks.find((each) => each.id === disk.id) ?? disk;
}

// ---------------------------------------------------------------------------- clones and rolling back

function cloneDisk(map: ClusterMap, command: CloneDisk): Result<Applied> {
  const found = completeSnapshot(map, command.disk, command.snapshot);
  if (!found.ok) return found;
  const { disk: origin, snapshot } = found.value;
  const error = checkDiskName(command.name) ?? checkAttributes(command.attributes ?? {}) ??
    checkTime(command.nowMs);
  if (error !== null) return { ok: false, error };
  const refusal = reasonAgainstDisk(map, command.name);
  if (refusal !== null) return refusal;
  const layer = map.nextLayer;
  const chain = chainOf(map.layers, snapshot.layer);
  if (chain.length >= LAYERS_MAX) {
    return failure(
      "limit",
      `snapshot ${origin.name}@${snapshot.name} is read through ${LAYERS_MAX} layers, which is the most`,
      "make an independent copy with --full",
    );
  }
  const disk: DiskEntry = {
    id: map.nextDisk,
    name: command.name,
    sizeBytes: snapshot.sizeBytes,
    layers: [layer, ...chain],
    createdMs: command.nowMs,
    readOnly: command.readOnly ?? false,
    copies: origin.copies,
    pool: origin.pool,
    copiesMin: origin.copiesMin,
    family: origin.family,
    placedEpoch: origin.placedEpoch,
    settledBefore: origin.settledBefore,
    // Stamps of what it shares are below those of what it writes, also where the two become one.
    generation: origin.generation,
    lease: null,
    settled: origin.generation,
    written: UNWRITTEN,
    attributes: { ...command.attributes },
    snapshots: [],
    limits: NO_LIMITS,
    schedules: [],
    detectZeroes: origin.detectZeroes,
  };
  const fields = {
    nextDisk: map.nextDisk + 1,
    nextLayer: layer + 1,
    layers: withLayer(map.layers, layer, snapshot.layer),
    disks: map.disks.toSpliced(diskIndexOf(map.disks, disk.name), 0, disk),
  };
  return changed(map, fields, [
    { kind: "layer-created", layer },
    { kind: "disk-added", disk },
  ]);
}

/** Why there cannot be a disk of this name, made of layers that there are. */
function reasonAgainstDisk(map: ClusterMap, name: string): Result<Applied> | null {
  if (findDisk(map, name) !== undefined) {
    return failure("exists", `there is already a disk named ${JSON.stringify(name)}`);
  }
  if (map.disks.length >= DISKS_MAX) {
    return failure("limit", `there are ${DISKS_MAX} disks, which is the most`);
  }
  if (map.nextDisk > ID_MAX || map.nextLayer > ID_MAX) {
    return failure("limit", `all ${ID_MAX} disk or layer ids have been used`);
  }
  return map.layers.length < SNAPSHOTS_MAX
    ? null
    : failure("limit", `${SNAPSHOTS_MAX} layers are the most of one cluster`);
}

function rollbackDisk(map: ClusterMap, command: RollbackDisk): Result<Applied> {
  const found = completeSnapshot(map, command.disk, command.snapshot);
  if (!found.ok) return found;
  const { disk, snapshot } = found.value;
  const error = checkTime(command.nowMs);
  if (error !== null) return { ok: false, error };
  // First: whoever had it open may be gone, with no guest left that could be stopped, and may have left writes on some replicas only.
  const disorder = disorderOf(map, disk);
  if (disorder !== null) return { ok: false, error: disorder };
  if (disk.lease !== null) {
    return failure("busy", `disk ${disk.name} is open`, "stop the guest that uses it first");
  }
  if (takingOf(disk) !== undefined) {
    return failure(
      "busy",
      `a snapshot of disk ${disk.name} is being taken`,
      "try again in a moment",
    );
  }
  if (map.nextLayer > ID_MAX || map.nextDisk > ID_MAX) {
    return failure("limit", `all ${ID_MAX} disk or layer ids have been used`);
  }
  if (map.layers.length >= SNAPSHOTS_MAX) {
    return failure("limit", `${SNAPSHOTS_MAX} layers are the most of one cluster`);
  }
  const full = reasonAgainstTrash(map);
  if (full !== null) return full;
  const layer = map.nextLayer;
  const next: DiskEntry = {
    ...disk,
    sizeBytes: snapshot.sizeBytes,
    layers: [layer, ...chainOf(map.layers, snapshot.layer)],
    // A guest that an agent has left behind would go on from what the disk held before.
    written: { node: 0, generation: disk.generation + 1, before: disk.written.generation },
  };
  const old: DiskEntry = { ...disk, id: map.nextDisk, snapshots: [], schedules: [] };
  const trash = [...map.trash, trashed(map, old, command.nowMs)];
  const collected = collectLayers({
    ...map,
    layers: withLayer(map.layers, layer, snapshot.layer),
    disks: map.disks.with(map.disks.indexOf(disk), next),
    trash,
  });
  const fields = { ...collected.fields, nextLayer: layer + 1, nextDisk: map.nextDisk + 1 };
  const effects: MapEffect[] = [{ kind: "layer-created", layer }];
  if (next.sizeBytes !== disk.sizeBytes) {
    // The new layer holds nothing, so there is nothing to zero either.
    effects.push({ kind: "disk-resized", disk: next, previousBytes: next.sizeBytes });
  }
  effects.push({ kind: "snapshots-changed", disk: collectedDisk(collected.fields.disks, next) });
  return changed(map, fields, [...effects, ...collected.effects]);
}

// ------------------------------------------------------------------------------------------- trash

/** Why nothing can go to the trash. */
export function reasonAgainstTrash(map: ClusterMap): Result<Applied> | null {
  return map.trash.length < TRASH_MAX ? null : failure(
    "limit",
    `there are ${TRASH_MAX} disks in the trash, which is the most`,
    "empty the trash, or take out of it what is needed",
  );
}

/** An entry of the trash, for as long as the settings say; never so that it expires before it is there. */
export function trashed(map: ClusterMap, disk: DiskEntry, nowMs: number): TrashEntry {
  return {
    disk: withoutLease(map, givenUp(disk)),
    deletedMs: nowMs,
    expiresMs: Math.min(nowMs + map.settings.trashMs, Number.MAX_SAFE_INTEGER),
  };
}

function restoreDisk(map: ClusterMap, command: RestoreDisk): Result<Applied> {
  const entry = map.trash.find(({ disk }) => disk.id === command.id);
  if (entry === undefined) return notInTrash(command.id);
  const error = checkDiskName(command.name);
  if (error !== null) return { ok: false, error };
  if (findDisk(map, command.name) !== undefined) {
    return failure(
      "exists",
      `there is already a disk named ${JSON.stringify(command.name)}`,
      "give it another name with --name",
    );
  }
  if (map.disks.length >= DISKS_MAX) {
    return failure("limit", `there are ${DISKS_MAX} disks, which is the most`);
  }
  const disk = { ...entry.disk, name: command.name };
  return changed(map, {
    trash: map.trash.filter((each) => each !== entry),
    disks: map.disks.toSpliced(diskIndexOf(map.disks, disk.name), 0, disk),
  }, [{ kind: "disk-added", disk }]);
}

function purgeDisk(map: ClusterMap, command: PurgeDisk): Result<Applied> {
  const entry = map.trash.find(({ disk }) => disk.id === command.id);
  if (entry === undefined) return notInTrash(command.id);
  if (command.deletedMs !== undefined && command.deletedMs !== entry.deletedMs) {
    return stale(`disk ${entry.disk.name} has been deleted once more since`);
  }
  const trash = map.trash.filter((each) => each !== entry);
  const collected = collectLayers({ ...map, trash });
  return changed(map, collected.fields, collected.effects);
}

function notInTrash(id: number): Result<Applied> {
  return failure(
    "missing",
    `there is no disk with id ${id} in the trash`,
    "'kelpie disk trash' shows what is there",
  );
}

// ------------------------------------------------------------------------------------------ layers

function absorbed(map: ClusterMap, command: Absorbed): Result<Applied> {
  const node = findNode(map, command.node);
  if (node === undefined || node.incarnation !== command.incarnation) {
    return stale(`node ${command.node} speaks of a run that is over`);
  }
  const isMeant = new Set(
    command.layers.filter((id) => {
      const absorbedBy = findLayer(map.layers, id)?.absorbedBy;
      return absorbedBy != null && !absorbedBy.includes(node.id);
    }),
  );
  if (isMeant.size === 0) return unchanged(map);
  const layers = withAbsorbed(map.layers, isMeant, node.id);
  const collected = collectLayers({ ...map, layers });
  return changed(map, collected.fields, collected.effects);
}

// --------------------------------------------------------------------------------------- schedules

function setSchedule(map: ClusterMap, command: SetSchedule): Result<Applied> {
  const disk = findDisk(map, command.disk);
  if (disk === undefined) return { ok: false, error: diskMissing(command.disk) };
  const { name, everyMs, keep, keepDaily, keepWeekly, keepMonthly } = command;
  const before = disk.schedules.find((schedule) => schedule.name === name);
  const schedule: Schedule = {
    name,
    everyMs,
    keep,
    keepDaily,
    keepWeekly,
    keepMonthly,
    createdMs: before?.createdMs ?? command.nowMs,
  };
  const error = checkSchedule(schedule);
  if (error !== null) return { ok: false, error };
  if (before === undefined && disk.schedules.length >= SCHEDULES_MAX) {
    return failure("limit", `disk ${disk.name} has ${SCHEDULES_MAX} schedules, which is the most`);
  }
  const others = disk.schedules.filter((each) => each !== before);
  const schedules = [...others, schedule].toSorted((a, b) => a.name < b.name ? -1 : 1);
  const isSame = before !== undefined && JSON.stringify(before) === JSON.stringify(schedule);
  return isSame ? unchanged(map) : changed(map, {
    disks: map.disks.with(map.disks.indexOf(disk), { ...disk, schedules }),
  });
}

function deleteSchedule(map: ClusterMap, command: DeleteSchedule): Result<Applied> {
  const disk = findDisk(map, command.disk);
  if (disk === undefined) return { ok: false, error: diskMissing(command.disk) };
  const schedules = disk.schedules.filter((each) => each.name !== command.name);
  if (schedules.length === disk.schedules.length) {
    return failure(
      "missing",
      `disk ${disk.name} has no schedule named ${JSON.stringify(command.name)}`,
      `'kelpie disk schedule list ${disk.name}' shows those that it has`,
    );
  }
  return changed(map, {
    disks: map.disks.with(map.disks.indexOf(disk), { ...disk, schedules }),
  });
}
