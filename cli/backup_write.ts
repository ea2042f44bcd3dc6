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
import { partialName, socketOf, withFrontEnd } from "./disk_data.ts";
import { renameDurably, syncFile } from "./durable.ts";
import { extents } from "./extents.ts";
import {
  type FoundFile,
  openDevice,
  type OpenFile,
  openFile,
  writeAll,
  writerOf,
} from "./files.ts";
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
 * Writes a backup into a file, which is there when it is complete and durable; into a block device or a stream in place.
 *
 * @param shown the file as it was named
 */
export async function writeBackupFile(
  context: CommandContext,
  wish: BackupWish,
  target: FoundFile,
  shown: string,
): Promise<BackupDone> {
  const { path, kind } = target;
  const signal = context.terminal.interrupted(); // no signal may end the process with half a file left behind
  if (kind === "device") {
    using output = openDevice(target, shown);
    return await writeBackupBehind(context, wish, { path, output });
  }
  if (kind === "stream") {
    using output = await openFile(path, { write: true, truncate: true });
    const done = await writeBackup(context, wish, writerOf(output, signal));
    await syncFile(output);
    return done;
  }
  const partial = partialName(path);
  try {
    using output = await openFile(partial, { write: true, create: true, truncate: true });
    const done = await writeBackupBehind(context, wish, { path: partial, output });
    await renameDurably(partial, path);
    return done;
  } catch (error) {
    await Deno.remove(partial).catch(() => {});
    throw error;
  }
}

/** Writes a backup into a file or a block device, where it is durable then; it goes to the disk while it is written. */
async function writeBackupBehind(
  context: CommandContext,
  wish: BackupWish,
  { path, output }: { readonly path: string; readonly output: OpenFile },
): Promise<BackupDone> {
  await using behind = new WriteBehind(path);
  let endBytes = 0;
  const done = await writeBackup(context, wish, async (bytes) => {
    await writeAll(output, bytes);
    endBytes += bytes.length;
    await behind.advance(endBytes);
  });
  await output.sync();
  return done;
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
    const totals = await withSocket(context, socket, (disk) =>
      pipeOut(disk, {
        header,
        ranges: rangesOf(client, document, since, header),
        write,
        onProgress: (doneBytes) => progress.update(doneBytes),
        signal,
      }));
    return { header, totals };
  } finally {
    progress.end();
  }
}

/** Connects to a socket for the time that `work` takes, with as much under way as a backup needs. */
export function withSocket<T>(
  context: CommandContext,
  socket: string,
  work: (disk: FrontEnd) => Promise<T>,
): Promise<T> {
  return withFrontEnd(context, { socket, depth: READ_DEPTH, bufferBytes: READ_BYTES }, work);
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
  { identity, base }: BackupHeader,
): AsyncGenerator<BackupRange> {
  const question = {
    snapshot: name,
    since: since === null ? undefined : `${since.disk}@${since.name}`,
  };
  const meant = { layer: identity.layer, sinceLayer: base?.layer ?? 0 };
  for await (
    const { offsetBytes, lengthBytes, state } of extents(client, disk, question, sizeBytes, meant)
  ) {
    if (state === "hole" || state === "same") continue;
    yield { offsetBytes, lengthBytes, isZero: state === "zero" };
  }
}
