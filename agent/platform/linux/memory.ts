/**
 * The arena and the windows that show guest memory beside it.
 *
 *     window (a WebAssembly memory of 2 GiB; the views over it never move)
 *     0            ARENA_BYTES                                         WINDOW_BYTES
 *     |   arena    |  guest piece  |  zero pages  |  guest piece  | …  |
 *
 * The arena is one memfd, mapped over the bottom of every window, so that copying between guest and arena
 * and checksumming are plain index arithmetic inside one memory: no view is made per I/O.
 *
 * Invariants:
 * - A mapping is only ever replaced, never removed: what a guest takes away becomes anonymous zero pages, so an
 *   access that comes too late reads zeros instead of ending the agent.
 * - A range belongs to at most one mapping.
 * - Pieces are aligned to the page size of the file behind them (huge pages included).
 *
 * @module
 */
import { createKernel } from "../../base/kernel.ts";
import { ARENA_BYTES, WINDOW_BYTES } from "../../base/limits.ts";
import { EINVAL, ENOMEM, type Window } from "../platform.ts";
import {
  addressOf,
  check,
  closeFd,
  cString,
  libc,
  MAP_ANONYMOUS,
  MAP_FIXED,
  MAP_NORESERVE,
  MAP_PRIVATE,
  MAP_SHARED,
  mapMemory,
  SystemError,
} from "./libc.ts";

/** Guest memory that one agent maps at the most: 4 TiB is more than any host the agent is meant for has. */
const WINDOWS_MAX = 2048;

/** A free range that is taken for a part of something larger than any window. */
const LARGE_RANGE_BYTES = WINDOW_BYTES / 2;
const WASM_PAGE_BYTES = 65536;
const SMALL_PAGE_BYTES = 4096;
/** A huge page of 1 GiB still finds an aligned place in a window; anything larger does not. */
const PAGE_BYTES_MAX = 1024 * 1024 * 1024;
const MFD_CLOEXEC = 1, MFD_ALLOW_SEALING = 2;
const FALLOC_FL_KEEP_SIZE = 1, FALLOC_FL_PUNCH_HOLE = 2;
const F_ADD_SEALS = 1033, F_GET_SEALS = 1034, F_SEAL_SHRINK = 2, F_SEAL_GROW = 4;

/** A part of a mapping: contiguous both in the file and in its window. */
export interface Piece {
  /** Index of the window. */
  readonly window: number;
  /** Byte offset in the window. */
  readonly offset: number;
  /** Bytes. */
  readonly length: number;
}

interface FreeRange {
  offset: number;
  length: number;
}

class LinuxWindow implements Window {
  readonly bytes: Uint8Array<ArrayBuffer>;
  readonly u16: Uint16Array<ArrayBuffer>;
  readonly u32: Uint32Array<ArrayBuffer>;
  readonly kernel: Window["kernel"];
  /** Host address of byte 0. */
  readonly address: number;
  /** Ranges above the arena that no mapping uses, ascending, never touching. */
  free: FreeRange[] = [{ offset: ARENA_BYTES, length: WINDOW_BYTES - ARENA_BYTES }];

  constructor(readonly index: number, arenaFd: number) {
    const pages = WINDOW_BYTES / WASM_PAGE_BYTES;
    const memory = new WebAssembly.Memory({ initial: pages, maximum: pages });
    const buffer = memory.buffer as ArrayBuffer;
    this.bytes = new Uint8Array(buffer);
    this.u16 = new Uint16Array(buffer);
    this.u32 = new Uint32Array(buffer);
    this.address = addressOf(this.bytes);
    mapMemory({
      address: this.address,
      lengthBytes: ARENA_BYTES,
      flags: MAP_SHARED | MAP_FIXED,
      fd: arenaFd,
    });
    this.kernel = createKernel(memory);
  }
}

/** The memory of one data worker. */
export class LinuxMemory {
  readonly #arenaFd: number;
  readonly #windows: LinuxWindow[] = [];

