/**
 * The unit of work that the store takes: one run of whole blocks of one chunk.
 *
 * Operations are preallocated by whoever issues them and reused; the store links them into its own
 * queues through `next`, so that nothing is allocated per I/O.
 *
 * Stamps. Each chunk of a layer has a stamp, (generation, sequence), by which replicas compare it
 * (stamps.ts). What a write, free or zero makes of it when it is applied:
 *
 *     stampUnknown           unknown, whatever generation and sequence say
 *     generation 0           stays: repair, local tools
 *     generation ≥ 1         (generation, sequence)
 *
 * A fill leaves it but for a chunk that holds nothing yet.
 *
 * Order. Operations on one chunk (write, fill, free, zero, stamp, absorb) are applied in the order in which
 * they were submitted, always; a crash leaves a prefix of them, the last one of it perhaps in part
 * (then the stamp is unknown, unless the operation left it). Others may overtake them while the store
 * is full. An absorb is one on both of its chunks: it is there in both or in neither.
 *
 * Completion. When a write, fill, free, zero, stamp or absorb comes back with result 0 it is _applied_: every read,
 * `describeChunk` and `stampOf` from then on sees it, and so does a sync submitted from then on. It
 * is durable when such a sync has come back. An operation that comes back with an error is not
 * applied, and will not be while the store is open; after a failure of the whole store (−EIO) it may
 * turn out to be there when the store is opened again.
 *
 * @module
 */
import type { WindowVector } from "../platform/platform.ts";

/** What an operation does. */
export const enum OperationKind {
  /** Fill `buffer` from the newest data of `layers`; never-written blocks read as zeros. */
  Read = 0,
  /** Append `buffer` as the new content of the blocks in `layers[0]`. */
  Write = 1,
  /** Forget the blocks of `layers[0]`: reads fall through to older layers. */
  Free = 2,
  /** The blocks of `layers[0]` read as zeros, whatever older layers hold; their space is freed. */
  Zero = 3,
  /** Done when everything appended before is durable. Ignores chunk and blocks. */
  Sync = 4,
  /**
   * Sets the stamp of the chunk of `layers[0]` to (generation, sequence), or to unknown with (0, 0).
   * Ignores blocks. Never durable before what was submitted for the chunk before it.
   */
  Stamp = 5,
  /**
   * Merges the chunk of a layer that is to be deleted into that of the only layer right above it:
   * `layers` is [into, from], `into` the one with the higher id. Ignores blocks, generation and sequence.
   *
   * In one step every hole of `into`'s chunk gets what `from`'s has there (data, zeros, damage), what
   * `from` has besides is freed, and `from`'s chunk holds nothing. No data moves, and a read through
   * both sees the same before, during and after. Both stamps stay; only where `into` had neither a
   * stamp nor any block it gets that of `from`. May be repeated. `from` is deleted when the absorbs of
   * all its chunks have come back, no earlier.
   *
   * The first one that a store ever takes makes it one that older programs do not open
   * (`FORMAT_ABSORB`): to be submitted only when the cluster's level says so.
   */
  Absorb = 6,
  /**
   * A write for those of the blocks of `layers[0]` that are holes when it is applied: what the layer has of its own, data, zeros or
   * damage, stays. For copying into a layer what it is read through to.
   *
   * The stamp stays; only a chunk with neither a stamp nor any block gets (generation, sequence), unless generation is 0: with
   * `blockCount` 0 that is all that it does. Comes back with result 0 whether or not any block was a hole. As for Absorb, older
   * programs do not open the store from then on.
   */
  Fill = 7,
}

/** Receives finished operations. Called from the store's turn, never from inside the submission. */
export interface OperationOwner {
  /** `operation.result` is 0, −EIO, −EBADMSG (see `operation.badBlock`), −ENODEV (store closed) or −ECANCELED (`Store.withdraw`). */
  operationDone(operation: Operation): void;
}

/**
 * Where the blocks of a read are wanted, for a read that need not pass over the memory once more to bring them there. Blocks are
 * asked for by index, mostly in rising order.
 *
 * The places belong to a guest, who may change them at any time: what is computed over them says what they held, not what they
 * hold.
 */
export interface BlockSink {
  /**
   * Copies block `index` of the operation's buffer to its place. What was taken counts only if the operation
   * succeeds.
   *
   * @returns the checksum of what was copied
   */
  takeBlock(operation: Operation, index: number): number;
  /** Checksum of what the place of block `index` holds. */
  checksumBlock(operation: Operation, index: number): number;
  /** Fills the places of `count` blocks from `index` on with zeros. */
  zeroBlocks(operation: Operation, index: number, count: number): void;
  /** Makes `vector` the places of `count` blocks from `index` on. */
  placeBlocks(operation: Operation, index: number, count: number, vector: WindowVector): void;
}

/** One preallocated operation. The owner fills it, submits it, and gets it back once. */
export class Operation {
  kind: OperationKind = OperationKind.Read;
  /**
   * Layer chain, newest first; writes go to the first; absorb: see there. Owned by the volume, not copied.
   *
   * For reads through many layers use the same array again: it leads to what is known of the chain (chains.ts). One that is
   * frozen is not even compared.
   */
  layers: readonly number[] = NO_LAYERS;
  /** Chunk index within the disk. */
  chunk = 0;
  /** First block within the chunk, 0…1023. */
  block = 0;
  /** Blocks, 1…256 for Read and Write, 0…256 for Fill, up to the end of the chunk for Free and Zero. */
  blockCount = 0;
  /** Arena offset of `blockCount` blocks, block-aligned. Owned by the issuer until done. */
  buffer = 0;
  /**
   * Write, fill: checksum of each block, filled by the issuer (one checksum over the one copy). Another operation on the same buffer
   * may borrow them. A read into `buffer` fills them in where there is room for all: see `isSummed`.
   */
  checksums: Uint32Array<ArrayBuffer>;
  /** Fencing number of the lease under which a change was made, u32; 0: it leaves the stamp. */
  generation = 0;
  /** Number that the sequencer gave the change, rising within a disk and generation; below 2^53. */
  sequence = 0;
  /**
   * The change makes the stamp of its chunk unknown: the chunk's other content has not been pulled
   * yet. Whoever sets it clears it before the operation is used for something else.
   */
  stampUnknown = false;
  /** 0 or a negative errno once done. */
  result = 0;
  /** Read: where the blocks are to go, or null to leave them in `buffer`. */
  sink: BlockSink | null = null;
  /** Read: the disk may put them right there; `buffer` is then used only for blocks that have to be read again. */
  isPlaced = false;
  /** A read for which no lease is needed: what becomes of one is none of its business. */
  isLeaseless = false;
  /** Read: the sink has taken all blocks. */
  isTaken = false;
  /** Read that has succeeded: `checksums` has those of all blocks, as they were checked in `buffer`. Set by the store. */
  isSummed = false;
  /** First damaged block within the chunk when `result` is −EBADMSG. */
  badBlock = 0;
  /** Intrusive link for whichever queue holds the operation now. */
  next: Operation | null = null;
  /** For the issuer's own use. */
  tag = 0;

  /**
   * @param owner who is told when the operation is done
   * @param blockCountMax room for checksums
   */
  constructor(readonly owner: OperationOwner, blockCountMax: number) {
    this.checksums = new Uint32Array(blockCountMax);
  }
}

const NO_LAYERS: readonly number[] = [];
