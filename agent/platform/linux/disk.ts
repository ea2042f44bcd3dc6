/**
 * The store's file or block device over io_uring.
 *
 * Invariants:
 * - Every request completes once, through {@linkcode LinuxDisk.deliver} or the ring, never inside the call.
 * - A success is complete: short transfers are resubmitted, a read past the end gives zeros.
 * - One sync at a time, in the order in which they were asked for. Of two that run beside each other the kernel tells only one that
 *   data could not be written, and the other one's success may be told first.
 *
 * Two ways of writing. In direct mode (O_DIRECT) every write goes through the ring. In buffered mode a
 * write of up to {@linkcode INLINE_WRITE_BYTES_MAX} is a plain writev(2) into the page cache: the ring would
 * hand it to a kernel worker thread, since ext4 and others refuse non-blocking buffered writes, and that costs ten times the
 * copy. writev appends at the descriptor's position, so that a log needs no 64-bit offset per write.
 * Larger writes do go to a kernel worker, where the copy runs beside us.
 *
 * @module
 */
import { TRANSFER_BLOCKS_MAX, WINDOW_BYTES } from "../../base/limits.ts";
import type { Disk, DiskListener, IoVector, WindowVector } from "../platform.ts";
import { EIO } from "../platform.ts";
import {
  check,
  closeFd,
  cString,
  errno,
  libc,
  O_CLOEXEC,
  O_CREAT,
  O_DIRECT,
  O_EXCL,
  O_RDONLY,
  O_RDWR,
  sizeOf,
  SystemError,
} from "./libc.ts";
import type { LinuxMemory } from "./memory.ts";
import {
  IORING_FSYNC_DATASYNC,
  IORING_OP_FALLOCATE,
  IORING_OP_FSYNC,
  IORING_OP_READ,
  IORING_OP_READV,
  IORING_OP_WRITEV,
  type Ring,
  type RingHandler,
} from "./ring.ts";
import { ScatterLists } from "./scatter.ts";

/**
 * Longest buffered write done on this thread, in bytes: 256 KiB of data, whose copy takes some 40 µs, and the headers that
 * a log may write in front of it.
 */
export const INLINE_WRITE_BYTES_MAX = (256 + 20) * 1024;
/** Entries of one write's scatter list: the kernel's IOV_MAX. */
const WRITE_ENTRIES_MAX = 1024;
/** Scattered writes that can be with the kernel at once: the log's batches in flight, checkpoint and cleaner included. */
const WRITE_LISTS = 64;
/** Entries of one read's scatter list: the blocks of the longest transfer. */
const READ_ENTRIES_MAX = TRANSFER_BLOCKS_MAX;
/** Scattered reads that can be with the kernel at once: the store's bound on its reads. */
const READ_LISTS = 256;
const FALLOC_FL_KEEP_SIZE = 1, FALLOC_FL_PUNCH_HOLE = 2;
const EINTR = 4, EAGAIN = 11, EOPNOTSUPP = 95, EWOULDBLOCK = 11, EBUSY = 16, EEXIST = 17, ENXIO = 6;
const LOCK_EX_NB = 2 | 4;
/** ioctl that only block devices answer: their size in bytes. */
const BLKGETSIZE64 = 0x80081272n;
const TWO32 = 0x1_0000_0000;
const SEEK_SET = 0, SEEK_DATA = 3;
/** Bytes that are read at once to see whether they are zeros. */
const BLANK_READ_BYTES = 1024 * 1024;

/**
 * Bytes at the beginning of a block device that have to be zeros for a store to be made there. All of a device cannot be asked for:
 * wiping it would take hours. What says that a device is in use lies at its beginning, a store's superblocks in its first MiB; the
 * rest is its first segments, which are given back last, so that a store whose superblocks are lost is not taken for nothing.
 */
export const BLANK_DEVICE_BYTES = 64 * 1024 * 1024;

const enum SlotKind {
  Read,
  ReadScattered,
  Write,
  Sync,
  Allocate,
  Punch,
}

/** How the file is opened. */
export interface OpenOptions {
  path: string;
  /** Bypass the page cache. */
  direct: boolean;
  /** Make the file (owner-only) when it is not there. */
  create: boolean;
}

/** An opened and locked store file. */
export interface StoreFile {
  readonly fd: number;
  readonly isBlockDevice: boolean;
  /** Bytes of the block device, or of the file now. */
  readonly sizeBytes: number;
}

