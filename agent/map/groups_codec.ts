/**
 * A table of PGs as bytes: a dictionary of the distinct lists of nodes, then runs of equal entries. All
 * numbers are varints (7 bits a byte, low ones first; the top bit says that more follow).
 *
 *     lists     count, then each: length, id, …
 *     runs      until the table is full:
 *
 *       flags   1 byte   bit 0  target is the next list that no run has named yet; else its index follows
 *                        bit 1  inSync is the same list as target; else its index follows
 *                        bit 2  somebody joins: index of that list, and for each of it
 *                               changedEpoch − joinedEpoch
 *                        bit 3  somebody is unclean: index of that list
 *                        bit 4  unsettled
 *                        bit 5  another changedEpoch than the run before (0 before the first):
 *                               zigzag(difference)
 *                        bit 6  more than one PG: their number − 2
 *                        bit 7  it was settled once: changedEpoch − settledEpoch
 *       then what the flags announce: target, inSync, changedEpoch, joining, unclean,
 *       settledEpoch, number
 *
 * A pool of a small cluster has few distinct lists and takes 2 or 3 bytes for each run; one in which no
 * two PGs are alike takes about 12 bytes for each.
 *
 * Decoding trusts nothing: every number is bounded before anything is allocated for it, and what it means
 * is checked afterwards with the whole map. Entries and lists that are equal come back as one object.
 *
 * @module
 */

import { MEMBERS_MAX, NODE_ID_MAX, type PgEntry } from "./model.ts";

const FLAG_NEXT_TARGET = 1;
const FLAG_IN_SYNC_IS_TARGET = 2;
const FLAG_JOINING = 4;
const FLAG_UNCLEAN = 8;
const FLAG_UNSETTLED = 16;
const FLAG_EPOCH = 32;
const FLAG_MANY = 64;
const FLAG_SETTLED = 128;
/** Of an entry in which nobody joins, is unclean or was settled. */
const FLAGS_QUIET = FLAG_NEXT_TARGET | FLAG_IN_SYNC_IS_TARGET | FLAG_EPOCH | FLAG_MANY;

/** Seven bits of a varint. */
const VARINT_BASE = 128;

/** Longest varint, of a number up to 2^53, in bytes. */
const VARINT_BYTES_MAX = 8;

/**
 * Encodes a table.
 *
 * @param pgs entries that keep their invariants
 * @returns bytes of the caller's own
 */
export function encodeGroups(pgs: readonly PgEntry[]): Uint8Array<ArrayBuffer> {
  const lists = new Lists();
  const runs = new Writer();
  let epoch = 0;
  for (let index = 0; index < pgs.length;) {
    const pg = pgs[index];
    let end = index + 1;
    while (end < pgs.length && isSame(pg, pgs[end])) end++;
    const count = end - index;
    index = end;

    const nextNew = lists.count;
    const target = lists.indexOf(pg.target);
    const inSync = lists.indexOf(pg.inSync);
    runs.byte(
      (target === nextNew ? FLAG_NEXT_TARGET : 0) |
        (inSync === target ? FLAG_IN_SYNC_IS_TARGET : 0) |
        (pg.joining.length > 0 ? FLAG_JOINING : 0) |
        (pg.unclean.length > 0 ? FLAG_UNCLEAN : 0) |
        (pg.unsettled ? FLAG_UNSETTLED : 0) |
        (pg.changedEpoch !== epoch ? FLAG_EPOCH : 0) |
        (count > 1 ? FLAG_MANY : 0) |
        (pg.settledEpoch > 0 ? FLAG_SETTLED : 0),
    );
    if (target !== nextNew) runs.number(target);
    if (inSync !== target) runs.number(inSync);
    if (pg.changedEpoch !== epoch) runs.number(zigzag(pg.changedEpoch - epoch));
    epoch = pg.changedEpoch;
    if (pg.joining.length > 0) {
      runs.number(lists.indexOf(pg.joining));
      for (const joined of pg.joinedEpochs) runs.number(pg.changedEpoch - joined);
    }
    if (pg.unclean.length > 0) runs.number(lists.indexOf(pg.unclean));
    if (pg.settledEpoch > 0) runs.number(pg.changedEpoch - pg.settledEpoch);
    if (count > 1) runs.number(count - 2);
  }
  const head = new Writer();
  head.number(lists.count);
  for (const list of lists.all()) {
    head.number(list.length);
    for (const id of list) head.number(id);
  }
  const bytes = new Uint8Array(head.length + runs.length);
  bytes.set(head.bytes());
  bytes.set(runs.bytes(), head.length);
  return bytes;
}

/**
 * Decodes a table.
 *
 * @param bytes anything; not kept
 * @param count how many PGs it must have
 * @returns the entries, whose invariants are still to be checked; null for bytes that are no such table
 */
