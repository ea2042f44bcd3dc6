/**
 * Placement: small tables, growth, and random clusters with random changes against an oracle that says
 * the rules again and finds the fewest moves by a minimum-cost flow.
 *
 * @module
 */
import { assert, assertAlmostEquals, assertEquals, assertThrows } from "@std/assert/mod.js";
import { Prng } from "../../agent/base/prng.ts";
import {
  PG_COUNT_MAX,
  type PgTargets,
  place,
  type Placement,
  type PlacementInput,
  type PlacementNode,
} from "../../agent/map/placement.ts";
import { sharesOf, topologyOf } from "../../agent/map/placement_shares.ts";
import { faultsOf, fewestMoves, movesOf } from "./placement_oracle.ts";

/** Moves that are allowed, as a multiple of the fewest. */
const MOVES_FACTOR = 1.1;

/** Nodes 1…count, without zones or in zones z0, z1, … in turn. */
function equalNodes(count: number, zones = 0): PlacementNode[] {
  return Array.from({ length: count }, (_, index) => ({
    id: index + 1,
    zone: zones === 0 ? "" : `z${index % zones}`,
    weight: 1000,
  }));
}

/** Places and checks every rule. */
function placeWell(input: PlacementInput, name = ""): Placement {
  const placement = place(input);
  const faults = faultsOf(input, placement);
  assertEquals(faults.slice(0, 5), [], name);
  assertEquals(placement.moved, movesOf(input, placement.targets), name);
  assert(placement.imbalance <= 0.03, name);
  return placement;
}

function idealsOf({ nodes }: Placement): Map<number, number> {
  return new Map(nodes.map(({ id, ideal }) => [id, ideal]));
}

/** Places, checks every rule, and that not too much moves. */
function change(input: PlacementInput, name: string, fewest?: number): Placement {
  const placement = placeWell(input, name);
  const least = fewest ?? fewestMoves(input, idealsOf(placement));
  assert(
    placement.movedMinimum <= least,
    `${name}: bound ${placement.movedMinimum}, least ${least}`,
  );
  assert(placement.moved >= least, `${name}: ${placement.moved} are less than the least, ${least}`);
  assert(
    placement.moved <= least * MOVES_FACTOR,
    `${name}: ${placement.moved} replicas move where ${least} are enough`,
  );
  return placement;
}

Deno.test("a PG is on all nodes as long as there are not more than copies", () => {
  for (const count of [1, 2, 3]) {
    const { targets, nodes, moved } = placeWell({
      pgCount: 8,
      copies: 3,
      previous: [],
      nodes: equalNodes(count),
    });
    assertEquals(moved, 8 * count);
    for (const ids of targets) assertEquals([...ids].sort(), nodes.map(({ id }) => id));
    assertEquals(
      nodes.map(({ before, after, ideal }) => [before, after, ideal]),
      nodes.map(() => [0, 8, 8]),
    );
  }
});

Deno.test("without a node that takes anything, nodes keep what they have", () => {
  const nodes = [{ id: 1, zone: "", weight: 0 }];
  const { targets, moved } = place({ pgCount: 2, copies: 2, previous: [[1, 9], [9]], nodes });
  assertEquals([targets, moved], [[[1], []], 0]);
});

Deno.test("members that stay keep their order, and a table that is right does not change", () => {
  const nodes = equalNodes(3);
  const previous = [[3, 1], [2, 3], [1, 2], [2, 1], [3, 2], [1, 3]].concat([[2, 3], [1, 2]]);
  const same = placeWell({ pgCount: 8, copies: 2, previous, nodes });
  assertEquals([same.targets, same.moved], [previous, 0]);
  const more = placeWell({ pgCount: 8, copies: 3, previous, nodes });
  more.targets.forEach((ids, pg) => assertEquals(ids.slice(0, 2), previous[pg]));
  const fewer = placeWell({ pgCount: 8, copies: 1, previous: more.targets, nodes });
  assertEquals(fewer.moved, 0);
});

Deno.test("old tables may be short, empty, twice the same, or name nodes that are gone", () => {
  const previous = [[77, 1, 1], [], [2, 3, 4], [500]];
  const input = { pgCount: 4, copies: 3, previous, nodes: equalNodes(6) };
  const { targets, nodes } = placeWell(input);
  assert(targets[0].includes(1));
  assertEquals(targets[2], [2, 3, 4]);
  assertEquals(nodes.map(({ id }) => id), [1, 2, 3, 4, 5, 6, 77, 500]);
  assertEquals(nodes.map(({ before }) => before), [1, 1, 1, 1, 0, 0, 1, 1]);
});

