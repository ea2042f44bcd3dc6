/**
 * The index against a plain map of blocks, and its memory against the budget.
 *
 * @module
 */
import { assert, assertEquals } from "@std/assert/mod.js";
import { Prng } from "../../agent/base/prng.ts";
import { HOLE, Index, IndexKind, POISON, ZERO } from "../../agent/store/index.ts";
import { Stamps } from "../../agent/store/stamps.ts";
import { SLAB_WORDS_MAX, SlabHeap } from "../../agent/store/slab.ts";

/** What the oracle knows of a block: a location, its checksum or the place of it. */
interface Value {
  location: number;
  direct: boolean;
  /** Direct: the checksum. Otherwise the absolute index of the checksum word in the file. */
  sum: number;
}

class Oracle {
  readonly blocks = new Map<string, Value>();
  readonly dead = new Map<number, number>();

  set(layer: number, chunk: number, block: number, value: Value | null): void {
    const key = `${layer}/${chunk}/${block}`;
    const old = this.blocks.get(key);
    if (old !== undefined && old.location < POISON) {
      this.dead.set(old.location, (this.dead.get(old.location) ?? 0) + 1);
    }
    if (value === null) this.blocks.delete(key);
    else this.blocks.set(key, value);
  }

  absorb(into: number, from: number, chunk: number): void {
    for (let block = 0; block < 1024; block++) {
      const value = this.get(from, chunk, block);
      if (value === undefined) continue;
      const isHole = this.get(into, chunk, block) === undefined;
      if (isHole) this.blocks.delete(`${from}/${chunk}/${block}`);
      else this.set(from, chunk, block, null);
      if (isHole) this.set(into, chunk, block, value);
    }
  }

  get(layer: number, chunk: number, block: number): Value | undefined {
    return this.blocks.get(`${layer}/${chunk}/${block}`);
  }
}

/** Compares a range of a chunk, block by block, through `find`. */
function compare(
  index: Index,
  oracle: Oracle,
  layer: number,
  chunk: number,
  at: number,
  n: number,
) {
  for (let block = at; block < at + n;) {
    const count = index.find(layer, chunk, block, at + n - block);
    assert(count >= 1 && block + count <= at + n, `find() gave ${count} blocks`);
    const { kind, location, page, word } = index;
    for (let i = 0; i < count; i++) {
      const value = oracle.get(layer, chunk, block + i);
      const where = `${layer}/${chunk}/${block + i}`;
      if (value === undefined) assertEquals(kind, IndexKind.Absent, where);
      else if (value.location === ZERO) assertEquals(kind, IndexKind.Zero, where);
      else if (value.location === POISON) assertEquals(kind, IndexKind.Poison, where);
      else if (value.direct) {
        assertEquals([kind, location + i], [IndexKind.Direct, value.location], where);
        assertEquals(index.checksumAt(i), value.sum, where);
        if (i === 0) assertEquals(index.checksum, value.sum, where);
      } else {
        assertEquals([kind, location + i], [IndexKind.Run, value.location], where);
        assertEquals(page * 1024 + word + i, value.sum, where);
      }
    }
    for (let i = 0; i < count; i++) {
      const value = oracle.get(layer, chunk, block + i);
      assertEquals(index.locate(layer, chunk, block + i), value?.location ?? HOLE);
    }
    block += count;
  }
}

/** Compares what `describe` says of a whole chunk. */
function compareMaps(index: Index, oracle: Oracle, layer: number, chunk: number): void {
  const maps = [0, 1, 2].map(() => new Uint32Array(32).fill(0xaaaaaaaa));
  const blocks = index.describe(layer, chunk, maps[0], maps[1], maps[2]);
  let data = 0;
  for (let block = 0; block < 1024; block++) {
    const location = oracle.get(layer, chunk, block)?.location;
    const isData = location !== undefined && location < POISON;
    if (isData) data++;
    assertEquals(
      maps.map((map) => map[block >>> 5] >>> (block & 31) & 1),
      [isData, location === ZERO, location === POISON].map(Number),
    );
  }
  assertEquals(blocks, data);
}

