/**
 * Heals damaged blocks of this node's replica from another one that is in sync.
 *
 *     damaged ─▶ queue ─▶ read here: still damaged? ─▶ read there ─▶ read here: still damaged, and not changed since? ─▶ write
 *
 * Invariants:
 * - Good data is written only over a block that is damaged at that moment and to which nothing else is on its way: what
 *   is newer is never replaced by what is older. The last read says what was there when it was asked for. So whatever
 *   comes to the block from then on, done or not when that read has failed, is noted (`Replica.watch`), and left alone.
 * - The chunk's stamp stays: its content is what it should have been.
 *
 * @module
 */
import type { Arena } from "../base/arena.ts";
import { BLOCK_BYTES, CHUNK_BLOCKS } from "../base/limits.ts";
import { EBADMSG, EIO, type Log, type Window } from "../platform/platform.ts";
import { Operation, OperationKind, type OperationOwner } from "../store/operation.ts";
import type { LocalStore } from "./local_store.ts";
import { type Head, MessageFlag, MessageType, Status } from "./messages.ts";
import type { PeerRequest, PeerRequestOwner, Peers } from "./peers.ts";
import type { Replica, WatchedBlock } from "./replica.ts";
import type { ClusterView } from "./view.ts";

/** Blocks that wait to be healed; more are found again by the scrub. */
const QUEUE_MAX = 4096;

interface DamagedBlock extends WatchedBlock {
  readonly disk: number;
}

const enum Step {
  Idle,
  Looking,
  Fetching,
  LookingAgain,
  Writing,
}

/** See the head of the file. */
export class Repairer implements PeerRequestOwner, OperationOwner {
  /** Blocks healed so far. */
  repaired = 0;
  readonly #store: LocalStore;
  readonly #replica: Replica;
  readonly #peers: Peers;
  readonly #window: Window;
  readonly #arena: Arena;
  readonly #log: Log;
  #view: ClusterView | null = null;
  readonly #queue: DamagedBlock[] = [];
  #step = Step.Idle;
  #block: DamagedBlock | null = null;
  readonly #asked: number[] = [];
  #request: PeerRequest | null = null;
  readonly #operation: Operation = new Operation(this, 1);
  /** Arena offsets; −1: none. */
  #look = -1;
  #good = -1;

  constructor(options: {
    store: LocalStore;
    replica: Replica;
    peers: Peers;
    window: Window;
    arena: Arena;
    log: Log;
  }) {
    this.#store = options.store;
    this.#replica = options.replica;
    this.#peers = options.peers;
    this.#window = options.window;
    this.#arena = options.arena;
    this.#log = options.log;
  }

  /** Blocks that wait. */
  get waiting(): number {
    return this.#queue.length + (this.#block === null ? 0 : 1);
  }

