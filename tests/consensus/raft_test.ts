/**
 * What one node does, and a few together, where a transcript would say less.
 *
 * @module
 */
import { assert, assertEquals, assertThrows } from "@std/assert/mod.js";
import { Prng } from "../../agent/base/prng.ts";
import {
  APPEND_BYTES_MAX,
  APPENDS_IN_FLIGHT_MAX,
  CAUGHT_UP_ENTRIES,
  COMPACT_ENTRIES,
  ENTRY_BYTES_MAX,
  HEARTBEAT_MS,
  LEARNER_HEARTBEAT_MS,
  LOSS_MS,
  PERSISTS_MAX,
  QUORUM_MS,
  READS_MAX,
  RETAINED_ENTRIES_MAX,
  SNAPSHOT_BYTES_MAX,
  TRANSFER_MS,
  UNCOMMITTED_BYTES_MAX,
  UNCOMMITTED_ENTRIES_MAX,
} from "../../agent/consensus/limits.ts";
import { Progress } from "../../agent/consensus/progress.ts";
import { Raft } from "../../agent/consensus/raft.ts";
import { encodeConfiguration } from "../../agent/consensus/configuration.ts";
import { type Entry, RaftLog } from "../../agent/consensus/log.ts";
import type { Message } from "../../agent/consensus/messages.ts";
import type { Persist } from "../../agent/consensus/ready.ts";
import { Group } from "./group.ts";

/** The reason of a refusal; "" where there is none. */
function reasonOf(result: { ok: boolean; reason?: string } | null): string {
  return result === null || result.ok ? "" : result.reason!;
}

function count(group: Group, pattern: RegExp): number {
  return group.lines.filter((line) => pattern.test(line)).length;
}

Deno.test("a single voter leads at once, without a tick, when its vote is durable", () => {
  const raft = new Raft({ id: 7, state: Raft.bootstrap(7), random: new Prng(1), nowMs: 0 });
  const first = raft.ready()!;
  assertEquals(first.persist!.hardState, { term: 2, vote: 7 });
  assertEquals(raft.status().role, "candidate");
  raft.persisted(first.persist!.token);
  assertEquals(raft.status().role, "leader");
});

Deno.test("bootstrap with data hands the data out before anything else", () => {
  const group = new Group();
  const node = group.add(1, Raft.bootstrap(1, new Uint8Array([1, 2])));
  group.settle();
  assertEquals(node.restored, [1]);
  assertEquals(node.applied.map((entry) => entry.index), [2]);
});

Deno.test("votes and acknowledgements wait until what they say is durable", () => {
  const group = Group.of(3);
  const node = group.get(2);
  node.isDiskHeld = true;
  group.propose(1, "a");
  group.settle();
  assertEquals(count(group, /^2>1 append-response/), 0);
  group.finishPersist(2);
  group.settle();
  assertEquals(count(group, /^2>1 append-response/), 1);
  // 3 asks for a vote; then 2's vote is not out before it is durable.
  group.isolate(1);
  group.get(3).isDiskHeld = true;
  node.pending.splice(0).forEach((persist) => node.raft.persisted(persist.token));
  group.advance(QUORUM_MS);
  assertEquals(count(group, /vote-response t3 yes/), 0);
  assertEquals(count(group, /\d>\d vote t3 last/), 0, "the request waits for the candidate's disk");
});

/** Node 1 of three that ends with entry 5 of term 3 and is in term 3, and what it answers. */
function voter(vote = 0) {
  const data = encodeConfiguration({ voters: [1, 2, 3], learners: [] });
  const snapshot = { ...Raft.joining().snapshot, index: 4, term: 2 };
  const entries: Entry[] = [{ index: 5, term: 3, kind: 2, data }];
  const state = { term: 3, vote, snapshot, entries, commit: 4 };
  const raft = new Raft({ id: 1, state, random: new Prng(1), nowMs: 0 });
  raft.ready();
  const ask = (from: number, term: number, lastIndex: number, lastTerm: number) => {
    const flags = { isPre: false, isTransfer: false };
    raft.step({ kind: "vote", from, to: 1, term, ...flags, lastIndex, lastTerm });
    return raft.ready()!;
  };
  return { raft, ask };
}

Deno.test("a vote is given once in a term, made durable, and only then told", () => {
  const { raft, ask } = voter();
  const first = ask(2, 3, 5, 3);
  assertEquals(first.messages, []);
  assertEquals(first.persist!.hardState, { term: 3, vote: 2 });
  assertEquals(
    first.persist!.messages.map((each) => each.kind === "vote-response" && each.isGranted),
    [
      true,
    ],
  );
  // Nothing new is to be written for the second, but its answer waits for the first.
  const second = ask(3, 3, 9, 3);
  assertEquals(second.messages, []);
  assertEquals(second.persist!.hardState, null);
  const refused = second.persist!.messages[0];
  assertEquals(refused.kind === "vote-response" && refused.isGranted, false);
  raft.persisted(first.persist!.token);
  raft.persisted(second.persist!.token);
  const again = ask(2, 3, 5, 3).messages[0];
  assertEquals(again.kind === "vote-response" && again.isGranted, true);
  const forgotten = voter(2).ask(3, 3, 9, 3).messages[0];
  assertEquals(forgotten.kind === "vote-response" && forgotten.isGranted, false);
});

