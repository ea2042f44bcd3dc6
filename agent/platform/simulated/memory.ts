/**
 * Memory of the simulator and of tests: one window of plain WebAssembly memory.
 *
 *     0           ARENA_BYTES                    sizeBytes
 *     |   arena   |   guest area                 |
 *
 * The guest area stands for what a front end would share: tests lay rings and buffers there.
 *
 * @module
 */
import { Arena } from "../../base/arena.ts";
import { createKernel } from "../../base/kernel.ts";
import { ARENA_BYTES, WINDOW_BYTES } from "../../base/limits.ts";
import type { Window } from "../platform.ts";

/** Bytes of a page of WebAssembly memory. */
const WASM_PAGE_BYTES = 65536;

/** 64 MiB of guest area: tests are light, pages that are never touched cost nothing. */
const SIZE_BYTES_DEFAULT = 2 * ARENA_BYTES;

/**
 * One window with its arena.
 *
 * @example
 * ```ts
 * import { SimulatedMemory } from "./memory.ts";
 * const memory = new SimulatedMemory();
 * const { bytes, kernel } = memory.windows[0];
 * const buffer = memory.arena.allocate(4096);
 * bytes.fill(1, memory.guestOffset, memory.guestOffset + 4096);
 * kernel.copyAndChecksum(buffer, memory.guestOffset, 4096);
 * console.assert(bytes[buffer] === 1);
 * ```
 */
export class SimulatedMemory {
  readonly windows: readonly Window[];
  /** Allocates within the lowest `ARENA_BYTES` of the window. */
  readonly arena: Arena = new Arena();
  /** First byte of the guest area within window 0. */
  readonly guestOffset = ARENA_BYTES;
  /** Length of the guest area. */
  readonly guestBytes: number;

  /** @param options.sizeBytes arena and guest area: a multiple of 64 KiB, up to 2 GiB */
  constructor(options: { readonly sizeBytes?: number } = {}) {
    const { sizeBytes = SIZE_BYTES_DEFAULT } = options;
    const pages = sizeBytes / WASM_PAGE_BYTES;
    if (!Number.isInteger(pages) || sizeBytes < ARENA_BYTES || sizeBytes > WINDOW_BYTES) {
      throw new RangeError(
        `simulated memory: size ${sizeBytes} is not a multiple of ${WASM_PAGE_BYTES} from ` +
          `${ARENA_BYTES} to ${WINDOW_BYTES}`,
      );
    }
    const memory = new WebAssembly.Memory({ initial: pages, maximum: pages });
    const buffer = memory.buffer as ArrayBuffer;
    this.guestBytes = sizeBytes - ARENA_BYTES;
    this.windows = [{
      index: 0,
      bytes: new Uint8Array(buffer),
      u16: new Uint16Array(buffer),
      u32: new Uint32Array(buffer),
      kernel: createKernel(memory),
    }];
  }
}
