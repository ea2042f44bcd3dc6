/**
 * Writes whose order can be seen in what is left of them, for tests of snapshots under a writer.
 *
 *     chain 0    write 1 ▶ first disk ▶ answered ▶ second disk ▶ answered ▶ write 2 ▶ first disk …
 *     chain 1    the same, beside it, in blocks of its own
 *
 * Write `n` of a chain goes to block `n % BLOCKS` of the chain, on each disk in turn, each after the one before was answered. So
 * at any moment, and in any snapshot of all disks together, each chain's blocks are those of its first `top` writes: there is
 * no later write without all earlier ones, and a later disk is at most one write behind an earlier one, and never before it.
 *
 * @module
 */
import { assert, assertEquals } from "@std/assert/mod.js";
import { FrontEnd } from "../../agent/frontend/front_end.ts";
import { RequestType, SECTOR_BYTES, Status } from "../../agent/frontend/virtio_blk.ts";

const BLOCK_BYTES = 4096;
/** Chains, and blocks of each; with {@linkcode STRIDE_BYTES} between them they are spread over many chunks. */
const CHAINS = 8, BLOCKS = 32;
const STRIDE_BYTES = 512 * 1024;
/** Completions are looked for at this interval, between which others may work. */
const TURN_MS = 1;
/** Between two writes of a chain: a layer between two snapshots is to hold some of its blocks, not all. */
const PAUSE_MS = 25;
/** Writes of each chain after which all of its blocks have been written. */
export const ORDERED_ROUND = BLOCKS;

/** How large the disks have to be. */
export const ORDERED_BYTES = CHAINS * BLOCKS * STRIDE_BYTES;
/** Blocks that are written on each disk, after enough writes. */
export const ORDERED_BLOCKS = CHAINS * BLOCKS;

/** A number for each chain: that of a write. */
export type Tops = readonly number[];

/** See the head of the file. */
export class OrderedWriter {
  /** Writes of each chain that were answered on all disks, and that were begun on the first. */
  readonly answered = new Array<number>(CHAINS).fill(0);
  readonly begun = new Array<number>(CHAINS).fill(0);
  /** The longest that one write took since this was set to 0. */
  longestMs = 0;
  #isEnding = false;
  #running: Promise<unknown> = Promise.resolve();
  #disks: readonly FrontEnd[] = [];
  /** Writes under way on each disk, by the slots of its queue. */
  #slots: Map<number, { readonly chain: number; readonly startMs: number }>[] = [];
  /** Chains that wait for their next write, the first to come first. */
  #due: { readonly chain: number; readonly atMs: number }[] = [];
  #moved = Promise.withResolvers<void>();

