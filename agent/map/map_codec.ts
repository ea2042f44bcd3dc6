/**
 * The cluster map as bytes: MessagePack, versioned, the same bytes for the same map everywhere.
 *
 *     [ "kelpie.map", version,                 version 1:
 *       [ epoch, next disk, next layer,
 *         [ copies ],                          settings
 *         [ disk, … ] ] ]                      sorted by name
 *
 *     disk: [ id, name, size in bytes, [ layer, … ], created in ms, flags, copies, generation,
 *             { key: value, … } ]              attributes, sorted by key
 *
 *     flags: bit 0 read-only; other bits are zero, and checked
 *
 * Positions are only appended, and only with a new version; a golden file is kept for every version.
 * Decoding trusts nothing: types, ranges, order and every invariant of the map are checked.
 *
 * @module
 */

import { Packr } from "msgpackr";
import { failure, type Result, success } from "./errors.ts";
import {
  type Attributes,
  checkMap,
  type ClusterMap,
  type DiskEntry,
  MAP_BYTES_MAX,
  type Settings,
} from "./map.ts";

/** Version that {@linkcode encodeMap} writes, and the newest that {@linkcode decodeMap} reads. */
export const MAP_VERSION = 1;

const MAGIC = "kelpie.map";

const FLAG_READ_ONLY = 1;

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
  const packed = packr.pack([MAGIC, MAP_VERSION, [
    map.epoch,
    map.nextDisk,
    map.nextLayer,
    [map.settings.copies],
    map.disks.map(diskFields),
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

function diskFields(disk: DiskEntry): unknown[] {
  return [
    disk.id,
    disk.name,
    disk.sizeBytes,
    disk.layers,
    disk.createdMs,
    disk.readOnly ? FLAG_READ_ONLY : 0,
    disk.copies,
    disk.generation,
    Object.fromEntries(Object.entries(disk.attributes).toSorted(byKey)),
  ];
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
  const map = readMap(decoded[2]);
  if (map === null) return corrupt("a field has the wrong type");
  const error = checkMap(map);
  return error === null ? success(map) : { ok: false, error };
}

function corrupt(reason: string): Result<ClusterMap> {
  return failure("corrupt", `the cluster map is damaged: ${reason}`);
}

function readMap(value: unknown): ClusterMap | null {
  if (!Array.isArray(value) || value.length !== 5) return null;
  const [epoch, nextDisk, nextLayer] = value;
  const settings = readSettings(value[3]);
  const disks = readList(value[4], readDisk);
  if (!isNumbers([epoch, nextDisk, nextLayer]) || settings === null || disks === null) return null;
  return { epoch, nextDisk, nextLayer, settings, disks };
}

function readSettings(value: unknown): Settings | null {
  if (!Array.isArray(value) || value.length !== 1 || !isNumbers(value)) return null;
  return { copies: value[0] };
}

function readDisk(value: unknown): DiskEntry | null {
  if (!Array.isArray(value) || value.length !== 9) return null;
  const [id, name, sizeBytes, layers, createdMs, flags, copies, generation] = value;
  const attributes = readAttributes(value[8]);
  const readable = isNumbers([id, sizeBytes, createdMs, copies, generation]) && isNumbers(layers) &&
    typeof name === "string" && (flags === 0 || flags === FLAG_READ_ONLY);
  if (!readable || attributes === null) return null;
  const readOnly = flags === FLAG_READ_ONLY;
  return { id, name, sizeBytes, layers, createdMs, readOnly, copies, generation, attributes };
}

function readAttributes(value: unknown): Attributes | null {
  if (typeof value !== "object" || value === null) return null;
  if (Object.getPrototypeOf(value) !== Object.prototype) return null;
  const entries = Object.entries(value);
  return entries.every(([, each]) => typeof each === "string") ? Object.fromEntries(entries) : null;
}

function readList<T>(value: unknown, read: (item: unknown) => T | null): T[] | null {
  if (!Array.isArray(value)) return null;
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
