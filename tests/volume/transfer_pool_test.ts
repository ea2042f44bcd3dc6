/**
 * Transfers are made as they are needed, up to the bound of their class.
 *
 * @module
 */
import { assertEquals, assertStrictEquals } from "@std/assert/mod.js";
import { Arena } from "../../agent/base/arena.ts";
import {
  Resumed,
  type Transfer,
  TransferClass,
  TransferPool,
  TRANSFERS_MAX,
} from "../../agent/volume/transfer_pool.ts";
import { Owner, takeOne } from "./owner.ts";

const MIB = 1024 * 1024;

Deno.test("a class has as many transfers as its bound, and what is released is used again", () => {
  const pool = new TransferPool(new Arena());
  for (const transferClass of [TransferClass.Read, TransferClass.Write, TransferClass.Control]) {
    const held: Transfer[] = [];
    // One more than there may be: a pool without a bound fails too.
    while (held.length <= TRANSFERS_MAX[transferClass]) {
      const transfer = takeOne(pool, transferClass, 0);
      if (transfer === null) break;
      assertStrictEquals(pool.transferOf(transfer.operation), transfer);
      held.push(transfer);
    }
    assertEquals(held.length, TRANSFERS_MAX[transferClass]);
    assertEquals(new Set(held).size, held.length);
    const last = held.pop()!;
    pool.release(last);
    assertStrictEquals(takeOne(pool, transferClass, 0), last);
    assertEquals(takeOne(pool, transferClass, 0), null);
  }
});

/** A volume that wants transfers of one size, as many as there are in `wants`. */
class Waiter extends Owner {
  readonly taken: Transfer[] = [];

  constructor(readonly pool: TransferPool, readonly bytes: number, public wants: number) {
    super();
  }

  override resume(transferClass = TransferClass.Write): Resumed {
    const bytes = Math.min(this.bytes, this.pool.mostBytes(transferClass));
    const transfer = this.pool.take(this, transferClass, bytes);
    if (transfer === null) return Resumed.NoRoom;
    this.taken.push(transfer);
    return --this.wants > 0 ? Resumed.Waits : Resumed.Done;
  }
}

Deno.test("whose turn it is keeps it until there is room, and others go on only after it", () => {
  const pool = new TransferPool(new Arena());
  const held = Array.from({ length: 24 * 16 }, () => takeOne(pool, TransferClass.Write, 65536)!);
  const [large, small] = [new Waiter(pool, 65536, 1), new Waiter(pool, 4096, 100)];
  pool.release(held.pop()!);
  for (let i = 0; i < 16; i++) held.push(takeOne(pool, TransferClass.Write, 4096)!);
  pool.wait(TransferClass.Write, large);
  pool.wait(TransferClass.Write, small);
  for (let i = 0; i < 15; i++) {
    pool.release(held.pop()!);
    pool.endTurn();
    assertEquals([large.taken.length, small.taken.length], [0, 0]);
  }
  pool.release(held.pop()!);
  assertEquals([large.taken.length, small.taken.length], [1, 0]);
  // What one of them gives back is room for several of the others.
  pool.release(held.pop()!);
  for (let i = 0; i < 15; i++) pool.endTurn();
  // The class is full of what others have: whoever has nothing takes of the last of it.
  assertEquals(small.taken.length, 1);
});

Deno.test("where the arena is short of large buffers, small ones go on", () => {
  const pool = new TransferPool({
    allocate: (lengthBytes) => lengthBytes > 4096 ? -1 : 0,
    release: () => {},
  });
  const [large, small] = [new Waiter(pool, 8192, 1), new Waiter(pool, 4096, 3)];
  pool.wait(TransferClass.Write, large);
  pool.wait(TransferClass.Write, small);
  for (let i = 0; i < 3; i++) pool.endTurn();
  assertEquals([large.taken.length, small.taken.length], [0, 3]);
  assertEquals(pool.isContended(TransferClass.Write), true);
});

for (
  const [bytes, most, what] of [[MIB, 30, "large"], [4096, 60, "small"], [0, 16, "no"]] as const
) {
  Deno.test(`volumes that give nothing back leave room for those that do: ${what} buffers`, () => {
    const transferClass = bytes === 0 ? TransferClass.Control : TransferClass.Write;
    for (const stuck of [1, 3, most]) {
      const pool = new TransferPool(new Arena());
      for (let i = 0; i < stuck; i++) {
        const volume = new Waiter(pool, bytes, Infinity);
        while (volume.resume(transferClass) !== Resumed.NoRoom);
        assertEquals(volume.taken.length > 0, true, `${i} before it`);
        pool.wait(transferClass, volume);
      }
      // Two that have all they need: each in every turn, however long the line.
      const others = [new Waiter(pool, bytes, Infinity), new Waiter(pool, bytes, Infinity)];
      for (const volume of others) pool.wait(transferClass, volume);
      for (let round = 0; round < 50; round++) {
        pool.endTurn();
        for (const { taken } of others) {
          assertEquals(taken.length > 0, true, `${stuck} stuck, round ${round}`);
          for (const transfer of taken.splice(0)) pool.release(transfer);
        }
      }
    }
  });
}

Deno.test("one volume alone has a third of a class", () => {
  for (const [bytes, count] of [[MIB, 7], [4096, 320]]) {
    const volume = new Waiter(new TransferPool(new Arena()), bytes, Infinity);
    while (volume.resume() !== Resumed.NoRoom);
    assertEquals(volume.taken.length, count, `of ${bytes} bytes`);
  }
});
