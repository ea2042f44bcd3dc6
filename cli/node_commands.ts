/**
 * `kelpie node list`, `info`, `drain`, `undrain`, `weight`, `zone` and `remove`: the nodes of a cluster and where its
 * data belongs.
 *
 * A change that moves data says what moves, how much and how long, and asks. It is then made only if nodes and places
 * are still those that were shown; otherwise nothing is changed, the new plan is shown, and the question is asked again.
 * What `--yes` agrees to is whatever plan there is, but each one is shown before it is carried out, and there is an end
 * to it where places never come to rest.
 *
 * @module
 */
import type { AdminClient } from "../agent/admin_client.ts";
import { drainedText } from "../agent/cluster_status.ts";
import { formatSize, parseSize } from "../agent/config.ts";
import type { PathStatus } from "../agent/http/backend.ts";
import type {
  ClusterDocument,
  NodeDocument,
  PlanDocument,
  PlanRequest,
} from "../agent/http/documents.ts";
import { ControlFailure } from "../agent/map/errors.ts";
import {
  type AnyCommand,
  type CommandContext,
  examples,
  nodeArgument,
  sizeText,
  zoneArgument,
} from "./context.ts";
import { CommandError, ExitCode, type Output, printable } from "./output.ts";
import { Progress } from "./progress.ts";
import { formatDuration, formatRate, plural } from "./units.ts";

/** How often a node that is being drained is looked at. */
const WAIT_INTERVAL_MS = 1000;

/** Nodes that a plan names; `--dry-run --json` has all. */
const PLAN_NODES_MAX = 20;

/**
 * Plans of one change, the first included, before it is given up. A node that has just joined makes two or three
 * changes of places within a second: its capacity, then targets for each number of copies.
 */
const PLANS_MAX = 10;
/** How long places may come to rest before they are looked at again. */
const REPLAN_INTERVAL_MS = 500;

/** Adds the commands to `kelpie node`. */
export function addNodeCommands(node: AnyCommand, context: CommandContext): void {
  addList(node, context);
  addInfo(node, context);
  addDrain(node, context);
  addUndrain(node, context);
  addWeight(node, context);
  addZone(node, context);
  addRemove(node, context);
}

function addList(node: AnyCommand, context: CommandContext): void {
  node.command("list")
    .alias("ls")
    .summary("list the nodes")
    .description("Lists the nodes of the cluster, as the agent that is asked sees them.")
    .option("--names", "only names, one per line")
    .option("--json", "print JSON")
    .addHelpText("after", examples("kelpie node list", "kelpie node list --json"))
    .action(async ({ names, json }) => {
      const { output } = context;
      using client = context.client();
      const nodes = await client.nodes();
      if (json) return output.json(nodes);
      if (names) return nodes.forEach(({ name }) => output.line(name));
      output.table(
        ["NAME", "STATE", "ROLE", "ZONE", ">WEIGHT", ">USED", ">CAPACITY", "VERSION", "ADDRESS"],
        nodes.map(rowOf),
      );
      for (const node of nodes) {
        const { name, version, isProgramNew, suspectedBecause, stuck, paths } = node;
        const reasons = [
          isProgramNew === true ? `runs ${version}, and another program is installed there` : "",
          ...paths.filter(({ state }) => state !== "ok").map(({ location, state, reason }) =>
            `lacks data path ${location}: ${state}, ${reason}`
          ),
          suspectedBecause === null ? "" : `does not answer: ${suspectedBecause}`,
          stuck === null ? "" : `cannot catch up: ${stuck}`,
          ...logReasons(node),
        ].filter((reason) => reason !== "");
        for (const reason of reasons) {
          output.line(output.styled("warning", `${name} ${printable(reason)}`));
        }
      }
    });
}

function rowOf(node: NodeDocument): string[] {
  return [
    node.name,
    stateOf(node),
    roleOf(node),
    node.zone || "-",
    node.witness ? "-" : weightText(node.weight),
    node.witness ? "-" : node.usedBytes === null ? "?" : formatSize(node.usedBytes),
    node.witness ? "-" : formatSize(node.capacityBytes),
    node.version,
    node.address,
  ];
}

