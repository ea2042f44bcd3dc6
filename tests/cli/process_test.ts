/**
 * The command line as a process of its own, with the permissions that its task gives it.
 *
 * @module
 */
import { assert, assertEquals, assertMatch } from "@std/assert/mod.js";
import { StorageDaemon } from "../guest/storage_daemon.ts";
import { until } from "../guest/deadline.ts";
import { FakeAgent, run } from "./fixture.ts";

const root = new URL("../../", import.meta.url);

/** Arguments of `deno` up to those of the command line: `run`, permissions, the program. */
async function programArguments(): Promise<string[]> {
  const { tasks } = JSON.parse(await Deno.readTextFile(new URL("deno.json", root)));
  const words = /deno (run .*) "\$ROOT\/cli\/main\.ts"$/.exec(tasks.kelpie.command);
  if (words === null) throw new Error(`what is this: ${tasks.kelpie.command}`);
  return [...words[1].split(" "), new URL("cli/main.ts", root).pathname];
}

async function command(args: string[], options: Partial<Deno.CommandOptions> = {}) {
  return new Deno.Command(Deno.execPath(), {
    args: [...await programArguments(), ...args],
    stdin: "null",
    stdout: "piped",
    stderr: "piped",
    ...options,
  });
}

/** A process that does not do its part within this time never will. */
const PATIENCE_MS = 20_000;

const text = (bytes: Uint8Array) => new TextDecoder().decode(bytes);

Deno.test("a process ends with the code, and needs no more than its permissions", async () => {
  await using agent = await FakeAgent.start();
  agent.backend.add("web");
  const env = { KELPIE_RUN_DIR: agent.runDir };
  const cases: [args: string[], code: number, stdout: RegExp, stderr: RegExp][] = [
    [["status"], 0, /^healthy: 1 disk/, /^$/],
    [["disk", "list", "--names"], 0, /^web\n$/, /^$/],
    [["disk", "info", "wbe"], 5, /^$/, /no disk named "wbe"/],
    [["disk", "create", "web", "1G"], 3, /^$/, /already/],
    [["disk", "delete", "web"], 64, /^$/, /--yes/],
    [["disk", "lsit"], 64, /^$/, /Did you mean/],
    [["status", "--run-dir", "/nowhere"], 2, /^$/, /no agent answers/],
  ];
  for (const [args, expected, out, err] of cases) {
    const { code, stdout, stderr } = await (await command(args, { env })).output();
    assertEquals({ args, code }, { args, code: expected }, text(stderr));
    assertMatch(text(stdout), out);
    assertMatch(text(stderr), err);
  }
});

/** A fake agent with a disk that `qemu-storage-daemon` serves. */
async function start(sizeBytes: number) {
  const agent = await FakeAgent.start();
  const file = `${agent.runDir}/web.disk`;
  await Deno.writeFile(file, new Uint8Array(0));
  await Deno.truncate(file, sizeBytes);
  await Deno.mkdir(`${agent.runDir}/ro`);
  await Deno.symlink("../web.sock", `${agent.runDir}/ro/web.sock`);
  const daemon = await StorageDaemon.start({ file, socket: `${agent.runDir}/web.sock` });
  agent.backend.add("web", sizeBytes);
  return {
    agent,
    env: { KELPIE_RUN_DIR: agent.runDir },
    async [Symbol.asyncDispose]() {
      await daemon.stop();
      await agent[Symbol.asyncDispose]();
    },
  };
}

Deno.test("data goes through pipes, and a reader that goes away is no disaster", async () => {
  const sizeBytes = 8 * 1024 ** 2;
  await using served = await start(sizeBytes);
  const { env } = served;
  const writer = (await command(["disk", "write", "web"], { env, stdin: "piped" })).spawn();
  const data = new Uint8Array(300_000).fill(7);
  await new Response(data).body!.pipeTo(writer.stdin);
  const written = await writer.output();
  assertEquals(written.code, 0, text(written.stderr));

  const whole = await (await command(["disk", "read", "web"], { env })).output();
  assertEquals(whole.code, 0, text(whole.stderr));
  assertEquals(whole.stdout.length, sizeBytes);
  assert(whole.stdout.every((byte, index) => byte === (index < data.length ? 7 : 0)));

  const cut = (await command(["disk", "read", "web"], { env })).spawn();
  const reader = cut.stdout.getReader();
  await reader.read();
  await reader.cancel();
  const said = await new Response(cut.stderr).text();
  assertEquals((await cut.status).code, 1);
  assertEquals(said, "");
});

Deno.test("SIGINT ends an import that waits for its input, and the disk stays usable", async () => {
  await using served = await start(1024 ** 2);
  const { agent, env } = served;
  const args = ["disk", "import", "-", "web", "--yes"];
  const child = (await command(args, { env, stdin: "piped" })).spawn();
  const writer = child.stdin.getWriter();
  await writer.write(new Uint8Array(4096).fill(7));
  // From then on it has told the kernel what to do with signals.
  await connected(child.pid, agent.runDir);
  child.kill("SIGINT");
  const timer = setTimeout(() => child.kill("SIGKILL"), PATIENCE_MS);
  const said = await new Response(child.stderr).text();
  assertEquals((await child.status).code, 130, said);
  clearTimeout(timer);
  assertMatch(said, /interrupted by SIGINT/);
  await writer.close().catch(() => {});
  await child.stdout.cancel();
  const { code, stderr } = await agent.run("disk read web --length 512");
  assertEquals(code, 0, stderr);
});

