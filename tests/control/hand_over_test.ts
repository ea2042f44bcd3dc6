/**
 * How a disk's lease goes from one node to the next, as the leader sees it.
 *
 * @module
 */
import { assertEquals } from "@std/assert/mod.js";
import { ControlKind, EMPTY_REPORT } from "../../agent/control/messages.ts";
import type { MapCommand } from "../../agent/map/map.ts";
import { atLevelTwo, clusterWithDisk, nodeUp, runAll } from "../map/cluster.ts";
import { Fixture, proposal } from "./fixture.ts";

const DISK = 1;

/** Node 1 leads, and node 2 has the disk under generation 1. */
class Cluster {
  readonly at: Fixture;
  #sequence = 0;

  /**
   * @param ledMs how long node 1 leads at the least
   * @param since what has happened before it began to
   * @param map in which nobody has the disk
   */
  constructor(
    { ledMs = 2000, since = [] as readonly MapCommand[], map = clusterWithDisk(4, 3) } = {},
  ) {
    const take = { kind: "take-lease", id: DISK, node: 2, incarnation: 1 } as const;
    this.at = new Fixture(runAll(map, take, ...since));
    for (let i = 0; i < 100 && !this.at.control.isLeader; i++) this.at.pass(40);
    this.at.pass(ledMs);
    this.at.changes.length = 0;
  }

  /** A session of that node waits for the disk. */
  wish(node: number, incarnation = 1): void {
    this.at.receive(node, { kind: ControlKind.Lease, node, incarnation, disk: DISK });
  }

