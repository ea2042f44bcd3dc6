/**
 * One split virtqueue, from the device's side (virtio 1.2, section 2.7).
 *
 *     descriptors  16 bytes each:  0 address u64 | 8 length u32 | 12 flags u16 | 14 next u16
 *     available    0 flags u16 | 2 idx u16 | 4 ring u16 × size | 4 + 2 × size used_event u16
 *     used         0 flags u16 | 2 idx u16 | 4 (id u32, length u32) × size | 4 + 8 × size avail_event u16
 *
 * The rings lie in guest memory and are read and written in place, through the views of their windows. The guest may
 * change any of it at any time, so:
 *
 * - Each word of a descriptor is loaded once, into a {@linkcode DescriptorChain}, and only the copy is checked and used.
 * - Every index is checked before it is used as one. A violation is a {@linkcode RingFault}: the queue takes nothing
 *   more until it is started again. It never throws.
 * - A head that is in flight is not taken again, so at most `size` requests are in flight.
 *
 * Memory ordering. A plain load of ours may not be satisfied before the load of `idx` that made it valid, nor a used
 * element become visible after its `idx`; and between the store of an index and the load of the other side's event
 * index there must be a full fence, or both sides may miss each other and sleep. `Atomics.load` and
 * `Atomics.store` give all three on every machine: on x86 the load is an ordinary one and the store an XCHG, which is
 * the fence; on ARM they are LDAR and STLR, which stay in order among themselves. They cost some
 * 20 ns, and are used once per batch: on the two `idx`, the two event indices and the flags words.
 *
 * Used elements are collected and published as a batch: one store of `idx`, one decision whether to call.
 *
 * @module
 */
import type { DirtyLog } from "./dirty_log.ts";
import type { GuestMemory, Place } from "./guest_memory.ts";
import type { InflightQueue } from "./inflight.ts";

/** Largest queue: QEMU's and Linux's own bound; also the longest chain the specification allows with it. */
export const QUEUE_SIZE_MAX = 1024;

/** Descriptors of the longest chain taken in: virtio 1.2, 2.7.5.3.1, bounds a chain by the queue's size. */
export const CHAIN_DESCRIPTORS_MAX = QUEUE_SIZE_MAX;

const DESCRIPTOR_BYTES = 16;
const FLAG_NEXT = 1;
const FLAG_WRITE = 2;
const FLAG_INDIRECT = 4;
/** Available ring's flags: the driver does not want to be called. */
const AVAIL_NO_INTERRUPT = 1;
/** Used ring's flags: the device need not be kicked. */
const USED_NO_NOTIFY = 1;

/** What {@linkcode VirtQueue.pop} found, where it is not a fault. */
export const enum Pop {
  /** Nothing is available. */
  Empty = 0,
  /** The chain was taken. */
  Chain = 1,
}

/** Ways in which a driver breaks the rules; all negative. */
export const enum RingFault {
  None = 0,
  AvailableJump = -1,
  HeadRange = -2,
  HeadInFlight = -3,
  NextRange = -4,
  ChainLoop = -5,
  ChainLong = -6,
  IndirectNested = -7,
  IndirectOff = -8,
  IndirectWithNext = -9,
  IndirectSize = -10,
  IndirectAddress = -11,
  WritableBeforeReadable = -12,
  NoStatus = -13,
  LogTooSmall = -14,
}

const FAULT_TEXTS: readonly string[] = [
  "none",
  "the available index jumps by more than the queue's size",
  "a head in the available ring is not below the queue's size",
  "a head in the available ring is in flight already",
  "a descriptor's next is outside its table",
  "a descriptor chain loops",
  `a descriptor chain has more than ${CHAIN_DESCRIPTORS_MAX} descriptors`,
  "an indirect table contains an indirect descriptor",
  "an indirect descriptor, though the feature was not negotiated",
  "an indirect descriptor has a next",
  `an indirect table's length is not a multiple of 16 between 16 and ${
    CHAIN_DESCRIPTORS_MAX * DESCRIPTOR_BYTES
  }`,
  "an indirect table is not inside guest memory",
  "a device-readable descriptor follows a device-writable one",
  "a request has no byte in guest memory for its status",
  "the dirty log does not cover a page that was written",
];

/** A fault in words. */
export function faultText(fault: number): string {
  return FAULT_TEXTS[-fault] ?? `fault ${fault}`;
}

