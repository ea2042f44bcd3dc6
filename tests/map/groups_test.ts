/**
 * Placement groups: every transition, and what it refuses to do.
 *
 * @module
 */
import { assert, assertEquals, assertStringIncludes } from "@std/assert/mod.js";
import { pgOf } from "../../agent/map/hash.ts";
import { encodeMap } from "../../agent/map/map_codec.ts";
import {
  type ClusterMap,
  copiesMinOf,
  groupCanRead,
  groupCanWrite,
  type MapCommand,
  members,
  PG_BITS_MAX,
  pgOfChunk,
  settlerOf,
} from "../../agent/map/map.ts";
import { unwrap } from "../../agent/map/errors.ts";
import {
  addNode,
  clusterOf,
  clusterWithDisk,
  group,
  nodeUp,
  refuse,
  run,
  runAll,
  setTargets,
} from "./cluster.ts";

const pgs = [0];

/** PG 0 is on 1, 2 and 3, and so shall be. */
function threeInSync(): ClusterMap {
  const map = clusterWithDisk(5, 3);
  return runAll(map, setTargets(map, 3, [0, [1, 2, 3]]));
}

function down(node: number, incarnation = 1): MapCommand {
  return { kind: "node-down", node, incarnation, nowMs: 9 };
}

function join(node: number, incarnation = 1, part: { pgs?: number[] } = {}): MapCommand {
  return { kind: "start-joining", pool: 3, pgs, node, incarnation, ...part };
}

function joined(map: ClusterMap, node: number, incarnation = 1): MapCommand {
  return { kind: "in-sync", pool: 3, pgs, node, incarnation, basedOnEpoch: map.epoch };
}

function same(map: ClusterMap, command: MapCommand): void {
  assert(run(map, command).map === map, `${JSON.stringify(command)} changed something`);
}

Deno.test("the first disk with so many copies makes their pool, spread over nodes and zones", () => {
  const map = clusterWithDisk(5, 3);
  assertEquals(map.pools.map((pool) => [pool.copies, pool.pgs.length]), [[3, 256]]);
  assertEquals(map.targetsEpoch, map.epoch);
  const counts = new Map<number, number>();
  for (const pg of map.pools[0].pgs) {
    assertEquals(pg.inSync.length, 3);
    assertEquals(pg.target, pg.inSync);
    assertEquals(pg.changedEpoch, map.epoch);
    for (const id of pg.inSync) counts.set(id, (counts.get(id) ?? 0) + 1);
  }
  for (const count of counts.values()) assert(Math.abs(count - 256 * 3 / 5) <= 2);
  const zones = runAll(
    clusterOf(4),
    { kind: "set-zone", node: 1, zone: "a" },
    { kind: "set-zone", node: 2, zone: "a" },
    { kind: "set-zone", node: 3, zone: "b" },
    { kind: "set-zone", node: 4, zone: "b" },
    { kind: "create-disk", name: "web", sizeBytes: 512, nowMs: 0, copies: 2 },
  );
  for (const { inSync } of zones.pools[0].pgs) {
    assert((inSync[0] < 3) !== (inSync[1] < 3), `${inSync}`);
  }
});

Deno.test("a new pool uses storage nodes that are up and in, as few as there are", () => {
  const create = { kind: "create-disk", name: "web", sizeBytes: 512, nowMs: 0, copies: 3 } as const;
  const map = runAll(
    clusterOf(4),
    addNode(5, { witness: true }),
    down(2),
    { kind: "set-availability", node: 3, availability: "out" },
    create,
  );
  const used = new Set(map.pools[0].pgs.flatMap((pg) => pg.inSync));
  assertEquals([...used].toSorted(), [1, 4]);
  assertEquals(refuse(runAll(clusterOf(1), down(1)), create).code, "unavailable");
});

Deno.test("a node that is down leaves where somebody else is in sync, and stays where it is alone", () => {
  let map = runAll(threeInSync(), down(2));
  assertEquals([group(map).inSync, group(map).target], [[1, 3], [1, 2, 3]]);
  assertEquals(group(map).changedEpoch, map.epoch);
  map = runAll(map, down(3), down(1));
  assertEquals(group(map).inSync, [1]);
  assertStringIncludes(groupCanRead(map, group(map))!, "host-1, which is down");
  same(map, down(1));
  assertEquals(refuse(map, down(1, 2)).code, "stale");
});