  /** The map has changed: who was asked may be gone. */
  mapChanged(view: ClusterView): void {
    this.#view = view;
    if (this.#step !== Step.Fetching || this.#request === null) return;
    const block = this.#block;
    const disk = block === null ? undefined : view.disk(block.disk);
    const group = disk && view.groupOf(disk, block!.chunk);
    if (group?.entry.inSync.includes(this.#request.node) === true) return;
    this.#peers.cancel(this.#request);
    this.#request = null;
    this.#fetch();
  }

  /** Some of these blocks, read through a chain of layers, are damaged here: in the newest layer that has them. */
  report(layers: readonly number[], chunk: number, block: number, blockCount: number): void {
    const words = () => new Uint32Array(CHUNK_BLOCKS / 32);
    const data = words(), zero = words(), poisoned = words();
    const left = new Set(Array.from({ length: blockCount }, (_, i) => block + i));
    for (const layer of layers) {
      if (left.size === 0) break;
      const disk = this.#view?.diskOfLayer(layer);
      if (disk === undefined) continue;
      this.#store.describeChunk(layer, chunk, data, zero, poisoned);
      for (let i = 0; i < poisoned.length; i++) data[i] |= poisoned[i];
      for (const at of left) {
        const bit = 1 << (at & 31);
        if (((data[at >>> 5] | zero[at >>> 5]) & bit) === 0) continue;
        left.delete(at);
        if ((data[at >>> 5] & bit) !== 0) this.#push(disk.entry.id, layer, chunk, at);
      }
    }
    this.#next();
  }

  /** A block of a layer is damaged: the scrub has found it. */
  reportBlock(layer: number, chunk: number, block: number): void {
    const disk = this.#view?.diskOfLayer(layer);
    if (disk !== undefined) this.#push(disk.entry.id, layer, chunk, block);
  }

  #push(disk: number, layer: number, chunk: number, block: number): void {
    if (this.#queue.length >= QUEUE_MAX) return;
    const isSame = (other: DamagedBlock) =>
      other.layer === layer && other.chunk === chunk && other.block === block;
    // The one in hand is found damaged again by each look at it.
    const isKnown = (this.#block !== null && isSame(this.#block)) || this.#queue.some(isSame);
    if (!isKnown) this.#queue.push({ disk, layer, chunk, block, isChanged: false });
  }

  /** Time passes. */
  tick(): void {
    this.#isPutOff = false;
    this.#next();
  }

  /** The other node's guests come first: again a little later. */
  #putOff(): void {
    this.#queue.push(this.#block!);
    this.#isPutOff = true;
    this.#over();
  }
  #isPutOff = false;

  #next(): void {
    if (this.#isPutOff || this.#step !== Step.Idle || this.#queue.length === 0) return;
    if (this.#look < 0) {
      const both = this.#arena.allocate(BLOCK_BYTES);
      if (both < 0) return;
      this.#look = both;
    }
    this.#block = this.#queue.shift()!;
    this.#asked.length = 0;
    this.#readHere(Step.Looking);
  }

  #readHere(step: Step): void {
    const { layer, chunk, block } = this.#block!;
    this.#step = step;
    const operation = this.#operation;
    operation.kind = OperationKind.Read;
    operation.layers = [layer];
    operation.chunk = chunk;
    operation.block = block;
    operation.blockCount = 1;
    operation.buffer = this.#look;
    operation.sink = null;
    this.#store.submit(operation);
  }

  /** {@inheritDoc OperationOwner.operationDone} */
  operationDone(operation: Operation): void {
    const { result } = operation;
    if (this.#step === Step.Writing) {
      if (result === 0) this.#healed();
      return this.#over();
    }
    // What the disk cannot read is as good as damaged: what is written anew lies elsewhere.
    if (result !== -EBADMSG && result !== -EIO) return this.#over();
    if (this.#step === Step.Looking) return this.#fetch();
    const { layer, chunk, isChanged } = this.#block!;
    if (isChanged) return this.#over();
    this.#replica.watch(null);
    this.#replica.rewriting(layer, chunk);
    this.#step = Step.Writing;
    operation.kind = OperationKind.Write;
    operation.buffer = this.#good;
    operation.checksums[0] = this.#window.kernel.checksum(this.#good, BLOCK_BYTES);
    operation.generation = 0;
    operation.sequence = 0;
    operation.stampUnknown = false;
    this.#store.submit(operation);
  }

  #healed(): void {
    const { disk, chunk, block } = this.#block!;
    this.repaired++;
    this.#log.warn("a damaged block was healed from another replica", {
      disk: this.#view?.disk(disk)?.entry.name ?? disk,
      chunk,
      block,
    });
  }

  #fetch(): void {
    this.#step = Step.Fetching;
    const { disk: id, layer, chunk, block } = this.#block!;
    const view = this.#view;
    const disk = view?.disk(id);
    if (view === null || view === undefined || disk === undefined) return this.#over();
    const group = view.groupOf(disk, chunk);
    const node = group.entry.inSync.find((node) =>
      node !== view.self && !this.#asked.includes(node) && view.node(node)?.state === "up" &&
      !group.entry.unclean.includes(node)
    );
    const request = node === undefined ? null : this.#peers.take(MessageType.Read, this);
    if (request === null) return this.#over();
    this.#asked.push(node!);
    const { head } = request;
    head.flags = MessageFlag.Recovery;
    head.disk = id;
    head.layer = layer;
    head.chunk = chunk;
    head.block = block;
    head.count = 1;
    // Where the layer is one of a pair, the other node may have merged it already. And what was copied into it from below, perhaps in vain in
    // the end, may still be there only.
    head.layer = view.absorberOf(layer) || layer;
    if (view.chain(head.layer).length > 1) head.flags |= MessageFlag.Chain;
    request.extra = Uint32Array.of(head.layer);
    request.extraWords = 1;
    this.#request = request;
    this.#peers.submit(node!, request);
  }

  /** {@inheritDoc PeerRequestOwner.answered} */
  answered(
    _request: PeerRequest,
    head: Head,
    extra: Uint8Array,
    dataOffset: number,
    dataBytes: number,
  ): void {
    this.#request = null;
    const { kernel } = this.#window;
    const isGood = head.status === Status.Ok && dataBytes === BLOCK_BYTES && extra.length === 4 &&
      kernel.checksum(dataOffset, BLOCK_BYTES) ===
        new DataView(extra.buffer, extra.byteOffset).getUint32(0, true);
    if (!isGood) {
      if (dataBytes > 0) this.#arena.release(dataOffset, dataBytes);
      if (head.status === Status.Busy) return this.#putOff();
      return this.#fetch();
    }
    this.#good = dataOffset;
    this.#replica.watch(this.#block);
    this.#readHere(Step.LookingAgain);
  }

  #over(): void {
    if (this.#good >= 0) this.#arena.release(this.#good, BLOCK_BYTES);
    this.#good = -1;
    this.#replica.watch(null);
    this.#block = null;
    this.#step = Step.Idle;
    if (this.#queue.length > 0) return this.#next();
    this.#arena.release(this.#look, BLOCK_BYTES);
    this.#look = -1;
  }
}
