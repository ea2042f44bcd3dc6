/**
 * A disk whose number of copies is changed, as the data path sees it: the map's own commands, with writes, flushes and pulls under way.
 *
 * @module
 */
import { assertEquals } from "@std/assert/mod.js";
import { Arena } from "../../agent/base/arena.ts";
import { type ClusterMap, findPool, type PgEntry, poolOfFamily } from "../../agent/map/map.ts";
import { EIO } from "../../agent/platform/platform.ts";
import type { DataCore } from "../../agent/replication/data_core.ts";
import { ANSWER, MessageType, Status } from "../../agent/replication/messages.ts";
import { Operation, OperationKind } from "../../agent/store/operation.ts";
import { runAll } from "../map/cluster.ts";
import {
  answerTo,
  buffer,
  coreOf,
  EPOCH,
  FakeStore,
  FakeTransport,
  GENERATION,
  mapOf,
  message,
  type Sent,
  sumOf,
} from "./harness.ts";

const CHUNK = 3;

/** The same map with every PG of a pool changed. */
function withGroups(map: ClusterMap, id: number, part: Partial<PgEntry>): ClusterMap {
  return {
    ...map,
    pools: map.pools.map((pool) =>
      pool.id === id ? { ...pool, pgs: pool.pgs.map((pg) => ({ ...pg, ...part })) } : pool
    ),
  };
}

/** A disk of three copies, on nodes 1 to 3, on its way to two, on nodes 1 and 2: what those of others had to settle is long ago. */
function onTheWay(): ClusterMap {
  const map = runAll(mapOf(), { kind: "set-copies", name: "web", copies: 2 });
  const places = { target: [1, 2], inSync: [1, 2], settledEpoch: 90, changedEpoch: 95 };
  return withGroups(map, 2, places);
}

function finished(map: ClusterMap): ClusterMap {
  return runAll(map, { kind: "finish-copies", pool: poolOfFamily(map, 1)!.id });
}

/** Any node, with what it sends, and what comes back of its own volume. */
class Fixture {
  readonly transport = new FakeTransport();
  readonly store = new FakeStore(1);
  readonly arena = new Arena();
  readonly core: DataCore;
  readonly done: [tag: number, result: number][] = [];
  readonly self: number;
  #nowMs = 1000;

