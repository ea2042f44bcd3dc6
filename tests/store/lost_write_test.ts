/**
 * A disk that loses the write of a record, header and data, over an older record of the same layout: what is there then matches
 * itself, and must be found out all the same, wherever checksums are taken from it.
 *
 * The crash scenarios have `lostWrites`.
 *
 * @module
 */
import { assert, assertEquals, assertStringIncludes } from "@std/assert/mod.js";
import { Prng } from "../../agent/base/prng.ts";
import { SimulatedMemory } from "../../agent/platform/simulated/memory.ts";
import { encodeLife, LIFE_IMAGE_BYTES, Lives } from "../../agent/store/lives.ts";
import { type Operation, OperationKind } from "../../agent/store/operation.ts";
import { Bench, makeDisk, type Shape, SMALL } from "./harness.ts";

const EBADMSG = 74;
const BLOCK = 4096;
const SEGMENT = SMALL.segmentBytes;
const SEGMENTS_AT = 1024 * 1024;
/** Blocks of each write that is looked at, and places for them. */
const COUNT = 8, PLACES = 6;
const { kernel, bytes: scratch } = new SimulatedMemory({ sizeBytes: 64 * 1024 * 1024 }).windows[0];

function stamps(first: number, count = COUNT): number[] {
  return Array.from({ length: count }, (_, i) => first + i);
}

/** A store of format 3, or of 2. */
function open(format: 2 | 3 = 3, shape: Shape = SMALL): Bench {
  const random = new Prng(1);
  const bench = new Bench(0, makeDisk(0, random.fork(), shape), random.fork(), shape);
  bench.format();
  bench.mustOpen();
  for (const layer of [1, 2]) bench.createLayer(layer);
  if (format === 3) assertEquals(bench.run(OperationKind.Absorb, [2, 1], 9, 0, 1).result, 0);
  return bench;
}

/** Another store object on what the disk holds now, not opened yet: as after the end of the process. */
function another(bench: Bench): Bench {
  const disk = bench.disk.crash(new Prng(9), bench.window.bytes, {
    keep: 1,
    lose: 0,
    reorder: false,
  });
  return new Bench(0, disk, new Prng(10), bench.shape);
}

function crashed(bench: Bench): Bench {
  const next = another(bench);
  next.mustOpen();
  return next;
}

function restarted(bench: Bench): Bench {
  assertEquals(bench.close(), null);
  return crashed(bench);
}

/** Lets the store become idle, so that it has noted what is durable. */
function rest(bench: Bench): void {
  bench.until(() => bench.store.idle, "rest");
}

/** What a record header says of its layout and its last data. */
interface Layout {
  headerBlocks: number;
  shape: string;
  /** Layer, chunk and block of the last entry. */
  place: string;
  /** Checksums of its data. */
  sums: Uint32Array;
}

const KREC = 0x4345524b;

/** The layout of the record at the beginning of `bytes`, if it is one that ends with data of several blocks. */
function layoutOf(bytes: Uint8Array): Layout | null {
  const words = new Uint32Array(bytes.slice().buffer);
  if (words[0] !== KREC) return null;
  const headerBlocks = words[1] >>> 16;
  let word = 16, last = 0, count = 0;
  for (let i = 0; i < words[12]; i++) {
    const kind = words[word] & 0xff;
    count = [1, 4, 12].includes(kind) ? words[word + 1] & 0xffff : 0;
    last = word + 8;
    word = last + count;
  }
  if (count < 2) return null;
  const shape = [headerBlocks, ...words.slice(12, 15), last, count].join();
  const place = [words[last - 6], words[last - 5], words[last - 8] >>> 16].join();
  return { headerBlocks, shape, place, sums: words.slice(last, last + count) };
}

