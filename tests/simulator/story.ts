/**
 * A cluster in which what happens is told step by step instead of drawn by chance: the same real code, and the checkers of
 * the random runs.
 *
 *     three nodes, the first of which leads ─▶ one disk, with a copy on each ─▶ sessions that write and read single blocks
 *
 * The seed still decides how long messages and disks take, a millisecond or so; no story may depend on it.
 *
 * @module
 */
import { BLOCK_BYTES, CHUNK_BYTES } from "../../agent/base/limits.ts";
import { BlockKind, BlockRequest, type BlockRequestOwner } from "../../agent/blk/target.ts";
import type { DiskEntry, MapCommand } from "../../agent/map/map.ts";
import type { GroupView } from "../../agent/replication/view.ts";
import type { Volume } from "../../agent/volume/volume.ts";
import { Simulation, type SimulationOptions } from "./cluster.ts";
import { DiskOracle } from "./guest.ts";
import { GUEST_OFFSET, SimNode } from "./node.ts";

const COPIES = 3;
/** Few groups: all of them are listed at once by whoever catches up. */
const PG_BITS = 2;
const CHUNKS = 8;
/** A step shorter than anything that takes several messages. */
const STEP_MS = 0.1;
/** How long anything may take that the story waits for. */
const WAIT_MS_MAX = 20_000;

/** See the head of the file. */
export class Story extends Simulation {
  /** What is known of the disk, whoever has it open. */
  readonly oracle: DiskOracle;

  constructor(seed: number, sabotage?: SimulationOptions["sabotage"]) {
    super({ seed, sabotage });
    const sizeBytes = CHUNKS * CHUNK_BYTES;
    for (let id = 1; id <= COPIES; id++) {
      const node = new SimNode(id, this.world, this.network, this, {
        index: id - 1,
        pgBits: PG_BITS,
      });
      this.nodes.push(node);
      node.start(id === 1 ? [] : [this.nodes[0].address]);
      this.waitFor(`node ${id} belongs`, () => node.incarnation > 0);
      // From the first on: each that follows joins all groups, so in each of them they stand in this order.
      if (id === 1) {
        this.ask({ kind: "create-disk", name: "disk", sizeBytes, nowMs: 0, copies: COPIES });
      }
      this.waitFor("every group is whole", () => this.isQuiet());
    }
    this.oracle = new DiskOracle(this.disk.id, "disk", sizeBytes, this.world.random.fork());
    this.oracles.push(this.oracle);
  }

  /** Every group has its replicas where they belong, in sync, and every data worker knows. */
  isQuiet(): boolean {
    return this.isWhole() &&
      this.nodes.every(({ process }) => {
        const data = process?.data;
        return data?.hasMap === true && data.view.epoch === this.map!.epoch;
      });
  }

  /** The disk, by the newest map. */
  get disk(): DiskEntry {
    return this.map!.disks[0];
  }

  /** The group of a place of the oracle, as a node's data worker knows it. */
  groupOf(node: SimNode, place: number): GroupView {
    const { view } = node.process!.data!;
    return view.groupOf(view.disk(this.disk.id)!, this.chunkOf(place));
  }

  /** The chunk that a place of the oracle is in. */
  chunkOf(place: number): number {
    return Math.floor(this.oracle.places[place] / CHUNK_BYTES);
  }

  /** Writes that a node's replica has refused because of their lease or their epoch. */
  refusedBy(node: SimNode): number {
    return node.process!.data!.status.replica.stale;
  }

  /** Has the leader propose something, and waits until that is in the map. */
  ask(command: MapCommand): void {
    let isDone = false;
    this.note(null, "asked for", { ...command });
    this.nodes[0].process!.control!.propose(command, (result) => {
      if (!result.ok) throw new Error(`${command.kind} refused: ${result.error.message}`);
      isDone = true;
    });
    this.waitFor(`${command.kind} is done`, () => isDone);
  }

  /** The leader takes a node for dead, which runs on. */
  takeForDead(node: SimNode): void {
    const { incarnation } = this.map!.nodes.find(({ id }) => id === node.node)!;
    this.ask({ kind: "node-down", node: node.node, incarnation, nowMs: 0 });
  }

  /** Whether the newest map has a node as one that is up. */
  isUp(node: SimNode): boolean {
    return this.map!.nodes.find(({ id }) => id === node.node)!.state === "up";
  }

  /** Nothing of control and gossip gets to a node; what it says itself is heard. */
  cutOff(node: SimNode): void {
    for (const other of this.nodes) {
      if (other !== node) this.network.cut.add(`${other.id}>${node.id}`);
    }
  }

