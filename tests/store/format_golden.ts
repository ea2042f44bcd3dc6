/**
 * The golden stores of each format: made once, read for ever.
 *
 *     deno run -A tests/store/format_golden.ts      makes those that are missing; never overwrites one
 *
 * Each file is the store's disk, gzipped: superblocks, log, checkpoint, as a clean stop and as a
 * crash leave them. A new format adds files, made by the code that first wrote it; those of older
 * ones cannot be made again.
 *
 * @module
 */
import { gunzipSync, gzipSync } from "node:zlib";
import { Prng } from "../../agent/base/prng.ts";
import { SimulatedDisk } from "../../agent/platform/simulated/disk.ts";
import { OperationKind } from "../../agent/store/operation.ts";
import { Bench, makeDisk, type Shape, SMALL } from "./harness.ts";
import { ABSENT } from "./model.ts";

/** Shape of the golden stores: never to be changed. */
export const GOLDEN_SHAPE: Shape = { ...SMALL, segmentBytes: 128 * 1024, segments: 24 };

/** Names of the files in `golden/`, in which format each is and how it was left. */
export const GOLDEN: Record<string, { format: number; how: "clean" | "crashed" }> = {
  "format_1_clean.gz": { format: 1, how: "clean" },
  "format_1_crashed.gz": { format: 1, how: "crashed" },
  "format_2_clean.gz": { format: 2, how: "clean" },
  "format_2_crashed.gz": { format: 2, how: "crashed" },
  "format_3_clean.gz": { format: 3, how: "clean" },
  "format_3_crashed.gz": { format: 3, how: "crashed" },
  // With the lives of segments in the checkpoint.
  "format_3_lives_clean.gz": { format: 3, how: "clean" },
  "format_3_lives_crashed.gz": { format: 3, how: "crashed" },
};

function pathOf(name: string): URL {
  return new URL(`golden/${name}`, import.meta.url);
}

function stamps(first: number, count: number): number[] {
  return Array.from({ length: count }, (_, i) => first + i);
}

/** Opens a golden store. */
export function openGolden(name: string): Bench {
  const image = new Uint8Array(gunzipSync(Deno.readFileSync(pathOf(name))));
  const empty = makeDisk(0, new Prng(1), GOLDEN_SHAPE);
  const bench = new Bench(0, empty, new Prng(2), GOLDEN_SHAPE);
  empty.poke(0, image);
  bench.isPlain = true;
  bench.mustOpen();
  return bench;
}

/** What is in a golden store of a format. */
export function verifyGolden(bench: Bench, format: number): void {
  const expect = (what: string, is: unknown, should: unknown) => {
    if (JSON.stringify(is) !== JSON.stringify(should)) {
      throw new Error(`${what}: ${JSON.stringify(is)} instead of ${JSON.stringify(should)}`);
    }
  };
  expect("layers", bench.store.layers(), format < 3 ? [1, 3] : [1, 3, 6, 7]);
  if (format >= 3) {
    expect("absorbed", bench.content(6, 9, 6), [2000, 2100, 0, 2003, ABSENT, ABSENT]);
    expect("absorbed later", bench.content(7, 9, 6), [ABSENT, ABSENT, 2302, 0, 2304, ABSENT]);
    expect("what absorbed got the stamp", bench.stampOf(7, 10), "9.1");
    expect("counts", [6, 7].map((id) => bench.store.layerBytes(id) / 4096), [3, 3]);
  }
  expect("a run, partly overwritten", bench.read([1], 0, 0, 24), [
    ...stamps(100, 5),
    ...stamps(500, 2),
    ...stamps(107, 17),
  ]);
  expect("zeros and holes", bench.read([3, 1], 0, 0, 6), [100, 0, 0, 103, 700, 500]);
  expect("freed", bench.read([1], 1_000_000_000, 1000, 24), [
    ...stamps(800, 8),
    ...new Array(16).fill(0),
  ]);
  expect("META", new TextDecoder().decode(bench.store.getMeta("name")!), "a value");
  expect("long META", bench.store.getMeta("long")!.length, 9000);
  expect("removed META", bench.store.getMeta("gone"), null);
  expect(
    "stamps",
    [[1, 0], [1, 1_000_000_000], [3, 0], [3, 9], [1, 3]].map(([layer, chunk]) =>
      bench.stampOf(layer, chunk)
    ),
    format === 1
      ? new Array(5).fill("unknown")
      : ["1.2", "unknown", "2.9007199254740991", "7.8", "1.5"],
  );
  expect("identity", [...bench.store.identity.nodeId], new Array(16).fill(1));
}

