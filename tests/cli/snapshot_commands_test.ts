/**
 * Snapshots, clones, the trash, schedules and attributes on the command line, against a fake data plane.
 *
 * @module
 */
import { assertEquals, assertMatch, assertStringIncludes } from "@std/assert/mod.js";
import { flattenedLayer } from "../../agent/map/map.ts";
import { clusterAtLevelTwo } from "../map/cluster.ts";
import { IDLE_DISK, sessionWith } from "../http/fake_backend.ts";
import { FakeAgent } from "./fixture.ts";

const GIB = 1024 ** 3;

/** An agent at level 2 that has these disks. */
async function start(...names: string[]): Promise<FakeAgent> {
  const agent = await FakeAgent.start();
  agent.backend.clusterMap = { ...agent.backend.clusterMap, level: 2 };
  for (const name of names) agent.backend.add(name);
  return agent;
}

/** The same, of a map that has a node. */
async function startCluster(...names: string[]): Promise<FakeAgent> {
  const agent = await FakeAgent.start();
  agent.backend.clusterMap = clusterAtLevelTwo(1);
  for (const name of names) agent.backend.add(name);
  return agent;
}

const diskNames = (agent: FakeAgent) => agent.backend.clusterMap.disks.map(({ name }) => name);

const diskOf = (agent: FakeAgent, disk: string) =>
  agent.backend.clusterMap.disks.find(({ name }) => name === disk)!;

/** Lets the command line run until something holds. */
async function until(holds: () => boolean): Promise<void> {
  while (!holds()) await new Promise((resolve) => setTimeout(resolve, 1));
}

const snapshotNames = (agent: FakeAgent, disk: string) =>
  agent.backend.clusterMap.disks.find(({ name }) => name === disk)!.snapshots
    .map(({ name }) => name);

Deno.test("a snapshot is taken with create or without it, of several disks at once", async () => {
  await using agent = await start("web", "db-data", "db-log");
  const { stdout, stderr } = await agent.runWell("disk snapshot web@monday");
  assertEquals([stdout, stderr], ["", "took web@monday\n"]);
  await agent.runWell("disk snapshot create web@tuesday");
  assertEquals(snapshotNames(agent, "web"), ["monday", "tuesday"]);
  const several = await agent.runWell("disk snapshot db-data@up db-log@up --json");
  const taken: { disk: string; name: string }[] = JSON.parse(several.stdout);
  assertEquals(taken.map(({ disk, name }) => `${disk}@${name}`), ["db-data@up", "db-log@up"]);
  const creates = agent.backend.proposed.filter(({ kind }) => kind === "create-snapshots");
  assertEquals(creates.length, 3);
});

Deno.test("what is no snapshot, or not one moment, is refused before anything is asked", async () => {
  await using agent = await start("web", "db");
  const cases: [words: string, code: number, message: RegExp][] = [
    ["disk snapshot web", 64, /"web" is no snapshot\n +write DISK@NAME, such as web@monday/],
    ["disk snapshot lst", 64, /"lst" is no snapshot/],
    ["disk snapshot", 64, /missing required argument/],
    ["disk snapshot ../web@a", 64, /"\.\.\/web" cannot be the name of a disk/],
    ["disk snapshot web@a/b", 64, /"a\/b" cannot be the name of a snapshot/],
    ["disk snapshot web@", 64, /cannot be the name of a snapshot: it is empty/],
    ["disk snapshot web@a@b", 64, /"a@b" cannot be the name of a snapshot/],
    ["disk snapshot web@a db@b", 64, /have one name, not a and b/],
    ["disk snapshot wbe@a", 5, /no disk named "wbe"/],
    ["disk clone web@none copy", 5, /no snapshot named "none"/],
    ["disk rollback web@none --yes", 5, /no snapshot named "none"/],
    ["disk undelete none", 5, /no disk "none" in the trash/],
    ["disk purge", 64, /purge needs either a disk or --all/],
    ["disk purge web --all", 64, /purge needs either a disk or --all/],
    ["disk schedule set web x --every soon --keep 1", 64, /"soon" is no length of time/],
    ["disk schedule set web x --every 1h", 64, /required option '--keep <count>' not specified/],
    ["disk schedule set web x --every 1h --keep 0", 64, /--keep <count> "0": it must be/],
    ["disk schedule set web x --every 1s --keep 1", 64, /every 1000 ms is not possible/],
    ["disk schedule delete web x", 5, /no schedule named "x"/],
    ["disk set web owner", 64, /"owner" is no attribute\n +write KEY=VALUE/],
    ["disk set web a/b=c", 64, /"a\/b" cannot be the key of an attribute/],
    ["disk tree wbe", 5, /no disk named "wbe"/],
  ];
  for (const [words, expected, message] of cases) {
    const { code, stdout, stderr } = await agent.run(words);
    assertEquals({ words, code, stdout }, { words, code: expected, stdout: "" }, stderr);
    assertMatch(stderr, message);
  }
});

