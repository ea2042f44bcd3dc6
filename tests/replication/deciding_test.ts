/**
 * Who is right where replicas differ, and who copies what it lacks.
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
  whyNotCompleted,
} from "../../agent/replication/deciding.ts";

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

Deno.test("who lacks writes copies them where as many have them, and those are the same, or a user says so", () => {
  const why = (behind: number[], upToDate: number[], more: object = {}) => {
    const rest = { preferred: 0, isDisputed: false, isMerged: false, ...more };
    return whyNotCompleted({ behind, upToDate, ...rest })?.replace(BEHIND, "…") ?? null;
  };
  assertEquals(why([2], [1]), null);
  assertEquals(why([2], [1, 3]), null);
  assertEquals(why([2, 4], [1, 3]), null);
  assertMatch(why([2, 3], [1])!, /^…, and so do more than have them/);
  assertEquals(why([2, 3], [1], { preferred: 1 }), null);
  assertMatch(why([2, 3], [1], { preferred: 4 })!, /more than have them/);
  assertMatch(why([2], [1, 3], { preferred: 2 })!, /^…, though its content/);
  assertMatch(why([2], [1, 3], { isDisputed: true })!, /^…, and those differ themselves/);
  assertMatch(why([2], [1, 3], { isMerged: true })!, /^…, and its layer is being merged/);
});
