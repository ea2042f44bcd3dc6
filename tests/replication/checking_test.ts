import { assert, assertEquals } from "@std/assert/mod.js";
import { Arena } from "../../agent/base/arena.ts";
import { BLOCK_BYTES } from "../../agent/base/limits.ts";
import { add } from "../../agent/replication/block_set.ts";
import type { CheckReport } from "../../agent/replication/check_report.ts";
import {
  Findings,
  FINDINGS_WORDS,
  packFindings,
  unpackReplacements,
  ZEROS_CHECKSUM,
} from "../../agent/replication/findings.ts";
import { NO_MAJORITY, NOT_ITS_OWN, NOT_THERE } from "../../agent/replication/deciding.ts";
import {
  MessageFlag,
  MessageType,
  STAMP_ENTRY_BYTES,
  Status,
} from "../../agent/replication/messages.ts";
import {
  answerTo,
  coreOf,
  EPOCH,
  FakeStore,
  FakeTransport,
  GENERATION,
  mapOf,
  type MapOptions,
  type Sent,
  sumOf,
  window,
} from "./harness.ts";

const LAYER = 1, BELOW = 9, CHUNK = 3, BLOCK = 5;
/** The node that is asked has no replica: all that is said comes from nodes 1, 2 and 3. */
const SELF = 4;

/** What a node says of the chunk. */
interface Said {
  readonly begin?: number;
  readonly end?: number;
  readonly generation?: number;
  /** Checksum of the block; null: it is damaged; left out: 1. */
  readonly sum?: number | null;
  readonly isChanged?: boolean;
  /** A write is on its way into the store. */
  readonly isWriting?: boolean;
  /** Instead of data. */
  readonly kind?: "zeros" | "hole";
}

class Fixture {
  readonly transport = new FakeTransport();
  readonly store = new FakeStore(LAYER);
  readonly arena = new Arena();
  readonly core;
  readonly reports: CheckReport[] = [];
  /** Nodes that this one has said not to answer. */
  readonly complaints: number[] = [];
  nowMs = 0;

