/**
 * Makes a disk of a backup: what `kelpie disk restore` does.
 *
 *     full         NAME.restoring is made, filled, gets the snapshot, and is renamed to NAME
 *     difference   the file is checked ─▶ the disk holds what its newest snapshot holds, and that is the base ─▶ data ─▶ snapshot
 *
 * Invariants:
 * - a disk appears under its name when all of a full backup is in it, and what had the name before is in the trash, and not before;
 * - a difference is checked as a whole before anything is written, goes only onto what it is the difference to, and where it cannot be
 *   finished the disk is rolled back to that; whatever ends the command, a disk with a part of it says so by its attribute.
 *
 * @module
 */
import { Buffer } from "node:buffer";
import type { AdminClient } from "../agent/admin_client.ts";
import { BackupError, type BackupHeader, type Run } from "../agent/backup/format.ts";
import type { SnapshotDocument } from "../agent/http/documents.ts";
import { diskSockets } from "../agent/map/names.ts";
import { isSnapshot, RESTORED_ATTRIBUTE, restoredValue } from "./backup_identity.ts";
import { BackupSource, pipeIn, requireZstd } from "./backup_pipe.ts";
import { withSocket } from "./backup_write.ts";
import { type CommandContext, diskArgument, snapshotNameArgument } from "./context.ts";
import { openSource, type Reader, refuseWriting, socketOf, withDisk } from "./disk_data.ts";
import { extents } from "./extents.ts";
import { findSource, isStandardInput, openFile, writeAll } from "./files.ts";
import { CommandError, ExitCode, printable } from "./output.ts";
import { Progress } from "./progress.ts";
import { temporaryDirectory } from "./qemu_img.ts";
import {
  findDisk,
  makeDisk,
  UNFINISHED_ATTRIBUTE,
  unfinishedDifference,
} from "./unfinished_disk.ts";

/** Bytes that are compared at once. */
const COMPARE_BYTES = 4 * 1024 * 1024;

/** Bytes of a stream that are kept in a file at once. */
const SPOOL_BYTES = 1024 * 1024;

/** A backup that was restored. */
export interface Restored {
  readonly header: BackupHeader;
  readonly dataBytes: number;
}

/** What is to be restored, and where to. */
export interface RestoreWish {
  /** On the command line; `-`: standard input. */
  readonly file: string;
  readonly name: string;
  readonly yes: boolean;
  /** The disk is not complete with it; see `NewDisk.isPart`. */
  readonly isPart?: boolean;
  readonly tempDir: string;
}

/**
 * Restores a backup.
 *
 * @throws CommandError where the file is torn or altered; then everything is as it was
 */
export async function restore(context: CommandContext, wish: RestoreWish): Promise<Restored> {
  try {
    if (!isStandardInput(wish.file)) {
      const { kind } = await findSource(wish.file);
      if (kind !== "stream") return await restoreFile(context, wish);
    }
    using stream = await openSource(context, wish.file);
    return await restoreStream(context, wish, stream.reader);
  } catch (error) {
    if (!(error instanceof BackupError)) throw error;
    const shown = isStandardInput(wish.file) ? "standard input" : wish.file;
    throw new CommandError(
      ExitCode.Failure,
      `${shown} is refused at byte ${error.offsetBytes}: ${error.reason}`,
      { hint: "fetch it again from where it was kept, or use another backup" },
    );
  }
}

async function restoreFile(context: CommandContext, wish: RestoreWish): Promise<Restored> {
  using file = await openBackup(context, wish.file);
  const header = await headerOf(file.source);
  if (header.base !== null) return await restoreDifference(context, wish, header);
  return await restoreFull(context, wish, { ...file, header });
}

async function restoreStream(
  context: CommandContext,
  wish: RestoreWish,
  reader: Reader,
): Promise<Restored> {
  // A difference is read twice, so what has been read of it already is needed again.
  const read: Uint8Array[] = [];
  let isKept = true;
  const source = new BackupSource(async (bytes) => {
    const count = await reader(bytes);
    if (isKept) read.push(bytes.slice(0, count));
    return count;
  });
  const header = await headerOf(source);
  if (header.base === null) {
    isKept = false;
    read.length = 0;
    return await restoreFull(context, wish, { source, sizeBytes: null, header });
  }
  context.terminal.interrupted(); // no signal may leave the temporary file behind
  await using work = await temporaryDirectory(wish.tempDir);
  const path = `${work.path}/difference`;
  using file = await openFile(path, { write: true, createNew: true, mode: 0o600 });
  for (const bytes of read) await writeAll(file, bytes);
  const bytes = new Uint8Array(SPOOL_BYTES);
  for (let count = 0; (count = await reader(bytes)) > 0;) {
    await writeAll(file, bytes.subarray(0, count));
  }
  return await restoreDifference(context, { ...wish, file: path }, header);
}

