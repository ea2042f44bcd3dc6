/**
 * A cluster that grows under guests: a node that has just come is none that writes wait for.
 *
 * @module
 */
import { assertEquals } from "@std/assert/mod.js";
import { unwrap } from "../../agent/map/errors.ts";
import {
  apply,
  checkMap,
  type ClusterMap,
  copiesMinOf,
  type DiskEntry,
  findDisk,
  groupCanWrite,
  type MapCommand,
  poolOf,
} from "../../agent/map/map.ts";
import { decodeMap, encodeMap } from "../../agent/map/map_codec.ts";
import { summarizeGroups } from "../../agent/map/group_summary.ts";
import { targetChanges } from "../../agent/map/targets.ts";
import { addNode, atLevelTwo, clusterOf, run, setTargets } from "./cluster.ts";

/** Each step leaves a map that keeps its invariants and comes back from its bytes as it is. */
function all(map: ClusterMap, ...commands: MapCommand[]): ClusterMap {
  let next = map;
  for (const command of commands) {
    next = unwrap(apply(next, command)).map;
    assertEquals(checkMap(next), null);
  }
  assertEquals(unwrap(decodeMap(unwrap(encodeMap(next)))), next);
  return next;
}

function add(number: number, zone = ""): MapCommand {
  return addNode(number, { protocol: 2, zone });
}

function create(part: object = {}): MapCommand {
  return { kind: "create-disk", name: "web", sizeBytes: 2 ** 40, nowMs: 0, copies: 3, ...part };
}

function down(node: number): MapCommand {
  return { kind: "node-down", node, incarnation: 1, nowMs: 9 };
}

/** What the leader does about places at once: targets, and who belongs there begins to copy. */
function placed(map: ClusterMap): ClusterMap {
  let next = map;
  for (const { id, family } of map.pools) {
    if (family === 0) {
      const changes = targetChanges(next, next.pools.find((pool) => pool.id === id)!);
      next = run(next, setTargets(next, id, ...changes)).map;
    }
    const pgs = map.pools[0].pgs.map((_, pg) => pg);
    for (const { id: node, state } of map.nodes) {
      if (state !== "up") continue;
      next = run(next, { kind: "start-joining", pool: id, pgs, node, incarnation: 1 }).map;
    }
  }
  return next;
}

/** A node has copied all that it joined, or only the first so many PGs. */
function copied(map: ClusterMap, node: number, groups = Infinity): ClusterMap {
  const pgs = map.pools[0].pgs.map((_, pg) => pg).slice(0, groups);
  const pool = poolOf(map, web(map))!.id;
  const basedOnEpoch = map.epoch;
  return all(map, { kind: "in-sync", pool, pgs, node, incarnation: 1, basedOnEpoch });
}

function web(map: ClusterMap): DiskEntry {
  return findDisk(map, "web")!;
}

/** PGs in sync on the fewest nodes, the fewest to write to, and why something cannot be written. */
function state(map: ClusterMap): [number, number, string | null] {
  const pool = poolOf(map, web(map))!;
  const copiesMin = copiesMinOf(map, web(map));
  const reasons = pool.pgs.map((pg) => groupCanWrite(map, pg, copiesMin));
  const reason = reasons.find((each) => each !== null) ?? null;
  assertEquals(summarizeGroups(map).unwritableReason, reason ?? "");
  return [Math.min(...pool.pgs.map(({ inSync }) => inSync.length)), copiesMin, reason];
}

Deno.test("a guest on the first host writes on while the next two join and copy", () => {
  let map = placed(all(atLevelTwo(clusterOf(1)), create()));
  map = placed(all(map, add(2)));
  map = placed(all(map, add(3)));
  assertEquals(state(map), [1, 1, null]);
  map = copied(map, 2, 100);
  assertEquals(state(map), [1, 1, null]);
  map = copied(map, 2);
  assertEquals(state(map), [2, 1, null]);
  map = copied(map, 3, 100);
  assertEquals(state(map), [2, 1, null]);
  // From here on the majority of three that was asked for holds, whoever fails.
  map = copied(map, 3);
  assertEquals(state(map), [3, 2, null]);
  map = all(map, down(2), down(3));
  assertEquals(state(map).slice(0, 2), [1, 2]);
});

Deno.test("a host that takes the place of a dead one makes nobody wait, whether that was removed before or not", () => {
  const remove: MapCommand = { kind: "remove-node", node: 2, force: true, nowMs: 10 };
  let two = placed(all(atLevelTwo(clusterOf(2)), create()));
  two = all(two, down(2));
  assertEquals(state(two), [1, 1, null]);
  assertEquals(state(placed(all(two, add(3)))), [1, 1, null]);
  assertEquals(state(placed(all(two, add(3), add(4)))), [1, 1, null]);
  assertEquals(state(placed(all(two, remove, add(3), add(4)))), [1, 1, null]);
  // Three that were there count, until they are forgotten.
  let three = placed(all(atLevelTwo(clusterOf(3)), create()));
  three = all(three, down(2), down(3));
  assertEquals(state(three).slice(0, 2), [1, 2]);
  assertEquals(state(placed(all(three, add(4), add(5)))).slice(0, 2), [1, 2]);
  three = all(three, remove, { ...remove, node: 3 });
  assertEquals(state(placed(all(three, add(4), add(5)))), [1, 1, null]);
});

Deno.test("what was asked for by number holds as soon as all data has as many copies", () => {
  let map = placed(all(atLevelTwo(clusterOf(1)), create({ copiesMin: 2 })));
  map = placed(all(map, add(2)));
  assertEquals(state(map), [1, 1, null]);
  assertEquals(state(copied(map, 2)), [2, 2, null]);
  let five = placed(all(atLevelTwo(clusterOf(3)), create({ copies: 5 })));
  five = placed(all(five, down(3), add(4), add(5)));
  assertEquals(state(five), [2, 2, null]);
  five = copied(copied(five, 4), 5);
  assertEquals(state(five), [4, 3, null], "a majority of four: node 3 is not back");
});

Deno.test("a node that comes to the zone of a disk is none that it waits for, also on the disk's way elsewhere", () => {
  const zoned = all(atLevelTwo(clusterOf(1)), add(2), add(3), {
    kind: "set-zone",
    node: 1,
    zone: "a",
  }, create({ zones: ["a"] }));
  const come = [2, 3].map((node) => ({ kind: "set-zone", node, zone: "a" }) as const);
  let map = placed(all(placed(zoned), ...come));
  assertEquals(state(map), [1, 1, null]);
  // The pool that it comes from is empty meanwhile, and says nothing of its data.
  map = placed(placed(all(map, { kind: "set-copies", name: "web", zones: [] })));
  assertEquals(state(map), [1, 1, null]);
  map = all(
    map,
    { kind: "set-copies", name: "web", zones: ["a"] },
    create({
      name: "other",
      zones: ["a"],
    }),
  );
  assertEquals(state(map), [1, 1, null]);
  map = copied(copied(map, 2), 3);
  assertEquals(state(map), [3, 1, null], "another disk there has fewer");
  const pool = findDisk(map, "other")!.pool;
  const pgs = map.pools[0].pgs.map((_, pg) => pg);
  for (const node of [2, 3]) {
    const basedOnEpoch = map.epoch;
    map = all(map, { kind: "in-sync", pool, pgs, node, incarnation: 1, basedOnEpoch });
  }
  assertEquals(state(map), [3, 2, null]);
  // Who leaves the zones counts no more.
  const left = all(zoned, ...come, { kind: "set-zone", node: 2, zone: "b" });
  assertEquals(copiesMinOf(left, web(left)), 1);
});
