/**
 * Commands about nodes and the cluster: what they show, ask, send and refuse, against the real map and a fake data plane.
 *
 * @module
 */
import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert/mod.js";
import type { ClusterMap, NodeEntry } from "../../agent/map/map.ts";
import { targetChanges } from "../../agent/map/targets.ts";
import { FAKE_SECRET, type FakeBackend } from "../http/fake_backend.ts";
import { clusterWithDisk, run, runAll, setTargets } from "../map/cluster.ts";
import { FakeAgent, type FakeTerminal } from "./fixture.ts";

const GIB = 1024 ** 3;

/** A fake agent of a cluster whose data is where the leader wants it. */
async function start(nodes = 4, copies = 2): Promise<FakeAgent> {
  const agent = await FakeAgent.start();
  agent.backend.clusterMap = settled(clusterWithDisk(nodes, copies));
  return agent;
}

/** The map when the leader has set its targets and all data has moved there. */
function settled(map: ClusterMap): ClusterMap {
  let next = map;
  for (const pool of map.pools) {
    const changes = targetChanges(next, pool);
    if (changes.length > 0) next = run(next, setTargets(next, pool.copies, ...changes)).map;
  }
  const pools = next.pools.map((pool) => ({
    ...pool,
    pgs: pool.pgs.map((pg) => ({ ...pg, inSync: pg.target, joining: [], joinedEpochs: [] })),
  }));
  return { ...next, pools };
}

function nodeOf({ clusterMap }: FakeBackend, id: number): NodeEntry {
  return clusterMap.nodes.find((node) => node.id === id)!;
}

/** Somebody who sits there and answers. */
function person(...answers: string[]) {
  return (terminal: FakeTerminal) => {
    terminal.isInputTerminal = terminal.isErrorTerminal = true;
    terminal.answers = answers;
  };
}

Deno.test("node list has state, role, zone, weight, usage, version and address of every node", async () => {
  await using agent = await start(5);
  const { backend } = agent;
  backend.clusterMap = runAll(
    backend.clusterMap,
    { kind: "set-voters", voters: [1, 2, 4] },
    { kind: "set-zone", node: 1, zone: "rack-1" },
    { kind: "set-weight", node: 2, weight: 2 * 1024 ** 4 },
    { kind: "set-availability", node: 5, availability: "draining" },
    { kind: "node-down", node: 3, incarnation: 1, nowMs: 1 },
  );
  backend.nodeParts.set(2, {
    gossip: "suspect",
    suspectedBecause: "host-1 probed it in vain\x1b, for 2 s",
    usedBytes: null,
  });
  backend.nodeParts.set(4, { joiningGroups: 3, stuck: "no source is up", isFull: true });
  backend.nodeParts.set(1, { hasLostLog: true });
  backend.nodeParts.set(5, { hasOtherLog: true });
  const { stdout, stderr } = await agent.runWell("node list");
  assertEquals(stderr, "");
  assertEquals(
    stdout,
    [
      "NAME    STATE                  ROLE    ZONE    WEIGHT  USED  CAPACITY  VERSION  ADDRESS",
      "host-1  up                     leader  rack-1    auto    1G      931G  1.0.0    192.0.2.2:7460",
      "host-2  up, suspect            voter   -           2T     ?      931G  1.0.0    192.0.2.3:7460",
      "host-3  down                   -       -         auto    1G      931G  1.0.0    192.0.2.4:7460",
      "host-4  up, catching up, full  voter   -         auto    1G      931G  1.0.0    192.0.2.5:7460",
      "host-5  up, draining           -       -         auto    1G      931G  1.0.0    192.0.2.6:7460",
      "host-1 has lost a part of the cluster's log, and does not count for now",
      "host-2 does not answer: host-1 probed it in vain?, for 2 s",
      "host-4 cannot catch up: no source is up",
      "host-5 has another log than the cluster, and takes no part any more",
      "",
    ].join("\n"),
  );
  assertEquals((await agent.runWell("node list --names")).stdout.split("\n").length, 6);
  const json = JSON.parse((await agent.runWell("node ls --json")).stdout);
  assertEquals(json.map((node: { id: number }) => node.id), [1, 2, 3, 4, 5]);
  assertEquals(json[1].usedBytes, null);
});

