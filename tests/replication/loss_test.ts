/**
 * What a node does with groups whose data path is lost: nothing of them is taken for empty, and nobody's guest sees an error.
 *
 * @module
 */
import { assert, assertEquals } from "@std/assert/mod.js";
import { Arena } from "../../agent/base/arena.ts";
import { BLOCK_BYTES } from "../../agent/base/limits.ts";
import type { DataCore } from "../../agent/replication/data_core.ts";
import type { LocalPaths } from "../../agent/replication/local_store.ts";
import { MessageFlag, MessageType, Status } from "../../agent/replication/messages.ts";
import { Operation, OperationKind } from "../../agent/store/operation.ts";
import {
  buffer,
  coreOf,
  EPOCH,
  FakeStore,
  FakeTransport,
  GENERATION,
  mapOf,
  type MapOptions,
  message,
  sumOf,
} from "./harness.ts";

const EIO = 5;
const LAYER = 1, CHUNK = 3, BLOCK = 5, PEER = 11;

/** A store of which everything is on a path that may be lost. */
class LosingStore extends FakeStore {
  isAway = false;
  isOwed = false;
  lossEpoch = 0;
  prepared = 0;
  installed = 0;
  /** What is prepared takes until the test says so. */
  isSlow = false;
  waitingMap: ((error: Error | null) => void) | null = null;
  readonly paths: LocalPaths;

  constructor(...layers: number[]) {
    super(...layers);
    // deno-lint-ignore no-this-alias
    const store = this;
    this.paths = {
      prepare(_map, _self, done) {
        store.prepared++;
        if (!store.isSlow) return true;
        store.waitingMap = done;
        return false;
      },
      installed: () => store.installed++,
      get isImpaired() {
        return store.isAway;
      },
      get lossEpoch() {
        return store.lossEpoch;
      },
      isLost: () => store.isAway,
      lossOf: () => store.isAway ? "/disk2, which has failed (EIO)" : null,
      owed: () => store.isOwed ? Uint8Array.of(8) : null,
    };
  }

  override listChunks(...args: Parameters<FakeStore["listChunks"]>): void {
    super.listChunks(...args);
    if (!this.isAway) return;
    const list = args[2];
    list.count = 0;
    list.next = -1;
  }

  lose(): void {
    this.isAway = true;
    this.isOwed = true;
    this.failure = -EIO;
  }
}

class Fixture {
  readonly transport = new FakeTransport();
  readonly store = new LosingStore(LAYER);
  readonly arena = new Arena();
  readonly core: DataCore;
  readonly told: number[][] = [];
  readonly unreachable: number[] = [];
  readonly settled: number[] = [];
  readonly absorbed: number[] = [];
  nowMs = 1000;

  constructor(options: MapOptions, self: number) {
    this.core = coreOf(this, mapOf(options), self, {
      unreachable: (nodes) => this.unreachable.push(...nodes),
      settled: (_, groups) => this.settled.push(...groups),
      absorbed: (layers) => this.absorbed.push(...layers),
      groupsLost: (groups) => this.told.push([...groups]),
    });
    this.core.linkUp(PEER, 1, false, 1);
    this.core.renew(Infinity);
    this.tick();
  }

  tick(times = 1): void {
    for (; times > 0; times--) {
      this.nowMs += 100;
      this.core.tick(this.nowMs);
      this.store.run();
      this.core.endTurn();
    }
  }

  #sequence = 9;

  /** Asks as node 1 does; the status of the answer. */
  ask(type: MessageType, fields = {}, extra: number[] = [], data = -1): number {
    this.transport.take();
    const bytes = message({
      type,
      id: 7,
      epoch: this.core.view.epoch,
      disk: 1,
      layer: LAYER,
      chunk: CHUNK,
      block: BLOCK,
      count: 1,
      generation: GENERATION,
      sequence: ++this.#sequence,
      ...fields,
    }, extra);
    this.core.received(PEER, bytes, bytes.length, Math.max(0, data), data < 0 ? 0 : BLOCK_BYTES);
    this.store.run();
    this.core.endTurn();
    const [answer] = this.transport.take().filter(({ link }) => link === PEER);
    assert(answer !== undefined, "there is no answer");
    return answer.head.status;
  }

