/**
 * Disks that a command makes and fills: a copy of a snapshot, an image, a backup.
 *
 *     NAME.cloning, NAME.importing, NAME.restoring    made, with the attribute kelpie.unfinished; filled
 *     NAME                                            the attribute goes, and it is renamed
 *
 * Invariants:
 * - a disk appears under its name when all of it is there, and not before, whatever ends the command that makes it;
 * - what is not complete says so by its attribute, whatever it is called, so that nobody takes it for a disk;
 * - what a command leaves when it was killed is not taken away by the next one: that may be at work on another host. Users do, and
 *   `cluster restore` with what is its own.
 *
 * @module
 */
import type { AdminClient } from "../agent/admin_client.ts";
import type { CreateDiskRequest, DiskDocument } from "../agent/http/documents.ts";
import { ControlFailure } from "../agent/map/errors.ts";
import { DISK_NAME_LENGTH_MAX } from "../agent/map/names.ts";
import type { CommandContext } from "./context.ts";
import { CommandError, ExitCode } from "./output.ts";

/** Attribute of a disk that is not complete: what is done to it, and for which name: `restoring web`. */
export const UNFINISHED_ATTRIBUTE = "kelpie.unfinished";

/** The attribute of a disk to which a difference is restored: rolling it back makes it whole again, and takes the attribute away. */
export function unfinishedDifference(disk: string, snapshot: string): string {
  return `restoring ${disk}@${snapshot}`;
}

/** Whether rolling a disk back makes it whole. */
export function isUnfinishedDifference(attribute: string | undefined): boolean {
  return /^restoring [^@]+@/.test(attribute ?? "");
}

/** What is done to a disk until it is complete, and what one calls that. */
const WORK = { cloning: "clone", importing: "import", restoring: "restore" } as const;

/** A disk that is to be made. */
export interface NewDisk extends Omit<CreateDiskRequest, "attributes"> {
  /** What is done to it until it is complete. */
  readonly work: keyof typeof WORK;
  /** More is to come when it has its name: whoever asked for it goes on, and takes {@linkcode UNFINISHED_ATTRIBUTE} away. */
  readonly isPart?: boolean;
}

/**
 * Makes a disk under a name for what is not complete, and gives it its own when it is filled. If that fails it is deleted for good.
 * Signals must not end the process meanwhile (`Terminal.interrupted`).
 *
 * @param fill fills the disk of the name that it is given, durably; what it takes away of an old disk comes last
 * @throws CommandError where somebody else seems to be at work on the same
 */
export async function makeDisk<T>(
  context: CommandContext,
  client: AdminClient,
  disk: NewDisk,
  fill: (unfinished: string) => Promise<T>,
): Promise<T> {
  const { work, isPart = false, name, readOnly, ...request } = disk;
  const unfinished = unfinishedName(name, work);
  const attributes = { [UNFINISHED_ATTRIBUTE]: `${work} ${name}` };
  await client.createDisk({ ...request, name: unfinished, attributes }).catch((error) => {
    if (!(error instanceof ControlFailure) || error.error.code !== "exists") throw error;
    throw new CommandError(ExitCode.Exists, `another ${WORK[work]} to disk ${name} has begun`, {
      hint: `if it has ended badly: kelpie disk delete ${unfinished} --now`,
    });
  });
  try {
    const result = await fill(unfinished);
    const setAttributes = isPart ? undefined : { [UNFINISHED_ATTRIBUTE]: null };
    await client.changeDisk(unfinished, { name, readOnly, setAttributes });
    return result;
  } catch (error) {
    await forgetDisk(context, unfinished);
    throw error;
  }
}

/** What a disk is called until it is complete. */
export function unfinishedName(name: string, work: NewDisk["work"]): string {
  const ending = `.${work}`;
  return name.slice(0, DISK_NAME_LENGTH_MAX - ending.length) + ending;
}

/**
 * Takes a disk away that was made for nothing; where that fails too, says so. What the command itself has written to it may still be
 * under way.
 */
export async function forgetDisk(context: CommandContext, name: string): Promise<void> {
  using client = context.client();
  await client.deleteDisk(name, { now: true, force: true }).catch((error) => {
    context.output.warn(`disk ${name} is incomplete and could not be deleted: ${error.message}`);
  });
}

/** A disk, or null where there is none of that name. */
export async function findDisk(client: AdminClient, name: string): Promise<DiskDocument | null> {
  return await client.disk(name).catch((error) => {
    if (error instanceof ControlFailure && error.error.code === "missing") return null;
    throw error;
  });
}
