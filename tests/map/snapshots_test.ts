/**
 * Snapshots, clones, the trash and schedules: every command, its refusals, and what it does; snapshots that are taken together.
 *
 * @module
 */
import { assert, assertEquals, assertStringIncludes } from "@std/assert/mod.js";
import type { ControlErrorCode } from "../../agent/map/errors.ts";
import {
  type Applied,
  apply,
  checkMap,
  type ClusterMap,
  type DiskEntry,
  DISKS_MAX,
  drainingLayer,
  findDisk,
  findNode,
  findSnapshot,
  heldElsewhere,
  ID_MAX,
  LAYERS_MAX,
  LIMIT_MAX,
  type MapCommand,
  NO_LIMITS,
  SCHEDULES_MAX,
  SNAPSHOT_DISKS_MAX,
  SNAPSHOTS_MAX,
  SNAPSHOTS_PER_DISK_MAX,
  takingOf,
  TRASH_MAX,
  UNWRITTEN,
} from "../../agent/map/map.ts";
import { atLevelTwo, clusterAtLevelTwo, clusterWithDisk, nodeUp, refuse, step } from "./cluster.ts";

const GIB = 2 ** 30;
const NOW_MS = 1.7e12;

function all(map: ClusterMap, ...commands: MapCommand[]): ClusterMap {
  return commands.reduce((before, command) => step(before, command).map, map);
}

function disk(map: ClusterMap, name: string): DiskEntry {
  return findDisk(map, name)!;
}

/** A disk as it is in the trash. */
function inTrash(map: ClusterMap, id: number): DiskEntry {
  return map.trash.find((entry) => entry.disk.id === id)!.disk;
}

function snap(map: ClusterMap, name: string, ...names: string[]): MapCommand {
  const disks = names.map((each) => disk(map, each).id);
  return { kind: "create-snapshots", disks, name, nowMs: NOW_MS };
}

function snapped(map: ClusterMap, name: string, ...names: string[]): ClusterMap {
  return all(map, snap(map, name, ...names));
}

function open(map: ClusterMap, name: string, node = 1): ClusterMap {
  const { incarnation } = findNode(map, node)!;
  return all(map, { kind: "take-lease", id: disk(map, name).id, node, incarnation });
}

function release(map: ClusterMap, name: string): MapCommand {
  const { id, lease, generation } = disk(map, name);
  return { kind: "release-lease", id, node: lease!.node, generation };
}

function forceRelease(map: ClusterMap, name: string): MapCommand {
  const { id, generation } = disk(map, name);
  return { kind: "force-release-lease", id, generation };
}

/** What the holder says once everything of before has come back. */
function taken(map: ClusterMap, name: string): MapCommand {
  const entry = disk(map, name);
  const { id, generation } = entry;
  return { kind: "snapshot-taken", id, layer: drainingLayer(entry), generation };
}

function abort(map: ClusterMap, name: string): MapCommand {
  return { kind: "abort-snapshots", taking: takingOf(disk(map, name))!.taking };
}

/** Every storage node says that it has absorbed whatever is to be absorbed. */
function absorbAll(map: ClusterMap): ClusterMap {
  const layers = map.layers.filter(({ absorbedBy }) => absorbedBy !== null).map(({ id }) => id);
  for (const { id: node, incarnation } of map.nodes) {
    map = all(map, { kind: "absorbed", node, incarnation, layers });
  }
  return map;
}

/** How the snapshots of a disk stand: names, with what is not complete in brackets. */
function shown(entry: DiskEntry): string {
  return entry.snapshots.map(({ name, taking, isDrained, isAborted }) =>
    taking === 0 ? name : `${name}(${isAborted ? "aborted" : isDrained ? "drained" : "open"})`
  ).join(" ");
}

function kinds({ effects }: Applied): string {
  return effects.map((effect) => "layer" in effect ? `${effect.kind} ${effect.layer}` : effect.kind)
    .join(", ");
}

function chains(map: ClusterMap): Record<string, string> {
  return Object.fromEntries(map.disks.map(({ name, layers }) => [name, layers.join(" ")]));
}

/** Layers, and what is being absorbed: `2<1` lies above 1, `2<1*` is being absorbed. */
function tree(map: ClusterMap): string {
  return map.layers.map(({ id, parent, absorbedBy }) =>
    `${id}${parent === 0 ? "" : `<${parent}`}${
      absorbedBy === null ? "" : `*${absorbedBy.join("+")}`
    }`
  ).join(" ");
}

/** A disk with three snapshots (layers 1, 2, 3 and 4), and one beside it (layer 5 is made later). */
function withThree(): ClusterMap {
  let map = clusterAtLevelTwo(2, "web");
  for (const name of ["a", "b", "c"]) map = snapped(map, name, "web");
  return map;
}

// ------------------------------------------------------------------------------ what commands do

Deno.test("a snapshot of a closed disk is complete at once: the disk goes on above it", () => {
  const map = clusterAtLevelTwo(2, "web");
  const applied = step(map, snap(map, "monday", "web"));
  assertEquals(kinds(applied), "layer-created 2, snapshots-changed");
  assertEquals([tree(applied.map), chains(applied.map)], ["1 2<1", { web: "2 1" }]);
  assertEquals(disk(applied.map, "web").snapshots, [{
    name: "monday",
    layer: 1,
    sizeBytes: GIB,
    createdMs: NOW_MS,
    isProtected: false,
    taking: 0,
    isDrained: true,
    isAborted: false,
  }]);
  assertEquals(applied.map.nextLayer, 3);
});

Deno.test("a snapshot of an open disk is complete when its holder says so", () => {
  const map = open(clusterAtLevelTwo(2, "web"), "web");
  const begun = step(map, snap(map, "monday", "web"));
  assertEquals(kinds(begun), "layer-created 2, snapshots-changed");
  assertEquals(shown(disk(begun.map, "web")), "monday(open)");
  assertEquals(takingOf(disk(begun.map, "web"))!.taking, begun.map.epoch);
  assertEquals(drainingLayer(disk(begun.map, "web")), 1);
  const done = step(begun.map, taken(begun.map, "web"));
  assertEquals(kinds(done), "snapshots-changed");
  assertEquals([shown(disk(done.map, "web")), drainingLayer(disk(done.map, "web"))], ["monday", 0]);
  assertEquals(takingOf(disk(done.map, "web")), undefined);
});

