/**
 * Taking snapshots so that it either happens or does not, whatever the holders of the disks do meanwhile.
 *
 *     begin ─┬─ refused ────────────────────────────────────────▶ nothing was changed: the map's reason
 *            ├─ one of the disks has another being taken ── wait ─▶ begin again
 *            └─ begun ─┬─ complete ──────────────────────────────▶ they are there
 *                      └─ late, or nobody waits any more
 *                           └─▶ abort-snapshots ─┬─ done ────────▶ none of them is there
 *                                                └─ too late ────▶ they are there, or somebody else gave them up
 *
 * Invariants:
 * - All of it, waiting for others included, ends within the call's time and one more change of the map.
 * - It says that snapshots are there only when they are complete, and that none is there only when that is decided. Where neither can be
 *   found out it says so; the leader gives up what stays incomplete.
 *
 * @module
 */

import { type ControlError, ControlFailure } from "../map/errors.ts";
import {
  type ClusterMap,
  type DiskEntry,
  disorderOf,
  findNode,
  type SnapshotEntry,
  takingOf,
} from "../map/map.ts";
import type { ControlBackend } from "./backend.ts";
import { type Call, propose } from "./call.ts";

/** A snapshot that is complete. */
export interface Taken {
  readonly disk: DiskEntry;
  readonly snapshot: SnapshotEntry;
}

/** What is to be taken: one snapshot of each disk, all of the same name. */
export interface Wanted {
  /** Ids of disks. */
  readonly disks: readonly number[];
  readonly name: string;
}

/**
 * Takes snapshots of several disks at one point in time.
 *
 * @returns the snapshots, complete, in the order of the disks
 * @throws {ControlFailure} that says why there is none, and of which disk and node it was
 */
export async function takeSnapshots(call: Call, wanted: Wanted): Promise<readonly Taken[]> {
  const { backend } = call;
  const late = AbortSignal.timeout(call.snapshotTimeoutMs);
  const end = AbortSignal.any([late, call.closing, call.gone]);
  const begun = await begin(call, wanted, end);
  const isDone = (map: ClusterMap) => findTaken(map, wanted, begun) !== "waiting";
  await waitForMap(backend, isDone, end).catch(() => {});
  const found = findTaken(backend.map(), wanted, begun);
  if (found === "gone") throw new ControlFailure(givenUp(wanted));
  const taken = found !== "waiting"
    ? found
    : await giveUp(call, wanted, { begun, isLate: late.aborted });
  // Whoever hears of them may open their sockets.
  await backend.inForce();
  return taken;
}

/** Snapshots that were begun together: the layer of each, in the order of the disks, and the epoch that they are known by. */
interface Begun {
  readonly layers: readonly number[];
  /** 0: they were complete at once. */
  readonly taking: number;
}

async function begin(
  call: Call,
  { disks, name }: Wanted,
  end: AbortSignal,
): Promise<Begun> {
  const { backend, snapshotTimeoutMs } = call;
  // Where nobody is left who could end it there is nothing to wait for, and the map says what to do.
  const isWanted = new Set(disks);
  const busy = (map: ClusterMap) =>
    map.disks.find((disk) =>
      isWanted.has(disk.id) && takingOf(disk) !== undefined && disorderOf(map, disk) === null
    );
  while (true) {
    try {
      await waitForMap(backend, (map) => busy(map) === undefined, end);
    } catch {
      throw new ControlFailure(stillBusy(backend.map(), busy(backend.map()), snapshotTimeoutMs));
    }
    try {
      const map = await propose(call, {
        kind: "create-snapshots",
        disks,
        name,
        nowMs: Date.now(),
      });
      return begunIn(map, { disks, name });
    } catch (error) {
      const isBusy = error instanceof ControlFailure && error.error.code === "busy";
      // Somebody else was faster; else it is another reason, that does not go away by itself.
      if (!isBusy || busy(backend.map()) === undefined) throw error;
    }
  }
}

function begunIn(map: ClusterMap, { disks, name }: Wanted): Begun {
  const byId = disksById(map);
  const snapshots = disks.map((id) => {
    const disk = byId.get(id);
    return disk?.snapshots.find((snapshot) => snapshot.name === name && !snapshot.isAborted);
  });
  const layers = snapshots.map((snapshot) => snapshot?.layer ?? 0);
  return { layers, taking: snapshots.find((each) => each !== undefined)?.taking ?? 0 };
}

/** There may be thousands, and a change of the map for each of them. */
function disksById({ disks }: ClusterMap): Map<number, DiskEntry> {
  return new Map(disks.map((disk) => [disk.id, disk]));
}

