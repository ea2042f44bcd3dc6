/**
 * `kelpie cluster upgrade`: every node in turn starts the program that is installed there.
 *
 *     look ─▶ nothing missing anywhere? ─▶ next node that runs another version ─▶ asked to end; its service manager starts it
 *       ▲                                                                                          │
 *       └──────── all data has all its copies again ◀──── it is up, with this version ◀────────────┘
 *
 * Invariants:
 * - A node is asked only while nothing is missing anywhere: at any moment one node at the most is away.
 * - Whatever ends this command, what it has done stands and nothing is left half done: it goes on where it stopped, since nodes that
 *   run this version already are left alone.
 * - The version that it upgrades to is its own. It never asks a node to start what is older than what runs there.
 *
 * The order: this node near the end, so that whoever watches sees it work elsewhere first; the leader last, since the others choose
 * another one when it goes, which they do once that way.
 *
 * @module
 */
import type { AdminClient } from "../agent/admin_client.ts";
import { LEVEL_MAX, LEVEL_MIN } from "../agent/base/levels.ts";
import { parseDuration } from "../agent/duration.ts";
import type { ClusterDocument } from "../agent/http/documents.ts";
import type { NodeStatus } from "../agent/http/backend.ts";
import { ControlFailure } from "../agent/map/errors.ts";
import { levelError } from "../agent/map/levels.ts";
import { VERSION } from "../agent/version.ts";
import { type AnyCommand, type CommandContext, examples } from "./context.ts";
import { CommandError, ExitCode, type Output, printable } from "./output.ts";
import type { Terminal } from "./terminal.ts";
import { formatDuration, plural } from "./units.ts";

/** How often the cluster is looked at while something is waited for. */
const LOOK_MS = 500;
/** A node that has not gone by then is asked again: the question may be lost. */
const ASK_AGAIN_MS = 5000;
/** How long nothing must be missing before the next node is asked: what is about to happen has been seen by then. */
const SETTLED_MS = 1000;
/** What is waited for is said again at this interval. */
const SAY_AGAIN_MS = 30_000;
/** The level rises a moment after the last node is up. */
const LEVEL_MS = 15_000;
/** What a node is given to be back, with all copies of its data, unless told otherwise. */
const TIMEOUT_DEFAULT = "30m";

/** Adds the command to `kelpie cluster`. */
export function addUpgradeCommand(cluster: AnyCommand, context: CommandContext): void {
  cluster.command("upgrade")
    .summary("start the installed version on every node, one by one")
    .description(
      "Shows which version each node runs, and with --yes has one after the other end in good order and start the " +
        "version that is installed there, which must be the version of this command. The next one follows when all " +
        "data has all its copies again; guests go on meanwhile. Install the new version on all nodes first; their " +
        "service manager must start the agent again when it ends. Interrupted or stopped, it goes on where it was " +
        "when it is run again.",
    )
    .option("--yes", "do it")
    .option("--timeout <duration>", "what each node is given to be back", TIMEOUT_DEFAULT)
    .option("--json", "print what would be done as JSON")
    .addHelpText("after", examples("kelpie cluster upgrade", "kelpie cluster upgrade --yes"))
    .action(async ({ yes = false, timeout, json = false }) => {
      const timeoutMs = parseDuration(timeout);
      if (!timeoutMs.ok) throw new ControlFailure(timeoutMs.error);
      using client = context.client();
      const found = await client.cluster();
      const { output } = context;
      if (json) return output.json(planDocument(found));
      printTable(output, found);
      const problem = problemOf(found);
      if (problem !== null) throw problem;
      const order = orderOf(found);
      if (order.length === 0) return sayDone(output, found);
      if (!yes) {
        const names = order.map(({ name }) => name).join(", ");
        output.say(`would start ${VERSION} on ${names}, in this order; --yes does it`);
        const missing = missingIn(found);
        if (missing !== "") output.warn(`not now: ${missing}`);
        return;
      }
      await new Upgrade(client, context, timeoutMs.value).run();
    });
}

