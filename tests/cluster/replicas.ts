/**
 * Compares what stores hold, chunk by chunk and block by block, after their agents have ended, or changes it. It opens the files with the
 * store's own code and asks no agent.
 *
 * @module
 */
import { assertEquals } from "@std/assert/mod.js";
import { Arena } from "../../agent/base/arena.ts";
import { ARENA_BYTES, BLOCK_BYTES, CHUNK_BLOCKS } from "../../agent/base/limits.ts";
import { LinuxDisk, openStoreFile } from "../../agent/platform/linux/disk.ts";
import { closeFd, SystemError } from "../../agent/platform/linux/libc.ts";
import { LinuxMemory } from "../../agent/platform/linux/memory.ts";
import { LinuxRandom } from "../../agent/platform/linux/random.ts";
import { Ring } from "../../agent/platform/linux/ring.ts";
import type { Kernel } from "../../agent/platform/platform.ts";
import type { StoreError } from "../../agent/store/errors.ts";
import { Operation, OperationKind } from "../../agent/store/operation.ts";
import { Stamp } from "../../agent/replication/local_store.ts";
import { Store } from "../../agent/store/store.ts";
import { readSuperblock, storePath } from "../e2e/superblocks.ts";
import { until } from "../guest/deadline.ts";

/** The lock is somebody else's. */
const EAGAIN = 11;
/** Blocks read at a time. */
const READ_BLOCKS = 256;
/** Chunks listed at a time. */
const LIST_LENGTH = 1024;
/** Turns after which something that must end has not: each is at most 20 ms long. */
const TURNS_MAX = 5000;

/** A store whose agent has ended. */
class OfflineStore {
  readonly #ring = new Ring();
  readonly #disk: LinuxDisk;
  readonly #store: Store;
  readonly #arena: Arena;
  readonly #bytes: Uint8Array;
  readonly #kernel: Kernel;

