/**
 * Reads through many snapshots beside reads of a disk without any: `deno run -A tests/bench/chains_bench.ts [LAYERS]`.
 *
 * One process, the real store on a file in the page cache, 32 reads at a time. What is compared lies on the disk in the same
 * way: the same blocks, written in the same order, in one layer or in many, so that what differs is how they are found. Short
 * rounds take turns; said is the median over the rounds of what one cost more processor time than the other in the same round, with the
 * quartiles, which others on the machine disturb least.
 *
 * @module
 */
import process from "node:process";
import { Arena } from "../../agent/base/arena.ts";
import { BLOCK_BYTES, CHUNK_BLOCKS } from "../../agent/base/limits.ts";
import { Prng } from "../../agent/base/prng.ts";
import type { Disk, DiskListener, IoVector } from "../../agent/platform/platform.ts";
import { SimulatedMemory } from "../../agent/platform/simulated/memory.ts";
import { Operation, OperationKind } from "../../agent/store/operation.ts";
import { Store } from "../../agent/store/store.ts";

const LAYERS = Number(Deno.args[0] ?? 1000);
const CHUNKS = 32, DEPTH = 32, ROUNDS = 41;
const ARENA_BYTES = 8 * 1024 * 1024;
const SEGMENT_BYTES = 4 * 1024 * 1024, CAPACITY_BYTES = 2 * 1024 * 1024 * 1024;
const window = new SimulatedMemory({ sizeBytes: 64 * 1024 * 1024 }).windows[0];

/** A file whose requests are over at once, and are told at the turn's end. */
class FileDisk implements Disk {
  readonly alignmentBytes = BLOCK_BYTES;
  readonly sizeBytesMax = CAPACITY_BYTES;
  listener!: DiskListener;
  #done: number[] = [];
  constructor(readonly file: Deno.FsFile) {}

  #over(token: number, result: number): void {
    this.#done.push(token, result);
  }
  read(token: number, offset: number, buffer: number, length: number): void {
    this.file.seekSync(offset, Deno.SeekMode.Start);
    this.file.readSync(window.bytes.subarray(buffer, buffer + length));
    this.#over(token, length);
  }
  readScattered(): void {
    throw new Error("not asked for here");
  }
  write(token: number, offset: number, vector: IoVector): void {
    this.file.seekSync(offset, Deno.SeekMode.Start);
    let bytes = 0;
    for (let i = 0; i < vector.count; i++) {
      const at = vector.offsets[i];
      bytes += this.file.writeSync(window.bytes.subarray(at, at + vector.lengths[i]));
    }
    this.#over(token, bytes);
  }
  sync(token: number): void {
    this.#over(token, 0);
  }
  allocate(token: number): void {
    this.#over(token, 0);
  }
  punch(token: number): void {
    this.#over(token, 0);
  }
  deliver(): boolean {
    const done = this.#done;
    this.#done = [];
    for (let i = 0; i < done.length; i += 2) this.listener.diskDone(done[i], done[i + 1]);
    return done.length > 0;
  }
}

const path = Deno.makeTempFileSync({ prefix: "kelpie-chains-" });
using file = Deno.openSync(path, { read: true, write: true });
Deno.removeSync(path);
const disk = new FileDisk(file);
const store = new Store({
  disk,
  window,
  arena: new Arena(ARENA_BYTES),
  random: new Prng(1),
  log: { debug() {}, info() {}, warn: console.error, error: console.error },
  scrubBytesPerSecond: 0,
});
disk.listener = store;

let nowMs = 1000;
function until(isDone: () => boolean): void {
  while (!isDone()) {
    store.endTurn();
    if (!disk.deliver()) store.tick(nowMs += 100);
  }
}

function call(start: (done: (error: Error | null) => void) => void): void {
  let isDone = false;
  start((error) => {
    if (error !== null) throw error;
    isDone = true;
  });
  until(() => isDone);
}

let underWay = 0;
const idle: Operation[] = [];
const owner = {
  operationDone(operation: Operation): void {
    if (operation.result < 0) throw new Error(`errno ${operation.result}`);
    underWay--;
    idle.push(operation);
  },
};
for (let i = 0; i < DEPTH; i++) {
  const operation = new Operation(owner, 256);
  operation.buffer = ARENA_BYTES + i * 256 * BLOCK_BYTES;
  idle.push(operation);
}

function submit(
  kind: OperationKind,
  layers: readonly number[],
  chunk: number,
  block: number,
  count: number,
): void {
  until(() => idle.length > 0);
  const operation = idle.pop()!;
  operation.kind = kind;
  operation.layers = layers;
  operation.chunk = chunk;
  operation.block = block;
  operation.blockCount = count;
  if (kind === OperationKind.Write) {
    for (let i = 0; i < count; i++) {
      operation.checksums[i] = window.kernel.checksum(
        operation.buffer + i * BLOCK_BYTES,
        BLOCK_BYTES,
      );
    }
  }
  underWay++;
  store.submit(operation);
}

