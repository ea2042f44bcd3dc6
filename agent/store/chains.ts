/**
 * Finds a block in a long chain of layers without asking every one of them: what a read through the older
 * layers comes upon is remembered, chunk by chunk.
 *
 *     read   ─▶ the newest layer, always asked ─▶ a hole ─▶ what is remembered of (the others, chunk)
 *     table  | chunk | chain | up to 3 positions, or: merged |    the layers that have anything of the chunk
 *     merged an index: one chunk for each slot of the table     where more layers have
 *
 * A chunk of which few layers have something is looked up in those: what is remembered is who has it, which does
 * not change when blocks move. Of any other chunk there is a copy of what its layers have, as one chunk of an
 * index of its own (index.ts), so that a read finds a block in it as it would on a disk without snapshots. Of
 * that copy nobody can say from which layer a block came; where damage has to be told, the layers are asked.
 *
 * Invariants:
 * - **A copy is what asking every layer would say**, at any time. All layers of a chain but the first are
 *   watched (`Index.watch`), and the index tells of every change of them in the same call, before it is made:
 *   - a block becomes one, or a hole (written, freed, absorbed, dropped with its layer): that chunk of the
 *     chains that have the layer is forgotten (`ownersChanged`);
 *   - a block that was there gets another place (the cleaner moves it, a repair writes it again): the copy follows if
 *     it has the block at the old place (`blocksPlaced`). A place holds one block of one layer, so what is there is
 *     that block; where it is elsewhere a newer layer hides it. What has no place (zeros, damage) can be anyone's: the chunk is
 *     forgotten;
 *   - a layer is made: the chains with its id are forgotten, since they do not have it (`layerCreated`).
 * - A snapshot, or one that is deleted, makes a new chain. What is remembered of the one before counts for it only in
 *   chunks of which none of the layers that came or went has anything; those are taken over as they are asked for.
 *   Discards of a disk write zeros to its newest layer.
 * - A chain is known by its content from the second layer on. The array that an operation brings is a
 *   short cut to it: its content is compared each time, unless the array is frozen.
 * - A slot has a chunk in the merged index if and only if it says so; it is freed before the slot is given away.
 * - Memory is bounded: a table of 4 MiB, made when the first long chain is read; copies of
 *   {@linkcode MERGED_BYTES_MIN} or an eighth of the index, whichever is more (0.22 % of random data and an eighth of it are
 *   below 0.25 %); {@linkcode CHAINS_MAX} chains. What is crowded out is looked up again, at a step over each layer
 *   that looks at one word of its table. Nothing is allocated per read.
 *
 * @module
 */
import { CHUNK_BLOCKS } from "../base/limits.ts";
import {
  HOLE,
  Index,
  IndexKind,
  type LayerReference,
  LOCATION_END,
  type OwnersListener,
} from "./index.ts";

/** Chains of fewer layers are asked layer by layer. */
export const CHAIN_LAYERS_MIN = 4;
/** Chains known at a time; those used last stay. */
export const CHAINS_MAX = 64;
/** Bytes that copies may take however small the index is. */
export const MERGED_BYTES_MIN = 8 * 2 ** 20;
/** Beyond that: this share of the index's bytes, as a shift. */
const MERGED_SHARE_SHIFT = 3;

/** Chunks of the table: those of 1 TiB. */
const SLOTS = 2 ** 18;
/** Words of a slot: chunk, serial of its chain, positions 0 and 1, position 2 and flags above it. */
const SLOT_SHIFT = 2;
const SLOT_WORDS = 1 << SLOT_SHIFT;
/** Layers that may have come or gone between a chain and the one that it takes over from. */
const CHANGED_MAX = 16;

/** Slots that a chunk may be in: a line of the processor's cache. */
const WAYS = 4;
const SET_WORDS = WAYS * SLOT_WORDS;
const SETS = SLOTS / WAYS;
/** Positions that a slot has room for. */
const POSITIONS = 3;
/** No layer has it. */
const NONE = 0xffff;
/** The chunk is in the merged index, in place of positions. */
const MERGED = 1 << 16;
/** Used since the hand came by. */
const USED = 1 << 17;
/** The one layer of the merged index. */
const MERGED_LAYER = 1;

