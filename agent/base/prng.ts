/**
 * A seeded pseudo-random number generator for simulations, tests and load generators.
 *
 * Algorithm: xoshiro128** (D. Blackman and S. Vigna, "Scrambled linear pseudorandom number
 * generators", 2018), seeded by SplitMix32-style mixing. Fast, no allocation, period 2^128 − 1; not
 * fit for keys: those come from the operating system.
 *
 * Invariant: equal seeds give equal sequences, on every machine and in every version.
 *
 * @module
 */
import type { Random } from "../platform/platform.ts";

/** 2^32, as a divisor. */
const TWO_32 = 2 ** 32;

/**
 * Seeded random numbers.
 *
 * @example
 * ```ts
 * import { Prng } from "./prng.ts";
 * const random = new Prng(7);
 * console.assert(random.below(6) < 6);
 * console.assert(new Prng(7).u32() === new Prng(7).u32());
 * ```
 */
export class Prng implements Random {
  readonly #state = new Uint32Array(4);

  /** @param seed any number; integers up to 2^53 all give different sequences */
  constructor(readonly seed: number) {
    let mixed = (seed >>> 0) ^ Math.imul(Math.floor(seed / TWO_32) >>> 0, 0x9e3779b1);
    for (let index = 0; index < 4; index++) {
      mixed = (mixed + 0x9e3779b9) | 0;
      let word = mixed ^ (mixed >>> 16);
      word = Math.imul(word, 0x21f0aaad);
      word = Math.imul(word ^ (word >>> 15), 0x735a2d97);
      this.#state[index] = word ^ (word >>> 15);
    }
    // The high half once more by itself, so that no two seeds meet; and never the all-zero state.
    this.#state[3] ^= Math.floor(seed / TWO_32) >>> 0;
    if (this.#state.every((word) => word === 0)) this.#state[0] = 1;
  }

  /** An unsigned 32-bit number. */
  u32(): number {
    const state = this.#state;
    const scrambled = Math.imul(state[1], 5);
    const result = Math.imul((scrambled << 7) | (scrambled >>> 25), 9) >>> 0;
    const shifted = state[1] << 9;
    state[2] ^= state[0];
    state[3] ^= state[1];
    state[1] ^= state[2];
    state[0] ^= state[3];
    state[2] ^= shifted;
    state[3] = (state[3] << 11) | (state[3] >>> 21);
    return result;
  }

  /** Fills `bytes`; repeatable, so never for keys outside a simulation. */
  fill(bytes: Uint8Array): void {
    for (let index = 0; index < bytes.length;) {
      for (let word = this.u32(), end = index + 4; index < end && index < bytes.length; index++) {
        bytes[index] = word & 255;
        word >>>= 8;
      }
    }
  }

  /** A number ≥ 0 and < 1, with 53 random bits. */
  fraction(): number {
    const high = this.u32() >>> 5;
    return (high * 2 ** 26 + (this.u32() >>> 6)) / 2 ** 53;
  }

  /**
   * An integer ≥ 0 and < `limit`. The bias is at most limit / 2^32 for limits up to 2^16, and
   * limit / 2^53 above.
   *
   * @param limit 1…2^53
   */
  below(limit: number): number {
    if (!(limit >= 1)) throw new RangeError(`prng: below(${limit}) has nothing to choose from`);
    return Math.floor((limit <= 65536 ? this.u32() / TWO_32 : this.fraction()) * limit);
  }

  /** An integer from `first` to `last`, both included. */
  between(first: number, last: number): number {
    return first + this.below(last - first + 1);
  }

  /** True with probability `probability`: always at 1, never at 0. */
  chance(probability: number): boolean {
    return this.fraction() < probability;
  }

  /** One element of `items`, which must not be empty. */
  pick<T>(items: readonly T[]): T {
    return items[this.below(items.length)];
  }

  /** Puts `items` into a random order, in place (Fisher and Yates), and returns it. */
  shuffle<T>(items: T[]): T[] {
    for (let last = items.length - 1; last > 0; last--) {
      const other = this.below(last + 1);
      const item = items[last];
      items[last] = items[other];
      items[other] = item;
    }
    return items;
  }

  /** A generator of its own, so that what one part draws does not shift what another sees. */
  fork(): Prng {
    return new Prng(this.u32() + (this.u32() & 0x1fffff) * TWO_32);
  }
}
