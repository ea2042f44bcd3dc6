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
  const options = (name: string, more: string[] = []) => ({
    runDir: `${work.path}/${name}/run`,
    dataDir: `${work.path}/${name}/data`,
    capacity: "256M",
    arguments: ["--name", name, ...more],
  });
  for (const name of ["first", "other"]) await Deno.mkdir(`${work.path}/${name}`);
  await using first = await AgentProcess.start(options("first"));
  const secret = `${work.path}/secret`;
  await Deno.writeTextFile(secret, await first.check("cluster", "secret"), { mode: 0o600 });
  const seed = addressFor(options("first").dataDir);
  // --join was forgotten.
  const alone = await AgentProcess.start(options("other", ["--secret-file", secret]));
  await alone.stop();
  const join = ["--secret-file", secret, "--join", seed];
  await using other = await AgentProcess.start(options("other", join));
  const { stdout } = await other.run("status");
  const text = new TextDecoder().decode(stdout);
  assertStringIncludes(text, `does not join ${seed}`);
  assertEquals(
    other.log.split("\n").filter((line) => line.includes(" warn ")).length,
    1,
    other.log,
  );
});