Deno.test("an only member that kept its page cache goes on; one that did not is settled first", () => {
  const map = runAll(threeInSync(), down(2), down(3), down(1));
  const kept = runAll(map, nodeUp(1));
  assertEquals(groupCanRead(kept, group(kept)), null);
  const clean = runAll(map, nodeUp(1, { bootId: "other", clean: true }));
  assertEquals(groupCanRead(clean, group(clean)), null);
  for (const bootId of ["other", ""]) {
    const lost = runAll(map, nodeUp(1, { bootId }));
    assertEquals(group(lost).unclean, [1]);
    assertStringIncludes(groupCanRead(lost, group(lost))!, "host-1 crashed");
    same(lost, { kind: "drop-unclean", pool: 3, pgs, node: 1 });
    const unsettled = runAll(lost, { kind: "unsettle", pool: 3, pgs });
    assertEquals(settlerOf(unsettled, group(unsettled)), 1);
    const settle = { kind: "settled", pool: 3, pgs, node: 1 } as const;
    assertEquals(refuse(unsettled, { ...settle, incarnation: 1 }).code, "stale");
    const settled = runAll(unsettled, { ...settle, incarnation: 2 });
    assertEquals(groupCanRead(settled, group(settled)), null);
    assertEquals(group(settled).settledEpoch, settled.epoch);
    same(settled, { ...settle, incarnation: 2 });
  }
  const unknown = runAll(clusterOf(1), nodeUp(1, { bootId: "" }));
  const disk = { kind: "create-disk", name: "web", sizeBytes: 512, nowMs: 0 } as const;
  assertEquals(
    group(runAll(unknown, disk, nodeUp(1, { bootId: "" }))).unclean,
    [1],
    "two unknowns",
  );
});

Deno.test("who does not know whether its log's end has rotted joins again where somebody else can tell", () => {
  const map = threeInSync();
  const torn = nodeUp(1, { torn: true });
  assertEquals(group(runAll(map, torn)).inSync, [2, 3]);
  assertEquals(group(runAll(map, nodeUp(1))).inSync, [1, 2, 3], "nothing was torn");
  // The start that found it may have ended in good order before the map heard of it.
  assertEquals(group(runAll(map, { ...torn, clean: true })).inSync, [2, 3]);
  // In another boot more may be gone.
  assertEquals(group(runAll(map, { ...torn, bootId: "b" })).unclean, [1]);
  assertEquals(group(runAll(map, { ...torn, bootId: "b" })).inSync, [1, 2, 3]);
  // Nobody else is there, or has kept everything: what is here counts, as without a doubt.
  const alone = runAll(map, down(2), down(3));
  assertEquals([group(alone).inSync, group(runAll(alone, torn)).inSync], [[1], [1]]);
  assertEquals(group(runAll(alone, torn)).unclean, []);
  const others = runAll(map, nodeUp(2, { bootId: "b" }), nodeUp(3, { bootId: "b" }));
  assertEquals(group(runAll(others, torn)).inSync, [1, 2, 3]);
  assertEquals(group(runAll(others, torn)).unclean, [2, 3]);
});

Deno.test("an unclean member leaves only while another one is up and clean", () => {
  const drop = { kind: "drop-unclean", pool: 3, pgs, node: 1 } as const;
  let map = runAll(threeInSync(), nodeUp(1, { bootId: "b" }));
  assertEquals(groupCanWrite(map, group(map), 1) === null, false);
  assertEquals(group(runAll(map, drop)).inSync, [2, 3]);
  assertEquals(group(runAll(map, drop)).unclean, []);
  same(map, { ...drop, node: 2 });
  same(map, { kind: "unsettle", pool: 3, pgs });
  map = runAll(map, nodeUp(2, { bootId: "b" }), nodeUp(3, { bootId: "b" }));
  assertEquals(group(map).unclean, [1, 2, 3]);
  same(map, drop);
  // Already unclean, and crashed once more: the same.
  assertEquals(group(runAll(map, nodeUp(1, { bootId: "c" }))).unclean, [1, 2, 3]);
  // A restart that lost nothing does not make clean what was not.
  assertEquals(group(runAll(map, nodeUp(1, { bootId: "b" }))).unclean, [1, 2, 3]);
});

