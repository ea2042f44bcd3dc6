/**
 * The bytes on the disk: layouts against golden bytes, whole stores of each version that must stay
 * readable for ever, and validation that no rubbish passes.
 *
 * The golden stores were made by `format_golden.ts`, once.
 *
 * @module
 */
import { assert, assertEquals } from "@std/assert/mod.js";
import { Prng } from "../../agent/base/prng.ts";
import { SimulatedMemory } from "../../agent/platform/simulated/memory.ts";
import {
  decodeFrame,
  decodeRecord,
  decodeSegmentHeader,
  decodeSuperblock,
  encodeSegmentHeader,
  encodeSuperblock,
  FrameHeader,
  idWords,
  peekFrame,
  peekRecord,
  RecordHeader,
  SegmentHeader,
  SegmentKind,
  type Superblock,
} from "../../agent/store/format.ts";
import { OperationKind } from "../../agent/store/operation.ts";
import { GOLDEN, GOLDEN_SHAPE, openGolden, verifyGolden } from "./format_golden.ts";
import { Bench } from "./harness.ts";
import { UNKNOWN } from "./model.ts";

const memory = new SimulatedMemory({ sizeBytes: 64 * 1024 * 1024 });
const window = memory.windows[0];

const SUPERBLOCK: Superblock = {
  format: 2,
  storeId: new Uint8Array(16).fill(1),
  nodeId: new Uint8Array(16).fill(2),
  clusterId: new Uint8Array(16).fill(3),
  hostId: new Uint8Array(16).fill(4),
  sequence: 2 ** 32 + 5,
  segmentBytes: 131072,
  segmentCount: 36,
  clean: true,
  checkpointId: 7,
  checkpointLast: 8,
  checkpointCount: 2,
  checkpointFrames: 9,
  replaySegment: 10,
  replaySequence: 11,
  replayBlock: 12,
  replayLsn: 13,
  syncedLsn: 12,
  nextSequence: 15,
  previousEndLsn: 12,
};

function hex(at: number, length: number): string {
  return [...window.bytes.subarray(at, at + length)].map((byte) =>
    byte.toString(16).padStart(2, "0")
  ).join("");
}

Deno.test("encodeSuperblock() lays the fields out as drawn", () => {
  encodeSuperblock(window, 0, SUPERBLOCK);
  assertEquals(hex(0, 16), "4b454c5049455342" + "02000000" + "02000000");
  assertEquals(hex(16, 64), "01".repeat(16) + "02".repeat(16) + "03".repeat(16) + "04".repeat(16));
  assertEquals(hex(80, 8), "0500000001000000");
  assertEquals(
    hex(88, 24),
    "00000200" + "24000000" + "01000000" + "00000000" + "0700000000000000",
  );
  assertEquals(hex(112, 16), "08000000" + "02000000" + "09000000" + "0a000000");
  assertEquals(hex(128, 16), "0b00000000000000" + "0c000000" + "00000000");
  assertEquals(
    hex(144, 32),
    "0d00000000000000" + "0c00000000000000" + "0f00000000000000" + "0c00000000000000",
  );
  assert(window.kernel.isZero(176, 3904));
  assertEquals(decodeSuperblock(window, 0), SUPERBLOCK);
});

Deno.test("decodeSuperblock() accepts no flipped bit and no value out of range", () => {
  const random = new Prng(2);
  for (let i = 0; i < 2000; i++) {
    encodeSuperblock(window, 0, SUPERBLOCK);
    window.bytes[random.below(4096)] ^= 1 << random.below(8);
    assertEquals(decodeSuperblock(window, 0), "damaged");
  }
  const bad: Partial<Superblock>[] = [
    { segmentBytes: 131073 },
    { segmentCount: 0 },
    { segmentCount: 2 ** 31 },
    { replaySegment: 36 },
    { replayBlock: 0 },
    { replayBlock: 33 },
    { replayLsn: 0 },
    { checkpointLast: 36 },
    { checkpointCount: 0 },
    { sequence: 0 },
  ];
  for (const change of bad) {
    encodeSuperblock(window, 0, { ...SUPERBLOCK, ...change });
    assertEquals(decodeSuperblock(window, 0), "damaged", JSON.stringify(change));
  }
  window.bytes.fill(0, 0, 4096);
  assertEquals(decodeSuperblock(window, 0), "empty");
});

