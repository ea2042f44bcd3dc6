/**
 * `kelpie cluster upgrade` over an agent whose cluster does what the test wants.
 *
 * @module
 */
import { assertEquals, assertStringIncludes } from "@std/assert/mod.js";
import { apply, type MapCommand } from "../../agent/map/map.ts";
import { unwrap } from "../../agent/map/errors.ts";
import { VERSION } from "../../agent/version.ts";
import { compareVersions } from "../../cli/upgrade_command.ts";
import { ExitCode } from "../../cli/output.ts";
import { clusterOf, nodeUp } from "../map/cluster.ts";
import { FakeAgent } from "./fixture.ts";

/** Three nodes: the first is asked and leads, all run what was before this version. */
async function oldCluster(): Promise<FakeAgent> {
  const agent = await FakeAgent.start();
  agent.backend.clusterMap = clusterOf(3);
  for (const id of [1, 2, 3]) change(agent, nodeUp(id, { version: "0.0.9" }));
  return agent;
}

function change({ backend }: FakeAgent, command: MapCommand): void {
  backend.clusterMap = unwrap(apply(backend.clusterMap, command)).map;
}

/** Nodes that are asked come back with this version. */
function obey(agent: FakeAgent, version = VERSION): void {
  agent.backend.onRestart = (id) => change(agent, nodeUp(id, { version }));
}

Deno.test("upgrade shows what would be done, and does nothing without --yes", async () => {
  await using agent = await oldCluster();
  agent.backend.nodeParts.set(2, { isProgramNew: true });
  const { stdout, stderr } = await agent.runWell("cluster upgrade");
  const rows = stdout.trim().split("\n").map((line) => line.trim().split(/\s{2,}/));
  assertEquals(rows, [
    ["NAME", "STATE", "RUNS", "LEVELS", "INSTALLED", "UPGRADE"],
    ["host-1", "up", "0.0.9", "1", "?", "yes"],
    ["host-2", "up", "0.0.9", "1", "another", "yes"],
    ["host-3", "up", "0.0.9", "1", "?", "yes"],
  ]);
  assertEquals(
    stderr,
    `would start ${VERSION} on host-2, host-3, host-1, in this order; --yes does it\n`,
  );
  assertEquals(agent.backend.restarts, []);
});

Deno.test("upgrade --json is the plan", async () => {
  await using agent = await oldCluster();
  const { stdout } = await agent.runWell("cluster upgrade --json");
  const { nodes, ...rest } = JSON.parse(stdout);
  assertEquals(rest, {
    version: VERSION,
    level: 1,
    order: ["host-2", "host-3", "host-1"],
    problem: null,
  });
  assertEquals(nodes[1], {
    name: "host-2",
    version: "0.0.9",
    levelMin: 1,
    levelMax: 1,
    isProgramNew: null,
  });
});

Deno.test("upgrade --yes has one node after the other start anew, this one and the leader last", async () => {
  await using agent = await oldCluster();
  agent.backend.nodeParts.set(1, { isLeader: false });
  agent.backend.nodeParts.set(2, { isLeader: true });
  obey(agent);
  const { stderr } = await agent.runWell("cluster upgrade --yes");
  assertEquals(agent.backend.restarts, [3, 1, 2]);
  assertEquals(stderr.replaceAll(/after [\d.]+ m?s/g, "after T").split("\n"), [
    `1/3 host-3: runs 0.0.9, is asked to start ${VERSION}`,
    `1/3 host-3: is up with ${VERSION} after T`,
    `2/3 host-1: runs 0.0.9, is asked to start ${VERSION}`,
    `2/3 host-1: is up with ${VERSION} after T`,
    `3/3 host-2: runs 0.0.9, is asked to start ${VERSION}`,
    `3/3 host-2: is up with ${VERSION} after T`,
    `all 3 nodes run ${VERSION}; the cluster speaks level 1`,
    "",
  ]);
});

