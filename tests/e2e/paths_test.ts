/**
 * A real agent with several data paths: one that is missing, comes back, is added, is another's.
 *
 * @module
 */
import { assert, assertEquals, assertMatch, assertRejects } from "@std/assert/mod.js";
import { Prng } from "../../agent/base/prng.ts";
import { AgentProcess, AgentRefusal, WorkDirectory } from "../tools/agent_process.ts";
import { Load, longestPauseMs, nowMs } from "../cluster/load.ts";
import { until } from "../guest/deadline.ts";

const MIB = 1024 * 1024;
const LENGTH = 48 * MIB;

function randomBytes(seed: number, lengthBytes: number): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(lengthBytes);
  new Prng(seed).fill(bytes);
  return bytes;
}

Deno.test("an agent keeps a disk on several paths, waits for one that is missing, and goes on when it is back", async () => {
  await using work = await WorkDirectory.make();
  const [a, b] = ["a", "b"].map((name) => `${work.path}/${name}`);
  const options = {
    runDir: `${work.path}/run`,
    dataDir: a,
    capacity: "1G",
    arguments: ["--data", b],
  };
  const data = randomBytes(1, LENGTH);
  {
    await using agent = await AgentProcess.start(options);
    await agent.check("disk", "create", "web", "64M");
    const written = await agent.runWith({ stdin: data }, "disk", "write", "web");
    assertEquals(written.code, 0, written.stderr);
    using client = agent.client();
    const { store, agent: info } = await client.status();
    assertEquals(info.dataPaths, [`${a}/kelpie.store`, `${b}/kelpie.store`]);
    const used = store!.paths.map(({ usedBytes }) => usedBytes);
    assert(used.every((bytes) => bytes >= LENGTH / 8), `${used}`);
    assertEquals(used[0] + used[1], store!.liveBytes);
    assertMatch(await agent.check("status"), /^healthy/);
    assertMatch(await agent.check("status", "--verbose"), new RegExp(`data path: +${b}: `));
    await agent.stop();
  }
  await Deno.rename(b, `${b}-away`);
  {
    // What is there is served; what is not is waited for, and nobody takes it for empty.
    await using agent = await AgentProcess.start(options);
    using client = agent.client();
    await until(async () => (await client.status()).groups!.unclean > 0, {
      timeoutMs: 20_000,
      what: () => `the loss is not in the map\n${agent.log}`,
    });
    const status = await agent.run("status");
    const told = new TextDecoder().decode(status.stdout);
    assertEquals(status.code, 1);
    assertMatch(told, new RegExp(`data path ${b} is missing: there is no store; is it mounted\\?`));
    const isSaid = async () =>
      (await client.status()).problems.some(({ message }) =>
        message.includes(`the only copy of placement group`) && message.includes(`is on ${b}`)
      );
    await until(isSaid, {
      timeoutMs: 20_000,
      what: () => `the agent does not say what it waits for\n${agent.log}`,
    });
    const { groups, store } = await client.status();
    assertEquals(groups!.total, 256);
    assertEquals(groups!.unclean, 128);
    assertEquals(store!.paths.map(({ state }) => state), ["ok", "missing"]);
    await assertRejects(() => Deno.stat(b), Deno.errors.NotFound);
    await agent.stop();
  }
  // What was left behind does not stand in for what went on.
  await Deno.rename(`${b}-away`, b);
  await Deno.rename(a, `${a}-away`);
  const refused = await assertRejects(() => AgentProcess.start(options), AgentRefusal);
  assertMatch(refused.stderr, new RegExp(`${b} was left behind when the agent went on`));
  await Deno.rename(`${a}-away`, a);
  {
    await using agent = await AgentProcess.start(options);
    const { code, stdout, stderr } = await agent.run(
      "disk",
      "read",
      "web",
      "--length",
      `${LENGTH}`,
    );
    assertEquals(code, 0, stderr);
    assert(stdout.every((byte, index) => byte === data[index]), "the data is another");
    assertMatch(await agent.check("status"), /^healthy/);
    await agent.kill();
  }
});