// -------------------------------------------------------------------------------------------- plan

/** Nodes that do not run this version, or not the program that is installed, in the order in which they start anew. */
export function orderOf({ nodes }: ClusterDocument): NodeStatus[] {
  const rank = (node: NodeStatus) => node.isLeader ? 2 : node.isSelf ? 1 : 0;
  return nodes.filter(isOld).toSorted((a, b) => rank(a) - rank(b) || a.id - b.id);
}

function isOld({ version, isProgramNew }: NodeStatus): boolean {
  return version !== VERSION || isProgramNew === true;
}

/** What stands against an upgrade whatever state the cluster is in; null: nothing. */
function problemOf({ level, nodes }: ClusterDocument): CommandError | null {
  const newer = nodes.find(({ version }) => compareVersions(version, VERSION) > 0);
  if (newer !== undefined) {
    return new CommandError(
      ExitCode.Failure,
      `node ${newer.name} runs ${
        printable(newer.version)
      }, and this is ${VERSION}: nodes are never taken back`,
      { hint: `run the kelpie that is ${printable(newer.version)}, or install a newer one` },
    );
  }
  const unfit = levelError(
    level,
    { version: VERSION, protocolMin: LEVEL_MIN, protocol: LEVEL_MAX },
    nodes.map(({ version }) => version),
  );
  if (unfit !== null) {
    return new CommandError(ExitCode.Failure, unfit.message, { hint: unfit.hint });
  }
  const without = nodes.find((node) => node.version !== VERSION && node.isProgramNew === false);
  if (without !== undefined) {
    return new CommandError(
      ExitCode.Failure,
      `node ${without.name} runs ${
        printable(without.version)
      }, and no other version is installed there`,
      { hint: `install ${VERSION} on all nodes first` },
    );
  }
  return null;
}

/** What is missing for the next node to go away for a while; "" when nothing is. */
export function missingIn({ hasQuorum, nodes, groups, waiting }: ClusterDocument): string {
  if (!hasQuorum) return "no majority of the voters can be reached";
  const down = nodes.find(({ state }) => state !== "up");
  if (down !== undefined) return `node ${down.name} is down`;
  const silent = nodes.find(({ gossip, isSelf }) => !isSelf && gossip !== "alive");
  if (silent !== undefined) return `node ${silent.name} does not answer`;
  const failed = nodes.find(({ stuck }) => stuck !== null);
  if (failed !== undefined) return `node ${failed.name} cannot catch up: ${failed.stuck}`;
  if (groups.unreadableReason !== "") return groups.unreadableReason;
  const lacking = groups.total - groups.whole;
  if (lacking > 0 || groups.joining > 0) {
    const count = Math.max(lacking, groups.joining);
    return `${plural(count, "placement group")} of ${groups.total} ${
      count === 1 ? "has" : "have"
    } fewer copies than wanted`;
  }
  const [wait] = waiting;
  return wait === undefined ? "" : `requests of disk ${wait.disk} wait: ${wait.reason}`;
}

/** Compares versions by their numbers: below 0 when `a` is older. What comes behind a `-` makes it older. */
export function compareVersions(a: string, b: string): number {
  const parts = (version: string) => {
    const [numbers, ...rest] = version.split("+")[0].split("-");
    return { numbers: numbers.split(".").map(Number), isEarly: rest.length > 0 };
  };
  const [one, other] = [parts(a), parts(b)];
  for (let i = 0; i < 3; i++) {
    const difference = (one.numbers[i] || 0) - (other.numbers[i] || 0);
    if (difference !== 0) return difference;
  }
  return Number(other.isEarly) - Number(one.isEarly);
}

function planDocument(found: ClusterDocument): Record<string, unknown> {
  const problem = problemOf(found);
  return {
    version: VERSION,
    level: found.level,
    nodes: found.nodes.map((node) => ({
      name: node.name,
      version: node.version,
      levelMin: node.levelMin,
      levelMax: node.levelMax,
      isProgramNew: node.isProgramNew,
    })),
    order: orderOf(found).map(({ name }) => name),
    problem: problem?.message ?? (missingIn(found) || null),
  };
}

