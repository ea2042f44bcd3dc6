/**
 * A full store makes writes wait, frees and discards always work, the cleaner gives space back.
 *
 * @module
 */
import { assert, assertEquals } from "@std/assert/mod.js";
import { Prng } from "../../agent/base/prng.ts";
import { type Operation, OperationKind } from "../../agent/store/operation.ts";
import { Bench, makeDisk, type Shape, SMALL, World } from "./harness.ts";

const SHAPE: Shape = { ...SMALL, segments: 48, blocks: 1024 };

function open(shape: Shape = SHAPE): Bench {
  const random = new Prng(1);
  const bench = new Bench(0, makeDisk(0, random.fork(), shape), random.fork(), shape);
  bench.format();
  bench.mustOpen();
  bench.createLayer(1);
  return bench;
}

function stamps(first: number, count: number): number[] {
  return Array.from({ length: count }, (_, i) => first + i);
}

/**
 * Submits writes of 16 blocks to new places, 64 blocks to a chunk, until the store is full; returns
 * which are in.
 */
function fill(bench: Bench): { acked: Set<number>; submitted: number } {
  const acked = new Set<number>();
  let submitted = 0;
  while (bench.store.stats().waitingWrites < 4) {
    const first = submitted;
    const operation = bench.take((done) => {
      if (done.result === 0) acked.add(first);
    })!;
    Object.assign(operation, {
      kind: OperationKind.Write,
      layers: [1],
      chunk: first >>> 6,
      block: first & 63,
      blockCount: 16,
    });
    bench.fill(operation, stamps(1 + first, 16));
    bench.store.submit(operation);
    submitted += 16;
    for (let i = 0; i < 200; i++) {
      bench.store.endTurn();
      if (!bench.disk.pump()) break;
    }
    bench.nowMs += 50;
    bench.store.tick(bench.nowMs);
  }
  return { acked, submitted };
}

function settle(bench: Bench, turns = 300): void {
  for (let i = 0; i < turns; i++) {
    bench.store.endTurn();
    while (bench.disk.pump()) bench.store.endTurn();
    bench.nowMs += 100;
    bench.store.tick(bench.nowMs);
  }
}

Deno.test("a full store makes writes wait and says so; frees let them go on", () => {
  const bench = open();
  const { acked, submitted } = fill(bench);
  settle(bench);
  const full = bench.store.stats();
  assert(full.full);
  assertEquals(full.waitingWrites, 4);
  assert(full.liveBytes > 0.5 * full.capacityBytes, `${full.liveBytes} of ${full.capacityBytes}`);
  assert(full.liveBytes <= full.usableBytes + 64 * 4096, "usableBytes says what fits");
  // Everything else works.
  for (const first of acked) {
    assertEquals(bench.read([1], first >>> 6, first & 63, 16), stamps(1 + first, 16));
  }
  assertEquals(bench.sync(), 0);
  assertEquals(
    bench.call("meta", (done) => bench.store.setMeta("k", new Uint8Array(9), done)),
    null,
  );
  for (let chunk = 0; chunk < 8; chunk++) {
    assertEquals(bench.run(OperationKind.Free, [1], chunk, 0, 64).result, 0);
  }
  bench.until(() => bench.busy === 0, "the waiting writes");
  assertEquals(bench.store.stats().waitingWrites, 0);
  for (let first = 512; first < submitted; first += 16) {
    assertEquals(bench.read([1], first >>> 6, first & 63, 16), stamps(1 + first, 16));
  }
});

Deno.test("in a full store the changes of one chunk stay in order, and those of others overtake", () => {
  const bench = open();
  const { submitted } = fill(bench);
  const order: string[] = [];
  const submit = (kind: OperationKind, chunk: number, sequence: number, values: number[] = []) => {
    const operation = bench.take(() => order.push(`${chunk}.${sequence}`))!;
    Object.assign(operation, { kind, layers: [1], chunk, block: 0, blockCount: 1 });
    Object.assign(operation, { generation: 1, sequence });
    if (kind === OperationKind.Write) bench.fill(operation, values);
    bench.store.submit(operation);
  };
  const waiting = bench.store.stats().waitingWrites;
  submit(OperationKind.Write, 900, 1, [11]);
  submit(OperationKind.Zero, 900, 2);
  submit(OperationKind.Stamp, 900, 3);
  submit(OperationKind.Write, 901, 4, [12]);
  submit(OperationKind.Free, 900, 5);
  submit(OperationKind.Write, 900, 6, [13]);
  submit(OperationKind.Free, 902, 7);
  submit(OperationKind.Stamp, 903, 8);
  settle(bench, 40);
  assertEquals(order, ["902.7", "903.8"]);
  assertEquals(bench.store.stats().waitingWrites, waiting + 3);
  assertEquals(bench.store.stats().queuedOperations, 3);
  for (let chunk = 0; chunk < submitted >>> 7; chunk++) {
    bench.run(OperationKind.Free, [1], chunk, 0, 64);
  }
  bench.until(() => bench.busy === 0, "the waiting writes");
  assertEquals(
    order.filter((name) => name.startsWith("900")),
    ["900.1", "900.2", "900.3", "900.5", "900.6"],
  );
  assertEquals(bench.content(1, 900, 1), [13]);
  assertEquals([bench.stampOf(1, 900), bench.stampOf(1, 901)], ["1.6", "1.4"]);
  assertEquals(bench.store.stats().queuedOperations, 0);
});

