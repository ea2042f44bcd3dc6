/**
 * Waiting for what the cluster decides: what is taken back when nobody waits any more, and what is not.
 *
 * @module
 */
import { assertEquals } from "@std/assert/mod.js";
import { decide, type Decision } from "../../agent/decision.ts";
import { clusterOf } from "../map/cluster.ts";
import { createDisk, Fixture } from "./fixture.ts";

/** Longer than any test takes. */
const LONG_MS = 60_000;

function names(at: Fixture): string[] {
  return at.control.map.disks.map(({ name }) => name);
}

function wordsOf(decision: Decision): string {
  if (decision.kind === "decided") return decision.result.ok ? "ok" : decision.result.error.code;
  return `${decision.isUnwanted ? "unwanted" : "late"}, ${decision.isOver ? "over" : "open"}`;
}

Deno.test("what nobody waits for any more when it would be proposed is not", async () => {
  const at = new Fixture(clusterOf(1));
  at.pass(3000);
  const gone = AbortSignal.abort();
  const decision = await decide(at.control, createDisk("x"), { timeoutMs: LONG_MS, gone });
  at.pass(1000);
  assertEquals([wordsOf(decision), names(at)], ["unwanted, over", []]);
});

Deno.test("what was not sent to a leader is taken back when whoever asked has gone", async () => {
  const at = new Fixture(clusterOf(1));
  const gone = new AbortController();
  const options = { timeoutMs: LONG_MS, gone: gone.signal };
  const decision = decide(at.control, createDisk("x"), options);
  gone.abort();
  assertEquals(wordsOf(await decision), "unwanted, over");
  at.pass(3000);
  assertEquals(names(at), []);
});

Deno.test("what is in the log when whoever asked goes is waited for: what follows from it has to be done", async () => {
  const at = new Fixture(clusterOf(1));
  at.pass(3000);
  const gone = new AbortController();
  const options = { timeoutMs: LONG_MS, gone: gone.signal };
  const decision = decide(at.control, createDisk("x"), options);
  at.wait(40);
  gone.abort();
  at.pass(200);
  assertEquals([wordsOf(await decision), names(at)], ["ok", ["x"]]);
});

Deno.test("what takes too long is taken back, and said to be open only where it may be in a log", async () => {
  const at = new Fixture(clusterOf(1));
  const early = decide(at.control, createDisk("early"), { timeoutMs: 1 });
  assertEquals(wordsOf(await early), "late, over");
  at.pass(3000);
  const late = decide(at.control, createDisk("late"), { timeoutMs: 1 });
  assertEquals(wordsOf(await late), "late, open");
  at.pass(200);
  assertEquals(names(at), ["late"], "it was in the log");
});

Deno.test("what has to be decided is not taken back, and is told of however late it is", async () => {
  const at = new Fixture(clusterOf(1));
  let decided = 0;
  const options = { timeoutMs: 1, gone: AbortSignal.abort(), onDecided: () => decided++ };
  const decision = await decide(at.control, createDisk("x"), options);
  assertEquals([wordsOf(decision), decided], ["late, open", 0]);
  at.pass(4000);
  assertEquals([names(at), decided], [["x"], 1]);
});
