/**
 * Flushes of front ends that only read, on a real agent: they have no lease under which anything could be synced.
 *
 * @module
 */
import { FrontEnd } from "../../agent/frontend/front_end.ts";
import { within } from "../guest/deadline.ts";
import { AgentProcess, WorkDirectory } from "../tools/agent_process.ts";

/** More flushes than one worker carries out at a time. */
const MANY = 300;

Deno.test("a flush of a front end that only reads comes back, and costs no other disk anything", async () => {
  await using work = await WorkDirectory.make();
  await using agent = await AgentProcess.start({
    runDir: `${work.path}/run`,
    dataDir: `${work.path}/data`,
    capacity: "1G",
  });
  await agent.check("disk", "create", "web", "64M");
  await agent.check("disk", "create", "other", "64M");
  const comesBack = (flush: Promise<unknown>, what: string) => within(flush, 5000, () => what);
  const open: FrontEnd[] = [];
  const connect = async (socket: string) => {
    const frontEnd = await FrontEnd.connect({ socket, depth: 128 });
    open.push(frontEnd);
    return frontEnd;
  };
  try {
    const reader = await connect(agent.readOnlySocket("web"));
    await comesBack(reader.flush(), "nobody has the disk open");
    const guest = await connect(agent.socket("web"));
    await guest.write(0, new Uint8Array(4096));
    await comesBack(reader.flush(), "beside a guest");
    await guest.close();
    await comesBack(reader.flush(), "after the guest");
    for (let i = 0; i < MANY; i += 100) {
      const each = await connect(agent.readOnlySocket("web"));
      for (let j = 0; j < 100; j++) each.flush().catch(() => {});
    }
    const other = await connect(agent.socket("other"));
    await comesBack(other.flush(), "another disk's, beside many");
  } finally {
    for (const each of open) each.abort();
  }
});
