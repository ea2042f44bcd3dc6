/**
 * The map as bytes: a golden file per version, and nothing that damage could slip through.
 *
 * @module
 */
import { assert, assertEquals, assertStringIncludes } from "@std/assert/mod.js";
import { Packr } from "msgpackr";
import { Prng } from "../../agent/base/prng.ts";
import { unwrap } from "../../agent/map/errors.ts";
import { decodeGroups, encodeGroups } from "../../agent/map/groups_codec.ts";
import {
  adopt,
  apply,
  checkMap,
  type ClusterMap,
  DISKS_MAX,
  drainingLayer,
  EMPTY_MAP,
  findDisk,
  findNode,
  LAYERS_MAX,
  MAP_BYTES_MAX,
  type MapCommand,
  SNAPSHOTS_MAX,
  takingOf,
  TRASH_MAX,
  UNWRITTEN,
  ZONES_MAX,
  zonesOf,
} from "../../agent/map/map.ts";
import { decodeMap, encodeMap, MAP_VERSION } from "../../agent/map/map_codec.ts";
import {
  addNode,
  atLevelTwo,
  clusterAtLevelTwo,
  clusterOf,
  clusterWithDisk,
  nodeUp,
  runAll,
  setTargets,
} from "./cluster.ts";

/** The map that the golden file of version 1 holds, but for its lease. */
const COMMANDS_V1: MapCommand[] = [
  {
    kind: "create-disk",
    name: "web",
    sizeBytes: 20 * 1024 ** 3,
    nowMs: 1_700_000_000_000,
    copies: 1,
    attributes: { owner: "anna", b: "ü" },
  },
  {
    kind: "create-disk",
    name: "db",
    sizeBytes: 4 * 1024 ** 5,
    nowMs: 0,
    readOnly: true,
    copies: 3,
  },
  { kind: "change-settings", copies: 1 },
  { kind: "create-disk", name: "x", sizeBytes: 512, nowMs: 1 },
  { kind: "delete-disk", name: "x" },
];

/** The map that the golden file of version 4 holds: that of version 2, once all nodes speak level 2, and what came with that. */
function mapV4(): ClusterMap {
  const before = mapV2();
  let map = runAll(
    before,
    ...before.nodes.map(({ id }) => nodeUp(id, { protocolMin: 1, protocol: 2 + id % 3 })),
    { kind: "raise-level", level: 2 },
    nodeUp(3, { protocolMin: 2, protocol: 3 }),
    ...["base", "app", "log", "old"].map((name) =>
      ({ kind: "create-disk", name, sizeBytes: 2 ** 30, nowMs: 8 }) as const
    ),
  );
  const idOf = (name: string) => findDisk(map, name)!.id;
  const snapshot = (name: string, ...disks: string[]) => {
    map = runAll(map, { kind: "create-snapshots", disks: disks.map(idOf), name, nowMs: 1.7e12 });
  };
  const open = (name: string, node: number) => {
    const { incarnation } = findNode(map, node)!;
    map = runAll(map, { kind: "take-lease", id: idOf(name), node, incarnation });
  };
  for (const name of ["monday", "tuesday", "wednesday"]) snapshot(name, "base");
  const schedule = { kind: "set-schedule", disk: "base", keepWeekly: 4, keepMonthly: 12 } as const;
  map = runAll(
    map,
    {
      kind: "clone-disk",
      disk: "base",
      snapshot: "monday",
      name: "clone",
      nowMs: 1.7e12 + 1,
      readOnly: true,
      attributes: { of: "base" },
    },
    {
      kind: "change-snapshot",
      disk: "base",
      name: "monday",
      newName: "gold",
      isProtected: true,
    },
    { kind: "delete-snapshot", disk: "base", name: "tuesday" },
    { kind: "change-disk", name: "base", limits: [500, 0, 1000, 0, 30], detectZeroes: true },
    { ...schedule, name: "hourly", everyMs: 3_600_000, keep: 24, keepDaily: 7, nowMs: 9 },
    { ...schedule, name: "five", everyMs: 300_000, keep: 12, keepDaily: 0, nowMs: 10 },
    { kind: "change-settings", trashMs: 3_600_000 },
  );
  const absorbed = map.layers.filter(({ absorbedBy }) => absorbedBy !== null).map(({ id }) => id);
  for (const node of [3, 1]) {
    const { incarnation } = findNode(map, node)!;
    map = runAll(map, { kind: "absorbed", node, incarnation, layers: absorbed });
  }
  open("app", 1);
  open("log", 2);
  snapshot("together", "base", "app", "log");
  map = runAll(map, {
    kind: "snapshot-taken",
    id: idOf("app"),
    layer: drainingLayer(findDisk(map, "app")!),
    generation: 1,
  });
  open("clone", 3);
  snapshot("never", "clone");
  snapshot("s", "db");
  return runAll(
    map,
    { kind: "abort-snapshots", taking: takingOf(findDisk(map, "clone")!)!.taking },
    { kind: "rollback-disk", disk: "db", snapshot: "s", nowMs: 1.7e12 + 2 },
    { kind: "delete-disk", name: "old", trashedMs: 1.7e12 + 3 },
  );
}

