/**
 * `kelpie version`: of this program, and of the agent.
 *
 * @module
 */
import { VERSION } from "../agent/version.ts";
import { type AnyCommand, type CommandContext, examples } from "./context.ts";

/** Adds `version`. */
export function addVersionCommand(program: AnyCommand, context: CommandContext): void {
  program.command("version")
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
}