Deno.test("node info tells of one node, by its name or its id", async () => {
  await using agent = await start();
  agent.backend.clusterMap = run(agent.backend.clusterMap, {
    kind: "take-lease",
    id: 1,
    node: 2,
    incarnation: 1,
  }).map;
  agent.backend.nodeParts.set(2, {
    joiningGroups: 2,
    chunksLeft: 30,
    copyBytesPerSecond: 1024 ** 2,
    secondsLeft: 120,
  });
  for (const name of ["host-2", "2"]) {
    const { stdout } = await agent.runWell(`node info ${name}`);
    assertMatch(stdout, /^name: +host-2$/m);
    assertMatch(stdout, /^placement groups: +128 there, 128 wanted$/m);
    assertMatch(
      stdout,
      /^catching up: +2 placement groups, 30 chunks left, 1M\/s, about 2 min$/m,
    );
    assertMatch(stdout, /^open disks: +web$/m);
  }
  assertMatch((await agent.runWell("node info host-1")).stdout, /^name: +host-1 \(this node\)$/m);
  const json = JSON.parse((await agent.runWell("node info host-2 --json")).stdout);
  assertEquals([json.groups, json.openDisks], [128, ["web"]]);
  const { code, stderr } = await agent.run("node info host-9");
  assertEquals(code, 5);
  assertMatch(stderr, /no node named "host-9"\n +'kelpie node list'/);
});

Deno.test("drain shows what moves, asks, and changes nothing without an answer", async () => {
  await using agent = await start();
  const { backend } = agent;
  const refused = await agent.run("node drain host-2");
  assertEquals([refused.code, refused.stdout], [64, ""]);
  assertMatch(
    refused.stderr,
    /^128 copies of placement groups \(1G\) will be copied: about \S+ s if nodes copy at 100M\/s\n/,
  );
  assertMatch(refused.stderr, /^ {2}host-2 {2}gives away 128, sends 5\d\dM$/m);
  assertMatch(refused.stderr, /^ {2}host-1 {2}gets 4\d \(\d+M\), sends \d+M$/m);
  assertMatch(refused.stderr, /will not drain node host-2 unasked.*\n +add --yes/);
  const declined = await agent.run("node drain host-2", person("n"));
  assertEquals(declined.code, 1);
  assertMatch(declined.terminal.questions[0], /^Drain node host-2\? 128 copies .* \[y\/N\]/);
  assertEquals(nodeOf(backend, 2).availability, "in");

  await agent.runWell("node drain host-2", person("y"));
  assertEquals(nodeOf(backend, 2).availability, "draining");
  const status = await agent.run("status");
  assertEquals(status.code, 1);
  assertMatch(status.stdout, /^problem: node host-2 is being drained: 128 placement groups left$/m);
  // What is on its way needs no second question.
  await agent.runWell("node drain host-2");
  const { stderr } = await agent.runWell("node undrain host-2 --yes");
  assertMatch(stderr, /node host-2 takes its share of data$/m);
  assertEquals(nodeOf(backend, 2).availability, "in");
  const down = { kind: "node-down", node: 2, incarnation: 1, nowMs: 1 } as const;
  backend.clusterMap = runAll(backend.clusterMap, down);
  const later = await agent.runWell("node undrain host-2 --yes");
  assertMatch(later.stderr, /node host-2 takes its share of data once it is up again$/m);
});

Deno.test("--dry-run prints the plan as data, and changes nothing", async () => {
  await using agent = await start();
  const proposed = agent.backend.proposed.length;
  for (
    const words of ["drain host-2", "weight host-2 0", "remove host-2", "zone host-2 rack-1"]
  ) {
    const { stdout, stderr } = await agent.runWell(`node ${words} --dry-run`);
    assertEquals(stderr, "");
    assertMatch(stdout, words.startsWith("zone") ? /^no data moves\n$/ : /^128 copies/);
    const plan = JSON.parse((await agent.runWell(`node ${words} --dry-run --json`)).stdout);
    assertEquals(plan.targetsEpoch, agent.backend.clusterMap.targetsEpoch);
  }
  assertEquals(agent.backend.proposed.length, proposed);
  assertEquals(agent.backend.removed, []);
  assertEquals((await agent.run("node drain host-2 --json")).code, 64);
});

