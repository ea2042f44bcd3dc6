/**
 * How much of a backup's and a restore's work is under way at one time, over `qemu-storage-daemon`.
 *
 * @module
 */
import { assert, assertEquals, assertRejects } from "@std/assert/mod.js";
import type { BackupHeader } from "../../agent/backup/format.ts";
import { Prng } from "../../agent/base/prng.ts";
import { FrontEnd } from "../../agent/frontend/front_end.ts";
import { hasZstd } from "../../agent/platform/linux/zstd.ts";
import { BackupSource, pipeIn, pipeOut } from "../../cli/backup_pipe.ts";
import { patch, peek, withStorageDaemon } from "../frontend/storage_daemon_fixture.ts";
import { within } from "../guest/deadline.ts";

const MIB = 1024 * 1024;
const DEPTH = 8, SIZE = 24 * MIB;

// Loaded here: else the first test would look as if it leaked a library.
assert(hasZstd());

const HEADER: BackupHeader = {
  disk: "web",
  snapshot: "a",
  sizeBytes: SIZE,
  createdMs: 0,
  identity: { cluster: "c", disk: 1, family: 1, layer: 2 },
  base: null,
  compression: "zstd",
};

/** A connection that notes how many requests are under way whenever one is waited for. */
class Watched {
  readonly underWay: number[] = [];
  started = 0;

  private constructor(readonly disk: FrontEnd) {
    const [start, finish] = [disk.start.bind(disk), disk.finish.bind(disk)];
    disk.start = (slot) => {
      this.started++;
      start(slot);
    };
    disk.finish = (slot) => {
      this.underWay.push(this.started - this.underWay.length);
      return finish(slot);
    };
  }

  static async connect(socket: string): Promise<Watched> {
    return new Watched(await FrontEnd.connect({ socket, depth: DEPTH, bufferBytes: MIB }));
  }

  /** As many as there are slots, and fewer only when there are no more to come. */
  assertDeep(): void {
    const { started, underWay } = this;
    assertEquals(underWay, underWay.map((_, done) => Math.min(DEPTH, started - done)));
    assert(started > DEPTH);
  }
}

/** Half of each MiB is not to be compressed. */
function content(): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(SIZE).fill(7);
  for (let at = 0; at < SIZE; at += MIB) new Prng(at).fill(bytes.subarray(at, at + MIB / 2));
  return bytes;
}

async function* whole() {
  yield { offsetBytes: 0, lengthBytes: SIZE, isZero: false };
}

/** Reads parts one after the other. */
function sourceOf(parts: readonly Uint8Array[]): BackupSource {
  const left = [...parts];
  return new BackupSource((into) => {
    const part = left.shift() ?? new Uint8Array(0);
    into.set(part.subarray(0, into.length));
    if (part.length > into.length) left.unshift(part.subarray(into.length));
    return Promise.resolve(Math.min(into.length, part.length));
  });
}

for (const compression of ["zstd", "none"] as const) {
  Deno.test(`every slot is in use while a backup or a restore waits for the disk (${compression})`, async () => {
    const bytes = content();
    const parts: Uint8Array[] = [];
    await withStorageDaemon(async ({ file, socket }) => {
      patch(file, 0, bytes);
      const watched = await Watched.connect(socket);
      const { dataBytes, fileBytes } = await pipeOut(watched.disk, {
        header: { ...HEADER, compression },
        ranges: whole(),
        write: (part) => {
          parts.push(part.slice());
          return Promise.resolve();
        },
        signal: new AbortController().signal,
      });
      await watched.disk.close();
      assertEquals([dataBytes, fileBytes], [
        SIZE,
        parts.reduce((sum, { length }) => sum + length, 0),
      ]);
      assertEquals(fileBytes < SIZE, compression === "zstd");
      watched.assertDeep();
    });
    await withStorageDaemon(async ({ file, socket }) => {
      const watched = await Watched.connect(socket);
      const source = sourceOf(parts);
      const header = await source.header();
      const signal = new AbortController().signal;
      assertEquals((await pipeIn(source, watched.disk, { header, signal })).dataBytes, SIZE);
      await watched.disk.close();
      watched.assertDeep();
      assertEquals(peek(file, 0, SIZE), bytes);
    });
  });
}

Deno.test("a backup reads on while a frame is being written, and writes one at a time", async () => {
  await withStorageDaemon(async ({ file, socket }) => {
    patch(file, 0, content());
    const watched = await Watched.connect(socket);
    let [calls, writing, startedBefore] = [0, 0, 0];
    let readOn = Promise.withResolvers<void>();
    const start = watched.disk.start;
    watched.disk.start = (slot) => {
      start(slot);
      if (watched.started > startedBefore) readOn.resolve();
    };
    const backup = pipeOut(watched.disk, {
      header: HEADER,
      ranges: whole(),
      async write() {
        assertEquals(++writing, 1);
        // The header comes first, and the first frame is written when there are no buffers left to go on with.
        if (++calls > 2 && watched.started < SIZE / MIB) {
          readOn = Promise.withResolvers();
          startedBefore = watched.started;
          await readOn.promise;
        }
        writing--;
      },
      signal: new AbortController().signal,
    });
    await within(backup, 20_000, () => `nothing is read beside write ${calls}`);
    assert(startedBefore > DEPTH);
    await watched.disk.close();
  });
});

Deno.test("a backup that cannot be written ends with the reason, and nothing is under way then", async () => {
  await withStorageDaemon(async ({ file, socket }) => {
    patch(file, 0, content());
    const watched = await Watched.connect(socket);
    let calls = 0;
    const backup = pipeOut(watched.disk, {
      header: HEADER,
      ranges: whole(),
      write: () => ++calls < 4 ? Promise.resolve() : Promise.reject(new Error("the vault is full")),
      signal: new AbortController().signal,
    });
    await assertRejects(() => backup, Error, "the vault is full");
    assertEquals(calls, 4);
    assertEquals(watched.underWay.length, watched.started);
    assertEquals(watched.disk.queues[0].freeCount, DEPTH);
    await watched.disk.close();
  });
});
