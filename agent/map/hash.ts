/**
 * Which placement group a chunk belongs to, and the hash that spreads families over the groups.
 *
 *     pg = (mix32(family) + chunk) & (pgCount − 1)
 *
 * Consecutive chunks of a family lie in consecutive PGs, so a sequential stream of a guest visits
 * them all in turn; the hash only says where a family begins. Every layer of a family puts chunk *i*
 * into the same PG.
 *
 * This is a contract between all nodes of a cluster and what lies on their disks: the values never
 * change (`hash_test.ts` holds golden ones).
 *
 * Invariant: with `pgCount` doubled, the chunks of PG p are those of p and of p + pgCount: the added
 * bit of the mask decides, the others stay. So a split moves nothing as long as both halves keep
 * their members.
 *
 * @module
 */

/**
 * A bijection of the unsigned 32-bit numbers in which every bit of the input changes every bit of the
 * output about half of the time: C. Wellons's `lowbias32` ("Prospecting for hash functions", 2018)
 * after the golden ratio is added, so that zero is no fixed point.
 *
 * @param value any integer; its low 32 bits count
 * @returns 0…2^32 − 1
 */
export function mix32(value: number): number {
  let word = (value + 0x9e3779b9) | 0;
  word = Math.imul(word ^ (word >>> 16), 0x7feb352d);
  word = Math.imul(word ^ (word >>> 15), 0x846ca68b);
  return (word ^ (word >>> 16)) >>> 0;
}

/**
 * A hash of two numbers; in contrast to {@linkcode mix32}, it is not part of any format.
 *
 * @param first any integer; its low 32 bits count
 * @param second the same
 * @returns 0…2^32 − 1
 */
export function mixPair(first: number, second: number): number {
  return mix32(mix32(first) ^ Math.imul(second, 0x9e3779b1));
}

/**
 * The placement group of a chunk.
 *
 * @param family id of the root disk, an unsigned 32-bit number
 * @param chunk index of the chunk in the disk, 0…2^32 − 1
 * @param pgCount PGs of the pool, a power of two up to 2^31
 *
 * @example
 * ```ts
 * import { pgOf } from "./hash.ts";
 *
 * const before = pgOf(7, 12345, 256);
 * const after = pgOf(7, 12345, 512);
 * if (after !== before && after !== before + 256) throw new Error("a PG splits into two");
 * ```
 */
export function pgOf(family: number, chunk: number, pgCount: number): number {
  return (mix32(family) + chunk) & (pgCount - 1);
}
