/**
 * A disk of bytes behind a device under test, which completes requests in a seeded order.
 *
 * @module
 */
import type { Prng } from "../../agent/base/prng.ts";
import type { Window } from "../../agent/platform/platform.ts";
import {
  type Admission,
  BlockKind,
  type BlockRequest,
  type BlockTarget,
} from "../../agent/blk/target.ts";

/** See the top of the file. */
export class MockTarget implements BlockTarget {
  readonly serial = "kelpie-mock-serial-0";
  readOnly = false;
  admission?: Admission;
  sizeBytes: number;
  readonly data: Uint8Array<ArrayBuffer>;
  /** Requests taken and not completed. */
  readonly pending: BlockRequest[] = [];
  /** Every request, as it was submitted. */
  readonly log: {
    kind: BlockKind;
    offsetBytes: number;
    lengthBytes: number;
    segmentCount: number;
    forceUnitAccess: boolean;
    unmap: boolean;
  }[] = [];
  /** Requests to fail, by offset. */
  readonly bad = new Set<number>();

  constructor(sizeBytes: number, readonly windows: readonly Window[]) {
    this.sizeBytes = sizeBytes;
    this.data = new Uint8Array(sizeBytes);
  }

  submit(request: BlockRequest): void {
    if (this.pending.includes(request)) throw new Error("submitted twice");
    const { kind, offsetBytes, lengthBytes, segmentCount, forceUnitAccess, unmap } = request;
    this.log.push({ kind, offsetBytes, lengthBytes, segmentCount, forceUnitAccess, unmap });
    if (offsetBytes % 512 !== 0 || lengthBytes % 512 !== 0) throw new Error("unaligned request");
    if (offsetBytes + lengthBytes > this.sizeBytes) throw new Error("request beyond the end");
    if (kind === BlockKind.Read || kind === BlockKind.Write) {
      let sum = 0;
      for (let i = 0; i < segmentCount; i++) {
        const end = request.segmentOffsets[i] + request.segmentLengths[i];
        if (end > this.windows[request.segmentWindows[i]].bytes.length) throw new Error("outside");
        if (request.segmentLengths[i] === 0) throw new Error("an empty segment");
        sum += request.segmentLengths[i];
      }
      if (sum !== lengthBytes) throw new Error(`segments of ${sum} bytes for ${lengthBytes}`);
    }
    if (this.readOnly && kind !== BlockKind.Read && kind !== BlockKind.Flush) {
      throw new Error("a write reached a read-only target");
    }
    this.pending.push(request);
  }

  /** Completes one request. */
  complete(index = 0): void {
    const [request] = this.pending.splice(index, 1);
    request.result = this.bad.has(request.offsetBytes) ? -5 : 0;
    if (request.result === 0) this.#carryOut(request);
    request.owner.requestDone(request);
  }

  /** Completes up to `count` requests in random order. */
  completeSome(random: Prng, count: number): void {
    for (let i = 0; i < count && this.pending.length > 0; i++) {
      this.complete(random.below(this.pending.length));
    }
  }

  /** Completes everything, first in first out. */
  completeAll(): void {
    while (this.pending.length > 0) this.complete(0);
  }

  #carryOut(request: BlockRequest): void {
    let at = request.offsetBytes;
    if (request.kind === BlockKind.WriteZeroes || request.kind === BlockKind.Discard) {
      this.data.fill(0, at, at + request.lengthBytes);
      return;
    }
    for (let i = 0; i < request.segmentCount; i++) {
      const { bytes } = this.windows[request.segmentWindows[i]];
      const offset = request.segmentOffsets[i];
      const length = request.segmentLengths[i];
      if (request.kind === BlockKind.Read) bytes.set(this.data.subarray(at, at + length), offset);
      else if (request.kind === BlockKind.Write) {
        this.data.set(bytes.subarray(offset, offset + length), at);
      }
      at += length;
    }
  }
}
