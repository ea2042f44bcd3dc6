/**
 * A second path that is added, and a crash while it is.
 *
 * @module
 */
import { assertEquals } from "@std/assert/mod.js";
import { Machine } from "./harness.ts";

Deno.test("a path whose addition was cut off never counts for more than the one that it was added to", () => {
  for (let lead = 1; lead < 120; lead++) {
    const machine = new Machine(1, "/a", "/b");
    machine.mustOpen("/a");
    const set = (value: number) =>
      machine.call((done) =>
        machine.store.setMetaBatch([{ key: "raft", value: Uint8Array.of(value) }], done)
      );
    assertEquals(set(1), null);
    machine.crash();
    // The old disk is the slower one: from some moment on only the new one gets anything done before power fails.
    const { disk } = machine.places.get("/a")!;
    const pump = disk!.pump.bind(disk);
    let pumps = 0;
    disk!.pump = () => ++pumps <= lead && pump();
    try {
      machine.open("/a", "/b");
      // It was through.
      if (pumps <= lead) break;
    } catch { /* It does not end. */ }
    machine.crash();
    // The operator goes back to what there was before…
    machine.mustOpen("/a");
    assertEquals(set(2), null);
    assertEquals(set(3), null);
    machine.crash();
    // …and tries again much later.
    machine.mustOpen("/a", "/b");
    assertEquals(machine.store.getMeta("raft"), Uint8Array.of(3), `after ${lead} completions`);
    machine.crash();
  }
});
