import { assertEquals, assertStringIncludes } from "@std/assert/mod.js";
import { Packr } from "msgpackr";
import { Prng } from "../../agent/base/prng.ts";
import { ENTRY_DATA, type EntryKind } from "../../agent/consensus/log.ts";
import { Raft } from "../../agent/consensus/raft.ts";
import { encodeMessage } from "../../agent/consensus/messages.ts";
import { load, type StorageWrite, writeInitial } from "../../agent/consensus/storage.ts";
import { Control, type ControlHost, type Proposed } from "../../agent/control/control.ts";
import {
  decodeLevel,
  encodeLevel,
  LEVEL_KEY,
  storeLevelError,
} from "../../agent/control/level_record.ts";
import { ControlKind, encodeControl } from "../../agent/control/messages.ts";
import { unwrap } from "../../agent/map/errors.ts";
import { foundCluster, type MapCommand, type NodeFacts } from "../../agent/map/map.ts";
import { encodeMap } from "../../agent/map/map_codec.ts";
import { addNode, clusterOf } from "../map/cluster.ts";
import { silent } from "../replication/harness.ts";
import { Fixture } from "./fixture.ts";

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
  readonly warnings: string[] = [];
  readonly starts: number[] = [];
  servesUntilMs = -Infinity;
  /** What is to be made durable is, and its maker hears of it. */
  isDurable = true;
  nowMs = 0;
  /** The calendar goes on from run to run. */
  readonly #beganMs = 1e12 + runs++ * 1e6;

  /** Times that it was to start anew. */
  restarts = 0;
  /** Why it had to end. */
  unfit: string | null = null;
  /** Levels as they were made durable, and the maps that were durable by then. */
  readonly levels: string[] = [];

  /** @param speaks another version of the program */
  constructor(readonly meta: Meta, speaks: Partial<NodeFacts> = {}) {
    const host: ControlHost = {
      log: {
        ...silent,
        warn: (message, fields) => this.warnings.push(`${message}: ${fields?.reason}`),
      },
      random: new Prng(runs),
      wallMs: () => this.#beganMs + this.nowMs,
      sendControl() {},
      sendGossip() {},
      persist: (writes, done) => {
        put(meta, writes);
        this.persists.push(done);
        if (writes.some(({ key }) => key === LEVEL_KEY)) {
          this.levels.push(new TextDecoder().decode(meta.get(LEVEL_KEY)));
        }
      },
      mapChanged: (map, _effects, _isJump, proposal) => {
        if (proposal !== null) this.applied.push(`${map.epoch} ${proposal.command.kind}`);
      },
      started: (_node, incarnation) => this.starts.push(incarnation),
      renewed: (untilMs) => this.servesUntilMs = untilMs,
      joined() {},
      joinRefused() {},
      restartWanted: () => this.restarts++,
      unfit: (message) => this.unfit = message,
    };
    const { nowMs: _, ...facts } = addNode(1);
    this.control = new Control({
      host,
      node: 1,
      facts: { ...facts, ...speaks, nowMs: 0 },
      clean: false,
      raft: unwrap(load(meta, 1)),
      seeds: [],
      nowMs: 0,
      level: decodeLevel(meta.get(LEVEL_KEY))!.level,
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

  propose(command: MapCommand): Proposed {
    return this.control.propose(command, (result) => {
      this.results.push(
        result.ok ? `${command.kind} in ${result.value.map.epoch}` : result.error.code,
      );
    });
  }

  get names(): string[] {
    return this.control.map.disks.map(({ name }) => name).sort();
  }
}

const NEXT = { version: "2.0.0", protocol: 2 } as const;

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

Deno.test("what is taken back before anybody leads never happens, and what waits behind it does", () => {
  const run = new Run(founded());
  const proposed = run.propose(createDisk("a"));
  run.propose(createDisk("b"));
  assertEquals(proposed.withdraw(), true);
  run.pass();
  assertEquals(run.names, ["b"]);
  assertEquals(run.results.map((each) => each.split(" ")[0]), ["create-disk"]);
});

Deno.test("what is taken back out of a log may still happen, and is said to; what waits behind it happens once", () => {
  const run = new Run(founded());
  run.pass();
  run.isDurable = false;
  const proposed = run.propose(createDisk("a"));
  run.propose(createDisk("b"));
  run.pass(100);
  assertEquals(proposed.withdraw(), false);
  run.propose(createDisk("c"));
  run.pass(100);
  run.isDurable = true;
  run.applied.length = 0;
  run.pass();
  assertEquals(run.names, ["a", "b", "c"]);
  assertEquals(run.applied.filter((each) => each.endsWith("create-disk")).length, 3);
  assertEquals(run.results.length, 2, "of what was taken back nothing is told");
});

Deno.test("what has happened cannot be taken back", () => {
  const run = new Run(founded());
  run.pass();
  const proposed = run.propose(createDisk("a"));
  run.pass();
  assertEquals([proposed.withdraw(), run.names, run.results.length], [false, ["a"], 1]);
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

Deno.test("the level rises with the program, once, and is durable before it is used", () => {
  const meta = founded();
  const old = new Run(meta);
  old.pass();
  assertEquals([old.control.map.level, old.levels], [1, []], "nothing to remember");
  old.control.stop();
  const next = new Run(meta, NEXT);
  next.pass();
  assertEquals([next.control.map.level, next.unfit], [2, null]);
  assertEquals(next.levels.map((level) => level.split(" ").with(2, "?").join(" ")), [
    "1 2 ? 2.0.0",
  ]);
  assertEquals(next.applied.filter((each) => each.endsWith("raise-level")).length, 1);
  next.control.stop();
  const again = new Run(meta, NEXT);
  again.pass();
  assertEquals([again.control.map.level, again.levels], [2, []]);
});

Deno.test("a version that went back finds the level in the log and ends, whatever its store remembers", () => {
  const meta = founded();
  const next = new Run(meta, NEXT);
  next.pass();
  next.control.stop();
  // As if it had crashed with the entry in its log, before it applied it.
  meta.delete(LEVEL_KEY);
  const old = new Run(meta);
  old.pass();
  assertEquals(
    old.unfit?.startsWith(
      "the cluster speaks level 2, and Kelpie 1.0.0 speaks only 1: it is too old",
    ),
    true,
    `${old.unfit}`,
  );
  assertEquals([old.starts, old.control.map.level], [[], 1], "nothing of it was used");
  assertEquals(meta.get(LEVEL_KEY), undefined);
  // And what it did has not harmed whoever speaks it.
  const again = new Run(meta, NEXT);
  again.pass();
  assertEquals([again.control.map.level, again.starts.length, again.unfit], [2, 1, null]);
});

Deno.test("a version that is too old or too new for the map it goes on with ends at its start", () => {
  const meta = founded();
  const next = new Run(meta, NEXT);
  next.pass();
  next.control.stop();
  for (
    const [speaks, what] of [
      [{}, "speaks only 1: it is too old"],
      [{ version: "4.0.0", protocolMin: 3, protocol: 4 }, "speaks 3 to 4: it is too new"],
    ] as const
  ) {
    const run = new Run(new Map(meta), speaks);
    run.pass();
    assertEquals(run.unfit?.includes(what), true, `${run.unfit}`);
    assertEquals(run.starts, []);
  }
});

Deno.test("an entry of the log that this version does not know ends it: leaving it out would be another map", () => {
  const packr = new Packr({ useRecords: false, variableMapSize: true, moreTypes: false });
  for (
    const unknown of [
      [1, 1, 1, "set-colour", { colour: "red" }],
      [1, 1, 1, "set-zone", { node: 1, zone: "a", colour: "red" }],
      [2, 1, 1, "set-zone", { node: 1, zone: "a" }],
    ]
  ) {
    const map = unwrap(foundCluster({ ...addNode(1), clusterId: "c".repeat(32) }));
    const state = Raft.bootstrap(1, unwrap(encodeMap(map)));
    const { index, term } = state.snapshot;
    const entry = {
      index: index + 1,
      term,
      kind: ENTRY_DATA as EntryKind,
      data: new Uint8Array(packr.pack(unknown)),
    };
    const meta: Meta = new Map();
    put(meta, writeInitial(1, { ...state, entries: [entry], commit: entry.index }));
    const run = new Run(meta);
    run.pass();
    assertEquals(run.unfit?.includes("which this Kelpie does not know"), true, `${run.unfit}`);
    assertEquals(run.starts, []);
  }
});

Deno.test("what a store remembers of its level comes back as it was, and is this text, for ever", () => {
  const record = { level: 3, sinceMs: 1_700_000_000_000, version: "2.0.0-rc.1" };
  const bytes = encodeLevel(record);
  assertEquals(new TextDecoder().decode(bytes), "1 3 1700000000000 2.0.0-rc.1");
  assertEquals(decodeLevel(bytes), record);
  assertEquals(decodeLevel(undefined)?.level, 1);
  for (const text of ["", "2 3 0 x", "1 0 0 x", "1 3 0 ", "1 3 0 x y", "1 3 -1 x", "1 x 0 x"]) {
    assertEquals(decodeLevel(new TextEncoder().encode(text)), null, text);
  }
});

Deno.test("a store is opened by what speaks its level, and refused with what to do otherwise", () => {
  const value = encodeLevel({ level: 3, sinceMs: 5, version: "3.0.0" });
  assertEquals(storeLevelError(value, { version: "3.0.0", protocolMin: 2, protocol: 3 }), null);
  assertEquals(storeLevelError(undefined, { version: "1.0.0", protocol: 1 }), null);
  const old = storeLevelError(value, { version: "2.0.0", protocolMin: 1, protocol: 2 });
  assertEquals(old?.code, "limit");
  assertEquals(
    old?.message,
    "the cluster speaks level 3, and Kelpie 2.0.0 speaks 1 to 2: it is too old",
  );
  assertEquals(old?.hint, "install version 3.0.0, or a newer one; nothing was changed");
  const newer = storeLevelError(value, { version: "5.0.0", protocolMin: 4, protocol: 5 });
  assertEquals(newer?.message.endsWith("it is too new"), true);
  const strange = storeLevelError(Uint8Array.of(50), { version: "1.0.0", protocol: 1 });
  assertEquals(strange?.code, "limit");
});

Deno.test("a node is to start anew when it is asked about this very run, by a node of the map", () => {
  const run = new Run(founded());
  run.pass();
  const [incarnation] = run.starts;
  const from = (node: number) => ({
    uuid: "f".repeat(32),
    node,
    incarnation: 1,
    clusterId: "c".repeat(32),
    address: "192.0.2.9:7460",
  });
  const ask = (by: number, node: number, of: number) =>
    run.control.received(
      from(by),
      encodeControl({ kind: ControlKind.Restart, node, incarnation: of }),
    );
  ask(1, 1, incarnation - 1);
  ask(1, 2, incarnation);
  ask(7, 1, incarnation);
  ask(1, 1, 0);
  assertEquals(run.restarts, 0);
  ask(1, 1, incarnation);
  assertEquals(run.restarts, 1);
  run.control.askRestart(1);
  run.control.askRestart(9);
  assertEquals(run.restarts, 1, "never from inside the call");
  run.pass(100);
  assertEquals(run.restarts, 2);
});

Deno.test("what a newer version sends is passed over, and said once", () => {
  const packr = new Packr({ useRecords: false, variableMapSize: true, moreTypes: false });
  const run = new Run(founded());
  run.pass();
  const before = run.control.map;
  const peer = {
    uuid: "f".repeat(32),
    node: 2,
    incarnation: 1,
    clusterId: "c".repeat(32),
    address: "192.0.2.9:7460",
  };
  const newer: [string, Uint8Array][] = [
    ["a control message that cannot be right, or is newer", packr.pack([99, { what: 1 }])],
    [
      "a message of consensus has version 9, and this Kelpie reads 1",
      packr.pack([ControlKind.Raft, packr.pack([9, 1, 2, 1, 1])]),
    ],
    [
      'a change of the map has the kind "set-colour", which this Kelpie does not know',
      packr.pack([ControlKind.Propose, [packr.pack([1, 2, 1, "set-colour", {}])]]),
    ],
  ];
  for (const [reason, bytes] of newer.map(([text, each]) => [text, each.slice()] as const)) {
    run.warnings.length = 0;
    for (let i = 0; i < 3; i++) run.control.received(peer, bytes);
    run.pass(100);
    assertEquals(run.warnings, [`something that came from a node is not taken: ${reason}`]);
  }
  assertEquals([run.control.map, run.unfit, run.control.isLeader], [before, null, true]);
});

Deno.test("a node whose log is not its leader's says so in its log, once per term, and in what it reports", () => {
  const fixture = new Fixture(clusterOf(2));
  fixture.pass(1000);
  const before = fixture.control.status.raft!;
  assertEquals([fixture.control.isLeader, before.hasOtherLog], [true, false]);
  // As from a cluster that was recovered without this node: in a term far above, after another entry.
  const lead = (term: number, prevTerm: number) => {
    const message = {
      kind: "append",
      from: 2,
      to: 1,
      term,
      commit: before.commit,
      prevIndex: before.commit,
      prevTerm,
      entries: [],
    } as const;
    fixture.sent.length = 0;
    fixture.receive(2, { kind: ControlKind.Raft, bytes: encodeMessage(message) });
    // Less than an election takes: this node could vote for itself alone.
    fixture.pass(440);
    const reported = fixture.sent.filter((sent) => sent.kind === ControlKind.Renew)
      .map(({ report }) => report.hasOtherLog);
    assertEquals(fixture.control.status.raft!.term, term);
    return [fixture.control.status.raft!.hasOtherLog, new Set(reported), fixture.errors.length];
  };
  assertEquals(lead(5000, 4999), [true, new Set([true]), 1]);
  assertEquals(lead(5000, 4999), [true, new Set([true]), 1]);
  assertStringIncludes(fixture.errors[0], "start it with an empty store");
  // One that has the same log.
  assertEquals(lead(5001, before.term), [false, new Set([false]), 1]);
  assertEquals(lead(5002, 4999), [true, new Set([true]), 2]);
});

Deno.test("a node that hears that it was removed ends, with what to do; about others, or older, it does not hear", () => {
  const run = new Run(founded());
  run.pass();
  const { clusterId, epoch } = run.control.map;
  const peer = {
    uuid: "f".repeat(32),
    node: 9,
    incarnation: 1,
    clusterId,
    address: "192.0.2.9:7460",
  };
  const hear = (message: { node: number; clusterId: string; epoch: number }) => {
    run.control.received(peer, encodeControl({ kind: ControlKind.Removed, ...message }));
    run.pass(100);
  };
  hear({ node: 2, clusterId, epoch: epoch + 1 });
  hear({ node: 0, clusterId, epoch: epoch + 1 });
  hear({ node: 1, clusterId: "d".repeat(32), epoch: epoch + 1 });
  hear({ node: 1, clusterId, epoch });
  assertEquals(run.unfit, null);
  hear({ node: 1, clusterId, epoch: epoch + 1 });
  assertEquals(run.unfit?.startsWith("this node was removed from the cluster"), true);
});

Deno.test("whoever asks and was removed is told so, by what this node's own map says; nobody else is", () => {
  const at = new Fixture(clusterOf(2));
  for (let i = 0; i < 100 && !at.control.isLeader; i++) at.pass(40);
  const removals = () =>
    at.sent.splice(0).filter((message) => message.kind === ControlKind.Removed);
  const ask = (node: number) => at.receive(node, { kind: ControlKind.Ask, id: 0 });
  ask(2);
  // A number that this map has not given yet: whose it is, a newer one may know.
  ask(3);
  assertEquals(removals(), []);
  at.propose({ kind: "remove-node", node: 2, nowMs: 1 });
  at.pass(200);
  assertEquals(at.results, ["remove-node: ok"]);
  at.sent.length = 0;
  ask(3);
  at.receive(2, { kind: ControlKind.Raft, bytes: new Uint8Array(1) });
  at.receive(2, { kind: ControlKind.Removed, node: 1, clusterId: "", epoch: 1 });
  assertEquals(removals(), []);
  ask(2);
  const { clusterId, epoch } = at.control.map;
  assertEquals(removals(), [{ kind: ControlKind.Removed, node: 2, clusterId, epoch }]);
});
