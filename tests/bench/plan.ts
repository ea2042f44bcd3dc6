/**
 * What `./dev bench` measures, in which order, and what it is held against.
 *
 * The order is part of the measurement: reads and large blocks come first, on a disk that was written
 * once from its start to its end, because a log lays blocks where they were written last. After the
 * random writes one more row reads the disk from start to end, to show what that costs.
 *
 * @module
 */
import type { BenchOptions } from "../../cli/bench.ts";

const KiB = 1024;
const MiB = 1024 * KiB;

/** One pattern. */
export interface Cell {
  readonly name: string;
  readonly load: Pick<BenchOptions, "rw" | "blockBytes" | "depth" | "flushEvery">;
  /** Least ratio of Kelpie's median rate to the reference's; null where none is promised. */
  readonly target: number | null;
  /** The disk has to be written at random before. */
  readonly isScattered?: boolean;
}

/** All patterns, in the order in which they are run. */
export const CELLS: readonly Cell[] = [
  random("randread", 1, 0.9),
  random("randread", 8, 1.7),
  random("randread", 32, 2),
  {
    name: "randread 64K d8",
    load: { rw: "randread", blockBytes: 64 * KiB, depth: 8 },
    target: 1,
  },
  { name: "read 1M d4", load: { rw: "read", blockBytes: MiB, depth: 4 }, target: 1 },
  { name: "write 1M d4", load: { rw: "write", blockBytes: MiB, depth: 4 }, target: 1 },
  {
    name: "randwrite 64K d8",
    load: { rw: "randwrite", blockBytes: 64 * KiB, depth: 8 },
    target: 1,
  },
  random("randwrite", 1, 1.2),
  random("randwrite", 8, 1.7),
  random("randwrite", 32, 2),
  {
    name: "randwrite 4K d8 flush/32",
    load: { rw: "randwrite", blockBytes: 4 * KiB, depth: 8, flushEvery: 32 },
    target: 1.2,
  },
  {
    name: "read 1M d4, after randwrite",
    load: { rw: "read", blockBytes: MiB, depth: 4 },
    target: null,
    isScattered: true,
  },
];

function random(rw: "randread" | "randwrite", depth: number, target: number): Cell {
  return { name: `${rw} 4K d${depth}`, load: { rw, blockBytes: 4 * KiB, depth }, target };
}

/** The load that writes a disk once in full before anything is measured. */
export const PREWRITE: Cell["load"] & { readonly blockBytes: number } = {
  rw: "write",
  blockBytes: MiB,
  depth: 4,
};

/** The load that writes the disk at random, for a pattern that wants that when no other has done it. */
export const SCATTER: Cell["load"] = { rw: "randwrite", blockBytes: 4 * KiB, depth: 32 };

/** Sizes and times of a run. */
export interface Scale {
  readonly diskBytes: number;
  /** Capacity of the store: with room to spare, as any log needs. */
  readonly storeBytes: number;
  readonly seconds: number;
  readonly repetitions: number;
  readonly idleSeconds: number;
}

/** What `./dev bench` does unless told otherwise. */
export const FULL: Scale = {
  diskBytes: 4096 * MiB,
  storeBytes: 10240 * MiB,
  seconds: 3,
  repetitions: 5,
  idleSeconds: 5,
};

/** `--quick`: to see that it works; its figures are worth little. */
export const QUICK: Scale = {
  diskBytes: 512 * MiB,
  storeBytes: 2048 * MiB,
  seconds: 0.5,
  repetitions: 3,
  idleSeconds: 5,
};

/** Free bytes that a run needs below its directory: both files, and something to spare. */
export function neededBytes(scale: Scale): number {
  return scale.diskBytes + scale.storeBytes + Math.ceil(scale.storeBytes / 8);
}
