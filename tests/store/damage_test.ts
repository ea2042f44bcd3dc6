/**
 * Damage is found, named and refused; it is never returned as data.
 *
 * @module
 */
import { assert, assertEquals, assertStringIncludes } from "@std/assert/mod.js";
import { Prng } from "../../agent/base/prng.ts";
import type { SimulatedDisk } from "../../agent/platform/simulated/disk.ts";
import { type Damage, DAMAGE_MAX, DamageList } from "../../agent/store/core.ts";
import { FORMAT_VERSION } from "../../agent/store/format.ts";
import { OperationKind } from "../../agent/store/operation.ts";
import { Bench, HOST, makeDisk, type Shape, SMALL } from "./harness.ts";

const EIO = 5, EBADMSG = 74;
const RECORD_MAGIC = "KREC", SEGMENT_MAGIC = "KELPIESG", FRAME_MAGIC = "KCKP";

function open(shape: Shape = SMALL): Bench {
  const random = new Prng(1);
  const bench = new Bench(0, makeDisk(0, random.fork(), shape), random.fork(), shape);
  bench.format();
  bench.mustOpen();
  bench.createLayer(1);
  return bench;
}

/** Another store object on what the disk holds now, not opened yet. */
function another(bench: Bench): Bench {
  const disk = bench.disk.crash(new Prng(9), bench.window.bytes, {
    keep: 1,
    lose: 0,
    reorder: false,
  });
  return new Bench(0, disk, new Prng(10), bench.shape);
}

function stamps(first: number, count: number): number[] {
  return Array.from({ length: count }, (_, i) => first + i);
}

/** Byte offsets of the blocks that begin with `words`. */
function blocksWith(disk: SimulatedDisk, isIt: (head: DataView) => boolean): number[] {
  const found: number[] = [];
  for (let at = 0; at < disk.sizeBytesMax; at += 4096) {
    if (isIt(new DataView(disk.peek(at, 64).buffer))) found.push(at);
  }
  return found;
}

function dataOf(disk: SimulatedDisk, stamp: number): number {
  const found = blocksWith(
    disk,
    (head) =>
      head.getUint32(0, true) === stamp && head.getUint32(4, true) === (stamp ^ 0x01000193) >>> 0,
  );
  return found[found.length - 1];
}

function withMagic(disk: SimulatedDisk, magic: string): number[] {
  return blocksWith(
    disk,
    (head) => [...magic].every((letter, i) => head.getUint8(i) === letter.charCodeAt(0)),
  );
}

/** Offset of the header of the record with this lsn. */
function recordOf(disk: SimulatedDisk, lsn: number): number {
  return withMagic(disk, RECORD_MAGIC).find((at) =>
    new DataView(disk.peek(at, 64).buffer).getUint32(32, true) === lsn
  )!;
}

/** Lets the store become idle, so that it has noted what is durable. */
function rest(bench: Bench): void {
  bench.until(() => bench.store.idle, "rest");
}

for (const [name, count] of [["direct", 2], ["positional", 16]] as const) {
  Deno.test(`a flipped bit costs its block and no other (${name} checksums)`, () => {
    const bench = open();
    bench.write(1, 0, 10, stamps(100, count));
    bench.disk.flipBit(dataOf(bench.disk, 101) + 3000, 5);
    const read = bench.run(OperationKind.Read, [1], 0, 10, count);
    assertEquals([read.result, read.badBlock], [-EBADMSG, 11]);
    assertEquals(bench.read([1], 0, 10, 1), [100]);
    assertEquals(bench.read([1], 0, 11, 1), -EBADMSG);
    if (count > 2) assertEquals(bench.read([1], 0, 12, count - 2), stamps(102, count - 2));
    const { damage, damageCount } = bench.store.stats();
    assertEquals(damageCount, 1);
    assertEquals([damage[0].layer, damage[0].chunk, damage[0].block], [1, 0, 11]);
    const known = () => [10, 11].map((block) => bench.store.isDamaged(1, 0, block));
    assertEquals(known(), [false, true]);
    bench.write(1, 0, 11, [555]);
    assertEquals(bench.read([1], 0, 10, 2), [100, 555]);
    assertEquals(bench.store.stats().damage, [], "overwritten, it is no longer damaged");
    assertEquals(known(), [false, false]);
  });
}

