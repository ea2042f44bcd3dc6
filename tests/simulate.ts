/**
 * `./dev simulate`: whole clusters of the real code under faults, one seed after the other.
 *
 * @module
 */
import { Command } from "@commander-js/extra-typings";
import { Simulation } from "./simulator/cluster.ts";

const { seeds, from, minutes, nodes, faults, verbose } = new Command("simulate")
  .description("Runs whole clusters under faults and checks that nothing is lost or wrong")
  .option("--seeds <count>", "how many seeds", Number, 100)
  .option("--from <seed>", "the first seed", Number, 1)
  .option("--minutes <minutes>", "stop after this time", Number, Infinity)
  .option("--nodes <count>", "nodes of each cluster (default: 1 to 6)", Number)
  .option("--faults <seconds>", "virtual seconds of faults", Number, 30)
  .option("--verbose", "print what happens")
  .parse(Deno.args, { from: "user" })
  .opts();

const startMs = performance.now();
let passed = 0;
const failed: number[] = [];
const totals = { writes: 0, reads: 0, flushes: 0, crashes: 0, virtualMs: 0 };
for (let seed = from; seed < from + seeds; seed++) {
  if (performance.now() - startMs > minutes * 60_000) break;
  try {
    const report = new Simulation({
      seed,
      nodes,
      faultsMs: faults * 1000,
      isVerbose: verbose,
    }).run();
    passed++;
    totals.writes += report.writes;
    totals.reads += report.reads;
    totals.flushes += report.flushes;
    totals.crashes += report.crashes;
    totals.virtualMs += report.virtualMs;
  } catch (error) {
    failed.push(seed);
    console.log(error instanceof Error ? error.message : error);
    console.log(
      `FAILED: seed ${seed}; repeat it with: ./dev simulate --from ${seed} --seeds 1 --verbose`,
    );
  }
  if ((passed + failed.length) % 20 === 0) {
    const seconds = Math.round((performance.now() - startMs) / 1000);
    console.log(`${passed} passed, ${failed.length} failed, ${seconds} s`);
  }
}
console.log(
  `${passed} seeds passed, ${failed.length} failed (${
    failed.join(" ")
  }); ${totals.writes} writes, ` +
    `${totals.reads} reads, ${totals.flushes} flushes, ${totals.crashes} crashes, ` +
    `${Math.round(totals.virtualMs / 1000)} virtual seconds in ` +
    `${Math.round((performance.now() - startMs) / 1000)} s`,
);
if (failed.length > 0) Deno.exit(1);
