/**
 * A stream of sealed records in one direction of a connection, after the handshake.
 *
 *     record   0 head bytes u32, 1… | 4 data bytes u32 | 8 heads, encrypted | [data, encrypted] | tag 16 | [data, in clear]
 *
 * The *heads* are one or more messages without their data (`frame.ts`), the data is that of all of them. Sealed links
 * encrypt both with one tag. On a trusted network the data stands behind the tag, in clear: its length is authenticated (the first
 * 8 bytes are associated data), its content is not; that is what the checksums of its blocks are for, which replication puts into
 * the head, where nobody can change them. (They are not cryptographic: who can write to a trusted network can forge data, but no
 * requests.)
 *
 * AES-256-GCM. The nonce is the number of the record under its key, so a record that is lost, repeated, reordered, or of the
 * other direction (which has another key) fails, and with it the connection. Both ends change to the next key,
 * HKDF(key, "kelpie rekey"), after {@linkcode RECORDS_PER_KEY} records or {@linkcode BYTES_PER_KEY}, whichever comes first.
 *
 * Why OpenSSL's libcrypto by FFI comes first on the data path and `node:crypto` second: per record, best of 40 rounds on a busy machine with
 * two cores and VAES, Deno 2.6.8 (`tests/bench/seal.ts`), sealing and opening alike:
 *
 *     data         node:crypto                   libcrypto.so.3 by FFI      in clear, head sealed
 *     none         3.7 µs, 1.3 KB allocated      1.6 µs, 0.4 KB             1.6 µs
 *       4 KiB      9 µs (0.5 GB/s), 7 KB         3.1 µs (1.4 GB/s)          1.6 µs
 *      64 KiB      95 µs (0.7 GB/s), 64 KB       20 µs (3.2 GB/s)           4 µs
 *       1 MiB      1180 µs (0.9 GB/s), 1 MB      280 µs (3.8 GB/s)          38 µs
 *
 * node:crypto makes a cipher object and a buffer of the record's size each time, which must then be copied; libcrypto works from buffer to
 * buffer, and what is allocated are the views handed to it. The kernel's AF_ALG is no choice: the kernel measured on has none
 * (EAFNOSUPPORT), and each record would cost system calls and copies.
 *
 * @module
 */
import { getU32, setU32 } from "../base/bytes.ts";
import { hkdfSync } from "node:crypto";
import { type CipherKey, type CipherSuite, KEY_BYTES, NONCE_BYTES, TAG_BYTES } from "./cipher.ts";

/** Bytes before the heads. */
export const RECORD_PREFIX_BYTES = 8;
/** Bytes of a record besides heads and data. */
export const RECORD_OVERHEAD_BYTES = RECORD_PREFIX_BYTES + TAG_BYTES;
/**
 * Records under one key: far from where counters or GCM's bounds on uses of a key (2^32) matter, and a new key costs 10 µs.
 */
export const RECORDS_PER_KEY = 2 ** 24;
/** Bytes under one key: 2^32 blocks of AES; at 2^35 an attacker's chance to tell anything apart would be 2^-58. */
export const BYTES_PER_KEY = 2 ** 36;

/** Limits of a stream, other than the usual ones. */
export interface StreamOptions {
  readonly recordsPerKey?: number;
  readonly bytesPerKey?: number;
}

/** The key of one direction, its counter and its successors. */
class KeyChain {
  readonly nonce = new Uint8Array(NONCE_BYTES);
  cipher: CipherKey;
  readonly #make: (key: Uint8Array) => CipherKey;
  readonly #recordsMax: number;
  readonly #bytesMax: number;
  #key: Uint8Array;
  #records = 0;
  #bytes = 0;

