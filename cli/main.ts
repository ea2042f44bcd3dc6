/**
 * The command line: `kelpie agent`, `kelpie disk …`, `kelpie status`, ….
 *
 * Parses, runs one command, and turns whatever happens into words on standard error and an exit code
 * (`output.ts` has the table).
 *
 * @module
 */
import { Command, type CommandUnknownOpts } from "@commander-js/extra-typings";
import { CommanderError } from "commander";
import { RUN_DIR_DEFAULT, RUN_DIR_VARIABLE } from "../agent/config.ts";
import { VERSION } from "../agent/version.ts";
import { addAgentCommand } from "./agent_command.ts";
import { addBackupCommands } from "./backup_commands.ts";
import { addBenchCommand } from "./bench_command.ts";
import { addClusterBackupCommands } from "./cluster_backup.ts";
import { addClusterCommands } from "./cluster_commands.ts";
import { addCompletionsCommand } from "./completions.ts";
import { addCloneCommand } from "./clone_command.ts";
import { CommandContext, examples } from "./context.ts";
import { addDiskCommands } from "./disk_commands.ts";
import { addDataCommands } from "./disk_data.ts";
import { addPreallocateCommand } from "./preallocate_command.ts";
import { addFlattenCommand } from "./flatten_command.ts";
import { addLimitCommand } from "./limit_command.ts";
import { addGuestCommands } from "./guest_config.ts";
import { addHelpCommand } from "./help_command.ts";
import { addMapCommands } from "./map_commands.ts";
import { addNbdCommand } from "./nbd_command.ts";
import { addNodeCommands } from "./node_commands.ts";
import { describeError, ExitCode } from "./output.ts";
import { addScheduleCommands } from "./schedule_commands.ts";
import { addSnapshotCommands } from "./snapshot_commands.ts";
import { addStatusCommand } from "./status_command.ts";
import { systemTerminal, type Terminal } from "./terminal.ts";
import { addTopCommand } from "./top_command.ts";
import { addTrashCommands } from "./trash_commands.ts";
import { addTreeCommand } from "./tree_command.ts";

/** Makes the tree of commands. */
export function createProgram(context: CommandContext): CommandUnknownOpts {
  const { terminal } = context;
  const program = new Command("kelpie")
    .description("A replicated block store for QEMU/KVM hosts.")
    .exitOverride()
    .configureOutput({
      writeOut: (text) => terminal.print(text),
      writeErr: (text) => terminal.printError(text),
      // Said by whoever catches the exception, in the same form as all other errors.
      outputError: () => {},
      getOutHelpWidth: () => Math.min(100, terminal.columns()),
      getErrHelpWidth: () => Math.min(100, terminal.columns()),
      getOutHasColors: () => false,
      getErrHasColors: () => false,
    })
    .configureHelp({ showGlobalOptions: true })
    .version(VERSION, "-V, --version", "print the version and exit")
    .helpOption("-h, --help", "print this help and exit")
    // Of groups within groups, which inherit it; the others have one that goes deeper.
    .helpCommand("help [command]", "print the help of a command")
    .option(
      "--run-dir <dir>",
      `directory of the agent's sockets (default: $${RUN_DIR_VARIABLE} or ${RUN_DIR_DEFAULT})`,
    )
    .addHelpText(
      "after",
      examples("kelpie agent", "kelpie disk create web 20G", "kelpie disk qemu web"),
    );
  context.setRunDirFlag(() => program.opts().runDir);
  const root = program as unknown as CommandUnknownOpts;

  addAgentCommand(root, context);
  addStatusCommand(root, context);
  const disk = root.command("disk")
    .summary("make, look at and change disks")
    .description("Makes, looks at and changes disks.")
    .addHelpText("after", examples("kelpie disk create web 20G", "kelpie disk list"));
  addDiskCommands(disk as unknown as CommandUnknownOpts, context);
  addLimitCommand(disk as unknown as CommandUnknownOpts, context);
  addDataCommands(disk as unknown as CommandUnknownOpts, context);
  addPreallocateCommand(disk as unknown as CommandUnknownOpts, context);
  addBackupCommands(disk as unknown as CommandUnknownOpts, context);
  addGuestCommands(disk as unknown as CommandUnknownOpts, context);
  addSnapshotCommands(disk as unknown as CommandUnknownOpts, context);
  addCloneCommand(disk as unknown as CommandUnknownOpts, context);
  addFlattenCommand(disk as unknown as CommandUnknownOpts, context);
  addTreeCommand(disk as unknown as CommandUnknownOpts, context);
  addMapCommands(disk as unknown as CommandUnknownOpts, context);
  addTrashCommands(disk as unknown as CommandUnknownOpts, context);
  addScheduleCommands(disk as unknown as CommandUnknownOpts, context);
  const node = root.command("node")
    .summary("look at and change nodes")
    .description("Looks at the nodes of the cluster, and changes where data belongs.")
    .addHelpText("after", examples("kelpie node list", "kelpie node drain host-1 --wait"));
  addNodeCommands(node as unknown as CommandUnknownOpts, context);
  const cluster = root.command("cluster")
    .summary("secret, settings and version of the cluster")
    .description("What all nodes of the cluster share.")
    .addHelpText("after", examples("kelpie cluster settings"));
  addClusterCommands(cluster as unknown as CommandUnknownOpts, context);
  addTopCommand(root, context);
  addClusterBackupCommands(cluster as unknown as CommandUnknownOpts, context);
  addNbdCommand(root, context);
  addBenchCommand(root, context);
  addCompletionsCommand(root, context);
  root.command("version")
    .summary("print the version")
    .description("Prints the version of this command, and of the agent if one runs.")
    .option("--json", "print JSON")
    .addHelpText("after", examples("kelpie version"))
    .action(async ({ json }) => {
      using client = context.client();
      const agent = await client.version().then(({ version }) => version, () => null);
      if (json) return context.output.json({ version: VERSION, agent });
      context.output.line(`kelpie ${VERSION}`);
      if (agent !== null) context.output.line(`agent ${agent}`);
    });
  addHelpCommand(root, { path: "kelpie", example: "disk create" });
  addHelpCommand(disk as unknown as CommandUnknownOpts, { path: "kelpie disk", example: "create" });
  addHelpCommand(node as unknown as CommandUnknownOpts, { path: "kelpie node", example: "drain" });
  addHelpCommand(cluster as unknown as CommandUnknownOpts, {
    path: "kelpie cluster",
    example: "settings",
  });
  return root;
}

