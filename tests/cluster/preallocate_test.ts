/**
 * Pre-allocation in a cluster whose nodes each have a part of the disk, and exclusive space of a snapshot there.
 *
 * @module
 */
import { assert, assertEquals } from "@std/assert/mod.js";
import { FrontEnd } from "../../agent/frontend/front_end.ts";
import { until } from "../guest/deadline.ts";
import { Hosts } from "./hosts.ts";

const MIB = 1024 * 1024;
const SIZE_BYTES = 96 * MIB;

Deno.test("a disk of which each node has a part gets all of its space, and what a snapshot has alone comes back on every node", async () => {
  await using hosts = await Hosts.make({ count: 3, capacity: "512M" });
  await hosts.startAll();
  await hosts.untilWhole({ nodes: 3 });
  const [first] = hosts.list;
  await first.running.check("disk", "create", "web", `${SIZE_BYTES}`, "--copies", "1");
  await hosts.untilWhole({ nodes: 3 });
  const clients = hosts.list.map((host) => host.running.client());
  try {
    const allocated = async () => {
      const disks = await Promise.all(clients.map((client) => client.disk("web")));
      return disks.map(({ allocatedBytes }) => allocatedBytes);
    };
    const sum = (numbers: readonly number[]) => numbers.reduce((total, each) => total + each, 0);
    const data = new Uint8Array(MIB).fill(9);
    const write = async (offset: number) => {
      const disk = await FrontEnd.connect({ socket: first.socket("web") });
      try {
        for (let at = offset; at < SIZE_BYTES; at += 12 * MIB) await disk.write(at, data);
        await disk.close();
      } finally {
        disk.abort();
      }
      await until(async () => (await clients[0].disk("web")).openOn === null, {
        timeoutMs: 20_000,
        what: () => "the disk stays open",
      });
    };
    await write(0);
    await first.running.check("disk", "preallocate", "web");
    const parts = await allocated();
    assertEquals(sum(parts), SIZE_BYTES, parts.join());
    assert(parts.every((bytes) => bytes > 0), parts.join());
    const read = await FrontEnd.connect({ socket: first.readOnlySocket("web") });
    try {
      const piece = new Uint8Array(2 * MIB);
      for (let at = 0; at < SIZE_BYTES; at += 12 * MIB) {
        await read.read(at, piece);
        assertEquals(piece.indexOf(0), MIB, `at ${at}`);
        assertEquals(piece.lastIndexOf(9), MIB - 1, `at ${at}`);
      }
      await read.close();
    } finally {
      read.abort();
    }

    await first.running.check("disk", "snapshot", "web@monday");
    await write(4 * MIB);
    const before = await allocated();
    const alone = await Promise.all(
      clients.map(async (client) => (await client.snapshot("web", "monday")).space!.exclusiveBytes),
    );
    assertEquals(sum(alone), 8 * MIB);
    await first.running.check("disk", "snapshot", "delete", "web@monday", "--yes");
    const isMerged = async () => {
      const disks = await Promise.all(clients.map((client) => client.disk("web")));
      return disks.every(({ layers }) => layers.length === 1);
    };
    await until(isMerged, { timeoutMs: 30_000, what: () => "the snapshot is not merged" });
    const after = await allocated();
    assertEquals(before.map((bytes, node) => bytes - after[node]), alone, "on each node");
  } finally {
    for (const client of clients) client[Symbol.dispose]();
  }
});
