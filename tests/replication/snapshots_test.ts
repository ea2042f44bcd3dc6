/**
 * Snapshots as replication sees them: which layer a write goes to, when an old one is done with, and layers that become one.
 *
 * @module
 */
import { assertEquals } from "@std/assert/mod.js";
import { Arena } from "../../agent/base/arena.ts";
import { BLOCK_BYTES } from "../../agent/base/limits.ts";
import type { LayerEntry, SnapshotEntry } from "../../agent/map/map.ts";
import type { DataCore } from "../../agent/replication/data_core.ts";
import { EBADMSG, EIO } from "../../agent/platform/platform.ts";
import type { LocalPaths } from "../../agent/replication/local_store.ts";
import { MessageFlag, MessageType, Status } from "../../agent/replication/messages.ts";
import { Operation, OperationKind } from "../../agent/store/operation.ts";
import {
  answerTo,
  buffer,
  coreOf,
  EPOCH,
  FakeStore,
  FakeTransport,
  GENERATION,
  type HeadFields,
  mapOf,
  type MapOptions,
  message,
  type Sent,
  sumOf,
  window,
} from "./harness.ts";

/** A group in which nothing is. */
const OTHER_GROUP = 0;
const CHUNK = 3, BLOCK = 5, THEIRS = 11;

/** A snapshot of layer 1 that is being taken: the disk's newest layer is 2. */
function taking(change: Partial<SnapshotEntry> = {}): Pick<MapOptions, "disk" | "layers"> {
  const snapshot: SnapshotEntry = {
    name: "monday",
    layer: 1,
    sizeBytes: 2 ** 30,
    createdMs: 0,
    isProtected: false,
    taking: EPOCH + 1,
    isDrained: false,
    isAborted: false,
    ...change,
  };
  return { disk: { layers: [2, 1], snapshots: [snapshot] }, layers: LAYERS };
}
const LAYERS: readonly LayerEntry[] = [
  { id: 1, parent: 0, absorbedBy: null },
  { id: 2, parent: 1, absorbedBy: null },
];
/** The snapshot is deleted, and layer 2 absorbs layer 1. */
const ABSORBING: Pick<MapOptions, "disk" | "layers"> = {
  disk: { layers: [2, 1] },
  layers: [{ ...LAYERS[0], absorbedBy: [] }, LAYERS[1]],
};

/** Node `self`; node 1 has the lease. */
class Fixture {
  readonly transport = new FakeTransport();
  readonly store: FakeStore;
  readonly arena = new Arena();
  readonly core: DataCore;
  readonly done: number[] = [];
  /** Of those that failed. */
  readonly failed: (readonly [tag: number, result: number])[] = [];
  readonly drained: (readonly [layer: number, generation: number])[] = [];
  readonly absorbed: number[] = [];
  readonly reported: number[] = [];
  epoch = EPOCH;
  #nowMs = 1000;

