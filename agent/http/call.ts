/**
 * What handlers of the admin API are given, and the small things that all of them share.
 *
 * @module
 */

import { ControlFailure } from "../map/errors.ts";
import {
  type ClusterMap,
  type DiskEntry,
  diskMissing,
  findDisk,
  findSnapshot,
  type MapCommand,
  type SnapshotEntry,
} from "../map/map.ts";
import { checkSocketPaths } from "../map/names.ts";
import type { ControlBackend } from "./backend.ts";

/** One request on its way to its handler; everything in it has been checked for shape. */
export interface Call {
  readonly backend: ControlBackend;
  /** The name of the disk or node from the path, or "". */
  readonly name: string;
  /** The second name in the path, that of a snapshot or a schedule, or "". */
  readonly part: string;
  readonly query: URLSearchParams;
  /** Has the shape of the route's `body`. */
  readonly body: unknown;
  /** How long the data plane may take to say how it is, in milliseconds. */
  readonly statusTimeoutMs: number;
  /** How long snapshots may take to be complete, in milliseconds. */
  readonly snapshotTimeoutMs: number;
  /** The server closes. */
  readonly closing: AbortSignal;
  /** Whoever asked has hung up; also set when the answer has been sent. */
  readonly gone: AbortSignal;
}

/** One operation of the API. */
export interface Route {
  readonly method: "GET" | "POST" | "PUT" | "PATCH" | "DELETE";
  /**
   * As in the OpenAPI document. One segment each: `{name}` (a disk), `{node}` (a node's name or id), `{deleted}` (the name or id of a
   * disk in the trash), and behind a disk `{snapshot}` or `{schedule}`.
   */
  readonly path: string;
  /** Name of the body's schema; without it, no body may come. */
  readonly body?: string;
  /** Longest body, in bytes, where it is not the usual one. */
  readonly bodyBytesMax?: number;
  /** Query parameters, each `0` or `1`. */
  readonly query?: readonly string[];
  /** Runs for as long as somebody reads: bounded apart. */
  readonly streams?: boolean;
  readonly handle: (call: Call) => Response | Promise<Response>;
}

/** Refuses a name whose sockets would not fit where the agent has them. */
export function checkSockets(backend: ControlBackend, name: string): void {
  const error = checkSocketPaths(backend.info().runDir, name);
  if (error !== null) throw new ControlFailure(error);
}

/** The disk with a name, or a refusal. */
export function requireDisk(map: ClusterMap, name: string): DiskEntry {
  const disk = findDisk(map, name);
  if (disk === undefined) throw new ControlFailure(diskMissing(name));
  return disk;
}

/** The snapshot of a disk that has a name. */
export function requireSnapshot(disk: DiskEntry, name: string): SnapshotEntry {
  const snapshot = findSnapshot(disk, name);
  if (snapshot !== undefined) return snapshot;
  throw new ControlFailure({
    code: "missing",
    message: `disk ${disk.name} has no snapshot named ${JSON.stringify(name)}`,
    hint: `'kelpie disk snapshot list ${disk.name}' shows those that it has`,
  });
}

/** A snapshot of a disk that is complete, or a refusal. */
export function readableSnapshot(disk: DiskEntry, name: string): SnapshotEntry {
  const snapshot = requireSnapshot(disk, name);
  if (snapshot.taking === 0) return snapshot;
  throw new ControlFailure({
    code: "busy",
    message: `snapshot ${disk.name}@${name} is being taken`,
    hint: "try again in a moment",
  });
}

/** A time limit that several questions share. */
export class Deadline {
  readonly #signal: AbortSignal;
  readonly #timeoutMs: number;

  constructor(timeoutMs: number) {
    this.#timeoutMs = timeoutMs;
    this.#signal = AbortSignal.timeout(timeoutMs);
  }

  /** The answer, or a rejection with `unavailable` when it does not come in time. */
  race<T>(answer: Promise<T>): Promise<T> {
    return unlessAborted(answer, this.#signal, () =>
      new ControlFailure({
        code: "unavailable",
        message: `the data plane did not answer within ${this.#timeoutMs / 1000} seconds`,
        hint: "look at the agent's log",
      }));
  }
}

/**
 * The answer, or a rejection when a signal comes first. Of an answer that has come the signal, which may live for long, keeps nothing.
 *
 * @param failure makes what it is rejected with
 */
export function unlessAborted<T>(
  answer: Promise<T>,
  signal: AbortSignal,
  failure: () => ControlFailure,
): Promise<T> {
  const { promise, resolve, reject } = Promise.withResolvers<T>();
  const abort = () => reject(failure());
  if (signal.aborted) abort();
  else signal.addEventListener("abort", abort, { once: true });
  answer.then(resolve, reject).finally(() => signal.removeEventListener("abort", abort));
  return promise;
}

/** Changes the map for as long as whoever asked waits for it: see {@linkcode ControlBackend.propose}. */
export function propose({ backend, gone }: Call, command: MapCommand): Promise<ClusterMap> {
  return backend.propose(command, gone);
}

/** An answer with a document. */
export function json(status: number, document: unknown): Response {
  return new Response(`${JSON.stringify(document)}\n`, {
    status,
    headers: { "content-type": "application/json" },
  });
}
