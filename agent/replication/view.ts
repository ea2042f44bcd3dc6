/**
 * The cluster map as the data path looks at it: what a chunk's group is, who is in it, whether it may be read or
 * written now, in lookups that allocate nothing. Made anew at each epoch from the one before, of which it shares what is
 * still the same: a change of a few groups costs no more than looking at all of them.
 *
 * Terms: a **member** receives every write (in sync, or joining); an **in-sync** member holds every acknowledged one
 * and may be read. A group is **open** when its in-sync set is to be trusted: nobody in it has crashed with
 * unsynced writes (unclean), and it is not being settled. A layer **absorbs** its parent while nobody else needs that: the two then
 * count as one wherever content is compared or copied (`absorbing.ts`). A layer that is being **flattened** counts as one with all that it is
 * read through (`flattening.ts`).
 *
 * @module
 */
import { mix32 } from "../map/hash.ts";
import {
  chainOf,
  type ClusterMap,
  copiesMinOf,
  type DiskEntry,
  disksOfLayers,
  disksWithData,
  drainingLayer,
  isHolding,
  isOpenGroup,
  type NodeEntry,
  type PgEntry,
  poolOf,
  readerOf,
  settledEpochOf,
  takingOf,
} from "../map/map.ts";
import { pairOf } from "./pairs.ts";

/** A placement group at one epoch. */
export interface GroupView {
  /** Id of its pool. */
  readonly pool: number;
  readonly group: number;
  readonly entry: PgEntry;
  /** In-sync nodes first, then those that join. */
  readonly members: readonly number[];
  /** The in-sync set can be trusted. */
  readonly isOpen: boolean;
  /** Node to read from: this one if it may be, else always the same at one epoch; 0 when there is none. */
  readonly readFrom: number;
}

/** A disk at one epoch. */
export interface DiskView {
  readonly entry: DiskEntry;
  /** Id of the pool that its data is in. */
  readonly pool: number;
  /** The family that has that pool for itself; 0: none. */
  readonly poolFamily: number;
  /** What the placement hash starts from. */
  readonly mix: number;
  readonly groups: readonly GroupView[];
  /** Every node that is a member of one of them. */
  readonly nodes: readonly number[];
  readonly copiesMin: number;
  /** The node that holds the lease, 0: nobody. */
  readonly holder: number;
  /** A layer below the newest into which writes of before a snapshot may still come; 0: none. */
  readonly draining: number;
  /**
   * Snapshots of this disk and of others are taken at one point in time: what is written to the newest layer is not given back before
   * they are complete.
   */
  readonly isHeldBack: boolean;
}

/** See the head of the file. */
export class ClusterView {
  readonly epoch: number;
  readonly self: number;
  readonly map: ClusterMap;
  readonly #disks = new Map<number, DiskView>();
  readonly #nodes = new Map<number, NodeEntry>();
  readonly #pools = new Map<number, readonly GroupView[]>();
  readonly #poolNodes = new Map<number, readonly number[]>();
  readonly #poolLayers = new Map<number, [layer: number, disk: DiskView][]>();
  /** Disk of each layer: one of those that have it in their chains. */
  readonly #diskOfLayer: ReadonlyMap<number, number>;
  /** The layer that each layer absorbs, and the other way round. */
  readonly #absorbs: ReadonlyMap<number, number>;
  readonly #absorbers: ReadonlyMap<number, number>;
  /** Layers that are being made independent of their parents. */
  readonly #flattened: ReadonlySet<number>;
  readonly #chains: Map<number, readonly number[]>;

