/**
 * Sets of a chunk's blocks: bit b of word w stands for block 32·w + b, in memory as in messages.
 *
 * @module
 */
import { CHUNK_BLOCKS } from "../base/limits.ts";

/** Words of a set of a chunk's blocks. */
export const SET_WORDS = CHUNK_BLOCKS / 32;

/** Whether a set of blocks has a block. */
export function has(set: Uint32Array, block: number): boolean {
  return (set[block >>> 5] >>> (block & 31) & 1) !== 0;
}

/** Adds a block to a set. */
export function add(set: Uint32Array, block: number): void {
  set[block >>> 5] |= 1 << (block & 31);
}

/** Takes a block out of a set. */
export function remove(set: Uint32Array, block: number): void {
  set[block >>> 5] &= ~(1 << (block & 31));
}

/** Blocks of a set. */
export function sizeOf(set: Uint32Array): number {
  let size = 0;
  for (const word of set) size += bitsOf(word);
  return size;
}

/** How many bits of a word are set. */
function bitsOf(word: number): number {
  let bits = word - (word >>> 1 & 0x5555_5555);
  bits = (bits & 0x3333_3333) + (bits >>> 2 & 0x3333_3333);
  return Math.imul(bits + (bits >>> 4) & 0x0f0f_0f0f, 0x0101_0101) >>> 24;
}
