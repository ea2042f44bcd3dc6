/**
 * A network in memory that behaves as badly as a real one may, for many nodes in one process and in virtual time.
 *
 *     host A ── send ──▶ event queue, by time ──▶ run(untilMs) ──▶ listener of host B
 *
 * - Datagrams are lost, doubled, delayed each on its own, and so overtake one another.
 * - Control messages of one pair arrive in order and at most once, or not at all.
 * - Links are streams: in order, whole messages, nothing missing in the middle. They may break at any time, and then everything in flight is
 *   lost, the two ends learn of it at different times, and the one that made the link connects again with back-off.
 * - Directions can be cut one by one. Over a cut a link stalls: it goes on when the cut ends, or breaks after {@linkcode LINK_MS_MAX}.
 * - A host that crashes takes its links with it; the others are told soon (its process died) or by a timeout (its power failed).
 *
 * Invariants:
 * - A listener is called by {@linkcode SimulatedNetwork.run} only, never from inside a call of its own.
 * - Everything is drawn from the one generator, and events of the same time happen in the order in which they were made: a seed repeats a run.
 * - The rules and bounds of `network.ts` hold, so that what works here has met them; a violation by a caller throws.
 *
 * @module
 */
import type { Arena } from "../../base/arena.ts";
import { BLOCK_BYTES } from "../../base/limits.ts";
import type { Prng } from "../../base/prng.ts";
import { withPortOffset } from "../address.ts";
import {
  CONTROL_BYTES_MAX,
  type ControlChannel,
  type ControlListener,
  type ControlPeer,
  DATA_PORT_OFFSET,
  DATAGRAM_BYTES_MAX,
  type DatagramListener,
  type Datagrams,
  PEER_DATA_BYTES_MAX,
  PEER_HEAD_BYTES,
  PEER_HEAD_BYTES_MAX,
  type PeerListener,
  type PeerTransport,
} from "../network.ts";

/** A link over a cut, or to a host without power, breaks after this long: TCP's user timeout. */
export const LINK_MS_MAX = 8000;
/** Bytes in flight in one direction of a link, and control messages of one pair. */
const LINK_BYTES_MAX = 8 * 1024 * 1024, CONTROL_MESSAGES_MAX = 1024;
/** Wait before connecting again, doubled each time, half of it by chance. */
const BACKOFF_MS_MIN = 50, BACKOFF_MS_MAX = 2000;
/** How often a stalled direction is looked at. */
const STALL_MS = 50;
/** Wait for room in the arena. */
const ARENA_MS = 1;

/** What goes wrong, as probabilities from 0 to 1. May be changed while the network runs. */
export interface NetworkFaults {
  /** Delay of everything, drawn evenly from this range of milliseconds. */
  delayMs: readonly [min: number, max: number];
  datagramLoss: number;
  datagramDuplication: number;
  /** A datagram is held back for up to ten times the longest delay. */
  datagramHold: number;
  controlLoss: number;
  /** Each message sent on a link breaks the link with this probability. */
  linkBreak: number;
  /** `send` refuses although there is room, and `linkReady` follows. */
  linkRefusal: number;
  /** Bytes per millisecond of a link's direction; Infinity: no limit. */
  linkBytesPerMs: number;
}

/** A network without faults, and with a little delay. */
export const NO_FAULTS: NetworkFaults = {
  delayMs: [0.1, 1],
  datagramLoss: 0,
  datagramDuplication: 0,
  datagramHold: 0,
  controlLoss: 0,
  linkBreak: 0,
  linkRefusal: 0,
  linkBytesPerMs: Infinity,
};

/** A very bad one: what every protocol has to live with. */
export const BAD_FAULTS: NetworkFaults = {
  delayMs: [0.1, 20],
  datagramLoss: 0.3,
  datagramDuplication: 0.5,
  datagramHold: 0.1,
  controlLoss: 0.3,
  linkBreak: 0.002,
  linkRefusal: 0.02,
  linkBytesPerMs: 100_000,
};

/** Who a host is; may be changed by {@linkcode SimulatedHost.self}. */
export type HostIdentity = Omit<ControlPeer, "address">;

