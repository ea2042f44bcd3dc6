/**
 * Finds a block in a long chain of layers without asking every one of them: which of the older layers
 * is the first that has it is remembered, chunk by chunk.
 *
 *     read    ─▶ the newest layer, always asked ─▶ a hole ─▶ what is remembered of (the others, chunk)
 *     short   | chunk | chain | up to 4 positions |                 the layers that have anything of the chunk
 *     long    | chunk | chain | position of each of 1024 blocks |   where more than 4 layers have
 *
 * What is remembered is who has a block, not where it lies: it does not change when the cleaner moves
 * blocks, and older layers are hardly ever written to. Where that happens (a layer is absorbed, healed,
 * pulled or dropped) the index says so, and that chunk of the chains concerned is forgotten.
 *
 * Invariants:
 * - A chain is known by its content from the second layer on. The array that an operation brings is a
 *   short cut to it: its content is compared each time, unless the array is frozen.
 * - All layers of a chain but the first are watched (`Index.watch`), so whatever changes who has a block
 *   is told in the same call.
 * - Memory is bounded: tables of a fixed size, made when the first long chain is read, 12 MiB in all,
 *   and {@linkcode CHAINS_MAX} chains. What is crowded out is looked up again, at a step over each layer
 *   that looks at one word of its table. Nothing is allocated per read.
 *
 * @module
 */
import { CHUNK_BLOCKS } from "../base/limits.ts";
import { type Index, IndexKind, type LayerReference, type OwnersListener } from "./index.ts";

/** Chains of fewer layers are asked layer by layer. */
export const CHAIN_LAYERS_MIN = 4;
/** Chains known at a time; those used last stay. */
export const CHAINS_MAX = 64;

/** Chunks of the short table, 16 bytes each: those of 1 TiB. */
const SHORT_SLOTS = 2 ** 18;
const SHORT_WORDS = 4;
/** Positions that a slot of it has room for. */
const SHORT_POSITIONS = 4;
/** Chunks of the long table, 2 KiB each: 8 MiB. */
const LONG_SLOTS = 4096;
/** Slots that a chunk may be in. */
const WAYS = 4;
/** No layer has it. */
const NONE = 0xffff;
/** In place of positions: see the long table. */
const LONG = 0xffff_fffe;
const MAP_WORDS = CHUNK_BLOCKS / 32;

/** A chain without its newest layer. */
class Chain {
  /** Never given twice; 0: forgotten. */
  serial: number;
  usedAt = 0;
  /** A plain array, as those that it is compared with are. */
  readonly ids: readonly number[];
  readonly layers: (LayerReference | null)[];
  readonly #isFalling: boolean;

  constructor(serial: number, layers: readonly number[], readonly hash: number, index: Index) {
    this.serial = serial;
    this.ids = layers.slice(1);
    this.layers = this.ids.map((id) => index.watch(id));
    this.#isFalling = this.ids.every((id, i) => i === 0 || id < this.ids[i - 1]);
  }

  has(layer: number): boolean {
    const { ids } = this;
    if (!this.#isFalling) return ids.includes(layer);
    let low = 0, high = ids.length;
    while (low < high) {
      const middle = low + high >>> 1;
      if (ids[middle] <= layer) high = middle;
      else low = middle + 1;
    }
    return low < ids.length && ids[low] === layer;
  }
}

/** What an array of layers is known to be. */
interface Known {
  readonly chain: Chain;
  /** It cannot change. */
  readonly isFixed: boolean;
}

/** See the head of the file. */
export class Chains implements OwnersListener {
  /** After {@linkcode find}: the layer that has it, unless none has. */
  layer = 0;
  readonly #index: Index;
  readonly #chains: Chain[] = [];
  #known = new WeakMap<readonly number[], Known>();
  #lastLayers: readonly number[] = [];
  #last: Known | null = null;
  #serials = 0;
  #clock = 0;
  #short = EMPTY;
  #tags = EMPTY;
  #used = EMPTY;
  #positions = new Uint16Array(0);
  readonly #cover = new Uint32Array(MAP_WORDS);
  readonly #seen = new Uint32Array(MAP_WORDS);

  /** Becomes the index's listener. */
  constructor(index: Index) {
    this.#index = index;
    index.owners = this;
  }

