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
import type { ClusterMap } from "../map/map.ts";
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

/** What {@linkcode LocalStore.listChunks} fills: the caller's arrays, of one length. */
export interface ChunkList {
  readonly chunks: Uint32Array;
  /** 0: the stamp is unknown. */
  readonly generations: Uint32Array;
  readonly sequences: Float64Array;
  /** Chunks that were filled in. */
  count: number;
  /** Where to go on; −1 when there is nothing more. */
  next: number;
}

/** Makes an empty list. */
export function chunkList(length: number): ChunkList {
  return {
    chunks: new Uint32Array(length),
    generations: new Uint32Array(length),
    sequences: new Float64Array(length),
    count: 0,
    next: -1,
  };
}

/**
 * What replication has to know of a store that is several, each a failure unit of its own: `paths/store_set.ts`.
 *
 * Groups are on one path each. What this node holds of them on a path that is lost is not there, and is not empty either: the
 * map has to take this node out of them, or to wait where nobody else has them.
 */
export interface LocalPaths {
  /**
   * Finds a path for every group that this node is to hold by a map, before that is in force.
   *
   * @param done what was decided is durable, or (an error) could not be made so: then this is to be called again
   * @returns true when nothing had to be done; then `done` is not called
   */
  prepare(map: ClusterMap, self: number, done: (error: Error | null) => void): boolean;
  /** The map that was prepared last is in force. */
  installed(): void;
  /** Some path is lost: syncs may fail until the map has taken notice. */
  readonly isImpaired: boolean;
  /**
   * The last map by which something that is lost was no longer this node's to hold: from then on a sync says nothing of it, and so
   * says nothing to whoever goes by an older map. 0: there was none.
   */
  readonly lossEpoch: number;
  /** The path of the chunk is lost: what fails on it is to be tried again under another map. */
  isLost(layer: number, chunk: number): boolean;
  /** In words, which path of a group is lost, and why; null: none is. */
  lossOf(group: number): string | null;
  /**
   * What the map still takes this node to hold, and is lost: a set of bits by group, see `slotsOf` of `paths/slots.ts`.
   * Null: nothing.
   */
  owed(): Uint8Array | null;
}

/** See the head of the file, and `store/store.ts` for what each of these promises. */
export interface LocalStore {
  /** Left out: there is one path, and it works or all has failed. */
  readonly paths?: LocalPaths;
  /**
   * Takes an operation; it comes back through its owner exactly once, applied, never from inside this call. `OperationKind.Absorb`
   * is for layers of one family; it and `OperationKind.Fill` are for clusters of level 2.
   */
  submit(operation: Operation): void;
  /**
   * Takes changes back that have not begun, since there is no room for them yet: they come back with −ECANCELED, never from inside
   * this call. Of what is left nothing is reordered.
   */
  withdraw(isWanted: (operation: Operation) => boolean): void;
  /** Told of every block that is found damaged or cannot be read, by reads and by the scrub; set by whoever heals. */
  damageListener: ((layer: number, chunk: number, block: number) => void) | null;
  hasLayer(layer: number): boolean;
  /** Whether so many bytes may be put into a chunk by who can wait: what is left after that is enough for guests. */
  hasRoom(layer: number, chunk: number, bytes: number): boolean;
  /** All layers that there are. */
  layers(): number[];
  /** Makes an empty layer; `done` when it may be written to. */
  createLayer(layer: number, done: (error: Error | null) => void): void;
  deleteLayer(layer: number, done: (error: Error | null) => void): void;
  /** Forgets a chunk and its stamp, behind everything that was submitted for it before. */
  dropChunk(layer: number, chunk: number, done: (error: Error | null) => void): void;
  /** Fills `stamp`; (0, 0) when it is unknown. Returns whether it is known. */
  stampOf(layer: number, chunk: number, stamp: Stamp): boolean;
  /** Chunks with a known stamp, or content, or both, in rising order: those that are `offset` modulo `step`. */
  listChunks(layer: number, from: number, list: ChunkList, step?: number, offset?: number): void;
  /**
   * Which blocks of this very layer's chunk hold data, which are zeros whatever older layers hold, and which are known to be
   * damaged: bit b of word w is block 32·w + b. All three are overwritten.
   */
  describeChunk(
    layer: number,
    chunk: number,
    data: Uint32Array,
    zeros: Uint32Array,
    poisoned: Uint32Array,
  ): number;
  /**
   * The same of what a read through `layers`, newest first, comes upon: of each block what the first layer says that is no hole
   * there. Layers of one family.
   *
   * @returns blocks with data
   */
  describeChain(
    layers: readonly number[],
    chunk: number,
    data: Uint32Array,
    zeros: Uint32Array,
    poisoned: Uint32Array,
  ): number;
}
