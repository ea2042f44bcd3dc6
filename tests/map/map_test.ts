/**
 * The cluster map: each command and its errors, and random histories against a naive oracle.
 *
 * @module
 */
import { assert, assertEquals, assertStringIncludes } from "@std/assert/mod.js";
import { DISK_BYTES_MAX } from "../../agent/base/limits.ts";
import { Prng } from "../../agent/base/prng.ts";
import {
  type ControlError,
  type ControlErrorCode,
  ControlFailure,
  unwrap,
} from "../../agent/map/errors.ts";
import {
  type Applied,
  apply,
  ATTRIBUTES_MAX,
  checkMap,
  type ClusterMap,
  commandLevel,
  COPIES_MAX,
  type DiskCommand,
  type DiskEntry,
  DISKS_MAX,
  EMPTY_MAP,
  findDisk,
  foundCluster,
  ID_MAX,
  type LayerEntry,
  type MapCommand,
  type SnapshotEntry,
  type TrashEntry,
} from "../../agent/map/map.ts";
import { clusterAtLevelTwo, clusterWithDisk } from "./cluster.ts";

const GIB = 1024 ** 3;

function run(map: ClusterMap, command: MapCommand): Applied {
  return unwrap(apply(map, command));
}

function refuse(map: ClusterMap, command: MapCommand): ControlError {
  const result = apply(map, command);
  if (result.ok) throw new Error(`${JSON.stringify(command)} was not refused`);
  return result.error;
}

function mapWith(...names: string[]): ClusterMap {
  return withDisks(EMPTY_MAP, ...names);
}

function withDisks(map: ClusterMap, ...names: string[]): ClusterMap {
  return names.reduce(
    (map, name) => run(map, { kind: "create-disk", name, sizeBytes: GIB, nowMs: 5 }).map,
    map,
  );
}

/** The map of a cluster of one. */
const ALONE = unwrap(foundCluster({
  clusterId: "c".repeat(32),
  uuid: "a".repeat(32),
  name: "host",
  address: "192.0.2.1:7460",
  zone: "",
  capacityBytes: 1e12,
  witness: false,
  version: "1.0.0",
  protocol: 1,
  bootId: "boot",
  nowMs: 0,
}));

/** Takes a lease as that one. */
function takeLease(id: number): MapCommand {
  return { kind: "take-lease", id, node: 1, incarnation: 1 };
}

Deno.test("a disk that is open only grows", () => {
  const open = run(
    { ...clusterWithDisk(1, 1), level: 2 },
    { kind: "take-lease", id: 1, node: 1, incarnation: 1 },
  ).map;
  const { name, sizeBytes, generation } = open.disks[0];
  const shrink = { kind: "resize-disk", name, sizeBytes: sizeBytes - 512, shrink: true } as const;
  const error = refuse(open, shrink);
  assertEquals([error.code, /in use on node/.test(error.message)], ["busy", true]);
  const grown = run(open, { kind: "resize-disk", name, sizeBytes: sizeBytes + 512 }).map;
  assertEquals(grown.disks[0].sizeBytes, sizeBytes + 512);
  const closed = run(open, { kind: "release-lease", id: 1, node: 1, generation }).map;
  assertEquals(run(closed, shrink).map.disks[0].sizeBytes, sizeBytes - 512);
  // All nodes of a cluster have to agree on it.
  assertEquals(run({ ...open, level: 1 }, shrink).map.disks[0].sizeBytes, sizeBytes - 512);
});

Deno.test("a disk looks for zeros from the start when it is made so, and is the same disk otherwise", () => {
  const command = { kind: "create-disk", name: "web", sizeBytes: GIB, nowMs: 5 } as const;
  const [plain] = run(EMPTY_MAP, command).map.disks;
  const [disk] = run(EMPTY_MAP, { ...command, detectZeroes: true }).map.disks;
  assertEquals([plain.detectZeroes, disk], [false, { ...plain, detectZeroes: true }]);
  assertEquals(commandLevel(command), 1);
  assertEquals(commandLevel({ ...command, detectZeroes: true }), 2);
});