  /** @param chunks those that the first list names, with more to come; left out: the one, and no more */
  constructor(
    readonly options: MapOptions = {},
    repair = true,
    preferred = 0,
    chunks: readonly number[] = [],
  ) {
    const { store, transport, arena } = this;
    this.core = coreOf({ store, arena, transport }, this.#map(options), SELF, {
      unreachable: (nodes) => this.complaints.push(...nodes),
    });
    this.core.check(
      { targets: [{ disk: 1, layers: [LAYER] }], repair, preferred },
      (report) => this.reports.push(report),
    );
    this.pass(1);
    for (const sent of this.take(MessageType.Chunks)) {
      if (chunks.length === 0) this.list(sent, [CHUNK]);
      else this.list(sent, chunks, chunks.at(-1)! + 1);
    }
  }

  #map(options: MapOptions) {
    return { ...mapOf({ holder: 1, ...options }), level: 2 };
  }

  map(options: MapOptions): void {
    this.core.setMap(this.#map({ ...this.options, ...options }), SELF, 1);
  }

  pass(ms: number): void {
    this.core.tick(this.nowMs += ms);
  }

  /** What was sent of one kind; nothing else may have been. */
  take(type: MessageType): Sent[] {
    const sent = this.transport.take();
    for (const { head } of sent) assertEquals(head.type, type);
    return sent;
  }

  /** @param next where the rest begins; 0: there is none */
  list(sent: Sent, chunks: readonly number[], next = 0): void {
    const at = this.arena.allocate(BLOCK_BYTES);
    const view = new DataView(window.bytes.buffer, at, BLOCK_BYTES);
    chunks.forEach((chunk, i) => {
      view.setUint32(i * STAMP_ENTRY_BYTES, LAYER, true);
      view.setUint32(i * STAMP_ENTRY_BYTES + 4, chunk, true);
    });
    const head = {
      argument: chunks.length,
      ...(next === 0 ? {} : { chunk: next, flags: sent.head.flags | MessageFlag.More }),
    };
    this.#answer(sent, answerTo(sent, head), at, BLOCK_BYTES);
  }

  #answer(sent: Sent, bytes: Uint8Array, at = 0, length = 0): void {
    const release = (offset: number, count: number) => this.arena.release(offset, count);
    this.core.peers.received(sent.link, bytes, bytes.length, at, length, release);
  }

  refuse(sent: Sent, status: number): void {
    this.#answer(sent, answerTo(sent, { status }));
  }

  say(sent: Sent, said: Said, epoch = EPOCH): void {
    const { begin = 9, end = begin, generation = GENERATION, sum = 1, isChanged, kind, isWriting } =
      said;
    const findings = new Findings();
    findings.begin.set(begin === 0 ? 0 : generation, begin);
    if (kind === "zeros") add(findings.zeros, BLOCK);
    if (kind === undefined) add(findings.data, BLOCK);
    if (sum === null) add(findings.damaged, BLOCK);
    else findings.checksums[BLOCK] = sum;
    if (isChanged) add(findings.changed, BLOCK);
    const at = this.arena.allocate(BLOCK_BYTES);
    const sums = window.u32.subarray(at >>> 2, (at + BLOCK_BYTES) >>> 2);
    const extra = new Uint32Array(FINDINGS_WORDS);
    packFindings(findings, extra, sums);
    const argument = isWriting === true ? 1 : 0;
    const head = { generation: end === 0 ? 0 : generation, sequence: end, epoch, argument };
    this.#answer(sent, answerTo(sent, head, extra), at, BLOCK_BYTES);
  }

  /** One round: who is asked, and what they say. */
  round(...said: Said[]): void {
    if (this.transport.sent.length === 0) this.pass(400);
    const asked = this.take(MessageType.Inspect);
    assertEquals(asked.map(({ link }) => link), said.map((_, i) => i + 1));
    asked.forEach((sent, i) => this.say(sent, said[i]));
  }

  /** What nodes are told to replace since the last time: who, whose, and for each block what by what. */
  orders(): string[] {
    return this.take(MessageType.Replace).map((sent) => {
      const { layer, chunk, disk, argument } = sent.head;
      assertEquals([disk, layer, chunk], [1, LAYER, CHUNK]);
      this.#answer(sent, answerTo(sent));
      const list = unpackReplacements(new Uint8Array(sent.extra.buffer))!;
      const text = list.map(({ block, wrong, right }) => `${block}: ${wrong} by ${right}`);
      return `${sent.link} from ${argument}, ${text}`;
    });
  }

  /** Who is told to copy the chunk since the last time, and whose. */
  completions(): string[] {
    return this.take(MessageType.Complete).map((sent) => {
      const { layer, chunk, disk, argument } = sent.head;
      assertEquals([disk, layer, chunk, sent.extra.length], [1, LAYER, CHUNK, 0]);
      this.#answer(sent, answerTo(sent));
      return `${sent.link} from ${argument}`;
    });
  }

  get result() {
    this.pass(1);
    if (this.reports.length === 0) return null;
    const [{ disks: [disk], blocks, unchecked }] = this.reports;
    const { comparedChunks, damagedBlocks, repairedBlocks, differingBlocks, uncheckedChunks } =
      disk;
    assertEquals([this.reports.length, this.arena.usedBytes, disk.chunks], [1, 0, 1]);
    return {
      counts: [comparedChunks, damagedBlocks, repairedBlocks, differingBlocks, uncheckedChunks],
      /** Differences that are none any more; replicas that lacked writes, and that do not any more. */
      settled: [disk.settledBlocks, disk.laggingChunks, disk.caughtUpChunks],
      blocks: blocks.map(({ kind, nodes, contents, reason }) =>
        `${kind} ${nodes} ${contents}: ${reason}`
      ),
      reasons: unchecked.map(({ reason, nodes }) =>
        nodes.length === 0 ? reason : `${nodes}: ${reason}`
      ),
    };
  }
}

const NOTHING = { settled: [0, 0, 0], blocks: [], reasons: [] };
const GOOD = { counts: [1, 0, 0, 0, 0], ...NOTHING };

Deno.test("all replicas in sync are asked, and what all say is good", () => {
  const at = new Fixture();
  at.round({}, {}, {});
  assertEquals(at.result, GOOD);
});

