/**
 * What tests of replication put around the code: a transport that only remembers, a store of plain arrays, and small maps.
 *
 * Nothing happens by itself: the store carries out what it was given when `run` is called, and messages stay in
 * `FakeTransport.sent`, so that a test decides about every order of events.
 *
 * @module
 */
import { assert, assertEquals } from "@std/assert/mod.js";
import { Arena } from "../../agent/base/arena.ts";
import { ARENA_BYTES, BLOCK_BYTES, BLOCK_SHIFT } from "../../agent/base/limits.ts";
import type { ClusterMap, DiskEntry, LayerEntry, PgEntry } from "../../agent/map/map.ts";
import type { PeerTransport } from "../../agent/platform/network.ts";
import { EBADMSG, ECANCELED, type Log } from "../../agent/platform/platform.ts";
import { SimulatedMemory } from "../../agent/platform/simulated/memory.ts";
import { DataCore, type DataCoreEvents } from "../../agent/replication/data_core.ts";
import type { ChunkList, LocalStore, Stamp } from "../../agent/replication/local_store.ts";
import { ANSWER, Head, HEAD_BYTES } from "../../agent/replication/messages.ts";
import { type Operation, OperationKind } from "../../agent/store/operation.ts";
import { clusterWithDisk } from "../map/cluster.ts";

/** The one window of all tests, made once: pages that nobody touches cost nothing. */
export const window = new SimulatedMemory({ sizeBytes: ARENA_BYTES }).windows[0];

/** A log for which a warning is no failure. */
export const silent: Log = { debug() {}, info() {}, warn() {}, error() {} };

/** A message that was sent. */
export interface Sent {
  readonly link: number;
  readonly head: Head;
  readonly extra: Uint32Array;
  readonly data: Uint8Array;
}

/** Remembers what was sent. */
export class FakeTransport implements PeerTransport {
  sent: Sent[] = [];
  /** Messages that it still takes. */
  room = Infinity;
  readonly paused = new Set<number>();
  readonly addresses = new Map<number, string | null>();
  readonly dropped: number[] = [];

  drop(link: number): void {
    this.dropped.push(link);
  }

  setPeer(node: number, address: string | null): void {
    this.addresses.set(node, address);
  }

  send(link: number, head: Uint8Array, headBytes: number, offset: number, bytes: number): boolean {
    if (this.room <= 0) return false;
    this.room--;
    const decoded = new Head();
    assert(decoded.decode(head), "a message that the other side cannot read was sent");
    this.sent.push({
      link,
      head: decoded,
      extra: new Uint32Array(head.slice(HEAD_BYTES, headBytes).buffer),
      data: window.bytes.slice(offset, offset + bytes),
    });
    return true;
  }

  pause(link: number, paused: boolean): void {
    if (paused) this.paused.add(link);
    else this.paused.delete(link);
  }

  /** Everything that was sent since the last call. */
  take(): Sent[] {
    return this.sent.splice(0);
  }
}

/** What a message is made of. */
export type HeadFields = Partial<
  Omit<Head, "clear" | "encode" | "decode" | "set">
>;

/** Bytes of a message's head and extra part. */
export function message(
  fields: HeadFields,
  extra: ArrayLike<number> = [],
): Uint8Array<ArrayBuffer> {
  const words = new Uint32Array(HEAD_BYTES / 4 + extra.length);
  Object.assign(new Head(), fields).encode(words);
  words.set(extra, HEAD_BYTES / 4);
  return new Uint8Array(words.buffer);
}

/** Bytes of the answer to a message that was sent. */
export function answerTo(
  sent: Sent,
  fields: HeadFields = {},
  extra: ArrayLike<number> = [],
): Uint8Array<ArrayBuffer> {
  return message({ ...sent.head, type: sent.head.type | ANSWER, ...fields }, extra);
}

/** A block full of one byte. */
export function block(fill: number): Uint8Array<ArrayBuffer> {
  return new Uint8Array(BLOCK_BYTES).fill(fill);
}

