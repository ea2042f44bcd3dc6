/**
 * The transfers that all volumes of one worker share, and who waits for one.
 *
 * A transfer is one store operation with its arena buffer, on behalf of one guest request. Their number and
 * the arena bytes they hold are bounded per class, so that no class can starve another: when the store is
 * full, writes wait and hold what writes may hold, while reads, discards and flushes go on. A transfer is made when more
 * are under way than ever before, and then kept: a worker with little to do starts at once and stays small.
 *
 * Invariants:
 * - A volume waits at most once per class, in a queue that is served in turn: as much of one request each as there is room for.
 * - What is released is offered to the longest waiter before anyone new can take it.
 * - Whose turn it is keeps it until there is room for something of its request, so that large requests find room beside any
 *   number of small ones; but for a lack of the arena itself, which other classes share and this one's releases may not end.
 * - No volume takes more of a class than half of what it leaves, and the last of it is for those that have nothing, in small pieces.
 *   What waits for copies that are not there (hosts are dead) holds its transfers for hours if need be: disks that have all they need
 *   go on beside dozens of those. Whoever has its share is passed over.
 *
 * @module
 */
import type { BlockRequest } from "../blk/target.ts";
import { TRANSFER_BLOCKS_MAX, TRANSFER_BYTES_MAX } from "../base/limits.ts";
import { Operation, type OperationOwner } from "../store/operation.ts";

/** The part of `base/arena.ts` that transfers use. */
export interface BufferSource {
  /** Arena offset of at least `lengthBytes` bytes, or −1. */
  allocate(lengthBytes: number): number;
  release(offset: number, lengthBytes: number): void;
  /** Bytes that there are, used or not, but for what is reserved for good; left out: enough. */
  readonly roomBytes?: number;
}

/** Classes of transfers, each with bounds of its own. */
export const enum TransferClass {
  Read = 0,
  Write = 1,
  /** Flush, discard, write-zeroes: no buffer. */
  Control = 2,
}

/**
 * Arena bytes that reads, and likewise writes, may hold: 24 of 64 MiB each, and less where the stores of many data paths have taken more
 * of it. The rest is for what comes from peers: nothing of a link is heard, answers included, before there is room for what is next on it.
 */
const BUFFER_BYTES_MAX = 24 * 1024 * 1024;
const BUFFER_SHARE = 3 / 8;
/** Transfers per class: a few full queues of 4 KiB requests. A transfer is about 1.3 KiB. */
export const TRANSFERS_MAX: readonly number[] = [1024, 1024, 256];

/**
 * How much of a class one volume may have, as a part of what is left of it: the "dynamic threshold" of shared buffers in switches. One
 * that is alone has a third, which is more than a disk needs to be busy; of n that give nothing back the last leave (2/3)ⁿ.
 */
const SHARE = 1 / 2;
/** What only those take that have nothing of the class: transfers, and bytes of their buffers, with so many at a time. */
const RESERVED: readonly number[] = [64, 64, 16];
const RESERVED_BYTES = 2 * 1024 * 1024;
const RESERVED_BYTES_EACH = 64 * 1024;

/** How far a transfer is. */
export const enum TransferState {
  Free,
  /** Waits for overlapping writes to end before it may start. */
  Blocked,
  /** Reads the old content of a partly written block. */
  Filling,
  /** Its operation is with the store. */
  Issued,
}

/** One transfer. Belongs to the pool; a volume holds it while its operation is under way. */
export class Transfer {
  readonly operation: Operation;
  volume: TransferOwner | null = null;
  request: BlockRequest | null = null;
  state: TransferState = TransferState.Free;
  /** First segment of the request that this transfer touches, and bytes of it to skip. */
  segment = 0;
  segmentBytes = 0;
  /** Guest bytes of this transfer. */
  lengthBytes = 0;
  /** Bytes between the start of the first block and the first guest byte. */
  headBytes = 0;
  /** Read into whole blocks of guest memory: block that the cursor is at, its segment, and bytes of that to skip. */
  cursorBlock = 0;
  cursorSegment = 0;
  cursorBytes = 0;
  /** Arena bytes held. */
  bufferBytes = 0;
  /** Place in the volume's list of active writes, or −1. */
  activeIndex = -1;

