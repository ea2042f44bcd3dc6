/**
 * A disk in memory that behaves as badly as a real one may.
 *
 * Requests queue until the test pumps them; which one completes next is drawn from the seed, so
 * completions come in any order. What a read sees, and what survives a crash, are kept apart:
 *
 *     durable   what a sync has made sure of; all that a crash is certain to keep
 *     pending   writes (and punches) since, completed or still in flight, in order of completion
 *     current   durable + the completed pending ones: what a read returns
 *
 * Invariants:
 * - A completion is delivered by {@linkcode SimulatedDisk.pump} only, never inside the request.
 * - A sync covers exactly the writes that had completed when it was asked for.
 * - A crash keeps, loses or tears (at 512-byte sectors) every pending write on its own, and applies
 *   those kept in any order: {@linkcode SimulatedDisk.crash}.
 * - A buffer that is changed while it is being written, or looked at while it is being read, is a
 *   fault of the caller: the former is reported, the latter finds rubbish.
 *
 * @module
 */
import { Buffer } from "node:buffer";
import type { Prng } from "../../base/prng.ts";
import type { Disk, DiskListener, IoVector, WindowVector } from "../platform.ts";
import { EIO, ENOSPC } from "../platform.ts";

/** Unit that a crash may tear a write at, in bytes. */
const TEAR_BYTES = 512;

/** Unit of space accounting, in bytes. */
const SPACE_BYTES = 4096;

/** Longest time that the oldest request waits while others overtake it, in completions. */
const OVERTAKE_MAX = 64;

/** What a request does. */
export type RequestKind = "read" | "write" | "sync" | "allocate" | "punch";

/** What may go wrong, asked once for each request when it completes. */
export interface DiskFaults {
  /** A negative errno to fail the request with, or 0. */
  fail?(kind: RequestKind, offsetBytes: number, lengthBytes: number): number;
  /** True for a write that is lost without a word: it succeeds, and what was there stays. */
  loses?(offsetBytes: number, data: Uint8Array): boolean;
  /** Bytes of space; an allocation beyond it gets −ENOSPC. Default: the size of the disk. */
  spaceBytesMax?: number;
}

interface Request {
  kind: RequestKind;
  token: number;
  offset: number;
  length: number;
  /** Writes and punches: what will be there. */
  data: Uint8Array | null;
  /** Reads: where to. Writes: where it came from, to find out whether it was changed meanwhile. */
  offsets: number[];
  lengths: number[];
  /** Syncs: the last pending write that is covered. */
  covers: number;
  age: number;
}

interface Pending {
  /** Rises with completion. */
  order: number;
  offset: number;
  /** Owned by this entry. */
  data: Uint8Array;
}

/** Bytes that are kept for writes to come: enough for what a few disks have in flight. */
const SPARE_BYTES_MAX = 8 * 1024 * 1024;

/** Buffers by length that writes are done with: memory that is new costs more than what is copied to it. */
class Spares {
  readonly #free = new Map<number, Uint8Array[]>();
  #bytes = 0;

  /** A buffer of so many bytes, with anything in it. */
  take(length: number): Uint8Array {
    const buffer = this.#free.get(length)?.pop();
    if (buffer === undefined) return new Uint8Array(length);
    this.#bytes -= length;
    return buffer;
  }

  /** Nobody looks at the buffer any more. */
  give(buffer: Uint8Array): void {
    if (this.#bytes + buffer.length > SPARE_BYTES_MAX) return;
    this.#bytes += buffer.length;
    const free = this.#free.get(buffer.length);
    if (free === undefined) this.#free.set(buffer.length, [buffer]);
    else free.push(buffer);
  }
}

const spares = new Spares();

/** What {@linkcode SimulatedDisk.crash} may do to unsynced writes, as probabilities. */
export interface CrashOptions {
  /** A pending write is kept whole. Default 0.4. */
  keep?: number;
  /** A pending write is lost whole (the rest is torn). Default 0.4. */
  lose?: number;
  /** The pending writes that are kept reach the platter in a random order. Default true. */
  reorder?: boolean;
  /**
   * Only the process died: completed writes stay visible but unsynced; those in flight are kept,
   * lost or torn. Default false (the machine lost power).
   */
  processOnly?: boolean;
}

/** What a disk writes as a whole, in bytes. */
const SECTOR_BYTES = 512;

/** Unit of copy-on-write, in bytes. */
const PAGE_BYTES = 16 * 1024;

/** Pages that are made at once: one by one they cost more than what is copied to them. */
const SLAB_PAGES = 64;

/** Pages of zeros that nobody has yet. */
const fresh: Uint8Array[] = [];

function takePage(): Uint8Array {
  if (fresh.length === 0) {
    const slab = new Uint8Array(SLAB_PAGES * PAGE_BYTES);
    for (let i = SLAB_PAGES - 1; i >= 0; i--) {
      fresh.push(slab.subarray(i * PAGE_BYTES, (i + 1) * PAGE_BYTES));
    }
  }
  return fresh.pop()!;
}

/** Bytes that are cheap to clone: pages are shared until one side writes to them. */
class Image {
  #pages: (Uint8Array | null)[];
  #owned: Uint8Array;

