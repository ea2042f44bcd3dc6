import { assertEquals } from "@std/assert/mod.js";
import { Arena } from "../../agent/base/arena.ts";
import { BLOCK_BYTES } from "../../agent/base/limits.ts";
import { DESCRIPTION_WORDS, MessageType, Status } from "../../agent/replication/messages.ts";
import { Peers } from "../../agent/replication/peers.ts";
import { Repairer } from "../../agent/replication/repair.ts";
import { LiveWrite, LocalWrite, Replica } from "../../agent/replication/replica.ts";
import { EBADMSG } from "../../agent/platform/platform.ts";
import { ClusterView } from "../../agent/replication/view.ts";
import { OperationKind } from "../../agent/store/operation.ts";
import {
  answerTo,
  buffer,
  EPOCH,
  FakeStore,
  FakeTransport,
  GENERATION,
  mapOf,
  type MapOptions,
  type Sent,
  silent,
  sumOf,
  window,
} from "./harness.ts";

const SELF = 1, LAYER = 1, CHUNK = 3, BLOCK = 5;

class Fixture {
  readonly store = new FakeStore(LAYER);
  readonly transport = new FakeTransport();
  readonly peers = new Peers(this.transport);
  readonly arena = new Arena();
  readonly replica: Replica;
  readonly repairer: Repairer;
  view: ClusterView;
  /** Of the other node's map. */
  epoch = EPOCH;

  constructor(options: MapOptions = {}) {
    const { store, peers, arena, transport } = this;
    this.replica = new Replica({ store, window, arena, transport, log: silent });
    const { replica } = this;
    this.repairer = new Repairer({ store, replica, peers, window, arena, log: silent });
    this.view = new ClusterView(mapOf(options), SELF);
    this.map(this.view);
    for (const node of [2, 3, 4]) peers.linkUp(node, node, 1);
    const chunk = store.chunk(LAYER, CHUNK);
    Object.assign(chunk, { generation: GENERATION, sequence: 9 });
    chunk.blocks.set(BLOCK, 0x11);
    chunk.damaged.add(BLOCK);
  }

  map(view: ClusterView): void {
    this.view = view;
    this.replica.mapChanged(view, 1);
    this.repairer.mapChanged(view);
  }

  /** A check has found the block to be whole, and wrong. */
  replace(wrong: number, right: number, source = 3): void {
    this.chunk.damaged.clear();
    const list = [{ block: BLOCK, wrong: sumOf(wrong), right: sumOf(right) }];
    this.repairer.replace(LAYER, CHUNK, source, list);
  }

  report(): void {
    this.repairer.report(this.view.disk(1)!.entry.layers, CHUNK, BLOCK - 1, 4);
  }

  /** The other node says what stamp its chunk has. */
  describe(sent: Sent | undefined, stamp = [GENERATION, 9], rewrites = 0): void {
    assertEquals(sent?.head.type, MessageType.Describe);
    const [generation, sequence] = stamp;
    const fields = { generation, sequence, argument: rewrites, epoch: this.epoch };
    const bytes = answerTo(sent!, fields, new Uint32Array(DESCRIPTION_WORDS));
    this.peers.received(sent!.link, bytes, bytes.length, 0, 0, () => {});
  }

  /** The read that follows once the other node has said that it has as much. */
  asked(stamp?: number[]): Sent {
    this.describe(this.transport.take()[0], stamp);
    return this.transport.take()[0];
  }

  /** The other node's block, and its stamp after that. */
  answer(sent: Sent, fill: number, sum = sumOf(fill), stamp?: number[]): void {
    const bytes = answerTo(sent, {}, [sum]);
    const release = (offset: number, length: number) => this.arena.release(offset, length);
    const at = buffer(this.arena, fill);
    this.peers.received(sent.link, bytes, bytes.length, at, BLOCK_BYTES, release);
    if (sum === sumOf(fill) && this.transport.sent.length > 0) {
      this.describe(this.transport.take()[0], stamp);
    }
  }

  /** A live write of the block, or of another one, on its way into the store. */
  write(fill: number, block = BLOCK): void {
    const write = new LocalWrite();
    write.target = { localWriteDone() {} };
    const { operation } = write;
    operation.kind = OperationKind.Write;
    operation.layers = [LAYER];
    operation.chunk = CHUNK;
    operation.block = block;
    operation.blockCount = 1;
    operation.buffer = buffer(this.arena, fill);
    operation.checksums = Uint32Array.of(sumOf(fill));
    operation.generation = GENERATION;
    operation.sequence = 10;
    this.replica.apply(write, this.view.groupOf(this.view.disk(1)!, CHUNK), false);
  }

