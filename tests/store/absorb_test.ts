/**
 * Absorbing a layer, chunk by chunk: what it makes of both, and what it must not disturb: reads, crashes,
 * the checkpoint under way, the cleaner, damage, a full store, older programs.
 *
 * The crash scenarios have absorbs in their workloads, too (`everyAbsorb`, `cleanedAbsorbs`).
 *
 * @module
 */
import { assert, assertEquals } from "@std/assert/mod.js";
import { BLOCK_BYTES } from "../../agent/base/limits.ts";
import { Prng } from "../../agent/base/prng.ts";
import type { SimulatedDisk } from "../../agent/platform/simulated/disk.ts";
import { Absorbed } from "../../agent/store/absorbed.ts";
import { Applier } from "../../agent/store/applier.ts";
import { EntryKind, STAMP_UNKNOWN } from "../../agent/store/format.ts";
import { encodeImageTime, IMAGE_END, ImageTimes, Looked } from "../../agent/store/image_times.ts";
import { Index, POISON } from "../../agent/store/index.ts";
import { type Operation, OperationKind } from "../../agent/store/operation.ts";
import { Bench, makeDisk, type Shape, SMALL } from "./harness.ts";
import { ABSENT, UNKNOWN } from "./model.ts";

const EINVAL = 22;
const EBADMSG = 74;
const { Write, Free, Zero, Stamp, Absorb, Fill } = {
  Write: OperationKind.Write,
  Free: OperationKind.Free,
  Zero: OperationKind.Zero,
  Stamp: OperationKind.Stamp,
  Absorb: OperationKind.Absorb,
  Fill: OperationKind.Fill,
};

function open(shape: Shape = SMALL, layers: readonly number[] = [1, 2, 3, 4]): Bench {
  const random = new Prng(1);
  const bench = new Bench(0, makeDisk(0, random.fork(), shape), random.fork(), shape);
  bench.format();
  bench.mustOpen();
  for (const layer of layers) bench.createLayer(layer);
  // Segments are made ready while it opens, and after that.
  bench.until(() => bench.store.idle, "segments to write to");
  return bench;
}

/** The same store after a crash that keeps what was synced, and nothing else. */
function crashed(bench: Bench): Bench {
  const disk = bench.disk.crash(new Prng(2), bench.window.bytes, { keep: 0, lose: 1 });
  const next = new Bench(0, disk, new Prng(3), bench.shape);
  next.mustOpen();
  return next;
}

/** What a crash of any kind may leave at this moment, opened on the other machine. */
function possible(bench: Bench, random: Prng): Bench {
  const options = random.chance(0.2)
    ? { processOnly: true }
    : { keep: random.fraction(), lose: random.fraction() * 0.5 };
  const { bytes } = new Bench(1, bench.disk, random.fork(), bench.shape).window;
  bench.disk.listener = bench.store;
  const disk = bench.disk.crash(random, bytes, options);
  const next = new Bench(1, disk, random.fork(), bench.shape);
  next.mustOpen();
  return next;
}

function numbers(first: number, count: number): number[] {
  return Array.from({ length: count }, (_, i) => first + i);
}

function absorb(bench: Bench, into: number, from: number, chunk: number): number {
  return bench.run(Absorb, [into, from], chunk, 0, 1).result;
}

function deleteLayer(bench: Bench, layer: number): void {
  const error = bench.call("delete", (done) => bench.store.deleteLayer(layer, done));
  if (error) throw error;
}

/** Blocks of data of each layer. */
function blocks(bench: Bench, ...layers: number[]): number[] {
  return layers.map((layer) => bench.store.layerBytes(layer) / BLOCK_BYTES);
}

/** Versions that the superblocks name, in order. */
function formats(disk: SimulatedDisk): number[] {
  return [0, 512 * 1024].map((offset) =>
    new DataView(disk.peek(offset, 16).buffer).getUint32(12, true)
  ).filter((version) => version > 0).sort();
}

/** Versions of the records on the disk, with how many there are of each. */
function recordVersions(disk: SimulatedDisk): Record<number, number> {
  const found: Record<number, number> = {};
  for (let at = 1024 * 1024; at < disk.sizeBytesMax; at += BLOCK_BYTES) {
    const head = new DataView(disk.peek(at, 8).buffer);
    if (head.getUint32(0, true) !== 0x4345524b) continue;
    const version = head.getUint16(4, true);
    found[version] = (found[version] ?? 0) + 1;
  }
  return found;
}

