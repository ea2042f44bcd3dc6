/**
 * `kelpie disk limit`: how fast a disk may be used.
 *
 * @module
 */
import { BURST_SECONDS_MAX, LIMIT_MAX, type Limits, NO_LIMITS } from "../agent/map/model.ts";
import {
  type AnyCommand,
  type CommandContext,
  countArgument,
  diskArgument,
  examples,
  sizeArgument,
} from "./context.ts";
import { CommandError, ExitCode } from "./output.ts";
import { formatCount, formatRate } from "./units.ts";

/** How long bursts may be where only their rates are given, in seconds. */
const BURST_SECONDS_DEFAULT = 60;

/** Limits of the command line: what is there is to be changed. */
interface LimitOptions {
  readonly iops?: number;
  readonly bandwidth?: number;
  readonly burstIops?: number;
  readonly burstBandwidth?: number;
  readonly burstSeconds?: number;
  readonly none?: boolean;
}

/** Adds `limit` to `kelpie disk`. */
export function addLimitCommand(disk: AnyCommand, context: CommandContext): void {
  const rate = countArgument({ min: 0, max: LIMIT_MAX });
  disk.command("limit")
    .summary("limit how fast a disk may be used")
    .description(
      "Limits how many requests and bytes per second a disk may be asked for, by all who use it together; what is above " +
        "waits. It takes effect at once, also under a guest that runs. What is left out stays as it is; 0 is no limit. " +
        "Without options, tells the limits.",
    )
    .argument("<name>", "the disk", diskArgument)
    .option("--iops <count>", "requests per second", rate)
    .option("--bandwidth <size>", "read and written per second, such as 50MiB", sizeArgument)
    .option("--burst-iops <count>", "requests per second after a time of less use", rate)
    .option("--burst-bandwidth <size>", "bytes per second after a time of less use", sizeArgument)
    .option(
      "--burst-seconds <count>",
      `for how long bursts may go on at their full rate (default: ${BURST_SECONDS_DEFAULT})`,
      countArgument({ min: 0, max: BURST_SECONDS_MAX }),
    )
    .option("--none", "no limits any more")
    .option("--json", "print the limits as JSON")
    .addHelpText(
      "after",
      examples(
        "kelpie disk limit web --iops 500 --bandwidth 50MiB",
        "kelpie disk limit web --burst-iops 2000 --burst-seconds 30",
        "kelpie disk limit web --none",
      ),
    )
    .action(async (name, { json, ...options }) => {
      using client = context.client();
      const found = await client.disk(name);
      const isQuestion = Object.keys(options).length === 0;
      const limits = isQuestion
        ? found.limits
        : (await client.changeDisk(name, { limits: newLimits(found.limits, options) })).limits;
      if (json) return context.output.json(limits);
      const text = `disk ${name}: ${limitsText(limits)}`;
      if (isQuestion) context.output.line(text);
      else context.output.say(text);
    });
}

/** The old limits with what the options change. */
function newLimits(old: Limits, options: LimitOptions): Limits {
  const { none, ...others } = options;
  if (none) {
    if (Object.keys(others).length === 0) return NO_LIMITS;
    throw new CommandError(ExitCode.Usage, "--none takes all limits away: give no other", {
      hint: "a single limit is taken away by 0, as in --iops 0",
    });
  }
  const iops = options.iops ?? old.iops;
  const bytesPerSecond = options.bandwidth ?? old.bytesPerSecond;
  // Bursts go with the limit that they are above, unless they are asked for.
  const burstIops = options.burstIops ?? (iops === 0 ? 0 : old.burstIops);
  const burstBytesPerSecond = options.burstBandwidth ??
    (bytesPerSecond === 0 ? 0 : old.burstBytesPerSecond);
  const hasBursts = burstIops > 0 || burstBytesPerSecond > 0;
  const burstSeconds = options.burstSeconds ??
    (hasBursts ? old.burstSeconds || BURST_SECONDS_DEFAULT : 0);
  return { iops, bytesPerSecond, burstIops, burstBytesPerSecond, burstSeconds };
}

/** Limits for people: `500 requests/s (2000 for 30 s), 50M/s`. */
export function limitsText(limits: Limits): string {
  const { iops, bytesPerSecond, burstIops, burstBytesPerSecond, burstSeconds } = limits;
  const burst = (text: string) => ` (${text} for ${burstSeconds} s)`;
  const texts: string[] = [];
  if (iops > 0) {
    const bursts = burstIops > 0 ? burst(formatCount(burstIops)) : "";
    texts.push(`${formatCount(iops)} requests/s${bursts}`);
  }
  if (bytesPerSecond > 0) {
    const bursts = burstBytesPerSecond > 0 ? burst(formatRate(burstBytesPerSecond)) : "";
    texts.push(`${formatRate(bytesPerSecond)}${bursts}`);
  }
  return texts.length === 0 ? "no limits" : texts.join(", ");
}
