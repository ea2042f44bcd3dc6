import { assertEquals, assertMatch, assertNotEquals } from "@std/assert/mod.js";
import { bootIdOf, markFailure } from "../agent/failure_mark.ts";

Deno.test("a machine's run is the kernel's until a store fails, and another one after each failure", () => {
  const runDir = Deno.makeTempDirSync();
  try {
    assertEquals(bootIdOf("boot", runDir), "boot");
    markFailure(runDir);
    const first = bootIdOf("boot", runDir);
    assertMatch(first, /^boot\+[0-9a-f]{12}$/);
    assertEquals(bootIdOf("boot", runDir), first);
    markFailure(runDir);
    assertNotEquals(bootIdOf("boot", runDir), first);
  } finally {
    Deno.removeSync(runDir, { recursive: true });
  }
});