/** Makes a golden store. */
function make(how: "clean" | "crashed"): Uint8Array {
  const absorb = (into: number, from: number, chunk: number) => {
    if (bench.run(OperationKind.Absorb, [into, from], chunk, 0, 1).result < 0) {
      throw new Error("absorb");
    }
  };
  const stamp = { generation: 9, sequence: 1 };
  const bench = new Bench(0, makeDisk(0, new Prng(5), GOLDEN_SHAPE), new Prng(6), GOLDEN_SHAPE);
  const meta = (key: string, value: Uint8Array | null) => {
    const error = bench.call("meta", (done) => bench.store.setMeta(key, value, done));
    if (error) throw error;
  };
  bench.isPlain = true;
  bench.format();
  bench.mustOpen();
  for (const id of [1, 2, 3]) bench.createLayer(id);
  bench.write(1, 0, 0, stamps(100, 24));
  bench.run(OperationKind.Write, [1], 0, 5, 2, stamps(500, 2), { generation: 1, sequence: 2 });
  bench.write(2, 0, 0, stamps(600, 4));
  bench.run(OperationKind.Write, [1], 1_000_000_000, 1000, 24, stamps(800, 24), {
    generation: 1,
    sequence: 3,
  });
  bench.run(OperationKind.Free, [1], 1_000_000_000, 1008, 16, [], {
    generation: 1,
    sequence: 4,
    unknown: true,
  });
  bench.run(OperationKind.Zero, [1], 3, 8, 16, [], { generation: 1, sequence: 5 });
  meta("gone", new Uint8Array(3));
  // Before the checkpoint…
  for (const id of [4, 5, 6, 7]) bench.createLayer(id);
  bench.write(5, 9, 0, stamps(2000, 4));
  bench.run(OperationKind.Zero, [5], 9, 2, 1);
  bench.write(6, 9, 1, [2100]);
  absorb(6, 5, 9);
  bench.call("delete", (done) => bench.store.deleteLayer(5, done));
  bench.run(OperationKind.Write, [4], 10, 0, 1, [2400], stamp);
  bench.write(4, 9, 2, stamps(2302, 3));
  // Enough for a checkpoint in the midst.
  for (let i = 0; i < 20; i++) bench.write(2, 5, i, stamps(1000 + 20 * i, 20));
  bench.call("delete", (done) => bench.store.deleteLayer(2, done));
  // …and after it.
  bench.run(OperationKind.Zero, [7], 9, 3, 1);
  for (const chunk of [9, 10]) absorb(7, 4, chunk);
  bench.call("delete", (done) => bench.store.deleteLayer(4, done));
  bench.run(OperationKind.Zero, [3], 0, 1, 2);
  bench.run(OperationKind.Write, [3], 0, 4, 1, [700], {
    generation: 2,
    sequence: 2 ** 53 - 1,
  });
  bench.run(OperationKind.Stamp, [3], 9, 0, 1, [], { generation: 7, sequence: 8 });
  meta("name", new TextEncoder().encode("a value"));
  meta("long", new Uint8Array(9000).fill(7));
  meta("gone", null);
  bench.sync();
  bench.until(() => bench.store.idle, "rest");
  if (bench.store.stats().checkpoint.id === 0) throw new Error("no checkpoint was taken");
  if (how === "clean") {
    const error = bench.close();
    if (error) throw error;
  }
  const disk: SimulatedDisk = bench.disk;
  return disk.peek(0, disk.sizeBytesMax);
}

if (import.meta.main) {
  Deno.mkdirSync(new URL("golden/", import.meta.url), { recursive: true });
  for (const [name, { how }] of Object.entries(GOLDEN)) {
    try {
      Deno.statSync(pathOf(name));
      console.error(`${name} is there already: a golden file is made once`);
    } catch {
      Deno.writeFileSync(pathOf(name), gzipSync(make(how), { level: 9 }), { createNew: true });
      console.error(`${name} made`);
    }
  }
}
