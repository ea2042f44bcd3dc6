import { assertEquals } from "@std/assert/mod.js";
import { Prng } from "../../agent/base/prng.ts";
import { type Entry, ENTRY_DATA } from "../../agent/consensus/log.ts";
import { Raft } from "../../agent/consensus/raft.ts";
import { load, writeInitial } from "../../agent/consensus/storage.ts";
import { Control } from "../../agent/control/control.ts";
import {
  ControlKind,
  type ControlMessage,
  decodeControl,
  encodeControl,
} from "../../agent/control/messages.ts";
import { unwrap } from "../../agent/map/errors.ts";
import { type ClusterMap, findNode, type MapCommand } from "../../agent/map/map.ts";
import { encodeMap } from "../../agent/map/map_codec.ts";
import { encodeProposal } from "../../agent/map/proposal_codec.ts";
import { clusterOf } from "../map/cluster.ts";
import { silent } from "../replication/harness.ts";

/** Node 1, the only voter, with a store that takes everything at once. What an earlier run left in the log is applied late. */
class Fixture {
  readonly control: Control;
  /** Kinds (and names) of what has changed the map. */
  readonly changes: string[] = [];
  readonly results: string[] = [];
  readonly sent: ControlMessage[] = [];
  readonly #durable: (() => void)[] = [];
  #nowMs = 1000;

  constructor(map: ClusterMap = clusterOf(1), left: readonly Uint8Array[] = []) {
    const entries = left.map((data, i): Entry => ({
      index: 2 + i,
      term: 1,
      kind: ENTRY_DATA,
      data,
    }));
    const initial = writeInitial(1, { ...Raft.bootstrap(1, unwrap(encodeMap(map))), entries });
    const values = new Map<string, Uint8Array>();
    for (const { key, value } of initial) if (value !== null) values.set(key, value);
    const raft = unwrap(load(values, 1));
    const { uuid, name, address, zone, capacityBytes, witness, version, protocol } = map.nodes[0];
    this.control = new Control({
      host: {
        log: silent,
        random: new Prng(1),
        wallMs: () => 1e12 + this.#nowMs,
        sendControl: (_, bytes) => this.sent.push(decodeControl(bytes)!),
        sendGossip() {},
        persist: (_, done) => this.#durable.push(done),
        mapChanged: (_map, _effects, _isJump, proposal) => {
          if (proposal !== null) this.changes.push(short(proposal.command));
        },
        started() {},
        renewed() {},
        joined() {},
        joinRefused() {},
        restartWanted() {},
        unfit(message) {
          throw new Error(message);
        },
      },
      node: 1,
      facts: {
        uuid,
        name,
        address,
        zone,
        capacityBytes,
        witness,
        version,
        protocol,
        bootId: "",
        nowMs: 1,
      },
      clean: true,
      raft,
      seeds: [],
      nowMs: this.#nowMs,
    });
  }

  propose(command: MapCommand): void {
    this.control.propose(command, (result) => {
      this.results.push(`${short(command)}: ${result.ok ? "ok" : result.error.code}`);
    });
  }

  receive(node: number, message: ControlMessage): void {
    const { uuid, address } = findNode(this.control.map, node) ??
      { uuid: "9".repeat(32), address: "192.0.2.9:7460" };
    const peer = { uuid, node, incarnation: 1, clusterId: "c".repeat(32), address };
    this.control.received(peer, encodeControl(message));
  }

