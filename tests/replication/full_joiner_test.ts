/**
 * Whole data cores of several nodes, wired together: a replica that joins, in a store that is full, does not keep a disk from opening.
 *
 * @module
 */
import { assertEquals } from "@std/assert/mod.js";
import { Operation, OperationKind } from "../../agent/store/operation.ts";
import { Cluster } from "./cores.ts";
import { EPOCH, FakeStore, GENERATION, type MapOptions } from "./harness.ts";

const HOLDER = 1, JOINER = 2, SOURCE = 3, NEXT = 4;
const LAYER = 1, CHUNK = 3;

/** Writes wait while it is full; all else goes on. */
class SmallStore extends FakeStore {
  override run(): void {
    const isHeld = ({ kind }: Operation) => this.isFull && kind === OperationKind.Write;
    const held = this.waiting.filter(isHeld);
    this.waiting.splice(0, Infinity, ...this.waiting.filter((each) => !isHeld(each)));
    super.run();
    this.waiting.unshift(...held);
  }
}

Deno.test("a write that waits for space where a node joins does not keep the disk from being opened elsewhere", () => {
  const group = { target: [2, 3], inSync: [SOURCE], joining: [JOINER], joinedEpochs: [60] };
  const options: MapOptions = { holder: HOLDER, group, disk: { copiesMin: 1 } };
  const cluster = new Cluster(options, () => new SmallStore(LAYER), [1, 2, 3, 4]);
  const { core } = cluster.at(HOLDER);
  core.openDisk(1, GENERATION);
  cluster.pass();
  cluster.at(JOINER).store.isFull = true;
  cluster.at(HOLDER).write({ layer: LAYER, chunk: CHUNK, block: 5, sequence: 1, fill: 0xaa });
  cluster.pass({ turns: 5 });

  // Its host dies; somebody else is given the disk, and all who join begin anew.
  const epoch = EPOCH + 1;
  cluster.setMap({
    ...options,
    holder: NEXT,
    down: [HOLDER],
    epoch,
    disk: { copiesMin: 1, generation: GENERATION + 1, settled: GENERATION - 1 },
    group: { ...group, joinedEpochs: [epoch], changedEpoch: epoch },
  }, [JOINER, SOURCE, NEXT]);
  cluster.at(NEXT).core.openDisk(1, GENERATION + 1);
  const isFromHolder = (_: unknown, from: number) => from === HOLDER;
  cluster.pass({ isLost: isFromHolder, turns: 1000 });
  assertEquals(cluster.at(NEXT).core.router(1).isOpen, true, "for 10 s nobody can read the disk");
  cluster.at(JOINER).store.isFull = false;
  cluster.pass({ isLost: isFromHolder });
  const blockOf = (id: number) => cluster.at(id).store.chunk(LAYER, CHUNK).blocks.get(5);
  assertEquals([blockOf(SOURCE), blockOf(JOINER)], [0xaa, 0xaa]);
  assertEquals(cluster.at(JOINER).reported.size > 0, true);
});