/** What has become of what was begun. Snapshots are known by their layers: somebody may rename them. */
function findTaken(
  map: ClusterMap,
  { disks }: Wanted,
  { layers }: Begun,
): readonly Taken[] | "waiting" | "gone" {
  const taken: Taken[] = [];
  const byId = disksById(map);
  for (let at = 0; at < disks.length; at++) {
    const disk = byId.get(disks[at]);
    const snapshot = disk?.snapshots.find(({ layer }) => layer === layers[at]);
    if (disk === undefined || snapshot === undefined || snapshot.isAborted) return "gone";
    if (snapshot.taking !== 0) return "waiting";
    taken.push({ disk, snapshot });
  }
  return taken;
}

/** Decides that there shall be none, unless it is decided already that there are. */
async function giveUp(
  { backend, snapshotTimeoutMs }: Call,
  wanted: Wanted,
  { begun, isLate }: { readonly begun: Begun; readonly isLate: boolean },
): Promise<readonly Taken[]> {
  const reason = notReady(backend.map(), wanted, { begun, isLate, timeoutMs: snapshotTimeoutMs });
  try {
    await backend.propose({ kind: "abort-snapshots", taking: begun.taking });
  } catch (error) {
    if (!(error instanceof ControlFailure)) throw error;
    const found = findTaken(backend.map(), wanted, begun);
    if (found === "gone") throw new ControlFailure(givenUp(wanted));
    if (found !== "waiting") return found;
    throw new ControlFailure({
      code: error.error.code,
      message: `${reason}, and it could not be given up: ${error.error.message}`,
      hint:
        "'kelpie disk snapshot list' shows what becomes of it; what stays incomplete is given up " +
        "after half a minute",
    });
  }
  throw new ControlFailure({
    code: "unavailable",
    message: `${reason}: no snapshot was taken`,
    hint: "'kelpie status' says how that node is; try again",
  });
}

/** Disks that one message names. */
const NAMED_MAX = 10;

/** Which disk was not ready, and on which node. */
function notReady(
  map: ClusterMap,
  { disks }: Wanted,
  { begun, isLate, timeoutMs }: {
    readonly begun: Begun;
    readonly isLate: boolean;
    readonly timeoutMs: number;
  },
): string {
  const layers = new Map(disks.map((id, at) => [id, begun.layers[at]]));
  const waiting = map.disks.filter((disk) => {
    const own = layers.get(disk.id);
    const snapshot = disk.snapshots.find(({ layer }) => layer === own);
    return snapshot !== undefined && snapshot.taking !== 0 && !snapshot.isDrained;
  });
  const shown = waiting.slice(0, NAMED_MAX);
  const rest = waiting.length - shown.length;
  const named = shown.map((disk) => `disk ${disk.name} ${placeOf(map, disk)}`).join(", ") +
    (rest > 0 ? ` and ${rest} more` : "");
  const what = named === "" ? "the snapshot was not ready" : `${named} was not ready`;
  return isLate
    ? `${what} within ${timeoutMs / 1000} seconds`
    : `${what} when nobody waited for it any more`;
}

/** Where a disk is open: who has to finish what it had begun. */
function placeOf(map: ClusterMap, { lease }: DiskEntry): string {
  if (lease === null) return "(which was not closed in good order)";
  return `on node ${findNode(map, lease.node)?.name ?? lease.node}`;
}

function stillBusy(
  map: ClusterMap,
  disk: DiskEntry | undefined,
  timeoutMs: number,
): ControlError {
  if (disk === undefined) {
    return { code: "unavailable", message: "nobody waited for the snapshot: none was taken" };
  }
  return {
    code: "busy",
    message: `another snapshot of disk ${disk.name} ${placeOf(map, disk)} is being taken for ` +
      `more than ${timeoutMs / 1000} seconds: no snapshot was taken`,
    hint: "'kelpie status' says what it waits for; try again",
  };
}

function givenUp({ name }: Wanted): ControlError {
  return {
    code: "stale",
    message: `snapshot ${name} was given up, or deleted, by somebody else meanwhile`,
    hint: "try again",
  };
}

/**
 * Waits until a map is as wanted.
 *
 * @param isDone asked of the map now and of each one that follows
 * @param signal ends the waiting: rejects with its reason
 */
export async function waitForMap(
  backend: Pick<ControlBackend, "map" | "nextMap">,
  isDone: (map: ClusterMap) => boolean,
  signal: AbortSignal,
): Promise<void> {
  const { promise: aborted, reject } = Promise.withResolvers<never>();
  const abort = () => reject(signal.reason);
  aborted.catch(() => {}); // nobody may be waiting
  signal.addEventListener("abort", abort, { once: true });
  try {
    while (!isDone(backend.map())) {
      signal.throwIfAborted();
      await Promise.race([backend.nextMap(), aborted]);
    }
  } finally {
    signal.removeEventListener("abort", abort);
  }
}
