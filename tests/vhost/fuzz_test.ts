import { assert } from "@std/assert/mod.js";
import { runFuzz } from "./fuzz.ts";

Deno.test("a mad front end and a mad guest harm nobody but themselves", () => {
  const counts = runFuzz(1, 600);
  // It gets everywhere: endings of all kinds, and devices broken in many ways.
  const reasons = [...counts.keys()];
  assert(reasons.filter((each) => each.startsWith("broken")).length >= 8, reasons.join("\n"));
  assert(reasons.filter((each) => each.startsWith("hang up")).length >= 8, reasons.join("\n"));
  assert(reasons.filter((each) => each.startsWith("refused")).length >= 15, reasons.join("\n"));
});
