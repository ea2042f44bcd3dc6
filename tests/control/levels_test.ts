/**
 * Two nodes and what they keep: a level is remembered before anything of it is, also where it comes with another node's map.
 *
 * @module
 */
import { Buffer } from "node:buffer";
import { assert, assertEquals } from "@std/assert/mod.js";
import { Prng } from "../../agent/base/prng.ts";
import { Raft } from "../../agent/consensus/raft.ts";
import { load, type StorageWrite, writeInitial } from "../../agent/consensus/storage.ts";
import { Control, type ControlHost } from "../../agent/control/control.ts";
import { decodeLevel, LEVEL_KEY } from "../../agent/control/level_record.ts";
import { unwrap } from "../../agent/map/errors.ts";
import { foundCluster, type MapCommand, type NodeFacts } from "../../agent/map/map.ts";
import { encodeMap, MAP_VERSION } from "../../agent/map/map_codec.ts";
import { addNode } from "../map/cluster.ts";
import { silent } from "../replication/harness.ts";

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
  readonly control: Control;
  readonly facts: NodeFacts;
  readonly meta = new Map<string, Uint8Array>();
  /** What was kept, in order: "level N", "map N" for the version of an encoded map. */
  readonly kept: string[] = [];
  unfit: string | null = null;
  refused: string | null = null;
  readonly #todo: (() => void)[] = [];

  constructor(readonly net: Net, number: number, part: Partial<NodeFacts>, seeds: string[] = []) {
    const { kind: _, ...facts } = addNode(number, part);
    this.facts = facts;
    if (seeds.length === 0) {
      const map = unwrap(foundCluster({ ...facts, protocol: 1, clusterId: CLUSTER_ID }));
      this.#keep(writeInitial(1, Raft.bootstrap(1, unwrap(encodeMap(map)))));
    }
    const host: ControlHost = {
      log: silent,
      random: new Prng(number),
      wallMs: () => 1e12 + net.nowMs,
      sendControl: (address, bytes) => {
        const copy = bytes.slice();
        this.#todo.push(() => net.nodes.get(address)?.take(this, copy));
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
    this.control = new Control({
      host,
      node: seeds.length === 0 ? 1 : 0,
      facts,
      clean: false,
      raft: seeds.length === 0 ? unwrap(load(this.meta, 1)) : null,
      seeds,
      nowMs: net.nowMs,
    });
    net.nodes.set(facts.address, this);
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
      incarnation: 1,
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
