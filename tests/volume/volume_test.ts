/**
 * The volume against a plain array of sectors, over a mock store that completes in random order.
 *
 * @module
 */
import { assertEquals } from "@std/assert/mod.js";
import { Prng } from "../../agent/base/prng.ts";
import { BLOCK_BYTES, CHUNK_BYTES, SECTOR_BYTES } from "../../agent/base/limits.ts";
import { BlockKind, BlockRequest, type BlockRequestOwner } from "../../agent/blk/target.ts";
import { EIO } from "../../agent/platform/platform.ts";
import { SimulatedMemory } from "../../agent/platform/simulated/memory.ts";
import { type Operation, OperationKind } from "../../agent/store/operation.ts";
import { TransferClass, TransferPool } from "../../agent/volume/transfer_pool.ts";
import { ReadOnlyVolume, Volume } from "../../agent/volume/volume.ts";
import { takeOne } from "./owner.ts";

/**
 * A store that keeps blocks in a map. Writes, frees and zeroings take effect when they complete, in the order in which
 * they were submitted (as the log applies them); reads complete whenever.
 */
class MockStore {
  readonly blocks = new Map<number, Uint8Array>();
  readonly pendingChanges: Operation[] = [];
  readonly pendingReads: Operation[] = [];
  /** Changes applied since the last completed sync. */
  unsynced = 0;
  submitted = 0;
  readonly sequences: number[] = [];
  failNext = false;

  constructor(readonly memory: SimulatedMemory, readonly random: Prng) {}

  submit(operation: Operation): void {
    this.submitted++;
    if (operation.kind === OperationKind.Read) this.pendingReads.push(operation);
    else {
      if (operation.kind !== OperationKind.Sync) this.sequences.push(operation.sequence);
      this.pendingChanges.push(operation);
    }
  }

  get pending(): number {
    return this.pendingChanges.length + this.pendingReads.length;
  }

  /** Completes one pending operation, chosen by the seed. */
  step(): void {
    const takeRead = this.pendingReads.length > 0 &&
      (this.pendingChanges.length === 0 || this.random.chance(0.5));
    if (takeRead) {
      const at = this.random.below(this.pendingReads.length);
      const [operation] = this.pendingReads.splice(at, 1);
      this.#read(operation);
      operation.owner.operationDone(operation);
    } else if (this.pendingChanges.length > 0) {
      const operation = this.pendingChanges.shift()!;
      operation.result = this.failNext ? -EIO : 0;
      if (!this.failNext) this.#change(operation);
      this.failNext = false;
      operation.owner.operationDone(operation);
    }
  }

  #read(operation: Operation): void {
    const { bytes, kernel } = this.memory.windows[0];
    operation.result = 0;
    if (operation.isPlaced && this.random.chance(0.8)) return this.#place(operation);
    for (let i = 0; i < operation.blockCount; i++) {
      const at = operation.buffer + i * BLOCK_BYTES;
      const block = this.#block(operation, i);
      if (block === undefined) bytes.fill(0, at, at + BLOCK_BYTES);
      else bytes.set(block, at);
    }
    // As the store does it, and sometimes does not: reads of nothing but zeros complete without the sink.
    operation.isTaken = operation.sink !== null && this.random.chance(0.8);
    if (!operation.isTaken) return;
    for (let i = 0; i < operation.blockCount; i++) {
      const sum = kernel.checksum(operation.buffer + i * BLOCK_BYTES, BLOCK_BYTES);
      if (this.random.chance(0.1)) operation.sink!.takeBlock(operation, i);
      assertEquals(operation.sink!.takeBlock(operation, i), sum);
    }
  }

  /** Puts blocks where they are wanted: those never written in any order, then runs of the others, then looks at all. */
  #place(operation: Operation): void {
    const { bytes, kernel } = this.memory.windows[0];
    const sink = operation.sink!;
    const vector = {
      count: 0,
      windows: new Uint16Array(256),
      offsets: new Uint32Array(256),
      lengths: new Uint32Array(256),
    };
    for (let i = 0; i < operation.blockCount;) {
      const isThere = this.#block(operation, i) !== undefined;
      let count = 1;
      while (
        i + count < operation.blockCount && this.random.chance(0.8) &&
        (this.#block(operation, i + count) !== undefined) === isThere
      ) count++;
      if (!isThere) sink.zeroBlocks(operation, i, count);
      else {
        sink.placeBlocks(operation, i, count, vector);
        let at = 0;
        for (let entry = 0; entry < vector.count; entry++) {
          for (let done = 0; done < vector.lengths[entry]; done += BLOCK_BYTES) {
            bytes.set(this.#block(operation, i + at++)!, vector.offsets[entry] + done);
          }
        }
        assertEquals(at, count);
      }
      i += count;
    }
    const zeros = this.memory.arena.allocate(BLOCK_BYTES);
    for (let i = 0; i < operation.blockCount; i++) {
      bytes.set(this.#block(operation, i) ?? new Uint8Array(BLOCK_BYTES), zeros);
      assertEquals(sink.checksumBlock(operation, i), kernel.checksum(zeros, BLOCK_BYTES));
    }
    this.memory.arena.release(zeros, BLOCK_BYTES);
    operation.isTaken = true;
  }

  #block(operation: Operation, index: number): Uint8Array | undefined {
    return this.blocks.get(operation.chunk * 1024 + operation.block + index);
  }

  #change(operation: Operation): void {
    const window = this.memory.windows[0];
    if (operation.kind === OperationKind.Sync) {
      this.unsynced = 0;
      return;
    }
    this.unsynced++;
    for (let i = 0; i < operation.blockCount; i++) {
      const key = operation.chunk * 1024 + operation.block + i;
      if (operation.kind === OperationKind.Write) {
        const at = operation.buffer + i * BLOCK_BYTES;
        assertEquals(operation.checksums[i], window.kernel.checksum(at, BLOCK_BYTES));
        this.blocks.set(key, window.bytes.slice(at, at + BLOCK_BYTES));
      } else this.blocks.delete(key);
    }
  }
}

