/**
 * Reads that the disk puts straight into guest memory: a volume over the real store on a simulated disk, and guests that do not
 * keep their hands off.
 *
 * @module
 */
import { assert, assertEquals } from "@std/assert/mod.js";
import { Arena } from "../../agent/base/arena.ts";
import { BLOCK_BYTES } from "../../agent/base/limits.ts";
import { Prng } from "../../agent/base/prng.ts";
import { BlockKind, BlockRequest } from "../../agent/blk/target.ts";
import { TransferPool } from "../../agent/volume/transfer_pool.ts";
import { Volume } from "../../agent/volume/volume.ts";
import { Bench, fillBlock, makeDisk, SMALL, stampOf } from "../store/harness.ts";

const EIO = 5, EBADMSG = 74;
const MIB = 1024 * 1024;
/** Above the store's arena and the harness's own buffers. */
const BUFFERS_AT = 24 * MIB;
const BUFFERS_BYTES = 4 * MIB;
const GUEST_AT = 32 * MIB;
/** What the harness makes the words of a block differ by. */
const STEP = 0x01000193;
/** What buffers hold that nobody has used. */
const UNUSED = 0xee;

/** A place in guest memory and its bytes. */
type Segment = readonly [offset: number, length: number];

class World {
  readonly bench: Bench;
  readonly volume: Volume;
  /** Called when a read of the disk has ended, before the store looks at it. */
  beforeLook: () => void = () => {};

  constructor(seed = 1) {
    const random = new Prng(seed);
    this.bench = new Bench(0, makeDisk(0, random.fork(), SMALL), random.fork(), SMALL);
    const { bench } = this;
    bench.format();
    bench.mustOpen();
    bench.createLayer(1);
    // What it does for itself ends before anybody listens.
    bench.until(() => bench.store.idle, "rest");
    bench.disk.listener = {
      diskDone: (token, result) => {
        this.beforeLook();
        bench.store.diskDone(token, result);
      },
    };
    const arena = new Arena(BUFFERS_BYTES);
    const pool = new TransferPool({
      allocate: (length) => arena.allocate(length) + BUFFERS_AT,
      release: (offset, length) => arena.release(offset - BUFFERS_AT, length),
    });
    this.volume = new Volume({
      sizeBytes: 64 * MIB,
      serial: "test",
      layers: [1],
      windows: [bench.window],
      pool,
      sink: bench.store,
    });
    bench.window.bytes.fill(UNUSED, BUFFERS_AT, BUFFERS_AT + BUFFERS_BYTES);
  }

  /** Reads `count` blocks from `block` on into guest memory; the request's result. */
  read(block: number, count: number, segments: readonly Segment[]): number {
    let isDone = false;
    const request = new BlockRequest({ requestDone: () => isDone = true });
    request.kind = BlockKind.Read;
    request.offsetBytes = block * BLOCK_BYTES;
    request.lengthBytes = count * BLOCK_BYTES;
    for (const [offset, length] of segments) {
      request.segmentOffsets[request.segmentCount] = offset;
      request.segmentLengths[request.segmentCount++] = length;
    }
    this.volume.submit(request);
    this.bench.until(() => isDone, "the read");
    return request.result;
  }

  /** Stamp of the guest's block at `offset`. */
  stampAt(offset: number): number {
    return stampOf(this.bench.window.u32, offset >>> 2, STEP);
  }

  stampsAt(offset: number, count: number): number[] {
    return Array.from({ length: count }, (_, i) => this.stampAt(offset + i * BLOCK_BYTES));
  }

  /** Blocks of the transfers' buffers that something was put into. */
  get buffersUsed(): number {
    let used = 0;
    const { bytes } = this.bench.window;
    for (let at = BUFFERS_AT; at < BUFFERS_AT + BUFFERS_BYTES; at += BLOCK_BYTES) {
      if (bytes[at] !== UNUSED || bytes[at + 4000] !== UNUSED) used++;
    }
    return used;
  }

  get damageCount(): number {
    return this.bench.store.stats().damageCount;
  }

  /** Byte offset on the disk of the block with a stamp. */
  placeOf(stamp: number): number {
    const block = new Uint8Array(BLOCK_BYTES);
    fillBlock(new Uint32Array(block.buffer), 0, stamp, STEP);
    const { disk } = this.bench;
    for (let at = disk.sizeBytesMax - BLOCK_BYTES; at > 0; at -= BLOCK_BYTES) {
      if (disk.peek(at, 64).every((byte, i) => byte === block[i])) return at;
    }
    throw new Error(`stamp ${stamp} is not on the disk`);
  }
}

function stamps(first: number, count: number): number[] {
  return Array.from({ length: count }, (_, i) => first + i);
}

