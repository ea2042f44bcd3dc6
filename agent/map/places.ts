/**
 * Where the parts of a disk live: for a chunk its placement group, and which nodes have it, get it, and shall have it. For a whole disk
 * the same by sets of nodes: thousands of groups have few.
 *
 *     offset ─▶ chunk (4 MiB) ─▶ group, by the hash ─▶ in sync · joining · target · the one to read from
 *
 * Invariants: every chunk of a disk is counted once; the node to read from is the one that the data path itself reads from under this
 * map ({@linkcode readerOf}).
 *
 * @module
 */

import { CHUNK_BYTES } from "../base/limits.ts";
import type { ClusterMap, DiskEntry } from "./model.ts";
import {
  copiesMinOf,
  findNode,
  groupCanRead,
  groupCanWrite,
  pgOfChunk,
  poolOf,
  readerOf,
} from "./queries.ts";

/** Where a group is; lists of nodes are sorted by id. */
export interface GroupPlace {
  /** Nodes that hold every acknowledged write. */
  readonly inSync: readonly number[];
  /** Nodes that get all new writes, and still copy old ones. */
  readonly joining: readonly number[];
  /** Nodes that shall hold it. */
  readonly target: readonly number[];
  /** The node that this one reads from; 0: there is none now. */
  readonly readFrom: number;
  /** Why it cannot be written now, in words (it may not be readable either); null: it can. */
  readonly problem: string | null;
}

/** One chunk. */
export interface ChunkPlace extends GroupPlace {
  readonly chunk: number;
  readonly group: number;
}

/** All groups of a disk that are in one place. */
export interface PlaceSummary extends GroupPlace {
  readonly groups: number;
  readonly chunks: number;
  /** Of the disk's address space. */
  readonly sizeBytes: number;
}

/**
 * Looks where chunks of a disk are.
 *
 * @param self the node that asks; 0: none
 * @returns null: the map has no groups for the disk (yet)
 */
export function placer(
  map: ClusterMap,
  disk: DiskEntry,
  self: number,
): ((chunk: number) => ChunkPlace) | null {
  const pgs = poolOf(map, disk)?.pgs;
  if (pgs === undefined) return null;
  const copiesMin = copiesMinOf(map, disk);
  const isUp = (id: number) => findNode(map, id)?.state === "up";
  const places = new Map<number, GroupPlace>();
  return (chunk) => {
    const group = pgOfChunk(map, disk, chunk);
    let place = places.get(group);
    if (place === undefined) {
      const pg = pgs[group];
      place = {
        inSync: pg.inSync.toSorted(byId),
        joining: pg.joining.toSorted(byId),
        target: pg.target.toSorted(byId),
        readFrom: readerOf({ pg, group, self, isUp }),
        problem: groupCanRead(map, pg) ?? groupCanWrite(map, pg, copiesMin),
      };
      places.set(group, place);
    }
    return { chunk, group, ...place };
  };
}

const byId = (a: number, b: number) => a - b;

/** Chunks of a disk; the last one may be a part of one. */
export function chunksOf({ sizeBytes }: Pick<DiskEntry, "sizeBytes">): number {
  return Math.ceil(sizeBytes / CHUNK_BYTES);
}

/**
 * Counts a disk's chunks by where they are, the most first.
 *
 * @param self the node that asks; 0: none
 * @returns null: the map has no groups for the disk (yet)
 */
export function summarizePlaces(
  map: ClusterMap,
  disk: DiskEntry,
  self: number,
): readonly PlaceSummary[] | null {
  const placeOf = placer(map, disk, self);
  if (placeOf === null) return null;
  const chunks = chunksOf(disk);
  const groups = 2 ** map.pgBits;
  const tailBytes = chunks * CHUNK_BYTES - disk.sizeBytes;
  const found = new Map<string, { -readonly [K in keyof PlaceSummary]: PlaceSummary[K] }>();
  // Groups come round: the first chunks have one each, and the others of a group are a whole round behind each other.
  for (let first = 0; first < Math.min(chunks, groups); first++) {
    const { chunk: _, group: __, ...place } = placeOf(first);
    const key = JSON.stringify(place);
    let sum = found.get(key);
    if (sum === undefined) found.set(key, sum = { ...place, groups: 0, chunks: 0, sizeBytes: 0 });
    const own = Math.floor((chunks - 1 - first) / groups) + 1;
    const hasTail = (chunks - 1 - first) % groups === 0;
    sum.groups++;
    sum.chunks += own;
    sum.sizeBytes += own * CHUNK_BYTES - (hasTail ? tailBytes : 0);
  }
  return [...found.values()].sort((a, b) => b.chunks - a.chunks);
}
