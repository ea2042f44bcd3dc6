/**
 * The admin API: which request is answered by what. One table, one entry per operation.
 *
 * Between the table and the backend stand no rules of their own: what a disk may be is the map's
 * business ({@linkcode apply}), what is under way the backend's. A change of several things at once
 * is tried on the map first, so that it fits as a whole before any part of it is made.
 *
 * @module
 */

import { ControlFailure, unwrap } from "../map/errors.ts";
import { groupsOfNodes, NO_GROUPS } from "../map/group_summary.ts";
import {
  apply,
  type Attributes,
  chainOf,
  type ClusterMap,
  findNode,
  findNodeByName,
  isOn,
  limitNumbers,
  NO_LIMITS,
  type NodeEntry,
  poolOf,
} from "../map/map.ts";
import type { MapCommand, SetAvailability, SetWeight, SetZone } from "../map/map.ts";
import { previewNodeChange } from "../map/preview.ts";
import { findNotes, findProblems, secondsLeftOf, summarize } from "../problems.ts";
import type {
  ClusterStatus,
  CompareOptions,
  DiskStatus,
  GroupSummary,
  NodeStatus,
} from "./backend.ts";
import {
  type Call,
  checkSockets,
  Deadline,
  json,
  propose,
  readableSnapshot,
  requireDisk,
  type Route,
} from "./call.ts";
import { answerDisk, copySecondsLeft, diskDescriber, layerBytes } from "./describe.ts";
import type {
  ChangeDiskRequest,
  ChangeNodeRequest,
  ChangeSettingsRequest,
  CheckEvent,
  ClusterDocument,
  CreateDiskRequest,
  DiskDocument,
  ExtentsDocument,
  ExtentsRequest,
  LockDocument,
  LockListDocument,
  LogLevelDocument,
  NodeDocument,
  NodeListDocument,
  PlanDocument,
  PlanRequest,
  SecretDocument,
  SettleRequest,
  StatusDocument,
  VersionDocument,
} from "./documents.ts";
import { formatMetrics, METRICS_CONTENT_TYPE } from "./metrics.ts";
import { OPENAPI } from "./openapi.ts";
import { PLACE_ROUTES } from "./place_routes.ts";
import { removeDisk, SNAPSHOT_ROUTES } from "./snapshot_routes.ts";

/** Status questions under way at once: each is a message to the data plane and back. */
const STATUS_CONCURRENCY_MAX = 32;

/** Events of a check that wait for a slow reader; progress beyond is dropped. */
const CHECK_EVENTS_MAX = 16;

/** Content type of a check's answer: one JSON document per line. */
export const EVENTS_CONTENT_TYPE = "application/x-ndjson";