/** The same as it was before the map knew who has written a disk. */
function withoutWritten(map: ClusterMap): ClusterMap {
  return { ...map, disks: map.disks.map((disk) => ({ ...disk, written: UNWRITTEN })) };
}

/** The map that the golden file of version 2 holds: something of everything. */
function mapV2(): ClusterMap {
  let map = runAll(
    clusterOf(5),
    addNode(6, { witness: true, zone: "rack-1", bootId: "" }),
    ...COMMANDS_V1,
    { kind: "take-lease", id: 1, node: 2, incarnation: 1 },
    { kind: "set-weight", node: 3, weight: 0.5 },
    { kind: "set-availability", node: 4, availability: "draining" },
    { kind: "set-voters", voters: [1, 2, 6] },
    { kind: "change-settings", trustedNetwork: true, copiesMin: 1 },
    { kind: "change-disk", name: "db", copiesMin: 2 },
    { kind: "node-down", node: 5, incarnation: 1, nowMs: 1_700_000_000_001 },
    { kind: "remove-node", node: 5, nowMs: 7, force: true, acceptLoss: true },
    nodeUp(1, { bootId: "b" }),
  );
  map = runAll(map, setTargets(map, 3, [0, [2, 4]], [9, [3, 4, 2]]));
  const groups = { pool: 3, pgs: [0, 9] };
  return runAll(
    map,
    { kind: "start-joining", ...groups, node: 4, incarnation: 1 },
    { kind: "unsettle", pool: 1, pgs: [0, 5, 10] },
    { kind: "settled", pool: 1, pgs: [0], node: 1, incarnation: 2 },
  );
}

/** The map that the second golden file of version 4 holds: a disk that has got another number of copies, and one on its way. */
function mapOfCopies(): ClusterMap {
  const create = { kind: "create-disk", sizeBytes: 2 ** 30, nowMs: 8 } as const;
  const pgs = Array.from({ length: 256 }, (_, index) => index);
  const map = runAll(
    atLevelTwo(clusterOf(2)),
    { ...create, name: "web", copies: 1 },
    nodeUp(1, { bootId: "other", protocol: 2 }),
    { kind: "unsettle", pool: 1, pgs },
    { kind: "settled", pool: 1, pgs, node: 1, incarnation: 2 },
    { kind: "set-copies", name: "web", copies: 2 },
  );
  const { id: pool } = map.pools.at(-1)!;
  const one = { pool, pgs, node: 1, incarnation: 2 };
  const two = { pool, pgs, node: 2, incarnation: 1 };
  const done = runAll(
    map,
    { kind: "start-joining", ...one },
    { kind: "start-joining", ...two },
    { kind: "in-sync", ...one, basedOnEpoch: map.epoch + 2 },
    { kind: "in-sync", ...two, basedOnEpoch: map.epoch + 2 },
    { kind: "finish-copies", pool },
    { ...create, name: "db", copies: 1 },
    { kind: "set-copies", name: "db", copies: 5 },
  );
  const next = done.pools.at(-1)!.id;
  return runAll(done, { kind: "start-joining", ...two, pool: next, pgs: [0, 1, 2] });
}

/**
 * The map that the third golden file of version 4 holds: disks that are kept in zones, one of them made there, one that has come there, and
 * others on their way there and from there to other zones.
 */
function mapOfZones(): ClusterMap {
  const create = { kind: "create-disk", sizeBytes: 2 ** 30, nowMs: 8 } as const;
  const founded = clusterOf(3);
  const nodes = founded.nodes.map((node, index) => ({
    ...node,
    zone: ["a", "b", "rack-1"][index],
  }));
  const pgs = Array.from({ length: 256 }, (_, index) => index);
  const map = runAll(
    atLevelTwo({ ...founded, nodes }),
    { ...create, name: "made", copies: 2, zones: ["rack-1", "a"] },
    { ...create, name: "came", copies: 1, zones: ["a"] },
    { kind: "set-copies", name: "came", zones: ["b"] },
  );
  const pool = map.pools.at(-1)!.family === 0 ? map.pools.at(-2)!.id : map.pools.at(-1)!.id;
  const joining = { pool, pgs, node: 2, incarnation: 1 };
  return runAll(
    map,
    { kind: "start-joining", ...joining },
    { kind: "in-sync", ...joining, basedOnEpoch: map.epoch + 1 },
    { kind: "finish-copies", pool },
    { ...create, name: "there", copies: 1 },
    { kind: "set-copies", name: "there", zones: ["b"] },
    { ...create, name: "other", copies: 1, zones: ["rack-1"] },
    { kind: "set-copies", name: "other", copies: 2, zones: ["b", "a"] },
    { ...create, name: "back", copies: 1, zones: ["rack-1"] },
    { kind: "delete-disk", name: "back", trashedMs: 9 },
  );
}