Deno.test("create-disk gives ids in order and sorts by name", () => {
  const map = mapWith("web", "db", "a");
  assertEquals(map.disks.map(({ name, id, layers }) => [name, id, layers]), [
    ["a", 3, [3]],
    ["db", 2, [2]],
    ["web", 1, [1]],
  ]);
  assertEquals([map.epoch, map.nextDisk, map.nextLayer], [3, 4, 4]);
  const { effects } = run(map, { kind: "create-disk", name: "x", sizeBytes: 512, nowMs: 0 });
  assertEquals(effects.map((effect) => effect.kind), ["layer-created", "disk-added"]);
});

Deno.test("ids are never used twice, whatever is deleted", () => {
  let map = mapWith("web");
  map = run(map, { kind: "delete-disk", name: "web" }).map;
  map = run(map, { kind: "create-disk", name: "web", sizeBytes: GIB, nowMs: 0 }).map;
  assertEquals([map.disks[0].id, map.disks[0].layers], [2, [2]]);
});

Deno.test("delete-disk names what there is to drop", () => {
  const map = mapWith("web", "db");
  const { map: next, effects } = run(map, { kind: "delete-disk", name: "web" });
  assertEquals(next.disks.map((disk) => disk.name), ["db"]);
  assertEquals(effects, [
    { kind: "disk-removed", disk: findDisk(map, "web")! },
    { kind: "layer-dropped", layer: 1 },
  ]);
});

Deno.test("resize-disk grows freely, shrinks on demand, and says what was", () => {
  const map = mapWith("web");
  const grown = run(map, { kind: "resize-disk", name: "web", sizeBytes: 2 * GIB });
  assertEquals(grown.map.disks[0].sizeBytes, 2 * GIB);
  assertEquals(grown.effects, [
    { kind: "disk-resized", disk: grown.map.disks[0], previousBytes: GIB },
  ]);
  assertEquals(refuse(map, { kind: "resize-disk", name: "web", sizeBytes: 512 }).code, "invalid");
  const shrunk = run(map, { kind: "resize-disk", name: "web", sizeBytes: 512, shrink: true });
  assertEquals(shrunk.map.disks[0].sizeBytes, 512);
});

Deno.test("rename-disk keeps everything but the name, and the order", () => {
  const map = mapWith("a", "m", "z");
  const { map: next, effects } = run(map, { kind: "rename-disk", name: "a", newName: "y" });
  assertEquals(next.disks.map((disk) => disk.name), ["m", "y", "z"]);
  assertEquals(findDisk(next, "y"), { ...findDisk(map, "a")!, name: "y" });
  assertEquals(effects[0].kind, "disk-renamed");
  assertEquals(refuse(map, { kind: "rename-disk", name: "a", newName: "z" }).code, "exists");
});

Deno.test("delete-disk that names a disk's id leaves another one that has got its name", () => {
  const map = clusterWithDisk(1, 1);
  const [{ id }] = map.disks;
  assertEquals(refuse(map, { kind: "delete-disk", name: "web", id: id + 1 }).code, "stale");
  assertEquals(run(map, { kind: "delete-disk", name: "web", id }).map.disks, []);
});

Deno.test("take-lease that was decided for another generation is stale", () => {
  const map = clusterWithDisk(1, 1);
  const [{ id, generation }] = map.disks;
  const take = { kind: "take-lease" as const, id, node: 1, incarnation: 1 };
  assertEquals(refuse(map, { ...take, generation: generation + 1 }).code, "stale");
  const taken = run(map, { ...take, generation }).map;
  assertEquals(taken.disks[0].generation, generation + 1);
  assertEquals(refuse(taken, { ...take, generation }).code, "stale", "it is sent twice");
});

Deno.test("take-lease raises the generation by one, until there are no more", () => {
  let map = withDisks(ALONE, "web");
  map = run(map, takeLease(1)).map;
  map = run(map, takeLease(1)).map;
  assertEquals(map.disks[0].generation, 2);
  const worn = { ...map, disks: [{ ...map.disks[0], generation: ID_MAX }] };
  assertEquals(refuse(worn, takeLease(1)).code, "limit");
});

