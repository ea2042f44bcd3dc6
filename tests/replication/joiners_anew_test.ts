/**
 * Whole data cores of several nodes, wired together: what becomes of a write that is under way while those who join begin anew
 * (the lease of another disk was not given back: `withJoinersAfresh` of `map/disks.ts`).
 *
 * @module
 */
import { assertEquals } from "@std/assert/mod.js";
import { MessageType } from "../../agent/replication/messages.ts";
import { Operation, OperationKind } from "../../agent/store/operation.ts";
import { Cluster, type Node } from "./cores.ts";
import { EPOCH, FakeStore, GENERATION, type MapOptions, type Sent } from "./harness.ts";

/** It holds the lease, one is in sync, one joins. */
const HOLDER = 4, SOURCE = 3, JOINER = 2;
const LAYER = 1, CHUNK = 3;

const makeStore = () => new FakeStore(LAYER);

/** Writes to the disk where its lease is held. */
class Guest {
  /** Sequences of the writes that it was told are done. */
  readonly done: number[] = [];

  constructor(readonly holder: Node) {}

  write(sequence: number, block: number, fill: number): void {
    const write = { layer: LAYER, chunk: CHUNK, block, sequence, fill };
    this.holder.write(write, () => this.done.push(sequence));
  }
}

Deno.test("a write that a joiner has acknowledged goes to it again when it begins anew: the source may have got it later", () => {
  const group = { target: [2, 3], inSync: [SOURCE], joining: [JOINER], joinedEpochs: [60] };
  const options: MapOptions = { holder: HOLDER, group, disk: { copiesMin: 1 } };
  const cluster = new Cluster(options, makeStore, [JOINER, SOURCE, HOLDER]);
  const guest = new Guest(cluster.at(HOLDER));
  cluster.at(HOLDER).core.openDisk(1, GENERATION);
  cluster.pass();

  // The joiner has it at once, and says so. To the source it is on its way for a little longer.
  const isLate = ({ link, head }: Sent, from: number) =>
    from === HOLDER && link === SOURCE && (head.type as MessageType) === MessageType.Write;
  guest.write(1, 5, 0xaa);
  cluster.pass({ isHeld: isLate, turns: 5 });
  assertEquals(cluster.at(JOINER).store.chunk(LAYER, CHUNK).blocks.get(5), 0xaa);
  assertEquals(guest.done, []);

  // Another disk is opened after its host has died: all who join begin anew. The holder hears of it last.
  const epoch = EPOCH + 1;
  const anew: MapOptions = {
    ...options,
    epoch,
    group: { ...group, joinedEpochs: [epoch], changedEpoch: epoch },
  };
  cluster.setMap(anew, [SOURCE, JOINER]);
  cluster.at(JOINER).reported.clear();
  // The source refuses what was sent under the old map, and gives the joiner what it has.
  cluster.pass();
  cluster.setMap(anew, [HOLDER]);
  cluster.pass();
  assertEquals(guest.done, [1], "the guest has been told");
  assertEquals(cluster.at(SOURCE).store.chunk(LAYER, CHUNK).blocks.get(5), 0xaa);
  assertEquals(
    cluster.at(JOINER).reported.size > 0 &&
      cluster.at(JOINER).store.chunk(LAYER, CHUNK).blocks.get(5),
    0xaa,
    "the joiner is in sync, and lacks what was acknowledged",
  );
});

Deno.test("a holder that joins and begins anew: a write that is in its store meanwhile is not overtaken by the next one", () => {
  const SELF = 2;
  const group = { target: [2, 3], inSync: [SOURCE], joining: [SELF], joinedEpochs: [60] };
  const options: MapOptions = { holder: SELF, group, disk: { copiesMin: 1 } };
  const cluster = new Cluster(options, makeStore, [SELF, SOURCE]);
  const guest = new Guest(cluster.at(SELF));
  // Something that this node has not copied when it has to begin anew.
  const { store } = cluster.at(SOURCE);
  store.chunk(LAYER, CHUNK).blocks.set(9, 0x99);
  [store.chunk(LAYER, CHUNK).generation, store.chunk(LAYER, CHUNK).sequence] = [GENERATION - 1, 1];
  cluster.at(SELF).core.openDisk(1, GENERATION);
  const isHeld = () => true;

  guest.write(1, 5, 0xaa);
  const epoch = EPOCH + 1;
  const anew: MapOptions = {
    ...options,
    epoch,
    group: { ...group, joinedEpochs: [epoch], changedEpoch: epoch },
  };
  // Its store has not carried it out yet.
  cluster.pass({ isHeld, standing: [SELF], turns: 1 });
  cluster.setMap(anew, [SOURCE, SELF]);
  guest.write(2, 6, 0xbb);
  // The source's disk is slower: both writes are on their way into its store while it reads.
  for (let i = 0; i < 200; i++) {
    const waiting = store.waiting.splice(0);
    const isRead = ({ kind }: Operation) => kind !== OperationKind.Write;
    store.waiting.push(...waiting.filter(isRead));
    store.run();
    store.waiting.push(...waiting.filter((each) => !isRead(each)));
    cluster.pass({ standing: [SOURCE], turns: 1 });
  }
  assertEquals(guest.done, []);
  cluster.pass();
  assertEquals(guest.done, [1, 2]);
  const blocksOf = (id: number) =>
    [5, 6, 9].map((at) => cluster.at(id).store.chunk(LAYER, CHUNK).blocks.get(at));
  assertEquals(blocksOf(SOURCE), [0xaa, 0xbb, 0x99]);
  assertEquals(cluster.at(SELF).reported.size > 0, true);
  assertEquals(blocksOf(SELF), [0xaa, 0xbb, 0x99]);
});
