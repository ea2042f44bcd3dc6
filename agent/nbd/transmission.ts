/**
 * The transmission phase of one NBD connection, server side: requests in, pieces of them to the disk, replies out.
 *
 *     bytes ─▶ head ─▶ checked ─▶ pieces of up to `pieceBytes`, each in a slot ─▶ … ─▶ chunk or reply
 *
 * Invariants:
 * - A request is checked as a whole before any of it is done; nothing is allocated for what a client announces.
 * - A piece of a write gets a slot when all of its bytes are there, so no slow client holds slots; it is copied once.
 * - What a request will answer has room in the output from the moment it is begun: replies never wait, and a client that
 *   does not read its replies stops its own requests, at {@linkcode REQUESTS_MAX} of them in any case.
 * - A reply that promises durability (flush, FUA) is sent when the flush behind the data has succeeded.
 * - With structured replies the pieces of a read go out as they come. Without, a read of several pieces is the only request of its
 *   connection while it lasts, since its reply is one run of bytes; if it fails when part of it has been sent, the
 *   connection ends, as the protocol has it.
 * - A client that breaks the protocol ends its own connection. What is under way then is waited for, and answered to nobody.
 *
 * A synchronous machine, stepped by whoever reads the socket and reaps the queue.
 *
 * @module
 */
import { BlockType, type ExportQueue, SECTOR_BYTES, type SlotOwner } from "./export.ts";
import type { Agreement } from "./handshake.ts";
import {
  BASE_ALLOCATION_ID,
  BLOCK_BYTES_MIN,
  type ByteStream,
  CHUNK_DONE,
  CHUNK_HEAD_BYTES,
  CHUNK_MAGIC,
  ChunkType,
  Command,
  CommandFlag,
  getU64,
  NbdError,
  PAYLOAD_BYTES_MAX,
  REQUEST_BYTES,
  REQUEST_MAGIC,
  setU64,
  SIMPLE_BYTES,
  SIMPLE_MAGIC,
} from "./protocol.ts";

/** Requests of one connection that can be under way: more than clients send, and than a disk has slots. */
export const REQUESTS_MAX = 1024;

/** Questions for extents of one connection that can be under way: each is one to the agent. */
const STATUS_MAX = 16;

/** Extents in one answer: clients ask again for the rest. */
export const EXTENTS_MAX = 1024;

/** Pieces of a read without structured replies that are under way at once: 2 MiB. */
const WINDOW_PIECES = 8;

/** Longest part of an export that a Cache request reads; it is a hint. */
const CACHE_BYTES_MAX = PAYLOAD_BYTES_MAX;

/** Bytes of the head of a data chunk: that of any chunk, and the offset. */
const DATA_HEAD_BYTES = CHUNK_HEAD_BYTES + 8;

/** Longest text of an error, in bytes (and characters: all of them are ASCII). */
const ERROR_TEXT_BYTES_MAX = 200;

/** Room for the last chunk of any reply but those that carry data or extents. */
const REPLY_BYTES_MAX = CHUNK_HEAD_BYTES + 6 + ERROR_TEXT_BYTES_MAX + 8;

/** Room for the answer to BlockStatus. */
const STATUS_BYTES_MAX = CHUNK_HEAD_BYTES + 4 + 8 * EXTENTS_MAX;

/** Who does what the transmission cannot do by itself. */
export interface TransmissionHost {
  /**
   * Find out which extents a range is made of; {@linkcode Transmission.extents} tells, perhaps from inside.
   *
   * @param request what to hand back
   */
  findExtents(request: NbdRequest): void;
  /** The connection is to be closed; null: in good order, once what is queued has gone out. */
  close(reason: string | null): void;
}

/** A request under way. Reused. */
export class NbdRequest {
  command = 0;
  flags = 0;
  cookieHigh = 0;
  cookieLow = 0;
  /** First byte, and bytes; checked against the export. */
  offsetBytes = 0;
  lengthBytes = 0;
  /** Bytes for which pieces have been begun. */
  issuedBytes = 0;
  isIssued = false;
  /** Pieces under way. */
  pending = 0;
  error: NbdError = NbdError.None;
  /** Its data is written, and its flush is under way. */
  isFlushing = false;
  /** Not whole sectors: it has the export for itself. */
  isAlone = false;
  /** Its head and a part of its data have been sent. */
  isAnswering = false;
}

