/**
 * Which parts of a disk hold data: against a naive answer block by block, and where nothing may be said.
 *
 * @module
 */
import { assert, assertEquals } from "@std/assert/mod.js";
import { Arena } from "../../agent/base/arena.ts";
import { BLOCK_BYTES, CHUNK_BLOCKS, CHUNK_BYTES } from "../../agent/base/limits.ts";
import { Prng } from "../../agent/base/prng.ts";
import type { ClusterMap } from "../../agent/map/map.ts";
import {
  describeExtents,
  ExtentKind,
  EXTENTS_MAX,
  findBlock,
} from "../../agent/replication/extents.ts";
import { ClusterView } from "../../agent/replication/view.ts";
import { coreOf, FakeStore, FakeTransport, mapOf, type MapOptions } from "./harness.ts";

const DATA = ExtentKind.Data, ZERO = ExtentKind.Zero, HOLE = ExtentKind.Hole;
const UNKNOWN = ExtentKind.Unknown, SAME = ExtentKind.Same;

function describe(
  store: FakeStore,
  startBytes: number,
  endBytes: number,
  options: MapOptions & { mayRead?: boolean; self?: number; layer?: number; since?: number } = {},
): number[] {
  const view = new ClusterView(mapOf(options), options.self ?? 1);
  const disk = view.disk(1)!;
  return describeExtents({
    view,
    store,
    disk,
    layer: options.layer ?? disk.entry.layers[0],
    since: options.since ?? 0,
    mayRead: options.mayRead ?? true,
    startBytes,
    endBytes,
  });
}

/** Bytes that runs are about. */
function bytesOf(runs: readonly number[]): number {
  return runs.reduce((sum, value, i) => i % 2 === 0 ? sum + value : sum, 0);
}

Deno.test("extents are what a look at every block gives, through all layers", () => {
  const random = new Prng(1);
  const layers = [1, 11, 12];
  for (let round = 0; round < 60; round++) {
    const store = new FakeStore(...layers);
    const chunks = 4;
    for (const layer of layers) {
      for (let i = random.below(8); i > 0; i--) {
        const chunk = store.chunk(layer, random.below(chunks));
        const first = random.below(CHUNK_BLOCKS), kind = random.below(3);
        const end = Math.min(
          CHUNK_BLOCKS,
          first + random.between(1, random.chance(0.5) ? 700 : 40),
        );
        for (let block = first; block < end; block++) {
          chunk.blocks.delete(block);
          chunk.damaged.delete(block);
          if (kind === 2) chunk.damaged.add(block);
          else chunk.blocks.set(block, kind === 1 ? "zero" : 5);
        }
      }
    }
    const kindOf = (block: number) => {
      for (const layer of layers) {
        const chunk = store.content.get(layer)!.get(Math.floor(block / CHUNK_BLOCKS));
        const index = block % CHUNK_BLOCKS;
        if (chunk?.damaged.has(index)) return DATA;
        const found = chunk?.blocks.get(index);
        if (found !== undefined) return found === "zero" ? ZERO : DATA;
      }
      return HOLE;
    };
    const first = random.below(chunks * CHUNK_BLOCKS - 1);
    const end = random.between(first + 1, chunks * CHUNK_BLOCKS);
    const expected: number[] = [];
    for (let block = first; block < end; block++) {
      const kind = kindOf(block);
      if (expected.at(-1) === kind) expected[expected.length - 2] += BLOCK_BYTES;
      else expected.push(BLOCK_BYTES, kind);
    }
    const found = describe(store, first * BLOCK_BYTES, end * BLOCK_BYTES, { disk: { layers } });
    assertEquals(found, expected, `round ${round}`);
  }
});

/** The layers 1 ◀─ 2 ◀─ 3 ◀─ 4 of a disk, with snapshots that have 1, 2 and 3 as their newest. */
function chainedMap(options: MapOptions = {}, absorbed: readonly number[] = []): ClusterMap {
  const map = mapOf({ ...options, disk: { layers: [4, 3, 2, 1], ...options.disk } });
  const snapshots = [1, 2, 3].filter((layer) => !absorbed.includes(layer)).map((layer) => ({
    name: `s${layer}`,
    layer,
    sizeBytes: 2 ** 30,
    createdMs: 0,
    isProtected: false,
    taking: 0,
    isDrained: false,
    isAborted: false,
  }));
  return {
    ...map,
    layers: [1, 2, 3, 4].map((id) => ({
      id,
      parent: id - 1,
      absorbedBy: absorbed.includes(id) ? [] : null,
    })),
    disks: map.disks.map((disk) => ({ ...disk, snapshots })),
  };
}