Deno.test("an absorb fills the holes of the upper layer, frees the rest, and leaves the lower one nothing", () => {
  let bench = open();
  const stamp = { generation: 1, sequence: 5 };
  bench.run(Write, [2], 7, 0, 24, numbers(200, 24), stamp);
  bench.run(Zero, [2], 7, 24, 4, [], { generation: 1, sequence: 6 });
  bench.run(Write, [3], 7, 4, 8, numbers(300, 8), { generation: 2, sequence: 1 });
  bench.run(Zero, [3], 7, 14, 2, [], { generation: 2, sequence: 2 });
  bench.write(1, 7, 30, [100]);
  const through = () => bench.read([3, 2, 1], 7, 0, 40);
  const before = through();
  assertEquals(blocks(bench, 2, 3), [24, 8]);
  assertEquals(absorb(bench, 3, 2, 7), 0);
  const expected = [
    ...numbers(200, 4),
    ...numbers(300, 8),
    ...[212, 213, 0, 0],
    ...numbers(216, 8),
    ...[0, 0, 0, 0],
    ...new Array(12).fill(ABSENT),
  ];
  for (const how of ["now", "again", "after a crash", "after a stop", "after a crash of that"]) {
    if (how === "again") assertEquals(absorb(bench, 3, 2, 7), 0);
    if (how === "after a crash") bench.sync();
    if (how === "after a stop") bench.close();
    if (how.startsWith("after")) bench = crashed(bench);
    assertEquals(bench.content(3, 7, 40), expected, how);
    assertEquals(bench.content(2, 7, 40), new Array(40).fill(ABSENT), how);
    assertEquals(through(), before, how);
    assertEquals(blocks(bench, 1, 2, 3), [1, 0, 22], how);
    assertEquals(bench.store.stats().liveBytes, 23 * BLOCK_BYTES, how);
    assertEquals([bench.stampOf(2, 7), bench.stampOf(3, 7)], ["1.6", "2.2"], how);
  }
  deleteLayer(bench, 2);
  bench.until(() => bench.store.idle, "rest");
  assertEquals(bench.content(3, 7, 40), expected, "deleting what was absorbed");
  bench = crashed(bench);
  assertEquals(bench.content(3, 7, 40), expected, "deleting what was absorbed, after a crash");
  assertEquals(bench.store.layers(), [1, 3, 4]);
});

Deno.test("an absorb gives the stamp on only where there was neither stamp nor block", () => {
  const bench = open();
  const to = (chunk: number) => {
    assertEquals(absorb(bench, 3, 2, chunk), 0);
    return [bench.stampOf(2, chunk), bench.stampOf(3, chunk)];
  };
  const far = { generation: 2 ** 32 - 1, sequence: 2 ** 53 - 1 };
  const name = `${2 ** 32 - 1}.${2 ** 53 - 1}`;
  for (let chunk = 0; chunk < 5; chunk++) bench.run(Write, [2], chunk, 0, 1, [5], far);
  bench.run(Stamp, [3], 1, 0, 1, [], { generation: 1, sequence: 1 });
  bench.write(3, 2, 9, [6]);
  bench.run(Zero, [3], 3, 9, 1, [], {});
  bench.run(Stamp, [2], 5, 0, 1, [], far);
  assertEquals(to(0), [name, name]);
  assertEquals(to(1), [name, "1.1"]);
  assertEquals(to(2), [name, UNKNOWN], "a block without a stamp");
  assertEquals(to(3), [name, UNKNOWN], "zeros are blocks");
  assertEquals(to(5), [name, name], "a stamp alone");
  assertEquals(to(6), [UNKNOWN, UNKNOWN]);
});

Deno.test("submit() refuses absorbs that cannot be", () => {
  const bench = open();
  const result = (layers: number[], chunk = 0) => bench.run(Absorb, layers, chunk, 0, 1).result;
  assertEquals(result([2, 3]), -EINVAL, "from a newer layer");
  assertEquals(result([3, 3]), -EINVAL);
  assertEquals(result([3]), -EINVAL);
  assertEquals(result([4, 3, 2]), -EINVAL);
  assertEquals(result([9, 3]), -EINVAL, "no such layer");
  assertEquals(result([3, 0]), -EINVAL, "no such layer");
  assertEquals(result([3, 2], -1), -EINVAL);
  assertEquals(result([3, 2], 2 ** 30), -EINVAL);
  assertEquals(formats(bench.disk), [2, 2]);
  assertEquals(result([3, 2]), 0, "of nothing");
});

Deno.test("a store is one of format 2 until the first absorb, and then one that older programs do not open", () => {
  let bench = open();
  bench.write(2, 0, 0, [5, 6]);
  bench.sync();
  assertEquals([formats(bench.disk), Object.keys(recordVersions(bench.disk))], [[2, 2], ["2"]]);
  // At no moment is there a record of 3 that a program of 2 could meet.
  const random = new Prng(5);
  const seen = new Set<string>();
  let isDone = 0;
  bench.disk.boundary = () => {
    const { disk } = possible(bench, random);
    // What opened it has written more, in the format that it found.
    const highest = Math.max(...formats(disk));
    const hasNew = recordVersions(disk)[3] !== undefined;
    assert(highest === 3 || !hasNew, "a record that the superblock does not know");
    seen.add(`${highest} ${hasNew}`);
  };
  // What comes after it to these chunks waits with it; what goes elsewhere does not.
  const order: string[] = [];
  const change = (name: string, kind: OperationKind, layers: number[], chunk: number) => {
    const operation = bench.take(() => {
      order.push(name);
      isDone++;
    })!;
    Object.assign(operation, { kind, layers, chunk, block: 0, blockCount: 1 });
    bench.fill(operation, [9]);
    bench.store.submit(operation);
  };
  change("absorb", Absorb, [3, 2], 0);
  change("into", Write, [3], 0);
  change("from", Write, [2], 0);
  change("zero", Zero, [2], 0);
  change("again", Absorb, [3, 2], 0);
  change("other", Write, [2], 1);
  bench.store.endTurn();
  bench.until(() => isDone === 6, "all of it");
  bench.sync();
  bench.disk.boundary = () => {};
  assertEquals(order, ["other", "absorb", "into", "from", "zero", "again"]);
  assertEquals([...seen].sort(), ["2 false", "3 false", "3 true"]);
  assertEquals(bench.content(3, 0, 3), [9, 6, ABSENT]);
  assertEquals(bench.content(2, 0, 3), [ABSENT, ABSENT, ABSENT]);
  const versions = recordVersions(bench.disk);
  assert(versions[2] > versions[3], "only records with an absorb are new");
  for (const stop of [false, true]) {
    if (stop) bench.close();
    bench = crashed(bench);
    assertEquals(Math.max(...formats(bench.disk)), 3);
    assertEquals(bench.content(3, 0, 3), [9, 6, ABSENT]);
  }
  assertEquals(formats(bench.disk), [3, 3]);
});

