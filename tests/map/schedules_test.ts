/**
 * Schedules: which slot is due, what is kept, what is late; against the runtime's own calendar, and against a naive account of what
 * is to be kept.
 *
 * @module
 */
import { assert, assertEquals } from "@std/assert/mod.js";
import { Prng } from "../../agent/base/prng.ts";
import type { Schedule, SnapshotEntry } from "../../agent/map/map.ts";
import {
  dueSlot,
  expiredSnapshots,
  lateSince,
  nextSlot,
  scheduledName,
  scheduledSnapshots,
  scheduleOf,
} from "../../agent/map/schedules.ts";

const HOUR_MS = 3_600_000, DAY_MS = 24 * HOUR_MS;

const HOURLY: Schedule = {
  name: "hourly",
  everyMs: HOUR_MS,
  keep: 24,
  keepDaily: 0,
  keepWeekly: 0,
  keepMonthly: 0,
  createdMs: 0,
};

let layers = 0;

function snapshot(name: string, part: Partial<SnapshotEntry> = {}): SnapshotEntry {
  return {
    name,
    layer: ++layers,
    sizeBytes: 512,
    createdMs: Number.MAX_SAFE_INTEGER,
    isProtected: false,
    taking: 0,
    isDrained: true,
    isAborted: false,
    ...part,
  };
}

/** The snapshot that a schedule takes in a slot. */
function taken(slotMs: number, schedule = HOURLY, part: Partial<SnapshotEntry> = {}) {
  return snapshot(scheduledName(schedule, slotMs), { createdMs: slotMs, ...part });
}

Deno.test("names and slots are those of the calendar, over four hundred years", () => {
  const random = new Prng(1);
  const times = [0, Date.UTC(1970, 1, 28), Date.UTC(2000, 1, 29, 23, 59, 59), Date.UTC(2100, 2, 1)];
  for (let at = 0; at < 20_000; at++) {
    times.push(Math.floor(random.u32() / 2 ** 32 * 400 * 365.25 * 86_400) * 1000);
  }
  for (const ms of times) {
    const expected = new Date(ms).toISOString().replaceAll(/[-:]|\.\d+/g, "");
    const name = scheduledName(HOURLY, ms);
    assertEquals(name, `hourly-${expected}`);
    const [found] = scheduledSnapshots({ snapshots: [snapshot(name)] }, HOURLY);
    assertEquals(found.slotMs, ms);
  }
});

Deno.test("only what a schedule can have taken is its own", () => {
  const names = [
    "hourly",
    "hourly-",
    "hourly-x",
    "hourly-20260101T000000",
    "hourly-20260230T000000Z", // no such day
    "hourly-20261301T000000Z",
    "hourly-20260001T000000Z",
    "hourly-20260101T240000Z",
    "hourly-20260101T006000Z",
    "hourly-20260101T000000Z-2",
    "xhourly-20260101T000000Z",
    "Hourly-20260101T000000Z",
    "daily-20260101T000000Z",
    "hourly-20260101T000000z",
  ];
  const snapshots = names.map((name) => snapshot(name));
  assertEquals(scheduledSnapshots({ snapshots }, HOURLY), []);
  const ms = Date.UTC(2026, 0, 1);
  // Taken by hand before the time that its name says; given up.
  const others = [taken(ms, HOURLY, { createdMs: ms - 1 }), taken(ms, HOURLY, { isAborted: true })];
  assertEquals(scheduledSnapshots({ snapshots: others }, HOURLY), []);
  const own = taken(ms);
  assertEquals(scheduleOf({ schedules: [{ ...HOURLY, name: "a" }, HOURLY] }, own), HOURLY);
  assertEquals(scheduleOf({ schedules: [HOURLY] }, snapshot("monday")), undefined);
});

