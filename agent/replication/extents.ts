/**
 * Which parts of a disk or a snapshot hold data, or may differ from an older snapshot, as this node's replicas know it: for copies that
 * want to leave out what is empty, or what another copy has already.
 *
 * What differs between two moments lies in the layers above the older one's: only those are looked at, and what is in none of them is
 * the **same**. Where they hold nothing at all, that costs a look into their lists of chunks and nothing per chunk. A block that was
 * written with what it held before counts as data: an answer may name too much, never too little.
 *
 * Only a replica that could be read from right now is asked (`GroupView.readFrom`), under the same conditions as a read: it has every
 * write that was acknowledged. Of all other chunks this node says that it does not know.
 *
 * @module
 */
import { BLOCK_BYTES, CHUNK_BYTES } from "../base/limits.ts";
import { has, SET_WORDS } from "./block_set.ts";
import { chunkList, type LocalStore } from "./local_store.ts";
import type { ClusterView, DiskView } from "./view.ts";

/** What a part of a disk is; the order is that of {@linkcode EXTENT_STATES}. */
export const enum ExtentKind {
  Data = 0,
  /** Zeros that were written, or put over older data. */
  Zero = 1,
  /** Never written, or discarded: reads as zeros. */
  Hole = 2,
  /** Held by other nodes only, or nobody may read it now: data, and different, for all that this node knows. */
  Unknown = 3,
  /** No layer above the one that was named holds anything of it. */
  Same = 4,
}

/** Extents of one answer. */
export const EXTENTS_MAX = 1024;

/**
 * Work of one answer: a chunk costs one, and one with anything in it {@linkcode FULL_CHUNK_COST}. That is 16 GiB of
 * nothing or 1 GiB of data, and a few milliseconds at the most, for which guests wait.
 */
const COST_MAX = 4096;
const FULL_CHUNK_COST = 16;

const data = new Uint32Array(SET_WORDS);
const zeros = new Uint32Array(SET_WORDS);
const poisoned = new Uint32Array(SET_WORDS);

/** What there is to know of one block. */
export interface BlockFound {
  readonly kind: ExtentKind;
  /** The layer that a read of it comes upon; 0: none holds it, or it is not known. */
  readonly layer: number;
}

/**
 * Looks up one block, under the same conditions as {@linkcode describeExtents}.
 *
 * @param block 0…1023 of the chunk
 */
export function findBlock(
  query: Pick<ExtentsQuery, "view" | "store" | "disk" | "layer" | "mayRead">,
  chunk: number,
  block: number,
): BlockFound {
  const { view, store, disk, layer: newest, mayRead } = query;
  const unknown = { kind: ExtentKind.Unknown, layer: 0 };
  // A layer that is merged away, or that this node has not heard of, is not to be read through.
  if (!mayRead || !view.isOfFamily(disk, newest) || !view.isReadable(newest)) return unknown;
  if (view.groupOf(disk, chunk).readFrom !== view.self) return unknown;
  const word = block >>> 5, bit = 1 << (block & 31);
  for (const layer of view.chain(newest)) {
    if (store.paths?.isLost(layer, chunk)) return unknown;
    store.describeChunk(layer, chunk, data, zeros, poisoned);
    // What is damaged was data: whoever reads it shall hear of it.
    if (((data[word] | poisoned[word]) & bit) !== 0) return { kind: ExtentKind.Data, layer };
    if ((zeros[word] & bit) !== 0) return { kind: ExtentKind.Zero, layer };
  }
  return { kind: ExtentKind.Hole, layer: 0 };
}

/** What to look at. */
export interface ExtentsQuery {
  readonly view: ClusterView;
  readonly store: LocalStore;
  readonly disk: DiskView;
  /** Newest layer of what is asked about, in the chain of the disk or of one of its snapshots. */
  readonly layer: number;
  /** A layer below that one: only what the layers above it hold is told apart. 0: all layers count. */
  readonly since: number;
  /** Reads of this layer would be served now. */
  readonly mayRead: boolean;
  /** A multiple of 4096. */
  readonly startBytes: number;
  /** Up to the end of the disk, rounded up to a multiple of 4096. */
  readonly endBytes: number;
}

/**
 * Describes a range from its start on; as much of it as one answer holds, and some of it in any case.
 *
 * @returns pairs: bytes, {@linkcode ExtentKind}; neighbours differ
 */
