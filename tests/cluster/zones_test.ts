/**
 * A disk goes from one zone to another and back under a guest that writes, reads and checks all the time, while nodes are killed and change
 * their zones.
 *
 * @module
 */
import { assert, assertEquals, assertMatch } from "@std/assert/mod.js";
import { until } from "../guest/deadline.ts";
import { Hosts } from "./hosts.ts";
import { Load } from "./load.ts";
import { compareReplicas, countChunks } from "./replicas.ts";

const MIB = 1024 * 1024;
const DISK = "web";
const SIZE_BYTES = 96 * MIB;
/** Data behind what the guest uses, so that copying takes some seconds. */
const MORE_BYTES = 48 * MIB;
const TIMEOUT_MS = 120_000;

Deno.test("a disk goes from zone a to b and back under a guest, while nodes are killed and change zones", async (t) => {
  await using hosts = await Hosts.make({ count: 4, capacity: "512M" });
  await hosts.startAll();
  const [first, second, third, fourth] = hosts.list;
  const kelpie = (...words: string[]) => first.running.check(...words);
  for (const [host, zone] of [[first, "a"], [second, "a"], [third, "b"], [fourth, "b"]] as const) {
    await kelpie("node", "zone", host.name, zone, "--yes");
  }
  using client = first.running.client();
  const size = `${(SIZE_BYTES + MORE_BYTES) / MIB}M`;
  await kelpie("disk", "create", DISK, size, "--copies", "2", "--zones", "a");
  await hosts.untilWhole();
  await first.fill(DISK, SIZE_BYTES, MORE_BYTES);
  await using load = await Load.startOn(hosts, first, DISK, { sizeBytes: SIZE_BYTES, places: 24 });
  const logs = () => hosts.lastLogs();
  const goesOn = async () => {
    await load.progress(100, { timeoutMs: TIMEOUT_MS, logs });
    await load.check(logs);
  };
  /** Nodes that hold any of it, or shall. */
  const nodesOf = async () => {
    const { places } = await client.diskPlaces(DISK);
    return [...new Set(places.flatMap(({ inSync, target }) => [...inSync, ...target]))].sort();
  };
  const untilOn = async (names: readonly string[], copies = names.length) => {
    await until(async () => {
      const found = await client.disk(DISK);
      const isThere = (await nodesOf()).join() === names.join();
      return isThere && found.copiesChange === null && found.copiesInSync === copies;
    }, {
      timeoutMs: TIMEOUT_MS,
      what: () => `it is not on ${names.join(", ")}\n${logs()}`,
    });
    await goesOn();
  };
  const inA = [first.name, second.name];
  const inB = [third.name, fourth.name];
  await untilOn(inA);

  await t.step("a, and b: the node of the guest has nothing of it any more", async () => {
    await kelpie("disk", "set", DISK, "--zones", "b", "--wait");
    await untilOn(inB);
    await until(async () => (await client.disk(DISK)).allocatedBytes === 0, {
      timeoutMs: TIMEOUT_MS,
      what: () => `${first.name} keeps what it had\n${logs()}`,
    });
  });

  await t.step("b, and a, while a node that is to have it is killed", async () => {
    const { copiesChange } = await client.changeDisk(DISK, { zones: ["a"] });
    assertEquals(copiesChange?.zones, ["a"]);
    await second.kill();
    const found = await client.disk(DISK);
    assertEquals([found.zones, found.copiesChange !== null], [["b"], true], "in the middle of it");
    await second.start();
    await untilOn(inA);
  });

  await t.step("half way to b and back, while a node of b is killed", async () => {
    await client.changeDisk(DISK, { zones: ["b"] });
    await until(async () => (await client.disk(DISK)).copiesChange!.percent > 0, {
      timeoutMs: TIMEOUT_MS,
      what: () => `nothing is copied\n${logs()}`,
    });
    await fourth.kill();
    // It has lost nothing where it was, so it may be back before anybody can see that it is on its way.
    const { zones, copiesChange } = await client.changeDisk(DISK, { zones: ["a"] });
    assertEquals([zones, copiesChange?.isBack ?? true], [["a"], true]);
    await untilOn(inA);
    await fourth.start();
  });

  await t.step("a node leaves the zone, and another one comes", async () => {
    await kelpie("node", "zone", second.name, "b", "--yes");
    await untilOn([first.name]);
    assertMatch(
      await kelpie("disk", "info", DISK),
      /zone a has 1 node that takes data, too few for 2 copies/,
    );
    await kelpie("node", "zone", third.name, "a", "--yes");
    await untilOn([first.name, third.name]);
  });

  await t.step("anywhere, in one copy in b, and in two in a in the end", async () => {
    await kelpie("disk", "set", DISK, "--zones", "any", "--wait");
    await goesOn();
    await kelpie("disk", "set", DISK, "--zones", "b", "--copies", "1", "--wait");
    await untilOn([second.name, fourth.name], 1);
    await kelpie("disk", "set", DISK, "--zones", "a", "--copies", "2", "--wait");
    await untilOn([first.name, third.name]);
  });

  await t.step("nothing is lost, all replicas are equal, and there are no others", async () => {
    await hosts.untilWhole({ timeoutMs: TIMEOUT_MS });
    await load.drain();
    await load.readAlike(hosts.list, DISK);
    await load.check(logs);
    await load.close();
    for (const host of [second, fourth]) {
      using other = host.running.client();
      await until(async () => (await other.disk(DISK)).allocatedBytes === 0, {
        timeoutMs: TIMEOUT_MS,
        what: () => `${host.name} keeps what it had\n${logs()}`,
      });
    }
    for (const host of hosts.list) await host.stop();
    const stores = (...some: typeof hosts.list) =>
      some.map((host) => `${host.dataDir}/kelpie.store`);
    const { blocks } = compareReplicas(stores(first, third));
    assert(blocks > 0, `${blocks} blocks`);
    assertEquals(stores(second, fourth).map(countChunks), [0, 0]);
  });
});
