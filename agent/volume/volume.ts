/**
 * One disk on this node: turns guest requests of any size and alignment into store operations on whole
 * blocks of one chunk, in an order that keeps every guest promise.
 *
 * Invariants:
 * - Guest data is copied once, and what was copied is what gets checksummed and stored: the guest may change its
 *   buffer at any time.
 * - A request completes once, after all of its transfers have.
 * - A partly written block is read, merged and written as a whole. From its start to its end no other write,
 *   discard or zeroing of that block runs: otherwise the merge would bring back what the other replaced.
 *   Writes that overlap a merge wait for it in the order in which they came.
 * - Whole-block writes that overlap each other are not ordered (virtio leaves it open), but both reach the log, and
 *   the later record wins on every replica.
 * - FLUSH covers every write completed before it was submitted; a write with `forceUnitAccess` completes
 *   after a sync that covers it.
 * - Sequence numbers rise with every write, discard and zeroing of the disk.
 * - With `detectZeroes`, whole blocks of zeros that a guest writes are discarded in its place, in the same order and with the same
 *   promises. Whether they are zeros is judged where they lie in guest memory, once; a guest that changes them meanwhile has
 *   either. Not every block of zeros is found: see {@linkcode ZERO_RUN_BLOCKS_MIN}.
 *
 * - Service times are measured of the first few requests after each {@linkcode Volume.timeSome} only: few enough that the clock costs
 *   nothing, and all of them where there are few.
 *
 * A failed request is `−EIO` or `−EBADMSG`; nothing here retries, since the store (and later the replicas below it)
 * already has.
 *
 * @module
 */
import { BlockKind, type BlockRequest, type BlockTarget } from "../blk/target.ts";
import { BLOCK_BYTES, BLOCK_SHIFT, CHUNK_BYTES } from "../base/limits.ts";
import { type Window, type WindowVector } from "../platform/platform.ts";
import { type BlockSink, type Operation, OperationKind } from "../store/operation.ts";
import {
  Resumed,
  type Transfer,
  TransferClass,
  type TransferOwner,
  type TransferPool,
  TransferState,
} from "./transfer_pool.ts";
import { Throttle } from "./throttle.ts";

/** Where operations go: the replicas, or a store. */
export interface OperationSink {
  submit(operation: Operation): void;
  /**
   * A read came back damaged: it is tried elsewhere, and comes back once more.
   *
   * @returns false when there is nowhere else
   */
  recover?(operation: Operation): boolean;
}

/**
 * Transfers that one discard or write-zeroes request has under way at once: enough to fill a batch, few enough that
 * a 2 TiB discard leaves room for others.
 */
const RANGE_TRANSFERS_MAX = 64;

/**
 * Blocks of zeros in the middle of data that are worth a transfer and an entry in the log of their own, and another one for the
 * data behind them: 16 KiB. At the ends of a request, or of a transfer, any number is.
 */
const ZERO_RUN_BLOCKS_MIN = 4;

/** The kernel's zero test takes multiples of this many bytes. */
const KERNEL_BYTES = 16;

/** Requests that are measured after each {@linkcode Volume.timeSome}. */
const TIMED_MAX = 32;

/** First-in first-out list of requests, linked through `next`. */
class RequestQueue {
  head: BlockRequest | null = null;
  #tail: BlockRequest | null = null;