/** What the piece in a slot is for. */
const enum Action {
  /** Its data is sent. */
  Send,
  /** Its data waits for the others of its window. */
  Hold,
  /** Its success counts. */
  Do,
  /** A sector of which a part is replaced, and which is then written. */
  Merge,
}

/** See the head of the file. */
export class Transmission implements SlotOwner {
  readonly #host: TransmissionHost;
  readonly #stream: ByteStream;
  readonly #queue: ExportQueue;
  readonly #sizeBytes: number;
  readonly #isReadOnly: boolean;
  readonly #isStructured: boolean;
  readonly #hasAllocation: boolean;
  readonly #canTrim: boolean;
  readonly #canZero: boolean;
  #input: DataView;
  readonly #output: DataView;
  /** The request whose pieces are being begun; what follows it waits. */
  #current: NbdRequest | null = null;
  /** Bytes of a refused write that are still to be thrown away. */
  #skip = 0;
  #inFlight = 0;
  #statusInFlight = 0;
  /** Bytes of output that requests under way will need. */
  #promisedBytes = 0;
  #isEnding = false;
  #isClosed = false;
  readonly #free: NbdRequest[] = [];
  // By slot of the queue; only of those that are this connection's.
  readonly #requests: (NbdRequest | null)[] = [];
  readonly #actions: Action[] = [];
  /** First byte of the export that a slot's piece is about, how far into its buffer that lies, and how many bytes there are. */
  readonly #offsets: number[] = [];
  readonly #skips: number[] = [];
  readonly #lengths: number[] = [];
  /** Slots of the window, in the order of their data. */
  readonly #window: number[] = [];

  constructor(
    host: TransmissionHost,
    stream: ByteStream,
    queue: ExportQueue,
    agreement: Agreement,
  ) {
    this.#host = host;
    this.#stream = stream;
    this.#queue = queue;
    this.#sizeBytes = agreement.info.sizeBytes;
    this.#isReadOnly = agreement.info.isReadOnly;
    this.#canTrim = agreement.info.canTrim;
    this.#canZero = agreement.info.canZero;
    this.#isStructured = agreement.isStructured;
    this.#hasAllocation = agreement.hasAllocation;
    this.#input = viewOf(stream.input);
    this.#output = viewOf(stream.output);
    stream.bytesWanted = REQUEST_BYTES;
  }

  /** Requests under way. */
  get inFlight(): number {
    return this.#inFlight;
  }

  /** Nothing more is to come out of it: it was closed, and what was under way is done. */
  get isOver(): boolean {
    return this.#isClosed && this.#inFlight === 0;
  }

