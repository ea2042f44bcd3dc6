/**
 * What the store promises while nothing goes wrong.
 *
 * @module
 */
import { assert, assertEquals } from "@std/assert/mod.js";
import { Prng } from "../../agent/base/prng.ts";
import { Operation, OperationKind } from "../../agent/store/operation.ts";
import { Bench, HOST, makeDisk, type Shape, SMALL } from "./harness.ts";

const EINVAL = 22, ENODEV = 19;

/** A bench with an open store and layers 1 and 2. */
function open(shape: Shape = SMALL, seed = 1): Bench {
  const random = new Prng(seed);
  const bench = new Bench(0, makeDisk(0, random.fork(), shape), random.fork(), shape);
  bench.format();
  bench.mustOpen();
  bench.createLayer(1);
  bench.createLayer(2);
  return bench;
}

/** Stops the store cleanly and starts another one on the same disk. */
function reopen(bench: Bench): Bench {
  const error = bench.close();
  if (error) throw error;
  return again(bench);
}

/** Another store on what the disk of `bench` holds now. */
function again(bench: Bench): Bench {
  const disk = bench.disk.crash(new Prng(9), bench.window.bytes, {
    keep: 1,
    lose: 0,
    reorder: false,
  });
  const next = new Bench(0, disk, new Prng(10), bench.shape);
  next.mustOpen();
  return next;
}

function stamps(first: number, count: number): number[] {
  return Array.from({ length: count }, (_, i) => first + i);
}

Deno.test("submit() reads what was written, of every size and at every place", () => {
  const bench = open();
  for (const [block, count] of [[0, 1], [7, 3], [100, 4], [200, 24], [960, 64], [1023, 1]]) {
    assertEquals(bench.write(1, 1_000_000_000, block, stamps(block + 1, count)), 0);
    assertEquals(bench.read([1], 1_000_000_000, block, count), stamps(block + 1, count));
  }
  assertEquals(bench.read([1], 1_000_000_000, 5, 7), [0, 0, 8, 9, 10, 0, 0]);
});

Deno.test("submit() reads through the layers: holes show what is below, zeros do not", () => {
  const bench = open();
  bench.write(1, 0, 0, stamps(10, 6));
  bench.write(2, 0, 1, stamps(20, 1));
  bench.run(OperationKind.Zero, [2], 0, 3, 1);
  assertEquals(bench.read([2, 1], 0, 0, 6), [10, 20, 12, 0, 14, 15]);
  bench.run(OperationKind.Free, [2], 0, 0, 1024);
  assertEquals(bench.read([2, 1], 0, 0, 6), stamps(10, 6));
  assertEquals(bench.read([2], 0, 0, 6), [0, 0, 0, 0, 0, 0]);
  assertEquals(bench.read([], 0, 0, 2), [0, 0]);
});

Deno.test("a read into the buffer brings the checksums of what is there, whatever that is made of", () => {
  const bench = open();
  const { kernel } = bench.window;
  bench.write(1, 0, 0, stamps(10, 20));
  bench.write(1, 0, 5, stamps(50, 1));
  bench.write(2, 0, 8, stamps(80, 1));
  bench.run(OperationKind.Zero, [2], 0, 12, 2);
  const read = (block: number, count: number) =>
    bench.run(OperationKind.Read, [2, 1], 0, block, count);
  for (const [block, count] of [[5, 1], [6, 1], [0, 24], [12, 1], [11, 3]]) {
    const { buffer, checksums, isSummed, result } = read(block, count);
    assertEquals([result, isSummed], [0, block !== 12], "where nothing is read there are none");
    if (!isSummed) continue;
    const sums = stamps(0, count).map((i) => kernel.checksum(buffer + i * 4096, 4096));
    assertEquals([...checksums.subarray(0, count)], sums);
  }
});

Deno.test("submit() applies what it takes in one turn in the order in which it came", () => {
  const bench = open();
  const order: number[] = [];
  const submit = (kind: OperationKind, block: number, values: number[]) => {
    const operation = bench.take(() => order.push(values[0]))!;
    Object.assign(operation, { kind, layers: [1], chunk: 0, block, blockCount: values.length });
    if (kind === OperationKind.Write) bench.fill(operation, values);
    bench.store.submit(operation);
  };
  submit(OperationKind.Write, 0, stamps(100, 8));
  submit(OperationKind.Write, 2, stamps(200, 2));
  submit(OperationKind.Free, 3, [3]);
  submit(OperationKind.Write, 4, stamps(300, 1));
  assertEquals(order, [], "nothing is finished inside submit");
  bench.until(() => order.length === 4, "the turn");
  assertEquals(order, [100, 200, 3, 300]);
  assertEquals(bench.store.stats().records - 2, 1, "one record for the turn");
  assertEquals(bench.read([1], 0, 0, 8), [100, 101, 200, 0, 300, 105, 106, 107]);
});