Deno.test("a slot is due from its beginning until its snapshot, or a later one, is there", () => {
  const slotMs = Date.UTC(2026, 0, 2, 3);
  const none = { snapshots: [] };
  const schedule = { ...HOURLY, createdMs: slotMs - 10 };
  assertEquals(dueSlot(none, schedule, slotMs - 1), null); // made since the slot before began
  assertEquals(dueSlot(none, schedule, slotMs), slotMs);
  assertEquals(dueSlot(none, schedule, slotMs + HOUR_MS - 1), slotMs);
  assertEquals(dueSlot(none, schedule, slotMs + 5 * HOUR_MS), slotMs + 5 * HOUR_MS);
  assertEquals(dueSlot({ snapshots: [taken(slotMs)] }, schedule, slotMs + 1), null);
  assertEquals(
    dueSlot({ snapshots: [taken(slotMs, HOURLY, { taking: 9 })] }, schedule, slotMs),
    null,
  );
  assertEquals(
    dueSlot({ snapshots: [taken(slotMs)] }, schedule, slotMs + HOUR_MS),
    slotMs + HOUR_MS,
  );
  assertEquals(nextSlot(schedule, slotMs), slotMs + HOUR_MS);
  assertEquals(nextSlot(schedule, slotMs - 1), slotMs);
  // A clock that was ahead does not stop a schedule until then; one that goes back takes nothing twice.
  const ahead = { snapshots: [taken(slotMs + 1000 * DAY_MS), taken(slotMs)] };
  assertEquals(dueSlot(ahead, schedule, slotMs + HOUR_MS), slotMs + HOUR_MS);
  assertEquals(dueSlot(ahead, schedule, slotMs + 1), null);
  // Periods that are no whole seconds have names that are.
  const odd = { ...HOURLY, everyMs: 60_001 };
  const at = Math.floor(slotMs / 60_001) * 60_001;
  assertEquals(dueSlot({ snapshots: [taken(at, odd)] }, odd, slotMs), null);
});

Deno.test("a schedule is late a period and a minute after its last snapshot, or since it was made", () => {
  const slotMs = Date.UTC(2026, 0, 2, 3);
  const limitMs = HOUR_MS + 60_000;
  const schedule = { ...HOURLY, createdMs: slotMs - 5 };
  assertEquals(lateSince({ snapshots: [] }, schedule, slotMs - 5 + limitMs), null);
  assertEquals(lateSince({ snapshots: [] }, schedule, slotMs - 4 + limitMs), slotMs - 5);
  const one = { snapshots: [taken(slotMs)] };
  assertEquals(lateSince(one, schedule, slotMs + limitMs), null);
  assertEquals(lateSince(one, schedule, slotMs + limitMs + 1), slotMs);
  // What is not complete does not count, nor does what a clock that was ahead has taken.
  const more = [taken(slotMs + HOUR_MS, HOURLY, { taking: 4 }), taken(slotMs + 999 * DAY_MS)];
  const two = { snapshots: [taken(slotMs), ...more] };
  assertEquals(lateSince(two, schedule, slotMs + limitMs + 1), slotMs);
});

Deno.test("the newest are kept, and of those before the newest of days, weeks and months", () => {
  // Every 6 hours for 100 days from a Thursday on.
  const every = { ...HOURLY, everyMs: 6 * HOUR_MS };
  const first = Date.UTC(2026, 0, 1);
  const all = Array.from({ length: 400 }, (_, at) => taken(first + at * every.everyMs, every));
  const kept = (part: Partial<Schedule>) => {
    const schedule = { ...every, ...part };
    const gone = new Set(expiredSnapshots({ snapshots: all }, schedule));
    return all.filter((each) => !gone.has(each)).map(({ createdMs }) =>
      new Date(createdMs).toISOString().slice(0, 13)
    );
  };
  assertEquals(kept({ keep: 2 }), ["2026-04-10T12", "2026-04-10T18"]);
  assertEquals(kept({ keep: 2, keepDaily: 3 }), [
    "2026-04-08T18",
    "2026-04-09T18",
    "2026-04-10T06", // the newest of its day of those that are older than the two
    "2026-04-10T12",
    "2026-04-10T18",
  ]);
  assertEquals(kept({ keep: 1, keepWeekly: 3 }), [
    "2026-03-29T18", // Sundays
    "2026-04-05T18",
    "2026-04-10T12",
    "2026-04-10T18",
  ]);
  assertEquals(kept({ keep: 1, keepMonthly: 12 }), [
    "2026-01-31T18",
    "2026-02-28T18",
    "2026-03-31T18",
    "2026-04-10T12",
    "2026-04-10T18",
  ]);
});

