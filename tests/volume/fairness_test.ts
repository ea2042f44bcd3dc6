/**
 * Disks without limits share the worker's transfers and buffers in turn, however much one of them wants. Counted in what the
 * store has done meanwhile: there is no time here.
 *
 * @module
 */
import { assert, assertEquals } from "@std/assert/mod.js";
import { BlockKind, BlockRequest } from "../../agent/blk/target.ts";
import { SimulatedMemory } from "../../agent/platform/simulated/memory.ts";
import { type Operation, OperationKind } from "../../agent/store/operation.ts";
import { TransferPool } from "../../agent/volume/transfer_pool.ts";
import { Volume } from "../../agent/volume/volume.ts";

const KIB = 1024, MIB = 1024 * KIB, GIB = 1024 * MIB;

/** A store that does one operation after the other, in the order in which they come. */
class Bench {
  readonly memory = new SimulatedMemory();
  readonly pool = new TransferPool(this.memory.arena);
  readonly guests: Guest[] = [];
  readonly #operations: Operation[] = [];
  /** Bytes that the store has done. */
  doneBytes = 0;

  submit(operation: Operation): void {
    this.#operations.push(operation);
  }

  get newest(): Operation | undefined {
    return this.#operations.at(-1);
  }

  /** Does operations until `isDone`; how many. */
  run(isDone: () => boolean, most: number): number {
    for (let count = 0; count < most; count++) {
      if (isDone()) return count;
      // What a turn does: some come back, the pool gives their room away, guests ask for more.
      const operation = this.#operations.shift();
      if (operation !== undefined) {
        operation.result = 0;
        this.doneBytes += operation.blockCount * 4096;
        operation.owner.operationDone(operation);
      }
      this.pool.endTurn();
      for (const guest of this.guests) guest.turn();
    }
    return most;
  }
}

/** A guest that has always the same number of requests under way. */
class Guest {
  readonly volume: Volume;
  done = 0;
  #idle: BlockRequest[] = [];
  #next = 0;

  constructor(readonly bench: Bench, readonly kind: BlockKind, options: {
    depth: number;
    lengthBytes: number;
  }) {
    const { memory, pool } = bench;
    const { depth, lengthBytes } = options;
    this.volume = new Volume({
      sizeBytes: GIB,
      serial: "test",
      layers: [1],
      windows: memory.windows,
      pool,
      sink: bench,
    });
    for (let i = 0; i < depth; i++) {
      const request = new BlockRequest({
        requestDone: (done) => {
          assertEquals(done.result, 0);
          this.done++;
          this.#idle.push(done);
        },
      }, 1);
      request.lengthBytes = lengthBytes;
      request.segmentCount = kind === BlockKind.Discard ? 0 : 1;
      request.segmentOffsets[0] = memory.guestOffset;
      request.segmentLengths[0] = lengthBytes;
      this.#idle.push(request);
    }
    bench.guests.push(this);
  }

  turn(): void {
    const idle = this.#idle;
    this.#idle = [];
    for (const request of idle) {
      request.kind = this.kind;
      request.offsetBytes = this.#next;
      this.#next = (this.#next + request.lengthBytes) % (GIB / 2);
      this.volume.submit(request);
    }
  }
}

/** Most operations of others that the store does before a request of a guest with one at a time is done. */
function longestWait(bench: Bench, one: Guest, rounds: number): number {
  let longest = 0;
  for (let i = 0; i < rounds; i++) {
    const before = one.done;
    const waited = bench.run(() => one.done > before, 10_000);
    assert(one.done > before, `the ${i + 1}th request never comes back`);
    longest = Math.max(longest, waited);
  }
  return longest;
}

Deno.test("a disk with 256 writes of 1 MiB under way does not keep one with a single one waiting", () => {
  for (const kind of [BlockKind.Write, BlockKind.Read]) {
    for (const lengthBytes of [4 * KIB, MIB]) {
      const bench = new Bench();
      new Guest(bench, kind, { depth: 256, lengthBytes: MIB });
      bench.run(() => false, 100);
      const one = new Guest(bench, kind, { depth: 1, lengthBytes });
      // Those that have room are before it (24 MiB of them), and one that waited longer.
      const longest = longestWait(bench, one, 40);
      assert(longest <= 27, `${longest} operations of 1 MiB before one of ${lengthBytes} bytes`);
    }
  }
});

Deno.test("a large write finds room beside any number of small ones", () => {
  for (const kind of [BlockKind.Write, BlockKind.Read]) {
    const bench = new Bench();
    for (let i = 0; i < 4; i++) new Guest(bench, kind, { depth: 256, lengthBytes: 64 * KIB });
    bench.run(() => false, 2000);
    const one = new Guest(bench, kind, { depth: 1, lengthBytes: MIB });
    // All that have room (384 of 64 KiB) may come first, and what goes before those that free a MiB.
    const longest = longestWait(bench, one, 20);
    assert(longest <= 600, `${longest} operations of 64 KiB before one of 1 MiB`);
  }
});

Deno.test("every disk gets its turn, and all of them go on", () => {
  const bench = new Bench();
  const guests = [
    new Guest(bench, BlockKind.Write, { depth: 256, lengthBytes: MIB }),
    new Guest(bench, BlockKind.Write, { depth: 256, lengthBytes: MIB }),
    new Guest(bench, BlockKind.Write, { depth: 64, lengthBytes: 4 * MIB }),
    new Guest(bench, BlockKind.Write, { depth: 256, lengthBytes: 64 * KIB }),
    new Guest(bench, BlockKind.Write, { depth: 256, lengthBytes: 4 * KIB }),
  ];
  bench.run(() => false, 1000);
  const done = guests.map((guest) => guest.done);
  bench.run(() => false, 5000);
  const sizes = [MIB, MIB, 4 * MIB, 64 * KIB, 4 * KIB];
  const bytes = guests.map((guest, i) => (guest.done - done[i]) * sizes[i]);
  const shown = bytes.map((each) => Math.round(each / MIB)).join(", ");
  // Those that want more than there is get the like of each other…
  for (const each of bytes.slice(0, 4)) assert(each > 0.5 * Math.max(...bytes), `MiB: ${shown}`);
  // …and one that wants little has all of it under way all the time: as much as it has requests, whenever another has its share back.
  assert(bytes[4] > 0.1 * Math.max(...bytes), `MiB: ${shown}`);
});

Deno.test("a long discard does not keep flushes of others waiting", () => {
  const bench = new Bench();
  new Guest(bench, BlockKind.Discard, { depth: 64, lengthBytes: GIB / 2 });
  bench.run(() => false, 100);
  const one = new Guest(bench, BlockKind.Flush, { depth: 1, lengthBytes: 0 });
  one.turn();
  bench.pool.endTurn();
  assertEquals(bench.newest?.kind, OperationKind.Sync, "it waits for nothing of the discards");
  const longest = longestWait(bench, one, 100);
  assert(longest <= 300, `${longest} operations before a flush`);
});