/** Changes of places between a plan and the change, `times` times: as when another node has just joined. */
function movePlaces({ backend }: FakeAgent, times: number): void {
  const { map, cluster } = backend;
  // A command asks for the node and for the plan, and each of them for the cluster and then for the map.
  let asked = 0;
  let isPlanned = false;
  backend.cluster = () => {
    isPlanned = ++asked % 2 === 0;
    return cluster.call(backend);
  };
  backend.map = () => {
    const shown = map.call(backend);
    if (!isPlanned || times === 0) return shown;
    isPlanned = false;
    times--;
    const weight = nodeOf(backend, 3).weight === 1 ? 2 : 1;
    backend.clusterMap = run(shown, { kind: "set-weight", node: 3, weight }).map;
    return shown;
  };
}

Deno.test("a plan is not carried out on a map that is not the one that was shown, and the new one is shown", async () => {
  await using agent = await start();
  const { backend } = agent;
  /** Places change while the person thinks, once. */
  const slow = (...answers: string[]) => (terminal: FakeTerminal) => {
    person(...answers)(terminal);
    const { ask } = terminal;
    terminal.ask = (question) => {
      if (terminal.questions.length === 0) {
        backend.clusterMap = run(backend.clusterMap, {
          kind: "set-weight",
          node: 3,
          weight: nodeOf(backend, 3).weight === 1 ? 2 : 1,
        }).map;
      }
      return ask.call(terminal, question);
    };
  };
  const declined = await agent.run("node drain host-2", slow("y", "n"));
  assertEquals(declined.code, 1);
  assertMatch(
    declined.stderr,
    /^nodes or places have changed since the plan was made: nothing was changed; this is the new plan\n(\d+) copies/m,
  );
  assertEquals(declined.terminal.questions.length, 2);
  assertEquals(declined.stderr.match(/^\d+ copies .* will be copied/gm)?.length, 2);
  assertEquals(nodeOf(backend, 2).availability, "in");

  const agreed = await agent.runWell("node drain host-2", slow("y", "y"));
  assertEquals(agreed.terminal.questions.length, 2);
  assertEquals(nodeOf(backend, 2).availability, "draining");
});

Deno.test("what --yes agrees to is planned anew when places have changed, so many times and no more", async () => {
  for (
    const [words, isMade] of [
      ["drain host-2", (at: FakeBackend) => nodeOf(at, 2).availability === "draining"],
      ["weight host-2 2T", (at: FakeBackend) => nodeOf(at, 2).weight === 2 * 1024 ** 4],
      ["zone host-2 rack-1", (at: FakeBackend) => nodeOf(at, 2).zone === "rack-1"],
    ] as const
  ) {
    await using agent = await start();
    movePlaces(agent, 3);
    const { stderr } = await agent.runWell(`node ${words} --yes`);
    assertEquals(stderr.match(/since the plan was made: .*; this is the new plan$/gm)?.length, 3);
    assert(isMade(agent.backend), words);
  }
  await using restless = await start();
  movePlaces(restless, Infinity);
  const { code, stderr } = await restless.run("node drain host-2 --yes");
  assertEquals(code, 1);
  assertMatch(stderr, /10 plans were out of date before they were carried out/);
  assertMatch(stderr, /try again when places are at rest/);
  assertEquals(stderr.match(/; this is the new plan$/gm)?.length, 9);
  assertEquals(nodeOf(restless.backend, 2).availability, "in");
});

Deno.test("a drain that is planned anew is refused where its data has nowhere to go by now", async () => {
  await using agent = await start(2, 2);
  const { backend } = agent;
  backend.clusterMap = {
    ...backend.clusterMap,
    settings: { ...backend.clusterMap.settings, copiesMin: 1 },
  };
  const { code, stderr } = await agent.run("node drain host-2", (terminal) => {
    person("y", "y")(terminal);
    const { ask } = terminal;
    terminal.ask = (question) => {
      // Somebody else drains the other one meanwhile.
      backend.clusterMap = run(backend.clusterMap, {
        kind: "set-availability",
        node: 1,
        availability: "draining",
      }).map;
      return ask.call(terminal, question);
    };
  });
  assertEquals(code, 1);
  assertMatch(
    stderr,
    /this is the new plan\n(.*\n)*.*too few other nodes take the data of node host-2/,
  );
  assertEquals(nodeOf(backend, 2).availability, "in");
});

