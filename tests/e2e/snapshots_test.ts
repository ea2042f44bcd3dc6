/**
 * Snapshots, clones, rolling back and the trash on one real agent, by its command line, under a writer.
 *
 * Invariants:
 * - A snapshot is one moment of all its disks: no write without those before it (`ordered_writes.ts`), all that was answered before the
 *   command was given, nothing that was begun after it had ended; and it stays so.
 * - What is deleted comes back exactly: afterwards the agent's store has as many blocks as disks have that were written the same way
 *   without snapshots.
 *
 * @module
 */
import { assert, assertEquals, assertMatch } from "@std/assert/mod.js";
import type { AdminClient } from "../../agent/admin_client.ts";
import { Prng } from "../../agent/base/prng.ts";
import { FrontEnd } from "../../agent/frontend/front_end.ts";
import { snapshotSocket } from "../../agent/map/names.ts";
import { compareReplicas } from "../cluster/replicas.ts";
import { until } from "../guest/deadline.ts";
import { AgentProcess, WorkDirectory } from "../tools/agent_process.ts";
import {
  exactly,
  ORDERED_BLOCKS,
  ORDERED_BYTES,
  ORDERED_ROUND,
  OrderedWriter,
  readOrdered,
} from "../tools/ordered_writes.ts";

const MIB = 1024 * 1024;
const BLOCK_BYTES = 4096;
/** Writes of each chain between two snapshots: fewer than it has blocks, so that snapshots are read through what lies below them. */
const WRITES = 5;
const TIMEOUT_MS = 60_000;

/** An agent's directories, for one test. */
function optionsOf(work: WorkDirectory) {
  return { runDir: `${work.path}/run`, dataDir: `${work.path}/data`, capacity: "2G" };
}

/** Waits until a disk is read through so many layers. */
async function untilLayers(client: AdminClient, name: string, count: number): Promise<void> {
  let layers: readonly number[] = [];
  await until(async () => (layers = (await client.disk(name)).layers).length === count, {
    timeoutMs: TIMEOUT_MS,
    intervalMs: 20,
    what: () => `disk ${name} has the layers ${layers}, and not ${count}`,
  });
}

Deno.test("snapshots of two disks are one moment of a writer, stay as they are, and leave no block behind", async () => {
  await using work = await WorkDirectory.make();
  const options = optionsOf(work);
  await using agent = await AgentProcess.start(options);
  using client = agent.client();
  for (const name of ["web", "log", "twin"]) {
    await client.createDisk({ name, sizeBytes: ORDERED_BYTES });
  }
  const disks = ["web", "log"];
  const socketsOf = (name: string) => disks.map((disk) => snapshotSocket(agent.runDir, disk, name));
  const writer = new OrderedWriter();
  await writer.start(disks.map((disk) => agent.socket(disk)));
  const snapshots: { name: string; from: number[]; to: number[]; tops: number[][] }[] = [];
  for (let number = 1; number <= 5; number++) {
    await writer.more(WRITES);
    const name = `s${number}`;
    const from = [...writer.answered];
    writer.longestMs = 0;
    await agent.check("disk", "snapshot", ...disks.map((disk) => `${disk}@${name}`));
    console.log(`      ${name}: the longest write meanwhile ${writer.longestMs.toFixed(1)} ms`);
    const to = [...writer.begun];
    const tops = await readOrdered(socketsOf(name), { from, to });
    snapshots.push({ name, from, to, tops });
  }
  await writer.more(WRITES);
  const check = async (names: readonly string[]) => {
    for (const kept of snapshots.filter((each) => names.includes(each.name))) {
      assertEquals(await readOrdered(socketsOf(kept.name), kept), kept.tops, kept.name);
    }
  };
  await check(["s1", "s2", "s3", "s4", "s5"]);

  // From the middle of the chain, while the writer goes on.
  await agent.check("disk", "snapshot", "delete", "web@s3", "log@s3", "web@s2", "log@s2", "--yes");
  for (const disk of disks) await untilLayers(client, disk, 4);
  await writer.more(WRITES);
  await check(["s1", "s4", "s5"]);
  await agent.check("disk", "snapshot", "delete", "web@s1", "log@s1", "web@s5", "log@s5", "--yes");
  for (const disk of disks) await untilLayers(client, disk, 2);
  await check(["s4"]);
  await agent.check("disk", "snapshot", "delete", "web@s4", "log@s4", "--yes");
  for (const disk of disks) await untilLayers(client, disk, 1);
  await writer.more(ORDERED_ROUND);
  await writer.stop();
  const end = exactly(writer.answered);
  await readOrdered(disks.map((disk) => agent.readOnlySocket(disk)), end);

  const twin = new OrderedWriter();
  await twin.start([agent.socket("twin")]);
  await twin.more(ORDERED_ROUND);
  await twin.stop();
  const bytes = await Promise.all(
    [...disks, "twin"].map(async (name) => (await client.disk(name)).allocatedBytes),
  );
  assertEquals(bytes, bytes.map(() => ORDERED_BLOCKS * BLOCK_BYTES));
  await agent.stop();
  const { blocks } = compareReplicas([`${options.dataDir}/kelpie.store`]);
  assertEquals(blocks, 3 * ORDERED_BLOCKS, "blocks of all layers in the store");
});

