/**
 * What the status says to do must come true: hints about nodes that are down, and about those that are up and lack their copies.
 *
 * @module
 */
import { assert, assertEquals, assertStringIncludes } from "@std/assert/mod.js";
import { clusterStatusOf } from "../../agent/cluster_status.ts";
import { summarizeGroups } from "../../agent/map/group_summary.ts";
import type { ClusterMap, NodeEntry } from "../../agent/map/map.ts";
import { findProblems } from "../../agent/problems.ts";
import { unreachedText } from "../../agent/unreached.ts";
import { clusterWithDisk, run } from "../map/cluster.ts";
import { HEALTHY_STORE } from "./fake_backend.ts";

const NOW_MS = 100_000_000;

function problemsOf(map: ClusterMap) {
  const cluster = { ...clusterStatusOf(map, 1, 1), hasQuorum: true };
  const nodes = cluster.nodes.map((node) => ({
    ...node,
    gossip: node.state === "up" ? "alive" as const : "dead" as const,
  }));
  return findProblems({
    map,
    mapBytes: 1000,
    nowMs: NOW_MS,
    cluster: { ...cluster, nodes },
    groups: summarizeGroups(map),
    store: HEALTHY_STORE,
    disks: new Map(),
  });
}

Deno.test("when so many are down together that none is declared out, no status says that copies are made anew in time", () => {
  const before = clusterWithDisk(6, 3);
  const isDown = ({ id }: NodeEntry) => id === 5 || id === 6;
  const down = { state: "down", changedMs: NOW_MS - 60_000 } as const;
  const nodes = before.nodes.map((node) => isDown(node) ? { ...node, ...down } : node);
  const pools = before.pools.map((pool) => ({
    ...pool,
    pgs: pool.pgs.map((pg) => ({ ...pg, target: [1, 2, 5], inSync: [1, 2] })),
  }));
  const problems = problemsOf({ ...before, nodes, pools });
  const shown = JSON.stringify(problems, null, 1);
  const hints = problems.filter(({ code }) => code === "node-down").map(({ hint }) => hint);
  assert(hints.length === 2, shown);
  for (const hint of hints) {
    assert(!/made anew elsewhere in /.test(hint), shown);
    assertStringIncludes(hint, "2 of 6 nodes are down together");
  }
  const degraded = problems.find(({ code }) => code === "degraded")!;
  assert(!degraded.hint.includes("out-after"), shown);
});

/** Three nodes, all up; host-3 has left all groups, since host-1, where the disk is open, could not reach it. */
function cutOff() {
  const take = { kind: "take-lease", id: 1, node: 1, incarnation: 1, generation: 0 } as const;
  const { map } = run(clusterWithDisk(3, 3), take);
  const pools = map.pools.map((pool) => ({
    ...pool,
    pgs: pool.pgs.map((pg) => ({ ...pg, target: [1, 2, 3], inSync: [1, 2] })),
  }));
  return { ...map, pools };
}

Deno.test("where all nodes are up no hint waits for those that are down", () => {
  const map = cutOff();
  const problems = problemsOf(map);
  assertEquals(problems.map(({ code }) => code), ["degraded"]);
  assert(!problems[0].hint.includes("that are down"), problems[0].hint);
});

Deno.test("a node that a holder cannot reach is said to wait for that", () => {
  const map = cutOff();
  const none = { disconnected: [] };
  const reports = new Map([[1, { disconnected: [3] }], [2, none], [3, none]]);
  const [, second, third] = map.nodes;
  assertStringIncludes(
    unreachedText(map, third, reports) ?? "",
    "host-1, where disks are open, has",
  );
  assertStringIncludes(unreachedText(map, third, reports) ?? "", "7461");
  assertEquals(unreachedText(map, second, reports), null);
  // Of a node where no disk is open nobody waits for a connection.
  assertEquals(unreachedText(map, third, new Map([[2, { disconnected: [3] }]])), null);
});