  get chunk() {
    return this.store.chunk(LAYER, CHUNK);
  }

  get state() {
    const { blocks, damaged, generation, sequence } = this.chunk;
    return [blocks.get(BLOCK), damaged.has(BLOCK), generation, sequence];
  }
}

Deno.test("a damaged block is healed from another replica, and the chunk's stamp stays", () => {
  const at = new Fixture();
  at.report();
  at.store.run();
  const read = at.asked();
  assertEquals([read.head.type, read.head.block, ...read.extra], [MessageType.Read, BLOCK, LAYER]);
  at.answer(read, 0xaa);
  at.store.run();
  assertEquals(at.state, [0xaa, false, GENERATION, 9]);
  assertEquals([at.repairer.repaired, at.repairer.waiting, at.arena.usedBytes], [1, 0, 0]);
});

Deno.test("a node whose guests come first is asked again after a while, and not forgotten", () => {
  const at = new Fixture();
  at.report();
  for (let round = 0; round < 3; round++) {
    at.store.run();
    const [read] = at.transport.take();
    const bytes = answerTo(read, { status: Status.Busy });
    at.peers.received(read.link, bytes, bytes.length, 0, 0, () => {});
    at.store.run();
    assertEquals([at.transport.take(), at.repairer.waiting], [[], 1], "not before time has passed");
    at.repairer.tick();
  }
  at.store.run();
  at.answer(at.asked(), 0xaa);
  at.store.run();
  assertEquals([at.repairer.repaired, at.repairer.waiting, at.arena.usedBytes], [1, 0, 0]);
});

Deno.test("a block that was written since is left alone", () => {
  for (const when of ["before it is looked at", "while it is fetched"]) {
    const at = new Fixture();
    at.report();
    if (when === "before it is looked at") at.chunk.damaged.clear();
    at.store.run();
    if (when === "while it is fetched") {
      const read = at.asked();
      at.write(0xbb);
      at.store.run();
      at.answer(read, 0xaa);
    } else assertEquals(at.transport.take(), []);
    at.store.run();
    assertEquals(at.chunk.blocks.get(BLOCK), when === "while it is fetched" ? 0xbb : 0x11, when);
    assertEquals([at.repairer.repaired, at.repairer.waiting], [0, 0], when);
  }
});

Deno.test("a block to which a live write is on its way is left to it", () => {
  const at = new Fixture();
  at.report();
  at.store.run();
  at.answer(at.asked(), 0xaa);
  // Read again, still damaged: but a write was accepted, and stands behind that read in the store's queue.
  at.write(0xbb);
  at.store.run();
  assertEquals(at.state, [0xbb, false, GENERATION, 10]);
  assertEquals([at.repairer.repaired, at.repairer.waiting], [0, 0]);
});

Deno.test("a block that was written while it was looked at once more is left alone", () => {
  for (const isAcceptedBefore of [false, true]) {
    const at = new Fixture();
    at.report();
    at.store.run();
    const read = at.asked();
    if (isAcceptedBefore) at.write(0xbb);
    at.answer(read, 0xaa);
    // The disk takes its time for that read: what was there when it was asked for is damaged, and is replaced meanwhile.
    const look = isAcceptedBefore ? undefined : at.store.waiting.pop()!;
    if (!isAcceptedBefore) at.write(0xbb);
    at.store.run();
    if (look !== undefined) {
      look.result = -EBADMSG;
      look.owner.operationDone(look);
    }
    at.store.run();
    assertEquals(at.state, [0xbb, false, GENERATION, 10]);
    assertEquals([at.repairer.repaired, at.repairer.waiting], [0, 0]);
  }
});