/** Counters for tests. */
export interface NetworkCounts {
  datagrams: number;
  datagramsLost: number;
  datagramsDoubled: number;
  controlMessages: number;
  controlLost: number;
  linkMessages: number;
  linkMessagesLost: number;
  linksMade: number;
  linksBroken: number;
}

interface Event {
  readonly atMs: number;
  readonly order: number;
  readonly run: () => void;
}

/** See the head of the file. */
export class SimulatedNetwork {
  /** What goes wrong from now on. */
  faults: NetworkFaults;
  readonly counts: NetworkCounts = {
    datagrams: 0,
    datagramsLost: 0,
    datagramsDoubled: 0,
    controlMessages: 0,
    controlLost: 0,
    linkMessages: 0,
    linkMessagesLost: 0,
    linksMade: 0,
    linksBroken: 0,
  };
  readonly random: Prng;
  readonly #hosts = new Map<string, SimulatedHost>();
  /** `from>to` of the directions that are cut. */
  readonly #cuts = new Set<string>();
  /** A binary heap. */
  readonly #events: Event[] = [];
  #order = 0;
  #nowMs = 0;

  /** @param options.random decides everything */
  constructor(options: { readonly random: Prng; readonly faults?: Partial<NetworkFaults> }) {
    this.random = options.random;
    this.faults = { ...NO_FAULTS, ...options.faults };
  }

  /** Virtual milliseconds. */
  get nowMs(): number {
    return this.#nowMs;
  }

  /** When the next thing happens; Infinity: nothing will. */
  get nextMs(): number {
    return this.#events.length > 0 ? this.#events[0].atMs : Infinity;
  }

  /**
   * Adds a host, or the next life of one that has crashed.
   *
   * @param options.address its control address `host:port`; data is one port up
   * @param options.bytes memory whose first bytes are the arena
   */
  addHost(
    options: {
      readonly address: string;
      readonly self: HostIdentity;
      readonly bytes: Uint8Array;
      readonly arena: Arena;
    },
  ): SimulatedHost {
    const { address } = options;
    if (this.#hosts.get(address)?.isAlive) {
      throw new Error(`simulated network: ${address} is there already`);
    }
    const host = new SimulatedHost(this, options);
    this.#hosts.set(address, host);
    return host;
  }

  /** Does everything up to and including `untilMs`, in order, and stops there. */
  run(untilMs: number): void {
    while (this.nextMs <= untilMs) this.step();
    this.#nowMs = Math.max(this.#nowMs, untilMs);
  }

  /** Does the next thing. False: there is none. */
  step(): boolean {
    const event = this.#pop();
    if (event === null) return false;
    this.#nowMs = Math.max(this.#nowMs, event.atMs);
    event.run();
    return true;
  }

  /** Cuts or mends the direction from one control address to another. */
  setCut(from: string, to: string, isCut: boolean): void {
    if (isCut) this.#cuts.add(`${from}>${to}`);
    else this.#cuts.delete(`${from}>${to}`);
  }

  /** Cuts both directions between hosts of different groups and mends those within one. Hosts in no group are left as they are. */
  partition(groups: readonly (readonly string[])[]): void {
    for (const group of groups) {
      for (const other of groups) {
        for (const from of group) for (const to of other) this.setCut(from, to, group !== other);
      }
    }
  }

  /** Mends everything. */
  heal(): void {
    this.#cuts.clear();
  }

  /** True when nothing gets from one control address to the other. */
  isCut(from: string, to: string): boolean {
    return this.#cuts.has(`${from}>${to}`);
  }

  // ---- for hosts

  /** The living host at a control address. */
  hostAt(address: string): SimulatedHost | null {
    const host = this.#hosts.get(address);
    return host?.isAlive ? host : null;
  }

  /** The host that listens for data at `address`. */
  dataHostAt(address: string): SimulatedHost | null {
    for (const host of this.#hosts.values()) {
      if (host.isAlive && host.dataAddress === address) return host;
    }
    return null;
  }

  /** A delay in milliseconds. */
  delay(): number {
    const [min, max] = this.faults.delayMs;
    return min + (max - min) * this.random.fraction();
  }

