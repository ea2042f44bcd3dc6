/**
 * `kelpie disk snapshot …` and `kelpie disk rollback`: points in time of disks.
 *
 * `kelpie disk snapshot DISK@NAME` is short for `… snapshot create DISK@NAME`: no name of a snapshot is one of a subcommand, since it has
 * an `@`.
 *
 * @module
 */
import type { AdminClient } from "../agent/admin_client.ts";
import { formatSize } from "../agent/config.ts";
import type { SnapshotDocument } from "../agent/http/documents.ts";
import {
  type AnyCommand,
  type CommandContext,
  diskArgument,
  examples,
  snapshotArgument,
  type SnapshotName,
  snapshotNameArgument,
  snapshotsArgument,
} from "./context.ts";
import { CommandError, ExitCode } from "./output.ts";
import { SPACE_COLUMNS, SPACE_HELP, spaceCells } from "./space.ts";
import { trashTimeMs } from "./trash_commands.ts";
import { isUnfinishedDifference, UNFINISHED_ATTRIBUTE } from "./unfinished_disk.ts";
import { formatDuration, plural } from "./units.ts";

/** Adds the commands to `kelpie disk`. */
export function addSnapshotCommands(disk: AnyCommand, context: CommandContext): void {
  const snapshot = disk.command("snapshot")
    .summary("take, list and change snapshots")
    .description(
      "Takes, lists and changes snapshots: what disks held at one moment. A snapshot takes no space but for what the disk " +
        "overwrites from then on. 'kelpie disk snapshot DISK@NAME' is short for 'kelpie disk snapshot create DISK@NAME'.",
    )
    .addHelpText(
      "after",
      examples("kelpie disk snapshot web@monday", "kelpie disk snapshot list web"),
    );
  addCreate(snapshot, context);
  addList(snapshot, context);
  addDelete(snapshot, context);
  addRename(snapshot, context);
  addProtect(snapshot, context, { word: "protect", isProtected: true });
  addProtect(snapshot, context, { word: "unprotect", isProtected: false });
  addRollback(disk, context);
}

function addCreate(snapshot: AnyCommand, context: CommandContext): void {
  snapshot.command("create", { isDefault: true })
    .summary("take a snapshot of disks")
    .description(
      "Takes a snapshot of a disk, which a guest may be writing to. Of several disks it is one point in time across all " +
        "of them, and their snapshots have the same name. It ends when the snapshots are complete; when it fails there are none.",
    )
    .argument("<new-snapshot...>", "DISK@NAME", snapshotsArgument)
    .option("--json", "print the snapshots as JSON")
    .addHelpText(
      "after",
      examples(
        "kelpie disk snapshot create web@monday",
        "kelpie disk snapshot db-data@upgrade db-log@upgrade",
      ),
    )
    .action(async (wanted, { json }) => {
      const [{ name }] = wanted;
      const other = wanted.find((each) => each.name !== name);
      if (other !== undefined) {
        throw new CommandError(
          ExitCode.Usage,
          `snapshots that are taken together have one name, not ${name} and ${other.name}`,
          { hint: "take them one after the other, or give them the same name" },
        );
      }
      using client = context.client();
      const disks = wanted.map((each) => each.disk);
      const taken = await client.createSnapshots({ disks, name });
      if (json) return context.output.json(taken);
      context.output.say(`took ${taken.map(fullName).join(", ")}`);
    });
}

function addList(snapshot: AnyCommand, context: CommandContext): void {
  snapshot.command("list")
    .alias("ls")
    .summary("list snapshots")
    .description(
      "Lists the snapshots of a disk, or of all disks, each disk's oldest first. " + SPACE_HELP,
    )
    .argument("[disk]", "only of this disk", diskArgument)
    .option("--names", "only names, one per line")
    .option("--json", "print JSON")
    .addHelpText("after", examples("kelpie disk snapshot list", "kelpie disk snapshot list web"))
    .action(async (disk, { names, json }) => {
      const { output } = context;
      using client = context.client();
      const snapshots = await client.snapshots({ disk, isBrief: names === true });
      if (json) return output.json(snapshots);
      if (names) return snapshots.forEach((each) => output.line(fullName(each)));
      if (snapshots.length === 0) {
        const whose = disk === undefined ? "no disk has" : `disk ${disk} has no`;
        return output.say(
          `${whose}${
            disk === undefined ? " a" : ""
          } snapshot; 'kelpie disk snapshot DISK@NAME' takes one`,
        );
      }
      output.table(
        ["NAME", ">SIZE", ...SPACE_COLUMNS, "CREATED", "STATE", "CLONES"],
        snapshots.map(rowOf),
      );
    });
}

function rowOf(snapshot: SnapshotDocument): string[] {
  const { sizeBytes, space, createdMs, clones } = snapshot;
  return [
    fullName(snapshot),
    formatSize(sizeBytes),
    ...spaceCells(space),
    new Date(createdMs).toISOString(),
    stateOf(snapshot) || "-",
    clones.join(", ") || "-",
  ];
}

/** `protected`, `being taken`, or "". */
export function stateOf({ isTaking, isProtected }: SnapshotDocument): string {
  return [isTaking ? "being taken" : "", isProtected ? "protected" : ""]
    .filter((word) => word !== "").join(", ");
}

