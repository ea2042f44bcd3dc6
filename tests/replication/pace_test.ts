import { assert, assertEquals } from "@std/assert/mod.js";
import {
  FLOOR_BYTES_PER_SECOND,
  Pace,
  QUIET_MS,
  RECOVERY_SHARE,
} from "../../agent/replication/pace.ts";

const READ_BYTES = 256 * 1024;
const MiB = 1024 * 1024;

/** Bytes that are granted in ten seconds to whoever asks all the time, beside guests that do so much. */
function granted(guestBytesPerSecond: number, tickMs = 10): number {
  let work = 0;
  const pace = new Pace(() => work);
  let bytes = 0;
  for (let now = 1000; now <= 11_000; now += tickMs) {
    work += guestBytesPerSecond * tickMs / 1000;
    pace.advance(now);
    // The burst of the beginning, without a limit yet, is not what this is about.
    while (pace.take(READ_BYTES) && bytes < 1e12) bytes += now > 1000 ? READ_BYTES : 1e12;
    if (now === 1000) bytes = 0;
  }
  return bytes / 10;
}

Deno.test("without guests there is no limit", () => {
  const pace = new Pace(() => 0);
  pace.advance(1000);
  for (let i = 0; i < 10_000; i++) assert(pace.take(READ_BYTES));
});

Deno.test("beside guests that work hard copying gets its share of that, and no more", () => {
  for (const rate of [100 * MiB, 1000 * MiB]) {
    for (const tickMs of [1, 10, 50]) {
      const share = granted(rate, tickMs) / (rate * RECOVERY_SHARE);
      assert(share > 0.97 && share < 1.03, `${share} of it at ${rate} with ticks of ${tickMs} ms`);
    }
  }
});

Deno.test("beside guests that hardly work copying gets what any machine can do", () => {
  const share = granted(MiB) / FLOOR_BYTES_PER_SECOND;
  assert(share > 0.97 && share < 1.05, `${share} of the floor`);
});

Deno.test("the limit ends with the guests, and begins with their first request", () => {
  let work = 0;
  const pace = new Pace(() => work);
  pace.advance(1000);
  assert(pace.take(READ_BYTES));
  work += 4096;
  pace.advance(1010);
  let count = 0;
  while (count < 1000 && pace.take(READ_BYTES)) count++;
  assert(count <= 1 + FLOOR_BYTES_PER_SECOND / 10 / READ_BYTES, `${count} reads at once`);
  pace.advance(1010 + QUIET_MS - 1);
  while (pace.take(READ_BYTES));
  assertEquals(pace.take(1), false);
  pace.advance(1010 + QUIET_MS);
  assertEquals(pace.take(1), true);
});

Deno.test("what was not used for long is not made up for, however much guests did meanwhile", () => {
  let work = 0;
  const pace = new Pace(() => work);
  pace.advance(1000);
  work += 1e12;
  pace.advance(101_000);
  let bytes = 0;
  while (pace.take(READ_BYTES)) bytes += READ_BYTES;
  assert(bytes <= 1e12 * RECOVERY_SHARE / 1000 + READ_BYTES, `${bytes} bytes`);
});
