/**
 * Where chunks are: against the view that the data path goes by, and the summary against counting every chunk.
 *
 * @module
 */
import { assert, assertEquals, assertMatch } from "@std/assert/mod.js";
import { CHUNK_BYTES } from "../../agent/base/limits.ts";
import {
  type ClusterMap,
  type DiskEntry,
  members,
  type PgEntry,
  placer,
  type PlaceSummary,
  readerOf,
  summarizePlaces,
} from "../../agent/map/map.ts";
import { ClusterView } from "../../agent/replication/view.ts";
import { clusterOf, clusterWithDisk, runAll } from "./cluster.ts";

/** Four nodes, of which one is down, and groups in every state. */
function oddCluster(): ClusterMap {
  let map = clusterWithDisk(4, 2);
  map = runAll(map, { kind: "node-down", node: 4, incarnation: 1, nowMs: 1 });
  const pgs = map.pools[0].pgs.map((pg, index) => {
    if (index % 5 === 1) return { ...pg, inSync: [3, 1], joining: [2], joinedEpochs: [map.epoch] };
    if (index % 5 === 2) return { ...pg, inSync: [4, 2], joining: [], joinedEpochs: [] };
    if (index % 5 === 3) return { ...pg, inSync: [4], joining: [], joinedEpochs: [] };
    if (index % 5 === 4) return { ...pg, inSync: [2], unclean: [2] };
    return { ...pg, inSync: [2, 3], joining: [], joinedEpochs: [] };
  });
  return { ...map, pools: [{ ...map.pools[0], pgs }] };
}

Deno.test("a chunk's place is that of the data path's view, for every node that asks", () => {
  const map = oddCluster();
  const [disk] = map.disks;
  const readers = new Set<number>();
  for (const self of [0, 1, 2, 3, 4]) {
    const view = new ClusterView(map, self);
    const placeOf = placer(map, disk, self)!;
    for (let chunk = 0; chunk < 300; chunk++) {
      const group = view.groupOf(view.disk(disk.id)!, chunk);
      const place = placeOf(chunk);
      assertEquals([place.chunk, place.group], [chunk, group.group]);
      assertEquals(place.readFrom, group.readFrom);
      readers.add(place.readFrom);
      const sorted = (ids: readonly number[]) => ids.toSorted((a, b) => a - b);
      assertEquals(sorted([...place.inSync, ...place.joining]), sorted(members(group.entry)));
      assertEquals(place.target, sorted(group.entry.target));
      assertEquals(place.inSync, sorted(place.inSync));
    }
  }
  assertEquals([...readers].toSorted(), [0, 1, 2, 3, 4]);
});

Deno.test("a group is read here where it may be, else from a node that is up, and by turns", () => {
  const [pg] = clusterWithDisk(4, 2).pools[0].pgs;
  const reader = (inSync: number[], self: number, group = 0, part: Partial<PgEntry> = {}) =>
    readerOf({ pg: { ...pg, inSync, ...part }, group, self, isUp: (node) => node !== 4 });
  assertEquals(reader([4, 2, 3], 3), 3);
  // By turns among those that are up; where none is, the same of those that there are.
  assertEquals([0, 1, 2].map((group) => reader([4, 2, 3], 1, group)), [2, 3, 2]);
  assertEquals(reader([4], 1, 7), 4);
  assertEquals(reader([2, 3], 2, 0, { unclean: [3] }), 0);
  assertEquals(reader([2, 3], 2, 0, { unsettled: true }), 0);
});

Deno.test("a place says why it cannot be written", () => {
  const map = oddCluster();
  const placeOf = placer(map, map.disks[0], 1)!;
  const problems = new Set<string>();
  for (let chunk = 0; chunk < 256; chunk++) problems.add(placeOf(chunk).problem ?? "none");
  const text = [...problems].toSorted().join("\n");
  assertMatch(text, /^host-2 crashed.*\nnone\nthe only complete copy is on host-4, which is down$/);
});

/** The same by looking at every chunk. */
function countAll(map: ClusterMap, disk: DiskEntry, self: number): PlaceSummary[] {
  const found = new Map<string, PlaceSummary>();
  const groups = new Map<string, Set<number>>();
  const placeOf = placer(map, disk, self)!;
  for (let chunk = 0; chunk * CHUNK_BYTES < disk.sizeBytes; chunk++) {
    const { chunk: _, group, ...place } = placeOf(chunk);
    const key = JSON.stringify(place);
    const before = found.get(key) ?? { ...place, groups: 0, chunks: 0, sizeBytes: 0 };
    groups.set(key, (groups.get(key) ?? new Set()).add(group));
    found.set(key, {
      ...before,
      groups: groups.get(key)!.size,
      chunks: before.chunks + 1,
      sizeBytes: before.sizeBytes + Math.min(CHUNK_BYTES, disk.sizeBytes - chunk * CHUNK_BYTES),
    });
  }
  return [...found.values()];
}

Deno.test("the summary counts every chunk and every byte once, whatever the disk's size", () => {
  const map = oddCluster();
  const round = 2 ** map.pgBits;
  const byKey = (a: PlaceSummary, b: PlaceSummary) =>
    JSON.stringify(a) < JSON.stringify(b) ? -1 : 1;
  for (const chunks of [1, 2, round - 1, round, round + 1, 3 * round + 7]) {
    for (const tailBytes of [0, 512, CHUNK_BYTES - 512]) {
      const disk = { ...map.disks[0], sizeBytes: chunks * CHUNK_BYTES - tailBytes };
      const summary = summarizePlaces(map, disk, 1)!;
      assertEquals(summary.toSorted(byKey), countAll(map, disk, 1).toSorted(byKey));
      assertEquals(summary.reduce((sum, each) => sum + each.sizeBytes, 0), disk.sizeBytes);
      assert(summary.every((each, i) => i === 0 || each.chunks <= summary[i - 1].chunks));
    }
  }
});

Deno.test("without groups for a disk there is no place to tell", () => {
  const [disk] = clusterWithDisk(2, 2).disks;
  assertEquals(summarizePlaces(clusterOf(2), disk, 1), null);
  assertEquals(placer(clusterOf(2), disk, 1), null);
});