Deno.test("snapshots of several disks are taken all or none", () => {
  const map = snapped(clusterAtLevelTwo(2, "a", "b", "c"), "s", "b");
  const before = tree(map);
  assertEquals(refuse(map, snap(map, "s", "a", "b", "c")).code, "exists");
  assertEquals(tree(map), before);
  const applied = step(map, snap(map, "t", "c", "a"));
  assertEquals(
    kinds(applied),
    "layer-created 5, snapshots-changed, layer-created 6, snapshots-changed",
  );
  assertEquals(chains(applied.map), { a: "6 1", b: "4 2", c: "5 3" });
  const { disks } = applied.map;
  assertEquals(disks.map((each) => each.snapshots.map(({ name }) => name).join()), ["t", "s", "t"]);
});

Deno.test("a deleted snapshot is absorbed into what lies above it, once on every node", () => {
  let map = withThree();
  assertEquals([tree(map), chains(map)], ["1 2<1 3<2 4<3", { web: "4 3 2 1" }]);
  const applied = step(map, { kind: "delete-snapshot", disk: "web", name: "b" });
  assertEquals(kinds(applied), "snapshots-changed");
  assertEquals(tree(applied.map), "1 2<1* 3<2 4<3");
  const first = all(applied.map, { kind: "absorbed", node: 2, incarnation: 1, layers: [2] });
  assertEquals([tree(first), chains(first)], ["1 2<1*2 3<2 4<3", { web: "4 3 2 1" }]);
  const second = step(first, { kind: "absorbed", node: 1, incarnation: 1, layers: [2] });
  assertEquals(kinds(second), "layer-dropped 2");
  map = second.map;
  assertEquals([tree(map), chains(map)], ["1 3<1 4<3", { web: "4 3 1" }]);
  assertEquals(disk(map, "web").snapshots.map(({ name, layer }) => [name, layer]), [
    ["a", 1],
    ["c", 3],
  ]);
});

Deno.test("of layers in a row every second one is absorbed first, the others after it", () => {
  let map = withThree();
  for (const name of ["a", "b", "c"]) {
    map = all(map, { kind: "delete-snapshot", disk: "web", name });
  }
  assertEquals(tree(map), "1* 2<1 3<2* 4<3");
  map = absorbAll(map);
  assertEquals(tree(map), "2* 4<2");
  map = absorbAll(map);
  assertEquals([tree(map), chains(map)], ["4", { web: "4" }]);
});

Deno.test("a clone begins as its snapshot is, and keeps what it needs of it", () => {
  let map = withThree();
  map = all(map, { kind: "resize-disk", name: "web", sizeBytes: 2 * GIB });
  map = all(map, { kind: "change-disk", name: "web", copiesMin: 1, detectZeroes: true });
  const applied = step(map, {
    kind: "clone-disk",
    disk: "web",
    snapshot: "b",
    name: "clone",
    nowMs: 7,
    readOnly: true,
    attributes: { of: "web" },
  });
  assertEquals(kinds(applied), "layer-created 5, disk-added");
  map = applied.map;
  assertEquals(disk(map, "clone"), {
    id: 2,
    name: "clone",
    sizeBytes: GIB,
    layers: [5, 2, 1],
    createdMs: 7,
    readOnly: true,
    copies: 2,
    pool: 2,
    copiesMin: 1,
    family: 1,
    placedEpoch: 0,
    settledBefore: 0,
    written: UNWRITTEN,
    generation: 0,
    lease: null,
    settled: 0,
    attributes: { of: "web" },
    snapshots: [],
    limits: NO_LIMITS,
    schedules: [],
    detectZeroes: true,
  });
  // Neither the snapshot nor the disk that it was of has to stay.
  map = all(map, { kind: "delete-disk", name: "web" });
  assertEquals([tree(map), chains(map)], ["1* 2<1 5<2", { clone: "5 2 1" }]);
  map = absorbAll(absorbAll(map));
  assertEquals([tree(map), chains(map)], ["5", { clone: "5" }]);
  assertEquals(
    refuse(snapped(map, "x", "clone"), {
      kind: "create-disk",
      name: "clone",
      sizeBytes: 512,
      nowMs: 0,
    }).code,
    "exists",
  );
});

Deno.test("a clone's first holder writes above every stamp of what it shares", () => {
  let map = open(clusterAtLevelTwo(2, "web"), "web");
  map = all(map, release(map, "web"));
  map = snapped(open(map, "web"), "s", "web");
  map = all(map, taken(map, "web"));
  map = all(map, { kind: "clone-disk", disk: "web", snapshot: "s", name: "clone", nowMs: 0 });
  const { generation, settled } = disk(map, "clone");
  assertEquals([generation, settled], [2, 2]);
  assertEquals(disk(open(map, "clone"), "clone").generation, 3);
});

Deno.test("rolling back gives the disk the snapshot's content, and keeps what it held in the trash", () => {
  let map = withThree();
  map = all(map, { kind: "resize-disk", name: "web", sizeBytes: 2 * GIB });
  map = all(open(map, "web"), release(open(map, "web"), "web"));
  const before = disk(map, "web");
  const schedule = scheduleOf({ disk: "web" });
  map = all(map, schedule);
  const applied = step(map, { kind: "rollback-disk", disk: "web", snapshot: "b", nowMs: NOW_MS });
  assertEquals(kinds(applied), "layer-created 5, disk-resized, snapshots-changed");
  map = applied.map;
  assertEquals([tree(map), chains(map)], ["1 2<1 3<2 4<3 5<2", { web: "5 2 1" }]);
  const after = disk(map, "web");
  assertEquals([after.id, after.sizeBytes, shown(after)], [before.id, GIB, "a b c"]);
  assertEquals(after.schedules.length, 1);
  assertEquals(map.trash, [{
    disk: { ...before, id: 2, snapshots: [], schedules: [] },
    deletedMs: NOW_MS,
    expiresMs: NOW_MS + map.settings.trashMs,
  }]);
  // And back again: it is a disk like any other.
  map = all(map, { kind: "restore-disk", id: 2, name: "web-before" });
  assertEquals(chains(map), { web: "5 2 1", "web-before": "4 3 2 1" });
  assertEquals(disk(map, "web-before").sizeBytes, 2 * GIB);
  // Of the same size nothing is resized.
  map = all(map, { kind: "delete-disk", name: "web-before" });
  const again = step(map, { kind: "rollback-disk", disk: "web", snapshot: "c", nowMs: NOW_MS });
  assertEquals(kinds(again), "layer-created 6, snapshots-changed");
  assertEquals(chains(again.map), { web: "6 3 2 1" });
});

