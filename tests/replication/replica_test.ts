import { assertEquals } from "@std/assert/mod.js";
import { SET_WORDS } from "../../agent/replication/block_set.ts";
import { Arena } from "../../agent/base/arena.ts";
import { BLOCK_BYTES } from "../../agent/base/limits.ts";
import { Prng } from "../../agent/base/prng.ts";
import type { ClusterMap } from "../../agent/map/map.ts";
import {
  ANSWER,
  MESSAGE_TYPE_MAX,
  MessageFlag,
  MessageType,
  Status,
} from "../../agent/replication/messages.ts";
import { Pace } from "../../agent/replication/pace.ts";
import { LocalWrite, Replica } from "../../agent/replication/replica.ts";
import { ClusterView } from "../../agent/replication/view.ts";
import { OperationKind } from "../../agent/store/operation.ts";
import {
  buffer,
  CHANGED,
  coreOf,
  EPOCH,
  FakeStore,
  FakeTransport,
  GENERATION,
  type HeadFields,
  mapOf,
  type MapOptions,
  message,
  silent,
  sumOf,
  window,
} from "./harness.ts";

/** This node, and the one that holds the lease. */
const SELF = 2, HOLDER = 1, LINK = 11;

class Fixture {
  readonly transport = new FakeTransport();
  readonly store = new FakeStore(1);
  readonly arena = new Arena();
  readonly replica = new Replica({
    store: this.store,
    window,
    arena: this.arena,
    transport: this.transport,
    log: silent,
  });

  constructor(map: ClusterMap = mapOf()) {
    this.replica.mapChanged(new ClusterView(map, SELF), 1);
    this.replica.linkUp(LINK, HOLDER, 1);
  }

  map(options: MapOptions): void {
    this.replica.mapChanged(new ClusterView(mapOf(options), SELF), 1);
  }

  receive(fields: HeadFields, { link = LINK, data = [] as number[], extra = [] as number[] } = {}) {
    const at = data.length === 0 ? 0 : buffer(this.arena, ...data);
    const bytes = message(fields, extra);
    return this.replica.received(link, bytes, bytes.length, at, data.length * BLOCK_BYTES);
  }

  /** The connection ends, and another one is made. */
  reconnect(): void {
    this.replica.linkDown(LINK);
    this.replica.linkUp(LINK, HOLDER, 1);
  }

  /** The holder writes one block. */
  write(id: number, fill: number, fields: HeadFields = {}, link = LINK): boolean {
    return this.receive({ ...WRITE, id, sequence: id, ...fields }, {
      link,
      data: [fill],
      extra: [sumOf(fill)],
    });
  }

  /** What was answered since the last call: id and status. */
  answers(): [id: number, status: number][] {
    return this.transport.take().map(({ head }) => [head.id, head.status]);
  }

  /** What block 5 of chunk 3 holds. */
  get content() {
    return this.store.content.get(1)!.get(3)?.blocks.get(5);
  }

  run(): void {
    this.store.run();
    this.replica.endTurn();
  }
}

const WRITE: HeadFields = {
  type: MessageType.Write,
  epoch: EPOCH,
  disk: 1,
  layer: 1,
  chunk: 3,
  block: 5,
  count: 1,
  generation: GENERATION,
};

Deno.test("a write is acknowledged once the store has applied it, and not before", () => {
  const at = new Fixture();
  at.write(1, 0xaa);
  assertEquals(at.answers(), []);
  at.run();
  assertEquals(at.content, 0xaa);
  const [{ head, link }] = at.transport.take();
  assertEquals([link, head.type, head.id, head.status, head.epoch], [
    LINK,
    MessageType.Write | ANSWER,
    1,
    Status.Ok,
    EPOCH,
  ]);
  assertEquals(at.arena.usedBytes, 0);
  const { generation, sequence } = at.store.chunk(1, 3);
  assertEquals([generation, sequence], [GENERATION, 1]);
});

Deno.test("a store that fails is an errno for the sender, not a success", () => {
  const at = new Fixture();
  at.store.failure = -5;
  at.write(1, 0xaa);
  at.run();
  assertEquals(at.answers(), [[1, -5]]);
  assertEquals(at.arena.usedBytes, 0);
});

