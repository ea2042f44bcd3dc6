/**
 * The agent beside running guests ends and is started again, while the cluster has other troubles.
 *
 *     host 1                            host 2           host 3
 *     QEMU ────── web.sock ┐            agent            agent: dead, or catching up
 *     load ───── load.sock ┴ agent: stopped in good order, or killed; started again
 *
 * |               | stopped in good order | killed |
 * | ------------- | --------------------- | ------ |
 * | host 3 dead   | 1                     | 2      |
 * | it catches up | 3                     | 4      |
 *
 * Invariants, in each of the four:
 * - The cluster is in that state when the agent ends: what another host says of it before and after the end shows that.
 * - Requests are under way when it is killed. Each of them comes back exactly once, and none with an error: the load's front end ends the
 *   test when the used ring names what is not in flight, and a write that was done again after a later one was acknowledged is a
 *   block that cannot be (load.ts).
 * - The guests go on by themselves, as soon as the agent is back.
 *
 * At last all replicas are equal, byte by byte.
 *
 * @module
 */
import { assert, assertEquals } from "@std/assert/mod.js";
import { FrontEnd } from "../../agent/frontend/front_end.ts";
import type { NodeStatus } from "../../agent/http/backend.ts";
import type { ClusterDocument } from "../../agent/http/documents.ts";
import { until } from "../guest/deadline.ts";
import { checkFiles, writerScript } from "../guest/files.ts";
import { Guest } from "../guest/guest.ts";
import { describe, Hosts, isWhole } from "./hosts.ts";
import { Load, longestPauseMs, nowMs } from "./load.ts";
import { compareReplicas } from "./replicas.ts";

const MIB = 1024 * 1024;
/** Of the guest in QEMU, of the load, and what a host that is away misses. */
const DISK = "web", LOADED = "load", BULK = "bulk";
/** So much that a host takes seconds to catch up with it while guests work. */
const BULK_BYTES = 64 * MIB;
/** So many that some are under way at nearly any moment. */
const RATE_PER_SECOND = 2000;
/** What has to come back before the guests count as going on. */
const WRITES = 100, FILES = 2;
/** How long anything may take on a machine that is busy with other things. */
const TIMEOUT_MS = 60_000;

/** How an agent ends. */
type Way = "stopped in good order" | "killed";

class Story {
  /** Requests that were under way when the agent was killed. */
  cutOff = 0;

  constructor(readonly hosts: Hosts, readonly load: Load, readonly guest: Guest) {}

  logs(): string {
    return this.hosts.lastLogs();
  }

  /** Waits until the second host, whose agent never ends, says that the cluster is so. */
  async seen(what: string, isSo: (cluster: ClusterDocument) => boolean): Promise<void> {
    let last: ClusterDocument | null = null;
    await until(async () => isSo(last = await this.hosts.host(2).cluster()), {
      timeoutMs: TIMEOUT_MS,
      intervalMs: 5,
      what: () => `${what}: ${last === null ? "" : describe(last)}\n${this.logs()}`,
    });
  }

  /** Nothing has failed, and nothing that was read cannot be. */
  async check(): Promise<void> {
    await this.load.check(() => this.logs());
    assertEquals(await this.guest.ioErrors(), []);
    using client = this.hosts.host(1).running.client();
    for (const name of [DISK, LOADED]) {
      assertEquals((await client.disk(name)).counters.errors, 0, name);
    }
  }

  /** Both guests go on. */
  async goOn(): Promise<void> {
    const files = () => this.guest.check("wc -l </tmp/said").then(Number);
    const count = async () => ({ writes: (await this.load.report()).writes, files: await files() });
    const before = await count();
    let now = before;
    await until(async () => {
      now = await count();
      return now.writes >= before.writes + WRITES && now.files >= before.files + FILES;
    }, {
      timeoutMs: TIMEOUT_MS,
      what: () => `${JSON.stringify(before)}, and now ${JSON.stringify(now)}\n${this.logs()}`,
    });
    await this.check();
  }