Deno.test("a deleted disk goes to the trash for as long as the settings say, and comes back as it was", () => {
  let map = snapped(clusterAtLevelTwo(2, "web", "db"), "s", "web");
  const before = disk(map, "web");
  const applied = step(map, { kind: "delete-disk", name: "web", trashedMs: NOW_MS });
  assertEquals(applied.effects, [{ kind: "disk-removed", disk: before }]);
  map = applied.map;
  assertEquals([chains(map), tree(map)], [{ db: "2" }, "1 2 3<1"]);
  assertEquals(map.trash, [
    { disk: before, deletedMs: NOW_MS, expiresMs: NOW_MS + 24 * 3600 * 1000 },
  ]);
  // Its name is free meanwhile.
  map = all(map, { kind: "create-disk", name: "web", sizeBytes: 512, nowMs: 0, copies: 2 });
  const restore = { kind: "restore-disk", id: 1, name: "web" } as const;
  assertEquals(refuse(map, restore).code, "exists");
  const restored = step(map, { ...restore, name: "web-2" });
  assertEquals(kinds(restored), "disk-added");
  assertEquals(disk(restored.map, "web-2"), { ...before, name: "web-2" });
  assertEquals(restored.map.trash, []);

  const purged = step(map, { kind: "purge-disk", id: 1 });
  assertEquals(kinds(purged), "layer-dropped 1, layer-dropped 3");
  assertEquals([purged.map.trash, tree(purged.map)], [[], "2 4"]);
});

Deno.test("the trash is in order whatever is deleted first, and is used only where the settings and the command say so", () => {
  let map = clusterAtLevelTwo(2, "a", "b", "c", "d");
  map = all(
    map,
    { kind: "delete-disk", name: "c", trashedMs: 5 },
    { kind: "delete-disk", name: "a", trashedMs: 6 },
    { kind: "delete-disk", name: "b" },
  );
  assertEquals(map.trash.map(({ disk }) => disk.id), [1, 3]);
  assertEquals(tree(map), "1 3 4");
  map = all(map, { kind: "change-settings", trashMs: 0 });
  const gone = step(map, { kind: "delete-disk", name: "d", trashedMs: 7 });
  assertEquals(kinds(gone), "disk-removed, layer-dropped 4");
  assertEquals(gone.map.trash.length, 2);
  // A time at the end of all times does not pass it.
  map = all(map, { kind: "change-settings", trashMs: 1000 });
  const last = Number.MAX_SAFE_INTEGER;
  map = all(map, { kind: "delete-disk", name: "d", trashedMs: last });
  assertEquals([map.trash[2].deletedMs, map.trash[2].expiresMs], [last, last]);
});

Deno.test("disks in the trash keep their pool, their family's copies, and their layers", () => {
  let map = withThree();
  map = all(map, { kind: "clone-disk", disk: "web", snapshot: "b", name: "clone", nowMs: 0 });
  map = all(map, { kind: "delete-disk", name: "web", trashedMs: 0 });
  assertEquals(tree(map), "1 2<1 3<2 4<3 5<2");
  assertEquals(refuse(map, { kind: "change-disk", name: "clone", copies: 1 }).code, "invalid");
  map = all(map, { kind: "purge-disk", id: 1 });
  assertEquals(tree(map), "1* 2<1 5<2");
});

Deno.test("data of disks in the trash is not given up without a word", () => {
  const map = all(
    atLevelTwo(clusterWithDisk(2, 1)),
    { kind: "set-voters", voters: [1] },
    { kind: "node-down", node: 2, incarnation: 1, nowMs: 1 },
    { kind: "delete-disk", name: "web", trashedMs: 2 },
  );
  const remove = { kind: "remove-node", node: 2, force: true, nowMs: 3 } as const;
  assertEquals(refuse(map, remove).code, "invalid");
  assertEquals(all(map, { ...remove, acceptLoss: true }).losses.length, 1);
  assertEquals(all(map, { kind: "purge-disk", id: 1 }, remove).losses, []);
});

Deno.test("a disk that is open goes to the trash without its lease, and its next holder reconciles", () => {
  let map = open(clusterAtLevelTwo(2, "web"), "web");
  map = all(map, { kind: "delete-disk", name: "web", trashedMs: 0 });
  assertEquals(inTrash(map, 1).lease, null);
  map = all(map, { kind: "restore-disk", id: 1, name: "web" });
  const { generation, settled } = disk(map, "web");
  assertEquals([generation, settled], [1, 0]);
  assertEquals(refuse(map, snap(map, "s", "web")).code, "busy");
  map = all(open(map, "web"), { kind: "reconciled", id: 1, generation: 2 });
  map = all(map, release(map, "web"));
  assertEquals(shown(disk(snapped(map, "s", "web"), "web")), "s");
});

Deno.test("a snapshot is renamed, protected and given free", () => {
  const map = withThree();
  const change = { kind: "change-snapshot", disk: "web", name: "b" } as const;
  const applied = step(map, { ...change, newName: "gold", isProtected: true });
  assertEquals(kinds(applied), "snapshots-changed");
  const gold = disk(applied.map, "web").snapshots[1];
  assertEquals([gold.name, gold.isProtected, gold.layer], ["gold", true, 2]);
  const remove = { kind: "delete-snapshot", disk: "web", name: "gold" } as const;
  assertEquals(refuse(applied.map, remove).code, "busy");
  assertEquals(refuse(applied.map, { kind: "delete-disk", name: "web" }).code, "busy");
  const trash = { kind: "delete-disk", name: "web", trashedMs: 1 } as const;
  assertEquals(refuse(applied.map, trash).code, "busy");
  const free = all(applied.map, { ...change, name: "gold", isProtected: false });
  assertEquals(shown(disk(all(free, remove), "web")), "a c");
});

function scheduleOf(part: Partial<Extract<MapCommand, { kind: "set-schedule" }>>): MapCommand {
  return {
    kind: "set-schedule",
    disk: "web",
    name: "hourly",
    everyMs: 3_600_000,
    keep: 24,
    keepDaily: 7,
    keepWeekly: 4,
    keepMonthly: 12,
    nowMs: NOW_MS,
    ...part,
  };
}

Deno.test("schedules are made, changed and ended; when one was made stays", () => {
  let map = clusterAtLevelTwo(1, "web");
  map = all(map, scheduleOf({}), scheduleOf({ name: "five", everyMs: 300_000, nowMs: 9 }));
  assertEquals(disk(map, "web").schedules.map(({ name }) => name), ["five", "hourly"]);
  map = all(map, scheduleOf({ keep: 1, nowMs: NOW_MS + 5 }));
  const [, hourly] = disk(map, "web").schedules;
  assertEquals([hourly.keep, hourly.createdMs], [1, NOW_MS]);
  assertEquals(step(map, scheduleOf({ keep: 1, nowMs: NOW_MS + 9 })).map, map);
  map = all(map, { kind: "delete-schedule", disk: "web", name: "hourly" });
  assertEquals(disk(map, "web").schedules.map(({ name }) => name), ["five"]);
});