const STALE: [what: string, fields: HeadFields, map?: MapOptions][] = [
  ["the group has changed since the sender's map", { epoch: CHANGED - 1 }],
  ["an earlier lease", { generation: GENERATION - 1 }],
  ["a lease that nobody has had yet", { generation: GENERATION + 1 }],
  ["the lease is another node's", {}, { holder: 3 }],
  ["nobody holds the lease", {}, { holder: 0 }],
  ["a member has crashed", {}, { group: { unclean: [3] } }],
  ["the group is being settled", {}, { group: { unclean: [3], unsettled: true } }],
  ["this node is no member", {}, { group: { inSync: [1, 3] } }],
  ["there is no such disk", { disk: 9 }],
  ["the layer is not the disk's", { layer: 9 }],
];

for (const [what, fields, map] of STALE) {
  Deno.test(`a write is refused as stale and changes nothing: ${what}`, () => {
    const at = new Fixture(mapOf(map));
    for (const type of [MessageType.Write, MessageType.Free, MessageType.Zero]) {
      const isWrite = type === MessageType.Write;
      const good = at.receive({ ...WRITE, id: type, sequence: 1, type, ...fields }, {
        data: isWrite ? [0xaa] : [],
        extra: isWrite ? [sumOf(0xaa)] : [],
      });
      assertEquals(good, true);
      assertEquals(at.answers(), [[type, Status.Stale]]);
    }
    assertEquals(at.store.waiting, []);
    assertEquals(at.arena.usedBytes, 0);
    assertEquals(at.replica.counters.stale, 3);
  });
}

Deno.test("a write under the very epoch of the group's last change is taken", () => {
  const at = new Fixture();
  at.write(1, 0xaa, { epoch: CHANGED });
  at.run();
  assertEquals(at.answers(), [[1, Status.Ok]]);
});

Deno.test("what was sent under a newer map waits for it, with all that follows on its link", () => {
  const at = new Fixture();
  at.replica.linkUp(LINK + 1, 3, 1);
  at.write(1, 0xaa, { epoch: EPOCH + 1 });
  at.write(2, 0xbb);
  assertEquals(at.store.waiting.length, 0);
  assertEquals([...at.transport.paused], [LINK]);
  // Other links go on.
  at.receive({ type: MessageType.Sync, id: 9, epoch: EPOCH }, { link: LINK + 1 });
  at.run();
  assertEquals(at.answers(), [[9, Status.Ok]]);
  at.map({ epoch: EPOCH + 1 });
  at.run();
  assertEquals(at.answers(), [[1, Status.Ok], [2, Status.Ok]]);
  assertEquals(at.content, 0xbb);
  assertEquals([...at.transport.paused], []);
});

Deno.test("what waited is judged by the map that it waited for", () => {
  const at = new Fixture();
  at.write(1, 0xaa, { epoch: EPOCH + 5 });
  at.map({ epoch: EPOCH + 4 });
  assertEquals(at.answers(), []);
  at.map({ epoch: EPOCH + 6, holder: 3, disk: { generation: GENERATION + 1 } });
  assertEquals(at.answers(), [[1, Status.Stale]]);
  assertEquals(at.arena.usedBytes, 0);
});

Deno.test("what waits when its link breaks is dropped, with its buffers", () => {
  const at = new Fixture();
  at.write(1, 0xaa, { epoch: EPOCH + 1 });
  at.write(2, 0xbb, { epoch: EPOCH + 1 });
  at.replica.linkDown(LINK);
  assertEquals(at.arena.usedBytes, 0);
  at.map({ epoch: EPOCH + 1 });
  at.run();
  assertEquals(at.answers(), []);
  assertEquals(at.content, undefined);
});

Deno.test("a write that was applied before is acknowledged and not applied again", () => {
  const at = new Fixture();
  at.write(1, 0xaa);
  at.write(2, 0xbb);
  at.run();
  at.answers();
  at.write(1, 0xaa, { flags: MessageFlag.Again });
  assertEquals(at.answers(), [], "not from inside the call");
  at.run();
  assertEquals(at.answers(), [[1, Status.Ok]]);
  assertEquals(at.content, 0xbb);
  assertEquals(at.replica.counters.repeated, 1);
  assertEquals(at.arena.usedBytes, 0);
});

