/**
 * What an export's data looks like, as far as it was asked lately: extents as the agent has told them, good for as long as
 * nothing has been changed since.
 *
 *     runs   pairs: bytes, state bits of `base:allocation`; one after the other from a first byte on
 *
 * Invariant: what is answered was true at some moment after the newest change that a client may know of.
 *
 * @module
 */
import { STATE_HOLE, STATE_ZERO } from "./protocol.ts";

/** States as the admin API names them. */
export type ExtentState = "data" | "zero" | "hole" | "unknown" | "same";

/** An extent as the admin API tells it. */
export interface Extent {
  readonly lengthBytes: number;
  readonly state: ExtentState;
}

/** Bits of a state. What nobody here knows (or only compared) is taken for data: reading it is never wrong. */
export function stateBits(state: ExtentState): number {
  // Zeros take no space either.
  return state === "hole" || state === "zero" ? STATE_HOLE | STATE_ZERO : 0;
}

/** Extents as runs, neighbours of one state together. */
export function runsOf(extents: readonly Extent[]): number[] {
  const runs: number[] = [];
  for (const { lengthBytes, state } of extents) {
    const bits = stateBits(state);
    if (runs.length > 0 && runs[runs.length - 1] === bits) runs[runs.length - 2] += lengthBytes;
    else runs.push(lengthBytes, bits);
  }
  return runs;
}

/** See the head of the file. */
export class ExtentCache {
  #runs: readonly number[] = [];
  #startBytes = 0;
  #changes = -1;

  /**
   * Remembers what was told.
   *
   * @param startBytes first byte of the runs
   * @param changes the queue's count of changes from before the question: it rises when a change begins and when it ends
   */
  store(startBytes: number, runs: readonly number[], changes: number): void {
    this.#startBytes = startBytes;
    this.#runs = runs;
    this.#changes = changes;
  }

  /**
   * Runs from `offsetBytes` on, or null where that is not known (any more).
   *
   * @param changes the queue's count now
   *
   * @example
   * ```ts
   * import { ExtentCache } from "./extents.ts";
   *
   * const cache = new ExtentCache();
   * cache.store(0, [4096, 0, 8192, 3], 7);
   * console.assert(cache.find(2048, 7)?.join() === "2048,0,8192,3");
   * console.assert(cache.find(2048, 8) === null);
   * ```
   */
  find(offsetBytes: number, changes: number): number[] | null {
    if (changes !== this.#changes || offsetBytes < this.#startBytes) return null;
    let at = this.#startBytes;
    for (let i = 0; i < this.#runs.length; i += 2) {
      const end = at + this.#runs[i];
      if (offsetBytes < end) {
        return [end - offsetBytes, this.#runs[i + 1], ...this.#runs.slice(i + 2)];
      }
      at = end;
    }
    return null;
  }
}
