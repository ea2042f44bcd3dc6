/**
 * Nodes and leases: beginning a cluster, each command and its errors.
 *
 * @module
 */
import { assert, assertEquals } from "@std/assert/mod.js";
import { type ControlErrorCode, unwrap } from "../../agent/map/errors.ts";
import {
  adopt,
  type ClusterMap,
  commandLevel,
  EMPTY_MAP,
  findDisk,
  findNode,
  findNodeByName,
  findNodeByUuid,
  foundCluster,
  ID_MAX,
  LOSSES_MAX,
  type MapCommand,
  NODE_ID_MAX,
  NODES_MAX,
  storageNodes,
  type TakeLease,
  TRASH_MS_MAX,
} from "../../agent/map/map.ts";
import {
  addNode,
  clusterAtLevelTwo,
  clusterOf,
  clusterWithDisk,
  nodeUp,
  refuse,
  run,
  runAll,
  setTargets,
  step,
} from "./cluster.ts";

const FOUNDER = { ...addNode(1), clusterId: "c".repeat(32) };

function take(node: number, part: Partial<TakeLease> = {}): TakeLease {
  return { kind: "take-lease", id: 1, node, incarnation: 1, ...part };
}

function down(node: number, incarnation = 1): MapCommand {
  return { kind: "node-down", node, incarnation, nowMs: 9000 };
}

function same(map: ClusterMap, command: MapCommand): void {
  assert(run(map, command).map === map, `${JSON.stringify(command)} changed something`);
}

Deno.test("foundCluster() makes a cluster of one", () => {
  const map = unwrap(foundCluster(FOUNDER));
  assertEquals([map.epoch, map.nextNode, map.voters, map.clusterId], [1, 2, [1], "c".repeat(32)]);
  const [node] = map.nodes;
  assertEquals([node.id, node.state, node.availability, node.incarnation], [1, "up", "in", 1]);
  assertEquals([node.requestSequence, node.weight, node.changedMs], [0, null, 1000]);
  for (const wrong of [{ clusterId: "c" }, { uuid: "" }, { name: "a/b" }, { address: "here" }]) {
    const result = foundCluster({ ...FOUNDER, ...wrong });
    assertEquals(result.ok ? "" : result.error.code, "invalid");
  }
});

Deno.test("adopt() makes a map of one host that of a cluster of one, all in sync and settled", () => {
  const create = { kind: "create-disk", sizeBytes: 512, nowMs: 0 } as const;
  let map = runAll(
    EMPTY_MAP,
    { ...create, name: "a", copies: 1 },
    { ...create, name: "b", copies: 3 },
    { ...create, name: "c", copies: 3 },
  );
  map = { ...map, disks: map.disks.map((disk) => ({ ...disk, generation: 7 })) };
  const adopted = unwrap(adopt(map, FOUNDER));
  assertEquals(adopted.epoch, map.epoch + 1);
  assertEquals(adopted.pools.map((pool) => pool.copies), [1, 3]);
  for (const pool of adopted.pools) {
    assertEquals(pool.pgs.length, 256);
    for (const pg of pool.pgs) assertEquals([pg.target, pg.inSync], [[1], [1]]);
  }
  for (const disk of adopted.disks) {
    assertEquals([disk.family, disk.settled, disk.lease], [disk.id, 7, null]);
  }
  assert(unwrap(adopt(adopted, FOUNDER)) === adopted);
  assertEquals(adopt(map, { ...FOUNDER, witness: true }).ok, false);
  assertEquals(refuse(map, addNode(2)).code, "unavailable");
  assertEquals(refuse(map, take(1)).code, "missing");
});

Deno.test("add-node is idempotent by uuid, and makes names unique", () => {
  const map = clusterOf(1);
  const next = runAll(map, addNode(2, { name: "host-1" }), addNode(3, { name: "host-1" }));
  assertEquals(next.nodes.map((node) => [node.id, node.name]), [
    [1, "host-1"],
    [2, "host-1-2"],
    [3, "host-1-3"],
  ]);
  same(next, addNode(2, { name: "other", address: "192.0.2.9:1" }));
  const long = "n".repeat(63);
  const longest = runAll(map, addNode(2, { name: long }), addNode(3, { name: long }));
  assertEquals(longest.nodes[2].name, `${"n".repeat(61)}-2`);
  assertEquals(findNodeByUuid(next, addNode(3).uuid)?.id, 3);
  assertEquals(findNodeByName(next, "host-1-2")?.id, 2);
  assertEquals([0, 4, -1, NaN].map((id) => findNode(next, id)), Array(4).fill(undefined));
  assertEquals(storageNodes(runAll(map, addNode(2, { witness: true }))).length, 1);
});

