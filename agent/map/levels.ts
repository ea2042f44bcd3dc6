/**
 * Levels as the map has them: what the cluster speaks, who may take part, and what a command needs. See `base/levels.ts`.
 *
 * This is the one place to ask whether something new may be used. Invariants:
 *
 * - `level` never falls, and rises only by `raise-level`, only to what every node of the map speaks, up or down;
 * - a node is in the map, and starts, only with levels that hold the map's: {@linkcode levelError} is what it is told otherwise;
 * - a command of a higher level than the map's is neither proposed nor taken into the log: who does not know it would have to stop.
 *
 * @module
 */

import type { ControlError } from "./errors.ts";
import type { ClusterMap, MapCommand } from "./model.ts";

/**
 * Levels of commands (`"move-disk"`) and of fields that were added to them (`"create-disk.colour"`) that are above 1.
 * Everything that is added to `MapCommand` gets a line here.
 */
const LEVELS: Readonly<Record<string, number>> = {
  "create-snapshots": 2,
  "snapshot-taken": 2,
  "abort-snapshots": 2,
  "delete-snapshot": 2,
  "change-snapshot": 2,
  "clone-disk": 2,
  "rollback-disk": 2,
  "restore-disk": 2,
  "purge-disk": 2,
  "absorbed": 2,
  "flatten-disk": 2,
  "flattened": 2,
  "set-schedule": 2,
  "delete-schedule": 2,
  "set-copies": 2,
  "finish-copies": 2,
  "create-disk.detectZeroes": 2,
  "create-disk.zones": 2,
  "delete-disk.trashedMs": 2,
  "change-disk.limits": 2,
  "change-disk.detectZeroes": 2,
  "change-settings.trashMs": 2,
  "release-lease.unwritten": 2,
  "force-release-lease.unwritten": 2,
  "node-up.torn": 2,
  "set-availability.basedOnTargetsEpoch": 2,
  "set-weight.basedOnTargetsEpoch": 2,
  "set-zone.basedOnTargetsEpoch": 2,
};

/** Whether what belongs to a level may be sent, written and proposed. */
export function isOn(map: ClusterMap, level: number): boolean {
  return map.level >= level;
}

/** The level that a command belongs to. */
export function commandLevel(command: MapCommand): number {
  let level = LEVELS[command.kind] ?? 1;
  for (const [field, value] of Object.entries(command)) {
    if (value === undefined) continue;
    level = Math.max(level, LEVELS[`${command.kind}.${field}`] ?? 1);
  }
  return level;
}

/**
 * Why a command cannot be proposed yet, and what to do.
 *
 * @param map that speaks a lower level than the command's
 * @param command of a higher level than the map's
 * @returns an error with code `limit`, for people
 */
export function commandError(map: ClusterMap, command: MapCommand): ControlError {
  const level = commandLevel(command);
  const old = map.nodes.filter(({ protocol }) => protocol < level);
  const names = old.slice(0, 3).map(({ name, version }) => `${name} (${version})`).join(", ");
  const more = old.length > 3 ? ` and ${old.length - 3} more` : "";
  return {
    code: "limit",
    message: `${command.kind} needs level ${level}, and the cluster speaks ${map.level}` +
      (old.length === 0 ? "" : `: ${names}${more} cannot speak it`),
    hint: old.length === 0
      ? "every node can speak it: try again in a moment"
      : "upgrade every node first: 'kelpie cluster upgrade' shows what is to be done",
  };
}

/** The newest level that every node of the map speaks; that of the map where it has no nodes. */
export function commonLevel(map: ClusterMap): number {
  return map.nodes.length === 0
    ? map.level
    : Math.min(...map.nodes.map(({ protocol }) => protocol));
}

/** An agent among others. */
export interface Speaker {
  /** Of the program. */
  readonly version: string;
  /** Oldest and newest level that it speaks; 1 where the oldest is left out. */
  readonly protocolMin?: number;
  readonly protocol: number;
}

/**
 * Whether an agent may take part in a cluster.
 *
 * @param level that the cluster speaks
 * @param known versions of programs that speak it, as far as they are known
 * @returns null when it may, else why not and what to do, for people
 */
export function levelError(
  level: number,
  { version, protocolMin = 1, protocol }: Speaker,
  known: readonly string[] = [],
): ControlError | null {
  if (level >= protocolMin && level <= protocol) return null;
  const spoken = protocolMin === protocol ? `only ${protocol}` : `${protocolMin} to ${protocol}`;
  const message = `the cluster speaks level ${level}, and Kelpie ${version} speaks ${spoken}`;
  const versions = [...new Set(known)].join(" or ");
  if (level > protocol) {
    const one = versions === "" ? "the version that the other nodes have" : `version ${versions}`;
    return {
      code: "limit",
      message: `${message}: it is too old`,
      hint: `install ${one}, or a newer one; nothing was changed`,
    };
  }
  return {
    code: "limit",
    message: `${message}: it is too new`,
    hint: "upgrade step by step: every node to a version in between first" +
      (versions === "" ? "" : ` (from ${versions})`) + "; nothing was changed",
  };
}

/** The same as {@linkcode levelError} for a map, whose nodes tell which versions fit. */
export function levelErrorIn(map: ClusterMap, speaker: Speaker): ControlError | null {
  const fitting = map.nodes.filter((node) =>
    node.protocol >= map.level && node.protocolMin <= map.level
  );
  return levelError(map.level, speaker, fitting.map((node) => node.version).slice(0, 3));
}
