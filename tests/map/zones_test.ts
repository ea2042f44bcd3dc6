/**
 * Disks that are kept in zones, as the map sees them: which pool is theirs, which nodes hold it, how they come there and away, and what
 * happens where a zone has too few nodes, or none.
 *
 * @module
 */
import { assert, assertEquals, assertMatch } from "@std/assert/mod.js";
import { Prng } from "../../agent/base/prng.ts";
import { summarizeGroups } from "../../agent/map/group_summary.ts";
import { decodeMap, encodeMap } from "../../agent/map/map_codec.ts";
import { unwrap } from "../../agent/map/errors.ts";
import {
  checkMap,
  type ClusterMap,
  copiesMinOf,
  copiesMinToBe,
  type DiskEntry,
  findDisk,
  findPool,
  isInZones,
  isOpenGroup,
  type MapCommand,
  moveOf,
  type NodeEntry,
  PG_BITS_MAX,
  type Pool,
  poolOf,
  poolOfFamily,
  reasonAgainstFinish,
  ZONED_POOLS_MAX,
  ZONES_MAX,
  zonesOf,
} from "../../agent/map/map.ts";
import { previewNodeChange } from "../../agent/map/preview.ts";
import { placePool, targetChanges, weightIn, zonesProblem } from "../../agent/map/targets.ts";
import {
  addNode,
  atLevelTwo,
  clusterOf,
  filled,
  freeze,
  refuse,
  runAll,
  setTargets,
  step,
} from "./cluster.ts";
import { faultsOf, fewestMoves } from "./placement_oracle.ts";

const GIB = 2 ** 30;

/** A cluster at level 2 with nodes 1, 2, … in these zones. */
function clusterIn(...zones: string[]): ClusterMap {
  const map = clusterOf(zones.length);
  const nodes = map.nodes.map((node, index) => ({ ...node, zone: zones[index] }));
  return atLevelTwo({ ...map, nodes });
}

function create(name: string, copies: number, zones?: readonly string[]): MapCommand {
  const disk = { kind: "create-disk", name, sizeBytes: GIB, nowMs: 0, copies } as const;
  return zones === undefined ? disk : { ...disk, zones };
}

function web(map: ClusterMap): DiskEntry {
  return findDisk(map, "web")!;
}

/** The pool that disk web belongs to, wherever its data is. */
function home(map: ClusterMap): Pool {
  return findPool(map, web(map).pool)!;
}

function own(map: ClusterMap): Pool {
  return poolOfFamily(map, web(map).family)!;
}

/** Everybody who is wanted in a pool is there, and has everything; who is not wanted any more leaves. */
function filledAndTrimmed(map: ClusterMap, pool: number): ClusterMap {
  map = filled(map, pool);
  const pgs = findPool(map, pool)!.pgs.map((_, index) => index);
  return step(map, { kind: "trim", pool, pgs }).map;
}

/** Targets as the leader sets them, and everybody there; moves do not end. */
function placed(map: ClusterMap): ClusterMap {
  for (const { id, family } of map.pools) {
    if (family === 0) {
      const changes = targetChanges(map, findPool(map, id)!);
      if (changes.length > 0) map = step(map, setTargets(map, id, ...changes)).map;
    }
    map = filledAndTrimmed(map, id);
  }
  return map;
}

/** All that there is to do is done. */
function settled(map: ClusterMap): ClusterMap {
  let next = placed(placed(map));
  for (const pool of next.pools.filter(({ family }) => family !== 0)) {
    assertEquals(reasonAgainstFinish(next, pool), null);
    next = step(next, { kind: "finish-copies", pool: pool.id }).map;
  }
  return placed(next);
}

function set(map: ClusterMap, part: { copies?: number; zones?: string[] }, name = "web") {
  return step(map, { kind: "set-copies", name, ...part }).map;
}

function withZone(map: ClusterMap, node: number, zone: string): ClusterMap {
  return step(map, { kind: "set-zone", node, zone }).map;
}