Deno.test("a damaged checksum costs its block and no other, though the header does not match any more", () => {
  let bench = open();
  bench.write(1, 0, 0, stamps(100, 16));
  bench.close();
  bench = another(bench);
  // Header 64, entry 32, then the checksums.
  const header = dataOf(bench.disk, 100) - 4096;
  bench.disk.flipBit(header + 64 + 32 + 4 * 5);
  bench.mustOpen();
  assertEquals(bench.read([1], 0, 5, 1), -EBADMSG);
  assertEquals(bench.read([1], 0, 0, 5), stamps(100, 5));
  assertEquals(bench.read([1], 0, 6, 10), stamps(106, 10));
});

Deno.test("what cannot be read at first is read once more", () => {
  const bench = open();
  bench.write(1, 0, 0, stamps(100, 3));
  let failures = 1;
  bench.disk.faults = { fail: (kind) => kind === "read" && failures-- > 0 ? -EIO : 0 };
  assertEquals(bench.read([1], 0, 0, 3), stamps(100, 3));
  failures = 100;
  assertEquals(bench.read([1], 0, 0, 3), -EIO);
  failures = 0;
  assertEquals(bench.read([1], 0, 0, 3), stamps(100, 3));
  // That it can be read again is found by the scrub, which looks at everything.
  assertEquals(bench.store.stats().damage.length > 0, true);
  let isDone = false;
  bench.store.scrubNow(null, () => true, () => isDone = true);
  bench.until(() => isDone, "a scrub");
  assertEquals(bench.store.stats().damage, []);
});

Deno.test("checksums that cannot be read make their blocks fail, not others", () => {
  let bench = open();
  bench.write(1, 0, 0, stamps(100, 8));
  bench.write(1, 0, 20, [300]);
  bench.close();
  bench = another(bench);
  bench.mustOpen();
  const header = dataOf(bench.disk, 100) - 4096;
  bench.disk.faults = { fail: (kind, offset) => kind === "read" && offset === header ? -EIO : 0 };
  assertEquals(bench.read([1], 0, 0, 8), -EIO);
  assertEquals(bench.read([1], 0, 20, 1), [300]);
});

Deno.test("close() waits for checksums that nobody waits for any more", () => {
  for (let seed = 1; seed <= 150; seed++) {
    const first = open();
    first.write(1, 0, 0, stamps(100, 8));
    first.close();
    const options = { keep: 1, lose: 0, reorder: false };
    const disk = first.disk.crash(new Prng(seed), first.window.bytes, options);
    const bench = new Bench(0, disk, new Prng(10), SMALL);
    bench.mustOpen();
    bench.store.endTurn();
    rest(bench);
    const data = dataOf(disk, 100);
    disk.faults = { fail: (kind, offset) => kind === "read" && offset >= data ? -EIO : 0 };
    assertEquals(bench.run(OperationKind.Read, [1], 0, 0, 1).result, -EIO);
    assertEquals(bench.close(), null);
    while (disk.pump());
  }
});

Deno.test("a damaged record that had been made durable is refused, unless the damage is accepted", () => {
  let bench = open();
  bench.write(1, 0, 0, [100]);
  bench.sync();
  const { lsn } = bench.store.stats();
  bench.write(1, 0, 1, [200]);
  bench.sync();
  rest(bench);
  bench = another(bench);
  bench.disk.flipBit(recordOf(bench.disk, lsn) + 70);
  const error = bench.open();
  assertEquals(error?.code, "DAMAGED");
  assertStringIncludes(error!.message, `record ${lsn}`);
  let losses = 0;
  assertEquals(bench.open({ acceptDamage: true, mayHaveLost: () => losses++ }), null);
  assertEquals(losses, 1);
  assertEquals(bench.store.stats().damage[0].what, "record");
  assertEquals(bench.read([1], 0, 0, 2), [0, 200], "what comes after it is kept");
  bench = another(bench);
  assertEquals(bench.open(), null, "once accepted, it is over");
});