Deno.test("a block of a chunk that is replaced as a whole is left alone, another one's is not", () => {
  for (const when of ["before", "since", "otherwise", "elsewhere"]) {
    const at = new Fixture();
    at.replica.joining = {
      isJoining: () => false,
      isComplete: () => false,
      isEnding: () => false,
      isReplacing: (_group, layer, chunk) =>
        when === "before" && layer === LAYER && chunk === CHUNK,
      liveWrite: () => LiveWrite.Apply,
    };
    at.report();
    at.store.run();
    if (when === "before") assertEquals(at.transport.take(), []);
    else at.answer(at.asked(), 0xaa);
    if (when === "since") at.replica.replacing(LAYER, CHUNK);
    else if (when === "otherwise") at.replica.rewriting(LAYER, CHUNK);
    else if (when === "elsewhere") at.replica.replacing(LAYER, CHUNK + 1);
    at.store.run();
    assertEquals(at.repairer.repaired, when === "elsewhere" ? 1 : 0, when);
    assertEquals([at.state[1], at.repairer.waiting], [when !== "elsewhere", 0], when);
  }
});

Deno.test("a block that is damaged there too comes from the next replica, and from nobody who is down", () => {
  const at = new Fixture({ nodes: 4, group: { inSync: [1, 2, 3, 4] }, down: [3] });
  at.report();
  at.store.run();
  const first = at.asked();
  assertEquals(first.link, 2);
  at.answer(first, 0xaa, sumOf(0xab));
  const second = at.asked();
  assertEquals(second.link, 4);
  at.answer(second, 0xcc);
  at.store.run();
  assertEquals(at.state, [0xcc, false, GENERATION, 9]);
});

Deno.test("with nobody left to ask the block stays damaged, and is tried again when it is reported", () => {
  const at = new Fixture({ group: { inSync: [1, 2] } });
  at.report();
  at.store.run();
  at.answer(at.asked(), 0xaa, 0);
  at.store.run();
  assertEquals([at.state[1], at.repairer.waiting, at.arena.usedBytes], [true, 0, 0]);
  at.report();
  at.store.run();
  at.answer(at.asked(), 0xaa);
  at.store.run();
  assertEquals([at.state[1], at.repairer.repaired], [false, 1]);
});

Deno.test("who was asked and has left the group is not waited for", () => {
  const at = new Fixture();
  at.report();
  at.store.run();
  const first = at.asked();
  const inSync = [1, first.link === 2 ? 3 : 2];
  const map = mapOf({ epoch: EPOCH + 1, group: { inSync, changedEpoch: EPOCH + 1 } });
  at.map(new ClusterView(map, SELF));
  const second = at.asked();
  assertEquals(second.link, inSync[1]);
  at.answer(first, 0xaa);
  at.answer(second, 0xcc);
  at.store.run();
  assertEquals(at.state.slice(0, 2), [0xcc, false]);
});

Deno.test("what the other node has of writes that have not come here yet is not written before they have", () => {
  const at = new Fixture();
  at.report();
  at.store.run();
  // The other one reads the block of a write with the number 10, of which nothing is here.
  at.answer(at.asked(), 0xbb, sumOf(0xbb), [GENERATION, 10]);
  at.store.run();
  at.repairer.tick();
  at.store.run();
  assertEquals(at.state, [0x11, true, GENERATION, 9], "number 9 does not stand for that block");
  // It was a write of another block.
  at.write(0xcc, BLOCK + 1);
  at.store.run();
  at.repairer.tick();
  at.store.run();
  assertEquals(at.state, [0xbb, false, GENERATION, 10]);
  assertEquals([at.repairer.repaired, at.repairer.waiting, at.arena.usedBytes % 8192], [
    1,
    0,
    4096,
  ]);
});

Deno.test("what the other node has is not written where it lacks a write that is here", () => {
  const at = new Fixture({ group: { inSync: [1, 2] } });
  for (let round = 0; round < 3; round++) {
    at.report();
    at.store.run();
    at.describe(at.transport.take()[0], [GENERATION, 8]);
    assertEquals(at.transport.take(), [], "it is not even read");
    at.repairer.tick();
  }
  at.store.run();
  at.answer(at.asked(), 0xaa);
  at.store.run();
  assertEquals(at.state, [0xaa, false, GENERATION, 9]);
});

Deno.test("the next node is asked where one lacks a write that is here", () => {
  const at = new Fixture();
  at.report();
  at.store.run();
  at.describe(at.transport.take()[0], [GENERATION, 8]);
  const read = at.asked();
  assertEquals(read.link, 3);
  at.answer(read, 0xaa);
  at.store.run();
  assertEquals(at.state, [0xaa, false, GENERATION, 9]);
});