Deno.test("what a snapshot has alone is what comes back when it is deleted, to the byte", async () => {
  await using work = await WorkDirectory.make();
  await using agent = await AgentProcess.start(optionsOf(work));
  using client = agent.client();
  const sizeBytes = 64 * MIB;
  await client.createDisk({ name: "web", sizeBytes });
  const seed = crypto.getRandomValues(new Uint32Array(1))[0];
  console.log(`      seed ${seed}`);
  const random = new Prng(seed);
  const options = { socket: agent.socket("web"), depth: 4, bufferBytes: 16 * BLOCK_BYTES };
  const disk = await FrontEnd.connect(options);
  for (let round = 1; round <= 6; round++) {
    for (let i = 0; i < 100; i++) {
      const lengthBytes = (1 + random.below(16)) * BLOCK_BYTES;
      const offset = random.below(1024) * 16 * BLOCK_BYTES;
      const kind = random.below(10);
      if (kind === 0) await disk.discard(offset, lengthBytes);
      else if (kind === 1) await disk.writeZeroes(offset, lengthBytes);
      else await disk.write(offset, new Uint8Array(lengthBytes).fill(round));
    }
    await disk.flush();
    if (round < 6) await client.createSnapshots({ disks: ["web"], name: `s${round}` });
  }
  await client.cloneDisk("web", "s1", { name: "other" });
  const left = ["s1", "s2", "s3", "s4", "s5"];
  for (let layers = 5; left.length > 0; layers--) {
    const [name] = left.splice(random.below(left.length), 1);
    // Where two go on from a layer it stays.
    if (name === "s1") await client.deleteDisk("other", { now: true });
    const before = (await client.disk("web")).space!.usedBytes;
    const { space } = await client.snapshot("web", name);
    assert(space!.exclusiveBytes > 0, `web@${name} has nothing alone`);
    await client.deleteSnapshot("web", name);
    await untilLayers(client, "web", layers);
    const after = (await client.disk("web")).space!.usedBytes;
    assertEquals(before - after, space!.exclusiveBytes, `web@${name}`);
  }
  await disk.close();
});