/** Nodes that hold any of a disk. */
function holders(map: ClusterMap, disk = web(map)): number[] {
  return [...new Set(poolOf(map, disk)!.pgs.flatMap(({ inSync }) => inSync))].sort();
}

/** How many replicas each PG of the disk has, if it is the same for all. */
function width(map: ClusterMap): number {
  const widths = new Set(poolOf(map, web(map))!.pgs.map(({ inSync }) => inSync.length));
  assertEquals(widths.size, 1, [...widths].join());
  return [...widths][0];
}

Deno.test("a disk that is made in zones is nowhere else, one replica in each, and shares its pool with its like", () => {
  const before = clusterIn("a", "a", "b", "b", "c", "");
  const map = settled(runAll(before, create("web", 2, ["b", "a"]), create("any", 3)));
  assertEquals([zonesOf(map, web(map)), home(map).zones], [["a", "b"], ["a", "b"]]);
  assertEquals(holders(map), [1, 2, 3, 4]);
  for (const { inSync } of home(map).pgs) {
    assertEquals(inSync.map((id) => map.nodes[id - 1].zone).sort(), ["a", "b"]);
  }
  const counts = [1, 2, 3, 4].map((id) =>
    home(map).pgs.filter(({ inSync }) => inSync.includes(id)).length
  );
  for (const count of counts) assert(Math.abs(count - 128) <= 4, `${counts}`);
  // The same zones in another order, and twice, are the same; another number of copies, or other zones, are not.
  const more = runAll(
    map,
    create("same", 2, ["a", "b", "a"]),
    create("one", 1, ["a", "b"]),
    create("c", 2, ["c"]),
    create("none", 2, []),
  );
  const poolIdOf = (name: string) => findDisk(more, name)!.pool;
  assertEquals(poolIdOf("same"), poolIdOf("web"));
  assertEquals([poolIdOf("any"), poolIdOf("none")], [3, 2]);
  assertEquals(new Set(["web", "one", "c", "any", "none"].map(poolIdOf)).size, 5);
  assertEquals(checkMap(more), null);
  assertEquals(unwrap(decodeMap(unwrap(encodeMap(more)))), more);
});

Deno.test("a disk goes into zones, to others, and out of them, and pools that nobody has go", () => {
  let map = settled(runAll(clusterIn("a", "a", "b", "b", "c"), create("web", 2)));
  const numbers = new Set(map.pools.map(({ id }) => id));
  for (
    const [part, zones, copies, nodes] of [
      [{ zones: ["b"] }, ["b"], 2, [3, 4]],
      [{ zones: ["a", "c"] }, ["a", "c"], 2, [1, 2, 5]],
      [{ copies: 3 }, ["a", "c"], 3, [1, 2, 5]],
      [{ zones: ["a"], copies: 1 }, ["a"], 1, [1, 2]],
      [{ zones: [] }, [], 1, [1, 2, 3, 4, 5]],
      [{ zones: ["b"] }, ["b"], 1, [3, 4]],
    ] as const
  ) {
    const before = map;
    map = set(before, part as { copies?: number; zones?: string[] });
    const pool = own(map);
    assertEquals([pool.family, pool.zones, home(map)], [web(map).family, [], home(before)]);
    // Who has it now stays until it is everywhere that it shall be.
    for (const [index, pg] of pool.pgs.entries()) {
      assertEquals(pg.inSync, home(before).pgs[index].inSync);
      const ends = [home(map), findPool(map, pool.to)!].flatMap((end) => end.pgs[index].target);
      assertEquals(new Set(pg.target), new Set(ends));
    }
    const move = moveOf(map, web(map).family)!;
    assertEquals(move.to, { copies, zones: [...zones] });
    assertEquals([move.from.copies, move.isBack], [web(before).copies, false]);
    map = settled(map);
    assertEquals([zonesOf(map, web(map)), web(map).copies], [zones, copies]);
    assertEquals([holders(map), width(map)], [nodes, copies]);
    // The old one is gone unless all nodes may have it, and no number is given twice.
    assertEquals(
      map.pools.filter((each) => each.zones.length > 0).length,
      zones.length > 0 ? 1 : 0,
    );
    for (const { id } of map.pools.filter(({ id }) => !before.pools.some((old) => old.id === id))) {
      assert(id <= 5 || !numbers.has(id), `${id}`);
    }
    for (const { id } of map.pools) numbers.add(id);
  }
  assertEquals(step(map, { kind: "set-copies", name: "web", zones: ["b", "b"] }).map, map);
  assertEquals(step(map, { kind: "set-copies", name: "web" }).map, map);
});