Deno.test("encodeSegmentHeader() lays the fields out as drawn", () => {
  const header = new SegmentHeader();
  Object.assign(header, { kind: SegmentKind.Log, sequence: 5, next: 6, previous: 7 });
  Object.assign(header, { startLsn: 9, previousEndLsn: 8, checkpointId: 0 });
  encodeSegmentHeader(window, 0, SUPERBLOCK.storeId, header);
  assertEquals(hex(0, 16), "4b454c5049455347" + "02000000" + "01000000");
  assertEquals(
    hex(32, 40),
    "0500000000000000" + "06000000" + "07000000" + "0900000000000000" + "0800000000000000" +
      "0000000000000000",
  );
  const read = new SegmentHeader();
  assert(decodeSegmentHeader(window, 0, SUPERBLOCK.storeId, read));
  assertEquals(read, header);
  assert(!decodeSegmentHeader(window, 0, SUPERBLOCK.nodeId, read), "of another store");
  for (let byte = 0; byte < 4096; byte += 7) {
    window.bytes[byte] ^= 4;
    assert(!decodeSegmentHeader(window, 0, SUPERBLOCK.storeId, read));
    window.bytes[byte] ^= 4;
  }
});

Deno.test("decodeRecord() and decodeFrame() take rubbish without throwing, and do not believe it", () => {
  const random = new Prng(3);
  const words = idWords(SUPERBLOCK.storeId);
  const record = new RecordHeader();
  const frame = new FrameHeader();
  let peeked = 0;
  for (let i = 0; i < 20_000; i++) {
    random.fill(window.bytes.subarray(0, 256));
    // Often with a head that looks right.
    if (random.chance(0.7)) window.u32[0] = random.chance(0.5) ? 0x4345524b : 0x504b434b;
    if (random.chance(0.7)) window.u32[1] = random.between(1, 2) | random.below(6) << 16;
    if (random.chance(0.7)) window.u32.set(words, 2);
    if (random.chance(0.7)) window.u32.set([5, 0], 6);
    if (random.chance(0.5)) window.u32.set([0, 100, 4096], 8);
    // And sometimes with the right checksum over wrong content.
    const headerBlocks = peekRecord(window, 0, words, 5);
    if (headerBlocks > 0) {
      peeked++;
      window.u32[15] = 0;
      window.u32[15] = window.kernel.checksum(0, headerBlocks * 4096);
      decodeRecord(window, 0, headerBlocks, random.below(40), record);
    }
    const frameBytes = peekFrame(window, 0, words, 5, 0);
    if (frameBytes > 0) {
      peeked++;
      decodeFrame(window, 0, frame);
    }
  }
  assert(peeked > 500, `${peeked} looked right`);
});

Deno.test("decodeRecord() believes only entries that fit", () => {
  const words = idWords(SUPERBLOCK.storeId);
  const record = new RecordHeader();
  // One write of two blocks, with all that belongs to it.
  const entry = (
    kind: number,
    flags: number,
    block: number,
    count: number,
  ) => [kind | flags << 8 | block << 16, count, 1, 0, 0, 0, 1, 0];
  const encode = (
    entries: number[],
    entryCount: number,
    dataBlocks: number,
    headerBytes: number,
    version = 2,
  ) => {
    window.u32.fill(0, 0, 1024);
    window.u32.set([0x4345524b, version | 1 << 16, ...words, 5, 0, 9, 0, 8, 0], 0);
    window.u32.set([entryCount, dataBlocks, headerBytes, 0, ...entries], 12);
    window.u32[15] = window.kernel.checksum(0, 4096);
    return decodeRecord(window, 0, 1, 32, record);
  };
  assert(encode([...entry(1, 0, 3, 2), 11, 12], 1, 2, 64 + 40));
  assert(encode([], 0, 0, 64));
  assert(!encode([...entry(1, 0, 3, 2), 11, 12], 1, 3, 64 + 40), "blocks do not add up");
  assert(!encode([...entry(1, 0, 3, 2), 11, 12], 2, 2, 64 + 40), "an entry is missing");
  assert(!encode([...entry(1, 0, 3, 2), 11, 12], 1, 2, 64 + 44), "bytes too many");
  assert(!encode([...entry(1, 0, 1023, 2), 11, 12], 1, 2, 64 + 40), "past the chunk");
  assert(encode([...entry(1, 1, 3, 2), 11, 12], 1, 2, 64 + 40), "the stamp becomes unknown");
  assert(!encode([...entry(1, 1, 3, 2), 11, 12], 1, 2, 64 + 40, 1), "version 1 had no flags");
  assert(!encode([...entry(1, 2, 3, 2), 11, 12], 1, 2, 64 + 40), "flags");
  assert(!encode(entry(5, 1, 3, 2), 1, 0, 64 + 32), "flags of a POISON");
  assert(encode(entry(9, 0, 0, 1), 1, 0, 64 + 32), "STAMP");
  assert(!encode(entry(9, 0, 0, 1), 1, 0, 64 + 32, 1), "version 1 had no STAMP");
  assert(!encode(entry(9, 1, 0, 1), 1, 0, 64 + 32), "flags of a STAMP");
  const absorb = (flags: number, block: number, count: number, from: number, version = 3) =>
    encode([11 | flags << 8 | block << 16, count, 6, 7, 0, from, 0, 0], 1, 0, 64 + 32, version);
  assert(absorb(0, 0, 1, 5), "ABSORB");
  assert(!absorb(0, 0, 1, 5, 2), "version 2 had no ABSORB");
  assert(!absorb(0, 0, 1, 5, 4), "nobody knows version 4");
  assert(!absorb(0, 0, 1, 6), "into itself");
  assert(!absorb(0, 0, 1, 7), "from a newer layer");
  assert(!absorb(1, 0, 1, 5) && !absorb(0, 1, 1, 5) && !absorb(0, 0, 2, 5), "ABSORB takes a chunk");
  const fill = (flags: number, block: number, version = 3, sums = [11, 12]) =>
    encode([...entry(12, flags, block, 2), ...sums], 1, sums.length, 96 + 4 * sums.length, version);
  assert(fill(0, 3), "FILL");
  assert(!fill(0, 3, 2), "version 2 had no FILL");
  assert(!fill(1, 3), "flags of a FILL");
  assert(!fill(0, 1023), "past the chunk");
  assert(!fill(0, 3, 3, [11]), "FILL brings its data");
  const batch = (bytes: number, items: number, blocks: number) => {
    const sums = new Array(blocks).fill(1);
    const entries = [10, blocks, bytes, items, 0, 0, 1, 0, ...sums];
    return encode(entries, 1, blocks, 64 + 32 + 4 * blocks);
  };
  assert(batch(4097, 3, 2), "META_BATCH");
  assert(batch(17 * 4096, 3, 17), "the longest");
  assert(!batch(17 * 4096 + 1, 3, 18), "longer than the longest");
  assert(!batch(4097, 3, 1), "fewer blocks than bytes");
  assert(!batch(4097, 0, 2), "no items");
  assert(!batch(0, 1, 0), "no bytes");
  assert(!encode(entry(1, 0, 3, 0), 1, 0, 64 + 32), "no blocks");
  assert(!encode(entry(99, 0, 3, 1), 1, 0, 64 + 32), "an unknown kind");
  assert(!encode([8, 1, 0, 0, 0, 0, 1, 0, 11], 1, 1, 64 + 36), "META without a key");
  assert(!encode([2, 1, 1, 2 ** 30, 0, 0, 1, 0], 1, 0, 64 + 32), "past the largest disk");
  assert(
    !encode([...entry(1, 0, 3, 31), ...new Array(31).fill(1)], 1, 31, 64 + 32 + 124) ||
      record.dataBlocks === 31,
    "fits the segment exactly",
  );
  assert(
    !encode([...entry(1, 0, 3, 32), ...new Array(32).fill(1)], 1, 32, 64 + 32 + 128),
    "too long",
  );
});

