/**
 * A back end that does what a test tells it, bad things included. It lives in the test's own thread and
 * works whenever the event loop turns.
 *
 * @module
 */
import { setImmediate } from "node:timers";
import {
  closeFd,
  libc,
  mapMemory,
  signalEventFd,
  viewOf,
} from "../../agent/platform/linux/libc.ts";
import {
  receivedBytes,
  receiveWithFds,
  sendWithFds,
  unixAddress,
} from "../../agent/platform/linux/socket.ts";
import { ProtocolFeature, Request } from "../../agent/frontend/vhost_user.ts";
import { FEATURE_READ_ONLY, FEATURES_KNOWN } from "../../agent/frontend/virtio_blk.ts";

const AF_UNIX = 1, SOCK_STREAM = 1, SOCK_NONBLOCK = 0o4000, SOCK_CLOEXEC = 0o2000000;
const MAP_SHARED = 1;

/** What the mock offers unless told otherwise: all but read-only. */
export const MOCK_FEATURES = FEATURES_KNOWN & ~FEATURE_READ_ONLY;

/** One block request as the driver made it. */
export interface MockRequest {
  readonly queue: number;
  readonly head: number;
  readonly type: number;
  readonly sector: number;
  /** Data descriptors: views of the driver's memory. */
  readonly data: readonly Uint8Array[];
  readonly status: Uint8Array;
  /** Descriptors of the chain, header and status included. */
  readonly descriptors: number;
  readonly isIndirect: boolean;
}

/** What the mock offers and how it behaves. */
export interface MockOptions {
  readonly features?: bigint;
  readonly protocolFeatures?: number;
  readonly queueCount?: number;
  readonly config?: Uint8Array;
  /** Requests that are acknowledged with a refusal. */
  readonly refuses?: readonly number[];
  /** Requests that are never answered. */
  readonly ignores?: readonly number[];
  /** Requests at which the mock hangs up. */
  readonly hangsUpAt?: readonly number[];
  /** Replies that carry another request's number. */
  readonly confuses?: readonly number[];
  /** Carries a request out. Returns false to keep it in flight. */
  readonly handle?: (request: MockRequest, mock: MockBackEnd) => boolean;
}

interface MockQueue {
  size: number;
  seen: number;
  enabled: boolean;
  descriptors: number;
  available: number;
  used: number;
  callFd: number;
  errorFd: number;
}

interface Region {
  readonly guest: number;
  readonly user: number;
  readonly bytes: Uint8Array;
}

/** A config space of a disk of 64 MiB. */
export function mockConfig(): Uint8Array {
  const bytes = new Uint8Array(60);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, 131072, true);
  view.setUint32(12, 126, true); // seg_max
  view.setUint32(20, 512, true);
  view.setUint16(34, 2, true);
  view.setUint32(36, 2048, true); // max_discard_sectors
  view.setUint32(40, 1, true);
  view.setUint32(48, 2048, true); // max_write_zeroes_sectors
  view.setUint32(52, 1, true);
  bytes[56] = 1;
  return bytes;
}

/** The mock. */
export class MockBackEnd {
  /** Requests in the order in which they came. */
  readonly messages: number[] = [];
  /** Config bytes as SET_CONFIG left them. */
  readonly config: Uint8Array;
  /** Features that the driver took. */
  features = 0n;
  readonly #path: string;
  readonly #options: MockOptions;
  readonly #listenFd: number;
  #fd = -1;
  #received = new Uint8Array(0);
  #fds: number[] = [];
  #regions: Region[] = [];
  readonly #queues: MockQueue[];
  #isClosed = false;
  readonly #loop: Promise<void>;

