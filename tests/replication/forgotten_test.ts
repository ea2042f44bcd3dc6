/**
 * What is read of a disk's snapshots on a node without copies when the disk is deleted.
 *
 * @module
 */
import { assertEquals } from "@std/assert/mod.js";
import type { ClusterMap } from "../../agent/map/map.ts";
import { EIO } from "../../agent/platform/platform.ts";
import { MessageType } from "../../agent/replication/messages.ts";
import { Operation, OperationKind } from "../../agent/store/operation.ts";
import { Cluster, type Passing } from "./cores.ts";
import { buffer, EPOCH, FakeStore, mapOf, type MapOptions } from "./harness.ts";

/** The one that reads; copies are on the nodes 1 to 3, of which none answers a read. */
const READER = 4;
const LAYER = 1;

/** What is read on a node when its disk goes comes back, in time, as an error. */
function deleteWhileRead(before: MapOptions, after: (map: ClusterMap) => ClusterMap): number[] {
  const cluster = new Cluster(before, () => new FakeStore(LAYER), [1, 2, 3, READER]);
  const { core, arena } = cluster.at(READER);
  const passing: Passing = {
    turns: 20,
    isLost: ({ head }, from) => from === READER && head.type === MessageType.Read,
  };
  cluster.pass(passing);
  const results: number[] = [];
  const reader = core.reader(1);
  const read = () => {
    const operation = new Operation({ operationDone: ({ result }) => results.push(result) }, 1);
    operation.kind = OperationKind.Read;
    operation.layers = [LAYER];
    operation.blockCount = 1;
    operation.buffer = buffer(arena, 0);
    reader.submit(operation);
  };
  read();
  cluster.pass(passing);
  assertEquals(results, []);
  core.setMap({ ...after(mapOf(before)), epoch: EPOCH + 1 }, READER, 1);
  core.forgetReader(1);
  core.forgetDisk(1);
  cluster.pass(passing);
  // What waited for room in the volume comes now.
  read();
  cluster.pass(passing);
  return results;
}

/** In the trash. */
function trashed(map: ClusterMap): ClusterMap {
  const [disk] = map.disks;
  return {
    ...map,
    disks: [],
    trash: [{ disk: { ...disk, lease: null }, deletedMs: 0, expiresMs: 1 }],
  };
}

/** For good. */
function purged(map: ClusterMap): ClusterMap {
  return { ...map, disks: [], layers: [] };
}

Deno.test("reads of snapshots that nobody answers come back when the disk is deleted, or goes to the trash", () => {
  for (const after of [trashed, purged]) {
    // Sent to a node that does not answer.
    assertEquals(deleteWhileRead({}, after), [-EIO, -EIO]);
    // Nobody can be asked: all that have it may have lost something.
    const group = { unclean: [1, 2, 3] };
    assertEquals(deleteWhileRead({ group }, after), [-EIO, -EIO]);
  }
});