  push(request: BlockRequest): void {
    request.next = null;
    if (this.#tail === null) this.head = request;
    else this.#tail.next = request;
    this.#tail = request;
  }

  shift(): void {
    const head = this.head!;
    this.head = head.next;
    if (this.head === null) this.#tail = null;
    head.next = null;
  }
}

/** Counters of one volume; they only rise. */
export interface VolumeCounters {
  reads: number;
  writes: number;
  flushes: number;
  discards: number;
  readBytes: number;
  writtenBytes: number;
  errors: number;
  /** Requests whose service time was measured, and the sum of those times in milliseconds: from being taken to coming back. */
  timedRequests: number;
  timedMs: number;
  /** Requests that limits held back, and for how long any were, in milliseconds; the volume's throttle counts them. */
  heldRequests: number;
  heldMs: number;
}

/** Counters of a volume that has done nothing. */
export const VOLUME_COUNTERS_ZERO: Readonly<VolumeCounters> = {
  reads: 0,
  writes: 0,
  flushes: 0,
  discards: 0,
  readBytes: 0,
  writtenBytes: 0,
  errors: 0,
  timedRequests: 0,
  timedMs: 0,
  heldRequests: 0,
  heldMs: 0,
};

/** A disk, served from this worker. */
export class Volume implements BlockTarget, TransferOwner, BlockSink {
  sizeBytes: number;
  readonly serial: string;
  readonly readOnly = false;
  /** Layers, newest first; writes go to the first. Replaced as a whole on a snapshot. */
  layers: readonly number[];
  /** Blocks of zeros that guests write become holes. */
  detectZeroes = false;
  /** Fencing number of the lease now held. */
  generation = 0;
  /** Number of the last write. */
  sequence = 0;
  readonly counters: VolumeCounters = { ...VOLUME_COUNTERS_ZERO };
  /** Requests under way. */
  inFlight = 0;
  /** {@inheritDoc TransferOwner.held} */
  readonly held: [number, number, number] = [0, 0, 0];
  /** {@inheritDoc TransferOwner.heldBytes} */
  readonly heldBytes: [number, number, number] = [0, 0, 0];
  /** {@inheritDoc TransferOwner.refusedBytes} */
  readonly refusedBytes: [number, number, number] = [0, 0, 0];
  /** Requests that have come back, whatever their result. */
  finished = 0;
  /** Of all that come from front ends; what is submitted has been admitted. */
  readonly admission: Throttle = new Throttle();

  readonly #clock: (() => number) | null;
  /** Requests whose service time is measured until the next {@linkcode Volume.timeSome}. */
  #toTime = 0;
  readonly #windows: readonly Window[];
  readonly #arena: Window;
  readonly #pool: TransferPool;
  readonly #sink: OperationSink;
  readonly #waiting = [new RequestQueue(), new RequestQueue(), new RequestQueue()];
  /** Writes, discards and zeroings with the store or merging. */
  readonly #active: Transfer[] = [];
  /** Those that wait for overlapping ones, in order of arrival. */
  #blocked: Transfer[] = [];
  /** Merges among `#active` and `#blocked`: while there are none, nobody needs to look for overlaps. */
  #merges = 0;
  /** Where {@linkcode Volume.#scanBlock} looks next: a segment of the request, and bytes of it to skip. */
  #scanSegment = 0;
  #scanBytes = 0;

  constructor(options: {
    sizeBytes: number;
    serial: string;
    layers: readonly number[];
    windows: readonly Window[];
    pool: TransferPool;
    sink: OperationSink;
    /** A monotonic clock in milliseconds, above 0; left out: service times are not measured. */
    clock?: () => number;
  }) {
    this.sizeBytes = options.sizeBytes;
    this.serial = options.serial;
    this.layers = options.layers;
    this.#windows = options.windows;
    this.#arena = options.windows[0];
    this.#pool = options.pool;
    this.#sink = options.sink;
    this.#clock = options.clock ?? null;
  }

