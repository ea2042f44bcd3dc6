/**
 * The oracle of the simulation: what guests did to each block, and whether one disk could have answered so.
 *
 * Every write writes a value that no other does. For one block and the values read from it, a history is that of a single
 * atomic block if and only if (Gibbons and Korach, "Testing shared memories", 1997): no read precedes its write; and with the *zone* of
 * a value reaching from the earliest end to the latest start of its write and reads, no two forward zones overlap, and no
 * backward zone lies within a forward one.
 *
 * Zeros are written many times (discard, write-zeroes, and the block before its first write), so a read of them does not say
 * which ones it saw. It is checked against what is certain: some zeroing may be the last before it, and neither it nor a zeroing
 * lies within the forward zone of a value.
 *
 * A crash of all replicas may take what was not flushed. Then the block begins anew with any content that is not older
 * than what was flushed; the first read of something from before decides which. (One of what was written since does not: another read,
 * under way for longer, may still return what was there.)
 *
 * @module
 */

/** Reads of zeros that are remembered, to be checked against reads of values that come later. */
const ZERO_READS_MAX = 64;

interface Content {
  /** Number of the write: also the value, unless it is zeros. */
  readonly id: number;
  readonly isZero: boolean;
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
  readonly #contents = new Map<number, Content>();
  #zeroReads: { start: number; end: number }[] = [];
  /** Writes that may have survived a loss; null: nothing was lost since the last read. */
  #candidates: Set<number> | null = null;
  /** When the last loss was: reads from before count no more. */
  #sinceMs = -1;
  /** Acknowledged writes that are gone, though they were newer than what survived. */
  readonly #lost = new Set<number>();

  /**
   * @param survived told of what a read has found to have survived a loss: that was made durable
   * @param begin the value that it begins with, durably, and since when; zeros unless given
   */
  constructor(
    readonly name: string,
    readonly survived: (id: number) => void = () => {},
    begin: { readonly value: number; readonly atMs: number } = { value: 0, atMs: -1 },
  ) {
    this.#add(begin.value, begin.value === 0, begin.atMs, begin.atMs);
    this.#sinceMs = begin.atMs;
  }