Deno.test("submit() splits an operation that does not fit a batch or the segment's end", () => {
  const bench = open();
  for (let round = 0; round < 20; round++) {
    assertEquals(bench.write(1, 0, 0, stamps(1 + round * 64, 64)), 0);
    assertEquals(bench.read([1], 0, 0, 64), stamps(1 + round * 64, 64));
  }
});

Deno.test("submit() merges neighbouring writes of one turn into one entry, and so into one run", () => {
  const bench = open();
  let pending = 0;
  for (let block = 0; block < 16; block++) {
    pending++;
    const operation = bench.take(() => pending--)!;
    Object.assign(operation, {
      kind: OperationKind.Write,
      layers: [1],
      chunk: 3,
      block,
      blockCount: 1,
    });
    bench.fill(operation, [block + 1]);
    bench.store.submit(operation);
  }
  bench.until(() => pending === 0, "writes");
  const before = bench.store.stats().blocksRead;
  assertEquals(bench.read([1], 3, 0, 16), stamps(1, 16));
  assertEquals(bench.store.stats().blocksRead - before, 16);
  // Asked for when it begins and when it is checked.
  assertEquals(bench.store.stats().cacheHits, 2, "one header page has all checksums");
});

Deno.test("submit() refuses what is out of range, and layers that are not there", () => {
  const bench = open();
  const result = (kind: OperationKind, layers: number[], block: number, count: number) =>
    bench.run(kind, layers, 0, block, count, []).result;
  assertEquals(result(OperationKind.Read, [1], 1020, 5), -EINVAL);
  assertEquals(result(OperationKind.Read, [1], 0, 0), -EINVAL);
  assertEquals(result(OperationKind.Read, [1], 0, 257), -EINVAL);
  assertEquals(result(OperationKind.Free, [1], 1, 1024), -EINVAL);
  assertEquals(result(OperationKind.Zero, [99], 0, 1), -EINVAL);
  assertEquals(result(OperationKind.Write, [], 0, 1), -EINVAL);
  const far = bench.take(() => {})!;
  Object.assign(far, { kind: OperationKind.Free, layers: [1], chunk: 2 ** 30, blockCount: 1 });
  bench.store.submit(far);
  bench.until(() => bench.busy === 0, "far");
  assertEquals(far.result, -EINVAL);
  bench.close();
  assertEquals(result(OperationKind.Read, [1], 0, 1), -ENODEV);
});

Deno.test("close() and open() bring everything back without replaying anything", () => {
  let bench = open();
  bench.write(1, 0, 0, stamps(1, 24));
  bench.write(1, 9, 5, [77]);
  bench.run(OperationKind.Zero, [2], 0, 3, 2);
  bench.call("meta", (done) => bench.store.setMeta("k", new Uint8Array(60_000).fill(7), done));
  const { identity } = bench.store;
  bench = reopen(bench);
  assertEquals(bench.read([1], 0, 0, 24), stamps(1, 24));
  assertEquals(bench.read([1], 9, 5, 1), [77]);
  assertEquals(bench.read([2, 1], 0, 2, 4), [3, 0, 0, 6]);
  assertEquals(bench.store.getMeta("k"), new Uint8Array(60_000).fill(7));
  assertEquals(bench.store.metaKeys(), ["k"]);
  assertEquals(bench.store.layers(), [1, 2]);
  assertEquals(bench.store.layerBytes(1), 25 * 4096);
  assertEquals(bench.store.identity, identity);
  assertEquals(bench.warnings, []);
});

Deno.test("close() of an unchanged store writes no checkpoint", () => {
  let bench = reopen(open());
  const { id } = bench.store.stats().checkpoint;
  bench = reopen(bench);
  assertEquals(bench.store.stats().checkpoint.id, id);
});

Deno.test("deleteLayer() gives the space back, and the layer does not come back", () => {
  let bench = open();
  for (let block = 0; block < 256; block += 64) bench.write(1, block, 0, stamps(block + 1, 64));
  const live = bench.store.stats().liveBytes;
  assertEquals(bench.call("delete", (done) => bench.store.deleteLayer(1, done)), null);
  assertEquals(bench.store.hasLayer(1), false);
  bench.until(() => bench.store.stats().deletingLayers === 0, "dropping");
  assertEquals(bench.store.stats().liveBytes, live - 256 * 4096);
  assertEquals(bench.call("delete", (done) => bench.store.deleteLayer(1, done))?.code, "LAYER");
  bench = again(bench);
  assertEquals(bench.store.layers(), [2]);
  assertEquals(bench.call("create", (done) => bench.store.createLayer(2, done))?.code, "LAYER");
});

