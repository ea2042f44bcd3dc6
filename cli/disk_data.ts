/**
 * `kelpie disk read`, `write`, `import`, `export` and `discard`: the bytes of a disk.
 *
 * The data goes through the disk's own socket, as a guest's does: reads through the read-only one, which
 * works beside a running guest, or through that of a snapshot, writes through the one that takes the lease, and only
 * while nobody else uses the disk.
 *
 * @module
 */
import { basename, dirname, resolve } from "node:path";
import type { AdminClient } from "../agent/admin_client.ts";
import { BLOCK_BYTES, SECTOR_BYTES } from "../agent/base/limits.ts";
import { formatSize } from "../agent/config.ts";
import { BackEndError } from "../agent/frontend/error.ts";
import type { FrontEnd, FrontEndOptions } from "../agent/frontend/front_end.ts";
import type { DiskDocument, SnapshotDocument } from "../agent/http/documents.ts";
import { diskSockets } from "../agent/map/names.ts";
import {
  type AnyCommand,
  type CommandContext,
  diskArgument,
  examples,
  processName,
  sizeArgument,
  sourceArgument,
  type SourceName,
  sourceTitle,
} from "./context.ts";
import { renameDurably, syncFile } from "./durable.ts";
import { extents } from "./extents.ts";
import {
  type FileKind,
  findSource,
  findTarget,
  type FoundFile,
  type FoundTarget,
  isStandardInput,
  isStandardOutput,
  openFile,
  readerOf,
  writerOf,
} from "./files.ts";
import { CommandError, ExitCode, printable } from "./output.ts";
import { Progress, summary } from "./progress.ts";
import {
  convertImage,
  imageChain,
  type ImageInfo,
  inspectImage,
  temporaryDirectory,
} from "./qemu_img.ts";
import { findDisk, makeDisk } from "./unfinished_disk.ts";

/**
 * Length of the requests of a copy. Zeros are left out in runs of this length.
 */
export const COPY_BYTES = 128 * 1024;
/** How a front end connects that copies: with so many of these under way, 4 MiB, which keep any store busy. */
export const COPYING = { depth: 32, bufferBytes: COPY_BYTES } as const;

/** Where temporary images go when the environment does not say: large files, kept over no reboot. */
const TEMPORARY_DIRECTORY = "/var/tmp";

/** Time between two looks at who has a disk while a command waits for it: it is to say so within a second. */
const HOLDER_LOOK_MS = 250;

/** Files named in one message. */
const REFERENCES_NAMED_MAX = 3;

/** Adds the commands to `kelpie disk`. */
export function addDataCommands(disk: AnyCommand, context: CommandContext): void {
  addRead(disk, context);
  addWrite(disk, context);
  addImport(disk, context);
  addExport(disk, context);
  addDiscard(disk, context);
}

// Access ----------------------------------------------------------------------------------------

/**
 * Connects to a disk for the time that `work` takes.
 *
 * @param access `write` refuses a disk that is in use, here or on another node; when `work` begins this node has it
 */
export async function withDisk<T>(
  context: CommandContext,
  name: string,
  access: "read" | "write",
  work: (disk: FrontEnd, document: DiskDocument) => Promise<T>,
): Promise<T> {
  using client = context.client();
  const document = await client.disk(name);
  if (access === "write") await refuseWriting(client, document);
  const sockets = diskSockets(context.runDir, name);
  const socket = access === "write" ? sockets.readWrite : sockets.readOnly;
  try {
    return await withFrontEnd(context, { socket, ...COPYING }, async (disk) => {
      if (access === "write") await untilHeld(client, disk, name);
      return await work(disk, document);
    });
  } catch (error) {
    throw await explained(error, { client, name, access });
  }
}

/** Connects to a socket for the time that `work` takes. From then on signals end the work, not the process. */
export async function withFrontEnd<T>(
  context: CommandContext,
  options: Pick<FrontEndOptions, "socket" | "depth" | "bufferBytes">,
  work: (disk: FrontEnd) => Promise<T>,
): Promise<T> {
  // Late: other commands need none of it.
  const { FrontEnd } = await import("../agent/frontend/front_end.ts");
  const disk = await FrontEnd.connect({ ...options, signal: context.terminal.interrupted() });
  try {
    const result = await work(disk);
    await disk.close();
    return result;
  } finally {
    disk.abort(); // does nothing when it has been closed
  }
}

/**
 * Waits until this node has a disk. Nothing is asked of the disk before that but its name: requests that wait with the agent might
 * be carried out when the command has given up.
 *
 * @throws CommandError as soon as another node has it
 */
