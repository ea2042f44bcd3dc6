/**
 * Heals damaged blocks of this node's replica from another one that is in sync, and replaces blocks that are whole and wrong.
 *
 *     bad ─▶ queue ─▶ read here: still bad? ─▶ watch ─▶ stamp there, read there, stamp there ─▶ stamp here fits?
 *                                                                  ─▶ read here: still bad, and not changed since? ─▶ write
 *
 * Invariants:
 * - Good data is written only over a block that is bad at that moment and to which nothing else has come since the watch began
 *   (`Replica.watch`), done or still on its way: what is newer is never replaced by what is older. Bad is a block that is damaged, or one
 *   that has the very content that a check has found to be wrong (`checking.ts`).
 * - The chunk's stamp stays, since the block's content is exactly what it stands for. Let a be the stamp here when the watch began, b the
 *   stamp here at the end, and s and t those of the other replica before and after it read. What it read is the block as of some stamp from s
 *   to t. The block is written only if a ≤ s and t ≤ b: between a and b nothing was written to the block, or it would have come here, too; so
 *   it was the same at all stamps from a to b. Where t > b, the writes that the other one has and this one has not are waited for. Where
 *   s < a it is the other one that is waited for, or that a third one is asked instead.
 * - A chunk whose stamp is unknown takes what another replica has only if it is unknown there, too, before and after, and by the maps
 *   of both nobody can write to its layer and all replicas of it agree. An unknown stamp by itself allows nothing: the next write that
 *   comes makes it known. It is the same while replicas are being brought in line after a holder that has ended badly: what was
 *   acknowledged is at both, nobody has seen what was not, and with their stamps unknown they are made equal before the disk is open.
 * - What a block is replaced by is that of one node, and has the content that was found to be right: where either replica has anything
 *   else by now, both stay as they are. So a replica never gets but what another one in sync holds at the same stamp, whoever asks, however
 *   often, and whatever has happened since; and since blocks are replaced one by one, nothing else of the chunk becomes the same. Both are
 *   read, and told by their checksums, through all layers below: so a hole is replaced by what it shows. A chunk that holds nothing is left
 *   alone, since its stamp is that of the layers below; what is wrong there is replaced there.
 * - No membership changes for that, as it would if the replica left its group and copied the chunk: nobody waits for it, it works
 *   with as few copies as there are, and the other replica may hold other blocks that are wrong, which a copy of the chunk would spread.
 *   What is not synced before a crash is as it was before. (Where a replica lacks writes, so that its stamp has to change: `completing.ts`.)
 * - There is a way out where nobody else will ever have what this chunk's stamp says: after a holder that has ended badly, until the disk
 *   is open again, a write of it may be at this replica alone. The stamp is made unknown, which equals nothing, and the opening replaces
 *   the chunk by another replica's: what was acknowledged is there as well. That is done only for damage, and only while no write of the
 *   lease in the map has come here: an unknown stamp does not tell which writes come again.
 *
 * @module
 */
import type { Arena } from "../base/arena.ts";
import { BLOCK_BYTES } from "../base/limits.ts";
import { EBADMSG, EIO, type Log, type Window } from "../platform/platform.ts";
import { Operation, OperationKind, type OperationOwner } from "../store/operation.ts";
import { has, SET_WORDS } from "./block_set.ts";
import type { Replacement } from "./findings.ts";
import { compareStamps, isKnown, type LocalStore, Stamp } from "./local_store.ts";
import { type Head, MessageFlag, MessageType, Status } from "./messages.ts";
import { hasBlocks, stampOfPair } from "./pairs.ts";
import type { PeerRequest, PeerRequestOwner, Peers } from "./peers.ts";
import type { BlockReplacer, Replica, WatchedBlock } from "./replica.ts";
import type { ClusterView, DiskView } from "./view.ts";

/** Blocks that wait to be healed or replaced; more are found again by the scrub, or the check. */
const QUEUE_MAX = 4096;
/** Ticks for which a block waits for replicas to have the same writes; after that it waits to be found again. */
const TRIES_MAX = 200;

interface BadBlock extends WatchedBlock {
  readonly disk: number;
  /** What it is to be replaced by, and by whose; null: it is damaged. */
  readonly replacement: Replacement & { readonly source: number } | null;
  /** Times that the replicas' stamps did not fit. */
  tries: number;
}

const enum Step {
  Idle,
  Looking,
  /** The other replica is asked for its stamp, before it reads. */
  DescribingBefore,
  Fetching,
  /** …and after. */
  DescribingAfter,
  /** This replica has not got all that the other one had. */
  CatchingUp,
  LookingAgain,
  Writing,
  /** The chunk's stamp is being made unknown. */
  Marking,
}

