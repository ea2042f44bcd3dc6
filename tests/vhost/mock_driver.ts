/**
 * The other side of a session under test: a front end that sends messages, and a guest driver that fills rings.
 *
 * Written from the specifications and independent of the code under test: it has its own encoder, its own address
 * translation and its own idea of a ring. It can also do everything that no driver may.
 *
 * @module
 */
import type { Prng } from "../../agent/base/prng.ts";
import type { VhostSession } from "../../agent/vhost/session.ts";
import type { MockEvent, MockFile, MockHost } from "./mock_host.ts";

/** Numbers of the specification, spelled out here a second time on purpose. */
export const REQUEST = {
  GET_FEATURES: 1,
  SET_FEATURES: 2,
  SET_OWNER: 3,
  RESET_OWNER: 4,
  SET_MEM_TABLE: 5,
  SET_LOG_BASE: 6,
  SET_LOG_FD: 7,
  SET_VRING_NUM: 8,
  SET_VRING_ADDR: 9,
  SET_VRING_BASE: 10,
  GET_VRING_BASE: 11,
  SET_VRING_KICK: 12,
  SET_VRING_CALL: 13,
  SET_VRING_ERR: 14,
  GET_PROTOCOL_FEATURES: 15,
  SET_PROTOCOL_FEATURES: 16,
  GET_QUEUE_NUM: 17,
  SET_VRING_ENABLE: 18,
  SET_BACKEND_REQ_FD: 21,
  GET_CONFIG: 24,
  SET_CONFIG: 25,
  GET_INFLIGHT_FD: 31,
  SET_INFLIGHT_FD: 32,
  RESET_DEVICE: 34,
  GET_MAX_MEM_SLOTS: 36,
  ADD_MEM_REG: 37,
  REM_MEM_REG: 38,
  SET_STATUS: 39,
  GET_STATUS: 40,
} as const;

/** Feature bits, as BigInt masks. */
export const FEATURE = {
  SEG_MAX: 1n << 2n,
  RO: 1n << 5n,
  BLK_SIZE: 1n << 6n,
  FLUSH: 1n << 9n,
  TOPOLOGY: 1n << 10n,
  CONFIG_WCE: 1n << 11n,
  MQ: 1n << 12n,
  DISCARD: 1n << 13n,
  WRITE_ZEROES: 1n << 14n,
  LOG_ALL: 1n << 26n,
  INDIRECT: 1n << 28n,
  EVENT_IDX: 1n << 29n,
  PROTOCOL: 1n << 30n,
  VERSION_1: 1n << 32n,
} as const;

/** Protocol feature mask that the session offers: bits 0, 1, 3, 5, 9, 12, 13, 15, 16. */
export const PROTOCOL_FEATURES = 0x1b22bn;

/** A region of guest memory as the front end shares it. */
export interface GuestRegion {
  readonly guestAddress: number;
  readonly userAddress: number;
  readonly sizeBytes: number;
  readonly file: MockFile;
  readonly fileOffset: number;
}

/** One descriptor as the driver wants it. */
export interface Descriptor {
  readonly address: number;
  readonly length: number;
  readonly write: boolean;
}

/** Guest memory from the guest's side. */
export class Guest {
  constructor(readonly bytes: Uint8Array<ArrayBuffer>, readonly regions: GuestRegion[]) {}

  /** Window offset of a guest address; throws where there is none. */
  at(address: number): number {
    for (const region of this.regions) {
      const offset = address - region.guestAddress;
      if (offset >= 0 && offset < region.sizeBytes) {
        return region.file.offset + region.fileOffset + offset;
      }
    }
    throw new Error(`guest address 0x${address.toString(16)} is nowhere`);
  }

  userOf(address: number): number {
    const region = this.regions.find((candidate) =>
      address >= candidate.guestAddress && address < candidate.guestAddress + candidate.sizeBytes
    )!;
    return address - region.guestAddress + region.userAddress;
  }

  set(address: number, data: ArrayLike<number>): void {
    for (let i = 0; i < data.length; i++) this.bytes[this.at(address + i)] = data[i];
  }

  get(address: number, length: number): Uint8Array {
    return Uint8Array.from({ length }, (_, i) => this.bytes[this.at(address + i)]);
  }