  /** Bytes of the tables. */
  get memoryBytes(): number {
    return this.#short.byteLength + this.#tags.byteLength + this.#used.byteLength +
      this.#positions.byteLength;
  }

  /**
   * Looks up what the layers behind the first have from `block` on, as `Index.find` does for one; the index's
   * fields say what that is.
   *
   * @param layers newest first; at least two
   * @param count blocks of interest, ≥ 1
   * @returns blocks, 1…`count`, for which that holds
   */
  find(layers: readonly number[], chunk: number, block: number, count: number): number {
    const index = this.#index;
    const chain = this.#chainOf(layers);
    const short = this.#short;
    const at = shortSlot(chain.serial, chunk);
    if (short[at] !== chunk || short[at + 1] !== chain.serial) this.#look(chain, chunk, at);
    if (short[at + 2] === LONG) return this.#findLong(chain, chunk, block, count);
    for (let i = 0; i < SHORT_POSITIONS; i++) {
      const position = short[at + 2 + (i >>> 1)] >>> ((i & 1) * 16) & 0xffff;
      if (position === NONE) break;
      count = index.findOf(chain.layers[position]!, chunk, block, count);
      if (index.kind === IndexKind.Absent) continue;
      this.layer = chain.ids[position];
      return count;
    }
    index.miss();
    return count;
  }

  #findLong(chain: Chain, chunk: number, block: number, count: number): number {
    const index = this.#index;
    const first = this.#longSlot(chain, chunk) * CHUNK_BLOCKS + block;
    const positions = this.#positions;
    const position = positions[first];
    let run = 1;
    while (run < count && positions[first + run] === position) run++;
    if (position === NONE) {
      index.miss();
      return run;
    }
    this.layer = chain.ids[position];
    run = index.findOf(chain.layers[position]!, chunk, block, run);
    // A layer that has it no longer, and did not say so: never taken for a hole.
    if (index.kind === IndexKind.Absent) {
      throw new Error(`chains: layer ${this.layer} lacks a block`);
    }
    return run;
  }

