/**
 * Snapshots on three real agents: taken by one node while a guest writes on another, read on all of them, deleted while one is down.
 *
 *     host 1                       host 2                        host 3
 *     writer ─ web.sock            writer ─ log.sock             agent: killed, and back
 *                                  snapshot web@s1 log@s1
 *     reader ─ web@s1.sock         reader ─ web@s1.sock          reader ─ web@s1.sock
 *
 * Invariants:
 * - A snapshot is one moment of both disks (`ordered_writes.ts`), the same on every node, and stays so, whoever dies.
 * - A node that was down while snapshots were deleted merges them when it is back; until then the others wait for it, and say so.
 * - At last every node has exactly the blocks of disks that were written the same way without snapshots, and all replicas are equal.
 *
 * @module
 */
import { assert, assertEquals, assertMatch } from "@std/assert/mod.js";
import { snapshotSocket } from "../../agent/map/names.ts";
import { until } from "../guest/deadline.ts";
import {
  exactly,
  ORDERED_BLOCKS,
  ORDERED_BYTES,
  ORDERED_ROUND,
  OrderedWriter,
  readOrdered,
} from "../tools/ordered_writes.ts";
import { type Host, Hosts } from "./hosts.ts";
import { compareReplicas } from "./replicas.ts";

const DISKS = ["web", "log"];
const BLOCK_BYTES = 4096;
/** Writes of each chain between two snapshots: fewer than it has blocks, so that snapshots are read through what lies below them. */
const WRITES = 5;
const TIMEOUT_MS = 60_000;

/** What a snapshot holds: somewhere between, until it has been read. */
interface Kept {
  readonly name: string;
  readonly from: readonly number[];
  readonly to: readonly number[];
  /** What it holds, of each disk and chain; null: it was not read yet. */
  tops: readonly (readonly number[])[] | null;
}

function isThere(path: string): boolean {
  try {
    Deno.statSync(path);
    return true;
  } catch {
    return false;
  }
}

class Story {
  readonly writer = new OrderedWriter();
  kept: Kept[] = [];

  constructor(readonly hosts: Hosts) {}

  /** Each disk is opened on a host of its own, and written to: snapshots begin on them at different times. */
  async write(...hosts: readonly Host[]): Promise<void> {
    await this.writer.start(DISKS.map((disk, at) => hosts[at].socket(disk)));
  }

  /** Takes a snapshot of all disks by the command line of a host, and reads it on every node. */
  async take(host: Host, name: string): Promise<void> {
    const { writer } = this;
    await writer.more(WRITES);
    const from = [...writer.answered];
    writer.longestMs = 0;
    await host.running.check("disk", "snapshot", ...DISKS.map((disk) => `${disk}@${name}`));
    console.log(`      ${name}: the longest write meanwhile ${writer.longestMs.toFixed(1)} ms`);
    this.kept.push({ name, from, to: [...writer.begun], tops: null });
    await this.check();
  }

  /** Deletes snapshots of all disks. */
  async delete(host: Host, ...names: readonly string[]): Promise<void> {
    using client = host.running.client();
    for (const name of names) for (const disk of DISKS) await client.deleteSnapshot(disk, name);
    this.kept = this.kept.filter((each) => !names.includes(each.name));
  }

  /** Every snapshot holds on every node that runs what it has held from the start. */
  async check(): Promise<void> {
    for (const kept of this.kept) {
      for (const host of this.hosts.list.filter(({ agent }) => agent !== null)) {
        const sockets = DISKS.map((disk) => snapshotSocket(host.runDir, disk, kept.name));
        await until(() => sockets.every(isThere), {
          timeoutMs: TIMEOUT_MS,
          what: () => `${host.name} has no socket for ${kept.name}:\n${host.log}`,
        });
        const tops = await readOrdered(sockets, kept);
        kept.tops ??= tops;
        assertEquals(tops, kept.tops, `${kept.name} on ${host.name}`);
      }
    }
  }

  /** Waits until all disks are read through so many layers, as a host sees it. */
  async untilLayers(host: Host, count: number): Promise<void> {
    using client = host.running.client();
    let layers: (readonly number[])[] = [];
    await until(async () => {
      layers = (await Promise.all(DISKS.map((disk) => client.disk(disk)))).map((each) =>
        each.layers
      );
      return layers.every((each) => each.length === count);
    }, {
      timeoutMs: TIMEOUT_MS,
      what: () => `layers ${JSON.stringify(layers)}, and not ${count}:\n${host.log}`,
    });
  }
}