Deno.test("what can stay where it is stays, in the pool that is made for a disk", () => {
  const map = settled(runAll(clusterIn("a", "b", "c", "a", "b", "c"), create("web", 3)));
  const moving = placed(set(map, { zones: ["a", "b"], copies: 2 }));
  // One of three is in each zone already: nothing has to be copied.
  assertEquals(moveOf(moving, 1)!.wanted, 0);
  const less = placed(set(map, { zones: ["a"] }));
  // One of two nodes has every PG already.
  assertEquals(moveOf(less, 1)!.wanted, 256);
});

Deno.test("zones that are none are refused with those that there are, and too many of them", () => {
  const map = runAll(
    clusterIn("rack-2", "rack-1", "", "rack-1"),
    addNode(5, { zone: "vote", witness: true, protocol: 2 }),
    create("web", 2),
  );
  for (
    const command of [
      create("x", 2, ["rack-1", "rack-9"]),
      {
        kind: "set-copies",
        name: "web",
        zones: ["rack-9"],
      } as const,
    ]
  ) {
    const { code, message, hint } = refuse(map, command);
    assertEquals(code, "invalid");
    assertEquals(message, "no node that stores data is in zone rack-9; there are rack-1, rack-2");
    assertMatch(hint!, /kelpie node list/);
  }
  // A witness stores nothing.
  assertMatch(
    refuse(map, create("x", 1, ["vote"])).message,
    /zone vote; there are rack-1, rack-2$/,
  );
  assertMatch(refuse(map, create("x", 1, [""])).message, /without a name/);
  assertMatch(refuse(map, create("x", 1, ["a b"])).message, /cannot be the name of a zone/);
  const many = Array.from({ length: ZONES_MAX + 1 }, (_, index) => `z${index}`);
  assertMatch(refuse(map, create("x", 1, many)).message, /17 zones are too many: 16/);
  assertMatch(
    refuse(clusterIn("", ""), create("x", 1, ["a"])).message,
    /none has a zone of a name/,
  );
  const drained = runAll(map, { kind: "set-availability", node: 1, availability: "draining" });
  const none = refuse(drained, create("x", 1, ["rack-2"]));
  assertEquals(none.code, "unavailable");
  assertMatch(none.message, /no node of zone rack-2 is up and in/);
  assertEquals(
    refuse(drained, { kind: "set-copies", name: "web", zones: ["rack-2"] }).code,
    "unavailable",
  );
  // At level 1 there are none: the codec has no place for them.
  assertEquals(zonesOf(clusterOf(1), { pool: 3 }), []);
});