Deno.test("once damage was accepted no stamp is believed: nobody knows what is missing", () => {
  let bench = open();
  const write = (chunk: number, sequence: number) =>
    bench.run(OperationKind.Write, [1], chunk, 0, 1, [100], { generation: 1, sequence });
  write(0, 1);
  bench.sync();
  const { lsn } = bench.store.stats();
  write(1, 2);
  write(0, 3);
  bench.sync();
  rest(bench);
  bench = another(bench);
  bench.disk.flipBit(recordOf(bench.disk, lsn) + 70);
  assertEquals(bench.open({ acceptDamage: true }), null);
  assertEquals(bench.store.stats().stampedChunks, 0);
  write(1, 4);
  bench.sync();
  bench = another(bench);
  assertEquals(bench.open(), null);
  assertEquals([bench.stampOf(1, 0), bench.stampOf(1, 1)], ["unknown", "1.4"]);
});

Deno.test("META that had been made durable and is damaged is refused, not passed over", () => {
  let bench = open();
  const set = (text: string) =>
    bench.call("meta", (done) => bench.store.setMeta("key", new TextEncoder().encode(text), done));
  assertEquals([set("a value that stays"), set("a value that rots")], [null, null]);
  rest(bench);
  bench = another(bench);
  const value = [...new TextEncoder().encode("a value that rots")];
  let places = 0;
  for (let at = 1024 * 1024; at < bench.disk.sizeBytesMax; at += 4096) {
    // Behind the item's head and the key.
    const bytes = bench.disk.peek(at + 11, value.length);
    if (value.some((byte, i) => byte !== bytes[i])) continue;
    bench.disk.flipBit(at + 15, 2);
    places++;
  }
  assertEquals(places, 1);
  const error = bench.open();
  assertEquals(error?.code, "DAMAGED");
  assertStringIncludes(error!.message, "values");
  assertEquals(bench.open({ acceptDamage: true }), null);
  assertEquals(new TextDecoder().decode(bench.store.getMeta("key")!), "a value that stays");
  assertEquals(bench.store.stats().damage[0].what, "record");
});

Deno.test("damage that was healed makes room in the list for what is found later", () => {
  const list = new DamageList();
  const at = (block: number): Damage => ({
    what: "block",
    layer: 1,
    chunk: 0,
    block,
    offsetBytes: 0,
    message: "",
  });
  for (let block = 0; block < DAMAGE_MAX + 3; block++) list.add(at(block));
  assertEquals([list.list.length, list.count, list.unlisted], [DAMAGE_MAX, DAMAGE_MAX + 3, 3]);
  list.prune(({ block }) => block >= 200);
  assertEquals([list.list.length, list.count, list.unlisted], [
    DAMAGE_MAX - 200,
    DAMAGE_MAX + 3,
    3,
  ]);
  assert(list.add(at(5)) && !list.add(at(230)));
});

Deno.test("the last record before a pause is known to be durable, too", () => {
  let bench = open();
  bench.write(1, 0, 0, [100]);
  bench.sync();
  const { lsn } = bench.store.stats();
  rest(bench);
  bench = another(bench);
  bench.disk.flipBit(recordOf(bench.disk, lsn) + 33);
  assertEquals(bench.open()?.code, "DAMAGED");
});

Deno.test("a damaged segment header is refused like a damaged record", () => {
  // The replay does not begin in that very segment.
  let bench = open({
    ...SMALL,
    segments: 80,
    tunables: { ...SMALL.tunables, checkpointLogBytes: 2 ** 26 },
  });
  for (let i = 0; i < 12; i++) bench.write(1, 0, 0, stamps(100 + 20 * i, 20));
  bench.sync();
  rest(bench);
  bench = another(bench);
  // The newest of the log: kind 1, highest sequence.
  const headers = withMagic(bench.disk, SEGMENT_MAGIC)
    .map((at) => ({ at, head: new DataView(bench.disk.peek(at, 64).buffer) }))
    .filter(({ head }) => head.getUint32(12, true) === 1)
    .sort((a, b) => Number(b.head.getBigUint64(32, true) - a.head.getBigUint64(32, true)));
  bench.disk.flipBit(headers[0].at + 48);
  assertEquals(bench.open()?.code, "DAMAGED");
  assertEquals(bench.open({ acceptDamage: true }), null);
});