/** The copy of one descriptor chain: first what the device may read, then what it may write. */
export class DescriptorChain {
  /** Index of the first descriptor: the name of the chain in the used ring. */
  head = 0;
  /** Descriptors. */
  count = 0;
  /** How many of them, at the front, are for the device to read. */
  readableCount = 0;
  /** Sum of the readable lengths. */
  readableBytes = 0;
  /** Sum of the writable lengths. */
  writableBytes = 0;
  /** Guest addresses; not checked. */
  readonly addresses: Float64Array<ArrayBuffer> = new Float64Array(CHAIN_DESCRIPTORS_MAX);
  /** Bytes; may be 0. */
  readonly lengths: Uint32Array<ArrayBuffer> = new Uint32Array(CHAIN_DESCRIPTORS_MAX);
}

/** Told when there is something to do for a queue. */
export interface QueueOwner {
  /**
   * The first element of a batch was pushed, or the last request of an abandoned queue was given back. Must not
   * publish from inside the call.
   */
  queueNeedsTurn(queue: VirtQueue): void;
}

/** Where the parts of a ring are, and what was agreed on. */
export interface RingSetup {
  readonly size: number;
  readonly descriptors: Place;
  readonly available: Place;
  readonly used: Place;
  readonly eventIndex: boolean;
  readonly indirect: boolean;
  readonly inflight: InflightQueue | null;
}

/** Bytes of the three parts of a ring. The event indices exist only where they were negotiated. */
export function ringBytes(
  size: number,
  eventIndex: boolean,
): { descriptors: number; available: number; used: number } {
  const event = eventIndex ? 2 : 0;
  return {
    descriptors: size * DESCRIPTOR_BYTES,
    available: 4 + size * 2 + event,
    used: 4 + size * 8 + event,
  };
}

const NO_BYTES = new Uint8Array(0);
const NO_U16 = new Uint16Array(0);
const NO_U32 = new Uint32Array(0);

/** Scratch for an indirect table that is not contiguous or not aligned. Used within one call only. */
const scratchBytes = new Uint8Array(CHAIN_DESCRIPTORS_MAX * DESCRIPTOR_BYTES);
const scratchWords = new Uint32Array(scratchBytes.buffer);

/** One queue. */
export class VirtQueue {
  /** Requests taken and not yet given back. */
  inFlightCount = 0;
  /** Next entry of the available ring to take. */
  availableIndex = 0;
  /** Used elements of a queue whose front end is gone are dropped: the next back end does them again. */
  isAbandoned = false;
  /** Guest address of the used ring for the dirty log, or −1 where its writes are not logged. */
  usedLogAddress = -1;
  /** Link in the owner's list of queues with a batch. */
  nextWithBatch: VirtQueue | null = null;
  /** For the owner: the queue is in that list. */
  isListed = false;

  readonly #owner: QueueOwner;
  readonly #memory: GuestMemory;
  readonly #log: DirtyLog;
  #size = 0;
  #mask = 0;
  #eventIndex = false;
  #indirect = false;
  #inflight: InflightQueue | null = null;
  /** One byte per head: 1 while in flight. */
  #busy: Uint8Array<ArrayBuffer> = NO_BYTES;

  // Views of the ring's parts, and where each begins, in units of its view.
  #descriptors: Uint32Array<ArrayBuffer> = NO_U32;
  #descriptorsAt = 0;
  #available: Uint16Array<ArrayBuffer> = NO_U16;
  #availableAt = 0;
  #used: Uint16Array<ArrayBuffer> = NO_U16;
  #usedAt = 0;
  #usedElements: Uint32Array<ArrayBuffer> = NO_U32;
  #usedElementsAt = 0;

  /** The driver's idx, as last seen. */
  #availableSeen = 0;
  /** Next element of the used ring to write. */
  #usedIndex = 0;
  /** The used ring's idx, as last published. */
  #usedPublished = 0;
  /** Heads of the batch, as far as it is not published. */
  #batch: Uint16Array<ArrayBuffer> = NO_U16;
  #batchCount = 0;
  /** A batch was published early, and its call is still to be made. */
  #isCallOwed = false;
  /** Value last stored in avail_event, or −1. */
  #availEvent = -1;
  /** Heads to do again after a restart, and how far that is. */
  #again: Uint16Array<ArrayBuffer> = NO_U16;
  #againCount = 0;
  #againIndex = 0;

