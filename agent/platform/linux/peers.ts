/**
 * The data worker's connections to its peers: {@linkcode PeerTransport} over `tcp.ts` and `wire/`.
 *
 *     setPeer ──▶ connect ──▶ handshake ──▶ linkUp(outgoing) ──▶ records of messages ──▶ linkDown ──▶ back-off ─┐
 *                    ▲                                                                                           │
 *                    └───────────────────────────────────────────────────────────────────────────────────────────┘
 *     accept ──▶ handshake ──▶ linkUp(incoming) ──▶ …
 *
 * - One outgoing link per peer that was set, and one incoming link per node: a node that connects again replaces its older connection
 *   (`linkDown` of the old one comes before `linkUp` of the new one); one of an older incarnation is refused.
 * - Messages are gathered, their heads and up to {@linkcode STAGE_BYTES} of data, and sealed as one record at the end of the turn.
 *   Data of more than {@linkcode STAGED_BYTES_MAX} is not copied but closes the record. What `send` accepted is sure to fit: it is
 *   counted when it is gathered.
 * - A record is opened where it lies, except that the data of its only message goes straight into an arena buffer. When the arena has
 *   no room, the link waits in the middle of the record, and so in the end does the peer.
 * - Strangers: at most {@linkcode HANDSHAKES_MAX} at once, the oldest makes room; {@linkcode HANDSHAKES_PER_SECOND_MAX} new ones a second, the rest
 *   waits in the kernel; {@linkcode HANDSHAKE_MS_MAX} for each; one kilobyte of buffers for each.
 *
 * The loop calls {@linkcode Peers.endTurn} once a turn, last, and {@linkcode Peers.tick} at least every 100 ms while not {@linkcode Peers.isIdle}.
 *
 * @module
 */
import type { Arena } from "../../base/arena.ts";
import { BLOCK_BYTES } from "../../base/limits.ts";
import { type CipherSuite, nodeCipherSuite } from "../../wire/cipher.ts";
import {
  areFrames,
  FRAME_PREFIX_BYTES,
  frameBytes,
  frameDataBytes,
  frameHeadBytes,
  HEADS_BYTES_MAX,
  isFrame,
  putFrame,
} from "../../wire/frame.ts";
import {
  FEATURE,
  Handshake,
  HANDSHAKE_MS_MAX,
  HANDSHAKES_MAX,
  HANDSHAKES_PER_SECOND_MAX,
  type Identity,
} from "../../wire/handshake.ts";
import {
  RECORD_OVERHEAD_BYTES,
  RECORD_PREFIX_BYTES,
  RecordOpener,
  RecordSealer,
} from "../../wire/sealed_stream.ts";
import { PEER_DATA_BYTES_MAX, type PeerListener, type PeerTransport } from "../network.ts";
import type { Log, Random } from "../platform.ts";
import { opensslCipherSuite } from "./openssl.ts";
import type { Ring } from "./ring.ts";
import { OUT_BYTES, Tcp, type TcpConnection, type TcpHandler, type TcpListening } from "./tcp.ts";

/** First and longest wait before connecting again, in milliseconds; doubled each time, half of it by chance. */
const BACKOFF_MS_MIN = 50, BACKOFF_MS_MAX = 2000;
/** A link that lived this long was a good one: the next failure begins with the shortest wait. */
const GOOD_LINK_MS = 1000;
/** An attempt that has taken this long is not worth waiting for when the peer has just been heard of. */
const STALE_MS = 300;
/** Attempts in a row that fail before that is worth a line in the log: about a second and a half. */
const FAILURES_MIN = 5;
/** Peers that may be set: as many as there may be connections of either direction. */
const PEERS_MAX = 500;
/** `linkReady` once no more than this is queued; then the longest message has room in one piece, wherever the queue lies. */
const READY_BYTES = OUT_BYTES / 2;
/** Longest data that is copied to be sealed together with others: above, a record of its own costs less than the copy. */
const STAGED_BYTES_MAX = 16 * 1024;
/** Data that one record gathers. */
const STAGE_BYTES = 128 * 1024;
/** Failed handshakes are logged this often, in milliseconds: strangers shall not fill the disk. */
const WARN_MS = 1000;
/** How often memory of buffers that a burst has left behind is given back. */
const TRIM_MS = 10_000;