Deno.test("a store whose superblock of format 3 is lost is one of format 3 all the same", () => {
  const bench = open();
  bench.write(2, 0, 0, [5, 6]);
  assertEquals(absorb(bench, 3, 2, 0), 0);
  bench.sync();
  const at = [0, 512 * 1024].find((offset) =>
    new DataView(bench.disk.peek(offset, 16).buffer).getUint32(12, true) === 3
  )!;
  const disk = bench.disk.crash(new Prng(2), bench.window.bytes, { keep: 0, lose: 1 });
  disk.flipBit(at + 100);
  const next = new Bench(0, disk, new Prng(3), bench.shape);
  next.mustOpen();
  assertEquals(next.content(3, 0, 2), [5, 6]);
  assertEquals(Math.max(...formats(next.disk)), 3);
});

Deno.test("reads through both layers see the same before, during and after, whenever a crash comes", () => {
  const shape: Shape = {
    ...SMALL,
    segments: 44,
    tunables: { ...SMALL.tunables, checkpointLogBytes: 131072, checkpointLogRatio: 0 },
  };
  for (let seed = 1; seed <= 3; seed++) {
    const random = new Prng(seed);
    let bench = open(shape, [1, 2, 3, 4, 5]);
    const chunks = [0, 1, 1023, 1024, 5000];
    let next = 1000;
    for (const chunk of chunks) {
      for (const layer of [1, 2, 3, 4, 5]) {
        for (let n = random.below(4); n > 0; n--) {
          const count = random.between(1, 20), block = random.below(40 - count);
          const kind = random.pick([Write, Write, Zero, Free]);
          bench.run(kind, [layer], chunk, block, count, numbers(next, count));
          next += count;
        }
      }
    }
    bench.sync();
    const chain = [5, 4, 3, 2, 1];
    const expected = chunks.map((chunk) => bench.read(chain, chunk, 0, 40));
    const check = (of: Bench) => {
      // Those that are deleted hold nothing any more.
      const layers = chain.filter((layer) => of.store.hasLayer(layer));
      chunks.forEach((chunk, i) => assertEquals(of.read(layers, chunk, 0, 40), expected[i]));
      const { liveBytes } = of.store.stats();
      const sum = layers.reduce((bytes, layer) => bytes + of.store.layerBytes(layer), 0);
      assertEquals(liveBytes, sum + (of.store.hasLayer(9) ? of.store.layerBytes(9) : 0));
    };
    bench.createLayer(9);
    let crashes = 0;
    bench.disk.boundary = () => {
      if (!random.chance(0.2)) return;
      crashes++;
      check(possible(bench, random));
    };
    const reading = (chunk: number) => {
      const operation = bench.take((done) => {
        assertEquals(done.result, 0);
        assertEquals(bench.stamps(done), expected[chunks.indexOf(chunk)]);
      })!;
      const fields = { kind: OperationKind.Read, layers: chain, chunk, block: 0, blockCount: 40 };
      bench.store.submit(Object.assign(operation, fields));
    };
    // 2 into 3, then 3 into 5 by way of 4.
    for (const [into, from] of [[3, 2], [4, 3], [5, 4]]) {
      for (const chunk of random.shuffle([...chunks])) {
        let isDone = false;
        const operation = bench.take(() => isDone = true)!;
        bench.store.submit(
          Object.assign(operation, { kind: Absorb, layers: [into, from], chunk }),
        );
        for (let n = 0; !isDone; n++) {
          if (n < 8) reading(chunk);
          bench.store.endTurn();
          bench.disk.pump();
        }
        bench.until(() => bench.busy === 0, "reads");
        // Others write, so that there are checkpoints, and something to clean.
        for (let n = 3; n > 0; n--) bench.write(9, 0, random.below(40), numbers(next, 24));
        next += 24;
      }
      bench.sync();
      deleteLayer(bench, from);
      chain.splice(chain.indexOf(from), 1);
      bench.until(() => bench.store.idle, "rest");
      check(bench);
    }
    bench.disk.boundary = () => {};
    assert(crashes > 20, `${crashes} crashes`);
    const { checkpoint } = bench.store.stats();
    assert(checkpoint.taken > 1, "checkpoints in between");
    bench = crashed(bench);
    check(bench);
    assertEquals(bench.store.layers(), [1, 5, 9]);
  }
});