Deno.test("blocks are compared where the spans of all have a stamp in common, and nowhere else", () => {
  for (const said of [[{ begin: 8, end: 9 }, { begin: 9, end: 11 }, { begin: 7, end: 9 }]]) {
    const at = new Fixture();
    at.round(...said);
    assertEquals(at.result, GOOD);
  }
  const apart: Said[][] = [
    [{ begin: 8, end: 9 }, { begin: 10, end: 11 }, { begin: 9 }],
    [{ begin: 9 }, { begin: 9, generation: GENERATION - 1 }, { begin: 9 }],
    [{ begin: 7 }, { begin: 0, end: 9 }, { begin: 7 }],
    [{ begin: 9 }, { begin: 0 }, { begin: 9 }],
  ];
  for (const said of apart) {
    const at = new Fixture();
    // What is not to be compared must not be taken for a difference either.
    for (let i = 0; i < 3; i++) {
      at.round(said[0], { ...said[1], sum: 2 }, said[2]);
      assertEquals(at.result, null);
    }
    at.round({}, {}, {});
    assertEquals(at.result, GOOD);
  }
});

Deno.test("a block that something came to on one replica is looked at again", () => {
  const at = new Fixture();
  for (let i = 0; i < 3; i++) {
    at.round({}, { isChanged: true, sum: 2 }, {});
    assertEquals(at.result, null);
  }
  at.round({}, {}, {});
  assertEquals(at.result, GOOD);
});

Deno.test("what differs once is looked at again, what differs twice and is as good as the rest is reported", () => {
  const once = new Fixture();
  once.round({}, { sum: 2 }, {});
  assertEquals(once.result, null);
  once.round({}, {}, {});
  assertEquals(once.result, GOOD);
  for (const repair of [false, true]) {
    const twice = new Fixture({}, repair);
    const last = repair ? 4 : 3;
    twice.round({ sum: 3 }, { sum: 2 }, { sum: last });
    twice.round({ sum: 3 }, { sum: 2 }, { sum: last });
    assertEquals(twice.orders(), []);
    assertEquals(twice.result, {
      ...NOTHING,
      counts: [0, 0, 0, 1, 0],
      blocks: [
        repair
          ? `differs 1,2,3 0,1,2: ${NO_MAJORITY}`
          : "differs 1,2,3 0,1,0: nothing was to be changed",
      ],
    });
  }
});

Deno.test("a hole is equal to zeros where no layer is below it, and nowhere else", () => {
  const hole: Said = { kind: "hole" }, zeros: Said = { kind: "zeros" };
  const lowest = new Fixture();
  lowest.round(zeros, hole, zeros);
  assertEquals(lowest.result, GOOD);
  const layers = [{ id: LAYER, parent: BELOW, absorbedBy: null }, {
    id: BELOW,
    parent: 0,
    absorbedBy: null,
  }];
  const other = new Fixture({ disk: { layers: [LAYER, BELOW] }, layers });
  other.round(zeros, hole, zeros);
  other.round(zeros, hole, zeros);
  assertEquals(other.result, null);
  // From here on through the layer below.
  other.round(zeros, {}, { sum: 2 });
  other.round(zeros, {}, { sum: 2 });
  assertEquals(other.result?.blocks, [`differs 1,2,3 0,1,2: ${NO_MAJORITY}`]);
  // Zeros that were written are zeros.
  const written = new Fixture();
  written.round({ sum: ZEROS_CHECKSUM }, hole, zeros);
  assertEquals(written.result, GOOD);
});

Deno.test("what is damaged is waited for until its node has healed it", () => {
  const at = new Fixture();
  for (let i = 0; i < 20; i++) at.round({}, {}, { sum: null });
  assertEquals(at.result, null);
  at.round({}, {}, {});
  assertEquals(at.result, { ...GOOD, counts: [1, 1, 1, 0, 0] });
});

