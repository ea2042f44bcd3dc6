/**
 * Without a majority of the voters: what is asked for meanwhile, and the way out when it is gone for good. The one that is left ends by
 * itself, decides alone when it is started again, and has its data.
 *
 * @module
 */
import { assertEquals, assertMatch } from "@std/assert/mod.js";
import { until, within } from "../guest/deadline.ts";
import { spawnKelpie } from "../tools/agent_process.ts";
import { type Host, Hosts } from "./hosts.ts";

const DISK = "web";
const MIB = 1024 * 1024;

/** Waits until an agent says that a majority can be reached from there, or none. */
async function untilQuorum(host: Host, hasQuorum: boolean): Promise<void> {
  using client = host.running.client();
  await until(async () => (await client.cluster()).hasQuorum === hasQuorum, {
    timeoutMs: 60_000,
    what: () => `whether there is a majority is not ${hasQuorum}:\n${host.log}`,
  });
}

Deno.test("what is interrupted while there is no majority, or waits for one in vain, is not done later", async () => {
  await using hosts = await Hosts.make({ count: 2 });
  await hosts.startAll();
  const [gone, left] = hosts.list;
  await gone.running.check("disk", "create", DISK, "16M");
  await hosts.untilWhole();
  await gone.kill();
  await untilQuorum(left, false);
  const { code, stderr } = await left.running.run("disk", "create", "late", "16M");
  assertEquals(code, 2, stderr);
  assertMatch(
    stderr,
    /no majority of its voters can be reached.*\n.*the change was not made, and will not be/,
  );
  const deleting = spawnKelpie(["disk", "delete", DISK, "--now", "--yes"], {
    env: { KELPIE_RUN_DIR: left.running.runDir },
    stdin: "null",
    stdout: "null",
  });
  // Long enough to have asked, and so short that the agent would still be waiting; where it is not, this tests less, and nothing else.
  await new Promise((resolve) => setTimeout(resolve, 4000));
  deleting.kill("SIGINT");
  await Promise.all([deleting.status, deleting.stderr.cancel()]);
  await gone.start();
  // Behind all that was waiting.
  await left.running.check("disk", "create", "other", "16M");
  using client = left.running.client();
  const disks = await client.disks();
  assertEquals(disks.map(({ name }) => name).sort(), ["other", DISK]);
  for (const host of hosts.list) await host.stop();
});

Deno.test("who is left of two recovers the cluster: its agent ends, and decides alone from its next start on", async () => {
  await using hosts = await Hosts.make({ count: 2 });
  await hosts.startAll();
  const [gone, left] = hosts.list;
  await gone.running.check("disk", "create", DISK, "16M");
  await hosts.untilWhole();
  await gone.fill(DISK, 0, MIB);
  await gone.kill();
  await untilQuorum(left, false);
  const { agent } = left;
  await left.running.check("cluster", "recover", "--yes");
  const { code } = await within(agent!.exited, 30_000, () => `it does not end:\n${left.log}`);
  assertEquals(code, 0);
  await left.start();
  await untilQuorum(left, true);
  using recovered = left.running.client();
  const { name, allocatedBytes } = await recovered.disk(DISK);
  assertEquals([name, allocatedBytes], [DISK, MIB]);
});