/** The table. */
export const ROUTES: readonly Route[] = [
  { method: "GET", path: "/v1/version", handle: getVersion },
  { method: "GET", path: "/v1/status", handle: async (call) => json(200, await observe(call)) },
  { method: "GET", path: "/v1/disks", handle: listDisks },
  { method: "POST", path: "/v1/disks", body: "CreateDisk", handle: createDisk },
  { method: "GET", path: "/v1/disks/{name}", handle: (call) => answerDisk(200, call, call.name) },
  { method: "PATCH", path: "/v1/disks/{name}", body: "ChangeDisk", handle: changeDisk },
  { method: "DELETE", path: "/v1/disks/{name}", query: ["force", "now"], handle: deleteDisk },
  { method: "POST", path: "/v1/disks/{name}/release", handle: releaseDisk },
  {
    method: "POST",
    path: "/v1/disks/{name}/extents",
    body: "ExtentsRequest",
    handle: findExtents,
  },
  ...PLACE_ROUTES,
  ...SNAPSHOT_ROUTES,
  { method: "GET", path: "/v1/locks", handle: listLocks },
  { method: "POST", path: "/v1/disks/{name}/check", streams: true, handle: checkDisk },
  { method: "POST", path: "/v1/check", streams: true, handle: (call) => checkStore(call, null) },
  {
    method: "POST",
    path: "/v1/disks/{name}/compare",
    query: ["report-only"],
    streams: true,
    handle: compareDisk,
  },
  {
    method: "POST",
    path: "/v1/disks/{name}/settle",
    body: "SettleRequest",
    streams: true,
    handle: settleDisk,
  },
  {
    method: "POST",
    path: "/v1/compare",
    query: ["report-only"],
    streams: true,
    handle: (call) => compareReplicas(call, null, { repair: isRepairing(call) }),
  },
  { method: "GET", path: "/v1/cluster", handle: getCluster },
  {
    method: "PATCH",
    path: "/v1/cluster/settings",
    body: "ChangeSettings",
    handle: changeSettings,
  },
  { method: "GET", path: "/v1/cluster/secret", handle: getSecret },
  { method: "POST", path: "/v1/cluster/recover", handle: recoverCluster },
  { method: "GET", path: "/v1/nodes", handle: listNodes },
  { method: "GET", path: "/v1/nodes/{node}", handle: (call) => answerNode(call, findNamed(call)) },
  { method: "PATCH", path: "/v1/nodes/{node}", body: "ChangeNode", handle: changeNode },
  {
    method: "DELETE",
    path: "/v1/nodes/{node}",
    query: ["force", "accept-loss"],
    handle: removeNode,
  },
  { method: "POST", path: "/v1/nodes/{node}/plan", body: "PlanRequest", handle: planNode },
  { method: "POST", path: "/v1/nodes/{node}/restart", handle: restartNode },
  { method: "GET", path: "/v1/store", handle: getStore },
  { method: "PUT", path: "/v1/log-level", body: "LogLevel", handle: setLogLevel },
  { method: "POST", path: "/v1/shutdown", handle: shutdown },
  { method: "GET", path: "/v1/openapi.json", handle: () => json(200, OPENAPI) },
  { method: "GET", path: "/metrics", handle: getMetrics },
];

function getVersion({ backend }: Call): Response {
  return json(200, { version: backend.info().version, api: "v1" } satisfies VersionDocument);
}

async function getStore(call: Call): Promise<Response> {
  return json(200, await new Deadline(call.statusTimeoutMs).race(call.backend.storeStatus()));
}

async function getMetrics(call: Call): Promise<Response> {
  const text = formatMetrics(await observe(call));
  return new Response(text, { headers: { "content-type": METRICS_CONTENT_TYPE } });
}

function setLogLevel({ backend, body }: Call): Response {
  const { level } = body as LogLevelDocument;
  backend.setLogLevel(level);
  return json(200, { level } satisfies LogLevelDocument);
}

async function recoverCluster({ backend }: Call): Promise<Response> {
  await backend.recover();
  return new Response(null, { status: 204 });
}

function shutdown({ backend }: Call): Response {
  backend.shutdown();
  return new Response(null, { status: 204 });
}

async function listDisks(call: Call): Promise<Response> {
  const map = call.backend.map();
  const deadline = new Deadline(call.statusTimeoutMs);
  const [found, bytes, secondsLeft] = await Promise.all([
    askDisks(call, map, deadline),
    layerBytes(call.backend, deadline),
    copySecondsLeft(call.backend, deadline),
  ]);
  const describe = diskDescriber(call.backend, bytes, secondsLeft);
  const disks: DiskDocument[] = [];
  for (const disk of map.disks) {
    const status = found.get(disk.name);
    if (status === undefined) continue;
    if (typeof status === "string") {
      throw new ControlFailure({
        code: "unavailable",
        message: `disk ${disk.name} does not answer: ${status}`,
        hint: "'kelpie status' says more",
      });
    }
    disks.push(describe(disk, status));
  }
  return json(200, { disks });
}

async function createDisk(call: Call): Promise<Response> {
  const { backend } = call;
  const request = call.body as CreateDiskRequest;
  const { zones = [], ...others } = request;
  const command: MapCommand = {
    ...others,
    kind: "create-disk",
    nowMs: Date.now(),
    ...(zones.length === 0 ? {} : { zones }),
  };
  unwrap(apply(backend.map(), command));
  checkSockets(backend, request.name);
  await propose(call, command);
  return answerDisk(201, call, request.name);
}

