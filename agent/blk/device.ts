/**
 * The virtio-blk device (virtio 1.2, section 5.2): features, config space, the life of a request.
 *
 * A request's life: the session pops a chain; `begin` parses it into a preallocated {@linkcode GuestRequest} and submits
 * it to the target; the target gives it back by `requestDone`; the status byte is written, its page and those of the
 * data read are logged, and the chain is pushed to the used ring.
 *
 *     config   0 capacity u64 (sectors) | 8 size_max u32 (0) | 12 seg_max u32 | 16 geometry (0)
 *              20 blk_size u32 | 24 physical_block_exp u8 | 25 alignment_offset u8 | 26 min_io_size u16 (blk_size)
 *              28 opt_io_size u32 (blk_size) | 32 writeback u8 | 33 unused | 34 num_queues u16
 *              36 max_discard_sectors u32 | 40 max_discard_seg u32 | 44 discard_sector_alignment u32
 *              48 max_write_zeroes_sectors u32 | 52 max_write_zeroes_seg u32 | 56 write_zeroes_may_unmap u8 | 57 unused
 *
 * Durability (5.2.5, 5.2.6.2): a write is durable when it completes, unless the driver negotiated FLUSH and has not
 * turned the cache to write-through. Then it is durable when a FLUSH that was sent after its completion
 * completes, which the target sees to.
 *
 * Invariants:
 * - A chain that was begun is pushed exactly once.
 * - `used.len` is the number of bytes written: the data of a successful read, and the status.
 *
 * @module
 */
import { BLOCK_BYTES, BLOCK_SHIFT, SECTOR_BYTES, TRANSFER_BYTES_MAX } from "../base/limits.ts";
import type { DeviceContext, VhostDevice } from "../vhost/device.ts";
import { type DescriptorChain, RingFault, type VirtQueue } from "../vhost/queue.ts";
import {
  DATA_SEGMENTS_MAX,
  GuestRequest,
  parseRequest,
  RANGE_BYTES_MAX,
  SERIAL_BYTES,
  Status,
  Verdict,
} from "./request.ts";
import {
  BlockKind,
  type BlockRequest,
  type BlockRequestOwner,
  type BlockTarget,
} from "./target.ts";

/** Bytes of the config space, up to what is offered. */
export const CONFIG_SPACE_BYTES = 60;

/** Feature bits of a block device. */
export const enum BlockFeature {
  SegMax = 1 << 2,
  ReadOnly = 1 << 5,
  BlockSize = 1 << 6,
  Flush = 1 << 9,
  Topology = 1 << 10,
  ConfigWce = 1 << 11,
  MultiQueue = 1 << 12,
  Discard = 1 << 13,
  WriteZeroes = 1 << 14,
}

/** Queues of a device unless told otherwise: one per vCPU, for as many as anyone gives a guest. */
const QUEUES_DEFAULT = 64;

const WRITEBACK_OFFSET = 32;
const PHYSICAL_BLOCK_EXPONENT = BLOCK_SHIFT - 9;
/** `restartState`: the guest chose write-through. */
const STATE_WRITE_THROUGH = 1;

/** Choices of the disk's owner. */
export interface BlockDeviceOptions {
  /** Queues offered, 1…64. */
  readonly queueCountMax?: number;
}

/** A virtio-blk device in front of a target. */
export class BlockDevice implements VhostDevice, BlockRequestOwner {
  readonly queueCountMax: number;
  /** {@inheritDoc VhostDevice.identity} */
  readonly identity: number;
  /** Requests with the target. */
  inFlightCount = 0;

  readonly #target: BlockTarget;
  #context: DeviceContext | null = null;
  #acknowledged = 0;
  #isWriteback = true;
  /** Writes must be durable when they complete. Follows from features and cache mode. */
  #isWriteThrough = true;
  /** Requests not in use; at most one per descriptor of each queue is ever made. */
  #free: GuestRequest | null = null;
  readonly #serial = new Uint8Array(SERIAL_BYTES);