function describeSince(
  store: FakeStore,
  map: ClusterMap,
  { layer, since, end = 4 * CHUNK_BYTES, start = 0 }: {
    layer: number;
    since: number;
    start?: number;
    end?: number;
  },
): number[] {
  const view = new ClusterView(map, 1);
  const disk = view.disk(1)!;
  const range = { startBytes: start, endBytes: end };
  return describeExtents({ view, store, disk, layer, since, mayRead: true, ...range });
}

Deno.test("since a snapshot, what the layers above it hold is told, and all else is the same", () => {
  const random = new Prng(2);
  const map = chainedMap();
  const chunks = 4;
  for (let round = 0; round < 60; round++) {
    const store = new FakeStore(1, 2, 3, 4);
    for (const layer of [1, 2, 3, 4]) {
      for (let i = random.below(4); i > 0; i--) {
        const chunk = store.chunk(layer, random.below(chunks));
        const first = random.below(CHUNK_BLOCKS), kind = random.below(3);
        const end = Math.min(CHUNK_BLOCKS, first + random.between(1, 300));
        for (let block = first; block < end; block++) {
          chunk.blocks.delete(block);
          chunk.damaged.delete(block);
          if (kind === 2) chunk.damaged.add(block);
          else chunk.blocks.set(block, kind === 1 ? "zero" : layer);
        }
      }
    }
    const layer = random.between(2, 4);
    const since = random.between(1, layer - 1);
    const kindOf = (block: number) => {
      for (let at = layer; at > since; at--) {
        const chunk = store.content.get(at)!.get(Math.floor(block / CHUNK_BLOCKS));
        if (chunk?.damaged.has(block % CHUNK_BLOCKS)) return DATA;
        const found = chunk?.blocks.get(block % CHUNK_BLOCKS);
        if (found !== undefined) return found === "zero" ? ZERO : DATA;
      }
      return SAME;
    };
    const first = random.below(chunks * CHUNK_BLOCKS - 1);
    const last = random.between(first + 1, chunks * CHUNK_BLOCKS);
    const expected: number[] = [];
    for (let block = first; block < last; block++) {
      const kind = kindOf(block);
      if (expected.at(-1) === kind) expected[expected.length - 2] += BLOCK_BYTES;
      else expected.push(BLOCK_BYTES, kind);
    }
    const range = { start: first * BLOCK_BYTES, end: last * BLOCK_BYTES };
    assertEquals(describeSince(store, map, { layer, since, ...range }), expected, `${round}`);
  }
});

Deno.test("a snapshot is described through its own chain, without what is above it", () => {
  const store = new FakeStore(1, 2, 3, 4);
  store.chunk(1, 0).blocks.set(0, 1);
  store.chunk(2, 0).blocks.set(1, 1);
  store.chunk(4, 0).blocks.set(2, 1);
  const map = chainedMap();
  const [B, rest] = [BLOCK_BYTES, 4 * CHUNK_BYTES];
  assertEquals(describeSince(store, map, { layer: 1, since: 0 }), [B, DATA, rest - B, HOLE]);
  assertEquals(describeSince(store, map, { layer: 2, since: 0 }), [
    2 * B,
    DATA,
    rest - 2 * B,
    HOLE,
  ]);
  assertEquals(describeSince(store, map, { layer: 3, since: 0 }), [
    2 * B,
    DATA,
    rest - 2 * B,
    HOLE,
  ]);
  assertEquals(describeSince(store, map, { layer: 4, since: 0 }), [
    3 * B,
    DATA,
    rest - 3 * B,
    HOLE,
  ]);
});

Deno.test("where nothing was written since, a disk of any size is one answer after one look per layer", () => {
  const store = new FakeStore(1, 2, 3, 4);
  for (let chunk = 0; chunk < 50; chunk++) store.chunk(1, chunk * 1000).blocks.set(0, 1);
  let looks = 0;
  const list = store.listChunks.bind(store);
  store.listChunks = (...parameters) => (looks++, list(...parameters));
  store.describeChunk = () => {
    throw new Error("it looks into a chunk");
  };
  const end = 2 ** 50;
  assertEquals(describeSince(store, chainedMap(), { layer: 4, since: 1, end }), [end, SAME]);
  assertEquals(looks, 3);
});

