/**
 * Sizes and bounds that more than one part relies on, and the relations between them.
 *
 * Every queue, pool, retry and loop of the agent has a bound; the ones that only one file needs live
 * in that file, the ones here are shared. `limits_test.ts` asserts the relations.
 *
 * @module
 */

/** Unit of the store's index and checksum, in bytes. */
export const BLOCK_BYTES = 4096;

/** log2 of {@linkcode BLOCK_BYTES}: byte offsets become block numbers by shifting. */
export const BLOCK_SHIFT = 12;

/** Smallest unit that a guest may address, in bytes: the virtio-blk sector. */
export const SECTOR_BYTES = 512;

/** Blocks of one chunk. */
export const CHUNK_BLOCKS = 1024;

/** A chunk: 4 MiB of a disk's address space, the unit of placement. */
export const CHUNK_BYTES = CHUNK_BLOCKS * BLOCK_BYTES;

/**
 * Longest single store operation, in bytes. Longer guest requests are split; a power of two that
 * divides the chunk, so that a split never crosses a chunk boundary.
 */
export const TRANSFER_BYTES_MAX = 1024 * 1024;

/** Blocks of the longest single store operation. */
export const TRANSFER_BLOCKS_MAX = TRANSFER_BYTES_MAX / BLOCK_BYTES;

/**
 * One window: a linear memory with the arena at its bottom and guest memory above. 2 GiB keeps every
 * byte index a 31-bit integer, which the engine handles without boxing.
 */
export const WINDOW_BYTES = 2 * 1024 * 1024 * 1024;

/**
 * The arena: kernel-visible buffers, visible at the same offset in every window. Enough for 64
 * transfers of the largest size; touched pages only count as resident.
 */
export const ARENA_BYTES = 64 * 1024 * 1024;

/** Largest disk, in bytes: 2^32 chunks would be 16 PiB; we stop where 512-byte sectors fit 2^53. */
export const DISK_BYTES_MAX = 4 * 1024 ** 5;

/** Most data paths of one agent. */
export const PATHS_MAX = 16;

/** Longest location of a data path in UTF-8, in bytes. */
export const LOCATION_BYTES_MAX = 512;
