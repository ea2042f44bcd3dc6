import { assertEquals } from "@std/assert/mod.js";
import { Prng } from "../../agent/base/prng.ts";
import { DirtyLog } from "../../agent/vhost/dirty_log.ts";
import { MockHost } from "./mock_host.ts";

function create(sizeBytes: number, pieceBytes = sizeBytes) {
  const host = new MockHost();
  const file = host.createFile(sizeBytes);
  const log = new DirtyLog(host.windows);
  const pieces = [];
  for (let at = 0; at < sizeBytes; at += pieceBytes) {
    const length = Math.min(pieceBytes, sizeBytes - at);
    pieces.push({ window: 0, offset: file.offset + at, length });
  }
  log.attach(pieces);
  log.active = true;
  const bytes = host.bytes.subarray(file.offset, file.offset + sizeBytes + 64);
  return { log, bytes };
}

Deno.test("mark() sets the bit of each page touched, and no other", () => {
  const random = new Prng(3);
  for (const pieceBytes of [512, 64, 7]) {
    const { log, bytes } = create(512, pieceBytes);
    const oracle = new Uint8Array(512 + 64);
    for (let i = 0; i < 300; i++) {
      const address = random.below(512 * 8 * 4096 - 200_000);
      const length = random.pick([1, 8, 4096, 65536, 1 + random.below(200_000)]);
      log.mark(address, length);
      for (let page = Math.floor(address / 4096); page * 4096 < address + length; page++) {
        oracle[page >> 3] |= 1 << (page & 7);
      }
      assertEquals(bytes, oracle);
      if (i % 40 === 0) {
        // As the front end reads and clears it.
        bytes.fill(0);
        oracle.fill(0);
      }
    }
    assertEquals(log.overflowed, false);
  }
});

Deno.test("mark() does nothing while inactive, nor for an empty range", () => {
  const { log, bytes } = create(64);
  log.mark(0, 0);
  log.active = false;
  log.mark(0, 4096);
  assertEquals(bytes, new Uint8Array(128));
});

Deno.test("a page beyond the log, or at an unknown address, is noticed and writes nothing", () => {
  for (
    const [address, length] of [[64 * 8 * 4096, 1], [64 * 8 * 4096 - 1, 2], [-1, 1], [2 ** 52, 9]]
  ) {
    const { log, bytes } = create(64);
    log.mark(address, length);
    assertEquals(log.overflowed, true, `${address}`);
    assertEquals(bytes.subarray(64), new Uint8Array(64));
    log.attach([]);
    assertEquals(log.overflowed, false);
  }
});
