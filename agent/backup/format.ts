/**
 * The file of a backup: what a snapshot holds, or what it holds differently from an older one, in one stream from front to back.
 *
 *     | preamble | header | frame | frame | … | end frame |        all numbers little-endian
 *
 *     preamble   0 | magic "KELPIEBK"                                                        |
 *                8 | version u32 | header bytes u32 | CRC-32 of the header u32 | reserved u32 |
 *               24 | reserved u32 | CRC-32 of bytes 0…27 u32                                 |
 *     header       MessagePack: BackupHeader
 *     frame      0 | kind u8 | reserved u8 | runs u16 | stored bytes u32                     |
 *                8 | offset u64                                                              |
 *               16 | length u64                                                              |
 *               24 | CRC-32 of the payload u32 | chained CRC-32 u32                          |
 *               32 | payload: stored bytes                                                   |
 *
 *     kind       offset                  length                  payload
 *     1 data     of its first run        bytes of data           the table of runs, then their data
 *     2 zstd     the same                the same                the same as one frame of Zstandard
 *     3 zero     of zeros                how many                none
 *     4 end      frames before it        bytes of data in them   none
 *
 *     run        skipped u32 | length u32     sectors of 512: from the end of the run before, and of this one
 *
 * Invariants:
 * - a file with any byte altered, missing, doubled or moved is refused: each frame's head has a CRC-32 that goes on from the one of the
 *   frame before (the first from the header's), and that of its payload is in its head; nothing comes behind the end frame, which has
 *   the totals;
 * - runs are not empty, lie on the disk, rise from frame to frame and do not overlap, so each byte of a disk is told at most once;
 * - what is in no frame is zeros in a full backup, and as in the base in a difference;
 * - a reader holds one frame, and takes no length from a file unchecked: a payload has {@linkcode STORED_BYTES_MAX} at the most, and what
 *   it grows to is in its checked head.
 *
 * Reader and writer are synchronous: who calls them moves the bytes, and compresses.
 *
 * @module
 */
import { Packr, Unpackr } from "msgpackr";
import { crc32 } from "node:zlib";
import { DISK_BYTES_MAX, SECTOR_BYTES } from "../base/limits.ts";

/** Bytes of the preamble. */
export const PREAMBLE_BYTES = 32;
/** Bytes of a frame's head. */
export const FRAME_BYTES = 32;
/** Data of one frame, at the most. */
export const FRAME_DATA_BYTES_MAX = 1024 * 1024;
/** Runs of one frame, at the most: blocks of 4096. */
export const RUNS_MAX = 256;
/** Bytes of one run in the table. */
export const RUN_BYTES = 8;
/** A frame's table and data, before they are compressed. */
export const CONTENT_BYTES_MAX = RUNS_MAX * RUN_BYTES + FRAME_DATA_BYTES_MAX;
/** What a frame may store: content that cannot be compressed is stored as it is, so no compressor's overhead is in it. */
export const STORED_BYTES_MAX = CONTENT_BYTES_MAX;

const MAGIC = new TextEncoder().encode("KELPIEBK");
/** What is written. */
export const VERSION = 1;
const HEADER_BYTES_MAX = 64 * 1024;
/** A u32 of sectors. */
const SKIP_BYTES_MAX = 0xffff_ffff * SECTOR_BYTES;

/** What a frame is. */
export const enum FrameKind {
  Data = 1,
  Zstd = 2,
  Zero = 3,
  End = 4,
}

/** Which snapshot a backup is of, whatever it and its disk are called: layers are never used twice. */
export interface SnapshotIdentity {
  /** Id of the cluster. */
  readonly cluster: string;
  readonly disk: number;
  readonly family: number;
  /** Newest layer of the snapshot. */
  readonly layer: number;
}

/** What a file says of itself. */
export interface BackupHeader {
  /** Name of the disk when this was written. */
  readonly disk: string;
  /** Name of the snapshot, without the disk's. */
  readonly snapshot: string;
  /** Size of the snapshot: a multiple of 512. */
  readonly sizeBytes: number;
  /** When the snapshot was taken, in milliseconds since 1970. */
  readonly createdMs: number;
  readonly identity: SnapshotIdentity;
  /** The snapshot that this is the difference to; null: this is everything. */
  readonly base: SnapshotIdentity & { readonly snapshot: string } | null;
  /** What frames may be compressed with; each says for itself whether it is. */
  readonly compression: "zstd" | "none";
}

