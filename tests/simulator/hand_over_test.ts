/**
 * What a disk rests for when its guest moves between hosts that are well: in virtual time, so that nothing but waits counts.
 *
 * Calls between the two threads of a node take up to a millisecond there, and messages up to one.
 *
 * @module
 */
import { assert, assertEquals } from "@std/assert/mod.js";
import { BLOCK_BYTES } from "../../agent/base/limits.ts";
import { BlockKind, BlockRequest } from "../../agent/blk/target.ts";
import type { ClusterMap } from "../../agent/map/map.ts";
import type { Volume } from "../../agent/volume/volume.ts";
import { Network } from "./network.ts";
import { GUEST_OFFSET, type NodeWatcher, SimNode } from "./node.ts";
import { World } from "./world.ts";

const DISK = 1;
/** How long a write of the disks takes, and that of one that is slow. */
const DISK_MS = 4, SLOW_DISK_MS = 20;
/** Longest rest: about one round of consensus. Two of them take more. */
const PAUSE_MS_MAX = 20;
/** The same where one node has a slow disk: with three copies of the log, a round waits for it where its node leads, or is to have the disk. */
const PAUSE_SLOW_MS_MAX = 100;

/** Three nodes that are well, and a disk with three copies. */
class Cluster implements NodeWatcher {
  readonly world: World;
  readonly nodes: SimNode[] = [];
  map: ClusterMap | null = null;
  /** Node that was told last that the disk is its own. */
  grantedTo: SimNode | null = null;
  fences = 0;

  constructor(seed: number) {
    this.world = new World(seed);
    const network = new Network(this.world);
    for (let id = 1; id <= 3; id++) {
      const node = new SimNode(id, this.world, network, this, { index: id - 1, pgBits: 4 });
      this.nodes.push(node);
      node.start(id === 1 ? [] : [this.nodes[0].address]);
      this.until(() => node.incarnation > 0);
    }
    this.nodes[0].process!.control!.propose({
      kind: "create-disk",
      name: "web",
      sizeBytes: 64 * 1024 * 1024,
      nowMs: 0,
      copies: 3,
    });
    this.until(() =>
      this.map!.voters.length === 3 && this.map!.pools.length > 0 &&
      this.map!.pools.every(({ pgs }) => pgs.every(({ inSync }) => inSync.length === 3))
    );
  }

  note(): void {}
  mapChanged(_node: SimNode, map: ClusterMap): void {
    this.map = map;
  }
  granted(node: SimNode): void {
    this.grantedTo = node;
  }
  fenced(): void {
    this.fences++;
  }
  failed(_node: SimNode, reason: string): void {
    throw new Error(reason);
  }
  pathFailed(_node: SimNode, path: string): void {
    throw new Error(`data path ${path} has failed`);
  }
  assembled(): void {}

  until(isDone: () => boolean, mostMs = 60_000): void {
    for (const endMs = this.world.nowMs + mostMs; !isDone();) {
      if (this.world.nowMs >= endMs) throw new Error(`not within ${mostMs} ms`);
      this.world.run(this.world.nowMs + 0.25);
    }
  }

  attach(node: SimNode): Volume {
    const [disk] = this.map!.disks;
    return node.attach(DISK, disk.sizeBytes, disk.layers)!;
  }

  /** Writes a block; resolves in virtual time. */
  write(node: SimNode, volume: Volume): void {
    let result: number | null = null;
    const request = new BlockRequest({ requestDone: (done) => result = done.result }, 1);
    request.kind = BlockKind.Write;
    request.offsetBytes = 0;
    request.lengthBytes = BLOCK_BYTES;
    request.segmentCount = 1;
    request.segmentWindows[0] = 0;
    request.segmentOffsets[0] = GUEST_OFFSET;
    request.segmentLengths[0] = BLOCK_BYTES;
    volume.submit(request);
    node.turn();
    this.until(() => result !== null);
    assertEquals(result, 0);
  }
}

Deno.test("a disk goes to the host that waits for it, and takes its first write there, within a round of consensus", () => {
  for (let seed = 1; seed <= 4; seed++) {
    const cluster = new Cluster(seed);
    const { world } = cluster;
    let at = cluster.nodes[0];
    let volume = cluster.attach(at);
    cluster.until(() => cluster.grantedTo === at);
    cluster.write(at, volume);
    // Segments are made ready for writes when stores are open.
    world.run(world.nowMs + 1000);
    let longestMs = 0;
    // The first node leads; with seed 4 all are alike.
    for (const node of cluster.nodes) {
      node.diskDelayMs = seed === node.id ? SLOW_DISK_MS : DISK_MS;
    }
    for (let move = 0; move < 12; move++) {
      const next = cluster.nodes[(at.id + move % 2) % 3];
      // The other end may be there before this one has given the disk back, or come at about that time.
      const isWaiting = move % 3 !== 2;
      let nextVolume = isWaiting ? cluster.attach(next) : null;
      world.run(world.nowMs + world.random.below(500));
      assertEquals(cluster.grantedTo, at, "it waits");
      at.detach(DISK, volume);
      const releasedMs = world.nowMs;
      if (!isWaiting) world.run(world.nowMs + world.random.fraction() * 10);
      const wantedMs = world.nowMs;
      nextVolume ??= cluster.attach(next);
      cluster.until(() => cluster.grantedTo === next);
      cluster.write(next, nextVolume);
      longestMs = Math.max(longestMs, world.nowMs - (isWaiting ? releasedMs : wantedMs));
      const { generation, settled } = cluster.map!.disks[0];
      assert(settled >= generation - 1, "there was something to reconcile");
      [at, volume] = [next, nextVolume];
    }
    const mostMs = seed <= 3 ? PAUSE_SLOW_MS_MAX : PAUSE_MS_MAX;
    assert(longestMs <= mostMs, `seed ${seed}: ${longestMs.toFixed(2)} ms`);
    assertEquals(cluster.fences, 0);
  }
});