  /** Measures the service time of the next few requests; called a few times a second. */
  timeSome(): void {
    if (this.#clock !== null) this.#toTime = TIMED_MAX;
  }

  /** {@inheritDoc BlockTarget.submit} */
  submit(request: BlockRequest): void {
    request.issuedBytes = 0;
    request.issuedSegment = 0;
    request.issuedSegmentBytes = 0;
    request.pending = 0;
    request.isSyncOwed = false;
    request.result = 0;
    request.startedMs = 0;
    if (this.#toTime > 0) {
      this.#toTime--;
      request.startedMs = this.#clock!();
    }
    this.inFlight++;
    const transferClass = classOf(request);
    const queue = this.#waiting[transferClass];
    if (queue.head !== null) {
      queue.push(request);
    } else if (this.#pool.isContended(transferClass) || !this.#issue(request)) {
      queue.push(request);
      this.#pool.wait(transferClass, this);
    } else if (request.pending === 0) {
      // Nothing to do (a discard of less than a block): done, but not from inside this call.
      this.#pool.finishLater(this, request);
    }
  }

  /** {@inheritDoc TransferOwner.resume} */
  resume(transferClass: TransferClass): Resumed {
    const queue = this.#waiting[transferClass];
    const request = queue.head;
    if (request === null) return Resumed.Done;
    const issuedBytes = request.issuedBytes;
    if (!this.#issue(request)) {
      // A range waits for its own transfers when it has enough of them; whoever is behind it can go on.
      const isOwn = request.pending >= RANGE_TRANSFERS_MAX;
      return isOwn || request.issuedBytes > issuedBytes ? Resumed.Waits : Resumed.NoRoom;
    }
    queue.shift();
    // Looked at before the request may finish, which may queue its sync and register us anew.
    const isWaiting = queue.head !== null;
    if (request.pending === 0) this.finish(request);
    return isWaiting ? Resumed.Waits : Resumed.Done;
  }

  /** Issues as much of the request as there is room for; true when all of it is issued. */
  #issue(request: BlockRequest): boolean {
    if (request.isSyncOwed) {
      request.isSyncOwed = !this.#issueSync(request);
      return !request.isSyncOwed;
    }
    switch (request.kind) {
      case BlockKind.Read:
        return this.#issueRead(request);
      case BlockKind.Write:
        return this.#issueWrite(request);
      case BlockKind.Flush:
        return this.#issueSync(request);
      default:
        return this.#issueRange(request);
    }
  }

  #issueSync(request: BlockRequest): boolean {
    const transfer = this.#pool.take(this, TransferClass.Control, 0);
    if (transfer === null) return false;
    request.issuedBytes = request.lengthBytes;
    request.pending++;
    transfer.request = request;
    transfer.state = TransferState.Issued;
    transfer.operation.kind = OperationKind.Sync;
    this.#sink.submit(transfer.operation);
    return true;
  }