Deno.test("place() refuses what makes no sense", () => {
  const good = { pgCount: 4, copies: 3, previous: [], nodes: equalNodes(3) };
  const node = { id: 1, zone: "", weight: 1 };
  const wrong: [Partial<PlacementInput>, string][] = [
    [{ pgCount: 3 }, "power of two"],
    [{ pgCount: PG_COUNT_MAX * 2 }, "power of two"],
    [{ copies: 0 }, "copies"],
    [{ copies: 6 }, "copies"],
    [{ previous: [[1], [1], [1]] }, "does not become"],
    [{ previous: new Array(8).fill([1]) }, "does not become"],
    [{ nodes: [node, node] }, "twice"],
    [{ nodes: [{ ...node, weight: -1 }] }, "weight"],
    [{ nodes: [{ ...node, weight: NaN }] }, "weight"],
  ];
  for (const [part, message] of wrong) {
    assertThrows(() => place({ ...good, ...part }), RangeError, message);
  }
});

Deno.test("a cluster grows from 1 node to 12, one by one", () => {
  let previous: PgTargets = [];
  for (let count = 1; count <= 12; count++) {
    const input = { pgCount: 256, copies: 3, previous, nodes: equalNodes(count) };
    const share = 256 * Math.min(1, 3 / count);
    const low = Math.min(Math.floor(share), Math.ceil(share * 0.97 - 1e-6));
    previous = change(input, `${count} nodes`, count <= 3 ? 256 : low).targets;
  }
});

Deno.test("a node that is drained and comes back moves its share each time", () => {
  const nodes = equalNodes(8, 4);
  const first = placeWell({ pgCount: 256, copies: 3, previous: [], nodes });
  const drained = nodes.map((node) => node.id === 3 ? { ...node, weight: 0 } : node);
  const less = change(
    { pgCount: 256, copies: 3, previous: first.targets, nodes: drained },
    "drain",
  );
  assertEquals(less.nodes[2].after, 0);
  change({ pgCount: 256, copies: 3, previous: less.targets, nodes }, "return");
});

Deno.test("shares follow weights of 1 to 10 as far as a node can hold them", () => {
  const nodes = equalNodes(10).map((node) => ({ ...node, weight: node.id * 100 }));
  const one = placeWell({ pgCount: 1024, copies: 1, previous: [], nodes });
  one.nodes.forEach(({ id, ideal }) => assertAlmostEquals(ideal, 1024 * id / 55, 1e-6));
  // One node is more than a third of everything: it is in every PG, the others share the rest.
  const giant = [...equalNodes(4), { id: 9, zone: "", weight: 10_000 }];
  const { nodes: figures } = placeWell({ pgCount: 256, copies: 3, previous: [], nodes: giant });
  assertEquals(figures.map(({ ideal }) => Math.round(ideal)), [128, 128, 128, 128, 256]);
});

Deno.test("weights may be as far apart as numbers are: next to nothing is nothing beside much", () => {
  for (const [much, little] of [[1e15, 1e-9], [1e12, 1e-300], [1e15, Number.MIN_VALUE]]) {
    const nodes = equalNodes(5).map((node) => ({ ...node, weight: node.id < 4 ? much : little }));
    const placement = placeWell({ pgCount: 256, copies: 2, previous: [], nodes }, `${little}`);
    assertEquals(placement.nodes.map(({ after }) => after > 0), [true, true, true, false, false]);
    const last = placeWell({ pgCount: 256, copies: 4, previous: [], nodes }, `${little}`);
    assertEquals(last.nodes.map(({ after }) => after), [256, 256, 256, 128, 128]);
  }
});

Deno.test("zones of unequal weight: a zone holds one replica of a PG while zones suffice", () => {
  const zones = ["a", "a", "a", "a", "a", "a", "b", "b", "c", "d"];
  const nodes = equalNodes(10).map((node, index) => ({ ...node, zone: zones[index] }));
  const { nodes: figures } = placeWell({ pgCount: 256, copies: 3, previous: [], nodes });
  const ideals = figures.map(({ ideal }) => Math.round(ideal * 100) / 100);
  // Zone a would want 6/10 of three replicas and is cut to one; the others share two.
  assertEquals(ideals, [...new Array(6).fill(42.67), ...new Array(4).fill(128)]);
});