/** A part of a disk. */
export interface Run {
  readonly offsetBytes: number;
  readonly lengthBytes: number;
}

/** What a reader has come upon. */
export type BackupEvent =
  | { readonly kind: "header"; readonly header: BackupHeader }
  /** `stored` is the payload, which is the caller's; {@linkcode RunReader} knows where it belongs. */
  | {
    readonly kind: "data";
    readonly offsetBytes: number;
    readonly lengthBytes: number;
    readonly runs: number;
    readonly isCompressed: boolean;
    readonly stored: Uint8Array;
    /** Where the payload begins in the file. */
    readonly fileOffset: number;
  }
  | {
    readonly kind: "zero";
    readonly offsetBytes: number;
    readonly lengthBytes: number;
    readonly fileOffset: number;
  }
  | { readonly kind: "end"; readonly frames: number; readonly dataBytes: number };

/** A file that is not what it was when it was written, or not of this kind. */
export class BackupError extends Error {
  override readonly name = "BackupError";

  /**
   * @param offsetBytes where in the file
   * @param reason what is wrong there
   */
  constructor(readonly offsetBytes: number, readonly reason: string) {
    super(`byte ${offsetBytes}: ${reason}`);
  }
}

const packr = new Packr({ useRecords: false });
const unpackr = new Unpackr({ useRecords: false });

// Writer --------------------------------------------------------------------------------------------

/** Makes the bytes of a file; the caller writes them in the order in which it gets them. */
export class BackupWriter {
  readonly #sizeBytes: number;
  #chain = 0;
  #frames = 0;
  #dataBytes = 0;
  #endBytes = 0;
  readonly #header: BackupHeader;

  constructor(header: BackupHeader) {
    this.#header = header;
    this.#sizeBytes = header.sizeBytes;
  }

  /** Frames so far. */
  get frames(): number {
    return this.#frames;
  }

  /** Bytes of data in them. */
  get dataBytes(): number {
    return this.#dataBytes;
  }

