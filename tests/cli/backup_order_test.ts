/**
 * Runs of backups of all disks whose order is not that of their clocks, and disks that were rolled back between them.
 *
 * @module
 */
import { assert, assertEquals } from "@std/assert/mod.js";
import { Prng } from "../../agent/base/prng.ts";
import { hasZstd } from "../../agent/platform/linux/zstd.ts";
import { run } from "../cli/fixture.ts";
import { AgentProcess, WorkDirectory } from "../tools/agent_process.ts";

// Loaded here: else the first test would look as if it leaked a library.
assert(hasZstd());

/** Runs a command in this process, at a time. */
async function runAt(time: string, runDir: string, words: readonly string[]) {
  const Usual = globalThis.Date;
  const now = Usual.parse(time);
  globalThis.Date = class extends Usual {
    constructor(...values: unknown[]) {
      super(...(values.length === 0 ? [now] : values) as [number]);
    }
  } as DateConstructor;
  try {
    return await run(words, (terminal) => terminal.variables.KELPIE_RUN_DIR = runDir);
  } finally {
    globalThis.Date = Usual;
  }
}

/** A disk "a", and what is written to it. */
async function withDisk(
  test: (
    agent: AgentProcess,
    vault: string,
    write: (seed: number) => Promise<Uint8Array>,
  ) => Promise<void>,
) {
  await using work = await WorkDirectory.make();
  const [runDir, dataDir] = [`${work.path}/run`, `${work.path}/data`];
  await using agent = await AgentProcess.start({ runDir, dataDir, capacity: "1G" });
  await agent.check("disk", "create", "a", "8M");
  await test(agent, `${work.path}/vault`, async (seed) => {
    const data = new Uint8Array(100_000);
    new Prng(seed).fill(data);
    const { code, stderr } = await agent.runWith({ stdin: data }, "disk", "write", "a");
    assertEquals(code, 0, stderr);
    return data;
  });
}

Deno.test("a run is restored whatever the clock was before it, and the newest one is the one that was made last", async () => {
  await withDisk(async (agent, vault, write) => {
    await write(1);
    const first = await runAt("2036-01-01T00:00:00Z", agent.runDir, ["cluster", "backup", vault]);
    assertEquals(first.code, 0, first.stderr);
    const newest = await write(2);
    const second = await runAt("2026-11-28T00:00:00Z", agent.runDir, ["cluster", "backup", vault]);
    assertEquals(second.code, 0, second.stderr);
    await agent.check("disk", "delete", "a", "--now", "--yes");
    const name = /^run (\S+):/m.exec(second.stderr)![1];
    const named = await agent.run("cluster", "restore", vault, "--run", name);
    assertEquals(named.code, 0, named.stderr);
    await agent.check("disk", "delete", "a", "--now", "--yes");
    await agent.check("cluster", "restore", vault);
    const { stdout } = await agent.run("disk", "read", "a", "--length", String(newest.length));
    assertEquals(stdout[0], newest[0], "the older of two runs was restored");
    assertEquals(stdout, newest);
  });
});

Deno.test("a disk that was rolled back is in the next run, as a whole", async () => {
  await withDisk(async (agent, vault, write) => {
    const old = await write(1);
    await agent.check("disk", "snapshot", "a@monday");
    await write(2);
    await agent.check("cluster", "backup", vault);
    await agent.check("disk", "rollback", "a@monday", "--yes");
    const ran = await agent.run("cluster", "backup", vault);
    assertEquals(ran.code, 0, ran.stderr);
    await agent.check("disk", "delete", "a", "--now", "--yes");
    await agent.check("cluster", "restore", vault);
    const { stdout } = await agent.run("disk", "read", "a", "--length", String(old.length));
    assertEquals(stdout, old);
  });
});