Deno.test("there are so many pools with zones and no more, fewer where there are more PGs; a split waits for it", () => {
  const names = Array.from({ length: 6 }, (_, index) => `z${index}`);
  const places = names.flatMap((zone) => [1, 2, 3].map((copies) => [copies, [zone]] as const));
  let map = clusterIn(...names);
  for (const [index, [copies, zones]] of places.slice(0, ZONED_POOLS_MAX).entries()) {
    map = runAll(map, create(`d${index}`, copies, zones));
  }
  const [copies, zones] = places[ZONED_POOLS_MAX];
  const refused = refuse(map, create("more", copies, zones));
  assertEquals(refused.code, "limit");
  assertMatch(refused.message, /16 different sets of zones/);
  const moving = { kind: "set-copies", name: "d0", copies, zones } as const;
  assertEquals(refuse(map, moving).code, "limit");
  // One that there is, and no zones, are not one more; and one that nobody has any more makes room, when the trash is empty.
  map = runAll(map, create("same", 1, ["z0"]), create("any", 2), {
    kind: "delete-disk",
    name: "same",
  });
  const trashed = runAll(map, { kind: "delete-disk", name: "d1", trashedMs: 1 });
  assertEquals(refuse(trashed, create("more", copies, zones)).code, "limit");
  const purged = runAll(trashed, { kind: "purge-disk", id: trashed.trash[0].disk.id });
  assertEquals(checkMap(runAll(purged, create("more", copies, zones))), null);
  // 4096 PGs are the most of sixteen pools.
  for (let pgBits = 8; pgBits < 12; pgBits++) map = runAll(map, { kind: "split-groups", pgBits });
  assertMatch(refuse(map, { kind: "split-groups", pgBits: 12 }).message, /too many of the pools/);
  let few = clusterIn(...names);
  for (let pgBits = 8; pgBits < PG_BITS_MAX; pgBits++) {
    few = runAll(few, { kind: "split-groups", pgBits });
  }
  for (const [index, [copies, zones]] of places.slice(0, 4).entries()) {
    few = runAll(few, create(`d${index}`, copies, zones));
  }
  assertMatch(refuse(few, create("more", 2, ["z5"])).message, /^disks have 4 different/);
  assert(unwrap(encodeMap(few)).length < 2 ** 20);
});

Deno.test("a zone with fewer nodes than copies has as many as it has nodes, and more as nodes come", () => {
  let map = settled(runAll(clusterIn("a", "b", "b"), create("web", 3, ["a"])));
  assertEquals([holders(map), width(map), copiesMinOf(map, web(map))], [[1], 1, 1]);
  assertEquals(
    zonesProblem(map, home(map)),
    "zone a has 1 node that takes data, too few for 3 copies",
  );
  map = settled(withZone(map, 2, "a"));
  assertEquals([holders(map), width(map), copiesMinOf(map, web(map))], [[1, 2], 2, 1]);
  map = settled(runAll(map, addNode(4, { zone: "a", protocol: 2 })));
  assertEquals([holders(map), width(map), copiesMinOf(map, web(map))], [[1, 2, 4], 3, 2]);
  assertEquals(zonesProblem(map, home(map)), null);
  // Node 3 of another zone counts for nothing, nor would another one there.
  const more = settled(runAll(map, addNode(5, { zone: "b", protocol: 2 })));
  assertEquals(home(more).pgs, home(map).pgs);
});

Deno.test("a node that leaves the zones gives everything away, one that comes gets its share, and nobody else moves", () => {
  const zones = ["a", "a", "a", "a", "b", "b"];
  const before = settled(runAll(clusterIn(...zones), create("web", 2, ["a"])));
  const had = home(before).pgs.filter(({ target }) => target.includes(4)).length;
  const left = withZone(before, 4, "b");
  const changes = targetChanges(left, home(left));
  assertEquals(changes.length, had, "only what it had");
  for (const [pg, target] of changes) {
    const stay = home(before).pgs[pg].target.filter((id) => id !== 4);
    assertEquals(target.slice(0, stay.length), stay);
  }
  const map = settled(left);
  assertEquals([holders(map), width(map)], [[1, 2, 3], 2]);
  const back = withZone(map, 4, "a");
  const moved = targetChanges(back, home(back));
  assert(Math.abs(moved.length - 128) <= 8, `${moved.length} of 256 PGs go to one of four nodes`);
  for (const [, target] of moved) assert(target.includes(4));
});

