import { assert, assertEquals } from "@std/assert/mod.js";
import { HAND_OVER_MS, LeaderDuties, type LeaderSituation } from "../../agent/control/leader.ts";
import { EMPTY_REPORT, type NodeReport } from "../../agent/control/messages.ts";
import type { MemberView } from "../../agent/gossip/gossip.ts";
import {
  apply,
  type ClusterMap,
  type MapCommand,
  type NodeEntry,
  type PgEntry,
  poolOf,
  ZONED_POOLS_MAX,
  zonesOf,
} from "../../agent/map/map.ts";
import { weightOf } from "../../agent/map/targets.ts";
import { zonedPools } from "../../agent/map/zones.ts";
import { atLevelTwo, clusterOf, runAll } from "../map/cluster.ts";
import { mapOf } from "../replication/harness.ts";

/** A cluster of so many nodes of which nothing has to be done: targets as placement wants them, all in sync, voters shown. */
class Fixture {
  readonly duties = new LeaderDuties();
  map: ClusterMap;
  nowMs = 10_000;
  wallMs = 1e12;
  readonly members = new Map<string, MemberView>();
  readonly reports = new Map<number, NodeReport>();

  constructor(nodes: number) {
    this.map = { ...mapOf({ nodes }), voters: [1], disks: [] };
    for (const { id } of this.map.nodes) this.member(id, "alive");
    this.settle();
    this.look();
  }

  /** Targets as placement wants them, with everything there. */
  settle(): void {
    for (let i = 0; i < 20; i++) {
      const decided = this.duties.look(this.situation());
      const placed = decided.commands.filter(({ kind }) => kind === "set-targets");
      if (placed.length === 0) break;
      this.#place(placed);
    }
  }

  #place(commands: readonly MapCommand[]): void {
    for (const command of commands) {
      if (command.kind !== "set-targets") continue;
      const targets = new Map(command.changes);
      this.pgs((entry, pg) => {
        const target = targets.get(pg);
        return target === undefined ? entry : { ...entry, target, inSync: target };
      });
    }
    this.map = { ...this.map, targetsEpoch: this.map.targetsEpoch + 1 };
  }

  pgs(change: (entry: PgEntry, pg: number) => PgEntry): void {
    const pools = this.map.pools.map((pool) => ({ ...pool, pgs: pool.pgs.map(change) }));
    this.map = { ...this.map, pools };
  }

  /** Changes one placement group, and only that. */
  pg(at: number, part: Partial<PgEntry>): void {
    this.pgs((entry, pg) => pg === at ? { ...entry, ...part } : entry);
  }

  node(id: number, part: Partial<NodeEntry>): void {
    const nodes = this.map.nodes.map((node) => node.id === id ? { ...node, ...part } : node);
    this.map = { ...this.map, nodes };
  }

  member(id: number, state: MemberView["state"], agentIncarnation = 1): void {
    const { uuid, address } = this.map.nodes.find((node) => node.id === id)!;
    const view = { uuid, address, state, agentIncarnation } as Partial<MemberView> as MemberView;
    this.members.set(uuid, view);
  }

  forget(id: number): void {
    this.members.delete(this.map.nodes.find((node) => node.id === id)!.uuid);
  }

  report(by: number, part: Partial<NodeReport>): void {
    this.reports.set(by, { ...EMPTY_REPORT, epoch: this.map.epoch, ...part });
  }

  situation(): LeaderSituation {
    const ids = this.map.nodes.map(({ id }) => id);
    return {
      map: this.map,
      self: 1,
      raft: {
        commit: 5,
        configurationIndex: 1,
        configuration: { voters: [1], learners: ids.filter((id) => id !== 1) },
        // Not heard of lately: nobody is made a voter here.
        members: [],
      } as Partial<LeaderSituation["raft"]> as LeaderSituation["raft"],
      nowMs: this.nowMs,
      wallMs: this.wallMs,
      members: this.members,
      reports: this.reports,
    };
  }

  /** What is proposed now, in short. */
  look(): string[] {
    return this.duties.look(this.situation()).commands.map(short);
  }

  pass(ms: number): void {
    this.nowMs += ms;
    this.wallMs += ms;
  }
}

function short(command: MapCommand): string {
  switch (command.kind) {
    case "node-down":
      return `down ${command.node} ${command.incarnation}`;
    case "set-availability":
      return `${command.availability} ${command.node}`;
    case "drop-unclean":
      return `drop-unclean ${command.node} of ${command.pgs}`;
    case "unsettle":
    case "trim":
      return `${command.kind} ${command.pgs}`;
    case "start-joining":
      return `join ${command.node} to ${command.pgs}`;
    case "drop-member":
      return `drop ${command.node} for ${command.by}`;
    case "raise-level":
      return `level ${command.level}`;
    default:
      return command.kind;
  }
}