const SIZE_BYTES = 3 * CHUNK_BYTES;
/** The part of the disk that the random requests use: around the first chunk boundary, so that they overlap often. */
const FIRST_SECTOR = CHUNK_BYTES / SECTOR_BYTES - 64;
const SECTORS = 128;

class Bench implements BlockRequestOwner {
  readonly memory = new SimulatedMemory();
  readonly random: Prng;
  readonly store: MockStore;
  readonly pool: TransferPool;
  readonly volume: Volume;
  readonly finished: BlockRequest[] = [];
  inSubmit = false;

  constructor(seed: number) {
    this.random = new Prng(seed);
    this.store = new MockStore(this.memory, this.random);
    this.pool = new TransferPool(this.memory.arena);
    this.volume = new Volume({
      sizeBytes: SIZE_BYTES,
      serial: "test",
      layers: [1],
      windows: this.memory.windows,
      pool: this.pool,
      sink: this.store,
    });
  }

  requestDone(request: BlockRequest): void {
    assertEquals(this.inSubmit, false, "a request finished inside submit()");
    this.finished.push(request);
  }

  /** Guest memory cut into random pieces; `bytes` lie there in order. */
  request(kind: BlockKind, offsetBytes: number, lengthBytes: number, guest: number): BlockRequest {
    const request = new BlockRequest(this);
    request.kind = kind;
    request.offsetBytes = offsetBytes;
    request.lengthBytes = lengthBytes;
    let left = kind === BlockKind.Read || kind === BlockKind.Write ? lengthBytes : 0;
    let at = guest;
    // Now and then of whole pages, as most guests do it.
    const unit = this.random.chance(0.4) ? BLOCK_BYTES : SECTOR_BYTES;
    while (left > 0) {
      const part = request.segmentCount > 900
        ? left
        : Math.min(left, unit * (1 + this.random.below(Math.min(Math.ceil(left / unit), 16))));
      request.segmentWindows[request.segmentCount] = 0;
      request.segmentOffsets[request.segmentCount] = at;
      request.segmentLengths[request.segmentCount] = part;
      request.segmentCount++;
      at += part + (this.random.chance(0.3) ? unit : 0);
      left -= part;
    }
    return request;
  }

  submit(request: BlockRequest): void {
    this.inSubmit = true;
    this.volume.submit(request);
    this.inSubmit = false;
  }

  fill(request: BlockRequest, value: (sector: number) => number): void {
    let sector = request.offsetBytes / SECTOR_BYTES;
    this.eachSector(request, (at) => {
      this.memory.windows[0].bytes.fill(value(sector++), at, at + SECTOR_BYTES);
    });
  }

  eachSector(request: BlockRequest, visit: (at: number) => void): void {
    for (let i = 0; i < request.segmentCount; i++) {
      for (let part = 0; part < request.segmentLengths[i]; part += SECTOR_BYTES) {
        visit(request.segmentOffsets[i] + part);
      }
    }
  }

