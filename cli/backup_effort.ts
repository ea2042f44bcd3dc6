/**
 * How hard a backup is compressed: as hard as it goes while nobody waits for that.
 *
 *     the host has time left, and frames are ready when they are asked for ──▶ harder, up to Zstandard's fastest ordinary level
 *     it has none to spare, or all else waits for frames                   ──▶ less hard: more is skipped where nothing repeats itself
 *
 * Where the file's disk, the network or the agent is slower than the processors, that is the hardest, and nothing is lost by it. On a
 * host whose processors are busy, with guests or with this, a backup takes less of their time, is done sooner, and has a somewhat
 * larger file.
 *
 * Invariants: it is changed by one step at a time, and by what was seen since the last step only.
 *
 * @module
 */
import { cpus } from "node:os";

/** What the host's processors have done so far, all of them together, in milliseconds. */
export interface ProcessorTime {
  /** That there was. */
  readonly totalMs: number;
  /** That was used, without what gives way to others: that of programs of a lower priority. */
  readonly busyMs: number;
}

/** Reads it. What a processor waits for a disk is not busy. */
export function processorTime(): ProcessorTime {
  const all = cpus();
  const busyMs = all.reduce((sum, { times: { user, sys, irq } }) => sum + user + sys + irq, 0);
  return { totalMs: performance.now() * all.length, busyMs };
}

/**
 * Bytes that Zstandard skips where it has found no repetition, from hardest to least hard. With text of a small vocabulary, and with a
 * program's machine code, the last took less than half as long as the first and left 1.4 and 1.9 times as much.
 */
const ACCELERATIONS = [1, 8, 32, 128] as const;

/** Frames between steps: long enough for the kernel's clock of processor time, which has 100 ticks per second. */
export const FRAMES_PER_STEP = 32;

/**
 * A host with less of its time left than the first has none to spare: what runs on it waits for a processor now and then. With more than
 * the second it has enough to be asked for more.
 */
const IDLE_SHARE_MIN = 0.25, IDLE_SHARE_MORE = 0.4;

/** See the head of the file. */
export class Effort {
  readonly #now: () => ProcessorTime;
  #before: ProcessorTime;
  #step = 0;
  #frames = 0;
  #waited = 0;

  /** @param now the host's processor time so far */
  constructor(now: () => ProcessorTime) {
    this.#now = now;
    this.#before = now();
  }

  /** What the next frame is compressed with, as {@linkcode Zstd.compress} takes it; higher is less hard. */
  get acceleration(): number {
    return ACCELERATIONS[this.#step];
  }

  /**
   * A frame was compressed.
   *
   * @param isWaitedFor everything else waited for it
   */
  frame(isWaitedFor: boolean): void {
    this.#frames++;
    if (isWaitedFor) this.#waited++;
    if (this.#frames < FRAMES_PER_STEP) return;
    const now = this.#now();
    const totalMs = now.totalMs - this.#before.totalMs;
    const idleMs = totalMs - (now.busyMs - this.#before.busyMs);
    if (this.#waited > this.#frames / 2 || idleMs < totalMs * IDLE_SHARE_MIN) {
      this.#step = Math.min(ACCELERATIONS.length - 1, this.#step + 1);
    } else if (idleMs > totalMs * IDLE_SHARE_MORE) {
      this.#step = Math.max(0, this.#step - 1);
    }
    this.#before = now;
    this.#frames = this.#waited = 0;
  }
}
