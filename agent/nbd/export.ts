/**
 * What all connections to one export share: the slots of the one virtqueue behind it, and who may use them now.
 *
 *     Transmission ─ take, submit ─▶ ExportQueue ─▶ BlockPort (a virtqueue)
 *     Transmission ◀─ pieceDone ──── reap ◀─────────┘
 *
 * Invariants:
 * - A slot belongs to one piece of one request from `take` until its owner releases it or submits it again.
 * - An owner that cannot go on says so ({@linkcode ExportQueue.block}), and is asked again in the order in which owners said
 *   it: no connection keeps the others out.
 * - What reads and writes the same sectors again (a write of part of a sector) is alone: it begins when nothing is under way, and
 *   nothing begins before it is done. Such clients are rare, and whoever wants speed writes whole sectors.
 *
 * @module
 */

/** Types of virtio-blk requests (VIRTIO_BLK_T_…). */
export const enum BlockType {
  In = 0,
  Out = 1,
  Flush = 4,
  Discard = 11,
  WriteZeroes = 13,
}

/** What a virtqueue offers: `DriverQueue` of `frontend/driver_queue.ts`, or a test's. */
export interface BlockPort {
  /** Requests that can be under way. */
  readonly slotCount: number;
  /** Bytes of each slot's data buffer: a multiple of 4096. */
  readonly bufferBytes: number;
  /** A slot, or −1 when all are taken. */
  takeSlot(): number;
  releaseSlot(slot: number): void;
  /** Where a slot's data lies in the shared memory. */
  dataOffset(slot: number): number;
  submit(slot: number, type: number, sector: number, lengthBytes: number): void;
  submitRange(
    slot: number,
    type: number,
    range: { readonly sector: number; readonly sectorCount: number; readonly unmap: boolean },
  ): void;
  /** 0: it succeeded; 2: the device does not know it; anything else: it failed. */
  status(slot: number): number;
  /** A slot whose request is done, or −1. */
  reap(): number;
}

/** Who uses slots: a connection. */
export interface SlotOwner {
  /**
   * The piece in a slot is done; the slot is the owner's again.
   *
   * @param status as {@linkcode BlockPort.status} says it
   */
  pieceDone(slot: number, status: number): void;
  /** Try again what could not go on. */
  step(): void;
}

/** See the head of the file. */
export class ExportQueue {
  /** The memory in which slots' data lies. */
  readonly bytes: Uint8Array<ArrayBuffer>;
  /** Longest piece. */
  readonly pieceBytes: number;
  /** Bytes of the longest discard and write-zeroes. */
  readonly rangeBytes: number;
  /** Rises when a change of the data begins, and when it ends: whoever remembers what it looked like compares. */
  changes = 0;
  readonly #port: BlockPort;
  readonly #owners: (SlotOwner | null)[];
  readonly #isChange: Uint8Array;
  #inFlight = 0;
  #blocked: SlotOwner[] = [];
  #stepping: SlotOwner[] = [];
  readonly #served: SlotOwner[] = [];
  #isResuming = false;
  /** Slots that were ever taken. */
  #takes = 0;
  #alone: SlotOwner | null = null;
  #wantsAlone: SlotOwner | null = null;

  /**
   * @param options.bytes the port's shared memory
   * @param options.rangeBytes longest discard or write-zeroes of the device, a multiple of 4096
   */
  constructor(
    options: {
      readonly port: BlockPort;
      readonly bytes: Uint8Array<ArrayBuffer>;
      readonly rangeBytes: number;
    },
  ) {
    this.#port = options.port;
    this.bytes = options.bytes;
    this.pieceBytes = options.port.bufferBytes;
    this.rangeBytes = options.rangeBytes;
    this.#isChange = new Uint8Array(options.port.slotCount);
    this.#owners = new Array(options.port.slotCount).fill(null);
  }

  /** Pieces under way. */
  get inFlight(): number {
    return this.#inFlight;
  }

