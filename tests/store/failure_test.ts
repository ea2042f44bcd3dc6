/**
 * What the store does when the disk fails.
 *
 * @module
 */
import { assert, assertEquals, assertStringIncludes } from "@std/assert/mod.js";
import { BLOCK_BYTES } from "../../agent/base/limits.ts";
import { Prng } from "../../agent/base/prng.ts";
import { OperationKind } from "../../agent/store/operation.ts";
import { Bench, makeDisk, SMALL } from "./harness.ts";

const EIO = 5, ENOSPC = 28;

function open(seed = 1): Bench {
  const random = new Prng(seed);
  const bench = new Bench(0, makeDisk(0, random.fork(), SMALL), random.fork(), SMALL);
  bench.format();
  bench.mustOpen();
  bench.createLayer(1);
  bench.createLayer(2);
  return bench;
}

Deno.test("a write that fails is tried again elsewhere, and nobody notices", () => {
  const bench = open();
  let failures = 2;
  bench.disk.faults = { fail: (kind) => kind === "write" && failures-- > 0 ? -EIO : 0 };
  assertEquals(bench.write(1, 0, 0, [1, 2, 3]), 0);
  assertEquals(bench.read([1], 0, 0, 3), [1, 2, 3]);
  assertEquals(bench.store.stats().writeErrors, 2);
  assertEquals(bench.sync(), 0);
  const disk = bench.disk.crash(new Prng(2), bench.window.bytes, { keep: 0, lose: 1 });
  const after = new Bench(0, disk, new Prng(3), SMALL);
  after.mustOpen();
  assertEquals(after.read([1], 0, 0, 3), [1, 2, 3]);
});

Deno.test("a disk that takes no writes any more ends the store: −EIO for all, reads included", () => {
  const bench = open();
  bench.write(1, 0, 0, [1]);
  bench.disk.faults = { fail: (kind) => kind === "write" ? -EIO : 0 };
  assertEquals(bench.write(1, 0, 1, [2]), -EIO);
  assertEquals(bench.store.state, "failed");
  assertStringIncludes(bench.store.stats().failed!, "writing to the disk failed 4 times");
  assertEquals(bench.write(1, 0, 2, [2]), -EIO);
  assertEquals(bench.read([1], 0, 0, 1), -EIO);
  assertEquals(bench.sync(), -EIO);
  const error = bench.call("meta", (done) => bench.store.setMeta("k", null, done));
  assertEquals(error?.code, "IO");
  assertEquals(bench.close(), null);
});

Deno.test("a failed sync is final, and so is every later one", () => {
  const bench = open();
  bench.write(1, 0, 0, [1]);
  let failures = 1;
  bench.disk.faults = { fail: (kind) => kind === "sync" && failures-- > 0 ? -EIO : 0 };
  assertEquals(bench.sync(), -EIO);
  assertEquals(bench.sync(), -EIO);
  assertEquals(bench.write(1, 0, 0, [1]), -EIO);
  assertStringIncludes(bench.store.stats().failed!, "fsync");
});

Deno.test("everything under way when the disk fails comes back once, with an error", () => {
  for (const failing of ["write", "sync"]) {
    const bench = open();
    let finished = 0;
    const results: number[] = [];
    for (let i = 0; i < 20; i++) {
      const operation = bench.take((done) => {
        finished++;
        results.push(done.result);
      })!;
      Object.assign(operation, {
        kind: i % 4 === 3
          ? OperationKind.Sync
          : i % 4 === 2
          ? OperationKind.Free
          : OperationKind.Write,
        layers: [1 + i % 2],
        chunk: 0,
        block: i * 20,
        blockCount: 20,
      });
      bench.fill(operation, Array.from({ length: 20 }, (_, k) => k + 1));
      bench.store.submit(operation);
      if (i % 3 === 0) bench.store.endTurn();
    }
    let failed = false;
    bench.call("create", (done) => {
      bench.store.createLayer(9, (error) => {
        failed = error !== null;
        done(null);
      });
      bench.disk.faults = { fail: (kind) => kind === failing ? -EIO : 0 };
    });
    bench.until(() => finished === 20, "all");
    assert(failed);
    assert(results.includes(-EIO));
    assertEquals(bench.store.state, "failed");
  }
});

