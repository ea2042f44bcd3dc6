/**
 * The way out when a majority of the voters is gone for good: the one that is left ends by itself, decides alone when it is started
 * again, and has its data.
 *
 * @module
 */
import { assertEquals } from "@std/assert/mod.js";
import { until, within } from "../guest/deadline.ts";
import { Hosts } from "./hosts.ts";

const DISK = "web";
const MIB = 1024 * 1024;

Deno.test("who is left of two recovers the cluster: its agent ends, and decides alone from its next start on", async () => {
  await using hosts = await Hosts.make({ count: 2 });
  await hosts.startAll();
  const [gone, left] = hosts.list;
  await gone.running.check("disk", "create", DISK, "16M");
  await hosts.untilWhole();
  await gone.fill(DISK, 0, MIB);
  await gone.kill();
  using client = left.running.client();
  await until(async () => !(await client.cluster()).hasQuorum, {
    timeoutMs: 60_000,
    what: () => `a majority is there nevertheless:\n${left.log}`,
  });
  const { agent } = left;
  await left.running.check("cluster", "recover", "--yes");
  const { code } = await within(agent!.exited, 30_000, () => `it does not end:\n${left.log}`);
  assertEquals(code, 0);
  await left.start();
  using recovered = left.running.client();
  await until(async () => (await recovered.cluster()).hasQuorum, {
    timeoutMs: 60_000,
    what: () => `it does not decide:\n${left.log}`,
  });
  const { name, allocatedBytes } = await recovered.disk(DISK);
  assertEquals([name, allocatedBytes], [DISK, MIB]);
});