Deno.test("a cluster that is well needs nothing", () => {
  assertEquals(new Fixture(4).look(), []);
});

// ------------------------------------------------------------------------------------- who is alive

Deno.test("who gossip says is dead or has left is taken out of the map", () => {
  for (const state of ["dead", "left"] as const) {
    const at = new Fixture(4);
    at.member(3, state);
    assertEquals(at.look(), ["down 3 1"]);
  }
  const at = new Fixture(4);
  at.member(3, "suspect");
  assertEquals(at.look(), []);
});

Deno.test("news about another start than the one in the map says nothing about this one", () => {
  const at = new Fixture(4);
  at.node(3, { incarnation: 2 });
  at.member(3, "dead", 1);
  assertEquals(at.look(), []);
  at.member(3, "dead", 2);
  assertEquals(at.look(), ["down 3 2"]);
});

Deno.test("of which gossip knows only how an earlier start ended is dead after five seconds without a word", () => {
  for (const state of ["dead", "left"] as const) {
    const at = new Fixture(4);
    at.node(3, { incarnation: 2 });
    at.member(3, state, 1);
    for (let i = 0; i < 10; i++) {
      at.report(3, {});
      assertEquals(at.look(), [], "it reports");
      at.pass(1000);
    }
    at.reports.delete(3);
    at.pass(3999);
    assertEquals(at.look(), []);
    at.pass(1);
    assertEquals(at.look(), ["down 3 2"]);
  }
});

Deno.test("a node of the map that gossip does not know is dead after five seconds", () => {
  const at = new Fixture(4);
  at.forget(3);
  assertEquals(at.look(), []);
  at.pass(4999);
  assertEquals(at.look(), []);
  at.pass(1);
  assertEquals(at.look(), ["down 3 1"]);
});

Deno.test("a node that is down for long enough is out, and in again when it is back; a draining one stays so", () => {
  const at = new Fixture(4);
  at.node(3, { state: "down", changedMs: at.wallMs });
  at.member(3, "dead");
  at.pass(at.map.settings.outAfterMs - 1);
  assertEquals(at.look(), []);
  at.pass(1);
  assertEquals(at.look(), ["out 3"]);
  at.node(3, { availability: "out" });
  assertEquals(at.look().filter((command) => command !== "set-targets"), []);
  at.node(3, { state: "up", changedMs: at.wallMs });
  at.member(3, "alive");
  assertEquals(at.look().slice(0, 1), ["in 3"]);
  at.node(3, { availability: "draining", state: "down", changedMs: 0 });
  assertEquals(at.look().filter((command) => /^(in|out) /.test(command)), []);
});

Deno.test("the brake: when a third of the nodes is down together nobody is declared out", () => {
  const at = new Fixture(6);
  const fail = (id: number) => {
    at.node(id, { state: "down", changedMs: at.wallMs });
    at.member(id, "dead");
  };
  fail(5);
  fail(6);
  at.pass(at.map.settings.outAfterMs * 2);
  const decided = at.duties.look(at.situation());
  assertEquals(decided.commands.map(short), []);
  assertEquals(decided.notes, ["2 of 6 nodes are down together: none is declared out"]);
  assertEquals(at.duties.look(at.situation()).notes, [], "said once");
  at.node(5, { state: "up", changedMs: at.wallMs });
  at.member(5, "alive");
  assertEquals(at.look(), ["out 6"]);
});

Deno.test("a node that was drained and switched off is no part of the brake, as long as it has no data", () => {
  const at = new Fixture(6);
  at.node(6, { availability: "draining", state: "down", changedMs: at.wallMs });
  at.member(6, "dead");
  at.node(5, { state: "down", changedMs: at.wallMs });
  at.member(5, "dead");
  at.pass(at.map.settings.outAfterMs);
  const outs = () => at.look().filter((command) => command.startsWith("out "));
  assertEquals(outs(), [], "it has data still");
  at.pgs((entry) => {
    const others = [1, 2, 3, 4].filter((id) => !entry.inSync.includes(id));
    const ids = entry.inSync.map((id) => id === 6 ? others.shift()! : id);
    return { ...entry, target: ids, inSync: ids };
  });
  assertEquals(outs(), ["out 5"]);
});