  constructor(target: BlockTarget, options: BlockDeviceOptions = {}) {
    this.#target = target;
    this.queueCountMax = options.queueCountMax ?? QUEUES_DEFAULT;
    for (let i = 0; i < SERIAL_BYTES && i < target.serial.length; i++) {
      this.#serial[i] = target.serial.charCodeAt(i) & 0x7f;
    }
    this.identity = identityOf(target.serial);
  }

  /** {@inheritDoc VhostDevice.features} */
  get features(): number {
    const common = BlockFeature.SegMax | BlockFeature.BlockSize | BlockFeature.Flush |
      BlockFeature.Topology | BlockFeature.ConfigWce | BlockFeature.MultiQueue;
    return this.#target.readOnly
      ? common | BlockFeature.ReadOnly
      : common | BlockFeature.Discard | BlockFeature.WriteZeroes;
  }

  /** {@inheritDoc VhostDevice.bind} */
  bind(context: DeviceContext): void {
    this.#context = context;
  }

  /** {@inheritDoc VhostDevice.acknowledge} */
  acknowledge(low: number, _high: number): void {
    this.#acknowledged = low;
    this.#settleCacheMode();
  }

  /**
   * {@inheritDoc VhostDevice.reset}
   *
   * The cache mode stays: front ends go on showing the driver the mode that was chosen before, and a driver that
   * sees write-through sends no flushes. Being stricter than asked is safe, being laxer is not.
   */
  reset(): void {
    this.#acknowledged = 0;
    this.#settleCacheMode();
  }

  /** {@inheritDoc VhostDevice.restartState} */
  get restartState(): number {
    return this.#isWriteback ? 0 : STATE_WRITE_THROUGH;
  }

  /** {@inheritDoc VhostDevice.restore} */
  restore(state: number): void {
    this.#isWriteback = (state & STATE_WRITE_THROUGH) === 0;
    this.#settleCacheMode();
  }

  #settleCacheMode(): void {
    const features = this.#acknowledged;
    this.#isWriteThrough = (features & BlockFeature.Flush) === 0 ||
      ((features & BlockFeature.ConfigWce) !== 0 && !this.#isWriteback);
  }

  /** {@inheritDoc VhostDevice.readConfig} */
  readConfig(offset: number, target: Uint8Array): void {
    const config = this.#config();
    for (let i = 0; i < target.length; i++) target[i] = config[offset + i] ?? 0;
  }

