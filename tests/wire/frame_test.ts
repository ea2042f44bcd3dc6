/**
 * The messages within a record.
 *
 * @module
 */
import { assertEquals } from "@std/assert/mod.js";
import { Prng } from "../../agent/base/prng.ts";
import {
  areFrames,
  FRAME_PREFIX_BYTES,
  frameBytes,
  frameDataBytes,
  frameHeadBytes,
  isFrame,
  PEER_RECORD_BYTES_MAX,
  putFrame,
} from "../../agent/wire/frame.ts";
import { IN_BYTES, OUT_BYTES } from "../../agent/platform/linux/tcp.ts";

Deno.test("heads of 64 bytes to 8 KiB, data of whole blocks up to 1 MiB", () => {
  for (
    const [head, data, right] of [
      [64, 0, true],
      [63, 0, false],
      [8192, 1 << 20, true],
      [8193, 0, false],
      [64, 4095, false],
      [64, (1 << 20) + 4096, false],
      [64, -4096, false],
    ] as const
  ) assertEquals(isFrame(head, data), right, `${head}, ${data}`);
});

Deno.test("frames come back in order, each with its part of the data", () => {
  const heads = new Uint8Array(65536).fill(0xff);
  const lengths = [64, 65, 71, 72, 8192];
  const data = [0, 4096, 0, 0, 8192];
  let end = 0;
  for (const [i, length] of lengths.entries()) {
    const head = new Uint8Array(length).fill(i + 1);
    end = putFrame(heads, end, head, length, data[i]);
  }
  assertEquals(areFrames(heads, 0, end, 8192 + 4096), true);
  let at = 0;
  for (const [i, length] of lengths.entries()) {
    assertEquals(frameHeadBytes(heads, at), length);
    assertEquals(frameDataBytes(heads, at), data[i]);
    assertEquals(heads[at + FRAME_PREFIX_BYTES + length - 1], i + 1);
    at += frameBytes(length);
  }
  assertEquals(at, end);
  assertEquals(areFrames(heads, 0, end, 0), false, "the record says otherwise");
  assertEquals(areFrames(heads, 0, end - 8, 12288), false);
  assertEquals(areFrames(heads, 0, frameBytes(64), 4096), false);
});

Deno.test("rubbish in heads never reads past their end", () => {
  const random = new Prng(5);
  for (let i = 0; i < 3000; i++) {
    const heads = new Uint8Array(random.below(600) + 1);
    random.fill(heads);
    if (random.chance(0.7)) {
      const view = new DataView(heads.buffer);
      for (let at = 0; at + 8 <= heads.length; at += frameBytes(64)) {
        view.setUint32(at, random.pick([64, 65, 8192, 0, 0xffffffff]), true);
        view.setUint32(at + 4, random.pick([0, 0, 0, 4096]), true);
      }
    }
    const before = heads.slice();
    areFrames(heads, 0, heads.length, 0);
    assertEquals(heads, before);
  }
});

Deno.test("buffers hold what they must", () => {
  assertEquals(IN_BYTES >= 2 * PEER_RECORD_BYTES_MAX, true, "a record while another one arrives");
  assertEquals(OUT_BYTES >= 4 * PEER_RECORD_BYTES_MAX, true, "half the queue leaves room for one");
});