Deno.test("nodes that run this version already are left alone, unless another program is installed there", async () => {
  await using agent = await oldCluster();
  obey(agent);
  change(agent, nodeUp(2, { version: VERSION }));
  await agent.runWell("cluster upgrade --yes");
  assertEquals(agent.backend.restarts, [3, 1]);
  const { stderr } = await agent.runWell("cluster upgrade --yes");
  assertEquals(stderr, `all 3 nodes run ${VERSION}; the cluster speaks level 1\n`);
  assertEquals(agent.backend.restarts, [3, 1]);
  agent.backend.nodeParts.set(3, { isProgramNew: true });
  agent.backend.onRestart = (id) => {
    agent.backend.nodeParts.set(id, { isProgramNew: false });
    change(agent, nodeUp(id, { version: VERSION }));
  };
  await agent.runWell("cluster upgrade --yes");
  assertEquals(agent.backend.restarts, [3, 1, 3]);
});

Deno.test("nothing is started while anything is missing, and it is said what", async () => {
  const cases: [string, (agent: FakeAgent) => void][] = [
    [
      "node host-3 is down",
      (agent) => change(agent, { kind: "node-down", node: 3, incarnation: 2, nowMs: 9 }),
    ],
    [
      "node host-2 does not answer",
      ({ backend }) => backend.nodeParts.set(2, { gossip: "suspect" }),
    ],
    [
      "node host-2 cannot catch up: no source is up",
      ({ backend }) => backend.nodeParts.set(2, { stuck: "no source is up" }),
    ],
    [
      "no majority of the voters can be reached",
      ({ backend }) => backend.clusterPart = { hasQuorum: false },
    ],
    [
      "requests of disk web wait: too few copies",
      ({ backend }) =>
        backend.clusterPart = { waiting: [{ disk: "web", node: 1, reason: "too few copies" }] },
    ],
    ["256 placement groups of 256 have fewer copies than wanted", (agent) => {
      change(agent, { kind: "create-disk", name: "web", sizeBytes: 2 ** 30, nowMs: 0, copies: 3 });
      const pools = agent.backend.clusterMap.pools.map((pool) => ({
        ...pool,
        pgs: pool.pgs.map((pg) => ({ ...pg, target: [1, 2, 3], inSync: [1, 2] })),
      }));
      agent.backend.clusterMap = { ...agent.backend.clusterMap, pools };
    }],
  ];
  for (const [reason, prepare] of cases) {
    await using agent = await oldCluster();
    prepare(agent);
    const shown = await agent.runWell("cluster upgrade");
    assertStringIncludes(shown.stderr, `warning: not now: ${reason}`);
    const { code, stderr } = await agent.run("cluster upgrade --yes");
    assertEquals(code, ExitCode.Failure, reason);
    assertStringIncludes(stderr, `nothing was started: ${reason}`);
    assertEquals(agent.backend.restarts, []);
  }
});

Deno.test("the next node waits until all data has all its copies again", async () => {
  await using agent = await oldCluster();
  change(agent, { kind: "create-disk", name: "web", sizeBytes: 2 ** 30, nowMs: 0, copies: 3 });
  const { backend } = agent;
  const spread = (inSync: readonly number[]) => {
    const pools = backend.clusterMap.pools.map((pool) => ({
      ...pool,
      pgs: pool.pgs.map((pg) => ({ ...pg, target: [1, 2, 3], inSync })),
    }));
    backend.clusterMap = { ...backend.clusterMap, pools };
  };
  spread([1, 2, 3]);
  let looksLeft = 0;
  backend.onRestart = (id) => {
    assertEquals(looksLeft, 0, "asked while copies were missing");
    change(agent, nodeUp(id, { version: VERSION }));
    spread([1, 2, 3].filter((each) => each !== id));
    looksLeft = 5;
  };
  backend.onCluster = () => {
    if (looksLeft > 0 && --looksLeft === 0) spread([1, 2, 3]);
  };
  const { stderr } = await agent.runWell("cluster upgrade --yes");
  assertEquals(backend.restarts, [2, 3, 1]);
  const waits = stderr.split("\n").filter((line) => line.startsWith("waits: 256 placement groups"));
  assertEquals(waits.length, 3);
  assertEquals(stderr.match(/all data has all its copies again/g)?.length, 3);
});

