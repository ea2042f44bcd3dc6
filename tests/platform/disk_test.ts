/**
 * The store's file through io_uring and writev(2), against an array of bytes.
 *
 * @module
 */
import { assertEquals, assertThrows } from "@std/assert/mod.js";
import { Prng } from "../../agent/base/prng.ts";
import { isBlank, LinuxDisk, openStoreFile } from "../../agent/platform/linux/disk.ts";
import { SystemError } from "../../agent/platform/linux/libc.ts";
import { LinuxMemory } from "../../agent/platform/linux/memory.ts";
import { Ring } from "../../agent/platform/linux/ring.ts";

const BLOCK = 4096;
const FILE_BLOCKS = 2048;
const memory = new LinuxMemory();
const arena = memory.windows[0].bytes;

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
      arenaAddress: memory.arenaAddress,
      arena,
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
    Deno.truncateSync(path, 8192);
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
