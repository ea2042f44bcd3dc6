import { assertEquals } from "@std/assert/mod.js";
import { ControlKind } from "../../agent/control/messages.ts";
import { findNode, type MapCommand } from "../../agent/map/map.ts";
import { clusterOf } from "../map/cluster.ts";
import { createDisk, factsOf, Fixture, proposal } from "./fixture.ts";

const WEIGHT: MapCommand = { kind: "set-weight", node: 1, weight: 5e11 };

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
  const send = (...list: [sequence: number, name: string, id: number][]) => {
    const proposals = list.map(([sequence, name, id]) =>
      proposal(2, sequence, createDisk(name), id)
    );
    at.receive(2, { kind: ControlKind.Propose, proposals });
    at.pass(200);
    return at.control.map.disks.map(({ name }) => name);
  };
  at.receive(2, { kind: ControlKind.Propose, proposals: [proposal(2, 1, createDisk("x"), 7)] });
  // Before that is applied: neither of these may go before the node knows.
  assertEquals(send([1, "y", 8], [2, "z", 9]), ["x"]);
  assertEquals(send([2, "y", 8], [3, "z", 9]), ["x", "y", "z"]);
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