function history(commands: readonly MapCommand[], from = EMPTY_MAP): ClusterMap {
  return commands.reduce((map, command) => unwrap(apply(map, command)).map, from);
}

function golden(version: number | string): Uint8Array {
  const url = new URL(`golden/map_v${version}.hex`, import.meta.url);
  const digits = Deno.readTextFileSync(url).replaceAll("\n", "").match(/../g)!;
  return Uint8Array.from(digits, (pair) => parseInt(pair, 16));
}

function allGolden(): Uint8Array[] {
  return [1, 2, 4, "4_copies", "4_zones", "4_written"].map(golden);
}

const packr = new Packr({ useRecords: false, variableMapSize: true, moreTypes: false });

function pack(value: unknown): Uint8Array {
  return new Uint8Array(packr.pack(value));
}

Deno.test("the golden file of version 4 reads as it did, and is what is written", () => {
  assertEquals(MAP_VERSION, 4, "a new version needs a golden file and a line here");
  const map = withoutWritten(mapV4());
  assertEquals(map.level, 2);
  assertEquals(checkMap(map), null);
  assertEquals(unwrap(decodeMap(golden(4))), map);
  assertEquals(unwrap(encodeMap(map)), golden(4));
});

Deno.test("the second golden file of version 4, of copies that change, reads as it did", () => {
  const map = mapOfCopies();
  assertEquals(checkMap(map), null);
  assertEquals(map.pools.filter(({ family }) => family !== 0).length, 1);
  assertEquals(map.disks.map(({ settledBefore }) => settledBefore > 0), [false, true]);
  assertEquals(unwrap(decodeMap(golden("4_copies"))), map);
  assertEquals(unwrap(encodeMap(map)), golden("4_copies"));
});

Deno.test("the third golden file of version 4, of zones, reads as it did", () => {
  const map = mapOfZones();
  assertEquals(checkMap(map), null);
  assertEquals(map.disks.map((disk) => zonesOf(map, disk)), [
    ["b"],
    ["a", "rack-1"],
    ["rack-1"],
    [],
  ]);
  assertEquals(map.pools.filter(({ family }) => family !== 0).length, 2);
  assertEquals(unwrap(decodeMap(golden("4_zones"))), map);
  assertEquals(unwrap(encodeMap(map)), golden("4_zones"));
});

Deno.test("pools with zones, and disks of them, that cannot be are refused", () => {
  const [magic, version, body] = packr.unpack(golden("4_zones"));
  const pools = body[11] as unknown[][];
  const disks = body[4] as unknown[][];
  const check = (part: string, at: number, next: unknown) => {
    const result = decodeMap(pack([magic, version, body.with(at, next)]));
    assertStringIncludes(result.ok ? "it is a map" : result.error.message, part);
  };
  const zoned = pools.findIndex((pool) => pool[3] === 0);
  const own = pools.findIndex((pool) => Number(pool[3]) > 0);
  const inPool = (part: string, pool: number, field: number, value: unknown) =>
    check(part, 11, pools.with(pool, pools[pool].with(field, value)));
  assertEquals((pools[zoned][4] as unknown[]).length, 2);
  for (const wrong of [[], ["a", 1], "a", null, 3, Array(ZONES_MAX + 1).fill("a")]) {
    inPool("wrong type", zoned, 4, wrong);
  }
  inPool("out of order", zoned, 4, ["b", "a"]);
  inPool("out of order", zoned, 4, ["a", "a"]);
  inPool("cannot be the name", zoned, 4, ["a b"]);
  inPool("without a name", zoned, 4, ["", "a"]);
  const other = pools.findLastIndex((pool) => pool[3] === 0 && pool[0] === 2);
  inPool("is there twice", other, 4, pools[zoned][4]);
  check("is out of order or there twice", 11, [...pools, pools[zoned]]);
  check("there is no pool", 11, pools.toSpliced(zoned, 1));
  inPool("was never made", pools.length - 1, 2, 5 + Number(body[1]));
  inPool("wrong type", own, 4, "a");
  inPool("goes to pool", own, 4, pools[own][2]);
  inPool("goes to none", own, 4, 99);
  check("wrong type", 11, pools.with(zoned, pools[zoned].slice(0, 4)));
  check("wrong type", 11, pools.with(own, [...pools[own], 1]));
  const made = disks.findIndex((disk) => disk[1] === "made");
  const inDisk = (part: string, value: unknown) =>
    check(part, 4, disks.with(made, disks[made].with(16, value)));
  for (const wrong of [[0, 0, 2], [0, 0], [0, 0, "6"], [0, 0, 6, 6], 6]) {
    inDisk("wrong type", wrong);
  }
  inDisk("there is no pool 99", [0, 0, 99]);
  inDisk("there is no pool", [0, 0, pools[own][2]]);
  // Nobody has it any more.
  const nobody = disks.with(made, disks[made].slice(0, 16).with(6, 1));
  check("has zones, and no disk", 4, nobody);
});

