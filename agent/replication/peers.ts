/**
 * Requests to other nodes' replicas: one queue per node, kept until answered.
 *
 *     submit ─▶ queue of the node: | sent, unanswered | not yet sent |  ─▶ transport
 *     link down: all of it counts as not sent, and is sent again, marked, on the next link
 *
 * Invariants:
 * - Requests to one node are sent in the order in which they were submitted, always: after a reconnection what is
 *   unanswered goes first, in its order. So a replica sees the writes of a chunk in one order, with repetitions.
 * - A request is answered to its owner at most once, never from inside `submit`. A cancelled one is never answered; its
 *   buffers may be reused at once, since the transport copies what it sends.
 * - Requests are preallocated; ids are never those of a request that may still be answered.
 *
 * Nothing times out here: a node that does not answer leaves the map sooner or later, and with it its requests.
 *
 * @module
 */
import type { PeerTransport } from "../platform/network.ts";
import { ANSWER, EXTRA_BYTES_MAX, Head, HEAD_BYTES, MessageFlag, MessageType } from "./messages.ts";

/** Requests of one worker: every write transfer to every member, and what recovery has under way. */
export const REQUESTS_MAX = 16384;
const SLOT_BITS = 14;
const SLOT_MASK = REQUESTS_MAX - 1;
if (1 << SLOT_BITS !== REQUESTS_MAX) throw new Error("peers: a request's slot does not fit its id");
/** Uses of a slot before its ids repeat. */
const USES_MAX = 2 ** (32 - SLOT_BITS);

const NOTHING = new Uint8Array(0);

/** Who asked. */
export interface PeerRequestOwner {
  /**
   * The answer is there.
   *
   * @param request goes back to the pool when this returns
   * @param head of the answer, valid during the call
   * @param extra table behind the head, valid during the call
   * @param dataOffset buffer in the arena with the answer's data; the owner's from now on
   * @param dataBytes 0: there is none
   */
  answered(
    request: PeerRequest,
    head: Head,
    extra: Uint8Array,
    dataOffset: number,
    dataBytes: number,
  ): void;
}

/** One request. Fill `head`, `extra…` and `data…`, then submit. */
export class PeerRequest {
  readonly head = new Head();
  owner: PeerRequestOwner | null = null;
  /** For the owner's use. */
  context: unknown = null;
  tag = 0;
  /** Table behind the head: `extraWords` of `extra`; the array belongs to the owner until answered or cancelled. */
  extra: Uint32Array | null = null;
  extraWords = 0;
  /** For a table of one word. */
  readonly word = new Uint32Array(1);
  /** Data in the arena; the owner's until answered or cancelled. */
  dataOffset = 0;
  dataBytes = 0;

  node = 0;
  next: PeerRequest | null = null;
  previous: PeerRequest | null = null;
  /** Given to the transport on the link that is up now. */
  isSent = false;
  /** Was given to a link that broke. */
  wasSent = false;
  isQueued = false;
  use = 0;

  constructor(readonly slot: number) {}
}

/** A node that requests go to. */
class Peer {
  link = -1;
  incarnation = 0;
  first: PeerRequest | null = null;
  last: PeerRequest | null = null;
  /** First request not yet sent. */
  unsent: PeerRequest | null = null;
  /** The transport has no room. */
  isBlocked = false;
  count = 0;
  /** Since when there is no link though requests wait, or −1. */
  waitingSinceMs = -1;
  /** Since when requests wait and none is answered, by tick; −1: none. */
  silentSinceMs = -1;
  answers = 0;
  answersSeen = 0;

  constructor(readonly node: number) {}
}

/** See the head of the file. */
export class Peers {
  /** The epoch that requests are sent with. */
  epoch = 0;
  /** Requests that are not answered. */
  count = 0;
  readonly #transport: PeerTransport;
  readonly #free: PeerRequest[] = [];
  readonly #requests: PeerRequest[] = [];
  readonly #peers = new Map<number, Peer>();
  readonly #byLink = new Map<number, Peer>();
  readonly #scratch = new Uint8Array(HEAD_BYTES + EXTRA_BYTES_MAX);
  readonly #words = new Uint32Array(this.#scratch.buffer);
  readonly #head = new Head();

