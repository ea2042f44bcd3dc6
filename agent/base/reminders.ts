/**
 * What is to be said once, and rarely again while it stays true: reasons in a log.
 *
 * @module
 */

/** See the head of the file. */
export class Reminders {
  readonly #saidMs = new Map<string, number>();
  readonly #againMs: number;
  readonly #most: number;

  /**
   * @param options.againMs the same is said again after so many milliseconds
   * @param options.most so many are remembered as said; where there are more, all are forgotten, and said anew
   */
  constructor(options: { readonly againMs: number; readonly most: number }) {
    this.#againMs = options.againMs;
    this.#most = options.most;
  }

  /**
   * Whether something is to be said now; if so, it counts as said.
   *
   * @param nowMs a monotonic clock
   */
  isDue(what: string, nowMs: number): boolean {
    if (nowMs - (this.#saidMs.get(what) ?? -Infinity) < this.#againMs) return false;
    if (this.#saidMs.size >= this.#most) this.#saidMs.clear();
    this.#saidMs.set(what, nowMs);
    return true;
  }
}
