/**
 * What is kept back for the next checkpoint is enough for it, and no more than that keeps a full store from being emptied.
 *
 * @module
 */
import { assert, assertEquals } from "@std/assert/mod.js";
import { Prng } from "../../agent/base/prng.ts";
import { Operation, OperationKind } from "../../agent/store/operation.ts";
import { Bench, makeDisk, type Shape, SLOTS, SMALL } from "./harness.ts";

const SHAPE: Shape = {
  ...SMALL,
  segments: 300,
  blocks: 1024,
  tunables: { checksumCacheBytes: 65536, scrubBytesPerSecond: 0 },
};

function open(): Bench {
  const random = new Prng(1);
  const bench = new Bench(0, makeDisk(0, random.fork(), SHAPE), random.fork(), SHAPE);
  bench.format();
  bench.mustOpen();
  return bench;
}

function settle(bench: Bench, turns = 100): void {
  for (let i = 0; i < turns; i++) {
    bench.store.endTurn();
    while (bench.disk.pump()) bench.store.endTurn();
    bench.nowMs += 100;
    bench.store.tick(bench.nowMs);
  }
}

type Change = {
  kind: OperationKind;
  layers: number[];
  chunk: number;
  block: number;
  count: number;
};

/** Submits changes, as many at a time as there are slots, until all are done or writes wait; returns how many were done. */
function submit(bench: Bench, changes: Iterable<Change>): number {
  let done = 0;
  for (const { kind, layers, chunk, block, count } of changes) {
    if (bench.busy === SLOTS) {
      for (let i = 0; bench.busy > 0 && i < 200; i++) settle(bench, 1);
      if (bench.busy > 0) return done;
    }
    const operation = bench.take(({ result }) => {
      if (result === 0) done++;
    })!;
    Object.assign(operation, { kind, layers, chunk, block, blockCount: count });
    if (kind === OperationKind.Write) bench.fill(operation, new Array(count).fill(chunk + 1));
    bench.store.submit(operation);
  }
  settle(bench, 20);
  return done;
}

/** A write of one block into each of the chunks. */
function* writes(chunks: number, blocks: readonly number[]): Generator<Change> {
  const layers = [1];
  for (let chunk = 0; chunk < chunks; chunk++) {
    for (const block of blocks) {
      yield { kind: OperationKind.Write, layers, chunk, block, count: 1 };
    }
  }
}

Deno.test("a full store whose chunks have become fragmented can be checkpointed, closed and opened", () => {
  const bench = open();
  bench.createLayer(1);
  const chunks = 265;
  const zeros = Array.from({ length: chunks }, (_, chunk): Change => (
    { kind: OperationKind.Zero, layers: [1], chunk, block: 0, count: 1024 }
  ));
  submit(bench, zeros);
  // 62 entries of the index in each: one more write, and it is stored block by block.
  submit(bench, writes(chunks, Array.from({ length: 30 }, (_, i) => 33 * i + 32)));
  assertEquals(bench.close(), null);
  bench.mustOpen();
  // All, or as many as fit: nothing is acknowledged that cannot be opened again.
  submit(bench, writes(chunks, [8]));
  assertEquals(bench.close(), null);
  assertEquals(bench.warnings, []);
  bench.mustOpen();
  for (let chunk = 0; chunk < chunks; chunk++) {
    assertEquals(bench.read([1], chunk, 32, 1), [chunk + 1]);
  }
});

Deno.test("a snapshot that is deleted from a full store does not lock it up", () => {
  const bench = open();
  bench.createLayer(1);
  bench.createLayer(2);
  // Far apart, as the index of a large store has room.
  function* both(): Generator<Change> {
    for (let i = 0;; i++) {
      const layers = [1 + i % 2];
      const chunk = (i >>> 1) * 1024;
      yield { kind: OperationKind.Write, layers, chunk, block: 16 * (i % 2), count: 16 };
    }
  }
  const chunks = submit(bench, both()) >>> 1;
  assert(bench.store.stats().full);
  const absorbs = Array.from({ length: chunks - 24 }, (_, i): Change => (
    { kind: OperationKind.Absorb, layers: [2, 1], chunk: i * 1024, block: 0, count: 1 }
  ));
  let done = 0;
  for (let at = 0; at < absorbs.length; at += 32) {
    for (const { kind, layers, chunk } of absorbs.slice(at, at + 32)) {
      const operation = new Operation({
        operationDone: ({ result }) => {
          assertEquals(result, 0);
          done++;
        },
      }, 0);
      Object.assign(operation, { kind, layers, chunk });
      bench.store.submit(operation);
    }
    settle(bench, 100);
    if (done < Math.min(at + 32, absorbs.length)) break;
  }
  assertEquals(done, absorbs.length, "absorbs");
  assertEquals(
    bench.call("meta", (done) => bench.store.setMeta("k", new Uint8Array(9), done)),
    null,
  );
});