/** See the head of the file. */
export class Repairer implements PeerRequestOwner, OperationOwner, BlockReplacer {
  /** Blocks healed and replaced so far. */
  repaired = 0;
  readonly #store: LocalStore;
  readonly #replica: Replica;
  readonly #peers: Peers;
  readonly #window: Window;
  readonly #arena: Arena;
  readonly #log: Log;
  #view: ClusterView | null = null;
  readonly #queue: BadBlock[] = [];
  #step = Step.Idle;
  #block: BadBlock | null = null;
  readonly #asked: number[] = [];
  /** The node that is asked. */
  #node = 0;
  /** Some node was asked that has fewer writes of the chunk than this one. */
  #isAhead = false;
  #request: PeerRequest | null = null;
  /** The chunk's stamp here when the watch began, that of the other replica after its read, and what it is here now. */
  readonly #begin = new Stamp();
  readonly #there = new Stamp();
  readonly #here = new Stamp();
  /** How often the other replica's chunk had been rewritten before it was read. */
  #rewrites = 0;
  /** Epoch of the other node's map then. */
  #epochThere = 0;
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
    if (this.#request === null) return;
    const block = this.#block;
    const disk = block === null ? undefined : view.disk(block.disk);
    const group = disk && view.groupOf(disk, block!.chunk);
    if (group?.entry.inSync.includes(this.#request.node) === true) return;
    this.#peers.cancel(this.#request);
    this.#request = null;
    this.#askNext();
  }

  /** Some of these blocks, read through a chain of layers, are damaged here: in the newest layer that has them. */
  report(layers: readonly number[], chunk: number, block: number, blockCount: number): void {
    const words = () => new Uint32Array(SET_WORDS);
    const data = words(), zero = words(), poisoned = words();
    const left = new Set(Array.from({ length: blockCount }, (_, i) => block + i));
    for (const layer of layers) {
      if (left.size === 0) break;
      const disk = this.#view?.diskOfLayer(layer);
      if (disk === undefined) continue;
      this.#store.describeChunk(layer, chunk, data, zero, poisoned);
      for (let i = 0; i < poisoned.length; i++) data[i] |= poisoned[i];
      for (const at of left) {
        const isData = has(data, at);
        if (!isData && !has(zero, at)) continue;
        left.delete(at);
        if (isData) this.#push(disk.entry.id, layer, chunk, at);
      }
    }
    this.#next();
  }

  /** A block of a layer is damaged: the scrub has found it. */
  reportBlock(layer: number, chunk: number, block: number): void {
    const disk = this.#view?.diskOfLayer(layer);
    if (disk !== undefined) this.#push(disk.entry.id, layer, chunk, block);
  }

  /** {@inheritDoc BlockReplacer.replace} */
  replace(layer: number, chunk: number, source: number, list: readonly Replacement[]): void {
    const disk = this.#view?.diskOfLayer(layer);
    if (disk === undefined) return;
    for (const each of list) {
      this.#push(disk.entry.id, layer, chunk, each.block, { ...each, source });
    }
    this.#next();
  }

  #push(
    disk: number,
    layer: number,
    chunk: number,
    block: number,
    replacement: BadBlock["replacement"] = null,
  ): void {
    if (this.#queue.length >= QUEUE_MAX) return;
    const isSame = (other: BadBlock) =>
      other.layer === layer && other.chunk === chunk && other.block === block;
    // The one in hand is found bad again by each look at it.
    const isKnown = (this.#block !== null && isSame(this.#block)) || this.#queue.some(isSame);
    if (isKnown) return;
    this.#queue.push({ disk, layer, chunk, block, replacement, isChanged: false, tries: 0 });
  }

  /** Time passes. */
  tick(): void {
    this.#isPutOff = false;
    if (this.#step === Step.CatchingUp) this.#catchUp();
    this.#next();
  }

  /** The other node's guests come first, or it has to catch up: from the beginning, a little later. */
  #putOff(): void {
    this.#queue.push(this.#block!);
    this.#isPutOff = true;
    this.#over();
  }

  /** The replicas do not have the same writes: that passes, or the disk has to be opened first. */
  #putOffForStamps(): void {
    if (++this.#block!.tries < TRIES_MAX) this.#putOff();
    else this.#over();
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
    this.#isAhead = false;
    this.#readHere(Step.Looking);
  }

  #readHere(step: Step): void {
    const { layer, chunk, block, replacement } = this.#block!;
    this.#step = step;
    const operation = this.#operation;
    operation.kind = OperationKind.Read;
    const chain = replacement === null ? [] : this.#layersOf(this.#view!);
    // Damage is that of the very layer, whatever hides it. One that is gone by now has no chain.
    operation.layers = chain.length === 0 ? [layer] : chain;
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
      const { layer, chunk, block } = this.#block!;
      // Who has looked since it was submitted has seen what was there before.
      this.#replica.rewriting(layer, chunk, block);
      if (result === 0) this.#healed();
      return this.#over();
    }
    if (this.#step === Step.Marking || !this.#isBad(result)) return this.#over();
    if (this.#step === Step.Looking) return this.#watch();
    const { layer, chunk, block, replacement, isChanged } = this.#block!;
    if (isChanged || (replacement !== null && !this.#mayReplace())) return this.#over();
    this.#replica.watch(null);
    this.#replica.rewriting(layer, chunk, block);
    this.#step = Step.Writing;
    const isZero = replacement !== null && this.#window.kernel.isZero(this.#good, BLOCK_BYTES);
    operation.kind = isZero ? OperationKind.Zero : OperationKind.Write;
    operation.buffer = this.#good;
    operation.checksums[0] = this.#window.kernel.checksum(this.#good, BLOCK_BYTES);
    operation.generation = 0;
    operation.sequence = 0;
    operation.stampUnknown = false;
    this.#store.submit(operation);
  }

  /** Whether the block that was read is still what it should not be. */
  #isBad(result: number): boolean {
    const { replacement } = this.#block!;
    // What the disk cannot read is as good as damaged: what is written anew lies elsewhere.
    if (replacement === null) return result === -EBADMSG || result === -EIO;
    return result === 0 &&
      this.#window.kernel.checksum(this.#look, BLOCK_BYTES) === replacement.wrong;
  }

  /** Whether the block's layer is where it has to be replaced, by this node's map as it is now. */
  #mayReplace(): boolean {
    const { layer, chunk } = this.#block!;
    const view = this.#view!;
    const disk = view.diskOfLayer(layer);
    // What the layer holds may have gone to the one above it by now.
    if (disk === undefined || view.absorberOf(layer) !== 0) return false;
    const group = view.groupOf(disk, chunk);
    if (!group.isOpen || !group.entry.inSync.includes(view.self)) return false;
    // A first block without a stamp would hide the one below.
    return !isKnown(this.#here) || hasBlocks(this.#store, layer, chunk) ||
      this.#store.stampOf(layer, chunk, new Stamp());
  }

  #healed(): void {
    const { disk, chunk, block, replacement } = this.#block!;
    this.repaired++;
    const what = replacement === null
      ? "a damaged block was healed from another replica"
      : "a block that differed from what counts was replaced by another replica's";
    this.#log.warn(what, {
      disk: this.#view?.disk(disk)?.entry.name ?? disk,
      chunk,
      block,
    });
  }

  /** From here on nothing comes to the block unnoticed. */
  #watch(): void {
    const block = this.#block!;
    this.#replica.watch(block);
    if (block.isChanged || this.#view === null) return this.#over();
    stampOfPair(this.#store, this.#layersOf(this.#view), block.chunk, this.#begin);
    this.#askNext();
  }

  /**
   * Layers that count as one with that of the block, at both ends: the other node may have merged one of a pair already, or not have
   * copied yet what this one has copied from below.
   */
  #layersOf(view: ClusterView): readonly number[] {
    const { layer } = this.#block!;
    return view.chain(view.absorberOf(layer) || layer);
  }

  /** Asks a replica that was not asked yet; at the end of them it is over, or has to wait. */
  #askNext(): void {
    this.#releaseGood();
    const { disk: id, chunk } = this.#block!;
    const view = this.#view;
    const disk = view?.disk(id);
    if (view === null || view === undefined || disk === undefined) return this.#over();
    const group = view.groupOf(disk, chunk);
    const source = this.#block!.replacement?.source;
    const node = group.entry.inSync.find((node) =>
      node !== view.self && !this.#asked.includes(node) && view.node(node)?.state === "up" &&
      !group.entry.unclean.includes(node) && (source === undefined || node === source)
    );
    if (node === undefined) return this.#isAhead ? this.#noneFits(view, disk) : this.#over();
    this.#asked.push(node);
    this.#node = node;
    this.#ask(Step.DescribingBefore, MessageType.Describe);
  }