Deno.test("one node of two is out in time: a single failure is no brake", () => {
  const at = new Fixture(2);
  at.node(2, { state: "down", changedMs: at.wallMs });
  at.member(2, "dead");
  at.pass(at.map.settings.outAfterMs);
  assertEquals(at.look(), ["out 2"]);
});

// ---------------------------------------------------------------------------------- who holds data

Deno.test("with a clean replica alive the unclean ones are dropped, to join again", () => {
  const at = new Fixture(3);
  at.pg(7, { unclean: [2, 3] });
  assertEquals(at.look(), ["drop-unclean 2 of 7", "drop-unclean 3 of 7"]);
});

Deno.test("a clean replica that is not known to be alive decides nothing yet", () => {
  const at = new Fixture(3);
  at.pg(7, { inSync: [2, 3], unclean: [2] });
  at.member(3, "suspect");
  assertEquals(at.look(), []);
  // Known alive, but another start than the map's.
  at.member(3, "alive", 2);
  assertEquals(at.look(), []);
});

Deno.test("when every clean replica is down the unclean ones have to agree", () => {
  const at = new Fixture(3);
  at.pg(7, { unclean: [2, 3] });
  at.node(1, { state: "down", changedMs: at.wallMs });
  at.member(1, "dead");
  assertEquals(at.look(), ["unsettle 7"]);
  at.pg(7, { unsettled: true });
  assertEquals(at.look(), [], "under way");
  const all = new Fixture(3);
  all.pg(7, { unclean: [1, 2, 3] });
  assertEquals(all.look(), ["unsettle 7"]);
});

Deno.test("who belongs to a group and is up joins it", () => {
  const at = new Fixture(3);
  at.pg(7, { inSync: [1, 2] });
  at.pg(9, { inSync: [1, 2] });
  assertEquals(at.look(), ["join 3 to 7,9"]);
  at.pg(7, { joining: [3], joinedEpochs: [9] });
  assertEquals(at.look(), ["join 3 to 9"]);
  at.node(3, { state: "down", changedMs: at.wallMs });
  at.member(3, "dead");
  assertEquals(at.look(), []);
});

Deno.test("nobody joins a group of which no replica is up, nor one that is to be settled", () => {
  const at = new Fixture(3);
  at.pg(7, { inSync: [2] });
  at.node(2, { state: "down", changedMs: at.wallMs });
  at.member(2, "dead");
  assertEquals(at.look(), []);
  const unsettled = new Fixture(3);
  unsettled.pg(7, { inSync: [2], unclean: [2], unsettled: true });
  assertEquals(unsettled.look(), []);
});

Deno.test("members outside the target go once all of the target is in sync", () => {
  const at = new Fixture(4);
  const [entry] = at.map.pools[0].pgs;
  const other = [1, 2, 3, 4].find((id) => !entry.target.includes(id))!;
  at.pg(0, {
    inSync: [...entry.target.slice(1), other],
    joining: [entry.target[0]],
    joinedEpochs: [1],
  });
  assertEquals(at.look(), []);
  at.pg(0, { inSync: [...entry.target, other], joining: [], joinedEpochs: [] });
  assertEquals(at.look(), ["trim 0"]);
});

