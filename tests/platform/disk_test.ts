/**
 * The store's file through io_uring and writev(2), against an array of bytes.
 *
 * @module
 */
import { assertEquals, assertThrows } from "@std/assert/mod.js";
import { Prng } from "../../agent/base/prng.ts";
import {
  BLANK_DEVICE_BYTES,
  INLINE_WRITE_BYTES_MAX,
  isBlank,
  LinuxDisk,
  openStoreFile,
} from "../../agent/platform/linux/disk.ts";
import { SystemError } from "../../agent/platform/linux/libc.ts";
import { LinuxMemory, type Piece } from "../../agent/platform/linux/memory.ts";
import { Ring } from "../../agent/platform/linux/ring.ts";
import { ScatterLists } from "../../agent/platform/linux/scatter.ts";

const MIB = 1024 * 1024;
const BLOCK = 4096;
const FILE_BLOCKS = 2048;
const memory = new LinuxMemory();
const arena = memory.windows[0].bytes;
/** Guest memory: two mappings of 320 MiB, of which little is touched. */
const guest = [1, 2].map(() => {
  const bytes = 320 * 1024 * 1024;
  const fd = memory.createShared("guest", bytes);
  const [piece] = memory.mapShared(fd, 0, bytes) as Piece[];
  return piece;
});

class Bench {
  readonly ring = new Ring();
  readonly disk: LinuxDisk;
  readonly results = new Map<number, number>();
  insideCall = false;
  #next = 1;

  constructor(path: string, direct: boolean) {
    const file = openStoreFile({ path, direct, create: true });
    this.disk = new LinuxDisk({
      ring: this.ring,
      file,
      direct,
      memory,
    });
    this.disk.listener = {
      diskDone: (token, result) => {
        assertEquals(this.insideCall, false, "completed inside the call");
        assertEquals(this.results.has(token), false, "completed twice");
        this.results.set(token, result);
      },
    };
  }

  start(call: (token: number) => void): number {
    const token = this.#next++;
    this.insideCall = true;
    call(token);
    this.insideCall = false;
    return token;
  }

  wait(token: number): number {
    for (let i = 0; i < 1000 && !this.results.has(token); i++) {
      this.ring.enter(this.disk.hasReady ? 0 : 50);
      this.ring.dispatch();
      this.disk.deliver();
    }
    assertEquals(this.results.has(token), true, "the request does not complete");
    return this.results.get(token)!;
  }

  close(): void {
    this.disk.close();
    this.ring.close();
  }
}