Deno.test("version 3 was never that of a release, and is refused", () => {
  const [magic, , body] = packr.unpack(golden(4));
  const result = decodeMap(pack([magic, 3, body]));
  assertEquals(result.ok ? "" : result.error.code, "corrupt");
  assertEquals(result.ok ? "" : result.error.message.includes("version 3 was never"), true);
});

Deno.test("a version is that of the map's level, and no other", () => {
  const [magic, version, body] = packr.unpack(unwrap(encodeMap(clusterAtLevelTwo(1, "web"))));
  assertEquals(decodeMap(pack([magic, version, body])).ok, true);
  for (const level of [1, 0, 1.5]) {
    const result = decodeMap(pack([magic, version, body.with(13, level)]));
    assertEquals(result.ok ? "" : result.error.code, "corrupt", `level ${level}`);
  }
});

Deno.test("the golden file of version 2 reads as a map of level 1, and is what is written of one", () => {
  const map = mapV2();
  assertEquals([map.level, ...map.nodes.map(({ protocolMin }) => protocolMin)], [1, 1, 1, 1, 1, 1]);
  assertEquals(checkMap(map), null);
  assertEquals(unwrap(decodeMap(golden(2))), map);
  assertEquals(unwrap(encodeMap(map)), golden(2));
});

Deno.test("the golden file of version 1 reads as a store of one host that nobody has adopted", () => {
  const map = history(COMMANDS_V1);
  const disks = map.disks.map((disk) =>
    disk.id === 1 ? { ...disk, generation: 1, settled: 1 } : disk
  );
  const read = unwrap(decodeMap(golden(1)));
  assertEquals(read, { ...map, epoch: 5, disks });
  const adopted = unwrap(adopt(read, { ...addNode(1), clusterId: "c".repeat(32) }));
  assertEquals(checkMap(adopted), null);
  assertEquals(unwrap(decodeMap(unwrap(encodeMap(adopted)))), adopted);
});

Deno.test("version 1 allowed more copies than there are now, which one host never made", () => {
  const disk = [1, "web", 512, [1], 0, 0, 8, 0, {}];
  const read = unwrap(decodeMap(pack(["kelpie.map", 1, [1, 2, 2, [6], [disk]]])));
  assertEquals([read.settings.copies, read.disks[0].copies], [5, 5]);
  const wrong = decodeMap(pack(["kelpie.map", 1, [1, 2, 2, [9], []]]));
  assertEquals(wrong.ok ? "" : wrong.error.code, "corrupt");
});

Deno.test("the table of a small cluster is below 1 KiB, and that of a large one below 400 KiB", () => {
  const random = new Prng(9);
  const shuffled = (count: number, from: number) => {
    const list: number[] = [];
    while (list.length < count) {
      const id = 1 + random.below(from);
      if (!list.includes(id)) list.push(id);
    }
    return list;
  };
  let small = clusterWithDisk(3, 3);
  const changes = Array.from({ length: 256 }, (_, pg) => [pg, shuffled(3, 3)] as const);
  small = runAll(small, setTargets(small, 3, ...changes), { kind: "delete-disk", name: "web" });
  small = runAll(small, setTargets(small, 3, ...changes));
  assert(encodeGroups(small.pools[0].pgs).length < 1024);

  let large = clusterOf(1000);
  for (let pgBits = 8; pgBits < 14; pgBits++) {
    large = runAll(large, { kind: "split-groups", pgBits });
  }
  large = runAll(large, { kind: "create-disk", name: "web", sizeBytes: 512, nowMs: 0, copies: 3 });
  const places = large.pools[0].pgs.map((_, pg) => [pg, shuffled(3, 1000)] as const);
  const epochs = large.pools[0].pgs.map((pg, index) => ({
    ...pg,
    target: places[index][1],
    inSync: places[index][1],
    changedEpoch: 1_000_000 + random.below(1_000_000),
  }));
  large = { ...large, epoch: 2_000_000, pools: [{ ...large.pools[0], pgs: epochs }] };
  const bytes = unwrap(encodeMap(large));
  assert(bytes.length < 400 * 1024, `${bytes.length} bytes`);
  const read = unwrap(decodeMap(bytes)).pools[0].pgs;
  assertEquals(encodeGroups(read), encodeGroups(epochs));
  assertEquals(read[16383], epochs[16383]);
});