Deno.test("limits and the detection of zeroes are changed, and what is left out stays", () => {
  let map = clusterAtLevelTwo(1, "web");
  const change = { kind: "change-disk", name: "web" } as const;
  const applied = step(map, { ...change, limits: [500, 1e6, 1000, 2e6, 30] });
  assertEquals(kinds(applied), "disk-changed");
  const limits = {
    iops: 500,
    bytesPerSecond: 1e6,
    burstIops: 1000,
    burstBytesPerSecond: 2e6,
    burstSeconds: 30,
  };
  assertEquals(disk(applied.map, "web").limits, limits);
  map = all(applied.map, { ...change, detectZeroes: true });
  assertEquals([disk(map, "web").limits, disk(map, "web").detectZeroes], [limits, true]);
  map = all(map, { ...change, limits: [0, 0, 0, 0, 0] });
  assertEquals([disk(map, "web").limits, disk(map, "web").detectZeroes], [NO_LIMITS, true]);
  const good = [[1, 0, 1, 0, 1], [0, LIMIT_MAX, 0, LIMIT_MAX, 3600]];
  for (const each of good) all(map, { ...change, limits: each });
  const bad = [
    [],
    [1, 0, 0, 0],
    [1, 0, 0, 0, 0, 0],
    [-1, 0, 0, 0, 0],
    [0.5, 0, 0, 0, 0],
    [NaN, 0, 0, 0, 0],
    [0, LIMIT_MAX + 1, 0, 0, 0],
    [0, 0, 5, 0, 1],
    [10, 0, 5, 0, 1],
    [0, 10, 0, 5, 1],
    [0, 0, 0, 7, 1],
    [10, 0, 20, 0, 0],
    [10, 0, 0, 0, 1],
    [10, 0, 20, 0, 3601],
    [10, 0, 20, 0, 0.5],
  ];
  for (const each of bad) {
    assertEquals(refuse(map, { ...change, limits: each }).code, "invalid", each.join());
  }
});

// --------------------------------------------------------------------------------------- refusals

Deno.test("every command refuses what does not fit, with its code", () => {
  let map = clusterAtLevelTwo(2, "web", "db", "busy", "lost", "down", "gone");
  map = snapped(map, "s", "web");
  map = snapped(map, "t", "web");
  map = open(map, "busy");
  map = snapped(map, "s", "busy");
  for (const name of ["lost", "gone"]) {
    map = all(open(map, name), forceRelease(open(map, name), name));
  }
  map = open(map, "down", 2);
  map = all(map, { kind: "delete-disk", name: "gone", trashedMs: 1 });
  map = all(map, { kind: "change-snapshot", disk: "web", name: "t", isProtected: true });
  const web = disk(map, "web");
  const busy = disk(map, "busy");
  const clone = {
    kind: "clone-disk",
    disk: "web",
    snapshot: "s",
    name: "x",
    nowMs: 0,
  } as const;
  const rollback = { kind: "rollback-disk", disk: "web", snapshot: "s", nowMs: 0 } as const;
  const tooMany = Array.from({ length: SNAPSHOT_DISKS_MAX + 1 }, (_, index) => index + 1);
  const create = { kind: "create-snapshots", disks: [web.id], name: "u", nowMs: 0 } as const;
  const change = { kind: "change-snapshot", disk: "web", name: "s" } as const;
  const restore = { kind: "restore-disk", id: 6, name: "x" } as const;
  const cases: [ControlErrorCode, MapCommand][] = [
    ["invalid", { ...create, disks: [] }],
    ["invalid", { ...create, disks: tooMany }],
    ["invalid", { ...create, disks: [web.id, web.id] }],
    ["invalid", { ...create, name: "a/b" }],
    ["invalid", { ...create, name: "" }],
    ["invalid", { ...create, name: "a@b" }],
    ["invalid", { ...create, nowMs: -1 }],
    ["missing", { ...create, disks: [web.id, 99] }],
    ["missing", { ...create, disks: [NaN] }],
    ["missing", { ...create, disks: [6] }],
    ["exists", { ...create, name: "s" }],
    ["busy", { ...create, disks: [busy.id] }],
    ["busy", { ...create, disks: [web.id, busy.id] }],
    ["busy", { ...create, disks: [disk(map, "lost").id] }],
    ["missing", { kind: "snapshot-taken", id: 99, layer: 1, generation: 1 }],
    ["stale", { kind: "snapshot-taken", id: busy.id, layer: busy.layers[0], generation: 1 }],
    ["stale", { kind: "snapshot-taken", id: busy.id, layer: busy.layers[1], generation: 2 }],
    ["stale", { kind: "snapshot-taken", id: busy.id, layer: 0, generation: 1 }],
    // No snapshot is being taken, and there is no layer 0.
    ["stale", { kind: "snapshot-taken", id: web.id, layer: 0, generation: 0 }],
    ["stale", { kind: "snapshot-taken", id: disk(map, "db").id, layer: 0, generation: 0 }],
    ["stale", { kind: "snapshot-taken", id: disk(map, "down").id, layer: 0, generation: 1 }],
    ["stale", { kind: "abort-snapshots", taking: 0 }],
    ["stale", { kind: "abort-snapshots", taking: map.epoch + 1 }],
    ["stale", { kind: "abort-snapshots", taking: NaN }],
    ["missing", { kind: "delete-snapshot", disk: "none", name: "s" }],
    ["missing", { kind: "delete-snapshot", disk: "web", name: "none" }],
    ["missing", { kind: "delete-snapshot", disk: "gone", name: "s" }],
    ["busy", { kind: "delete-snapshot", disk: "busy", name: "s" }],
    ["busy", { kind: "delete-snapshot", disk: "web", name: "t" }],
    ["stale", { kind: "delete-snapshot", disk: "web", name: "s", layer: 99 }],
    ["missing", { ...change, disk: "none" }],
    ["missing", { ...change, name: "none" }],
    ["busy", { ...change, disk: "busy", isProtected: true }],
    ["invalid", { ...change, newName: "-" }],
    ["exists", { ...change, newName: "t" }],
    ["missing", { ...clone, disk: "none" }],
    ["missing", { ...clone, snapshot: "none" }],
    ["busy", { ...clone, disk: "busy" }],
    ["exists", { ...clone, name: "web" }],
    ["invalid", { ...clone, name: "../x" }],
    ["invalid", { ...clone, nowMs: 0.5 }],
    ["invalid", { ...clone, attributes: { "/": "" } }],
    ["missing", { ...rollback, disk: "none" }],
    ["missing", { ...rollback, snapshot: "none" }],
    ["busy", { ...rollback, disk: "busy" }],
    ["invalid", { ...rollback, nowMs: NaN }],
    ["missing", { ...restore, id: web.id }],
    ["exists", { ...restore, name: "web" }],
    ["invalid", { ...restore, name: "agent" }],
    ["missing", { kind: "purge-disk", id: web.id }],
    ["stale", { kind: "purge-disk", id: 6, deletedMs: 12_345 }],
    ["stale", { kind: "absorbed", node: 9, incarnation: 1, layers: [] }],
    ["stale", { kind: "absorbed", node: 1, incarnation: 2, layers: [] }],
    ["missing", scheduleOf({ disk: "none" })],
    ["invalid", scheduleOf({ name: "a b" })],
    ["invalid", scheduleOf({ name: "n".repeat(41) })],
    ["invalid", scheduleOf({ everyMs: 59_999 })],
    ["invalid", scheduleOf({ everyMs: Infinity })],
    ["invalid", scheduleOf({ keep: 0 })],
    ["invalid", scheduleOf({ keep: 1.5 })],
    ["invalid", scheduleOf({ keepDaily: -1 })],
    ["invalid", scheduleOf({ keepMonthly: 1025 })],
    ["invalid", scheduleOf({ keepWeekly: 1000 })],
    ["invalid", scheduleOf({ nowMs: -1 })],
    ["missing", { kind: "delete-schedule", disk: "none", name: "hourly" }],
    ["missing", { kind: "delete-schedule", disk: "web", name: "hourly" }],
    ["invalid", { kind: "delete-disk", name: "web", trashedMs: -1 }],
    ["invalid", { kind: "change-settings", trashMs: -1 }],
  ];
  map = all(map, { kind: "change-snapshot", disk: "web", name: "t", isProtected: true });
  for (const [code, command] of cases) {
    const from = command.kind === "delete-disk"
      ? all(map, { kind: "change-snapshot", disk: "web", name: "t", isProtected: false })
      : map;
    assertEquals(refuse(from, command).code, code, JSON.stringify(command));
  }
});