/** `up`, `up, draining`, `down, out`, `up, suspect`, `up, catching up`, `up, full`. */
function stateOf(node: NodeDocument): string {
  const { state, availability, gossip, isSelf } = node;
  return [
    state,
    state === "up" && !isSelf && gossip !== "alive" ? gossip : "",
    availability === "draining" && node.groupsLeft === 0
      ? "drained"
      : availability === "in"
      ? ""
      : availability,
    node.joiningGroups > 0 ? "catching up" : "",
    node.isFull ? "full" : "",
  ].filter((word) => word !== "").join(", ");
}

function roleOf({ isLeader, isVoter, witness }: NodeDocument): string {
  const words = [isLeader ? "leader" : isVoter ? "voter" : "", witness ? "witness" : ""];
  return words.filter((word) => word !== "").join(", ") || "-";
}

function levelsText({ levelMin, levelMax }: NodeDocument): string {
  return levelMin === levelMax ? `level ${levelMax}` : `levels ${levelMin} to ${levelMax}`;
}

function weightText(weight: number | null): string {
  return weight === null ? "auto" : weight === 0 ? "0" : formatSize(weight);
}

function addInfo(node: AnyCommand, context: CommandContext): void {
  node.command("info")
    .summary("tell everything about a node")
    .description("Tells everything about a node, as the agent that is asked sees it.")
    .argument("<node>", "its name or id", nodeArgument)
    .option("--json", "print JSON")
    .addHelpText("after", examples("kelpie node info host-1"))
    .action(async (name, { json }) => {
      using client = context.client();
      const found = await client.node(name);
      if (json) return context.output.json(found);
      printInfo(context.output, found);
    });
}

function printInfo(output: Output, node: NodeDocument): void {
  const { usedBytes, capacityBytes, copyBytesPerSecond, secondsLeft } = node;
  const used = usedBytes === null ? "not reported" : formatSize(usedBytes);
  const copying = [
    plural(node.joiningGroups, "placement group"),
    `${plural(node.chunksLeft, "chunk")} left`,
    ...(copyBytesPerSecond === null ? [] : [formatRate(copyBytesPerSecond)]),
    ...(secondsLeft === null ? [] : [`about ${formatDuration(secondsLeft * 1000)}`]),
  ].join(", ");
  output.fields([
    ["name", node.isSelf ? `${node.name} (this node)` : node.name],
    ["id", String(node.id)],
    ["state", `${stateOf(node)}, since ${new Date(node.sinceMs).toISOString()}`],
    ["role", roleOf(node)],
    ["gossip", node.isSelf ? "-" : node.gossip],
    ["address", node.address],
    ["zone", node.zone || "a zone of its own"],
    ["version", `${node.version}, which speaks ${levelsText(node)}`],
    ["weight", node.weight === null ? "from capacity" : weightText(node.weight)],
    ["used", node.witness ? "nothing: a witness" : `${used} of ${formatSize(capacityBytes)}`],
    ["placement groups", `${node.groups} there, ${node.groupsWanted} wanted`],
    ["only copies", node.onlyCopies === 0 ? "none" : plural(node.onlyCopies, "placement group")],
    ["catching up", node.joiningGroups === 0 ? "no" : copying],
    ["open disks", node.openDisks.join(", ") || "none"],
    ["damaged blocks", String(node.damagedBlocks)],
    ...(node.paths.length < 2 ? [] : node.paths.map(pathField)),
  ]);
  for (const problem of [node.suspectedBecause, node.stuck]) {
    if (problem !== null) output.line(output.styled("bad", printable(problem)));
  }
  for (const reason of logReasons(node)) output.line(output.styled("bad", reason));
}

/** What is wrong with its log of consensus. */
function logReasons({ hasLostLog, hasOtherLog }: NodeDocument): string[] {
  return [
    ...(hasOtherLog ? ["has another log than the cluster, and takes no part any more"] : []),
    ...(hasLostLog ? ["has lost a part of the cluster's log, and does not count for now"] : []),
  ];
}