Deno.test("equal entries come back as one object", () => {
  const { pools } = unwrap(decodeMap(unwrap(encodeMap(clusterWithDisk(3, 3)))));
  assertEquals(new Set(pools[0].pgs).size, 3);
});

Deno.test("equal maps give equal bytes, however their attributes were put together", () => {
  const create = { kind: "create-disk", name: "web", sizeBytes: 512, nowMs: 0 } as const;
  const one = history([{ ...create, attributes: { a: "1", b: "2", c: "3" } }]);
  const other = history([{ ...create, attributes: { c: "3", a: "1", b: "2" } }]);
  assertEquals(unwrap(encodeMap(one)), unwrap(encodeMap(other)));
});

Deno.test("random maps come back as they were", () => {
  for (let seed = 1; seed <= 50; seed++) {
    const random = new Prng(seed);
    const commands: MapCommand[] = [];
    for (let index = random.below(30); index > 0; index--) {
      commands.push({
        kind: "create-disk",
        name: `d${index}`,
        sizeBytes: 512 * (1 + random.u32()),
        nowMs: random.u32() * 2 ** random.below(20),
        readOnly: random.below(2) === 0,
        copies: 1 + random.below(5),
        attributes: random.below(2) === 0 ? {} : { [`k${random.below(9)}`]: "v".repeat(200) },
      });
    }
    const map = history(commands);
    assertEquals(unwrap(decodeMap(unwrap(encodeMap(map)))), map, `seed ${seed}`);
  }
  assertEquals(unwrap(decodeMap(unwrap(encodeMap(EMPTY_MAP)))), EMPTY_MAP);
});

Deno.test("bytes that were encoded are not overwritten by the next map", () => {
  const first = unwrap(encodeMap(mapV2()));
  const copy = first.slice();
  for (let round = 0; round < 10; round++) encodeMap(EMPTY_MAP);
  assertEquals(first, copy);
});

Deno.test("what is cut short or longer is refused", () => {
  for (const bytes of allGolden()) {
    for (let length = 0; length < bytes.length; length++) {
      const result = decodeMap(bytes.subarray(0, length));
      assertEquals(result.ok ? "" : result.error.code, "corrupt", `${length} bytes`);
    }
    assertEquals(decodeMap(new Uint8Array([...bytes, 0])).ok, false);
  }
  const huge = decodeMap(new Uint8Array(MAP_BYTES_MAX + 1));
  assertEquals(huge.ok ? "" : huge.error.code, "corrupt");
});

Deno.test("damage gives an error or a map that keeps every invariant, and never throws", () => {
  for (const bytes of allGolden()) {
    const random = new Prng(bytes.length);
    const check = (damaged: Uint8Array, what: string) => {
      const result = decodeMap(damaged);
      if (result.ok) assertEquals(checkMap(result.value), null, what);
      else assert(["corrupt", "limit"].includes(result.error.code));
    };
    for (let bit = 0; bit < bytes.length * 8; bit += bytes.length > 500 ? 11 : 1) {
      const damaged = bytes.slice();
      damaged[bit >> 3] ^= 1 << (bit & 7);
      check(damaged, `bit ${bit}`);
    }
    for (let round = 0; round < 400; round++) {
      const damaged = bytes.slice(0, 14 + random.below(bytes.length - 13));
      for (let count = 1 + random.below(6); count > 0; count--) {
        damaged[random.below(damaged.length)] = random.u32();
      }
      check(damaged, `round ${round}`);
    }
  }
  assertEquals(decodeMap(new Uint8Array(MAP_BYTES_MAX).fill(0x91)).ok, false);
});

