/**
 * Who is right where replicas differ, and who may leave to copy what it lacks.
 *
 * @module
 */
import { assertEquals, assertMatch } from "@std/assert/mod.js";
import { Prng } from "../../agent/base/prng.ts";
import {
  BEHIND,
  decide,
  NO_MAJORITY,
  NOT_ITS_OWN,
  NOT_THERE,
  whyNotWithdrawn,
} from "../../agent/replication/deciding.ts";
import { ClusterView } from "../../agent/replication/view.ts";
import { mapOf, type MapOptions } from "./harness.ts";

/** Votes of nodes 1, 2, …, each a letter; a small one is not its own. A dot has no vote. */
function rule(votes: string, { replicas = votes.length, preferred = 0 } = {}) {
  const list = [...votes].flatMap((letter, i) => {
    if (letter === ".") return [];
    const upper = letter.toUpperCase();
    return [{ node: i + 1, content: upper.charCodeAt(0), isOwn: letter === upper }];
  });
  const ruling = decide(list, { replicas, preferred });
  if (typeof ruling === "string") return ruling;
  const { content, sources, wrong } = ruling;
  return `${String.fromCharCode(content)} of ${sources} for ${wrong}`;
}

Deno.test("what more than half of all replicas in sync have of their own counts, and nothing else", () => {
  const cases: Record<string, string> = {
    "AAB": "A of 1,2 for 3",
    "BAA": "A of 2,3 for 1",
    "ABA": "A of 1,3 for 2",
    "ABC": NO_MAJORITY,
    "AB": NO_MAJORITY,
    "AABB": NO_MAJORITY,
    "AAAB": "A of 1,2,3 for 4",
    "AABBC": NO_MAJORITY,
    "CABAA": "A of 2,4,5 for 1,3",
    // One has fewer writes, and says nothing: two of three are still more than half, one is not.
    "AA.B": NO_MAJORITY,
    "AB.": NO_MAJORITY,
    // One was damaged, and has what it has from one of the others.
    "AaB": NO_MAJORITY,
    "ABb": NO_MAJORITY,
    "aAB": NO_MAJORITY,
    "AAb": "A of 1,2 for 3",
    "AAAbb": "A of 1,2,3 for 4,5",
    "AAaBB": NO_MAJORITY,
  };
  for (const [votes, expected] of Object.entries(cases)) assertEquals(rule(votes), expected, votes);
});

Deno.test("what a user prefers counts against any majority, if that node has it of its own", () => {
  assertEquals(rule("AB", { preferred: 2 }), "B of 2 for 1");
  assertEquals(rule("AAB", { preferred: 3 }), "B of 3 for 1,2");
  assertEquals(rule("ABC", { preferred: 1 }), "A of 1 for 2,3");
  assertEquals(rule("ABA", { preferred: 1 }), "A of 1 for 2");
  assertEquals(rule("AAB", { preferred: 4 }), NOT_THERE);
  assertEquals(rule("A.B", { preferred: 2 }), NOT_THERE);
  assertEquals(rule("aB", { preferred: 1 }), NOT_ITS_OWN);
});

Deno.test("whatever the votes, at most one content is right, and whoever gives it has it", () => {
  const random = new Prng(9);
  for (let i = 0; i < 5000; i++) {
    const replicas = 2 + random.below(5);
    const votes = Array.from({ length: 1 + random.below(replicas) }, (_, at) => ({
      node: at + 1,
      content: random.below(3),
      isOwn: random.chance(0.8),
    }));
    const ruling = decide(votes, { replicas, preferred: 0 });
    const own = (content: number) => votes.filter((each) => each.isOwn && each.content === content);
    const winners = [0, 1, 2].filter((content) => own(content).length > replicas / 2);
    if (typeof ruling === "string") {
      assertEquals(winners, []);
      continue;
    }
    assertEquals([ruling.content], winners);
    assertEquals(ruling.sources, own(ruling.content).map(({ node }) => node));
    const wrong = votes.filter(({ content }) => content !== ruling.content);
    assertEquals(ruling.wrong, wrong.map(({ node }) => node));
  }
});

Deno.test("who lacks writes may leave as long as enough others are left, and comes back", () => {
  const why = (nodes: number[], options: MapOptions = {}, isDisputed = false) => {
    const view = new ClusterView(mapOf(options), 1);
    return whyNotWithdrawn(view, view.pool(3)[0], nodes, isDisputed)?.replace(BEHIND, "…") ?? null;
  };
  assertEquals(why([2]), null);
  assertMatch(why([2, 3])!, /^…, and cannot leave .* 2 copies are the fewest .* 1 would be left$/);
  assertEquals(why([2, 3], { disk: { copiesMin: 1 } }), null);
  assertMatch(why([1, 2, 3], { disk: { copiesMin: 1 } })!, /1 copies .* 0 would be left$/);
  assertMatch(why([2], { disk: { copiesMin: 3 } })!, /3 copies/);
  assertMatch(why([2], { down: [3] })!, /2 copies .* 1 would be left$/);
  assertMatch(why([2], { group: { target: [1, 3, 4] } })!, /does not belong there any more/);
  assertMatch(why([2], { group: { unclean: [3] } })!, /being settled/);
  assertMatch(why([2], {}, true)!, /differ themselves/);
  const two = { group: { target: [1, 2], inSync: [1, 2] }, disk: { copiesMin: 1 } };
  assertEquals(why([2], two), null);
});
