/**
 * Drives a store on a simulated disk, beside the model that says what every block may hold.
 *
 * Two machines share nothing but code: one on which the workload runs, one on which possible
 * futures are tried: at a crash point the disk is cloned as a crash might leave it, a second store
 * is opened on the clone, and every block is compared with the model; the workload then goes on as
 * if nothing had happened, or on the clone.
 *
 * @module
 */
import { Arena } from "../../agent/base/arena.ts";
import { BLOCK_BYTES } from "../../agent/base/limits.ts";
import { Prng } from "../../agent/base/prng.ts";
import type { Window } from "../../agent/platform/platform.ts";
import { type CrashOptions, SimulatedDisk } from "../../agent/platform/simulated/disk.ts";
import { SimulatedMemory } from "../../agent/platform/simulated/memory.ts";
import type { StoreTunables } from "../../agent/store/core.ts";
import type { StoreError } from "../../agent/store/errors.ts";
import type { OpenOptions } from "../../agent/store/open.ts";
import { Operation, OperationKind } from "../../agent/store/operation.ts";
import { Store } from "../../agent/store/store.ts";
import {
  ABSENT,
  type FoundChunk,
  KEPT,
  Model,
  type ModelStamp,
  stampName,
  UNKNOWN,
} from "./model.ts";

/** The store's arena; test buffers lie above. */
const ARENA_BYTES = 4 * 1024 * 1024;
/** Operations under way at a time. */
export const SLOTS = 24;
/** Blocks of the largest operation of a workload. */
export const OPERATION_BLOCKS_MAX = 64;
const SLOT_BYTES = OPERATION_BLOCKS_MAX * BLOCK_BYTES;
const EBADMSG = 74;
/** Steps after which something that must end has not. */
const STEPS_MAX = 50_000;

export const HOST = new Uint8Array(16).fill(3);

let machines: Window[] | undefined;
/** Two windows, made once. */
function windowOf(machine: 0 | 1): Window {
  machines ??= [0, 1].map(() => new SimulatedMemory({ sizeBytes: 64 * 1024 * 1024 }).windows[0]);
  return machines[machine];
}

/** What a workload is like. */
export interface Shape {
  segmentBytes: number;
  segments: number;
  layers: number;
  /** Chunk numbers in use. */
  chunks: number[];
  /** Blocks in use of each chunk. */
  blocks: number;
  /** Blocks of the largest operation. */
  operationBlocks: number;
  /** All operations are of that many, at multiples of them, so that records often have the same layout. */
  isEven?: boolean;
  tunables: Partial<StoreTunables>;
}

export const SMALL: Shape = {
  segmentBytes: 128 * 1024,
  segments: 36,
  layers: 3,
  chunks: [0, 5000],
  blocks: 48,
  operationBlocks: 24,
  tunables: {
    checksumCacheBytes: 65536,
    checkpointLogBytes: 512 * 1024,
    readySegments: 2,
    cleanerSegments: 3,
    crashSegments: 4,
    scrubBytesPerSecond: 1024 * 1024,
    scrubPauseMs: 2000,
  },
};

/** A store with its disk on one of the machines. */
export class Bench {
  readonly window: Window;
  store: Store;
  nowMs = 1000;
  readonly warnings: string[] = [];
  /** Blocks are filled with nothing but their stamp: they pack well. */
  isPlain = false;
  readonly #slots: Operation[] = [];
  /** Slots in use. */
  busy = 0;
  /** The crash that its disk has been through may have torn writes, and {@linkcode verify} has not looked yet. */
  mayBeTorn = false;

  constructor(
    readonly machine: 0 | 1,
    readonly disk: SimulatedDisk,
    readonly random: Prng,
    readonly shape: Shape,
  ) {
    this.window = windowOf(machine);
    const note = (message: string) => this.warnings.push(message);
    this.store = new Store({
      disk,
      window: this.window,
      arena: new Arena(ARENA_BYTES),
      random,
      log: { debug() {}, info() {}, warn: note, error: note },
      ...shape.tunables,
    });
    disk.listener = this.store;
  }

  /** Steps until `isDone`. */
  until(isDone: () => boolean, what: string): void {
    for (let step = 0; !isDone(); step++) {
      if (step > STEPS_MAX) {
        throw new Error(`${what} does not end: ${JSON.stringify(this.store.stats())}`);
      }
      this.store.endTurn();
      if (!this.disk.pump() || step % 64 === 63) {
        this.nowMs += 100;
        this.store.tick(this.nowMs);
      }
    }
  }

  /** Runs something that calls back. */
  call(what: string, start: (done: (error: StoreError | null) => void) => void): StoreError | null {
    let result: { error: StoreError | null } | null = null;
    start((error) => result = { error });
    this.until(() => result !== null, what);
    return result!.error;
  }

  format(): void {
    const { segmentBytes, segments } = this.shape;
    const error = this.call("format", (done) =>
      this.store.format({
        nodeId: new Uint8Array(16).fill(1),
        clusterId: new Uint8Array(16).fill(2),
        hostId: HOST,
        segmentBytes,
        capacityBytes: 1024 * 1024 + segments * segmentBytes,
      }, done));
    if (error) throw error;
  }

  open(options: Partial<OpenOptions> = {}): StoreError | null {
    return this.call("open", (done) => this.store.open({ hostId: HOST, ...options }, done));
  }

  /** Opens; throws when it cannot. */
  mustOpen(options: Pick<OpenOptions, "mayHaveLost" | "foundTorn"> = {}): void {
    const error = this.open(options);
    if (error) throw error;
  }

