/**
 * `kelpie status`: one line when all is well, details only of what is not.
 *
 * @module
 */
import { formatSize } from "../agent/config.ts";
import type { StatusDocument } from "../agent/http/documents.ts";
import { type AnyCommand, type CommandContext, examples } from "./context.ts";
import { ExitCode, type Output, printable } from "./output.ts";
import { plural } from "./units.ts";

/** Adds `status`. */
export function addStatusCommand(program: AnyCommand, context: CommandContext): void {
  program.command("status")
    .summary("say how the agent is")
    .description(
      "Says how the agent is: one line when all is well, else what is wrong and what to do about it. " +
        "Ends with 0 when all is well and with 1 when something is not.",
    )
    .option("--verbose", "say what is well, too")
    .option("--json", "print JSON")
    .addHelpText("after", examples("kelpie status", "kelpie status --json | jq .store"))
    .action(async ({ json, verbose }) => {
      using client = context.client();
      const status = await client.status();
      if (!status.healthy) context.exitCode = ExitCode.Failure;
      if (json) return context.output.json(status);
      printStatus(context.output, status);
      if (verbose) printDetails(context.output, status);
    });
}

function printStatus(output: Output, status: StatusDocument): void {
  if (status.healthy) {
    const { store } = status;
    const index = store === null ? "" : `, ${formatSize(store.indexBytes)} of memory for the index`;
    const summary = status.summary.replace(/^healthy/, output.styled("good", "healthy"));
    return output.line(`${summary}${index}`);
  }
  for (const { message, hint } of status.problems) {
    output.line(`${output.styled("bad", "problem")}: ${printable(message)}`);
    output.line(`  ${output.styled("dim", printable(hint))}`);
  }
}

function printDetails(output: Output, { agent, store, disks, epoch }: StatusDocument): void {
  const guests = disks.flatMap(({ sessions }) => sessions).length;
  output.line("");
  output.fields([
    ["agent", `version ${agent.version}, pid ${agent.pid}`],
    ["running since", new Date(agent.startedMs).toISOString()],
    ["node", agent.nodeId],
    ["cluster", `${agent.clusterId}, epoch ${epoch}`],
    ["sockets", agent.runDir],
    ["disks", `${disks.length}, with ${plural(guests, "connection")}`],
    ...storeFields(store),
  ]);
}

function storeFields(store: StatusDocument["store"]): [string, string][] {
  if (store === null) return [];
  return [
    ["store", `${store.path}, ${store.cache}`],
    ["capacity", formatSize(store.capacityBytes)],
    ["live data", formatSize(store.liveBytes)],
    ["free segments", formatSize(store.freeBytes)],
    ["index", `${formatSize(store.indexBytes)} of memory`],
    ["damaged blocks", String(store.damagedBlocks)],
  ];
}
