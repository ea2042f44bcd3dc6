/**
 * One node's control among three voters: the others are what a test says that they send.
 *
 * @module
 */
import { Prng } from "../../agent/base/prng.ts";
import { crc32c } from "../../agent/consensus/checksum.ts";
import { type Entry, ENTRY_DATA } from "../../agent/consensus/log.ts";
import { decodeMessage, encodeMessage, type Message } from "../../agent/consensus/messages.ts";
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
import { decodeProposal } from "../../agent/map/proposal_codec.ts";
import { silent } from "../replication/harness.ts";
import { factsOf, proposal } from "./fixture.ts";

const VOTERS = { voters: [1, 2, 3], learners: [] };

/** A message of consensus without what every one has. */
type Body<M extends Message = Message> = M extends Message ? Omit<M, "from" | "to" | "term">
  : never;

/** Node 1, of the voters 1, 2 and 3; its store takes everything at once. Node 2 leads in term 2. */
export class Follower {
  readonly control: Control;
  sent: ControlMessage[] = [];
  /** Until when it was told that it may serve, each time. */
  readonly renewals: number[] = [];
  /** Times that it has told others that they may serve. */
  told = 0;
  nowMs = 1000;
  /** Of the log that node 2 has. */
  last = { index: 1, term: 1 };
  readonly #sequences = new Map<number, number>();
  readonly #durable: (() => void)[] = [];

  constructor(map: ClusterMap) {
    const snapshot = { index: 1, term: 1, configuration: VOTERS, data: unwrap(encodeMap(map)) };
    const values = new Map<string, Uint8Array>();
    const state = { term: 1, vote: 0, snapshot, entries: [], commit: 1 };
    for (const { key, value } of writeInitial(1, state)) values.set(key, value!);
    this.control = new Control({
      host: {
        log: silent,
        random: new Prng(1),
        wallMs: () => 1e12 + this.nowMs,
        sendControl: (_, bytes) => {
          const message = decodeControl(bytes)!;
          if (message.kind === ControlKind.Renewed) this.told++;
          this.sent.push(message);
        },
        sendGossip() {},
        persist: (_, done) => this.#durable.push(done),
        mapChanged() {},
        started() {},
        renewed: (untilMs) => this.renewals.push(untilMs),
        joined() {},
        joinRefused() {},
        restartWanted() {},
        unfit(message) {
          throw new Error(message);
        },
      },
      node: 1,
      facts: { ...factsOf(map.nodes[0]), nowMs: 1 },
      clean: true,
      raft: unwrap(load(values, 1)),
      seeds: [],
      nowMs: this.nowMs,
    });
  }

  /** Lets time pass. */
  pass(ms: number): void {
    for (const endMs = this.nowMs + ms; this.nowMs < endMs;) {
      this.nowMs += 40;
      this.control.tick(this.nowMs);
      this.persist();
    }
  }

  persist(): void {
    while (this.#durable.length > 0) this.#durable.shift()!();
  }

  receive(node: number, message: ControlMessage): void {
    const { uuid, address } = findNode(this.control.map, node)!;
    const peer = { uuid, node, incarnation: 1, clusterId: "c".repeat(32), address };
    this.control.received(peer, encodeControl(message));
    this.persist();
  }

  raft(from: number, term: number, body: Body): void {
    const bytes = encodeMessage({ ...body, from, to: 1, term } as Message);
    this.receive(from, { kind: ControlKind.Raft, bytes });
  }

  /** Node 2, as leader, has committed these proposals. */
  commit(...proposals: readonly Uint8Array[]): void {
    const { index, term } = this.last;
    const entries = proposals.map((data, i): Entry => {
      return { index: index + 1 + i, term: 2, kind: ENTRY_DATA, data };
    });
    this.last = { index: index + entries.length, term: entries.length === 0 ? term : 2 };
    const commit = this.last.index;
    this.raft(2, 2, { kind: "append", prevIndex: index, prevTerm: term, commit, entries });
  }

  /** A proposal of node 2's own, or of another node. */
  proposalOf(command: MapCommand, node = 2): Uint8Array {
    const sequence = (this.#sequences.get(node) ?? 0) + 1;
    this.#sequences.set(node, sequence);
    return proposal(node, sequence, command);
  }

  /** Node 2, as leader, sends a whole map: what leads up to it is gone. */
  jump(map: ClusterMap): void {
    const data = unwrap(encodeMap(map));
    this.last = { index: this.last.index + 5000, term: 2 };
    this.raft(2, 2, {
      kind: "snapshot",
      index: this.last.index,
      snapshotTerm: 2,
      configuration: VOTERS,
      totalBytes: data.length,
      checksum: crc32c(data),
      offset: 0,
      data,
    });
  }

  /** What it has proposed since the last call, as it sent it last. */
  proposed(): readonly Uint8Array[] {
    const last = this.sent.findLast((message) => message.kind === ControlKind.Propose);
    this.sent = [];
    return last?.kind === ControlKind.Propose ? last.proposals : [];
  }

  /** The start of node 1 is in the map. */
  start(): void {
    this.commit();
    this.pass(80);
    this.commit(...this.proposed());
  }

  /** Nodes 2 and 3 say yes to all that node 1 asks of them, for so long. */
  agree(ms: number): void {
    for (const endMs = this.nowMs + ms; this.nowMs < endMs;) {
      this.pass(40);
      for (let asked = this.sent.splice(0); asked.length > 0; asked = this.sent.splice(0)) {
        for (const each of asked) if (each.kind === ControlKind.Raft) this.#answer(each.bytes);
      }
    }
  }

  #answer(bytes: Uint8Array): void {
    const message = unwrap(decodeMessage(bytes));
    const { to, term } = message;
    if (message.kind === "vote") {
      this.raft(to, term, { kind: "vote-response", isPre: message.isPre, isGranted: true });
    } else if (message.kind === "append") {
      const index = message.prevIndex + message.entries.length;
      const agreed = { agreedIndex: 0, agreedTerm: 0 };
      this.raft(to, term, { kind: "append-response", index, isRejected: false, ...agreed });
    } else if (message.kind === "heartbeat") {
      this.raft(to, term, { kind: "heartbeat-response", round: message.round });
    }
  }
}

/** What these proposals are. */
export function kindsOf(proposals: readonly Uint8Array[]): string[] {
  return proposals.map((bytes) => unwrap(decodeProposal(bytes)).command.kind);
}
