/**
 * What becomes of a copy that an opening has given up: several nodes' cores together.
 *
 * @module
 */
import { assertEquals } from "@std/assert/mod.js";
import { Arena } from "../../agent/base/arena.ts";
import type { ClusterMap } from "../../agent/map/map.ts";
import type { DataCore } from "../../agent/replication/data_core.ts";
import { ECANCELED } from "../../agent/platform/platform.ts";
import { ANSWER, MessageType } from "../../agent/replication/messages.ts";
import { type Operation, OperationKind } from "../../agent/store/operation.ts";
import {
  coreOf,
  EPOCH,
  FakeStore,
  FakeTransport,
  GENERATION,
  mapOf,
  type MapOptions,
  message,
  type Sent,
  window,
} from "./harness.ts";

const LAYER = 1, CHUNK = 3, BLOCK = 5;
/** Links of nodes' own have their numbers; those of others this much more. */
const THEIRS = 10;

/** One in which writes, and what comes behind them in their chunk, can be made to wait for space, as `store/store.ts` has it. */
class FullStore extends FakeStore {
  readonly #held: Operation[] = [];
  readonly #withdrawn: Operation[] = [];
  isWithoutSpace = false;

  get held(): number {
    return this.#held.length;
  }

  override submit(operation: Operation): void {
    const { kind, layers, chunk } = operation;
    const isBehind = this.#held.some((each) =>
      each.layers[0] === layers[0] && each.chunk === chunk
    );
    const isChange = kind !== OperationKind.Read && kind !== OperationKind.Sync;
    if ((this.isWithoutSpace && kind === OperationKind.Write) || (isChange && isBehind)) {
      this.#held.push(operation);
    } else super.submit(operation);
  }

  override withdraw(isWanted: (operation: Operation) => boolean): void {
    this.#withdrawn.push(...this.#held.filter(isWanted));
    this.#held.splice(0, Infinity, ...this.#held.filter((each) => !isWanted(each)));
  }

  override run(): void {
    for (const operation of this.#withdrawn.splice(0)) {
      operation.result = -ECANCELED;
      operation.owner.operationDone(operation);
    }
    if (!this.isWithoutSpace) {
      for (const operation of this.#held.splice(0)) super.submit(operation);
    }
    super.run();
  }
}

class Node {
  readonly transport = new FakeTransport();
  readonly store = new FullStore(LAYER);
  readonly core: DataCore;
  constructor(readonly arena: Arena, map: ClusterMap, readonly id: number) {
    this.core = coreOf(this, map, id, {});
    for (const node of [1, 2, 3]) {
      if (node !== id) this.core.linkUp(THEIRS + node, node, false, 1);
    }
    this.core.renew(Infinity);
  }

  get block(): unknown {
    return this.store.chunk(LAYER, CHUNK).blocks.get(BLOCK);
  }
}

class Cluster {
  readonly arena = new Arena();
  readonly nodes: Node[];
  nowMs = 1000;
  constructor(options: MapOptions) {
    this.nodes = [1, 2, 3].map((id) => new Node(this.arena, mapOf(options), id));
  }

  setMap(options: MapOptions): void {
    for (const { core, id } of this.nodes) core.setMap(mapOf(options), id, 1);
  }

  /** Time passes; ends after a message of this kind was sent. What is `lost` does not arrive. */
  pass(
    until: (sent: Sent) => boolean = () => false,
    isLost: (sent: Sent, from: number) => boolean = () => false,
  ): void {
    for (let i = 0, isFound = false; i < 200 && !isFound; i++) {
      this.nowMs += 10;
      for (const { core, store } of this.nodes) {
        core.tick(this.nowMs);
        store.run();
        core.endTurn();
      }
      for (const from of this.nodes) {
        for (const sent of from.transport.take()) {
          isFound ||= until(sent);
          if (!isLost(sent, from.id)) this.#deliver(from, sent);
        }
      }
    }
  }

  #deliver(from: Node, { link, head, extra, data }: Sent): void {
    const isAnswer = (head.type & ANSWER) !== 0;
    const to = this.nodes[(isAnswer ? link - THEIRS : link) - 1];
    if (to === undefined) return;
    const at = data.length === 0 ? 0 : this.arena.allocate(data.length);
    window.bytes.set(data, at);
    const bytes = message(head, extra);
    to.core.received(isAnswer ? from.id : THEIRS + from.id, bytes, bytes.length, at, data.length);
  }
}

Deno.test("what a copy that was given up has in its store's queue does not come to light when the disk is open", () => {
  // The lease before this one was not given back, and its last write has come to one node only.
  const disk = { settled: GENERATION - 2 };
  const cluster = new Cluster({ disk, group: { inSync: [2, 1, 3] } });
  const [holder, other, writer] = cluster.nodes;
  for (const node of cluster.nodes) {
    const isWriter = node === writer;
    const chunk = node.store.chunk(LAYER, CHUNK);
    [chunk.generation, chunk.sequence] = isWriter ? [GENERATION - 1, 70] : [GENERATION - 4, 9];
    chunk.blocks.set(BLOCK, isWriter ? 0xaa : 0x11);
  }
  other.store.isWithoutSpace = true;
  holder.core.openDisk(1, GENERATION);
  // The holder's own copy does not get on, and that of another node waits for space, when the one that has the write dies.
  const isSlow = (sent: Sent, from: number) => from === 1 && sent.head.type === MessageType.Read;
  cluster.pass(() => false, isSlow);
  assertEquals([other.store.held, holder.core.router(1).isOpen], [1, false]);
  const group = { inSync: [2, 1], changedEpoch: EPOCH + 1 };
  cluster.setMap({ disk, group, down: [3], epoch: EPOCH + 1 });
  cluster.pass(() => false, ({ link }, from) => from === 3 || link === 3);
  assertEquals(holder.core.router(1).isOpen, true);
  const opened = [holder.block, other.block];
  assertEquals(opened, [0x11, 0x11]);
  // Something is discarded.
  other.store.isWithoutSpace = false;
  cluster.pass(() => false, ({ link }, from) => from === 3 || link === 3);
  assertEquals([holder.block, other.block], opened);
});