Deno.test("nobody who has data goes, and no family arrives, while a removed node has left gaps in targets", () => {
  const create = { kind: "create-disk", sizeBytes: 2 ** 30, nowMs: 0 } as const;
  const at = new Fixture(6);
  let map = runAll(
    atLevelTwo(clusterOf(6)),
    { ...create, name: "one", copies: 1 },
    { ...create, name: "two", copies: 2 },
    { ...create, name: "three", copies: 3 },
  );
  const fewest = () =>
    map.pools.filter(({ id }) => id > 1).map(({ pgs }) =>
      Math.min(...pgs.map(({ inSync }) => inSync.length))
    );
  const kindsOf = (commands: readonly MapCommand[]) => new Set(commands.map(({ kind }) => kind));
  /** The leader's next commands, as the map takes them. */
  const lead = () => {
    at.map = { ...map, voters: [1] };
    const { commands } = at.duties.look(at.situation());
    map = runAll(map, ...commands);
    return kindsOf(commands);
  };
  const copied = () => {
    for (const { id: pool, pgs } of map.pools) {
      for (const { id: node, incarnation } of map.nodes) {
        const joining = pgs.flatMap(({ joining }, pg) => joining.includes(node) ? [pg] : []);
        if (joining.length === 0) continue;
        const basedOnEpoch = map.epoch;
        map = runAll(map, { kind: "in-sync", pool, pgs: joining, node, incarnation, basedOnEpoch });
      }
    }
  };
  for (const { id } of map.nodes) at.member(id, "alive");
  const rest = () => {
    for (let look = 0; look < 40; look++) {
      lead();
      copied();
    }
  };
  rest();
  assertEquals(fewest(), [2, 3]);
  // What is on node 6 moves away, and disk one is to have two copies, when node 5 fails for good.
  map = runAll(
    map,
    { kind: "set-availability", node: 6, availability: "draining" },
    { kind: "set-copies", name: "one", copies: 2 },
  );
  for (let look = 0; look < 40; look++) lead();
  map = runAll(map, { kind: "node-down", node: 5, incarnation: 1, nowMs: at.wallMs });
  at.member(5, "dead");
  copied();
  const before = fewest();
  map = runAll(map, { kind: "remove-node", node: 5, force: true, acceptLoss: true, nowMs: 1 });
  const kinds = lead();
  assertEquals([kinds.has("set-targets"), kinds.has("trim"), kinds.has("finish-copies")], [
    true,
    false,
    false,
  ]);
  for (let look = 0; look < 40; look++) {
    lead();
    assert(fewest().every((copies, pool) => copies >= before[pool]), `${fewest()} of ${before}`);
  }
  rest();
  assertEquals(fewest(), [2, 3]);
  assertEquals(map.pools.every(({ family }) => family === 0), true);
  assertEquals(map.pools.some(({ pgs }) => pgs.some(({ target }) => target.includes(6))), false);
});

Deno.test("a family does not arrive with fewer copies than it had because a node was removed on its way", () => {
  const at = new Fixture(5);
  for (const { id } of at.map.nodes) at.member(id, "alive");
  const zones = ["a", "a", "b", "b", "b"];
  const nodes = clusterOf(5).nodes.map((node, index) => ({ ...node, zone: zones[index] }));
  const create = { kind: "create-disk", sizeBytes: 2 ** 30, nowMs: 0, copies: 2 } as const;
  let map = runAll(
    atLevelTwo({ ...clusterOf(5), nodes }),
    { ...create, name: "other" },
    { ...create, name: "web", zones: ["a"] },
  );
  const lead = (looks: number) => {
    for (let look = 0; look < looks; look++) {
      at.map = { ...map, voters: [1] };
      map = runAll(map, ...at.duties.look(at.situation()).commands);
    }
  };
  const copied = (...ids: number[]) => {
    for (const { id: pool, pgs } of map.pools) {
      for (const node of ids) {
        const joining = pgs.flatMap(({ joining }, pg) => joining.includes(node) ? [pg] : []);
        const basedOnEpoch = map.epoch;
        map = runAll(map, {
          kind: "in-sync",
          pool,
          pgs: joining,
          node,
          incarnation: 1,
          basedOnEpoch,
        });
      }
    }
  };
  const web = () => map.disks.find(({ name }) => name === "web")!;
  const fewest = () => Math.min(...poolOf(map, web())!.pgs.map(({ inSync }) => inSync.length));
  lead(10);
  map = runAll(map, { kind: "set-copies", name: "web", zones: ["b"] });
  lead(10);
  // Node 5 fails before it has copied anything.
  copied(1, 2, 3, 4);
  map = runAll(
    map,
    { kind: "node-down", node: 5, incarnation: 1, nowMs: at.wallMs },
    { kind: "remove-node", node: 5, force: true, nowMs: 1 },
  );
  for (let look = 0; look < 20; look++) {
    lead(1);
    assertEquals(fewest() >= 2, true, `${fewest()} after ${look} looks`);
  }
  copied(3, 4);
  lead(10);
  assertEquals([zonesOf(map, web()), fewest()], [["b"], 2]);
});

Deno.test("where the target cannot come, members outside it go when there are more than twice as many as copies", () => {
  const at = new Fixture(8);
  const { copies, pgs: [{ target }] } = at.map.pools[0];
  const others = at.map.nodes.map(({ id }) => id).filter((id) => !target.includes(id));
  // Its store has no room: it does not join.
  at.report(target[0], { isFull: true });
  const crowd = (some: number) =>
    at.pg(0, { inSync: [...target.slice(1), ...others].slice(0, some).toSorted((a, b) => a - b) });
  crowd(2 * copies);
  assertEquals(at.look(), []);
  crowd(2 * copies + 1);
  assertEquals(at.look(), ["trim 0"]);
  const trimmed = apply(at.map, { kind: "trim", pool: at.map.pools[0].id, pgs: [0] });
  assertEquals(trimmed.ok && trimmed.value.map.pools[0].pgs[0].inSync.length, copies);
  // Nobody leaves while a member is down, so nothing is proposed either.
  at.node(others[0], { state: "down", changedMs: at.wallMs });
  assertEquals(at.look(), []);
});

