import { assertEquals } from "@std/assert/mod.js";
import { ExtentCache, runsOf } from "../../agent/nbd/extents.ts";
import { makeExport } from "./meeting.ts";

Deno.test("extents become runs; what takes no space is a hole of zeros, what nobody knows is data", () => {
  const extents = [
    { lengthBytes: 4096, state: "data" },
    { lengthBytes: 4096, state: "unknown" },
    { lengthBytes: 512, state: "zero" },
    { lengthBytes: 8192, state: "hole" },
    { lengthBytes: 4096, state: "data" },
  ] as const;
  assertEquals(runsOf(extents), [8192, 0, 8704, 3, 4096, 0]);
});

Deno.test("what is remembered is good until a change begins or ends", () => {
  const { port, queue } = makeExport();
  const owner = { pieceDone: (slot: number) => queue.release(slot), step() {} };
  const cache = new ExtentCache();
  const write = (type: 1 | 13) => {
    const slot = queue.take(owner);
    if (type === 1) queue.submit(slot, 1, 0, 512);
    else queue.submitRange(slot, 13, { offsetBytes: 0, lengthBytes: 512, unmap: true });
  };
  assertEquals(cache.find(0, queue.changes), null);
  cache.store(4096, [4096, 0, 8192, 3], queue.changes);
  for (
    const [offset, runs] of [
      [0, null],
      [4096, [4096, 0, 8192, 3]],
      [8191, [1, 0, 8192, 3]],
      [8192, [8192, 3]],
      [16384, null],
    ] as const
  ) assertEquals(cache.find(offset, queue.changes), runs);
  // A read changes nothing.
  queue.submit(queue.take(owner), 0, 0, 512);
  port.completeAll();
  queue.reap();
  assertEquals(cache.find(8192, queue.changes), [8192, 3]);
  for (const type of [1, 13] as const) {
    cache.store(0, [4096, 3], queue.changes);
    write(type);
    assertEquals(cache.find(0, queue.changes), null);
    // Asked while the write is under way: the answer may be of before.
    cache.store(0, [4096, 3], queue.changes);
    port.completeAll();
    queue.reap();
    assertEquals(cache.find(0, queue.changes), null);
  }
});
