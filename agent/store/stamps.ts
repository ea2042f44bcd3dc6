/**
 * The stamps of one store: (layer, chunk) → (generation, sequence) of the last write, free or zero
 * that was applied to the chunk. Replicas compare them: equal stamps mean equal content.
 *
 * A chunk without a stamp here is _unknown_, (0, 0): its content, if it has any, may be anything.
 * That is what chunks written by format 1 are, chunks that only unstamped tools wrote, those of
 * which a part of a longer write may be all that survived, and those that a replica that joins has
 * not pulled yet. A known stamp has a generation of 1 or more.
 *
 * A layer is a table of leaves, each for 256 chunks (1 GiB of disk), made when the first of them
 * gets a stamp and given up with the last:
 *
 *     leaf   generation u32, sequence low u32, sequence high u32 — 256 times | stamps in it u32
 *
 * so 12 bytes per chunk where neighbours are in use too, 3 KiB for one all by itself, outside the
 * garbage collector's sight.
 *
 * Invariants:
 * - Changed by applier.ts alone, entry by entry in the order of the log, and always set, never
 *   compared: so a fuzzy checkpoint and the log from its beginning make the exact stamps.
 * - A stamp is set by the entry that completes an operation. Parts of one that the log had to cut
 *   make the stamp unknown until then (batch.ts), so after a crash a known stamp means exactly the
 *   content that it meant before.
 * - `count` is exact.
 *
 * Image in a checkpoint: items × (layer u32, chunk u32, generation u32, sequence u64).
 *
 * @module
 */
import { CHUNKS_MAX } from "./format.ts";

const LEAF_SHIFT = 8;
const LEAF_CHUNKS = 1 << LEAF_SHIFT;
const STAMP_WORDS = 3;
/** Word of a leaf with the number of stamps in it. */
const LEAF_COUNT = LEAF_CHUNKS * STAMP_WORDS;
const LEAF_WORDS = LEAF_COUNT + 1;

const IMAGE_WORDS = 5;
/** Bytes of a stamp in a checkpoint. */
export const STAMP_IMAGE_BYTES = IMAGE_WORDS * 4;

class Layer {
  readonly leaves: (Uint32Array<ArrayBuffer> | null)[] = [];
  /** Leaves with memory. */
  leafCount = 0;
  /** Stamps. */
  count = 0;
  constructor(readonly id: number) {}
}

/** See the head of the file. */
export class Stamps {
  /** Known stamps of all layers. */
  count = 0;
  readonly #layers = new Map<number, Layer>();
  #lastLayer: Layer | null = null;
  #leafCount = 0;

  // What `find` found. Valid until the next call.
  /** Generation, 1…2^32 − 1; 0 when the stamp is unknown. */
  generation = 0;
  /** Sequence, below 2^53; 0 when the stamp is unknown. */
  sequence = 0;

  /** Bytes held. */
  get memoryBytes(): number {
    return this.#leafCount * LEAF_WORDS * 4;
  }