  /** The preamble and the header; first of all. */
  begin(): Uint8Array<ArrayBuffer> {
    const header = packr.pack(this.#header);
    const bytes = new Uint8Array(PREAMBLE_BYTES + header.length);
    const view = new DataView(bytes.buffer);
    bytes.set(MAGIC);
    view.setUint32(8, VERSION, true);
    view.setUint32(12, header.length, true);
    view.setUint32(16, crc32(header), true);
    view.setUint32(28, this.#chain = crc32(bytes.subarray(0, 28)), true);
    bytes.set(header, PREAMBLE_BYTES);
    return bytes;
  }

  /**
   * The head of a frame with data, which is to be followed by `stored`.
   *
   * @param runs what the content has, by {@linkcode writeTable}
   * @param stored the content, or what Zstandard has made of it
   */
  data(
    runs: readonly Run[],
    stored: Uint8Array,
    isCompressed: boolean,
  ): Uint8Array<ArrayBuffer> {
    let lengthBytes = 0;
    for (const run of runs) {
      this.#advance(run);
      lengthBytes += run.lengthBytes;
    }
    if (runs.length === 0 || runs.length > RUNS_MAX || lengthBytes > FRAME_DATA_BYTES_MAX) {
      throw new RangeError(`${runs.length} runs of ${lengthBytes} bytes are no frame`);
    }
    this.#dataBytes += lengthBytes;
    const kind = isCompressed ? FrameKind.Zstd : FrameKind.Data;
    return this.#frame(kind, runs[0].offsetBytes, lengthBytes, runs.length, stored);
  }

  /** A frame that says that a range is zeros. */
  zero(run: Run): Uint8Array<ArrayBuffer> {
    this.#advance(run);
    return this.#frame(FrameKind.Zero, run.offsetBytes, run.lengthBytes, 0, NOTHING);
  }

  /** The last frame. */
  end(): Uint8Array<ArrayBuffer> {
    return this.#frame(FrameKind.End, this.#frames, this.#dataBytes, 0, NOTHING);
  }

  #advance({ offsetBytes, lengthBytes }: Run): void {
    const end = offsetBytes + lengthBytes;
    const isSound = offsetBytes >= this.#endBytes && lengthBytes > 0 && end <= this.#sizeBytes &&
      offsetBytes % SECTOR_BYTES === 0 && lengthBytes % SECTOR_BYTES === 0;
    if (!isSound) throw new RangeError(`${lengthBytes} bytes at ${offsetBytes} cannot come next`);
    this.#endBytes = end;
  }

  #frame(
    kind: FrameKind,
    offsetBytes: number,
    lengthBytes: number,
    runs: number,
    stored: Uint8Array,
  ): Uint8Array<ArrayBuffer> {
    const bytes = new Uint8Array(FRAME_BYTES);
    const view = new DataView(bytes.buffer);
    view.setUint8(0, kind);
    view.setUint16(2, runs, true);
    view.setUint32(4, stored.length, true);
    setU64(view, 8, offsetBytes);
    setU64(view, 16, lengthBytes);
    view.setUint32(24, crc32(stored), true);
    this.#chain = crc32(bytes.subarray(0, 28), this.#chain);
    view.setUint32(28, this.#chain, true);
    this.#frames++;
    return bytes;
  }
}

const NOTHING = new Uint8Array(0);

/** Whether a run can be the next one of a frame: the table has 32 bits for what lies between. */
export function fits(runs: readonly Run[], run: Run): boolean {
  const last = runs.at(-1);
  if (last === undefined) return true;
  return runs.length < RUNS_MAX &&
    run.offsetBytes - last.offsetBytes - last.lengthBytes <= SKIP_BYTES_MAX;
}

/**
 * Writes the table of a frame, which comes before its data.
 *
 * @returns bytes of the table
 */
export function writeTable(content: Uint8Array, runs: readonly Run[]): number {
  const view = new DataView(content.buffer, content.byteOffset);
  let at = 0;
  let end = runs[0].offsetBytes;
  for (const { offsetBytes, lengthBytes } of runs) {
    view.setUint32(at, (offsetBytes - end) / SECTOR_BYTES, true);
    view.setUint32(at + 4, lengthBytes / SECTOR_BYTES, true);
    end = offsetBytes + lengthBytes;
    at += RUN_BYTES;
  }
  return at;
}

// Reader --------------------------------------------------------------------------------------------

const enum Expect {
  Preamble,
  Header,
  Frame,
  Payload,
  Nothing,
}

/**
 * Takes a file apart. Give it {@linkcode BackupReader.wanted} bytes at a time until that is 0, and then say that the file has ended;
 * what is wrong is a {@linkcode BackupError}, after which there is nothing more to be had.
 *
 * @example
 * ```ts
 * import { BackupReader, BackupWriter } from "./format.ts";
 *
 * const identity = { cluster: "c", disk: 1, family: 1, layer: 2 };
 * const header = { disk: "web", snapshot: "a", sizeBytes: 4096, createdMs: 0, identity, base: null };
 * const writer = new BackupWriter({ ...header, compression: "none" });
 * const parts = [writer.begin(), writer.zero({ offsetBytes: 0, lengthBytes: 4096 }), writer.end()];
 * const file = new Uint8Array(await new Blob(parts).arrayBuffer());
 *
 * const reader = new BackupReader();
 * const kinds = [];
 * for (let at = 0; reader.wanted > 0;) {
 *   const piece = file.subarray(at, at += reader.wanted);
 *   kinds.push(reader.take(piece)?.kind);
 * }
 * console.assert(kinds.filter((kind) => kind !== undefined).join() === "header,zero,end");
 * ```
 */
export class BackupReader {
  #expect: Expect = Expect.Preamble;
  #wanted = PREAMBLE_BYTES;
  /** Where the next piece begins. */
  #at = 0;
  #chain = 0;
  #crc = 0;
  #frames = 0;
  #dataBytes = 0;
  #endBytes = 0;
  #sizeBytes = 0;
  #pending: Omit<Extract<BackupEvent, { kind: "data" }>, "stored"> | null = null;

  /** Bytes of the next piece; 0: the file should end here. */
  get wanted(): number {
    return this.#wanted;
  }

  /** Where in the file the next piece begins. */
  get offsetBytes(): number {
    return this.#at;
  }

  /**
   * Takes the next piece.
   *
   * @param piece {@linkcode wanted} bytes; fewer: the file ends behind them
   * @returns what that completes; null: nothing yet
   */
  take(piece: Uint8Array): BackupEvent | null {
    if (piece.length < this.#wanted) {
      throw new BackupError(
        this.#at + piece.length,
        `the file ends here, ${
          this.#wanted - piece.length
        } bytes before the end of what has begun: it is torn`,
      );
    }
    const start = this.#at;
    this.#at += piece.length;
    switch (this.#expect) {
      case Expect.Preamble:
        return this.#preamble(piece);
      case Expect.Header:
        return this.#header(piece, start);
      case Expect.Frame:
        return this.#frame(piece, start);
      case Expect.Payload:
        return this.#payload(piece, start);
      case Expect.Nothing:
        throw new BackupError(start, "something comes behind the end of the backup");
    }
  }