Deno.test("with fewer zones than copies, replicas are spread over them as evenly as possible", () => {
  for (const [zones, copies] of [[1, 3], [2, 3], [2, 4], [2, 5], [3, 4], [3, 5], [4, 5]]) {
    for (const count of [zones, 5, 7, 12]) {
      if (count < zones) continue;
      const input = { pgCount: 64, copies, previous: [], nodes: equalNodes(count, zones) };
      placeWell(input, `${zones} zones, ${copies} copies, ${count} nodes`);
    }
  }
});

Deno.test("ideals are those of water-filling", () => {
  const random = new Prng(11);
  for (let round = 0; round < 300; round++) {
    const zoneCount = random.below(6);
    const nodes = Array.from({ length: 1 + random.below(15) }, (_, index) => ({
      id: index + 1,
      zone: zoneCount === 0 ? "" : `z${random.below(zoneCount)}`,
      weight: random.chance(0.2) ? 1e6 : 1 + random.below(100),
    }));
    const topology = topologyOf(nodes, random.between(1, 5));
    const { ideal } = sharesOf(topology, 1);
    // What holds of the solution and of nothing else: one level for all; a zone at its most may be
    // below it, a zone at its least above.
    let lowest = Infinity;
    let highest = 0;
    let total = 0;
    topology.zones.forEach((members, zone) => {
      const sum = members.reduce((all, node) => all + ideal[node], 0);
      total += sum;
      assert(sum > topology.zoneLow[zone] - 1e-9 && sum < topology.zoneHigh[zone] + 1e-9);
      const open = members.filter((node) => ideal[node] < 1 - 1e-9);
      const levels = open.map((node) => ideal[node] / topology.weights[node]);
      for (const level of levels) assertAlmostEquals(level / levels[0], 1, 1e-6);
      const full = members.filter((node) => ideal[node] >= 1 - 1e-9);
      for (const node of full) {
        if (levels.length > 0) assert(levels[0] * topology.weights[node] > 1 - 1e-6);
      }
      if (levels.length === 0) return;
      if (sum < topology.zoneHigh[zone] - 1e-9) lowest = Math.min(lowest, levels[0]);
      if (sum > topology.zoneLow[zone] + 1e-9) highest = Math.max(highest, levels[0]);
    });
    assertAlmostEquals(total, topology.width, 1e-9);
    // Nobody who can give is above somebody who can take.
    assert(highest <= lowest * (1 + 1e-6), `seed 11, round ${round}: ${highest} > ${lowest}`);
  }
});

Deno.test("random clusters: every rule holds and moves are at most 1.1 times the fewest", () => {
  for (let seed = 1; seed <= 50; seed++) randomHistory({ seed, nodesMax: 10, pgCountMax: 32 });
  for (let seed = 1001; seed <= 1004; seed++) {
    randomHistory({ seed, nodesMax: 24, pgCountMax: 128 });
  }
});

/** A cluster of random zones and weights, and six random changes of it. */
function randomHistory(limits: { seed: number; nodesMax: number; pgCountMax: number }): void {
  const random = new Prng(limits.seed);
  const zoneCount = random.below(6);
  const newZone = () => zoneCount === 0 || random.chance(0.1) ? "" : `z${random.below(zoneCount)}`;
  const newWeight = () => random.chance(0.5) ? 10 : random.between(1, 10);
  let nextId = 1;
  const newNode = () => ({ id: nextId++, zone: newZone(), weight: newWeight() });
  let nodes: PlacementNode[] = Array.from({ length: random.between(1, limits.nodesMax) }, newNode);
  let copies = random.between(1, 5);
  let pgCount = limits.pgCountMax / 4;
  let { targets } = placeWell({ pgCount, copies, previous: [], nodes }, `seed ${limits.seed}`);
  const changes: [string, () => PlacementNode[]][] = [
    ["add", () => [...nodes, newNode()]],
    ["remove", () => nodes.slice(1)],
    ["drain", () => nodes.map((node, index) => index === 0 ? { ...node, weight: 0 } : node)],
    [
      "weigh",
      () => nodes.map((node) => random.chance(0.3) ? { ...node, weight: newWeight() } : node),
    ],
    ["rezone", () => nodes.map((node) => random.chance(0.2) ? { ...node, zone: newZone() } : node)],
    ["replace", () => [...nodes.slice(1), newNode()]],
    ["copies", () => (copies = random.between(1, 5), nodes)],
    ["double", () => (pgCount = Math.min(limits.pgCountMax, pgCount * 2), nodes)],
  ];
  for (let step = 0; step < 6; step++) {
    const [name, apply] = random.pick(changes);
    const changed = apply();
    if (!changed.some(({ weight }) => weight > 0)) continue;
    nodes = random.shuffle([...changed]);
    const input = { pgCount, copies, previous: targets, nodes };
    targets = change(input, `seed ${limits.seed}, step ${step}: ${name}`).targets;
  }
}