/** The first word of each block of the older record that a write of `data` goes over, if that has the same layout and is whole. */
function olderRecord(
  bench: Bench,
  offset: number,
  data: Uint8Array,
  isSamePlace: boolean,
): number[] | null {
  const written = layoutOf(data);
  const older = layoutOf(bench.disk.peek(offset, data.length));
  if (written === null || older === null || written.shape !== older.shape) return null;
  if (isSamePlace && written.place !== older.place) return null;
  const values: number[] = [];
  const end = offset + data.length;
  for (let i = 0; i < older.sums.length; i++) {
    scratch.set(bench.disk.peek(end - (older.sums.length - i) * BLOCK, BLOCK));
    if (kernel.checksum(0, BLOCK) !== older.sums[i]) return null;
    values.push(new Uint32Array(scratch.slice(0, 4).buffer)[0]);
  }
  return values;
}

interface Lost {
  /** First block of what was written. */
  block: number;
  values: number[];
  /** What the disk has in its place. */
  older: number[];
  /** Of the record's header. */
  offset: number;
  data: Uint8Array;
  olderData: Uint8Array;
}

interface LoseOptions {
  count?: number;
  /** The first record of a segment, together with the segment's header. */
  isFirst?: boolean;
  /** What else is in the record, before the write. */
  before?: (bench: Bench) => void;
  /** The older record says of the same blocks that they are there. */
  isSamePlace?: boolean;
  /** It is not lost now. */
  isKept?: boolean;
}

let lastValue = 1000;

/** Overwrites a few places again and again until the write of one record was lost over an older one of the same layout. */
function loseOne(bench: Bench, options: LoseOptions = {}): Lost {
  const { count = COUNT, isFirst = false, before, isSamePlace = false, isKept = false } = options;
  let lost: Lost | null = null;
  let block = 0, values: number[] = [];
  const random = new Prng(7);
  const loses = (at: number, written: Uint8Array) => {
    const hasHeader = (at - SEGMENTS_AT) % SEGMENT === 0;
    if (lost !== null || at < SEGMENTS_AT || hasHeader !== isFirst) return false;
    const offset = hasHeader ? at + BLOCK : at;
    const data = written.slice(hasHeader ? BLOCK : 0);
    const older = olderRecord(bench, offset, data, isSamePlace);
    // A part of a write that was cut does not do.
    if (older === null || older.length !== count) return false;
    const olderData = bench.disk.peek(offset, data.length);
    lost = { block, values, older, offset, data, olderData };
    return !isKept;
  };
  for (let i = 0; lost === null; i++) {
    assert(i < 4000, "nothing could be lost");
    block = random.below(PLACES) * COUNT;
    values = stamps(lastValue += 10, count);
    // Only from here on, so that no other record is.
    bench.disk.faults = { loses };
    before?.(bench);
    assertEquals(bench.write(1, 0, block, values), 0);
    bench.disk.faults = {};
    if (i % 8 === 0) assertEquals(bench.sync(), 0);
    // Lest all segments are filled in the same way.
    if (random.chance(0.1)) assertEquals(bench.write(1, 6, 0, [1]), 0);
  }
  return lost;
}

/** The lost blocks are refused, by reads and by scrub, and everything else is read as it should be. */
function refuses(bench: Bench, { block, values, older }: Lost, message?: string): void {
  const told = new Set<number>();
  bench.store.damageListener = (_layer, _chunk, each) => told.add(each);
  for (let i = 0; i < values.length; i++) {
    const read = bench.read([1], 0, block + i, 1);
    assertEquals(read, -EBADMSG, `block ${block + i} of ${values}, stale ${older}`);
  }
  assertEquals([...told], values.map((_, i) => block + i));
  if (message !== undefined) assertStringIncludes(bench.store.stats().damage[0].message, message);
  for (let place = 0; place < PLACES * COUNT; place += COUNT) {
    if (place !== block) assert(Array.isArray(bench.read([1], 0, place, values.length)));
  }
}

/** Blocks that a scrub finds damaged. */
function scrub(bench: Bench): number[] {
  const found: number[] = [];
  bench.store.damageListener = (_layer, _chunk, block) => found.push(block);
  assertEquals(bench.call("scrub", (done) => bench.store.scrubNow(null, () => {}, done)), null);
  return found;
}

