/**
 * One front end: the state machine of its connection, its rings and its memory.
 *
 *     connection ─ receive ─▶ frames ─▶ messages ─┬─▶ executed ─▶ reply
 *                                                 └─▶ waits for the barrier: what is in flight comes back first
 *     kick ─▶ ring ─ pop ─▶ device.begin … target … queue.push ─▶ (turn) publish, call
 *
 * A ring's way (vhost-user.rst, "Ring states"):
 *
 *     stopped ── kick descriptor, size, addresses, enabled ──▶ started ── lease held ──▶ running
 *        ▲                                                                                 │
 *        └──────────── GET_VRING_BASE, reset: drained, published, answered ◀───────────────┘
 *
 * A ring starts as soon as it can, not only at its first kick: after a restart of ours the front end need not kick again.
 *
 * What goes wrong, and what it stops:
 *
 * - The front end breaks the protocol: it is told so where it asked for an acknowledgement, otherwise the
 *   connection ends, since it would go on in a wrong belief.
 * - The guest's driver breaks the rules of the ring: the device takes nothing more, the error eventfd is
 *   signalled, and the connection stays, so that a reset of the guest heals it. Hanging up instead would have QEMU connect
 *   again, and find the same ring, every second.
 *
 * Invariants:
 * - Nothing that was received makes this throw. Every descriptor received is handed on or closed, once.
 * - Memory is unmapped, and a ring's base told, only when nothing in flight uses it.
 * - After a disconnection nothing is shown to the guest any more: its next back end does again what is marked as in
 *   flight. The lease is given back only when the last request has come back, so that next one starts after us.
 * - Messages take effect in the order in which they came.
 *
 * @module
 */
import type { Window } from "../platform/platform.ts";
import type { VhostDevice } from "./device.ts";
import { DirtyLog, LOG_BYTES_MAX } from "./dirty_log.ts";
import { GuestMemory, type Place, REGIONS_MAX } from "./guest_memory.ts";
import { isErrno, type MappedPiece, type VhostHost } from "./host.ts";
import { InflightArea, inflightBytes, regionBytes } from "./inflight.ts";
import {
  BackendRequest,
  type ConfigAccess,
  decodeBits,
  decodeConfig,
  decodeInflight,
  decodeLog,
  decodeMemoryRegion,
  decodeMemoryTable,
  decodeVringAddress,
  decodeVringState,
  encodeBackendRequest,
  encodeInflightReply,
  encodeReply,
  encodeU64Reply,
  encodeVringStateReply,
  HEADER_BYTES,
  HeaderFlag,
  type InflightDescription,
  type Message,
  PAYLOAD_BYTES_MAX,
  ProtocolFeature,
  readU32,
  Request,
  requestName,
  VRING_FLAG_LOG,
  VRING_INDEX_MASK,
  VRING_NO_FD,
  type VringAddress,
} from "./message.ts";
import {
  DescriptorChain,
  faultText,
  Pop,
  QUEUE_SIZE_MAX,
  type QueueOwner,
  ringBytes,
  RingFault,
  VirtQueue,
} from "./queue.ts";

/** Queues of one device: QEMU's bound on what it lets a guest have is above, real guests are below. */
export const QUEUES_MAX = 64;

/**
 * Chains taken from one ring before the others have their turn: enough that batching pays, few enough
 * that a full ring of 1024 does not keep other disks waiting.
 */
export const POP_BUDGET = 256;
/** As many descriptors of a chain as a power of two count as one more chain. */
const LONG_CHAIN_SHIFT = 3;

/** Descriptors with one message: a full memory table has 8. */
const MESSAGE_FDS_MAX = 8;

/**
 * Messages that wait behind a barrier: setting up 64 queues with acknowledgements off is 320 messages, and front ends
 * wait for an answer every now and then.
 */
const MESSAGES_WAITING_MAX = 1024;

/** Refusals before the connection ends: a front end that keeps sending what is refused only fills the log. */
const REFUSALS_MAX = 64;

/** Ring features, which the session adds to the device's. Bits of the low half. */
const FEATURE_LOG_ALL = 1 << 26;
const FEATURE_INDIRECT = 1 << 28;
const FEATURE_EVENT_INDEX = 1 << 29;
const FEATURE_PROTOCOL = 1 << 30;
const RING_FEATURES = FEATURE_LOG_ALL | FEATURE_INDIRECT | FEATURE_EVENT_INDEX | FEATURE_PROTOCOL;
/** VIRTIO_F_VERSION_1 is bit 32. */
const FEATURES_HIGH = 1;
/**
 * Bits 33, 34 and 35: ACCESS_PLATFORM, RING_PACKED, IN_ORDER. They would change what we must do. Others that were not
 * offered are ignored: QEMU acknowledges some that are between it and the guest (NOTIFY_ON_EMPTY, RING_RESET).
 */
const FEATURES_HIGH_REFUSED = 2 | 4 | 8;

const PROTOCOL_FEATURES = ProtocolFeature.Mq | ProtocolFeature.LogShmfd |
  ProtocolFeature.ReplyAck | ProtocolFeature.BackendReq | ProtocolFeature.Config |
  ProtocolFeature.InflightShmfd | ProtocolFeature.ResetDevice |
  ProtocolFeature.ConfigureMemSlots | ProtocolFeature.Status;

/** Why a guest that came from a host whose agent had died does not go on: see `VirtQueue.isUnaccounted`. */
const UNACCOUNTED =
  "the guest has moved here, and the agent that it comes from had died with requests under way: which ones only its QEMU " +
  "there knows. End this QEMU, start that agent, and let the guest go on there ('cont')";

/** Why a guest that others' writes have passed by does not go on. */
const FENCED = "others have had its disk open since: end this guest";
/** Why a front end does not get what has the name of its disk by now. */
const OTHER_DISK =
  "what it has in flight is for another disk, which has had this name before: end this guest, or give that " +
  "disk its name back";

/** SET_CONFIG's flags: the values come with a migration. */
const CONFIG_MIGRATION = 1;

const enum Phase {
  Open,
  /** The owner wants it to end: takes nothing more, ends when nothing is in flight. */
  Draining,
  /** The front end is gone: ends when nothing is in flight. */
  Abandoned,
  Closed,
}

const enum Lease {
  None,
  Wanted,
  Held,
}

/** A lease, as the rings that run under it have to know it. */
export interface GrantedLease {
  /** The back end that had it last may have ended with requests of this very guest under way. */
  readonly isUnclean?: boolean;
  /** Its number, from 1 to 2^32 − 1; 0: it has none. */
  readonly generation?: number;
  /** Newest generation under which others than this front end may have changed the disk; 0: none. */
  readonly byOthers?: number;
}

