/**
 * `./dev crash [--cycles N] [--seed S]`: kills a real agent under load again and again, and looks whether all that it
 * acknowledged is there. What it does comes from the seed; the moments of death do not.
 *
 * @module
 */
import { parseArgs } from "node:util";
import { runCrashes } from "./e2e/crash_run.ts";

const CYCLES_USUAL = 100;
/** Cycles between two lines of progress. */
const LINE_EVERY = 10;

function count(text: string, what: string): number {
  const value = Number(text);
  if (/^\d+$/.test(text) && value > 0 && value < 2 ** 32) return value;
  console.error(`--${what} ${text}: it must be a whole number from 1 on`);
  Deno.exit(64);
}

const { values } = parseArgs({
  args: Deno.args,
  options: {
    cycles: { type: "string", default: String(CYCLES_USUAL) },
    seed: { type: "string", default: String(crypto.getRandomValues(new Uint32Array(1))[0] || 1) },
  },
});
const cycles = count(values.cycles, "cycles");
const seed = count(values.seed, "seed");
const directory = await Deno.makeTempDir({ prefix: "kelpie-crash-" });
for (const name of ["SIGINT", "SIGTERM"] as const) {
  Deno.addSignalListener(name, () => {
    Deno.removeSync(directory, { recursive: true });
    Deno.exit(130);
  });
}
console.log(`${cycles} cycles from seed ${seed}, in ${directory}`);
try {
  const started = performance.now();
  const report = await runCrashes({
    directory,
    cycles,
    seed,
    onCycle(cycle, { requests, kills, killedStarting, resubmitted, openSectors }) {
      if (cycle % LINE_EVERY !== 0) return;
      console.log(
        `${cycle} cycles: ${requests} requests, ${kills} kills and ${killedStarting} while starting, ` +
          `${resubmitted} requests went on after one, ${openSectors} sectors were left open`,
      );
    },
  });
  const seconds = ((performance.now() - started) / 1000).toFixed(0);
  console.log(
    `${report.cycles} cycles in ${seconds} s: all that was acknowledged is there, and no sector is a mix`,
  );
  await Deno.remove(directory, { recursive: true });
} catch (error) {
  console.error(error instanceof Error ? error.message : error);
  console.error(`the data is left in ${directory}; again with: ./dev crash --seed ${seed}`);
  Deno.exit(1);
}
Deno.exit(0);