/** Which of these are to be kept, said as plainly as it can be. */
function naiveKept(slots: readonly number[], schedule: Schedule): Set<number> {
  const newestFirst = slots.toSorted((a, b) => b - a);
  const kept = new Set(newestFirst.slice(0, schedule.keep));
  const older = newestFirst.slice(schedule.keep);
  const monday = (ms: number) => {
    const date = new Date(ms);
    const days = (date.getUTCDay() + 6) % 7;
    return new Date(ms - days * DAY_MS).toISOString().slice(0, 10);
  };
  const rules: [number, (ms: number) => string][] = [
    [schedule.keepDaily, (ms) => new Date(ms).toISOString().slice(0, 10)],
    [schedule.keepWeekly, monday],
    [schedule.keepMonthly, (ms) => new Date(ms).toISOString().slice(0, 7)],
  ];
  for (const [count, periodOf] of rules) {
    const periods = [...new Set(older.map(periodOf))].slice(0, count);
    for (const period of periods) kept.add(older.find((ms) => periodOf(ms) === period)!);
  }
  return kept;
}

Deno.test("whatever is there, what is kept is as the naive account says, and deleting goes no further", () => {
  for (let seed = 1; seed <= 300; seed++) {
    const random = new Prng(seed);
    const below = (limit: number) => random.u32() % limit;
    const schedule: Schedule = {
      ...HOURLY,
      everyMs: [HOUR_MS, 7 * HOUR_MS, DAY_MS, 60_000][below(4)],
      keep: 1 + below(5),
      keepDaily: below(4),
      keepWeekly: below(4),
      keepMonthly: below(4),
    };
    const start = Math.floor(Date.UTC(2026, below(12), 1 + below(28)) / schedule.everyMs);
    const slots = [...new Set(Array.from({ length: below(120) }, () => start + below(1500)))]
      .map((slot) => slot * schedule.everyMs);
    const snapshots = slots.map((ms) => taken(ms, schedule, { isProtected: below(10) === 0 }));
    const others = [
      snapshot("monday"),
      snapshot("hourly"),
      taken(slots[0] ?? 0, { ...HOURLY, name: "x" }),
    ];
    const isGone = new Set(expiredSnapshots({ snapshots: [...others, ...snapshots] }, schedule));
    const expected = naiveKept(slots, schedule);
    for (const each of snapshots) {
      const isKept = expected.has(each.createdMs) || each.isProtected;
      assertEquals(isGone.has(each), !isKept, `seed ${seed}: ${each.name}`);
    }
    for (const each of others) assert(!isGone.has(each), `seed ${seed}: ${each.name}`);
    // What is left needs no more to be done, but for what protected ones let through.
    const left = snapshots.filter((each) => !isGone.has(each));
    if (left.every((each) => !each.isProtected)) {
      assertEquals(expiredSnapshots({ snapshots: left }, schedule).length, 0, `seed ${seed}`);
    }
  }
});

Deno.test("deleting after every snapshot leaves what deleting once at the end leaves", () => {
  for (let seed = 1; seed <= 40; seed++) {
    const random = new Prng(seed);
    const below = (limit: number) => random.u32() % limit;
    const schedule: Schedule = {
      ...HOURLY,
      everyMs: [5 * HOUR_MS, 11 * HOUR_MS][below(2)],
      keep: 1 + below(4),
      keepDaily: below(5),
      keepWeekly: below(4),
      keepMonthly: below(4),
    };
    const start = Math.floor(Date.UTC(2026, below(12), 1) / schedule.everyMs);
    const all: SnapshotEntry[] = [];
    let kept: SnapshotEntry[] = [];
    for (let slot = start; slot < start + 250; slot += 1 + below(3)) {
      const next = taken(slot * schedule.everyMs, schedule);
      all.push(next);
      kept.push(next);
      const gone = new Set(expiredSnapshots({ snapshots: kept }, schedule));
      assert(!gone.has(next), "the newest one is needed");
      kept = kept.filter((each) => !gone.has(each));
    }
    const gone = new Set(expiredSnapshots({ snapshots: all }, schedule));
    const names = (list: readonly SnapshotEntry[]) => list.map(({ name }) => name);
    assertEquals(names(kept), names(all.filter((each) => !gone.has(each))), `seed ${seed}`);
  }
});
