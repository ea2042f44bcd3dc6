/**
 * The two ways of a backup's data: from a snapshot's socket into a file, and from a file to a disk's socket.
 *
 *     read, 8 at once ─▶ gather into frames ─▶ compress, 4 at once ─▶ write in order, one beside the others
 *     read ─▶ check ─▶ decompress, 4 at once ─▶ write, 32 at once
 *
 * Invariants: what is written is in the order of the disk whatever ends first; memory is bounded, whatever the disk's size; whatever
 * fails, nothing is under way any more when the functions here return.
 *
 * @module
 */
import {
  BackupError,
  type BackupEvent,
  type BackupHeader,
  BackupReader,
  BackupWriter,
  CONTENT_BYTES_MAX,
  fits,
  FRAME_BYTES,
  FRAME_DATA_BYTES_MAX,
  type Run,
  RUN_BYTES,
  RunReader,
  RUNS_MAX,
  STORED_BYTES_MAX,
  writeTable,
} from "../agent/backup/format.ts";
import type { FrontEnd } from "../agent/frontend/front_end.ts";
import { RequestType, SECTOR_BYTES } from "../agent/frontend/virtio_blk.ts";
import { hasZstd, Zstd } from "../agent/platform/linux/zstd.ts";
import { Effort, processorTime } from "./backup_effort.ts";
import { CommandError, ExitCode } from "./output.ts";

/** Frames that are compressed or decompressed at once: more than there are cores to spare beside an agent's threads. */
const FRAMES_AT_ONCE = 4;

/** Besides those, one is being filled and one written. */
const FRAMES_OUT = FRAMES_AT_ONCE + 2;

/** A frame is written in one piece: its head lies right before its payload. Of one that is compressed that begins here. */
const STORED_OFFSET = FRAME_BYTES;

/** The table of runs lies right before the data, which begins here. */
const DATA_OFFSET = FRAME_BYTES + RUNS_MAX * RUN_BYTES;

/** A part of a disk that is to be in a backup. */
export interface BackupRange extends Run {
  /** It is known to be zeros. */
  readonly isZero: boolean;
}

/** What was written. */
export interface BackupTotals {
  readonly frames: number;
  readonly dataBytes: number;
  readonly fileBytes: number;
}

/** Memory for one frame, with its head or without. */
class FrameBuffer {
  readonly content = new Uint8Array(FRAME_BYTES + CONTENT_BYTES_MAX);
  readonly stored = new Uint8Array(FRAME_BYTES + STORED_BYTES_MAX);
  #zstd: Zstd | null = null;

  zstd(): Zstd {
    return this.#zstd ??= new Zstd();
  }

  close(): void {
    this.#zstd?.[Symbol.dispose]();
  }
}

/** A few of them. */
class FramePool implements Disposable {
  readonly #all: readonly FrameBuffer[];
  readonly #free: FrameBuffer[];

  constructor(count: number) {
    this.#all = Array.from({ length: count }, () => new FrameBuffer());
    this.#free = [...this.#all];
  }

  take(): FrameBuffer | undefined {
    return this.#free.pop();
  }

  release(buffer: FrameBuffer): void {
    this.#free.push(buffer);
  }

