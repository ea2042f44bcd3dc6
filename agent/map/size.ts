/**
 * How large a map may become. What is committed is carried out by all nodes alike, however large that makes the map; one that
 * cannot be encoded is never compacted, and the log fills up until nothing is taken any more. So whoever proposes looks first.
 *
 * Invariant: what takes something away, and what keeps disks served (leases, nodes, groups), is never refused for this: the last
 * eighth of {@linkcode MAP_BYTES_MAX} is kept for that.
 *
 * @module
 */

import type { ControlError } from "./errors.ts";
import { type Attributes, type ClusterMap, MAP_BYTES_MAX, type MapCommand } from "./model.ts";
import { findDisk } from "./queries.ts";

/** Bytes of an encoded map above which nothing is proposed that makes it larger. */
export const MAP_BYTES_FULL = MAP_BYTES_MAX / 8 * 7;

/** What a disk takes at the most beside its attributes, with its layer. */
const DISK_BYTES = 512;
/** What a snapshot takes at the most beside its name, with its layer; and a schedule. */
const SNAPSHOT_BYTES = 64;
const SCHEDULE_BYTES = 128;

/**
 * How much larger a command that people, or schedules, ask for makes a map.
 *
 * @param map before it
 * @returns bytes, rather too many; 0: it is none of those, or makes the map no larger
 */
export function growthOf(map: ClusterMap, command: MapCommand): number {
  switch (command.kind) {
    case "create-disk":
      return DISK_BYTES + lengthOf(command.attributes);
    case "clone-disk":
    case "rollback-disk": {
      const given = command.kind === "clone-disk" ? command.attributes : undefined;
      return DISK_BYTES + lengthOf(given ?? findDisk(map, command.disk)?.attributes);
    }
    case "set-copies":
      return DISK_BYTES;
    case "create-snapshots":
      return command.disks.length * (SNAPSHOT_BYTES + command.name.length);
    case "set-schedule":
      return SCHEDULE_BYTES;
    case "change-disk": {
      if (command.attributes === undefined) return 0;
      const before = findDisk(map, command.name)?.attributes;
      return Math.max(0, lengthOf(command.attributes) - lengthOf(before));
    }
    default:
      return 0;
  }
}

/** Bytes of attributes, about as they are encoded. */
function lengthOf(attributes: Attributes = {}): number {
  return new TextEncoder().encode(JSON.stringify(attributes)).length;
}

/**
 * Why nothing is taken that makes a map larger, and what to do.
 *
 * @param bytes of the map as it is encoded
 */
export function mapFullError(bytes: number): ControlError {
  return {
    code: "limit",
    message: `the cluster map has ${Math.round(bytes / 1024)} KiB, and ${MAP_BYTES_MAX / 1024} ` +
      "KiB is the most: nothing is taken that makes it larger",
    hint: "delete disks, snapshots and what is in the trash, or shorten attributes of disks",
  };
}
