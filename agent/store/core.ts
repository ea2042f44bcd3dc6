/**
 * What the parts of an open store share, and the tunables with their reasons.
 *
 * @module
 */
import { BLOCK_BYTES } from "../base/limits.ts";
import type { Disk, Log as Logger, Random, Window } from "../platform/platform.ts";
import type { Applier } from "./applier.ts";
import type { ChecksumCache } from "./checksum_cache.ts";
import { FRAME_BYTES_MAX, META_BATCH_BYTES_MAX, type Superblock } from "./format.ts";
import type { Index } from "./index.ts";
import { LOG_BYTES, type RecordLog } from "./log.ts";
import type { MetaTable } from "./meta.ts";
import { READS_BYTES } from "./reads.ts";
import type { Segments } from "./segments.ts";

/** What may be tuned; every one has a default. */
export interface StoreTunables {
  /** Memory for checksums of long runs, in bytes. Default 16 MiB: the checksums of 16 GiB. */
  checksumCacheBytes: number;
  /**
   * A checkpoint is taken when the log since the last one is this long, in bytes. Default 256 MiB:
   * less than half a second of replay.
   */
  checkpointLogBytes: number;
  /**
   * … and at least this many times as long as the last checkpoint, so that checkpoints stay a small
   * part of writing. Default 8.
   */
  checkpointLogRatio: number;
  /** Free segments kept allocated for the writes to come, besides what is kept back. Default 4. */
  readySegments: number;
  /**
   * Further free segments that stay allocated while the store is in use: rewriting a segment whose
   * pages are still in the page cache, and whose blocks the file system has initialised, is many
   * times cheaper than writing a fresh one.
   */
  warmSegments: number;
  /** Milliseconds without writes after which their space goes back to the host too. */
  warmMs: number;
  /** Segments below the writes' limit in which the cleaner works. Default 3. */
  cleanerSegments: number;
  /**
   * Segments kept for crashes that leave the head unusable (damage, a failed write), one each.
   * Default 2.
   */
  crashSegments: number;
  /**
   * The cleaner works in the background while fewer than this part of the segments are free.
   * Default 1/8.
   */
  cleanFreeRatio: number;
  /**
   * … or, when the store is idle, while garbage is more than this part of what is used. Default
   * 1/4.
   */
  cleanGarbageRatio: number;
  /** Background scrub, in bytes per second. Default 4 MiB: 1 TiB in three days. 0: none. */
  scrubBytesPerSecond: number;
  /**
   * Rest between background scrubs, in milliseconds. Default a day: a pass over a small store takes
   * minutes only.
   */
  scrubPauseMs: number;
}

/** See {@linkcode StoreTunables}. */
export const TUNABLES_DEFAULT: StoreTunables = {
  checksumCacheBytes: 16 * 1024 * 1024,
  checkpointLogBytes: 256 * 1024 * 1024,
  checkpointLogRatio: 8,
  readySegments: 4,
  warmSegments: 256,
  warmMs: 120_000,
  cleanerSegments: 3,
  crashSegments: 2,
  cleanFreeRatio: 1 / 8,
  cleanGarbageRatio: 1 / 4,
  scrubBytesPerSecond: 4 * 1024 * 1024,
  scrubPauseMs: 24 * 3600 * 1000,
};

/** Bytes that recovery reads at a time, and that the cleaner moves at a time. */
export const WORK_BYTES = 1024 * 1024;
/** Bytes that the cleaner reads headers with. */
export const READER_BYTES = 64 * 1024;
/** Bytes that scrub reads at a time: short enough not to be felt. */
export const SCRUB_BYTES = 256 * 1024;
/** Frames of a checkpoint under way: one being written while the next is filled. */
export const FRAMES = 2;
/** META: the items of one entry, block-aligned. */
export const META_BYTES = META_BATCH_BYTES_MAX;

/** Arena offsets of the store's fixed buffers. */
export interface Buffers {
  readonly log: number;
  readonly reads: number;
  readonly superblock: number;
  readonly meta: number;
  readonly frames: number;
  readonly work: number;
  readonly reader: number;
  readonly scrub: number;
}