Deno.test("a command that changes nothing leaves the very same map", () => {
  const map = mapWith("web");
  const commands: MapCommand[] = [
    { kind: "resize-disk", name: "web", sizeBytes: GIB },
    { kind: "rename-disk", name: "web", newName: "web" },
    { kind: "change-disk", name: "web" },
    { kind: "change-disk", name: "web", readOnly: false, copies: 3, attributes: {} },
    { kind: "change-settings" },
    { kind: "change-settings", copies: 3 },
  ];
  for (const command of commands) {
    const { map: next, effects } = run(map, command);
    assert(next === map, JSON.stringify(command));
    assertEquals(effects, []);
  }
});

Deno.test("settings are what a disk gets that does not say", () => {
  const { map } = run(EMPTY_MAP, { kind: "change-settings", copies: 2 });
  const { map: next } = run(map, { kind: "create-disk", name: "web", sizeBytes: 512, nowMs: 0 });
  assertEquals(next.disks[0].copies, 2);
});

Deno.test("every command refuses what does not fit, with its code", () => {
  const create = { kind: "create-disk", name: "x", sizeBytes: GIB, nowMs: 0 } as const;
  const many = Object.fromEntries(
    Array.from({ length: ATTRIBUTES_MAX + 1 }, (_, index) => [`k${index}`, ""]),
  );
  const cases: [ControlErrorCode, MapCommand][] = [
    ["exists", { ...create, name: "web" }],
    ["invalid", { ...create, name: "a/b" }],
    ["invalid", { ...create, sizeBytes: 0 }],
    ["invalid", { ...create, sizeBytes: 511 }],
    ["invalid", { ...create, sizeBytes: 513 }],
    ["invalid", { ...create, sizeBytes: -512 }],
    ["invalid", { ...create, sizeBytes: NaN }],
    ["invalid", { ...create, sizeBytes: Infinity }],
    ["invalid", { ...create, sizeBytes: DISK_BYTES_MAX + 512 }],
    ["invalid", { ...create, copies: 0 }],
    ["invalid", { ...create, copies: COPIES_MAX + 1 }],
    ["invalid", { ...create, copies: 1.5 }],
    ["invalid", { ...create, nowMs: -1 }],
    ["invalid", { ...create, nowMs: 0.5 }],
    ["invalid", { ...create, attributes: many }],
    ["invalid", { ...create, attributes: { "a b": "" } }],
    ["invalid", { ...create, attributes: { "": "" } }],
    ["invalid", { ...create, attributes: { ["k".repeat(64)]: "" } }],
    ["invalid", { ...create, attributes: { a: "v".repeat(256) } }],
    ["invalid", { ...create, attributes: { a: "\ud800" } }],
    ["missing", { kind: "delete-disk", name: "none" }],
    ["missing", { kind: "delete-disk", name: "__proto__" }],
    ["missing", { kind: "resize-disk", name: "none", sizeBytes: GIB }],
    ["invalid", { kind: "resize-disk", name: "web", sizeBytes: 100 }],
    ["invalid", { kind: "resize-disk", name: "web", sizeBytes: 0, shrink: true }],
    ["missing", { kind: "rename-disk", name: "none", newName: "x" }],
    ["invalid", { kind: "rename-disk", name: "web", newName: "agent" }],
    ["missing", { kind: "change-disk", name: "none", readOnly: true }],
    ["invalid", { kind: "change-disk", name: "web", copies: -1 }],
    ["invalid", { kind: "change-disk", name: "web", attributes: many }],
    ["missing", takeLease(2)],
    ["missing", takeLease(0)],
    ["invalid", { kind: "change-settings", copies: 0 }],
  ];
  const map = mapWith("web");
  for (const [code, command] of cases) {
    assertEquals(refuse(map, command).code, code, JSON.stringify(command));
  }
  const largest = { ...create, sizeBytes: DISK_BYTES_MAX };
  assertEquals(run(map, largest).map.disks.length, 2);
});

