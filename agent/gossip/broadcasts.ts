/**
 * News on its way to everybody: at most one per member, the newest, each sent a bounded number of times, the least
 * often sent first, as many as fit.
 *
 *     level   0: { a, f }   1: { }   2: { c }   …      an item moves up by one each time it is sent
 *
 * @module
 */
import type { PackWriter } from "./pack.ts";

/** Items of one level that are looked at for one that fits, where the first do not. */
const LOOK_AHEAD = 32;

/** The queue. */
export class Broadcasts {
  /** Encoded entries by uuid, per number of times that they were sent. Insertion order is their order. */
  readonly #levels: Map<string, Uint8Array>[] = [];
  readonly #levelOf = new Map<string, number>();

  /** News that are still to be sent. */
  get length(): number {
    return this.#levelOf.size;
  }

  /** True while news about this member is still to be sent. */
  has(uuid: string): boolean {
    return this.#levelOf.has(uuid);
  }

  /**
   * Replaces what is told about a member.
   *
   * @param entry encoded; kept
   */
  put(uuid: string, entry: Uint8Array): void {
    this.drop(uuid);
    this.#place(uuid, entry, 0);
  }

  /** Tells no more about a member. */
  drop(uuid: string): void {
    const level = this.#levelOf.get(uuid);
    if (level === undefined) return;
    this.#levels[level].delete(uuid);
    this.#levelOf.delete(uuid);
  }

  /**
   * Appends entries while they fit.
   *
   * @param limit times that each is sent at the most
   * @param isTold members that the packet tells about already, by their uuids
   * @returns how many
   */
  write(writer: PackWriter, limit: number, isTold: (uuid: string) => boolean): number {
    const sent: [string, Uint8Array, number][] = [];
    for (let level = 0; level < this.#levels.length; level++) {
      let looked = 0;
      for (const [uuid, entry] of this.#levels[level]) {
        if (looked++ >= LOOK_AHEAD) break;
        if (entry.length > writer.room || isTold(uuid)) continue;
        looked--;
        writer.raw(entry);
        sent.push([uuid, entry, level]);
      }
    }
    for (const [uuid, entry, level] of sent) {
      this.drop(uuid);
      if (level + 1 < limit) this.#place(uuid, entry, level + 1);
    }
    return sent.length;
  }

  #place(uuid: string, entry: Uint8Array, level: number): void {
    while (this.#levels.length <= level) this.#levels.push(new Map());
    this.#levels[level].set(uuid, entry);
    this.#levelOf.set(uuid, level);
  }
}
