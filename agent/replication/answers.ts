/**
 * What answers about a chunk carry beside their heads: what it is made of, and checksums of its blocks.
 *
 * @module
 */
import { BLOCK_BYTES, BLOCK_SHIFT } from "../base/limits.ts";
import type { Kernel } from "../platform/platform.ts";
import { SET_WORDS } from "./block_set.ts";

/**
 * Reads the answer to a Describe.
 *
 * @param extra of `DESCRIPTION_BYTES` bytes
 * @param data set of the blocks that are data; overwritten
 * @param zeros set of the blocks that are zeros; overwritten
 */
export function readDescription(extra: Uint8Array, data: Uint32Array, zeros: Uint32Array): void {
  const words = new DataView(extra.buffer, extra.byteOffset, extra.byteLength);
  for (let i = 0; i < SET_WORDS; i++) {
    data[i] = words.getUint32(i * 4, true);
    zeros[i] = words.getUint32((SET_WORDS + i) * 4, true);
  }
}

/**
 * Computes the checksums of blocks that came as the answer to a Read, and compares them with what the other node says of them.
 *
 * @param kernel of the memory that they lie in
 * @param offset where they begin, in bytes
 * @param bytes how many came
 * @param count blocks that were asked for
 * @param extra the other node's checksums, u32 each
 * @returns one for each block; null: these are not all of them, or some do not match
 */
export function verifyBlocks(
  kernel: Kernel,
  offset: number,
  bytes: number,
  count: number,
  extra: Uint8Array,
): Uint32Array<ArrayBuffer> | null {
  if (bytes !== count << BLOCK_SHIFT || extra.length !== count * 4) return null;
  const sums = new DataView(extra.buffer, extra.byteOffset, extra.byteLength);
  const checksums = new Uint32Array(count);
  for (let i = 0; i < count; i++) {
    checksums[i] = kernel.checksum(offset + (i << BLOCK_SHIFT), BLOCK_BYTES);
    if (checksums[i] !== sums.getUint32(i * 4, true)) return null;
  }
  return checksums;
}
