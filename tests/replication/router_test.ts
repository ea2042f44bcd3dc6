import { assertEquals } from "@std/assert/mod.js";
import { Arena } from "../../agent/base/arena.ts";
import { BLOCK_BYTES } from "../../agent/base/limits.ts";
import type { DataCore } from "../../agent/replication/data_core.ts";
import { MessageFlag, MessageType, Status } from "../../agent/replication/messages.ts";
import type { DiskRouter } from "../../agent/replication/router.ts";
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

/** Node 1 holds the lease; its links to the others have their numbers. */
class Fixture {
  readonly transport = new FakeTransport();
  readonly store = new FakeStore(1);
  readonly arena = new Arena();
  readonly core: DataCore;
  readonly router: DiskRouter;
  readonly failed: [node: number, errno: number][] = [];
  /** Tags of operations that came back, with their results. */
  readonly done: [tag: number, result: number][] = [];
  /** Called when one comes back. */
  whenDone: (() => void) | null = null;
  #epoch = EPOCH;
  #nowMs = 1000;

  constructor(options: MapOptions = {}, { self = 1 } = {}) {
    this.core = coreOf(this, mapOf({ holder: self, ...options }), self, {
      memberFailed: (node, errno) => this.failed.push([node, errno]),
    });
    this.core.tick(this.#nowMs);
    this.core.renew(Infinity);
    this.core.openDisk(1, GENERATION);
    this.router = this.core.router(1);
  }

  map(options: MapOptions = {}, self = 1): void {
    this.core.setMap(mapOf({ holder: self, epoch: ++this.#epoch, ...options }), self, 1);
  }

  submit(kind: OperationKind, tag: number, { chunk = 3, block = 5, fill = 0xaa } = {}): Operation {
    const operation = new Operation({
      operationDone: ({ tag, result }) => {
        this.done.push([tag, result]);
        this.whenDone?.();
      },
    }, 1);
    operation.kind = kind;
    operation.tag = tag;
    operation.layers = [1];
    operation.chunk = chunk;
    operation.block = block;
    operation.blockCount = 1;
    operation.generation = GENERATION;
    operation.sequence = tag;
    operation.buffer = kind === OperationKind.Sync ? 0 : buffer(this.arena, fill);
    operation.checksums[0] = sumOf(fill);
    const before = this.done.length;
    this.router.submit(operation);
    assertEquals(this.done.length, before, "it came back from inside submit");
    return operation;
  }

  write(tag: number, place = {}): Operation {
    return this.submit(OperationKind.Write, tag, place);
  }

  read(tag: number, place = {}): Operation {
    return this.submit(OperationKind.Read, tag, place);
  }

  sync(tag: number): Operation {
    return this.submit(OperationKind.Sync, tag);
  }

  /** Messages since the last call, those of one kind, by node. */
  sent(type?: MessageType): Sent[] {
    return this.transport.take().filter(({ head }) => type === undefined || head.type === type);
  }

  answer(sent: Sent, fields: HeadFields = {}): void {
    const bytes = answerTo(sent, { epoch: this.#epoch, ...fields });
    this.core.received(sent.link, bytes, bytes.length, 0, 0);
  }

  /** The answer to a read: a block full of one byte. */
  answerRead(sent: Sent, fill: number, sum = sumOf(fill)): void {
    const bytes = answerTo(sent, { epoch: this.#epoch }, [sum]);
    this.core.received(sent.link, bytes, bytes.length, buffer(this.arena, fill), BLOCK_BYTES);
  }

  run(): void {
    this.store.run();
    this.core.endTurn();
  }

  tick(passMs = 10): void {
    this.#nowMs += passMs;
    this.core.tick(this.#nowMs);
  }

  get nowMs(): number {
    return this.#nowMs;
  }
}

/** Whom messages went to. */
const links = (sent: readonly Sent[]) => sent.map(({ link }) => link).sort();

Deno.test("a write is done when every member has acknowledged it, in whatever order", () => {
  for (const order of ["local first", "local last"] as const) {
    const at = new Fixture();
    at.write(1);
    const sent = at.sent(MessageType.Write);
    assertEquals(links(sent), [2, 3]);
    assertEquals([sent[0].head.generation, sent[0].head.sequence, sent[0].head.epoch], [
      GENERATION,
      1,
      EPOCH,
    ]);
    assertEquals([sent[0].data[0], ...sent[0].extra], [0xaa, sumOf(0xaa)]);
    if (order === "local first") at.run();
    at.answer(sent[1]);
    assertEquals(at.done, []);
    at.answer(sent[0]);
    if (order === "local last") {
      assertEquals(at.done, []);
      at.run();
    }
    assertEquals(at.done, [[1, 0]]);
  }
});

Deno.test("joining members are written to and waited for as well", () => {
  const at = new Fixture({
    group: { inSync: [1, 2], joining: [3], joinedEpochs: [40] },
  });
  at.write(1);
  const sent = at.sent(MessageType.Write);
  assertEquals(links(sent), [2, 3]);
  at.run();
  at.answer(sent.find(({ link }) => link === 2)!);
  assertEquals(at.done, []);
  at.answer(sent.find(({ link }) => link === 3)!);
  assertEquals(at.done, [[1, 0]]);
});

Deno.test("a member that leaves is no longer waited for, one that comes gets what is under way", () => {
  const at = new Fixture();
  at.write(1);
  const [two] = at.sent(MessageType.Write);
  at.run();
  at.answer(two);
  at.map({
    group: { inSync: [1, 2], joining: [4], joinedEpochs: [EPOCH + 1], changedEpoch: EPOCH + 1 },
  });
  const sent = at.sent(MessageType.Write);
  assertEquals(links(sent), [4]);
  assertEquals(at.done, []);
  at.answer(sent[0]);
  assertEquals(at.done, [[1, 0]]);
  // And the last one to wait for may simply leave.
  at.write(2);
  at.run();
  for (const each of at.sent(MessageType.Write)) if (each.link === 2) at.answer(each);
  assertEquals(at.done.length, 1);
  at.map({ group: { inSync: [1, 2], changedEpoch: EPOCH + 2 } });
  assertEquals(at.done, [[1, 0], [2, 0]]);
});

Deno.test("what is not acknowledged is sent again, marked, when its group has changed, and in its order", () => {
  const at = new Fixture();
  at.write(1);
  at.write(2);
  const first = at.sent(MessageType.Write);
  at.run();
  at.answer(first.find(({ link, head }) => link === 3 && head.sequence === 1)!);
  // A change of something else: nothing is sent again.
  at.map();
  assertEquals(at.sent(MessageType.Write), []);
  at.map({ group: { changedEpoch: EPOCH + 2 } });
  const again = at.sent(MessageType.Write);
  assertEquals(again.map(({ link, head }) => [link, head.sequence, head.epoch]), [
    [2, 1, EPOCH + 2],
    [2, 2, EPOCH + 2],
    [3, 2, EPOCH + 2],
  ]);
  assertEquals(again.every(({ head }) => (head.flags & MessageFlag.Again) !== 0), true);
  // Answers to what was sent before do not count any more.
  for (const each of first) at.answer(each);
  assertEquals(at.done, []);
  for (const each of again) at.answer(each);
  assertEquals(at.done, [[1, 0], [2, 0]]);
});

Deno.test("a refusal as stale has the write sent again, and it is done in the end", () => {
  const at = new Fixture();
  at.write(1);
  const [two, three] = at.sent(MessageType.Write);
  at.run();
  at.answer(two, { status: Status.Stale });
  at.answer(three);
  assertEquals([at.done.length, at.sent().length], [0, 0]);
  at.tick();
  const [again] = at.sent(MessageType.Write);
  assertEquals([again.link, again.head.sequence], [2, 1]);
  at.answer(again);
  assertEquals(at.done, [[1, 0]]);
});

/** Node 2's share of messages, as numbers of writes. */
const toTwo = (sent: readonly Sent[]) =>
  sent.filter(({ link }) => link === 2).map(({ head }) => head.sequence);

Deno.test("what follows a write that a node did not take does not overtake it, whatever was on its way and whenever it starts anew", () => {
  const at = new Fixture();
  at.write(1);
  at.write(2);
  at.write(3, { chunk: 4 });
  const first = at.sent(MessageType.Write);
  assertEquals(toTwo(first), [1, 2, 3]);
  at.answer(first.find(({ link, head }) => link === 2 && head.sequence === 1)!, { status: -19 });
  assertEquals(at.failed, [[2, -19]]);
  // Comes later: the other members get it, and so does that one where it is another chunk's.
  at.write(4);
  at.write(5, { chunk: 4 });
  const second = at.sent(MessageType.Write);
  assertEquals([toTwo(second), links(second)], [[5], [2, 3, 3]]);
  at.tick();
  assertEquals(toTwo(at.sent(MessageType.Write)), []);
  // It had taken its word back: what was sent behind the first one is not waited for any more.
  at.answer(first.find(({ link, head }) => link === 2 && head.sequence === 2)!);
  at.map({ incarnations: { 2: 2 } });
  const third = at.sent(MessageType.Write);
  assertEquals(toTwo(third), [1, 2, 4]);
  at.run();
  for (const each of [...first, ...second].filter(({ link }) => link === 3)) at.answer(each);
  assertEquals(at.done, []);
  for (const each of third) at.answer(each);
  assertEquals(at.done, [[1, 0], [2, 0], [4, 0]]);
  // And from then on all is as it was.
  at.write(6);
  assertEquals(links(at.sent(MessageType.Write)), [2, 3]);
});

Deno.test("what follows a write that was refused as stale is sent behind it", () => {
  const at = new Fixture();
  at.write(1);
  at.write(2);
  const first = at.sent(MessageType.Write);
  at.answer(first.find(({ link, head }) => link === 2 && head.sequence === 1)!, {
    status: Status.Stale,
  });
  at.write(3);
  assertEquals(toTwo(at.sent(MessageType.Write)), []);
  at.tick();
  assertEquals(toTwo(at.sent(MessageType.Write)), [1, 2, 3]);
  at.write(4);
  assertEquals(toTwo(at.sent(MessageType.Write)), [4]);
});

Deno.test("a member that acknowledged and has started anew since gets the write again", () => {
  const at = new Fixture({ group: { inSync: [1, 2], joining: [3], joinedEpochs: [40] } });
  at.write(1);
  const sent = at.sent(MessageType.Write);
  at.answer(sent.find(({ link }) => link === 3)!);
  at.map({
    group: { inSync: [1, 2], joining: [3], joinedEpochs: [EPOCH + 1], changedEpoch: EPOCH + 1 },
    incarnations: { 3: 2 },
  });
  at.run();
  const again = at.sent(MessageType.Write);
  assertEquals(links(again), [2, 3]);
  at.answer(again.find(({ link }) => link === 2)!);
  assertEquals(at.done, []);
  at.answer(again.find(({ link }) => link === 3)!);
  assertEquals(at.done, [[1, 0]]);
});

Deno.test("with fewer copies than copiesMin writes wait, and reads go on", () => {
  const at = new Fixture({ group: { inSync: [1] }, disk: { copiesMin: 2 } });
  at.write(1);
  at.read(2);
  at.run();
  assertEquals([at.done, at.sent().length], [[[2, 0]], 0]);
  assertEquals(at.router.waitingReason, "1 of at least 2 copies are there");
  at.map({ group: { inSync: [1, 2], changedEpoch: EPOCH + 1 }, disk: { copiesMin: 2 } });
  const sent = at.sent(MessageType.Write);
  assertEquals(links(sent), [2]);
  at.run();
  at.answer(sent[0]);
  assertEquals(at.done, [[2, 0], [1, 0]]);
  assertEquals(at.router.waitingReason, null);
});

Deno.test("a write that every member has acknowledged is not done while copies are too few", () => {
  const at = new Fixture({ disk: { copiesMin: 2 } });
  at.write(1);
  at.run();
  at.map({ group: { inSync: [1], changedEpoch: EPOCH + 1 }, disk: { copiesMin: 2 } });
  assertEquals(at.done, []);
  at.sent();
  at.map({ group: { inSync: [1, 3], changedEpoch: EPOCH + 2 }, disk: { copiesMin: 2 } });
  const [three] = at.sent(MessageType.Write);
  at.answer(three);
  assertEquals(at.done, [[1, 0]]);
});

Deno.test("while a replica has crashed or the group is settled nothing goes out", () => {
  const at = new Fixture({ group: { unclean: [3] } });
  // Opened once the groups are: until then the router is not.
  at.write(1);
  at.read(2);
  at.run();
  assertEquals([at.done.length, at.sent().length], [0, 0]);
  at.map({ group: { inSync: [1, 2], changedEpoch: EPOCH + 1 } });
  at.tick();
  at.run();
  at.answer(at.sent(MessageType.Write)[0]);
  at.run();
  assertEquals(at.done, [[1, 0], [2, 0]]);
});

Deno.test("nothing is read or acknowledged without the right to serve", () => {
  const at = new Fixture();
  at.core.renew(at.nowMs + 4000);
  at.write(1);
  const sent = at.sent(MessageType.Write);
  at.tick(4001);
  at.run();
  for (const each of sent) at.answer(each);
  at.read(2);
  at.sync(3);
  at.run();
  assertEquals(at.done, []);
  at.core.renew(at.nowMs + 4000);
  at.run();
  assertEquals(at.done.slice(0, 2), [[1, 0], [2, 0]]);
});

Deno.test("a write that was acknowledged without the right to serve is done when it is there again", () => {
  for (const notices of ["a tick", "a turn"]) {
    const at = new Fixture();
    at.core.renew(at.nowMs + 4000);
    at.write(1);
    const sent = at.sent(MessageType.Write);
    if (notices === "a tick") at.tick(4001);
    else at.core.advance(at.nowMs + 4001);
    for (const each of sent) at.answer(each);
    at.run();
    assertEquals(at.done, [], notices);
    at.core.renew(at.nowMs + 8000);
    at.run();
    assertEquals(at.done, [[1, 0]], notices);
    assertEquals(at.router.writesUnderWay, 0, notices);
  }
});

Deno.test("what waited for the right to serve is not overtaken by what comes after it, and goes out once", () => {
  const at = new Fixture();
  at.core.renew(at.nowMs + 100);
  at.tick(101);
  at.write(1, { fill: 0xa1 });
  at.write(2, { chunk: 4, fill: 0xa2 });
  assertEquals([at.sent().length, at.store.waiting.length], [0, 0]);
  // The right is back, and the next one comes before those that wait have been told (another disk's guest was told first).
  at.core.advance(at.nowMs - 50);
  at.write(3, { fill: 0xa3 });
  const sent = at.sent(MessageType.Write);
  for (const node of [2, 3]) {
    const got = sent.filter(({ link }) => link === node).map(({ head }) => head.sequence);
    assertEquals(got, [1, 2, 3], `node ${node}`);
  }
  assertEquals(at.store.waiting.map(({ sequence }) => sequence), [1, 2, 3]);
  at.run();
  for (const each of sent) at.answer(each);
  assertEquals(at.done.length, 3);
  assertEquals(at.store.chunk(1, 3).blocks.get(5), 0xa3);
  assertEquals([at.router.waiting, at.router.writesUnderWay], [0, 0]);
});

Deno.test("a change of the map is looked at by all routers before anything comes back, and what comes then goes out under it", () => {
  const at = new Fixture();
  at.write(1);
  for (const each of at.sent(MessageType.Write)) if (each.link === 2) at.answer(each);
  at.run();
  at.whenDone = () => {
    at.whenDone = null;
    at.write(2);
  };
  at.map({ group: { inSync: [1, 2], changedEpoch: EPOCH + 1 } });
  assertEquals(at.done, [[1, 0]]);
  const sent = at.sent(MessageType.Write);
  assertEquals(sent.map(({ link, head }) => [link, head.sequence, head.epoch]), [
    [2, 2, EPOCH + 1],
  ]);
});

Deno.test("a replica that leaves while its write is to be applied again is not waited for", () => {
  const at = new Fixture({ group: { inSync: [1, 2], joining: [3], joinedEpochs: [40] } });
  at.write(1);
  at.map({
    group: { inSync: [1, 2], joining: [3], joinedEpochs: [40], changedEpoch: EPOCH + 1 },
  });
  at.map({ group: { inSync: [2, 3], changedEpoch: EPOCH + 2 } });
  for (const each of at.sent(MessageType.Write)) at.answer(each);
  assertEquals(at.done, [], "its buffers are with the store");
  at.run();
  assertEquals(at.done, [[1, 0]]);
});

Deno.test("a connection over which something comes that cannot be right ends", () => {
  const at = new Fixture();
  at.core.linkUp(11, 2, false, 1);
  const rubbish = message({ type: MessageType.Sync, epoch: EPOCH, version: 2 });
  at.core.received(11, rubbish, rubbish.length, 0, 0);
  assertEquals(at.transport.dropped, [11]);
  at.write(1);
  const [sent] = at.sent(MessageType.Write);
  at.core.received(sent.link, rubbish, rubbish.length, 0, 0);
  assertEquals(at.transport.dropped, [11, sent.link]);
});

Deno.test("a replica that cannot is reported while others have the data, and is waited for when it is the only one", () => {
  const at = new Fixture();
  at.write(1);
  const [two, three] = at.sent(MessageType.Write);
  at.run();
  at.answer(two, { status: -28 });
  at.answer(three);
  assertEquals([at.failed, at.done], [[[2, -28]], []]);
  at.map({ group: { inSync: [1, 3], changedEpoch: EPOCH + 1 } });
  assertEquals(at.done, [[1, 0]]);

  const alone = new Fixture({
    group: { inSync: [1], target: [1] },
    disk: { copiesMin: 1 },
  });
  alone.store.failure = -28;
  alone.write(1);
  alone.run();
  assertEquals([alone.failed, alone.done], [[[1, -28]], []]);
  // Its agent has ended; another start of it gets the write again.
  alone.store.failure = 0;
  alone.map({
    group: { inSync: [1], target: [1] },
    disk: { copiesMin: 1 },
    incarnations: { 1: 2 },
  });
  alone.run();
  assertEquals(alone.store.chunk(1, 3).blocks.get(5), 0xaa);
});

// ------------------------------------------------------------------------------------------ flush

/** A fixture on which the first flush of the lease, which goes everywhere, is over. */
function flushed(options: MapOptions = {}): Fixture {
  const at = new Fixture(options);
  at.sync(1000);
  at.run();
  for (const each of at.sent(MessageType.Sync)) at.answer(each);
  assertEquals(at.done.splice(0), [[1000, 0]]);
  return at;
}

function written(at: Fixture, tag: number, place = {}): void {
  at.write(tag, place);
  at.run();
  for (const each of at.sent(MessageType.Write)) at.answer(each);
  assertEquals(at.done.splice(0), [[tag, 0]]);
}

Deno.test("the first flush of a lease asks every node, since the holder before may have left anything", () => {
  const at = new Fixture();
  at.sync(1);
  const sent = at.sent(MessageType.Sync);
  assertEquals(links(sent), [2, 3]);
  assertEquals(sent.map(({ head }) => head.incarnation), [1, 1]);
  at.answer(sent[0]);
  at.run();
  assertEquals(at.done, []);
  at.answer(sent[1]);
  assertEquals(at.done, [[1, 0]]);
});

Deno.test("a flush with nothing to do comes back at the end of the turn, once", () => {
  const at = flushed();
  at.sync(1);
  assertEquals([at.done, at.sent()], [[], []]);
  at.core.endTurn();
  assertEquals(at.done, [[1, 0]]);
  at.core.endTurn();
  at.tick();
  assertEquals(at.done.length, 1);
});

Deno.test("a flush waits for every node that was written to", () => {
  const at = flushed();
  written(at, 1);
  at.sync(2);
  const sent = at.sent(MessageType.Sync);
  assertEquals(links(sent), [2, 3]);
  for (const each of sent) at.answer(each);
  assertEquals(at.done, []);
  at.run();
  assertEquals(at.done, [[2, 0]]);
});

Deno.test("what is acknowledged after a flush began is the next one's business", () => {
  const at = flushed();
  written(at, 1);
  at.sync(2);
  const first = at.sent(MessageType.Sync);
  at.run();
  written(at, 3);
  for (const each of first) at.answer(each);
  assertEquals(at.done.splice(0), [[2, 0]]);
  at.sync(4);
  assertEquals(links(at.sent(MessageType.Sync)), [2, 3]);
});

Deno.test("a flush does not wait for a node that has left the groups", () => {
  const at = flushed();
  written(at, 1);
  at.sync(2);
  const sent = at.sent(MessageType.Sync);
  at.run();
  at.answer(sent.find(({ link }) => link === 3)!);
  assertEquals(at.done, []);
  at.map({ group: { inSync: [1, 3], changedEpoch: EPOCH + 1 } });
  assertEquals(at.done, [[2, 0]]);
});

Deno.test("a flush that meets another start of a node asks it again under its new number", () => {
  const at = flushed();
  written(at, 1);
  at.sync(2);
  const sent = at.sent(MessageType.Sync);
  at.run();
  at.answer(sent.find(({ link }) => link === 3)!);
  at.answer(sent.find(({ link }) => link === 2)!, { status: Status.Stale });
  at.map({ incarnations: { 2: 2 } });
  at.tick();
  const again = at.sent(MessageType.Sync);
  assertEquals(again.map(({ link, head }) => [link, head.incarnation]), [[2, 2]]);
  at.answer(again[0]);
  assertEquals(at.done, [[2, 0]]);
});

Deno.test("a flush fails once when all replicas of what it covers crashed and were settled", () => {
  const at = flushed();
  written(at, 1);
  at.map({ group: { settledEpoch: EPOCH + 1, changedEpoch: EPOCH + 1 } });
  at.sync(2);
  at.run();
  for (const each of at.sent(MessageType.Sync)) at.answer(each);
  assertEquals(at.done.splice(0), [[2, -5]]);
  written(at, 3);
  at.sync(4);
  at.run();
  for (const each of at.sent(MessageType.Sync)) at.answer(each);
  assertEquals(at.done, [[4, 0]]);
});

/** Answers all that a flush waits for on every node. */
function synced(at: Fixture): void {
  at.run();
  for (const each of at.sent(MessageType.Sync)) at.answer(each);
}

Deno.test("every flush under way fails with the one that tells of a loss: they may cover what is lost", () => {
  const at = flushed();
  written(at, 1);
  at.sync(2);
  const first = at.sent(MessageType.Sync);
  at.run();
  at.sync(4);
  const second = at.sent(MessageType.Sync);
  at.run();
  at.map({ group: { settledEpoch: EPOCH + 1, changedEpoch: EPOCH + 1 } });
  for (const each of first) at.answer(each);
  assertEquals(at.done.splice(0), [[2, -5]]);
  for (const each of second) at.answer(each);
  assertEquals(at.done.splice(0), [[4, -5]]);
  written(at, 5);
  at.sync(6);
  synced(at);
  assertEquals(at.done, [[6, 0]]);
});

Deno.test("a flush that began before a lost write was acknowledged does not tell of it: the next one fails too", () => {
  const at = flushed();
  written(at, 1);
  at.sync(2);
  const first = at.sent(MessageType.Sync);
  at.run();
  written(at, 3);
  at.map({ group: { settledEpoch: EPOCH + 1, changedEpoch: EPOCH + 1 } });
  for (const each of first) at.answer(each);
  assertEquals(at.done.splice(0), [[2, -5]]);
  at.sync(4);
  synced(at);
  assertEquals(at.done.splice(0), [[4, -5]]);
  at.sync(5);
  synced(at);
  at.core.endTurn();
  assertEquals(at.done, [[5, 0]]);
});

Deno.test("what is under way when its group is settled goes out under new numbers, and what comes then behind it", () => {
  const disk = { copiesMin: 1 };
  const at = new Fixture({ disk }, { self: 4 });
  at.write(1);
  at.write(2);
  at.write(3, { chunk: 4 });
  const first = at.sent(MessageType.Write);
  assertEquals(first.map(({ head }) => head.sequence), [1, 1, 1, 2, 2, 2, 3, 3, 3]);
  // All have crashed, and 2 settles: what the others have by these numbers is not what it makes of them.
  const settled = { inSync: [2], settledEpoch: EPOCH + 1, changedEpoch: EPOCH + 1 };
  at.map({ disk, group: settled, incarnations: { 2: 2 } }, 4);
  const again = at.sent(MessageType.Write);
  const places = again.map(({ link, head }) => [link, head.chunk, head.sequence]);
  assertEquals(places, [[2, 3, 4], [2, 3, 5], [2, 4, 6]]);
  at.write(4);
  const [later] = at.sent(MessageType.Write);
  assertEquals(later.head.sequence, 7);
  for (const sent of [...again, later]) at.answer(sent);
  at.core.endTurn();
  assertEquals(at.done.map(([tag]) => tag).sort(), [1, 2, 3, 4]);
  // Nothing more was settled since.
  at.write(8);
  at.map({ disk, group: { ...settled, joining: [1], joinedEpochs: [EPOCH + 2] } }, 4);
  assertEquals(at.sent(MessageType.Write).at(-1)!.head.sequence, 8);
});

// ------------------------------------------------------------------------------------------ reads

/** Node 4 holds the lease and no replica: it reads from one of the others. */
function away(options: MapOptions = {}): Fixture {
  return new Fixture(options, { self: 4 });
}

Deno.test("a read of another node's replica is verified; one that does not match is read elsewhere", () => {
  const at = away();
  const operation = at.read(1);
  const [first] = at.sent(MessageType.Read);
  assertEquals([[1, 2, 3].includes(first.link), ...first.extra], [true, 1]);
  at.answerRead(first, 0xcc, sumOf(0xcd));
  assertEquals(at.done, []);
  const [second] = at.sent(MessageType.Read);
  assertEquals(second.link === first.link, false);
  at.answerRead(second, 0xdd);
  assertEquals([at.done, window.bytes[operation.buffer]], [[[1, 0]], 0xdd]);
});

Deno.test("a read waits for a node that stops, however often that says so, and does not fail", () => {
  const at = away();
  at.read(1);
  for (let round = 0; round < 20; round++) {
    const [sent] = at.sent(MessageType.Read);
    at.answer(sent, { status: -19 });
    assertEquals([at.done, at.sent(MessageType.Read)], [[], []], `round ${round}`);
    at.tick();
  }
  at.answerRead(at.sent(MessageType.Read)[0], 0xdd);
  assertEquals(at.done, [[1, 0]]);
});

Deno.test("a read of which every replica is damaged is tried a few more times, and fails then", () => {
  const at = away();
  at.read(1);
  for (let round = 0; round < 4; round++) {
    assertEquals(at.done, [], `round ${round}`);
    const asked = new Set<number>();
    for (let i = 0; i < 3; i++) {
      const [sent] = at.sent(MessageType.Read);
      asked.add(sent.link);
      at.answer(sent, { status: -74, block: 5 });
    }
    assertEquals([...asked].sort(), [1, 2, 3]);
    assertEquals(at.sent(MessageType.Read), [], "not before time has passed");
    at.tick();
  }
  assertEquals(at.done, [[1, -74]]);
});

Deno.test("a read waits for the writes under way that it overlaps, but not where this node is the only member", () => {
  const at = new Fixture();
  at.write(1);
  at.read(2);
  at.read(3, { block: 6 });
  at.run();
  assertEquals(at.done, [[3, 0]]);
  for (const each of at.sent(MessageType.Write)) at.answer(each);
  at.run();
  assertEquals(at.done, [[3, 0], [1, 0], [2, 0]]);
  const alone = new Fixture({ group: { inSync: [1], target: [1] }, disk: { copiesMin: 1 } });
  alone.write(1);
  alone.read(2);
  assertEquals(alone.store.waiting.length, 2, "the store keeps their order");
});

Deno.test("after a change of replica a read waits for the overlapping writes of before, others do not", () => {
  const at = away();
  at.read(1);
  const reader = at.sent(MessageType.Read)[0].link;
  at.write(2);
  const rest = [1, 2, 3].filter((node) => node !== reader);
  const writes = at.sent(MessageType.Write);
  assertEquals(links(writes), [1, 2, 3]);
  // The one that was read from leaves; its read goes elsewhere, past a write that only it may have had.
  at.map({ group: { inSync: rest, changedEpoch: EPOCH + 1 } }, 4);
  const sent = at.sent();
  assertEquals(sent.filter(({ head }) => head.type === MessageType.Read), []);
  at.read(3, { block: 6 });
  assertEquals(at.sent(MessageType.Read).length, 1, "it overlaps nothing");
  for (const each of sent) if (each.head.type === MessageType.Write) at.answer(each);
  assertEquals(at.done, [[2, 0]]);
  const [read] = at.sent(MessageType.Read);
  assertEquals([rest.includes(read.link), read.head.block], [true, 5]);
});

Deno.test("a read waits when no replica is in sync to be read, and fails when the lease is lost", () => {
  const at = away({ holder: 4 });
  at.map({ holder: 3, disk: { generation: GENERATION + 1 } }, 4);
  at.read(1);
  at.write(2);
  at.sync(3);
  at.run();
  assertEquals([at.done, at.sent()], [[], []]);
  at.router.abandon(-5);
  at.run();
  assertEquals(at.done.sort(), [[1, -5], [2, -5], [3, -5]]);
});

Deno.test("what waits for a write under way, or for the end of its turn, is not said to wait for a replica in sync", () => {
  const at = new Fixture();
  at.sync(1);
  at.run();
  for (const sent of at.sent(MessageType.Sync)) at.answer(sent);
  assertEquals(at.done, [[1, 0]]);
  at.sync(4);
  assertEquals([at.router.waiting, at.router.waitingReason], [0, null], "a flush of this turn");
  at.run();
  at.write(2);
  const [one, other] = at.sent(MessageType.Write);
  at.read(3);
  at.run();
  assertEquals([at.router.waiting, at.router.waitingReason], [0, null], "a read behind a write");
  at.answer(one);
  at.answer(other);
  at.run();
  assertEquals(at.done.map(([tag]) => tag).sort(), [1, 2, 3, 4]);
});

Deno.test("what cannot go on says what stands in its way", () => {
  const settling = "replicas are being settled after a crash";
  const at = new Fixture();
  at.map({ group: { unclean: [2], changedEpoch: EPOCH + 1 } });
  at.read(1);
  assertEquals([at.router.waiting, at.router.waitingReason], [1, settling], "a read");
  at.write(2);
  at.read(3);
  assertEquals([at.router.waiting, at.router.waitingReason], [3, settling], "and a write");
  at.sync(4);
  at.run();
  for (const sent of at.sent(MessageType.Sync)) at.answer(sent);
  assertEquals([at.router.waiting, at.router.waitingReason], [4, settling], "and a flush");
  at.map();
  assertEquals([at.router.waiting, at.router.waitingReason], [0, null]);
});

Deno.test("who holds no lease reads all the same: it only looks", () => {
  const at = new Fixture({ holder: 2 });
  at.core.closeDisk(1);
  at.read(1);
  at.run();
  assertEquals(at.done, [[1, 0]]);
});

Deno.test("a disk opens though writes of another one do not get into the store, and not before its own have", () => {
  for (const settled of [GENERATION - 1, GENERATION - 2]) {
    const at = new Fixture();
    at.store.createLayer(2, () => {});
    at.write(1);
    const map = mapOf({ epoch: EPOCH + 1 });
    const [web] = map.disks;
    const other = { ...web, id: 2, family: 2, name: "db", layers: [2], settled };
    const layer = { ...map.layers[0], id: 2 };
    const both = { ...map, disks: [web, other], layers: [...map.layers, layer] };
    at.core.setMap(both, 1, 1);
    at.core.openDisk(2, GENERATION);
    for (const asked of at.sent(MessageType.Stamps)) at.answer(asked, { epoch: EPOCH + 1 });
    assertEquals(at.core.router(2).isOpen, true, `settled up to ${settled}`);

    const again = { ...web, generation: GENERATION + 1, settled: GENERATION - 1 };
    at.core.setMap({ ...both, epoch: EPOCH + 2, disks: [again, other] }, 1, 1);
    at.core.openDisk(1, GENERATION + 1);
    at.tick();
    assertEquals(
      [at.router.isOpen, at.sent(MessageType.Stamps)],
      [false, []],
      "it looks too early",
    );
    at.run();
    at.tick();
    for (const asked of at.sent(MessageType.Stamps)) at.answer(asked, { epoch: EPOCH + 2 });
    const pulls = at.sent(MessageType.Pull);
    assertEquals(pulls.map(({ head }) => head.chunk), [3, 3], "they lack the write");
    for (const pull of pulls) at.answer(pull, { epoch: EPOCH + 2 });
    assertEquals(at.router.isOpen, true);
  }
});

Deno.test("what is abandoned does not wait for space in this node's store, nor for other nodes", () => {
  const at = new Fixture();
  at.store.isFull = true;
  at.write(1);
  at.write(2, { block: 6 });
  at.read(3);
  at.sync(4);
  at.router.abandon(-5);
  at.tick();
  at.run();
  assertEquals(at.done.sort(([a], [b]) => a - b), [[1, -5], [2, -5], [3, -5], [4, -5]]);
  assertEquals(at.store.content.get(1)!.size, 0, "it was written all the same");
  at.router.end();
  assertEquals([at.router.waiting, at.router.writesUnderWay], [0, 0]);
});

Deno.test("what waits for space since an earlier lease is sent under the new one, for which nothing waits", () => {
  const at = new Fixture();
  at.store.isFull = true;
  at.write(1);
  at.map({ disk: { generation: GENERATION + 1, settled: GENERATION - 1 } });
  at.core.openDisk(1, GENERATION + 1);
  assertEquals(at.sent(MessageType.Stamps), [], "it looks too early");
  at.run();
  at.tick();
  for (const asked of at.sent(MessageType.Stamps)) at.answer(asked);
  assertEquals([at.router.isOpen, at.done], [true, []]);
  at.run();
  for (const sent of at.sent(MessageType.Write)) at.answer(sent);
  assertEquals(at.done, [[1, 0]]);
  assertEquals(at.store.content.get(1)!.get(3)!.generation, GENERATION + 1);
});

Deno.test("what this node writes to a group that it catches up on is not taken back: nothing else would bring it there", () => {
  const at = new Fixture({ group: { inSync: [2, 3], joining: [1], joinedEpochs: [40] } });
  at.store.isFull = true;
  at.write(1);
  at.router.abandon(-5);
  at.tick();
  assertEquals(at.done, []);
  at.run();
  assertEquals(at.done, [[1, -5]]);
  assertEquals(at.store.content.get(1)!.get(3)!.blocks.get(5), 0xaa);
});
