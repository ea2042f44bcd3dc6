import { assertEquals } from "@std/assert/mod.js";
import { LeaseTimes } from "../../agent/control/lease_times.ts";
import type { ClusterMap } from "../../agent/map/map.ts";
import { clusterWithDisk, run } from "../map/cluster.ts";

function take(map: ClusterMap, node: number): ClusterMap {
  return run(map, { kind: "take-lease", id: 1, node, incarnation: 1 }).map;
}

Deno.test("a lease counts from when it was taken, and from anew under its next generation", () => {
  const times = new LeaseTimes();
  let map = clusterWithDisk(3, 3);
  times.mapChanged(map, true, 1000);
  assertEquals(times.of(map.disks[0]), null, "it is not open");
  map = take(map, 2);
  times.mapChanged(map, true, 2000);
  map = run(map, { kind: "resize-disk", name: "web", sizeBytes: 2 ** 31 }).map;
  times.mapChanged(map, true, 3000);
  assertEquals(times.of(map.disks[0]), { sinceMs: 2000, isExact: true });
  map = run(map, { kind: "release-lease", id: 1, node: 2, generation: 1 }).map;
  times.mapChanged(map, true, 4000);
  assertEquals(times.of(map.disks[0]), null);
  const again = take(map, 3);
  assertEquals(
    times.of(again.disks[0]),
    null,
    "of a generation that it has not seen it says nothing",
  );
  times.mapChanged(again, true, 5000);
  assertEquals(times.of(again.disks[0]), { sinceMs: 5000, isExact: true });
});

Deno.test("what was open before this agent saw it is open since then at the latest", () => {
  const times = new LeaseTimes();
  let map = take(clusterWithDisk(3, 3), 2);
  times.mapChanged(map, false, 1000);
  map = run(map, { kind: "reconciled", id: 1, generation: 1 }).map;
  times.mapChanged(map, true, 2000);
  assertEquals(times.of(map.disks[0]), { sinceMs: 1000, isExact: false });
  // From one holder to the next without a moment in between that was seen.
  map = run(map, { kind: "release-lease", id: 1, node: 2, generation: 1 }).map;
  map = take(map, 3);
  times.mapChanged(map, true, 3000);
  assertEquals(times.of(map.disks[0]), { sinceMs: 3000, isExact: true });
});