/** A chain without its newest layer. */
class Chain {
  /** Never given twice; 0: forgotten. */
  serial: number;
  usedAt = 0;
  /** Another one that has nearly the same layers, while that is known. */
  before: Chain | null = null;
  /** The layers that only one of the two has. */
  readonly changed: LayerReference[] = [];
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
    return this.positionOf(layer) >= 0;
  }

  /** Where a layer is; −1: nowhere. */
  positionOf(layer: number): number {
    const { ids } = this;
    if (!this.#isFalling) return ids.indexOf(layer);
    let low = 0, high = ids.length;
    while (low < high) {
      const middle = low + high >>> 1;
      if (ids[middle] <= layer) high = middle;
      else low = middle + 1;
    }
    return low < ids.length && ids[low] === layer ? low : -1;
  }

  /** Notes that another one was there before, if there is little between them. */
  follow(other: Chain): boolean {
    if (!this.#isFalling || !other.#isFalling) return false;
    const changed: LayerReference[] = [];
    for (let i = 0, j = 0, count = 0; i < this.ids.length || j < other.ids.length;) {
      // Behind the last one, as if lower than any.
      const own = this.ids[i] ?? -1, its = other.ids[j] ?? -1;
      if (own !== its && ++count > CHANGED_MAX) return false;
      const layer = own > its ? this.layers[i] : own < its ? other.layers[j] : null;
      if (layer !== null) changed.push(layer);
      if (own >= its) i++;
      if (its >= own) j++;
    }
    this.before = other;
    this.changed.push(...changed);
    return true;
  }

  /** Another one takes its place. */
  forget(): void {
    this.serial = 0;
    this.before = null;
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
  /** After {@linkcode find}: the index whose fields say what was found. */
  found: Index;
  /** After {@linkcode find}: the layer that has it, unless none has; 0: see {@linkcode ownerOf}. */
  layer = 0;
  readonly #index: Index;
  readonly #chains: Chain[] = [];
  #known = new WeakMap<readonly number[], Known>();
  #lastLayers: readonly number[] = [];
  #last: Known | null = null;
  #serials = 0;
  #clock = 0;
  /** What is open. */
  #chain: Chain | null = null;
  #chunk = 0;
  #at = 0;
  #table = EMPTY;
  readonly #merged = new Index();
  readonly #mergedLayers: readonly LayerReference[];
  /** Slots that have a chunk in it. */
  #mergedCount = 0;
  /** Slot that is looked at next when room is wanted. */
  #hand = 0;

  /** Becomes the index's listener. */
  constructor(index: Index) {
    this.#index = index;
    this.found = index;
    this.#merged.createLayer(MERGED_LAYER);
    this.#mergedLayers = [this.#merged.reference(MERGED_LAYER)!];
    index.owners = this;
  }

  /** Bytes of the table and the copies. */
  get memoryBytes(): number {
    return this.#table.byteLength + this.#merged.memoryBytes;
  }

  /** Bytes that the copies may take. */
  get #mergedBytesMax(): number {
    return Math.max(
      MERGED_BYTES_MIN,
      Math.floor(this.#index.memoryBytes / 2 ** MERGED_SHARE_SHIFT),
    );
  }

  /**
   * Begins to look up blocks of a chunk in the layers behind the first: {@linkcode find}, as often as wanted until
   * anything is changed.
   *
   * @param layers newest first; at least two
   */
  open(layers: readonly number[], chunk: number): void {
    const chain = this.#chainOf(layers);
    let at = this.#slotOf(chain.serial, chunk);
    if (at < 0) at = this.#fill(chain, chunk);
    const table = this.#table;
    const last = table[at + 3];
    if ((last & USED) === 0) table[at + 3] = last | USED;
    this.#chain = chain;
    this.#chunk = chunk;
    this.#at = at;
    this.found = (last & MERGED) !== 0 ? this.#merged : this.#index;
  }

  /**
   * Looks up what the chunk has from `block` on, as `Index.find` does for one layer; the fields of {@linkcode found} say
   * what that is.
   *
   * @param count blocks of interest, ≥ 1
   * @returns blocks, 1…`count`, for which that holds
   */
  find(block: number, count: number): number {
    const { found } = this;
    if (found === this.#merged) {
      this.layer = 0;
      return found.findOf(this.#mergedLayers[0], this.#at >>> SLOT_SHIFT, block, count);
    }
    const chain = this.#chain!;
    for (let i = 0; i < POSITIONS; i++) {
      const position = positionOf(this.#table, this.#at, i);
      if (position === NONE) break;
      count = found.findOf(chain.layers[position]!, this.#chunk, block, count);
      if (found.kind === IndexKind.Absent) continue;
      this.layer = chain.ids[position];
      return count;
    }
    found.miss();
    return count;
  }

  /**
   * The layer behind the first that a block was found in, if nobody knew at that time.
   *
   * @param location where it was found, `POISON` for one that is damaged
   * @returns the layer that has it there; where none has by now, the one that a read would come upon; the first of
   * them where all have a hole
   */
  ownerOf(layers: readonly number[], chunk: number, block: number, location: number): number {
    const index = this.#index;
    for (let i = 1; i < layers.length; i++) {
      if (index.locate(layers[i], chunk, block) === location) return layers[i];
    }
    for (let i = 1; i < layers.length; i++) {
      if (index.locate(layers[i], chunk, block) !== HOLE) return layers[i];
    }
    return layers[1];
  }

  // ── Slots ──────────────────────────────────────────────────────────────────────────────────────

  /** First word of the chunk's slot, or −1. */
  #slotOf(serial: number, chunk: number): number {
    const table = this.#table;
    const first = setOf(serial, chunk);
    for (let at = first; at < first + SET_WORDS; at += SLOT_WORDS) {
      if (table[at] === chunk && table[at + 1] === serial) return at;
    }
    return -1;
  }

  /** Notes which layers have anything of the chunk, or what they have. Returns the slot's first word. */
  #fill(chain: Chain, chunk: number): number {
    const index = this.#index;
    const table = this.#table;
    const { layers } = chain;
    const at = this.#emptySlot(setOf(chain.serial, chunk));
    table[at] = chunk;
    table[at + 1] = chain.serial;
    table[at + 2] = NONE | NONE << 16;
    table[at + 3] = NONE;
    if (this.#takeOver(chain, chunk, at)) return at;
    let found = 0;
    for (let i = 0; i < layers.length; i++) {
      const layer = layers[i];
      if (layer === null || !index.hasChunkOf(layer, chunk)) continue;
      if (found === POSITIONS) {
        this.#merge(at, index, layers, chunk);
        break;
      }
      setPosition(table, at, found++, i);
    }
    return at;
  }

  /** Fills a slot by what is known of the chunk in the chain before. Returns false when that does not do. */
  #takeOver(chain: Chain, chunk: number, at: number): boolean {
    const { before } = chain;
    if (before === null) return false;
    if (before.serial === 0) {
      chain.before = null;
      return false;
    }
    const from = this.#slotOf(before.serial, chunk);
    if (from < 0) return false;
    for (const layer of chain.changed) if (this.#index.hasChunkOf(layer, chunk)) return false;
    const table = this.#table;
    if ((table[from + 3] & MERGED) !== 0) {
      this.#merge(at, this.#merged, this.#mergedLayers, from >>> SLOT_SHIFT);
      return true;
    }
    for (let i = 0; i < POSITIONS; i++) {
      const position = positionOf(table, from, i);
      if (position === NONE) break;
      setPosition(table, at, i, chain.positionOf(before.ids[position]));
    }
    return true;
  }

  /** Makes the copy of a slot, of a chunk as read through layers of an index; gives up others for it. */
  #merge(
    at: number,
    source: Index,
    layers: readonly (LayerReference | null)[],
    chunk: number,
  ): void {
    const merged = this.#merged;
    merged.copyThrough(MERGED_LAYER, at >>> SLOT_SHIFT, source, layers, chunk);
    this.#table[at + 3] |= MERGED | USED;
    this.#mergedCount++;
    const bytesMax = this.#mergedBytesMax;
    while (merged.memoryBytes > bytesMax && this.#mergedCount > 1) this.#forgetOther(at);
  }

  /** Gives up the first copy behind the hand that was not used since it came by. */
  #forgetOther(kept: number): void {
    const table = this.#table;
    for (;;) {
      const at = this.#hand;
      this.#hand = at + SLOT_WORDS === table.length ? 0 : at + SLOT_WORDS;
      const last = table[at + 3];
      if ((last & MERGED) === 0 || at === kept) continue;
      if ((last & USED) === 0) return this.#forget(at);
      table[at + 3] = last & ~USED;
    }
  }

  /** A slot of the set, emptied: one that was not used since the last time that all had been. */
  #emptySlot(first: number): number {
    const table = this.#table;
    let victim = -1;
    for (let at = first; at < first + SET_WORDS; at += SLOT_WORDS) {
      if (table[at + 1] === 0) return at;
      if ((table[at + 3] & USED) === 0) victim = at;
    }
    if (victim < 0) {
      for (let at = first; at < first + SET_WORDS; at += SLOT_WORDS) table[at + 3] &= ~USED;
      victim = first + (++this.#clock % WAYS) * SLOT_WORDS;
    }
    this.#forget(victim);
    return victim;
  }

  #forget(at: number): void {
    const table = this.#table;
    if ((table[at + 3] & MERGED) !== 0) {
      this.#merged.free(MERGED_LAYER, at >>> SLOT_SHIFT, 0, CHUNK_BLOCKS);
      this.#mergedCount--;
    }
    table[at + 1] = table[at + 3] = 0;
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
    // Until another one is used it is the last.
    if (chain !== this.#chain) chain.usedAt = ++this.#clock;
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
    if (this.#table.length === 0) this.#table = new Uint32Array(SLOTS * SLOT_WORDS);
    const made = new Chain(++this.#serials, layers, hash, this.#index);
    for (const chain of this.#chains.toSorted((a, b) => b.usedAt - a.usedAt)) {
      if (made.follow(chain)) break;
    }
    if (this.#chains.length < CHAINS_MAX) {
      this.#chains.push(made);
      return made;
    }
    let oldest = 0;
    this.#chains.forEach(({ usedAt }, i) => {
      if (usedAt < this.#chains[oldest].usedAt) oldest = i;
    });
    this.#chains[oldest].forget();
    this.#chains[oldest] = made;
    return made;
  }

  // ── What the index tells ───────────────────────────────────────────────────────────────────────

  /** {@inheritDoc OwnersListener.ownersChanged} */
  ownersChanged(layer: number, chunk: number): void {
    for (const chain of this.#chains) {
      if (!chain.has(layer)) continue;
      const at = this.#slotOf(chain.serial, chunk);
      if (at >= 0) this.#forget(at);
    }
  }

  /** {@inheritDoc OwnersListener.blocksPlaced} */
  blocksPlaced(
    layer: number,
    chunk: number,
    block: number,
    count: number,
    location: number,
    aux: number,
    direct: number,
  ): void {
    for (const chain of this.#chains) {
      if (!chain.has(layer)) continue;
      const at = this.#slotOf(chain.serial, chunk);
      // Who has them does not change.
      if (at < 0 || (this.#table[at + 3] & MERGED) === 0) continue;
      const follows = location < LOCATION_END &&
        this.#follow(layer, chunk, at, block, count, location, aux, direct);
      if (!follows) this.#forget(at);
    }
  }

  /** The copy follows where it has these very blocks. Returns false where it cannot be said whether it has them. */
  #follow(
    layer: number,
    chunk: number,
    at: number,
    block: number,
    count: number,
    location: number,
    aux: number,
    direct: number,
  ): boolean {
    const index = this.#index, merged = this.#merged;
    const slot = at >>> SLOT_SHIFT;
    for (let i = 0; i < count;) {
      let run = index.find(layer, chunk, block + i, count - i);
      if (!isPlace(index.kind)) return false;
      run = merged.find(MERGED_LAYER, slot, block + i, run);
      if (merged.kind === IndexKind.Absent) throw new Error(`chains: the copy lacks a block`);
      if (isPlace(merged.kind) && merged.location === index.location) {
        merged.place(MERGED_LAYER, slot, block + i, run, location + i, aux, i, direct);
      }
      i += run;
    }
    return true;
  }

  /** {@inheritDoc OwnersListener.layerCreated} */
  layerCreated(layer: number): void {
    for (let i = this.#chains.length - 1; i >= 0; i--) {
      if (!this.#chains[i].has(layer)) continue;
      this.#chains[i].forget();
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

function isPlace(kind: IndexKind): boolean {
  return kind === IndexKind.Direct || kind === IndexKind.Run;
}

function positionOf(table: Uint32Array, at: number, i: number): number {
  return table[at + 2 + (i >>> 1)] >>> ((i & 1) * 16) & 0xffff;
}

function setPosition(table: Uint32Array, at: number, i: number, position: number): void {
  const word = at + 2 + (i >>> 1), shift = (i & 1) * 16;
  table[word] = table[word] & ~(0xffff << shift) | position << shift;
}

/** First word of a set. Neighbouring chunks of a chain have neighbouring sets. */
function setOf(serial: number, chunk: number): number {
  return (chunk + (Math.imul(serial, 0x9e3779b1) >>> 7) & SETS - 1) * SET_WORDS;
}