Deno.test("where a zone has no node left nothing is dropped and nothing moves, and it says so", () => {
  const before = settled(runAll(clusterIn("a", "a", "b", "b"), create("web", 2, ["a"])));
  const leaving: [string, ClusterMap][] = [
    ["to another zone", withZone(withZone(before, 1, "b"), 2, "b")],
    [
      "drained",
      runAll(
        before,
        { kind: "set-availability", node: 1, availability: "draining" },
        { kind: "set-availability", node: 2, availability: "draining" },
      ),
    ],
    [
      "of no weight",
      runAll(
        before,
        { kind: "set-weight", node: 1, weight: 0 },
        { kind: "set-weight", node: 2, weight: 0 },
      ),
    ],
    [
      "out",
      runAll(
        before,
        { kind: "node-down", node: 2, incarnation: 1, nowMs: 0 },
        { kind: "set-availability", node: 2, availability: "out" },
        { kind: "set-availability", node: 1, availability: "draining" },
      ),
    ],
  ];
  for (const [how, gone] of leaving) {
    assertEquals(targetChanges(gone, home(gone)), [], how);
    const map = placed(gone);
    const kept = how === "out" ? [1] : [1, 2];
    assertEquals(holders(map), kept, how);
    assertEquals(
      zonesProblem(map, home(map)),
      "no node of zone a takes data, so all stays where it is",
      how,
    );
    assertEquals(summarizeGroups(map).unreachable, 0, how);
    // Another node in the zone: there it goes.
    const again = settled(withZone(map, 3, "a"));
    assertEquals([holders(again), width(again)], [[3], 1], how);
  }
  // Where writes would have to wait, who has it stays, and of those who have it first who is in the zone.
  const three = settled(runAll(clusterIn("a", "a", "a", "b"), create("web", 3, ["a"])));
  const thin = runAll(
    three,
    { kind: "set-availability", node: 2, availability: "draining" },
    { kind: "set-weight", node: 3, weight: 0 },
  );
  for (const { target } of placed(thin).pools[0].pgs) {
    assertEquals(target.length, 2);
    assert(target.includes(1), "the node that takes data has it");
  }
  const outside = withZone(
    runAll(three, { kind: "set-availability", node: 2, availability: "draining" }),
    3,
    "b",
  );
  // One of two copies is enough to write to: nobody else is needed.
  assertEquals(holders(placed(outside)), [1]);
  const strict = runAll(outside, { kind: "change-disk", name: "web", copiesMin: 2 });
  assertEquals(holders(placed(strict)), [1, 2], "before a node of another zone");
});

Deno.test("all of a family go together, those in the trash and those made meanwhile as well", () => {
  const clone = (name: string) =>
    ({ kind: "clone-disk", disk: "web", snapshot: "s", name, nowMs: 0 }) as const;
  let map = runAll(
    clusterIn("a", "b", "a", "b"),
    create("web", 2),
    { kind: "create-snapshots", disks: [1], name: "s", nowMs: 0 },
    clone("old"),
    clone("app"),
    { kind: "delete-disk", name: "old", trashedMs: 1 },
  );
  map = runAll(set(settled(map), { zones: ["a"] }, "app"), clone("new"));
  map = settled(map);
  assertEquals(map.disks.map((disk) => zonesOf(map, disk)), [["a"], ["a"], ["a"]]);
  map = runAll(
    map,
    { kind: "restore-disk", id: map.trash[0].disk.id, name: "back" },
    { kind: "rollback-disk", disk: "web", snapshot: "s", nowMs: 0 },
    clone("last"),
  );
  for (const disk of [...map.disks, ...map.trash.map((each) => each.disk)]) {
    assertEquals([zonesOf(map, disk), holders(map, disk)], [["a"], [1, 3]]);
  }
  // The last of them takes the pool along, wherever it is.
  const gone = map.disks.map(({ name }) => ({ kind: "delete-disk", name }) as const);
  const left = runAll(map, ...gone);
  assertEquals(left.pools.filter(({ zones }) => zones.length > 0).length, 1, "there is the trash");
  const purged = runAll(left, { kind: "purge-disk", id: left.trash[0].disk.id });
  assertEquals(purged.pools.map(({ id }) => id), [2]);
  const moving = set(map, { zones: ["b"] });
  const away = runAll(moving, ...gone, { kind: "purge-disk", id: moving.trash[0].disk.id });
  assertEquals(away.pools.map(({ id }) => id), [2], "also while it is on its way");
});