  constructor() {
    this.#arenaFd = check(
      libc.memfd_create(cString("kelpie-arena"), MFD_CLOEXEC),
      "memfd_create for the arena",
    );
    check(libc.ftruncate(this.#arenaFd, BigInt(ARENA_BYTES)), "ftruncate of the arena");
    this.#addWindow();
  }

  /** All windows; window 0 is the one to use for the arena alone. */
  get windows(): readonly Window[] {
    return this.#windows;
  }

  /** Host address of an arena offset. */
  get arenaAddress(): number {
    return this.#windows[0].address;
  }

  /**
   * Gives the memory of the arena's first `lengthBytes` back to the system; they read as zeros from now on. Nothing there may
   * be in use.
   */
  trimArena(lengthBytes: number): void {
    // Without success it stays as it was.
    libc.fallocate(
      this.#arenaFd,
      FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
      0n,
      BigInt(lengthBytes),
    );
  }

  /** Host address of a place in a window. */
  addressOf(window: number, offset: number): number {
    return this.#windows[window].address + offset;
  }

  #addWindow(): LinuxWindow {
    const window = new LinuxWindow(this.#windows.length, this.#arenaFd);
    this.#windows.push(window);
    return window;
  }

  /**
   * Maps a part of a shared file into windows. The descriptor may be closed afterwards.
   *
   * @param fd memfd, hugetlbfs or shared-memory file
   * @param fdOffset first byte in the file
   * @param lengthBytes bytes, > 0
   * @returns the pieces in order, or a negative errno: −EINVAL when the file is shorter than the range (touching it
   * would be fatal) or the alignment does not fit, −ENOMEM when there is no room
   */
  mapShared(fd: number, fdOffset: number, lengthBytes: number): Piece[] | number {
    if (
      lengthBytes <= 0 || fdOffset < 0 || !Number.isSafeInteger(fdOffset + lengthBytes) ||
      lengthBytes > WINDOWS_MAX * WINDOW_BYTES
    ) return -EINVAL;
    const fileBytes = Number(libc.lseek(fd, 0n, 2));
    if (fileBytes < fdOffset + lengthBytes) return -EINVAL;
    const page = pageBytesOf(fd);
    if (page > PAGE_BYTES_MAX) return -EINVAL;
    const pieces: Piece[] = [];
    let at = fdOffset;
    const end = fdOffset + lengthBytes;
    while (at < end) {
      const lead = at % page;
      const place = this.#reserve(page, lead + (end - at));
      if (place === null) {
        this.unmap(pieces);
        return -ENOMEM;
      }
      const mapped = Math.min(place.length, roundUp(lead + (end - at), page));
      try {
        mapMemory({
          address: place.window.address + place.offset,
          lengthBytes: mapped,
          flags: MAP_SHARED | MAP_FIXED | MAP_NORESERVE,
          fd,
          offset: at - lead,
        });
      } catch (error) {
        this.#release(place.window, place.offset, place.length);
        this.unmap(pieces);
        return error instanceof SystemError ? -error.code : -ENOMEM;
      }
      const length = Math.min(mapped - lead, end - at);
      pieces.push({ window: place.window.index, offset: place.offset + lead, length });
      at += length;
    }
    this.#pageBytes.set(pieces, page);
    return pieces;
  }

  /** Page size of each mapping, for {@linkcode unmap}; weak, since pieces are the caller's. */
  readonly #pageBytes = new WeakMap<readonly Piece[], number>();

  /** Takes the pieces of one `mapShared` away. Their bytes read as zeros from now on. */
  unmap(pieces: readonly Piece[]): void {
    const page = this.#pageBytes.get(pieces) ?? SMALL_PAGE_BYTES;
    for (const piece of pieces) {
      const window = this.#windows[piece.window];
      const base = window.address + piece.offset;
      const start = base - base % page;
      const length = roundUp(base - start + piece.length, page);
      mapMemory({
        address: start,
        lengthBytes: length,
        flags: MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE,
      });
      this.#release(window, start - window.address, length);
    }
    this.#pageBytes.delete(pieces);
  }

  /**
   * Makes a sealed memfd of `lengthBytes` zeros. The caller owns the descriptor.
   * Throws {@linkcode SystemError}.
   */
  createShared(name: string, lengthBytes: number): number {
    const fd = check(
      libc.memfd_create(cString(name), MFD_CLOEXEC | MFD_ALLOW_SEALING),
      "memfd_create",
    );
    if (libc.ftruncate(fd, BigInt(lengthBytes)) < 0) {
      closeFd(fd);
      throw new SystemError(`ftruncate of a shared area to ${lengthBytes} bytes`, ENOMEM);
    }
    libc.fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW);
    return fd;
  }