/** Message under way: its header, then its payload. */
class Frame {
  readonly header = new Uint8Array(HEADER_BYTES);
  headerBytes = 0;
  payload: Uint8Array<ArrayBuffer> | null = null;
  payloadBytes = 0;
  readonly fds: number[] = [];
}

interface Places {
  readonly descriptors: Place;
  readonly available: Place;
  readonly used: Place;
}

/** A queue, and what the front end said about it. */
class Ring {
  size = 0;
  base = 0;
  address: VringAddress | null = null;
  hasKick = false;
  callFd = -1;
  errorFd = -1;
  isEnabled = false;
  /** Set up and not stopped since; the lease is wanted. */
  isStarted = false;
  /** The queue has been started, under the lease. */
  isRunning = false;
  /** Where the ring is; null while that is not in the memory shared now. */
  places: Places | null = null;
  /** GET_VRING_BASE came, and what is in flight has not come back yet. */
  isStopping = false;
  /** The budget ran out. */
  hasLeftover = false;
  /** A call was due while there was no descriptor for it. */
  isCallMissed = false;
  /** It ran empty and asks for no kick: somebody looks. */
  isPolled = false;
  /** The device takes none of its requests for now: it asks for no kick, and nobody looks. */
  isHeld = false;

  constructor(readonly queue: VirtQueue) {}
}

/** What a message waits for: one ring, or all of them. */
interface Barrier {
  readonly message: Message;
  readonly ring: Ring | null;
}

/** What a session is made of. */
export interface VhostSessionOptions {
  readonly host: VhostHost;
  /** All windows; may grow while memory is mapped. */
  readonly windows: readonly Window[];
  /** Of this session alone. */
  readonly device: VhostDevice;
}

/**
 * A front end's session, from its connection to {@linkcode VhostHost.closed}. Single-threaded: the host calls it from
 * one loop, and calls {@linkcode turn} after each batch of events for which the session asked by `schedule`.
 */
export class VhostSession implements QueueOwner {
  /** It has ended under the lease with its rings running: the front end may come back, and go on. */
  wasLeftRunning = false;
  /** The front end has asked for the size on this connection, and since it changed: not one that came back to a guest that runs. */
  isConfigRead = false;

  readonly #host: VhostHost;
  readonly #device: VhostDevice;
  readonly #memory: GuestMemory;
  readonly #log: DirtyLog;
  readonly #rings: Ring[] = [];
  readonly #chain = new DescriptorChain();

  #phase = Phase.Open;
  #lease = Lease.None;
  /** See {@linkcode leaseGranted}; of rings that start before it is given back. */
  #isUnclean = false;
  /** Some ring has not run under this lease, since nobody knows what it owes. */
  #isUnaccounted = false;
  #isBroken = false;
  #isScheduled = false;
  /** The host knows that a ring is to be looked at. */
  #isPolled = false;
  /** Of rings that are held back, the first one whose turn is next. */
  #nextHeld = 0;
  /** Queues with something to publish. */
  #batches: VirtQueue | null = null;

  #frame = new Frame();
  readonly #messages: Message[] = [];
  #barrier: Barrier | null = null;
  #isPumping = false;
  /** The connection went while a message was carried out: that is finished first. */
  #isDisconnected = false;
  #refusals = 0;

  #featuresLow = 0;
  #featuresHigh = 0;
  #protocolFeatures = 0;
  /** Something has come on this connection. */
  #isBegun = false;
  #status = 0;
  #backendFd = -1;
  #logPieces: readonly MappedPiece[] | null = null;
  #inflight: InflightArea | null = null;
  #inflightPieces: readonly MappedPiece[] | null = null;

  constructor(options: VhostSessionOptions) {
    const { host, windows, device } = options;
    this.#host = host;
    this.#device = device;
    this.#memory = new GuestMemory(host, windows);
    this.#log = new DirtyLog(windows);
    device.bind({ memory: this.#memory, log: this.#log });
  }

  /** Generation of the lease under which the rings run, or were left running; 0: neither. */
  get leftGeneration(): number {
    return this.#inflight?.generation ?? 0;
  }

  /** Requests with the target. */
  get inFlightCount(): number {
    return this.#rings.reduce((sum, ring) => sum + ring.queue.inFlightCount, 0);
  }

  /** For the status page. */
  get description(): {
    readonly ringsRunning: number;
    readonly memoryBytes: number;
    readonly inFlight: number;
    readonly isBroken: boolean;
    readonly isLogging: boolean;
  } {
    return {
      ringsRunning: this.#rings.filter((ring) => ring.isRunning).length,
      memoryBytes: this.#memory.totalBytes,
      inFlight: this.inFlightCount,
      isBroken: this.#isBroken,
      isLogging: this.#log.active,
    };
  }

  // ---------------------------------------------------------------------------------------- inputs

  /**
   * Bytes of the connection, cut anywhere, and the descriptors that came with them.
   *
   * A receive call returns descriptors with the last of the pieces that it returns, and a message is sent as one
   * piece: so they belong to the last message that begins in `bytes`, or, where none does, to the one under way.
   *
   * @param bytes read during the call
   * @param fds belong to the session from now on
   */
  receive(bytes: Uint8Array, fds: readonly number[]): void {
    if (this.#phase !== Phase.Open) {
      this.#closeFds(fds);
      return;
    }
    const complete: Frame[] = [];
    let owner = this.#frame;
    let reason: string | null = null;
    for (let at = 0; at < bytes.length && reason === null;) {
      const frame = this.#frame;
      if (frame.headerBytes < HEADER_BYTES) {
        if (frame.headerBytes === 0) owner = frame;
        frame.header[frame.headerBytes++] = bytes[at++];
        if (frame.headerBytes < HEADER_BYTES) continue;
        reason = beginPayload(frame);
      } else {
        const part = Math.min(bytes.length - at, frame.payload!.length - frame.payloadBytes);
        frame.payload!.set(bytes.subarray(at, at + part), frame.payloadBytes);
        frame.payloadBytes += part;
        at += part;
      }
      if (frame.payload !== null && frame.payloadBytes === frame.payload.length) {
        complete.push(frame);
        this.#frame = new Frame();
      }
    }
    owner.fds.push(...fds);
    if (owner.fds.length > MESSAGE_FDS_MAX) {
      reason = `a message came with more than ${MESSAGE_FDS_MAX} descriptors`;
    }
    for (const frame of complete) {
      this.#messages.push({
        request: readU32(frame.header, 0),
        flags: readU32(frame.header, 4),
        payload: frame.payload!,
        fds: frame.fds,
      });
    }
    if (reason === null && this.#messages.length > MESSAGES_WAITING_MAX) {
      reason = `more than ${MESSAGES_WAITING_MAX} messages are waiting`;
    }
    this.#pump();
    if (reason !== null) this.#fail(reason);
  }

