import { assertEquals } from "@std/assert/mod.js";
import { Arena } from "../../agent/base/arena.ts";
import { BLOCK_BYTES } from "../../agent/base/limits.ts";
import {
  DESCRIPTION_WORDS,
  MessageFlag,
  MessageType,
  Status,
} from "../../agent/replication/messages.ts";
import { Peers } from "../../agent/replication/peers.ts";
import { ChunkPull, LiveBlocks, type PullHost } from "../../agent/replication/pull.ts";
import { ClusterView } from "../../agent/replication/view.ts";
import { Operation, OperationKind } from "../../agent/store/operation.ts";
import {
  answerTo,
  buffer,
  FakeStore,
  FakeTransport,
  mapOf,
  type Sent,
  sumOf,
  window,
} from "./harness.ts";

const SOURCE = 2, LINK = 2, LAYER = 1, CHUNK = 3;

/** What the source holds. */
interface Source {
  readonly blocks?: Readonly<Record<number, number>>;
  readonly zeros?: readonly number[];
  readonly stamp?: readonly [generation: number, sequence: number];
  readonly rewrites?: number;
}

class Fixture implements PullHost {
  readonly store = new FakeStore(LAYER);
  readonly transport = new FakeTransport();
  readonly peers = new Peers(this.transport);
  readonly arena = new Arena();
  readonly window = window;
  readonly results: number[] = [];
  copiedBytes = 0;
  isAllowed = true;
  isThroughChain = false;
  allow: (() => void) | null = null;
  again: (() => void) | null = null;
  readonly pull: ChunkPull;

  constructor(live: LiveBlocks | null = null) {
    this.peers.linkUp(LINK, SOURCE, 1);
    const disk = new ClusterView(mapOf(), 1).disk(1)!;
    const done = (status: number) => this.results.push(status);
    this.pull = new ChunkPull(this, disk, LAYER, CHUNK, SOURCE, live, done);
  }

  pairOf(layer: number): readonly number[] {
    return [layer];
  }

  ended(): void {}

  isFlattened(): boolean {
    return this.isThroughChain;
  }

  mayRead(_bytes: number, ready: () => void): boolean {
    if (!this.isAllowed) this.allow = ready;
    return this.isAllowed;
  }

  later(again: () => void): void {
    this.again = again;
  }

  copied(bytes: number): void {
    this.copiedBytes += bytes;
  }

  get chunk() {
    return this.store.chunk(LAYER, CHUNK);
  }

  sent(): Sent[] {
    return this.transport.take();
  }

  /** Answers one message as a source with this content would. */
  answer(sent: Sent, source: Source): void {
    const { blocks = {}, zeros = [], stamp = [7, 70], rewrites = 0 } = source;
    if (sent.head.type === MessageType.Describe) {
      const words = new Uint32Array(DESCRIPTION_WORDS);
      for (const at of Object.keys(blocks).map(Number)) words[at >>> 5] |= 1 << (at & 31);
      for (const at of zeros) words[32 + (at >>> 5)] |= 1 << (at & 31);
      const [generation, sequence] = stamp;
      return this.receive(answerTo(sent, { generation, sequence, argument: rewrites }, words));
    }
    const fills = Array.from({ length: sent.head.count }, (_, i) => blocks[sent.head.block + i]);
    this.receive(answerTo(sent, {}, fills.map(sumOf)), fills);
  }

  receive(bytes: Uint8Array, fills: readonly number[] = []): void {
    const at = fills.length === 0 ? 0 : buffer(this.arena, ...fills);
    const release = (offset: number, length: number) => this.arena.release(offset, length);
    const length = fills.length * BLOCK_BYTES;
    this.peers.received(LINK, bytes, bytes.length, at, length, release);
  }

  /** Carries on until it is over. */
  finish(source: Source): void {
    for (let i = 0; i < 100 && this.results.length === 0; i++) {
      this.store.run();
      for (const each of this.sent()) this.answer(each, source);
    }
  }
}

function content(at: Fixture): Record<number, number | "zero"> {
  return Object.fromEntries(at.chunk.blocks);
}

Deno.test("a chunk becomes what the source has: data, zeros, and nothing where it has nothing", () => {
  const at = new Fixture();
  for (const [block, what] of [[0, 0x11], [1, 0x12], [2, "zero"], [9, 0x19]] as const) {
    at.chunk.blocks.set(block, what);
  }
  at.pull.begin();
  at.finish({ blocks: { 1: 0xaa, 5: 0xab, 6: 0xac, 1023: 0xad }, zeros: [2, 9] });
  assertEquals(at.results, [0]);
  assertEquals(content(at), { 1: 0xaa, 2: "zero", 5: 0xab, 6: 0xac, 9: "zero", 1023: 0xad });
  assertEquals([at.pull.start.generation, at.pull.start.sequence], [7, 70]);
  assertEquals([at.copiedBytes, at.arena.usedBytes], [4 * BLOCK_BYTES, 0]);
});

