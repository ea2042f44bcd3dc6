/**
 * Virtual time for a whole cluster in one process: a queue of events, and chance from one seed.
 *
 * @module
 */
import { Prng } from "../../agent/base/prng.ts";

interface Event {
  readonly atMs: number;
  readonly order: number;
  readonly run: () => void;
}

/** Time, chance, and what is going to happen. */
export class World {
  nowMs = 0;
  /** Events so far. */
  count = 0;
  readonly random: Prng;
  readonly #heap: Event[] = [];
  #order = 0;

  constructor(readonly seed: number) {
    this.random = new Prng(seed);
  }

  /** Runs something later; events of one moment run in the order in which they were asked for. */
  after(ms: number, run: () => void): void {
    const event = { atMs: this.nowMs + Math.max(0, ms), order: this.#order++, run };
    const heap = this.#heap;
    let at = heap.push(event) - 1;
    while (at > 0) {
      const parent = (at - 1) >>> 1;
      if (!isEarlier(event, heap[parent])) break;
      heap[at] = heap[parent];
      at = parent;
    }
    heap[at] = event;
  }

  /** Lets time pass. */
  run(untilMs: number): void {
    while (this.#heap.length > 0 && this.#heap[0].atMs <= untilMs) {
      const event = this.#pop();
      this.nowMs = event.atMs;
      this.count++;
      event.run();
    }
    this.nowMs = untilMs;
  }

  #pop(): Event {
    const heap = this.#heap;
    const first = heap[0];
    const last = heap.pop()!;
    if (heap.length === 0) return first;
    let at = 0;
    for (;;) {
      let child = 2 * at + 1;
      if (child >= heap.length) break;
      if (child + 1 < heap.length && isEarlier(heap[child + 1], heap[child])) child++;
      if (!isEarlier(heap[child], last)) break;
      heap[at] = heap[child];
      at = child;
    }
    heap[at] = last;
    return first;
  }
}

function isEarlier(a: Event, b: Event): boolean {
  return a.atMs < b.atMs || (a.atMs === b.atMs && a.order < b.order);
}