Deno.test("a chunk of unknown stamp takes a block only at rest or to be brought in line, and where it is unknown, too, all the time", () => {
  const atRest = { holder: 0, disk: { settled: GENERATION } };
  const none = [0, 0], known = [GENERATION, 9];
  const cases = [
    { map: atRest, before: none, after: none, taken: true },
    { map: atRest, before: none, after: known, taken: false },
    { map: atRest, before: known, after: known, taken: false },
    // A holder has ended badly, and nobody has opened the disk since.
    { map: { holder: 0 }, before: none, after: none, taken: true },
    { map: { holder: 0 }, before: none, after: known, taken: false },
    { map: {}, before: none, after: none, taken: false },
    // The other node knows of a lease that this one has not heard of.
    { map: atRest, before: none, after: none, epoch: EPOCH + 1, taken: false },
  ];
  for (const { map, before, after, epoch, taken } of cases) {
    const at = new Fixture({ group: { inSync: [1, 2] }, ...map });
    Object.assign(at.chunk, { generation: 0, sequence: 0 });
    at.epoch = epoch ?? EPOCH;
    at.report();
    at.store.run();
    at.answer(at.asked(before), 0xaa, sumOf(0xaa), after);
    at.store.run();
    assertEquals([at.state[1], at.repairer.repaired], [!taken, taken ? 1 : 0]);
  }
});

Deno.test("a chunk that has its stamp only in part of the time takes nothing", () => {
  const at = new Fixture({ group: { inSync: [1, 2] } });
  at.report();
  at.store.run();
  // A write of which the other node has only parts so far.
  at.answer(at.asked(), 0xaa, sumOf(0xaa), [0, 0]);
  at.store.run();
  assertEquals(at.state, [0x11, true, GENERATION, 9]);
});

Deno.test("what the other node reads while its chunk is changed otherwise is not taken", () => {
  const at = new Fixture({ group: { inSync: [1, 2] } });
  at.report();
  at.store.run();
  const read = at.asked();
  const bytes = answerTo(read, {}, [sumOf(0xaa)]);
  const data = buffer(at.arena, 0xaa);
  at.peers.received(read.link, bytes, bytes.length, data, BLOCK_BYTES, () => {});
  at.describe(at.transport.take()[0], [GENERATION, 9], 1);
  at.store.run();
  assertEquals([at.state[1], at.repairer.waiting], [true, 1]);
});

Deno.test("after a bad end of a lease a chunk that nobody else has all writes of loses its stamp", () => {
  const cases = [
    { holder: 0, settled: GENERATION - 1, generation: GENERATION, stamp: GENERATION, lost: true },
    { holder: 0, settled: GENERATION, generation: GENERATION, stamp: GENERATION, lost: false },
    {
      holder: 3,
      settled: GENERATION - 1,
      generation: GENERATION + 1,
      stamp: GENERATION,
      lost: true,
    },
    { holder: 3, settled: GENERATION, generation: GENERATION + 1, stamp: GENERATION, lost: false },
    // A write of the new lease is here: the map is old that says that replicas are still being brought in line.
    { holder: 3, settled: 3, generation: GENERATION, stamp: GENERATION, lost: false },
  ];
  for (const { holder, settled, generation, stamp, lost } of cases) {
    const at = new Fixture({
      group: { inSync: [1, 2] },
      holder,
      disk: { settled, generation },
    });
    at.chunk.generation = stamp;
    at.report();
    at.store.run();
    at.describe(at.transport.take()[0], [GENERATION, 8]);
    at.store.run();
    const expected = lost ? [0x11, true, 0, 0] : [0x11, true, GENERATION, 9];
    assertEquals([at.state, at.repairer.waiting], [expected, lost ? 0 : 1]);
  }
});

Deno.test("a block that is wrong is replaced by that of the node that was named, and the chunk's stamp stays", () => {
  const at = new Fixture();
  at.replace(0x11, 0xaa);
  at.store.run();
  const read = at.asked();
  assertEquals([read.link, read.head.type, read.head.block], [3, MessageType.Read, BLOCK]);
  at.answer(read, 0xaa);
  at.store.run();
  assertEquals(at.state, [0xaa, false, GENERATION, 9]);
  assertEquals([at.repairer.repaired, at.repairer.waiting, at.arena.usedBytes], [1, 0, 0]);
});

