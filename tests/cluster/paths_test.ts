/**
 * Three agents, of which two have several data paths: one of them is gone while its agent is stopped, and back later.
 *
 * @module
 */
import { assert, assertEquals, assertMatch } from "@std/assert/mod.js";
import { Prng } from "../../agent/base/prng.ts";
import { until } from "../guest/deadline.ts";
import { type Host, Hosts } from "./hosts.ts";
import { Load } from "./load.ts";

const MIB = 1024 * 1024;
/** Written all the while, and only before. */
const DISK = "web", BULK = "bulk";
const SIZE_BYTES = 128 * MIB;

function logs(hosts: Hosts): string {
  return hosts.list.map((host) => `--- ${host.name}\n${host.log.slice(-4000)}`).join("\n");
}

/** Everything of a disk, read on a host: from its own replica, which is in sync. */
async function read(host: Host): Promise<Uint8Array> {
  const { code, stdout, stderr } = await host.running.run("disk", "read", BULK);
  assertEquals(code, 0, stderr);
  return stdout;
}

/** States and use of a host's paths, as another host tells. */
async function pathsOf(by: Host, host: Host): Promise<{ state: string; usedBytes: number }[]> {
  const { nodes } = await by.cluster();
  return nodes.find(({ name }) => name === host.name)!.paths.map(({ state, usedBytes }) => ({
    state,
    usedBytes,
  }));
}

Deno.test("a node goes on without a data path that is missing, copies anew what it held, and takes the path back", async () => {
  await using hosts = await Hosts.make({ paths: { 2: 2, 3: 3 } });
  await hosts.startAll();
  const [first, second, third] = hosts.list;
  await first.running.check("disk", "create", DISK, `${SIZE_BYTES}`);
  await first.running.check("disk", "create", BULK, "64M");
  const data = new Uint8Array(48 * MIB);
  new Prng(1).fill(data);
  const written = await first.running.runWith({ stdin: data }, "disk", "write", BULK);
  assertEquals(written.code, 0, written.stderr);
  await hosts.untilWhole();
  const load = await Load.start({
    socket: first.socket(DISK),
    sizeBytes: SIZE_BYTES,
    seed: crypto.getRandomValues(new Uint32Array(1))[0],
    places: 32,
    ratePerSecond: 200,
  });
  await using _ = load;
  const progress = async (count: number) => {
    const { writes } = await load.report();
    await until(async () => (await load.report()).writes >= writes + count, {
      timeoutMs: 30_000,
      what: () => `the load stands still\n${logs(hosts)}`,
    });
    const { errors, violations } = await load.report();
    assertEquals([...errors, ...violations], [], logs(hosts));
  };
  const whole = async () => {
    try {
      await hosts.untilWhole();
    } catch (error) {
      throw new Error(`${(error as Error).message}\n${logs(hosts)}`);
    }
  };
  await progress(600);
  const before = await pathsOf(first, third);
  assertEquals(before.map(({ state }) => state), ["ok", "ok", "ok"]);
  assert(before.every(({ usedBytes }) => usedBytes > MIB), JSON.stringify(before));

  for (const [host, end] of [[second, "stop"], [third, "kill"]] as const) {
    const path = host.morePaths[0];
    await host[end]();
    await progress(50);
    await Deno.rename(path, `${path}-away`);
    await host.start();
    await whole();
    await until(async () => (await pathsOf(first, host))[1]?.state === "missing", {
      timeoutMs: 20_000,
      what: () => "the loss of the path is not told",
    });
    await progress(100);
    const told = new TextDecoder().decode((await first.running.run("status")).stdout);
    assertMatch(told, new RegExp(`data path ${path} of node ${host.name} is missing`));
    const list = await first.running.check("node", "list");
    assertMatch(list, new RegExp(`${host.name} lacks data path ${path}: missing`));

    await host[end]();
    await Deno.rename(`${path}-away`, path);
    await host.start();
    await whole();
    // What it held is on the others now; what is left over there goes.
    await until(async () => {
      const paths = await pathsOf(first, host);
      return paths.every(({ state }) => state === "ok") && paths[1].usedBytes < MIB;
    }, { timeoutMs: 20_000, what: () => `something is left over\n${logs(hosts)}` });
    await progress(100);
  }
  await load.drain();
  await whole();
  for (const host of hosts.list) {
    await load.readAll(host.readOnlySocket(DISK));
    const own = (await read(host)).subarray(0, data.length);
    assertEquals(own.findIndex((byte, index) => byte !== data[index]), -1, host.name);
  }
});