  askAll(): number[] {
    const { group } = this.core.view.groupOf(this.core.view.disk(1)!, CHUNK);
    const recovery = { flags: MessageFlag.Recovery };
    return [
      this.ask(MessageType.Write, {}, [sumOf(4)], buffer(this.arena, 4)),
      this.ask(MessageType.Zero),
      this.ask(MessageType.Read, {}, [LAYER]),
      this.ask(MessageType.Sync, { incarnation: 1 }),
      this.ask(MessageType.Describe, recovery),
      this.ask(MessageType.List, { ...recovery, pool: 3, group, chunk: 0 }),
    ];
  }
}

Deno.test("what peers ask of a lost path is refused as stale: not this node has failed, and nothing is said to be empty", () => {
  const fixture = new Fixture({}, 2);
  assertEquals(fixture.askAll(), [0, 0, 0, 0, 0, 0].map(() => Status.Ok));
  fixture.store.lose();
  assertEquals(fixture.askAll(), [0, 0, 0, 0, 0, 0].map(() => Status.Stale));
  // A store that has failed as a whole is another matter: everyone is to hear of it.
  fixture.store.isAway = false;
  assertEquals(fixture.askAll().slice(0, 4), [-EIO, -EIO, -EIO, -EIO]);
});

Deno.test("a sync says nothing of what has been lost to whoever does not know yet that it is", () => {
  const fixture = new Fixture({}, 2);
  const sync = { incarnation: 1 };
  // The map has taken this node out of what was there, and the other paths are synced.
  fixture.core.setMap(mapOf({ epoch: EPOCH + 3 }), 2, 1);
  fixture.store.lossEpoch = EPOCH + 3;
  assertEquals(fixture.ask(MessageType.Sync, { ...sync, epoch: EPOCH + 2 }), Status.Stale);
  assertEquals(fixture.ask(MessageType.Sync, { ...sync, epoch: EPOCH + 3 }), Status.Ok);
  fixture.store.lossEpoch = 0;
  assertEquals(fixture.ask(MessageType.Sync, { ...sync, epoch: EPOCH + 2 }), Status.Ok);
});

Deno.test("a loss is told until a map shows that it is known", () => {
  const fixture = new Fixture({}, 2);
  assertEquals(fixture.told, []);
  fixture.store.lose();
  fixture.tick(5);
  assertEquals(fixture.told, [[8]]);
  fixture.tick(20);
  assertEquals(fixture.told.length, 2);
  // Another map, which has not heard of it: at once.
  fixture.core.setMap(mapOf({ epoch: EPOCH + 1 }), 2, 1);
  fixture.tick();
  assertEquals(fixture.told.length, 3);
  fixture.store.isOwed = false;
  fixture.tick(50);
  assertEquals(fixture.told.length, 3);
});

Deno.test("a map is in force when what it wants here has a place", () => {
  const fixture = new Fixture({}, 2);
  assertEquals([fixture.store.prepared, fixture.store.installed], [1, 1]);
  fixture.store.isSlow = true;
  fixture.core.setMap(mapOf({ epoch: EPOCH + 1 }), 2, 1);
  fixture.core.setMap(mapOf({ epoch: EPOCH + 2 }), 2, 1);
  assertEquals([fixture.core.view.epoch, fixture.store.installed], [EPOCH, 1]);
  // It could not be remembered: once more, a little later.
  fixture.store.waitingMap!(new Error("no"));
  assertEquals([fixture.core.view.epoch, fixture.store.prepared], [EPOCH, 2]);
  fixture.tick();
  assertEquals(fixture.store.prepared, 3);
  fixture.store.isSlow = false;
  fixture.store.waitingMap!(null);
  assertEquals([fixture.core.view.epoch, fixture.store.installed], [EPOCH + 2, 3]);
});