  set16(address: number, value: number): void {
    this.set(address, [value & 255, (value >> 8) & 255]);
  }

  get16(address: number): number {
    const [low, high] = this.get(address, 2);
    return low | high << 8;
  }

  set32(address: number, value: number): void {
    this.set16(address, value & 0xffff);
    this.set16(address + 2, value >>> 16);
  }

  get32(address: number): number {
    return this.get16(address) + this.get16(address + 2) * 65536;
  }

  set64(address: number, value: number): void {
    this.set32(address, value % 2 ** 32);
    this.set32(address + 4, Math.floor(value / 2 ** 32));
  }
}

/** A virtqueue from the driver's side. */
export class GuestQueue {
  readonly descriptors: number;
  readonly available: number;
  readonly used: number;
  /** Bytes of all three parts, with padding. */
  static bytesFor(size: number): number {
    return Math.ceil((size * 16 + 6 + size * 2 + 6 + size * 8 + 64) / 4096) * 4096;
  }
  readonly kickEvent: MockEvent = { count: 0 };
  readonly callEvent: MockEvent = { count: 0 };
  readonly errorEvent: MockEvent = { count: 0 };
  eventIndex = false;
  availableIndex = 0;
  usedSeen = 0;
  readonly #free: number[] = [];
  readonly #chains = new Map<number, number[]>();

  /** @param base guest address of the rings */
  constructor(readonly guest: Guest, readonly index: number, readonly size: number, base: number) {
    this.descriptors = base;
    this.available = base + size * 16;
    this.used = Math.ceil((this.available + 6 + size * 2) / 4) * 4;
    for (let i = size - 1; i >= 0; i--) this.#free.push(i);
  }

  get freeCount(): number {
    return this.#free.length;
  }

