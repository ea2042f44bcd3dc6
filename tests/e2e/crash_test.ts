/**
 * The crash test for a few cycles; `./dev crash` runs as many as asked.
 *
 * @module
 */
import { assert, assertEquals, assertThrows } from "@std/assert/mod.js";
import { WorkDirectory } from "../tools/agent_process.ts";
import { runCrashes } from "./crash_run.ts";
import { SectorModel } from "./sector_model.ts";

Deno.test("an agent killed under load has all that it acknowledged", async () => {
  await using work = await WorkDirectory.make("kelpie-crash-");
  const report = await runCrashes({ directory: work.path, cycles: 5, seed: 1 });
  assertEquals(report.cycles, 5);
  assert(report.requests > 200, `${report.requests} requests`);
});

Deno.test("the crash test's model sees what is lost, old, mixed or misplaced", () => {
  const model = new SectorModel(8);
  const words = new Uint32Array(8 * 128);
  const write = (sector: number, count: number) => {
    model.beginWrite(sector, count, words, sector * 128);
    return () => model.acknowledge(sector, count);
  };
  write(0, 8)();
  const old = words.slice();
  write(2, 2)();
  const isOpen = write(5, 1);
  model.verify(0, 8, words, 0);
  const wrong = (change: (words: Uint32Array) => void) => {
    const changed = words.slice();
    change(changed);
    assertThrows(() => model.verify(0, 8, changed, 0), Error, "holds");
  };
  wrong((changed) => changed.fill(0, 0, 128)); // lost
  wrong((changed) => changed.set(old.subarray(2 * 128, 3 * 128), 2 * 128)); // old
  wrong((changed) => changed.set(old.subarray(2 * 128 + 64, 3 * 128), 2 * 128 + 64)); // mixed
  wrong((changed) => changed.copyWithin(0, 128, 256)); // misplaced
  // The value before is as good, as long as nothing was said, and no longer.
  const before = words.slice();
  before.set(old.subarray(5 * 128, 6 * 128), 5 * 128);
  model.verify(0, 8, before, 0);
  isOpen();
  assertThrows(
    () => model.verify(0, 8, before, 0),
    Error,
    "sector 5 holds writing 1, not writing 3",
  );
});