/** Makes a checkpoint wait in the middle: it has noted the layers and goes on when it is told to. */
function holdCheckpoint(bench: Bench): { isHeld(): boolean; release(): void } {
  const { store } = bench;
  const held: [number, number][] = [];
  let isHolding = true;
  bench.disk.listener = {
    diskDone(token, result) {
      const isTask = (token & 7) === 4;
      if (isHolding && isTask && store.stats().checkpoint.running) held.push([token, result]);
      else store.diskDone(token, result);
    },
  };
  return {
    isHeld: () => held.length > 0,
    release() {
      isHolding = false;
      for (const [token, result] of held.splice(0)) store.diskDone(token, result);
      bench.until(() => !store.stats().checkpoint.running, "the checkpoint");
    },
  };
}

/** Segments enough at hand that nothing else has to wait for a task. */
const ROOMY: Shape = {
  ...SMALL,
  segments: 60,
  tunables: { ...SMALL.tunables, readySegments: 16, scrubBytesPerSecond: 0 },
};

Deno.test("a checkpoint that looked at both layers after an absorb is exact, whatever was changed before that", () => {
  let bench = open(ROOMY);
  assertEquals(absorb(bench, 3, 2, 99), 0, "of format 3 from here on");
  bench.run(Write, [2], 0, 0, 8, numbers(200, 8), { generation: 1, sequence: 1 });
  bench.run(Write, [3], 0, 0, 4, numbers(300, 4), { generation: 1, sequence: 2 });
  const checkpoint = holdCheckpoint(bench);
  for (let i = 0; !checkpoint.isHeld(); i++) {
    assert(i < 1000, "no checkpoint");
    bench.write(1, 1, 0, numbers(1, 24));
  }
  // What replay will begin with. Then the images are made, which have the absorb.
  bench.run(Free, [3], 0, 0, 2, [], { generation: 1, sequence: 3 });
  bench.run(Write, [2], 0, 6, 1, [777], { generation: 1, sequence: 4 });
  assertEquals(absorb(bench, 3, 2, 0), 0);
  bench.run(Write, [3], 0, 7, 1, [888], { generation: 1, sequence: 5 });
  const expected = [200, 201, 302, 303, 204, 205, 777, 888, ABSENT];
  assertEquals(bench.content(3, 0, 9), expected);
  checkpoint.release();
  assertEquals(bench.store.stats().checkpoint.taken, 1);
  bench.sync();
  bench = crashed(bench);
  assertEquals(bench.warnings, [], "the checkpoint was not passed over");
  assertEquals(bench.content(3, 0, 9), expected);
  assertEquals(bench.content(2, 0, 9), new Array(9).fill(ABSENT));
  assertEquals([bench.stampOf(2, 0), bench.stampOf(3, 0)], ["1.4", "1.5"]);
  assertEquals(blocks(bench, 2, 3), [0, 8]);
});

Deno.test("a layer that is created while a checkpoint is written absorbs when its image is complete, in order", () => {
  let bench = open(ROOMY);
  assertEquals(absorb(bench, 3, 2, 99), 0, "of format 3 from here on");
  bench.write(4, 0, 0, numbers(400, 8));
  const checkpoint = holdCheckpoint(bench);
  for (let i = 0; !checkpoint.isHeld(); i++) {
    assert(i < 1000, "no checkpoint");
    bench.write(1, 1, 0, numbers(1, 24));
  }
  bench.createLayer(5);
  const order: string[] = [];
  const change = (name: string, kind: OperationKind, layers: number[], chunk: number) => {
    const operation = bench.take(() => order.push(name))!;
    Object.assign(operation, { kind, layers, chunk, block: 2, blockCount: 1 });
    bench.fill(operation, [9]);
    bench.store.submit(operation);
  };
  change("absorb", Absorb, [5, 4], 0);
  change("free", Free, [5], 0);
  change("below", Write, [4], 0);
  change("old", Absorb, [4, 3], 1);
  change("other", Write, [5], 1);
  for (let i = 0; i < 50; i++) {
    bench.store.endTurn();
    bench.disk.pump();
  }
  assertEquals(order, ["old", "other"]);
  assert(!bench.store.idle);
  checkpoint.release();
  bench.until(() => order.length === 5, "the rest");
  assertEquals(order.slice(2), ["absorb", "free", "below"]);
  bench.sync();
  for (const stop of [false, true]) {
    if (stop) bench.close();
    bench = crashed(bench);
    assertEquals(bench.content(5, 0, 5), [400, 401, ABSENT, 403, 404]);
    assertEquals(bench.content(4, 0, 5), [ABSENT, ABSENT, 9, ABSENT, ABSENT]);
  }
});