async function untilHeld(client: AdminClient, disk: FrontEnd, name: string): Promise<void> {
  let isHeld = false;
  const held = disk.identity().then(() => {
    isHeld = true;
  });
  held.catch(() => {}); // asked for below, unless another node has the disk
  while (!isHeld) {
    const looking = delay(HOLDER_LOOK_MS);
    await Promise.race([held, looking.done]).finally(looking.cancel);
    if (!isHeld) refuseHeld(name, await otherHolder(client, await client.disk(name)));
  }
}

function delay(milliseconds: number): { done: Promise<void>; cancel: () => void } {
  const { promise: done, resolve } = Promise.withResolvers<void>();
  const timer = setTimeout(resolve, milliseconds);
  return { done, cancel: () => clearTimeout(timer) };
}

/**
 * Connects to a disk or a snapshot, to read it, for the time that `work` takes.
 *
 * @param work is given the disk's document; null: it is a snapshot, which nobody writes to
 */
async function withSource<T>(
  context: CommandContext,
  { disk, snapshot }: SourceName,
  work: (connection: FrontEnd, document: DiskDocument | null) => Promise<T>,
): Promise<T> {
  if (snapshot === null) return await withDisk(context, disk, "read", work);
  using client = context.client();
  const socket = socketOf(await client.snapshot(disk, snapshot));
  return await withFrontEnd(
    context,
    { socket, ...COPYING },
    (connection) => work(connection, null),
  );
}

/** Where a snapshot can be read; refuses one that cannot. */
export function socketOf({ disk, name, socket, isTaking }: SnapshotDocument): string {
  if (isTaking) {
    throw new CommandError(ExitCode.Failure, `snapshot ${disk}@${name} is being taken`, {
      hint: "try again in a moment",
    });
  }
  if (socket !== null) return socket;
  throw new CommandError(
    ExitCode.Failure,
    `snapshot ${disk}@${name} cannot be read: the path of its socket would be too long`,
    { hint: "rename it, or clone it without --full and copy the clone" },
  );
}

/** Refuses a disk that cannot be written, or that somebody uses, here or on another node. */
export async function refuseWriting(client: AdminClient, document: DiskDocument): Promise<void> {
  const { name, sessions, readOnly } = document;
  if (readOnly) {
    throw new CommandError(ExitCode.Failure, `disk ${name} is read-only`);
  }
  const users = sessions.filter((session) => !session.readOnly).map(processName);
  if (users.length === 0) return refuseHeld(name, await otherHolder(client, document));
  throw new CommandError(ExitCode.Failure, `disk ${name} is in use by ${users.join(" and ")}`, {
    hint: "stop what uses it first: two writers would ruin each other's data",
  });
}

/**
 * The other node that has a disk open.
 *
 * @returns null: there is none, or it is down: then the disk can be had within seconds
 */
export async function otherHolder(
  client: AdminClient,
  { openOn }: DiskDocument,
): Promise<string | null> {
  if (openOn === null) return null;
  const node = (await client.nodes()).find(({ name }) => name === openOn);
  // Here, and by nobody: it is being given back.
  return node?.isSelf || node?.state === "down" ? null : openOn;
}

/** @param node where the disk is open; null: nowhere else */
function refuseHeld(name: string, node: string | null): void {
  if (node === null) return;
  throw new CommandError(ExitCode.Failure, `disk ${name} is open on node ${node}`, {
    hint:
      `stop its guest there first; where that is impossible, 'kelpie disk lock release ${name}' ` +
      "takes the disk away from it",
  });
}

/** A stall has a reason, and the agent may know it. */
async function explained(
  error: unknown,
  { client, name, access }: {
    readonly client: AdminClient;
    readonly name: string;
    readonly access: "read" | "write";
  },
): Promise<unknown> {
  if (!(error instanceof BackEndError) || error.kind !== "stalled") return error;
  const store = await client.store().catch(() => null);
  if (access === "read" || store === null || !store.full) {
    return new CommandError(ExitCode.System, `disk ${name} does not answer`, {
      hint: access === "read"
        ? "'kelpie status' says what it waits for"
        : "'kelpie status' says what it waits for; what it was told may still be carried out",
    });
  }
  return new CommandError(
    ExitCode.Full,
    `the store is full: writes to disk ${name} wait for space`,
    {
      hint: "delete disks for good (--now), discard data, or give the agent a larger --capacity",
    },
  );
}

/** Checks a range against the disk. */
function rangeOf(
  disk: { readonly capacityBytes: number },
  options: { readonly offset: number; readonly length?: number },
): { offsetBytes: number; lengthBytes: number } {
  const { offset: offsetBytes, length } = options;
  const { capacityBytes } = disk;
  const lengthBytes = length ?? capacityBytes - offsetBytes;
  if (offsetBytes > capacityBytes || offsetBytes + lengthBytes > capacityBytes) {
    throw new CommandError(
      ExitCode.Usage,
      `${lengthBytes < 0 ? "offset" : `${lengthBytes} bytes at`} ${offsetBytes} ${
        lengthBytes < 0 ? "lies beyond" : "leave"
      } the disk of ${capacityBytes} bytes`,
    );
  }
  return { offsetBytes, lengthBytes };
}

