/**
 * What a look at a chunk of one replica finds, and how that travels.
 *
 *     Inspect, extra     layer u32 | the layer that it absorbs u32, 0: none | blocks asked for, 32 words
 *     answer, extra      stamp before: generation u32, sequence u64 | data | zeros | damaged | changed, 32 words each
 *     answer, head       generation, sequence: the stamp after; argument 1: writes are on their way into the store, 0: none is
 *     answer, data       one block: a checksum u32 for each block that is data and not damaged, in order, then zeros
 *
 * And what is to be replaced because of that, on one replica, by what another one has:
 *
 *     Replace, head      argument: the node that has it
 *     Replace, extra     for each block: block u32 | checksum of what the replica has u32 | checksum of what it is to have u32
 *
 * A set has bit b of word w for block 32·w + b. All of it is 4.5 KiB for a chunk, a thousandth of what is read for it: so it goes at once,
 * without a digest before.
 *
 * @module
 */
import { BLOCK_BYTES, CHUNK_BLOCKS } from "../base/limits.ts";
import { has, SET_WORDS } from "./block_set.ts";
import { Stamp } from "./local_store.ts";

/** Checksum of a block of zeros. */
export const ZEROS_CHECKSUM = 0x48c6_89ba;

/** What a look at a chunk has found, as far as it was asked for. */
export class Findings {
  /** The chunk's stamp before the first look, and after the last. */
  readonly begin = new Stamp();
  readonly end = new Stamp();
  readonly data = new Uint32Array(SET_WORDS);
  readonly zeros = new Uint32Array(SET_WORDS);
  /** Data that cannot be read, or does not match its checksum. */
  readonly damaged = new Uint32Array(SET_WORDS);
  /** Blocks of which nothing of this counts. */
  readonly changed = new Uint32Array(SET_WORDS);
  /** After the last look no write of the chunk that this replica has accepted is on its way into its store. */
  isIdle = true;
  /** Checksum of each block of data that is not damaged. */
  readonly checksums = new Uint32Array(CHUNK_BLOCKS);
}

/** What is to be looked at. */
export interface InspectionQuery {
  /** The layer, and the one that it absorbs, if it does. */
  readonly pair: readonly number[];
  readonly chunk: number;
  /** Blocks asked for; not kept. */
  readonly wanted: Uint32Array;
  /** Damage that is found is not healed. */
  readonly isQuiet: boolean;
}

/** Words of an Inspect's extra part. */
export const INSPECT_WORDS = 2 + SET_WORDS;
/** Words of its answer's. */
export const FINDINGS_WORDS = 3 + 4 * SET_WORDS;

/** A block that matches its checksum and is not what it should be. Contents are checksums of what a read through all layers gives. */
export interface Replacement {
  /** Of the chunk. */
  readonly block: number;
  /** What it holds: of anything else it is left alone. */
  readonly wrong: number;
  /** What it is to hold: nothing else is put there. */
  readonly right: number;
}

/** Words of one in a Replace's extra part. */
export const REPLACEMENT_WORDS = 3;
/** Most of one message, which its extra part has room for. */
export const REPLACEMENTS_MAX = 256;

/** Lays replacements out as the head of the file says. */
export function packReplacements(list: readonly Replacement[]): Uint32Array<ArrayBuffer> {
  return Uint32Array.from(list.flatMap(({ block, wrong, right }) => [block, wrong, right]));
}

/**
 * The other way round.
 *
 * @param extra bytes behind the head, from a peer
 * @returns null: it cannot be right
 */
export function unpackReplacements(extra: Uint8Array): Replacement[] | null {
  const bytes = 4 * REPLACEMENT_WORDS;
  const count = extra.length / bytes;
  if (!Number.isInteger(count) || count < 1 || count > REPLACEMENTS_MAX) return null;
  const words = new DataView(extra.buffer, extra.byteOffset, extra.length);
  const list: Replacement[] = [];
  for (let at = 0; at < extra.length; at += bytes) {
    const block = words.getUint32(at, true);
    if (block >= CHUNK_BLOCKS) return null;
    const [wrong, right] = [words.getUint32(at + 4, true), words.getUint32(at + 8, true)];
    list.push({ block, wrong, right });
  }
  return list;
}

const TWO32 = 2 ** 32;

/**
 * Lays findings out as the head of the file says.
 *
 * @param extra {@linkcode FINDINGS_WORDS} words or more
 * @param sums a block of words, overwritten
 * @returns words of `extra`
 */
export function packFindings(findings: Findings, extra: Uint32Array, sums: Uint32Array): number {
  const { begin, data, zeros, damaged, changed, checksums } = findings;
  extra[0] = begin.generation;
  extra[1] = begin.sequence;
  extra[2] = begin.sequence / TWO32;
  [data, zeros, damaged, changed].forEach((set, i) => extra.set(set, 3 + i * SET_WORDS));
  sums.fill(0);
  let at = 0;
  for (let block = 0; block < CHUNK_BLOCKS; block++) {
    if (has(data, block) && !has(damaged, block)) sums[at++] = checksums[block];
  }
  return FINDINGS_WORDS;
}

/**
 * The other way round.
 *
 * @param head of the answer
 * @param extra bytes behind the head, from a peer
 * @param sums words of the data
 * @returns null: it cannot be right
 */
export function unpackFindings(
  head: {
    readonly generation: number;
    readonly sequence: number;
    readonly argument: number;
  },
  extra: Uint8Array,
  sums: Uint32Array,
): Findings | null {
  if (extra.length !== FINDINGS_WORDS * 4 || sums.length !== BLOCK_BYTES / 4) return null;
  const words = new DataView(extra.buffer, extra.byteOffset, extra.length);
  const word = (index: number) => words.getUint32(index * 4, true);
  if (word(2) >= 2 ** 21) return null;
  const findings = new Findings();
  findings.begin.set(word(0), word(1) + word(2) * TWO32);
  findings.end.set(head.generation, head.sequence);
  findings.isIdle = head.argument === 0;
  const { data, zeros, damaged, changed, checksums } = findings;
  [data, zeros, damaged, changed].forEach((set, i) => {
    for (let w = 0; w < SET_WORDS; w++) set[w] = word(3 + i * SET_WORDS + w);
  });
  for (let w = 0; w < SET_WORDS; w++) {
    if ((data[w] & zeros[w]) !== 0 || (damaged[w] & ~data[w]) !== 0) return null;
  }
  let at = 0;
  for (let block = 0; block < CHUNK_BLOCKS; block++) {
    if (has(data, block) && !has(damaged, block)) checksums[block] = sums[at++];
  }
  return findings;
}
