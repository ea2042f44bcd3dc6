/**
 * Reads through many snapshots beside reads of a disk without any: `deno run -A tests/bench/chains_bench.ts [LAYERS]`.
 *
 * One process, the real store on a file in the page cache, 32 reads at a time. What is compared lies on the disk in the same
 * way: the same blocks, written in the same order, in one layer or in many. Rounds take turns; what counts is the least processor
 * time of each, which others on the machine disturb least.
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
const CHUNKS = 32, DEPTH = 32, ROUNDS = 5;
const ARENA_BYTES = 8 * 1024 * 1024;
const SEGMENT_BYTES = 4 * 1024 * 1024, CAPACITY_BYTES = 1024 * 1024 * 1024;
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

// Written in sequence: in the lowest layer. Written block by block: spread over all of them, or in one.
const SPREAD = 1000, ALONE = 2000;
for (let chunk = 0; chunk < CHUNKS; chunk++) {
  for (let block = 0; block < CHUNK_BLOCKS; block += 256) {
    submit(OperationKind.Write, [1], chunk, block, 256);
  }
}
const places = new Prng(2).shuffle(
  Array.from({ length: CHUNKS * CHUNK_BLOCKS }, (_, place) => place),
);
for (const [first, layer] of [[SPREAD, 0], [ALONE, single]]) {
  places.forEach((place, i) => {
    const into = layer === 0 ? 1 + Math.floor(i * LAYERS / places.length) : layer;
    submit(OperationKind.Write, [into], first + (place >>> 10), place & 1023, 1);
  });
}
until(() => underWay === 0 && store.idle);

/** Microseconds of the processor so far. */
function cpuUs(): number {
  const { user, system } = process.cpuUsage();
  return user + system;
}

/** The same per read. */
function measure(layers: readonly number[], first: number, count: number, reads: number): number {
  const random = new Prng(3);
  const start = cpuUs();
  for (let i = 0; i < reads; i++) {
    const block = random.below(CHUNK_BLOCKS / count) * count;
    submit(OperationKind.Read, layers, first + random.below(CHUNKS), block, count);
  }
  until(() => underWay === 0);
  return (cpuUs() - start) / reads;
}

const frozen = Object.freeze([...chain]);
const cases: Record<string, [layers: readonly number[], first: number][]> = {
  "all in one layer below": [[[1], 0], [chain, 0], [frozen, 0]],
  "spread over all layers": [[[single], ALONE], [chain, SPREAD], [frozen, SPREAD]],
};
for (const [name, of] of Object.entries(cases)) {
  for (const [count, reads] of [[1, 20_000], [16, 5000], [256, 500]]) {
    const best = of.map(() => Infinity);
    for (let round = 0; round < ROUNDS; round++) {
      of.forEach(([layers, first], i) => {
        best[i] = Math.min(best[i], measure(layers, first, count, reads));
      });
    }
    const [alone, many, fixed] = best;
    const more = (us: number) => `${us.toFixed(2)} µs (${((us / alone - 1) * 100).toFixed(1)} %)`;
    console.log(
      `${name}, reads of ${count * 4} KiB: 1 layer ${alone.toFixed(2)} µs, ` +
        `${LAYERS} layers ${more(many)}, in a frozen array ${more(fixed)}`,
    );
  }
}
call((done) => store.close(done));
