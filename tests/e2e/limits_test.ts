/**
 * Limits of a disk, on a real agent: what is held back waits, harms nobody, and goes on when it may.
 *
 * @module
 */
import { assert, assertEquals, assertMatch, assertRejects } from "@std/assert/mod.js";
import type { DriverQueue } from "../../agent/frontend/driver_queue.ts";
import { BackEndError } from "../../agent/frontend/error.ts";
import { FrontEnd } from "../../agent/frontend/front_end.ts";
import { RequestType } from "../../agent/frontend/virtio_blk.ts";
import { snapshotSocket } from "../../agent/map/names.ts";
import { until } from "../guest/deadline.ts";
import { AgentProcess, WorkDirectory } from "../tools/agent_process.ts";

const BLOCK = new Uint8Array(4096).fill(7);
const TIMEOUT_MS = 60_000;

function start({ path }: WorkDirectory): Promise<AgentProcess> {
  return AgentProcess.start({ runDir: `${path}/run`, dataDir: `${path}/data`, capacity: "1G" });
}

Deno.test("a limit holds for all front ends together, is changed while they wait, and holds up neither stop nor status", async () => {
  await using work = await WorkDirectory.make();
  await using agent = await start(work);
  using client = agent.client();
  await agent.check("disk", "create", "web", "64M");
  await agent.check("disk", "create", "other", "64M");
  const counters = async () => (await client.disk("web")).counters;
  const writer = await FrontEnd.connect({ socket: agent.socket("web"), depth: 16 });
  const reader = await FrontEnd.connect({ socket: agent.readOnlySocket("web") });
  try {
    await writer.write(0, BLOCK);
    // The first is taken, and paid for within the next hour.
    await agent.check("disk", "limit", "web", "--bandwidth", "1");
    let done = 0;
    const count = () => done++;
    const writes = Array.from({ length: 16 }, (_, i) => writer.write(i * 4096, BLOCK).then(count));
    const read = reader.read(0, new Uint8Array(4096)).then(count);
    await until(async () => done > 0 && (await counters()).heldMs > 0, {
      timeoutMs: TIMEOUT_MS,
      what: () => "nothing is held back",
    });
    // Another disk is not held back by this one, and this one is not stuck.
    await using other = await FrontEnd.connect({ socket: agent.socket("other") });
    for (let i = 0; i < 100; i++) await other.write(i * 4096, BLOCK);
    assertEquals((await client.disk("other")).counters.heldRequests, 0);
    const sessions = (await client.disk("web")).sessions;
    assertEquals(sessions.map(({ inFlight }) => inFlight), [0, 0], "what waits is in the rings");
    assertMatch(await agent.check("status"), /^healthy: 2 disks/);
    assertEquals(done, 1);

    await agent.check("disk", "limit", "web", "--none");
    await Promise.all([...writes, read]);
    const { heldRequests, heldMs } = await counters();
    assertEquals(heldRequests, 16);
    await writer.write(0, BLOCK);
    assertEquals((await counters()).heldMs, heldMs, "nothing is held back any more");

    // The agent's end does not wait for what is held back.
    await agent.check("disk", "limit", "web", "--bandwidth", "1");
    const more = Array.from({ length: 8 }, () => writer.write(0, BLOCK));
    await more[0];
    const failed = Promise.all(
      more.slice(1).map((write) => assertRejects(() => write, BackEndError)),
    );
    await agent.stop();
    await failed;
  } finally {
    writer.abort();
    reader.abort();
  }
});

Deno.test("a disk's limits are those of its snapshots, also when they are changed", async () => {
  await using work = await WorkDirectory.make();
  await using agent = await start(work);
  await agent.check("disk", "create", "web", "64M");
  // The first is taken, and paid for within the next hour.
  await agent.check("disk", "limit", "web", "--bandwidth", "1");
  await agent.check("disk", "snapshot", "web@monday");
  await using reader = await FrontEnd.connect({
    socket: snapshotSocket(agent.runDir, "web", "monday"),
    depth: 4,
  });
  let done = 0;
  const reads = Array.from(
    { length: 4 },
    (_, i) => reader.read(i * 4096, new Uint8Array(4096)).then(() => done++),
  );
  Promise.all(reads).catch(() => {}); // looked at below
  await reads[0];
  assertEquals(done, 1);
  await agent.check("disk", "limit", "web", "--none");
  await until(() => Promise.resolve(done === 4), {
    timeoutMs: 5000,
    what: () => `${4 - done} reads are held back by limits that there are none of any more`,
  });
  await Promise.all(reads);
});

/** Reads the beginning of a disk with every slot that is free; returns how many reads have ended since the last time. */
function readOn(queue: DriverQueue, lengthBytes: number): number {
  let ended = 0;
  for (let slot = queue.reap(); slot >= 0; slot = queue.reap()) {
    queue.releaseSlot(slot);
    ended++;
  }
  for (let slot = queue.takeSlot(); slot >= 0; slot = queue.takeSlot()) {
    queue.submit(slot, RequestType.In, 0, lengthBytes);
  }
  queue.publish();
  return ended;
}

Deno.test("a guest whose ring is never empty holds up no other one, which sends no kicks because it is looked at", async () => {
  await using work = await WorkDirectory.make();
  await using agent = await start(work);
  for (const name of ["busy", "calm"]) await agent.check("disk", "create", name, "64M");
  const calm = await FrontEnd.connect({ socket: agent.socket("calm"), depth: 1 });
  const busy = await FrontEnd.connect({
    socket: agent.socket("busy"),
    depth: 1000,
    bufferBytes: 32 * 1024,
  });
  try {
    const forMs = (ms: number, work: () => void) => {
      for (const endMs = performance.now() + ms; performance.now() < endMs;) work();
    };
    // The agent learns that looking pays.
    forMs(500, () => readOn(calm.queues[0], 4096));
    let [longestMs, sinceMs, calms, busies] = [0, performance.now(), 0, 0];
    forMs(2000, () => {
      busies += readOn(busy.queues[0], 32 * 1024);
      const ended = readOn(calm.queues[0], 4096);
      const nowMs = performance.now();
      longestMs = Math.max(longestMs, nowMs - sinceMs);
      if (ended > 0) sinceMs = nowMs;
      calms += ended;
    });
    assert(busies > 10_000, `${busies} reads of the busy one`);
    assert(longestMs < 500, `${longestMs} ms without one of ${calms} reads, beside ${busies}`);
  } finally {
    calm.abort();
    busy.abort();
  }
});

Deno.test("readers take no place of those that write", async () => {
  await using work = await WorkDirectory.make();
  await using agent = await start(work);
  await agent.check("disk", "create", "web", "64M");
  const readers: FrontEnd[] = [];
  const connect = () => FrontEnd.connect({ socket: agent.readOnlySocket("web"), depth: 1 });
  try {
    for (let i = 0; i < 32; i++) readers.push(await connect());
    await assertRejects(connect, BackEndError);
    await using writer = await FrontEnd.connect({ socket: agent.socket("web") });
    await writer.write(0, BLOCK);
  } finally {
    for (const reader of readers) reader.abort();
  }
});