// read ------------------------------------------------------------------------------------------

function addRead(disk: AnyCommand, context: CommandContext): void {
  disk.command("read")
    .summary("copy data to standard output")
    .description(
      "Writes a disk's data, or a snapshot's, to standard output. Works beside a running guest.",
    )
    .argument("<source>", "DISK or DISK@NAME", sourceArgument)
    .option("--offset <size>", "where to begin", sizeArgument, 0)
    .option("--length <size>", "how much (default: up to the end)", sizeArgument)
    .addHelpText(
      "after",
      examples(
        "kelpie disk read web --length 512 | xxd",
        "kelpie disk read web@monday --offset 1M --length 4K > piece",
      ),
    )
    .action(async (source, range) => {
      if (context.terminal.isOutTerminal) {
        throw new CommandError(ExitCode.Usage, "will not print a disk's data to a terminal", {
          hint: `send it elsewhere: kelpie disk read ${source.text} > FILE`,
        });
      }
      await withSource(context, source, (connection) => read(context, connection, range));
    });
}

async function read(
  context: CommandContext,
  disk: FrontEnd,
  range: { readonly offset: number; readonly length?: number },
): Promise<void> {
  const { offsetBytes, lengthBytes } = rangeOf(disk, range);
  const endBytes = offsetBytes + lengthBytes;
  // The disk knows sectors only; what is too much at either end is cut off.
  const start = roundDown(offsetBytes);
  const { copyFromDisk } = await import("../agent/frontend/copy.ts");
  await copyFromDisk(disk, async (bytes, at) => {
    const from = Math.max(0, offsetBytes - at);
    const to = Math.min(bytes.length, endBytes - at);
    if (to > from) await context.terminal.write(bytes.subarray(from, to));
  }, {
    offsetBytes: start,
    lengthBytes: roundUp(endBytes) - start,
    signal: context.terminal.interrupted(),
  });
}

// write -----------------------------------------------------------------------------------------

/** Reads on into `bytes`; 0 at the end. */
export type Reader = (bytes: Uint8Array) => Promise<number>;

function addWrite(disk: AnyCommand, context: CommandContext): void {
  disk.command("write")
    .summary("write data into a disk")
    .description(
      "Writes standard input or a file into a disk that nobody uses. What was there is lost.",
    )
    .argument("<name>", "the disk", diskArgument)
    .argument("[file]", "the file or block device; standard input without it, or with -")
    .option("--offset <size>", "where to begin", sizeArgument, 0)
    .addHelpText("after", examples("kelpie disk write web boot.bin --offset 1M"))
    .action(async (name, file, { offset }) => {
      using source = await openSource(context, file ?? "-");
      const { reader } = source;
      const length = source.sizeBytes ?? undefined;
      const written = await withDisk(context, name, "write", async (connection) => {
        rangeOf(connection, { offset, length });
        return await write(context, connection, reader, { offset, length, name });
      });
      context.output.say(`wrote ${written} to disk ${name}`);
    });
}

/** Bytes to be read from front to back. */
export interface OpenSource extends Disposable {
  readonly reader: Reader;
  readonly kind: FileKind;
  /** Of a file or a block device; null: it is a stream, or standard input. */
  readonly sizeBytes: number | null;
}

/**
 * Opens what shall be read from front to back.
 *
 * @param file on the command line
 */
export async function openSource(context: CommandContext, file: string): Promise<OpenSource> {
  if (isStandardInput(file)) {
    const reader: Reader = (bytes) => context.terminal.read(bytes);
    return { reader, kind: "stream", sizeBytes: null, [Symbol.dispose]: () => {} };
  }
  const { path, kind } = await findSource(file);
  const source = await openFile(path);
  const reader = readerOf(source, () => context.terminal.interrupted());
  let sizeBytes: number | null = null;
  if (kind !== "stream") {
    // Block devices report no size in their status, but their end can be sought.
    sizeBytes = source.seekSync(0, Deno.SeekMode.End);
    source.seekSync(0, Deno.SeekMode.Start);
  }
  return { reader, kind, sizeBytes, [Symbol.dispose]: () => source[Symbol.dispose]() };
}

