/**
 * Problems: each kind by itself, their order, and that nothing that waits is called healthy.
 *
 * @module
 */
import { assertEquals, assertStringIncludes } from "@std/assert/mod.js";
import { Prng } from "../../agent/base/prng.ts";
import type {
  DiskStatus,
  PathStatus,
  SessionStatus,
  StoreStatus,
} from "../../agent/http/backend.ts";
import {
  findNotes,
  findProblems,
  type Observations,
  PROBLEM_CODES,
  summarize,
} from "../../agent/problems.ts";
import { clusterStatusOf } from "../../agent/cluster_status.ts";
import type { ClusterStatus, NodeStatus } from "../../agent/http/backend.ts";
import { summarizeGroups } from "../../agent/map/group_summary.ts";
import { type ClusterMap, EMPTY_MAP, MAP_BYTES_FULL, type PgEntry } from "../../agent/map/map.ts";
import { targetChanges } from "../../agent/map/targets.ts";
import { clusterOf, clusterWithDisk, group, nodeUp, run, runAll } from "../map/cluster.ts";
import { FakeBackend, HEALTHY_STORE, IDLE_DISK, sessionWith } from "./fake_backend.ts";

/** One node, with these disks. */
function seenWith(
  store: Partial<StoreStatus> | null,
  disks: Record<string, SessionStatus[] | string> = {},
): Observations {
  const backend = new FakeBackend();
  for (const name of Object.keys(disks)) backend.add(name);
  const statuses = Object.entries(disks).map(([name, sessions]): [string, DiskStatus | string] => [
    name,
    typeof sessions === "string" ? sessions : { ...IDLE_DISK, sessions },
  ]);
  return {
    ...clusterSeen(backend.clusterMap),
    store: store === null ? null : { ...HEALTHY_STORE, ...store },
    disks: new Map(statuses),
  };
}

/** Two data paths, of which the second is like this. */
function twoPaths(part: Partial<PathStatus>): PathStatus[] {
  const path = {
    location: "/disk1",
    state: "ok",
    reason: "",
    usedBytes: 1,
    capacityBytes: 2 ** 40,
    isFull: false,
  } as const;
  return [path, { ...path, location: "/disk2", ...part }];
}

const NOW_MS = 100_000_000;

/** A cluster in which all that the map has does well, but for these parts; its nodes by id. */
function clusterSeen(
  map: ClusterMap,
  part: Partial<ClusterStatus> = {},
  nodes: Record<number, Partial<NodeStatus>> = {},
): Observations {
  const status = clusterStatusOf(map, 1, 1);
  const known = status.nodes.map((node): NodeStatus => ({
    ...node,
    gossip: node.state === "up" ? "alive" : "dead",
    usedBytes: 2 ** 30,
    ...nodes[node.id],
  }));
  return {
    map,
    mapBytes: 1000,
    nowMs: NOW_MS,
    cluster: { ...status, hasQuorum: true, nodes: known, ...part },
    groups: summarizeGroups(map),
    store: HEALTHY_STORE,
    disks: new Map(),
  };
}

/** The map with PG 0 of its only pool changed. */
function withGroup(map: ClusterMap, part: Partial<PgEntry>): ClusterMap {
  const [pool] = map.pools;
  return { ...map, pools: [{ ...pool, pgs: pool.pgs.with(0, { ...pool.pgs[0], ...part }) }] };
}

function codesOf(seen: Observations): string[] {
  return findProblems(seen).map((problem) => problem.code);
}

Deno.test("an idle agent and one with a running guest are healthy", () => {
  assertEquals(codesOf(seenWith({})), []);
  const running = seenWith({}, { web: [sessionWith()], db: [sessionWith({ active: false })] });
  assertEquals(codesOf(running), []);
  assertEquals(summarize(running, []), "healthy: 2 disks, 12G of 500G used");
});