Deno.test("snapshots are listed with their state and their clones", async () => {
  await using agent = await start("web");
  assertMatch((await agent.runWell("disk snapshot list")).stderr, /^no disk has a snapshot; /);
  assertMatch(
    (await agent.runWell("disk snapshot list web")).stderr,
    /^disk web has no snapshot; /,
  );
  await agent.runWell("disk snapshot web@monday");
  await agent.runWell("disk snapshot web@tuesday");
  await agent.runWell("disk snapshot protect web@monday");
  await agent.runWell("disk clone web@monday test");
  const [, tuesday, monday] =
    agent.backend.clusterMap.disks.find(({ name }) => name === "web")!.layers;
  agent.backend.bytes.set(monday, 3 * GIB).set(tuesday, GIB);
  const { stdout } = await agent.runWell("disk snapshot list");
  const lines = stdout.split("\n");
  assertMatch(lines[0], /^NAME +SIZE +USED +SHARED +EXCLUSIVE +CREATED +STATE +CLONES$/);
  assertMatch(lines[1], /^web@monday +1G +3G +3G +0B +\d{4}-\S+Z +protected +test$/);
  assertMatch(lines[2], /^web@tuesday +1G +4G +4G +0B +\d{4}-\S+Z +- +-$/);
  const names = await agent.runWell("disk snapshot ls web --names");
  assertEquals(names.stdout, "web@monday\nweb@tuesday\n");
  assertEquals(JSON.parse((await agent.runWell("disk snapshot list test --json")).stdout), []);
});

Deno.test("snapshots are renamed, protected, given free, and deleted after a question", async () => {
  await using agent = await start("web");
  await agent.runWell("disk snapshot web@a");
  await agent.runWell("disk snapshot web@b");
  assertMatch((await agent.runWell("disk snapshot rename web@a c")).stderr, /web@a is web@c now/);
  await agent.runWell("disk snapshot protect web@c");
  const kept = await agent.run("disk snapshot delete web@b web@c --yes");
  assertEquals(kept.code, 1);
  assertMatch(kept.stderr, /web@c is protected\n.*unprotect web@c.*nothing was deleted/);
  assertEquals(snapshotNames(agent, "web"), ["c", "b"]);
  await agent.runWell("disk snapshot unprotect web@c");
  const unasked = await agent.run("disk snapshot delete web@b web@c");
  assertEquals(unasked.code, 64);
  assertMatch(unasked.stderr, /will not delete web@b, web@c unasked: this destroys what the disks/);
  await agent.runWell("disk snapshot rm web@b web@c --yes");
  assertEquals(snapshotNames(agent, "web"), []);
});

Deno.test("a clone says where it is, and info what it is a clone of", async () => {
  await using agent = await start("web");
  await agent.runWell("disk snapshot web@a");
  const { stderr } = await agent.runWell("disk clone web@a copy --read-only");
  assertEquals(stderr, `disk copy of 1G goes on from web@a, at ${agent.runDir}/copy.sock\n`);
  const { stdout } = await agent.runWell("disk info copy");
  assertMatch(stdout, /^clone of: +web@a$/m);
  assertMatch(stdout, /^access: +read-only$/m);
  assertMatch((await agent.runWell("disk info web")).stdout, /^snapshots: +1$/m);
  assertEquals((await agent.run("disk clone web@a copy")).code, 3);
});

