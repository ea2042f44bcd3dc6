/**
 * A chunk that lacks writes is copied while nothing comes to it, and is left alone as soon as something does.
 *
 * @module
 */
import { assertEquals } from "@std/assert/mod.js";
import { Arena } from "../../agent/base/arena.ts";
import { BLOCK_SHIFT } from "../../agent/base/limits.ts";
import { EIO } from "../../agent/platform/platform.ts";
import { Completer } from "../../agent/replication/completing.ts";
import { DESCRIPTION_WORDS, MessageType, Status } from "../../agent/replication/messages.ts";
import { Peers } from "../../agent/replication/peers.ts";
import { LocalWrite, Replica } from "../../agent/replication/replica.ts";
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

const SELF = 1, SOURCE = 3, LAYER = 1, CHUNK = 3;

/** What the other node has: two runs of data, and zeros. */
const THERE: Record<number, number | "zero"> = { 1: 0x21, 2: 0x22, 7: "zero", 500: 0x23 };
/** What is here: a block that is old, one that should be gone, and one that is the same. */
const HERE: Record<number, number | "zero"> = { 1: 0x11, 9: 0x19, 500: 0x23 };

class Fixture {
  readonly store = new FakeStore(LAYER);
  readonly transport = new FakeTransport();
  readonly peers = new Peers(this.transport);
  readonly arena = new Arena();
  readonly replica: Replica;
  readonly completer: Completer;
  view: ClusterView;
  /** Results of live writes, by number. */
  readonly done: [number, number][] = [];

  constructor(options: MapOptions = {}) {
    const { store, peers, arena, transport } = this;
    this.replica = new Replica({ store, window, arena, transport, log: silent });
    const { replica } = this;
    this.completer = new Completer({ store, replica, peers, window, arena, log: silent });
    replica.completer = this.completer;
    this.view = new ClusterView(mapOf(options), SELF);
    this.map(options);
    for (const node of [2, 3, 4]) peers.linkUp(node, node, 1);
    const { chunk } = this;
    Object.assign(chunk, { generation: GENERATION, sequence: 7 });
    for (const [block, fill] of Object.entries(HERE)) chunk.blocks.set(Number(block), fill);
  }

  map(options: MapOptions): void {
    this.view = new ClusterView(mapOf(options), SELF);
    this.replica.mapChanged(this.view, 1);
    this.completer.mapChanged(this.view);
  }

  get chunk() {
    return this.store.chunk(LAYER, CHUNK);
  }

  /** Stamp and content. */
  get state() {
    const { generation, sequence, blocks } = this.chunk;
    return [generation, sequence, Object.fromEntries([...blocks].sort(([a], [b]) => a - b))];
  }

  begin(): void {
    this.completer.complete(LAYER, CHUNK, SOURCE);
  }

  take(type: MessageType): Sent {
    const [sent, ...others] = this.transport.take();
    assertEquals([sent?.head.type, sent?.link, others], [type, SOURCE, []]);
    return sent;
  }

  /** The other node says what its chunk is made of. */
  describe(sent: Sent, sequence = 9, rewrites = 0, generation = GENERATION): void {
    const words = new Uint32Array(DESCRIPTION_WORDS);
    for (const [block, fill] of Object.entries(THERE)) {
      const at = Number(block), half = fill === "zero" ? DESCRIPTION_WORDS / 2 : 0;
      words[half + (at >>> 5)] |= 1 << (at & 31);
    }
    const bytes = answerTo(sent, { generation, sequence, argument: rewrites }, words);
    this.peers.received(sent.link, bytes, bytes.length, 0, 0, () => {});
  }

  /** …and gives what is asked for. */
  read(sent: Sent, isDamaged = false): void {
    const { block, count } = sent.head;
    const fills = Array.from({ length: count }, (_, i) => THERE[block + i] as number);
    const at = buffer(this.arena, ...fills);
    const sums = fills.map((fill) => sumOf(isDamaged ? fill + 1 : fill));
    const bytes = answerTo(sent, {}, sums);
    const release = (offset: number, length: number) => this.arena.release(offset, length);
    this.peers.received(sent.link, bytes, bytes.length, at, count << BLOCK_SHIFT, release);
  }