  #preamble(piece: Uint8Array): null {
    const view = new DataView(piece.buffer, piece.byteOffset);
    if (MAGIC.some((byte, at) => piece[at] !== byte)) {
      throw new BackupError(0, "this is no backup of Kelpie: it begins with something else");
    }
    const chain = crc32(piece.subarray(0, 28));
    if (chain !== view.getUint32(28, true)) throw new BackupError(0, "the preamble is altered");
    const version = view.getUint32(8, true);
    if (version !== VERSION) {
      throw new BackupError(
        8,
        `the file is of version ${version}, and this program reads ${VERSION}: use a newer one`,
      );
    }
    const headerBytes = view.getUint32(12, true);
    const isSound = headerBytes > 0 && headerBytes <= HEADER_BYTES_MAX &&
      view.getUint32(20, true) === 0 && view.getUint32(24, true) === 0;
    if (!isSound) throw new BackupError(12, "the preamble makes no sense");
    this.#chain = chain;
    this.#crc = view.getUint32(16, true);
    return this.#next(Expect.Header, headerBytes);
  }

  #header(piece: Uint8Array, start: number): BackupEvent {
    if (crc32(piece) !== this.#crc) throw new BackupError(start, "the header is altered");
    const header = decodeHeader(piece);
    if (header === null) throw new BackupError(start, "the header makes no sense");
    this.#sizeBytes = header.sizeBytes;
    this.#next(Expect.Frame, FRAME_BYTES);
    return { kind: "header", header };
  }

