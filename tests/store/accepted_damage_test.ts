/**
 * Damage that is accepted is the end of what was lost, and of nothing else: the store does not say that it was closed in good order, and
 * one block does not become what another one is.
 *
 * @module
 */
import { assert, assertEquals } from "@std/assert/mod.js";
import { Prng } from "../../agent/base/prng.ts";
import type { SimulatedDisk } from "../../agent/platform/simulated/disk.ts";
import { SEGMENTS_OFFSET_BYTES } from "../../agent/store/format.ts";
import { Bench, makeDisk, type Shape, SMALL } from "./harness.ts";

/** Power fails, and all that was written is there. */
function killed({ disk, window }: Bench): SimulatedDisk {
  return disk.crash(new Prng(9), window.bytes, { keep: 1, lose: 0, reorder: false });
}

/** The header of the record of this number rots. */
function rotRecord(disk: SimulatedDisk, lsn: number): void {
  for (let at = SEGMENTS_OFFSET_BYTES; at < disk.sizeBytesMax; at += 4096) {
    const head = new DataView(disk.peek(at, 64).buffer);
    const isRecord = head.getUint32(0, true) === 0x4345524b;
    if (isRecord && head.getUint32(32, true) === lsn) disk.flipBit(at + 70);
  }
}

for (const how of ["rotten", "lost"] as const) {
  Deno.test(`a run whose superblock is ${how}, opened by accepting the damage, is not called clean`, () => {
    const random = new Prng(1);
    const bench = new Bench(0, makeDisk(0, random.fork(), SMALL), random.fork(), SMALL);
    bench.format();
    bench.mustOpen();
    bench.createLayer(1);
    bench.write(1, 0, 0, [1, 2, 3, 4]);
    assertEquals(bench.close(), null);
    let superblockAt = -1;
    bench.disk.faults = {
      loses: (offset) => {
        if (offset >= SEGMENTS_OFFSET_BYTES || superblockAt >= 0) return false;
        superblockAt = offset;
        return how === "lost";
      },
    };
    bench.mustOpen();
    bench.disk.faults = {};
    bench.write(1, 0, 12, [6]);
    // This record rots as well.
    const before = bench.store.stats().lsn;
    bench.write(1, 0, 0, [101, 102, 103, 104]);
    assertEquals(bench.sync(), 0);
    bench.write(1, 0, 8, [5]);
    assertEquals(bench.sync(), 0);
    bench.until(() => bench.store.idle, "rest");
    const disk = killed(bench);
    if (how === "rotten") disk.flipBit(superblockAt + 100);
    rotRecord(disk, before + 1);
    const after = new Bench(0, disk, new Prng(10), SMALL);
    assertEquals(after.open()?.code, "DAMAGED");
    let told = 0;
    assertEquals(after.open({ acceptDamage: true, mayHaveLost: () => told++ }), null);
    assertEquals(told, 1);
    assertEquals(after.read([1], 0, 0, 4), [1, 2, 3, 4], "what was flushed is gone");
    // The map takes a node that was clean for one that has everything.
    assertEquals(after.store.wasClean, false);
  });
}

const SHAPE: Shape = {
  ...SMALL,
  segments: 80,
  tunables: { ...SMALL.tunables, checkpointLogBytes: 2 ** 26, scrubBytesPerSecond: 0 },
};

Deno.test("what a lost record had made free is not read as what was written there since, once the damage is accepted", () => {
  const random = new Prng(1);
  const bench = new Bench(0, makeDisk(0, random.fork(), SHAPE), random.fork(), SHAPE);
  bench.format();
  bench.mustOpen();
  bench.createLayer(1);
  bench.createLayer(2);
  const eight = (first: number) => Array.from({ length: 8 }, (_, i) => first + i);
  // Three records of nine blocks fill a segment of 32; all of them are alike.
  for (let i = 0; i < 12; i++) assertEquals(bench.write(1, i, 0, eight(1000 + 10 * i)), 0);
  // The checkpoint that the next start begins with.
  assertEquals(bench.close(), null);
  bench.mustOpen();
  // One record that frees all of it, and is lost later.
  const { lsn } = bench.store.stats();
  let drops = 0;
  for (let i = 0; i < 12; i++) bench.store.dropChunk(1, i, () => drops++);
  bench.until(() => drops === 12, "drops");
  assertEquals(bench.sync(), 0);
  // Others come to lie where they were.
  for (let i = 0; i < 30; i++) {
    assertEquals(bench.write(2, i, 0, eight(5000 + 10 * i)), 0);
    assertEquals(bench.sync(), 0);
  }
  bench.until(() => bench.store.idle, "rest");
  const disk = killed(bench);
  rotRecord(disk, lsn + 1);
  const after = new Bench(0, disk, new Prng(10), SHAPE);
  assertEquals(after.open()?.code, "DAMAGED");
  assertEquals(after.open({ acceptDamage: true }), null);
  for (let i = 0; i < 12; i++) {
    for (let block = 0; block < 8; block++) {
      const found = after.read([1], i, block, 1);
      if (typeof found === "number") continue;
      // Stale; nothing of anybody else's.
      const isOwn = found[0] === 0 || found[0] === 1000 + 10 * i + block;
      assert(isOwn, `chunk ${i}: ${found}`);
    }
  }
  for (let i = 0; i < 30; i++) assertEquals(after.read([2], i, 0, 8), eight(5000 + 10 * i));
});