  constructor(path: string, options: MockOptions = {}) {
    this.#path = path;
    this.#options = options;
    this.config = options.config ?? mockConfig();
    this.#queues = Array.from({ length: options.queueCount ?? 2 }, () => ({
      size: 0,
      seen: 0,
      enabled: false,
      descriptors: 0,
      available: 0,
      used: 0,
      callFd: -1,
      errorFd: -1,
    }));
    this.#listenFd = libc.socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    const address = unixAddress(path);
    if (libc.bind(this.#listenFd, address, address.length) < 0) {
      throw new Error("mock: bind failed");
    }
    if (libc.listen(this.#listenFd, 1) < 0) throw new Error("mock: listen failed");
    this.#loop = this.#run();
  }

  async #run(): Promise<void> {
    while (!this.#isClosed) {
      if (this.#fd < 0) this.#fd = libc.accept4(this.#listenFd, null, null, SOCK_NONBLOCK);
      if (this.#fd >= 0) this.#receive();
      for (let index = 0; index < this.#queues.length; index++) this.#serve(index);
      await new Promise<void>((resolve) => {
        setImmediate(resolve);
      });
    }
  }

  // Messages -----------------------------------------------------------------------------------

  #receive(): void {
    const result = receiveWithFds(this.#fd, this.#fds);
    if (result === 0) this.hangUp();
    if (result > 0) {
      const bytes = new Uint8Array(this.#received.length + result);
      bytes.set(this.#received);
      bytes.set(receivedBytes(result), this.#received.length);
      this.#received = bytes;
    }
    while (this.#received.length >= 12) {
      const view = new DataView(this.#received.buffer);
      const size = view.getUint32(8, true);
      if (this.#received.length < 12 + size) return;
      const payload = this.#received.slice(12, 12 + size);
      this.#received = this.#received.slice(12 + size);
      this.#message(view.getUint32(0, true), view.getUint32(4, true), new DataView(payload.buffer));
    }
  }

  #message(request: number, flags: number, payload: DataView): void {
    this.messages.push(request);
    const fds = this.#fds.splice(0);
    if (this.#options.hangsUpAt?.includes(request)) return this.hangUp();
    if (this.#options.ignores?.includes(request)) return;
    const reply = this.#answer(request, payload, fds);
    const isRefused = this.#options.refuses?.includes(request);
    if (reply !== null) this.#reply(request, reply);
    else if ((flags & 8) !== 0) this.#reply(request, u64(isRefused ? 1n : 0n));
  }

  #reply(request: number, payload: Uint8Array): void {
    const bytes = new Uint8Array(12 + payload.length);
    const view = new DataView(bytes.buffer);
    view.setUint32(0, this.#options.confuses?.includes(request) ? request + 1 : request, true);
    view.setUint32(4, 5, true);
    view.setUint32(8, payload.length, true);
    bytes.set(payload, 12);
    sendWithFds(this.#fd, bytes);
  }

  #answer(request: number, payload: DataView, fds: number[]): Uint8Array | null {
    const { features = MOCK_FEATURES, protocolFeatures, queueCount = 2 } = this.#options;
    const queue = payload.byteLength >= 8 ? this.#queues[payload.getUint32(0, true) & 0xff] : null;
    const num = payload.byteLength >= 8 ? payload.getUint32(4, true) : 0;
    switch (request) {
      case Request.GetFeatures:
        return u64(features);
      case Request.SetFeatures:
        this.features = payload.getBigUint64(0, true);
        return null;
      case Request.GetProtocolFeatures: {
        const all = ProtocolFeature.Mq | ProtocolFeature.ReplyAck | ProtocolFeature.Config;
        return u64(BigInt(protocolFeatures ?? all));
      }
      case Request.GetQueueNum:
        return u64(BigInt(queueCount));
      case Request.GetConfig: {
        const reply = new Uint8Array(payload.buffer as ArrayBuffer);
        reply.set(this.config, 12);
        return reply;
      }
      case Request.SetConfig: {
        const [offset, size] = [payload.getUint32(0, true), payload.getUint32(4, true)];
        this.config.set(new Uint8Array(payload.buffer, 12, size), offset);
        return null;
      }
      case Request.SetMemTable:
        this.#map(payload, fds);
        return null;
      case Request.SetVringNum:
        queue!.size = num;
        return null;
      case Request.SetVringBase:
        queue!.seen = num;
        return null;
      case Request.GetVringBase: {
        const reply = new Uint8Array(8);
        const view = new DataView(reply.buffer);
        view.setUint32(0, payload.getUint32(0, true), true);
        view.setUint32(4, queue!.seen, true);
        queue!.enabled = false;
        return reply;
      }
      case Request.SetVringAddr:
        queue!.descriptors = Number(payload.getBigUint64(8, true));
        queue!.used = Number(payload.getBigUint64(16, true));
        queue!.available = Number(payload.getBigUint64(24, true));
        return null;
      case Request.SetVringCall:
        queue!.callFd = fds[0];
        return null;
      case Request.SetVringErr:
        queue!.errorFd = fds[0];
        return null;
      case Request.SetVringKick: // polls its rings
        fds.forEach(closeFd);
        return null;
      case Request.SetVringEnable:
        queue!.enabled = num === 1;
        return null;
      default:
        return null;
    }
  }

  #map(payload: DataView, fds: number[]): void {
    const count = payload.getUint32(0, true);
    for (let index = 0; index < count; index++) {
      const field = (word: number) => Number(payload.getBigUint64(8 + 32 * index + 8 * word, true));
      const address = mapMemory({
        lengthBytes: field(1),
        flags: MAP_SHARED,
        fd: fds[index],
        offset: field(3),
      });
      closeFd(fds[index]);
      this.#regions.push({ guest: field(0), user: field(2), bytes: viewOf(address, field(1)) });
    }
  }

  // Rings --------------------------------------------------------------------------------------

  #serve(index: number): void {
    const queue = this.#queues[index];
    if (!queue.enabled) return;
    const available = this.#user(queue.available, 6 + 2 * queue.size);
    while (queue.enabled && queue.seen !== available.getUint16(2, true)) {
      const head = available.getUint16(4 + 2 * (queue.seen % queue.size), true);
      queue.seen = (queue.seen + 1) & 0xffff;
      const request = this.#parse(index, head);
      if (this.#options.handle?.(request, this) ?? true) this.complete(request);
    }
  }

  #parse(index: number, head: number): MockRequest {
    const queue = this.#queues[index];
    let table = this.#user(queue.descriptors, 16 * queue.size);
    let at = head;
    const isIndirect = (table.getUint16(16 * head + 12, true) & 4) !== 0;
    if (isIndirect) {
      const length = table.getUint32(16 * head + 8, true);
      const bytes = this.#guest(Number(table.getBigUint64(16 * head, true)), length);
      table = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
      at = 0;
    }
    const parts: Uint8Array[] = [];
    for (;;) {
      const address = Number(table.getBigUint64(16 * at, true));
      parts.push(this.#guest(address, table.getUint32(16 * at + 8, true)));
      if ((table.getUint16(16 * at + 12, true) & 1) === 0) break;
      at = table.getUint16(16 * at + 14, true);
    }
    const header = new DataView(parts[0].buffer, parts[0].byteOffset, 16);
    return {
      queue: index,
      head,
      type: header.getUint32(0, true),
      sector: Number(header.getBigUint64(8, true)),
      data: parts.slice(1, -1),
      status: parts[parts.length - 1],
      descriptors: parts.length,
      isIndirect,
    };
  }

  /** Completes a request; without `status` its status byte stays as it is. */
  complete(
    request: Pick<MockRequest, "queue" | "head"> & Partial<MockRequest>,
    options: { status?: number | null; lengthBytes?: number } = {},
  ): void {
    const { status = 0, lengthBytes } = options;
    if (status !== null && request.status !== undefined) request.status[0] = status;
    const writes = request.type === 0 || request.type === 8;
    const data = (request.data ?? []).reduce((sum, { length }) => sum + length, 0);
    const queue = this.#queues[request.queue];
    const used = this.#user(queue.used, 6 + 8 * queue.size);
    const index = used.getUint16(2, true);
    used.setUint32(4 + 8 * (index % queue.size), request.head, true);
    used.setUint32(8 + 8 * (index % queue.size), lengthBytes ?? (writes ? data : 0) + 1, true);
    used.setUint16(2, index + 1, true);
    signalEventFd(queue.callFd);
  }

  /** Signals the error eventfd of a queue. */
  reportError(queue: number): void {
    signalEventFd(this.#queues[queue].errorFd);
  }

  #guest(address: number, lengthBytes: number): Uint8Array {
    for (const { guest, bytes } of this.#regions) {
      const at = address - guest;
      if (at >= 0 && at + lengthBytes <= bytes.length) return bytes.subarray(at, at + lengthBytes);
    }
    throw new Error(`mock: guest address ${address} is in no region`);
  }

  #user(address: number, lengthBytes: number): DataView {
    for (const { user, bytes } of this.#regions) {
      const at = address - user;
      if (at >= 0 && at + lengthBytes <= bytes.length) {
        return new DataView(bytes.buffer, bytes.byteOffset + at, lengthBytes);
      }
    }
    throw new Error(`mock: user address ${address} is in no region`);
  }

  // The end ------------------------------------------------------------------------------------

  /** Closes the connection. */
  hangUp(): void {
    if (this.#fd < 0) return;
    closeFd(this.#fd);
    this.#fd = -1;
    this.#received = new Uint8Array(0);
    this.#regions = [];
    for (const queue of this.#queues) {
      queue.enabled = false;
      for (const fd of [queue.callFd, queue.errorFd]) if (fd >= 0) closeFd(fd);
      queue.callFd = queue.errorFd = -1;
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#isClosed = true;
    await this.#loop;
    this.hangUp();
    closeFd(this.#listenFd);
    await Deno.remove(this.#path);
  }
}

function u64(value: bigint): Uint8Array {
  const bytes = new Uint8Array(8);
  new DataView(bytes.buffer).setBigUint64(0, value, true);
  return bytes;
}