Deno.test("a plan says when copies become fewer, and a drain is refused where data has nowhere to go", async () => {
  await using agent = await start(3, 3);
  const fewer = await agent.run("node drain host-2");
  assertEquals(fewer.code, 64);
  assertMatch(fewer.stderr, /^no data moves\n256 placement groups will have fewer copies than now/);
  await using alone = await start(1, 1);
  const nowhere = await alone.run("node drain host-1 --yes");
  assertEquals(nowhere.code, 1);
  assertMatch(nowhere.stderr, /too few other nodes take the data of node host-1/);
  assertEquals(nodeOf(alone.backend, 1).availability, "in");
  // Two of three copies are the fewest to write to.
  assertEquals((await agent.run("node drain host-2 --yes")).code, 0);
  const second = await agent.run("node drain host-3 --yes");
  assertEquals(second.code, 1);
  assertMatch(second.stderr, /too few other nodes take the data of node host-3/);
  assertEquals(nodeOf(agent.backend, 3).availability, "in");
});

Deno.test("a plan says that amounts are not known while no node has reported", async () => {
  await using agent = await start();
  for (const id of [1, 2, 3, 4]) agent.backend.nodeParts.set(id, { usedBytes: null });
  const { stdout } = await agent.runWell("node drain host-2 --dry-run");
  assertMatch(stdout, /^128 copies of placement groups will be copied: nodes have not said/);
  agent.backend.nodeParts.set(1, { usedBytes: GIB, copyBytesPerSecond: 50 * 1024 ** 2 });
  const measured = await agent.runWell("node drain host-2 --dry-run");
  assertMatch(measured.stdout, /\(1G\) will be copied: about \S+ s at 50M\/s, as now/);
});

Deno.test("drain --wait follows until nothing is left, and says what is in the way", async () => {
  await using agent = await start();
  const { backend } = agent;
  let asked = 0;
  backend.onCluster = () => {
    if (nodeOf(backend, 2).availability !== "draining") return;
    asked++;
    // Data moves away in three steps; in the second a node is stuck.
    const left = asked < 4 ? 128 : asked < 8 ? 64 : asked < 12 ? 32 : 0;
    backend.clusterMap = leaving(backend.clusterMap, 2, left);
    if (asked === 5) backend.nodeParts.set(3, { stuck: "its store is slow" });
    if (asked === 9) backend.nodeParts.delete(3);
  };
  const { stderr, stdout } = await agent.runWell("node drain host-2 --yes --wait");
  assertEquals(stdout, "");
  assertMatch(stderr, /^draining host-2: 50 %, 64 of 128 groups, [\d.]+ groups\/s, .* left$/m);
  assertMatch(stderr, /warning: node host-3 cannot catch up: its store is slow/);
  assertEquals(stderr.match(/cannot catch up/g)?.length, 1);
  assertMatch(stderr, /node host-2 is drained: 'kelpie node remove host-2' takes it out/);
});

/** The map when so many PGs still name a node. */
function leaving(map: ClusterMap, node: number, left: number): ClusterMap {
  let kept = 0;
  const pools = map.pools.map((pool) => ({
    ...pool,
    pgs: pool.pgs.map((pg) => {
      if (!pg.inSync.includes(node) || kept++ < left) return pg;
      const inSync = pg.inSync.filter((id) => id !== node);
      const target = pg.target.filter((id) => id !== node);
      return { ...pg, inSync, target };
    }),
  }));
  return { ...map, pools };
}