async function changeDisk(call: Call): Promise<Response> {
  const { backend, name } = call;
  const request = call.body as ChangeDiskRequest;
  const { id } = requireDisk(backend.map(), name);
  // All attributes are set at once: whoever changes single ones has to know what those before have made of the others.
  if (request.setAttributes === undefined) await makeChanges(call, request);
  else await afterOthers(backend, id, () => makeChanges(call, request));
  return answerDisk(200, call, request.name ?? name);
}

/** Changes of single attributes that are under way, by disk: the last of each. */
const changing = new WeakMap<Call["backend"], Map<number, Promise<void>>>();

/** Does something to a disk when all that was to be done to it before has been, however that ended. */
async function afterOthers(
  backend: Call["backend"],
  disk: number,
  change: () => Promise<void>,
): Promise<void> {
  let last = changing.get(backend);
  if (last === undefined) changing.set(backend, last = new Map());
  const before = last.get(disk) ?? Promise.resolve();
  const own = before.catch(() => {}).then(change);
  last.set(disk, own);
  try {
    await own;
  } finally {
    if (last.get(disk) === own) last.delete(disk);
  }
}

async function makeChanges(call: Call, request: ChangeDiskRequest): Promise<void> {
  const { backend, name } = call;
  let map = backend.map();
  const commands = commandsFor(map, name, {
    ...request,
    attributes: attributesFor(requireDisk(map, name).attributes, request),
  });
  for (const command of commands) map = unwrap(apply(map, command)).map;
  if (request.name !== undefined) checkSockets(backend, request.name);
  for (const command of commands) await propose(call, command);
}

/** All attributes of a disk as they shall be; undefined: as they are. */
function attributesFor(
  now: Attributes,
  { attributes, setAttributes }: ChangeDiskRequest,
): Attributes | undefined {
  if (setAttributes === undefined) return attributes;
  const next = new Map(Object.entries(attributes ?? now));
  for (const [key, value] of Object.entries(setAttributes)) {
    if (value === null) next.delete(key);
    else next.set(key, value);
  }
  return Object.fromEntries(next);
}

/** The commands of a change. The new name comes last: the others go by the old one. */
function commandsFor(
  map: ClusterMap,
  name: string,
  request: ChangeDiskRequest,
): readonly MapCommand[] {
  const { sizeBytes, shrink, name: newName, readOnly, copies, copiesMin, attributes } = request;
  const { limits, detectZeroes, zones } = request;
  const commands: MapCommand[] = [];
  // Before that there is no moving of data for it.
  const isOnline = isOn(map, 2);
  const others = {
    readOnly,
    copies: isOnline ? undefined : copies,
    copiesMin,
    attributes,
    limits: limits === undefined ? undefined : limitNumbers({ ...NO_LIMITS, ...limits }),
    detectZeroes,
  };
  if (Object.values(others).some((value) => value !== undefined)) {
    commands.push({ kind: "change-disk", name, ...others });
  }
  // After the fewest that it is written with, which may have stood in the way.
  const place = {
    ...(isOnline && copies !== undefined ? { copies } : {}),
    ...(zones === undefined ? {} : { zones }),
  };
  if (Object.keys(place).length > 0) commands.push({ kind: "set-copies", name, ...place });
  if (sizeBytes !== undefined) commands.push({ kind: "resize-disk", name, sizeBytes, shrink });
  if (newName !== undefined) commands.push({ kind: "rename-disk", name, newName });
  return commands;
}

async function deleteDisk(call: Call): Promise<Response> {
  const { backend, name } = call;
  requireDisk(backend.map(), name);
  if (call.query.get("force") === "1") await backend.closeSessions(name);
  else await refuseBusy(call);
  await removeDisk(call);
  return new Response(null, { status: 204 });
}

async function refuseBusy({ backend, name, statusTimeoutMs }: Call): Promise<void> {
  const { sessions } = await new Deadline(statusTimeoutMs).race(backend.diskStatus(name));
  if (sessions.length === 0) return;
  const users = sessions.slice(0, 3).map(({ pid, command }) =>
    pid === 0 ? command || "an unknown process" : `${command || "process"} (pid ${pid})`
  );
  const more = sessions.length > users.length ? ` and ${sessions.length - users.length} more` : "";
  throw new ControlFailure({
    code: "busy",
    message: `disk ${name} is in use by ${users.join(", ")}${more}`,
    hint: "stop the guest first, or delete with --force (force=1), which disconnects it",
  });
}