/** A data path as a line of details. */
export function pathField(path: PathStatus): [string, string] {
  const { state, reason, usedBytes, capacityBytes, isFull } = path;
  const room = `${formatSize(usedBytes)} of ${formatSize(capacityBytes)}`;
  const text = state === "ok"
    ? `${room}${isFull ? ", full" : ""}`
    : `${state}, held up to ${formatSize(capacityBytes)}: ${reason}`;
  return ["data path", `${path.location}: ${text}`];
}

// ---------------------------------------------------------------------------------------- changes

/** Options of everything that moves data. */
interface MoveOptions {
  readonly yes?: boolean;
  readonly dryRun?: boolean;
  readonly json?: boolean;
}

const DRY_RUN = ["--dry-run", "only say what would move"] as const;
const JSON_PLAN = ["--json", "with --dry-run: print the plan as JSON"] as const;

function addDrain(node: AnyCommand, context: CommandContext): void {
  node.command("drain")
    .summary("move all data away from a node")
    .description(
      "Moves all data away from a node, which serves it meanwhile. Then the node can be removed. Guests that " +
        "run there stay.",
    )
    .argument("<node>", "its name or id", nodeArgument)
    .option("--wait", "until nothing is left there; interrupting only ends the waiting")
    .option("--yes", "do not ask")
    .option(...DRY_RUN)
    .option(...JSON_PLAN)
    .addHelpText(
      "after",
      examples("kelpie node drain host-1 --wait", "kelpie node drain host-1 --dry-run"),
    )
    .action(async (name, { wait, ...options }) => {
      using client = context.client();
      const isMade = await change(context, client, {
        name,
        request: { availability: "draining" },
        action: `drain node ${name}`,
        options,
      });
      if (!isMade) return;
      if (wait) return await waitUntilDrained(context, client, name);
      const { groupsLeft } = await client.node(name);
      context.output.say(
        groupsLeft === 0
          ? drainedText(name)
          : `node ${name} is being drained; 'kelpie status' says how far it is`,
      );
    });
}

function addUndrain(node: AnyCommand, context: CommandContext): void {
  node.command("undrain")
    .summary("give a node data again")
    .description("Takes back a drain: the node gets its share of data again.")
    .argument("<node>", "its name or id", nodeArgument)
    .option("--yes", "do not ask")
    .option(...DRY_RUN)
    .option(...JSON_PLAN)
    .addHelpText("after", examples("kelpie node undrain host-1"))
    .action(async (name, options) => {
      using client = context.client();
      const isMade = await change(context, client, {
        name,
        request: { availability: "in" },
        action: `give node ${name} data`,
        options,
      });
      if (!isMade) return;
      const { state } = await client.node(name);
      const when = state === "up" ? "" : " once it is up again";
      context.output.say(`node ${name} takes its share of data${when}`);
    });
}

function addWeight(node: AnyCommand, context: CommandContext): void {
  node.command("weight")
    .summary("change a node's share of data")
    .description(
      "Changes a node's share of data. Weights count in relation to each other; without one, a node's " +
        "capacity is its weight.",
    )
    .argument("<node>", "its name or id", nodeArgument)
    .argument("<weight>", "a size such as 2T, or auto", weightArgument)
    .option("--yes", "do not ask")
    .option(...DRY_RUN)
    .option(...JSON_PLAN)
    .addHelpText(
      "after",
      examples("kelpie node weight host-1 2T", "kelpie node weight host-1 auto"),
    )
    .action(async (name, text, options) => {
      using client = context.client();
      const weight = text === "auto" ? null : parseSize(text);
      const isMade = await change(context, client, {
        name,
        request: { weight },
        action: `change the weight of node ${name}`,
        options,
      });
      if (isMade) context.output.say(`node ${name} has the weight ${weightText(weight)}`);
    });
}

function weightArgument(text: string): string {
  return text === "auto" ? text : sizeText(text);
}