Deno.test("a node that comes back as it was, does not come back, or does not go ends the walk there", async () => {
  {
    await using agent = await oldCluster();
    obey(agent, "0.0.9");
    const { code, stderr } = await agent.run("cluster upgrade --yes");
    assertEquals([code, agent.backend.restarts], [ExitCode.Failure, [2]]);
    assertStringIncludes(stderr, `node host-2 is back with 0.0.9, and not with ${VERSION}`);
    assertStringIncludes(stderr, "it goes on");
  }
  {
    await using agent = await oldCluster();
    agent.backend.onRestart = (id) =>
      change(agent, { kind: "node-leave", node: id, incarnation: 2, nowMs: 9 });
    const { code, stderr } = await agent.run("cluster upgrade --yes --timeout 20s");
    assertEquals([code, agent.backend.restarts], [ExitCode.Failure, [2]]);
    assertStringIncludes(stderr, "node host-2 did not come back within 20 s");
    assertStringIncludes(stderr, "start its agent");
  }
  {
    await using agent = await oldCluster();
    const { code, stderr } = await agent.run("cluster upgrade --yes --timeout 12s");
    assertEquals([code, agent.backend.restarts], [ExitCode.Failure, [2, 2, 2]], "asked again");
    assertStringIncludes(stderr, "node host-2 did not end within 12 s");
  }
});

Deno.test("an interrupted upgrade says how to go on, and goes on there", async () => {
  await using agent = await oldCluster();
  let interrupt = () => {};
  agent.backend.onRestart = (id) => {
    if (id === 3) return interrupt();
    change(agent, nodeUp(id, { version: VERSION }));
  };
  const { code, stderr } = await agent.run("cluster upgrade --yes", (terminal) => {
    interrupt = () => terminal.interrupt();
  });
  assertEquals([code, agent.backend.restarts], [ExitCode.Interrupted, [2, 3]]);
  assertStringIncludes(stderr, "node host-3 may be about to start anew");
  assertStringIncludes(stderr, "run 'kelpie cluster upgrade --yes' again to go on");
  obey(agent);
  await agent.runWell("cluster upgrade --yes");
  assertEquals(agent.backend.restarts, [2, 3, 3, 1]);
});

Deno.test("nodes are never taken back, nor where this version cannot go", async () => {
  {
    await using agent = await oldCluster();
    change(agent, nodeUp(3, { version: "9.0.0" }));
    const { code, stderr } = await agent.run("cluster upgrade --yes");
    assertEquals([code, agent.backend.restarts], [ExitCode.Failure, []]);
    assertStringIncludes(stderr, `node host-3 runs 9.0.0, and this is ${VERSION}`);
  }
  {
    await using agent = await oldCluster();
    agent.backend.clusterPart = { level: 7 };
    const { code, stderr } = await agent.run("cluster upgrade --yes");
    assertEquals([code, agent.backend.restarts], [ExitCode.Failure, []]);
    assertStringIncludes(stderr, "the cluster speaks level 7");
  }
  {
    await using agent = await oldCluster();
    agent.backend.nodeParts.set(3, { isProgramNew: false });
    const { code, stderr } = await agent.run("cluster upgrade --yes");
    assertEquals([code, agent.backend.restarts], [ExitCode.Failure, []]);
    assertStringIncludes(stderr, "no other version is installed there");
  }
});

Deno.test("versions are compared by their numbers", () => {
  const rising = ["0.0.9", "0.1.0-rc.1", "0.1.0", "0.1.1", "0.2.0", "0.10.0", "1.0.0"];
  for (const [i, a] of rising.entries()) {
    for (const [j, b] of rising.entries()) {
      assertEquals(Math.sign(compareVersions(a, b)), Math.sign(i - j), `${a} and ${b}`);
    }
  }
  assertEquals(compareVersions("1.0.0+a", "1.0.0+b"), 0);
});

Deno.test("node list says where another program is installed, node info what is spoken", async () => {
  await using agent = await oldCluster();
  agent.backend.nodeParts.set(2, { isProgramNew: true });
  const { stdout } = await agent.runWell("node list");
  assertStringIncludes(stdout, "host-2 runs 0.0.9, and another program is installed there");
  assertStringIncludes(
    (await agent.runWell("node info host-2")).stdout,
    "0.0.9, which speaks level 1",
  );
});
