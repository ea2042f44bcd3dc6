/**
 * What a disk may be called, and the sockets that its name stands for.
 *
 *     RUN_DIR/agent.sock      the agent's HTTP API
 *     RUN_DIR/NAME.sock       the disk, read-write: starting its rings takes the lease
 *     RUN_DIR/ro/NAME.sock    the disk, read-only: takes no lease
 *     RUN_DIR/NAME@SNAP.sock  a snapshot of it, read-only
 *
 * Invariant: no name that passes {@linkcode checkDiskName} can leave the run directory, hide its
 * socket, or collide with the agent's own socket. Neither part of a snapshot's name has an `@`, so `disk@snap` has one.
 *
 * @module
 */

import type { ControlError } from "./errors.ts";

/** Longest disk name, in bytes and characters: one DNS label, and short enough for a socket path. */
export const DISK_NAME_LENGTH_MAX = 63;

/**
 * Longest path of a Unix socket, in bytes, without its final zero: `sun_path` of unix(7) holds 108.
 */
export const SOCKET_PATH_BYTES_MAX = 107;

/** Names that the run directory uses itself: `agent.sock`. */
const NAMES_RESERVED: readonly string[] = ["agent"];

/** Endings that would make `NAME.sock` look like something else, or like a half-made file. */
const ENDINGS_REFUSED: readonly string[] = [".sock", ".lock", ".tmp", "."];

/** The characters of a name; also the `pattern` of the API's schema. */
export const DISK_NAME_PATTERN = "^[a-zA-Z0-9][a-zA-Z0-9._-]*$";

const NAME = new RegExp(DISK_NAME_PATTERN);

/**
 * Says what is wrong with a disk's name.
 *
 * @param name any string, from anywhere
 * @returns null when the name may be used, else an error with code `invalid`
 *
 * @example
 * ```ts
 * import { checkDiskName } from "./names.ts";
 *
 * if (checkDiskName("web-01") !== null) throw new Error("web-01 is a good name");
 * if (checkDiskName("../etc") === null) throw new Error("../etc is not");
 * ```
 */
export function checkDiskName(name: string): ControlError | null {
  const reason = reasonAgainst(name);
  if (reason === null) return null;
  return {
    code: "invalid",
    message: `${quoted(name)} cannot be the name of a disk: ${reason}`,
    hint: `use 1 to ${DISK_NAME_LENGTH_MAX} letters, digits, '.', '_' or '-', ` +
      "beginning with a letter or digit",
  };
}

/**
 * Says what is wrong with a snapshot's name: the part behind the `@`, of the same form as a disk's name.
 *
 * @param name any string, from anywhere
 * @returns null when the name may be used, else an error with code `invalid`
 */
export function checkSnapshotName(name: string): ControlError | null {
  const reason = name.toLowerCase() === "agent" ? null : reasonAgainst(name);
  if (reason === null) return null;
  return {
    code: "invalid",
    message: `${quoted(name)} cannot be the name of a snapshot: ${reason}`,
    hint: `use 1 to ${DISK_NAME_LENGTH_MAX} letters, digits, '.', '_' or '-', ` +
      "beginning with a letter or digit",
  };
}

function reasonAgainst(name: string): string | null {
  if (name.length === 0) return "it is empty";
  if (name.length > DISK_NAME_LENGTH_MAX) {
    return `it has ${name.length} characters, and ${DISK_NAME_LENGTH_MAX} is the most`;
  }
  if (!NAME.test(name)) return "it has a character that is not allowed";
  const lower = name.toLowerCase();
  if (NAMES_RESERVED.includes(lower)) return "Kelpie uses that name itself";
  const ending = ENDINGS_REFUSED.find((each) => lower.endsWith(each));
  return ending === undefined ? null : `it ends in '${ending}'`;
}

/** A name as it is safe to print: control characters escaped, cut where it gets long. */
function quoted(name: string): string {
  const cut = name.length > 80 ? `${name.slice(0, 80)}…` : name;
  return JSON.stringify(cut);
}

/** The sockets of a disk. */
export interface DiskSockets {
  /** Read-write: starting its rings takes the disk's lease. */
  readonly readWrite: string;
  /** Read-only, beside a guest: takes no lease. */
  readonly readOnly: string;
}

/**
 * Where a disk's sockets are.
 *
 * @param runDir the agent's run directory, without a slash at its end
 * @param name a name that passed {@linkcode checkDiskName}
 */
export function diskSockets(runDir: string, name: string): DiskSockets {
  return { readWrite: `${runDir}/${name}.sock`, readOnly: `${runDir}/ro/${name}.sock` };
}

/**
 * Where a snapshot's socket is.
 *
 * @param runDir the agent's run directory, without a slash at its end
 * @param disk name of its disk
 * @param snapshot a name that passed {@linkcode checkSnapshotName}
 */
export function snapshotSocket(runDir: string, disk: string, snapshot: string): string {
  return `${runDir}/${disk}@${snapshot}.sock`;
}

/**
 * Where a snapshot's socket is, if it has one: disk and snapshot may have names that are fine each, and too long for a path together.
 *
 * @returns null where the path would be too long for a socket
 */
export function snapshotSocketOf(runDir: string, disk: string, snapshot: string): string | null {
  const path = snapshotSocket(runDir, disk, snapshot);
  return new TextEncoder().encode(path).length <= SOCKET_PATH_BYTES_MAX ? path : null;
}

/**
 * Where the agent's HTTP API listens.
 *
 * @param runDir the agent's run directory, without a slash at its end
 */
export function agentSocket(runDir: string): string {
  return `${runDir}/agent.sock`;
}

/**
 * Says whether a disk's sockets fit into a socket address.
 *
 * @param runDir the agent's run directory
 * @param name a name that passed {@linkcode checkDiskName}
 * @returns null when they do, else an error with code `invalid` that says by how much they do not
 */
export function checkSocketPaths(runDir: string, name: string): ControlError | null {
  const path = diskSockets(runDir, name).readOnly;
  const excess = new TextEncoder().encode(path).length - SOCKET_PATH_BYTES_MAX;
  if (excess <= 0) return null;
  return {
    code: "invalid",
    message: `the socket path ${path} is ${excess} bytes longer than the ` +
      `${SOCKET_PATH_BYTES_MAX} that Linux allows`,
    hint: "choose a shorter name, or a shorter --run-dir for the agent",
  };
}
