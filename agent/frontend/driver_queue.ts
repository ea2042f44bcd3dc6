/**
 * One split virtqueue from the driver's side, for block requests.
 *
 * Everything is laid out once: request slot `s` has a fixed chain of descriptors, a header, a status
 * byte and a data buffer. Submitting and reaping touch shared memory only; nothing is allocated.
 *
 *     control   | descriptors 16 × size | available 6 + 2 × size | used 6 + 8 × size | slots |
 *     slot      0 header: type u32, reserved u32, sector u64
 *              16 range of discard and write-zeroes: sector u64, sectors u32, flags u32
 *              32 status u8
 *              64 indirect descriptors
 *     chain     header → data … → status
 *
 * Invariants: what the device writes is checked before use (used ids, a status byte that was written);
 * the available index is published after everything that it makes visible; between arming the call
 * and sleeping the used index is looked at once more, so that no completion is slept over.
 *
 * Virtual I/O Device 1.2, sections 2.7 and 5.2.6.
 *
 * @module
 */
import { signalEventFd } from "../platform/linux/libc.ts";
import { BackEndError } from "./error.ts";
import type { SharedMemory } from "./shared_memory.ts";
import { RequestType, SECTOR_BYTES, Status } from "./virtio_blk.ts";

const DESCRIPTOR_BYTES = 16;
const DESCRIPTOR_NEXT = 1, DESCRIPTOR_WRITE = 2, DESCRIPTOR_INDIRECT = 4;
const AVAILABLE_NO_INTERRUPT = 1, USED_NO_NOTIFY = 1;
const RANGE_BYTES = 16;
const HEADER_BYTES = 16;
const SLOT_RANGE = 16, SLOT_STATUS = 32, SLOT_INDIRECT = 64;
const PAGE_BYTES = 4096;
const TWO_32 = 2 ** 32;

/** Largest split queue (virtio 1.2, section 2.7). */
export const QUEUE_SIZE_MAX = 32768;

/** What decides how much room a queue needs. */
export interface QueueShape {
  /** Descriptors in the ring: a power of two. */
  readonly size: number;
  /** Requests that can be in flight. */
  readonly slots: number;
  /** Data bytes of the longest request. */
  readonly bufferBytes: number;
  /** Data descriptors per request. */
  readonly segments: number;
  /** Chains lie in indirect tables. */
  readonly indirect: boolean;
  /** VIRTIO_F_EVENT_IDX was negotiated. */
  readonly eventIndex: boolean;
}

/** Descriptors that one request takes in the ring. */
function chainOf(shape: QueueShape): number {
  return shape.indirect ? 1 : 2 + shape.segments;
}

function align(bytes: number, unit: number): number {
  return Math.ceil(bytes / unit) * unit;
}

function slotBytesOf(shape: QueueShape): number {
  return align(SLOT_INDIRECT + DESCRIPTOR_BYTES * (2 + shape.segments), 64);
}

/** Bytes between the data buffers of two slots: whole pages. */
function bufferStrideOf(shape: QueueShape): number {
  return align(shape.bufferBytes, PAGE_BYTES);
}

/** Bytes of control and data memory that a queue of this shape takes. */
export function queueBytes(shape: QueueShape): { controlBytes: number; dataBytes: number } {
  return {
    controlBytes: align(DESCRIPTOR_BYTES * shape.size, PAGE_BYTES) +
      align(6 + 2 * shape.size, PAGE_BYTES) + align(6 + 8 * shape.size, PAGE_BYTES) +
      align(slotBytesOf(shape) * shape.slots, PAGE_BYTES),
    dataBytes: bufferStrideOf(shape) * shape.slots,
  };
}

/** A virtqueue whose device is in another process. */
export class DriverQueue {
  readonly size: number;
  /** Requests that can be in flight. */
  readonly slotCount: number;
  /** Bytes of each slot's data buffer. */
  readonly bufferBytes: number;
  /** Whether chains lie in indirect tables. */
  readonly isIndirect: boolean;
  /** Offsets of the parts of the ring in shared memory. */
  readonly descriptorsOffset: number;
  readonly availableOffset: number;
  readonly usedOffset: number;

  /** Times that the device was woken. */
  kicks = 0;
  /** Successful requests whose used length was not what the request must have written. */
  usedLengthMismatches = 0;