Deno.test("clone --full, import and restore that are killed leave nothing under the name that was asked for", async () => {
  await using served = await start(1024 ** 2);
  const { agent, env } = served;
  const { backend } = agent;
  backend.clusterMap = { ...backend.clusterMap, level: 2 };
  await agent.runWell("disk snapshot web@monday");
  await Deno.symlink("web.sock", `${agent.runDir}/web@monday.sock`);
  backend.onExtents = (_, { lengthBytes }) => Promise.resolve([{ lengthBytes, state: "data" }]);
  const file = `${agent.runDir}/monday.kb`;
  await agent.runWell(["disk", "backup", "web@monday", file, "--compress", "none"]);
  const cases: [args: string[], unfinished: string, hint: RegExp][] = [
    [["disk", "clone", "web@monday", "db", "--full"], "db.cloning", /another clone to disk db/],
    [["disk", "import", "-", "db", "--size", "1M"], "db.importing", /another import to disk db/],
    [["disk", "restore", file, "db"], "db.restoring", /another restore to disk db/],
  ];
  for (const [args, unfinished, hint] of cases) {
    // Who listens there never answers.
    using _listener = Deno.listen({
      transport: "unix",
      path: `${agent.runDir}/${unfinished}.sock`,
    });
    const names = () => backend.clusterMap.disks.map(({ name }) => name);
    const child = (await command(args, { env, stdin: "piped" })).spawn();
    try {
      await until(() => names().length > 1, {
        timeoutMs: PATIENCE_MS,
        what: () => `${args.join(" ")} makes no disk`,
      });
    } finally {
      child.kill("SIGKILL");
      await child.stdin.close().catch(() => {});
      await child.output();
    }
    assertEquals(names(), [unfinished, "web"], args.join(" "));
    // Whoever tries again is told what to do, and that is enough.
    const again = await agent.run(args);
    assertEquals(again.code, 3, again.stderr);
    assertMatch(again.stderr, hint);
    const told = /kelpie (disk delete \S+ --now)/.exec(again.stderr);
    await agent.runWell(`${told![1]} --yes`);
    assertEquals(names(), ["web"]);
  }
});

/** Waits until a process has the memory that it shares with a back end. */
function connected(pid: number, runDir: string): Promise<void> {
  return until(
    () => Deno.readTextFileSync(`/proc/${pid}/maps`).includes("memfd:kelpie-front-end"),
    { timeoutMs: PATIENCE_MS, what: () => `no connection to ${runDir}` },
  );
}

Deno.test("an agent runs until SIGTERM or SIGINT, and keeps what it was given", async () => {
  const directory = await Deno.makeTempDir({ prefix: "kelpie-cli-" });
  const runDir = `${directory}/run`;
  const image = `${directory}/image`;
  const ask = (words: string) =>
    run([...words.split(" "), "--run-dir", runDir], (terminal) => terminal.variables = {});
  const askWell = async (words: string) => {
    const ran = await ask(words);
    assertEquals({ words, code: ran.code }, { words, code: 0 }, ran.stderr);
    return ran;
  };
  try {
    const content = crypto.getRandomValues(new Uint8Array(65_536));
    await Deno.writeFile(image, content);
    for (const signal of ["SIGTERM", "SIGINT"] as const) {
      const args = [
        "agent",
        "--data",
        `${directory}/data`,
        "--capacity",
        "1G",
        "--run-dir",
        runDir,
      ];
      const agent = (await command(args, { stdout: "null" })).spawn();
      const said = new Response(agent.stderr).text();
      const timer = setTimeout(() => agent.kill("SIGKILL"), 3 * PATIENCE_MS);
      let ended = false;
      agent.status.then(() => ended = true);
      await until(() => ended || exists(`${runDir}/agent.sock`), {
        timeoutMs: PATIENCE_MS,
        what: () => "the agent does not listen",
      });
      assert(!ended, ended ? await said : "");
      if (signal === "SIGTERM") await askWell(`disk import ${image} web`);
      const { terminal } = await askWell("disk read web");
      assertEquals(terminal.bytes, content);
      assertMatch((await askWell("disk list")).stdout, /^web +64K +64K +1\/3 +\S+ +-$/m);
      assertMatch((await askWell("status")).stdout, /^healthy: 1 disk/);
      agent.kill(signal);
      const { code } = await agent.status;
      clearTimeout(timer);
      assertEquals({ signal, code }, { signal, code: 0 }, await said);
    }
  } finally {
    await Deno.remove(directory, { recursive: true });
  }
});

function exists(path: string): boolean {
  try {
    Deno.lstatSync(path);
    return true;
  } catch {
    return false;
  }
}