/** Puts blocks into a buffer of the arena. */
export function buffer(arena: Arena, ...fills: number[]): number {
  const offset = arena.allocate(fills.length << BLOCK_SHIFT);
  assert(offset >= 0);
  fills.forEach((fill, i) => window.bytes.set(block(fill), offset + (i << BLOCK_SHIFT)));
  return offset;
}

/** Checksum of a block full of one byte. */
export function sumOf(fill: number): number {
  const scratch = ARENA_BYTES - BLOCK_BYTES;
  window.bytes.fill(fill, scratch, scratch + BLOCK_BYTES);
  return window.kernel.checksum(scratch, BLOCK_BYTES);
}

/** A chunk of the fake store: what its blocks are full of ("zero": reads as zeros whatever lies below). */
export class FakeChunk {
  generation = 0;
  sequence = 0;
  readonly blocks = new Map<number, number | "zero">();
  readonly damaged = new Set<number>();
}

/** A store that does what it is told when it is told. Blocks are remembered by their first byte. */
export class FakeStore implements LocalStore {
  damageListener: ((layer: number, chunk: number, block: number) => void) | null = null;
  readonly waiting: Operation[] = [];
  readonly #withdrawn: Operation[] = [];
  readonly content = new Map<number, Map<number, FakeChunk>>();
  /** Kinds of what was carried out, in order. */
  readonly done: OperationKind[] = [];
  /** Errno of everything that is carried out from now on; 0: it works. */
  failure = 0;
  /** There is no room for copies that can wait. */
  isTight = false;
  /** What waits waits for space, and can be taken back. */
  isFull = false;

  constructor(...layers: number[]) {
    for (const layer of layers) this.content.set(layer, new Map());
  }

  submit(operation: Operation): void {
    this.waiting.push(operation);
  }

  withdraw(isWanted: (operation: Operation) => boolean): void {
    if (!this.isFull) return;
    for (const operation of this.waiting.filter(isWanted)) this.#withdrawn.push(operation);
    this.waiting.splice(0, Infinity, ...this.waiting.filter((each) => !isWanted(each)));
  }

  /** Carries out what waits, the oldest `count` of it. */
  run(count = Infinity): void {
    for (const operation of this.#withdrawn.splice(0)) {
      operation.result = -ECANCELED;
      operation.owner.operationDone(operation);
    }
    for (; count > 0 && this.waiting.length > 0; count--) {
      const operation = this.waiting.shift()!;
      operation.result = this.failure === 0 ? this.#apply(operation) : this.failure;
      this.done.push(operation.kind);
      operation.owner.operationDone(operation);
    }
  }

  hasRoom(): boolean {
    return !this.isTight;
  }

