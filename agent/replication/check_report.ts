/**
 * What a check of replicas has found: by ids where it is made, by names where people and programs read it.
 *
 * @module
 */

/** What became of one disk; a block, or a chunk, of several replicas counts as several, but for those that differ. */
export interface DiskCheck<Id = number> {
  readonly disk: Id;
  /** Chunks of 4 MiB of its layers that any replica has. */
  chunks: number;
  /** …of which all blocks are the same on two or more replicas. */
  comparedChunks: number;
  /** …of which there is one replica in sync only: verified, and compared with nothing. */
  singleChunks: number;
  /** Blocks of 4 KiB of data that were read and match their checksums. */
  verifiedBlocks: number;
  /** Blocks that did not, at first. */
  damagedBlocks: number;
  /** Of those, how many do now. */
  repairedBlocks: number;
  /** Blocks that matched their checksums on all replicas, and were not the same. */
  differingBlocks: number;
  /** Of those, how many are the same now. */
  settledBlocks: number;
  /** Replicas of chunks that were in sync and lacked writes, as far as they were come upon: whoever copies one copies what else it lacks. */
  laggingChunks: number;
  /** Of those, how many have them now. */
  caughtUpChunks: number;
  /** Replicas of chunks that were not, or not wholly, checked. */
  uncheckedChunks: number;
}

/** A block that is not right. */
export interface CheckedBlock<Id = number> {
  readonly kind: "damaged" | "differs";
  /** By name: who reads the block, a disk or, where no disk does, a snapshot as `DISK@NAME`. */
  readonly disk: Id;
  /** Of the disk, or of a snapshot of it. */
  readonly offsetBytes: number;
  /** Who has it damaged, or who differ. */
  readonly nodes: readonly Id[];
  /** Differs: for each node, which content it has: equal numbers are equal content. */
  readonly contents: readonly number[];
  /** Why it is left so, in words, beginning in lower case. */
  readonly reason: string;
}

/** The same before it has names. */
export interface FoundBlock extends CheckedBlock {
  /** The layer in which it was found. */
  readonly layer: number;
}

/** Why chunks were not checked. */
export interface UncheckedChunks<Id = number> {
  readonly disk: Id;
  /** In words, beginning in lower case. */
  readonly reason: string;
  /** The nodes that it is about; empty: nobody in particular. */
  readonly nodes: readonly Id[];
  chunks: number;
}

/** Result of a check, by names. */
export interface NamedReport<Id> {
  readonly disks: DiskCheck<Id>[];
  /** The first {@linkcode NAMED_MAX} that are not right. */
  readonly blocks: CheckedBlock<Id>[];
  readonly unchecked: UncheckedChunks<Id>[];
}

/** Result of a check. */
export interface CheckReport extends NamedReport<number> {
  readonly blocks: FoundBlock[];
}

/** Blocks named in a report; more are counted. */
export const NAMED_MAX = 256;

/** A disk of which nothing was looked at yet. */
export function newDiskCheck(disk: number): DiskCheck {
  return {
    disk,
    chunks: 0,
    comparedChunks: 0,
    singleChunks: 0,
    verifiedBlocks: 0,
    damagedBlocks: 0,
    repairedBlocks: 0,
    differingBlocks: 0,
    settledBlocks: 0,
    laggingChunks: 0,
    caughtUpChunks: 0,
    uncheckedChunks: 0,
  };
}

/** Whether everything of a disk was checked, and is good or was made so. */
export function isGood(disk: Omit<DiskCheck, "disk">): boolean {
  return disk.damagedBlocks === disk.repairedBlocks &&
    disk.differingBlocks === disk.settledBlocks &&
    disk.laggingChunks === disk.caughtUpChunks && disk.uncheckedChunks === 0;
}