  /**
   * Finds room in one window: the whole length if it fits anywhere, otherwise the largest aligned
   * range there is.
   */
  #reserve(
    page: number,
    wantedBytes: number,
  ): { window: LinuxWindow; offset: number; length: number } | null {
    const wanted = roundUp(wantedBytes, page);
    let best: { window: LinuxWindow; offset: number; length: number } | null = null;
    for (const window of this.#windows) {
      for (const range of window.free) {
        const start = alignedStart(window, range.offset, page);
        const room = roundDown(range.offset + range.length - start, page);
        if (room >= wanted) return this.#take(window, start, wanted);
        if (room > 0 && (best === null || room > best.length)) {
          best = { window, offset: start, length: room };
        }
      }
    }
    // Large guests shall be in few pieces: a window that is mostly free will do, smaller leftovers serve only when no more
    // windows may be made.
    if (best !== null && best.length >= LARGE_RANGE_BYTES) {
      return this.#take(best.window, best.offset, best.length);
    }
    if (this.#windows.length < WINDOWS_MAX) {
      let window: LinuxWindow;
      try {
        window = this.#addWindow();
      } catch {
        return best === null ? null : this.#take(best.window, best.offset, best.length);
      }
      const start = alignedStart(window, ARENA_BYTES, page);
      const room = roundDown(WINDOW_BYTES - start, page);
      return room <= 0 ? null : this.#take(window, start, Math.min(room, wanted));
    }
    return best === null ? null : this.#take(best.window, best.offset, best.length);
  }

  #take(window: LinuxWindow, offset: number, length: number) {
    const index = window.free.findIndex((range) =>
      range.offset <= offset && offset + length <= range.offset + range.length
    );
    const range = window.free[index];
    const before = { offset: range.offset, length: offset - range.offset };
    const after = {
      offset: offset + length,
      length: range.offset + range.length - (offset + length),
    };
    window.free.splice(index, 1, ...[before, after].filter((part) => part.length > 0));
    return { window, offset, length };
  }

  #release(window: LinuxWindow, offset: number, length: number): void {
    const free = window.free;
    let index = free.findIndex((range) => range.offset > offset);
    if (index < 0) index = free.length;
    free.splice(index, 0, { offset, length });
    const next = free[index + 1];
    if (next !== undefined && offset + length === next.offset) {
      free[index].length += next.length;
      free.splice(index + 1, 1);
    }
    const previous = free[index - 1];
    if (previous !== undefined && previous.offset + previous.length === offset) {
      previous.length += free[index].length;
      free.splice(index, 1);
    }
  }
}

/** True when the file cannot be truncated under us: then no access to its mapping can be fatal. */
export function isSealed(fd: number): boolean {
  const seals = libc.fcntl(fd, F_GET_SEALS, 0);
  return seals >= 0 && (seals & F_SEAL_SHRINK) !== 0;
}

/** Page size of the file behind a descriptor: that of hugetlbfs, otherwise 4 KiB. */
function pageBytesOf(fd: number): number {
  const HUGETLBFS_MAGIC = 0x958458f6;
  const statfs = new Uint8Array(256);
  if (libc.fstatfs(fd, statfs) < 0) return SMALL_PAGE_BYTES;
  const words = new Uint32Array(statfs.buffer);
  return words[0] === HUGETLBFS_MAGIC ? words[2] + words[3] * 0x1_0000_0000 : SMALL_PAGE_BYTES;
}

function alignedStart(window: LinuxWindow, offset: number, page: number): number {
  return roundUp(window.address + offset, page) - window.address;
}

function roundUp(value: number, unit: number): number {
  return Math.ceil(value / unit) * unit;
}

function roundDown(value: number, unit: number): number {
  return Math.floor(value / unit) * unit;
}
