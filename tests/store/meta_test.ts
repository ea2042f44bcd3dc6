/**
 * META as a small durable key-value store: batches, their order and what a crash leaves of them.
 *
 * @module
 */
import { assert, assertEquals } from "@std/assert/mod.js";
import { Prng } from "../../agent/base/prng.ts";
import { SimulatedMemory } from "../../agent/platform/simulated/memory.ts";
import { decodeMetaItems, encodeMetaItem, MetaTable } from "../../agent/store/meta.ts";
import { Bench, makeDisk, SMALL } from "./harness.ts";

const text = new TextEncoder();

function open(): Bench {
  const random = new Prng(1);
  const bench = new Bench(0, makeDisk(0, random.fork(), SMALL), random.fork(), SMALL);
  bench.format();
  bench.mustOpen();
  bench.until(() => bench.store.idle, "rest");
  return bench;
}

/** A second store on what a crash at this moment leaves, everything written kept. */
function seen(bench: Bench, keep: number, other: Uint8Array): Bench {
  const disk = bench.disk.crash(new Prng(2), other, { keep, lose: 1 - keep, reorder: false });
  const next = new Bench(1, disk, new Prng(3), SMALL);
  next.mustOpen();
  return next;
}

function otherBytes(): Uint8Array {
  return new Bench(1, makeDisk(1, new Prng(1), SMALL), new Prng(1), SMALL).window.bytes;
}

Deno.test("setMetaBatch() of a batch that fits one entry is there as a whole or not at all", () => {
  const bench = open();
  const other = otherBytes();
  let left = 0;
  const set = (round: number) => {
    left++;
    bench.store.setMetaBatch([
      { key: "term", value: text.encode(`${round}`) },
      ...Array.from({ length: 40 }, (_, i) => ({
        key: `entry ${i}`,
        value: text.encode(`${round}`.padEnd(1500, "x")),
      })),
      { key: "vote", value: round % 2 === 0 ? null : text.encode(`${round}`) },
    ], (error) => {
      assertEquals(error, null);
      left--;
    });
  };
  set(1);
  bench.until(() => left === 0, "the first");
  const found = new Set<string>();
  bench.disk.boundary = () => {
    const { store } = seen(bench, 1, other);
    const round = new TextDecoder().decode(store.getMeta("term")!);
    found.add(round);
    for (let i = 0; i < 40; i++) {
      assertEquals(store.getMeta(`entry ${i}`), text.encode(round.padEnd(1500, "x")));
    }
    assertEquals(store.getMeta("vote"), round === "2" ? null : text.encode(round));
  };
  // In one turn, so that they might share an entry: they must not be cut for that.
  bench.store.setMeta("other", new Uint8Array(9000), () => {});
  set(2);
  set(3);
  bench.until(() => left === 0, "two more");
  bench.disk.boundary = null;
  assertEquals([...found].sort(), ["1", "2", "3"]);
  assertEquals(new TextDecoder().decode(seen(bench, 0, other).store.getMeta("term")!), "3");
});

Deno.test("setMetaBatch() of a longer batch leaves its first values after a crash, never later ones alone", () => {
  const bench = open();
  const other = otherBytes();
  const found = new Set<number>();
  bench.disk.boundary = () => {
    const { store } = seen(bench, 1, other);
    const there = Array.from({ length: 12 }, (_, i) => store.getMeta(`part ${i}`) !== null);
    const count = there.filter(Boolean).length;
    assert(there.every((isThere, i) => isThere === i < count), `${there}`);
    assertEquals(store.getMeta("head") !== null, count === 12 && store.getMeta("head") !== null);
    if (store.getMeta("head") !== null) assertEquals(count, 12);
    found.add(count);
  };
  let isDone = false;
  bench.store.setMetaBatch([
    ...Array.from({ length: 12 }, (_, i) => ({ key: `part ${i}`, value: new Uint8Array(30_000) })),
    { key: "head", value: new Uint8Array(1) },
  ], (error) => {
    assertEquals(error, null);
    isDone = true;
  });
  bench.store.setMeta("after", new Uint8Array(1), () => assert(isDone, "in order"));
  bench.until(() => isDone && bench.store.idle, "the batch");
  bench.disk.boundary = null;
  assert(found.size > 3, `${[...found]}`);
  const { store } = seen(bench, 0, other);
  assertEquals(store.getMeta("head"), new Uint8Array(1));
  assertEquals(store.metaKeys().length, 14);
});

