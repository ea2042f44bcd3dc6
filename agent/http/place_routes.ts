/**
 * Operations of the admin API about where a disk's bytes are: from the map, and for one block from the store of the node that is asked.
 *
 * @module
 */

import { BLOCK_BYTES, CHUNK_BYTES } from "../base/limits.ts";
import { ControlFailure } from "../map/errors.ts";
import {
  type ClusterMap,
  type DiskEntry,
  disksWithData,
  findNode,
  findNodeByUuid,
  type GroupPlace,
  placer,
  summarizePlaces,
} from "../map/map.ts";
import { type Call, Deadline, json, readableSnapshot, requireDisk, type Route } from "./call.ts";
import type {
  ChunkDocument,
  ChunkListDocument,
  ExtentsRequest,
  ObjectDocument,
  ObjectRequest,
  PlaceDocument,
  PlacesDocument,
} from "./documents.ts";

/** Chunks of one answer: a few hundred KiB of JSON. */
const CHUNKS_MAX = 1024;

/** Their part of the table. Two are questions, though they are POSTs: what they ask for is in their bodies. */
export const PLACE_ROUTES: readonly Route[] = [
  { method: "GET", path: "/v1/disks/{name}/places", handle: listPlaces },
  { method: "GET", path: "/v1/disks/{name}/snapshots/{snapshot}/places", handle: listPlaces },
  { method: "POST", path: "/v1/disks/{name}/chunks", body: "ExtentsRequest", handle: findChunks },
  { method: "POST", path: "/v1/disks/{name}/object", body: "ObjectRequest", handle: findObject },
];

/** What a question is about: a disk, or what it was when a snapshot was taken. Both have the same groups. */
interface Source {
  readonly disk: DiskEntry;
  /** Newest layer of the snapshot; undefined: the disk is meant. */
  readonly layer: number | undefined;
  /** For people: `disk web`, `snapshot web@monday`. */
  readonly text: string;
}

/** @param snapshot name of one of the disk; undefined: the disk itself */
function requireSource(map: ClusterMap, name: string, snapshot: string | undefined): Source {
  const disk = requireDisk(map, name);
  if (snapshot === undefined) return { disk, layer: undefined, text: `disk ${name}` };
  const { layer, sizeBytes } = readableSnapshot(disk, snapshot);
  return { disk: { ...disk, sizeBytes }, layer, text: `snapshot ${name}@${snapshot}` };
}

function listPlaces({ backend, name, part }: Call): Response {
  const map = backend.map();
  const { disk } = requireSource(map, name, part === "" ? undefined : part);
  const found = summarizePlaces(map, disk, selfOf(map, backend.info().nodeId));
  if (found === null) throw new ControlFailure(NO_GROUPS);
  const places = found.map(({ groups, chunks, sizeBytes, ...place }) => ({
    ...describePlace(map, place),
    groups,
    chunks,
    sizeBytes,
  }));
  return json(200, { epoch: map.epoch, chunkBytes: CHUNK_BYTES, places } satisfies PlacesDocument);
}

function findChunks(call: Call): Response {
  const { offsetBytes, lengthBytes, snapshot, since } = call.body as ExtentsRequest;
  if (since !== undefined) {
    throw new ControlFailure({
      code: "invalid",
      message: "'since' says nothing about where chunks are",
      hint: "leave it out: what goes on from a snapshot is on the same nodes",
    });
  }
  const map = call.backend.map();
  const source = requireSource(map, call.name, snapshot);
  const { disk } = source;
  if (offsetBytes + lengthBytes > disk.sizeBytes) {
    throw new ControlFailure(outside(source, `${lengthBytes} bytes at ${offsetBytes} are`));
  }
  const describe = chunkDescriber(call, map, disk);
  const first = Math.floor(offsetBytes / CHUNK_BYTES);
  const end = Math.min(Math.ceil((offsetBytes + lengthBytes) / CHUNK_BYTES), first + CHUNKS_MAX);
  const chunks = Array.from({ length: end - first }, (_, index) => describe(first + index));
  return json(200, { epoch: map.epoch, chunks } satisfies ChunkListDocument);
}

async function findObject(call: Call): Promise<Response> {
  const { backend, name, statusTimeoutMs } = call;
  const { offsetBytes, snapshot } = call.body as ObjectRequest;
  const before = requireSource(backend.map(), name, snapshot);
  if (offsetBytes >= before.disk.sizeBytes) {
    throw new ControlFailure(outside(before, `offset ${offsetBytes} is`));
  }
  const block = await new Deadline(statusTimeoutMs).race(
    backend.block(name, offsetBytes, before.layer),
  );
  const map = backend.map();
  const source = requireSource(map, name, snapshot);
  // Another one of the same name, or one that was cut shorter, since the store was asked.
  const isSame = source.disk.id === before.disk.id && source.layer === before.layer;
  if (!isSame || offsetBytes >= source.disk.sizeBytes) {
    throw new ControlFailure(outside(source, `offset ${offsetBytes} is`));
  }
  const chunk = chunkDescriber(call, map, source.disk)(Math.floor(offsetBytes / CHUNK_BYTES));
  return json(
    200,
    {
      ...chunk,
      blockOffsetBytes: offsetBytes - offsetBytes % BLOCK_BYTES,
      ...block,
      layerOf: block.layer === null ? null : nameOfLayer(map, block.layer),
    } satisfies ObjectDocument,
  );
}

const NO_GROUPS = {
  code: "unavailable",
  message: "this node has no map of a cluster yet",
  hint: "'kelpie status' says what it waits for",
} as const;

function outside({ disk, text }: Source, what: string) {
  return {
    code: "invalid",
    message: `${what} not within ${text} of ${disk.sizeBytes} bytes`,
  } as const;
}

/** The node's id in the map; 0: it is not in it. */
function selfOf(map: ClusterMap, nodeId: string): number {
  return findNodeByUuid(map, nodeId)?.id ?? 0;
}

function chunkDescriber(
  { backend }: Call,
  map: ClusterMap,
  disk: DiskEntry,
): (chunk: number) => ChunkDocument {
  const placeOf = placer(map, disk, selfOf(map, backend.info().nodeId));
  if (placeOf === null) throw new ControlFailure(NO_GROUPS);
  return (index) => {
    const { chunk, group, ...place } = placeOf(index);
    const offsetBytes = chunk * CHUNK_BYTES;
    const lengthBytes = Math.min(CHUNK_BYTES, disk.sizeBytes - offsetBytes);
    return { chunk, group, offsetBytes, lengthBytes, ...describePlace(map, place) };
  };
}

function describePlace(map: ClusterMap, place: GroupPlace): PlaceDocument {
  const nameOf = (id: number) => findNode(map, id)?.name ?? `node ${id}`;
  const { inSync, joining, target, readFrom, problem } = place;
  return {
    inSync: inSync.map(nameOf),
    joining: joining.map(nameOf),
    target: target.map(nameOf),
    readFrom: readFrom === 0 ? null : nameOf(readFrom),
    problem,
  };
}

/** What has a layer as its newest: a disk, or `DISK@NAME`; null: nothing has. */
function nameOfLayer(map: ClusterMap, layer: number): string | null {
  for (const { name, layers, snapshots } of disksWithData(map)) {
    if (layers[0] === layer) return name;
    const found = snapshots.find((snapshot) => snapshot.layer === layer && !snapshot.isAborted);
    if (found !== undefined) return `${name}@${found.name}`;
  }
  return null;
}
