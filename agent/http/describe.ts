/**
 * Entries of the map as documents of the API: disks, snapshots, schedules, the trash.
 *
 * A disk or snapshot _goes on from_ the nearest snapshot below it in its chain of layers, whether that is of the same disk or of the
 * one that it was cloned from; layers whose snapshots were deleted have no name, and are passed over.
 *
 * @module
 */

import { copiesInSync } from "../map/group_summary.ts";
import {
  chainOf,
  clonePoint,
  type ClusterMap,
  copiesMinOf,
  type DiskEntry,
  findNode,
  flattenedLayers,
  merges,
  moveOf,
  percentOf,
  type Schedule,
  sharedLayers,
  type SnapshotEntry,
  spaceOf,
  storageNodes,
  type TrashEntry,
  zonesOf,
} from "../map/map.ts";
import type { FlattenedLayer } from "../map/flatten.ts";
import { diskSockets, snapshotSocketOf } from "../map/names.ts";
import { zonesProblem } from "../map/targets.ts";
import { dueSlot, lateSince, nextSlot, scheduledSnapshots, scheduleOf } from "../map/schedules.ts";
import { secondsLeftOf } from "../problems.ts";
import type { ControlBackend, DiskStatus } from "./backend.ts";
import { type Call, Deadline, json, requireDisk } from "./call.ts";
import type {
  CopiesChangeDocument,
  DeletedDiskDocument,
  DiskDocument,
  FlattenDocument,
  ScheduleDocument,
  SnapshotDocument,
} from "./documents.ts";

/** Answers with one disk as it is now. */
export async function answerDisk(status: number, call: Call, name: string): Promise<Response> {
  const { backend } = call;
  const disk = requireDisk(backend.map(), name);
  const deadline = new Deadline(call.statusTimeoutMs);
  const [now, bytes, secondsLeft] = await Promise.all([
    deadline.race(backend.diskStatus(name)),
    layerBytes(backend, deadline),
    copySecondsLeft(backend, deadline),
  ]);
  const response = json(status, diskDescriber(backend, bytes, secondsLeft)(disk, now));
  if (status === 201) response.headers.set("location", `/v1/disks/${name}`);
  return response;
}

/** What each layer holds here; null where the store does not say in time: what else there is to tell is told without it. */
export function layerBytes(
  backend: ControlBackend,
  deadline: Deadline,
): Promise<ReadonlyMap<number, number> | null> {
  return deadline.race(backend.layerBytes()).catch(() => null);
}

/** What snapshots' space follows from. */
export interface SnapshotBytes {
  /** Bytes of data by layer. */
  readonly layers: ReadonlyMap<number, number>;
  /** What merging frees when a snapshot is deleted, by its layer. */
  readonly merged: ReadonlyMap<number, number>;
  /** Layers of snapshots for which there was no time to count that. */
  readonly uncounted: ReadonlySet<number>;
}

/**
 * Counts what snapshots take here, as many as there is time for.
 *
 * @param wanted layers of the snapshots that are to be described
 * @returns null where the store does not say in time
 */
export async function snapshotBytes(
  backend: ControlBackend,
  wanted: readonly number[],
  timeoutMs: number,
): Promise<SnapshotBytes | null> {
  const deadline = new Deadline(timeoutMs);
  const endMs = performance.now() + timeoutMs * COUNTING_SHARE;
  const layers = await layerBytes(backend, deadline);
  if (layers === null) return null;
  const merged = new Map<number, number>();
  const uncounted = new Set<number>();
  const mergeOf = merges(backend.map());
  const isWanted = () => performance.now() < endMs;
  for (const layer of wanted) {
    const merge = mergeOf(layer);
    if (merge === null) continue;
    const hidden = await deadline.race(backend.overlapBytes(merge, isWanted)).catch(() => null);
    if (hidden === null) uncounted.add(layer);
    else merged.set(layer, hidden);
  }
  return { layers, merged, uncounted };
}

/** How much of the time that an answer may take goes into counting. */
const COUNTING_SHARE = 0.6;

