/**
 * `kelpie disk preallocate`, and `kelpie disk create --preallocate`: every block of a disk gets space of its own before it is needed.
 *
 *     the disk's socket, with its lease ─▶ extents ─┬─ data ────────────────▶ left alone
 *                                                   ├─ hole, zeros ─────────▶ zeros are written
 *                                                   └─ not known here ─ read ─┬─ a block with anything in it ─▶ left alone
 *                                                                             └─ a block of zeros ────────────▶ zeros are written
 *
 * Invariants:
 * - nothing is ever written but zeros, and only where the disk reads as zeros: what is on it stays the same, whatever happens;
 * - that cannot be undone by a guest that writes meanwhile, since none can: the lease is held from before the first look until after the
 *   last write, and replicas refuse the writes of a lease that was taken away. So a disk that somebody has open is refused;
 * - the zeros are data to every part that they pass: with `detect-zeroes` they would not be, so such a disk is refused;
 * - what was interrupted goes on where it is asked for again: what has space by then is data.
 *
 * @module
 */
import type { AdminClient } from "../agent/admin_client.ts";
import { BLOCK_BYTES } from "../agent/base/limits.ts";
import { formatSize } from "../agent/config.ts";
import type { FrontEnd } from "../agent/frontend/front_end.ts";
import type { DiskDocument } from "../agent/http/documents.ts";
import { ControlFailure } from "../agent/map/errors.ts";
import { type AnyCommand, type CommandContext, diskArgument, examples } from "./context.ts";
import { COPY_BYTES, refuseWriting, withDisk } from "./disk_data.ts";
import { extents } from "./extents.ts";
import { CommandError, ExitCode } from "./output.ts";
import { Progress, summary } from "./progress.ts";

/** Adds the command to `kelpie disk`. */
export function addPreallocateCommand(disk: AnyCommand, context: CommandContext): void {
  disk.command("preallocate")
    .summary("give every block of a disk its space now")
    .description(
      "Writes zeros into every block of a disk that has no data yet, so that it has space of its own on all its nodes. What is on the " +
        "disk stays. Nobody may have it open meanwhile. The space is the disk's until a guest discards it, or a snapshot is taken: then " +
        "what is written needs new space. In a store that other disks have filled, its writes wait nevertheless. Can be interrupted, and " +
        "goes on when it is run again.",
    )
    .argument("<name>", "the disk", diskArgument)
    .addHelpText("after", examples("kelpie disk preallocate web"))
    .action(async (name) => await preallocate(context, name));
}

/** There is too little room, which was found before anything was written. */
export class NoRoom extends CommandError {}

/** Why pre-allocation and detection of zeros do not go together. */
export const ZEROES_HINT =
  "with it blocks of zeros take no space, and pre-allocation is writing zeros so that they do";

/**
 * Gives every block of a disk its space.
 *
 * @throws {CommandError} where the disk is open, cannot be written, or plainly has no room
 */
export async function preallocate(context: CommandContext, name: string): Promise<void> {
  using client = context.client();
  const document = await client.disk(name);
  await refuse(client, document);
  context.terminal.interrupted(); // from now on signals end the work, not the process
  await refuseFull(client, document);
  const said = await withDisk(context, name, "write", async (connection) => {
    const { written, elapsedMs } = await fill(context, client, connection, document);
    await connection.flush();
    return written === 0 ? null : summary(written, elapsedMs);
  });
  const after = await client.disk(name);
  if (after.detectZeroes) {
    throw new CommandError(
      ExitCode.Failure,
      `detect-zeroes of disk ${name} was switched on meanwhile: not all of it has space`,
      { hint: ZEROES_HINT },
    );
  }
  context.output.say(
    said === null
      ? `all of disk ${name} has space already`
      : `all of disk ${name} has space now: wrote ${said}`,
  );
  // What it was cloned from may have been deleted, and be there for other clones still.
  if (after.snapshots.length > 0 || after.origin !== null || after.isShared) {
    const others = after.snapshots.length > 0 || after.origin !== null
      ? "snapshots"
      : "other disks";
    context.output.warn(
      `disk ${name} shares data with ${others}: what is written over that needs new space`,
    );
  }
}

async function refuse(client: AdminClient, document: DiskDocument): Promise<void> {
  const { name, detectZeroes } = document;
  if (detectZeroes) {
    throw new CommandError(ExitCode.Failure, `disk ${name} has detect-zeroes on`, {
      hint: `${ZEROES_HINT}; 'kelpie disk set ${name} --detect-zeroes off' first`,
    });
  }
  await refuseWriting(client, document);
}

// Room ------------------------------------------------------------------------------------------------