Deno.test("what is set in one turn shares a record and a sync, and calls back in order", () => {
  const bench = open();
  const before = bench.store.stats();
  const done: number[] = [];
  for (let i = 0; i < 200; i++) {
    bench.store.setMeta(`key ${i % 50}`, text.encode(`${i}`), (error) => {
      assertEquals(error, null);
      done.push(i);
    });
  }
  bench.until(() => done.length === 200, "values");
  const after = bench.store.stats();
  assertEquals(done, Array.from({ length: 200 }, (_, i) => i));
  assertEquals([after.records - before.records, after.syncs - before.syncs], [1, 1]);
  assert(after.logBlocks - before.logBlocks <= 3, `${after.logBlocks - before.logBlocks} blocks`);
  for (let i = 150; i < 200; i++) {
    assertEquals(bench.store.getMeta(`key ${i % 50}`), text.encode(`${i}`));
  }
});

Deno.test("META and layers are changed in the order in which they were asked for", () => {
  const bench = open();
  const other = otherBytes();
  bench.disk.boundary = () => {
    const { store } = seen(bench, 1, other);
    const has = [store.getMeta("a"), store.hasLayer(5), store.getMeta("b")].map(Boolean);
    assert(has.lastIndexOf(true) < 0 || !has.slice(0, has.lastIndexOf(true)).includes(false));
  };
  let left = 3;
  bench.store.setMeta("a", new Uint8Array(1), () => left--);
  bench.store.createLayer(5, () => left--);
  bench.store.setMeta("b", new Uint8Array(1), () => left--);
  bench.until(() => left === 0, "three requests");
});

Deno.test("thousands of keys survive checkpoints and crashes, and removing them gives everything back", () => {
  let bench = open();
  const random = new Prng(7);
  const expected = new Map<string, string>();
  const round = () => {
    let left = 0;
    for (let n = 0; n < 300; n++) {
      const key = `raft/log/${random.below(4000)}`;
      const value = random.chance(0.3) ? null : `${n}`.padEnd(random.below(60), "y");
      if (value === null) expected.delete(key);
      else expected.set(key, value);
      left++;
      bench.store.setMeta(key, value === null ? null : text.encode(value), (error) => {
        assertEquals(error, null);
        left--;
      });
    }
    bench.until(() => left === 0, "a round");
  };
  for (let i = 0; i < 40; i++) {
    round();
    if (i % 10 !== 9) continue;
    if (i === 19) assertEquals(bench.close(), null);
    const disk = bench.disk.crash(new Prng(i), bench.window.bytes, { keep: 0, lose: 1 });
    bench = new Bench(0, disk, new Prng(i), SMALL);
    bench.mustOpen();
    assertEquals(bench.store.metaKeys(), [...expected.keys()].sort());
    for (const [key, value] of expected) assertEquals(bench.store.getMeta(key), text.encode(value));
  }
  assert(bench.store.stats().checkpoint.id >= 4);
  assert(expected.size > 2000, `${expected.size}`);
  const all = [...expected.keys()].map((key) => ({ key, value: null }));
  assertEquals(bench.call("remove", (done) => bench.store.setMetaBatch(all, done)), null);
  assertEquals(bench.store.metaKeys(), []);
  assertEquals(bench.close(), null);
  bench = new Bench(0, bench.disk, new Prng(1), SMALL);
  bench.mustOpen();
  assertEquals(bench.store.metaKeys(), []);
  assertEquals(bench.store.stats().checkpoint.bytes, 4096, "nothing but the end");
});

Deno.test("META can be set again after close() and open() of one and the same store", () => {
  const bench = open();
  const set = () => bench.call("meta", (done) => bench.store.setMeta("k", new Uint8Array(1), done));
  for (let i = 0; i < 9; i++) assertEquals(set(), null);
  assertEquals(bench.close(), null);
  bench.mustOpen();
  assertEquals(set(), null);
});