/** Submits a write of the first blocks of a chunk of layer 1; the turn does not end with it. */
function beginWrite(
  bench: Bench,
  chunk: number,
  stamps: number[],
  done: (result: number) => void,
): void {
  const operation = bench.take(({ result }) => done(result))!;
  const place = { layers: [1], chunk, block: 0, blockCount: stamps.length };
  Object.assign(operation, { kind: OperationKind.Write, ...place });
  bench.fill(operation, stamps);
  bench.store.submit(operation);
}

/** A turn, what the disk has to do, and a tenth of a second. */
function pass(bench: Bench): void {
  bench.store.endTurn();
  bench.disk.pump();
  bench.nowMs += 100;
  bench.store.tick(bench.nowMs);
}

Deno.test("long writes that meet ENOSPC wait, though short ones under way with them find room", () => {
  // In every order in which they end.
  for (let seed = 1; seed <= 8; seed++) {
    const bench = open(seed);
    let isFull = true;
    bench.disk.faults = {
      fail: (kind, _, length) =>
        kind === "write" && isFull && length > 12 * BLOCK_BYTES ? -ENOSPC : 0,
    };
    const results: number[] = [];
    for (const [chunk, blockCount] of [[0, 16], [1, 1], [2, 1]]) {
      const stamps = Array.from({ length: blockCount }, (_, i) => 1 + i);
      beginWrite(bench, chunk, stamps, (result) => results.push(result));
      bench.store.endTurn();
    }
    for (let i = 0; i < 300; i++) pass(bench);
    assertEquals(bench.store.state, "open", `seed ${seed}`);
    isFull = false;
    bench.until(() => results.length === 3, "writes end when there is room");
    assertEquals(results, [0, 0, 0]);
  }
});

Deno.test("a disk that has no space first and fails then is given up, and not asked for ever", () => {
  const bench = open();
  let errno = ENOSPC;
  bench.disk.faults = { fail: (kind) => kind === "write" ? -errno : 0 };
  let result: number | null = null;
  beginWrite(bench, 0, [5], (done) => result = done);
  for (let i = 0; i < 100 && bench.store.state === "open"; i++) {
    if (i === 30) errno = EIO;
    pass(bench);
  }
  assertEquals(bench.store.state, "failed");
  bench.until(() => result !== null, "the write");
  assertEquals(result, -EIO);
});

Deno.test("a write that meets ENOSPC waits for space instead of failing", () => {
  const bench = open();
  let isFull = true;
  bench.disk.faults = { fail: (kind) => kind === "write" && isFull ? -ENOSPC : 0 };
  let result: number | null = null;
  beginWrite(bench, 0, [5], (done) => result = done);
  for (let i = 0; i < 100; i++) pass(bench);
  assertEquals(result, null);
  assert(bench.store.stats().hostFull);
  isFull = false;
  bench.until(() => result !== null, "the write");
  assertEquals(result, 0);
  assertEquals(bench.read([1], 0, 0, 1), [5]);
});

Deno.test("a disk that cannot be read keeps a store from opening, with a coded error", () => {
  const bench = open();
  bench.write(1, 0, 0, [1]);
  bench.close();
  bench.disk.faults = { fail: (kind) => kind === "read" ? -EIO : 0 };
  // Not what calls for erasing it.
  assertEquals(bench.open()?.code, "IO");
  bench.disk.faults = {
    fail: (kind, offset) => kind === "read" && offset > 1024 * 1024 ? -EIO : 0,
  };
  assertEquals(bench.open()?.code, "DAMAGED");
  bench.disk.faults = { fail: (kind) => kind === "write" ? -EIO : 0 };
  assertEquals(bench.open()?.code, "IO");
  bench.disk.faults = {};
  assertEquals(bench.open(), null);
  assertEquals(bench.read([1], 0, 0, 1), [1]);
});

Deno.test("a sync that fails while a store is opened is said to have lost something: the next start must not call it whole", () => {
  const bench = open();
  bench.write(1, 0, 0, [1]);
  const disk = bench.disk.crash(new Prng(2), bench.window.bytes, { processOnly: true });
  let failures = 1;
  disk.faults = { fail: (kind) => kind === "sync" && failures-- > 0 ? -EIO : 0 };
  const after = new Bench(0, disk, new Prng(3), SMALL);
  let isSaid = false;
  const error = after.open({ mayHaveLost: () => isSaid = true });
  assertEquals([error?.code, isSaid], ["IO", true]);
});