Deno.test("what a node says of itself is checked", () => {
  const map = clusterOf(1);
  const cases: Partial<MapCommand & { kind: "add-node" }>[] = [
    { uuid: "A".repeat(32) },
    { uuid: "0".repeat(31) },
    { name: "" },
    { name: "-a" },
    { name: "a".repeat(64) },
    { name: "a\n" },
    { zone: " " },
    { capacityBytes: -1 },
    { capacityBytes: 0.5 },
    { capacityBytes: NaN },
    { version: "" },
    { version: "1".repeat(65) },
    { protocol: 0 },
    { protocol: 65536 },
    { bootId: "a b" },
    { nowMs: -1 },
    ...[
      "",
      "host",
      "host:",
      "host:0",
      "host:65535",
      "host:99999",
      "host:07460",
      ":7460",
      "a b:7460",
      "host:7460\n",
      "2001:db8::1:7460",
      "[::1]",
      "[x]:7460",
      `${"h".repeat(260)}:1`,
    ].map((address) => ({ address })),
  ];
  for (const part of cases) {
    assertEquals(refuse(map, addNode(2, part)).code, "invalid", JSON.stringify(part));
  }
  for (
    const address of ["h:1", "host-2.example:65534", "[2001:db8::1]:7460", "[fe80::1%eth0]:7460"]
  ) {
    assertEquals(runAll(map, addNode(2, { address })).nodes[1].address, address);
  }
});

Deno.test("there are bounds to nodes, their ids and their starts", () => {
  const map = clusterOf(1);
  const nodes = Array.from({ length: NODES_MAX }, (_, index) => ({
    ...map.nodes[0],
    id: index + 1,
    uuid: index.toString(16).padStart(32, "f"),
    name: `n${index}`,
  }));
  assertEquals(refuse({ ...map, nodes, nextNode: 2000 }, addNode(2)).code, "limit");
  assertEquals(refuse({ ...map, nextNode: NODE_ID_MAX + 1 }, addNode(2)).code, "limit");
  assertEquals(runAll({ ...map, nextNode: NODE_ID_MAX }, addNode(2)).nodes[1].id, NODE_ID_MAX);
  const worn = { ...map, nodes: [{ ...map.nodes[0], incarnation: ID_MAX }] };
  assertEquals(refuse(worn, nodeUp(1)).code, "limit");
});

Deno.test("node-up counts a start and takes over what is new", () => {
  const map = runAll(clusterOf(2), down(1));
  const next = runAll(map, nodeUp(1, { name: "host-2", version: "2.0.0", nowMs: 77 }));
  const [node] = next.nodes;
  assertEquals([node.state, node.incarnation, node.changedMs], ["up", 2, 77]);
  assertEquals([node.name, node.version], ["host-2-2", "2.0.0"]);
  const again = runAll(next, nodeUp(1, { nowMs: 99 }));
  assertEquals([again.nodes[0].incarnation, again.nodes[0].changedMs], [3, 77]);
  assertEquals(again.nodes[0].name, "host-2-2", "its own name is no other's");
  const wrong = [{ address: "x" }, { bootId: "\0" }, { version: "" }, { name: "" }, { nowMs: 0.1 }];
  for (const part of wrong) assertEquals(refuse(map, nodeUp(1, part)).code, "invalid");
  assertEquals(refuse(map, nodeUp(3)).code, "missing");
});

Deno.test("availability, weight and zone move targets, and only when they change", () => {
  const map = clusterOf(2);
  const commands: MapCommand[] = [
    { kind: "set-availability", node: 2, availability: "out" },
    { kind: "set-weight", node: 2, weight: 0.5 },
    { kind: "set-zone", node: 2, zone: "rack-1" },
  ];
  for (const command of commands) {
    const next = run(map, command).map;
    assertEquals(next.targetsEpoch, next.epoch);
    same(next, command);
    assertEquals(refuse(map, { ...command, node: 3 } as MapCommand).code, "missing");
  }
  const wrong: MapCommand[] = [
    { kind: "set-availability", node: 2, availability: "gone" as "out" },
    { kind: "set-weight", node: 2, weight: -1 },
    { kind: "set-weight", node: 2, weight: Infinity },
    { kind: "set-weight", node: 2, weight: NaN },
    { kind: "set-zone", node: 2, zone: "a b" },
  ];
  for (const command of wrong) assertEquals(refuse(map, command).code, "invalid");
});

