/**
 * A few nodes in lockstep, for tests that tell a story: messages go in the order in which they were
 * sent, persists are durable at once unless held, and everything can be written down.
 *
 * A transcript has one line for each thing that happens:
 *
 *     # text                          said by the test
 *     1>2 append 3/1 commit 2 +4/1    a message that arrives; `x` in front: lost
 *     1 leader, term 2                what a node has become
 *     1 applies 4, 5                  entries that reach a state machine
 *
 * @module
 */
import { assertEquals } from "@std/assert/mod.js";
import { type Configuration, decodeConfiguration } from "../../agent/consensus/configuration.ts";
import { type Entry, ENTRY_CONFIGURATION } from "../../agent/consensus/log.ts";
import type { Message } from "../../agent/consensus/messages.ts";
import { Raft } from "../../agent/consensus/raft.ts";
import type { Persist, RaftState } from "../../agent/consensus/ready.ts";
import type { ReadState } from "../../agent/consensus/reads.ts";
import { checkTranscript } from "../tools/transcript.ts";

const DIRECTORY = new URL("./transcripts/", import.meta.url);
/** Time moves in steps of so many milliseconds. */
const STEP_MS = 50;
/** Nothing that ends takes more messages. */
const MESSAGES_MAX = 100_000;

/** A node and what it has done. */
export interface Node {
  readonly id: number;
  raft: Raft;
  isRunning: boolean;
  /** Persists are kept back, in `pending`. */
  isDiskHeld: boolean;
  pending: Persist[];
  /** What its disk holds. */
  durable: RaftState;
  applied: Entry[];
  reads: ReadState[];
  restored: number[];
  state: string;
}

/** See the file's head. */
export class Group {
  readonly nodes = new Map<number, Node>();
  readonly lines: string[] = [];
  readonly #queue: Message[] = [];
  readonly #cut = new Set<string>();
  nowMs = 0;
  /** Looks at every message before it is delivered; false: lost. */
  filter: (message: Message) => boolean = () => true;

  /** Adds a node; it stands for election sooner the lower its id. */
  add(id: number, state: RaftState): Node {
    const node: Node = {
      id,
      raft: new Raft({ id, state, random: randomOf(id), nowMs: this.nowMs }),
      isRunning: true,
      isDiskHeld: false,
      pending: [],
      durable: state,
      applied: [],
      reads: [],
      restored: [],
      state: "",
    };
    this.nodes.set(id, node);
    return node;
  }

  /** Starts a node anew with what its disk holds, or with what it held before. */
  restart(id: number, state: RaftState = this.get(id).durable): void {
    this.add(id, state);
  }

  /** A group of voters 1…`voters` and learners after them, led by 1. */
  static of(voters: number, learners = 0): Group {
    const group = new Group();
    group.add(1, Raft.bootstrap(1));
    group.settle();
    for (let id = 2; id <= voters + learners; id++) {
      group.add(id, Raft.joining());
      group.change(1, { kind: "add-learner", node: id });
      group.advance(200);
      if (id <= voters) group.change(1, { kind: "promote", node: id });
      group.settle();
    }
    group.advance(200);
    group.lines.length = 0;
    return group;
  }

  get(id: number): Node {
    return this.nodes.get(id)!;
  }

  /** The machine of a node. */
  raft(id: number): Raft {
    return this.get(id).raft;
  }

  /** Proposes a change that must be accepted. */
  change(id: number, change: Parameters<Raft["proposeConfig"]>[0]): void {
    const result = this.raft(id).proposeConfig(change);
    assertEquals(result.ok ? "" : `${result.reason}: ${result.message}`, "");
  }

  /** Proposes text that must be accepted. */
  propose(id: number, text: string): number {
    const result = this.raft(id).propose(new TextEncoder().encode(text));
    if (!result.ok) throw new Error(`refused: ${result.reason}`);
    return result.index;
  }

  /** Text of the data entries that a node has applied. */
  texts(id: number): string[] {
    return this.get(id).applied.filter((entry) => entry.kind === 1)
      .map((entry) => new TextDecoder().decode(entry.data));
  }

  /** Cuts all links between these nodes and the others. */
  isolate(...ids: number[]): void {
    for (const a of ids) {
      for (const b of this.nodes.keys()) {
        if (!ids.includes(b)) this.#cut.add(`${a}>${b}`).add(`${b}>${a}`);
      }
    }
  }

  /** All links work. */
  heal(): void {
    this.#cut.clear();
  }

  /** A message from outside, from long ago perhaps. */
  inject(message: Message): void {
    this.#queue.push(message);
  }

  /** Delivers until nothing is under way. */
  settle(): void {
    for (const node of this.nodes.values()) this.#serve(node);
    for (let count = 0; this.#queue.length > 0; count++) {
      if (count > MESSAGES_MAX) throw new Error("the group never settles");
      const message = this.#queue.shift()!;
      const node = this.nodes.get(message.to);
      const isLost = node === undefined || !node.isRunning ||
        this.#cut.has(`${message.from}>${message.to}`) || !this.filter(message);
      this.lines.push((isLost ? "x " : "") + describe(message));
      if (isLost) continue;
      node.raft.step(message);
      this.#serve(node);
    }
  }

