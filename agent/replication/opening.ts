/**
 * Bringing a disk's replicas in line when its last holder did not give the lease back in good order.
 *
 *     stamps of all members ─▶ chunks where members differ ─▶ pulls from a highest in-sync one ─▶ open
 *
 * Every acknowledged write is on every in-sync replica, whichever is taken; a write that was under way may be on some of
 * them. Before the first request of the new lease all of them are made equal, so that such a write either is
 * there for good or never was.
 *
 * Invariants:
 * - Members answer under the map of the new lease, so after the question they accept nothing of the old one.
 * - A change of the map among the disk's groups begins the whole thing anew.
 * - What a member was asked to copy before that and has not answered for may go on there: it is asked again, which ends it, so that
 *   nothing is copied over what is written when the disk is open.
 * - All layers that the lease before could write to are looked at: the newest, and that of a snapshot which was being taken.
 *
 * @module
 */
import type { Arena } from "../base/arena.ts";
import type { Window } from "../platform/platform.ts";
import { chunkList, compareStamps, isKnown, type LocalStore, Stamp } from "./local_store.ts";
import {
  getU64,
  type Head,
  MessageFlag,
  MessageType,
  STAMP_ENTRY_BYTES,
  Status,
} from "./messages.ts";
import type { PeerRequest, PeerRequestOwner, Peers } from "./peers.ts";
import type { JoiningHook, Puller, Replica } from "./replica.ts";
import type { ClusterView, DiskView } from "./view.ts";

/** Pulls that are under way at a time. */
const PULLS_MAX = 16;
/** Chunks of this node's own store looked at in one go. */
const LIST_MAX = 4096;

/** What opening needs around it. */
export interface OpeningHost {
  readonly store: LocalStore;
  readonly peers: Peers;
  readonly replica: Replica;
  readonly window: Window;
  readonly arena: Arena;
  readonly joining: JoiningHook & Puller;
  readonly view: ClusterView;
}

interface Difference {
  readonly layer: number;
  readonly chunk: number;
  readonly node: number;
  readonly from: number;
}

/** One disk being brought in line; used until it is done or given up. */
export class Opening implements PeerRequestOwner {
  readonly #host: OpeningHost;
  readonly #done: () => void;
  readonly #requests = new Set<PeerRequest>();
  /** Per layer and chunk: the stamp of each member that has one. */
  readonly #stamps = new Map<number, Map<number, Map<number, Stamp>>>();
  #differences: Difference[] = [];
  /** Copies that were asked for, in this round or before, and that nobody has said the end of. */
  readonly #unanswered = new Map<string, Difference>();
  #pending = 0;
  #round = 0;
  #isWaiting = true;
  #isOver = false;
  /** Chunks that differed, of all rounds. */
  settledChunks = 0;

  /** @param done called once, when the replicas agree */
  constructor(
    host: OpeningHost,
    readonly diskId: number,
    readonly generation: number,
    done: () => void,
  ) {
    this.#host = host;
    this.#done = done;
  }

  /** Begins, or begins anew. */
  begin(): void {
    this.#abandon();
    const { view } = this.#host;
    const disk = view.disk(this.diskId);
    this.#isWaiting = true;
    // The lease may be here before the map that gives it.
    if (disk === undefined || disk.entry.generation !== this.generation) return;
    if (disk.groups.some((group) => !group.isOpen)) return;
    // What was accepted under the lease before is in the store here, too, before it is looked at. Other disks' writes are none of
    // its business: in a store that is full they may wait for what is discarded on this one.
    const { replica } = this.#host;
    for (const layer of writableLayers(disk)) {
      if (!replica.endEarlier(view.epoch, layer, this.generation)) return;
    }
    this.#isWaiting = false;
    const { generation, settled } = disk.entry;
    if (generation - 1 <= settled) return this.#finish();
    // Counted once more, so that answers cannot end the step before all are asked.
    this.#pending = 1;
    for (const node of disk.nodes) {
      for (const layer of writableLayers(disk)) {
        if (node === view.self) this.#lookHere(disk, layer);
        else if (!this.#ask(node, disk, layer, 0)) return this.#later();
      }
    }
    this.#answerOver();
  }

  /** Gives up. */
  stop(): void {
    this.#abandon();
    this.#isOver = true;
  }

  #abandon(): void {
    this.#round++;
    for (const request of this.#requests) this.#host.peers.cancel(request);
    this.#requests.clear();
    this.#stamps.clear();
    this.#differences = [];
    this.#pending = 0;
  }

  /** Something stood in the way that time will take away. */
  #later(): void {
    this.#abandon();
    this.#isWaiting = true;
  }

