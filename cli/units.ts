/**
 * Rates, times and counts for people; sizes are `formatSize` of `agent/config.ts`.
 *
 * @module
 */

import { formatSize } from "../agent/config.ts";

/** Bytes per second: `512M/s`. */
export function formatRate(bytesPerSecond: number): string {
  return `${formatSize(bytesPerSecond)}/s`;
}

/** A length of time: `35 ms`, `0.4 s`, `12 s`, `3 min 20 s`, `2 h 5 min`, `3 d 4 h`. */
export function formatDuration(milliseconds: number): string {
  if (milliseconds < 100) return `${Math.round(milliseconds)} ms`;
  const seconds = milliseconds / 1000;
  if (seconds < 9.95) return `${oneDecimal(seconds)} s`;
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return pair(whole, 60, "min", "s");
  // A minute is neither here nor there from now on.
  const minutes = Math.round(whole / 60);
  if (minutes < 24 * 60) return pair(minutes, 60, "h", "min");
  return pair(Math.round(minutes / 60), 24, "d", "h");
}

function pair(value: number, divisor: number, unit: string, unitOfRest: string): string {
  const rest = value % divisor;
  return `${Math.floor(value / divisor)} ${unit}${rest > 0 ? ` ${rest} ${unitOfRest}` : ""}`;
}

/** A count in thousands, millions, …: `950`, `12.3k`. */
export function formatCount(count: number): string {
  if (count < 1000) return String(Math.round(count));
  if (count < 999_950) return `${oneDecimal(count / 1000)}k`;
  return `${oneDecimal(count / 1_000_000)}M`;
}

/** `1 disk`, `2 disks`. */
export function plural(count: number, singular: string): string {
  return `${count} ${singular}${count === 1 ? "" : "s"}`;
}

function oneDecimal(value: number): string {
  return value.toFixed(1).replace(/\.0$/, "");
}
