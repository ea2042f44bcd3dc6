/**
 * How much of what some layers hold here is hidden by the layers right above them: what merging them would free. Counted on demand, by
 * what the store's index says of the chunks that both have; nothing is kept, and nothing happens on the way of a write.
 *
 *     above     9  │ a b     f     data or zeros
 *     below     7  │ a   c   f g   data            hidden: a and f
 *
 * One answer does a bounded amount of work and says where to go on: whoever asks for a lot asks many times, and guests are served in
 * between. What changes in between makes the sum inexact; where nothing changes, it is what merging frees, to the block.
 *
 * @module
 */
import { SET_WORDS, sizeOf } from "./block_set.ts";
import { nextHeld } from "./extents.ts";
import type { LocalStore } from "./local_store.ts";

/** Chunks of one answer that both hold: each costs two looks into the index of a few microseconds. */
const CHUNKS_MAX = 64;
/** Looks for the next chunk of one answer: of two lists that never meet, say. */
const LOOKS_MAX = 512;

const data = new Uint32Array(SET_WORDS);
const covered = new Uint32Array(SET_WORDS);
const zeros = new Uint32Array(SET_WORDS);
const poisoned = new Uint32Array(SET_WORDS);

/** Layers, and those that they are to be merged into; each newest first, all of one family. */
export interface LayersToMerge {
  readonly above: readonly number[];
  readonly below: readonly number[];
}

/** See {@linkcode countOverlap}. */
export interface Overlap {
  readonly blocks: number;
  /** The chunk to go on with; −1: that was all. */
  readonly next: number;
}

/**
 * Counts blocks of data of the layers below, each place once, where those above hold something, too.
 *
 * @param from the first chunk to look at
 */
export function countOverlap(
  store: LocalStore,
  { above, below }: LayersToMerge,
  from: number,
): Overlap {
  let blocks = 0;
  let chunks = 0;
  let chunk = from;
  for (let looks = 0; looks < LOOKS_MAX && chunks < CHUNKS_MAX; looks += 2) {
    const lower = nextHeld(store, below, chunk);
    const upper = lower === Infinity ? Infinity : nextHeld(store, above, lower);
    if (upper === Infinity) return { blocks, next: -1 };
    chunk = upper;
    if (upper > lower) continue;
    blocks += overlapOf(store, { above, below }, chunk);
    chunks++;
    chunk++;
  }
  return { blocks, next: chunk };
}

function overlapOf(store: LocalStore, { above, below }: LayersToMerge, chunk: number): number {
  if (store.describeChain(below, chunk, data, zeros, poisoned) === 0) return 0;
  store.describeChain(above, chunk, covered, zeros, poisoned);
  for (let word = 0; word < SET_WORDS; word++) {
    data[word] &= covered[word] | zeros[word] | poisoned[word];
  }
  return sizeOf(data);
}
