/**
 * What a change will do: bytes of every node, totals, times.
 *
 * @module
 */
import { assertEquals, assertThrows } from "@std/assert/mod.js";
import { planChange } from "../../agent/map/plan.ts";

const CONDITIONS = { rateBytesPerSecond: 100, absent: new Set<number>() };

Deno.test("planChange() says what each node receives and sends, and how long the slowest needs", () => {
  const before = [[1, 2], [2, 3], [1, 3], []];
  const after = [[1, 4], [2, 3], [3, 4], []];
  const plan = planChange(
    [{ before, after, bytesOfPg: [600, 5000, 1000, 0], movedMinimum: 1 }],
    CONDITIONS,
  );
  assertEquals(plan, {
    nodes: [
      { id: 1, comes: 0, goes: 1, receivesBytes: 0, sendsBytes: 800, seconds: 8 },
      { id: 2, comes: 0, goes: 1, receivesBytes: 0, sendsBytes: 300, seconds: 3 },
      { id: 3, comes: 0, goes: 0, receivesBytes: 0, sendsBytes: 500, seconds: 5 },
      { id: 4, comes: 2, goes: 0, receivesBytes: 1600, sendsBytes: 0, seconds: 16 },
    ],
    movedReplicas: 2,
    movedBytes: 1600,
    minimumReplicas: 1,
    minimumBytes: 1650,
    replicasWithoutSource: 0,
    seconds: 16,
  });
});

Deno.test("planChange() lets only those send who are there", () => {
  const change = { before: [[1, 2], [2]], after: [[1, 3], [3]], bytesOfPg: 100, movedMinimum: 2 };
  const plan = planChange([change], { ...CONDITIONS, absent: new Set([2]) });
  assertEquals(plan.nodes.map(({ id, sendsBytes }) => [id, sendsBytes]), [[1, 100], [2, 0], [
    3,
    0,
  ]]);
  assertEquals([plan.movedReplicas, plan.movedBytes, plan.replicasWithoutSource], [2, 100, 1]);
});

Deno.test("planChange() adds pools up; a split moves nothing, a new pool has nothing to send", () => {
  const split = { before: [[1, 2]], after: [[1, 2], [2, 1]], bytesOfPg: 50, movedMinimum: 0 };
  const made = { before: [], after: [[1], [2]], bytesOfPg: 0, movedMinimum: 2 };
  assertEquals(planChange([split], CONDITIONS).movedReplicas, 0);
  const plan = planChange([split, made], CONDITIONS);
  assertEquals([plan.movedReplicas, plan.movedBytes, plan.seconds], [2, 0, 0]);
  assertThrows(() => planChange([], { ...CONDITIONS, rateBytesPerSecond: 0 }), RangeError, "rate");
});