Deno.test("a header that does not match where nothing was known to be durable ends the log without a word", () => {
  let bench = open();
  bench.write(1, 0, 0, [100]);
  bench.sync();
  bench.write(1, 0, 0, [200]);
  const { lsn } = bench.store.stats();
  bench.write(1, 0, 1, [201]);
  bench = another(bench);
  bench.disk.flipBit(recordOf(bench.disk, lsn) + 70);
  assertEquals(bench.open(), null);
  assertEquals(bench.warnings, []);
  assertEquals(bench.read([1], 0, 0, 2), [100, 0], "and what came after it");
});

const write = (bench: Bench, chunk: number, block: number, values: number[], sequence: number) =>
  bench.run(OperationKind.Write, [1], chunk, block, values.length, values, {
    generation: 1,
    sequence,
  });
const setMeta = (bench: Bench, text: string) =>
  bench.call("meta", (done) => bench.store.setMeta("key", new TextEncoder().encode(text), done));
const metaOf = (bench: Bench) => new TextDecoder().decode(bench.store.getMeta("key")!);

Deno.test("a block that may have been torn is as it was before; all that lies behind it counts, but for its chunk's stamp", () => {
  let bench = open();
  write(bench, 0, 0, [100], 1);
  write(bench, 7, 0, [700], 2);
  bench.sync();
  write(bench, 0, 0, [200], 3);
  write(bench, 0, 1, [201], 4);
  write(bench, 7, 0, [701], 5);
  bench.run(OperationKind.Stamp, [1], 0, 0, 1, [], { generation: 1, sequence: 6 });
  setMeta(bench, "a promise");
  bench = another(bench);
  bench.disk.flipBit(dataOf(bench.disk, 200) + 9);
  assertEquals(bench.open(), null);
  assertEquals(bench.warnings, []);
  assertEquals(bench.read([1], 0, 0, 2), [100, 201]);
  assertEquals(bench.stampOf(1, 0), "unknown", "also behind what would have made it known");
  assertEquals(bench.read([1], 7, 0, 1), [701]);
  assertEquals(bench.stampOf(1, 7), "1.5");
  assertEquals(metaOf(bench), "a promise");
  // It is so for good, until somebody settles it.
  bench = another(bench);
  bench.mustOpen();
  assertEquals([bench.read([1], 0, 0, 2), bench.stampOf(1, 0)], [[100, 201], "unknown"]);
  write(bench, 0, 0, [202], 7);
  assertEquals([bench.read([1], 0, 0, 2), bench.stampOf(1, 0)], [[202, 201], "1.7"]);
});

Deno.test("META that shares the last record with a block that does not match is kept", () => {
  let bench = open();
  write(bench, 0, 0, [100], 1);
  bench.sync();
  const { records } = bench.store.stats();
  let isDone = false;
  bench.store.setMeta("key", new TextEncoder().encode("a promise"), () => isDone = true);
  const operation = bench.take(() => {})!;
  operation.kind = OperationKind.Write;
  operation.layers = [1];
  operation.chunk = operation.block = 0;
  operation.blockCount = 3;
  operation.generation = 1;
  operation.sequence = 2;
  bench.fill(operation, [200, 201, 202]);
  bench.store.submit(operation);
  bench.until(() => isDone, "meta");
  assertEquals(bench.store.stats().records, records + 1, "one record");
  bench = another(bench);
  bench.disk.flipBit(dataOf(bench.disk, 201) + 9);
  assertEquals(bench.open(), null);
  assertEquals(metaOf(bench), "a promise");
  assertEquals(bench.read([1], 0, 0, 3), [200, 0, 202], "the rest of the write counts");
  assertEquals(bench.stampOf(1, 0), "unknown");
});

Deno.test("META that does not match where nothing was known to be durable ends the log", () => {
  let bench = open();
  setMeta(bench, "what was there");
  write(bench, 0, 0, [100], 1);
  bench.sync();
  const { lsn } = bench.store.stats();
  // The write's record is on its way before META is durable: it cannot say that it is.
  bench.store.setMeta("key", new TextEncoder().encode("what is torn"), () => {});
  bench.store.endTurn();
  write(bench, 0, 0, [200], 2);
  bench = another(bench);
  // Behind the header, the item's head and the key.
  bench.disk.flipBit(recordOf(bench.disk, lsn + 1) + 4096 + 15);
  assertEquals(bench.open(), null);
  assertEquals(metaOf(bench), "what was there");
  assertEquals([bench.read([1], 0, 0, 1), bench.stampOf(1, 0)], [[100], "1.1"]);
});