Deno.test("a clone is made independent, or stays as it is, and info and tree say how far it is", async () => {
  await using agent = await startCluster("web");
  await agent.runWell("disk snapshot web@a");
  await agent.runWell("disk clone web@a copy");
  const refused = await agent.run("disk flatten web");
  assertEquals(refused.code, 64);
  assertMatch(
    refused.stderr,
    /disk web goes on from no other disk.*\n +what .kelpie disk tree. shows as shared/,
  );
  assertMatch((await agent.run("disk flatten none")).stderr, /no disk named "none"/);
  assertEquals((await agent.run("disk flatten copy --wait --cancel")).code, 64);
  const said = (await agent.runWell("disk flatten copy")).stderr;
  assertMatch(said, /^disk copy is being flattened: 'kelpie disk info copy' shows how far it is$/m);
  const { stdout } = await agent.runWell("disk info copy");
  assertMatch(stdout, /^flattening: +0 of 1 node done, waits for \S+$/m);
  assertMatch((await agent.runWell("disk tree")).stdout, /copy .* flattening: 0 of 1 node done/);
  assertMatch((await agent.runWell("disk flatten copy --cancel")).stderr, /copy stays as it is/);
  assertMatch(
    (await agent.runWell("disk flatten copy --cancel")).stderr,
    /was not being flattened/,
  );
  assertMatch((await agent.runWell("disk info copy")).stdout, /^clone of: +web@a$/m);
});

Deno.test("a flattened clone is independent, and what it was cloned from can go", async () => {
  await using agent = await startCluster("web");
  await agent.runWell("disk snapshot web@a");
  await agent.runWell("disk clone web@a copy");
  const waiting = agent.runWell("disk flatten copy --wait");
  await until(() => flattenedLayer(agent.backend.map(), diskOf(agent, "copy")) !== undefined);
  const { clusterMap: map } = agent.backend;
  const { id: node, incarnation } = map.nodes[0];
  const layers = [diskOf(agent, "copy").layers[0]];
  await agent.backend.propose({ kind: "flattened", node, incarnation, layers, epoch: map.epoch });
  assertMatch((await waiting).stderr, /^disk copy is independent$/m);
  assertEquals(diskOf(agent, "copy").layers, layers);
  assertMatch((await agent.runWell("disk info copy")).stdout, /^clone of: +nothing$/m);
  await agent.runWell("disk snapshot delete web@a --yes");
  await agent.runWell("disk delete web --yes --now");
  assertEquals(agent.backend.clusterMap.layers.map(({ id }) => id), layers);
});

Deno.test("rollback asks, and says where what the disk held is", async () => {
  await using agent = await start("web");
  await agent.runWell("disk snapshot web@a");
  const unasked = await agent.run("disk rollback web@a");
  assertEquals(unasked.code, 64);
  assertMatch(unasked.stderr, /will not take disk web back to \d{4}.* can be had back for 1 d\n/);
  const { stderr } = await agent.runWell("disk rollback web@a --yes");
  assertEquals(
    stderr,
    "disk web is as web@a; what it held is in the trash: 'kelpie disk undelete 2 --name NEW'\n",
  );
  await agent.runWell("disk undelete 2 --name old");
  assertEquals(diskNames(agent), ["old", "web"]);
  await agent.runWell("cluster settings trash off");
  assertMatch((await agent.run("disk rollback web@a")).stderr, /this destroys what was written/);
});