Deno.test("what was written behind terabytes of nothing is found, though no look of the store reaches so far", () => {
  const store = new FakeStore(1, 2, 3, 4);
  const far = 5_000_000;
  store.chunk(4, far).blocks.set(7, 1);
  const list = store.listChunks.bind(store);
  // As the real one does: some places are looked at, and where to go on is said.
  store.listChunks = (layer, from, found, step, offset) => {
    list(layer, from, found, step, offset);
    const end = from + 1_000_000;
    if (found.count > 0 ? found.chunks[0] < end : layer !== 4 || from > far) return;
    found.count = 0;
    found.next = end;
  };
  const end = 2 * far * CHUNK_BYTES;
  assertEquals(describeSince(store, chainedMap(), { layer: 4, since: 1, end }), [
    far * CHUNK_BYTES + 7 * BLOCK_BYTES,
    SAME,
    BLOCK_BYTES,
    DATA,
    end - far * CHUNK_BYTES - 8 * BLOCK_BYTES,
    SAME,
  ]);
});

Deno.test("what this node cannot tell is never called the same", () => {
  const store = new FakeStore(1, 2, 3, 4);
  const unknown = [4 * CHUNK_BYTES, UNKNOWN];
  const same = [4 * CHUNK_BYTES, SAME];
  const query = { layer: 3, since: 2 };
  assertEquals(describeSince(store, chainedMap(), query), same);
  assertEquals(describeSince(store, chainedMap(), { layer: 3, since: 3 }), same);
  const group = { inSync: [2, 3], joining: [1], joinedEpochs: [1] };
  const cases: [string, number[]][] = [
    ["it is not in sync", describeSince(store, chainedMap({ group }), query)],
    ["it is above", describeSince(store, chainedMap(), { layer: 2, since: 3 })],
    ["there is no such layer", describeSince(store, chainedMap(), { layer: 3, since: 9 })],
    ["nor this one", describeSince(store, chainedMap(), { layer: 9, since: 2 })],
    ["it is merged away", describeSince(store, chainedMap({}, [2]), query)],
    ["this one is", describeSince(store, chainedMap({}, [3]), { layer: 3, since: 1 })],
  ];
  for (const [what, found] of cases) assertEquals(found, unknown, what);
  const lost = Object.assign(new FakeStore(1, 2, 3, 4), {
    paths: { isLost: () => true, isImpaired: true },
  });
  assertEquals(describeSince(lost as unknown as FakeStore, chainedMap(), query), unknown);
  // A layer above that is being merged into the next counts with it.
  store.chunk(3, 1).blocks.set(0, 1);
  assertEquals(describeSince(store, chainedMap({}, [3]), { layer: 4, since: 2 }), [
    ...[CHUNK_BYTES, SAME, BLOCK_BYTES, DATA, 3 * CHUNK_BYTES - BLOCK_BYTES, SAME],
  ]);
});

Deno.test("one answer is bounded, and says something of what was asked in any case", () => {
  const store = new FakeStore(1);
  const chunk = store.chunk(1, 0);
  for (let block = 0; block < CHUNK_BLOCKS; block += 2) chunk.blocks.set(block, 1);
  for (let i = 1; i < 8; i++) store.content.get(1)!.set(i, chunk);
  const runs = describe(store, 0, 2 ** 40);
  assert(runs.length >= 2 * EXTENTS_MAX && runs.length <= 2 * (EXTENTS_MAX + CHUNK_BLOCKS));
  // Of nothing there is more in one answer.
  const empty = describe(new FakeStore(1), 0, 2 ** 50);
  assertEquals([empty.length, empty[1]], [2, HOLE]);
  assertEquals(empty[0], 4096 * CHUNK_BYTES);
  assertEquals(bytesOf(describe(store, 5 * BLOCK_BYTES, 6 * BLOCK_BYTES)), BLOCK_BYTES);
});

