/**
 * The one boundary between the protocol parts and the machine.
 *
 * Everything that the pure parts (store, volume, blk, vhost, …) need from outside comes through these
 * interfaces: memory, disk, time, chance. `platform/linux` implements them with FFI and io_uring,
 * `platform/simulated` with a seed. The pure parts name no `Deno.*`, no timer and no `Math.random`.
 *
 * Rules that every implementation keeps:
 *
 * 1. A completion is never delivered from inside the call that asked for it. It comes later, from the
 *    loop that owns the platform, so a caller may finish its own bookkeeping first.
 * 2. Each request completes exactly once, with a byte count ≥ 0 or a negative errno. Short reads and
 *    writes are resubmitted below this interface: a success is always complete.
 * 3. Nothing here allocates per I/O.
 *
 * @module
 */

export type * from "./network.ts";

/**
 * Compiled helpers that work inside one window without creating views. All offsets are byte offsets
 * into that window.
 */
export interface Kernel {
  /** XXH3-64 of `length` bytes at `offset`, folded to its low 32 bits, as an unsigned number. */
  checksum(offset: number, length: number): number;
  /** Copies `length` bytes and returns the checksum of what was copied. Ranges must not overlap. */
  copyAndChecksum(to: number, from: number, length: number): number;
  /** True when all `length` bytes (a multiple of 16) at `offset` are zero. */
  isZero(offset: number, length: number): boolean;
}

/**
 * A linear memory of up to `WINDOW_BYTES`. Its first `ARENA_BYTES` are the arena, the same bytes in
 * every window; what lies above is guest memory. The views stay valid for the life of the process:
 * guest memory that goes away is replaced by zero pages, never unmapped.
 */
export interface Window {
  /** Place of this window among its memory's windows. */
  readonly index: number;
  readonly bytes: Uint8Array<ArrayBuffer>;
  readonly u16: Uint16Array<ArrayBuffer>;
  readonly u32: Uint32Array<ArrayBuffer>;
  readonly kernel: Kernel;
}

/** Scatter list of arena ranges for one vectored write. Owned by the caller until the completion. */
export interface IoVector {
  /** Entries in use. */
  count: number;
  /** Arena byte offsets. */
  readonly offsets: Uint32Array<ArrayBuffer>;
  /** Lengths in bytes, each a multiple of `Disk.alignmentBytes`. */
  readonly lengths: Uint32Array<ArrayBuffer>;
}

/** Places in windows for one read. Owned by the caller, who may reuse it as soon as the call returns. */
export interface WindowVector {
  /** Entries in use, 1…256. */
  count: number;
  /** Indices of windows. */
  readonly windows: Uint16Array<ArrayBuffer>;
  /** Byte offsets in those, each a multiple of `Disk.alignmentBytes`. */
  readonly offsets: Uint32Array<ArrayBuffer>;
  /** Lengths in bytes, each a multiple of `Disk.alignmentBytes`. */
  readonly lengths: Uint32Array<ArrayBuffer>;
}

/** Receives the completions of a {@linkcode Disk}. */
export interface DiskListener {
  /**
   * @param token what the caller passed with the request
   * @param result bytes transferred (0 for sync, allocate, punch), or a negative errno
   */
  diskDone(token: number, result: number): void;
}

/**
 * A file or block device, addressed by byte offset. Buffers are arena ranges, but for scattered reads. What a completed write
 * wrote is only sure to survive a crash once a `sync` that was asked for after its completion has
 * completed.
 */
export interface Disk {
  /** Bytes that offsets, lengths and buffers are multiples of: 512 or 4096. */
  readonly alignmentBytes: number;
  /** Size of a block device in bytes; for a file, the size it may grow to (`Infinity` if unknown). */
  readonly sizeBytesMax: number;
  /** Reads `length` bytes at `offset` into the arena at `buffer`. Past the end reads as zeros. */
  read(token: number, offset: number, buffer: number, length: number): void;
  /**
   * Reads at `offset` into places of any windows, one after the other. They must stay mapped until it completes. At most 256
   * at a time. Past the end reads as zeros.
   */
  readScattered(token: number, offset: number, vector: WindowVector): void;
  /** Writes the ranges of `vector`, one after the other, at `offset`. */
  write(token: number, offset: number, vector: IoVector): void;
  /** fdatasync: makes all writes that completed before this call durable. */
  sync(token: number): void;
  /** Makes sure that writes to the range cannot fail for want of space (−ENOSPC otherwise). */
  allocate(token: number, offset: number, length: number): void;
  /** Gives the range's space back to the host; it reads as anything afterwards. */
  punch(token: number, offset: number, length: number): void;
}

/** Random numbers. Seeded in the simulator. */
export interface Random {
  /** An unsigned 32-bit number. */
  u32(): number;
  /** Fills `bytes` with random bytes fit for keys and identities. */
  fill(bytes: Uint8Array): void;
}

/** Logs for people; structured fields, no secrets. */
export interface Log {
  debug(message: string, fields?: Record<string, unknown>): void;
  info(message: string, fields?: Record<string, unknown>): void;
  warn(message: string, fields?: Record<string, unknown>): void;
  error(message: string, fields?: Record<string, unknown>): void;
}

/** errno values that the pure parts tell apart (Linux numbers). */
export const EIO = 5;
export const EAGAIN = 11;
export const ENOMEM = 12;
export const ENODEV = 19;
export const EINVAL = 22;
export const ENOSPC = 28;
/** Data exists but its checksum does not match: EBADMSG, as btrfs and ext4 use EUCLEAN/EBADMSG. */
export const EBADMSG = 74;
/** It was taken back before it had begun. */
export const ECANCELED = 125;