  /** Writes on, from what was answered last. */
  async start(sockets: readonly string[]): Promise<void> {
    this.#isEnding = false;
    this.#disks = await Promise.all(
      sockets.map((socket) => FrontEnd.connect({ socket, depth: CHAINS, inflight: true })),
    );
    this.#running = this.#run();
    this.#running.catch(() => {}); // whoever ends it is told
  }

  async #run(): Promise<void> {
    this.#slots = this.#disks.map(() => new Map());
    this.#due = [];
    for (let chain = 0; chain < CHAINS; chain++) this.#next(chain, 0);
    const isWaiting = () => !this.#isEnding && this.#due.length > 0;
    while (this.#slots.some((slots) => slots.size > 0) || isWaiting()) {
      while (isWaiting() && this.#due[0].atMs <= performance.now()) {
        this.#next(this.#due.shift()!.chain, 0);
      }
      for (const [at, disk] of this.#disks.entries()) {
        disk.checkAlive();
        this.#reap(disk, at);
        disk.queues[0].publish();
      }
      await new Promise((resolve) => setTimeout(resolve, TURN_MS));
    }
  }

  #reap(disk: FrontEnd, at: number): void {
    const [queue] = disk.queues;
    for (let slot = queue.reap(); slot >= 0; slot = queue.reap()) {
      const { chain, startMs } = this.#slots[at].get(slot)!;
      this.#slots[at].delete(slot);
      const status = queue.status(slot);
      queue.releaseSlot(slot);
      assertEquals(status, Status.Ok);
      this.longestMs = Math.max(this.longestMs, performance.now() - startMs);
      if (at + 1 < this.#disks.length) {
        this.#next(chain, at + 1);
        continue;
      }
      this.answered[chain]++;
      this.#due.push({ chain, atMs: performance.now() + PAUSE_MS });
      this.#moved.resolve();
      this.#moved = Promise.withResolvers();
    }
  }

  /** Does a chain's next write on one of the disks. */
  #next(chain: number, at: number): void {
    const number = this.answered[chain] + 1;
    this.begun[chain] = Math.max(this.begun[chain], number);
    const disk = this.#disks[at];
    const [queue] = disk.queues;
    const slot = queue.takeSlot();
    assert(slot >= 0, "a chain has one request at a time");
    const first = queue.dataOffset(slot) >>> 2;
    disk.memory.u32.fill(number, first, first + BLOCK_BYTES / 4);
    this.#slots[at].set(slot, { chain, startMs: performance.now() });
    const offsetBytes = offsetOf(chain, number % BLOCKS);
    queue.submit(slot, RequestType.Out, offsetBytes / SECTOR_BYTES, BLOCK_BYTES);
  }

  /** Resolves when each chain has done so many more writes; rejects when one of them cannot go on. */
  async more(writes: number): Promise<void> {
    const wanted = this.answered.map((number) => number + writes);
    while (!wanted.every((number, chain) => this.answered[chain] >= number)) {
      await Promise.race([this.#moved.promise, this.#running]);
    }
  }

  /** Ends writing when all that was begun has been answered, and gives the disks back. */
  async stop(): Promise<void> {
    this.#isEnding = true;
    await this.#running;
    for (const disk of this.#disks) await disk.close();
  }

  /** The agent has died: what was begun may be there, or not. */
  async abandon(): Promise<void> {
    this.#isEnding = true;
    await this.#running.catch(() => {});
    for (const disk of this.#disks) disk.abort();
  }
}

function offsetOf(chain: number, block: number): number {
  return (chain * BLOCKS + block) * STRIDE_BYTES;
}

/**
 * Reads what is left of ordered writes, and checks that it is what some moment has left.
 *
 * @param sockets one for each disk, in the writer's order
 * @param bounds.from what is there at least: answered before that moment
 * @param bounds.to what may be there: begun before it was over
 * @returns for each disk the last write of each chain
 */
export async function readOrdered(
  sockets: readonly string[],
  { from, to }: { readonly from: Tops; readonly to: Tops },
): Promise<number[][]> {
  const perDisk: number[][] = [];
  for (const socket of sockets) {
    await using disk = await FrontEnd.connect({ socket, depth: CHAINS });
    const tops: number[] = [];
    for (let chain = 0; chain < CHAINS; chain++) tops.push(await readChain(disk, chain));
    perDisk.push(tops);
  }
  for (let chain = 0; chain < CHAINS; chain++) {
    const tops = perDisk.map((each) => each[chain]);
    const shown = `chain ${chain} is at ${tops.join(" and ")}: ${from[chain]} to ${to[chain]}`;
    assert(tops[0] <= to[chain], shown);
    tops.forEach((top, at) => {
      assert(top >= from[chain], shown);
      if (at > 0) assert(top <= tops[at - 1] && top >= tops[0] - 1, shown);
    });
  }
  return perDisk;
}

async function readChain(disk: FrontEnd, chain: number): Promise<number> {
  const values: number[] = [];
  const bytes = new Uint8Array(BLOCK_BYTES);
  for (let block = 0; block < BLOCKS; block++) {
    await disk.read(offsetOf(chain, block), bytes);
    const words = new Uint32Array(bytes.slice().buffer);
    assert(words.every((word) => word === words[0]), `block ${block} of chain ${chain} is mixed`);
    values.push(words[0]);
  }
  const top = Math.max(...values);
  const wanted = values.map((_, block) => {
    const back = (top - block) % BLOCKS;
    return Math.max(0, top - (back < 0 ? back + BLOCKS : back));
  });
  assertEquals(values, wanted, `chain ${chain}: an earlier write is missing`);
  return top;
}

/** Both bounds the same: exactly this. */
export function exactly(tops: Tops): { from: Tops; to: Tops } {
  return { from: tops, to: tops };
}