Deno.test("only a log that is at least as new gets a vote", () => {
  const table: [number, number, boolean][] = [
    [5, 3, true],
    [6, 3, true],
    [4, 3, false],
    [99, 2, false],
    [1, 4, true],
  ];
  for (const [lastIndex, lastTerm, expected] of table) {
    const answer = voter().ask(2, 5, lastIndex, lastTerm).persist!.messages[0];
    assertEquals(answer.kind === "vote-response" && answer.isGranted, expected, `${lastIndex}`);
  }
});

Deno.test("a leader is not impressed by the term of somebody who is no member", () => {
  const group = Group.of(3);
  const head = { from: 9, to: 1, term: 99 };
  group.inject({ kind: "heartbeat-response", ...head, round: 0 });
  group.inject({
    kind: "append-response",
    ...head,
    index: 1,
    isRejected: true,
    agreedIndex: 0,
    agreedTerm: 0,
  });
  group.settle();
  assertEquals(group.raft(1).status().role, "leader");
  assertEquals(group.raft(1).status().term, 2);
});

Deno.test("a snapshot counts as durable only with its own persist, whatever was durable before", () => {
  const configuration = { voters: [1], learners: [2] };
  const entries = [2, 3, 4, 5, 6, 7, 8, 9].map((index): Entry => {
    return { index, term: 1, kind: 1, data: new Uint8Array(1) };
  });
  const snapshot = { index: 1, term: 1, configuration, data: new Uint8Array(1) };
  const log = new RaftLog(snapshot, entries, 3);
  assertEquals(log.durable, 9);
  log.beginPersist();
  log.restore({ ...snapshot, index: 7, term: 2 });
  assert(log.durable < 7);
  log.beginPersist();
  log.persisted();
  assert(log.durable < 7);
  log.persisted();
  assertEquals(log.durable, 7);
});

Deno.test("a request for a vote goes out when term and vote are durable", () => {
  const group = Group.of(3);
  group.isolate(1);
  group.get(2).isDiskHeld = true;
  group.advance(700);
  assertEquals(count(group, /2>3 vote t3 last/), 0);
  group.finishPersist(2);
  group.settle();
  assertEquals(count(group, /2>3 vote t3 last/), 1);
});

Deno.test("a leader counts itself only when the entry is durable at home", () => {
  const group = Group.of(2);
  group.get(1).isDiskHeld = true;
  const index = group.propose(1, "a");
  group.settle();
  assertEquals(group.raft(1).status().commit, index - 1);
  group.finishPersist(1);
  assertEquals(group.raft(1).status().commit, index);
});

Deno.test("nothing is applied that is not durable here, though others have committed it", () => {
  const group = Group.of(3);
  group.get(1).isDiskHeld = true;
  group.propose(1, "a");
  group.settle();
  group.propose(1, "b");
  group.settle();
  assertEquals(group.texts(2), ["a", "b"]);
  assertEquals(group.texts(1), []);
  assertEquals(group.get(1).pending.length, 2);
  group.finishPersist(1);
  assertEquals(group.texts(1), ["a"]);
  group.finishPersist(1);
  assertEquals(group.texts(1), ["a", "b"]);
});

Deno.test("persists finish in order; more than the bound are not begun", () => {
  const raft = new Raft({ id: 1, state: Raft.bootstrap(1), random: new Prng(1), nowMs: 0 });
  raft.persisted(raft.ready()!.persist!.token);
  const persists: Persist[] = [];
  for (let round = 0; round < 2 * PERSISTS_MAX; round++) {
    raft.propose(new Uint8Array(1));
    const persist = raft.ready()?.persist;
    if (persist) persists.push(persist);
  }
  assertEquals(persists.length, PERSISTS_MAX);
  const { durable } = raft.status();
  raft.persisted(persists[0].token);
  assertEquals(raft.status().durable, durable + persists[0].entries.length);
  const rest = raft.ready()!.persist!;
  assertEquals(rest.entries.length, PERSISTS_MAX);
  assertThrows(() => raft.persisted(rest.token), Error, "is next");
});