  /**
   * @param self this node's id in the map
   * @param before the view that this one follows, if there is one
   */
  constructor(map: ClusterMap, self: number, before: ClusterView | null = null) {
    this.map = map;
    this.epoch = map.epoch;
    this.self = self;
    for (const node of map.nodes) this.#nodes.set(node.id, node);
    const base = before !== null && before.self === self && this.#hasStatesOf(before)
      ? before
      : null;
    for (const { id, pgs } of map.pools) {
      const old = base?.pool(id) ?? NO_GROUPS;
      const isSame = old.length === pgs.length && pgs.every((entry, at) => old[at].entry === entry);
      const groups = isSame ? old : pgs.map((entry, group) => {
        const known = old[group];
        return known?.entry === entry ? known : this.#group(id, group, entry);
      });
      this.#pools.set(id, groups);
      this.#poolNodes.set(id, isSame ? base!.#poolNodes.get(id)! : membersOf(groups));
    }
    const together = countTaken(map);
    for (const entry of disksWithData(map)) {
      const taking = takingOf(entry);
      const pool = poolOf(map, entry);
      const id = pool?.id ?? entry.pool;
      // Whoever reads through an array that stays as it is need not compare it (store/chains.ts).
      Object.freeze(entry.layers);
      const disk: DiskView = {
        entry,
        pool: id,
        poolFamily: pool?.family ?? 0,
        mix: mix32(entry.family),
        groups: this.#pools.get(id) ?? NO_GROUPS,
        nodes: this.#poolNodes.get(id) ?? [],
        copiesMin: copiesMinOf(map, entry),
        holder: entry.lease?.node ?? 0,
        draining: drainingLayer(entry),
        isHeldBack: taking !== undefined && !taking.isAborted &&
          (together.get(taking.taking) ?? 0) > 1,
      };
      this.#disks.set(entry.id, disk);
    }
    if (before !== null && before.map.layers === map.layers) {
      this.#diskOfLayer = before.#diskOfLayer;
      this.#absorbs = before.#absorbs;
      this.#absorbers = before.#absorbers;
      this.#flattened = before.#flattened;
      this.#chains = before.#chains;
      return;
    }
    this.#chains = new Map();
    this.#diskOfLayer = new Map([...disksOfLayers(map)].map(([layer, { id }]) => [layer, id]));
    const absorbs = new Map<number, number>();
    const absorbers = new Map<number, number>();
    const isAbsorbed = new Set<number>();
    for (const { id, absorbedBy } of map.layers) if (absorbedBy !== null) isAbsorbed.add(id);
    for (const { id, parent } of isAbsorbed.size > 0 ? map.layers : []) {
      if (!isAbsorbed.has(parent)) continue;
      absorbs.set(id, parent);
      absorbers.set(parent, id);
    }
    this.#absorbs = absorbs;
    this.#absorbers = absorbers;
    this.#flattened = new Set(
      map.layers.filter(({ flatten }) => flatten !== undefined).map(({ id }) => id),
    );
  }

  /** Whether the nodes, and which of them are up, are those of another view. */
  #hasStatesOf(other: ClusterView): boolean {
    const { nodes } = this.map;
    const { nodes: others } = other.map;
    return nodes === others || (nodes.length === others.length &&
      nodes.every((node, i) => node.id === others[i].id && node.state === others[i].state));
  }

  readonly #isUp = (node: number): boolean => this.#nodes.get(node)?.state === "up";

  #group(pool: number, group: number, entry: PgEntry): GroupView {
    const isOpen = isOpenGroup(entry);
    const readFrom = readerOf({ pg: entry, group, self: this.self, isUp: this.#isUp });
    return { pool, group, entry, members: [...entry.inSync, ...entry.joining], isOpen, readFrom };
  }

  /** A disk by its id, also one in the trash. */
  disk(id: number): DiskView | undefined {
    return this.#disks.get(id);
  }

  /** A disk that has a layer in its chain, or in that of a snapshot: all of them have the same groups. */
  diskOfLayer(layer: number): DiskView | undefined {
    const id = this.#diskOfLayer.get(layer);
    return id === undefined ? undefined : this.#disks.get(id);
  }

  /** Whether a layer is of the family of a disk. */
  isOfFamily(disk: DiskView, layer: number): boolean {
    return this.diskOfLayer(layer)?.entry.family === disk.entry.family;
  }

  /** Whether a disk or a snapshot begins with a layer, or others lie above it: it holds all that it ever held. */
  isReadable(layer: number): boolean {
    return this.#diskOfLayer.has(layer) && !this.#absorbers.has(layer);
  }

  /** Whether a disk's holder may write to a layer. */
  isWritable(disk: DiskView, layer: number): boolean {
    return layer === disk.entry.layers[0] || (layer === disk.draining && layer !== 0);
  }

  /** Whether nobody can write to any of some layers, and their replicas are known to agree. */
  isAtRest(disk: DiskView, layers: readonly number[]): boolean {
    const isWritable = layers.some((layer) => this.isWritable(disk, layer));
    return !isWritable || (disk.entry.lease === null && this.isInOrder(disk));
  }

  /** Whether replicas differ by no more than what is on its way from a holder that lives: none has left anything behind. */
  isInOrder({ entry: { lease, generation, settled } }: DiskView): boolean {
    const holder = lease === null ? undefined : this.node(lease.node);
    return settled >= (isHolding(holder, lease) ? generation - 1 : generation);
  }

  /** The layers that a layer is read through, newest first; the same array as long as they are the same. */
  chain(layer: number): readonly number[] {
    const disk = this.diskOfLayer(layer);
    if (disk?.entry.layers[0] === layer) return disk.entry.layers;
    let chain = this.#chains.get(layer);
    if (chain === undefined) {
      this.#chains.set(layer, chain = Object.freeze(chainOf(this.map.layers, layer)));
    }
    return chain;
  }

  /** The parent that a layer is absorbing; 0: none. */
  absorbedInto(layer: number): number {
    return this.#absorbs.get(layer) ?? 0;
  }

  /** A layer, and the one that it absorbs, if it does: what they hold together is what has to be compared and copied. */
  pair(layer: number): readonly number[] {
    return pairOf(layer, this.absorbedInto(layer));
  }

  /**
   * Whether what lies below a layer is being copied into it: then what it holds together with all of that is what has to be compared and
   * copied, since some replicas may have copied what others have not.
   */
  isFlattened(layer: number): boolean {
    return this.#flattened.has(layer);
  }

  /** The layers that have to be compared and copied together: see {@linkcode pair} and {@linkcode isFlattened}. */
  together(layer: number): readonly number[] {
    return this.isFlattened(layer) ? this.chain(layer) : this.pair(layer);
  }

  /** The child into which a layer is being absorbed; 0: it is not. */
  absorberOf(layer: number): number {
    return this.#absorbers.get(layer) ?? 0;
  }

  /** Layers that are being absorbed, each with the one that absorbs it. */
  absorbed(): ReadonlyMap<number, number> {
    return this.#absorbers;
  }

  /** Layers of a pool in the order of their ids, each with its disk. */
  layersOf(pool: number): readonly (readonly [layer: number, disk: DiskView])[] {
    let layers = this.#poolLayers.get(pool);
    if (layers === undefined) {
      layers = [];
      for (const [layer, id] of this.#diskOfLayer) {
        const disk = this.#disks.get(id)!;
        if (disk.pool === pool) layers.push([layer, disk]);
      }
      this.#poolLayers.set(pool, layers.sort((a, b) => a[0] - b[0]));
    }
    return layers;
  }

  /** All disks. */
  disks(): IterableIterator<DiskView> {
    return this.#disks.values();
  }

  /** A node by its id. */
  node(id: number): NodeEntry | undefined {
    return this.#nodes.get(id);
  }

  /** Groups of a pool, by number. */
  pool(id: number): readonly GroupView[] {
    return this.#pools.get(id) ?? NO_GROUPS;
  }

  /** A group by what {@linkcode keyOf} has made of it. */
  groupOfKey(key: number): GroupView | undefined {
    return this.pool(Math.floor(key / GROUPS_MAX))[key % GROUPS_MAX];
  }

  /** All pools. */
  pools(): IterableIterator<readonly GroupView[]> {
    return this.#pools.values();
  }

  /** The chunks of a disk that are in a group are those with this remainder, by the number of groups. */
  firstChunk(disk: DiskView, group: number): number {
    return (group - disk.mix) & (disk.groups.length - 1);
  }

  /** The newest epoch in which a group was settled that held data of a disk then: `settledEpochOf` of `map/queries.ts`. */
  settledEpochOf(disk: DiskView, group: GroupView): number {
    return settledEpochOf(disk.entry, group.entry, disk.poolFamily);
  }

  /** Group of a chunk of a disk: `pgOf` of `map/hash.ts`. */
  groupOf(disk: DiskView, chunk: number): GroupView {
    return disk.groups[(disk.mix + chunk) & (disk.groups.length - 1)];
  }
}

/** How many snapshots were begun together, by the epoch in which they were. */
function countTaken(map: ClusterMap): Map<number, number> {
  const together = new Map<number, number>();
  for (const disk of map.disks) {
    const taking = takingOf(disk)?.taking ?? 0;
    if (taking !== 0) together.set(taking, (together.get(taking) ?? 0) + 1);
  }
  return together;
}

const NO_GROUPS: readonly GroupView[] = [];

/** Groups of one pool, at the most. */
const GROUPS_MAX = 65536;

/** One number for a group among those of all pools. */
export function keyOf(pool: number, group: number): number {
  return pool * GROUPS_MAX + group;
}

/** Every node that is a member of one of the groups. */
function membersOf(groups: readonly GroupView[]): readonly number[] {
  const nodes = new Set<number>();
  for (const { members } of groups) for (const node of members) nodes.add(node);
  return [...nodes];
}
