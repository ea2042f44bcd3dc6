/**
 * Schedules: which snapshot is due, which are not needed any more, and whether one is late. Pure functions of a disk and a time.
 *
 *     every 1 h      … 02:00 ── 03:00 ── 04:00 …        slots: multiples of `everyMs` since 1970
 *     hourly         hourly-20260102T030000Z            taken in, and named after, the slot that began at 03:00 UTC
 *
 *     newest ◀──────────────────────────────────────────────────────── oldest
 *     | keep: all of them | of those that are older, the newest one of each of so many days, weeks, months |
 *
 * Invariants:
 * - A slot's name follows from the slot: two leaders that take it at the same time ask for the same name, and the map refuses the
 *   second one.
 * - What a schedule made is known by its name; a snapshot that was renamed is its user's from then on, and stays.
 * - Deleting what is not needed now and again later leaves the same as deleting it only at the end: what is the newest of its day in
 *   the end was the newest that there was when it became old, and was never in the way before.
 * - What was taken under a clock that was ahead, in a slot that has yet to come, is no reason to wait until then; nor is that the
 *   schedule was made under one.
 * - The newest one is always needed, and so is one that is protected or not complete.
 *
 * Weeks begin on Mondays. Days are counted as in H. Hinnant's "chrono-compatible low-level date algorithms": the runtime's own
 * calendar is not for pure parts.
 *
 * @module
 */

import type { DiskEntry, Schedule, SnapshotEntry } from "./model.ts";

const SECOND_MS = 1000;
const DAY_MS = 24 * 3600 * SECOND_MS;

/** A schedule is late when its snapshot is missing for so much longer than a period. */
export const SCHEDULE_LATE_MS = 60_000;

/** A snapshot that a schedule made, and the beginning of the slot that it is of, in milliseconds since 1970, whole seconds. */
export interface ScheduledSnapshot {
  readonly snapshot: SnapshotEntry;
  readonly slotMs: number;
}

/**
 * Name of the snapshot of a slot.
 *
 * @param slotMs milliseconds since 1970
 *
 * @example
 * ```ts
 * import { scheduledName } from "./schedules.ts";
 *
 * const name = scheduledName({ name: "hourly" }, 1_767_322_800_000);
 * if (name !== "hourly-20260102T030000Z") throw new Error(name);
 * ```
 */
export function scheduledName({ name }: Pick<Schedule, "name">, slotMs: number): string {
  return `${name}-${stampOf(slotMs)}`;
}

/** What a schedule has made of those that are there, the newest slot first; also those that are being taken. */
export function scheduledSnapshots(
  disk: Pick<DiskEntry, "snapshots">,
  schedule: Pick<Schedule, "name">,
): ScheduledSnapshot[] {
  const found: ScheduledSnapshot[] = [];
  for (const snapshot of disk.snapshots) {
    if (snapshot.isAborted || !snapshot.name.startsWith(`${schedule.name}-`)) continue;
    const slotMs = stampMs(snapshot.name.slice(schedule.name.length + 1));
    // Nothing is taken before its slot: whoever gave it that name, it was no schedule.
    if (slotMs === null || snapshot.createdMs < slotMs) continue;
    found.push({ snapshot, slotMs });
  }
  return found.sort((a, b) => b.slotMs - a.slotMs);
}

/** The schedule of a disk that made one of its snapshots, or undefined. */
export function scheduleOf(
  disk: Pick<DiskEntry, "schedules">,
  snapshot: SnapshotEntry,
): Schedule | undefined {
  return disk.schedules.find((schedule) =>
    scheduledSnapshots({ snapshots: [snapshot] }, schedule).length > 0
  );
}

/**
 * The slot whose snapshot is to be taken now.
 *
 * @returns its beginning in milliseconds since 1970; null: it is there (or one of a later slot is), or the schedule was made since
 */
