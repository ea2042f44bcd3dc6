/**
 * Whole data cores of several nodes, wired together: what becomes of a write that is under way while those who join begin anew
 * (the lease of another disk was not given back: `withJoinersAfresh` of `map/disks.ts`).
 *
 * @module
 */
import { assertEquals } from "@std/assert/mod.js";
import { Arena } from "../../agent/base/arena.ts";
import type { DataCore } from "../../agent/replication/data_core.ts";
import { ANSWER, MessageType } from "../../agent/replication/messages.ts";
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
  type Sent,
  sumOf,
  window,
} from "./harness.ts";

/** It holds the lease, one is in sync, one joins. */
const HOLDER = 4, SOURCE = 3, JOINER = 2;
const LAYER = 1, CHUNK = 3;

/** Requests to a node have its number for a link; what it asks comes over ten more than its number. */
const THEIRS = 10;

class Node {
  readonly transport = new FakeTransport();
  readonly store = new FakeStore(LAYER);
  readonly core: DataCore;
  /** Groups that are reported to be in sync. */
  readonly reported = new Set<number>();

  constructor(readonly id: number, readonly arena: Arena, options: MapOptions) {
    this.core = coreOf(this, mapOf(options), id, {
      inSync: (_, groups) => groups.forEach((group) => this.reported.add(group)),
    });
    for (const node of [1, 2, 3, 4]) {
      if (node !== id) this.core.linkUp(THEIRS + node, node, false, 1);
    }
    this.core.tick(1000);
    this.core.renew(Infinity);
  }
}

class Cluster {
  readonly arena = new Arena();
  readonly nodes: ReadonlyMap<number, Node>;
  readonly done: number[] = [];
  #nowMs = 1000;

  constructor(options: MapOptions, ids: readonly number[], readonly holder = HOLDER) {
    this.nodes = new Map(ids.map((id) => [id, new Node(id, this.arena, options)]));
  }

  at(id: number): Node {
    return this.nodes.get(id)!;
  }

  write(sequence: number, block: number, fill: number): void {
    const operation = new Operation({ operationDone: ({ tag }) => this.done.push(tag) }, 1);
    operation.kind = OperationKind.Write;
    operation.tag = sequence;
    operation.layers = [LAYER];
    operation.chunk = CHUNK;
    operation.block = block;
    operation.blockCount = 1;
    operation.generation = GENERATION;
    operation.sequence = sequence;
    operation.buffer = buffer(this.arena, fill);
    operation.checksums[0] = sumOf(fill);
    this.at(this.holder).core.router(1).submit(operation);
  }

  deliver(from: number, { link, head, extra, data }: Sent): void {
    const isAnswer = (head.type & ANSWER) !== 0;
    const to = this.nodes.get(isAnswer ? link - THEIRS : link);
    if (to === undefined) return;
    const bytes = message({ ...head }, extra);
    let at = 0;
    if (data.length > 0) {
      at = this.arena.allocate(data.length);
      window.bytes.set(data, at);
    }
    to.core.received(isAnswer ? from : THEIRS + from, bytes, bytes.length, at, data.length);
  }