Deno.test("what is taken back never happens, and the rest goes on in its order", () => {
  const bench = open();
  fill(bench);
  const order: string[] = [];
  const wanted = new Set<Operation>();
  const submit = (kind: OperationKind, chunk: number, sequence: number, isWanted: boolean) => {
    const operation = bench.take(({ result }) => order.push(`${sequence}: ${result}`))!;
    Object.assign(operation, { kind, layers: [1], chunk, block: 0, blockCount: 1 });
    Object.assign(operation, { generation: 1, sequence });
    if (kind === OperationKind.Write) bench.fill(operation, [sequence]);
    if (isWanted) wanted.add(operation);
    bench.store.submit(operation);
  };
  const before = bench.store.stats();
  submit(OperationKind.Write, 900, 1, true);
  submit(OperationKind.Stamp, 900, 2, false);
  submit(OperationKind.Write, 901, 3, false);
  submit(OperationKind.Free, 901, 4, true);
  submit(OperationKind.Stamp, 901, 5, false);
  settle(bench, 10);
  assertEquals(order, []);
  bench.store.withdraw((operation) => wanted.has(operation));
  assertEquals(order, [], "it came back from inside the call");
  settle(bench, 10);
  // Behind the write that is gone nothing waits any more.
  assertEquals(order.splice(0).sort(), ["1: -125", "2: 0", "4: -125"]);
  assertEquals(bench.store.stats().waitingWrites, before.waitingWrites + 1);
  for (let chunk = 0; chunk < 8; chunk++) bench.run(OperationKind.Free, [1], chunk, 0, 64);
  bench.until(() => bench.busy === 0, "the waiting writes");
  assertEquals(order, ["3: 0", "5: 0"]);
  assertEquals([bench.content(1, 900, 1), bench.content(1, 901, 1)], [[-1], [3]]);
  assertEquals([bench.stampOf(1, 900), bench.stampOf(1, 901)], ["1.2", "1.5"]);
  assertEquals(bench.store.stats().queuedOperations, 0);
});

Deno.test("what waits only for writes that wait no longer does not wait for the rest", () => {
  const bench = open();
  fill(bench);
  const order: number[] = [];
  const submit = (kind: OperationKind, chunk: number, blockCount: number) => {
    const operation = bench.take(() => order.push(chunk))!;
    Object.assign(operation, { kind, layers: [1], chunk, block: 0, blockCount });
    if (kind === OperationKind.Write) bench.fill(operation, stamps(1, blockCount));
    bench.store.submit(operation);
  };
  // Writes for which there will not be room, but for a few, and behind them the frees of two chunks.
  for (let i = 0; i < 9; i++) submit(OperationKind.Write, 900 + i, 64);
  submit(OperationKind.Free, 900, 64);
  submit(OperationKind.Free, 908, 64);
  settle(bench, 40);
  assertEquals(order, []);
  for (let chunk = 0; chunk < 3; chunk++) bench.run(OperationKind.Free, [1], chunk, 0, 64);
  settle(bench, 60);
  assert(order.indexOf(900) >= 0 && order.lastIndexOf(900) > order.indexOf(900), `${order}`);
  assert(!order.includes(908), `${order}`);
});

Deno.test("a full store takes any number of frees that free nothing", () => {
  const bench = open();
  fill(bench);
  for (let i = 0; i < 3000; i++) {
    assertEquals(bench.run(OperationKind.Free, [1], 900, i % 1024, 1).result, 0);
  }
  for (let i = 0; i < 500; i++) {
    assertEquals(bench.run(OperationKind.Zero, [1], 901, i % 1024, 1).result, 0);
  }
});

Deno.test("deleting a layer empties a full store", () => {
  const bench = open();
  fill(bench);
  assertEquals(bench.call("delete", (done) => bench.store.deleteLayer(1, done)), null);
  bench.until(() => bench.busy === 0, "the waiting writes");
  settle(bench);
  assertEquals(bench.store.stats().liveBytes, 0);
});

Deno.test("close() of a full store gives the waiting writes back", () => {
  const bench = open();
  fill(bench);
  let failed = 0;
  bench.store.close(() => {});
  bench.until(() => bench.store.state === "closed", "close");
  bench.until(() => bench.busy === 0, "waiting writes");
  failed++;
  assertEquals(failed, 1);
});

