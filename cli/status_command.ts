/**
 * `kelpie status`: one line when all is well, details only of what is not, and notes where there are any.
 *
 * @module
 */
import { formatSize } from "../agent/config.ts";
import type { StatusDocument } from "../agent/http/documents.ts";
import { type AnyCommand, type CommandContext, examples } from "./context.ts";
import { ExitCode, type Output, printable } from "./output.ts";
import { pathField } from "./node_commands.ts";
import { plural } from "./units.ts";

/** Adds `status`. */
export function addStatusCommand(program: AnyCommand, context: CommandContext): void {
  program.command("status")
    .summary("say how the cluster and its disks are")
    .description(
      "Says how the cluster is, as the agent that is asked sees it: one line when all is well, else what is " +
        "wrong, what waits, how far it is and what to do about it. Ends with 0 when all is well and with 1 " +
        "when something is not.",
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
  printProblems(output, status);
  for (const note of status.cluster?.notes ?? []) {
    output.line(`${output.styled("dim", "note")}: ${printable(note)}`);
  }
}

function printProblems(output: Output, status: StatusDocument): void {
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

function printDetails(output: Output, status: StatusDocument): void {
  const { agent, store, disks, epoch } = status;
  const guests = disks.flatMap(({ sessions }) => sessions).length;
  output.line("");
  output.fields([
    ["agent", `version ${agent.version}, pid ${agent.pid}`],
    ["running since", new Date(agent.startedMs).toISOString()],
    ["node", agent.nodeId],
    ["cluster", `${agent.clusterId}, epoch ${epoch}`],
    ...clusterFields(status),
    ["sockets", agent.runDir],
    ["disks", `${disks.length}, with ${plural(guests, "connection")}`],
    ...storeFields(store),
  ]);
}

function clusterFields({ cluster, groups }: StatusDocument): [string, string][] {
  if (cluster === null || groups === null) return [];
  const { nodes, voters, leader } = cluster;
  const up = nodes.filter((node) => node.state === "up").length;
  const nameOf = (id: number) => nodes.find((node) => node.id === id)?.name ?? `node ${id}`;
  const moving = [
    [groups.degraded, "with fewer copies than wanted"],
    [groups.joining, "catching up"],
    [groups.misplaced, "to be moved"],
  ].flatMap(([number, what]) => number === 0 ? [] : [`${number} ${what}`]);
  return [
    ["nodes", `${nodes.length}, ${up} up`],
    ["leader", leader === 0 ? "none known" : nameOf(leader)],
    ["voters", voters.map(nameOf).join(", ")],
    ["placement groups", [`${groups.whole} of ${groups.total} whole`, ...moving].join(", ")],
  ];
}

function storeFields(store: StatusDocument["store"]): [string, string][] {
  if (store === null) return [];
  return [
    ["store", `${store.path}, ${store.cache}`],
    ...(store.paths.length < 2 ? [] : store.paths.map(pathField)),
    ["capacity", formatSize(store.capacityBytes)],
    ["live data", formatSize(store.liveBytes)],
    ["free segments", formatSize(store.freeBytes)],
    ["index", `${formatSize(store.indexBytes)} of memory`],
    ["damaged blocks", String(store.damagedBlocks)],
  ];
}