  /**
   * @param index the queue's number in its device
   * @param owner told of batches
   * @param memory for descriptors and indirect tables
   * @param log for writes to the used ring
   */
  constructor(readonly index: number, owner: QueueOwner, memory: GuestMemory, log: DirtyLog) {
    this.#owner = owner;
    this.#memory = memory;
    this.#log = log;
  }

  /** Descriptors. */
  get size(): number {
    return this.#size;
  }

  /** Elements pushed and not yet published. */
  get batchCount(): number {
    return this.#batchCount;
  }

  /**
   * Starts the queue: takes the used ring's idx from guest memory, finds what is to be done again, and where to go
   * on. Nothing may be in flight.
   *
   * @param base entry of the available ring to begin with, unless an inflight area tells
   */
  start(setup: RingSetup, base: number): void {
    const { size } = setup;
    if (this.#busy.length !== size) {
      this.#busy = new Uint8Array(size);
      this.#batch = new Uint16Array(size);
      this.#again = new Uint16Array(size);
    }
    this.#busy.fill(0);
    this.#size = size;
    this.#mask = size - 1;
    this.#eventIndex = setup.eventIndex;
    this.#indirect = setup.indirect;
    this.#inflight = setup.inflight;
    this.place(setup);
    this.inFlightCount = 0;
    this.isAbandoned = false;
    this.#batchCount = 0;
    this.#isCallOwed = false;
    this.#againIndex = 0;
    const usedIndex = Atomics.load(this.#used, this.#usedAt + 1);
    this.#usedIndex = usedIndex;
    this.#usedPublished = usedIndex;
    this.#againCount = setup.inflight === null
      ? 0
      : setup.inflight.recover(usedIndex, size, this.#again);
    // Every entry before this one is used or in flight: that is how the old process left it. The area knows that better than a
    // front end that has asked a back end which had never seen the ring.
    const isKept = setup.inflight?.wasFresh === false;
    this.availableIndex = isKept ? (usedIndex + this.#againCount) & 0xffff : base;
    this.#availableSeen = this.availableIndex;
    this.#availEvent = -1;
  }

  /** Uses other places for the same ring: memory was mapped anew. The indices stay. */
  place(places: Pick<RingSetup, "descriptors" | "available" | "used">): void {
    const { descriptors, available, used } = places;
    const windows = this.#memory.windows;
    this.#descriptors = windows[descriptors.window].u32;
    this.#descriptorsAt = descriptors.offset >>> 2;
    this.#available = windows[available.window].u16;
    this.#availableAt = available.offset >>> 1;
    this.#used = windows[used.window].u16;
    this.#usedAt = used.offset >>> 1;
    this.#usedElements = windows[used.window].u32;
    this.#usedElementsAt = (used.offset + 4) >>> 2;
  }

  /**
   * True when what the driver waits for cannot be told: the ring was in use before it was started, there is something to do, and
   * the front end has brought an inflight area that nobody has used. So does one that a guest has just moved to. QEMU (before
   * 10.1) lets it move though its back end has died, with the used ring's idx for the place to go on at; but what was used
   * need not be what was available first, so that from there on some requests would be done that are done, whose memory the
   * guest uses for something else, and others never. Where the back end before had ended in good order, nothing was under way,
   * and that place is right: that is for the caller to know.
   */
  get isUnaccounted(): boolean {
    const isFresh = this.#inflight?.wasFresh === true;
    return isFresh && this.#usedIndex !== 0 &&
      Atomics.load(this.#available, this.#availableAt + 1) !== this.availableIndex;
  }

  /** The ring does not run. Whoever starts it next has to see by its area, too, that nobody has. */
  leaveUnaccounted(): void {
    this.#inflight?.leaveFresh();
  }

  /** Requests of the back end before are still to be taken: they lie before the place where the ring goes on. */
  get isOwing(): boolean {
    return this.#againIndex < this.#againCount;
  }

  /** True when the ring was in use before it was started: then the driver may have missed a call. */
  get wasUsed(): boolean {
    return this.#usedIndex !== 0 || this.#againCount > 0;
  }

  /**
   * Takes the next chain: first those to be done again, then those available.
   *
   * @param chain receives the copy; valid until the next call with it
   * @returns a {@linkcode Pop}, or a negative {@linkcode RingFault}
   */
  pop(chain: DescriptorChain): number {
    if (this.isOwing) {
      const fault = this.#take(this.#again[this.#againIndex], chain);
      if (fault !== RingFault.None) return fault;
      this.#againIndex++;
      return Pop.Chain;
    }
    if (this.#availableSeen === this.availableIndex) {
      this.#availableSeen = Atomics.load(this.#available, this.#availableAt + 1);
      const waiting = (this.#availableSeen - this.availableIndex) & 0xffff;
      if (waiting === 0) return Pop.Empty;
      if (waiting > this.#size) {
        this.#availableSeen = this.availableIndex;
        return RingFault.AvailableJump;
      }
    }
    const head = this.#available[this.#availableAt + 2 + (this.availableIndex & this.#mask)];
    const fault = this.#take(head, chain);
    if (fault !== RingFault.None) return fault;
    this.availableIndex = (this.availableIndex + 1) & 0xffff;
    if (this.#inflight !== null) this.#inflight.taken(head);
    return Pop.Chain;
  }

  #take(head: number, chain: DescriptorChain): RingFault {
    if (head >= this.#size) return RingFault.HeadRange;
    if (this.#busy[head] !== 0) return RingFault.HeadInFlight;
    chain.head = head;
    const fault = this.#copyChain(head, chain);
    if (fault !== RingFault.None) return fault;
    this.#busy[head] = 1;
    this.inFlightCount++;
    return RingFault.None;
  }

  #copyChain(head: number, chain: DescriptorChain): RingFault {
    let table = this.#descriptors;
    let tableAt = this.#descriptorsAt;
    let tableSize = this.#size;
    let isIndirect = false;
    let index = head;
    // Descriptors looked at in this table: more than it has means a loop.
    let visited = 0;
    let count = 0;
    let readableCount = 0;
    let readableBytes = 0;
    let writableBytes = 0;
    for (;;) {
      if (visited++ === tableSize) return RingFault.ChainLoop;
      const at = tableAt + index * 4;
      const address = table[at + 1] * 2 ** 32 + table[at];
      const length = table[at + 2];
      const word = table[at + 3];
      if ((word & FLAG_INDIRECT) !== 0) {
        const fault = this.#checkIndirect(word, length, isIndirect);
        if (fault !== RingFault.None) return fault;
        const memory = this.#memory;
        if (!memory.find(address, length)) return RingFault.IndirectAddress;
        if (memory.contiguousBytes === length && memory.offset % 4 === 0) {
          table = memory.windows[memory.window].u32;
          tableAt = memory.offset >>> 2;
        } else {
          if (!copyOut(memory, address, length, scratchBytes)) return RingFault.IndirectAddress;
          table = scratchWords;
          tableAt = 0;
        }
        tableSize = length / DESCRIPTOR_BYTES;
        isIndirect = true;
        index = 0;
        visited = 0;
        continue;
      }
      if (count === CHAIN_DESCRIPTORS_MAX) return RingFault.ChainLong;
      chain.addresses[count] = address;
      chain.lengths[count] = length;
      if ((word & FLAG_WRITE) !== 0) writableBytes += length;
      else {
        if (readableCount !== count) return RingFault.WritableBeforeReadable;
        readableCount++;
        readableBytes += length;
      }
      count++;
      if ((word & FLAG_NEXT) === 0) break;
      index = word >>> 16;
      if (index >= tableSize) return RingFault.NextRange;
    }
    chain.count = count;
    chain.readableCount = readableCount;
    chain.readableBytes = readableBytes;
    chain.writableBytes = writableBytes;
    return RingFault.None;
  }

  #checkIndirect(word: number, length: number, isIndirect: boolean): RingFault {
    if (!this.#indirect) return RingFault.IndirectOff;
    if (isIndirect) return RingFault.IndirectNested;
    if ((word & FLAG_NEXT) !== 0) return RingFault.IndirectWithNext;
    if (
      length === 0 || length % DESCRIPTOR_BYTES !== 0 ||
      length > CHAIN_DESCRIPTORS_MAX * DESCRIPTOR_BYTES
    ) return RingFault.IndirectSize;
    return RingFault.None;
  }

  /**
   * Gives a chain back. The driver sees it after the next {@linkcode publish}.
   *
   * @param head of a chain that {@linkcode pop} took, exactly once
   * @param length bytes written to its buffers
   */
  push(head: number, length: number): void {
    this.#busy[head] = 0;
    this.inFlightCount--;
    if (this.isAbandoned) {
      if (this.inFlightCount === 0) this.#owner.queueNeedsTurn(this);
      return;
    }
    // Only a driver that offers a head again before it was given it back can fill a batch to the brim.
    if (this.#batchCount === this.#size) this.#isCallOwed = this.publish();
    const at = this.#usedElementsAt + (this.#usedIndex & this.#mask) * 2;
    this.#usedElements[at] = head;
    this.#usedElements[at + 1] = length;
    if (this.usedLogAddress >= 0) {
      this.#log.mark(this.usedLogAddress + 4 + (this.#usedIndex & this.#mask) * 8, 8);
    }
    this.#usedIndex = (this.#usedIndex + 1) & 0xffff;
    this.#batch[this.#batchCount++] = head;
    if (this.#inflight !== null) this.#inflight.used(head);
    if (this.#batchCount === 1) this.#owner.queueNeedsTurn(this);
  }

  /** A chain that was taken cannot be answered. It stays in flight for whoever recovers the queue. */
  forget(head: number): void {
    this.#busy[head] = 0;
    this.inFlightCount--;
  }

  /**
   * Shows the batch to the driver.
   *
   * @returns whether the driver wants to be called
   */
  publish(): boolean {
    if (this.#batchCount === 0) return false;
    const before = this.#usedPublished;
    const now = this.#usedIndex;
    // Release: the elements come first. On x86 this is also the fence before the load of used_event.
    Atomics.store(this.#used, this.#usedAt + 1, now);
    this.#usedPublished = now;
    if (this.#inflight !== null) this.#inflight.published(this.#batch, this.#batchCount, now);
    if (this.usedLogAddress >= 0) this.#log.mark(this.usedLogAddress + 2, 2);
    this.#batchCount = 0;
    if (this.#isCallOwed) {
      this.#isCallOwed = false;
      return true;
    }
    if (this.#eventIndex) {
      const event = Atomics.load(this.#available, this.#availableAt + 2 + this.#size);
      return ((now - event - 1) & 0xffff) < ((now - before) & 0xffff);
    }
    return (Atomics.load(this.#available, this.#availableAt) & AVAIL_NO_INTERRUPT) === 0;
  }

  /** While chains are being taken, kicks are of no use. With event indices there is nothing to do. */
  suppressKicks(): void {
    if (this.#eventIndex) return;
    this.#used[this.#usedAt] = USED_NO_NOTIFY;
    if (this.usedLogAddress >= 0) this.#log.mark(this.usedLogAddress, 2);
  }

  /**
   * Somebody looks for chains until {@linkcode enableKicks}. What that asked for before is taken back: the chain that it is for has not
   * come yet, as where a sleep has ended because a request was done.
   */
  dropKicks(): void {
    if (!this.#eventIndex) return this.suppressKicks();
    if (this.#availEvent !== this.availableIndex) return;
    // The chain taken last: the driver passes that again only after 65536 others. Where it sees this late, a kick comes for nothing.
    this.#availEvent = (this.availableIndex - 1) & 0xffff;
    this.#used[this.#usedAt + 2 + this.#size * 4] = this.#availEvent;
    if (this.usedLogAddress >= 0) this.#log.mark(this.usedLogAddress + 4 + this.#size * 8, 2);
  }

  /** Whether chains wait to be taken. */
  get hasAvailable(): boolean {
    return Atomics.load(this.#available, this.#availableAt + 1) !== this.availableIndex;
  }

  /**
   * Asks for a kick on the next chain, then looks once more.
   *
   * @returns true when something is available after all: no kick may come for that
   */
  enableKicks(): boolean {
    if (!this.#eventIndex) {
      Atomics.store(this.#used, this.#usedAt, 0);
      if (this.usedLogAddress >= 0) this.#log.mark(this.usedLogAddress, 2);
    } else if (this.#availEvent !== this.availableIndex) {
      this.#availEvent = this.availableIndex;
      Atomics.store(this.#used, this.#usedAt + 2 + this.#size * 4, this.availableIndex);
      if (this.usedLogAddress >= 0) this.#log.mark(this.usedLogAddress + 4 + this.#size * 8, 2);
    }
    // A full fence lies between that store and this load: see the top of the file.
    return this.hasAvailable;
  }
}

/** Copies a guest range into `target`, across pieces. False when part of it is in no region. */
export function copyOut(
  memory: GuestMemory,
  address: number,
  length: number,
  target: Uint8Array<ArrayBuffer>,
): boolean {
  let done = 0;
  while (done < length) {
    if (!memory.find(address + done, length - done)) return false;
    const bytes = memory.windows[memory.window].bytes;
    for (let end = memory.offset + memory.contiguousBytes, at = memory.offset; at < end;) {
      target[done++] = bytes[at++];
    }
  }
  return true;
}
