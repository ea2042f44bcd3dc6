/**
 * `kelpie disk map` and `kelpie disk object`, against a fake data plane.
 *
 * @module
 */
import { assertEquals, assertMatch } from "@std/assert/mod.js";
import { clusterAtLevelTwo, runAll } from "../map/cluster.ts";
import { FakeAgent } from "./fixture.ts";

/** The first of three nodes, with a disk of 1 GiB in two copies; the second node is down. */
async function start(): Promise<FakeAgent> {
  const agent = await FakeAgent.start();
  const map = runAll(
    clusterAtLevelTwo(3, "web"),
    { kind: "node-down", node: 2, incarnation: 1, nowMs: 1 },
  );
  // Half of the groups are here, the others nowhere else than on the node that is down.
  const pgs = map.pools[0].pgs.map((pg, index) => ({
    ...pg,
    target: [1, 3],
    inSync: index % 2 === 0 ? [1] : [2],
    joining: index % 2 === 0 ? [3] : [],
    joinedEpochs: index % 2 === 0 ? [map.epoch] : [],
  }));
  agent.backend.clusterMap = { ...map, pools: [{ ...map.pools[0], pgs }] };
  const { info } = agent.backend;
  const nodeId = map.nodes[0].uuid;
  agent.backend.info = () => ({ ...info.call(agent.backend), nodeId });
  return agent;
}

Deno.test("disk map counts chunks by the nodes that have them", async () => {
  await using agent = await start();
  const { stdout } = await agent.runWell("disk map web");
  const lines = stdout.trimEnd().split("\n");
  assertMatch(lines[0], /^IN SYNC +JOINING +WANTED +READ FROM +GROUPS +CHUNKS +SIZE$/);
  const rows = lines.slice(1, 3).toSorted();
  assertMatch(rows[0], /^host-1 +host-3 +host-1, host-3 +host-1 +\d+ +128 +512M$/);
  assertMatch(rows[1], /^host-2 +- +host-1, host-3 +host-2 +\d+ +128 +512M$/);
  assertEquals(
    lines.slice(3),
    ["cannot be written: the only complete copy is on host-2, which is down"],
  );
  const json = JSON.parse((await agent.runWell("disk map web --json")).stdout);
  assertEquals(json.places.length, 2);
});

Deno.test("disk map lists the chunks of a part of the disk", async () => {
  await using agent = await start();
  const { stdout } = await agent.runWell("disk map web --offset 5M --length 8M");
  const lines = stdout.trimEnd().split("\n");
  assertMatch(lines[0], /^CHUNK +OFFSET +GROUP +IN SYNC +JOINING +WANTED +READ FROM$/);
  assertMatch(lines[1], /^ +1 +4M +\d+ +host-\d /);
  assertEquals(lines.slice(1, 4).map((line) => line.trim().split(" ")[0]), ["1", "2", "3"]);
  const json = JSON.parse((await agent.runWell("disk map web --offset 5M --json")).stdout);
  assertEquals(json.map(({ chunk }: { chunk: number }) => chunk), [1], "the chunk of the offset");
  const past = await agent.run("disk map web --offset 1G");
  assertEquals(past.code, 64);
  assertMatch(past.stderr, /1 bytes at 1073741824 are not within disk web/);
});

Deno.test("disk map reads long parts in pages, and refuses what nobody could look at", async () => {
  await using agent = await start();
  await agent.runWell("disk resize web 1T");
  const { stdout } = await agent.runWell("disk map web --length 10G --json");
  const chunks: { chunk: number }[] = JSON.parse(stdout);
  assertEquals(chunks.map(({ chunk }) => chunk), Array.from({ length: 2560 }, (_, i) => i));
  const { code, stderr } = await agent.run("disk map web --length 100G");
  assertEquals(code, 64);
  assertMatch(stderr, /100G of disk web is more than 16384 chunks\n +give a smaller --length/);
});

Deno.test("disk object says where a byte lives", async () => {
  await using agent = await start();
  const [layer] = agent.backend.clusterMap.disks[0].layers;
  agent.backend.blockPlace = {
    state: "data",
    layer,
    path: "/var/lib/kelpie",
    storeOffsetBytes: 81920,
  };
  const { stdout } = await agent.runWell("disk object web 8193K");
  assertMatch(stdout, /^block: +4096 bytes at 8388608$/m);
  assertMatch(stdout, /^chunk: +2, 4M at 8388608$/m);
  assertMatch(stdout, /^content: +data$/m);
  assertMatch(stdout, new RegExp(`^layer: +${layer}, of web$`, "m"));
  assertMatch(stdout, /^on this node: +\/var\/lib\/kelpie, 81920 bytes into the store$/m);
  agent.backend.blockPlace = { state: "unknown", layer: null, path: null, storeOffsetBytes: null };
  const unknown = await agent.runWell("disk object web 0");
  assertMatch(unknown.stdout, /^content: +not known: this node has no copy that may be read now$/m);
  assertMatch(unknown.stdout, /^on this node: +-$/m);
  assertEquals(JSON.parse((await agent.runWell("disk object web 0 --json")).stdout).chunk, 0);
  assertEquals((await agent.run("disk object wbe 0")).code, 5);
});

Deno.test("disk map and disk object of a snapshot", async () => {
  await using agent = await start();
  const { backend } = agent;
  backend.clusterMap = runAll(
    backend.clusterMap,
    { kind: "create-snapshots", disks: [1], name: "monday", nowMs: 1 },
    { kind: "resize-disk", name: "web", sizeBytes: 2 * 1024 ** 3 },
  );
  const chunksOf = ({ places }: { places: { chunks: number }[] }) =>
    places.reduce((sum, { chunks }) => sum + chunks, 0);
  const all = JSON.parse((await agent.runWell("disk map web@monday --json")).stdout);
  assertEquals(chunksOf(all), 256);
  const whole = JSON.parse((await agent.runWell("disk map web --json")).stdout);
  assertEquals(chunksOf(whole), 512);
  const part = await agent.runWell("disk map web@monday --offset 1020M --json");
  assertEquals(JSON.parse(part.stdout).map(({ chunk }: { chunk: number }) => chunk), [255]);
  const past = await agent.run("disk map web@monday --offset 1G");
  assertEquals(past.code, 64);
  assertMatch(past.stderr, /not within snapshot web@monday/);
  const [, monday] = backend.clusterMap.disks[0].layers;
  backend.blockPlace = { state: "data", layer: monday, path: "/data", storeOffsetBytes: 4096 };
  const { stdout } = await agent.runWell("disk object web@monday 4097");
  assertMatch(stdout, /^layer: +\d+, of web@monday$/m);
  assertEquals(backend.askedBlocks, [monday]);
});