  /** The kick eventfd of a queue was signalled. May come for nothing. */
  kicked(queueIndex: number): void {
    const ring = this.#rings[queueIndex];
    if (ring === undefined || this.#phase !== Phase.Open) return;
    if (!ring.isStarted) this.#tryStart(ring, true);
    this.#process(ring);
  }

  /**
   * The disk is ours: the rings may run. Where the back end before has ended uncleanly, those do not of which nobody has kept what was
   * under way; and none of a guest that was left running while others have changed its disk.
   */
  leaseGranted({ isUnclean = false, generation = 0, byOthers = 0 }: GrantedLease = {}): void {
    if (this.#lease !== Lease.Wanted) return;
    this.#lease = Lease.Held;
    this.#isUnclean = isUnclean;
    const area = this.#inflight;
    if (area !== null && area.generation > 0 && byOthers > area.generation) {
      area.markFenced();
      return this.#fail(FENCED);
    }
    // Who only reads has no lease, and has changed nothing.
    if (area !== null && generation > 0) area.generation = generation;
    this.#runAll();
  }

  /** The lease that is held has got another number, with nobody else's in between. */
  leaseRenewed(generation: number): void {
    if (this.#lease === Lease.Held && this.#inflight !== null) {
      this.#inflight.generation = generation;
    }
  }

  /** The disk is not ours for now. Nothing is taken until it is granted again. */
  leaseLost(): void {
    if (this.#lease === Lease.Held) this.#lease = Lease.Wanted;
  }

  /** Others have had the disk: this guest must not go on with it, whichever start of the agent it asks. `disconnected` follows. */
  fence(): void {
    this.#inflight?.markFenced();
  }

  /** The disk has another size: the guest is told, where it can be. */
  resized(): void {
    this.isConfigRead = false;
    if (this.#phase !== Phase.Open || this.#backendFd < 0) return;
    if (!this.#has(ProtocolFeature.Config)) return;
    const bytes = encodeBackendRequest(BackendRequest.ConfigChange);
    this.#host.sendBackendRequest(this, this.#backendFd, bytes);
  }

  /** The connection is gone. May come from inside `host.send`, which is where a host may find out. */
  disconnected(): void {
    if (this.#phase !== Phase.Open && this.#phase !== Phase.Draining) return;
    if (this.#isPumping) this.#isDisconnected = true;
    else this.#abandon();
  }

  /** The owner wants the session to end: finishes and shows what is in flight, then hangs up. */
  drainAndClose(): void {
    if (this.#phase !== Phase.Open) return;
    this.#phase = Phase.Draining;
    this.#finishIfQuiet();
  }

  /**
   * Shows finished requests to the guest and calls it, once per queue; then goes on with messages that waited
   * for that, and with rings that had used up their share. The host calls it after `schedule`, when it has handled
   * the events at hand, and before it sleeps.
   */
  turn(): void {
    this.#isScheduled = false;
    this.#publish();
    if (this.#phase !== Phase.Open) {
      this.#finishIfQuiet();
      return;
    }
    this.#pump();
    for (let i = 0; i < this.#rings.length; i++) {
      if (this.#rings[i].hasLeftover) this.#process(this.#rings[i]);
    }
  }

  /** {@inheritDoc QueueOwner.queueNeedsTurn} */
  queueNeedsTurn(queue: VirtQueue): void {
    if (!queue.isListed) {
      queue.isListed = true;
      queue.nextWithBatch = this.#batches;
      this.#batches = queue;
    }
    this.#schedule();
  }

  #schedule(): void {
    if (this.#isScheduled) return;
    this.#isScheduled = true;
    this.#host.schedule(this);
  }

  // ----------------------------------------------------------------------------------------- rings

  #publish(): void {
    let queue = this.#batches;
    this.#batches = null;
    while (queue !== null) {
      const next: VirtQueue | null = queue.nextWithBatch;
      queue.nextWithBatch = null;
      queue.isListed = false;
      if (!queue.isAbandoned) {
        const ring = this.#rings[queue.index];
        if (queue.publish()) this.#call(ring);
        // What the driver does next, it most likely does now.
        if (this.#host.isPolling) this.#wantPoll(ring);
      }
      queue = next;
    }
    if (this.#log.overflowed && !this.#isBroken && this.#phase === Phase.Open) {
      this.#break(this.#rings[0], faultText(RingFault.LogTooSmall));
    }
  }

  #call(ring: Ring): void {
    if (ring.callFd >= 0) this.#host.signal(ring.callFd);
    else ring.isCallMissed = true;
  }

  /** Takes what is available, within the budget. */
  #process(ring: Ring): void {
    ring.hasLeftover = false;
    ring.isHeld = false;
    if (!this.#mayRun(ring)) return;
    const { queue } = ring;
    queue.suppressKicks();
    // Looking in vain counts too: an index that jumps to and fro must not keep us here.
    // What the back end before has left is taken at once, all of it: it has been admitted before, and no base could tell of it.
    for (let budget = POP_BUDGET; budget > 0 || queue.isOwing; budget--) {
      const mayWait = !queue.isOwing && !this.#device.isOpen && queue.hasAvailable;
      if (mayWait && !this.#host.admit(this)) {
        ring.isHeld = true;
        return;
      }
      const popped = queue.pop(this.#chain);
      if (popped === Pop.Chain) {
        // Long ones take the time of several.
        budget -= this.#chain.count >> LONG_CHAIN_SHIFT;
        const fault = this.#device.begin(queue, this.#chain);
        if (fault !== RingFault.None) {
          queue.forget(this.#chain.head);
          this.#break(ring, faultText(fault));
          return;
        }
      } else if (popped === Pop.Empty) {
        if (this.#host.isPolling) {
          this.#wantPoll(ring);
          return;
        }
        if (!queue.enableKicks()) return;
      } else {
        this.#break(ring, faultText(popped));
        return;
      }
    }
    ring.hasLeftover = true;
    this.#schedule();
  }

  /**
   * The device takes requests again: takes those that were held back, from one ring after the other. Where it ends is where the
   * next call begins, so that no ring waits for ever behind another one.
   */
  resume(): void {
    const count = this.#rings.length;
    const first = this.#nextHeld;
    for (let i = 0; i < count; i++) {
      const at = (first + i) % count;
      if (!this.#rings[at].isHeld) continue;
      // Those that are left wait on.
      if (!this.#device.isOpen && !this.#host.admit(this)) return;
      this.#nextHeld = (at + 1) % count;
      this.#process(this.#rings[at]);
    }
  }

  #wantPoll(ring: Ring): void {
    if (!ring.isPolled) ring.queue.dropKicks();
    ring.isPolled = true;
    if (!this.#isPolled) this.#host.polled(this);
    this.#isPolled = true;
  }

  /**
   * Looks at the rings that ask for no kick, and takes what is there.
   *
   * @returns whether there was something
   */
  poll(): boolean {
    let found = false;
    for (let i = 0; i < this.#rings.length; i++) {
      const ring = this.#rings[i];
      if (!ring.isPolled || ring.isHeld || !this.#mayRun(ring)) continue;
      if (!ring.queue.hasAvailable) continue;
      found = true;
      this.#process(ring);
    }
    return found;
  }

  /**
   * The loop is going to sleep: kicks are wanted again.
   *
   * @returns whether something was there after all, and was taken
   */
  stopPolling(): boolean {
    this.#isPolled = false;
    let found = false;
    for (let i = 0; i < this.#rings.length; i++) {
      const ring = this.#rings[i];
      if (!ring.isPolled) continue;
      ring.isPolled = false;
      if (ring.isHeld || !this.#mayRun(ring) || !ring.queue.enableKicks()) continue;
      found = true;
      this.#process(ring);
    }
    return found;
  }

  #mayRun(ring: Ring): boolean {
    return ring.isRunning && ring.places !== null && this.#lease === Lease.Held &&
      this.#phase === Phase.Open && !this.#isBroken && !ring.isStopping &&
      this.#isEnabled(ring) &&
      (this.#barrier === null || (this.#barrier.ring !== null && this.#barrier.ring !== ring));
  }

  /** Without F_PROTOCOL_FEATURES a ring is enabled as soon as it starts. */
  #isEnabled(ring: Ring): boolean {
    return ring.isEnabled || (this.#featuresLow & FEATURE_PROTOCOL) === 0;
  }

  /** Whatever kept rings from running has changed. */
  #runAll(): void {
    if (this.#phase !== Phase.Open) return;
    for (const ring of this.#rings) {
      this.#tryStart(ring, false);
      if (ring.isStarted && !ring.isRunning) this.#run(ring);
      this.#process(ring);
    }
  }

  /**
   * Starts a ring for which everything is there.
   *
   * @param isKick the driver waits for it: then a ring that is nowhere in memory is an error
   */
  #tryStart(ring: Ring, isKick: boolean): void {
    if (ring.isStarted || this.#isBroken || !ring.hasKick || !this.#isEnabled(ring)) return;
    if (ring.size === 0 || ring.address === null || ring.isStopping) return;
    const places = this.#findPlaces(ring);
    if (typeof places === "string") {
      if (isKick) this.#break(ring, places);
      return;
    }
    ring.isStarted = true;
    ring.places = places;
    if (this.#lease === Lease.Held) this.#run(ring);
    else if (this.#lease === Lease.None) {
      this.#lease = Lease.Wanted;
      this.#host.acquire(this);
    }
  }

  /** Starts the queue of a started ring; the lease has come. */
  #run(ring: Ring): void {
    if (ring.places === null || this.#lease !== Lease.Held) return;
    const { queue } = ring;
    let inflight = null;
    if (this.#inflight !== null) {
      inflight = this.#inflight.queue(queue.index, ring.size);
      if (inflight === null) {
        this.#break(
          ring,
          `the inflight area is for ${this.#inflight.queueCount} queues of ` +
            `${this.#inflight.queueSize}, not for queue ${queue.index} of ${ring.size}`,
        );
        return;
      }
    }
    queue.start({
      ...ring.places,
      size: ring.size,
      eventIndex: (this.#featuresLow & FEATURE_EVENT_INDEX) !== 0,
      indirect: (this.#featuresLow & FEATURE_INDIRECT) !== 0,
      inflight,
    }, ring.base);
    ring.isRunning = true;
    if (this.#isUnclean && queue.isUnaccounted) {
      // It is as unknown to the next start of this agent, and to the host that the guest may go to.
      queue.leaveUnaccounted();
      this.#isUnaccounted = true;
      return this.#break(ring, UNACCOUNTED);
    }
    // A back end that ended after publishing and before calling leaves a guest that waits for that call.
    if (queue.wasUsed) this.#call(ring);
  }

  #findPlaces(ring: Ring): Places | string {
    const { descriptors, available, used } = ring.address!;
    const bytes = ringBytes(ring.size, (this.#featuresLow & FEATURE_EVENT_INDEX) !== 0);
    const places: Place[] = [];
    const parts = [
      { name: "descriptor table", address: descriptors, length: bytes.descriptors, unit: 16 },
      { name: "available ring", address: available, length: bytes.available, unit: 2 },
      { name: "used ring", address: used, length: bytes.used, unit: 4 },
    ];
    for (const { name, address, length, unit } of parts) {
      const place = this.#memory.findRing(address, length);
      const isBad = typeof place === "string" || place.offset % unit !== 0;
      if (typeof place !== "string") places.push(place);
      if (!isBad) continue;
      for (const found of places) this.#memory.releasePlace(found);
      const why = typeof place === "string" ? place : `is not aligned to ${unit} bytes`;
      return `the ${name} at 0x${address.toString(16)}+0x${length.toString(16)} ${why}`;
    }
    return { descriptors: places[0], available: places[1], used: places[2] };
  }

  #releasePlaces(ring: Ring): void {
    if (ring.places === null) return;
    this.#memory.releasePlace(ring.places.descriptors);
    this.#memory.releasePlace(ring.places.available);
    this.#memory.releasePlace(ring.places.used);
    ring.places = null;
  }

  /** Memory has changed: looks where the started rings are now. Those that are nowhere wait. */
  #placeAgain(): void {
    for (const ring of this.#rings) {
      if (!ring.isStarted || ring.places !== null) continue;
      const places = this.#findPlaces(ring);
      if (typeof places === "string") continue;
      ring.places = places;
      if (ring.isRunning) ring.queue.place(places);
    }
  }

  /** Back to the stopped state. Nothing of it is in flight. */
  #stop(ring: Ring): void {
    if (ring.isRunning) {
      ring.base = ring.queue.availableIndex;
      // That nobody need kick is between this device and the driver. Whoever has the ring next, QEMU itself or another back
      // end after a migration, may look at it only when it is kicked.
      if (ring.places !== null) ring.queue.enableKicks();
    }
    ring.isStarted = false;
    ring.isRunning = false;
    ring.isStopping = false;
    ring.hasLeftover = false;
    ring.isPolled = false;
    ring.isHeld = false;
    this.#releasePlaces(ring);
    this.#dropKick(ring);
    if (this.#isAnyStarted()) return;
    this.#isBroken = false;
    // Who stops in good order may go on by its user's will, whatever has happened to the disk; who never got so far is as it was.
    if (this.#lease === Lease.Held && this.#inflight !== null) this.#inflight.generation = 0;
    this.#giveBack();
  }

  #giveBack(): void {
    if (this.#lease === Lease.None) return;
    this.#lease = Lease.None;
    const isUnclean = this.#isUnaccounted;
    this.#isUnaccounted = false;
    this.#host.release(this, isUnclean);
  }

  #dropKick(ring: Ring): void {
    if (!ring.hasKick) return;
    ring.hasKick = false;
    this.#host.unwatchKick(this, ring.queue.index);
  }

  /** The guest broke the rules. */
  #break(ring: Ring, reason: string): void {
    this.#isBroken = true;
    this.#host.broken(this, ring.queue.index, reason);
    if (ring.errorFd >= 0) this.#host.signal(ring.errorFd);
  }

  /** The ring of an index, or null when there is no such queue. */
  #ring(index: number): Ring | null {
    if (index >= this.#device.queueCountMax || index >= QUEUES_MAX) return null;
    // Dense, so that loops over the rings need not look for holes.
    while (this.#rings.length <= index) {
      const queue = new VirtQueue(this.#rings.length, this, this.#memory, this.#log);
      this.#rings.push(new Ring(queue));
    }
    return this.#rings[index];
  }

  #isAnyStarted(): boolean {
    return this.#rings.some((ring) => ring.isStarted);
  }

  // -------------------------------------------------------------------------------------- messages

  /** Carries out messages, up to one that has to wait. */
  #pump(): void {
    if (this.#isPumping) return;
    this.#isPumping = true;
    while (this.#phase === Phase.Open && !this.#isDisconnected) {
      if (this.#barrier !== null) {
        if (!this.#isQuiet(this.#barrier.ring)) break;
        const { message } = this.#barrier;
        this.#barrier = null;
        this.#perform(message);
        // Rings that stood still meanwhile.
        this.#runAll();
        continue;
      }
      const message = this.#messages.shift();
      if (message === undefined) break;
      const ring = this.#waitsFor(message);
      if (ring === undefined) this.#perform(message);
      else {
        if (ring !== null) ring.isStopping = true;
        this.#barrier = { message, ring };
      }
    }
    this.#isPumping = false;
    if (this.#isDisconnected) this.disconnected();
  }

  /** Nothing of the ring (or, for null, of any) is in flight, and all was shown. */
  #isQuiet(ring: Ring | null): boolean {
    if (ring !== null) return ring.queue.inFlightCount === 0 && ring.queue.batchCount === 0;
    for (let i = 0; i < this.#rings.length; i++) {
      if (!this.#isQuiet(this.#rings[i])) return false;
    }
    return true;
  }

  /** The ring, or with null all rings, that must stand still for a message; undefined when none. */
  #waitsFor(message: Message): Ring | null | undefined {
    switch (message.request) {
      case Request.SetMemTable:
      case Request.RemMemReg:
      case Request.ResetDevice:
        return null;
      case Request.SetStatus:
        return message.payload.length === 8 && readU32(message.payload, 0) === 0 ? null : undefined;
      case Request.GetVringBase: {
        const state = decodeVringState(message.payload);
        return state === null ? undefined : this.#ring(state.index) ?? undefined;
      }
      default:
        return undefined;
    }
  }

  /** Carries out one message, acknowledges it where that was asked for, and closes what it left over. */
  #perform(message: Message): void {
    const { request, flags, fds } = message;
    if (!this.#isBegun) this.#begin(message);
    const reason = this.#reasonAgainstFds(message) ?? this.#execute(message);
    this.#closeFds(fds.splice(0));
    if (this.#phase !== Phase.Open) return;
    const canAcknowledge = (flags & HeaderFlag.NeedReply) !== 0 && !hasOwnReply(request);
    if (reason === null) {
      if (canAcknowledge) this.#reply(encodeU64Reply(request, 0));
      return;
    }
    const text = `${requestName(request)}: ${reason}`;
    if (!canAcknowledge || ++this.#refusals > REFUSALS_MAX) {
      this.#fail(text);
      return;
    }
    this.#host.refused(this, text);
    this.#reply(encodeU64Reply(request, 1));
  }

  /**
   * The first message of a connection. QEMU 7.2 does not notice that its back end was away and is back while its rings have
   * never run, as they have not where it waits for a migration. When the guest has come it starts them by what it has negotiated
   * with the one before: that is what this one offers, too, so it is taken at its word. It will not notice the next time either.
   */
  #begin({ request, payload }: Message): void {
    this.#isBegun = true;
    const features = request === Request.SetFeatures ? decodeBits(payload) : null;
    if (features === null || (features.low & FEATURE_PROTOCOL) === 0) return;
    this.#protocolFeatures = PROTOCOL_FEATURES;
    this.#host.noted(
      this,
      "this QEMU has not noticed that its agent was away while it waited for its guest: the guest runs, and its disk will " +
        "stand still if this agent ends once more. Move the guest, or restart its QEMU, before that",
    );
  }

  #reasonAgainstFds(message: Message): string | null {
    const count = message.fds.length;
    const { least, most } = fdCounts(message);
    return count >= least && count <= most
      ? null
      : `came with ${count} descriptors instead of ${
        least === most ? least : `${least} to ${most}`
      }`;
  }

  /** @returns why it was refused, or null */
  #execute(message: Message): string | null {
    const { request, payload } = message;
    switch (request) {
      case Request.GetFeatures:
        this.#reply(
          encodeU64Reply(request, this.#device.features | RING_FEATURES, FEATURES_HIGH),
        );
        return null;
      case Request.SetFeatures:
        return this.#setFeatures(payload);
      case Request.SetOwner:
        // QEMU keeps the connection of a device that is unplugged for one that is plugged in after it, and then believes
        // that none of its memory is with us.
        if (!this.#isAnyStarted() && this.#isQuiet(null)) this.#memory.clear();
        return null;
      case Request.SetLogFd:
        return null;
      case Request.ResetOwner:
        for (const ring of this.#rings) ring.isEnabled = false;
        return null;
      case Request.SetMemTable:
        return this.#setMemoryTable(message);
      case Request.AddMemReg:
        return this.#addMemoryRegion(message);
      case Request.RemMemReg:
        return this.#removeMemoryRegion(payload);
      case Request.GetMaxMemSlots:
        this.#reply(encodeU64Reply(request, REGIONS_MAX));
        return null;
      case Request.SetLogBase:
        return this.#setLogBase(message);
      case Request.SetVringNum:
      case Request.SetVringBase:
      case Request.SetVringEnable:
      case Request.GetVringBase:
        return this.#vringState(request, payload);
      case Request.SetVringAddr:
        return this.#setVringAddress(payload);
      case Request.SetVringKick:
      case Request.SetVringCall:
      case Request.SetVringErr:
        return this.#setVringFd(message);
      case Request.GetProtocolFeatures:
        this.#reply(encodeU64Reply(request, PROTOCOL_FEATURES));
        return null;
      case Request.SetProtocolFeatures:
        return this.#setProtocolFeatures(payload);
      case Request.GetQueueNum:
        this.#reply(encodeU64Reply(request, Math.min(this.#device.queueCountMax, QUEUES_MAX)));
        return null;
      case Request.SetBackendReqFd:
        if (this.#backendFd >= 0) this.#host.closeFd(this.#backendFd);
        this.#backendFd = message.fds.shift()!;
        return null;
      case Request.GetConfig:
        return this.#getConfig(payload);
      case Request.SetConfig:
        return this.#setConfig(payload);
      case Request.GetInflightFd:
        return this.#getInflight(payload);
      case Request.SetInflightFd:
        return this.#setInflight(message);
      case Request.ResetDevice:
        this.#resetDevice();
        return null;
      case Request.SetStatus:
        return this.#setStatus(payload);
      case Request.GetStatus:
        this.#reply(encodeU64Reply(request, this.#status));
        return null;
      default:
        return "is not supported";
    }
  }

  #has(feature: ProtocolFeature): boolean {
    return (this.#protocolFeatures & feature) !== 0;
  }

  #setFeatures(payload: Uint8Array): string | null {
    const bits = decodeBits(payload);
    if (bits === null) return badSize(payload);
    if ((bits.high & FEATURES_HIGH_REFUSED) !== 0) {
      return `acknowledges features that were not offered: ${hexBits(bits.high, bits.low)}`;
    }
    const low = bits.low & (this.#device.features | RING_FEATURES);
    const high = bits.high & FEATURES_HIGH;
    const changed = low ^ this.#featuresLow;
    if (
      this.#isAnyStarted() && ((changed & ~FEATURE_LOG_ALL) !== 0 || high !== this.#featuresHigh)
    ) return "changes features while rings are running";
    this.#featuresLow = low;
    this.#featuresHigh = high;
    this.#device.acknowledge(low, high);
    if ((changed & FEATURE_LOG_ALL) !== 0 && (low & FEATURE_LOG_ALL) === 0) this.#dropLog();
    this.#settleLog();
    this.#runAll();
    return null;
  }

  #setProtocolFeatures(payload: Uint8Array): string | null {
    const bits = decodeBits(payload);
    if (bits === null) return badSize(payload);
    if ((bits.low & ~PROTOCOL_FEATURES) !== 0 || bits.high !== 0) {
      return `acknowledges protocol features that were not offered: ${
        hexBits(bits.high, bits.low)
      }`;
    }
    this.#protocolFeatures = bits.low;
    return null;
  }

  // ------------------------------------------------------------------------------ messages: memory

  #setMemoryTable(message: Message): string | null {
    const regions = decodeMemoryTable(message.payload);
    if (regions === null) return badSize(message.payload);
    if (regions.length !== message.fds.length) {
      return `has ${regions.length} regions and ${message.fds.length} descriptors`;
    }
    for (const ring of this.#rings) this.#releasePlaces(ring);
    this.#memory.clear();
    for (const region of regions) {
      const reason = this.#memory.add(region, message.fds.shift()!);
      if (reason === null) continue;
      this.#memory.clear();
      return reason;
    }
    this.#placeAgain();
    return null;
  }

  #addMemoryRegion(message: Message): string | null {
    const region = decodeMemoryRegion(message.payload);
    if (region === null) return badSize(message.payload);
    const reason = this.#memory.add(region, message.fds.shift()!);
    if (reason !== null) return reason;
    this.#placeAgain();
    this.#runAll();
    return null;
  }

  #removeMemoryRegion(payload: Uint8Array): string | null {
    const region = decodeMemoryRegion(payload);
    if (region === null) return badSize(payload);
    for (const ring of this.#rings) this.#releasePlaces(ring);
    const isRemoved = this.#memory.remove(region);
    this.#placeAgain();
    return isRemoved ? null : "names a region that there is not";
  }

  #setLogBase(message: Message): string | null {
    if (!this.#has(ProtocolFeature.LogShmfd)) return "without LOG_SHMFD is not supported";
    const log = decodeLog(message.payload);
    if (log === null) return badSize(message.payload);
    if (log.sizeBytes === 0 || log.sizeBytes > LOG_BYTES_MAX) {
      return `has a log of ${log.sizeBytes} bytes, not between 1 and ${LOG_BYTES_MAX}`;
    }
    const pieces = this.#host.map(message.fds[0], log.fileOffset, log.sizeBytes);
    if (isErrno(pieces)) return `the log cannot be mapped: errno ${-pieces}`;
    this.#dropLog();
    this.#logPieces = pieces;
    this.#log.attach(pieces);
    this.#settleLog();
    this.#reply(encodeU64Reply(message.request, 0));
    return null;
  }

  #dropLog(): void {
    this.#log.active = false;
    if (this.#logPieces === null) return;
    this.#log.attach([]);
    this.#host.unmap(this.#logPieces);
    this.#logPieces = null;
  }

  #settleLog(): void {
    this.#log.active = (this.#featuresLow & FEATURE_LOG_ALL) !== 0 && this.#logPieces !== null;
  }

  // ------------------------------------------------------------------------------- messages: rings

  #vringState(request: Request, payload: Uint8Array): string | null {
    const state = decodeVringState(payload);
    if (state === null) return badSize(payload);
    const { index, num } = state;
    const ring = this.#ring(index);
    if (ring === null) return this.#badQueue(index);
    if (request === Request.GetVringBase) {
      this.#stop(ring);
      this.#reply(encodeVringStateReply(request, { index, num: ring.base }));
      return null;
    }
    if (request === Request.SetVringEnable) {
      if (num > 1) return `switches queue ${index} to ${num}, neither 0 nor 1`;
      ring.isEnabled = num === 1;
      this.#runAll();
      return null;
    }
    if (ring.isStarted) return `changes queue ${index} while it is running`;
    if (request === Request.SetVringNum) {
      if (num === 0 || num > QUEUE_SIZE_MAX || (num & (num - 1)) !== 0) {
        return `queue ${index} of ${num}: not a power of 2 up to ${QUEUE_SIZE_MAX}`;
      }
      ring.size = num;
    } else {
      if (num > 0xffff) return `base ${num} of queue ${index} is not below 65536`;
      ring.base = num;
    }
    this.#runAll();
    return null;
  }

  #setVringAddress(payload: Uint8Array): string | null {
    const address = decodeVringAddress(payload);
    if (address === null) return badSize(payload);
    const ring = this.#ring(address.index);
    if (ring === null) return this.#badQueue(address.index);
    if (
      address.descriptors % 16 !== 0 || address.available % 2 !== 0 || address.used % 4 !== 0
    ) return `the rings of queue ${address.index} are misaligned`;
    const old = ring.address;
    if (
      ring.isStarted && old !== null &&
      (old.descriptors !== address.descriptors || old.available !== address.available ||
        old.used !== address.used)
    ) return `moves queue ${address.index} while it is running`;
    ring.address = address;
    // QEMU sends the same addresses again when it starts and stops logging.
    ring.queue.usedLogAddress = (address.flags & VRING_FLAG_LOG) !== 0 ? address.log : -1;
    this.#runAll();
    return null;
  }

  #setVringFd(message: Message): string | null {
    const { request, payload, fds } = message;
    const bits = decodeBits(payload);
    if (bits === null) return badSize(payload);
    const index = bits.low & VRING_INDEX_MASK;
    const ring = this.#ring(index);
    if (ring === null || bits.high !== 0 || bits.low > (VRING_INDEX_MASK | VRING_NO_FD)) {
      return this.#badQueue(index);
    }
    const fd = fds.shift() ?? -1;
    if (request === Request.SetVringKick) {
      if (fd < 0) return `without a descriptor for queue ${index}: polling is not supported`;
      this.#dropKick(ring);
      ring.hasKick = true;
      this.#host.watchKick(this, index, fd);
      this.#runAll();
    } else if (request === Request.SetVringCall) {
      if (ring.callFd >= 0) this.#host.closeFd(ring.callFd);
      ring.callFd = fd;
      // Whoever exchanges the descriptor of a running ring may have thrown away what the old one was signalled with, as a QEMU
      // does that takes a queue's mask off after starting it. One call too many does no harm.
      if (fd >= 0 && (ring.isCallMissed || ring.isRunning)) {
        ring.isCallMissed = false;
        this.#host.signal(fd);
      }
    } else {
      if (ring.errorFd >= 0) this.#host.closeFd(ring.errorFd);
      ring.errorFd = fd;
    }
    return null;
  }

  #badQueue(index: number): string {
    return `names queue ${index}, but there are ${
      Math.min(this.#device.queueCountMax, QUEUES_MAX)
    }`;
  }

  // ------------------------------------------------------------------------------ messages: device

  #getConfig(payload: Uint8Array<ArrayBuffer>): string | null {
    const access = decodeConfig(payload);
    // An empty payload is how this request is refused.
    if (access === null) this.#reply(encodeReply(Request.GetConfig, new Uint8Array(0)));
    else {
      const answer = payload.slice();
      this.#device.readConfig(access.offset, answer.subarray(12));
      // The size is at the start.
      if (access.offset === 0) this.isConfigRead = true;
      this.#reply(encodeReply(Request.GetConfig, answer));
    }
    return null;
  }

  #setConfig(payload: Uint8Array<ArrayBuffer>): string | null {
    const access: ConfigAccess | null = decodeConfig(payload);
    if (access === null) return badSize(payload);
    const { offset, sizeBytes, flags, data } = access;
    if (flags > CONFIG_MIGRATION) return `flags ${flags} are not known`;
    if (!this.#device.writeConfig(offset, data, flags === CONFIG_MIGRATION)) {
      return `the driver may not write ${sizeBytes} bytes at ${offset}`;
    }
    this.#inflight?.saveState(this.#device.restartState);
    return null;
  }

  #getInflight(payload: Uint8Array): string | null {
    const wanted = decodeInflight(payload);
    if (wanted === null) return badSize(payload);
    const reason = this.#reasonAgainstInflight(wanted);
    if (reason !== null) return reason;
    const { queueCount, queueSize } = wanted;
    const sizeBytes = inflightBytes(queueCount, queueSize);
    const fd = this.#host.createShared(sizeBytes);
    const why = fd < 0 ? `errno ${-fd}` : this.#mapInflight(fd, {
      sizeBytes,
      fileOffset: 0,
      queueCount,
      queueSize,
    });
    if (why !== null) {
      // A size of 0 says that there is no such area; the front end goes on without.
      if (fd >= 0) this.#host.closeFd(fd);
      this.#host.refused(this, `GET_INFLIGHT_FD: ${why}`);
      const none = { sizeBytes: 0, fileOffset: 0, queueCount, queueSize };
      this.#reply(encodeInflightReply(none, payload.length));
      return null;
    }
    this.#inflight!.saveState(this.#device.restartState);
    this.#inflight!.identity = this.#device.identity;
    const area = { sizeBytes, fileOffset: 0, queueCount, queueSize };
    this.#host.send(this, encodeInflightReply(area, payload.length), [fd]);
    return null;
  }

  #setInflight(message: Message): string | null {
    const given = decodeInflight(message.payload);
    if (given === null) return badSize(message.payload);
    const reason = this.#reasonAgainstInflight(given) ?? this.#mapInflight(message.fds[0], given);
    if (reason !== null) return reason;
    const area = this.#inflight!;
    if (area.identity === 0) area.identity = this.#device.identity;
    const refusal = area.identity !== this.#device.identity
      ? OTHER_DISK
      : area.isFenced
      ? FENCED
      : null;
    if (refusal !== null) {
      this.#closeFds(message.fds.splice(0));
      this.#fail(refusal);
      return null;
    }
    const state = area.loadState();
    if (state >= 0) this.#device.restore(state);
    else area.saveState(this.#device.restartState);
    return null;
  }

  #reasonAgainstInflight(area: InflightDescription): string | null {
    if (!this.#has(ProtocolFeature.InflightShmfd)) return "INFLIGHT_SHMFD was not negotiated";
    if (this.#rings.some((ring) => ring.isRunning)) return "changes the area of running rings";
    const { queueCount, queueSize } = area;
    if (queueCount === 0 || queueCount > this.#device.queueCountMax || queueCount > QUEUES_MAX) {
      return `${queueCount} queues are not between 1 and ${this.#device.queueCountMax}`;
    }
    if (queueSize === 0 || queueSize > QUEUE_SIZE_MAX) {
      return `a queue size of ${queueSize} is not between 1 and ${QUEUE_SIZE_MAX}`;
    }
    return null;
  }

  /** Maps an area in place of the one there was. The descriptor stays the caller's. */
  #mapInflight(fd: number, area: InflightDescription): string | null {
    const { sizeBytes, fileOffset, queueCount, queueSize } = area;
    if (sizeBytes < queueCount * regionBytes(queueSize)) {
      return `${sizeBytes} bytes are too few for ${queueCount} queues of ${queueSize}`;
    }
    const lengthBytes = Math.min(sizeBytes, inflightBytes(queueCount, queueSize));
    const pieces = this.#host.map(fd, fileOffset, lengthBytes);
    if (isErrno(pieces)) return `cannot be mapped: errno ${-pieces}`;
    if (pieces.length !== 1 || pieces[0].offset % 8 !== 0) {
      this.#host.unmap(pieces);
      return "cannot be mapped in one aligned piece";
    }
    this.#dropInflight();
    this.#inflightPieces = pieces;
    const [piece] = pieces;
    const window = this.#memory.windows[piece.window];
    this.#inflight = new InflightArea(window, piece, queueCount, queueSize);
    return null;
  }

  #dropInflight(): void {
    this.#inflight = null;
    if (this.#inflightPieces === null) return;
    this.#host.unmap(this.#inflightPieces);
    this.#inflightPieces = null;
  }

  /**
   * Memory, protocol features and descriptors stay: front ends remember what they sent before a reset. Nothing is
   * in flight.
   */
  #resetDevice(): void {
    for (const ring of this.#rings) {
      this.#stop(ring);
      ring.isEnabled = false;
      ring.base = 0;
      ring.size = 0;
      ring.address = null;
      ring.queue.usedLogAddress = -1;
    }
    this.#isBroken = false;
    this.#status = 0;
    this.#featuresLow = 0;
    this.#featuresHigh = 0;
    this.#dropLog();
    this.#dropInflight();
    this.#device.reset();
  }

  #setStatus(payload: Uint8Array): string | null {
    const bits = decodeBits(payload);
    if (bits === null) return badSize(payload);
    if (bits.high !== 0 || bits.low > 0xff) {
      return `status ${hexBits(bits.high, bits.low)} is not a byte`;
    }
    this.#status = bits.low;
    // QEMU also sends 0 where it only pauses the guest: rings stop, but nothing is forgotten.
    if (bits.low === 0) { for (const ring of this.#rings) if (ring.isStarted) this.#stop(ring); }
    return null;
  }

  // ------------------------------------------------------------------------------------------- end

  #reply(bytes: Uint8Array<ArrayBuffer>): void {
    this.#host.send(this, bytes, []);
  }

  /** The front end broke the protocol. */
  #fail(reason: string): void {
    if (this.#phase !== Phase.Open) return;
    this.#host.hangUp(this, reason);
    this.#abandon();
  }

  #abandon(): void {
    this.#phase = Phase.Abandoned;
    for (const ring of this.#rings) ring.queue.isAbandoned = true;
    this.#finishIfQuiet();
  }

  #finishIfQuiet(): void {
    if (this.#phase === Phase.Draining) {
      if (!this.#isQuiet(null)) return;
      this.#host.hangUp(this, "the agent closes the disk");
      this.#phase = Phase.Abandoned;
    }
    if (this.#phase === Phase.Abandoned && this.inFlightCount === 0) this.#close();
  }

  #close(): void {
    this.#phase = Phase.Closed;
    for (const ring of this.#rings) {
      this.#releasePlaces(ring);
      this.#dropKick(ring);
      if (ring.callFd >= 0) this.#host.closeFd(ring.callFd);
      if (ring.errorFd >= 0) this.#host.closeFd(ring.errorFd);
    }
    this.#rings.length = 0;
    this.#memory.clear();
    this.#dropLog();
    this.wasLeftRunning = this.#lease === Lease.Held && this.leftGeneration > 0;
    this.#dropInflight();
    if (this.#backendFd >= 0) this.#host.closeFd(this.#backendFd);
    this.#closeFds(this.#frame.fds.splice(0));
    if (this.#barrier !== null) this.#closeFds(this.#barrier.message.fds.splice(0));
    this.#barrier = null;
    for (const message of this.#messages.splice(0)) this.#closeFds(message.fds);
    this.#giveBack();
    this.#host.closed(this);
  }

  #closeFds(fds: readonly number[]): void {
    for (const fd of fds) this.#host.closeFd(fd);
  }
}

/** Checks a header that is complete and makes room for its payload. */
function beginPayload(frame: Frame): string | null {
  const request = readU32(frame.header, 0);
  const flags = readU32(frame.header, 4);
  const size = readU32(frame.header, 8);
  if (
    (flags & HeaderFlag.VersionMask) !== HeaderFlag.Version || (flags & HeaderFlag.Reply) !== 0
  ) return `${requestName(request)} has flags 0x${flags.toString(16)}: not a request of version 1`;
  if (size > PAYLOAD_BYTES_MAX) {
    return `${requestName(request)} announces ${size} bytes, more than ${PAYLOAD_BYTES_MAX}`;
  }
  frame.payload = new Uint8Array(size);
  return null;
}

/** How many descriptors a message comes with. */
function fdCounts(message: Message): { least: number; most: number } {
  const { request, payload } = message;
  switch (request) {
    case Request.SetMemTable:
      return { least: 0, most: MESSAGE_FDS_MAX };
    case Request.AddMemReg:
    case Request.SetLogBase:
    case Request.SetLogFd:
    case Request.SetBackendReqFd:
    case Request.SetInflightFd:
      return { least: 1, most: 1 };
    case Request.SetVringKick:
    case Request.SetVringCall:
    case Request.SetVringErr: {
      const hasNone = payload.length === 8 && (readU32(payload, 0) & VRING_NO_FD) !== 0;
      return hasNone ? { least: 0, most: 0 } : { least: 1, most: 1 };
    }
    case Request.RemMemReg:
      // Some front ends send one, against the specification; it is closed.
      return { least: 0, most: 1 };
    default:
      return { least: 0, most: 0 };
  }
}

/** True for requests that are answered whether or not an acknowledgement was asked for. */
function hasOwnReply(request: number): boolean {
  switch (request) {
    case Request.GetFeatures:
    case Request.GetProtocolFeatures:
    case Request.GetQueueNum:
    case Request.GetVringBase:
    case Request.GetConfig:
    case Request.GetInflightFd:
    case Request.GetMaxMemSlots:
    case Request.GetStatus:
    case Request.SetLogBase:
      return true;
    default:
      return false;
  }
}

function badSize(payload: Uint8Array): string {
  return `its payload of ${payload.length} bytes does not fit the request`;
}

function hexBits(high: number, low: number): string {
  return `0x${high.toString(16).padStart(8, "0")}${(low >>> 0).toString(16).padStart(8, "0")}`;
}