Deno.test("each thing that is wrong is a problem of its own kind", () => {
  const broken = sessionWith({ broken: "descriptor loop in queue 0" });
  const cases: [Observations, string, string][] = [
    [seenWith(null), "store-unavailable", "does not answer"],
    [seenWith({ failed: "sync failed: EIO" }), "store-failed", "sync failed: EIO"],
    [seenWith({ full: true }), "store-full", "is full"],
    [seenWith({ full: true, paths: twoPaths({ isFull: true }) }), "store-full", "/disk2 is full"],
    [
      seenWith({ paths: twoPaths({ state: "missing", reason: "is it mounted?" }) }),
      "path-lost",
      "data path /disk2 is missing: is it mounted?",
    ],
    [
      seenWith({ paths: twoPaths({ state: "left-out" }) }),
      "path-lost",
      "data path /disk2 was left out",
    ],
    [seenWith({ full: true, waitingWrites: 1 }), "store-full", "1 write waits"],
    [seenWith({ waitingWrites: 2 }), "writes-waiting", "2 writes wait"],
    [seenWith({ liveBytes: 460 * 1024 ** 3 }), "store-nearly-full", "460G of the store's 500G"],
    [
      { ...seenWith({}), mapBytes: MAP_BYTES_FULL + 1 },
      "map-full",
      "the cluster map has 3584 KiB, and 4096 KiB is the most",
    ],
    [seenWith({ damagedBlocks: 1 }), "damage", "1 block cannot be read"],
    [
      seenWith({ damagedRecords: 1 }),
      "damage-accepted",
      "opened without 1 record of its log that is damaged: what was written with it is gone",
    ],
    [seenWith({}, { web: "it is stuck" }), "disk-unavailable", "it is stuck"],
    [seenWith({}, { web: [broken] }), "session-broken", "descriptor loop in queue 0"],
    [
      seenWith({}, { web: [sessionWith({ waitingForLease: true })] }),
      "lease-waiting",
      "qemu-system-x86 (pid 4711) waits for the lease",
    ],
  ];
  for (const [seen, code, part] of cases) {
    const problems = findProblems(seen);
    assertEquals(problems.map((problem) => problem.code), [code]);
    assertStringIncludes(problems[0].message, part);
    assertEquals(summarize(seen, problems), problems[0].message);
  }
  // Those about snapshots and zones have tests of their own below.
  const others = [
    "snapshot-waiting",
    "schedule-late",
    "layers-waiting",
    "flatten-waiting",
    "zones-empty",
  ];
  const codes = new Set([...[...cases, ...clusterCases()].map((each) => each[1]), ...others]);
  assertEquals(codes, new Set(PROBLEM_CODES), "a kind of problem has no case here");
});

/** What is wrong with a cluster of three, one thing at a time. */
function clusterCases(): [Observations, string, string][] {
  const map = clusterWithDisk(3, 3);
  const [first, second, third] = group(map).target;
  const down = run(clusterWithDisk(3, 2), {
    kind: "set-voters",
    voters: [1, 2, 3],
  }).map;
  const copying = {
    joiningGroups: 1,
    chunksLeft: 12,
    copyBytesPerSecond: 52 * 1024 ** 2,
    secondsLeft: 200,
  };
  const witness = {
    ...map,
    nodes: map.nodes.with(2, { ...map.nodes[2], state: "down" as const, changedMs: NOW_MS - 12e3 }),
  };
  const degraded = withGroup(map, { inSync: [first, second], joining: [third] });
  return [
    [{ ...clusterSeen(map), cluster: null }, "cluster-unavailable", "does not say"],
    [
      clusterSeen(EMPTY_MAP, {
        hasQuorum: false,
        joining: [{ address: "host-1:7460", reason: "it refuses the secret", hint: "compare" }],
      }),
      "not-joined",
      "joining host-1:7460: it refuses the secret",
    ],
    [
      clusterSeen(down, { hasQuorum: false }, { 2: { gossip: "dead" }, 3: { gossip: "dead" } }),
      "no-quorum",
      "no majority of the 3 voters can be reached: host-2 and host-3 do not answer",
    ],
    [
      clusterSeen(withGroup(map, { unclean: [second] })),
      "data-unreadable",
      `1 of 256 placement groups cannot be read or written: host-${second} crashed`,
    ],
    [
      clusterSeen(withGroup(map, { inSync: [first] })),
      "writes-stalled",
      `cannot be written: only host-${first} has a complete copy, and 2 copies are the fewest`,
    ],
    [
      clusterSeen(map, { waiting: [{ disk: "web", node: 2, reason: "host-3 does not answer" }] }),
      "requests-waiting",
      "disk web: requests on host-2 wait: host-3 does not answer",
    ],
    [clusterSeen(witness), "node-down", "node host-3 is down, for 12 s"],
    [
      clusterSeen(map, {}, {
        2: { gossip: "suspect", suspectedBecause: "host-1 probed it in vain, for 2 s" },
      }),
      "node-suspected",
      "node host-2 does not answer: host-1 probed it in vain, for 2 s",
    ],
    [
      clusterSeen(map, {}, { 2: { gossip: "unknown" } }),
      "node-suspected",
      "nothing has been heard",
    ],
    [
      clusterSeen(degraded, {}, { [third]: copying }),
      "degraded",
      `1 of 256 placement groups has fewer copies than it should; ` +
      `host-${third} copies 1 group, 12 chunks left at 52M/s, about 3 min 20 s`,
    ],
    [
      clusterSeen(withGroup(map, { inSync: [first, second] })),
      "degraded",
      "has fewer copies than it should; nothing is being copied",
    ],
    [clusterSeen(map, {}, { 2: { stuck: "no source" } }), "copying-stuck", "cannot catch up: no"],
    [clusterSeen(map, {}, { 2: { hasLostLog: true } }), "log-lost", "it counts again in a moment"],
    [
      clusterSeen(map, {}, { 2: { hasOtherLog: true } }),
      "log-contradicted",
      "node host-2 has another log than its cluster",
    ],
    [
      clusterSeen(withGroup(map, { target: [first, second] })),
      "moving",
      "1 of 256 placement groups moves to where it should be",
    ],
    [
      clusterSeen(run(map, { kind: "set-availability", node: 2, availability: "draining" }).map),
      "moving",
      "node host-2 is being drained: 256 placement groups left",
    ],
    [clusterSeen(map, {}, { 2: { isFull: true } }), "node-full", "store of node host-2 is full"],
    [clusterSeen(map, {}, { 2: { usedBytes: 9.5e11 } }), "node-nearly-full", "of node host-2"],
    [clusterSeen(map, {}, { 2: { damagedBlocks: 2 } }), "node-damage", "2 blocks of node host-2"],
    [
      clusterSeen(map, {}, { 2: { paths: twoPaths({ state: "failed", reason: "EIO" }) } }),
      "path-lost",
      "data path /disk2 of node host-2 has failed: EIO",
    ],
  ];
}

