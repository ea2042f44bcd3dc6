/**
 * A run that begins in a new segment, of which a disk that lies loses one superblock.
 *
 * @module
 */
import { assertEquals } from "@std/assert/mod.js";
import { Prng } from "../../agent/base/prng.ts";
import { SEGMENTS_OFFSET_BYTES } from "../../agent/store/format.ts";
import { Bench, makeDisk, SMALL } from "./harness.ts";

for (const which of [1, 2]) {
  for (const how of ["first run", "full segment"]) {
    Deno.test(`a run (${how}) is there though the disk has lost superblock ${which} of its start`, () => {
      const random = new Prng(1);
      const bench = new Bench(0, makeDisk(0, random.fork(), SMALL), random.fork(), SMALL);
      bench.format();
      const start = () => {
        let superblocks = 0;
        bench.disk.faults = {
          loses: (offset) => offset < SEGMENTS_OFFSET_BYTES && ++superblocks === which,
        };
        bench.mustOpen();
        bench.disk.faults = {};
      };
      if (how === "first run") {
        start();
        bench.createLayer(1);
      } else {
        bench.mustOpen();
        bench.createLayer(1);
        // Until the segment has no block left: the next record goes to the one that follows.
        const place = () => (bench.store.offsetOf(1, 1, 0) / 4096) % 32;
        do bench.write(1, 1, 0, [7]); while (place() !== 31);
        assertEquals(bench.close(), null);
        start();
      }
      const stamps = [101, 102, 103, 104];
      assertEquals(bench.write(1, 0, 0, stamps), 0);
      assertEquals(bench.sync(), 0);
      bench.until(() => bench.store.idle, "rest");
      const disk = bench.disk.crash(new Prng(9), bench.window.bytes, { keep: 1, lose: 0 });
      const after = new Bench(0, disk, new Prng(10), SMALL);
      const error = after.open();
      if (error !== null) return assertEquals(error.code, "DAMAGED");
      assertEquals(after.store.wasClean, false, "it says that it has everything");
      assertEquals(after.read([1], 0, 0, 4), stamps);
    });
  }
}
