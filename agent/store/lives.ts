/**
 * The lives of segments: which records may lie where, as this store knows it without asking the disk.
 *
 * A segment is written from its first block on again and again. Each time is a life of it, under a sequence that was never
 * used before and that every record of that life names. What the life before wrote stays on the disk until it is written
 * over; where the disk loses the write of a record it stays for good, and looks as right as ever: the data of the older record
 * matches the older record's checksums. So whoever takes checksums from a header on the disk asks here whose header it has to
 * be (header_proof.ts).
 *
 *     blocks     0        1 ───────────────── 20 ───────────── 31
 *     written    header   records, lsn 12…41  │ first the tail that a crash tore, lsn 43…50: it does not count
 *                                             │ then over it, after the restart, records from lsn 307 on
 *     known      sequence 9                   from block 20 on: lsn 307 or higher
 *
 * The sequence alone does not tell where the log has gone on in a segment after a restart: the tail that was ignored has it as
 * well. But lsns of one opening are higher than all that may be in there from before (open.ts), so the lowest of them tells.
 *
 * Invariants:
 * - A segment's life begins when the log opens it, before anything is written to it, and is known until the next one begins:
 *   whatever the index has in the segment is of that life, since a segment becomes free only once nothing in it is needed.
 *   Nothing is asked about free segments, so nobody has to forget anything.
 * - Within a life one opening of the store never writes different content to one place. After a failed write either all batches of
 *   the segment are written there again, in the same order (it was the first one: log.ts `#placeAnew`), or the segment is sealed
 *   before it, and what may lie behind is nothing that the index refers to. Segments that are taken back begin another life.
 * - What is known here was never read from a segment's header alone: that comes with the segment's first record, in one write,
 *   and is lost with it. Sequences come from the log as it is written, from the superblock, from replayed records that follow
 *   each other without a gap, and from checkpoints (format 3), which have them of all segments that their index refers to:
 *   what dies while a checkpoint is written is not used again before it is complete (segments.ts), and what is opened after
 *   its beginning is replayed. A segment of which a header has reached the disk and no record that counts is still in the life
 *   before: where the tail of the log does not count, what that had made dead is needed again.
 * - A life that only a checkpoint of before format 3 could have told is not known: then the disk is believed.
 *
 * Image in a checkpoint: items × (location u32, sequence u64, lsn u64), rising: from the location on, up to the next item's or
 * the segment's end, records have that sequence and that lsn or higher. The first item of a segment is about all of it, at its
 * first block with lsn 0.
 *
 * @module
 */
import { readU64, writeU64 } from "./format.ts";

const IMAGE_WORDS = 5;
/** Bytes of an item in a checkpoint. */
export const LIFE_IMAGE_BYTES = IMAGE_WORDS * 4;

/** An item of the image. */
export interface Life {
  readonly block: number;
  readonly sequence: number;
  readonly lsn: number;
}

/**
 * Lays an item out at word `at`.
 *
 * @param start location of its segment
 */
export function encodeLife(words: Uint32Array, at: number, start: number, life: Life): void {
  words[at] = start + life.block;
  writeU64(words, at + 1, life.sequence);
  writeU64(words, at + 3, life.lsn);
}

/** A place where the log has gone on in a segment. */
interface Resumption {
  readonly block: number;
  /** Records from there on have this lsn or a higher one. */
  readonly lsn: number;
}

const NONE: readonly Resumption[] = [];

/** See the head of the file. */
export class Lives {
  /** Of each segment; 0: not known. */
  #sequence: Float64Array<ArrayBuffer>;
  /** By segment, blocks rising: few have any. */
  readonly #resumptions = new Map<number, readonly Resumption[]>();

  /** @param count segments */
  constructor(count: number) {
    this.#sequence = new Float64Array(count);
  }

  /** As {@linkcode Segments.resize}. */
  resize(count: number): void {
    const sequence = new Float64Array(count);
    sequence.set(this.#sequence.subarray(0, Math.min(count, this.#sequence.length)));
    this.#sequence = sequence;
    for (const segment of [...this.#resumptions.keys()]) {
      if (segment >= count) this.#resumptions.delete(segment);
    }
  }

  /** A life of `segment` begins: all that is written to it from now on has this sequence. */
  begin(segment: number, sequence: number): void {
    this.#sequence[segment] = sequence;
    this.#resumptions.delete(segment);
  }

  /**
   * The log goes on in a life of `segment` that had begun before.
   *
   * @param block where: what was known from there on counts no longer
   * @param lsn lowest of what is written from now on
   */
  goOn(segment: number, block: number, sequence: number, lsn: number): void {
    if (this.#sequence[segment] !== sequence) this.begin(segment, sequence);
    const before = this.#of(segment).filter((each) => each.block < block);
    this.#resumptions.set(segment, [...before, { block, lsn }]);
  }

  #of(segment: number): readonly Resumption[] {
    return this.#resumptions.get(segment) ?? NONE;
  }

  /** Sequence of all that counts in `segment`; 0: not known. */
  sequenceOf(segment: number): number {
    return this.#sequence[segment];
  }

  /** Lowest lsn that a record may have whose header begins at `block` of `segment`; 0: any. */
  lsnMin(segment: number, block: number): number {
    let lsn = 0;
    for (const each of this.#of(segment)) if (each.block <= block) ({ lsn } = each);
    return lsn;
  }

  /** Items that the image of `count` segments has at the most. */
  itemsMax(count: number): number {
    let items = count;
    for (const each of this.#resumptions.values()) items += each.length;
    return items;
  }

  /** Items of one segment in the image. */
  itemsOf(segment: number): Life[] {
    const sequence = this.#sequence[segment];
    if (sequence === 0) return [];
    return [
      { block: 1, sequence, lsn: 0 },
      ...this.#of(segment).map(({ block, lsn }) => ({ block, sequence, lsn })),
    ];
  }

  /**
   * Takes one part of an image in.
   *
   * @param words where it lies
   * @param at its first word
   * @param items in it
   * @param placeOf segment and block of a location; null: in a segment that was cut off since
   * @returns null, or what is wrong with it
   */
  loadImage(
    words: Uint32Array,
    at: number,
    items: number,
    placeOf: (location: number) => { segment: number; block: number } | null,
  ): string | null {
    for (let i = 0; i < items; i++, at += IMAGE_WORDS) {
      const place = placeOf(words[at]);
      const sequence = readU64(words, at + 1);
      const lsn = readU64(words, at + 3);
      if (!(sequence >= 1) || !(lsn >= 0)) return "a life is out of range";
      if (place === null) continue;
      const { segment, block } = place;
      if (block === 1 && lsn === 0) this.begin(segment, sequence);
      else if (this.#sequence[segment] !== sequence) {
        return "lives of a segment contradict each other";
      } else this.goOn(segment, block, sequence, lsn);
    }
    return null;
  }
}