Deno.test("what is sent again is answered when what an earlier link brought is in the store", () => {
  const at = new Fixture();
  at.write(1, 0xaa);
  at.replica.linkDown(LINK);
  at.replica.linkUp(LINK + 1, HOLDER, 1);
  at.write(1, 0xaa, { flags: MessageFlag.Again }, LINK + 1);
  assertEquals(at.store.waiting.length, 1, "the first one only");
  at.run();
  at.run();
  assertEquals(at.answers(), [[1, Status.Ok]]);
  assertEquals(at.store.done.length, 1);
  assertEquals(at.replica.counters.repeated, 1);
});

Deno.test("what a joiner has had before, and its store has not carried out yet, is not acknowledged before it has", () => {
  const group = { inSync: [1, 3], joining: [SELF], joinedEpochs: [CHANGED] };
  const transport = new FakeTransport(), store = new FakeStore(1), arena = new Arena();
  const core = coreOf({ store, arena, transport }, mapOf({ group }), SELF, {});
  core.linkUp(LINK, HOLDER, false, 1);
  const write = (epoch: number, flags = 0) => {
    const bytes = message({ ...WRITE, id: 1, sequence: 1, epoch, flags }, [sumOf(0xaa)]);
    core.received(LINK, bytes, bytes.length, buffer(arena, 0xaa), BLOCK_BYTES);
  };
  const answers = () => transport.take().filter(({ link }) => link === LINK);
  // It waits for room. Somebody else leaves the group, and the holder sends it again.
  write(EPOCH);
  const epoch = EPOCH + 1;
  const changed = { ...group, inSync: [1], changedEpoch: epoch };
  core.setMap(mapOf({ epoch, group: changed }), SELF, 1);
  write(epoch, MessageFlag.Again);
  core.endTurn();
  assertEquals(answers().map(({ head }) => head.status), [], "nothing is in the store");
  store.run();
  core.endTurn();
  assertEquals(store.chunk(1, 3).blocks.get(5), 0xaa);
  assertEquals(answers().map(({ head }) => head.status), [Status.Ok, Status.Ok]);
});

Deno.test("while what was sent again waits for room, what follows it on its link goes on", () => {
  const at = new Fixture();
  at.write(1, 0xaa);
  at.reconnect();
  at.write(1, 0xaa, { flags: MessageFlag.Again });
  at.receive({ ...WRITE, type: MessageType.Free, id: 2, sequence: 2, chunk: 4 });
  at.receive({ ...WRITE, type: MessageType.Read, id: 3, chunk: 5 }, { extra: [1] });
  at.replica.endTurn();
  const kinds = at.store.waiting.map(({ kind }) => kind);
  assertEquals(kinds, [OperationKind.Write, OperationKind.Free, OperationKind.Read]);
  at.run();
  at.run();
  assertEquals(at.answers().sort(), [[1, Status.Ok], [2, Status.Ok], [3, Status.Ok]]);
  assertEquals(at.store.done.filter((kind) => kind === OperationKind.Write).length, 1);
});