const BOUNDS = {
  headBytesMax: HEADS_BYTES_MAX,
  dataBytesMax: PEER_DATA_BYTES_MAX,
  dataBytesMultiple: BLOCK_BYTES,
} as const;

/** A peer as seen from here, for people and metrics. */
export interface PeerStatus {
  readonly node: number;
  readonly isOutgoing: boolean;
  readonly isUp: boolean;
  /** Bytes that wait to be sent. */
  readonly queuedBytes: number;
  /** Why the last connection failed or ended; empty: it never did. */
  readonly lastError: string;
}

/** Someone that `setPeer` asked for. */
interface Peer {
  readonly node: number;
  address: string;
  link: Link | null;
  failures: number;
  retryAtMs: number;
  lastError: string;
}

const enum LinkState {
  Handshake,
  Up,
  Down,
}

/** One connection, from its first byte on. */
class Link implements TcpHandler {
  state = LinkState.Handshake;
  /** Given when it is up. */
  number = -1;
  node = 0;
  incarnation = 0;
  handshake: Handshake | null;
  sealer: RecordSealer | null = null;
  opener: RecordOpener | null = null;
  connection!: TcpConnection;
  upAtMs = 0;
  wantsReady = false;
  isPaused = false;
  /** Messages that wait to be sealed together. */
  gathered: Uint8Array<ArrayBuffer> | null = null;
  gatheredBytes = 0;
  /** Their data. */
  staged: Uint8Array<ArrayBuffer> | null = null;
  stagedBytes = 0;
  isGathering = false;
  /** Where the next message of the record at the start of the input begins, from there on; 0: it is not opened yet. */
  nextFrame = 0;
  /** Where its data begins. */
  nextData = 0;
  /** Arena buffer that has the data of the record's only message with data; −1: none. */
  openedAt = -1;
  /** In the list of those to look at again. */
  isWaiting = false;

  constructor(
    readonly peers: Peers,
    /** null: incoming. */
    readonly peer: Peer | null,
    handshake: Handshake,
    readonly startedMs: number,
  ) {
    this.handshake = handshake;
  }

  connected(): void {
    this.peers.linkConnected(this);
  }
  received(): void {
    this.peers.linkReceived(this);
  }
  sent(): void {
    this.peers.linkSent(this);
  }
  closed(reason: string): void {
    this.peers.linkClosed(this, reason);
  }
}

/** See the head of the file. */
export class Peers implements PeerTransport {
  /** To be set before the first turn. */
  listener: PeerListener = {
    linkUp() {},
    linkDown() {},
    linkReady() {},
    received() {},
  };
  readonly #tcp: Tcp;
  readonly #arenaBytes: Uint8Array<ArrayBuffer>;
  readonly #arena: Arena;
  readonly #random: Random;
  readonly #log: Log;
  readonly #secret: Uint8Array;
  readonly #suite: CipherSuite;
  readonly #listening: TcpListening | null;
  #self: Identity;
  readonly #peers = new Map<number, Peer>();
  /** By number; null: free. */
  readonly #links: (Link | null)[] = [];
  readonly #freeNumbers: number[] = [];
  /** By node. */
  readonly #incoming = new Map<number, Link>();
  /** In order of their beginning. */
  readonly #handshakes: Link[] = [];
  #gathering: Link[] = [];
  /** Links that have something in their buffer which could not be delivered: paused ones that go on, and those without arena. */
  #waiting: Link[] = [];
  #nowMs: number;
  #tokens = HANDSHAKES_PER_SECOND_MAX;
  #warnedMs = -Infinity;
  #trimMs: number;
  #isClosed = false;

