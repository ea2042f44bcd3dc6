/**
 * How fast data may be copied between replicas while guests work on a node.
 *
 *     no guest for QUIET_MS ──▶ no limit
 *     guests                ──▶ the greater of RECOVERY_SHARE × what they had done, and FLOOR_BYTES_PER_SECOND
 *
 * A node that copies for each unit of work that it does for guests at most RECOVERY_SHARE of a unit leaves them
 * 1 / (1 + RECOVERY_SHARE) of what it can do, however fast or slow it is: where guests do less because of the copying, the
 * copying becomes less, too. Guests that wait for something else, such as one with a single request under way, would let it
 * starve; the floor is what any disk and network can do beside them.
 *
 * Both ends hold to it: the one that copies for the guests that write to it, the one that is copied from for the guests that
 * read from it. Otherwise one that newcomers read from would serve them before its guests.
 *
 * Invariants:
 * - While guests work, what is granted in any time is bounded by that rule and one burst.
 * - What is asked for is granted in the end: the floor is above 0.
 *
 * @module
 */

/** Part of the guests' work that copying may take on top. */
export const RECOVERY_SHARE = 0.5;
/** Bytes per second that may be copied whatever guests do. */
export const FLOOR_BYTES_PER_SECOND = 16 * 1024 * 1024;
/** What a guest's request costs besides its bytes, in bytes: about 8 µs, as a local read of 4 KiB. */
export const REQUEST_BYTES = 8192;
/** Milliseconds without guests' work after which there is no limit. */
export const QUIET_MS = 200;
/** Longest time over which what was not used is saved up, in milliseconds. */
const BURST_MS = 100;

/** See the head of the file. */
export class Pace {
  readonly #work: () => number;
  #workBefore: number;
  #nowMs = 0;
  #busyUntilMs = -Infinity;
  #allowance = 0;

  /** @param work bytes that guests were served so far, with {@linkcode REQUEST_BYTES} for each request; only rises */
  constructor(work: () => number) {
    this.#work = work;
    this.#workBefore = work();
  }

  /**
   * Time has passed.
   *
   * @param nowMs a monotonic clock, in milliseconds
   */
  advance(nowMs: number): void {
    const elapsedMs = nowMs - this.#nowMs;
    if (elapsedMs <= 0) return;
    this.#nowMs = nowMs;
    const work = this.#work();
    const done = work - this.#workBefore;
    this.#workBefore = work;
    if (done > 0) this.#busyUntilMs = nowMs + QUIET_MS;
    // What was done over a long time says how much that is in a burst.
    const countedMs = Math.min(elapsedMs, BURST_MS);
    const share = RECOVERY_SHARE * done * countedMs / elapsedMs;
    const grant = Math.max(share, FLOOR_BYTES_PER_SECOND * countedMs / 1000);
    const most = Math.max(grant, FLOOR_BYTES_PER_SECOND * BURST_MS / 1000);
    this.#allowance = Math.min(most, this.#allowance + grant);
  }

  /** Takes `bytes` of what may be copied now; false when nothing may, until time has passed. */
  take(bytes: number): boolean {
    if (this.#nowMs >= this.#busyUntilMs) return true;
    if (this.#allowance <= 0) return false;
    // Into debt, so that what is longer than a burst gets its turn; paid back before the next.
    this.#allowance -= bytes;
    return true;
  }
}
