/**
 * The log of guest pages that this device wrote, for live migration (VHOST_F_LOG_ALL, LOG_SHMFD).
 *
 * One bit per page of 4 KiB of guest address space, in memory shared with the front end:
 *
 *     byte   page >> 3        bit   page & 7        page   guest address >> 12
 *
 * The front end reads and clears the log while we write it, so every mark is one atomic OR, made after the data
 * it stands for. It is made even where the bit is already set: a plain look first could be
 * answered before the data is visible, and the front end would clear the bit and copy the old page.
 *
 * Invariants:
 * - A page is marked after it was written and before the guest hears of it.
 * - A page beyond the log sets `overflowed`: the migration would lose it, so the device must stop.
 *
 * @module
 */
import type { Window } from "../platform/platform.ts";
import type { MappedPiece } from "./host.ts";

/** log2 of the page size of the log (VHOST_LOG_PAGE), whatever the host's page size. */
const LOG_PAGE_SHIFT = 12;

/** Largest log, in bytes: covers guest addresses up to 16 TiB. */
export const LOG_BYTES_MAX = 512 * 1024 * 1024;

/** The dirty log of one front end. */
export class DirtyLog {
  /** F_LOG_ALL is acknowledged and the log is mapped: writes must be marked. */
  active = false;
  /** A page beyond the end of the log was written. */
  overflowed = false;

  readonly #windows: readonly Window[];
  #pieces: readonly MappedPiece[] = [];
  #sizeBytes = 0;

  /** @param windows all windows; may grow */
  constructor(windows: readonly Window[]) {
    this.#windows = windows;
  }

  /**
   * Changes to another log at once; what was marked before stays in the old one, which the front end still reads.
   *
   * @param pieces owned by the caller, as long as the log uses them
   */
  attach(pieces: readonly MappedPiece[]): void {
    this.#pieces = pieces;
    this.#sizeBytes = pieces.reduce((sum, piece) => sum + piece.length, 0);
    this.overflowed = false;
  }

  /** Bytes of the log: 0 where there is none. */
  get sizeBytes(): number {
    return this.#sizeBytes;
  }

  /**
   * Marks the pages of a range. Does nothing while not active.
   *
   * @param address guest address; one below 0 is unknown, and as bad as one beyond the log
   * @param length bytes
   */
  mark(address: number, length: number): void {
    if (!this.active || length <= 0) return;
    if (address < 0) {
      this.overflowed = true;
      return;
    }
    let page = Math.floor(address / 2 ** LOG_PAGE_SHIFT);
    const last = Math.floor((address + length - 1) / 2 ** LOG_PAGE_SHIFT);
    while (page <= last && !this.overflowed) {
      const byte = Math.floor(page / 8);
      const first = page % 8;
      const bits = Math.min(8 - first, last - page + 1);
      this.#or(byte, ((1 << bits) - 1) << first);
      page += bits;
    }
  }

  #or(byte: number, mask: number): void {
    let at = byte;
    for (let index = 0; index < this.#pieces.length; index++) {
      const piece = this.#pieces[index];
      if (at < piece.length) {
        Atomics.or(this.#windows[piece.window].bytes, piece.offset + at, mask);
        return;
      }
      at -= piece.length;
    }
    this.overflowed = true;
  }
}
