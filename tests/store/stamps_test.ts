/**
 * Stamps of chunks, the order of changes, the lists that replication asks for, and repair.
 *
 * What becomes of stamps in a crash is checked by all crash scenarios (model.ts).
 *
 * @module
 */
import { assert, assertEquals } from "@std/assert/mod.js";
import { Prng } from "../../agent/base/prng.ts";
import { Applier, LayerState } from "../../agent/store/applier.ts";
import { CHUNKS_MAX } from "../../agent/store/format.ts";
import { Index } from "../../agent/store/index.ts";
import { OperationKind } from "../../agent/store/operation.ts";
import { Stamps } from "../../agent/store/stamps.ts";
import type { ChunkList } from "../../agent/store/store.ts";
import { Bench, makeDisk, type Shape, SMALL } from "./harness.ts";
import { ABSENT, UNKNOWN } from "./model.ts";

const EINVAL = 22;
const EBADMSG = 74;

function open(shape: Shape = SMALL): Bench {
  const random = new Prng(1);
  const bench = new Bench(0, makeDisk(0, random.fork(), shape), random.fork(), shape);
  bench.format();
  bench.mustOpen();
  bench.createLayer(1);
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

function numbers(first: number, count: number): number[] {
  return Array.from({ length: count }, (_, i) => first + i);
}

const Write = OperationKind.Write;
const Free = OperationKind.Free;
const Zero = OperationKind.Zero;
const Stamp = OperationKind.Stamp;

Deno.test("a change sets the stamp of its chunk, leaves it, or makes it unknown, as it says", () => {
  let bench = open();
  const change = (
    kind: OperationKind,
    stamp: { generation?: number; sequence?: number; unknown?: boolean },
  ) => {
    const values = kind === Write ? [7, 8] : [];
    assertEquals(bench.run(kind, [1], 5, 0, 2, values, stamp).result, 0);
    return bench.stampOf(1, 5);
  };
  const far = { generation: 2 ** 32 - 1, sequence: 2 ** 53 - 1 };
  assertEquals(bench.stampOf(1, 5), UNKNOWN);
  assertEquals(change(Write, {}), UNKNOWN);
  assertEquals(change(Write, { generation: 1, sequence: 2 }), "1.2");
  assertEquals(change(Write, {}), "1.2", "generation 0 leaves it");
  assertEquals(change(Free, { generation: 1, sequence: 3 }), "1.3");
  assertEquals(change(Zero, { generation: 2, sequence: 0 }), "2.0");
  assertEquals(change(Write, { generation: 2, sequence: 9, unknown: true }), UNKNOWN);
  assertEquals(change(Write, {}), UNKNOWN);
  assertEquals(change(Stamp, { generation: 2, sequence: 8 }), "2.8");
  assertEquals(change(Zero, { generation: 2, sequence: 9, unknown: true }), UNKNOWN);
  assertEquals(change(Stamp, far), `${2 ** 32 - 1}.${2 ** 53 - 1}`);
  assertEquals(change(Stamp, { generation: 1, sequence: 1 }), "1.1", "set, not compared");
  assertEquals(change(Stamp, {}), UNKNOWN);
  assertEquals(change(Stamp, far), `${2 ** 32 - 1}.${2 ** 53 - 1}`);
  assertEquals(bench.stampOf(1, 4), UNKNOWN);
  assertEquals(bench.stampOf(2, 5), UNKNOWN, "no such layer");
  assertEquals(bench.store.stats().stampedChunks, 1);
  // By the log, and by the checkpoint.
  bench.sync();
  bench = crashed(bench);
  assertEquals(bench.stampOf(1, 5), `${2 ** 32 - 1}.${2 ** 53 - 1}`);
  assertEquals(bench.close(), null);
  bench = crashed(bench);
  assertEquals(bench.stampOf(1, 5), `${2 ** 32 - 1}.${2 ** 53 - 1}`);
  assertEquals(bench.call("delete", (done) => bench.store.deleteLayer(1, done)), null);
  assertEquals(bench.store.stats().stampedChunks, 0, "they go with the layer");
});

Deno.test("records of format 1 leave stamps alone, whatever generation they name", () => {
  const u32 = new Uint32Array(64);
  const index = new Index();
  const applier = new Applier(index, u32, { blocksPlaced() {} });
  index.createLayer(1);
  applier.layers.set(1, LayerState.Live);
  for (const [version, isKnown] of [[1, false], [2, true]] as const) {
    u32[1] = version | 1 << 16;
    // ZERO of one block of chunk 5, generation 3, sequence 4.
    u32.set([3, 1, 1, 5, 3, 0, 4, 0], 16);
    applier.apply(16, 0, 1000, 1001);
    assertEquals(applier.stamps.has(1, 5), isKnown, `version ${version}`);
  }
});

Deno.test("submit() refuses stamps that no log could hold", () => {
  const bench = open();
  const result = (kind: OperationKind, generation: number, sequence: number) =>
    bench.run(kind, [1], 0, 0, 1, [1], { generation, sequence }).result;
  assertEquals(result(Write, 1, 2 ** 53), -EINVAL);
  assertEquals(result(Write, 1, NaN), -EINVAL);
  assertEquals(result(Free, 1, -1), -EINVAL);
  assertEquals(result(Stamp, 0, 1), -EINVAL);
  assertEquals(bench.run(Stamp, [9], 0, 0, 1).result, -EINVAL);
  assertEquals(bench.run(Stamp, [1], CHUNKS_MAX, 0, 1).result, -EINVAL);
});

Deno.test("neighbouring writes of one turn are one entry only if they agree about the stamp", () => {
  const bench = open();
  const run = (first: boolean, second: boolean) => {
    let pending = 0;
    [first, second].forEach((stampUnknown, block) => {
      pending++;
      const operation = bench.take(() => pending--)!;
      Object.assign(operation, { kind: Write, layers: [1], chunk: 0, block, blockCount: 1 });
      Object.assign(operation, { generation: 1, sequence: 10 + block, stampUnknown });
      bench.fill(operation, [1]);
      bench.store.submit(operation);
    });
    bench.until(() => pending === 0, "writes");
    return bench.stampOf(1, 0);
  };
  assertEquals(run(false, false), "1.11");
  assertEquals(run(false, true), UNKNOWN);
  assertEquals(run(true, false), "1.11");
});

Deno.test("of a write that the log had to cut, a crash leaves an unknown stamp unless all of it is there", () => {
  const bench = open();
  bench.run(Write, [1], 0, 0, 64, numbers(1, 64), { generation: 1, sequence: 1 });
  bench.sync();
  const seen = new Set<string>();
  bench.disk.boundary = () => {
    const disk = bench.disk.crash(new Prng(2), otherBytes, { keep: 1, lose: 0, reorder: false });
    const next = new Bench(1, disk, new Prng(3), SMALL);
    next.mustOpen();
    const blocks = next.content(1, 0, 64).filter((value) => value > 100).length;
    const stamp = next.stampOf(1, 0);
    assertEquals(stamp, blocks === 0 ? "1.1" : blocks === 64 ? "1.2" : UNKNOWN, `${blocks} blocks`);
    seen.add(stamp);
  };
  const otherBytes = new Bench(1, makeDisk(1, new Prng(1), SMALL), new Prng(1), SMALL).window.bytes;
  bench.run(Write, [1], 0, 0, 64, numbers(101, 64), { generation: 1, sequence: 2 });
  assertEquals([...seen].sort(), ["1.1", "1.2", UNKNOWN]);
  assertEquals(bench.stampOf(1, 0), "1.2");
});

Deno.test("dropChunk() frees a chunk, forgets its stamp, and may be repeated", () => {
  let bench = open();
  const drop = (layer: number) =>
    bench.call("drop", (done) => bench.store.dropChunk(layer, 3, done));
  bench.run(Write, [1], 3, 1000, 24, numbers(1, 24), { generation: 1, sequence: 1 });
  bench.run(Write, [1], 4, 0, 1, [9], { generation: 1, sequence: 2 });
  assertEquals(drop(1), null);
  assertEquals(drop(1), null);
  assertEquals(drop(77), null, "no such layer: nothing to do");
  assertEquals(bench.store.layerBytes(1), 4096);
  assertEquals(bench.stampOf(1, 3), UNKNOWN);
  bench.sync();
  bench = crashed(bench);
  assertEquals(bench.store.layerBytes(1), 4096);
  assertEquals([bench.stampOf(1, 3), bench.stampOf(1, 4)], [UNKNOWN, "1.2"]);
  const bad = bench.call("drop", (done) => bench.store.dropChunk(1, CHUNKS_MAX, done));
  assertEquals(bad?.code, "INVALID");
});

Deno.test("describeChunk() tells data, zeros and holes of one layer apart", () => {
  const bench = open();
  bench.createLayer(2);
  bench.write(1, 0, 0, numbers(1, 40));
  bench.run(Zero, [2], 0, 3, 30);
  bench.write(2, 0, 31, [70, 71]);
  const expected = [...numbers(1, 40).map(() => ABSENT)];
  expected.fill(0, 3, 33);
  expected.splice(31, 2, 70, 71);
  assertEquals(bench.content(2, 0, 40), expected);
  assertEquals(bench.content(1, 0, 40), numbers(1, 40));
  assertEquals(bench.content(2, 1, 40), new Array(40).fill(ABSENT));
});

Deno.test("describeChain() tells what a read through the layers comes upon, block by block", () => {
  const bench = open({ ...SMALL, segments: 60 });
  for (const layer of [2, 3, 4]) bench.createLayer(layer);
  const random = new Prng(11);
  for (let round = 0; round < 9; round++) {
    const chunk = round % 3;
    for (const layer of [1, 2, 3, 4]) {
      const count = random.between(1, 60), block = random.below(1024 - count);
      const kind = random.pick([Write, Write, Zero, Free]);
      bench.run(kind, [layer], chunk, block, count, numbers(1 + round * 100, count));
    }
    // Layers that are not there hold nothing; the order counts.
    for (const layers of [[4, 3, 2, 1], [2, 9, 4], [3], [], [1, 4]]) {
      const maps = [0, 1, 2].map(() => new Uint32Array(32).fill(0xaaaaaaaa));
      const blocks = bench.store.describeChain(layers, chunk, maps[0], maps[1], maps[2]);
      const expected = new Array(1024).fill(ABSENT);
      for (const layer of layers.toReversed()) {
        if (layer === 9) continue;
        bench.content(layer, chunk, 1024).forEach((value, i) => {
          if (value !== ABSENT) expected[i] = value;
        });
      }
      assertEquals(blocks, expected.filter((value) => value > 0).length);
      expected.forEach((value, i) => {
        const bits = maps.map((map) => map[i >>> 5] >>> (i & 31) & 1);
        assertEquals(bits, [value > 0 ? 1 : 0, value === 0 ? 1 : 0, 0], `block ${i}`);
      });
    }
  }
});

Deno.test("an unstamped write heals a damaged block, and the damage is gone from the list", () => {
  const bench = open();
  const stamp = { generation: 4, sequence: 5 };
  bench.run(Write, [1], 0, 0, 8, numbers(1, 8), stamp);
  bench.sync();
  const places: number[] = [];
  for (let at = 1024 * 1024; at < bench.disk.sizeBytesMax; at += 4096) {
    const head = new DataView(bench.disk.peek(at, 8).buffer);
    if (head.getUint32(0, true) === 3) places.push(at);
  }
  assertEquals(places.length, 1);
  bench.disk.flipBit(places[0] + 100, 3);
  assertEquals(bench.read([1], 0, 0, 8), -EBADMSG);
  assertEquals(bench.store.stats().damage.length, 1);
  assertEquals(bench.write(1, 0, 2, [3]), 0);
  assertEquals(bench.read([1], 0, 0, 8), numbers(1, 8));
  assertEquals(bench.store.stats().damage.length, 0);
  assertEquals(bench.store.stats().damageUnlisted, 0);
  assertEquals(bench.stampOf(1, 0), "4.5");
});

Deno.test("a block that the cleaner found lost is told from data, and healed by a write", () => {
  const bench = open({ ...SMALL, blocks: 1024 });
  bench.run(Write, [1], 0, 0, 3, [11, 12, 13], { generation: 1, sequence: 1 });
  bench.sync();
  for (let at = 1024 * 1024; at < bench.disk.sizeBytesMax; at += 4096) {
    if (new DataView(bench.disk.peek(at, 4).buffer).getUint32(0, true) === 12) {
      bench.disk.flipBit(at + 9, 1);
    }
  }
  // Garbage around it until the cleaner comes.
  const maps = [0, 1, 2].map(() => new Uint32Array(32));
  const isPoisoned = () => {
    bench.store.describeChunk(1, 0, maps[0], maps[1], maps[2]);
    return maps[2][0] !== 0;
  };
  for (let i = 0; !isPoisoned(); i++) {
    assert(i < 3000, "the cleaner never came");
    bench.write(1, 1 + i % 2, i % 40, numbers(1000, 24));
    bench.nowMs += 200;
    bench.store.tick(bench.nowMs);
  }
  assertEquals([maps[0][0], maps[1][0], maps[2][0]], [0b101, 0, 0b010]);
  assertEquals(bench.stampOf(1, 0), "1.1", "moving and poisoning leave the stamp");
  assertEquals(bench.read([1], 0, 0, 3), -EBADMSG);
  assertEquals(bench.write(1, 0, 1, [12]), 0);
  assertEquals(bench.read([1], 0, 0, 3), [11, 12, 13]);
  assertEquals(bench.content(1, 0, 3), [11, 12, 13]);
  assertEquals(bench.store.stats().damage, []);
});

function listOf(room: number): ChunkList {
  return {
    chunks: new Uint32Array(room),
    generations: new Uint32Array(room),
    sequences: new Float64Array(room),
    count: 0,
    next: 0,
  };
}

/** Everything that `listChunks` gives, with the number of calls. */
function listAll(bench: Bench, layer: number, room: number, step = 1, offset = 0) {
  const list = listOf(room);
  const all: string[] = [];
  let calls = 0;
  for (let from = 0; from >= 0; from = list.next, calls++) {
    bench.store.listChunks(layer, from, list, step, offset);
    for (let i = 0; i < list.count; i++) {
      const { chunks, generations, sequences } = list;
      all.push(`${chunks[i]}:${generations[i]}.${sequences[i]}`);
    }
  }
  return { all, calls };
}

Deno.test("listChunks() gives every chunk with content or a stamp once, in order, whatever the room", () => {
  const bench = open();
  const expected = new Map<number, string>();
  const random = new Prng(9);
  for (let i = 0; i < 120; i++) {
    const chunk = random.pick([random.below(40), random.below(3000), 2 ** 20 + random.below(600)]);
    const sequence = i + 2 ** 40;
    if (random.chance(0.3)) {
      // Content only.
      if (!expected.has(chunk)) expected.set(chunk, `${chunk}:0.0`);
      bench.write(1, chunk, 3, [1]);
    } else {
      // A stamp only, or both.
      expected.set(chunk, `${chunk}:2.${sequence}`);
      bench.run(random.chance(0.5) ? Free : Zero, [1], chunk, 0, 9, [], {
        generation: 2,
        sequence,
      });
    }
  }
  const sorted = [...expected.keys()].sort((a, b) => a - b);
  for (const room of [1, 7, 1000]) {
    const { all } = listAll(bench, 1, room);
    assertEquals(all, sorted.map((chunk) => expected.get(chunk)!));
  }
  for (const [step, offset] of [[2, 1], [64, 5], [1024, 77], [4096, 4000]]) {
    const wanted = sorted.filter((chunk) => chunk % step === offset);
    const { all } = listAll(bench, 1, 5, step, offset);
    assertEquals(all, wanted.map((chunk) => expected.get(chunk)!));
  }
  assertEquals(listAll(bench, 77, 5).all, [], "no such layer");
});

Deno.test("listChunks() does a bounded amount of work, however far apart chunks lie", () => {
  const bench = open();
  const last = CHUNKS_MAX - 1;
  bench.run(Stamp, [1], last, 0, 1, [], { generation: 1, sequence: 1 });
  const { all, calls } = listAll(bench, 1, 10);
  assertEquals(all, [`${last}:1.1`]);
  assert(calls > 50 && calls < 1000, `${calls} calls`);
});

Deno.test("Stamps agrees with a plain map, counts and gives its memory back", () => {
  const random = new Prng(5);
  const stamps = new Stamps();
  const map = new Map<string, string>();
  for (let i = 0; i < 20_000; i++) {
    const layer = random.below(3), chunk = random.below(600) * random.pick([1, 1000]);
    const key = `${layer}/${chunk}`;
    if (random.chance(0.5)) {
      const high = random.below(2 ** 21), low = random.u32();
      stamps.set(layer, chunk, i + 1, low, high);
      map.set(key, `${i + 1}.${low + high * 2 ** 32}`);
    } else {
      stamps.clear(layer, chunk);
      map.delete(key);
    }
    assertEquals(stamps.has(layer, chunk), map.has(key));
    if (i % 4000 === 0) stamps.dropLayer(1);
    if (i % 4000 === 0) {
      for (const name of map.keys()) if (name.startsWith("1/")) map.delete(name);
    }
  }
  assertEquals(stamps.count, map.size);
  // An image of it, in parts, is the same.
  const words = new Uint32Array(1000);
  const copy = new Stamps();
  const image = stamps.beginImage([0, 1, 2]);
  for (let bytes = 0; (bytes = image.fill(words, 40, 990)) > 0;) {
    assertEquals(bytes, image.items * 20);
    assertEquals(copy.loadImage(words, 10, image.items, () => true), null);
  }
  for (const [key, value] of map) {
    const [layer, chunk] = key.split("/").map(Number);
    for (const one of [stamps, copy]) {
      assert(one.find(layer, chunk));
      assertEquals(`${one.generation}.${one.sequence}`, value);
      one.clear(layer, chunk);
    }
  }
  for (const one of [stamps, copy]) assertEquals([one.count, one.memoryBytes], [0, 0]);
  for (let chunk = 0; chunk < 2 ** 18; chunk++) stamps.set(1, chunk, 1, chunk, 0);
  assert(stamps.memoryBytes <= 2 ** 18 * 12.1, `${stamps.memoryBytes / 2 ** 18} bytes a chunk`);
});

Deno.test("loadImage() refuses stamps that cannot be", () => {
  const load = (...items: number[][]) =>
    new Stamps().loadImage(Uint32Array.from(items.flat()), 0, items.length, (id) => id === 1);
  assertEquals(load([1, 5, 1, 2, 3], [1, 6, 1, 2, 3]), null);
  assert(load([2, 5, 1, 2, 3]) !== null, "no such layer");
  assert(load([1, CHUNKS_MAX, 1, 2, 3]) !== null, "no such chunk");
  assert(load([1, 5, 0, 2, 3]) !== null, "not known");
  assert(load([1, 5, 1, 2, 2 ** 21]) !== null, "past 2^53");
  assert(load([1, 5, 1, 2, 3], [1, 5, 1, 2, 3]) !== null, "twice");
});

Deno.test("a layer that is created while a checkpoint is written does not spoil it", () => {
  // Segments enough at hand that nothing else has to wait for a task.
  let bench = open({ ...SMALL, segments: 60, tunables: { ...SMALL.tunables, readySegments: 16 } });
  const { store } = bench;
  // The checkpoint has noted the layers and waits for its first write: hold that back.
  const held: [number, number][] = [];
  let isHolding = true;
  bench.disk.listener = {
    diskDone(token, result) {
      const isTask = (token & 7) === 4;
      if (isHolding && isTask && store.stats().checkpoint.running) held.push([token, result]);
      else store.diskDone(token, result);
    },
  };
  for (let i = 0; held.length === 0; i++) {
    assert(i < 1000, "no checkpoint");
    bench.write(1, 1, 0, numbers(1, 24));
  }
  bench.createLayer(2);
  bench.run(Write, [2], 7, 0, 1, [5], { generation: 1, sequence: 9 });
  isHolding = false;
  for (const [token, result] of held) store.diskDone(token, result);
  bench.until(() => !store.stats().checkpoint.running, "the checkpoint");
  assertEquals(store.stats().checkpoint.taken, 1);
  bench.sync();
  bench = crashed(bench);
  assertEquals([bench.read([2], 7, 0, 1), bench.stampOf(2, 7)], [[5], "1.9"]);
  assertEquals(bench.warnings, [], "the checkpoint was not passed over");
});
