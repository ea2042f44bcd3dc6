/**
 * Schedules where a clock was ahead once: snapshots of slots that have yet to come.
 *
 * @module
 */
import { assertEquals } from "@std/assert/mod.js";
import type { SnapshotEntry } from "../../agent/map/map.ts";
import { dueSlot, expiredSnapshots, lateSince, scheduledName } from "../../agent/map/schedules.ts";

const HOUR = 3_600_000;

/** Every hour, and only the newest is kept. */
function hourly(createdMs: number) {
  return {
    name: "hourly",
    everyMs: HOUR,
    keep: 1,
    keepDaily: 0,
    keepWeekly: 0,
    keepMonthly: 0,
    createdMs,
  };
}

Deno.test("a schedule that keeps one has the newest, also beside one of a slot that is yet to come", () => {
  const schedule = hourly(0);
  const taken = (slotMs: number, layer: number): SnapshotEntry => ({
    name: scheduledName(schedule, slotMs),
    layer,
    sizeBytes: 512,
    createdMs: slotMs,
    isProtected: false,
    taking: 0,
    isDrained: true,
    isAborted: false,
  });
  const nowMs = 1000 * HOUR;
  const ahead = { snapshots: [taken(5000 * HOUR, 1)] };
  assertEquals(dueSlot(ahead, schedule, nowMs), nowMs);
  const now = { snapshots: [...ahead.snapshots, taken(nowMs, 2)] };
  assertEquals(expiredSnapshots(now, schedule, nowMs + 1), []);
});

Deno.test("a schedule that was made by a clock that was ahead does not wait until then, nor does it say nothing", () => {
  const nowMs = 1000 * HOUR + 7;
  const schedule = hourly(nowMs + 3 * HOUR);
  const none = { snapshots: [] };
  assertEquals(dueSlot(none, schedule, nowMs), 1000 * HOUR);
  assertEquals(lateSince(none, schedule, nowMs) !== null, true);
  // By what clocks of two hosts differ nothing is taken in a slot that had begun before.
  const soon = { ...schedule, createdMs: nowMs + 500 };
  assertEquals(dueSlot(none, soon, nowMs), null);
  assertEquals(lateSince(none, soon, nowMs), null);
});