/** @param path of a file or a block device; behind a backup on a block device lies whatever was there before */
async function openBackup(context: CommandContext, path: string) {
  const file = await openSource(context, path);
  const isDevice = file.kind === "device";
  return {
    source: new BackupSource(file.reader, { isEndless: isDevice }),
    sizeBytes: isDevice ? null : file.sizeBytes,
    [Symbol.dispose]: () => file[Symbol.dispose](),
  };
}

/** The header of a file, whose names are to become parts of paths. */
async function headerOf(source: BackupSource): Promise<BackupHeader> {
  const header = await source.header();
  const { disk, snapshot } = header;
  try {
    diskArgument(disk);
    snapshotNameArgument(snapshot);
  } catch {
    throw new BackupError(
      0,
      `it is of ${printable(disk)}@${printable(snapshot)}, which cannot be the name of a snapshot`,
    );
  }
  if (header.compression === "zstd") requireZstd("the backup is compressed: install it");
  return header;
}

/** A file that is being read. */
interface OpenBackup {
  readonly source: BackupSource;
  /** null where it is not known. */
  readonly sizeBytes: number | null;
  readonly header: BackupHeader;
}

/** Reads the rest of a file, into a disk or, where there is none, only to check it. */
async function readInto(
  context: CommandContext,
  { source, sizeBytes, header }: OpenBackup,
  { label, name }: { readonly label: string; readonly name: string | null },
): Promise<number> {
  const progress = new Progress(context.output, label, sizeBytes);
  const options = {
    header,
    onProgress: (doneBytes: number) => progress.update(doneBytes),
    signal: context.terminal.interrupted(),
  };
  try {
    if (name === null) return (await pipeIn(source, null, options)).dataBytes;
    return await withDisk(context, name, "write", async (disk) => {
      const { dataBytes } = await pipeIn(source, disk, options);
      await disk.flush();
      return dataBytes;
    });
  } finally {
    progress.end();
  }
}

// A full backup -------------------------------------------------------------------------------------

async function restoreFull(
  context: CommandContext,
  { name, yes, isPart }: RestoreWish,
  file: OpenBackup,
): Promise<Restored> {
  using client = context.client();
  const { header } = file;
  const old = await findDisk(client, name);
  if (old !== null) {
    context.output.confirm({
      yes,
      action: `replace disk ${name}`,
      consequence: "what it holds now goes to the trash, or for good where the cluster keeps none",
      refusal: ExitCode.Exists,
    });
  }
  context.terminal.interrupted(); // no signal may end the process with half a disk left behind
  const wanted = { work: "restoring", name, sizeBytes: header.sizeBytes, isPart } as const;
  const dataBytes = await makeDisk(context, client, wanted, async (unfinished) => {
    const bytes = await readInto(context, file, { label: `restoring ${name}`, name: unfinished });
    await keep(client, unfinished, header);
    if (old !== null) await client.deleteDisk(name);
    return bytes;
  });
  return { header, dataBytes };
}

/** Takes the snapshot that was restored, and notes what it is the copy of. */
async function keep(
  client: AdminClient,
  disk: string,
  header: BackupHeader,
  attributes: Readonly<Record<string, null>> = {},
): Promise<void> {
  const [{ layer }] = await client.createSnapshots({ disks: [disk], name: header.snapshot });
  const value = restoredValue(header.identity, layer);
  await client.changeDisk(disk, {
    setAttributes: { ...attributes, [RESTORED_ATTRIBUTE]: value },
  });
}

// A difference --------------------------------------------------------------------------------------

async function restoreDifference(
  context: CommandContext,
  { file, name, isPart = false }: RestoreWish,
  header: BackupHeader,
): Promise<Restored> {
  using client = context.client();
  const newest = await findBase(client, name, header);
  {
    using first = await openBackup(context, file);
    await headerOf(first.source);
    await readInto(context, { ...first, header }, { label: "checking", name: null });
  }
  await refuseChanged(context, client, name, newest);
  using second = await openBackup(context, file);
  await headerOf(second.source);
  context.terminal.interrupted(); // no signal may end the process with half of it applied
  await refuseWriting(client, await client.disk(name)); // before anything is said of it
  // What is only a part says that it is not complete until all of it is there.
  const complete: Record<string, null> = isPart ? {} : { [UNFINISHED_ATTRIBUTE]: null };
  if (!isPart) {
    const setAttributes = { [UNFINISHED_ATTRIBUTE]: unfinishedDifference(name, header.snapshot) };
    await client.changeDisk(name, { setAttributes });
  }
  try {
    if (header.sizeBytes !== newest.sizeBytes) {
      const { sizeBytes } = header;
      await client.changeDisk(name, { sizeBytes, shrink: sizeBytes < newest.sizeBytes });
    }
    const label = `restoring ${name}`;
    const dataBytes = await readInto(context, { ...second, header }, { label, name });
    await keep(client, name, header, complete);
    return { header, dataBytes };
  } catch (error) {
    await rollBack(context, client, newest, complete);
    throw error;
  }
}