for (const direct of [false, true]) {
  Deno.test(`writes of every shape are read back, ${direct ? "past" : "through"} the page cache`, () => {
    const directory = Deno.makeTempDirSync({ dir: direct ? "/var/tmp" : undefined });
    const bench = new Bench(`${directory}/store`, direct);
    try {
      const { disk } = bench;
      const random = new Prng(direct ? 2 : 1);
      const model = new Uint8Array(FILE_BLOCKS * BLOCK);
      random.fill(arena.subarray(0, 4 * 1024 * 1024));
      bench.wait(bench.start((token) => disk.allocate(token, 0, model.length)));
      let sequential = 0;
      for (let i = 0; i < 200; i++) {
        // One entry, many, neighbours that become one, and more than is written inline.
        const entries = random.pick([1, 2, 5, 40, 130]);
        const vector = {
          count: entries,
          offsets: new Uint32Array(entries),
          lengths: new Uint32Array(entries),
        };
        let total = 0;
        for (let e = 0; e < entries; e++) {
          vector.lengths[e] = BLOCK * (1 + random.below(random.chance(0.1) ? 16 : 2));
          vector.offsets[e] = e > 0 && random.chance(0.4)
            ? vector.offsets[e - 1] + vector.lengths[e - 1]
            : BLOCK * random.below(900);
          total += vector.lengths[e];
        }
        const isNext = random.chance(0.6) && sequential + total <= model.length;
        const offset = isNext ? sequential : BLOCK * random.below(FILE_BLOCKS - total / BLOCK);
        const token = bench.start((token) => disk.write(token, offset, vector));
        assertEquals(bench.wait(token), total);
        sequential = offset + total;
        let at = offset;
        for (let e = 0; e < entries; e++) {
          const from = vector.offsets[e];
          model.set(arena.subarray(from, from + vector.lengths[e]), at);
          at += vector.lengths[e];
        }
      }
      assertEquals(bench.wait(bench.start((token) => disk.sync(token))), 0);
      const buffer = 8 * 1024 * 1024;
      for (let i = 0; i < 100; i++) {
        const blocks = 1 + random.below(256);
        const offset = BLOCK * random.below(FILE_BLOCKS - blocks);
        arena.fill(0xee, buffer, buffer + blocks * BLOCK);
        const length = blocks * BLOCK;
        const token = bench.start((token) => disk.read(token, offset, buffer, length));
        assertEquals(bench.wait(token), length);
        const differs = model.subarray(offset, offset + length)
          .findIndex((byte, index) => byte !== arena[buffer + index]);
        assertEquals(differs, -1, `read of ${blocks} blocks at ${offset}`);
      }
      // The same into guest memory of two mappings, in places of any order.
      const vector = {
        count: 0,
        windows: new Uint16Array(256),
        offsets: new Uint32Array(256),
        lengths: new Uint32Array(256),
      };
      for (let i = 0; i < 60; i++) {
        const blocks = random.pick([1, 2, 17, 256]);
        // Some of them leave the file at its end.
        const offset = BLOCK * random.below(FILE_BLOCKS);
        const order = random.shuffle(Array.from({ length: blocks }, (_, place) => place));
        vector.count = 0;
        for (let at = 0; at < blocks;) {
          const count = Math.min(blocks - at, random.pick([1, 1, 3, 100]));
          const piece = guest[random.below(guest.length)];
          vector.windows[vector.count] = piece.window;
          vector.offsets[vector.count] = piece.offset + order[at] * 300 * BLOCK;
          vector.lengths[vector.count++] = count * BLOCK;
          at += count;
        }
        for (let e = 0; e < vector.count; e++) {
          const { bytes } = memory.windows[vector.windows[e]];
          bytes.fill(0xee, vector.offsets[e], vector.offsets[e] + vector.lengths[e] + BLOCK);
        }
        const token = bench.start((token) => disk.readScattered(token, offset, vector));
        assertEquals(bench.wait(token), blocks * BLOCK);
        let at = offset;
        for (let e = 0; e < vector.count; e++) {
          const { bytes } = memory.windows[vector.windows[e]];
          const start = vector.offsets[e], end = start + vector.lengths[e];
          const differs = bytes.subarray(start, end)
            .findIndex((byte, index) => byte !== (model[at + index] ?? 0));
          assertEquals(differs, -1, `scattered read of ${blocks} blocks at ${offset}, entry ${e}`);
          assertEquals(bytes[end], 0xee, "written past a place");
          at += vector.lengths[e];
        }
      }
      // Past the end there are zeros, and a hole reads as zeros.
      arena.fill(0xee, buffer, buffer + 4 * BLOCK);
      const end = (FILE_BLOCKS - 1) * BLOCK;
      assertEquals(
        bench.wait(bench.start((token) => disk.read(token, end, buffer, 4 * BLOCK))),
        4 * BLOCK,
      );
      assertEquals(
        arena.subarray(buffer + BLOCK, buffer + 4 * BLOCK).some((byte) => byte !== 0),
        false,
      );
      assertEquals(bench.wait(bench.start((token) => disk.punch(token, 0, 16 * BLOCK))), 0);
      bench.wait(bench.start((token) => disk.read(token, 0, buffer, 16 * BLOCK)));
      assertEquals(arena.subarray(buffer, buffer + 16 * BLOCK).some((byte) => byte !== 0), false);
      assertEquals(disk.inFlight, 0);
    } finally {
      bench.close();
      Deno.removeSync(directory, { recursive: true });
    }
  });
}

Deno.test("a record with 256 KiB of data is written at once, a larger one beside this thread", () => {
  const directory = Deno.makeTempDirSync();
  const bench = new Bench(`${directory}/store`, false);
  try {
    const { disk } = bench;
    for (const lengthBytes of [(5 + 64) * BLOCK, INLINE_WRITE_BYTES_MAX + BLOCK]) {
      const vector = {
        count: 2,
        offsets: Uint32Array.of(0, 1024 * 1024),
        lengths: Uint32Array.of(BLOCK, lengthBytes - BLOCK),
      };
      const token = bench.start((token) => disk.write(token, 0, vector));
      assertEquals(disk.hasReady, lengthBytes <= INLINE_WRITE_BYTES_MAX);
      assertEquals(bench.wait(token), lengthBytes);
    }
  } finally {
    bench.close();
    Deno.removeSync(directory, { recursive: true });
  }
});

Deno.test("a scatter list joins what touches, and goes on where a short transfer ended", () => {
  const lists = new ScatterLists(2, 4);
  const base = memory.addressOf(0, 0);
  const list = lists.take();
  const other = lists.take();
  assertThrows(() => lists.take(), Error, "more requests");
  lists.add(other, base, 1);
  for (const [at, length] of [[0, 100], [100, 50], [400, 10], [1000, 20]]) {
    lists.add(list, base + at, length);
  }
  const rest = () =>
    Array.from({ length: lists.count(list) }, (_, i) => [
      lists.entryAddress(list, i) - base,
      lists.entryBytes(list, i),
    ]);
  assertEquals(rest(), [[0, 150], [400, 10], [1000, 20]]);
  const address = lists.address(list);
  lists.advance(list, 120);
  assertEquals(rest(), [[120, 30], [400, 10], [1000, 20]]);
  lists.advance(list, 30);
  assertEquals(rest(), [[400, 10], [1000, 20]]);
  assertEquals(lists.address(list), address + 16);
  lists.advance(list, 15);
  assertEquals(rest(), [[1005, 15]]);
  lists.release(list);
  const again = lists.take();
  for (let i = 0; i < 4; i++) lists.add(again, base + i * 100, 10);
  assertThrows(() => lists.add(again, base + 900, 10), Error, "too long");
  lists.add(again, base + 310, 10);
  assertEquals(lists.count(again), 4);
});