  /** Notes which layers have anything of the chunk. */
  #look(chain: Chain, chunk: number, at: number): void {
    const index = this.#index;
    const short = this.#short;
    const { layers } = chain;
    let found = 0;
    short[at] = chunk;
    short[at + 1] = chain.serial;
    short[at + 2] = short[at + 3] = NONE | NONE << 16;
    for (let i = 0; i < layers.length; i++) {
      const layer = layers[i];
      if (layer === null || !index.hasChunkOf(layer, chunk)) continue;
      if (found === SHORT_POSITIONS) {
        short[at + 2] = LONG;
        return;
      }
      const word = at + 2 + (found >>> 1), shift = (found & 1) * 16;
      short[word] = short[word] & ~(0xffff << shift) | i << shift;
      found++;
    }
  }

  /** The slot of the long table that has the chunk: filled, if it was not there. */
  #longSlot(chain: Chain, chunk: number): number {
    if (this.#tags.length === 0) {
      this.#tags = new Uint32Array(LONG_SLOTS * 2);
      this.#used = new Uint32Array(LONG_SLOTS);
      this.#positions = new Uint16Array(LONG_SLOTS * CHUNK_BLOCKS);
    }
    const tags = this.#tags, used = this.#used;
    const first = longSet(chain.serial, chunk);
    let oldest = first;
    for (let slot = first; slot < first + WAYS; slot++) {
      if (tags[2 * slot] === chunk && tags[2 * slot + 1] === chain.serial) {
        used[slot] = ++this.#clock;
        return slot;
      }
      if (used[slot] < used[oldest]) oldest = slot;
    }
    this.#fill(chain, chunk, oldest * CHUNK_BLOCKS);
    tags[2 * oldest] = chunk;
    tags[2 * oldest + 1] = chain.serial;
    used[oldest] = ++this.#clock;
    return oldest;
  }

  #fill(chain: Chain, chunk: number, at: number): void {
    const index = this.#index;
    const { layers } = chain;
    const positions = this.#positions, cover = this.#cover, seen = this.#seen;
    positions.fill(NONE, at, at + CHUNK_BLOCKS);
    seen.fill(0);
    for (let i = 0; i < layers.length; i++) {
      const layer = layers[i];
      if (layer === null || !index.cover(layer, chunk, cover)) continue;
      let holes = 0;
      for (let word = 0; word < MAP_WORDS; word++) {
        let fresh = cover[word] & ~seen[word];
        seen[word] |= fresh;
        holes |= ~seen[word];
        for (; fresh !== 0; fresh &= fresh - 1) {
          positions[at + (word << 5) + 31 - Math.clz32(fresh & -fresh)] = i;
        }
      }
      if (holes === 0) return;
    }
  }

  // ── Chains ─────────────────────────────────────────────────────────────────────────────────────

  #chainOf(layers: readonly number[]): Chain {
    let known = this.#last;
    if (known === null || this.#lastLayers !== layers) known = this.#known.get(layers) ?? null;
    const isIt = known !== null && known.chain.serial !== 0 &&
      (known.isFixed || isSame(known.chain.ids, layers));
    if (!isIt) {
      known = { chain: this.#named(layers), isFixed: Object.isFrozen(layers) };
      this.#known.set(layers, known);
    }
    this.#lastLayers = layers;
    this.#last = known;
    const { chain } = known!;
    chain.usedAt = ++this.#clock;
    return chain;
  }

  /** The chain of this content; made, in the place of the one used longest ago, if there is none. */
  #named(layers: readonly number[]): Chain {
    let hash = layers.length;
    for (let i = 1; i < layers.length; i++) hash = Math.imul(hash ^ layers[i], 0x9e3779b1);
    const behind = layers.slice(1);
    for (const chain of this.#chains) {
      if (chain.hash === hash && isSame(chain.ids, [0, ...behind])) return chain;
    }
    if (this.#short.length === 0) this.#short = new Uint32Array(SHORT_SLOTS * SHORT_WORDS);
    const made = new Chain(++this.#serials, layers, hash, this.#index);
    if (this.#chains.length < CHAINS_MAX) {
      this.#chains.push(made);
      return made;
    }
    let oldest = 0;
    this.#chains.forEach(({ usedAt }, i) => {
      if (usedAt < this.#chains[oldest].usedAt) oldest = i;
    });
    this.#chains[oldest].serial = 0;
    this.#chains[oldest] = made;
    return made;
  }

  /** {@inheritDoc OwnersListener.ownersChanged} */
  ownersChanged(layer: number, chunk: number): void {
    for (const chain of this.#chains) {
      if (!chain.has(layer)) continue;
      const { serial } = chain;
      const at = shortSlot(serial, chunk);
      if (this.#short[at] === chunk && this.#short[at + 1] === serial) this.#short[at + 1] = 0;
      if (this.#tags.length === 0) continue;
      const first = longSet(serial, chunk);
      for (let slot = first; slot < first + WAYS; slot++) {
        if (this.#tags[2 * slot] !== chunk || this.#tags[2 * slot + 1] !== serial) continue;
        this.#tags[2 * slot + 1] = this.#used[slot] = 0;
      }
    }
  }

  /** {@inheritDoc OwnersListener.layerCreated} */
  layerCreated(layer: number): void {
    for (let i = this.#chains.length - 1; i >= 0; i--) {
      if (!this.#chains[i].has(layer)) continue;
      this.#chains[i].serial = 0;
      this.#chains.splice(i, 1);
    }
  }
}

const EMPTY = new Uint32Array(0);

/**
 * True when `ids` is what `layers` has behind its first. Frozen arrays are of another kind to the engine, and would make it slow
 * for all: they are not to come here.
 */
function isSame(ids: readonly number[], layers: readonly number[]): boolean {
  const { length } = ids;
  if (layers.length !== length + 1) return false;
  for (let i = 0; i < length; i++) if (ids[i] !== layers[i + 1]) return false;
  return true;
}

/** Neighbouring chunks of a chain have neighbouring places. */
function shortSlot(serial: number, chunk: number): number {
  return (chunk + (Math.imul(serial, 0x9e3779b1) >>> 7) & SHORT_SLOTS - 1) * SHORT_WORDS;
}

function longSet(serial: number, chunk: number): number {
  return (chunk + (Math.imul(serial, 0x9e3779b1) >>> 7) & LONG_SLOTS / WAYS - 1) * WAYS;
}
