/**
 * What a change would do, held against what the leader then does.
 *
 * @module
 */
import { assert, assertEquals } from "@std/assert/mod.js";
import { unwrap } from "../../agent/map/errors.ts";
import type { ClusterMap } from "../../agent/map/map.ts";
import {
  COPY_RATE_ASSUMED_BYTES,
  type NodeChange,
  type Preview,
  previewNodeChange,
} from "../../agent/map/preview.ts";
import { targetChanges } from "../../agent/map/targets.ts";
import { addNode, atLevelTwo, clusterWithDisk, refuse, run, setTargets } from "./cluster.ts";

const GIB = 1024 ** 3;

/** A cluster whose targets are as the leader wants them, with everything there. */
function balanced(nodes: number, copies: number): ClusterMap {
  let map = clusterWithDisk(nodes, copies);
  const changes = targetChanges(map, map.pools[0]);
  if (changes.length > 0) map = run(map, setTargets(map, copies, ...changes)).map;
  const pgs = map.pools[0].pgs.map((pg) => ({ ...pg, inSync: pg.target, joining: [] }));
  return { ...map, pools: [{ ...map.pools[0], pgs }] };
}

/** Every node has a GiB of data. */
function usedBytesOf(map: ClusterMap): Map<number, number> {
  return new Map(map.nodes.map(({ id }) => [id, GIB]));
}

function preview(map: ClusterMap, node: number, change: NodeChange): Preview {
  const conditions = { usedBytes: usedBytesOf(map), rateBytesPerSecond: null };
  return unwrap(previewNodeChange(map, node, change, conditions));
}

Deno.test("a drain moves what the node has, and what was shown is what the leader does", () => {
  const map = balanced(5, 2);
  const had = map.pools[0].pgs.filter((pg) => pg.target.includes(3)).length;
  const plan = preview(map, 3, { availability: "draining" });
  assertEquals(plan.targetsEpoch, map.targetsEpoch);
  assertEquals(plan.nodes.find(({ id }) => id === 3)?.goes, had);
  assert(plan.movedReplicas >= had && plan.movedReplicas <= plan.minimumReplicas * 1.1);
  assertEquals(plan.replicasWithoutSource, 0);

  const drained = run(map, { kind: "set-availability", node: 3, availability: "draining" }).map;
  const moved = targetChanges(drained, drained.pools[0]).reduce((sum, [pg, target]) => {
    const before = map.pools[0].pgs[pg].target;
    return sum + target.filter((id) => !before.includes(id)).length;
  }, 0);
  assertEquals(plan.movedReplicas, moved);
});

Deno.test("bytes are shared out from what nodes report, and the slowest node's are the time", () => {
  const map = balanced(5, 2);
  const plan = preview(map, 3, { availability: "draining" });
  // Five nodes have 5 GiB in 512 replicas.
  const perReplica = 5 * GIB / 512;
  assert(Math.abs(plan.movedBytes! - plan.movedReplicas * perReplica) < 1);
  const most = Math.max(
    ...plan.nodes.map((each) => Math.max(each.receivesBytes!, each.sendsBytes!)),
  );
  assert(Math.abs(plan.seconds! - most / COPY_RATE_ASSUMED_BYTES) < 1e-6);
  assertEquals(plan.isRateMeasured, false);

  const conditions = { usedBytes: usedBytesOf(map), rateBytesPerSecond: 1000 };
  const measured = unwrap(previewNodeChange(map, 3, { weight: 0 }, conditions));
  assertEquals([measured.rateBytesPerSecond, measured.isRateMeasured], [1000, true]);
});

Deno.test("what lies in the trash moves, and counts, like everything else", () => {
  const map = atLevelTwo(balanced(5, 2));
  const plan = preview(map, 3, { availability: "draining" });
  const trashed = run(map, { kind: "delete-disk", name: "web", trashedMs: 5 }).map;
  assertEquals(trashed.trash.length, 1);
  assertEquals(preview(trashed, 3, { availability: "draining" }).movedBytes, plan.movedBytes);
});

Deno.test("bytes and time are unknown, not zero, while no node has reported", () => {
  const conditions = { usedBytes: new Map(), rateBytesPerSecond: null };
  const plan = unwrap(previewNodeChange(balanced(5, 2), 3, { weight: 0 }, conditions));
  assertEquals([plan.movedBytes, plan.seconds, plan.nodes[0].sendsBytes], [null, null, null]);
  assert(plan.movedReplicas > 0);
});