Deno.test("once a store has been idle for a moment, a block that does not match is damage", () => {
  let bench = open();
  write(bench, 0, 0, [100], 1);
  bench.sync();
  write(bench, 0, 0, [200], 2);
  bench.sync();
  rest(bench);
  bench = another(bench);
  bench.disk.flipBit(dataOf(bench.disk, 200) + 9);
  assertEquals(bench.open(), null);
  assertEquals([bench.read([1], 0, 0, 1), bench.stampOf(1, 0)], [-EBADMSG, "1.2"]);
});

Deno.test("what is believed again because its successor has rotted is not written over", () => {
  const shape = { ...SMALL, tunables: { ...SMALL.tunables, checkpointLogBytes: 64 * 1024 * 1024 } };
  let bench = open(shape);
  const { segmentBytes } = shape;
  const segmentOf = (at: number) => Math.floor((at - 1024 * 1024) / segmentBytes);
  let next = 1000;
  const fill = () => bench.write(1, 5000, 0, [++next]);
  /** Where the record written last lies, and what follows it. */
  const head = () => {
    const at = dataOf(bench.disk, next);
    return { segment: segmentOf(at), end: (at + 4096) % segmentBytes || segmentBytes };
  };
  // Alone in its segment but for garbage, and not part of what is replayed.
  bench.write(1, 0, 0, [100]);
  const old = segmentOf(dataOf(bench.disk, 100));
  do fill(); while (head().segment === old);
  bench.close();
  bench = another(bench);
  bench.mustOpen();
  // Its successor is the last that fits a segment. Once that is durable, the old place is free: the segment that is opened
  // then names it as the next one.
  do fill(); while (head().end < segmentBytes - 4 * 4096);
  bench.write(1, 0, 0, [200]);
  const last = segmentOf(dataOf(bench.disk, 200));
  bench.sync();
  bench.store.tick(bench.nowMs += 100);
  fill();
  const opened = head().segment;
  assert(opened !== last, "a new segment");
  const header = new DataView(bench.disk.peek(1024 * 1024 + opened * segmentBytes, 64).buffer);
  assertEquals(header.getUint32(40, true), old);
  // The successor rots, and nothing behind it has reached the disk but the header of that segment.
  bench = another(bench);
  bench.disk.poke(1024 * 1024 + opened * segmentBytes + 4096, new Uint8Array(segmentBytes - 4096));
  bench.disk.flipBit(dataOf(bench.disk, 200) + 9);
  bench.mustOpen();
  assertEquals(bench.read([1], 0, 0, 1), [100]);
  for (let i = 0; i < 200; i++) fill();
  assertEquals(bench.read([1], 0, 0, 1), [100]);
});

Deno.test("either superblock alone will do after a clean stop of an old store", () => {
  for (const slot of [0, 1]) {
    let bench = open();
    bench.write(1, 0, 0, [100]);
    bench.close();
    bench = another(bench);
    bench.mustOpen();
    bench.close();
    bench = another(bench);
    // The older of the two: what the newer one needs is all there.
    const newest = [0, 1].map((i) =>
      new DataView(bench.disk.peek(i * 512 * 1024 + 80, 8).buffer).getUint32(0, true)
    );
    const older = newest[0] < newest[1] ? 0 : 1;
    const hit = slot === 0 ? older : 1 - older;
    bench.disk.flipBit(hit * 512 * 1024 + 100);
    const error = bench.open();
    if (hit === older) {
      assertEquals(error, null);
      assertEquals(bench.warnings.length, 1);
    }
    if (error === null) assertEquals(bench.read([1], 0, 0, 1), [100]);
    else assertEquals(error.code, "DAMAGED");
  }
});

Deno.test("with both superblocks damaged the file is left alone", () => {
  let bench = open();
  bench.close();
  bench = another(bench);
  bench.disk.flipBit(90);
  bench.disk.flipBit(512 * 1024 + 90);
  const error = bench.open();
  assertEquals(error?.code, "NOT_A_STORE");
  assertEquals(bench.disk.counts.writes, 0);
});

