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
 *      36  copies        u32, pool of `group`
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
  /** What a chunk is made of. Answer: extra of DESCRIPTION_BYTES; generation and sequence are the stamp. */
  Describe = 8,
  /** Replace the chunk by that of node `argument`. Answered when it is done. */
  Pull = 9,
}
/** Largest {@linkcode MessageType}. */
export const MESSAGE_TYPE_MAX = MessageType.Pull;

/** Bits of `flags`. */
export const enum MessageFlag {
  /** Sent before, on a connection that broke: may have been carried out. */
  Again = 1,
  /** Read, Describe, List: on behalf of a replica that catches up, not of a guest. */
  Recovery = 2,
  /** Answer to Stamps and List: there is more; go on from `layer` and `chunk`. */
  More = 4,
}

/** Answers that are neither success nor an errno: what to do next. */
export const enum Status {
  Ok = 0,
  /** The sender's map is too old, or the receiver's place is another: wait for `epoch`, look again. */
  Stale = 1,
  /** Not now: ask again a little later. */
  Busy = 2,
}

/** One entry of an answer to Stamps and List: layer u32, chunk u32, generation u32, zero u32, sequence u64. */
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
  copies = 0;
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
    this.copies = 0;
    this.sequence = 0;
    this.group = 0;
    this.status = 0;
    this.argument = 0;
    this.incarnation = 0;
  }

  /** Writes the head to the beginning of `view`. */
  encode(view: DataView): void {
    view.setUint8(0, this.type);
    view.setUint8(1, this.flags);
    view.setUint16(2, this.version, true);
    view.setUint32(4, this.id, true);
    setU64(view, 8, this.epoch);
    view.setUint32(16, this.disk, true);
    view.setUint32(20, this.layer, true);
    view.setUint32(24, this.chunk, true);
    view.setUint16(28, this.block, true);
    view.setUint16(30, this.count, true);
    view.setUint32(32, this.generation, true);
    view.setUint32(36, this.copies, true);
    setU64(view, 40, this.sequence);
    view.setUint32(48, this.group, true);
    view.setInt32(52, this.status, true);
    view.setUint32(56, this.argument, true);
    view.setUint32(60, this.incarnation, true);
  }

  /** Reads a head from the beginning of `view`; false when it is none that this code knows. */
  decode(view: DataView): boolean {
    this.type = view.getUint8(0);
    this.flags = view.getUint8(1);
    this.version = view.getUint16(2, true);
    this.id = view.getUint32(4, true);
    this.epoch = getU64(view, 8);
    this.disk = view.getUint32(16, true);
    this.layer = view.getUint32(20, true);
    this.chunk = view.getUint32(24, true);
    this.block = view.getUint16(28, true);
    this.count = view.getUint16(30, true);
    this.generation = view.getUint32(32, true);
    this.copies = view.getUint32(36, true);
    this.sequence = getU64(view, 40);
    this.group = view.getUint32(48, true);
    this.status = view.getInt32(52, true);
    this.argument = view.getUint32(56, true);
    this.incarnation = view.getUint32(60, true);
    const type = this.type & ~ANSWER;
    return type >= 1 && type <= MESSAGE_TYPE_MAX && this.version === MESSAGE_VERSION &&
      this.epoch >= 0 && this.sequence >= 0;
  }
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
