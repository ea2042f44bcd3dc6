import { assert } from "@std/assert/mod.js";
import { runFuzz } from "./fuzz.ts";

Deno.test("good NBD clients get their data, whatever mad ones send beside them", () => {
  const counts = runFuzz(1, 24);
  // It gets everywhere.
  const told = [...counts].map(([name, count]) => `${name}: ${count}`).sort().join("\n");
  for (const command of [0, 1, 3, 4, 5, 6, 7]) assert(counts.has(`does ${command}`), told);
  for (const command of [0, 1, 3, 6]) assert(counts.has(`fails ${command}`), told);
  for (const command of [0, 1, 4, 6]) assert(counts.has(`asks ${command} unaligned`), told);
  for (const end of ["mad cut off", "agreed", "closed in good order", "closed for cause"]) {
    assert(counts.has(end), told);
  }
});
