/**
 * How far long work is: a bar that moves on a terminal, one line per 10 % elsewhere. Both say the
 * rate and the time left, on standard error; the first second is silent.
 *
 *     importing web  [##########--------------]  41 %  8.2G of 20G  512M/s  24 s left
 *
 * @module
 */
import { formatSize } from "../agent/config.ts";
import type { Output } from "./output.ts";
import { formatDuration, formatRate } from "./units.ts";

/** Work that is done sooner needs no picture. */
const QUIET_MS = 1000;

/** Least time between two pictures of the bar: as fast as people look. */
const REDRAW_MS = 100;

/** Least time between two lines where the end is not known. */
const LINE_MS = 10_000;

/** Lines where the end is known come after each such part. */
const LINE_PERCENT = 10;

/** The rate is that of about the last `SAMPLES_MAX * SAMPLE_MS`: 8 s. */
const SAMPLES_MAX = 16;
const SAMPLE_MS = 500;

const BAR_COLUMNS_MAX = 40;
const BAR_COLUMNS_MIN = 10;

interface Sample {
  readonly atMs: number;
  readonly doneBytes: number;
}

/** One piece of long work. */
export class Progress {
  readonly #output: Output;
  readonly #label: string;
  readonly #totalBytes: number | null;
  readonly #unit: string | undefined;
  readonly #startMs: number;
  readonly #samples: Sample[];
  #doneBytes = 0;
  #shownMs = -Infinity;
  #shownPercent = 0;
  #isDrawn = false;

  /**
   * @param label what is being done: `importing web`
   * @param totalBytes null where it is not known
   * @param unit what is counted where it is not bytes: `groups`
   */
  constructor(output: Output, label: string, totalBytes: number | null, unit?: string) {
    this.#output = output;
    this.#unit = unit;
    this.#label = label;
    this.#totalBytes = totalBytes;
    this.#startMs = output.terminal.nowMs();
    this.#samples = [{ atMs: this.#startMs, doneBytes: 0 }];
    if (!output.isErrorFancy) this.#shownMs = this.#startMs;
  }

  /** Time since the beginning. */
  get elapsedMs(): number {
    return this.#output.terminal.nowMs() - this.#startMs;
  }

  /**
   * Says how far it is.
   *
   * @param doneBytes since the beginning
   */
  update(doneBytes: number): void {
    this.#doneBytes = doneBytes;
    const nowMs = this.#output.terminal.nowMs();
    if (nowMs - this.#samples[this.#samples.length - 1].atMs >= SAMPLE_MS) {
      this.#samples.push({ atMs: nowMs, doneBytes });
      if (this.#samples.length > SAMPLES_MAX) this.#samples.shift();
    }
    if (nowMs - this.#startMs < QUIET_MS) return;
    if (this.#output.isErrorFancy) this.#redraw(nowMs);
    else this.#line(nowMs);
  }

  /** Takes the bar away. To be called however the work ends. */
  end(): void {
    if (this.#isDrawn) this.#output.terminal.printError("\r\x1b[K");
    this.#isDrawn = false;
  }

  #redraw(nowMs: number): void {
    if (nowMs - this.#shownMs < REDRAW_MS) return;
    this.#shownMs = nowMs;
    this.#isDrawn = true;
    this.#output.terminal.printError(`\r${this.#picture(nowMs)}\x1b[K`);
  }

  #picture(nowMs: number): string {
    const columns = this.#output.terminal.columns() - 1; // the last column may wrap
    const words = this.#words(nowMs).join("  ");
    const fraction = this.#fraction();
    const room = columns - this.#label.length - words.length - 2 * 2 - 2;
    if (fraction === null || room < BAR_COLUMNS_MIN) {
      return `${this.#label}  ${words}`.slice(0, columns);
    }
    const width = Math.min(room, BAR_COLUMNS_MAX);
    const full = Math.floor(fraction * width);
    return `${this.#label}  [${"#".repeat(full)}${"-".repeat(width - full)}]  ${words}`;
  }

  #line(nowMs: number): void {
    const fraction = this.#fraction();
    if (fraction === null) {
      if (nowMs - this.#shownMs < LINE_MS) return;
    } else {
      const percent = Math.floor(fraction * 100 / LINE_PERCENT) * LINE_PERCENT;
      if (percent <= this.#shownPercent) return;
      this.#shownPercent = percent;
    }
    this.#shownMs = nowMs;
    this.#output.say(`${this.#label}: ${this.#words(nowMs).join(", ")}`);
  }

  #fraction(): number | null {
    if (this.#totalBytes === null) return null;
    return this.#totalBytes === 0 ? 1 : Math.min(1, this.#doneBytes / this.#totalBytes);
  }

  #words(nowMs: number): string[] {
    const fraction = this.#fraction();
    const rate = this.#rate(nowMs);
    const unit = this.#unit;
    const amount = unit === undefined ? formatSize : String;
    const pace = unit === undefined ? formatRate(rate) : `${Number(rate.toFixed(1))} ${unit}/s`;
    if (fraction === null) return [amount(this.#doneBytes), pace];
    const totalBytes = this.#totalBytes!;
    const words = [
      `${Math.floor(fraction * 100)} %`,
      `${amount(this.#doneBytes)} of ${amount(totalBytes)}${unit === undefined ? "" : ` ${unit}`}`,
      pace,
    ];
    const leftBytes = totalBytes - this.#doneBytes;
    if (leftBytes > 0 && rate > 0) words.push(`${formatDuration(leftBytes / rate * 1000)} left`);
    return words;
  }

  /** Bytes per second of late. */
  #rate(nowMs: number): number {
    const { atMs, doneBytes } = this.#samples[0];
    // Right after the beginning nothing can be said.
    return nowMs > atMs ? (this.#doneBytes - doneBytes) / (nowMs - atMs) * 1000 : 0;
  }
}

/** What to say at the end: `3.1G in 6.2 s, 512M/s`. */
export function summary(bytes: number, elapsedMs: number): string {
  const rate = elapsedMs > 0 ? `, ${formatRate(bytes / elapsedMs * 1000)}` : "";
  return `${formatSize(bytes)} in ${formatDuration(elapsedMs)}${rate}`;
}
