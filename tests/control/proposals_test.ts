import { assertEquals } from "@std/assert/mod.js";
import { ControlKind } from "../../agent/control/messages.ts";
import { unwrap } from "../../agent/map/errors.ts";
import { findNode, growthOf, MAP_BYTES_FULL, type MapCommand } from "../../agent/map/map.ts";
import { encodeMap } from "../../agent/map/map_codec.ts";
import { atLevelTwo, clusterOf, clusterWithDisk, runAll } from "../map/cluster.ts";
import { createDisk, factsOf, Fixture, proposal } from "./fixture.ts";

const WEIGHT: MapCommand = { kind: "set-weight", node: 1, weight: 5e11 };

/** Node 2 sends proposals to make disks, which get their time; the disks that there are then, in the order in which they were made. */
function send(at: Fixture, ...list: [sequence: number, name: string, id: number][]): string[] {
  const proposals = list.map(([sequence, name, id]) => proposal(2, sequence, createDisk(name), id));
  at.receive(2, { kind: ControlKind.Propose, proposals });
  at.pass(200);
  return at.control.map.disks.map(({ name }) => name);
}

Deno.test("what is proposed while the log holds an earlier run's numbers is carried out once, all of it", () => {
  for (const left of [1, 2, 3]) {
    const numbers = Array.from({ length: left }, (_, i) => i + 1);
    const at = new Fixture(clusterOf(1), numbers.map((each) => proposal(1, each, WEIGHT, 77)));
    at.propose(createDisk("x"));
    at.propose(createDisk("y"));
    at.pass(4000);
    assertEquals(at.results, ["create-disk x: ok", "create-disk y: ok"], `${left} left`);
    const own = at.changes.filter((change) => /create-disk|node-up/.test(change)).sort();
    assertEquals(own, ["create-disk x", "create-disk y", "node-up"], `${left} left`);
    assertEquals(at.control.status.pendingProposals, 0);
  }
});

Deno.test("what is in the log when a node begins to lead does not come into it a second time under another number", () => {
  // Node 2's run before has used number 1; its two proposals of now are numbered anew while the second is in the log already.
  const second: MapCommand = { kind: "set-weight", node: 2, weight: 7e11 };
  const at = new Fixture(clusterOf(2), [proposal(2, 1, WEIGHT, 77), proposal(2, 2, second, 102)]);
  const again = {
    kind: ControlKind.Propose,
    proposals: [proposal(2, 2, createDisk("first"), 101), proposal(2, 3, second, 102)],
  } as const;
  at.control.tick(1020);
  for (let i = 0; i < 100 && !at.control.isLeader; i++) {
    at.pass(40);
    at.receive(2, again);
  }
  at.receive(2, again);
  at.pass(1000);
  assertEquals(
    findNode(at.control.map, 2)!.requestSequence,
    2,
    "the second has been carried out once",
  );
  // The node finds out, and counts anew.
  at.receive(2, {
    kind: ControlKind.Propose,
    proposals: [proposal(2, 3, createDisk("first"), 101)],
  });
  at.pass(1000);
  assertEquals(at.changes.includes("create-disk first"), true);
});

Deno.test("a leader takes proposals only from the node that they say they are of", () => {
  const at = new Fixture(clusterOf(2));
  at.pass(3000);
  const proposals = [proposal(2, 1, createDisk("x"))];
  at.receive(1, { kind: ControlKind.Propose, proposals });
  at.pass(200);
  assertEquals(at.changes.includes("create-disk x"), false);
  at.receive(2, { kind: ControlKind.Propose, proposals });
  at.pass(200);
  assertEquals(at.changes.includes("create-disk x"), true);
});

Deno.test("a number that another run of the node has used in this term is not the new one's", () => {
  const at = new Fixture(clusterOf(2));
  at.pass(3000);
  at.receive(2, { kind: ControlKind.Propose, proposals: [proposal(2, 1, createDisk("x"), 7)] });
  // Before that is applied: neither of these may go before the node knows.
  assertEquals(send(at, [1, "y", 8], [2, "z", 9]), ["x"]);
  assertEquals(send(at, [2, "y", 8], [3, "z", 9]), ["x", "y", "z"]);
});

Deno.test("who has run before is not told a number again when it asks to join with an empty store", () => {
  const at = new Fixture(clusterOf(2));
  at.pass(3000);
  const entry = () => findNode(at.control.map, 2)!;
  const facts = factsOf(entry());
  const ask = () => {
    at.sent.length = 0;
    at.receive(0, { kind: ControlKind.Join, facts: { ...facts, nowMs: 1 } });
    return at.sent.map(({ kind }) => kind);
  };
  assertEquals(entry().requestSequence, 0);
  assertEquals(ask(), [ControlKind.Joined], "the answer may have been lost");
  at.receive(2, { kind: ControlKind.Propose, proposals: [proposal(2, 1, createDisk("x"))] });
  at.pass(200);
  assertEquals(ask(), [ControlKind.Refused]);
});