Deno.test("entries that were cut off while their persist was under way do not count as durable", () => {
  const random = new Prng(1);
  const raft = new Raft({ id: 2, state: Raft.joining(), random, nowMs: 0 });
  assertEquals(raft.status().hasOtherLog, false);
  const entry = (index: number, term: number) => ({
    index,
    term,
    kind: 1 as const,
    data: new Uint8Array(1),
  });
  const append = (term: number, entries: ReturnType<typeof entry>[], from: number) =>
    raft.step({
      kind: "append",
      from,
      to: 2,
      term,
      prevIndex: 0,
      prevTerm: 0,
      commit: 0,
      entries,
    });
  append(1, [entry(1, 1), entry(2, 1), entry(3, 1)], 1);
  const first = raft.ready()!.persist!;
  append(2, [entry(1, 1), entry(2, 2)], 3);
  const second = raft.ready()!.persist!;
  raft.persisted(first.token);
  assertEquals(raft.status().durable, 1);
  raft.persisted(second.token);
  assertEquals(raft.status().durable, 2);
  assertEquals(second.entries.map((each) => [each.index, each.term]), [[2, 2]]);
});

Deno.test("an old append message never shortens the log", () => {
  const group = Group.of(2);
  let old: Message | null = null;
  group.filter = (message) => {
    if (message.kind === "append" && message.entries.length > 0) old ??= message;
    return true;
  };
  for (const text of ["a", "b", "c"]) {
    group.propose(1, text);
    group.settle();
  }
  const { lastIndex } = group.raft(2).status();
  group.inject(old!);
  group.settle();
  assertEquals(group.raft(2).status().lastIndex, lastIndex);
  assertEquals(group.texts(2), ["a", "b", "c"]);
});

Deno.test("a leader without a majority steps down, one with a majority stays", () => {
  const group = Group.of(3);
  group.isolate(3);
  group.advance(3 * QUORUM_MS);
  assertEquals(group.raft(1).status().role, "leader");
  group.isolate(1);
  group.advance(QUORUM_MS + 2 * HEARTBEAT_MS);
  assertEquals(group.raft(1).status().role, "follower");
});

Deno.test("followers that hear their leader do not vote for anybody else", () => {
  const group = Group.of(3);
  for (const isPre of [true, false]) {
    group.inject({
      kind: "vote",
      from: 3,
      to: 2,
      term: 9,
      isPre,
      isTransfer: false,
      lastIndex: 99,
      lastTerm: 8,
    });
  }
  group.settle();
  assertEquals(group.raft(2).status().term, 2);
  assertEquals(count(group, /vote-response/), 0);
});

Deno.test("a node whose term is higher gets the group to a term in which it takes part", () => {
  const group = Group.of(3);
  group.isolate(3);
  group.propose(1, "a");
  group.settle();
  // As after elections that nobody remembers.
  group.add(3, { ...stateOf(group, 1), term: 9, vote: 3 });
  group.heal();
  group.advance(3000);
  group.propose(1, "b");
  group.settle();
  assert(group.raft(1).status().term > 9);
  assertEquals(group.texts(3), ["a", "b"]);
});

/** The durable state of a node whose log begins at 1. */
function stateOf(group: Group, id: number) {
  const { term } = group.raft(id).status();
  const entries = group.get(id).applied.slice(0, -1);
  return { term, vote: 0, snapshot: Raft.joining().snapshot, entries, commit: 0 };
}

Deno.test("a proposal that cannot be taken is refused with the reason", () => {
  const group = Group.of(3, 1);
  const leader = group.raft(1);
  assertEquals(reasonOf(group.raft(2).propose(new Uint8Array(1))), "not-leader");
  const refusal = group.raft(2).propose(new Uint8Array(1));
  assertEquals(refusal.ok ? 0 : refusal.leader, 1);
  assertEquals(reasonOf(leader.propose(new Uint8Array(ENTRY_BYTES_MAX + 1))), "too-large");
  assertEquals(reasonOf(leader.propose(new Uint8Array(ENTRY_BYTES_MAX))), "");
  group.settle();
  assertEquals(reasonOf(leader.proposeConfig({ kind: "promote", node: 3 })), "invalid");
  assertEquals(reasonOf(leader.proposeConfig({ kind: "add-learner", node: 0 })), "invalid");
  assertEquals(reasonOf(leader.proposeConfig({ kind: "add-learner", node: 9 })), "");
  assertEquals(reasonOf(leader.proposeConfig({ kind: "promote", node: 4 })), "change-pending");
  group.settle();
  assertEquals(reasonOf(leader.proposeConfig({ kind: "promote", node: 9 })), "not-caught-up");
  assertEquals(reasonOf(leader.transferLeadership(4)), "invalid");
  assertEquals(reasonOf(leader.transferLeadership(1)), "invalid");
  group.isolate(2);
  assertEquals(reasonOf(leader.transferLeadership(2)), "");
  assertEquals(reasonOf(leader.propose(new Uint8Array(1))), "transferring");
  group.advance(TRANSFER_MS);
  assertEquals(reasonOf(leader.propose(new Uint8Array(1))), "");
});