for (const [name, count] of [["direct", 2], ["positional", 16]] as const) {
  Deno.test(`whole blocks go from the disk to the guest, and through no buffer (${name} checksums)`, () => {
    const world = new World();
    world.bench.write(1, 0, 10, stamps(100, count));
    world.bench.write(1, 0, 10 + count + 3, stamps(500, count));
    world.bench.window.bytes.fill(0x55, GUEST_AT, GUEST_AT + MIB);
    // Nothing was ever written to the two blocks before and the three between.
    const length = (2 + count + 3 + count) * BLOCK_BYTES;
    // Three places, the second above the third.
    const [a, b] = [GUEST_AT, GUEST_AT + 512 * 1024];
    const middle = b + 256 * 1024;
    const segments: Segment[] = [
      [a, BLOCK_BYTES],
      [middle, BLOCK_BYTES * (1 + count)],
      [b, length - BLOCK_BYTES * (2 + count)],
    ];
    assertEquals(world.read(8, length / BLOCK_BYTES, segments), 0);
    assertEquals(world.stampAt(a), 0);
    assertEquals(world.stampsAt(middle, 1 + count), [0, ...stamps(100, count)]);
    assertEquals(world.stampsAt(b, 3 + count), [0, 0, 0, ...stamps(500, count)]);
    assertEquals(world.buffersUsed, 0);
    assertEquals(world.bench.window.bytes[a + BLOCK_BYTES], 0x55, "written past the place");
  });

  Deno.test(`a guest that writes to its buffer during a read harms nobody (${name} checksums)`, () => {
    const world = new World();
    world.bench.write(1, 0, 10, stamps(100, count));
    const { bytes } = world.bench.window;
    let strokes = 1;
    world.beforeLook = () => {
      if (strokes-- > 0) bytes[GUEST_AT + BLOCK_BYTES + 77] ^= 1;
    };
    assertEquals(world.read(10, count, [[GUEST_AT, count * BLOCK_BYTES]]), 0);
    assertEquals(world.stampsAt(GUEST_AT, count), stamps(100, count));
    assert(world.buffersUsed >= 1, "it was read again, into a buffer");
    assertEquals(world.damageCount, 0);
    // All of it, whenever anything was read.
    world.beforeLook = () => bytes.fill(0xaa, GUEST_AT, GUEST_AT + count * BLOCK_BYTES);
    assertEquals(world.read(10, count, [[GUEST_AT, count * BLOCK_BYTES]]), 0);
    assertEquals(world.damageCount, 0);
    world.beforeLook = () => {};
    assertEquals(world.bench.read([1], 0, 10, count), stamps(100, count));
  });

  Deno.test(`a bad block is refused and noted, and the guest does not get its bytes (${name} checksums)`, () => {
    const world = new World();
    world.bench.write(1, 0, 10, stamps(100, count));
    world.bench.disk.flipBit(world.placeOf(101) + 3000, 5);
    assertEquals(world.read(10, count, [[GUEST_AT, count * BLOCK_BYTES]]), -EBADMSG);
    assertEquals(world.stampAt(GUEST_AT + BLOCK_BYTES), 0);
    assertEquals(world.damageCount, 1);
    const { damage } = world.bench.store.stats();
    assertEquals([damage[0].layer, damage[0].chunk, damage[0].block], [1, 0, 11]);
    // The others are as good as before.
    assertEquals(world.read(10, 1, [[GUEST_AT, BLOCK_BYTES]]), 0);
    assertEquals(world.stampAt(GUEST_AT), 100);
  });
}

Deno.test("a read that fails once is read again; one that goes on failing is an error", () => {
  const world = new World();
  world.bench.write(1, 0, 0, stamps(100, 3));
  let failures = 1;
  world.bench.disk.faults = { fail: (kind) => kind === "read" && failures-- > 0 ? -EIO : 0 };
  assertEquals(world.read(0, 3, [[GUEST_AT, 3 * BLOCK_BYTES]]), 0);
  assertEquals(world.stampsAt(GUEST_AT, 3), stamps(100, 3));
  failures = 100;
  assertEquals(world.read(0, 3, [[GUEST_AT, 3 * BLOCK_BYTES]]), -EIO);
});

Deno.test("places that no disk could write to, and parts of blocks, go through the buffer", () => {
  const world = new World();
  world.bench.write(1, 0, 0, stamps(100, 4));
  assertEquals(world.read(0, 4, [[GUEST_AT + 512, 4 * BLOCK_BYTES]]), 0);
  assertEquals(world.stampsAt(GUEST_AT + 512, 4), stamps(100, 4));
  assertEquals(world.buffersUsed, 4);
  const cut: Segment[] = [[GUEST_AT, 512], [GUEST_AT + 512, 4 * BLOCK_BYTES - 512]];
  world.bench.window.bytes.fill(0, GUEST_AT, GUEST_AT + MIB);
  assertEquals(world.read(0, 4, cut), 0);
  assertEquals(world.stampsAt(GUEST_AT, 4), stamps(100, 4));
});

Deno.test("whatever the places are and whatever the guest does, a read that succeeds is right where it was left alone", () => {
  for (let seed = 1; seed <= 12; seed++) {
    const world = new World(seed);
    const random = new Prng(seed * 1000);
    const model = new Uint32Array(48);
    const { bytes } = world.bench.window;
    for (let i = 0; i < 40; i++) {
      const block = random.below(48);
      const length = Math.min(48 - block, 1 + random.below(14));
      const values = stamps(1 + i * 100, length);
      world.bench.write(1, 0, block, values);
      model.set(values, block);
      const first = random.below(48);
      const count = 1 + random.below(48 - first);
      // Places in any order, in pieces of one block or several.
      const places = random.shuffle(Array.from({ length: 64 }, (_, p) => p)).slice(0, count);
      const segments: Segment[] = places.map((p) => [GUEST_AT + p * BLOCK_BYTES, BLOCK_BYTES]);
      const touched = random.chance(0.5) ? places[random.below(count)] : -1;
      world.beforeLook = () => {
        if (touched < 0 || random.chance(0.5)) return;
        bytes[GUEST_AT + touched * BLOCK_BYTES + random.below(BLOCK_BYTES)] ^= 1 +
          random.below(255);
      };
      assertEquals(world.read(first, count, segments), 0, `seed ${seed}`);
      world.beforeLook = () => {};
      for (let p = 0; p < count; p++) {
        if (places[p] === touched) continue;
        const stamp = world.stampAt(GUEST_AT + places[p] * BLOCK_BYTES);
        assertEquals(stamp, model[first + p], `seed ${seed}: block ${first + p}`);
      }
      assertEquals(world.damageCount, 0);
    }
  }
});
