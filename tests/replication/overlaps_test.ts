/**
 * How much of some layers others hide, beside a look at every block.
 *
 * @module
 */
import { assert, assertEquals } from "@std/assert/mod.js";
import { Prng } from "../../agent/base/prng.ts";
import { countOverlap, type LayersToMerge } from "../../agent/replication/overlaps.ts";
import { FakeStore } from "./harness.ts";

/** All of it, and how many answers it took. */
function countAll(store: FakeStore, layers: LayersToMerge): { blocks: number; answers: number } {
  let blocks = 0, answers = 0;
  for (let from = 0; from >= 0; answers++) {
    const found = countOverlap(store, layers, from);
    assert(found.next < 0 || found.next > from, "it gets nowhere");
    blocks += found.blocks;
    from = found.next;
  }
  return { blocks, answers };
}

Deno.test("what is hidden is data below something, each place once", () => {
  for (let seed = 1; seed <= 50; seed++) {
    const random = new Prng(seed);
    const store = new FakeStore(1, 2, 3, 4);
    const chunks = new Map<number, Set<number>>();
    for (let i = 0; i < 400; i++) {
      const layer = random.between(1, 4), chunk = random.below(6) * 1000, block = random.below(40);
      const content = store.chunk(layer, chunk);
      const kind = random.below(4);
      if (kind === 0) content.blocks.set(block, "zero");
      else if (kind === 1) {
        content.blocks.delete(block);
        content.damaged.add(block);
      } else content.blocks.set(block, i + 1);
      if (kind !== 1) content.damaged.delete(block);
      const blocks = chunks.get(chunk) ?? new Set();
      chunks.set(chunk, blocks.add(block));
    }
    const kindOf = (layer: number, chunk: number, block: number) => {
      const { blocks, damaged } = store.chunk(layer, chunk);
      if (damaged.has(block)) return "damaged";
      const value = blocks.get(block);
      return value === undefined ? null : value === "zero" ? "zero" : "data";
    };
    for (const layers of [{ above: [4], below: [3] }, { above: [4, 3], below: [2, 1] }]) {
      let expected = 0;
      for (const [chunk, blocks] of chunks) {
        for (const block of blocks) {
          const lower = layers.below.map((layer) => kindOf(layer, chunk, block)).find((each) =>
            each
          );
          const upper = layers.above.some((layer) => kindOf(layer, chunk, block) !== null);
          if (lower === "data" && upper) expected++;
        }
      }
      assertEquals(countAll(store, layers).blocks, expected, `seed ${seed}`);
    }
  }
});

Deno.test("one answer does a bounded amount of work, also where two layers never meet", () => {
  const store = new FakeStore(1, 2);
  for (let chunk = 0; chunk < 3000; chunk++) store.chunk(1 + chunk % 2, chunk).blocks.set(5, 1);
  const apart = countAll(store, { above: [2], below: [1] });
  assertEquals(apart.blocks, 0);
  assert(apart.answers > 2, `${apart.answers} answers`);
  for (let chunk = 0; chunk < 1000; chunk++) {
    store.chunk(1, chunk).blocks.set(6, 1);
    store.chunk(2, chunk).blocks.set(6, 1);
  }
  let described = 0;
  const describe = store.describeChain.bind(store);
  store.describeChain = (...parameters) => (described++, describe(...parameters));
  const first = countOverlap(store, { above: [2], below: [1] }, 0);
  assert(described <= 128, `${described} looks into the index`);
  assertEquals(first.blocks, described / 2);
  assertEquals(countAll(store, { above: [2], below: [1] }).blocks, 1000);
});