Deno.test("a store of a newer format is refused by name and left alone", () => {
  let bench = open();
  bench.close();
  bench = another(bench);
  for (const offset of [0, 512 * 1024]) {
    const bytes = bench.disk.peek(offset, 4096);
    const at = 8 * 1024 * 1024;
    bytes[8] = bytes[12] = FORMAT_VERSION + 1;
    bytes.fill(0, 4092);
    bench.window.bytes.set(bytes, at);
    new DataView(bytes.buffer).setUint32(4092, bench.window.kernel.checksum(at, 4096), true);
    bench.disk.poke(offset, bytes);
  }
  const error = bench.open();
  assertEquals(error?.code, "NEWER_FORMAT");
  assertStringIncludes(error!.message, "upgrade");
  assertEquals(bench.disk.counts.writes, 0);
});

Deno.test("a damaged checkpoint leads back to the one before it, or to a refusal: never to old data", () => {
  const outcomes = new Set<string>();
  for (let rounds = 1; rounds <= 30; rounds++) {
    let bench = open();
    for (let i = 0; i < rounds; i++) {
      bench.write(1, 0, i % 5 * 16, stamps(1000 * (i + 1), 16));
      if (i % 3 === 0) bench.sync();
    }
    bench.sync();
    rest(bench);
    const { id } = bench.store.stats().checkpoint;
    bench = another(bench);
    const frames = withMagic(bench.disk, FRAME_MAGIC).filter((at) =>
      new DataView(bench.disk.peek(at, 64).buffer).getUint32(24, true) === id
    );
    if (frames.length === 0) continue;
    bench.disk.flipBit(frames[0] + 100);
    const error = bench.open();
    outcomes.add(error?.code ?? "opened");
    if (error !== null) continue;
    for (let place = 0; place < Math.min(5, rounds); place++) {
      const last = rounds - 1 - ((rounds - 1 - place) % 5);
      assertEquals(bench.read([1], 0, place * 16, 16), stamps(1000 * (last + 1), 16));
    }
  }
  assert(outcomes.has("DAMAGED") || outcomes.has("opened"), [...outcomes].join());
});

/** Overwrites other blocks until the block with this stamp has been moved by the cleaner. */
function churn(bench: Bench, isDone: () => boolean): void {
  const random = new Prng(3);
  for (let i = 0; i < 4000 && !isDone(); i++) {
    bench.write(1, 7, random.below(24) * 16, stamps(10_000_000 + i * 16, 16));
    if (i % 16 === 0) bench.sync();
  }
  assert(isDone(), "the cleaner has not come by");
}

Deno.test("the cleaner keeps damage known: a damaged block stays refused wherever it goes", () => {
  const shape = { ...SMALL, segments: 40 };
  let bench = open(shape);
  // Blocks that stay, spread over segments that will be mostly garbage.
  for (let i = 0; i < 8; i++) {
    bench.write(1, 0, i, [100 + i]);
    bench.write(1, 7, i * 16, stamps(5000 + 16 * i, 16));
  }
  bench.sync();
  const places = stamps(100, 8).map((stamp) => dataOf(bench.disk, stamp));
  bench.disk.flipBit(places[3] + 1234, 2);
  churn(bench, () => bench.store.stats().relocatedBlocks >= 8);
  bench.sync();
  for (let i = 0; i < 8; i++) {
    assertEquals(bench.read([1], 0, i, 1), i === 3 ? -EBADMSG : [100 + i]);
  }
  assertEquals(bench.store.stats().damageCount >= 1, true);
  for (let restart = 0; restart < 2; restart++) {
    if (restart === 1) bench.close();
    bench = another(bench);
    bench.mustOpen();
    assertEquals(bench.read([1], 0, 3, 1), -EBADMSG);
    assertEquals(bench.read([1], 0, 2, 1), [102]);
  }
  bench.write(1, 0, 3, [777]);
  assertEquals(bench.read([1], 0, 3, 1), [777]);
});

