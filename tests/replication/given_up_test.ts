/**
 * What becomes of a copy that an opening has given up: several nodes' cores together.
 *
 * @module
 */
import { assertEquals } from "@std/assert/mod.js";
import { ECANCELED } from "../../agent/platform/platform.ts";
import { MessageType } from "../../agent/replication/messages.ts";
import { type Operation, OperationKind } from "../../agent/store/operation.ts";
import { Cluster, type Node } from "./cores.ts";
import { EPOCH, FakeStore, GENERATION, type Sent } from "./harness.ts";

const LAYER = 1, CHUNK = 3, BLOCK = 5;

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

/** The block on a node. */
function blockOf({ store }: Node): number | "zero" | undefined {
  return store.chunk(LAYER, CHUNK).blocks.get(BLOCK);
}

Deno.test("what a copy that was given up has in its store's queue does not come to light when the disk is open", () => {
  // The lease before this one was not given back, and its last write has come to one node only.
  const disk = { settled: GENERATION - 2 };
  const cluster = new Cluster({ disk, group: { inSync: [2, 1, 3] } }, () => new FullStore(LAYER));
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
  cluster.pass({ isLost: isSlow });
  assertEquals([other.store.held, holder.core.router(1).isOpen], [1, false]);
  const group = { inSync: [2, 1], changedEpoch: EPOCH + 1 };
  cluster.setMap({ disk, group, down: [3], epoch: EPOCH + 1 });
  cluster.pass({ isLost: ({ link }, from) => from === 3 || link === 3 });
  assertEquals(holder.core.router(1).isOpen, true);
  const opened = [blockOf(holder), blockOf(other)];
  assertEquals(opened, [0x11, 0x11]);
  // Something is discarded.
  other.store.isWithoutSpace = false;
  cluster.pass({ isLost: ({ link }, from) => from === 3 || link === 3 });
  assertEquals([blockOf(holder), blockOf(other)], opened);
});
