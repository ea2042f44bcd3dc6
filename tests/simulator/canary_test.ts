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

type Sabotage = NonNullable<SimulationOptions["sabotage"]>;

/** What a checker says of one seed; "" when nothing. */
function complaintOf(options: SimulationOptions): string {
  try {
    new Simulation(options).run();
    return "";
  } catch (error) {
    return (error as Error).message.split("\n")[0];
  }
}

/** Runs seeds until a checker complains. */
function complaintAbout(sabotage: Sabotage): string {
  for (let seed = 1; seed <= SEEDS_MAX; seed++) {
    const complaint = complaintOf({ seed, nodes: 4, faultsMs: 20_000, sabotage });
    if (complaint !== "") return complaint;
  }
  return "nothing was noticed";
}

/** What is said of blocks that cannot have been those of one disk, or of replicas that are not the same. */
const IS_WRONG = /not linearizable|overwritten before|zeros|nobody wrote|differ:/;

Deno.test("a sequencer that acknowledges before the last replica has the write is caught", () => {
  assertMatch(complaintAbout(acknowledgeEarly), IS_WRONG);
});

Deno.test("a replica that forgets to fence is caught", () => {
  const lag: Sabotage = (_process, simulation) => {
    for (const node of simulation.nodes) node.dataLagMs = node.id % 2 === 0 ? 0 : LAG_MS;
  };
  const sabotage: Sabotage = (process, simulation) => {
    lag(process, simulation);
    forgetToFence(process);
  };
  // Rarely is a fence the last thing between a late write and the disk: from a seed on where it is. What the sound build,
  // which lags as much, makes of the same seed is the proof that it is the fence.
  for (let seed = 223; seed < 223 + SEEDS_MAX; seed++) {
    const options = { seed, nodes: 3, faultsMs: 30_000 };
    const complaint = complaintOf({ ...options, sabotage });
    if (!IS_WRONG.test(complaint) || complaintOf({ ...options, sabotage: lag }) !== "") continue;
    return;
  }
  throw new Error("nothing was noticed");
});

Deno.test("a replica that is read though it is not in sync is caught", () => {
  assertMatch(complaintAbout(readOutOfSync), /not in sync/);
});