Deno.test("snapshots are the same on every node, and every block comes back when they are deleted, whoever was down", async (t) => {
  await using hosts = await Hosts.make();
  await hosts.startAll();
  const [first, second, third] = hosts.list;
  {
    using client = second.running.client();
    for (const name of [...DISKS, "twin"]) {
      await client.createDisk({ name, sizeBytes: ORDERED_BYTES, copies: 3 });
    }
  }
  await hosts.untilWhole();
  const story = new Story(hosts);
  const { writer } = story;
  await story.write(first, second);
  const step = async (name: string, fn: () => Promise<void>) => {
    if (!await t.step(name, fn)) throw new Error(`"${name}" failed`);
  };

  await step("taken of two disks that are open on two nodes", async () => {
    for (const name of ["s1", "s2", "s3"]) await story.take(second, name);
  });

  await step(
    "deleted from the middle while a node is down, which is killed in the middle of merging when it is back",
    async () => {
      await third.kill();
      await writer.more(WRITES);
      await story.delete(second, "s2");
      const status = async () => {
        const { stdout, stderr } = await second.running.run("status");
        return new TextDecoder().decode(stdout) + stderr;
      };
      await until(async () => /cannot be merged until .*host3/.test(await status()), {
        timeoutMs: TIMEOUT_MS,
        what: () => "the status does not say who is waited for",
      });
      await story.untilLayers(second, 4);
      await story.check();
      await third.start();
      await third.kill();
      await third.start();
      await story.untilLayers(third, 3);
      await hosts.untilWhole();
      await story.check();
    },
  );

  await step("the host of the guest dies", async () => {
    await story.take(third, "s4");
    await first.kill();
    await writer.abandon();
    const from = [...writer.answered], to = [...writer.begun];
    let said = "";
    await until(async () => {
      const { code, stderr } = await second.running.run("disk", "snapshot", "web@late");
      assertEquals(code === 0, false, "a snapshot was taken of a disk whose replicas may differ");
      return /open it once/.test(said = stderr);
    }, { timeoutMs: TIMEOUT_MS, intervalMs: 500, what: () => said });
    assertMatch(said, /disk web/);
    await second.running.check("disk", "write", "web", "/dev/null");
    const sockets = DISKS.map((disk) => second.readOnlySocket(disk));
    await readOrdered(sockets, { from, to });
    await second.running.check("disk", "snapshot", ...DISKS.map((disk) => `${disk}@late`));
    story.kept.push({ name: "late", from, to, tops: null });
    await story.check();
    await first.start();
    await hosts.untilWhole();
    await story.check();
  });

  await step("all of them are deleted, and an agent is killed meanwhile", async () => {
    await story.write(second, third);
    await writer.more(WRITES);
    await story.delete(first, "s3", "late");
    first.running.killNow();
    await first.kill();
    await story.check();
    await first.start();
    await story.delete(second, "s1", "s4");
    for (const host of hosts.list) await story.untilLayers(host, 1);
    await hosts.untilWhole();
    await writer.more(ORDERED_ROUND);
    await writer.stop();
  });

  const twin = new OrderedWriter();
  await twin.start([first.socket("twin")]);
  await twin.more(ORDERED_ROUND);
  await twin.stop();
  for (const host of hosts.list) {
    using client = host.running.client();
    for (const disk of [...DISKS, "twin"]) {
      const { allocatedBytes } = await client.disk(disk);
      assertEquals(allocatedBytes, ORDERED_BLOCKS * BLOCK_BYTES, `${disk} on ${host.name}`);
    }
    await readOrdered(DISKS.map((disk) => host.readOnlySocket(disk)), exactly(writer.answered));
  }
  for (const host of hosts.list) await host.stop();
  const { blocks } = compareReplicas(hosts.list.map((host) => `${host.dataDir}/kelpie.store`));
  assertEquals(blocks, (DISKS.length + 1) * ORDERED_BLOCKS, "blocks of all layers of each node");
  assert(story.kept.length === 0);
});
