/**
 * What a start makes of what the one before it has left, where a disk loses a write, a block rots, or a program was killed at the
 * worst moment.
 *
 * @module
 */
import { assert, assertEquals } from "@std/assert/mod.js";
import { Prng } from "../../agent/base/prng.ts";
import type { SimulatedDisk } from "../../agent/platform/simulated/disk.ts";
import { SEGMENTS_OFFSET_BYTES } from "../../agent/store/format.ts";
import { Bench, makeDisk, type Shape, SMALL } from "./harness.ts";

/** Checkpoints come often. */
const BUSY: Shape = {
  ...SMALL,
  tunables: { ...SMALL.tunables, checkpointLogBytes: 400 * 1024, checkpointLogRatio: 0 },
};
/** First word of a frame of a checkpoint: "KCKP". */
const FRAME_MAGIC = 0x504b434b;
/** Second word: it is one of the index. */
const FRAME_INDEX = 1;

function make(seed: number, shape = SMALL): Bench {
  const random = new Prng(seed);
  const bench = new Bench(0, makeDisk(0, random.fork(), shape), random.fork(), shape);
  bench.format();
  bench.mustOpen();
  bench.createLayer(1);
  return bench;
}

/** The disk after the end of the program: all that was written is there. */
function killed({ disk, window }: Bench): SimulatedDisk {
  return disk.crash(new Prng(9), window.bytes, { keep: 1, lose: 0, reorder: false });
}

/** Writes of four blocks each, somewhere; what they leave. */
class Writes {
  readonly values = new Map<number, number>();
  #next = 1;

  constructor(readonly random: Prng) {}