async function write(
  context: CommandContext,
  disk: FrontEnd,
  reader: Reader,
  options: { readonly name: string; readonly offset: number; readonly length?: number },
): Promise<string> {
  const { name, offset, length } = options;
  const progress = new Progress(context.output, `writing ${name}`, length ?? null);
  const { copyToDisk } = await import("../agent/frontend/copy.ts");
  const start = roundDown(offset);
  // Sectors at both ends keep the bytes that are not written.
  const sector = new Uint8Array(SECTOR_BYTES);
  let head = new Uint8Array(0);
  if (start < offset) {
    await disk.read(start, sector);
    head = sector.slice(0, offset - start);
  }
  const headBytes = head.length;
  let tail = new Uint8Array(0);
  let copied: number;
  try {
    copied = await copyToDisk(disk, async (bytes) => {
      bytes.set(head);
      const filled = await fill(reader, bytes, head.length);
      head = new Uint8Array(0);
      const whole = roundDown(filled);
      if (whole < filled) tail = bytes.slice(whole, filled);
      return whole;
    }, {
      offsetBytes: start,
      onProgress: (doneBytes) => progress.update(Math.max(0, doneBytes - headBytes)),
      signal: context.terminal.interrupted(),
    });
    if (tail.length > 0) {
      await disk.read(start + copied, sector);
      sector.set(tail);
      await disk.write(start + copied, sector);
    }
    await disk.flush();
  } finally {
    progress.end();
  }
  const written = Math.max(0, copied + tail.length - headBytes);
  const isWhole = start + copied < disk.capacityBytes || await reader(new Uint8Array(1)) === 0;
  if (isWhole) return summary(written, progress.elapsedMs);
  throw new CommandError(
    ExitCode.Failure,
    `disk ${name} of ${formatSize(disk.capacityBytes)} is too small: ${written} bytes were ` +
      "written, and there are more",
  );
}

/** Fills `bytes` from `at` on; gives how many bytes are filled then. */
async function fill(reader: Reader, bytes: Uint8Array, at: number): Promise<number> {
  let filled = at;
  while (filled < bytes.length) {
    const count = await reader(bytes.subarray(filled));
    if (count === 0) break;
    filled += count;
  }
  return filled;
}

// import ----------------------------------------------------------------------------------------

interface ImportOptions {
  readonly file: string;
  readonly name: string;
  readonly format?: string;
  readonly size?: number;
  /** The image may name other files that are to be read as well. */
  readonly follow: boolean;
  /** What the disk holds may be lost. */
  readonly yes: boolean;
  readonly tempDir: string;
}

function addImport(disk: AnyCommand, context: CommandContext): void {
  disk.command("import")
    .summary("copy an image into a disk")
    .description(
      "Copies an image into a disk, which is made when it is not there, as NAME.importing until it is complete. " +
        "Raw images are copied as they are, without their holes; all other formats go through qemu-img and a temporary raw " +
        "file.",
    )
    .argument("<file>", "the image, a file or a block device; - for a raw one on standard input")
    .argument("<name>", "the disk", diskArgument)
    .option("--format <format>", "format of the image (default: found out by qemu-img)")
    .option(
      "--size <size>",
      "size of a disk that is made (default: that of the image)",
      sizeArgument,
    )
    .option("--follow", "read other files, too, that the image names (a backing file, extents)")
    .option("--yes", "replace what the disk holds without asking")
    .option("--temp-dir <dir>", `for temporary files (default: $TMPDIR or ${TEMPORARY_DIRECTORY})`)
    .addHelpText(
      "after",
      examples(
        "kelpie disk import debian-12.qcow2 web --size 20G",
        "kelpie disk import /dev/vg0/web web",
        "zstdcat web.raw.zst | kelpie disk import - web --size 20G",
      ),
    )
    .action(async (file, name, { follow = false, yes = false, tempDir, ...options }) => {
      await importImage(context, {
        ...options,
        file,
        name,
        follow,
        yes,
        tempDir: temporaryParent(context, tempDir),
      });
    });
}

async function importImage(context: CommandContext, options: ImportOptions): Promise<void> {
  const { file, name } = options;
  const found = isStandardInput(file) ? null : await findSource(file);
  if (found === null || found.kind === "stream") {
    if ((options.format ?? "raw") !== "raw") {
      throw new CommandError(ExitCode.Usage, `only raw images can come from ${sourceText(file)}`);
    }
    using source = await openSource(context, file);
    return await importInto(context, options, null, source.reader);
  }
  const { path } = found;
  const info = await inspectImage(path, options.format);
  const { RawSource } = await import("./raw_file.ts");
  if (info.format === "raw") {
    using source = new RawSource(path);
    return await importInto(context, options, source.sizeBytes, source);
  }
  if (!options.follow) refuseReferences(file, info);
  await refuseCutShort(path, info);
  // Before the long work, not after it.
  const { isUsed } = await checkTarget(context, options, info.sizeBytes);
  await using work = await temporaryDirectory(options.tempDir);
  const raw = `${work.path}/${name}.raw`;
  await convert(context, `converting ${basename(file)} from ${info.format}`, info, {
    from: path,
    fromFormat: info.format,
    to: raw,
    toFormat: "raw",
  });
  using source = new RawSource(raw);
  const yes = options.yes || isUsed; // asked already
  await importInto(context, { ...options, yes }, source.sizeBytes, source);
}