Deno.test("damage that nobody can heal, or that is not to be healed, is reported at once", () => {
  const everywhere = new Fixture();
  everywhere.round({ sum: null }, { sum: null }, { sum: null });
  assertEquals(everywhere.result, {
    ...NOTHING,
    counts: [0, 3, 0, 0, 0],
    blocks: ["damaged 1,2,3 0,0,0: no replica has it whole"],
  });
  const left = new Fixture({}, false);
  for (const sent of left.transport.sent) assertEquals(sent.head.argument, 1);
  left.round({}, { sum: null }, {});
  assertEquals(left.result, {
    ...NOTHING,
    counts: [0, 1, 0, 0, 0],
    blocks: ["damaged 2 0: nothing was to be changed"],
  });
});

Deno.test("unknown stamps are compared with each other, at rest, by maps that all know", () => {
  const none = { begin: 0 };
  const rest = { holder: 0, disk: { settled: GENERATION, lease: null } };
  const at = new Fixture(rest);
  at.round(none, none, none);
  assertEquals(at.result, GOOD);
  const newer = new Fixture(rest);
  newer.take(MessageType.Inspect).forEach((sent, i) =>
    newer.say(sent, none, EPOCH + (i === 1 ? 1 : 0))
  );
  assertEquals(newer.result, null);
  const open = new Fixture();
  for (let i = 0; i < 16; i++) open.round(none, { ...none, sum: 2 }, none);
  assertEquals(open.result, {
    ...NOTHING,
    counts: [0, 0, 0, 0, 1],
    reasons: ["it was written before replicas could be compared, and the disk is open"],
  });
});

Deno.test("answers of one round count together or not at all", () => {
  for (const status of [Status.Stale, Status.Busy, -5]) {
    const at = new Fixture();
    const [one, two, three] = at.take(MessageType.Inspect);
    at.say(one, {});
    at.refuse(two, status);
    at.say(three, {});
    assertEquals(at.result, null);
    // The first one says something else in the next round.
    at.round({ sum: 2 }, {}, {});
    assertEquals(at.result, null);
    at.round({}, {}, {});
    assertEquals(at.result, GOOD);
  }
});

Deno.test("what was asked under another membership counts for nothing, late or not", () => {
  const at = new Fixture();
  const asked = at.take(MessageType.Inspect);
  at.say(asked[0], {});
  const inSync = [1, 2];
  at.map({
    epoch: EPOCH + 1,
    group: { inSync, joining: [3], joinedEpochs: [1], changedEpoch: EPOCH + 1 },
  });
  at.say(asked[1], {});
  at.say(asked[2], {});
  assertEquals(at.result, null);
  at.round({}, {});
  assertEquals(at.result, {
    ...NOTHING,
    counts: [1, 0, 0, 0, 1],
    reasons: ["3: it is not in sync yet"],
  });
});

Deno.test("an answer that comes twice is one", () => {
  const at = new Fixture();
  const [one, two, three] = at.take(MessageType.Inspect);
  for (let i = 0; i < 3; i++) at.say(one, {});
  at.say(two, {});
  assertEquals(at.result, null);
  at.say(three, {});
  assertEquals(at.result, GOOD);
});

Deno.test("who never answers is named, and not waited for with the next chunk", () => {
  const at = new Fixture();
  const [one, two] = at.take(MessageType.Inspect);
  at.say(one, {});
  at.say(two, {});
  for (let i = 0; i < 200 && at.reports.length === 0; i++) {
    at.pass(100);
    for (const sent of at.take(MessageType.Inspect)) if (sent.link !== 3) at.say(sent, {});
  }
  // Nobody is to be taken for dead because of it.
  assertEquals(at.complaints, []);
  assertEquals(at.result, {
    ...NOTHING,
    counts: [0, 0, 0, 0, 1],
    reasons: ["3: it does not answer"],
  });
  assertEquals(at.core.peers.count, 0);
});

Deno.test("a node that there is no connection to is not asked, and named after a while", () => {
  const at = new Fixture();
  const asked = at.take(MessageType.Inspect);
  asked.slice(0, 2).forEach((sent) => at.say(sent, {}));
  at.core.linkDown(3);
  for (let i = 0; i < 200 && at.reports.length === 0; i++) {
    at.pass(100);
    assertEquals(at.take(MessageType.Inspect), []);
  }
  assertEquals(at.complaints, []);
  assertEquals(at.result!.reasons, ["3: it does not answer"]);
});

