/**
 * The numbers of the NBD protocol, fixed newstyle with structured replies; all of it is big-endian.
 *
 *     greeting    "NBDMAGIC" | "IHAVEOPT" | 16 flags u16               server → client, then u32 flags back
 *     option      "IHAVEOPT" | 8 option u32 | 12 length u32 | 16 data
 *     answer      0 magic u64 | 8 option u32 | 12 type u32 | 16 length u32 | 20 data
 *     request     0 magic u32 | 4 flags u16 | 6 type u16 | 8 cookie u64 | 16 offset u64 | 24 length u32 | 28 data
 *     simple      0 magic u32 | 4 error u32 | 8 cookie u64 | 16 data
 *     chunk       0 magic u32 | 4 flags u16 | 6 type u16 | 8 cookie u64 | 16 length u32 | 20 payload
 *
 * Specification: `doc/proto.md` of the NetworkBlockDevice project.
 *
 * @module
 */

/** "NBDMAGIC" and "IHAVEOPT" as two words each. */
export const NBD_MAGIC_HIGH = 0x4e42444d, NBD_MAGIC_LOW = 0x41474943;
export const OPTION_MAGIC_HIGH = 0x49484156, OPTION_MAGIC_LOW = 0x454f5054;
/** Magic of an answer to an option. */
export const ANSWER_MAGIC_HIGH = 0x0003e889, ANSWER_MAGIC_LOW = 0x045565a9;
export const REQUEST_MAGIC = 0x25609513;
export const SIMPLE_MAGIC = 0x67446698;
export const CHUNK_MAGIC = 0x668e33ef;

/** Bytes of the heads drawn above. */
export const GREETING_BYTES = 18;
export const OPTION_HEAD_BYTES = 16;
export const ANSWER_HEAD_BYTES = 20;
export const REQUEST_BYTES = 28;
export const SIMPLE_BYTES = 16;
export const CHUNK_HEAD_BYTES = 20;

/** Handshake flags, the same bits from the server and from the client. */
export const enum HandshakeFlag {
  FixedNewstyle = 1,
  NoZeroes = 2,
}

/** Options of the handshake. */
export const enum Option {
  ExportName = 1,
  Abort = 2,
  List = 3,
  StartTls = 5,
  Info = 6,
  Go = 7,
  StructuredReply = 8,
  ListMetaContext = 9,
  SetMetaContext = 10,
}

/** Types of answers to options; errors have the topmost bit. */
export const enum Answer {
  Ack = 1,
  Server = 2,
  Info = 3,
  MetaContext = 4,
  Unsupported = 0x8000_0001,
  Policy = 0x8000_0002,
  Invalid = 0x8000_0003,
  Platform = 0x8000_0004,
  TlsRequired = 0x8000_0005,
  Unknown = 0x8000_0006,
  Shutdown = 0x8000_0007,
  TooBig = 0x8000_0009,
}

/** Pieces of information in the answer to `Info` and `Go`. */
export const enum InfoType {
  Export = 0,
  Name = 1,
  Description = 2,
  BlockSize = 3,
}

/** Transmission flags of an export. */
export const enum ExportFlag {
  HasFlags = 1 << 0,
  ReadOnly = 1 << 1,
  SendFlush = 1 << 2,
  SendFua = 1 << 3,
  SendTrim = 1 << 5,
  SendWriteZeroes = 1 << 6,
  SendDf = 1 << 7,
  CanMultiConn = 1 << 8,
  SendCache = 1 << 10,
  SendFastZero = 1 << 11,
}

/** Commands. */
export const enum Command {
  Read = 0,
  Write = 1,
  Disconnect = 2,
  Flush = 3,
  Trim = 4,
  Cache = 5,
  WriteZeroes = 6,
  BlockStatus = 7,
}

/** Flags of a command. */
export const enum CommandFlag {
  Fua = 1,
  NoHole = 2,
  /** Do not fragment. */
  Df = 4,
  RequestOne = 8,
  FastZero = 16,
}

/** Errors as the protocol numbers them: those of Linux. */
export const enum NbdError {
  None = 0,
  Permission = 1,
  Io = 5,
  NoMemory = 12,
  Invalid = 22,
  NoSpace = 28,
  Overflow = 75,
  Unsupported = 95,
  Shutdown = 108,
}

/** Types of chunks; errors have the topmost bit. */
export const enum ChunkType {
  None = 0,
  OffsetData = 1,
  BlockStatus = 5,
  Error = 0x8001,
  ErrorOffset = 0x8002,
}

/** Flag of the last chunk of a reply. */
export const CHUNK_DONE = 1;

/** The one metadata context that is served, and its number once it is chosen. */
export const BASE_ALLOCATION = "base:allocation";
export const BASE_ALLOCATION_ID = 1;

/** Bits of an extent in `base:allocation`. */
export const STATE_HOLE = 1, STATE_ZERO = 2;

/** Longest string in the protocol, in bytes. */
export const STRING_BYTES_MAX = 4096;

/** Smallest length and alignment that needs no read before a write: the sector of the disk behind it. */
export const BLOCK_BYTES_MIN = 512;
/** What clients should use: the disk's block. */
export const BLOCK_BYTES_PREFERRED = 4096;
/** Longest payload of a read or write, and what clients may take for granted where nothing was said. */
export const PAYLOAD_BYTES_MAX = 32 * 1024 * 1024;

/**
 * A connection's bytes, both ways: what came and was not taken yet, and room for what is to go out.
 * `platform/linux/tcp.ts` has one, `platform/linux/tls.ts` another.
 */
export interface ByteStream {
  /** What has come lies in it from `inputStart` to `inputEnd`; it is taken by moving `inputStart`. */
  readonly input: Uint8Array<ArrayBuffer>;
  inputStart: number;
  readonly inputEnd: number;
  /** Bytes from `inputStart` on that are to be there in one piece before there is anything to do; at most a half of the buffer. */
  bytesWanted: number;
  /** Its length is all the room there is on the way out. */
  readonly output: Uint8Array<ArrayBuffer>;
  /** Bytes that have not gone out yet. */
  readonly queuedBytes: number;
  /** Where in `output` so many bytes can go in one piece; −1: no room. Changes nothing. */
  reserve(bytes: number): number;
  /** Queues what was written at `at`, which {@linkcode reserve} said for at least as many bytes. */
  commit(at: number, bytes: number): void;
}

const TWO_32 = 0x1_0000_0000;

/** A 64-bit number; above 2^53 inexact, and then beyond any disk. */
export function getU64(view: DataView, at: number): number {
  return view.getUint32(at) * TWO_32 + view.getUint32(at + 4);
}

/** Writes a whole number below 2^53. */
export function setU64(view: DataView, at: number, value: number): void {
  view.setUint32(at, value / TWO_32);
  view.setUint32(at + 4, value); // modulo 2^32
}