  constructor(pages: number) {
    this.#pages = new Array(pages).fill(null);
    this.#owned = new Uint8Array(pages);
  }

  clone(): Image {
    const copy = new Image(0);
    copy.#pages = this.#pages.slice();
    copy.#owned = new Uint8Array(this.#owned.length);
    this.#owned.fill(0);
    return copy;
  }

  /** Copies `to.length` bytes from `offset` on. */
  read(offset: number, to: Uint8Array): void {
    for (let done = 0; done < to.length;) {
      const within = (offset + done) % PAGE_BYTES;
      const length = Math.min(PAGE_BYTES - within, to.length - done);
      const page = this.#pages[(offset + done - within) / PAGE_BYTES];
      if (page) to.set(page.subarray(within, within + length), done);
      else to.fill(0, done, done + length);
      done += length;
    }
  }

  write(offset: number, data: Uint8Array): void {
    for (let done = 0; done < data.length;) {
      const within = (offset + done) % PAGE_BYTES;
      const length = Math.min(PAGE_BYTES - within, data.length - done);
      const index = (offset + done - within) / PAGE_BYTES;
      let page = this.#pages[index];
      if (page === null || this.#owned[index] === 0) {
        const own = takePage();
        // Where all of it is written, what was there does not matter.
        if (page !== null && length < PAGE_BYTES) own.set(page);
        page = own;
        this.#pages[index] = page;
        this.#owned[index] = 1;
      }
      page.set(data.subarray(done, done + length), within);
      done += length;
    }
  }
}

/** Counters for tests. */
export interface DiskCounts {
  reads: number;
  writes: number;
  syncs: number;
  allocates: number;
  punches: number;
  readBytes: number;
  writtenBytes: number;
  punchedBytes: number;
}

/**
 * A {@linkcode Disk} in memory.
 *
 * @example
 * ```ts
 * import { Prng } from "../../base/prng.ts";
 * import { SimulatedDisk } from "./disk.ts";
 * import { SimulatedMemory } from "./memory.ts";
 * const { windows: [window] } = new SimulatedMemory();
 * const disk = new SimulatedDisk({
 *   bytes: window.bytes,
 *   random: new Prng(1),
 *   sizeBytes: 1 << 20,
 * });
 * disk.listener = { diskDone: (token, result) => console.assert(token === 7 && result === 4096) };
 * disk.read(7, 0, 0, 4096);
 * while (disk.pump());
 * ```
 */
export class SimulatedDisk implements Disk {
  readonly alignmentBytes: number;
  readonly sizeBytesMax: number;
  listener: DiskListener = { diskDone() {} };
  /**
   * Whether its user has given it up, and uses buffers again that it may still be reading: then what it writes from them is anything.
   * Otherwise that is a fault of the user's.
   */
  isGivenUp: () => boolean = () => false;
  faults: DiskFaults = {};
  /**
   * Called before each change that a crash could fall in between: a write, punch or sync is about
   * to complete, or has been asked for. {@linkcode crash} may be called from within.
   */
  boundary: ((kind: RequestKind) => void) | null = null;
  readonly counts: DiskCounts = {
    reads: 0,
    writes: 0,
    syncs: 0,
    allocates: 0,
    punches: 0,
    readBytes: 0,
    writtenBytes: 0,
    punchedBytes: 0,
  };

  readonly #bytes: Uint8Array;
  readonly #random: Prng;
  #durable: Image;
  #current: Image;
  readonly #allocated: Uint8Array;
  #allocatedUnits = 0;
  #requests: Request[] = [];
  #pending: Pending[] = [];
  #order = 0;