Deno.test("what was planned is made only while nodes and places are those of the plan", () => {
  const map = clusterAtLevelTwo(3, "web");
  const basedOnTargetsEpoch = map.targetsEpoch;
  const planned: MapCommand[] = [
    { kind: "set-availability", node: 2, availability: "draining", basedOnTargetsEpoch },
    { kind: "set-weight", node: 2, weight: 5, basedOnTargetsEpoch },
    { kind: "set-zone", node: 2, zone: "a", basedOnTargetsEpoch },
  ];
  // Somebody else has drained another node in the same moment.
  const other = runAll(map, { kind: "set-availability", node: 3, availability: "draining" });
  for (const command of planned) {
    assertEquals(step(map, command).map.targetsEpoch, map.epoch + 1);
    assertEquals(refuse(other, command).code, "stale");
    assertEquals(step(step(map, command).map, command).effects, [], "it is so already");
    assertEquals(commandLevel(command), 2);
  }
});

Deno.test("voters are known, distinct and few", () => {
  const map = clusterOf(7);
  assertEquals(runAll(map, { kind: "set-voters", voters: [3, 1, 2] }).voters, [1, 2, 3]);
  same(map, { kind: "set-voters", voters: [1] });
  const cases: [ControlErrorCode, number[]][] = [
    ["invalid", []],
    ["invalid", [1, 1]],
    ["invalid", [1, 2, 3, 4, 5, 6, 7]],
    ["missing", [8]],
    ["missing", [NaN]],
  ];
  for (const [code, voters] of cases) {
    assertEquals(refuse(map, { kind: "set-voters", voters }).code, code);
  }
});

Deno.test("a node goes for good when nothing names it any more", () => {
  let map = clusterWithDisk(3, 1);
  const remove = { kind: "remove-node", node: 2, nowMs: 5 } as const;
  assertEquals(refuse(map, remove).code, "busy");
  assertEquals(refuse(map, { ...remove, node: 1 }).code, "busy");
  map = runAll(map, { kind: "delete-disk", name: "web" });
  map = runAll(map, setTargets(map, 1, ...group2(map)));
  map = runAll(map, { kind: "create-disk", name: "web", sizeBytes: 512, nowMs: 0, copies: 1 });
  const held = runAll(map, take(2, { id: 2 }));
  assertEquals(refuse(held, remove).code, "busy");
  const next = runAll(map, remove);
  assertEquals(next.nodes.map((node) => node.id), [1, 3]);
  assertEquals(next.targetsEpoch, next.epoch);
  assertEquals(runAll(next, addNode(2)).nodes[2].id, 4, "ids are not used twice");
  assertEquals(refuse(clusterOf(1), { ...remove, node: 1 }).code, "invalid");
});

/** All PGs on node 1. */
function group2(map: ClusterMap): (readonly [number, readonly number[]])[] {
  return map.pools[0].pgs.map((_, pg) => [pg, [1]] as const);
}

Deno.test("force removes a dead node; what only it has is given up by a word of its own, and noted", () => {
  const map = runAll(clusterWithDisk(3, 1), take(2));
  const force = { kind: "remove-node", node: 2, nowMs: 5, force: true } as const;
  assertEquals(refuse(map, force).code, "busy", "it is up");
  const dead = runAll(map, down(2));
  const error = refuse(dead, force);
  assertEquals(error.code, "invalid");
  const alone = dead.pools[0].pgs.filter((pg) => pg.inSync[0] === 2).length;
  assert(error.message.includes(`${alone} placement groups`));
  assertEquals(refuse(dead, { ...force, force: false, acceptLoss: true }).code, "busy");
  const { map: next, effects } = run(dead, { ...force, acceptLoss: true });
  assertEquals(effects.map((effect) => effect.kind), ["lease-released", "groups-lost"]);
  assertEquals(findDisk(next, "web")!.lease, null);
  assertEquals(findDisk(next, "web")!.settled, 0, "nothing is known of its last writes");
  const loss = { epoch: next.epoch, nowMs: 5, node: 2, name: "host-2", pool: 1, pgs: alone };
  assertEquals(next.losses, [loss]);
  for (const [index, pg] of next.pools[0].pgs.entries()) {
    const wasThere = dead.pools[0].pgs[index].inSync[0] === 2;
    assertEquals(pg.inSync.length, 1);
    assert(!pg.inSync.includes(2) && !pg.target.includes(2));
    assertEquals(pg.settledEpoch, wasThere ? next.epoch : 0);
  }
  assertEquals(
    refuse(runAll(dead, down(1), down(3)), { ...force, acceptLoss: true }).code,
    "unavailable",
  );
  // Others have it: nothing is lost, and no word is needed.
  const safe = runAll(clusterWithDisk(3, 2), down(2), force);
  assertEquals(safe.losses, []);
  for (const pg of safe.pools[0].pgs) assert(!pg.target.includes(2) && pg.inSync.length > 0);
  // A pool without disks has nothing to lose.
  const empty = runAll(clusterWithDisk(3, 1), { kind: "delete-disk", name: "web" }, down(2), force);
  assertEquals(empty.losses, []);
});