  /** Has `run` called at a time. */
  at(atMs: number, run: () => void): void {
    const events = this.#events;
    const event: Event = { atMs, order: this.#order++, run };
    let at = events.length;
    events.push(event);
    while (at > 0) {
      const parent = (at - 1) >> 1;
      if (!isBefore(event, events[parent])) break;
      events[at] = events[parent];
      at = parent;
    }
    events[at] = event;
  }

  /** Has `run` called after some milliseconds. */
  after(ms: number, run: () => void): void {
    this.at(this.#nowMs + ms, run);
  }

  #pop(): Event | null {
    const events = this.#events;
    if (events.length === 0) return null;
    const first = events[0];
    const last = events.pop()!;
    const length = events.length;
    if (length === 0) return first;
    let at = 0;
    for (;;) {
      let child = 2 * at + 1;
      if (child >= length) break;
      if (child + 1 < length && isBefore(events[child + 1], events[child])) child++;
      if (!isBefore(events[child], last)) break;
      events[at] = events[child];
      at = child;
    }
    events[at] = last;
    return first;
  }
}

function isBefore(a: Event, b: Event): boolean {
  return a.atMs < b.atMs || (a.atMs === b.atMs && a.order < b.order);
}

interface LinkMessage {
  readonly head: Uint8Array;
  readonly data: Uint8Array | null;
  readonly bytes: number;
  atMs: number;
}

/** One end of a link. */
class LinkEnd {
  other!: LinkEnd;
  /** The listener knows of it. */
  isUp = false;
  /** Broken or closed: nothing is sent or delivered any more. */
  isBroken = false;
  wantsReady = false;
  isPaused = false;
  /** What this end has sent and the other end has not received. */
  queue: LinkMessage[] = [];
  queuedBytes = 0;
  isPumping = false;
  stalledSinceMs = -1;
  isUnacknowledged = false;
  /** When the direction's wire is free again. */
  freeMs = 0;

  constructor(
    readonly host: SimulatedHost,
    readonly number: number,
    readonly node: number,
    readonly incarnation: number,
    /** Made by this end's `setPeer`. */
    readonly peer: SimulatedPeer | null,
  ) {}
}

interface SimulatedPeer {
  readonly node: number;
  readonly address: string;
  failures: number;
  link: LinkEnd | null;
  isConnecting: boolean;
}

/** One node's part of the network. */
export class SimulatedHost implements PeerTransport {
  peerListener: PeerListener = {
    linkUp() {},
    linkDown() {},
    linkReady() {},
    received() {},
  };
  controlListener: ControlListener = { controlReceived() {} };
  datagramListener: DatagramListener = { datagramReceived() {} };
  /** Who it says it is: on connections made from now on. */
  self: HostIdentity;
  readonly address: string;
  readonly dataAddress: string;
  isAlive = true;
  readonly control: ControlChannel;
  readonly datagrams: Datagrams;
  readonly #network: SimulatedNetwork;
  readonly #bytes: Uint8Array;
  readonly #arena: Arena;
  readonly #peers = new Map<number, SimulatedPeer>();
  readonly #links: (LinkEnd | null)[] = [];
  readonly #freeNumbers: number[] = [];
  readonly #controlLanes = new Map<string, { lastMs: number; count: number }>();