Deno.test("a clone and its origin do not see each other's writes, and what a rollback took away comes back out of the trash", async () => {
  await using work = await WorkDirectory.make();
  const options = optionsOf(work);
  await using agent = await AgentProcess.start(options);
  using client = agent.client();
  await client.createDisk({ name: "web", sizeBytes: 64 * MIB });
  const write = async (disk: string, value: number, offsetBytes = 0) => {
    await using frontEnd = await FrontEnd.connect({ socket: agent.socket(disk) });
    await frontEnd.write(offsetBytes, new Uint8Array(2 * MIB).fill(value));
  };
  /** The first byte of each MiB, as far as the test writes. */
  const read = async (socket: string) => {
    await using frontEnd = await FrontEnd.connect({ socket });
    const bytes = new Uint8Array(4 * MIB);
    await frontEnd.read(0, bytes);
    const values = [0, 1, 2, 3].map((at) => bytes[at * MIB]);
    assert(bytes.every((byte, at) => byte === values[Math.floor(at / MIB)]));
    return values;
  };
  const of = (disk: string) => read(agent.readOnlySocket(disk));
  const snapshot = () => read(snapshotSocket(agent.runDir, "web", "monday"));
  await write("web", 1);
  await agent.check("disk", "snapshot", "web@monday");
  await agent.check("disk", "clone", "web@monday", "copy");
  await write("copy", 2, MIB);
  await write("web", 3, 2 * MIB);
  assertEquals([await of("web"), await of("copy"), await snapshot()], [
    [1, 1, 3, 3],
    [1, 2, 2, 0],
    [1, 1, 0, 0],
  ]);

  const { code, stderr: said } = await agent.run("disk", "rollback", "web@monday", "--yes");
  assertEquals(code, 0, said);
  const undelete = /kelpie (disk undelete \d+) --name NEW/.exec(said);
  assert(undelete !== null, said);
  assertEquals(await of("web"), [1, 1, 0, 0]);
  await write("web", 4);
  await agent.check(...undelete![1].split(" "), "--name", "old");
  assertEquals([await of("web"), await of("old"), await of("copy"), await snapshot()], [
    [4, 4, 0, 0],
    [1, 1, 3, 3],
    [1, 2, 2, 0],
    [1, 1, 0, 0],
  ]);

  // A disk with a snapshot goes to the trash with it, and comes back with it.
  await agent.check("disk", "delete", "web", "--yes");
  assertEquals((await agent.run("disk", "info", "web")).code !== 0, true);
  assertEquals(await of("copy"), [1, 2, 2, 0]);
  await agent.check("disk", "undelete", "web");
  await until(() => snapshot().then((values) => values[0] === 1, () => false), {
    timeoutMs: TIMEOUT_MS,
    what: () => "the snapshot has no socket",
  });
  assertEquals([await of("web"), await snapshot()], [[4, 4, 0, 0], [1, 1, 0, 0]]);

  // What remains holds what it wrote and what it shares, and nothing else.
  await agent.check("disk", "delete", "old", "--yes", "--now");
  await agent.check("disk", "snapshot", "delete", "web@monday", "--yes");
  await agent.check("disk", "delete", "web", "--yes", "--now");
  await untilLayers(client, "copy", 1);
  assertEquals(await of("copy"), [1, 2, 2, 0]);
  assertEquals((await client.disk("copy")).allocatedBytes, 3 * MIB);
  await agent.stop();
  const { blocks } = compareReplicas([`${options.dataDir}/kelpie.store`]);
  assertEquals(blocks, 3 * MIB / BLOCK_BYTES);
});

Deno.test("a check of a disk's checksums is one of all its snapshots, also after a rollback", async () => {
  await using work = await WorkDirectory.make();
  await using agent = await AgentProcess.start(optionsOf(work));
  using client = agent.client();
  await client.createDisk({ name: "web", sizeBytes: 64 * MIB });
  for (const [at, name] of ["monday", "tuesday"].entries()) {
    {
      await using disk = await FrontEnd.connect({ socket: agent.socket("web") });
      await disk.write(at * 4 * MIB, new Uint8Array((at + 1) * MIB).fill(1));
      await disk.flush();
      await disk.close();
    }
    await agent.check("disk", "snapshot", `web@${name}`);
  }
  await agent.check("disk", "rollback", "web@monday", "--yes");
  const { checkedBytes } = await client.check("web");
  assertEquals(checkedBytes, 3 * MIB);
});

