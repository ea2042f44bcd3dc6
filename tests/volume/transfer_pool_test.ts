/**
 * Transfers are made as they are needed, up to the bound of their class.
 *
 * @module
 */
import { assertEquals, assertStrictEquals } from "@std/assert/mod.js";
import { Arena } from "../../agent/base/arena.ts";
import {
  type Transfer,
  TransferClass,
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
