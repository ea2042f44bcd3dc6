/**
 * A session with everything around it, ready for requests.
 *
 * @module
 */
import { BlockDevice, type BlockDeviceOptions } from "../../agent/blk/device.ts";
import { VhostSession } from "../../agent/vhost/session.ts";
import { MockTarget } from "../blk/mock_target.ts";
import {
  type Descriptor,
  FEATURE,
  FrontEnd,
  Guest,
  GuestQueue,
  type GuestRegion,
  REQUEST,
  u32s,
  u64s,
} from "./mock_driver.ts";
import { MockHost } from "./mock_host.ts";

/** Where the first region is, in guest and user addresses: not equal, so that mixing them up shows. */
export const GUEST_BASE = 0x4000_0000;
export const USER_BASE = 0x7f00_0000_0000;

/** What a fixture can be told. */
export interface FixtureOptions {
  readonly queueCount?: number;
  readonly queueSize?: number;
  readonly features?: bigint;
  readonly diskBytes?: number;
  readonly guestBytes?: number;
  /** Cuts regions into pieces of this many bytes. */
  readonly pieceBytes?: number;
  readonly device?: BlockDeviceOptions;
  readonly readOnly?: boolean;
  /** Memory and rings of an earlier session, whose guest lives on. */
  readonly of?: Fixture;
}

/** All features of a current Linux guest. */
export const LINUX_FEATURES = FEATURE.SEG_MAX | FEATURE.BLK_SIZE | FEATURE.FLUSH |
  FEATURE.TOPOLOGY | FEATURE.CONFIG_WCE | FEATURE.MQ | FEATURE.DISCARD | FEATURE.WRITE_ZEROES |
  FEATURE.INDIRECT | FEATURE.EVENT_IDX | FEATURE.PROTOCOL | FEATURE.VERSION_1;

/** See the top of the file. */
export class Fixture {
  readonly host: MockHost;
  readonly target: MockTarget;
  readonly device: BlockDevice;
  readonly session: VhostSession;
  readonly frontEnd: FrontEnd;
  readonly guest: Guest;
  readonly queues: GuestQueue[];
  readonly features: bigint;
  /** Next free guest address for buffers. */
  #buffer: number;
  readonly #bufferStart: number;

  constructor(options: FixtureOptions = {}) {
    const { queueCount = 1, queueSize = 16, diskBytes = 1024 * 1024, of } = options;
    const { guestBytes = 1024 * 1024, pieceBytes = Infinity } = options;
    this.features = options.features ?? of?.features ?? LINUX_FEATURES;
    this.host = new MockHost(of?.host);
    this.host.pieceBytes = pieceBytes;
    this.target = of?.target ?? new MockTarget(diskBytes, this.host.windows);
    this.target.readOnly = options.readOnly ?? this.target.readOnly;
    this.device = new BlockDevice(this.target, options.device);
    const { host, device } = this;
    this.session = new VhostSession({ host, windows: host.windows, device });
    this.frontEnd = new FrontEnd(host, this.session);
    if (of !== undefined) {
      this.guest = of.guest;
      this.queues = of.queues;
      this.#bufferStart = of.#bufferStart;
      this.#buffer = of.#buffer;
      return;
    }
    const half = guestBytes / 2;
    const file = host.createFile(guestBytes + 8192);
    // Two regions of one file with a gap between them, the second at another offset: as below and above 4 GiB.
    this.guest = new Guest(host.bytes, [
      { guestAddress: GUEST_BASE, userAddress: USER_BASE, sizeBytes: half, file, fileOffset: 0 },
      {
        guestAddress: GUEST_BASE + 0x1_0000_0000,
        userAddress: USER_BASE + half,
        sizeBytes: half,
        file,
        fileOffset: half + 4096,
      },
    ]);
    this.queues = [];
    let at = GUEST_BASE;
    for (let i = 0; i < queueCount; i++) {
      const queue = new GuestQueue(this.guest, i, queueSize, at);
      queue.eventIndex = (this.features & FEATURE.EVENT_IDX) !== 0n;
      this.queues.push(queue);
      at += GuestQueue.bytesFor(queueSize);
    }
    this.#bufferStart = at;
    this.#buffer = at;
  }

