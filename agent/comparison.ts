/**
 * Comparing the replicas of disks, as the main thread sees it: which layers belong to which disk, and the report with names.
 *
 * @module
 */
import type { ComparisonReport } from "./http/backend.ts";
import {
  chainOf,
  type ClusterMap,
  type DiskEntry,
  disksOfLayers,
  disksWithData,
} from "./map/map.ts";
import { readerOfBlock } from "./map/readers.ts";
import { isGood } from "./replication/check_report.ts";
import type { CheckTarget } from "./replication/checking.ts";
import type { WorkerComparison } from "./worker_protocol.ts";

/** All layers of a disk and of its snapshots, those that it shares with others as well. */
export function targetOf(map: ClusterMap, disk: DiskEntry): CheckTarget {
  const newest = [disk.layers[0], ...disk.snapshots.map(({ layer }) => layer)];
  const layers = new Set(newest.flatMap((layer) => chainOf(map.layers, layer)));
  return { disk: disk.id, layers: [...layers] };
}

/** All layers that there are, each as that of one disk, also of those in the trash. */
export function allTargets(map: ClusterMap): CheckTarget[] {
  const layers = new Map(disksWithData(map).map(({ id }) => [id, [] as number[]]));
  for (const [layer, { id }] of disksOfLayers(map)) layers.get(id)!.push(layer);
  return [...layers].map(([disk, layers]) => ({ disk, layers }));
}

/**
 * Puts names into a report.
 *
 * @param map as it is now
 * @param before as it was when the check began: what is gone since is named by that
 */
export function nameComparison(
  map: ClusterMap,
  before: ClusterMap,
  report: WorkerComparison,
): ComparisonReport {
  const nameOf = (id: number): string => (find(map, id) ?? find(before, id))?.name ?? `disk ${id}`;
  const nodeOf = (id: number): string =>
    [...map.nodes, ...before.nodes].find((node) => node.id === id)?.name ?? `node ${id}`;
  const named = <Part extends { readonly disk: number; readonly nodes: readonly number[] }>(
    part: Part,
  ) => ({ ...part, disk: nameOf(part.disk), nodes: part.nodes.map(nodeOf) });
  return {
    good: report.disks.every(isGood),
    disks: report.disks.map((disk) => ({
      ...disk,
      disk: nameOf(disk.disk),
      inTrash: map.disks.every(({ id }) => id !== disk.disk),
    })),
    blocks: report.blocks.map(({ layer, holders, ...block }) => {
      const { disk, ...part } = named(block);
      return { ...part, disk: readerOfBlock(map, layer, holders, disk) || disk };
    }),
    unchecked: report.unchecked.map(named),
  };
}

function find(map: ClusterMap, id: number): DiskEntry | undefined {
  return disksWithData(map).find((disk) => disk.id === id);
}