Deno.test("who is removed or down sends nothing", () => {
  const map = balanced(5, 1);
  const plan = preview(map, 3, { isRemoved: true });
  assert(plan.replicasWithoutSource > 0);
  assertEquals(plan.movedBytes, 0);
  assertEquals(preview(balanced(5, 2), 3, { isRemoved: true }).replicasWithoutSource, 0);
});

Deno.test("nothing moves for a change that changes nothing, or has nowhere to move to", () => {
  const map = balanced(5, 2);
  for (
    const [of, change] of [
      [map, { zone: "" }],
      [map, { availability: "in" }],
      [map, { weight: 1e12 }],
      [balanced(1, 3), { availability: "draining" }],
      [balanced(3, 3), { weight: 5e12 }],
    ] as const
  ) {
    assertEquals(preview(of, 1, change).movedReplicas, 0);
  }
});

Deno.test("where nodes are too few, PGs have fewer replicas or stay, and it is said", () => {
  const fewer = preview(balanced(3, 3), 2, { availability: "draining" });
  assertEquals(
    [fewer.movedReplicas, fewer.groupsWithFewer, fewer.groupsImmovable],
    [0, 256, 0],
  );
  const stays = preview(balanced(1, 3), 1, { availability: "draining" });
  assertEquals([stays.groupsWithFewer, stays.groupsImmovable], [0, 256]);
  const enough = preview(balanced(4, 3), 2, { availability: "draining" });
  assertEquals([enough.groupsWithFewer, enough.groupsImmovable], [0, 0]);
});

Deno.test("nodes that are drained keep what disks could not be written without, and give it when there is room", () => {
  const asked = (map: ClusterMap, node: number, availability: "in" | "draining") => {
    const next = run(map, { kind: "set-availability", node, availability }).map;
    const changes = targetChanges(next, next.pools[0]);
    return changes.length === 0 ? next : run(next, setTargets(next, 3, ...changes)).map;
  };
  const trimmed = (map: ClusterMap) =>
    run(map, { kind: "trim", pool: 3, pgs: map.pools[0].pgs.map((_, pg) => pg) }).map;
  // Two of three copies are the fewest to write to.
  const one = trimmed(asked(balanced(3, 3), 3, "draining"));
  for (const { target } of one.pools[0].pgs) assertEquals(target.toSorted(), [1, 2]);
  const plan = preview(one, 2, { availability: "draining" });
  assertEquals([plan.groupsWithFewer, plan.groupsImmovable], [0, 256]);
  const both = asked(one, 2, "draining");
  for (const { target, inSync } of both.pools[0].pgs) {
    assertEquals([target.toSorted(), inSync.toSorted()], [[1, 2], [1, 2]]);
  }
  // Both at once: one of the two is enough.
  const atOnce = asked(
    run(balanced(3, 3), { kind: "set-availability", node: 3, availability: "draining" }).map,
    2,
    "draining",
  );
  for (const { target } of atOnce.pools[0].pgs) {
    assertEquals(target.length, 2);
    assert(target.includes(1));
  }
  // With the other forgotten two copies are all there can be, and one is enough to write to.
  const left = run(both, { kind: "remove-node", node: 3, nowMs: 0 }).map;
  for (const [, target] of targetChanges(left, left.pools[0])) assertEquals(target, [1]);
  assertEquals(targetChanges(left, left.pools[0]).length, 256);
  // And with room elsewhere the drain goes on.
  const more = run(both, addNode(4)).map;
  for (const [, target] of targetChanges(more, more.pools[0])) {
    assertEquals(target.toSorted(), [1, 4]);
  }
  assertEquals(targetChanges(more, more.pools[0]).length, 256);
});

Deno.test("what the map refuses has no preview", () => {
  const map = balanced(2, 2);
  const conditions = { usedBytes: new Map(), rateBytesPerSecond: null };
  const result = previewNodeChange(map, 1, { weight: -1 }, conditions);
  if (result.ok) throw new Error("a negative weight was taken");
  assertEquals(result.error, refuse(map, { kind: "set-weight", node: 1, weight: -1 }));
  assertEquals(previewNodeChange(map, 9, { weight: 1 }, conditions).ok, false);
});