  get queue(): GuestQueue {
    return this.queues[0];
  }

  get regions(): GuestRegion[] {
    return this.guest.regions;
  }

  /** Connects, shares memory, and starts the queues; the lease is granted. */
  start(options: { bases?: number[] } = {}): this {
    const { frontEnd, queues } = this;
    frontEnd.connect();
    this.configure(options);
    for (const queue of queues) {
      frontEnd.setCall(queue);
      frontEnd.setError(queue);
    }
    this.session.leaseGranted();
    this.host.runTurns();
    for (const queue of queues) queue.callEvent.count = 0;
    return this;
  }

  /** Shares memory and starts the queues of a connected front end. */
  configure(options: { bases?: number[] } = {}): void {
    const { frontEnd, queues } = this;
    frontEnd.send(REQUEST.SET_FEATURES, u64s(this.features));
    for (const region of this.regions) {
      if (frontEnd.addRegion(region) !== 0) throw new Error(this.host.events.join("\n"));
    }
    queues.forEach((queue, i) => frontEnd.setUpQueue(queue, options.bases?.[i] ?? 0));
    if ((this.features & FEATURE.PROTOCOL) !== 0n) {
      for (const queue of queues) frontEnd.send(REQUEST.SET_VRING_ENABLE, u32s(queue.index, 1));
    }
  }

  /** A buffer in guest memory; they are never given back, but begin anew with {@linkcode freeBuffers}. */
  allocate(length: number, alignment = 16): number {
    const [region] = this.regions;
    let at = Math.ceil(this.#buffer / alignment) * alignment;
    if (at + length > region.guestAddress + region.sizeBytes) at = this.#bufferStart;
    this.#buffer = at + length;
    return at;
  }

  freeBuffers(): void {
    this.#buffer = this.#bufferStart;
  }

  /** A header of 16 bytes. */
  header(type: number, sector: number): number {
    const at = this.allocate(16);
    this.guest.set32(at, type);
    this.guest.set32(at + 4, 0);
    this.guest.set64(at + 8, sector);
    return at;
  }

  /** The usual chain: header, data, status. The status byte is preset to 0xff. */
  chain(type: number, sector: number, data: Descriptor[]): { chain: Descriptor[]; status: number } {
    const status = this.allocate(1);
    this.guest.set(status, [0xff]);
    const header = { address: this.header(type, sector), length: 16, write: false };
    return { chain: [header, ...data, { address: status, length: 1, write: true }], status };
  }

  /** Does one request and returns what came of it. */
  request(
    type: number,
    sector: number,
    data: Descriptor[] = [],
  ): { status: number; length: number } {
    const { chain, status } = this.chain(type, sector, data);
    if (this.queue.add(chain) < 0) throw new Error("the queue is full");
    this.session.kicked(0);
    this.target.completeAll();
    this.host.runTurns();
    const used = this.queue.reap();
    if (used.length !== 1) throw new Error(`${used.length} used: ${this.host.events}`);
    return { status: this.guest.get(status, 1)[0], length: used[0].length };
  }

  read(sector: number, length: number): { status: number; length: number; data: Uint8Array } {
    const address = this.allocate(length);
    const done = this.request(0, sector, [{ address, length, write: true }]);
    return { ...done, data: this.guest.get(address, length) };
  }

  write(sector: number, data: Uint8Array): { status: number; length: number } {
    const address = this.allocate(data.length);
    this.guest.set(address, data);
    return this.request(1, sector, [{ address, length: data.length, write: false }]);
  }

  /** Ends the session and checks that it left nothing. */
  close(): void {
    this.session.disconnected();
    this.target.completeAll();
    this.host.runTurns();
    if (!this.host.isClosed) throw new Error("the session did not close");
  }
}