Deno.test("a transfer that is asked for again and again ends all the same", () => {
  const group = Group.of(3);
  const leader = group.raft(1);
  group.isolate(2);
  // It has not got all of the log, so it cannot be told to take over.
  group.propose(1, "x");
  group.settle();
  for (let waitedMs = 0; waitedMs < TRANSFER_MS; waitedMs += TRANSFER_MS / 10) {
    assertEquals(reasonOf(leader.transferLeadership(2)), "");
    assertEquals(reasonOf(leader.propose(new Uint8Array(1))), "transferring");
    group.advance(TRANSFER_MS / 10);
  }
  assertEquals(reasonOf(leader.propose(new Uint8Array(1))), "");
});

Deno.test("a leader changes nothing before an entry of its own term is committed", () => {
  const group = Group.of(3);
  group.isolate(1);
  group.filter = (message) => !(message.kind === "append" && message.term === 3);
  group.advance(700);
  assertEquals(group.raft(2).status().role, "leader");
  const refusal = group.raft(2).proposeConfig({ kind: "remove", node: 3 });
  assertEquals(reasonOf(refusal), "term-uncommitted");
});

Deno.test("a learner that is too far behind, or silent, is not promoted", () => {
  const group = Group.of(1, 1);
  const leader = group.raft(1);
  group.isolate(2);
  for (let index = 0; index <= CAUGHT_UP_ENTRIES; index++) group.propose(1, "x");
  group.settle();
  assertEquals(reasonOf(leader.proposeConfig({ kind: "promote", node: 2 })), "not-caught-up");
  group.heal();
  group.advance(2 * HEARTBEAT_MS);
  group.isolate(2);
  group.advance(QUORUM_MS + HEARTBEAT_MS);
  assertEquals(reasonOf(leader.proposeConfig({ kind: "promote", node: 2 })), "not-caught-up");
  group.heal();
  group.advance(2 * LEARNER_HEARTBEAT_MS);
  assertEquals(reasonOf(leader.proposeConfig({ kind: "promote", node: 2 })), "");
});

Deno.test("what is proposed and not committed is bounded in number and in bytes", () => {
  for (const [bytes, most] of [[1, UNCOMMITTED_ENTRIES_MAX], [50_000, 83]]) {
    const group = Group.of(2);
    group.isolate(2);
    let taken = 0;
    while (group.raft(1).propose(new Uint8Array(bytes)).ok) taken++;
    assertEquals(taken, most);
    assertEquals(reasonOf(group.raft(1).propose(new Uint8Array(bytes))), "full");
    group.settle();
    group.heal();
    group.advance(1000);
    assertEquals(reasonOf(group.raft(1).propose(new Uint8Array(bytes))), "");
  }
  assert(83 * 50_032 <= UNCOMMITTED_BYTES_MAX && 84 * 50_032 > UNCOMMITTED_BYTES_MAX);
});

Deno.test("messages to a follower that does not answer are bounded in number and in bytes", () => {
  const group = Group.of(2);
  const sent: number[] = [];
  group.filter = (message) => {
    if (message.kind === "append" && message.entries.length > 0) {
      sent.push(message.entries.reduce((sum, entry) => sum + entry.data.length, 0));
    }
    return message.kind !== "append";
  };
  while (group.raft(1).propose(new Uint8Array(30_000)).ok);
  group.settle();
  assertEquals(sent.length, APPENDS_IN_FLIGHT_MAX);
  assert(Math.max(...sent) <= APPEND_BYTES_MAX);
});

Deno.test("learners that lack nothing hear from the leader more rarely than voters", () => {
  const group = Group.of(2, 1);
  group.advance(1000);
  group.lines.length = 0;
  group.advance(2000);
  assertEquals(count(group, /1>2 heartbeat /), 2000 / HEARTBEAT_MS);
  assertEquals(count(group, /1>3 heartbeat /), 2000 / LEARNER_HEARTBEAT_MS);
});

Deno.test("a learner never stands, and forgets a leader that is gone", () => {
  const group = Group.of(1, 1);
  assertEquals(group.raft(2).status().leader, 1);
  group.isolate(1);
  group.advance(5000);
  assertEquals(group.raft(2).status().role, "follower");
  assertEquals(group.raft(2).status().leader, 0);
  assertEquals(count(group, /2>1 vote/), 0);
});

Deno.test("reads that come during a round share the next one", () => {
  const group = Group.of(3);
  for (let context = 1; context <= 50; context++) {
    assertEquals(group.raft(1).readIndex(context), null);
  }
  group.settle();
  assertEquals(group.get(1).reads.map((read) => read.context).length, 50);
  assertEquals(count(group, /1>2 heartbeat /), 2);
});

Deno.test("reads before the first commit of the term wait for it; too many are refused", () => {
  const group = Group.of(3);
  group.isolate(1);
  group.filter = (message) => !(message.kind === "append" && message.term === 3);
  group.advance(700);
  assertEquals(group.raft(2).readIndex(1), null);
  group.settle();
  assertEquals(group.get(2).reads, []);
  for (let context = 2; context <= READS_MAX; context++) group.raft(2).readIndex(context);
  assertEquals(reasonOf(group.raft(2).readIndex(0)), "full");
  group.filter = () => true;
  group.advance(2 * HEARTBEAT_MS);
  assertEquals(group.get(2).reads.length, READS_MAX);
  assertEquals(group.get(2).reads[0].index, group.raft(2).status().commit);
});