Deno.test("a checkpoint that cannot be written is tried again later", () => {
  const bench = open();
  let failing = true;
  // Frames go through one-range writes of whole frames; the log's own writes stay unharmed.
  bench.disk.faults = {
    fail: (kind, _offset, length) => kind === "write" && failing && length > 100 * 4096 ? -EIO : 0,
  };
  for (let i = 0; i < 60; i++) assertEquals(bench.write(1, 0, 0, [i * 2 + 1, i * 2 + 2]), 0);
  failing = false;
  assertEquals(bench.close(), null);
});

Deno.test("a segment of which only the header is there, after writes that failed, goes on with numbers that were never given", () => {
  const bench = open();
  assertEquals(bench.write(1, 0, 0, [1]), 0);
  assertEquals(bench.sync(), 0);
  // From the first record of a segment on nothing can be written; the last time it is tried, the header arrives.
  let header: Uint8Array | null = null;
  let headerAt = 0, tries = 0;
  const write = bench.disk.write.bind(bench.disk);
  bench.disk.write = (token, offset, vector) => {
    if (offset % SMALL.segmentBytes === 0 && offset > 0) {
      tries++;
      headerAt = offset;
      header = bench.window.bytes.slice(vector.offsets[0], vector.offsets[0] + BLOCK_BYTES);
    }
    write(token, offset, vector);
  };
  bench.disk.faults = { fail: (kind) => kind === "write" && tries > 0 ? -EIO : 0 };
  for (let value = 2; bench.store.state === "open"; value++) {
    if (bench.write(1, 0, 0, [value]) === 0) bench.sync();
  }
  assertEquals(tries, 4);
  const disk = bench.disk.crash(new Prng(2), bench.window.bytes, { keep: 0, lose: 1 });
  disk.poke(headerAt, header!);
  const after = new Bench(0, disk, new Prng(3), SMALL);
  after.mustOpen();
  assertEquals(after.write(1, 0, 7, [77]), 0);
  assertEquals(after.write(1, 0, 8, [88]), 0);
  assertEquals(after.sync(), 0);
  assertEquals(after.write(1, 0, 9, [99]), 0);
  const again = after.disk.crash(new Prng(4), after.window.bytes, { keep: 1, lose: 0 });
  const last = new Bench(0, again, new Prng(5), SMALL);
  last.mustOpen();
  assertEquals(last.read([1], 0, 7, 3), [77, 88, 99]);
});

Deno.test("nothing that a sync seems to do after one that failed counts: a checkpoint under way does not either", () => {
  let checkpoints = 0;
  for (let seed = 1; seed <= 16; seed++) {
    const random = new Prng(seed);
    const shape = {
      ...SMALL,
      tunables: { ...SMALL.tunables, checkpointLogBytes: 65536, checkpointLogRatio: 0 },
    };
    const bench = new Bench(0, makeDisk(0, random.fork(), shape), random.fork(), shape);
    bench.format();
    bench.mustOpen();
    bench.createLayer(1);
    /** What each block holds since a sync that succeeded, and what was written to it after that. */
    const durable = new Map<number, number>(), written = new Map<number, number[]>();
    let failures = 0;
    bench.disk.faults = { fail: (kind) => kind === "sync" && failures-- > 0 ? -EIO : 0 };
    for (let round = 1; bench.store.state === "open"; round++) {
      const block = random.below(64);
      if (bench.write(1, 0, block, [round]) === 0) {
        written.set(block, [...written.get(block) ?? [], round]);
      }
      // Once a checkpoint is being written, the sync of somebody else fails.
      if (round > 60 && bench.store.stats().checkpoint.running) failures = 1;
      if (random.chance(0.5) && bench.sync() === 0) {
        for (const [block, values] of written) durable.set(block, values[values.length - 1]);
        written.clear();
      }
    }
    if (bench.store.stats().checkpoint.running) checkpoints++;
    bench.until(() => bench.store.stats().checkpoint.running === false, "the checkpoint");
    const disk = bench.disk.crash(new Prng(2), bench.window.bytes, { keep: 0, lose: 1 });
    const after = new Bench(0, disk, new Prng(3), shape);
    after.mustOpen();
    for (const [block, value] of durable) {
      const [read] = after.read([1], 0, block, 1) as number[];
      assert(read === value || written.get(block)?.includes(read) === true, `seed ${seed}`);
    }
  }
  assert(checkpoints > 4, `${checkpoints} checkpoints were under way`);
});
