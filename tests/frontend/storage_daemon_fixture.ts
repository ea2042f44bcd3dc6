/**
 * A raw file of 64 MiB served by `qemu-storage-daemon`, for one test.
 *
 * @module
 */
import { StorageDaemon } from "../guest/storage_daemon.ts";

/** Size of the file. */
export const DISK_BYTES = 64 * 1024 * 1024;

/** What a test gets. */
export interface ServedFile {
  readonly file: string;
  readonly socket: string;
  readonly daemon: StorageDaemon;
}

/** Runs a test beside a fresh daemon. */
export async function withStorageDaemon(
  test: (served: ServedFile) => Promise<void>,
): Promise<void> {
  const directory = await Deno.makeTempDir();
  try {
    const [file, socket] = [`${directory}/raw`, `${directory}/s`];
    await Deno.writeFile(file, new Uint8Array(0));
    await Deno.truncate(file, DISK_BYTES);
    await using daemon = await StorageDaemon.start({ file, socket, queues: 2 });
    await test({ file, socket, daemon });
  } finally {
    await Deno.remove(directory, { recursive: true });
  }
}

/** Writes bytes into the file behind the daemon's back. */
export function patch(file: string, offsetBytes: number, bytes: Uint8Array): void {
  using handle = Deno.openSync(file, { write: true });
  handle.seekSync(offsetBytes, Deno.SeekMode.Start);
  if (handle.writeSync(bytes) !== bytes.length) throw new Error(`short write to ${file}`);
}

/** Reads bytes of the file behind the daemon's back. */
export function peek(file: string, offsetBytes: number, lengthBytes: number): Uint8Array {
  using handle = Deno.openSync(file, { read: true });
  handle.seekSync(offsetBytes, Deno.SeekMode.Start);
  const bytes = new Uint8Array(lengthBytes);
  for (let at = 0; at < lengthBytes;) at += handle.readSync(bytes.subarray(at)) ?? lengthBytes;
  return bytes;
}
