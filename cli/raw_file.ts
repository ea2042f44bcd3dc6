/**
 * Raw images: files whose bytes are those of the disk. Holes are neither read nor written.
 *
 * @module
 */
import { BLOCK_BYTES } from "../agent/base/limits.ts";
import { formatSize } from "../agent/config.ts";
import {
  check,
  closeFd,
  cString,
  libc,
  O_CLOEXEC,
  O_RDONLY,
  resultOf,
  sizeOf,
  SystemError,
} from "../agent/platform/linux/libc.ts";
import { syncFile } from "./durable.ts";
import { type FoundFile, openDevice, type OpenFile, openFile } from "./files.ts";
import { CommandError, ExitCode } from "./output.ts";

/** lseek(2): the next byte that is in no hole, and the next that is in one. */
const SEEK_DATA = 3, SEEK_HOLE = 4;

/** There is nothing more; and what those say who know no holes: EINVAL, ENOSYS, EOPNOTSUPP. */
const ENXIO = 6, UNKNOWING: readonly number[] = [22, 38, 95];

/** Zeros of this length are left out of a file: smaller holes only scatter it. */
const HOLE_BYTES_MIN = 16 * BLOCK_BYTES;

/** A run of bytes. */
export interface Extent {
  readonly offsetBytes: number;
  readonly lengthBytes: number;
}

/** A raw image to read: a file or a block device. */
export class RawSource implements Disposable {
  readonly sizeBytes: number;
  readonly #path: string;
  readonly #fd: number;

  /** @throws SystemError */
  constructor(path: string) {
    this.#path = path;
    this.#fd = check(libc.open(cString(path), O_RDONLY | O_CLOEXEC, 0), `open ${path}`);
    this.sizeBytes = sizeOf(this.#fd, path);
  }

  /** What is in no hole, whole blocks; all of it where holes cannot be told. */
  *extents(): Generator<Extent> {
    for (let at = 0; at < this.sizeBytes;) {
      const data = this.#seek(at, SEEK_DATA);
      if (data === -ENXIO) return; // no data after this
      const start = data < 0 ? at : Math.floor(data / BLOCK_BYTES) * BLOCK_BYTES;
      const hole = data < 0 ? -1 : this.#seek(data, SEEK_HOLE);
      const end = hole < 0 ? this.sizeBytes : Math.ceil(hole / BLOCK_BYTES) * BLOCK_BYTES;
      const endBytes = Math.min(Math.max(end, start + BLOCK_BYTES), this.sizeBytes);
      yield { offsetBytes: start, lengthBytes: endBytes - start };
      at = endBytes;
    }
  }

  /** Where that is; negative: ENXIO, or an error of those who know no holes. Any other one is no place without data. */
  #seek(offsetBytes: number, whence: number): number {
    const offset = BigInt(offsetBytes);
    const place = resultOf(() => Number(libc.lseek(this.#fd, offset, whence)), [
      ENXIO,
      ...UNKNOWING,
    ]);
    if (place >= 0 || place === -ENXIO || UNKNOWING.includes(-place)) return place;
    throw new SystemError(`lseek ${this.#path}`, -place);
  }

  /**
   * Makes sure that a file that was read to its end is what it was when it was opened: what is not there reads as a hole.
   *
   * @throws CommandError
   */
  check(): void {
    const sizeBytes = sizeOf(this.#fd, this.#path);
    if (sizeBytes === this.sizeBytes) return;
    throw new CommandError(
      ExitCode.Failure,
      `${this.#path} had ${this.sizeBytes} bytes, and ends at byte ${sizeBytes} now: somebody writes to it`,
      { hint: "try again when it is complete" },
    );
  }

  /**
   * Reads into all of `bytes` at an offset.
   *
   * @returns bytes read; fewer only at the end of the file
   */
  readAt(bytes: Uint8Array, offsetBytes: number): number {
    let filled = 0;
    while (filled < bytes.length) {
      const rest = bytes.subarray(filled) as Uint8Array<ArrayBuffer>;
      const [length, at] = [BigInt(rest.length), BigInt(offsetBytes + filled)];
      const count = check(libc.pread(this.#fd, rest, length, at), `read ${this.#path}`);
      if (count === 0) break;
      filled += count;
    }
    return filled;
  }

  [Symbol.dispose](): void {
    closeFd(this.#fd);
  }
}

/** Where a raw image of a size that is known shall go. */
export interface RawTargetOptions {
  /** A file is made, or written over; a block device has to be large enough. */
  readonly file: FoundFile;
  /** The file as it was named. */
  readonly shown: string;
  readonly sizeBytes: number;
}

/** A raw image to write: a file, or the beginning of a block device, which has no holes. */
export class RawTarget implements Disposable {
  readonly #file: OpenFile;
  readonly #isSparse: boolean;

  private constructor(file: OpenFile, isSparse: boolean) {
    this.#file = file;
    this.#isSparse = isSparse;
  }

  /**
   * Opens it. Nothing on a block device is changed by that.
   *
   * @throws CommandError for a block device that is too small or in use, and what the system says
   */
  static async open({ file, shown, sizeBytes }: RawTargetOptions): Promise<RawTarget> {
    if (file.kind === "device") {
      const device = openDevice(file, shown);
      const roomBytes = device.sizeBytes;
      if (roomBytes >= sizeBytes) return new RawTarget(device, false);
      device[Symbol.dispose]();
      throw new CommandError(
        ExitCode.Failure,
        `${shown} is too small: it has ${formatSize(roomBytes)} (${roomBytes} bytes), and ` +
          `${formatSize(sizeBytes)} (${sizeBytes} bytes) shall go there`,
      );
    }
    const target = await openFile(file.path, { write: true, create: true, truncate: true });
    target.truncateSync(sizeBytes);
    return new RawTarget(target, true);
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
    this.#file[Symbol.dispose]();
  }
}

/** @param bytes 8-aligned in memory and a multiple of 8 long */
function isZero(bytes: Uint8Array): boolean {
  const words = new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);
  for (let index = 0; index < words.length; index++) if (words[index] !== 0) return false;
  return true;
}
