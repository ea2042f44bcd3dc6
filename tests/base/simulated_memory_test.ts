import { assertEquals, assertThrows } from "@std/assert/mod.js";
import { SimulatedMemory } from "../../agent/platform/simulated/memory.ts";
import { ARENA_BYTES } from "../../agent/base/limits.ts";

Deno.test("simulated memory is one window with the arena below the guest area", () => {
  const { windows, arena, guestOffset, guestBytes } = new SimulatedMemory();
  assertEquals(windows.length, 1);
  const { index, bytes, u16, u32, kernel } = windows[0];
  assertEquals([index, guestOffset, guestOffset + guestBytes], [0, ARENA_BYTES, bytes.length]);
  assertEquals(arena.sizeBytes, ARENA_BYTES);
  const buffer = arena.allocate(4096);
  u32[guestOffset / 4] = 0x04030201;
  u16[guestOffset / 2 + 2] = 0x0605;
  kernel.copyAndChecksum(buffer, guestOffset, 4096);
  assertEquals([...bytes.subarray(buffer, buffer + 7)], [1, 2, 3, 4, 5, 6, 0]);
});

Deno.test("simulated memory may be as large as a window, and no larger", () => {
  assertEquals(new SimulatedMemory({ sizeBytes: 2 ** 31 }).windows[0].bytes.length, 2 ** 31);
  for (const sizeBytes of [0, ARENA_BYTES - 65536, 2 ** 31 + 65536, ARENA_BYTES + 1]) {
    assertThrows(() => new SimulatedMemory({ sizeBytes }), RangeError);
  }
});
