/** The simulated disk is as bad as it says, and no worse. */
import { assert, assertEquals, assertThrows } from "@std/assert/mod.js";
import { Prng } from "../../agent/base/prng.ts";
import { SimulatedDisk } from "../../agent/platform/simulated/disk.ts";

const BLOCK = 4096;

function make(seed = 1) {
  const bytes = new Uint8Array(64 * BLOCK);
  const disk = new SimulatedDisk({ bytes, random: new Prng(seed), sizeBytes: 256 * BLOCK });
  const done = new Map<number, number>();
  disk.listener = { diskDone: (token, result) => void done.set(token, result) };
  const vector = (at: number, length = BLOCK) => ({
    count: 1,
    offsets: Uint32Array.of(at),
    lengths: Uint32Array.of(length),
  });
  const write = (token: number, block: number, value: number) => {
    bytes.fill(value, 0, BLOCK);
    disk.write(token, block * BLOCK, vector(0));
    while (disk.pump());
  };
  return { bytes, disk, done, vector, write };
}

Deno.test("completions come later, once each, in any order", () => {
  const { disk, done, vector } = make();
  for (let i = 0; i < 10; i++) disk.write(i, i * BLOCK, vector(i * BLOCK));
  assertEquals(done.size, 0);
  const order: number[] = [];
  disk.listener = { diskDone: (token) => void order.push(token) };
  while (disk.pump());
  assertEquals([...order].sort((a, b) => a - b), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
  assert(order.some((token, i) => token !== i));
});

Deno.test("a scattered read fills its places in order, and leaves the rest alone", () => {
  const { disk, done, write, bytes } = make();
  for (let i = 0; i < 3; i++) write(i, i, i + 1);
  bytes.fill(9);
  const vector = {
    count: 2,
    windows: Uint16Array.of(0, 0),
    offsets: Uint32Array.of(20 * BLOCK, 10 * BLOCK),
    lengths: Uint32Array.of(BLOCK, 2 * BLOCK),
  };
  disk.readScattered(7, 0, vector);
  // The caller may use it for the next request at once.
  vector.offsets.fill(0);
  while (disk.pump());
  assertEquals(done.get(7), 3 * BLOCK);
  const first = [20, 10, 11, 12, 19, 21, 0].map((block) => bytes[block * BLOCK]);
  assertEquals(first, [1, 2, 3, 9, 9, 9, 9]);
  vector.windows[0] = 1;
  assertThrows(() => disk.readScattered(8, 0, vector));
});

Deno.test("a write that is lost succeeds and changes nothing, now or later", () => {
  const { disk, done, write } = make();
  write(1, 3, 1);
  disk.faults = { loses: (offset, data) => offset === 3 * BLOCK && data[0] === 2 };
  write(2, 3, 2);
  write(3, 4, 2);
  assertEquals([done.get(2), disk.peek(3 * BLOCK, 1)[0]], [BLOCK, 1]);
  assertEquals([done.get(3), disk.peek(4 * BLOCK, 1)[0]], [BLOCK, 2]);
  disk.sync(4);
  while (disk.pump());
  assertEquals(disk.peek(3 * BLOCK, 1)[0], 1);
});

Deno.test("a crash keeps what was synced, and may lose, keep or tear the rest by sectors", () => {
  const { disk, write, bytes } = make();
  write(1, 0, 1);
  disk.sync(2);
  while (disk.pump());
  write(3, 0, 2);
  write(4, 1, 3);
  const random = new Prng(7);
  const seen = new Set<string>();
  for (let i = 0; i < 300; i++) {
    const after = disk.crash(random, bytes);
    let shape = "";
    for (const [block, values] of [[0, [1, 2]], [1, [0, 3]]] as const) {
      const content = after.peek(block * BLOCK, BLOCK);
      const sectors: number[] = [];
      for (let sector = 0; sector < 8; sector++) {
        const value = content[sector * 512];
        assert((values as readonly number[]).includes(value));
        assert(content.subarray(sector * 512, sector * 512 + 512).every((byte) => byte === value));
        sectors.push(value);
      }
      shape += new Set(sectors).size > 1 ? "torn " : `${sectors[0]} `;
    }
    seen.add(shape);
  }
  for (const shape of ["1 0 ", "1 3 ", "2 0 ", "2 3 ", "torn 0 ", "1 torn ", "torn torn "]) {
    assert(seen.has(shape), `${shape} was never seen`);
  }
});

Deno.test("a sync covers what had completed when it was asked for, not what came after", () => {
  const { disk, vector, bytes, write } = make();
  write(1, 0, 1);
  disk.sync(2);
  bytes.fill(9, BLOCK, 2 * BLOCK);
  disk.write(3, BLOCK, vector(BLOCK));
  while (disk.pump());
  const after = disk.crash(new Prng(1), bytes, { keep: 0, lose: 1 });
  assertEquals([after.peek(0, 1)[0], after.peek(BLOCK, 1)[0]], [1, 0]);
});

Deno.test("when only the process dies, completed writes stay, and are still not durable", () => {
  const { disk, write, bytes } = make();
  write(1, 0, 5);
  const killed = disk.crash(new Prng(1), bytes, { processOnly: true });
  assertEquals(killed.peek(0, 1)[0], 5);
  const dead = killed.crash(new Prng(1), bytes, { keep: 0, lose: 1 });
  assertEquals(dead.peek(0, 1)[0], 0);
});

Deno.test("what a crash leaves is not changed by what the old disk writes later", () => {
  const { disk, write, bytes } = make();
  write(1, 0, 5);
  const killed = disk.crash(new Prng(1), bytes, { processOnly: true });
  // The old disk is done with its buffer, and uses it for another write.
  disk.sync(2);
  while (disk.pump());
  write(3, 1, 6);
  killed.sync(4);
  while (killed.pump());
  const dead = killed.crash(new Prng(1), bytes, { keep: 0, lose: 1 });
  assertEquals([dead.peek(0, 1)[0], dead.peek(BLOCK, 1)[0]], [5, 0]);
});

Deno.test("a buffer that changes while it is written is reported", () => {
  const { disk, vector, bytes } = make();
  disk.write(1, 0, vector(0));
  bytes[100] = 1;
  assertThrows(() => disk.pump(), Error, "changed in flight");
});

Deno.test("space: allocation beyond the limit is ENOSPC, punching gives back", () => {
  const { disk, done } = make();
  disk.faults = { spaceBytesMax: 10 * BLOCK };
  disk.allocate(1, 0, 8 * BLOCK);
  disk.allocate(2, 8 * BLOCK, 8 * BLOCK);
  while (disk.pump());
  assertEquals([done.get(1), done.get(2)].sort(), [-28, 0]);
  assertEquals(disk.spaceBytes, 8 * BLOCK);
  disk.punch(3, 0, 16 * BLOCK);
  while (disk.pump());
  assertEquals(disk.spaceBytes, 0);
});

Deno.test("requests that are not aligned or leave the disk are the caller's fault", () => {
  const { disk, vector } = make();
  assertThrows(() => disk.read(1, 100, 0, BLOCK));
  assertThrows(() => disk.read(1, 0, 1, BLOCK));
  assertThrows(() => disk.write(1, 256 * BLOCK, vector(0)));
});
