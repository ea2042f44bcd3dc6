/**
 * Operations of the admin API about snapshots, clones, the trash and schedules.
 *
 * @module
 */

import { ControlFailure } from "../map/errors.ts";
import {
  type DiskEntry,
  findSnapshot,
  isOn,
  type SnapshotEntry,
  type TrashEntry,
} from "../map/map.ts";
import {
  type Call,
  checkSockets,
  json,
  propose,
  requireDisk,
  requireSnapshot,
  type Route,
} from "./call.ts";
import {
  answerDisk,
  describeDeleted,
  describeSchedule,
  snapshotBytes,
  snapshotDescriber,
  snapshotsOf,
} from "./describe.ts";
import type {
  ChangeSnapshotRequest,
  CloneDiskRequest,
  CreateSnapshotsRequest,
  RestoreDiskRequest,
  ScheduleListDocument,
  ScheduleRequest,
  SnapshotListDocument,
  TrashDocument,
} from "./documents.ts";
import { takeSnapshots } from "./take_snapshots.ts";

const SNAPSHOT = "/v1/disks/{name}/snapshots/{snapshot}";
const SCHEDULE = "/v1/disks/{name}/schedules/{schedule}";

/** Their part of the table. */
export const SNAPSHOT_ROUTES: readonly Route[] = [
  {
    method: "GET",
    path: "/v1/snapshots",
    query: ["brief"],
    handle: (call) => listSnapshots(call, null),
  },
  {
    method: "POST",
    path: "/v1/snapshots",
    body: "CreateSnapshots",
    // The names of all disks, each as long as may be.
    bodyBytesMax: 320 * 1024,
    handle: createSnapshots,
  },
  {
    method: "GET",
    path: "/v1/disks/{name}/snapshots",
    query: ["brief"],
    handle: (call) => listSnapshots(call, call.name),
  },
  { method: "GET", path: SNAPSHOT, handle: (call) => answerSnapshot(call, call.part) },
  { method: "PATCH", path: SNAPSHOT, body: "ChangeSnapshot", handle: changeSnapshot },
  { method: "DELETE", path: SNAPSHOT, handle: deleteSnapshot },
  { method: "POST", path: `${SNAPSHOT}/clone`, body: "CloneDisk", handle: cloneDisk },
  { method: "POST", path: `${SNAPSHOT}/rollback`, handle: rollbackDisk },
  { method: "POST", path: "/v1/disks/{name}/flatten", handle: (call) => flattenDisk(call, false) },
  { method: "DELETE", path: "/v1/disks/{name}/flatten", handle: (call) => flattenDisk(call, true) },
  { method: "GET", path: "/v1/trash", handle: listTrash },
  { method: "POST", path: "/v1/trash/{deleted}/restore", body: "RestoreDisk", handle: restoreDisk },
  { method: "DELETE", path: "/v1/trash/{deleted}", handle: purgeDisk },
  { method: "GET", path: "/v1/schedules", handle: (call) => listSchedules(call, null) },
  {
    method: "GET",
    path: "/v1/disks/{name}/schedules",
    handle: (call) => listSchedules(call, call.name),
  },
  { method: "PUT", path: SCHEDULE, body: "SetSchedule", handle: setSchedule },
  { method: "DELETE", path: SCHEDULE, handle: deleteSchedule },
];

// --------------------------------------------------------------------------------------- snapshots

/** @param name of a disk; null: of all of them */
async function listSnapshots(call: Call, name: string | null): Promise<Response> {
  const { backend } = call;
  if (name !== null) requireDisk(backend.map(), name);
  const describe = call.query.get("brief") === "1"
    ? snapshotDescriber(backend, null)
    : await describer(call, (disk) => name === null || disk.name === name);
  const map = backend.map();
  const disks = name === null ? map.disks : [requireDisk(map, name)];
  const snapshots = disks.flatMap((disk) => snapshotsOf(disk).map((each) => describe(disk, each)));
  return json(200, { snapshots } satisfies SnapshotListDocument);
}

/** @param isWanted which snapshots are to be described */
async function describer(
  { backend, statusTimeoutMs }: Call,
  isWanted: (disk: DiskEntry, snapshot: SnapshotEntry) => boolean,
) {
  const wanted = backend.map().disks.flatMap((disk) =>
    snapshotsOf(disk).filter((each) => isWanted(disk, each)).map(({ layer }) => layer)
  );
  return snapshotDescriber(backend, await snapshotBytes(backend, wanted, statusTimeoutMs));
}

async function createSnapshots(call: Call): Promise<Response> {
  const { backend } = call;
  const { disks, name } = call.body as CreateSnapshotsRequest;
  const ids = disks.map((disk) => requireDisk(backend.map(), disk).id);
  const taken = await takeSnapshots(call, { disks: ids, name });
  const layers = new Set(taken.map(({ snapshot }) => snapshot.layer));
  const describe = await describer(call, (_, { layer }) => layers.has(layer));
  const snapshots = taken.map(({ disk, snapshot }) => describe(disk, snapshot));
  return json(201, { snapshots } satisfies SnapshotListDocument);
}

