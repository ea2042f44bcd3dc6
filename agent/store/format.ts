/**
 * Every byte that the store writes: superblock, segment header, record header, checkpoint frame.
 *
 * All numbers are little-endian; u64 are written as two u32, low half first, and stay below 2^53.
 * Reserved bytes are zero and checked. Checksums are XXH3-64 folded to 32 bits, over the whole
 * structure with the checksum field itself zero.
 *
 *     file    | superblock A | … | superblock B (512 KiB) | … | segment 0 (1 MiB) | segment 1 | …
 *     log segment         | header | record | record | …                     | unused |
 *     checkpoint segment  | header | frame | frame | …                       | unused |
 *     record  | header, 1…4 blocks | data blocks of its entries, in order |
 *     frame   | 64 bytes, payload, zeros up to a multiple of 4096 |
 *
 * Versions. 2 brought stamps (stamps.ts) and META in batches. Segments, records and frames of 1 are
 * read as they are, side by side with those of 2: a store of 1 becomes one of 2 with the superblock
 * that its opening writes, which is durable before anything else of 2 counts. From then on a
 * program of version 1 refuses it (readableBy), since it would take what it does not know for
 * damage.
 *
 * 3 brought ABSORB and FILL, the table of absorbed layers, the times of a checkpoint's images and the
 * lives of segments (a checkpoint without lives is read, too). A store stays one of 2, to the last
 * byte, until the first ABSORB or FILL is asked for: then a superblock of 3 is made durable before
 * the entry is written ({@linkcode Superblock.format}). Each record has the lowest version that can
 * say what is in it; segment headers stay those of 2.
 *
 * Superblock (4096 bytes)
 *
 *       0  magic            "KELPIESB"
 *       8  version          u32, 2 or 3
 *      12  readableBy       u32, oldest version of the code that can read this
 *      16  storeId          16 bytes
 *      32  nodeId           16 bytes
 *      48  clusterId        16 bytes
 *      64  hostId           16 bytes
 *      80  sequence         u64, +1 with each superblock written; the higher valid one counts
 *      88  segmentBytes     u32, a power of two
 *      92  segmentCount     u32
 *      96  flags            u32, bit 0: clean (the checkpoint holds everything, the log is empty)
 *     100  reserved         u32
 *     104  checkpointId     u64, 0 when there is none
 *     112  checkpointLast   u32, segment with the end of the checkpoint
 *     116  checkpointCount  u32, segments of the checkpoint
 *     120  checkpointFrames u32
 *     124  replaySegment    u32, where replay starts
 *     128  replaySequence   u64, sequence of that segment
 *     136  replayBlock      u32, block within it
 *     140  reserved         u32
 *     144  replayLsn        u64, lsn of the record there
 *     152  syncedLsn        u64, all records up to this one were durable
 *     160  nextSequence     u64, above every segment sequence that was ever used
 *     168  previousEndLsn   u64, last lsn that counts before the place where replay starts
 *     176  reserved, zero
 *    4092  checksum         u32
 *
 * Segment header (4096 bytes)
 *
 *       0  magic            "KELPIESG"
 *       8  version          u32
 *      12  kind             u32: 1 log, 2 checkpoint
 *      16  storeId          16 bytes
 *      32  sequence         u64, rising, never used twice
 *      40  next             u32, log: the segment that follows this one
 *      44  previous         u32, the segment before this one, or NO_SEGMENT
 *      48  startLsn         u64, log: lsn of the first record
 *      56  previousEndLsn   u64, log: records of the segment before with a higher lsn do not count
 *      64  checkpointId     u64, checkpoint: which
 *      72  reserved, zero
 *    4092  checksum         u32
 *
 * Record header (1…4 blocks)
 *
 *       0  magic            u32 "KREC"
 *       4  version          u16, the lowest that knows all of its entries
 *       6  headerBlocks     u16
 *       8  storeId          16 bytes
 *      24  segmentSequence  u64
 *      32  lsn              u64
 *      40  syncedLsn        u64, known durable when this was written
 *      48  entryCount       u32
 *      52  dataBlocks       u32
 *      56  headerBytes      u32, end of the last entry; zeros from there
 *      60  checksum         u32
 *      64  entries, one after the other
 *
 * Entry (32 bytes and a checksum for each data block)
 *
 *       0  kind             u8, see EntryKind
 *       1  flags            u8, META: bit 0 = removed; WRITE, FREE, ZERO: bit 0 = the chunk's stamp
 *                           becomes unknown; otherwise 0
 *       2  block            u16, first block within the chunk, 0…1023
 *       4  count            u16, blocks 1…1024; META, META_BATCH: data blocks; STAMP, ABSORB: 1; FILL: 0, too
 *       6  reserved         u16
 *       8  layer            u32; META: bytes of the key; META_BATCH: bytes of all items; ABSORB: the
 *                           layer that takes the blocks
 *      12  chunk            u32, below 2^30; META: bytes of the value; META_BATCH: items
 *      16  generation       u32; WRITE, FREE, ZERO: 0 = the stamp stays; STAMP: 0 = unknown; FILL: 0 =
 *                           the stamp stays, otherwise that of a chunk which held nothing
 *      20  from             u32, RELOCATE, POISON: location the blocks were at; ABSORB: the layer that
 *                           gives them, lower than `layer`
 *      24  sequence         u64
 *      32  checksum of each data block, u32 each
 *
 * Data of META: key, value, zeros. Data of META_BATCH: see meta.ts.
 *
 * Checkpoint frame (64 bytes, then payload)
 *
 *       0  magic            u32 "KCKP"
 *       4  kind             u32, see FrameKind
 *       8  storeId          16 bytes
 *      24  checkpointId     u64
 *      32  number           u32, 0, 1, …
 *      36  payloadBytes     u32
 *      40  frameBytes       u32, a multiple of 4096
 *      44  items            u32, what the payload counts in (see checkpoint.ts)
 *      48  reserved, zero
 *      60  checksum         u32
 *
 * @module
 */