Deno.test("zeros replace a block, and a block replaces what is nothing", () => {
  const at = new Fixture();
  at.replace(0x11, 0);
  at.store.run();
  at.answer(at.asked(), 0);
  at.store.run();
  assertEquals(at.state, ["zero", false, GENERATION, 9]);
  const hole = new Fixture();
  hole.chunk.blocks.delete(BLOCK);
  hole.chunk.blocks.set(BLOCK + 1, 7);
  hole.replace(0, 0xaa);
  hole.store.run();
  hole.answer(hole.asked(), 0xaa);
  hole.store.run();
  assertEquals(hole.state, [0xaa, false, GENERATION, 9]);
});

Deno.test("a block that is not what was found to be wrong is left alone, whenever it came", () => {
  const before = new Fixture();
  before.replace(0x12, 0xaa);
  before.store.run();
  assertEquals([before.transport.take(), before.state[0], before.repairer.waiting], [[], 0x11, 0]);
  for (const when of ["while it is fetched", "behind the last look"]) {
    const at = new Fixture();
    at.replace(0x11, 0xaa);
    at.store.run();
    const read = at.asked();
    if (when === "while it is fetched") {
      at.write(0xbb);
      at.store.run();
    }
    at.answer(read, 0xaa);
    if (when === "behind the last look") at.write(0xbb);
    at.store.run();
    assertEquals(at.state, [0xbb, false, GENERATION, 10], when);
    assertEquals([at.repairer.repaired, at.repairer.waiting, at.arena.usedBytes % 8192], [
      0,
      0,
      4096,
    ]);
  }
});

Deno.test("what the other node has by now is taken only if it is what was found to be right", () => {
  const at = new Fixture();
  at.replace(0x11, 0xaa);
  at.store.run();
  at.answer(at.asked(), 0xab);
  at.store.run();
  assertEquals([at.state[0], at.transport.take(), at.repairer.waiting], [0x11, [], 0]);
});

Deno.test("nobody but the node that was named is asked, and it only as long as it is in sync and up", () => {
  for (const options of [{ down: [3] }, { group: { inSync: [1, 2] } }]) {
    const at = new Fixture(options);
    at.replace(0x11, 0xaa);
    at.store.run();
    assertEquals([at.transport.take(), at.repairer.waiting], [[], 0]);
  }
  const at = new Fixture();
  at.replace(0x11, 0xaa);
  at.store.run();
  at.asked();
  const map = mapOf({ epoch: EPOCH + 1, group: { inSync: [1, 2], changedEpoch: EPOCH + 1 } });
  at.map(new ClusterView(map, SELF));
  at.store.run();
  assertEquals([at.transport.take(), at.repairer.waiting, at.state[0]], [[], 0, 0x11]);
});

Deno.test("a node that has left its group, or joins it, replaces nothing any more", () => {
  for (const group of [{ inSync: [2, 3] }, { inSync: [2, 3], joining: [1], joinedEpochs: [1] }]) {
    const at = new Fixture();
    at.replace(0x11, 0xaa);
    at.store.run();
    const read = at.asked();
    at.map(
      new ClusterView(
        mapOf({ epoch: EPOCH + 1, group: { ...group, changedEpoch: EPOCH + 1 } }),
        SELF,
      ),
    );
    at.answer(read, 0xaa);
    at.store.run();
    assertEquals([at.state[0], at.repairer.waiting], [0x11, 0]);
  }
});

Deno.test("what a layer has given to the one above it is not replaced where it was", () => {
  const above = 2;
  const layers = (isAbsorbed: boolean) => [
    { id: LAYER, parent: 0, absorbedBy: isAbsorbed ? [] : null },
    { id: above, parent: LAYER, absorbedBy: null },
  ];
  const options = (isAbsorbed: boolean) => ({
    disk: { layers: [above, LAYER] },
    layers: layers(isAbsorbed),
    epoch: isAbsorbed ? EPOCH + 1 : EPOCH,
  });
  for (const isAbsorbed of [false, true]) {
    const at = new Fixture(options(false));
    at.store.createLayer(above, () => {});
    at.replace(0x11, 0xaa);
    at.store.run();
    const read = at.asked();
    if (isAbsorbed) at.map(new ClusterView(mapOf(options(true)), SELF));
    at.answer(read, 0xaa);
    at.store.run();
    assertEquals([at.state[0], at.repairer.waiting], [isAbsorbed ? 0x11 : 0xaa, 0]);
  }
});

