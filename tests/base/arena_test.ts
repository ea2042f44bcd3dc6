/**
 * The arena's allocator against a naive oracle: a map of who owns which page.
 *
 * @module
 */
import { assertEquals, assertThrows } from "@std/assert/mod.js";
import { Arena } from "../../agent/base/arena.ts";
import { ARENA_BYTES } from "../../agent/base/limits.ts";
import { Prng } from "../../agent/base/prng.ts";

const KIB = 1024;
const MIB = 1024 * KIB;

/** What the allocator rounds a length to. */
function rounded(lengthBytes: number): number {
  let size = 4 * KIB;
  while (size < lengthBytes) size *= 2;
  return size;
}

/** True when the oracle finds an aligned run of `size` free bytes. */
function hasRoom(owners: Uint8Array, size: number): boolean {
  const pages = size / 4096;
  for (let first = 0; first < owners.length; first += pages) {
    let free = 0;
    while (free < pages && owners[first + free] === 0) free++;
    if (free === pages) return true;
  }
  return false;
}

Deno.test("buffers are aligned, never overlap, and are refused only when there is no room", () => {
  const random = new Prng(1);
  const arena = new Arena(4 * MIB);
  const owners = new Uint8Array(1024);
  const buffers: { offset: number; lengthBytes: number }[] = [];
  let used = 0;
  let refused = 0;
  for (let step = 0; step < 60_000; step++) {
    // Phases of growth and of shrinking, so that both a full and an empty arena are seen.
    const growing = Math.floor(step / 2000) % 2 === 0;
    if (buffers.length > 0 && random.chance(growing ? 0.3 : 0.7)) {
      const [{ offset, lengthBytes }] = buffers.splice(random.below(buffers.length), 1);
      const size = rounded(lengthBytes);
      arena.release(offset, random.chance(0.5) ? lengthBytes : size);
      owners.fill(0, offset / 4096, (offset + size) / 4096);
      used -= size;
    } else {
      const lengthBytes = random.chance(0.6)
        ? random.between(1, 4096)
        : random.between(1, 1 << random.between(12, 20));
      const size = rounded(lengthBytes);
      const offset = arena.allocate(lengthBytes);
      if (offset === -1) {
        assertEquals(hasRoom(owners, size), false, `step ${step}: ${size} bytes were to be had`);
        refused++;
        continue;
      }
      assertEquals(offset % size, 0, `step ${step}: ${offset} is not aligned to ${size}`);
      assertEquals(offset >= 0 && offset + size <= 4 * MIB, true);
      for (let page = offset / 4096; page < (offset + size) / 4096; page++) {
        assertEquals(owners[page], 0, `step ${step}: page ${page} has two owners`);
        owners[page] = 1;
      }
      buffers.push({ offset, lengthBytes });
      used += size;
    }
    assertEquals(arena.usedBytes, used);
  }
  assertEquals(refused > 100, true, `only ${refused} refusals: the test never filled the arena`);
  for (const { offset, lengthBytes } of buffers) arena.release(offset, lengthBytes);
  assertEquals(arena.usedBytes, 0);
  for (let block = 0; block < 4; block++) assertEquals(arena.allocate(MIB) >= 0, true);
  assertEquals(arena.allocate(1), -1);
});

Deno.test("all of the default arena can be had, in pages and then in one-MiB buffers", () => {
  const arena = new Arena();
  const pages = Array.from({ length: ARENA_BYTES / 4096 }, () => arena.allocate(4096));
  assertEquals(new Set(pages).size, ARENA_BYTES / 4096);
  assertEquals(arena.allocate(1), -1);
  assertEquals(arena.freeBytes, 0);
  for (const page of pages) arena.release(page, 4096);
  const buffers = Array.from({ length: ARENA_BYTES / MIB }, () => arena.allocate(MIB));
  assertEquals(buffers.includes(-1), false);
});

Deno.test("reserve() takes the top, for good", () => {
  const arena = new Arena(8 * MIB);
  const first = arena.allocate(4096);
  assertEquals(arena.reserve(MIB + 1), 6 * MIB);
  assertEquals(arena.reserve(3 * MIB), 3 * MIB);
  assertEquals(arena.usedBytes, 5 * MIB + 4096);
  assertEquals(arena.reserve(3 * MIB), -1); // the lowest MiB is in use
  assertEquals(arena.reserve(2 * MIB), MIB);
  assertEquals(arena.allocate(MIB), -1);
  arena.release(first, 4096);
  assertEquals(arena.allocate(MIB), 0);
  assertEquals(arena.reserve(1), -1);
  assertThrows(() => arena.release(6 * MIB, MIB), Error, "reserved");
});

Deno.test("what was not allocated cannot be released", () => {
  const arena = new Arena(4 * MIB);
  const page = arena.allocate(4096);
  const neighbour = arena.allocate(4096);
  const large = arena.allocate(64 * KIB);
  arena.release(page, 4096);
  assertThrows(() => arena.release(page, 4096), Error, "free already"); // still on the stack
  assertThrows(() => arena.release(large, 4096), Error, "a buffer of 65536 bytes");
  assertThrows(() => arena.release(large + 4096, 4096), Error, "no start of a buffer");
  assertThrows(() => arena.release(neighbour + 512, 512), Error);
  arena.release(large, 64 * KIB);
  assertThrows(() => arena.release(large, 64 * KIB), Error);
  for (const offset of [-1, -4096, 4 * MIB, 2 ** 32 + neighbour + 4096, NaN]) {
    assertThrows(() => arena.release(offset, 4096), Error, "arena: release");
  }
  assertEquals(arena.usedBytes, 4096);
});

Deno.test("lengths out of range are refused", () => {
  const arena = new Arena(MIB);
  for (const length of [0, -1, MIB + 1, NaN]) {
    assertThrows(() => arena.allocate(length), Error, "not within 1…1048576");
    assertThrows(() => arena.release(0, length), Error, "not within 1…1048576");
  }
  for (const size of [0, 4096, MIB + 4096, -MIB]) assertThrows(() => new Arena(size));
});

Deno.test("idleBytes is what lies below the reserved areas, while nothing of it is in use", () => {
  const arena = new Arena(8 * 1024 * 1024);
  assertEquals(arena.idleBytes, 8 * 1024 * 1024);
  arena.reserve(1024 * 1024);
  assertEquals(arena.idleBytes, 7 * 1024 * 1024);
  const buffer = arena.allocate(4096);
  assertEquals(arena.idleBytes, 0);
  arena.release(buffer, 4096);
  assertEquals(arena.idleBytes, 7 * 1024 * 1024);
});
