/**
 * When a checkpoint looked at each chunk, so that replay leaves alone what the checkpoint knows
 * already.
 *
 *     log              ──▶ t0 ──── a ──────── t1 ──────── t2 ──▶
 *     the checkpoint   begins      ABSORB     looks at 3  looks at 4
 *                                  3 into 4   (empty)     (has what was in 3)
 *
 * A checkpoint is fuzzy, and changes that say what a block becomes may be replayed over what it has:
 * the last one wins. ABSORB is another kind of change: what it makes of a chunk is what two chunks
 * were. Replayed from t0, a FREE of a block of 4 before `a` would take away what came from 3, and at
 * `a` it would not be in 3 any more. So the checkpoint says up to which record each chunk is in it,
 * and replay applies to a chunk what comes after that: the result is exact, whatever the change.
 *
 * Invariants:
 * - Chunks are looked at in the order of (layer, chunk), and time goes on meanwhile: one layer's
 *   chunk is never newer in the image than that of a higher layer. Layers take from lower ones only.
 *   So whenever replay applies ABSORB to the taking chunk, the giving one is exactly what it was.
 * - The same holds for the stamps, all of which are looked at after all of the index.
 * - Layers that were made after the checkpoint began are not in it, and all of the log counts for
 *   them.
 *
 * Image in a checkpoint: items × (what u32, layer u32, chunk u32, lsn u64), see {@linkcode Looked}:
 * all of `what` from where the item before ended up to, and without, (layer, chunk) was looked at
 * when all records up to `lsn` had been applied. The last one ends at (2^32 − 1, 2^32 − 1).
 *
 * @module
 */
import { readU64, writeU64 } from "./format.ts";

const IMAGE_WORDS = 5;
/** Bytes of an item in a checkpoint. */
export const TIME_IMAGE_BYTES = IMAGE_WORDS * 4;
/** Past all layers and chunks. */
export const IMAGE_END = 0xffff_ffff;

/** What was looked at. */
export const enum Looked {
  Index = 1,
  Stamps = 2,
}

/** A part of an image, as it is written: see the head of the file. */
export interface ImageTime {
  readonly what: Looked;
  readonly layer: number;
  readonly chunk: number;
  readonly lsn: number;
}

/** Lays an item out at word `at`. */
export function encodeImageTime(words: Uint32Array, at: number, time: ImageTime): void {
  words[at] = time.what;
  words[at + 1] = time.layer;
  words[at + 2] = time.chunk;
  writeU64(words, at + 3, time.lsn);
}

/** Times of index or stamps: rising ends of parts, with the lsn of each. */
class Parts {
  readonly layers: number[] = [];
  readonly chunks: number[] = [];
  readonly lsns: number[] = [];

  /** Adds a part; false when it does not follow the one before. */
  add(layer: number, chunk: number, lsn: number): boolean {
    const last = this.lsns.length - 1;
    if (last >= 0) {
      const isBehind = layer > this.layers[last] ||
        (layer === this.layers[last] && chunk >= this.chunks[last]);
      if (!isBehind || lsn < this.lsns[last]) return false;
    }
    this.layers.push(layer);
    this.chunks.push(chunk);
    this.lsns.push(lsn);
    return true;
  }

  /** lsn of the first part that ends behind a chunk; 0 when there is none. */
  lsnOf(layer: number, chunk: number): number {
    let low = 0, high = this.lsns.length;
    while (low < high) {
      const middle = low + high >>> 1;
      const isBehind = this.layers[middle] > layer ||
        (this.layers[middle] === layer && this.chunks[middle] > chunk);
      if (isBehind) high = middle;
      else low = middle + 1;
    }
    return low < this.lsns.length ? this.lsns[low] : 0;
  }
}

/** See the head of the file: the times of a checkpoint that was read. */
export class ImageTimes {
  readonly #layers: ReadonlySet<number>;
  readonly #index = new Parts();
  readonly #stamps = new Parts();

  /** @param layers those that the checkpoint names */
  constructor(layers: Iterable<number>) {
    this.#layers = new Set(layers);
  }

  /** True when the index's image has all changes of the chunk up to `lsn`. */
  hasBlocks(layer: number, chunk: number, lsn: number): boolean {
    return lsn <= this.#index.lsnOf(layer, chunk) && this.#layers.has(layer);
  }

  /** True when the stamps' image has all changes of the chunk's stamp up to `lsn`. */
  hasStamp(layer: number, chunk: number, lsn: number): boolean {
    return lsn <= this.#stamps.lsnOf(layer, chunk) && this.#layers.has(layer);
  }

  /**
   * Takes one part of an image in.
   *
   * @param words where it lies
   * @param at its first word
   * @param items in it
   * @returns null, or what is wrong with it
   */
  loadImage(words: Uint32Array, at: number, items: number): string | null {
    for (let i = 0; i < items; i++, at += IMAGE_WORDS) {
      const what = words[at];
      if (what !== Looked.Index && what !== Looked.Stamps) return "a time is of nothing known";
      const lsn = readU64(words, at + 3);
      const parts = what === Looked.Index ? this.#index : this.#stamps;
      if (!(lsn >= 0)) return "a time is out of range";
      if (!parts.add(words[at + 1], words[at + 2], lsn)) return "times are out of order";
    }
    return null;
  }
}
