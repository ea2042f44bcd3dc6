/**
 * The front end against QEMU's back end.
 *
 * @module
 */
import { assertEquals, assertRejects } from "@std/assert/mod.js";
import { Prng } from "../../agent/base/prng.ts";
import { copyFromDisk, copyToDisk } from "../../agent/frontend/copy.ts";
import { FrontEnd, type FrontEndOptions } from "../../agent/frontend/front_end.ts";
import { FEATURE_EVENT_INDEX } from "../../agent/frontend/virtio_blk.ts";
import { DISK_BYTES, patch, peek, withStorageDaemon } from "./storage_daemon_fixture.ts";

const MIB = 1024 * 1024;

function randomBytes(random: Prng, lengthBytes: number): Uint8Array {
  const bytes = new Uint8Array(lengthBytes);
  random.fill(bytes);
  return bytes;
}

Deno.test("what is written is in the file, and what is in the file is read, whatever the chains", async () => {
  await withStorageDaemon(async ({ file, socket }) => {
    const variants: Partial<FrontEndOptions>[] = [
      {},
      { indirect: true },
      { indirect: true, segments: 5 },
      { segments: 4 },
      { withoutFeatures: FEATURE_EVENT_INDEX },
      { queues: 2, depth: 1, bufferBytes: 4096 },
    ];
    const random = new Prng(1);
    const model = new Uint8Array(4 * MIB);
    for (const variant of variants) {
      await using disk = await FrontEnd.connect({ socket, ...variant });
      assertEquals(disk.capacityBytes, DISK_BYTES);
      for (let step = 0; step < 40; step++) {
        const sectors = random.between(1, random.pick([1, 8, 64, 1024]));
        const offset = random.below(8192 - sectors + 1) * 512;
        if (random.chance(0.5)) {
          const bytes = randomBytes(random, sectors * 512);
          await disk.write(offset, bytes);
          model.set(bytes, offset);
        } else {
          const bytes = new Uint8Array(sectors * 512);
          await disk.read(offset, bytes);
          assertEquals(
            bytes,
            model.subarray(offset, offset + bytes.length),
            JSON.stringify({ offset, sectors, queues: variant.queues, step }),
          );
        }
      }
      await disk.flush();
      assertEquals(peek(file, 0, model.length), model);
      assertEquals(disk.queues[0].usedLengthMismatches, 0);
      await disk.close();
      assertEquals(disk.warnings, []);
    }
  });
});

Deno.test("discard and write-zeroes reach the file", async () => {
  await withStorageDaemon(async ({ file, socket }) => {
    await using disk = await FrontEnd.connect({ socket });
    const bytes = randomBytes(new Prng(2), MIB);
    await disk.write(0, bytes);
    await disk.writeZeroes(4096, 8192);
    await disk.writeZeroes(65536, 512, { unmap: false });
    bytes.fill(0, 4096, 12288).fill(0, 65536, 66048);
    assertEquals(peek(file, 0, MIB), bytes);
    await disk.discard(128 * 1024, 128 * 1024); // what it reads as is up to the device
    const read = new Uint8Array(128 * 1024);
    await disk.read(0, read);
    assertEquals(read, bytes.subarray(0, read.length));
  });
});

Deno.test("the device says who it is", async () => {
  await withStorageDaemon(async ({ socket, daemon }) => {
    await using disk = await FrontEnd.connect({ socket });
    assertEquals(disk.backEndPid, daemon.pid);
    assertEquals(await disk.identity(), "vhost_user_blk");
    assertEquals(disk.queueCountMax, 2);
    assertEquals(disk.isReadOnly, false);
    assertEquals(disk.config.blockBytes, 512);
  });
});

Deno.test("one front end after the other is served, and no descriptor is left behind", async () => {
  await withStorageDaemon(async ({ socket }) => {
    const openFds = () => [...Deno.readDirSync("/proc/self/fd")].length;
    await (await FrontEnd.connect({ socket })).close();
    const before = openFds();
    for (let round = 0; round < 5; round++) {
      const disk = await FrontEnd.connect({ socket, queues: 2 });
      await disk.read(0, new Uint8Array(512));
      if (round % 2 === 0) await disk.close();
      else disk.abort();
    }
    await assertRejects(() => FrontEnd.connect({ socket, queues: 3 }), RangeError);
    assertEquals(openFds(), before);
  });
});