Deno.test("the lowest member that is up settles, and the others join it", () => {
  const crashed = [1, 2, 3].map((node) => nodeUp(node, { bootId: "b" }));
  let map = runAll(threeInSync(), ...crashed, { kind: "unsettle", pool: 3, pgs });
  same(map, { kind: "settled", pool: 3, pgs, node: 2, incarnation: 2 });
  same(map, join(4));
  map = runAll(map, down(1, 2));
  assertEquals([group(map).inSync, settlerOf(map, group(map))], [[2, 3], 2]);
  same(map, { kind: "settled", pool: 3, pgs, node: 3, incarnation: 2 });
  map = runAll(map, { kind: "settled", pool: 3, pgs, node: 2, incarnation: 2 });
  assertEquals([group(map).inSync, group(map).joining], [[2], [3]]);
  assertEquals([group(map).unclean, group(map).unsettled], [[], false]);
  assertEquals(group(map).joinedEpochs, [map.epoch]);
});

Deno.test("unsettling sends joiners away: what they pulled may be newer than what will be settled", () => {
  let map = runAll(threeInSync(), down(2), down(3), nodeUp(2, { bootId: "b" }), join(2, 2));
  map = runAll(map, nodeUp(1, { bootId: "b" }));
  // Meanwhile its report waits.
  same(map, joined(map, 2, 2));
  map = runAll(map, { kind: "unsettle", pool: 3, pgs });
  assertEquals([group(map).joining, group(map).joinedEpochs], [[], []]);
});

Deno.test("a target joins, is in sync, and what is outside the target leaves", () => {
  let map = threeInSync();
  map = runAll(map, setTargets(map, 3, [0, [3, 4, 5]]));
  same(map, join(2));
  same(map, { kind: "trim", pool: 3, pgs });
  map = runAll(map, join(4), join(5));
  same(map, join(4));
  assertEquals(members(group(map)), [1, 2, 3, 4, 5]);
  map = runAll(map, joined(map, 5));
  assertEquals(group(map).joining, [4]);
  same(map, { kind: "trim", pool: 3, pgs });
  same(map, joined(map, 5));
  same(map, joined(map, 2));
  map = runAll(map, joined(map, 4));
  const crashed = runAll(map, nodeUp(1, { bootId: "b" }));
  same(crashed, { kind: "trim", pool: 3, pgs });
  map = runAll(map, { kind: "trim", pool: 3, pgs });
  assertEquals(group(map).inSync, [3, 5, 4]);
});

Deno.test("who joins must be up, of this run, in the target, and store something", () => {
  let map = runAll(threeInSync(), addNode(6, { witness: true }));
  map = runAll(map, setTargets(map, 3, [0, [1, 4]]), down(4));
  assertEquals(refuse(map, join(4)).code, "stale");
  map = runAll(map, nodeUp(4));
  assertEquals(refuse(map, join(4)).code, "stale");
  assertEquals(refuse(map, join(6)).code, "invalid");
  assertEquals(refuse(map, join(7)).code, "missing");
  assertEquals(group(runAll(map, join(4, 2))).joining, [4]);
});

Deno.test("a restart ends a join even when nothing was lost, and a drop makes old reports worthless", () => {
  let map = threeInSync();
  map = runAll(map, setTargets(map, 3, [0, [1, 2, 3].with(2, 4)]), join(4));
  const before = map;
  // What it knew of live writes is gone: pulling on could bring back older blocks.
  assertEquals(group(runAll(map, nodeUp(4))).joining, []);
  assertEquals(group(runAll(map, nodeUp(4, { clean: true }))).joining, []);
  const drop = { kind: "drop-member", node: 4, incarnation: 1, by: 1, nowMs: 0 } as const;
  map = runAll(map, drop, join(4));
  assertEquals(group(map).joinedEpochs, [map.epoch]);
  same(map, joined(before, 4));
  assertEquals(group(runAll(map, joined(map, 4))).inSync, [1, 2, 3, 4]);
  const ahead = { kind: "in-sync", pool: 3, pgs, node: 4, incarnation: 1 } as const;
  assertEquals(refuse(map, { ...ahead, basedOnEpoch: map.epoch + 1 }).code, "invalid");
});