Deno.test("each thing that is wrong with a cluster is a problem, with who and why", () => {
  for (const [seen, code, part] of clusterCases()) {
    const problems = findProblems(seen);
    const found = problems.find((problem) => problem.code === code);
    const shown = JSON.stringify(problems);
    assertStringIncludes(found?.message ?? "", part, shown);
    assertEquals(summarize(seen, problems).startsWith("healthy"), false);
    // What follows from the same cause may be said as well; nothing else.
    const others = problems.filter((problem) => problem !== found).map((problem) => problem.code);
    const mayFollow = { "no-quorum": "node-suspected", "writes-stalled": "degraded" }[code];
    assertEquals(others.filter((other) => other !== mayFollow), [], shown);
  }
});

Deno.test("a drain that waits for room says so", () => {
  const drained = (node: number) =>
    ({ kind: "set-availability", node, availability: "draining" }) as const;
  const one = runAll(clusterWithDisk(3, 3), drained(2));
  assertEquals(findProblems(clusterSeen(one)).map(({ hint }) => hint), [
    "it goes on by itself; 'kelpie node undrain host-2' takes it back",
  ]);
  // Two of three copies are the fewest to write to.
  for (const { code, hint } of findProblems(clusterSeen(runAll(one, drained(3))))) {
    assertEquals(code, "moving");
    assertStringIncludes(hint, "too few other nodes take data: add a node");
  }
});

Deno.test("where copies are missing, it names who is up and takes none because of a drain", () => {
  const map = clusterWithDisk(4, 3);
  const drain = { kind: "set-availability", node: 4, availability: "draining" } as const;
  const { target: [first] } = group(map);
  const stalled = (seen: ClusterMap) =>
    findProblems(clusterSeen(withGroup(seen, { inSync: [first] })))
      .find(({ code }) => code === "writes-stalled")?.hint ?? "";
  assertEquals(stalled(map).includes("undrain"), false);
  assertStringIncludes(
    stalled(run(map, drain).map),
    "; host-4 takes no data because of a drain: 'kelpie node undrain host-4' lets it",
  );
  const down = { kind: "node-down", node: 4, incarnation: 1, nowMs: NOW_MS } as const;
  assertEquals(stalled(runAll(map, drain, down)).includes("undrain"), false);
});

Deno.test("a cluster in which all is well is one line", () => {
  const seen = clusterSeen(clusterWithDisk(3, 3));
  assertEquals(findProblems(seen), []);
  assertEquals(
    summarize(seen, []),
    "healthy: 3 nodes, 1 disk, all copies in place, 3G of 2.73T used",
  );
  const few = clusterSeen(clusterWithDisk(2, 3), {}, { 2: { usedBytes: null } });
  assertEquals(
    summarize(few, findProblems(few)),
    "healthy: 2 nodes, 1 disk, all copies in place (2 of 3: there are no more nodes for them)",
  );
});