Deno.test("a holder of a lease that cannot reach a member has it dropped, if that goes on for a moment", () => {
  const at = new Fixture(4);
  at.report(2, { unreachable: [3] });
  assertEquals(at.look(), []);
  at.pass(499);
  assertEquals(at.look(), []);
  at.pass(1);
  assertEquals(at.look(), ["drop 3 for 2"]);
  // A complaint that was withdrawn in between begins anew.
  const other = new Fixture(4);
  other.report(2, { unreachable: [3] });
  other.look();
  other.report(2, {});
  other.pass(300);
  other.look();
  other.report(2, { unreachable: [3] });
  other.pass(300);
  assertEquals(other.look(), []);
});

Deno.test("who alone cannot reach several that others reach is not believed, and does not keep them out", () => {
  const at = new Fixture(4);
  for (const by of [1, 3, 4]) at.report(by, {});
  at.report(2, { unreachable: [3, 4], disconnected: [3, 4] });
  const { notes } = at.duties.look(at.situation());
  assertEquals(notes, [`node ${at.map.nodes[1].name} cannot reach nodes that others reach`]);
  at.pass(1000);
  assertEquals(at.look(), []);
  // As soon as somebody else says so, it is true.
  at.report(1, { unreachable: [3], disconnected: [3] });
  at.report(4, { unreachable: [3], disconnected: [3] });
  at.look();
  at.pass(500);
  assertEquals(at.look().includes("drop 3 for 1"), true);
});

Deno.test("a leader that is not wanted as a voter hands over to one that is, once one is ready and keeps up", () => {
  const at = new Fixture(4);
  at.node(1, { availability: "draining" });
  const member = (node: number, silentMs: number, match: number) => ({
    node,
    isLearner: false,
    state: "replicate" as const,
    match,
    silentMs,
    snapshotBytes: 0,
    hasLostLog: false,
  });
  const successor = (silentMs: number, match = 900) => {
    const situation = at.situation();
    const configuration = { voters: [1, 2, 3], learners: [4] };
    const members = [member(2, silentMs, match), member(3, 5000, 900)];
    const raft = { ...situation.raft, commit: 900, configuration, members };
    return at.duties.look({ ...situation, raft }).transferTo;
  };
  assertEquals([successor(5000), successor(10, 100), successor(10)], [0, 0, 2]);
  // It may fail, and proposals wait for as long as it takes.
  at.pass(HAND_OVER_MS - 1);
  assertEquals(successor(10), 0);
  at.pass(1);
  assertEquals(successor(10), 2);
  at.pass(HAND_OVER_MS);
  at.node(1, { availability: "in" });
  assertEquals(successor(10), 0);
});

Deno.test("complaints of nodes that are down, and about oneself, count for nothing", () => {
  const at = new Fixture(4);
  at.node(2, { state: "down", changedMs: at.wallMs });
  at.member(2, "dead");
  at.report(2, { unreachable: [3] });
  at.report(3, { unreachable: [3, 99] });
  at.look();
  at.pass(1000);
  assertEquals(at.look(), []);
});

Deno.test("complaints while somebody is kept out do not keep it out for longer and longer", () => {
  const at = new Fixture(3);
  for (const by of [1, 2, 1, 2]) {
    at.report(by, { unreachable: [3] });
    at.look();
    at.pass(500);
    assertEquals(at.look(), [`drop 3 for ${by}`]);
    at.reports.clear();
  }
  at.pg(7, { inSync: [1, 2] });
  at.pass(4900);
  assertEquals(at.look(), []);
  at.pass(100);
  assertEquals(at.look(), ["join 3 to 7"]);
});

Deno.test("who was dropped joins again after a while, and each time later", () => {
  const at = new Fixture(3);
  const drop = () => {
    at.report(1, { unreachable: [3] });
    at.look();
    at.pass(500);
    assertEquals(at.look(), ["drop 3 for 1"]);
    at.reports.clear();
    at.pg(7, { inSync: [1, 2] });
  };
  const waitMs = () => {
    const startMs = at.nowMs;
    while (at.look().length === 0) at.pass(100);
    assertEquals(at.look(), ["join 3 to 7"]);
    at.pg(7, { inSync: [1, 2, 3] });
    return at.nowMs - startMs;
  };
  const waits: number[] = [];
  for (let i = 0; i < 4; i++) {
    drop();
    waits.push(waitMs());
  }
  assertEquals(waits, [5000, 10_000, 20_000, 40_000]);
  at.pass(31 * 60_000);
  drop();
  assertEquals(waitMs(), 5000, "forgiven");
});

