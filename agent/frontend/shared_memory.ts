/**
 * The memory that a front end shares with its back end: what a guest's RAM is to QEMU.
 *
 *     memfd    0                    controlBytes                    sizeBytes
 *              |  control: rings,   |  data: one buffer per slot    |
 *              |  headers, status   |                               |
 *     guest    CONTROL_ADDRESS      DATA_ADDRESS
 *
 * Two regions at unlike guest addresses, the second at a mapping offset other than zero, so that a back
 * end which mixes up the three kinds of address does not get away with it. The memfd is sealed against
 * shrinking and growing.
 *
 * @module
 */
import {
  addressOf,
  check,
  closeFd,
  cString,
  libc,
  MAP_ANONYMOUS,
  MAP_FIXED,
  MAP_NORESERVE,
  MAP_PRIVATE,
  MAP_SHARED,
  mapMemory,
  viewOf,
} from "../platform/linux/libc.ts";

const CONTROL_ADDRESS = 0x4000_0000;
const DATA_ADDRESS = 0x1_0000_0000;

const MFD_CLOEXEC = 1, MFD_ALLOW_SEALING = 2;
const F_ADD_SEALS = 1033, F_SEAL_SHRINK = 2, F_SEAL_GROW = 4;

/** Regions are whole huge pages long, as a guest's memory is. */
const REGION_BYTES_MULTIPLE = 2 * 1024 * 1024;

/** Most memory that is shared; byte indices stay 31-bit integers. */
const SHARED_BYTES_MAX = 2 * 1024 * 1024 * 1024 - REGION_BYTES_MULTIPLE;

/** One region as SET_MEM_TABLE describes it. */
export interface SharedRegion {
  readonly guestAddress: number;
  readonly sizeBytes: number;
  readonly userAddress: number;
  readonly fileOffset: number;
}

/** Memory of this process that a back end maps as well. */
export class SharedMemory {
  readonly fd: number;
  readonly bytes: Uint8Array<ArrayBuffer>;
  readonly u16: Uint16Array<ArrayBuffer>;
  readonly u32: Uint32Array<ArrayBuffer>;
  readonly regions: readonly [SharedRegion, SharedRegion];

  /**
   * @param controlBytes room for what is not data, > 0
   * @param dataBytes room for data, > 0
   */
  constructor(options: { readonly controlBytes: number; readonly dataBytes: number }) {
    const controlBytes = roundUp(options.controlBytes);
    const dataBytes = roundUp(options.dataBytes);
    const sizeBytes = controlBytes + dataBytes;
    if (sizeBytes > SHARED_BYTES_MAX) {
      throw new RangeError(
        `buffers and rings need ${sizeBytes} bytes of memory, more than ${SHARED_BYTES_MAX}: use ` +
          `a smaller depth, block size or number of queues`,
      );
    }
    const flags = MFD_CLOEXEC | MFD_ALLOW_SEALING;
    this.fd = check(libc.memfd_create(cString("kelpie-front-end"), flags), "memfd_create");
    check(libc.ftruncate(this.fd, BigInt(sizeBytes)), "ftruncate of the shared memory");
    check(libc.fcntl(this.fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW), "sealing the memfd");
    const userAddress = mapMemory({ lengthBytes: sizeBytes, flags: MAP_SHARED, fd: this.fd });
    this.bytes = viewOf(userAddress, sizeBytes);
    this.u16 = new Uint16Array(this.bytes.buffer);
    this.u32 = new Uint32Array(this.bytes.buffer);
    this.regions = [
      { guestAddress: CONTROL_ADDRESS, sizeBytes: controlBytes, userAddress, fileOffset: 0 },
      {
        guestAddress: DATA_ADDRESS,
        sizeBytes: dataBytes,
        userAddress: userAddress + controlBytes,
        fileOffset: controlBytes,
      },
    ];
  }

  /** Offset of the first data byte. */
  get dataOffset(): number {
    return this.regions[1].fileOffset;
  }

  /** Guest address of a byte, as descriptors carry it. */
  guestAddress(offset: number): number {
    const region = this.regions[offset < this.dataOffset ? 0 : 1];
    return region.guestAddress + offset - region.fileOffset;
  }

  /** User address of a byte, as SET_VRING_ADDR carries it. */
  userAddress(offset: number): number {
    return this.regions[0].userAddress + offset;
  }

  /**
   * Gives the memory back. The views stay readable and turn to zeros: whoever still holds one must not
   * crash the process.
   */
  close(): void {
    mapMemory({
      address: addressOf(this.bytes),
      lengthBytes: this.bytes.length,
      flags: MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE,
    });
    closeFd(this.fd);
  }
}

function roundUp(bytes: number): number {
  return Math.ceil(bytes / REGION_BYTES_MULTIPLE) * REGION_BYTES_MULTIPLE;
}
