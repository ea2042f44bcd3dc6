/**
 * What replication needs of the store on this node. `store/store.ts` is it; tests of one part may use a
 * plainer one.
 *
 * A **stamp** is the (generation, sequence) of the last write applied to a chunk of a layer. Writes of one chunk reach
 * every replica in the same order and are applied in that order, so equal stamps mean equal content. The stamp (0, 0)
 * of a chunk that has content is "unknown": it equals nothing, and such a chunk is not complete.
 *
 * @module
 */
import type { Operation } from "../store/operation.ts";

/** A stamp, filled by the store: (0, 0) is "never written" or "unknown". */
export class Stamp {
  generation = 0;
  sequence = 0;

  /** Takes over another's value. */
  set(generation: number, sequence: number): void {
    this.generation = generation;
    this.sequence = sequence;
  }
}

/** −1, 0 or 1: order of two stamps, generation first. */
export function compareStamps(
  a: { generation: number; sequence: number },
  b: { generation: number; sequence: number },
): number {
  return Math.sign(a.generation - b.generation || a.sequence - b.sequence);
}

/** True for a stamp that says something. */
export function isKnown(stamp: { generation: number }): boolean {
  return stamp.generation > 0;
}

/** See the head of the file. */
export interface LocalStore {
  /** Takes an operation; it comes back through its owner exactly once, applied, never from inside this call. */
  submit(operation: Operation): void;
  hasLayer(layer: number): boolean;
  /** One more than the highest chunk of the layer that ever was written, as far as is known; 0: none. */
  chunkEnd(layer: number): number;
  /** Fills `stamp`; returns false when nothing is known of the chunk: no content and no stamp. */
  readStamp(layer: number, chunk: number, stamp: Stamp): boolean;
  /**
   * Which blocks of this very layer's chunk hold data, and which are zeros whatever older layers hold: bit b of word w is
   * block 32·w + b. Damaged blocks count as data.
   *
   * @returns false when there are neither
   */
  describeChunk(layer: number, chunk: number, data: Uint32Array, zero: Uint32Array): boolean;
}
