/**
 * Writes a snapshot into a file: what `kelpie disk backup` does.
 *
 * Invariant: a file appears under its name when it is complete and durable, and not before.
 *
 * @module
 */
import type { AdminClient } from "../agent/admin_client.ts";
import type { BackupHeader } from "../agent/backup/format.ts";
import type { FrontEnd } from "../agent/frontend/front_end.ts";
import type { SnapshotDocument } from "../agent/http/documents.ts";
import { WriteBehind } from "../agent/platform/linux/write_behind.ts";
import { identityOf } from "./backup_identity.ts";
import { type BackupRange, type BackupTotals, pipeOut, requireZstd } from "./backup_pipe.ts";
import type { CommandContext, SnapshotName } from "./context.ts";
import { partialName, socketOf } from "./disk_data.ts";
import { renameDurably } from "./durable.ts";
import { CommandError, ExitCode } from "./output.ts";
import { Progress } from "./progress.ts";

/** Length of a read: long ones cost the agent and this process less per byte. */
const READ_BYTES = 1024 * 1024;

/** Reads under way at once. */
const READ_DEPTH = 8;

/** What is to be backed up, and how. */
export interface BackupWish {
  readonly snapshot: SnapshotName;
  readonly since: SnapshotName | null;
  readonly compression: "zstd" | "none";
}

/** A backup that was written. */
export interface BackupDone {
  readonly header: BackupHeader;
  readonly totals: BackupTotals;
}

/**
 * Writes a backup into a file, which is there when it is complete and durable.
 *
 * @param target its path; `isRegular` is false for a device or a pipe, which is written to in place
 */
export async function writeBackupFile(
  context: CommandContext,
  wish: BackupWish,
  target: { readonly path: string; readonly isRegular: boolean },
): Promise<BackupDone> {
  const { path, isRegular } = target;
  const partial = isRegular ? partialName(path) : path;
  context.terminal.interrupted(); // no signal may end the process with half a file left behind
  try {
    using output = await Deno.open(partial, {
      write: true,
      create: isRegular,
      truncate: isRegular,
    });
    const done = isRegular
      ? await writeBackupBehind(context, wish, { path: partial, output })
      : await writeBackup(context, wish, (bytes) => writeAll(output, bytes));
    if (isRegular) {
      await output.sync();
      await renameDurably(partial, path);
    }
    return done;
  } catch (error) {
    if (isRegular) await Deno.remove(partial).catch(() => {});
    throw error;
  }
}

/** Writes a backup into a file, which goes to the disk while it is written. */
async function writeBackupBehind(
  context: CommandContext,
  wish: BackupWish,
  { path, output }: { readonly path: string; readonly output: Deno.FsFile },
): Promise<BackupDone> {
  await using behind = new WriteBehind(path);
  let endBytes = 0;
  return await writeBackup(context, wish, async (bytes) => {
    await writeAll(output, bytes);
    endBytes += bytes.length;
    await behind.advance(endBytes);
  });
}

/** Writes all of the bytes. */
export async function writeAll(file: Deno.FsFile, bytes: Uint8Array): Promise<void> {
  for (let at = 0; at < bytes.length;) at += await file.write(bytes.subarray(at));
}

/**
 * Writes a backup.
 *
 * @param write writes all of the bytes, which stay as they are until it resolves
 */
export async function writeBackup(
  context: CommandContext,
  { snapshot, since, compression }: BackupWish,
  write: (bytes: Uint8Array) => Promise<void>,
): Promise<BackupDone> {
  using client = context.client();
  const document = await client.snapshot(snapshot.disk, snapshot.name);
  if (compression === "zstd") requireZstd("install it, or add --compress none");
  const socket = socketOf(document);
  const header = await describe(client, document, { since, compression });
  const signal = context.terminal.interrupted();
  const progress = new Progress(context.output, `backing up ${snapshot.disk}`, header.sizeBytes);
  try {
    const totals = await withSocket(socket, (disk) =>
      pipeOut(disk, {
        header,
        ranges: rangesOf(client, document, since),
        write,
        onProgress: (doneBytes) => progress.update(doneBytes),
        signal,
      }));
    return { header, totals };
  } finally {
    progress.end();
  }
}

/** Connects to a socket for the time that `work` takes. */
export async function withSocket<T>(
  socket: string,
  work: (disk: FrontEnd) => Promise<T>,
): Promise<T> {
  // Late: other commands need none of it.
  const { FrontEnd } = await import("../agent/frontend/front_end.ts");
  const disk = await FrontEnd.connect({ socket, depth: READ_DEPTH, bufferBytes: READ_BYTES });
  try {
    const result = await work(disk);
    await disk.close();
    return result;
  } finally {
    disk.abort(); // does nothing when it has been closed
  }
}

async function describe(
  client: AdminClient,
  snapshot: SnapshotDocument,
  { since, compression }: Pick<BackupWish, "since" | "compression">,
): Promise<BackupHeader> {
  const cluster = (await client.status()).agent.clusterId;
  const disk = await client.disk(snapshot.disk);
  let base: BackupHeader["base"] = null;
  if (since !== null) {
    const baseDisk = since.disk === disk.name ? disk : await client.disk(since.disk);
    const found = await client.snapshot(since.disk, since.name);
    base = { ...identityOf(cluster, baseDisk, found), snapshot: `${since.disk}@${since.name}` };
  }
  return {
    disk: snapshot.disk,
    snapshot: snapshot.name,
    sizeBytes: snapshot.sizeBytes,
    createdMs: snapshot.createdMs,
    identity: identityOf(cluster, disk, snapshot),
    base,
    compression,
  };
}

/** What has to be in a backup. What this node cannot tell may hold anything, or differ: it is in it. */
async function* rangesOf(
  client: AdminClient,
  { disk, name, sizeBytes }: SnapshotDocument,
  since: SnapshotName | null,
): AsyncGenerator<BackupRange> {
  const question = {
    snapshot: name,
    since: since === null ? undefined : `${since.disk}@${since.name}`,
  };
  for await (
    const { offsetBytes, lengthBytes, state } of extents(client, disk, question, sizeBytes)
  ) {
    if (state === "hole" || state === "same") continue;
    yield { offsetBytes, lengthBytes, isZero: state === "zero" };
  }
}

/** All extents of a disk or a snapshot, one answer after the other. */
export async function* extents(
  client: AdminClient,
  disk: string,
  question: { readonly snapshot?: string; readonly since?: string },
  sizeBytes: number,
) {
  for (let at = 0; at < sizeBytes;) {
    const range = { offsetBytes: at, lengthBytes: sizeBytes - at, ...question };
    const answer = await client.diskExtents(disk, range);
    if (answer.extents.length === 0) {
      throw new CommandError(ExitCode.System, `the agent does not serve disk ${disk}`, {
        hint: "try again in a moment",
      });
    }
    for (const { lengthBytes, state } of answer.extents) {
      yield { offsetBytes: at, lengthBytes, state };
      at += lengthBytes;
    }
  }
}
