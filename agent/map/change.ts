/**
 * How a command ends: with the same map, with the next one, or with an error. Shared by the files that
 * carry commands out.
 *
 * @module
 */

import { failure, type Result, success } from "./errors.ts";
import type { Applied, ClusterMap, MapEffect } from "./model.ts";

/** The command changed nothing: the very same map. */
export function unchanged(map: ClusterMap): Result<Applied> {
  return success({ map, effects: [] });
}

/**
 * The command changed something: the next epoch.
 *
 * @param map the map before
 * @param fields what is other now
 * @param effects what has to be done about it
 */
export function changed(
  map: ClusterMap,
  fields: Partial<Omit<ClusterMap, "epoch">>,
  effects: readonly MapEffect[] = [],
): Result<Applied> {
  return success({ map: { ...map, ...fields, epoch: map.epoch + 1 }, effects });
}

/** The command was based on what has changed meanwhile. */
export function stale(message: string): Result<Applied> {
  return failure("stale", message);
}