  /** An idle operation with a buffer, or null. */
  take(done: (operation: Operation) => void): Operation | null {
    if (this.busy >= SLOTS) return null;
    this.busy++;
    let operation = this.#slots.pop();
    if (operation === undefined) {
      const owner = {
        operationDone: (finished: Operation) => {
          this.busy--;
          this.#slots.push(finished);
          (finished as TestOperation).done!(finished);
        },
      };
      operation = new TestOperation(owner, OPERATION_BLOCKS_MAX);
      operation.buffer = ARENA_BYTES + (this.busy - 1) * SLOT_BYTES;
    }
    (operation as TestOperation).done = done;
    return operation;
  }

  /** Fills the buffer and checksums of a write. */
  fill(operation: Operation, stamps: number[]): void {
    for (let i = 0; i < stamps.length; i++) {
      const at = operation.buffer + i * BLOCK_BYTES;
      fillBlock(this.window.u32, at >>> 2, stamps[i], this.isPlain ? 0 : STEP);
      operation.checksums[i] = this.window.kernel.checksum(at, BLOCK_BYTES);
    }
  }

  /** One operation from start to end. */
  run(
    kind: OperationKind,
    layers: readonly number[],
    chunk: number,
    block: number,
    count: number,
    stamps: number[] = [],
    stamp: { generation?: number; sequence?: number; unknown?: boolean } = {},
  ): Operation {
    let finished: Operation | null = null;
    const operation = this.take((done) => finished = done)!;
    operation.kind = kind;
    operation.layers = layers;
    operation.chunk = chunk;
    operation.block = block;
    operation.blockCount = count;
    operation.generation = stamp.generation ?? 0;
    operation.sequence = stamp.sequence ?? 0;
    operation.stampUnknown = stamp.unknown ?? false;
    const hasData = kind === OperationKind.Write || kind === OperationKind.Fill;
    if (hasData) this.fill(operation, stamps);
    this.store.submit(operation);
    this.until(() => finished !== null, OperationKindNames[kind]);
    return operation;
  }

  write(layer: number, chunk: number, block: number, stamps: number[]): number {
    return this.run(OperationKind.Write, [layer], chunk, block, stamps.length, stamps).result;
  }

  /** A chunk's stamp, by the model's name for it. */
  stampOf(layer: number, chunk: number): ModelStamp {
    const stamp = { generation: 0, sequence: 0 };
    this.store.stampOf(layer, chunk, stamp);
    return stampName(stamp.generation, stamp.sequence);
  }

  /**
   * What the first `count` blocks of a chunk of one layer hold, holes told from zeros, by two ways
   * that must agree.
   */
  content(layer: number, chunk: number, count: number): number[] {
    const maps = [0, 1, 2].map(() => new Uint32Array(32));
    this.store.describeChunk(layer, chunk, maps[0], maps[1], maps[2]);
    const values: number[] = [];
    while (values.length < count) {
      const blocks = Math.min(OPERATION_BLOCKS_MAX, count - values.length);
      const stamps = this.read([layer], chunk, values.length, blocks);
      if (typeof stamps === "number") throw new Error(`reading layer ${layer}: ${stamps}`);
      values.push(...stamps);
    }
    return values.map((value, block) => {
      const [isData, isZero, isPoisoned] = maps.map((map) => map[block >>> 5] >>> (block & 31) & 1);
      if (isData + isZero + isPoisoned > 1) throw new Error(`block ${block} is in two maps`);
      if (isData !== (value > 0 ? 1 : 0)) throw new Error(`block ${block}: ${value}, ${isData}`);
      return isData + isZero + isPoisoned === 0 ? ABSENT : value;
    });
  }

  sync(): number {
    return this.run(OperationKind.Sync, [], 0, 0, 1).result;
  }

  /** Reads blocks; the stamps, or a negative errno. */
  read(layers: readonly number[], chunk: number, block: number, count: number): number[] | number {
    const operation = this.run(OperationKind.Read, layers, chunk, block, count);
    if (operation.result < 0) return operation.result;
    return this.stamps(operation);
  }

  stamps(operation: Operation): number[] {
    for (let i = 0; i < operation.blockCount && operation.isSummed; i++) {
      const sum = this.window.kernel.checksum(operation.buffer + i * BLOCK_BYTES, BLOCK_BYTES);
      if (sum !== operation.checksums[i]) throw new Error(`block ${i} has another checksum`);
    }
    return Array.from(
      { length: operation.blockCount },
      (_, i) =>
        stampOf(
          this.window.u32,
          operation.buffer + i * BLOCK_BYTES >>> 2,
          this.isPlain ? 0 : STEP,
        ),
    );
  }

  createLayer(id: number): void {
    const error = this.call("createLayer", (done) => this.store.createLayer(id, done));
    if (error) throw error;
  }

  close(): StoreError | null {
    return this.call("close", (done) => this.store.close(done));
  }
}

class TestOperation extends Operation {
  done: ((operation: Operation) => void) | null = null;
}

const OperationKindNames = ["read", "write", "free", "zero", "sync", "stamp", "absorb", "fill"];

/** What makes the words of a block different. */
const STEP = 0x01000193;

/** Content of a block: all of it depends on the stamp, and each sector is different. */
export function fillBlock(u32: Uint32Array, word: number, stamp: number, step: number): void {
  if (stamp === 0) {
    u32.fill(0, word, word + 1024);
    return;
  }
  for (let i = 0; i < 1024; i++) u32[word + i] = stamp ^ i * step;
}

/** The stamp that a block was made from; throws when it is a mix. */
export function stampOf(u32: Uint32Array, word: number, step: number): number {
  const stamp = u32[word];
  for (let i = 1; i < 1024; i++) {
    const expected = stamp === 0 ? 0 : (stamp ^ i * step) >>> 0;
    if (u32[word + i] !== expected) {
      throw new Error(`a block is a mix: word ${i} of the block that begins with ${stamp}`);
    }
  }
  return stamp;
}

/** A new disk for a shape. */
export function makeDisk(machine: 0 | 1, random: Prng, shape: Shape): SimulatedDisk {
  return new SimulatedDisk({
    bytes: windowOf(machine).bytes,
    random,
    sizeBytes: 1024 * 1024 + shape.segments * shape.segmentBytes,
  });
}