/** How long the slowest node has still to copy, where disks are getting other copies; null: not known, or none are. */
export async function copySecondsLeft(
  backend: ControlBackend,
  deadline: Deadline,
): Promise<number | null> {
  if (backend.map().pools.every(({ family }) => family === 0)) return null;
  const cluster = await deadline.race(backend.cluster()).catch(() => null);
  return secondsLeftOf(cluster);
}

/**
 * Describes the disks of the map now; what all of them share is computed once.
 *
 * @param bytes by layer: {@linkcode layerBytes}
 * @param secondsLeft see {@linkcode copySecondsLeft}
 */
export function diskDescriber(
  backend: ControlBackend,
  bytes: ReadonlyMap<number, number> | null,
  secondsLeft: number | null = null,
): (disk: DiskEntry, status: DiskStatus) => DiskDocument {
  const map = backend.map();
  const inSync = copiesInSync(map);
  const space = bytes === null ? null : spaceOf(map, bytes).disks;
  const origins = new Origins(map);
  const shared = sharedLayers(map);
  const flattened = flattenedLayers(map);
  const zoned = new Map(map.pools.map((pool) => [pool.id, zonesProblem(map, pool)]));
  const { runDir } = backend.info();
  // What was asked about it took time: all that is told is of one map.
  const entries = new Map(map.disks.map((disk) => [disk.id, disk]));
  return (found, status) => {
    const disk = entries.get(found.id) ?? found;
    const { readWrite, readOnly } = diskSockets(runDir, disk.name);
    const { lease } = disk;
    return {
      name: disk.name,
      id: disk.id,
      sizeBytes: disk.sizeBytes,
      allocatedBytes: status.allocatedBytes,
      space: space?.get(disk.id) ?? null,
      readOnly: disk.readOnly,
      copies: disk.copies,
      zones: zonesOf(map, disk),
      zonesProblem: zoned.get(disk.pool) ?? null,
      copiesMin: copiesMinOf(map, disk),
      // Zero: it has been deleted since the map that it is from.
      copiesInSync: inSync.get(disk.id) ?? 0,
      copiesChange: copiesChangeOf(map, disk.family, secondsLeft),
      openOn: lease === null ? null : findNode(map, lease.node)?.name ?? `node ${lease.node}`,
      createdMs: disk.createdMs,
      generation: disk.generation,
      family: disk.family,
      layers: disk.layers,
      origin: origins.originOf(disk),
      isShared: clonePoint(map, disk, shared).parent !== 0,
      flatten: describeFlatten(map, flattened.get(disk.id)),
      snapshots: snapshotsOf(disk).map((snapshot) => snapshot.name),
      schedules: disk.schedules.map((schedule) => schedule.name),
      limits: disk.limits,
      detectZeroes: disk.detectZeroes,
      attributes: disk.attributes,
      socket: readWrite,
      readOnlySocket: readOnly,
      sessions: status.sessions,
      counters: status.counters,
    };
  };
}

function describeFlatten(
  map: ClusterMap,
  layer: FlattenedLayer | undefined,
): FlattenDocument | null {
  if (layer === undefined) return null;
  const isDone = ({ id }: { readonly id: number }) => layer.flatten.by.includes(id);
  const nodes = storageNodes(map);
  return {
    done: nodes.filter(isDone).map(({ name }) => name),
    waiting: nodes.filter((node) => !isDone(node))
      .map(({ name, state }) => state === "up" ? name : `${name} (down)`),
  };
}

function copiesChangeOf(
  map: ClusterMap,
  family: number,
  secondsLeft: number | null,
): CopiesChangeDocument | null {
  const move = moveOf(map, family);
  if (move === null) return null;
  const { to, isBack, wanted, done, waitsFor } = move;
  return {
    ...to,
    isBack,
    percent: percentOf(move),
    secondsLeft: done < wanted ? secondsLeft : null,
    waitsFor,
    disks: map.disks.filter((disk) => disk.family === family).map(({ name }) => name),
  };
}

/** The snapshots of a disk that somebody wants: without those that were given up and are still waited for. */
export function snapshotsOf(disk: DiskEntry): SnapshotEntry[] {
  return disk.snapshots.filter((snapshot) => !snapshot.isAborted);
}