Deno.test("damaged tables of PGs are refused, or are tables of the right length", () => {
  const bytes = encodeGroups(mapV2().pools[1].pgs);
  assertEquals(decodeGroups(bytes, 256), mapV2().pools[1].pgs);
  for (const count of [0, 128, 255, 257, 512]) assertEquals(decodeGroups(bytes, count), null);
  for (let length = 0; length < bytes.length; length++) {
    assertEquals(decodeGroups(bytes.subarray(0, length), 256), null);
  }
  const random = new Prng(11);
  for (let round = 0; round < 3000; round++) {
    const damaged = bytes.slice();
    for (let count = 1 + random.below(3); count > 0; count--) {
      damaged[random.below(damaged.length)] = random.u32();
    }
    assertEquals(decodeGroups(damaged, 256)?.length ?? 256, 256);
  }
  // 2^53 and more, a list that is too long, an index that is too large.
  assertEquals(decodeGroups(new Uint8Array(20).fill(255), 256), null);
  assertEquals(decodeGroups(Uint8Array.of(1, 16, ...Array(16).fill(1), 67, 126), 256), null);
  assertEquals(decodeGroups(Uint8Array.of(1, 1, 1, 66, 1, 254, 1), 256), null);
  assertEquals(decodeGroups(Uint8Array.of(1, 1, 1, 67, 254, 1), 256)?.length, 256);
});

Deno.test("fields of the wrong kind, number or place are refused", () => {
  const disk = [1, "web", 512, [1], 0, 0, 1, 0, {}];
  const body = [1, 2, 2, [1], [disk]];
  const withField = (
    index: number,
    value: unknown,
  ) => [1, 2, 2, [1], [disk.with(index, value as never)]];
  const cases: [string, unknown][] = [
    ["no list", 7],
    ["another magic", ["kelpie.mop", 1, body]],
    ["no version", ["kelpie.map", "1", body]],
    ["version 0", ["kelpie.map", 0, body]],
    ["version 1.5", ["kelpie.map", 1.5, body]],
    ["one more", ["kelpie.map", 1, body, 0]],
    ["one field more", ["kelpie.map", 1, [...body, 0]]],
    ["one field less", ["kelpie.map", 1, body.slice(1)]],
    ["text for a number", ["kelpie.map", 1, body.with(0, "1" as never)]],
    ["settings", ["kelpie.map", 1, body.with(3, [1, 2] as never)]],
    ["disks", ["kelpie.map", 1, body.with(4, {} as never)]],
    ["disk with a field more", ["kelpie.map", 1, body.with(4, [[...disk, 0]] as never)]],
    ["id", ["kelpie.map", 1, withField(0, null)]],
    ["name", ["kelpie.map", 1, withField(1, 7)]],
    ["size", ["kelpie.map", 1, withField(2, 1000)]],
    ["size of 2^63", ["kelpie.map", 1, withField(2, 2n ** 63n)]],
    ["layers", ["kelpie.map", 1, withField(3, ["1"])]],
    ["layers as a number", ["kelpie.map", 1, withField(3, 1)]],
    ["unknown flag", ["kelpie.map", 1, withField(5, 2)]],
    ["attributes as a list", ["kelpie.map", 1, withField(8, ["a"])]],
    ["attribute of a number", ["kelpie.map", 1, withField(8, { a: 1 })]],
    ["NaN", ["kelpie.map", 1, withField(4, NaN)]],
  ];
  assertEquals(decodeMap(pack(["kelpie.map", 1, body])).ok, true);
  for (const [what, value] of cases) {
    const result = decodeMap(pack(value));
    assertEquals(result.ok ? "" : result.error.code, "corrupt", what);
  }
});

Deno.test("fields of version 2 of the wrong kind, number or place are refused", () =>
  checkFields(2));

Deno.test("the fourth golden file of version 4, of disks that were written, reads as it did", () => {
  const map = mapV4();
  assertEquals(map.disks.some(({ written }) => written.generation > 0), true);
  assertEquals(unwrap(decodeMap(golden("4_written"))), map);
  assertEquals(unwrap(encodeMap(map)), golden("4_written"));
});

Deno.test("fields of version 4 of the wrong kind, number or place are refused", () =>
  checkFields(4));