Deno.test("a node that is not up makes its chunks unchecked, after a while", () => {
  const at = new Fixture({ down: [3] });
  assertEquals(at.take(MessageType.Inspect), []);
  for (let i = 0; i < 40; i++) at.pass(500);
  assertEquals(at.result, {
    ...NOTHING,
    counts: [0, 0, 0, 0, 1],
    reasons: ["3: it is not up"],
  });
});

Deno.test("whoever has what fewer have is told what to replace, by whose, until it has done so", () => {
  const at = new Fixture();
  at.round({ sum: 3 }, { sum: 2 }, { sum: 3 });
  assertEquals(at.orders(), [], "it is looked at twice");
  at.round({ sum: 3 }, { sum: 2 }, { sum: 3 });
  assertEquals(at.orders(), ["2 from 1, 5: 2 by 3"]);
  at.round({ sum: 3 }, { sum: 2 }, { sum: 3 });
  assertEquals(at.orders(), ["2 from 1, 5: 2 by 3"]);
  assertEquals(at.result, null);
  at.round({ sum: 3 }, { sum: 3 }, { sum: 3 });
  assertEquals(at.result, { ...NOTHING, counts: [1, 0, 0, 1, 0], settled: [1, 0, 0] });
});

Deno.test("zeros are replaced, and are replaced by, like anything else", () => {
  const at = new Fixture();
  const hole: Said = { kind: "hole" }, zeros: Said = { kind: "zeros" };
  for (let i = 0; i < 2; i++) at.round({ sum: 3 }, hole, zeros);
  assertEquals(at.orders(), [`1 from 2, 5: 3 by ${ZEROS_CHECKSUM}`]);
  at.round(zeros, hole, zeros);
  assertEquals(at.result?.settled, [1, 0, 0]);
  const other = new Fixture();
  for (let i = 0; i < 2; i++) other.round({ sum: 3 }, { sum: 3 }, hole);
  assertEquals(other.orders(), [`3 from 1, 5: ${ZEROS_CHECKSUM} by 3`]);
});

Deno.test("what is not replaced in time is reported", () => {
  const at = new Fixture();
  while (at.reports.length === 0 && at.nowMs < 90_000) {
    at.round({ sum: 3 }, { sum: 2 }, { sum: 3 });
    at.orders();
    at.pass(400);
  }
  assert(at.nowMs > 60_000, `after ${at.nowMs} ms`);
  assertEquals(at.result, {
    ...NOTHING,
    counts: [0, 0, 0, 1, 0],
    blocks: ["differs 1,2,3 0,1,0: it was not put right in time"],
  });
});

Deno.test("what was listed may take its time: the rest is listed, and compared, all the same", () => {
  const chunks = Array.from({ length: 60 }, (_, i) => i);
  const at = new Fixture({}, true, 0, chunks);
  // Something comes to them again and again, four at a time.
  const looks = new Map<number, number>();
  let lists = 0;
  while (at.reports.length === 0 && at.nowMs < 200_000) {
    at.pass(400);
    for (const sent of at.transport.take()) {
      const { type, chunk } = sent.head;
      if (type === MessageType.Chunks) {
        lists++;
        at.list(sent, [2000]);
        continue;
      }
      looks.set(chunk, (looks.get(chunk) ?? 0) + 1);
      at.say(sent, { isChanged: chunk < chunks.length && looks.get(chunk)! <= 3 * 12 });
    }
  }
  assert(at.nowMs > 65_000, `after ${at.nowMs} ms`);
  const [{ disks: [disk], unchecked }] = at.reports;
  assertEquals([unchecked, lists, disk.chunks, disk.comparedChunks], [[], 3, 61, 61]);
});