/** Arena bytes that a store needs. */
export const BUFFER_BYTES = LOG_BYTES + READS_BYTES + BLOCK_BYTES + META_BYTES +
  FRAMES * FRAME_BYTES_MAX + WORK_BYTES + READER_BYTES + SCRUB_BYTES;

/** Lays the buffers out from arena offset `at`. */
export function layOut(at: number): Buffers {
  const log = at;
  const reads = log + LOG_BYTES;
  const superblock = reads + READS_BYTES;
  const meta = superblock + BLOCK_BYTES;
  const frames = meta + META_BYTES;
  const work = frames + FRAMES * FRAME_BYTES_MAX;
  const reader = work + WORK_BYTES;
  const scrub = reader + READER_BYTES;
  return { log, reads, superblock, meta, frames, work, reader, scrub };
}

/** A damaged block or record. */
export interface Damage {
  /** What is damaged. */
  readonly what: "block" | "record" | "superblock" | "checkpoint";
  readonly layer: number;
  readonly chunk: number;
  readonly block: number;
  /** Byte offset on the disk, 0 when not known. */
  readonly offsetBytes: number;
  readonly message: string;
}

/** Damage kept for status; more is only counted. */
export const DAMAGE_MAX = 256;

/** Bounded list of what was found damaged, each place once. */
export class DamageList {
  readonly list: Damage[] = [];
  /** Places found, listed or not, healed since or not. */
  count = 0;
  /** Places for which the list had no room: nobody knows whether they are still damaged. */
  unlisted = 0;

  /** Takes those off the list that `isThere` says are no longer damaged. */
  prune(isThere: (damage: Damage) => boolean): void {
    let kept = 0;
    for (const damage of this.list) if (isThere(damage)) this.list[kept++] = damage;
    this.list.length = kept;
  }

  /** The block at this place of the disk matches its checksum: if it was listed, the disk had only failed to read it. */
  matches(offsetBytes: number): void {
    if (this.list.length === 0) return;
    this.prune((damage) => damage.what !== "block" || damage.offsetBytes !== offsetBytes);
  }

  /** Another layer has absorbed a chunk: blocks of it that `isThere` finds there are listed as that layer's. */
  absorbed(into: number, from: number, chunk: number, isThere: (damage: Damage) => boolean): void {
    for (let i = 0; i < this.list.length; i++) {
      const damage = this.list[i];
      if (damage.what !== "block" || damage.layer !== from || damage.chunk !== chunk) continue;
      const moved = { ...damage, layer: into };
      if (isThere(moved) && !this.#isListed(moved)) this.list[i] = moved;
    }
  }

  #isListed(damage: Damage): boolean {
    return this.list.some((other) =>
      other.what === damage.what && other.layer === damage.layer && other.chunk === damage.chunk &&
      other.block === damage.block && other.offsetBytes === damage.offsetBytes
    );
  }

  /** Adds one, unless the same place is listed already. */
  add(damage: Damage): boolean {
    if (this.#isListed(damage)) return false;
    this.count++;
    if (this.list.length < DAMAGE_MAX) this.list.push(damage);
    else this.unlisted++;
    return true;
  }
}

/** What does not depend on an open store. */
export interface Machine {
  readonly disk: Disk;
  readonly window: Window;
  readonly random: Random;
  readonly logger: Logger;
  readonly tunables: StoreTunables;
  readonly buffers: Buffers;
  readonly damage: DamageList;
}

/** An open store. */
export interface Core extends Machine {
  readonly storeId: Uint8Array;
  readonly storeWords: Uint32Array;
  readonly segments: Segments;
  readonly index: Index;
  readonly applier: Applier;
  readonly meta: MetaTable;
  readonly cache: ChecksumCache;
  readonly log: RecordLog;
  /** It had been closed in good order: nothing that was acknowledged is missing. */
  readonly wasClean: boolean;
  /** The last one that is durable. */
  superblock: Superblock;
  /** Segments of the checkpoint in force. */
  checkpointSegments: number[];
  /** Bytes of the checkpoint in force. */
  checkpointBytes: number;
  /** The layers of the checkpoint whose image is being written; null: of none. */
  imageLayers: ReadonlySet<number> | null;
  /** Superblock and checkpoint are written by one task at a time. */
  locked: boolean;
}
