/**
 * A few nodes and what they keep: a level is remembered before anything of it is, also where it comes with another node's map; and
 * what a level brings is refused, with what to do, until every node has gone over to this version.
 *
 * @module
 */
import { Buffer } from "node:buffer";
import { assert, assertEquals } from "@std/assert/mod.js";
import { Prng } from "../../agent/base/prng.ts";
import { Raft } from "../../agent/consensus/raft.ts";
import { LEVEL_MAX } from "../../agent/base/levels.ts";
import { load, type StorageWrite, writeInitial } from "../../agent/consensus/storage.ts";
import { Control, type ControlHost } from "../../agent/control/control.ts";
import { decodeLevel, LEVEL_KEY } from "../../agent/control/level_record.ts";
import { type ControlError, unwrap } from "../../agent/map/errors.ts";
import { foundCluster, type MapCommand, type NodeFacts } from "../../agent/map/map.ts";
import { encodeMap, MAP_VERSION } from "../../agent/map/map_codec.ts";
import { VERSION } from "../../agent/version.ts";
import { addNode } from "../map/cluster.ts";
import { silent } from "../replication/harness.ts";
import { PREVIOUS_LEVEL, PREVIOUS_VERSION, PreviousVersion } from "../upgrade/previous_version.ts";
import { SourceCopy } from "../upgrade/source_copy.ts";

const CLUSTER_ID = "c".repeat(32);

/** Some nodes, by their addresses; messages between them arrive at once. */
class Net {
  readonly nodes = new Map<string, Node>();
  nowMs = 0;

  pass(ms: number): void {
    for (let i = 0; i < ms / 20; i++) {
      this.nowMs += 20;
      for (const node of this.nodes.values()) node.control.tick(this.nowMs);
      for (let isBusy = true; isBusy;) {
        isBusy = false;
        for (const node of this.nodes.values()) isBusy = node.work() || isBusy;
      }
    }
  }
}

class Node {
  control: Control;
  facts: NodeFacts;
  readonly meta = new Map<string, Uint8Array>();
  /** What was kept, in order: "level N", "map N" for the version of an encoded map. */
  readonly kept: string[] = [];
  unfit: string | null = null;
  refused: string | null = null;
  readonly #todo: (() => void)[] = [];
  #runs = 0;

  /** @param build the version of `Control` that it runs */
  constructor(
    readonly net: Net,
    readonly number: number,
    part: Partial<NodeFacts>,
    seeds: string[] = [],
    build = Control,
  ) {
    const { kind: _, ...facts } = addNode(number, part);
    this.facts = facts;
    if (seeds.length === 0) {
      const map = unwrap(foundCluster({ ...facts, protocol: 1, clusterId: CLUSTER_ID }));
      this.#keep(writeInitial(1, Raft.bootstrap(1, unwrap(encodeMap(map)))));
    }
    this.control = this.#build(build, seeds.length === 0 ? 1 : 0, seeds);
    net.nodes.set(facts.address, this);
  }

  /** Its next run, as another version. */
  restart(build: typeof Control, part: Partial<NodeFacts>): void {
    const { node } = this.control;
    this.control.stop();
    this.#todo.length = 0;
    const { kind: _, ...facts } = addNode(this.number, part);
    this.facts = facts;
    this.control = this.#build(build, node, []);
  }

  #build(build: typeof Control, node: number, seeds: readonly string[]): Control {
    const host: ControlHost = {
      log: silent,
      random: new Prng(this.number + 1000 * this.#runs++),
      wallMs: () => 1e12 + this.net.nowMs,
      sendControl: (address, bytes) => {
        const copy = bytes.slice();
        this.#todo.push(() => this.net.nodes.get(address)?.take(this, copy));
      },
      sendGossip() {},
      persist: (writes, done) => {
        this.#keep(writes);
        this.#todo.push(done);
      },
      mapChanged() {},
      started() {},
      renewed() {},
      joined: (node) => {
        this.#keep(writeInitial(node, Raft.joining()));
        const { state, storage } = unwrap(load(this.meta, node))!;
        this.#todo.push(() => {
          this.control.markNewcomer();
          this.control.beginJoined(state, storage);
        });
      },
      joinRefused: (message) => this.refused = message,
      restartWanted() {},
      unfit: (message) => this.unfit = message,
    };
    return new build({
      host,
      node,
      facts: this.facts,
      clean: false,
      raft: node === 0 ? null : unwrap(load(this.meta, node)),
      seeds,
      nowMs: this.net.nowMs,
    });
  }

  #keep(writes: readonly StorageWrite[]): void {
    for (const { key, value } of writes) {
      if (value === null) {
        this.meta.delete(key);
        continue;
      }
      this.meta.set(key, value.slice());
      const at = Buffer.from(value).indexOf("kelpie.map");
      if (at >= 0) this.kept.push(`map ${value[at + 10]}`);
      if (key === LEVEL_KEY) this.kept.push(`level ${decodeLevel(value)!.level}`);
    }
  }

  take(from: Node, bytes: Uint8Array): void {
    this.control.received({
      uuid: from.facts.uuid,
      node: from.control.node,
      incarnation: Math.max(1, from.control.incarnation),
      clusterId: CLUSTER_ID,
      address: from.facts.address,
    }, bytes);
  }

  work(): boolean {
    const todo = this.#todo.splice(0);
    for (const each of todo) each();
    return todo.length > 0;
  }
}