Deno.test("joiners leave with their target", () => {
  let map = threeInSync();
  map = runAll(map, setTargets(map, 3, [0, [1, 4, 5]]), join(4), join(5));
  const next = runAll(map, setTargets(map, 3, [0, [1, 2, 5]]));
  assertEquals([group(next).joining, group(next).joinedEpochs], [[5], [map.epoch]]);
  assertEquals(group(next).changedEpoch, next.epoch);
  const moved = runAll(map, setTargets(map, 3, [0, [2, 4, 5]]));
  assertEquals(group(moved).changedEpoch, map.epoch, "members are the same");
});

Deno.test("targets are compared and set, and checked as a whole", () => {
  const map = runAll(threeInSync(), addNode(6, { witness: true }));
  const stale: MapCommand = {
    kind: "set-targets",
    pool: 3,
    basedOnTargetsEpoch: map.targetsEpoch - 1,
    changes: [[0, [1]]],
  };
  assertEquals(refuse(map, stale).code, "stale");
  const reweigh: MapCommand[] = [
    { kind: "set-weight", node: 1, weight: 7 },
    { kind: "set-zone", node: 1, zone: "a" },
    { kind: "set-availability", node: 1, availability: "draining" },
    nodeUp(1, { capacityBytes: 5 }),
    addNode(9),
    { kind: "split-groups", pgBits: 8 },
  ];
  const wanted = setTargets(map, 3, [0, [1]]);
  for (const command of reweigh) assertEquals(refuse(runAll(map, command), wanted).code, "stale");
  run(runAll(map, down(2), { kind: "set-voters", voters: [1, 2] }), wanted);
  const wrong: (readonly [number, readonly number[]])[][] = [
    [[0, []]],
    [[0, [1, 2, 3, 4]]],
    [[0, [1, 1]]],
    [[0, [9]]],
    [[0, [6]]],
    [[256, [1]]],
    [[-1, [1]]],
    [[0.5, [1]]],
    [[0, [1]], [0, [2]]],
    Array.from({ length: 257 }, (_, index) => [index % 256, [1]] as const),
  ];
  for (const changes of wrong) {
    assertEquals(refuse(map, setTargets(map, 3, ...changes)).code, "invalid", `${changes[0]}`);
  }
  assertEquals(refuse(map, setTargets(map, 2, [0, [1]])).code, "missing");
  same(map, setTargets(map, 3, [0, group(map).target]));
});

Deno.test("in a pool without disks targets are in sync at once; with disks they never are", () => {
  let map = threeInSync();
  map = runAll(map, setTargets(map, 3, [0, [4, 5]]));
  assertEquals(group(map).inSync, [1, 2, 3]);
  map = runAll(map, { kind: "delete-disk", name: "web" }, down(5));
  map = runAll(map, setTargets(map, 3, [0, [2, 4, 5]], [1, [5]]));
  assertEquals([group(map).inSync, group(map).target], [[2, 4], [2, 4, 5]]);
  assertEquals(group(map, 1).target, [5]);
  // A disk that comes then finds everything usable.
  const create = { kind: "create-disk", name: "db", sizeBytes: 512, nowMs: 0, copies: 3 } as const;
  map = runAll(map, down(1), down(2), down(3), create);
  assertEquals(group(map).inSync, [4]);
  for (const pg of map.pools[0].pgs) assertEquals(groupCanRead(map, pg), null);
});