/** Writes until the log is in another segment: of the one that it goes on in after a restart the superblock knows all. */
function leave(bench: Bench): void {
  for (let i = 0; i < 8; i++) bench.write(1, 2, 0, stamps(1));
}

const MESSAGE = "lost a write";

for (const format of [2, 3] as const) {
  Deno.test(`a lost record is refused by those who have just written it, and by scrub (format ${format})`, () => {
    const bench = open(format);
    const lost = loseOne(bench);
    const blocks = lost.values.map((_, i) => lost.block + i);
    assertEquals(scrub(bench), blocks);
    refuses(bench, lost);
    // What heals a damaged block heals these.
    assertEquals(bench.write(1, 0, lost.block, lost.values), 0);
    assertEquals(bench.read([1], 0, lost.block, COUNT), lost.values);
    assertEquals([bench.store.stats().damage, scrub(bench)], [[], []]);
  });
}

Deno.test("a lost record is refused once its checksums are no longer in memory", () => {
  for (const isScrubbed of [false, true]) {
    const bench = open();
    const lost = loseOne(bench);
    // As many other pages as the cache has.
    for (let i = 0; i < 40; i++) bench.write(1, 1 + i, 0, stamps(500, 8));
    for (let i = 0; i < 40; i++) assertEquals(bench.read([1], 1 + i, 0, 8), stamps(500, 8));
    if (isScrubbed) assertEquals(scrub(bench), lost.values.map((_, i) => lost.block + i));
    refuses(bench, lost, isScrubbed ? `${MESSAGE}; found by scrub` : MESSAGE);
  }
});

Deno.test("a lost record is refused after a clean restart, and after more of them", () => {
  let bench = open();
  const lost = loseOne(bench);
  leave(bench);
  for (let restarts = 0; restarts < 3; restarts++) {
    bench = restarted(bench);
    assertEquals(scrub(bench), lost.values.map((_, i) => lost.block + i));
    refuses(bench, lost, MESSAGE);
    bench.write(1, 8, 0, stamps(1));
  }
});

Deno.test("a lost record that a checkpoint covers is refused after a crash, and after more of them", () => {
  let bench = open();
  const lost = loseOne(bench);
  // The next one may have begun before.
  const { taken } = bench.store.stats().checkpoint;
  while (bench.store.stats().checkpoint.taken < taken + 2) bench.write(1, 2, 0, stamps(1));
  for (let crashes = 0; crashes < 3; crashes++) {
    bench.write(1, 8, 0, stamps(1));
    bench.sync();
    bench = crashed(bench);
    assertEquals(scrub(bench), lost.values.map((_, i) => lost.block + i));
    refuses(bench, lost, MESSAGE);
  }
});

Deno.test("a lost record of a store without known lives is believed after a restart, as it always was", () => {
  let bench = open(2);
  const lost = loseOne(bench);
  leave(bench);
  bench = restarted(bench);
  assertEquals(bench.read([1], 0, lost.block, COUNT), lost.older);
  // What is written from here on is known.
  const other = loseOne(bench);
  refuses(bench, other);
});

Deno.test("a lost record that had been made durable is damage when the log is replayed", () => {
  for (const isFirst of [false, true]) {
    let bench = open(3, { ...SMALL, tunables: { ...SMALL.tunables, checkpointLogBytes: 2 ** 26 } });
    loseOne(bench, { isFirst });
    bench.sync();
    // More of the segment, and a note of what is durable.
    bench.write(1, 1, 0, stamps(1, 2));
    bench.sync();
    rest(bench);
    bench = another(bench);
    assertEquals(bench.open()?.code, "DAMAGED", `first: ${isFirst}`);
    assertEquals(bench.open({ acceptDamage: true }), null);
  }
});

Deno.test("a record that is lost once the page cache, which had it for the replay, has dropped it is refused", () => {
  let bench = open(3, { ...SMALL, tunables: { ...SMALL.tunables, checkpointLogBytes: 2 ** 26 } });
  const lost = loseOne(bench, { isKept: true });
  leave(bench);
  bench = crashed(bench);
  bench.disk.poke(lost.offset, lost.olderData);
  for (let restarts = 0; restarts < 2; restarts++) {
    assertEquals(scrub(bench), lost.values.map((_, i) => lost.block + i));
    refuses(bench, lost, MESSAGE);
    bench = restarted(bench);
  }
});