Deno.test("who was removed is not taken in once more by what it had asked for before", () => {
  const at = new Fixture(clusterOf(2));
  at.pass(3000);
  const facts = factsOf(findNode(at.control.map, 2)!);
  at.control.propose({ kind: "node-down", node: 2, incarnation: 1, nowMs: 1 }, () => {});
  at.control.propose({ kind: "remove-node", node: 2, force: true, nowMs: 2 }, () => {});
  at.pass(3000);
  const numbers = () => at.control.map.nodes.map(({ id }) => id);
  assertEquals(numbers(), [1]);
  at.sent.length = 0;
  at.receive(0, { kind: ControlKind.Join, facts: { ...facts, nowMs: 1 } });
  at.pass(3000);
  assertEquals(numbers(), [1]);
  assertEquals(at.sent.map(({ kind }) => kind), [ControlKind.Refused]);
  // Its host is welcome with a store of its own.
  at.receive(0, { kind: ControlKind.Join, facts: { ...facts, uuid: "f".repeat(32), nowMs: 1 } });
  at.pass(3000);
  assertEquals(numbers(), [1, 3]);
});

Deno.test("what makes a map larger that is nearly as large as it may be is refused, and nothing else is", () => {
  const attributes = (length: number) =>
    Object.fromEntries(Array.from({ length }, (_, i) => [`label-${i}`, "x".repeat(64)]));
  const create = (name: string): MapCommand => ({
    kind: "create-disk",
    name,
    sizeBytes: 2 ** 30,
    nowMs: 1,
    attributes: attributes(16),
  });
  // Of disks that are alike but for their names.
  let map = runAll(atLevelTwo(clusterWithDisk(3, 3)), create("a0000"));
  const [template] = map.disks;
  const count = 3000;
  const disks = Array.from({ length: count }, (_, i) => ({
    ...template,
    id: i + 2,
    family: i + 2,
    name: `a${String(i).padStart(4, "0")}`,
    layers: [i + 2],
  }));
  const layers = [map.layers[0], ...disks.map(({ layers: [id] }) => ({ ...map.layers[1], id }))];
  const web = map.disks.filter(({ name }) => name === "web");
  map = { ...map, disks: [...disks, ...web], layers, nextDisk: count + 2, nextLayer: count + 2 };
  // As many as still fit.
  const eachBytes = (unwrap(encodeMap(map)).length - 1000) / count;
  const fitting = Math.floor(MAP_BYTES_FULL / eachBytes) - 4;
  assertEquals(fitting < count, true);
  const kept = disks.slice(0, fitting);
  const at = new Fixture({
    ...map,
    disks: [...kept, ...web],
    layers: layers.slice(0, fitting + 1),
  });
  at.pass(400);
  // What waits counts, too: none of these is decided yet.
  for (let i = 0; i < 20; i++) at.propose(create(`b${i}`));
  at.pass(400);
  const taken = at.results.filter((result) => result.endsWith(": ok")).length;
  assertEquals(taken < 10, true, `${taken} more`);
  assertEquals(new Set(at.results.slice(taken)).has("create-disk b19: limit"), true);
  const { control } = at;
  assertEquals(control.mapBytes <= MAP_BYTES_FULL, true);
  assertEquals(unwrap(encodeMap(control.map)).length <= control.mapBytes, true);
  at.results.length = 0;
  at.propose({ kind: "create-snapshots", disks: kept.map(({ id }) => id), name: "s", nowMs: 1 });
  at.propose({ kind: "change-disk", name: "a0000", attributes: {} });
  at.propose({ kind: "take-lease", id: 1, node: 2, incarnation: 1 });
  for (let i = 1; i < 20; i++) {
    at.propose({ kind: "delete-disk", name: `a${String(i).padStart(4, "0")}`, id: i + 2 });
  }
  at.pass(400);
  const refused = at.results.filter((result) => !result.endsWith(": ok"));
  assertEquals(refused, ["create-snapshots: limit"]);
  assertEquals(at.results.length, 22);
  at.results.length = 0;
  at.propose(create("c"));
  at.pass(400);
  assertEquals(at.results, ["create-disk c: ok"], "there is room again");
  assertEquals(growthOf(control.map, { kind: "delete-disk", name: "c" }), 0);
});

Deno.test("what is numbered anew behind a proposal that was taken back is not overtaken by what comes behind it", () => {
  const at = new Fixture(clusterOf(2));
  at.pass(3000);
  assertEquals(send(at, [1, "a", 7]), ["a"]);
  // Its node has taken it back before it heard that it was carried out.
  assertEquals(
    send(at, [1, "b", 8], [2, "c", 9]),
    ["a"],
    "its node does not know yet that 1 is used up",
  );
  assertEquals(send(at, [1, "a", 7], [2, "b", 8], [3, "c", 9]), ["a", "b", "c"]);
});
