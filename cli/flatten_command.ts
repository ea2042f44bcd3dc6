/**
 * `kelpie disk flatten`: makes a clone independent of what it was cloned from. The nodes do that by themselves; here it is begun, waited for
 * and ended.
 *
 * @module
 */
import { AdminError } from "../agent/admin_client.ts";
import type { DiskDocument, FlattenDocument, NodeDocument } from "../agent/http/documents.ts";
import { type AnyCommand, type CommandContext, diskArgument, examples } from "./context.ts";
import { CommandError, ExitCode } from "./output.ts";
import { formatRate } from "./units.ts";

/** Milliseconds between looks with `--wait`. */
const LOOK_MS = 500;

/** Adds `flatten` to `kelpie disk`. */
export function addFlattenCommand(disk: AnyCommand, context: CommandContext): void {
  disk.command("flatten")
    .summary("make a clone independent of what it was cloned from")
    .description(
      "Copies into a clone what it shares with the disk or snapshot that it goes on from, on every node that stores data, while " +
        "guests use both. Afterwards the clone has its space for itself, and nothing else is kept for it. Copying leaves guests most " +
        "of the time, and the last part of a store. A node that is down is waited for.",
    )
    .argument("<name>", "the disk", diskArgument)
    .option("--wait", "come back when it is done")
    .option("--cancel", "end it before it is done; the disk stays as it is")
    .addHelpText(
      "after",
      examples("kelpie disk flatten web-1 --wait", "kelpie disk flatten web-1 --cancel"),
    )
    .action(async (name, { wait = false, cancel = false }) => {
      if (wait && cancel) {
        throw new CommandError(ExitCode.Usage, "--wait and --cancel exclude each other");
      }
      using client = context.client();
      if (cancel) {
        const was = (await client.disk(name)).flatten;
        await client.cancelFlatten(name);
        return context.output.say(
          was === null ? `disk ${name} was not being flattened` : `disk ${name} stays as it is`,
        );
      }
      let found = await client.flattenDisk(name);
      if (!wait) {
        return context.output.say(
          found.flatten === null
            ? `disk ${name} is independent`
            : `disk ${name} is being flattened: 'kelpie disk info ${name}' shows how far it is`,
        );
      }
      const signal = context.terminal.interrupted();
      let said = "";
      while (found.flatten !== null) {
        const { waiting } = found.flatten;
        // Rates change all the time: said when something else does.
        if (waiting.join() !== said) {
          const nodes = await client.nodes().catch(() => []);
          context.output.say(`flattening ${name}: ${flattenText(found.flatten, nodes)}`);
        }
        said = waiting.join();
        if (signal.aborted) {
          throw new CommandError(ExitCode.Failure, `disk ${name} goes on being flattened`, {
            hint: `'kelpie disk flatten ${name} --cancel' ends it`,
          });
        }
        await new Promise((resolve) => setTimeout(resolve, LOOK_MS));
        found = await lookAgain(() => client.disk(name), found);
      }
      // It may have been given up by somebody else meanwhile.
      if (found.isShared) {
        throw new CommandError(ExitCode.Failure, `flattening disk ${name} was cancelled`);
      }
      context.output.say(`disk ${name} is independent`);
    });
}

/** An agent that is restarted meanwhile is no reason to give up. */
async function lookAgain(
  look: () => Promise<DiskDocument>,
  before: DiskDocument,
): Promise<DiskDocument> {
  try {
    return await look();
  } catch (error) {
    if (error instanceof AdminError && error.code === "missing") throw error;
    return before;
  }
}

/**
 * How far it is, for people.
 *
 * @param nodes where they are known: then it is said how fast those copy that are waited for, or why they do not
 */
export function flattenText(
  { done, waiting }: FlattenDocument,
  nodes: readonly NodeDocument[] = [],
): string {
  const count = done.length + waiting.length;
  const names = waiting.map((name) => {
    const node = nodes.find((each) => each.name === name);
    if (node === undefined) return name;
    const { flattenStuck, flattenBytesPerSecond } = node;
    if (flattenStuck !== null) return `${name} (${flattenStuck})`;
    return flattenBytesPerSecond === null
      ? name
      : `${name} (at ${formatRate(flattenBytesPerSecond)})`;
  });
  return `${done.length} of ${count} node${count === 1 ? "" : "s"} done, waits for ` +
    (names.length === 0 ? "nobody" : names.join(", "));
}