  readonly #memory: SharedMemory;
  readonly #bytes: Uint8Array<ArrayBuffer>;
  readonly #u16: Uint16Array<ArrayBuffer>;
  readonly #u32: Uint32Array<ArrayBuffer>;
  readonly #kickFd: number;
  readonly #eventIndex: boolean;
  readonly #segments: number;
  readonly #chain: number;
  readonly #slotsOffset: number;
  readonly #slotBytes: number;
  readonly #dataOffset: number;
  readonly #bufferStride: number;
  readonly #mask: number;
  /** Positions in #u16. */
  readonly #availableFlags16: number;
  readonly #availableIndex16: number;
  readonly #usedEvent16: number;
  readonly #usedFlags16: number;
  readonly #usedIndex16: number;
  readonly #availableEvent16: number;
  /** Position of the used ring's first entry in #u32. */
  readonly #usedRing32: number;

  readonly #free: Uint16Array<ArrayBuffer>;
  #freeCount: number;
  readonly #isBusy: Uint8Array<ArrayBuffer>;
  readonly #usedLengths: Uint32Array<ArrayBuffer>;
  #availableIndex = 0;
  #publishedIndex = 0;
  #lastUsed = 0;
  #usedIndex = 0;
  #inFlight = 0;

  /**
   * @param index number of the queue
   * @param controlOffset, dataOffset where its parts of shared memory begin, page-aligned
   * @param kickFd eventfd that wakes the device; owned by the caller
   */
  constructor(
    readonly index: number,
    shape: QueueShape,
    memory: SharedMemory,
    options: { controlOffset: number; dataOffset: number; kickFd: number },
  ) {
    this.size = shape.size;
    this.slotCount = shape.slots;
    this.bufferBytes = shape.bufferBytes;
    this.#memory = memory;
    this.#bytes = memory.bytes;
    this.#u16 = memory.u16;
    this.#u32 = memory.u32;
    this.#kickFd = options.kickFd;
    this.isIndirect = shape.indirect;
    this.#eventIndex = shape.eventIndex;
    this.#segments = shape.segments;
    this.#chain = chainOf(shape);
    this.#mask = shape.size - 1;
    if (this.#chain * shape.slots > shape.size || (shape.size & this.#mask) !== 0) {
      throw new RangeError(
        `a queue of ${shape.size} descriptors cannot hold ${shape.slots} requests of ${this.#chain}`,
      );
    }
    this.descriptorsOffset = options.controlOffset;
    this.availableOffset = this.descriptorsOffset + align(DESCRIPTOR_BYTES * this.size, PAGE_BYTES);
    this.usedOffset = this.availableOffset + align(6 + 2 * this.size, PAGE_BYTES);
    this.#slotsOffset = this.usedOffset + align(6 + 8 * this.size, PAGE_BYTES);
    this.#slotBytes = slotBytesOf(shape);
    this.#dataOffset = options.dataOffset;
    this.#bufferStride = bufferStrideOf(shape);
    this.#availableFlags16 = this.availableOffset >> 1;
    this.#availableIndex16 = this.#availableFlags16 + 1;
    this.#usedEvent16 = this.#availableFlags16 + 2 + this.size;
    this.#usedFlags16 = this.usedOffset >> 1;
    this.#usedIndex16 = this.#usedFlags16 + 1;
    this.#availableEvent16 = (this.usedOffset + 4 + 8 * this.size) >> 1;
    this.#usedRing32 = (this.usedOffset + 4) >> 2;
    // Slot 0 is taken first.
    this.#free = Uint16Array.from({ length: this.slotCount }, (_, i) => this.slotCount - 1 - i);
    this.#freeCount = this.slotCount;
    this.#isBusy = new Uint8Array(this.slotCount);
    this.#usedLengths = new Uint32Array(this.slotCount);
    if (!this.#eventIndex) this.#u16[this.#availableFlags16] = AVAILABLE_NO_INTERRUPT;
    else this.#u16[this.#usedEvent16] = 0xffff;
  }

  /** Slots that can be taken. */
  get freeCount(): number {
    return this.#freeCount;
  }

  /** Requests submitted and not reaped. */
  get inFlight(): number {
    return this.#inFlight;
  }

  /** Entries ever made available, modulo 2^16: what GET_VRING_BASE must answer once all is done. */
  get availableIndex(): number {
    return this.#availableIndex;
  }

  /** The device's used index as it stands in shared memory. */
  get deviceUsedIndex(): number {
    return Atomics.load(this.#u16, this.#usedIndex16);
  }

  /** Takes a slot, or −1 when all are taken. */
  takeSlot(): number {
    return this.#freeCount === 0 ? -1 : this.#free[--this.#freeCount];
  }

  /** Gives a slot back that is not in flight. */
  releaseSlot(slot: number): void {
    this.#free[this.#freeCount++] = slot;
  }

  /** Offset of a slot's data buffer in shared memory. */
  dataOffset(slot: number): number {
    return this.#dataOffset + slot * this.#bufferStride;
  }

  /** The status byte of a reaped request. */
  status(slot: number): number {
    return this.#bytes[this.#slotOffset(slot) + SLOT_STATUS];
  }

  /** Type of the request that a slot holds or held last. */
  type(slot: number): number {
    return this.#u32[this.#slotOffset(slot) >> 2];
  }

  /** Sector of the request that a slot holds or held last. */
  sector(slot: number): number {
    const word = (this.#slotOffset(slot) >> 2) + 2;
    return this.#u32[word] + this.#u32[word + 1] * TWO_32;
  }

  /**
   * Queues a request; {@linkcode publish} shows it to the device.
   *
   * @param slot from {@linkcode takeSlot}; for Out its buffer is already filled
   * @param type In, Out, GetId, Flush, or any number to see what the device makes of it
   * @param lengthBytes data bytes, 0…bufferBytes
   */
  submit(slot: number, type: number, sector: number, lengthBytes: number): void {
    const writes = type === RequestType.In || type === RequestType.GetId;
    this.#submit(slot, type, sector, this.dataOffset(slot), lengthBytes, writes);
  }

  /** Queues a Discard or WriteZeroes of one range. */
  submitRange(
    slot: number,
    type: RequestType.Discard | RequestType.WriteZeroes,
    range: { readonly sector: number; readonly sectorCount: number; readonly unmap: boolean },
  ): void {
    const offset = this.#slotOffset(slot) + SLOT_RANGE;
    this.#setWords64(offset >> 2, range.sector);
    this.#u32[(offset >> 2) + 2] = range.sectorCount;
    this.#u32[(offset >> 2) + 3] = range.unmap ? 1 : 0;
    this.#submit(slot, type, 0, offset, RANGE_BYTES, false);
  }

  #submit(
    slot: number,
    type: number,
    sector: number,
    dataOffset: number,
    lengthBytes: number,
    writes: boolean,
  ): void {
    const offset = this.#slotOffset(slot);
    const words = offset >> 2;
    this.#u32[words] = type;
    this.#u32[words + 1] = 0;
    this.#setWords64(words + 2, sector);
    this.#bytes[offset + SLOT_STATUS] = Status.None;
    this.#usedLengths[slot] = 1 + (writes ? lengthBytes : 0);

    const head = slot * this.#chain;
    // Links count from the start of the table: of the ring, or of the indirect table.
    const first = this.isIndirect ? 0 : head;
    const table = this.isIndirect
      ? offset + SLOT_INDIRECT
      : this.descriptorsOffset + head * DESCRIPTOR_BYTES;
    let count = 0;
    this.#describe(table, offset, HEADER_BYTES, DESCRIPTOR_NEXT, first + 1);
    count++;
    const flags = DESCRIPTOR_NEXT | (writes ? DESCRIPTOR_WRITE : 0);
    const segmentBytes = this.#segmentBytes(lengthBytes);
    for (let done = 0; done < lengthBytes; done += segmentBytes) {
      const bytes = Math.min(segmentBytes, lengthBytes - done);
      const at = table + count * DESCRIPTOR_BYTES;
      this.#describe(at, dataOffset + done, bytes, flags, first + count + 1);
      count++;
    }
    const last = table + count * DESCRIPTOR_BYTES;
    this.#describe(last, offset + SLOT_STATUS, 1, DESCRIPTOR_WRITE, 0);
    count++;
    if (this.isIndirect) {
      const at = this.descriptorsOffset + head * DESCRIPTOR_BYTES;
      this.#describe(at, table, count * DESCRIPTOR_BYTES, DESCRIPTOR_INDIRECT, 0);
    }
    this.#u16[this.#availableIndex16 + 1 + (this.#availableIndex & this.#mask)] = head;
    this.#availableIndex = (this.#availableIndex + 1) & 0xffff;
    this.#isBusy[slot] = 1;
    this.#inFlight++;
  }

  /** Length of each data descriptor but the last. */
  #segmentBytes(lengthBytes: number): number {
    if (this.#segments === 1 || lengthBytes % SECTOR_BYTES !== 0) return lengthBytes;
    return align(lengthBytes / this.#segments, SECTOR_BYTES);
  }

  #describe(at: number, offset: number, lengthBytes: number, flags: number, next: number): void {
    this.#setWords64(at >> 2, this.#memory.guestAddress(offset));
    this.#u32[(at >> 2) + 2] = lengthBytes;
    this.#u32[(at >> 2) + 3] = flags | (next << 16);
  }

  #setWords64(word: number, value: number): void {
    this.#u32[word] = value; // modulo 2^32
    this.#u32[word + 1] = value / TWO_32;
  }

  #slotOffset(slot: number): number {
    return this.#slotsOffset + slot * this.#slotBytes;
  }