  #issueRead(request: BlockRequest): boolean {
    while (request.issuedBytes < request.lengthBytes) {
      const offset = request.offsetBytes + request.issuedBytes;
      const head = offset % BLOCK_BYTES;
      const length = Math.min(
        request.lengthBytes - request.issuedBytes,
        CHUNK_BYTES - offset % CHUNK_BYTES,
        this.#pool.mostBytes(TransferClass.Read) - head,
      );
      const blockCount = (head + length + BLOCK_BYTES - 1) >>> BLOCK_SHIFT;
      const transfer = this.#pool.take(this, TransferClass.Read, blockCount << BLOCK_SHIFT);
      if (transfer === null) return false;
      this.#prepare(transfer, request, offset, head, length, blockCount);
      transfer.operation.kind = OperationKind.Read;
      const fit = fitOf(transfer);
      transfer.operation.sink = fit === Fit.Parts ? null : this;
      transfer.operation.isPlaced = fit === Fit.Aligned;
      transfer.cursorBlock = 0;
      transfer.cursorSegment = transfer.segment;
      transfer.cursorBytes = transfer.segmentBytes;
      advanceSegments(request, length);
      transfer.state = TransferState.Issued;
      this.#sink.submit(transfer.operation);
    }
    return true;
  }

  #issueWrite(request: BlockRequest): boolean {
    while (request.issuedBytes < request.lengthBytes) {
      const offset = request.offsetBytes + request.issuedBytes;
      const head = offset % BLOCK_BYTES;
      let length = Math.min(
        request.lengthBytes - request.issuedBytes,
        CHUNK_BYTES - offset % CHUNK_BYTES,
        this.#pool.mostBytes(TransferClass.Write),
      );
      // A partly written block travels alone; what lies between two of them goes in whole blocks.
      if (head !== 0) length = Math.min(length, BLOCK_BYTES - head);
      else if (length > BLOCK_BYTES) length -= length % BLOCK_BYTES;
      const isMerge = length < BLOCK_BYTES;
      let isZero = false;
      if (this.detectZeroes && !isMerge) {
        const zeros = this.#zeroBlocks(request, offset);
        isZero = zeros > 0;
        length = (isZero ? zeros : this.#dataBlocks(request, length >>> BLOCK_SHIFT)) <<
          BLOCK_SHIFT;
      }
      const blockCount = isMerge ? 1 : length >>> BLOCK_SHIFT;
      const bufferBytes = isZero ? 0 : blockCount << BLOCK_SHIFT;
      const transfer = this.#pool.take(this, TransferClass.Write, bufferBytes);
      if (transfer === null) return false;
      this.#prepare(transfer, request, offset, head, length, blockCount);
      transfer.operation.kind = isZero ? this.#holeKind : OperationKind.Write;
      if (!isMerge && !isZero) this.#copyIn(transfer);
      advanceSegments(request, length);
      this.#start(transfer, isMerge);
    }
    return true;
  }

  /** Discard and write-zeroes: no data, so whole chunks at a time. */
  #issueRange(request: BlockRequest): boolean {
    const isDiscard = request.kind === BlockKind.Discard;
    const transferClass = classOf(request);
    // It has failed: the rest of a large one, which may take for ever, makes it no better.
    if (request.result !== 0) request.issuedBytes = request.lengthBytes;
    while (request.issuedBytes < request.lengthBytes) {
      if (request.pending >= RANGE_TRANSFERS_MAX) return false;
      const offset = request.offsetBytes + request.issuedBytes;
      const head = offset % BLOCK_BYTES;
      let length = Math.min(
        request.lengthBytes - request.issuedBytes,
        CHUNK_BYTES - offset % CHUNK_BYTES,
      );
      if (head !== 0) length = Math.min(length, BLOCK_BYTES - head);
      else if (length > BLOCK_BYTES) length -= length % BLOCK_BYTES;
      const issuedBytes = length;
      // Of the last block of a disk of an odd size there is no more than that: it goes as a whole.
      const isTail = isDiscard && head === 0 && offset + length === this.sizeBytes;
      if (isTail && length < BLOCK_BYTES) length = BLOCK_BYTES;
      const isPart = length < BLOCK_BYTES;
      if (isPart && isDiscard) {
        // A discard is a wish; part of a block cannot be given back.
        request.issuedBytes += length;
        continue;
      }
      const transfer = this.#pool.take(this, transferClass, isPart ? BLOCK_BYTES : 0);
      if (transfer === null) return false;
      const blockCount = isPart ? 1 : length >>> BLOCK_SHIFT;
      this.#prepare(transfer, request, offset, head, length, blockCount);
      transfer.operation.kind = isPart ? OperationKind.Write : this.#holeKind;
      request.issuedBytes += issuedBytes;
      this.#start(transfer, isPart);
    }
    return true;
  }

  /** What makes blocks read as zeros. Where older layers lie below, forgetting the blocks would bring their content back. */
  get #holeKind(): OperationKind {
    return this.layers.length > 1 ? OperationKind.Zero : OperationKind.Free;
  }

  /** Blocks of zeros that the rest of a write begins with, as far as its chunk goes. */
  #zeroBlocks(request: BlockRequest, offset: number): number {
    const left = request.lengthBytes - request.issuedBytes;
    const most = Math.min(left, CHUNK_BYTES - offset % CHUNK_BYTES) >>> BLOCK_SHIFT;
    this.#scanSegment = request.issuedSegment;
    this.#scanBytes = request.issuedSegmentBytes;
    let count = 0;
    while (count < most && this.#scanBlock(request)) count++;
    return count;
  }

  /**
   * Blocks of data that the rest of a write begins with, before zeros that are worth being cut out.
   *
   * @param most blocks to look at, 1 or more; the first is not looked at, since it is known not to be of zeros
   */
  #dataBlocks(request: BlockRequest, most: number): number {
    this.#scanSegment = request.issuedSegment;
    this.#scanBytes = request.issuedSegmentBytes;
    let zeros = 0;
    this.#scanBlock(request);
    for (let block = 1; block < most; block++) {
      zeros = this.#scanBlock(request) ? zeros + 1 : 0;
      if (zeros === ZERO_RUN_BLOCKS_MIN) return block + 1 - zeros;
    }
    return most - zeros;
  }

  /** Whether the next block of the request's data is of zeros; goes on to the one behind it. */
  #scanBlock(request: BlockRequest): boolean {
    const { segmentWindows, segmentOffsets, segmentLengths } = request;
    let isZero = true;
    for (let left = BLOCK_BYTES; left > 0;) {
      const segment = this.#scanSegment;
      const part = Math.min(left, segmentLengths[segment] - this.#scanBytes);
      if (isZero) {
        // Pieces of odd lengths are taken for data: no driver cuts blocks that way.
        const { kernel } = this.#windows[segmentWindows[segment]];
        isZero = part % KERNEL_BYTES === 0 &&
          kernel.isZero(segmentOffsets[segment] + this.#scanBytes, part);
      }
      left -= part;
      this.#scanBytes += part;
      if (this.#scanBytes === segmentLengths[segment]) {
        this.#scanSegment++;
        this.#scanBytes = 0;
      }
    }
    return isZero;
  }

  #prepare(
    transfer: Transfer,
    request: BlockRequest,
    offset: number,
    head: number,
    length: number,
    blockCount: number,
  ): void {
    request.pending++;
    transfer.request = request;
    transfer.segment = request.issuedSegment;
    transfer.segmentBytes = request.issuedSegmentBytes;
    transfer.lengthBytes = length;
    transfer.headBytes = head;
    const operation = transfer.operation;
    operation.isLeaseless = request.isLeaseless;
    const chunk = Math.floor(offset / CHUNK_BYTES);
    operation.layers = this.layers;
    operation.chunk = chunk;
    operation.block = (offset - chunk * CHUNK_BYTES) >>> BLOCK_SHIFT;
    operation.blockCount = blockCount;
    operation.next = null;
  }

  /** Starts a write, discard or zeroing, or lets it wait for those it must not overtake. */
  #start(transfer: Transfer, isMerge: boolean): void {
    if (isMerge) this.#merges++;
    transfer.state = isMerge ? TransferState.Filling : TransferState.Issued;
    if (
      this.#merges > 0 && (this.#overlapsBlocked(transfer, this.#blocked.length) ||
        this.#overlapsActive(transfer, isMerge))
    ) {
      transfer.state = TransferState.Blocked;
      this.#blocked.push(transfer);
      return;
    }
    this.#run(transfer, isMerge);
  }

  #run(transfer: Transfer, isMerge: boolean): void {
    transfer.activeIndex = this.#active.length;
    this.#active.push(transfer);
    const operation = transfer.operation;
    if (isMerge) {
      transfer.state = TransferState.Filling;
      operation.kind = OperationKind.Read;
      operation.sink = null;
      operation.isPlaced = false;
      this.#sink.submit(operation);
    } else this.#submitWrite(transfer);
  }

  #submitWrite(transfer: Transfer): void {
    transfer.state = TransferState.Issued;
    transfer.operation.generation = this.generation;
    transfer.operation.sequence = ++this.sequence;
    this.#sink.submit(transfer.operation);
  }

  /**
   * True when an active transfer forbids starting: one that overlaps, if either of the two is a merge.
   */
  #overlapsActive(transfer: Transfer, isMerge: boolean): boolean {
    for (let i = 0; i < this.#active.length; i++) {
      const other = this.#active[i];
      if ((isMerge || isMergeTransfer(other)) && overlaps(transfer.operation, other.operation)) {
        return true;
      }
    }
    return false;
  }

  #overlapsBlocked(transfer: Transfer, before: number): boolean {
    for (let i = 0; i < before; i++) {
      if (overlaps(transfer.operation, this.#blocked[i].operation)) return true;
    }
    return false;
  }

  /** Starts the blocked transfers that nothing forbids any more, in order. */
  #unblock(): void {
    const blocked = this.#blocked;
    let kept = 0;
    for (let i = 0; i < blocked.length; i++) {
      const transfer = blocked[i];
      const isMerge = isMergeTransfer(transfer);
      if (this.#overlapsBlocked(transfer, kept) || this.#overlapsActive(transfer, isMerge)) {
        blocked[kept++] = transfer;
      } else this.#run(transfer, isMerge);
    }
    blocked.length = kept;
  }

  /** {@inheritDoc TransferOwner.transferDone} */
  transferDone(transfer: Transfer): void {
    const operation = transfer.operation;
    const request = transfer.request!;
    if (transfer.state === TransferState.Filling && operation.result === 0) {
      // The old block is in the buffer: lay the new bytes over it and write the whole.
      if (request.kind === BlockKind.Write) this.#overlay(transfer);
      else {
        const start = operation.buffer + transfer.headBytes;
        this.#arena.bytes.fill(0, start, start + transfer.lengthBytes);
      }
      const { kernel } = this.#arena;
      if (this.detectZeroes && kernel.isZero(operation.buffer, BLOCK_BYTES)) {
        operation.kind = this.#holeKind;
      } else {
        operation.checksums[0] = kernel.checksum(operation.buffer, BLOCK_BYTES);
        operation.kind = OperationKind.Write;
      }
      this.#submitWrite(transfer);
      return;
    }
    if (operation.result !== 0 && this.#sink.recover?.(operation) === true) return;
    if (operation.result !== 0) request.result = operation.result;
    else if (request.kind === BlockKind.Read && operation.kind === OperationKind.Read) {
      if (!operation.isTaken) this.#copyOut(transfer);
    }
    if (transfer.activeIndex >= 0) this.#deactivate(transfer);
    request.pending--;
    // Judged before the release, which may issue more for this very request.
    const isLast = request.pending === 0 && request.issuedBytes >= request.lengthBytes;
    this.#pool.release(transfer);
    if (isLast) this.finish(request);
  }

  #deactivate(transfer: Transfer): void {
    const last = this.#active.pop()!;
    if (last !== transfer) {
      this.#active[transfer.activeIndex] = last;
      last.activeIndex = transfer.activeIndex;
    }
    transfer.activeIndex = -1;
    if (isMergeTransfer(transfer)) this.#merges--;
    if (this.#blocked.length > 0) this.#unblock();
  }

  /** All transfers of the request are done: sync if it asks for that, then give it back. */
  finish(request: BlockRequest): void {
    const needsSync = request.forceUnitAccess && request.result === 0 &&
      request.kind !== BlockKind.Read && request.kind !== BlockKind.Flush;
    if (needsSync) {
      request.forceUnitAccess = false;
      const queue = this.#waiting[TransferClass.Control];
      if (!this.#issueSync(request)) {
        // Joins the queue as what it now is, a flush that answers for the whole request.
        request.isSyncOwed = true;
        const isFirst = queue.head === null;
        queue.push(request);
        if (isFirst) this.#pool.wait(TransferClass.Control, this);
      }
      return;
    }
    this.#count(request);
    this.inFlight--;
    this.finished++;
    request.owner.requestDone(request);
  }

  #count(request: BlockRequest): void {
    const counters = this.counters;
    if (request.result !== 0) counters.errors++;
    if (request.startedMs > 0) {
      counters.timedRequests++;
      counters.timedMs += this.#clock!() - request.startedMs;
    }
    switch (request.kind) {
      case BlockKind.Read:
        counters.reads++;
        counters.readBytes += request.lengthBytes;
        break;
      case BlockKind.Write:
        counters.writes++;
        counters.writtenBytes += request.lengthBytes;
        break;
      case BlockKind.Flush:
        counters.flushes++;
        break;
      default:
        counters.discards++;
    }
  }

  /** Copies whole blocks from the guest into the transfer's buffer and checksums the copy. */
  #copyIn(transfer: Transfer): void {
    const request = transfer.request!;
    const operation = transfer.operation;
    const windows = request.segmentWindows;
    const offsets = request.segmentOffsets;
    const lengths = request.segmentLengths;
    let segment = transfer.segment;
    let skip = transfer.segmentBytes;
    let to = operation.buffer;
    for (let block = 0; block < operation.blockCount; block++) {
      const window = this.#windows[windows[segment]];
      if (lengths[segment] - skip >= BLOCK_BYTES) {
        operation.checksums[block] = window.kernel.copyAndChecksum(
          to,
          offsets[segment] + skip,
          BLOCK_BYTES,
        );
        skip += BLOCK_BYTES;
        if (skip === lengths[segment]) {
          segment++;
          skip = 0;
        }
      } else {
        let wanted = BLOCK_BYTES;
        let at = to;
        while (wanted > 0) {
          const part = Math.min(wanted, lengths[segment] - skip);
          const from = offsets[segment] + skip;
          this.#windows[windows[segment]].bytes.copyWithin(at, from, from + part);
          at += part;
          wanted -= part;
          skip += part;
          if (skip === lengths[segment]) {
            segment++;
            skip = 0;
          }
        }
        operation.checksums[block] = this.#arena.kernel.checksum(to, BLOCK_BYTES);
      }
      to += BLOCK_BYTES;
    }
  }

  /** Lays the guest's bytes over the old block in the buffer. */
  #overlay(transfer: Transfer): void {
    const request = transfer.request!;
    let segment = transfer.segment;
    let skip = transfer.segmentBytes;
    let at = transfer.operation.buffer + transfer.headBytes;
    let left = transfer.lengthBytes;
    while (left > 0) {
      const part = Math.min(left, request.segmentLengths[segment] - skip);
      const from = request.segmentOffsets[segment] + skip;
      this.#windows[request.segmentWindows[segment]].bytes.copyWithin(at, from, from + part);
      at += part;
      left -= part;
      segment++;
      skip = 0;
    }
  }

  /** {@inheritDoc BlockSink.takeBlock} */
  takeBlock(operation: Operation, index: number): number {
    const transfer = this.#pool.transferOf(operation);
    const offset = this.#seek(transfer, index);
    return this.#cursorWindow(transfer).kernel.copyAndChecksum(
      offset,
      operation.buffer + (index << BLOCK_SHIFT),
      BLOCK_BYTES,
    );
  }

  /** {@inheritDoc BlockSink.checksumBlock} */
  checksumBlock(operation: Operation, index: number): number {
    const transfer = this.#pool.transferOf(operation);
    const offset = this.#seek(transfer, index);
    return this.#cursorWindow(transfer).kernel.checksum(offset, BLOCK_BYTES);
  }

  /** {@inheritDoc BlockSink.zeroBlocks} */
  zeroBlocks(operation: Operation, index: number, count: number): void {
    const transfer = this.#pool.transferOf(operation);
    const { segmentLengths } = transfer.request!;
    for (const end = index + count; index < end;) {
      const offset = this.#seek(transfer, index);
      const room = segmentLengths[transfer.cursorSegment] - transfer.cursorBytes;
      const part = Math.min(end - index, room >>> BLOCK_SHIFT);
      this.#cursorWindow(transfer).bytes.fill(0, offset, offset + (part << BLOCK_SHIFT));
      index += part;
    }
  }

  /** {@inheritDoc BlockSink.placeBlocks} */
  placeBlocks(operation: Operation, index: number, count: number, vector: WindowVector): void {
    const transfer = this.#pool.transferOf(operation);
    const { segmentWindows, segmentLengths } = transfer.request!;
    let entries = 0;
    for (const end = index + count; index < end;) {
      const offset = this.#seek(transfer, index);
      const room = segmentLengths[transfer.cursorSegment] - transfer.cursorBytes;
      const part = Math.min(end - index, room >>> BLOCK_SHIFT);
      vector.windows[entries] = segmentWindows[transfer.cursorSegment];
      vector.offsets[entries] = offset;
      vector.lengths[entries] = part << BLOCK_SHIFT;
      entries++;
      index += part;
    }
    vector.count = entries;
  }

  /** Moves the cursor to a block of a blockwise read; returns its offset in its window. */
  #seek(transfer: Transfer, index: number): number {
    const { segmentOffsets, segmentLengths } = transfer.request!;
    if (index !== transfer.cursorBlock) {
      if (index < transfer.cursorBlock) {
        transfer.cursorBlock = 0;
        transfer.cursorSegment = transfer.segment;
        transfer.cursorBytes = transfer.segmentBytes;
      }
      let segment = transfer.cursorSegment;
      let bytes = transfer.cursorBytes + (index - transfer.cursorBlock << BLOCK_SHIFT);
      while (bytes >= segmentLengths[segment]) bytes -= segmentLengths[segment++];
      transfer.cursorBlock = index;
      transfer.cursorSegment = segment;
      transfer.cursorBytes = bytes;
    }
    return segmentOffsets[transfer.cursorSegment] + transfer.cursorBytes;
  }

  #cursorWindow(transfer: Transfer): Window {
    return this.#windows[transfer.request!.segmentWindows[transfer.cursorSegment]];
  }

  /** Copies what was read (and verified) from the buffer to the guest. */
  #copyOut(transfer: Transfer): void {
    const request = transfer.request!;
    let segment = transfer.segment;
    let skip = transfer.segmentBytes;
    let at = transfer.operation.buffer + transfer.headBytes;
    let left = transfer.lengthBytes;
    while (left > 0) {
      const part = Math.min(left, request.segmentLengths[segment] - skip);
      const to = request.segmentOffsets[segment] + skip;
      this.#windows[request.segmentWindows[segment]].bytes.copyWithin(to, at, at + part);
      at += part;
      left -= part;
      segment++;
      skip = 0;
    }
  }
}

