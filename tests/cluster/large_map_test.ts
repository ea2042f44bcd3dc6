/**
 * A map that is larger than a message to the data worker may be: snapshots of consensus get there all the same.
 *
 * @module
 */
import { assertEquals } from "@std/assert/mod.js";
import { AdminClient } from "../../agent/admin_client.ts";
import { AgentProcess, WorkDirectory } from "../tools/agent_process.ts";

/** Disks with as many attributes as there may be: about 4 KiB each. */
const DISKS = 140;
/** Together more than the log holds before it is compacted. */
const CHANGES = 1000;
const AT_ONCE = 16;

Deno.test("a cluster goes on when its map has become large", async () => {
  await using work = await WorkDirectory.make();
  const options = { runDir: `${work.path}/run`, dataDir: `${work.path}/data`, capacity: "1G" };
  let agent = await AgentProcess.start(options);
  const attributesOf = (round: number) =>
    Object.fromEntries(
      Array.from({ length: 16 }, (_, i) => [`k${i}`, `${round}`.padEnd(255, "x")]),
    );
  const each = async (count: number, work: (index: number) => Promise<unknown>) => {
    let next = 0;
    await Promise.all(Array.from({ length: AT_ONCE }, async () => {
      while (next < count) await work(next++);
    }));
  };
  try {
    {
      using client = new AdminClient({ runDir: options.runDir, timeoutMs: 20_000 });
      await each(DISKS, (i) => {
        return client.createDisk({
          name: `d${i}`,
          sizeBytes: 1 << 20,
          attributes: attributesOf(0),
        });
      });
      await each(
        CHANGES,
        (i) => client.changeDisk(`d${i % DISKS}`, { attributes: attributesOf(i) }),
      );
      await client.changeDisk("d0", { attributes: { still: "decided" } });
    }
    assertEquals(agent.log.split("\n").filter((line) => line.includes(" error ")), []);
    await agent.kill();
    agent = await AgentProcess.start(options);
    using client = new AdminClient({ runDir: options.runDir, timeoutMs: 20_000 });
    assertEquals((await client.disk("d0")).attributes, { still: "decided" });
    await client.changeDisk("d0", { attributes: { still: "more" } });
  } finally {
    await agent.kill();
  }
});