  /** Heads offered and not seen used. */
  get outstanding(): number[] {
    return [...this.#chains.keys()];
  }

  setDescriptor(index: number, address: number, length: number, flags: number, next = 0): void {
    this.writeDescriptor(this.descriptors + index * 16, address, length, flags, next);
  }

  writeDescriptor(at: number, address: number, length: number, flags: number, next = 0): void {
    this.guest.set64(at, address);
    this.guest.set32(at + 8, length);
    this.guest.set16(at + 12, flags);
    this.guest.set16(at + 14, next);
  }

  /**
   * Makes a chain available.
   *
   * @param table guest address of an indirect table for all but the first `direct` descriptors
   * @returns its head, or −1 when there are too few descriptors
   */
  add(chain: readonly Descriptor[], table = -1, direct = 0): number {
    const inTable = table < 0 ? 0 : chain.length - direct;
    const needed = chain.length - inTable + (inTable > 0 ? 1 : 0);
    if (this.#free.length < needed) return -1;
    const indices = this.#free.splice(this.#free.length - needed).reverse();
    const flagsOf = (i: number, last: number) => (chain[i].write ? 2 : 0) | (i < last ? 1 : 0);
    for (let i = 0; i < indices.length; i++) {
      const next = indices[i + 1] ?? 0;
      if (inTable > 0 && i === indices.length - 1) {
        this.setDescriptor(indices[i], table, inTable * 16, 4);
      } else {
        const { address, length } = chain[i];
        this.setDescriptor(indices[i], address, length, flagsOf(i, chain.length - 1), next);
      }
    }
    for (let i = 0; i < inTable; i++) {
      const { address, length } = chain[direct + i];
      this.writeDescriptor(
        table + i * 16,
        address,
        length,
        flagsOf(direct + i, chain.length - 1),
        i + 1,
      );
    }
    this.#chains.set(indices[0], indices);
    this.offer(indices[0]);
    return indices[0];
  }

  /** Puts a head into the available ring. */
  offer(head: number): void {
    this.guest.set16(this.available + 4 + (this.availableIndex % this.size) * 2, head);
    this.availableIndex = (this.availableIndex + 1) & 0xffff;
    this.guest.set16(this.available + 2, this.availableIndex);
  }

  /** Whether the device wants a kick for what was added since `before`. */
  wantsKick(before: number): boolean {
    if (!this.eventIndex) return (this.guest.get16(this.used) & 1) === 0;
    const event = this.guest.get16(this.used + 4 + this.size * 8);
    return ((this.availableIndex - event - 1) & 0xffff) < ((this.availableIndex - before) & 0xffff);
  }

  /** Used elements not seen before. */
  reap(): { head: number; length: number }[] {
    const found: { head: number; length: number }[] = [];
    const now = this.guest.get16(this.used + 2);
    while (this.usedSeen !== now) {
      const at = this.used + 4 + (this.usedSeen % this.size) * 8;
      const head = this.guest.get32(at);
      found.push({ head, length: this.guest.get32(at + 4) });
      const indices = this.#chains.get(head);
      if (indices === undefined) throw new Error(`head ${head} was used, but not offered`);
      this.#chains.delete(head);
      this.#free.push(...indices.toReversed());
      this.usedSeen = (this.usedSeen + 1) & 0xffff;
    }
    // Asks to be called for the next one.
    if (this.eventIndex) this.guest.set16(this.available + 4 + this.size * 2, this.usedSeen);
    return found;
  }

  /** A virtio reset: the ring begins anew. */
  reset(): void {
    this.availableIndex = 0;
    this.usedSeen = 0;
    this.#free.length = 0;
    this.#chains.clear();
    for (let i = this.size - 1; i >= 0; i--) this.#free.push(i);
    this.guest.set(
      this.descriptors,
      new Uint8Array(this.used - this.descriptors + 4 + this.size * 8 + 2),
    );
  }
}

/** A reply as the front end reads it. */
export interface Reply {
  readonly request: number;
  readonly flags: number;
  readonly payload: Uint8Array<ArrayBuffer>;
  readonly fds: number[];
}

/** Payload of u64 values. */
export function u64s(...values: (number | bigint)[]): Uint8Array<ArrayBuffer> {
  const view = new DataView(new ArrayBuffer(values.length * 8));
  values.forEach((value, i) => view.setBigUint64(i * 8, BigInt(value), true));
  return new Uint8Array(view.buffer);
}

/** Payload of u32 values. */
export function u32s(...values: number[]): Uint8Array<ArrayBuffer> {
  return new Uint8Array(Uint32Array.from(values).buffer);
}

/** Joins payloads. */
export function join(...parts: Uint8Array[]): Uint8Array<ArrayBuffer> {
  return new Uint8Array(parts.flatMap((part) => [...part]));
}

/** A message in bytes. */
export function frame(
  request: number,
  payload = new Uint8Array(0),
  flags = 1,
): Uint8Array<ArrayBuffer> {
  return join(u32s(request, flags, payload.length), payload);
}

/** A front end on a session. */
export class FrontEnd {
  /** Replies read so far. */
  #read = 0;
  /** Cuts what it sends into random pieces. */
  fragments: Prng | null = null;

  constructor(readonly host: MockHost, readonly session: VhostSession) {}

  /** Sends a message. */
  send(
    request: number,
    payload: Uint8Array<ArrayBuffer> = new Uint8Array(0),
    fds: number[] = [],
    flags = 1,
  ): void {
    this.sendBytes(frame(request, payload, flags), fds);
  }

  /** Sends bytes; descriptors go with the first. */
  sendBytes(bytes: Uint8Array, fds: number[] = []): void {
    if (this.fragments === null) {
      this.session.receive(bytes, fds);
      return;
    }
    for (let at = 0; at < bytes.length;) {
      const end = Math.min(bytes.length, at + this.fragments.between(1, bytes.length));
      this.session.receive(bytes.slice(at, end), at === 0 ? fds : []);
      at = end;
    }
  }

  /** The next reply, or null. */
  reply(): Reply | null {
    const sent = this.host.sent[this.#read];
    if (sent === undefined) return null;
    this.#read++;
    const view = new DataView(sent.bytes.buffer);
    const payload = sent.bytes.slice(12);
    if (view.getUint32(8, true) !== payload.length) throw new Error("a reply has a wrong size");
    return {
      request: view.getUint32(0, true),
      flags: view.getUint32(4, true),
      payload,
      fds: sent.fds,
    };
  }

  /** Forgets the replies that nobody looked at. */
  skipReplies(): void {
    this.#read = this.host.sent.length;
  }

  /** Sends a message that is answered, and takes the answer. */
  ask(request: number, payload?: Uint8Array<ArrayBuffer>, fds: number[] = []): Reply {
    this.send(request, payload, fds);
    return this.#expect(request);
  }

  /** Asks for a u64. */
  askU64(request: number): bigint {
    return new DataView(this.ask(request).payload.buffer).getBigUint64(0, true);
  }

  /** Sends a message with need_reply and returns the acknowledgement, 0 for success. */
  acknowledged(request: number, payload?: Uint8Array<ArrayBuffer>, fds: number[] = []): number {
    this.send(request, payload, fds, 1 | 8);
    const { payload: answer } = this.#expect(request);
    if (answer.length !== 8) throw new Error("an acknowledgement is not a u64");
    return Number(new DataView(answer.buffer).getBigUint64(0, true));
  }

  #expect(request: number): Reply {
    const reply = this.reply();
    if (reply === null) throw new Error(`no reply to request ${request}: ${this.host.events}`);
    if (reply.request !== request) throw new Error(`reply to ${reply.request} for ${request}`);
    if (reply.flags !== 5) throw new Error(`a reply has flags ${reply.flags}`);
    return reply;
  }

  regionPayload(region: GuestRegion): Uint8Array<ArrayBuffer> {
    return u64s(region.guestAddress, region.sizeBytes, region.userAddress, region.fileOffset);
  }

  addRegion(region: GuestRegion): number {
    const fd = this.host.openFile(region.file);
    return this.acknowledged(REQUEST.ADD_MEM_REG, join(u64s(0), this.regionPayload(region)), [fd]);
  }

  removeRegion(region: GuestRegion): void {
    this.send(REQUEST.REM_MEM_REG, join(u64s(0), this.regionPayload(region)), [], 1 | 8);
  }

  setTable(regions: readonly GuestRegion[], flags = 1): void {
    const fds = regions.map((region) => this.host.openFile(region.file));
    const payload = join(
      u32s(regions.length, 0),
      ...regions.map((region) => this.regionPayload(region)),
    );
    this.send(REQUEST.SET_MEM_TABLE, payload, fds, flags);
  }

  vringAddress(queue: GuestQueue, options: { log?: number } = {}): Uint8Array<ArrayBuffer> {
    const { guest } = queue;
    const isLogged = options.log !== undefined;
    return join(
      u32s(queue.index, isLogged ? 1 : 0),
      u64s(
        guest.userOf(queue.descriptors),
        guest.userOf(queue.used),
        guest.userOf(queue.available),
        options.log ?? 0,
      ),
    );
  }

  /** NUM, BASE, ADDR, KICK, as QEMU sends them when it starts a queue. */
  setUpQueue(queue: GuestQueue, base = 0, options: { log?: number } = {}): void {
    this.send(REQUEST.SET_VRING_NUM, u32s(queue.index, queue.size));
    this.send(REQUEST.SET_VRING_BASE, u32s(queue.index, base));
    this.send(REQUEST.SET_VRING_ADDR, this.vringAddress(queue, options));
    this.send(REQUEST.SET_VRING_KICK, u64s(queue.index), [this.host.openEvent(queue.kickEvent)]);
  }

  setCall(queue: GuestQueue): void {
    this.send(REQUEST.SET_VRING_CALL, u64s(queue.index), [this.host.openEvent(queue.callEvent)]);
  }

  setError(queue: GuestQueue): void {
    this.send(REQUEST.SET_VRING_ERR, u64s(queue.index), [this.host.openEvent(queue.errorEvent)]);
  }

  /** GET_VRING_BASE; the answer may come later. */
  stopQueue(index: number): void {
    this.send(REQUEST.GET_VRING_BASE, u32s(index, 0));
  }

  /** What QEMU sends when it connects; returns the features offered. */
  connect(): bigint {
    const offered = this.askU64(REQUEST.GET_FEATURES);
    const protocol = this.askU64(REQUEST.GET_PROTOCOL_FEATURES);
    this.send(REQUEST.SET_PROTOCOL_FEATURES, u64s(protocol));
    this.askU64(REQUEST.GET_QUEUE_NUM);
    this.askU64(REQUEST.GET_MAX_MEM_SLOTS);
    this.send(REQUEST.SET_OWNER);
    this.askU64(REQUEST.GET_FEATURES);
    return offered;
  }
}