  /** @param hostId of whom it is; left out: it is nobody's who would go on with it */
  constructor(path: string, hostId: Uint8Array = new Uint8Array(16)) {
    const memory = new LinuxMemory();
    const file = openStoreFile({ path, direct: false, create: false });
    this.#disk = new LinuxDisk({ ring: this.#ring, file, direct: false, memory });
    this.#arena = new Arena(ARENA_BYTES);
    const [window] = memory.windows;
    this.#bytes = window.bytes;
    this.#kernel = window.kernel;
    const quiet = () => {};
    this.#store = new Store({
      disk: this.#disk,
      window,
      arena: this.#arena,
      random: new LinuxRandom(),
      log: { debug: quiet, info: quiet, warn: quiet, error: quiet },
    });
    this.#disk.listener = this.#store;
    this.#call((done) => this.#store.open({ hostId, adopt: true }, done));
  }

  #call(start: (done: (error: StoreError | null) => void) => void): void {
    let ended: StoreError | null | undefined;
    start((error) => ended = error);
    this.#until(() => ended !== undefined);
    if (ended) throw ended;
  }

  #until(isDone: () => boolean): void {
    for (let turn = 0; !isDone(); turn++) {
      if (turn > TURNS_MAX) throw new Error("the store does not answer");
      this.#ring.enter(this.#disk.hasReady ? 0 : 20);
      this.#ring.dispatch();
      this.#disk.deliver();
      this.#store.endTurn();
      this.#disk.deliver();
    }
  }

  get layers(): number[] {
    return this.#store.layers();
  }

  /** Chunks of a layer with their stamps, as text: `chunk: generation.sequence`. */
  list(layer: number): Map<number, string> {
    const found = new Map<number, string>();
    const list = {
      chunks: new Uint32Array(LIST_LENGTH),
      generations: new Uint32Array(LIST_LENGTH),
      sequences: new Float64Array(LIST_LENGTH),
      count: 0,
      next: 0,
    };
    while (list.next >= 0) {
      this.#store.listChunks(layer, list.next, list);
      for (let i = 0; i < list.count; i++) {
        found.set(list.chunks[i], `${list.generations[i]}.${list.sequences[i]}`);
      }
    }
    return found;
  }

  /** Which blocks of the chunk this layer has, as text, and how many. */
  describe(layer: number, chunk: number): { text: string; blocks: number[] } {
    const words = CHUNK_BLOCKS / 32;
    const [data, zeros, poisoned] = [0, 0, 0].map(() => new Uint32Array(words));
    this.#store.describeChunk(layer, chunk, data, zeros, poisoned);
    const blocks: number[] = [];
    for (let block = 0; block < CHUNK_BLOCKS; block++) {
      if ((data[block >>> 5] >>> (block & 31) & 1) === 1) blocks.push(block);
    }
    const text = [data, zeros, poisoned].map((bits) =>
      [...bits].map((word) => word.toString(16)).join(",")
    );
    return { text: text.join(" "), blocks };
  }

  /** Content of a run of blocks of a chunk of one layer; a copy. */
  read(layer: number, chunk: number, block: number): Uint8Array {
    const buffer = this.#arena.allocate(READ_BLOCKS * BLOCK_BYTES);
    let isDone = false;
    const operation = new Operation({ operationDone: () => isDone = true }, 1);
    operation.kind = OperationKind.Read;
    operation.layers = [layer];
    operation.chunk = chunk;
    operation.block = block;
    operation.blockCount = READ_BLOCKS;
    operation.buffer = buffer;
    this.#store.submit(operation);
    this.#until(() => isDone);
    assertEquals(operation.result, 0, `a read of chunk ${chunk} of layer ${layer}`);
    const bytes = this.#bytes.slice(buffer, buffer + READ_BLOCKS * BLOCK_BYTES);
    this.#arena.release(buffer, READ_BLOCKS * BLOCK_BYTES);
    return bytes;
  }

  /** Puts a block into a chunk whose stamp stays: whole, and not what the stamp stands for. */
  overwrite(layer: number, chunk: number, block: number, bytes: Uint8Array): void {
    const buffer = this.#arena.allocate(BLOCK_BYTES);
    this.#bytes.set(bytes, buffer);
    let isDone = false;
    const operation = new Operation({ operationDone: () => isDone = true }, 1);
    operation.kind = OperationKind.Write;
    operation.layers = [layer];
    operation.chunk = chunk;
    operation.block = block;
    operation.blockCount = 1;
    operation.buffer = buffer;
    operation.checksums[0] = this.#kernel.checksum(buffer, BLOCK_BYTES);
    this.#store.submit(operation);
    this.#until(() => isDone);
    assertEquals(operation.result, 0, `a write of chunk ${chunk} of layer ${layer}`);
    this.#arena.release(buffer, BLOCK_BYTES);
  }

  /** Gives a chunk the stamp that it had one write before. */
  lowerStamp(layer: number, chunk: number): void {
    const stamp = new Stamp();
    assertEquals(this.#store.stampOf(layer, chunk, stamp), true, `the stamp of chunk ${chunk}`);
    let isDone = false;
    const operation = new Operation({ operationDone: () => isDone = true }, 0);
    operation.kind = OperationKind.Stamp;
    operation.layers = [layer];
    operation.chunk = chunk;
    operation.generation = stamp.generation;
    operation.sequence = stamp.sequence - 1;
    this.#store.submit(operation);
    this.#until(() => isDone);
    assertEquals(operation.result, 0, `the stamp of chunk ${chunk}`);
  }

  close(): void {
    this.#call((done) => this.#store.close(done));
    this.#disk.close();
    this.#ring.close();
  }
}

/**
 * Compares layers, chunks, stamps and blocks of stores that hold the same.
 *
 * @param paths of the stores' files; no agent may run on them
 * @throws AssertionError that names the first difference
 */