Deno.test("a holder that is down, or has started anew, is not waited for: nothing is begun", () => {
  const map = open(clusterAtLevelTwo(3, "web"), "web", 2);
  const down = all(map, { kind: "node-down", node: 2, incarnation: 1, nowMs: 1 });
  assertEquals(refuse(down, snap(down, "s", "web")).code, "busy");
  const anew = all(map, nodeUp(2, { protocol: 2 }));
  assertEquals(refuse(anew, snap(anew, "s", "web")).code, "busy");
  // Once somebody has it again, who brings its replicas in line, it can be.
  const again = open(anew, "web", 3);
  assertEquals(shown(disk(snapped(again, "s", "web"), "web")), "s(open)");
});

Deno.test("rolling back needs a disk that nobody has open, and no snapshot on its way", () => {
  let map = withThree();
  const rollback = { kind: "rollback-disk", disk: "web", snapshot: "a", nowMs: 1 } as const;
  assertEquals(refuse(open(map, "web"), rollback).code, "busy");
  map = snapped(open(map, "web"), "d", "web");
  map = all(map, forceRelease(map, "web"));
  assertEquals(refuse(map, rollback).code, "busy");
});

Deno.test("rolling back a disk whose host died says how to go on, and not to stop a guest that is gone", () => {
  const map = open(withThree(), "web", 2);
  const rollback = { kind: "rollback-disk", disk: "web", snapshot: "a", nowMs: 1 } as const;
  const down = all(map, { kind: "node-down", node: 2, incarnation: 1, nowMs: 1 });
  const anew = all(map, nodeUp(2, { protocol: 2 }));
  for (const gone of [down, anew, all(down, forceRelease(down, "web"))]) {
    const { code, message, hint = "" } = refuse(gone, rollback);
    assertEquals(code, "busy");
    assertStringIncludes(message, "replicas may differ");
    // Reading takes no lease, so it brings nothing in line.
    assertStringIncludes(hint, "'kelpie disk write web /dev/null'");
    let next = open(gone, "web", 1);
    next = all(next, { kind: "reconciled", id: 1, generation: disk(next, "web").generation });
    next = all(next, release(next, "web"), rollback);
    assertEquals(disk(next, "web").layers, [5, 1]);
  }
  assertEquals(refuse(map, rollback).hint, "stop the guest that uses it first");
});

Deno.test("a disk that was open on a host which died is said to be so, with what helps", () => {
  const map = open(withThree(), "web", 2);
  const self = findNode(map, 1)!.uuid;
  const why = (map: ClusterMap, node = self) => heldElsewhere(map, disk(map, "web"), node);
  assertEquals(why(withThree()), null);
  assertEquals(why(map, findNode(map, 2)!.uuid), null);
  assertEquals(why(map)?.hint, "stop the guest there");
  const down = all(map, { kind: "node-down", node: 2, incarnation: 1, nowMs: 1 });
  for (const gone of [down, all(map, nodeUp(2, { protocol: 2 }))]) {
    const { code, message, hint = "" } = why(gone)!;
    assertEquals(code, "busy");
    assertStringIncludes(message, "was open on node host-2, ");
    assertStringIncludes(hint, "'kelpie disk write web /dev/null'");
  }
});

