/**
 * `kelpie disk set --copies` and `--zones`, against a fake data plane: what it asks, sends and says.
 *
 * @module
 */
import { assertEquals, assertMatch } from "@std/assert/mod.js";
import { unwrap } from "../../agent/map/errors.ts";
import { apply, poolOfFamily } from "../../agent/map/map.ts";
import { atLevelTwo, clusterOf, runAll } from "../map/cluster.ts";
import { FakeAgent } from "./fixture.ts";

const MAP = runAll(
  atLevelTwo(clusterOf(3)),
  { kind: "create-disk", name: "web", sizeBytes: 2 ** 30, nowMs: 0, copies: 2 },
  { kind: "create-disk", name: "alone", sizeBytes: 2 ** 30, nowMs: 0, copies: 2, copiesMin: 2 },
  { kind: "create-snapshots", disks: [1], name: "s", nowMs: 0 },
  { kind: "clone-disk", disk: "web", snapshot: "s", name: "test", nowMs: 0 },
);

async function agentWith(map = MAP): Promise<FakeAgent> {
  const agent = await FakeAgent.start();
  agent.backend.clusterMap = map;
  return agent;
}

Deno.test("relatives change, too: it asks before, and says how far all of them are", async () => {
  await using agent = await agentWith();
  const refused = await agent.run("disk set web --copies 3");
  assertEquals([refused.code, agent.backend.proposed], [64, []]);
  assertMatch(refused.stderr, /relatives share its data and get as many: test/);
  const { stderr } = await agent.runWell("disk set web --copies 3 --yes");
  assertMatch(stderr, /disk web: 2 → 3, 0 %.*data is being copied to node.*goes on by itself/s);
  assertEquals(agent.backend.proposed, [{ kind: "set-copies", name: "web", copies: 3 }]);
  const { stdout } = await agent.runWell("disk list");
  assertMatch(stdout, /^test .*2\/2 → 3 \(0 %\)/m);
  assertMatch(stdout, /^alone +\S+ +\S+ +2\/2 +-/m);
  assertMatch(
    (await agent.runWell("disk info test")).stdout,
    /^copies: +2 complete of 2 wanted; 2 → 3, 0 %/m,
  );
  const { stdout: json } = await agent.runWell("disk info web --json");
  const { copies, percent, disks } = JSON.parse(json).copiesChange;
  assertEquals([copies, percent, disks], [3, 0, ["test", "web"]]);
  const status = await agent.run("status");
  assertMatch(status.stdout, /disk test \(with 1 relative\): copies 2 → 3, 0 %/);
  assertMatch(status.stdout, /'kelpie disk set test --copies 2' takes it back/);
  await agent.runWell("disk set web --copies 2 --yes");
  assertMatch((await agent.runWell("disk info web")).stdout, /; back to 2, 100 %/);
});

Deno.test("a disk without relatives changes unasked, with the fewest copies to write with", async () => {
  await using agent = await agentWith();
  const refused = await agent.run("disk set alone --copies 1");
  assertEquals(refused.code, 64);
  assertMatch(refused.stderr, /wait for 2 copies.*--copies-min 1/s);
  await agent.runWell("disk set alone --copies 1 --copies-min auto");
  assertEquals(agent.backend.proposed.map(({ kind }) => kind), ["change-disk", "set-copies"]);
  for (const words of ["--copies 6", "--copies 0", "--copies-min most", "--wait"]) {
    assertEquals((await agent.run(`disk set alone ${words}`)).code, 64, words);
  }
  assertEquals((await agent.run("disk set none --copies 1")).code, 5);
});

Deno.test("it warns where writes would wait for any one node", async () => {
  await using agent = await agentWith();
  const cases: [words: string, isWarned: boolean][] = [
    ["disk set web --copies-min 2", true],
    ["disk set web --copies-min 1", false],
    ["disk create db 1G --copies 3 --copies-min 3", true],
    ["disk create log 1G --copies 3 --copies-min 2", false],
    ["disk create scratch 1G --copies 1 --copies-min 1", false],
    ["disk create auto 1G --copies 2", false],
  ];
  for (const [words, isWarned] of cases) {
    const { stderr } = await agent.runWell(words);
    assertEquals(/all of its \d copies or not at all/.test(stderr), isWarned, words);
  }
});

