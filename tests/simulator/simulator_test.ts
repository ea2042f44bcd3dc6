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

Deno.test("clusters that fail in every way lose nothing, and heal when faults stop", () => {
  const sums = { writes: 0, zeroings: 0, reads: 0, flushes: 0, crashes: 0, epoch: 0 };
  for (let seed = 1; seed <= 8; seed++) {
    const report = run({ seed, faultsMs: 15_000 });
    for (const name of Object.keys(sums) as (keyof typeof sums)[]) sums[name] += report[name];
  }
  for (const [name, count] of Object.entries(sums)) assert(count > 5, `${name}: ${count}`);
});

Deno.test("nodes lose data paths, go on with the others, and lose nothing", () => {
  const sums = { writes: 0, reads: 0, flushes: 0, failedPaths: 0, missingPaths: 0, movedGroups: 0 };
  for (let seed = 101; seed <= 119; seed++) {
    const report = run({ seed, faultsMs: 15_000, hasPaths: true });
    for (const name of Object.keys(sums) as (keyof typeof sums)[]) sums[name] += report[name];
  }
  for (const [name, count] of Object.entries(sums)) assert(count > 5, `${name}: ${count}`);
});

Deno.test("snapshots, clones and disks that are rolled back are what they were, whatever happens, and leave nothing behind", () => {
  const sums = {
    writes: 0,
    snapshots: 0,
    snapshotReads: 0,
    deletedSnapshots: 0,
    rollbacks: 0,
    flattened: 0,
  };
  for (let seed = 209; seed <= 216; seed++) {
    const report = run({ seed, faultsMs: 15_000, hasSnapshots: true });
    for (const name of Object.keys(sums) as (keyof typeof sums)[]) sums[name] += report[name];
  }
  for (const [name, count] of Object.entries(sums)) assert(count > 5, `${name}: ${count}`);
});

Deno.test("what checks do about replicas that are wrong does no harm to those that are right", () => {
  const sums = {
    writes: 0,
    crashes: 0,
    completions: 0,
    replacements: 0,
    repaired: 0,
    snapshots: 0,
  };
  for (let seed = 401; seed <= 408; seed++) {
    const report = run({
      seed,
      faultsMs: 15_000,
      isSettling: true,
      hasSnapshots: seed % 2 === 0,
      hasPaths: seed % 4 === 1,
    });
    for (const name of Object.keys(sums) as (keyof typeof sums)[]) sums[name] += report[name];
  }
  for (const [name, count] of Object.entries(sums)) assert(count > 5, `${name}: ${count}`);
});

Deno.test("seeds that have found bugs find none any more", () => {
  for (const { found: _, ...options } of REGRESSIONS) run(options);
});

Deno.test("guests that move while they run, under every fault, have their disk at one end", () => {
  for (let seed = 1; seed <= 6; seed++) run({ seed, nodes: 3, faultsMs: 15_000, areMoving: true });
});

Deno.test("guests that are killed with requests under way leave disks that all others can have", () => {
  const sums = { writes: 0, reads: 0, crashes: 0, gone: 0, givenUp: 0 };
  for (let seed = 501; seed <= 506; seed++) {
    const report = run({
      seed,
      faultsMs: 15_000,
      areGoing: true,
      areMoving: seed % 2 === 0,
      hasSnapshots: seed % 4 === 1,
    });
    for (const name of Object.keys(sums) as (keyof typeof sums)[]) sums[name] += report[name];
  }
  for (const [name, count] of Object.entries(sums)) assert(count > 5, `${name}: ${count}`);
});

Deno.test("a seed gives the same run again", () => {
  const options = { seed: 3, nodes: 3, faultsMs: 5000 };
  assertEquals(run(options), run(options));
});
