/**
 * `kelpie disk tree`: which disk goes on from which snapshot.
 *
 *     NAME             SIZE  USED  SHARED  EXCLUSIVE  AGE
 *     web               20G  3.1G    2.8G       308M  41 d 2 h
 *     ├─ web@monday     20G  2.8G    2.8G          0  3 d
 *     │  └─ web-test    20G  2.8G    2.8G        12M  1 d 4 h
 *     └─ web@tuesday    20G  3.0G    3.0G          0  2 d
 *
 * Below a disk stand its snapshots, oldest first; below a snapshot the disks that were cloned from it. Space is that of one node's
 * store; `agent/map/space.ts` says what counts.
 *
 * @module
 */
import { formatSize } from "../agent/config.ts";
import type { DiskDocument, SnapshotDocument, SpaceDocument } from "../agent/http/documents.ts";
import { type AnyCommand, type CommandContext, diskArgument, examples } from "./context.ts";
import { flattenText } from "./flatten_command.ts";
import { CommandError, ExitCode } from "./output.ts";
import { SPACE_COLUMNS, SPACE_HELP, spaceCells } from "./space.ts";
import { stateOf } from "./snapshot_commands.ts";
import { formatDuration } from "./units.ts";

/** A disk or a snapshot, and what goes on from it. */
interface Branch {
  /** `DISK`, or `DISK@NAME`. */
  readonly name: string;
  readonly kind: "disk" | "snapshot";
  readonly sizeBytes: number;
  /** Null: not known. */
  readonly space: SpaceDocument | null;
  readonly createdMs: number;
  /** What else there is to say, or "". */
  readonly note: string;
  readonly children: readonly Branch[];
}

/** Adds `tree` to `kelpie disk`. */
export function addTreeCommand(disk: AnyCommand, context: CommandContext): void {
  disk.command("tree")
    .summary("show disks, their snapshots and clones as a tree")
    .description(
      "Shows families: disks, below them their snapshots, oldest first, and below those the disks that were cloned from them. " +
        SPACE_HELP,
    )
    .argument("[disk]", "only the family of this disk", diskArgument)
    .option("--json", "print JSON")
    .addHelpText("after", examples("kelpie disk tree", "kelpie disk tree web"))
    .action(async (name, { json }) => {
      using client = context.client();
      const [disks, snapshots] = [await client.disks(), await client.snapshots()];
      const family = name === undefined ? null : familyOf(disks, name);
      const shown = disks.filter((each) => family === null || each.family === family);
      const roots = treeOf(shown, snapshots);
      if (json) return context.output.json(roots);
      if (roots.length === 0) return context.output.say("there is no disk yet");
      const nowMs = Date.now();
      context.output.table(
        ["NAME", ">SIZE", ...SPACE_COLUMNS, "AGE", "STATE"],
        roots.flatMap((root) => rowsOf(root, nowMs)),
      );
    });
}

function familyOf(disks: readonly DiskDocument[], name: string): number {
  const found = disks.find((disk) => disk.name === name);
  if (found !== undefined) return found.family;
  throw new CommandError(ExitCode.Missing, `there is no disk named ${JSON.stringify(name)}`, {
    hint: "'kelpie disk list' shows the disks that there are",
  });
}

function treeOf(
  disks: readonly DiskDocument[],
  snapshots: readonly SnapshotDocument[],
): Branch[] {
  const bySnapshot = Map.groupBy(disks, ({ origin }) => origin);
  const byDisk = Map.groupBy(snapshots, ({ disk }) => disk);
  const known = new Set(snapshots.map(({ disk, name }) => `${disk}@${name}`));
  const branchOf = (disk: DiskDocument): Branch => ({
    name: disk.name,
    kind: "disk",
    sizeBytes: disk.sizeBytes,
    space: disk.space,
    createdMs: disk.createdMs,
    note: [
      // Its origin's disk is in the trash.
      ...(disk.origin !== null && !known.has(disk.origin) ? [`from ${disk.origin}, deleted`] : []),
      ...(disk.flatten === null ? [] : [`flattening: ${flattenText(disk.flatten)}`]),
    ].join("; "),
    children: (byDisk.get(disk.name) ?? []).map((snapshot) => ({
      name: `${disk.name}@${snapshot.name}`,
      kind: "snapshot",
      sizeBytes: snapshot.sizeBytes,
      space: snapshot.space,
      createdMs: snapshot.createdMs,
      note: stateOf(snapshot),
      children: (bySnapshot.get(`${disk.name}@${snapshot.name}`) ?? []).map(branchOf),
    })),
  });
  return disks.filter(({ origin }) => origin === null || !known.has(origin)).map(branchOf);
}

/** @param nowMs milliseconds since 1970 */
function rowsOf(branch: Branch, nowMs: number, lead = "", childLead = ""): string[][] {
  const { space, children } = branch;
  const row = [
    `${lead}${branch.name}`,
    formatSize(branch.sizeBytes),
    ...spaceCells(space),
    formatDuration(Math.max(0, nowMs - branch.createdMs)),
    branch.note,
  ];
  const below = children.flatMap((child, index) => {
    const isLast = index === children.length - 1;
    const own = `${childLead}${isLast ? "└─ " : "├─ "}`;
    return rowsOf(child, nowMs, own, `${childLead}${isLast ? "   " : "│  "}`);
  });
  return [row, ...below];
}