  /** Shows everything queued to the device, and wakes it if it asks for that. */
  publish(): void {
    const before = this.#publishedIndex;
    const after = this.#availableIndex;
    if (before === after) return;
    // Sequentially consistent: the store is visible before the event index is read.
    Atomics.store(this.#u16, this.#availableIndex16, after);
    this.#publishedIndex = after;
    const isKickNeeded = this.#eventIndex
      ? ((after - Atomics.load(this.#u16, this.#availableEvent16) - 1) & 0xffff) <
        ((after - before) & 0xffff)
      : (Atomics.load(this.#u16, this.#usedFlags16) & USED_NO_NOTIFY) === 0;
    if (isKickNeeded) this.kick();
  }

  /** Wakes the device. */
  kick(): void {
    this.kicks++;
    signalEventFd(this.#kickFd);
  }

  /** Whether there is something to reap. */
  hasUsed(): boolean {
    if (this.#usedIndex === this.#lastUsed) {
      this.#usedIndex = Atomics.load(this.#u16, this.#usedIndex16);
    }
    return this.#usedIndex !== this.#lastUsed;
  }

  /** Asks for a call at the next completion. Look at {@linkcode hasUsed} again before sleeping. */
  arm(): void {
    if (this.#eventIndex) Atomics.store(this.#u16, this.#usedEvent16, this.#lastUsed);
    else Atomics.store(this.#u16, this.#availableFlags16, 0);
  }

  /** Asks for no calls for now. */
  disarm(): void {
    if (!this.#eventIndex) this.#u16[this.#availableFlags16] = AVAILABLE_NO_INTERRUPT;
  }

  /**
   * Takes the next completed request.
   *
   * @returns its slot, which is the caller's until it is released, or −1 when there is none
   * @throws BackEndError `protocol` when the used ring names no request in flight, or the status byte was
   * not written
   */
  reap(): number {
    if (!this.hasUsed()) return -1;
    const entry = this.#usedRing32 + 2 * (this.#lastUsed & this.#mask);
    const id = this.#u32[entry];
    const slot = id / this.#chain;
    if (id % this.#chain !== 0 || slot >= this.slotCount || this.#isBusy[slot] === 0) {
      throw new BackEndError(
        "protocol",
        `queue ${this.index}: the used ring names descriptor ${id} at index ${this.#lastUsed}, ` +
          `which heads no request in flight`,
      );
    }
    const status = this.status(slot);
    if (status === Status.None) {
      throw new BackEndError(
        "protocol",
        `queue ${this.index}: the request at index ${this.#lastUsed} completed without a status byte`,
      );
    }
    this.#lastUsed = (this.#lastUsed + 1) & 0xffff;
    this.#isBusy[slot] = 0;
    this.#inFlight--;
    if (status === Status.Ok && this.#u32[entry + 1] !== this.#usedLengths[slot]) {
      this.usedLengthMismatches++;
    }
    return slot;
  }

  /** State of the ring for people who look into a stall. */
  describe(): string {
    const used = this.deviceUsedIndex;
    const events = this.#eventIndex
      ? `, kick event ${this.#u16[this.#availableEvent16]}, call event ${
        this.#u16[this.#usedEvent16]
      }`
      : "";
    const missed = used === this.#lastUsed ? "" : ", completions are there but no call came";
    return `queue ${this.index}: ${this.#inFlight} in flight, available index ` +
      `${this.#availableIndex}, used index ${used}, reaped up to ${this.#lastUsed}${events}${missed}`;
  }
}