Deno.test("a voter whose own removal is known to it alone can still bring it about", () => {
  const group = Group.of(2);
  group.isolate(1);
  group.change(1, { kind: "remove", node: 1 });
  group.settle();
  group.advance(QUORUM_MS + HEARTBEAT_MS);
  assertEquals(group.raft(1).status().role === "leader", false);
  group.heal();
  group.advance(4000);
  assertEquals(group.raft(2).status().role, "leader");
  assertEquals(group.raft(2).status().configuration, { voters: [2], learners: [] });
});

Deno.test("a voter can be demoted; it keeps receiving and no longer counts", () => {
  const group = Group.of(3);
  group.change(1, { kind: "demote", node: 3 });
  group.settle();
  group.isolate(2);
  group.propose(1, "x");
  group.advance(300);
  assertEquals(group.texts(3), []);
  assertEquals(group.raft(3).status().configuration.learners, [3]);
  group.heal();
  group.advance(300);
  assertEquals(group.texts(3), ["x"]);
});

Deno.test("the log can be compacted up to what is applied, once", () => {
  const group = Group.of(1);
  for (let index = 0; index < COMPACT_ENTRIES; index++) group.propose(1, "x");
  assertEquals(group.raft(1).status().isCompactionDue, false);
  group.settle();
  assertEquals(group.raft(1).status().isCompactionDue, true);
  const raft = group.raft(1);
  const { applied } = raft.status();
  assertEquals(raft.compact(applied + 1, new Uint8Array(1)).ok, false);
  assertEquals(raft.compact(applied, new Uint8Array(SNAPSHOT_BYTES_MAX + 1)).ok, false);
  assertEquals(raft.compact(applied, new Uint8Array(1)).ok, true);
  assertEquals(raft.compact(applied, new Uint8Array(1)).ok, false);
  assertEquals(raft.status().isCompactionDue, false);
  assertEquals(raft.status().logBytes, 0);
});

Deno.test("a follower a little behind gets entries from before the snapshot, not the snapshot", () => {
  const group = Group.of(3);
  group.isolate(3);
  for (let index = 0; index < 5; index++) group.propose(1, `${index}`);
  group.settle();
  group.raft(1).compact(group.raft(1).status().applied, new Uint8Array(10));
  group.heal();
  group.advance(300);
  assertEquals(group.texts(3), ["0", "1", "2", "3", "4"]);
  assertEquals(group.get(3).restored, []);
});

/** A leader that has nothing but a snapshot of three parts, and a learner that has nothing. */
function withSnapshot(): Group {
  const group = new Group();
  const data = new Uint8Array(700_000);
  new Prng(3).fill(data);
  const configuration = { voters: [1], learners: [2] };
  const snapshot = { index: 50, term: 3, configuration, data };
  group.add(1, { term: 3, vote: 0, snapshot, entries: [], commit: 50 });
  group.add(2, Raft.joining());
  return group;
}

Deno.test("repeated parts of a snapshot and repeated answers do not multiply", () => {
  const group = withSnapshot();
  const copies = new Set<Message>();
  let parts = 0;
  group.filter = (message) => {
    if (message.kind !== "snapshot" && message.kind !== "snapshot-response") return true;
    if (copies.has(message)) return true;
    if (message.kind === "snapshot") parts++;
    for (let count = 0; count < 2 && copies.size < 500; count++) {
      const copy = { ...message };
      copies.add(copy);
      group.inject(copy);
    }
    return true;
  };
  group.settle();
  group.advance(200);
  assertEquals(parts, 3);
  assertEquals(group.get(2).restored, [50]);
});

Deno.test("a snapshot goes on where it was when the receiver forgets it half way", () => {
  const group = withSnapshot();
  let isRestarted = false;
  group.filter = (message) => {
    if (message.kind === "snapshot" && message.offset > 300_000 && !isRestarted) {
      isRestarted = true;
      group.add(2, Raft.joining());
      return false;
    }
    return true;
  };
  group.advance(2000);
  assertEquals(isRestarted, true);
  assertEquals(group.get(2).restored, [50]);
  assertEquals(group.raft(2).status().commit, group.raft(1).status().commit);
});

Deno.test("a member gets a newer snapshot when what follows its own is gone before it has it", () => {
  const group = withSnapshot();
  let isSlow = true;
  group.filter = (message) => !(isSlow && message.kind === "snapshot" && message.offset > 300_000);
  group.advance(200);
  const { applied } = group.raft(1).status();
  for (let more = 0; more < RETAINED_ENTRIES_MAX + 10; more += 10) {
    for (let index = 0; index < 10; index++) group.propose(1, `${more + index}`);
    group.settle();
  }
  const now = group.raft(1).status().applied;
  assertEquals(now >= applied + RETAINED_ENTRIES_MAX, true);
  assertEquals(group.raft(1).compact(now, new Uint8Array(10)).ok, true);
  isSlow = false;
  group.advance(3000);
  assertEquals(group.get(2).restored, [50, now]);
  assertEquals(group.raft(2).status().commit, group.raft(1).status().commit);
});

