/**
 * The trees of layers: which layers a disk or a snapshot is read through, and which nobody needs any more.
 *
 *     disk "web"            9                      newest, written to
 *     web@tuesday           7                      chain of the disk: 9, 7, 4
 *     web@monday            4 ◀── 8 "web-test"     a clone of web@monday: chain 8, 4
 *
 * Invariants (`checkMap`):
 * - a layer's parent is older: it has a lower id; so there are no circles;
 * - the newest layer of a disk has no children, and is that of no snapshot and no other disk;
 * - the newest layer of a snapshot is that of no other; chains lie within one family;
 * - a layer that is neither a disk's nor a snapshot's newest has children: one, into which it is absorbed, or several, or one that
 *   is being absorbed itself or that absorbs another one: then its turn comes later;
 * - a layer is absorbed only into a child that is not, and into one child only one is absorbed at a time.
 *
 * So pairs (a layer, and the child that it is absorbed into) never share a layer, and all that has to be known to copy either
 * is the other. A layer goes when **every** storage node of the map has absorbed it, whether it is up or not: one that comes back
 * without having done so would have a child that lacks what the others' have, under the same stamp. Space comes back without
 * waiting for that; who keeps a dead node in the map keeps layers with it.
 *
 * @module
 */

import { disksWithData, storageNodes } from "./queries.ts";
import type { ClusterMap, DiskEntry, LayerEntry, MapEffect, TrashEntry } from "./model.ts";

/**
 * Finds a layer by its id.
 *
 * @param layers sorted by id, as a map's
 */
export function findLayer(layers: readonly LayerEntry[], id: number): LayerEntry | undefined {
  let low = 0;
  let high = layers.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (layers[middle].id < id) low = middle + 1;
    else high = middle;
  }
  return layers[low]?.id === id ? layers[low] : undefined;
}

/** Layers that a layer is read through, newest first: itself, its parent, and so on; a new array. */
export function chainOf(layers: readonly LayerEntry[], id: number): number[] {
  const chain: number[] = [];
  for (let at = findLayer(layers, id); at !== undefined; at = findLayer(layers, at.parent)) {
    chain.push(at.id);
  }
  return chain;
}

/** A new layer at the end: ids rise. */
export function withLayer(
  layers: readonly LayerEntry[],
  id: number,
  parent: number,
): readonly LayerEntry[] {
  return [...layers, { id, parent, absorbedBy: null }];
}

/** What of a map is about layers. */
type Parts = Pick<ClusterMap, "disks" | "trash" | "layers" | "nodes">;

/**
 * Finds out what nobody needs any more: layers without children go, those with one child begin to be absorbed, those that every
 * node has absorbed end.
 *
 * @param parts of the map as a command has left it
 * @returns what is other now, and the effects
 */
export function collectLayers(
  parts: Parts,
): { fields: Pick<ClusterMap, "disks" | "trash" | "layers">; effects: MapEffect[] } {
  const storage = storageNodes(parts).map((node) => node.id);
  const needed = new Set<number>();
  for (const disk of disksWithData(parts)) {
    needed.add(disk.layers[0]);
    for (const snapshot of disk.snapshots) needed.add(snapshot.layer);
  }
  const layers = new Map(parts.layers.map((layer) => [layer.id, layer]));
  const ended = endAbsorbed(layers, storage);
  const dropped = dropLeaves(layers, needed);
  beginAbsorbing(layers, needed);
  const kept = [...layers.values()];
  const isSame = kept.length === parts.layers.length &&
    kept.every((layer, at) => layer === parts.layers[at]);
  const gone = new Set([...ended, ...dropped]);
  const without = (disk: DiskEntry): DiskEntry =>
    disk.layers.some((layer) => gone.has(layer))
      ? { ...disk, layers: disk.layers.filter((layer) => !gone.has(layer)) }
      : disk;
  const trashed = (entry: TrashEntry): TrashEntry => {
    const disk = without(entry.disk);
    return disk === entry.disk ? entry : { ...entry, disk };
  };
  return {
    fields: {
      layers: isSame ? parts.layers : kept,
      disks: ended.size === 0 ? parts.disks : parts.disks.map(without),
      trash: ended.size === 0 ? parts.trash : parts.trash.map(trashed),
    },
    effects: [...gone].toSorted((a, b) => a - b)
      .map((layer): MapEffect => ({ kind: "layer-dropped", layer })),
  };
}

/** Layers that every node has absorbed are taken out from between their children and parents. */
function endAbsorbed(layers: Map<number, LayerEntry>, storage: readonly number[]): Set<number> {
  const ended = new Set<number>();
  for (const { id, absorbedBy } of layers.values()) {
    if (absorbedBy === null || !storage.every((node) => absorbedBy.includes(node))) continue;
    ended.add(id);
  }
  if (ended.size === 0) return ended;
  for (const layer of layers.values()) {
    let { parent } = layer;
    while (ended.has(parent)) parent = layers.get(parent)!.parent;
    if (parent !== layer.parent) layers.set(layer.id, { ...layer, parent });
  }
  for (const id of ended) layers.delete(id);
  return ended;
}

function dropLeaves(layers: Map<number, LayerEntry>, needed: ReadonlySet<number>): number[] {
  const children = countChildren(layers);
  const dropped: number[] = [];
  // Children have higher ids than their parents: one pass from the newest on finds all.
  for (const layer of [...layers.values()].reverse()) {
    if (needed.has(layer.id) || (children.get(layer.id) ?? 0) > 0) continue;
    layers.delete(layer.id);
    dropped.push(layer.id);
    children.set(layer.parent, (children.get(layer.parent) ?? 0) - 1);
  }
  return dropped;
}

function beginAbsorbing(layers: Map<number, LayerEntry>, needed: ReadonlySet<number>): void {
  const children = countChildren(layers);
  const childOf = new Map<number, LayerEntry>();
  const absorbs = new Set<number>();
  for (const layer of layers.values()) {
    childOf.set(layer.parent, layer);
    const parent = layers.get(layer.parent);
    if (parent !== undefined && parent.absorbedBy !== null) absorbs.add(layer.id);
  }
  for (const layer of [...layers.values()]) {
    if (needed.has(layer.id) || layer.absorbedBy !== null) continue;
    if (children.get(layer.id) !== 1 || absorbs.has(layer.id)) continue;
    const child = childOf.get(layer.id)!;
    if (layers.get(child.id)!.absorbedBy !== null) continue;
    layers.set(layer.id, { ...layer, absorbedBy: [] });
    absorbs.add(child.id);
  }
}

function countChildren(layers: ReadonlyMap<number, LayerEntry>): Map<number, number> {
  const children = new Map<number, number>();
  for (const { parent } of layers.values()) {
    if (parent !== 0) children.set(parent, (children.get(parent) ?? 0) + 1);
  }
  return children;
}

/** The child that a layer is absorbed into; undefined where it is not being absorbed. Looks at all layers. */
export function absorberOf(map: Pick<ClusterMap, "layers">, id: number): LayerEntry | undefined {
  if (findLayer(map.layers, id)?.absorbedBy == null) return undefined;
  return map.layers.find((layer) => layer.parent === id);
}
