/**
 * The figures of a benchmark, and how they are printed.
 *
 * @module
 */
import type { CacheMode } from "../../agent/config.ts";
import type { Cell } from "./plan.ts";

/** Figures of one side in one pattern, medians over the repetitions. */
export interface SideFigures {
  readonly iops: number;
  readonly megabytesPerSecond: number;
  readonly p50Us: number;
  readonly p99Us: number;
  /** CPU of the serving process, all threads, per request; null where it could not be read. */
  readonly cpuUs: number | null;
  /** IOPS of each repetition, in order. */
  readonly samples: readonly number[];
}

/** One row. */
export interface CellFigures {
  readonly name: string;
  readonly qsd: SideFigures;
  readonly kelpie: SideFigures;
  /** Kelpie's median rate divided by the reference's. */
  readonly ratio: number;
  readonly target: number | null;
  readonly verdict: Verdict;
}

/** How a row did: `met`, `p99` (the rate is met, the 99th percentile is worse), `short`, or no target. */
export type Verdict = "met" | "p99" | "short" | "-";

/** The agent when nothing is asked of it. */
export interface IdleFigures {
  readonly cpuPercent: number;
  readonly residentMiB: number;
  /** The part that is not shared or backed by files. */
  readonly anonymousMiB: number;
}

/** One run with one cache mode. */
export interface ModeFigures {
  readonly cache: CacheMode;
  readonly cells: readonly CellFigures[];
  /** Before any guest data was written, and after the last pattern. */
  readonly idleBefore: IdleFigures;
  readonly idleAfter: IdleFigures;
  /** CPU seconds outside the timed parts: writing in advance, and work that was put off. */
  readonly untimedCpuSeconds: { readonly qsd: number; readonly kelpie: number };
}

/** A 99th percentile this much higher still counts as no worse: the histogram's and the clock's grain. */
const P99_TOLERANCE = 1.05;

/** Puts a row together. */
export function cellFigures(cell: Cell, qsd: SideFigures, kelpie: SideFigures): CellFigures {
  const { name, target } = cell;
  const ratio = kelpie.iops / qsd.iops;
  return { name, qsd, kelpie, ratio, target, verdict: verdict({ ratio, target, qsd, kelpie }) };
}

function verdict(
  { ratio, target, qsd, kelpie }: Pick<CellFigures, "ratio" | "target" | "qsd" | "kelpie">,
): Verdict {
  if (target === null) return "-";
  if (!(ratio >= target)) return "short";
  return kelpie.p99Us <= qsd.p99Us * P99_TOLERANCE ? "met" : "p99";
}

/** The middle value; the mean of the two middle ones of an even number. */
export function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

const HEADINGS = [
  ["pattern", "IOPS", "", "", "", "p99 µs", "", "CPU µs/IO", "", ""],
  ["", "qsd", "kelpie", "ratio", "target", "qsd", "kelpie", "qsd", "kelpie", "verdict"],
];

/** The table of one run, as lines of text. */
export function tableOf(figures: ModeFigures): string {
  const rows = figures.cells.map(({ name, qsd, kelpie, ratio, target, verdict }) => [
    name,
    qsd.iops.toFixed(0),
    kelpie.iops.toFixed(0),
    `${ratio.toFixed(2)}x`,
    target === null ? "-" : `${target.toFixed(1)}x`,
    rounded(qsd.p99Us),
    rounded(kelpie.p99Us),
    qsd.cpuUs === null ? "-" : rounded(qsd.cpuUs),
    kelpie.cpuUs === null ? "-" : rounded(kelpie.cpuUs),
    verdict === "p99" ? "met, p99 worse" : verdict,
  ]);
  const table = [...HEADINGS, ...rows];
  const widths = HEADINGS[0].map((_, column) =>
    Math.max(...table.map((cells) => cells[column].length))
  );
  const isLeft = (column: number) => column === 0 || column === widths.length - 1;
  const line = (cells: readonly string[]) =>
    cells.map((cell, column) =>
      isLeft(column) ? cell.padEnd(widths[column]) : cell.padStart(widths[column])
    ).join("  ").trimEnd();
  return table.map(line).join("\n");
}

function rounded(us: number): string {
  return us.toFixed(us < 100 ? 1 : 0);
}

/** What is to be said below the table. */
export function notesOf(figures: ModeFigures): string {
  const idle = ({ cpuPercent, residentMiB, anonymousMiB }: IdleFigures) =>
    `${cpuPercent.toFixed(2)} % CPU, ${residentMiB.toFixed(0)} MiB resident ` +
    `(${anonymousMiB.toFixed(0)} anonymous)`;
  const { qsd, kelpie } = figures.untimedCpuSeconds;
  return [
    `agent idle, new:           ${idle(figures.idleBefore)}; targets: below 1 %, below 150 MiB`,
    `agent idle, after the run: ${idle(figures.idleAfter)}`,
    `CPU outside the timed parts (writing in advance, work put off): ` +
    `qsd ${qsd.toFixed(1)} s, kelpie ${kelpie.toFixed(1)} s`,
  ].join("\n");
}

/** How it was measured; part of every report, since the figures mean little without it. */
export const METHOD = `\
How this is measured. Both serve one disk over vhost-user-blk from the same file system, one queue,
to the same load generator in turn (kelpie first in every other repetition); each figure is the median
of the repetitions, the ratio is that of the median rates. The qsd side is qemu-storage-daemon on a raw file,
aio=io_uring, writable, num-queues=1; the kelpie side is an agent process with checksums on, as always.
- Both files are written in full with zeros through the page cache first, then both disks in full
  through their sockets (1 MiB, sequential), and once more before the patterns that write: the first write of
  a page or block can cost 20 times that of the next, and would be measured instead.
- Before each timed part the file system is synced and both sides are left alone until they use no CPU,
  so that neither pays for what the other put off. What they use meanwhile is told below the table.
- Reads and large blocks run before random writes, because a log lays data where it was last written; the
  last row reads the disk from start to end after them, and has no target.
- With cache "direct" qsd has cache.direct=on and the agent --cache direct; the page cache of both files is dropped.`;
