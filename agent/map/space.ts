/**
 * Who takes how much space: what disks and snapshots hold alone, and what they share.
 *
 *     disk "web"            9   1 MiB           web           used 10, exclusive 3: 9 and 7
 *     web@tuesday           7   2 MiB           web@tuesday   used 9, exclusive: what 9 hides of 7
 *     web@monday            4   7 MiB ◀── 8     web@monday    used 7, exclusive 0
 *     disk "test"           8   5 MiB           test          used 12, exclusive 5
 *
 * By what one node's store says that layers hold, for each disk and snapshot:
 * - **used**: all layers that it is read through; of a disk also those that its snapshots are read through, since they go with it;
 * - **exclusive**: what comes back when it is deleted for good: the layers that nothing else is read through, not even what lies in the
 *   trash. Of a snapshot, for which its own disk is something else, also what is hidden by the one layer that goes on from it
 *   ({@linkcode merges}): the two become one when it is deleted, and that is freed. Where several go on from it, nothing is, whatever
 *   they hide: layers are merged two and two;
 * - **shared**: the rest.
 *
 * A snapshot's is exact as long as nothing changes meanwhile. A disk's is what comes back at least: what merging frees of layers that it
 * shares with clones is not counted.
 *
 * Invariants: used is exclusive and shared; the whole layers that are exclusive to the disks and those of the trash together are no more
 * than the store holds; a whole layer that is exclusive to a snapshot is so to its disk, too.
 *
 * @module
 */

import { disksWithData } from "./queries.ts";
import type { ClusterMap } from "./model.ts";

/** See the head of the file; in bytes. */
export interface SpaceUsage {
  readonly usedBytes: number;
  readonly exclusiveBytes: number;
  readonly sharedBytes: number;
}

/** The space of all disks and snapshots of a map. */
export interface SpaceOfMap {
  /** By the disk's id; those in the trash, too. */
  readonly disks: ReadonlyMap<number, SpaceUsage>;
  /** By the snapshot's layer. */
  readonly snapshots: ReadonlyMap<number, SpaceUsage>;
}

/** Nothing, or several: in the place of the one that needs a layer. */
const NOBODY = 0, SEVERAL = -1;

/**
 * Computes the space of every disk and snapshot. Looks at every layer once and at the chains of all snapshots.
 *
 * @param map whose layers are sorted by id, each above its parent
 * @param layerBytes bytes of data by layer; one that is not there holds none
 * @param mergedBytes what {@linkcode merges} of a snapshot free, by the snapshot's layer; one that is not there: nothing
 */
export function spaceOf(
  map: Pick<ClusterMap, "disks" | "trash" | "layers">,
  layerBytes: ReadonlyMap<number, number>,
  mergedBytes: ReadonlyMap<number, number> = new Map(),
): SpaceOfMap {
  const parents = new Map(map.layers.map(({ id, parent }) => [id, parent]));
  const needs = whoNeeds(map, parents);
  const bytesOf = (layer: number) => layerBytes.get(layer) ?? 0;
  const disks = new Map<number, SpaceUsage>();
  const snapshots = new Map<number, SpaceUsage>();
  for (const disk of disksWithData(map)) {
    const seen = new Set<number>();
    let used = 0, exclusive = 0;
    for (const newest of [disk.layers[0], ...disk.snapshots.map(({ layer }) => layer)]) {
      // A layer that was met before leads to none that was not.
      for (let at = newest; at !== 0 && !seen.has(at); at = parents.get(at) ?? 0) {
        seen.add(at);
        used += bytesOf(at);
        if (needs.disks.get(at) === disk.id) exclusive += bytesOf(at);
      }
    }
    disks.set(disk.id, usage(used, exclusive));
    for (const { layer } of disk.snapshots) {
      let used = 0, exclusive = 0;
      for (let at = layer; at !== 0; at = parents.get(at) ?? 0) {
        used += bytesOf(at);
        if (needs.names.get(at) === layer) exclusive += bytesOf(at);
      }
      snapshots.set(layer, usage(used, exclusive + (mergedBytes.get(layer) ?? 0)));
    }
  }
  return { disks, snapshots };
}