  /** The connection is gone. What is under way ends by itself; see {@linkcode isOver}. */
  close(): void {
    if (this.#isClosed) return;
    this.#isClosed = true;
    const current = this.#current;
    this.#current = null;
    if (current !== null) {
      current.isIssued = true;
      if (current.pending === 0) this.#finish(current);
    }
    if (this.#inFlight === 0) this.#queue.forget(this);
  }

  /** Takes what has come, and goes on with what could not. */
  step(): void {
    while (!this.#isClosed && this.#advance());
  }

  /** One step; false: there is nothing to do, or it has to wait. */
  #advance(): boolean {
    const stream = this.#stream;
    if (this.#skip > 0) {
      const skipped = Math.min(this.#skip, stream.inputEnd - stream.inputStart);
      stream.inputStart += skipped;
      this.#skip -= skipped;
      stream.bytesWanted = this.#skip > 0 ? 1 : REQUEST_BYTES;
      return this.#skip === 0;
    }
    const current = this.#current;
    if (current !== null) {
      if (!this.#issue(current)) return false;
      this.#current = null;
      stream.bytesWanted = REQUEST_BYTES;
      return true;
    }
    if (this.#isEnding || stream.inputEnd - stream.inputStart < REQUEST_BYTES) return false;
    if (this.#inFlight >= REQUESTS_MAX || !this.#hasRoom(REPLY_BYTES_MAX)) return this.#wait();
    return this.#takeHead();
  }

  #wait(): false {
    this.#queue.block(this);
    return false;
  }

  /** Whether so many bytes of output can be promised. */
  #hasRoom(bytes: number): boolean {
    const stream = this.#stream;
    // What is queued may skip the end of the buffer once, for a piece that does not fit there.
    const slackBytes = this.#queue.pieceBytes + DATA_HEAD_BYTES;
    return stream.queuedBytes + this.#promisedBytes + bytes + slackBytes < stream.output.length;
  }

  // Requests ------------------------------------------------------------------------------------

  #takeHead(): boolean {
    const stream = this.#stream;
    if (this.#input.buffer !== stream.input.buffer) this.#input = viewOf(stream.input);
    const view = this.#input;
    const at = stream.inputStart;
    if (view.getUint32(at) !== REQUEST_MAGIC) {
      this.#end("a request does not begin as one");
      return false;
    }
    const request = this.#free.pop() ?? new NbdRequest();
    request.flags = view.getUint16(at + 4);
    request.command = view.getUint16(at + 6);
    request.cookieHigh = view.getUint32(at + 8);
    request.cookieLow = view.getUint32(at + 12);
    request.offsetBytes = getU64(view, at + 16);
    request.lengthBytes = view.getUint32(at + 24);
    request.issuedBytes = 0;
    request.isIssued = false;
    request.pending = 0;
    request.error = NbdError.None;
    request.isFlushing = false;
    request.isAlone = false;
    request.isAnswering = false;
    stream.inputStart = at + REQUEST_BYTES;
    this.#inFlight++;
    this.#promisedBytes += REPLY_BYTES_MAX;
    if (request.command === Command.Disconnect) {
      this.#release(request);
      this.#isEnding = true;
      if (this.#inFlight === 0) this.#end(null);
      return false;
    }
    if (request.command === Command.Write && request.lengthBytes > PAYLOAD_BYTES_MAX) {
      this.#release(request);
      this.#end(`a write of ${request.lengthBytes} bytes, where ${PAYLOAD_BYTES_MAX} are the most`);
      return false;
    }
    request.error = this.#check(request);
    if (request.error !== NbdError.None) {
      if (request.command === Command.Write) this.#skip = request.lengthBytes;
      request.isIssued = true;
      this.#finish(request);
      return true;
    }
    this.#current = request;
    return true;
  }

  /** Says what is wrong with a request, before any of it is done. */
  #check({ command, flags, offsetBytes, lengthBytes }: NbdRequest): NbdError {
    const allowed = this.#flagsOf(command);
    if (allowed < 0 || (flags & ~allowed) !== 0) return NbdError.Invalid;
    const isChange = command === Command.Write || command === Command.Trim ||
      command === Command.WriteZeroes;
    if (isChange && this.#isReadOnly) return NbdError.Permission;
    if (command === Command.Flush) return NbdError.None;
    if (offsetBytes + lengthBytes > this.#sizeBytes) {
      return command === Command.Write || command === Command.WriteZeroes
        ? NbdError.NoSpace
        : NbdError.Invalid;
    }
    if (command === Command.Read && lengthBytes > PAYLOAD_BYTES_MAX) return NbdError.Overflow;
    if (
      (flags & CommandFlag.Df) !== 0 && pieceSpan(offsetBytes, lengthBytes) > this.#queue.pieceBytes
    ) {
      return NbdError.Overflow;
    }
    const isUnaligned = offsetBytes % BLOCK_BYTES_MIN !== 0 || lengthBytes % BLOCK_BYTES_MIN !== 0;
    // Its ends have to be read and written: that is no faster than writing it all.
    if ((flags & CommandFlag.FastZero) !== 0 && isUnaligned) return NbdError.Unsupported;
    if (command === Command.BlockStatus && lengthBytes === 0) return NbdError.Invalid;
    return NbdError.None;
  }

  /** Flags that a command may have; −1: there is no such command. FUA may be on all of them. */
  #flagsOf(command: number): number {
    switch (command) {
      case Command.Read:
        return CommandFlag.Fua | (this.#isStructured ? CommandFlag.Df : 0);
      case Command.Write:
      case Command.Flush:
      case Command.Cache:
        return CommandFlag.Fua;
      case Command.Trim:
        return this.#canTrim || this.#isReadOnly ? CommandFlag.Fua : -1;
      case Command.WriteZeroes:
        return this.#canZero || this.#isReadOnly
          ? CommandFlag.Fua | CommandFlag.NoHole | CommandFlag.FastZero
          : -1;
      case Command.BlockStatus:
        return this.#hasAllocation ? CommandFlag.Fua | CommandFlag.RequestOne : -1;
      default:
        return -1;
    }
  }

  /** Begins pieces of the current request; true when all of them are begun. */
  #issue(request: NbdRequest): boolean {
    switch (request.command) {
      case Command.Read:
        return !this.#isStructured &&
            pieceSpan(request.offsetBytes, request.lengthBytes) > this.#queue.pieceBytes
          ? this.#issueWindows(request)
          : this.#issueRead(request);
      case Command.Cache:
        return this.#issueRead(request);
      case Command.Write:
        return isAligned(request) ? this.#issueWrite(request) : this.#issueAlone(request);
      case Command.Flush:
        return this.#issueFlush(request);
      case Command.Trim:
        return this.#issueRange(request, BlockType.Discard);
      case Command.WriteZeroes:
        return isAligned(request)
          ? this.#issueRange(request, BlockType.WriteZeroes)
          : this.#issueAlone(request);
      default:
        return this.#issueStatus(request);
    }
  }

  #issued(request: NbdRequest): true {
    request.isIssued = true;
    if (request.pending === 0) this.#finish(request);
    return true;
  }

  /** Puts a piece into a slot's books. */
  #note(
    slot: number,
    request: NbdRequest,
    action: Action,
    offsetBytes: number,
    skipBytes: number,
    lengthBytes: number,
  ): void {
    request.pending++;
    this.#requests[slot] = request;
    this.#actions[slot] = action;
    this.#offsets[slot] = offsetBytes;
    this.#skips[slot] = skipBytes;
    this.#lengths[slot] = lengthBytes;
  }

  #issueRead(request: NbdRequest): boolean {
    const isSent = request.command === Command.Read;
    const lengthBytes = isSent
      ? request.lengthBytes
      : Math.min(request.lengthBytes, CACHE_BYTES_MAX);
    while (request.issuedBytes < lengthBytes) {
      if (!this.#issueReadPiece(request, lengthBytes, isSent ? Action.Send : Action.Do)) {
        return this.#wait();
      }
    }
    return this.#issued(request);
  }

  /** One piece, in whole sectors around what was asked for. False: no room, or no slot. */
  #issueReadPiece(request: NbdRequest, lengthBytes: number, action: Action): boolean {
    const queue = this.#queue;
    const from = request.offsetBytes + request.issuedBytes;
    const end = request.offsetBytes + lengthBytes;
    const skip = from % SECTOR_BYTES;
    const start = from - skip;
    const spanBytes = Math.min(queue.pieceBytes, roundUp(end) - start);
    const pieceBytes = Math.min(end, start + spanBytes) - from;
    const promisedBytes = action === Action.Do ? 0 : DATA_HEAD_BYTES + pieceBytes;
    if (promisedBytes > 0 && !this.#hasRoom(promisedBytes)) return false;
    const slot = queue.take(this);
    if (slot < 0) return false;
    this.#promisedBytes += promisedBytes;
    this.#note(slot, request, action, from, skip, pieceBytes);
    if (action === Action.Hold) this.#window.push(slot);
    request.issuedBytes += pieceBytes;
    // Before it is submitted: the last piece may have to say that it is the last.
    if (request.issuedBytes === lengthBytes && action !== Action.Hold) request.isIssued = true;
    queue.submit(slot, BlockType.In, start, spanBytes);
    return true;
  }

  #issueWrite(request: NbdRequest): boolean {
    const queue = this.#queue;
    const stream = this.#stream;
    while (request.issuedBytes < request.lengthBytes) {
      const bytes = Math.min(queue.pieceBytes, request.lengthBytes - request.issuedBytes);
      if (stream.inputEnd - stream.inputStart < bytes) {
        stream.bytesWanted = bytes;
        return false;
      }
      const slot = queue.take(this);
      if (slot < 0) return this.#wait();
      const offset = request.offsetBytes + request.issuedBytes;
      this.#takePayload(queue.dataOffset(slot), bytes);
      this.#note(slot, request, Action.Do, offset, 0, bytes);
      request.issuedBytes += bytes;
      queue.submit(slot, BlockType.Out, offset, bytes);
    }
    return this.#issued(request);
  }