  /** Time passes. */
  tick(): void {
    if (this.#isWaiting && !this.#isOver) this.begin();
  }

  /** The map has changed. */
  mapChanged(before: ClusterView): void {
    if (this.#isOver) return;
    const old = before.disk(this.diskId);
    const now = this.#host.view.disk(this.diskId);
    const isSame = old !== undefined && now !== undefined &&
      old.entry.generation === now.entry.generation && old.groups.length === now.groups.length &&
      old.entry.layers[0] === now.entry.layers[0] && old.draining === now.draining &&
      now.groups.every((group, i) => group.entry.changedEpoch === old.groups[i].entry.changedEpoch);
    if (!isSame || this.#isWaiting) this.begin();
  }

  #note(
    node: number,
    layer: number,
    chunk: number,
    generation: number,
    sequence: number,
  ): void {
    let chunks = this.#stamps.get(layer);
    if (chunks === undefined) this.#stamps.set(layer, chunks = new Map());
    let nodes = chunks.get(chunk);
    if (nodes === undefined) chunks.set(chunk, nodes = new Map());
    const stamp = new Stamp();
    stamp.set(generation, sequence);
    nodes.set(node, stamp);
  }

  #lookHere(disk: DiskView, layer: number): void {
    const { store, view, joining } = this.#host;
    const list = chunkList(LIST_MAX);
    let from = 0;
    do {
      store.listChunks(layer, from, list);
      from = list.next;
      for (let i = 0; i < list.count; i++) {
        const isOld = list.generations[i] > 0 && list.generations[i] <= disk.entry.settled;
        if (isOld) continue;
        const chunk = list.chunks[i];
        const group = view.groupOf(disk, chunk);
        const isMine = group.entry.inSync.includes(view.self) ||
          (group.entry.joining.includes(view.self) && joining.isComplete(group, layer, chunk));
        if (isMine) this.#note(view.self, layer, chunk, list.generations[i], list.sequences[i]);
      }
    } while (from >= 0);
  }

  #ask(node: number, disk: DiskView, layer: number, chunk: number): boolean {
    const request = this.#host.peers.take(MessageType.Stamps, this);
    if (request === null) return false;
    const { head } = request;
    head.flags = MessageFlag.Recovery;
    head.disk = this.diskId;
    head.layer = layer;
    head.generation = disk.entry.settled;
    head.chunk = chunk;
    request.tag = this.#round;
    this.#requests.add(request);
    this.#pending++;
    this.#host.peers.submit(node, request);
    return true;
  }

  /** {@inheritDoc PeerRequestOwner.answered} */
  answered(
    request: PeerRequest,
    head: Head,
    _extra: Uint8Array,
    dataOffset: number,
    dataBytes: number,
  ): void {
    this.#requests.delete(request);
    if ((request.head.type as MessageType) === MessageType.Stamps) {
      return this.#stampsAnswered(request, head, dataOffset, dataBytes);
    }
    if (dataBytes > 0) this.#host.arena.release(dataOffset, dataBytes);
    this.#pullOver(request.tag, request.context as Difference, head.status);
  }