Deno.test("a holder drops a member only where a clean one that is up is left", () => {
  const drop = { kind: "drop-member", node: 2, incarnation: 1, by: 1, nowMs: 7 } as const;
  const map = threeInSync();
  const dropped = runAll(map, drop);
  assertEquals(group(dropped).inSync, [1, 3]);
  assertEquals([dropped.nodes[1].state, dropped.nodes[1].changedMs], ["up", 7]);
  same(dropped, drop);
  assertEquals(refuse(map, { ...drop, incarnation: 2 }).code, "stale");
  assertEquals(refuse(map, { ...drop, by: 2 }).code, "invalid");
  assertEquals(refuse(map, { ...drop, by: 9 }).code, "missing");
  assertEquals(refuse(runAll(map, down(1)), drop).code, "stale");
  const crashed = runAll(map, nodeUp(1, { bootId: "b" }), nodeUp(3, { bootId: "b" }));
  assertEquals(group(runAll(crashed, drop)).inSync, [1, 2, 3], "it has what the others lost");
});

/** Bits of PGs, as few as there can be. */
function bitsOf(...groups: number[]): number[] {
  const bits = new Array(32).fill(0);
  for (const index of groups) bits[index >>> 3] |= 1 << (index & 7);
  return bits;
}

Deno.test("a node that has lost a path leaves what was on it, and stays, unclean, where nobody else has it", () => {
  const lose = {
    kind: "lose-groups",
    node: 2,
    incarnation: 1,
    lost: bitsOf(0, 1),
    capacityBytes: 5e11,
  } as const;
  const four = runAll(clusterWithDisk(3, 3), addNode(4));
  const map = runAll(four, setTargets(four, 3, [0, [1, 2, 4]]), join(4));
  const after = runAll(map, lose);
  for (const index of [0, 1]) assertEquals(group(after, index).inSync.toSorted(), [1, 3]);
  assert(group(after, 2) === group(map, 2), "other groups are left alone");
  assertEquals(after.nodes[1].capacityBytes, 5e11);
  assert(after.targetsEpoch === after.epoch, "a lighter node gets fewer groups");
  same(after, lose);
  assertEquals(refuse(map, { ...lose, incarnation: 2 }).code, "stale");
  for (const lost of [[1, 2, 3], new Array(4096).fill(0), [256], [-1], [0.5]]) {
    assertEquals(refuse(map, { ...lose, lost }).code, "invalid");
    assertEquals(refuse(map, nodeUp(2, { lost })).code, "invalid");
  }
  // Joiners go, too: what they have pulled is gone.
  const joiner = runAll(map, { ...lose, node: 4 });
  assertEquals([group(map).joining, group(joiner).joining], [[4], []]);
  // The last one stays, waits, and settles when it can: until then nothing is read.
  const alone = runAll(map, down(1), down(3), lose);
  for (const index of [0, 1]) {
    assertEquals([group(alone, index).inSync, group(alone, index).unclean], [[2], [2]]);
    assert(groupCanRead(alone, group(alone, index)) !== null);
  }
  assertEquals(groupCanRead(alone, group(alone, 2)), null);
  const waits = runAll(alone, { kind: "unsettle", pool: 3, pgs: [0, 1] });
  assertEquals(group(waits).unsettled, true);
  same(waits, lose);
  // The same at a start, though everything else was kept.
  const started = runAll(map, down(1), down(3), nodeUp(2, { clean: true, lost: bitsOf(0) }));
  assertEquals([group(started, 0).unclean, group(started, 1).unclean], [[2], []]);
  const others = runAll(map, nodeUp(2, { clean: true, lost: bitsOf(0) }));
  assertEquals(group(others, 0).inSync.toSorted(), [1, 3]);
  assertEquals(group(others, 1).inSync.toSorted(), [1, 2, 3]);
});

Deno.test("bits of PGs mean the same after a split, and in maps with fewer PGs", () => {
  const map = clusterWithDisk(3, 3);
  const lose = (lost: readonly number[]) =>
    ({ kind: "lose-groups", node: 2, incarnation: 1, lost, capacityBytes: 1e12 }) as const;
  const holders = (after: ClusterMap) =>
    after.pools[0].pgs.flatMap(({ inSync }, index) => inSync.includes(2) ? [] : [index]);
  assertEquals(holders(runAll(map, lose([2]))).slice(0, 3), [1, 9, 17]);
  const finest = new Array(2048).fill(0);
  finest[2047] = 128; // Slot 16383 is a part of the last PG.
  assertEquals(holders(runAll(map, lose(finest))), [255]);
  const split = runAll(map, { kind: "split-groups", pgBits: 8 });
  assertEquals(holders(runAll(split, lose(bitsOf(7)))), [7, 263]);
  assertEquals(holders(runAll(split, lose(finest))), [511]);
  assertEquals(runAll(map, lose([])), map);
});