/** Compares what `describeChain` says of a whole chunk. */
function compareChain(index: Index, oracle: Oracle, layers: number[], chunk: number): void {
  const maps = [0, 1, 2].map(() => new Uint32Array(32).fill(0xaaaaaaaa));
  const blocks = index.describeChain(layers, chunk, maps[0], maps[1], maps[2]);
  let data = 0;
  for (let block = 0; block < 1024; block++) {
    const owner = layers.find((layer) => oracle.get(layer, chunk, block) !== undefined);
    const location = owner === undefined ? undefined : oracle.get(owner, chunk, block)!.location;
    const isData = location !== undefined && location < POISON;
    if (isData) data++;
    assertEquals(
      maps.map((map) => map[block >>> 5] >>> (block & 31) & 1),
      [isData, location === ZERO, location === POISON].map(Number),
    );
  }
  assertEquals(blocks, data);
}

function dataBlocks(oracle: Oracle): number {
  return [...oracle.blocks.values()].filter((value) => value.location < POISON).length;
}

Deno.test("random changes of every kind agree with a plain map, in every form of a chunk", () => {
  for (let seed = 1; seed <= 30; seed++) {
    const random = new Prng(seed);
    const index = new Index();
    const oracle = new Oracle();
    const dead = new Map<number, number>();
    index.freed = {
      blocksFreed(location, count) {
        for (let i = 0; i < count; i++) {
          dead.set(location + i, (dead.get(location + i) ?? 0) + 1);
        }
      },
    };
    index.createLayer(7);
    index.createLayer(9);
    let next = 5000;
    // Few blocks keep lists short and overlaps frequent; all of them reach the ranked form.
    const span = random.pick([40, 200, 1024]);
    for (let step = 0; step < 1500; step++) {
      const layer = random.chance(0.8) ? 7 : 9;
      const chunk = random.below(2) * 1500;
      const block = random.below(span);
      const long = random.chance(0.03) ? span : random.chance(0.2) ? 64 : 4;
      const count = 1 + random.below(Math.min(long, span - block));
      switch (random.below(13)) {
        case 0:
          index.free(layer, chunk, block, count);
          for (let i = 0; i < count; i++) oracle.set(layer, chunk, block + i, null);
          break;
        case 1:
          index.zero(layer, chunk, block, count);
          for (let i = 0; i < count; i++) {
            oracle.set(layer, chunk, block + i, { location: ZERO, direct: false, sum: 0 });
          }
          break;
        case 2:
          if (random.chance(0.8)) break;
          index.poison(layer, chunk, block, count);
          for (let i = 0; i < count; i++) {
            oracle.set(layer, chunk, block + i, { location: POISON, direct: false, sum: 0 });
          }
          break;
        case 3:
        case 4:
        case 5: {
          const page = next;
          const word = random.below(1024);
          const location = page + 1 + random.below(3);
          next = location + count;
          index.setRun(layer, chunk, block, count, location, page, word);
          for (let i = 0; i < count; i++) {
            oracle.set(layer, chunk, block + i, {
              location: location + i,
              direct: false,
              sum: page * 1024 + word + i,
            });
          }
          break;
        }
        case 6: {
          const value = oracle.get(layer, chunk, block);
          const from = value === undefined || random.chance(0.3) ? 77 : value.location;
          const moved = index.relocate(layer, chunk, block, from, next, 99, 1);
          assertEquals(moved, value !== undefined && value.location === from);
          if (moved) oracle.set(layer, chunk, block, { location: next, direct: true, sum: 99 });
          next++;
          break;
        }
        case 7:
          if (random.chance(0.9)) break;
          index.absorb(layer, 16 - layer, chunk);
          oracle.absorb(layer, 16 - layer, chunk);
          compare(index, oracle, 16 - layer, chunk, 0, span);
          assertEquals(index.hasChunk(16 - layer, chunk), false);
          assertEquals(index.blockCount, index.layerBlockCount(7) + index.layerBlockCount(9));
          break;
        default:
          for (let i = 0; i < Math.min(count, 3); i++) {
            const sum = random.u32();
            index.setDirect(layer, chunk, block + i, next, sum);
            oracle.set(layer, chunk, block + i, { location: next, direct: true, sum });
            next++;
          }
      }
      if (step % 50 === 0 || step > 1480) compare(index, oracle, layer, chunk, 0, span);
      else compare(index, oracle, layer, chunk, block, count);
    }
    for (const layer of [7, 9]) {
      for (const chunk of [0, 1, 1500]) compareMaps(index, oracle, layer, chunk);
    }
    for (const chain of [[7, 9], [9, 8, 7], [9]]) compareChain(index, oracle, chain, 1500);
    assertEquals(dead, oracle.dead, `seed ${seed}: displaced blocks`);
    assertEquals(index.blockCount, dataBlocks(oracle));
    assertEquals(index.blockCount, index.layerBlockCount(7) + index.layerBlockCount(9));

    // Every run is visited, each block once.
    const visited = new Map<string, number>();
    index.eachRun((layer, chunk, block, location, count) => {
      for (let i = 0; i < count; i++) {
        const key = `${layer}/${chunk}/${block + i}`;
        assertEquals(visited.has(key), false);
        visited.set(key, location + i);
      }
    });
    assertEquals(visited.size, index.blockCount);
    for (const [key, location] of visited) assertEquals(oracle.blocks.get(key)?.location, location);

    // An image of it, read back in, is the same.
    const words = new Uint32Array(65536);
    const copy = new Index();
    const image = index.beginImage();
    for (;;) {
      const bytes = image.fill(words, 64, 64 * 1024);
      if (bytes === 0) break;
      assert(copy.loadImage(words, 64, bytes, image.items));
    }
    for (const layer of [7, 9]) {
      for (const chunk of [0, 1500]) compare(copy, oracle, layer, chunk, 0, 1024);
    }
    assertEquals(copy.blockCount, index.blockCount);

    // Dropping a layer frees exactly what it held.
    const before = index.blockCount, held = index.layerBlockCount(7);
    let steps = 0;
    while (!index.dropLayerStep(7, 1)) steps++;
    assert(steps >= 1, "the budget was not kept");
    assertEquals(index.blockCount, before - held);
    assertEquals(index.layers(), [9]);
    assertEquals(index.find(7, 0, 0, 1024), 1024);
  }
});

