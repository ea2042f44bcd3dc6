import { assert, assertEquals } from "@std/assert/mod.js";
import { Arena } from "../../agent/base/arena.ts";
import { BLOCK_BYTES } from "../../agent/base/limits.ts";
import type { DataCore } from "../../agent/replication/data_core.ts";
import {
  ANSWER,
  DESCRIPTION_WORDS,
  MessageFlag,
  MessageType,
  STAMP_ENTRY_BYTES,
  Status,
} from "../../agent/replication/messages.ts";
import { OperationKind } from "../../agent/store/operation.ts";
import {
  answerTo,
  buffer,
  coreOf,
  EPOCH,
  FakeStore,
  FakeTransport,
  GENERATION,
  mapOf,
  type MapOptions,
  message,
  type Sent,
  sumOf,
  window,
} from "./harness.ts";

/** This node joins, its source and the holder of the lease. */
const SELF = 2, SOURCE = 3, HOLDER = 1, THEIRS = 11;
const LAYER = 1, CHUNK = 3, BLOCK = 5;
const JOINING: MapOptions = {
  group: { target: [1, 2, 3], inSync: [SOURCE, HOLDER], joining: [SELF], joinedEpochs: [60] },
  down: [],
};

/** What the source has of the chunk. */
interface Source {
  readonly fill: number;
  readonly stamp: readonly [generation: number, sequence: number];
  /** Stamp of the second description; the first one's unless given. */
  readonly end?: readonly [generation: number, sequence: number];
  /** It has not listed the chunk: nothing was written to it then. */
  readonly isUnlisted?: boolean;
}

class Fixture {
  readonly transport = new FakeTransport();
  readonly store = new FakeStore(LAYER);
  readonly arena = new Arena();
  readonly core: DataCore;
  readonly reported: number[] = [];
  /** When groups were reported, and how many at once. */
  readonly reports: { atMs: number; groups: number }[] = [];
  readonly reconciled: number[] = [];
  readonly settled: number[] = [];
  nowMs = 1000;
  #described = 0;

  constructor(options: MapOptions, self = SELF) {
    this.core = coreOf(this, mapOf(options), self, {
      reconciled: (_, generation) => this.reconciled.push(generation),
      settled: (_, groups) => this.settled.push(...groups),
      inSync: (_, groups) => {
        this.reported.push(...groups);
        this.reports.push({ atMs: this.nowMs, groups: groups.length });
      },
    });
    this.core.linkUp(THEIRS, HOLDER, false, 1);
    this.core.tick(this.nowMs);
    this.core.renew(Infinity);
  }

  get group(): number {
    return this.core.view.groupOf(this.core.view.disk(1)!, CHUNK).group;
  }

  get chunk() {
    return this.store.chunk(LAYER, CHUNK);
  }

  /** What this node has of the chunk: its stamp, and the content of the block. */
  get held(): unknown[] {
    const { generation, sequence, blocks } = this.chunk;
    return [generation, sequence, blocks.get(BLOCK)];
  }

  /** A live write of the holder's. */
  live(sequence: number, fill: number, generation = GENERATION, block = BLOCK): void {
    this.beginLive(sequence, fill, generation, block);
    this.store.run();
    this.core.endTurn();
  }

  /** The same, but it is still on its way into the store. */
  beginLive(sequence: number, fill: number, generation = GENERATION, block = BLOCK): void {
    const bytes = message({
      type: MessageType.Write,
      id: sequence,
      epoch: this.core.view.epoch,
      disk: 1,
      layer: LAYER,
      chunk: CHUNK,
      block,
      count: 1,
      generation,
      sequence,
    }, [sumOf(fill)]);
    this.core.received(THEIRS, bytes, bytes.length, buffer(this.arena, fill), BLOCK_BYTES);
  }

  answer(sent: Sent, fields = {}, extra: ArrayLike<number> = [], at = 0, bytes = 0): void {
    const head = answerTo(sent, { epoch: this.core.view.epoch, ...fields }, extra);
    this.core.received(sent.link, head, head.length, at, bytes);
  }

  /** Answers what is asked as a source with this content would; `until` says where to stop. */
  serve(source: Source, until: (sent: Sent) => boolean = () => false): Sent | null {
    for (let i = 0; i < 400; i++) {
      this.store.run();
      for (const sent of this.transport.take()) {
        if (sent.link === THEIRS) continue;
        if (until(sent)) return sent;
        this.answerAs(sent, source);
      }
      this.nowMs += 10;
      this.core.tick(this.nowMs);
      this.core.endTurn();
    }
    return null;
  }

