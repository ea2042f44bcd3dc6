/**
 * What several stores tell about themselves, as one.
 *
 * @module
 */
import type { StoreStats } from "../store/stats.ts";

/**
 * Adds figures up. What is no sum: `full`, `hostFull` and `cleaning` hold when they hold of one path; state, segment
 * length and checkpoint are those of the first.
 *
 * @param all of the paths that work, one at least
 */
export function mergeStats(all: readonly StoreStats[]): StoreStats {
  const [first, ...others] = all;
  const sum: Record<string, unknown> = { ...first };
  for (const stats of others) {
    for (const [name, value] of Object.entries(stats)) {
      if (typeof value === "number") sum[name] = (sum[name] as number) + value;
      else if (typeof value === "boolean") sum[name] = sum[name] === true || value;
    }
  }
  const merged = sum as unknown as StoreStats;
  return {
    ...merged,
    segmentBytes: first.segmentBytes,
    failed: first.failed,
    damage: all.flatMap(({ damage }) => damage),
    layers: Math.max(...all.map(({ layers }) => layers)),
    deletingLayers: Math.max(...all.map(({ deletingLayers }) => deletingLayers)),
    writeAmplification: merged.userBlocks === 0 ? 0 : merged.logBlocks / merged.userBlocks,
  };
}