/**
 * Compares every block and META value of a store that has just been opened with what the model
 * allows.
 */
export function verify(bench: Bench, model: Model, crashed: boolean): void {
  const { shape, store } = bench;
  const found = new Map<number, FoundChunk[]>(shape.chunks.map((chunk) => [chunk, []]));
  let liveBytes = 0;
  for (const [id] of model.layers) {
    const isThere = store.hasLayer(id);
    if (!isThere && !model.uncertain.has(id)) throw new Error(`layer ${id} is gone`);
    if (!isThere) {
      model.layers.delete(id);
      model.uncertain.delete(id);
      continue;
    }
    if (crashed) model.uncertain.delete(id);
    let dataBlocks = 0;
    for (const chunk of shape.chunks) {
      for (let block = 0; block < shape.blocks; block += OPERATION_BLOCKS_MAX) {
        const count = Math.min(OPERATION_BLOCKS_MAX, shape.blocks - block);
        const stamps = bench.read([id], chunk, block, count);
        if (typeof stamps === "number") throw new Error(`reading layer ${id}: ${stamps}`);
        compare(model, [id], chunk, block, stamps, crashed);
        if (crashed) stamps.forEach((stamp, i) => model.observe(id, chunk, block + i, stamp));
      }
      const values = bench.content(id, chunk, shape.blocks);
      found.get(chunk)!.push({ layer: id, stamp: bench.stampOf(id, chunk), values });
      dataBlocks += values.filter((value) => value > 0).length;
    }
    const bytes = store.layerBytes(id);
    if (bytes !== dataBlocks * BLOCK_BYTES) {
      throw new Error(`layer ${id} counts ${bytes} bytes and has ${dataBlocks} blocks`);
    }
    liveBytes += bytes;
  }
  for (const [chunk, layers] of found) model.observeChunks(chunk, layers, bench.mayBeTorn);
  const stats = store.stats();
  if (stats.deletingLayers === 0 && stats.liveBytes !== liveBytes) {
    throw new Error(`${stats.liveBytes} bytes are live, and the layers have ${liveBytes}`);
  }
  if (crashed) bench.mayBeTorn = false;
  for (const id of store.layers()) {
    if (!model.layers.has(id)) throw new Error(`layer ${id} should not be there`);
  }
  for (const key of model.meta.keys()) {
    const value = store.getMeta(key);
    const text = value === null ? null : new TextDecoder().decode(value);
    if (!model.allowedMeta(key).includes(text)) {
      throw new Error(`META ${key} is ${text?.slice(0, 40)}, of ${text?.length} characters`);
    }
    if (crashed) model.observeMeta(key, text);
  }
}

/** Blocks of the disk that hold something: superblocks and whatever is not zero. */
function rotPlaces(bench: Bench): number[] {
  const { disk, shape } = bench;
  const places = [0, 512 * 1024];
  const end = 1024 * 1024 + shape.segments * shape.segmentBytes;
  for (let at = 1024 * 1024; at < end; at += BLOCK_BYTES) {
    if (disk.peek(at, 8).some((byte) => byte !== 0)) places.push(at);
  }
  // Headers of all kinds are few among the data: damage them more often.
  const heads = places.filter((at) => disk.peek(at, 1)[0] === 0x4b);
  return [...places, ...heads, ...heads, 0, 512 * 1024];
}

/** Where the record with the highest lsn lies. */
function noteOf(disk: SimulatedDisk): number {
  let place = 0, highest = 0;
  for (let at = 1024 * 1024; at < disk.sizeBytesMax; at += BLOCK_BYTES) {
    const head = new DataView(disk.peek(at, 64).buffer);
    if (head.getUint32(0, true) !== 0x4345524b || head.getUint32(32, true) <= highest) continue;
    highest = head.getUint32(32, true);
    place = at;
  }
  return place;
}

/** Reads every block by itself: each must be right, or refused. */
function verifyRot(bench: Bench, model: Model): void {
  for (const id of model.layers.keys()) {
    if (!bench.store.hasLayer(id)) throw new Error(`layer ${id} is gone`);
    for (const chunk of bench.shape.chunks) {
      const stamp = bench.stampOf(id, chunk);
      const allowed = model.allowedStamps(id, chunk);
      if (!allowed.has(stamp)) {
        throw new Error(`stamp of ${id}/${chunk}: ${stamp}, not one of ${[...allowed]}`);
      }
      for (let block = 0; block < bench.shape.blocks; block += 8) {
        const count = Math.min(8, bench.shape.blocks - block);
        const stamps = bench.read([id], chunk, block, count);
        if (typeof stamps !== "number") {
          compare(model, [id], chunk, block, stamps, true);
          continue;
        }
        for (let i = 0; i < count; i++) {
          const one = bench.read([id], chunk, block + i, 1);
          if (typeof one !== "number") compare(model, [id], chunk, block + i, one, true);
          else if (one !== -74) throw new Error(`reading a damaged block: ${one}`);
        }
      }
    }
  }
}

/** Where the header lies of the record that a write brings; −1: it brings none. */
function headerIn(data: Uint8Array): number {
  const magicAt = (at: number) =>
    at + 4 <= data.length ? String.fromCharCode(...data.subarray(at, at + 4)) : "";
  if (magicAt(0) === "KREC") return 0;
  return magicAt(0) === "KELP" && magicAt(BLOCK_BYTES) === "KREC" ? BLOCK_BYTES : -1;
}

function isLost(lost: ReadonlySet<number> | null, values: ReadonlySet<number>): boolean {
  return lost !== null && [...values].some((value) => lost.has(value));
}

/**
 * Reads every block by itself: each must be right, or refused, and refused only if what it should be was in a record that was lost.
 *
 * @returns those that are refused
 */
