/**
 * Makes the self-contained program: `./dev compile [--target TRIPLE] [--output PATH]`.
 *
 *     cli/main.ts           --bundle-->  .cache/bundle/main.js, …      --+
 *                                                                        +--compile--> dist/kelpie
 *     agent/data_worker.ts  --bundle-->  .cache/bundle/data_worker.js  --+
 *
 * Bundled first, the program starts faster and carries no packages that it does not use. What is imported
 * when it is needed (`await import(…)`: each command, the agent, a front end) becomes a file of its own, so
 * that a small command reads a tenth of the whole. All of them lie in one directory: the worker is a program of
 * its own, found at run time beside the file that starts it. A module in `agent/` names it
 * `"./data_worker" + import.meta.url.slice(-3)`, which fits both sources and bundles.
 *
 * There is no code cache of V8: the runtime keeps that under a name that can be guessed in the directory
 * for temporary files, where whoever puts one there first has an agent of root's run it.
 *
 * `deno compile` embeds `denort`, which it downloads; DENORT_BIN names one that is there already, for
 * this machine's architecture only.
 *
 * @module
 */

import { parseArgs } from "node:util";
import { programPermissions } from "./permissions.ts";

const ROOT = decodeURIComponent(new URL("../..", import.meta.url).pathname);
const BUNDLE_DIR = `${ROOT}.cache/bundle`;

/** What is bundled, with the flags that say how and where to: into {@linkcode BUNDLE_DIR}. */
const BUNDLES: readonly (readonly string[])[] = [
  ["--code-splitting", "--outdir", BUNDLE_DIR, `${ROOT}cli/main.ts`],
  ["--output", `${BUNDLE_DIR}/data_worker.js`, `${ROOT}agent/data_worker.ts`],
];

if (import.meta.main) await compile();

async function compile(): Promise<void> {
  const { values: { target = Deno.build.target, output } } = parseArgs({
    args: Deno.args,
    options: { target: { type: "string" }, output: { type: "string" } },
  });
  const isNative = target === Deno.build.target;
  const path = output ?? `${ROOT}dist/kelpie${isNative ? "" : `-${target.split("-")[0]}`}`;
  // Files that are split off have their content's hash in their names: those of the last time would stay.
  await Deno.remove(BUNDLE_DIR, { recursive: true }).catch((error) => {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
  });
  await Deno.mkdir(BUNDLE_DIR, { recursive: true });
  for (const flags of BUNDLES) await deno(["bundle", "--quiet", ...flags]);
  await deno([
    ...["compile", "--quiet", "--no-check", "--no-code-cache", ...programPermissions()],
    ...["--target", target, "--include", `${BUNDLE_DIR}/data_worker.js`],
    ...["--output", path, `${BUNDLE_DIR}/main.js`],
  ], { withDenort: isNative });
  console.error(`made ${path}`);
}

/** Runs deno, and ends with its status when it fails; it has said why. */
async function deno(args: string[], { withDenort = true } = {}): Promise<void> {
  const env = Deno.env.toObject();
  if (!withDenort) delete env.DENORT_BIN;
  const options = { args, env, clearEnv: true, cwd: ROOT, stdin: "null" } as const;
  const { code } = await new Deno.Command(Deno.execPath(), options).spawn().status;
  if (code !== 0) Deno.exit(code);
}
