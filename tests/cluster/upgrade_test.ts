/**
 * Three agents go over to the next version one by one, while a guest writes; then an old one is refused.
 *
 * @module
 */
import { assert, assertEquals, assertStringIncludes } from "@std/assert/mod.js";
import { LEVEL_MAX, LEVEL_MIN } from "../../agent/base/levels.ts";
import { VERSION } from "../../agent/version.ts";
import { until } from "../guest/deadline.ts";
import { type AgentProcess, kelpie } from "../tools/agent_process.ts";
import { NEXT_LEVEL, NEXT_MOTTO, NEXT_VERSION, NextVersion } from "../upgrade/next_version.ts";
import { Hosts } from "./hosts.ts";
import { Load, longestPauseMs, nowMs } from "./load.ts";

const MIB = 1024 * 1024;
const DISK = "web";
const SIZE_BYTES = 64 * MIB;
/** A refusal is said as soon as the program has loaded and the log is replayed. */
const REFUSED_MS_MAX = 20_000;

/** Waits until an agent has ended. */
async function ended(agent: AgentProcess): Promise<number> {
  let code: number | null = null;
  agent.exited.then((status) => code = status.code);
  await until(() => Promise.resolve(code !== null), {
    timeoutMs: REFUSED_MS_MAX,
    intervalMs: 50,
    what: () => `it does not end:\n${agent.log}`,
  });
  return code!;
}

Deno.test("three agents are upgraded one by one under a guest, then an old one is refused", async (t) => {
  await using next = await NextVersion.make();
  await using hosts = await Hosts.make({ capacity: "256M" });
  await hosts.startAll();
  const [first, , third] = hosts.list;
  await first.running.check("disk", "create", DISK, `${SIZE_BYTES}`);
  await hosts.untilWhole();
  await using load = await Load.startOn(hosts, first, DISK, { sizeBytes: SIZE_BYTES, places: 16 });
  const upgrade = (...args: string[]) =>
    kelpie(["cluster", "upgrade", ...args], {
      program: next.program,
      env: { KELPIE_RUN_DIR: first.runDir },
    });

  await t.step("what is to be done is shown, and nothing is done", async () => {
    const { code, stdout, stderr } = await upgrade();
    assertEquals(code, 0, stderr);
    const table = new TextDecoder().decode(stdout);
    for (const { name } of hosts.list) {
      assert(
        new RegExp(`${name} +up +${VERSION} +${LEVEL_MIN}-${LEVEL_MAX} +\\? +yes`).test(table),
        table,
      );
    }
    assertStringIncludes(stderr, `would start ${NEXT_VERSION} on `);
    assert(stderr.indexOf("host1") > stderr.indexOf("host2"), stderr);
  });

  await t.step("every agent starts the next version in turn, and the guest goes on", async () => {
    const startedMs = nowMs();
    for (const host of hosts.list) host.program = next.program;
    const supervised = Promise.all(hosts.list.map((host) => host.supervise()));
    let isOver = false;
    // What the level is, and how many run what, all along.
    const seen = new Set<string>();
    const watching = (async () => {
      while (!isOver) {
        const cluster = await first.cluster().catch(() => null);
        if (cluster !== null && cluster.nodes.length === 3) {
          const old = cluster.nodes.filter(({ version }) => version === VERSION).length;
          const isNew = cluster.notes.some((note) => note.includes(NEXT_MOTTO));
          seen.add(`${old} old, level ${cluster.level}${isNew ? ", new in use" : ""}`);
        }
        await new Promise((resolve) => setTimeout(resolve, 20));
      }
    })();
    const walk = upgrade("--yes", "--timeout", "60s");
    const { code, stderr } = await Promise.race([
      walk,
      supervised.then(() => Promise.reject(new Error("an agent is not looked after any more"))),
    ]);
    isOver = true;
    await watching;
    console.log(stderr.trim().replaceAll(/^/gm, "      "));
    const logs = hosts.lastLogs();
    assertEquals(code, 0, `${stderr}\n${logs}`);
    assertStringIncludes(
      stderr,
      `all 3 nodes run ${NEXT_VERSION}; the cluster speaks level ${NEXT_LEVEL}`,
    );
    for (const state of [3, 2, 1].map((old) => `${old} old, level ${LEVEL_MAX}`)) {
      assert(seen.has(state), [...seen].join("; "));
    }
    for (const state of seen) {
      if (!state.startsWith("0 old")) assertStringIncludes(state, `level ${LEVEL_MAX}`);
      if (state.includes("new in use")) assertStringIncludes(state, `level ${NEXT_LEVEL}`);
    }
    const { nodes, level, notes } = await first.cluster();
    assertEquals(nodes.map(({ version }) => version), Array(3).fill(NEXT_VERSION));
    assertEquals(nodes.map(({ levelMax }) => levelMax), Array(3).fill(NEXT_LEVEL));
    assertEquals(level, NEXT_LEVEL);
    await until(async () => (await first.cluster()).notes.join().includes(NEXT_MOTTO), {
      timeoutMs: 5000,
      what: () => `what is new is not in use: ${notes}`,
    });
    const report = await load.report();
    assertEquals([...report.errors, ...report.violations], [], logs);
    assert(report.writes > 100, `${report.writes} writes`);
    const pauseMs = longestPauseMs(report, startedMs);
    console.log(`      ${report.writes} writes, the longest wait ${(pauseMs / 1000).toFixed(2)} s`);
    for (const host of hosts.list) {
      assertEquals(host.logs.length, 2, `${host.name} was started once too often`);
    }
  });

  await t.step("again there is nothing to do", async () => {
    const { code, stderr } = await upgrade("--yes");
    assertEquals(code, 0, stderr);
    assertEquals(
      stderr,
      `all 3 nodes run ${NEXT_VERSION}; the cluster speaks level ${NEXT_LEVEL}\n`,
    );
  });

  await t.step("an old agent is refused before it touches its store, and told why", async () => {
    await third.stop();
    const store = `${third.dataDir}/kelpie.store`;
    const before = await Deno.stat(store);
    third.program = undefined;
    const agent = await third.launch();
    assertEquals(await ended(agent), 1, agent.log);
    assertStringIncludes(
      agent.log,
      `this store is not opened: the cluster speaks level ${NEXT_LEVEL}, and Kelpie ${VERSION} speaks ${LEVEL_MIN} to ${LEVEL_MAX}`,
    );
    assertStringIncludes(agent.log, `install version ${NEXT_VERSION}, or a newer one`);
    const after = await Deno.stat(store);
    assertEquals([after.mtime, after.size], [before.mtime, before.size]);
  });

  await t.step("an old agent without data is not taken in", async () => {
    const agent = await third.launch(`${third.dataDir}-new`);
    await until(() => Promise.resolve(agent.log.includes("does not take this node in")), {
      timeoutMs: REFUSED_MS_MAX,
      what: () => agent.log,
    });
    assertStringIncludes(agent.log, `the cluster speaks level ${NEXT_LEVEL}`);
    await third.kill();
    assertEquals((await first.cluster()).nodes.length, 3);
  });

  await t.step("the version that it was goes on where it was, and all is the same", async () => {
    third.program = next.program;
    await third.start();
    await hosts.untilWhole();
    await load.drain();
    await load.readAlike(hosts.list, DISK);
    await load.close();
    const { errors, violations } = await load.report();
    assertEquals([...errors, ...violations], []);
  });
});