  /** Answers one message. */
  answerAs(sent: Sent, { fill, stamp, end = stamp, isUnlisted = false }: Source): void {
    const { type, group, chunk } = sent.head;
    if (type === MessageType.List) {
      if (group !== this.group || isUnlisted) return this.answer(sent, { argument: 0 });
      return this.answer(sent, { argument: 1 }, [], this.#entry(stamp), BLOCK_BYTES);
    }
    if (type === MessageType.Describe) {
      const words = new Uint32Array(DESCRIPTION_WORDS);
      if (chunk === CHUNK) words[0] = 1 << BLOCK;
      const [generation, sequence] = this.#described++ % 2 === 0 ? stamp : end;
      return this.answer(sent, { generation, sequence }, words);
    }
    if (type !== MessageType.Read) return;
    this.answer(sent, {}, [sumOf(fill)], buffer(this.arena, fill), BLOCK_BYTES);
  }

  /** Answers a question for stamps as who has this, or nothing. */
  answerStamps(sent: Sent, source: Source | null): void {
    if (source === null) return this.answer(sent, { argument: 0 });
    this.answer(sent, { argument: 1 }, [], this.#entry(source.stamp), BLOCK_BYTES);
  }

  #entry([generation, sequence]: readonly [number, number]): number {
    const at = buffer(this.arena, 0);
    new Uint32Array(window.bytes.buffer, at, STAMP_ENTRY_BYTES / 4)
      .set([LAYER, CHUNK, generation, 0, sequence, 0]);
    return at;
  }
}

const isRead = ({ head }: Sent) => head.type === MessageType.Read;

Deno.test("a chunk is copied, takes the source's stamp, and its group is reported after a sync", () => {
  const at = new Fixture(JOINING);
  at.serve({ fill: 0xaa, stamp: [7, 70] });
  assertEquals(at.held, [7, 70, 0xaa]);
  assertEquals(at.reported.includes(at.group), true);
  assertEquals(at.arena.usedBytes, 0);
});

Deno.test("who watches a block hears that its chunk is being copied, from when that begins", () => {
  const at = new Fixture(JOINING);
  const isChanged = () => {
    const watched = { layer: LAYER, chunk: CHUNK, block: BLOCK, isChanged: true };
    at.core.replica.watch(watched);
    return watched.isChanged;
  };
  assertEquals(isChanged(), false);
  const watched = { layer: LAYER, chunk: CHUNK, block: BLOCK, isChanged: false };
  at.core.replica.watch(watched);
  const source: Source = { fill: 0xaa, stamp: [7, 70] };
  const read = at.serve(source, isRead)!;
  assertEquals([watched.isChanged, isChanged()], [true, true]);
  at.answerAs(read, source);
  at.serve(source);
  assertEquals(isChanged(), false);
});

Deno.test("while a report is on its way to the map others are gathered, and for as long again", () => {
  const at = new Fixture(JOINING);
  const source = { fill: 0xaa, stamp: [7, 70] } as const;
  const count = at.core.view.pool(3).length;
  // The lists come slowly, two for each tick, so that there is always another group to gather.
  const later: Sent[] = [];
  const pass = (ticks: number) => {
    for (let i = 0; i < ticks; i++) {
      at.store.run();
      later.push(...at.transport.take().filter(({ link }) => link !== THEIRS));
      for (const sent of later.splice(0, 2)) at.answerAs(sent, source);
      at.nowMs += 10;
      at.core.tick(at.nowMs);
      at.core.endTurn();
    }
  };
  while (at.reports.length === 0) pass(1);
  const [{ groups: first }] = at.reports;
  assert(first < count / 4, `${first} of ${count} groups at once`);
  const askedMs = at.nowMs;
  pass(40);
  assertEquals(at.reports.length, 1, "the map has not said that it has them");
  const isDone = new Set(at.reported);
  const inSync = {
    ...JOINING.group,
    inSync: [SOURCE, HOLDER, SELF],
    joining: [],
    joinedEpochs: [],
  };
  const map = mapOf({ ...JOINING, epoch: EPOCH + 1 });
  const [pool] = map.pools;
  const pgs = pool.pgs.map((pg, group) => isDone.has(group) ? { ...pg, ...inSync } : pg);
  at.core.setMap({ ...map, pools: [{ ...pool, pgs }] }, SELF, 1);
  const tookMs = at.nowMs - askedMs;
  while (at.reports.length === 1) pass(1);
  const waitedMs = at.reports[1].atMs - askedMs - tookMs;
  assert(waitedMs >= tookMs && waitedMs <= tookMs + 30, `${waitedMs} after ${tookMs} ms`);
  // The last ones wait for nobody.
  while (at.reported.length < count) pass(1);
  assertEquals(new Set(at.reported).size, count);
});

Deno.test("what the source got while it was copied is awaited live before the chunk counts", () => {
  const at = new Fixture(JOINING);
  at.serve({ fill: 0xaa, stamp: [7, 70], end: [7, 72] });
  assertEquals([at.chunk.generation, at.reported.includes(at.group)], [0, false]);
  at.live(71, 0x71);
  assertEquals(at.chunk.generation, 0);
  at.live(72, 0x72);
  assertEquals([at.chunk.generation, at.chunk.sequence], [7, 72]);
  at.serve({ fill: 0xaa, stamp: [7, 72] });
  assertEquals(at.reported.includes(at.group), true);
});

Deno.test("a live write that came while it was copied is not taken for the one that the source had in the end", () => {
  const at = new Fixture(JOINING);
  const source: Source = { fill: 0xaa, stamp: [7, 70], end: [7, 72] };
  const read = at.serve(source, isRead)!;
  at.live(71, 0x71, GENERATION, BLOCK + 1);
  at.answerAs(read, source);
  at.serve(source);
  assertEquals([at.chunk.generation, at.reported.includes(at.group)], [0, false]);
  at.live(72, 0x72);
  assertEquals([at.chunk.generation, at.chunk.sequence], [7, 72]);
  assertEquals([at.chunk.blocks.get(BLOCK), at.chunk.blocks.get(BLOCK + 1)], [0x72, 0x71]);
});

/** The source's list of the group, asked for and not answered yet. */
function listOf(at: Fixture, source: Source): Sent {
  const { group } = at;
  return at.serve(source, ({ head }) => head.type === MessageType.List && head.group === group)!;
}

const NOTHING: Source = { fill: 0, stamp: [0, 0], isUnlisted: true };

for (const when of ["just after the list", "after the report"]) {
  Deno.test(`a chunk that is written for the first time ${when} has the stamp of each write`, () => {
    const at = new Fixture(JOINING);
    if (when === "after the report") at.serve(NOTHING);
    else at.answerAs(listOf(at, NOTHING), NOTHING);
    assertEquals(at.reported.includes(at.group), when === "after the report");
    at.live(71, 0x71);
    assertEquals([at.chunk.generation, at.chunk.sequence], [7, 71]);
    at.live(72, 0x72, GENERATION, BLOCK + 1);
    at.live(71, 0xee);
    const { generation, sequence, blocks } = at.chunk;
    assertEquals([generation, sequence], [7, 72]);
    assertEquals([blocks.get(BLOCK), blocks.get(BLOCK + 1)], [0x71, 0x72], "71 came twice");
    assertEquals(at.serve(NOTHING, isRead), null, "nothing is copied over it");
    assertEquals([at.chunk.sequence, at.reported.includes(at.group)], [72, true]);
  });
}

Deno.test("a chunk whose first write is on its way into the store when the list ends is copied as well", () => {
  const at = new Fixture(JOINING);
  const source: Source = { fill: 0x71, stamp: [7, 71], isUnlisted: true };
  const list = listOf(at, source);
  at.beginLive(71, 0x71);
  at.answerAs(list, source);
  at.serve(source);
  assertEquals(at.held, [7, 71, 0x71]);
  assertEquals(at.reported.includes(at.group), true);
});

Deno.test("a chunk that equals the source's has its stamp though a repeated write is on its way into the store", () => {
  const at = new Fixture(JOINING);
  const { chunk } = at;
  [chunk.generation, chunk.sequence] = [7, 71];
  chunk.blocks.set(BLOCK, 0x71);
  const source: Source = { fill: 0x71, stamp: [7, 71] };
  const list = listOf(at, source);
  at.beginLive(71, 0x71);
  at.answerAs(list, source);
  assertEquals(at.serve(source, isRead), null, "it is not copied");
  assertEquals([chunk.generation, chunk.sequence, chunk.blocks.get(BLOCK)], [7, 71, 0x71]);
  assertEquals(at.reported.includes(at.group), true);
});

Deno.test("a write that comes once more is not taken for the newer content that it has replaced", () => {
  const at = new Fixture(JOINING);
  const { chunk } = at;
  // It had both writes when it left the group and joined again; the first was not acknowledged by all.
  [chunk.generation, chunk.sequence] = [7, 72];
  chunk.blocks.set(BLOCK, 0x72);
  const source: Source = { fill: 0x72, stamp: [7, 72] };
  const list = listOf(at, source);
  at.live(71, 0x71);
  at.answerAs(list, source);
  at.serve(source);
  assertEquals([chunk.generation, at.reported.includes(at.group)], [0, false]);
  at.live(72, 0x72);
  at.serve(source);
  assertEquals([chunk.generation, chunk.sequence, chunk.blocks.get(BLOCK)], [7, 72, 0x72]);
  assertEquals(at.reported.includes(at.group), true);
});

Deno.test("what a dead lease has left at a joining replica is replaced by what the source has", () => {
  for (const when of ["before it is copied", "while it is copied", "while it is awaited"]) {
    const at = new Fixture(JOINING);
    const source: Source = { fill: 0xaa, stamp: [7, 70] };
    // It came here and nowhere else, and its writer died.
    if (when === "before it is copied") at.live(71, 0xdd);
    else if (when === "while it is copied") {
      at.serve(source, isRead);
      at.live(71, 0xdd);
    } else {
      at.serve({ ...source, end: [7, 72] });
      at.live(71, 0xdd);
    }
    assertEquals(at.chunk.blocks.get(BLOCK), 0xdd, when);
    const disk = { generation: GENERATION + 1, settled: GENERATION - 1 };
    at.core.setMap(mapOf({ ...JOINING, epoch: EPOCH + 1, disk }), SELF, 1);
    at.serve(source);
    const { generation, sequence, blocks } = at.chunk;
    assertEquals([blocks.get(BLOCK), generation, sequence], [0xaa, 7, 70], when);
    assertEquals(at.reported.includes(at.group), true, when);
  }
});

const ENDS: { [how: string]: MapOptions } = {
  "has been given back": { holder: 0 },
  "is of a run that has ended": { disk: { lease: { node: HOLDER, incarnation: 0 } } },
  "is held by a node that is down": { down: [HOLDER] },
};
for (const [how, end] of Object.entries(ENDS)) {
  for (const when of ["while it is awaited", "while it is copied"]) {
    Deno.test(`a write of the source's is not awaited for ever where the lease ${how} ${when}`, () => {
      const at = new Fixture(JOINING);
      const source: Source = { fill: 0xaa, stamp: [7, 70], end: [7, 72] };
      const map = mapOf({ ...JOINING, epoch: EPOCH + 1, ...end });
      const read = at.serve(source, isRead)!;
      at.live(71, 0x71, GENERATION, BLOCK + 1);
      if (when === "while it is copied") at.core.setMap(map, SELF, 1);
      at.answerAs(read, source);
      // As long as its run can send what is missing, the copy is not made again.
      if (when === "while it is awaited") {
        at.serve(source);
        assertEquals([at.chunk.generation, at.reported.includes(at.group)], [0, false]);
        at.core.setMap(map, SELF, 1);
      }
      at.serve({ fill: 0xbb, stamp: [7, 72] });
      assertEquals(at.held, [7, 72, 0xbb]);
      assertEquals([at.chunk.blocks.get(BLOCK + 1), at.reported.includes(at.group)], [
        undefined,
        true,
      ]);
    });
  }
}

for (
  const when of [
    "before it is copied",
    "while it is to be copied again",
    "while it is copied",
    "while a live write is awaited",
  ]
) {
  Deno.test(`a chunk of a disk that gets another number of copies is not copied for the old group, ${when}`, () => {
    const at = new Fixture(JOINING);
    const source: Source = { fill: 0xaa, stamp: [7, 70], end: [7, 72] };
    const map = mapOf({ ...JOINING, epoch: EPOCH + 1, disk: { copies: 2, pool: 2 } });
    const left = { target: [1, 3], inSync: [SOURCE, HOLDER], joining: [], joinedEpochs: [] };
    const pgs = map.pools[0].pgs.map((entry) => ({ ...entry, ...left }));
    const moved = { ...map, pools: [{ ...map.pools[0], id: 2, copies: 2, pgs }, ...map.pools] };
    const isList = ({ head }: Sent) => head.type === MessageType.List && head.group === at.group;
    const isDescribe = ({ head }: Sent) => head.type === MessageType.Describe;
    if (when === "before it is copied") at.answerAs(at.serve(source, isList)!, source);
    else if (when === "while it is to be copied again") {
      at.answer(at.serve(source, isDescribe)!, { status: Status.Busy });
    }
    const read = when === "while it is copied" ? at.serve(source, isRead)! : null;
    if (when === "while a live write is awaited") {
      const awaited = at.serve(source, isRead)!;
      at.answerAs(awaited, source);
      at.live(71, 0x71, GENERATION, BLOCK + 1);
      at.serve(source);
      assertEquals(at.reported.includes(at.group), false);
    }
    at.core.setMap(moved, SELF, 1);
    if (read !== null) at.answerAs(read, source);
    // Nobody in the old group gives it.
    assertEquals(at.serve(source, isDescribe), null);
    assertEquals(at.reported.includes(at.group), true);
    assertEquals(at.chunk.generation, 0);
  });
}

Deno.test("what was copied from a source that turns out to have lost writes is copied again", () => {
  const at = new Fixture({ ...JOINING, group: { ...JOINING.group, inSync: [3] } });
  const old: Source = { fill: 0xbb, stamp: [7, 70] };
  at.serve(old, () => at.chunk.generation === 7);
  assertEquals([at.chunk.blocks.get(BLOCK), at.reported.includes(at.group)], [0xbb, false]);
  // Its store has started anew without what it had acknowledged; node 1 has it all.
  const group = { ...JOINING.group, inSync: [3, 1], unclean: [3], changedEpoch: EPOCH + 1 };
  at.core.setMap(mapOf({ ...JOINING, group, epoch: EPOCH + 1 }), SELF, 1);
  at.serve(old);
  assertEquals(at.reported.includes(at.group), false, "from an unclean one nothing is copied");
  const clean = { ...JOINING.group, inSync: [1], changedEpoch: EPOCH + 2 };
  at.core.setMap(mapOf({ ...JOINING, group: clean, epoch: EPOCH + 2 }), SELF, 1);
  at.serve({ fill: 0xaa, stamp: [7, 71] });
  assertEquals([at.chunk.blocks.get(BLOCK), at.chunk.sequence], [0xaa, 71]);
  assertEquals(at.reported.includes(at.group), true);
});

// ------------------------------------------------------------------- on behalf of a disk's holder

/** The lease before was not given back in good order. */
const UNCLEAN: MapOptions = { ...JOINING, disk: { settled: GENERATION - 2 } };

/** The holder has this node copy the chunk from the source. */
function askFor(at: Fixture): void {
  const pull = message({
    type: MessageType.Pull,
    id: 9,
    epoch: at.core.view.epoch,
    disk: 1,
    layer: LAYER,
    chunk: CHUNK,
    generation: GENERATION,
    argument: SOURCE,
  });
  at.core.received(THEIRS, pull, pull.length, 0, 0);
}

/** Lets time pass, and answers what is asked meanwhile. */
function pass(at: Fixture, answer: (sent: Sent) => void): void {
  for (let i = 0; i < 400; i++) {
    at.store.run();
    for (const sent of at.transport.take()) answer(sent);
    at.core.tick(at.nowMs += 10);
    at.core.endTurn();
  }
}

/** Serves everything but what is `slow`, which is given back unanswered. */
function serveBut(at: Fixture, source: Source, slow: (sent: Sent) => boolean): Sent[] {
  const kept: Sent[] = [];
  pass(at, (sent) => {
    if (slow(sent)) kept.push(sent);
    else if (sent.link !== THEIRS) at.answerAs(sent, source);
  });
  return kept;
}

const isOfChunk = ({ head }: Sent) =>
  head.chunk === CHUNK && (head.type === MessageType.Describe || head.type === MessageType.Read);

for (const how of ["well", "badly", "with its source"]) {
  Deno.test(`a group is not reported before a copy for the disk's holder has ended, ${how}`, () => {
    const at = new Fixture(UNCLEAN);
    const source: Source = { fill: 0xaa, stamp: [6, 70] };
    askFor(at);
    const [describe] = serveBut(at, source, isOfChunk);
    assertEquals(describe.head.type, MessageType.Describe);
    assertEquals(at.reported.includes(at.group), false);
    if (how === "well") at.answerAs(describe, source);
    else if (how === "badly") at.answer(describe, { status: Status.Busy });
    else {
      const group = { ...JOINING.group, inSync: [HOLDER], changedEpoch: EPOCH + 1 };
      at.core.setMap(mapOf({ ...UNCLEAN, group, epoch: EPOCH + 1, down: [SOURCE] }), SELF, 1);
    }
    at.serve(source);
    assertEquals(at.held, [6, 70, 0xaa]);
    assertEquals(at.reported.includes(at.group), true);
  });
}

Deno.test("a group that was reported already is reported again when what the holder asked for is there", () => {
  const at = new Fixture(UNCLEAN);
  const source: Source = { fill: 0xaa, stamp: [6, 70] };
  at.serve(source);
  assertEquals(at.reported.includes(at.group), true);
  askFor(at);
  at.reported.length = 0;
  const [describe] = serveBut(at, source, isOfChunk);
  assertEquals(at.reported.includes(at.group), false);
  at.answerAs(describe, source);
  at.serve(source);
  assertEquals([at.chunk.generation, at.reported.includes(at.group)], [6, true]);
});

Deno.test("a group of which nothing was left to copy, and whose source has left, goes on with another one", () => {
  const at = new Fixture({ ...UNCLEAN, group: { ...JOINING.group, inSync: [SOURCE] } });
  const source: Source = { fill: 0xaa, stamp: [6, 70] };
  at.serve(source);
  assertEquals(at.reported.includes(at.group), true);
  const group = { ...JOINING.group, inSync: [HOLDER] };
  at.core.setMap(mapOf({ ...UNCLEAN, group, epoch: EPOCH + 1, down: [SOURCE] }), SELF, 1);
  at.reported.length = 0;
  // It is to copy once more, and cannot from there.
  askFor(at);
  pass(at, (sent) => {
    if ((sent.head.type & ANSWER) !== 0) return;
    if (sent.link === SOURCE) at.answer(sent, { status: Status.Busy });
    else at.answerAs(sent, { fill: 0xbb, stamp: [6, 75] });
  });
  assertEquals(at.held, [6, 75, 0xbb]);
  assertEquals(at.reported.includes(at.group), true);
});

Deno.test("a group is settled though a layer that it was about to copy begins to be absorbed", () => {
  const crashed = { inSync: [SELF, SOURCE], unclean: [SELF, SOURCE], unsettled: true };
  const group = { ...crashed, changedEpoch: EPOCH };
  const layers = [
    { id: LAYER, parent: 0, absorbedBy: null },
    { id: LAYER + 1, parent: LAYER, absorbedBy: null },
  ];
  const options: MapOptions = { group, layers, disk: { layers: [LAYER + 1, LAYER] } };
  const at = new Fixture(options);
  at.store.content.set(LAYER + 1, new Map());
  const source: Source = { fill: 0xaa, stamp: [6, 70] };
  const describe = at.serve(source, isOfChunk);
  assertEquals(describe?.head.layer, LAYER, "what the other one has is newer");
  const absorbing = [{ ...layers[0], absorbedBy: [] }, layers[1]];
  at.core.setMap(mapOf({ ...options, layers: absorbing, epoch: EPOCH + 1 }), SELF, 1);
  at.serve(source);
  assertEquals(at.settled.includes(at.group), true);
});

for (const stamp of [[6, 70], [0, 0]] as const) {
  const known = stamp[0] > 0 ? "known" : "unknown";
  Deno.test(`what the source has in a layer that is being absorbed is copied, its stamp ${known}`, () => {
    const layers = [
      { id: LAYER, parent: 0, absorbedBy: [] },
      { id: LAYER + 1, parent: LAYER, absorbedBy: null },
    ];
    const at = new Fixture({ ...JOINING, layers, disk: { layers: [LAYER + 1, LAYER] } });
    at.store.content.set(LAYER + 1, new Map());
    at.serve({ fill: 0xaa, stamp });
    const { generation, sequence, blocks } = at.store.chunk(LAYER + 1, CHUNK);
    assertEquals([generation, sequence, blocks.get(BLOCK)], [...stamp, 0xaa]);
    assertEquals(at.reported.includes(at.group), true);
  });
}

Deno.test("what is copied for the disk's holder ends where the node does not join any more", () => {
  const at = new Fixture(UNCLEAN);
  const source: Source = { fill: 0xaa, stamp: [6, 70] };
  askFor(at);
  const read = at.serve(source, (sent) => isOfChunk(sent) && isRead(sent))!;
  const inSync = { inSync: [SOURCE, HOLDER, SELF], joining: [], joinedEpochs: [] };
  const group = { ...JOINING.group, ...inSync };
  at.core.setMap(mapOf({ ...UNCLEAN, group, epoch: EPOCH + 1 }), SELF, 1);
  const answers = at.transport.take().filter(({ head }) =>
    head.type === (MessageType.Pull | ANSWER)
  );
  assertEquals(answers.map(({ head }) => [head.id, head.status]), [[9, Status.Busy]]);
  at.answerAs(read, source);
  at.serve(source);
  assertEquals([at.chunk.generation, at.chunk.blocks.size, at.arena.usedBytes], [0, 0, 0]);
});

for (const when of ["before it reads", "while it reads", "while it writes", "while it clears"]) {
  Deno.test(`a live write is not undone by a copy that the holder has given up, ${when}`, () => {
    const at = new Fixture(UNCLEAN);
    const other = BLOCK + 1, third = BLOCK + 2;
    // What the source has nothing of is freed here.
    for (const block of [BLOCK, other, third]) at.chunk.blocks.set(block, 0x11);
    const source: Source = { fill: 0xaa, stamp: [6, 70] };
    askFor(at);
    const isWaiting = (kind: OperationKind) => at.store.waiting.some((each) => each.kind === kind);
    const isReading = (sent: Sent) => isOfChunk(sent) && isRead(sent);
    const read = when === "before it reads" ? null : at.serve(source, isReading)!;
    if (when === "while it writes" || when === "while it clears") at.answerAs(read!, source);
    assertEquals(
      isWaiting(OperationKind.Write),
      when === "while it writes" || when === "while it clears",
    );
    while (when === "while it clears" && !isWaiting(OperationKind.Free)) at.store.run(1);
    at.beginLive(71, 0x71);
    at.beginLive(72, 0x72, GENERATION, other);
    if (when === "while it reads") at.answerAs(read!, source);
    at.store.run();
    at.core.endTurn();
    assertEquals([at.chunk.blocks.get(BLOCK), at.chunk.blocks.get(other)], [0x71, 0x72]);
    assertEquals([at.chunk.generation, at.reported.includes(at.group)], [0, false]);
    // It is copied anew, around what came live.
    at.serve(source);
    const { generation, sequence, blocks } = at.chunk;
    assertEquals([...blocks].sort(), [[BLOCK, 0x71], [other, 0x72]]);
    assertEquals([generation, sequence, at.reported.includes(at.group)], [GENERATION, 72, true]);
    assertEquals(at.arena.usedBytes, 0);
  });
}

Deno.test("what is copied for the disk's holder ends with its lease", () => {
  const group = { inSync: [SOURCE, HOLDER, SELF] };
  const at = new Fixture({ ...UNCLEAN, group });
  const source: Source = { fill: 0xaa, stamp: [6, 70] };
  askFor(at);
  const read = at.serve(source, isRead)!;
  const disk = { generation: GENERATION + 1, settled: GENERATION - 2 };
  at.core.setMap(mapOf({ group, disk, epoch: EPOCH + 1 }), SELF, 1);
  const answers = at.transport.take().filter(({ head }) =>
    head.type === (MessageType.Pull | ANSWER)
  );
  assertEquals(answers.map(({ head }) => [head.id, head.status]), [[9, Status.Busy]]);
  at.answerAs(read, source);
  at.serve(source);
  assertEquals([at.chunk.generation, at.chunk.blocks.size, at.arena.usedBytes], [0, 0, 0]);
});

// ---------------------------------------------------------------------------------------- opening

const isStamps = ({ head }: Sent) => head.type === MessageType.Stamps;

Deno.test("a lease that is here before the map that gives it waits for that map, and skips nothing", () => {
  const before = { holder: 0, disk: { generation: GENERATION, settled: GENERATION } };
  const at = new Fixture(before, HOLDER);
  at.core.openDisk(1, GENERATION + 2);
  at.core.tick(at.nowMs += 10);
  assertEquals([at.reconciled, at.transport.take().filter(isStamps)], [[], []]);
  // The lease between was not given back in good order.
  const disk = { generation: GENERATION + 2, settled: GENERATION };
  at.core.setMap(mapOf({ epoch: EPOCH + 1, disk }), HOLDER, 1);
  const asked = at.transport.take().filter(isStamps);
  assertEquals(asked.map(({ link }) => link).sort(), [2, 3]);
  assertEquals([at.reconciled, at.core.router(1).isOpen], [[], false]);
  for (const sent of asked) at.answer(sent, { argument: 0 });
  assertEquals([at.reconciled, at.core.router(1).isOpen], [[GENERATION + 2], true]);
});

Deno.test("a lease that follows one that was given back opens at once", () => {
  const at = new Fixture({}, HOLDER);
  at.core.openDisk(1, GENERATION);
  assertEquals([at.reconciled, at.transport.take().filter(isStamps)], [[GENERATION], []]);
});

Deno.test("a member that is busy is asked again a little later", () => {
  const disk = { settled: GENERATION - 2 };
  const at = new Fixture({ disk }, HOLDER);
  at.core.openDisk(1, GENERATION);
  const [first, second] = at.transport.take().filter(isStamps);
  assertEquals(first.head.flags & MessageFlag.Recovery, MessageFlag.Recovery);
  at.answer(first, { status: Status.Busy });
  at.answer(second, { argument: 0 });
  assertEquals(at.reconciled, []);
  at.core.tick(at.nowMs += 10);
  const again = at.transport.take().filter(isStamps);
  assertEquals(again.length, 2);
  for (const sent of again) at.answer(sent, { argument: 0 });
  assertEquals(at.reconciled, [GENERATION]);
});

for (const slow of ["another node", "this node"]) {
  Deno.test(`a copy that ${slow} was asked for before the opening began anew is ended before the disk opens`, () => {
    // Who joins copies what differs between those that are in sync.
    const [joining, other] = slow === "this node" ? [HOLDER, SELF] : [SELF, HOLDER];
    const group = { ...JOINING.group, inSync: [SOURCE, other], joining: [joining] };
    const options = { ...UNCLEAN, group };
    const at = new Fixture(options, HOLDER);
    const source: Source = { fill: 0xaa, stamp: [6, 70] };
    const isEqual = new Set([SOURCE]);
    let pulls = 0;
    const late: Sent[] = [];
    const answer = (sent: Sent) => {
      const isPull = sent.head.type === MessageType.Pull;
      if (isPull) pulls++;
      const isSlow = slow === "this node" ? isOfChunk(sent) : isPull;
      if (isSlow) late.push(sent);
      else if (isStamps(sent)) at.answerStamps(sent, isEqual.has(sent.link) ? source : null);
      else if (isPull) {
        isEqual.add(sent.link);
        at.answer(sent, { status: Status.Ok });
      } else at.answerAs(sent, source);
    };
    const pass = () => {
      for (let i = 0; i < 50; i++) {
        at.store.run();
        for (const sent of at.transport.take()) answer(sent);
        at.core.tick(at.nowMs += 10);
        at.core.endTurn();
      }
    };
    at.core.openDisk(1, GENERATION);
    pass();
    assertEquals([late.length, pulls, at.core.router(1).isOpen], [1, 1, false]);
    // Another group changes.
    const map = mapOf({ ...options, epoch: EPOCH + 1 });
    const [pool] = map.pools;
    const pgs = pool.pgs.map((pg, i) => i === at.group ? pg : { ...pg, changedEpoch: EPOCH + 1 });
    at.core.setMap({ ...map, pools: [{ ...pool, pgs }] }, HOLDER, 1);
    pass();
    // Those in sync are equal by now, and are not asked again.
    assertEquals([late.length, pulls], [2, slow === "this node" ? 1 : 2]);
    assertEquals([at.core.router(1).isOpen, at.reconciled], [false, []]);
    if (slow === "this node") {
      at.answerAs(late[1], source);
      at.serve(source);
    } else at.answer(late[1], { status: Status.Ok });
    assertEquals([at.core.router(1).isOpen, at.reconciled], [true, [GENERATION]]);
  });
}

Deno.test("a write that comes late is not applied over what was copied while that gets its stamp", () => {
  const at = new Fixture(JOINING);
  const source: Source = { fill: 0xaa, stamp: [7, 70] };
  let describes = 0;
  const last = at.serve(
    source,
    ({ head }) => head.type === MessageType.Describe && head.chunk === CHUNK && ++describes === 2,
  )!;
  at.answerAs(last, source);
  // Both were under way at once, to the same block; the source has carried out both.
  at.beginLive(65, 0x65);
  at.store.run(1);
  at.beginLive(70, 0xaa);
  at.store.run();
  at.core.endTurn();
  assertEquals(at.held, [7, 70, 0xaa]);
});