Deno.test("the map has bounds", () => {
  const create = { kind: "create-disk", name: "x", sizeBytes: 512, nowMs: 0 } as const;
  const names = Array.from({ length: DISKS_MAX }, (_, index) => `d${index}`);
  assertEquals(refuse(mapWith(...names), create).code, "limit");
  assertEquals(run(mapWith(...names.slice(1)), create).map.disks.length, DISKS_MAX);
  assertEquals(refuse({ ...EMPTY_MAP, nextDisk: ID_MAX + 1 }, create).code, "limit");
  assertEquals(refuse({ ...EMPTY_MAP, nextLayer: ID_MAX + 1 }, create).code, "limit");
  const last = run({ ...EMPTY_MAP, nextDisk: ID_MAX, nextLayer: ID_MAX }, create).map;
  assertEquals(checkMap(last), null);
});

Deno.test("checkMap() sees every invariant that is broken", () => {
  const map = mapWith("a", "b");
  const [a, b] = map.disks;
  const cases: [string, ClusterMap][] = [
    ["epoch", { ...map, epoch: -1 }],
    ["next disk", { ...map, nextDisk: 0 }],
    ["next layer", { ...map, nextLayer: ID_MAX + 2 }],
    ["copies", { ...map, settings: { ...map.settings, copies: 0 } }],
    ["out of order", { ...map, disks: [b, a] }],
    ["there twice", { ...map, disks: [a, a] }],
    ["disk id 1 is there twice", { ...map, disks: [a, { ...b, id: 1 }] }],
    ["its layers are 2, 1", { ...map, disks: [a, { ...b, layers: [2, 1] }] }],
    ["layer 1 is the newest of two", { ...map, disks: [a, { ...b, layers: [1] }] }],
    ["its id is 3", { ...map, disks: [{ ...a, id: 3 }] }],
    ["its layers are 1, 9", { ...map, disks: [{ ...a, layers: [1, 9] }] }],
    ["its layers are 9", { ...map, disks: [{ ...a, layers: [9] }, b] }],
    ["0 layers", { ...map, disks: [{ ...a, layers: [] }] }],
    ["generation", { ...map, disks: [{ ...a, generation: 0.5 }] }],
    ["multiple of 512", { ...map, disks: [{ ...a, sizeBytes: 1000 }] }],
    ["cannot be the name", { ...map, disks: [{ ...a, name: "../a" }] }],
    ["attribute", { ...map, disks: [{ ...a, attributes: { "/": "" } }] }],
  ];
  assertEquals(checkMap(map), null);
  for (const [part, broken] of cases) {
    const error = checkMap(broken);
    assertEquals(error?.code, "corrupt", part);
    assertStringIncludes(error!.message, part);
  }
});

