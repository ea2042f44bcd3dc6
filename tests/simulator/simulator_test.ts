/**
 * A few seeds of the simulation, and those that have found something; `./dev simulate` runs more.
 *
 * @module
 */
import { assert, assertEquals } from "@std/assert/mod.js";
import { Simulation, type SimulationOptions, type SimulationReport } from "./cluster.ts";
import { REGRESSIONS } from "./regressions.ts";

function run(options: SimulationOptions): SimulationReport {
  return new Simulation(options).run();
}

/** Runs seeds from one to another, and holds that all of this happened more than a few times in them. */
function runAll(
  from: number,
  to: number,
  names: readonly (keyof SimulationReport)[],
  optionsOf: (seed: number) => Partial<SimulationOptions> = () => ({}),
): void {
  const sums = new Map(names.map((name) => [name, 0]));
  for (let seed = from; seed <= to; seed++) {
    const report = run({ seed, faultsMs: 15_000, ...optionsOf(seed) });
    for (const [name, sum] of sums) sums.set(name, sum + report[name]);
  }
  for (const [name, count] of sums) assert(count > 5, `${name}: ${count}`);
}

Deno.test("clusters that fail in every way lose nothing, and heal when faults stop", () => {
  runAll(1, 8, ["writes", "zeroings", "reads", "flushes", "crashes", "epoch"]);
});

Deno.test("nodes lose data paths, go on with the others, and lose nothing", () => {
  const names = [
    "writes",
    "reads",
    "flushes",
    "failedPaths",
    "missingPaths",
    "movedGroups",
  ] as const;
  runAll(134, 146, names, () => ({ hasPaths: true }));
});

Deno.test("snapshots, clones and disks that are rolled back are what they were, whatever happens, and leave nothing behind", () => {
  const names = [
    "writes",
    "snapshots",
    "snapshotReads",
    "deletedSnapshots",
    "rollbacks",
    "flattened",
  ] as const;
  runAll(209, 216, names, () => ({ hasSnapshots: true }));
});

Deno.test("what checks do about replicas that are wrong does no harm to those that are right", () => {
  const names = [
    "writes",
    "crashes",
    "completions",
    "replacements",
    "repaired",
    "snapshots",
  ] as const;
  runAll(401, 405, names, (seed) => ({
    isSettling: true,
    hasSnapshots: seed % 2 === 0,
    hasPaths: seed % 4 === 1,
  }));
});

Deno.test("seeds that have found bugs find none any more", () => {
  for (const { found: _, ...options } of REGRESSIONS) run(options);
});

Deno.test("guests that move while they run, under every fault, have their disk at one end", () => {
  for (let seed = 1; seed <= 6; seed++) run({ seed, nodes: 3, faultsMs: 15_000, areMoving: true });
});

Deno.test("guests that are killed with requests under way leave disks that all others can have", () => {
  runAll(501, 506, ["writes", "reads", "crashes", "gone", "givenUp"], (seed) => ({
    areGoing: true,
    areMoving: seed % 2 === 0,
    hasSnapshots: seed % 4 === 1,
  }));
});

Deno.test("a seed gives the same run again", () => {
  const options = { seed: 3, nodes: 3, faultsMs: 5000 };
  assertEquals(run(options), run(options));
});
