/**
 * `./dev thrash --minutes M`: three real agents under a random change every five seconds, two loads that know what they may read, and
 * a comparison of all replicas in the end. See cluster/thrash.ts.
 *
 * @module
 */
import { parseArgs } from "node:util";
import { thrash } from "./cluster/thrash.ts";

const { values } = parseArgs({
  options: {
    minutes: { type: "string", default: "5" },
    seconds: { type: "string", default: "5" },
    hosts: { type: "string", default: "3" },
    seed: { type: "string" },
  },
});
const startMs = performance.now();
const say = (text: string) => {
  const seconds = ((performance.now() - startMs) / 1000).toFixed(1).padStart(6);
  console.log(`${seconds} s  ${text}`);
};
const seed = values.seed === undefined
  ? crypto.getRandomValues(new Uint32Array(1))[0]
  : Number(values.seed);
try {
  const result = await thrash({
    seed,
    durationMs: Number(values.minutes) * 60_000,
    everyMs: Number(values.seconds) * 1000,
    hosts: Number(values.hosts),
    say,
  });
  say(
    `${result.changes} changes; ${result.writes} writes, ${result.reads} reads, ${result.flushes} flushes; ` +
      `the longest wait ${(result.longestMs / 1000).toFixed(1)} s; all copies ` +
      `${
        (result.mendedMs / 1000).toFixed(1)
      } s after the last repair; ${result.blocks} blocks are equal`,
  );
} catch (error) {
  console.error(`FAILED with seed ${seed}: ${error instanceof Error ? error.message : error}`);
  Deno.exit(1);
}