function verifyLost(bench: Bench, model: Model, lost: ReadonlySet<number>): Set<string> {
  const refused = new Set<string>();
  for (const id of model.layers.keys()) {
    if (!bench.store.hasLayer(id)) throw new Error(`layer ${id} is gone`);
    for (const chunk of bench.shape.chunks) {
      for (let block = 0; block < bench.shape.blocks; block++) {
        const read = bench.read([id], chunk, block, 1);
        if (typeof read !== "number") compare(model, [id], chunk, block, read, true);
        else if (read === -EBADMSG && isLost(lost, model.allowed([id], chunk, block, true))) {
          refused.add(`${id}/${chunk}/${block}`);
        } else throw new Error(`reading block ${block} of ${id}/${chunk}: ${read}`);
      }
    }
  }
  return refused;
}

/** Users' blocks on the disk, those written last first. */
function newestBlocks({ disk, shape }: Bench): { at: number; stamp: number }[] {
  const found: { at: number; stamp: number }[] = [];
  const end = 1024 * 1024 + shape.segments * shape.segmentBytes;
  for (let at = 1024 * 1024; at < end; at += BLOCK_BYTES) {
    const words = new Uint32Array(disk.peek(at, BLOCK_BYTES).buffer);
    const isWhole = words[0] !== 0 &&
      words.every((word, i) => word === (words[0] ^ i * STEP) >>> 0);
    if (isWhole) found.push({ at, stamp: words[0] });
  }
  return found.sort((a, b) => b.stamp - a.stamp);
}

/**
 * Holds a store with some rotten blocks to the model; see {@linkcode World.checkTailRot}.
 *
 * @param rotten values of which a copy on the disk is damaged
 * @returns all that it holds, to be compared with what it holds later
 */
function verifyTailRot(bench: Bench, model: Model, rotten: ReadonlySet<number>): string {
  const { shape, store } = bench;
  const seen: string[] = [];
  for (const key of model.meta.keys()) {
    const value = store.getMeta(key);
    const text = value === null ? null : new TextDecoder().decode(value);
    if (!model.allowedMeta(key).includes(text)) throw new Error(`META ${key} is ${text}`);
    seen.push(`${key}=${text}`);
  }
  for (const id of model.layers.keys()) {
    if (!store.hasLayer(id)) {
      if (!model.uncertain.has(id)) throw new Error(`layer ${id} is gone`);
      continue;
    }
    for (const chunk of shape.chunks) {
      const stamp = bench.stampOf(id, chunk);
      seen.push(`${id}/${chunk} ${stamp}`);
      for (let block = 0; block < shape.blocks; block++) {
        const read = bench.read([id], chunk, block, 1);
        const allowed = model.allowed([id], chunk, block, true);
        const value = typeof read === "number" ? read : read[0];
        seen.push(`${value}`);
        if (typeof read !== "number" && allowed.has(value)) continue;
        const what = `layer ${id}, chunk ${chunk} under ${stamp}, block ${block}: ${value}, ` +
          `allowed ${[...allowed]}, rotten ${[...rotten]}`;
        if (![...allowed].some((each) => rotten.has(each))) throw new Error(what);
        if (value === -EBADMSG) continue;
        const isOlder = [...allowed].every((each) => each === 0 || value < each);
        if (typeof read === "number" || !isOlder || stamp !== UNKNOWN) throw new Error(what);
      }
    }
  }
  return seen.join();
}

function compare(
  model: Model,
  layers: readonly number[],
  chunk: number,
  block: number,
  stamps: number[],
  crashed: boolean,
): void {
  stamps.forEach((stamp, i) => {
    const allowed = model.allowed(layers, chunk, block + i, crashed);
    if (!allowed.has(stamp)) {
      throw new Error(
        `layers ${layers}, chunk ${chunk}, block ${block + i} holds ${stamp}, not one of ${[
          ...allowed,
        ]}${crashed ? " (after a crash)" : ""}`,
      );
    }
  });
}

/** Whether a crash may leave writes in part; one that was not looked at yet may have. */
function tears({ mayBeTorn, disk }: Bench, options: CrashOptions): boolean {
  const { keep = 0.4, lose = 0.4, processOnly = false } = options;
  return mayBeTorn || processOnly || keep + lose < 1 || disk.faults.fail !== undefined;
}

/** How likely each kind of step of a workload is, in parts of their sum. */
export interface Mix {
  write: number;
  read: number;
  free: number;
  zero: number;
  sync: number;
  layer: number;
  meta: number;
  stamp: number;
  drop: number;
  absorb: number;
  /** Reads through all layers, the newest first, so that what is known of that chain is used again and again. */
  chain: number;
  fill: number;
}

const MIX: Mix = {
  write: 60,
  read: 15,
  free: 8,
  zero: 5,
  sync: 8,
  layer: 1,
  meta: 1,
  stamp: 2,
  drop: 1,
  absorb: 2,
  chain: 0,
  fill: 4,
};

/** A seeded workload on a bench of machine 0. */
export class World {
  bench: Bench;
  readonly model = new Model();
  readonly random: Prng;
  /** Chooses crashes, so that looking at them does not change the workload. */
  readonly crashRandom: Prng;
  crashesChecked = 0;
  acked = 0;
  /** Absorbs that have come back. */
  absorbs = 0;
  /** Fills that have come back. */
  fills = 0;
  /** Values whose record the disk has lost: null where it loses none. See {@linkcode loseRecords}. */
  lost: Set<number> | null = null;
  #stamp = 1;
  #nextLayer = 1;
  #generation = 1;
  #sequence = 0;
  #locked = new Set<string>();
  #mix: Mix;

