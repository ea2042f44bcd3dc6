import { assertEquals } from "@std/assert/mod.js";
import { layersAbove, readerOfBlock } from "../../agent/map/readers.ts";
import type { SnapshotEntry } from "../../agent/map/map.ts";
import { clusterWithDisk } from "./cluster.ts";

function snapshot(name: string, layer: number): SnapshotEntry {
  return {
    ...{ name, layer, sizeBytes: 1, createdMs: 0, isProtected: false },
    ...{ taking: 0, isDrained: true, isAborted: false },
  };
}

/** web 9 ─▶ 5 (friday) ─▶ 2 (monday), test 7 ─▶ 2, as web@monday was cloned. */
function mapOf() {
  const map = clusterWithDisk(2, 2);
  const [web] = map.disks;
  const layer = (id: number, parent: number) => ({ id, parent, absorbedBy: null });
  return {
    ...map,
    layers: [layer(2, 0), layer(5, 2), layer(7, 2), layer(9, 5)],
    disks: [
      { ...web, id: 3, name: "test", layers: [7, 2], snapshots: [] },
      { ...web, layers: [9, 5, 2], snapshots: [snapshot("monday", 2), snapshot("friday", 5)] },
    ],
  };
}

Deno.test("what goes on from a layer is above it", () => {
  const { layers } = mapOf();
  assertEquals([2, 5, 7, 9].map((layer) => layersAbove(layers, layer)), [[5, 7, 9], [9], [], []]);
});

Deno.test("a block is that of a disk as long as no newer layer of it holds the block, and of a snapshot then", () => {
  const cases: [layer: number, holders: number[], preferred: string | null, reader: string][] = [
    [2, [], null, "test"],
    [2, [], "web", "web"],
    [2, [7], null, "web"],
    [2, [7, 9], null, "web@monday"],
    [2, [7, 5], "web", "web@monday"],
    [2, [9], null, "test"],
    [2, [9], "web", "web@monday"],
    [5, [], null, "web"],
    [5, [9], "web", "web@friday"],
    [9, [], null, "web"],
    [7, [], "web", "test"],
    [4, [], null, ""],
  ];
  for (const [layer, holders, preferred, reader] of cases) {
    assertEquals({ layer, holders, reader: readerOfBlock(mapOf(), layer, holders, preferred) }, {
      layer,
      holders,
      reader,
    });
  }
  // Deleted, and still needed below others.
  const map = mapOf();
  const disks = map.disks.map((disk) => ({
    ...disk,
    snapshots: disk.snapshots.filter(({ name }) => name !== "monday"),
  }));
  assertEquals(readerOfBlock({ ...map, disks }, 2, [7, 9], null), "web@friday");
  assertEquals(readerOfBlock({ ...map, disks }, 2, [7, 5], null), "");
});