Deno.test("checkMap() sees every invariant of layers, snapshots, the trash and schedules that is broken", () => {
  // "a" (disk 1) is read through 6, 3, 1, of which 3 is absorbed into 6; "b" is open, "c" is closed, and a snapshot of both is being taken.
  let map = clusterAtLevelTwo(2, "a", "b");
  const snapshot = (name: string, ...disks: number[]) =>
    run(map, { kind: "create-snapshots", disks, name, nowMs: 1 }).map;
  map = snapshot("s", 1);
  map = run(map, { kind: "create-disk", name: "c", sizeBytes: 512, nowMs: 0, copies: 2 }).map;
  map = snapshot("t", 1);
  map = run(map, { kind: "delete-snapshot", disk: "a", name: "t" }).map;
  map = run(map, { kind: "take-lease", id: 2, node: 1, incarnation: 1 }).map;
  map = snapshot("u", 2, 3);
  map = run(map, { kind: "clone-disk", disk: "a", snapshot: "s", name: "d", nowMs: 0 }).map;
  map = run(map, { kind: "delete-disk", name: "d", trashedMs: 5 }).map;
  const daily = { name: "daily", everyMs: 86_400_000, keep: 7, createdMs: 1 };
  const schedule = { ...daily, keepDaily: 0, keepWeekly: 0, keepMonthly: 0 };
  assertEquals(checkMap(map), null);
  const shown = map.layers.map(({ id, parent, absorbedBy }) =>
    `${id}<${parent}${absorbedBy === null ? "" : "*"}`
  );
  assertEquals(shown.join(" "), "1<0 2<0 3<1* 4<0 5<3 6<2 7<4 8<1");
  const [a, b, c] = map.disks;
  const [d] = map.trash;
  const [s] = a.snapshots;
  const [u] = b.snapshots;
  const layer = (id: number, change: Partial<LayerEntry>): ClusterMap => ({
    ...map,
    layers: map.layers.map((each) => each.id === id ? { ...each, ...change } : each),
  });
  const more = (...layers: LayerEntry[]): ClusterMap => ({
    ...map,
    nextLayer: 99,
    layers: [...map.layers, ...layers],
  });
  const diskA = (change: Partial<DiskEntry>): ClusterMap => ({
    ...map,
    disks: [{ ...a, ...change }, b, c],
  });
  const diskB = (change: Partial<DiskEntry>): ClusterMap => ({
    ...map,
    disks: [a, { ...b, ...change }, c],
  });
  const first = (change: Partial<SnapshotEntry>) => diskA({ snapshots: [{ ...s, ...change }] });
  const trash = (...entries: TrashEntry[]): ClusterMap => ({ ...map, trash: entries });
  const limits = (change: Partial<DiskEntry["limits"]>) =>
    diskA({ limits: { ...a.limits, ...change } });
  const single = { id: 50, parent: 0, absorbedBy: null };
  const many = (length: number) => Array.from({ length }, (_, index) => index + 1);
  const cases: [string, ClusterMap][] = [
    ["layer 8 was never given", { ...map, nextLayer: 8 }],
    ["layer 0.5 was never given", layer(2, { id: 0.5 })],
    ["layer 1 is out of order", { ...map, layers: [map.layers[0], ...map.layers] }],
    ["layer 1 is out of order", { ...map, layers: map.layers.toReversed().slice(-2) }],
    ["layer 6 lies above 9", layer(6, { parent: 9 })],
    ["layer 6 lies above 7, which is unknown", layer(6, { parent: 7 })],
    ["layer 6 lies above 6, which is unknown", layer(6, { parent: 6 })],
    ["layer 6 lies above -1", layer(6, { parent: -1 })],
    ["layer 3: who has absorbed it", layer(3, { absorbedBy: [2, 1] })],
    ["layer 3: who has absorbed it", layer(3, { absorbedBy: [1, 1] })],
    ["layer 3: who has absorbed it", layer(3, { absorbedBy: [3] })],
    ["layer 3: who has absorbed it", layer(3, { absorbedBy: [0] })],
    ["layer 7 is being absorbed, and has 0 children", layer(7, { absorbedBy: [] })],
    ["layer 1 is being absorbed, and has 2 children", layer(1, { absorbedBy: [] })],
    ["layer 2 is needed, and being absorbed", layer(2, { absorbedBy: [] })],
    ["layer 3 is absorbed into one that is, too", {
      ...more(),
      layers: [...layer(5, { absorbedBy: [] }).layers, { ...single, parent: 5 }],
    }],
    ["layer 50 is nobody's", more(single)],
    ["layer 3 is not needed, nor absorbed", layer(3, { absorbedBy: null })],
    ["its layers are 5, 1", diskA({ layers: [5, 1] })],
    ["its layers are 5, 3", diskA({ layers: [5, 3] })],
    ["its layers are 5, 3, 1, 2", diskA({ layers: [5, 3, 1, 2] })],
    ["its layers are 5, 3, 1, 0", diskA({ layers: [5, 3, 1, 0] })],
    ["it has 2049 layers", diskA({ layers: many(2049) })],
    ["others lie above layer 1", diskA({ layers: [1], snapshots: [] })],
    ["layer 5 is the newest of two", first({ layer: 5 })],
    ["layer 6 is the newest of two", first({ layer: 6 })],
    ["layer 9 of a snapshot of disk a is unknown", first({ layer: 9 })],
    ["layer 6 is of families 1 and 2", {
      ...more({ ...single, parent: 2 }),
      disks: [{ ...a, snapshots: [s, { ...s, name: "x", layer: 50 }] }, b, c],
    }],
    ["layer 8 is of families 1 and 7", {
      ...map,
      nextDisk: 9,
      disks: [a, b, c],
      trash: [{ ...d, disk: { ...d.disk, family: 7 } }],
    }],
    ["cannot be the name of a snapshot", first({ name: "a/b" })],
    ["its snapshot s is there twice", diskA({ snapshots: [s, { ...s, layer: 8 }] })],
    ["multiple of 512", first({ sizeBytes: 1000 })],
    ["time in whole milliseconds", first({ createdMs: -1 })],
    ["is taken in epoch", first({ taking: map.epoch + 1, isDrained: false })],
    ["is taken in epoch", first({ taking: 0.5 })],
    ["snapshot s is being taken, and not the newest", first({ taking: 3 })],
    [
      "snapshot u is being taken, and not the newest",
      diskB({ snapshots: [u, { ...u, name: "v", layer: 5 }] }),
    ],
    ["snapshot s is complete and is not", first({ isDrained: false })],
    ["snapshot s is complete and is not", first({ isAborted: true })],
    [
      "snapshot u was given up and is still there",
      diskB({ snapshots: [{ ...u, isDrained: true, isAborted: true }] }),
    ],
    ["wait for nobody", diskB({ snapshots: [{ ...u, isAborted: true }] })],
    ["wait for nobody", diskB({ snapshots: [{ ...u, isDrained: true }] })],
    [
      "it has 1025 snapshots",
      diskA({ snapshots: many(1025).map((index) => ({ ...s, name: `s${index}` })) }),
    ],
    ["it has 9 schedules", diskA({ schedules: many(9).map(() => schedule) })],
    ["schedule daily is out of order", diskA({ schedules: [schedule, schedule] })],
    ["a snapshot every 5 ms", diskA({ schedules: [{ ...schedule, everyMs: 5 }] })],
    ["cannot keep 0 snapshots", diskA({ schedules: [{ ...schedule, keep: 0 }] })],
    ["cannot be a limit", limits({ iops: -1 })],
    ["bursts need a length", limits({ iops: 5, burstIops: 6 })],
    ["bursts of 5 for each second", limits({ burstIops: 5, burstSeconds: 1 })],
    ["disk 4 in the trash is out of order", trash(d, d)],
    ["disk id 1 is there twice", trash({ ...d, disk: { ...d.disk, id: 1 } })],
    ["disk 4 in the trash: -1 is not a time", trash({ ...d, deletedMs: -1 })],
    ["disk 4 in the trash: 0.5 is not a time", trash({ ...d, expiresMs: 0.5 })],
    [
      "disk 4 in the trash is open",
      trash({ ...d, disk: { ...d.disk, lease: { node: 1, incarnation: 1 } } }),
    ],
    [
      "a snapshot of disk 2 in the trash is being taken",
      { ...map, disks: [a, c], trash: [{ ...d, disk: { ...b, lease: null } }, d] },
    ],
    ["layer 8 is nobody's", trash()],
    ["family 1 has 2 and 1 copies", trash({ ...d, disk: { ...d.disk, copies: 1 } })],
    ["stay in the trash for -1 ms", { ...map, settings: { ...map.settings, trashMs: -1 } }],
    ["it has 4097 disks", { ...map, disks: many(4097).map(() => a) }],
    ["there are 4097 disks in the trash", trash(...many(4097).map(() => d))],
    ["it has 32769 layers", { ...map, layers: many(32_769).map((id) => ({ ...single, id })) }],
  ];
  for (const [part, broken] of cases) {
    const error = checkMap(broken);
    assertEquals(error?.code, "corrupt", part);
    assertStringIncludes(error!.message, part);
  }
});