  constructor({ self = 1, isOpen = true, options = {} as MapOptions, layers = [1] } = {}) {
    this.store = new FakeStore(...layers);
    this.core = coreOf(this, mapOf(options), self, {
      snapshotDrained: (_, layer, generation) => this.drained.push([layer, generation]),
      absorbed: (each) => this.absorbed.push(...each),
      inSync: (_, groups) => this.reported.push(...groups),
    });
    this.core.linkUp(THEIRS, 1, false, 1);
    this.core.tick(this.#nowMs);
    this.core.renew(Infinity);
    if (self === 1 && isOpen) this.core.openDisk(1, GENERATION);
  }

  map(options: MapOptions, self = 1): void {
    this.core.setMap(mapOf({ epoch: ++this.epoch, ...options }), self, 1);
  }

  submit(kind: OperationKind, tag: number, layers = [1]): void {
    const operationDone = ({ tag, result }: Operation) => {
      this.done.push(tag);
      if (result !== 0) this.failed.push([tag, result]);
    };
    const operation = new Operation({ operationDone }, 1);
    Object.assign(operation, { kind, tag, layers, chunk: CHUNK, block: BLOCK, blockCount: 1 });
    operation.generation = GENERATION;
    operation.sequence = tag;
    operation.buffer = buffer(this.arena, tag);
    operation.checksums[0] = sumOf(tag);
    this.core.router(1).submit(operation);
  }

  write(tag: number): void {
    this.submit(OperationKind.Write, tag);
  }

  sent(...types: MessageType[]): Sent[] {
    return this.transport.take().filter(({ head }) => types.includes(head.type));
  }

  answer(sent: Sent, fields: HeadFields = {}, extra: number[] = [], at = 0, bytes = 0): void {
    const head = answerTo(sent, { epoch: this.epoch, ...fields }, extra);
    this.core.received(sent.link, head, head.length, at, bytes);
  }

  /** A message of the holder's; the answers' statuses. */
  ask(fields: HeadFields, extra: number[] = [], data = 0): number[] {
    const bytes = message({ epoch: this.epoch, disk: 1, chunk: CHUNK, ...fields }, extra);
    const at = data === 0 ? 0 : buffer(this.arena, data);
    this.core.received(THEIRS, bytes, bytes.length, at, data === 0 ? 0 : BLOCK_BYTES);
    this.run();
    return this.transport.take().filter(({ link }) => link === THEIRS).map(({ head }) =>
      head.status
    );
  }

  run(): void {
    this.store.run();
    this.core.endTurn();
  }

  tick(ms = 10): void {
    this.#nowMs += ms;
    this.core.tick(this.#nowMs);
  }
}

const layersOf = (sent: Sent[]) => sent.map(({ head }) => [head.sequence, head.layer]);

Deno.test("what was sent before a snapshot is finished in the old layer, what comes later goes to the new one", () => {
  const at = new Fixture();
  at.write(1);
  const first = at.sent(MessageType.Write);
  at.run();
  at.map(taking());
  at.write(2);
  const second = at.sent(MessageType.Write);
  assertEquals([layersOf(first), layersOf(second)], [[[1, 1], [1, 1]], [[2, 2], [2, 2]]]);
  for (const sent of second) at.answer(sent);
  at.run();
  assertEquals([at.done, at.drained], [[2], []], "the old one is not waited for");
  for (const sent of first) at.answer(sent);
  assertEquals([at.done, at.drained], [[2, 1], []], "it is not synced");
  for (const sent of at.sent(MessageType.Sync)) at.answer(sent);
  assertEquals(at.drained, []);
  at.run();
  assertEquals(at.drained, [[1, GENERATION]]);
  assertEquals(at.store.chunk(1, CHUNK).blocks.get(BLOCK), 1);
  assertEquals(at.store.chunk(2, CHUNK).blocks.get(BLOCK), 2);
  // Told until the map has it.
  at.tick(600);
  assertEquals(at.drained.length, 2);
  at.map(taking({ taking: 0, isDrained: true }));
  at.tick(600);
  assertEquals(at.drained.length, 2);
});

Deno.test("a write that waits to be sent goes to the layer that is the newest then", () => {
  const at = new Fixture({ isOpen: false });
  at.core.router(1).begin(GENERATION);
  at.write(1);
  at.submit(OperationKind.Free, 2);
  assertEquals(at.sent(MessageType.Write, MessageType.Free), []);
  at.map(taking({ taking: 0, isDrained: true }));
  at.core.router(1).open();
  const sent = at.sent(MessageType.Write, MessageType.Free, MessageType.Zero);
  assertEquals(layersOf(sent), [[1, 2], [1, 2], [2, 2], [2, 2]]);
  // Forgetting would bring back what lies below.
  assertEquals(sent.map(({ head }) => head.type), [
    MessageType.Write,
    MessageType.Write,
    MessageType.Zero,
    MessageType.Zero,
  ]);
});

Deno.test("a snapshot that is given up is drained without a sync, and a sync that fails drains nothing", () => {
  const at = new Fixture();
  at.write(1);
  const writes = at.sent(MessageType.Write);
  at.run();
  at.map(taking({ isAborted: true }));
  for (const sent of writes) at.answer(sent);
  assertEquals([at.drained, at.sent(MessageType.Sync)], [[[1, GENERATION]], []]);

  const other = new Fixture();
  other.write(1);
  for (const sent of other.sent(MessageType.Write)) other.answer(sent);
  other.run();
  other.map(taking());
  // The group has lost what was not synced: the guest's own flush has to say so.
  other.map({ ...taking(), group: { settledEpoch: EPOCH + 2, changedEpoch: EPOCH + 2 } });
  for (const sent of other.sent(MessageType.Sync)) other.answer(sent);
  other.run();
  other.tick();
  assertEquals(other.drained, []);
  other.submit(OperationKind.Sync, 9);
  other.run();
  for (let i = 0; i < 3; i++) {
    for (const sent of other.sent(MessageType.Sync)) other.answer(sent);
    other.run();
    other.tick();
  }
  assertEquals(other.failed, [[9, -EIO]]);
});

Deno.test("what begins anew when its group is settled stays in the layer of the snapshot that waits for it", () => {
  const options = { ...taking(), disk: { ...taking().disk, copiesMin: 1 } };
  const at = new Fixture({ options: { disk: { copiesMin: 1 } } });
  at.write(1);
  at.sent(MessageType.Write);
  at.run();
  at.map(options);
  const settled = { inSync: [2], settledEpoch: EPOCH + 2, changedEpoch: EPOCH + 2 };
  at.map({ ...options, group: settled, incarnations: { 2: 2 } });
  const [again, ...others] = at.sent(MessageType.Write);
  assertEquals([again.link, again.head.layer, again.head.sequence, others], [2, 1, 2, []]);
  assertEquals(
    [at.drained, at.done],
    [[], []],
    "the snapshot has it, or the guest does not know of it",
  );
  at.write(5);
  const [later] = at.sent(MessageType.Write);
  assertEquals([later.head.layer, later.head.sequence], [2, 5]);
  at.answer(again);
  assertEquals(at.done, [1]);
  assertEquals(at.sent(MessageType.Sync).length > 0, true, "now it is synced");
});

Deno.test("reads of a disk with snapshots tell those who are asked to look below", () => {
  const options = { ...taking({ taking: 0, isDrained: true }), group: { inSync: [2, 3] } };
  const at = new Fixture({ options, layers: [1, 2] });
  at.submit(OperationKind.Read, 1, [2, 1]);
  const [{ head, extra }] = at.sent(MessageType.Read);
  assertEquals([head.layer, head.flags & MessageFlag.Chain, [...extra]], [
    2,
    MessageFlag.Chain,
    [2],
  ]);
});

Deno.test("after an unclean end both layers that could be written to are brought in line", () => {
  const { disk, layers } = taking();
  const options = { disk: { ...disk, settled: GENERATION - 2 }, layers };
  const at = new Fixture({ options, layers: [1, 2] });
  assertEquals(at.sent(MessageType.Stamps).map(({ link, head }) => [link, head.layer]), [
    [2, 2],
    [2, 1],
    [3, 2],
    [3, 1],
  ]);
});

Deno.test("a snapshot that is deleted under its readers is an error, and waits for nobody", () => {
  const options = taking({ taking: 0, isDrained: true });
  const at = new Fixture({ options, layers: [1, 2] });
  const results: number[] = [];
  const read = () => {
    const operation = new Operation({ operationDone: ({ result }) => results.push(result) }, 0);
    Object.assign(operation, {
      kind: OperationKind.Read,
      layers: [1],
      chunk: CHUNK,
      blockCount: 1,
    });
    operation.buffer = buffer(at.arena, 0);
    at.core.reader(1).submit(operation);
    at.run();
  };
  read();
  assertEquals(results, [0]);
  at.map(ABSORBING);
  read();
  assertEquals(results, [0, -EIO]);
  // Whoever loses the disk's lease loses nothing of its snapshots.
  at.core.router(1).abandon(-EIO);
  at.map(options);
  read();
  assertEquals(results, [0, -EIO, 0]);
});

for (const [what, status] of [["waited", Status.Busy], ["failed elsewhere", -EBADMSG]] as const) {
  Deno.test(`a read of a snapshot that ${what} is not read through what that has been cut off from meanwhile`, () => {
    // The lower layer stays, since somebody else needs it; what hid it would be gone by then.
    const snapshots = [1, 2].flatMap((layer) =>
      taking({ layer, name: `s${layer}`, taking: 0, isDrained: true }).disk!.snapshots!
    );
    const options = (layers: readonly number[], parent: number, inSync: readonly number[]) => ({
      disk: { layers, snapshots },
      layers: [LAYERS[0], { ...LAYERS[1], parent }, { id: 3, parent: 2, absorbedBy: null }],
      group: { inSync },
    });
    const at = new Fixture({ options: options([3, 2, 1], 1, [2, 3]), layers: [1, 2, 3] });
    at.store.chunk(1, CHUNK).blocks.set(BLOCK, 7);
    const results: number[] = [];
    const read = new Operation({ operationDone: ({ result }) => results.push(result) }, 1);
    Object.assign(read, { kind: OperationKind.Read, layers: [2, 1], chunk: CHUNK, blockCount: 1 });
    read.block = BLOCK;
    read.buffer = buffer(at.arena, 9);
    at.core.reader(1).submit(read);
    const [sent] = at.sent(MessageType.Read);
    assertEquals(sent.head.layer, 2);
    at.map(options([3, 2], 0, [sent.link, 1]));
    at.answer(sent, { status });
    at.tick();
    at.run();
    assertEquals([results, window.bytes[read.buffer]], [[0], 0]);
  });
}

Deno.test("the right to serve counts once the map that was given before it is in force", () => {
  const at = new Fixture();
  let isMade = () => {};
  at.store.createLayer = (layer, done) => {
    isMade = () => {
      at.store.content.set(layer, new Map());
      done(null);
    };
  };
  at.core.renew(0);
  assertEquals(at.core.mayServe, false);
  at.map(taking());
  at.core.renew(Infinity);
  assertEquals([at.core.view.epoch, at.core.mayServe], [EPOCH, false]);
  isMade();
  assertEquals([at.core.view.epoch, at.core.mayServe], [EPOCH + 1, true]);
});

Deno.test("the right to serve ends at once, whatever map is on its way, and comes back by a later word only", () => {
  for (const wasRenewed of [false, true]) {
    const at = new Fixture();
    let isMade = () => {};
    at.store.createLayer = (layer, done) => {
      isMade = () => {
        at.store.content.set(layer, new Map());
        done(null);
      };
    };
    assertEquals(at.core.mayServe, true);
    at.map(taking());
    if (wasRenewed) at.core.renew(Infinity);
    at.core.renew(-Infinity);
    assertEquals([at.core.view.epoch, at.core.mayServe], [EPOCH, false]);
    isMade();
    assertEquals([at.core.view.epoch, at.core.mayServe], [EPOCH + 1, false]);
    at.core.renew(Infinity);
    assertEquals(at.core.mayServe, true);
  }
});

Deno.test("with snapshots of several disks nothing of the new layer is given back before all are complete", () => {
  const at = new Fixture();
  const both = (change: Partial<SnapshotEntry> = {}) => {
    const map = mapOf({ epoch: ++at.epoch, ...taking(change) });
    const [disk] = map.disks;
    const [snapshot] = disk.snapshots;
    const other = {
      ...disk,
      id: 2,
      name: "zeta",
      layers: [4, 3],
      snapshots: [{ ...snapshot, layer: 3 }],
    };
    const layers = [
      ...map.layers,
      { id: 3, parent: 0, absorbedBy: null },
      { id: 4, parent: 3, absorbedBy: null },
    ];
    at.core.setMap({ ...map, disks: [disk, other], layers }, 1, 1);
  };
  both();
  at.write(1);
  for (const sent of at.sent(MessageType.Write, MessageType.Sync)) at.answer(sent);
  at.run();
  assertEquals([at.drained, at.done], [[[1, GENERATION]], []]);
  both({ isDrained: true });
  assertEquals(at.done, []);
  both({ taking: 0, isDrained: true });
  at.run();
  assertEquals(at.done, [1]);
});

Deno.test("a replica takes writes to the newest layer, and to the one below only until that is drained", () => {
  const at = new Fixture({ self: 2, layers: [1, 2] });
  const write = (sequence: number, layer: number) =>
    at.ask(
      {
        type: MessageType.Write,
        id: sequence,
        layer,
        block: BLOCK,
        count: 1,
        generation: GENERATION,
        sequence,
      },
      [sumOf(sequence)],
      sequence,
    );
  at.map(taking(), 2);
  assertEquals([write(1, 1), write(2, 2)], [[Status.Ok], [Status.Ok]]);
  at.map(taking({ taking: 0, isDrained: true }), 2);
  assertEquals([write(3, 1), write(4, 2)], [[Status.Stale], [Status.Ok]]);
  assertEquals(at.store.chunk(1, CHUNK).blocks.get(BLOCK), 1);
});

Deno.test("reads through several layers name the newest, and whoever is asked knows the others", () => {
  const at = new Fixture({ self: 2, layers: [1, 2] });
  at.map(taking({ taking: 0, isDrained: true }), 2);
  at.store.chunk(1, CHUNK).blocks.set(BLOCK, 0x11);
  const fields = { type: MessageType.Read, id: 1, layer: 2, block: BLOCK, count: 1 };
  const bytes = message(
    { epoch: at.epoch, disk: 1, chunk: CHUNK, flags: MessageFlag.Chain, ...fields },
    [2],
  );
  at.core.received(THEIRS, bytes, bytes.length, 0, 0);
  at.run();
  assertEquals(at.transport.take().map(({ data }) => data[0]), [0x11]);
  // The snapshot was deleted, and what it held is the layer above's: who asks has an older map.
  at.map(ABSORBING, 2);
  assertEquals(at.ask({ ...fields, layer: 1 }, [1]), [Status.Stale]);
});

// -------------------------------------------------------------------------------------- absorbing

/** Ticks until nothing changes any more. */
function settle(at: Fixture): void {
  for (let i = 0; i < 12; i++) {
    at.tick();
    at.run();
  }
}

function fill(at: Fixture): void {
  const [lower, upper] = [at.store.chunk(1, CHUNK), at.store.chunk(2, CHUNK)];
  [lower.generation, lower.sequence] = [6, 60];
  [upper.generation, upper.sequence] = [7, 70];
  lower.blocks.set(BLOCK, 0x11).set(BLOCK + 1, 0x12);
  upper.blocks.set(BLOCK, 0x21);
  const other = at.store.chunk(1, CHUNK + 1);
  [other.generation, other.sequence] = [6, 61];
  other.blocks.set(BLOCK, 0x13);
}

Deno.test("a node in sync merges a layer chunk by chunk, syncs, and says so until the map knows", () => {
  const at = new Fixture({ self: 2, layers: [1, 2] });
  fill(at);
  at.map(ABSORBING, 2);
  settle(at);
  assertEquals([...at.store.chunk(2, CHUNK).blocks], [[BLOCK, 0x21], [BLOCK + 1, 0x12]]);
  assertEquals([...at.store.chunk(2, CHUNK + 1).blocks], [[BLOCK, 0x13]]);
  assertEquals(at.store.chunk(1, CHUNK).blocks.size, 0);
  assertEquals(at.store.done.at(-1), OperationKind.Sync, "what is said is durable");
  assertEquals(at.absorbed, [1]);
  at.tick(1100);
  assertEquals(at.absorbed, [1, 1], "it may have been lost");
  at.map({ ...ABSORBING, layers: [{ ...LAYERS[0], absorbedBy: [2] }, LAYERS[1]] }, 2);
  at.tick(1100);
  assertEquals(at.absorbed, [1, 1]);
  at.map({ disk: { layers: [2] }, layers: [{ ...LAYERS[1], parent: 0 }] }, 2);
  assertEquals(at.store.layers(), [2]);
  assertEquals(at.store.chunk(2, CHUNK).blocks.size, 2);
});

Deno.test("a node that joins merges nothing before it is in sync", () => {
  const at = new Fixture({ self: 2, layers: [1, 2] });
  fill(at);
  const group = { inSync: [1, 3], joining: [2], joinedEpochs: [EPOCH + 1] };
  at.map({ ...ABSORBING, group }, 2);
  settle(at);
  assertEquals([at.absorbed, at.store.chunk(1, CHUNK).blocks.size], [[], 2]);
  at.map(ABSORBING, 2);
  at.tick(1100);
  settle(at);
  assertEquals([at.absorbed, at.store.chunk(1, CHUNK).blocks.size], [[1], 0]);
});

Deno.test("what a node has of groups that are not its own is forgotten, and nothing there is known any more", () => {
  const at = new Fixture({ self: 2, layers: [1, 2] });
  fill(at);
  // It is to become a member again: nobody tidies up here meanwhile.
  at.map({ ...ABSORBING, group: { target: [1, 2, 3], inSync: [1, 3] } }, 2);
  settle(at);
  assertEquals(at.store.content.get(1)!.has(CHUNK), false);
  assertEquals(at.store.chunk(2, CHUNK).generation, 0);
  assertEquals(at.absorbed, [1]);
});

Deno.test("while a data path is lost no layer is said to be absorbed: its only copy may be there", () => {
  const at = new Fixture({ self: 2, layers: [1, 2] });
  let lost: string | null = "the path /disk2";
  const paths: LocalPaths = {
    prepare: () => true,
    installed() {},
    get isImpaired() {
      return lost !== null;
    },
    lossEpoch: 0,
    isLost: () => lost !== null,
    lossOf: (group) => group === OTHER_GROUP ? lost : null,
    owed: () => null,
  };
  Object.assign(at.store, { paths });
  // What is on the lost path is not listed, as if it were not there.
  at.map(ABSORBING, 2);
  settle(at);
  at.tick(1100);
  settle(at);
  assertEquals(at.absorbed, []);
  lost = null;
  fill(at);
  at.tick(1100);
  settle(at);
  assertEquals([at.absorbed, at.store.chunk(1, CHUNK).blocks.size], [[1], 0]);
  // Lost while what was merged is made durable.
  const other = new Fixture({ self: 2, layers: [1, 2] });
  Object.assign(other.store, { paths });
  const submit = other.store.submit.bind(other.store);
  let syncs = 0;
  other.store.submit = (operation) => {
    if (operation.kind === OperationKind.Sync && syncs++ === 0) lost = "the path /disk2";
    submit(operation);
  };
  other.map(ABSORBING, 2);
  settle(other);
  other.tick(1100);
  settle(other);
  assertEquals([other.absorbed, syncs], [[], 1]);
  lost = null;
  other.tick(1100);
  settle(other);
  assertEquals([other.absorbed, syncs], [[1], 2]);
});

/** The source of a joining node: what it has of both layers, as a list and as content. */
function serve(at: Fixture, entries: number[][], blocks: ReadonlyMap<number, number>): Sent[] {
  const asked: Sent[] = [];
  for (let i = 0; i < 300; i++) {
    at.run();
    for (const sent of at.transport.take()) {
      const { type, group, layer, chunk } = sent.head;
      if (type === MessageType.List) {
        const { view } = at.core;
        const own = view.groupOf(view.disk(1)!, CHUNK).group;
        const listed = group === own ? entries : [];
        const to = buffer(at.arena, 0);
        const words = new Uint32Array(at.core.window.bytes.buffer, to, 6 * entries.length);
        listed.forEach(([layer, generation, sequence], n) =>
          words.set([layer, CHUNK, generation, 0, sequence, 0], n * 6)
        );
        at.answer(sent, { argument: listed.length }, [], to, BLOCK_BYTES);
      } else if (type === MessageType.Describe) {
        const words = new Array(64).fill(0);
        for (const block of chunk === CHUNK ? blocks.keys() : []) words[0] |= 1 << block;
        asked.push(sent);
        const stamp = entries.find(([each]) => each === layer) ?? entries[0];
        at.answer(sent, { generation: stamp[1], sequence: stamp[2] }, words);
      } else if (type === MessageType.Read) {
        const { block, count } = sent.head;
        const values = Array.from({ length: count }, (_, n) => blocks.get(block + n)!);
        asked.push(sent);
        const to = buffer(at.arena, ...values);
        at.answer(sent, {}, values.map(sumOf), to, count * BLOCK_BYTES);
      }
    }
    at.tick();
  }
  return asked;
}

const JOINING = { inSync: [1, 3], joining: [2], joinedEpochs: [EPOCH + 1], target: [1, 2, 3] };

Deno.test("a pair of layers is copied as one where the lower one differs, and the lower one is left with its stamp alone", () => {
  const at = new Fixture({ self: 2, layers: [1, 2] });
  fill(at);
  at.map({ ...ABSORBING, group: JOINING }, 2);
  // The upper one has the source's stamp; of the lower one the source has a later write.
  const asked = serve(at, [[1, 6, 65], [2, 7, 70]], new Map([[BLOCK, 0x21], [BLOCK + 1, 0x19]]));
  const ofPair = asked.filter(({ head }) => head.chunk === CHUNK);
  assertEquals(ofPair.length > 0, true);
  assertEquals(ofPair.every(({ extra }) => [...extra].join() === "2,1"), true);
  const [lower, upper] = [at.store.chunk(1, CHUNK), at.store.chunk(2, CHUNK)];
  assertEquals([...upper.blocks], [[BLOCK, 0x21], [BLOCK + 1, 0x19]]);
  assertEquals([upper.generation, upper.sequence], [7, 70]);
  assertEquals([lower.blocks.size, lower.generation, lower.sequence], [0, 6, 65]);
  assertEquals(at.reported.length > 0, true);
});

Deno.test("a chunk that is still being forgotten when its node joins again is copied, and not taken for what it was", () => {
  const at = new Fixture({ self: 2, layers: [1, 2] });
  fill(at);
  at.store.content.get(2)!.delete(CHUNK);
  const forgotten: (() => void)[] = [];
  const drop = at.store.dropChunk.bind(at.store);
  at.store.dropChunk = (layer, chunk, done) => forgotten.push(() => drop(layer, chunk, done));
  const away = { target: [1, 2, 3], inSync: [1, 3] };
  at.map({ ...ABSORBING, group: away }, 2);
  settle(at);
  assertEquals(forgotten.length > 0, true);
  at.map({ ...ABSORBING, group: { ...JOINING, joinedEpochs: [at.epoch + 1] } }, 2);
  // By its stamps it has what the source has, of which that has merged both layers.
  const entries = [[1, 6, 60], [2, 6, 60]];
  const blocks = new Map([[BLOCK, 0x11], [BLOCK + 1, 0x12]]);
  const { group } = at.core.view.groupOf(at.core.view.disk(1)!, CHUNK);
  serve(at, entries, blocks);
  assertEquals(at.reported.includes(group), false);
  for (const forget of forgotten.splice(0)) forget();
  serve(at, entries, blocks);
  assertEquals([...at.store.chunk(2, CHUNK).blocks], [...blocks]);
  assertEquals(at.reported.includes(group), true);
});

Deno.test("a pair is not copied where both have the source's stamps, whoever has merged them already", () => {
  for (const isMergedHere of [false, true]) {
    const at = new Fixture({ self: 2, layers: [1, 2] });
    fill(at);
    const other = at.store.chunk(1, CHUNK + 1);
    other.blocks.clear();
    at.store.content.get(1)!.delete(CHUNK + 1);
    at.store.content.get(2)!.delete(CHUNK);
    if (isMergedHere) {
      const upper = at.store.chunk(2, CHUNK);
      [upper.generation, upper.sequence] = [6, 60];
      upper.blocks.set(BLOCK, 0x11).set(BLOCK + 1, 0x12);
      at.store.chunk(1, CHUNK).blocks.clear();
    }
    at.map({ ...ABSORBING, group: JOINING }, 2);
    // The other way round: merged at the source where it is not here.
    const entries = isMergedHere ? [[1, 6, 60]] : [[1, 6, 60], [2, 6, 60]];
    const asked = serve(at, entries, new Map());
    assertEquals(asked.filter(({ head }) => head.chunk === CHUNK), []);
    assertEquals(at.reported.length > 0, true, `${isMergedHere}`);
  }
});

Deno.test("a source does not give half of a pair to those who do not know of it", () => {
  const at = new Fixture({ self: 2, layers: [1, 2] });
  fill(at);
  at.map(ABSORBING, 2);
  const flags = MessageFlag.Recovery;
  for (const layer of [1, 2]) {
    const describe = { type: MessageType.Describe, id: 1, layer, flags };
    assertEquals(at.ask(describe), [Status.Stale]);
    const read = { type: MessageType.Read, id: 2, layer, block: BLOCK, count: 1, flags };
    assertEquals(at.ask(read, [layer]), [Status.Stale]);
  }
  assertEquals(at.ask({ type: MessageType.Describe, id: 3, layer: 2, flags }, [2, 1]), [Status.Ok]);
});
