/**
 * CRC-32C (Castagnoli; RFC 3720, appendix B.4), reflected, over durable values and snapshots.
 *
 * @module
 */

const POLYNOMIAL = 0x82f63b78;

const TABLE = new Uint32Array(256);
for (let byte = 0; byte < 256; byte++) {
  let remainder = byte;
  for (let bit = 0; bit < 8; bit++) {
    remainder = (remainder >>> 1) ^ ((remainder & 1) === 0 ? 0 : POLYNOMIAL);
  }
  TABLE[byte] = remainder;
}

/**
 * CRC-32C of bytes.
 *
 * @param bytes any number of them; not kept
 * @param previous the checksum of what came before them, to go on from
 * @returns an unsigned 32-bit number
 *
 * @example
 * ```ts
 * import { crc32c } from "./checksum.ts";
 *
 * console.assert(crc32c(new TextEncoder().encode("123456789")) === 0xe3069283);
 * ```
 */
export function crc32c(bytes: Uint8Array, previous = 0): number {
  let remainder = ~previous;
  for (let index = 0; index < bytes.length; index++) {
    remainder = (remainder >>> 8) ^ TABLE[(remainder ^ bytes[index]) & 255];
  }
  return ~remainder >>> 0;
}