import {
  BLOCK_BYTES,
  BLOCK_SHIFT,
  CHUNK_BLOCKS,
  CHUNK_BYTES,
  DISK_BYTES_MAX,
  TRANSFER_BLOCKS_MAX,
} from "../base/limits.ts";
import type { Window } from "../platform/platform.ts";

/** Newest version that this code reads and writes. */
export const FORMAT_VERSION = 3;
/** Version that a store has until something newer is needed, and that all opened stores have at least. */
export const FORMAT_BASE = 2;
/** Oldest version that this code reads. */
export const FORMAT_OLDEST = 1;
/** First version whose records say what becomes of stamps. */
export const FORMAT_STAMPS = 2;
/** First version with ABSORB and FILL, and all that goes with it. */
export const FORMAT_ABSORB = 3;

/** Where the first segment starts, in bytes: what lies before is the superblocks' and reserved. */
export const SEGMENTS_OFFSET_BYTES = 1024 * 1024;
/** The same in blocks. */
export const SEGMENTS_OFFSET_BLOCKS = SEGMENTS_OFFSET_BYTES / BLOCK_BYTES;

/**
 * Where the two superblocks lie, in bytes: far enough apart that no erase or RAID unit holds both.
 * The one with sequence s goes to slot s mod 2.
 */
export const SUPERBLOCK_OFFSETS_BYTES: readonly [number, number] = [0, 512 * 1024];

/** Smallest segment: holds the largest META record (1 + 17 blocks) with room to spare. */
export const SEGMENT_BYTES_MIN = 128 * 1024;
/**
 * Usual segment: long enough to make the head's seeks cheap, short enough to be cleaned in one go.
 */
export const SEGMENT_BYTES_DEFAULT = 16 * 1024 * 1024;
/** Largest segment: block offsets within it fit 16 bits. */
export const SEGMENT_BYTES_MAX = 256 * 1024 * 1024;

/** Locations are u32 block numbers; the highest ones are kept for marks of the index. */
export const LOCATIONS_MAX = 2 ** 32 - 16;

/** No segment. */
export const NO_SEGMENT = 0xffffffff;

/**
 * Most header blocks of a record. Three hold 256 single-block writes (64 + 256 · 36 bytes); the
 * fourth leaves room for frees among them.
 */
export const HEADER_BLOCKS_MAX = 4;

/** Most data blocks of a record: one longest transfer. */
export const DATA_BLOCKS_MAX = TRANSFER_BLOCKS_MAX;

/** Bytes of a record header before its first entry. */
export const RECORD_BYTES = 64;
/** Bytes of an entry without its checksums. */
export const ENTRY_BYTES = 32;
/** Bytes of a frame before its payload. */
export const FRAME_BYTES = 64;
/** Bytes of an identity. */
export const ID_BYTES = 16;

/** Largest frame, in bytes: holds the longest META value, and fits the smallest segment. */
export const FRAME_BYTES_MAX = 96 * 1024;

/** Chunks of the largest disk. */
export const CHUNKS_MAX = DISK_BYTES_MAX / CHUNK_BYTES;

/** Longest META value, in bytes. */
export const META_VALUE_BYTES_MAX = 64 * 1024;
/** Longest META key, in bytes of UTF-8. */
export const META_KEY_BYTES_MAX = 255;