  drain(): void {
    for (let i = 0; i < 100_000; i++) {
      this.pool.endTurn();
      if (this.store.pending === 0 && this.volume.inFlight === 0) return;
      this.store.step();
    }
    throw new Error(`the volume hangs with ${this.volume.inFlight} requests`);
  }
}

Deno.test("requests that share blocks but no sectors never disturb each other", () => {
  for (let seed = 1; seed <= 40; seed++) {
    const bench = new Bench(seed);
    // Two in five look for zeros, half of those above an older layer.
    bench.volume.detectZeroes = seed % 5 < 2;
    if (seed % 5 === 1) bench.volume.layers = [2, 1];
    const { random } = bench;
    const model = new Uint8Array(SECTORS);
    const busy = new Uint8Array(SECTORS);
    const underWay = new Map<BlockRequest, { first: number; count: number; value: number }>();
    let guest = bench.memory.guestOffset;
    const collect = () => {
      for (const request of bench.finished.splice(0)) {
        const { first, count, value } = underWay.get(request)!;
        underWay.delete(request);
        assertEquals(request.result, 0);
        for (let i = first; i < first + count; i++) busy[i] = 0;
        if (request.kind === BlockKind.Read) {
          let sector = first;
          bench.eachSector(request, (at) => {
            const bytes = bench.memory.windows[0].bytes;
            assertEquals(
              [bytes[at], bytes[at + SECTOR_BYTES - 1]],
              [model[sector], model[sector]],
              `seed ${seed}: sector ${sector}`,
            );
            sector++;
          });
        } else if (request.kind === BlockKind.Write) model.fill(value, first, first + count);
        else model.fill(0, first, first + count);
        if (request.kind !== BlockKind.Read && value === 0xff) {
          assertEquals(bench.store.unsynced, 0);
        }
      }
    };
    for (let i = 0; i < 600; i++) {
      const first = random.below(SECTORS);
      const count = 1 + random.below(Math.min(40, SECTORS - first));
      if (!busy.subarray(first, first + count).some((sector) => sector !== 0)) {
        const kind = random.pick([
          BlockKind.Read,
          BlockKind.Write,
          BlockKind.Write,
          BlockKind.WriteZeroes,
        ]);
        const request = bench.request(
          kind,
          (FIRST_SECTOR + first) * SECTOR_BYTES,
          count * SECTOR_BYTES,
          guest,
        );
        guest += 64 * 1024;
        if (guest > bench.memory.guestOffset + 60 * 1024 * 1024) guest = bench.memory.guestOffset;
        const value = random.chance(0.3) ? 0 : 1 + random.below(250);
        bench.fill(request, () => value);
        for (let s = first; s < first + count; s++) busy[s] = 1;
        underWay.set(request, { first, count, value });
        bench.submit(request);
      }
      for (let steps = random.below(4); steps > 0; steps--) bench.store.step();
      if (random.chance(0.3)) bench.pool.endTurn();
      collect();
    }
    bench.drain();
    collect();
    assertEquals(underWay.size, 0);
    assertEquals(bench.memory.arena.usedBytes, 0, "an arena buffer leaked");
    assertEquals(
      bench.store.sequences.every((n, i, all) => i === 0 || n > all[i - 1]),
      true,
      "sequence numbers must rise in the order in which writes reach the store",
    );
  }
});

Deno.test("what the guest changes after the copy does not reach the store", () => {
  const bench = new Bench(1);
  const request = bench.request(BlockKind.Write, 0, BLOCK_BYTES, bench.memory.guestOffset);
  bench.fill(request, () => 7);
  bench.submit(request);
  bench.fill(request, () => 9);
  bench.drain();
  assertEquals(bench.store.blocks.get(0)![100], 7);
});

Deno.test("service times are measured of the first requests after each timeSome(), and no others", () => {
  const bench = new Bench(3);
  let nowMs = 1000;
  let looks = 0;
  const volume = new Volume({
    sizeBytes: SIZE_BYTES,
    serial: "test",
    layers: [1],
    windows: bench.memory.windows,
    pool: bench.pool,
    sink: bench.store,
    clock: () => {
      looks++;
      return nowMs;
    },
  });
  const run = (count: number, tookMs: number) => {
    for (let i = 0; i < count; i++) {
      volume.submit(bench.request(BlockKind.Read, 0, BLOCK_BYTES, bench.memory.guestOffset));
      nowMs += tookMs;
      while (volume.inFlight > 0) {
        bench.pool.endTurn();
        bench.store.step();
      }
    }
  };
  run(5, 1);
  assertEquals([volume.counters.timedRequests, looks], [0, 0], "nobody has asked for it");
  volume.timeSome();
  run(40, 0.25);
  assertEquals([volume.counters.timedRequests, volume.counters.timedMs], [32, 8]);
  assertEquals([volume.counters.reads, looks], [45, 64], "the clock is not looked at beyond that");
  volume.timeSome();
  run(2, 3);
  assertEquals([volume.counters.timedRequests, volume.counters.timedMs], [34, 14]);
  bench.volume.timeSome();
  assertEquals(bench.volume.counters.timedRequests, 0, "without a clock nothing is measured");
});