  refuse(sent: Sent, status: number): void {
    const bytes = answerTo(sent, { status });
    this.peers.received(sent.link, bytes, bytes.length, 0, 0, () => {});
  }

  /** All of the other one's chunk comes here; what is left is to say that it stands still. */
  fetch(): Sent {
    this.begin();
    this.describe(this.take(MessageType.Describe));
    this.read(this.take(MessageType.Read));
    this.read(this.take(MessageType.Read));
    return this.take(MessageType.Describe);
  }

  /** A live write of a block. */
  write(sequence: number, block: number, fill: number): void {
    const write = new LocalWrite();
    write.target = {
      localWriteDone: (_, result) => this.done.push([sequence, result]),
    };
    const { operation } = write;
    operation.kind = OperationKind.Write;
    operation.layers = [LAYER];
    operation.chunk = CHUNK;
    operation.block = block;
    operation.blockCount = 1;
    operation.buffer = buffer(this.arena, fill);
    operation.checksums = Uint32Array.of(sumOf(fill));
    operation.generation = GENERATION;
    operation.sequence = sequence;
    this.replica.apply(write, this.view.groupOf(this.view.disk(1)!, CHUNK), false);
  }

  get isAtRest(): boolean {
    return this.completer.waiting === 0 && this.peers.count === 0 &&
      this.transport.sent.length === 0;
  }
}

const OLD = [GENERATION, 7, HERE];
const NEW = [GENERATION, 9, THERE];

Deno.test("a chunk becomes what the other one has, all of it, with its stamp", () => {
  const at = new Fixture();
  at.describe(at.fetch());
  assertEquals(at.state, OLD, "nothing before it is in the store");
  at.store.run();
  assertEquals(at.state, NEW);
  assertEquals([at.completer.completed, at.isAtRest, at.arena.usedBytes], [1, true, 0]);
  assertEquals(at.store.done.at(0), OperationKind.Stamp);
  assertEquals(at.store.done.at(-1), OperationKind.Stamp);
});

Deno.test("a chunk of which there is nothing here, or whose stamp is unknown, is one that lacks writes", () => {
  for (const isThere of [true, false]) {
    const at = new Fixture();
    if (isThere) Object.assign(at.chunk, { generation: 0, sequence: 0 });
    else at.store.dropChunk(LAYER, CHUNK, () => {});
    at.describe(at.fetch());
    at.store.run();
    assertEquals(at.state, NEW);
  }
});

Deno.test("whatever part of it a crash leaves, the stamp is unknown until all of it is there", () => {
  for (let count = 0;; count++) {
    const at = new Fixture();
    at.describe(at.fetch());
    at.store.run(count);
    const isAll = at.store.waiting.length === 0;
    const [generation, sequence, blocks] = at.state;
    if (count === 0) assertEquals(at.state, OLD);
    else if (!isAll) assertEquals([generation, sequence], [0, 0]);
    else assertEquals([generation, sequence, blocks], NEW);
    if (isAll) break;
  }
});

Deno.test("where the other one has no more writes nothing is copied", () => {
  for (const [generation, sequence] of [[GENERATION, 7], [GENERATION, 6], [0, 0], [1, 99]]) {
    const at = new Fixture();
    at.begin();
    at.describe(at.take(MessageType.Describe), sequence, 0, generation);
    assertEquals([at.isAtRest, at.store.waiting, at.state], [true, [], OLD]);
  }
});

Deno.test("where the other one does not stand still nothing is changed", () => {
  const cases = [[10, 0, GENERATION], [9, 1, GENERATION], [0, 0, 0]];
  for (const [sequence, rewrites, generation] of cases) {
    const at = new Fixture();
    at.describe(at.fetch(), sequence, rewrites, generation);
    assertEquals([at.isAtRest, at.store.waiting, at.state], [true, [], OLD]);
    assertEquals(at.arena.usedBytes, 0);
  }
});