Deno.test("drain --wait ends when somebody takes the drain back, or it is interrupted", async () => {
  await using agent = await start();
  const { backend } = agent;
  backend.onCluster = () => {
    const last = backend.proposed.filter(({ kind }) => kind === "set-availability").length;
    if (last !== 1 || nodeOf(backend, 2).availability !== "draining") return;
    backend.onCluster = () => {
      backend.onCluster = () => {
        backend.onCluster = () => {};
        void backend.propose({ kind: "set-availability", node: 2, availability: "in" });
      };
    };
  };
  const { code, stderr } = await agent.run("node drain host-2 --yes --wait");
  assertEquals(code, 1);
  assertMatch(stderr, /node host-2 is not being drained any more/);

  const interrupted = await agent.run("node drain host-2 --yes --wait", (terminal) => {
    backend.onCluster = () => {
      if (nodeOf(backend, 2).availability === "draining") terminal.interrupt();
    };
  });
  assertEquals(interrupted.code, 130);
  assertEquals(nodeOf(backend, 2).availability, "draining");
});

Deno.test("weight and zone ask only when data moves", async () => {
  await using agent = await start();
  const { backend } = agent;
  assertEquals((await agent.run("node weight host-2 0")).code, 64);
  await agent.runWell("node weight host-2 2T --yes");
  assertEquals(nodeOf(backend, 2).weight, 2 * 1024 ** 4);
  await agent.runWell("node weight host-2 auto --yes");
  assertEquals(nodeOf(backend, 2).weight, null);
  const { stderr } = await agent.runWell("node zone host-2 rack-2");
  assertEquals(stderr, "no data moves\nnode host-2 is in zone rack-2\n");
  assertEquals(nodeOf(backend, 2).zone, "rack-2");
  await agent.runWell("node zone host-2 none");
  assertEquals(nodeOf(backend, 2).zone, "");
});

Deno.test("remove takes out a drained node, and refuses one that has data", async () => {
  await using agent = await start();
  const { backend } = agent;
  const full = await agent.run("node remove host-4 --yes");
  assertEquals(full.code, 1);
  assertMatch(
    full.stderr,
    /still has data.*\n +move it away first: kelpie node drain host-4 --wait/,
  );
  backend.clusterMap = settled(
    run(backend.clusterMap, {
      kind: "set-availability",
      node: 4,
      availability: "draining",
    }).map,
  );
  assertMatch((await agent.run("status")).stdout, /^note: node host-4 is drained/m);
  assertMatch((await agent.runWell("node list")).stdout, /^host-4 +up, drained/m);
  for (const words of ["node drain host-4", "node drain host-4 --wait"]) {
    assertMatch(
      (await agent.runWell(words)).stderr,
      /^node host-4 is drained: 'kelpie node remove/,
    );
  }
  const asked = await agent.runWell("node remove host-4", person("yes"));
  assertMatch(asked.terminal.questions[0], /^Remove node host-4\? It cannot come back/);
  assertEquals(backend.removed, [{ id: 4, force: false, acceptLoss: false }]);
  assertEquals(backend.clusterMap.nodes.map(({ id }) => id), [1, 2, 3]);
});

Deno.test("remove --force is for nodes that are down, and loses data only when told so", async () => {
  await using agent = await start(4, 1);
  const { backend } = agent;
  const up = await agent.run("node remove host-4 --force --yes");
  assertEquals(up.code, 1);
  assertMatch(up.stderr, /node host-4 is up: --force is for a node that will not come back/);
  backend.clusterMap = run(backend.clusterMap, {
    kind: "node-down",
    node: 4,
    incarnation: 1,
    nowMs: 1,
  }).map;
  const loses = await agent.run("node remove host-4 --force --yes");
  assertEquals(loses.code, 1);
  assertMatch(loses.stderr, /only complete copy of 64 placement groups.*\n.*add --accept-loss/);
  assertEquals(backend.removed, []);
  const unasked = await agent.run("node remove host-4 --force --accept-loss");
  assertEquals(unasked.code, 64);
  assertMatch(unasked.stderr, /this destroys all data of 64 placement groups/);
  await agent.runWell("node remove host-4 --force --accept-loss --yes");
  assertEquals(backend.removed, [{ id: 4, force: true, acceptLoss: true }]);
  const status = await agent.run("status");
  assertMatch(status.stdout, /^note: on .* the only copy of 64 placement groups was given up/m);
});