/** What a disk is to somebody who keeps no sorted lists and shares nothing. */
interface OracleDisk {
  id: number;
  sizeBytes: number;
  readOnly: boolean;
  generation: number;
}

/** Applies a command to a plain Map; the code of the error, or null. */
function oracleApply(
  disks: Map<string, OracleDisk>,
  made: { count: number },
  command: DiskCommand,
): ControlErrorCode | null {
  if (command.kind === "take-lease") {
    const disk = [...disks.values()].find((each) => each.id === command.id);
    if (disk === undefined) return "missing";
    disk.generation++;
    return null;
  }
  if (!("name" in command) || command.kind === "set-copies") return null;
  const disk = disks.get(command.name);
  if (command.kind === "create-disk") {
    if (disk !== undefined) return "exists";
    const { name, sizeBytes, readOnly = false } = command;
    disks.set(name, { id: ++made.count, sizeBytes, readOnly, generation: 0 });
    return null;
  }
  if (disk === undefined) return "missing";
  if (command.kind === "delete-disk") disks.delete(command.name);
  else if (command.kind === "change-disk") disk.readOnly = command.readOnly ?? disk.readOnly;
  else if (command.kind === "resize-disk") {
    if (command.sizeBytes < disk.sizeBytes && !command.shrink) return "invalid";
    disk.sizeBytes = command.sizeBytes;
  } else if (command.newName !== command.name) {
    if (disks.has(command.newName)) return "exists";
    disks.delete(command.name);
    disks.set(command.newName, disk);
  }
  return null;
}

