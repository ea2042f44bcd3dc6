/**
 * Long chains of layers: what is remembered of them against asking every layer.
 *
 * @module
 */
import { assert, assertEquals } from "@std/assert/mod.js";
import { Prng } from "../../agent/base/prng.ts";
import {
  CHAIN_LAYERS_MIN,
  Chains,
  CHAINS_MAX,
  MERGED_BYTES_MIN,
} from "../../agent/store/chains.ts";
import { Index, IndexKind, POISON, ZERO } from "../../agent/store/index.ts";
import { OperationKind } from "../../agent/store/operation.ts";
import { Bench, makeDisk, SMALL } from "./harness.ts";

/** What the index's fields say of a block of the run that was found: where it is and how it is verified. */
function valueAt(found: Index, past: number): string {
  switch (found.kind) {
    case IndexKind.Absent:
      return "hole";
    case IndexKind.Zero:
      return "zeros";
    case IndexKind.Poison:
      return "damage";
    case IndexKind.Direct: {
      const checksum = past === 0 ? found.checksum : found.checksumAt(past);
      return `at ${found.location + past}, checksum ${checksum}`;
    }
    case IndexKind.Run:
      return `at ${found.location + past}, word ${found.page * 1024 + found.word + past}`;
  }
}

/** What the layers behind the first say of a block, asked one by one: the layer and what it has. */
function ask(index: Index, layers: readonly number[], chunk: number, block: number): string {
  for (const layer of layers.slice(1)) {
    index.find(layer, chunk, block, 1);
    if (index.kind !== IndexKind.Absent) return `${layer}: ${valueAt(index, 0)}`;
  }
  return "hole";
}

/** What is remembered of a range, block by block. */
function remembered(
  { index, chains }: { index: Index; chains: Chains },
  layers: readonly number[],
  chunk: number,
  from: number,
  count: number,
): string[] {
  const all: string[] = [];
  chains.open(layers, chunk);
  for (let block = from; block < from + count;) {
    const run = chains.find(block, from + count - block);
    assert(run >= 1 && block + run <= from + count);
    const { found, layer } = chains;
    for (let i = 0; i < run; i++) {
      const value = valueAt(found, i);
      if (found.kind === IndexKind.Absent) {
        all.push(value);
        continue;
      }
      const isData = found.kind === IndexKind.Direct || found.kind === IndexKind.Run;
      const location = isData ? found.location + i : found.kind === IndexKind.Zero ? ZERO : POISON;
      // Which of several has the zeros, or the damage, only asking can say.
      const owner = layer || chains.ownerOf(layers, chunk, block + i, location);
      assertEquals(index.locate(owner, chunk, block + i), location);
      all.push(`${owner}: ${value}`);
    }
    block += run;
  }
  return all;
}

/** Compares a range block by block. */
function compare(
  of: { index: Index; chains: Chains },
  layers: readonly number[],
  chunk: number,
  from: number,
  count: number,
): void {
  const all = remembered(of, layers, chunk, from, count);
  const asked = all.map((_, i) => ask(of.index, layers, chunk, from + i));
  assertEquals(all, asked, `${layers}/${chunk}/${from}`);
}