  /**
   * @param options.arenaBytes memory whose first bytes are the arena
   * @param options.random fit for keys
   * @param options.self with node id and cluster id
   * @param options.listenAddress numeric `ip:port`, already that of data; null: only outgoing connections
   * @param options.suite other than the fastest there is
   * @param options.nowMs as {@linkcode tick} will count on
   */
  constructor(
    options: {
      readonly ring: Ring;
      readonly arenaBytes: Uint8Array<ArrayBuffer>;
      readonly arena: Arena;
      readonly random: Random;
      readonly log: Log;
      readonly secret: Uint8Array;
      readonly self: Identity;
      readonly listenAddress: string | null;
      readonly nowMs: number;
      readonly suite?: CipherSuite;
    },
  ) {
    this.#tcp = new Tcp(options.ring);
    this.#arenaBytes = options.arenaBytes;
    this.#arena = options.arena;
    this.#random = options.random;
    this.#log = options.log;
    this.#secret = options.secret.slice();
    this.#self = options.self;
    this.#nowMs = options.nowMs;
    this.#trimMs = options.nowMs + TRIM_MS;
    this.#suite = options.suite ?? opensslCipherSuite() ?? nodeCipherSuite;
    this.#listening = options.listenAddress === null
      ? null
      : this.#tcp.listen(options.listenAddress, (connection) => this.#accepted(connection));
  }

  /** Where it listens, with the port that the kernel chose where 0 was asked for; null: nowhere. */
  get address(): string | null {
    return this.#listening?.address ?? null;
  }

  /** See {@linkcode Tcp.bufferBytes}. */
  get bufferBytes(): number {
    return this.#tcp.bufferBytes;
  }

  /** What seals: `openssl` or `node:crypto`. */
  get cipherName(): string {
    return this.#suite.name;
  }

  /** Nothing to connect, no handshake, nothing to deliver later: `tick` may come seldom. */
  get isIdle(): boolean {
    if (this.#handshakes.length > 0 || this.#waiting.length > 0) return false;
    for (const peer of this.#peers.values()) if (peer.link === null) return false;
    return true;
  }

  /** Messages wait for the end of the turn. */
  get hasGathered(): boolean {
    return this.#gathering.length > 0;
  }

  /** {@linkcode endTurn} has something to do: do not sleep. */
  get hasWork(): boolean {
    return this.#gathering.length > 0 || this.#tcp.hasWork;
  }

  /**
   * Says who this node is from now on. Links made before stay, unless whether to encrypt bulk data has changed: then all of them are made anew.
   */
  setSelf(self: Identity): void {
    const changed = (self.features ^ this.#self.features) & FEATURE.sealBulk;
    this.#self = self;
    if (changed === 0) return;
    const reason = "encryption of bulk data has changed";
    for (const link of this.#links) link?.connection.close(reason);
    for (const link of this.#handshakes) link.connection.close(reason);
  }

  /** Peers set and links up, for people. */
  status(): PeerStatus[] {
    const outgoing = [...this.#peers.values()].map((peer) => ({
      node: peer.node,
      isOutgoing: true,
      isUp: peer.link?.state === LinkState.Up,
      queuedBytes: peer.link?.connection.queuedBytes ?? 0,
      lastError: peer.lastError,
    }));
    const incoming = [...this.#incoming.values()].map((link) => ({
      node: link.node,
      isOutgoing: false,
      isUp: true,
      queuedBytes: link.connection.queuedBytes,
      lastError: "",
    }));
    return [...outgoing, ...incoming];
  }

  // --------------------------------------------------------------------------------- PeerTransport

  /** {@inheritDoc PeerTransport.setPeer} */
  setPeer(node: number, address: string | null): void {
    const peer = this.#peers.get(node);
    if (address === null) {
      this.#peers.delete(node);
      peer?.link?.connection.close("not a peer any more");
      return;
    }
    if (peer !== undefined) {
      if (peer.address === address) return;
      peer.address = address;
      peer.failures = 0;
      if (peer.link === null) peer.retryAtMs = this.#nowMs;
      peer.link?.connection.close(`the peer has moved to ${address}`);
      return;
    }
    if (this.#peers.size >= PEERS_MAX) throw new RangeError(`peers: more than ${PEERS_MAX}`);
    const added: Peer = {
      node,
      address,
      link: null,
      failures: 0,
      retryAtMs: this.#nowMs,
      lastError: "",
    };
    this.#peers.set(node, added);
    this.#connect(added);
  }

  /** {@inheritDoc PeerTransport.send} */
  send(
    number: number,
    head: Uint8Array,
    headBytes: number,
    dataOffset: number,
    dataBytes: number,
  ): boolean {
    const link = this.#links[number];
    if (!link || link.state !== LinkState.Up || link.connection.isClosed) return false;
    if (!isFrame(headBytes, dataBytes)) {
      throw new RangeError(`peers: a message of ${headBytes} and ${dataBytes} bytes cannot be`);
    }
    const frame = frameBytes(headBytes);
    const isStaged = dataBytes <= STAGED_BYTES_MAX;
    const hasRoom = link.gatheredBytes + frame <= HEADS_BYTES_MAX &&
      (isStaged ? link.stagedBytes + dataBytes <= STAGE_BYTES : link.stagedBytes === 0);
    if (!hasRoom) this.#sealGathered(link);
    const connection = link.connection;
    const at = connection.reserve(
      RECORD_OVERHEAD_BYTES + link.gatheredBytes + frame + link.stagedBytes + dataBytes,
    );
    if (at < 0) {
      link.wantsReady = true;
      return false;
    }
    link.gatheredBytes = putFrame(link.gathered!, link.gatheredBytes, head, headBytes, dataBytes);
    if (dataBytes > 0) {
      const data = this.#arenaBytes.subarray(dataOffset, dataOffset + dataBytes);
      if (!isStaged) {
        this.#seal(link, at, data);
        return true;
      }
      link.staged ??= new Uint8Array(STAGE_BYTES);
      link.staged.set(data, link.stagedBytes);
      link.stagedBytes += dataBytes;
    }
    if (!link.isGathering) {
      link.isGathering = true;
      this.#gathering.push(link);
    }
    return true;
  }

  /** {@inheritDoc PeerTransport.pause} */
  drop(number: number): void {
    this.#links[number]?.connection.close("the other end does not keep to the rules");
  }

  /** {@inheritDoc PeerTransport.pause} */
  pause(number: number, isPaused: boolean): void {
    const link = this.#links[number];
    if (!link || link.isPaused === isPaused) return;
    link.isPaused = isPaused;
    link.connection.pause(isPaused);
    if (!isPaused) this.#wait(link);
  }

  #sealGathered(link: Link): void {
    if (link.gatheredBytes === 0) return;
    const { stagedBytes } = link;
    const at = link.connection.reserve(
      RECORD_OVERHEAD_BYTES + link.gatheredBytes + stagedBytes,
    );
    // It was reserved when the last of them was gathered, and room only grows.
    if (at < 0) throw new Error("peers: what was accepted does not fit");
    this.#seal(link, at, stagedBytes > 0 ? link.staged!.subarray(0, stagedBytes) : null);
    link.stagedBytes = 0;
  }

  #seal(link: Link, at: number, data: Uint8Array | null): void {
    const output = link.connection.output;
    const heads = link.gathered!.subarray(0, link.gatheredBytes);
    const to = at === 0 ? output : output.subarray(at);
    link.connection.commit(at, link.sealer!.seal(heads, data, to));
    link.gatheredBytes = 0;
  }

