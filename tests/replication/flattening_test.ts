/**
 * Flattening a layer on one node: what is copied, what is left alone, and when the node gives its word.
 *
 * @module
 */
import { assertEquals } from "@std/assert/mod.js";
import { Arena } from "../../agent/base/arena.ts";
import type { Flattening, LayerEntry } from "../../agent/map/map.ts";
import type { DataCore } from "../../agent/replication/data_core.ts";
import type { LocalPaths } from "../../agent/replication/local_store.ts";
import { MessageFlag, MessageType, Status } from "../../agent/replication/messages.ts";
import { OperationKind } from "../../agent/store/operation.ts";
import {
  coreOf,
  EPOCH,
  FakeStore,
  FakeTransport,
  GENERATION,
  mapOf,
  type MapOptions,
  message,
} from "./harness.ts";

/** The layer below, and the one that is flattened. */
const BELOW = 1, LAYER = 2, CHUNK = 3, THEIRS = 11;

function flattened(flatten: Partial<Flattening> | null = {}): Pick<MapOptions, "disk" | "layers"> {
  const layers: LayerEntry[] = [
    { id: BELOW, parent: 0, absorbedBy: null },
    {
      id: LAYER,
      parent: BELOW,
      absorbedBy: null,
      ...(flatten === null ? {} : { flatten: { disk: 1, since: EPOCH, by: [], ...flatten } }),
    },
  ];
  return { disk: { layers: [LAYER, BELOW] }, layers };
}

/** Node 2 of three; node 1 has the lease. */
class Fixture {
  readonly transport = new FakeTransport();
  readonly store = new FakeStore(BELOW, LAYER);
  readonly arena = new Arena();
  readonly core: DataCore;
  /** Layers and epochs of the words given. */
  readonly words: (readonly [layer: number, epoch: number])[] = [];
  epoch = EPOCH;
  nowMs = 1000;

  constructor(options: MapOptions = {}) {
    Object.assign(this.store.chunk(BELOW, CHUNK), { generation: 4, sequence: 40 });
    this.core = coreOf(this, mapOf({ ...flattened(), ...options }), 2, {
      flattened: (layers, epoch) =>
        this.words.push(...layers.map((each) => [each, epoch] as const)),
    });
    this.core.linkUp(THEIRS, 1, false, 1);
    this.core.renew(Infinity);
  }

  map(options: MapOptions): void {
    this.core.setMap(mapOf({ epoch: ++this.epoch, ...flattened(), ...options }), 2, 1);
  }

  /** Time passes, and the store does what it is told. */
  run(ms = 100): void {
    for (const end = this.nowMs + ms; this.nowMs < end;) {
      this.core.tick(this.nowMs += 10);
      this.store.run();
    }
  }

  content(layer = LAYER): Record<number, number | "zero"> {
    return Object.fromEntries(this.store.chunk(layer, CHUNK).blocks);
  }

  stamp(): string {
    const { generation, sequence } = this.store.chunk(LAYER, CHUNK);
    return `${generation}.${sequence}`;
  }

  below(blocks: Readonly<Record<number, number | "zero">>): void {
    const chunk = this.store.chunk(BELOW, CHUNK);
    for (const [block, fill] of Object.entries(blocks)) chunk.blocks.set(Number(block), fill);
  }
}

Deno.test("data from below goes where the layer has nothing; then it is synced, and said until the map has it", () => {
  const at = new Fixture();
  at.below({ 0: 0x10, 1: 0x11, 2: "zero", 3: 0x13, 700: 0x70 });
  at.store.chunk(LAYER, CHUNK).blocks.set(1, 0xaa);
  at.store.chunk(LAYER, CHUNK).blocks.set(3, "zero");
  Object.assign(at.store.chunk(LAYER, CHUNK), { generation: 6, sequence: 60 });
  at.store.chunk(BELOW, CHUNK + 1).blocks.set(5, 0x55);
  Object.assign(at.store.chunk(BELOW, CHUNK + 1), { generation: 4, sequence: 41 });
  at.run();
  assertEquals(at.content(), { 0: 0x10, 1: 0xaa, 3: "zero", 700: 0x70 });
  assertEquals(at.stamp(), "6.60", "what it wrote itself has the stamp");
  const other = at.store.chunk(LAYER, CHUNK + 1);
  assertEquals([other.blocks.get(5), other.generation, other.sequence], [0x55, 4, 41]);
  assertEquals(at.store.done.at(-1), OperationKind.Sync);
  assertEquals(at.words, [[LAYER, EPOCH]]);
  assertEquals(at.core.flattener.copiedBytes, 3 * 4096);
  at.run(1000);
  assertEquals(at.words.length, 2, "it may have been lost");
  at.map(flattened({ by: [2] }));
  at.run(2000);
  assertEquals(at.words.length, 2);
  assertEquals(at.arena.usedBytes, 0);
});