Deno.test("checkpoints say whose records lie where from format 3 on, and before are those that older programs know", () => {
  for (const format of [2, 3] as const) {
    const bench = open(format);
    bench.write(1, 0, 0, stamps(1));
    assertEquals(bench.close(), null);
    const kinds = new Set<number>();
    for (let at = SEGMENTS_AT; at < bench.disk.sizeBytesMax; at += BLOCK) {
      const head = new Uint32Array(bench.disk.peek(at, 8).buffer);
      if (head[0] === 0x504b434b) kinds.add(head[1]);
    }
    const known = format === 2 ? [1, 2, 3, 4, 5] : [1, 2, 3, 4, 5, 6, 7, 8];
    assert([...kinds].every((kind) => known.includes(kind)), `${[...kinds]}`);
    assertEquals(kinds.has(8), format === 3);
  }
});

Deno.test("the first record of a segment is lost with the segment's header, and refused", () => {
  let bench = open();
  const lost = loseOne(bench, { isFirst: true });
  refuses(bench, lost);
  for (let restarts = 0; restarts < 2; restarts++) {
    bench = restarted(bench);
    assertEquals(scrub(bench), lost.values.map((_, i) => lost.block + i));
    refuses(bench, lost, MESSAGE);
  }
});

/** As many entries without data as make a header one page longer. */
const ENTRIES_PER_PAGE = 128;

/** Submits entries that fill so many pages of the next record's header. */
function entries(pages: number): (bench: Bench) => void {
  return (bench) => {
    for (let i = 0; i < pages * ENTRIES_PER_PAGE; i++) {
      bench.store.dropChunk(1, 100 + i, (error) => assertEquals(error, null));
    }
  };
}

for (const page of [1, 2, 3]) {
  Deno.test(`checksums on page ${page} of a header count when they belong there, and otherwise not`, () => {
    let bench = open();
    const lost = loseOne(bench, { before: entries(page) });
    leave(bench);
    assertEquals(layoutOf(lost.data)!.headerBlocks, page + 1);
    refuses(bench, lost);
    bench = restarted(bench);
    assertEquals(scrub(bench), lost.values.map((_, i) => lost.block + i));
    refuses(bench, lost, MESSAGE);
    // All but the page that would have shown it is the new record's: the header as a whole tells.
    bench.disk.poke(lost.offset, lost.data.slice(0, BLOCK));
    bench = restarted(bench);
    assertEquals(scrub(bench), lost.values.map((_, i) => lost.block + i));
    refuses(bench, lost, MESSAGE);
    // Had the disk not lost it…
    bench.disk.poke(lost.offset, lost.data);
    bench = restarted(bench);
    assertEquals(scrub(bench), []);
    assertEquals(bench.read([1], 0, lost.block, COUNT), lost.values);
    assertEquals(bench.store.stats().damage, []);
    // A word of the header that is damaged: nobody knows which page it is of.
    bench.disk.flipBit(lost.offset + page * BLOCK - 16);
    bench = restarted(bench);
    refuses(bench, lost, MESSAGE);
  });
}

Deno.test("many pages that are read at once are all found out by what lies around them", () => {
  const shape = { ...SMALL, segments: 60 };
  let bench = open(3, shape);
  const value = (i: number) => stamps(5000 + 10 * i);
  for (let i = 0; i < 20; i++) {
    entries(1 + i % 3)(bench);
    assertEquals(bench.write(1, i, 500, value(i)), 0);
  }
  bench = restarted(bench);
  const results: (number | number[])[] = [];
  for (let i = 0; i < 20; i++) {
    const operation = bench.take((done: Operation) => {
      results[done.chunk] = done.result < 0 ? done.result : bench.stamps(done);
    })!;
    operation.kind = OperationKind.Read;
    operation.layers = [1];
    operation.chunk = i;
    operation.block = 500;
    operation.blockCount = COUNT;
    bench.store.submit(operation);
  }
  bench.until(() => bench.busy === 0, "reads");
  assertEquals(results, Array.from({ length: 20 }, (_, i) => value(i)));
});