function randomCommand(random: Prng): DiskCommand {
  const name = `d${random.below(12)}`;
  const sizeBytes = 512 * (1 + random.below(8));
  const readOnly = random.below(2) === 0;
  switch (random.below(7)) {
    case 0:
    case 1:
      return { kind: "create-disk", name, sizeBytes, readOnly, nowMs: random.u32() };
    case 2:
      return { kind: "delete-disk", name };
    case 3:
      return { kind: "resize-disk", name, sizeBytes, shrink: readOnly };
    case 4:
      return { kind: "rename-disk", name, newName: `d${random.below(12)}` };
    case 5:
      return { kind: "change-disk", name, readOnly };
    default:
      return { kind: "take-lease", id: 1 + random.below(40), node: 1, incarnation: 1 };
  }
}

/** Throws when somebody writes to the map. */
function freeze(map: ClusterMap): ClusterMap {
  for (const disk of map.disks) {
    Object.freeze(disk.layers);
    Object.freeze(disk.attributes);
    Object.freeze(disk);
  }
  Object.freeze(map.disks);
  return Object.freeze(map);
}

Deno.test("random histories are those of a plain Map", () => {
  for (let seed = 1; seed <= 40; seed++) {
    const random = new Prng(seed);
    const oracle = new Map<string, OracleDisk>();
    const made = { count: 0 };
    let map = freeze(ALONE);
    for (let step = 0; step < 250; step++) {
      const command = randomCommand(random);
      const expected = oracleApply(oracle, made, command);
      const result = apply(map, command);
      const what = `seed ${seed} step ${step} ${JSON.stringify(command)}`;
      assertEquals(result.ok ? null : result.error.code, expected, what);
      if (!result.ok) continue;
      const { map: next, effects } = result.value;
      assertEquals(next.epoch - map.epoch, next === map ? 0 : 1, what);
      assertEquals(effects.length > 0, next !== map, what);
      map = freeze(next);
      assertEquals(checkMap(map), null, what);
      const seen = map.disks.map(({ name, id, sizeBytes, readOnly, generation }) =>
        [name, { id, sizeBytes, readOnly, generation }] as const
      );
      assertEquals(new Map(seen), oracle, what);
      for (const [name, { id }] of oracle) assertEquals(findDisk(map, name)?.id, id, what);
    }
    assertEquals(findDisk(map, "never"), undefined);
  }
});

Deno.test("unwrap() throws what went wrong", () => {
  try {
    unwrap(apply(EMPTY_MAP, { kind: "delete-disk", name: "web" }));
  } catch (error) {
    assert(error instanceof ControlFailure);
    assertEquals((error as ControlFailure).error.code, "missing");
    return;
  }
  throw new Error("it did not throw");
});