/**
 * Describes snapshots of the map now; what all of them share is computed once.
 *
 * @param bytes {@linkcode snapshotBytes}; null: the store does not say
 */
export function snapshotDescriber(
  backend: ControlBackend,
  bytes: SnapshotBytes | null,
): (disk: DiskEntry, snapshot: SnapshotEntry) => SnapshotDocument {
  const map = backend.map();
  const origins = new Origins(map);
  const space = bytes === null ? null : spaceOf(map, bytes.layers, bytes.merged).snapshots;
  const clones = Map.groupBy(map.disks, (disk) => origins.originOf(disk));
  const { runDir } = backend.info();
  return (disk, snapshot) => {
    const { layer } = snapshot;
    return {
      disk: disk.name,
      name: snapshot.name,
      layer,
      sizeBytes: snapshot.sizeBytes,
      space: bytes?.uncounted.has(layer) === true ? null : space?.get(layer) ?? null,
      createdMs: snapshot.createdMs,
      isProtected: snapshot.isProtected,
      isTaking: snapshot.taking !== 0,
      parent: origins.parentOf(chainOf(map.layers, layer)),
      clones: (clones.get(fullName(disk, snapshot)) ?? []).map(({ name }) => name),
      schedule: scheduleOf(disk, snapshot)?.name ?? null,
      socket: snapshotSocketOf(runDir, disk.name, snapshot.name),
    };
  };
}

/** `DISK@NAME`. */
function fullName(disk: DiskEntry, { name }: SnapshotEntry): string {
  return `${disk.name}@${name}`;
}

/**
 * Which snapshot a layer is the newest of. One of a disk in the trash has no name any more where another snapshot has it by now: it would be
 * taken for that one.
 */
class Origins {
  readonly #byLayer = new Map<number, { disk: DiskEntry; name: string | null }>();

  constructor(map: ClusterMap) {
    const taken = new Set<string>();
    for (const disk of map.disks) {
      for (const snapshot of snapshotsOf(disk)) {
        const name = fullName(disk, snapshot);
        taken.add(name);
        this.#byLayer.set(snapshot.layer, { disk, name });
      }
    }
    for (const { disk } of map.trash) {
      for (const snapshot of snapshotsOf(disk)) {
        const name = fullName(disk, snapshot);
        this.#byLayer.set(snapshot.layer, { disk, name: taken.has(name) ? null : name });
      }
    }
  }

  /** The snapshot of another disk that a disk goes on from; null: none, or it has been deleted. */
  originOf({ id, layers }: DiskEntry): string | null {
    return this.#nearest(layers, (disk) => disk.id !== id);
  }

  /** The snapshot that the first of these layers goes on from. */
  parentOf(layers: readonly number[]): string | null {
    return this.#nearest(layers, () => true);
  }

  #nearest(layers: readonly number[], isMeant: (disk: DiskEntry) => boolean): string | null {
    for (let at = 1; at < layers.length; at++) {
      const found = this.#byLayer.get(layers[at]);
      if (found !== undefined && isMeant(found.disk)) return found.name;
    }
    return null;
  }
}

/** Describes a schedule at a time, in milliseconds since 1970. */
export function describeSchedule(
  disk: DiskEntry,
  schedule: Schedule,
  nowMs: number,
): ScheduleDocument {
  const made = scheduledSnapshots(disk, schedule);
  const last = made.find(({ snapshot }) => snapshot.taking === 0);
  return {
    disk: disk.name,
    ...schedule,
    snapshots: made.length,
    lastMs: last?.snapshot.createdMs ?? null,
    nextMs: dueSlot(disk, schedule, nowMs) ?? nextSlot(schedule, nowMs),
    isLate: lateSince(disk, schedule, nowMs) !== null,
  };
}

/** Describes a disk in the trash. */
export function describeDeleted({ disk, deletedMs, expiresMs }: TrashEntry): DeletedDiskDocument {
  return {
    id: disk.id,
    name: disk.name,
    sizeBytes: disk.sizeBytes,
    createdMs: disk.createdMs,
    deletedMs,
    expiresMs,
    snapshots: snapshotsOf(disk).map(({ name }) => name),
    attributes: disk.attributes,
  };
}
