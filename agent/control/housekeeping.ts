/**
 * What the leader does by itself about snapshots and deleted disks: a function of the map and of time, beside `leader.ts`.
 *
 *     trash that has expired            purge-disk
 *     a schedule's slot has begun       create-snapshots of its disk, named after the slot
 *     what a schedule does not need     delete-snapshot
 *     snapshots that do not get done    abort-snapshots
 *
 * Invariants:
 * - Two leaders that do the same at the same time do it once: names follow from slots, disks and layers have ids that are never used
 *   again, and what was begun together is known by its epoch. The map refuses the second one.
 * - A slot is tried again for as long as it lasts, and not oftener than every {@linkcode RETRY_MS}.
 * - What has expired goes only when it has been so for {@linkcode PURGE_AFTER_MS} by the clock that never goes back: a leader whose
 *   other clock is wrong when its host starts has that long to get it right.
 * - Nothing that came into the trash under this leader goes before it has been there for its time, by that clock as well: the host that
 *   was asked to delete it says when that was, and its other clock may be far behind.
 * - Only what a schedule itself has made is deleted, and nothing that is protected (`map/schedules.ts`).
 *
 * @module
 */

import {
  apply,
  type ClusterMap,
  type DiskEntry,
  type MapCommand,
  type Schedule,
  SNAPSHOTS_PER_DISK_MAX,
  takingOf,
} from "../map/map.ts";
import {
  dueSlot,
  expiredSnapshots,
  expiresWith,
  nextSlot,
  SCHEDULE_LATE_MS,
  scheduledName,
} from "../map/schedules.ts";

/** A snapshot that is being taken for so long, in milliseconds, is given up: whoever asked for it has given up long before. */
export const TAKING_MS_MAX = 30_000;
/** How long a disk in the trash must have been expired before it is ended, in milliseconds. */
export const PURGE_AFTER_MS = 60_000;
/** From one attempt of a schedule at a slot to the next, in milliseconds. */
const RETRY_MS = 10_000;
/** Commands of one look: others have to get their turn. */
const HOUSEKEEPING_COMMANDS_MAX = 32;

/** What there is to see. */
export interface HousekeepingSituation {
  readonly map: ClusterMap;
  /** A clock that never goes back. */
  readonly nowMs: number;
  /** Milliseconds since 1970. */
  readonly wallMs: number;
}

/** What a leader remembers of a slot. */
interface Attempt {
  readonly slotMs: number;
  readonly atMs: number;
  /** People have been told. */
  readonly isNoted: boolean;
}

/** See the head of the file. */
export class Housekeeping {
  /** Since when each set of snapshots is being taken, by its epoch. */
  readonly #taking = new Map<number, number>();
  /** Since when disks in the trash are seen as expired, by disk and the time when it expires. */
  readonly #expired = new Map<string, number>();
  /** Disks in the trash, by disk and the time when they expire, and when they came there; −∞: before this leader looked first. */
  readonly #trashed = new Map<string, number>();
  #hasLooked = false;
  /** By disk and schedule. */
  readonly #attempts = new Map<string, Attempt>();
  /** Disks with whose schedules nothing is to be done, and between which times, by the clock of {@linkcode HousekeepingSituation.wallMs}. */
  readonly #idle = new WeakMap<DiskEntry, { readonly fromMs: number; readonly untilMs: number }>();

  /** A new term: nothing is remembered. */
  reset(): void {
    this.#taking.clear();
    this.#expired.clear();
    this.#trashed.clear();
    this.#hasLooked = false;
    this.#attempts.clear();
  }

  /**
   * Says what is to be done now.
   *
   * @param commands get what is to be proposed
   * @param notes get lines for the log
   */
  look(situation: HousekeepingSituation, commands: MapCommand[], notes: string[]): void {
    const found: MapCommand[] = [];
    this.#lookAtTaking(situation, found, notes);
    this.#lookAtSchedules(situation, found, notes);
    this.#lookAtTrash(situation, found);
    commands.push(...found.slice(0, HOUSEKEEPING_COMMANDS_MAX));
  }

