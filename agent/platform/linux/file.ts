/**
 * Files, directories and block devices, opened by the C library.
 *
 * The runtime opens nothing below /dev but pipes and the likes of /dev/null with the permissions that the program has: no
 * block device, and no file in /dev/shm. It opens those only for a program that may do everything, which this one should not.
 *
 * Each call blocks until it is done, as is right for what has positions, and wrong for what may keep one waiting: pipes and
 * terminals are not for this.
 *
 * @module
 */
import {
  closeFd,
  cString,
  describeErrno,
  errno,
  libc,
  O_CLOEXEC,
  O_CREAT,
  O_EXCL,
  O_RDONLY,
  O_RDWR,
  O_TRUNC,
  O_WRONLY,
  resultOf,
  sizeOf,
  SystemError,
} from "./libc.ts";

/** How a file is opened. */
export interface FileOptions extends Deno.OpenOptions {
  /** A block device that is in use (mounted, part of an array) is refused. */
  readonly isExclusive?: boolean;
}

/** What the runtime gives a new file where nobody says; the process's mask takes away from it. */
const MODE_USUAL = 0o666;

const ENOENT = 2, EEXIST = 17;

/** An open file; the calls are those of the runtime's own files. */
export class DescriptorFile implements Disposable {
  readonly #path: string;
  readonly #fd: number;

  /**
   * @param options for reading, if they do not say
   * @throws SystemError; where the file is not there, or is there and must not be, the runtime's own errors
   */
  constructor(path: string, options: FileOptions = {}) {
    this.#path = path;
    const name = cString(path), flags = flagsOf(options), mode = options.mode ?? MODE_USUAL;
    this.#fd = resultOf(() => libc.open(name, flags, mode), [ENOENT, EEXIST]);
    if (this.#fd >= 0) return;
    const code = -this.#fd;
    const call = `open ${path}`;
    if (code === ENOENT) throw new Deno.errors.NotFound(`${call}: ${describeErrno(code)}`);
    if (code === EEXIST) throw new Deno.errors.AlreadyExists(`${call}: ${describeErrno(code)}`);
    throw new SystemError(call, code);
  }

  /** Bytes of the file, or of the block device, whose status has no size. The position is at its end then. */
  get sizeBytes(): number {
    return sizeOf(this.#fd, this.#path);
  }

  /** Goes to a position, which is given back. */
  seekSync(offsetBytes: number, whence: Deno.SeekMode): number {
    const position = Number(libc.lseek(this.#fd, BigInt(offsetBytes), whence));
    if (position < 0) this.#fail("lseek");
    return position;
  }

  /** Reads on; null at the end. */
  readSync(bytes: Uint8Array): number | null {
    const count = libc.read(this.#fd, bytes as Uint8Array<ArrayBuffer>, BigInt(bytes.length));
    if (count < 0) this.#fail("read");
    return count === 0 && bytes.length > 0 ? null : count;
  }

  /** {@linkcode readSync}. */
  read(bytes: Uint8Array): Promise<number | null> {
    return promiseOf(() => this.readSync(bytes));
  }

  /** Writes on, not always all of it. */
  writeSync(bytes: Uint8Array): number {
    const count = libc.write(this.#fd, bytes as Uint8Array<ArrayBuffer>, BigInt(bytes.length));
    if (count < 0) this.#fail("write");
    return count;
  }

  /** {@linkcode writeSync}. */
  write(bytes: Uint8Array): Promise<number> {
    return promiseOf(() => this.writeSync(bytes));
  }

  /** Makes the file as long as that. */
  truncateSync(lengthBytes: number): void {
    if (libc.ftruncate(this.#fd, BigInt(lengthBytes)) < 0) this.#fail("ftruncate");
  }

  /** Makes durable what was written. */
  sync(): Promise<void> {
    return promiseOf(() => {
      if (libc.fsync(this.#fd) < 0) this.#fail("fsync");
    });
  }

  /** Must be the next thing after the call, whose errno it takes. */
  #fail(call: string): never {
    const code = errno();
    throw new SystemError(`${call} ${this.#path}`, code);
  }

  [Symbol.dispose](): void {
    closeFd(this.#fd);
  }
}

function flagsOf(options: FileOptions): number {
  const { read, write, create, createNew, truncate, isExclusive } = options;
  const access = !write ? O_RDONLY : read ? O_RDWR : O_WRONLY;
  const creation = createNew ? O_CREAT | O_EXCL : create ? O_CREAT : 0;
  return access | creation | (truncate ? O_TRUNC : 0) | (isExclusive ? O_EXCL : 0) | O_CLOEXEC;
}

/** An error belongs to the promise. */
function promiseOf<T>(call: () => T): Promise<T> {
  return new Promise((resolve) => resolve(call()));
}

/** Bytes of a text that are read at once. */
const TEXT_PIECE_BYTES = 64 * 1024;

/**
 * The text in a file. A pipe will do as well: it is waited for until it has ended.
 *
 * @throws what opening and reading do
 */
export function readText(path: string): string {
  using file = new DescriptorFile(path);
  const decoder = new TextDecoder();
  const bytes = new Uint8Array(TEXT_PIECE_BYTES);
  let text = "";
  for (let count; (count = file.readSync(bytes)) !== null;) {
    text += decoder.decode(bytes.subarray(0, count), { stream: true });
  }
  return text + decoder.decode();
}