/** Takes the lease away, whoever has it. A disk that is not open is left as it is. */
async function releaseDisk(call: Call): Promise<Response> {
  const { id, lease, generation } = requireDisk(call.backend.map(), call.name);
  if (lease !== null) await propose(call, { kind: "force-release-lease", id, generation });
  return answerDisk(200, call, call.name);
}

/** A question, though it is a POST: what it asks for is in its body. */
async function findExtents({ backend, name, body, statusTimeoutMs }: Call): Promise<Response> {
  const { offsetBytes, lengthBytes, snapshot: snapshotName, since } = body as ExtentsRequest;
  const map = backend.map();
  const disk = requireDisk(map, name);
  const snapshot = snapshotName === undefined ? undefined : readableSnapshot(disk, snapshotName);
  const { sizeBytes } = snapshot ?? disk;
  const layer = snapshot?.layer;
  if (offsetBytes < 0 || lengthBytes < 1 || offsetBytes + lengthBytes > sizeBytes) {
    throw new ControlFailure({
      code: "invalid",
      message: `${lengthBytes} bytes at ${offsetBytes} are not within ${
        snapshot === undefined ? "disk" : "snapshot"
      } ${snapshot === undefined ? name : `${name}@${snapshot.name}`} of ${sizeBytes} bytes`,
    });
  }
  const chain = layer === undefined ? disk.layers : chainOf(map.layers, layer);
  const range = {
    offsetBytes,
    lengthBytes,
    layer,
    since: since === undefined ? undefined : olderLayer(map, chain, since),
  };
  const extents = await new Deadline(statusTimeoutMs).race(backend.extents(name, range));
  return json(
    200,
    {
      offsetBytes,
      disk: disk.id,
      layer: chain[0],
      sinceLayer: range.since ?? 0,
      extents,
    } satisfies ExtentsDocument,
  );
}

/** The layer of the snapshot `DISK@NAME`, which has to lie below the first of a chain. */
function olderLayer(map: ClusterMap, chain: readonly number[], since: string): number {
  const [disk, name = ""] = since.split("@", 2);
  const { layer } = readableSnapshot(requireDisk(map, disk), name);
  if (chain.indexOf(layer) > 0) return layer;
  throw new ControlFailure({
    code: "invalid",
    message: `${since} is no older snapshot that this goes on from`,
    hint: `'kelpie disk tree' shows what goes on from what`,
  });
}

/** Answers without the data plane: who asks for it may well be after one that hangs. */
async function listLocks({ backend, statusTimeoutMs }: Call): Promise<Response> {
  const { nodes, waiting } = await new Deadline(statusTimeoutMs).race(backend.cluster());
  const locks: LockDocument[] = [];
  const map = backend.map();
  for (const disk of map.disks) {
    if (disk.lease === null) continue;
    const { node: id, incarnation } = disk.lease;
    const node = nodes.find((each) => each.id === id);
    const time = backend.leaseTime(disk);
    const wait = waiting.find((each) => each.disk === disk.name && each.node === id);
    const isAnew = findNode(map, id)?.incarnation !== incarnation;
    locks.push({
      disk: disk.name,
      node: node?.name ?? `node ${id}`,
      generation: disk.generation,
      sinceMs: time?.sinceMs ?? null,
      isSinceExact: time?.isExact ?? false,
      ...lockState(node, isAnew, wait?.reason ?? null),
    });
  }
  return json(200, { locks } satisfies LockListDocument);
}

/** @param isAnew the agent of the node, where there is one, is another run than that which has opened the disk */
function lockState(
  node: NodeStatus | undefined,
  isAnew: boolean,
  waitsBecause: string | null,
): Pick<LockDocument, "state" | "reason"> {
  if (node !== undefined && isAnew) {
    return {
      state: "down",
      reason: "its agent has been started anew: whoever opens the disk has it",
    };
  }
  if (node === undefined || node.state === "down") {
    return { state: "down", reason: "the node is off the map" };
  }
  if (node.gossip === "suspect" || node.gossip === "dead") {
    return { state: "suspect", reason: node.suspectedBecause ?? "the node does not answer" };
  }
  if (waitsBecause !== null) return { state: "waiting", reason: waitsBecause };
  return { state: "serving", reason: null };
}