Deno.test("who is preferred counts, as far as it has something of its own", () => {
  const at = new Fixture({}, true, 2);
  for (let i = 0; i < 2; i++) at.round({ sum: 3 }, { sum: 2 }, { sum: 3 });
  assertEquals(at.orders(), ["1 from 2, 5: 3 by 2", "3 from 2, 5: 3 by 2"]);
  at.round({ sum: 2 }, { sum: 2 }, { sum: 3 });
  assertEquals(at.orders(), ["3 from 2, 5: 3 by 2"]);
  at.round({ sum: 2 }, { sum: 2 }, { sum: 2 });
  assertEquals(at.result, { ...NOTHING, counts: [1, 0, 0, 1, 0], settled: [1, 0, 0] });
  const absent = new Fixture({ group: { inSync: [1, 3] } }, true, 2);
  for (let i = 0; i < 2; i++) {
    if (absent.transport.sent.length === 0) absent.pass(400);
    absent.take(MessageType.Inspect).forEach((sent) => absent.say(sent, { sum: sent.link }));
  }
  assertEquals(absent.result?.blocks, [`differs 1,3 0,1: ${NOT_THERE}`]);
});

Deno.test("what was damaged, and has been healed from one of two that differ, is no second voice for it", () => {
  for (const preferred of [0, 1]) {
    const at = new Fixture({}, true, preferred);
    at.round({ sum: null }, { sum: 2 }, { sum: 3 });
    for (let i = 0; i < 2; i++) at.round({ sum: 2 }, { sum: 2 }, { sum: 3 });
    assertEquals(at.orders(), []);
    const reason = preferred === 0 ? NO_MAJORITY : NOT_ITS_OWN;
    assertEquals(at.result?.blocks, [`differs 1,2,3 0,0,1: ${reason}`]);
  }
  const at = new Fixture();
  at.round({ sum: null }, { sum: 3 }, { sum: 3 });
  for (let i = 0; i < 2; i++) at.round({ sum: 2 }, { sum: 3 }, { sum: 3 });
  assertEquals(at.orders(), ["1 from 2, 5: 2 by 3"]);
});

Deno.test("unknown stamps at rest are as good as known ones to decide", () => {
  const none = { begin: 0 };
  const at = new Fixture({ holder: 0, disk: { settled: GENERATION, lease: null } });
  for (let i = 0; i < 2; i++) at.round(none, { ...none, sum: 2 }, none);
  assertEquals(at.orders(), ["2 from 1, 5: 2 by 1"]);
});

Deno.test("who goes and comes back before it has replaced anything is asked, and told, again", () => {
  const at = new Fixture();
  for (let i = 0; i < 2; i++) at.round({ sum: 3 }, { sum: 2 }, { sum: 3 });
  assertEquals(at.orders().length, 1);
  const inSync = [1, 3];
  at.map({
    epoch: EPOCH + 1,
    group: { inSync, joining: [2], joinedEpochs: [EPOCH + 1], changedEpoch: EPOCH + 1 },
  });
  // Those that are left are the same: what the third one has is nobody's business until it is back.
  at.pass(400);
  at.map({ epoch: EPOCH + 2, group: { inSync: [1, 3, 2], changedEpoch: EPOCH + 2 } });
  at.take(MessageType.Inspect);
  at.pass(400);
  const asked = at.take(MessageType.Inspect);
  assertEquals(asked.map(({ link }) => link), [1, 3, 2]);
  asked.forEach((sent) => at.say(sent, { sum: sent.link === 2 ? 2 : 3 }));
  assertEquals(at.orders(), ["2 from 1, 5: 2 by 3"]);
});

Deno.test("where one goes what was more than half may be none, and what was told before is not told again", () => {
  const at = new Fixture();
  for (let i = 0; i < 2; i++) at.round({ sum: 3 }, { sum: 2 }, { sum: 3 });
  assertEquals(at.orders(), ["2 from 1, 5: 2 by 3"]);
  at.map({ epoch: EPOCH + 1, group: { inSync: [1, 2], changedEpoch: EPOCH + 1 }, down: [3] });
  at.round({ sum: 3 }, { sum: 2 });
  assertEquals(at.orders(), []);
  assertEquals(at.result?.blocks, [`differs 1,2 0,1: ${NO_MAJORITY}`]);
});