/**
 * Runs a command line.
 *
 * @param args without the program's name
 * @returns the exit code; errors have been said
 */
export async function runCommandLine(args: readonly string[], terminal: Terminal): Promise<number> {
  const context = new CommandContext(terminal);
  try {
    await createProgram(context).parseAsync([...args], { from: "user" });
    return context.exitCode;
  } catch (error) {
    try {
      return explain(error, context);
    } catch (second) {
      if (second instanceof Deno.errors.BrokenPipe) return ExitCode.Failure;
      throw second;
    }
  }
}

function explain(error: unknown, context: CommandContext): number {
  if (error instanceof CommanderError) return explainUsage(error, context);
  const description = describeError(error);
  if (description === null) return ExitCode.Failure;
  context.output.error(description);
  return description.exitCode;
}

function explainUsage(error: CommanderError, context: CommandContext): number {
  if (error.exitCode === 0) return ExitCode.Ok; // --help, --version
  // A command without its subcommand has printed its help already.
  if (error.code === "commander.help") return ExitCode.Usage;
  const [first, ...rest] = error.message.replace(/^error: /, "").trim().split("\n");
  const message = shortened(first.replace(/\.$/, ""));
  const suggestion = rest.join(" ").trim().replace(/^\((.*)\)$/, "$1");
  context.output.error({ message, hint: suggestion || HINTS[error.code] });
  return ExitCode.Usage;
}

/** What to say where nothing similar is known. */
const HINTS: Readonly<Record<string, string>> = {
  "commander.unknownCommand": "--help lists the commands",
  "commander.unknownOption": "--help lists the options",
};

/** Says of a bad argument which one it is, and not in half a line that it is bad. */
function shortened(message: string): string {
  const match =
    /^command-argument value '(?<value>.*)' is invalid for argument '(?<name>.*?)'\. (?<why>.*)$/
      .exec(message) ??
      /^option '(?<name>.*?)' argument '(?<value>.*)' is invalid\. (?<why>.*)$/.exec(message);
  if (match === null) return message;
  const { name, value, why } = match.groups!;
  const shown = why.includes(JSON.stringify(value)) ? name : `${name} ${JSON.stringify(value)}`;
  return `${shown}: ${why.charAt(0).toLowerCase()}${why.slice(1)}`;
}

if (import.meta.main) {
  Deno.exit(await runCommandLine(Deno.args, systemTerminal()));
}
