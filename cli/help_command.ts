/**
 * `kelpie help`, `kelpie disk help` and so on: the help of a command that is named, however deep it lies. The one that commander
 * brings along looks at the first name only.
 *
 * @module
 */
import type { CommandUnknownOpts } from "@commander-js/extra-typings";
import { suggest } from "../agent/config.ts";
import { type AnyCommand, examples } from "./context.ts";
import { CommandError, ExitCode } from "./output.ts";

/** Its name. */
export const HELP = "help";

/**
 * Adds `help` in place of commander's own.
 *
 * @param group all of whose commands are there, or will be when `help` is called
 * @param path of the group, with the program's name
 * @param example a command of it
 */
export function addHelpCommand(
  group: AnyCommand,
  { path, example }: { readonly path: string; readonly example: string },
): void {
  group.helpCommand(false);
  group.command(HELP)
    .description("Prints the help of a command.")
    .summary("print the help of a command")
    .argument("[command...]", "its name, with those of the groups that it is in")
    .addHelpText("after", examples(`${path} ${HELP} ${example}`))
    .action((names) => find(group, names).outputHelp());
}

/** The command of a group that has a name, or goes by it as well. */
export function childOf(
  group: CommandUnknownOpts,
  name: string,
): CommandUnknownOpts | undefined {
  return group.commands.find((each) => each.name() === name || each.aliases().includes(name));
}

function find(group: CommandUnknownOpts, names: readonly string[]): CommandUnknownOpts {
  return names.reduce((command, name) => {
    const at = childOf(command, name);
    if (at !== undefined) return at;
    const known = command.commands.flatMap((each) => [each.name(), ...each.aliases()]);
    const meant = suggest(name, known);
    throw new CommandError(ExitCode.Usage, `unknown command '${name}'`, {
      hint: meant === null ? "--help lists the commands" : `Did you mean ${meant}?`,
    });
  }, group);
}
