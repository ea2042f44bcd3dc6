/**
 * The cluster secret as people carry it from node to node: in a file, never in an argument or a log. Pure.
 *
 *     kelpie1-  base32( secret 32 | CRC-32C 4 )      58 characters of a–z and 2–7, RFC 4648, section 6
 *                                                    without padding; the last two bits are zero
 *
 * The checksum goes over the prefix and the secret, so that a secret that was mistyped or cut is told from a wrong one
 * before any node is asked. It protects nothing else: what it is over has 256 bits of chance.
 *
 * Invariant: no message says anything of the secret's characters.
 *
 * @module
 */

import { crc32c } from "./consensus/checksum.ts";
import { failure, type Result, success } from "./map/errors.ts";

/** Bytes of the cluster secret. */
export const CLUSTER_SECRET_BYTES = 32;

/** What a printed secret begins with; the number is that of the form. */
export const CLUSTER_SECRET_PREFIX = "kelpie1-";

/** Longest text of a secret's file, in characters: the secret and a few line feeds. */
export const CLUSTER_SECRET_TEXT_MAX = 1024;

const ALPHABET = "abcdefghijklmnopqrstuvwxyz234567";
const CHECKSUM_BYTES = 4;
const DIGITS = Math.ceil((CLUSTER_SECRET_BYTES + CHECKSUM_BYTES) * 8 / 5);
const HINT = "print it on a node of the cluster with 'kelpie cluster secret'";

/**
 * Writes a secret.
 *
 * @param secret 32 bytes; not kept
 * @throws {RangeError} on any other length
 *
 * @example
 * ```ts
 * import { formatClusterSecret, parseClusterSecret } from "./cluster_secret.ts";
 *
 * const text = formatClusterSecret(new Uint8Array(32).fill(7));
 * const back = parseClusterSecret(`${text}\n`);
 * if (!back.ok || back.value[0] !== 7) throw new Error("a secret comes back as it went in");
 * ```
 */
export function formatClusterSecret(secret: Uint8Array): string {
  if (secret.length !== CLUSTER_SECRET_BYTES) {
    throw new RangeError(
      `a cluster secret has ${CLUSTER_SECRET_BYTES} bytes, not ${secret.length}`,
    );
  }
  const bytes = new Uint8Array(CLUSTER_SECRET_BYTES + CHECKSUM_BYTES);
  bytes.set(secret);
  new DataView(bytes.buffer).setUint32(CLUSTER_SECRET_BYTES, checksumOf(secret), true);
  return CLUSTER_SECRET_PREFIX + encodeBase32(bytes);
}

/**
 * Reads a secret. Upper case, and white space around it, do not matter.
 *
 * @param text from a file or a person
 * @returns 32 bytes of the caller's own, or an error with code `invalid` that says what is wrong
 */
export function parseClusterSecret(text: string): Result<Uint8Array<ArrayBuffer>> {
  if (text.length > CLUSTER_SECRET_TEXT_MAX) {
    return failure("invalid", "this is no cluster secret: it is far too long", HINT);
  }
  const word = text.trim().toLowerCase();
  if (word === "") return failure("invalid", "there is no cluster secret: it is empty", HINT);
  if (!word.startsWith(CLUSTER_SECRET_PREFIX)) {
    return failure(
      "invalid",
      `this is no cluster secret: it does not begin with '${CLUSTER_SECRET_PREFIX}'`,
      HINT,
    );
  }
  const digits = word.slice(CLUSTER_SECRET_PREFIX.length);
  if (digits.length !== DIGITS) {
    return failure(
      "invalid",
      `the cluster secret has ${digits.length} characters after '${CLUSTER_SECRET_PREFIX}', ` +
        `and should have ${DIGITS}`,
      HINT,
    );
  }
  const bytes = decodeBase32(digits);
  if (bytes === null) {
    return failure("invalid", "the cluster secret has a character that none has", HINT);
  }
  const secret = bytes.slice(0, CLUSTER_SECRET_BYTES);
  const checksum = new DataView(bytes.buffer).getUint32(CLUSTER_SECRET_BYTES, true);
  if (checksum === checksumOf(secret)) return success(secret);
  return failure("invalid", "the cluster secret is mistyped: its checksum does not match", HINT);
}

function checksumOf(secret: Uint8Array): number {
  return crc32c(secret, crc32c(new TextEncoder().encode(CLUSTER_SECRET_PREFIX)));
}

function encodeBase32(bytes: Uint8Array): string {
  let text = "";
  let bits = 0;
  let count = 0;
  for (const byte of bytes) {
    bits = bits << 8 | byte;
    count += 8;
    while (count >= 5) {
      count -= 5;
      text += ALPHABET[bits >>> count & 31];
    }
    bits &= (1 << count) - 1;
  }
  return count === 0 ? text : text + ALPHABET[bits << (5 - count) & 31];
}

/** Null when a character is none of the alphabet, or the bits behind the last byte are not zero. */
function decodeBase32(digits: string): Uint8Array<ArrayBuffer> | null {
  const bytes = new Uint8Array(Math.floor(digits.length * 5 / 8));
  let bits = 0;
  let count = 0;
  let at = 0;
  for (const digit of digits) {
    const value = ALPHABET.indexOf(digit);
    if (value < 0) return null;
    bits = bits << 5 | value;
    count += 5;
    if (count < 8) continue;
    count -= 8;
    bytes[at++] = bits >>> count;
    bits &= (1 << count) - 1;
  }
  return bits === 0 ? bytes : null;
}