Deno.test("the map has bounds", () => {
  const map = withThree();
  const [web] = map.disks;
  const create = snap(map, "x", "web");
  const clone = { kind: "clone-disk", disk: "web", snapshot: "a", name: "x", nowMs: 0 } as const;
  const rollback = { kind: "rollback-disk", disk: "web", snapshot: "a", nowMs: 0 } as const;
  const many = (length: number) => Array.from({ length }, (_, index) => index);
  const cases: [string, ClusterMap, MapCommand][] = [
    ["layer ids", { ...map, nextLayer: ID_MAX + 1 }, create],
    ["layer ids", { ...map, nextLayer: ID_MAX + 1 }, clone],
    ["disk ids", { ...map, nextDisk: ID_MAX + 1 }, clone],
    ["layer ids", { ...map, nextLayer: ID_MAX + 1 }, rollback],
    ["disk ids", { ...map, nextDisk: ID_MAX + 1 }, rollback],
    [
      "snapshots of a disk",
      {
        ...map,
        disks: [{ ...web, snapshots: many(SNAPSHOTS_PER_DISK_MAX).map(() => web.snapshots[0]) }],
      },
      create,
    ],
    ["layers of a disk", { ...map, disks: [{ ...web, layers: many(LAYERS_MAX) }] }, create],
    [
      "trash",
      { ...map, trash: many(TRASH_MAX).map(() => ({ disk: web, deletedMs: 0, expiresMs: 0 })) },
      rollback,
    ],
    [
      "trash",
      { ...map, trash: many(TRASH_MAX).map(() => ({ disk: web, deletedMs: 0, expiresMs: 0 })) },
      { kind: "delete-disk", name: "web", trashedMs: 0 },
    ],
  ];
  for (const command of [create, clone, rollback]) {
    const layers = many(SNAPSHOTS_MAX).map((id) => ({ id: id + 1, parent: 0, absorbedBy: null }));
    cases.push(["layers", { ...map, layers }, command]);
  }
  const full = many(DISKS_MAX).map((id) => id === 0 ? web : { ...web, name: `x${id}` });
  cases.push(["disks", { ...map, disks: full }, { ...clone, name: "y" }]);
  const trashed = { ...map, disks: full, trash: [{ disk: web, deletedMs: 0, expiresMs: 0 }] };
  cases.push(["disks", trashed, { kind: "restore-disk", id: 1, name: "y" }]);
  for (const [what, from, command] of cases) {
    const error = refuse(from, command);
    assertEquals(error.code, "limit", `${what}: ${command.kind}: ${error.message}`);
  }
  let schedules = map;
  for (const index of many(SCHEDULES_MAX)) {
    schedules = all(schedules, scheduleOf({ name: `s${index}` }));
  }
  assertEquals(refuse(schedules, scheduleOf({ name: "one-more" })).code, "limit");
  assertEquals(step(schedules, scheduleOf({ name: "s0", keep: 1 })).effects, []);
});

Deno.test("rolling back again and again stops before the map passes its bounds", () => {
  let map = snapped(clusterAtLevelTwo(1, "web"), "s", "web");
  const rollback = { kind: "rollback-disk", disk: "web", snapshot: "s", nowMs: 0 } as const;
  const { trash, ...rest } = all(map, rollback);
  // As after so many times: every one has left a disk with a layer above the snapshot's.
  const [{ disk: old, ...times }] = trash;
  const more = Array.from({ length: TRASH_MAX - 2 }, (_, index) => index + 4);
  map = {
    ...rest,
    nextLayer: TRASH_MAX + 2,
    nextDisk: TRASH_MAX + 2,
    layers: [
      ...rest.layers,
      ...more.map((id) => ({ id, parent: 1, absorbedBy: null })),
    ],
    trash: [
      ...trash,
      ...more.map((id) => ({ ...times, disk: { ...old, id: id - 1, layers: [id, 1] } })),
    ],
  };
  assertEquals(checkMap(map), null);
  const last = step(map, rollback).map;
  assertEquals(last.trash.length, TRASH_MAX);
  assertEquals(refuse(last, rollback).code, "limit");
});

// ------------------------------------------------------------------------- twice, late, unchanged

Deno.test("a command that comes a second time changes nothing, or is told that it is late", () => {
  const three = withThree();
  const opened = snapped(open(clusterAtLevelTwo(2, "web", "db"), "web"), "s", "web", "db");
  const deleted = all(three, { kind: "delete-snapshot", disk: "web", name: "b" });
  const trashed = all(three, { kind: "delete-disk", name: "web", trashedMs: 0 });
  const scheduled = all(three, scheduleOf({}));
  const rollback = { kind: "rollback-disk", disk: "web", snapshot: "a", nowMs: 0 } as const;
  const cases: [ControlErrorCode | "same" | "again", ClusterMap, MapCommand][] = [
    ["exists", three, snap(three, "d", "web")],
    ["stale", opened, taken(opened, "web")],
    ["stale", opened, abort(opened, "web")],
    ["missing", three, { kind: "delete-snapshot", disk: "web", name: "b" }],
    ["same", three, { kind: "change-snapshot", disk: "web", name: "b", isProtected: true }],
    ["missing", three, { kind: "change-snapshot", disk: "web", name: "b", newName: "x" }],
    ["exists", three, { kind: "clone-disk", disk: "web", snapshot: "a", name: "x", nowMs: 0 }],
    // It is what it says, once more, with one more disk in the trash: proposals come exactly once.
    ["again", three, rollback],
    ["missing", trashed, { kind: "restore-disk", id: 1, name: "x" }],
    ["missing", trashed, { kind: "purge-disk", id: 1 }],
    ["same", deleted, { kind: "absorbed", node: 1, incarnation: 1, layers: [2] }],
    ["same", three, scheduleOf({})],
    ["missing", scheduled, { kind: "delete-schedule", disk: "web", name: "hourly" }],
    ["missing", three, { kind: "delete-disk", name: "web", trashedMs: 0 }],
    ["same", three, { kind: "change-disk", name: "web", limits: [1, 0, 0, 0, 0] }],
    ["same", three, { kind: "change-disk", name: "web", detectZeroes: true }],
    ["same", three, { kind: "change-settings", trashMs: 5 }],
  ];
  for (const [expected, from, command] of cases) {
    const first = step(from, command);
    assert(first.map !== from, `${command.kind} changes nothing`);
    const second = apply(first.map, command);
    const seen = !second.ok ? second.error.code : second.value.map === first.map ? "same" : "again";
    assertEquals(seen, expected, JSON.stringify(command));
    if (second.ok && seen === "same") assertEquals(second.value.effects, []);
  }
});

Deno.test("what is late does not touch what came after it", () => {
  // A deletion that meant another snapshot of that name.
  let map = withThree();
  const remove = { kind: "delete-snapshot", disk: "web", name: "b", layer: 2 } as const;
  map = snapped(all(map, remove), "b", "web");
  assertEquals(refuse(map, remove).code, "stale");
  // A word about the snapshot before this one, and one of a holder that lost the disk.
  map = snapped(open(map, "web"), "d", "web");
  const early = taken(map, "web");
  map = snapped(all(map, early), "e", "web");
  assertEquals(refuse(map, early).code, "stale");
  const late = taken(map, "web");
  assertEquals(refuse(all(map, forceRelease(map, "web")), late).code, "stale");
  assertEquals(refuse(open(map, "web", 1), late).code, "stale");
  // An abort of those that are complete, while others are on their way.
  const stop = abort(map, "web");
  map = snapped(all(map, late), "f", "web");
  assertEquals(refuse(map, stop).code, "stale");
  assertEquals(shown(disk(map, "web")), "a c b d e f(open)");
});