/**
 * An image from elsewhere can name any file of this host, whose content would then be the guest's: as
 * root, all that is secret here (CVE-2024-32498 was that in OpenStack).
 */
function refuseReferences(file: string, { references }: ImageInfo): void {
  if (references.length === 0) return;
  const named = references.slice(0, REFERENCES_NAMED_MAX).map(printable).join(", ");
  const rest = references.length - REFERENCES_NAMED_MAX;
  throw new CommandError(
    ExitCode.Failure,
    `${file} wants other files to be read: ${named}${rest > 0 ? ` and ${rest} more` : ""}`,
    { hint: "add --follow if you trust the image" },
  );
}

/** Refuses an image whose file, or that of an image that it goes on from, ends before its data. */
async function refuseCutShort(path: string, { format, references }: ImageInfo): Promise<void> {
  const { findMissing } = await import("./image_end.ts");
  const image = { path, format };
  for (const each of references.length === 0 ? [image] : await imageChain(image)) {
    // The end of a raw one is where it was made to be, and places of data that lies in further files are not told apart.
    const isOne = each.format === "qcow2" || references.length === 0;
    if (each.format === "raw" || !isOne) continue;
    const missing = await findMissing(each).catch((error) => {
      // What another image names may be no file: "nbd://…". qemu-img has found it.
      if (error instanceof Deno.errors.NotFound && each !== image) return null;
      throw error;
    });
    if (missing === null) continue;
    const { diskBytes, endBytes, fileBytes } = missing;
    throw new CommandError(
      ExitCode.Failure,
      `${
        printable(each.path)
      } is cut short at byte ${fileBytes}: what byte ${diskBytes} of the disk and those behind it hold is ` +
        `not there, and would go on to byte ${endBytes} of the file`,
      {
        hint:
          "fetch it again from where it came from; 'qemu-img convert' makes a raw image of what is left of it, with " +
          "zeros for the rest",
      },
    );
  }
}

/** What is read from, in words. */
function sourceText(file: string): string {
  return isStandardInput(file) ? "standard input" : file;
}

async function convert(
  context: CommandContext,
  label: string,
  { sizeBytes }: ImageInfo,
  files: Readonly<Record<"from" | "fromFormat" | "to" | "toFormat", string>>,
): Promise<void> {
  const totalBytes = sizeBytes ?? 0;
  const progress = new Progress(context.output, label, totalBytes);
  try {
    await convertImage({
      ...files,
      onProgress: (fraction) => progress.update(fraction * totalBytes),
      signal: context.terminal.interrupted(),
    });
  } finally {
    progress.end();
  }
}

/** What an import finds where it wants to write. */
interface Target {
  /** Size for a disk that has to be made; null for one that is there. */
  readonly createBytes: number | null;
  /** It holds data, or layers that may. */
  readonly isUsed: boolean;
}

/**
 * Looks whether an image may go where it shall.
 *
 * @param imageBytes null when it is not known
 */
async function checkTarget(
  context: CommandContext,
  options: ImportOptions,
  imageBytes: number | null,
): Promise<Target> {
  const { name, size, yes } = options;
  using client = context.client();
  const found = await findDisk(client, name);
  const createBytes = size ?? imageBytes;
  if (found === null && createBytes === null) {
    throw new CommandError(
      ExitCode.Usage,
      `there is no disk ${name}, and the size of ${sourceText(options.file)} is not known`,
      { hint: "say with --size how large to make the disk" },
    );
  }
  const sizeBytes = found?.sizeBytes ?? roundUp(createBytes!);
  if (imageBytes !== null && imageBytes > sizeBytes) {
    throw new CommandError(
      ExitCode.Failure,
      `the image has ${
        formatSize(imageBytes)
      } (${imageBytes} bytes), more than disk ${name} with ` +
        `${formatSize(sizeBytes)}`,
      { hint: found === null ? "give a larger --size" : `kelpie disk resize ${name} SIZE` },
    );
  }
  if (found === null) return { createBytes: sizeBytes, isUsed: false };
  await refuseWriting(client, found);
  if (size !== undefined && size !== found.sizeBytes) {
    throw new CommandError(
      ExitCode.Exists,
      `disk ${name} is there already and has ${formatSize(found.sizeBytes)}`,
      { hint: "leave out --size, or resize the disk first" },
    );
  }
  const isUsed = found.layers.length > 1 || await holdsData(context, client, found);
  if (isUsed) {
    context.output.confirm({
      yes,
      action: `replace disk ${name}`,
      loss: dataText(found),
      refusal: ExitCode.Exists,
    });
  }
  return { createBytes: null, isUsed };
}