Deno.test("a second front end at the same time is told that there is one already", async () => {
  await withStorageDaemon(async ({ socket }) => {
    await using _first = await FrontEnd.connect({ socket });
    await assertRejects(
      () => FrontEnd.connect({ socket, replyTimeoutMs: 100 }),
      Error,
      "serving another front end",
    );
  });
});

Deno.test("a back end that is killed fails what is in flight at once", async () => {
  await withStorageDaemon(async ({ socket, daemon }) => {
    const disk = await FrontEnd.connect({ socket, stallTimeoutMs: 600_000 });
    await disk.read(0, new Uint8Array(512));
    await daemon.stop("SIGKILL");
    await assertRejects(() => disk.read(0, new Uint8Array(512)), Error, "closed the connection");
    await disk.close(); // no error: there is nothing to drain any more
  });
});

Deno.test("copies of odd lengths arrive, in both directions, with progress to the last byte", async () => {
  await withStorageDaemon(async ({ file, socket }) => {
    await using disk = await FrontEnd.connect({ socket });
    for (const lengthBytes of [0, 1, 511, 512, 513, MIB, 11 * MIB + 777, DISK_BYTES]) {
      const bytes = randomBytes(new Prng(lengthBytes), lengthBytes);
      const progress: number[] = [];
      let taken = 0;
      const source = (buffer: Uint8Array, offset: number) => {
        assertEquals(offset, taken);
        const piece = bytes.subarray(taken, taken + buffer.length);
        buffer.set(piece);
        taken += piece.length;
        return piece.length;
      };
      const onProgress = (done: number) => progress.push(done);
      assertEquals(await copyToDisk(disk, source, { onProgress }), lengthBytes);
      assertEquals(progress, progress.toSorted((a, b) => a - b));
      assertEquals(progress.at(-1), lengthBytes);
      const padded = new Uint8Array(Math.ceil(lengthBytes / 512) * 512);
      padded.set(bytes);
      assertEquals(peek(file, 0, padded.length), padded, `${lengthBytes} bytes in the file`);

      const copy = new Uint8Array(padded.length);
      let next = 0;
      const sink = async (piece: Uint8Array, offset: number) => {
        assertEquals(offset, next);
        next += piece.length;
        if (offset % (3 * MIB) === 0) await Promise.resolve();
        copy.set(piece, offset);
      };
      progress.length = 0;
      await copyFromDisk(disk, sink, { lengthBytes: padded.length, onProgress });
      assertEquals(copy, padded);
      assertEquals(progress.at(-1), padded.length > 0 ? padded.length : undefined);
    }
  });
});

Deno.test("zeros are left out of a copy when asked", async () => {
  await withStorageDaemon(async ({ file, socket }) => {
    await using disk = await FrontEnd.connect({ socket });
    patch(file, 0, new Uint8Array(4 * MIB).fill(0xaa));
    const source = (buffer: Uint8Array, offset: number) => {
      buffer.fill(0);
      if (offset === 2 * MIB) buffer[buffer.length - 1] = 1;
      return buffer.length;
    };
    await copyToDisk(disk, source, { lengthBytes: 4 * MIB, zeroes: "skip" });
    const bytes = peek(file, 0, 4 * MIB);
    assertEquals([bytes[0], bytes[MIB], bytes[2 * MIB], bytes[3 * MIB - 1], bytes[3 * MIB]], [
      0xaa,
      0xaa,
      0,
      1,
      0xaa,
    ]);
  });
});

Deno.test("a copy that fails or is stopped leaves the disk usable", async () => {
  await withStorageDaemon(async ({ socket }) => {
    await using disk = await FrontEnd.connect({ socket });
    const fail = (_: Uint8Array, offset: number): number => {
      if (offset >= 5 * MIB) throw new Error("the source is broken");
      return MIB;
    };
    await assertRejects(() => copyToDisk(disk, fail), Error, "the source is broken");
    const failLater = (bytes: Uint8Array, offset: number) => void fail(bytes, offset);
    await assertRejects(() => copyFromDisk(disk, failLater), Error, "the source is broken");
    const stop = new AbortController();
    const stopAt = (_: Uint8Array, offset: number) => {
      if (offset === 3 * MIB) stop.abort(new Error("the user said stop"));
    };
    const { signal } = stop;
    await assertRejects(() => copyFromDisk(disk, stopAt, { signal }), Error, "the user said stop");
    assertEquals(disk.queues[0].freeCount, disk.queues[0].slotCount);
    assertEquals(disk.inFlight, 0);
    await disk.read(0, new Uint8Array(512));
  });
});