Deno.test("a guest whose replica here is lost waits for the map, and reads elsewhere then", () => {
  const fixture = new Fixture({ disk: { settled: GENERATION } }, 1);
  const { core, store } = fixture;
  core.openDisk(1, GENERATION);
  const router = core.router(1);
  fixture.tick();
  assert(router.isOpen);
  store.lose();
  const results: number[] = [];
  const owner = {
    operationDone(operation: Operation) {
      if (operation.result !== 0 && router.recover(operation)) return;
      results.push(operation.result);
    },
  };
  const operation = new Operation(owner, 1);
  operation.kind = OperationKind.Read;
  operation.layers = [LAYER];
  operation.chunk = CHUNK;
  operation.block = BLOCK;
  operation.blockCount = 1;
  operation.buffer = buffer(fixture.arena, 0);
  router.submit(operation);
  fixture.tick(30);
  assertEquals(results, [], "an error, or zeros, reached the guest");
  fixture.transport.take();
  core.setMap(
    mapOf({ epoch: EPOCH + 1, group: { inSync: [2, 3], changedEpoch: EPOCH + 1 } }),
    1,
    1,
  );
  fixture.tick();
  const reads = fixture.transport.take().filter(({ head }) => head.type === MessageType.Read);
  assertEquals(reads.length, 1, "the read goes to a node that has it");
  assertEquals(results, []);
});

Deno.test("who has the only copy on a lost path does not settle it, and says why", () => {
  const group = { inSync: [2], unclean: [2], unsettled: true, changedEpoch: EPOCH };
  const fixture = new Fixture({ group }, 2);
  fixture.store.lose();
  fixture.core.setMap(
    mapOf({ epoch: EPOCH + 1, group: { ...group, changedEpoch: EPOCH + 1 } }),
    2,
    1,
  );
  fixture.settled.length = 0;
  fixture.tick(50);
  assertEquals(fixture.settled, []);
  const { stuck } = fixture.core.status.joining;
  assert(
    /^the only copy of placement group \d+ is on \/disk2, which has failed \(EIO\)$/.test(stuck!),
    stuck!,
  );
  fixture.store.isAway = fixture.store.isOwed = false;
  fixture.store.failure = 0;
  fixture.tick(50);
  assertEquals(new Set(fixture.settled).size, 256);
});

Deno.test("a layer is not called absorbed while its only copy is on a lost path", () => {
  const layers = [{ id: LAYER, parent: 0, absorbedBy: [] }, {
    id: LAYER + 1,
    parent: LAYER,
    absorbedBy: null,
  }];
  const absorbing = { layers, disk: { layers: [LAYER + 1, LAYER] } };
  const alone = { inSync: [2], unclean: [2], unsettled: true, changedEpoch: EPOCH };
  const fixture = new Fixture({ group: { inSync: [2] } }, 2);
  fixture.store.chunk(LAYER, CHUNK).blocks.set(BLOCK, 7);
  fixture.store.isAway = true;
  const groups = [{ inSync: [2] }, alone];
  for (const [at, group] of groups.entries()) {
    const map = mapOf({ ...absorbing, epoch: EPOCH + 1 + at, group });
    fixture.core.setMap(map, 2, 1);
    fixture.tick(50);
    assertEquals(fixture.absorbed, []);
  }
  // It is back, and settled.
  fixture.store.isAway = false;
  fixture.core.setMap(mapOf({ ...absorbing, epoch: EPOCH + 9, group: { inSync: [2] } }), 2, 1);
  fixture.tick(50);
  assertEquals(fixture.absorbed[0], LAYER);
  assertEquals(fixture.store.chunk(LAYER + 1, CHUNK).blocks.get(BLOCK), 7);
});
