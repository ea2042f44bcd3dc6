/**
 * The store's file or block device over io_uring.
 *
 * Invariants:
 * - Every request completes once, through {@linkcode LinuxDisk.deliver} or the ring, never inside the call.
 * - A success is complete: short transfers are resubmitted, a read past the end gives zeros.
 *
 * Two ways of writing. In direct mode (O_DIRECT) every write goes through the ring. In buffered mode a
 * write of up to {@linkcode INLINE_WRITE_BYTES_MAX} is a plain writev(2) into the page cache: the ring would
 * hand it to a kernel worker thread, since ext4 and others refuse non-blocking buffered writes, and that costs ten times the
 * copy. writev appends at the descriptor's position, so that a log needs no 64-bit offset per write.
 * Larger writes do go to a kernel worker, where the copy runs beside us.
 *
 * @module
 */
import type { Disk, DiskListener, IoVector } from "../platform.ts";
import { EIO } from "../platform.ts";
import {
  addressOf,
  check,
  closeFd,
  cString,
  errno,
  libc,
  mapMemory,
  O_CLOEXEC,
  O_CREAT,
  O_DIRECT,
  O_EXCL,
  O_RDONLY,
  O_RDWR,
  pointerTo,
  sizeOf,
  SystemError,
  viewOf,
} from "./libc.ts";
import {
  IORING_FSYNC_DATASYNC,
  IORING_OP_FALLOCATE,
  IORING_OP_FSYNC,
  IORING_OP_READ,
  IORING_OP_WRITEV,
  type Ring,
  type RingHandler,
} from "./ring.ts";

/** Longest buffered write done on this thread, in bytes: its copy takes about 20 µs. */
const INLINE_WRITE_BYTES_MAX = 256 * 1024;
/** Entries of one scatter list: the kernel's IOV_MAX. */
const VECTOR_ENTRIES_MAX = 1024;
/** Scatter lists that can be with the kernel at once: the log's batches in flight, checkpoint and cleaner included. */
const VECTORS = 64;
const FALLOC_FL_KEEP_SIZE = 1, FALLOC_FL_PUNCH_HOLE = 2;
const EINTR = 4, EAGAIN = 11, EOPNOTSUPP = 95, EWOULDBLOCK = 11, EBUSY = 16, EEXIST = 17;
const LOCK_EX_NB = 2 | 4;
/** ioctl that only block devices answer: their size in bytes. */
const BLKGETSIZE64 = 0x80081272n;
const TWO32 = 0x1_0000_0000;
const BLANK_BYTES = 1024 * 1024;