  // ------------------------------------------------------------------------------------------ loop

  /**
   * Time passes: back-off, handshakes that take too long.
   *
   * @param nowMs never goes back
   */
  tick(nowMs: number): void {
    const passedMs = Math.max(0, nowMs - this.#nowMs);
    this.#nowMs = nowMs;
    this.#tokens = Math.min(
      HANDSHAKES_PER_SECOND_MAX,
      this.#tokens + passedMs * HANDSHAKES_PER_SECOND_MAX / 1000,
    );
    if (this.#tokens >= 1) this.#listening?.setAccepting(true);
    for (const link of this.#handshakes) {
      if (nowMs - link.startedMs < HANDSHAKE_MS_MAX) break;
      link.connection.close(`no answer within ${HANDSHAKE_MS_MAX / 1000} s`);
    }
    if (nowMs >= this.#trimMs) {
      this.#trimMs = nowMs + TRIM_MS;
      this.#tcp.trim();
    }
    for (const peer of this.#peers.values()) {
      if (peer.link === null && nowMs >= peer.retryAtMs) this.#connect(peer);
    }
  }

  /** The end of a turn of the loop: delivers what had to wait, seals what was gathered, sends everything. */
  endTurn(): void {
    this.#tcp.deliverClosed();
    if (this.#waiting.length > 0) {
      const waiting = this.#waiting;
      this.#waiting = [];
      for (const link of waiting) {
        link.isWaiting = false;
        this.#deliver(link);
        if (!link.connection.isClosed) this.#tcp.dirty(link.connection);
      }
    }
    if (this.#gathering.length > 0) {
      for (const link of this.#gathering) {
        link.isGathering = false;
        if (!link.connection.isClosed) this.#sealGathered(link);
      }
      this.#gathering.length = 0;
    }
    this.#tcp.flush();
  }

  /** Closes everything; `linkDown` of each link comes with the next {@linkcode endTurn}. */
  close(): void {
    this.#isClosed = true;
    this.#peers.clear();
    this.#tcp.closeAll();
  }

  // ------------------------------------------------------------------------------------ connecting

  #handshake(role: "initiator" | "responder"): Handshake {
    return new Handshake({
      role,
      secret: this.#secret,
      purpose: "data",
      self: this.#self,
      random: this.#random,
    });
  }

