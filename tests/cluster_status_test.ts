import { assertEquals } from "@std/assert/mod.js";
import { waitingDisks } from "../agent/cluster_status.ts";
import { clusterWithDisk } from "./map/cluster.ts";

Deno.test("disks that wait are told by their names, and those that have been deleted meanwhile not at all", () => {
  const waiting = [{ disk: 1, reason: "no request has come back for 7 s" }, {
    disk: 6,
    reason: "the disk is gone",
  }];
  const reports = new Map([[1, { waiting: [] }], [2, { waiting }]]);
  assertEquals(waitingDisks(clusterWithDisk(2, 2), reports), [
    { disk: "web", node: 2, reason: "no request has come back for 7 s" },
  ]);
});