Deno.test("who has no connection to a holder of leases, or no room, does not join", () => {
  const at = new Fixture(3);
  const { epoch } = at.map;
  at.pg(7, { inSync: [1, 2] });
  at.report(2, { disconnected: [3], epoch });
  assertEquals(at.look(), ["join 3 to 7"], "node 2 holds no lease");
  at.map = { ...at.map, disks: mapOf({ nodes: 3, holder: 2 }).disks };
  assertEquals(at.look(), []);
  at.report(2, { epoch: epoch - 1 });
  assertEquals(at.look(), [], "that is from before node 3 came up, as far as this leader knows");
  at.reports.clear();
  assertEquals(at.look(), [], "nothing is known of the holder's connections");
  at.report(2, { epoch });
  assertEquals(at.look(), ["join 3 to 7"]);
  at.report(3, { epoch, isFull: true });
  assertEquals(at.look(), []);
});

Deno.test("weights are the capacity unless given, and nothing for who is to hold nothing", () => {
  const [node] = mapOf().nodes;
  const table: [Partial<NodeEntry>, number][] = [
    [{}, 1e12],
    [{ weight: 5 }, 5],
    [{ weight: 0 }, 0],
    [{ witness: true }, 0],
    [{ availability: "out" }, 0],
    [{ availability: "draining", weight: 5 }, 0],
    [{ state: "down" }, 1e12],
  ];
  for (const [part, expected] of table) assertEquals(weightOf({ ...node, ...part }), expected);
});

Deno.test("a drain that a disk could not be written without waits until the disk asks for fewer copies", () => {
  const at = new Fixture(3);
  const { disks } = mapOf({ nodes: 3, disk: { copiesMin: 3 } });
  at.map = { ...at.map, disks };
  at.node(3, { availability: "draining" });
  at.map = { ...at.map, targetsEpoch: at.map.targetsEpoch + 1 };
  at.settle();
  for (const { target } of at.map.pools[0].pgs) assertEquals(target.toSorted(), [1, 2, 3]);
  assertEquals(at.look(), []);
  at.map = { ...at.map, disks: disks.map((disk) => ({ ...disk, copiesMin: null })) };
  assertEquals(at.look(), ["set-targets"]);
  at.settle();
  for (const { target } of at.map.pools[0].pgs) assertEquals(target.toSorted(), [1, 2]);
  assertEquals(at.look(), []);
});

/** A cluster at level 2 of so many nodes, three of them in zone a, with a disk of one copy there. */
function withZone(nodes: number): ClusterMap {
  const map = clusterOf(nodes);
  const inA = map.nodes.map((node) => ({ ...node, zone: node.id <= 3 ? "a" : "" }));
  const create = { kind: "create-disk", name: "web", sizeBytes: 512, nowMs: 0, copies: 1 } as const;
  return runAll(atLevelTwo({ ...map, nodes: inA }), { ...create, zones: ["a"] });
}

Deno.test("PGs are split for the nodes of a pool's zones, and not where there would be too many of pools with zones", () => {
  const at = new Fixture(3);
  const splits = (map: ClusterMap) => {
    at.map = { ...map, voters: [1] };
    at.duties.reset();
    return at.look().filter((kind) => kind === "split-groups").length;
  };
  // 40 nodes would have 6 of 256 PGs each; three have 85.
  const zoned = withZone(40);
  assertEquals(splits(zoned), 0);
  const anywhere = runAll(zoned, {
    kind: "create-disk",
    name: "any",
    sizeBytes: 512,
    nowMs: 0,
    copies: 1,
  });
  assertEquals(splits(anywhere), 1);
  const [pool] = zonedPools(anywhere);
  const many = Array.from(
    { length: ZONED_POOLS_MAX - 1 },
    (_, index) => ({ ...pool, id: 900 + index }),
  );
  assertEquals(splits({ ...anywhere, pools: [...anywhere.pools, ...many] }), 1);
  // 8192 PGs may be in eight of them.
  assertEquals(splits({ ...anywhere, pgBits: 12, pools: [...anywhere.pools, ...many] }), 0);
  assertEquals(
    splits({ ...anywhere, pgBits: 12, pools: [...anywhere.pools, ...many.slice(8)] }),
    1,
  );
});