export function dueSlot(
  disk: Pick<DiskEntry, "snapshots">,
  schedule: Schedule,
  nowMs: number,
): number | null {
  const slotMs = Math.floor(nowMs / schedule.everyMs) * schedule.everyMs;
  if (slotMs < madeMs(schedule, nowMs)) return null;
  const newest = scheduledSnapshots(disk, schedule).find((each) => each.slotMs <= nowMs);
  return newest !== undefined && newest.slotMs >= wholeSeconds(slotMs) ? null : slotMs;
}

/**
 * When a schedule was made. Where that is more than a period ahead, it was by a clock that was: it is no reason to wait until then.
 * Less is what clocks of two hosts may differ by.
 */
function madeMs({ createdMs, everyMs }: Schedule, nowMs: number): number {
  return createdMs - nowMs > everyMs ? 0 : createdMs;
}

/** When the next slot begins after a time. */
export function nextSlot({ everyMs }: Schedule, nowMs: number): number {
  return (Math.floor(nowMs / everyMs) + 1) * everyMs;
}

/**
 * Since when a schedule has no snapshot that it should have, if that is for longer than a period and {@linkcode SCHEDULE_LATE_MS}.
 *
 * @returns beginning of the slot of its newest complete snapshot, or when it was made; null: it is not late
 */
export function lateSince(
  disk: Pick<DiskEntry, "snapshots">,
  schedule: Schedule,
  nowMs: number,
): number | null {
  const last = scheduledSnapshots(disk, schedule)
    .find((each) => each.snapshot.taking === 0 && each.slotMs <= nowMs);
  const sinceMs = Math.max(madeMs(schedule, nowMs), last?.slotMs ?? 0);
  return nowMs - sinceMs > schedule.everyMs + SCHEDULE_LATE_MS ? sinceMs : null;
}

/**
 * What a schedule has made and does not need any more, oldest first. What is of a slot that has yet to come is not looked at: it takes
 * nobody's place.
 */
export function expiredSnapshots(
  disk: Pick<DiskEntry, "snapshots">,
  schedule: Schedule,
  nowMs = Infinity,
): SnapshotEntry[] {
  const all = scheduledSnapshots(disk, schedule)
    .filter(({ snapshot, slotMs }) => snapshot.taking === 0 && slotMs <= nowMs);
  const older = all.slice(schedule.keep);
  const kept = new Set<ScheduledSnapshot>([
    ...newestOfEach(older, schedule.keepDaily, dayOf),
    ...newestOfEach(older, schedule.keepWeekly, weekOf),
    ...newestOfEach(older, schedule.keepMonthly, monthOf),
  ]);
  return older.filter((each) => !kept.has(each) && !each.snapshot.isProtected)
    .map(({ snapshot }) => snapshot).reverse();
}

/**
 * What a schedule will not need any more as soon as it has the snapshot of a slot, the oldest of it: where a disk has as many snapshots as
 * may be, that has to go first.
 *
 * @returns undefined: all that it has made will be needed
 */
export function expiresWith(
  disk: Pick<DiskEntry, "snapshots">,
  schedule: Schedule,
  slotMs: number,
  nowMs: number,
): SnapshotEntry | undefined {
  const next: SnapshotEntry = {
    name: scheduledName(schedule, slotMs),
    layer: 0,
    sizeBytes: 0,
    createdMs: nowMs,
    isProtected: false,
    taking: 0,
    isDrained: true,
    isAborted: false,
  };
  return expiredSnapshots({ snapshots: [...disk.snapshots, next] }, schedule, nowMs).at(0);
}

/** Of the newest so many periods that have any, the newest of each. */
function newestOfEach(
  newestFirst: readonly ScheduledSnapshot[],
  periods: number,
  periodOf: (slotMs: number) => number,
): ScheduledSnapshot[] {
  const found = new Map<number, ScheduledSnapshot>();
  for (const each of newestFirst) {
    const period = periodOf(each.slotMs);
    if (found.has(period)) continue;
    if (found.size >= periods) break;
    found.set(period, each);
  }
  return [...found.values()];
}

