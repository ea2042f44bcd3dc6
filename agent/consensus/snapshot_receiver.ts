/**
 * Puts a snapshot together from parts that may be lost, repeated and late.
 *
 * Parts are taken in order; one that comes out of order only tells the sender, by the answer, where
 * to go on. A part of an older snapshot is ignored, one of a newer begins anew. Nothing is
 * allocated for what has not arrived.
 *
 * @module
 */

import { crc32c } from "./checksum.ts";
import { SNAPSHOT_PART_BYTES_MIN } from "./limits.ts";
import type { Snapshot } from "./log.ts";
import type { SnapshotMessage } from "./messages.ts";

/** See the file's head. */
export class SnapshotReceiver {
  #first: SnapshotMessage | null = null;
  #parts: Uint8Array[] = [];
  #bytes = 0;

  /**
   * Takes a part.
   *
   * @returns bytes that are here of the snapshot that the part belongs to, and the snapshot once it
   * is whole; null where the part belongs to an older one than is being received
   */
  receive(message: SnapshotMessage): { offset: number; snapshot: Snapshot | null } | null {
    const first = this.#first;
    if (first !== null && !isSame(first, message)) {
      if (message.term === first.term && message.index < first.index) return null;
      this.reset();
    }
    if (this.#first === null) this.#first = message;
    const { offset, data, totalBytes } = message;
    const isLongEnough = data.length >= Math.min(SNAPSHOT_PART_BYTES_MIN, totalBytes - offset);
    if (offset === this.#bytes && data.length > 0 && isLongEnough) {
      this.#parts.push(message.data);
      this.#bytes += message.data.length;
    }
    return { offset: this.#bytes, snapshot: this.#finish(message) };
  }

  /** The log has got up to `commit` otherwise: what was for that is forgotten. */
  passed(commit: number): void {
    if (this.#first !== null && this.#first.index <= commit) this.reset();
  }

  /** Forgets what has arrived. */
  reset(): void {
    this.#first = null;
    this.#parts = [];
    this.#bytes = 0;
  }

  #finish(message: SnapshotMessage): Snapshot | null {
    if (this.#bytes < message.totalBytes) return null;
    const data = new Uint8Array(this.#bytes);
    let offset = 0;
    for (const part of this.#parts) {
      data.set(part, offset);
      offset += part.length;
    }
    this.reset();
    // Damaged on the way: the sender hears of offset 0 when it asks again.
    if (crc32c(data) !== message.checksum) return null;
    const { index, snapshotTerm: term, configuration } = message;
    return { index, term, configuration, data };
  }
}

function isSame(a: SnapshotMessage, b: SnapshotMessage): boolean {
  return a.index === b.index && a.snapshotTerm === b.snapshotTerm &&
    a.totalBytes === b.totalBytes && a.checksum === b.checksum;
}
