/**
 * What one node makes of what the others say about its leases, and about others': after it was away, and while it goes.
 *
 * @module
 */
import { assertEquals } from "@std/assert/mod.js";
import { ControlKind, EMPTY_REPORT } from "../../agent/control/messages.ts";
import { findNode } from "../../agent/map/map.ts";
import { clusterOf, clusterWithDisk, nodeUp, runAll } from "../map/cluster.ts";
import { Follower, kindsOf } from "./follower_fixture.ts";

Deno.test("a node that leaves, and is seen to go before its word is in the log, does not come up again", () => {
  const at = new Follower(clusterOf(3));
  at.start();
  assertEquals(at.control.incarnation, 2);
  let hasLeft = false;
  at.control.leave(() => hasLeft = true);
  // A leader that has just begun does not take it yet, and has heard from gossip that node 1 has left.
  assertEquals(kindsOf(at.proposed()), ["node-leave"]);
  at.commit(at.proposalOf({ kind: "node-down", node: 1, incarnation: 2, nowMs: 1 }));
  at.pass(440);
  at.commit(...at.proposed());
  assertEquals(hasLeft, true);
  assertEquals(findNode(at.control.map, 1)!.state, "down");
});

Deno.test("a node whose log is not its leader's is not told that it may serve, and believes nobody", () => {
  const at = new Follower(clusterOf(3));
  at.start();
  const ask = () => {
    at.sent = [];
    at.pass(1000);
    const asked = at.sent.findLast((message) => message.kind === ControlKind.Renew);
    if (asked?.kind !== ControlKind.Renew) throw new Error("it does not ask");
    return asked;
  };
  const asked = ask();
  at.receive(2, { kind: ControlKind.Renewed, id: asked.id });
  assertEquals(at.renewals.length, 1);
  // As node 2 leads on, without what is committed here.
  const { index } = at.last;
  at.raft(2, 3, { kind: "append", prevIndex: index, prevTerm: 3, commit: index, entries: [] });
  const again = ask();
  assertEquals(again.report.hasOtherLog, true);
  at.receive(2, { kind: ControlKind.Renewed, id: again.id });
  assertEquals(at.renewals.length, 1);
});

/** Node 1 leads from now on, and has all that it has to have. */
function lead(at: Follower): void {
  at.agree(1600);
  assertEquals(at.control.isLeader, true);
}

Deno.test("whose going down a node has not seen, since a whole map came, is not surely down", () => {
  const disk = 1;
  const down = (incarnation: number) =>
    ({ kind: "node-down", node: 4, incarnation, nowMs: 1 }) as const;
  const take = { kind: "take-lease", id: disk, node: 4, incarnation: 2 } as const;
  const before = clusterWithDisk(4, 3);
  const at = new Follower(before);
  at.start();
  at.commit(at.proposalOf(down(1)));
  at.pass(10_000);
  assertEquals(at.control.isSurelyDown(4), true);
  // It was back, has opened the disk, and may have been told a moment ago that it may serve.
  at.jump(runAll(at.control.map, nodeUp(4), take, down(2)));
  assertEquals(findNode(at.control.map, 4)!.incarnation, 2);
  at.pass(40);
  assertEquals(at.control.isSurelyDown(4), false);
  lead(at);
  at.receive(3, { kind: ControlKind.Lease, node: 3, incarnation: 1, disk });
  at.agree(400);
  assertEquals(at.control.map.disks[0].lease, { node: 4, incarnation: 2 });
});

Deno.test("what was taken from a node before a whole map came it has to have heard of before it may serve", () => {
  const disk = 1;
  const take = { kind: "take-lease", id: disk, node: 4, incarnation: 1 } as const;
  const at = new Follower(runAll(clusterWithDisk(4, 3), take));
  at.start();
  const { epoch } = at.control.map;
  at.jump(
    runAll(
      at.control.map,
      { kind: "force-release-lease", id: disk, generation: 1 },
      { kind: "take-lease", id: disk, node: 3, incarnation: 1 },
    ),
  );
  lead(at);
  const isTold = (known: number) => {
    const report = { ...EMPTY_REPORT, epoch: known };
    at.told = 0;
    at.receive(4, { kind: ControlKind.Renew, node: 4, incarnation: 1, id: 1, report });
    at.agree(400);
    return at.told > 0;
  };
  assertEquals(at.control.map.disks[0].lease, { node: 3, incarnation: 1 });
  assertEquals(isTold(epoch), false);
  assertEquals(isTold(at.control.map.epoch), true);
});
