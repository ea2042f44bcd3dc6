/**
 * `./dev simulate`: whole clusters of the real code under faults, seed after seed, as many at a time as there are cores.
 *
 * @module
 */
import { Command, InvalidArgumentError } from "@commander-js/extra-typings";
import type { SimulationReport } from "./simulator/cluster.ts";
import { type Outcome, runJobs } from "./simulator/jobs.ts";

/** Seeds between lines about the progress. */
const PROGRESS = 10;

function parseJobs(text: string): number {
  const jobs = Number(text);
  if (Number.isInteger(jobs) && jobs >= 1) return jobs;
  throw new InvalidArgumentError("it must be a whole number from 1 on.");
}

/** Options that make a run another one, beside its seed. */
const KINDS = ["going", "moving", "paths", "settling", "snapshots"] as const;

const options = new Command("simulate")
  .description("Runs whole clusters under faults and checks that nothing is lost or wrong")
  .option("--seeds <count>", "how many seeds", Number, 100)
  .option("--from <seed>", "the first seed", Number, 1)
  .option("--minutes <minutes>", "stop after this time", Number, Infinity)
  .option("--nodes <count>", "nodes of each cluster (default: 1 to 9)", Number)
  .option("--faults <seconds>", "virtual seconds of faults", Number, 30)
  .option(
    "--jobs <count>",
    "seeds that run at a time (default: one per core, with --verbose one)",
    parseJobs,
  )
  .option("--going", "guests are killed with requests under way")
  .option("--moving", "guests move while they run")
  .option("--paths", "nodes have up to three data paths, which fail and are missing")
  .option("--settling", "chunks are copied and blocks replaced as checks have it, without need")
  .option("--snapshots", "snapshots and clones are taken, read, flattened and deleted")
  .option("--verbose", "print what happens")
  .parse(Deno.args, { from: "user" })
  .opts();
const { seeds, from, minutes, nodes, faults, verbose, jobs } = options;

const startMs = performance.now();
let passed = 0;
const failed: number[] = [];
const totals: Record<string, number> = {};

function secondsSoFar(): number {
  return Math.round((performance.now() - startMs) / 1000);
}

function count({ seed, report, complaint }: Outcome): void {
  if (report === null) {
    failed.push(seed);
    console.log(complaint);
    const kinds = KINDS.filter((kind) => options[kind]).map((kind) => ` --${kind}`);
    const more = (nodes === undefined ? "" : ` --nodes ${nodes}`) + kinds.join("");
    console.log(
      `FAILED: seed ${seed}; repeat it with: ./dev simulate --from ${seed} --seeds 1 ` +
        `--faults ${faults}${more} --verbose`,
    );
  } else {
    passed++;
    for (const [name, number] of Object.entries(report) as [keyof SimulationReport, number][]) {
      if (name !== "seed") totals[name] = (totals[name] ?? 0) + Math.round(number);
    }
  }
  if ((passed + failed.length) % PROGRESS === 0) {
    console.log(`${passed} passed, ${failed.length} failed, ${secondsSoFar()} s`);
  }
}

let seed = from;
const next = () => {
  if (seed >= from + seeds || performance.now() - startMs > minutes * 60_000) return null;
  return {
    seed: seed++,
    nodes,
    faultsMs: faults * 1000,
    areGoing: options.going,
    areMoving: options.moving,
    hasPaths: options.paths,
    hasSnapshots: options.snapshots,
    isSettling: options.settling,
    isVerbose: verbose,
  };
};
await runJobs(jobs ?? (verbose ? 1 : navigator.hardwareConcurrency), next, count);
failed.sort((a, b) => a - b);
console.log(
  `${passed} seeds passed, ${failed.length} failed (${failed.join(" ")}) in ${secondsSoFar()} s`,
);
console.log(Object.entries(totals).map(([name, count]) => `${count} ${name}`).join(", "));
if (failed.length > 0) Deno.exit(1);