const id = new Uint8Array(16).fill(1);
call((done) =>
  store.format({
    nodeId: id,
    clusterId: id,
    hostId: id,
    segmentBytes: SEGMENT_BYTES,
    capacityBytes: CAPACITY_BYTES,
  }, done)
);
call((done) => store.open({ hostId: id }, done));
const chain = Array.from({ length: LAYERS }, (_, i) => LAYERS - i);
const single = LAYERS + 1;
let created = 0;
for (const layer of [...chain, single]) store.createLayer(layer, () => created++);
until(() => created === LAYERS + 1);

// Written in sequence: in the lowest layer. Written block by block in one order: into one layer, into three, into all of them.
const ALONE = 1000, FEW = 2000, SPREAD = 3000;
for (let chunk = 0; chunk < CHUNKS; chunk++) {
  for (let block = 0; block < CHUNK_BLOCKS; block += 256) {
    submit(OperationKind.Write, [1], chunk, block, 256);
  }
}
const places = new Prng(2).shuffle(
  Array.from({ length: CHUNKS * CHUNK_BLOCKS }, (_, place) => place),
);
/** Writes the blocks of a region: a share of them into each layer, the lowest first. */
function writeRegion(first: number, layers: readonly number[]): void {
  places.forEach((place, i) => {
    const into = layers[Math.floor(i * layers.length / places.length)];
    submit(OperationKind.Write, [into], first + (place >>> 10), place & 1023, 1);
  });
}
writeRegion(ALONE, [single]);
writeRegion(FEW, [1, LAYERS >>> 1, LAYERS - 1]);
writeRegion(SPREAD, chain.toReversed());
until(() => underWay === 0 && store.idle);

/** Microseconds of the processor so far. */
function cpuUs(): number {
  const { user, system } = process.cpuUsage();
  return user + system;
}

/** One round: requests of one kind, size and region. */
interface Round {
  kind: OperationKind;
  layers: readonly number[];
  first: number;
  count: number;
  requests: number;
}

/** Microseconds of the processor for each of its requests. */
function measure({ kind, layers, first, count, requests }: Round, seed: number): number {
  const random = new Prng(seed);
  const start = cpuUs();
  for (let i = 0; i < requests; i++) {
    const block = random.below(CHUNK_BLOCKS / count) * count;
    submit(kind, layers, first + random.below(CHUNKS), block, count);
  }
  until(() => underWay === 0);
  return (cpuUs() - start) / requests;
}

function quantile(values: readonly number[], part: number): number {
  return values.toSorted((a, b) => a - b)[Math.floor((values.length - 1) * part)];
}

/** Says what the second costs beside the first. */
function compare(name: string, plain: Round, other: Round): void {
  const ratios: number[] = [], times: number[] = [];
  for (let round = -2; round < ROUNDS; round++) {
    const isFirst = (round & 1) === 0;
    const before = isFirst ? measure(plain, round) : 0;
    const of = measure(other, round);
    const to = isFirst ? before : measure(plain, round);
    if (round < 0) continue;
    ratios.push(of / to);
    times.push(to);
  }
  const more = [0.5, 0.25, 0.75].map((part) => ((quantile(ratios, part) - 1) * 100).toFixed(1));
  console.log(
    `${name}: ${quantile(times, 0.5).toFixed(2)} µs without snapshots, ` +
      `with ${LAYERS} ${more[0]} % more (${more[1]} … ${more[2]})`,
  );
}

// First of all: what it costs to learn where a chunk has its blocks.
const frozen = Object.freeze([...chain]);
const read = { kind: OperationKind.Read, layers: frozen, requests: CHUNKS, count: 1 };
for (const [name, first] of [["one layer", 0], ["all layers", SPREAD]] as const) {
  const start = cpuUs();
  for (let i = 0; i < CHUNKS; i++) submit(OperationKind.Read, frozen, first + i, 0, 1);
  until(() => underWay === 0);
  console.log(`first read of a chunk in ${name}: ${((cpuUs() - start) / CHUNKS).toFixed(0)} µs`);
}
for (const [count, requests] of [[1, 4000], [16, 800], [256, 80]]) {
  const size = `reads of ${count * 4} KiB`;
  const round = { ...read, count, requests };
  compare(`${size}, all in one layer below`, { ...round, layers: [1], first: 0 }, {
    ...round,
    first: 0,
  });
  const alone = { ...round, layers: [single], first: ALONE };
  compare(`${size}, spread over 3 layers`, alone, { ...round, first: FEW });
  compare(`${size}, spread over all layers`, alone, { ...round, first: SPREAD });
  compare(`${size}, the same, in an array that is compared`, alone, {
    ...round,
    layers: chain,
    first: SPREAD,
  });
}
// A block that is in the newest layer is found there; writes go to it alone.
const written = { ...read, kind: OperationKind.Write, requests: 1000 };
compare("writes of 4 KiB to the newest layer", { ...written, layers: [single], first: ALONE }, {
  ...written,
  first: SPREAD,
});
call((done) => store.close(done));