Deno.test("a replica that stands still behind others is told to copy the chunk, and is looked at again", () => {
  const at = new Fixture();
  for (let i = 0; i < 15; i++) at.round({}, { begin: 8 }, {});
  assertEquals(at.completions(), []);
  at.round({}, { begin: 8 }, {});
  assertEquals([at.completions(), at.result], [["2 from 1"], null]);
  at.round({}, { begin: 8 }, {});
  at.round({}, {}, {});
  assertEquals(at.result, { ...NOTHING, counts: [1, 0, 0, 0, 0], settled: [0, 1, 1] });
});

Deno.test("what is on its way into a store, or waits there for space, is not lacking", () => {
  for (const who of [0, 1]) {
    const at = new Fixture();
    const said = [{ isWriting: who === 0 }, { begin: 8, isWriting: who === 1 }, {}];
    for (let i = 0; i < 16; i++) at.round(said[0], said[1], said[2]);
    assertEquals(at.completions(), []);
    assertEquals(at.result?.reasons, ["guests write to it all the time"]);
  }
});

Deno.test("an unknown stamp among known ones is one that stands behind them", () => {
  const at = new Fixture();
  for (let i = 0; i < 16; i++) at.round({}, {}, { begin: 0 });
  assertEquals(at.completions(), ["3 from 1"]);
});

Deno.test("damage on a replica that is to copy the chunk is not waited for, on another one it is", () => {
  const at = new Fixture();
  for (let i = 0; i < 16; i++) at.round({}, { begin: 8, sum: null }, {});
  assertEquals(at.completions(), ["2 from 1"]);
  const other = new Fixture();
  for (let i = 0; i < 20; i++) other.round({ sum: null }, { begin: 8 }, {});
  assertEquals(other.completions(), []);
});

Deno.test("those that lack writes count among all of which more than half have to agree", () => {
  const at = new Fixture({ group: { target: [1, 2, 3, 4], inSync: [1, 2, 3, 4] } });
  // What this node itself has is behind the others.
  const own = at.store.chunk(LAYER, CHUNK);
  Object.assign(own, { generation: GENERATION, sequence: 8 });
  for (let i = 0; i < 3; i++) {
    at.round({ sum: 3 }, { sum: 3 }, { sum: 2 });
    at.store.run();
  }
  assertEquals(at.orders(), [], "two of four");
  own.sequence = 9;
  own.blocks.set(BLOCK, 0x11);
  at.round({ sum: sumOf(0x11) }, { sum: sumOf(0x11) }, { sum: 2 });
  at.store.run();
  assertEquals(at.orders(), [`3 from 1, 5: 2 by ${sumOf(0x11)}`], "three of four");
});

Deno.test("a replica that lacked writes, and leaves before it has them, has not caught up", () => {
  const at = new Fixture();
  for (let i = 0; i < 16; i++) at.round({}, { begin: 8 }, {});
  assertEquals(at.completions(), ["2 from 1"]);
  at.map({ epoch: EPOCH + 1, group: { inSync: [1, 3], changedEpoch: EPOCH + 1 }, down: [2] });
  at.pass(400);
  const asked = at.take(MessageType.Inspect);
  assertEquals(asked.map(({ link }) => link), [1, 3]);
  for (const sent of asked) at.say(sent, {});
  assertEquals(at.result, {
    ...NOTHING,
    counts: [1, 0, 0, 0, 1],
    settled: [0, 1, 0],
    reasons: ["2: it is not up"],
  });
});

Deno.test("layers are looked at from the oldest on, whichever disk they are counted for", () => {
  const transport = new FakeTransport();
  const layers = [2, 3, 5].map((id, i, all) => ({
    id,
    parent: all[i - 1] ?? 0,
    absorbedBy: null,
  }));
  const map = mapOf({ disk: { layers: [5, 3, 2] }, layers });
  const core = coreOf(
    { store: new FakeStore(2, 3, 5), arena: new Arena(), transport },
    { ...map, level: 2 },
    SELF,
    {},
  );
  const targets = [{ disk: 1, layers: [5, 2] }, { disk: 1, layers: [3] }];
  core.check({ targets, repair: true }, () => {});
  const asked: number[] = [];
  for (let ms = 1; ms < 20; ms++) {
    core.tick(ms);
    for (const sent of transport.take()) {
      if (sent.link === 1) asked.push(sent.head.layer);
      const bytes = answerTo(sent, { argument: 0 });
      core.peers.received(sent.link, bytes, bytes.length, 0, 0, () => {});
    }
  }
  assertEquals(asked, [2, 3, 5]);
});