Deno.test("overwriting at random at nine tenths full goes on for ever, and loses nothing", () => {
  const shape = { ...SHAPE, segments: 56 };
  const bench = open(shape);
  const usable = bench.store.stats().usableBytes / 4096;
  const blocks = Math.floor(usable * 0.9);
  const random = new Prng(6);
  const expected = new Array(blocks).fill(0);
  let stamp = 0;
  let pending = 0;
  const write = (block: number) => {
    bench.until(() => bench.busy < 16, "a slot");
    pending++;
    const operation = bench.take((done) => {
      pending--;
      assertEquals(done.result, 0);
    })!;
    Object.assign(operation, {
      kind: OperationKind.Write,
      layers: [1],
      chunk: block >>> 10,
      block: block & 1023,
      blockCount: 1,
    });
    bench.fill(operation, [expected[block] = ++stamp]);
    bench.store.submit(operation);
  };
  const busy = new Set<number>();
  for (let block = 0; block < blocks; block++) write(block);
  bench.until(() => pending === 0, "the first fill");
  for (let i = 0; i < 4 * blocks; i++) {
    if (i % 12 === 0) {
      bench.until(() => pending === 0, "a round");
      busy.clear();
    }
    const block = random.below(blocks);
    if (busy.has(block)) continue;
    busy.add(block);
    write(block);
  }
  bench.until(() => pending === 0, "all");
  const { cleanedSegments, writeAmplification } = bench.store.stats();
  assert(cleanedSegments > 10, `${cleanedSegments} segments cleaned`);
  assert(writeAmplification < 12, `write amplification ${writeAmplification}`);
  for (let block = 0; block < blocks; block++) {
    assertEquals(bench.read([1], block >>> 10, block & 1023, 1), [expected[block]]);
  }
});

Deno.test("space that was freed goes back to the host", () => {
  const bench = open({
    ...SHAPE,
    tunables: { ...SHAPE.tunables, warmSegments: 2, warmMs: 1000 },
  });
  const { submitted } = fill(bench);
  const before = bench.disk.spaceBytes;
  const free = (chunk: number) => bench.run(OperationKind.Free, [1], chunk, 0, 1024);
  // Last, those of which writes wait.
  for (let chunk = 0; chunk < submitted >>> 6; chunk++) free(chunk);
  bench.until(() => bench.busy === 0, "writes");
  // What has died is free once that is durable.
  bench.sync();
  settle(bench);
  assert(bench.disk.counts.punches > 5, `${bench.disk.counts.punches} punches`);
  assert(bench.disk.spaceBytes < before / 2, `${bench.disk.spaceBytes} of ${before}`);
});

Deno.test("a host without space makes writes wait, until it has some again", () => {
  const bench = open();
  bench.disk.faults = { spaceBytesMax: bench.disk.spaceBytes + 6 * SHAPE.segmentBytes };
  const { acked } = fill(bench);
  settle(bench);
  const stats = bench.store.stats();
  assert(stats.full && stats.hostFull);
  assert(stats.freeBytes > stats.capacityBytes / 3, "the store itself has space");
  assertEquals(bench.sync(), 0);
  for (const first of acked) {
    assertEquals(bench.read([1], first >>> 6, first & 63, 16), stamps(1 + first, 16));
  }
  bench.disk.faults = {};
  bench.until(() => bench.busy === 0, "the waiting writes");
  settle(bench, 30);
  assertEquals(bench.store.stats().hostFull, false);
  assertEquals(bench.store.stats().writeErrors, 0, "no write ever met ENOSPC");
});

Deno.test("a nearly full store survives one crash after another", () => {
  const world = new World(3, { ...SMALL, segments: 38, blocks: 72 }, { write: 90, free: 2 });
  for (let round = 0; round < 60; round++) {
    for (let step = 0; step < 25; step++) world.step();
    world.crash();
  }
});

Deno.test("open() with more capacity gives a store without free segments room again", () => {
  const shape = { ...SHAPE, segments: 60 };
  const random = new Prng(1);
  const bench = new Bench(0, makeDisk(0, random, shape), random, { ...shape, segments: 40 });
  bench.format();
  bench.mustOpen();
  bench.createLayer(1);
  fill(bench);
  const disk = bench.disk.crash(random, bench.window.bytes, { keep: 1, lose: 0, reorder: false });
  const next = new Bench(0, disk, random, shape);
  const capacityBytes = 1024 * 1024 + 60 * shape.segmentBytes;
  const hostId = new Uint8Array(16).fill(3);
  assertEquals(next.call("open", (done) => next.store.open({ hostId, capacityBytes }, done)), null);
  assertEquals(next.store.stats().segmentCount, 60);
  settle(next, 5);
  assertEquals(next.store.stats().full, false);
});