Deno.test("loadImage() refuses what is not an image, whatever was changed", () => {
  const index = new Index();
  index.createLayer(1);
  for (let i = 0; i < 300; i++) index.setDirect(1, 0, i * 3, 1000 + i, i);
  index.setRun(1, 1, 0, 700, 5000, 4998, 20);
  const words = new Uint32Array(8192);
  const image = index.beginImage();
  const bytes = image.fill(words, 0, 32768);
  assertEquals(image.items, 2);
  assert(new Index().loadImage(words, 0, bytes, 2));
  assertEquals(new Index().loadImage(words, 0, bytes - 4, 2), false);
  assertEquals(new Index().loadImage(words, 0, bytes, 1), false);
  assertEquals(new Index().loadImage(words, 0, bytes, 3), false);
  const random = new Prng(5);
  for (let i = 0; i < 3000; i++) {
    const broken = words.slice();
    broken[random.below(bytes / 4)] ^= 1 << random.below(32);
    const copy = new Index();
    // Either refused, or something self-consistent: it must be possible to walk it.
    if (copy.loadImage(broken, 0, bytes, 2)) {
      let blocks = 0;
      copy.eachRun((_layer, _chunk, block, location, count) => {
        assert(count > 0 && block + count <= 1024 && location >= 0);
        blocks += count;
      });
      assertEquals(blocks, copy.blockCount);
    }
  }
});

/** Partly filled pages of the slab heap: does not grow with the data. */
const FIXED_BYTES = 768 * 1024;