  pass(ms: number): void {
    for (const endMs = this.#nowMs + ms; this.#nowMs < endMs;) {
      this.#nowMs += 40;
      this.control.tick(this.#nowMs);
      while (this.#durable.length > 0) this.#durable.shift()!();
    }
  }
}

function short(command: MapCommand): string {
  return "name" in command && command.kind === "create-disk"
    ? `${command.kind} ${command.name}`
    : command.kind;
}

function createDisk(name: string): MapCommand {
  return { kind: "create-disk", name, sizeBytes: 2 ** 30, nowMs: 1 };
}

/** A proposal as another run, or another node, numbers it. */
function proposal(node: number, sequence: number, command: MapCommand, id = 0): Uint8Array {
  return unwrap(encodeProposal({ node, sequence, id, command }));
}

const WEIGHT: MapCommand = { kind: "set-weight", node: 1, weight: 5e11 };

Deno.test("what is proposed while the log holds an earlier run's numbers is carried out once, all of it", () => {
  for (const left of [1, 2, 3]) {
    const numbers = Array.from({ length: left }, (_, i) => i + 1);
    const at = new Fixture(clusterOf(1), numbers.map((each) => proposal(1, each, WEIGHT, 77)));
    at.propose(createDisk("x"));
    at.propose(createDisk("y"));
    at.pass(4000);
    assertEquals(at.results, ["create-disk x: ok", "create-disk y: ok"], `${left} left`);
    const own = at.changes.filter((change) => /create-disk|node-up/.test(change)).sort();
    assertEquals(own, ["create-disk x", "create-disk y", "node-up"], `${left} left`);
    assertEquals(at.control.status.pendingProposals, 0);
  }
});

Deno.test("what is in the log when a node begins to lead does not come into it a second time under another number", () => {
  // Node 2's run before has used number 1; its two proposals of now are numbered anew while the second is in the log already.
  const second: MapCommand = { kind: "set-weight", node: 2, weight: 7e11 };
  const at = new Fixture(clusterOf(2), [proposal(2, 1, WEIGHT, 77), proposal(2, 2, second, 102)]);
  const again = {
    kind: ControlKind.Propose,
    proposals: [proposal(2, 2, createDisk("first"), 101), proposal(2, 3, second, 102)],
  } as const;
  at.control.tick(1020);
  for (let i = 0; i < 100 && !at.control.isLeader; i++) {
    at.pass(40);
    at.receive(2, again);
  }
  at.receive(2, again);
  at.pass(1000);
  assertEquals(
    findNode(at.control.map, 2)!.requestSequence,
    2,
    "the second has been carried out once",
  );
  // The node finds out, and counts anew.
  at.receive(2, {
    kind: ControlKind.Propose,
    proposals: [proposal(2, 3, createDisk("first"), 101)],
  });
  at.pass(1000);
  assertEquals(at.changes.includes("create-disk first"), true);
});

Deno.test("a leader takes proposals only from the node that they say they are of", () => {
  const at = new Fixture(clusterOf(2));
  at.pass(3000);
  const proposals = [proposal(2, 1, createDisk("x"))];
  at.receive(1, { kind: ControlKind.Propose, proposals });
  at.pass(200);
  assertEquals(at.changes.includes("create-disk x"), false);
  at.receive(2, { kind: ControlKind.Propose, proposals });
  at.pass(200);
  assertEquals(at.changes.includes("create-disk x"), true);
});

Deno.test("a number that another run of the node has used in this term is not the new one's", () => {
  const at = new Fixture(clusterOf(2));
  at.pass(3000);
  const send = (...list: [sequence: number, name: string, id: number][]) => {
    const proposals = list.map(([sequence, name, id]) =>
      proposal(2, sequence, createDisk(name), id)
    );
    at.receive(2, { kind: ControlKind.Propose, proposals });
    at.pass(200);
    return at.control.map.disks.map(({ name }) => name);
  };
  at.receive(2, { kind: ControlKind.Propose, proposals: [proposal(2, 1, createDisk("x"), 7)] });
  // Before that is applied: neither of these may go before the node knows.
  assertEquals(send([1, "y", 8], [2, "z", 9]), ["x"]);
  assertEquals(send([2, "y", 8], [3, "z", 9]), ["x", "y", "z"]);
});

Deno.test("who has run before is not told a number again when it asks to join with an empty store", () => {
  const at = new Fixture(clusterOf(2));
  at.pass(3000);
  const entry = () => findNode(at.control.map, 2)!;
  const { uuid, name, address, zone, capacityBytes, witness, version, protocol } = entry();
  const facts = {
    uuid,
    name,
    address,
    zone,
    capacityBytes,
    witness,
    version,
    protocol,
    bootId: "",
  };
  const ask = () => {
    at.sent.length = 0;
    at.receive(0, { kind: ControlKind.Join, facts: { ...facts, nowMs: 1 } });
    return at.sent.map(({ kind }) => kind);
  };
  assertEquals(entry().requestSequence, 0);
  assertEquals(ask(), [ControlKind.Joined], "the answer may have been lost");
  at.receive(2, { kind: ControlKind.Propose, proposals: [proposal(2, 1, createDisk("x"))] });
  at.pass(200);
  assertEquals(ask(), [ControlKind.Refused]);
});
