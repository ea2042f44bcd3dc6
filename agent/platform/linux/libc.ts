/**
 * The C library calls that the agent uses, each parameter with its C type beside it.
 *
 * Two rules keep this fast and right. A 64-bit parameter given as a Number costs half a microsecond, so hot
 * calls take only 32-bit values, pointers and buffers; cold ones take BigInt. And errno is only
 * valid on the very next line after an i32 result, with nothing allocated in between: use
 * {@linkcode check} or {@linkcode errno} at once. Even there it may once in a long while be that of a
 * call of the runtime's own, which compiles and collects when it likes: where more than the words of
 * a message depend on it, see {@linkcode resultOf}.
 *
 * @module
 */

const symbols = {
  // long syscall(long number, …): io_uring has no wrappers in glibc.
  ioUringSetup: {
    name: "syscall",
    parameters: ["i32", "u32", /* entries */ "buffer" /* struct io_uring_params* */],
    result: "i32",
  },
  ioUringEnter: {
    name: "syscall",
    // The seventh argument travels on the stack, where a u32 would leave rubbish above it: usize.
    parameters: [
      "i32",
      "i32", /* fd */
      "u32", /* to_submit */
      "u32", /* min_complete */
      "u32", /* flags */
      "pointer", /* struct io_uring_getevents_arg* */
      "usize", /* its size */
    ],
    result: "i32",
  },
  mmap: {
    parameters: [
      "usize", /* void* addr */
      "usize", /* size_t length */
      "i32", /* prot */
      "i32", /* flags */
      "i32", /* fd */
      "i64", /* off_t offset */
    ],
    result: "usize",
  },
  close: { parameters: ["i32"], result: "i32" },
  open: {
    parameters: ["buffer", /* const char* */ "i32", /* flags */ "u32" /* mode */],
    result: "i32",
  },
  read: { parameters: ["i32", "buffer", "usize"], result: "i32" },
  // ssize_t pread(int, void*, size_t, off_t): of at most 2 GiB, which an i32 takes.
  pread: { parameters: ["i32", "buffer", "usize", "i64"], result: "i32" },
  write: { parameters: ["i32", "buffer", "usize"], result: "i32" },
  // ssize_t readlink(const char*, char*, size_t)
  readlink: { parameters: ["buffer", "buffer", "usize"], result: "isize" },
  // ssize_t write(int, const void*, size_t): the pointer is made once, see `writeEventFd`.
  writePointer: { name: "write", parameters: ["i32", "pointer", "usize"], result: "i32" },
  // ssize_t writev(int, const struct iovec*, int): appends at the descriptor's own position, so that no 64-bit
  // offset is passed per write.
  writev: { parameters: ["i32", "pointer", "i32"], result: "i32" },
  lseek: { parameters: ["i32", "i64", "i32"], result: "i64" },
  ftruncate: { parameters: ["i32", "i64"], result: "i32" },
  fsync: { parameters: ["i32"], result: "i32" },
  fallocate: { parameters: ["i32", "i32", "i64", "i64"], result: "i32" },
  // int sync_file_range(int fd, off64_t offset, off64_t nbytes, unsigned int flags)
  syncFileRange: {
    name: "sync_file_range",
    parameters: ["i32", "i64", "i64", "u32"],
    result: "i32",
    nonblocking: true,
  },
  // int posix_fadvise(int fd, off_t offset, off_t len, int advice): getting rid of pages takes a while.
  fadvise: {
    name: "posix_fadvise",
    parameters: ["i32", "i64", "i64", "i32"],
    result: "i32",
    nonblocking: true,
  },
  flock: { parameters: ["i32", "i32"], result: "i32" },
  fcntl: { parameters: ["i32", "i32", "i32"], result: "i32" },
  ioctl: { parameters: ["i32", "usize", "buffer"], result: "i32" },
  fstatfs: { parameters: ["i32", "buffer"], result: "i32" },
  memfd_create: { parameters: ["buffer", "u32"], result: "i32" },
  eventfd: { parameters: ["u32", "i32"], result: "i32" },
  socket: { parameters: ["i32", "i32", "i32"], result: "i32" },
  bind: { parameters: ["i32", "buffer", "u32"], result: "i32" },
  listen: { parameters: ["i32", "i32"], result: "i32" },
  connect: { parameters: ["i32", "buffer", "u32"], result: "i32" },
  accept4: { parameters: ["i32", "pointer", "pointer", "i32"], result: "i32" },
  sendmsg: { parameters: ["i32", "buffer", /* struct msghdr* */ "i32"], result: "i32" },
  recvmsg: { parameters: ["i32", "buffer", /* struct msghdr* */ "i32"], result: "i32" },
  shutdown: { parameters: ["i32", "i32"], result: "i32" },
  getsockopt: { parameters: ["i32", "i32", "i32", "buffer", "buffer"], result: "i32" },
  send: { parameters: ["i32", "buffer", "usize", "i32"], result: "isize" },
  setsockopt: { parameters: ["i32", "i32", "i32", "buffer", "u32"], result: "i32" },
  getsockname: { parameters: ["i32", "buffer", "buffer"], result: "i32" },
  poll: { parameters: ["buffer", /* struct pollfd* */ "usize", "i32"], result: "i32" },
  schedYield: { name: "sched_yield", parameters: [], result: "i32" },
  clockGettime: {
    name: "clock_gettime",
    parameters: ["i32", /* struct timespec* */ "buffer"],
    result: "i32",
  },
  errnoLocation: { name: "__errno_location", parameters: [], result: "pointer" },
} as const;

