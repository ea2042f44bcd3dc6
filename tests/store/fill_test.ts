/**
 * Fills: what they write and what they leave alone, what they make of stamps, and that older programs keep away.
 *
 * The crash scenarios have fills in their workloads, too (`everyFill`).
 *
 * @module
 */
import { assert, assertEquals } from "@std/assert/mod.js";
import { Prng } from "../../agent/base/prng.ts";
import { FORMAT_ABSORB, FORMAT_BASE } from "../../agent/store/format.ts";
import { OperationKind } from "../../agent/store/operation.ts";
import { Bench, makeDisk, type Shape, SMALL } from "./harness.ts";
import { ABSENT, UNKNOWN } from "./model.ts";

const EINVAL = 22;
const EBADMSG = 74;
const { Write, Free, Zero, Fill } = {
  Write: OperationKind.Write,
  Free: OperationKind.Free,
  Zero: OperationKind.Zero,
  Fill: OperationKind.Fill,
};

function open(shape: Shape = SMALL): Bench {
  const random = new Prng(1);
  const bench = new Bench(0, makeDisk(0, random.fork(), shape), random.fork(), shape);
  bench.format();
  bench.mustOpen();
  for (const layer of [1, 2]) bench.createLayer(layer);
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

Deno.test("a fill writes holes, and nothing else: data, zeros and damage stay", () => {
  let bench = open();
  bench.run(Write, [2], 7, 4, 8, numbers(200, 8), { generation: 2, sequence: 1 });
  bench.run(Zero, [2], 7, 14, 2, [], { generation: 2, sequence: 2 });
  assertEquals(bench.run(Fill, [2], 7, 0, 24, numbers(100, 24)).result, 0);
  const expected = [...numbers(100, 4), ...numbers(200, 8), 112, 113, 0, 0, ...numbers(116, 8)];
  for (const how of ["now", "after a crash"]) {
    assertEquals([bench.content(2, 7, 24), bench.stampOf(2, 7)], [expected, "2.2"], how);
    assertEquals(bench.store.layerBytes(2), 22 * 4096, how);
    bench.sync();
    bench = crashed(bench);
  }
  // What was freed is a hole again, and what is written again is the writer's.
  bench.run(Free, [2], 7, 5, 1, [], { generation: 2, sequence: 3 });
  bench.run(Fill, [2], 7, 5, 2, [300, 301]);
  bench.run(Write, [2], 7, 5, 1, [400], { generation: 2, sequence: 4 });
  assertEquals(bench.content(2, 7, 8).slice(4), [200, 400, 202, 203]);
});

Deno.test("only a chunk that held nothing gets a fill's stamp", () => {
  const bench = open();
  const stamp = { generation: 1, sequence: 9 };
  bench.run(Fill, [2], 0, 0, 1, [10], stamp);
  assertEquals(bench.stampOf(2, 0), "1.9");
  bench.run(Fill, [2], 0, 1, 1, [11], { generation: 3, sequence: 1 });
  assertEquals(bench.stampOf(2, 0), "1.9", "it held something");
  bench.run(Fill, [2], 1, 0, 1, [12]);
  bench.run(Fill, [2], 1, 1, 1, [13], stamp);
  assertEquals(bench.stampOf(2, 1), UNKNOWN, "it held something that nobody knows");
  bench.run(Free, [2], 3, 0, 1, [], { generation: 2, sequence: 2 });
  bench.run(Fill, [2], 3, 0, 1, [14], stamp);
  assertEquals(bench.stampOf(2, 3), "2.2", "it had a stamp");
  assertEquals(bench.run(Fill, [2], 4, 0, 1, [15], { generation: 0, sequence: 5 }).result, -EINVAL);
  assertEquals(bench.run(Fill, [9], 4, 0, 1, [15]).result, -EINVAL);
  assertEquals(bench.run(Fill, [2], 4, 1020, 8, numbers(1, 8)).result, -EINVAL);
  assertEquals(bench.content(2, 4, 1), [ABSENT]);
});

Deno.test("a fill of nothing gives its stamp to a chunk that held nothing, and takes no space", () => {
  let bench = open();
  const stamp = { generation: 2, sequence: 9 };
  bench.run(Write, [2], 1, 0, 1, [10], { generation: 3, sequence: 1 });
  bench.run(Write, [2], 2, 0, 1, [11]);
  bench.run(Free, [2], 3, 0, 1, [], { generation: 1, sequence: 1 });
  const before = bench.store.layerBytes(2);
  for (const chunk of [0, 1, 2, 3]) {
    assertEquals(bench.run(Fill, [2], chunk, 0, 0, [], stamp).result, 0);
  }
  // What is given later counts, as it does after any other stamp.
  bench.run(Fill, [2], 4, 0, 0, [], stamp);
  bench.run(Write, [2], 4, 0, 1, [12], { generation: 2, sequence: 10 });
  for (const how of ["now", "after a crash"]) {
    const stamps = [0, 1, 2, 3, 4].map((chunk) => bench.stampOf(2, chunk));
    assertEquals(stamps, ["2.9", "3.1", UNKNOWN, "1.1", "2.10"], how);
    assertEquals(bench.content(2, 0, 1), [ABSENT], how);
    assertEquals(bench.store.layerBytes(2), before + 4096, how);
    bench.sync();
    bench = crashed(bench);
  }
  assertEquals(bench.run(Fill, [2], 5, 0, 0, []).result, -EINVAL, "it would say nothing");
  assertEquals(bench.run(Write, [2], 5, 0, 0, [], stamp).result, -EINVAL);
});

Deno.test("a block that is damaged is no hole", () => {
  const bench = open();
  bench.run(Write, [2], 0, 0, 1, [10]);
  bench.sync();
  for (let at = 1024 * 1024; at < bench.disk.sizeBytesMax; at += 4096) {
    if (new DataView(bench.disk.peek(at, 4).buffer).getUint32(0, true) === 10) {
      bench.disk.flipBit(at + 1000);
    }
  }
  bench.run(Fill, [2], 0, 0, 1, [11]);
  assertEquals(bench.run(OperationKind.Read, [2], 0, 0, 1).result, -EBADMSG);
});

Deno.test("the first fill keeps older programs away, before it is in the log", () => {
  const bench = open();
  const format = () =>
    Math.max(
      ...[0, 512 * 1024].map((offset) =>
        new DataView(bench.disk.peek(offset, 16).buffer).getUint32(12, true)
      ),
    );
  bench.write(2, 0, 0, [1]);
  bench.sync();
  assertEquals(format(), FORMAT_BASE);
  bench.run(Fill, [2], 0, 1, 1, [2]);
  assertEquals(format(), FORMAT_ABSORB);
});

Deno.test("there is room for copies until a sixteenth is left", () => {
  const bench = open();
  const usable = bench.store.stats().usableBytes;
  const most = Math.floor(usable * 15 / 16);
  assert(bench.store.hasRoom(2, 0, most - 4096));
  assert(!bench.store.hasRoom(2, 0, most + 4096));
  bench.write(2, 0, 0, numbers(1, 16));
  assert(!bench.store.hasRoom(2, 0, most - 4096));
});

Deno.test("a fill is these bytes in the log, for ever", () => {
  const bench = open();
  bench.run(Fill, [2], 7, 5, 2, [101, 102], { generation: 3, sequence: 4 });
  bench.run(Fill, [2], 8, 0, 0, [], { generation: 3, sequence: 4 });
  const found: string[] = [];
  for (let at = 1024 * 1024; at < bench.disk.sizeBytesMax; at += 4096) {
    const block = bench.disk.peek(at, 96);
    const head = new DataView(block.buffer);
    if (head.getUint32(0, true) !== 0x4345524b || head.getUint8(64) !== 12) continue;
    found.push(`${head.getUint16(4, true)} ${block.slice(64, 96).toHex()}`);
  }
  // Version 3; kind, flags, block, count, layer, chunk, generation, from, sequence.
  const entry = "0c000500" + "02000000" + "02000000" + "07000000" + "03000000" + "00000000" +
    "0400000000000000";
  const ofNothing = "0c000000" + "00000000" + "02000000" + "08000000" + "03000000" + "00000000" +
    "0400000000000000";
  assertEquals(found, [`3 ${entry}`, `3 ${ofNothing}`]);
});
