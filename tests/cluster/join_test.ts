/**
 * Agents that are to join a cluster and cannot: they say why themselves, and what to do.
 *
 * @module
 */
import { assert, assertEquals, assertRejects, assertStringIncludes } from "@std/assert/mod.js";
import { formatClusterSecret } from "../../agent/cluster_secret.ts";
import { AgentProcess, AgentRefusal, WorkDirectory } from "../tools/agent_process.ts";
import { addressFor } from "../tools/ports.ts";

/** Lines of a log that hold a text. */
function linesWith(log: string, text: string): string[] {
  return log.split("\n").filter((line) => line.includes(text));
}

Deno.test("who has another secret, or names a host where nobody is, says so itself", async () => {
  await using work = await WorkDirectory.make();
  const options = (name: string) => ({
    runDir: `${work.path}/${name}/run`,
    dataDir: `${work.path}/${name}/data`,
    capacity: "1G",
  });
  const secretFile = async (name: string, secret: string) => {
    const path = `${work.path}/${name}.secret`;
    await Deno.writeTextFile(path, `${secret}\n`, { mode: 0o600 });
    return path;
  };
  for (const name of ["first", "wrong", "lost", "none"]) await Deno.mkdir(`${work.path}/${name}`);
  const first = await AgentProcess.start(options("first"));
  await using _first = first;
  const right = (await first.check("cluster", "secret")).trim();
  const other = formatClusterSecret(new Uint8Array(32).fill(9));
  const seed = addressFor(options("first").dataDir);
  const nobody = addressFor(`${work.path}/nobody`);
  const join = async (name: string, address: string, secret: string) =>
    AgentProcess.launch({
      ...options(name),
      arguments: ["--join", address, "--secret-file", await secretFile(name, secret)],
    });
  await using wrong = await join("wrong", seed, other);
  await using lost = await join("lost", nobody, right);
  await Promise.all([wrong.ready, lost.ready]);

  // Without a secret, or with a file that is not there, nothing is made at all.
  for (const more of [[], ["--secret-file", `${work.path}/missing`]]) {
    const none = { ...options("none"), arguments: ["--join", seed, ...more] };
    const refusal = await assertRejects(() => AgentProcess.start(none), AgentRefusal);
    assertEquals(refusal.code, 64);
    assertStringIncludes(refusal.stderr, more.length === 0 ? "kelpie cluster secret" : more[1]);
    assertEquals(await Deno.stat(none.dataDir).catch(() => null), null);
  }

  const cases: [AgentProcess, string, string][] = [
    [wrong, `joining ${seed}: it refuses the cluster secret of this node`, "kelpie cluster secret"],
    [lost, `joining ${nobody}: it cannot be reached: Connection refused`, "agent there runs"],
  ];
  for (const [agent, reason, hint] of cases) {
    const status = await agent.run("status");
    assertEquals(status.code, 1, status.stderr);
    const text = new TextDecoder().decode(status.stdout);
    assertStringIncludes(text, reason);
    assertStringIncludes(text, hint);
    assert(!text.includes("voter"), text);
    const said = linesWith(agent.log, "not in the cluster yet");
    assertEquals(said.length, 1, agent.log);
    assertStringIncludes(said[0], hint);
    // Nothing else speaks of it, and least of all again and again.
    assertEquals(linesWith(agent.log, " warn ").length, 1, agent.log);
    for (const secret of [right, other]) assert(!agent.log.includes(secret));
  }
  // There is nothing in its store that a cluster could be made of; it goes on as before.
  const recovered = await wrong.run("cluster", "recover", "--yes");
  assertEquals(recovered.code, 5, recovered.stderr);
  assertStringIncludes(recovered.stderr, "not in its cluster yet");
  assertEquals((await wrong.run("status")).code, 1);

  const refused = await wrong.run("disk", "create", "web", "1G");
  assertEquals(refused.code, 2);
  assertStringIncludes(refused.stderr, `joining ${seed}: it refuses the cluster secret`);

  // With the right one it is taken in, by the same store.
  await wrong.stop();
  await using mended = await AgentProcess.start({
    ...options("wrong"),
    arguments: ["--join", seed, "--secret-file", await secretFile("wrong", right)],
  });
  assertStringIncludes(mended.log, "this node has been taken in");
  const { stdout } = await mended.run("status", "--json");
  const { cluster } = JSON.parse(new TextDecoder().decode(stdout));
  assertEquals([cluster.joining, cluster.nodes.length], [[], 2]);
  assert(!mended.log.includes("chmod"), mended.log);
  // A file that others can read is worth a word, and only that.
  await mended.stop();
  const open = await secretFile("wrong", right);
  await Deno.chmod(open, 0o644);
  await using warned = await AgentProcess.start({
    ...options("wrong"),
    arguments: ["--secret-file", open],
  });
  assertEquals(linesWith(warned.log, `chmod 600 ${open}`).length, 1, warned.log);
  await warned.stop();
  // Its store has the secret now: the file need not be named any more.
  await using again = await AgentProcess.start({
    ...options("wrong"),
    arguments: ["--join", seed],
  });
  assert(!again.log.includes("made a new store"), again.log);
});