export function compareReplicas(paths: readonly string[]): { chunks: number; blocks: number } {
  const stores = paths.map((path) => new OfflineStore(path));
  const count = { chunks: 0, blocks: 0 };
  try {
    const [first, ...others] = stores;
    for (const other of others) assertEquals(other.layers, first.layers, "layers");
    for (const layer of first.layers) {
      const chunks = first.list(layer);
      for (const other of others) {
        assertEquals(other.list(layer), chunks, `stamps of the chunks of layer ${layer}`);
      }
      for (const chunk of chunks.keys()) {
        const { text, blocks } = first.describe(layer, chunk);
        for (const other of others) {
          assertEquals(other.describe(layer, chunk).text, text, `blocks of chunk ${chunk}`);
        }
        count.chunks++;
        count.blocks += blocks.length;
        for (let block = 0; block < CHUNK_BLOCKS; block += READ_BLOCKS) {
          if (!blocks.some((each) => each >= block && each < block + READ_BLOCKS)) continue;
          const wanted = first.read(layer, chunk, block);
          for (const other of others) {
            const at = other.read(layer, chunk, block).findIndex((byte, i) => byte !== wanted[i]);
            assertEquals(at, -1, `chunk ${chunk} from block ${block} on differs at byte ${at}`);
          }
        }
      }
    }
    return count;
  } finally {
    for (const store of stores) store.close();
  }
}

/** How many chunks of any layer a store has something of; no agent may run on it. */
export function countChunks(path: string): number {
  const store = new OfflineStore(path);
  try {
    return store.layers.reduce((count, layer) => count + store.list(layer).size, 0);
  } finally {
    store.close();
  }
}

/**
 * Makes a replica another one than others, in a way that nothing but comparing them shows: blocks are replaced by whole ones with checksums
 * that match, under the stamps that their chunks have.
 *
 * @param dataDir of a host whose agent has ended, and which has one disk without snapshots
 * @param blocks of the disk, by number
 * @returns resolves when an agent can be started on it
 */
export async function overwriteBlocks(
  dataDir: string,
  blocks: ReadonlyMap<number, Uint8Array>,
): Promise<void> {
  await changeStore(dataDir, (store, layer) => {
    for (const [number, bytes] of blocks) {
      const block = number % CHUNK_BLOCKS;
      store.overwrite(layer, (number - block) / CHUNK_BLOCKS, block, bytes);
    }
  });
}

/**
 * Makes a replica one that lacks the last write of a chunk: a block is what it was before, and so is the stamp.
 *
 * @param dataDir of a host whose agent has ended, and which has one disk without snapshots
 * @param number of the block in the disk
 * @param before what it was
 * @returns resolves when an agent can be started on it
 */
export async function forgetWrite(
  dataDir: string,
  number: number,
  before: Uint8Array,
): Promise<void> {
  await changeStore(dataDir, (store, layer) => {
    const block = number % CHUNK_BLOCKS;
    const chunk = (number - block) / CHUNK_BLOCKS;
    store.overwrite(layer, chunk, block, before);
    store.lowerStamp(layer, chunk);
  });
}

async function changeStore(
  dataDir: string,
  change: (store: OfflineStore, layer: number) => void,
): Promise<void> {
  const store = new OfflineStore(storePath(dataDir), readSuperblock(dataDir).hostId);
  try {
    const [layer, ...others] = store.layers;
    assertEquals(others, [], "layers");
    change(store, layer);
  } finally {
    store.close();
  }
  await until(() => isUnlocked(storePath(dataDir)), {
    timeoutMs: 60_000,
    what: () => `${dataDir} stays locked`,
  });
}

/** The kernel takes a ring apart after it was closed, and holds the file, with its lock, until then. */
function isUnlocked(path: string): boolean {
  try {
    closeFd(openStoreFile({ path, direct: false, create: false }).fd);
    return true;
  } catch (error) {
    if (error instanceof SystemError && error.code === EAGAIN) return false;
    throw error;
  }
}