  #stampsAnswered(
    request: PeerRequest,
    head: Head,
    dataOffset: number,
    dataBytes: number,
  ): void {
    const { arena, window, view } = this.#host;
    const count = head.argument;
    const isGood = head.status === Status.Ok && count * STAMP_ENTRY_BYTES <= dataBytes;
    if (isGood) {
      const data = new DataView(window.bytes.buffer);
      for (let i = 0; i < count; i++) {
        const at = dataOffset + i * STAMP_ENTRY_BYTES;
        const sequence = getU64(data, at + 16);
        if (sequence < 0) continue;
        this.#note(
          request.node,
          request.head.layer,
          data.getUint32(at + 4, true),
          data.getUint32(at + 8, true),
          sequence,
        );
      }
    }
    if (dataBytes > 0) arena.release(dataOffset, dataBytes);
    const disk = view.disk(this.diskId);
    if (!isGood || disk === undefined) return this.#later();
    const { layer } = request.head;
    const isMore = (head.flags & MessageFlag.More) !== 0;
    if (isMore && !this.#ask(request.node, disk, layer, head.chunk)) return this.#later();
    this.#answerOver();
  }

  #answerOver(): void {
    if (--this.#pending > 0) return;
    const disk = this.#host.view.disk(this.diskId);
    if (disk === undefined) return this.#later();
    for (const [layer, chunks] of this.#stamps) {
      for (const [chunk, stamps] of chunks) this.#compare(disk, layer, chunk, stamps);
    }
    this.#askAgain(disk);
    this.#stamps.clear();
    this.settledChunks += this.#differences.length;
    this.#pullNext();
  }

  /** Whoever differs from the highest in-sync member is to pull; those that join, too, if any in-sync one differs. */
  #compare(disk: DiskView, layer: number, chunk: number, stamps: Map<number, Stamp>): void {
    const { view } = this.#host;
    const { inSync, joining } = view.groupOf(disk, chunk).entry;
    const none = new Stamp();
    const from = highestOf(inSync, stamps);
    const highest = stamps.get(from) ?? none;
    // An unknown stamp (of a chunk that was being copied when somebody died) equals nothing, another one included.
    const isUnknown = (node: number) => stamps.has(node) && !isKnown(stamps.get(node)!);
    const isDifferent = (node: number) =>
      node !== from &&
      (isUnknown(node) || isUnknown(from) ||
        compareStamps(stamps.get(node) ?? none, highest) !== 0);
    const lower = inSync.filter(isDifferent);
    for (const node of lower) this.#differences.push({ layer, chunk, node, from });
    for (const node of joining) {
      const isBehind = lower.length > 0 || (stamps.has(node) && isDifferent(node));
      if (isBehind) this.#differences.push({ layer, chunk, node, from });
    }
  }

  /** Copies of the rounds before that may still go on, though their chunks do not differ any more. */
  #askAgain(disk: DiskView): void {
    const { view } = this.#host;
    for (const [key, { layer, chunk, node }] of this.#unanswered) {
      const { entry, members } = view.groupOf(disk, chunk);
      const stamps = this.#stamps.get(layer)?.get(chunk) ?? new Map<number, Stamp>();
      const from = highestOf(entry.inSync, stamps);
      const isMember = members.includes(node) && writableLayers(disk).includes(layer);
      // Who the others copy from was not asked before its group changed, or has done it. If that changed, its copies have ended.
      if (!isMember || node === from) {
        this.#unanswered.delete(key);
        continue;
      }
      const isAsked = this.#differences.some((each) =>
        each.layer === layer && each.chunk === chunk && each.node === node
      );
      // While it goes on the stamp there is unknown, or its group does not count: a known one is that of its end.
      const own = stamps.get(node);
      const isDone = own !== undefined && isKnown(own) &&
        compareStamps(own, stamps.get(from) ?? own) >= 0;
      if (isDone) this.#unanswered.delete(key);
      else if (!isAsked) this.#differences.push({ layer, chunk, node, from });
    }
  }

  #pullNext(): void {
    const { view, joining, peers } = this.#host;
    const disk = view.disk(this.diskId);
    if (disk === undefined) return this.#later();
    while (this.#differences.length > 0 && this.#pending < PULLS_MAX) {
      const difference = this.#differences.pop()!;
      const { layer, chunk, node, from } = difference;
      this.#pending++;
      const round = this.#round;
      if (node === view.self) {
        const group = view.groupOf(disk, chunk);
        this.#unanswered.set(keyOf(difference), difference);
        joining.pullFor(
          disk,
          group,
          layer,
          chunk,
          from,
          (status) => this.#pullOver(round, difference, status),
        );
        continue;
      }
      const request = peers.take(MessageType.Pull, this);
      if (request === null) return this.#later();
      const { head } = request;
      head.disk = this.diskId;
      head.layer = layer;
      head.chunk = chunk;
      head.generation = disk.entry.generation;
      head.argument = from;
      request.tag = round;
      request.context = difference;
      this.#requests.add(request);
      this.#unanswered.set(keyOf(difference), difference);
      peers.submit(node, request);
    }
    if (this.#pending === 0) this.#finish();
  }

  #pullOver(round: number, difference: Difference, status: number): void {
    const key = keyOf(difference);
    // Not where the same has been asked for once more.
    if (this.#unanswered.get(key) === difference) this.#unanswered.delete(key);
    if (round !== this.#round || this.#isOver) return;
    this.#pending--;
    if (status !== Status.Ok) return this.#later();
    this.#pullNext();
  }

  #finish(): void {
    if (this.#isOver) return;
    this.#isOver = true;
    this.#done();
  }
}

/** The first of some nodes whose stamp no other one's is above; 0: there are none. */
function highestOf(nodes: readonly number[], stamps: ReadonlyMap<number, Stamp>): number {
  const none = new Stamp();
  let highest = 0;
  for (const node of nodes) {
    const isHigher = highest === 0 ||
      compareStamps(stamps.get(node) ?? none, stamps.get(highest) ?? none) > 0;
    if (isHigher) highest = node;
  }
  return highest;
}

function keyOf({ layer, chunk, node }: Difference): string {
  return `${layer} ${chunk} ${node}`;
}

/** Layers that the holder of a disk may have written to since the lease was last given back in good order. */
function writableLayers({ entry, draining }: DiskView): readonly number[] {
  return draining === 0 ? [entry.layers[0]] : [entry.layers[0], draining];
}