  [Symbol.dispose](): void {
    for (const buffer of this.#all) buffer.close();
  }
}

/** Refuses what cannot be done on a host without the library. */
export function requireZstd(hint: string): void {
  if (hasZstd()) return;
  throw new CommandError(ExitCode.System, "there is no libzstd.so.1 (1.4 or later) on this host", {
    hint,
  });
}

// Writing -------------------------------------------------------------------------------------------

/** How a backup is written. */
export interface WriteOptions {
  readonly header: BackupHeader;
  /** What is to be in it, in rising order. */
  readonly ranges: AsyncIterable<BackupRange>;
  /** Writes all of the bytes, which are its own only until it resolves; then it is called again, and not before. */
  readonly write: (bytes: Uint8Array) => Promise<void>;
  /** Gets the byte of the disk up to which all has been written. */
  readonly onProgress?: (doneBytes: number) => void;
  readonly signal: AbortSignal;
}

/** A read that is under way, or zeros that need none. */
interface Piece extends Run {
  /** Where it is read to; null: zeros. */
  readonly slot: number | null;
}

interface OutFrame {
  readonly runs: Run[];
  readonly buffer: FrameBuffer;
  /** Where in the buffer's content it begins. */
  readonly start: number;
  readonly lengthBytes: number;
  /** Bytes that it was compressed to; 0: it is stored as it is. */
  readonly compressed: Promise<number>;
  /** That is known. */
  isReady: boolean;
}

/** Writes a backup of what a socket reads. */
export async function pipeOut(disk: FrontEnd, options: WriteOptions): Promise<BackupTotals> {
  using pool = new FramePool(FRAMES_OUT);
  const writing = new Writing(disk, options, pool);
  try {
    return await writing.run();
  } finally {
    await writing.settle();
  }
}

class Writing {
  readonly #writer: BackupWriter;
  readonly #pieces: Piece[] = [];
  readonly #out: (OutFrame | Run)[] = [];
  #runs: Run[] = [];
  #dataBytes = 0;
  #buffer: FrameBuffer | null = null;
  #fileBytes = 0;
  /** Settled when what was taken out of `#out` last is written. */
  #written = Promise.resolve();
  /** Something is being written. */
  #isWriting = false;
  readonly #effort = new Effort(processorTime);

  constructor(
    readonly disk: FrontEnd,
    readonly options: WriteOptions,
    readonly pool: FramePool,
  ) {
    this.#writer = new BackupWriter(options.header);
  }