Deno.test("a pool of which nobody takes data, and that is too thin already, keeps no other pool from its places", () => {
  const create = { kind: "create-disk", sizeBytes: 2 ** 30, nowMs: 0, copies: 3 } as const;
  const zones = ["a", "a", "a", "b", "b", "b", "b"];
  const nodes = clusterOf(7).nodes.map((node, at) => ({ ...node, zone: zones[at] }));
  let map = runAll(
    atLevelTwo({ ...clusterOf(7), nodes }),
    { ...create, name: "thin", zones: ["a"] },
    { ...create, name: "other", zones: ["b"] },
  );
  const at = new Fixture(7);
  /** The leader's commands about places, as the map takes them. */
  const lead = () => {
    for (let look = 0; look < 10; look++) {
      at.map = { ...map, voters: [1] };
      const { commands } = at.duties.look(at.situation());
      map = runAll(map, ...commands.filter(({ kind }) => kind === "set-targets"));
    }
  };
  const out = (node: number) => ({ kind: "set-availability", node, availability: "out" }) as const;
  const down = (node: number) =>
    ({ kind: "node-down", node, incarnation: 1, nowMs: at.wallMs }) as const;
  lead();
  // Two of the three hosts of a zone have died; then the last one is to give away what it has.
  map = runAll(map, down(2), down(3), out(2), out(3));
  lead();
  map = runAll(map, { kind: "set-weight", node: 1, weight: 0 });
  lead();
  const [thin, other] = [map.pools.at(-2)!, map.pools.at(-1)!];
  assertEquals([thin.zones, new Set(thin.pgs.map(({ target }) => target.join()))], [
    ["a"],
    new Set(["1"]),
  ]);
  assertEquals(other.pgs.some(({ target }) => target.includes(4)), true);
  map = runAll(map, { kind: "set-availability", node: 4, availability: "draining" });
  lead();
  assertEquals(map.pools.at(-1)!.pgs.some(({ target }) => target.includes(4)), false);
});

Deno.test("targets are computed again when a disk sets out for a pool in which it needs more copies to be written", () => {
  const at = new Fixture(3);
  const disk = { kind: "create-disk", sizeBytes: 512, nowMs: 0 } as const;
  let map = runAll(
    withZone(3),
    { ...disk, name: "two", copies: 2 },
    { ...disk, name: "thin", copies: 3, copiesMin: 1, zones: ["a"] },
    { kind: "set-availability", node: 2, availability: "draining" },
    { kind: "set-availability", node: 3, availability: "draining" },
  );
  const idOf = () => map.disks.find(({ name }) => name === "thin")!.pool;
  const apply = () => {
    at.map = { ...map, voters: [1] };
    for (const command of at.duties.look(at.situation()).commands) {
      if (command.kind === "set-targets") map = runAll(map, command);
    }
  };
  for (let round = 0; round < 6; round++) apply();
  const widths = () =>
    new Set(map.pools.find(({ id }) => id === idOf())!.pgs.map(({ target }) => target.length));
  assertEquals(widths(), new Set([1]), "one copy is enough to write to");
  map = runAll(map, { kind: "change-disk", name: "two", copiesMin: 2 });
  for (let round = 0; round < 6; round++) apply();
  assertEquals(widths(), new Set([1]));
  map = runAll(map, { kind: "set-copies", name: "two", copies: 3, zones: ["a"] });
  for (let round = 0; round < 3; round++) apply();
  assertEquals(widths(), new Set([2]));
});

Deno.test("who leads hands over to a voter that hears the nodes which it does not hear itself", () => {
  const fixture = new Fixture(3);
  const member = (node: number, silentMs: number) => ({
    node,
    silentMs,
    isLearner: false,
    state: "replicate" as const,
    match: 5,
    snapshotBytes: 0,
    hasLostLog: false,
  });
  const transfer = (silentMs: number) => {
    const situation = fixture.situation();
    const raft = {
      ...situation.raft,
      configuration: { voters: [1, 2, 3], learners: [] },
      members: [member(2, silentMs), member(3, 50)],
    };
    return fixture.duties.look({ ...situation, raft }).transferTo;
  };
  fixture.map = { ...fixture.map, voters: [1, 2, 3] };
  assertEquals(transfer(3000), 0, "nothing is known of what the third reaches");
  fixture.report(3, { disconnected: [2] });
  assertEquals(transfer(3000), 0, "the third does not reach it either");
  fixture.report(3, { disconnected: [] });
  assertEquals(transfer(500), 0, "it is heard");
  fixture.member(2, "dead");
  assertEquals(transfer(3000), 0, "it is dead");
  fixture.member(2, "alive");
  assertEquals(transfer(3000), 3);
  assertEquals(transfer(3000), 0, "once in a while only");
  fixture.pass(10_000);
  assertEquals(transfer(3000), 3);
});

