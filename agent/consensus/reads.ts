/**
 * Reads of a leader: at which index may a state machine answer so that the answer is current?
 *
 * Raft dissertation, section 6.4: the commit index of now, once a round of heartbeats that began
 * later has been answered by a majority (so nobody else led meanwhile), in a term in which
 * something was committed (so that the commit index is current). Reads that come during a round
 * share the next one.
 *
 *     wait ──round begins──► asked ──majority──► confirmed ──applied──► handed out
 *
 * @module
 */

import { READS_MAX } from "./limits.ts";

/** What became of a read. */
export interface ReadState {
  /** As it was given. */
  readonly context: number;
  /**
   * The state machine may answer: it has been handed everything up to this index, which is not
   * below what was committed anywhere when the read was asked for. Null: leadership was lost, ask
   * again.
   */
  readonly index: number | null;
}

/** See the file's head. */
export class Reads {
  #waiting: number[] = [];
  #asked: number[] = [];
  #askedIndex = 0;
  /** The newest round, counted from 1 in each term; 0: none yet. */
  #round = 0;
  readonly #done: ReadState[] = [];

  /** Number of the newest round. */
  get round(): number {
    return this.#round;
  }

  /** Is there a round that is not confirmed? */
  get isAsking(): boolean {
    return this.#asked.length > 0;
  }

  /** Are there reads for which a round should begin? */
  get isWaiting(): boolean {
    return this.#waiting.length > 0;
  }

  /** Is there room for one more? */
  get isFull(): boolean {
    return this.#waiting.length + this.#asked.length + this.#done.length >= READS_MAX;
  }

  /** Takes a read. */
  add(context: number): void {
    this.#waiting.push(context);
  }

  /**
   * Begins a round for all that wait; the last one must be over.
   *
   * @param commit the commit index of now
   */
  begin(commit: number): void {
    this.#asked = this.#waiting;
    this.#waiting = [];
    this.#askedIndex = commit;
    this.#round++;
  }

  /** A majority has confirmed this round, and with it all before. */
  confirm(round: number): void {
    if (round < this.#round) return;
    for (const context of this.#asked) this.#done.push({ context, index: this.#askedIndex });
    this.#asked = [];
  }

  /** Leadership is lost or new: all that is not confirmed fails, and rounds count from 1 again. */
  reset(): void {
    for (const context of [...this.#asked, ...this.#waiting]) {
      this.#done.push({ context, index: null });
    }
    this.#asked = [];
    this.#waiting = [];
    this.#round = 0;
  }

  /** Those that can be answered by a state machine at `applied`, oldest first. */
  take(applied: number): ReadState[] {
    const isReady = (read: ReadState) => read.index === null || read.index <= applied;
    const ready = this.#done.filter(isReady);
    if (ready.length > 0) {
      const rest = this.#done.filter((read) => !isReady(read));
      this.#done.splice(0, this.#done.length, ...rest);
    }
    return ready;
  }
}