function addZone(node: AnyCommand, context: CommandContext): void {
  node.command("zone")
    .summary("change a node's zone")
    .description(
      "Changes the zone of a node: copies of data go to different zones while there are enough of them, and those of disks that are " +
        "kept in some zones only to nodes there.",
    )
    .argument("<node>", "its name or id", nodeArgument)
    .argument("<zone>", "any name, or none for a zone of its own", zoneArgument)
    .option("--yes", "do not ask")
    .option(...DRY_RUN)
    .option(...JSON_PLAN)
    .addHelpText("after", examples("kelpie node zone host-1 rack-2"))
    .action(async (name, zone, options) => {
      using client = context.client();
      const isMade = await change(context, client, {
        name,
        request: { zone },
        action: `change the zone of node ${name}`,
        options,
      });
      const where = zone === "" ? "a zone of its own" : `zone ${zone}`;
      if (isMade) context.output.say(`node ${name} is in ${where}`);
    });
}

/** A change of a node that a command is to make. */
interface WantedChange {
  readonly name: string;
  readonly request: Omit<PlanRequest, "remove">;
  readonly action: string;
  readonly options: MoveOptions;
}

/**
 * Shows what a change moves, asks, and makes it; all of that again when what was shown is not so any more.
 *
 * @returns whether it was made
 */
async function change(
  context: CommandContext,
  client: AdminClient,
  wanted: WantedChange,
): Promise<boolean> {
  const { output, terminal } = context;
  for (let plans = 1;; plans++) {
    try {
      return await changeOnce(context, client, wanted);
    } catch (error) {
      if (!isStale(error)) throw error;
      if (plans === PLANS_MAX) {
        throw new CommandError(
          ExitCode.Failure,
          `${PLANS_MAX} plans were out of date before they were carried out: ${error.message}`,
          { hint: "'kelpie status' shows what goes on; try again when places are at rest" },
        );
      }
      output.say(`${error.message}; this is the new plan`);
    }
    await terminal.sleep(REPLAN_INTERVAL_MS, terminal.interrupted());
  }
}

/** Whether a change was refused for the sake of a plan that is not true any more. */
function isStale(error: unknown): error is ControlFailure {
  return error instanceof ControlFailure && error.error.code === "stale";
}

/** One plan, one question, one try. @throws {ControlFailure} `stale` when the plan is not true any more */
async function changeOnce(
  { output }: CommandContext,
  client: AdminClient,
  { name, request, action, options }: WantedChange,
): Promise<boolean> {
  // What is so already needs no question.
  if (!options.dryRun && isAlready(await client.node(name), request)) return true;
  const plan = await client.planNode(name, request);
  if (!show(output, plan, options)) return false;
  if (request.availability === "draining" && plan.groupsImmovable > 0) {
    throw new CommandError(ExitCode.Failure, `too few other nodes take the data of node ${name}`, {
      hint: "add a node first, undrain another, or remove those that are drained",
    });
  }
  const consequences = [
    ...(plan.movedReplicas > 0 ? [`${movedText(plan)} will be copied`] : []),
    ...(plan.groupsWithFewer > 0 ? [fewerText(plan)] : []),
  ];
  if (consequences.length > 0) {
    const consequence = consequences.join("; ");
    output.confirm({ yes: options.yes === true, action, consequence });
  }
  await client.changeNode(name, { ...request, targetsEpoch: plan.targetsEpoch });
  return true;
}

function isAlready(
  node: NodeDocument,
  { availability, weight, zone }: Omit<PlanRequest, "remove">,
): boolean {
  return (availability === undefined || availability === node.availability) &&
    (weight === undefined || weight === node.weight) &&
    (zone === undefined || zone === node.zone);
}

/** Shows a plan: as data when that is all that is wanted, else beside it. */
function show(output: Output, plan: PlanDocument, { dryRun, json }: MoveOptions): boolean {
  if (json && !dryRun) {
    throw new CommandError(ExitCode.Usage, "--json prints a plan: it needs --dry-run");
  }
  if (!dryRun) {
    for (const line of planLines(plan)) output.say(line);
    return true;
  }
  if (json) output.json(plan);
  else for (const line of planLines(plan)) output.line(line);
  return false;
}

