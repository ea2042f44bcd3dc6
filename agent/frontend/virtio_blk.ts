/**
 * virtio-blk as a driver sees it: feature bits, request types, status bytes and the config space.
 * Virtual I/O Device 1.2, sections 2.7 (split virtqueues), 5.2 (block device) and 6 (reserved features).
 *
 *     config   0 capacity u64 (sectors of 512 bytes)   8 size_max u32   12 seg_max u32
 *             16 cylinders u16  18 heads u8  19 sectors u8   20 blk_size u32
 *             24 physical_block_exp u8  25 alignment_offset u8  26 min_io_size u16  28 opt_io_size u32
 *             32 writeback u8  33 unused  34 num_queues u16
 *             36 max_discard_sectors u32  40 max_discard_seg u32  44 discard_sector_alignment u32
 *             48 max_write_zeroes_sectors u32  52 max_write_zeroes_seg u32  56 may_unmap u8  57 unused
 *
 * @module
 */

/** Feature bits. */
export const FEATURE_SIZE_MAX = 1n << 1n;
export const FEATURE_SEG_MAX = 1n << 2n;
export const FEATURE_GEOMETRY = 1n << 4n;
export const FEATURE_READ_ONLY = 1n << 5n;
export const FEATURE_BLK_SIZE = 1n << 6n;
export const FEATURE_FLUSH = 1n << 9n;
export const FEATURE_TOPOLOGY = 1n << 10n;
export const FEATURE_CONFIG_WCE = 1n << 11n;
export const FEATURE_MQ = 1n << 12n;
export const FEATURE_DISCARD = 1n << 13n;
export const FEATURE_WRITE_ZEROES = 1n << 14n;
export const FEATURE_INDIRECT = 1n << 28n;
export const FEATURE_EVENT_INDEX = 1n << 29n;
/** VHOST_USER_F_PROTOCOL_FEATURES: of the transport, not of the device. */
export const FEATURE_PROTOCOL = 1n << 30n;
export const FEATURE_VERSION_1 = 1n << 32n;

/** All of them: what this driver takes where it is offered. */
export const FEATURES_KNOWN = FEATURE_SIZE_MAX | FEATURE_SEG_MAX | FEATURE_GEOMETRY |
  FEATURE_READ_ONLY | FEATURE_BLK_SIZE | FEATURE_FLUSH | FEATURE_TOPOLOGY | FEATURE_CONFIG_WCE |
  FEATURE_MQ | FEATURE_DISCARD | FEATURE_WRITE_ZEROES | FEATURE_INDIRECT | FEATURE_EVENT_INDEX |
  FEATURE_PROTOCOL | FEATURE_VERSION_1;

/** Request types (VIRTIO_BLK_T_…). */
export const enum RequestType {
  In = 0,
  Out = 1,
  Flush = 4,
  GetId = 8,
  Discard = 11,
  WriteZeroes = 13,
}

/** Status bytes (VIRTIO_BLK_S_…). */
export const enum Status {
  Ok = 0,
  IoError = 1,
  Unsupported = 2,
  /** Put there by this driver before the request: the device has not written it yet. */
  None = 0xff,
}

/** Bytes of a sector, the unit of addresses. */
export const SECTOR_BYTES = 512;

/** Bytes of the answer to GET_ID. */
export const IDENTITY_BYTES = 20;

/** Bytes of the config space that are asked for. */
export const CONFIG_BYTES = 60;

/** Offset of the writeback byte, for SET_CONFIG. */
export const CONFIG_WRITEBACK_OFFSET = 32;

/** The config space. Fields whose feature was not offered are as the back end left them. */
export interface BlkConfig {
  readonly capacityBytes: number;
  readonly sizeMaxBytes: number;
  readonly segmentsMax: number;
  readonly blockBytes: number;
  readonly physicalBlockExponent: number;
  readonly alignmentOffset: number;
  readonly minIoBlocks: number;
  readonly optimalIoBlocks: number;
  readonly writeback: number;
  readonly queueCount: number;
  readonly discardSectorsMax: number;
  readonly discardSegmentsMax: number;
  readonly discardSectorAlignment: number;
  readonly writeZeroesSectorsMax: number;
  readonly writeZeroesSegmentsMax: number;
  readonly writeZeroesMayUnmap: number;
}

/** Decodes a config space; what is missing at its end reads as zeros. */
export function decodeConfig(bytes: Uint8Array): BlkConfig {
  const whole = new Uint8Array(CONFIG_BYTES);
  whole.set(bytes.subarray(0, CONFIG_BYTES));
  const view = new DataView(whole.buffer);
  const u16 = (offset: number) => view.getUint16(offset, true);
  const u32 = (offset: number) => view.getUint32(offset, true);
  return {
    capacityBytes: (u32(0) + u32(4) * 2 ** 32) * SECTOR_BYTES,
    sizeMaxBytes: u32(8),
    segmentsMax: u32(12),
    blockBytes: u32(20),
    physicalBlockExponent: whole[24],
    alignmentOffset: whole[25],
    minIoBlocks: u16(26),
    optimalIoBlocks: u32(28),
    writeback: whole[32],
    queueCount: u16(34),
    discardSectorsMax: u32(36),
    discardSegmentsMax: u32(40),
    discardSectorAlignment: u32(44),
    writeZeroesSectorsMax: u32(48),
    writeZeroesSegmentsMax: u32(52),
    writeZeroesMayUnmap: whole[56],
  };
}
