import { assertEquals } from "@std/assert/mod.js";
import { Arena } from "../../agent/base/arena.ts";
import { ENODEV } from "../../agent/platform/platform.ts";
import { add, has } from "../../agent/replication/block_set.ts";
import { type Findings, unpackFindings } from "../../agent/replication/findings.ts";
import { INSPECTIONS_MAX, Inspector } from "../../agent/replication/inspection.ts";
import { MessageFlag, MessageType, Status } from "../../agent/replication/messages.ts";
import { Pace } from "../../agent/replication/pace.ts";
import { LocalWrite, Replica } from "../../agent/replication/replica.ts";
import { ClusterView } from "../../agent/replication/view.ts";
import { OperationKind } from "../../agent/store/operation.ts";
import {
  buffer,
  CHANGED,
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

const LAYER = 1, CHUNK = 3, LINK = 11;

class Fixture {
  readonly store = new FakeStore(LAYER, 2);
  readonly arena = new Arena();
  readonly replica: Replica;
  readonly inspector: Inspector;
  readonly view = new ClusterView(mapOf(), 1);
  /** What guests were served so far. */
  work = 0;
  readonly pace = new Pace(() => this.work);
  readonly results: [number, Findings][] = [];

  constructor() {
    const { store, arena, pace } = this;
    this.replica = new Replica({
      store,
      window,
      arena,
      transport: new FakeTransport(),
      log: silent,
    });
    const { replica } = this;
    this.inspector = new Inspector({ store, replica, window, arena, pace });
    replica.mapChanged(this.view, 1);
    const chunk = store.chunk(LAYER, CHUNK);
    Object.assign(chunk, { generation: GENERATION, sequence: 9 });
    for (const block of [1, 2, 3, 500]) chunk.blocks.set(block, 0x10 + block % 16);
    chunk.blocks.set(7, "zero");
  }

  inspect(options: { pair?: number[]; wanted?: Uint32Array; isQuiet?: boolean } = {}): boolean {
    const { pair = [LAYER], isQuiet = false } = options;
    const wanted = options.wanted ?? new Uint32Array(32).fill(0xffff_ffff);
    const query = { pair, chunk: CHUNK, wanted, isQuiet };
    return this.inspector.inspect(query, (result, findings) => {
      this.results.push([result, findings]);
    });
  }

  write(block: number, sequence = 10): void {
    const write = new LocalWrite();
    write.target = { localWriteDone() {} };
    const { operation } = write;
    operation.kind = OperationKind.Zero;
    operation.layers = [LAYER];
    operation.chunk = CHUNK;
    operation.block = block;
    operation.blockCount = 2;
    operation.generation = GENERATION;
    operation.sequence = sequence;
    this.replica.apply(write, this.view.groupOf(this.view.disk(1)!, CHUNK), false);
  }

  get findings(): Findings {
    assertEquals(this.results.length, 1);
    assertEquals(this.results[0][0], 0);
    return this.results[0][1];
  }
}

function members(set: Uint32Array): number[] {
  return Array.from({ length: 1024 }, (_, block) => block).filter((block) => has(set, block));
}

Deno.test("every block is read, and what it is said", () => {
  const at = new Fixture();
  assertEquals(at.inspect(), true);
  at.store.run();
  const { begin, end, data, zeros, damaged, changed, checksums } = at.findings;
  assertEquals([begin.sequence, end.sequence], [9, 9]);
  assertEquals([data, zeros, damaged, changed].map(members), [[1, 2, 3, 500], [7], [], []]);
  assertEquals(
    [1, 2, 3, 500].map((block) => checksums[block]),
    [0x11, 0x12, 0x13, 0x14].map(sumOf),
  );
  assertEquals(at.store.done, [OperationKind.Read, OperationKind.Read], "two runs");
  assertEquals(at.arena.usedBytes, 0);
});

Deno.test("it says whether writes are still on their way into the store when it ends", () => {
  const quiet = new Fixture();
  quiet.inspect();
  quiet.store.run();
  assertEquals(quiet.findings.isIdle, true);
  const at = new Fixture();
  at.inspect();
  at.store.run(1);
  at.write(800);
  at.store.run(1);
  assertEquals([at.findings.isIdle, at.findings.end.sequence], [false, 9]);
});

Deno.test("only what is asked for is read", () => {
  const at = new Fixture();
  const wanted = new Uint32Array(32);
  add(wanted, 2);
  add(wanted, 9);
  at.inspect({ wanted });
  at.store.run();
  assertEquals([at.findings.data, at.findings.zeros].map(members), [[2], []]);
});

Deno.test("damaged blocks are told from those around them, known ones as well", () => {
  for (const damaged of [[1], [2], [3], [1, 3], [1, 2, 3, 500]]) {
    const at = new Fixture();
    for (const block of damaged) at.store.chunk(LAYER, CHUNK).damaged.add(block);
    at.inspect();
    at.store.run();
    assertEquals(members(at.findings.damaged), damaged);
    assertEquals(members(at.findings.data), [1, 2, 3, 500]);
    for (const block of [1, 2, 3].filter((each) => !damaged.includes(each))) {
      assertEquals(at.findings.checksums[block], sumOf(0x10 + block));
    }
  }
});

Deno.test("a store that fails is no damage", () => {
  const at = new Fixture();
  at.store.failure = -ENODEV;
  at.inspect();
  at.store.run();
  assertEquals([at.results[0][0], at.arena.usedBytes], [-ENODEV, 0]);
});

Deno.test("blocks that something comes to are changed: on its way before, or accepted meanwhile", () => {
  const at = new Fixture();
  at.write(1);
  at.inspect();
  at.store.run(1);
  at.write(600, 11);
  at.store.run();
  const { begin, end, changed } = at.findings;
  assertEquals(members(changed), [1, 2, 600, 601]);
  assertEquals([begin.sequence, end.sequence], [9, 11]);
  at.results.length = 0;
  at.inspect();
  at.store.run();
  assertEquals(members(at.findings.changed), [], "nothing of before");
});

Deno.test("what is changed otherwise than by writes: a block that is healed, a chunk that is replaced", () => {
  const at = new Fixture();
  at.inspect();
  at.replica.rewriting(LAYER, CHUNK, 2);
  at.replica.rewriting(LAYER, CHUNK + 1);
  at.store.run();
  assertEquals(members(at.findings.changed), [2]);
  at.results.length = 0;
  at.inspect();
  at.replica.replacing(LAYER, CHUNK);
  at.store.run();
  assertEquals(members(at.findings.changed).length, 1024);
});

Deno.test("a chunk that is being replaced when the look begins is changed as a whole", () => {
  const at = new Fixture();
  at.replica.joining = {
    isJoining: () => false,
    isComplete: () => false,
    isEnding: () => false,
    isReplacing: (_group, layer, chunk) => layer === LAYER && chunk === CHUNK,
    liveWrite: () => 0,
  };
  at.inspect();
  at.store.run();
  assertEquals(members(at.findings.changed).length, 1024);
});

Deno.test("a pair of layers is one", () => {
  const at = new Fixture();
  const lower = at.store.chunk(2, CHUNK);
  lower.blocks.set(1, 0x77).set(8, 0x78);
  at.inspect({ pair: [LAYER, 2] });
  at.store.run();
  assertEquals(members(at.findings.data), [1, 2, 3, 8, 500]);
  assertEquals(at.findings.checksums[1], sumOf(0x11));
});

Deno.test("guests come first, and only so many looks are under way", () => {
  const at = new Fixture();
  at.pace.advance(1000);
  at.work = 1;
  at.pace.advance(1001);
  assertEquals(at.pace.take(2 ** 30), true, "into debt");
  assertEquals(at.inspect(), true);
  assertEquals([at.results[0][0], at.inspector.isBusy, at.store.done], [Status.Busy, false, []]);
  assertEquals([at.store.waiting.length, at.arena.usedBytes], [0, 0]);
  // Nobody works any more.
  at.pace.advance(5000);
  assertEquals(at.inspect(), true);
  assertEquals(at.inspector.isBusy, true);
  at.store.run();
  assertEquals([at.results[1][0], at.inspector.isBusy], [0, false]);
  for (let i = 0; i < INSPECTIONS_MAX; i++) assertEquals(at.inspect(), true);
  assertEquals(at.inspect(), false);
  at.store.run();
  assertEquals([at.results.length, at.inspect(), at.arena.usedBytes > 0], [
    2 + INSPECTIONS_MAX,
    true,
    true,
  ]);
});

Deno.test("what a look has not come to when it must end counts as changed", () => {
  for (const why of ["guests", "time"]) {
    const at = new Fixture();
    at.pace.advance(1000);
    at.work = 1;
    at.pace.advance(1001);
    at.inspect();
    // The first run is read, the second one is not.
    if (why === "guests") assertEquals(at.pace.take(2 ** 30), true);
    else at.inspector.tick(400);
    at.store.run();
    const { data, changed, checksums } = at.findings;
    assertEquals([data, changed].map(members), [[1, 2, 3, 500], [500]]);
    assertEquals([checksums[1], checksums[500]], [sumOf(0x11), 0]);
    assertEquals([at.store.done.length, at.arena.usedBytes], [1, 0]);
  }
});

Deno.test("damage is left alone only where nobody wants it healed, and for as long as that is looked at", () => {
  const at = new Fixture();
  at.inspect({ isQuiet: true, pair: [LAYER, 2] });
  const quiet = () =>
    [[LAYER, CHUNK], [2, CHUNK], [LAYER, CHUNK + 1], [4, CHUNK]]
      .map(([layer, chunk]) => at.inspector.isQuiet(layer, chunk));
  assertEquals(quiet(), [true, true, false, false]);
  at.store.run();
  assertEquals(quiet(), [false, false, false, false]);
  at.inspect();
  assertEquals(quiet(), [false, false, false, false]);
  buffer(at.arena, 1);
});

/** The same on behalf of node 3, which asks over a link. */
class Asked {
  readonly transport = new FakeTransport();
  readonly store = new FakeStore(LAYER, 2);
  readonly arena = new Arena();
  readonly replica: Replica;

  constructor(options: MapOptions = {}) {
    const { store, arena, transport } = this;
    this.replica = new Replica({ store, window, arena, transport, log: silent });
    const { replica } = this;
    const pace = new Pace(() => 0);
    replica.inspector = new Inspector({ store, replica, window, arena, pace });
    this.map(options);
    replica.linkUp(LINK, 3, 1);
    const chunk = store.chunk(LAYER, CHUNK);
    Object.assign(chunk, { generation: GENERATION, sequence: 9 });
    chunk.blocks.set(1, 0x11).set(2, 0x12);
  }

  map(options: MapOptions): void {
    this.replica.mapChanged(new ClusterView(mapOf(options), 1), 1);
  }

  ask(fields: HeadFields = {}, extra: number[] = [LAYER, 0, ...new Array(32).fill(-1)]): boolean {
    const bytes = message({
      type: MessageType.Inspect,
      flags: MessageFlag.Recovery,
      epoch: EPOCH,
      disk: 1,
      layer: LAYER,
      chunk: CHUNK,
      id: 7,
      ...fields,
    }, extra);
    return this.replica.received(LINK, bytes, bytes.length, 0, 0);
  }

  /** Statuses that were answered. */
  answers(): number[] {
    return this.transport.take().map(({ head }) => head.status);
  }
}

Deno.test("who asks gets the findings, with the stamp of the end in the head", () => {
  const at = new Asked();
  assertEquals(at.ask(), true);
  assertEquals(at.answers(), []);
  at.store.run();
  const [{ head, extra, data }] = at.transport.take();
  assertEquals([head.status, head.generation, head.sequence], [Status.Ok, GENERATION, 9]);
  const sums = new Uint32Array(data.buffer);
  const findings = unpackFindings(head, new Uint8Array(extra.buffer), sums)!;
  assertEquals(members(findings.data), [1, 2]);
  assertEquals([findings.checksums[1], findings.checksums[2]], [0x11, 0x12].map(sumOf));
  assertEquals(at.arena.usedBytes, 0);
});

Deno.test("what is asked of a replica that may not be compared is refused, or waits for a map", () => {
  const cases: [HeadFields, MapOptions, number[]][] = [
    [{ epoch: CHANGED - 1 }, {}, [Status.Stale]],
    [{ epoch: EPOCH + 1 }, {}, []],
    [{ disk: 9 }, {}, [Status.Stale]],
    [{ layer: 9 }, {}, [Status.Stale]],
    [{}, { group: { inSync: [2, 3], joining: [1], joinedEpochs: [1] } }, [Status.Stale]],
    [{}, { group: { unclean: [1] } }, [Status.Stale]],
  ];
  for (const [fields, map, expected] of cases) {
    const at = new Asked(map);
    assertEquals(at.ask(fields), true);
    at.store.run();
    assertEquals([at.answers(), at.arena.usedBytes], [expected, 0]);
  }
  const foreign = new Asked();
  assertEquals(foreign.ask({}, [LAYER, 77, ...new Array(32).fill(-1)]), true);
  assertEquals(foreign.answers(), [Status.Stale]);
});

Deno.test("rubbish ends the connection", () => {
  const whole = [LAYER, 0, ...new Array(32).fill(-1)];
  for (const extra of [[], [LAYER], whole.slice(1), [...whole, 0]]) {
    assertEquals(new Asked().ask({}, extra), false);
  }
  assertEquals(new Asked().ask({ chunk: 2 ** 31 }), false);
});

Deno.test("too many at a time are put off, and a store that fails is an errno", () => {
  const at = new Asked();
  for (let i = 0; i < INSPECTIONS_MAX + 1; i++) at.ask({ id: i });
  assertEquals(at.answers(), [Status.Busy]);
  at.store.failure = -ENODEV;
  at.store.run();
  assertEquals(at.answers(), new Array(INSPECTIONS_MAX).fill(-ENODEV));
  assertEquals(at.arena.usedBytes, 0);
});

Deno.test("what was looked at under another membership is stale, and nobody hears of it who is gone", () => {
  const at = new Asked();
  at.ask();
  at.map({ epoch: EPOCH + 1, group: { inSync: [1, 3], changedEpoch: EPOCH + 1 } });
  at.store.run();
  assertEquals([at.answers(), at.arena.usedBytes], [[Status.Stale], 0]);
  at.ask({ epoch: EPOCH + 1 });
  at.replica.linkDown(LINK);
  at.replica.linkUp(LINK, 3, 1);
  at.store.run();
  assertEquals([at.answers(), at.arena.usedBytes], [[], 0]);
});

Deno.test("the chunks of a layer are listed, of groups in which this node is in sync", () => {
  for (const isMember of [true, false]) {
    const at = new Asked(isMember ? {} : { group: { inSync: [2, 3] } });
    at.ask({ type: MessageType.Chunks, chunk: 0 }, []);
    const [{ head, data }] = at.transport.take();
    assertEquals([head.status, head.argument], [Status.Ok, isMember ? 1 : 0]);
    if (isMember) assertEquals(new Uint32Array(data.buffer)[1], CHUNK);
    at.ask({ type: MessageType.Chunks, layer: 9 }, []);
    assertEquals([at.answers(), at.arena.usedBytes], [[Status.Stale], 0]);
  }
});

Deno.test("what is to be replaced or copied is noted where the replica is in sync, and the other one as well", () => {
  const order = [5, 7, 9];
  const layers = [
    { id: LAYER, parent: 0, absorbedBy: [] },
    { id: 2, parent: LAYER, absorbedBy: null },
  ];
  const cases: [HeadFields, MapOptions, number[]][] = [
    [{}, {}, [Status.Ok]],
    [{ epoch: CHANGED - 1 }, {}, [Status.Stale]],
    [{ epoch: EPOCH + 1 }, {}, []],
    [{ disk: 9 }, {}, [Status.Stale]],
    [{ layer: 9 }, {}, [Status.Stale]],
    [{}, { group: { inSync: [2, 3], joining: [1], joinedEpochs: [1] } }, [Status.Stale]],
    [{}, { group: { unclean: [2] } }, [Status.Stale]],
    [{}, { group: { inSync: [1, 3] } }, [Status.Stale]],
    [{ argument: 1 }, {}, [Status.Stale]],
    [{ argument: 4 }, {}, [Status.Stale]],
    [{}, { disk: { layers: [2, LAYER] }, layers }, [Status.Stale]],
  ];
  for (const type of [MessageType.Replace, MessageType.Complete]) {
    const isReplace = type === MessageType.Replace;
    const extra = isReplace ? order : [];
    for (const [fields, map, expected] of cases) {
      const at = new Asked(map);
      const noted: unknown[] = [];
      at.replica.replacer = { replace: (...what) => noted.push(what) };
      at.replica.completer = { complete: (...what) => noted.push(what), holds: () => false };
      assertEquals(at.ask({ type, flags: 0, argument: 2, ...fields }, extra), true);
      assertEquals([at.answers(), at.arena.usedBytes], [expected, 0]);
      const list = isReplace ? [[{ block: 5, wrong: 7, right: 9 }]] : [];
      assertEquals(noted, expected[0] === Status.Ok ? [[LAYER, CHUNK, 2, ...list]] : []);
    }
    const wrong = isReplace ? [[], [5, 7], [1024, 7, 9]] : [[1]];
    for (const each of wrong) assertEquals(new Asked().ask({ type, argument: 2 }, each), false);
    assertEquals(new Asked().ask({ type, chunk: 2 ** 31 }, extra), false);
  }
});