/** Overwrites blocks of layer 1 until `isDone`. */
function churn(bench: Bench, isDone: () => boolean): void {
  const random = new Prng(3);
  for (let i = 0; i < 4000 && !isDone(); i++) {
    bench.write(1, 7, random.below(24) * 16, numbers(10_000_000 + i * 16, 16));
    if (i % 16 === 0) bench.sync();
  }
  assert(isDone(), "the cleaner has not come by");
}

/** Calls of the walk through the whole index that the cleaner needs where records do not lead it to the blocks. */
function countWalks(run: () => void): number {
  let walks = 0;
  const { layers } = Index.prototype;
  Index.prototype.layers = function () {
    walks++;
    return layers.call(this);
  };
  try {
    run();
  } finally {
    Index.prototype.layers = layers;
  }
  return walks;
}

Deno.test("the cleaner finds what was absorbed by its records, also of layers that are gone, also after a restart", () => {
  for (const restart of ["none", "crash", "stop"]) {
    const tunables = { ...SMALL.tunables, scrubBytesPerSecond: 0 };
    let bench = open({ ...SMALL, segments: 40, tunables });
    for (let i = 0; i < 8; i++) {
      bench.write(2, 0, i * 4, [100 + i]);
      bench.write(2, 3, i * 8, numbers(200 + 8 * i, 8));
      bench.write(1, 7, i * 16, numbers(5000 + 16 * i, 16));
    }
    for (const [into, from] of [[3, 2], [4, 3]]) {
      for (const chunk of [0, 3]) assertEquals(absorb(bench, into, from, chunk), 0);
      deleteLayer(bench, from);
    }
    bench.sync();
    if (restart === "stop") bench.close();
    if (restart !== "none") bench = crashed(bench);
    const walks = countWalks(() => {
      churn(bench, () => bench.store.stats().relocatedBlocks >= 72);
    });
    assertEquals(walks, 0, restart);
    bench.sync();
    for (const again of [false, true]) {
      if (again) bench = crashed(bench);
      assertEquals(bench.read([4], 3, 0, 64), numbers(200, 64));
      for (let i = 0; i < 8; i++) assertEquals(bench.read([4], 0, i * 4, 1), [100 + i]);
      assertEquals(blocks(bench, 4), [72]);
    }
  }
});

Deno.test("damage goes with the blocks: it is told of the layer that has them", () => {
  const bench = open({ ...SMALL, segments: 40 });
  const told: string[] = [];
  bench.store.damageListener = (layer, chunk, block) => told.push(`${layer}/${chunk}/${block}`);
  const listed = () =>
    bench.store.stats().damage.map(({ layer, chunk, block }) => `${layer}/${chunk}/${block}`);
  bench.write(2, 0, 0, [100]);
  bench.write(2, 0, 5, [101]);
  bench.write(2, 0, 9, [102]);
  bench.write(3, 0, 9, [103]);
  bench.sync();
  const flip = (value: number) => {
    for (let at = 1024 * 1024; at < bench.disk.sizeBytesMax; at += BLOCK_BYTES) {
      const words = new Uint32Array(bench.disk.peek(at, BLOCK_BYTES).buffer);
      const isIt = words[0] === value && words[1] === (value ^ 0x01000193) >>> 0;
      if (isIt) bench.disk.flipBit(at + 1234, 2);
    }
  };
  flip(100);
  flip(102);
  for (const block of [0, 9]) assertEquals(bench.read([2], 0, block, 1), -EBADMSG);
  assertEquals(listed(), ["2/0/0", "2/0/9"]);
  // Found before it is absorbed, and looked up before that but found afterwards.
  flip(101);
  let result = 0;
  const read = bench.take((done) => result = done.result)!;
  const at = { layers: [3, 2], chunk: 0, block: 5, blockCount: 1 };
  bench.store.submit(Object.assign(read, { kind: OperationKind.Read, ...at }));
  const { listener } = bench.disk;
  const held: [number, number][] = [];
  bench.disk.listener = {
    diskDone(token, length) {
      if ((token & 7) === 1) held.push([token, length]);
      else bench.store.diskDone(token, length);
    },
  };
  assertEquals(absorb(bench, 3, 2, 0), 0);
  assertEquals(held.length, 1);
  assertEquals(listed(), ["3/0/0"]);
  bench.disk.listener = listener;
  for (const [token, length] of held) bench.store.diskDone(token, length);
  bench.until(() => bench.busy === 0, "the read");
  assertEquals(result, -EBADMSG);
  assertEquals(listed(), ["3/0/0", "3/0/5"]);
  assertEquals(told, ["2/0/0", "2/0/9", "3/0/5"]);
  assertEquals(bench.read([3, 2], 0, 9, 1), [103]);
  // The cleaner makes it POISON, which goes on as well.
  churn(bench, () => bench.store.stats().relocatedBlocks >= 1 && told.length >= 5);
  assertEquals(absorb(bench, 4, 3, 0), 0);
  assertEquals(bench.read([4], 0, 0, 1), -EBADMSG);
  assertEquals(bench.read([4], 0, 9, 1), [103]);
  assert(listed().every((place) => place.startsWith("4/")), listed().join());
  for (const block of [0, 5]) assertEquals(bench.write(4, 0, block, [7]), 0);
  assertEquals(listed(), []);
});