/** The data of a disk, in words: how much this node has of it, if any. */
export function dataText({ allocatedBytes }: DiskDocument): string {
  return allocatedBytes > 0 ? `its ${formatSize(allocatedBytes)} of data` : "its data";
}

/** Whether there is anything on a disk but zeros. What this node has no copy of is read, up to the first byte that is none. */
export async function holdsData(
  context: CommandContext,
  client: AdminClient,
  { name, sizeBytes, allocatedBytes }: DiskDocument,
): Promise<boolean> {
  // Of copies that this node has; that there are none here says nothing of the others.
  if (allocatedBytes > 0) return true;
  const unknown: { offsetBytes: number; lengthBytes: number }[] = [];
  for await (const { offsetBytes, lengthBytes, state } of extents(client, name, {}, sizeBytes)) {
    if (state === "data") return true;
    if (state !== "hole" && state !== "zero") unknown.push({ offsetBytes, lengthBytes });
  }
  if (unknown.length === 0) return false;
  return await withDisk(context, name, "read", async (disk) => {
    const buffer = new Uint8Array(COPYING.depth * COPY_BYTES);
    for (const { offsetBytes, lengthBytes } of unknown) {
      const end = offsetBytes + lengthBytes;
      for (let at = offsetBytes; at < end; at += buffer.length) {
        const piece = buffer.subarray(0, Math.min(buffer.length, end - at));
        await disk.read(at, piece);
        if (new Uint32Array(piece.buffer, 0, piece.length / 4).some((word) => word !== 0)) {
          return true;
        }
      }
    }
    return false;
  });
}

type RawSource = import("./raw_file.ts").RawSource;

/** Copies a raw image into a disk that is there, or into a new one, which appears when all of the image is in it. */
async function importInto(
  context: CommandContext,
  options: ImportOptions,
  imageBytes: number | null,
  source: RawSource | Reader,
): Promise<void> {
  const { name } = options;
  const { createBytes, isUsed } = await checkTarget(context, options, imageBytes);
  context.terminal.interrupted(); // no signal may end the process with half a disk left behind
  const copyTo = (target: string) =>
    withDisk(context, target, "write", async (disk) => {
      if (isUsed) await disk.writeZeroes(0, disk.capacityBytes);
      return await copyImage(context, disk, { name, imageBytes, source });
    });
  let said: string;
  if (createBytes === null) said = await copyTo(name);
  else {
    using client = context.client();
    said = await makeDisk(context, client, {
      work: "importing",
      name,
      sizeBytes: createBytes,
    }, copyTo);
  }
  context.output.say(`imported ${said} into disk ${name}`);
}

async function copyImage(
  context: CommandContext,
  disk: FrontEnd,
  options: {
    readonly name: string;
    readonly imageBytes: number | null;
    readonly source: RawSource | Reader;
  },
): Promise<string> {
  const { name, imageBytes, source } = options;
  const { copyToDisk } = await import("../agent/frontend/copy.ts");
  const progress = new Progress(context.output, `importing ${name}`, imageBytes);
  const signal = context.terminal.interrupted();
  let copied = 0;
  try {
    if (typeof source === "function") {
      copied = await copyToDisk(disk, (bytes) => fill(source, bytes, 0), {
        zeroes: "skip",
        onProgress: (doneBytes) => progress.update(doneBytes),
        signal,
      });
      if (copied === disk.capacityBytes && await source(new Uint8Array(1)) > 0) {
        throw new CommandError(
          ExitCode.Failure,
          `the image is larger than disk ${name} with ${formatSize(disk.capacityBytes)}`,
        );
      }
    } else {
      for (const { offsetBytes, lengthBytes } of source.extents()) {
        await copyToDisk(disk, (bytes, at) => source.readAt(bytes, at), {
          offsetBytes,
          lengthBytes: roundUp(lengthBytes),
          zeroes: "skip",
          onProgress: (doneBytes) => progress.update(offsetBytes + doneBytes),
          signal,
        });
      }
      source.check();
      copied = source.sizeBytes;
    }
    await disk.flush();
  } finally {
    progress.end();
  }
  return summary(copied, progress.elapsedMs);
}

// export ----------------------------------------------------------------------------------------

