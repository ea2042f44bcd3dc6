/**
 * Chunks of this node's store that are being forgotten, or are losing their stamps, since it is no member of their groups and what it has
 * of them may be of any age.
 *
 * What the store says of such a chunk is true until the operation is applied, and not after: whoever compared it with another
 * replica's meanwhile would take the chunk for whole, and it would be gone a moment later. So nothing of a group is compared
 * while one of its chunks is here (`joining.ts`).
 *
 * @module
 */
import type { ClusterView } from "./view.ts";

/** See the head of the file. */
export class Discards {
  readonly #chunks = new Map<unknown, { readonly layer: number; readonly chunk: number }>();

  /** A chunk is being discarded, by the operation or call that `token` stands for. */
  begin(token: unknown, layer: number, chunk: number): void {
    this.#chunks.set(token, { layer, chunk });
  }

  /** That is over; nothing happens where it was none. */
  end(token: unknown): void {
    this.#chunks.delete(token);
  }

  /** Whether a chunk of a group of this number is being discarded, in whichever pool its disk is by now. */
  isBusyWith(view: ClusterView, group: number): boolean {
    for (const { layer, chunk } of this.#chunks.values()) {
      const disk = view.diskOfLayer(layer);
      if (disk !== undefined && view.groupOf(disk, chunk).group === group) return true;
    }
    return false;
  }
}