function checkDisk(call: Call): Response {
  requireDisk(call.backend.map(), call.name);
  return checkStore(call, call.name);
}

function checkStore(call: Call, name: string | null): Response {
  return checkEvents(call, async (onProgress, signal) => {
    const { checkedBytes, damagedBlocks, damage } = await call.backend.check(
      name,
      onProgress,
      signal,
    );
    return { kind: "report", checkedBytes, damagedBlocks, damage };
  });
}

function compareDisk(call: Call): Response {
  requireDisk(call.backend.map(), call.name);
  return compareReplicas(call, call.name, { repair: isRepairing(call) });
}

function isRepairing({ query }: Call): boolean {
  return query.get("report-only") !== "1";
}

/** Compares, and where replicas differ one node's content counts, which has to have some. */
function settleDisk(call: Call): Response {
  const map = call.backend.map();
  const disk = requireDisk(map, call.name);
  const node = findNodeNamed(map, (call.body as SettleRequest).node);
  const hasReplica = poolOf(map, disk)?.pgs.some(({ inSync }) => inSync.includes(node.id));
  if (hasReplica !== true) {
    throw new ControlFailure({
      code: "invalid",
      message:
        `node ${node.name} has no replica in sync of disk ${disk.name}: nothing of it could count`,
      hint: `'kelpie disk map ${disk.name}' shows where replicas are`,
    });
  }
  return compareReplicas(call, disk.name, { repair: true, preferred: node.id });
}

function compareReplicas(call: Call, name: string | null, options: CompareOptions): Response {
  return checkEvents(call, async (onProgress, signal) => {
    const report = await call.backend.compare(name, options, onProgress, signal);
    return { kind: "compared", ...report };
  });
}

/** Runs a check and writes its events as they come; ends it when nobody reads any more. */
function checkEvents(
  { closing }: Call,
  check: (
    onProgress: (checkedBytes: number, totalBytes: number) => void,
    signal: AbortSignal,
  ) => Promise<CheckEvent>,
): Response {
  const gone = new AbortController();
  const signal = AbortSignal.any([gone.signal, closing]);
  const encoder = new TextEncoder();
  const stream = new ReadableStream<Uint8Array>({
    start(controller) {
      const send = (event: CheckEvent) => {
        if (!gone.signal.aborted) controller.enqueue(encoder.encode(`${JSON.stringify(event)}\n`));
      };
      const onProgress = (checkedBytes: number, totalBytes: number) => {
        if ((controller.desiredSize ?? 0) <= 1) return;
        send({ kind: "progress", checkedBytes, totalBytes });
      };
      runCheck(() => check(onProgress, signal)).then((event) => {
        send(event);
        if (!gone.signal.aborted) controller.close();
      });
    },
    cancel() {
      gone.abort();
    },
  }, new CountQueuingStrategy({ highWaterMark: CHECK_EVENTS_MAX }));
  return new Response(stream, { headers: { "content-type": EVENTS_CONTENT_TYPE } });
}

async function runCheck(check: () => Promise<CheckEvent>): Promise<CheckEvent> {
  try {
    return await check();
  } catch (error) {
    if (error instanceof ControlFailure) return { kind: "error", error: error.error };
    return { kind: "error", error: { code: "internal", message: `the check ended: ${error}` } };
  }
}

// ---------------------------------------------------------------------------------------- cluster

async function askCluster(
  { backend, statusTimeoutMs }: Call,
  deadline = new Deadline(statusTimeoutMs),
): Promise<{ cluster: ClusterStatus; groups: GroupSummary }> {
  const [cluster, groups] = await Promise.all([
    deadline.race(backend.cluster()),
    deadline.race(backend.groups()),
  ]);
  const notes = [...cluster.notes, ...findNotes(backend.map())];
  return { cluster: { ...cluster, notes }, groups };
}

