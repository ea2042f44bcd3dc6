/**
 * Every change that guests made to the blocks of one disk, and when: to judge what a snapshot holds.
 *
 * @module
 */

interface Change {
  /** Also the value, unless it is zeros. */
  readonly id: number;
  readonly isZero: boolean;
  readonly startMs: number;
  /** When it was acknowledged; Infinity: never. */
  endMs: number;
  /** No crash takes it back. */
  readonly isSure?: boolean;
}

/** How long before a rollback it ends what was under way: shorter than anything takes. */
const DEAD_MS = 1e-6;

/** See the head of the file. Blocks are numbered as the oracle numbers its histories. */
export class Changes {
  readonly #blocks: Change[][] = [];
  readonly #all = new Map<number, Change>();
  /** When replicas that held blocks of it had all crashed: what was acknowledged before may be gone. */
  #lossesMs: number[] = [];

  begins(block: number, id: number, isZero: boolean, nowMs: number): void {
    const change: Change = { id, isZero, startMs: nowMs, endMs: Infinity };
    (this.#blocks[block] ??= []).push(change);
    this.#all.set(id, change);
  }

  ends(id: number, nowMs: number): void {
    const change = this.#all.get(id);
    if (change !== undefined) change.endMs = nowMs;
  }

  lost(nowMs: number): void {
    this.#lossesMs.push(nowMs);
  }

  /** Whether replicas have been lost since. */
  isLostSince(nowMs: number): boolean {
    return this.#lossesMs.some((lossMs) => lossMs >= nowMs);
  }

  /** The disk has been rolled back: each block holds this from now on, and what was under way never arrives. */
  rolledBack(content: readonly number[], nowMs: number): void {
    for (const [block, id] of content.entries()) {
      const changes = this.#blocks[block] ??= [];
      for (const change of changes) change.endMs = Math.min(change.endMs, nowMs - DEAD_MS);
      changes.push({ id, isZero: id === 0, startMs: nowMs, endMs: nowMs, isSure: true });
    }
  }

  /** When the write of a value was sent; −1 for zeros, of which nobody knows which. */
  startOf(_block: number, value: number): number {
    return value === 0 ? -1 : this.#all.get(value)?.startMs ?? -1;
  }

  /**
   * Why a block cannot have held a value at one moment between `fromMs` and `toMs`; null when it can.
   *
   * What was acknowledged before a loss is not held against it: it may be gone.
   *
   * @param lostMs losses until then count
   */
  reasonAgainst(
    block: number,
    value: number,
    fromMs: number,
    toMs: number,
    lostMs: number,
  ): string | null {
    const changes = this.#blocks[block] ?? [];
    const origins = changes.filter(({ id, isZero }) =>
      value === 0 ? isZero : id === value && !isZero
    );
    if (value === 0) origins.push({ id: 0, isZero: true, startMs: -2, endMs: -1 });
    if (origins.length === 0) return `${value} was never written there`;
    const early = origins.filter(({ startMs }) => startMs <= toMs);
    if (early.length === 0) return `${value} was written only after ${toMs}`;
    const isOver = (origin: Change) =>
      changes.find((other) =>
        other !== origin && !(other.isZero && value === 0) && other.startMs > origin.endMs &&
        other.endMs < fromMs &&
        (other.isSure === true ||
          !this.#lossesMs.some((lossMs) => lossMs >= other.endMs && lossMs <= lostMs))
      );
    if (early.some((origin) => isOver(origin) === undefined)) return null;
    const { id, startMs, endMs } = isOver(early[early.length - 1])!;
    return `${value} was overwritten by ${id}, from ${startMs} to ${endMs}, before ${fromMs}`;
  }
}
