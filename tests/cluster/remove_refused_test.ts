/**
 * A node that the cluster refuses to remove is as it was before: it still takes data, and still votes.
 *
 * @module
 */
import { assertEquals, assertStringIncludes } from "@std/assert/mod.js";
import { FrontEnd } from "../../agent/frontend/front_end.ts";
import { until } from "../guest/deadline.ts";
import { AgentProcess, WorkDirectory } from "../tools/agent_process.ts";
import { addressFor } from "../tools/ports.ts";

Deno.test("the only node cannot be removed, and takes data as before when that was tried", async () => {
  await using work = await WorkDirectory.make();
  await using agent = await AgentProcess.start({
    runDir: `${work.path}/run`,
    dataDir: `${work.path}/data`,
    capacity: "256M",
    arguments: ["--name", "only"],
  });
  const refused = await agent.run("node", "remove", "only", "--yes");
  assertEquals(refused.code, 64);
  assertStringIncludes(refused.stderr, "is the only one");
  using client = agent.client();
  assertEquals((await client.node("only")).availability, "in");
  await agent.check("disk", "create", "web", "16M");
});

Deno.test("a node that is not removed because a disk is open there still votes", async () => {
  await using work = await WorkDirectory.make();
  await using a = await AgentProcess.start(work.agent("a"));
  const secret = `${work.path}/secret`;
  await Deno.writeTextFile(secret, await a.check("cluster", "secret"), { mode: 0o600 });
  const join = ["--join", addressFor(work.agent("a").dataDir), "--secret-file", secret];
  await using _b = await AgentProcess.start(work.agent("b", join));
  await using c = await AgentProcess.start(work.agent("c", join));
  using client = a.client();
  const hasVoters = async (count: number) => (await client.cluster()).voters.length === count;
  await until(() => hasVoters(3), { timeoutMs: 30_000, what: () => "three voters" });
  // A host for guests only, which votes.
  await a.check("node", "weight", "c", "0", "--yes");
  await a.check("disk", "create", "web", "16M");
  const isEmpty = async () => (await client.node("c")).groupsLeft === 0;
  await until(isEmpty, { timeoutMs: 30_000, what: () => "no data on c" });
  const guest = await FrontEnd.connect({ socket: c.socket("web") });
  try {
    const isOpen = async () => (await client.locks()).some(({ node }) => node === "c");
    await until(isOpen, { timeoutMs: 30_000, what: () => "the disk is open on c" });
    const refused = await a.run("node", "remove", "c", "--yes");
    assertEquals(refused.code, 1);
    assertStringIncludes(refused.stderr, "disk web is open on node c");
    // Long enough for the leader to take votes away.
    await new Promise((resolve) => setTimeout(resolve, 3000));
    assertEquals((await client.node("c")).availability, "in");
    assertEquals(await hasVoters(3), true, "one refused command has cost the cluster its voters");
  } finally {
    await guest.close();
  }
});