/**
 * Opens and locks the store's file or block device. Two agents can never hold the same one.
 * Throws {@linkcode SystemError}, with a message that says what to do.
 */
export function openStoreFile(options: OpenOptions): StoreFile {
  const flags = O_RDWR | O_CLOEXEC | (options.direct ? O_DIRECT : 0);
  let fd = libc.open(cString(options.path), flags | (options.create ? O_CREAT : 0), 0o600);
  const isBlockDevice = fd >= 0 && libc.ioctl(fd, BLKGETSIZE64, new Uint8Array(8)) === 0;
  if (isBlockDevice) {
    // Exclusive: refused while the device is mounted or part of an array. The runtime's own stat would need more
    // permissions than the program has, hence the ioctl.
    closeFd(fd);
    fd = libc.open(cString(options.path), flags | O_EXCL, 0);
  }
  if (fd < 0) {
    const code = errno();
    const hint = code === EBUSY || code === EEXIST
      ? " (the device is mounted or in use by another program)"
      : code === 22 && options.direct
      ? " (this file system does not support direct I/O: use --cache buffered)"
      : "";
    throw new SystemError(`open ${options.path}${hint}`, code);
  }
  if (libc.flock(fd, LOCK_EX_NB) < 0) {
    const code = errno();
    closeFd(fd);
    throw new SystemError(
      code === EWOULDBLOCK
        ? `lock ${options.path} (another kelpie agent is using it; stop that one, or give this one another --data)`
        : `lock ${options.path}`,
      code,
    );
  }
  return { fd, isBlockDevice, sizeBytes: sizeOf(fd, options.path) };
}

/**
 * True when nobody's data is at a path, so that a store may be made there. Throws {@linkcode SystemError}.
 *
 * A file has to be zeros from its beginning to its end: empty, or of any length without anything in it. That is what an interrupted
 * creation leaves, and what `truncate`, `fallocate` and `dd if=/dev/zero` prepare. Holes are skipped, not read. Of a block device
 * the first {@linkcode BLANK_DEVICE_BYTES} have to be zeros.
 */
export function isBlank(path: string): boolean {
  const fd = check(libc.open(cString(path), O_RDONLY | O_CLOEXEC, 0), `open ${path}`);
  try {
    const isBlockDevice = libc.ioctl(fd, BLKGETSIZE64, new Uint8Array(8)) === 0;
    const endBytes = isBlockDevice ? BLANK_DEVICE_BYTES : Infinity;
    const words = new Uint32Array(BLANK_READ_BYTES / 4);
    const bytes = new Uint8Array(words.buffer);
    for (let at = 0; (at = seekData(fd, at, path)) < endBytes;) {
      const count = check(libc.read(fd, bytes, BigInt(BLANK_READ_BYTES)), `read ${path}`);
      if (count === 0) return true;
      bytes.fill(0, count);
      if (words.some((word) => word !== 0)) return false;
      at += count;
    }
    return true;
  } finally {
    closeFd(fd);
  }
}

/**
 * Goes to the first byte from `offset` on that does not lie in a hole; where nobody knows of holes, to `offset`.
 *
 * @returns where that is; Infinity: there is none
 */
function seekData(fd: number, offset: number, path: string): number {
  const found = Number(libc.lseek(fd, BigInt(offset), SEEK_DATA));
  if (found >= 0) return found;
  if (errno() === ENXIO) return Infinity;
  return check(Number(libc.lseek(fd, BigInt(offset), SEEK_SET)), `lseek ${path}`);
}

/** Bytes that unprivileged users may still write to the file system of an open file. */
export function availableBytes(fd: number): number {
  const statfs = new Uint8Array(256);
  check(libc.fstatfs(fd, statfs), "fstatfs");
  const words = new Uint32Array(statfs.buffer);
  return (words[8] + words[9] * TWO32) * words[2];
}

/** A {@linkcode Disk} over a ring. */
export class LinuxDisk implements Disk, RingHandler {
  readonly alignmentBytes = 4096;
  readonly sizeBytesMax: number;
  /** Set once before the first request. */
  listener: DiskListener = { diskDone() {} };

  readonly #ring: Ring;
  readonly #kind: number;
  readonly #fd: number;
  readonly #direct: boolean;
  readonly #isBlockDevice: boolean;
  readonly #memory: LinuxMemory;
  readonly #arenaAddress: number;
  /** Where the descriptor's own position is, in bytes; −1 when not known. */
  #position = -1;