const library = Deno.dlopen("libc.so.6", symbols);

/** The calls themselves. Prefer the wrappers of this folder. */
export const libc = library.symbols;

const errnoView = new Int32Array(
  Deno.UnsafePointerView.getArrayBuffer(libc.errnoLocation()!, 4) as ArrayBuffer,
);

/** errno of this thread. Valid only on the line after a failed call; see the head of the file. */
export function errno(): number {
  return errnoView[0];
}
// A function is compiled when it is called first: not between a call and the look at its errno.
errno();

/** How often a call is made that fails with an errno which is hardly its own. */
const TRIES_MAX = 3;

/**
 * The result of a call that goes on after some errors. One of another kind is not believed at once: the call is made again, since
 * the runtime may have left it behind (`recvmsg` has been seen to fail with ENOENT). For calls that have no effect when they fail.
 *
 * @param call returns something negative when it has failed, and makes no other call behind
 * @param expected errors that are believed
 * @returns what `call` returned, or the negative errno
 */
export function resultOf(call: () => number, expected: readonly number[]): number {
  let code = 0;
  for (let tries = 0; tries < TRIES_MAX; tries++) {
    const result = call();
    if (result >= 0) return result;
    code = errnoView[0];
    if (expected.includes(code)) break;
  }
  return -code;
}

/** Goes on while the machine is suspended: a right to serve ends all the same. */
const CLOCK_BOOTTIME = 7;
const timespec = new BigInt64Array(2);
const timespecWords = new Uint32Array(timespec.buffer);
const timespecBytes = new Uint8Array(timespec.buffer);

/** Milliseconds of a clock that never goes back and is the same on all threads, other than the runtime's own. */
export function clockMs(): number {
  libc.clockGettime(CLOCK_BOOTTIME, timespecBytes);
  const seconds = timespecWords[0] + timespecWords[1] * 2 ** 32;
  return seconds * 1000 + timespecWords[2] / 1e6;
}

const isArm = Deno.build.arch === "aarch64";

/** open(2) flags. */
export const O_RDONLY = 0, O_WRONLY = 1, O_RDWR = 2, O_CREAT = 0o100, O_EXCL = 0o200;
export const O_TRUNC = 0o1000, O_CLOEXEC = 0o2000000;
/** O_DIRECT and O_NOFOLLOW have other values on ARM. */
export const O_DIRECT = isArm ? 0o200000 : 0o40000;

/** mmap(2) protections and flags. */
export const PROT_READ = 1, PROT_WRITE = 2;
export const MAP_SHARED = 1, MAP_PRIVATE = 2, MAP_FIXED = 0x10, MAP_ANONYMOUS = 0x20;
export const MAP_POPULATE = 0x8000, MAP_NORESERVE = 0x4000;