/** Most bytes of a META_BATCH: one longest value with its key, or many short ones. */
export const META_BATCH_BYTES_MAX = META_VALUE_BYTES_MAX + BLOCK_BYTES;

const SUPERBLOCK_MAGIC_LOW = magic("KELP");
const SUPERBLOCK_MAGIC_HIGH = magic("IESB");
const SEGMENT_MAGIC_HIGH = magic("IESG");
const RECORD_MAGIC = magic("KREC");
const FRAME_MAGIC = magic("KCKP");
const CHECKSUM_WORD = 4092 / 4;

/** What a segment holds. */
export const enum SegmentKind {
  Log = 1,
  Checkpoint = 2,
}

/** What an entry of a record says. Only appended to. */
export const enum EntryKind {
  /** Data blocks are the new content. */
  Write = 1,
  /** The blocks are forgotten. */
  Free = 2,
  /** The blocks read as zeros. */
  Zero = 3,
  /** Data blocks are copies; each counts only if its block still lies at its old location. */
  Relocate = 4,
  /** The blocks at `from` onwards are damaged: they read as errors, if they still lie there. */
  Poison = 5,
  LayerCreate = 6,
  LayerDelete = 7,
  /** Data blocks hold a key and its value. Written by version 1 only. */
  Meta = 8,
  /** The chunk's stamp becomes (generation, sequence), or unknown. */
  Stamp = 9,
  /** Data blocks hold keys and values, taken in order and all at once. */
  MetaBatch = 10,
  /** The chunk's holes get what the chunk of the layer `from` holds, which holds nothing afterwards. */
  Absorb = 11,
  /** Data blocks, which may be none, are the content of those blocks that are holes; what has held nothing gets the stamp. */
  Fill = 12,
}

/** Largest {@linkcode EntryKind} in a record of each version. */
const ENTRY_KIND_MAX: readonly number[] = [
  0,
  EntryKind.Meta,
  EntryKind.MetaBatch,
  EntryKind.Fill,
];

/** META: the key is removed. */
export const META_REMOVED = 1;

/** WRITE, FREE, ZERO: the stamp of the chunk is unknown from here on. */
export const STAMP_UNKNOWN = 1;

/** What a checkpoint frame holds. Only appended to. */
export const enum FrameKind {
  Index = 1,
  Layers = 2,
  Meta = 3,
  End = 4,
  Stamps = 5,
  /** Which layers may hold what was written to others: absorbed.ts. */
  Absorbed = 6,
  /** When index and stamps were looked at: image_times.ts. */
  Times = 7,
  /** Whose records lie in which segment: lives.ts. */
  Lives = 8,
}

/** Largest {@linkcode FrameKind}. */
const FRAME_KIND_MAX = FrameKind.Lives;

/** True for entries that bring data blocks with them. */
export function hasData(kind: EntryKind): boolean {
  return kind === EntryKind.Write || kind === EntryKind.Relocate || kind === EntryKind.Meta ||
    kind === EntryKind.MetaBatch || kind === EntryKind.Fill;
}

/** True for versions of segments and records that this code reads. */
function isReadable(version: number): boolean {
  return version >= FORMAT_OLDEST && version <= FORMAT_VERSION;
}

function magic(text: string): number {
  return text.charCodeAt(0) | text.charCodeAt(1) << 8 | text.charCodeAt(2) << 16 |
    text.charCodeAt(3) << 24;
}

/** Reads a u64 at word `word`: NaN when it is 2^53 or more, so that every comparison fails. */
export function readU64(words: Uint32Array, word: number): number {
  const high = words[word + 1];
  return high < 2 ** 21 ? words[word] + high * 2 ** 32 : NaN;
}

/** Writes a number below 2^53 at word `word`. */
export function writeU64(words: Uint32Array, word: number, value: number): void {
  words[word] = value >>> 0;
  words[word + 1] = Math.floor(value / 2 ** 32);
}

/** A superblock's content. */
export interface Superblock {
  /** Version of what is in the store, {@linkcode FORMAT_OLDEST} and up: older programs do not open it. */
  format: number;
  readonly storeId: Uint8Array;
  readonly nodeId: Uint8Array;
  readonly clusterId: Uint8Array;
  hostId: Uint8Array;
  sequence: number;
  segmentBytes: number;
  segmentCount: number;
  clean: boolean;
  checkpointId: number;
  checkpointLast: number;
  checkpointCount: number;
  checkpointFrames: number;
  replaySegment: number;
  replaySequence: number;
  replayBlock: number;
  replayLsn: number;
  syncedLsn: number;
  nextSequence: number;
  previousEndLsn: number;
}