function checkFields(goldenVersion: number): void {
  const [magic, version, body] = packr.unpack(golden(goldenVersion)) as [string, number, unknown[]];
  const check = (what: string, changed: unknown) => {
    const result = decodeMap(pack([magic, version, changed]));
    assertEquals(result.ok ? "" : result.error.code, "corrupt", what);
  };
  assertEquals(decodeMap(pack([magic, version, body])).ok, true);
  check("one more", [...body, 0]);
  for (let index = 0; index < body.length; index++) {
    check(`no field ${index}`, body.toSpliced(index, 1));
    for (const wrong of ["x", -1, 0.5, NaN, {}, [["x"]], null]) {
      check(`field ${index} is ${wrong}`, body.with(index, wrong));
    }
  }
  const lists: [number, number][] = [[4, 0], [7, 0], [11, 0], [12, 0]];
  if (version === 4) lists.push([4, 1], [14, 2], [15, 0]);
  for (const [list, entry] of lists) {
    const entries = body[list] as unknown[][];
    const put = (next: unknown) => body.with(list, entries.with(entry, next as unknown[]));
    check(`entry of ${list} with one more`, put([...entries[entry], 0]));
    for (let index = 0; index < entries[entry].length; index++) {
      for (const wrong of [true, -1, NaN, { x: 1 }, ["x"], new Uint8Array(3)]) {
        check(
          `${index} of an entry of ${list} is ${wrong}`,
          put(entries[entry].with(index, wrong)),
        );
      }
    }
  }
  if (version !== 4) return;
  const at = map4At(body, "base");
  const disks = body[4] as unknown[][];
  const [snapshots, limits, schedules] = disks[at].slice(13) as [
    unknown[][],
    number[],
    unknown[][],
  ];
  const inDisk = (what: string, index: number, value: unknown) =>
    check(what, body.with(4, disks.with(at, disks[at].with(index, value))));
  inDisk("an unknown flag of a disk", 5, 4);
  inDisk("limits that are too few", 14, limits.slice(1));
  inDisk("limits that are none", 14, [0, 0, "0", 0, 0]);
  for (const [index, list] of [[13, snapshots], [15, schedules]] as const) {
    inDisk("one more", index, [[...list[0], 0], ...list.slice(1)]);
    for (let field = 0; field < list[0].length; field++) {
      for (const wrong of [true, -1, NaN, { x: 1 }, ["x"], null]) {
        const next = list.with(0, list[0].with(field, wrong));
        inDisk(`${field} of an entry of ${index} is ${wrong}`, index, next);
      }
    }
  }
  inDisk("an unknown flag of a snapshot", 13, snapshots.with(0, snapshots[0].with(4, 8 + 2)));
  const layers = body[14] as unknown[][];
  check(
    "a layer that nobody has absorbed, said twice",
    body.with(14, layers.with(0, [...layers[0], null])),
  );
}

function map4At(body: unknown[], name: string): number {
  return (body[4] as unknown[][]).findIndex((disk) => disk[1] === name);
}

/** A map of version 4 with these layers, and a disk for each id in `newest`, all of them copies of one disk. */
function withTree(
  layers: unknown[],
  newest: readonly number[],
  part: Readonly<Record<number, unknown>> = {},
): Uint8Array {
  const map = clusterAtLevelTwo(1, "web");
  const [magic, version, body] = packr.unpack(unwrap(encodeMap(map)));
  const disks = newest.map((layer, index) =>
    body[4][0].with(0, index + 1).with(1, `d${String(index).padStart(6, "0")}`).with(3, [layer])
      .with(10, 1)
  );
  const next = body.with(1, 1e6).with(2, 1e6).with(4, disks).with(14, layers).with(16, [[]]);
  for (const [index, value] of Object.entries(part)) next[index] = value;
  return pack([magic, version, next]);
}

Deno.test("trees that are none are refused, however they go round", () => {
  // Every second one is being absorbed: nobody needs any but the newest.
  const chain = (length: number): unknown[] =>
    Array.from(
      { length },
      (_, at) => at % 2 === 0 && at < length - 1 ? [at + 1, at, 0] : [at + 1, at],
    );
  assertEquals(decodeMap(withTree([[1, 0], [2, 1], [3, 1]], [2, 3])).ok, true);
  assertEquals(decodeMap(withTree(chain(LAYERS_MAX), [LAYERS_MAX])).ok, true);
  const list = (length: number) => Array.from({ length }, (_, index) => index + 1);
  const cases: [string, Uint8Array][] = [
    ["lies above 1, which is unknown", withTree([[1, 1]], [1])],
    ["lies above 2, which is unknown", withTree([[1, 2], [2, 1]], [1])],
    ["lies above 2, which is unknown", withTree([[1, 2], [2, 1]], [2])],
    ["lies above 9, which is unknown", withTree([[1, 9]], [1])],
    ["lies above 3, which is unknown", withTree([[1, 3], [2, 1], [3, 2]], [3])],
    ["out of order", withTree([[2, 0], [1, 2]], [1])],
    ["out of order", withTree([[1, 0], [1, 0]], [1])],
    ["layer 0 was never given", withTree([[0, 0]], [0])],
    ["layer 1e+300 was never given", withTree([[1e300, 0]], [1e300])],
    ["its layers are 9", withTree([[1, 0]], [9])],
    ["others lie above layer 1", withTree([[1, 0], [2, 1]], [1])],
    ["is the newest of two", withTree([[1, 0]], [1, 1])],
    ["layer 2 is nobody's", withTree([[1, 0], [2, 1], [3, 1]], [3])],
    ["layer 1 is not needed, nor absorbed", withTree([[1, 0], [2, 1]], [2])],
    ["and has 2 children", withTree([[1, 0, 0], [2, 1], [3, 1]], [2, 3])],
    ["who has absorbed it", withTree([[1, 0, 0], [2, 1]], [2], { 16: [list(60_000)] })],
    ["wrong type", withTree([[1, 0, 1], [2, 1]], [2])],
    ["wrong type", withTree([[1, 0, -1], [2, 1]], [2])],
    ["wrong type", withTree([[1, 0, 0.5], [2, 1]], [2])],
    ["wrong type", withTree([[1, 0, []], [2, 1]], [2])],
    ["it has 2049 layers", withTree(chain(LAYERS_MAX + 1), [LAYERS_MAX + 1])],
    // Nothing is read of lists that are too long: each of these disks would have a chain of 2,048.
    ["too many entries", withTree(chain(LAYERS_MAX), list(DISKS_MAX + 1).map(() => LAYERS_MAX))],
    ["too many entries", withTree(chain(SNAPSHOTS_MAX + 1), [1])],
    ["too many entries", withTree([[1, 0]], [1], { 15: list(TRASH_MAX + 1) })],
  ];
  for (const [part, bytes] of cases) {
    const result = decodeMap(bytes);
    assertEquals(result.ok ? "" : result.error.code, "corrupt", part);
    assertStringIncludes(result.ok ? "" : result.error.message, part);
  }
});