Deno.test("a damaged snapshot is not installed", () => {
  const group = withSnapshot();
  let damaged = 0;
  group.filter = (message) => {
    if (message.kind !== "snapshot" || message.offset === 0 || damaged > 0) return true;
    damaged++;
    const data = message.data.slice();
    data[17] ^= 1;
    group.inject({ ...message, data });
    return false;
  };
  group.settle();
  assertEquals(group.get(2).restored, []);
  group.advance(3000);
  assertEquals(group.get(2).restored, [50]);
});

Deno.test("a message that contradicts what is committed is not obeyed, and counted", () => {
  const group = Group.of(2);
  group.propose(1, "a");
  group.settle();
  const { commit, term } = group.raft(2).status();
  const entry = { index: commit, term, kind: 1 as const, data: new Uint8Array(9) };
  const head = { kind: "append", from: 1, to: 2, term, commit } as const;
  group.inject({ ...head, prevIndex: commit - 1, prevTerm: 1, entries: [{ ...entry, term: 1 }] });
  group.inject({
    ...head,
    prevIndex: commit - 2,
    prevTerm: term,
    entries: [
      { ...entry, index: commit - 1 },
      { ...entry, term: term + 1 },
    ],
  });
  group.settle();
  assertEquals(group.raft(2).status().contradictions, 2);
  assertEquals(group.raft(2).status().hasOtherLog, true);
  assertEquals(group.texts(2), ["a"]);
});

Deno.test("rubbish of every kind neither throws nor changes what is committed", () => {
  const random = new Prng(11);
  const group = Group.of(3);
  group.propose(1, "a");
  group.settle();
  const kinds: Message["kind"][] = [
    "append-response",
    "heartbeat-response",
    "vote-response",
    "snapshot-response",
    "timeout-now",
    "heartbeat",
    "vote",
  ];
  for (let round = 0; round < 3000; round++) {
    const number = () => random.pick([0, 1, 5, 8, 99, 2 ** 40]);
    group.inject({
      kind: random.pick(kinds),
      from: random.between(1, 5),
      to: random.between(1, 3),
      term: random.between(1, 4),
      index: number(),
      isRejected: random.chance(0.8),
      agreedIndex: number(),
      agreedTerm: number(),
      commit: 0,
      round: number(),
      isPre: random.chance(0.5),
      isTransfer: random.chance(0.1),
      isGranted: false,
      lastIndex: number(),
      lastTerm: number(),
      snapshotTerm: number(),
      offset: number(),
    } as unknown as Message);
    if (round % 50 === 0) group.settle();
  }
  group.settle();
  group.advance(4000);
  const leader = [1, 2, 3].find((id) => group.raft(id).status().role === "leader")!;
  group.propose(leader, "b");
  group.advance(500);
  for (const id of [1, 2, 3]) assertEquals(group.texts(id), ["a", "b"], `node ${id}`);
});

Deno.test("a snapshot in parts that are too short, or too late, is not put together", () => {
  const configuration = { voters: [1], learners: [2] };
  const raft = new Raft({ id: 2, state: Raft.joining(), random: new Prng(1), nowMs: 0 });
  const part = (offset: number, length: number, index = 9): Message => ({
    kind: "snapshot",
    from: 1,
    to: 2,
    term: 3,
    index,
    snapshotTerm: 2,
    configuration,
    totalBytes: 10_000,
    checksum: 0,
    offset,
    data: new Uint8Array(length),
  });
  const answers = (message: Message) => {
    raft.step(message);
    const ready = raft.ready();
    if (ready?.persist) raft.persisted(ready.persist.token);
    return ready?.messages.map((each) =>
      each.kind === "snapshot-response" ? each.offset : each.kind
    );
  };
  assertEquals(answers(part(0, 100)), [0]);
  assertEquals(answers(part(0, 5000)), [5000]);
  assertEquals(answers(part(0, 5000)), [5000]);
  assertEquals(answers(part(6000, 4000)), [5000]);
  assertEquals(answers(part(0, 5000, 8)), undefined, "an older one of the same leader");
  assertEquals(answers(part(0, 5000, 10)), [5000], "a newer one begins anew");
});