  #config(): Uint8Array<ArrayBuffer> {
    const config = new Uint8Array(CONFIG_SPACE_BYTES);
    const view = new DataView(config.buffer);
    const sectors = Math.floor(this.#target.sizeBytes / SECTOR_BYTES);
    view.setUint32(0, sectors % 2 ** 32, true);
    view.setUint32(4, Math.floor(sectors / 2 ** 32), true);
    view.setUint32(12, DATA_SEGMENTS_MAX, true);
    view.setUint32(20, SECTOR_BYTES, true);
    view.setUint8(24, PHYSICAL_BLOCK_EXPONENT);
    view.setUint16(26, BLOCK_BYTES / SECTOR_BYTES, true);
    view.setUint32(28, TRANSFER_BYTES_MAX / SECTOR_BYTES, true);
    view.setUint8(WRITEBACK_OFFSET, this.#isWriteback ? 1 : 0);
    view.setUint16(34, this.queueCountMax, true);
    if (!this.#target.readOnly) {
      view.setUint32(36, RANGE_BYTES_MAX / SECTOR_BYTES, true);
      view.setUint32(40, 1, true);
      view.setUint32(44, BLOCK_BYTES / SECTOR_BYTES, true);
      view.setUint32(48, RANGE_BYTES_MAX / SECTOR_BYTES, true);
      view.setUint32(52, 1, true);
      view.setUint8(56, 1);
    }
    return config;
  }

  /**
   * {@inheritDoc VhostDevice.writeConfig}
   *
   * A driver may write `writeback` and nothing else; a migration brings the whole space, of which
   * that one field is the device's state.
   */
  writeConfig(offset: number, data: Uint8Array, isMigration: boolean): boolean {
    const at = WRITEBACK_OFFSET - offset;
    if (!isMigration && (at !== 0 || data.length !== 1 || data[0] > 1)) return false;
    if (at < 0 || at >= data.length) return true;
    this.#isWriteback = data[at] !== 0;
    this.#settleCacheMode();
    return true;
  }

  /** {@inheritDoc VhostDevice.isOpen} */
  get isOpen(): boolean {
    const admission = this.#target.admission;
    return admission === undefined || admission.isOpen;
  }

  /** {@inheritDoc VhostDevice.begin} */
  begin(queue: VirtQueue, chain: DescriptorChain): number {
    const request = this.#take();
    const target = this.#target;
    const memory = this.#context!.memory;
    request.queue = queue;
    switch (parseRequest(chain, memory, target.sizeBytes, target.readOnly, request)) {
      case Verdict.Submit:
        request.forceUnitAccess = this.#isWriteThrough && request.kind !== BlockKind.Read &&
          request.kind !== BlockKind.Flush;
        this.inFlightCount++;
        target.admission?.charge(hasData(request) ? request.lengthBytes : 0);
        target.submit(request);
        return RingFault.None;
      case Verdict.Answer:
        this.#finish(request, request.status, 0);
        return RingFault.None;
      case Verdict.Serial:
        this.#writeSerial(request);
        this.#finish(request, Status.Ok, request.lengthBytes);
        return RingFault.None;
      default:
        this.#release(request);
        return RingFault.NoStatus;
    }
  }

  /** {@inheritDoc BlockRequestOwner.requestDone} */
  requestDone(done: BlockRequest): void {
    // Only requests of `#take` are ever submitted.
    const request = done as GuestRequest;
    this.inFlightCount--;
    const isOk = request.result === 0;
    const dataBytes = isOk && request.kind === BlockKind.Read ? request.lengthBytes : 0;
    this.#finish(request, isOk ? Status.Ok : Status.IoError, dataBytes);
  }

  #finish(request: GuestRequest, status: Status, dataBytes: number): void {
    const { memory, log } = this.#context!;
    const queue = request.queue!;
    if (!queue.isAbandoned) {
      memory.windows[request.statusWindow].bytes[request.statusOffset] = status;
    }
    if (log.active) this.#logWrites(request);
    queue.push(request.head, dataBytes + 1);
    this.#release(request);
  }

  /** Also after a failure: part of the data may have been written. */
  #logWrites(request: GuestRequest): void {
    const { memory, log } = this.#context!;
    log.mark(memory.guestAddressOf(request.statusWindow, request.statusOffset), 1);
    if (request.kind !== BlockKind.Read) return;
    for (let i = 0; i < request.segmentCount; i++) {
      const address = memory.guestAddressOf(request.segmentWindows[i], request.segmentOffsets[i]);
      log.mark(address, request.segmentLengths[i]);
    }
  }

  #writeSerial(request: GuestRequest): void {
    const windows = this.#context!.memory.windows;
    let done = 0;
    for (let i = 0; i < request.segmentCount; i++) {
      const bytes = windows[request.segmentWindows[i]].bytes;
      const offset = request.segmentOffsets[i];
      for (let at = 0; at < request.segmentLengths[i]; at++) {
        bytes[offset + at] = this.#serial[done++];
      }
    }
  }

  #take(): GuestRequest {
    const request = this.#free;
    if (request === null) return new GuestRequest(this);
    // `next` is the target's while it has the request, ours while it is free.
    this.#free = request.next as GuestRequest | null;
    return request;
  }

  #release(request: GuestRequest): void {
    request.queue = null;
    request.next = this.#free;
    this.#free = request;
  }
}

/** FNV-1a of a serial number, which no two disks have in common; never 0. */
function identityOf(serial: string): number {
  let hash = 0x811c9dc5;
  for (let i = 0; i < serial.length; i++) {
    hash = Math.imul(hash ^ serial.charCodeAt(i), 0x01000193);
  }
  return hash >>> 0 || 1;
}

/** Whether a request moves data: the others go by the number of requests alone. */
function hasData({ kind }: BlockRequest): boolean {
  return kind === BlockKind.Read || kind === BlockKind.Write;
}