Deno.test("remove takes nothing away that it has not asked about", async () => {
  await using agent = await start(4, 2);
  const { backend } = agent;
  const down = { kind: "node-down", node: 4, incarnation: 1, nowMs: 1 } as const;
  backend.clusterMap = run(backend.clusterMap, down).map;
  /** Nobody else has what it was to have, while the person thinks. */
  const slow = (terminal: FakeTerminal) => {
    person("y")(terminal);
    const { ask } = terminal;
    terminal.ask = (question) => {
      const pools = backend.clusterMap.pools.map((pool) => ({
        ...pool,
        pgs: pool.pgs.map((pg) => pg.target.includes(4) ? { ...pg, inSync: [4] } : pg),
      }));
      backend.clusterMap = { ...backend.clusterMap, pools };
      return ask.call(terminal, question);
    };
  };
  const refused = await agent.run("node remove host-4 --force --accept-loss", slow);
  assertEquals([refused.code, refused.terminal.questions.length, backend.removed], [1, 1, []]);
  assertMatch(
    refused.stderr,
    /nothing was changed: meanwhile .* only complete copy of \d+ placement/,
  );
});

Deno.test("without a majority nothing is removed, and the way out is named", async () => {
  await using agent = await start();
  const { backend } = agent;
  backend.clusterPart = { hasQuorum: false };
  for (const words of ["node remove host-2", "node remove host-2 --force --accept-loss --yes"]) {
    const { code, stderr } = await agent.run(words);
    assertEquals(code, 2);
    assertMatch(stderr, /no majority of the voters.*\n.*'kelpie cluster recover'/);
  }
  assertEquals(backend.removed, []);
  assertMatch((await agent.run("status")).stdout, /'kelpie cluster recover --help'/);
  await agent.runWell("node remove host-2 --dry-run");
});

Deno.test("cluster recover asks, and refuses where nobody can answer, as all that destroys something does", async () => {
  await using agent = await start();
  const refused = await agent.run("cluster recover");
  assertEquals(refused.code, 64);
  assertMatch(
    refused.stderr,
    /will not let this node decide alone unasked: this destroys .* since epoch \d+/,
  );
  assertEquals((await agent.run("cluster recover", person("no"))).code, 1);
  assertEquals(agent.backend.recoveries, 0);
  await agent.runWell("cluster recover", person("yes"));
  await agent.runWell("cluster recover --yes");
  assertEquals(agent.backend.recoveries, 2);
});

Deno.test("cluster secret prints the secret and nothing else", async () => {
  await using agent = await start();
  const { stdout, stderr } = await agent.runWell("cluster secret");
  assertEquals([stdout, stderr], [`${FAKE_SECRET}\n`, ""]);
});

Deno.test("cluster settings shows and changes what holds for all", async () => {
  await using agent = await start();
  const { backend } = agent;
  const { stdout } = await agent.runWell("cluster settings");
  assertEquals(
    stdout,
    [
      "copies:          3 (of a new disk that does not say)",
      "copies-min:      auto (a majority; 1 of 2)",
      "out-after:       10 min",
      "trash:           1 d",
      "trusted-network: off",
      "",
    ].join("\n"),
  );
  const cases: [words: string, key: keyof typeof backend.clusterMap.settings, value: unknown][] = [
    ["copies 2", "copies", 2],
    ["copies-min 1", "copiesMin", 1],
    ["copies-min auto", "copiesMin", null],
    ["out-after 30m", "outAfterMs", 1_800_000],
    ["trusted-network on", "trustedNetwork", true],
    ["trash 7d", "trashMs", 7 * 24 * 3_600_000],
    ["trash off", "trashMs", 0],
  ];
  backend.clusterMap = { ...backend.clusterMap, level: 2 };
  for (const [words, key, value] of cases) {
    const { stdout, stderr } = await agent.runWell(`cluster settings ${words}`);
    assertEquals(stdout, "");
    assertStringIncludes(stderr, `${words.split(" ")[0]}: `);
    assertEquals(backend.clusterMap.settings[key], value);
  }
  const json = JSON.parse((await agent.runWell("cluster settings --json")).stdout);
  assertEquals(json, backend.clusterMap.settings);
  const wrong = await agent.run("cluster settings out-after 1s");
  assertEquals(wrong.code, 64);
  assertMatch(wrong.stderr, /10000 to \d+ are possible/);
});