Deno.test("a node joins once the holder of a lease has reported, since it came up, that it reaches it", () => {
  const fixture = new Fixture(3);
  fixture.map = {
    ...fixture.map,
    epoch: 100,
    disks: mapOf({ nodes: 3 }).disks.map((disk) => ({
      ...disk,
      lease: { node: 2, incarnation: 1 },
    })),
  };
  assertEquals(fixture.map.disks.length > 0, true);
  const [{ target }] = fixture.map.pools[0].pgs;
  assertEquals(target.includes(3), true);
  fixture.pg(0, { inSync: target.filter((id) => id !== 3) });
  const joins = () => fixture.look().filter((text) => text.startsWith("join"));
  assertEquals(joins(), [], "the holder has not reported");
  fixture.report(2, { epoch: 99 });
  assertEquals(joins(), [], "it has not seen that the node is up");
  fixture.report(2, { epoch: 100, disconnected: [3] });
  assertEquals(joins(), [], "it does not reach it");
  fixture.report(2, { epoch: 100 });
  fixture.report(3, { isFull: true });
  assertEquals(joins(), [], "its store is full");
  fixture.report(3, { isFull: false });
  assertEquals(joins(), ["join 3 to 0"]);
});

Deno.test("who leads says once that a voter has lost its log, and again when it happens again", () => {
  const at = new Fixture(3);
  const look = (hasLostLog: boolean) => {
    const situation = at.situation();
    const member = { node: 2, isLearner: false, state: "probe", match: 0, silentMs: 5 } as const;
    const members = [{ ...member, snapshotBytes: 0, hasLostLog }];
    return at.duties.look({ ...situation, raft: { ...situation.raft, members } }).notes.length;
  };
  assertEquals([false, true, true, false, true].map(look), [0, 1, 0, 0, 1]);
});

Deno.test("the level rises when the last node speaks the next one, also one that is down", () => {
  const fixture = new Fixture(3);
  for (const id of [1, 2]) fixture.node(id, { protocol: 2 });
  assertEquals(fixture.look(), []);
  fixture.node(3, { protocol: 2, state: "down", changedMs: fixture.wallMs });
  assertEquals(fixture.look(), ["level 2"]);
  fixture.map = { ...fixture.map, level: 2 };
  assertEquals(fixture.look(), []);
});

Deno.test("a holder of a lease whose data worker stands still keeps nobody from joining for ever", () => {
  const at = new Fixture(3);
  const disks = mapOf({ nodes: 3, holder: 2 }).disks;
  at.map = { ...at.map, epoch: 100, disks };
  at.pg(7, { inSync: [1] });
  // Node 3 is back; node 2 says the same as before again and again: its disk hangs, and it is not told of new maps.
  at.node(3, { incarnation: 2 });
  at.member(3, "alive", 2);
  const joins = () => at.look().includes("join 3 to 7");
  at.report(2, { epoch: 90 });
  assertEquals(joins(), false, "it may not reach it yet");
  at.pass(60_000);
  assertEquals(joins(), true, "node 1 would never have another copy");
});
Deno.test("a node that went down while the leader's clock was ahead is out in time all the same", () => {
  const at = new Fixture(4);
  // It was eight hours ahead, and has been set since.
  at.node(3, { state: "down", changedMs: at.wallMs + 8 * 3_600_000 });
  at.member(3, "dead");
  assertEquals(at.look(), []);
  at.pass(at.map.settings.outAfterMs);
  assertEquals(at.look(), ["out 3"]);
});

Deno.test("a voter that went down while its clock was ahead is replaced in time all the same", () => {
  const at = new Fixture(4);
  at.node(3, { state: "down", changedMs: at.wallMs + 8 * 3_600_000 });
  at.member(3, "dead");
  const config = () => {
    const situation = at.situation();
    const members = [2, 3, 4].map((node) => ({
      node,
      match: 5,
      silentMs: node === 3 ? 60_000 : 0,
      hasLostLog: false,
      isLearner: node === 4,
      state: "replicate" as const,
      snapshotBytes: 0,
    }));
    const configuration = { voters: [1, 2, 3], learners: [4] };
    return at.duties.look({ ...situation, raft: { ...situation.raft, configuration, members } })
      .config;
  };
  assertEquals(config(), null);
  at.pass(30_000);
  assertEquals(config(), { kind: "promote", node: 4 });
});
