/**
 * The self-contained program: made, started and used as on a machine without Deno.
 *
 * @module
 */
import { assert, assertEquals, assertMatch } from "@std/assert/mod.js";
import { Prng } from "../../agent/base/prng.ts";
import { AgentProcess, kelpie, WorkDirectory } from "../tools/agent_process.ts";

const COMPILE = new URL("../tools/compile.ts", import.meta.url).pathname;
const MIB = 1024 * 1024;

/**
 * Makes the program.
 *
 * @returns true, or false when the base that `deno compile` embeds cannot be had here
 */
async function compile(output: string): Promise<boolean> {
  const { code, stderr } = await new Deno.Command(Deno.execPath(), {
    args: ["run", "-A", COMPILE, "--output", output],
    env: { NO_COLOR: "1" },
    stdin: "null",
    stdout: "null",
    stderr: "piped",
  }).output();
  const said = new TextDecoder().decode(stderr);
  if (code === 0) return true;
  // Only a base that cannot be downloaded is a reason to leave the test out; anything else is a failure.
  if (Deno.env.get("DENORT_BIN") === undefined && /denort|download/i.test(said)) return false;
  throw new Error(`compiling failed with status ${code}: ${said}`);
}

Deno.test("the compiled program stores, serves and checks without Deno", async (t) => {
  await using work = await WorkDirectory.make();
  const program = `${work.path}/kelpie`;
  if (!await compile(program)) {
    const name = "left out: denort, which deno compile embeds, cannot be had here (see DENORT_BIN)";
    await t.step({ name, ignore: true, fn: () => {} });
    return;
  }
  const options = {
    runDir: `${work.path}/run`,
    dataDir: `${work.path}/data`,
    capacity: "1G",
    program,
    env: { PATH: "/nowhere", DENO_DIR: `${work.path}/none` },
  };
  const data = new Uint8Array(3 * MIB);
  new Prng(9).fill(data);
  const run = (...args: string[]) =>
    kelpie(["--run-dir", options.runDir, ...args], { program, env: options.env });

  await t.step("it tells its version and how to use it", async () => {
    const version = await kelpie(["--version"], { program, env: options.env });
    assertMatch(new TextDecoder().decode(version.stdout), /^\d+\.\d+\.\d+\n$/);
    assertEquals((await kelpie(["disk", "crate"], { program, env: options.env })).code, 64);
  });

  await t.step("what was written before a kill is there afterwards", async () => {
    {
      await using agent = await AgentProcess.start(options);
      assertEquals((await run("disk", "create", "web", "64M")).code, 0);
      const written = await kelpie(
        ["--run-dir", options.runDir, "disk", "write", "web", "--offset", "512"],
        { program, env: options.env, stdin: data },
      );
      assertEquals(written.code, 0, written.stderr);
      await agent.kill();
    }
    await using agent = await AgentProcess.start(options);
    const read = await run("disk", "read", "web", "--offset", "512", "--length", `${data.length}`);
    assertEquals(read.code, 0, read.stderr);
    assert(read.stdout.every((byte, index) => byte === data[index]), "the data differs");
    assertEquals(read.stdout.length, data.length);
    const check = await run("disk", "check", "web");
    assertEquals(check.code, 0, check.stderr);
    const bench = await run(
      ...["bench", "web", "--rw", "randwrite", "--depth", "8", "--count", "2000"],
      ...["--verify", "--yes", "--json"],
    );
    assertEquals(bench.code, 0, bench.stderr);
    const { operations, ioErrors, verify } = JSON.parse(new TextDecoder().decode(bench.stdout));
    assertEquals([operations >= 2000, ioErrors, verify.wrongBlocks], [true, 0, 0]);
    assert(verify.checkedBlocks >= 1);
    await agent.stop();
  });
});
