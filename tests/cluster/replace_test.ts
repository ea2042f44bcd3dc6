/**
 * Every part of a cluster is replaced, one after the other, while a guest writes, reads and checks all the time.
 *
 * @module
 */
import { assert, assertEquals, assertStringIncludes } from "@std/assert/mod.js";
import { within } from "../guest/deadline.ts";
import { type Host, Hosts } from "./hosts.ts";
import { Load, longestPauseMs, nowMs } from "./load.ts";
import { compareReplicas } from "./replicas.ts";

const MIB = 1024 * 1024;
const DISK = "web";
const SIZE_BYTES = 128 * MIB;
/** Longest wait of a guest while data moves away from under it, in milliseconds: nothing dies here. */
const PAUSE_MS_MAX = 5000;

Deno.test("all nodes of a cluster are replaced by new ones, one by one, under a guest that notices pauses at the most", async (t) => {
  await using hosts = await Hosts.make({ count: 6, capacity: "512M" });
  const [first, second, third, fourth, fifth, sixth] = hosts.list;
  for (const host of [first, second, third]) await host.start();
  await first.running.check("disk", "create", DISK, `${SIZE_BYTES}`, "--copies", "3");
  await hosts.untilWhole({ nodes: 3 });
  await using load = await Load.startOn(hosts, first, DISK, { sizeBytes: SIZE_BYTES, places: 24 });
  const logs = () => hosts.lastLogs();

  /** Its agent ends by itself, and says why, however often it is started. */
  const endsRemoved = async (old: Host) => {
    const { agent } = old;
    const { code } = await within(agent!.exited, 30_000, () => `it goes on:\n${agent!.log}`);
    assert(code !== 0);
    assertStringIncludes(agent!.log, "this node was removed from the cluster");
  };

  /** `by` takes the place of `old`: joins, gets its data, and the old one goes for good. */
  const replace = async (old: Host, by: Host, admin: Host, { isStopped = true, leave }: {
    /** Its agent is stopped before it is taken out. */
    isStopped?: boolean;
    leave?: () => Promise<unknown>;
  } = {}) => {
    const startedMs = nowMs();
    await by.start();
    await leave?.();
    await admin.running.check("node", "drain", old.name, "--wait", "--yes");
    if (isStopped) await old.stop();
    await admin.running.check("node", "remove", old.name, "--yes");
    if (!isStopped) {
      await endsRemoved(old);
      await old.launch();
      await endsRemoved(old);
      old.agent = null;
    }
    const { nodes } = await hosts.untilWhole({ nodes: 3 });
    assertEquals(nodes.some(({ name }) => name === old.name), false);
    await load.progress(100, { timeoutMs: 20_000, logs });
    await load.check(logs);
    const pauseMs = longestPauseMs(await load.report(), startedMs);
    const seconds = (ms: number) => (ms / 1000).toFixed(2);
    console.log(
      `      ${old.name} by ${by.name} in ${seconds(nowMs() - startedMs)} s, ` +
        `the longest wait ${seconds(pauseMs)} s`,
    );
    assert(pauseMs <= PAUSE_MS_MAX, `${pauseMs} ms\n${logs()}`);
  };

  await t.step("the second and the third", async () => {
    await replace(second, fourth, first);
    await replace(third, fifth, first, { isStopped: false });
  });

  await t.step("the first, which the guest leaves before", async () => {
    await replace(first, sixth, fourth, { leave: () => load.attach(fourth.socket(DISK)) });
  });

  await t.step("nothing is lost, and all replicas are equal", async () => {
    await load.drain();
    const running = [fourth, fifth, sixth];
    await load.readAlike(running, DISK);
    await load.check(logs);
    await load.close();
    for (const host of running) await host.stop();
    const { blocks } = compareReplicas(running.map((host) => `${host.dataDir}/kelpie.store`));
    assert(blocks > 0, `${blocks} blocks`);
  });
});
