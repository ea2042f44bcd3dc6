/**
 * From a descriptor chain to a block request (virtio 1.2, section 5.2.6).
 *
 * What the driver lays out is two byte strings, cut into descriptors wherever it likes (2.7.4, Message Framing):
 *
 *     readable   0 type u32 | 4 reserved u32 | 8 sector u64 | 16 data (OUT), or one range (DISCARD, WRITE_ZEROES)
 *     writable   data (IN, GET_ID) … | last byte: status u8
 *     range      0 sector u64 | 8 sectors u32 | 12 flags u32 (bit 0: unmap)
 *
 * Invariants:
 * - Everything is checked before anything is done: a request that fails here has touched no data. It is answered
 *   with IOERR or UNSUPP; only one without a place for the status cannot be answered, which is the ring's fault.
 * - The header and the range are read once.
 * - Data that is contiguous in one piece of guest memory is one segment, however it was cut.
 *
 * @module
 */
import { SECTOR_BYTES } from "../base/limits.ts";
import type { GuestMemory } from "../vhost/guest_memory.ts";
import type { DescriptorChain, VirtQueue } from "../vhost/queue.ts";
import { BlockKind, BlockRequest, type BlockRequestOwner } from "./target.ts";

/**
 * Data descriptors that a driver is told it may use (seg_max): two fewer than QEMU's usual queue size, since
 * without indirect tables a request cannot be longer than the queue.
 */
export const DATA_SEGMENTS_MAX = 126;

/**
 * Guest ranges of one request: seg_max, and room for some descriptors that cross the seam between two pieces of guest
 * memory. A request that needs more is refused.
 */
export const REQUEST_SEGMENTS_MAX = DATA_SEGMENTS_MAX + 18;

/** Longest read or write, in bytes: UEFI firmware sends up to this much at once, nothing sends more. */
export const REQUEST_BYTES_MAX = 1024 * 1024 * 1024;

/** Longest discard and write-zeroes, in bytes: many chunks, and still over in the blink of an eye. */
export const RANGE_BYTES_MAX = 1024 * 1024 * 1024;

/** Bytes of the answer to GET_ID. */
export const SERIAL_BYTES = 20;

const HEADER_BYTES = 16;
const RANGE_BYTES = 16;

/** Types of requests. */
export const enum RequestType {
  In = 0,
  Out = 1,
  Flush = 4,
  GetId = 8,
  Discard = 11,
  WriteZeroes = 13,
}

/** Values of the status byte. */
export const enum Status {
  Ok = 0,
  IoError = 1,
  Unsupported = 2,
}

/** What is to be done with a parsed request. */
export const enum Verdict {
  /** The target does it. */
  Submit = 0,
  /** It is answered at once with `request.status`. */
  Answer = 1,
  /** Its segments receive the serial number. */
  Serial = 2,
  /** There is no place for the status. */
  NoStatus = 3,
}

const RANGE_FLAG_UNMAP = 1;

/** A block request and where its answer goes. */
export class GuestRequest extends BlockRequest {
  /** Queue that it came from. */
  queue: VirtQueue | null = null;
  /** Name of its chain. */
  head = 0;
  /** Window of the status byte. */
  statusWindow = 0;
  /** Byte offset of the status byte in its window. */
  statusOffset = 0;
  /** Answer, where the target is not asked. */
  status: Status = Status.Ok;

  constructor(owner: BlockRequestOwner) {
    super(owner, REQUEST_SEGMENTS_MAX);
  }
}

/** Header or range, copied out of guest memory. Used within one call only. */
const scratch = new Uint8Array(HEADER_BYTES);
const scratchWords = new Uint32Array(scratch.buffer);

/**
 * Parses a chain.
 *
 * @param chain the copied descriptors
 * @param memory to find their addresses in; its windows are read
 * @param sizeBytes size of the disk
 * @param isReadOnly refuse what would change it
 * @param request is filled
 */
