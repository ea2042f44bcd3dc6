/**
 * `./dev simulate`: whole clusters of the real code under faults, one seed after the other.
 *
 * @module
 */
import { Command } from "@commander-js/extra-typings";
import { Simulation, type SimulationReport } from "./simulator/cluster.ts";

const { seeds, from, minutes, nodes, faults, paths, verbose } = new Command("simulate")
  .description("Runs whole clusters under faults and checks that nothing is lost or wrong")
  .option("--seeds <count>", "how many seeds", Number, 100)
  .option("--from <seed>", "the first seed", Number, 1)
  .option("--minutes <minutes>", "stop after this time", Number, Infinity)
  .option("--nodes <count>", "nodes of each cluster (default: 1 to 9)", Number)
  .option("--faults <seconds>", "virtual seconds of faults", Number, 30)
  .option("--paths", "nodes have up to three data paths, which fail and are missing")
  .option("--verbose", "print what happens")
  .parse(Deno.args, { from: "user" })
  .opts();

/** Seeds between lines about the progress. */
const PROGRESS = 10;

const startMs = performance.now();
let passed = 0;
const failed: number[] = [];
const totals: Record<string, number> = {};
for (let seed = from; seed < from + seeds; seed++) {
  if (performance.now() - startMs > minutes * 60_000) break;
  try {
    const report = new Simulation({
      seed,
      nodes,
      faultsMs: faults * 1000,
      hasPaths: paths === true,
      isVerbose: verbose,
    }).run();
    passed++;
    for (const [name, count] of Object.entries(report) as [keyof SimulationReport, number][]) {
      if (name !== "seed") totals[name] = (totals[name] ?? 0) + Math.round(count);
    }
  } catch (error) {
    failed.push(seed);
    console.log(error instanceof Error ? error.message : error);
    const more = (nodes === undefined ? "" : ` --nodes ${nodes}`) +
      (paths === true ? " --paths" : "");
    console.log(
      `FAILED: seed ${seed}; repeat it with: ./dev simulate --from ${seed} --seeds 1 ` +
        `--faults ${faults}${more} --verbose`,
    );
  }
  if ((passed + failed.length) % PROGRESS === 0) {
    const seconds = Math.round((performance.now() - startMs) / 1000);
    console.log(`${passed} passed, ${failed.length} failed, ${seconds} s`);
  }
}
const seconds = Math.round((performance.now() - startMs) / 1000);
console.log(
  `${passed} seeds passed, ${failed.length} failed (${failed.join(" ")}) in ${seconds} s`,
);
console.log(Object.entries(totals).map(([name, count]) => `${count} ${name}`).join(", "));
if (failed.length > 0) Deno.exit(1);
