/**
 * Who reads a block: of the disks and snapshots that are read through a layer, those that do not come upon a newer one first.
 *
 *     disk web ─▶ 9 ─▶ 5 ─▶ 2      block b: 9 and 2 hold it, 5 does not
 *     web@monday ──▶ 5 ─▶ 2        that of 2 is read by web@monday, and not by web
 *
 * The map knows the layers; which of them hold a block, only a store knows.
 *
 * @module
 */
import { chainOf } from "./layers.ts";
import type { ClusterMap, LayerEntry } from "./model.ts";

/** The layers that are read before a layer, by anybody: all that go on from it. */
export function layersAbove(layers: readonly LayerEntry[], layer: number): number[] {
  // Sorted by id, and each has a higher one than its parent.
  const above = new Set([layer]);
  for (const { id, parent } of layers) if (above.has(parent)) above.add(id);
  above.delete(layer);
  return [...above];
}

/**
 * The name of who reads a block of a layer.
 *
 * @param holders of the layers above it, those that say something of the block themselves, be it that it is zeros
 * @param preferred name of the disk to be named where several read it, itself or else by a snapshot
 * @returns a disk, or a snapshot as `DISK@NAME` where no disk does; "": nobody does, but for disks in the trash
 */
export function readerOfBlock(
  map: Pick<ClusterMap, "disks" | "layers">,
  layer: number,
  holders: readonly number[],
  preferred: string | null,
): string {
  const isRead = (chain: readonly number[]) => {
    const at = chain.indexOf(layer);
    return at >= 0 && !chain.slice(0, at).some((newer) => holders.includes(newer));
  };
  // Whoever asks about a disk is not told that all of it is well because another one reads the block as well.
  for (const disks of [map.disks.filter(({ name }) => name === preferred), map.disks]) {
    const disk = disks.find(({ layers }) => isRead(layers));
    if (disk !== undefined) return disk.name;
    for (const { name, snapshots } of disks) {
      const snapshot = snapshots.find((each) => isRead(chainOf(map.layers, each.layer)));
      if (snapshot !== undefined) return `${name}@${snapshot.name}`;
    }
  }
  return "";
}
