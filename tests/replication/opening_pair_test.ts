/**
 * A snapshot goes while its disk is being brought in line after an unclean hand-over: several nodes' cores together.
 *
 * @module
 */
import { assertEquals } from "@std/assert/mod.js";
import { MessageType } from "../../agent/replication/messages.ts";
import { Cluster, type Node } from "./cores.ts";
import { EPOCH, FakeStore, GENERATION, type Sent } from "./harness.ts";

/** The layer of a snapshot, and the disk's newest one above it. */
const LOWER = 1, UPPER = 2;
const CHUNK = 3;

const makeStore = () => new FakeStore(LOWER, UPPER);

/** What is read of a block of the disk on a node. */
function read({ store }: Node, block: number): number | "zero" | undefined {
  for (const layer of [UPPER, LOWER]) {
    const found = store.chunk(layer, CHUNK).blocks.get(block);
    if (found !== undefined) return found;
  }
  return undefined;
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
    const cluster = new Cluster({ layers, disk }, makeStore);
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
    cluster.pass({ until: ({ head }) => head.type === MessageType.Read });
    // The snapshot is deleted: its layer is merged into the one above.
    const merging = [{ ...layers[0], absorbedBy: [] }, layers[1]];
    cluster.setMap({ layers: merging, disk, epoch: EPOCH + 1 });
    cluster.pass();
    assertEquals(holder.core.router(1).isOpen, true);
    for (const node of cluster.nodes) {
      const { generation, sequence } = node.store.chunk(UPPER, CHUNK);
      assertEquals([generation, sequence], [GENERATION - 1, 70]);
      assertEquals(
        [0, 1, 2, 3].map((block) => read(node, block)),
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
  const cluster = new Cluster({ layers, disk }, makeStore);
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
  cluster.pass({ until: (sent) => isRead(sent) && ++reads === 2, isLost: isSlow });
  const merging = [{ ...layers[0], absorbedBy: [] }, layers[1]];
  cluster.setMap({ layers: merging, disk, epoch: EPOCH + 1 });
  const isCopied = () => other.store.chunk(UPPER, CHUNK).generation === GENERATION - 1;
  cluster.pass({ until: isCopied, isLost: isSlow });
  assertEquals([isCopied(), holder.core.router(1).isOpen], [true, false]);
  const group = { inSync: [1, 2], changedEpoch: EPOCH + 2 };
  cluster.setMap({ layers: merging, disk, group, down: [3], epoch: EPOCH + 2 });
  cluster.pass({ isLost: ({ link }, from) => from === 3 || link === 3 });
  assertEquals(holder.core.router(1).isOpen, true);
  for (const node of [holder, other]) {
    const held = [0, 1, 2, 3].map((block) => read(node, block));
    assertEquals(held, [0xaa, 0x11, 0x12, 0x13], `node ${node.id}`);
  }
});
