/**
 * Who comes in sync while the only one that was is down.
 *
 * @module
 */
import { assertEquals } from "@std/assert/mod.js";
import { summarizeGroups } from "../../agent/map/group_summary.ts";
import { checkMap, type ClusterMap, type MapCommand, settlerOf } from "../../agent/map/map.ts";
import { atLevelTwo, clusterOf, group, nodeUp, runAll, setTargets } from "./cluster.ts";

const down = (node: number): MapCommand => ({ kind: "node-down", node, incarnation: 1, nowMs: 9 });

/**
 * A disk of some copies of which node 1 has everything and node 2 joins, and has copied all of it. Node 1 dies; the map hears of that
 * before it hears that node 2 is in sync, which was still syncing what it had copied.
 */
function joinedLate(copies: number, targets: readonly number[]): ClusterMap {
  const pgs = Array.from({ length: 256 }, (_, pg) => pg);
  let map = atLevelTwo(clusterOf(3));
  map = runAll(
    map,
    { kind: "create-disk", name: "web", sizeBytes: 2 ** 30, nowMs: 0, copies },
    { kind: "delete-disk", name: "web" },
  );
  // Without a disk the targets are in sync at once.
  map = runAll(map, setTargets(map, copies, ...pgs.map((pg) => [pg, [1]] as const)));
  map = runAll(map, { kind: "create-disk", name: "web", sizeBytes: 2 ** 30, nowMs: 0, copies });
  map = runAll(map, setTargets(map, copies, ...pgs.map((pg) => [pg, targets] as const)));
  map = runAll(map, { kind: "start-joining", pool: copies, pgs, node: 2, incarnation: 1 });
  assertEquals([group(map).inSync, group(map).joining], [[1], [2]]);
  const basedOnEpoch = map.epoch;
  return runAll(map, down(1), {
    kind: "in-sync",
    pool: copies,
    pgs,
    node: 2,
    incarnation: 1,
    basedOnEpoch,
  });
}

Deno.test("who comes in sync while the only other one is down has the only copy, and keeps it", () => {
  const map = joinedLate(2, [1, 2]);
  assertEquals(group(map).inSync, [2], "node 1 would have left if it had gone down a moment later");
  assertEquals(summarizeGroups(map).degraded, 256, "one copy of two");
  // The agent of node 2 is started anew: it has everything, and has lost nothing.
  const away = runAll(map, { kind: "node-leave", node: 2, incarnation: 1, nowMs: 10 });
  assertEquals(group(away).inSync, [2], "node 1 may never come back");
});

Deno.test("who comes in sync while the only other one is down settles by itself after a crash", () => {
  const pgs = Array.from({ length: 256 }, (_, pg) => pg);
  let map = joinedLate(2, [1, 2]);
  // The host of node 2 loses power, too. Node 1 stays away.
  map = runAll(map, down(2), nodeUp(2, { protocol: 2, bootId: "b" }));
  map = runAll(map, { kind: "drop-unclean", pool: 2, pgs, node: 2 });
  map = runAll(map, { kind: "unsettle", pool: 2, pgs });
  assertEquals(settlerOf(map, group(map)), 2, "all that was flushed is there");
});

Deno.test("who comes in sync while the only other one is down settles by itself after a crash that was too short to notice", () => {
  const pgs = Array.from({ length: 256 }, (_, pg) => pg);
  let map = runAll(joinedLate(2, [1, 2]), nodeUp(2, { protocol: 2, bootId: "b" }));
  map = runAll(map, { kind: "drop-unclean", pool: 2, pgs, node: 2 });
  map = runAll(map, { kind: "drop-member", node: 1, incarnation: 1, by: 2, nowMs: 11 });
  map = runAll(map, { kind: "unsettle", pool: 2, pgs });
  assertEquals(settlerOf(map, group(map)), 2, "all that was flushed is there");
});

Deno.test("a node that is forgotten is in no target, whoever else there is", () => {
  let map = joinedLate(1, [2]);
  map = runAll(
    map,
    { kind: "set-availability", node: 3, availability: "out" },
    { kind: "set-availability", node: 2, availability: "draining" },
  );
  // The placement of the leader, for which node 1 is the only one that takes data, until it is out.
  map = runAll(map, setTargets(map, 1, ...map.pools[0].pgs.map((_, pg) => [pg, [1]] as const)));
  map = runAll(
    map,
    { kind: "set-voters", voters: [2, 3] },
    { kind: "remove-node", node: 1, force: true, nowMs: 20 },
  );
  assertEquals(checkMap(map), null);
});