/** Messages that nobody who keeps to the rules sends. */
const BROKEN: [what: string, fields: HeadFields, data?: number[], extra?: number[]][] = [
  ["no blocks", { ...WRITE, sequence: 1, count: 0 }, [], []],
  ["no data", { ...WRITE, sequence: 1 }, [], [1]],
  ["too much data", { ...WRITE, sequence: 1 }, [1, 2], [1]],
  ["no checksum", { ...WRITE, sequence: 1 }, [1], []],
  ["too many checksums", { ...WRITE, sequence: 1 }, [1], [1, 2]],
  ["past the chunk's end", { ...WRITE, sequence: 1, block: 1024 }, [1], [1]],
  ["sequence 0", { ...WRITE, sequence: 0 }, [1], [1]],
  ["generation 0", { ...WRITE, sequence: 1, generation: 0 }, [1], [1]],
  ["a discard with data", { ...WRITE, sequence: 1, type: MessageType.Free }, [1], []],
  ["a zeroing of 1025 blocks", {
    ...WRITE,
    sequence: 1,
    type: MessageType.Zero,
    block: 0,
    count: 1025,
  }],
  ["a sync with data", { type: MessageType.Sync, epoch: EPOCH }, [1]],
  ["a read with data", { ...WRITE, type: MessageType.Read }, [1], [1]],
  ["a read of 257 blocks", { ...WRITE, type: MessageType.Read, block: 0, count: 257 }, [], [1]],
  ["a read of no layer", { ...WRITE, type: MessageType.Read }],
  ["a read of 129 layers", { ...WRITE, type: MessageType.Read }, [], new Array(129).fill(1)],
  ["an answer", { ...WRITE, sequence: 1, type: MessageType.Write | ANSWER }, [1], [1]],
  ["no known kind", { ...WRITE, type: MESSAGE_TYPE_MAX + 1 }],
  ["another version", { ...WRITE, version: 2 }],
];

for (const [what, fields, data = [], extra = []] of BROKEN) {
  Deno.test(`rubbish ends its connection: ${what}`, () => {
    const at = new Fixture();
    assertEquals(at.receive(fields, { data, extra }), false);
    assertEquals([at.arena.usedBytes, at.store.waiting.length, at.answers().length], [0, 0, 0]);
    at.write(6, 0xbb);
    at.run();
    assertEquals(at.answers(), [], "until it has ended nothing more of it counts");
    at.reconnect();
    at.write(7, 0xcc);
    at.run();
    assertEquals(at.answers(), [[7, Status.Ok]]);
    // The same behind something that waits; what is behind that goes with the connection.
    at.write(8, 0xdd, { epoch: EPOCH + 1 });
    at.receive(fields, { data, extra });
    at.write(9, 0xee);
    at.map({ epoch: EPOCH + 1 });
    at.run();
    at.run();
    assertEquals(at.answers(), [[8, Status.Ok]]);
    assertEquals(at.transport.dropped, [LINK]);
    at.reconnect();
    assertEquals([at.content, at.arena.usedBytes], [0xdd, 0]);
  });
}

Deno.test("mutated messages of every kind never throw, and leave no buffer behind", () => {
  const random = new Prng(77_2026);
  const at = new Fixture();
  for (let i = 0; i < 5000; i++) {
    const type = random.between(1, MESSAGE_TYPE_MAX);
    const bytes = message({
      ...WRITE,
      type,
      id: i,
      sequence: i + 1,
      pool: 3,
      group: random.below(300),
      incarnation: random.below(2),
      flags: random.below(8),
    }, type === MessageType.Write || type === MessageType.Read ? [1] : []);
    const head = random.chance(0.1) ? bytes.slice(0, random.below(bytes.length + 1)) : bytes;
    for (let bit = random.below(4); bit > 0 && head.length > 0; bit--) {
      // Not the epoch: it would wait for ever.
      const byte = random.below(head.length);
      if (byte < 8 || byte >= 16) head[byte] ^= 1 << random.below(8);
    }
    const data = type === MessageType.Write ? [1] : [];
    const buffered = data.length === 0 ? 0 : buffer(at.arena, ...data);
    // A checksum that is wrong is the store's to find; the fake one insists on the right one.
    if (type === MessageType.Write && head.length === 68) head.set(sumBytes, 64);
    const isGood = at.replica.received(
      LINK,
      head,
      head.length,
      buffered,
      data.length * BLOCK_BYTES,
    );
    if (!isGood || at.transport.dropped.length > 0) at.reconnect();
    at.transport.dropped.length = 0;
    if (i % 50 === 0) at.run();
  }
  at.run();
  at.run();
  at.reconnect();
  assertEquals(at.arena.usedBytes, 0, `seed ${random.seed}`);
  at.answers();
  at.write(90_000, 0xcc);
  at.run();
  assertEquals(at.answers(), [[90_000, Status.Ok]], `seed ${random.seed}`);
});
const sumBytes = new Uint8Array(Uint32Array.of(sumOf(1)).buffer);

