/**
 * Messages between data workers within the heads of a sealed record.
 *
 *     heads    | frame | frame | … |                             up to HEADS_BYTES_MAX
 *     frame    0 head bytes u32 | 4 data bytes u32 | 8 head | zero up to a multiple of 8
 *     head     64 bytes whose fields are replication's | extra part: checksums, lists
 *
 * A record's data is that of its messages, one after the other, in the order of their heads. Sealing costs about as much per record as
 * encrypting 4 KiB does, so small messages of one turn go in one record, with data or without.
 *
 * @module
 */
import { getU32, setU32 } from "../base/bytes.ts";
import { PEER_DATA_BYTES_MAX, PEER_HEAD_BYTES, PEER_HEAD_BYTES_MAX } from "../platform/network.ts";
import { BLOCK_BYTES } from "../base/limits.ts";
import { RECORD_OVERHEAD_BYTES } from "./sealed_stream.ts";

/** Bytes before a frame's head. */
export const FRAME_PREFIX_BYTES = 8;
/** Bytes of heads that one record gathers: several hundred answers. */
export const HEADS_BYTES_MAX = 64 * 1024;
/** Up to here a loop copies faster than a view and a call. */
const COPY_BYTES_MAX = 256;
/** Longest record between data workers. */
export const PEER_RECORD_BYTES_MAX = RECORD_OVERHEAD_BYTES + HEADS_BYTES_MAX + PEER_DATA_BYTES_MAX;

/** Bytes that a head takes in a record. */
export function frameBytes(headBytes: number): number {
  return FRAME_PREFIX_BYTES + ((headBytes + 7) & ~7);
}

/** True when a message of these lengths may exist. */
export function isFrame(headBytes: number, dataBytes: number): boolean {
  return headBytes >= PEER_HEAD_BYTES && headBytes <= PEER_HEAD_BYTES_MAX && dataBytes >= 0 &&
    dataBytes <= PEER_DATA_BYTES_MAX && dataBytes % BLOCK_BYTES === 0;
}

/**
 * Appends a frame.
 *
 * @param heads where to, at `at`; it must have {@linkcode frameBytes} of room
 * @returns where the next one goes
 */
export function putFrame(
  heads: Uint8Array,
  at: number,
  head: Uint8Array,
  headBytes: number,
  dataBytes: number,
): number {
  setU32(heads, at, headBytes);
  setU32(heads, at + 4, dataBytes);
  const from = at + FRAME_PREFIX_BYTES;
  if (headBytes > COPY_BYTES_MAX) {
    heads.set(head.length === headBytes ? head : head.subarray(0, headBytes), from);
  } else for (let i = 0; i < headBytes; i++) heads[from + i] = head[i];
  const end = at + frameBytes(headBytes);
  for (let i = from + headBytes; i < end; i++) heads[i] = 0;
  return end;
}

/**
 * Checks the heads of a record as a whole, so that nothing of it is delivered when any of it is wrong. They are authenticated, but a
 * faulty peer is as bad as a hostile one.
 *
 * @param at where they begin
 * @param end where they end
 * @param dataBytes of the record
 */
export function areFrames(
  heads: Uint8Array,
  at: number,
  end: number,
  dataBytes: number,
): boolean {
  while (at < end) {
    if (end - at < FRAME_PREFIX_BYTES) return false;
    const headBytes = getU32(heads, at), frameDataBytes = getU32(heads, at + 4);
    if (!isFrame(headBytes, frameDataBytes) || frameBytes(headBytes) > end - at) return false;
    at += frameBytes(headBytes);
    dataBytes -= frameDataBytes;
    if (dataBytes < 0) return false;
  }
  return dataBytes === 0;
}

/** Bytes of the head of the frame at `at`. */
export function frameHeadBytes(heads: Uint8Array, at: number): number {
  return getU32(heads, at);
}

/** Bytes of data of the frame at `at`. */
export function frameDataBytes(heads: Uint8Array, at: number): number {
  return getU32(heads, at + 4);
}