Deno.test("a block that the disk cannot read for a while is not given up by the cleaner, and one that it never can is", () => {
  for (const refusals of [5, Infinity]) {
    const bench = open({ ...SMALL, segments: 40 });
    bench.write(1, 0, 0, [100]);
    bench.write(1, 7, 0, stamps(5000, 16));
    bench.sync();
    const place = dataOf(bench.disk, 100);
    let left = refusals;
    const fail = (kind: string, offset: number, length: number) => {
      const isHit = kind === "read" && offset <= place && place < offset + length;
      return isHit && left-- > 0 ? -EIO : 0;
    };
    bench.disk.faults = { fail };
    churn(bench, () => dataOf(bench.disk, 100) !== place || bench.store.stats().damageCount > 0);
    bench.disk.faults = {};
    bench.sync();
    const isKept = refusals < Infinity;
    assertEquals(bench.read([1], 0, 0, 1), isKept ? [100] : -EBADMSG, `${refusals} refusals`);
  }
});

Deno.test("the cleaner empties a segment whose headers are damaged", () => {
  const shape = { ...SMALL, segments: 40 };
  const bench = open(shape);
  for (let i = 0; i < 4; i++) {
    bench.write(1, 0, i * 8, stamps(100 + 8 * i, 8));
    bench.write(1, 0, 100 + i, [900 + i]);
    bench.write(1, 7, i * 16, stamps(5000 + 16 * i, 16));
  }
  bench.sync();
  // Not the checksums themselves: those of a run are still compared one by one.
  for (const stamp of [100, 901]) bench.disk.flipBit(dataOf(bench.disk, stamp) - 4096 + 34);
  churn(bench, () => bench.store.stats().relocatedBlocks >= 36);
  for (let i = 0; i < 4; i++) {
    assertEquals(bench.read([1], 0, i * 8, 8), stamps(100 + 8 * i, 8));
    assertEquals(bench.read([1], 0, 100 + i, 1), [900 + i]);
  }
});

Deno.test("scrubNow() finds damage that nobody has read, and tells how far it is", () => {
  let bench = open();
  bench.write(1, 0, 0, stamps(100, 40));
  bench.write(1, 3, 7, [500]);
  bench.write(1, 4, 7, [600]);
  bench.close();
  bench = another(bench);
  bench.mustOpen();
  bench.disk.flipBit(dataOf(bench.disk, 120));
  bench.disk.flipBit(dataOf(bench.disk, 600) + 4095);
  let last = { checkedBlocks: 0, totalBlocks: 0, damagedBlocks: 0 };
  const error = bench.call(
    "scrub",
    (done) => bench.store.scrubNow(null, (progress) => void (last = { ...progress }), done),
  );
  assertEquals(error, null);
  assertEquals(last, { checkedBlocks: 42, totalBlocks: 42, damagedBlocks: 2 });
  const places = bench.store.stats().damage.map(({ chunk, block }) => [chunk, block]);
  assertEquals(places, [[0, 20], [4, 7]]);
  bench.call("scrub", (done) => bench.store.scrubNow([99], () => {}, done));
});

Deno.test("scrub comes by in the background, at its rate", () => {
  const bench = open();
  bench.write(1, 0, 0, stamps(100, 64));
  bench.disk.flipBit(dataOf(bench.disk, 130));
  bench.until(() => bench.store.stats().scrub.passes > 0, "a background pass");
  assertEquals(bench.store.stats().damage.map(({ block }) => block), [30]);
  const before = bench.disk.counts.readBytes;
  const from = bench.nowMs;
  while (bench.nowMs < from + 20_000) {
    bench.nowMs += 100;
    bench.store.tick(bench.nowMs);
    while (bench.disk.pump()) bench.store.endTurn();
  }
  const perSecond = (bench.disk.counts.readBytes - before) / 20;
  assert(perSecond <= 1.5 * 1024 * 1024, `${perSecond} bytes per second`);
});

Deno.test("a store that another host owns stays refused after damage", () => {
  let bench = open();
  bench.close();
  bench = another(bench);
  const hostId = HOST.slice().fill(200);
  const error = bench.call(
    "open",
    (done) => bench.store.open({ hostId, acceptDamage: true }, done),
  );
  assertEquals(error?.code, "OTHER_HOST");
});

