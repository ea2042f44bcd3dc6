/**
 * `./dev simulate` over several workers says what one would.
 *
 * @module
 */
import { assertEquals, assertMatch } from "@std/assert/mod.js";
import { type Outcome, outcomeOf, runJobs } from "./jobs.ts";
import { acknowledgeEarly } from "./sabotage.ts";

const OPTIONS = { nodes: 2, faultsMs: 500 };

Deno.test("workers report for each seed what it reports by itself", async () => {
  let seed = 1;
  const outcomes: Outcome[] = [];
  const next = () => seed > 4 ? null : { ...OPTIONS, seed: seed++ };
  await runJobs(2, next, (outcome) => outcomes.push(outcome));
  outcomes.sort((a, b) => a.seed - b.seed);
  assertEquals(outcomes, [1, 2, 3, 4].map((seed) => outcomeOf({ ...OPTIONS, seed })));
});

Deno.test("a seed that fails is an outcome with a complaint", () => {
  for (let seed = 1; seed <= 20; seed++) {
    const options = { seed, nodes: 4, faultsMs: 20_000, sabotage: acknowledgeEarly };
    const { report, complaint } = outcomeOf(options);
    if (report !== null) continue;
    return assertMatch(complaint, new RegExp(`^seed ${seed}: `));
  }
  throw new Error("no seed has failed");
});
