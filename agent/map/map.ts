/**
 * The cluster map: what there is, agreed and durable. A pure state machine.
 *
 *     apply(map, command) ──► { map: the next map, effects: what must be done about it }
 *                        └──► an error; the map is as it was
 *
 *     model.ts       entries, commands, effects, bounds     disks.ts    disks, leases, settings
 *     queries.ts     questions to a map                     nodes.ts    nodes; founding, adopting
 *     invariants.ts  checkMap                               groups.ts   who holds which PG
 *     fields.ts      what single fields may be              proposals.ts  exactly once
 *     copies.ts      another number of copies, and other zones
 *     zones.ts       in which zones copies are kept
 *     levels.ts      what the cluster speaks                layers.ts   trees of layers
 *     size.ts        how large a map may become             snapshots.ts  snapshots, clones, trash
 *     growth.ts      copies that pools have had while nodes come
 *
 * The same map and the same command give the same result everywhere: time comes with the command,
 * identities are counted in the map. Whoever holds the map commits it durably first and carries the
 * effects out afterwards; a start-up with a map does what the effects would have done.
 *
 * Invariants, kept by {@linkcode apply} and checked again by the decoder ({@linkcode checkMap}):
 *
 * - `epoch` rises by one with every change that a command makes and never otherwise;
 * - disks are sorted by name (code units), nodes by id, pools by id; names and ids are unique;
 * - what `layers.ts` says of layers and `snapshots.ts` of snapshots; ids of disks, layers and nodes are never used twice;
 * - a map without nodes (nobody has founded a cluster, or it is a version 1 map that nobody has adopted)
 *   has no pools and no leases; every other map has the pool that each disk belongs to;
 * - what `groups.ts` says of PGs, and `levels.ts` of levels;
 * - maps are immutable: a change makes a new one that shares what stayed.
 *
 * @module
 */

import { withMoves } from "./copies.ts";
import { applyDiskCommand } from "./disks.ts";
import { type Result, success } from "./errors.ts";
import { applyGroupCommand } from "./groups.ts";
import { withReached } from "./growth.ts";
import type { Applied, ClusterMap, MapCommand } from "./model.ts";
import { applyNodeCommand } from "./nodes.ts";
import { withoutWords } from "./flatten.ts";
import { applySnapshotCommand } from "./snapshots.ts";

export { moveOf, type MoveProgress, percentOf, reasonAgainstFinish } from "./copies.ts";
export { checkSize, limitNumbers } from "./fields.ts";
export { checkMap } from "./invariants.ts";
export * from "./model.ts";
export { adopt, foundCluster, type Founder } from "./nodes.ts";
export { isCrowded, settlerOf } from "./groups.ts";
export * from "./levels.ts";
export * from "./queries.ts";
export { chainOf, disksOfLayers, findLayer } from "./layers.ts";
export {
  inZonesText,
  isInZones,
  maySplit,
  moveText,
  type Place,
  poolOfPlace,
  zonesText,
} from "./zones.ts";
export { clonePoint, flattenedLayer, flattenedLayers, sharedLayers } from "./flatten.ts";
export {
  type ChunkPlace,
  chunksOf,
  type GroupPlace,
  placer,
  type PlaceSummary,
  summarizePlaces,
} from "./places.ts";
export { growthOf, MAP_BYTES_FULL, mapFullError } from "./size.ts";
export { type Merge, merges, spaceOf, type SpaceOfMap, type SpaceUsage } from "./space.ts";
export { disorderOf, drainingLayer, findSnapshot, takingOf } from "./snapshots.ts";

/**
 * Applies one command to a map.
 *
 * @param map stays as it is
 * @param command from a user or a peer: every field is checked, their types are not (`readCommand`
 * does that for what comes as bytes)
 * @returns the next map and its effects, or an error with code `invalid`, `exists`, `missing`, `busy`,
 * `limit`, `stale` or `unavailable`
 *
 * @example
 * ```ts
 * import { apply, EMPTY_MAP } from "./map.ts";
 *
 * const result = apply(EMPTY_MAP, {
 *   kind: "create-disk",
 *   name: "web",
 *   sizeBytes: 20 * 1024 ** 3,
 *   nowMs: 0,
 * });
 * if (!result.ok) throw new Error(result.error.message);
 * if (result.value.map.epoch !== 1) throw new Error("a change raises the epoch");
 * ```
 */
export function apply(map: ClusterMap, command: MapCommand): Result<Applied> {
  const result = carryOut(map, command);
  if (!result.ok || result.value.map === map) return result;
  const { map: next, effects } = result.value;
  const checked = withReached(map, withoutWords(map, withMoves(map, next)));
  return checked === next ? result : success({ map: checked, effects });
}

function carryOut(map: ClusterMap, command: MapCommand): Result<Applied> {
  switch (command.kind) {
    case "create-disk":
    case "delete-disk":
    case "resize-disk":
    case "rename-disk":
    case "change-disk":
    case "take-lease":
    case "release-lease":
    case "force-release-lease":
    case "reconciled":
    case "set-copies":
    case "finish-copies":
    case "change-settings":
      return applyDiskCommand(map, command);
    case "create-snapshots":
    case "snapshot-taken":
    case "abort-snapshots":
    case "delete-snapshot":
    case "change-snapshot":
    case "clone-disk":
    case "rollback-disk":
    case "restore-disk":
    case "purge-disk":
    case "absorbed":
    case "flatten-disk":
    case "flattened":
    case "set-schedule":
    case "delete-schedule":
      return applySnapshotCommand(map, command);
    case "add-node":
    case "node-up":
    case "node-down":
    case "node-leave":
    case "drop-member":
    case "lose-groups":
    case "set-availability":
    case "set-weight":
    case "set-zone":
    case "remove-node":
    case "raise-level":
    case "set-voters":
      return applyNodeCommand(map, command);
    case "drop-unclean":
    case "unsettle":
    case "settled":
    case "set-targets":
    case "start-joining":
    case "in-sync":
    case "trim":
    case "split-groups":
      return applyGroupCommand(map, command);
  }
}