  // One slot per request under way, in parallel arrays that grow together.
  #kinds = new Uint8Array(256);
  #tokens = new Uint32Array(256);
  #offsets = new Float64Array(256);
  /** Read: host address of the buffer. Scattered read, write: number of the scatter list. */
  #buffers = new Float64Array(256);
  #lengths = new Uint32Array(256);
  #done = new Uint32Array(256);
  #freeSlots: number[] = [];
  #slots = 0;

  readonly #readLists = new ScatterLists(READ_LISTS, READ_ENTRIES_MAX);
  readonly #writeLists = new ScatterLists(WRITE_LISTS, WRITE_ENTRIES_MAX);

  // Finished without the ring; delivered by `deliver`.
  #readyTokens = new Uint32Array(64);
  #readyResults = new Int32Array(64);
  #readyCount = 0;

  /** Slots of syncs; the first one is with the kernel. */
  readonly #syncs: number[] = [];
  /** Requests under way. */
  inFlight = 0;

  constructor(
    options: {
      ring: Ring;
      file: StoreFile;
      direct: boolean;
      memory: LinuxMemory;
    },
  ) {
    this.#ring = options.ring;
    this.#kind = options.ring.register(this);
    this.#fd = options.file.fd;
    this.#direct = options.direct;
    this.#isBlockDevice = options.file.isBlockDevice;
    this.sizeBytesMax = options.file.isBlockDevice ? options.file.sizeBytes : Infinity;
    this.#memory = options.memory;
    this.#arenaAddress = options.memory.arenaAddress;
  }