function addExport(disk: AnyCommand, context: CommandContext): void {
  disk.command("export")
    .summary("copy a disk or a snapshot into an image")
    .description(
      "Copies a disk or a snapshot into an image: a raw file with holes, or any format that qemu-img knows. " +
        "A snapshot is of one moment; a disk that a guest writes to meanwhile is not. On a block device, which has to be " +
        "large enough, the image is raw, and what lies behind it stays.",
    )
    .argument("<source>", "DISK or DISK@NAME", sourceArgument)
    .argument("<file>", "the image, a file or a block device; - for standard output")
    .option("--format <format>", "raw, qcow2, vmdk, …", "raw")
    .option("--yes", "replace a file that is there without asking")
    .option("--temp-dir <dir>", `for temporary files (default: $TMPDIR or ${TEMPORARY_DIRECTORY})`)
    .addHelpText(
      "after",
      examples(
        "kelpie disk export web web.raw",
        "kelpie disk export web@monday web.qcow2 --format qcow2",
        "kelpie disk export web@monday /dev/vg0/web --yes",
        "kelpie disk export web - | zstd > web.raw.zst",
      ),
    )
    .action(async (source, file, { format, yes = false, tempDir }) => {
      if (isStandardOutput(file)) return await exportToOutput(context, source, format);
      const target = await findTarget(file);
      if (target.kind === "stream") return await exportToStream(context, { source, file, format });
      await exportToFile(context, {
        source,
        file,
        target,
        format,
        yes,
        tempDir: temporaryParent(context, tempDir),
      });
    });
}

async function exportToOutput(
  context: CommandContext,
  source: SourceName,
  format: string,
): Promise<void> {
  if (format !== "raw") {
    throw new CommandError(ExitCode.Usage, "only raw images can go to standard output");
  }
  if (context.terminal.isOutTerminal) {
    throw new CommandError(ExitCode.Usage, "will not print a disk's data to a terminal");
  }
  const said = await withSource(context, source, (disk, document) => {
    warnOfUse(context, document);
    return copyOut(context, disk, source, (bytes) => context.terminal.write(bytes));
  });
  context.output.say(`exported ${said} from ${sourceTitle(source)}`);
}

async function exportToStream(
  context: CommandContext,
  { source, file, format }: {
    readonly source: SourceName;
    readonly file: string;
    readonly format: string;
  },
): Promise<void> {
  refuseFormat(file, format);
  const said = await withSource(context, source, async (disk, document) => {
    warnOfUse(context, document);
    using stream = await openFile(resolve(file), { write: true, truncate: true });
    const write = writerOf(stream, context.terminal.interrupted());
    const said = await copyOut(context, disk, source, write);
    await syncFile(stream);
    return said;
  });
  context.output.say(`exported ${said} from ${sourceTitle(source)} to ${file}`);
}

/** Only a file can hold an image in another format. */
function refuseFormat(file: string, format: string): void {
  if (format === "raw") return;
  throw new CommandError(ExitCode.Usage, `${file} is no ordinary file: only raw can go there`);
}

async function exportToFile(
  context: CommandContext,
  options: {
    readonly source: SourceName;
    readonly file: string;
    readonly target: FoundTarget;
    readonly format: string;
    readonly yes: boolean;
    readonly tempDir: string;
  },
): Promise<void> {
  const { source, file, target, format } = options;
  const isFile = target.kind === "file";
  confirmTarget(context, options);
  if (!isFile) refuseFormat(file, format);
  if (format === "raw" && /\.(qcow2?|qed|vmdk|vdi|vhdx?|vpc)$/i.test(file)) {
    context.output.warn(
      `${file} gets a raw image, whatever its name says; --format chooses another`,
    );
  }
  // A file appears under its name when it is complete, and not before.
  const partial = isFile ? partialName(target.path) : target.path;
  let said: string;
  try {
    said = format === "raw"
      ? await exportRaw(context, source, {
        file: { path: partial, kind: target.kind },
        shown: file,
        stays: true,
      })
      : await exportConverted(context, { ...options, partial });
    if (isFile) await renameDurably(partial, target.path);
  } catch (error) {
    if (isFile) await Deno.remove(partial).catch(() => {});
    throw error;
  }
  context.output.say(`exported ${said} from ${sourceTitle(source)} to ${file}`);
}

/**
 * Asks before something is written over.
 *
 * @param options.file the target as it was named
 */
export function confirmTarget(
  context: CommandContext,
  { file, target, yes }: {
    readonly file: string;
    readonly target: FoundTarget;
    readonly yes: boolean;
  },
): void {
  if (!target.isThere) return;
  context.output.confirm({
    yes,
    action: `write over ${file}`,
    loss: "what is in it",
    refusal: ExitCode.Exists,
  });
}

/** Where a file grows until it is complete. */
export function partialName(path: string): string {
  return `${dirname(path)}/.${basename(path)}.${Deno.pid}.partial`;
}