Deno.test("an absorb gives space back in a full store, behind the writes that wait to its chunks", () => {
  const bench = open({ ...SMALL, segments: 48, blocks: 1024 });
  assertEquals(absorb(bench, 3, 2, 99), 0);
  const waiting: string[] = [];
  const submit = (
    name: string,
    kind: OperationKind,
    layers: number[],
    fields: Partial<Operation>,
  ) => {
    const operation = bench.take(() => waiting.push(name))!;
    Object.assign(operation, { kind, layers, chunk: 0, block: 0, blockCount: 16, ...fields });
    if (kind === Write) bench.fill(operation, numbers(9000, operation.blockCount));
    bench.store.submit(operation);
  };
  // The same blocks in both layers: what is below is garbage as soon as it is absorbed.
  for (let chunk = 0; !bench.store.stats().full; chunk++) {
    for (const layer of [2, 3]) {
      submit("fill", Write, [layer], { chunk });
      for (let i = 0; i < 100; i++) {
        bench.store.endTurn();
        if (!bench.disk.pump()) break;
      }
    }
    bench.nowMs += 50;
    bench.store.tick(bench.nowMs);
  }
  waiting.length = 0;
  submit("write to 2/0", Write, [2], { block: 100 });
  submit("write to 3/1", Write, [3], { chunk: 1, block: 100 });
  submit("absorb 0", Absorb, [3, 2], {});
  submit("absorb 1", Absorb, [3, 2], { chunk: 1 });
  submit("absorb 2", Absorb, [3, 2], { chunk: 2 });
  submit("free 3/2", Free, [3], { chunk: 2, blockCount: 1 });
  submit("free 2/0", Free, [2], { blockCount: 101 });
  const step = (turns: number) => {
    for (let i = 0; i < turns; i++) {
      bench.store.endTurn();
      while (bench.disk.pump()) bench.store.endTurn();
    }
  };
  step(20);
  const first = waiting.filter((name) => name !== "fill");
  assertEquals(first.slice(0, 2), ["absorb 2", "free 3/2"], "what waits for nothing");
  for (let chunk = 3; chunk < 40 && bench.busy > 0; chunk++) {
    assertEquals(absorb(bench, 3, 2, chunk), 0);
    step(20);
  }
  bench.until(() => bench.busy === 0, "what waited");
  const at = (name: string) => waiting.indexOf(name);
  assert(at("write to 2/0") < at("absorb 0") && at("absorb 0") < at("free 2/0"), waiting.join());
  assert(at("write to 3/1") < at("absorb 1"), waiting.join());
  assertEquals(bench.read([3], 0, 100, 16), numbers(9000, 16));
  assertEquals(bench.content(2, 0, 120), new Array(120).fill(ABSENT));
  assertEquals(bench.content(3, 2, 2), [ABSENT, 9001]);
});

Deno.test("close() gives absorbs back that are held, and what waits behind them", () => {
  const bench = open(ROOMY);
  bench.write(2, 0, 0, [5]);
  const results: number[] = [];
  for (const kind of [Absorb, Write]) {
    const operation = bench.take((done) => results.push(done.result))!;
    const fields = { kind, layers: [3, 2], chunk: 0, block: 0, blockCount: 1 };
    Object.assign(operation, fields);
    bench.fill(operation, [7]);
    bench.store.submit(operation);
  }
  assertEquals(bench.close(), null);
  assertEquals(results, [-19, -19]);
  const next = crashed(bench);
  assertEquals(next.content(2, 0, 1), [5]);
  assertEquals(next.content(3, 0, 1), [ABSENT]);
});

Deno.test("relocations and damage that were under way find the block where it was absorbed to", () => {
  const u32 = new Uint32Array(64);
  const index = new Index();
  const applier = new Applier(index, u32, { blocksPlaced() {} });
  u32[1] = 3 | 1 << 16;
  const apply = (kind: EntryKind, layer: number, chunk: number, from: number, data = 0) => {
    u32.set([kind, 1, layer, chunk, 0, from, 0, 0, 77], 16);
    applier.apply(16, 0, data - 1, data);
  };
  for (const layer of [2, 3, 4]) apply(EntryKind.LayerCreate, layer, 0, 0);
  for (const chunk of [0, 1, 2]) apply(EntryKind.Write, 2, chunk, 0, 1000 + chunk);
  for (const chunk of [0, 1]) apply(EntryKind.Absorb, 3, chunk, 2);
  apply(EntryKind.Absorb, 4, 0, 3);
  // Some are still where they were, some in the next layer, some in the one after that.
  for (const chunk of [0, 1, 2]) apply(EntryKind.Relocate, 2, chunk, 1000 + chunk, 2000 + chunk);
  const places = (chunk: number) => [2, 3, 4].map((layer) => index.locate(layer, chunk, 0));
  assertEquals([0, 1, 2].map(places), [[-1, -1, 2000], [-1, 2001, -1], [2002, -1, -1]]);
  assertEquals(applier.ownerOf(2, 0, 0, 2000), 4);
  assertEquals(applier.ownerOf(2, 1, 0, 2001), 3);
  assertEquals(applier.ownerOf(2, 2, 0, 2002), 2);
  assertEquals(applier.ownerOf(2, 2, 0, 1002), -1, "moved since");
  for (const chunk of [0, 1, 2]) apply(EntryKind.Poison, 2, chunk, 1000 + chunk);
  assertEquals([0, 1, 2].map(places), [[-1, -1, 2000], [-1, 2001, -1], [2002, -1, -1]]);
  for (const chunk of [0, 1, 2]) apply(EntryKind.Poison, 2, chunk, 2000 + chunk);
  assertEquals([0, 1, 2].map(places), [[-1, -1, POISON], [-1, POISON, -1], [POISON, -1, -1]]);
  // Of a layer that is being deleted nothing counts.
  apply(EntryKind.LayerDelete, 3, 0, 0);
  apply(EntryKind.Relocate, 2, 1, POISON, 3000);
  assertEquals(applier.absorbed.pairs(), [[2, 4], [3, 4]]);
});

