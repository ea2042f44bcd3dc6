/**
 * An agent whose store is a cluster of its own says that --join changes nothing.
 *
 * @module
 */
import { assertEquals, assertStringIncludes } from "@std/assert/mod.js";
import { AgentProcess, WorkDirectory } from "../tools/agent_process.ts";
import { addressFor } from "../tools/ports.ts";

Deno.test("who was started alone once, and is to join then, says that it does not", async () => {
  await using work = await WorkDirectory.make();
  await using first = await AgentProcess.start(work.agent("first"));
  const secret = `${work.path}/secret`;
  await Deno.writeTextFile(secret, await first.check("cluster", "secret"), { mode: 0o600 });
  const seed = addressFor(work.agent("first").dataDir);
  // --join was forgotten.
  const alone = await AgentProcess.start(work.agent("other", ["--secret-file", secret]));
  await alone.stop();
  const join = ["--secret-file", secret, "--join", seed];
  await using other = await AgentProcess.start(work.agent("other", join));
  const { stdout } = await other.run("status");
  const text = new TextDecoder().decode(stdout);
  assertStringIncludes(text, `does not join ${seed}`);
  assertEquals(
    other.log.split("\n").filter((line) => line.includes(" warn ")).length,
    1,
    other.log,
  );
});
