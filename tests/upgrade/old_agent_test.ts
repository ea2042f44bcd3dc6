/**
 * An old agent on what the next version has left, where nothing warned it before it opened its store.
 *
 * @module
 */
import { assertEquals, assertStringIncludes } from "@std/assert/mod.js";
import { within } from "../guest/deadline.ts";
import { AgentProcess, WorkDirectory } from "../tools/agent_process.ts";
import { NEXT_LEVEL, NextVersion } from "./next_version.ts";

/** What an end takes: the program loads, replays its log, and finds out. */
const END_MS_MAX = 30_000;

Deno.test("an agent that finds a map it cannot read ends at once, says why, and has done no harm", async () => {
  // A next version that forgets to remember its level.
  await using next = await NextVersion.make({
    "agent/cluster_node.ts": [[
      "        { key: LEVEL_KEY, value: encodeLevel({ level: map.level, sinceMs: Date.now(), version }) },\n",
      "",
    ]],
  });
  await using work = await WorkDirectory.make("kelpie-upgrade-");
  const options = { runDir: `${work.path}/run`, dataDir: `${work.path}/data`, capacity: "400M" };
  {
    await using agent = await AgentProcess.start({ ...options, program: next.program });
    await agent.check("disk", "create", "web", "64M");
    await agent.stop();
  }
  {
    await using old = AgentProcess.launch(options);
    old.ready.catch(() => {});
    const { code } = await within(old.exited, END_MS_MAX, () => `it does not end:\n${old.log}`);
    assertEquals(code, 1);
    await old.kill();
    assertStringIncludes(old.log, "the cluster map has version 5, and this Kelpie reads up to 4");
    assertStringIncludes(old.log, "use the Kelpie that wrote it, or a newer one");
    assertEquals(old.log.includes("the agent is ready"), false, old.log);
  }
  await using agent = await AgentProcess.start({ ...options, program: next.program });
  using client = agent.client();
  assertEquals((await client.cluster()).level, NEXT_LEVEL);
  assertEquals((await client.disks()).map(({ name }) => name), ["web"]);
  await agent.stop();
});