Deno.test("of this node's own store its own status speaks, and not twice", () => {
  const own = { isFull: true, damagedBlocks: 3, usedBytes: 1e12 };
  assertEquals(codesOf(clusterSeen(clusterWithDisk(2, 2), {}, { 1: own })), []);
});

Deno.test("a voter without its log counts when the others are there, and that is what is asked for", () => {
  const map = clusterWithDisk(3, 3);
  const voters = { ...map, voters: [1, 2, 3] };
  const [problem] = findProblems(
    clusterSeen(voters, {}, { 2: { hasLostLog: true }, 3: { gossip: "dead" } }),
  );
  assertEquals([problem.code, problem.node], ["log-lost", "host-2"]);
  assertStringIncludes(problem.message, "node host-2 has lost a part of the cluster's log");
  assertStringIncludes(problem.message, "it does not count for any decision");
  assertStringIncludes(problem.hint, "start host-3");
  assertStringIncludes(problem.hint, "look at that node's disk");
});

Deno.test("what has fewer copies is told when it gets them, and by whom", () => {
  const hintOf = (copies: number) => {
    const map = clusterWithDisk(3, copies);
    const [, second] = map.nodes;
    const nodes = map.nodes.with(1, { ...second, state: "down", changedMs: NOW_MS - 60_000 });
    const inSync = group(map).target.filter((id) => id !== second.id);
    const [pool] = map.pools;
    const pgs = pool.pgs.map((pg) => ({ ...pg, target: [1, 2, 3].slice(0, copies), inSync }));
    const seen = clusterSeen({ ...map, nodes, pools: [{ ...pool, pgs }] });
    return findProblems(seen).find(({ code }) => code === "degraded")!.hint;
  };
  assertStringIncludes(hintOf(2), "have been down for 'out-after'");
  assertStringIncludes(hintOf(3), "or others have joined");
});

Deno.test("a node that is down is told what happens next", () => {
  const map = clusterWithDisk(3, 2);
  const hintOf = (map: ClusterMap, part: Partial<ClusterMap["nodes"][number]> = {}) => {
    const changedMs = NOW_MS - 60_000;
    const nodes = map.nodes.with(1, { ...map.nodes[1], state: "down", changedMs, ...part });
    const problems = findProblems(clusterSeen({ ...map, nodes }));
    return problems.find(({ code }) => code === "node-down")!.hint;
  };
  // Three copies on three nodes: there is nobody else.
  for (const availability of ["in", "out"] as const) {
    const hint = hintOf(clusterWithDisk(3, 3), { availability });
    assertStringIncludes(hint, "no other one takes its copies");
    assertEquals(hint.includes("elsewhere"), false);
  }
  // Of what has one copy nothing can be made anew.
  for (const nothing of [clusterOf(3), clusterWithDisk(3, 1)]) {
    const hint = "start it, or 'kelpie node remove host-2 --force' if it is gone for good";
    assertEquals(hintOf(nothing), hint);
  }
  const both =
    run(map, { kind: "create-disk", name: "db", sizeBytes: 2 ** 30, nowMs: 0, copies: 3 }).map;
  assertStringIncludes(hintOf(both), "made anew elsewhere where other nodes take them in 9 min");
  const at = (changedMs: number, part: Partial<ClusterMap["nodes"][number]> = {}) => {
    const nodes = map.nodes.with(1, { ...map.nodes[1], state: "down", changedMs, ...part });
    return findProblems(clusterSeen({ ...map, nodes })).find(({ code }) => code === "node-down")!;
  };
  assertStringIncludes(at(NOW_MS - 60_000).hint, "made anew elsewhere in 9 min");
  assertStringIncludes(at(NOW_MS - 3_600_000).hint, "'kelpie node remove host-2 --force'");
  assertStringIncludes(
    at(NOW_MS - 60_000, { availability: "out" }).hint,
    "are made anew elsewhere;",
  );
  assertStringIncludes(at(NOW_MS + 5000).message, "for 0 ms");
  assertEquals(at(NOW_MS).node, "host-2");
});

Deno.test("only so many waiting disks are problems of their own", () => {
  const waiting = Array.from({ length: 20 }, (_, index) => ({
    disk: `disk-${index}`,
    node: 1,
    reason: "x",
  }));
  const problems = findProblems(clusterSeen(clusterWithDisk(2, 2), { waiting }));
  assertEquals(problems.length, 9);
  assertEquals(problems[8].message, "requests of 12 more disks wait");
});

