/**
 * A few seeds of each crash scenario; `crash_task.ts` runs more.
 *
 * @module
 */
import { SCENARIOS } from "./crash_scenarios.ts";
import { withSeed } from "./harness.ts";

/** Seeds of each scenario that together take some ten seconds. */
const SEEDS: Record<string, number> = {
  everyBoundary: 4,
  randomBoundaries: 2,
  nearlyFull: 3,
  longReplay: 3,
  manyCheckpoints: 2,
  killThenPowerLoss: 3,
  writeErrors: 4,
  bitRot: 10,
  tailRot: 4,
  lostWrites: 8,
  everyAbsorb: 4,
  cleanedAbsorbs: 3,
  cleanedChain: 4,
  everyFill: 4,
};

for (const [name, scenario] of Object.entries(SCENARIOS)) {
  Deno.test(`a store after a crash holds what was promised: ${name}`, () => {
    for (let seed = 1; seed <= SEEDS[name]; seed++) {
      withSeed(seed, name, () => void scenario(seed));
    }
  });
}
