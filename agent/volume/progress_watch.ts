/**
 * Whether requests come back: tells a disk that works from one that stands still, whatever the reason.
 *
 * Invariant: as long as requests are in flight and none of them comes back, `stalledMs` grows; whoever waits is never taken
 * for served because the part that holds it up does not know that it does.
 *
 * @module
 */

/** What is watched: a volume. */
export interface Progress {
  /** Requests under way. */
  readonly inFlight: number;
  /** Requests that have come back; only rises. */
  readonly finished: number;
}

/** See the head of the file. */
export class ProgressWatch {
  readonly #watched: Progress;
  #finished = -1;
  /** When a request had come back last, or none was in flight. */
  #progressMs = 0;

  constructor(watched: Progress) {
    this.#watched = watched;
  }

  /**
   * Looks whether anything has come back; called a few times a second.
   *
   * @param nowMs a monotonic clock, in milliseconds
   */
  look(nowMs: number): void {
    const { inFlight, finished } = this.#watched;
    if (inFlight > 0 && finished === this.#finished) return;
    this.#finished = finished;
    this.#progressMs = nowMs;
  }

  /** Milliseconds for which requests have been in flight without one of them coming back, by the clock of {@linkcode look}. */
  stalledMs(nowMs: number): number {
    const { inFlight, finished } = this.#watched;
    const isStalled = inFlight > 0 && finished === this.#finished;
    return isStalled ? Math.max(0, nowMs - this.#progressMs) : 0;
  }
}