  /** Node 2 proposes something. */
  propose(command: MapCommand): void {
    const proposals = [proposal(2, ++this.#sequence, command)];
    this.at.receive(2, { kind: ControlKind.Propose, proposals });
  }

  release(generation = 1): void {
    this.propose({ kind: "release-lease", id: DISK, node: 2, generation });
  }

  /** Who has the disk, and under which generation. */
  get holder(): string {
    const { lease, generation } = this.at.control.map.disks[0];
    return `${lease === null ? "nobody" : `node ${lease.node}`}, generation ${generation}`;
  }

  /** What has changed the map, but for what the leader looks after besides. */
  get changes(): string[] {
    return this.at.changes.filter((change) => change.includes("lease"));
  }
}

Deno.test("a disk that is given back goes to the node that waits for it in the same round of consensus", () => {
  const cluster = new Cluster();
  cluster.wish(3);
  cluster.at.pass(80);
  assertEquals(cluster.holder, "node 2, generation 1", "nobody is hurried");
  cluster.release();
  assertEquals(cluster.changes, [], "nothing holds before it is durable");
  cluster.at.persist();
  assertEquals(cluster.changes, ["release-lease", "take-lease"]);
  assertEquals(cluster.holder, "node 3, generation 2");
  assertEquals(cluster.at.control.map.disks[0].settled, 1, "there is nothing to reconcile");
});

Deno.test("who asks while the release is under way waits for nothing else", () => {
  const cluster = new Cluster();
  cluster.release();
  cluster.wish(3);
  cluster.at.persist();
  assertEquals(cluster.holder, "node 3, generation 2");
});

Deno.test("who asks before the leader has applied what it has applied itself is not forgotten", () => {
  const cluster = new Cluster();
  cluster.release(7);
  cluster.wish(3);
  cluster.at.persist();
  assertEquals(cluster.holder, "node 2, generation 1", "it has given nothing back");
  // The lease ends without a release of its holder; that the wish came before must not cost time.
  cluster.propose({ kind: "force-release-lease", id: DISK, generation: 1 });
  cluster.at.persist();
  cluster.at.persist();
  assertEquals(cluster.holder, "node 3, generation 2");
});

Deno.test("nothing is given away that its holder has not given back", () => {
  const cluster = new Cluster();
  cluster.wish(3);
  const { control } = cluster.at;
  // What another node says of it, and what the holder says of another generation.
  const release = { kind: "release-lease", id: DISK, node: 2, generation: 1 } as const;
  cluster.at.receive(4, { kind: ControlKind.Propose, proposals: [proposal(4, 1, release)] });
  assertEquals(control.status.pendingProposals, 0, "no taking was proposed");
  cluster.release(2);
  assertEquals(control.status.pendingProposals, 0);
});

Deno.test("whoever asked first has it first, and those who have gone are passed over", () => {
  const cluster = new Cluster();
  cluster.wish(4);
  cluster.at.pass(600);
  cluster.wish(3);
  cluster.at.pass(200);
  cluster.wish(4);
  cluster.release();
  cluster.at.persist();
  assertEquals(cluster.holder, "node 4, generation 2", "it has asked again since");

  const other = new Cluster();
  other.wish(4);
  other.at.pass(600);
  other.wish(3);
  other.at.pass(600);
  other.release();
  other.at.persist();
  assertEquals(other.holder, "node 3, generation 2", "node 4 has not asked for a second");

  const restarted = new Cluster();
  restarted.wish(3);
  restarted.at.propose(nodeUp(3));
  restarted.at.persist();
  restarted.release();
  restarted.at.persist();
  restarted.at.pass(400);
  assertEquals(restarted.holder, "nobody, generation 1", "that session has ended");
  restarted.wish(3, 2);
  restarted.at.persist();
  assertEquals(restarted.holder, "node 3, generation 2");
});

Deno.test("a lease that was taken away by force stays free for a while, whoever waits", () => {
  const cluster = new Cluster();
  cluster.wish(3);
  cluster.at.propose({ kind: "force-release-lease", id: DISK, generation: 1 });
  for (let waitedMs = 0; waitedMs < 5800; waitedMs += 200) {
    cluster.wish(3);
    cluster.at.pass(200);
    // Gossip knows of nobody here: the nodes stay up as long as they report.
    for (const node of [2, 3, 4]) {
      cluster.at.receive(node, renewal(node));
    }
    assertEquals(cluster.holder, "nobody, generation 1", `after ${waitedMs} ms`);
  }
  cluster.wish(3);
  cluster.at.pass(400);
  assertEquals(cluster.holder, "node 3, generation 2");
});

Deno.test("a disk that was deleted while it was open, and had back, stays free for a while", () => {
  const cluster = new Cluster({ map: atLevelTwo(clusterWithDisk(4, 3)) });
  const { at } = cluster;
  const { epoch } = at.control.map;
  at.propose({ kind: "delete-disk", name: "web", id: DISK, trashedMs: 1 });
  at.persist();
  at.propose({ kind: "restore-disk", id: DISK, name: "web" });
  at.persist();
  assertEquals(at.results, ["delete-disk: ok", "restore-disk: ok"]);
  for (let waitedMs = 0; waitedMs < 5800; waitedMs += 200) {
    cluster.wish(3);
    for (const node of [2, 3, 4]) at.receive(node, renewal(node, node === 2 ? epoch : 1e9));
    at.pass(200);
    assertEquals(cluster.holder, "nobody, generation 1", `after ${waitedMs} ms`);
  }
  // What it hears first is not that it may go on.
  at.sent.length = 0;
  at.receive(2, renewal(2, epoch));
  cluster.wish(3);
  at.pass(400);
  assertEquals(at.sent.some(({ kind }) => kind === ControlKind.Renewed), false);
  assertEquals(cluster.holder, "node 3, generation 2");
});

Deno.test("what was taken away before this node began to lead is free when it has led for long enough", () => {
  const since = [{ kind: "force-release-lease", id: DISK, generation: 1 }] as const;
  const cluster = new Cluster({ ledMs: 0, since });
  const { at } = cluster;
  for (let ledMs = 200; ledMs < 5800; ledMs += 200) {
    cluster.wish(3);
    for (const node of [2, 3, 4]) at.receive(node, renewal(node));
    assertEquals(cluster.holder, "nobody, generation 1", `leads for ${ledMs} ms`);
    at.pass(200);
  }
  cluster.wish(3);
  at.pass(600);
  assertEquals(cluster.holder, "node 3, generation 2");
  // What was given back in good order waits for nobody.
  const release = { kind: "release-lease", id: DISK, node: 2, generation: 1 } as const;
  const other = new Cluster({ ledMs: 0, since: [release] });
  other.wish(3);
  other.at.pass(80);
  assertEquals(other.holder, "node 3, generation 2");
});

Deno.test("the lease of a node that is down is given away when it cannot serve any more, and not before", () => {
  const downAfterMs = [0, 2000, 7000];
  for (const silentMs of downAfterMs) {
    const cluster = new Cluster();
    const { at } = cluster;
    // Long enough since this node has begun to lead.
    for (let i = 0; i < 10; i++) {
      at.pass(400);
      for (const node of [2, 3, 4]) at.receive(node, renewal(node));
    }
    let sinceToldMs = 0;
    const wait = (ms: number) => {
      for (let waitedMs = 0; waitedMs < ms; waitedMs += 200) {
        for (const node of [3, 4]) at.receive(node, renewal(node));
        cluster.wish(3);
        at.pass(200);
        sinceToldMs += 200;
      }
    };
    wait(silentMs);
    assertEquals(cluster.holder, "node 2, generation 1", "it is not called dead");
    at.propose({ kind: "node-down", node: 2, incarnation: 1, nowMs: 1 });
    wait(200);
    while (sinceToldMs < 5900) {
      assertEquals(cluster.holder, "node 2, generation 1", `${sinceToldMs} ms of silence`);
      wait(200);
    }
    wait(400);
    assertEquals(cluster.holder, "node 3, generation 2", `down after ${silentMs} ms`);
  }
});

Deno.test("a leader that has just begun does not know whom the one before has told that it may serve", () => {
  const cluster = new Cluster({ ledMs: 400 });
  const { at } = cluster;
  at.propose({ kind: "node-down", node: 2, incarnation: 1, nowMs: 1 });
  at.pass(200);
  for (let ledMs = 600; ledMs < 5800; ledMs += 200) {
    cluster.wish(3);
    for (const node of [3, 4]) at.receive(node, renewal(node));
    assertEquals(cluster.holder, "node 2, generation 1", `leads for ${ledMs} ms`);
    at.pass(200);
  }
});

Deno.test("a node from which a lease was taken may serve again once it has the map that says so", () => {
  const cluster = new Cluster();
  const { at } = cluster;
  const isTold = (node: number, epoch: number) => {
    at.sent.length = 0;
    at.receive(node, renewal(node, epoch));
    at.pass(40);
    return at.sent.some(({ kind }) => kind === ControlKind.Renewed);
  };
  const { epoch } = at.control.map;
  assertEquals([isTold(2, epoch), isTold(3, epoch)], [true, true]);
  // It was out of reach when somebody took the disk from it.
  at.propose({ kind: "force-release-lease", id: DISK, generation: 1 });
  at.persist();
  const taken = at.control.map.epoch;
  assertEquals([isTold(2, epoch), isTold(3, epoch)], [false, true]);
  assertEquals(isTold(2, taken), true);
  // Whoever gives it back, or never had it, has nothing to stop.
  cluster.wish(3);
  at.pass(400);
  at.propose({ kind: "node-down", node: 4, incarnation: 1, nowMs: 1 });
  at.persist();
  assertEquals(isTold(3, taken), true);
});

Deno.test("what happened before this node began to lead counts as having happened just then", () => {
  const { at } = new Cluster();
  at.sent.length = 0;
  at.receive(3, renewal(3, 0));
  at.pass(40);
  assertEquals(at.sent.some(({ kind }) => kind === ControlKind.Renewed), false);
});

/** @param epoch of the map that the node's data worker has; the newest unless given */
function renewal(node: number, epoch = 1e9) {
  const report = { ...EMPTY_REPORT, epoch };
  return { kind: ControlKind.Renew, node, incarnation: 1, id: 1, report } as const;
}
