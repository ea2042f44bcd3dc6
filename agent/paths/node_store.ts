/**
 * What a node's process needs of where its data lies: one store, or a set of them.
 *
 * @module
 */
import type { LocalStore } from "../replication/local_store.ts";
import type { Done } from "../store/errors.ts";
import type { ScrubProgress } from "../store/scrub.ts";
import type { StoreState, StoreStats } from "../store/stats.ts";
import type { StoreIdentity } from "../store/store.ts";

/** `store/store.ts` says what each of these promises; `store_set.ts` is several of them. */
export interface NodeStore extends LocalStore {
  readonly state: StoreState;
  readonly wasClean: boolean;
  readonly identity: StoreIdentity;
  readonly idle: boolean;
  /** Something was given to it that its disk has not written yet. */
  readonly hasUnwritten: boolean;
  endTurn(): void;
  tick(nowMs: number): void;
  close(done: Done): void;
  getMeta(key: string): Uint8Array | null;
  metaKeys(): string[];
  setMetaBatch(
    entries: readonly { readonly key: string; readonly value: Uint8Array | null }[],
    done: Done,
  ): void;
  layerBytes(layer: number): number;
  /** Of the file of the data path that has the chunk. */
  offsetOf(layer: number, chunk: number, block: number): number;
  /** That layer says something of the block itself. */
  holds(layer: number, chunk: number, block: number): boolean;
  /** That block has been found damaged, and has not been written since. */
  isDamaged(layer: number, chunk: number, block: number): boolean;
  stats(): StoreStats;
  scrubNow(
    layers: readonly number[] | null,
    progress: (progress: ScrubProgress) => boolean | void,
    done: Done,
  ): void;
}