  /** Lets time pass. */
  advance(ms: number): void {
    for (const endMs = this.nowMs + ms; this.nowMs < endMs;) {
      this.nowMs += STEP_MS;
      for (const node of this.nodes.values()) {
        if (node.isRunning) node.raft.tick(this.nowMs);
        this.#serve(node);
      }
      this.settle();
    }
  }

  /** The oldest persist of a node is durable. */
  finishPersist(id: number): void {
    const node = this.get(id);
    this.#finish(node, node.pending.shift()!);
    this.#serve(node);
  }

  note(text: string): void {
    this.lines.push(`# ${text}`);
  }

  /** Compares what happened with a file, or writes it (`UPDATE_TRANSCRIPTS`). */
  check(name: string): void {
    checkTranscript(DIRECTORY, name, this.lines);
  }

  #finish(node: Node, persist: Persist): void {
    node.durable = after(node.durable, persist);
    node.raft.persisted(persist.token);
    this.#queue.push(...persist.messages);
  }

  #serve(node: Node): void {
    if (!node.isRunning) return;
    for (let ready = node.raft.ready(); ready !== null; ready = node.raft.ready()) {
      this.#queue.push(...ready.messages);
      if (ready.persist !== null) {
        if (node.isDiskHeld) node.pending.push(ready.persist);
        else this.#finish(node, ready.persist);
      }
      if (ready.snapshot !== null) {
        node.restored.push(ready.snapshot.index);
        this.lines.push(`${node.id} restores ${ready.snapshot.index}`);
      }
      if (ready.committed.length > 0) {
        node.applied.push(...ready.committed);
        this.lines.push(`${node.id} applies ${ready.committed.map((each) => each.index)}`);
      }
      for (const read of ready.reads) {
        node.reads.push(read);
        this.lines.push(`${node.id} read ${read.context} at ${read.index}`);
      }
    }
    const { role, term, configuration } = node.raft.status();
    const state = `${role}, term ${term}, ${describeConfiguration(configuration)}`;
    if (state !== node.state) this.lines.push(`${node.id} ${state}`);
    node.state = state;
  }
}

/** What a disk holds once a persist is durable. */
function after(
  before: RaftState,
  { hardState, snapshot, entries, ...persist }: Persist,
): RaftState {
  const first = entries[0]?.index ?? Infinity;
  const begin = (snapshot ?? before.snapshot).index;
  const kept = persist.isLogReplaced ? [] : before.entries.filter(({ index }) => index < first);
  return {
    term: hardState?.term ?? before.term,
    vote: hardState?.vote ?? before.vote,
    snapshot: snapshot ?? before.snapshot,
    entries: [...kept, ...entries].filter(({ index }) => index > begin),
    commit: Math.max(before.commit, persist.commit),
  };
}

/** Elections after 500 ms and 60 more for each id. */
function randomOf(id: number) {
  return { u32: () => id * 60, fill: () => {} };
}

function describeConfiguration({ voters, learners }: Configuration): string {
  return `voters ${voters}${learners.length > 0 ? ` learners ${learners}` : ""}`;
}

function describeEntry(entry: Entry): string {
  const configuration = entry.kind === ENTRY_CONFIGURATION
    ? `(${describeConfiguration(decodeConfiguration(entry.data)!)})`
    : "";
  return ` +${entry.index}/${entry.term}${configuration}`;
}

function describe(message: Message): string {
  const head = `${message.from}>${message.to} ${message.kind} t${message.term}`;
  switch (message.kind) {
    case "append":
      return `${head} ${message.prevIndex}/${message.prevTerm} commit ${message.commit}` +
        message.entries.map(describeEntry).join("");
    case "append-response":
      return message.isRejected
        ? `${head} rejects ${message.index}, perhaps ${message.agreedIndex}/${message.agreedTerm}`
        : `${head} has ${message.index}`;
    case "heartbeat":
      return `${head} commit ${message.commit} round ${message.round}`;
    case "heartbeat-response":
      return `${head} round ${message.round}`;
    case "vote":
      return `${head}${message.isPre ? " pre" : ""}${message.isTransfer ? " transfer" : ""} ` +
        `last ${message.lastIndex}/${message.lastTerm}`;
    case "vote-response":
      return `${head}${message.isPre ? " pre" : ""} ${message.isGranted ? "yes" : "no"}`;
    case "snapshot":
      return `${head} ${message.index}/${message.snapshotTerm} ` +
        `${message.offset}+${message.data.length} of ${message.totalBytes}`;
    case "snapshot-response":
      return `${head} ${message.index}/${message.snapshotTerm} ${message.offset}`;
    case "timeout-now":
      return head;
  }
}