// ---------------------------------------------------------------------------------------- calendar

function dayOf(ms: number): number {
  return Math.floor(ms / DAY_MS);
}

/** 1970 began on a Thursday: three days after a Monday. */
function weekOf(ms: number): number {
  return Math.floor((dayOf(ms) + 3) / 7);
}

function monthOf(ms: number): number {
  const { year, month } = civilOf(dayOf(ms));
  return year * 12 + month - 1;
}

function wholeSeconds(ms: number): number {
  return Math.floor(ms / SECOND_MS) * SECOND_MS;
}

interface Civil {
  readonly year: number;
  /** 1…12. */
  readonly month: number;
  /** 1…31. */
  readonly day: number;
}

/** Days of 400 years. */
const ERA_DAYS = 146_097;
/** Days from 0000-03-01 to 1970-01-01. */
const EPOCH_DAYS = 719_468;

/** @param days since 1970-01-01 */
function civilOf(days: number): Civil {
  const shifted = days + EPOCH_DAYS;
  const era = Math.floor(shifted / ERA_DAYS);
  const dayOfEra = shifted - era * ERA_DAYS;
  const yearOfEra = Math.floor(
    (dayOfEra - Math.floor(dayOfEra / 1460) + Math.floor(dayOfEra / 36_524) -
      Math.floor(dayOfEra / 146_096)) / 365,
  );
  const dayOfYear = dayOfEra -
    (365 * yearOfEra + Math.floor(yearOfEra / 4) - Math.floor(yearOfEra / 100));
  // Years begin in March here, so that leap days come last.
  const marchMonth = Math.floor((5 * dayOfYear + 2) / 153);
  const month = marchMonth < 10 ? marchMonth + 3 : marchMonth - 9;
  return {
    year: yearOfEra + era * 400 + (month <= 2 ? 1 : 0),
    month,
    day: dayOfYear - Math.floor((153 * marchMonth + 2) / 5) + 1,
  };
}

function daysOf({ year, month, day }: Civil): number {
  const shifted = month <= 2 ? year - 1 : year;
  const era = Math.floor(shifted / 400);
  const yearOfEra = shifted - era * 400;
  const marchMonth = month > 2 ? month - 3 : month + 9;
  const dayOfYear = Math.floor((153 * marchMonth + 2) / 5) + day - 1;
  const dayOfEra = yearOfEra * 365 + Math.floor(yearOfEra / 4) - Math.floor(yearOfEra / 100) +
    dayOfYear;
  return era * ERA_DAYS + dayOfEra - EPOCH_DAYS;
}

/** `20260102T030405Z`. */
function stampOf(ms: number): string {
  const { year, month, day } = civilOf(dayOf(ms));
  const seconds = Math.floor(ms / SECOND_MS) - dayOf(ms) * (DAY_MS / SECOND_MS);
  const [hour, minute, second] = [seconds / 3600, seconds / 60 % 60, seconds % 60].map(Math.floor);
  const two = (value: number) => String(value).padStart(2, "0");
  return `${String(year).padStart(4, "0")}${two(month)}${two(day)}` +
    `T${two(hour)}${two(minute)}${two(second)}Z`;
}

const STAMP = /^(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d)Z$/;

/** Milliseconds since 1970 of a stamp; null where it is none, or there is no such time. */
function stampMs(text: string): number | null {
  const match = STAMP.exec(text);
  if (match === null) return null;
  const [year, month, day, hour, minute, second] = match.slice(1).map(Number);
  if (month < 1 || month > 12) return null;
  const days = daysOf({ year, month, day });
  const ms = days * DAY_MS + ((hour * 60 + minute) * 60 + second) * SECOND_MS;
  return stampOf(ms) === text ? ms : null;
}
