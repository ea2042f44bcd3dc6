import { assert, assertEquals } from "@std/assert/mod.js";
import { runFuzz } from "./fuzz.ts";

Deno.test("mad peers, with the secret or without, harm nobody but themselves", () => {
  const counts = runFuzz(1, 60);
  // It gets everywhere: packets and events of all kinds, refusals for all reasons.
  const names = [...counts.keys()];
  const told = names.sort().join("\n");
  assertEquals(names.filter((each) => each.startsWith("sends kind")).length, 10, told);
  assert(names.filter((each) => each.startsWith("refused")).length >= 6, told);
  assert(names.filter((each) => each.startsWith("seal")).length >= 6, told);
  for (const kind of ["joined", "alive", "changed", "suspect", "dead", "left", "forgotten"]) {
    assert(counts.has(kind), told);
  }
});