  async run(): Promise<BackupTotals> {
    const { disk, options: { ranges, signal, header } } = this;
    const [queue] = disk.queues;
    await this.#write(this.#writer.begin());
    for await (const { offsetBytes, lengthBytes, isZero } of ranges) {
      signal.throwIfAborted();
      if (isZero) {
        // In a full backup what is not there is zeros.
        if (header.base !== null) this.#pieces.push({ offsetBytes, lengthBytes, slot: null });
        continue;
      }
      const end = offsetBytes + lengthBytes;
      for (let at = offsetBytes; at < end;) {
        while (queue.freeCount === 0) await this.#gather();
        const bytes = Math.min(queue.bufferBytes, end - at);
        const slot = queue.takeSlot();
        queue.submit(slot, RequestType.In, at / SECTOR_BYTES, bytes);
        disk.start(slot);
        this.#pieces.push({ offsetBytes: at, lengthBytes: bytes, slot });
        at += bytes;
        signal.throwIfAborted();
      }
    }
    while (this.#pieces.length > 0) await this.#gather();
    this.#close();
    while (this.#out.length > 0) await this.#writeFirst();
    await this.#written;
    const { frames, dataBytes } = this.#writer;
    await this.#write(this.#writer.end());
    return { frames, dataBytes, fileBytes: this.#fileBytes };
  }

  /** After a failure: what is under way uses memory that is about to go. */
  async settle(): Promise<void> {
    for (const { slot } of this.#pieces) if (slot !== null) await this.disk.settle(slot);
    for (const frame of this.#out) if ("compressed" in frame) await frame.compressed.catch(() => 0);
    await this.#written.catch(() => {});
  }

  /** Takes over the first piece. */
  async #gather(): Promise<void> {
    const piece = this.#pieces.shift()!;
    const { slot, offsetBytes, lengthBytes } = piece;
    if (slot === null) {
      this.#close();
      return await this.#push(piece);
    }
    await this.disk.finish(slot);
    const [queue] = this.disk.queues;
    try {
      const at = queue.dataOffset(slot);
      const isLeftOut = this.options.header.base === null && isZero(this.disk, at, lengthBytes);
      if (!isLeftOut) {
        await this.#room(piece);
        this.#buffer!.content.set(
          this.disk.memory.bytes.subarray(at, at + lengthBytes),
          DATA_OFFSET + this.#dataBytes,
        );
        this.#dataBytes += lengthBytes;
        const last = this.#runs.at(-1);
        if (last !== undefined && last.offsetBytes + last.lengthBytes === offsetBytes) {
          const longer = { ...last, lengthBytes: last.lengthBytes + lengthBytes };
          this.#runs[this.#runs.length - 1] = longer;
        } else this.#runs.push({ offsetBytes, lengthBytes });
      }
    } finally {
      queue.releaseSlot(slot);
    }
    this.options.onProgress?.(offsetBytes + lengthBytes);
  }

  /** Sees to it that a piece fits into the frame that is being filled. */
  async #room(piece: Run): Promise<void> {
    const isFull = this.#dataBytes + piece.lengthBytes > FRAME_DATA_BYTES_MAX ||
      !fits(this.#runs, piece);
    if (isFull) this.#close();
    while (this.#buffer === null) {
      this.#buffer = this.pool.take() ?? null;
      if (this.#buffer === null) await this.#writeFirst();
    }
  }

  /** The frame that is being filled has all that it gets. */
  #close(): void {
    const buffer = this.#buffer;
    if (buffer === null) return;
    const runs = this.#runs;
    const start = DATA_OFFSET - runs.length * RUN_BYTES;
    const content = buffer.content.subarray(start, DATA_OFFSET + this.#dataBytes);
    writeTable(content, runs);
    const lengthBytes = content.length;
    // What does not get smaller is not worth taking apart again.
    const room = buffer.stored.subarray(STORED_OFFSET, STORED_OFFSET + lengthBytes - 1);
    const compressed = this.options.header.compression === "none"
      ? Promise.resolve(0)
      : buffer.zstd().compress(content, room, this.#effort.acceleration);
    const frame = { runs, buffer, start, lengthBytes, compressed, isReady: false };
    // A failure is asked for later.
    compressed.then(() => frame.isReady = true, () => {});
    this.#out.push(frame);
    this.#runs = [];
    this.#dataBytes = 0;
    this.#buffer = null;
  }

  async #push(zeros: Run): Promise<void> {
    this.#out.push({ offsetBytes: zeros.offsetBytes, lengthBytes: zeros.lengthBytes });
    while (this.#out.length > FRAMES_AT_ONCE) await this.#writeFirst();
  }

  /** Begins to write what comes next, when the one before it is written. */
  async #writeFirst(): Promise<void> {
    const frame = this.#out[0];
    let storedBytes = 0;
    if ("compressed" in frame) {
      const wasReady = frame.isReady;
      storedBytes = await frame.compressed;
      this.#effort.frame(!wasReady && !this.#isWriting);
    }
    await this.#written;
    this.#out.shift();
    this.#isWriting = true;
    this.#written = "compressed" in frame
      ? this.#writeFrame(frame, storedBytes)
      : this.#write(this.#writer.zero(frame));
    // A failure is asked for later.
    this.#written.then(() => this.#isWriting = false, () => {});
  }

  /** @param compressedBytes 0: it is stored as it is */
  async #writeFrame(frame: OutFrame, compressedBytes: number): Promise<void> {
    const { runs, buffer } = frame;
    const isCompressed = compressedBytes > 0;
    const [from, start, lengthBytes] = isCompressed
      ? [buffer.stored, STORED_OFFSET, compressedBytes]
      : [buffer.content, frame.start, frame.lengthBytes];
    const stored = from.subarray(start, start + lengthBytes);
    from.set(this.#writer.data(runs, stored, isCompressed), start - FRAME_BYTES);
    await this.#write(from.subarray(start - FRAME_BYTES, start + lengthBytes));
    this.pool.release(buffer);
  }

  async #write(bytes: Uint8Array): Promise<void> {
    await this.options.write(bytes);
    this.#fileBytes += bytes.length;
  }
}

function isZero(disk: FrontEnd, offset: number, lengthBytes: number): boolean {
  const words = disk.memory.u32;
  const end = (offset + lengthBytes) >> 2;
  for (let index = offset >> 2; index < end; index++) if (words[index] !== 0) return false;
  return true;
}

// Reading -------------------------------------------------------------------------------------------

/** Bytes of a file that are read at once. */
const READ_BYTES = 2 * STORED_BYTES_MAX;

/** Reads a backup from front to back. */
export class BackupSource {
  readonly #read: (bytes: Uint8Array) => Promise<number>;
  readonly #reader = new BackupReader();
  readonly #buffer = new Uint8Array(READ_BYTES);
  readonly #isEndless: boolean;
  #from = 0;
  #to = 0;
  #isEnded = false;

  /**
   * @param read reads on into the bytes; 0 at the end
   * @param options.isEndless something else may come behind the end of the backup, and is not looked at
   */
  constructor(
    read: (bytes: Uint8Array) => Promise<number>,
    options: { readonly isEndless?: boolean } = {},
  ) {
    this.#read = read;
    this.#isEndless = options.isEndless ?? false;
  }

  /** Where in the file this is. */
  get offsetBytes(): number {
    return this.#reader.offsetBytes;
  }

  /** The header, which is what comes first. */
  async header(): Promise<BackupHeader> {
    const event = await this.next();
    if (event?.kind !== "header") throw new BackupError(0, "there is no header");
    return event.header;
  }

  /**
   * What comes next; null behind the end.
   *
   * @returns data is valid until the next call
   * @throws BackupError when the file is torn or altered
   */
  async next(): Promise<BackupEvent | null> {
    for (;;) {
      if (this.#isEnded && this.#isEndless) return null;
      const { wanted } = this.#reader;
      const piece = await this.#piece(Math.max(1, wanted));
      if (wanted === 0 && piece.length === 0) return null;
      const event = this.#reader.take(piece);
      this.#isEnded = event?.kind === "end";
      if (event !== null) return event;
    }
  }

  /** The next bytes; fewer at the end. */
  async #piece(bytes: number): Promise<Uint8Array> {
    while (this.#to - this.#from < bytes) {
      this.#buffer.copyWithin(0, this.#from, this.#to);
      this.#to -= this.#from;
      this.#from = 0;
      const count = await this.#read(this.#buffer.subarray(this.#to));
      if (count === 0) break;
      this.#to += count;
    }
    const end = Math.min(this.#to, this.#from + bytes);
    const piece = this.#buffer.subarray(this.#from, end);
    this.#from = end;
    return piece;
  }
}

/** How a backup is restored. */
export interface RestoreOptions {
  readonly header: BackupHeader;
  /** Gets the bytes of the file that have been read. */
  readonly onProgress?: (doneBytes: number) => void;
  readonly signal: AbortSignal;
}

/** What was read. */
export interface RestoreTotals {
  readonly dataBytes: number;
  readonly fileBytes: number;
}

/**
 * Reads the rest of a backup, and writes what it holds to a disk.
 *
 * @param disk of the size that the header says; null: everything is checked, and nothing written
 * @throws BackupError when the file is torn or altered; what came before is written then
 */
export async function pipeIn(
  source: BackupSource,
  disk: FrontEnd | null,
  options: RestoreOptions,
): Promise<RestoreTotals> {
  using pool = new FramePool(FRAMES_AT_ONCE);
  const restoring = new Restoring(source, disk, options, pool);
  try {
    return await restoring.run();
  } finally {
    await restoring.settle();
  }
}

type DataEvent = Extract<BackupEvent, { kind: "data" }>;
type ZeroEvent = Extract<BackupEvent, { kind: "zero" }>;

interface InFrame {
  readonly event: DataEvent;
  readonly buffer: FrameBuffer;
  readonly content: Promise<Uint8Array>;
}

class Restoring {
  readonly #runs: RunReader;
  readonly #in: (InFrame | ZeroEvent)[] = [];
  /** Of the writes that are under way. */
  readonly #slots: number[] = [];

  constructor(
    readonly source: BackupSource,
    readonly disk: FrontEnd | null,
    readonly options: RestoreOptions,
    readonly pool: FramePool,
  ) {
    this.#runs = new RunReader(options.header.sizeBytes);
  }

  async run(): Promise<RestoreTotals> {
    const { source, options: { signal, onProgress } } = this;
    let dataBytes = 0;
    for (let event = await source.next(); event !== null; event = await source.next()) {
      signal.throwIfAborted();
      if (event.kind === "end") ({ dataBytes } = event);
      else if (event.kind === "zero") this.#in.push(event);
      else if (event.kind === "data") await this.#takeApart(event);
      while (this.#in.length >= FRAMES_AT_ONCE) await this.#applyFirst();
      onProgress?.(source.offsetBytes);
    }
    while (this.#in.length > 0) await this.#applyFirst();
    while (this.#slots.length > 0) await this.#finishFirst();
    return { dataBytes, fileBytes: source.offsetBytes };
  }

  async settle(): Promise<void> {
    for (const frame of this.#in) if ("content" in frame) await frame.content.catch(() => null);
    for (const slot of this.#slots) await this.disk!.settle(slot);
  }

  async #takeApart(event: DataEvent): Promise<void> {
    let buffer = this.pool.take();
    while (buffer === undefined) {
      await this.#applyFirst();
      buffer = this.pool.take();
    }
    const contentBytes = event.runs * RUN_BYTES + event.lengthBytes;
    const into = buffer.content.subarray(0, contentBytes);
    let content: Promise<Uint8Array>;
    if (event.isCompressed) {
      const stored = buffer.stored.subarray(0, event.stored.length);
      stored.set(event.stored);
      content = decompress(buffer.zstd(), stored, into, event.fileOffset);
    } else {
      into.set(event.stored);
      content = Promise.resolve(into);
    }
    content.catch(() => {}); // asked for later
    this.#in.push({ event, buffer, content });
  }

  async #applyFirst(): Promise<void> {
    const frame = this.#in[0];
    if (!("content" in frame)) {
      this.#in.shift();
      this.#runs.zero(frame);
      return await this.#zero(frame);
    }
    const content = await frame.content;
    this.#in.shift();
    const runs = this.#runs.content(frame.event, content);
    let from = runs.length * RUN_BYTES;
    for (const run of runs) {
      if (this.disk !== null) await this.#write(this.disk, run, content.subarray(from));
      from += run.lengthBytes;
    }
    this.pool.release(frame.buffer);
  }

  async #zero({ offsetBytes, lengthBytes }: Run): Promise<void> {
    if (this.disk === null) return;
    // It takes a slot of its own, and waits for one only while something is under way.
    while (this.disk.queues[0].freeCount === 0) await this.#finishFirst();
    await this.disk.writeZeroes(offsetBytes, lengthBytes);
  }

  async #write(disk: FrontEnd, { offsetBytes, lengthBytes }: Run, data: Uint8Array): Promise<void> {
    const [queue] = disk.queues;
    for (let done = 0; done < lengthBytes;) {
      while (queue.freeCount === 0) await this.#finishFirst();
      const bytes = Math.min(queue.bufferBytes, lengthBytes - done);
      const slot = queue.takeSlot();
      disk.memory.bytes.set(data.subarray(done, done + bytes), queue.dataOffset(slot));
      queue.submit(slot, RequestType.Out, (offsetBytes + done) / SECTOR_BYTES, bytes);
      disk.start(slot);
      this.#slots.push(slot);
      done += bytes;
    }
  }

  async #finishFirst(): Promise<void> {
    const slot = this.#slots.shift()!;
    await this.disk!.finish(slot);
    this.disk!.queues[0].releaseSlot(slot);
  }
}

async function decompress(
  zstd: Zstd,
  from: Uint8Array<ArrayBuffer>,
  to: Uint8Array<ArrayBuffer>,
  fileOffset: number,
): Promise<Uint8Array> {
  if (await zstd.decompress(from, to) === to.length) return to;
  throw new BackupError(fileOffset, "a frame cannot be decompressed");
}