/** What moves, how much, how long: one line, and one for each node. */
export function planLines(plan: PlanDocument): string[] {
  const warnings = warningLines(plan);
  if (plan.movedReplicas === 0) return ["no data moves", ...warnings];
  const rate = formatRate(plan.rateBytesPerSecond);
  const how = plan.isRateMeasured ? `at ${rate}, as now` : `if nodes copy at ${rate}`;
  const time = plan.seconds === null
    ? "nodes have not said how much that is"
    : `about ${formatDuration(plan.seconds * 1000)} ${how}`;
  const lines = [`${movedText(plan)} will be copied: ${time}`];
  const shown = plan.nodes.slice(0, PLAN_NODES_MAX);
  const width = Math.max(...shown.map(({ name }) => name.length));
  for (const { name, comes, goes, receivesBytes, sendsBytes } of shown) {
    const parts = [
      comes > 0 ? `gets ${comes}${sizeOf(receivesBytes)}` : "",
      goes > 0 ? `gives away ${goes}` : "",
      sendsBytes !== null && sendsBytes > 0 ? `sends ${formatSize(sendsBytes)}` : "",
    ].filter((part) => part !== "");
    lines.push(`  ${name.padEnd(width)}  ${parts.join(", ") || "-"}`);
  }
  const rest = plan.nodes.length - shown.length;
  if (rest > 0) lines.push(`  and ${plural(rest, "more node")}`);
  return [...lines, ...warnings];
}

/** What is not as one would wish after it. */
function warningLines(plan: PlanDocument): string[] {
  const { replicasWithoutSource, groupsWithFewer, groupsImmovable } = plan;
  const lines: string[] = [];
  if (replicasWithoutSource > 0) {
    const copies = plural(replicasWithoutSource, "copy", "copies");
    lines.push(`${copies} must wait: no node that is up has the data`);
  }
  if (groupsWithFewer > 0) lines.push(fewerText(plan));
  if (groupsImmovable > 0) {
    const groups = plural(groupsImmovable, "placement group stays", "placement groups stay");
    lines.push(`${groups} where they are: too few other nodes take their data`);
  }
  return lines;
}

function fewerText({ groupsWithFewer }: PlanDocument): string {
  return `${plural(groupsWithFewer, "placement group")} will have fewer copies than now: ` +
    "there are not enough nodes";
}

function movedText({ movedReplicas, movedBytes }: PlanDocument): string {
  return `${plural(movedReplicas, "copy", "copies")} of placement groups${sizeOf(movedBytes)}`;
}

function sizeOf(bytes: number | null): string {
  return bytes === null ? "" : ` (${formatSize(bytes)})`;
}

/** Follows a drain to its end. */
async function waitUntilDrained(
  context: CommandContext,
  client: AdminClient,
  name: string,
): Promise<void> {
  const { output, terminal } = context;
  const signal = terminal.interrupted();
  const total = (await client.node(name)).groupsLeft;
  const progress = new Progress(output, `draining ${name}`, total, "groups");
  let trouble = "";
  try {
    for (;;) {
      const node = await client.node(name);
      if (node.groupsLeft === 0) break;
      if (node.availability !== "draining") {
        throw new CommandError(ExitCode.Failure, `node ${name} is not being drained any more`, {
          hint: `it is ${node.availability} now: somebody has changed that meanwhile`,
        });
      }
      // A node may get data that somebody began to move there before.
      progress.update(Math.max(0, total - node.groupsLeft));
      const now = await troubleOf(client);
      if (now !== "" && now !== trouble) {
        progress.end();
        output.warn(printable(now));
      }
      trouble = now;
      await terminal.sleep(WAIT_INTERVAL_MS, signal);
    }
  } finally {
    progress.end();
  }
  output.say(drainedText(name));
}

/** What keeps data from moving, or "". */
async function troubleOf(client: AdminClient): Promise<string> {
  const { hasQuorum, nodes, groups } = await client.cluster();
  if (!hasQuorum) return "no majority of the voters can be reached: nothing moves";
  const stuck = nodes.find((node) => node.stuck !== null);
  if (stuck !== undefined) return `node ${stuck.name} cannot catch up: ${stuck.stuck}`;
  const full = nodes.find((node) => node.isFull);
  if (full !== undefined) return `the store of node ${full.name} is full`;
  return groups.unreadableReason;
}