Deno.test("status of a cluster is one line when all is well, and tells of all that is not", async () => {
  await using agent = await start(4, 2);
  const { backend } = agent;
  assertEquals(
    (await agent.runWell("status")).stdout,
    "healthy: 4 nodes, 1 disk, all copies in place, 4G of 3.64T used, " +
      "1M of memory for the index\n",
  );
  const verbose = await agent.runWell("status --verbose");
  assertMatch(verbose.stdout, /^nodes: +4, 4 up$/m);
  assertMatch(verbose.stdout, /^leader: +host-1$/m);
  assertMatch(verbose.stdout, /^placement groups: +256 of 256 whole$/m);

  backend.clusterMap = run(backend.clusterMap, {
    kind: "node-down",
    node: 3,
    incarnation: 1,
    nowMs: Date.now() - 60_000,
  }).map;
  backend.clusterPart = { hasQuorum: false, notes: ["data does not move: the brake is on"] };
  const { code, stdout } = await agent.run("status");
  assertEquals(code, 1);
  assert(!stdout.includes("healthy"));
  const lines = stdout.trimEnd().split("\n");
  assertMatch(lines[0], /^problem: no majority of the 1 voter can be reached/);
  assertMatch(lines[2], /^problem: node host-3 is down, for 1 min$/);
  assertMatch(lines[3], /made anew elsewhere in (9 min|8 min 59 s)/);
  assertMatch(
    lines[4],
    /^problem: 128 of 256 placement groups have fewer copies.*nothing is being/,
  );
  assertEquals(lines[6], "note: data does not move: the brake is on");
  assertEquals(lines.length, 7);
  const json = JSON.parse((await agent.run("status --json")).stdout);
  assertEquals(json.healthy, false);
  assertEquals(json.groups.degraded, 128);
  assertEquals(json.cluster.hasQuorum, false);
});

Deno.test("status without an answer about the cluster says so, and is not well", async () => {
  await using agent = await start();
  agent.backend.cluster = () => Promise.reject(new Error("it is stuck"));
  const { code, stdout } = await agent.run("status");
  assertEquals(code, 1);
  assertMatch(stdout, /^problem: the agent does not say how its cluster is$/m);
});

Deno.test("disks tell of copies, and where they are open", async () => {
  await using agent = await start(3, 3);
  const { backend } = agent;
  await agent.runWell("disk create scratch 1G --copies 1 --copies-min 1");
  const lease = { kind: "take-lease", id: 1, node: 2, incarnation: 1 } as const;
  const down = { kind: "node-down", node: 3, incarnation: 1, nowMs: 1 } as const;
  backend.clusterMap = runAll(backend.clusterMap, lease, down);
  const { stdout } = await agent.runWell("disk list");
  assertMatch(stdout, /^scratch +1G +0B +1\/1 +- +-$/m);
  assertMatch(stdout, /^web +1G +0B +2\/3 +host-2 +-$/m);
  const info = await agent.runWell("disk info web");
  assertMatch(info.stdout, /^copies: +2 complete of 3 wanted$/m);
  assertMatch(info.stdout, /^writes wait: +with fewer than 2 complete copies$/m);
  assertMatch(info.stdout, /^open on: +host-2$/m);
});

