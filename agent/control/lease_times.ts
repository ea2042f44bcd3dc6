/**
 * Since when disks are open, as far as this run of the agent has seen it: the map has generations, and no times.
 *
 * Invariants:
 * - A time belongs to a generation: one that was taken, given back and taken again counts anew.
 * - What was there when this agent came to see it (its log was replayed, or the map came as a whole) has a time that is
 *   only a bound, and says so.
 *
 * @module
 */
import type { ClusterMap, DiskEntry } from "../map/map.ts";

interface Time {
  readonly generation: number;
  readonly sinceMs: number;
  readonly isExact: boolean;
}

/** See the head of the file. */
export class LeaseTimes {
  readonly #times = new Map<number, Time>();
  #disks: readonly DiskEntry[] = [];

  /**
   * The map has changed.
   *
   * @param isLive this agent was there when it did
   * @param nowMs since 1970
   */
  mapChanged({ disks }: ClusterMap, isLive: boolean, nowMs: number): void {
    if (disks === this.#disks) return;
    this.#disks = disks;
    const open = new Set<number>();
    for (const { id, lease, generation } of disks) {
      if (lease === null) continue;
      open.add(id);
      if (this.#times.get(id)?.generation === generation) continue;
      this.#times.set(id, { generation, sinceMs: nowMs, isExact: isLive });
    }
    for (const id of [...this.#times.keys()]) if (!open.has(id)) this.#times.delete(id);
  }

  /**
   * Since when a disk is open; null: it is not, or not under this generation, as far as has been seen.
   *
   * @returns `sinceMs`, since 1970; `isExact`: it was taken then, or else it had been taken by then
   */
  of({ id, generation }: DiskEntry): { sinceMs: number; isExact: boolean } | null {
    const time = this.#times.get(id);
    if (time?.generation !== generation) return null;
    return { sinceMs: time.sinceMs, isExact: time.isExact };
  }
}