  /** A slot for `owner`, or −1: there is none now, or it is not its turn. */
  take(owner: SlotOwner): number {
    if (this.#alone !== owner) {
      if (this.#alone !== null || this.#wantsAlone !== null) return -1;
      // Not before those who wait: their turn is in `resume`.
      if (this.#blocked.length > 0 && !this.#isResuming) return -1;
    }
    const slot = this.#port.takeSlot();
    if (slot < 0) return -1;
    this.#owners[slot] = owner;
    this.#takes++;
    return slot;
  }

  /** Gives a slot back that is not under way. */
  release(slot: number): void {
    this.#owners[slot] = null;
    this.#port.releaseSlot(slot);
  }

  /** Where a slot's data lies in {@linkcode bytes}. */
  dataOffset(slot: number): number {
    return this.#port.dataOffset(slot);
  }

  /** Queues a read, a write or a flush; whole sectors. The port's publishing is the caller's. */
  submit(slot: number, type: BlockType, offsetBytes: number, lengthBytes: number): void {
    this.#inFlight++;
    this.#isChange[slot] = type === BlockType.Out ? 1 : 0;
    this.changes += this.#isChange[slot];
    this.#port.submit(slot, type, offsetBytes / SECTOR_BYTES, lengthBytes);
  }

  /** Queues a discard or write-zeroes of whole sectors, of {@linkcode rangeBytes} at the most. */
  submitRange(
    slot: number,
    type: BlockType.Discard | BlockType.WriteZeroes,
    range: { readonly offsetBytes: number; readonly lengthBytes: number; readonly unmap: boolean },
  ): void {
    this.#inFlight++;
    this.#isChange[slot] = 1;
    this.changes++;
    this.#port.submitRange(slot, type, {
      sector: range.offsetBytes / SECTOR_BYTES,
      sectorCount: range.lengthBytes / SECTOR_BYTES,
      unmap: range.unmap,
    });
  }

  /** Hands out what is done. Returns how many pieces that were. */
  reap(): number {
    let count = 0;
    for (;;) {
      const slot = this.#port.reap();
      if (slot < 0) return count;
      count++;
      this.#inFlight--;
      this.changes += this.#isChange[slot];
      this.#owners[slot]!.pieceDone(slot, this.#port.status(slot));
    }
  }

  /** `owner` cannot go on: it is stepped by the next {@linkcode resume}. */
  block(owner: SlotOwner): void {
    if (!this.#blocked.includes(owner)) this.#blocked.push(owner);
  }

  /** Steps whoever could not go on. Once a turn. */
  resume(): void {
    if (this.#blocked.length === 0) return;
    const stepping = this.#blocked;
    this.#blocked = this.#stepping;
    this.#stepping = stepping;
    this.#isResuming = true;
    for (let i = 0; i < stepping.length; i++) {
      const owner = stepping[i];
      const before = this.#takes;
      owner.step();
      // Whoever has got slots and wants more waits behind those who have got none.
      if (this.#takes > before && this.#blocked.at(-1) === owner) {
        this.#served.push(this.#blocked.pop()!);
      }
    }
    this.#isResuming = false;
    stepping.length = 0;
    for (let i = 0; i < this.#served.length; i++) this.#blocked.push(this.#served[i]);
    this.#served.length = 0;
  }

  /** True once `owner` has the export for itself; until then nothing new begins, and it has to ask again. */
  isAlone(owner: SlotOwner): boolean {
    if (this.#alone === owner) return true;
    if (this.#alone !== null) return false;
    this.#wantsAlone ??= owner;
    if (this.#wantsAlone !== owner || this.#inFlight > 0) return false;
    this.#wantsAlone = null;
    this.#alone = owner;
    return true;
  }

  /** The others may go on. Also for an owner that ends while it is alone, or waits to be. */
  endAlone(owner: SlotOwner): void {
    if (this.#wantsAlone === owner) this.#wantsAlone = null;
    if (this.#alone === owner) this.#alone = null;
  }

  /** `owner` is gone, and nothing of it is under way. */
  forget(owner: SlotOwner): void {
    this.endAlone(owner);
    const at = this.#blocked.indexOf(owner);
    if (at >= 0) this.#blocked.splice(at, 1);
  }
}

/** Bytes of a sector, the unit of addresses. */
export const SECTOR_BYTES = 512;