Deno.test("MetaTable counts what a checkpoint of it takes, down to nothing", () => {
  const table = new MetaTable();
  table.set("a", new Uint8Array(5));
  table.set("a", new Uint8Array(9));
  table.set("bb", new Uint8Array(0));
  assertEquals([table.imageBytes, table.size], [12 + 3 + 9 + 12 + 6, 2]);
  table.set("a", null);
  table.set("never there", null);
  table.set("bb", null);
  assertEquals([table.imageBytes, table.size], [0, 0]);
});

Deno.test("setMetaBatch() refuses what is out of range before anything of it is set", () => {
  const bench = open();
  const code = (...keys: [string, number][]) =>
    bench.call("meta", (done) =>
      bench.store.setMetaBatch(
        keys.map(([key, length]) => ({ key, value: new Uint8Array(length) })),
        done,
      ))?.code;
  assertEquals(code(["good", 1], ["", 1]), "INVALID");
  assertEquals(code(["good", 1], ["k".repeat(256), 1]), "INVALID");
  assertEquals(code(["good", 1], ["long", 65537]), "INVALID");
  assertEquals(bench.store.metaKeys(), []);
  assertEquals(code(), undefined, "nothing to set");
  assertEquals(code(["k".repeat(255), 65536]), undefined, "the longest");
  const value = new Uint8Array(65536);
  let refused = 0;
  for (let i = 0; i < 1100; i++) {
    bench.store.setMeta("k", value, (error) => error?.code === "BUSY" ? refused++ : 0);
  }
  bench.store.endTurn();
  assert(refused > 50, `${refused} of 1100 refused`);
});

Deno.test("decodeMetaItems() takes what encodeMetaItem() wrote, and no rubbish", () => {
  const [window] = new SimulatedMemory({ sizeBytes: 64 * 1024 * 1024 }).windows;
  const random = new Prng(3);
  const items = [["a", "xyz"], ["ümlaut", ""], ["gone", null], ["b".repeat(255), "1"]] as const;
  let length = 0;
  for (const [key, value] of items) {
    const keyBytes = text.encode(key);
    const item = { key, keyBytes, value: value === null ? null : text.encode(value) };
    length += encodeMetaItem(window, 4096 + length, item);
  }
  const decode = (byteLength: number, count: number) => {
    const found: [string, string | null][] = [];
    const isValid = decodeMetaItems(window, 4096, byteLength, count, (key, value) => {
      found.push([key, value === null ? null : new TextDecoder().decode(value)]);
    });
    return isValid ? found : null;
  };
  assertEquals(decode(length, 4), items.map(([key, value]) => [key, value]));
  assertEquals([decode(length, 3), decode(length, 5), decode(length - 4, 4)], [null, null, null]);
  const good = window.bytes.slice(4096, 4096 + length);
  for (let i = 0; i < 5000; i++) {
    window.bytes.set(good, 4096);
    for (let n = random.between(1, 3); n > 0; n--) {
      window.bytes[4096 + random.below(length)] ^= 1 << random.below(8);
    }
    for (const [key] of decode(length, 4) ?? []) assert(key.length >= 1);
  }
});

Deno.test("a store that its opener refuses for what META holds is not touched, clean or crashed", () => {
  for (const isClean of [true, false]) {
    const bench = open();
    const error = bench.call(
      "setMeta",
      (done) => bench.store.setMeta("level", text.encode("7"), done),
    );
    assertEquals(error, null);
    if (isClean) assertEquals(bench.close(), null);
    const other = otherBytes();
    const disk = bench.disk.crash(new Prng(2), other, { keep: 1, lose: 0, reorder: false });
    const next = new Bench(1, disk, new Prng(3), SMALL);
    const touched: string[] = [];
    disk.boundary = (kind) => touched.push(kind);
    const asked: string[] = [];
    const admit = (meta: (key: string) => Uint8Array | undefined) => {
      asked.push(new TextDecoder().decode(meta("level")));
      return asked.length === 1 ? "it is not for me" : null;
    };
    const refused = next.open({ admit });
    assertEquals([refused?.code, refused?.message], ["LEVEL", "it is not for me"]);
    assertEquals(touched, [], isClean ? "clean" : "crashed");
    const after = new Bench(1, disk, new Prng(4), SMALL);
    assertEquals(after.open({ admit }), null);
    assertEquals(asked, ["7", "7"]);
    assert(touched.length > 0, "an opening that goes on does write");
  }
});
