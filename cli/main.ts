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
import { addCommands } from "./commands.ts";
import { CommandContext, examples } from "./context.ts";
import { describeError, ExitCode } from "./output.ts";
import { systemTerminal, type Terminal } from "./terminal.ts";

/** The program's own option with a value, which may stand anywhere. */
const RUN_DIR_OPTION = "--run-dir";

/**
 * Makes the tree of commands.
 *
 * @param words what the command line begins with, where only what it is about has to be there; see {@linkcode addCommands}
 */
export async function createProgram(
  context: CommandContext,
  words?: readonly string[],
): Promise<CommandUnknownOpts> {
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
      `${RUN_DIR_OPTION} <dir>`,
      `directory of the agent's sockets (default: $${RUN_DIR_VARIABLE} or ${RUN_DIR_DEFAULT})`,
    )
    .addHelpText(
      "after",
      examples("kelpie agent", "kelpie disk create web 20G", "kelpie disk qemu web"),
    );
  context.setRunDirFlag(() => program.opts().runDir);
  const root = program as unknown as CommandUnknownOpts;

  await addCommands(root, context, words);
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
    const program = await createProgram(context, firstWords(args));
    await program.parseAsync([...args], { from: "user" });
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

/** What a command line begins with, up to the first option but `--run-dir`: what is behind that may be its value. */
function firstWords(args: readonly string[]): string[] {
  const words: string[] = [];
  for (let i = 0; i < args.length; i++) {
    if (args[i] === RUN_DIR_OPTION) i++;
    else if (args[i] === "--" || args[i].startsWith(`${RUN_DIR_OPTION}=`)) continue;
    else if (args[i].startsWith("-")) break;
    else words.push(args[i]);
  }
  return words;
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