Deno.test("where anything comes to the chunk here it is left to that, whenever it comes", () => {
  for (
    const when of ["on its way", "described", "read", "before the end", "before the end, and done"]
  ) {
    const at = new Fixture();
    const write = () => at.write(8, 9, 0x99);
    if (when === "on its way") write();
    at.begin();
    if (when === "on its way") assertEquals(at.transport.take(), []);
    else {
      const described = at.take(MessageType.Describe);
      if (when === "described") write();
      at.describe(described);
      const read = at.take(MessageType.Read);
      if (when === "read") write();
      at.read(read);
      if (when.startsWith("before")) {
        at.read(at.take(MessageType.Read));
        const end = at.take(MessageType.Describe);
        write();
        if (when.endsWith("done")) at.store.run();
        at.describe(end);
      }
    }
    at.store.run();
    assertEquals(at.transport.take(), [], when);
    assertEquals(at.state, [GENERATION, 8, { ...HERE, 9: 0x99 }], when);
    assertEquals([at.isAtRest, at.completer.completed], [true, 0], when);
  }
});

Deno.test("where the chunk is changed otherwise it is left alone as well", () => {
  for (const how of ["rewriting", "replacing"] as const) {
    const at = new Fixture();
    const end = at.fetch();
    at.replica[how](LAYER, CHUNK);
    at.describe(end);
    assertEquals([at.store.waiting, at.isAtRest], [[], true]);
  }
  const stamped = new Fixture();
  const end = stamped.fetch();
  stamped.chunk.sequence = 8;
  stamped.describe(end);
  assertEquals(stamped.store.waiting, []);
});

Deno.test("writes that come meanwhile are behind it, but for those that it has: they are given back when it is done", () => {
  const at = new Fixture();
  at.describe(at.fetch());
  at.write(8, 1, 0x81);
  at.write(9, 1, 0x91);
  at.write(10, 2, 0xa2);
  assertEquals(at.done, []);
  at.store.run(3);
  at.replica.endTurn();
  assertEquals(at.done, [], "it is not all in the store");
  at.store.run();
  at.replica.endTurn();
  assertEquals(at.done, [[10, 0], [8, 0], [9, 0]]);
  assertEquals(at.state, [GENERATION, 10, { ...THERE, 2: 0xa2 }]);
});

Deno.test("a store that fails fails what was held as well", () => {
  const at = new Fixture();
  at.describe(at.fetch());
  at.write(8, 1, 0x81);
  at.store.failure = -EIO;
  at.store.run();
  assertEquals(at.done, [[8, -EIO]]);
  assertEquals([at.completer.completed, at.isAtRest], [0, true]);
});

Deno.test("a write of another chunk, or of another layer, is none of its business", () => {
  const at = new Fixture();
  at.describe(at.fetch());
  const write = new LocalWrite();
  for (const [layers, chunk] of [[[LAYER], CHUNK + 1], [[2], CHUNK]] as const) {
    Object.assign(write.operation, { layers, chunk, generation: 1, sequence: 1 });
    assertEquals(at.completer.holds(write), false);
  }
  Object.assign(write.operation, { layers: [LAYER], chunk: CHUNK });
  assertEquals(at.completer.holds(write), true);
});

Deno.test("who copies or looks at the chunk meanwhile is told that it changes, before and after", () => {
  const at = new Fixture();
  const before = { layers: [LAYER], chunk: CHUNK, changed: new Uint32Array(32) };
  const since = { ...before, changed: new Uint32Array(32) };
  at.replica.watchChunk(before);
  at.describe(at.fetch());
  assertEquals(before.changed.every((word) => word === 0xffff_ffff), true);
  at.replica.watchChunk(since);
  assertEquals(since.changed.every((word) => word === 0), true);
  at.store.run();
  assertEquals(since.changed.every((word) => word === 0xffff_ffff), true);
});

