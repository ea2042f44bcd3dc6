/**
 * `kelpie cluster secret`, `recover`, `settings` and (in its own file) `upgrade`: what all nodes share.
 *
 * @module
 */
import { Argument } from "@commander-js/extra-typings";
import { parseDuration } from "../agent/duration.ts";
import type { ChangeSettingsRequest } from "../agent/http/documents.ts";
import { type ControlError, ControlFailure } from "../agent/map/errors.ts";
import type { Settings } from "../agent/map/map.ts";
import { type AnyCommand, type CommandContext, examples } from "./context.ts";
import { CommandError, ExitCode } from "./output.ts";
import { formatDuration } from "./units.ts";
import { addUpgradeCommand } from "./upgrade_command.ts";

/** A setting as people write it. */
interface Setting {
  readonly describe: (settings: Settings) => string;
  readonly parse: (text: string) => ChangeSettingsRequest;
}

/** All settings by their names. */
const SETTINGS = {
  "copies": {
    describe: ({ copies }) => `${copies} (of a new disk that does not say)`,
    parse: (text) => ({ copies: wholeNumber("copies", text) }),
  },
  "copies-min": {
    describe: ({ copiesMin }) => copiesMin === null ? "auto (a majority; 1 of 2)" : `${copiesMin}`,
    parse: (text) => ({ copiesMin: text === "auto" ? null : wholeNumber("copies-min", text) }),
  },
  "out-after": {
    describe: ({ outAfterMs }) => formatDuration(outAfterMs),
    parse: (text) => {
      const duration = parseDuration(text);
      if (!duration.ok) throw usage("out-after", duration.error);
      return { outAfterMs: duration.value };
    },
  },
  "trash": {
    describe: ({ trashMs }) =>
      trashMs === 0 ? "off (deleted disks go at once)" : formatDuration(trashMs),
    parse: (text) => {
      if (text === "off") return { trashMs: 0 };
      const duration = parseDuration(text);
      if (!duration.ok) throw usage("trash", duration.error);
      return { trashMs: duration.value };
    },
  },
  "trusted-network": {
    describe: ({ trustedNetwork }) =>
      trustedNetwork ? "on (data between nodes is not encrypted)" : "off",
    parse: (text) => {
      if (text !== "on" && text !== "off") {
        throw usage("trusted-network", {
          code: "invalid",
          message: `${JSON.stringify(text)} is neither on nor off`,
        });
      }
      return { trustedNetwork: text === "on" };
    },
  },
} as const satisfies Record<string, Setting>;

const KEYS = Object.keys(SETTINGS) as (keyof typeof SETTINGS)[];

function wholeNumber(key: string, text: string): number {
  if (/^\d{1,3}$/.test(text)) return Number(text);
  throw usage(key, { code: "invalid", message: `${JSON.stringify(text)} is no whole number` });
}

function usage(key: string, { message, hint }: ControlError): ControlFailure {
  return new ControlFailure({ code: "invalid", message: `${key}: ${message}`, hint });
}

/** Adds the commands to `kelpie cluster`. */
export function addClusterCommands(cluster: AnyCommand, context: CommandContext): void {
  cluster.command("secret")
    .summary("print what a node needs to join")
    .description(
      "Prints the cluster secret, and nothing else. A node that has it in its --secret-file can join. Whoever " +
        "has it can read and change everything: keep it in files that only root may read.",
    )
    .addHelpText("after", examples("(umask 077; kelpie cluster secret > secret)"))
    .action(async () => {
      using client = context.client();
      context.output.line(await client.secret());
    });
  cluster.command("recover")
    .summary("go on when a majority of the voters is gone for good")
    .description(
      "The last way out. Makes this node decide alone, with the map that it has, from its next start on; the " +
        "agent stops. Use it only when the other voters can never come back, and on the node with the newest map " +
        "('epoch' of 'kelpie status --json'): decisions that it has not heard of are lost. No other node of the old " +
        "cluster may run any more, nor be started again with its old store: it would still go by what was decided " +
        "without this one. Data that only lost nodes had stays unavailable until they are removed with " +
        "'kelpie node remove NODE --force --accept-loss'.",
    )
    .option("--yes", "do not ask")
    .addHelpText("after", examples("kelpie cluster recover"))
    .action(async ({ yes = false }) => {
      using client = context.client();
      const { epoch } = await client.cluster();
      context.output.confirm({
        yes,
        action: "let this node decide alone",
        loss: `what the other voters have decided since epoch ${epoch}, which this node has`,
      });
      await client.recoverCluster();
      context.output.say("this node decides alone from its next start on: start its agent again");
    });
  addUpgradeCommand(cluster, context);
  cluster.command("settings")
    .summary("show or change settings")
    .description(
      "Shows what holds for the whole cluster, or changes it: copies of new disks, copies-min (the fewest " +
        "complete copies with which disks are written: a number or auto), out-after (how long a node may be " +
        "down before its data is made anew elsewhere: 10m, 2h), trash (how long disks that are deleted can be had back: " +
        "7d, or off), trusted-network (on: data between nodes is " +
        "authenticated, and not encrypted).",
    )
    .addArgument(new Argument("[key]", "the setting").choices(KEYS))
    .argument("[value]", "its new value")
    .option("--json", "print JSON")
    .addHelpText(
      "after",
      examples(
        "kelpie cluster settings",
        "kelpie cluster settings out-after 30m",
        "kelpie cluster settings trash 7d",
      ),
    )
    .action(async (key, value, { json }) => {
      const { output } = context;
      if (key !== undefined && value === undefined) {
        throw new CommandError(ExitCode.Usage, `${key} needs a value`, {
          hint: "without any argument all settings are shown",
        });
      }
      const request = key === undefined ? null : SETTINGS[key].parse(value!);
      using client = context.client();
      const settings = request === null
        ? (await client.cluster()).settings
        : await client.changeSettings(request);
      if (json) return output.json(settings);
      if (key !== undefined) return output.say(`${key}: ${SETTINGS[key].describe(settings)}`);
      output.fields(KEYS.map((each) => [each, SETTINGS[each].describe(settings)]));
    });
}