function addDelete(snapshot: AnyCommand, context: CommandContext): void {
  snapshot.command("delete")
    .alias("rm")
    .summary("delete snapshots")
    .description(
      "Deletes snapshots, for good. What other snapshots and clones need of them stays, and so do the clones themselves. " +
        "Space comes back as nodes merge what is left, while guests are served.",
    )
    .argument("<snapshot...>", "DISK@NAME", snapshotsArgument)
    .option("--yes", "do not ask")
    .addHelpText("after", examples("kelpie disk snapshot delete web@monday --yes"))
    .action(async (wanted, { yes = false }) => {
      using client = context.client();
      // What cannot be done is found out before anything is done.
      for (const { disk, name } of wanted) {
        const { isProtected } = await client.snapshot(disk, name);
        if (isProtected) throw protectedError({ disk, name });
      }
      context.output.confirm({
        yes,
        action: `delete ${listed(wanted)}`,
        loss: `what ${
          wanted.length === 1 ? "the disk" : "the disks"
        } held then and does not hold any more`,
      });
      for (const { disk, name } of wanted) {
        await client.deleteSnapshot(disk, name);
        context.output.say(`deleted ${disk}@${name}`);
      }
    });
}

function listed(snapshots: readonly SnapshotName[]): string {
  const named = snapshots.slice(0, 3).map(({ disk, name }) => `${disk}@${name}`).join(", ");
  const rest = snapshots.length - 3;
  return rest > 0 ? `${named} and ${plural(rest, "more snapshot")}` : named;
}

function protectedError({ disk, name }: SnapshotName): CommandError {
  return new CommandError(ExitCode.Failure, `snapshot ${disk}@${name} is protected`, {
    hint: `'kelpie disk snapshot unprotect ${disk}@${name}' first; nothing was deleted`,
  });
}

function addRename(snapshot: AnyCommand, context: CommandContext): void {
  snapshot.command("rename")
    .alias("mv")
    .summary("rename a snapshot")
    .description(
      "Gives a snapshot another name. One that a schedule has taken is its user's from then on: the schedule does not " +
        "delete it any more.",
    )
    .argument("<snapshot>", "DISK@NAME", snapshotArgument)
    .argument("<new-name>", "its new name, without the disk's", snapshotNameArgument)
    .addHelpText("after", examples("kelpie disk snapshot rename web@monday before-upgrade"))
    .action(async ({ disk, name }, newName) => {
      using client = context.client();
      const changed = await client.changeSnapshot(disk, name, { name: newName });
      context.output.say(`snapshot ${disk}@${name} is ${fullName(changed)} now`);
    });
}

function addProtect(
  snapshot: AnyCommand,
  context: CommandContext,
  { word, isProtected }: { readonly word: string; readonly isProtected: boolean },
): void {
  const description = isProtected
    ? "Protects a snapshot: it cannot be deleted, nor can its disk, until it is given free."
    : "Gives a snapshot free that was protected: it can be deleted again.";
  snapshot.command(word)
    .summary(isProtected ? "keep a snapshot from being deleted" : "let a snapshot be deleted")
    .description(description)
    .argument("<snapshot>", "DISK@NAME", snapshotArgument)
    .addHelpText("after", examples(`kelpie disk snapshot ${word} web@monday`))
    .action(async ({ disk, name }) => {
      using client = context.client();
      await client.changeSnapshot(disk, name, { isProtected });
      const now = isProtected ? "is protected" : "can be deleted";
      context.output.say(`snapshot ${disk}@${name} ${now} now`);
    });
}

// ---------------------------------------------------------------------------------------- rollback

function addRollback(disk: AnyCommand, context: CommandContext): void {
  disk.command("rollback")
    .summary("make a disk as it was when a snapshot was taken")
    .description(
      "Makes a disk that nobody uses as it was when a snapshot was taken, its size included, at once. What it holds now goes to " +
        "the trash, as a disk of the same name. Its snapshots stay.",
    )
    .argument("<snapshot>", "DISK@NAME", snapshotArgument)
    .option("--yes", "do not ask")
    .addHelpText("after", examples("kelpie disk rollback web@monday --yes"))
    .action(async ({ disk, name }, { yes = false }) => {
      using client = context.client();
      const { createdMs } = await client.snapshot(disk, name);
      const keptMs = await trashTimeMs(client);
      const action = `take disk ${disk} back to ${new Date(createdMs).toISOString()}`;
      const what = `what was written to it since`;
      context.output.confirm(
        keptMs === 0 ? { yes, action, loss: what } : {
          yes,
          action,
          consequence: `${what} can be had back for ${formatDuration(keptMs)}`,
        },
      );
      const { attributes } = await client.rollbackDisk(disk, name);
      if (isUnfinishedDifference(attributes[UNFINISHED_ATTRIBUTE])) {
        await client.changeDisk(disk, { setAttributes: { [UNFINISHED_ATTRIBUTE]: null } });
      }
      context.output.say(`disk ${disk} is as ${disk}@${name}${await whereOld(client, disk)}`);
    });
}

/** Where what the disk held is now. */
async function whereOld(client: AdminClient, disk: string): Promise<string> {
  const old = (await client.trash()).filter(({ name }) => name === disk).at(-1);
  if (old === undefined) return "";
  return `; what it held is in the trash: 'kelpie disk undelete ${old.id} --name NEW'`;
}

function fullName({ disk, name }: SnapshotDocument): string {
  return `${disk}@${name}`;
}