  constructor(transport: PeerTransport) {
    this.#transport = transport;
  }

  /** A request to fill, or null when all are under way: then try again later. */
  take(type: MessageType, owner: PeerRequestOwner): PeerRequest | null {
    let request = this.#free.pop();
    if (request === undefined) {
      if (this.#requests.length >= REQUESTS_MAX) return null;
      request = new PeerRequest(this.#requests.length);
      this.#requests.push(request);
    }
    request.use = (request.use + 1) % USES_MAX;
    request.head.clear(type);
    request.head.id = (request.use * REQUESTS_MAX + request.slot) >>> 0;
    request.owner = owner;
    request.context = null;
    request.tag = 0;
    request.extra = null;
    request.extraWords = 0;
    request.dataOffset = 0;
    request.dataBytes = 0;
    request.isSent = false;
    request.wasSent = false;
    return request;
  }

  /** Queues a filled request for a node, and sends it if there is a link with room. */
  submit(node: number, request: PeerRequest): void {
    const peer = this.#peer(node);
    request.node = node;
    request.isQueued = true;
    request.previous = peer.last;
    request.next = null;
    if (peer.last === null) peer.first = request;
    else peer.last.next = request;
    peer.last = request;
    peer.count++;
    this.count++;
    peer.unsent ??= request;
    if (peer.unsent === request) this.#pump(peer);
  }

  /** Gives a request back that need not be answered any more. */
  cancel(request: PeerRequest): void {
    if (!request.isQueued) return;
    this.#unlink(request);
    this.#release(request);
  }

  /** Has the request gone again, at the end of its node's queue. */
  resubmit(request: PeerRequest): void {
    this.#unlink(request);
    request.isSent = false;
    request.wasSent = true;
    this.submit(request.node, request);
  }

  /** A link for our requests is up. */
  linkUp(link: number, node: number, incarnation: number): void {
    const peer = this.#peer(node);
    if (peer.link >= 0) this.linkDown(peer.link);
    // Only an answer ends the silence of a run: one that hangs takes new connections, and would never be found out.
    if (peer.incarnation !== incarnation) peer.silentSinceMs = -1;
    peer.link = link;
    peer.incarnation = incarnation;
    peer.isBlocked = false;
    peer.waitingSinceMs = -1;
    this.#byLink.set(link, peer);
    this.#pump(peer);
  }

  /** The link is gone: what is unanswered will be sent again. */
  linkDown(link: number): void {
    const peer = this.#byLink.get(link);
    if (peer === undefined) return;
    this.#byLink.delete(link);
    peer.link = -1;
    for (let request = peer.first; request !== null; request = request.next) {
      if (request.isSent) request.wasSent = true;
      request.isSent = false;
    }
    peer.unsent = peer.first;
  }

  /** The transport has room again. */
  linkReady(link: number): void {
    const peer = this.#byLink.get(link);
    if (peer === undefined) return;
    peer.isBlocked = false;
    this.#pump(peer);
  }

  /** True for a link of ours. */
  isOurs(link: number): boolean {
    return this.#byLink.has(link);
  }

  /** The link to the node; −1 when there is none. */
  linkOf(node: number): number {
    return this.#peers.get(node)?.link ?? -1;
  }

  /** True while there is a link to the node. */
  isConnected(node: number): boolean {
    return (this.#peers.get(node)?.link ?? -1) >= 0;
  }

  /** Requests that wait for the node. */
  pending(node: number): number {
    return this.#peers.get(node)?.count ?? 0;
  }

  /** What waits for a node, oldest first, in words. */
  describe(node: number): string {
    const peer = this.#peers.get(node);
    if (peer === undefined) return "nothing";
    const parts = [`link ${peer.link}${peer.isBlocked ? " full" : ""}, ${peer.count} requests`];
    for (let request = peer.first; request !== null && parts.length < 6; request = request.next) {
      const { head, isSent } = request;
      parts.push(`type ${head.type} at epoch ${head.epoch}${isSent ? "" : " unsent"}`);
    }
    return parts.join("; ");
  }

  /** Nodes that anything waits for. */
  nodes(): IterableIterator<number> {
    return this.#peers.keys();
  }

  /** Gives up everything for a node that has left; owners hear nothing. */
  forget(node: number): void {
    const peer = this.#peers.get(node);
    if (peer === undefined) return;
    while (peer.first !== null) this.cancel(peer.first);
    if (peer.link >= 0) this.#byLink.delete(peer.link);
    this.#peers.delete(node);
  }

  /** An answer came on a link of ours. The buffer is released here when nobody takes it. */
  received(
    link: number,
    bytes: Uint8Array,
    headBytes: number,
    dataOffset: number,
    dataBytes: number,
    release: (offset: number, bytes: number) => void,
  ): boolean {
    const head = this.#head;
    const peer = this.#byLink.get(link);
    const isAnswer = headBytes >= HEAD_BYTES && head.decode(bytes) && (head.type & ANSWER) !== 0;
    if (peer === undefined || !isAnswer) {
      if (dataBytes > 0) release(dataOffset, dataBytes);
      return peer === undefined;
    }
    peer.answers++;
    const request = this.#requests[head.id & SLOT_MASK];
    const isExpected = request !== undefined && request.isQueued && request.node === peer.node &&
      request.head.id === head.id && (head.type & ~ANSWER) === request.head.type;
    if (!isExpected) {
      // Cancelled meanwhile.
      if (dataBytes > 0) release(dataOffset, dataBytes);
      return true;
    }
    this.#unlink(request);
    const extra = headBytes === HEAD_BYTES ? NOTHING : bytes.subarray(HEAD_BYTES, headBytes);
    request.owner!.answered(request, head, extra, dataOffset, dataBytes);
    if (!request.isQueued) this.#release(request);
    return true;
  }

  /**
   * Looks for nodes that do not answer.
   *
   * @param silent told a node and for how long (ms) requests have waited without a link or an answer
   */
  tick(nowMs: number, silent: (node: number, forMs: number) => void): void {
    for (const peer of this.#peers.values()) {
      if (peer.first === null || peer.answers !== peer.answersSeen) {
        peer.answersSeen = peer.answers;
        peer.silentSinceMs = -1;
        if (peer.first === null) continue;
      }
      if (peer.silentSinceMs < 0) peer.silentSinceMs = nowMs;
      silent(peer.node, nowMs - peer.silentSinceMs);
    }
  }

  #peer(node: number): Peer {
    let peer = this.#peers.get(node);
    if (peer === undefined) {
      peer = new Peer(node);
      this.#peers.set(node, peer);
    }
    return peer;
  }

  #pump(peer: Peer): void {
    while (peer.link >= 0 && !peer.isBlocked && peer.unsent !== null) {
      const request = peer.unsent;
      if (!this.#send(peer, request)) {
        peer.isBlocked = true;
        return;
      }
      request.isSent = true;
      peer.unsent = request.next;
    }
  }

  #send(peer: Peer, request: PeerRequest): boolean {
    const { head, extra, extraWords } = request;
    head.epoch = this.epoch;
    head.flags = request.wasSent ? head.flags | MessageFlag.Again : head.flags;
    const words = this.#words;
    head.encode(words);
    for (let i = 0; i < extraWords; i++) words[HEAD_BYTES / 4 + i] = extra![i];
    return this.#transport.send(
      peer.link,
      this.#scratch,
      HEAD_BYTES + extraWords * 4,
      request.dataOffset,
      request.dataBytes,
    );
  }

  #unlink(request: PeerRequest): void {
    if (!request.isQueued) return;
    const peer = this.#peers.get(request.node)!;
    if (peer.unsent === request) peer.unsent = request.next;
    if (request.previous === null) peer.first = request.next;
    else request.previous.next = request.next;
    if (request.next === null) peer.last = request.previous;
    else request.next.previous = request.previous;
    request.next = null;
    request.previous = null;
    request.isQueued = false;
    peer.count--;
    this.count--;
  }

  #release(request: PeerRequest): void {
    request.owner = null;
    request.context = null;
    request.extra = null;
    this.#free.push(request);
  }
}