  /** Made by {@linkcode SimulatedNetwork.addHost}. */
  constructor(
    network: SimulatedNetwork,
    options: {
      readonly address: string;
      readonly self: HostIdentity;
      readonly bytes: Uint8Array;
      readonly arena: Arena;
    },
  ) {
    this.#network = network;
    this.#bytes = options.bytes;
    this.#arena = options.arena;
    this.address = options.address;
    this.dataAddress = withPortOffset(options.address, DATA_PORT_OFFSET);
    this.self = options.self;
    this.control = { send: (address, bytes) => this.#sendControl(address, bytes) };
    this.datagrams = { send: (address, bytes) => this.#sendDatagram(address, bytes) };
  }

  /** Links that are up. */
  get linkCount(): number {
    return this.#links.filter((link) => link !== null).length;
  }

  /**
   * Ends this life of the host: nothing of it is delivered any more, nor to it.
   *
   * @param options.isSilent its power failed: the others find out by a timeout, or when it is back; otherwise only its process died
   */
  crash(options: { readonly isSilent?: boolean } = {}): void {
    this.isAlive = false;
    for (const link of this.#links) {
      if (link === null) continue;
      link.isBroken = true;
      this.#network.counts.linkMessagesLost += link.queue.length;
      link.queue = [];
      if (!options.isSilent) link.other.host.breakLater(link.other, this.#network.delay());
      else {link.other.host.breakLater(
          link.other,
          LINK_MS_MAX * (0.5 + this.#network.random.fraction() / 2),
        );}
    }
  }

  /** Breaks a link as a router might: for tests. */
  breakLink(number: number): void {
    const link = this.#links[number];
    if (link) this.#break(link);
  }

  // --------------------------------------------------------------------------------- PeerTransport

  /** {@inheritDoc PeerTransport.setPeer} */
  setPeer(node: number, address: string | null): void {
    const old = this.#peers.get(node);
    if (old !== undefined && old.address === address) return;
    this.#peers.delete(node);
    if (old?.link) this.#break(old.link);
    if (address === null) return;
    const peer: SimulatedPeer = { node, address, failures: 0, link: null, isConnecting: false };
    this.#peers.set(node, peer);
    this.#connect(peer);
  }

  /** {@inheritDoc PeerTransport.send} */
  send(
    number: number,
    head: Uint8Array,
    headBytes: number,
    dataOffset: number,
    dataBytes: number,
  ): boolean {
    if (
      headBytes < PEER_HEAD_BYTES || headBytes > PEER_HEAD_BYTES_MAX || headBytes > head.length ||
      dataBytes < 0 || dataBytes > PEER_DATA_BYTES_MAX || dataBytes % BLOCK_BYTES !== 0
    ) throw new RangeError(`simulated network: a message of ${headBytes} and ${dataBytes} bytes`);
    const network = this.#network;
    const link = this.#links[number];
    if (!link || !link.isUp || !this.isAlive) return false;
    if (link.isBroken) {
      // Not known here yet: it goes into a socket that nobody will read.
      network.counts.linkMessages++;
      network.counts.linkMessagesLost++;
      return true;
    }
    const bytes = headBytes + dataBytes;
    if (link.queuedBytes + bytes > LINK_BYTES_MAX) {
      link.wantsReady = true;
      return false;
    }
    if (network.faults.linkRefusal > 0 && network.random.chance(network.faults.linkRefusal)) {
      link.wantsReady = true;
      network.after(network.delay(), () => this.#ready(link));
      return false;
    }
    network.counts.linkMessages++;
    link.freeMs = Math.max(link.freeMs, network.nowMs) + bytes / network.faults.linkBytesPerMs;
    link.queue.push({
      head: head.slice(0, headBytes),
      data: dataBytes > 0 ? this.#bytes.slice(dataOffset, dataOffset + dataBytes) : null,
      bytes,
      atMs: link.freeMs + network.delay(),
    });
    link.queuedBytes += bytes;
    this.#pumpLater(link);
    if (network.faults.linkBreak > 0 && network.random.chance(network.faults.linkBreak)) {
      network.after(network.delay() * network.random.fraction(), () => this.#break(link));
    }
    return true;
  }

  /** {@inheritDoc PeerTransport.pause} */
  pause(number: number, isPaused: boolean): void {
    const link = this.#links[number];
    if (!link || link.isPaused === isPaused) return;
    link.isPaused = isPaused;
    if (!isPaused) link.other.host.#pumpLater(link.other);
  }

  #connect(peer: SimulatedPeer): void {
    const network = this.#network;
    if (peer.isConnecting) return;
    peer.isConnecting = true;
    const isWanted = () => this.isAlive && this.#peers.get(peer.node) === peer;
    const fail = () => {
      peer.isConnecting = false;
      if (isWanted()) this.#retry(peer);
    };
    network.after(network.delay(), () => {
      if (!isWanted()) return fail();
      const other = network.dataHostAt(peer.address);
      const isReachable = other !== null && other.#isNode(peer.node) &&
        !network.isCut(this.address, other.address) && !network.isCut(other.address, this.address);
      const older = isReachable ? other.#incomingOf(this.self.node) : null;
      if (!isReachable || (older !== null && older.incarnation > this.self.incarnation)) {
        return network.after(network.delay(), fail);
      }
      // The other end knows first; a number is taken here by then.
      const mine = new LinkEnd(this, this.#takeNumber(), peer.node, other.self.incarnation, peer);
      const theirs = new LinkEnd(
        other,
        other.#takeNumber(),
        this.self.node,
        this.self.incarnation,
        null,
      );
      mine.other = theirs;
      theirs.other = mine;
      this.#links[mine.number] = mine;
      other.#links[theirs.number] = theirs;
      network.counts.linksMade++;
      if (older !== null) other.#down(older);
      other.#up(theirs);
      network.after(network.delay(), () => {
        peer.isConnecting = false;
        if (!isWanted() || mine.isBroken) {
          // It broke before it was known here.
          if (this.#links[mine.number] === mine) this.#free(mine);
          if (!mine.isBroken) this.#break(mine);
          return fail();
        }
        peer.link = mine;
        peer.failures = 0;
        this.#up(mine);
      });
    });
  }

  #isNode(node: number): boolean {
    return this.self.node === node;
  }

  #incomingOf(node: number): LinkEnd | null {
    return this.#links.find((link) =>
      link !== null && link.peer === null && link.isUp && link.node === node
    ) ?? null;
  }

  #takeNumber(): number {
    const number = this.#freeNumbers.pop() ?? this.#links.length;
    this.#links[number] = null;
    return number;
  }

  #free(link: LinkEnd): void {
    this.#links[link.number] = null;
    this.#freeNumbers.push(link.number);
  }

  #retry(peer: SimulatedPeer): void {
    const most = Math.min(BACKOFF_MS_MAX, BACKOFF_MS_MIN * 2 ** Math.min(peer.failures++, 16));
    const wait = most / 2 + most / 2 * this.#network.random.fraction();
    this.#network.after(wait, () => {
      if (this.isAlive && this.#peers.get(peer.node) === peer && peer.link === null) {
        this.#connect(peer);
      }
    });
  }

