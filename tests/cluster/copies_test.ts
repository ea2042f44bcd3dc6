/**
 * A disk gets another number of copies under a guest that writes, reads and checks all the time, while a node is killed.
 *
 * @module
 */
import { assert, assertEquals } from "@std/assert/mod.js";
import { until } from "../guest/deadline.ts";
import { Hosts } from "./hosts.ts";
import { Load } from "./load.ts";
import { compareReplicas } from "./replicas.ts";

const MIB = 1024 * 1024;
const DISK = "web";
const SIZE_BYTES = 96 * MIB;
/** Data behind what the guest uses, so that copying takes some seconds. */
const MORE_BYTES = 96 * MIB;
const TIMEOUT_MS = 120_000;

Deno.test("a disk has two copies, three, one, two and three under a guest, while nodes are killed", async (t) => {
  await using hosts = await Hosts.make({ capacity: "512M" });
  await hosts.startAll();
  const [first, second, third] = hosts.list;
  using client = first.running.client();
  await client.createDisk({ name: DISK, sizeBytes: SIZE_BYTES + MORE_BYTES, copies: 2 });
  await hosts.untilWhole();
  await first.fill(DISK, SIZE_BYTES, MORE_BYTES);
  await using load = await Load.startOn(hosts, first, DISK, { sizeBytes: SIZE_BYTES, places: 24 });
  const logs = () => hosts.lastLogs();
  const goesOn = async () => {
    await load.progress(100, { timeoutMs: TIMEOUT_MS, logs });
    await load.check(logs);
  };
  const has = async (copies: number) => {
    const found = await client.disk(DISK);
    return found.copies === copies && found.copiesChange === null &&
      found.copiesInSync === copies;
  };
  const untilItHas = async (copies: number) => {
    await until(() => has(copies), {
      timeoutMs: TIMEOUT_MS,
      what: () => `it does not get ${copies} copies\n${logs()}`,
    });
    await goesOn();
  };
  await goesOn();

  await t.step("two, and three", async () => {
    await first.running.check("disk", "set", DISK, "--copies", "3", "--wait");
    await untilItHas(3);
  });

  await t.step("three, and one, while a node that is to drop it is killed", async () => {
    await client.changeDisk(DISK, { copies: 1 });
    await second.kill();
    // It may be the one that has the only copy of something by then: the guest waits for that.
    await second.start();
    await untilItHas(1);
  });

  await t.step("one, and two, while a node that may be to have it is killed", async () => {
    const { copiesChange } = await client.changeDisk(DISK, { copies: 2 });
    assertEquals(copiesChange?.copies, 2);
    await third.kill();
    const found = await client.disk(DISK);
    assert(found.copies === 1 && found.copiesChange !== null, "it is in the middle of it");
    await third.start();
    await untilItHas(2);
  });

  await t.step("there and back again", async () => {
    await client.changeDisk(DISK, { copies: 3 });
    await client.changeDisk(DISK, { copies: 2 });
    await untilItHas(2);
  });

  await t.step("and three in the end", async () => {
    await client.changeDisk(DISK, { copies: 3 });
    await untilItHas(3);
  });

  await t.step("nothing is lost, and all replicas are equal", async () => {
    await hosts.untilWhole({ timeoutMs: TIMEOUT_MS });
    await load.drain();
    await load.readAlike(hosts.list, DISK);
    await load.check(logs);
    await load.close();
    for (const host of hosts.list) await host.stop();
    const { blocks } = compareReplicas(hosts.list.map((host) => `${host.dataDir}/kelpie.store`));
    assert(blocks > 0, `${blocks} blocks`);
  });
});