Deno.test("a long request is cut at chunk boundaries and never exceeds its share of the arena", () => {
  const bench = new Bench(2);
  const requests: BlockRequest[] = [];
  for (let i = 0; i < 12; i++) {
    const request = bench.request(
      BlockKind.Write,
      CHUNK_BYTES / 2,
      CHUNK_BYTES,
      bench.memory.guestOffset,
    );
    requests.push(request);
    bench.submit(request);
  }
  assertEquals(bench.memory.arena.usedBytes <= 24 * 1024 * 1024, true);
  const read = bench.request(BlockKind.Read, 0, 4096, bench.memory.guestOffset);
  bench.submit(read);
  assertEquals(bench.store.pendingReads.length, 1, "reads go on while writes wait for room");
  for (const operation of bench.store.pendingChanges) {
    assertEquals(operation.block + operation.blockCount <= 1024, true);
  }
  bench.drain();
  assertEquals(bench.finished.length, 13);
  assertEquals(bench.memory.arena.usedBytes, 0);
});

Deno.test("a write with forceUnitAccess is done after a sync that covers it", () => {
  const bench = new Bench(3);
  const request = bench.request(BlockKind.Write, 512, 8192, bench.memory.guestOffset);
  request.forceUnitAccess = true;
  bench.submit(request);
  bench.drain();
  assertEquals(bench.finished, [request]);
  assertEquals(bench.store.unsynced, 0);
});

Deno.test("a write with forceUnitAccess gets its sync also where that has to wait for a transfer", () => {
  for (const kind of [BlockKind.Write, BlockKind.WriteZeroes]) {
    const bench = new Bench(3);
    const taken = [];
    for (;;) {
      const transfer = takeOne(bench.pool, TransferClass.Control, 0);
      if (transfer === null) break;
      taken.push(transfer);
    }
    // Of part of a block: not of the class that there is nothing of.
    const request = bench.request(kind, 512, 1024, bench.memory.guestOffset);
    request.forceUnitAccess = true;
    bench.submit(request);
    for (let i = 0; i < 10; i++) {
      bench.store.step();
      bench.pool.endTurn();
    }
    assertEquals([bench.store.unsynced, bench.finished.length], [1, 0], "it waits");
    for (const transfer of taken) bench.pool.release(transfer);
    assertEquals(bench.finished.length, 0, "it is not synced yet");
    bench.drain();
    assertEquals(bench.finished, [request]);
    assertEquals(bench.store.unsynced, 0);
    assertEquals([bench.volume.counters.flushes, bench.volume.inFlight], [0, 0]);
  }
});

Deno.test("discarding parts of blocks does nothing and still completes, also when nothing else is under way", () => {
  const bench = new Bench(4);
  const request = bench.request(BlockKind.Discard, 512, 1024, 0);
  request.forceUnitAccess = true;
  bench.submit(request);
  bench.drain();
  assertEquals(bench.finished, [request]);
  assertEquals(bench.volume.inFlight, 0);
});

Deno.test("a discard frees whole blocks; over older layers it hides them instead", () => {
  for (const layers of [[1], [2, 1]]) {
    const bench = new Bench(5);
    bench.volume.layers = layers;
    bench.submit(bench.request(BlockKind.Discard, 512, 3 * CHUNK_BYTES - 1024, 0));
    const kinds = new Set(bench.store.pendingChanges.map((operation) => operation.kind));
    assertEquals([...kinds], [layers.length > 1 ? OperationKind.Zero : OperationKind.Free]);
    const blocks = bench.store.pendingChanges.reduce((sum, next) => sum + next.blockCount, 0);
    assertEquals(blocks, 3 * 1024 - 2);
    bench.drain();
    assertEquals(bench.finished.length, 1);
  }
});

