/**
 * The two superblocks: reading both, choosing one, writing the other.
 *
 *     sequence   7 ─▶ slot 1      8 ─▶ slot 0      9 ─▶ slot 1 …
 *
 * Invariants:
 * - A superblock is written over the older of the two, and counts once a sync after it has
 *   completed. A crash in between leaves the newer or the older; what the older one needs is not
 *   given up before that sync.
 * - Both readers and writers of the pair run one at a time.
 *
 * @module
 */
import { BLOCK_BYTES } from "../base/limits.ts";
import type { Window } from "../platform/platform.ts";
import { StoreError } from "./errors.ts";
import {
  decodeSuperblock,
  encodeSuperblock,
  FORMAT_VERSION,
  type Superblock,
  SUPERBLOCK_OFFSETS_BYTES,
  type SuperblockFault,
} from "./format.ts";
import type { Task, TaskIo } from "./task.ts";

/** What the two slots hold. */
export interface SuperblockPair {
  /** The newest valid one. */
  readonly newest: Superblock;
  /** The other, if it is valid. */
  readonly other: Superblock | null;
  /** The other slot holds something that is no superblock: a torn write, or damage. */
  readonly otherDamaged: boolean;
}

/**
 * Reads both superblocks and chooses the newest.
 *
 * @param buffer arena offset of one block
 */
export function* readSuperblocks(
  io: TaskIo,
  window: Window,
  buffer: number,
): Task<SuperblockPair | StoreError> {
  const slots: (Superblock | SuperblockFault)[] = [];
  let errno = 0;
  for (const offsetBytes of SUPERBLOCK_OFFSETS_BYTES) {
    const result = yield* io.read(offsetBytes, buffer, BLOCK_BYTES);
    if (result < 0) errno = -result;
    slots.push(result < 0 ? "damaged" : decodeSuperblock(window, buffer));
  }
  const [a, b] = slots;
  if (a === "newer" || b === "newer") {
    return new StoreError(
      "NEWER_FORMAT",
      `the store was written by a newer version of kelpie (this one reads format ${FORMAT_VERSION} and ` +
        `older): upgrade this host`,
    );
  }
  const valid = slots.filter((slot) => typeof slot === "object") as Superblock[];
  if (valid.length === 0) {
    // Nobody is to be told to erase what could not be looked at.
    if (errno !== 0) {
      return new StoreError("IO", `the store's superblocks cannot be read (errno ${errno})`);
    }
    if (a === "empty" && b === "empty") {
      return new StoreError(
        "NOT_A_STORE",
        "there are zeros where the superblocks of a store would be: it holds something else, or its beginning was " +
          "overwritten. It is left as it is",
      );
    }
    return new StoreError(
      "NOT_A_STORE",
      "neither of a store's superblocks can be found: it holds something else, or both superblocks are damaged. It is " +
        "left as it is",
    );
  }
  valid.sort((left, right) => right.sequence - left.sequence);
  return {
    newest: valid[0],
    other: valid[1] ?? null,
    otherDamaged: a === "damaged" || b === "damaged",
  };
}

/**
 * Writes `superblock` to its slot and syncs. What it refers to must be durable already.
 *
 * @param buffer arena offset of one block
 * @returns 0 or a negative errno
 */
export function* writeSuperblock(
  io: TaskIo,
  window: Window,
  buffer: number,
  superblock: Superblock,
): Task<number> {
  encodeSuperblock(window, buffer, superblock);
  const offsetBytes = SUPERBLOCK_OFFSETS_BYTES[superblock.sequence & 1];
  const result = yield* io.write(offsetBytes, buffer, BLOCK_BYTES);
  if (result < 0) return result;
  return yield* io.sync();
}