Deno.test("a chunk of which nothing is to be copied has the stamp of the chain all the same, where it has none", () => {
  const at = new Fixture();
  at.below({ 0: "zero", 700: "zero" });
  Object.assign(at.store.chunk(BELOW, CHUNK + 1), { generation: 4, sequence: 41 });
  Object.assign(at.store.chunk(BELOW, CHUNK + 2), { generation: 4, sequence: 42 });
  Object.assign(at.store.chunk(LAYER, CHUNK + 2), { generation: 6, sequence: 60 });
  at.store.chunk(BELOW, CHUNK + 3).blocks.set(5, "zero");
  at.run();
  const stamps = [0, 1, 2, 3].map((i) => {
    const { generation, sequence, blocks } = at.store.chunk(LAYER, CHUNK + i);
    return `${generation}.${sequence} ${blocks.size}`;
  });
  assertEquals(stamps, ["4.40 0", "4.41 0", "6.60 0", "0.0 0"]);
  assertEquals([at.words, at.core.flattener.copiedBytes], [[[LAYER, EPOCH]], 0]);
});

Deno.test("a guest that is the first to write a chunk keeps its stamp, whatever is passed to it meanwhile", () => {
  const at = new Fixture();
  at.core.tick(at.nowMs += 10);
  assertEquals(at.store.waiting.map(({ kind }) => kind), [OperationKind.Fill]);
  Object.assign(at.store.chunk(LAYER, CHUNK), { generation: 7, sequence: 1 });
  at.run();
  assertEquals(at.stamp(), "7.1");
});

Deno.test("what a guest writes between reading and filling stays", () => {
  const at = new Fixture();
  at.below({ 0: 0x10, 1: 0x11 });
  at.core.tick(at.nowMs += 10);
  assertEquals(at.store.waiting.map(({ kind }) => kind), [OperationKind.Read]);
  at.store.run(1);
  const chunk = at.store.chunk(LAYER, CHUNK);
  chunk.blocks.set(1, 0xbb);
  Object.assign(chunk, { generation: 7, sequence: 1 });
  at.run();
  assertEquals([at.content(), at.stamp()], [{ 0: 0x10, 1: 0xbb }, "7.1"]);
  assertEquals(at.words, [[LAYER, EPOCH]]);
});

Deno.test("a node that joins, or whose group is brought in line, waits; one that is no member forgets its stamps", () => {
  const isJoining = { inSync: [1, 3], joining: [2], joinedEpochs: [CHANGED_LATER] };
  for (const group of [isJoining, { unclean: [1] }]) {
    const at = new Fixture({ group, down: [1, 3] });
    at.below({ 0: 0x10 });
    at.run(3000);
    assertEquals([at.content(), at.words], [{}, []]);
    assertEquals(at.core.status.flattening.stuck, null, "it goes on by itself");
    at.map({ group: { changedEpoch: at.epoch } });
    at.run(2000);
    assertEquals([at.content(), at.words.at(0)], [{ 0: 0x10 }, [LAYER, at.epoch]]);
  }
  const at = new Fixture({ group: { target: [1, 3], inSync: [1, 3, 4] } });
  at.below({ 0: 0x10 });
  Object.assign(at.store.chunk(LAYER, CHUNK), { generation: 6, sequence: 60 });
  at.run();
  assertEquals([at.content(), at.stamp(), at.words], [{}, "0.0", [[LAYER, EPOCH]]]);
});
const CHANGED_LATER = EPOCH - 1;

Deno.test("a damaged block below is waited for, not left out", () => {
  const at = new Fixture();
  at.below({ 0: 0x10, 900: 0x90 });
  at.store.chunk(BELOW, CHUNK).damaged.add(900);
  at.run(3000);
  assertEquals([at.content(), at.words], [{ 0: 0x10 }, []]);
  assertEquals(at.core.status.flattening.stuck, "blocks that it is to copy are damaged");
  at.store.chunk(BELOW, CHUNK).damaged.clear();
  at.run(2000);
  assertEquals([at.content()[900], at.words.length > 0], [0x90, true]);
  assertEquals(at.core.status.flattening.stuck, null);
});

Deno.test("a store that is nearly full is left alone, and said to be", () => {
  const at = new Fixture();
  at.below({ 0: 0x10 });
  at.store.isTight = true;
  at.run(3000);
  assertEquals([at.content(), at.words, at.arena.usedBytes], [{}, [], 0]);
  assertEquals(at.core.status.flattening.stuck, "its store is nearly full");
  at.store.isTight = false;
  at.run();
  assertEquals([at.content(), at.words.length], [{ 0: 0x10 }, 1]);
});

Deno.test("a store that fails gets another try, and no word before", () => {
  const at = new Fixture();
  at.below({ 0: 0x10 });
  at.store.failure = -5;
  at.run(3000);
  assertEquals([at.words, at.arena.usedBytes], [[], 0]);
  at.store.failure = 0;
  at.run(2000);
  assertEquals([at.content(), at.words.length > 0], [{ 0: 0x10 }, true]);
});

