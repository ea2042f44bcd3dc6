/**
 * Two layers that are becoming one, looked at as one: see the head of `map/layers.ts`.
 *
 *     what the pair (K, L) holds of a chunk   K's block where K has one, else L's: the same before, while and after K absorbs L
 *     its stamp                               K's; where K has never had anything of the chunk, L's, which K gets as it absorbs it
 *
 * So the stamps of two replicas can be compared, whichever of them has absorbed the chunk already, as long as L's are equal
 * as well: L keeps its stamp as long as it is in the map, though it holds nothing any more.
 *
 * The same of a layer that is being flattened (`flattening.ts`) and the whole chain below it: the stamp is that of the first layer that ever
 * had anything of the chunk, and the flattened one gets it with the first block that is copied into it, or by itself where none is.
 *
 * @module
 */
import { SET_WORDS } from "./block_set.ts";
import { isKnown, type LocalStore, type Stamp } from "./local_store.ts";

const data = new Uint32Array(SET_WORDS), zeros = new Uint32Array(SET_WORDS);
const poisoned = new Uint32Array(SET_WORDS);

/**
 * A layer, and the one that it absorbs.
 *
 * @param absorbed 0: none
 */
export function pairOf(layer: number, absorbed: number): readonly number[] {
  return absorbed === 0 ? [layer] : [layer, absorbed];
}

/** Whether a chunk of a layer has any block: data, zeros, or damage. */
export function hasBlocks(store: LocalStore, layer: number, chunk: number): boolean {
  store.describeChunk(layer, chunk, data, zeros, poisoned);
  for (let i = 0; i < SET_WORDS; i++) if ((data[i] | zeros[i] | poisoned[i]) !== 0) return true;
  return false;
}

/**
 * The stamp of a chunk of a pair of layers, or of a chain, as the head of the file says.
 *
 * @param layers a layer, and the one that it absorbs, if it does, or all that it is read through
 * @param stamp is filled
 */
export function stampOfPair(
  store: LocalStore,
  layers: readonly number[],
  chunk: number,
  stamp: Stamp,
): void {
  const last = layers.length - 1;
  for (let i = 0; i <= last; i++) {
    store.stampOf(layers[i], chunk, stamp);
    if (isKnown(stamp) || (i < last && hasBlocks(store, layers[i], chunk))) return;
  }
}
