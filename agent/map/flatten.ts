/**
 * Making a clone independent of what it was cloned from, while guests use both.
 *
 *     web                 9 ─ 7 ─ 4                  web                 9 ─ 7 ─ 4
 *     web-test            8 ──────┘     ──▶          web-test            8              holds by itself what it was read through to
 *
 *     flatten-disk    the disk's oldest layer of its own (8) is *being flattened*
 *                     every storage node, by itself: what 8 lacks and the chain below has is copied into 8 (replication/flattening.ts)
 *     flattened       a node has done so, synced: its *word*
 *                     all storage nodes have given their words ──▶ 8 has no parent any more
 *     flatten-disk --cancel, or no need any more ──▶ 8 stays as it is: what was copied is the same as what lies below
 *
 * What a layer that is being flattened holds together with the chain below it is the same before, while and after, at every node, whatever
 * it has copied. So replicas are compared and copied through the chain meanwhile (`ClusterView.isFlattened`).
 *
 * Invariants:
 * - A word says: in every group in which the node is in sync, its layer has, durably, everything that the chain below has as data; and
 *   what it has of other groups has no known stamp, so it will be copied whole before it counts.
 * - While a node joins any group of the disk's pool, or is unclean in one, it has no word: its replica is being replaced by one that need
 *   not have copied anything yet. So when the parent is cut off nobody joins who might end with less; who joins later finds nothing but
 *   complete sources, and what it had itself is complete, or of another stamp.
 * - A word that was on its way while the node left and came back, or joined in vain, does not count: that changes a group, and a word
 *   says on which map it rests. Where any group of the pool has changed since, it is given again. The same holds for one from before the flattening was cancelled and begun anew (`since`).
 * - Its disk stays in the same pool: no family gets other copies while a layer of it is being flattened, and the other way
 *   round (`copies.ts`).
 * - A layer that is being flattened is not absorbed into its child before that is over. Others may be absorbed below it, or into it:
 *   that changes nothing in what the chain holds.
 *
 * A storage node that is down is waited for, as with layers that are absorbed: its layer would lack what the others' has, under the same
 * stamps.
 *
 * @module
 */

import { changed, stale, unchanged } from "./change.ts";
import { failure, type Result } from "./errors.ts";
import { collectLayers, findLayer } from "./layers.ts";
import type {
  Applied,
  ClusterMap,
  DiskEntry,
  FlattenDisk,
  Flattened,
  Flattening,
  LayerEntry,
  Pool,
} from "./model.ts";
import { diskMissing, disksWithData, findDisk, findNode, poolOf, poolOfFamily } from "./queries.ts";

/** A layer that is being flattened. */
export type FlattenedLayer = LayerEntry & { readonly flatten: Flattening };

/** Layers that are being flattened, by the ids of the disks for which they are. */
export function flattenedLayers(map: Pick<ClusterMap, "layers">): Map<number, FlattenedLayer> {
  const layers = new Map<number, FlattenedLayer>();
  for (const layer of map.layers) {
    if (layer.flatten !== undefined) layers.set(layer.flatten.disk, layer as FlattenedLayer);
  }
  return layers;
}

/** The layer of a disk that is being flattened for it; undefined: none is. */
export function flattenedLayer(
  map: Pick<ClusterMap, "layers">,
  disk: DiskEntry,
): FlattenedLayer | undefined {
  return flattenedLayers(map).get(disk.id);
}

/** Carries out `flatten-disk`. */
export function flattenDisk(map: ClusterMap, command: FlattenDisk): Result<Applied> {
  const disk = findDisk(map, command.disk);
  if (disk === undefined) return { ok: false, error: diskMissing(command.disk) };
  const before = flattenedLayer(map, disk);
  if (command.cancel === true) {
    return before === undefined ? unchanged(map) : withLayers(map, (layer) => {
      const { flatten: _, ...rest } = layer;
      return layer === before ? rest : layer;
    });
  }
  if (before !== undefined) return unchanged(map);
  if (poolOfFamily(map, disk.family) !== undefined) {
    return failure(
      "busy",
      `the copies of disk ${disk.name} and of those that share data with it are being changed`,
      "try again when that is done: 'kelpie disk info' says how far it is",
    );
  }
  const { id, parent } = clonePoint(map, disk);
  if (parent === 0) {
    return failure(
      "invalid",
      `disk ${disk.name} goes on from no other disk: there is nothing to make it independent of`,
      "what 'kelpie disk tree' shows as shared, it shares with its own snapshots and with clones of them",
    );
  }
  const layer = findLayer(map.layers, id)!;
  if (layer.absorbedBy !== null || layer.flatten !== undefined) {
    return failure(
      "busy",
      `the oldest layer of disk ${disk.name} is being merged or flattened for another disk`,
      "try again when that is done",
    );
  }
  const flatten = { disk: disk.id, since: map.epoch + 1, by: NOBODY };
  return withLayers(map, (each) => each === layer ? { ...each, flatten } : each);
}

const NOBODY: readonly number[] = [];

/**
 * Where a disk hangs on others: its oldest layer of its own, and that one's parent.
 *
 *     disk      20 ─ 14 ─ 8 ─ 7 ─ 4         14: oldest layer that is the disk's or a snapshot's of it; 8: nobody else's either
 *     others                  7 ─ 4         so 8 is cut off 7
 *
 * @param shared {@linkcode sharedLayers} of the map, for who asks about many disks
 * @returns parent 0: it shares nothing
 */