Deno.test("a node that is drained and data that was given up are notes", () => {
  const map = clusterWithDisk(2, 1);
  assertEquals(findNotes(map), []);
  const draining = run(map, { kind: "set-availability", node: 2, availability: "draining" }).map;
  assertEquals(findNotes(draining), []);
  const pgs = draining.pools[0].pgs.map((pg) => ({ ...pg, target: [1], inSync: [1] }));
  const drained = { ...draining, pools: [{ ...draining.pools[0], pgs }] };
  assertStringIncludes(
    findNotes(drained).join(),
    "node host-2 is drained: 'kelpie node remove host-2'",
  );
  const lost = runAll(
    map,
    { kind: "node-down", node: 2, incarnation: 1, nowMs: 1 },
    { kind: "remove-node", node: 2, force: true, acceptLoss: true, nowMs: 86_400_000 },
  );
  assertStringIncludes(
    findNotes(lost).join(),
    "on 1970-01-02 the only copy of 128 placement groups",
  );
});

Deno.test("who waits for a lease is told who holds it", () => {
  const [problem] = findProblems(seenWith({}, {
    web: [
      sessionWith({ pid: 1, readOnly: true }),
      sessionWith({ pid: 2 }),
      sessionWith({ pid: 3, active: false, waitingForLease: true }),
    ],
  }));
  assertStringIncludes(problem.message, "(pid 3) waits");
  assertStringIncludes(problem.message, "(pid 2) holds");
  assertEquals(problem.disk, "web");
});

Deno.test("damage names the first blocks, and the disk when it is only one", () => {
  const damage = [0, 4096, 8192, 12288].map((offsetBytes) => ({ disk: "web", offsetBytes }));
  const [one] = findProblems(seenWith({ damagedBlocks: 4, damage }));
  assertEquals(
    one.message,
    "4 blocks cannot be read: web at 0, web at 4096, web at 8192, 1 more",
  );
  assertEquals(one.disk, "web");
  const [cut] = findProblems(seenWith({ damagedBlocks: 900, damage }));
  assertEquals(cut.disk, undefined, "the blocks that are not listed may be another disk's");
  const [gone] = findProblems(
    seenWith({ damagedBlocks: 1, damage: [{ disk: "", offsetBytes: 7 }] }),
  );
  assertEquals(gone.message, "1 block cannot be read: a deleted disk at 7");
  assertEquals(gone.disk, undefined);
});

Deno.test("the worst comes first and the summary counts the rest", () => {
  const seen = seenWith({ failed: "EIO", full: true, damagedBlocks: 1 }, {
    web: [sessionWith({ waitingForLease: true })],
  });
  assertEquals(codesOf(seen), ["store-failed", "damage", "store-full", "lease-waiting"]);
  assertEquals(
    summarize(seen, findProblems(seen)),
    "the store /var/lib/kelpie/kelpie.store has stopped: EIO; and 3 more problems",
  );
});

Deno.test("nothing is healthy while anything waits, is full, broken, damaged or silent", () => {
  const random = new Prng(20);
  for (let round = 0; round < 2000; round++) {
    const chance = () => random.below(5) === 0;
    const session = sessionWith({
      waitingForLease: chance(),
      broken: chance() ? "x" : null,
      active: chance(),
    });
    const store = {
      full: chance(),
      waitingWrites: chance() ? 1 + random.below(9) : 0,
      failed: chance() ? "x" : null,
      damagedBlocks: chance() ? 1 : 0,
      damagedRecords: chance() ? 1 : 0,
    };
    const isSilent = chance();
    const seen = seenWith(chance() ? null : store, {
      web: isSilent ? "silent" : [sessionWith(), session],
    });
    const isWrong = isSilent || session.waitingForLease || session.broken !== null ||
      seen.store === null || store.full || store.waitingWrites > 0 || store.failed !== null ||
      store.damagedBlocks > 0 || store.damagedRecords > 0;
    const problems = findProblems(seen);
    assertEquals(problems.length > 0, isWrong);
    assertEquals(summarize(seen, problems).startsWith("healthy"), !isWrong);
  }
});