Deno.test("entries of earlier terms are committed only along with one of the own (figure 8)", () => {
  const data = encodeConfiguration({ voters: [1, 2, 3], learners: [] });
  const entries: Entry[] = [
    { index: 1, term: 1, kind: 2, data },
    { index: 2, term: 2, kind: 1, data: new Uint8Array(1) },
  ];
  const state = { ...Raft.joining(), term: 3, entries, commit: 1 };
  const raft = new Raft({ id: 1, state, random: new Prng(1), nowMs: 0 });
  const finish = () => {
    for (let ready = raft.ready(); ready !== null; ready = raft.ready()) {
      if (ready.persist !== null) raft.persisted(ready.persist.token);
    }
  };
  const head = { from: 2, to: 1, term: 4 };
  raft.tick(1001);
  raft.step({ kind: "vote-response", ...head, isPre: true, isGranted: true });
  finish();
  raft.step({ kind: "vote-response", ...head, isPre: false, isGranted: true });
  finish();
  assertEquals(raft.status().role, "leader");
  const accepted = { isRejected: false, agreedIndex: 0, agreedTerm: 0 };
  raft.step({ kind: "append-response", ...head, index: 2, ...accepted });
  assertEquals(raft.status().commit, 1);
  raft.step({ kind: "append-response", ...head, index: 3, ...accepted });
  assertEquals(raft.status().commit, 3);
});

Deno.test("an old rejection changes nothing about a follower", () => {
  const progress = new Progress(10, 0, false);
  assertEquals(progress.rejected(9, 6, 0), true);
  assertEquals(progress.next, 7);
  progress.isPaused = true;
  assertEquals(progress.rejected(9, 2, 0), false);
  assertEquals([progress.next, progress.isPaused], [7, true]);
  progress.accepted(6);
  progress.becomeReplicate();
  assertEquals(progress.rejected(6, 1, 0), false);
  assertEquals([progress.state, progress.next], ["replicate", 7]);
});

// ── A member that comes back without what it had acknowledged ────────────────────────────────────

/** A group in which a member has lost the last of what it had acknowledged; the others are as given. */
function forgetful(group: Group, id: number): void {
  const before = group.get(id).durable;
  for (const text of ["b", "c"]) group.propose(1, text);
  group.settle();
  assertEquals(memberOf(group, id).match, group.raft(1).status().lastIndex);
  group.restart(id, before);
  group.settle();
}

function memberOf(group: Group, id: number) {
  return group.raft(1).status().members.find(({ node }) => node === id)!;
}

/** Long enough for a leader to notice. */
const NOTICED_MS = LOSS_MS + 3 * HEARTBEAT_MS;

Deno.test("a voter that has lost what it had acknowledged gets it again, and does not count before others have all", () => {
  const group = Group.of(3);
  group.propose(1, "a");
  group.settle();
  group.isolate(3);
  forgetful(group, 2);
  group.propose(1, "d");
  group.advance(LOSS_MS - 2 * HEARTBEAT_MS);
  const { commit } = group.raft(1).status();
  assertEquals([memberOf(group, 2).hasLostLog, group.texts(2)], [false, []]);
  group.advance(5 * HEARTBEAT_MS);
  assertEquals(memberOf(group, 2).hasLostLog, true);
  assertEquals(memberOf(group, 2).match, group.raft(1).status().lastIndex, "it has all again");
  group.raft(1).readIndex(7);
  group.advance(2000);
  const status = group.raft(1).status();
  assertEquals([status.role, status.commit], ["leader", commit]);
  assertEquals(group.get(1).reads, []);
  group.heal();
  group.advance(300);
  assertEquals(memberOf(group, 2).hasLostLog, false);
  for (const id of [1, 2, 3]) assertEquals(group.texts(id), ["a", "b", "c", "d"], `${id}`);
  assertEquals(group.get(1).reads.length, 1);
  // It counts again.
  group.isolate(3);
  group.propose(1, "e");
  group.settle();
  assertEquals(group.texts(2).at(-1), "e");
});

Deno.test("of five voters three must have what was made after a loss was noticed", () => {
  const group = Group.of(5);
  group.isolate(4, 5);
  forgetful(group, 2);
  group.propose(1, "d");
  group.advance(NOTICED_MS);
  assertEquals(memberOf(group, 2).hasLostLog, true, "1 and 3 have it");
  group.heal();
  group.isolate(5);
  group.advance(300);
  assertEquals(memberOf(group, 2).hasLostLog, false, "4 has it as well");
  assertEquals(group.texts(2), ["b", "c", "d"]);
});

Deno.test("of two voters a leader knows all that the other can have promised", () => {
  const group = Group.of(2);
  forgetful(group, 2);
  group.propose(1, "d");
  group.advance(NOTICED_MS);
  assertEquals([memberOf(group, 2).hasLostLog, group.texts(2)], [false, ["b", "c", "d"]]);
  group.propose(1, "e");
  group.settle();
  assertEquals(group.texts(1).at(-1), "e");
});

Deno.test("a learner that has lost entries gets them again", () => {
  const group = Group.of(3, 1);
  forgetful(group, 4);
  group.propose(1, "d");
  group.advance(NOTICED_MS);
  assertEquals([memberOf(group, 4).hasLostLog, group.texts(4)], [false, ["b", "c", "d"]]);
});