Deno.test("the map remembers the newest losses", () => {
  const dead = runAll(clusterWithDisk(3, 1), down(2));
  const losses = Array.from({ length: LOSSES_MAX }, (_, index) => ({
    epoch: 1,
    nowMs: index,
    node: 1,
    name: "x",
    pool: 1,
    pgs: 1,
  }));
  const next = runAll(
    { ...dead, losses },
    { kind: "remove-node", node: 2, nowMs: 5, force: true, acceptLoss: true },
  );
  assertEquals([next.losses.length, next.losses[0].nowMs], [LOSSES_MAX, 1]);
});

Deno.test("a lease is given to one run of one node, and to no other while that is alive", () => {
  const map = runAll(clusterWithDisk(3, 3), take(1));
  const disk = () => findDisk(map, "web")!;
  assertEquals([disk().lease, disk().generation], [{ node: 1, incarnation: 1 }, 1]);
  assertEquals(refuse(map, take(2)).code, "busy");
  assertEquals(findDisk(runAll(map, take(1)), "web")!.generation, 2, "its own holder may");
  // Down, or started again: it cannot come back to it.
  assertEquals(findDisk(runAll(map, down(1), take(2)), "web")!.lease!.node, 2);
  const restarted = runAll(map, nodeUp(1));
  assertEquals(findDisk(runAll(restarted, take(2)), "web")!.generation, 2);
  assertEquals(refuse(restarted, take(1)).code, "stale");
  assertEquals(refuse(runAll(map, down(2)), take(2)).code, "stale");
  assertEquals(refuse(map, take(9)).code, "missing");
  const witness = runAll(clusterWithDisk(1, 1), addNode(2, { witness: true }));
  assertEquals(refuse(witness, take(2)).code, "invalid");
});

Deno.test("a clean release settles its generation; anything else leaves it to be reconciled", () => {
  const map = runAll(clusterWithDisk(2, 2), take(1), take(1));
  const release = { kind: "release-lease", id: 1, node: 1, generation: 2 } as const;
  const { map: free, effects } = run(map, release);
  assertEquals([findDisk(free, "web")!.lease, findDisk(free, "web")!.settled], [null, 2]);
  assertEquals(effects, [{
    kind: "lease-released",
    disk: free.disks[0],
    previous: { node: 1, incarnation: 1 },
  }]);
  assertEquals(refuse(free, release).code, "stale");
  assertEquals(refuse(map, { ...release, generation: 1 }).code, "stale");
  assertEquals(refuse(map, { ...release, node: 2 }).code, "stale");
  assertEquals(refuse(map, { ...release, id: 2 }).code, "missing");

  const force = { kind: "force-release-lease", id: 1, generation: 2 } as const;
  const forced = runAll(map, force);
  assertEquals([findDisk(forced, "web")!.lease, findDisk(forced, "web")!.settled], [null, 0]);
  same(forced, force);
  assertEquals(refuse(map, { ...force, generation: 1 }).code, "stale");

  const next = runAll(map, down(1), take(2));
  const done = { kind: "reconciled", id: 1, generation: 3 } as const;
  const reconciled = runAll(next, done);
  assertEquals(findDisk(reconciled, "web")!.settled, 2);
  same(reconciled, done);
  assertEquals(refuse(next, { ...done, generation: 2 }).code, "stale");
  assertEquals(refuse(forced, { ...done, generation: 2 }).code, "stale");
  // Deleting the disk ends the lease with it.
  const gone = runAll(map, { kind: "delete-disk", name: "web" });
  assertEquals(refuse(gone, release).code, "missing");
});

Deno.test("settings of the cluster are checked and changed one by one", () => {
  const map = clusterOf(1);
  const next = runAll(
    map,
    { kind: "change-settings", outAfterMs: 20_000 },
    { kind: "change-settings", trustedNetwork: true },
    { kind: "change-settings", copiesMin: 2 },
    { kind: "change-settings", copies: 2 },
    { kind: "change-settings", trashMs: 0 },
  );
  assertEquals(next.settings, {
    copies: 2,
    copiesMin: 2,
    outAfterMs: 20_000,
    trustedNetwork: true,
    trashMs: 0,
  });
  assertEquals(runAll(next, { kind: "change-settings", copiesMin: null }).settings.copiesMin, null);
  for (const outAfterMs of [0, 9999, 0.5, NaN, Infinity]) {
    assertEquals(refuse(map, { kind: "change-settings", outAfterMs }).code, "invalid");
  }
  assertEquals(refuse(map, { kind: "change-settings", copiesMin: 0 }).code, "invalid");
  for (const trashMs of [-1, 0.5, NaN, Infinity, TRASH_MS_MAX + 1]) {
    assertEquals(refuse(map, { kind: "change-settings", trashMs }).code, "invalid");
  }
  assertEquals(runAll(map, { kind: "change-settings", trashMs: map.settings.trashMs }), map);
});
