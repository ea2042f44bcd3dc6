/**
 * Long chains of layers: what is remembered of them against asking every layer.
 *
 * @module
 */
import { assert, assertEquals } from "@std/assert/mod.js";
import { Prng } from "../../agent/base/prng.ts";
import { CHAIN_LAYERS_MIN, Chains, CHAINS_MAX } from "../../agent/store/chains.ts";
import { Index, IndexKind } from "../../agent/store/index.ts";
import { OperationKind } from "../../agent/store/operation.ts";
import { Bench, makeDisk, SMALL } from "./harness.ts";

/** What the layers behind the first say of a block, asked one by one: the layer and where it has it. */
function ask(index: Index, layers: readonly number[], chunk: number, block: number): string {
  for (const layer of layers.slice(1)) {
    index.find(layer, chunk, block, 1);
    if (index.kind !== IndexKind.Absent) return `${layer}: ${index.locate(layer, chunk, block)}`;
  }
  return "none";
}

/** Compares a range block by block. */
function compare(
  { index, chains }: { index: Index; chains: Chains },
  layers: readonly number[],
  chunk: number,
  from: number,
  count: number,
): void {
  for (let block = from; block < from + count;) {
    const run = chains.find(layers, chunk, block, from + count - block);
    assert(run >= 1 && block + run <= from + count);
    const { kind } = index;
    const { layer } = chains;
    for (let i = 0; i < run; i++) {
      const found = kind === IndexKind.Absent
        ? "none"
        : `${layer}: ${index.locate(layer, chunk, block + i)}`;
      assertEquals(found, ask(index, layers, chunk, block + i), `${layers}/${chunk}/${block + i}`);
    }
    block += run;
  }
}

Deno.test("find() says what asking every layer would say, whatever changes in which of them", () => {
  for (let seed = 1; seed <= 12; seed++) {
    const random = new Prng(seed);
    const index = new Index();
    const chains = new Chains(index);
    let layers = Array.from({ length: 24 }, (_, i) => 100 - i);
    const missing = layers[11];
    for (const layer of layers) if (layer !== missing) index.createLayer(layer);
    let next = 5000;
    const isThere = (layer: number) => index.hasLayer(layer);
    const pooled: number[] = [];
    for (let step = 0; step < 1200; step++) {
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
          const location = index.locate(layer, chunk, block);
          if (location >= 0 && location < 2 ** 31) {
            index.relocate(layer, chunk, block, location, next++, 1, 1);
          }
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
      if (random.chance(0.02)) layers = Object.freeze([...layers]) as number[];
      // One array for one chain after the other, as connections use them.
      pooled.length = 0;
      pooled.push(...layers.slice(random.below(3)));
      if (random.chance(0.5)) pooled.splice(random.between(1, pooled.length - 1), 1);
      const compared = random.pick([layers, layers, pooled]);
      const at = Math.max(0, block - 8);
      compare({ index, chains }, compared, chunk, at, 32);
      if (step % 100 === 99) {
        for (const each of [0, 1, 7, 1500]) compare({ index, chains }, layers, each, 0, 1024);
      }
    }
    assert(chains.memoryBytes < 13 * 2 ** 20);
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

Deno.test("the number of layers that have a chunk does not count, once it is known which have it", () => {
  const index = new Index();
  const chains = new Chains(index);
  const layers = Object.freeze(Array.from({ length: 1000 }, (_, i) => 1000 - i));
  for (const layer of layers) index.createLayer(layer);
  layers.forEach((layer, i) => index.setDirect(layer, 5, i, 5000 + i, i));
  index.setRun(1, 6, 0, 1024, 9000, 8999, 20);
  let asked = 0;
  const { findOf } = index;
  index.findOf = function (...of) {
    asked++;
    return findOf.call(this, ...of);
  };
  for (const [chunk, most] of [[5, 1], [6, 1], [7, 0]]) {
    for (let block = 1; block < 1000; block += 37) {
      asked = 0;
      chains.find(layers, chunk, block, 1);
      assert(asked <= most, `chunk ${chunk}: ${asked} layers were asked`);
      assertEquals(chains.layer, chunk === 5 ? 1000 - block : 1);
    }
  }
  // Moving a block does not change who has it: nothing is looked up again.
  let looked = 0;
  const { cover } = index;
  index.cover = function (...of) {
    looked++;
    return cover.call(this, ...of);
  };
  assert(index.relocate(500, 5, 500, 5500, 7777, 1, 1));
  chains.find(layers, 5, 400, 1);
  assertEquals(looked, 0);
  index.free(500, 5, 500, 1);
  chains.find(layers, 5, 400, 1);
  assert(looked > 0);
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
