/**
 * What the leader does by itself about snapshots and deleted disks, with the real map behind it.
 *
 * @module
 */
import { assert, assertEquals, assertMatch } from "@std/assert/mod.js";
import { Housekeeping, PURGE_AFTER_MS, TAKING_MS_MAX } from "../../agent/control/housekeeping.ts";
import { unwrap } from "../../agent/map/errors.ts";
import {
  apply,
  type ClusterMap,
  type DiskEntry,
  type MapCommand,
  SNAPSHOTS_PER_DISK_MAX,
} from "../../agent/map/map.ts";
import { scheduledName } from "../../agent/map/schedules.ts";
import { clusterWithDisk, runAll } from "../map/cluster.ts";

const HOUR_MS = 3_600_000;
/** The beginning of an hour. */
const START_MS = Date.UTC(2026, 0, 2, 3);

/** A leader that looks, and a map that takes what it proposes. */
class Fixture {
  leader = new Housekeeping();
  map: ClusterMap;
  nowMs = 5000;
  wallMs = START_MS - 1;
  readonly notes: string[] = [];

  /** A disk "web" with id 1. */
  constructor(...commands: MapCommand[]) {
    this.map = runAll({ ...clusterWithDisk(2, 1), level: 2 }, ...commands);
  }

  do(...commands: MapCommand[]): void {
    this.map = runAll(this.map, ...commands);
  }

  pass(ms: number): void {
    this.nowMs += ms;
    this.wallMs += ms;
  }

  /** What is proposed now; nothing of it is carried out. */
  look(): MapCommand[] {
    const commands: MapCommand[] = [];
    this.leader.look(this, commands, this.notes);
    return commands;
  }

  /** Looks, and carries out what is proposed. */
  work(): MapCommand[] {
    const commands = this.look();
    for (const command of commands) this.map = unwrap(apply(this.map, command)).map;
    return commands;
  }

  get disk(): DiskEntry {
    return this.map.disks[0];
  }

  names(): string[] {
    return this.disk.snapshots.map(({ name }) => name);
  }
}

const schedule = (part: Partial<Extract<MapCommand, { kind: "set-schedule" }>> = {}) =>
  ({
    kind: "set-schedule",
    disk: "web",
    name: "hourly",
    everyMs: HOUR_MS,
    keep: 3,
    keepDaily: 0,
    keepWeekly: 0,
    keepMonthly: 0,
    nowMs: START_MS - 10 * HOUR_MS,
    ...part,
  }) as const;

const OPEN: MapCommand = { kind: "take-lease", id: 1, node: 1, incarnation: 1 };

Deno.test("a schedule takes a snapshot in each slot, and deletes what it does not need", () => {
  const at = new Fixture(schedule());
  at.wallMs = START_MS;
  for (let hour = 0; hour < 6; hour++) {
    at.work();
    assertEquals(at.disk.snapshots.at(-1)!.createdMs, at.wallMs);
    for (let minute = 0; minute < 60; minute++) {
      at.pass(60_000);
      if (minute < 59) at.work();
    }
  }
  assertEquals(at.names(), [
    "hourly-20260102T060000Z",
    "hourly-20260102T070000Z",
    "hourly-20260102T080000Z",
  ]);
  assertEquals(at.notes, []);
});

Deno.test("a schedule begins with the first slot after it was made, and makes up for a late one", () => {
  const at = new Fixture(schedule({ nowMs: START_MS - 100 }));
  assertEquals(at.look(), []);
  at.pass(1);
  assertEquals(at.look().length, 1);
  // Nobody led for two and a half hours.
  const late = new Fixture(schedule({ nowMs: START_MS - 100 }));
  late.pass(2.5 * HOUR_MS);
  late.work();
  assertEquals(late.names(), ["hourly-20260102T050000Z"]);
  assertEquals(late.disk.snapshots[0].createdMs, late.wallMs);
});