/** The newest snapshot of a disk, which has to be what the difference is to. */
async function findBase(
  client: AdminClient,
  name: string,
  header: BackupHeader,
): Promise<SnapshotDocument> {
  const base = header.base!;
  const refusal = (exitCode: ExitCode, found: string) =>
    new CommandError(
      exitCode,
      `this is the difference to ${printable(base.snapshot)} (layer ${base.layer}), and ${found}`,
      { hint: `restore the full backup to ${name}, and then each difference in its order` },
    );
  const cluster = (await client.status()).agent.clusterId;
  const disk = await findDisk(client, name);
  if (disk === null) throw refusal(ExitCode.Missing, `there is no disk ${name} that has it`);
  const snapshots = await client.snapshots({ disk: name, isBrief: true });
  const newest = snapshots.at(-1);
  if (newest === undefined) throw refusal(ExitCode.Failure, `disk ${name} has no snapshot`);
  if (!isSnapshot(base, cluster, disk, newest)) {
    throw refusal(ExitCode.Failure, `disk ${name} has ${newest.name} as its newest one`);
  }
  if (snapshots.some((snapshot) => snapshot.name === header.snapshot)) {
    throw new CommandError(
      ExitCode.Exists,
      `disk ${name} has a snapshot ${header.snapshot} already`,
      {
        hint: `kelpie disk snapshot rename ${name}@${header.snapshot} NAME`,
      },
    );
  }
  return newest;
}

/** A difference is right only on what its base holds: what was written since would shine through. */
async function refuseChanged(
  context: CommandContext,
  client: AdminClient,
  name: string,
  newest: SnapshotDocument,
): Promise<void> {
  const full = `${name}@${newest.name}`;
  const changed = new CommandError(
    ExitCode.Failure,
    `disk ${name} is no longer what ${full} holds`,
    {
      hint:
        `'kelpie disk rollback ${full}' takes it back to that; what it holds now goes to the trash`,
    },
  );
  const { id, sizeBytes } = await client.disk(name);
  if (sizeBytes !== newest.sizeBytes) throw changed;
  const now = diskSockets(context.runDir, name).readOnly;
  const doubtful: Run[] = [];
  for await (
    const extent of extents(client, name, { since: full }, sizeBytes, {
      disk: id,
      sinceLayer: newest.layer,
    })
  ) {
    if (extent.state !== "same") doubtful.push(extent);
  }
  if (doubtful.length === 0) return;
  // Written with what was there already, or not known on this node: only a look at both tells.
  const isSame = await withSocket(
    context,
    now,
    (disk) =>
      withSocket(context, socketOf(newest), async (base) => {
        for (const { offsetBytes, lengthBytes } of doubtful) {
          const end = offsetBytes + lengthBytes;
          for (let at = offsetBytes; at < end; at += COMPARE_BYTES) {
            context.terminal.interrupted().throwIfAborted();
            const [a, b] = [0, 0].map(() => new Uint8Array(Math.min(COMPARE_BYTES, end - at)));
            await Promise.all([disk.read(at, a), base.read(at, b)]);
            if (!isEqual(a, b)) return false;
          }
        }
        return true;
      }),
  );
  if (!isSame) throw changed;
}

function isEqual(a: Uint8Array, b: Uint8Array): boolean {
  return Buffer.compare(a, b) === 0;
}

/** Makes undone what was done to a disk, as far as that can be done. */
async function rollBack(
  context: CommandContext,
  client: AdminClient,
  { disk, name }: SnapshotDocument,
  setAttributes: Readonly<Record<string, null>>,
): Promise<void> {
  await client.rollbackDisk(disk, name).then(() => client.changeDisk(disk, { setAttributes }))
    .catch((error) => {
      context.output.warn(
        `disk ${disk} has part of the difference in it, and could not be rolled back: ${error.message}; ` +
          `'kelpie disk rollback ${disk}@${name}' does it`,
      );
    });
}
