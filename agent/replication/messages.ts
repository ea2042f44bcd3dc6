/**
 * What data workers say to each other: the fixed head of every message.
 *
 *       0  type          u8, see MessageType; answers have ANSWER set
 *       1  flags         u8, see MessageFlag
 *       2  version       u16, 1
 *       4  id            u32, of the request; the answer repeats it
 *       8  epoch         u64 of the sender's map, request and answer alike
 *      16  disk          u32
 *      20  layer         u32
 *      24  chunk         u32
 *      28  block         u16
 *      30  count         u16, blocks
 *      32  generation    u32
 *      36  pool          u32, of `group`: its id
 *      40  sequence      u64
 *      48  group         u32
 *      52  status        i32, answers: 0, an errno below 0, or a Status
 *      56  argument      u32, see MessageType
 *      60  incarnation   u32 of the receiver, as the sender knows it; 0: any
 *      64  extra: a table whose length the transport tells
 *
 * All numbers are little-endian, u64 below 2^53. Data follows in whole blocks, in a buffer of its own.
 *
 * @module
 */

import { getU32 } from "../base/bytes.ts";

/** Version that this code speaks. */
export const MESSAGE_VERSION = 1;
/** Bytes of the fixed head. */
export const HEAD_BYTES = 64;
/** Longest table behind the head, in bytes: checksums of the longest transfer, or bitmaps. */
export const EXTRA_BYTES_MAX = 4096;
/** Set in the type of an answer. */
export const ANSWER = 0x80;

/** What a message asks for. Only appended to. */
export const enum MessageType {
  /** Write blocks. Extra: a checksum per block. */
  Write = 1,
  /** Forget blocks. */
  Free = 2,
  /** Blocks read as zeros. */
  Zero = 3,
  /** Make everything acknowledged before durable. */
  Sync = 4,
  /** Read blocks. Extra: layers, newest first. Answer: data, and a checksum per block as extra. */
  Read = 5,
  /** Stamps of the layer's chunks with a generation above `generation`, from `chunk` on. Answer: STAMP entries as data. */
  Stamps = 6,
  /** Stamps of the group's chunks, from (`layer`, `chunk`) on. Answer: STAMP entries as data. */
  List = 7,
  /**
   * What a chunk is made of. Answer: extra of DESCRIPTION_BYTES; generation and sequence are the stamp, `argument` counts how
   * often the chunk was changed otherwise than by writes.
   */
  Describe = 8,
  /** Replace the chunk by that of node `argument`. Answered when it is done. */
  Pull = 9,
  /** Chunks of a layer, from `chunk` on, in groups in which the receiver is in sync. Answer: STAMP entries as data. Level 2. */
  Chunks = 10,
  /** Read and verify blocks of a chunk: `findings.ts` has the extra part and the answer. `argument` 1: heal nothing. Level 2. */
  Inspect = 11,
  /** Replace blocks of a chunk by what node `argument` has: `findings.ts` has the extra part. Answered when that is noted. Level 2. */
  Replace = 12,
  /** Copy a chunk that lacks writes from node `argument`, which has them. Answered when that is noted. Level 2. */
  Complete = 13,
}
/** Largest {@linkcode MessageType}. */
export const MESSAGE_TYPE_MAX = MessageType.Complete;

/** Bits of `flags`. */
export const enum MessageFlag {
  /** Sent before, on a connection that broke: may have been carried out. */
  Again = 1,
  /** Read, Describe, List, Inspect: on behalf of a replica that catches up, not of a guest. */
  Recovery = 2,
  /** Answer to Stamps, List and Chunks: there is more; go on from `layer` and `chunk`. */
  More = 4,
  /** Read, Describe, Inspect: through all layers below the one named, as the receiver's map has them. */
  Chain = 8,
}

/** Answers that are neither success nor an errno: what to do next. */
export const enum Status {
  Ok = 0,
  /** The sender's map is too old, or the receiver's place is another: wait for `epoch`, look again. */
  Stale = 1,
  /** Not now: ask again a little later. */
  Busy = 2,
}

/** One entry of an answer to Stamps, List and Chunks: layer u32, chunk u32, generation u32, zero u32, sequence u64. */
export const STAMP_ENTRY_BYTES = 24;
/** Words of a description: 32 of data bits, 32 of zero bits. */
export const DESCRIPTION_WORDS = 64;
/** The same in bytes. */
export const DESCRIPTION_BYTES = DESCRIPTION_WORDS * 4;