  constructor(readonly index: number, readonly transferClass: TransferClass, pool: OperationOwner) {
    this.operation = new Operation(
      pool,
      transferClass === TransferClass.Write ? TRANSFER_BLOCKS_MAX : 1,
    );
    this.operation.tag = index;
  }
}

/** What came of a volume's turn. */
export const enum Resumed {
  /** No request of the class waits any more. */
  Done,
  /** Something was issued, or could not be for the volume's own reasons; requests wait on. */
  Waits,
  /** There was no room for anything of the request. */
  NoRoom,
}

/** A volume, seen from the pool. */
export interface TransferOwner {
  /** Transfers that it has, by class, and bytes of their buffers. The pool counts here. */
  readonly held: [number, number, number];
  readonly heldBytes: [number, number, number];
  /** Bytes of the buffer that it was refused last, by class; 0: it has got what it asked for. Kept here by the pool, too. */
  readonly refusedBytes: [number, number, number];
  /** The transfer's operation is done. */
  transferDone(transfer: Transfer): void;
  /** There may be room again: issue for the longest waiting request of the class. */
  resume(transferClass: TransferClass): Resumed;
  /** Gives a request back that needed no transfer. */
  finish(request: BlockRequest): void;
}

/** All transfers of one worker. */
export class TransferPool implements OperationOwner {
  /** Transfers taken so far; only rises. */
  taken = 0;
  readonly #transfers: Transfer[] = [];
  readonly #free: Transfer[][] = [[], [], []];
  /** Transfers of each class that there are: only as many as were under way at once so far. */
  readonly #made = [0, 0, 0];
  readonly #bufferBytes = [0, 0, 0];
  readonly #waiting: TransferOwner[][] = [[], [], []];
  /** The last `take` failed because the arena had no room, though the class has. */
  #isArenaShort = false;
  /** …or because the volume has its share. */
  #isShareTaken = false;
  /** Pairs of volume and request. */
  readonly #finished: (TransferOwner | BlockRequest)[] = [];

  constructor(readonly buffers: BufferSource) {}

