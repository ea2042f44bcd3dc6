/**
 * A snapshot goes while its disk is being brought in line after an unclean hand-over: several nodes' cores together.
 *
 * @module
 */
import { assertEquals } from "@std/assert/mod.js";
import { Arena } from "../../agent/base/arena.ts";
import type { ClusterMap } from "../../agent/map/map.ts";
import type { DataCore } from "../../agent/replication/data_core.ts";
import { ANSWER, MessageType } from "../../agent/replication/messages.ts";
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

/** The layer of a snapshot, and the disk's newest one above it. */
const LOWER = 1, UPPER = 2;
const CHUNK = 3;
/** Links of nodes' own have their numbers; those of others this much more. */
const THEIRS = 10;

class Node {
  readonly transport = new FakeTransport();
  readonly store = new FakeStore(LOWER, UPPER);
  readonly core: DataCore;
  constructor(readonly arena: Arena, map: ClusterMap, readonly id: number) {
    this.core = coreOf(this, map, id, {});
    for (const node of [1, 2, 3]) {
      if (node !== id) this.core.linkUp(THEIRS + node, node, false, 1);
    }
    this.core.renew(Infinity);
  }

  /** What is read of a block of the disk. */
  read(block: number): number | "zero" | undefined {
    for (const layer of [UPPER, LOWER]) {
      const found = this.store.chunk(layer, CHUNK).blocks.get(block);
      if (found !== undefined) return found;
    }
    return undefined;
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

for (const lacking of [1, 2]) {
  const who = lacking === 1 ? "the holder" : "another node";
  Deno.test(`what a snapshot held stays when it is deleted while ${who} is being brought in line`, () => {
    const layers = [
      { id: LOWER, parent: 0, absorbedBy: null },
      { id: UPPER, parent: LOWER, absorbedBy: null },
    ];
    // The lease before this one was not given back.
    const disk = { layers: [UPPER, LOWER], settled: GENERATION - 2 };
    const cluster = new Cluster({ layers, disk });
    const [holder] = cluster.nodes;
    for (const { id, store } of cluster.nodes) {
      const lower = store.chunk(LOWER, CHUNK);
      [lower.generation, lower.sequence] = [GENERATION - 4, 9];
      for (const block of [0, 1, 2, 3]) lower.blocks.set(block, 0x10 + block);
      // The last write under it has not come to everybody.
      if (id === lacking) continue;
      const upper = store.chunk(UPPER, CHUNK);
      [upper.generation, upper.sequence] = [GENERATION - 1, 70];
      upper.blocks.set(0, 0xaa);
    }
    holder.core.openDisk(1, GENERATION);
    cluster.pass(({ head }) => head.type === MessageType.Read);
    // The snapshot is deleted: its layer is merged into the one above.
    const merging = [{ ...layers[0], absorbedBy: [] }, layers[1]];
    cluster.setMap({ layers: merging, disk, epoch: EPOCH + 1 });
    cluster.pass();
    assertEquals(holder.core.router(1).isOpen, true);
    for (const node of cluster.nodes) {
      const { generation, sequence } = node.store.chunk(UPPER, CHUNK);
      assertEquals([generation, sequence], [GENERATION - 1, 70]);
      assertEquals(
        [0, 1, 2, 3].map((block) => node.read(block)),
        [0xaa, 0x11, 0x12, 0x13],
        `node ${node.id}`,
      );
    }
    assertEquals(cluster.arena.usedBytes, 0);
  });
}

Deno.test("what a snapshot held does not go from one node to the next, when the one that was copied from dies", () => {
  const layers = [
    { id: LOWER, parent: 0, absorbedBy: null },
    { id: UPPER, parent: LOWER, absorbedBy: null },
  ];
  const disk = { layers: [UPPER, LOWER], settled: GENERATION - 2 };
  const cluster = new Cluster({ layers, disk });
  const [holder, other] = cluster.nodes;
  for (const { id, store } of cluster.nodes) {
    const lower = store.chunk(LOWER, CHUNK);
    [lower.generation, lower.sequence] = [GENERATION - 4, 9];
    for (const block of [0, 1, 2, 3]) lower.blocks.set(block, 0x10 + block);
    // The last write under the lease before has come to one node only.
    if (id !== 3) continue;
    const upper = store.chunk(UPPER, CHUNK);
    [upper.generation, upper.sequence] = [GENERATION - 1, 70];
    upper.blocks.set(0, 0xaa);
  }
  holder.core.openDisk(1, GENERATION);
  // The holder's own copy is slow, that of another node is not.
  const isRead = ({ head }: Sent) => head.type === MessageType.Read;
  const isSlow = (sent: Sent, from: number) => from === 1 && isRead(sent);
  let reads = 0;
  cluster.pass((sent) => isRead(sent) && ++reads === 2, isSlow);
  const merging = [{ ...layers[0], absorbedBy: [] }, layers[1]];
  cluster.setMap({ layers: merging, disk, epoch: EPOCH + 1 });
  const isCopied = () => other.store.chunk(UPPER, CHUNK).generation === GENERATION - 1;
  cluster.pass(isCopied, isSlow);
  assertEquals([isCopied(), holder.core.router(1).isOpen], [true, false]);
  const group = { inSync: [1, 2], changedEpoch: EPOCH + 2 };
  cluster.setMap({ layers: merging, disk, group, down: [3], epoch: EPOCH + 2 });
  cluster.pass(() => false, ({ link }, from) => from === 3 || link === 3);
  assertEquals(holder.core.router(1).isOpen, true);
  for (const node of [holder, other]) {
    const held = [0, 1, 2, 3].map((block) => node.read(block));
    assertEquals(held, [0xaa, 0x11, 0x12, 0x13], `node ${node.id}`);
  }
});