Deno.test("no cluster is healthy while a PG lacks, moves or waits, a node is gone, or there is no quorum", () => {
  const random = new Prng(21);
  const base = clusterWithDisk(4, 3);
  let healthy = 0;
  for (let round = 0; round < 500; round++) {
    const chance = () => random.below(6) === 0;
    const { target, inSync } = group(base);
    let map = base;
    const [lacks, moves, waits, gone, full] = [chance(), chance(), chance(), chance(), chance()];
    if (lacks) map = withGroup(map, { inSync: inSync.slice(1) });
    if (moves) map = withGroup(map, { target: [target[0]], inSync: target });
    if (waits) map = withGroup(map, { unclean: [map.pools[0].pgs[0].inSync[0]] });
    if (gone) map = run(map, { kind: "node-down", node: 3, incarnation: 1, nowMs: 0 }).map;
    const hasQuorum = !chance();
    const isSilent = chance();
    const waiting = chance() ? [{ disk: "web", node: 1, reason: "x" }] : [];
    const seen = clusterSeen(map, { hasQuorum, waiting }, {
      2: { gossip: isSilent ? "suspect" : "alive", isFull: full },
    });
    const isWrong = lacks || moves || waits || gone || full || !hasQuorum || isSilent ||
      waiting.length > 0;
    const problems = findProblems(seen);
    assertEquals(problems.length > 0, isWrong, `round ${round}`);
    assertEquals(summarize(seen, problems).startsWith("healthy"), !isWrong);
    if (!isWrong) healthy++;
  }
  assertEquals(healthy > 20, true);
});

/** A cluster of four at level 2, two of its nodes in zone a, with these disks there, and one that may be anywhere. */
function zoned(...names: string[]): ClusterMap {
  const inA = [1, 2].map((node) => ({ kind: "set-zone", node, zone: "a" }) as const);
  const { nodes, ...map } = clusterWithDisk(4, 2);
  const create = {
    kind: "create-disk",
    sizeBytes: 512,
    nowMs: 0,
    copies: 2,
    zones: ["a"],
  } as const;
  return runAll(
    { ...map, nodes: nodes.map((node) => ({ ...node, protocol: 2 })), level: 2 },
    ...inA,
    ...names.map((name) => ({ ...create, name })),
  );
}

Deno.test("a zone of which no node takes data is a problem of its disks, fewer nodes than copies are a note", () => {
  const out = (node: number) =>
    ({ kind: "set-availability", node, availability: "draining" }) as const;
  const map = zoned("db");
  assertEquals([codesOf(clusterSeen(map)), findNotes(map)], [[], []]);
  const one = runAll(map, { kind: "set-zone", node: 2, zone: "b" });
  assertEquals(codesOf(clusterSeen(one)), []);
  assertEquals(findNotes(one), [
    "disk db: zone a has 1 node that takes data, too few for 2 copies",
  ]);
  assertStringIncludes(
    summarize(clusterSeen(one), []),
    "all copies in place (1 of 2 in a: there are no more nodes for them)",
  );
  const none = runAll(one, { kind: "set-zone", node: 1, zone: "b" });
  const [problem, ...more] = findProblems(clusterSeen(none));
  assertEquals([more, findNotes(none)], [[], []]);
  assertEquals([problem.code, problem.disk], ["zones-empty", "db"]);
  assertEquals(
    problem.message,
    "disk db: no node of zone a takes data, so all stays where it is",
  );
  assertStringIncludes(problem.hint, "'kelpie disk set db --zones any' lets it be anywhere");
  // A drain of the last of them waits, and says for what.
  const drained = findProblems(clusterSeen(runAll(zoned("db"), out(1), out(2))));
  assertEquals(drained.map(({ code }) => code), ["zones-empty", "moving", "moving"]);
  assertStringIncludes(drained[1].hint, "too few other nodes of zone a take data: add a node");
  // The same where a disk is on its way there.
  const going = runAll(zoned(), { kind: "set-copies", name: "web", zones: ["a"] }, out(1), out(2));
  const drains = findProblems(clusterSeen(going)).filter(({ node }) => node === "host-1");
  assertStringIncludes(drains[0].hint, "too few other nodes of zone a take data");
  // Many disks, and those that are only in the trash.
  const many = runAll(
    zoned("a1", "a2", "a3", "a4", "a5", "a6"),
    { kind: "set-zone", node: 1, zone: "" },
    { kind: "set-zone", node: 2, zone: "" },
  );
  assertStringIncludes(
    findProblems(clusterSeen(many))[0].message,
    "disks a1, a2, a3, a4 and 2 more: no",
  );
  const trashed = runAll(none, { kind: "delete-disk", name: "db", trashedMs: 1 });
  assertStringIncludes(findProblems(clusterSeen(trashed))[0].message, "disks in the trash: no");
  // A disk that is leaving is no problem of that zone any more.
  const leaving = runAll(none, { kind: "set-copies", name: "db", zones: [] });
  const [moving] = findProblems(clusterSeen(leaving));
  assertEquals(moving.code, "moving");
  assertStringIncludes(moving.message, "disk db: copies 2 in a → 2 anywhere");
  assertStringIncludes(moving.hint, "'kelpie disk set db --zones a' takes it back");
});