/** Overwrites other blocks until the cleaner has moved what was lost: as damage. */
function cleans(bench: Bench, { block, values, older }: Lost): void {
  const offset = bench.store.offsetOf(1, 0, block);
  const isMoved = () => bench.store.offsetOf(1, 0, block) !== offset;
  const random = new Prng(3);
  for (let i = 0; i < 4000 && !isMoved(); i++) {
    bench.write(1, 7, random.below(24) * 16, stamps(10_000_000 + i * 16, 16));
    if (i % 16 === 0) bench.sync();
  }
  assert(isMoved(), "the cleaner has come by");
  const reads = values.map((_, i) => bench.read([1], 0, block + i, 1));
  assertEquals(reads, values.map(() => -EBADMSG), `stale: ${older}`);
  assert(bench.store.stats().damageCount >= values.length);
}

for (const count of [2, COUNT]) {
  for (const isFirst of [false, true]) {
    const what = isFirst ? "first record of a segment" : "record";
    Deno.test(`the cleaner does not take an older ${what} for the lost one, ${count} blocks`, () => {
      const bench = open();
      cleans(bench, loseOne(bench, { count, isFirst, isSamePlace: true }));
    });
  }
}

Deno.test("the cleaner goes by the checksums that the index has, whatever is known of the segment", () => {
  let bench = open(2);
  const lost = loseOne(bench, { count: 2, isFirst: true, isSamePlace: true });
  leave(bench);
  bench = restarted(bench);
  cleans(bench, lost);
});

/**
 * A crash that leaves, behind the record where the log ends, one that does not count; the log goes on there, and what is
 * written over that one is lost.
 *
 * @param isTorn its header does not match any more: nobody knows its lsn
 */
function loseOverTail(isTorn: boolean): { bench: Bench; lost: Lost } {
  let bench = open();
  bench.write(1, 0, 0, stamps(100));
  bench.sync();
  const offsets: number[] = [];
  bench.disk.faults = {
    loses: (offset, data) => {
      if (layoutOf(data) !== null) offsets.push(offset);
      return false;
    },
  };
  bench.write(1, 0, 8, stamps(200));
  bench.write(1, 0, 16, stamps(300));
  assertEquals(offsets.length, 2);
  bench.disk.faults = {};
  bench = another(bench);
  bench.disk.poke(offsets[0], new Uint8Array(BLOCK));
  if (isTorn) bench.disk.flipBit(offsets[1] + 4000);
  bench.mustOpen();
  assertEquals(bench.read([1], 0, 0, 24), [...stamps(100), ...new Array(16).fill(0)]);
  bench.write(1, 0, 8, stamps(400));
  let data: Uint8Array | null = null;
  bench.disk.faults = {
    loses: (offset, written) => {
      assertEquals(offset, offsets[1]);
      data = written.slice();
      return true;
    },
  };
  bench.write(1, 0, 16, stamps(500));
  bench.disk.faults = {};
  const lost: Lost = {
    block: 16,
    values: stamps(500),
    older: stamps(300),
    offset: offsets[1],
    data: data!,
    olderData: bench.disk.peek(offsets[1], data!.length),
  };
  return { bench, lost };
}

for (const isTorn of [false, true]) {
  const what = isTorn ? ", not even by its lsn" : "";
  Deno.test(`a lost record is not taken for the torn tail that was there before${what}`, () => {
    const { bench: first, lost } = loseOverTail(isTorn);
    let bench = first;
    refuses(bench, lost);
    for (let restarts = 0; restarts < 2; restarts++) {
      bench = restarted(bench);
      refuses(bench, lost, MESSAGE);
      assertEquals(scrub(bench).length, COUNT);
      bench.write(1, 1, 0, stamps(1));
    }
    bench.sync();
    bench = crashed(bench);
    refuses(bench, lost, MESSAGE);
    assertEquals(bench.read([1], 0, 0, 16), [...stamps(100), ...stamps(400)]);
    // Nothing else in the segment is needed any more.
    bench.write(1, 0, 0, stamps(600, 16));
    cleans(bench, lost);
  });
}