Deno.test("a sync is answered after the store's, and is stale for another start of the agent", () => {
  const at = new Fixture();
  at.receive({ type: MessageType.Sync, id: 1, epoch: EPOCH, incarnation: 2 });
  assertEquals(at.answers(), [[1, Status.Stale]]);
  at.receive({ type: MessageType.Sync, id: 2, epoch: EPOCH, incarnation: 1 });
  at.receive({ type: MessageType.Sync, id: 3, epoch: EPOCH });
  assertEquals(at.answers(), []);
  at.run();
  assertEquals(at.answers(), [[2, Status.Ok], [3, Status.Ok]]);
  assertEquals(at.store.done, [OperationKind.Sync, OperationKind.Sync]);
});

Deno.test("a read gives data and its checksums, and only from a replica that is in sync", () => {
  const at = new Fixture();
  at.write(1, 0xaa);
  at.run();
  at.answers();
  const read = { ...WRITE, type: MessageType.Read, id: 2, count: 2, generation: 0 };
  at.receive(read, { extra: [1] });
  at.run();
  const [{ head, data, extra }] = at.transport.take();
  assertEquals([head.id, head.status, data.length], [2, Status.Ok, 2 * BLOCK_BYTES]);
  assertEquals([data[0], data[4095], data[4096]], [0xaa, 0xaa, 0]);
  assertEquals([...extra], [sumOf(0xaa), sumOf(0)]);
  at.map({ epoch: EPOCH + 1, group: { inSync: [1, 3], joining: [SELF], joinedEpochs: [EPOCH] } });
  at.receive(read, { extra: [1] });
  assertEquals(at.answers(), [[2, Status.Stale]]);
  assertEquals(at.arena.usedBytes, 0);
});

Deno.test("a write that comes once more while a later one is on its way into the store is done with that one", () => {
  const at = new Fixture();
  at.write(1, 0x11);
  at.write(2, 0x22);
  at.store.run(1);
  at.replica.endTurn();
  assertEquals(at.answers(), [[1, Status.Ok]]);
  const flags = MessageFlag.Again;
  // As after a change of the map: the store has applied only the first one so far.
  at.write(1, 0x11, { id: 3, sequence: 1, flags });
  at.write(2, 0x22, { id: 4, sequence: 2, flags });
  at.replica.endTurn();
  assertEquals(at.answers(), [[3, Status.Ok]], "it is in the store already");
  at.write(3, 0x33);
  at.write(2, 0x22, { id: 5, sequence: 2, flags });
  at.replica.endTurn();
  assertEquals(at.answers(), [], "what is not in the store yet is not acknowledged");
  at.run();
  assertEquals(at.answers().map(([id]) => id).sort(), [2, 3, 4, 5]);
  const { sequence } = at.store.chunk(1, 3);
  assertEquals([sequence, at.content, at.arena.usedBytes], [3, 0x33, 0]);
});

Deno.test("a damaged block is an errno that names it, and is reported here", () => {
  const at = new Fixture();
  const reported: number[][] = [];
  at.replica.damaged = (layers, ...rest) => reported.push([...layers, ...rest]);
  at.write(1, 0xaa);
  at.run();
  at.answers();
  at.store.chunk(1, 3).damaged.add(5);
  at.receive({ ...WRITE, type: MessageType.Read, id: 2, block: 4, count: 3 }, { extra: [1] });
  at.run();
  const [{ head, data }] = at.transport.take();
  assertEquals([head.status, head.block, data.length], [-74, 5, 0]);
  assertEquals(reported, [[1, 3, 4, 3]]);
});

Deno.test("answers for which there is no room go out in their order, and nothing is taken meanwhile", () => {
  const at = new Fixture();
  at.transport.room = 0;
  at.write(1, 0xaa);
  at.run();
  at.receive({ ...WRITE, type: MessageType.Read, id: 2, generation: 0 }, { extra: [1] });
  at.write(3, 0xbb);
  at.run();
  assertEquals([at.answers().length, at.content], [0, 0xaa]);
  at.transport.room = Infinity;
  at.replica.linkReady(LINK);
  at.run();
  assertEquals(at.answers(), [[1, Status.Ok], [2, Status.Ok], [3, Status.Ok]]);
  assertEquals(at.arena.usedBytes, 0);
});

