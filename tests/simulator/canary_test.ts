/**
 * The checkers of the simulation see builds that are broken.
 *
 * @module
 */
import { assertMatch } from "@std/assert/mod.js";
import { Simulation, type SimulationOptions } from "./cluster.ts";
import { acknowledgeEarly, forgetToFence, readOutOfSync } from "./sabotage.ts";

/** Seeds within which each must be seen. */
const SEEDS_MAX = 20;
/** How long every other data worker may take to hear of a new map: what fences are for. */
const LAG_MS = 1500;

/** Runs seeds until a checker complains. */
function complaintAbout(sabotage: NonNullable<SimulationOptions["sabotage"]>): string {
  for (let seed = 1; seed <= SEEDS_MAX; seed++) {
    try {
      new Simulation({ seed, nodes: 4, faultsMs: 20_000, sabotage }).run();
    } catch (error) {
      return (error as Error).message.split("\n")[0];
    }
  }
  return "nothing was noticed";
}

/** What is said of blocks that cannot have been those of one disk, or of replicas that are not the same. */
const IS_WRONG = /not linearizable|overwritten before|zeros|nobody wrote|differ/;

Deno.test("a sequencer that acknowledges before the last replica has the write is caught", () => {
  assertMatch(complaintAbout(acknowledgeEarly), IS_WRONG);
});

Deno.test("a replica that forgets to fence is caught", () => {
  const sabotage: NonNullable<SimulationOptions["sabotage"]> = (process, simulation) => {
    for (const node of simulation.nodes) node.dataLagMs = node.id % 2 === 0 ? 0 : LAG_MS;
    forgetToFence(process);
  };
  assertMatch(complaintAbout(sabotage), IS_WRONG);
});

Deno.test("a replica that is read though it is not in sync is caught", () => {
  assertMatch(complaintAbout(readOutOfSync), /not in sync/);
});