export function describeExtents(query: ExtentsQuery): number[] {
  const { startBytes, endBytes, view, disk, layer, since } = query;
  const runs: number[] = [];
  const layers = layersOf(query);
  // A layer that is merged away, or that this node has not heard of, is not to be read through.
  if (layers === null || !query.mayRead || !view.isReadable(layer)) {
    return [endBytes - startBytes, ExtentKind.Unknown];
  }
  const empty = since === 0 ? ExtentKind.Hole : ExtentKind.Same;
  const isAllHere = since !== 0 && query.store.paths?.isImpaired !== true &&
    disk.groups.every(({ readFrom }) => readFrom === view.self);
  let cost = 0;
  let at = startBytes;
  while (at < endBytes && cost < COST_MAX && runs.length < 2 * EXTENTS_MAX) {
    const chunk = Math.floor(at / CHUNK_BYTES);
    if (isAllHere) {
      const next = Math.min(endBytes, nextHeld(query.store, layers, chunk) * CHUNK_BYTES);
      if (next > at) {
        push(runs, next - at, empty);
        at = next;
        cost++;
        continue;
      }
    }
    const end = Math.min(endBytes, (chunk + 1) * CHUNK_BYTES);
    const kind = describeChunk(query, layers, empty, chunk);
    cost++;
    if (kind !== null) push(runs, end - at, kind);
    else {
      cost += FULL_CHUNK_COST;
      const base = chunk * CHUNK_BYTES;
      pushBlocks(runs, empty, (at - base) / BLOCK_BYTES, (end - base) / BLOCK_BYTES);
    }
    at = end;
  }
  return runs;
}

/** The layers that count, newest first; null: the one to compare with is not below the one that is asked about. */
function layersOf({ view, disk, layer, since }: ExtentsQuery): readonly number[] | null {
  if (!view.isOfFamily(disk, layer)) return null;
  const chain = view.chain(layer);
  if (since === 0) return chain;
  const at = chain.indexOf(since);
  return at < 0 || !view.isReadable(since) ? null : chain.slice(0, at);
}

const found = chunkList(1);

/**
 * The first chunk from one on of which any of the layers may have anything here; Infinity: there is none. Where a layer has nothing for
 * terabytes, the store does not look at all of it at once: then it is one before which there is nothing.
 */
export function nextHeld(store: LocalStore, layers: readonly number[], from: number): number {
  let next = Infinity;
  for (const layer of layers) {
    store.listChunks(layer, from, found);
    if (found.count > 0) next = Math.min(next, found.chunks[0]);
    else if (found.next >= 0) next = Math.min(next, found.next);
  }
  return next;
}

/**
 * The kind of a whole chunk, or null: it is in `data` and `zeros`.
 *
 * @param empty of what is in none of the layers
 */
function describeChunk(
  { view, store, disk }: ExtentsQuery,
  layers: readonly number[],
  empty: ExtentKind,
  chunk: number,
): ExtentKind | null {
  if (view.groupOf(disk, chunk).readFrom !== view.self) return ExtentKind.Unknown;
  if (layers.some((layer) => store.paths?.isLost(layer, chunk))) return ExtentKind.Unknown;
  store.describeChain(layers, chunk, data, zeros, poisoned);
  let held = 0;
  for (let word = 0; word < SET_WORDS; word++) {
    // What is damaged was data: whoever reads it shall hear of it.
    data[word] |= poisoned[word];
    held |= data[word] | zeros[word];
  }
  return held === 0 ? empty : null;
}

function pushBlocks(runs: number[], empty: ExtentKind, first: number, end: number): void {
  let from = first;
  let kind = kindOf(first, empty);
  for (let block = first + 1; block < end; block++) {
    // Most words are all of one kind.
    if (block % 32 === 0 && block + 32 <= end && kindOfWord(block >>> 5, empty) === kind) {
      block += 31;
      continue;
    }
    const next = kindOf(block, empty);
    if (next === kind) continue;
    push(runs, (block - from) * BLOCK_BYTES, kind);
    from = block;
    kind = next;
  }
  push(runs, (end - from) * BLOCK_BYTES, kind);
}

function kindOf(block: number, empty: ExtentKind): ExtentKind {
  if (has(data, block)) return ExtentKind.Data;
  return has(zeros, block) ? ExtentKind.Zero : empty;
}

/** The kind of 32 blocks, or −1: they are of several. */
function kindOfWord(word: number, empty: ExtentKind): number {
  if (data[word] === 0xffff_ffff) return ExtentKind.Data;
  if (zeros[word] === 0xffff_ffff) return ExtentKind.Zero;
  return (data[word] | zeros[word]) === 0 ? empty : -1;
}

function push(runs: number[], bytes: number, kind: ExtentKind): void {
  if (runs.length > 0 && runs[runs.length - 1] === kind) runs[runs.length - 2] += bytes;
  else runs.push(bytes, kind);
}
