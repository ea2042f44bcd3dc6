/**
 * Runs the simulation of consensus with as many seeds as asked.
 *
 *     deno run -A tests/consensus/simulate.ts [--seeds N] [--from SEED] [--minutes M] [--seed SEED]
 *         [--flaw early-persist|forgotten-vote|early-messages] [--contested]
 *
 * @module
 */
import { type Flaw, Simulation, type SimulationResult } from "./simulation.ts";

function option(name: string): string | undefined {
  const at = Deno.args.indexOf(`--${name}`);
  return at < 0 ? undefined : Deno.args[at + 1];
}

const one = option("seed");
const from = Number(one ?? option("from") ?? 1);
const seeds = one !== undefined ? 1 : Number(option("seeds") ?? 200);
const endMs = performance.now() + 60_000 * Number(option("minutes") ?? Infinity);
const flaw = option("flaw") as Flaw | undefined;
const isContested = Deno.args.includes("--contested");
const sums: Record<string, number> = {};
const failed: number[] = [];
const started = performance.now();
let seed = from;
for (; seed < from + seeds && performance.now() < endMs; seed++) {
  try {
    const result: SimulationResult = new Simulation({ seed, flaw, isContested }).run();
    for (const [name, count] of Object.entries(result)) sums[name] = (sums[name] ?? 0) + count;
  } catch (error) {
    failed.push(seed);
    if (failed.length <= 3) console.error(`seed ${seed}:`, error);
  }
}
const seconds = ((performance.now() - started) / 1000).toFixed(1);
const counts = Object.entries(sums).map(([name, count]) => `${count} ${name}`).join(", ");
console.log(
  `${seed - from} seeds from ${from}, ${failed.length} failed in ${seconds} s: ${counts}`,
);
if (failed.length > 0) console.log(`seeds that failed: ${failed.slice(0, 50).join(" ")}`);
if (failed.length > 0) Deno.exit(1);