/** A node that leads a cluster of one at level 2, and whose log begins with a map of it. */
function leaderAtLevelTwo(net: Net): Node {
  const leader = new Node(net, 1, { version: "2.0.0", protocol: 2 });
  net.pass(3000);
  assertEquals(leader.control.map.level, 2);
  // Refused by the map, and kept in the log: enough of them for it to be cut off.
  const long: MapCommand = { kind: "trim", pool: 5, pgs: Array(16_384).fill(65_000) };
  let left = 100;
  for (let i = 0; i < 100; i++) leader.control.propose(long, () => left--);
  for (let i = 0; i < 100 && left > 0; i++) net.pass(500);
  assertEquals(left, 0);
  net.pass(500);
  return leader;
}

Deno.test("a map of a level is kept behind the level, by who makes it and by who is sent it", () => {
  const net = new Net();
  const leader = leaderAtLevelTwo(net);
  assertEquals(leader.kept, ["map 2", "level 2", `map ${MAP_VERSION}`]);
  const joiner = new Node(net, 2, { version: "2.0.0", protocol: 2 }, [leader.facts.address]);
  net.pass(5000);
  assertEquals([joiner.unfit, joiner.control.map.level], [null, 2]);
  assertEquals(joiner.kept, ["level 2", `map ${MAP_VERSION}`]);
});

Deno.test("a node that is too old or too new is not taken in, and told why", () => {
  const net = new Net();
  const leader = leaderAtLevelTwo(net);
  const old = new Node(net, 2, { version: "1.0.0", protocol: 1 }, [leader.facts.address]);
  const newer = { version: "4.0.0", protocolMin: 3, protocol: 4 };
  const young = new Node(net, 3, newer, [leader.facts.address]);
  net.pass(3000);
  assert(
    old.refused?.includes("speaks only 1: it is too old; install version 2.0.0"),
    old.refused!,
  );
  assert(young.refused?.includes("speaks 3 to 4: it is too new; upgrade step"), young.refused!);
  assertEquals([old.kept, young.kept, leader.control.map.nodes.length], [[], [], 1]);
});

Deno.test("a newer node in an older cluster speaks what that speaks", () => {
  const net = new Net();
  const leader = new Node(net, 1, { version: "1.0.0", protocol: 1 });
  net.pass(2000);
  const joiner = new Node(net, 2, { version: "2.0.0", protocol: 2 }, [leader.facts.address]);
  net.pass(5000);
  assertEquals([joiner.unfit, leader.control.map.nodes.length], [null, 2]);
  assertEquals([leader.control.map.level, joiner.control.map.level], [1, 1]);
  assertEquals([leader.kept, joiner.kept], [["map 2"], ["map 2"]]);
});

/** What becomes of a command that a node proposes. */
function propose(net: Net, { control }: Node, command: MapCommand): ControlError | null {
  const ends: (ControlError | null)[] = [];
  control.propose(command, (result) => ends.push(result.ok ? null : result.error));
  for (let i = 0; i < 100 && ends.length === 0; i++) net.pass(100);
  assertEquals(ends.length, 1, `${command.kind} comes to no end`);
  return ends[0];
}