Deno.test("who lacks writes stays so where more lack them than have them, unless one that has them is preferred", () => {
  const at = new Fixture();
  for (let i = 0; i < 16; i++) at.round({ begin: 8 }, { begin: 7 }, {});
  assertEquals(at.completions(), []);
  assertEquals(at.result, {
    ...NOTHING,
    counts: [0, 0, 0, 0, 1],
    settled: [0, 2, 0],
    reasons: [
      "1,2: it lacks writes that others have, and so do more than have them: whose content counts has to be said",
    ],
  });
  const preferred = new Fixture({}, true, 3);
  for (let i = 0; i < 16; i++) preferred.round({ begin: 8 }, { begin: 7 }, {});
  assertEquals(preferred.completions(), ["1 from 3", "2 from 3"]);
  const among = new Fixture({}, true, 3);
  for (let i = 0; i < 16; i++) among.round({}, { begin: 8 }, {});
  assertEquals(among.completions(), ["2 from 3"]);
  const lagging = new Fixture({}, true, 2);
  for (let i = 0; i < 16; i++) lagging.round({}, { begin: 8 }, {});
  assertEquals(lagging.result?.reasons, [
    "2: it lacks writes that others have, though its content is the one that counts",
  ]);
});

Deno.test("who lacks writes stays so where nobody knows who of the others is right, or layers are being merged", () => {
  const disputed = new Fixture();
  for (let i = 0; i < 16; i++) disputed.round({ sum: 1 }, { begin: 8, sum: 1 }, { sum: 2 });
  assertEquals(disputed.transport.sent, []);
  assertEquals(disputed.result, {
    ...NOTHING,
    counts: [0, 0, 0, 1, 1],
    settled: [0, 1, 0],
    blocks: [`differs 1,3 0,1: ${NO_MAJORITY}`],
    reasons: [
      "2: it lacks writes that others have, and those differ themselves: settle that first",
    ],
  });
  const layers = [
    { id: LAYER, parent: BELOW, absorbedBy: null },
    { id: BELOW, parent: 0, absorbedBy: [] },
  ];
  const merged = new Fixture({ disk: { layers: [LAYER, BELOW] }, layers });
  for (let i = 0; i < 16; i++) merged.round({}, { begin: 8 }, {});
  assertEquals(merged.transport.sent, []);
  assertEquals(merged.result?.reasons, [
    "2: it lacks writes that others have, and its layer is being merged: check again when that is over",
  ]);
});

Deno.test("a replica that lacks writes whenever it was told to copy them is given up", () => {
  const at = new Fixture();
  for (let times = 1; times <= 3; times++) {
    for (let i = 0; i < 16; i++) at.round({}, { begin: 8 }, {});
    assertEquals([at.completions(), at.result], [["2 from 1"], null]);
  }
  for (let i = 0; i < 16; i++) at.round({}, { begin: 8 }, {});
  assertEquals(at.completions(), []);
  assertEquals(at.result?.reasons, [
    "2: it lacks writes that others have, also after it was told to copy them",
  ]);
});

Deno.test("where only a report is wanted, who lacks writes stays so, after some looks", () => {
  const at = new Fixture({}, false);
  for (let i = 0; i < 16; i++) at.round({}, { begin: 8 }, {});
  assertEquals(at.transport.sent, []);
  assertEquals(at.result, {
    ...NOTHING,
    counts: [0, 0, 0, 0, 1],
    settled: [0, 1, 0],
    reasons: ["2: it lacks writes that others have"],
  });
});

Deno.test("a cluster that does not speak level 2 is not asked", () => {
  const transport = new FakeTransport();
  const core = coreOf(
    { store: new FakeStore(LAYER), arena: new Arena(), transport },
    { ...mapOf(), level: 1 },
    SELF,
    {},
  );
  assertEquals(core.check({ targets: [], repair: true }, () => {}), null);
});