Deno.test("from its beginning to its end the chunk's stamp is unknown", () => {
  const at = new Fixture();
  Object.assign(at.chunk, { generation: 6, sequence: 60 });
  at.pull.begin();
  assertEquals(
    at.sent(),
    [],
    "the source is asked when nothing of before is on its way into the store",
  );
  at.store.run();
  assertEquals(at.store.done, [OperationKind.Stamp], "before anything else");
  assertEquals(at.chunk.generation, 0);
  at.finish({ blocks: { 1: 0xaa } });
  assertEquals([at.results, at.chunk.generation], [[0], 0], "whoever asked for it sets the stamp");
});

Deno.test("blocks that are written live are left alone, also between reading and writing", () => {
  const live = new LiveBlocks();
  const at = new Fixture(live);
  const write = (block: number, fill: number, sequence: number) => {
    live.add(block, 1, 7, sequence);
    const operation = new Operation({ operationDone() {} }, 1);
    Object.assign(operation, { kind: OperationKind.Write, layers: [LAYER], chunk: CHUNK, block });
    operation.blockCount = 1;
    operation.stampUnknown = true;
    operation.buffer = buffer(at.arena, fill);
    operation.checksums[0] = sumOf(fill);
    at.store.submit(operation);
  };
  write(1, 0x51, 71);
  at.chunk.blocks.set(8, 0x08);
  at.pull.begin();
  at.store.run();
  const source = { blocks: { 1: 0xa1, 2: 0xa2, 3: 0xa3, 4: 0xa4 }, zeros: [6] };
  at.answer(at.sent()[0], source);
  const [read] = at.sent();
  assertEquals([read.head.block, read.head.count, ...read.extra], [2, 3, LAYER]);
  write(3, 0x53, 72);
  at.answer(read, source);
  write(6, 0x56, 73);
  write(8, 0x58, 74);
  at.finish(source);
  assertEquals(at.results, [0]);
  assertEquals(content(at), { 1: 0x51, 2: 0xa2, 3: 0x53, 4: 0xa4, 6: 0x56, 8: 0x58 });
});

Deno.test("what was rewritten at the source meanwhile is copied once more", () => {
  const at = new Fixture();
  at.pull.begin();
  at.store.run();
  at.answer(at.sent()[0], { blocks: { 1: 0xa1, 2: 0xa2 }, rewrites: 4 });
  at.answer(at.sent()[0], { blocks: { 1: 0xa1, 2: 0xa2 } });
  at.finish({ blocks: { 1: 0xb1 }, rewrites: 5, stamp: [8, 3] });
  assertEquals(at.results, [0]);
  assertEquals([content(at), at.pull.start.generation], [{ 1: 0xb1 }, 8]);
});

Deno.test("the stamp at the end is that of after the last block", () => {
  const at = new Fixture();
  at.pull.begin();
  at.store.run();
  at.answer(at.sent()[0], { blocks: { 1: 0xa1 }, stamp: [7, 70] });
  at.finish({ blocks: { 1: 0xa1 }, stamp: [7, 73] });
  const { start, end } = at.pull;
  assertEquals([at.results, start.sequence, end.generation, end.sequence], [[0], 70, 7, 73]);
});

Deno.test("a source that is rewritten all the time is given up after a while", () => {
  const at = new Fixture();
  at.pull.begin();
  let describes = 0;
  for (; at.results.length === 0 && describes < 1000;) {
    at.store.run();
    for (const each of at.sent()) {
      if (each.head.type === MessageType.Describe) describes++;
      at.answer(each, { blocks: { 1: 0xaa }, rewrites: describes });
    }
  }
  assertEquals(at.results, [Status.Busy]);
  assertEquals(at.arena.usedBytes, 0);
});

Deno.test("data that does not match, is too short, or comes with a refusal ends it and changes nothing", () => {
  const wrong: [what: string, status: number, answer: (at: Fixture, read: Sent) => void][] = [
    ["checksum", -74, (at, read) => at.receive(answerTo(read, {}, [sumOf(1), sumOf(2)]), [1, 3])],
    ["length", -74, (at, read) => at.receive(answerTo(read, {}, [sumOf(1), sumOf(2)]), [1])],
    ["table", -74, (at, read) => at.receive(answerTo(read, {}, [sumOf(1)]), [1, 2])],
    ["errno", -5, (at, read) => at.receive(answerTo(read, { status: -5 }))],
    ["stale", Status.Stale, (at, read) => at.receive(answerTo(read, { status: Status.Stale }))],
  ];
  for (const [what, status, answer] of wrong) {
    const at = new Fixture();
    at.pull.begin();
    at.store.run();
    at.answer(at.sent()[0], { blocks: { 0: 1, 1: 2 } });
    answer(at, at.sent()[0]);
    at.store.run();
    assertEquals(at.results, [status], what);
    assertEquals([content(at), at.arena.usedBytes], [{}, 0], what);
  }
  const at = new Fixture();
  at.pull.begin();
  at.store.run();
  at.receive(answerTo(at.sent()[0], {}, new Array(DESCRIPTION_WORDS - 1).fill(0)));
  assertEquals(at.results, [-74], "a description that is cut off");
});