/** A disk "web" of a cluster of three at level 2, with two copies, that node 2 has open. */
function openDisk(): ClusterMap {
  return runAll(
    { ...clusterWithDisk(3, 2), level: 2 },
    { kind: "take-lease", id: 1, node: 2, incarnation: 1 },
  );
}

Deno.test("a snapshot that takes long is named, with the node that it waits for", () => {
  const create = (nowMs: number) =>
    ({ kind: "create-snapshots", disks: [1], name: "monday", nowMs }) as const;
  assertEquals(codesOf(clusterSeen(run(openDisk(), create(NOW_MS - 5000)).map)), []);
  const map = run(openDisk(), create(NOW_MS - 6000)).map;
  const [problem, ...more] = findProblems(clusterSeen(map));
  assertEquals(more, []);
  assertEquals([problem.code, problem.disk], ["snapshot-waiting", "web"]);
  assertEquals(
    problem.message,
    "snapshot web@monday is being taken for 6 s: node host-2, where it is open, has yet to finish " +
      "what came before",
  );
  const [{ taking }] = map.disks[0].snapshots;
  const givenUp = run(map, { kind: "abort-snapshots", taking }).map;
  assertStringIncludes(
    findProblems(clusterSeen(givenUp))[0].message,
    "a snapshot of disk web was given up, and another one has to wait: node host-2",
  );
  const left = runAll(givenUp, { kind: "force-release-lease", id: 1, generation: 1 });
  assertStringIncludes(findProblems(clusterSeen(left))[0].message, "not closed in good order");
});

Deno.test("one that waits for another that was begun with it says so", () => {
  const map = runAll(
    openDisk(),
    { kind: "create-disk", name: "db", sizeBytes: 512, nowMs: 1, copies: 2 },
    { kind: "create-snapshots", disks: [1, 2], name: "monday", nowMs: 1 },
  );
  const messages = findProblems(clusterSeen(map)).map(({ message }) => message);
  assertEquals(messages.length, 2);
  assertStringIncludes(
    messages[0],
    "db@monday is being taken for 1 d 4 h: it was begun with that of web",
  );
});

Deno.test("a late schedule is named, and why it has taken nothing", () => {
  const HOUR_MS = 3_600_000;
  const schedule = (name: string) =>
    ({
      kind: "set-schedule",
      disk: "web",
      name,
      everyMs: HOUR_MS,
      keep: 1,
      keepDaily: 0,
      keepWeekly: 0,
      keepMonthly: 0,
      nowMs: 10 * HOUR_MS,
    }) as const;
  const at = (map: ClusterMap, nowMs: number) => findProblems({ ...clusterSeen(map), nowMs });
  const map = run(openDisk(), schedule("hourly")).map;
  const lateMs = 11 * HOUR_MS + 60_000;
  assertEquals(at(map, lateMs), []);
  const [problem] = at(map, lateMs + 1);
  assertEquals([problem.code, problem.disk], ["schedule-late", "web"]);
  assertStringIncludes(
    problem.message,
    "schedule hourly of disk web has taken no snapshot since 1970-01-01T10:00:00.000Z: no leader",
  );
  const unclean = run(map, { kind: "force-release-lease", id: 1, generation: 1 }).map;
  assertStringIncludes(at(unclean, lateMs + 1)[0].message, "disk web was not closed in good order");
  const taking = run(map, {
    kind: "create-snapshots",
    disks: [1],
    name: "hourly-19700101T110000Z",
    nowMs: lateMs,
  }).map;
  assertStringIncludes(at(taking, lateMs + 1)[0].message, "node host-2, where it is open");
  const [{ layer }] = taking.disks[0].snapshots;
  const done = run(taking, { kind: "snapshot-taken", id: 1, layer, generation: 1 }).map;
  assertEquals(at(done, lateMs + 1), []);

  const many = runAll(
    openDisk(),
    ...["a", "b", "c", "d", "e", "f", "g", "h"].map((name) => schedule(name)),
    { kind: "create-disk", name: "zoo", sizeBytes: 512, nowMs: 1, copies: 2 },
    { ...schedule("x"), disk: "zoo" },
    { ...schedule("y"), disk: "zoo" },
  );
  const all = at(many, lateMs + 1);
  assertEquals(all.length, 9);
  assertEquals(all[8].message, "2 more schedules are late");
});

