/**
 * The seeded generator: its sequence is fixed for ever, its helpers are even and in range.
 *
 * @module
 */
import { assertEquals, assertThrows } from "@std/assert/mod.js";
import { Prng } from "../../agent/base/prng.ts";

/** Seed and first numbers, from an independent implementation. */
const GOLDEN: [number, number[]][] = [
  [0, [1789933344, 44971166, 2521387044, 3848737593, 1138324114, 749234105]],
  [1, [393288148, 2174103013, 3814759091, 2092745082, 1865176206, 2179171167]],
  [9007199254740991, [219981187, 3356140, 2498724902, 2719495426, 2023621884, 1665084384]],
];

Deno.test("a seed gives the same sequence in every version", () => {
  for (const [seed, numbers] of GOLDEN) {
    const random = new Prng(seed);
    assertEquals(numbers.map(() => random.u32()), numbers, `seed ${seed}`);
  }
});

Deno.test("different seeds and forks give different sequences", () => {
  const random = new Prng(5);
  const firsts = new Set<string>();
  const first = (of: Prng) => `${of.u32()} ${of.u32()}`;
  for (let seed = 0; seed < 1000; seed++) firsts.add(first(new Prng(seed)));
  for (let seed = 0; seed < 1000; seed++) firsts.add(first(new Prng(seed + 2 ** 32)));
  for (let count = 0; count < 1000; count++) firsts.add(first(random.fork()));
  assertEquals(firsts.size, 3000);
});

Deno.test("fill() fills every byte, whatever the length", () => {
  const random = new Prng(6);
  for (let length = 0; length < 20; length++) {
    const union = new Uint8Array(length + 2);
    for (let round = 0; round < 64; round++) {
      const bytes = new Uint8Array(length + 2);
      random.fill(bytes.subarray(1, 1 + length));
      for (let index = 0; index < bytes.length; index++) union[index] |= bytes[index];
    }
    const expected = new Uint8Array(length + 2).fill(255, 1, 1 + length);
    assertEquals(union, expected, `length ${length}`);
  }
});

Deno.test("below() reaches every value evenly and stays in range", () => {
  const random = new Prng(7);
  const counts = new Array(10).fill(0);
  for (let round = 0; round < 100_000; round++) counts[random.below(10)]++;
  for (const count of counts) assertEquals(Math.abs(count - 10_000) < 500, true, `${counts}`);
  for (const limit of [1, 2, 65536, 65537, 2 ** 32, 2 ** 53]) {
    let highest = 0;
    for (let round = 0; round < 1000; round++) {
      const value = random.below(limit);
      assertEquals(Number.isInteger(value) && value >= 0 && value < limit, true);
      highest = Math.max(highest, value);
    }
    assertEquals(limit === 1 || highest > limit / 3, true, `limit ${limit}`);
  }
  for (const limit of [0, -1, NaN]) assertThrows(() => random.below(limit), RangeError);
});

Deno.test("between() includes both ends", () => {
  const random = new Prng(8);
  const seen = new Set<number>();
  for (let round = 0; round < 200; round++) seen.add(random.between(-1, 2));
  assertEquals([...seen].sort((a, b) => a - b), [-1, 0, 1, 2]);
});

Deno.test("chance() is never at 0, always at 1, and about right in between", () => {
  const random = new Prng(9);
  let hits = 0;
  for (let round = 0; round < 10_000; round++) {
    assertEquals(random.chance(0), false);
    assertEquals(random.chance(1), true);
    if (random.chance(0.25)) hits++;
  }
  assertEquals(Math.abs(hits - 2500) < 200, true, `${hits}`);
});

Deno.test("shuffle() makes every order and pick() takes every element", () => {
  const random = new Prng(10);
  const orders = new Map<string, number>();
  const picked = new Set<string>();
  for (let round = 0; round < 6000; round++) {
    const order = random.shuffle(["a", "b", "c"]).join("");
    orders.set(order, (orders.get(order) ?? 0) + 1);
    picked.add(random.pick(["a", "b", "c"]));
  }
  assertEquals(orders.size, 6);
  for (const count of orders.values()) assertEquals(Math.abs(count - 1000) < 150, true);
  assertEquals(picked.size, 3);
  assertThrows(() => random.pick([]), RangeError);
});