  #ask(step: Step, type: MessageType): void {
    this.#step = step;
    const view = this.#view!;
    const [layer] = this.#layersOf(view);
    // It may be gone by now, and its disk not.
    if (layer === undefined) return this.#over();
    const request = this.#peers.take(type, this);
    if (request === null) return this.#putOff();
    const { disk, chunk, block } = this.#block!;
    const { head } = request;
    head.flags = MessageFlag.Recovery;
    head.disk = disk;
    head.layer = layer;
    head.chunk = chunk;
    // Where the layer is one of a pair, the other node may have merged it already. And what was copied into it from below, perhaps in vain in
    // the end, may still be there only.
    if (view.chain(layer).length > 1) head.flags |= MessageFlag.Chain;
    if (type === MessageType.Read) {
      head.block = block;
      head.count = 1;
      request.extra = Uint32Array.of(layer);
      request.extraWords = 1;
    }
    this.#request = request;
    this.#peers.submit(this.#node, request);
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
    if (this.#step === Step.Fetching && this.#isGood(head, extra, dataOffset, dataBytes)) {
      this.#good = dataOffset;
      return this.#ask(Step.DescribingAfter, MessageType.Describe);
    }
    if (dataBytes > 0) this.#arena.release(dataOffset, dataBytes);
    if (head.status === Status.Busy) return this.#putOff();
    if (head.status !== Status.Ok || this.#step === Step.Fetching) return this.#askNext();
    this.#there.set(head.generation, head.sequence);
    this.#epochThere = head.epoch;
    if (this.#step === Step.DescribingBefore) {
      this.#rewrites = head.argument;
      // Unknown is below all that is known.
      const isBehind = compareStamps(this.#there, this.#begin) < 0;
      if (!isBehind) return this.#ask(Step.Fetching, MessageType.Read);
      this.#isAhead = true;
      return this.#askNext();
    }
    if (head.argument !== this.#rewrites) return this.#putOffForStamps();
    this.#step = Step.CatchingUp;
    this.#catchUp();
  }

  #isGood(head: Head, extra: Uint8Array, dataOffset: number, dataBytes: number): boolean {
    if (head.status !== Status.Ok || dataBytes !== BLOCK_BYTES || extra.length !== 4) return false;
    const sum = this.#window.kernel.checksum(dataOffset, BLOCK_BYTES);
    const right = this.#block!.replacement?.right ?? sum;
    return sum === new DataView(extra.buffer, extra.byteOffset).getUint32(0, true) && sum === right;
  }

  /** The block is here. It may be written once this replica has all writes of the chunk that the other one had. */
  #catchUp(): void {
    const block = this.#block!;
    const layers = this.#layersOf(this.#view!);
    if (block.isChanged || layers.length === 0) return this.#over();
    stampOfPair(this.#store, layers, block.chunk, this.#here);
    const isAllKnown = isKnown(this.#begin) && isKnown(this.#there) && isKnown(this.#here);
    const isNoneKnown = !isKnown(this.#begin) && !isKnown(this.#there) && !isKnown(this.#here);
    // A write has made one of them known, or is on its way in parts, or may be: all of it once more.
    if (!isAllKnown && !(isNoneKnown && this.#mayBeUnknown())) return this.#putOffForStamps();
    if (compareStamps(this.#there, this.#here) <= 0) return this.#readHere(Step.LookingAgain);
    if (++block.tries >= TRIES_MAX) this.#over();
  }

  /** Nobody can write to the block's layer, and its replicas agree or are still to be brought in line, by the other node's map as well. */
  #mayBeUnknown(): boolean {
    const view = this.#view!;
    const disk = view.disk(this.#block!.disk);
    if (disk === undefined || this.#epochThere > view.epoch) return false;
    return !view.isInOrder(disk) || view.isAtRest(disk, this.#layersOf(view));
  }

  /** Nobody who could be asked has all the writes of the chunk that are here. */
  #noneFits(view: ClusterView, disk: DiskView): void {
    const { layer, chunk, replacement } = this.#block!;
    const { generation, lease } = disk.entry;
    const mayMark = replacement === null && !view.isInOrder(disk) && view.isWritable(disk, layer) &&
      isKnown(this.#begin) &&
      (lease === null || this.#begin.generation < generation) &&
      this.#replica.isIdle([layer], chunk);
    if (!mayMark) return this.#putOffForStamps();
    this.#replica.rewriting(layer, chunk);
    this.#step = Step.Marking;
    const operation = this.#operation;
    operation.kind = OperationKind.Stamp;
    operation.layers = [layer];
    operation.chunk = chunk;
    operation.generation = 0;
    operation.sequence = 0;
    operation.stampUnknown = true;
    this.#store.submit(operation);
  }

  #releaseGood(): void {
    if (this.#good >= 0) this.#arena.release(this.#good, BLOCK_BYTES);
    this.#good = -1;
  }

  #over(): void {
    this.#releaseGood();
    this.#replica.watch(null);
    this.#block = null;
    this.#step = Step.Idle;
    if (this.#queue.length > 0) return this.#next();
    this.#arena.release(this.#look, BLOCK_BYTES);
    this.#look = -1;
  }
}
