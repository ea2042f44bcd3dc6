/**
 * Elections where a sync takes longer than the shortest time without a leader.
 *
 * @module
 */
import { assertEquals } from "@std/assert/mod.js";
import type { Message } from "../../agent/consensus/messages.ts";
import { Raft } from "../../agent/consensus/raft.ts";
import type { Persist, RaftState } from "../../agent/consensus/ready.ts";
import { Prng } from "../../agent/base/prng.ts";

const STEP_MS = 10;

interface Node {
  readonly raft: Raft;
  /** What is being synced until then, and what will be next. */
  batch: Persist[];
  next: Persist[];
  endMs: number;
}

/** Nodes whose disks sync one batch after the other; what comes meanwhile shares the next sync. */
class Slow {
  readonly nodes = new Map<
    number,
    { raft: Raft; batch: Persist[]; next: Persist[]; endMs: number }
  >();
  nowMs = 0;
  constructor(
    states: Map<number, RaftState>,
    readonly syncMs: (id: number) => number,
    seed: number,
  ) {
    for (const [id, state] of states) {
      const raft = new Raft({ id, state, random: new Prng(seed * 100 + id), nowMs: 0 });
      this.nodes.set(id, { raft, batch: [], next: [], endMs: 0 });
    }
  }

  /** @returns milliseconds until somebody leads; −1: nobody in `ms` */
  run(ms: number): number {
    let queue: Message[] = [];
    for (; this.nowMs < ms; this.nowMs += STEP_MS) {
      const now = queue;
      queue = [];
      for (const message of now) this.nodes.get(message.to)?.raft.step(message);
      for (const [id, node] of this.nodes) {
        node.raft.tick(this.nowMs);
        if (node.batch.length > 0 && this.nowMs >= node.endMs) {
          for (const persist of node.batch) {
            node.raft.persisted(persist.token);
            queue.push(...persist.messages);
          }
          node.batch = [];
        }
        for (let ready = node.raft.ready(); ready !== null; ready = node.raft.ready()) {
          queue.push(...ready.messages);
          if (ready.persist !== null) node.next.push(ready.persist);
        }
        if (node.batch.length === 0 && node.next.length > 0) {
          node.batch = node.next;
          node.next = [];
          node.endMs = this.nowMs + this.syncMs(id);
        }
        if (node.raft.role === "leader") return this.nowMs;
      }
    }
    return -1;
  }
}

function stateOf(voters: number[]): RaftState {
  return {
    term: 5,
    vote: 0,
    snapshot: {
      index: 10,
      term: 5,
      configuration: { voters, learners: [] },
      data: new Uint8Array(1),
    },
    entries: [],
    commit: 10,
  };
}

/** Number of voters, and how long a sync of each of those takes that are up, in milliseconds. */
const CASES: readonly (readonly [voters: number, syncs: readonly number[]])[] = [
  [1, [1100]],
  [1, [2500]],
  [3, [300, 300]],
  [3, [450, 450]],
  [3, [600, 600]],
  [3, [10, 1100]],
  [3, [2000, 2000]],
  [3, [600, 600, 600]],
  [3, [10, 2000, 2000]],
  [5, [1000, 1000, 1000, 1000, 1000]],
];

Deno.test("there is a leader, however slow the disks are", () => {
  const missing: string[] = [];
  for (const [count, syncs] of CASES) {
    const voters = Array.from({ length: count }, (_, i) => i + 1);
    for (let seed = 1; seed <= 10; seed++) {
      const states = new Map(syncs.map((_, i) => [i + 1, stateOf(voters)]));
      const group = new Slow(states, (id) => syncs[id - 1], seed);
      if (group.run(600_000) < 0) missing.push(`of ${count}, syncs of ${syncs} ms, seed ${seed}`);
    }
  }
  assertEquals(missing, []);
});