const NAMES: Record<number, string> = {
  1: "EPERM (operation not permitted)",
  2: "ENOENT (no such file or directory)",
  4: "EINTR (interrupted)",
  5: "EIO (input/output error)",
  6: "ENXIO (no such device or address)",
  9: "EBADF (bad file descriptor)",
  11: "EAGAIN (resource temporarily unavailable)",
  12: "ENOMEM (cannot allocate memory)",
  13: "EACCES (permission denied)",
  16: "EBUSY (device or resource busy)",
  17: "EEXIST (file exists)",
  19: "ENODEV (no such device)",
  20: "ENOTDIR (not a directory)",
  21: "EISDIR (is a directory)",
  22: "EINVAL (invalid argument)",
  23: "ENFILE (too many open files in system)",
  24: "EMFILE (too many open files)",
  27: "EFBIG (file too large)",
  28: "ENOSPC (no space left on device)",
  30: "EROFS (read-only file system)",
  32: "EPIPE (broken pipe)",
  38: "ENOSYS (function not implemented)",
  74: "EBADMSG (checksum does not match)",
  95: "EOPNOTSUPP (operation not supported)",
  98: "EADDRINUSE (address already in use)",
  101: "ENETUNREACH (network is unreachable)",
  103: "ECONNABORTED (connection aborted)",
  104: "ECONNRESET (connection reset by peer)",
  110: "ETIMEDOUT (connection timed out)",
  111: "ECONNREFUSED (connection refused)",
  113: "EHOSTUNREACH (no route to host)",
  125: "ECANCELED (cancelled)",
};

/** errno as text for people: name and meaning, or its number. */
export function describeErrno(number: number): string {
  return NAMES[Math.abs(number)] ?? `errno ${Math.abs(number)}`;
}

/** A failed system call. */
export class SystemError extends Error {
  override readonly name = "SystemError";
  /**
   * @param call what failed, with its object: `open /var/lib/kelpie/kelpie.store`
   * @param code positive errno
   */
  constructor(readonly call: string, readonly code: number) {
    super(`${call}: ${describeErrno(code)}`);
  }
}

/**
 * Returns `result`, or throws when it is negative. `result` must be the call itself, so that errno is
 * still its own.
 */
export function check(result: number, call: string): number {
  if (result < 0) {
    const code = errnoView[0];
    throw new SystemError(call, code);
  }
  return result;
}

/** A NUL-terminated C string. */
export function cString(text: string): Uint8Array<ArrayBuffer> {
  return new TextEncoder().encode(text + "\0");
}

/** Host address of a view's first byte. Views of mapped or WebAssembly memory never move. */
export function addressOf(view: Uint8Array<ArrayBuffer>): number {
  return Number(Deno.UnsafePointer.value(Deno.UnsafePointer.of(view)!));
}

/** A pointer to a host address. */
export function pointerTo(address: number): Deno.PointerObject {
  return Deno.UnsafePointer.create(BigInt(address))!;
}

/** Maps memory and returns its address. Throws {@linkcode SystemError}. */
export function mapMemory(
  options: {
    address?: number;
    lengthBytes: number;
    protection?: number;
    flags: number;
    fd?: number;
    offset?: number;
  },
): number {
  const result = libc.mmap(
    BigInt(options.address ?? 0),
    BigInt(options.lengthBytes),
    options.protection ?? (PROT_READ | PROT_WRITE),
    options.flags,
    options.fd ?? -1,
    BigInt(options.offset ?? 0),
  );
  if (result === 0xffff_ffff_ffff_ffffn) {
    throw new SystemError(`mmap of ${options.lengthBytes} bytes`, errnoView[0]);
  }
  return Number(result);
}

/** A view of mapped memory. */
export function viewOf(address: number, lengthBytes: number): Uint8Array<ArrayBuffer> {
  return new Uint8Array(
    Deno.UnsafePointerView.getArrayBuffer(pointerTo(address), lengthBytes) as ArrayBuffer,
  );
}

const oneView = new Uint8Array(new BigUint64Array([1n]).buffer);
const onePointer = Deno.UnsafePointer.of(oneView)!;
const EIGHT = 8n;

/**
 * Adds one to an eventfd with a direct write(2): an io_uring write would cost about 100 µs of CPU.
 * Failure is ignored: a full counter already wakes the reader, and a closed peer is noticed elsewhere.
 */
export function signalEventFd(fd: number): void {
  libc.writePointer(fd, onePointer, EIGHT);
}

/** Makes an eventfd (EFD_CLOEXEC | EFD_NONBLOCK). */
export function createEventFd(): number {
  return check(libc.eventfd(0, 0o2000000 | 0o4000), "eventfd");
}

/** Closes a descriptor; a failed close is not actionable and is ignored. */
export function closeFd(fd: number): void {
  libc.close(fd);
}

/** Size of a file, memfd or block device in bytes. */
export function sizeOf(fd: number, what: string): number {
  const end = Number(libc.lseek(fd, 0n, 2));
  if (end < 0) throw new SystemError(`lseek ${what}`, errnoView[0]);
  return end;
}