/** A head, decoded; reused. */
export class Head {
  type = 0;
  flags = 0;
  version = MESSAGE_VERSION;
  id = 0;
  epoch = 0;
  disk = 0;
  layer = 0;
  chunk = 0;
  block = 0;
  count = 0;
  generation = 0;
  pool = 0;
  sequence = 0;
  group = 0;
  status = 0;
  argument = 0;
  incarnation = 0;

  /** Sets every field to its beginning. */
  clear(type: number): void {
    this.type = type;
    this.flags = 0;
    this.version = MESSAGE_VERSION;
    this.id = 0;
    this.epoch = 0;
    this.disk = 0;
    this.layer = 0;
    this.chunk = 0;
    this.block = 0;
    this.count = 0;
    this.generation = 0;
    this.pool = 0;
    this.sequence = 0;
    this.group = 0;
    this.status = 0;
    this.argument = 0;
    this.incarnation = 0;
  }

  /** Takes over every field of another. */
  set(from: Head): void {
    this.type = from.type;
    this.flags = from.flags;
    this.version = from.version;
    this.id = from.id;
    this.epoch = from.epoch;
    this.disk = from.disk;
    this.layer = from.layer;
    this.chunk = from.chunk;
    this.block = from.block;
    this.count = from.count;
    this.generation = from.generation;
    this.pool = from.pool;
    this.sequence = from.sequence;
    this.group = from.group;
    this.status = from.status;
    this.argument = from.argument;
    this.incarnation = from.incarnation;
  }

  /** Writes the head to the beginning of `words`, on a little-endian machine as are all that the agent runs on. */
  encode(words: Uint32Array): void {
    words[0] = this.type | this.flags << 8 | this.version << 16;
    words[1] = this.id;
    words[2] = this.epoch;
    words[3] = this.epoch / TWO32;
    words[4] = this.disk;
    words[5] = this.layer;
    words[6] = this.chunk;
    words[7] = this.block | this.count << 16;
    words[8] = this.generation;
    words[9] = this.pool;
    words[10] = this.sequence;
    words[11] = this.sequence / TWO32;
    words[12] = this.group;
    words[13] = this.status;
    words[14] = this.argument;
    words[15] = this.incarnation;
  }

  /** Reads a head from the beginning of `bytes`; false when it is none that this code knows. */
  decode(bytes: Uint8Array): boolean {
    this.type = bytes[0];
    this.flags = bytes[1];
    this.version = bytes[2] | bytes[3] << 8;
    this.id = getU32(bytes, 4);
    this.epoch = getNumber(bytes, 8);
    this.disk = getU32(bytes, 16);
    this.layer = getU32(bytes, 20);
    this.chunk = getU32(bytes, 24);
    this.block = bytes[28] | bytes[29] << 8;
    this.count = bytes[30] | bytes[31] << 8;
    this.generation = getU32(bytes, 32);
    this.pool = getU32(bytes, 36);
    this.sequence = getNumber(bytes, 40);
    this.group = getU32(bytes, 48);
    this.status = getU32(bytes, 52) | 0;
    this.argument = getU32(bytes, 56);
    this.incarnation = getU32(bytes, 60);
    const type = this.type & ~ANSWER;
    return type >= 1 && type <= MESSAGE_TYPE_MAX && this.version === MESSAGE_VERSION &&
      this.epoch >= 0 && this.sequence >= 0;
  }
}

const TWO32 = 2 ** 32;

/** A u64 below 2^53, or −1. */
function getNumber(bytes: Uint8Array, at: number): number {
  const high = getU32(bytes, at + 4);
  return high < 2 ** 21 ? getU32(bytes, at) + high * TWO32 : -1;
}

/** A u64 below 2^53, or −1. */
export function getU64(view: DataView, at: number): number {
  const high = view.getUint32(at + 4, true);
  return high < 2 ** 21 ? view.getUint32(at, true) + high * 2 ** 32 : -1;
}

/** Writes a number below 2^53 as a u64. */
export function setU64(view: DataView, at: number, value: number): void {
  view.setUint32(at, value >>> 0, true);
  view.setUint32(at + 4, Math.floor(value / 2 ** 32), true);
}
