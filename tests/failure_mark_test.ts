import { assertEquals, assertMatch, assertNotEquals } from "@std/assert/mod.js";
import {
  bootIdOf,
  forgetTorn,
  isMarkedTorn,
  leastCountOf,
  markFailure,
  markTorn,
  noteLeastCount,
} from "../agent/failure_mark.ts";

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

Deno.test("that a log was torn is known to every start until the map knows", () => {
  const runDir = Deno.makeTempDirSync({ prefix: "kelpie-mark-" });
  try {
    assertEquals(isMarkedTorn(runDir), false);
    forgetTorn(runDir);
    markTorn(runDir);
    markTorn(runDir);
    assertEquals([isMarkedTorn(runDir), isMarkedTorn(runDir)], [true, true]);
    assertEquals(bootIdOf("boot", runDir), "boot", "it is the same run of the machine");
    forgetTorn(runDir);
    assertEquals(isMarkedTorn(runDir), false);
  } finally {
    Deno.removeSync(runDir, { recursive: true });
  }
});

Deno.test("how far data paths must have come is noted for one node, and rubbish is not believed", async () => {
  const runDir = await Deno.makeTempDir({ prefix: "kelpie-mark-" });
  try {
    const [node, other] = ["a".repeat(32), "b".repeat(32)];
    assertEquals(leastCountOf(runDir, node), 0);
    noteLeastCount(runDir, node, 65536);
    noteLeastCount(runDir, node, 2 ** 40);
    assertEquals([leastCountOf(runDir, node), leastCountOf(runDir, other)], [2 ** 40, 0]);
    for (const text of ["", "x", `${node}`, `${node} -1`, `${node} 1e99`, `${node} x`]) {
      await Deno.writeTextFile(`${runDir}/data-paths`, text);
      assertEquals(leastCountOf(runDir, node), 0, text);
    }
  } finally {
    await Deno.remove(runDir, { recursive: true });
  }
});

Deno.test("what a failed store leaves in the runtime directory outlives the service, until the machine starts anew", () => {
  const unit = Deno.readTextFileSync(new URL("../packaging/kelpie.service", import.meta.url));
  assertMatch(unit, /^RuntimeDirectoryPreserve=yes$/m);
});