Deno.test("find() says what asking every layer would say, whatever changes in which of them", () => {
  for (let seed = 1; seed <= 6; seed++) {
    const random = new Prng(seed);
    const index = new Index();
    const chains = new Chains(index);
    let layers = Array.from({ length: 24 }, (_, i) => 100 - i);
    const missing = layers[11];
    for (const layer of layers) if (layer !== missing) index.createLayer(layer);
    let next = 5000;
    const isThere = (layer: number) => index.hasLayer(layer);
    const pooled: number[] = [];
    for (let step = 0; step < 1000; step++) {
      const layer = random.pick(layers.filter(isThere));
      // Some chunks are in few layers, some in many, some far away.
      const chunk = random.pick([0, 0, 0, 0, 1, 1500]);
      const block = random.below(1000), count = random.between(1, random.pick([3, 24]));
      switch (random.below(10)) {
        case 0:
          index.free(layer, chunk, block, count);
          break;
        case 1:
          index.zero(layer, chunk, block, count);
          break;
        case 2:
          index.poison(layer, chunk, block, 1);
          break;
        case 3: {
          // As the cleaner moves what is still there: by itself, or in a run.
          const run = index.find(layer, chunk, block, count);
          if (index.kind === IndexKind.Absent) break;
          if (random.chance(0.5)) index.setRun(layer, chunk, block, run, next, next - 2, 30);
          else for (let i = 0; i < run; i++) index.setDirect(layer, chunk, block + i, next + i, i);
          next += run;
          break;
        }
        case 4: {
          const from = random.pick(layers.filter(isThere));
          if (from < layer && random.chance(0.3)) index.absorb(layer, from, chunk);
          break;
        }
        case 5:
          if (random.chance(0.02)) { while (!index.dropLayerStep(layer, 2)); }
          if (random.chance(0.05) && !isThere(missing)) index.createLayer(missing);
          break;
        default:
          index.setRun(layer, chunk, block, count, next, next - 1, 20);
          next += count;
      }
      // A new snapshot now and then: another array, all of the old one behind it.
      if (random.chance(0.01)) {
        layers = [layers[0] + 1, ...layers];
        index.createLayer(layers[0]);
      }
      // One is deleted: what it has is absorbed, or just not read any more.
      if (random.chance(0.01) && layers.length > 8) {
        const at = random.between(1, layers.length - 2), gone = layers[at];
        if (random.chance(0.7) && isThere(gone) && isThere(layers[at - 1])) {
          for (const each of [0, 1, 1500]) index.absorb(layers[at - 1], gone, each);
        }
        if (gone !== missing) layers = layers.filter((other) => other !== gone);
      }
      if (random.chance(0.02)) layers = Object.freeze([...layers]) as number[];
      // One array for one chain after the other, as connections use them.
      pooled.length = 0;
      pooled.push(...layers.slice(random.below(3)));
      if (random.chance(0.5)) pooled.splice(random.between(1, pooled.length - 1), 1);
      const compared = random.pick([layers, layers, pooled]);
      const at = Math.max(0, block - 8);
      compare({ index, chains }, compared, chunk, at, 32);
      if (step % 200 === 199) {
        for (const each of [0, 1, 7, 1500]) compare({ index, chains }, layers, each, 0, 1024);
      }
    }
    assert(chains.memoryBytes < MERGED_BYTES_MIN + 5 * 2 ** 20);
  }
});

Deno.test("more chains than are remembered push one another out, and all are right", () => {
  const random = new Prng(1);
  const index = new Index();
  const chains = new Chains(index);
  const ids = Array.from({ length: 40 }, (_, i) => 40 - i);
  for (const id of ids) index.createLayer(id);
  let next = 5000;
  for (let i = 0; i < 3000; i++) {
    index.setDirect(random.pick(ids), random.below(3), random.below(64), next++, i);
  }
  const many = Array.from({ length: CHAINS_MAX * 3 }, () => [
    99,
    ...random.shuffle([...ids]).slice(0, random.between(3, 30)),
  ]);
  for (let round = 0; round < 4; round++) {
    for (const layers of many) {
      const chunk = random.below(3);
      compare({ index, chains }, layers, chunk, 0, 64);
      // From a layer that is in other chains only.
      const into = random.pick(layers.slice(1));
      const from = ids.find((id) => id < into && !layers.includes(id));
      if (from !== undefined) index.absorb(into, from, chunk);
      compare({ index, chains }, layers, chunk, 0, 64);
      index.setDirect(random.pick(ids), random.below(3), random.below(64), next++, 1);
    }
  }
});

