/**
 * What the cluster speaks: who may take part, when it rises, and that it never falls.
 *
 * @module
 */
import { assert, assertEquals } from "@std/assert/mod.js";
import { Prng } from "../../agent/base/prng.ts";
import {
  adopt,
  apply,
  checkMap,
  type ClusterMap,
  commandLevel,
  commonLevel,
  EMPTY_MAP,
  foundCluster,
  isOn,
  levelError,
  levelErrorIn,
} from "../../agent/map/map.ts";
import { unwrap } from "../../agent/map/errors.ts";
import { addNode, clusterOf, nodeUp, refuse, run, runAll } from "./cluster.ts";

/** Three nodes, of which the first `next` speak levels 1 and 2. */
function mixed(next: number): ClusterMap {
  let map = clusterOf(3);
  for (let node = 1; node <= next; node++) {
    map = run(map, nodeUp(node, { version: "2.0.0", protocol: 2 })).map;
  }
  return map;
}

Deno.test("the level rises when the last node can speak it, and not before", () => {
  for (const next of [0, 1, 2]) {
    const map = mixed(next);
    assertEquals([map.level, commonLevel(map)], [1, 1]);
    assertEquals(refuse(map, { kind: "raise-level", level: 2 }).code, "stale");
    assertEquals([isOn(map, 1), isOn(map, 2)], [true, false]);
  }
  const all = mixed(3);
  assertEquals([all.level, commonLevel(all)], [1, 2], "nothing rises by itself");
  const raised = run(all, { kind: "raise-level", level: 2 }).map;
  assertEquals([raised.level, raised.epoch, isOn(raised, 2)], [2, all.epoch + 1, true]);
  assertEquals(checkMap(raised), null);
});

Deno.test("a node that is down counts, one that was removed does not", () => {
  let map = mixed(2);
  map = run(map, { kind: "node-down", node: 3, incarnation: 1, nowMs: 9 }).map;
  assertEquals(refuse(map, { kind: "raise-level", level: 2 }).code, "stale");
  map = run(map, { kind: "remove-node", node: 3, force: true, nowMs: 10 }).map;
  assertEquals(run(map, { kind: "raise-level", level: 2 }).map.level, 2);
});

Deno.test("the level never falls, and a level that is there already changes nothing", () => {
  const map = run(mixed(3), { kind: "raise-level", level: 2 }).map;
  for (const level of [1, 2]) assertEquals(run(map, { kind: "raise-level", level }).map, map);
  for (const level of [0, -1, 1.5, NaN, 65536]) {
    assertEquals(refuse(map, { kind: "raise-level", level }).code, "invalid");
  }
});

Deno.test("after that a node starts or joins only with what speaks it, and is told what to do", () => {
  const map = run(mixed(3), { kind: "raise-level", level: 2 }).map;
  for (const command of [nodeUp(2, { version: "1.0.0", protocol: 1 }), addNode(4)]) {
    const error = refuse(map, command);
    assertEquals(error.code, "limit");
    assertEquals(
      error.message,
      "the cluster speaks level 2, and Kelpie 1.0.0 speaks only 1: it is too old",
    );
    assert(error.hint!.startsWith("install version 2.0.0, or a newer one"), error.hint);
  }
  const newer = { version: "4.0.0", protocolMin: 3, protocol: 4 };
  for (const command of [nodeUp(2, newer), addNode(4, newer)]) {
    const error = refuse(map, command);
    assertEquals(error.code, "limit");
    assertEquals(
      error.message,
      "the cluster speaks level 2, and Kelpie 4.0.0 speaks 3 to 4: it is too new",
    );
    assert(error.hint!.startsWith("upgrade step by step"), error.hint);
  }
  const next = { version: "3.0.0", protocolMin: 2, protocol: 3 };
  assertEquals(run(map, addNode(4, next)).map.nodes[3].protocolMin, 2);
  // Asked again after its answer was lost: it is there.
  assertEquals(run(map, addNode(3)).map, map);
});

