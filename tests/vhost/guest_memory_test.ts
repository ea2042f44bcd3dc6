import { assert, assertEquals, assertStringIncludes } from "@std/assert/mod.js";
import { Prng } from "../../agent/base/prng.ts";
import { copyOut } from "../../agent/vhost/queue.ts";
import { GuestMemory, REGIONS_MAX } from "../../agent/vhost/guest_memory.ts";
import { MockHost } from "./mock_host.ts";

const REGION = {
  guestAddress: 0x10000,
  userAddress: 0x7f00_0000_0000,
  sizeBytes: 0x8000,
  fileOffset: 0x1000,
};

function create(pieceBytes = Infinity) {
  const host = new MockHost();
  host.pieceBytes = pieceBytes;
  return { host, memory: new GuestMemory(host, host.windows) };
}

Deno.test("find() agrees with a walk over all regions and pieces, for any address", () => {
  const random = new Prng(1);
  for (let round = 0; round < 20; round++) {
    // Mappings up to 64 KiB stay whole in the mock, so regions are larger.
    const { host, memory } = create(random.pick([Infinity, 0x18000, 0x21000]));
    const map = new Map<number, number>();
    let guestAddress = 0;
    for (let i = 0; i < 4; i++) {
      guestAddress += random.below(3) * 0x1000;
      const sizeBytes = 0x11000 + random.below(6) * 0x10000;
      const file = host.createFile(sizeBytes);
      const region = { guestAddress, userAddress: guestAddress * 7, sizeBytes, fileOffset: 0 };
      assertEquals(memory.add(region, host.openFile(file)), null);
      for (let at = 0; at < sizeBytes; at += 0x800) map.set(guestAddress + at, file.offset + at);
      guestAddress += sizeBytes;
    }
    for (let tries = 0; tries < 2000; tries++) {
      const address = random.below(guestAddress * 1.2);
      const length = 1 + random.below(0x30000);
      const place = map.get(address - address % 0x800);
      assertEquals(memory.find(address, length), place !== undefined);
      if (place === undefined) continue;
      assertEquals(memory.window, 0);
      assertEquals(memory.offset, place + address % 0x800);
      assert(memory.contiguousBytes > 0 && memory.contiguousBytes <= length);
      assertEquals(memory.guestAddressOf(memory.window, memory.offset), address);
      // Every byte that is called contiguous is where it should be.
      const last = address + memory.contiguousBytes - 1;
      assertEquals(
        map.get(last - last % 0x800)! + last % 0x800,
        memory.offset + memory.contiguousBytes - 1,
      );
    }
    memory.clear();
    assertEquals(host.mappings.size, 0);
    assertEquals(host.open.size, 0);
    assertEquals(memory.find(0, 1), false);
  }
});

Deno.test("find() takes any number for an address", () => {
  const { host, memory } = create();
  for (const address of [0, -1, NaN, Infinity, 2 ** 64, 0.5]) {
    assertEquals(memory.find(address, 1), false);
  }
  memory.add(REGION, host.openFile(host.createFile(0x10000)));
  for (const address of [-1, NaN, Infinity, 2 ** 64, 0xffff, 0x18000]) {
    assertEquals(memory.find(address, 1), false);
  }
  assertEquals(memory.find(0x17fff, 4096), true);
  assertEquals(memory.contiguousBytes, 1);
});

const BAD: { what: string; change: Partial<typeof REGION>; reason: string }[] = [
  { what: "an empty region", change: { sizeBytes: 0 }, reason: "is empty" },
  { what: "an unaligned size", change: { sizeBytes: 0x800 }, reason: "not aligned" },
  { what: "an unaligned guest address", change: { guestAddress: 0x10010 }, reason: "not aligned" },
  {
    what: "an unaligned user address",
    change: { userAddress: 0x7f00_0000_0010 },
    reason: "not aligned",
  },
  { what: "an unaligned file offset", change: { fileOffset: 8 }, reason: "not aligned" },
  { what: "more than the file has", change: { sizeBytes: 0x20000 }, reason: "errno 22" },
  { what: "an offset behind the file", change: { fileOffset: 0x40000 }, reason: "errno 22" },
  { what: "a wrapping guest address", change: { guestAddress: 2 ** 53 - 0x1000 }, reason: "wraps" },
  { what: "a wrapping file offset", change: { fileOffset: 2 ** 53 - 0x1000 }, reason: "wraps" },
  { what: "an absurd size", change: { sizeBytes: 2 ** 52 }, reason: "exceeds" },
];

