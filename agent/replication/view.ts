/**
 * The cluster map as the data path looks at it: what a chunk's group is, who is in it, whether it may be read or
 * written now, in lookups that allocate nothing. Made anew at each epoch from the one before, of which it shares what is
 * still the same: a change of a few groups costs no more than looking at all of them.
 *
 * Terms: a **member** receives every write (in sync, or joining); an **in-sync** member holds every acknowledged one
 * and may be read. A group is **open** when its in-sync set is to be trusted: nobody in it has crashed with
 * unsynced writes (unclean), and it is not being settled.
 *
 * @module
 */
import { mix32 } from "../map/hash.ts";
import {
  type ClusterMap,
  copiesMinOf,
  type DiskEntry,
  type NodeEntry,
  type PgEntry,
} from "../map/map.ts";

/** A placement group at one epoch. */
export interface GroupView {
  readonly copies: number;
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
  /** What the placement hash starts from. */
  readonly mix: number;
  readonly groups: readonly GroupView[];
  /** Every node that is a member of one of them. */
  readonly nodes: readonly number[];
  readonly copiesMin: number;
  /** The node that holds the lease, 0: nobody. */
  readonly holder: number;
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
  /** Disk of each layer. */
  readonly #layers = new Map<number, DiskView>();

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
    for (const { copies, pgs } of map.pools) {
      const old = base?.pool(copies) ?? NO_GROUPS;
      const isSame = old.length === pgs.length && pgs.every((entry, at) => old[at].entry === entry);
      const groups = isSame ? old : pgs.map((entry, group) => {
        const known = old[group];
        return known?.entry === entry ? known : this.#group(copies, group, entry);
      });
      this.#pools.set(copies, groups);
      this.#poolNodes.set(copies, isSame ? base!.#poolNodes.get(copies)! : membersOf(groups));
    }
    for (const entry of map.disks) {
      const disk: DiskView = {
        entry,
        mix: mix32(entry.family),
        groups: this.#pools.get(entry.copies) ?? NO_GROUPS,
        nodes: this.#poolNodes.get(entry.copies) ?? [],
        copiesMin: copiesMinOf(map, entry),
        holder: entry.lease?.node ?? 0,
      };
      this.#disks.set(entry.id, disk);
      for (const layer of entry.layers) this.#layers.set(layer, disk);
    }
  }

  /** Whether the nodes, and which of them are up, are those of another view. */
  #hasStatesOf(other: ClusterView): boolean {
    const { nodes } = this.map;
    const { nodes: others } = other.map;
    return nodes === others || (nodes.length === others.length &&
      nodes.every((node, i) => node.id === others[i].id && node.state === others[i].state));
  }

  #group(copies: number, group: number, entry: PgEntry): GroupView {
    const isOpen = entry.unclean.length === 0 && !entry.unsettled;
    const { inSync } = entry;
    let readFrom = 0;
    if (isOpen) {
      if (inSync.includes(this.self)) readFrom = this.self;
      else {
        // Spread over the replicas that are up, the same for everyone: their caches then hold different parts.
        const up = inSync.filter((node) => this.#nodes.get(node)?.state === "up");
        const among = up.length > 0 ? up : inSync;
        readFrom = among[group % among.length] ?? 0;
      }
    }
    return { copies, group, entry, members: [...inSync, ...entry.joining], isOpen, readFrom };
  }

  /** A disk by its id. */
  disk(id: number): DiskView | undefined {
    return this.#disks.get(id);
  }

  /** The disk that a layer belongs to. */
  diskOfLayer(layer: number): DiskView | undefined {
    return this.#layers.get(layer);
  }

  /** Layers of a pool in the order of their ids, each with its disk. */
  layersOf(copies: number): readonly (readonly [layer: number, disk: DiskView])[] {
    let layers = this.#poolLayers.get(copies);
    if (layers === undefined) {
      layers = [...this.#layers].filter(([, disk]) => disk.entry.copies === copies);
      this.#poolLayers.set(copies, layers.sort((a, b) => a[0] - b[0]));
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
  pool(copies: number): readonly GroupView[] {
    return this.#pools.get(copies) ?? NO_GROUPS;
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

  /** Group of a chunk of a disk: `pgOf` of `map/hash.ts`. */
  groupOf(disk: DiskView, chunk: number): GroupView {
    return disk.groups[(disk.mix + chunk) & (disk.groups.length - 1)];
  }
}

const NO_GROUPS: readonly GroupView[] = [];

/** Groups of one pool, at the most. */
const GROUPS_MAX = 65536;

/** One number for a group among those of all pools. */
export function keyOf(copies: number, group: number): number {
  return copies * GROUPS_MAX + group;
}

/** Every node that is a member of one of the groups. */
function membersOf(groups: readonly GroupView[]): readonly number[] {
  const nodes = new Set<number>();
  for (const { members } of groups) for (const node of members) nodes.add(node);
  return [...nodes];
}
