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

Deno.test("pre-allocation gives every block its space, changes nothing, and is refused for a disk that is open or too large", async () => {
  await using work = await WorkDirectory.make();
  const options = { runDir: `${work.path}/run`, dataDir: `${work.path}/data`, capacity: "1G" };
  await using agent = await AgentProcess.start(options);
  using client = agent.client();
  const sizeBytes = 64 * MIB + 512;
  const wholeBytes = 64 * MIB + 4096;
  const allocated = async () => (await client.disk("web")).allocatedBytes;
  await agent.check("disk", "create", "web", `${sizeBytes}`, "--preallocate");
  assertEquals(await allocated(), wholeBytes);
  const frontEnd = await FrontEnd.connect({ socket: agent.socket("web") });
  try {
    await frontEnd.write(MIB, new Uint8Array(MIB).fill(7));
    assertEquals(await allocated(), wholeBytes, "what is written has its space already");
    await frontEnd.discard(MIB + 4096, 8 * MIB);
    await frontEnd.writeZeroes(32 * MIB, MIB);
    await frontEnd.flush();
    assertEquals(await allocated() < wholeBytes - 8 * MIB, true);
    const { code, stderr } = await agent.run("disk", "preallocate", "web");
    assertEquals([code, /disk web is in use by/.test(stderr)], [1, true], stderr);
    await frontEnd.close();
  } finally {
    frontEnd.abort();
  }
  await agent.check("disk", "preallocate", "web");
  assertEquals(await allocated(), wholeBytes);
  const again = await FrontEnd.connect({ socket: agent.readOnlySocket("web") });
  try {
    const read = new Uint8Array(3 * MIB);
    await again.read(0, read);
    const expected = new Uint8Array(3 * MIB);
    expected.fill(7, MIB, MIB + 4096);
    assertEquals(read.every((byte, at) => byte === expected[at]), true);
    await again.close();
  } finally {
    again.abort();
  }
  const refused = await agent.run("disk", "create", "big", "2G", "--preallocate");
  assertEquals(refused.code, 4, refused.stderr);
  assertEquals(/too little space for all of disk big: .* is missing/.test(refused.stderr), true);
  assertEquals((await client.disks()).map(({ name }) => name), ["web"]);
});