const enum SlotKind {
  Read,
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

/** True when the first MiB of a file or device is zeros (or not there): then nobody's data is on it. */
export function isBlank(path: string): boolean {
  const fd = check(libc.open(cString(path), O_RDONLY | O_CLOEXEC, 0), `open ${path}`);
  try {
    const bytes = new Uint8Array(BLANK_BYTES);
    for (let length = 0; length < BLANK_BYTES;) {
      const count = check(libc.read(fd, bytes, BigInt(BLANK_BYTES)), `read ${path}`);
      if (count === 0) return true;
      if (bytes.subarray(0, count).some((byte) => byte !== 0)) return false;
      length += count;
    }
    return true;
  } finally {
    closeFd(fd);
  }
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
  readonly #arenaAddress: number;
  readonly #arena: Uint8Array<ArrayBuffer>;
  /** Where the descriptor's own position is, in bytes; −1 when not known. */
  #position = -1;

  // One slot per request under way, in parallel arrays that grow together.
  #kinds = new Uint8Array(256);
  #tokens = new Uint32Array(256);
  #offsets = new Float64Array(256);
  /** Read: arena offset. Write: index of the scatter list. */
  #buffers = new Uint32Array(256);
  #lengths = new Uint32Array(256);
  #done = new Uint32Array(256);
  #freeSlots: number[] = [];
  #slots = 0;

  // Scatter lists: struct iovec[VECTOR_ENTRIES_MAX] each.
  readonly #vectors: Uint32Array<ArrayBuffer>;
  readonly #vectorsAddress: number;
  readonly #vectorPointers: Deno.PointerObject[] = [];
  readonly #vectorCounts = new Uint16Array(VECTORS);
  readonly #vectorFirst = new Uint16Array(VECTORS);
  readonly #freeVectors: number[] = [];

  // Finished without the ring; delivered by `deliver`.
  #readyTokens = new Uint32Array(64);
  #readyResults = new Int32Array(64);
  #readyCount = 0;

  /** Requests under way. */
  inFlight = 0;

  constructor(
    options: {
      ring: Ring;
      file: StoreFile;
      direct: boolean;
      arenaAddress: number;
      arena: Uint8Array<ArrayBuffer>;
    },
  ) {
    this.#ring = options.ring;
    this.#kind = options.ring.register(this);
    this.#fd = options.file.fd;
    this.#direct = options.direct;
    this.#isBlockDevice = options.file.isBlockDevice;
    this.sizeBytesMax = options.file.isBlockDevice ? options.file.sizeBytes : Infinity;
    this.#arenaAddress = options.arenaAddress;
    this.#arena = options.arena;
    const bytes = VECTORS * VECTOR_ENTRIES_MAX * 16;
    this.#vectorsAddress = mapMemory({ lengthBytes: bytes, flags: 0x22 });
    const view = viewOf(this.#vectorsAddress, bytes);
    if (addressOf(view) !== this.#vectorsAddress) throw new Error("the view moved");
    this.#vectors = new Uint32Array(view.buffer);
    for (let i = VECTORS - 1; i >= 0; i--) {
      this.#freeVectors.push(i);
      this.#vectorPointers[i] = pointerTo(this.#vectorsAddress + i * VECTOR_ENTRIES_MAX * 16);
    }
  }

  /** {@inheritDoc Disk.read} */
  read(token: number, offset: number, buffer: number, length: number): void {
    const slot = this.#take(SlotKind.Read, token, offset, buffer, length);
    this.#submitRead(slot);
  }

  /** {@inheritDoc Disk.write} */
  write(token: number, offset: number, vector: IoVector): void {
    const index = this.#freeVectors.pop();
    if (index === undefined) throw new Error("more writes in flight than scatter lists");
    let total = 0;
    let entries = 0;
    const base = index * VECTOR_ENTRIES_MAX * 4;
    const vectors = this.#vectors;
    let end = -1;
    for (let i = 0; i < vector.count; i++) {
      const at = vector.offsets[i], length = vector.lengths[i];
      total += length;
      if (at === end) {
        vectors[base + entries * 4 - 2] += length;
      } else {
        if (entries === VECTOR_ENTRIES_MAX) throw new Error("scatter list too long");
        const address = this.#arenaAddress + at;
        const word = base + entries * 4;
        vectors[word] = address;
        vectors[word + 1] = address / TWO32;
        vectors[word + 2] = length;
        vectors[word + 3] = 0;
        entries++;
      }
      end = at + length;
    }
    this.#vectorCounts[index] = entries;
    this.#vectorFirst[index] = 0;
    const slot = this.#take(SlotKind.Write, token, offset, index, total);
    if (!this.#direct && total <= INLINE_WRITE_BYTES_MAX) this.#writeInline(slot);
    else this.#submitWrite(slot);
  }

  /** {@inheritDoc Disk.sync} */
  sync(token: number): void {
    const slot = this.#take(SlotKind.Sync, token, 0, 0, 0);
    this.#submitSync(slot);
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
    if (result < 0) {
      const isHint = this.#kinds[slot] === SlotKind.Punch ||
        this.#kinds[slot] === SlotKind.Allocate;
      // File systems without fallocate keep working: space is then found (or not) when writing.
      this.#finish(slot, isHint && result === -EOPNOTSUPP ? 0 : result);
      return;
    }
    switch (this.#kinds[slot]) {
      case SlotKind.Read:
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
    const address = this.#arenaAddress + this.#buffers[slot] + done;
    const offset = this.#offsets[slot] + done;
    this.#ring.prepare(
      this.#kind,
      slot,
      IORING_OP_READ,
      0,
      this.#fd,
      address >>> 0,
      address / TWO32,
      this.#lengths[slot] - done,
      offset >>> 0,
      offset / TWO32,
      0,
    );
  }

  #readProgress(slot: number, bytes: number): void {
    const done = this.#done[slot] + bytes;
    const length = this.#lengths[slot];
    this.#done[slot] = done;
    if (done >= length) this.#finish(slot, length);
    else if (bytes === 0) {
      // Past the end of the file: never written, hence zeros.
      const buffer = this.#buffers[slot];
      this.#arena.fill(0, buffer + done, buffer + length);
      this.#finish(slot, length);
    } else this.#submitRead(slot);
  }

  #submitWrite(slot: number): void {
    const index = this.#buffers[slot];
    const first = this.#vectorFirst[index];
    const address = this.#vectorsAddress + (index * VECTOR_ENTRIES_MAX + first) * 16;
    const offset = this.#offsets[slot] + this.#done[slot];
    this.#ring.prepare(
      this.#kind,
      slot,
      IORING_OP_WRITEV,
      0,
      this.#fd,
      address >>> 0,
      address / TWO32,
      this.#vectorCounts[index] - first,
      offset >>> 0,
      offset / TWO32,
      0,
    );
  }

  #writeInline(slot: number): void {
    const index = this.#buffers[slot];
    for (;;) {
      const offset = this.#offsets[slot] + this.#done[slot];
      if (offset !== this.#position) {
        if (libc.lseek(this.#fd, BigInt(offset), 0) < 0n) {
          this.#position = -1;
          this.#finishLater(slot, -errno());
          return;
        }
      }
      const first = this.#vectorFirst[index];
      const pointer = first === 0
        ? this.#vectorPointers[index]
        : pointerTo(this.#vectorsAddress + (index * VECTOR_ENTRIES_MAX + first) * 16);
      const result = libc.writev(this.#fd, pointer, this.#vectorCounts[index] - first);
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
    const index = this.#buffers[slot];
    const base = index * VECTOR_ENTRIES_MAX * 4;
    const vectors = this.#vectors;
    let left = bytes;
    let entry = this.#vectorFirst[index];
    while (left > 0 && left >= vectors[base + entry * 4 + 2]) {
      left -= vectors[base + entry * 4 + 2];
      entry++;
    }
    if (left > 0) {
      const word = base + entry * 4;
      const address = vectors[word] + vectors[word + 1] * TWO32 + left;
      vectors[word] = address;
      vectors[word + 1] = address / TWO32;
      vectors[word + 2] -= left;
    }
    this.#vectorFirst[index] = entry;
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
      this.#buffers = grown(this.#buffers, new Uint32Array(length));
      this.#lengths = grown(this.#lengths, new Uint32Array(length));
      this.#done = grown(this.#done, new Uint32Array(length));
    }
    return slot;
  }

  #free(slot: number): void {
    if (this.#kinds[slot] === SlotKind.Write) this.#freeVectors.push(this.#buffers[slot]);
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
