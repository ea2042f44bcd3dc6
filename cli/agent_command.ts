/**
 * `kelpie agent`: runs an agent until it is told to stop.
 *
 * @module
 */
import { Option } from "@commander-js/extra-typings";
import { resolve } from "node:path";
import {
  CACHE_MODES,
  DATA_PATH_DEFAULT,
  LISTEN_DEFAULT,
  loadConfig,
  LOG_FORMATS,
  LOG_LEVELS,
  PORT_DEFAULT,
  SECRET_FILE_VARIABLE,
} from "../agent/config.ts";
import { readText } from "../agent/platform/linux/file.ts";
import { type AnyCommand, type CommandContext, examples } from "./context.ts";
import { CommandError, ExitCode } from "./output.ts";

/** Adds `agent`. */
export function addAgentCommand(program: AnyCommand, context: CommandContext): void {
  program.command("agent")
    .summary("run an agent")
    .description(
      "Runs an agent: it stores disks and serves them to QEMU. No option is needed. With --join and " +
        "--secret-file it becomes a node of a cluster, and stays one. SIGTERM and SIGINT stop it cleanly.",
    )
    .option("--config <file>", "TOML file with any of the options below, without the dashes")
    .option(
      "--data <path>",
      `directory or block device for the data (default: ${DATA_PATH_DEFAULT}); may come again, ` +
        "for several disks that may fail by themselves",
      (path: string, before: string[] | undefined) => [...before ?? [], path],
    )
    .option(
      "--capacity <size>",
      "what each of them may use (default: 90 % of the free space, or the whole block device); it grows " +
        "at a later start, and does not shrink",
    )
    .addOption(new Option("--cache <mode>", "how the data is written").choices(CACHE_MODES))
    .addOption(new Option("--log-level <level>", "how much is logged").choices(LOG_LEVELS))
    .addOption(new Option("--log-format <format>", "how it is logged").choices(LOG_FORMATS))
    .option("--scrub-rate <size>", "bytes per second that are verified in the background, or off")
    .option(
      "--join <address>",
      `a node of the cluster to join, host or host:port (port ${PORT_DEFAULT}); may come again`,
      (address: string, before: string[] | undefined) => [...before ?? [], address],
    )
    .option(
      "--secret-file <file>",
      `the cluster secret, which 'kelpie cluster secret' prints ($${SECRET_FILE_VARIABLE})`,
    )
    .option(
      "--listen <address>",
      `host:port for other nodes, which uses the next port too, or none (default: ${LISTEN_DEFAULT})`,
    )
    .option("--address <address>", "host:port at which other nodes reach this one")
    .option("--name <text>", "the node's name (default: the host's)")
    .option("--zone <zone>", "when it first joins: copies go to different zones")
    .option("--weight <size>", "when it first joins: its share of data (default: its capacity)")
    .option(
      "--witness",
      "votes in the cluster, stores nothing, and has no sockets of disks for guests",
    )
    .option("--adopt", "take over data that another node or host has written")
    .option("--accept-damage", "start though parts of the data are damaged")
    .addHelpText(
      "after",
      examples(
        "kelpie agent",
        "kelpie agent --data /srv/kelpie --capacity 500G --cache direct",
        "kelpie agent --data /disk1 --data /disk2",
        "kelpie agent --config /etc/kelpie.toml",
        "kelpie agent --join host-1 --secret-file /etc/kelpie/secret --zone rack-2",
      ),
    )
    .action(async ({ config: file, ...flags }) => {
      const config = loadConfig({
        flags: { ...flags, runDir: context.runDirFlag },
        env: context.environment,
        tomlText: file === undefined ? undefined : readConfig(file),
        // Paths in the file are relative to where it lies.
        tomlPath: file === undefined ? undefined : resolve(file),
        cwd: Deno.cwd(),
      });
      // Before the start: a signal while it starts is for an orderly end as well.
      const signal = context.terminal.interrupted();
      const { startAgent } = await import("../agent/agent.ts");
      const agent = await startAgent(config);
      // When stopping fails, `finished` says so too.
      const stop = () => void agent.stop().catch(() => {});
      if (signal.aborted) stop();
      else signal.addEventListener("abort", stop, { once: true });
      await agent.finished;
    });
}

function readConfig(file: string): string {
  try {
    return readText(file);
  } catch (error) {
    const isMissing = error instanceof Deno.errors.NotFound;
    const reason = error instanceof Error ? error.message : String(error);
    throw new CommandError(
      isMissing ? ExitCode.Missing : ExitCode.System,
      `the configuration ${file} cannot be read: ${reason}`,
    );
  }
}