Deno.test("a store that fails is an errno, not a copy", () => {
  const at = new Fixture();
  at.pull.begin();
  at.store.run();
  at.answer(at.sent()[0], { blocks: { 0: 1 } });
  at.answer(at.sent()[0], { blocks: { 0: 1 } });
  at.store.failure = -28;
  at.store.run();
  assertEquals([at.results, at.arena.usedBytes], [[-28], 0]);
});

Deno.test("it reads only when it may", () => {
  const at = new Fixture();
  at.isAllowed = false;
  at.pull.begin();
  at.store.run();
  at.answer(at.sent()[0], { blocks: { 0: 1 } });
  assertEquals(at.sent(), []);
  at.allow!();
  assertEquals(at.sent().map(({ head }) => head.type), [MessageType.Read]);
});

Deno.test("a read that the source puts off is asked for again, and nothing else is", () => {
  const at = new Fixture();
  const source = { blocks: { 0: 0xa0, 1: 0xa1, 500: 0xa5 } };
  at.pull.begin();
  at.store.run();
  at.answer(at.sent()[0], source);
  at.answer(at.sent()[0], source);
  at.store.run();
  const [read] = at.sent();
  assertEquals([read.head.type, read.head.block], [MessageType.Read, 500]);
  at.receive(answerTo(read, { status: Status.Busy }));
  at.store.run();
  assertEquals([at.results, at.sent(), at.copiedBytes], [[], [], 2 * BLOCK_BYTES]);
  at.again!();
  const [again] = at.sent();
  assertEquals([again.head.type, again.head.block, again.head.count], [MessageType.Read, 500, 1]);
  at.answer(again, source);
  at.finish(source);
  assertEquals(at.results, [0]);
  assertEquals(content(at), { 0: 0xa0, 1: 0xa1, 500: 0xa5 });
  assertEquals([at.copiedBytes, at.arena.usedBytes], [3 * BLOCK_BYTES, 0]);
});

Deno.test("after an abort nothing is said or changed, and no buffer stays", () => {
  for (const answers of [0, 1, 2]) {
    const at = new Fixture();
    at.pull.begin();
    at.store.run();
    let last: Sent | undefined;
    for (let i = 0; i <= answers; i++) {
      [last] = at.sent();
      if (i < answers) at.answer(last, { blocks: { 0: 1 } });
    }
    at.pull.abort();
    if (last !== undefined) at.answer(last, { blocks: { 0: 1 } });
    at.store.run();
    assertEquals([at.results, at.sent(), at.arena.usedBytes], [[], [], 0], `${answers} answers`);
  }
});

Deno.test("a layer that is flattened is described and read through all that lies below it", () => {
  const at = new Fixture();
  at.isThroughChain = true;
  at.chunk.blocks.set(3, 0x33);
  at.pull.begin();
  at.store.run();
  const [describe] = at.sent();
  assertEquals(describe.head.flags, MessageFlag.Recovery | MessageFlag.Chain);
  assertEquals([...describe.extra], []);
  const source = { blocks: { 1: 0xaa, 3: 0xbb } };
  at.answer(describe, source);
  const [read] = at.sent();
  assertEquals(read.head.flags, MessageFlag.Recovery | MessageFlag.Chain);
  assertEquals([...read.extra], [LAYER]);
  // It is over: what was described so is read so all the same, and what is there by then is enough.
  at.isThroughChain = false;
  at.answer(read, source);
  at.store.run();
  const [next] = at.sent();
  assertEquals(next.head.flags, MessageFlag.Recovery | MessageFlag.Chain);
  at.answer(next, source);
  at.finish(source);
  assertEquals([at.results, content(at)], [[0], { 1: 0xaa, 3: 0xbb }]);
});

Deno.test("a layer that begins to be flattened while it is copied is copied once more, with what lies below", () => {
  const at = new Fixture();
  at.pull.begin();
  at.store.run();
  const [describe] = at.sent();
  assertEquals(describe.head.flags, MessageFlag.Recovery);
  at.answer(describe, { blocks: { 1: 0xaa } });
  at.isThroughChain = true;
  at.finish({ blocks: { 1: 0xaa, 2: 0xcc } });
  assertEquals([at.results, content(at)], [[0], { 1: 0xaa, 2: 0xcc }]);
});