  one(bench: Bench): void {
    const block = this.random.below(12) * 4;
    const stamps = [0, 1, 2, 3].map((i) => this.#next + i);
    this.#next += 4;
    assertEquals(bench.write(1, 0, block, stamps), 0);
    stamps.forEach((stamp, i) => this.values.set(block + i, stamp));
  }

  /** Blocks that do not hold what was written to them last, those aside that are refused. */
  wrong(bench: Bench): number {
    return [...this.values].filter(([block, stamp]) => {
      const found = bench.read([1], 0, block, 1);
      return typeof found !== "number" && found[0] !== stamp;
    }).length;
  }
}

Deno.test("a program killed while it closes its store, and a loss of power as the next one opens it, leave all of it", () => {
  const other = new Bench(1, makeDisk(1, new Prng(5), SMALL), new Prng(6), SMALL).window;
  let count = 0;
  for (let seed = 1; seed <= 40; seed++) {
    const bench = make(seed, BUSY);
    const writes = new Writes(new Prng(seed));
    for (let n = writes.random.between(1, 60); n > 0; n--) writes.one(bench);
    assertEquals(bench.sync(), 0);
    bench.until(() => bench.store.idle, "rest");
    // When the superblock is written, and before it is durable.
    let left: SimulatedDisk | null = null;
    let hasSuperblock = false;
    const write = bench.disk.write.bind(bench.disk);
    bench.disk.write = (token, offset, vector) => {
      write(token, offset, vector);
      if (offset < SEGMENTS_OFFSET_BYTES) hasSuperblock = true;
    };
    bench.disk.boundary = (kind) => {
      if (kind !== "sync" || !hasSuperblock || left !== null) return;
      left = bench.disk.crash(new Prng(9), other.bytes, { processOnly: true, keep: 1, lose: 0 });
    };
    assertEquals(bench.close(), null);
    const next = new Bench(1, left!, new Prng(seed + 1000), BUSY);
    const futures: SimulatedDisk[] = [];
    next.disk.boundary = () => {
      for (let i = 0; i < 4; i++) {
        const random = new Prng(seed * 100 + futures.length);
        futures.push(next.disk.crash(random, bench.window.bytes, { keep: 0.3, lose: 0.3 }));
      }
    };
    next.mustOpen();
    for (const disk of futures) {
      const after = new Bench(0, disk, new Prng(12), BUSY);
      after.mustOpen();
      assertEquals(writes.wrong(after), 0, `seed ${seed}`);
      count++;
    }
  }
  assert(count > 1000, `${count} futures`);
});

Deno.test("a start whose superblock the disk loses is not taken for one that never was", () => {
  const bench = make(1);
  bench.write(1, 0, 0, [1, 2, 3, 4]);
  assertEquals(bench.close(), null);
  let lost = 0;
  // It is written to both places.
  bench.disk.faults = { loses: (offset) => offset < SEGMENTS_OFFSET_BYTES && lost++ < 2 };
  bench.mustOpen();
  bench.disk.faults = {};
  assertEquals(lost, 2);
  for (let i = 0; i < 12; i++) bench.write(1, 0, 0, [100 + i, 200 + i, 300 + i, 400 + i]);
  assertEquals(bench.sync(), 0);
  const after = new Bench(0, killed(bench), new Prng(10), SMALL);
  assertEquals(after.open()?.code, "DAMAGED");
  // Whoever accepts that gets what is there, and is told.
  let told = 0;
  const accepted = new Bench(0, killed(bench), new Prng(10), SMALL);
  assertEquals(accepted.open({ acceptDamage: true, mayHaveLost: () => told++ }), null);
  assertEquals(told, 1);
  assertEquals(accepted.read([1], 0, 0, 4), [111, 211, 311, 411]);
});

Deno.test("a checkpoint's superblock that the disk loses leaves no old content that counts", () => {
  let refused = 0;
  for (let seed = 1; seed <= 300; seed++) {
    const bench = make(seed, BUSY);
    const writes = new Writes(new Prng(seed));
    const which = writes.random.between(2, 5);
    const more = writes.random.between(1, 60);
    let superblocks = 0, since = -1;
    bench.disk.faults = {
      loses: (offset) => {
        if (offset >= SEGMENTS_OFFSET_BYTES || ++superblocks !== which) return false;
        since = 0;
        return true;
      },
    };
    for (let i = 0; i < 2000 && superblocks <= which && since < more; i++) {
      writes.one(bench);
      if (since >= 0) since++;
    }
    assertEquals(bench.sync(), 0);
    bench.until(() => bench.store.idle, "rest");
    // The one after it says what it would have said.
    if (superblocks > which) continue;
    const after = new Bench(0, killed(bench), new Prng(10), BUSY);
    const error = after.open();
    if (error === null) assertEquals(writes.wrong(after), 0, `seed ${seed}`);
    else if (error.code === "DAMAGED") refused++;
    else throw error;
  }
  assert(refused > 0, "none was refused");
});

Deno.test("a frame of a checkpoint that was cut off is not taken for one of the next, where the disk loses that one's", () => {
  let losses = 0;
  for (let seed = 1; seed <= 40; seed++) {
    const bench = make(seed, BUSY);
    const writes = new Writes(new Prng(seed));
    const isFrame = (bytes: Uint8Array, kind?: number) => {
      const [magic, is] = new Uint32Array(bytes.slice(0, 8).buffer);
      return magic === FRAME_MAGIC && (kind === undefined || is === kind);
    };
    const { taken } = bench.store.stats().checkpoint;
    const at = taken + writes.random.between(1, 3);
    const isDue = () => bench.store.stats().checkpoint.taken === at;
    let frames = 0;
    const write = bench.disk.write.bind(bench.disk);
    bench.disk.write = (token, offset, vector) => {
      const [from] = vector.offsets;
      if (isDue() && isFrame(bench.window.bytes.subarray(from, from + 8))) frames++;
      write(token, offset, vector);
    };
    for (let i = 0; i < 3000 && !(frames >= 2 && isDue()); i++) {
      writes.one(bench);
      assertEquals(bench.sync(), 0);
    }
    if (frames < 2) continue;
    const second = new Bench(0, killed(bench), new Prng(10), BUSY);
    let isLost = false;
    second.disk.faults = {
      loses: (_, data) => !isLost && isFrame(data, FRAME_INDEX) && (isLost = true),
    };
    second.mustOpen();
    second.disk.faults = {};
    if (isLost) losses++;
    assertEquals(writes.wrong(second), 0);
    const third = new Bench(0, killed(second), new Prng(12), BUSY);
    const error = third.open();
    if (error === null) assertEquals(writes.wrong(third), 0, `seed ${seed}`);
    else assertEquals(error.code, "DAMAGED");
  }
  assert(losses > 10, `${losses} lost frames`);
});

Deno.test("records behind a header that has rotted are there, and whoever opens the store hears of it", () => {
  const bench = make(1);
  bench.write(1, 0, 0, [1, 2, 3, 4]);
  assertEquals(bench.close(), null);
  bench.mustOpen();
  const stamps = Array.from({ length: 7 }, (_, i) => 100 + i);
  for (const [block, stamp] of stamps.entries()) bench.write(1, 0, block, [stamp]);
  assertEquals(bench.sync(), 0);
  const disk = killed(bench);
  disk.flipBit(SEGMENTS_OFFSET_BYTES + 100);
  const after = new Bench(0, disk, new Prng(10), SMALL);
  let told = 0;
  assertEquals(after.open({ mayHaveLost: () => told++ }), null);
  assertEquals(told, 1);
  assertEquals(after.read([1], 0, 0, 7), stamps);
  // The log goes on elsewhere, and what it has from then on is there after another end.
  after.write(1, 0, 0, [200]);
  assertEquals(after.sync(), 0);
  const again = new Bench(0, killed(after), new Prng(11), SMALL);
  again.mustOpen();
  assertEquals(again.read([1], 0, 0, 7), [200, ...stamps.slice(1)]);
});
