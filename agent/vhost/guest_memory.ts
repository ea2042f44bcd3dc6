/**
 * The guest's memory as this process sees it: regions, cut into pieces that lie in windows.
 *
 *     guest address     |---- region 0 ----|        |------------- region 1 -------------|
 *     user address             |---- region 0 ----||------------- region 1 -------------|
 *     windows           [ 1: piece 0 ]                [ 1: piece 1 ][ 2: piece 2         ]
 *
 * A region has a guest address (what descriptors hold) and a user address (what SET_VRING_ADDR
 * holds). One that is larger than a window, or than what is free in one, consists of several pieces.
 *
 * Invariants:
 * - Regions overlap neither in guest nor in user addresses; every byte of a region is in exactly one piece.
 * - A lookup never reports a byte outside a region; ranges that cross the end of a piece are cut there, and it is
 *   the caller who goes on with the rest.
 * - Lookups neither allocate nor throw, whatever address they are given.
 *
 * @module
 */
import type { Window } from "../platform/platform.ts";
import { isErrno, type MappedPiece, type VhostHost } from "./host.ts";
import type { MemoryRegion } from "./message.ts";

/**
 * Regions of one guest: what QEMU offers at the most on x86 (its memory slots, less those of the VGA).
 * Each costs a mapping or more, so this bounds what one front end can take.
 */
export const REGIONS_MAX = 509;

/** Granularity of regions, in bytes: mmap works in pages. */
const REGION_ALIGNMENT_BYTES = 4096;

/** Bytes of guest memory that one front end may share: 4 TiB, more than any host it is meant for has. */
const GUEST_BYTES_MAX = 4 * 1024 ** 4;

interface Region extends MemoryRegion {
  readonly pieces: readonly MappedPiece[];
  /** Kept only where the region has a seam, for rings that cross it; otherwise −1. */
  readonly fd: number;
}

/** A place in a window. */
export interface Place {
  readonly window: number;
  readonly offset: number;
  /** A mapping of its own, to be given back with {@linkcode GuestMemory.releasePlace}; else null. */
  readonly mapping: readonly MappedPiece[] | null;
}

/** The regions of one front end. */
export class GuestMemory {
  /** Result of the last lookup: index of the window. */
  window = 0;
  /** Result of the last lookup: byte offset in the window. */
  offset = 0;
  /** Result of the last lookup: bytes from there to the end of the piece or range. */
  contiguousBytes = 0;
  /** Result of the last lookup: a number that only places of the same piece share. */
  piece = 0;

  readonly #host: VhostHost;
  readonly #regions: Region[] = [];
  // Pieces sorted by guest address, in columns; rebuilt when regions change.
  #pieceCount = 0;
  #starts = new Float64Array(0);
  #ends = new Float64Array(0);
  #windows = new Uint16Array(0);
  #offsets = new Uint32Array(0);
  /** Piece of the last hit. Guests use few regions, so it is nearly always the next one too. */
  #last = 0;
  /** Piece of the last hit of {@linkcode guestAddressOf}. */
  #lastReverse = 0;

  /**
   * @param host maps and unmaps
   * @param windows all windows; may grow while regions are added
   */
  constructor(host: VhostHost, readonly windows: readonly Window[]) {
    this.#host = host;
  }

  /** Regions there are. */
  get regionCount(): number {
    return this.#regions.length;
  }

  /** Bytes of all regions. */
  get totalBytes(): number {
    return this.#regions.reduce((sum, region) => sum + region.sizeBytes, 0);
  }

  /**
   * Maps a region. Takes ownership of `fd` in any case.
   *
   * @returns why not, or null
   */
  add(region: MemoryRegion, fd: number): string | null {
    const reason = this.#reasonAgainst(region);
    if (reason !== null) {
      this.#host.closeFd(fd);
      return reason;
    }
    const pieces = this.#host.map(fd, region.fileOffset, region.sizeBytes);
    if (isErrno(pieces)) {
      this.#host.closeFd(fd);
      return `${describe(region)} cannot be mapped: errno ${-pieces} (is the file shorter?)`;
    }
    const isWhole = pieces.length === 1;
    if (isWhole) this.#host.closeFd(fd);
    this.#regions.push({ ...region, pieces, fd: isWhole ? -1 : fd });
    this.#index();
    return null;
  }