  constructor(make: (key: Uint8Array) => CipherKey, key: Uint8Array, options: StreamOptions) {
    this.#make = make;
    this.#key = key.slice();
    this.#recordsMax = options.recordsPerKey ?? RECORDS_PER_KEY;
    this.#bytesMax = options.bytesPerKey ?? BYTES_PER_KEY;
    this.cipher = make(this.#key);
  }

  /** Sets the nonce of the next record, under a new key when it is time: a function of what both ends have counted. */
  next(bytes: number): void {
    if (this.#records >= this.#recordsMax || this.#bytes + bytes > this.#bytesMax) {
      const next = new Uint8Array(hkdfSync("sha256", this.#key, NONE, "kelpie rekey", KEY_BYTES));
      this.cipher.close();
      this.#key.fill(0);
      this.#key = next;
      this.cipher = this.#make(next);
      this.#records = 0;
      this.#bytes = 0;
    }
    const nonce = this.nonce, records = this.#records;
    nonce[0] = records;
    nonce[1] = records >>> 8;
    nonce[2] = records >>> 16;
    nonce[3] = records >>> 24;
    this.#records++;
    this.#bytes += bytes;
  }

  close(): void {
    this.cipher.close();
    this.#key.fill(0);
  }
}

const NONE = new Uint8Array(0);

/** Seals records. */
export class RecordSealer {
  readonly #keys: KeyChain;
  readonly #sealsData: boolean;

  /**
   * @param key from the handshake
   * @param sealsData false: data goes in clear
   */
  constructor(suite: CipherSuite, key: Uint8Array, sealsData: boolean, options?: StreamOptions) {
    this.#keys = new KeyChain((bytes) => suite.sealing(bytes), key, options ?? {});
    this.#sealsData = sealsData;
  }

  /**
   * Seals one record.
   *
   * @param heads what goes into the encrypted part first
   * @param data of the messages in `heads`, or null
   * @param to where to; its first {@linkcode RECORD_OVERHEAD_BYTES} + heads + data bytes are written
   * @returns bytes written
   */
  seal(heads: Uint8Array, data: Uint8Array | null, to: Uint8Array): number {
    const headBytes = heads.length;
    const dataBytes = data === null ? 0 : data.length;
    setU32(to, 0, headBytes);
    setU32(to, 4, dataBytes);
    const keys = this.#keys;
    keys.next(headBytes + dataBytes);
    keys.cipher.begin(keys.nonce, to.subarray(0, RECORD_PREFIX_BYTES));
    let at = RECORD_PREFIX_BYTES;
    keys.cipher.update(heads, to.subarray(at, at += headBytes));
    if (data !== null && this.#sealsData) {
      keys.cipher.update(data, to.subarray(at, at += dataBytes));
    }
    keys.cipher.finish(to.subarray(at, at += TAG_BYTES));
    if (data !== null && !this.#sealsData) {
      to.set(data, at);
      at += dataBytes;
    }
    return at;
  }

  /** Forgets the key. */
  close(): void {
    this.#keys.close();
  }
}

/** Opens records. */
export class RecordOpener {
  readonly #keys: KeyChain;
  readonly #sealsData: boolean;
  readonly #headBytesMax: number;
  readonly #dataBytesMax: number;
  readonly #dataBytesMultiple: number;

  /**
   * @param key from the handshake
   * @param sealsData as at the other end
   * @param bounds of what a record may say, checked before anything else looks at it
   */
  constructor(
    suite: CipherSuite,
    key: Uint8Array,
    sealsData: boolean,
    bounds: {
      readonly headBytesMax: number;
      readonly dataBytesMax: number;
      readonly dataBytesMultiple: number;
    },
    options?: StreamOptions,
  ) {
    this.#keys = new KeyChain((bytes) => suite.opening(bytes), key, options ?? {});
    this.#sealsData = sealsData;
    this.#headBytesMax = bounds.headBytesMax;
    this.#dataBytesMax = bounds.dataBytesMax;
    this.#dataBytesMultiple = bounds.dataBytesMultiple;
  }

  /**
   * How long the record at `at` is.
   *
   * @returns bytes; 0: its first {@linkcode RECORD_PREFIX_BYTES} are not all there; −1: no record of this stream, close the connection
   */
  recordBytes(bytes: Uint8Array, at: number, end: number): number {
    if (end - at < RECORD_PREFIX_BYTES) return 0;
    const headBytes = getU32(bytes, at), dataBytes = getU32(bytes, at + 4);
    if (
      headBytes === 0 || headBytes > this.#headBytesMax || dataBytes > this.#dataBytesMax ||
      dataBytes % this.#dataBytesMultiple !== 0
    ) return -1;
    return RECORD_OVERHEAD_BYTES + headBytes + dataBytes;
  }

  /** Bytes of the heads of a record that {@linkcode recordBytes} found right. */
  headBytes(bytes: Uint8Array, at: number): number {
    return getU32(bytes, at);
  }

  /** Bytes of its data. */
  dataBytes(bytes: Uint8Array, at: number): number {
    return getU32(bytes, at + 4);
  }

  /**
   * Opens a record that is all there. Each record counts, so it must be called once for each, in order.
   *
   * @param heads where its heads go
   * @param data where its data goes, of exactly that length; null: it has none
   * @returns false: it is not what the other end sealed. What was written to `heads` and `data` is rubbish; close the connection
   */
  open(bytes: Uint8Array, at: number, heads: Uint8Array, data: Uint8Array | null): boolean {
    const headBytes = this.headBytes(bytes, at), dataBytes = this.dataBytes(bytes, at);
    const keys = this.#keys;
    keys.next(headBytes + dataBytes);
    keys.cipher.begin(keys.nonce, bytes.subarray(at, at += RECORD_PREFIX_BYTES));
    keys.cipher.update(bytes.subarray(at, at += headBytes), heads);
    if (data !== null && this.#sealsData) {
      keys.cipher.update(bytes.subarray(at, at += dataBytes), data);
    }
    if (!keys.cipher.finish(bytes.subarray(at, at += TAG_BYTES))) return false;
    if (data !== null && !this.#sealsData) data.set(bytes.subarray(at, at + dataBytes));
    return true;
  }

  /**
   * Opens the heads of a record that is all there, where they lie: the first half of {@linkcode open}, for a caller that has to see
   * them to know where the data goes. What they say must be checked and not be believed before {@linkcode finish}, which must follow.
   */
  openHeads(bytes: Uint8Array, at: number): void {
    const headBytes = this.headBytes(bytes, at);
    const keys = this.#keys;
    keys.next(headBytes + this.dataBytes(bytes, at));
    keys.cipher.begin(keys.nonce, bytes.subarray(at, at += RECORD_PREFIX_BYTES));
    const heads = bytes.subarray(at, at + headBytes);
    keys.cipher.update(heads, heads);
  }

  /**
   * Opens the data of the record of {@linkcode openHeads}, and says whether all of it is right.
   *
   * @param data where its data goes, of exactly that length; null: it stays where {@linkcode dataAt} says, or there is none
   * @returns as {@linkcode open}
   */
  finish(bytes: Uint8Array, at: number, data: Uint8Array | null): boolean {
    const dataBytes = this.dataBytes(bytes, at);
    const dataAt = this.dataAt(bytes, at);
    const cipher = this.#keys.cipher;
    let tagAt = dataAt + dataBytes;
    if (!this.#sealsData) tagAt = dataAt - TAG_BYTES;
    else if (dataBytes > 0) {
      const from = bytes.subarray(dataAt, dataAt + dataBytes);
      cipher.update(from, data ?? from);
    }
    if (!cipher.finish(bytes.subarray(tagAt, tagAt + TAG_BYTES))) return false;
    if (data !== null && !this.#sealsData) data.set(bytes.subarray(dataAt, dataAt + dataBytes));
    return true;
  }

  /** Where the data of a record lies. */
  dataAt(bytes: Uint8Array, at: number): number {
    const dataAt = at + RECORD_PREFIX_BYTES + this.headBytes(bytes, at);
    return this.#sealsData ? dataAt : dataAt + TAG_BYTES;
  }

  /** Forgets the key. */
  close(): void {
    this.#keys.close();
  }
}
