/**
 * A vhost-user-blk front end: it takes QEMU's place, connects to a back end's socket, shares memory with
 * it and drives virtio-blk requests. The command line's data commands, `kelpie bench` and tests use
 * it, against any back end.
 *
 *     connect     GET_FEATURES  GET/SET_PROTOCOL_FEATURES  GET_QUEUE_NUM  SET_OWNER  GET_CONFIG
 *     start       (GET_INFLIGHT_FD  SET_INFLIGHT_FD)  SET_FEATURES  SET_MEM_TABLE
 *                 per queue: NUM  BASE  ADDR  KICK  CALL  ERR, then ENABLE
 *     close       GET_VRING_BASE per queue: the back end drains, then the socket is closed
 *
 * There are two ways to use it, one at a time: the queues themselves with {@linkcode FrontEnd.wait}, which
 * blocks the thread and allocates nothing per request; and `read`, `write`, `flush`, … which are
 * ordinary asynchronous functions. All queues share one call eventfd, so one thread serves them all.
 *
 * Specification: QEMU's `docs/interop/vhost-user.rst`; Virtual I/O Device 1.2.
 *
 * @module
 */
import { check, closeFd, createEventFd, libc } from "../platform/linux/libc.ts";
import { BackEndSocket, turn, WAIT_SLICE_MS } from "./back_end_socket.ts";
import { DriverQueue, QUEUE_SIZE_MAX, queueBytes, type QueueShape } from "./driver_queue.ts";
import { BackEndError } from "./error.ts";
import { Poller } from "./poller.ts";
import { SharedMemory } from "./shared_memory.ts";
import {
  type BlkConfig,
  CONFIG_BYTES,
  CONFIG_WRITEBACK_OFFSET,
  decodeConfig,
  FEATURE_CONFIG_WCE,
  FEATURE_DISCARD,
  FEATURE_EVENT_INDEX,
  FEATURE_FLUSH,
  FEATURE_INDIRECT,
  FEATURE_MQ,
  FEATURE_PROTOCOL,
  FEATURE_READ_ONLY,
  FEATURE_SEG_MAX,
  FEATURE_SIZE_MAX,
  FEATURE_VERSION_1,
  FEATURE_WRITE_ZEROES,
  FEATURES_KNOWN,
  IDENTITY_BYTES,
  RequestType,
  SECTOR_BYTES,
  Status,
} from "./virtio_blk.ts";
import { ProtocolFeature, Request } from "./vhost_user.ts";

/** Tokens of the poller. */
const SOCKET = 0, CALL = 1, ERROR = 2;

/** fcntl(2) */
const F_DUPFD_CLOEXEC = 1030;

/** Most queues: as many as SET_VRING_KICK can name. */
const QUEUES_MAX = 256;

/** Most descriptors that back ends take in one ring: QEMU's limit, and that of this project. */
const RING_SIZE_MAX_USUAL = 1024;

/** Smallest ring that is made. */
const RING_SIZE_MIN = 128;

/**
 * What is under way when {@linkcode FrontEndOptions.signal} aborts may end within this time, so that it is known to have ended. What
 * waits for longer already is given up at once.
 */
export const ENDING_MS = 500;

/** How to connect. */
export interface FrontEndOptions {
  /** Path of the back end's socket. */
  readonly socket: string;
  /** Virtqueues to use; 1 by default. */
  readonly queues?: number;
  /** Requests in flight per queue; 8 by default. */
  readonly depth?: number;
  /** Data bytes of the longest request, a multiple of 512; 1 MiB by default. */
  readonly bufferBytes?: number;
  /** Data descriptors per request; 1, or what the device's size_max asks for, by default. */
  readonly segments?: number;
  /** Put chains into indirect tables; by default only when the ring would be too small without. */
  readonly indirect?: boolean;
  /** Feature bits not to take even when they are offered. */
  readonly withoutFeatures?: bigint;
  /** Use the back end's in-flight tracking, as {@linkcode FrontEnd.reconnect} needs it; off by default. */
  readonly inflight?: boolean;
  /** Longest wait for the reply to a message; 10 s by default. */
  readonly replyTimeoutMs?: number;
  /** Longest wait for any completion while requests are in flight; 30 s by default. */
  readonly stallTimeoutMs?: number;
  /** Asynchronous use: no request begins after it has aborted, and waits end with its reason. */
  readonly signal?: AbortSignal;
}

