/**
 * Streaming copies between a disk and anything else, with several requests in flight: for import and
 * export.
 *
 * @module
 */
import type { FrontEnd } from "./front_end.ts";
import { RequestType, SECTOR_BYTES } from "./virtio_blk.ts";

/** What to copy, and who wants to know. */
export interface CopyOptions {
  /** First byte on the disk, a multiple of 512; 0 by default. */
  readonly offsetBytes?: number;
  /** Bytes, a multiple of 512; the rest of the disk by default. */
  readonly lengthBytes?: number;
  /** Called after each piece with the bytes done. */
  readonly onProgress?: (doneBytes: number) => void;
  /** Ends the copy with the signal's reason; what is in flight is waited for. */
  readonly signal?: AbortSignal;
}

interface Piece {
  readonly slot: number;
  readonly offsetBytes: number;
  readonly lengthBytes: number;
}

/**
 * Reads a range in order, `depth` pieces ahead.
 *
 * @param sink gets each piece with its offset on the disk; the bytes are only valid until it is done
 * @throws BackEndError, what the sink throws, or the signal's reason
 */
export async function copyFromDisk(
  disk: FrontEnd,
  sink: (bytes: Uint8Array, offsetBytes: number) => void | Promise<void>,
  options: CopyOptions = {},
): Promise<void> {
  const { start, end } = rangeOf(disk, options);
  const queue = disk.queues[0];
  const pieces: Piece[] = [];
  let issued = start;
  try {
    while (issued < end || pieces.length > 0) {
      options.signal?.throwIfAborted();
      while (issued < end && queue.freeCount > 0) {
        const lengthBytes = Math.min(queue.bufferBytes, end - issued);
        const slot = queue.takeSlot();
        queue.submit(slot, RequestType.In, issued / SECTOR_BYTES, lengthBytes);
        disk.start(slot);
        pieces.push({ slot, offsetBytes: issued, lengthBytes });
        issued += lengthBytes;
      }
      const { slot, offsetBytes, lengthBytes } = pieces.shift()!;
      await disk.finish(slot);
      try {
        const at = queue.dataOffset(slot);
        await sink(disk.memory.bytes.subarray(at, at + lengthBytes), offsetBytes);
      } finally {
        queue.releaseSlot(slot);
      }
      options.onProgress?.(offsetBytes + lengthBytes - start);
    }
  } finally {
    for (const { slot } of pieces) await disk.settle(slot); // their buffers are about to be used again
  }
}

/** How {@linkcode copyToDisk} treats pieces that are all zeros. */
export type ZeroPolicy =
  /** Write them like any other. */
  | "write"
  /** Leave them out: right for a disk that reads as zeros there. */
  | "skip";

/**
 * Writes a range in order, `depth` pieces ahead. Flush afterwards to have it durable.
 *
 * @param source fills the bytes for an offset on the disk. Returns how many bytes it filled; fewer than
 * asked ends the copy there, the last sector filled up with zeros
 * @returns bytes that came from the source
 * @throws BackEndError, what the source throws, or the signal's reason
 */
export async function copyToDisk(
  disk: FrontEnd,
  source: (bytes: Uint8Array, offsetBytes: number) => number | Promise<number>,
  options: CopyOptions & { readonly zeroes?: ZeroPolicy } = {},
): Promise<number> {
  const { start, end } = rangeOf(disk, options);
  const queue = disk.queues[0];
  const pieces: Piece[] = [];
  let at = start;
  let isEnded = false;
  const finishFirst = async () => {
    const { slot, offsetBytes, lengthBytes } = pieces.shift()!;
    await disk.finish(slot);
    queue.releaseSlot(slot);
    options.onProgress?.(Math.min(offsetBytes + lengthBytes, at) - start);
  };
  try {
    while (at < end && !isEnded) {
      options.signal?.throwIfAborted();
      while (queue.freeCount === 0) await finishFirst();
      const wantedBytes = Math.min(queue.bufferBytes, end - at);
      const slot = queue.takeSlot();
      const data = queue.dataOffset(slot);
      const buffer = disk.memory.bytes.subarray(data, data + wantedBytes);
      let filledBytes = 0;
      try {
        filledBytes = await source(buffer, at);
      } catch (error) {
        queue.releaseSlot(slot);
        throw error;
      }
      isEnded = filledBytes < wantedBytes;
      const lengthBytes = Math.ceil(filledBytes / SECTOR_BYTES) * SECTOR_BYTES;
      buffer.fill(0, filledBytes, lengthBytes);
      const isSkipped = lengthBytes === 0 ||
        options.zeroes === "skip" && isZero(disk, data, lengthBytes);
      if (isSkipped) queue.releaseSlot(slot);
      else {
        queue.submit(slot, RequestType.Out, at / SECTOR_BYTES, lengthBytes);
        disk.start(slot);
        pieces.push({ slot, offsetBytes: at, lengthBytes });
      }
      at += filledBytes;
      if (isSkipped && pieces.length === 0) options.onProgress?.(at - start);
    }
    while (pieces.length > 0) await finishFirst();
  } finally {
    for (const { slot } of pieces) await disk.settle(slot); // their buffers are about to be used again
  }
  options.onProgress?.(at - start);
  return at - start;
}

function rangeOf(disk: FrontEnd, options: CopyOptions): { start: number; end: number } {
  const start = options.offsetBytes ?? 0;
  const lengthBytes = options.lengthBytes ?? disk.capacityBytes - start;
  disk.checkRange(start, lengthBytes);
  return { start, end: start + lengthBytes };
}

function isZero(disk: FrontEnd, offset: number, lengthBytes: number): boolean {
  const words = disk.memory.u32;
  const end = (offset + lengthBytes) >> 2;
  for (let index = offset >> 2; index < end; index++) if (words[index] !== 0) return false;
  return true;
}
