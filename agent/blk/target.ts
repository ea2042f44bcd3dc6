/**
 * What a virtio-blk device needs of the disk behind it, and the request that travels between them.
 *
 * The device (`blk/device.ts`) parses guest descriptors into a {@linkcode BlockRequest}; the target
 * (`volume/volume.ts`, or a mock) carries it out and gives it back once. Requests are preallocated,
 * one per slot of a virtqueue.
 *
 * @module
 */

/** What a block request does. */
export const enum BlockKind {
  Read = 0,
  Write = 1,
  Flush = 2,
  Discard = 3,
  WriteZeroes = 4,
}

/** Most guest memory ranges of one request: seg_max data descriptors may split at region seams. */
export const SEGMENTS_MAX = 1024 + 16;

/** Receives finished requests. */
export interface BlockRequestOwner {
  /** `request.result` is 0 or a negative errno. Never called from inside `submit`. */
  requestDone(request: BlockRequest): void;
}

/** One preallocated request. Data ranges lie in guest memory and may change under us at any time. */
export class BlockRequest {
  kind: BlockKind = BlockKind.Read;
  /** First byte on the disk; a multiple of 512. Already checked against the disk's size. */
  offsetBytes = 0;
  /** Bytes; a multiple of 512. Sum of the segments for Read and Write. */
  lengthBytes = 0;
  /** WriteZeroes: the guest allows the space to be freed. */
  unmap = false;
  /** Write: durable before it completes (no FLUSH negotiated, or write-through). */
  forceUnitAccess = false;
  /** Of a front end that only reads: it has no lease, and none that ends is its own. */
  isLeaseless = false;
  /** Guest ranges in use. */
  segmentCount = 0;
  /** Index into `Memory.windows`. */
  readonly segmentWindows: Uint16Array<ArrayBuffer>;
  /** Byte offset within the window. */
  readonly segmentOffsets: Uint32Array<ArrayBuffer>;
  /** Length in bytes. */
  readonly segmentLengths: Uint32Array<ArrayBuffer>;
  /** 0 or a negative errno once done. */
  result = 0;
  /** Slot of the issuer: queue and descriptor head. */
  tag = 0;
  /** Intrusive link for whichever queue holds the request now. */
  next: BlockRequest | null = null;

  // Progress, for the target's own use while it holds the request.
  /** Bytes for which operations have been issued. */
  issuedBytes = 0;
  /** Segment in which the next byte to issue lies. */
  issuedSegment = 0;
  /** Bytes of that segment already issued. */
  issuedSegmentBytes = 0;
  /** Transfers under way. */
  pending = 0;
  /** All of it is done but the sync that it asks for, which waits for a transfer. */
  isSyncOwed = false;
  /** When it was submitted, in milliseconds, where its service time is measured; else 0. */
  startedMs = 0;

  constructor(readonly owner: BlockRequestOwner, segmentsMax: number = SEGMENTS_MAX) {
    this.segmentWindows = new Uint16Array(segmentsMax);
    this.segmentOffsets = new Uint32Array(segmentsMax);
    this.segmentLengths = new Uint32Array(segmentsMax);
  }
}

/** Holds requests back that are above a disk's limits; `volume/throttle.ts`. */
export interface Admission {
  /** A request may be taken. */
  readonly isOpen: boolean;
  /**
   * A request is taken.
   *
   * @param bytes of data that it moves: those of a read or a write
   */
  charge(bytes: number): void;
}

/** The disk behind a device. */
export interface BlockTarget {
  /** Size in bytes; a multiple of 512. Changes on resize. */
  readonly sizeBytes: number;
  readonly readOnly: boolean;
  /** At most 20 bytes of ASCII, the answer to GET_ID. */
  readonly serial: string;
  /** Of all front ends of the disk together; without it, everything is taken at once. */
  readonly admission?: Admission;
  /** Takes the request; it comes back through its owner exactly once. */
  submit(request: BlockRequest): void;
}