async function answerSnapshot(call: Call, name: string): Promise<Response> {
  const describe = await describer(
    call,
    (disk, snapshot) => disk.name === call.name && snapshot.name === name,
  );
  const disk = requireDisk(call.backend.map(), call.name);
  return json(200, describe(disk, requireSnapshot(disk, name)));
}

async function changeSnapshot(call: Call): Promise<Response> {
  const { name: disk, part: name } = call;
  const { name: newName, isProtected } = call.body as ChangeSnapshotRequest;
  await propose(call, { kind: "change-snapshot", disk, name, newName, isProtected });
  return answerSnapshot(call, newName ?? name);
}

async function deleteSnapshot(call: Call): Promise<Response> {
  const { backend, name, part } = call;
  // The one that is meant is the one that has the name now.
  const layer = findSnapshot(requireDisk(backend.map(), name), part)?.layer;
  await propose(call, { kind: "delete-snapshot", disk: name, name: part, layer });
  return new Response(null, { status: 204 });
}

// ---------------------------------------------------------------------------- clones and rolling back

async function cloneDisk(call: Call): Promise<Response> {
  const { backend, name: disk, part: snapshot } = call;
  const { name, readOnly, attributes } = call.body as CloneDiskRequest;
  checkSockets(backend, name);
  const nowMs = Date.now();
  await propose(call, { kind: "clone-disk", disk, snapshot, name, nowMs, readOnly, attributes });
  return answerDisk(201, call, name);
}

async function rollbackDisk(call: Call): Promise<Response> {
  const { name: disk, part: snapshot } = call;
  await propose(call, { kind: "rollback-disk", disk, snapshot, nowMs: Date.now() });
  return answerDisk(200, call, disk);
}

async function flattenDisk(call: Call, isCancelled: boolean): Promise<Response> {
  const { name: disk } = call;
  await propose(call, { kind: "flatten-disk", disk, ...(isCancelled ? { cancel: true } : {}) });
  return answerDisk(200, call, disk);
}

// ------------------------------------------------------------------------------------------- trash

function listTrash({ backend }: Call): Response {
  const disks = backend.map().trash.map(describeDeleted);
  return json(200, { disks } satisfies TrashDocument);
}

async function restoreDisk(call: Call): Promise<Response> {
  const { backend } = call;
  const { disk } = findDeleted(call);
  const name = (call.body as RestoreDiskRequest).name ?? disk.name;
  checkSockets(backend, name);
  await propose(call, { kind: "restore-disk", id: disk.id, name });
  return answerDisk(201, call, name);
}

async function purgeDisk(call: Call): Promise<Response> {
  await propose(call, { kind: "purge-disk", id: findDeleted(call).disk.id });
  return new Response(null, { status: 204 });
}

/** The disk in the trash that the path means: by its name, or else by its id. */
function findDeleted({ backend, name }: Call): TrashEntry {
  const { trash } = backend.map();
  const named = trash.filter(({ disk }) => disk.name === name);
  if (named.length > 1) {
    const ids = named.map(({ disk }) => disk.id).join(", ");
    throw new ControlFailure({
      code: "invalid",
      message: `${named.length} disks in the trash were named ${name}: with the ids ${ids}`,
      hint:
        "give the id of the one that is meant; 'kelpie disk trash' shows when they were deleted",
    });
  }
  const found = named.at(0) ?? trash.find(({ disk }) => String(disk.id) === name);
  if (found !== undefined) return found;
  throw new ControlFailure({
    code: "missing",
    message: `there is no disk ${JSON.stringify(name)} in the trash`,
    hint: "'kelpie disk trash' shows what is there",
  });
}

/** Deletes a disk: into the trash where there is one, unless it shall go for good. */
export async function removeDisk(call: Call): Promise<void> {
  const { backend, name, query } = call;
  const isKept = query.get("now") !== "1" && isOn(backend.map(), 2);
  await propose(call, {
    kind: "delete-disk",
    name,
    ...(isKept ? { trashedMs: Date.now() } : {}),
  });
}

// --------------------------------------------------------------------------------------- schedules

/** @param name of a disk; null: of all of them */
function listSchedules({ backend }: Call, name: string | null): Response {
  const map = backend.map();
  const nowMs = Date.now();
  const disks = name === null ? map.disks : [requireDisk(map, name)];
  const schedules = disks.flatMap((disk) =>
    disk.schedules.map((schedule) => describeSchedule(disk, schedule, nowMs))
  );
  return json(200, { schedules } satisfies ScheduleListDocument);
}

async function setSchedule(call: Call): Promise<Response> {
  const { backend, name: disk, part: name, body } = call;
  const { everyMs, keep, keepDaily = 0, keepWeekly = 0, keepMonthly = 0 } = body as ScheduleRequest;
  const nowMs = Date.now();
  const parts = { everyMs, keep, keepDaily, keepWeekly, keepMonthly };
  await propose(call, { kind: "set-schedule", disk, name, ...parts, nowMs });
  const changed = requireDisk(backend.map(), disk);
  const schedule = changed.schedules.find((each) => each.name === name)!;
  return json(200, describeSchedule(changed, schedule, nowMs));
}

async function deleteSchedule(call: Call): Promise<Response> {
  const { name: disk, part: name } = call;
  await propose(call, { kind: "delete-schedule", disk, name });
  return new Response(null, { status: 204 });
}