Deno.test("memory stays within 0.25 % of random and 0.01 % of sequential data", () => {
  const chunks = 1024;
  // Of every chunk there is a stamp too.
  const stamps = new Stamps();
  for (let chunk = 0; chunk < 8 * chunks; chunk++) stamps.set(1, chunk, 1, chunk, 0);
  const stampBytes = stamps.memoryBytes / stamps.count;
  const shareOf = (index: Index, stamped = chunks) =>
    (index.memoryBytes + stamped * stampBytes - FIXED_BYTES) / (index.blockCount * 4096);
  const report: string[] = [];
  for (const [fill, most] of [[0.125, 0.003], [0.25, 0.0025], [0.5, 0.0025], [1, 0.0025]]) {
    const index = new Index();
    index.createLayer(1);
    const random = new Prng(3);
    const order = new Uint32Array(chunks * 1024).map((_, i) => i);
    for (let i = order.length - 1; i > 0; i--) {
      const j = random.below(i + 1);
      [order[i], order[j]] = [order[j], order[i]];
    }
    for (let i = 0; i < order.length * fill; i++) {
      index.setDirect(1, order[i] >>> 10, order[i] & 1023, 1000 + i, i);
    }
    report.push(`random ${fill}: ${(shareOf(index) * 100).toFixed(4)} %`);
    assert(shareOf(index) <= most, report.at(-1));
  }
  for (const blocks of [1024, 256, 128, 64]) {
    const index = new Index();
    index.createLayer(1);
    let location = 1000;
    for (let at = 0; at < 8 * chunks * 1024; at += blocks) {
      index.setRun(1, at >>> 10, at & 1023, blocks, location + 1, location, 16);
      location += blocks + 1;
    }
    report.push(`runs of ${blocks}: ${(shareOf(index, 8 * chunks) * 100).toFixed(4)} %`);
    assert(shareOf(index, 8 * chunks) <= 0.0001, report.at(-1));
  }
  // Sequential data, all of it overwritten at random afterwards.
  const index = new Index();
  index.createLayer(1);
  for (let chunk = 0; chunk < chunks; chunk++) {
    index.setRun(1, chunk, 0, 1024, 1000 + chunk * 1025, 999 + chunk * 1025, 16);
  }
  const random = new Prng(4);
  for (let i = 0; i < chunks * 1024 * 3; i++) {
    index.setDirect(1, random.below(chunks), random.below(1024), 1_000_000 + i, i);
  }
  assert(shareOf(index) <= 0.0025, `overwritten: ${shareOf(index)}`);
  // …and sequentially again: the memory comes back.
  for (let chunk = 0; chunk < chunks; chunk++) {
    index.setRun(1, chunk, 0, 1024, 9_000_000 + chunk * 1025, 8_999_999 + chunk * 1025, 16);
  }
  assert(index.memoryBytes < 4 * 1024 * 1024, `given back: ${index.memoryBytes}`);
});

Deno.test("the slab heap keeps every block whole, tells of moves, and takes all back", () => {
  const random = new Prng(11);
  const live = new Map<number, { handle: number; words: number }>();
  let moves = 0;
  const heap = new SlabHeap({
    blockMoved(a, b, handle) {
      assertEquals(b, a + 1);
      live.get(a)!.handle = handle;
      moves++;
    },
  });
  const check = (id: number) => {
    const { handle, words } = live.get(id)!;
    const page = heap.pages[SlabHeap.pageOf(handle)], base = SlabHeap.wordOf(handle);
    for (let i = 0; i < words; i++) assertEquals(page[base + i], id);
  };
  let wordsLive = 0;
  for (let id = 0; id < 20_000; id++) {
    if (random.chance(0.55) && live.size < 3000) {
      const words = 1 + random.below(random.chance(0.1) ? SLAB_WORDS_MAX : 60);
      const handle = heap.allocate(words, id, id + 1);
      assert(heap.capacity(handle) >= words);
      const base = SlabHeap.wordOf(handle);
      heap.pages[SlabHeap.pageOf(handle)].fill(id, base, base + words);
      live.set(id, { handle, words });
      wordsLive += words;
    } else if (live.size > 0) {
      const first: number = live.keys().next().value!;
      check(first);
      const { handle, words } = live.get(first)!;
      live.delete(first);
      wordsLive -= words;
      heap.free(handle);
    }
  }
  assert(moves > 1000);
  assert(heap.memoryBytes < wordsLive * 4 * 1.3 + 85 * 65536, "memory is stranded");
  for (const id of [...live.keys()]) {
    check(id);
    const { handle } = live.get(id)!;
    live.delete(id);
    heap.free(handle);
  }
  assert(heap.memoryBytes <= 2 * 65536, `kept ${heap.memoryBytes}`);
});