function addRemove(node: AnyCommand, context: CommandContext): void {
  node.command("remove")
    .alias("rm")
    .summary("take a node out of the cluster for good")
    .description(
      "Takes a node out of the cluster for good: one that is drained, or with --force one that is down and " +
        "will not come back. Its number is never given again, and its store cannot return.",
    )
    .argument("<node>", "its name or id", nodeArgument)
    .option("--force", "though it has data: it is down and will not come back")
    .option(
      "--accept-loss",
      "with --force: though it has the only copy of some data, which is lost",
    )
    .option("--yes", "do not ask")
    .option(...DRY_RUN)
    .option(...JSON_PLAN)
    .addHelpText(
      "after",
      examples("kelpie node remove host-1", "kelpie node remove host-1 --force --yes"),
    )
    .action(async (name, { force = false, acceptLoss = false, ...options }) => {
      if (acceptLoss && !force) {
        throw new CommandError(ExitCode.Usage, "--accept-loss says nothing without --force");
      }
      using client = context.client();
      const found = await client.node(name);
      if (!options.dryRun) refuseUndecided(await client.cluster());
      const plan = await client.planNode(name, { remove: true });
      if (!options.dryRun) refuseEarly(found, { force, acceptLoss });
      if (!show(context.output, plan, options)) return;
      const lost = `all data of ${plural(found.onlyCopies, "placement group")}, of which it has ` +
        "the only complete copy";
      context.output.confirm({
        yes: options.yes === true,
        action: `remove node ${found.name}`,
        ...(found.onlyCopies > 0 && force
          ? { loss: lost }
          : { consequence: "it cannot come back with its data" }),
      });
      // Other nodes may have died while the question was thought about.
      const { onlyCopies } = await client.node(name);
      if (onlyCopies > found.onlyCopies) {
        throw new CommandError(
          ExitCode.Failure,
          `nothing was changed: meanwhile node ${found.name} has the only complete copy of ` +
            `${plural(onlyCopies, "placement group")}, no more of ${found.onlyCopies}`,
          {
            hint: "'kelpie status' shows what has happened; try again if it is still what you want",
          },
        );
      }
      await client.removeNode(name, { force, acceptLoss });
      context.output.say(`removed node ${found.name}`);
    });
}

/** Without a majority nothing would be decided, and who is down is not known either. */
function refuseUndecided({ hasQuorum }: ClusterDocument): void {
  if (hasQuorum) return;
  throw new CommandError(
    ExitCode.System,
    "no majority of the voters can be reached: no node can be removed",
    {
      hint:
        "start those that are down; where a majority is gone for good, one that is left goes on alone by " +
        "'kelpie cluster recover': see its --help first",
    },
  );
}

/** What the cluster would refuse, with words for whoever typed the command. */
function refuseEarly(
  node: NodeDocument,
  { force, acceptLoss }: { readonly force: boolean; readonly acceptLoss: boolean },
): void {
  const { name, onlyCopies, groupsLeft, state } = node;
  const refuse = (message: string, hint: string) => {
    throw new CommandError(ExitCode.Failure, message, { hint });
  };
  if (!force && groupsLeft > 0) {
    refuse(
      `node ${name} still has data, or shall get some`,
      state === "up"
        ? `move it away first: kelpie node drain ${name} --wait`
        : "start it and drain it; only if it will not come back, add --force",
    );
  }
  if (force && state === "up") {
    refuse(
      `node ${name} is up: --force is for a node that will not come back`,
      `move its data away: kelpie node drain ${name} --wait`,
    );
  }
  if (force && onlyCopies > 0 && !acceptLoss) {
    refuse(
      `node ${name} has the only complete copy of ${plural(onlyCopies, "placement group")}, ` +
        "whose data would be lost",
      "start the node again; only if that cannot be done, add --accept-loss",
    );
  }
}
