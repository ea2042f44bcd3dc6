/**
 * What a verifying load writes and expects: every 512-byte sector says which sector it is, which writing
 * of it, and of which run.
 *
 *     sector   0 magic u32 | 4 seed u32 | 8 sector u64 | 16 generation u32 | 20 filling, to 512
 *
 * A block (of the load's block size) has at most one request in flight, so it must hold its last
 * acknowledged generation, or, where a write was not acknowledged, that one's — sector by sector.
 *
 * @module
 */
import { SECTOR_BYTES } from "../agent/frontend/virtio_blk.ts";

const MAGIC = 0x4b565253; // "SRVK"
const SECTOR_WORDS = SECTOR_BYTES / 4;
const HEADER_WORDS = 5;
/** Odd, so that the filling runs through all 32-bit values; from the golden ratio. */
const FILLING_STEP = 0x9e3779b9;

/** Blocks that a table may cover: 9 bytes each. 256 GiB at 4 KiB. */
export const VERIFY_BLOCKS_MAX = 64 * 1024 * 1024;

/** Which blocks a load may touch. */
export interface VerifyRange {
  readonly seed: number;
  readonly blockBytes: number;
  readonly offsetBytes: number;
  readonly blockCount: number;
}

/**
 * Generations of all blocks. Give the same table to a later run to go on with what an earlier one wrote,
 * for instance after the back end was killed.
 */
export class VerifyTable implements VerifyRange {
  readonly seed: number;
  readonly blockBytes: number;
  readonly offsetBytes: number;
  readonly blockCount: number;
  /** Generation of the last acknowledged write; 0 where there was none. */
  readonly acknowledged: Uint32Array<ArrayBuffer>;
  /** Generation of the last write that was sent. */
  readonly issued: Uint32Array<ArrayBuffer>;
  /** Blocks with a request in flight. */
  readonly isBusy: Uint8Array<ArrayBuffer>;
  readonly #firstSector: number;
  readonly #sectorsPerBlock: number;

  constructor(range: VerifyRange) {
    if (range.blockCount > VERIFY_BLOCKS_MAX) {
      throw new RangeError(
        `verifying covers at most ${VERIFY_BLOCKS_MAX} blocks, not ${range.blockCount}: use a ` +
          `smaller size or larger blocks`,
      );
    }
    this.seed = range.seed >>> 0;
    this.blockBytes = range.blockBytes;
    this.offsetBytes = range.offsetBytes;
    this.blockCount = range.blockCount;
    this.acknowledged = new Uint32Array(range.blockCount);
    this.issued = new Uint32Array(range.blockCount);
    this.isBusy = new Uint8Array(range.blockCount);
    this.#firstSector = range.offsetBytes / SECTOR_BYTES;
    this.#sectorsPerBlock = range.blockBytes / SECTOR_BYTES;
  }

  /** Fills one block's words with the stamp of a generation. */
  stamp(words: Uint32Array, first: number, block: number, generation: number): void {
    let sector = this.#firstSector + block * this.#sectorsPerBlock;
    const end = first + this.#sectorsPerBlock * SECTOR_WORDS;
    for (let at = first; at < end; at += SECTOR_WORDS, sector++) {
      words[at] = MAGIC;
      words[at + 1] = this.seed;
      words[at + 2] = sector;
      words[at + 3] = sector / 2 ** 32;
      words[at + 4] = generation;
      let filling = fillingOf(sector, generation, this.seed);
      for (let word = at + HEADER_WORDS; word < at + SECTOR_WORDS; word++) {
        filling = (filling + FILLING_STEP) | 0;
        words[word] = filling;
      }
    }
  }

  /**
   * Checks one block that was read.
   *
   * @returns −1 when every sector is right (or nothing is known of the block), otherwise the index within
   * the block of the first sector that is not
   */
  check(words: Uint32Array, first: number, block: number): number {
    const acknowledged = this.acknowledged[block];
    const issued = this.issued[block];
    if (acknowledged === 0) return -1;
    const firstSector = this.#firstSector + block * this.#sectorsPerBlock;
    for (let index = 0; index < this.#sectorsPerBlock; index++) {
      const at = first + index * SECTOR_WORDS;
      if (this.#isSector(words, at, firstSector + index, acknowledged)) continue;
      if (issued !== acknowledged && this.#isSector(words, at, firstSector + index, issued)) {
        continue;
      }
      return index;
    }
    return -1;
  }

  #isSector(words: Uint32Array, at: number, sector: number, generation: number): boolean {
    if (
      words[at] !== MAGIC || words[at + 1] !== this.seed || words[at + 2] !== sector >>> 0 ||
      words[at + 3] !== Math.floor(sector / 2 ** 32) || words[at + 4] !== generation
    ) return false;
    let filling = fillingOf(sector, generation, this.seed);
    for (let word = at + HEADER_WORDS; word < at + SECTOR_WORDS; word++) {
      filling = (filling + FILLING_STEP) | 0;
      if (words[word] !== filling >>> 0) return false;
    }
    return true;
  }

  /** What a wrong sector holds, for people. */
  describe(words: Uint32Array, first: number, block: number, index: number): string {
    const at = first + index * SECTOR_WORDS;
    const sector = this.#firstSector + block * this.#sectorsPerBlock + index;
    const [acknowledged, issued] = [this.acknowledged[block], this.issued[block]];
    const wanted = issued === acknowledged ? `${acknowledged}` : `${acknowledged} or ${issued}`;
    const found = words[at] !== MAGIC
      ? `no stamp (it begins with 0x${words[at].toString(16).padStart(8, "0")})`
      : words[at + 1] !== this.seed
      ? `the stamp of another run (seed ${words[at + 1]})`
      : `sector ${words[at + 2] + words[at + 3] * 2 ** 32}, generation ${words[at + 4]}`;
    const where = `sector ${sector} (byte ${sector * SECTOR_BYTES})`;
    const isHeaderRight = words[at] === MAGIC && words[at + 1] === this.seed &&
      words[at + 2] + words[at + 3] * 2 ** 32 === sector &&
      (words[at + 4] === acknowledged || words[at + 4] === issued);
    return `${where} should hold generation ${wanted} and holds ${found}` +
      (isHeaderRight ? ", with damaged filling" : "");
  }
}

function fillingOf(sector: number, generation: number, seed: number): number {
  const mixed = Math.imul(sector | 0, 0x85ebca6b) ^ Math.imul(generation, 0xc2b2ae35) ^ seed;
  return Math.imul(mixed ^ (mixed >>> 15), 0x27d4eb2f) | 0;
}