interface InflightArea {
  readonly fd: number;
  /** Payload of SET_INFLIGHT_FD. */
  readonly description: Uint8Array;
}

/**
 * A connected front end with running queues.
 *
 * @example
 * ```ts ignore
 * import { FrontEnd } from "./front_end.ts";
 * const disk = await FrontEnd.connect({ socket: "/run/kelpie/web.sock" });
 * await disk.write(4096, new Uint8Array(4096).fill(7));
 * await disk.flush();
 * const block = new Uint8Array(4096);
 * await disk.read(4096, block);
 * await disk.close();
 * ```
 */
export class FrontEnd {
  /** What the back end offered. */
  readonly featuresOffered: bigint;
  /** What was taken of it. */
  readonly features: bigint;
  /** VHOST_USER_PROTOCOL_F_… bits in use. */
  readonly protocolFeatures: number;
  /** Queues that the back end has. */
  readonly queueCountMax: number;
  /** Process of the back end, or 0 when it cannot be told. */
  readonly backEndPid: number;
  readonly queues: readonly DriverQueue[];
  readonly memory: SharedMemory;
  /** Departures from the protocol that do no harm. */
  readonly warnings: string[] = [];

  readonly #options: FrontEndOptions;
  readonly #stallTimeoutMs: number;
  readonly #poller: Poller;
  readonly #callFd: number;
  readonly #errorFd: number;
  readonly #kickFds: readonly number[];
  #socket: BackEndSocket;
  #config: BlkConfig;
  #inflight: InflightArea | null = null;
  /** Asynchronous use: 1 where the slot of queue 0 has completed. */
  readonly #isDone: Uint8Array;
  #progressAt = 0;
  /** Asynchronous use: a wait was given up and nothing started since, so others for what is in flight need not take as long. */
  #isStalled = false;
  #isClosed = false;

  private constructor(options: FrontEndOptions, greeting: Greeting, poller: Poller) {
    this.#options = options;
    this.#stallTimeoutMs = options.stallTimeoutMs ?? 30_000;
    this.#poller = poller;
    this.#socket = greeting.socket;
    this.#config = greeting.config;
    this.featuresOffered = greeting.featuresOffered;
    this.features = greeting.features;
    this.protocolFeatures = greeting.protocolFeatures;
    this.queueCountMax = greeting.queueCount;
    this.backEndPid = greeting.socket.peerPid;

    const queueCount = options.queues ?? 1;
    const shape = shapeOf(options, greeting);
    const { controlBytes, dataBytes } = queueBytes(shape);
    this.memory = new SharedMemory({
      controlBytes: controlBytes * queueCount,
      dataBytes: dataBytes * queueCount,
    });
    this.#callFd = createEventFd();
    this.#errorFd = createEventFd();
    this.#kickFds = Array.from({ length: queueCount }, createEventFd);
    this.queues = this.#kickFds.map((kickFd, index) =>
      new DriverQueue(index, shape, this.memory, {
        controlOffset: controlBytes * index,
        dataOffset: this.memory.dataOffset + dataBytes * index,
        kickFd,
      })
    );
    this.#isDone = new Uint8Array(shape.slots);
    poller.addEventFd(this.#callFd, CALL);
    poller.addEventFd(this.#errorFd, ERROR);
  }

  /**
   * Connects, negotiates and starts the queues.
   *
   * @throws BackEndError when there is no back end, or it does not behave
   * @throws RangeError when the options ask for what the device or the ring cannot do
   */
  static async connect(options: FrontEndOptions): Promise<FrontEnd> {
    checkOptions(options);
    const poller = new Poller();
    let greeting: Greeting | undefined;
    let frontEnd: FrontEnd | undefined;
    try {
      greeting = await greet(options, poller);
      frontEnd = new FrontEnd(options, greeting, poller);
      await frontEnd.#start(0);
      return frontEnd;
    } catch (error) {
      if (frontEnd !== undefined) frontEnd.#free();
      else {
        greeting?.socket.close();
        poller.close();
      }
      throw error;
    }
  }

  /** The config space as it was read last. */
  get config(): BlkConfig {
    return this.#config;
  }

  /** Size of the disk. */
  get capacityBytes(): number {
    return this.#config.capacityBytes;
  }

  get isReadOnly(): boolean {
    return (this.features & FEATURE_READ_ONLY) !== 0n;
  }

  /** Whether all these bits were negotiated. */
  has(features: bigint): boolean {
    return (this.features & features) === features;
  }

  // Setting up ---------------------------------------------------------------------------------

  /** A message that sets something; waits for its acknowledgement where that was negotiated. */
  async #set(request: number, payload: Uint8Array, fds?: readonly number[]): Promise<void> {
    if ((this.protocolFeatures & ProtocolFeature.ReplyAck) !== 0) {
      await this.#socket.acknowledged(request, payload, fds);
    } else this.#socket.send(request, payload, fds);
  }

