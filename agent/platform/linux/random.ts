/**
 * Random numbers from the operating system.
 *
 * @module
 */
import type { Random } from "../platform.ts";

/** Most bytes that one call of the runtime fills. */
const FILL_BYTES_MAX = 65536;

/** See the head of the file. */
export class LinuxRandom implements Random {
  /** {@inheritDoc Random.u32} */
  u32(): number {
    return crypto.getRandomValues(new Uint32Array(1))[0];
  }

  /** {@inheritDoc Random.fill} */
  fill(bytes: Uint8Array): void {
    for (let at = 0; at < bytes.length; at += FILL_BYTES_MAX) {
      crypto.getRandomValues(
        bytes.subarray(at, at + FILL_BYTES_MAX) as Uint8Array<ArrayBuffer>,
      );
    }
  }
}