Deno.test("a node that went back before the level rose keeps it from rising", () => {
  const map = run(mixed(3), nodeUp(1)).map;
  assertEquals(refuse(map, { kind: "raise-level", level: 2 }).code, "stale");
});

Deno.test("a founder speaks what it can, and a store of one host is adopted at that level", () => {
  const founder = { ...addNode(1, { protocol: 3, protocolMin: 2 }), clusterId: "c".repeat(32) };
  assertEquals(unwrap(foundCluster(founder)).level, 3);
  const adopted = unwrap(adopt({ ...EMPTY_MAP, epoch: 4 }, founder));
  assertEquals([adopted.level, checkMap(adopted)], [3, null]);
});

Deno.test("what a node speaks is checked", () => {
  for (const part of [{ protocolMin: 0 }, { protocolMin: 1.5 }, { protocolMin: 2, protocol: 1 }]) {
    assertEquals(refuse(clusterOf(1), addNode(2, part)).code, "invalid");
    assertEquals(refuse(clusterOf(1), nodeUp(1, part)).code, "invalid");
  }
});

Deno.test("a refusal names versions that fit, as far as they are known", () => {
  assertEquals(levelError(2, { version: "2.0.0", protocolMin: 1, protocol: 2 }), null);
  assertEquals(levelError(2, { version: "2.0.0", protocolMin: 2, protocol: 9 }), null);
  const error = levelError(3, { version: "1.0.0", protocol: 2 }, ["3.0.0", "3.0.0", "3.1.0"]);
  assertEquals(error?.message.includes("speaks 1 to 2"), true);
  assertEquals(error?.hint?.includes("3.0.0 or 3.1.0"), true);
  assertEquals(levelErrorIn(clusterOf(2), addNode(3)), null);
});

Deno.test("every command of this version belongs to a level that it speaks", () => {
  assertEquals(commandLevel({ kind: "raise-level", level: 9 }), 1);
  assertEquals(commandLevel(addNode(1)), 1);
  const create = { kind: "create-disk", name: "web", sizeBytes: 512, nowMs: 0, copies: 1 } as const;
  assertEquals(commandLevel(create), 1);
  assertEquals(commandLevel({ ...create, zones: ["a"] }), 2);
  assertEquals(commandLevel({ kind: "set-copies", name: "web", zones: ["a"] }), 2);
});

Deno.test("whatever happens, every node of the map speaks its level, and it never falls", () => {
  for (let seed = 1; seed <= 200; seed++) {
    const random = new Prng(seed);
    let map = clusterOf(1 + random.below(4));
    let level = map.level;
    for (let step = 0; step < 40; step++) {
      const protocolMin = 1 + random.below(4);
      const speaks = { protocolMin, protocol: protocolMin + random.below(3) };
      const node = 1 + random.below(6);
      const command = random.pick([
        nodeUp(node, speaks),
        nodeUp(node, { protocol: map.level + 1, protocolMin: map.level }),
        addNode(node, speaks),
        { kind: "raise-level", level: random.below(6) } as const,
        { kind: "raise-level", level: commonLevel(map) } as const,
        { kind: "node-down", node, incarnation: 1, nowMs: 5 } as const,
        { kind: "remove-node", node, force: true, acceptLoss: true, nowMs: 6 } as const,
      ]);
      const result = apply(map, command);
      if (result.ok) map = result.value.map;
      assert(map.level >= level, `seed ${seed}: the level fell`);
      level = map.level;
      assertEquals(checkMap(map), null, `seed ${seed}`);
    }
  }
});

Deno.test("a map whose nodes do not speak its level is none", () => {
  const map = runAll(mixed(3));
  assertEquals(checkMap({ ...map, level: 3 })?.code, "corrupt");
  assertEquals(checkMap({ ...map, level: 0 })?.code, "corrupt");
});
