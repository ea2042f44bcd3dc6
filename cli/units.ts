/**
 * Rates, times and counts for people; sizes are `formatSize` of `agent/config.ts`.
 *
 * @module
 */

import { formatSize } from "../agent/config.ts";

export { formatDuration } from "../agent/duration.ts";

/** Bytes per second: `512M/s`. */
export function formatRate(bytesPerSecond: number): string {
  return `${formatSize(bytesPerSecond)}/s`;
}

/** A count in thousands, millions, …: `950`, `12.3k`. */
export function formatCount(count: number): string {
  if (count < 1000) return String(Math.round(count));
  if (count < 999_950) return `${oneDecimal(count / 1000)}k`;
  return `${oneDecimal(count / 1_000_000)}M`;
}

/** `1 disk`, `2 disks`; `many` where an s does not make it. */
export function plural(count: number, singular: string, many = `${singular}s`): string {
  return `${count} ${count === 1 ? singular : many}`;
}

function oneDecimal(value: number): string {
  return value.toFixed(1).replace(/\.0$/, "");
}
