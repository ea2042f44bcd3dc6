import { assertEquals } from "@std/assert/mod.js";
import { Prng } from "../../agent/base/prng.ts";
import { Raft } from "../../agent/consensus/raft.ts";
import { load, type StorageWrite, writeInitial } from "../../agent/consensus/storage.ts";
import { Control, type ControlHost } from "../../agent/control/control.ts";
import { unwrap } from "../../agent/map/errors.ts";
import { foundCluster, type MapCommand } from "../../agent/map/map.ts";
import { encodeMap } from "../../agent/map/map_codec.ts";
import { addNode } from "../map/cluster.ts";
import { silent } from "../replication/harness.ts";

/** What survives of a node: the store's metadata. */
type Meta = Map<string, Uint8Array>;

function put(meta: Meta, writes: readonly StorageWrite[]): void {
  for (const { key, value } of writes) {
    if (value === null) meta.delete(key);
    else meta.set(key, value.slice());
  }
}

/** The metadata of a node that has just founded a cluster. */
function founded(): Meta {
  const meta: Meta = new Map();
  const map = unwrap(foundCluster({ ...addNode(1), clusterId: "c".repeat(32) }));
  put(meta, writeInitial(1, Raft.bootstrap(1, unwrap(encodeMap(map)))));
  return meta;
}

/** Runs so far. */
let runs = 0;

/** One run of a node that is alone. */
class Run {
  readonly control: Control;
  readonly persists: (() => void)[] = [];
  /** Names of the commands that the map took, with its epoch. */
  readonly applied: string[] = [];
  readonly results: string[] = [];
  readonly starts: number[] = [];
  servesUntilMs = -Infinity;
  /** What is to be made durable is, and its maker hears of it. */
  isDurable = true;
  nowMs = 0;
  /** The calendar goes on from run to run. */
  readonly #beganMs = 1e12 + runs++ * 1e6;

  constructor(readonly meta: Meta) {
    const host: ControlHost = {
      log: silent,
      random: new Prng(runs),
      wallMs: () => this.#beganMs + this.nowMs,
      sendControl() {},
      sendGossip() {},
      persist: (writes, done) => {
        put(meta, writes);
        this.persists.push(done);
      },
      mapChanged: (map, _effects, _isJump, proposal) => {
        if (proposal !== null) this.applied.push(`${map.epoch} ${proposal.command.kind}`);
      },
      started: (_node, incarnation) => this.starts.push(incarnation),
      renewed: (untilMs) => this.servesUntilMs = untilMs,
      joined() {},
      joinRefused() {},
    };
    const { nowMs: _, ...facts } = addNode(1);
    this.control = new Control({
      host,
      node: 1,
      facts: { ...facts, nowMs: 0 },
      clean: false,
      raft: unwrap(load(meta, 1)),
      seeds: [],
      nowMs: 0,
    });
  }

  /** Lets time pass. */
  pass(ms = 3000): void {
    for (let i = 0; i < ms / 20; i++) {
      this.nowMs += 20;
      this.control.tick(this.nowMs);
      if (this.isDurable) this.persist();
    }
  }

  persist(): void {
    while (this.persists.length > 0) this.persists.shift()!();
  }

  propose(command: MapCommand): void {
    this.control.propose(command, (result) => {
      this.results.push(
        result.ok ? `${command.kind} in ${result.value.map.epoch}` : result.error.code,
      );
    });
  }

  get names(): string[] {
    return this.control.map.disks.map(({ name }) => name).sort();
  }
}

function createDisk(name: string): MapCommand {
  return { kind: "create-disk", name, sizeBytes: 2 ** 30, nowMs: 0, copies: 1 };
}

Deno.test("a node alone leads, is up under a new number at each start, and may serve", () => {
  const meta = founded();
  for (const incarnation of [2, 3]) {
    const run = new Run(meta);
    assertEquals(run.starts, []);
    run.pass();
    assertEquals([run.control.isLeader, run.starts], [true, [incarnation]]);
    assertEquals(run.servesUntilMs > run.nowMs, true);
  }
});