Deno.test("what the disk cannot read in the log's tail is said, and what it can read the next time is there", () => {
  for (const refusals of [3, Infinity]) {
    const first = open();
    first.write(1, 0, 0, stamps(100, 2));
    first.sync();
    first.write(1, 0, 5, stamps(200, 2));
    const disk = first.disk.crash(new Prng(9), first.window.bytes, { processOnly: true });
    const bench = new Bench(0, disk, new Prng(10), first.shape);
    // The record of the second write: acknowledged, and not synced.
    const header = withMagic(disk, RECORD_MAGIC).findLast((at) => at < dataOf(disk, 200))!;
    let left = refusals;
    const fail = (kind: string, offset: number, length: number) => {
      const isHit = kind === "read" && offset <= header && header < offset + length;
      return isHit && left-- > 0 ? -EIO : 0;
    };
    disk.faults = { fail };
    let losses = 0;
    bench.mustOpen({ mayHaveLost: () => losses++ });
    disk.faults = {};
    const isThere = refusals < Infinity;
    assertEquals(losses, isThere ? 0 : 1, `${refusals} refusals`);
    assertEquals(bench.read([1], 0, 5, 2), isThere ? [200, 201] : [0, 0]);
    assertEquals(bench.read([1], 0, 0, 2), [100, 101]);
  }
});

Deno.test("what was written whole before the process was killed and does not match is said to be lost, what was torn is not", () => {
  const ZERO_BLOCK = 0;
  const cases = [
    // Good data behind bad in one record: the beginning of a write has no holes.
    { what: [200, 201, 202], rotten: 201, behind: 0, losses: 1 },
    // Its end, or zeros that may have been there before: as the end of the process may leave it.
    { what: [200, 201, 202], rotten: 202, behind: 0, losses: 0 },
    { what: [200, 201, ZERO_BLOCK], rotten: 201, behind: 0, losses: 0 },
    // Seven more records may have been under way, eight not.
    { what: [200], rotten: 200, behind: 7, losses: 0 },
    { what: [200], rotten: 200, behind: 8, losses: 1 },
  ];
  for (const { what, rotten, behind, losses } of cases) {
    const first = open();
    first.write(1, 0, 0, stamps(100, 4));
    first.sync();
    first.write(1, 0, 0, what);
    for (let i = 0; i < behind; i++) first.write(1, 1, i, [300 + i]);
    const disk = first.disk.crash(new Prng(9), first.window.bytes, { processOnly: true });
    disk.flipBit(dataOf(disk, rotten));
    const bench = new Bench(0, disk, new Prng(10), first.shape);
    let told = 0, torn = 0;
    bench.mustOpen({ mayHaveLost: () => told++, foundTorn: () => torn++ });
    assertEquals([told, torn], [losses, 1], JSON.stringify({ what, rotten, behind }));
    const expected = what.map((value, i) => value === rotten ? 100 + i : value);
    assertEquals(bench.read([1], 0, 0, what.length), expected);
    assertEquals(bench.stampOf(1, 0), "unknown");
  }
});

Deno.test("a log that ends before records that are there is said to be torn", () => {
  const first = open();
  first.write(1, 0, 0, stamps(100, 4));
  first.sync();
  for (let i = 0; i < 3; i++) first.write(1, 1, i, [300 + i]);
  const disk = first.disk.crash(new Prng(9), first.window.bytes, { processOnly: true });
  // The header of the first of the three: whatever it was, the two behind it do not count.
  const header = withMagic(disk, RECORD_MAGIC).findLast((at) => at < dataOf(disk, 300))!;
  disk.flipBit(header + 20);
  const bench = new Bench(0, disk, new Prng(10), first.shape);
  let told = 0, torn = 0;
  bench.mustOpen({ mayHaveLost: () => told++, foundTorn: () => torn++ });
  assertEquals([told, torn], [0, 1]);
  assertEquals(bench.read([1], 1, 0, 3), [0, 0, 0]);
});

Deno.test("a log whose end is whole is not said to be torn", () => {
  const first = open();
  first.write(1, 0, 0, stamps(100, 4));
  const disk = first.disk.crash(new Prng(9), first.window.bytes, { processOnly: true });
  const bench = new Bench(0, disk, new Prng(10), first.shape);
  let torn = 0;
  bench.mustOpen({ foundTorn: () => torn++ });
  assertEquals(torn, 0);
  assertEquals(bench.read([1], 0, 0, 4), stamps(100, 4));
});