async function getCluster(call: Call): Promise<Response> {
  const { cluster, groups } = await askCluster(call);
  const { clusterId, settings, losses } = call.backend.map();
  return json(
    200,
    { ...cluster, clusterId, groups, settings, losses } satisfies ClusterDocument,
  );
}

async function changeSettings(call: Call): Promise<Response> {
  const request = call.body as ChangeSettingsRequest;
  const { settings } = await propose(call, { ...request, kind: "change-settings" });
  return json(200, settings);
}

async function getSecret(call: Call): Promise<Response> {
  const secret = await new Deadline(call.statusTimeoutMs).race(call.backend.secret());
  return json(200, { secret } satisfies SecretDocument);
}

async function listNodes(call: Call): Promise<Response> {
  const { nodes } = await new Deadline(call.statusTimeoutMs).race(call.backend.cluster());
  const describe = nodeDescriber(call.backend.map());
  return json(200, { nodes: nodes.map(describe) } satisfies NodeListDocument);
}

async function answerNode(call: Call, { id, name }: NodeEntry): Promise<Response> {
  const { nodes } = await new Deadline(call.statusTimeoutMs).race(call.backend.cluster());
  const node = nodes.find((each) => each.id === id);
  if (node === undefined) throw new ControlFailure(noNode(name));
  return json(200, nodeDescriber(call.backend.map())(node));
}

/** Makes all of a change, or nothing; only on the map whose plan was shown, when the request says so. */
async function changeNode(call: Call): Promise<Response> {
  const { backend } = call;
  const request = call.body as ChangeNodeRequest;
  const { targetsEpoch } = request;
  const node = findNamed(call);
  const now = backend.map();
  let map = now;
  if (targetsEpoch !== undefined && targetsEpoch !== map.targetsEpoch) {
    throw new ControlFailure({
      code: "stale",
      message: "nodes or places have changed since the plan was made: nothing was changed",
      hint: "look at the new plan",
    });
  }
  const commands: MapCommand[] = [];
  for (const command of nodeCommands(node.id, request)) {
    // What is so here may not be so any more where it is decided. The first change makes the plan old for the others.
    const isPlanned = targetsEpoch !== undefined && map === now && isOn(map, 2);
    commands.push(isPlanned ? { ...command, basedOnTargetsEpoch: targetsEpoch } : command);
    map = unwrap(apply(map, command)).map;
  }
  for (const command of commands) await propose(call, command);
  return answerNode(call, node);
}

type ChangeOfNode = SetAvailability | SetWeight | SetZone;

function nodeCommands(node: number, request: ChangeNodeRequest): ChangeOfNode[] {
  const { availability, weight, zone } = request;
  const commands: ChangeOfNode[] = [];
  if (availability !== undefined) commands.push({ kind: "set-availability", node, availability });
  if (weight !== undefined) commands.push({ kind: "set-weight", node, weight });
  if (zone !== undefined) commands.push({ kind: "set-zone", node, zone });
  return commands;
}

async function removeNode(call: Call): Promise<Response> {
  const force = call.query.get("force") === "1";
  const acceptLoss = call.query.get("accept-loss") === "1";
  if (acceptLoss && !force) {
    throw new ControlFailure({
      code: "invalid",
      message: "accept-loss says nothing without force",
      hint: "a node that is drained loses nothing",
    });
  }
  await call.backend.removeNode(findNamed(call).id, { force, acceptLoss }, call.gone);
  return new Response(null, { status: 204 });
}

/** Down, it cannot hear it, and is about to start anyhow. */
function restartNode(call: Call): Response {
  const { id, name, state } = findNamed(call);
  if (state === "down") {
    throw new ControlFailure({
      code: "unavailable",
      message: `node ${name} is down`,
      hint: "start its agent",
    });
  }
  call.backend.restartNode(id);
  return new Response(null, { status: 204 });
}