Deno.test("a schedule that keeps as many as a disk may have goes on, whatever else the disk has", () => {
  for (const others of [0, 3]) {
    const keep = SNAPSHOTS_PER_DISK_MAX - others;
    const at = new Fixture(schedule({ keep, everyMs: 60_000 }));
    for (let i = 0; i < others; i++) {
      at.do({ kind: "create-snapshots", disks: [1], name: `mine-${i}`, nowMs: 1 });
    }
    at.wallMs = START_MS;
    // As many as may be: one in each minute.
    const first = START_MS - (keep - 1) * 60_000;
    for (let slot = first; slot <= START_MS; slot += 60_000) {
      const name = scheduledName({ name: "hourly" }, slot);
      at.do({ kind: "create-snapshots", disks: [1], name, nowMs: slot });
    }
    assertEquals(at.names().length, SNAPSHOTS_PER_DISK_MAX);
    assertEquals(at.look(), []);
    at.pass(60_000);
    for (let looks = 0; looks < 4; looks++) at.work();
    assertEquals(at.names().length, SNAPSHOTS_PER_DISK_MAX);
    assertEquals(at.names().at(-1), scheduledName({ name: "hourly" }, START_MS + 60_000));
    const oldest = scheduledName({ name: "hourly" }, first + 60_000);
    assertEquals(at.names().filter((name) => name.startsWith("hourly-"))[0], oldest);
  }
  // What is not to go stays, and people are told.
  const at = new Fixture(schedule());
  for (let i = 0; i < SNAPSHOTS_PER_DISK_MAX; i++) {
    at.do({ kind: "create-snapshots", disks: [1], name: `mine-${i}`, nowMs: 1 });
  }
  at.wallMs = START_MS;
  assertEquals(at.look(), []);
});

Deno.test("two leaders that look at the same map take one snapshot", () => {
  const at = new Fixture(schedule());
  at.pass(1);
  const other = new Housekeeping();
  const second: MapCommand[] = [];
  other.look(at, second, []);
  at.work();
  assertEquals(second.length, 1);
  const refused = apply(at.map, second[0]);
  assertEquals(refused.ok ? "taken twice" : refused.error.code, "exists");
  // The same of what is deleted, given up and purged.
  at.do(schedule({ keep: 1 }), { kind: "create-snapshots", disks: [1], name: "x", nowMs: 1 });
  at.pass(HOUR_MS);
  at.work();
  const deletion = at.look().find(({ kind }) => kind === "delete-snapshot")!;
  at.do(deletion);
  const again = apply(at.map, deletion);
  assertEquals(again.ok ? "deleted twice" : again.error.code, "missing");
});

Deno.test("protected and renamed snapshots, and those of others, are not deleted", () => {
  const at = new Fixture(schedule({ keep: 1 }));
  at.do({ kind: "create-snapshots", disks: [1], name: "mine", nowMs: 1 });
  for (let hour = 0; hour < 5; hour++) {
    at.pass(hour === 0 ? 1 : HOUR_MS);
    at.work();
    const { name } = at.disk.snapshots.at(-1)!;
    if (hour === 0) at.do({ kind: "change-snapshot", disk: "web", name, isProtected: true });
    if (hour === 1) at.do({ kind: "change-snapshot", disk: "web", name, newName: "kept" });
    at.work();
  }
  assertEquals(at.names(), [
    "mine",
    "hourly-20260102T030000Z",
    "kept",
    "hourly-20260102T070000Z",
  ]);
});

Deno.test("an attempt that does not succeed is repeated now and then, and people are told once", () => {
  // Its last holder has died: replicas may differ.
  const at = new Fixture(schedule(), OPEN, {
    kind: "force-release-lease",
    id: 1,
    generation: 1,
  });
  at.pass(1);
  for (let second = 0; second < 300; second++) {
    assertEquals(at.look(), []);
    at.pass(1000);
  }
  assertEquals(at.notes.length, 1);
  assertMatch(at.notes[0], /^schedule hourly of disk web: .* not closed in good order/);
  at.do({ ...OPEN, generation: 1 }, { kind: "reconciled", id: 1, generation: 2 }, {
    kind: "release-lease",
    id: 1,
    node: 1,
    generation: 2,
  });
  at.pass(10_000);
  at.work();
  assertEquals(at.names(), ["hourly-20260102T030000Z"]);
  // A proposal that gets lost is made again, and not at every look.
  const lost = new Fixture(schedule());
  lost.pass(1);
  assertEquals([lost.look().length, lost.look().length], [1, 0]);
  lost.pass(10_000);
  assertEquals(lost.look().length, 1);
});

Deno.test("snapshots that do not get complete are given up after half a minute, together", () => {
  const at = new Fixture(OPEN, {
    kind: "create-disk",
    name: "xdb",
    sizeBytes: 512,
    copies: 1,
    nowMs: 1,
  });
  const { id } = at.map.disks.find(({ name }) => name === "xdb")!;
  at.do({ kind: "create-snapshots", disks: [1, id], name: "monday", nowMs: at.wallMs });
  at.look();
  at.pass(TAKING_MS_MAX - 1);
  assertEquals(at.look(), []);
  at.pass(1);
  const { taking } = at.disk.snapshots[0];
  assertEquals(at.work(), [{ kind: "abort-snapshots", taking }]);
  assertMatch(at.notes[0], /monday is not complete after 30 s: it is given up/);
  assertEquals(at.map.disks.map(({ snapshots }) => snapshots.some((each) => !each.isAborted)), [
    false,
    false,
  ]);
  // What was given up is waited for, and nobody gives it up again.
  at.pass(10 * TAKING_MS_MAX);
  assertEquals(at.work(), []);
  // One that is complete in time is left alone.
  const fast = new Fixture(OPEN);
  fast.do({ kind: "create-snapshots", disks: [1], name: "monday", nowMs: 1 });
  fast.look();
  fast.pass(TAKING_MS_MAX - 1);
  const [{ layer }] = fast.disk.snapshots;
  fast.do({ kind: "snapshot-taken", id: 1, layer, generation: 1 });
  fast.pass(TAKING_MS_MAX);
  assertEquals(fast.look(), []);
});