/** The same disk for those who only look: takes no lease, refuses every change. */
export class ReadOnlyVolume implements BlockTarget {
  readonly readOnly = true;

  constructor(readonly volume: Volume) {}

  /** {@inheritDoc BlockTarget.sizeBytes} */
  get sizeBytes(): number {
    return this.volume.sizeBytes;
  }

  /** {@inheritDoc BlockTarget.serial} */
  get serial(): string {
    return this.volume.serial;
  }

  /** {@inheritDoc BlockTarget.admission} */
  get admission(): Throttle {
    return this.volume.admission;
  }

  /** Takes reads; the device answers flushes by itself, and refuses the rest before it comes here. */
  submit(request: BlockRequest): void {
    if (request.kind !== BlockKind.Read) throw new Error("a change reached a read-only volume");
    request.isLeaseless = true;
    this.volume.submit(request);
  }
}

/**
 * Class of a request's transfers. Zeroing with partly covered blocks needs buffers and may have to wait for
 * space, so it counts as a write; the rest of the control class never waits for space.
 */
function classOf(request: BlockRequest): TransferClass {
  switch (request.kind) {
    case BlockKind.Read:
      return TransferClass.Read;
    case BlockKind.Write:
      return TransferClass.Write;
    case BlockKind.WriteZeroes:
      return request.offsetBytes % BLOCK_BYTES !== 0 || request.lengthBytes % BLOCK_BYTES !== 0
        ? TransferClass.Write
        : TransferClass.Control;
    default:
      return TransferClass.Control;
  }
}