async function exportRaw(
  context: CommandContext,
  source: SourceName,
  target: {
    /** A file or a block device. */
    readonly file: FoundFile;
    /** As it was named. */
    readonly shown: string;
    /** It is what was asked for, and not read again at once. */
    readonly stays: boolean;
  },
): Promise<string> {
  const [{ RawTarget }, { WriteBehind }] = await Promise.all([
    import("./raw_file.ts"),
    import("../agent/platform/linux/write_behind.ts"),
  ]);
  return await withSource(context, source, async (disk, document) => {
    warnOfUse(context, document);
    using file = await RawTarget.open({ ...target, sizeBytes: disk.capacityBytes });
    await using behind = target.stays ? new WriteBehind(target.file.path) : null;
    const said = await copyOut(context, disk, source, async (bytes, at) => {
      file.writeAt(bytes, at);
      await behind?.advance(at + bytes.length);
    });
    if (target.stays) await file.sync();
    return said;
  });
}

async function exportConverted(
  context: CommandContext,
  options: {
    readonly source: SourceName;
    readonly file: string;
    readonly format: string;
    readonly tempDir: string;
    readonly partial: string;
  },
): Promise<string> {
  const { source, file, format, tempDir, partial } = options;
  await using work = await temporaryDirectory(tempDir);
  const raw = `${work.path}/${source.disk}.raw`;
  const target = { file: { path: raw, kind: "file" }, shown: raw, stays: false } as const;
  const said = await exportRaw(context, source, target);
  const { size } = await Deno.stat(raw);
  const info = { format, sizeBytes: size, references: [] };
  await convert(context, `converting ${basename(file)} to ${format}`, info, {
    from: raw,
    fromFormat: "raw",
    to: partial,
    toFormat: format,
  });
  // qemu-img leaves that to the kernel.
  using converted = await openFile(partial);
  await syncFile(converted);
  return said;
}

async function copyOut(
  context: CommandContext,
  disk: FrontEnd,
  { text }: SourceName,
  sink: (bytes: Uint8Array, offsetBytes: number) => void | Promise<void>,
): Promise<string> {
  const { copyFromDisk } = await import("../agent/frontend/copy.ts");
  const progress = new Progress(context.output, `exporting ${text}`, disk.capacityBytes);
  try {
    await copyFromDisk(disk, sink, {
      onProgress: (doneBytes) => progress.update(doneBytes),
      signal: context.terminal.interrupted(),
    });
  } finally {
    progress.end();
  }
  return summary(disk.capacityBytes, progress.elapsedMs);
}

/** @param document null: of a snapshot, which nobody uses so that it would change */
function warnOfUse(context: CommandContext, document: DiskDocument | null): void {
  if (document === null) return;
  const { name, sessions } = document;
  const users = sessions.filter((session) => !session.readOnly).map(processName);
  if (users.length === 0) return;
  context.output.warn(
    `disk ${name} is in use by ${
      users.join(" and ")
    }: the copy is of no single moment; that of a snapshot is`,
  );
}

// discard ---------------------------------------------------------------------------------------

function addDiscard(disk: AnyCommand, context: CommandContext): void {
  disk.command("discard")
    .summary("forget data of a disk")
    .description("Forgets a disk's data, which gives its space back. The disk stays.")
    .argument("<name>", "the disk", diskArgument)
    .option("--offset <size>", "where to begin", sizeArgument, 0)
    .option("--length <size>", "how much (default: up to the end)", sizeArgument)
    .option("--yes", "do not ask")
    .addHelpText("after", examples("kelpie disk discard web --offset 10G --length 1G --yes"))
    .action(async (name, { yes = false, ...range }) => {
      for (const [option, value] of Object.entries(range)) {
        // Part of a block cannot be given back, and must not seem to have been.
        if (value % BLOCK_BYTES === 0) continue;
        throw new CommandError(
          ExitCode.Usage,
          `--${option} ${value} is not a multiple of ${BLOCK_BYTES}, the size of a block`,
        );
      }
      using client = context.client();
      const document = await client.disk(name);
      const { offsetBytes, lengthBytes } = rangeOf({ capacityBytes: document.sizeBytes }, range);
      await refuseWriting(client, document); // before it is asked about
      context.output.confirm({
        yes,
        action: `discard data of disk ${name}`,
        loss: `${formatSize(lengthBytes)} from byte ${offsetBytes} on`,
      });
      await withDisk(context, name, "write", async (connection) => {
        await connection.discard(offsetBytes, lengthBytes);
        await connection.flush();
      });
      context.output.say(`discarded ${formatSize(lengthBytes)} of disk ${name}`);
    });
}

// Small things ----------------------------------------------------------------------------------

/** The directory for temporary files: an option, or what the environment says. */
export function temporaryParent(context: CommandContext, option: string | undefined): string {
  return resolve(option ?? (context.terminal.environment("TMPDIR") || TEMPORARY_DIRECTORY));
}

function roundDown(bytes: number): number {
  return bytes - bytes % SECTOR_BYTES;
}

function roundUp(bytes: number): number {
  return roundDown(bytes + SECTOR_BYTES - 1);
}
