/** The checksum cache against a plain map. */
import { assert, assertEquals } from "@std/assert/mod.js";
import { Prng } from "../../agent/base/prng.ts";
import { ChecksumCache } from "../../agent/store/checksum_cache.ts";

Deno.test("find() returns what put() took in, or nothing, through evictions and drops", () => {
  const random = new Prng(1);
  const cache = new ChecksumCache(24 * 4096);
  const truth = new Map<number, number>();
  const page = new Uint32Array(1024);
  let hits = 0;
  for (let step = 0; step < 60_000; step++) {
    const location = 1 + random.below(60) * (random.chance(0.5) ? 1 : 65_536);
    const draw = random.below(10);
    if (draw < 4) {
      const value = random.u32();
      page.fill(value);
      cache.put(location, page, 0);
      truth.set(location, value);
    } else if (draw === 4) {
      cache.drop(location);
      truth.delete(location);
    } else if (draw === 5 && random.chance(0.1)) {
      cache.dropRange(location, location + 10);
      for (let i = 0; i < 10; i++) truth.delete(location + i);
    } else {
      const found = cache.find(location);
      if (found < 0) continue;
      hits++;
      assertEquals(cache.word(found, random.below(1024)), truth.get(location));
    }
    assert(cache.count <= cache.pages);
  }
  assert(hits > 5000, `${hits} hits`);
});

Deno.test("the clock keeps what is asked for and lets go of what is not", () => {
  const cache = new ChecksumCache(16 * 4096);
  const page = new Uint32Array(1024);
  for (let i = 1; i <= 100; i++) {
    cache.put(1000 + i, page, 0);
    cache.put(7, page, 0);
    assert(cache.find(7) >= 0);
  }
  assert(cache.find(1100) >= 0);
  assertEquals(cache.find(1001), -1);
});
