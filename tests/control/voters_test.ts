import { assertEquals } from "@std/assert/mod.js";
import { chooseVoters, nextChange, votersWanted } from "../../agent/control/voters.ts";
import type { ClusterMap, NodeEntry } from "../../agent/map/map.ts";
import { clusterOf } from "../map/cluster.ts";

/** A cluster with changes to some of its nodes. */
function cluster(count: number, changes: Record<number, Partial<NodeEntry>> = {}): ClusterMap {
  const map = clusterOf(count);
  return { ...map, nodes: map.nodes.map((node) => ({ ...node, ...changes[node.id] })) };
}

Deno.test("one voter up to two nodes, three up to four, five from five on", () => {
  const wanted = [0, 1, 2, 3, 4, 5, 6, 7, 50].map(votersWanted);
  assertEquals(wanted, [1, 1, 1, 3, 3, 5, 5, 5, 5]);
});

type Choice = [
  what: string,
  map: ClusterMap,
  current: number[],
  gone: number[],
  expected: number[],
];

const CHOICES: readonly Choice[] = [
  ["the first ones of many", cluster(7), [], [], [1, 2, 3, 4, 5]],
  ["who votes already stays", cluster(7), [3, 4, 5, 6, 7], [], [3, 4, 5, 6, 7]],
  ["who is gone is replaced", cluster(4), [1, 2, 3], [2], [1, 3, 4]],
  ["who is gone with nobody in its place goes on counting", cluster(3), [1, 2, 3], [2], [1, 2, 3]],
  [
    "who is about to leave for good does not count",
    cluster(3, { 2: { availability: "draining" } }),
    [1, 2, 3],
    [],
    [1],
  ],
  ["a witness is preferred to a new one", cluster(4, { 4: { witness: true } }), [], [], [1, 2, 4]],
  ["but not to one that votes", cluster(4, { 4: { witness: true } }), [1, 2, 3], [], [1, 2, 3]],
  [
    "zones come before all else",
    cluster(5, {
      1: { zone: "a" },
      2: { zone: "a" },
      3: { zone: "a" },
      4: { zone: "b" },
      5: { zone: "c" },
    }),
    [1, 2, 3],
    [],
    [1, 2, 3, 4, 5],
  ],
  [
    "a zone without a voter gets one in place of a second in another",
    cluster(4, { 1: { zone: "a" }, 2: { zone: "a" }, 3: { zone: "b" }, 4: { zone: "c" } }),
    [1, 2, 3],
    [],
    [1, 3, 4],
  ],
  ["one that is not in comes last", cluster(4, { 1: { availability: "out" } }), [], [], [2, 3, 4]],
];

for (const [what, map, current, gone, expected] of CHOICES) {
  Deno.test(`voters are chosen: ${what}`, () => {
    assertEquals(chooseVoters(map, current, ({ id }) => gone.includes(id)), expected);
  });
}

interface Situation {
  readonly voters: number[];
  readonly learners?: number[];
  /** Nodes that have not been heard of lately. */
  readonly silent?: number[];
  /** Nodes that answer, and whose disk hangs. */
  readonly hung?: number[];
  readonly gone?: number[];
  readonly self?: number;
}

function next(
  map: ClusterMap,
  { voters, learners = [], silent = [], hung = [], gone = [], self = 1 }: Situation,
) {
  const members = [...voters, ...learners].filter((node) => node !== self).map((node) => ({
    node,
    isLearner: learners.includes(node),
    state: "replicate" as const,
    match: hung.includes(node) ? 100 : 900,
    silentMs: silent.includes(node) ? 60_000 : 10,
    snapshotBytes: 0,
    hasLostLog: false,
  }));
  const change = nextChange({
    map,
    self,
    configuration: { voters, learners },
    members,
    commit: 900,
    isGone: ({ id }) => gone.includes(id),
  });
  return change === null ? null : `${change.kind} ${change.node}`;
}

Deno.test("a cluster grows from one voter to three, one step at a time", () => {
  const map = cluster(3);
  assertEquals(next(map, { voters: [1] }), "add-learner 2");
  assertEquals(next(map, { voters: [1], learners: [2] }), "add-learner 3");
  assertEquals(next(map, { voters: [1], learners: [2, 3] }), "promote 2");
  assertEquals(next(map, { voters: [1, 2], learners: [3] }), "promote 3");
  assertEquals(next(map, { voters: [1, 2, 3] }), null);
});

Deno.test("two nodes keep one voter", () => {
  assertEquals(next(cluster(2), { voters: [1], learners: [2] }), null);
});

Deno.test("who has not been heard of is not made a voter", () => {
  assertEquals(next(cluster(3), { voters: [1], learners: [2, 3], silent: [2] }), "promote 3");
  assertEquals(next(cluster(3), { voters: [1], learners: [2, 3], silent: [2, 3] }), null);
});

Deno.test("a voter that is gone is replaced: the new one first, then the old one goes", () => {
  const map = cluster(4);
  const dead = { silent: [2], gone: [2] };
  assertEquals(next(map, { voters: [1, 2, 3], learners: [4], ...dead }), "promote 4");
  assertEquals(next(map, { voters: [1, 2, 3, 4], ...dead }), "demote 2");
  assertEquals(next(map, { voters: [1, 3, 4], learners: [2], ...dead }), null);
});

Deno.test("with nobody to take its place a dead voter stays one", () => {
  const dead = { voters: [1, 2, 3], silent: [2], gone: [2] };
  assertEquals(next(cluster(3), dead), null);
  const draining = cluster(3, { 2: { availability: "draining" } });
  assertEquals(next(draining, dead), "demote 2");
});

Deno.test("the leader does not demote itself, and strangers are removed last", () => {
  const map = cluster(1);
  assertEquals(next(map, { voters: [1, 2], self: 1 }), "demote 2");
  assertEquals(next(map, { voters: [1], learners: [2] }), "remove 2");
  assertEquals(next(map, { voters: [1] }), null);
});

Deno.test("a voter that the map does not know is demoted before it is removed", () => {
  const map = cluster(3);
  const nodes = map.nodes.filter(({ id }) => id !== 2);
  const left = { ...map, nodes: [...nodes, { ...map.nodes[1], id: 4 }] };
  const stranger = { silent: [2, 4], gone: [2] };
  assertEquals(next(left, { voters: [1, 2, 3], learners: [4], ...stranger }), "demote 2");
  assertEquals(next(left, { voters: [1, 3], learners: [2, 4], silent: [2, 4] }), "remove 2");
});

Deno.test("who answers while its disk hangs is not made a voter, and nobody goes whose vote is needed for that", () => {
  assertEquals(next(cluster(3), { voters: [1], learners: [2, 3], hung: [2] }), "promote 3");
  const draining = cluster(3, { 3: { availability: "draining" } });
  const drained = { voters: [1, 2, 3], self: 2, gone: [3] };
  assertEquals(next(draining, drained), "demote 3");
  assertEquals(next(draining, { ...drained, hung: [1] }), null);
  // The one whose disk hangs goes first, where it is to go at all.
  const both = cluster(4, { 3: { availability: "draining" }, 4: { availability: "draining" } });
  const four = { voters: [1, 2, 3, 4], self: 1, gone: [3, 4] };
  assertEquals(next(both, { ...four, hung: [4] }), "demote 4");
});