Deno.test("a discard up to the end of a disk of an odd size takes its last block along, which is not all there", () => {
  const bench = new Bench(5);
  const sizeBytes = 3 * BLOCK_BYTES + 512;
  bench.volume.sizeBytes = sizeBytes;
  const freed = (offsetBytes: number, lengthBytes: number) => {
    bench.submit(bench.request(BlockKind.Discard, offsetBytes, lengthBytes, 0));
    const blocks = bench.store.pendingChanges.flatMap(({ kind, block, blockCount }) =>
      Array.from({ length: blockCount }, (_, i) => [kind, block + i])
    );
    bench.drain();
    return blocks;
  };
  const free = (...blocks: number[]) => blocks.map((block) => [OperationKind.Free, block]);
  assertEquals(freed(0, sizeBytes), free(0, 1, 2, 3));
  assertEquals(freed(3 * BLOCK_BYTES, 512), free(3));
  assertEquals(freed(2 * BLOCK_BYTES + 512, BLOCK_BYTES), free(3));
  // A part that others lie behind is none of its business.
  assertEquals(freed(0, 2 * BLOCK_BYTES + 512), free(0, 1));
  assertEquals(bench.finished.length, 4);
  assertEquals(bench.volume.inFlight, 0);
});

Deno.test("an error reaches its own request only", () => {
  const bench = new Bench(6);
  const bad = bench.request(BlockKind.Write, 0, 4096, bench.memory.guestOffset);
  const good = bench.request(BlockKind.Write, 8192, 4096, bench.memory.guestOffset);
  bench.submit(bad);
  bench.submit(good);
  bench.store.failNext = true;
  bench.drain();
  assertEquals([bad.result, good.result], [-EIO, 0]);
  assertEquals(bench.volume.counters.errors, 1);
});

Deno.test("a merge whose old block cannot be read fails and writes nothing", () => {
  const bench = new Bench(7);
  const request = bench.request(BlockKind.Write, 512, 512, bench.memory.guestOffset);
  bench.submit(request);
  const operation = bench.store.pendingReads.pop()!;
  operation.result = -EIO;
  operation.owner.operationDone(operation);
  assertEquals(request.result, -EIO);
  assertEquals(bench.store.pendingChanges.length, 0);
  const next = bench.request(BlockKind.Write, 0, 4096, bench.memory.guestOffset);
  bench.submit(next);
  bench.drain();
  assertEquals(next.result, 0, "the failed merge must not block its block for ever");
});

Deno.test("a read-only view passes reads on and refuses writes", () => {
  const bench = new Bench(8);
  const view = new ReadOnlyVolume(bench.volume);
  assertEquals([view.readOnly, view.sizeBytes, view.serial], [true, SIZE_BYTES, "test"]);
  view.submit(bench.request(BlockKind.Read, 0, 4096, bench.memory.guestOffset));
  bench.drain();
  assertEquals(bench.finished.length, 1);
});

/** A write of blocks, one character each: `0` of zeros, `x` of data. */
function zeroWrite(bench: Bench, blocks: string, firstBlock = 0): BlockRequest {
  const request = new BlockRequest(bench);
  request.kind = BlockKind.Write;
  request.offsetBytes = firstBlock * BLOCK_BYTES;
  request.lengthBytes = blocks.length * BLOCK_BYTES;
  request.segmentCount = 1;
  request.segmentOffsets[0] = bench.memory.guestOffset;
  request.segmentLengths[0] = request.lengthBytes;
  const { bytes } = bench.memory.windows[0];
  [...blocks].forEach((block, i) => {
    const at = bench.memory.guestOffset + i * BLOCK_BYTES;
    bytes.fill(0, at, at + BLOCK_BYTES);
    // One byte, where a test that stops early would not look.
    if (block !== "0") bytes[at + BLOCK_BYTES - 1] = 7;
  });
  return request;
}

/** What went to the store: `w` a write, `f` a free, `z` a zeroing, with its blocks. */
function operationsOf(bench: Bench): string {
  const letters: Partial<Record<OperationKind, string>> = {
    [OperationKind.Write]: "w",
    [OperationKind.Free]: "f",
    [OperationKind.Zero]: "z",
    [OperationKind.Sync]: "s",
  };
  return bench.store.pendingChanges.map(({ kind, chunk, block, blockCount }) =>
    `${letters[kind]}${chunk > 0 ? `${chunk}:` : ""}${block}+${blockCount}`
  ).join(" ");
}