  /** {@inheritDoc Disk.read} */
  read(token: number, offset: number, buffer: number, length: number): void {
    this.#submitRead(
      this.#take(SlotKind.Read, token, offset, this.#arenaAddress + buffer, length),
    );
  }

  /** {@inheritDoc Disk.readScattered} */
  readScattered(token: number, offset: number, vector: WindowVector): void {
    const { windows, offsets, lengths, count } = vector;
    const memory = this.#memory;
    if (count === 1) {
      const address = memory.addressOf(windows[0], offsets[0]);
      return this.#submitRead(this.#take(SlotKind.Read, token, offset, address, lengths[0]));
    }
    const list = this.#readLists.take();
    let total = 0;
    for (let i = 0; i < count; i++) {
      this.#readLists.add(list, memory.addressOf(windows[i], offsets[i]), lengths[i]);
      total += lengths[i];
    }
    this.#submitRead(this.#take(SlotKind.ReadScattered, token, offset, list, total));
  }

  /** {@inheritDoc Disk.write} */
  write(token: number, offset: number, vector: IoVector): void {
    const list = this.#writeLists.take();
    let total = 0;
    for (let i = 0; i < vector.count; i++) {
      this.#writeLists.add(list, this.#arenaAddress + vector.offsets[i], vector.lengths[i]);
      total += vector.lengths[i];
    }
    const slot = this.#take(SlotKind.Write, token, offset, list, total);
    if (!this.#direct && total <= INLINE_WRITE_BYTES_MAX) this.#writeInline(slot);
    else this.#submitWrite(slot);
  }

  /** {@inheritDoc Disk.sync} */
  sync(token: number): void {
    this.#syncs.push(this.#take(SlotKind.Sync, token, 0, 0, 0));
    if (this.#syncs.length === 1) this.#submitSync(this.#syncs[0]);
  }

  /** {@inheritDoc Disk.allocate} */
  allocate(token: number, offset: number, length: number): void {
    const slot = this.#take(SlotKind.Allocate, token, offset, 0, length);
    if (this.#isBlockDevice) this.#finishLater(slot, 0);
    else this.#submitAllocate(slot, 0);
  }

  /** {@inheritDoc Disk.punch} */
  punch(token: number, offset: number, length: number): void {
    const slot = this.#take(SlotKind.Punch, token, offset, 0, length);
    this.#submitAllocate(slot, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE);
  }

  /** Something waits for {@linkcode deliver}. */
  get hasReady(): boolean {
    return this.#readyCount > 0;
  }

  /**
   * Delivers what finished without the ring.
   *
   * @returns how many completions were delivered
   */
  deliver(): number {
    let delivered = 0;
    // Handlers may start writes that finish at once and join the list: bounded by what was there at first.
    const count = this.#readyCount;
    for (; delivered < count; delivered++) {
      this.listener.diskDone(this.#readyTokens[delivered], this.#readyResults[delivered]);
    }
    if (delivered > 0) {
      this.#readyTokens.copyWithin(0, delivered, this.#readyCount);
      this.#readyResults.copyWithin(0, delivered, this.#readyCount);
      this.#readyCount -= delivered;
    }
    return delivered;
  }

  /** A completion from the ring. */
  ringDone(slot: number, result: number): void {
    if (result === -EINTR || result === -EAGAIN) {
      this.#resubmit(slot);
      return;
    }
    if (this.#kinds[slot] === SlotKind.Sync) {
      this.#syncs.shift();
      if (this.#syncs.length > 0) this.#submitSync(this.#syncs[0]);
    }
    if (result < 0) {
      const isHint = this.#kinds[slot] === SlotKind.Punch ||
        this.#kinds[slot] === SlotKind.Allocate;
      // File systems without fallocate keep working: space is then found (or not) when writing.
      this.#finish(slot, isHint && result === -EOPNOTSUPP ? 0 : result);
      return;
    }
    switch (this.#kinds[slot]) {
      case SlotKind.Read:
      case SlotKind.ReadScattered:
        this.#readProgress(slot, result);
        break;
      case SlotKind.Write:
        if (this.#writeProgress(slot, result)) this.#submitWrite(slot);
        break;
      default:
        this.#finish(slot, 0);
    }
  }

  #resubmit(slot: number): void {
    switch (this.#kinds[slot]) {
      case SlotKind.Read:
      case SlotKind.ReadScattered:
        return this.#submitRead(slot);
      case SlotKind.Write:
        return this.#submitWrite(slot);
      case SlotKind.Sync:
        return this.#submitSync(slot);
      case SlotKind.Allocate:
        return this.#submitAllocate(slot, 0);
      default:
        return this.#submitAllocate(slot, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE);
    }
  }

  #submitRead(slot: number): void {
    const done = this.#done[slot];
    const offset = this.#offsets[slot] + done;
    const isScattered = this.#kinds[slot] === SlotKind.ReadScattered;
    const buffer = this.#buffers[slot];
    const address = isScattered ? this.#readLists.address(buffer) : buffer + done;
    this.#ring.prepare(
      this.#kind,
      slot,
      isScattered ? IORING_OP_READV : IORING_OP_READ,
      0,
      this.#fd,
      address >>> 0,
      address / TWO32,
      isScattered ? this.#readLists.count(buffer) : this.#lengths[slot] - done,
      offset >>> 0,
      offset / TWO32,
      0,
    );
  }

  #readProgress(slot: number, bytes: number): void {
    const done = this.#done[slot] + bytes;
    const length = this.#lengths[slot];
    this.#done[slot] = done;
    if (done < length) {
      if (this.#kinds[slot] === SlotKind.ReadScattered) {
        this.#readLists.advance(this.#buffers[slot], bytes);
      }
      if (bytes > 0) return this.#submitRead(slot);
      this.#clearRest(slot);
    }
    this.#finish(slot, length);
  }

  /** Past the end of the file: never written, hence zeros. */
  #clearRest(slot: number): void {
    const buffer = this.#buffers[slot];
    const done = this.#done[slot];
    if (this.#kinds[slot] === SlotKind.Read) {
      return this.#clear(buffer + done, this.#lengths[slot] - done);
    }
    const lists = this.#readLists;
    for (let i = 0; i < lists.count(buffer); i++) {
      this.#clear(lists.entryAddress(buffer, i), lists.entryBytes(buffer, i));
    }
  }

  #clear(address: number, length: number): void {
    for (const { index, bytes } of this.#memory.windows) {
      const start = address - this.#memory.addressOf(index, 0);
      if (start >= 0 && start < WINDOW_BYTES) return void bytes.fill(0, start, start + length);
    }
  }

  #submitWrite(slot: number): void {
    const list = this.#buffers[slot];
    const address = this.#writeLists.address(list);
    const offset = this.#offsets[slot] + this.#done[slot];
    this.#ring.prepare(
      this.#kind,
      slot,
      IORING_OP_WRITEV,
      0,
      this.#fd,
      address >>> 0,
      address / TWO32,
      this.#writeLists.count(list),
      offset >>> 0,
      offset / TWO32,
      0,
    );
  }

  #writeInline(slot: number): void {
    const list = this.#buffers[slot];
    for (;;) {
      const offset = this.#offsets[slot] + this.#done[slot];
      if (offset !== this.#position) {
        if (libc.lseek(this.#fd, BigInt(offset), 0) < 0n) {
          this.#position = -1;
          this.#finishLater(slot, -errno());
          return;
        }
      }
      const result = libc.writev(
        this.#fd,
        this.#writeLists.pointer(list),
        this.#writeLists.count(list),
      );
      if (result < 0) {
        const code = errno();
        this.#position = -1;
        if (code === EINTR) continue;
        this.#finishLater(slot, -code);
        return;
      }
      this.#position = offset + result;
      if (!this.#advance(slot, result)) {
        this.#finishLater(slot, this.#lengths[slot]);
        return;
      }
      if (result === 0) {
        this.#finishLater(slot, -EIO);
        return;
      }
    }
  }

  /** Notes a completed part of a write; true when more is to be written. */
  #writeProgress(slot: number, bytes: number): boolean {
    if (this.#advance(slot, bytes)) {
      if (bytes > 0) return true;
      this.#finish(slot, -EIO);
      return false;
    }
    this.#finish(slot, this.#lengths[slot]);
    return false;
  }

  /** Moves the scatter list past `bytes`; true when some remain. */
  #advance(slot: number, bytes: number): boolean {
    const done = this.#done[slot] + bytes;
    this.#done[slot] = done;
    if (done >= this.#lengths[slot]) return false;
    this.#writeLists.advance(this.#buffers[slot], bytes);
    return true;
  }

  #submitSync(slot: number): void {
    this.#ring.prepare(
      this.#kind,
      slot,
      IORING_OP_FSYNC,
      0,
      this.#fd,
      0,
      0,
      0,
      0,
      0,
      IORING_FSYNC_DATASYNC,
    );
  }

  #submitAllocate(slot: number, mode: number): void {
    // FALLOCATE carries its length in the address field and its mode in the length field.
    const offset = this.#offsets[slot], length = this.#lengths[slot];
    this.#ring.prepare(
      this.#kind,
      slot,
      IORING_OP_FALLOCATE,
      0,
      this.#fd,
      length >>> 0,
      0,
      mode,
      offset >>> 0,
      offset / TWO32,
      0,
    );
  }

  #take(kind: SlotKind, token: number, offset: number, buffer: number, length: number): number {
    const slot = this.#freeSlots.pop() ?? this.#grow();
    this.#kinds[slot] = kind;
    this.#tokens[slot] = token;
    this.#offsets[slot] = offset;
    this.#buffers[slot] = buffer;
    this.#lengths[slot] = length;
    this.#done[slot] = 0;
    this.inFlight++;
    return slot;
  }

  #grow(): number {
    const slot = this.#slots++;
    if (slot === this.#kinds.length) {
      const length = slot * 2;
      this.#kinds = grown(this.#kinds, new Uint8Array(length));
      this.#tokens = grown(this.#tokens, new Uint32Array(length));
      this.#offsets = grown(this.#offsets, new Float64Array(length));
      this.#buffers = grown(this.#buffers, new Float64Array(length));
      this.#lengths = grown(this.#lengths, new Uint32Array(length));
      this.#done = grown(this.#done, new Uint32Array(length));
    }
    return slot;
  }

  #free(slot: number): void {
    const kind = this.#kinds[slot];
    if (kind === SlotKind.Write) this.#writeLists.release(this.#buffers[slot]);
    else if (kind === SlotKind.ReadScattered) this.#readLists.release(this.#buffers[slot]);
    this.#freeSlots.push(slot);
    this.inFlight--;
  }

  #finish(slot: number, result: number): void {
    const token = this.#tokens[slot];
    this.#free(slot);
    this.listener.diskDone(token, result);
  }

  #finishLater(slot: number, result: number): void {
    const token = this.#tokens[slot];
    this.#free(slot);
    const at = this.#readyCount++;
    if (at === this.#readyTokens.length) {
      this.#readyTokens = grown(this.#readyTokens, new Uint32Array(at * 2));
      this.#readyResults = grown(this.#readyResults, new Int32Array(at * 2));
    }
    this.#readyTokens[at] = token;
    this.#readyResults[at] = result;
  }

  /** Closes the descriptor and so gives the lock back. Nothing may be in flight. */
  close(): void {
    closeFd(this.#fd);
  }
}

function grown<T extends { set(from: T): void }>(from: T, to: T): T {
  to.set(from);
  return to;
}