  /** Forgets the region with the same addresses and size. False when there is none. */
  remove(region: MemoryRegion): boolean {
    const index = this.#regions.findIndex((other) =>
      other.guestAddress === region.guestAddress && other.userAddress === region.userAddress &&
      other.sizeBytes === region.sizeBytes
    );
    if (index < 0) return false;
    const [removed] = this.#regions.splice(index, 1);
    this.#index();
    this.#drop(removed);
    return true;
  }

  /** Forgets all regions. Nothing may be in flight. */
  clear(): void {
    const regions = this.#regions.splice(0);
    this.#index();
    for (const region of regions) this.#drop(region);
  }

  #drop(region: Region): void {
    this.#host.unmap(region.pieces);
    if (region.fd >= 0) this.#host.closeFd(region.fd);
  }

  #reasonAgainst(region: MemoryRegion): string | null {
    const { guestAddress, userAddress, sizeBytes, fileOffset } = region;
    if (sizeBytes === 0) return `${describe(region)} is empty`;
    for (const value of [guestAddress, userAddress, sizeBytes, fileOffset]) {
      if (value % REGION_ALIGNMENT_BYTES !== 0) {
        return `${describe(region)} is not aligned to ${REGION_ALIGNMENT_BYTES} bytes`;
      }
    }
    if (this.#regions.length >= REGIONS_MAX) {
      return `${describe(region)} is one more than the ${REGIONS_MAX} regions allowed`;
    }
    if (this.totalBytes + sizeBytes > GUEST_BYTES_MAX) {
      return `${describe(region)} exceeds the ${GUEST_BYTES_MAX} bytes allowed for all regions`;
    }
    for (const address of [guestAddress, userAddress, fileOffset]) {
      if (!Number.isSafeInteger(address + sizeBytes)) return `${describe(region)} wraps around`;
    }
    for (const other of this.#regions) {
      if (
        overlap(guestAddress, other.guestAddress, sizeBytes, other.sizeBytes) ||
        overlap(userAddress, other.userAddress, sizeBytes, other.sizeBytes)
      ) return `${describe(region)} overlaps ${describe(other)}`;
    }
    return null;
  }

  #index(): void {
    const rows: { start: number; piece: MappedPiece }[] = [];
    for (const region of this.#regions) {
      let start = region.guestAddress;
      for (const piece of region.pieces) {
        rows.push({ start, piece });
        start += piece.length;
      }
    }
    rows.sort((a, b) => a.start - b.start);
    this.#pieceCount = rows.length;
    this.#starts = Float64Array.from(rows, (row) => row.start);
    this.#ends = Float64Array.from(rows, (row) => row.start + row.piece.length);
    this.#windows = Uint16Array.from(rows, (row) => row.piece.window);
    this.#offsets = Uint32Array.from(rows, (row) => row.piece.offset);
    this.#last = 0;
    this.#lastReverse = 0;
  }

  /**
   * Finds a guest address; the results are in `window`, `offset` and `contiguousBytes` (at most
   * `length`).
   *
   * @param address guest address; any number
   * @param length bytes wanted, > 0
   * @returns false when the address is in no region
   */
  find(address: number, length: number): boolean {
    let piece = this.#last;
    if (
      piece >= this.#pieceCount ||
      !(address >= this.#starts[piece] && address < this.#ends[piece])
    ) {
      piece = this.#search(address);
      if (piece < 0) return false;
      this.#last = piece;
    }
    const rest = this.#ends[piece] - address;
    this.piece = piece;
    this.window = this.#windows[piece];
    // Both are below 2^31, since a window is 2 GiB; saying so keeps them small integers.
    this.offset = (this.#offsets[piece] + (address - this.#starts[piece])) | 0;
    this.contiguousBytes = (rest < length ? rest : length) | 0;
    return true;
  }

  #search(address: number): number {
    let low = 0;
    let high = this.#pieceCount - 1;
    while (low <= high) {
      const middle = (low + high) >>> 1;
      if (!(address >= this.#starts[middle])) high = middle - 1;
      else if (!(address < this.#ends[middle])) low = middle + 1;
      else return middle;
    }
    return -1;
  }

  /** Guest address of a place that {@linkcode find} gave, or −1. For the dirty log. */
  guestAddressOf(window: number, offset: number): number {
    for (let tries = 0, piece = this.#lastReverse; tries < this.#pieceCount; tries++) {
      const start = this.#offsets[piece];
      if (
        this.#windows[piece] === window && offset >= start &&
        offset < start + (this.#ends[piece] - this.#starts[piece])
      ) {
        this.#lastReverse = piece;
        return this.#starts[piece] + (offset - start);
      }
      if (++piece === this.#pieceCount) piece = 0;
    }
    return -1;
  }

  /**
   * Finds a part of a ring, which must be contiguous, by its user address. Where it crosses the seam between two
   * pieces of a region, it gets a mapping of its own.
   *
   * @returns the place, or why there is none
   */
  findRing(userAddress: number, length: number): Place | string {
    const region = this.#regions.find((candidate) =>
      userAddress >= candidate.userAddress &&
      userAddress + length <= candidate.userAddress + candidate.sizeBytes
    );
    if (region === undefined) return "is not inside one memory region";
    const start = userAddress - region.userAddress;
    let pieceStart = 0;
    for (const piece of region.pieces) {
      if (start >= pieceStart && start + length <= pieceStart + piece.length) {
        return { window: piece.window, offset: piece.offset + (start - pieceStart), mapping: null };
      }
      pieceStart += piece.length;
    }
    const lead = start % REGION_ALIGNMENT_BYTES;
    const mapping = this.#host.map(region.fd, region.fileOffset + start - lead, lead + length);
    if (isErrno(mapping)) return `cannot be mapped: errno ${-mapping}`;
    if (mapping.length > 1) {
      this.#host.unmap(mapping);
      return "cannot be mapped in one piece";
    }
    return { window: mapping[0].window, offset: mapping[0].offset + lead, mapping };
  }

  /** Gives back what {@linkcode findRing} found. */
  releasePlace(place: Place): void {
    if (place.mapping !== null) this.#host.unmap(place.mapping);
  }
}

function overlap(a: number, b: number, aLength: number, bLength: number): boolean {
  return a < b + bLength && b < a + aLength;
}

function describe(region: MemoryRegion): string {
  const hex = (value: number) => `0x${value.toString(16)}`;
  return `memory region ${hex(region.guestAddress)}+${hex(region.sizeBytes)} (user address ` +
    `${hex(region.userAddress)}, file offset ${hex(region.fileOffset)})`;
}