  constructor(seed: number, readonly shape: Shape, mix: Partial<Mix> = {}) {
    this.random = new Prng(seed);
    this.crashRandom = this.random.fork();
    this.#mix = { ...MIX, ...mix };
    this.bench = new Bench(0, makeDisk(0, this.random.fork(), shape), this.random.fork(), shape);
    this.bench.format();
    this.bench.mustOpen();
    for (let i = 0; i < shape.layers; i++) {
      const id = this.#nextLayer++;
      this.bench.createLayer(id);
      this.model.layers.set(id, new Map());
    }
  }

  /** One random step. */
  step(): void {
    const { random, bench } = this;
    const draw = random.below(100);
    if (draw < 45) { for (let n = random.between(1, 4); n > 0; n--) this.#submit(); }
    else if (draw < 92) { for (let n = random.between(1, 4); n > 0; n--) bench.disk.pump(); }
    else {
      bench.nowMs += random.between(10, 400);
      bench.store.tick(bench.nowMs);
    }
    if (random.chance(0.8)) bench.store.endTurn();
  }

  #submit(): void {
    const mix = this.#mix;
    let draw = this.random.below(Object.values(mix).reduce((sum, part) => sum + part));
    for (const kind of Object.keys(mix) as (keyof Mix)[]) {
      if ((draw -= mix[kind]) < 0) return this.#begin(kind);
    }
  }

