/**
 * Which PG a chunk belongs to: golden values, because disks and peers rely on them, and splitting.
 *
 * @module
 */
import { assert, assertEquals } from "@std/assert/mod.js";
import { Prng } from "../../agent/base/prng.ts";
import { mix32, mixPair, pgOf } from "../../agent/map/hash.ts";

Deno.test("mix32() and pgOf() give the values that are on disks already", () => {
  assertEquals([0, 1, 2, 7, 0x7fffffff, 0xffffffff].map(mix32), [
    0x01fce552,
    0x9f505634,
    0x079f4ece,
    0x3fd9abdb,
    0xd7fa9978,
    0xa4f7896c,
  ]);
  assertEquals(
    [[1, 0, 256], [1, 1, 256], [2, 0, 256], [7, 12345, 4096], [0xffffffff, 0xffffffff, 65536]]
      .map(([family, chunk, pgCount]) => pgOf(family, chunk, pgCount)),
    [52, 53, 206, 3092, 35179],
  );
});

Deno.test("with the PGs doubled, chunks of PG p are in p or in p + pgCount", () => {
  const random = new Prng(3);
  for (let round = 0; round < 2000; round++) {
    const pgCount = 2 ** random.below(17);
    const family = random.u32();
    const chunk = random.chance(0.5) ? random.u32() : random.below(1000);
    const before = pgOf(family, chunk, pgCount);
    const after = pgOf(family, chunk, pgCount * 2);
    assert(before >= 0 && before < pgCount, `${family} ${chunk} ${pgCount}: ${before}`);
    assert(
      after === before || after === before + pgCount,
      `${family} ${chunk} ${pgCount}: ${after}`,
    );
  }
});

Deno.test("consecutive chunks visit every PG in turn", () => {
  const seen = new Set(Array.from({ length: 256 }, (_, chunk) => pgOf(9, chunk, 256)));
  assertEquals(seen.size, 256);
});

Deno.test("mix32() flips half of the bits for each bit of the input, and spreads counted ids", () => {
  for (let bit = 0; bit < 32; bit++) {
    let flipped = 0;
    for (let value = 0; value < 1000; value++) {
      let difference = mix32(value) ^ mix32(value ^ (1 << bit));
      for (; difference !== 0; difference &= difference - 1) flipped++;
    }
    assert(flipped > 14_000 && flipped < 18_000, `bit ${bit} flips ${flipped / 1000} bits`);
  }
  const counts = new Array(256).fill(0);
  for (let family = 1; family <= 25_600; family++) counts[pgOf(family, 0, 256)]++;
  assert(Math.max(...counts) < 150 && Math.min(...counts) > 60, `${counts}`);
});

Deno.test("mixPair() depends on the order of its arguments", () => {
  assert(mixPair(1, 2) !== mixPair(2, 1));
});