Deno.test("once it is cancelled nothing is filled any more, and what begins anew waits for what is under way", () => {
  const at = new Fixture();
  at.below({ 0: 0x10 });
  at.core.tick(at.nowMs += 10);
  const read = at.store.waiting.splice(0);
  assertEquals(read.length, 1);
  at.map(flattened(null));
  at.map(flattened({ since: at.epoch + 1 }));
  at.run(2000);
  assertEquals([at.content(), at.words], [{}, []], "the read of before has not come back");
  at.store.waiting.push(...read);
  at.store.run();
  assertEquals(at.content(), {});
  at.run(2000);
  assertEquals([at.content(), at.words.at(0)], [{ 0: 0x10 }, [LAYER, at.epoch]]);
});

Deno.test("a word is given under the map of now, and not when the node's places were others meanwhile", () => {
  const at = new Fixture();
  at.below({ 0: 0x10 });
  at.core.tick(at.nowMs += 10);
  at.store.run();
  assertEquals(at.store.done.at(-1), OperationKind.Fill);
  at.map({ group: { inSync: [1, 3], joining: [2], joinedEpochs: [at.epoch + 1] } });
  at.run(500);
  assertEquals(at.words, []);
  // Another one's coming and going is none of its business.
  const ready = new Fixture();
  ready.run();
  assertEquals(ready.words, [[LAYER, EPOCH]]);
  ready.map({ group: { inSync: [1, 2], changedEpoch: ready.epoch + 1 } });
  ready.run(1100);
  assertEquals(ready.words.at(-1), [LAYER, EPOCH + 1]);
});

Deno.test("a chunk that is copied from another node meanwhile is not filled before that is over", () => {
  for (const isFull of [false, true]) {
    const at = new Fixture();
    at.below({ 0: 0x10 });
    // What is there now may be gone when the copy is done.
    if (isFull) at.store.chunk(LAYER, CHUNK).blocks.set(0, 0x10);
    const head = {
      type: MessageType.Pull,
      id: 1,
      epoch: EPOCH,
      disk: 1,
      layer: LAYER,
      chunk: CHUNK,
      generation: GENERATION,
      argument: 3,
    };
    const bytes = message(head);
    at.core.received(THEIRS, bytes, bytes.length, 0, 0);
    at.run(3000);
    assertEquals([at.content(), at.stamp(), at.words], [isFull ? { 0: 0x10 } : {}, "0.0", []]);
    const asked = at.transport.take().filter((each) => each.head.type === MessageType.Describe);
    assertEquals([asked.length, asked[0].head.flags], [
      1,
      MessageFlag.Recovery | MessageFlag.Chain,
    ]);
  }
});

Deno.test("who copies a layer that is flattened gets all that it is read through, from a source that has copied none of it", () => {
  const at = new Fixture({ down: [3] });
  at.below({ 0: 0x10, 1: 0x11 });
  at.store.chunk(LAYER, CHUNK).blocks.set(1, 0xaa);
  const ask = (type: MessageType, block: number, count: number, extra: number[]) => {
    const flags = MessageFlag.Recovery | MessageFlag.Chain;
    const head = { type, id: block + 1, epoch: EPOCH, flags, disk: 1, layer: LAYER, chunk: CHUNK };
    const bytes = message({ ...head, block, count }, extra);
    at.core.received(THEIRS, bytes, bytes.length, 0, 0);
    at.store.run();
    return at.transport.take().at(-1)!;
  };
  const described = ask(MessageType.Describe, 0, 0, []);
  assertEquals(described.head.status, Status.Ok);
  assertEquals(described.extra[0], 0b11);
  const read = ask(MessageType.Read, 0, 2, [LAYER]);
  assertEquals([read.head.status, read.head.count], [Status.Ok, 2]);
  // Nothing of its own yet: it counts as what lies below.
  at.store.chunk(LAYER, CHUNK).blocks.clear();
  const empty = ask(MessageType.Describe, 0, 0, []);
  assertEquals([empty.head.generation, empty.head.sequence], [4, 40]);
});

Deno.test("while a data path is lost nothing is said: what it has may come back as it was", () => {
  const at = new Fixture();
  at.below({ 0: 0x10 });
  let lost: string | null = "the path /disk2";
  const paths: LocalPaths = {
    prepare: () => true,
    installed() {},
    isImpaired: true,
    lossEpoch: 0,
    isLost: () => false,
    lossOf: () => lost,
    owed: () => null,
  };
  Object.assign(at.store, { paths });
  at.run(3000);
  assertEquals([at.content(), at.words], [{}, []]);
  assertEquals(at.core.status.flattening.stuck, "a data path of this node is lost");
  lost = null;
  at.run(2000);
  assertEquals([at.content(), at.words.length > 0], [{ 0: 0x10 }, true]);
  // Lost in the midst of it.
  const other = new Fixture();
  other.below({ 0: 0x10 });
  Object.assign(other.store, { paths });
  other.core.tick(other.nowMs += 10);
  lost = "the path /disk2";
  other.run(3000);
  assertEquals(other.words, []);
});
