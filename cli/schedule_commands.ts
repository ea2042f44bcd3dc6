/**
 * `kelpie disk schedule …`: snapshots that the cluster takes and deletes by itself.
 *
 * @module
 */
import { InvalidArgumentError } from "@commander-js/extra-typings";
import { parseDuration } from "../agent/duration.ts";
import type { ScheduleDocument } from "../agent/http/documents.ts";
import { SNAPSHOTS_PER_DISK_MAX } from "../agent/map/model.ts";
import {
  type AnyCommand,
  type CommandContext,
  countArgument,
  diskArgument,
  examples,
  snapshotNameArgument,
} from "./context.ts";
import { formatDuration, plural } from "./units.ts";

const keepArgument = countArgument({ min: 1, max: SNAPSHOTS_PER_DISK_MAX });
const keepMoreArgument = countArgument({ min: 0, max: SNAPSHOTS_PER_DISK_MAX });

/** Adds the commands to `kelpie disk`. */
export function addScheduleCommands(disk: AnyCommand, context: CommandContext): void {
  const schedule = disk.command("schedule")
    .summary("let the cluster take snapshots by itself")
    .description(
      "Schedules of snapshots, which the cluster takes and deletes by itself. 'kelpie status' says when one is late, and why.",
    )
    .addHelpText(
      "after",
      examples(
        "kelpie disk schedule set web hourly --every 1h --keep 24",
        "kelpie disk schedule list",
      ),
    );
  addSet(schedule, context);
  addList(schedule, context);
  addDelete(schedule, context);
}

function addSet(schedule: AnyCommand, context: CommandContext): void {
  schedule.command("set")
    .summary("make or change a schedule")
    .description(
      "Makes a schedule of a disk, or changes the one of this name. Its snapshots are named after it and their time (UTC): " +
        "hourly-20260102T030000Z. It deletes what is not to be kept, but never one that is protected, nor one that somebody " +
        "has renamed.",
    )
    .argument("<disk>", "the disk", diskArgument)
    .argument("<schedule>", "name of the schedule", snapshotNameArgument)
    .requiredOption("--every <time>", "such as 15m, 1h or 1d: at multiples of it", everyArgument)
    .requiredOption("--keep <count>", "how many of the newest to keep", keepArgument)
    .option("--keep-daily <days>", "and of so many days the newest", keepMoreArgument, 0)
    .option("--keep-weekly <weeks>", "and of so many weeks the newest", keepMoreArgument, 0)
    .option("--keep-monthly <months>", "and of so many months the newest", keepMoreArgument, 0)
    .option("--json", "print the schedule as JSON")
    .addHelpText(
      "after",
      examples(
        "kelpie disk schedule set web quarter --every 15m --keep 8",
        "kelpie disk schedule set web hourly --every 1h --keep 24 --keep-daily 7 --keep-weekly 4",
      ),
    )
    .action(async (disk, name, { every: everyMs, json, ...kept }) => {
      using client = context.client();
      const made = await client.setSchedule(disk, name, { everyMs, ...kept });
      if (json) return context.output.json(made);
      const next = new Date(made.nextMs).toISOString();
      context.output.say(`schedule ${name} of disk ${disk}: ${wordsOf(made)}; next at ${next}`);
    });
}

function everyArgument(text: string): number {
  const duration = parseDuration(text);
  if (duration.ok) return duration.value;
  const { message, hint } = duration.error;
  throw new InvalidArgumentError(hint === undefined ? message : `${message}\n${hint}`);
}

/** `every 1 h, keeps 24, 7 daily and 4 weekly`. */
function wordsOf(schedule: ScheduleDocument): string {
  return `every ${formatDuration(schedule.everyMs)}, keeps ${keptText(schedule)}`;
}

function keptText({ keep, keepDaily, keepWeekly, keepMonthly }: ScheduleDocument): string {
  const more = [[keepDaily, "daily"], [keepWeekly, "weekly"], [keepMonthly, "monthly"]] as const;
  return [
    String(keep),
    ...more.filter(([count]) => count > 0).map(([count, what]) => `${count} ${what}`),
  ].join(", ");
}

function addList(schedule: AnyCommand, context: CommandContext): void {
  schedule.command("list")
    .alias("ls")
    .summary("list schedules")
    .description("Lists the schedules of a disk, or of all disks.")
    .argument("[disk]", "only of this disk", diskArgument)
    .option("--json", "print JSON")
    .addHelpText("after", examples("kelpie disk schedule list", "kelpie disk schedule list web"))
    .action(async (disk, { json }) => {
      const { output } = context;
      using client = context.client();
      const schedules = await client.schedules(disk);
      if (json) return output.json(schedules);
      if (schedules.length === 0) {
        return output.say("there is no schedule; 'kelpie disk schedule set' makes one");
      }
      output.table(
        ["DISK", "SCHEDULE", "EVERY", "KEEPS", ">SNAPSHOTS", "LAST", "NEXT"],
        schedules.map((each) => [
          each.disk,
          each.name,
          formatDuration(each.everyMs),
          keptText(each),
          String(each.snapshots),
          each.lastMs === null ? "-" : new Date(each.lastMs).toISOString(),
          each.isLate ? output.styled("bad", "late") : new Date(each.nextMs).toISOString(),
        ]),
      );
      const late = schedules.filter(({ isLate }) => isLate).length;
      if (late > 0) output.say(`${plural(late, "schedule")} late: 'kelpie status' says why`);
    });
}

function addDelete(schedule: AnyCommand, context: CommandContext): void {
  schedule.command("delete")
    .alias("rm")
    .summary("end a schedule")
    .description("Ends a schedule. The snapshots that it has taken stay.")
    .argument("<disk>", "the disk", diskArgument)
    .argument("<schedule>", "name of the schedule", snapshotNameArgument)
    .addHelpText("after", examples("kelpie disk schedule delete web hourly"))
    .action(async (disk, name) => {
      using client = context.client();
      await client.deleteSchedule(disk, name);
      context.output.say(`ended schedule ${name} of disk ${disk}; its snapshots stay`);
    });
}