/** Why bytes are not a superblock. */
export type SuperblockFault = "empty" | "damaged" | "newer";

/** Lays out `superblock` in the block at arena offset `at`. */
export function encodeSuperblock(window: Window, at: number, superblock: Superblock): void {
  const { bytes, u32 } = window;
  const word = at >>> 2;
  bytes.fill(0, at, at + BLOCK_BYTES);
  u32[word] = SUPERBLOCK_MAGIC_LOW;
  u32[word + 1] = SUPERBLOCK_MAGIC_HIGH;
  u32[word + 2] = superblock.format;
  u32[word + 3] = superblock.format;
  bytes.set(superblock.storeId, at + 16);
  bytes.set(superblock.nodeId, at + 32);
  bytes.set(superblock.clusterId, at + 48);
  bytes.set(superblock.hostId, at + 64);
  writeU64(u32, word + 20, superblock.sequence);
  u32[word + 22] = superblock.segmentBytes;
  u32[word + 23] = superblock.segmentCount;
  u32[word + 24] = superblock.clean ? 1 : 0;
  writeU64(u32, word + 26, superblock.checkpointId);
  u32[word + 28] = superblock.checkpointLast;
  u32[word + 29] = superblock.checkpointCount;
  u32[word + 30] = superblock.checkpointFrames;
  u32[word + 31] = superblock.replaySegment;
  writeU64(u32, word + 32, superblock.replaySequence);
  u32[word + 34] = superblock.replayBlock;
  writeU64(u32, word + 36, superblock.replayLsn);
  writeU64(u32, word + 38, superblock.syncedLsn);
  writeU64(u32, word + 40, superblock.nextSequence);
  writeU64(u32, word + 42, superblock.previousEndLsn);
  u32[word + CHECKSUM_WORD] = window.kernel.checksum(at, BLOCK_BYTES);
}

/** Reads the superblock at arena offset `at`, or says why it is none. Trusts nothing. */
export function decodeSuperblock(window: Window, at: number): Superblock | SuperblockFault {
  const { bytes, u32 } = window;
  const word = at >>> 2;
  if (window.kernel.isZero(at, BLOCK_BYTES)) return "empty";
  const sum = u32[word + CHECKSUM_WORD];
  u32[word + CHECKSUM_WORD] = 0;
  const summed = window.kernel.checksum(at, BLOCK_BYTES);
  u32[word + CHECKSUM_WORD] = sum;
  const known = u32[word] === SUPERBLOCK_MAGIC_LOW && u32[word + 1] === SUPERBLOCK_MAGIC_HIGH;
  if (!known || sum !== summed) return "damaged";
  // Magic, version, readableBy and checksum stay where they are in every version.
  if (u32[word + 3] > FORMAT_VERSION) return "newer";
  const flags = u32[word + 24];
  const reservedZero = (flags & ~1) === 0 && u32[word + 25] === 0 && u32[word + 35] === 0 &&
    window.kernel.isZero(at + 176, CHECKSUM_WORD * 4 - 176 - 12) &&
    u32[word + CHECKSUM_WORD - 1] === 0 && u32[word + CHECKSUM_WORD - 2] === 0 &&
    u32[word + CHECKSUM_WORD - 3] === 0;
  const superblock: Superblock = {
    format: u32[word + 3],
    storeId: bytes.slice(at + 16, at + 32),
    nodeId: bytes.slice(at + 32, at + 48),
    clusterId: bytes.slice(at + 48, at + 64),
    hostId: bytes.slice(at + 64, at + 80),
    sequence: readU64(u32, word + 20),
    segmentBytes: u32[word + 22],
    segmentCount: u32[word + 23],
    clean: (flags & 1) !== 0,
    checkpointId: readU64(u32, word + 26),
    checkpointLast: u32[word + 28],
    checkpointCount: u32[word + 29],
    checkpointFrames: u32[word + 30],
    replaySegment: u32[word + 31],
    replaySequence: readU64(u32, word + 32),
    replayBlock: u32[word + 34],
    replayLsn: readU64(u32, word + 36),
    syncedLsn: readU64(u32, word + 38),
    nextSequence: readU64(u32, word + 40),
    previousEndLsn: readU64(u32, word + 42),
  };
  return reservedZero && isSane(superblock) ? superblock : "damaged";
}