Deno.test("split-groups gives both halves the same members, once", () => {
  let map = threeInSync();
  map = runAll(map, setTargets(map, 3, [0, [1, 2, 4]], [7, [5]]), join(4));
  const split = { kind: "split-groups", pgBits: 8 } as const;
  const next = runAll(map, split);
  assertEquals([next.pgBits, next.pools[0].pgs.length], [9, 512]);
  assert(group(next, 7) === group(map, 7) && group(next, 263) === group(map, 7));
  assertEquals(group(next, 256).inSync, [1, 2, 3]);
  assertEquals([group(next, 0).joining, group(next, 256).joining], [[], []]);
  assertEquals(refuse(next, split).code, "stale");
  const most = { ...clusterOf(1), pgBits: PG_BITS_MAX };
  assertEquals(refuse(most, { kind: "split-groups", pgBits: PG_BITS_MAX }).code, "limit");
  const [disk] = map.disks;
  for (let chunk = 0; chunk < 1000; chunk++) {
    const before = pgOfChunk(map, disk, chunk);
    assertEquals(before, pgOf(disk.family, chunk, 256));
    assert(group(next, pgOfChunk(next, disk, chunk)).target === group(map, before).target);
  }
});

Deno.test("surplus members leave before the target is complete, so that it can join at all", () => {
  let map = clusterOf(15);
  const create = { kind: "create-disk", name: "web", sizeBytes: 512, nowMs: 0, copies: 3 } as const;
  map = runAll(map, create);
  map = runAll(map, {
    kind: "set-targets",
    pool: 3,
    basedOnTargetsEpoch: map.targetsEpoch,
    changes: [],
  });
  const [a, b, c] = group(map).inSync;
  for (const target of [[5, 6, a], [8, 9, a], [11, 12, a]]) {
    map = runAll(map, setTargets(map, 3, [0, target]), join(target[0]), join(target[1]));
    map = runAll(map, joined(map, target[0]));
  }
  assertEquals(group(map).inSync, [a, b, c, 5, 8, 11]);
  same(map, { kind: "trim", pool: 3, pgs });
  map = runAll(map, joined(map, 12));
  map = runAll(map, setTargets(map, 3, [0, [a, 14, 15]]));
  const trimmed = runAll(map, { kind: "trim", pool: 3, pgs });
  assertEquals(group(trimmed).inSync.length, 3);
  assert(group(trimmed).inSync.includes(a));
});

Deno.test("a command names PGs that there are, and leaves alone what does not fit", () => {
  const map = threeInSync();
  for (const wrong of [[-1], [256], [0.5], [NaN], Array(257).fill(0)]) {
    assertEquals(refuse(map, { kind: "trim", pool: 3, pgs: wrong }).code, "invalid");
  }
  assertEquals(refuse(map, { kind: "trim", pool: 2, pgs }).code, "missing");
  same(map, { kind: "trim", pool: 3, pgs: [] });
  const next = runAll(
    map,
    nodeUp(1, { bootId: "b" }),
    { kind: "drop-unclean", pool: 3, pgs: [0, 0, 1, 2, 255], node: 1 },
  );
  assertEquals(group(next).inSync, [2, 3]);
});