Deno.test("chains that share a place in the table are not taken for one another", () => {
  const random = new Prng(8);
  const index = new Index();
  const chains = new Chains(index);
  const ids = Array.from({ length: 12 }, (_, i) => 12 - i);
  for (const id of ids) {
    index.createLayer(id);
    for (let block = 0; block < 8; block++) {
      if (random.chance(0.5)) index.setDirect(id, 0, block, id * 1000 + block, id);
    }
  }
  // The 2,456th has the place of the first.
  for (let i = 0; i < 3000; i++) {
    const layers = random.shuffle([...ids]).slice(0, random.between(4, 9));
    compare({ index, chains }, [99, ...layers], 0, 0, 8);
  }
});

Deno.test("copies stay within their bound, and those that are crowded out are made again", () => {
  const index = new Index();
  const chains = new Chains(index);
  const layers = Object.freeze([9, 8, 7, 6, 5, 4]);
  for (const layer of layers) index.createLayer(layer);
  // Each copy is of 8 KiB or more, as many as there are chunks do not fit.
  const chunks = 1100;
  let next = 5000;
  for (let chunk = 0; chunk < chunks; chunk++) {
    for (let block = 0; block < 1024; block += 2) {
      index.setDirect(layers[1 + (block >>> 1) % 5], chunk, block, next, next);
      next++;
    }
    for (let block = 1; block < 1024; block += 2) {
      index.setDirect(layers[1 + (block >>> 1) % 3], chunk, block, next, next);
      next++;
    }
  }
  const bound = Math.max(MERGED_BYTES_MIN, index.memoryBytes / 8);
  const table = 4 * 2 ** 20;
  assert(chunks * 8192 > bound);
  let most = 0;
  for (let round = 0; round < 2; round++) {
    for (let chunk = 0; chunk < chunks; chunk++) {
      compare({ index, chains }, layers, chunk, chunk % 1000, 4);
      most = Math.max(most, chains.memoryBytes);
    }
  }
  assert(most <= table + bound + 2 ** 18, `${most} bytes`);
  assert(most > table + bound / 2, "copies are kept while there is room");
});

Deno.test("the number of layers that have a chunk does not count, once it is known what they have", () => {
  const index = new Index();
  const chains = new Chains(index);
  const layers = Object.freeze(Array.from({ length: 1000 }, (_, i) => 1000 - i));
  for (const layer of layers) index.createLayer(layer);
  layers.forEach((layer, i) => index.setDirect(layer, 5, i, 5000 + i, i));
  index.setRun(1, 6, 0, 1024, 9000, 8999, 20);
  let asked = 0;
  const { findOf, hasChunkOf } = index;
  index.findOf = function (...of) {
    asked++;
    return findOf.call(this, ...of);
  };
  index.hasChunkOf = function (...of) {
    asked++;
    return hasChunkOf.call(this, ...of);
  };
  for (const [chunk, most] of [[5, 0], [6, 1], [7, 0]]) {
    chains.open(layers, chunk);
    for (let block = 1; block < 1000; block += 37) {
      asked = 0;
      chains.open(layers, chunk);
      chains.find(block, 1);
      assert(asked <= most, `chunk ${chunk}: ${asked} layers were asked`);
      if (chunk === 7) assertEquals(chains.found.kind, IndexKind.Absent);
      else assertEquals(chains.found.location, (chunk === 5 ? 5000 : 9000) + block);
    }
  }
  // Moving a block does not change who has it: the place follows, and nothing is looked up again.
  asked = 0;
  index.setDirect(500, 5, 500, 7777, 1);
  chains.open(layers, 5);
  chains.find(500, 1);
  assertEquals([chains.found.location, chains.found.checksum, asked], [7777, 1, 0]);
  index.free(500, 5, 500, 1);
  chains.open(layers, 5);
  chains.find(500, 1);
  assertEquals(chains.found.kind, IndexKind.Absent);
  assert(asked > 0);
});