  #add(id: number, isZero: boolean, writeStart: number, writeEnd: number): void {
    const content: Content = {
      id,
      isZero,
      writeStart,
      writeEnd,
      firstEnd: writeEnd,
      lastStart: writeStart,
      isRead: false,
    };
    this.#contents.set(id, content);
  }

  /** A guest writes the value `id`, or zeros. */
  writeStarts(id: number, nowMs: number, isZero = false): void {
    this.#add(id, isZero, nowMs, Infinity);
  }

  /** The write is acknowledged. */
  writeEnds(id: number, nowMs: number): void {
    const content = this.#contents.get(id);
    if (content === undefined) return;
    content.writeEnd = nowMs;
    content.firstEnd = Math.min(content.firstEnd, nowMs);
  }

  /** A read that started at `startMs` has returned `value` (0: zeros). Throws when that cannot be. */
  read(value: number, startMs: number, nowMs: number): void {
    if (startMs < this.#sinceMs) return;
    if (value === 0) return this.#readZeros(startMs, nowMs);
    const content = this.#contents.get(value);
    if (content === undefined || content.isZero) {
      throw new Error(
        `${this.name}: read ${value}, which nobody wrote there, or which was lost or overwritten`,
      );
    }
    if (this.#candidates !== null) {
      if (!this.#candidates.has(value) && content.writeEnd < this.#sinceMs) {
        throw new Error(
          `${this.name}: read ${value} after a crash of all replicas, although what was flushed is newer`,
        );
      }
      if (this.#candidates.has(value)) {
        this.#settle((other) => other === content);
        if (content.writeEnd < Infinity) this.survived(value);
      }
    }
    content.isRead = true;
    content.firstEnd = Math.min(content.firstEnd, nowMs);
    content.lastStart = Math.max(content.lastStart, startMs);
    this.#check(content);
  }

  #readZeros(start: number, end: number): void {
    const contents = [...this.#contents.values()];
    if (this.#candidates !== null) {
      const isPossible = contents.some((content) =>
        content.isZero && (this.#candidates!.has(content.id) || content.writeEnd >= this.#sinceMs)
      );
      if (!isPossible) {
        throw new Error(
          `${this.name}: read zeros after a crash of all replicas, although what was flushed is newer`,
        );
      }
      const isFromSince = contents.some((content) =>
        content.isZero && content.writeStart >= this.#sinceMs && content.writeStart <= end
      );
      if (!isFromSince) this.#settle((content) => content.isZero);
    }
    const values = contents.filter((content) => !content.isZero && this.#contents.has(content.id));
    const isOver = (zeros: Content) =>
      values.some((value) => value.writeStart > zeros.writeEnd && value.writeEnd < start);
    const isExplained = contents.some((content) =>
      content.isZero && this.#contents.has(content.id) && content.writeStart <= end &&
      !isOver(content)
    );
    if (!isExplained) throw new Error(`${this.name}: read zeros that were overwritten before`);
    for (const value of values) {
      if (value.firstEnd < start && end < value.lastStart) {
        throw new Error(
          `${this.name}: read zeros from ${start} to ${end} within ${JSON.stringify(value)}`,
        );
      }
    }
    this.#zeroReads.push({ start, end });
    if (this.#zeroReads.length > ZERO_READS_MAX) this.#zeroReads.shift();
  }

  /** The first read after a loss decides what survived: the rest of what was acknowledged before is gone. */
  #settle(isSurvivor: (content: Content) => boolean): void {
    this.#candidates = null;
    this.#zeroReads = [];
    let newest = -1;
    for (const content of this.#contents.values()) {
      if (isSurvivor(content)) newest = Math.max(newest, content.writeEnd);
    }
    for (const [id, content] of this.#contents) {
      // What was not acknowledged before may still be on its way.
      if (content.writeEnd >= this.#sinceMs) continue;
      if (!isSurvivor(content)) {
        this.#contents.delete(id);
        if (content.writeStart > newest) this.#lost.add(id);
        continue;
      }
      content.writeEnd = this.#sinceMs;
      content.firstEnd = this.#sinceMs;
      content.lastStart = Math.min(content.writeStart, this.#sinceMs);
    }
  }

  #check(content: Content): void {
    const isLong = isForward(content);
    for (const other of this.#contents.values()) {
      if (other === content || (!other.isRead && other.writeEnd === Infinity)) continue;
      if (other.isZero) {
        const isInside = isLong && other.writeStart > content.firstEnd &&
          other.writeEnd < content.lastStart;
        if (isInside) this.#fail(content, other);
      } else if (isLong && isForward(other)) {
        const from = Math.max(content.firstEnd, other.firstEnd);
        const to = Math.min(content.lastStart, other.lastStart);
        if (from < to) this.#fail(content, other);
      } else if (isForward(other) && isWithin(content, other)) this.#fail(content, other);
      else if (isLong && isWithin(other, content)) this.#fail(content, other);
    }
    for (const zeros of this.#zeroReads) {
      if (isLong && zeros.start > content.firstEnd && zeros.end < content.lastStart) {
        throw new Error(
          `${this.name}: ${
            JSON.stringify(content)
          } although zeros were read from ${zeros.start} to ${zeros.end}`,
        );
      }
    }
  }

  #fail(a: Content, b: Content): never {
    throw new Error(
      `${this.name}: not linearizable: ${JSON.stringify(a)} against ${JSON.stringify(b)}`,
    );
  }

  /** A flush of the guest that wrote `id` has succeeded since a loss, without one that failed before: it must be there. */
  mustHave(id: number): void {
    if (this.#lost.has(id)) {
      throw new Error(`${this.name}: a flush has succeeded although write ${id} was lost`);
    }
    const content = this.#contents.get(id);
    if (this.#candidates === null || content === undefined) return;
    for (const other of [...this.#candidates]) {
      const candidate = this.#contents.get(other);
      if (candidate !== undefined && candidate.writeEnd < content.writeStart) {
        this.#candidates.delete(other);
      }
    }
  }

  /**
   * All replicas may have lost what was not flushed.
   *
   * @param flushed whether a write was covered by a flush that succeeded
   */
  lost(nowMs: number, flushed: (id: number) => boolean): void {
    const written = [...this.#contents.values()];
    const durable = written.filter((content) => content.id === 0 || flushed(content.id));
    const candidates = new Set<number>();
    for (const content of written) {
      if (this.#candidates !== null && !this.#candidates.has(content.id)) {
        // Gone in the loss before, unless it was not over then.
        if (content.writeEnd < this.#sinceMs) continue;
      }
      // Older than something flushed: that one was written after this was acknowledged.
      const isOver = durable.some((other) => other.writeStart > content.writeEnd);
      if (!isOver) candidates.add(content.id);
      // Read, and never acknowledged: it may be gone like what was, and what was read of it does not say which.
      if (content.writeEnd === Infinity) {
        content.firstEnd = Infinity;
        content.lastStart = content.writeStart;
        content.isRead = false;
      }
    }
    this.#candidates = candidates;
    this.#sinceMs = nowMs;
  }
}

function isForward(content: Content): boolean {
  return content.firstEnd < content.lastStart;
}

/** Whether `inner`, a backward zone, lies within `outer`, a forward one. */
function isWithin(inner: Content, outer: Content): boolean {
  return !isForward(inner) && inner.lastStart > outer.firstEnd && inner.firstEnd < outer.lastStart;
}