Deno.test("zeros that are worth it become holes, and the rest of a write goes as it is", () => {
  const cases: [blocks: string, operations: string][] = [
    ["0", "f0+1"],
    ["x", "w0+1"],
    ["0000000", "f0+7"],
    ["xxx", "w0+3"],
    ["0xx", "f0+1 w1+2"],
    ["xx0", "w0+2 f2+1"],
    ["0x0", "f0+1 w1+1 f2+1"],
    ["x000x", "w0+5"],
    ["x0000x", "w0+1 f1+4 w5+1"],
    ["x000x0000x000", "w0+5 f5+4 w9+1 f10+3"],
    ["x0".repeat(20), "w0+39 f39+1"],
    // As much data as a transfer takes; holes as long as their chunk.
    ["x".repeat(300), "w0+256 w256+44"],
    ["0".repeat(1500), "f0+1024 f1:0+476"],
    ["x" + "0".repeat(600) + "x", "w0+1 f1+600 w601+1"],
  ];
  for (const [blocks, expected] of cases) {
    for (const layers of [[1], [2, 1]]) {
      const bench = new Bench(1);
      bench.volume.detectZeroes = true;
      bench.volume.layers = layers;
      const request = zeroWrite(bench, blocks);
      bench.submit(request);
      const kinds = layers.length > 1 ? expected.replaceAll("f", "z") : expected;
      assertEquals(operationsOf(bench), kinds, blocks);
      bench.drain();
      assertEquals(bench.finished, [request]);
      [...blocks].forEach((block, i) => {
        assertEquals(bench.store.blocks.get(i)?.at(-1) ?? 0, block === "0" ? 0 : 7);
      });
      assertEquals(bench.memory.arena.usedBytes, 0);
    }
  }
  const late = new Bench(1);
  late.volume.detectZeroes = true;
  late.submit(zeroWrite(late, "0".repeat(100), 1000));
  assertEquals(operationsOf(late), "f1000+24 f1:0+76");
  late.drain();
  const off = new Bench(1);
  off.submit(zeroWrite(off, "00000000"));
  assertEquals(operationsOf(off), "w0+8");
  off.drain();
});

Deno.test("a part of a block that leaves nothing but zeros leaves a hole", () => {
  for (const isOn of [true, false]) {
    const bench = new Bench(2);
    bench.volume.detectZeroes = isOn;
    const block = new Uint8Array(BLOCK_BYTES);
    block.fill(9, 512, 1024);
    bench.store.blocks.set(3, block);
    const request = zeroWrite(bench, "0");
    request.offsetBytes = 3 * BLOCK_BYTES + 512;
    request.lengthBytes = request.segmentLengths[0] = 512;
    bench.submit(request);
    bench.drain();
    assertEquals(bench.store.blocks.has(3), !isOn);
    assertEquals(bench.finished, [request]);
  }
});

Deno.test("holes in the place of zeros are synced as writes are, and wait for merges as writes do", () => {
  const bench = new Bench(3);
  bench.volume.detectZeroes = true;
  const merge = bench.request(BlockKind.Write, 512, 512, bench.memory.guestOffset + 65536);
  bench.fill(merge, () => 5);
  bench.submit(merge);
  const request = zeroWrite(bench, "000000");
  request.forceUnitAccess = true;
  bench.submit(request);
  assertEquals(operationsOf(bench), "", "the merge has to read first");
  bench.drain();
  assertEquals(bench.finished, [merge, request]);
  assertEquals([bench.store.unsynced, bench.store.blocks.size], [0, 0]);
  assertEquals(bench.volume.counters.writtenBytes, 512 + 6 * BLOCK_BYTES);
});

Deno.test("zeros in pieces of odd lengths are data, and are found in even ones", () => {
  const cases: [cut: number, isData: boolean, operations: string][] = [
    [1000, false, "w0+1"],
    [2048, false, "f0+1"],
    [16, false, "f0+1"],
    [16, true, "w0+1"],
  ];
  for (const [cut, isData, expected] of cases) {
    const bench = new Bench(4);
    bench.volume.detectZeroes = true;
    const request = zeroWrite(bench, "0");
    if (isData) bench.memory.windows[0].bytes[bench.memory.guestOffset] = 1;
    request.segmentCount = 2;
    request.segmentLengths[0] = cut;
    request.segmentOffsets[1] = request.segmentOffsets[0] + cut;
    request.segmentLengths[1] = BLOCK_BYTES - cut;
    bench.submit(request);
    assertEquals(operationsOf(bench), expected);
    bench.drain();
    assertEquals(bench.finished, [request]);
  }
});