Deno.test("it waits for the copies when it is told to", async () => {
  await using agent = await agentWith(
    runAll(atLevelTwo(clusterOf(1)), {
      kind: "create-disk",
      name: "web",
      sizeBytes: 2 ** 30,
      nowMs: 0,
      copies: 1,
    }),
  );
  let looks = 0;
  const { backend } = agent;
  const diskStatus = backend.diskStatus.bind(backend);
  backend.diskStatus = (name) => {
    const own = poolOfFamily(backend.clusterMap, 1);
    if (own !== undefined && ++looks === 3) {
      const command = { kind: "finish-copies", pool: own.id } as const;
      backend.clusterMap = unwrap(apply(backend.clusterMap, command)).map;
    }
    return diskStatus(name);
  };
  const { stderr } = await agent.runWell("disk set web --copies 2 --wait");
  assertMatch(stderr, /disk web has 2 copies/);
  assertEquals(looks, 3);
});

Deno.test("below level 2 it is as it was: where everybody has the data already", async () => {
  await using agent = await agentWith(
    runAll(clusterOf(1), {
      kind: "create-disk",
      name: "web",
      sizeBytes: 2 ** 30,
      nowMs: 0,
      copies: 1,
    }),
  );
  await agent.runWell("disk set web --copies 2");
  assertEquals(agent.backend.proposed.map(({ kind }) => kind), ["change-disk"]);
});

/** The same in a cluster of which two nodes are in zone a. */
const ZONED = runAll(
  MAP,
  ...[1, 2].map((node) => ({ kind: "set-zone", node, zone: "a" }) as const),
  { kind: "set-zone", node: 3, zone: "b" },
);

Deno.test("zones: it asks for relatives, shows how far they are, and takes it back", async () => {
  await using agent = await agentWith(ZONED);
  const refused = await agent.run("disk set web --zones a");
  assertEquals([refused.code, agent.backend.proposed], [64, []]);
  assertMatch(
    refused.stderr,
    /keep disk web in zone a.*relatives share its data and go there, too: test/s,
  );
  const { stderr } = await agent.runWell("disk set web --zones a,a --yes");
  assertMatch(stderr, /disk web: 2 anywhere → 2 in a, \d+ %.*goes on by itself/s);
  assertEquals(agent.backend.proposed, [{ kind: "set-copies", name: "web", zones: ["a"] }]);
  const { stdout } = await agent.runWell("disk list");
  assertMatch(stdout, /^test .*2\/2 → 2 in a \(\d+ %\)/m);
  assertMatch(stdout, /^alone +\S+ +\S+ +2\/2 +-/m);
  const info = (await agent.runWell("disk info test")).stdout;
  assertMatch(info, /^copies: +2 complete of 2 wanted; 2 anywhere → 2 in a, \d+ %/m);
  assertMatch(info, /^zones: +any$/m);
  const { zones, copiesChange } = JSON.parse((await agent.runWell("disk info web --json")).stdout);
  assertEquals([zones, copiesChange.zones, copiesChange.isBack], [[], ["a"], false]);
  const status = await agent.run("status");
  assertMatch(status.stdout, /disk test \(with 1 relative\): copies 2 anywhere → 2 in a, \d+ %/);
  assertMatch(status.stdout, /'kelpie disk set test --zones any' takes it back/);
  await agent.runWell("disk set web --zones any --yes");
  assertMatch((await agent.runWell("disk info web")).stdout, /; back to 2, 100 %/);
  const both = await agent.run("disk set web --zones b --copies 1");
  assertMatch(both.stderr, /give disk web 1 copy in zone b/);
});

Deno.test("a disk is made in zones, which are shown with what is missing there", async () => {
  await using agent = await agentWith(ZONED);
  await agent.runWell("disk create log 1G --copies 2 --zones b,a");
  await agent.runWell("disk create few 1G --copies 3 --zones a");
  const { stdout } = await agent.runWell("disk list");
  assertMatch(stdout, /^log .* 2\/2 in a, b +-/m);
  assertMatch(stdout, /^few .* 2\/3 in a +-/m);
  assertMatch((await agent.runWell("disk info log")).stdout, /^zones: +a, b$/m);
  assertMatch(
    (await agent.runWell("disk info few")).stdout,
    /^zones: +a \(zone a has 2 nodes that take data, too few for 3 copies\)$/m,
  );
  assertMatch((await agent.run("status")).stdout, /disk few: zone a has 2 nodes/);
  const none = await agent.run("disk create more 1G --zones a,x");
  assertEquals(none.code, 64);
  assertMatch(none.stderr, /in zone x; there are a, b.*'kelpie node list' shows who is where/s);
  // Who is there already is told so at once.
  const { stderr } = await agent.runWell("disk set few --zones a --copies 3 --wait");
  assertMatch(stderr, /disk few has 3 copies in zone a.*zone a has 2 nodes/s);
  const drained = await agent.runWell("node drain host-1 --dry-run");
  assertMatch(drained.stdout, /gets|stay/);
});