  #up(link: LinkEnd): void {
    link.isUp = true;
    this.peerListener.linkUp(link.number, link.node, link.peer !== null, link.incarnation);
    link.other.host.#pumpLater(link.other);
  }

  /** The link is of no use any more: everything in flight is lost now, and both ends learn of it in their own time. */
  #break(link: LinkEnd): void {
    if (link.isBroken) return;
    const network = this.#network;
    network.counts.linksBroken++;
    for (const end of [link, link.other]) {
      if (end.isBroken) continue;
      const isCut = network.isCut(end.other.host.address, end.host.address);
      // Who cannot be told finds out by its own timeout.
      end.host.breakLater(end, isCut ? LINK_MS_MAX * network.random.fraction() : network.delay());
    }
  }

  /** Ends one end of a link at once for what is sent, and later for its listener. */
  breakLater(link: LinkEnd, ms: number): void {
    if (link.isBroken) return;
    link.isBroken = true;
    this.#network.counts.linkMessagesLost += link.queue.length;
    link.queue = [];
    link.queuedBytes = 0;
    this.#network.after(ms, () => this.#down(link));
  }

  #down(link: LinkEnd): void {
    if (!this.isAlive || this.#links[link.number] !== link || !link.isUp) return;
    link.isUp = false;
    if (!link.isBroken) this.#break(link);
    this.#free(link);
    this.peerListener.linkDown(link.number);
    const peer = link.peer;
    if (peer === null || peer.link !== link) return;
    peer.link = null;
    if (this.#peers.get(peer.node) === peer) this.#retry(peer);
  }

  #ready(link: LinkEnd): void {
    if (!this.isAlive || !link.wantsReady || link.isBroken || !link.isUp) return;
    if (link.queuedBytes > LINK_BYTES_MAX / 2) return;
    link.wantsReady = false;
    this.peerListener.linkReady(link.number);
  }

  #pumpLater(link: LinkEnd): void {
    if (link.isPumping || link.queue.length === 0) return;
    link.isPumping = true;
    this.#network.at(Math.max(this.#network.nowMs, link.queue[0].atMs), () => {
      link.isPumping = false;
      this.#pump(link);
    });
  }

  /** Delivers the first message that `link` has sent, if it can be. */
  #pump(link: LinkEnd): void {
    const network = this.#network;
    const to = link.other;
    if (link.queue.length === 0 || link.isBroken || to.isBroken) return;
    // Who waits for this end to be up or to go on calls again.
    if (!to.isUp || to.isPaused) return;
    const wait = (ms: number) => {
      link.queue[0].atMs = network.nowMs + ms;
      this.#pumpLater(link);
    };
    if (network.isCut(this.address, to.host.address)) {
      if (link.stalledSinceMs < 0) link.stalledSinceMs = network.nowMs;
      if (network.nowMs - link.stalledSinceMs >= LINK_MS_MAX) return this.#break(link);
      return wait(STALL_MS);
    }
    link.stalledSinceMs = -1;
    const message = link.queue[0];
    const dataBytes = message.data?.length ?? 0;
    const dataOffset = dataBytes > 0 ? to.host.#arena.allocate(dataBytes) : 0;
    if (dataOffset < 0) return wait(ARENA_MS);
    if (message.data !== null) to.host.#bytes.set(message.data, dataOffset);
    link.queue.shift();
    link.queuedBytes -= message.bytes;
    to.host.peerListener.received(
      to.number,
      message.head,
      message.head.length,
      dataOffset,
      dataBytes,
    );
    // Valid during the call only: whoever kept it finds rubbish.
    message.head.fill(0xee);
    if (network.isCut(to.host.address, this.address)) this.#missAcknowledgement(link);
    this.#ready(link);
    this.#pumpLater(link);
  }

  /** What was delivered is not acknowledged to its sender, whose patience has an end. */
  #missAcknowledgement(link: LinkEnd): void {
    if (link.isUnacknowledged) return;
    link.isUnacknowledged = true;
    this.#network.after(LINK_MS_MAX, () => {
      link.isUnacknowledged = false;
      if (this.#network.isCut(link.other.host.address, this.address)) this.#break(link);
    });
  }

  // ---------------------------------------------------------------------------- control, datagrams

  #sendControl(address: string, bytes: Uint8Array): boolean {
    if (bytes.length === 0 || bytes.length > CONTROL_BYTES_MAX) {
      throw new RangeError(`simulated network: a control message of ${bytes.length} bytes`);
    }
    const network = this.#network;
    if (!this.isAlive) return false;
    let lane = this.#controlLanes.get(address);
    if (lane === undefined) this.#controlLanes.set(address, lane = { lastMs: 0, count: 0 });
    if (lane.count >= CONTROL_MESSAGES_MAX) return false;
    network.counts.controlMessages++;
    const from: ControlPeer = { ...this.self, address: this.address };
    const copy = bytes.slice();
    const isLost = network.random.chance(network.faults.controlLoss);
    lane.count++;
    lane.lastMs = Math.max(lane.lastMs, network.nowMs + network.delay());
    network.at(lane.lastMs, () => {
      lane.count--;
      const to = network.hostAt(address);
      if (isLost || to === null || !this.isAlive || network.isCut(this.address, address)) {
        network.counts.controlLost++;
        return;
      }
      to.controlListener.controlReceived(from, copy);
    });
    return true;
  }

  #sendDatagram(address: string, bytes: Uint8Array): void {
    if (bytes.length === 0 || bytes.length > DATAGRAM_BYTES_MAX) {
      throw new RangeError(`simulated network: a datagram of ${bytes.length} bytes`);
    }
    const network = this.#network;
    const { faults, random } = network;
    if (!this.isAlive) return;
    network.counts.datagrams++;
    let copies = 1;
    if (random.chance(faults.datagramDuplication)) {
      copies++;
      network.counts.datagramsDoubled++;
    }
    for (let i = 0; i < copies; i++) {
      if (random.chance(faults.datagramLoss)) {
        network.counts.datagramsLost++;
        continue;
      }
      let delay = network.delay();
      if (random.chance(faults.datagramHold)) delay += 10 * faults.delayMs[1] * random.fraction();
      const copy = bytes.slice();
      // It is on its way even if its sender dies.
      network.after(delay, () => {
        if (network.isCut(this.address, address)) network.counts.datagramsLost++;
        else network.hostAt(address)?.datagramListener.datagramReceived(this.address, copy);
      });
    }
  }
}
