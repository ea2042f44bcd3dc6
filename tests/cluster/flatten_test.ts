/**
 * A clone is made independent on three real agents, while a guest writes to it and one of the nodes dies and comes back.
 *
 *     golden     | hole | data | hole | data | …      64 MiB of data between the places that the guest writes to
 *     copy       a clone of golden@v1: the guest writes blocks into the same chunks that are copied
 *
 * Invariants:
 * - What the guest has been answered stays, what the clone had of its origin stays, whoever dies.
 * - The node that was down is waited for; when it is back, it does what it has missed.
 * - Afterwards the origin can be deleted for good: every node has exactly the blocks of the clone, and all replicas are equal.
 *
 * @module
 */
import { assert, assertEquals } from "@std/assert/mod.js";
import { until } from "../guest/deadline.ts";
import {
  exactly,
  ORDERED_BLOCKS,
  ORDERED_BYTES,
  ORDERED_ROUND,
  OrderedWriter,
  readOrdered,
} from "../tools/ordered_writes.ts";
import { Hosts } from "./hosts.ts";
import { compareReplicas } from "./replicas.ts";

const BLOCK_BYTES = 4096;
/** The guest's blocks lie at multiples of this; in the second half of each such part there is data. */
const PART_BYTES = 512 * 1024;
const DATA_BLOCKS = 64 * 1024 * 1024 / BLOCK_BYTES;
const TIMEOUT_MS = 120_000;

/** The origin's content: each block of data is another one. */
function goldenBytes(): Uint8Array {
  const bytes = new Uint8Array(ORDERED_BYTES);
  const words = new Uint32Array(bytes.buffer);
  let block = 0;
  for (let part = 0; part < ORDERED_BYTES; part += PART_BYTES) {
    for (let at = part + PART_BYTES / 2; at < part + PART_BYTES; at += BLOCK_BYTES) {
      words.fill(0x10000000 + block++, at / 4, (at + BLOCK_BYTES) / 4);
    }
  }
  assertEquals(block, DATA_BLOCKS);
  return bytes;
}

Deno.test("a clone is flattened under a writing guest while a node dies and comes back, and then its origin goes", async () => {
  await using hosts = await Hosts.make();
  await hosts.startAll();
  const [first, second, third] = hosts.list;
  const directory = await Deno.makeTempDir();
  const golden = goldenBytes();
  using client = second.running.client();
  await client.createDisk({
    name: "golden",
    sizeBytes: ORDERED_BYTES,
    copies: 3,
    detectZeroes: true,
  });
  await hosts.untilWhole();
  await Deno.writeFile(`${directory}/golden`, golden);
  await second.running.check("disk", "write", "golden", `${directory}/golden`);
  await second.running.check("disk", "snapshot", "golden@v1");
  await second.running.check("disk", "clone", "golden@v1", "copy");
  const writer = new OrderedWriter();
  using far = first.running.client();
  await until(async () => (await far.disks()).some(({ name }) => name === "copy"), {
    timeoutMs: TIMEOUT_MS,
    what: () => "the clone is not known everywhere",
  });
  await writer.start([first.socket("copy")]);
  await writer.more(3);

  await second.running.check("disk", "flatten", "copy");
  await third.kill();
  const begun = (await client.disk("copy")).flatten;
  assert(begun !== null, "it was over before the node was dead");
  // The others get on without it, and wait.
  await until(async () => (await client.disk("copy")).flatten?.done.length === 2, {
    timeoutMs: TIMEOUT_MS,
    what: () => `two of three should be done:\n${second.log}`,
  });
  await writer.more(3);
  assertEquals((await client.disk("copy")).flatten?.waiting.length, 1);
  assertEquals((await client.disk("copy")).layers.length, 2);
  // Killed once more as soon as it copies.
  await third.start();
  await writer.more(1);
  await third.kill();
  await third.start();
  writer.longestMs = 0;
  await until(async () => (await client.disk("copy")).flatten === null, {
    timeoutMs: TIMEOUT_MS,
    what: () => `the clone is not independent:\n${third.log}`,
  });
  assertEquals((await client.disk("copy")).layers.length, 1);
  assertEquals((await client.disk("copy")).isShared, false);
  await writer.more(3);

  await client.deleteSnapshot("golden", "v1");
  await client.deleteDisk("golden", { now: true });
  await writer.more(ORDERED_ROUND);
  await writer.stop();
  await hosts.untilWhole();
  const blocks = DATA_BLOCKS + ORDERED_BLOCKS;
  for (const host of hosts.list) {
    using own = host.running.client();
    await until(async () => (await own.disks()).length === 1, {
      timeoutMs: TIMEOUT_MS,
      what: () => `${host.name} still has the origin`,
    });
    const { allocatedBytes, space } = await own.disk("copy");
    assertEquals(allocatedBytes, blocks * BLOCK_BYTES, host.name);
    assertEquals(space?.exclusiveBytes, blocks * BLOCK_BYTES, host.name);
    await readOrdered([host.readOnlySocket("copy")], exactly(writer.answered));
  }
  const { code, stdout: copy } = await second.running.run("disk", "read", "copy");
  assertEquals([code, copy.length], [0, ORDERED_BYTES]);
  for (let part = 0; part < ORDERED_BYTES; part += PART_BYTES) {
    const [from, to] = [part + BLOCK_BYTES, part + PART_BYTES];
    const isSame = copy.subarray(from, to).every((byte, i) => byte === golden[from + i]);
    assert(isSame, `the clone is not what it was, from ${from} on`);
  }
  for (const host of hosts.list) await host.stop();
  const compared = compareReplicas(hosts.list.map((host) => `${host.dataDir}/kelpie.store`));
  assertEquals(compared.blocks, blocks, "blocks of all layers of each node");
  await Deno.remove(directory, { recursive: true });
});