  /**
   * @param options.bytes the window that buffers lie in
   * @param options.random decides order, faults and crashes
   * @param options.sizeBytes size of the disk
   * @param options.image content to begin with (copied), all of it durable
   */
  constructor(options: {
    readonly bytes: Uint8Array;
    readonly random: Prng;
    readonly sizeBytes: number;
    readonly alignmentBytes?: number;
    readonly image?: Uint8Array;
  }) {
    this.#bytes = options.bytes;
    this.#random = options.random;
    this.sizeBytesMax = options.sizeBytes;
    this.alignmentBytes = options.alignmentBytes ?? 4096;
    this.#durable = new Image(Math.ceil(options.sizeBytes / PAGE_BYTES));
    if (options.image) this.#durable.write(0, options.image);
    this.#current = this.#durable.clone();
    this.#allocated = new Uint8Array(Math.ceil(options.sizeBytes / SPACE_BYTES));
  }

  /** Requests not completed yet. */
  get inFlight(): number {
    return this.#requests.length;
  }

  /** Bytes of space taken by what was written or allocated and not punched since. */
  get spaceBytes(): number {
    return this.#allocatedUnits * SPACE_BYTES;
  }

  /** A copy of the bytes as a read would see them now. */
  peek(offsetBytes: number, lengthBytes: number): Uint8Array {
    const bytes = new Uint8Array(lengthBytes);
    this.#current.read(offsetBytes, bytes);
    return bytes;
  }

  /** Changes what is stored, durably and at once. */
  poke(offsetBytes: number, bytes: Uint8Array): void {
    this.#current.write(offsetBytes, bytes);
    this.#durable.write(offsetBytes, bytes);
  }

  /** Whether a sync has made sure of all of these bytes: they are on the medium, not only in a cache. */
  isDurable(offsetBytes: number, lengthBytes: number): boolean {
    const isHere = (offset: number, length: number) =>
      offset < offsetBytes + lengthBytes && offsetBytes < offset + length;
    return !this.#pending.some(({ offset, data }) => isHere(offset, data.length)) &&
      !this.#requests.some(({ data, offset }) => data !== null && isHere(offset, data.length));
  }

  /** Inverts one bit of what is stored, durably and at once, as a failing medium would. */
  flipBit(offsetBytes: number, bit = 0): void {
    const byte = this.peek(offsetBytes, 1);
    byte[0] ^= 1 << bit;
    this.poke(offsetBytes, byte);
  }

  read(token: number, offset: number, buffer: number, length: number): void {
    this.#check(offset, length, buffer);
    this.#read(token, offset, [buffer], [length]);
  }

  readScattered(token: number, offset: number, vector: WindowVector): void {
    const { windows, offsets, lengths, count } = vector;
    if (count === 0) throw new Error("simulated disk: read of nothing");
    let length = 0;
    for (let i = 0; i < count; i++) {
      if (windows[i] !== 0) throw new Error(`simulated disk: there is no window ${windows[i]}`);
      this.#check(offset, lengths[i], offsets[i]);
      length += lengths[i];
    }
    this.#check(offset, length, 0);
    this.#read(
      token,
      offset,
      Array.from(offsets.subarray(0, count)),
      Array.from(lengths.subarray(0, count)),
    );
  }