function usage(usedBytes: number, exclusiveBytes: number): SpaceUsage {
  return { usedBytes, exclusiveBytes, sharedBytes: usedBytes - exclusiveBytes };
}

/** Who is read through each layer: the only disk with its snapshots, and the only newest layer of a disk or a snapshot. */
function whoNeeds(
  map: Pick<ClusterMap, "disks" | "trash" | "layers">,
  parents: ReadonlyMap<number, number>,
): { disks: Map<number, number>; names: Map<number, number> } {
  const disks = new Map<number, number>();
  const names = new Map<number, number>();
  const need = (who: Map<number, number>, layer: number, one: number) => {
    const before = who.get(layer) ?? NOBODY;
    who.set(layer, before === NOBODY || before === one ? one : SEVERAL);
  };
  for (const disk of disksWithData(map)) {
    for (const newest of [disk.layers[0], ...disk.snapshots.map(({ layer }) => layer)]) {
      need(disks, newest, disk.id);
      need(names, newest, newest);
    }
  }
  // Children come behind their parents: from the newest on, each has heard of all that need it when it tells its parent.
  for (let at = map.layers.length - 1; at >= 0; at--) {
    const { id } = map.layers[at];
    const parent = parents.get(id) ?? 0;
    if (parent === 0) continue;
    for (const who of [disks, names]) {
      const one = who.get(id) ?? NOBODY;
      if (one !== NOBODY) need(who, parent, one);
    }
  }
  return { disks, names };
}

/** Layers that become one when something is deleted: of what those below hold, what those above hide is freed. Each newest first. */
export interface Merge {
  readonly above: readonly number[];
  readonly below: readonly number[];
}

/**
 * Finds out which layers are merged when a snapshot is deleted, beside those that go as a whole.
 *
 * @param map whose layers are sorted by id, each above its parent
 * @returns asks for one snapshot, by its layer; null: none are
 */
export function merges(
  map: Pick<ClusterMap, "disks" | "trash" | "layers">,
): (layer: number) => Merge | null {
  const parents = new Map(map.layers.map(({ id, parent }) => [id, parent]));
  const children = new Map<number, number[]>();
  for (const { id, parent } of map.layers) {
    const others = children.get(parent);
    if (others === undefined) children.set(parent, [id]);
    else others.push(id);
  }
  const isNamed = new Set<number>();
  for (const { layers, snapshots } of disksWithData(map)) {
    isNamed.add(layers[0]);
    for (const { layer } of snapshots) isNamed.add(layer);
  }
  const childrenOf = (layer: number) => children.get(layer) ?? [];
  /** Nobody needs it but the one layer above it: the two are one, or are about to be. */
  const isPassing = (layer: number) =>
    layer !== 0 && !isNamed.has(layer) && childrenOf(layer).length === 1;
  const upFrom = (layer: number): number[] => {
    const chain = [layer];
    for (let at = layer; isPassing(at); chain.unshift(at)) at = childrenOf(at)[0];
    return chain;
  };
  const downFrom = (layer: number): number[] => {
    const chain = [layer];
    for (let at = parents.get(layer) ?? 0; isPassing(at); at = parents.get(at) ?? 0) chain.push(at);
    return chain;
  };
  return (layer) => {
    const above = childrenOf(layer);
    if (above.length === 1) return { above: upFrom(above[0]), below: downFrom(layer) };
    if (above.length > 1) return null;
    // It goes as a whole, with what nobody else needs; then the next one may have only one layer above it left.
    const gone = downFrom(layer);
    const parent = parents.get(gone[gone.length - 1]) ?? 0;
    const others = childrenOf(parent).filter((each) => !gone.includes(each));
    if (parent === 0 || isNamed.has(parent) || others.length !== 1) return null;
    return { above: upFrom(others[0]), below: downFrom(parent) };
  };
}