  #begin(kind: keyof Mix): void {
    switch (kind) {
      case "sync":
        return this.#sync();
      case "layer":
        return this.#layer();
      case "meta":
        return this.#meta();
      case "read": {
        const ids = this.random.shuffle([...this.model.layers.keys()]);
        return this.#read(ids.slice(0, this.random.between(1, ids.length)));
      }
      case "chain":
        return this.#read([...this.model.layers.keys()].sort((a, b) => b - a));
      case "stamp":
        return this.#setStamp();
      case "drop":
        return this.#drop();
      case "absorb":
        return this.#absorb();
      case "fill":
        return this.#fill();
      default:
        return this.#change(kind);
    }
  }

  #anyLayer(): number {
    return this.random.pick([...this.model.layers.keys()]);
  }

  #range(countMax: number): { chunk: number; block: number; count: number } {
    const { random, shape } = this;
    if (shape.isEven === true) {
      const block = random.below(shape.blocks / countMax) * countMax;
      return { chunk: random.pick(shape.chunks), block, count: countMax };
    }
    const long = random.chance(0.25);
    const count = random.between(1, long ? countMax : Math.min(3, countMax));
    return {
      chunk: random.pick(shape.chunks),
      block: random.below(shape.blocks - count + 1),
      count,
    };
  }

  #change(kind: "write" | "free" | "zero"): void {
    const layer = this.#anyLayer();
    const { chunk, block, count } = this.#range(this.shape.operationBlocks);
    const names = Array.from({ length: count }, (_, i) => `${layer}/${chunk}/${block + i}`);
    if (this.#locked.has(`${layer}`) || names.some((name) => this.#locked.has(name))) return;
    const values = names.map(() => kind === "write" ? this.#stamp++ : kind === "free" ? ABSENT : 0);
    const { bench, model } = this;
    const operation = bench.take((done) => {
      for (const name of names) this.#locked.delete(name);
      if (done.result < 0) return this.#failed(done);
      this.acked++;
      model.ack(changes);
    });
    if (operation === null) return;
    for (const name of names) this.#locked.add(name);
    // Mostly as a disk's holder writes; sometimes as repair does, or to a chunk that is not whole yet.
    const draw = this.random.below(8);
    operation.generation = draw === 0 ? 0 : this.#generation;
    operation.sequence = draw === 0 ? 0 : ++this.#sequence;
    operation.stampUnknown = draw === 1;
    const stamp = draw === 0
      ? KEPT
      : draw === 1
      ? UNKNOWN
      : stampName(operation.generation, operation.sequence);
    const changes = model.begin(layer, chunk, block, values, stamp);
    operation.kind = kind === "write"
      ? OperationKind.Write
      : kind === "free"
      ? OperationKind.Free
      : OperationKind.Zero;
    operation.layers = [layer];
    operation.chunk = chunk;
    operation.block = block;
    operation.blockCount = count;
    if (kind === "write") bench.fill(operation, values);
    bench.store.submit(operation);
  }

  #setStamp(): void {
    const layer = this.#anyLayer();
    const chunk = this.random.pick(this.shape.chunks);
    if (this.#locked.has(`${layer}`)) return;
    const name = `${layer}/stamp/${++this.#sequence}`;
    const { bench, model } = this;
    const operation = bench.take((done) => {
      this.#locked.delete(name);
      if (done.result < 0) return this.#failed(done);
      model.ack(changes);
    });
    if (operation === null) return;
    this.#locked.add(name);
    const isKnown = this.random.chance(0.8);
    operation.kind = OperationKind.Stamp;
    operation.layers = [layer];
    operation.chunk = chunk;
    operation.generation = isKnown ? this.#generation : 0;
    operation.sequence = isKnown ? this.#sequence : 0;
    operation.stampUnknown = false;
    const stamp = stampName(operation.generation, operation.sequence);
    const changes = model.begin(layer, chunk, 0, [], stamp);
    bench.store.submit(operation);
  }

  /** One layer takes over a chunk of an older one, mostly of the one right below, whatever is under way there. */
  #absorb(): void {
    const { bench, model, random } = this;
    const ids = [...model.layers.keys()].filter((id) => !this.#locked.has(`${id}`));
    ids.sort((a, b) => a - b);
    if (ids.length < 2) return;
    const at = random.between(1, ids.length - 1);
    const into = ids[at];
    const from = random.chance(0.8) ? ids[at - 1] : ids[random.below(at)];
    const chunk = random.pick(this.shape.chunks);
    const names = [into, from].map((id) => `${id}/absorb/${++this.#sequence}`);
    const operation = bench.take((done) => {
      for (const name of names) this.#locked.delete(name);
      if (done.result < 0) return this.#failed(done);
      this.absorbs++;
      model.ack(changes);
    });
    if (operation === null) return;
    for (const name of names) this.#locked.add(name);
    const changes = model.beginAbsorb(into, from, chunk, this.shape.blocks);
    operation.kind = OperationKind.Absorb;
    operation.layers = [into, from];
    operation.chunk = chunk;
    bench.store.submit(operation);
  }

  /** What of a range is a hole is filled, mostly under a stamp that is not the newest. */
  #fill(): void {
    const layer = this.#anyLayer();
    const range = this.#range(this.shape.operationBlocks);
    const { bench, model, random } = this;
    // Of nothing, for the stamp.
    const isEmpty = random.chance(0.15);
    const { chunk } = range;
    const block = isEmpty ? 0 : range.block;
    const count = isEmpty ? 0 : range.count;
    const names = Array.from({ length: count }, (_, i) => `${layer}/${chunk}/${block + i}`);
    if (this.#locked.has(`${layer}`) || names.some((name) => this.#locked.has(name))) return;
    const operation = bench.take((done) => {
      for (const name of names) this.#locked.delete(name);
      if (done.result < 0) return this.#failed(done);
      this.fills++;
      model.ack(changes);
    });
    if (operation === null) return;
    for (const name of names) this.#locked.add(name);
    const values = names.map(() => this.#stamp++);
    const isKnown = isEmpty || random.chance(0.7);
    operation.generation = isKnown ? this.#generation : 0;
    operation.sequence = isKnown ? random.between(1, ++this.#sequence) : 0;
    operation.stampUnknown = false;
    const stamp = isKnown ? stampName(operation.generation, operation.sequence) : KEPT;
    const changes = model.beginFill(layer, chunk, block, values, stamp);
    operation.kind = OperationKind.Fill;
    operation.layers = [layer];
    operation.chunk = chunk;
    operation.block = block;
    operation.blockCount = count;
    bench.fill(operation, values);
    bench.store.submit(operation);
  }

  #drop(): void {
    const layer = this.#anyLayer();
    const chunk = this.random.pick(this.shape.chunks);
    const values = new Array(this.shape.blocks).fill(ABSENT);
    const names = values.map((_, block) => `${layer}/${chunk}/${block}`);
    if (this.#locked.has(`${layer}`) || names.some((name) => this.#locked.has(name))) return;
    for (const name of names) this.#locked.add(name);
    const { bench, model } = this;
    const changes = model.begin(layer, chunk, 0, values, UNKNOWN);
    bench.store.dropChunk(layer, chunk, (error) => {
      for (const name of names) this.#locked.delete(name);
      // Only when the store is closed while it is full.
      if (error === null) model.ack(changes);
    });
  }

  /** Called when an operation fails; tests that inject errors override it. */
  onFailure: (operation: Operation) => void = (operation) => {
    throw new Error(`operation ${OperationKindNames[operation.kind]} failed: ${operation.result}`);
  };

  #failed(operation: Operation): void {
    this.onFailure(operation);
  }

  #read(layers: readonly number[]): void {
    const { bench, model, random } = this;
    if (layers.some((id) => this.#locked.has(`${id}`))) return;
    const { chunk, block, count } = this.#range(this.shape.operationBlocks);
    const operation = bench.take((done) => {
      const isRefused = done.result === -EBADMSG &&
        before.some((values, i) =>
          isLost(this.lost, values) ||
          isLost(this.lost, model.allowed(layers, chunk, block + i, false))
        );
      if (isRefused) return;
      if (done.result < 0) return this.#failed(done);
      // Whatever was allowed at any moment while it was under way: values only grow stale by later
      // changes.
      const after = Array.from(
        { length: count },
        (_, i) => model.allowed(layers, chunk, block + i, false),
      );
      bench.stamps(done).forEach((stamp, i) => {
        if (!before[i].has(stamp) && !after[i].has(stamp)) {
          throw new Error(`read of layers ${layers}, chunk ${chunk}, block ${block + i}: ${stamp}`);
        }
      });
    });
    if (operation === null) return;
    // Nothing may change under it, so that the check is exact.
    const names = layers.flatMap((layer) =>
      Array.from({ length: count }, (_, i) => `${layer}/${chunk}/${block + i}`)
    );
    if (names.some((name) => this.#locked.has(name)) && random.chance(0.5)) {
      // Some reads do race with writes.
    }
    const before = Array.from(
      { length: count },
      (_, i) => model.allowed(layers, chunk, block + i, false),
    );
    operation.kind = OperationKind.Read;
    operation.layers = layers;
    operation.chunk = chunk;
    operation.block = block;
    operation.blockCount = count;
    bench.store.submit(operation);
  }

  #sync(): void {
    const { bench, model } = this;
    const operation = bench.take((done) => {
      if (done.result < 0) return this.#failed(done);
      this.acked++;
      model.synced(clock);
    });
    if (operation === null) return;
    const clock = model.syncBegins();
    operation.kind = OperationKind.Sync;
    bench.store.submit(operation);
  }

  #layer(): void {
    const { bench, model, random, shape } = this;
    const isBusy = (id: number) =>
      [...this.#locked].some((name) => name === `${id}` || name.startsWith(`${id}/`));
    if (model.layers.size > 1 && random.chance(0.5)) {
      const id = this.#anyLayer();
      if (isBusy(id)) return;
      this.#locked.add(`${id}`);
      model.uncertain.add(id);
      bench.store.deleteLayer(id, (error) => {
        if (error) throw error;
        this.#locked.delete(`${id}`);
        model.layers.delete(id);
        model.uncertain.delete(id);
      });
    } else if (model.layers.size < shape.layers + 1) {
      const id = this.#nextLayer++;
      model.layers.set(id, new Map());
      model.uncertain.add(id);
      this.#locked.add(`${id}`);
      bench.store.createLayer(id, (error) => {
        if (error) throw error;
        this.#locked.delete(`${id}`);
        model.uncertain.delete(id);
      });
    }
  }

  #meta(): void {
    const { bench, model, random } = this;
    const key = random.pick(["map", "identity", "a key with ümlauts"]);
    if (this.#locked.has(`meta/${key}`)) return;
    this.#locked.add(`meta/${key}`);
    const length = random.pick([0, 5, 100, 5000, 30000]);
    const text = random.chance(0.15) ? null : `${this.#stamp++}:`.padEnd(length, "x");
    model.beginMeta(key, text);
    const value = text === null ? null : new TextEncoder().encode(text);
    bench.store.setMeta(key, value, (error) => {
      if (error) throw error;
      this.#locked.delete(`meta/${key}`);
      model.ackMeta(key);
    });
  }

  /** Runs on until nothing is under way. */
  drain(): void {
    const { bench } = this;
    bench.until(() => bench.busy === 0 && this.#locked.size === 0 && bench.store.idle, "draining");
  }

  /** All that was done is durable, and the disk says so itself: the log has its note, after a while. */
  sync(): void {
    const { bench, model } = this;
    const upTo = model.syncBegins();
    if (bench.sync() !== 0) throw new Error("the store cannot be synced");
    model.synced(upTo);
    this.drain();
  }

  /** How the next crash goes. */
  #crashOptions(): CrashOptions {
    const random = this.crashRandom;
    const draw = random.below(10);
    // Often everything or nothing, as caches do.
    if (draw === 0) return { keep: 1, lose: 0 };
    if (draw === 1) return { keep: 0, lose: 1 };
    if (draw === 2) return { keep: 0.9, lose: 0, reorder: false };
    if (draw === 3) return { processOnly: true };
    return { keep: random.fraction() * 0.9, lose: random.fraction() * 0.3 };
  }

  /**
   * Looks at what a crash at this moment would leave: opens a second store on it and compares every
   * block, sometimes crashing again while that one opens, or after it has.
   */
  checkCrash(): void {
    this.crashesChecked++;
    const random = this.crashRandom;
    const model = this.model.clone();
    let bench = this.#crashed(this.bench);
    // Crashes inside recovery: as often as it takes.
    for (let tries = 0; tries < 3 && random.chance(0.4); tries++) {
      let isOpen = false;
      bench.store.open({ hostId: HOST }, (error) => {
        if (error) throw error;
        isOpen = true;
      });
      for (let n = random.below(60); n > 0 && !isOpen; n--) {
        bench.store.endTurn();
        bench.disk.pump();
      }
      bench = this.#crashed(bench);
    }
    bench.mustOpen();
    verify(bench, model, true);
    if (random.chance(0.3)) {
      // What a reopened store shows is durable, whatever happens next.
      const again = this.#crashed(bench);
      again.mustOpen();
      verify(again, model, true);
    } else if (random.chance(0.2)) {
      this.#goOn(bench, model);
    }
  }

  /** The process dies, then the power fails somewhere in recovery. */
  checkKillThenPowerLoss(): void {
    this.crashesChecked++;
    const random = this.crashRandom;
    const model = this.model.clone();
    let bench = this.#crashed(this.bench, { processOnly: true });
    let isOpen = false;
    bench.store.open({ hostId: HOST }, (error) => {
      if (error) throw error;
      isOpen = true;
    });
    for (let n = random.below(100); n > 0 && !isOpen; n--) {
      bench.store.endTurn();
      bench.disk.pump();
    }
    bench = this.#crashed(bench, { keep: random.fraction(), lose: random.fraction() });
    bench.mustOpen();
    verify(bench, model, true);
  }

  /** Damages a copy of the disk, which is at rest, and looks whether anything wrong is returned. */
  checkRot(): void {
    const random = this.crashRandom;
    const model = this.model.clone();
    // All that was acknowledged has been synced: draining leaves the store idle.
    const clone = this.bench.disk.crash(random, windowOf(1).bytes, {
      keep: 1,
      lose: 0,
      reorder: false,
    });
    const bench = new Bench(1, clone, random.fork(), this.shape);
    const flips = random.pick([1, 1, 1, 2, 5]);
    // Several at once may hit the last record and the note after it that proves it durable: that
    // cannot be told from a torn tail.
    const note = noteOf(clone);
    const places = rotPlaces(bench).filter((at) => flips === 1 || at !== note);
    for (let n = flips; n > 0; n--) {
      clone.flipBit(random.pick(places) + random.below(BLOCK_BYTES), random.below(8));
    }
    let error = bench.open();
    if (error?.code === "DAMAGED") error = bench.open({ acceptDamage: true });
    else if (error === null) verifyRot(bench, model);
    if (error !== null && error.code !== "DAMAGED" && error.code !== "NOT_A_STORE") throw error;
  }

  /**
   * The power fails, and bits of the newest users' blocks are wrong. Whatever was known to be
   * durable or not: nothing is refused, META that was acknowledged is there, a block whose newest
   * content is not damaged is right, any other is as before or refused, and a chunk with one that is
   * as before says that nobody knows what it holds.
   */
  checkTailRot(): void {
    this.crashesChecked++;
    const random = this.crashRandom;
    const model = this.model.clone();
    const bench = this.#crashed(this.bench);
    const rotten = new Set<number>();
    const blocks = newestBlocks(bench).slice(0, 12);
    for (let n = random.pick([1, 1, 2, 4]); n > 0 && blocks.length > 0; n--) {
      const { at, stamp } = random.pick(blocks);
      if (rotten.has(stamp)) continue;
      bench.disk.flipBit(at + random.below(BLOCK_BYTES), random.below(8));
      rotten.add(stamp);
    }
    bench.mustOpen();
    const seen = verifyTailRot(bench, model, rotten);
    const again = this.#crashed(bench);
    again.mustOpen();
    const later = verifyTailRot(again, model, rotten);
    if (later !== seen) throw new Error(`after another crash: ${later}, not ${seen}`);
  }

  /** A little work on the reopened store, then another crash or a clean close. */
  #goOn(bench: Bench, model: Model): void {
    const random = this.crashRandom;
    const layer = [...model.layers.keys()][0];
    if (layer === undefined) return;
    for (let n = random.between(1, 6); n > 0; n--) {
      const values = Array.from({ length: random.between(1, 8) }, () => this.#stamp++ + 2 ** 30);
      const block = random.below(this.shape.blocks - 8);
      const chunk = this.shape.chunks[0];
      const stamp = { generation: 2 ** 31, sequence: ++this.#sequence };
      const name = stampName(stamp.generation, stamp.sequence);
      const changes = model.begin(layer, chunk, block, values, name);
      const kind = OperationKind.Write;
      const written = bench.run(kind, [layer], chunk, block, values.length, values, stamp);
      if (written.result < 0) throw new Error("write");
      model.ack(changes);
      if (random.chance(0.3)) {
        const clock = model.syncBegins();
        if (bench.sync() < 0) throw new Error("sync");
        model.synced(clock);
      }
    }
    if (random.chance(0.3)) {
      const error = bench.close();
      if (error) throw error;
      model.synced(model.syncBegins());
    }
    const again = this.#crashed(bench);
    again.mustOpen();
    verify(again, model, true);
  }

  #crashed(before: Bench, options: CrashOptions = this.#crashOptions()): Bench {
    const window = windowOf(1);
    const clone = before.disk.crash(this.crashRandom, window.bytes, options);
    const bench = new Bench(1, clone, this.crashRandom.fork(), this.shape);
    bench.mayBeTorn = tears(before, options);
    return bench;
  }

  /** The machine crashes for good; the workload goes on with what is left. */
  crash(): void {
    const options = this.#crashOptions();
    const mayBeTorn = tears(this.bench, options);
    const disk = this.bench.disk.crash(this.crashRandom, windowOf(0).bytes, options);
    this.#reopen(disk, mayBeTorn);
    verify(this.bench, this.model, true);
  }

  /**
   * A clean stop and start, sometimes with work under way: what then still waits for space comes
   * back undone.
   */
  restart(): void {
    if (this.random.chance(0.5)) this.drain();
    const { onFailure, bench } = this;
    this.onFailure = (operation) => {
      if (operation.result !== -19) onFailure(operation);
    };
    const error = bench.close();
    if (error) throw error;
    bench.until(() => bench.busy === 0, "operations under way at the stop");
    this.onFailure = onFailure;
    this.model.synced(this.model.syncBegins());
    const disk = bench.disk.crash(this.crashRandom, windowOf(0).bytes, { keep: 0, lose: 1 });
    this.#reopen(disk, false);
    if (this.lost === null) verify(this.bench, this.model, true);
    else verifyLost(this.bench, this.model, this.lost);
  }

  /**
   * From now on the disk loses the write of a record now and then, without a word: until it is given other faults.
   *
   * @param isWithFirst also the first record of a segment, and the segment's header with it
   */
  loseRecords(chance: number, isWithFirst: boolean): void {
    const lost = this.lost ??= new Set();
    const random = this.crashRandom;
    const loses = (offsetBytes: number, data: Uint8Array) => {
      const header = headerIn(data);
      if (offsetBytes < 1024 * 1024 || header < 0 || (header > 0 && !isWithFirst)) return false;
      if (!random.chance(chance)) return false;
      const words = new Uint32Array(data.slice(header).buffer);
      for (let word = (words[1] >>> 16) * 1024; word < words.length; word += 1024) {
        lost.add(words[word]);
      }
      return true;
    };
    this.bench.disk.faults = { loses };
  }

  /** Looks for all that was lost: by reads, and by a scrub. Everything else is right. */
  checkLost(): void {
    this.crashesChecked++;
    const { bench } = this;
    const found = new Set<string>();
    const scrubbed = (layer: number, chunk: number, block: number) =>
      void found.add(`${layer}/${chunk}/${block}`);
    bench.store.damageListener = scrubbed;
    const error = bench.call("scrub", (done) => bench.store.scrubNow(null, () => {}, done));
    if (error) throw error;
    bench.store.damageListener = null;
    const refused = verifyLost(bench, this.model, this.lost!);
    for (const name of refused) if (!found.has(name)) throw new Error(`scrub missed ${name}`);
    for (const name of found) if (!refused.has(name)) throw new Error(`only scrub refused ${name}`);
  }

  /**
   * Looks at what a crash of a store leaves that is at rest after it had lost records: damage that is reported, or nothing
   * that is wrong.
   */
  checkLostCrash(): void {
    this.crashesChecked++;
    const bench = this.#crashed(this.bench, { keep: 1, lose: 0 });
    const error = bench.open();
    if (error !== null && error.code !== "DAMAGED") throw error;
    if (error === null) verifyLost(bench, this.model.clone(), this.lost!);
  }

  #reopen(disk: SimulatedDisk, mayBeTorn: boolean): void {
    const { boundary } = this.bench.disk;
    disk.boundary = boundary;
    const nowMs = this.bench.nowMs;
    this.bench = new Bench(0, disk, this.random.fork(), this.shape);
    this.bench.nowMs = nowMs;
    this.bench.mayBeTorn = mayBeTorn;
    this.#generation++;
    this.#locked.clear();
    this.bench.mustOpen();
  }
}

/** Runs a test for one seed; a failure names it. */
export function withSeed(seed: number, what: string, run: () => void): void {
  try {
    run();
  } catch (error) {
    throw new Error(
      `${what} failed with seed ${seed}; repeat with: deno run -A tests/store/crash_task.ts --seed ${seed} --only "${what}"`,
      { cause: error },
    );
  }
}