function isSane(s: Superblock): boolean {
  return isReadable(s.format) && isSegmentBytes(s.segmentBytes) &&
    s.segmentCount > 0 && s.segmentCount <= segmentsMax(s.segmentBytes) &&
    s.sequence >= 1 && s.checkpointId >= 0 && s.nextSequence >= 1 && s.syncedLsn >= 0 &&
    s.replayLsn >= 1 && s.previousEndLsn >= 0 && s.replaySequence >= 1 &&
    s.replaySegment < s.segmentCount &&
    s.replayBlock >= 1 && s.replayBlock <= s.segmentBytes >>> BLOCK_SHIFT &&
    (s.checkpointId === 0 ||
      (s.checkpointLast < s.segmentCount && s.checkpointCount >= 1 &&
        s.checkpointCount <= s.segmentCount && s.checkpointFrames >= 1));
}

/** True when a segment may be `bytes` long. */
export function isSegmentBytes(bytes: number): boolean {
  return bytes >= SEGMENT_BYTES_MIN && bytes <= SEGMENT_BYTES_MAX && Number.isInteger(bytes) &&
    (bytes & (bytes - 1)) === 0;
}

/** Most segments of a store with such segments: block numbers stay within u32. */
export function segmentsMax(segmentBytes: number): number {
  return Math.floor((LOCATIONS_MAX - SEGMENTS_OFFSET_BLOCKS) / (segmentBytes / BLOCK_BYTES));
}

/** A segment header's content. One object is reused by whoever reads many. */
export class SegmentHeader {
  kind = SegmentKind.Log;
  sequence = 0;
  next = NO_SEGMENT;
  previous = NO_SEGMENT;
  startLsn = 0;
  previousEndLsn = 0;
  checkpointId = 0;
}

/** Lays out a segment header in the block at arena offset `at`. */
export function encodeSegmentHeader(
  window: Window,
  at: number,
  storeId: Uint8Array,
  header: SegmentHeader,
): void {
  const { bytes, u32 } = window;
  const word = at >>> 2;
  bytes.fill(0, at, at + BLOCK_BYTES);
  u32[word] = SUPERBLOCK_MAGIC_LOW;
  u32[word + 1] = SEGMENT_MAGIC_HIGH;
  u32[word + 2] = FORMAT_BASE;
  u32[word + 3] = header.kind;
  bytes.set(storeId, at + 16);
  writeU64(u32, word + 8, header.sequence);
  u32[word + 10] = header.next;
  u32[word + 11] = header.previous;
  writeU64(u32, word + 12, header.startLsn);
  writeU64(u32, word + 14, header.previousEndLsn);
  writeU64(u32, word + 16, header.checkpointId);
  u32[word + CHECKSUM_WORD] = window.kernel.checksum(at, BLOCK_BYTES);
}

/**
 * Reads the segment header at arena offset `at` into `header`; false when it is none of this store.
 */
export function decodeSegmentHeader(
  window: Window,
  at: number,
  storeId: Uint8Array,
  header: SegmentHeader,
): boolean {
  const { u32 } = window;
  const word = at >>> 2;
  if (u32[word] !== SUPERBLOCK_MAGIC_LOW || u32[word + 1] !== SEGMENT_MAGIC_HIGH) return false;
  const sum = u32[word + CHECKSUM_WORD];
  u32[word + CHECKSUM_WORD] = 0;
  const summed = window.kernel.checksum(at, BLOCK_BYTES);
  u32[word + CHECKSUM_WORD] = sum;
  if (sum !== summed || !isReadable(u32[word + 2])) return false;
  if (!isStore(window, at + 16, storeId)) return false;
  const kind = u32[word + 3];
  if (kind !== SegmentKind.Log && kind !== SegmentKind.Checkpoint) return false;
  for (let reserved = word + 18; reserved < word + CHECKSUM_WORD; reserved++) {
    if (u32[reserved] !== 0) return false;
  }
  header.kind = kind;
  header.sequence = readU64(u32, word + 8);
  header.next = u32[word + 10];
  header.previous = u32[word + 11];
  header.startLsn = readU64(u32, word + 12);
  header.previousEndLsn = readU64(u32, word + 14);
  header.checkpointId = readU64(u32, word + 16);
  return header.sequence >= 1 && header.startLsn >= 0 && header.previousEndLsn >= 0 &&
    header.checkpointId >= 0;
}

/** True when the 16 bytes at arena offset `at` are `id`. */
function isStore(window: Window, at: number, id: Uint8Array): boolean {
  for (let i = 0; i < ID_BYTES; i++) if (window.bytes[at + i] !== id[i]) return false;
  return true;
}

/** Words of a record header, relative to its start. */
export const RECORD_WORD = {
  version: 1,
  storeId: 2,
  segmentSequence: 6,
  lsn: 8,
  syncedLsn: 10,
  entryCount: 12,
  dataBlocks: 13,
  headerBytes: 14,
  checksum: 15,
  entries: RECORD_BYTES / 4,
} as const;