  /** Lets time pass. */
  pass(forMs: number): void {
    this.world.run(this.world.nowMs + forMs);
  }

  /** Lets time pass in steps so short that nothing happens between what is waited for and what comes next in the story. */
  waitFor(what: string, isDone: () => boolean, mostMs = WAIT_MS_MAX): void {
    const endMs = this.world.nowMs + mostMs;
    while (!isDone()) {
      if (this.world.nowMs >= endMs) throw new Error(`${what}: not within ${mostMs} ms`);
      this.pass(STEP_MS);
    }
  }

  /** A guest on this node opens the disk; waits for the lease. */
  open(node: SimNode): Session {
    const volume = node.attach(this.disk.id, this.disk.sizeBytes, this.disk.layers)!;
    this.waitFor(`node ${node.id} has the lease`, () => volume.generation > 0);
    return new Session(this, node, volume);
  }
}

/** A write of a story. */
export interface StoryWrite {
  /** What was written: no other write has the same value. */
  readonly value: number;
  readonly isDone: boolean;
}

/** A guest that does as it is told, one block at a time. What it sees goes to the oracle, which throws when that cannot be. */
export class Session implements BlockRequestOwner {
  readonly #story: Story;
  readonly #done = new Map<BlockRequest, () => void>();
  #requests = 0;

  constructor(story: Story, readonly node: SimNode, readonly volume: Volume) {
    this.#story = story;
  }

  /** Starts to write a block of a place of the oracle. */
  write(place: number, block: number): StoryWrite {
    const { oracle, world } = this.#story;
    const write = { value: oracle.nextId(), isDone: false };
    oracle.historyOf(place, block).writeStarts(write.value, world.nowMs);
    const request = this.#request(BlockKind.Write, place, block, () => {
      oracle.acknowledged(write.value, world.nowMs, place, block, this.volume.generation, false);
      write.isDone = true;
    });
    const at = request.segmentOffsets[0] >>> 2;
    this.node.window.u32.fill(write.value, at, at + BLOCK_BYTES / 4);
    this.#submit(request);
    return write;
  }

  /** Writes a block, and waits for it. */
  writeNow(place: number, block: number): StoryWrite {
    const write = this.write(place, block);
    this.#story.waitFor(`write ${write.value} is done`, () => write.isDone);
    return write;
  }

  /** Makes what is written durable on every replica, and waits for it. */
  flush(): void {
    const { oracle, world } = this.#story;
    const startMs = world.nowMs;
    let isDone = false;
    const request = this.#request(BlockKind.Flush, 0, 0, () => isDone = true);
    this.#submit(request);
    this.#story.waitFor("what is written is flushed", () => isDone);
    oracle.flushed(startMs, this.volume.generation);
  }

  /** Reads a block, and waits for it. Throws when no single disk could have given what comes. */
  read(place: number, block: number): number {
    const { oracle, world } = this.#story;
    const startMs = world.nowMs;
    let isDone = false;
    const request = this.#request(BlockKind.Read, place, block, () => isDone = true);
    this.#submit(request);
    this.#story.waitFor("a block is read", () => isDone);
    const value = this.node.window.u32[request.segmentOffsets[0] >>> 2];
    this.#story.note(this.node, `reads ${value} at place ${place}, block ${block}`);
    oracle.historyOf(place, block).read(value, startMs, world.nowMs);
    return value;
  }

  /** Gives the disk back in good order. */
  close(): void {
    if (this.#done.size > 0) throw new Error("story: a session ends with requests under way");
    this.node.detach(this.#story.disk.id, this.volume);
    this.#story.waitFor("the lease is given back", () => this.#story.disk.lease === null);
  }

  #request(kind: BlockKind, place: number, block: number, done: () => void): BlockRequest {
    const request = new BlockRequest(this, 1);
    request.kind = kind;
    request.offsetBytes = this.#story.oracle.places[place] + block * BLOCK_BYTES;
    request.lengthBytes = BLOCK_BYTES;
    request.segmentCount = 1;
    request.segmentOffsets[0] = GUEST_OFFSET + this.#requests++ * BLOCK_BYTES;
    request.segmentLengths[0] = BLOCK_BYTES;
    this.#done.set(request, done);
    return request;
  }

  #submit(request: BlockRequest): void {
    this.volume.submit(request);
    this.node.turn();
  }

  /** {@inheritDoc BlockRequestOwner.requestDone} */
  requestDone(request: BlockRequest): void {
    const done = this.#done.get(request)!;
    this.#done.delete(request);
    if (request.result !== 0) throw new Error(`story: a guest saw an I/O error ${request.result}`);
    done();
  }
}
