/**
 * What a store tells about itself.
 *
 * @module
 */
import type { Damage } from "./core.ts";

/** What the store is doing. */
export type StoreState = "closed" | "opening" | "open" | "closing" | "failed";

/** What {@linkcode Store.stats} tells. Sizes in bytes. */
export interface StoreStats {
  readonly state: StoreState;
  /** Why the store has failed, or null. */
  readonly failed: string | null;
  readonly capacityBytes: number;
  readonly segmentBytes: number;
  readonly segmentCount: number;
  /** Live data. */
  readonly liveBytes: number;
  /** Segments that are not free. */
  readonly usedBytes: number;
  readonly freeBytes: number;
  /** Most that can be live before writes wait. */
  readonly usableBytes: number;
  /** Data in the log that is not live any more. */
  readonly garbageBytes: number;
  readonly indexBytes: number;
  /** Chunks with a known stamp. */
  readonly stampedChunks: number;
  readonly cacheBytes: number;
  readonly cacheHits: number;
  readonly cacheMisses: number;
  /** Writes wait for space. */
  readonly full: boolean;
  /** The file system below has no space. */
  readonly hostFull: boolean;
  readonly waitingWrites: number;
  readonly queuedOperations: number;
  readonly lsn: number;
  readonly syncedLsn: number;
  readonly replayBytes: number;
  readonly cleaning: boolean;
  readonly cleanedSegments: number;
  readonly relocatedBlocks: number;
  readonly checkpoint: {
    readonly running: boolean;
    readonly id: number;
    readonly bytes: number;
    readonly taken: number;
  };
  readonly scrub: {
    readonly running: boolean;
    readonly checkedBlocks: number;
    readonly passes: number;
  };
  /**
   * Damaged places found since opening that are still there, bounded; `damageCount` counts all that
   * were found.
   */
  readonly damage: readonly Damage[];
  readonly damageCount: number;
  /** Of those, how many found no room in `damage`: nobody knows whether they are still there. */
  readonly damageUnlisted: number;
  readonly secondReads: number;
  readonly writeErrors: number;
  readonly records: number;
  readonly syncs: number;
  readonly blocksRead: number;
  /** Blocks written by users. */
  readonly userBlocks: number;
  /** Blocks written to the log, headers and copies included. */
  readonly logBlocks: number;
  /** `logBlocks` / `userBlocks`. */
  readonly writeAmplification: number;
  readonly layers: number;
  readonly deletingLayers: number;
}