  #takePayload(to: number, bytes: number): void {
    const stream = this.#stream;
    const start = stream.inputStart;
    this.#queue.bytes.set(stream.input.subarray(start, start + bytes), to);
    stream.inputStart = start + bytes;
  }

  #issueFlush(request: NbdRequest): boolean {
    const slot = this.#queue.take(this);
    if (slot < 0) return this.#wait();
    this.#note(slot, request, Action.Do, 0, 0, 0);
    this.#queue.submit(slot, BlockType.Flush, 0, 0);
    return this.#issued(request);
  }

  /** Discards the whole sectors of a range, or zeroes a range of whole sectors. */
  #issueRange(request: NbdRequest, type: BlockType.Discard | BlockType.WriteZeroes): boolean {
    const queue = this.#queue;
    const start = roundUp(request.offsetBytes);
    const end = roundDown(request.offsetBytes + request.lengthBytes);
    while (start + request.issuedBytes < end) {
      const offsetBytes = start + request.issuedBytes;
      const lengthBytes = Math.min(queue.rangeBytes, end - offsetBytes);
      const slot = queue.take(this);
      if (slot < 0) return this.#wait();
      this.#note(slot, request, Action.Do, offsetBytes, 0, lengthBytes);
      request.issuedBytes += lengthBytes;
      queue.submitRange(slot, type, { offsetBytes, lengthBytes, unmap: mayUnmap(request) });
    }
    return this.#issued(request);
  }

  #issueStatus(request: NbdRequest): boolean {
    if (this.#statusInFlight >= STATUS_MAX || !this.#hasRoom(STATUS_BYTES_MAX)) return this.#wait();
    this.#statusInFlight++;
    this.#promisedBytes += STATUS_BYTES_MAX;
    request.isIssued = true;
    request.pending = 1;
    this.#host.findExtents(request);
    return true;
  }

  /**
   * What a range is made of.
   *
   * @param runs pairs of bytes and state bits, from the request's first byte on; what lies beyond its end, and beyond
   * {@linkcode EXTENTS_MAX} pairs, is left out. At least one pair
   */
  extents(request: NbdRequest, runs: readonly number[]): void {
    this.#statusInFlight--;
    request.pending = 0;
    this.#promisedBytes -= STATUS_BYTES_MAX;
    if (this.#isClosed) return this.#release(request);
    const countMax = (request.flags & CommandFlag.RequestOne) !== 0 ? 1 : EXTENTS_MAX;
    const at = this.#reserve(STATUS_BYTES_MAX);
    if (at < 0) return this.#release(request);
    let written = at + CHUNK_HEAD_BYTES + 4;
    let left = request.lengthBytes;
    for (let i = 0; i < 2 * countMax && i < runs.length && left > 0; i += 2) {
      const bytes = Math.min(runs[i], left);
      this.#output.setUint32(written, bytes);
      this.#output.setUint32(written + 4, runs[i + 1]);
      written += 8;
      left -= bytes;
    }
    this.#output.setUint32(at + CHUNK_HEAD_BYTES, BASE_ALLOCATION_ID);
    const payloadBytes = written - at - CHUNK_HEAD_BYTES;
    this.#chunkHead(at, request, ChunkType.BlockStatus, CHUNK_DONE, payloadBytes);
    this.#stream.commit(at, written - at);
    this.#release(request);
  }

  // Alone: what is not whole sectors --------------------------------------------------------------

  /** One piece after the other: parts of sectors are read, replaced and written; what lies between goes as it is. */
  #issueAlone(request: NbdRequest): boolean {
    const queue = this.#queue;
    const stream = this.#stream;
    if (request.pending > 0) return false;
    if (request.issuedBytes === request.lengthBytes || request.error !== NbdError.None) {
      if (this.#mustFlush(request)) {
        const slot = queue.take(this);
        if (slot < 0) return this.#wait();
        request.isAlone = false;
        request.isIssued = true;
        this.#flushBehind(request, slot);
        queue.endAlone(this);
        return true;
      }
      queue.endAlone(this);
      // What was not taken of a write that failed.
      if (request.command === Command.Write) this.#skip = request.lengthBytes - request.issuedBytes;
      return this.#issued(request);
    }
    const isWrite = request.command === Command.Write;
    const from = request.offsetBytes + request.issuedBytes;
    const left = request.lengthBytes - request.issuedBytes;
    const skip = from % SECTOR_BYTES;
    const isPart = skip !== 0 || left < SECTOR_BYTES;
    const bytes = isPart
      ? Math.min(SECTOR_BYTES - skip, left)
      : Math.min(isWrite ? queue.pieceBytes : queue.rangeBytes, roundDown(left));
    if (isWrite && stream.inputEnd - stream.inputStart < bytes) {
      // Not while everybody waits for it: it may never come.
      queue.endAlone(this);
      stream.bytesWanted = bytes;
      return false;
    }
    if (!queue.isAlone(this)) return this.#wait();
    const slot = queue.take(this);
    if (slot < 0) return this.#wait();
    request.isAlone = true;
    if (isPart) {
      this.#note(slot, request, Action.Merge, from, skip, bytes);
      queue.submit(slot, BlockType.In, from - skip, SECTOR_BYTES);
      return false;
    }
    this.#note(slot, request, Action.Do, from, 0, bytes);
    request.issuedBytes += bytes;
    if (isWrite) {
      this.#takePayload(queue.dataOffset(slot), bytes);
      queue.submit(slot, BlockType.Out, from, bytes);
    } else {
      queue.submitRange(slot, BlockType.WriteZeroes, {
        offsetBytes: from,
        lengthBytes: bytes,
        unmap: mayUnmap(request),
      });
    }
    return false;
  }

  /** The sector is there: a part of it is replaced, and it goes back. */
  #merge(request: NbdRequest, slot: number): void {
    const queue = this.#queue;
    const skip = this.#skips[slot], bytes = this.#lengths[slot];
    const at = queue.dataOffset(slot) + skip;
    if (request.command === Command.Write) this.#takePayload(at, bytes);
    else queue.bytes.fill(0, at, at + bytes);
    request.issuedBytes += bytes;
    const offset = this.#offsets[slot];
    this.#note(slot, request, Action.Do, offset, 0, bytes);
    queue.submit(slot, BlockType.Out, offset - skip, SECTOR_BYTES);
  }

  // Reads of several pieces without structured replies ------------------------------------------

  /** Some pieces at a time; their data goes out when all of them are there. */
  #issueWindows(request: NbdRequest): boolean {
    if (request.pending > 0) return false;
    // Nothing else of this connection may be answered in between.
    if (this.#inFlight > 1) return this.#wait();
    const window = this.#window;
    const hasFailed = request.error !== NbdError.None;
    if (window.length > 0) {
      if (!hasFailed) this.#sendWindow(request);
      this.#releaseWindow();
      if (hasFailed && request.isAnswering) {
        this.#end("a read failed when a part of it had been sent");
      }
      if (this.#isClosed) return false;
    }
    if (hasFailed) return this.#issued(request);
    if (request.issuedBytes === request.lengthBytes) {
      request.isIssued = true;
      this.#release(request);
      return true;
    }
    while (window.length < WINDOW_PIECES && request.issuedBytes < request.lengthBytes) {
      if (!this.#issueReadPiece(request, request.lengthBytes, Action.Hold)) break;
    }
    return window.length > 0 ? false : this.#wait();
  }

  #sendWindow(request: NbdRequest): void {
    if (!request.isAnswering) {
      this.#simple(request, NbdError.None);
      request.isAnswering = true;
    }
    for (const slot of this.#window) {
      const bytes = this.#lengths[slot];
      const at = this.#reserve(bytes);
      if (at < 0) return;
      this.#copyOut(slot, at);
      this.#stream.commit(at, bytes);
    }
  }

  #releaseWindow(): void {
    for (const slot of this.#window) {
      this.#promisedBytes -= DATA_HEAD_BYTES + this.#lengths[slot];
      this.#releaseSlot(slot);
    }
    this.#window.length = 0;
  }

  // Pieces that are done ------------------------------------------------------------------------

  /** {@inheritDoc SlotOwner.pieceDone} */
  pieceDone(slot: number, status: number): void {
    const request = this.#requests[slot]!;
    request.pending--;
    if (status !== 0 && request.error === NbdError.None) {
      request.error = status === 2 ? NbdError.Unsupported : NbdError.Io;
    }
    const action = this.#actions[slot];
    if (this.#isClosed) return this.#dropPiece(request, slot);
    if (action === Action.Send) return this.#sendPiece(request, slot, status === 0);
    if (action === Action.Hold) {
      // All of them were begun before any was reaped, in the order of their data.
      return request.pending === 0 ? this.step() : undefined;
    }
    if (action === Action.Merge && status === 0) return this.#merge(request, slot);
    if (request.isAlone && !request.isIssued) {
      this.#releaseSlot(slot);
      return this.step();
    }
    if (!request.isIssued || request.pending > 0) return this.#releaseSlot(slot);
    if (this.#mustFlush(request)) return this.#flushBehind(request, slot);
    this.#releaseSlot(slot);
    this.#finish(request);
  }

  /** Whether what was written still has to be made durable. */
  #mustFlush({ command, flags, error, isFlushing }: NbdRequest): boolean {
    return (flags & CommandFlag.Fua) !== 0 && !isFlushing && error === NbdError.None &&
      (command === Command.Write || command === Command.Trim || command === Command.WriteZeroes);
  }

  #flushBehind(request: NbdRequest, slot: number): void {
    request.isFlushing = true;
    this.#note(slot, request, Action.Do, 0, 0, 0);
    this.#queue.submit(slot, BlockType.Flush, 0, 0);
  }

  /** Nobody is there to hear of it. */
  #dropPiece(request: NbdRequest, slot: number): void {
    if (this.#actions[slot] !== Action.Hold) this.#releaseSlot(slot);
    if (request.pending > 0) return;
    this.#releaseWindow();
    this.#queue.endAlone(this);
    this.#release(request);
  }

  #sendPiece(request: NbdRequest, slot: number, isGood: boolean): void {
    const bytes = this.#lengths[slot];
    const isLast = request.isIssued && request.pending === 0;
    this.#promisedBytes -= DATA_HEAD_BYTES + bytes;
    if (!this.#isStructured) {
      // The only piece: others go through windows.
      const replyBytes = SIMPLE_BYTES + (isGood ? bytes : 0);
      const at = this.#reserve(replyBytes);
      if (at >= 0) {
        this.#simpleHead(at, request, request.error);
        if (isGood) this.#copyOut(slot, at + SIMPLE_BYTES);
        this.#stream.commit(at, replyBytes);
      }
    } else if (isGood) {
      const at = this.#reserve(DATA_HEAD_BYTES + bytes);
      if (at >= 0) {
        this.#chunkHead(at, request, ChunkType.OffsetData, isLast ? CHUNK_DONE : 0, 8 + bytes);
        setU64(this.#output, at + CHUNK_HEAD_BYTES, this.#offsets[slot]);
        this.#copyOut(slot, at + DATA_HEAD_BYTES);
        this.#stream.commit(at, DATA_HEAD_BYTES + bytes);
      }
    } else this.#errorChunk(request, isLast, this.#offsets[slot]);
    this.#releaseSlot(slot);
    if (isLast) this.#release(request);
  }

  #copyOut(slot: number, at: number): void {
    const start = this.#queue.dataOffset(slot) + this.#skips[slot];
    this.#stream.output.set(this.#queue.bytes.subarray(start, start + this.#lengths[slot]), at);
  }

  #releaseSlot(slot: number): void {
    this.#requests[slot] = null;
    this.#queue.release(slot);
  }

  // Replies -------------------------------------------------------------------------------------

  /** A request without data in its reply is done, or one that was refused. */
  #finish(request: NbdRequest): void {
    if (this.#isClosed) {
      if (request.isAlone) this.#queue.endAlone(this);
      return this.#release(request);
    }
    if (request.error !== NbdError.None && this.#isStructured) this.#errorChunk(request, true);
    else if (this.#isStructured && request.command === Command.Read) {
      // Of no bytes: there is no chunk that could be the last.
      const at = this.#reserve(CHUNK_HEAD_BYTES);
      if (at >= 0) {
        this.#chunkHead(at, request, ChunkType.None, CHUNK_DONE, 0);
        this.#stream.commit(at, CHUNK_HEAD_BYTES);
      }
    } else this.#simple(request, request.error);
    this.#release(request);
  }

  #release(request: NbdRequest): void {
    this.#inFlight--;
    this.#promisedBytes -= REPLY_BYTES_MAX;
    this.#free.push(request);
    if (this.#inFlight > 0) return;
    if (this.#isClosed) this.#queue.forget(this);
    else if (this.#isEnding) this.#end(null);
  }

  #simple(request: NbdRequest, error: NbdError): void {
    const at = this.#reserve(SIMPLE_BYTES);
    if (at < 0) return;
    this.#simpleHead(at, request, error);
    this.#stream.commit(at, SIMPLE_BYTES);
  }

  #simpleHead(at: number, request: NbdRequest, error: NbdError): void {
    const view = this.#output;
    view.setUint32(at, SIMPLE_MAGIC);
    view.setUint32(at + 4, error);
    view.setUint32(at + 8, request.cookieHigh);
    view.setUint32(at + 12, request.cookieLow);
  }

  #chunkHead(
    at: number,
    request: NbdRequest,
    type: ChunkType,
    flags: number,
    payloadBytes: number,
  ): void {
    const view = this.#output;
    view.setUint32(at, CHUNK_MAGIC);
    view.setUint16(at + 4, flags);
    view.setUint16(at + 6, type);
    view.setUint32(at + 8, request.cookieHigh);
    view.setUint32(at + 12, request.cookieLow);
    view.setUint32(at + 16, payloadBytes);
  }

  /** @param offsetBytes where it happened, if that can be said */
  #errorChunk(request: NbdRequest, isLast: boolean, offsetBytes = -1): void {
    const text = textOf(request);
    const payloadBytes = 6 + text.length + (offsetBytes < 0 ? 0 : 8);
    const at = this.#reserve(CHUNK_HEAD_BYTES + payloadBytes);
    if (at < 0) return;
    const type = offsetBytes < 0 ? ChunkType.Error : ChunkType.ErrorOffset;
    this.#chunkHead(at, request, type, isLast ? CHUNK_DONE : 0, payloadBytes);
    const view = this.#output;
    const payloadAt = at + CHUNK_HEAD_BYTES;
    view.setUint32(payloadAt, request.error || NbdError.Io);
    view.setUint16(payloadAt + 4, text.length);
    for (let i = 0; i < text.length; i++) view.setUint8(payloadAt + 6 + i, text.charCodeAt(i));
    if (offsetBytes >= 0) setU64(view, payloadAt + 6 + text.length, offsetBytes);
    this.#stream.commit(at, CHUNK_HEAD_BYTES + payloadBytes);
  }

  /** Room that was promised. That it is not there cannot happen; if it does, one connection ends. */
  #reserve(bytes: number): number {
    if (this.#isClosed) return -1;
    const at = this.#stream.reserve(bytes);
    if (at < 0) this.#end("there is no room for a reply that was promised");
    return at;
  }

  #end(reason: string | null): void {
    if (this.#isClosed) return;
    this.#isEnding = true;
    // At once: whoever is to close the connection may take a while.
    if (reason !== null) this.close();
    this.#host.close(reason);
  }
}