/** Whoever has the disk next, by the map after the first, asks for the stamps above generation 5. */
function askForStamps(at: Fixture, id: number): void {
  at.receive({
    type: MessageType.Stamps,
    id,
    epoch: EPOCH + 1,
    disk: 1,
    layer: 1,
    generation: 5,
  });
}

Deno.test("stamps are those above a generation, and nobody waits for writes of earlier maps: busy", () => {
  const at = new Fixture();
  for (const [chunk, generation] of [[0, 5], [1, 6], [2, 7]]) {
    Object.assign(at.store.chunk(1, chunk), { generation, sequence: 40 + chunk });
  }
  at.write(1, 0xaa); // chunk 3, generation 7
  at.map({ epoch: EPOCH + 1, disk: { generation: GENERATION + 1 } });
  askForStamps(at, 2);
  const why = "a write of the lease before is on its way into the store";
  assertEquals(at.answers(), [[2, Status.Busy]], why);
  at.run();
  assertEquals(at.answers(), [[1, Status.Ok]]);
  askForStamps(at, 3);
  const [{ head, data }] = at.transport.take();
  assertEquals([head.id, head.status, head.argument], [3, Status.Ok, 3]);
  const view = new DataView(data.buffer);
  const entries = [0, 1, 2].map((i) => [4, 8, 16].map((at) => view.getUint32(24 * i + at, true)));
  assertEquals(entries, [[1, 6, 41], [2, 7, 42], [3, 7, 1]]);
});

Deno.test("whoever has the disk next does not wait for space that writes of the lease before wait for", () => {
  const at = new Fixture();
  at.store.isFull = true;
  at.write(1, 0xaa);
  at.map({ epoch: EPOCH + 1, disk: { generation: GENERATION + 1 } });
  askForStamps(at, 2);
  at.run();
  assertEquals(
    at.answers(),
    [[2, Status.Busy], [1, Status.Stale]],
    "a node that fails would leave",
  );
  assertEquals(at.content, undefined);
  askForStamps(at, 3);
  const [{ head }] = at.transport.take();
  assertEquals([head.id, head.status, head.argument], [3, Status.Ok, 0]);
});

Deno.test("who lists a group or describes a chunk is told to come again while older writes of the group are on their way", () => {
  const at = new Fixture();
  at.write(1, 0xaa);
  at.map({ epoch: EPOCH + 1, group: { changedEpoch: EPOCH + 1 } });
  const { group } = at.replica.view!.groupOf(at.replica.view!.disk(1)!, 3);
  const ask = (id: number) => {
    const head = { epoch: EPOCH + 1, flags: MessageFlag.Recovery, disk: 1, pool: 3 };
    at.receive({ ...head, type: MessageType.List, id, group });
    at.receive({ ...head, type: MessageType.Describe, id: id + 1, layer: 1, chunk: 3 });
    at.receive({ ...head, type: MessageType.List, id: id + 2, group: (group + 1) % 256 });
  };
  ask(10);
  assertEquals(at.answers(), [[10, Status.Busy], [11, Status.Busy], [12, Status.Ok]]);
  at.run();
  at.answers();
  ask(20);
  assertEquals(at.answers(), [[20, Status.Ok], [21, Status.Ok], [22, Status.Ok]]);
});