Deno.test("an agent that is killed while it takes and merges snapshots has all that it acknowledged, and merges to the end", async () => {
  await using work = await WorkDirectory.make();
  const options = optionsOf(work);
  const disks = ["web", "log"];
  const writer = new OrderedWriter();
  let agent = await AgentProcess.start(options);
  try {
    const client = agent.client();
    for (const name of disks) await client.createDisk({ name, sizeBytes: ORDERED_BYTES });
    client.close();
    const kept: { name: string; from: number[]; to: number[] }[] = [];
    const count = { taken: 0, not: 0 };
    for (let round = 1; round <= 4; round++) {
      const name = `s${round}`;
      const socketsOf = (name: string) =>
        disks.map((disk) => snapshotSocket(agent.runDir, disk, name));
      await writer.start(disks.map((disk) => agent.socket(disk)));
      await writer.more(WRITES);
      const from = [...writer.answered];
      using client = agent.client();
      using other = agent.client();
      const dying = client.createSnapshots({ disks, name }).then(() => true, () => false);
      // Before it has begun, when the map has it, and when it is complete.
      if (round % 3 === 1) {
        await until(async () => (await other.disk("web")).snapshots.includes(name), {
          timeoutMs: TIMEOUT_MS,
          intervalMs: 1,
          what: () => "no snapshot is begun",
        });
      } else if (round % 3 === 2) await dying;
      agent.killNow();
      const isTold = await dying;
      await writer.abandon();
      await agent.kill();
      const to = [...writer.begun];
      agent = await AgentProcess.start(options);
      // Whoever opens the disks brings them in line, and the snapshot is there, or is given up.
      await readOrdered(disks.map((disk) => agent.readOnlySocket(disk)), {
        from: writer.answered,
        to,
      });
      await writer.start(disks.map((disk) => agent.socket(disk)));
      await writer.more(1);
      using again = agent.client();
      await until(async () => (await again.snapshots()).every(({ isTaking }) => !isTaking), {
        timeoutMs: TIMEOUT_MS,
        what: () => `a snapshot is being taken for ever:\n${agent.log}`,
      });
      const there = (await again.snapshots()).filter((each) => each.name === name);
      assert(there.length === 0 ? !isTold : there.length === 2, `${there.length} of ${name}`);
      if (there.length === 2) kept.push({ name, from, to });
      there.length === 2 ? count.taken++ : count.not++;
      for (const each of kept) await readOrdered(socketsOf(each.name), each);

      // Killed in the middle of merging.
      await writer.more(WRITES);
      await again.createSnapshots({ disks, name: `t${round}` });
      await writer.more(WRITES);
      for (const disk of disks) await again.deleteSnapshot(disk, `t${round}`);
      agent.killNow();
      await writer.abandon();
      await agent.kill();
      agent = await AgentProcess.start(options);
      await readOrdered(disks.map((disk) => agent.readOnlySocket(disk)), {
        from: writer.answered,
        to: writer.begun,
      });
      for (const each of kept) await readOrdered(socketsOf(each.name), each);
      using last = agent.client();
      for (const disk of disks) await untilLayers(last, disk, kept.length + 1);
      for (const each of kept) await readOrdered(socketsOf(each.name), each);
    }
    console.log(`      killed meanwhile: ${count.taken} were taken, ${count.not} were not`);
    using last = agent.client();
    for (const { name } of kept) for (const disk of disks) await last.deleteSnapshot(disk, name);
    for (const disk of disks) await untilLayers(last, disk, 1);
    await readOrdered(disks.map((disk) => agent.readOnlySocket(disk)), {
      from: writer.answered,
      to: writer.begun,
    });
    await agent.stop();
  } finally {
    await agent.kill();
  }
  const { blocks } = compareReplicas([`${options.dataDir}/kelpie.store`]);
  assertEquals(blocks, 2 * ORDERED_BLOCKS);
});

Deno.test("a disk that was left in disorder is refused a snapshot, with what to do, and doing that helps", async () => {
  await using work = await WorkDirectory.make();
  const options = optionsOf(work);
  {
    await using agent = await AgentProcess.start(options);
    await agent.check("disk", "create", "web", "64M");
    const frontEnd = await FrontEnd.connect({ socket: agent.socket("web") });
    await frontEnd.write(0, new Uint8Array(4096).fill(1));
    await agent.kill();
    frontEnd.abort();
  }
  await using agent = await AgentProcess.start(options);
  const { code, stderr } = await agent.run("disk", "snapshot", "web@monday");
  assertEquals(code, 1, stderr);
  assertMatch(stderr, /web/);
  const hint = /'kelpie ([^']+)'/.exec(stderr);
  assert(hint !== null, stderr);
  await agent.check(...hint![1].split(" "));
  await agent.check("disk", "snapshot", "web@monday");
});

Deno.test("a disk that was left in disorder is not rolled back before what is said helps has been done", async () => {
  await using work = await WorkDirectory.make();
  const options = optionsOf(work);
  {
    await using agent = await AgentProcess.start(options);
    await agent.check("disk", "create", "web", "64M");
    await agent.check("disk", "snapshot", "web@monday");
    const frontEnd = await FrontEnd.connect({ socket: agent.socket("web") });
    await frontEnd.write(0, new Uint8Array(4096).fill(1));
    await agent.kill();
    frontEnd.abort();
  }
  await using agent = await AgentProcess.start(options);
  // Nobody has it open any more; also not where its lease was taken away by hand.
  for (const isReleased of [false, true]) {
    if (isReleased) await agent.check("disk", "lock", "release", "web", "--yes");
    const { code, stderr } = await agent.run("disk", "rollback", "web@monday", "--yes");
    assertEquals(code, 1, stderr);
    assertMatch(stderr, /replicas may differ\n.*'kelpie disk write web \/dev\/null'/, stderr);
  }
  await agent.check("disk", "write", "web", "/dev/null");
  await agent.check("disk", "rollback", "web@monday", "--yes");
  await using frontEnd = await FrontEnd.connect({ socket: agent.readOnlySocket("web") });
  const bytes = new Uint8Array(4096).fill(7);
  await frontEnd.read(0, bytes);
  assert(bytes.every((byte) => byte === 0));
});