Deno.test("whenever a checkpoint looked at each of two layers, replay makes of them exactly what there was", () => {
  // A log on two layers: what it makes of them after each record.
  const random = new Prng(7);
  const u32 = new Uint32Array(64);
  u32[1] = 3 | 1 << 16;
  class State {
    readonly index = new Index();
    readonly applier = new Applier(this.index, u32, { blocksPlaced() {} });
    apply(entry: number[], lsn: number): void {
      u32.set(entry, 16);
      this.applier.lsn = lsn;
      this.applier.apply(16, 0, 1000 * lsn, 1000 * lsn + 1);
    }
    layer(layer: number): string {
      const { stamps } = this.applier;
      stamps.find(layer, 0);
      const blocks = numbers(0, 6).map((block) => this.index.locate(layer, 0, block));
      return [blocks, stamps.generation, stamps.sequence, this.index.layerBlockCount(layer)].join();
    }
  }
  let cases = 0;
  for (let round = 0; round < 300; round++) {
    const log: number[][] = [
      [EntryKind.LayerCreate, 1, 2, 0, 0, 0, 0, 0],
      [EntryKind.LayerCreate, 1, 3, 0, 0, 0, 0, 0],
    ];
    for (let i = 0; i < 12; i++) {
      const layer = random.between(2, 3), block = random.below(6);
      const stamp = random.below(3) * (round + i);
      const kind = random.pick([Write, Write, Free, Zero, Absorb, Fill]);
      if (kind === Absorb) log.push([EntryKind.Absorb, 1, 3, 0, 0, 2, 0, 0]);
      else if (random.chance(0.2)) {
        // A chunk that is dropped, after which an absorb gives the stamp on.
        log.push([EntryKind.Free | STAMP_UNKNOWN << 8, 6, layer, 0, 0, 0, 0, 0]);
      } else {
        const entry = kind === Write
          ? EntryKind.Write
          : kind === Free
          ? EntryKind.Free
          : kind === Fill
          ? EntryKind.Fill
          : EntryKind.Zero;
        log.push([entry | block << 16, 1, layer, 0, stamp > 0 ? 1 : 0, 0, stamp, 0, 5]);
      }
    }
    const after = (count: number) => {
      const state = new State();
      log.slice(0, count).forEach((entry, i) => state.apply(entry, i + 1));
      return state;
    };
    const end = after(log.length);
    // Begun after `begun` records, with each layer looked at when some more had been applied.
    for (let n = 0; n < 10; n++) {
      const begun = random.between(2, log.length);
      const at = [begun, begun, begun, begun].map((from) => random.between(from, log.length));
      const [low, high, lowStamp, highStamp] = at.sort((a, b) => a - b);
      const state = new State();
      for (const layer of [2, 3]) {
        state.index.createLayer(layer);
        state.applier.layers.set(layer, 1);
        const words = new Uint32Array(4000);
        const source = after(layer === 2 ? low : high).index;
        const length = source.exportChunk(layer, 0, words, 0);
        if (length > 0) state.index.importChunk(layer, 0, words, 0, length, 2 ** 31);
        const { stamps } = after(layer === 2 ? lowStamp : highStamp).applier;
        if (stamps.find(layer, 0)) {
          state.applier.stamps.set(layer, 0, stamps.generation, stamps.sequence, 0);
        }
      }
      for (const [label, layer] of after(begun).applier.absorbed.pairs()) {
        state.applier.absorbed.add(label, layer);
      }
      const words = new Uint32Array(20);
      const times = state.applier.times = new ImageTimes([2, 3]);
      const items: [Looked, number, number][] = [
        [Looked.Index, 3, low],
        [Looked.Index, IMAGE_END, high],
        [Looked.Stamps, 3, lowStamp],
        [Looked.Stamps, IMAGE_END, highStamp],
      ];
      items.forEach(([what, layer, lsn], i) => {
        encodeImageTime(words, i * 5, { what, layer, chunk: layer === 3 ? 0 : IMAGE_END, lsn });
      });
      assertEquals(times.loadImage(words, 0, 4), null);
      log.slice(begun).forEach((entry, i) => state.apply(entry, begun + i + 1));
      for (const layer of [2, 3]) {
        assertEquals(state.layer(layer), end.layer(layer), `${round}: ${begun}, ${at}`);
      }
      assertEquals(state.index.blockCount, end.index.blockCount);
      cases++;
    }
  }
  assertEquals(cases, 3000);
});