Deno.test("what waits for a node that is down takes little, however many layers and nodes there are", () => {
  const map = clusterAtLevelTwo(1, "web");
  // Every second layer has been absorbed by all but one of a thousand nodes.
  const most = Array.from({ length: 999 }, (_, index) => index + 1);
  const count = 2000;
  const layers = Array.from({ length: count }, (_, at) => ({
    id: at + 1,
    parent: at,
    absorbedBy: at % 2 === 0 ? [...most] : null,
  }));
  const disks = [{ ...map.disks[0], layers: layers.map(({ id }) => id).toReversed() }];
  const waiting = { ...map, nextNode: 1001, nextLayer: count + 1, layers, disks };
  const bytes = unwrap(encodeMap(waiting));
  assert(bytes.length < 32 * 1024, `${bytes.length} bytes`);
  const read = unwrap(decodeMap(bytes));
  assertEquals(read, waiting);
  assertEquals(new Set(read.layers.map(({ absorbedBy }) => absorbedBy)).size, 2);
  // They stay one list as more is absorbed.
  const node = addNode(1000, { protocol: 2 });
  const { layers: next } = runAll({ ...read, nextNode: 1000 }, node, {
    kind: "absorbed",
    node: 1000,
    incarnation: 1,
    layers: layers.slice(0, 1000).map(({ id }) => id),
  });
  assertEquals(next.length, count - 500);
});

Deno.test("chains that are as long and as many as can be are read and checked in one walk each", () => {
  // A disk with a thousand snapshots, and as many clones of its newest as there can be.
  const layers: unknown[] = Array.from({ length: 1000 }, (_, index) => [index + 1, index]);
  const newest = Array.from({ length: DISKS_MAX }, (_, index) => 1001 + index);
  for (const layer of newest) layers.push([layer, 1000]);
  const bytes = withTree(layers, newest);
  const [magic, version, body] = packr.unpack(bytes);
  const snapshots = Array.from(
    { length: 1000 },
    (_, index) => [`s${index}`, index + 1, 512, 0, 2, 0],
  );
  body[4][0] = body[4][0].with(13, snapshots);
  const map = unwrap(decodeMap(pack([magic, version, body])));
  assertEquals(map.disks.map(({ layers }) => layers.length), Array(DISKS_MAX).fill(1001));
  assertEquals(map.disks[7].layers.slice(0, 3), [1008, 1000, 999]);
});

Deno.test("a newer version is told from damage", () => {
  const result = decodeMap(pack(["kelpie.map", MAP_VERSION + 1, ["whatever"]]));
  assertEquals(result.ok ? "" : result.error.code, "limit");
});

Deno.test("a map that has become too large is refused before it is written", () => {
  const [disk] = history([{ kind: "create-disk", name: "a", sizeBytes: 512, nowMs: 0 }]).disks;
  const attributes = Object.fromEntries(
    Array.from({ length: 16 }, (_, key) => [`k${key}`, "v".repeat(255)]),
  );
  const disks = Array.from(
    { length: 1100 },
    (_, index) => ({ ...disk, name: `d${index}`, attributes }),
  );
  const result = encodeMap({ ...EMPTY_MAP, disks });
  assertEquals(result.ok ? "" : result.error.code, "limit");
});
