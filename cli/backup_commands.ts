/**
 * `kelpie disk backup` and `kelpie disk restore`: a snapshot as a file, all of it or what it holds differently from an older one.
 *
 * @module
 */
import { Option } from "@commander-js/extra-typings";
import { formatSize } from "../agent/config.ts";
import {
  type AnyCommand,
  type CommandContext,
  diskArgument,
  examples,
  snapshotArgument,
  type SnapshotName,
  snapshotNameArgument,
} from "./context.ts";
import { confirmTarget, temporaryParent } from "./disk_data.ts";
import { findTarget, isStandardOutput } from "./files.ts";
import { CommandError, ExitCode, printable } from "./output.ts";
import { formatDuration } from "./units.ts";

/** Adds the commands to `kelpie disk`. */
export function addBackupCommands(disk: AnyCommand, context: CommandContext): void {
  addBackup(disk, context);
  addRestore(disk, context);
}

// backup --------------------------------------------------------------------------------------------

/** An older snapshot on the command line: `NAME` of the same disk, or `DISK@NAME`. */
function sinceArgument(text: string): string | SnapshotName {
  return text.includes("@") ? snapshotArgument(text) : snapshotNameArgument(text);
}

function addBackup(disk: AnyCommand, context: CommandContext): void {
  disk.command("backup")
    .summary("write a snapshot into a file")
    .description(
      "Writes what a snapshot holds into a file, or with --since only what differs from an older snapshot. The file has " +
        "checksums, and says itself what it is of: 'kelpie disk restore' makes a disk of it again, in any cluster. Works " +
        "beside a running guest.",
    )
    .argument("<snapshot>", "DISK@NAME", snapshotArgument)
    .argument("[file]", "the file or block device; standard output without it, or with -")
    .option("--since <snapshot>", "only what differs from this older snapshot", sinceArgument)
    .addOption(
      new Option("--compress <how>", "how data is compressed").choices(["zstd", "none"] as const)
        .default("zstd" as const),
    )
    .option("--yes", "replace a file that is there without asking")
    .option("--json", "print what was written as JSON; not with standard output")
    .addHelpText(
      "after",
      examples(
        "kelpie disk backup web@monday web-monday.kb",
        "kelpie disk backup web@tuesday web-tuesday.kb --since monday",
        "kelpie disk backup web@monday | ssh vault 'cat > web-monday.kb'",
      ),
    )
    .action(async (snapshot, file, { since, compress, yes = false, json }) => {
      const base = typeof since === "string" ? { disk: snapshot.disk, name: since } : since;
      const wanted = { snapshot, since: base ?? null, compression: compress };
      const isOutput = file === undefined || isStandardOutput(file);
      if (isOutput && context.terminal.isOutTerminal) {
        throw new CommandError(ExitCode.Usage, "will not print a backup to a terminal", {
          hint: "name a file, or send it elsewhere",
        });
      }
      if (isOutput && json) {
        throw new CommandError(ExitCode.Usage, "--json needs a file for the backup");
      }
      const startMs = context.terminal.nowMs();
      // Late: other commands need none of it.
      const { writeBackup, writeBackupFile } = await import("./backup_write.ts");
      const { header, totals } = isOutput
        ? await writeBackup(context, wanted, (bytes) => context.terminal.write(bytes))
        : await writeBackupFile(context, wanted, await replaceable(context, file, yes), file);
      if (json) return context.output.json({ file, ...header, ...totals });
      const { dataBytes, fileBytes } = totals;
      const what = header.base === null ? "backup" : `difference to ${header.base.snapshot}`;
      context.output.say(
        `${what} of ${header.disk}@${header.snapshot}: ${formatSize(dataBytes)} of data in ` +
          `${formatSize(fileBytes)}, in ${formatDuration(context.terminal.nowMs() - startMs)}`,
      );
    });
}

/** The file that a backup goes to, if it may. */
async function replaceable(context: CommandContext, file: string, yes: boolean) {
  const target = await findTarget(file);
  confirmTarget(context, { file, target, yes });
  return target;
}

// restore -------------------------------------------------------------------------------------------

function addRestore(disk: AnyCommand, context: CommandContext): void {
  disk.command("restore")
    .summary("make a disk of a backup")
    .description(
      "Makes a disk of a full backup, with the snapshot that it is of. A difference goes onto a disk whose newest snapshot is the " +
        "one that it is the difference to: restore the full backup first, then the differences in their order. Every " +
        "byte is checked; of a torn or altered file nothing is left.",
    )
    .argument("<file>", "the backup, a file or a block device; - for standard input")
    .argument("<name>", "the disk", diskArgument)
    .option("--yes", "replace a disk that is there; it goes to the trash")
    .option(
      "--temp-dir <dir>",
      "for a difference that comes through a pipe (default: $TMPDIR or /var/tmp)",
    )
    .option("--json", "print the disk as JSON")
    .addHelpText(
      "after",
      examples(
        "kelpie disk restore web-monday.kb web-again",
        "kelpie disk restore web-tuesday.kb web-again",
        "ssh vault 'cat web-monday.kb' | kelpie disk restore - web",
      ),
    )
    .action(async (file, name, { yes = false, tempDir, json }) => {
      const startMs = context.terminal.nowMs();
      const { restore } = await import("./backup_restore.ts");
      const done = await restore(context, {
        file,
        name,
        yes,
        tempDir: temporaryParent(context, tempDir),
      });
      if (json) {
        using client = context.client();
        return context.output.json(await client.disk(name));
      }
      const { header, dataBytes } = done;
      context.output.say(
        `restored ${printable(header.disk)}@${printable(header.snapshot)} to disk ${name}: ` +
          `${formatSize(dataBytes)} of data in ${
            formatDuration(context.terminal.nowMs() - startMs)
          }`,
      );
    });
}