/** Refuses where a node has plainly less room than its part of the disk will take. */
async function refuseFull(client: AdminClient, disk: DiskDocument): Promise<void> {
  const missingShare = await emptyShare(client, disk);
  const { places } = await client.diskPlaces(disk.name).catch((error) => {
    // Where nobody knows places yet, whoever writes waits.
    if (error instanceof ControlFailure && error.error.code === "unavailable") {
      return { places: [] };
    }
    throw error;
  });
  const needed = new Map<string, number>();
  for (const { target, inSync, sizeBytes } of places) {
    // Where it shall be, once that is decided.
    for (const node of target.length > 0 ? target : inSync) {
      needed.set(node, (needed.get(node) ?? 0) + sizeBytes * missingShare);
    }
  }
  const lacking: string[] = [];
  for (const { name, usedBytes, capacityBytes } of await client.nodes()) {
    const neededBytes = needed.get(name) ?? 0;
    if (usedBytes === null || neededBytes === 0) continue;
    const missingBytes = Math.ceil(neededBytes - Math.max(0, capacityBytes - usedBytes));
    if (missingBytes > 0) lacking.push(`${formatSize(missingBytes)} on node ${name}`);
  }
  if (lacking.length === 0) return;
  throw new NoRoom(
    ExitCode.Full,
    `there is too little space for all of disk ${disk.name}: ${lacking.join(", ")} is missing`,
    { hint: "add nodes, give the agents a larger --capacity, or delete what is not needed" },
  );
}

/** The part of a disk that has no space yet, 0 to 1; what this node does not know counts as what it knows. */
async function emptyShare(client: AdminClient, { name, sizeBytes, allocatedBytes }: DiskDocument) {
  let empty = 0, known = 0;
  for await (const { lengthBytes, state } of extents(client, name, {}, sizeBytes)) {
    if (state === "unknown") continue;
    known += lengthBytes;
    if (state !== "data") empty += lengthBytes;
  }
  if (known > 0) return empty / known;
  return allocatedBytes === 0 ? 1 : 0;
}

// Writing ---------------------------------------------------------------------------------------------

/** Writes zeros where nothing is. The lease is held. */
async function fill(
  context: CommandContext,
  client: AdminClient,
  disk: FrontEnd,
  { name, id }: DiskDocument,
): Promise<{ written: number; elapsedMs: number }> {
  const sizeBytes = disk.capacityBytes;
  const signal = context.terminal.interrupted();
  const progress = new Progress(context.output, `preallocating ${name}`, sizeBytes);
  let written = 0;
  const zero = async (offsetBytes: number, lengthBytes: number) => {
    await writeZeros(disk, {
      offsetBytes,
      lengthBytes,
      signal,
      onProgress: (doneBytes) => progress.update(offsetBytes + doneBytes),
    });
    written += lengthBytes;
  };
  try {
    for await (const extent of extents(client, name, {}, sizeBytes, { disk: id })) {
      signal.throwIfAborted();
      const { offsetBytes, lengthBytes, state } = extent;
      if (state === "hole" || state === "zero") await zero(offsetBytes, lengthBytes);
      else if (state !== "data") {
        for await (const run of zeroRuns(disk, offsetBytes, lengthBytes)) {
          signal.throwIfAborted();
          await zero(run.offsetBytes, run.lengthBytes);
        }
      }
      progress.update(offsetBytes + lengthBytes);
    }
  } finally {
    progress.end();
  }
  return { written, elapsedMs: progress.elapsedMs };
}

async function writeZeros(
  disk: FrontEnd,
  options: {
    readonly offsetBytes: number;
    readonly lengthBytes: number;
    readonly onProgress: (doneBytes: number) => void;
    readonly signal: AbortSignal;
  },
): Promise<void> {
  const { copyToDisk } = await import("../agent/frontend/copy.ts");
  await copyToDisk(disk, (bytes) => {
    bytes.fill(0);
    return bytes.length;
  }, { ...options, zeroes: "write" });
}

/** Runs of whole blocks that read as zeros: whether they are data, this node cannot tell, and zeros over zeros change nothing. */
async function* zeroRuns(
  disk: FrontEnd,
  offsetBytes: number,
  lengthBytes: number,
): AsyncGenerator<{ readonly offsetBytes: number; readonly lengthBytes: number }> {
  const end = offsetBytes + lengthBytes;
  const buffer = new Uint8Array(COPY_BYTES);
  for (let at = offsetBytes; at < end;) {
    const piece = buffer.subarray(0, Math.min(COPY_BYTES, end - at));
    await disk.read(at, piece);
    let from = 0;
    for (let block = 0; block < piece.length; block += BLOCK_BYTES) {
      const next = Math.min(piece.length, block + BLOCK_BYTES);
      if (piece.subarray(block, next).every((byte) => byte === 0)) continue;
      if (block > from) yield { offsetBytes: at + from, lengthBytes: block - from };
      from = next;
    }
    if (piece.length > from) yield { offsetBytes: at + from, lengthBytes: piece.length - from };
    at += piece.length;
  }
}