export function decodeGroups(bytes: Uint8Array, count: number): PgEntry[] | null {
  const reader = new Reader(bytes);
  const lists = readLists(reader, count);
  if (lists === null) return null;
  const pgs: PgEntry[] = [];
  /** Entries of this epoch in which nothing is under way, by their lists. */
  const known = new Map<number, PgEntry>();
  let nextNew = 0;
  let epoch = 0;
  const indexOfNamed = (): number => {
    const index = reader.number(lists.length - 1);
    nextNew = Math.max(nextNew, index + 1);
    return index;
  };
  while (pgs.length < count) {
    const flags = reader.byte();
    const target = (flags & FLAG_NEXT_TARGET) !== 0 ? nextNew++ : indexOfNamed();
    const inSync = (flags & FLAG_IN_SYNC_IS_TARGET) !== 0 ? target : indexOfNamed();
    if ((flags & FLAG_EPOCH) !== 0) {
      epoch += unzigzag(reader.number(Number.MAX_SAFE_INTEGER));
      known.clear();
    }
    const joining = (flags & FLAG_JOINING) !== 0 ? lists[indexOfNamed()] : NOBODY;
    const joinedEpochs = joining?.map(() => epoch - reader.number(Number.MAX_SAFE_INTEGER));
    const unclean = (flags & FLAG_UNCLEAN) !== 0 ? lists[indexOfNamed()] : NOBODY;
    const settledEpoch = (flags & FLAG_SETTLED) !== 0
      ? epoch - reader.number(Number.MAX_SAFE_INTEGER)
      : 0;
    const runLength = (flags & FLAG_MANY) !== 0 ? reader.number(count) + 2 : 1;
    const areThere = Math.max(target, inSync) < lists.length && joining !== undefined &&
      unclean !== undefined;
    if (reader.isBad || !areThere || runLength > count - pgs.length) return null;
    const isQuiet = (flags & ~FLAGS_QUIET) === 0;
    const key = target * lists.length + inSync;
    let pg = isQuiet ? known.get(key) : undefined;
    if (pg === undefined) {
      pg = {
        target: lists[target],
        inSync: lists[inSync],
        joining,
        joinedEpochs,
        unclean,
        unsettled: (flags & FLAG_UNSETTLED) !== 0,
        settledEpoch,
        changedEpoch: epoch,
      };
      if (isQuiet) known.set(key, pg);
    }
    for (let step = 0; step < runLength; step++) pgs.push(pg);
  }
  return reader.offset === bytes.length ? pgs : null;
}

/** Each PG names at most four lists. */
function readLists(reader: Reader, count: number): readonly (readonly number[])[] | null {
  const lists: number[][] = [];
  for (let left = reader.number(4 * count); left > 0; left--) {
    const list: number[] = [];
    for (let ids = reader.number(MEMBERS_MAX); ids > 0; ids--) {
      list.push(reader.number(NODE_ID_MAX));
    }
    if (reader.isBad) return null;
    lists.push(list);
  }
  return reader.isBad ? null : lists;
}

const NOBODY: readonly number[] = [];

function isSame(a: PgEntry, b: PgEntry): boolean {
  return a === b || a.changedEpoch === b.changedEpoch && a.unsettled === b.unsettled &&
      a.settledEpoch === b.settledEpoch &&
      isSameList(a.target, b.target) && isSameList(a.inSync, b.inSync) &&
      isSameList(a.joining, b.joining) && isSameList(a.joinedEpochs, b.joinedEpochs) &&
      isSameList(a.unclean, b.unclean);
}

function isSameList(a: readonly number[], b: readonly number[]): boolean {
  return a === b || a.length === b.length && a.every((each, index) => each === b[index]);
}

/** 0, −1, 1, −2, … as 0, 1, 2, 3, …; exact as far as the result is a safe integer. */
function zigzag(value: number): number {
  return value < 0 ? -2 * value - 1 : 2 * value;
}

function unzigzag(value: number): number {
  return value % 2 === 0 ? value / 2 : -(value + 1) / 2;
}

/** Distinct lists, numbered in the order in which they were asked for. */
class Lists {
  readonly #indexOf = new Map<string, number>();
  readonly #lists: (readonly number[])[] = [];

  get count(): number {
    return this.#lists.length;
  }

  all(): readonly (readonly number[])[] {
    return this.#lists;
  }

  indexOf(list: readonly number[]): number {
    const key = list.join();
    let index = this.#indexOf.get(key);
    if (index === undefined) {
      index = this.#lists.length;
      this.#indexOf.set(key, index);
      this.#lists.push(list);
    }
    return index;
  }
}

/** Bytes that grow. */
class Writer {
  #buffer = new Uint8Array(1024);
  length = 0;

  bytes(): Uint8Array {
    return this.#buffer.subarray(0, this.length);
  }

  byte(value: number): void {
    if (this.length === this.#buffer.length) {
      const larger = new Uint8Array(2 * this.#buffer.length);
      larger.set(this.#buffer);
      this.#buffer = larger;
    }
    this.#buffer[this.length++] = value;
  }

  /** A varint of a safe integer. */
  number(value: number): void {
    let rest = value;
    while (rest >= VARINT_BASE) {
      this.byte(rest % VARINT_BASE + VARINT_BASE);
      rest = Math.floor(rest / VARINT_BASE);
    }
    this.byte(rest);
  }
}

/** Reads until something is wrong; then {@linkcode isBad} is true and all numbers are 0. */
class Reader {
  offset = 0;
  isBad = false;

  constructor(readonly source: Uint8Array) {}

  byte(): number {
    if (this.isBad || this.offset >= this.source.length) {
      this.isBad = true;
      return 0;
    }
    return this.source[this.offset++];
  }

  /** A varint that is at most `most`. */
  number(most: number): number {
    let value = 0;
    let scale = 1;
    for (let count = 1; count <= VARINT_BYTES_MAX; count++) {
      const byte = this.byte();
      value += byte % VARINT_BASE * scale;
      if (byte < VARINT_BASE) {
        if (value <= most) return this.isBad ? 0 : value;
        break;
      }
      scale *= VARINT_BASE;
    }
    this.isBad = true;
    return 0;
  }
}