  /** Bytes that each class may hold. */
  get #bytesMax(): number {
    return Math.min(BUFFER_BYTES_MAX, BUFFER_SHARE * (this.buffers.roomBytes ?? Infinity));
  }

  /**
   * Takes a transfer for `volume` with a buffer of `bufferBytes` (0: none), or null when the class is at its bound, or the volume
   * has its share of it: then {@linkcode wait}.
   */
  take(volume: TransferOwner, transferClass: TransferClass, bufferBytes: number): Transfer | null {
    this.#isArenaShort = false;
    volume.refusedBytes[transferClass] = bufferBytes;
    this.#isShareTaken = this.#hasShare(volume, transferClass, bufferBytes);
    if (this.#isShareTaken) return null;
    const free = this.#free[transferClass];
    if (free.length === 0 && this.#made[transferClass] === TRANSFERS_MAX[transferClass]) {
      return null;
    }
    let buffer = 0;
    if (bufferBytes > 0) {
      if (this.#bufferBytes[transferClass] + bufferBytes > this.#bytesMax) return null;
      buffer = this.buffers.allocate(bufferBytes);
      this.#isArenaShort = buffer < 0;
      if (buffer < 0) return null;
      this.#bufferBytes[transferClass] += bufferBytes;
    }
    const transfer = free.pop() ?? this.#make(transferClass);
    this.taken++;
    transfer.operation.buffer = buffer;
    transfer.bufferBytes = bufferBytes;
    transfer.volume = volume;
    volume.refusedBytes[transferClass] = 0;
    volume.held[transferClass]++;
    volume.heldBytes[transferClass] += bufferBytes;
    return transfer;
  }

  /** Bytes of the longest buffer of a class that is to be asked for now. */
  mostBytes(transferClass: TransferClass): number {
    const left = this.#bytesMax - RESERVED_BYTES - this.#bufferBytes[transferClass];
    return left < TRANSFER_BYTES_MAX ? RESERVED_BYTES_EACH : TRANSFER_BYTES_MAX;
  }

  #hasShare(volume: TransferOwner, transferClass: TransferClass, bufferBytes: number): boolean {
    const held = volume.held[transferClass];
    if (held === 0) return false;
    const taken = this.#made[transferClass] - this.#free[transferClass].length;
    if (held >= SHARE * (TRANSFERS_MAX[transferClass] - RESERVED[transferClass] - taken)) {
      return true;
    }
    const leftBytes = this.#bytesMax - RESERVED_BYTES - this.#bufferBytes[transferClass] -
      bufferBytes;
    return bufferBytes > 0 && volume.heldBytes[transferClass] + bufferBytes > SHARE * leftBytes;
  }

  #make(transferClass: TransferClass): Transfer {
    this.#made[transferClass]++;
    const transfer = new Transfer(this.#transfers.length, transferClass, this);
    this.#transfers.push(transfer);
    return transfer;
  }

  /** Puts the volume at the end of the class's queue. It must not be in it already. */
  wait(transferClass: TransferClass, volume: TransferOwner): void {
    this.#waiting[transferClass].push(volume);
  }

  /** True when someone waits: new requests queue behind. */
  isContended(transferClass: TransferClass): boolean {
    return this.#waiting[transferClass].length > 0;
  }

  /** Gives a transfer and its buffer back, and lets the longest waiter go on. */
  release(transfer: Transfer): void {
    const transferClass = transfer.transferClass;
    if (transfer.bufferBytes > 0) {
      this.buffers.release(transfer.operation.buffer, transfer.bufferBytes);
      this.#bufferBytes[transferClass] -= transfer.bufferBytes;
    }
    const volume = transfer.volume!;
    volume.held[transferClass]--;
    volume.heldBytes[transferClass] -= transfer.bufferBytes;
    transfer.volume = null;
    transfer.request = null;
    transfer.state = TransferState.Free;
    this.#free[transferClass].push(transfer);
    this.#offer(transferClass);
  }

  /** Gives those that wait their turns, once each, as far as there is room. */
  #offer(transferClass: TransferClass): void {
    const waiting = this.#waiting[transferClass];
    for (let left = waiting.length; left > 0; left--) {
      const volume = waiting[0];
      const bytes = Math.min(volume.refusedBytes[transferClass], this.mostBytes(transferClass));
      // Not even asked: to find out what it needs may be work (zeros are looked for), and this is for each request of the others.
      if (this.#hasShare(volume, transferClass, bytes)) {
        waiting.push(waiting.shift()!);
        continue;
      }
      const resumed = volume.resume(transferClass);
      if (resumed === Resumed.NoRoom && !this.#isArenaShort && !this.#isShareTaken) return;
      // What it may have registered anew is behind it.
      waiting.shift();
      if (resumed !== Resumed.Done) waiting.push(volume);
    }
  }

  /** The transfer that an operation belongs to. */
  transferOf(operation: Operation): Transfer {
    return this.#transfers[operation.tag];
  }

  /** Lets the volume finish the request at the end of this turn. */
  finishLater(volume: TransferOwner, request: BlockRequest): void {
    this.#finished.push(volume, request);
  }

  /**
   * End of a turn. Finishes what needed no transfer, and offers room to the waiters of each class: the arena may have
   * been short because of another class, whose releases do not wake this one.
   */
  endTurn(): void {
    for (let i = 0; i < this.#finished.length; i += 2) {
      (this.#finished[i] as TransferOwner).finish(this.#finished[i + 1] as BlockRequest);
    }
    this.#finished.length = 0;
    for (let transferClass = 0; transferClass < this.#waiting.length; transferClass++) {
      this.#offer(transferClass);
    }
  }

  /** From the store. */
  operationDone(operation: Operation): void {
    const transfer = this.#transfers[operation.tag];
    transfer.volume!.transferDone(transfer);
  }
}