Deno.test("data moves to a path that was added while guests use it", async () => {
  await using work = await WorkDirectory.make();
  const [a, b] = ["a", "b"].map((name) => `${work.path}/${name}`);
  const options = { runDir: `${work.path}/run`, dataDir: a, capacity: "1G" };
  const length = 256 * MIB;
  const data = randomBytes(4, length);
  {
    await using agent = await AgentProcess.start(options);
    await agent.check("disk", "create", "bulk", "256M");
    await agent.check("disk", "create", "web", "256M");
    const written = await agent.runWith({ stdin: data }, "disk", "write", "bulk");
    assertEquals(written.code, 0, written.stderr);
    await agent.stop();
  }
  await using agent = await AgentProcess.start({ ...options, arguments: ["--data", b] });
  using client = agent.client();
  const used = async () => (await client.status()).store!.paths.map(({ usedBytes }) => usedBytes);
  const [before] = await used();
  assert(before >= length, `${before}`);
  await using load = await Load.start({
    socket: agent.socket("web"),
    sizeBytes: 256 * MIB,
    seed: 1,
    places: 64,
    ratePerSecond: 300,
  });
  const startMs = nowMs();
  await until(async () => (await used())[1] >= 64 * MIB, {
    timeoutMs: 60_000,
    what: () => `nothing moves\n${agent.log}`,
  });
  const report = await load.report();
  assertEquals([...report.errors, ...report.violations], []);
  console.log(`      the longest wait: ${(longestPauseMs(report, startMs) / 1000).toFixed(2)} s`);
  await until(async () => {
    const [first, second] = await used();
    return first + second < length + 8 * MIB && first - second < 0.1 * 1024 * MIB;
  }, { timeoutMs: 60_000, what: () => `what has moved is not dropped\n${agent.log}` });
  await load.drain();
  await load.readAll(agent.readOnlySocket("web"));
  await load.close();
  const { code, stdout, stderr } = await agent.run("disk", "read", "bulk");
  assertEquals(code, 0, stderr);
  assertEquals(stdout.findIndex((byte, index) => byte !== data[index]), -1);
  await agent.stop();
});

Deno.test("paths of another agent are refused, and what one path held stays where it is when another is added", async () => {
  await using work = await WorkDirectory.make();
  const data = randomBytes(2, 4 * MIB);
  const options = (name: string, more: string[] = []) => ({
    runDir: `${work.path}/run-${name}`,
    dataDir: `${work.path}/${name}`,
    capacity: "1G",
    arguments: more.flatMap((path) => ["--data", `${work.path}/${path}`]),
  });
  for (const name of ["one", "two"]) {
    await using agent = await AgentProcess.start(options(name));
    await agent.check("disk", "create", name, "64M");
    const written = await agent.runWith({ stdin: data }, "disk", "write", name);
    assertEquals(written.code, 0, written.stderr);
    await agent.stop();
  }
  const refused = await assertRejects(
    () => AgentProcess.start(options("one", ["two"])),
    AgentRefusal,
  );
  assertMatch(refused.stderr, /two belongs to another node/);
  const twice = await assertRejects(
    () => AgentProcess.start(options("one", ["x/../one"])),
    AgentRefusal,
  );
  assertMatch(twice.stderr, /--data names .*one twice/);
  await using agent = await AgentProcess.start(options("one", ["three", "four"]));
  using client = agent.client();
  const { store } = await client.status();
  assertEquals(store!.paths.map(({ state }) => state), ["ok", "ok", "ok"]);
  const { code, stdout, stderr } = await agent.run(
    ...["disk", "read", "one", "--length", `${data.length}`],
  );
  assertEquals(code, 0, stderr);
  assertEquals(stdout.findIndex((byte, index) => byte !== data[index]), -1);
  // What is new goes to the new ones.
  await agent.check("disk", "create", "more", "256M");
  const long = randomBytes(3, 128 * MIB);
  assertEquals((await agent.runWith({ stdin: long }, "disk", "write", "more")).code, 0);
  const { store: after } = await client.status();
  const used = after!.paths.map(({ usedBytes }) => usedBytes);
  assert(used.every((bytes) => bytes > 16 * MIB), `${used}`);
});