Deno.test("lock list tells who has which disk open, since when, and how that node is", async () => {
  await using agent = await start(6, 3);
  const { backend } = agent;
  assertMatch((await agent.runWell("disk lock list")).stderr, /^no disk is open$/m);
  backend.clusterMap = runAll(
    backend.clusterMap,
    ...["a", "b", "c", "d", "free"].map((name) =>
      ({ kind: "create-disk", name, sizeBytes: 512, nowMs: 1 }) as const
    ),
    ...[1, 2, 3, 4, 5].map((id) => ({ kind: "take-lease", id, node: id, incarnation: 1 }) as const),
    { kind: "take-lease", id: 1, node: 1, incarnation: 1 },
    { kind: "node-down", node: 5, incarnation: 1, nowMs: 1 },
  );
  backend.leaseTimes.set("web", { sinceMs: 1_700_000_000_000, isExact: true });
  backend.leaseTimes.set("a", { sinceMs: 1_700_000_001_000, isExact: false });
  backend.nodeParts.set(4, {
    gossip: "suspect",
    suspectedBecause: "host-1 probed it in vain\x1b, for 2 s",
  });
  backend.clusterPart = {
    waiting: [
      { disk: "b", node: 3, reason: "too few copies" },
      { disk: "a", node: 6, reason: "of a session that was before" },
    ],
  };
  const { stdout, stderr } = await agent.runWell("disk lock list");
  assertEquals(stderr, "");
  assertEquals(
    stdout,
    [
      "DISK  NODE    GENERATION  SINCE                            STATE",
      "a     host-2           1  before 2023-11-14T22:13:21.000Z  serving",
      "b     host-3           1  ?                                waiting",
      "c     host-4           1  ?                                suspect",
      "d     host-5           1  ?                                down",
      "web   host-1           2  2023-11-14T22:13:20.000Z         serving",
      "b: too few copies",
      "c: host-1 probed it in vain?, for 2 s",
      "",
    ].join("\n"),
  );
  const json = JSON.parse((await agent.runWell("disk lock ls --json")).stdout);
  assertEquals(json[4], {
    disk: "web",
    node: "host-1",
    generation: 2,
    sinceMs: 1_700_000_000_000,
    isSinceExact: true,
    state: "serving",
    reason: null,
  });
});

Deno.test("lock list does not take a lease for served whose agent has been started anew since", async () => {
  await using agent = await start();
  const { backend } = agent;
  const take = { kind: "take-lease", id: 1, node: 2, incarnation: 1 } as const;
  const { map } = run(backend.clusterMap, take);
  const nodes = map.nodes.map((node) => node.id === 2 ? { ...node, incarnation: 2 } : node);
  backend.clusterMap = { ...map, nodes };
  const { stdout } = await agent.runWell("disk lock list");
  assertMatch(stdout, /^web +host-2 +1 +\? +down$/m);
  const [lock] = JSON.parse((await agent.runWell("disk lock list --json")).stdout);
  assertMatch(lock.reason, /its agent has been started anew/);
});

Deno.test("lock release says how the node is, and takes the disk away when it may", async () => {
  await using agent = await start();
  const { backend } = agent;
  assertMatch((await agent.runWell("disk lock release web")).stderr, /disk web is not open/);
  const take = { kind: "take-lease", id: 1, node: 2, incarnation: 1 } as const;
  backend.clusterMap = run(backend.clusterMap, take).map;
  const cases = [
    [{ gossip: "alive" }, /its node is alive, and can move or stop that guest/],
    [{ gossip: "dead" }, /its node does not answer/],
    [{ state: "down" }, /its node is down, and the lease ends by itself/],
  ] as const;
  for (const [part, text] of cases) {
    backend.nodeParts.set(2, part);
    const unasked = await agent.run("disk lock release web");
    assertEquals(unasked.code, 64);
    assertMatch(unasked.stderr, text);
    assertEquals(backend.clusterMap.disks[0].lease?.node, 2);
  }
  await agent.runWell("disk lock release web --yes");
  assertEquals(backend.clusterMap.disks[0].lease, null);
  assertEquals(backend.proposed.at(-1), { kind: "force-release-lease", id: 1, generation: 1 });
  const missing = await agent.run("disk lock release nothing --yes");
  assertEquals(missing.code, 5);
});

Deno.test("release takes a disk away from a node, after asking", async () => {
  await using agent = await start();
  const { backend } = agent;
  assertMatch((await agent.runWell("disk release web")).stderr, /disk web is not open/);
  backend.clusterMap = run(backend.clusterMap, {
    kind: "take-lease",
    id: 1,
    node: 2,
    incarnation: 1,
  }).map;
  const unasked = await agent.run("disk release web");
  assertEquals(unasked.code, 64);
  assertMatch(unasked.stderr, /will not take disk web away from node host-2 unasked/);
  assertEquals(backend.clusterMap.disks[0].lease?.node, 2);
  await agent.runWell("disk release web --yes");
  assertEquals(backend.clusterMap.disks[0].lease, null);
});