for (const { what, change, reason } of BAD) {
  Deno.test(`add() refuses ${what}, and closes the descriptor`, () => {
    const { host, memory } = create();
    const answer = memory.add({ ...REGION, ...change }, host.openFile(host.createFile(0x10000)));
    assertStringIncludes(answer!, reason);
    assertEquals(memory.regionCount, 0);
    assertEquals(host.open.size, 0);
    assertEquals(host.mappings.size, 0);
  });
}

Deno.test("add() refuses regions that overlap in guest or in user addresses", () => {
  const { host, memory } = create();
  const file = host.createFile(0x20000);
  assertEquals(memory.add(REGION, host.openFile(file)), null);
  for (
    const change of [
      { guestAddress: REGION.guestAddress + 0x7000, userAddress: 0x1000 },
      { guestAddress: REGION.guestAddress - 0x1000, userAddress: 0x1000 },
      { guestAddress: 0x100000, userAddress: REGION.userAddress + 0x7000 },
      { guestAddress: 0x100000, userAddress: REGION.userAddress - 0x7000 },
    ]
  ) {
    assertStringIncludes(memory.add({ ...REGION, ...change }, host.openFile(file))!, "overlaps");
  }
  const next = {
    ...REGION,
    guestAddress: REGION.guestAddress + 0x8000,
    userAddress: REGION.userAddress + 0x8000,
  };
  assertEquals(memory.add(next, host.openFile(file)), null);
  assertEquals(memory.regionCount, 2);
});

Deno.test("add() has a bound on the number of regions", () => {
  const { host, memory } = create();
  const file = host.createFile(0x1000);
  const region = (i: number) => ({
    guestAddress: i * 0x1000,
    userAddress: i * 0x1000,
    sizeBytes: 0x1000,
    fileOffset: 0,
  });
  for (let i = 0; i < REGIONS_MAX; i++) {
    assertEquals(memory.add(region(i), host.openFile(file)), null);
  }
  assertStringIncludes(memory.add(region(REGIONS_MAX), host.openFile(file))!, "one more than");
});

Deno.test("remove() takes away exactly the region named", () => {
  const { host, memory } = create();
  memory.add(REGION, host.openFile(host.createFile(0x10000)));
  assertEquals(memory.remove({ ...REGION, sizeBytes: 0x1000 }), false);
  assertEquals(memory.remove({ ...REGION, userAddress: 0x1000 }), false);
  // The file offset is not part of a region's name.
  assertEquals(memory.remove({ ...REGION, fileOffset: 0 }), true);
  assertEquals(memory.find(REGION.guestAddress, 1), false);
  assertEquals(host.mappings.size, 0);
});

Deno.test("a ring across the seam of two pieces gets a mapping of its own", () => {
  const { host, memory } = create(0x18000);
  const file = host.createFile(0x40000);
  const region = { ...REGION, sizeBytes: 0x30000 };
  assertEquals(memory.add(region, host.openFile(file)), null);
  assertEquals(host.open.size, 1, "kept for that purpose");
  const inside = memory.findRing(REGION.userAddress + 0x10, 0x100);
  if (typeof inside === "string") throw new Error(inside);
  assertEquals(inside.mapping, null);
  const across = memory.findRing(REGION.userAddress + 0x18000 - 0x20, 0x100);
  if (typeof across === "string") throw new Error(across);
  assertEquals(across.mapping?.length, 1);
  assertEquals(across.offset, file.offset + 0x1000 + 0x18000 - 0x20);
  memory.releasePlace(across);
  assertEquals(typeof memory.findRing(REGION.userAddress + 0x30000 - 0x20, 0x100), "string");
  assertEquals(typeof memory.findRing(REGION.userAddress - 1, 0x100), "string");
  memory.clear();
  assertEquals(host.open.size, 0);
  assertEquals(host.mappings.size, 0);
});

Deno.test("copyOut() copies across pieces and refuses what leaves the regions", () => {
  const { host, memory } = create(0x18000);
  const file = host.createFile(0x40000);
  memory.add({ ...REGION, fileOffset: 0, sizeBytes: 0x30000 }, host.openFile(file));
  for (let i = 0; i < 0x30000; i++) host.bytes[file.offset + i] = i * 7;
  const target = new Uint8Array(64);
  assert(copyOut(memory, REGION.guestAddress + 0x18000 - 30, 64, target));
  assertEquals(target, Uint8Array.from({ length: 64 }, (_, i) => (0x18000 - 30 + i) * 7));
  assertEquals(copyOut(memory, REGION.guestAddress + 0x30000 - 30, 64, target), false);
});