for (const [name, { format }] of Object.entries(GOLDEN)) {
  Deno.test(`a store of format ${format} opens for ever: ${name}`, () => {
    const bench = openGolden(name);
    verifyGolden(bench, format);
    assertEquals(bench.close(), null);
    assertEquals(GOLDEN_SHAPE.segmentBytes, 131072);
  });
}

for (const name of ["format_1_clean.gz", "format_1_crashed.gz"]) {
  Deno.test(`an old store is upgraded by being opened, and stamps what is written then: ${name}`, () => {
    const old = openGolden(name);
    // A program of version 1 looks at both superblocks, and refuses if one names a newer reader.
    const readableBy = [0, 512 * 1024].map((offset) =>
      new DataView(old.disk.peek(offset, 16).buffer).getUint32(12, true)
    );
    assert(readableBy.includes(2), `${readableBy}`);
    // The log goes on in a segment that began in the old format.
    const stamp = { generation: 3, sequence: 4 };
    old.run(OperationKind.Write, [1], 0, 1000, 2, [41, 42], stamp);
    old.run(OperationKind.Write, [1], 1_000_000_000, 0, 1, [43]);
    assertEquals(old.sync(), 0);
    const before = old.disk.crash(new Prng(1), old.window.bytes, { keep: 0, lose: 1 });
    let bench = new Bench(0, before, new Prng(2), GOLDEN_SHAPE);
    for (let round = 0; round < 2; round++) {
      bench.isPlain = true;
      bench.mustOpen();
      assertEquals(bench.read([1], 0, 1000, 2), [41, 42]);
      assertEquals(bench.read([1], 0, 0, 1), [100]);
      assertEquals(bench.stampOf(1, 0), "3.4");
      assertEquals(bench.stampOf(1, 1_000_000_000), UNKNOWN);
      assertEquals(bench.stampOf(3, 0), UNKNOWN);
      assertEquals(bench.store.getMeta("long")!.length, 9000);
      assertEquals(bench.close(), null);
      const disk = bench.disk.crash(new Prng(1), bench.window.bytes, { keep: 0, lose: 1 });
      bench = new Bench(0, disk, new Prng(2), GOLDEN_SHAPE);
    }
  });
}
