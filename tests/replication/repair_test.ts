import { assertEquals } from "@std/assert/mod.js";
import { Arena } from "../../agent/base/arena.ts";
import { BLOCK_BYTES } from "../../agent/base/limits.ts";
import { MessageType, Status } from "../../agent/replication/messages.ts";
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

  report(): void {
    this.repairer.report(this.view.disk(1)!.entry.layers, CHUNK, BLOCK - 1, 4);
  }

  answer(sent: Sent, fill: number, sum = sumOf(fill)): void {
    const bytes = answerTo(sent, {}, [sum]);
    const release = (offset: number, length: number) => this.arena.release(offset, length);
    const at = buffer(this.arena, fill);
    this.peers.received(sent.link, bytes, bytes.length, at, BLOCK_BYTES, release);
  }

  /** A live write of the block, on its way into the store. */
  write(fill: number): void {
    const write = new LocalWrite();
    write.target = { localWriteDone() {} };
    const { operation } = write;
    operation.kind = OperationKind.Write;
    operation.layers = [LAYER];
    operation.chunk = CHUNK;
    operation.block = BLOCK;
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
  const [read] = at.transport.take();
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
  at.answer(at.transport.take()[0], 0xaa);
  at.store.run();
  assertEquals([at.repairer.repaired, at.repairer.waiting, at.arena.usedBytes], [1, 0, 0]);
});

Deno.test("a block that was written since is left alone", () => {
  for (const when of ["before it is looked at", "while it is fetched"]) {
    const at = new Fixture();
    at.report();
    if (when === "before it is looked at") at.chunk.damaged.clear();
    at.store.run();
    const [read] = at.transport.take();
    if (when === "while it is fetched") {
      at.write(0xbb);
      at.store.run();
      at.answer(read, 0xaa);
    } else assertEquals(read, undefined);
    at.store.run();
    assertEquals(at.chunk.blocks.get(BLOCK), when === "while it is fetched" ? 0xbb : 0x11, when);
    assertEquals([at.repairer.repaired, at.repairer.waiting], [0, 0], when);
  }
});

Deno.test("a block to which a live write is on its way is left to it", () => {
  const at = new Fixture();
  at.report();
  at.store.run();
  at.answer(at.transport.take()[0], 0xaa);
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
    const [read] = at.transport.take();
    if (isAcceptedBefore) at.write(0xbb);
    at.answer(read, 0xaa);
    // The disk takes its time for that read: what was there when it was asked for is damaged, and is replaced meanwhile.
    const look = at.store.waiting.pop()!;
    if (!isAcceptedBefore) at.write(0xbb);
    at.store.run();
    look.result = -EBADMSG;
    look.owner.operationDone(look);
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
      isReplacing: (_group, layer, chunk) =>
        when === "before" && layer === LAYER && chunk === CHUNK,
      liveWrite: () => LiveWrite.Apply,
    };
    at.report();
    at.store.run();
    at.answer(at.transport.take()[0], 0xaa);
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
  const [first] = at.transport.take();
  assertEquals(first.link, 2);
  at.answer(first, 0xaa, sumOf(0xab));
  const [second] = at.transport.take();
  assertEquals(second.link, 4);
  at.answer(second, 0xcc);
  at.store.run();
  assertEquals(at.state, [0xcc, false, GENERATION, 9]);
});

Deno.test("with nobody left to ask the block stays damaged, and is tried again when it is reported", () => {
  const at = new Fixture({ group: { inSync: [1, 2] } });
  at.report();
  at.store.run();
  at.answer(at.transport.take()[0], 0xaa, 0);
  at.store.run();
  assertEquals([at.state[1], at.repairer.waiting, at.arena.usedBytes], [true, 0, 0]);
  at.report();
  at.store.run();
  at.answer(at.transport.take()[0], 0xaa);
  at.store.run();
  assertEquals([at.state[1], at.repairer.repaired], [false, 1]);
});

Deno.test("who was asked and has left the group is not waited for", () => {
  const at = new Fixture();
  at.report();
  at.store.run();
  const [first] = at.transport.take();
  const inSync = [1, first.link === 2 ? 3 : 2];
  const map = mapOf({ epoch: EPOCH + 1, group: { inSync, changedEpoch: EPOCH + 1 } });
  at.map(new ClusterView(map, SELF));
  const [second] = at.transport.take();
  assertEquals(second.link, inSync[1]);
  at.answer(first, 0xaa);
  at.answer(second, 0xcc);
  at.store.run();
  assertEquals(at.state.slice(0, 2), [0xcc, false]);
});