export function parseRequest(
  chain: DescriptorChain,
  memory: GuestMemory,
  sizeBytes: number,
  isReadOnly: boolean,
  request: GuestRequest,
): Verdict {
  request.segmentCount = 0;
  request.result = 0;
  request.issuedBytes = 0;
  request.issuedSegment = 0;
  request.issuedSegmentBytes = 0;
  request.pending = 0;
  request.forceUnitAccess = false;
  request.unmap = false;
  request.next = null;
  request.head = chain.head;
  request.status = Status.IoError;
  if (!findStatus(chain, memory, request)) return Verdict.NoStatus;
  if (chain.readableBytes < HEADER_BYTES || !copyReadable(chain, memory, 0)) return Verdict.Answer;
  const type = scratchWords[0];
  const sector = scratchWords[3] * 2 ** 32 + scratchWords[2];
  switch (type) {
    case RequestType.In:
      request.kind = BlockKind.Read;
      if (!setRange(request, sector, chain.writableBytes - 1, REQUEST_BYTES_MAX, sizeBytes)) {
        return Verdict.Answer;
      }
      return addWritable(chain, memory, request, chain.writableBytes - 1);
    case RequestType.Out: {
      request.kind = BlockKind.Write;
      const length = chain.readableBytes - HEADER_BYTES;
      if (isReadOnly || !setRange(request, sector, length, REQUEST_BYTES_MAX, sizeBytes)) {
        return Verdict.Answer;
      }
      return addReadable(chain, memory, request, length);
    }
    case RequestType.Flush:
      request.kind = BlockKind.Flush;
      request.offsetBytes = 0;
      request.lengthBytes = 0;
      if (!isReadOnly) return Verdict.Submit;
      // Whoever cannot write has nothing to make durable, and no lease under which that could be done.
      request.status = Status.Ok;
      return Verdict.Answer;
    case RequestType.GetId:
      request.kind = BlockKind.Read;
      return addSerial(chain, memory, request);
    case RequestType.Discard:
      request.kind = BlockKind.Discard;
      return isReadOnly ? Verdict.Answer : parseRange(chain, memory, sizeBytes, request);
    case RequestType.WriteZeroes:
      request.kind = BlockKind.WriteZeroes;
      return isReadOnly ? Verdict.Answer : parseRange(chain, memory, sizeBytes, request);
    default:
      request.status = Status.Unsupported;
      return Verdict.Answer;
  }
}

/** The status is the last byte that the device may write. */
function findStatus(chain: DescriptorChain, memory: GuestMemory, request: GuestRequest): boolean {
  if (chain.writableBytes === 0) return false;
  let last = chain.count - 1;
  while (chain.lengths[last] === 0) last--;
  if (!memory.find(chain.addresses[last] + chain.lengths[last] - 1, 1)) return false;
  request.statusWindow = memory.window;
  request.statusOffset = memory.offset;
  return true;
}

/** Copies 16 readable bytes from `skip` on into the scratch. False when some are not in guest memory. */
function copyReadable(chain: DescriptorChain, memory: GuestMemory, skip: number): boolean {
  let index = 0;
  while (index < chain.readableCount && skip >= chain.lengths[index]) {
    skip -= chain.lengths[index++];
  }
  let done = 0;
  while (done < HEADER_BYTES) {
    const part = Math.min(chain.lengths[index] - skip, HEADER_BYTES - done);
    if (part > 0) {
      if (!memory.find(chain.addresses[index] + skip, part)) return false;
      const window = memory.windows[memory.window];
      const offset = memory.offset;
      if (memory.contiguousBytes === HEADER_BYTES && offset % 4 === 0) {
        const at = offset >>> 2;
        scratchWords[0] = window.u32[at];
        scratchWords[1] = window.u32[at + 1];
        scratchWords[2] = window.u32[at + 2];
        scratchWords[3] = window.u32[at + 3];
        return true;
      }
      const found = memory.contiguousBytes;
      for (let i = 0; i < found; i++) scratch[done++] = window.bytes[offset + i];
      skip += found;
      if (found < part) continue;
    }
    index++;
    skip = 0;
  }
  return true;
}