Deno.test("a chunk that holds nothing gets nothing: its stamp is that of what lies below", () => {
  const above = 2;
  const layers = [{ id: LAYER, parent: 0, absorbedBy: null }, {
    id: above,
    parent: LAYER,
    absorbedBy: null,
  }];
  for (const hasStamp of [false, true]) {
    const at = new Fixture({ disk: { layers: [above, LAYER] }, layers });
    at.store.createLayer(above, () => {});
    at.chunk.damaged.clear();
    if (hasStamp) Object.assign(at.store.chunk(above, CHUNK), { generation: 7, sequence: 9 });
    const list = [{ block: BLOCK, wrong: sumOf(0x11), right: sumOf(0xaa) }];
    at.repairer.replace(above, CHUNK, 3, list);
    at.store.run();
    at.answer(at.asked(), 0xaa);
    at.store.run();
    const { blocks } = at.store.chunk(above, CHUNK);
    assertEquals([...blocks], hasStamp ? [[BLOCK, 0xaa]] : []);
    assertEquals(at.state[0], 0x11);
  }
});

Deno.test("a block that is wrong never costs its chunk the stamp", () => {
  const at = new Fixture({
    group: { inSync: [1, 3] },
    holder: 0,
    disk: { settled: GENERATION - 1, generation: GENERATION },
  });
  at.replace(0x11, 0xaa);
  at.store.run();
  at.describe(at.transport.take()[0], [GENERATION, 8]);
  at.store.run();
  assertEquals([at.state, at.repairer.waiting], [[0x11, false, GENERATION, 9], 1]);
});

Deno.test("what is told twice is one, and damage that is known goes first", () => {
  const at = new Fixture();
  at.report();
  at.repairer.replace(LAYER, CHUNK, 3, [{ block: BLOCK, wrong: sumOf(0x11), right: sumOf(0xaa) }]);
  assertEquals(at.repairer.waiting, 1);
  const other = new Fixture();
  other.replace(0x11, 0xaa);
  other.replace(0x11, 0xcc);
  assertEquals(other.repairer.waiting, 1);
});

Deno.test("a layer that goes while a block of it is healed or replaced, and whose disk stays, is left alone", () => {
  const above = 2;
  const layers = [
    { id: LAYER, parent: 0, absorbedBy: null },
    { id: above, parent: LAYER, absorbedBy: null },
  ];
  for (const isDamaged of [true, false]) {
    for (
      const when of ["before it is asked for", "while it is fetched", "while it is waited for"]
    ) {
      const at = new Fixture({ disk: { layers: [above, LAYER] }, layers });
      at.store.createLayer(above, () => {});
      if (isDamaged) at.repairer.reportBlock(LAYER, CHUNK, BLOCK);
      else at.replace(0x11, 0xaa);
      at.repairer.tick();
      const gone = () => {
        const map = mapOf({
          disk: { layers: [above] },
          layers: [{ ...layers[1], parent: 0 }],
          epoch: EPOCH + 1,
        });
        at.map(new ClusterView(map, SELF));
      };
      if (when === "before it is asked for") gone();
      at.store.run();
      if (when !== "before it is asked for") {
        const read = at.asked();
        const stamp = [GENERATION, when === "while it is fetched" ? 9 : 10];
        if (when === "while it is fetched") gone();
        const bytes = answerTo(read, {}, [sumOf(0xaa)]);
        const release = (offset: number, length: number) => at.arena.release(offset, length);
        const data = buffer(at.arena, 0xaa);
        at.peers.received(read.link, bytes, bytes.length, data, BLOCK_BYTES, release);
        if (when !== "while it is fetched") {
          at.describe(at.transport.take()[0], stamp);
          gone();
          at.repairer.tick();
        }
      }
      at.store.run();
      assertEquals([at.transport.take(), at.repairer.waiting, at.state[0]], [[], 0, 0x11], when);
      assertEquals(at.arena.usedBytes, 0);
    }
  }
});

Deno.test("who looks at a block, or copies it, between its order and its end is told that it has changed", () => {
  const at = new Fixture();
  at.replace(0x11, 0xaa);
  at.store.run();
  at.answer(at.asked(), 0xaa);
  at.store.run(1);
  assertEquals(at.state[0], 0x11, "it is on its way");
  const watched = { layers: [LAYER], chunk: CHUNK, changed: new Uint32Array(32) };
  at.replica.watchChunk(watched);
  assertEquals(watched.changed[0], 0);
  at.store.run();
  assertEquals([at.state[0], watched.changed[0]], [0xaa, 1 << BLOCK]);
});
