/**
 * Writes a long file to the disk while it grows, and takes what is there out of the page cache.
 *
 *     | on the disk, not in the page cache | windows on their way | written to the page cache |
 *     0                                                                                      end
 *
 * Left to itself the kernel collects some of its memory full first and writes then: a copy waits for the disk twice, once
 * where it has to be durable, and what others have in the page cache goes for a file that nobody reads soon. New
 * pages are also the dearest: those that come back from the windows before cost a fraction.
 *
 * Invariants: all of this is advice, and nothing relies on it: what fails is said by fsync(2) of whoever writes the file, whose
 * descriptor is another one, so that no error is told here in its place; what is not on its way yet is bounded only by the
 * writer, what is on its way by {@linkcode WINDOWS_MAX}.
 *
 * @module
 */
import { check, closeFd, cString, libc, O_CLOEXEC, O_RDONLY } from "./libc.ts";

/** Bytes that are written at once: long enough for any disk. */
export const WINDOW_BYTES = 8 * 1024 * 1024;

/** Windows on their way to the disk: each has a thread of the runtime's pool, of which there are 32. */
export const WINDOWS_MAX = 4;

/** sync_file_range(2): starts writing, and waits until all is written. */
const SYNC_FILE_RANGE_WRITE = 2, SYNC_FILE_RANGE_WAIT_AFTER = 4;

/** posix_fadvise(2): the pages are not needed any more. */
const POSIX_FADV_DONTNEED = 4;

/** A file that somebody else writes from front to back. */
export class WriteBehind implements AsyncDisposable {
  readonly #fd: number;
  readonly #windows: Promise<void>[] = [];
  #endBytes = 0;

  /**
   * @param path the file, which is there
   * @throws SystemError when it cannot be opened
   */
  constructor(path: string) {
    this.#fd = check(libc.open(cString(path), O_RDONLY | O_CLOEXEC, 0), `open ${path}`);
  }

  /**
   * Says how far the file is written. Resolves at once, or when there is room for another window on its way.
   *
   * @param endBytes everything before has been written; never less than the time before
   */
  async advance(endBytes: number): Promise<void> {
    while (endBytes - this.#endBytes >= WINDOW_BYTES) {
      if (this.#windows.length === WINDOWS_MAX) await this.#windows.shift();
      this.#windows.push(this.#write(this.#endBytes));
      this.#endBytes += WINDOW_BYTES;
    }
  }

  async #write(offsetBytes: number): Promise<void> {
    const [offset, length] = [BigInt(offsetBytes), BigInt(WINDOW_BYTES)];
    const how = SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER;
    await libc.syncFileRange(this.#fd, offset, length, how);
    await libc.fadvise(this.#fd, offset, length, POSIX_FADV_DONTNEED);
  }

  /** Waits for what is on its way. */
  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all(this.#windows);
    closeFd(this.#fd);
  }
}
