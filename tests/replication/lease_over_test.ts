/**
 * Whole data cores of several nodes, wired together: what a node whose lease is over does with a write that is under way, when its own
 * replica joins and begins anew (`withJoinersAfresh` of `map/disks.ts`).
 *
 * @module
 */
import { assertEquals } from "@std/assert/mod.js";
import { Cluster } from "./cores.ts";
import { EPOCH, FakeStore, GENERATION, type MapOptions } from "./harness.ts";

/** It holds the lease and joins, one is in sync, one has the disk next. */
const SELF = 2, SOURCE = 3, NEXT = 4;
const LAYER = 1, CHUNK = 3;

Deno.test("a write under a lease that is over does not come to a replica that joins anew under the next one", () => {
  const group = { target: [2, 3], inSync: [SOURCE], joining: [SELF], joinedEpochs: [60] };
  const options: MapOptions = { holder: SELF, group, disk: { copiesMin: 1 } };
  const cluster = new Cluster(options, () => new FakeStore(LAYER), [SELF, SOURCE, NEXT]);
  const old = cluster.at(SELF).core;
  old.openDisk(1, GENERATION);
  cluster.pass();

  // The lease is taken away by force; its holder hears of it a little later than the source, and writes.
  const taken: MapOptions = { ...options, holder: 0, epoch: EPOCH + 1 };
  cluster.setMap(taken, [SOURCE, NEXT]);
  const done: number[] = [];
  cluster.at(SELF).write(
    { layer: LAYER, chunk: CHUNK, block: 5, sequence: 1, fill: 0xaa },
    (result) => done.push(result),
  );
  cluster.pass({ turns: 5 });
  cluster.setMap(taken, [SELF]);
  cluster.pass({ turns: 5 });
  assertEquals(cluster.at(SOURCE).store.chunk(LAYER, CHUNK).blocks.get(5), undefined);
  assertEquals(done, []);

  // Somebody else is given the disk, and all who join begin anew. The old holder is fenced as soon as its control has the map.
  const epoch = EPOCH + 2;
  const given: MapOptions = {
    ...options,
    holder: NEXT,
    epoch,
    disk: { copiesMin: 1, generation: GENERATION + 1, settled: GENERATION - 1 },
    group: { ...group, joinedEpochs: [epoch], changedEpoch: epoch },
  };
  cluster.at(SELF).reported.clear();
  cluster.setMap(given);
  old.router(1).abandon(-5, true);
  cluster.at(NEXT).core.openDisk(1, GENERATION + 1);
  cluster.pass();
  assertEquals(cluster.at(NEXT).core.router(1).isOpen, true);
  assertEquals(done, [-5]);
  assertEquals(cluster.at(SELF).reported.size > 0, true);
  const blockOf = (id: number) => cluster.at(id).store.chunk(LAYER, CHUNK).blocks.get(5);
  assertEquals(
    blockOf(SELF),
    blockOf(SOURCE),
    "the replica is in sync, and has what no other one has",
  );
});