Deno.test("it is taken back half way, also where nobody takes data any more, and goes elsewhere instead", () => {
  const before = settled(runAll(clusterIn("a", "a", "b", "b", "c"), create("web", 2, ["a"])));
  let map = placed(set(before, { zones: ["b"] }));
  assertEquals(holders(map), [1, 2, 3, 4]);
  assertEquals(map.pools.length, 3);
  map = set(map, { zones: ["a"] });
  assertEquals([own(map).to, moveOf(map, 1)!.isBack], [home(map).id, true]);
  assertEquals(map.pools.length, 2, "the pool of zone b is nobody's goal any more");
  map = settled(map);
  assertEquals([holders(map), map.pools.length], [[1, 2], 1]);
  // The way back is open when zone a has lost its nodes, and when it is called so no more.
  for (const [node, zone] of [[1, "c"], [2, "c"]] as const) {
    const halfway = placed(set(before, { zones: ["b"] }));
    let lost = withZone(halfway, node, zone);
    lost = withZone(lost, 3 - node, zone);
    const back = set(lost, { zones: ["a"] });
    assertEquals([own(back).to, moveOf(back, 1)!.isBack], [home(back).id, true]);
    assertEquals(holders(settled(back)), [1, 2]);
    assertEquals(
      refuse(settled(back), { kind: "set-copies", name: "web", zones: ["x"] }).code,
      "invalid",
    );
    // What is not said stays as it is to be.
    const less = set(lost, { copies: 1 });
    assertEquals(zonesOf(less, { pool: own(less).to }), ["b"]);
  }
  const other = settled(
    set(placed(set(before, { zones: ["b"] })), { zones: ["c", "b"], copies: 3 }),
  );
  assertEquals([holders(other), width(other), other.pools.length], [[3, 4, 5], 3, 1]);
});

Deno.test("an heir of data that is given up is of the zones, if there is one", () => {
  const give = (map: ClusterMap) =>
    step(map, { kind: "remove-node", node: 2, nowMs: 0, force: true, acceptLoss: true }).map;
  const down = { kind: "node-down", node: 2, incarnation: 1, nowMs: 0 } as const;
  const one = settled(runAll(clusterIn("b", "a", "b", "a"), create("web", 1, ["a"])));
  const map = give(step(one, down).map);
  assertEquals(holders(map), [4]);
  assertEquals(map.losses.map(({ pool }) => pool), [1]);
  const alone = settled(runAll(clusterIn("b", "a", "b"), create("web", 1, ["a"])));
  const elsewhere = give(step(alone, down).map);
  assertEquals(holders(elsewhere), [1, 3], "there is none: it must be somewhere");
});

Deno.test("previews count what is kept in zones, on its way and stays where it is", () => {
  const conditions = { usedBytes: new Map([[1, 1000], [3, 1000]]), rateBytesPerSecond: null };
  const preview = (map: ClusterMap, ...change: [number, object]) =>
    unwrap(previewNodeChange(map, change[0], change[1], conditions));
  const map = settled(runAll(clusterIn("a", "a", "b", "b"), create("web", 1, ["a"])));
  const had = home(map).pgs.filter(({ target }) => target.includes(1)).length;
  for (const change of [{ availability: "draining" }, { zone: "b" }, { weight: 0 }]) {
    const plan = preview(map, 1, change);
    assertEquals([plan.movedReplicas, plan.groupsImmovable], [had, 0]);
    assertEquals(plan.nodes.map(({ id, comes, goes }) => [id, comes, goes]), [[1, 0, had], [
      2,
      had,
      0,
    ]]);
    assert(plan.movedBytes! > 0);
  }
  // Node 3 has nothing of it, and gets none; in zone a it would.
  assertEquals(preview(map, 3, { availability: "draining" }).movedReplicas, 0);
  assert(preview(map, 3, { zone: "a" }).movedReplicas > 80);
  // The last two of the zone.
  const alone = runAll(map, { kind: "set-availability", node: 2, availability: "draining" });
  const last = settled(alone);
  assertEquals(preview(last, 1, { availability: "draining" }).groupsImmovable, 256);
  assertEquals(preview(last, 1, { zone: "c" }).groupsImmovable, 256);
  assertEquals(preview(last, 1, { zone: "c" }).movedReplicas, 0);
  assertEquals(preview(last, 3, { availability: "draining" }).groupsImmovable, 0);
  // A zone of which no node takes data keeps nobody elsewhere from being drained.
  const given = runAll(last, create("any", 2), {
    kind: "set-availability",
    node: 1,
    availability: "out",
  }, addNode(5, { protocol: 2 }));
  const other = preview(settled(given), 3, { availability: "draining" });
  assertEquals([other.movedReplicas > 0, other.groupsImmovable], [true, 0]);
  // On its way to zone b a drain there moves what shall be there.
  const moving = placed(set(map, { zones: ["b"] }));
  const plan = preview(moving, 3, { availability: "draining" });
  assert(plan.movedReplicas > 100 && plan.groupsImmovable === 0);
});