Deno.test("a store's file is locked, private, and told from one that is blank", () => {
  const directory = Deno.makeTempDirSync();
  const path = `${directory}/store`;
  const bench = new Bench(path, false);
  try {
    assertEquals(Deno.statSync(path).mode! & 0o777, 0o600);
    assertThrows(
      () => openStoreFile({ path, direct: false, create: false }),
      SystemError,
      "another kelpie agent is using it",
    );
    assertEquals(isBlank(path), true);
    Deno.writeFileSync(path, Uint8Array.of(1), { append: true });
    assertEquals(isBlank(path), false);
    assertThrows(
      () => openStoreFile({ path: `${directory}/no/such`, direct: false, create: true }),
      SystemError,
      "ENOENT",
    );
  } finally {
    bench.close();
    Deno.removeSync(directory, { recursive: true });
  }
});

Deno.test("a file is blank when all of it is zeros, however long, and a device when its beginning is", async () => {
  const directory = Deno.makeTempDirSync();
  const path = `${directory}/store`;
  const put = (bytes: Uint8Array, offset: number) => {
    using file = Deno.openSync(path, { write: true, create: true });
    file.seekSync(offset, Deno.SeekMode.Start);
    file.writeSync(bytes);
  };
  try {
    // What a creation leaves that was cut short.
    put(new Uint8Array(4096), 0);
    assertEquals(isBlank(path), true);
    put(new Uint8Array(4096), 512 * 1024);
    assertEquals(isBlank(path), true);
    // What is prepared with truncate, and written in full, to an odd length.
    Deno.truncateSync(path, 1024 * MIB);
    assertEquals(isBlank(path), true);
    put(new Uint8Array(3 * MIB + 5), 100 * MIB);
    assertEquals(isBlank(path), true);
    Deno.truncateSync(path, 103 * MIB + 5);
    assertEquals(isBlank(path), true);
    // One byte, wherever it is, behind a hole or written zeros.
    for (const at of [0, MIB, 101 * MIB, 103 * MIB + 4, 1000 * MIB + 3]) {
      put(Uint8Array.of(1), at);
      assertEquals(isBlank(path), false, `byte ${at}`);
      put(new Uint8Array(1), at);
      assertEquals(isBlank(path), true, `byte ${at} is zero again`);
    }
    // Its pages are the kernel's until it goes: each look is at a new one.
    const isDeviceBlank = async () => {
      await using device = await loopDevice(path);
      return device === null ? null : isBlank(device.path);
    };
    if (await isDeviceBlank() === null) return; // not to be had here
    assertEquals(await isDeviceBlank(), true);
    put(Uint8Array.of(1), BLANK_DEVICE_BYTES);
    assertEquals(await isDeviceBlank(), true, "whoever wipes a disk need not write all of it");
    put(Uint8Array.of(1), BLANK_DEVICE_BYTES - 1);
    assertEquals(await isDeviceBlank(), false);
  } finally {
    Deno.removeSync(directory, { recursive: true });
  }
});

/** A block device over a file; null: none can be made here. */
async function loopDevice(file: string): Promise<AsyncDisposable & { path: string } | null> {
  const losetup = async (...args: string[]) => {
    try {
      return await new Deno.Command("losetup", { args }).output();
    } catch (error) {
      if (error instanceof Deno.errors.NotFound) return null;
      throw error;
    }
  };
  const made = await losetup("--find", "--show", file);
  if (made?.success !== true) return null;
  const path = new TextDecoder().decode(made.stdout).trim();
  return {
    path,
    async [Symbol.asyncDispose]() {
      await losetup("--detach", path);
    },
  };
}

Deno.test("one sync is with the kernel at a time, and they are answered in order", () => {
  const submitted: number[] = [];
  const ring = {
    register: () => 1,
    prepare: (_kind: number, slot: number) => submitted.push(slot),
  } as unknown as Ring;
  const file = { fd: -1, isBlockDevice: false, sizeBytes: 0 };
  const memory = { arenaAddress: 0 } as unknown as LinuxMemory;
  const disk = new LinuxDisk({ ring, file, direct: false, memory });
  const answers: [number, number][] = [];
  disk.listener = { diskDone: (token, result) => answers.push([token, result]) };
  for (const token of [11, 12, 13]) disk.sync(token);
  assertEquals(submitted.length, 1);
  disk.ringDone(submitted[0], -4);
  assertEquals([submitted.length, submitted[1]], [2, submitted[0]], "interrupted: asked again");
  disk.ringDone(submitted[1], -5);
  assertEquals([submitted.length, answers], [3, [[11, -5]]]);
  disk.sync(14);
  disk.ringDone(submitted[2], 0);
  disk.ringDone(submitted[3], 0);
  disk.ringDone(submitted[4], 0);
  assertEquals(answers, [[11, -5], [12, 0], [13, 0], [14, 0]]);
  assertEquals([submitted.length, disk.inFlight], [5, 0]);
});