Deno.test("a new leader counts anew how long a snapshot takes", () => {
  const at = new Fixture(OPEN);
  at.do({ kind: "create-snapshots", disks: [1], name: "monday", nowMs: 1 });
  at.look();
  at.pass(TAKING_MS_MAX - 1);
  at.leader.reset();
  at.look();
  at.pass(1);
  assertEquals(at.look(), []);
});

Deno.test("what has expired is ended, but not by a clock that is wrong for a moment", () => {
  const at = new Fixture({ kind: "delete-disk", name: "web", trashedMs: START_MS });
  const { expiresMs } = at.map.trash[0];
  at.wallMs = expiresMs - 1;
  at.look();
  at.pass(10 * PURGE_AFTER_MS);
  at.wallMs = expiresMs - 1;
  assertEquals(at.look(), []);
  // For a moment it is next year.
  at.wallMs = expiresMs + 365 * 24 * HOUR_MS;
  assertEquals(at.look(), []);
  at.pass(PURGE_AFTER_MS - 1);
  assertEquals(at.look(), []);
  at.wallMs = expiresMs - 1;
  assertEquals(at.look(), []);
  at.pass(1);
  assertEquals(at.look(), []);
  at.pass(PURGE_AFTER_MS - 1);
  assertEquals(at.look(), []);
  at.pass(1);
  const [{ deletedMs }] = at.map.trash;
  assertEquals(at.work(), [{ kind: "purge-disk", id: 1, deletedMs }]);
  assertEquals(at.map.trash, []);
  assertEquals(at.look(), []);
});

Deno.test("a disk that a host with a clock far behind has deleted is in the trash for its time all the same", () => {
  const at = new Fixture();
  at.look();
  at.do({ kind: "delete-disk", name: "web", trashedMs: Date.UTC(2010, 0) });
  const [{ deletedMs, expiresMs }] = at.map.trash;
  at.look();
  for (let passedMs = 0; passedMs < expiresMs - deletedMs; passedMs += HOUR_MS) {
    assertEquals(at.look(), []);
    at.pass(HOUR_MS);
  }
  at.look();
  at.pass(PURGE_AFTER_MS);
  assertEquals(at.look(), [{ kind: "purge-disk", id: 1, deletedMs }]);
  // What was there before goes by what the map says: a leader that has changed knows no better.
  at.leader.reset();
  assertEquals(at.look(), []);
  at.pass(PURGE_AFTER_MS);
  assertEquals(at.look(), [{ kind: "purge-disk", id: 1, deletedMs }]);
});

Deno.test("a disk that was had back and deleted again has its time anew", () => {
  const at = new Fixture({ kind: "delete-disk", name: "web", trashedMs: START_MS });
  at.wallMs = at.map.trash[0].expiresMs;
  at.look();
  at.pass(PURGE_AFTER_MS);
  at.do(
    { kind: "restore-disk", id: 1, name: "web" },
    { kind: "delete-disk", name: "web", trashedMs: at.wallMs },
  );
  assertEquals(at.look(), []);
  // Also where that time is over before anybody looks.
  const short = new Fixture({ kind: "change-settings", trashMs: 1 });
  const deleted = () => ({ kind: "delete-disk", name: "web", trashedMs: short.wallMs }) as const;
  short.do(deleted());
  short.pass(1);
  short.look();
  short.pass(PURGE_AFTER_MS);
  short.do({ kind: "restore-disk", id: 1, name: "web" }, deleted());
  short.pass(1);
  assertEquals(short.look(), []);
});

Deno.test("one look does not propose more than others have to wait for, and all of it gets done", () => {
  const at = new Fixture(schedule({ everyMs: 60_000, keep: 200 }));
  at.pass(1);
  for (let minute = 0; minute < 150; minute++) {
    at.work();
    at.pass(60_000);
  }
  at.do(schedule({ everyMs: 60_000, keep: 2 }));
  let looks = 0;
  for (let commands = at.work(); commands.length > 0; commands = at.work()) {
    assert(commands.length <= 32);
    looks++;
  }
  assert(looks >= 4);
  assertEquals(at.names().length, 2);
});