  /** Lets time pass: everything arrives but what is held, and is carried out but where stores stand still. */
  pass(
    { isHeld = () => false, standing = [], turns = 200 }: {
      isHeld?: (from: number, sent: Sent) => boolean;
      standing?: readonly number[];
      turns?: number;
    } = {},
  ): void {
    for (let turn = 0; turn < turns; turn++) {
      this.#nowMs += 10;
      for (const [id, node] of this.nodes) {
        if (!standing.includes(id)) node.store.run();
        node.core.endTurn();
        for (const sent of node.transport.take()) {
          if (isHeld(id, sent)) node.transport.sent.push(sent);
          else this.deliver(id, sent);
        }
        node.core.tick(this.#nowMs);
      }
    }
  }

  map(options: MapOptions, ...ids: number[]): void {
    for (const id of ids) this.at(id).core.setMap(mapOf(options), id, 1);
  }
}

Deno.test("a write that a joiner has acknowledged goes to it again when it begins anew: the source may have got it later", () => {
  const group = { target: [2, 3], inSync: [SOURCE], joining: [JOINER], joinedEpochs: [60] };
  const options: MapOptions = { holder: HOLDER, group, disk: { copiesMin: 1 } };
  const cluster = new Cluster(options, [JOINER, SOURCE, HOLDER]);
  cluster.at(HOLDER).core.openDisk(1, GENERATION);
  cluster.pass();

  // The joiner has it at once, and says so. To the source it is on its way for a little longer.
  const isLate = (from: number, { link, head }: Sent) =>
    from === HOLDER && link === SOURCE && (head.type as MessageType) === MessageType.Write;
  cluster.write(1, 5, 0xaa);
  cluster.pass({ isHeld: isLate, turns: 5 });
  assertEquals(cluster.at(JOINER).store.chunk(LAYER, CHUNK).blocks.get(5), 0xaa);
  assertEquals(cluster.done, []);

  // Another disk is opened after its host has died: all who join begin anew. The holder hears of it last.
  const epoch = EPOCH + 1;
  const anew: MapOptions = {
    ...options,
    epoch,
    group: { ...group, joinedEpochs: [epoch], changedEpoch: epoch },
  };
  cluster.map(anew, SOURCE, JOINER);
  cluster.at(JOINER).reported.clear();
  // The source refuses what was sent under the old map, and gives the joiner what it has.
  cluster.pass();
  cluster.map(anew, HOLDER);
  cluster.pass();
  assertEquals(cluster.done, [1], "the guest has been told");
  assertEquals(cluster.at(SOURCE).store.chunk(LAYER, CHUNK).blocks.get(5), 0xaa);
  assertEquals(
    cluster.at(JOINER).reported.size > 0 &&
      cluster.at(JOINER).store.chunk(LAYER, CHUNK).blocks.get(5),
    0xaa,
    "the joiner is in sync, and lacks what was acknowledged",
  );
});

Deno.test("a holder that joins and begins anew: a write that is in its store meanwhile is not overtaken by the next one", () => {
  const SELF = 2;
  const group = { target: [2, 3], inSync: [SOURCE], joining: [SELF], joinedEpochs: [60] };
  const options: MapOptions = { holder: SELF, group, disk: { copiesMin: 1 } };
  const cluster = new Cluster(options, [SELF, SOURCE], SELF);
  // Something that this node has not copied when it has to begin anew.
  const { store } = cluster.at(SOURCE);
  store.chunk(LAYER, CHUNK).blocks.set(9, 0x99);
  [store.chunk(LAYER, CHUNK).generation, store.chunk(LAYER, CHUNK).sequence] = [GENERATION - 1, 1];
  cluster.at(SELF).core.openDisk(1, GENERATION);
  const isHeld = () => true;

  cluster.write(1, 5, 0xaa);
  const epoch = EPOCH + 1;
  const anew: MapOptions = {
    ...options,
    epoch,
    group: { ...group, joinedEpochs: [epoch], changedEpoch: epoch },
  };
  // Its store has not carried it out yet.
  cluster.pass({ isHeld, standing: [SELF], turns: 1 });
  cluster.map(anew, SOURCE, SELF);
  cluster.write(2, 6, 0xbb);
  // The source's disk is slower: both writes are on their way into its store while it reads.
  for (let i = 0; i < 200; i++) {
    const waiting = store.waiting.splice(0);
    const isRead = ({ kind }: Operation) => kind !== OperationKind.Write;
    store.waiting.push(...waiting.filter(isRead));
    store.run();
    store.waiting.push(...waiting.filter((each) => !isRead(each)));
    cluster.pass({ standing: [SOURCE], turns: 1 });
  }
  assertEquals(cluster.done, []);
  cluster.pass();
  assertEquals(cluster.done, [1, 2]);
  const blocksOf = (id: number) =>
    [5, 6, 9].map((at) => cluster.at(id).store.chunk(LAYER, CHUNK).blocks.get(at));
  assertEquals(blocksOf(SOURCE), [0xaa, 0xbb, 0x99]);
  assertEquals(cluster.at(SELF).reported.size > 0, true);
  assertEquals(blocksOf(SELF), [0xaa, 0xbb, 0x99]);
});
