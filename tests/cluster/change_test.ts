/**
 * What is changed about a disk on one host holds on all of them, under the front ends that are connected there.
 *
 * @module
 */
import { assert, assertEquals, assertRejects } from "@std/assert/mod.js";
import { FrontEnd } from "../../agent/frontend/front_end.ts";
import { ControlFailure } from "../../agent/map/errors.ts";
import { until } from "../guest/deadline.ts";
import { type Host, Hosts } from "./hosts.ts";

const MIB = 1024 * 1024;
const DISK = "web";
const TIMEOUT_MS = 60_000;

async function heldMs(host: Host): Promise<number> {
  using client = host.running.client();
  return (await client.disk(DISK)).counters.heldMs;
}

Deno.test("size and limits that are changed on one host hold on the others at once", async (t) => {
  await using hosts = await Hosts.make();
  await hosts.startAll();
  const [here, there, third] = hosts.list;
  using client = here.running.client();
  await client.createDisk({ name: DISK, sizeBytes: 64 * MIB });
  await hosts.untilWhole();
  const writer = await FrontEnd.connect({ socket: there.socket(DISK) });
  const reader = await FrontEnd.connect({ socket: third.running.readOnlySocket(DISK) });
  let moved: FrontEnd | null = null;
  const block = new Uint8Array(4096).fill(7);
  try {
    await writer.write(0, block);

    await t.step("it grows under those who have it open elsewhere", async () => {
      await client.changeDisk(DISK, { sizeBytes: 128 * MIB });
      for (const frontEnd of [writer, reader]) {
        await until(async () => (await frontEnd.readConfig()).capacityBytes === 128 * MIB, {
          timeoutMs: TIMEOUT_MS,
          what: () => `the size is ${frontEnd.capacityBytes}`,
        });
      }
      await writer.write(128 * MIB - 4096, block);
      const read = new Uint8Array(4096);
      await reader.read(128 * MIB - 4096, read);
      assertEquals(read, block);
    });

    await t.step("it does not shrink while it is open elsewhere", async () => {
      const shrink = { sizeBytes: 64 * MIB, shrink: true };
      const refused = await assertRejects(() => client.changeDisk(DISK, shrink), ControlFailure);
      assertEquals(refused.error.code, "busy");
      assert(refused.error.message.includes("in use on node"), refused.error.message);
      const read = new Uint8Array(4096);
      await reader.read(128 * MIB - 4096, read);
      assertEquals(read, block, "nothing of it is lost");
    });

    await t.step("limits hold where it is open, and where it is opened next", async () => {
      // One request, and the next within the hour.
      await client.changeDisk(DISK, { limits: { bytesPerSecond: 1 } });
      const writes = [writer.write(0, block), writer.write(4096, block)];
      await Promise.race(writes);
      await until(async () => await heldMs(there) > 0, {
        timeoutMs: TIMEOUT_MS,
        what: () => "nothing is held back where it is open",
      });
      assertEquals(await heldMs(third), 0);
      await client.changeDisk(DISK, { limits: {} });
      await Promise.all(writes);
      await client.changeDisk(DISK, { limits: { bytesPerSecond: 1 } });
      await writer.close();
      moved = await FrontEnd.connect({ socket: third.socket(DISK) });
      const more = [moved.write(0, block), moved.write(4096, block)];
      await Promise.race(more);
      await until(async () => await heldMs(third) > 0, {
        timeoutMs: TIMEOUT_MS,
        what: () => "nothing is held back where it is open now",
      });
      await client.changeDisk(DISK, { limits: {} });
      await Promise.all(more);
    });

    await t.step("it shrinks when nobody has it open for writing any more", async () => {
      await moved!.close();
      await until(async () => (await client.disk(DISK)).openOn === null, {
        timeoutMs: TIMEOUT_MS,
        what: () => "it is still open",
      });
      const changed = await client.changeDisk(DISK, { sizeBytes: 64 * MIB, shrink: true });
      assertEquals(changed.sizeBytes, 64 * MIB);
    });
  } finally {
    writer.abort();
    reader.abort();
    (moved as FrontEnd | null)?.abort();
  }
});