  #fill({ layers, chunk: at, block, blockCount, buffer, checksums, ...stamp }: Operation): number {
    const chunk = this.chunk(layers[0], at);
    const isNothing = chunk.generation === 0 && chunk.blocks.size === 0;
    if (isNothing && stamp.generation > 0) {
      chunk.generation = stamp.generation;
      chunk.sequence = stamp.sequence;
    }
    for (let i = 0; i < blockCount; i++) {
      const from = buffer + (i << BLOCK_SHIFT);
      assertEquals(checksums[i], window.kernel.checksum(from, BLOCK_BYTES));
      if (!chunk.blocks.has(block + i)) chunk.blocks.set(block + i, window.bytes[from]);
    }
    return 0;
  }

  #apply(operation: Operation): number {
    const { kind, block: first, blockCount } = operation;
    if (kind === OperationKind.Sync) return 0;
    if (kind === OperationKind.Read) return this.#read(operation);
    if (kind === OperationKind.Absorb) return this.#absorb(operation);
    if (kind === OperationKind.Fill) return this.#fill(operation);
    const chunk = this.chunk(operation.layers[0], operation.chunk);
    if (operation.stampUnknown) chunk.generation = chunk.sequence = 0;
    else if (operation.generation > 0) {
      chunk.generation = operation.generation;
      chunk.sequence = operation.sequence;
    }
    if (kind === OperationKind.Stamp) return 0;
    for (let i = 0; i < blockCount; i++) {
      chunk.damaged.delete(first + i);
      if (kind === OperationKind.Free) chunk.blocks.delete(first + i);
      else if (kind === OperationKind.Zero) chunk.blocks.set(first + i, "zero");
      else {
        const at = operation.buffer + (i << BLOCK_SHIFT);
        assertEquals(operation.checksums[i], window.kernel.checksum(at, BLOCK_BYTES));
        chunk.blocks.set(first + i, window.bytes[at]);
      }
    }
    return 0;
  }

  #absorb({ layers: [into, from], chunk }: Operation): number {
    const lower = this.content.get(from)?.get(chunk);
    if (lower === undefined) return 0;
    const isNew = this.content.get(into)?.has(chunk) !== true;
    const upper = this.chunk(into, chunk);
    if (isNew) [upper.generation, upper.sequence] = [lower.generation, lower.sequence];
    for (const [block, fill] of lower.blocks) {
      if (!upper.blocks.has(block)) upper.blocks.set(block, fill);
    }
    lower.blocks.clear();
    return 0;
  }

  #read(operation: Operation): number {
    for (let i = 0; i < operation.blockCount; i++) {
      const at = operation.buffer + (i << BLOCK_SHIFT);
      window.bytes.fill(0, at, at + BLOCK_BYTES);
      for (const layer of operation.layers) {
        const chunk = this.content.get(layer)?.get(operation.chunk);
        const index = operation.block + i;
        if (chunk?.damaged.has(index) === true) {
          operation.badBlock = index;
          return -EBADMSG;
        }
        const found = chunk?.blocks.get(index);
        if (found === undefined) continue;
        if (found !== "zero") window.bytes.fill(found, at, at + BLOCK_BYTES);
        break;
      }
    }
    return 0;
  }

  /** A chunk, made if it is not there. */
  chunk(layer: number, chunk: number): FakeChunk {
    const chunks = this.content.get(layer)!;
    let found = chunks.get(chunk);
    if (found === undefined) chunks.set(chunk, found = new FakeChunk());
    return found;
  }

  hasLayer(layer: number): boolean {
    return this.content.has(layer);
  }

  layers(): number[] {
    return [...this.content.keys()];
  }

  createLayer(layer: number, done: (error: Error | null) => void): void {
    this.content.set(layer, new Map());
    done(null);
  }

  deleteLayer(layer: number, done: (error: Error | null) => void): void {
    this.content.delete(layer);
    done(null);
  }

  dropChunk(layer: number, chunk: number, done: (error: Error | null) => void): void {
    this.content.get(layer)?.delete(chunk);
    done(null);
  }

  stampOf(layer: number, chunk: number, stamp: Stamp): boolean {
    const found = this.content.get(layer)?.get(chunk);
    stamp.set(found?.generation ?? 0, found?.sequence ?? 0);
    return stamp.generation > 0;
  }

  listChunks(layer: number, from: number, list: ChunkList, step = 1, offset = 0): void {
    const all = [...this.content.get(layer) ?? []]
      .filter(([chunk]) => chunk >= from && chunk % step === offset)
      .sort(([a], [b]) => a - b);
    list.count = Math.min(all.length, list.chunks.length);
    for (let i = 0; i < list.count; i++) {
      list.chunks[i] = all[i][0];
      list.generations[i] = all[i][1].generation;
      list.sequences[i] = all[i][1].sequence;
    }
    list.next = all.length > list.count ? all[list.count][0] : -1;
  }

  describeChunk(
    layer: number,
    chunk: number,
    data: Uint32Array,
    zeros: Uint32Array,
    poisoned: Uint32Array,
  ): number {
    for (const words of [data, zeros, poisoned]) words.fill(0);
    const found = this.content.get(layer)?.get(chunk);
    for (const [index, fill] of found?.blocks ?? []) {
      const words = fill === "zero" ? zeros : data;
      words[index >>> 5] |= 1 << (index & 31);
    }
    for (const index of found?.damaged ?? []) poisoned[index >>> 5] |= 1 << (index & 31);
    return found?.blocks.size ?? 0;
  }

  describeChain(
    layers: readonly number[],
    chunk: number,
    data: Uint32Array,
    zeros: Uint32Array,
    poisoned: Uint32Array,
  ): number {
    const maps = [data, zeros, poisoned];
    for (const words of maps) words.fill(0);
    const found = maps.map(() => new Uint32Array(data.length));
    for (const layer of layers) {
      this.describeChunk(layer, chunk, found[0], found[1], found[2]);
      for (let word = 0; word < data.length; word++) {
        const holes = ~(data[word] | zeros[word] | poisoned[word]);
        maps.forEach((words, i) => words[word] |= found[i][word] & holes);
      }
    }
    return data.reduce((sum, word) => {
      for (; word !== 0; word &= word - 1) sum++;
      return sum;
    }, 0);
  }
}