  #read(token: number, offset: number, offsets: number[], lengths: number[]): void {
    // Until it completes, the buffer holds anything.
    const rubbish = this.#random.u32() | 1;
    let length = 0;
    for (let i = 0; i < offsets.length; i++) {
      const end = offsets[i] + lengths[i];
      for (let at = offsets[i]; at < end; at += TEAR_BYTES) this.#bytes[at] ^= rubbish;
      length += lengths[i];
    }
    const request = this.#push("read", token, offset, length);
    request.offsets = offsets;
    request.lengths = lengths;
  }

  write(token: number, offset: number, vector: IoVector): void {
    let length = 0;
    for (let i = 0; i < vector.count; i++) {
      this.#check(offset, vector.lengths[i], vector.offsets[i]);
      length += vector.lengths[i];
    }
    if (vector.count === 0) throw new Error("simulated disk: write of nothing");
    this.#check(offset, length, 0);
    this.boundary?.("write");
    const request = this.#push("write", token, offset, length);
    request.offsets = Array.from(vector.offsets.subarray(0, vector.count));
    request.lengths = Array.from(vector.lengths.subarray(0, vector.count));
    request.data = this.#gather(request);
  }

  sync(token: number): void {
    this.boundary?.("sync");
    this.#push("sync", token, 0, 0).covers = this.#order;
  }

  allocate(token: number, offset: number, length: number): void {
    this.#check(offset, length, 0);
    this.#push("allocate", token, offset, length);
  }

  punch(token: number, offset: number, length: number): void {
    this.#check(offset, length, 0);
    this.boundary?.("punch");
    const request = this.#push("punch", token, offset, length);
    request.data = new Uint8Array(length);
    // It reads as anything: zeros (a file) or what was there, or something else (a device).
    if (this.#random.chance(0.5)) this.#random.fill(request.data);
  }

  /**
   * Completes one request and tells the listener.
   *
   * @returns false when there was none
   */
  pump(): boolean {
    const requests = this.#requests;
    if (requests.length === 0) return false;
    const oldest = requests[0];
    let index = 0;
    if (oldest.age < OVERTAKE_MAX) index = this.#random.below(Math.min(requests.length, 16));
    if (index !== 0) oldest.age++;
    const request = requests[index];
    if (request.kind !== "read" && request.kind !== "allocate") this.boundary?.(request.kind);
    requests.splice(index, 1);
    const result = this.#complete(request);
    this.listener.diskDone(request.token, result);
    return true;
  }

  /**
   * The disk as it may be found after a crash now. This disk is left as it is and may go on.
   *
   * @param random decides what is kept
   * @param bytes the window of the machine that finds it
   */
  crash(random: Prng, bytes: Uint8Array, options: CrashOptions = {}): SimulatedDisk {
    const { keep = 0.4, lose = 0.4, reorder = true, processOnly = false } = options;
    const after = new SimulatedDisk({
      bytes,
      random: random.fork(),
      sizeBytes: this.sizeBytesMax,
      alignmentBytes: this.alignmentBytes,
    });
    after.#durable = this.#durable.clone();
    after.#current = after.#durable.clone();
    const inFlight: Pending[] = [];
    for (const request of this.#requests) {
      if (request.data) inFlight.push({ order: 0, offset: request.offset, data: request.data });
    }
    // The two disks share no buffers: what is durable on one of them is used for something else.
    if (processOnly) {
      for (const { offset, data } of this.#pending) after.#apply(offset, data.slice());
      for (const write of random.shuffle(inFlight)) {
        const torn = tear(random, write.data, after.#current, write.offset, keep, lose, true);
        if (torn) after.#apply(write.offset, torn === write.data ? torn.slice() : torn);
      }
      return after;
    }
    const writes = this.#pending.concat(inFlight);
    if (reorder) random.shuffle(writes);
    for (const write of writes) {
      const torn = tear(random, write.data, after.#durable, write.offset, keep, lose);
      if (torn) after.#durable.write(write.offset, torn);
    }
    after.#current = after.#durable.clone();
    return after;
  }

  #push(kind: RequestKind, token: number, offset: number, length: number): Request {
    const request: Request = {
      kind,
      token,
      offset,
      length,
      data: null,
      offsets: [],
      lengths: [],
      covers: 0,
      age: 0,
    };
    this.#requests.push(request);
    return request;
  }

  #complete(request: Request): number {
    const { kind, offset, length } = request;
    const failed = this.faults.fail?.(kind, offset, length) ?? 0;
    const counts = this.counts;
    switch (kind) {
      case "read":
        counts.reads++;
        counts.readBytes += length;
        if (failed < 0) return failed;
        for (let i = 0, at = offset; i < request.offsets.length; i++) {
          const to = request.offsets[i];
          this.#current.read(at, this.#bytes.subarray(to, to + request.lengths[i]));
          at += request.lengths[i];
        }
        return length;
      case "write": {
        counts.writes++;
        counts.writtenBytes += length;
        const data = request.data!;
        if (this.#hasChanged(request)) {
          if (this.isGivenUp()) return this.#writeAnything(request);
          throw new Error(`simulated disk: buffer of write ${request.token} changed in flight`);
        }
        if (failed < 0) {
          // It may have been written in part all the same.
          const torn = tear(this.#random, data, this.#current, offset, 0.2, 0.5);
          if (torn) this.#apply(offset, torn);
          return failed;
        }
        if (!this.#take(offset, length)) return -ENOSPC;
        if (this.faults.loses?.(offset, data) !== true) this.#apply(offset, data);
        return length;
      }
      case "sync":
        counts.syncs++;
        if (failed < 0) {
          // As Linux does: what could not be written back is dropped and counts as clean.
          this.#pending = this.#pending.filter(({ order }) => order > request.covers);
          return failed;
        }
        for (const { order, offset, data } of this.#pending) {
          if (order > request.covers) continue;
          this.#durable.write(offset, data);
          spares.give(data);
        }
        this.#pending = this.#pending.filter(({ order }) => order > request.covers);
        return 0;
      case "allocate":
        counts.allocates++;
        if (failed < 0) return failed;
        return this.#take(offset, length) ? 0 : -ENOSPC;
      case "punch":
        counts.punches++;
        counts.punchedBytes += length;
        if (failed < 0) return failed;
        this.#apply(offset, request.data!);
        for (let unit = offset / SPACE_BYTES; unit < (offset + length) / SPACE_BYTES; unit++) {
          this.#allocatedUnits -= this.#allocated[unit];
          this.#allocated[unit] = 0;
        }
        return 0;
    }
  }

  /** Makes a write visible, not durable. */
  #apply(offset: number, data: Uint8Array): void {
    this.#current.write(offset, data);
    this.#pending.push({ order: ++this.#order, offset, data });
  }

  #take(offset: number, length: number): boolean {
    const first = Math.floor(offset / SPACE_BYTES);
    const end = Math.ceil((offset + length) / SPACE_BYTES);
    let missing = 0;
    for (let unit = first; unit < end; unit++) missing += 1 - this.#allocated[unit];
    const unitsMax = (this.faults.spaceBytesMax ?? Infinity) / SPACE_BYTES;
    if (missing > 0 && this.#allocatedUnits + missing > unitsMax) return false;
    this.#allocated.fill(1, first, end);
    this.#allocatedUnits += missing;
    return true;
  }

  /** Whether the buffer of a write is not any more what it was when it was asked for. */
  #hasChanged({ offsets, lengths, data }: Request): boolean {
    let at = 0;
    for (let i = 0; i < offsets.length; i++) {
      if (
        Buffer.compare(
          this.#bytes.subarray(offsets[i], offsets[i] + lengths[i]),
          data!.subarray(at, at + lengths[i]),
        ) !== 0
      ) return true;
      at += lengths[i];
    }
    return false;
  }

  /** Part of it as it was asked for, and of the rest what is in its buffer by now. */
  #writeAnything({ offset, offsets, lengths, data }: Request): number {
    const bytes = data!.slice();
    let at = 0;
    for (let i = 0; i < offsets.length; i++) {
      for (let from = 0; from < lengths[i]; from += SECTOR_BYTES) {
        const end = Math.min(from + SECTOR_BYTES, lengths[i]);
        if (this.#random.chance(0.5)) continue;
        bytes.set(this.#bytes.subarray(offsets[i] + from, offsets[i] + end), at + from);
      }
      at += lengths[i];
    }
    this.#apply(offset, bytes);
    return -EIO;
  }

  #gather(request: Request): Uint8Array {
    const data = spares.take(request.length);
    let at = 0;
    for (let i = 0; i < request.offsets.length; i++) {
      const from = request.offsets[i];
      data.set(this.#bytes.subarray(from, from + request.lengths[i]), at);
      at += request.lengths[i];
    }
    return data;
  }

  #check(offset: number, length: number, buffer: number): void {
    const mask = this.alignmentBytes - 1;
    const aligned = ((offset % this.alignmentBytes) | (length & mask) | (buffer & mask)) === 0;
    if (!aligned || offset < 0 || offset + length > this.sizeBytesMax || length < 0) {
      throw new Error(
        `simulated disk: request of ${length} bytes at ${offset}, buffer ${buffer}, is not ` +
          `aligned to ${this.alignmentBytes} or leaves the disk of ${this.sizeBytesMax}`,
      );
    }
  }
}

/**
 * What of `data` reaches the platter over what is there now; null when nothing does.
 *
 * @param isPrefix a beginning, as of a process that was killed while the kernel copied from it
 */
function tear(
  random: Prng,
  data: Uint8Array,
  under: Image,
  offset: number,
  keep: number,
  lose: number,
  isPrefix = false,
): Uint8Array | null {
  const draw = random.fraction();
  if (draw < keep) return data;
  if (draw < keep + lose) return null;
  const torn = new Uint8Array(data.length);
  under.read(offset, torn);
  const sectors = data.length / TEAR_BYTES;
  // A prefix, a suffix, one sector missing, or any set of them.
  const shape = isPrefix ? 0 : random.below(4);
  const edge = random.below(sectors);
  for (let sector = 0; sector < sectors; sector++) {
    const kept = shape === 0
      ? sector < edge
      : shape === 1
      ? sector >= edge
      : shape === 2
      ? sector !== edge
      : random.chance(0.5);
    const at = sector * TEAR_BYTES;
    if (kept) torn.set(data.subarray(at, at + TEAR_BYTES), at);
  }
  return torn;
}
