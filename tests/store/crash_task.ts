/**
 * Runs the crash scenarios with as many seeds as asked.
 *
 *     deno run -A tests/store/crash_task.ts [--seeds N] [--from SEED] [--seed SEED] [--only NAME]
 *
 * @module
 */
import { SCENARIOS } from "./crash_scenarios.ts";

function option(name: string): string | undefined {
  const at = Deno.args.indexOf(`--${name}`);
  return at < 0 ? undefined : Deno.args[at + 1];
}

const one = option("seed");
const from = Number(one ?? option("from") ?? 1);
const seeds = one !== undefined ? 1 : Number(option("seeds") ?? 20);
const only = option("only");
let failures = 0;
for (const [name, scenario] of Object.entries(SCENARIOS)) {
  if (only !== undefined && only !== name) continue;
  let crashes = 0;
  const started = performance.now();
  const failed: number[] = [];
  for (let seed = from; seed < from + seeds; seed++) {
    try {
      crashes += scenario(seed);
    } catch (error) {
      failed.push(seed);
      failures++;
      if (failed.length <= 3) console.error(`${name}, seed ${seed}:`, error);
    }
  }
  const seconds = ((performance.now() - started) / 1000).toFixed(1);
  console.log(
    `${name}: ${seeds} seeds, ${crashes} crashes, ${failed.length} failed in ${seconds} s` +
      (failed.length > 0 ? `; seeds ${failed.slice(0, 20).join(" ")}` : ""),
  );
}
if (failures > 0) Deno.exit(1);
