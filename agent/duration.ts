/**
 * Lengths of time as people write and read them. Pure.
 *
 * @module
 */

import { failure, type Result, success } from "./map/errors.ts";

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

const UNITS_MS: Readonly<Record<string, number>> = {
  ms: 1,
  s: 1000,
  m: 60_000,
  min: 60_000,
  h: 3_600_000,
  d: 86_400_000,
};

/**
 * Reads a length of time.
 *
 * @param text a number and a unit: `90s`, `10m`, `10 min`, `1.5h`, `2d`
 * @returns whole milliseconds, or an error with code `invalid`
 *
 * @example
 * ```ts
 * import { parseDuration } from "./duration.ts";
 *
 * const result = parseDuration("10m");
 * if (!result.ok || result.value !== 600_000) throw new Error("ten minutes");
 * ```
 */
export function parseDuration(text: string): Result<number> {
  const match = /^(\d+(?:\.\d+)?)\s*([a-z]+)$/.exec(text.trim().toLowerCase());
  const unit = match === null ? undefined : UNITS_MS[match[2]];
  const milliseconds = match === null || unit === undefined ? NaN : Number(match[1]) * unit;
  if (Number.isSafeInteger(Math.round(milliseconds))) return success(Math.round(milliseconds));
  return failure(
    "invalid",
    `${JSON.stringify(text.slice(0, 80))} is no length of time`,
    "write 90s, 10m, 1.5h or 2d",
  );
}

function oneDecimal(value: number): string {
  return value.toFixed(1).replace(/\.0$/, "");
}
