/**
 * What a node remembers of its data paths: who they are, and which chunks each holds. A value of META, the same on every
 * path.
 *
 *       0  version      u8, 1
 *       1  reserved     u8, 0
 *       2  paths        u16, 1…64
 *       4  table        16384 × u8: path of each slot, 0: none (slots.ts)
 *       …  paths        each:  0  id               u8, 1…255
 *                              1  reserved         u8, 0
 *                              2  locationBytes    u16, 0…512
 *                              4  storeId          16 bytes
 *                             20  capacity         u32, in MiB, as it was when it was last open
 *                             24  location         UTF-8: where it was last; empty: it was left out on purpose
 *
 * Beside it a count of all changes of META, by which a path that was away is known to be behind: u64, of which 53 bits are used.
 *
 * @module
 */
import { toHex } from "../base/bytes.ts";
import { LOCATION_BYTES_MAX } from "../base/limits.ts";
import { NO_PATH, SLOTS } from "./slots.ts";

/** Keys of META. */
export const RECORD_KEY = "paths", COUNT_KEY = "paths-count";
/** Key of META that is there while a path is being brought in line with the others. */
export const PARTIAL_KEY = "paths-partial";

/**
 * What each start, and each loss of a path, adds to the count of changes: more than changes can be under way at a time. A path that
 * is missing may have some that no other has and that were never done; what is done without it must count for more.
 */
export const COUNT_STEP = 65536;

/** Most paths that are remembered, with those that are gone. */
export const PATHS_KNOWN_MAX = 64;

const VERSION = 1;
const HEAD_BYTES = 4;
const ENTRY_BYTES = 24;
const ID_BYTES = 16;
const CAPACITY_UNIT = 1024 * 1024;

/** One path that is known. */
export interface KnownPath {
  /** 1…255; not used again while a slot names it. */
  readonly id: number;
  /** Of its store: 32 hexadecimal digits. */
  readonly storeId: string;
  /** Where it was last; "": it was left out on purpose. */
  readonly location: string;
  /** Bytes that fit, in whole MiB. */
  readonly capacityBytes: number;
}

/** See the head of the file. */
export interface PathRecord {
  readonly paths: readonly KnownPath[];
  /** {@linkcode SLOTS} ids. */
  readonly table: Uint8Array;
}

/** Encodes a record; bytes of the caller's own. */
export function encodeRecord(record: PathRecord): Uint8Array<ArrayBuffer> {
  const locations = record.paths.map(({ location }) => new TextEncoder().encode(location));
  const length = locations.reduce(
    (sum, { length }) => sum + ENTRY_BYTES + length,
    HEAD_BYTES + SLOTS,
  );
  const bytes = new Uint8Array(length);
  const view = new DataView(bytes.buffer);
  bytes[0] = VERSION;
  view.setUint16(2, record.paths.length, true);
  bytes.set(record.table, HEAD_BYTES);
  let at = HEAD_BYTES + SLOTS;
  for (const [index, { id, storeId, capacityBytes }] of record.paths.entries()) {
    bytes[at] = id;
    view.setUint16(at + 2, locations[index].length, true);
    for (let i = 0; i < ID_BYTES; i++) {
      bytes[at + 4 + i] = parseInt(storeId.slice(2 * i, 2 * i + 2), 16);
    }
    view.setUint32(at + 20, Math.floor(capacityBytes / CAPACITY_UNIT), true);
    bytes.set(locations[index], at + ENTRY_BYTES);
    at += ENTRY_BYTES + locations[index].length;
  }
  return bytes;
}

/**
 * Decodes a record.
 *
 * @param bytes anything; not kept
 * @returns null for bytes that are none, or of a newer version
 */
export function decodeRecord(bytes: Uint8Array): PathRecord | null {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (bytes.length < HEAD_BYTES + SLOTS || bytes[0] !== VERSION || bytes[1] !== 0) return null;
  const count = view.getUint16(2, true);
  if (count < 1 || count > PATHS_KNOWN_MAX) return null;
  const table = bytes.slice(HEAD_BYTES, HEAD_BYTES + SLOTS);
  const paths: KnownPath[] = [];
  const ids = new Set<number>();
  let at = HEAD_BYTES + SLOTS;
  for (let i = 0; i < count; i++) {
    if (at + ENTRY_BYTES > bytes.length) return null;
    const id = bytes[at];
    const length = view.getUint16(at + 2, true);
    const end = at + ENTRY_BYTES + length;
    const isRight = id !== NO_PATH && !ids.has(id) && bytes[at + 1] === 0 &&
      length <= LOCATION_BYTES_MAX && end <= bytes.length;
    if (!isRight) return null;
    ids.add(id);
    paths.push({
      id,
      storeId: toHex(bytes.subarray(at + 4, at + 4 + ID_BYTES)),
      location: new TextDecoder().decode(bytes.subarray(at + ENTRY_BYTES, end)),
      capacityBytes: view.getUint32(at + 20, true) * CAPACITY_UNIT,
    });
    at = end;
  }
  if (at !== bytes.length || table.some((id) => id !== NO_PATH && !ids.has(id))) return null;
  return { paths, table };
}

/** Encodes the count of changes. */
export function encodeCount(count: number): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(8);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, count >>> 0, true);
  view.setUint32(4, Math.floor(count / 2 ** 32), true);
  return bytes;
}

/** Decodes the count of changes; 0 when there is none. */
export function decodeCount(bytes: Uint8Array | null): number {
  if (bytes === null || bytes.length !== 8) return 0;
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  return view.getUint32(0, true) + view.getUint32(4, true) * 2 ** 32;
}