Deno.test("layers that are not to be absorbed are left alone, whoever says that he has", () => {
  const map = all(withThree(), { kind: "delete-snapshot", disk: "web", name: "b" });
  const say = { kind: "absorbed", node: 1, incarnation: 1, layers: [1, 3, 4, 0, 99, NaN] } as const;
  assertEquals(step(map, say).map, map);
  const more = step(map, { ...say, layers: [...say.layers, 2, 2] }).map;
  assertEquals(tree(more), "1 2<1*1 3<2 4<3");
});

// ----------------------------------------------------------------------------- taken together

/** Four disks: "a" and "b" are open on nodes 1 and 2, "c" and "d" are closed; a snapshot of the first three is being taken. */
function together(): ClusterMap {
  let map = clusterAtLevelTwo(3, "a", "b", "c", "d");
  map = open(open(map, "a", 1), "b", 2);
  return snapped(map, "s", "a", "b", "c");
}

/** How all disks stand, by name. */
function state(map: ClusterMap): string {
  return map.disks.map((each) => `${each.name}: ${shown(each)}`).join("; ");
}

Deno.test("snapshots of open and closed disks are complete together, when the last has drained", () => {
  const begun = together();
  assertEquals(state(begun), "a: s(open); b: s(open); c: s(drained); d: ");
  assertEquals(drainingLayer(disk(begun, "c")), 0);
  const one = step(begun, taken(begun, "b"));
  assertEquals(kinds(one), "snapshots-changed");
  assertEquals(state(one.map), "a: s(open); b: s(drained); c: s(drained); d: ");
  const two = step(one.map, taken(one.map, "a"));
  assertEquals(kinds(two), "snapshots-changed, snapshots-changed, snapshots-changed");
  assertEquals(state(two.map), "a: s; b: s; c: s; d: ");
});

Deno.test("a group waits for whoever is open, wherever it is named", () => {
  const map = open(clusterAtLevelTwo(1, "a", "b", "c"), "b");
  const begun = snapped(map, "s", "a", "b", "c");
  assertEquals(state(begun), "a: s(drained); b: s(open); c: s(drained)");
  assertEquals(state(all(begun, taken(begun, "b"))), "a: s; b: s; c: s");
});

Deno.test("two groups at once do not wait for each other", () => {
  let map = open(together(), "d", 3);
  map = snapped(map, "t", "d");
  assertEquals(state(all(map, taken(map, "d"))), "a: s(open); b: s(open); c: s(drained); d: t");
  map = all(map, taken(map, "a"), taken(map, "b"));
  assertEquals(state(map), "a: s; b: s; c: s; d: t(open)");
});

Deno.test("a disk of a group that is opened meanwhile is not waited for", () => {
  let map = open(together(), "c", 3);
  assertEquals(refuse(map, { ...taken(map, "c"), layer: 3 } as MapCommand).code, "stale");
  const closed = step(map, release(map, "c"));
  assertEquals(kinds(closed), "lease-released");
  map = all(map, taken(map, "a"), taken(map, "b"));
  assertEquals(state(map), "a: s; b: s; c: s; d: ");
});

Deno.test("giving a group up ends it at once where nothing is on its way, and later where something is", () => {
  const begun = together();
  const stopped = step(begun, abort(begun, "a"));
  assertEquals(kinds(stopped), "snapshots-changed, snapshots-changed, snapshots-changed");
  assertEquals(state(stopped.map), "a: s(aborted); b: s(aborted); c: ; d: ");
  // Layer 3 of "c" is nobody's any more, those of "a" and "b" are still waited for.
  assertEquals(tree(stopped.map), "1 2 3* 4 5<1 6<2 7<3");
  assertEquals(findSnapshot(disk(stopped.map, "a"), "s"), undefined);
  assertEquals(refuse(stopped.map, snap(stopped.map, "s", "a")).code, "busy");
  assertEquals(
    refuse(stopped.map, { kind: "delete-snapshot", disk: "a", name: "s" }).code,
    "missing",
  );
  // The name is free for those that it is over for.
  assertEquals(state(snapped(stopped.map, "s", "c")), "a: s(aborted); b: s(aborted); c: s; d: ");
  const drained = step(stopped.map, taken(stopped.map, "a"));
  assertEquals(kinds(drained), "snapshots-changed");
  assertEquals(state(drained.map), "a: ; b: s(aborted); c: ; d: ");
  const done = all(drained.map, taken(drained.map, "b"));
  assertEquals(state(absorbAll(done)), "a: ; b: ; c: ; d: ");
  assertEquals(tree(absorbAll(done)), "4 5 6 7");
});

Deno.test("giving a group up after some have drained", () => {
  let map = together();
  map = all(map, taken(map, "a"), abort(map, "b"));
  assertEquals(state(map), "a: ; b: s(aborted); c: ; d: ");
  map = all(map, release(map, "b"));
  assertEquals(state(map), "a: ; b: ; c: ; d: ");
});

Deno.test("a lease that is given back in good order says that its disk has drained", () => {
  const begun = together();
  const one = step(begun, release(begun, "a"));
  assertEquals(kinds(one), "lease-released, snapshots-changed");
  assertEquals(state(one.map), "a: s(drained); b: s(open); c: s(drained); d: ");
  const { lease, settled, generation } = disk(one.map, "a");
  assertEquals([lease, settled], [null, generation]);
  const two = step(one.map, release(one.map, "b"));
  assertEquals(
    kinds(two),
    "lease-released, snapshots-changed, snapshots-changed, snapshots-changed",
  );
  assertEquals(state(two.map), "a: s; b: s; c: s; d: ");
});