/** Checks and sets offset and length. */
function setRange(
  request: GuestRequest,
  sector: number,
  lengthBytes: number,
  lengthBytesMax: number,
  sizeBytes: number,
): boolean {
  if (lengthBytes > lengthBytesMax || lengthBytes % SECTOR_BYTES !== 0) return false;
  // Not exact for a hostile sector, but then far beyond any disk: those end below 2^53.
  const offset = sector * SECTOR_BYTES;
  if (offset + lengthBytes > sizeBytes) return false;
  request.offsetBytes = offset;
  request.lengthBytes = lengthBytes;
  return true;
}

function addWritable(
  chain: DescriptorChain,
  memory: GuestMemory,
  request: GuestRequest,
  length: number,
): Verdict {
  return addSegments(chain, memory, request, chain.readableCount, 0, length);
}

function addReadable(
  chain: DescriptorChain,
  memory: GuestMemory,
  request: GuestRequest,
  length: number,
): Verdict {
  let index = 0;
  let skip = HEADER_BYTES;
  while (index < chain.readableCount && skip >= chain.lengths[index]) {
    skip -= chain.lengths[index++];
  }
  return addSegments(chain, memory, request, index, skip, length);
}

/** Adds `length` bytes from byte `skip` of descriptor `index` on. The chain has them. */
function addSegments(
  chain: DescriptorChain,
  memory: GuestMemory,
  request: GuestRequest,
  index: number,
  skip: number,
  length: number,
): Verdict {
  const windows = request.segmentWindows;
  const offsets = request.segmentOffsets;
  const lengths = request.segmentLengths;
  let count = 0;
  let lastPiece = -1;
  let rest = length;
  for (; rest > 0; index++, skip = 0) {
    let address = chain.addresses[index] + skip;
    let part = chain.lengths[index] - skip;
    if (part > rest) part = rest;
    rest -= part;
    while (part > 0) {
      if (!memory.find(address, part)) return Verdict.Answer;
      const found = memory.contiguousBytes;
      const last = count - 1;
      if (
        memory.piece === lastPiece && offsets[last] + lengths[last] === memory.offset
      ) lengths[last] += found;
      else {
        if (count === REQUEST_SEGMENTS_MAX) return Verdict.Answer;
        windows[count] = memory.window;
        offsets[count] = memory.offset;
        lengths[count] = found;
        lastPiece = memory.piece;
        count++;
      }
      address += found;
      part -= found;
    }
  }
  request.segmentCount = count;
  if (length > 0) return Verdict.Submit;
  // Nothing to read or write: done already.
  request.status = Status.Ok;
  return Verdict.Answer;
}

function addSerial(chain: DescriptorChain, memory: GuestMemory, request: GuestRequest): Verdict {
  const length = Math.min(chain.writableBytes - 1, SERIAL_BYTES);
  request.lengthBytes = length;
  const verdict = addWritable(chain, memory, request, length);
  return verdict === Verdict.Submit ? Verdict.Serial : verdict;
}

/** DISCARD and WRITE_ZEROES: exactly one range, as max_discard_seg and max_write_zeroes_seg say. */
function parseRange(
  chain: DescriptorChain,
  memory: GuestMemory,
  sizeBytes: number,
  request: GuestRequest,
): Verdict {
  if (chain.readableBytes !== HEADER_BYTES + RANGE_BYTES) return Verdict.Answer;
  if (!copyReadable(chain, memory, HEADER_BYTES)) return Verdict.Answer;
  const sector = scratchWords[1] * 2 ** 32 + scratchWords[0];
  const length = scratchWords[2] * SECTOR_BYTES;
  const flags = scratchWords[3];
  const allowed = request.kind === BlockKind.WriteZeroes ? RANGE_FLAG_UNMAP : 0;
  if ((flags & ~allowed) !== 0) {
    request.status = Status.Unsupported;
    return Verdict.Answer;
  }
  if (!setRange(request, sector, length, RANGE_BYTES_MAX, sizeBytes)) return Verdict.Answer;
  request.unmap = (flags & RANGE_FLAG_UNMAP) !== 0;
  if (length > 0) return Verdict.Submit;
  request.status = Status.Ok;
  return Verdict.Answer;
}
