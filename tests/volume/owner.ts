/**
 * Who takes transfers of a pool in tests, where no volume is about.
 *
 * @module
 */
import {
  Resumed,
  type Transfer,
  type TransferClass,
  type TransferOwner,
  type TransferPool,
} from "../../agent/volume/transfer_pool.ts";

/** A volume that wants nothing. */
export class Owner implements TransferOwner {
  readonly held: [number, number, number] = [0, 0, 0];
  readonly heldBytes: [number, number, number] = [0, 0, 0];
  readonly refusedBytes: [number, number, number] = [0, 0, 0];
  resume(): Resumed {
    return Resumed.Done;
  }
  transferDone(): void {}
  finish(): void {}
}

/** Takes a transfer for a volume that has none. */
export function takeOne(
  pool: TransferPool,
  transferClass: TransferClass,
  bytes: number,
): Transfer | null {
  return pool.take(new Owner(), transferClass, bytes);
}
