/**
 * Which layers may hold what was written to another one: chunk by chunk, a layer may absorb an older
 * one (`ABSORB`), and no block moves on the disk. So the records that brought those blocks go on
 * naming the layer that they were written to.
 *
 *     log     WRITE layer 3 … | ABSORB 3 into 4 | ABSORB 4 into 7 | LAYER_DELETE 3 | …
 *     table   3 ─▶ 4, 7    4 ─▶ 7            once 4 is deleted:  3 ─▶ 7
 *
 * A layer that records name is a _label_ here, whether or not there still is such a layer. A block
 * that was written under it is in the layer of that name, or in one of those that the table names,
 * or dead: who looks for it looks there, and knows it by its location.
 *
 * Invariants:
 * - Closed: what may hold the blocks of one that may hold a label's blocks is named for the label,
 *   too. So nobody follows a chain of names.
 * - The layers named are there: they leave the table when their LAYER_DELETE is applied, and a label
 *   that names none leaves it as well. Otherwise a label stays for as long as a record may name it.
 * - A layer's number is above those of the layers that it absorbs: there are no circles.
 * - Changed by applier.ts alone, by entries alone, in the order of the log: the table of a checkpoint
 *   is that of the moment when it began, so replay makes exactly what there was.
 *
 * Image in a checkpoint: items × (label u32, layer u32).
 *
 * @module
 */

const IMAGE_WORDS = 2;
/** Bytes of a pair in a checkpoint. */
export const ABSORBED_IMAGE_BYTES = IMAGE_WORDS * 4;

/** See the head of the file. */
export class Absorbed {
  /** Pairs of a label and a layer. */
  count = 0;
  readonly #layers = new Map<number, number[]>();

  /** Layers that may hold blocks written under `label`, besides the one of that name; empty mostly. */
  layersOf(label: number): readonly number[] {
    return this.#layers.get(label) ?? NONE;
  }

  /** Blocks of `from` may be in `into` from now on. */
  add(from: number, into: number): void {
    // Said for the first chunk: then it is known for all.
    if (this.layersOf(from).includes(into)) return;
    const taken = [into, ...this.layersOf(into)];
    for (const [label, layers] of this.#layers) {
      if (layers.includes(from)) this.#name(label, taken);
    }
    this.#name(from, taken);
  }

  #name(label: number, taken: readonly number[]): void {
    let layers = this.#layers.get(label);
    if (layers === undefined) this.#layers.set(label, layers = []);
    for (const layer of taken) {
      if (layers.includes(layer)) continue;
      layers.push(layer);
      this.count++;
    }
  }

  /** The layer is deleted: nothing of what it held counts. */
  drop(layer: number): void {
    for (const [label, layers] of this.#layers) {
      const at = layers.indexOf(layer);
      if (at < 0) continue;
      layers.splice(at, 1);
      this.count--;
      if (layers.length === 0) this.#layers.delete(label);
    }
  }

  /** All pairs as they are now. */
  pairs(): [label: number, layer: number][] {
    return [...this.#layers].flatMap(([label, layers]) =>
      layers.map((layer): [number, number] => [label, layer])
    );
  }

  /**
   * Takes one part of an image in.
   *
   * @param words where it lies
   * @param at its first word
   * @param items pairs in it
   * @param isLive whether a layer is there
   * @returns null, or what is wrong with it; some of it may have been taken then
   */
  loadImage(
    words: Uint32Array,
    at: number,
    items: number,
    isLive: (layer: number) => boolean,
  ): string | null {
    for (let i = 0; i < items; i++, at += IMAGE_WORDS) {
      const label = words[at], layer = words[at + 1];
      if (!isLive(layer)) return "a layer that absorbed another is not there";
      if (label >= layer) return "a layer has absorbed a newer one";
      this.#name(label, [layer]);
    }
    return null;
  }
}

const NONE: readonly number[] = [];
