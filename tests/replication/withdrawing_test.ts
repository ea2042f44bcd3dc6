/**
 * Replicas that lack writes leave, and come back, while others come and go.
 *
 * @module
 */
import { assertEquals } from "@std/assert/mod.js";
import { ClusterView } from "../../agent/replication/view.ts";
import { Withdrawals, WITHDRAWALS_MAX } from "../../agent/replication/withdrawing.ts";
import { CHANGED, EPOCH, mapOf, type MapOptions } from "./harness.ts";

const LEAVE_MS = 10_000, BACK_MS = 300_000;

class Fixture {
  view = new ClusterView(mapOf(), 1);
  nowMs = 0;
  /** What the map was asked: members, and the epoch that it rests on. */
  readonly asked: string[] = [];
  readonly withdrawals = new Withdrawals((group, nodes) =>
    this.asked.push(`${nodes} at ${group.entry.changedEpoch}`)
  );

  get group() {
    return this.view.pool(3)[0];
  }

  get isUnderWay(): boolean {
    return this.withdrawals.isUnderWay(this.group);
  }

  begin(...nodes: number[]): boolean {
    return this.withdrawals.begin(this.group, nodes, this.nowMs);
  }

  pass(ms: number): void {
    this.withdrawals.tick(this.view, this.nowMs += ms);
  }

  /** The members change. */
  map(inSync: number[], joining: number[] = [], options: MapOptions = {}): void {
    const epoch = this.view.epoch + 1;
    const joinedEpochs = joining.map(() => epoch);
    const group = { inSync, joining, joinedEpochs, changedEpoch: epoch, ...options.group };
    this.view = new ClusterView(mapOf({ ...options, epoch, group }), 1);
  }
}

Deno.test("it is over when those that left are in sync again", () => {
  const at = new Fixture();
  assertEquals(at.begin(2), true);
  assertEquals([at.asked, at.isUnderWay], [[`2 at ${CHANGED}`], true]);
  at.map([1, 3]);
  at.pass(50);
  at.map([1, 3], [2]);
  at.pass(200_000);
  assertEquals(at.isUnderWay, true);
  at.map([1, 3, 2]);
  at.pass(50);
  assertEquals([at.isUnderWay, at.asked.length], [false, 1]);
});

Deno.test("the map is asked again as long as nothing happens, and not for ever", () => {
  const at = new Fixture();
  at.begin(2, 3);
  for (let ms = 0; ms < LEAVE_MS - 50; ms += 50) at.pass(50);
  assertEquals([at.isUnderWay, at.asked.length], [true, 10]);
  assertEquals(new Set(at.asked), new Set([`2,3 at ${CHANGED}`]));
  at.pass(100);
  assertEquals(at.isUnderWay, false);
  at.pass(5000);
  assertEquals(at.asked.length, 10);
});

Deno.test("where others come or go first it is over, and whoever asked looks again", () => {
  const at = new Fixture();
  at.begin(2);
  // The third one has left: the map does not let another one go by what was found when it was there.
  at.map([1, 2]);
  at.pass(50);
  assertEquals(at.isUnderWay, false);
});

Deno.test("who does not come back is not waited for", () => {
  const down = new Fixture();
  down.begin(2);
  down.map([1, 3]);
  down.pass(50);
  assertEquals(down.isUnderWay, true);
  down.map([1, 3], [], { down: [2] });
  down.pass(50);
  assertEquals(down.isUnderWay, false);
  const elsewhere = new Fixture();
  elsewhere.begin(2);
  elsewhere.map([1, 3], [], { group: { target: [1, 3, 4] } });
  elsewhere.pass(50);
  assertEquals(elsewhere.isUnderWay, false);
  const slow = new Fixture();
  slow.begin(2);
  slow.map([1, 3], [2]);
  slow.pass(BACK_MS - 50);
  assertEquals(slow.isUnderWay, true);
  slow.pass(50);
  assertEquals(slow.isUnderWay, false);
});

Deno.test("a group that is not open is not back", () => {
  const at = new Fixture();
  at.begin(2);
  at.map([1, 3]);
  at.map([1, 3, 2], [], { group: { unclean: [3] } });
  at.pass(50);
  assertEquals(at.isUnderWay, true);
});

Deno.test("one group at a time, and each a few times", () => {
  const at = new Fixture();
  for (let i = 0; i < WITHDRAWALS_MAX; i++) {
    assertEquals(at.withdrawals.isSpent(at.group), false);
    assertEquals(at.begin(2), true);
    assertEquals(at.withdrawals.begin(at.view.pool(3)[1], [2], at.nowMs), false);
    assertEquals(at.withdrawals.isUnderWay(at.view.pool(3)[1]), false);
    at.map([1, 3]);
    at.map([1, 3, 2]);
    at.pass(50);
  }
  assertEquals(at.withdrawals.isSpent(at.group), true);
  assertEquals(at.withdrawals.isSpent(at.view.pool(3)[1]), false);
  assertEquals(at.view.epoch, EPOCH + 2 * WITHDRAWALS_MAX);
});