Deno.test("only where both are in sync, in an open group, of a disk in order, with the layer by itself", () => {
  const above = 2;
  const layers = (parent: Partial<ReturnType<typeof layer>>, own = {}) => [
    { ...layer(LAYER, 0), ...parent },
    { ...layer(above, LAYER), ...own },
  ];
  const cases: MapOptions[] = [
    { group: { inSync: [1, 2] } },
    { group: { inSync: [2, 3], joining: [1], joinedEpochs: [1] } },
    { group: { unclean: [2] } },
    { down: [SOURCE] },
    { holder: 0 },
    { disk: { layers: [above, LAYER] }, layers: layers({ absorbedBy: [] }) },
    { layers: [{ ...layer(LAYER, 0), flatten: { disk: 1, since: 1, by: [] } }] },
  ];
  for (const options of cases) {
    const at = new Fixture(options);
    at.begin();
    assertEquals(at.isAtRest, true, JSON.stringify(options));
    // …also if it becomes so in the middle.
    const other = new Fixture();
    const end = other.fetch();
    const group = { changedEpoch: EPOCH + 1, ...options.group };
    other.map({ ...options, epoch: EPOCH + 1, group });
    assertEquals(other.isAtRest, true, "its request is taken back");
    other.describe(end);
    assertEquals([other.isAtRest, other.store.waiting], [true, []], JSON.stringify(options));
    assertEquals(other.arena.usedBytes, 0);
  }
  const absorbing = new Fixture({
    disk: { layers: [above, LAYER] },
    layers: layers({ absorbedBy: [] }),
  });
  absorbing.store.createLayer(above, () => {});
  absorbing.completer.complete(above, CHUNK, SOURCE);
  assertEquals(absorbing.isAtRest, true);
});

function layer(id: number, parent: number) {
  return { id, parent, absorbedBy: null as readonly number[] | null };
}

Deno.test("who is busy with guests is asked again a little later, from the beginning; what is damaged is not taken", () => {
  const at = new Fixture();
  at.begin();
  for (let round = 0; round < 3; round++) {
    at.refuse(at.take(MessageType.Describe), Status.Busy);
    assertEquals([at.transport.take(), at.completer.waiting], [[], 1]);
    at.completer.tick();
  }
  at.describe(at.take(MessageType.Describe));
  at.refuse(at.take(MessageType.Read), Status.Busy);
  at.completer.tick();
  at.describe(at.take(MessageType.Describe));
  at.read(at.take(MessageType.Read), true);
  assertEquals([at.isAtRest, at.store.waiting, at.arena.usedBytes], [true, [], 0]);
  at.begin();
  at.refuse(at.take(MessageType.Describe), Status.Stale);
  assertEquals(at.isAtRest, true);
});

Deno.test("the last of a store's space is for guests, and nobody waits for room for ever", () => {
  const at = new Fixture();
  at.store.isTight = true;
  at.begin();
  for (let ticks = 0; ticks < 50; ticks++) at.completer.tick();
  assertEquals([at.completer.waiting, at.transport.sent], [1, []]);
  at.store.isTight = false;
  at.completer.tick();
  at.take(MessageType.Describe);
  const full = new Fixture();
  full.store.isTight = true;
  full.begin();
  for (let ticks = 0; ticks < 200; ticks++) full.completer.tick();
  assertEquals(full.completer.waiting, 0);
});

Deno.test("one at a time, each once, and no more than there is room for", () => {
  const at = new Fixture();
  at.begin();
  at.begin();
  for (let i = 0; i < 100; i++) at.completer.complete(LAYER, CHUNK + 1 + i, SOURCE);
  assertEquals(at.completer.waiting, 65);
  at.describe(at.take(MessageType.Describe), 7);
  assertEquals(at.take(MessageType.Describe).head.chunk, CHUNK + 1);
});