/** Every command that came with level 2, and every field. */
const LEVEL_TWO: MapCommand[] = [
  { kind: "create-snapshots", disks: [1], name: "s", nowMs: 1 },
  { kind: "snapshot-taken", id: 1, layer: 1, generation: 1 },
  { kind: "abort-snapshots", taking: 1 },
  { kind: "delete-snapshot", disk: "web", name: "s" },
  { kind: "change-snapshot", disk: "web", name: "s", isProtected: true },
  { kind: "clone-disk", disk: "web", snapshot: "s", name: "clone", nowMs: 1 },
  { kind: "rollback-disk", disk: "web", snapshot: "s", nowMs: 1 },
  { kind: "restore-disk", id: 1, name: "web" },
  { kind: "purge-disk", id: 1 },
  { kind: "absorbed", node: 1, incarnation: 1, layers: [] },
  {
    kind: "set-schedule",
    disk: "web",
    name: "hourly",
    everyMs: 3_600_000,
    keep: 24,
    keepDaily: 0,
    keepWeekly: 0,
    keepMonthly: 0,
    nowMs: 1,
  },
  { kind: "delete-schedule", disk: "web", name: "hourly" },
  { kind: "delete-disk", name: "web", trashedMs: 1 },
  { kind: "change-disk", name: "web", limits: [1, 0, 0, 0, 0] },
  { kind: "change-disk", name: "web", detectZeroes: true },
  { kind: "create-disk", name: "db", sizeBytes: 512, nowMs: 0, detectZeroes: true },
  { kind: "change-settings", trashMs: 0 },
];

Deno.test("nodes of the previous version and of this one refuse snapshots, and say what to do, until all are upgraded", async () => {
  await using previous = await PreviousVersion.make();
  const Previous = await previous.control();
  const old = { version: PREVIOUS_VERSION, protocol: PREVIOUS_LEVEL };
  const now = { version: VERSION, protocol: LEVEL_MAX };
  const net = new Net();
  const first = new Node(net, 1, old, [], Previous);
  net.pass(2000);
  const create = { kind: "create-disk", name: "web", sizeBytes: 512, nowMs: 0, copies: 1 } as const;
  assertEquals(propose(net, first, create), null);
  const others = [2, 3].map((number) =>
    new Node(net, number, old, [first.facts.address], Previous)
  );
  net.pass(6000);
  const nodes = [first, ...others];
  assertEquals(nodes.map(({ control }) => control.map.nodes.length), [3, 3, 3]);

  for (const count of [1, 2]) {
    nodes[3 - count].restart(Control, now);
    net.pass(8000);
    assertEquals(nodes.map(({ control }) => control.map.level), [1, 1, 1]);
    const left = nodes.slice(0, 3 - count).map(({ facts }) =>
      `${facts.name} (${PREVIOUS_VERSION})`
    );
    for (const node of nodes.slice(3 - count)) {
      for (const command of LEVEL_TWO) {
        assertEquals(propose(net, node, command), {
          code: "limit",
          message: `${command.kind} needs level 2, and the cluster speaks 1: ` +
            `${left.join(", ")} cannot speak it`,
          hint: "upgrade every node first: 'kelpie cluster upgrade' shows what is to be done",
        });
      }
    }
    assertEquals(
      propose(net, nodes[2], { kind: "change-disk", name: "web", readOnly: count > 1 }),
      null,
    );
  }
  // Whatever was kept until now is what the previous version reads.
  for (const node of nodes) {
    assertEquals([node.unfit, node.kept.filter((what) => what !== "map 2")], [null, []]);
  }

  first.restart(Control, now);
  net.pass(8000);
  assertEquals(nodes.map(({ control }) => control.map.level), [2, 2, 2]);
  for (const node of nodes) {
    const name = `of-${node.number}`;
    assertEquals(
      propose(net, node, { kind: "create-snapshots", disks: [1], name, nowMs: 1 }),
      null,
    );
  }
  net.pass(2000);
  for (const { control } of nodes) {
    const [disk] = control.map.disks;
    assertEquals(disk.snapshots.map(({ name }) => name), ["of-1", "of-2", "of-3"]);
  }
});

Deno.test("a command above the level that reaches a leader all the same is not taken into the log", async () => {
  await using previous = await PreviousVersion.make();
  // A node that asks although it must not.
  await using bold = await SourceCopy.make("bold", {
    "agent/control/control.ts": [[
      "    if (this.self !== undefined && !isOn(this.#map, level)) {",
      "    if (level < 0) {",
    ]],
  });
  // A leader that does not know the command, and one that does.
  for (const build of [await previous.control(), Control]) {
    const net = new Net();
    const leader = new Node(net, 1, { version: PREVIOUS_VERSION, protocol: 1 }, [], build);
    net.pass(2000);
    const seeds = [leader.facts.address];
    const asking = { version: VERSION, protocol: 2 };
    const other = new Node(net, 2, asking, seeds, await bold.control());
    net.pass(5000);
    assertEquals(other.control.map.nodes.length, 2);
    let isDone = false;
    other.control.propose(LEVEL_TWO[0], () => isDone = true);
    net.pass(5000);
    assertEquals([isDone, leader.unfit, other.unfit], [false, null, null]);
    assertEquals(propose(net, leader, { kind: "change-settings", copies: 1 }), null);
  }
});
