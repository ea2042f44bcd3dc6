/**
 * The files, devices and streams that a command is told to read or to write.
 *
 *     -, /dev/stdin, /dev/stdout               the process has them open: `Terminal`
 *     ordinary files                           the runtime opens them, or the C library what it does not       have positions
 *     block devices                            likewise; to be written always the C library                    have positions
 *     pipes, other devices, and a descriptor
 *     of a shell (/dev/fd/N) to be written     the runtime                           go in order, may keep one waiting for ever
 *
 * Why the C library: see `agent/platform/linux/file.ts`. All else that is done with names below /dev (looking at files, renaming
 * and removing them, making directories) needs no more permissions than elsewhere.
 *
 * @module
 */
import { resolve } from "node:path";
import { DescriptorFile, type FileOptions } from "../agent/platform/linux/file.ts";
import { SystemError } from "../agent/platform/linux/libc.ts";
import { CommandError, ExitCode } from "./output.ts";

const EBUSY = 16;

/** What can be done with a file that is open, whoever has opened it. */
export type OpenFile =
  & Pick<
    Deno.FsFile,
    "read" | "readSync" | "seekSync" | "sync" | "truncateSync" | "write" | "writeSync"
  >
  & Disposable;

/** How a file can be used. */
export type FileKind =
  /** It has positions, may have holes, and can be replaced as a whole. */
  | "file"
  /** A block device: it has positions and a size that stays, and holds something wherever nobody writes. */
  | "device"
  /** Anything else: bytes in their order. */
  | "stream";

/** A file with its kind. */
export interface FoundFile {
  /** Absolute. */
  readonly path: string;
  readonly kind: FileKind;
}

/** Names of what a process has open already, which are links to it, or to what only the kernel has a name for. */
const DESCRIPTOR = /^\/(?:dev\/(?:fd\/\d+|stdin|stdout|stderr)|proc\/self\/fd\/\d+)$/;

/** Whether a file on the command line is standard input. */
export function isStandardInput(file: string): boolean {
  return file === "-" || /^\/(?:dev\/stdin|(?:dev|proc\/self)\/fd\/0)$/.test(resolve(file));
}

/** Whether a file on the command line is standard output. */
export function isStandardOutput(file: string): boolean {
  return file === "-" || /^\/(?:dev\/stdout|(?:dev|proc\/self)\/fd\/1)$/.test(resolve(file));
}

/**
 * Looks at a file that shall be read.
 *
 * @param file on the command line, other than standard input
 * @throws CommandError for a directory, Deno.errors.NotFound and its like
 */
export async function findSource(file: string): Promise<FoundFile> {
  const path = resolve(file);
  const info = await Deno.stat(path);
  if (info.isDirectory) {
    throw new CommandError(ExitCode.Usage, `${file} is a directory, not a file`);
  }
  return { path, kind: kindOf(info) };
}

/** A file that shall be written. */
export interface FoundTarget extends FoundFile {
  /** Something is lost by writing there. */
  readonly isThere: boolean;
}

/**
 * Looks at a file that shall be written; links are followed, and stay.
 *
 * @param file on the command line, other than standard output
 * @throws CommandError for a directory
 */
export async function findTarget(file: string): Promise<FoundTarget> {
  const shown = resolve(file);
  const info = await Deno.stat(shown).catch((error) => {
    if (error instanceof Deno.errors.NotFound) return null;
    throw error;
  });
  if (info === null) return { path: shown, kind: "file", isThere: false };
  if (info.isDirectory) throw new CommandError(ExitCode.Exists, `${file} is a directory`);
  const kind = kindOf(info);
  if (kind === "stream") return { path: shown, kind, isThere: false };
  // Somebody has opened it for this process: another file in its place would not be what they see.
  if (kind === "file" && DESCRIPTOR.test(shown)) {
    return { path: shown, kind: "stream", isThere: false };
  }
  return { path: await Deno.realPath(shown), kind, isThere: true };
}

function kindOf({ isFile, isBlockDevice }: Deno.FileInfo): FileKind {
  return isFile ? "file" : isBlockDevice ? "device" : "stream";
}

/**
 * Opens a file.
 *
 * @param options for reading, if they do not say
 * @throws CommandError for a stream that can only be had by a pipe, Deno.errors.NotFound and its like, SystemError
 */
export async function openFile(path: string, options: FileOptions = {}): Promise<OpenFile> {
  try {
    return await Deno.open(path, { ...options, read: options.read ?? !options.write });
  } catch (error) {
    if (!(error instanceof Deno.errors.NotCapable)) throw error;
  }
  const info = await Deno.stat(path).catch(() => null); // opening it says what is wrong
  if (info === null || info.isDirectory || kindOf(info) !== "stream") {
    return new DescriptorFile(path, options);
  }
  throw new CommandError(ExitCode.Failure, `${path} is neither a file nor a block device`, {
    hint: options.write
      ? `write it by way of a pipe: … - | dd of=${path}`
      : `read it by way of a pipe: dd if=${path} | … -`,
  });
}

/**
 * Opens a block device to write to it, if nobody else has it to himself.
 *
 * @param shown as it was named
 * @throws CommandError when it is in use, SystemError
 */
export function openDevice({ path }: FoundFile, shown: string): DescriptorFile {
  try {
    return new DescriptorFile(path, { write: true, isExclusive: true });
  } catch (error) {
    if (!(error instanceof SystemError && error.code === EBUSY)) throw error;
    throw new CommandError(ExitCode.Failure, `${shown} is in use`, {
      hint: "it is mounted, or part of an array or a volume group",
    });
  }
}

/**
 * Reads on from a stream.
 *
 * @param signal is asked for when something is read, and ends the wait for more
 * @returns reads into the bytes; 0 at the end
 */
export function readerOf(file: OpenFile, signal: () => AbortSignal) {
  return async (bytes: Uint8Array): Promise<number> =>
    await unlessAborted(file.read(bytes), signal()) ?? 0;
}

/** Writes all of the bytes. */
export async function writeAll(file: Pick<OpenFile, "write">, bytes: Uint8Array): Promise<void> {
  for (let at = 0; at < bytes.length;) at += await file.write(bytes.subarray(at));
}

/**
 * Writes on to a stream.
 *
 * @param signal ends the wait for whoever reads it
 * @returns writes all of the bytes
 */
export function writerOf(file: OpenFile, signal: AbortSignal) {
  return async (bytes: Uint8Array): Promise<void> => {
    for (let at = 0; at < bytes.length;) {
      at += await unlessAborted(file.write(bytes.subarray(at)), signal);
    }
  };
}

/** The work's result, or the signal's reason as soon as there is one. */
async function unlessAborted<T>(work: Promise<T>, signal: AbortSignal): Promise<T> {
  const { promise: aborted, reject } = Promise.withResolvers<never>();
  const abort = () => reject(signal.reason);
  signal.addEventListener("abort", abort);
  if (signal.aborted) abort();
  try {
    return await Promise.race([work, aborted]);
  } finally {
    signal.removeEventListener("abort", abort);
  }
}