Deno.test("layers that are becoming one are shown as one, and to nobody whose map is older", () => {
  const layer = (id: number, parent: number, absorbedBy: readonly number[] | null = null) => ({
    id,
    parent,
    absorbedBy,
  });
  const at = new Fixture();
  for (const id of [2, 3]) at.store.createLayer(id, () => {});
  const ask = (type: MessageType, layer: number, extra: number[]) => {
    const head = { epoch: EPOCH, flags: MessageFlag.Recovery, disk: 1, layer, chunk: 3, count: 1 };
    at.receive({ ...head, type, id: 1 }, { extra });
    at.run();
    return at.answers()[0][1];
  };
  const describe = (...asked: number[]) =>
    ask(MessageType.Describe, asked[0], asked.length > 1 ? asked : []);
  const read = (...asked: number[]) => ask(MessageType.Read, asked[0], asked);
  // Without an inspector whoever may look is told that there is no time.
  const inspect = (layer: number, absorbed: number) =>
    ask(MessageType.Inspect, layer, [layer, absorbed, ...new Uint32Array(SET_WORDS)]);

  at.map({
    disk: { layers: [3, 2, 1] },
    layers: [layer(1, 0, []), layer(2, 1), layer(3, 2)],
  });
  const whole = [describe(2, 1), describe(3), read(2, 1), read(3)];
  assertEquals(whole, whole.map(() => Status.Ok));
  assertEquals([inspect(2, 1), inspect(3, 0)], [Status.Busy, Status.Busy]);
  const halves = [describe(2), describe(1), read(2), read(1), inspect(2, 0), inspect(1, 0)];
  assertEquals(halves, halves.map(() => Status.Stale));
  assertEquals([describe(2, 4), read(2, 4)], [Status.Stale, Status.Stale]);

  // What 2 and 1 held is in 3 by now.
  at.map({ epoch: EPOCH + 1, disk: { layers: [3, 2] }, layers: [layer(2, 0, []), layer(3, 2)] });
  assertEquals([describe(3, 2), read(3, 2), inspect(3, 2)], [Status.Ok, Status.Ok, Status.Busy]);
  const older = [describe(2, 1), describe(2), describe(3), read(2, 1), read(2), read(3)];
  assertEquals(older, older.map(() => Status.Stale));
  assertEquals([inspect(2, 1), inspect(3, 0)], [Status.Stale, Status.Stale]);
});

Deno.test("a write of this node's own volume passes the same stamps", () => {
  const at = new Fixture();
  const results: number[] = [];
  const group = at.replica.view!.groupOf(at.replica.view!.disk(1)!, 3);
  at.write(5, 0xaa);
  at.run();
  const write = newWrite(at, 4, 0xbb);
  write.target = { localWriteDone: (_: LocalWrite, result: number) => results.push(result) };
  at.replica.apply(write, group, false);
  at.run();
  assertEquals([results, at.content], [[0], 0xaa]);
});

function newWrite(at: Fixture, sequence: number, fill: number): LocalWrite {
  const write = new LocalWrite();
  const { operation } = write;
  operation.kind = OperationKind.Write;
  operation.layers = [1];
  operation.chunk = 3;
  operation.block = 5;
  operation.blockCount = 1;
  operation.buffer = buffer(at.arena, fill);
  operation.checksums = Uint32Array.of(sumOf(fill));
  operation.generation = GENERATION;
  operation.sequence = sequence;
  return write;
}

Deno.test("beside guests others copy from here as fast as the pace lets them, and guests are never put off", () => {
  const at = new Fixture();
  const pace = new Pace(() => at.replica.guestWork);
  at.replica.pace = pace;
  const read = (id: number, flags: number) =>
    at.receive({ ...WRITE, type: MessageType.Read, id, flags, count: 64, sequence: 0 }, {
      extra: [1],
    });
  const counts = (first: number, flags: number) => {
    for (let i = 0; i < 100; i++) read(first + i, flags);
    at.run();
    const statuses = at.answers().map(([, status]) => status);
    return [Status.Ok, Status.Busy].map((wanted) => statuses.filter((it) => it === wanted).length);
  };
  pace.advance(1000);
  assertEquals(counts(0, MessageFlag.Recovery), [100, 0], "nobody else is here");
  assertEquals(at.replica.guestWork, 0, "copying is not guests' work");
  assertEquals(counts(200, 0), [100, 0]);
  pace.advance(1010);
  const [copied, putOff] = counts(400, MessageFlag.Recovery);
  assertEquals([copied > 0, putOff > 0, copied + putOff], [true, true, 100]);
  assertEquals(counts(600, 0), [100, 0], "guests");
  assertEquals(at.arena.usedBytes, 0);
});
