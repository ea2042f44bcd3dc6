/**
 * The checkers of the simulation see builds that are broken.
 *
 * @module
 */
import { assertMatch } from "@std/assert/mod.js";
import { Simulation, type SimulationOptions } from "./cluster.ts";
import { acknowledgeEarly, forgetToFence, readWhileJoining } from "./sabotage.ts";

/** Seeds within which each must be seen. */
const SEEDS_MAX = 12;

/** Runs seeds until a checker complains. */
function complaintAbout(sabotage: NonNullable<SimulationOptions["sabotage"]>): string {
  for (let seed = 1; seed <= SEEDS_MAX; seed++) {
    try {
      new Simulation({ seed, nodes: 4, faultsMs: 15_000, sabotage }).run();
    } catch (error) {
      return (error as Error).message.split("\n")[0];
    }
  }
  return "nothing was noticed";
}

Deno.test("a sequencer that acknowledges before the last replica has the write is caught", () => {
  assertMatch(complaintAbout(acknowledgeEarly), /not linearizable|overwritten before|zeros|differ/);
});

Deno.test("a replica that forgets to fence is caught", () => {
  assertMatch(complaintAbout(forgetToFence), /not linearizable|overwritten before|zeros|differ/);
});

Deno.test("a replica that is read though it is not in sync is caught", () => {
  assertMatch(
    complaintAbout(readWhileJoining),
    /not in sync|not linearizable|overwritten before|zeros/,
  );
});