Deno.test("a layer deleted before a crash is gone after it, though the checkpoint still knows it", () => {
  let bench = open();
  bench.write(1, 0, 0, [1]);
  for (let chunk = 0; chunk < 4; chunk++) bench.write(2, chunk, 0, stamps(1 + chunk * 64, 64));
  bench.close();
  bench = again(bench);
  assertEquals(bench.call("delete", (done) => bench.store.deleteLayer(2, done)), null);
  bench = again(bench);
  assertEquals(bench.store.stats().liveBytes, 4096);
  assertEquals(bench.store.stats().deletingLayers, 0);
  assertEquals(bench.store.layers(), [1]);
});

Deno.test("setMeta() is durable when it calls back", () => {
  const bench = open();
  for (let i = 0; i < 5; i++) {
    const value = new TextEncoder().encode(`value ${i}`);
    assertEquals(bench.call("meta", (done) => bench.store.setMeta("key", value, done)), null);
    const disk = bench.disk.crash(new Prng(i), bench.window.bytes, { keep: 0, lose: 1 });
    const after = new Bench(0, disk, new Prng(1), SMALL);
    after.mustOpen();
    assertEquals(after.store.getMeta("key"), value);
  }
  const long = new Uint8Array(65537);
  assertEquals(bench.call("meta", (done) => bench.store.setMeta("k", long, done))?.code, "INVALID");
  assertEquals(bench.call("meta", (done) => bench.store.setMeta("", null, done))?.code, "INVALID");
  const key = "k".repeat(256);
  assertEquals(bench.call("meta", (done) => bench.store.setMeta(key, null, done))?.code, "INVALID");
});

Deno.test("open() refuses other hosts until told to adopt, and what is no store", () => {
  const bench = open();
  bench.close();
  const hostId = new Uint8Array(16).fill(9);
  const other = bench.call("open", (done) => bench.store.open({ hostId }, done));
  assertEquals(other?.code, "OTHER_HOST");
  assertEquals(
    bench.call("open", (done) => bench.store.open({ hostId, adopt: true }, done)),
    null,
  );
  assertEquals(bench.store.identity.hostId, hostId);
  bench.close();
  assertEquals(bench.open()?.code, "OTHER_HOST", "it belongs to the adopter now");
  const blank = new Bench(0, makeDisk(0, new Prng(1), SMALL), new Prng(2), SMALL);
  assertEquals(blank.open()?.code, "NOT_A_STORE");
});

Deno.test("open(), close() and format() say when they come at the wrong time", () => {
  const bench = open();
  assertEquals(bench.open()?.code, "BUSY");
  const fresh = new Bench(0, makeDisk(0, new Prng(1), SMALL), new Prng(2), SMALL);
  assertEquals(fresh.close()?.code, "BUSY");
  assertEquals(fresh.call("meta", (done) => fresh.store.setMeta("k", null, done))?.code, "BUSY");
});

Deno.test("format() checks its arguments", () => {
  const bench = new Bench(0, makeDisk(0, new Prng(1), SMALL), new Prng(2), SMALL);
  const id = new Uint8Array(16);
  const good = { nodeId: id, clusterId: id, hostId: id, capacityBytes: 5 * 1024 * 1024 };
  const code = (options: Parameters<typeof bench.store.format>[0]) =>
    bench.call("format", (done) => bench.store.format(options, done))?.code;
  assertEquals(code({ ...good, segmentBytes: 3 * 65536 }), "INVALID");
  assertEquals(code({ ...good, segmentBytes: 65536 }), "INVALID");
  assertEquals(code({ ...good, hostId: new Uint8Array(8) }), "INVALID");
  assertEquals(code({ ...good, capacityBytes: 2 * 1024 * 1024 }), "INVALID");
  assertEquals(code({ ...good, capacityBytes: 2 ** 50 }), "INVALID");
  // What README calls the least.
  assertEquals(code({ ...good, capacityBytes: 3.5 * 1024 * 1024 - 1 }), "INVALID");
  assertEquals(code({ ...good, capacityBytes: 3.5 * 1024 * 1024 }), undefined);
  assertEquals(code(good), undefined);
});

