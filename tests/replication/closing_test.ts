/**
 * What happens in a node's store when a disk is given back.
 *
 * @module
 */
import { assertEquals } from "@std/assert/mod.js";
import { Closing } from "../../agent/replication/closing.ts";
import { ClusterView } from "../../agent/replication/view.ts";
import { OperationKind } from "../../agent/store/operation.ts";
import { EPOCH, FakeStore, GENERATION, mapOf } from "./harness.ts";

Deno.test("a node syncs its store when a lease has ended, once for all that end meanwhile", () => {
  const store = new FakeStore(1);
  const closing = new Closing(store);
  let epoch = EPOCH;
  let before: ClusterView | null = null;
  const install = (lease: { node: number; incarnation: number } | null, generation: number) => {
    const map = mapOf({ epoch: ++epoch, disk: { lease, generation } });
    const view = new ClusterView(map, 2, before);
    closing.mapChanged(before, view);
    before = view;
    return store.waiting.map(({ kind }) => kind);
  };
  const lease = { node: 1, incarnation: 1 };
  assertEquals(install(lease, GENERATION), []);
  assertEquals(install(lease, GENERATION), []);
  assertEquals(install(null, GENERATION), [OperationKind.Sync]);
  assertEquals(install(null, GENERATION), [OperationKind.Sync]);
  // Taken and given back, and straight from one to the next, while that one is under way.
  assertEquals(install(lease, GENERATION + 1), [OperationKind.Sync]);
  assertEquals(install(lease, GENERATION + 2), [OperationKind.Sync]);
  assertEquals(install(null, GENERATION + 2), [OperationKind.Sync]);
  store.run(1);
  assertEquals(store.waiting.map(({ kind }) => kind), [OperationKind.Sync]);
  store.run();
  assertEquals([closing.syncs, store.waiting.length], [2, 0]);
});