/** What went wrong with a request, in ASCII. */
function textOf({ error, command, offsetBytes, lengthBytes }: NbdRequest): string {
  const range = `${lengthBytes} bytes at ${offsetBytes}`;
  switch (error) {
    case NbdError.Permission:
      return "the export is read-only";
    case NbdError.NoSpace:
      return `${range} go beyond the end of the export`;
    case NbdError.Overflow:
      return `${range} are too many for one reply`;
    case NbdError.Unsupported:
      return `command ${command} cannot be done like that`;
    case NbdError.Invalid:
      return `command ${command} with these flags, or ${range}, is not possible here`;
    default:
      return `the disk has reported an error for ${range}`;
  }
}

function isAligned({ offsetBytes, lengthBytes }: NbdRequest): boolean {
  return offsetBytes % SECTOR_BYTES === 0 && lengthBytes % SECTOR_BYTES === 0;
}

/** Space may be given back, unless the client wants it kept. */
function mayUnmap({ command, flags }: NbdRequest): boolean {
  return command === Command.WriteZeroes && (flags & CommandFlag.NoHole) === 0;
}

/** Bytes of the sectors that a range touches. */
function pieceSpan(offsetBytes: number, lengthBytes: number): number {
  return roundUp(offsetBytes + lengthBytes) - roundDown(offsetBytes);
}

function roundDown(bytes: number): number {
  return bytes - bytes % SECTOR_BYTES;
}

function roundUp(bytes: number): number {
  return roundDown(bytes + SECTOR_BYTES - 1);
}

function viewOf(bytes: Uint8Array<ArrayBuffer>): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}
