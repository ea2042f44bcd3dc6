/**
 * What a check of disks does about replicas that are wrong, done to replicas that are not: it must harm nobody, whenever it comes and
 * whatever else happens. By chances of its own.
 *
 *     members in sync leave a group, as if they lacked writes             ─▶ they join again
 *     a block is replaced by what it was when it was looked at, by a
 *     replica that may have got other writes since, from another one      ─▶ nothing that guests wrote meanwhile is undone
 *
 * @module
 */
import { BLOCK_BYTES, CHUNK_BLOCKS, CHUNK_BYTES } from "../../agent/base/limits.ts";
import type { Prng } from "../../agent/base/prng.ts";
import { type ClusterMap, pgOfChunk, poolOf } from "../../agent/map/map.ts";
import { Operation } from "../../agent/store/operation.ts";
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
  /** Times that members were asked to leave, and that blocks were to be replaced. */
  asked = 0;
  told = 0;

  constructor(readonly host: SettlingHost, readonly random: Prng) {}

  /** Does one of the two, or neither. */
  step(mayWithdraw: boolean): void {
    const { map } = this.host;
    if (map === null || map.level < 2) return;
    if (mayWithdraw && this.random.chance(0.2)) this.#withdraw(map);
    else this.#replace(map);
  }

  #withdraw(map: ClusterMap): void {
    const nodes = this.host.running();
    if (nodes.length === 0 || map.pools.length === 0) return;
    const by = this.random.pick(nodes);
    const pool = this.random.pick(map.pools);
    const pg = this.random.below(pool.pgs.length);
    const lagging = pool.pgs[pg].inSync.filter(() => this.random.chance(0.5));
    if (lagging.length === 0) return;
    this.asked++;
    const command = {
      kind: "withdraw",
      pool: pool.id,
      pgs: [pg],
      nodes: lagging,
      basedOnEpoch: map.epoch,
    } as const;
    this.host.note(by, "has members leave", { ...command });
    by.process!.control!.propose(command);
  }

  #replace(map: ClusterMap): void {
    const { random } = this;
    const oracle = random.pick(this.host.oracles);
    const disk = map.disks.find(({ id }) => id === oracle.id);
    if (disk === undefined) return;
    const offset = random.pick(oracle.places) + random.below(BLOCKS_MAX) * BLOCK_BYTES;
    const chunk = Math.floor(offset / CHUNK_BYTES);
    const block = offset / BLOCK_BYTES % CHUNK_BLOCKS;
    const { inSync } = poolOf(map, disk)!.pgs[pgOfChunk(map, disk, chunk)];
    const isMember = (node: SimNode) => inSync.includes(node.node);
    const members = this.host.running().filter(isMember);
    if (members.length === 0 || inSync.length < 2) return;
    const node = random.pick(members);
    const source = random.pick(inSync.filter((each) => each !== node.node));
    const layer = random.pick(disk.layers);
    if (this.#hasOwn(node, layer, chunk, block)) this.#replaceBy(node, source, layer, chunk, block);
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
