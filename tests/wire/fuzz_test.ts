/**
 * A short run of the fuzzer of connections; `./dev fuzz:wire` runs it for long.
 *
 * @module
 */
import { assert } from "@std/assert/mod.js";
import { runFuzz } from "./fuzz.ts";

Deno.test("rubbish at every state of a connection harms nobody else", () => {
  const counts = runFuzz(1, 60);
  for (
    const what of ["handshake done", "stranger bit", "record wrong", "record right", "stream whole"]
  ) {
    assert((counts.get(what) ?? 0) > 0, `the fuzzer never gets to: ${what}`);
  }
});