Deno.test("a start with a larger capacity makes the store larger, for good, and one with a smaller one changes nothing", () => {
  const shape = { ...SMALL, segments: 24 };
  const disk = makeDisk(0, new Prng(1), { ...SMALL, segments: 36 });
  const bytes = (segments: number) => 1024 * 1024 + segments * shape.segmentBytes;
  let bench = new Bench(0, disk, new Prng(2), shape);
  /** Starts again after a crash that everything written survived. */
  const restart = (segments?: number) => {
    const kept = bench.disk.crash(new Prng(9), bench.window.bytes, {
      keep: 1,
      lose: 0,
      reorder: false,
    });
    bench = new Bench(0, kept, new Prng(10), shape);
    return bench.open(segments === undefined ? {} : { capacityBytes: bytes(segments) })?.code;
  };
  const count = () => bench.store.stats().segmentCount;
  bench.format();
  bench.mustOpen();
  bench.createLayer(1);
  bench.write(1, 0, 0, stamps(1, 64));
  assertEquals(count(), 24);
  assertEquals(restart(37), "INVALID", "the device is not that large");
  assertEquals([restart(36), count()], [undefined, 36]);
  // More than there was room for, and no checkpoint after it.
  for (let block = 64; block < 576; block += 64) bench.write(1, 0, block, stamps(block + 1, 64));
  bench.sync();
  assertEquals([restart(), count()], [undefined, 36]);
  assertEquals([restart(20), count()], [undefined, 36]);
  for (let block = 0; block < 576; block += 64) {
    assertEquals(bench.read([1], 0, block, 64), stamps(block + 1, 64));
  }
});

Deno.test("operations finish once each, whatever the depth", () => {
  const bench = open();
  const counts = new Map<Operation, number>();
  let finished = 0;
  const random = new Prng(4);
  for (let round = 0; round < 40; round++) {
    for (;;) {
      const operation = bench.take((done) => {
        finished++;
        counts.set(done, (counts.get(done) ?? 0) - 1);
      });
      if (operation === null) break;
      counts.set(operation, (counts.get(operation) ?? 0) + 1);
      const kind = random.below(5);
      const blockCount = random.between(1, 40);
      const block = random.below(100);
      Object.assign(operation, { kind, layers: [1], chunk: 0, block, blockCount });
      if (kind === OperationKind.Write) bench.fill(operation, stamps(1, blockCount));
      bench.store.submit(operation);
    }
    const wanted = finished + random.between(1, 24);
    bench.until(() => finished >= wanted, "some");
  }
  bench.until(() => bench.busy === 0, "all");
  assert([...counts.values()].every((count) => count === 0));
});

Deno.test("many runs at once: deep, wide and fragmented reads all find their slots", () => {
  const bench = open({ ...SMALL, segments: 60 });
  const random = new Prng(8);
  const expected = new Array(256).fill(0);
  for (let i = 0; i < 700; i++) {
    const block = random.below(256);
    bench.write(1, 0, block, [expected[block] = i + 1]);
  }
  let left = 0;
  for (let i = 0; i < 20; i++) {
    const block = random.below(192);
    left++;
    const operation = bench.take((done) => {
      left--;
      assertEquals(bench.stamps(done), expected.slice(block, block + 64));
    })!;
    Object.assign(operation, {
      kind: OperationKind.Read,
      layers: [1],
      chunk: 0,
      block,
      blockCount: 64,
    });
    bench.store.submit(operation);
  }
  bench.until(() => left === 0, "reads");
});

Deno.test("stats() keeps to the index budget", () => {
  const bench = open();
  assert(bench.store.stats().indexBytes < 4 * 1024 * 1024);
  assertEquals(bench.store.stats().state, "open");
  assert(HOST.length === 16);
});

Deno.test("offsetOf() is where a block's data lies in the file, and nowhere for zeros and holes", () => {
  const bench = open();
  bench.write(1, 3, 5, [41, 42, 43]);
  bench.run(OperationKind.Zero, [1], 3, 7, 1);
  const first = bench.store.offsetOf(1, 3, 5);
  assertEquals([first > 0, first % 4096], [true, 0]);
  assertEquals(
    bench.store.offsetOf(1, 3, 6),
    first + 4096,
    "what is written at once lies in a row",
  );
  assertEquals([7, 8].map((block) => bench.store.offsetOf(1, 3, block)), [-1, -1]);
  assertEquals([bench.store.offsetOf(2, 3, 5), bench.store.offsetOf(99, 3, 5)], [-1, -1]);
});