  #layer(id: number): Layer | undefined {
    const last = this.#lastLayer;
    if (last !== null && last.id === id) return last;
    const layer = this.#layers.get(id);
    if (layer !== undefined) this.#lastLayer = layer;
    return layer;
  }

  /** The leaf of a chunk, or null. */
  #leaf(id: number, chunk: number): Uint32Array | null {
    return this.#layer(id)?.leaves[chunk >>> LEAF_SHIFT] ?? null;
  }

  /** True when the chunk's stamp is known. */
  has(layer: number, chunk: number): boolean {
    const leaf = this.#leaf(layer, chunk);
    return leaf !== null && leaf[(chunk & (LEAF_CHUNKS - 1)) * STAMP_WORDS] !== 0;
  }

  /**
   * Looks a chunk up: the fields say what its stamp is.
   *
   * @returns whether it is known
   */
  find(layer: number, chunk: number): boolean {
    const leaf = this.#leaf(layer, chunk);
    this.generation = this.sequence = 0;
    if (leaf === null) return false;
    const at = (chunk & (LEAF_CHUNKS - 1)) * STAMP_WORDS;
    this.generation = leaf[at];
    this.sequence = leaf[at + 1] + leaf[at + 2] * 2 ** 32;
    return this.generation !== 0;
  }

  /**
   * Sets a stamp.
   *
   * @param generation 1 or more
   * @param low low half of the sequence
   * @param high high half
   */
  set(id: number, chunk: number, generation: number, low: number, high: number): void {
    let layer = this.#layer(id);
    if (layer === undefined) {
      layer = new Layer(id);
      this.#layers.set(id, layer);
    }
    const number = chunk >>> LEAF_SHIFT;
    let leaf = layer.leaves[number];
    if (leaf === null || leaf === undefined) {
      while (layer.leaves.length < number) layer.leaves.push(null);
      leaf = new Uint32Array(LEAF_WORDS);
      layer.leaves[number] = leaf;
      layer.leafCount++;
      this.#leafCount++;
    }
    const at = (chunk & (LEAF_CHUNKS - 1)) * STAMP_WORDS;
    if (leaf[at] === 0) {
      leaf[LEAF_COUNT]++;
      layer.count++;
      this.count++;
    }
    leaf[at] = generation;
    leaf[at + 1] = low;
    leaf[at + 2] = high;
  }

  /** Makes a stamp unknown. */
  clear(id: number, chunk: number): void {
    const layer = this.#layer(id);
    const leaf = layer?.leaves[chunk >>> LEAF_SHIFT];
    if (layer === undefined || leaf === null || leaf === undefined) return;
    const at = (chunk & (LEAF_CHUNKS - 1)) * STAMP_WORDS;
    if (leaf[at] === 0) return;
    leaf[at] = leaf[at + 1] = leaf[at + 2] = 0;
    layer.count--;
    this.count--;
    if (--leaf[LEAF_COUNT] === 0) {
      layer.leaves[chunk >>> LEAF_SHIFT] = null;
      layer.leafCount--;
      this.#leafCount--;
    }
  }

  /** Forgets all stamps of a layer. */
  dropLayer(id: number): void {
    const layer = this.#layers.get(id);
    if (layer === undefined) return;
    this.count -= layer.count;
    this.#leafCount -= layer.leafCount;
    this.#layers.delete(id);
    if (this.#lastLayer === layer) this.#lastLayer = null;
  }

  /** Makes all stamps unknown. */
  dropAll(): void {
    for (const id of [...this.#layers.keys()]) this.dropLayer(id);
  }

  /**
   * First chunk ≥ `from` for which there is a leaf, whether or not it has a stamp; `CHUNKS_MAX` when
   * there is none. Looks at `leavesMax` leaves and then says where to go on.
   */
  skip(id: number, from: number, leavesMax: number): number {
    const leaves = this.#layer(id)?.leaves;
    if (leaves === undefined) return CHUNKS_MAX;
    let at = from >>> LEAF_SHIFT;
    const end = Math.min(leaves.length, at + leavesMax);
    for (; at < end; at++) if (leaves[at] !== null) return Math.max(from, at * LEAF_CHUNKS);
    return at >= leaves.length ? CHUNKS_MAX : at * LEAF_CHUNKS;
  }

  /** First chunk ≥ `from` with a known stamp, or −1. */
  nextChunk(id: number, from: number): number {
    const leaves = this.#layer(id)?.leaves;
    if (leaves === undefined) return -1;
    let chunk = from;
    for (let at = chunk >>> LEAF_SHIFT; at < leaves.length; at++) {
      const leaf = leaves[at];
      if (leaf !== null) {
        for (let i = chunk & (LEAF_CHUNKS - 1); i < LEAF_CHUNKS; i++) {
          if (leaf[i * STAMP_WORDS] !== 0) return at * LEAF_CHUNKS + i;
        }
      }
      chunk = (at + 1) * LEAF_CHUNKS;
    }
    return -1;
  }

  /**
   * Begins an image of the stamps of `layers`, for a checkpoint. Changes made while it is written
   * may or may not be in it.
   */
  beginImage(layers: readonly number[]): StampImage {
    return new StampImage(this, layers);
  }

  /**
   * Takes one part of an image in.
   *
   * @param words where it lies
   * @param at its first word
   * @param items stamps in it
   * @param hasLayer whether a layer is there
   * @returns null, or what is wrong with it; some of it may have been taken then
   */
  loadImage(
    words: Uint32Array,
    at: number,
    items: number,
    hasLayer: (layer: number) => boolean,
  ): string | null {
    for (let i = 0; i < items; i++, at += IMAGE_WORDS) {
      const layer = words[at], chunk = words[at + 1], generation = words[at + 2];
      if (!hasLayer(layer)) return "a stamp names no layer";
      if (chunk >= CHUNKS_MAX) return "a stamp lies past the largest disk";
      if (generation === 0 || words[at + 4] >= 2 ** 21) return "a stamp is out of range";
      if (this.has(layer, chunk)) return "a stamp is there twice";
      this.set(layer, chunk, generation, words[at + 3], words[at + 4]);
    }
    return null;
  }
}

/** Walks all stamps and writes them out, part by part. See {@linkcode Stamps.beginImage}. */
export class StampImage {
  /** Stamps in the part that {@linkcode fill} wrote last. */
  items = 0;
  readonly #stamps: Stamps;
  readonly #layers: readonly number[];
  #layer = 0;
  #chunk = 0;

  constructor(stamps: Stamps, layers: readonly number[]) {
    this.#stamps = stamps;
    this.#layers = layers;
  }

  /** Layer that it goes on with: all before it, and of it all chunks before `chunk`, are through; −1 at the end. */
  get layer(): number {
    return this.#layer < this.#layers.length ? this.#layers[this.#layer] : -1;
  }
  /** See {@linkcode layer}. */
  get chunk(): number {
    return this.#chunk;
  }

  /**
   * Writes the next part.
   *
   * @param words where to
   * @param byteOffset start, a multiple of 4
   * @param byteLengthMax room there, at least `STAMP_IMAGE_BYTES`
   * @returns bytes written; 0 at the end
   */
  fill(words: Uint32Array, byteOffset: number, byteLengthMax: number): number {
    const itemsMax = Math.floor(byteLengthMax / STAMP_IMAGE_BYTES);
    let at = byteOffset >>> 2;
    this.items = 0;
    while (this.#layer < this.#layers.length && this.items < itemsMax) {
      const layer = this.#layers[this.#layer];
      const chunk = this.#stamps.nextChunk(layer, this.#chunk);
      if (chunk < 0) {
        this.#layer++;
        this.#chunk = 0;
        continue;
      }
      this.#stamps.find(layer, chunk);
      const { generation, sequence } = this.#stamps;
      words[at] = layer;
      words[at + 1] = chunk;
      words[at + 2] = generation;
      words[at + 3] = sequence >>> 0;
      words[at + 4] = Math.floor(sequence / 2 ** 32);
      at += IMAGE_WORDS;
      this.items++;
      this.#chunk = chunk + 1;
    }
    return this.items * STAMP_IMAGE_BYTES;
  }
}