/** Epoch of the maps made here, unless told otherwise; their groups changed last at {@linkcode CHANGED}. */
export const EPOCH = 100, CHANGED = 50;
/** Generation of the lease in the maps made here. */
export const GENERATION = 7;

/** What a map is to be like. */
export interface MapOptions {
  readonly nodes?: number;
  readonly epoch?: number;
  /** Who holds the lease; 0: nobody. */
  readonly holder?: number;
  /** Of every group. */
  readonly group?: Partial<PgEntry>;
  readonly disk?: Partial<DiskEntry>;
  /** Of all layers, where there are others than layer 1. */
  readonly layers?: readonly LayerEntry[];
  /** Nodes that are down. */
  readonly down?: readonly number[];
  /** Incarnations that are not 1. */
  readonly incarnations?: Readonly<Record<number, number>>;
}

/** A cluster with the disk 1 (layer 1) of three copies, its lease with node 1, settled, on nodes 1, 2 and 3. */
export function mapOf(options: MapOptions = {}): ClusterMap {
  const { nodes = 4, epoch = EPOCH, holder = 1, group, disk, down = [], incarnations } = options;
  const map = clusterWithDisk(nodes, 3);
  const entry: PgEntry = {
    target: [1, 2, 3],
    inSync: [1, 2, 3],
    joining: [],
    joinedEpochs: [],
    unclean: [],
    unsettled: false,
    settledEpoch: 0,
    changedEpoch: CHANGED,
    ...group,
  };
  return {
    ...map,
    epoch,
    layers: options.layers ?? map.layers,
    nodes: map.nodes.map((node) => ({
      ...node,
      state: down.includes(node.id) ? "down" : "up",
      incarnation: incarnations?.[node.id] ?? 1,
    })),
    pools: map.pools.map((pool) => ({ ...pool, pgs: pool.pgs.map(() => entry) })),
    disks: map.disks.map((each) => ({
      ...each,
      generation: GENERATION,
      settled: GENERATION - 1,
      lease: holder === 0 ? null : { node: holder, incarnation: incarnations?.[holder] ?? 1 },
      ...disk,
    })),
  };
}

/**
 * The data core of node `self` with a map in force and a link to each of the nodes 1 to 4 that bears that node's
 * number. Events that are not given are not listened to.
 */
export function coreOf(
  { store, arena, transport }: { store: LocalStore; arena: Arena; transport: PeerTransport },
  map: ClusterMap,
  self: number,
  events: Partial<DataCoreEvents>,
): DataCore {
  const core = new DataCore({
    store,
    window,
    arena,
    transport,
    log: silent,
    events: {
      mapInstalled() {},
      reconciled() {},
      unreachable() {},
      inSync() {},
      settled() {},
      memberFailed() {},
      ...events,
    },
  });
  core.setMap(map, self, 1);
  for (const node of [1, 2, 3, 4]) if (node !== self) core.linkUp(node, node, true, 1);
  return core;
}