Deno.test("random zones, nodes and changes: what placement says of all holds of the nodes of the zones", () => {
  const random = new Prng(7);
  const pick = <T>(list: readonly T[]): T => list[random.below(list.length)];
  const names = ["a", "b", "c", "d", ""];
  let checked = 0;
  let empty = 0;
  for (let round = 0; round < 40; round++) {
    let map = clusterIn(...Array.from({ length: 2 + random.below(8) }, () => pick(names)));
    map = { ...map, pgBits: 5 };
    const there = [...new Set(map.nodes.map(({ zone }) => zone))].filter((zone) => zone !== "");
    for (let index = 0; index < 3 && there.length > 0; index++) {
      const zones = there.filter(() => random.below(2) === 0);
      map = runAll(map, create(`d${index}`, 1 + random.below(4), zones));
    }
    for (let change = 0; change < 6; change++) {
      const isUsable = (node: NodeEntry) => weightIn([], node) > 0;
      const node = pick(map.nodes).id;
      map = freeze(runAll(
        map,
        pick<MapCommand>([
          { kind: "set-zone", node, zone: pick(names) },
          { kind: "set-weight", node, weight: pick([null, 0, 5e11, 3e12]) },
          { kind: "set-availability", node, availability: pick(["in", "draining"]) },
          addNode(map.nextNode, { zone: pick(names), protocol: 2 }),
        ]),
      ));
      for (const pool of map.pools) {
        const inside = map.nodes.filter((each) => isInZones(pool.zones, each) && isUsable(each));
        const placement = placePool(map, pool);
        const previous = pool.pgs.map(({ target }) => target);
        if (inside.length === 0) {
          assertEquals(placement.targets, previous);
          empty++;
          continue;
        }
        const copiesMin = Math.max(
          ...map.disks.filter((disk) => disk.pool === pool.id).map((disk) =>
            copiesMinToBe(map, disk)
          ),
          1,
        );
        // Below that who has it is needed yet, wherever it is.
        if (inside.length < copiesMin) continue;
        const input = {
          pgCount: 32,
          copies: pool.copies,
          previous,
          nodes: inside.map((each) => ({
            id: each.id,
            zone: each.zone,
            weight: weightIn([], each),
          })),
        };
        const what = `round ${round}, change ${change}, pool ${pool.id} in ${pool.zones}`;
        assertEquals(faultsOf(input, placement).slice(0, 3), [], what);
        const least = fewestMoves(
          input,
          new Map(placement.nodes.map(({ id, ideal }) => [id, ideal])),
        );
        assert(placement.moved <= Math.ceil(1.1 * least), `${what}: ${placement.moved}, ${least}`);
        checked++;
      }
      map = placed(map);
      assert(map.pools.every(({ pgs }) => pgs.every(isOpenGroup)));
    }
  }
  assert(checked > 300 && empty > 10, `${checked} tables, ${empty} of nobody`);
});