  /** Who waited for them has given up before, or died: then nobody else would. */
  #lookAtTaking(
    { map, nowMs }: HousekeepingSituation,
    commands: MapCommand[],
    notes: string[],
  ): void {
    const underWay = new Map<number, string>();
    for (const disk of map.disks) {
      const snapshot = takingOf(disk);
      if (snapshot === undefined || snapshot.isAborted) continue;
      underWay.set(snapshot.taking, `${disk.name}@${snapshot.name}`);
    }
    for (const taking of this.#taking.keys()) {
      if (!underWay.has(taking)) this.#taking.delete(taking);
    }
    for (const [taking, name] of underWay) {
      const sinceMs = this.#taking.get(taking);
      if (sinceMs === undefined) this.#taking.set(taking, nowMs);
      if (sinceMs === undefined || nowMs - sinceMs < TAKING_MS_MAX) continue;
      // Once; where the proposal gets lost it is noticed again.
      this.#taking.set(taking, nowMs);
      commands.push({ kind: "abort-snapshots", taking });
      notes.push(
        `snapshot ${name} is not complete after ${TAKING_MS_MAX / 1000} s: it is given up`,
      );
    }
  }

  #lookAtSchedules(
    { map, nowMs, wallMs }: HousekeepingSituation,
    commands: MapCommand[],
    notes: string[],
  ): void {
    const known = new Set<string>();
    for (const disk of map.disks) {
      if (disk.schedules.length === 0) continue;
      for (const schedule of disk.schedules) known.add(keyOf(disk, schedule));
      const idle = this.#idle.get(disk);
      if (idle !== undefined && wallMs >= idle.fromMs && wallMs < idle.untilMs) continue;
      let isIdle = true;
      for (const schedule of disk.schedules) {
        const slotMs = dueSlot(disk, schedule, wallMs);
        const expired = expiredSnapshots(disk, schedule, wallMs);
        isIdle &&= slotMs === null && expired.length === 0;
        for (const { name, layer } of expired) {
          commands.push({ kind: "delete-snapshot", disk: disk.name, name, layer });
        }
        if (slotMs === null) continue;
        const command = this.#take({ map, nowMs, wallMs }, { disk, schedule, slotMs }, notes);
        if (command !== null) commands.push(command);
      }
      if (isIdle) {
        const nextMs = disk.schedules.map((schedule) => nextSlot(schedule, wallMs));
        this.#idle.set(disk, { fromMs: wallMs, untilMs: Math.min(...nextMs) });
      }
      if (commands.length >= HOUSEKEEPING_COMMANDS_MAX) return;
    }
    for (const key of this.#attempts.keys()) if (!known.has(key)) this.#attempts.delete(key);
  }

  /** The command that takes the snapshot of a slot, or makes room for it; null: not now. */
  #take(
    { map, nowMs, wallMs }: HousekeepingSituation,
    { disk, schedule, slotMs }: {
      readonly disk: DiskEntry;
      readonly schedule: Schedule;
      readonly slotMs: number;
    },
    notes: string[],
  ): MapCommand | null {
    const key = keyOf(disk, schedule);
    const last = this.#attempts.get(key);
    const isSame = last?.slotMs === slotMs;
    if (isSame && nowMs - last.atMs < RETRY_MS) return null;
    const command: MapCommand = {
      kind: "create-snapshots",
      disks: [disk.id],
      name: scheduledName(schedule, slotMs),
      nowMs: wallMs,
    };
    // What the map would refuse is not worth an entry of the log. What is refused now may be possible in a moment.
    const tried = apply(map, command);
    if (!tried.ok && tried.error.code === "limit" && isFull(disk)) {
      const old = expiresWith(disk, schedule, slotMs, wallMs);
      // The slot's turn comes with the next look.
      if (old !== undefined) {
        return { kind: "delete-snapshot", disk: disk.name, name: old.name, layer: old.layer };
      }
    }
    const isNoted = isSame && last.isNoted;
    const isWorth = !tried.ok && !isNoted && wallMs - slotMs >= SCHEDULE_LATE_MS;
    if (isWorth) {
      notes.push(`schedule ${schedule.name} of disk ${disk.name}: ${tried.error.message}`);
    }
    this.#attempts.set(key, { slotMs, atMs: nowMs, isNoted: isNoted || isWorth });
    return tried.ok ? command : null;
  }

  #lookAtTrash({ map, nowMs, wallMs }: HousekeepingSituation, commands: MapCommand[]): void {
    const known = new Set<string>();
    const expired = new Set<string>();
    for (const { disk, deletedMs, expiresMs } of map.trash) {
      const key = `${disk.id} ${expiresMs}`;
      known.add(key);
      let trashedMs = this.#trashed.get(key);
      if (trashedMs === undefined) {
        trashedMs = this.#hasLooked ? nowMs : -Infinity;
        this.#trashed.set(key, trashedMs);
      }
      if (expiresMs > wallMs || nowMs - trashedMs < expiresMs - deletedMs) continue;
      expired.add(key);
      const sinceMs = this.#expired.get(key);
      if (sinceMs === undefined) this.#expired.set(key, nowMs);
      if (sinceMs === undefined || nowMs - sinceMs < PURGE_AFTER_MS) continue;
      commands.push({ kind: "purge-disk", id: disk.id, deletedMs });
    }
    this.#hasLooked = true;
    for (const key of this.#expired.keys()) if (!expired.has(key)) this.#expired.delete(key);
    for (const key of this.#trashed.keys()) if (!known.has(key)) this.#trashed.delete(key);
  }
}

/** Whether a disk has as many snapshots as it may have. */
function isFull({ snapshots }: DiskEntry): boolean {
  return snapshots.length >= SNAPSHOTS_PER_DISK_MAX;
}

function keyOf(disk: DiskEntry, schedule: Schedule): string {
  return `${disk.id} ${schedule.name}`;
}