export function clonePoint(
  map: Pick<ClusterMap, "layers" | "disks" | "trash">,
  disk: DiskEntry,
  shared: ReadonlySet<number> = sharedLayers(map),
): { readonly id: number; readonly parent: number } {
  const own = new Set([disk.layers[0], ...disk.snapshots.map(({ layer }) => layer)]);
  const { layers } = disk;
  let at = layers.findLastIndex((layer) => own.has(layer));
  while (at + 1 < layers.length && !shared.has(layers[at + 1])) at++;
  return { id: layers[at], parent: layers[at + 1] ?? 0 };
}

/** Layers that more than one disk needs, itself or for a snapshot. Looks at each layer twice at the most. */
export function sharedLayers(
  map: Pick<ClusterMap, "layers" | "disks" | "trash">,
): ReadonlySet<number> {
  const parents = new Map(map.layers.map(({ id, parent }) => [id, parent]));
  const users = new Map<number, number>();
  const shared = new Set<number>();
  for (const disk of disksWithData(map)) {
    for (const top of [disk.layers[0], ...disk.snapshots.map(({ layer }) => layer)]) {
      // What lies below one that is shared is shared, too.
      for (let at = top; at !== 0 && !shared.has(at); at = parents.get(at) ?? 0) {
        const user = users.get(at);
        if (user === disk.id) break;
        if (user === undefined) users.set(at, disk.id);
        else shared.add(at);
      }
    }
  }
  return shared;
}

function withLayers(map: ClusterMap, change: (layer: LayerEntry) => LayerEntry): Result<Applied> {
  const collected = collectLayers({ ...map, layers: map.layers.map(change) });
  return changed(map, collected.fields, collected.effects);
}

/** Carries out `flattened`: takes down a node's word. */
export function flattened(map: ClusterMap, command: Flattened): Result<Applied> {
  const { node: id, epoch } = command;
  const node = findNode(map, id);
  if (node === undefined || node.incarnation !== command.incarnation) {
    return stale(`node ${id} speaks of a run that is over`);
  }
  if (!Number.isSafeInteger(epoch) || epoch < 0 || epoch > map.epoch) {
    return failure("invalid", `there has been no map of epoch ${epoch} yet`);
  }
  const poolOfDisk = poolsOfDisks(map);
  const mayCount = new Map<Pool | undefined, boolean>();
  const isMeant = ({ id: layer, flatten }: LayerEntry): boolean => {
    const isNew = flatten !== undefined && command.layers.includes(layer) &&
      flatten.since <= epoch && !flatten.by.includes(id);
    if (!isNew) return false;
    const pool = poolOfDisk.get(flatten.disk);
    let may = mayCount.get(pool);
    if (may === undefined) mayCount.set(pool, may = isSettledSince(pool, id, epoch));
    return may;
  };
  if (!map.layers.some(isMeant)) return unchanged(map);
  return withLayers(map, (layer) =>
    isMeant(layer)
      ? {
        ...layer,
        flatten: {
          ...layer.flatten!,
          by: [...layer.flatten!.by, id].toSorted((a, b) => a - b),
        },
      }
      : layer);
}

/** Whether a node joins no group of a pool, is unclean in none, and none has changed since an epoch: in between it may have been away, or here. */
function isSettledSince(pool: Pool | undefined, node: number, epoch: number): boolean {
  const pgs = pool?.pgs ?? [];
  return pgs.every(({ changedEpoch }) => changedEpoch <= epoch) && !unsettledNodes(pool).has(node);
}

/** Nodes that join a group of a pool, or are unclean in one. */
export function unsettledNodes(pool: Pool | undefined): Set<number> {
  const nodes = new Set<number>();
  for (const { joining, unclean } of pool?.pgs ?? []) {
    for (const node of joining) nodes.add(node);
    for (const node of unclean) nodes.add(node);
  }
  return nodes;
}

function poolsOfDisks(map: ClusterMap): Map<number, Pool | undefined> {
  return new Map(map.disks.map((disk) => [disk.id, poolOf(map, disk)]));
}

/**
 * Takes back the words of nodes whose replicas are not what they were any more: see the head of the file. For every change of the map.
 *
 * @param before the map before
 * @param map the one after it, of another epoch
 */
export function withoutWords(before: ClusterMap, map: ClusterMap): ClusterMap {
  if (before.pools === map.pools || !map.layers.some(({ flatten }) => flatten !== undefined)) {
    return map;
  }
  const poolOfDisk = poolsOfDisks(map);
  const unsettled = new Map<Pool | undefined, Set<number>>();
  let isOther = false;
  const layers = map.layers.map((layer) => {
    const { flatten } = layer;
    if (flatten === undefined) return layer;
    const pool = poolOfDisk.get(flatten.disk);
    let nodes = unsettled.get(pool);
    if (nodes === undefined) unsettled.set(pool, nodes = unsettledNodes(pool));
    const by = flatten.by.filter((node) => !nodes.has(node));
    if (by.length === flatten.by.length) return layer;
    isOther = true;
    return { ...layer, flatten: { ...flatten, by } };
  });
  return isOther ? { ...map, layers } : map;
}
