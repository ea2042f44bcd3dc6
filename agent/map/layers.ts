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
 * - a layer that is being flattened (`flatten.ts`) has a parent, belongs to the chain of the disk that it is flattened for, and is not
 *   absorbed before that is over: who needs it no more waits for its turn.
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
  return layers[placeOf(layers, id)];
}

/** Where a layer is in the list; −1: nowhere. */
function placeOf(layers: readonly LayerEntry[], id: number): number {
  let low = 0;
  let high = layers.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (layers[middle].id < id) low = middle + 1;
    else high = middle;
  }
  return layers[low]?.id === id ? low : -1;
}

/** Layers that a layer is read through, newest first: itself, its parent, and so on; a new array. */
export function chainOf(layers: readonly LayerEntry[], id: number): number[] {
  const chain: number[] = [];
  for (let at = findLayer(layers, id); at !== undefined; at = findLayer(layers, at.parent)) {
    chain.push(at.id);
  }
  return chain;
}

/** For each layer of a map a disk that needs it, itself or for a snapshot: all that need it are of one family. */
export function disksOfLayers(
  map: Pick<ClusterMap, "disks" | "trash" | "layers">,
): Map<number, DiskEntry> {
  const disks = new Map<number, DiskEntry>();
  const parents = new Map(map.layers.map(({ id, parent }) => [id, parent]));
  for (const disk of disksWithData(map)) {
    for (const newest of [disk.layers[0], ...disk.snapshots.map(({ layer }) => layer)]) {
      // A layer that was met before leads to none that was not.
      for (let at = newest; at !== 0 && !disks.has(at); at = parents.get(at) ?? 0) {
        disks.set(at, disk);
      }
    }
  }
  return disks;
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
 * node has absorbed end, and those that every node has flattened are cut off their parents. Looks at every layer and every snapshot.
 *
 * @param parts of the map as a command has left it
 * @returns what is other now, and the effects
 */
export function collectLayers(
  parts: Parts,
): { fields: Pick<ClusterMap, "disks" | "trash" | "layers">; effects: MapEffect[] } {
  const forest = new Forest(parts.layers);
  const storage = storageNodes(parts).map((node) => node.id);
  const hasEnded = forest.end(storage);
  const cut = forest.cut(storage, parts.disks);
  for (const { layers, snapshots } of disksWithData(parts)) {
    forest.need(layers[0]);
    for (const { layer } of snapshots) forest.need(layer);
  }
  forest.dropLeaves();
  forest.endFlattening();
  forest.beginAbsorbing();
  const { layers, gone } = forest.result();
  const without = (disk: DiskEntry): DiskEntry => {
    const last = cut.size === 0 ? -1 : disk.layers.findIndex((layer) => cut.has(layer));
    const kept = last < 0 ? disk.layers : disk.layers.slice(0, last + 1);
    const left = kept.filter((layer) => !gone.has(layer));
    return left.length === disk.layers.length ? disk : { ...disk, layers: left };
  };
  const isOther = hasEnded || cut.size > 0;
  const trashed = (entry: TrashEntry): TrashEntry => {
    const disk = without(entry.disk);
    return disk === entry.disk ? entry : { ...entry, disk };
  };
  return {
    fields: {
      layers,
      // Leaves that go are in nobody's chain.
      disks: isOther ? parts.disks.map(without) : parts.disks,
      trash: isOther ? parts.trash.map(trashed) : parts.trash,
    },
    effects: [...gone].map((layer): MapEffect => ({ kind: "layer-dropped", layer })),
  };
}

/** Has not been absorbed anywhere yet. */
const NOBODY: readonly number[] = [];

/** Whether a list has all ids of another one; both are sorted. */
function hasAll(list: readonly number[], ids: readonly number[]): boolean {
  let at = 0;
  return ids.every((id) => {
    while (at < list.length && list[at] < id) at++;
    return list[at] === id;
  });
}

/**
 * The layers, of which a node has absorbed some more. Lists that were one stay one: thousands of layers may wait for the same nodes.
 *
 * @param ids of layers that are being absorbed, and not by this node yet
 */
export function withAbsorbed(
  layers: readonly LayerEntry[],
  ids: ReadonlySet<number>,
  node: number,
): readonly LayerEntry[] {
  const lists = new Map<readonly number[], readonly number[]>();
  return layers.map((layer) => {
    const { id, absorbedBy } = layer;
    if (absorbedBy === null || !ids.has(id)) return layer;
    let next = lists.get(absorbedBy);
    if (next === undefined) {
      next = [...absorbedBy, node].toSorted((a, b) => a - b);
      lists.set(absorbedBy, next);
    }
    return { ...layer, absorbedBy: next };
  });
}

/** Layers by their places in the list, while some of them go: there are tens of thousands, and a command may not take long. */
class Forest {
  readonly #layers: readonly LayerEntry[];
  /** Places of parents; −1: none. */
  readonly #parents: Int32Array;
  /** How many children each has, of those that are left. */
  readonly #children: Int32Array;
  readonly #isNeeded: Uint8Array;
  readonly #isGone: Uint8Array;
  /** Begins to be absorbed. */
  readonly #begins: Uint8Array;
  /** Is not being flattened any more. */
  readonly #endsFlattening: Uint8Array;
  #isSame = true;

  /** @param layers sorted by id, each above its parent */
  constructor(layers: readonly LayerEntry[]) {
    this.#layers = layers;
    this.#parents = new Int32Array(layers.length);
    this.#children = new Int32Array(layers.length);
    this.#isNeeded = new Uint8Array(layers.length);
    this.#isGone = new Uint8Array(layers.length);
    this.#begins = new Uint8Array(layers.length);
    this.#endsFlattening = new Uint8Array(layers.length);
    for (let at = 0; at < layers.length; at++) {
      const { parent } = layers[at];
      const place = parent === 0 ? -1 : placeOf(layers, parent);
      this.#parents[at] = place;
      if (place >= 0) this.#children[place]++;
    }
  }

  /** Layers that every node has absorbed are taken out from between their children and parents. Says whether there are any. */
  end(storage: readonly number[]): boolean {
    const { length } = this.#layers;
    // Many layers have one list in common.
    const isEverybody = new Map<readonly number[], boolean>();
    let hasEnded = false;
    for (let at = 0; at < length; at++) {
      const { absorbedBy } = this.#layers[at];
      if (absorbedBy === null) continue;
      let isDone = isEverybody.get(absorbedBy);
      if (isDone === undefined) {
        isDone = hasAll(absorbedBy, storage);
        isEverybody.set(absorbedBy, isDone);
      }
      if (!isDone) continue;
      this.#isGone[at] = 1;
      hasEnded = true;
    }
    if (!hasEnded) return false;
    this.#isSame = false;
    // From the oldest on: a parent that is gone has its own parent settled already.
    for (let at = 0; at < length; at++) {
      const parent = this.#parents[at];
      // Its only child takes its place, so the number of the parent's children stays.
      if (parent >= 0 && this.#isGone[parent] === 1) this.#parents[at] = this.#parents[parent];
    }
    return true;
  }

  /**
   * Layers that every node has flattened lose their parents. Those of disks that are gone, or read through them no more, are flattened no
   * longer.
   *
   * @returns ids of those that have no parent any more
   */
  cut(storage: readonly number[], disks: readonly DiskEntry[]): Set<number> {
    const cut = new Set<number>();
    for (let at = 0; at < this.#layers.length; at++) {
      const { id, flatten } = this.#layers[at];
      if (flatten === undefined || this.#isGone[at] === 1) continue;
      const parent = this.#parents[at];
      const isWanted = parent >= 0 &&
        disks.some((disk) => disk.id === flatten.disk && disk.layers.includes(id));
      if (isWanted && !hasAll(flatten.by, storage)) continue;
      this.#endsFlattening[at] = 1;
      this.#isSame = false;
      if (!isWanted) continue;
      this.#parents[at] = -1;
      this.#children[parent]--;
      cut.add(id);
    }
    return cut;
  }

  /** Where nobody else is left who needs what lies below, all of it will be absorbed: nothing has to be copied. */
  endFlattening(): void {
    for (let at = 0; at < this.#layers.length; at++) {
      const isFlattened = this.#layers[at].flatten !== undefined && this.#isGone[at] === 0 &&
        this.#endsFlattening[at] === 0;
      if (!isFlattened) continue;
      let below = this.#parents[at];
      while (below >= 0 && this.#isNeeded[below] === 0 && this.#children[below] === 1) {
        below = this.#parents[below];
      }
      if (below >= 0) continue;
      this.#endsFlattening[at] = 1;
      this.#isSame = false;
    }
  }

  #isFlattened(at: number): boolean {
    return this.#layers[at].flatten !== undefined && this.#endsFlattening[at] === 0;
  }

  need(layer: number): void {
    const place = placeOf(this.#layers, layer);
    if (place >= 0) this.#isNeeded[place] = 1;
  }

  /** Children are behind their parents: one pass from the newest on finds all. */
  dropLeaves(): void {
    for (let at = this.#layers.length - 1; at >= 0; at--) {
      if (this.#isGone[at] + this.#isNeeded[at] + this.#children[at] > 0) continue;
      this.#isGone[at] = 1;
      this.#isSame = false;
      if (this.#parents[at] >= 0) this.#children[this.#parents[at]]--;
    }
  }

  beginAbsorbing(): void {
    const { length } = this.#layers;
    const child = new Int32Array(length);
    const absorbs = new Uint8Array(length);
    for (let at = 0; at < length; at++) {
      const parent = this.#parents[at];
      if (this.#isGone[at] === 1 || parent < 0) continue;
      child[parent] = at;
      if (this.#layers[parent].absorbedBy !== null) absorbs[at] = 1;
    }
    for (let at = 0; at < length; at++) {
      if (this.#isGone[at] + this.#isNeeded[at] + absorbs[at] > 0) continue;
      if (this.#children[at] !== 1 || this.#layers[at].absorbedBy !== null) continue;
      if (this.#isFlattened(at)) continue;
      // Children come later, so none has begun in this pass.
      if (this.#layers[child[at]].absorbedBy !== null) continue;
      this.#begins[at] = 1;
      this.#isSame = false;
      absorbs[child[at]] = 1;
    }
  }

  /** What is left, and the ids of what is gone, sorted. */
  result(): { layers: readonly LayerEntry[]; gone: Set<number> } {
    const gone = new Set<number>();
    if (this.#isSame) return { layers: this.#layers, gone };
    const layers: LayerEntry[] = [];
    for (let at = 0; at < this.#layers.length; at++) {
      const layer = this.#layers[at];
      if (this.#isGone[at] === 1) {
        gone.add(layer.id);
        continue;
      }
      const place = this.#parents[at];
      const parent = place < 0 ? 0 : this.#layers[place].id;
      const begins = this.#begins[at] === 1;
      const ends = this.#endsFlattening[at] === 1;
      if (parent === layer.parent && !begins && !ends) {
        layers.push(layer);
        continue;
      }
      const { flatten, ...rest } = layer;
      layers.push({
        ...rest,
        parent,
        absorbedBy: begins ? NOBODY : layer.absorbedBy,
        ...(flatten === undefined || ends ? {} : { flatten }),
      });
    }
    return { layers, gone };
  }
}
