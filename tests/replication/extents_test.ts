/**
 * Which parts of a disk hold data: against a naive answer block by block, and where nothing may be said.
 *
 * @module
 */
import { assert, assertEquals } from "@std/assert/mod.js";
import { Arena } from "../../agent/base/arena.ts";
import { BLOCK_BYTES, CHUNK_BLOCKS, CHUNK_BYTES } from "../../agent/base/limits.ts";
import { Prng } from "../../agent/base/prng.ts";
import { describeExtents, ExtentKind, EXTENTS_MAX } from "../../agent/replication/extents.ts";
import { ClusterView } from "../../agent/replication/view.ts";
import { coreOf, FakeStore, FakeTransport, mapOf, type MapOptions } from "./harness.ts";

const DATA = ExtentKind.Data, ZERO = ExtentKind.Zero, HOLE = ExtentKind.Hole;
const UNKNOWN = ExtentKind.Unknown;

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
