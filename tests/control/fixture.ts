/**
 * One node's control that leads: the others are what a test says that they send.
 *
 * @module
 */
import { Prng } from "../../agent/base/prng.ts";
import { type Entry, ENTRY_DATA } from "../../agent/consensus/log.ts";
import { Raft } from "../../agent/consensus/raft.ts";
import { load, writeInitial } from "../../agent/consensus/storage.ts";
import { Control, type ControlOptions } from "../../agent/control/control.ts";
import { type ControlMessage, decodeControl, encodeControl } from "../../agent/control/messages.ts";
import { unwrap } from "../../agent/map/errors.ts";
import { type ClusterMap, findNode, type MapCommand, type NodeEntry } from "../../agent/map/map.ts";
import { encodeMap } from "../../agent/map/map_codec.ts";
import { encodeProposal } from "../../agent/map/proposal_codec.ts";
import { clusterOf } from "../map/cluster.ts";
import { silent } from "../replication/harness.ts";

/** Node 1, the only voter, with a store that takes everything at once. What an earlier run left in the log is applied late. */
export class Fixture {
  readonly control: Control;
  /** Kinds (and names) of what has changed the map. */
  readonly changes: string[] = [];
  readonly commands: MapCommand[] = [];
  readonly results: string[] = [];
  readonly sent: ControlMessage[] = [];
  /** What was logged as an error. */
  readonly errors: string[] = [];
  readonly #durable: (() => void)[] = [];
  #nowMs = 1000;

  constructor(
    map: ClusterMap = clusterOf(1),
    left: readonly Uint8Array[] = [],
    options: Partial<Pick<ControlOptions, "clean" | "torn">> = {},
  ) {
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
    this.control = new Control({
      host: {
        log: { ...silent, error: (message) => this.errors.push(message) },
        random: new Prng(1),
        wallMs: () => 1e12 + this.#nowMs,
        sendControl: (_, bytes) => this.sent.push(decodeControl(bytes)!),
        sendGossip() {},
        persist: (_, done) => this.#durable.push(done),
        mapChanged: (_map, _effects, _isJump, proposal) => {
          if (proposal === null) return;
          this.changes.push(short(proposal.command));
          this.commands.push(proposal.command);
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
        ...factsOf(map.nodes[0]),
        nowMs: 1,
      },
      clean: true,
      raft,
      seeds: [],
      nowMs: this.#nowMs,
      ...options,
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

  /** Lets time pass; everything becomes durable at once. */
  pass(ms: number): void {
    for (const endMs = this.#nowMs + ms; this.#nowMs < endMs;) {
      this.wait(40);
      while (this.#durable.length > 0) this.persist();
    }
  }

  /** Lets time pass, and nothing becomes durable. */
  wait(ms: number): void {
    this.#nowMs += ms;
    this.control.tick(this.#nowMs);
  }

  /** One round of consensus: what was to be made durable is. */
  persist(): void {
    for (const done of this.#durable.splice(0)) done();
  }
}

function short(command: MapCommand): string {
  return "name" in command && command.kind === "create-disk"
    ? `${command.kind} ${command.name}`
    : command.kind;
}

/** Makes a disk of 1 GiB. */
export function createDisk(name: string): MapCommand {
  return { kind: "create-disk", name, sizeBytes: 2 ** 30, nowMs: 1 };
}

/** A proposal as another run, or another node, numbers it. */
export function proposal(node: number, sequence: number, command: MapCommand, id = 0): Uint8Array {
  return unwrap(encodeProposal({ node, sequence, id, command }));
}

/** What a node says of itself, as the map has it, but for its clock. */
export function factsOf(entry: NodeEntry) {
  const { uuid, name, address, zone, capacityBytes, witness, version, protocol } = entry;
  return { uuid, name, address, zone, capacityBytes, witness, version, protocol, bootId: "" };
}