Deno.test("a deleted disk is in the trash, and can be had back or purged", async () => {
  await using agent = await start("web", "db");
  agent.backend.statuses.set("web", { ...IDLE_DISK, allocatedBytes: 3 * GIB });
  const unasked = await agent.run("disk delete web");
  assertEquals(unasked.code, 64);
  assertMatch(unasked.stderr, /unasked: the disk with its 3G of data, can be had back for 1 d/);
  const { stderr } = await agent.runWell("disk delete web --yes");
  assertEquals(stderr, "deleted disk web, which can be had back for 1 d\n");
  assertEquals(diskNames(agent), ["db"]);
  const { stdout } = await agent.runWell("disk trash");
  assertMatch(
    stdout,
    /^ID +NAME +SIZE +SNAPSHOTS +DELETED +EXPIRES\n 1 +web +1G +0 +\S+Z +\S+Z\n$/,
  );
  assertEquals((await agent.runWell("disk trash --names")).stdout, "web\n");
  assertEquals(JSON.parse((await agent.runWell("disk trash --json")).stdout)[0].id, 1);
  const back = await agent.runWell("disk undelete web");
  assertStringIncludes(back.stderr, `disk web is back, at ${agent.runDir}/web.sock`);

  await agent.runWell("disk delete web --yes");
  assertMatch((await agent.run("disk purge web")).stderr, /destroys its data and its snapshots/);
  await agent.runWell("disk purge web --yes");
  assertMatch((await agent.runWell("disk trash")).stderr, /the trash is empty/);
  await agent.runWell("disk delete db --yes");
  assertMatch((await agent.run("disk purge --all")).stderr, /will not purge 1 disk unasked/);
  assertMatch((await agent.runWell("disk purge --all --yes")).stderr, /purged disk db \(id 2\)/);
  assertEquals(agent.backend.clusterMap.trash, []);
});

Deno.test("delete --now, and any deletion without a trash, says that the data is lost", async () => {
  await using agent = await start("web", "db");
  assertMatch((await agent.run("disk delete web --now")).stderr, /this destroys its 0B of data/);
  assertEquals((await agent.runWell("disk delete web --now --yes")).stderr, "deleted disk web\n");
  await agent.runWell("cluster settings trash off");
  assertMatch((await agent.run("disk delete db")).stderr, /this destroys its 0B of data/);
  await agent.runWell("disk delete db --yes");
  assertEquals(agent.backend.clusterMap.trash, []);
});

Deno.test("--all does not purge another disk that is named as an id", async () => {
  await using agent = await start("web", "1");
  await agent.runWell("disk delete web --yes"); // id 1
  await agent.runWell("disk delete 1 --yes"); // id 2
  const { code, stderr } = await agent.run("disk purge --all --yes");
  assertEquals(code, 1);
  assertMatch(stderr, /named 1, which is the id of another one/);
  assertEquals(agent.backend.clusterMap.trash.length, 2);
  await agent.runWell("disk purge 1 --yes");
  assertEquals(agent.backend.clusterMap.trash.map(({ disk }) => disk.name), ["web"]);
});

Deno.test("tree shows families with their snapshots and clones", async () => {
  await using agent = await start("web", "db");
  for (
    const words of [
      "snapshot web@a",
      "snapshot web@b",
      "clone web@a test",
      "snapshot test@x",
      "clone test@x deep",
      "clone web@b other",
      "snapshot protect web@b",
    ]
  ) await agent.runWell(`disk ${words}`);
  const newest = (name: string) =>
    agent.backend.clusterMap.disks.find((disk) => disk.name === name)!.layers[0];
  agent.backend.bytes.set(newest("deep"), 4096).set(newest("test"), 8192);
  const [x] = agent.backend.clusterMap.disks.find(({ name }) => name === "test")!.snapshots;
  agent.backend.bytes.set(x.layer, 16384);
  const { stdout } = await agent.runWell("disk tree");
  const names = stdout.trimEnd().split("\n").slice(1)
    .map((line) => line.split(/ {2,}\d/)[0].trimEnd());
  assertEquals(names, [
    "db",
    "web",
    "├─ web@a",
    "│  └─ test",
    "│     └─ test@x",
    "│        └─ deep",
    "└─ web@b",
    "   └─ other",
  ]);
  assertMatch(stdout, /^└─ web@b +1G +0B +0B +0B +[\d.]+ m?s +protected$/m);
  assertMatch(stdout, / deep +1G +20K +16K +4K /);
  assertMatch(stdout, / test +1G +24K +16K +8K /);
  assertMatch(stdout, / test@x +1G +16K +16K +0B /);
  assertMatch(
    (await agent.runWell("disk info test")).stdout,
    /^space on this node: +24K with its snapshots: 8K exclusive, 16K shared$/m,
  );
  const family = await agent.runWell("disk tree deep --json");
  const roots = JSON.parse(family.stdout);
  assertEquals(roots.length, 1);
  assertEquals(roots[0].children[0].children[0].children[0].children[0].name, "deep");
  await agent.runWell("disk snapshot unprotect web@b");
  await agent.runWell("disk delete web --yes");
  assertMatch((await agent.runWell("disk tree")).stdout, /^test .* from web@a, deleted$/m);
});