Deno.test("a record that is missing with more behind it than can have been under way may have been acknowledged", () => {
  for (const [behind, losses] of [[7, 0], [8, 1]]) {
    const first = open();
    first.write(1, 0, 0, stamps(100, 4));
    first.sync();
    first.disk.faults = { loses: () => true };
    first.write(1, 0, 0, stamps(200, 4));
    first.disk.faults = {};
    for (let i = 0; i < behind; i++) first.write(1, 1, i, [300 + i]);
    const disk = first.disk.crash(new Prng(9), first.window.bytes, { processOnly: true });
    const bench = new Bench(0, disk, new Prng(10), first.shape);
    let told = 0;
    bench.mustOpen({ mayHaveLost: () => told++ });
    assertEquals(told, losses, `${behind} behind it`);
    assertEquals(bench.read([1], 0, 0, 4), stamps(100, 4));
  }
});

Deno.test("Lives knows the sequence of a segment and, from where the log has gone on, the lowest lsn", () => {
  const lives = new Lives(4);
  const expect = (segment: number, sequence: number, lsns: Record<number, number>) => {
    assertEquals(lives.sequenceOf(segment), sequence);
    for (const [block, lsn] of Object.entries(lsns)) {
      assertEquals(lives.lsnMin(segment, Number(block)), lsn, `block ${block}`);
    }
  };
  expect(1, 0, { 1: 0 });
  lives.begin(1, 5);
  expect(1, 5, { 1: 0, 31: 0 });
  lives.goOn(1, 10, 5, 100);
  lives.goOn(1, 20, 5, 200);
  expect(1, 5, { 1: 0, 9: 0, 10: 100, 19: 100, 20: 200, 31: 200 });
  lives.goOn(1, 20, 5, 300);
  expect(1, 5, { 10: 100, 19: 100, 20: 300 });
  lives.goOn(1, 12, 5, 400);
  expect(1, 5, { 10: 100, 12: 400, 20: 400 });
  lives.goOn(2, 7, 6, 50);
  expect(2, 6, { 1: 0, 7: 50 });
  lives.goOn(3, 1, 7, 60);
  expect(3, 7, { 1: 60 });
  assertEquals(lives.itemsMax(4), 4 + 4);
  // Out to an image and in again, but for a segment that is cut off meanwhile.
  const words = new Uint32Array(64);
  let items = 0;
  for (let segment = 0; segment < 4; segment++) {
    for (const life of lives.itemsOf(segment)) {
      encodeLife(words, items++ * LIFE_IMAGE_BYTES / 4, 1000 + 32 * segment, life);
    }
  }
  assertEquals(items, 3 + 2 + 2);
  const load = (count: number) => {
    const loaded = new Lives(count);
    const fault = loaded.loadImage(words, 0, items, (location) => {
      const segment = Math.floor((location - 1000) / 32);
      return segment < count ? { segment, block: (location - 1000) % 32 } : null;
    });
    return fault ?? [0, 1, 2, 3].slice(0, count).map((segment) => loaded.itemsOf(segment));
  };
  assertEquals(load(4), [0, 1, 2, 3].map((segment) => lives.itemsOf(segment)));
  assertEquals(load(3), [0, 1, 2].map((segment) => lives.itemsOf(segment)));
  words[6] = 8;
  assertEquals(load(4), "lives of a segment contradict each other");
  words[6] = 0;
  assertEquals(load(4), "a life is out of range");
  lives.begin(1, 9);
  expect(1, 9, { 1: 0, 20: 0 });
  lives.resize(2);
  lives.resize(4);
  expect(2, 0, { 1: 0, 7: 0 });
  expect(1, 9, { 1: 0 });
});
