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
  type TransferOwner,
  TransferPool,
  TRANSFERS_MAX,
} from "../../agent/volume/transfer_pool.ts";

Deno.test("a class has as many transfers as its bound, and what is released is used again", () => {
  const pool = new TransferPool(new Arena());
  for (const transferClass of [TransferClass.Read, TransferClass.Write, TransferClass.Control]) {
    const held: Transfer[] = [];
    // One more than there may be: a pool without a bound fails too.
    while (held.length <= TRANSFERS_MAX[transferClass]) {
      const transfer = pool.take(transferClass, 0);
      if (transfer === null) break;
      assertStrictEquals(pool.transferOf(transfer.operation), transfer);
      held.push(transfer);
    }
    assertEquals(held.length, TRANSFERS_MAX[transferClass]);
    assertEquals(new Set(held).size, held.length);
    const last = held.pop()!;
    pool.release(last);
    assertStrictEquals(pool.take(transferClass, 0), last);
    assertEquals(pool.take(transferClass, 0), null);
  }
});

/** A volume that wants transfers of one size, as many as there are in `wants`. */
class Waiter implements TransferOwner {
  readonly held: Transfer[] = [];

  constructor(readonly pool: TransferPool, readonly bytes: number, public wants: number) {}

  resume(transferClass: TransferClass): Resumed {
    const transfer = this.pool.take(transferClass, this.bytes);
    if (transfer === null) return Resumed.NoRoom;
    this.held.push(transfer);
    return --this.wants > 0 ? Resumed.Waits : Resumed.Done;
  }

  transferDone(): void {}
  finish(): void {}
}

Deno.test("whose turn it is keeps it until there is room, and others go on only after it", () => {
  const pool = new TransferPool(new Arena());
  const MIB = 1024 * 1024;
  const held = Array.from({ length: 24 }, () => pool.take(TransferClass.Write, MIB)!);
  const [large, small] = [new Waiter(pool, MIB, 1), new Waiter(pool, 65536, 100)];
  pool.release(held.pop()!);
  for (let i = 0; i < 16; i++) held.push(pool.take(TransferClass.Write, 65536)!);
  pool.wait(TransferClass.Write, large);
  pool.wait(TransferClass.Write, small);
  for (let i = 0; i < 15; i++) {
    pool.release(held.pop()!);
    pool.endTurn();
    assertEquals([large.held.length, small.held.length], [0, 0]);
  }
  pool.release(held.pop()!);
  assertEquals([large.held.length, small.held.length], [1, 0]);
  // What one of them gives back is room for several of the others.
  pool.release(held.pop()!);
  for (let i = 0; i < 15; i++) pool.endTurn();
  assertEquals(small.held.length, 16);
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
  assertEquals([large.held.length, small.held.length], [0, 3]);
  assertEquals(pool.isContended(TransferClass.Write), true);
});