Deno.test("what is torn of a layer that was absorbed makes the stamp of the other one unknown", () => {
  const bench = open();
  assertEquals(absorb(bench, 3, 2, 99), 0, "of format 3 from here on");
  bench.run(Write, [2], 0, 0, 1, [200], { generation: 1, sequence: 1 });
  bench.run(Write, [3], 0, 5, 1, [300], { generation: 1, sequence: 2 });
  bench.sync();
  bench.run(Write, [2], 0, 0, 1, [201], { generation: 1, sequence: 3 });
  assertEquals(absorb(bench, 3, 2, 0), 0);
  assertEquals([bench.content(3, 0, 1), bench.stampOf(3, 0)], [[201], "1.2"]);
  const options = { keep: 1, lose: 0, reorder: false };
  for (const isTorn of [false, true]) {
    const disk = bench.disk.crash(new Prng(2), bench.window.bytes, options);
    for (let at = 1024 * 1024; at < disk.sizeBytesMax; at += BLOCK_BYTES) {
      const isIt = new DataView(disk.peek(at, 8).buffer).getUint32(0, true) === 201;
      if (isIt && isTorn) disk.flipBit(at + 1000);
    }
    const next = new Bench(0, disk, new Prng(3), bench.shape);
    next.mustOpen();
    const expected = isTorn ? [[200], UNKNOWN, UNKNOWN] : [[201], "1.3", "1.2"];
    assertEquals([next.content(3, 0, 1), next.stampOf(2, 0), next.stampOf(3, 0)], expected);
  }
});

Deno.test("Absorbed names every layer that may hold a label's blocks, and forgets those that are deleted", () => {
  const absorbed = new Absorbed();
  absorbed.add(3, 4);
  absorbed.add(3, 4);
  absorbed.add(4, 7);
  absorbed.add(2, 3);
  assertEquals([...absorbed.layersOf(2)].sort(), [3, 4, 7]);
  assertEquals([...absorbed.layersOf(3)].sort(), [4, 7]);
  assertEquals([...absorbed.layersOf(4)], [7]);
  assertEquals([...absorbed.layersOf(7)], []);
  assertEquals(absorbed.count, 6);
  const copy = new Absorbed();
  const words = Uint32Array.from(absorbed.pairs().flat());
  assertEquals(copy.loadImage(words, 0, 6, () => true), null);
  assertEquals(copy.pairs(), absorbed.pairs());
  for (const table of [absorbed, copy]) {
    table.drop(3);
    table.drop(4);
    assertEquals(table.pairs(), [[3, 7], [4, 7], [2, 7]]);
    table.drop(7);
    assertEquals([table.count, table.pairs()], [0, []]);
  }
  const load = (label: number, layer: number) =>
    new Absorbed().loadImage(Uint32Array.of(label, layer), 0, 1, (id) => id === 5);
  assertEquals(load(4, 5), null);
  assert(load(4, 6) !== null, "no such layer");
  assert(load(5, 5) !== null, "a circle");
});

Deno.test("ImageTimes says of each chunk up to which record it was looked at", () => {
  const words = new Uint32Array(100);
  const load = (...items: [Looked, number, number, number][]) => {
    items.forEach(([what, layer, chunk, lsn], i) => {
      encodeImageTime(words, i * 5, { what, layer, chunk, lsn });
    });
    const times = new ImageTimes([1, 2, 5]);
    return { times, fault: times.loadImage(words, 0, items.length) };
  };
  const { times, fault } = load(
    [Looked.Index, 1, 10, 100],
    [Looked.Index, 2, 0, 2 ** 40],
    [Looked.Index, IMAGE_END, IMAGE_END, 2 ** 40 + 1],
    [Looked.Stamps, IMAGE_END, IMAGE_END, 2 ** 41],
  );
  assertEquals(fault, null);
  const upTo = (layer: number, chunk: number, lsn: number) => {
    assert(times.hasBlocks(layer, chunk, lsn) && !times.hasBlocks(layer, chunk, lsn + 1));
    assert(times.hasStamp(layer, chunk, 2 ** 41) && !times.hasStamp(layer, chunk, 2 ** 41 + 1));
  };
  upTo(1, 0, 100);
  upTo(1, 9, 100);
  upTo(1, 10, 2 ** 40);
  upTo(2, 0, 2 ** 40 + 1);
  upTo(5, 7, 2 ** 40 + 1);
  assert(!times.hasBlocks(4, 0, 1) && !times.hasStamp(9, 0, 1), "made later");
  assert(load([Looked.Index, 1, 10, 5], [Looked.Index, 1, 9, 5]).fault !== null);
  assert(load([Looked.Index, 1, 10, 5], [Looked.Index, 1, 11, 4]).fault !== null);
  assert(load([3 as Looked, 1, 10, 5]).fault !== null);
  assert(load([Looked.Stamps, 1, 10, 2 ** 53]).fault !== null);
});