Deno.test("schedules are set, listed and ended", async () => {
  await using agent = await start("web");
  assertMatch((await agent.runWell("disk schedule list")).stderr, /^there is no schedule; /);
  const { stderr } = await agent.runWell(
    "disk schedule set web hourly --every 1h --keep 24 --keep-daily 7 --keep-monthly 12",
  );
  assertMatch(
    stderr,
    /^schedule hourly of disk web: every 1 h, keeps 24, 7 daily, 12 monthly; next at \S+:00:00\.000Z\n$/,
  );
  const { stdout } = await agent.runWell("disk schedule list web");
  assertMatch(stdout, /\nweb +hourly +1 h +24, 7 daily, 12 monthly +0 +- +\S+Z\n$/);
  const json = await agent.runWell("disk schedule set web hourly --every 1h --keep 3 --json");
  assertEquals(JSON.parse(json.stdout).keepDaily, 0);
  const [disk] = agent.backend.clusterMap.disks;
  const schedules = disk.schedules.map((each) => ({ ...each, createdMs: 0 }));
  agent.backend.clusterMap = {
    ...agent.backend.clusterMap,
    disks: [{ ...disk, schedules }],
  };
  const late = await agent.runWell("disk schedule list");
  assertMatch(late.stdout, / late\n$/);
  assertMatch(late.stderr, /^1 schedule late: 'kelpie status' says why\n$/);
  await agent.runWell("disk schedule delete web hourly");
  assertEquals(agent.backend.clusterMap.disks[0].schedules, []);
});

Deno.test("attributes are set and taken away, and disks are found by them", async () => {
  await using agent = await start("web", "db", "log");
  const { stderr } = await agent.runWell("disk set web owner=anna tier=gold");
  assertEquals(stderr, "disk web: owner=anna, tier=gold\n");
  await agent.runWell("disk set db owner=anna url=http://x/?a=b");
  const names = async (words: string) =>
    (await agent.runWell(`disk list --names ${words}`)).stdout.split("\n").slice(0, -1);
  assertEquals(await names("--where owner=anna"), ["db", "web"]);
  assertEquals(await names("--where owner=anna --where tier=gold"), ["web"]);
  assertEquals(await names("--where tier="), ["db", "log"]);
  assertEquals(await names("--where url=http://x/?a=b"), ["db"]);
  assertMatch((await agent.runWell("disk list --where owner=otto")).stderr, /no disk is like that/);
  await agent.runWell("disk set web tier=");
  assertEquals(agent.backend.clusterMap.disks.at(-1)!.attributes, { owner: "anna" });
  const json = await agent.runWell("disk set web owner= --json");
  assertEquals(JSON.parse(json.stdout).attributes, {});
});

Deno.test("a disk in use is deleted to the trash by --force only", async () => {
  await using agent = await start("web");
  agent.backend.statuses.set("web", { ...IDLE_DISK, sessions: [sessionWith()] });
  assertMatch((await agent.run("disk delete web --yes")).stderr, /in use by qemu/);
  assertMatch(
    (await agent.run("disk delete web --force")).stderr,
    /0B of data, which qemu-system-x86 \(pid 4711\) uses, can be had back/,
  );
  await agent.runWell("disk delete web --force --yes");
  assertEquals(agent.backend.clusterMap.trash.length, 1);
});