function printTable(output: Output, { nodes }: ClusterDocument): void {
  output.table(
    ["NAME", "STATE", "RUNS", "LEVELS", "INSTALLED", "UPGRADE"],
    nodes.map((node) => [
      node.name,
      node.state,
      printable(node.version),
      node.levelMin === node.levelMax ? `${node.levelMax}` : `${node.levelMin}-${node.levelMax}`,
      node.isProgramNew === null ? "?" : node.isProgramNew ? "another" : "the same",
      isOld(node) ? "yes" : "-",
    ]),
  );
}

function sayDone(output: Output, { level, nodes }: ClusterDocument): void {
  output.say(
    `${nodes.length === 1 ? "the node runs" : `all ${nodes.length} nodes run`} ${VERSION}; ` +
      `the cluster speaks level ${level}`,
  );
}

// -------------------------------------------------------------------------------------------- doing

/** One walk over the nodes. */
class Upgrade {
  readonly #client: AdminClient;
  readonly #output: Output;
  readonly #terminal: Terminal;
  readonly #signal: AbortSignal;
  readonly #timeoutMs: number;

  constructor(client: AdminClient, { output, terminal }: CommandContext, timeoutMs: number) {
    this.#client = client;
    this.#output = output;
    this.#terminal = terminal;
    this.#timeoutMs = timeoutMs;
    this.#signal = terminal.interrupted();
  }

