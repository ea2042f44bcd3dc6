/**
 * Three agents, some of which have several data paths: one is gone while its agent is stopped, or dies in use, and is back
 * later.
 *
 * @module
 */
import { assert, assertEquals, assertMatch } from "@std/assert/mod.js";
import { Prng } from "../../agent/base/prng.ts";
import { until } from "../guest/deadline.ts";
import { canMakeDisks, type Host, Hosts } from "./hosts.ts";
import { Load, longestPauseMs, nowMs } from "./load.ts";

const MIB = 1024 * 1024;
/** Written all the while, and only before. */
const DISK = "web", BULK = "bulk";
const SIZE_BYTES = 128 * MIB;
/** Longest wait of a guest when a path fails, in milliseconds. */
const PAUSE_MS_MAX = 5000;

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

/** Three hosts with the disk that only was written, and a load on the other one, opened on one of them. */
class Story implements AsyncDisposable {
  private constructor(readonly hosts: Hosts, readonly load: Load, readonly data: Uint8Array) {}

  static async begin(hosts: Hosts, guestOn: number): Promise<Story> {
    await hosts.startAll();
    const [first] = hosts.list;
    await first.running.check("disk", "create", DISK, `${SIZE_BYTES}`);
    await first.running.check("disk", "create", BULK, "64M");
    const data = new Uint8Array(48 * MIB);
    new Prng(1).fill(data);
    const written = await first.running.runWith({ stdin: data }, "disk", "write", BULK);
    assertEquals(written.code, 0, written.stderr);
    await hosts.untilWhole();
    const load = await Load.start({
      socket: hosts.host(guestOn).socket(DISK),
      sizeBytes: SIZE_BYTES,
      seed: crypto.getRandomValues(new Uint32Array(1))[0],
      places: 32,
      ratePerSecond: 200,
    });
    return new Story(hosts, load, data);
  }

  /** The guest gets on, and has seen nothing wrong. */
  async progress(count: number): Promise<void> {
    const logs = () => this.hosts.lastLogs();
    await this.load.progress(count, { timeoutMs: 30_000, logs });
    await this.load.check(logs);
  }

  async whole(): Promise<void> {
    try {
      await this.hosts.untilWhole();
    } catch (error) {
      throw new Error(`${(error as Error).message}\n${this.hosts.lastLogs()}`);
    }
  }

  /** Waits until another host tells this of a path. */
  async untilTold(host: Host, state: string): Promise<void> {
    const by = this.hosts.list.find((each) => each !== host)!;
    await until(async () => (await pathsOf(by, host))[1]?.state === state, {
      timeoutMs: 20_000,
      what: () => `nobody says that the path is ${state}\n${this.hosts.lastLogs()}`,
    });
    const told = new TextDecoder().decode((await by.running.run("status")).stdout);
    const path = host.morePaths[0];
    const how = state === "missing" ? "is missing" : "has failed";
    assertMatch(told, new RegExp(`data path ${path} of node ${host.name} ${how}`));
    const list = await by.running.check("node", "list");
    assertMatch(list, new RegExp(`${host.name} lacks data path ${path}: ${state}`));
  }

  /** The path is back: what it held is on the others, and what is left over there goes. */
  async untilTidy(host: Host): Promise<void> {
    await this.whole();
    const by = this.hosts.list.find((each) => each !== host)!;
    await until(async () => {
      const paths = await pathsOf(by, host);
      return paths.every(({ state }) => state === "ok") && paths[1].usedBytes < MIB;
    }, { timeoutMs: 20_000, what: () => `something is left over\n${this.hosts.lastLogs()}` });
  }

  /** Every host reads what was written, from its own replica. */
  async verify(): Promise<void> {
    await this.load.drain();
    await this.whole();
    for (const host of this.hosts.list) {
      await this.load.readAll(host.readOnlySocket(DISK));
      const own = (await read(host)).subarray(0, this.data.length);
      assertEquals(own.findIndex((byte, index) => byte !== this.data[index]), -1, host.name);
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.load[Symbol.asyncDispose]();
  }
}

Deno.test("a node goes on without a data path that is missing, copies anew what it held, and takes the path back", async () => {
  await using hosts = await Hosts.make({ paths: { 2: 2, 3: 3 } });
  await using story = await Story.begin(hosts, 1);
  const [first, second, third] = hosts.list;
  await story.progress(200);
  const before = await pathsOf(first, third);
  assertEquals(before.map(({ state }) => state), ["ok", "ok", "ok"]);
  assert(before.every(({ usedBytes }) => usedBytes > MIB), JSON.stringify(before));
  for (const [host, end] of [[second, "stop"], [third, "kill"]] as const) {
    const path = host.morePaths[0];
    await host[end]();
    await story.progress(50);
    await Deno.rename(path, `${path}-away`);
    await host.start();
    await story.whole();
    await story.untilTold(host, "missing");
    await story.progress(100);
    await host[end]();
    await Deno.rename(`${path}-away`, path);
    await host.start();
    await story.untilTidy(host);
    await story.progress(100);
  }
  await story.verify();
});

Deno.test({
  name:
    "a disk dies under one of two data paths of the host of a guest, which notices a pause at the most",
  ignore: !await canMakeDisks(),
  fn: async () => {
    await using hosts = await Hosts.make({ paths: { 2: 2 }, capacity: "400M" });
    const host = hosts.host(2);
    const [path] = host.morePaths;
    await host.mountDisk(path, 600 * MIB);
    await using story = await Story.begin(hosts, 2);
    await story.progress(200);
    const [, before] = await pathsOf(hosts.host(1), host);
    assert(before.usedBytes > MIB, `${before.usedBytes}`);
    const killedMs = nowMs();
    host.killDisk(path);
    await story.progress(200);
    const pauseMs = longestPauseMs(await story.load.report(), killedMs);
    console.log(`      the longest wait: ${(pauseMs / 1000).toFixed(2)} s`);
    assert(pauseMs < PAUSE_MS_MAX, `${pauseMs} ms`);
    await story.untilTold(host, "failed");
    await story.whole();
    assertEquals((await story.load.report()).reconnects, 0, "its agent has gone on");
    await host.kill();
    await host.mendDisk(path);
    await host.start();
    await story.untilTidy(host);
    await story.progress(100);
    await story.verify();
  },
});