Deno.test("after a snapshot only chunks that the layer below has something of are looked up again", () => {
  const index = new Index();
  const chains = new Chains(index);
  const old = Object.freeze(Array.from({ length: 200 }, (_, i) => 200 - i));
  for (const layer of old) index.createLayer(layer);
  old.forEach((layer, i) => index.setDirect(layer, 5, i, 5000 + i, i));
  index.setRun(1, 6, 0, 1024, 9000, 8999, 20);
  for (const chunk of [5, 6, 7]) compare({ index, chains }, old, chunk, 0, 1024);
  // What was the newest has chunks 5 and 8 by now; the one behind it, 199, is deleted afterwards.
  index.setDirect(200, 8, 1, 20_000, 1);
  let asked = 0;
  const { hasChunkOf } = index;
  index.hasChunkOf = function (...of) {
    asked++;
    return hasChunkOf.call(this, ...of);
  };
  index.createLayer(201);
  index.createLayer(202);
  const taken = Object.freeze([202, 201, ...old]);
  const askedFor = (layers: readonly number[], chunk: number) => {
    asked = 0;
    chains.open(layers, chunk);
    return asked;
  };
  assert(askedFor(taken, 5) > 4, "layer 200 has some of it, and was not read before");
  assert(askedFor(taken, 8) > 4);
  // Chunk 6 is in one layer, chunk 7 in none: two layers have come.
  assertEquals([6, 7].map((chunk) => askedFor(taken, chunk)), [2, 2]);
  for (const chunk of [5, 6, 7, 8]) compare({ index, chains }, taken, chunk, 0, 1024);
  index.createLayer(203);
  const again = Object.freeze([203, ...taken]);
  assertEquals([5, 6, 7, 8].map((chunk) => askedFor(again, chunk)), [1, 1, 1, 1]);
  for (const chunk of [5, 6, 7, 8]) compare({ index, chains }, again, chunk, 0, 1024);
  // A snapshot is deleted: nothing of chunk 6 was in it, but some of chunk 5.
  index.absorb(200, 199, 5);
  const less = Object.freeze(again.filter((layer) => layer !== 199));
  assertEquals(askedFor(less, 6), 1);
  for (const chunk of [5, 6, 7, 8]) compare({ index, chains }, less, chunk, 0, 1024);
  const unread = Object.freeze(less.filter((layer) => layer !== 1));
  for (const chunk of [5, 6, 7, 8]) compare({ index, chains }, unread, chunk, 0, 1024);
});

Deno.test("an absorb is seen through chains that have only one of its two layers", () => {
  // Where few layers have some of the chunk, and where many have.
  for (const count of [3, 9]) {
    const index = new Index();
    const chains = new Chains(index);
    const below = Array.from({ length: count }, (_, i) => 20 - i);
    const into = 30, from = 29;
    for (const layer of [into, from, ...below]) index.createLayer(layer);
    below.forEach((layer, i) => index.setDirect(layer, 0, 10 + i, 5000 + i, i));
    index.setRun(below[count - 1], 0, 0, 8, 6000, 5999, 20);
    index.setDirect(from, 0, 3, 7000, 1);
    index.setDirect(into, 0, 4, 7001, 2);
    const all = [into, from].map((layer) => Object.freeze([99, layer, ...below]));
    for (const layers of all) compare({ index, chains }, layers, 0, 0, 24);
    index.absorb(into, from, 0);
    for (const layers of all) compare({ index, chains }, layers, 0, 0, 24);
    assertEquals(ask(index, all[0], 0, 3), `${into}: at 7000, checksum 1`);
  }
});

Deno.test("ownerOf() is the layer that has a block where it was read, or else the one that is read now", () => {
  const index = new Index();
  const chains = new Chains(index);
  const layers = [9, 8, 7, 6, 5];
  for (const layer of layers) index.createLayer(layer);
  index.setDirect(9, 0, 1, 4000, 1);
  index.setDirect(6, 0, 1, 5000, 1);
  index.setDirect(8, 0, 1, 6000, 1);
  assertEquals([5000, 6000, 7000].map((at) => chains.ownerOf(layers, 0, 1, at)), [6, 8, 8]);
  assertEquals(chains.ownerOf(layers, 0, 2, 5000), 8);
});