Deno.test("nothing is said of what this node could not read from itself now", () => {
  const store = new FakeStore(1);
  store.chunk(1, 0).blocks.set(0, 1);
  const unknown = [CHUNK_BYTES, UNKNOWN];
  const cases: [string, Parameters<typeof describe>[3]][] = [
    ["it is no member", { self: 4 }],
    ["it is not in sync", { group: { inSync: [2, 3], joining: [1], joinedEpochs: [1] } }],
    ["a member has crashed", { group: { unclean: [2] } }],
    ["it is being settled", { group: { unsettled: true } }],
    ["it may not serve", { mayRead: false }],
  ];
  for (const [what, options] of cases) {
    assertEquals(describe(store, 0, CHUNK_BYTES, options), unknown, what);
  }
  assertEquals(describe(store, 0, CHUNK_BYTES), [
    ...[BLOCK_BYTES, DATA, CHUNK_BYTES - BLOCK_BYTES, HOLE],
  ]);
  const lost = Object.assign(new FakeStore(1), { paths: { isLost: () => true } });
  assertEquals(describe(lost as unknown as FakeStore, 0, CHUNK_BYTES), unknown);
});

Deno.test("the data core says what it knows while it may serve, and the disk is open", () => {
  const store = new FakeStore(1);
  store.chunk(1, 0).blocks.set(1, 1);
  const core = coreOf(
    { store, arena: new Arena(), transport: new FakeTransport() },
    mapOf(),
    1,
    {},
  );
  const known = [BLOCK_BYTES, HOLE, BLOCK_BYTES, DATA];
  const ask = () => core.extentsOf(1, 0, 2 * BLOCK_BYTES);
  const unknown = [2 * BLOCK_BYTES, UNKNOWN];
  assertEquals(ask(), unknown);
  core.renew(Infinity);
  // Nobody has it open here: a look at it is as good as a read through the read-only socket.
  assertEquals(ask(), known);
  const router = core.router(1);
  router.begin(7);
  assertEquals(ask(), unknown);
  router.open();
  assertEquals(ask(), known);
  assertEquals(core.extentsOf(2, 0, BLOCK_BYTES), []);
});

Deno.test("one block is of the first layer that says anything of it, damaged or not", () => {
  const store = new FakeStore(1, 11, 12);
  store.chunk(11, 2).blocks.set(40, 5);
  store.chunk(12, 2).blocks.set(40, 6).set(41, 6).set(42, 6);
  store.chunk(11, 2).blocks.set(41, "zero");
  store.chunk(1, 2).damaged.add(42);
  const find = (block: number, options: MapOptions = {}, mayRead = true, layer = 1) => {
    const view = new ClusterView(mapOf({ disk: { layers: [1, 11, 12] }, ...options }), 1);
    return findBlock({ view, store, disk: view.disk(1)!, layer, mayRead }, 2, block);
  };
  assertEquals(find(40), { kind: DATA, layer: 11 });
  assertEquals(find(41), { kind: ZERO, layer: 11 });
  assertEquals(find(42), { kind: DATA, layer: 1 });
  assertEquals(find(43), { kind: HOLE, layer: 0 });
  const unknown = { kind: UNKNOWN, layer: 0 };
  assertEquals(find(40, {}, false), unknown);
  assertEquals(find(40, { group: { unsettled: true } }), unknown);
});

Deno.test("one block of a snapshot is looked for from its own layer down, and not in one that is merged away", () => {
  const store = new FakeStore(1, 2, 3, 4);
  store.chunk(4, 2).blocks.set(40, 5);
  store.chunk(2, 2).blocks.set(40, 6);
  store.chunk(1, 2).blocks.set(40, 7);
  const find = (layer: number, map = chainedMap()) => {
    const view = new ClusterView(map, 1);
    return findBlock({ view, store, disk: view.disk(1)!, layer, mayRead: true }, 2, 40);
  };
  const found = { kind: DATA };
  assertEquals([4, 3, 2, 1].map((layer) => find(layer)), [
    { ...found, layer: 4 },
    { ...found, layer: 2 },
    { ...found, layer: 2 },
    { ...found, layer: 1 },
  ]);
  const unknown = { kind: UNKNOWN, layer: 0 };
  assertEquals(find(9), unknown);
  const map = chainedMap();
  const layers = map.layers.map((each) => each.id === 2 ? { ...each, absorbedBy: [] } : each);
  assertEquals(find(2, { ...map, layers }), unknown);
  assertEquals(find(3, { ...map, layers }), { ...found, layer: 2 });
});
