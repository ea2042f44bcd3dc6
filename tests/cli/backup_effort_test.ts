import { assert, assertEquals } from "@std/assert/mod.js";
import { getPriority } from "node:os";
import { Prng } from "../../agent/base/prng.ts";
import { hasZstd, Zstd } from "../../agent/platform/linux/zstd.ts";
import { Effort, FRAMES_PER_STEP, processorTime } from "../../cli/backup_effort.ts";

// Loaded here, since it stays for the whole run.
assert(hasZstd(), "there is no libzstd");

/** A host of which a part is idle, and a step of compressing. */
class Host {
  readonly #now = { totalMs: 0, busyMs: 0 };
  readonly effort = new Effort(() => ({ ...this.#now }));

  /** Compresses as many frames as a step has, of which so many are waited for; returns what the next one is compressed with. */
  step(idleShare: number, waitedFor = 0): number {
    this.#now.totalMs += 1000;
    this.#now.busyMs += 1000 * (1 - idleShare);
    for (let i = 0; i < FRAMES_PER_STEP; i++) this.effort.frame(i < waitedFor);
    return this.effort.acceleration;
  }
}

Deno.test("a backup is compressed as hard as can be on a host that has time left, and less where it has none", () => {
  const host = new Host();
  assertEquals(host.effort.acceleration, 1);
  assertEquals([host.step(0.9), host.step(0.5)], [1, 1]);
  const busy = [host.step(0.1), host.step(0.2), host.step(0), host.step(0)];
  assertEquals(busy, [8, 32, 128, 128], "one step at a time, to the last");
  assertEquals([host.step(0.3), host.step(0.35)], [128, 128], "it stays where it is enough");
  assertEquals([host.step(0.6), host.step(0.9), host.step(0.9), host.step(0.9)], [32, 8, 1, 1]);
});

Deno.test("what all else waits for is compressed less hard, however much time a host has left", () => {
  const host = new Host();
  assertEquals(host.step(0.9, FRAMES_PER_STEP / 2 + 1), 8);
  assertEquals(host.step(0.9, FRAMES_PER_STEP), 32);
  assertEquals(host.step(0.9, FRAMES_PER_STEP / 2), 8);
});

Deno.test("processor time is counted while it goes by, and no more of it is used than there is", () => {
  const before = processorTime();
  const until = performance.now() + 100;
  while (performance.now() < until);
  const { totalMs, busyMs } = processorTime();
  assert(totalMs >= before.totalMs + 100, `${totalMs - before.totalMs} ms`);
  // The kernel counts in ticks; what gives way to others does not count.
  const least = getPriority() > 0 ? 0 : 50;
  assert(busyMs >= before.busyMs + least, `${busyMs - before.busyMs} ms of use`);
  assert(busyMs - before.busyMs <= totalMs - before.totalMs + 100);
});

Deno.test("whatever a frame is compressed with, the same comes out, and what skips more is larger", async () => {
  const random = new Prng(7);
  const words = Array.from({ length: 500 }, () => {
    return Uint8Array.from({ length: random.between(3, 9) }, () => random.below(26) + 97);
  });
  const text = new Uint8Array(512 * 1024);
  for (let at = 0; at < text.length;) {
    const word = random.pick(words).subarray(0, text.length - at);
    text.set(word, at);
    at += word.length;
  }
  using zstd = new Zstd();
  const lengths: number[] = [];
  // Also back to what came before: it holds for one frame each.
  for (const acceleration of [1, 8, 32, 128, 1]) {
    const frame = new Uint8Array(text.length), back = new Uint8Array(text.length);
    const bytes = await zstd.compress(text, frame, acceleration);
    assertEquals(await zstd.decompress(frame.subarray(0, bytes), back), text.length);
    assertEquals(back, text);
    lengths.push(bytes);
  }
  const [hard, , , fast, again] = lengths;
  assert(hard < fast && fast < text.length * 0.75, lengths.join());
  assertEquals(again, hard);
});