  /** @param reconnects 0, or more when the rings have been in use */
  async #start(reconnects: number): Promise<void> {
    if (this.#options.inflight) await this.#shareInflight();
    await this.#set(Request.SetFeatures, u64(this.features));
    const { regions, fd } = this.memory;
    const table = words64(
      regions.length,
      ...regions.flatMap((region) => [
        region.guestAddress,
        region.sizeBytes,
        region.userAddress,
        region.fileOffset,
      ]),
    );
    await this.#set(Request.SetMemTable, table, regions.map(() => fd));
    for (const queue of this.queues) await this.#startQueue(queue, reconnects > 0);
    if ((this.features & FEATURE_PROTOCOL) !== 0n) {
      for (const { index } of this.queues) await this.#set(Request.SetVringEnable, state(index, 1));
    }
  }

  async #startQueue(queue: DriverQueue, isReconnected: boolean): Promise<void> {
    const { index } = queue;
    const base = isReconnected ? queue.deviceUsedIndex : 0;
    const address = (offset: number) => this.memory.userAddress(offset);
    await this.#set(Request.SetVringNum, state(index, queue.size));
    await this.#set(Request.SetVringBase, state(index, base));
    await this.#set(
      Request.SetVringAddr,
      words64(
        index,
        address(queue.descriptorsOffset),
        address(queue.usedOffset),
        address(queue.availableOffset),
        0,
      ),
    );
    await this.#set(Request.SetVringKick, u64(BigInt(index)), [this.#kickFds[index]]);
    await this.#set(Request.SetVringCall, u64(BigInt(index)), [this.#callFd]);
    await this.#set(Request.SetVringErr, u64(BigInt(index)), [this.#errorFd]);
  }

  async #shareInflight(): Promise<void> {
    if (this.#inflight === null) {
      const description = new Uint8Array(24);
      const view = new DataView(description.buffer);
      view.setUint16(16, this.queues.length, true);
      view.setUint16(18, this.queues[0].size, true);
      const { payload, fds } = await this.#socket.request(Request.GetInflightFd, description);
      if (payload.byteLength < 20 || fds.length !== 1) {
        fds.forEach(closeFd);
        throw new BackEndError("protocol", "the reply to GET_INFLIGHT_FD carries no area");
      }
      description.set(new Uint8Array(payload.buffer, 0, 16));
      this.#inflight = { fd: fds[0], description };
    }
    await this.#set(Request.SetInflightFd, this.#inflight.description, [this.#inflight.fd]);
  }

  /**
   * Connects to a new back end on the same path, as QEMU does after a back end's death, and lets it go
   * on with what is in flight. Sound with `inflight`, or with one request at a time.
   *
   * @throws BackEndError when the new back end is not there (yet), or is not like the old one
   */
  async reconnect(): Promise<void> {
    this.#socket.close();
    const greeting = await greet(this.#options, this.#poller);
    this.#socket = greeting.socket;
    if (
      (this.features & ~greeting.featuresOffered) !== 0n ||
      greeting.config.capacityBytes < this.capacityBytes
    ) throw new BackEndError("protocol", "the new back end offers less than the old one did");
    this.#config = greeting.config;
    await this.#start(1);
    this.#progressAt = performance.now();
    for (const queue of this.queues) queue.kick(); // the new back end has seen no kick
  }

  /** Reads the config space again: after a resize, say. */
  async readConfig(): Promise<BlkConfig> {
    this.#config = await readConfig(this.#socket);
    return this.#config;
  }

  /** Switches the device's write cache (CONFIG_WCE): off, every write is durable when it completes. */
  async setWriteCache(isOn: boolean): Promise<void> {
    if (!this.has(FEATURE_CONFIG_WCE)) throw unsupported("switching the write cache (CONFIG_WCE)");
    const payload = new Uint8Array(13);
    const view = new DataView(payload.buffer);
    view.setUint32(0, CONFIG_WRITEBACK_OFFSET, true);
    view.setUint32(4, 1, true);
    payload[12] = isOn ? 1 : 0;
    await this.#set(Request.SetConfig, payload);
  }

  // The queues, synchronously ------------------------------------------------------------------

  /** Requests in flight on all queues. */
  get inFlight(): number {
    let sum = 0;
    for (let index = 0; index < this.queues.length; index++) sum += this.queues[index].inFlight;
    return sum;
  }

  /** Whether any queue has something to reap. */
  hasUsed(): boolean {
    for (let index = 0; index < this.queues.length; index++) {
      if (this.queues[index].hasUsed()) return true;
    }
    return false;
  }

  /**
   * Blocks the thread until a queue has something to reap.
   *
   * @param timeoutMs whole milliseconds
   * @returns false after the timeout
   * @throws BackEndError `disconnected` as soon as the back end is gone; `protocol` when it reports a
   * broken queue
   */
  wait(timeoutMs: number): boolean {
    for (let index = 0; index < this.queues.length; index++) this.queues[index].arm();
    if (!this.hasUsed()) this.#poll(timeoutMs);
    const isReady = this.hasUsed();
    for (let index = 0; index < this.queues.length; index++) this.queues[index].disarm();
    return isReady;
  }

  /**
   * A descriptor that is signalled when a queue has something to reap and was armed, for loops that sleep elsewhere. A
   * duplicate: it is the caller's to close.
   */
  duplicateCallFd(): number {
    return check(libc.fcntl(this.#callFd, F_DUPFD_CLOEXEC, 0), "duplicating an eventfd");
  }

  /**
   * Looks whether the back end is there and well, for loops that do not {@linkcode wait}.
   *
   * @throws BackEndError `disconnected` or `protocol`
   */
  checkAlive(): void {
    this.#poll(0);
  }

  #poll(timeoutMs: number): void {
    const tokens = this.#poller.wait(timeoutMs);
    if ((tokens & (1 << ERROR)) !== 0) {
      throw new BackEndError("protocol", `the back end reports an error: ${this.describe()}`);
    }
    if ((tokens & (1 << SOCKET)) !== 0) {
      this.#socket.checkAlive(`with ${this.inFlight} requests in flight`);
    }
  }

  /** State of all rings, for people. */
  describe(): string {
    return this.queues.map((queue) => queue.describe()).join("; ");
  }

  /** The error to throw when nothing has completed for `elapsedMs`. */
  stalledError(elapsedMs: number): BackEndError {
    return new BackEndError(
      "stalled",
      `no request has completed for ${(elapsedMs / 1000).toFixed(1)} s: ${this.describe()}`,
    );
  }

  // Requests, asynchronously -------------------------------------------------------------------

  /** Reads into `into`. Offset and length are multiples of 512. */
  async read(offsetBytes: number, into: Uint8Array): Promise<void> {
    await this.#transfer(RequestType.In, offsetBytes, into);
  }

  /** Writes `from`. Offset and length are multiples of 512. */
  async write(offsetBytes: number, from: Uint8Array): Promise<void> {
    this.#refuseReadOnly("write");
    await this.#transfer(RequestType.Out, offsetBytes, from);
  }

  /** Makes everything durable that completed before. */
  async flush(): Promise<void> {
    if (!this.has(FEATURE_FLUSH)) return; // every write is durable by itself (virtio 1.2, 5.2.6.2)
    const { queue, slot } = await this.takeSlot();
    queue.submit(slot, RequestType.Flush, 0, 0);
    this.start(slot);
    await this.finish(slot);
    queue.releaseSlot(slot);
  }

  /** Tells the device that a range is not needed any more; what it reads as is up to the device. */
  async discard(offsetBytes: number, lengthBytes: number): Promise<void> {
    if (!this.has(FEATURE_DISCARD)) throw unsupported("discard");
    const sectorsMax = this.#config.discardSectorsMax;
    await this.#ranges(RequestType.Discard, offsetBytes, lengthBytes, sectorsMax, false);
  }

  /**
   * Makes a range read as zeros.
   *
   * @param options.unmap the device may give the space back; true by default
   */
  async writeZeroes(
    offsetBytes: number,
    lengthBytes: number,
    options: { readonly unmap?: boolean } = {},
  ): Promise<void> {
    if (!this.has(FEATURE_WRITE_ZEROES)) throw unsupported("write-zeroes");
    const { writeZeroesSectorsMax, writeZeroesMayUnmap } = this.#config;
    const unmap = (options.unmap ?? true) && writeZeroesMayUnmap !== 0;
    const type = RequestType.WriteZeroes;
    await this.#ranges(type, offsetBytes, lengthBytes, writeZeroesSectorsMax, unmap);
  }

  /** The device's name for itself (GET_ID), at most 20 characters. */
  async identity(): Promise<string> {
    const { queue, slot } = await this.takeSlot();
    queue.submit(slot, RequestType.GetId, 0, IDENTITY_BYTES);
    this.start(slot);
    await this.finish(slot);
    const at = queue.dataOffset(slot);
    const bytes = this.memory.bytes.slice(at, at + IDENTITY_BYTES);
    queue.releaseSlot(slot);
    const end = bytes.indexOf(0);
    return new TextDecoder().decode(end < 0 ? bytes : bytes.subarray(0, end));
  }

  async #transfer(type: RequestType, offsetBytes: number, bytes: Uint8Array): Promise<void> {
    this.checkRange(offsetBytes, bytes.length);
    const [queue] = this.queues;
    const pieces: { readonly slot: number; readonly bytes: Uint8Array }[] = [];
    const failures: unknown[] = [];
    const finishFirst = async () => {
      const { slot, bytes: piece } = pieces.shift()!;
      try {
        await this.finish(slot);
      } catch (error) {
        failures.push(error);
        return;
      }
      const at = queue.dataOffset(slot);
      if (type === RequestType.In) piece.set(this.memory.bytes.subarray(at, at + piece.length));
      queue.releaseSlot(slot);
    };
    try {
      for (let at = 0; at < bytes.length; at += queue.bufferBytes) {
        while (queue.freeCount === 0 && pieces.length > 0) await finishFirst();
        const { slot } = await this.takeSlot();
        const piece = bytes.subarray(at, at + queue.bufferBytes);
        if (type === RequestType.Out) this.memory.bytes.set(piece, queue.dataOffset(slot));
        queue.submit(slot, type, (offsetBytes + at) / SECTOR_BYTES, piece.length);
        this.start(slot);
        pieces.push({ slot, bytes: piece });
      }
    } finally {
      // All of them end before the caller hears of a failure.
      while (pieces.length > 0) await finishFirst();
    }
    if (failures.length > 0) throw failures[0];
  }

  async #ranges(
    type: RequestType.Discard | RequestType.WriteZeroes,
    offsetBytes: number,
    lengthBytes: number,
    sectorsMax: number,
    unmap: boolean,
  ): Promise<void> {
    this.#refuseReadOnly(type === RequestType.Discard ? "discard" : "write-zeroes");
    this.checkRange(offsetBytes, lengthBytes);
    const end = (offsetBytes + lengthBytes) / SECTOR_BYTES;
    let sector = offsetBytes / SECTOR_BYTES;
    while (sector < end) {
      const sectorCount = Math.min(end - sector, sectorsMax > 0 ? sectorsMax : end - sector);
      const { queue, slot } = await this.takeSlot();
      queue.submitRange(slot, type, { sector, sectorCount, unmap });
      this.start(slot);
      await this.finish(slot);
      queue.releaseSlot(slot);
      sector += sectorCount;
    }
  }

  #refuseReadOnly(what: string): void {
    if (this.isReadOnly) throw new BackEndError("unsupported", `${what}: the disk is read-only`);
  }

  /** Throws a RangeError unless the range consists of whole sectors of the disk. */
  checkRange(offsetBytes: number, lengthBytes: number): void {
    if (offsetBytes % SECTOR_BYTES !== 0 || lengthBytes % SECTOR_BYTES !== 0) {
      throw new RangeError(
        `offset ${offsetBytes} and length ${lengthBytes} must be multiples of ${SECTOR_BYTES}`,
      );
    }
    if (
      !(offsetBytes >= 0 && lengthBytes >= 0 && offsetBytes + lengthBytes <= this.capacityBytes)
    ) {
      throw new RangeError(
        `offset ${offsetBytes} and length ${lengthBytes} leave the disk of ${this.capacityBytes} bytes`,
      );
    }
  }

  /** Takes a slot of queue 0, waiting until there is one. Submit it, {@linkcode start} it, {@linkcode finish} it. */
  async takeSlot(): Promise<{ queue: DriverQueue; slot: number }> {
    this.#options.signal?.throwIfAborted();
    const queue = this.queues[0];
    let slot = -1;
    await this.#until(() => (slot = queue.takeSlot()) >= 0);
    return { queue, slot };
  }

  /** Begins the request in a slot of queue 0. */
  start(slot: number): void {
    this.#isDone[slot] = 0;
    this.#isStalled = false;
    this.queues[0].publish();
  }

  /**
   * Waits until the request in a slot of queue 0 has completed. The slot stays the caller's on success,
   * and is released on failure.
   *
   * Nothing else goes on in this thread meanwhile, for some milliseconds at a time: whoever has several requests starts all
   * of them first, and asks for each when there is nothing to do without it.
   *
   * @throws BackEndError `io` or `unsupported` when it failed; `stalled` or the signal's reason when it has not ended: it is in flight
   * still, and may be carried out
   */
  async finish(slot: number): Promise<void> {
    const queue = this.queues[0];
    await this.#until(() => this.#isDone[slot] === 1);
    const status = queue.status(slot);
    if (status === Status.Ok) return;
    const what = `${typeName(queue.type(slot))} at byte ${queue.sector(slot) * SECTOR_BYTES}`;
    queue.releaseSlot(slot);
    if (status === Status.Unsupported) throw unsupported(what);
    throw new BackEndError("io", `${what} failed with ${statusName(status)}`);
  }

  /** After a failure: waits until a request that was started has ended, however it does, and releases its slot. */
  async settle(slot: number): Promise<void> {
    await this.finish(slot).then(() => this.queues[0].releaseSlot(slot), () => {});
  }

  async #until(isReady: () => boolean): Promise<void> {
    if (this.#isClosed) throw new BackEndError("disconnected", "the connection has been closed");
    if (!this.#isStalled) this.#progressAt = performance.now();
    for (;;) {
      this.#reapAll();
      if (isReady()) return;
      if (this.wait(WAIT_SLICE_MS)) continue;
      const elapsedMs = performance.now() - this.#progressAt;
      const isEnding = this.#options.signal?.aborted ?? false;
      if (elapsedMs > (isEnding ? ENDING_MS : this.#stallTimeoutMs)) {
        this.#isStalled = true;
        throw isEnding ? this.#options.signal!.reason : this.stalledError(elapsedMs);
      }
      await turn();
      if (this.#isClosed) throw new BackEndError("disconnected", "the connection has been closed");
    }
  }

  #reapAll(): void {
    const queue = this.queues[0];
    for (let slot = queue.reap(); slot >= 0; slot = queue.reap()) {
      this.#isDone[slot] = 1;
      this.#progressAt = performance.now();
    }
  }

  // The end ------------------------------------------------------------------------------------

  /**
   * Stops the queues, which makes the back end finish what is in flight, and disconnects. A back end
   * that is gone already is no error.
   */
  async close(): Promise<void> {
    if (this.#isClosed) return;
    this.#isClosed = true;
    try {
      for (const queue of this.queues) await this.#stopQueue(queue);
    } catch (error) {
      if (!(error instanceof BackEndError && error.kind === "disconnected")) throw error;
    } finally {
      this.#free();
    }
  }

  async #stopQueue(queue: DriverQueue): Promise<void> {
    const { payload, fds } = await this.#socket.request(
      Request.GetVringBase,
      state(queue.index, 0),
    );
    fds.forEach(closeFd);
    const base = payload.byteLength === 8 ? payload.getUint32(4, true) : -1;
    if (base !== queue.availableIndex) {
      this.warnings.push(
        `GET_VRING_BASE of queue ${queue.index} is ${base}; ${queue.availableIndex} entries were made`,
      );
    }
  }

  /** Disconnects at once, as a front end that is killed does. */
  abort(): void {
    if (this.#isClosed) return;
    this.#isClosed = true;
    this.#free();
  }

  #free(): void {
    this.#isClosed = true;
    this.#socket.close();
    this.#poller.close();
    for (const fd of [this.#callFd, this.#errorFd, ...this.#kickFds]) closeFd(fd);
    if (this.#inflight !== null) closeFd(this.#inflight.fd);
    this.memory.close();
  }

  /** Closes; for `await using`. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}

/** What is known once both sides have said what they can do. */
interface Greeting {
  readonly socket: BackEndSocket;
  readonly featuresOffered: bigint;
  readonly features: bigint;
  readonly protocolFeatures: number;
  readonly queueCount: number;
  readonly config: BlkConfig;
}

/** Connects and negotiates. */
async function greet(options: FrontEndOptions, poller: Poller): Promise<Greeting> {
  const replyTimeoutMs = options.replyTimeoutMs ?? 10_000;
  const { signal } = options;
  const socket = BackEndSocket.connect(options.socket, {
    poller,
    token: SOCKET,
    replyTimeoutMs,
    signal,
  });
  try {
    const featuresOffered = await getU64(socket, Request.GetFeatures, "GET_FEATURES");
    if ((featuresOffered & FEATURE_VERSION_1) === 0n) {
      throw new BackEndError("protocol", "the back end does not offer VIRTIO_F_VERSION_1");
    }
    if ((featuresOffered & FEATURE_PROTOCOL) === 0n) {
      throw new BackEndError("protocol", "the back end does not offer protocol features");
    }
    const offered = await getU64(socket, Request.GetProtocolFeatures, "GET_PROTOCOL_FEATURES");
    const wanted = ProtocolFeature.Mq | ProtocolFeature.ReplyAck | ProtocolFeature.Config |
      (options.inflight ? ProtocolFeature.InflightShmfd : 0);
    const protocolFeatures = Number(offered & BigInt(wanted));
    if ((protocolFeatures & ProtocolFeature.Config) === 0) {
      throw new BackEndError("protocol", "the back end does not offer the CONFIG protocol feature");
    }
    if (options.inflight && (protocolFeatures & ProtocolFeature.InflightShmfd) === 0) {
      throw new BackEndError("unsupported", "the back end does not offer INFLIGHT_SHMFD");
    }
    socket.send(Request.SetProtocolFeatures, u64(BigInt(protocolFeatures)));
    const hasQueues = (protocolFeatures & ProtocolFeature.Mq) !== 0;
    const queueCount = hasQueues
      ? Number(await getU64(socket, Request.GetQueueNum, "GET_QUEUE_NUM"))
      : 1;
    socket.send(Request.SetOwner, new Uint8Array(0));
    const config = await readConfig(socket);
    const features = featuresOffered & FEATURES_KNOWN & ~(options.withoutFeatures ?? 0n);
    return { socket, featuresOffered, features, protocolFeatures, queueCount, config };
  } catch (error) {
    socket.close();
    throw error;
  }
}

async function getU64(socket: BackEndSocket, request: number, name: string): Promise<bigint> {
  const { payload, fds } = await socket.request(request, new Uint8Array(0));
  fds.forEach(closeFd);
  if (payload.byteLength !== 8) {
    throw new BackEndError(
      "protocol",
      `the reply to ${name} has ${payload.byteLength} bytes, not 8`,
    );
  }
  return payload.getBigUint64(0, true);
}

async function readConfig(socket: BackEndSocket): Promise<BlkConfig> {
  const request = new Uint8Array(12 + CONFIG_BYTES);
  new DataView(request.buffer).setUint32(4, CONFIG_BYTES, true);
  const { payload, fds } = await socket.request(Request.GetConfig, request);
  fds.forEach(closeFd);
  if (payload.byteLength < 12 + 8) {
    throw new BackEndError("protocol", `the back end refused GET_CONFIG`);
  }
  return decodeConfig(new Uint8Array(payload.buffer, 12));
}

function checkOptions(options: FrontEndOptions): void {
  const check = (name: string, value: number | undefined, min: number, max: number, unit = 1) => {
    if (value === undefined || value >= min && value <= max && value % unit === 0) return;
    const multiple = unit > 1 ? ` and a multiple of ${unit}` : "";
    throw new RangeError(`${name} ${value} is not within ${min}…${max}${multiple}`);
  };
  check("queues", options.queues, 1, QUEUES_MAX);
  check("depth", options.depth, 1, QUEUE_SIZE_MAX);
  check("bufferBytes", options.bufferBytes, SECTOR_BYTES, 2 ** 30, SECTOR_BYTES);
  check("segments", options.segments, 1, QUEUE_SIZE_MAX - 2);
}

/** The shape that all queues get. */
function shapeOf(options: FrontEndOptions, greeting: Greeting): QueueShape {
  const { config, features, queueCount } = greeting;
  const { queues = 1, depth: slots = 8, bufferBytes = 1024 * 1024 } = options;
  if (queues > queueCount) {
    throw new RangeError(`${queues} queues were asked for; the back end has ${queueCount}`);
  }
  if (queues > 1 && (features & FEATURE_MQ) === 0n) {
    throw new RangeError(`${queues} queues were asked for; the back end does not offer MQ`);
  }
  const sizeMax = (features & FEATURE_SIZE_MAX) !== 0n ? config.sizeMaxBytes : 0;
  const segmentsNeeded = sizeMax >= SECTOR_BYTES
    ? Math.ceil(bufferBytes / (sizeMax - sizeMax % SECTOR_BYTES))
    : 1;
  const segments = Math.max(options.segments ?? 1, segmentsNeeded);
  const segmentsMax = (features & FEATURE_SEG_MAX) !== 0n ? config.segmentsMax : 0;
  if (segmentsMax > 0 && segments > segmentsMax) {
    throw new RangeError(
      `requests of ${bufferBytes} bytes need ${segments} segments; the device takes ${segmentsMax}`,
    );
  }
  const canIndirect = (features & FEATURE_INDIRECT) !== 0n;
  const isTooLong = slots * (2 + segments) > RING_SIZE_MAX_USUAL;
  const indirect = options.indirect ?? (isTooLong && canIndirect);
  if (indirect && !canIndirect) {
    throw new RangeError("indirect descriptors were asked for; the back end does not offer them");
  }
  let size = RING_SIZE_MIN;
  while (size < slots * (indirect ? 1 : 2 + segments)) size *= 2;
  if (size > QUEUE_SIZE_MAX) {
    throw new RangeError(
      `a depth of ${slots} needs a ring of ${size}; ${QUEUE_SIZE_MAX} is the most`,
    );
  }
  const eventIndex = (features & FEATURE_EVENT_INDEX) !== 0n;
  return { size, slots, bufferBytes, segments, indirect, eventIndex };
}

function unsupported(what: string): BackEndError {
  return new BackEndError("unsupported", `the back end does not support ${what}`);
}

function statusName(status: number): string {
  return status === Status.IoError ? "an I/O error" : `the unknown status ${status}`;
}

/** Name of a request type, for people. */
export function typeName(type: number): string {
  const names: Record<number, string> = {
    [RequestType.In]: "read",
    [RequestType.Out]: "write",
    [RequestType.Flush]: "flush",
    [RequestType.GetId]: "get-id",
    [RequestType.Discard]: "discard",
    [RequestType.WriteZeroes]: "write-zeroes",
  };
  return names[type] ?? `request type ${type}`;
}

function u64(value: bigint): Uint8Array {
  const bytes = new Uint8Array(8);
  new DataView(bytes.buffer).setBigUint64(0, value, true);
  return bytes;
}

function words64(...values: number[]): Uint8Array {
  const bytes = new Uint8Array(8 * values.length);
  const view = new DataView(bytes.buffer);
  values.forEach((value, index) => view.setBigUint64(8 * index, BigInt(value), true));
  return bytes;
}

/** A vring state: index and number. */
function state(index: number, num: number): Uint8Array {
  const bytes = new Uint8Array(8);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, index, true);
  view.setUint32(4, num, true);
  return bytes;
}
