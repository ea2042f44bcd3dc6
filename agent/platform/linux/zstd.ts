/**
 * Zstandard, by the C library of its makers, which every Linux host has: its package managers use it themselves. Frames are compressed
 * and decompressed on threads of the runtime's pool, so that several of them and the caller's own work go on side by side.
 *
 * Invariants: a context and the buffers of a call are used by nobody else before it is done; what a frame may grow to is the length
 * of the buffer that it is given, whatever it says of itself.
 *
 * @module
 */

const symbols = {
  // size_t ZSTD_compress2(ZSTD_CCtx*, void* dst, size_t dstCapacity, const void* src, size_t srcSize), since 1.4 of 2019
  compress: {
    name: "ZSTD_compress2",
    parameters: ["pointer", "buffer", "usize", "buffer", "usize"],
    result: "usize",
    nonblocking: true,
  },
  // size_t ZSTD_CCtx_setParameter(ZSTD_CCtx*, ZSTD_cParameter, int value)
  setParameter: {
    name: "ZSTD_CCtx_setParameter",
    parameters: ["pointer", "i32", "i32"],
    result: "usize",
  },
  // size_t ZSTD_decompressDCtx(ZSTD_DCtx*, void* dst, size_t dstCapacity, const void* src, size_t srcSize)
  decompress: {
    name: "ZSTD_decompressDCtx",
    parameters: ["pointer", "buffer", "usize", "buffer", "usize"],
    result: "usize",
    nonblocking: true,
  },
  createCompressor: { name: "ZSTD_createCCtx", parameters: [], result: "pointer" },
  freeCompressor: { name: "ZSTD_freeCCtx", parameters: ["pointer"], result: "usize" },
  createDecompressor: { name: "ZSTD_createDCtx", parameters: [], result: "pointer" },
  freeDecompressor: { name: "ZSTD_freeDCtx", parameters: ["pointer"], result: "usize" },
  isError: { name: "ZSTD_isError", parameters: ["usize"], result: "u32" },
} as const satisfies Deno.ForeignLibraryInterface;

/** ZSTD_cParameter: which level's parameters are taken where nothing else is said. */
const PARAMETER_LEVEL = 100;
/** ZSTD_cParameter: what its fastest way of searching skips where it finds nothing, in bytes. */
const PARAMETER_TARGET_LENGTH = 106;
/**
 * ZSTD_cParameter, not among those that stay: 1 has literals compressed although something is skipped, which takes little time and
 * leaves a quarter less of text. A library that has it no more refuses it, and does without.
 */
const PARAMETER_LITERALS = 1002;

/** The fastest of the ordinary ones. */
const LEVEL = 1;

/** Its name has been this since 2016; what these functions do has not changed either. */
const LIBRARY = "libzstd.so.1";

type Library = Deno.DynamicLibrary<typeof symbols>["symbols"];

let library: Library | null | undefined;

function load(): Library | null {
  if (library === undefined) {
    try {
      library = Deno.dlopen(LIBRARY, symbols).symbols;
    } catch {
      library = null;
    }
  }
  return library;
}

/** Whether this host has the library. */
export function hasZstd(): boolean {
  return load() !== null;
}

/** Compresses and decompresses one frame at a time. To be closed when nothing is under way. */
export class Zstd implements Disposable {
  readonly #library: Library;
  readonly #compressor: Deno.PointerValue;
  readonly #decompressor: Deno.PointerValue;

  /** @throws Error where the library is not there */
  constructor() {
    const found = load();
    if (found === null) throw new Error(`there is no ${LIBRARY} on this host`);
    this.#library = found;
    this.#compressor = found.createCompressor();
    this.#decompressor = found.createDecompressor();
    if (this.#compressor === null || this.#decompressor === null) {
      this[Symbol.dispose]();
      throw new Error("there is no memory for Zstandard");
    }
    found.setParameter(this.#compressor, PARAMETER_LEVEL, LEVEL);
    found.setParameter(this.#compressor, PARAMETER_LITERALS, 1);
  }

  /**
   * Makes one frame.
   *
   * @param to where to; both are left alone until this resolves
   * @param acceleration bytes that are skipped where nothing is found; from 1 on, and the higher, the faster and the larger
   * @returns bytes of the frame; 0 where it would not fit
   */
  async compress(
    from: Uint8Array<ArrayBuffer>,
    to: Uint8Array<ArrayBuffer>,
    acceleration: number,
  ): Promise<number> {
    const [room, length] = [BigInt(to.length), BigInt(from.length)];
    this.#library.setParameter(this.#compressor, PARAMETER_TARGET_LENGTH, acceleration);
    const bytes = await this.#library.compress(this.#compressor, to, room, from, length);
    return this.#library.isError(bytes) === 0 ? Number(bytes) : 0;
  }

  /**
   * Takes one frame apart.
   *
   * @param to where to; both are left alone until this resolves
   * @returns bytes that there were; 0: the frame is not sound, or holds more
   */
  async decompress(
    from: Uint8Array<ArrayBuffer>,
    to: Uint8Array<ArrayBuffer>,
  ): Promise<number> {
    const [room, length] = [BigInt(to.length), BigInt(from.length)];
    const bytes = await this.#library.decompress(this.#decompressor, to, room, from, length);
    return this.#library.isError(bytes) === 0 ? Number(bytes) : 0;
  }

  [Symbol.dispose](): void {
    this.#library.freeCompressor(this.#compressor);
    this.#library.freeDecompressor(this.#decompressor);
  }
}
