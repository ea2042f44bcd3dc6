/**
 * Raw images: files whose bytes are those of the disk. Holes are neither read nor written.
 *
 * @module
 */
import { BLOCK_BYTES } from "../agent/base/limits.ts";
import {
  check,
  closeFd,
  cString,
  libc,
  O_CLOEXEC,
  O_RDONLY,
} from "../agent/platform/linux/libc.ts";
import { syncFile } from "./durable.ts";

/** lseek(2): the next byte that is in no hole, and the next that is in one. */
const SEEK_DATA = 3, SEEK_HOLE = 4;

/** Zeros of this length are left out of a file: smaller holes only scatter it. */
const HOLE_BYTES_MIN = 16 * BLOCK_BYTES;

/** A run of bytes. */
export interface Extent {
  readonly offsetBytes: number;
  readonly lengthBytes: number;
}

/** A raw image to read. */
export class RawSource implements Disposable {
  readonly sizeBytes: number;
  readonly #file: Deno.FsFile;
  readonly #fd: number;

  /** @throws Deno.errors.NotFound and its like */
  constructor(path: string) {
    this.#file = Deno.openSync(path);
    // Block devices report no size in their status, but their end can be sought.
    this.sizeBytes = this.#file.seekSync(0, Deno.SeekMode.End);
    this.#fd = check(libc.open(cString(path), O_RDONLY | O_CLOEXEC, 0), `open ${path}`);
  }

  /** What is in no hole, whole blocks; all of it where holes cannot be told. */
  *extents(): Generator<Extent> {
    for (let at = 0; at < this.sizeBytes;) {
      const data = Number(libc.lseek(this.#fd, BigInt(at), SEEK_DATA));
      if (data < 0 && at > 0) return; // ENXIO: no data after this
      if (data < 0 && this.#isHole()) return;
      const start = data < 0 ? at : Math.floor(data / BLOCK_BYTES) * BLOCK_BYTES;
      const hole = data < 0 ? -1 : Number(libc.lseek(this.#fd, BigInt(data), SEEK_HOLE));
      const end = hole < 0 ? this.sizeBytes : Math.ceil(hole / BLOCK_BYTES) * BLOCK_BYTES;
      const endBytes = Math.min(Math.max(end, start + BLOCK_BYTES), this.sizeBytes);
      yield { offsetBytes: start, lengthBytes: endBytes - start };
      at = endBytes;
    }
  }

  /** Whether all of it is one hole, and not a file system or device that knows no holes. */
  #isHole(): boolean {
    return Number(libc.lseek(this.#fd, 0n, SEEK_HOLE)) === 0;
  }

  /**
   * Reads into all of `bytes` at an offset.
   *
   * @returns bytes read; fewer only at the end of the file
   */
  readAt(bytes: Uint8Array, offsetBytes: number): number {
    this.#file.seekSync(offsetBytes, Deno.SeekMode.Start);
    let filled = 0;
    while (filled < bytes.length) {
      const count = this.#file.readSync(bytes.subarray(filled));
      if (count === null || count === 0) break;
      filled += count;
    }
    return filled;
  }

  [Symbol.dispose](): void {
    this.#file.close();
    closeFd(this.#fd);
  }
}

/** A raw image to write, of a size that is known. */
export class RawTarget implements Disposable {
  readonly #file: Deno.FsFile;
  readonly #isSparse: boolean;

  /**
   * @param path made, or written over
   * @param options.isRegular it is an ordinary file, which may have holes; a device may not
   */
  constructor(
    path: string,
    options: { readonly sizeBytes: number; readonly isRegular: boolean },
  ) {
    this.#isSparse = options.isRegular;
    this.#file = Deno.openSync(path, { write: true, create: options.isRegular });
    if (!options.isRegular) return;
    this.#file.truncateSync(0);
    this.#file.truncateSync(options.sizeBytes);
  }

  /**
   * Writes bytes, leaving out long runs of zeros where those are holes.
   *
   * @param bytes 8-aligned in memory and a multiple of 512 long
   */
  writeAt(bytes: Uint8Array, offsetBytes: number): void {
    if (!this.#isSparse) return this.#write(bytes, offsetBytes);
    let start = -1; // of the data that is to be written
    for (let at = 0; at < bytes.length; at += HOLE_BYTES_MIN) {
      const piece = bytes.subarray(at, at + HOLE_BYTES_MIN);
      if (!isZero(piece)) {
        if (start < 0) start = at;
      } else if (start >= 0) {
        this.#write(bytes.subarray(start, at), offsetBytes + start);
        start = -1;
      }
    }
    if (start >= 0) this.#write(bytes.subarray(start), offsetBytes + start);
  }

  #write(bytes: Uint8Array, offsetBytes: number): void {
    this.#file.seekSync(offsetBytes, Deno.SeekMode.Start);
    for (let at = 0; at < bytes.length;) at += this.#file.writeSync(bytes.subarray(at));
  }

  /** Makes it durable, also on a device. */
  sync(): Promise<void> {
    return syncFile(this.#file);
  }

  [Symbol.dispose](): void {
    this.#file.close();
  }
}

/** @param bytes 8-aligned in memory and a multiple of 8 long */
function isZero(bytes: Uint8Array): boolean {
  const words = new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);
  for (let index = 0; index < words.length; index++) if (words[index] !== 0) return false;
  return true;
}
