/**
 * Files that are there after a loss of power, once a command has said so.
 *
 * @module
 */
import { dirname } from "node:path";
import { DescriptorFile } from "../agent/platform/linux/file.ts";
import { SystemError } from "../agent/platform/linux/libc.ts";
import { EINVAL } from "../agent/platform/platform.ts";

/**
 * Makes durable what was written to an open file, or to a directory that was opened. A pipe or a character device has nothing that
 * could be, and some file systems cannot do it for directories: neither is an error.
 *
 * @throws Error when it fails where it is possible
 */
export async function syncFile(file: { sync(): Promise<void> }): Promise<void> {
  try {
    await file.sync();
  } catch (error) {
    if (!isImpossible(error)) throw error;
  }
}

/** EINVAL, as fsync(2) has it for what cannot be synced. The runtime has no class for it. */
function isImpossible(error: unknown): boolean {
  if (error instanceof SystemError) return error.code === EINVAL;
  return error instanceof Deno.errors.NotSupported ||
    (error instanceof Error && /\(os error 22\)/.test(error.message));
}

/**
 * Gives a file another name in its directory, or in another one of its file system, for good. What it holds was made durable before.
 *
 * @throws Error when it cannot be renamed, or the directory cannot be synced; it has its new name then perhaps
 */
export async function renameDurably(from: string, to: string): Promise<void> {
  await Deno.rename(from, to);
  using directory = new DescriptorFile(dirname(to));
  await syncFile(directory);
}
