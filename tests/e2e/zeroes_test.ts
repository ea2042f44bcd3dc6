/**
 * Zeros that a guest writes, on a real agent: they take no space where the disk looks for them, and are zeros either way.
 *
 * @module
 */
import { assertEquals } from "@std/assert/mod.js";
import { FrontEnd } from "../../agent/frontend/front_end.ts";
import { AgentProcess, WorkDirectory } from "../tools/agent_process.ts";

const MIB = 1024 * 1024;

Deno.test("written zeros take no space where the disk looks for them, also changed under a front end, and survive a kill", async () => {
  await using work = await WorkDirectory.make();
  const options = { runDir: `${work.path}/run`, dataDir: `${work.path}/data`, capacity: "1G" };
  const data = new Uint8Array(MIB).fill(7);
  const zeros = new Uint8Array(MIB);
  {
    await using agent = await AgentProcess.start(options);
    using client = agent.client();
    await agent.check("disk", "create", "web", "64M", "--detect-zeroes");
    const allocated = async () => (await client.disk("web")).allocatedBytes;
    const frontEnd = await FrontEnd.connect({ socket: agent.socket("web") });
    try {
      await frontEnd.write(0, zeros);
      assertEquals(await allocated(), 0);
      await frontEnd.write(0, data);
      assertEquals(await allocated(), MIB);
      await frontEnd.write(MIB / 2, zeros);
      assertEquals(await allocated(), MIB / 2);
      await agent.check("disk", "set", "web", "--detect-zeroes", "off");
      await frontEnd.write(2 * MIB, zeros);
      assertEquals(await allocated(), 1.5 * MIB);
      await agent.check("disk", "set", "web", "--detect-zeroes", "on");
      await frontEnd.write(2 * MIB, zeros);
      assertEquals(await allocated(), MIB / 2);
      await frontEnd.flush();
      await agent.kill();
    } finally {
      frontEnd.abort();
    }
  }
  await using agent = await AgentProcess.start(options);
  const frontEnd = await FrontEnd.connect({ socket: agent.socket("web") });
  try {
    const read = new Uint8Array(3 * MIB);
    await frontEnd.read(0, read);
    const firstZero = read.indexOf(0);
    assertEquals([firstZero, read.subarray(firstZero).every((byte) => byte === 0)], [
      MIB / 2,
      true,
    ]);
    await frontEnd.write(0, zeros);
    using client = agent.client();
    assertEquals((await client.disk("web")).allocatedBytes, 0, "it looks for them from the start");
  } finally {
    frontEnd.abort();
  }
});