/** How the guest's memory fits the blocks of a read. */
const enum Fit {
  /** Some block goes to several places, or only in part. */
  Parts,
  /** Each block goes to one place. */
  Blocks,
  /** …of which every one begins at a multiple of a block, as any disk can write to it. */
  Aligned,
}

function fitOf(transfer: Transfer): Fit {
  if (transfer.headBytes !== 0 || transfer.lengthBytes % BLOCK_BYTES !== 0) return Fit.Parts;
  const { segmentOffsets, segmentLengths } = transfer.request!;
  let left = transfer.lengthBytes;
  let skip = transfer.segmentBytes;
  let isAligned = true;
  for (let segment = transfer.segment; left > 0; segment++) {
    const part = segmentLengths[segment] - skip;
    if (left > part && part % BLOCK_BYTES !== 0) return Fit.Parts;
    if ((segmentOffsets[segment] + skip) % BLOCK_BYTES !== 0) isAligned = false;
    left -= part;
    skip = 0;
  }
  return isAligned ? Fit.Aligned : Fit.Blocks;
}

/** True for a write or zeroing of part of a block. */
function isMergeTransfer(transfer: Transfer): boolean {
  return transfer.lengthBytes < BLOCK_BYTES;
}

function overlaps(a: Operation, b: Operation): boolean {
  return a.chunk === b.chunk && a.block < b.block + b.blockCount &&
    b.block < a.block + a.blockCount;
}

/** Moves the request's cursor past `length` bytes. */
function advanceSegments(request: BlockRequest, length: number): void {
  request.issuedBytes += length;
  let left = length + request.issuedSegmentBytes;
  let segment = request.issuedSegment;
  while (segment < request.segmentCount && left >= request.segmentLengths[segment]) {
    left -= request.segmentLengths[segment];
    segment++;
  }
  request.issuedSegment = segment;
  request.issuedSegmentBytes = left;
}
