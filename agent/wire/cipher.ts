/**
 * AES-256-GCM as the sealed streams use it, and its implementation by `node:crypto`.
 *
 * One object per key and direction. A record is sealed piece by piece: `begin`, any number of pieces, `finish`. Pieces go
 * from one buffer into another, so the data of a record lands where it belongs (in the arena) without a copy of its own.
 *
 * `platform/linux/openssl.ts` is the other implementation, and the data path's first choice (figures there).
 *
 * @module
 */
import { type CipherGCM, createCipheriv, createDecipheriv, type DecipherGCM } from "node:crypto";

/** Bytes of a key. */
export const KEY_BYTES = 32;
/** Bytes of a nonce. */
export const NONCE_BYTES = 12;
/** Bytes of a tag. */
export const TAG_BYTES = 16;

/** One key for one direction. Buffers are only used during the call. */
export interface CipherKey {
  /**
   * Starts a record.
   *
   * @param nonce {@linkcode NONCE_BYTES}, never used twice with this key
   * @param associated what is authenticated with it but not encrypted
   */
  begin(nonce: Uint8Array, associated: Uint8Array): void;
  /** Encrypts or decrypts a piece: all of `from` into the first bytes of `to`. */
  update(from: Uint8Array, to: Uint8Array): void;
  /**
   * Ends a record. Sealing writes `tag`; opening compares it.
   *
   * @returns false when opening and the tag does not match: nothing that `update` wrote may be believed
   */
  finish(tag: Uint8Array): boolean;
  /** Frees what the key holds; nothing may be called afterwards. */
  close(): void;
}

/** Makes keys. */
export interface CipherSuite {
  /** For logs: `openssl` or `node:crypto`. */
  readonly name: string;
  /** @param key {@linkcode KEY_BYTES}; copied */
  sealing(key: Uint8Array): CipherKey;
  /** @param key {@linkcode KEY_BYTES}; copied */
  opening(key: Uint8Array): CipherKey;
}

class NodeSealing implements CipherKey {
  readonly #key: Uint8Array;
  #cipher: CipherGCM | null = null;

  constructor(key: Uint8Array) {
    this.#key = key.slice();
  }

  begin(nonce: Uint8Array, associated: Uint8Array): void {
    this.#cipher = createCipheriv("aes-256-gcm", this.#key, nonce);
    this.#cipher.setAAD(associated);
  }

  update(from: Uint8Array, to: Uint8Array): void {
    to.set(this.#cipher!.update(from));
  }

  finish(tag: Uint8Array): boolean {
    this.#cipher!.final();
    tag.set(this.#cipher!.getAuthTag());
    this.#cipher = null;
    return true;
  }

  close(): void {
    this.#key.fill(0);
  }
}

class NodeOpening implements CipherKey {
  readonly #key: Uint8Array;
  #decipher: DecipherGCM | null = null;

  constructor(key: Uint8Array) {
    this.#key = key.slice();
  }

  begin(nonce: Uint8Array, associated: Uint8Array): void {
    this.#decipher = createDecipheriv("aes-256-gcm", this.#key, nonce);
    this.#decipher.setAAD(associated);
  }

  update(from: Uint8Array, to: Uint8Array): void {
    to.set(this.#decipher!.update(from));
  }

  finish(tag: Uint8Array): boolean {
    const decipher = this.#decipher!;
    this.#decipher = null;
    try {
      // Copied: the runtime may keep the view, and the buffer below it is used again.
      decipher.setAuthTag(tag.slice());
      decipher.final();
      return true;
    } catch {
      return false;
    }
  }

  close(): void {
    this.#key.fill(0);
  }
}

/**
 * AES-256-GCM by `node:crypto`: everywhere, but each piece is a new buffer of the runtime's and a copy.
 *
 * @example
 * ```ts
 * import { nodeCipherSuite } from "./cipher.ts";
 * const key = new Uint8Array(32).fill(1), nonce = new Uint8Array(12), none = new Uint8Array(0);
 * const sealed = new Uint8Array(3), opened = new Uint8Array(3), tag = new Uint8Array(16);
 * const sealing = nodeCipherSuite.sealing(key);
 * sealing.begin(nonce, none);
 * sealing.update(Uint8Array.of(1, 2, 3), sealed);
 * sealing.finish(tag);
 * const opening = nodeCipherSuite.opening(key);
 * opening.begin(nonce, none);
 * opening.update(sealed, opened);
 * console.assert(opening.finish(tag) && opened[2] === 3);
 * ```
 */
export const nodeCipherSuite: CipherSuite = {
  name: "node:crypto",
  sealing: (key) => new NodeSealing(key),
  opening: (key) => new NodeOpening(key),
};