Deno.test("damage that is found through a long chain is told of the layer that has the block", () => {
  const bench = new Bench(0, makeDisk(0, new Prng(5), SMALL), new Prng(6), SMALL);
  bench.format();
  bench.mustOpen();
  const layers = Object.freeze(Array.from({ length: 8 }, (_, i) => 8 - i));
  for (const layer of layers) {
    bench.createLayer(layer);
    bench.write(layer, 0, layer, [100 + layer]);
  }
  bench.write(5, 0, 3, [555]);
  const told: string[] = [];
  bench.store.damageListener = (layer, chunk, block) => told.push(`${layer}/${chunk}/${block}`);
  const damaged = (stamp: number) => {
    for (let at = 0; at < bench.disk.sizeBytesMax; at += 4096) {
      const head = new DataView(bench.disk.peek(at, 8).buffer);
      if (
        head.getUint32(0, true) === stamp && head.getUint32(4, true) === (stamp ^ 0x01000193) >>> 0
      ) {
        bench.disk.flipBit(at + 3000, 5);
      }
    }
  };
  assertEquals(bench.read(layers, 0, 0, 9), [0, 101, 102, 555, 104, 105, 106, 107, 108]);
  for (const stamp of [102, 555, 108]) damaged(stamp);
  for (const block of [2, 3, 8]) assertEquals(bench.read(layers, 0, block, 1), -74);
  assertEquals(told, ["2/0/2", "5/0/3", "8/0/8"]);
});

Deno.test("reads through a long chain see what is written, freed and absorbed in it", () => {
  assert(CHAIN_LAYERS_MIN <= 12);
  const random = new Prng(4);
  const bench = new Bench(0, makeDisk(0, new Prng(5), SMALL), new Prng(6), SMALL);
  bench.format();
  bench.mustOpen();
  let layers = Array.from({ length: 12 }, (_, i) => 12 - i);
  for (const layer of layers) bench.createLayer(layer);
  const content = new Map<number, Map<number, number>>(layers.map((layer) => [layer, new Map()]));
  let next = 1;
  for (let step = 0; step < 250; step++) {
    const at = random.below(layers.length), layer = layers[at];
    const block = random.below(30), count = random.between(1, 6);
    const blocks = content.get(layer)!;
    const draw = random.below(10);
    if (draw < 5) {
      const values = Array.from({ length: count }, () => next++);
      bench.write(layer, 0, block, values);
      values.forEach((value, i) => blocks.set(block + i, value));
    } else if (draw < 7) {
      const kind = draw === 5 ? OperationKind.Zero : OperationKind.Free;
      bench.run(kind, [layer], 0, block, count);
      for (let i = 0; i < count; i++) {
        if (draw === 5) blocks.set(block + i, 0);
        else blocks.delete(block + i);
      }
    } else if (draw === 7 && at > 0 && layers.length > 5) {
      bench.run(OperationKind.Absorb, [layers[at - 1], layer], 0, 0, 1);
      const into = content.get(layers[at - 1])!;
      for (const [each, value] of blocks) if (!into.has(each)) into.set(each, value);
      blocks.clear();
      if (random.chance(0.2)) {
        const error = bench.call("delete", (done) => bench.store.deleteLayer(layer, done));
        assertEquals(error, null);
        layers = layers.filter((other) => other !== layer);
      }
    }
    const expected = Array.from({ length: 36 }, (_, each) => {
      const owner = layers.find((other) => content.get(other)!.has(each));
      return owner === undefined ? 0 : content.get(owner)!.get(each)!;
    });
    assertEquals(bench.read(layers, 0, 0, 36), expected, `step ${step}`);
  }
  assert(layers.length < 12 && layers.length >= CHAIN_LAYERS_MIN);
});
