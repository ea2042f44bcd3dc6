/**
 * Looks at a store's disk from outside: where the part of its log lies of which nothing says that it is durable. Shares no code
 * with the store but the disk.
 *
 * @module
 */
import { BLOCK_BYTES } from "../../agent/base/limits.ts";
import type { Prng } from "../../agent/base/prng.ts";
import type { SimulatedDisk } from "../../agent/platform/simulated/disk.ts";

const RECORD_MAGIC = 0x4345524b, SUPERBLOCK_MAGIC = 0x504c454b;
const SUPERBLOCKS = [0, 512 * 1024], SEGMENTS = 1024 * 1024;

/**
 * A record's header in the tail of the log.
 *
 * @param random chooses one of them
 * @returns its byte offset; −1 when everything is known to be durable
 */
export function headOfTail(disk: SimulatedDisk, random: Prng): number {
  const records: { at: number; lsn: number }[] = [];
  let syncedLsn = 0;
  for (const at of SUPERBLOCKS) {
    const head = new DataView(disk.peek(at, BLOCK_BYTES).buffer);
    if (head.getUint32(0, true) === SUPERBLOCK_MAGIC) {
      syncedLsn = Math.max(syncedLsn, head.getUint32(152, true));
    }
  }
  for (let at = SEGMENTS; at < disk.sizeBytesMax; at += BLOCK_BYTES) {
    const head = new DataView(disk.peek(at, 64).buffer);
    if (head.getUint32(0, true) !== RECORD_MAGIC) continue;
    records.push({ at, lsn: head.getUint32(32, true) });
    syncedLsn = Math.max(syncedLsn, head.getUint32(40, true));
  }
  const tail = records.filter(({ lsn }) => lsn > syncedLsn);
  return tail.length === 0 ? -1 : random.pick(tail).at;
}