/** What identifies a record, for {@linkcode encodeRecord}. */
export interface RecordFields {
  /** Lowest version that knows all entries. */
  version: number;
  segmentSequence: number;
  lsn: number;
  syncedLsn: number;
  entryCount: number;
  dataBlocks: number;
  headerBytes: number;
}

/** Version of the record whose header begins at word `word`. */
export function recordVersion(u32: Uint32Array, word: number): number {
  return u32[word + RECORD_WORD.version] & 0xffff;
}

/** Header blocks that `headerBytes` need. */
export function headerBlocksOf(headerBytes: number): number {
  return (headerBytes + BLOCK_BYTES - 1) >>> BLOCK_SHIFT;
}

/**
 * Completes a record header whose entries lie in place already: clears the rest of its last block,
 * fills the fixed part and the checksum. Called once per batch.
 *
 * @param storeWords the store id as four words
 */
export function encodeRecord(
  window: Window,
  at: number,
  storeWords: Uint32Array,
  record: RecordFields,
): void {
  const { u32 } = window;
  const word = at >>> 2;
  const headerBlocks = headerBlocksOf(record.headerBytes);
  u32.fill(0, word + (record.headerBytes >>> 2), word + headerBlocks * (BLOCK_BYTES >>> 2));
  u32[word] = RECORD_MAGIC;
  u32[word + 1] = record.version | headerBlocks << 16;
  for (let i = 0; i < 4; i++) u32[word + 2 + i] = storeWords[i];
  writeU64(u32, word + RECORD_WORD.segmentSequence, record.segmentSequence);
  writeU64(u32, word + RECORD_WORD.lsn, record.lsn);
  writeU64(u32, word + RECORD_WORD.syncedLsn, record.syncedLsn);
  u32[word + RECORD_WORD.entryCount] = record.entryCount;
  u32[word + RECORD_WORD.dataBlocks] = record.dataBlocks;
  u32[word + RECORD_WORD.headerBytes] = record.headerBytes;
  u32[word + RECORD_WORD.checksum] = 0;
  u32[word + RECORD_WORD.checksum] = window.kernel.checksum(at, headerBlocks * BLOCK_BYTES);
}

/** What a checked record header says. One object is reused by whoever reads many. */
export class RecordHeader implements RecordFields {
  version = 0;
  headerBlocks = 0;
  segmentSequence = 0;
  lsn = 0;
  syncedLsn = 0;
  entryCount = 0;
  dataBlocks = 0;
  headerBytes = 0;
}

/**
 * Reads the fixed part of a record header at arena offset `at` without its checksum: enough to know
 * how long it claims to be.
 *
 * @returns header blocks, or 0 when these bytes start no record of this store and segment
 */
export function peekRecord(
  window: Window,
  at: number,
  storeWords: Uint32Array,
  segmentSequence: number,
): number {
  const { u32 } = window;
  const word = at >>> 2;
  if (u32[word] !== RECORD_MAGIC || !isReadable(recordVersion(u32, word))) return 0;
  for (let i = 0; i < 4; i++) if (u32[word + 2 + i] !== storeWords[i]) return 0;
  if (readU64(u32, word + RECORD_WORD.segmentSequence) !== segmentSequence) return 0;
  const headerBlocks = u32[word + 1] >>> 16;
  return headerBlocks <= HEADER_BLOCKS_MAX ? headerBlocks : 0;
}

/**
 * Segment sequence that the record header at arena offset `at` claims; 0 when this is none of this
 * store.
 */
export function claimedSequence(window: Window, at: number, storeWords: Uint32Array): number {
  const sequence = readU64(window.u32, (at >>> 2) + RECORD_WORD.segmentSequence);
  return peekRecord(window, at, storeWords, sequence) === 0 ? 0 : sequence;
}

/**
 * Checks a whole record header (all `headerBlocks` that {@linkcode peekRecord} told) and every
 * entry in it, so that what walks the entries afterwards need not.
 *
 * @param blocksLeft blocks from the record's start to the segment's end
 * @returns false when it is not valid
 */