Deno.test("while a change that takes a voter away is not committed, the configuration before it counts as well", () => {
  const group = Group.of(3);
  group.isolate(3);
  forgetful(group, 2);
  group.change(1, { kind: "demote", node: 3 });
  group.advance(NOTICED_MS);
  // Of 1 and 2 no majority is without 1, but of 1, 2 and 3 there is one.
  assertEquals(memberOf(group, 2).hasLostLog, true);
  const { commit, configurationIndex } = group.raft(1).status();
  assert(commit < configurationIndex);
  group.heal();
  group.advance(300);
  assertEquals(memberOf(group, 2).hasLostLog, false, "3 has it, though it is a learner now");
  assertEquals(group.raft(1).status().configuration.voters, [1, 2]);
  for (const id of [1, 2, 3]) assertEquals(group.texts(id), ["b", "c"], `${id}`);
});

Deno.test("old refusals do not look like a loss", () => {
  const group = Group.of(3);
  for (const text of ["a", "b", "c"]) group.propose(1, text);
  group.settle();
  const { lastIndex, term } = group.raft(1).status();
  const head = { kind: "append-response", from: 2, to: 1, term, isRejected: true } as const;
  for (let i = 0; i < 60; i++) {
    group.inject({ ...head, index: lastIndex - 1, agreedIndex: 1, agreedTerm: 1 });
    group.advance(HEARTBEAT_MS);
  }
  assertEquals([memberOf(group, 2).match, memberOf(group, 2).hasLostLog], [lastIndex, false]);
  assertEquals(group.raft(1).status().lastIndex, lastIndex, "no entry was made for it");
  // Nor do a few in a moment, unanswered.
  group.isolate(2);
  for (let i = 0; i < 60; i++) {
    group.inject({ ...head, index: lastIndex - 1, agreedIndex: 1, agreedTerm: 1 });
  }
  group.advance(LOSS_MS + 500);
  assertEquals(memberOf(group, 2).hasLostLog, false);
});

Deno.test("a commit index is believed only once the log has been compared in this life", () => {
  const data = encodeConfiguration({ voters: [1, 2, 3], learners: [] });
  // What this node had before the leader replaced it, and has again.
  const old: Entry = { index: 2, term: 2, kind: 1, data: new Uint8Array([66]) };
  const entries: Entry[] = [{ index: 1, term: 1, kind: 2, data }, old];
  const state = { ...Raft.joining(), term: 3, vote: 1, entries, commit: 1 };
  const raft = new Raft({ id: 2, state, random: new Prng(1), nowMs: 0 });
  const committed: number[] = [];
  const answers = () => {
    const messages: Message[] = [];
    for (let ready = raft.ready(); ready !== null; ready = raft.ready()) {
      messages.push(...ready.messages, ...ready.persist?.messages ?? []);
      committed.push(...ready.committed.map(({ term }) => term));
      if (ready.persist !== null) raft.persisted(ready.persist.token);
    }
    return messages;
  };
  const head = { from: 1, to: 2, term: 3 };
  raft.step({ kind: "heartbeat", ...head, commit: 2, round: 0 });
  const asked = answers().find(({ kind }) => kind === "append-response");
  const refusal = { index: 2, isRejected: true, agreedIndex: 1, agreedTerm: 1 };
  assertEquals(asked, { kind: "append-response", from: 2, to: 1, term: 3, ...refusal });
  assertEquals([raft.status().commit, committed], [1, [1]]);
  const right: Entry = { ...old, term: 3 };
  raft.step({ kind: "append", ...head, prevIndex: 1, prevTerm: 1, commit: 1, entries: [right] });
  raft.step({ kind: "heartbeat", ...head, commit: 2, round: 0 });
  answers();
  assertEquals([raft.status().commit, committed], [2, [1, 3]]);
});

Deno.test("a follower that starts anew in the term of an idle leader learns what is committed", () => {
  const group = Group.of(3);
  group.propose(1, "a");
  group.settle();
  group.restart(2, { ...group.get(2).durable, commit: 0 });
  group.advance(3 * HEARTBEAT_MS);
  assertEquals(group.texts(2), ["a"]);
  assertEquals(memberOf(group, 2).hasLostLog, false);
});

Deno.test("whoever follows a leader votes for nobody else in its term, also after a restart", () => {
  const group = Group.of(3);
  group.settle();
  const { term, lastIndex } = group.raft(1).status();
  group.restart(2, { ...group.get(2).durable, vote: 0 });
  group.advance(2 * HEARTBEAT_MS);
  assertEquals(group.get(2).durable.vote, 1);
  group.isolate(1);
  group.restart(2);
  const vote = { kind: "vote", from: 3, to: 2, term, isPre: false, isTransfer: false } as const;
  group.inject({ ...vote, lastIndex: lastIndex + 1, lastTerm: term - 1 });
  group.inject({ ...vote, lastIndex: lastIndex + 1, lastTerm: term });
  group.settle();
  assertEquals(count(group, /^2>3 vote-response .* yes/), 0);
});