  #frame(piece: Uint8Array, start: number): BackupEvent | null {
    const view = new DataView(piece.buffer, piece.byteOffset);
    const chain = crc32(piece.subarray(0, 28), this.#chain);
    if (chain !== view.getUint32(28, true)) {
      throw new BackupError(start, "a frame's head is altered, or not the one that belongs here");
    }
    this.#chain = chain;
    const kind = view.getUint8(0);
    const runs = view.getUint16(2, true);
    const storedBytes = view.getUint32(4, true);
    const offsetBytes = getU64(view, 8);
    const lengthBytes = getU64(view, 16);
    this.#crc = view.getUint32(24, true);
    const nonsense = new BackupError(start, "a frame's head makes no sense");
    if (view.getUint8(1) !== 0) throw nonsense;
    const hasData = kind === FrameKind.Data || kind === FrameKind.Zstd;
    if (!hasData && (storedBytes !== 0 || runs !== 0 || this.#crc !== 0)) throw nonsense;
    if (kind === FrameKind.End) {
      if (offsetBytes !== this.#frames || lengthBytes !== this.#dataBytes) throw nonsense;
      this.#next(Expect.Nothing, 0);
      return { kind: "end", frames: this.#frames, dataBytes: this.#dataBytes };
    }
    const isSound = lengthBytes > 0 && offsetBytes >= this.#endBytes &&
      offsetBytes + lengthBytes <= this.#sizeBytes &&
      offsetBytes % SECTOR_BYTES === 0 && lengthBytes % SECTOR_BYTES === 0;
    if (!isSound) throw nonsense;
    this.#frames++;
    if (kind === FrameKind.Zero) {
      this.#endBytes = offsetBytes + lengthBytes;
      this.#next(Expect.Frame, FRAME_BYTES);
      return { kind: "zero", offsetBytes, lengthBytes, fileOffset: start };
    }
    const contentBytes = runs * RUN_BYTES + lengthBytes;
    const isData = hasData && runs > 0 && runs <= RUNS_MAX &&
      lengthBytes <= FRAME_DATA_BYTES_MAX && storedBytes > 0 &&
      (kind === FrameKind.Zstd ? storedBytes <= STORED_BYTES_MAX : storedBytes === contentBytes);
    if (!isData) throw nonsense;
    const isCompressed = kind === FrameKind.Zstd;
    const fileOffset = this.#at;
    this.#pending = { kind: "data", offsetBytes, lengthBytes, runs, isCompressed, fileOffset };
    return this.#next(Expect.Payload, storedBytes);
  }

  #payload(stored: Uint8Array, start: number): BackupEvent {
    if (crc32(stored) !== this.#crc) {
      throw new BackupError(start, `${stored.length} bytes of data from here on are altered`);
    }
    const frame = this.#pending!;
    this.#dataBytes += frame.lengthBytes;
    // Where its last run ends is in its table, which may be compressed: `RunReader` looks at that.
    this.#endBytes = frame.offsetBytes + SECTOR_BYTES;
    this.#next(Expect.Frame, FRAME_BYTES);
    return { ...frame, stored };
  }

  #next(expect: Expect, wanted: number): null {
    this.#expect = expect;
    this.#wanted = wanted;
    return null;
  }
}

/** Finds where the frames of a file belong on the disk. Give it all of them, in their order. */
export class RunReader {
  readonly #sizeBytes: number;
  #endBytes = 0;

  /** @param sizeBytes of the disk, from the header */
  constructor(sizeBytes: number) {
    this.#sizeBytes = sizeBytes;
  }

  /** @throws BackupError when zeros lie before what was told already */
  zero({ offsetBytes, lengthBytes, fileOffset }: Extract<BackupEvent, { kind: "zero" }>): void {
    if (offsetBytes < this.#endBytes) throw new BackupError(fileOffset, "zeros where data was");
    this.#endBytes = offsetBytes + lengthBytes;
  }

  /**
   * The runs of a frame with data.
   *
   * @param content its payload, decompressed
   * @returns its runs; their data is one behind the other from `runs.length * RUN_BYTES` on
   * @throws BackupError when they make no sense
   */
  content(frame: Extract<BackupEvent, { kind: "data" }>, content: Uint8Array): Run[] {
    const wrong = new BackupError(frame.fileOffset, "a frame's table of runs makes no sense");
    if (content.length !== frame.runs * RUN_BYTES + frame.lengthBytes) throw wrong;
    const view = new DataView(content.buffer, content.byteOffset);
    const runs: Run[] = [];
    let at = frame.offsetBytes;
    let sum = 0;
    if (at < this.#endBytes || view.getUint32(0, true) !== 0) throw wrong;
    for (let i = 0; i < frame.runs; i++) {
      const offsetBytes = at + view.getUint32(i * RUN_BYTES, true) * SECTOR_BYTES;
      const lengthBytes = view.getUint32(i * RUN_BYTES + 4, true) * SECTOR_BYTES;
      at = offsetBytes + lengthBytes;
      sum += lengthBytes;
      if (lengthBytes === 0 || at > this.#sizeBytes) throw wrong;
      runs.push({ offsetBytes, lengthBytes });
    }
    if (sum !== frame.lengthBytes) throw wrong;
    this.#endBytes = at;
    return runs;
  }
}

function decodeHeader(bytes: Uint8Array): BackupHeader | null {
  let value: unknown;
  try {
    value = unpackr.unpack(bytes);
  } catch {
    return null;
  }
  return isHeader(value) ? value : null;
}

function isHeader(value: unknown): value is BackupHeader {
  if (!isRecord(value)) return false;
  const { disk, snapshot, sizeBytes, createdMs, identity, base, compression } = value;
  return typeof disk === "string" && typeof snapshot === "string" && isCount(sizeBytes) &&
    sizeBytes > 0 && sizeBytes <= DISK_BYTES_MAX && sizeBytes % SECTOR_BYTES === 0 &&
    isCount(createdMs) && isIdentity(identity) &&
    (base === null || isIdentity(base) && typeof base.snapshot === "string") &&
    (compression === "zstd" || compression === "none");
}

/** A cluster's id, with room for longer ones. */
const CLUSTER = /^[0-9a-f]{1,64}$/;

function isIdentity(value: unknown): value is Record<string, unknown> {
  return isRecord(value) && typeof value.cluster === "string" && CLUSTER.test(value.cluster) &&
    isCount(value.disk) &&
    isCount(value.family) && isCount(value.layer);
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null;
}

function isCount(value: unknown): value is number {
  return Number.isSafeInteger(value) && (value as number) >= 0;
}

function setU64(view: DataView, at: number, value: number): void {
  view.setUint32(at, value % 2 ** 32, true);
  view.setUint32(at + 4, Math.floor(value / 2 ** 32), true);
}

function getU64(view: DataView, at: number): number {
  return view.getUint32(at, true) + view.getUint32(at + 4, true) * 2 ** 32;
}