export function decodeRecord(
  window: Window,
  at: number,
  headerBlocks: number,
  blocksLeft: number,
  record: RecordHeader,
): boolean {
  const { u32 } = window;
  const word = at >>> 2;
  const sum = u32[word + RECORD_WORD.checksum];
  u32[word + RECORD_WORD.checksum] = 0;
  const summed = window.kernel.checksum(at, headerBlocks * BLOCK_BYTES);
  u32[word + RECORD_WORD.checksum] = sum;
  if (sum !== summed) return false;
  record.version = recordVersion(u32, word);
  record.headerBlocks = headerBlocks;
  record.segmentSequence = readU64(u32, word + RECORD_WORD.segmentSequence);
  record.lsn = readU64(u32, word + RECORD_WORD.lsn);
  record.syncedLsn = readU64(u32, word + RECORD_WORD.syncedLsn);
  record.entryCount = u32[word + RECORD_WORD.entryCount];
  record.dataBlocks = u32[word + RECORD_WORD.dataBlocks];
  record.headerBytes = u32[word + RECORD_WORD.headerBytes];
  const { headerBytes } = record;
  if (
    headerBytes < RECORD_BYTES || (headerBytes & 3) !== 0 ||
    headerBlocksOf(headerBytes) !== headerBlocks ||
    headerBlocks + record.dataBlocks > blocksLeft ||
    !(record.lsn >= 1) || !(record.syncedLsn < record.lsn)
  ) {
    return false;
  }
  return areEntriesValid(u32, word, record);
}

function areEntriesValid(u32: Uint32Array, base: number, record: RecordHeader): boolean {
  const version = recordVersion(u32, base);
  const end = base + (record.headerBytes >>> 2);
  let word = base + RECORD_WORD.entries;
  let dataBlocks = 0;
  for (let i = 0; i < record.entryCount; i++) {
    if (word + (ENTRY_BYTES >>> 2) > end || !isEntryValid(u32, word, version)) return false;
    const hasBlocks = hasData(entryKind(u32, word));
    const count = entryCount(u32, word);
    word += ENTRY_BYTES >>> 2;
    if (hasBlocks) {
      dataBlocks += count;
      word += count;
    }
  }
  return word === end && dataBlocks === record.dataBlocks;
}

function isEntryValid(u32: Uint32Array, word: number, version: number): boolean {
  const kind = entryKind(u32, word);
  const flags = entryFlags(u32, word);
  const block = entryBlock(u32, word);
  const count = entryCount(u32, word);
  const isKnown = kind >= EntryKind.Write && kind <= ENTRY_KIND_MAX[version];
  if (!isKnown || u32[word + 1] >>> 16 !== 0) return false;
  if (!(entrySequence(u32, word) >= 0)) return false;
  switch (kind) {
    case EntryKind.Meta: {
      const keyBytes = entryLayer(u32, word), valueBytes = entryChunk(u32, word);
      return (flags & ~META_REMOVED) === 0 && block === 0 &&
        keyBytes > 0 && keyBytes <= META_KEY_BYTES_MAX && valueBytes <= META_VALUE_BYTES_MAX &&
        count === headerBlocksOf(keyBytes + valueBytes);
    }
    case EntryKind.MetaBatch: {
      const bytes = entryLayer(u32, word), items = entryChunk(u32, word);
      return flags === 0 && block === 0 && bytes > 0 && bytes <= META_BATCH_BYTES_MAX &&
        items > 0 && items <= bytes && count === headerBlocksOf(bytes);
    }
    case EntryKind.Absorb:
      // Layers only ever take from older ones: image_times.ts relies on it.
      if (flags !== 0 || block !== 0 || count !== 1) return false;
      if (!(entryFrom(u32, word) < entryLayer(u32, word))) return false;
      break;
    case EntryKind.Write:
    case EntryKind.Free:
    case EntryKind.Zero:
      if ((flags & ~(version >= FORMAT_STAMPS ? STAMP_UNKNOWN : 0)) !== 0) return false;
      break;
    case EntryKind.Fill:
      if (flags !== 0) return false;
      if (count === 0 && (block !== 0 || entryGeneration(u32, word) === 0)) return false;
      break;
    default:
      if (flags !== 0) return false;
  }
  return (count >= 1 || kind === EntryKind.Fill) && block + count <= CHUNK_BLOCKS &&
    entryChunk(u32, word) < CHUNKS_MAX;
}

// Fields of the entry at word `word`.

