/**
 * Stories, message by message; `UPDATE_TRANSCRIPTS=1 deno test -A` writes them anew (then review
 * them).
 *
 * @module
 */
import { Raft } from "../../agent/consensus/raft.ts";
import { Group } from "./group.ts";

Deno.test("transcript: one node becomes three", () => {
  const group = new Group();
  group.note("a single voter leads as soon as its vote is durable");
  group.add(1, Raft.bootstrap(1));
  group.settle();
  for (const id of [2, 3]) {
    group.note(`${id} joins: learner first, voter when it has caught up`);
    group.add(id, Raft.joining());
    group.change(1, { kind: "add-learner", node: id });
    group.settle();
    group.change(1, { kind: "promote", node: id });
    group.settle();
  }
  group.check("membership_grow");
});

Deno.test("transcript: the leader removes itself", () => {
  const group = Group.of(3);
  group.change(1, { kind: "remove", node: 1 });
  group.settle();
  group.note("the new leader works without it");
  group.propose(2, "x");
  group.settle();
  group.check("membership_remove_leader");
});

Deno.test("transcript: a leader is lost and comes back", () => {
  const group = Group.of(3);
  group.note("1 is cut off with an entry that nobody else has");
  group.isolate(1);
  group.propose(1, "lost");
  group.settle();
  group.note("2 notices first");
  group.advance(700);
  group.propose(2, "kept");
  group.settle();
  group.note("1 has given up by itself by then");
  group.advance(400);
  group.note("1 returns");
  group.heal();
  group.advance(100);
  group.check("election");
});

Deno.test("transcript: a node that was cut off returns without disturbing anybody", () => {
  const group = Group.of(3);
  group.isolate(3);
  group.note("3 is cut off; it only enquires and stays in its term");
  group.advance(2000);
  group.propose(1, "meanwhile");
  group.settle();
  group.heal();
  group.note("3 enquires once more before it hears the leader, and is ignored");
  const { term } = group.raft(3).status();
  group.inject({
    kind: "vote",
    from: 3,
    to: 1,
    term: term + 1,
    isPre: true,
    isTransfer: false,
    lastIndex: 99,
    lastTerm: term,
  });
  group.settle();
  group.advance(100);
  group.check("pre_vote");
});

Deno.test("transcript: a snapshot is installed in parts, with losses", () => {
  const group = Group.of(1);
  for (let count = 0; count < 3; count++) group.propose(1, `e${count}`);
  group.settle();
  const { applied } = group.raft(1).status();
  group.raft(1).compact(applied, new Uint8Array(600 * 1024).fill(7));
  group.settle();
  // A node that starts with the snapshot has no entries before it, as after a restart.
  const restarted = new Group();
  restarted.add(1, {
    term: 2,
    vote: 1,
    snapshot: {
      index: applied,
      term: 2,
      configuration: { voters: [1], learners: [] },
      data: new Uint8Array(600 * 1024).fill(7),
    },
    entries: [],
    commit: applied,
  });
  restarted.settle();
  restarted.lines.length = 0;
  restarted.note("2 is empty, and the log begins after the snapshot; the second part is lost once");
  let lost = 0;
  restarted.filter = (message) => {
    return !(message.kind === "snapshot" && message.offset > 0 && lost++ === 0);
  };
  restarted.add(2, Raft.joining());
  restarted.change(1, { kind: "add-learner", node: 2 });
  restarted.settle();
  restarted.note("it is sent again");
  restarted.advance(400);
  restarted.note("2 can be promoted");
  restarted.change(1, { kind: "promote", node: 2 });
  restarted.settle();
  restarted.check("snapshot");
});

Deno.test("transcript: leadership is handed over", () => {
  const group = Group.of(3);
  group.note("3 lacks an entry and gets it first");
  group.isolate(3);
  group.propose(1, "a");
  group.settle();
  group.heal();
  group.raft(1).transferLeadership(3);
  group.advance(150);
  group.check("transfer");
});

Deno.test("transcript: a read while another leads already gets no answer", () => {
  const group = Group.of(3);
  group.note("a read of a leader that is heard");
  group.raft(1).readIndex(1);
  group.settle();
  group.note("1 is cut off, 2 leads, 1 does not know");
  group.isolate(1);
  group.advance(700);
  group.propose(2, "newer");
  group.settle();
  group.raft(1).readIndex(2);
  group.advance(100);
  group.note("1 learns of it");
  group.heal();
  group.advance(150);
  group.check("read_deposed");
});