Deno.test("copiesMin: one of up to two copies, else a majority, never more than can be", () => {
  const disk = { copies: 3, copiesMin: null, pool: 3 };
  const of = (nodes: number, part: Partial<typeof disk> | { copiesMin: number } = {}) =>
    copiesMinOf(clusterOf(nodes), { ...disk, ...part });
  assertEquals([of(1), of(2), of(3), of(9)], [1, 1, 2, 2]);
  assertEquals([4, 5].map((copies) => of(9, { copies })), [3, 3]);
  assertEquals([of(3, { copiesMin: 3 }), of(2, { copiesMin: 3 }), of(3, { copiesMin: 1 })], [
    3,
    2,
    1,
  ]);
  const set = runAll(clusterOf(3), { kind: "change-settings", copiesMin: 3 });
  assertEquals(copiesMinOf(set, disk), 3);
  const witness = runAll(clusterOf(2), addNode(3, { witness: true }));
  assertEquals(copiesMinOf(witness, disk), 1);
  assertEquals(copiesMinOf(runAll(clusterOf(3), down(2), down(3)), disk), 2, "down nodes count");
  const map = runAll(threeInSync(), down(2), down(3));
  assertStringIncludes(groupCanWrite(map, group(map), 2)!, "2 copies are the fewest");
  assertEquals(groupCanWrite(map, group(map), 1), null);
});

Deno.test("another number of copies: only to where the data is already", () => {
  const change = (copies: number): MapCommand => ({ kind: "change-disk", name: "web", copies });
  const map = threeInSync();
  const fewer = runAll(map, change(2));
  assertEquals(fewer.pools.map((pool) => pool.copies), [2, 3]);
  // Nobody has computed targets for the new pool yet.
  assertEquals(fewer.targetsEpoch, fewer.epoch);
  for (const [index, pg] of fewer.pools[0].pgs.entries()) {
    assertEquals(pg.inSync, map.pools[0].pgs[index].inSync);
    assertEquals(pg.target, map.pools[0].pgs[index].target.slice(0, 2));
  }
  const create = { kind: "create-disk", name: "db", sizeBytes: 512, nowMs: 0 } as const;
  // The pool of two has a disk on all of the same nodes: fits. On others: does not.
  assertEquals(runAll(runAll(fewer, { ...create, copies: 3 }), change(3)).disks[1].copies, 3);
  const other = runAll(map, { ...create, copies: 2 });
  const moved = runAll(other, setTargets(other, 2, [0, [5, 4]]));
  const elsewhere = runAll(
    moved,
    { kind: "start-joining", pool: 2, pgs, node: 5, incarnation: 1 },
  );
  assertEquals(refuse(elsewhere, change(2)).code, "busy");
  assertEquals(refuse(runAll(map, nodeUp(1, { bootId: "b" })), change(2)).code, "unavailable");
  assertEquals(refuse(map, { kind: "change-disk", name: "web", copiesMin: 4 }).code, "invalid");
});

Deno.test("changing one PG of many is cheap and shares the others", () => {
  let map = clusterWithDisk(5, 3);
  for (let pgBits = 8; pgBits < PG_BITS_MAX; pgBits++) {
    map = runAll(map, { kind: "split-groups", pgBits });
  }
  map = runAll(
    map,
    setTargets(map, 3, ...map.pools[0].pgs.map((_, pg) => [pg, [1, 2, 3]] as const)),
  );
  const started = performance.now();
  let next = map;
  for (let pg = 0; pg < 200; pg++) next = runAll(next, join(1 + pg % 3, 1, { pgs: [pg] }));
  const tookMs = performance.now() - started;
  assert(group(next, 5000) === group(map, 5000));
  assert(tookMs < 1000, `200 changes of one PG of 16384 took ${tookMs} ms`);
  unwrap(encodeMap(next));
});

Deno.test("who joins begins again when a lease was not given back, and goes on when it was", () => {
  const before = runAll(threeInSync(), down(3), nodeUp(3), join(3, 2));
  const { id } = before.disks[0];
  const take = (node: number): MapCommand => ({ kind: "take-lease", id, node, incarnation: 1 });
  const first = runAll(before, take(1));
  assertEquals(group(first).joinedEpochs, group(before).joinedEpochs, "the disk was settled");
  const report = joined(first, 3, 2);
  // Its holder dies; the next one cannot know what it has left where.
  const second = runAll(first, down(1), take(2));
  assertEquals(group(second).joining, [3]);
  assertEquals(group(second).joinedEpochs, [second.epoch]);
  assertEquals(group(second).changedEpoch, second.epoch);
  assertEquals(group(runAll(second, report)).joining, [3], "the report rests on an earlier look");
  assertEquals(group(runAll(second, joined(second, 3, 2))).joining, []);
});