Deno.test("after any other end of a lease the next holder has to say it", () => {
  const begun = together();
  const ends: [string, MapCommand[]][] = [
    ["by force", [forceRelease(begun, "a")]],
    ["its node is down", [{ kind: "node-down", node: 1, incarnation: 1, nowMs: 1 }]],
    ["its agent has started anew", [nodeUp(1, { protocol: 2 })]],
    ["its node is removed", [
      { kind: "set-voters", voters: [2, 3] },
      { kind: "node-down", node: 1, incarnation: 1, nowMs: 1 },
      { kind: "remove-node", node: 1, force: true, acceptLoss: true, nowMs: 2 },
    ]],
  ];
  for (const [what, commands] of ends) {
    let map = all(begun, taken(begun, "b"), ...commands);
    assertEquals(state(map), "a: s(open); b: s(drained); c: s(drained); d: ", what);
    const late = taken(begun, "a");
    map = open(map, "a", 3);
    assertEquals(refuse(map, late).code, "stale", what);
    assertEquals(state(all(map, taken(map, "a"))), "a: s; b: s; c: s; d: ", what);
    // Or it is given up, and the others do not wait for the next holder.
    map = all(begun, ...commands, abort(begun, "a"));
    assertEquals(state(map), "a: s(aborted); b: s(aborted); c: ; d: ", what);
    map = open(map, "a", 3);
    assertEquals(state(all(map, taken(map, "a"))), "a: ; b: s(aborted); c: ; d: ", what);
  }
});

Deno.test("a disk that is deleted is not waited for by the others", () => {
  const begun = together();
  const remove = (name: string, trashedMs?: number) =>
    ({ kind: "delete-disk", name, ...trashedMs === undefined ? {} : { trashedMs } }) as const;
  for (const trashedMs of [undefined, 5]) {
    // The last that was waited for.
    const one = all(begun, taken(begun, "b"));
    const applied = step(one, remove("a", trashedMs));
    assertEquals(state(applied.map), "b: s; c: s; d: ", `${trashedMs}`);
    assertEquals(kinds(applied).split(", ").slice(0, 3), [
      "disk-removed",
      "snapshots-changed",
      "snapshots-changed",
    ]);
    // One of two: the other is still waited for.
    const two = all(begun, remove("a", trashedMs));
    assertEquals(state(two), "b: s(open); c: s(drained); d: ");
    assertEquals(state(all(two, taken(two, "b"))), "b: s; c: s; d: ");
    // One that had drained.
    const three = all(begun, remove("c", trashedMs));
    assertEquals(state(three), "a: s(open); b: s(open); d: ");
    assertEquals(
      state(all(three, taken(three, "a"), taken(three, "b"))),
      "a: s; b: s; d: ",
    );
    // All of them, one after the other.
    const none = all(begun, remove("a", trashedMs), remove("b", trashedMs), remove("c", trashedMs));
    assertEquals(state(none), "d: ");
  }
});

Deno.test("a disk in the trash takes no snapshot, and comes back as one that can be used", () => {
  const begun = together();
  let map = all(
    begun,
    { kind: "delete-disk", name: "a", trashedMs: 5 },
    { kind: "delete-disk", name: "c", trashedMs: 5 },
  );
  // Nothing is on its way to "c"; what is on its way to "a" is waited for when somebody has it again.
  assertEquals([shown(inTrash(map, 1)), shown(inTrash(map, 3))], ["s(aborted)", ""]);
  map = absorbAll(map);
  assertEquals(tree(map), "1 2 4 5<1 6<2 7");
  map = all(
    map,
    { kind: "restore-disk", id: 1, name: "a" },
    { kind: "restore-disk", id: 3, name: "c" },
  );
  assertEquals(state(map), "a: s(aborted); b: s(open); c: ; d: ");
  // It is no part of those that are still being taken.
  assertEquals(state(all(map, taken(map, "b"))), "a: s(aborted); b: s; c: ; d: ");
  map = open(map, "a", 3);
  map = all(map, taken(map, "a"));
  assertEquals(state(map), "a: ; b: s(open); c: ; d: ");
  map = all(map, taken(map, "b"));
  assertEquals(state(map), "a: ; b: s; c: ; d: ");
  assertEquals(state(snapped(all(map, release(map, "a")), "t", "a", "c")), "a: t; b: s; c: t; d: ");
});

Deno.test("one that was given up and comes back does not complete those that are waited for", () => {
  // "a" is trashed and restored before "b" has drained: its draining says nothing about "b".
  const begun = together();
  let map = all(
    begun,
    { kind: "delete-disk", name: "a", trashedMs: 5 },
    { kind: "restore-disk", id: 1, name: "a" },
  );
  map = open(map, "a", 1);
  map = all(map, release(map, "a"));
  assertEquals(state(map), "a: ; b: s(open); c: s(drained); d: ");
});

Deno.test("other commands leave a snapshot that is being taken alone", () => {
  let map = together();
  map = all(
    map,
    { kind: "rename-disk", name: "a", newName: "z" },
    { kind: "resize-disk", name: "b", sizeBytes: 2 * GIB },
    { kind: "change-disk", name: "b", limits: [5, 0, 0, 0, 0], attributes: { a: "b" } },
    scheduleOf({ disk: "b" }),
  );
  assertEquals(state(map), "b: s(open); c: s(drained); d: ; z: s(open)");
  map = all(map, taken(map, "z"), taken(map, "b"));
  assertEquals(state(map), "b: s; c: s; d: ; z: s");
  assertEquals(disk(map, "b").snapshots[0].sizeBytes, GIB);
});

Deno.test("a snapshot keeps its name until it is given up: then another one may have it", () => {
  let map = snapped(open(clusterAtLevelTwo(2, "web"), "web"), "old", "web");
  map = all(map, taken(map, "web"));
  map = snapped(map, "s", "web");
  map = all(map, abort(map, "web"));
  map = all(map, { kind: "change-snapshot", disk: "web", name: "old", newName: "s" });
  assertEquals(shown(disk(map, "web")), "s s(aborted)");
  assertEquals(findSnapshot(disk(map, "web"), "s")?.layer, 1);
  assertEquals(shown(disk(all(map, taken(map, "web")), "web")), "s");
});

Deno.test("a removed node is not waited for by what is being absorbed", () => {
  let map = clusterAtLevelTwo(3, "web");
  for (const name of ["a", "b"]) map = snapped(map, name, "web");
  map = all(map, { kind: "delete-snapshot", disk: "web", name: "b" });
  for (const node of [1, 2]) {
    map = all(map, { kind: "absorbed", node, incarnation: 1, layers: [2] });
  }
  assertEquals(tree(map), "1 2<1*1+2 3<2");
  map = all(
    open(map, "web", 3),
    { kind: "set-voters", voters: [1, 2] },
    { kind: "node-down", node: 3, incarnation: 1, nowMs: 1 },
  );
  const removed = step(map, {
    kind: "remove-node",
    node: 3,
    force: true,
    acceptLoss: true,
    nowMs: 1,
  });
  assertEquals(removed.effects.some((each) => each.kind === "layer-dropped"), true);
  assertEquals([tree(removed.map), chains(removed.map)], ["1 3<1", { web: "3 1" }]);
});
