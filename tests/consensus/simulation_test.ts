/**
 * A few seeds of the simulation, and proof that its oracle sees what it should; `simulate.ts` runs
 * more.
 *
 * @module
 */
import { assert, assertEquals } from "@std/assert/mod.js";
import { Violation } from "./oracle.ts";
import { type Flaw, Simulation, type SimulationOptions } from "./simulation.ts";

function run(options: SimulationOptions) {
  try {
    return new Simulation(options).run();
  } catch (error) {
    console.error(`deno run -A tests/consensus/simulate.ts --seed ${options.seed}`);
    throw error;
  }
}

Deno.test("groups that fail in every way keep every promise, and get on when faults stop", () => {
  const sums = { elections: 0, crashes: 0, snapshots: 0, reads: 0, changes: 0 };
  for (let seed = 1; seed <= 10; seed++) {
    const result = run({ seed });
    for (const name of Object.keys(sums) as (keyof typeof sums)[]) sums[name] += result[name];
  }
  for (const [name, count] of Object.entries(sums)) assert(count > 10, `${name}: ${count}`);
});

Deno.test("contested elections elect one leader per term", () => {
  let elections = 0;
  for (let seed = 1; seed <= 6; seed++) elections += run({ seed, isContested: true }).elections;
  assert(elections > 30, `${elections} elections`);
});

Deno.test("a seed gives the same run again", () => {
  assertEquals(run({ seed: 5, faultsMs: 1500 }), run({ seed: 5, faultsMs: 1500 }));
});

/** Seeds within which each flaw must show. */
const SEEDS_MAX = 100;

const FLAWS: Flaw[] = ["early-persist", "forgotten-vote", "early-messages"];
for (const flaw of FLAWS) {
  Deno.test(`the oracle sees a harness with the flaw ${flaw}`, () => {
    for (let seed = 1; seed <= SEEDS_MAX; seed++) {
      try {
        new Simulation({ seed, flaw, isContested: true }).run();
      } catch (error) {
        if (error instanceof Violation) return;
        throw error;
      }
    }
    throw new Error(`${flaw} was not seen within ${SEEDS_MAX} seeds`);
  });
}