  async run(): Promise<void> {
    const first = await this.#client.cluster();
    const missing = missingIn(first);
    if (missing !== "") {
      throw new CommandError(ExitCode.Failure, `nothing was started: ${missing}`, {
        hint: "'kelpie status' says more; upgrade when it is healthy again",
      });
    }
    const total = orderOf(first).length;
    for (let done = 0;; done++) {
      // Looked at anew each time: another one may lead by now.
      const found = await this.#untilWhole(done);
      const [node] = orderOf(found);
      if (node === undefined) break;
      const problem = problemOf(found);
      if (problem !== null) throw problem;
      await this.#restart(node, `${done + 1}/${Math.max(total, done + 1)} ${node.name}`);
    }
    await this.#untilLevel();
    sayDone(this.#output, await this.#client.cluster());
  }

  /** Has one node start anew, and waits until it is up with this version. */
  async #restart(node: NodeStatus, label: string): Promise<void> {
    const startMs = this.#terminal.nowMs();
    this.#output.say(`${label}: runs ${printable(node.version)}, is asked to start ${VERSION}`);
    let askedMs = -Infinity;
    let isGone = false;
    const seen = await this.#until(node.name, () => isGone, async () => {
      if (!isGone && this.#terminal.nowMs() - askedMs >= ASK_AGAIN_MS) {
        askedMs = this.#terminal.nowMs();
        await this.#client.restartNode(node.name);
      }
      const { hasQuorum, nodes } = await this.#client.cluster();
      // The agent that is asked may have started this moment, and not know much yet.
      if (!hasQuorum) return null;
      const now = nodes.find(({ id }) => id === node.id);
      if (now === undefined) {
        throw new CommandError(ExitCode.Failure, `node ${node.name} was removed meanwhile`);
      }
      if (now.state !== "up" || now.incarnation !== node.incarnation) isGone = true;
      return now.state === "up" && now.incarnation !== node.incarnation ? now : null;
    });
    const tookMs = this.#terminal.nowMs() - startMs;
    if (seen.version !== VERSION) {
      throw new CommandError(
        ExitCode.Failure,
        `node ${node.name} is back with ${printable(seen.version)}, and not with ${VERSION}`,
        { hint: `install ${VERSION} there, then run 'kelpie cluster upgrade' again: it goes on` },
      );
    }
    this.#output.say(`${label}: is up with ${VERSION} after ${formatDuration(tookMs)}`);
  }

  /** Waits until nothing is missing, and has not been for a moment. */
  async #untilWhole(done: number): Promise<ClusterDocument> {
    const startMs = this.#terminal.nowMs();
    let sinceMs = Infinity;
    let missing = "";
    // What is the same but for its numbers is said again only after a while.
    let said = "";
    let saidMs = -Infinity;
    const found = await this.#until("", () => true, async () => {
      const now = await this.#client.cluster();
      missing = missingIn(now);
      if (missing !== "") {
        const kind = missing.replaceAll(/\d+/g, "#");
        if (done > 0 && (kind !== said || this.#terminal.nowMs() - saidMs >= SAY_AGAIN_MS)) {
          this.#output.say(`waits: ${printable(missing)}`);
          said = kind;
          saidMs = this.#terminal.nowMs();
        }
        sinceMs = Infinity;
        return null;
      }
      sinceMs = Math.min(sinceMs, this.#terminal.nowMs());
      return done === 0 || this.#terminal.nowMs() - sinceMs >= SETTLED_MS ? now : null;
    }, () => missing);
    if (said !== "") {
      const tookMs = this.#terminal.nowMs() - startMs;
      this.#output.say(`all data has all its copies again after ${formatDuration(tookMs)}`);
    }
    return found;
  }

  /** What is new is switched on by the leader, a moment after the last node is up. */
  async #untilLevel(): Promise<void> {
    const endMs = this.#terminal.nowMs() + LEVEL_MS;
    for (;;) {
      const { level, nodes } = await this.#client.cluster();
      const common = Math.min(...nodes.map(({ levelMax }) => levelMax));
      if (level >= common) return;
      if (this.#terminal.nowMs() >= endMs) {
        return this.#output.warn(
          `every node speaks level ${common}, and the cluster still ${level}: see 'kelpie status'`,
        );
      }
      await this.#terminal.sleep(LOOK_MS, this.#signal);
    }
  }

  /**
   * Looks until there is something to see. The agent that is asked may be the one that starts anew, so that it does not answer
   * is no failure before the time is over.
   */
  async #until<T>(
    name: string,
    isGone: () => boolean,
    look: () => Promise<T | null>,
    missing: () => string = () => "",
  ): Promise<T> {
    const endMs = this.#terminal.nowMs() + this.#timeoutMs;
    let silence = "";
    for (;;) {
      try {
        const seen = await look();
        if (seen !== null) return seen;
        silence = "";
      } catch (error) {
        if (!(error instanceof ControlFailure) || error.error.code !== "unavailable") throw error;
        silence = error.message;
      }
      if (this.#terminal.nowMs() >= endMs) throw this.#late(name, isGone(), silence || missing());
      try {
        await this.#terminal.sleep(LOOK_MS, this.#signal);
      } catch (error) {
        this.#output.say(
          (name === "" ? "" : `node ${name} may be about to start anew; `) +
            "run 'kelpie cluster upgrade --yes' again to go on: nodes that run " +
            `${VERSION} already are left alone`,
        );
        throw error;
      }
    }
  }

  #late(name: string, isGone: boolean, reason: string): CommandError {
    const within = `within ${formatDuration(this.#timeoutMs)}`;
    const why = reason === "" ? "" : `: ${printable(reason)}`;
    const again = "then run 'kelpie cluster upgrade --yes' again: it goes on where it was";
    if (name === "") {
      return new CommandError(ExitCode.Failure, `not all data had all its copies ${within}${why}`, {
        hint: `'kelpie status' says more; ${again}`,
      });
    }
    return isGone
      ? new CommandError(ExitCode.Failure, `node ${name} did not come back ${within}${why}`, {
        hint: `start its agent (does a service manager look after it?), look at its log; ${again}`,
      })
      : new CommandError(ExitCode.Failure, `node ${name} did not end ${within}${why}`, {
        hint: `look at its log, or restart its agent by hand; ${again}`,
      });
  }
}