Deno.test("proposals are carried out once each, in their order, and told when they are in the map", () => {
  const run = new Run(founded());
  run.pass();
  run.applied.length = 0;
  for (const name of ["a", "b", "c"]) run.propose(createDisk(name));
  assertEquals(run.results, [], "never from inside the call");
  run.pass();
  assertEquals(run.names, ["a", "b", "c"]);
  assertEquals(run.applied.filter((each) => each.endsWith("create-disk")).length, 3);
  assertEquals(run.results.length, 3);
  assertEquals(
    run.results.map((each) => Number(each.split(" ").at(-1))).every((epoch, i, all) =>
      i === 0 || epoch > all[i - 1]
    ),
    true,
  );
});

Deno.test("a command that the map refuses fails with its reason, and those after it go on", () => {
  const run = new Run(founded());
  run.pass();
  run.propose(createDisk("a"));
  run.propose(createDisk("a"));
  run.propose(createDisk("b"));
  run.pass();
  assertEquals([run.names, run.results.map((each) => each.split(" ")[0])], [
    ["a", "b"],
    ["create-disk", "exists", "create-disk"],
  ]);
});

Deno.test("nothing is told before it is durable", () => {
  const run = new Run(founded());
  run.pass();
  run.isDurable = false;
  run.propose(createDisk("a"));
  run.pass();
  assertEquals([run.results, run.names], [[], []]);
  run.isDurable = true;
  run.pass();
  assertEquals([run.results.length, run.names], [1, ["a"]]);
});

Deno.test("an entry of the run before that takes a number of this one: both are carried out, once each", () => {
  const meta = founded();
  const first = new Run(meta);
  first.pass();
  // In the log, but the run ended before it was applied.
  first.isDurable = false;
  first.propose(createDisk("old"));
  first.pass(100);
  assertEquals([first.results, first.names], [[], []]);
  const second = new Run(meta);
  second.propose(createDisk("new"));
  second.pass();
  assertEquals(second.names, ["new", "old"]);
  assertEquals(second.results.length, 1, "of its own it hears, of the other's it does not");
  assertEquals(second.results[0].startsWith("create-disk"), true);
  assertEquals(second.starts, [3], "and its start is in the map all the same");
  const kinds = second.applied.map((each) => each.split(" ")[1]);
  assertEquals(kinds.filter((kind) => kind === "create-disk").length, 2);
  assertEquals(kinds.filter((kind) => kind === "node-up").length, 2, "one of each run");
});

Deno.test("the same command by both runs is carried out by each: the second one is refused", () => {
  const meta = founded();
  const first = new Run(meta);
  first.pass();
  first.isDurable = false;
  first.propose(createDisk("a"));
  first.pass(100);
  const second = new Run(meta);
  second.pass();
  second.propose(createDisk("a"));
  second.pass();
  assertEquals([second.names, second.results], [["a"], ["exists"]]);
});

Deno.test("what waits when control stops fails as unavailable, as does what comes after", () => {
  const run = new Run(founded());
  run.propose(createDisk("a"));
  run.control.stop();
  assertEquals(run.results, ["unavailable"]);
  run.propose(createDisk("b"));
  run.pass(20);
  assertEquals(run.results, ["unavailable", "unavailable"]);
});

Deno.test("rubbish from peers is left out", () => {
  const run = new Run(founded());
  run.pass();
  const random = new Prng(99);
  const peer = { uuid: "0".repeat(32), node: 2, incarnation: 1, clusterId: null, address: "a:1" };
  const bytes = new Uint8Array(64);
  for (let i = 0; i < 2000; i++) {
    random.fill(bytes);
    bytes[0] = 0x90 | random.below(6);
    bytes[1] = random.below(13);
    run.control.received(peer, bytes.slice(0, random.below(65)));
  }
  run.propose(createDisk("a"));
  run.pass();
  assertEquals([run.names, run.control.isLeader], [["a"], true]);
});
