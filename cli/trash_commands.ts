/**
 * `kelpie disk trash`, `undelete` and `purge`: disks that were deleted, and can be had back for a while.
 *
 * @module
 */
import type { AdminClient } from "../agent/admin_client.ts";
import { formatSize } from "../agent/config.ts";
import type { DeletedDiskDocument } from "../agent/http/documents.ts";
import { ControlFailure } from "../agent/map/errors.ts";
import {
  type AnyCommand,
  type CommandContext,
  deletedArgument,
  diskArgument,
  examples,
} from "./context.ts";
import { CommandError, ExitCode } from "./output.ts";
import { plural } from "./units.ts";

/** The level of clusters that have a trash. */
const TRASH_LEVEL = 2;

/** How long disks that are deleted now stay in the trash, in milliseconds; 0: they go at once. */
export async function trashTimeMs(client: AdminClient): Promise<number> {
  const { level, settings } = await client.cluster();
  return level >= TRASH_LEVEL ? settings.trashMs : 0;
}

/** Adds the commands to `kelpie disk`. */
export function addTrashCommands(disk: AnyCommand, context: CommandContext): void {
  addTrash(disk, context);
  addUndelete(disk, context);
  addPurge(disk, context);
}

function addTrash(disk: AnyCommand, context: CommandContext): void {
  disk.command("trash")
    .summary("list disks that were deleted and can be had back")
    .description(
      "Lists the disks that were deleted and can be had back. They take space until they expire; 'kelpie cluster settings " +
        "trash' says how long that is.",
    )
    .option("--names", "only names, one per line")
    .option("--json", "print JSON")
    .addHelpText("after", examples("kelpie disk trash", "kelpie disk undelete web"))
    .action(async ({ names, json }) => {
      const { output } = context;
      using client = context.client();
      const disks = await client.trash();
      if (json) return output.json(disks);
      if (names) return new Set(disks.map(({ name }) => name)).forEach((name) => output.line(name));
      if (disks.length === 0) return output.say("the trash is empty");
      output.table(
        [">ID", "NAME", ">SIZE", ">SNAPSHOTS", "DELETED", "EXPIRES"],
        disks.map(rowOf),
      );
    });
}

function rowOf(disk: DeletedDiskDocument): string[] {
  return [
    String(disk.id),
    disk.name,
    formatSize(disk.sizeBytes),
    String(disk.snapshots.length),
    new Date(disk.deletedMs).toISOString(),
    new Date(disk.expiresMs).toISOString(),
  ];
}

function addUndelete(disk: AnyCommand, context: CommandContext): void {
  disk.command("undelete")
    .summary("take a disk out of the trash")
    .description("Takes a disk out of the trash, with its snapshots and all that it holds.")
    .argument("<deleted>", "its name, or its id where several had that name", deletedArgument)
    .option("--name <new-name>", "what to call it from now on (default: as it was)", diskArgument)
    .option("--json", "print the disk as JSON")
    .addHelpText(
      "after",
      examples("kelpie disk undelete web", "kelpie disk undelete 7 --name web-old"),
    )
    .action(async (deleted, { name, json }) => {
      using client = context.client();
      const found = await client.restoreDisk(deleted, name === undefined ? {} : { name });
      if (json) return context.output.json(found);
      context.output.say(`disk ${found.name} is back, at ${found.socket}`);
    });
}

function addPurge(disk: AnyCommand, context: CommandContext): void {
  disk.command("purge")
    .summary("end disks in the trash for good")
    .description("Ends a disk in the trash for good, or all of them.")
    .argument("[deleted]", "its name, or its id where several had that name", deletedArgument)
    .option("--all", "everything that is in the trash")
    .option("--yes", "do not ask")
    .addHelpText("after", examples("kelpie disk purge web --yes", "kelpie disk purge --all --yes"))
    .action(async (deleted, { all = false, yes = false }) => {
      const { output } = context;
      if ((deleted !== undefined) === all) {
        throw new CommandError(ExitCode.Usage, "purge needs either a disk or --all");
      }
      using client = context.client();
      if (deleted !== undefined) {
        output.confirm({
          yes,
          action: `purge disk ${deleted}`,
          loss: "its data and its snapshots",
        });
        await client.purgeDisk(deleted);
        return output.say(`purged disk ${deleted}`);
      }
      const disks = await client.trash();
      if (disks.length === 0) return output.say("the trash is empty");
      output.confirm({
        yes,
        action: `purge ${plural(disks.length, "disk")}`,
        loss: "their data and their snapshots",
      });
      for (const { id, name } of disks) {
        await client.purgeDisk(idText(disks, id)).catch(unlessGone);
        output.say(`purged disk ${name} (id ${id})`);
      }
    });
}

/** Names are looked at before ids: a disk that is named as another's id is asked for by what only it has. */
function idText(disks: readonly DeletedDiskDocument[], id: number): string {
  const clashing = disks.some(({ name }) => name === String(id));
  if (!clashing) return String(id);
  throw new CommandError(
    ExitCode.Failure,
    `a disk in the trash is named ${id}, which is the id of another one`,
    { hint: `'kelpie disk purge ${id} --yes' ends the one of that name; do that first` },
  );
}

/** It has expired, or somebody else was faster. */
function unlessGone(error: unknown): void {
  if (error instanceof ControlFailure && error.error.code === "missing") return;
  throw error;
}
