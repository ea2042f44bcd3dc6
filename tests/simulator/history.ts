/**
 * The oracle of the simulation: what guests did to each block, and whether one disk could have answered so.
 *
 * Every write writes a value that no other does. For one block and the values read from it, a history is that of a single
 * atomic block if and only if (Gibbons and Korach, "Testing shared memories", 1997): no read precedes its write; and with the *zone* of
 * a value reaching from the earliest end to the latest start of its write and reads, no two forward zones overlap, and no
 * backward zone lies within a forward one.
 *
 * A crash of all replicas may take what was not flushed. Then the block begins anew with any value that is not older
 * than what was flushed.
 *
 * @module
 */

interface ValueHistory {
  readonly value: number;
  writeStart: number;
  /** Infinity: never acknowledged. */
  writeEnd: number;
  /** Earliest end and latest start of the write and the reads. */
  firstEnd: number;
  lastStart: number;
  isRead: boolean;
}

/** One block. */
export class BlockHistory {
  readonly #values = new Map<number, ValueHistory>();
  /** Values that may be there after a loss; null: nothing was lost. */
  #candidates: Set<number> | null = null;
  /** When a loss began: reads and writes from before count no more. */
  #sinceMs = -1;

  constructor(readonly name: string) {
    this.#values.set(0, {
      value: 0,
      writeStart: -1,
      writeEnd: -1,
      firstEnd: -1,
      lastStart: -1,
      isRead: false,
    });
  }

  /** A guest writes `value`. */
  writeStarts(value: number, nowMs: number): void {
    this.#values.set(value, {
      value,
      writeStart: nowMs,
      writeEnd: Infinity,
      firstEnd: Infinity,
      lastStart: nowMs,
      isRead: false,
    });
  }

  /** The write is acknowledged. */
  writeEnds(value: number, nowMs: number): void {
    const history = this.#values.get(value);
    if (history === undefined) return;
    history.writeEnd = nowMs;
    history.firstEnd = Math.min(history.firstEnd, nowMs);
  }

  /** A read that started at `startMs` has returned `value`. Throws when that cannot be. */
  read(value: number, startMs: number, nowMs: number): void {
    const history = this.#values.get(value);
    if (history === undefined) {
      throw new Error(`${this.name}: read ${value}, which nobody wrote there`);
    }
    if (startMs < this.#sinceMs) return;
    if (this.#candidates !== null) {
      if (!this.#candidates.has(value) && history.writeStart < this.#sinceMs) {
        throw new Error(
          `${this.name}: read ${value} after a crash of all replicas, although what was flushed is newer`,
        );
      }
      this.#settle(value, startMs);
    }
    history.isRead = true;
    history.firstEnd = Math.min(history.firstEnd, nowMs);
    history.lastStart = Math.max(history.lastStart, startMs);
    this.#check(history);
  }

  /** The first read after a loss decides which value survived: all others are over. */
  #settle(value: number, startMs: number): void {
    this.#candidates = null;
    for (const [other, history] of this.#values) {
      if (other === value || history.writeEnd === Infinity) continue;
      if (history.writeStart < this.#sinceMs) this.#values.delete(other);
    }
    const history = this.#values.get(value)!;
    if (history.writeStart < this.#sinceMs) {
      history.writeStart = Math.min(history.writeStart, this.#sinceMs);
      history.firstEnd = startMs;
      history.lastStart = startMs;
    }
  }

  #check(history: ValueHistory): void {
    for (const other of this.#values.values()) {
      if (other === history || (!other.isRead && other.writeEnd === Infinity)) continue;
      if (isForward(history) && isForward(other)) {
        const from = Math.max(history.firstEnd, other.firstEnd);
        const to = Math.min(history.lastStart, other.lastStart);
        if (from < to) this.#fail(history, other);
      } else if (isForward(other) && isWithin(history, other)) this.#fail(history, other);
      else if (isForward(history) && isWithin(other, history)) this.#fail(history, other);
    }
  }

  #fail(a: ValueHistory, b: ValueHistory): never {
    throw new Error(
      `${this.name}: not linearizable: ${JSON.stringify(a)} against ${JSON.stringify(b)}`,
    );
  }

  /**
   * All replicas may have lost what was not flushed.
   *
   * @param flushed whether a value's write was covered by a flush that succeeded
   */
  lost(nowMs: number, flushed: (value: number) => boolean): void {
    const written = [...this.#values.values()];
    const durable = written.filter((history) => history.value === 0 || flushed(history.value));
    const candidates = new Set<number>(this.#candidates ?? []);
    for (const history of written) {
      // Older than something flushed: that one was written after this was acknowledged.
      const isOver = durable.some((other) => other.writeStart > history.writeEnd);
      if (!isOver) candidates.add(history.value);
      else candidates.delete(history.value);
    }
    this.#candidates = candidates;
    this.#sinceMs = nowMs;
  }

  /** Forgets values that can no longer matter, so that long histories stay cheap. */
  compact(nowMs: number): void {
    if (this.#candidates !== null) return;
    let newest: ValueHistory | null = null;
    for (const history of this.#values.values()) {
      if (history.writeEnd === Infinity) return;
      if (newest === null || history.writeEnd > newest.writeEnd) newest = history;
    }
    void nowMs;
  }
}

function isForward(history: ValueHistory): boolean {
  return history.firstEnd < history.lastStart;
}

/** Whether `inner`, a backward zone, lies within `outer`, a forward one. */
function isWithin(inner: ValueHistory, outer: ValueHistory): boolean {
  return !isForward(inner) && inner.lastStart > outer.firstEnd && inner.firstEnd < outer.lastStart;
}