async function planNode(call: Call): Promise<Response> {
  const node = findNamed(call);
  const { remove, availability, weight, zone } = call.body as PlanRequest;
  const { nodes } = await new Deadline(call.statusTimeoutMs).race(call.backend.cluster());
  const map = call.backend.map();
  const change = remove === true ? { isRemoved: true } : { availability, weight, zone };
  const rates = nodes.map((each) => each.copyBytesPerSecond ?? 0);
  const usedBytes = new Map<number, number>();
  for (const each of nodes) if (each.usedBytes !== null) usedBytes.set(each.id, each.usedBytes);
  const conditions = { usedBytes, rateBytesPerSecond: Math.max(0, ...rates) };
  const preview = unwrap(previewNodeChange(map, node.id, change, conditions));
  return json(
    200,
    {
      ...preview,
      onlyCopies: (groupsOfNodes(map).get(node.id) ?? NO_GROUPS).only,
      openDisks: openDisks(map, node.id),
      nodes: preview.nodes.map((each) => ({
        ...each,
        name: findNode(map, each.id)?.name ?? `node ${each.id}`,
      })),
    } satisfies PlanDocument,
  );
}

/** The node of the path: by its name, or else by its id. */
function findNamed({ backend, name }: Call): NodeEntry {
  return findNodeNamed(backend.map(), name);
}

function findNodeNamed(map: ClusterMap, name: string): NodeEntry {
  const node = findNodeByName(map, name) ??
    (/^\d{1,5}$/.test(name) ? findNode(map, Number(name)) : undefined);
  if (node === undefined) throw new ControlFailure(noNode(name));
  return node;
}

function noNode(name: string) {
  return {
    code: "missing",
    message: `there is no node named ${JSON.stringify(name)}`,
    hint: "'kelpie node list' shows the nodes that there are",
  } as const;
}

/** Describes the nodes of one map; what all of them share is computed once. */
function nodeDescriber(map: ClusterMap): (node: NodeStatus) => NodeDocument {
  const counts = groupsOfNodes(map);
  return (node) => {
    const { held, wanted, named, only } = counts.get(node.id) ?? NO_GROUPS;
    return {
      ...node,
      groups: held,
      groupsWanted: wanted,
      groupsLeft: named,
      onlyCopies: only,
      openDisks: openDisks(map, node.id),
    };
  };
}

function openDisks(map: ClusterMap, node: number): string[] {
  return map.disks.filter((disk) => disk.lease?.node === node).map((disk) => disk.name);
}

// ----------------------------------------------------------------------------------------- status

/** Puts the status together; what does not answer becomes a problem in it. */
async function observe(call: Call): Promise<StatusDocument> {
  const { backend } = call;
  const map = backend.map();
  const deadline = new Deadline(call.statusTimeoutMs);
  const [store, disks, asked, bytes] = await Promise.all([
    deadline.race(backend.storeStatus()).catch(() => null),
    askDisks(call, map, deadline),
    askCluster(call, deadline).catch(() => null),
    layerBytes(backend, deadline),
  ]);
  const { cluster, groups } = asked ?? { cluster: null, groups: null };
  const mapBytes = backend.mapBytes();
  const seen = { map, mapBytes, nowMs: Date.now(), cluster, groups, store, disks };
  const describe = diskDescriber(backend, bytes, secondsLeftOf(cluster));
  const problems = findProblems(seen);
  return {
    healthy: problems.length === 0,
    summary: summarize(seen, problems),
    problems,
    agent: backend.info(),
    epoch: map.epoch,
    cluster,
    groups,
    store,
    disks: map.disks.flatMap((disk) => {
      const status = disks.get(disk.name);
      return typeof status === "object" ? [describe(disk, status)] : [];
    }),
  };
}

/**
 * Asks for the status of every disk.
 *
 * @returns by name: the status, or why there is none; nothing for a disk that was deleted meanwhile
 */
async function askDisks(
  { backend }: Call,
  { disks }: ClusterMap,
  deadline: Deadline,
): Promise<Map<string, DiskStatus | string>> {
  const found = new Map<string, DiskStatus | string>();
  let next = 0;
  const askAll = async () => {
    while (next < disks.length) {
      const { name } = disks[next++];
      try {
        found.set(name, await deadline.race(backend.diskStatus(name)));
      } catch (error) {
        if (error instanceof ControlFailure && error.error.code === "missing") continue;
        found.set(name, error instanceof Error ? error.message : String(error));
      }
    }
  };
  await Promise.all(Array.from({ length: STATUS_CONCURRENCY_MAX }, askAll));
  return found;
}