Deno.test("layers that only nodes that are down keep are a problem that names them", () => {
  let map = runAll(
    { ...clusterWithDisk(3, 2), level: 2 },
    { kind: "create-snapshots", disks: [1], name: "monday", nowMs: 1 },
    { kind: "node-down", node: 3, incarnation: 1, nowMs: 1 },
    { kind: "delete-snapshot", disk: "web", name: "monday" },
  );
  const layersOf = (map: ClusterMap) =>
    findProblems(clusterSeen(map)).filter(({ code }) => code === "layers-waiting");
  assertEquals(layersOf(map), []);
  map = runAll(
    map,
    { kind: "absorbed", node: 1, incarnation: 1, layers: [1] },
    { kind: "absorbed", node: 2, incarnation: 1, layers: [1] },
  );
  const [problem] = layersOf(map);
  assertEquals(problem.node, "host-3");
  assertEquals(
    problem.message,
    "1 deleted snapshot cannot be merged until node host-3 is back or removed",
  );
  assertEquals(layersOf(run(map, nodeUp(3, { protocol: 2 })).map), []);
});

Deno.test("a clone that cannot be made independent is a problem that says why, unless somebody gets on", () => {
  let map = runAll(
    { ...clusterWithDisk(3, 2), level: 2 },
    { kind: "create-snapshots", disks: [1], name: "monday", nowMs: 1 },
    { kind: "clone-disk", disk: "web", snapshot: "monday", name: "copy", nowMs: 1 },
    { kind: "flatten-disk", disk: "copy" },
    { kind: "node-down", node: 3, incarnation: 1, nowMs: 1 },
  );
  const seen = (stuck: string | null) => {
    const all = clusterSeen(map);
    const cluster = all.cluster!;
    const nodes = cluster.nodes.map((node) =>
      node.id === 2 ? { ...node, flattenStuck: stuck } : node
    );
    return findProblems({ ...all, cluster: { ...cluster, nodes } })
      .filter(({ code }) => code === "flatten-waiting");
  };
  assertEquals(seen(null), []);
  const [layer] = map.disks.find(({ name }) => name === "copy")!.layers;
  const flattened = { kind: "flattened", incarnation: 1, layers: [layer] } as const;
  map = run(map, { ...flattened, node: 1, epoch: map.epoch }).map;
  assertEquals(seen(null), []);
  const [problem] = seen("its store is nearly full");
  assertEquals(
    problem.message,
    "disk copy cannot be made independent: node host-2: its store is nearly full; node host-3 is down",
  );
  assertEquals(problem.disk, "copy");
});

Deno.test("nodes of different versions are worth a note, one version is not", () => {
  const map = clusterWithDisk(3, 2);
  assertEquals(findNotes(map), []);
  const nodes = map.nodes.map((node) => node.id === 2 ? { ...node, version: "2.0.0" } : node);
  const [note, ...others] = findNotes({ ...map, nodes });
  assertEquals(others, []);
  assertEquals(note.startsWith("nodes run different versions (1.0.0, 2.0.0): "), true, note);
});

Deno.test("copies that nodes do not take are not called in place, and a note says why", () => {
  const changes: [Record<string, number | string>, string][] = [
    [{ weight: 0 }, "only 2 nodes take data, too few for 3 copies"],
    [{ availability: "draining" }, "only 2 nodes take data, too few for 3 copies"],
  ];
  for (const [part, note] of changes) {
    const map = clusterWithDisk(3, 3);
    const nodes = map.nodes.map((node) => node.id === 3 ? { ...node, ...part } : node);
    const pools = map.pools.map((pool) => {
      const changed = { ...map, nodes };
      const targets = new Map(targetChanges(changed, pool));
      const pgs = pool.pgs.map((pg, index) => {
        const target = targets.get(index) ?? pg.target;
        return { ...pg, target, inSync: target };
      });
      return { ...pool, pgs };
    });
    const seen = clusterSeen({ ...map, nodes, pools });
    assertEquals(findProblems(seen), []);
    assertStringIncludes(
      summarize(seen, []),
      "all copies in place (2 of 3: no more nodes take data)",
    );
    const notes = findNotes(seen.map).filter((line) => line.startsWith("disk web: "));
    assertEquals(notes.length, 1);
    assertStringIncludes(notes[0], note);
  }
  // Where there are not that many nodes at all, the summary says so.
  assertEquals(findNotes(clusterWithDisk(2, 3)), []);
});
