/**
 * Writing behind a writer, on the real kernel.
 *
 * @module
 */
import { assert, assertEquals, assertThrows } from "@std/assert/mod.js";
import {
  check,
  MAP_SHARED,
  mapMemory,
  PROT_READ,
  SystemError,
} from "../../agent/platform/linux/libc.ts";
import { WINDOW_BYTES, WINDOWS_MAX, WriteBehind } from "../../agent/platform/linux/write_behind.ts";
import { fileSystem } from "../bench/machine.ts";

const { symbols: libc } = Deno.dlopen("libc.so.6", {
  open: { parameters: ["buffer", "i32"], result: "i32" },
  close: { parameters: ["i32"], result: "i32" },
  mincore: { parameters: ["usize", "usize", "buffer"], result: "i32" },
  munmap: { parameters: ["usize", "usize"], result: "i32" },
});

const DIRECTORY = "/var/tmp";
const PAGE_BYTES = 4096;

/** Bytes of a file that are in the page cache. */
function cachedBytes(path: string): number {
  const lengthBytes = Deno.statSync(path).size;
  const fd = check(libc.open(new TextEncoder().encode(`${path}\0`), 0), `open ${path}`);
  const address = mapMemory({ lengthBytes, protection: PROT_READ, flags: MAP_SHARED, fd });
  const pages = new Uint8Array(Math.ceil(lengthBytes / PAGE_BYTES));
  check(libc.mincore(BigInt(address), BigInt(lengthBytes), pages), "mincore");
  libc.munmap(BigInt(address), BigInt(lengthBytes));
  libc.close(fd);
  return PAGE_BYTES * pages.reduce((sum, page) => sum + (page & 1), 0);
}

Deno.test({
  name: "a file that is written behind its writer does not stay in the page cache",
  // There the page cache is all there is.
  ignore: (await fileSystem(DIRECTORY)).type === "tmpfs",
  async fn() {
    const directory = await Deno.makeTempDir({ dir: DIRECTORY });
    try {
      const path = `${directory}/file`, windows = 3 * WINDOWS_MAX;
      using file = await Deno.open(path, { createNew: true, read: true, write: true });
      const window = new Uint8Array(WINDOW_BYTES);
      {
        await using behind = new WriteBehind(path);
        for (let i = 0; i < windows; i++) {
          window.fill(i + 1);
          for (let at = 0; at < window.length;) at += await file.write(window.subarray(at));
          await behind.advance((i + 1) * WINDOW_BYTES);
        }
        assertEquals(await file.write(window.subarray(0, PAGE_BYTES)), PAGE_BYTES);
        await behind.advance(windows * WINDOW_BYTES + PAGE_BYTES);
      }
      // What is not a whole window yet stays, and perhaps what the kernel keeps in one piece with it.
      const cached = cachedBytes(path);
      assert(cached < 2 * WINDOW_BYTES, `${cached} bytes are in the page cache`);
      await file.seek(0, Deno.SeekMode.Start);
      for (let i = 0; i < windows; i++) {
        for (let at = 0; at < window.length;) at += (await file.read(window.subarray(at)))!;
        assert(window.every((byte) => byte === i + 1), `window ${i} is not what was written`);
      }
    } finally {
      await Deno.remove(directory, { recursive: true });
    }
  },
});

Deno.test("there is nothing to write behind a file that is not there", () => {
  const error = assertThrows(() => new WriteBehind("/nonexistent/file"), SystemError);
  assert(error.message.startsWith("open /nonexistent/file: ENOENT"), error.message);
});