  constructor(map: ClusterMap, self: number) {
    this.self = self;
    this.core = coreOf(this, map, self, {});
    this.core.tick(this.#nowMs);
    this.core.renew(Infinity);
    if (self === 1) this.core.openDisk(1, GENERATION);
  }

  map(map: ClusterMap): void {
    this.core.setMap(map, this.self, 1);
  }

  submit(kind: OperationKind, tag: number): void {
    const operation = new Operation({
      operationDone: ({ tag, result }) => this.done.push([tag, result]),
    }, 1);
    operation.kind = kind;
    operation.tag = tag;
    operation.layers = [1];
    operation.chunk = CHUNK;
    operation.blockCount = 1;
    operation.generation = GENERATION;
    operation.sequence = tag;
    operation.buffer = kind === OperationKind.Sync ? 0 : buffer(this.arena, 0xaa);
    operation.checksums[0] = sumOf(0xaa);
    this.core.router(1).submit(operation);
  }

  sent(type: MessageType): Sent[] {
    return this.transport.take().filter(({ head }) => head.type === type);
  }

  answer(sent: Sent): void {
    const bytes = answerTo(sent, { epoch: this.core.view.epoch });
    this.core.received(sent.link, bytes, bytes.length, 0, 0);
  }

  run(): void {
    this.store.run();
    this.core.endTurn();
  }

  tick(): void {
    this.core.tick(this.#nowMs += 100);
  }
}

const nodesOf = (sent: readonly Sent[]) => sent.map(({ link }) => link).sort();

Deno.test("a write goes to whoever has the disk until the end, and then waits for nobody else", () => {
  const map = onTheWay();
  const at = new Fixture(mapOf(), 1);
  at.submit(OperationKind.Write, 1);
  assertEquals(nodesOf(at.sent(MessageType.Write)), [2, 3]);
  // The beginning is another group with the same members: what is under way is sent once more, under the new map.
  at.map(map);
  const again = at.sent(MessageType.Write);
  assertEquals([nodesOf(again), again[0].head.epoch], [[2, 3], EPOCH + 1]);
  at.run();
  at.answer(again.find(({ link }) => link === 2)!);
  assertEquals(at.done, []);
  at.map(finished(map));
  assertEquals([at.done, at.sent(MessageType.Write)], [[[1, 0]], []]);
  at.submit(OperationKind.Sync, 2);
  at.run();
  const syncs = at.sent(MessageType.Sync);
  assertEquals(nodesOf(syncs), [2]);
  at.answer(syncs[0]);
  // What others had to settle there before is none of this guest's business.
  assertEquals(findPool(finished(map), 2)!.pgs[0].settledEpoch, 90);
  assertEquals(at.done, [[1, 0], [2, 0]]);
});

Deno.test("a flush fails for what was settled on the way, also if the holder sees only the end of it", () => {
  const map = onTheWay();
  const at = new Fixture(map, 1);
  at.submit(OperationKind.Write, 1);
  at.run();
  for (const sent of at.sent(MessageType.Write)) at.answer(sent);
  assertEquals(at.done, [[1, 0]]);
  const settled = withGroups({ ...map, epoch: EPOCH + 5 }, poolOfFamily(map, 1)!.id, {
    settledEpoch: EPOCH + 5,
    changedEpoch: EPOCH + 5,
  });
  at.map(finished(settled));
  at.submit(OperationKind.Sync, 2);
  at.run();
  for (const sent of at.sent(MessageType.Sync)) at.answer(sent);
  at.run();
  assertEquals(at.done, [[1, 0], [2, -EIO]]);
  at.submit(OperationKind.Sync, 3);
  at.run();
  for (const sent of at.sent(MessageType.Sync)) at.answer(sent);
  at.run();
  assertEquals(at.done[2], [3, 0], "it is said once");
});

Deno.test("what another group has lost on the way, or this one and was told, does not fail a flush at the end", () => {
  for (const isOwn of [false, true]) {
    const map = onTheWay();
    const at = new Fixture(map, 1);
    const flush = (tag: number) => {
      at.submit(OperationKind.Sync, tag);
      at.run();
      for (const sent of at.sent(MessageType.Sync)) at.answer(sent);
      at.run();
    };
    const write = (tag: number) => {
      at.submit(OperationKind.Write, tag);
      at.run();
      for (const sent of at.sent(MessageType.Write)) at.answer(sent);
    };
    // Until its first flush a new holder fears for all of the disk.
    flush(9);
    write(1);
    const own = poolOfFamily(map, 1)!;
    const { group } = at.core.view.groupOf(at.core.view.disk(1)!, CHUNK);
    const epoch = map.epoch + 1;
    const pgs = own.pgs.map((pg, index) =>
      (index === group) === isOwn ? { ...pg, settledEpoch: epoch, changedEpoch: epoch } : pg
    );
    const settled = {
      ...map,
      epoch,
      pools: map.pools.map((pool) => pool === own ? { ...pool, pgs } : pool),
    };
    at.map(settled);
    if (isOwn) {
      flush(2);
      write(3);
    }
    at.map(finished(settled));
    flush(4);
    const told = isOwn ? [[2, -EIO], [3, 0]] : [];
    assertEquals(at.done, [[9, 0], [1, 0], ...told, [4, 0]] as typeof at.done);
  }
});

Deno.test("whoever holds the disk by an older map is refused where it has gone", () => {
  const map = onTheWay();
  const at = new Fixture(finished(map), 2);
  at.core.linkUp(11, 1, false, 1);
  const write = (id: number, epoch: number) => {
    const head = {
      type: MessageType.Write,
      id,
      epoch,
      disk: 1,
      layer: 1,
      chunk: CHUNK,
      count: 1,
      generation: GENERATION,
      sequence: id,
    };
    const bytes = message(head, [sumOf(0xaa)]);
    at.core.received(11, bytes, bytes.length, buffer(at.arena, 0xaa), 4096);
    at.run();
    return at.transport.take().map(({ head }) => [head.type & ~ANSWER, head.status]);
  };
  // Its PGs there had not changed for long when the disk came.
  for (const epoch of [EPOCH, map.epoch]) {
    assertEquals(write(epoch, epoch), [[MessageType.Write, Status.Stale]]);
  }
  assertEquals(write(EPOCH + 2, map.epoch + 1), [[MessageType.Write, Status.Ok]]);
});

Deno.test("what a disk leaves behind is dropped at the end, and not before", () => {
  const map = onTheWay();
  const at = new Fixture(map, 3);
  const keeps = () => at.store.content.get(1)!.has(CHUNK);
  at.store.chunk(1, CHUNK).generation = GENERATION;
  for (let i = 0; i < 5; i++) at.tick();
  assertEquals(keeps(), true);
  at.map(finished(map));
  for (let i = 0; i < 300; i++) at.tick();
  assertEquals(keeps(), false);
  // A member keeps it.
  const member = new Fixture(map, 2);
  member.store.chunk(1, CHUNK).generation = GENERATION;
  member.map(finished(map));
  for (let i = 0; i < 300; i++) member.tick();
  assertEquals(member.store.content.get(1)!.has(CHUNK), true);
});

Deno.test("who joins for others where a disk goes to begins anew, and ends what it copied for the disk's holder", () => {
  const joining = { inSync: [1, 2], joining: [3], joinedEpochs: [96], target: [1, 2, 3] };
  const map = withGroups(
    runAll(mapOf({ disk: { settled: GENERATION } }), {
      kind: "set-copies",
      name: "web",
      copies: 2,
    }),
    2,
    { ...joining, target: [1, 2], changedEpoch: 96 },
  );
  const at = new Fixture(map, 3);
  let status = -1;
  const { view } = at.core;
  const disk = view.disk(1)!;
  at.core.joining.pullFor(disk, view.groupOf(disk, CHUNK), 1, CHUNK, 1, (each) => status = each);
  const after = finished(map);
  const [pg] = findPool(after, 2)!.pgs;
  assertEquals([pg.joining, pg.joinedEpochs], [[3], [after.epoch]]);
  at.map(after);
  assertEquals(status, Status.Busy);
});