  /** The first host's agent ends under its guests, while the cluster is so, and is started again. */
  async restart(way: Way, isSo: (cluster: ClusterDocument) => boolean): Promise<void> {
    const [first, second] = this.hosts.list;
    await this.seen("before the agent ends", isSo);
    const startMs = nowMs();
    await (way === "killed" ? first.kill() : first.stop());
    const cluster = await second.cluster();
    assert(isSo(cluster), `when the agent had ended: ${describe(cluster)}`);
    const { waiting } = await this.load.report();
    if (way === "killed") this.cutOff += waiting.length;
    await first.start();
    await this.goOn();
    const pauseMs = longestPauseMs(await this.load.report(), startMs);
    console.log(
      `      ${way}, ${waiting.length} requests under way: the longest wait ` +
        `${(pauseMs / 1000).toFixed(2)} s`,
    );
  }
}

/** The third host's node: ids are in the order in which hosts joined. */
function thirdOf({ nodes }: ClusterDocument): NodeStatus {
  return nodes.find(({ name }) => name === "host3")!;
}

/** The third host is dead, and its copies are missing. */
function isDegraded(cluster: ClusterDocument): boolean {
  return thirdOf(cluster).state === "down" && cluster.groups.degraded > 0;
}

/** The third host is there again, and has not caught up. */
function isRecovering(cluster: ClusterDocument): boolean {
  const { joining, whole, total } = cluster.groups;
  return thirdOf(cluster).state === "up" && joining > 0 && whole < total;
}

/** …and it has said how much it has to copy. */
function isCopying(cluster: ClusterDocument): boolean {
  return isRecovering(cluster) && thirdOf(cluster).chunksLeft > 0;
}

/** Writes random data to all of a disk. */
async function fill(socket: string): Promise<void> {
  await using frontEnd = await FrontEnd.connect({ socket, stallTimeoutMs: 60_000 });
  const data = new Uint8Array(MIB);
  for (let at = 0; at < MIB; at += 65536) crypto.getRandomValues(data.subarray(at, at + 65536));
  for (let at = 0; at < BULK_BYTES; at += MIB) await frontEnd.write(at, data);
}

Deno.test("the agent of running guests is stopped and killed, while another host is dead and while it catches up, and each request is done once", async (t) => {
  await using hosts = await Hosts.make();
  await hosts.startAll();
  const [first, second, third] = hosts.list;
  using client = second.running.client();
  for (const name of [DISK, LOADED, BULK]) {
    await client.createDisk({ name, sizeBytes: BULK_BYTES, copies: 3 });
  }
  await hosts.untilWhole();
  await using guest = await Guest.boot({
    disks: [{ socket: first.socket(DISK) }],
    memoryMiB: 128,
    prefix: first.prefix,
  });
  await guest.check(
    "mkfs.ext4 -q /dev/vda && mount -t ext4 /dev/vda /mnt && mkdir /mnt/w && touch /tmp/said",
  );
  guest.start(`( ${writerScript(1)} ) >/tmp/said; touch /tmp/ended`);
  await using load = await Load.startOn(hosts, first, LOADED, {
    sizeBytes: BULK_BYTES,
    places: 16,
    ratePerSecond: RATE_PER_SECOND,
  });
  const story = new Story(hosts, load, guest);
  await story.goOn();

  // Where one step has failed, the next would wait for an agent that was never started.
  const step = async (name: string, fn: () => Promise<void>) => {
    if (!await t.step(name, fn)) throw new Error(`"${name}" failed`);
  };
  const comesBack = async (way: Way) => {
    await fill(second.socket(BULK));
    await third.start();
    await story.seen("it copies", isCopying);
    await story.restart(way, isRecovering);
    await story.seen("all copies are there again", isWhole);
    await story.check();
  };

  await step("another host is dead", async () => {
    await third.kill();
    await story.restart("stopped in good order", isDegraded);
    await story.restart("killed", isDegraded);
  });

  await step("that host catches up", () => comesBack("stopped in good order"));

  await step("it catches up once more", async () => {
    await third.stop();
    await comesBack("killed");
  });

  await step("what the guests wrote is there, and the same in every replica", async () => {
    await guest.check("touch /tmp/stop; until [ -e /tmp/ended ]; do sleep 0.1; done");
    await checkFiles(guest);
    await guest.check("cd /mnt && sha256sum -c -s /tmp/said");
    await load.drain();
    await load.readAlike(hosts.list, LOADED);
    await story.check();
    assert(story.cutOff > 0, "nothing was under way when the agent was killed");
    await guest.shutdown();
    await load.close();
    for (const host of hosts.list) await host.stop();
    const { blocks } = compareReplicas(hosts.list.map((host) => `${host.dataDir}/kelpie.store`));
    assert(blocks > 0, `${blocks} blocks`);
  });
});