/** Kind of the entry. */
export function entryKind(u32: Uint32Array, word: number): EntryKind {
  return u32[word] & 0xff;
}
/** Flags of the entry. */
export function entryFlags(u32: Uint32Array, word: number): number {
  return u32[word] >>> 8 & 0xff;
}
/** First block within the chunk. */
export function entryBlock(u32: Uint32Array, word: number): number {
  return u32[word] >>> 16;
}
/** Blocks. */
export function entryCount(u32: Uint32Array, word: number): number {
  return u32[word + 1] & 0xffff;
}
/** Layer; bytes of the key in META. */
export function entryLayer(u32: Uint32Array, word: number): number {
  return u32[word + 2];
}
/** Chunk; bytes of the value in META. */
export function entryChunk(u32: Uint32Array, word: number): number {
  return u32[word + 3];
}
/** Generation. */
export function entryGeneration(u32: Uint32Array, word: number): number {
  return u32[word + 4];
}
/** Location that the first block was copied from; ABSORB: the layer that gives its blocks. */
export function entryFrom(u32: Uint32Array, word: number): number {
  return u32[word + 5];
}
/** Sequence; NaN when out of range. */
export function entrySequence(u32: Uint32Array, word: number): number {
  return readU64(u32, word + 6);
}
/** Word of the first checksum. */
export function entryChecksums(word: number): number {
  return word + (ENTRY_BYTES >>> 2);
}
/** Word of the entry that follows. */
export function entryNext(u32: Uint32Array, word: number): number {
  const count = hasData(entryKind(u32, word)) ? entryCount(u32, word) : 0;
  return word + (ENTRY_BYTES >>> 2) + count;
}

/** What a checked checkpoint frame says. */
export class FrameHeader {
  kind: FrameKind = FrameKind.Index;
  checkpointId = 0;
  number = 0;
  payloadBytes = 0;
  frameBytes = 0;
  items = 0;
}

/**
 * Completes a frame whose payload lies in place (at `at + FRAME_BYTES`): clears the rest, fills the
 * head and the checksum. `frame.frameBytes` is set from `payloadBytes`.
 */
export function encodeFrame(
  window: Window,
  at: number,
  storeWords: Uint32Array,
  frame: FrameHeader,
): void {
  const { bytes, u32 } = window;
  const word = at >>> 2;
  frame.frameBytes = Math.ceil((FRAME_BYTES + frame.payloadBytes) / BLOCK_BYTES) * BLOCK_BYTES;
  bytes.fill(0, at + FRAME_BYTES + frame.payloadBytes, at + frame.frameBytes);
  u32[word] = FRAME_MAGIC;
  u32[word + 1] = frame.kind;
  for (let i = 0; i < 4; i++) u32[word + 2 + i] = storeWords[i];
  writeU64(u32, word + 6, frame.checkpointId);
  u32[word + 8] = frame.number;
  u32[word + 9] = frame.payloadBytes;
  u32[word + 10] = frame.frameBytes;
  u32[word + 11] = frame.items;
  u32.fill(0, word + 12, word + 16);
  u32[word + 15] = window.kernel.checksum(at, frame.frameBytes);
}

/**
 * Bytes that the frame at arena offset `at` claims to take, by its first block alone; 0 when this
 * is no frame of this store's checkpoint `checkpointId` with number `number`.
 */
export function peekFrame(
  window: Window,
  at: number,
  storeWords: Uint32Array,
  checkpointId: number,
  number: number,
): number {
  const { u32 } = window;
  const word = at >>> 2;
  if (u32[word] !== FRAME_MAGIC) return 0;
  for (let i = 0; i < 4; i++) if (u32[word + 2 + i] !== storeWords[i]) return 0;
  if (readU64(u32, word + 6) !== checkpointId || u32[word + 8] !== number) return 0;
  const frameBytes = u32[word + 10];
  const payloadBytes = u32[word + 9];
  if (frameBytes > FRAME_BYTES_MAX || payloadBytes > FRAME_BYTES_MAX - FRAME_BYTES) return 0;
  const expected = Math.ceil((FRAME_BYTES + payloadBytes) / BLOCK_BYTES) * BLOCK_BYTES;
  return frameBytes === expected ? frameBytes : 0;
}

/** Checks the whole frame that {@linkcode peekFrame} accepted; false when it is damaged. */
export function decodeFrame(window: Window, at: number, frame: FrameHeader): boolean {
  const { u32 } = window;
  const word = at >>> 2;
  frame.frameBytes = u32[word + 10];
  const sum = u32[word + 15];
  u32[word + 15] = 0;
  const summed = window.kernel.checksum(at, frame.frameBytes);
  u32[word + 15] = sum;
  if (sum !== summed) return false;
  if ((u32[word + 12] | u32[word + 13] | u32[word + 14]) !== 0) return false;
  const kind = u32[word + 1];
  if (kind < FrameKind.Index || kind > FRAME_KIND_MAX) return false;
  frame.kind = kind;
  frame.checkpointId = readU64(u32, word + 6);
  frame.number = u32[word + 8];
  frame.payloadBytes = u32[word + 9];
  frame.items = u32[word + 11];
  return true;
}

/** A 16-byte identity as four words, for comparing and copying without views. */
export function idWords(id: Uint8Array): Uint32Array {
  const words = new Uint32Array(4);
  for (let i = 0; i < ID_BYTES; i++) words[i >>> 2] |= id[i] << ((i & 3) * 8);
  return words;
}
