/**
 * A virtqueue and the disk behind it, for tests of the NBD machines: requests are done when the test says so, in any order; a flush
 * makes durable what was done before it was submitted, and nothing else.
 *
 * @module
 */
import { assert, assertEquals } from "@std/assert/mod.js";
import type { BlockPort } from "../../agent/nbd/export.ts";

interface Pending {
  readonly slot: number;
  readonly type: number;
  readonly offset: number;
  readonly length: number;
  readonly unmap: boolean;
  /** Of a flush: content as it was when it was submitted, and which flush it is. */
  readonly content: Uint8Array<ArrayBuffer> | null;
  readonly flush: number;
}

/** See the head of the file. */
export class FakePort implements BlockPort {
  readonly bytes: Uint8Array<ArrayBuffer>;
  readonly disk: Uint8Array<ArrayBuffer>;
  readonly durable: Uint8Array<ArrayBuffer>;
  /** What was submitted: type, first byte, length. */
  readonly log: (readonly [type: number, offset: number, length: number, unmap?: boolean])[] = [];
  readonly pending: Pending[] = [];
  readonly #taken = new Set<number>();
  readonly #done: number[] = [];
  readonly #statuses: number[] = [];
  #flushes = 0;
  /** The newest flush that is done: an older one that is done later takes nothing back. */
  #flushed = 0;

  constructor(
    readonly slotCount: number,
    readonly bufferBytes: number,
    diskBytes: number,
  ) {
    this.bytes = new Uint8Array(slotCount * bufferBytes);
    this.disk = new Uint8Array(diskBytes);
    this.durable = new Uint8Array(diskBytes);
  }

  /** Slots that somebody has. */
  get taken(): number {
    return this.#taken.size;
  }

  takeSlot(): number {
    for (let slot = 0; slot < this.slotCount; slot++) {
      if (this.#taken.has(slot)) continue;
      this.#taken.add(slot);
      return slot;
    }
    return -1;
  }

  releaseSlot(slot: number): void {
    assert(this.#taken.delete(slot), `slot ${slot} was given back twice`);
    assert(this.pending.every((each) => each.slot !== slot), `slot ${slot} is under way`);
  }

  dataOffset(slot: number): number {
    return slot * this.bufferBytes;
  }

  submit(slot: number, type: number, sector: number, length: number): void {
    const content = type === 4 ? this.disk.slice() : null;
    const flush = type === 4 ? ++this.#flushes : 0;
    this.#add({ slot, type, offset: sector * 512, length, unmap: false, content, flush });
  }

  submitRange(
    slot: number,
    type: number,
    range: { readonly sector: number; readonly sectorCount: number; readonly unmap: boolean },
  ): void {
    const { sector, sectorCount, unmap } = range;
    const place = { offset: sector * 512, length: sectorCount * 512 };
    this.#add({ slot, type, ...place, unmap, content: null, flush: 0 });
  }

  #add(pending: Pending): void {
    const { slot, type, offset, length, unmap } = pending;
    assert(this.#taken.has(slot), `slot ${slot} is nobody's`);
    assert(this.pending.every((each) => each.slot !== slot), `slot ${slot} was submitted twice`);
    assertEquals([offset % 512, length % 512], [0, 0]);
    assert(offset >= 0 && offset + length <= this.disk.length, "beyond the disk");
    if (type < 2) assert(length <= this.bufferBytes, "longer than the slot's buffer");
    this.log.push(unmap ? [type, offset, length, true] : [type, offset, length]);
    this.pending.push(pending);
  }

  /**
   * Does one request; it can be reaped then.
   *
   * @param at its place among those under way
   * @param status 0: well; anything else: nothing is done, and that is its status
   */
  complete(at = 0, status = 0): void {
    const [{ slot, type, offset, length, content, flush }] = this.pending.splice(at, 1);
    const data = this.dataOffset(slot);
    if (status === 0) {
      if (type === 0) this.bytes.set(this.disk.subarray(offset, offset + length), data);
      else if (type === 1) this.disk.set(this.bytes.subarray(data, data + length), offset);
      else if (type === 4) {
        if (flush > this.#flushed) this.durable.set(content!);
        this.#flushed = Math.max(this.#flushed, flush);
      } else this.disk.fill(0, offset, offset + length);
    } else this.bytes.fill(0xee, data, data + (type === 0 ? length : 0));
    this.#statuses[slot] = status;
    this.#done.push(slot);
  }

  /** Does everything that is under way. */
  completeAll(): void {
    while (this.pending.length > 0) this.complete();
  }

  status(slot: number): number {
    return this.#statuses[slot];
  }

  reap(): number {
    return this.#done.shift() ?? -1;
  }
}