Deno.test("whatever the old table is, the new one is right and near to it", () => {
  for (let seed = 1; seed <= 40; seed++) {
    const random = new Prng(seed);
    const nodes = equalNodes(random.between(4, 9), random.below(5));
    const previous = Array.from({ length: 32 }, () =>
      // Low ids are there more often than others; some are gone.
      Array.from({ length: random.below(6) }, () => 1 + random.below(1 + random.below(11))));
    const copies = random.between(1, 4);
    change({ pgCount: 32, copies, previous, nodes }, `seed ${seed}, ${copies} copies`);
  }
});

Deno.test("the same input gives the same table, in whatever order nodes are given", () => {
  const nodes = equalNodes(20, 5).map((node) => ({ ...node, weight: 1 + node.id % 3 }));
  const first = place({ pgCount: 256, copies: 3, previous: [], nodes });
  const input = { pgCount: 256, copies: 3, previous: first.targets, nodes: nodes.slice(2) };
  const again = { ...input, nodes: new Prng(5).shuffle([...input.nodes]) };
  assertEquals(place(input), place(again));
  // Golden: another machine or version computes this, too.
  assertEquals(first.targets.slice(0, 4), [[2, 5, 6], [2, 11, 20], [16, 20, 17], [17, 5, 14]]);
});

Deno.test("a node shares its PGs with many others, also after many changes", () => {
  let nodes = equalNodes(100, 10);
  let table = placeWell({ pgCount: 2048, copies: 3, previous: [], nodes });
  assertSpread(table, nodes, "new");
  for (let step = 0; step < 20; step++) {
    nodes = [...nodes.slice(1), { ...nodes[0], id: 101 + step }];
    table = placeWell({ pgCount: 2048, copies: 3, previous: table.targets, nodes });
  }
  assertSpread(table, nodes, "20 nodes replaced");
});

/** Checks how often two nodes meet: a Poisson distribution has almost nothing beyond these bounds. */
function assertSpread({ targets }: Placement, nodes: PlacementNode[], name: string): void {
  const pairs = new Map<number, number>();
  for (const ids of targets) {
    for (const one of ids) {
      for (const other of ids) {
        if (one < other) pairs.set(one * 65536 + other, (pairs.get(one * 65536 + other) ?? 0) + 1);
      }
    }
  }
  const zones = new Map(nodes.map(({ id, zone }) => [id, zone]));
  const possible =
    nodes.flatMap(({ id }) =>
      nodes.filter((other) => id < other.id && zones.get(id) !== other.zone)
    ).length;
  const mean = targets.length * 3 / possible;
  const most = Math.max(...pairs.values());
  assert(most <= mean + 6 * Math.sqrt(mean), `${name}: two nodes meet ${most} times, mean ${mean}`);
  const expected = possible * (1 - Math.exp(-mean));
  assert(pairs.size > expected * 0.95, `${name}: ${pairs.size} pairs meet, expected ${expected}`);
}

Deno.test("1,000 nodes and 16,384 PGs: balanced, few moves, spread", () => {
  const pool = { pgCount: 16384, copies: 3 };
  const nodes = equalNodes(1000, 20).map((node) => ({ ...node, weight: 1 + node.id % 10 }));
  const first = placeWell({ ...pool, previous: [], nodes });
  const removed = { ...pool, previous: first.targets, nodes: nodes.slice(1) };
  const less = change(removed, "remove", first.nodes[0].after);
  const added = { ...pool, previous: less.targets, nodes };
  const { low } = sharesOf(topologyOf(nodes, 3), pool.pgCount);
  const more = change(added, "add", low[0]);
  // What a node had goes to the one that takes its place, not to others that are in their bands.
  const heavy = [...nodes.slice(0, 8), ...nodes.slice(9), { ...nodes[8], id: 2000, weight: 11 }];
  const lowest = sharesOf(topologyOf(heavy, 3), pool.pgCount).low[999];
  assert(lowest >= more.nodes[8].after);
  change({ ...pool, previous: more.targets, nodes: heavy }, "replace", lowest);
  // A whole zone is lost: what it had moves, and hardly anything else.
  const left = nodes.filter(({ zone }) => zone !== "z7");
  const lost = more.nodes.filter(({ id }) => nodes[id - 1].zone === "z7")
    .reduce((total, { after }) => total + after, 0);
  change({ ...pool, previous: more.targets, nodes: left }, "zone lost", lost);
});
