/**
 * Where nodes are is told beside the maps, and may be heard before those that say who there is are in force: a map waits for its layers.
 *
 * @module
 */
import { assertEquals } from "@std/assert/mod.js";
import { Arena } from "../../agent/base/arena.ts";
import { Cluster } from "./cores.ts";
import { coreOf, EPOCH, FakeStore, FakeTransport, GENERATION, mapOf } from "./harness.ts";

/** A store that makes layers when it is told to. */
class SlowLayers extends FakeStore {
  readonly making: (() => void)[] = [];

  override createLayer(layer: number, done: (error: Error | null) => void): void {
    this.making.push(() => super.createLayer(layer, done));
  }
}

Deno.test("where a new node is stays known though a map without it comes into force after that", () => {
  const store = new SlowLayers(1), transport = new FakeTransport();
  const core = coreOf({ store, arena: new Arena(), transport }, mapOf({ nodes: 4 }), 1, {});
  const layers = [
    { id: 1, parent: 0, absorbedBy: null },
    { id: 2, parent: 1, absorbedBy: null },
  ];
  // A snapshot is taken, then a node taken in; as `cluster_node.ts` says it: all maps, and where the node is.
  core.setMap(mapOf({ nodes: 4, layers, epoch: EPOCH + 1 }), 1, 1);
  core.setMap(mapOf({ nodes: 5, layers, epoch: EPOCH + 2 }), 1, 1);
  core.setAddress(5, "192.0.2.6:7461");
  store.making.shift()!();
  assertEquals(core.view.epoch, EPOCH + 2);
  assertEquals(transport.addresses.get(5), "192.0.2.6:7461");
});

Deno.test("a node that is gone by a map that is not in force yet takes no other requests with it", () => {
  const cluster = new Cluster({}, () => new FakeStore(1));
  const { core } = cluster.at(1);
  const chunks = [3, 4];
  const groupOf = (chunk: number) => core.view.groupOf(core.view.disk(1)!, chunk).group;
  const [first, second] = chunks.map(groupOf);
  const setMap = (epoch: number, inSync: number[], changedEpoch: number) => {
    const map = mapOf({ epoch });
    const pools = map.pools.map((pool) => ({
      ...pool,
      pgs: pool.pgs.map((entry, i) =>
        i === first
          ? { ...entry, inSync, target: inSync, changedEpoch }
          : { ...entry, inSync: [1, 2], target: [1, 2] }
      ),
    }));
    for (const node of cluster.nodes) node.core.setMap({ ...map, pools }, node.id, 1);
  };
  assertEquals(first === second, false);
  setMap(EPOCH + 1, [1, 2, 3], EPOCH + 1);
  core.setAddress(3, "192.0.2.4:7461");
  core.openDisk(1, GENERATION);
  cluster.pass();
  const done: number[] = [];
  const write = (chunk: number, sequence: number) =>
    cluster.at(1).write({ chunk, block: 5, sequence, fill: 0xaa }, () => done.push(chunk));
  // Node 3 has not answered yet when its groups have gone elsewhere, and then it: maps that wait for a layer.
  write(chunks[0], 1);
  core.setAddress(3, null);
  write(chunks[1], 1);
  setMap(EPOCH + 2, [1, 2], EPOCH + 2);
  cluster.pass();
  assertEquals(done.toSorted(), chunks);
});
