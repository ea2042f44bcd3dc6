/**
 * What a check of disks does about replicas that are wrong, done to replicas that are not: it must harm nobody, whenever it comes and
 * whatever else happens. By chances of its own.
 *
 *     a chunk loses its stamp, and is copied from another replica in    ─▶ it is what it was, or what guests wrote meanwhile,
 *     sync, as if it lacked writes                                          and gets a stamp again
 *     a block is replaced by what it was when it was looked at, by a
 *     replica that may have got other writes since, from another one    ─▶ nothing that guests wrote meanwhile is undone
 *
 * @module
 */
import { BLOCK_BYTES, CHUNK_BLOCKS, CHUNK_BYTES } from "../../agent/base/limits.ts";
import type { Prng } from "../../agent/base/prng.ts";
import { type ClusterMap, type DiskEntry, pgOfChunk, poolOf } from "../../agent/map/map.ts";
import type { Completer } from "../../agent/replication/completing.ts";
import { Stamp } from "../../agent/replication/local_store.ts";
import { Operation, OperationKind } from "../../agent/store/operation.ts";
import { BLOCKS_MAX, type DiskOracle } from "./guest.ts";
import type { SimNode } from "./node.ts";

const WORDS = CHUNK_BLOCKS / 32;

/** What it needs of the run. */
export interface SettlingHost {
  readonly map: ClusterMap | null;
  readonly oracles: readonly DiskOracle[];
  running(): SimNode[];
  note(node: SimNode, message: string, fields: Record<string, unknown>): void;
}

/** See the head of the file. */
export class Settling {
  /** Chunks that were to be copied, and blocks that were to be replaced. */
  lagging = 0;
  told = 0;
  readonly #completers = new Set<Completer>();

  constructor(readonly host: SettlingHost, readonly random: Prng) {}

  /** Chunks that were copied. */
  get completed(): number {
    return [...this.#completers].reduce((sum, { completed }) => sum + completed, 0);
  }

  /** Does one of the two, or neither. */
  step(): void {
    const { map } = this.host;
    if (map === null || map.level < 2) return;
    const { random } = this;
    const oracle = random.pick(this.host.oracles);
    const disk = map.disks.find(({ id }) => id === oracle.id);
    if (disk === undefined) return;
    const offset = random.pick(oracle.places) + random.below(BLOCKS_MAX) * BLOCK_BYTES;
    const chunk = Math.floor(offset / CHUNK_BYTES);
    const { inSync } = poolOf(map, disk)!.pgs[pgOfChunk(map, disk, chunk)];
    const members = this.host.running().filter(({ node }) => inSync.includes(node));
    if (members.length === 0 || inSync.length < 2) return;
    const node = random.pick(members);
    const source = random.pick(inSync.filter((each) => each !== node.node));
    if (random.chance(0.3)) return this.#forgetStamp(node, source, disk, chunk);
    const block = offset / BLOCK_BYTES % CHUNK_BLOCKS;
    const layer = random.pick(disk.layers);
    if (this.#hasOwn(node, layer, chunk, block)) this.#replaceBy(node, source, layer, chunk, block);
  }

  /** What it holds stays: it is only not known any more what that is. */
  #forgetStamp(node: SimNode, source: number, { layers }: DiskEntry, chunk: number): void {
    const process = node.process!;
    const { store, data } = process;
    const [layer] = layers;
    if (data?.hasMap !== true) return;
    const { inSync } = data.view.groupOf(data.view.diskOfLayer(layer)!, chunk).entry;
    const has = (id: number) => {
      const known = this.host.running().find((each) => each.node === id)?.process?.store;
      return known?.hasLayer(layer) === true && known.stampOf(layer, chunk, new Stamp());
    };
    // Where more had lost theirs than have one nobody would know which counts.
    if (!inSync.every(has)) return;
    const operation = new Operation({
      operationDone: ({ result }) => {
        if (result !== 0 || process.isDead) return;
        this.lagging++;
        this.host.note(node, "is told to copy a chunk", { layer, chunk, source });
        this.#completers.add(data.completer);
        data.completer.complete(layer, chunk, source);
      },
    }, 0);
    operation.kind = OperationKind.Stamp;
    operation.layers = [layer];
    operation.chunk = chunk;
    operation.stampUnknown = true;
    store.submit(operation);
    node.turn();
  }

  /** Whether a layer has the block itself: what it only shows would become its own, and another one than others'. */
  #hasOwn({ process }: SimNode, layer: number, chunk: number, block: number): boolean {
    const { store, data } = process!;
    if (data?.hasMap !== true || !store.hasLayer(layer)) return false;
    if (data.view.absorberOf(layer) !== 0) return false;
    const [own, zeros, poisoned] = [0, 0, 0].map(() => new Uint32Array(WORDS));
    store.describeChunk(layer, chunk, own, zeros, poisoned);
    return ((own[block >>> 5] | zeros[block >>> 5]) >>> (block & 31) & 1) !== 0;
  }

  #replaceBy(node: SimNode, source: number, layer: number, chunk: number, block: number): void {
    const process = node.process!;
    const data = process.data!;
    const buffer = data.arena.allocate(BLOCK_BYTES);
    if (buffer < 0) return;
    const operation = new Operation({
      operationDone: ({ result }) => {
        const sum = node.window.kernel.checksum(buffer, BLOCK_BYTES);
        data.arena.release(buffer, BLOCK_BYTES);
        if (result !== 0 || process.isDead) return;
        this.told++;
        const list = [{ block, wrong: sum, right: sum }];
        this.host.note(node, "is told to replace a block", { layer, chunk, block, source });
        data.repairer.replace(layer, chunk, source, list);
      },
    }, 0);
    operation.layers = data.view.chain(layer);
    operation.chunk = chunk;
    operation.block = block;
    operation.blockCount = 1;
    operation.buffer = buffer;
    node.isLookedAt = true;
    process.store.submit(operation);
    node.isLookedAt = false;
    node.turn();
  }
}
