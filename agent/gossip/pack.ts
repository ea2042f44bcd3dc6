/**
 * The few types of MessagePack that gossip uses, written and read without a byte more than needed.
 *
 *     unsigned numbers   positive fixint, u8, u16, u32, u64 (up to 2^53 − 1)
 *     text, binary       with 8 or 16 bits of length; fixstr
 *     array, map         fix and 16 bits of count
 *
 * A library's reader would build whatever a packet describes: dates, sets, objects with any key, arrays of a claimed
 * length. This one is asked for what is expected next and gives nothing else.
 *
 * Invariants:
 * - {@linkcode PackReader} never throws and never reads past the end; once something was not as asked, it stays
 *   {@linkcode PackReader.isFailed failed} and gives zeros and empty values.
 * - Nothing is allocated that is longer than what was received.
 *
 * @module
 */

const TWO_32 = 2 ** 32;

const encoder = new TextEncoder();
const decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
/** Texts up to this length are looked at for being plain ASCII. */
const PLAIN_BYTES_MAX = 64;

const NOTHING = new Uint8Array(0);

/** Nesting that {@linkcode PackReader.skip} follows. */
const DEPTH_MAX = 8;

/**
 * Appends values to a buffer of fixed size.
 *
 * @example
 * ```ts
 * import { PackReader, PackWriter } from "./pack.ts";
 *
 * const writer = new PackWriter(100);
 * writer.array(2);
 * writer.uint(300);
 * writer.text("web");
 * const reader = new PackReader(writer.take());
 * console.assert(reader.array() === 2 && reader.uint() === 300 && reader.text(63) === "web");
 * console.assert(reader.isAtEnd && !reader.isFailed);
 * ```
 */
export class PackWriter {
  readonly #bytes: Uint8Array;
  #at = 0;

  /** @param size most bytes that are ever written between two calls of `take` */
  constructor(size: number) {
    this.#bytes = new Uint8Array(size);
  }

  /** Bytes that still fit. Below zero: something did not fit, and `take` will throw. */
  get room(): number {
    return this.#bytes.length - this.#at;
  }

  /** Where the next value goes. */
  get at(): number {
    return this.#at;
  }

  /** An array's head; `count` (0…65535) values follow. */
  array(count: number): void {
    if (count < 16) this.#byte(0x90 | count);
    else this.#head16(0xdc, count);
  }

  /** An array's head that always takes three bytes, to be set by {@linkcode setCount} later. */
  openArray(): number {
    this.#head16(0xdc, 0);
    return this.#at - 2;
  }

  /** @param at what {@linkcode openArray} gave */
  setCount(at: number, count: number): void {
    this.#bytes[at] = count >>> 8;
    this.#bytes[at + 1] = count & 255;
  }

  /** A map's head; `count` (0…15) keys and values follow, in turn. */
  map(count: number): void {
    this.#byte(0x80 | count);
  }

  /** A whole number from 0 to 2^53 − 1, as short as it can be. */
  uint(value: number): void {
    if (value < 0x80) this.#byte(value);
    else if (value < 0x100) {
      this.#byte(0xcc);
      this.#byte(value);
    } else if (value < 0x10000) this.#head16(0xcd, value);
    else if (value < TWO_32) {
      this.#byte(0xce);
      this.#word(value);
    } else {
      this.#byte(0xcf);
      this.#word(Math.floor(value / TWO_32));
      this.#word(value % TWO_32);
    }
  }

  /** Bytes, up to 65535 of them. */
  binary(bytes: Uint8Array): void {
    if (bytes.length < 0x100) {
      this.#byte(0xc4);
      this.#byte(bytes.length);
    } else this.#head16(0xc5, bytes.length);
    this.raw(bytes);
  }

  /** A string, up to 65535 bytes of UTF-8. */
  text(text: string): void {
    const bytes = encoder.encode(text);
    if (bytes.length < 32) this.#byte(0xa0 | bytes.length);
    else if (bytes.length < 0x100) {
      this.#byte(0xd9);
      this.#byte(bytes.length);
    } else this.#head16(0xda, bytes.length);
    this.raw(bytes);
  }

  /** Values that are encoded already. */
  raw(bytes: Uint8Array): void {
    if (bytes.length <= this.room) this.#bytes.set(bytes, this.#at);
    this.#at += bytes.length;
  }

  /**
   * A copy of what was written, and an empty writer.
   *
   * @throws {RangeError} when it was more than fits: a fault of the caller
   */
  take(): Uint8Array<ArrayBuffer> {
    if (this.room < 0) throw new RangeError(`pack: ${this.#at} bytes in ${this.#bytes.length}`);
    const taken = this.#bytes.slice(0, this.#at) as Uint8Array<ArrayBuffer>;
    this.#at = 0;
    return taken;
  }

  #byte(value: number): void {
    this.#bytes[this.#at++] = value;
  }

  #head16(type: number, value: number): void {
    this.#byte(type);
    this.#byte(value >>> 8);
    this.#byte(value & 255);
  }

  #word(value: number): void {
    for (let shift = 24; shift >= 0; shift -= 8) this.#byte((value >>> shift) & 255);
  }
}