  #connect(peer: Peer): void {
    const link = new Link(this, peer, this.#handshake("initiator"), this.#nowMs);
    const connection = this.#tcp.connect(peer.address, link);
    if (connection === null) {
      peer.lastError = `cannot connect to ${peer.address}: not numeric, or too many connections`;
      this.#backOff(peer);
      return;
    }
    link.connection = connection;
    connection.bytesWanted = link.handshake!.bytesWanted();
    peer.link = link;
    this.#handshakes.push(link);
  }

  #backOff(peer: Peer): void {
    const most = Math.min(BACKOFF_MS_MAX, BACKOFF_MS_MIN * 2 ** Math.min(peer.failures, 16));
    peer.failures++;
    peer.retryAtMs = this.#nowMs + most / 2 + most / 2 * (this.#random.u32() / 2 ** 32);
  }

  #accepted(connection: TcpConnection): void {
    this.#tokens--;
    if (this.#tokens < 1) this.#listening!.setAccepting(false);
    const incoming = this.#handshakes.filter((link) => link.peer === null);
    if (incoming.length >= HANDSHAKES_MAX) {
      incoming[0].connection.close("made room for a newer connection");
      this.#forget(incoming[0]);
    }
    const link = new Link(this, null, this.#handshake("responder"), this.#nowMs);
    link.connection = connection;
    connection.handler = link;
    connection.bytesWanted = link.handshake!.bytesWanted();
    this.#handshakes.push(link);
  }

  #forget(link: Link): void {
    const index = this.#handshakes.indexOf(link);
    if (index >= 0) this.#handshakes.splice(index, 1);
  }

  /** An outgoing connection is made. */
  linkConnected(link: Link): void {
    link.connection.push(link.handshake!.output()!);
  }

  /** Bytes came. */
  linkReceived(link: Link): void {
    if (link.state === LinkState.Up) this.#deliver(link);
    else this.#shake(link);
  }

  #shake(link: Link): void {
    const { connection } = link;
    const handshake = link.handshake!;
    for (;;) {
      const have = connection.input.subarray(connection.inputStart, connection.inputEnd);
      const consumed = handshake.receive(have);
      connection.inputStart += consumed;
      const output = handshake.output();
      if (output !== null) connection.push(output);
      if (handshake.error !== null) {
        // What it has to say to the other end goes first, if it fits into the socket.
        this.#tcp.flushNow(connection);
        this.#warn(link, handshake.error.message);
        connection.close(handshake.error.message);
        return;
      }
      if (handshake.result !== null) return this.#up(link);
      if (consumed === 0) break;
    }
    connection.bytesWanted = handshake.bytesWanted(
      connection.input.subarray(connection.inputStart, connection.inputEnd),
    );
  }

  #warn(link: Link, reason: string): void {
    if (this.#nowMs - this.#warnedMs < WARN_MS) return;
    // While a node joins, others know of it before it does.
    if (link.peer !== null && link.peer.failures < FAILURES_MIN) return;
    this.#warnedMs = this.#nowMs;
    this.#log.warn("a data connection was not made", {
      peer: link.connection.address,
      direction: link.peer === null ? "incoming" : "outgoing",
      reason,
    });
  }

  /** A node has connected, so it can be connected to: at once, however long it has been away. */
  #reached(node: number): void {
    const peer = this.#peers.get(node);
    if (peer === undefined || peer.link?.state === LinkState.Up) return;
    peer.failures = 0;
    if (peer.link === null) this.#connect(peer);
    else if (this.#nowMs - peer.link.startedMs > STALE_MS) {
      // Begun while nothing arrived there; the kernel would try again only after seconds.
      peer.link.connection.close("begun anew: the peer can be reached again");
    }
  }

  /** The handshake succeeded. */
  #up(link: Link): void {
    const { connection } = link;
    const { peer, sealingKey, openingKey, sealBulk } = link.handshake!.result!;
    this.#forget(link);
    link.handshake = null;
    const refusal = this.#refusal(link, peer);
    if (refusal !== null) {
      this.#warn(link, refusal);
      connection.close(refusal);
      return;
    }
    if (!connection.attach()) {
      connection.close("no memory for its buffers");
      return;
    }
    link.sealer = new RecordSealer(this.#suite, sealingKey, sealBulk);
    link.opener = new RecordOpener(this.#suite, openingKey, sealBulk, BOUNDS);
    sealingKey.fill(0);
    openingKey.fill(0);
    link.gathered = new Uint8Array(HEADS_BYTES_MAX);
    link.node = peer.node;
    link.incarnation = peer.incarnation;
    link.upAtMs = this.#nowMs;
    connection.bytesWanted = RECORD_PREFIX_BYTES;
    connection.isAsking = link.peer !== null;
    if (link.peer === null) {
      const older = this.#incoming.get(peer.node);
      if (older !== undefined) {
        older.connection.close("the peer has connected again");
        this.#down(older);
      }
      this.#incoming.set(peer.node, link);
      this.#reached(peer.node);
    }
    link.state = LinkState.Up;
    link.number = this.#freeNumbers.pop() ?? this.#links.length;
    this.#links[link.number] = link;
    this.listener.linkUp(link.number, peer.node, link.peer !== null, peer.incarnation);
  }

  /** Why this peer is not wanted, or null. */
  #refusal(link: Link, peer: Identity): string | null {
    if (link.peer !== null) {
      return link.peer.node === peer.node
        ? null
        : `node ${link.peer.node} was expected at ${link.peer.address}, but node ${peer.node} is there`;
    }
    const older = this.#incoming.get(peer.node);
    // Who does not know its incarnation yet has only just begun.
    return older === undefined || peer.incarnation === 0 || older.incarnation <= peer.incarnation
      ? null
      : `node ${peer.node} has a connection of incarnation ${older.incarnation}, this is ${peer.incarnation}`;
  }

  /** Tells the listener that a link is gone; once. */
  #down(link: Link): void {
    if (link.state !== LinkState.Up) return;
    link.state = LinkState.Down;
    link.sealer!.close();
    link.opener!.close();
    link.gathered = null;
    link.gatheredBytes = 0;
    link.staged = null;
    link.stagedBytes = 0;
    if (this.#incoming.get(link.node) === link) this.#incoming.delete(link.node);
    this.listener.linkDown(link.number);
    this.#links[link.number] = null;
    this.#freeNumbers.push(link.number);
  }

  /** The connection has ended. */
  linkClosed(link: Link, reason: string): void {
    this.#forget(link);
    const wasGood = link.state === LinkState.Up && this.#nowMs - link.upAtMs >= GOOD_LINK_MS;
    this.#down(link);
    link.state = LinkState.Down;
    const peer = link.peer;
    if (peer === null || peer.link !== link) return;
    peer.link = null;
    peer.lastError = reason;
    if (this.#isClosed || this.#peers.get(peer.node) !== peer) return;
    if (wasGood) peer.failures = 0;
    this.#backOff(peer);
  }

  // ------------------------------------------------------------------------------------- messages

  /** Some of what was queued has gone out. */
  linkSent(link: Link): void {
    if (!link.wantsReady || link.state !== LinkState.Up) return;
    if (link.connection.queuedBytes > READY_BYTES) return;
    link.wantsReady = false;
    this.listener.linkReady(link.number);
  }

  #wait(link: Link): void {
    if (link.isWaiting) return;
    link.isWaiting = true;
    this.#waiting.push(link);
  }

  /** Delivers the records that are all there. */
  #deliver(link: Link): void {
    const { connection } = link;
    const opener = link.opener!;
    while (link.state === LinkState.Up && !link.isPaused && !connection.isClosed) {
      const at = connection.inputStart;
      const bytes = opener.recordBytes(connection.input, at, connection.inputEnd);
      if (bytes < 0) return connection.close("a record of impossible size");
      if (bytes === 0 || connection.inputEnd - at < bytes) {
        connection.bytesWanted = bytes || RECORD_PREFIX_BYTES;
        return;
      }
      connection.bytesWanted = bytes;
      if (link.nextFrame === 0 && !this.#open(link)) return;
      if (!this.#handOut(link)) return;
      connection.inputStart += bytes;
      link.nextFrame = 0;
    }
  }

  /**
   * Opens and checks the record at the start of the input, and delivers its last message with data if that is the only one.
   *
   * @returns false: it was wrong, and the connection is closed
   */
  #open(link: Link): boolean {
    const { connection } = link;
    const opener = link.opener!;
    const { input, inputStart: at } = connection;
    const headsAt = at + RECORD_PREFIX_BYTES, headsEnd = headsAt + opener.headBytes(input, at);
    const dataBytes = opener.dataBytes(input, at);
    opener.openHeads(input, at);
    // Nobody vouches for them yet: all that can come of it is a buffer that is given back.
    const areRight = areFrames(input, headsAt, headsEnd, dataBytes);
    let data: Uint8Array | null = null;
    let dataOffset = -1;
    if (areRight && dataBytes > 0 && isOneWithData(input, headsAt, headsEnd, dataBytes)) {
      dataOffset = this.#arena.allocate(dataBytes);
      if (dataOffset >= 0) data = this.#arenaBytes.subarray(dataOffset, dataOffset + dataBytes);
    }
    const isGenuine = opener.finish(input, at, data);
    if (!isGenuine || !areRight) {
      if (data !== null) this.#arena.release(dataOffset, dataBytes);
      connection.close(
        isGenuine ? "a record with impossible messages" : "a record was changed on the way",
      );
      return false;
    }
    link.nextFrame = RECORD_PREFIX_BYTES;
    link.nextData = opener.dataAt(input, at) - at;
    link.openedAt = dataOffset;
    return true;
  }

  /**
   * Delivers the messages of the open record.
   *
   * @returns false: not all of them
   */
  #handOut(link: Link): boolean {
    const { connection, number } = link;
    const { input, inputStart } = connection;
    const end = RECORD_PREFIX_BYTES + link.opener!.headBytes(input, inputStart);
    while (link.nextFrame < end) {
      const at = inputStart + link.nextFrame;
      const headBytes = frameHeadBytes(input, at), dataBytes = frameDataBytes(input, at);
      let dataOffset = 0;
      if (dataBytes > 0) {
        dataOffset = link.openedAt >= 0 ? link.openedAt : this.#arena.allocate(dataBytes);
        if (dataOffset < 0) {
          // The rest stays where it is, and the peer finds out by its full queue.
          this.#wait(link);
          return false;
        }
        if (link.openedAt < 0) {
          const from = inputStart + link.nextData;
          this.#arenaBytes.set(input.subarray(from, from + dataBytes), dataOffset);
        }
        link.openedAt = -1;
        link.nextData += dataBytes;
      }
      link.nextFrame += frameBytes(headBytes);
      const from = at + FRAME_PREFIX_BYTES;
      const head = input.subarray(from, from + headBytes);
      this.listener.received(number, head, headBytes, dataOffset, dataBytes);
      // The listener may have given the link up within the call.
      if (connection.isClosed || link.state !== LinkState.Up) {
        this.#dropOpened(link, end);
        return false;
      }
    }
    return true;
  }

  /** Gives back the buffer of a message that is not delivered any more. */
  #dropOpened(link: Link, end: number): void {
    if (link.openedAt < 0) return;
    const { input, inputStart } = link.connection;
    while (link.nextFrame < end) {
      const at = inputStart + link.nextFrame;
      const dataBytes = frameDataBytes(input, at);
      if (dataBytes > 0) this.#arena.release(link.openedAt, dataBytes);
      link.nextFrame += frameBytes(frameHeadBytes(input, at));
    }
    link.openedAt = -1;
  }
}

/** Whether all data of a record is that of one message. */
function isOneWithData(heads: Uint8Array, at: number, end: number, dataBytes: number): boolean {
  for (; at < end; at += frameBytes(frameHeadBytes(heads, at))) {
    const frameData = frameDataBytes(heads, at);
    if (frameData > 0) return frameData === dataBytes;
  }
  return false;
}
