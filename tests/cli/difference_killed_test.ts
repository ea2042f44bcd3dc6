/** Goes into tests/e2e/backup_test.ts. */
import { assert, assertEquals, assertMatch } from "@std/assert/mod.js";
import { Prng } from "../../agent/base/prng.ts";
import { UNFINISHED_ATTRIBUTE } from "../../cli/unfinished_disk.ts";
import { until } from "../guest/deadline.ts";
import { AgentProcess, spawnKelpie, WorkDirectory } from "../tools/agent_process.ts";

Deno.test("a disk with half of a difference says so, is no disk to a backup of all, and is whole again when it was rolled back", async () => {
  await using work = await WorkDirectory.make();
  const [runDir, dataDir] = [`${work.path}/run`, `${work.path}/data`];
  await using agent = await AgentProcess.start({ runDir, dataDir, capacity: "1G" });
  const file = (name: string) => `${work.path}/${name}.kb`;
  await agent.check("disk", "create", "web", "64M");
  await agent.check("disk", "snapshot", "web@a");
  const data = new Uint8Array(32 << 20);
  new Prng(5).fill(data);
  assertEquals((await agent.runWith({ stdin: data }, "disk", "write", "web")).code, 0);
  await agent.check("disk", "snapshot", "web@b");
  await agent.check("disk", "backup", "web@a", file("a"));
  await agent.check("disk", "backup", "web@b", file("b"), "--since", "a");
  await agent.check("disk", "restore", file("a"), "copy");
  await agent.check("disk", "limit", "copy", "--bandwidth", "4MiB");
  using client = agent.client();
  const restore = spawnKelpie(["--run-dir", runDir, "disk", "restore", file("b"), "copy"], {
    stdin: "null",
    stdout: "null",
  });
  const said = new Response(restore.stderr).text();
  await until(async () => (await client.disk("copy")).allocatedBytes > 0, {
    timeoutMs: 20_000,
    what: () => "nothing is written",
  });
  restore.kill("SIGKILL");
  await restore.status;
  await said;
  await until(async () => (await client.disk("copy")).sessions.length === 0, {
    timeoutMs: 30_000,
    what: () => "it is not given back",
  });
  const { allocatedBytes, snapshots } = await client.disk("copy");
  assert(allocatedBytes < data.length);
  assertEquals(snapshots, ["a"]);
  const vault = `${work.path}/vault`;
  const ran = await agent.run("cluster", "backup", vault);
  assertEquals(ran.code, 0, ran.stderr);
  assertMatch(
    ran.stderr,
    /disk copy is left out, .*not complete \(restoring copy@b\): .*'kelpie disk rollback copy@a'/,
  );
  assertMatch(ran.stderr, /: 1 disk, /);
  await agent.check("disk", "limit", "copy", "--none");
  await agent.check("disk", "rollback", "copy@a", "--yes");
  assertEquals((await client.disk("copy")).attributes[UNFINISHED_ATTRIBUTE], undefined);
  await agent.check("disk", "restore", file("b"), "copy");
  assertEquals((await client.disk("copy")).attributes[UNFINISHED_ATTRIBUTE], undefined);
  const { stdout } = await agent.run("disk", "read", "copy", "--length", String(data.length));
  assertEquals(stdout.findIndex((byte, at) => byte !== data[at]), -1);
});