/** Reads what is expected, in order. See {@linkcode PackWriter} for an example. */
export class PackReader {
  readonly #bytes: Uint8Array;
  #at = 0;
  #isFailed = false;

  /** @param bytes not kept longer than the reader; `binary` gives views of them */
  constructor(bytes: Uint8Array) {
    this.#bytes = bytes;
  }

  /** Something was not as asked for. */
  get isFailed(): boolean {
    return this.#isFailed;
  }

  /** Everything was read. */
  get isAtEnd(): boolean {
    return this.#at === this.#bytes.length;
  }

  /** The rest makes no sense. */
  fail(): 0 {
    this.#isFailed = true;
    return 0;
  }

  /** Number of values in the array that begins here. Each takes a byte at least, so it is bounded by the rest. */
  array(): number {
    const type = this.#byte();
    const count = (type & 0xf0) === 0x90 ? type & 15 : type === 0xdc ? this.#uint(2) : this.fail();
    return count <= this.#left ? count : this.fail();
  }

  /** Number of pairs in the map that begins here. */
  map(): number {
    const type = this.#byte();
    const count = (type & 0xf0) === 0x80 ? type & 15 : type === 0xde ? this.#uint(2) : this.fail();
    return 2 * count <= this.#left ? count : this.fail();
  }

  /** A whole number from 0 to `max`. */
  uint(max: number = Number.MAX_SAFE_INTEGER): number {
    const type = this.#byte();
    let value = type;
    if (type >= 0x80) {
      if (type < 0xcc || type > 0xcf) return this.fail();
      value = this.#uint(1 << (type - 0xcc));
    }
    return value <= max ? value : this.fail();
  }

  /** Up to `max` bytes: a view of what is read. */
  binary(max: number): Uint8Array {
    const type = this.#byte();
    if (type !== 0xc4 && type !== 0xc5) this.fail();
    return this.#take(this.#uint(type === 0xc4 ? 1 : 2), max);
  }

  /** A string of up to `max` bytes of UTF-8. */
  text(max: number): string {
    const type = this.#byte();
    const isShort = (type & 0xe0) === 0xa0;
    if (!isShort && type !== 0xd9 && type !== 0xda) this.fail();
    const bytes = this.#take(isShort ? type & 31 : this.#uint(type === 0xd9 ? 1 : 2), max);
    // Addresses and names are short and plain, and asking the decoder costs more than they do.
    if (bytes.length <= PLAIN_BYTES_MAX && isPlain(bytes)) return String.fromCharCode(...bytes);
    try {
      return decoder.decode(bytes);
    } catch {
      this.fail();
      return "";
    }
  }

  /** Passes over one value of any type, for fields of newer versions. */
  skip(depth: number = DEPTH_MAX): void {
    const type = this.#byte();
    if (this.#isFailed || depth === 0) return void this.fail();
    if (type < 0x80 || type >= 0xe0 || type === 0xc0 || type === 0xc2 || type === 0xc3) return;
    if (type < 0x90) this.#skipMany(2 * (type & 15), depth);
    else if (type < 0xa0) this.#skipMany(type & 15, depth);
    else if (type < 0xc0) this.#take(type & 31);
    else if (type >= 0xcc && type <= 0xcf) this.#take(1 << (type - 0xcc));
    else if (type >= 0xd0 && type <= 0xd3) this.#take(1 << (type - 0xd0));
    else if (type === 0xca || type === 0xcb) this.#take(type === 0xca ? 4 : 8);
    else if (type === 0xc4 || type === 0xd9) this.#take(this.#uint(1));
    else if (type === 0xc5 || type === 0xda) this.#take(this.#uint(2));
    else if (type === 0xdc) this.#skipMany(this.#uint(2), depth);
    else if (type === 0xde) this.#skipMany(2 * this.#uint(2), depth);
    else this.fail();
  }

  #skipMany(count: number, depth: number): void {
    if (count > this.#left) return void this.fail();
    for (let i = 0; i < count && !this.#isFailed; i++) this.skip(depth - 1);
  }

  get #left(): number {
    return this.#bytes.length - this.#at;
  }

  #byte(): number {
    if (this.#isFailed || this.#left < 1) return this.fail();
    return this.#bytes[this.#at++];
  }

  /** A big-endian number of 1, 2, 4 or 8 bytes. More than 2^53 − 1 is none. */
  #uint(length: number): number {
    let value = 0;
    for (let i = 0; i < length; i++) value = value * 256 + this.#byte();
    return value <= Number.MAX_SAFE_INTEGER ? value : this.fail();
  }

  #take(length: number, max: number = Infinity): Uint8Array {
    if (this.#isFailed || length > max || length > this.#left) {
      this.fail();
      return NOTHING;
    }
    this.#at += length;
    return this.#bytes.subarray(this.#at - length, this.#at);
  }
}

/** Whether the bytes are ASCII, each a character of its own. */
function isPlain(bytes: Uint8Array): boolean {
  for (let i = 0; i < bytes.length; i++) if (bytes[i] >= 0x80) return false;
  return true;
}
