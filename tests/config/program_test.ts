/**
 * That an installed program is told from the one that runs.
 *
 * @module
 */
import { assertEquals } from "@std/assert/mod.js";
import { ProgramWatch } from "../../agent/program.ts";

Deno.test("a program that was replaced is another one, whatever it is called", async () => {
  const directory = await Deno.makeTempDir({ prefix: "kelpie-program-" });
  const path = `${directory}/kelpie`;
  await Deno.writeTextFile(path, "old");
  const watch = new ProgramWatch(path);
  assertEquals(watch.isNew(0), false);
  // As packages do it: written beside, and renamed.
  await Deno.writeTextFile(`${path}.new`, "new");
  await Deno.rename(`${path}.new`, path);
  assertEquals(watch.isNew(1000), false, "it is looked at now and then");
  assertEquals(watch.isNew(2000), true);
  await Deno.remove(path);
  assertEquals(watch.isNew(4000), null, "nothing is installed for a moment");
  await Deno.remove(directory, { recursive: true });
});

Deno.test("where nobody can say what is installed, nobody says so", () => {
  assertEquals(new ProgramWatch(null).isNew(0), null);
  assertEquals(new ProgramWatch("/nowhere/kelpie").isNew(0), null);
  assertEquals(ProgramWatch.ofThisProcess().isNew(0), null, "from source the runtime runs");
});
