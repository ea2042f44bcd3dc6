/**
 * The store: one file or block device that holds layers of blocks as a log.
 *
 *     submit ─┬─ Read ──────────────▶ reads.ts ─▶ index ─▶ disk ─▶ checksum ─▶ done
 *             ├─ Write, Fill, Free, Zero, Stamp, Absorb ─▶ log.ts ─▶ disk ─▶ applier.ts ─▶ index, stamps ─▶ done
 *             └─ Sync ──────────────▶ log.ts ─▶ disk.sync ─▶ done
 *     endTurn closes the batch · tick paces checkpoint.ts, cleaner.ts, scrub.ts
 *     open: superblock.ts ─▶ checkpoint.ts ─▶ replay.ts
 *
 * The store is a synchronous machine with one owner. It reaches the world through `Disk` alone;
 * time comes in through `tick`. Operations come back through their owner, from `diskDone`,
 * `endTurn` or `tick`, never from inside `submit`.
 *
 * Order: writes, fills, frees, zeroes, stamps and absorbs are applied in the order in which they were
 * submitted, except that a write or fill that waits for space (a full store) is overtaken by those of the
 * others that go to another chunk. So the changes of one chunk are never reordered: replicas rely on
 * it. An absorb changes two chunks. A read sees everything that had completed when it was submitted,
 * and perhaps more.
 *
 * An absorb or a fill is held back, and with it what goes to its chunks after it, until the superblock
 * says that there are such in the store (the first one of all), and while a checkpoint is being written in
 * which its upper layer will not be (checkpoint.ts says why).
 *
 * Space: a part of the segments is kept back so that a full store can still free, clean and write
 * checkpoints.
 *
 *     ready segments   0 ─── C+2 ───────── C+2+K ────────────── C+2+K+W ──────────▶
 *     may be taken by  checkpoint │ cleaner │ and free, zero, META │ and writes
 *     and recovery
 *
 * C is what the next checkpoint will need; recovery writes one, and may have to begin the log anew,
 * which takes 2. K is for crashes that leave the head of the log unusable.
 *
 * @module
 */
import { BLOCK_BYTES, CHUNK_BLOCKS, TRANSFER_BLOCKS_MAX } from "../base/limits.ts";
import type { Arena } from "../base/arena.ts";
import {
  type Disk,
  type DiskListener,
  ECANCELED,
  EINVAL,
  EIO,
  ENODEV,
  ENOSPC,
  type Log as Logger,
  type Random,
  type Window,
} from "../platform/platform.ts";
import { LayerState } from "./applier.ts";
import type { Batch } from "./batch.ts";
import { type BlockFault, faultMessage } from "./block_fault.ts";
import { checkpointPayloadBytes, checkpointSegmentsFor, writeCheckpoint } from "./checkpoint.ts";
import { Cleaner, type CleanerSituation } from "./cleaner.ts";
import {
  BUFFER_BYTES,
  type Buffers,
  type Core,
  type Damage,
  DAMAGE_MAX,
  DamageList,
  layOut,
  type StoreTunables,
  TUNABLES_DEFAULT,
} from "./core.ts";
import { type Done, StoreError } from "./errors.ts";
import {
  CHUNKS_MAX,
  entryChunk,
  entryCount,
  entryFrom,
  EntryKind,
  entryKind,
  entryLayer,
  entryNext,
  FORMAT_ABSORB,
  FORMAT_BASE,
  hasData,
  ID_BYTES,
  isSegmentBytes,
  META_BATCH_BYTES_MAX,
  META_KEY_BYTES_MAX,
  META_VALUE_BYTES_MAX,
  NO_SEGMENT,
  RECORD_WORD,
  SEGMENT_BYTES_DEFAULT,
  SEGMENT_BYTES_MAX,
  SEGMENT_BYTES_MIN,
  SEGMENTS_OFFSET_BYTES,
  segmentsMax,
  type Superblock,
  SUPERBLOCK_OFFSETS_BYTES,
} from "./format.ts";
import { type LogOwner, RecordLog } from "./log.ts";
import { HOLE, LOCATION_END, POISON } from "./index.ts";
import { encodeMetaItem, type MetaItem, metaItemBytes } from "./meta.ts";
import { type OpenOptions, openStore } from "./open.ts";
import { Operation, OperationKind, type OperationOwner } from "./operation.ts";
import { OperationList } from "./operation_list.ts";
import { READ_TOKEN_BITS, Reads, type ReadsOwner } from "./reads.ts";
import { Scrub, type ScrubProgress } from "./scrub.ts";
import type { StoreState, StoreStats } from "./stats.ts";
import { writeSuperblock } from "./superblock.ts";
import { type Task, type TaskIo, Tasks, Wait } from "./task.ts";

/** Disk tokens: the kind in the low bits, a slot above. */
const enum Token {
  Batch = 0,
  Read = 1,
  Page = 2,
  Sync = 3,
  Task = 4,
}
const TOKEN_BITS = 3;
const TOKEN_MASK = (1 << TOKEN_BITS) - 1;
// Tokens fit 32 bits, and stay small integers.
if (TOKEN_BITS + READ_TOKEN_BITS > 30) throw new Error("store: tokens are too long");

/** Fewest segments: what is kept back, and something to write to. */
export const SEGMENTS_MIN = 20;

/** Chunks of a deleted layer that are freed per turn: a quarter of a millisecond at most… */
const DROP_CHUNKS_PER_TURN = 16;
/** …and per tick, when there are few turns: 5 ms at most, and 1 TiB in a minute. */
const DROP_CHUNKS_PER_TICK = 512;

/**
 * Slow requests (layers, META, …) that may wait at a time: they come from people and from the map.
 */
const INTERNAL_MAX = 4096;
/** Bytes of META values that may wait at a time. */
const INTERNAL_BYTES_MAX = 64 * 1024 * 1024;

/**
 * Places that one `listChunks` looks at (chunks, or leaves of 256 and more without any): below a
 * millisecond.
 */
const LIST_STEPS = 16384;

/** Milliseconds without work after which the log notes on the disk what is durable. */
const NOTE_AFTER_MS = 500;

/** Milliseconds between attempts to allocate after ENOSPC. */
const ALLOCATE_RETRY_MS = 1000;

/** Milliseconds between attempts at a checkpoint that failed. */
const CHECKPOINT_RETRY_MS = 5000;

/** Part of what fits that copies which can wait leave to users. */
const COPIES_RESERVE_SHARE = 1 / 16;

export type { StoreState, StoreStats };

/** Who the store belongs to. */
export interface StoreIdentity {
  readonly storeId: Uint8Array;
  readonly nodeId: Uint8Array;
  readonly clusterId: Uint8Array;
  readonly hostId: Uint8Array;
}

/** Something slow that goes through the log: appended, synced, then done. */
interface Internal {
  /** Appends; false when there is no room now. null: `items` are what is to be appended. */
  readonly append: ((log: RecordLog, core: Core) => boolean) | null;
  /** META values to set, in order. */
  readonly items: readonly MetaItem[];
  /** Bytes of all items. */
  readonly bytes: number;
  /** Items that are in the log already. */
  taken: number;
  readonly done: Done;
}

const NO_ITEMS: readonly MetaItem[] = [];

/** A stamp of a chunk; the caller's, to be filled. See stamps.ts. */
export interface Stamp {
  /** 1…2^32 − 1; 0: unknown. */
  generation: number;
  /** Below 2^53. */
  sequence: number;
}

/** What {@linkcode Store.listChunks} fills: the caller's arrays, of one length. */
export interface ChunkList {
  readonly chunks: Uint32Array;
  /** 0: the stamp is unknown. */
  readonly generations: Uint32Array;
  readonly sequences: Float64Array;
  /** Chunks that were filled in. */
  count: number;
  /** Where to go on; −1 when there is nothing more. */
  next: number;
}

/** See the head of the file. */
export class Store implements DiskListener, LogOwner, ReadsOwner, OperationOwner {
  readonly #disk: Disk;
  readonly #window: Window;
  readonly #random: Random;
  readonly #logger: Logger;
  readonly #tunables: StoreTunables;
  readonly #buffers: Buffers;
  readonly #tasks: Tasks;
  readonly #damage = new DamageList();

  #state: StoreState = "closed";
  #failure: string | null = null;
  #core: Core | null = null;
  #log: RecordLog | null = null;
  #reads: Reads | null = null;
  #cleaner: Cleaner | null = null;
  #scrub: Scrub | null = null;
  #nowMs = 0;

  /** Finished, but not from inside `submit`. */
  readonly #finished = new OperationList();
  /** Writes, frees and zeroes that found no batch. */
  readonly #queue = new OperationList();
  /** Writes that wait for space, and what goes to the chunks of some of them. */
  readonly #waiting = new OperationList();
  /** Of those, how many are no writes. */
  #waitingOthers = 0;
  /** Absorbs and fills that may not go into the log yet, and what goes to the chunks of some of them. */
  readonly #held = new OperationList();
  #raisingFormat = false;
  /** Slow requests not yet appended. */
  readonly #internals: Internal[] = [];
  /** Call-backs that are due at the end of the turn. */
  readonly #answers: { done: Done; error: StoreError | null }[] = [];
  /** Layer ids that a queued request will create. */
  readonly #creating = new Set<number>();
  #internalBytes = 0;
  /** Chunks being dropped. */
  #drops = 0;
  /** META entries in the log, not yet applied: in the order of the log. */
  readonly #metaInFlight: (readonly MetaItem[])[] = [];
  readonly #metaChecksums = new Uint32Array(META_BATCH_BYTES_MAX / BLOCK_BYTES);
  /** Number of the batch that the META buffer is with. */
  #metaNumber = 0;
  /** Done when the sync with this tag is. */
  readonly #internalSyncs = new Map<Operation, (ok: boolean) => void>();

  /** Segments that the next checkpoint may take. */
  #checkpointReserve = 1;
  /** Bytes of the index's image, and the head segment, when that was computed. */
  #reserveBytes = 0;
  #reserveSegment = NO_SEGMENT;
  /** The cleaner takes no segment while no more than this many are ready… */
  #cleanerLimit = 0;
  /** …frees, zeroes and META wait… */
  #freeLimit = 0;
  /** …and writes. */
  #writeLimit = 0;
  #hostFull = false;
  #allocating = false;
  #allocateAfterMs = 0;
  #checkpointing = false;
  #checkpointAfterMs = 0;
  #checkpointsTaken = 0;
  /** `log.blocksWritten` when the checkpoint in force was begun. */
  #checkpointBlocks = 0;
  #reclaimSyncing = false;
  #lastAppliedLsn = 0;
  #quietSinceMs = 0;
  #userBlocks = 0;
  /** Layers whose blocks are being freed. */
  #deleting = 0;
  readonly #situation: CleanerSituation = {
    mayTake: false,
    headRoom: 0,
    isFull: false,
    writeLimit: 0,
    nowMs: 0,
    idleMs: 0,
    userBlocks: 0,
    isDropping: false,
  };

  /**
   * @param options.disk the file or device; its listener must be this store
   * @param options.window any window: only its arena part is used
   * @param options.arena gives the store's fixed buffers (about 2 MiB)
   * @param options.random for nothing but identities
   */
  constructor(
    options: {
      disk: Disk;
      window: Window;
      arena: Arena;
      random: Random;
      log: Logger;
    } & Partial<StoreTunables>,
  ) {
    this.#disk = options.disk;
    this.#window = options.window;
    this.#random = options.random;
    this.#logger = options.log;
    const tunables: StoreTunables = { ...TUNABLES_DEFAULT };
    for (const key of Object.keys(tunables) as (keyof StoreTunables)[]) {
      tunables[key] = options[key] ?? tunables[key];
    }
    this.#tunables = tunables;
    const at = options.arena.reserve(BUFFER_BYTES);
    if (at < 0) throw new Error(`store: the arena has no ${BUFFER_BYTES} bytes left`);
    this.#buffers = layOut(at);
    this.#tasks = new Tasks(this.#disk, (slot) => Token.Task | slot << TOKEN_BITS);
  }

  /** What the store is doing. */
  get state(): StoreState {
    return this.#state;
  }

  /** Whether it had been closed in good order when it was opened. Throws when it is not open. */
  get wasClean(): boolean {
    return this.#opened().wasClean;
  }

  /** Who the store belongs to. Throws when it is not open. */
  get identity(): StoreIdentity {
    const { storeId, nodeId, clusterId, hostId } = this.#opened().superblock;
    return { storeId, nodeId, clusterId, hostId };
  }

  // ── Life ───────────────────────────────────────────────────────────────────────────────────────

  /**
   * Makes a new, empty store. Whatever the disk held is lost.
   *
   * @param options identities of 16 bytes; `storeId` is drawn when it is not given; segments of a
   *   length that suits the capacity
   */
  format(
    options: {
      storeId?: Uint8Array;
      nodeId: Uint8Array;
      clusterId: Uint8Array;
      hostId: Uint8Array;
      segmentBytes?: number;
      capacityBytes: number;
    },
    done: Done,
  ): void {
    const segmentBytes = options.segmentBytes ?? segmentBytesFor(options.capacityBytes);
    const error = this.#checkFormat(options, segmentBytes);
    if (error !== null) return this.#later(done, error);
    const storeId = options.storeId ?? new Uint8Array(ID_BYTES);
    if (options.storeId === undefined) this.#random.fill(storeId);
    const superblock: Superblock = {
      format: FORMAT_BASE,
      storeId,
      nodeId: options.nodeId,
      clusterId: options.clusterId,
      hostId: options.hostId,
      sequence: 1,
      segmentBytes,
      segmentCount: this.#segmentsIn(options.capacityBytes, segmentBytes),
      clean: true,
      checkpointId: 0,
      checkpointLast: 0,
      checkpointCount: 0,
      checkpointFrames: 0,
      replaySegment: 0,
      replaySequence: 1,
      replayBlock: 1,
      replayLsn: 1,
      syncedLsn: 0,
      nextSequence: 2,
      previousEndLsn: 0,
    };
    this.#state = "opening";
    this.#tasks.start((io) => this.#format(io, superblock, done));
  }

  #checkFormat(
    options: {
      nodeId: Uint8Array;
      clusterId: Uint8Array;
      hostId: Uint8Array;
      capacityBytes: number;
    },
    segmentBytes: number,
  ): StoreError | null {
    if (this.#state !== "closed") return this.#busy("format");
    for (const name of ["nodeId", "clusterId", "hostId"] as const) {
      if (options[name].length !== ID_BYTES) {
        return new StoreError(
          "INVALID",
          `${name} has ${options[name].length} bytes, not ${ID_BYTES}`,
        );
      }
    }
    if (!isSegmentBytes(segmentBytes)) {
      return new StoreError(
        "INVALID",
        `segments of ${segmentBytes} bytes: take a power of two from ${SEGMENT_BYTES_MIN} to ${SEGMENT_BYTES_MAX}`,
      );
    }
    const count = this.#segmentsIn(options.capacityBytes, segmentBytes);
    if (count < SEGMENTS_MIN || count > segmentsMax(segmentBytes)) {
      return new StoreError(
        "INVALID",
        `a capacity of ${options.capacityBytes} bytes is out of range: from ` +
          `${SEGMENTS_OFFSET_BYTES + SEGMENTS_MIN * segmentBytes} to ` +
          `${
            SEGMENTS_OFFSET_BYTES + segmentsMax(segmentBytes) * segmentBytes
          } with segments of ${segmentBytes}`,
      );
    }
    if (options.capacityBytes > this.#disk.sizeBytesMax) {
      return new StoreError(
        "INVALID",
        `a capacity of ${options.capacityBytes} bytes is more than the device's ${this.#disk.sizeBytesMax}`,
      );
    }
    return null;
  }

  #segmentsIn(capacityBytes: number, segmentBytes: number): number {
    return Math.floor((capacityBytes - SEGMENTS_OFFSET_BYTES) / segmentBytes);
  }

  *#format(io: TaskIo, superblock: Superblock, done: Done): Task {
    const { bytes } = this.#window;
    const buffer = this.#buffers.superblock;
    // An older store's superblock must not win.
    const other = SUPERBLOCK_OFFSETS_BYTES[superblock.sequence + 1 & 1];
    bytes.fill(0, buffer, buffer + BLOCK_BYTES);
    let result = yield* io.write(other, buffer, BLOCK_BYTES);
    if (result >= 0) result = yield* io.sync();
    if (result >= 0) result = yield* writeSuperblock(io, this.#window, buffer, superblock);
    this.#state = "closed";
    done(result < 0 ? new StoreError("IO", `formatting failed (errno ${-result})`) : null);
  }

  /**
   * Opens the store.
   *
   * @param options.hostId the store must belong to this host, or `adopt` be given
   */
  open(options: OpenOptions, done: Done): void {
    if (this.#state !== "closed") return this.#later(done, this.#busy("open"));
    this.#state = "opening";
    const machine = {
      disk: this.#disk,
      window: this.#window,
      random: this.#random,
      logger: this.#logger,
      tunables: this.#tunables,
      buffers: this.#buffers,
      damage: this.#damage,
    };
    this.#tasks.start((io) => this.#open(io, machine, options, done));
  }

  *#open(
    io: TaskIo,
    machine: Parameters<typeof openStore>[1],
    options: Parameters<typeof openStore>[2],
    done: Done,
  ): Task {
    const core = yield* openStore(io, machine, options, {
      makeLog: (unfinished) =>
        new RecordLog({
          disk: this.#disk,
          window: this.#window,
          segments: unfinished.segments,
          owner: this,
          tokens: { batch: (slot) => Token.Batch | slot << TOKEN_BITS, sync: Token.Sync },
          storeId: unfinished.storeId,
          storeWords: unfinished.storeWords,
          at: this.#buffers.log,
        }),
    });
    if (core instanceof StoreError) {
      this.#state = "closed";
      done(core);
      return;
    }
    this.#core = core;
    this.#log = core.log;
    this.#reads = new Reads({
      disk: this.#disk,
      window: this.#window,
      index: core.index,
      segments: core.segments,
      cache: core.cache,
      storeWords: core.storeWords,
      owner: this,
      runToken: Token.Read,
      pageToken: Token.Page,
      tokenShift: TOKEN_BITS,
      at: this.#buffers.reads,
    });
    this.#cleaner = new Cleaner(core, this.#damageFound);
    this.#scrub = new Scrub(core, this.#damageFound);
    this.#deleting = 0;
    for (const state of core.applier.layers.values()) {
      if (state === LayerState.Deleting) this.#deleting++;
    }
    this.#state = "open";
    this.#updateReserve();
    done(null);
  }

  /**
   * Finishes what is under way, syncs, writes a checkpoint and a clean superblock. What still waits
   * for space fails.
   */
  close(done: Done): void {
    if (this.#state === "failed") {
      this.#tasks.start((io) => this.#closeFailed(io, done));
      return;
    }
    if (this.#state !== "open") return this.#later(done, this.#busy("close"));
    this.#state = "closing";
    this.#tasks.start((io) => this.#close(io, done));
  }

  *#closeFailed(_io: TaskIo, done: Done): Task {
    while (this.#log !== null && (this.#log.underWay > 0 || this.#reads!.requests > 0)) {
      yield Wait.Turn;
    }
    while (this.#tasks.count > 1) yield Wait.Turn;
    this.#dispose();
    done(null);
  }

  *#close(io: TaskIo, done: Done): Task {
    const core = this.#core!;
    const log = this.#log!;
    const reads = this.#reads!;
    this.#cleaner!.stop();
    this.#scrub!.stop();
    this.#failWaiting(ENODEV);
    const isQuiet = () =>
      this.#queue.count === 0 && this.#internals.length === 0 && reads.active === 0 &&
      reads.queued === 0 && reads.requests === 0 && log.isDrained && log.isSynced &&
      this.#tasks.count === 1 &&
      !core.locked;
    while (!isQuiet() && !log.failed) {
      this.#failWaiting(ENODEV);
      yield Wait.Turn;
    }
    let error: StoreError | null = null;
    if (log.failed) error = new StoreError("IO", this.#failure ?? "the store has failed");
    else if (this.#isCheckpointNeeded()) error = yield* this.#checkpointNow(io, true);
    else error = yield* this.#markClean(io);
    if (this.#failure !== null) {
      this.#state = "failed";
      done(error);
      return;
    }
    if (error !== null) {
      // Everything is synced; only the next opening will have more to replay.
      this.#logger.warn("closing without a checkpoint", { reason: error.message });
    }
    this.#dispose();
    done(null);
  }

  /**
   * True when the checkpoint in force is not the whole truth: replay would find something after it.
   */
  #isCheckpointNeeded(): boolean {
    return this.#core!.superblock.replayLsn !== this.#log!.lastLsn + 1 || this.#deleting > 0;
  }

  *#markClean(io: TaskIo): Task<StoreError | null> {
    const core = this.#core!;
    const superblock = { ...core.superblock, sequence: core.superblock.sequence + 1, clean: true };
    const result = yield* writeSuperblock(io, this.#window, this.#buffers.superblock, superblock);
    if (result < 0) return new StoreError("IO", `writing the superblock failed (errno ${-result})`);
    core.superblock = superblock;
    return null;
  }

  #dispose(): void {
    this.#core = null;
    this.#log = null;
    this.#reads = null;
    this.#cleaner = null;
    this.#scrub = null;
    // The next log counts its batches anew.
    this.#metaNumber = 0;
    this.#metaInFlight.length = 0;
    this.#state = "closed";
  }

  #opened(): Core {
    if (this.#core === null) throw new Error("the store is not open");
    return this.#core;
  }

  #busy(what: string): StoreError {
    return new StoreError("BUSY", `cannot ${what}: the store is ${this.#state}`);
  }

  /** Calls back at the end of the turn: not from inside the call that asked. */
  #later(done: Done, error: StoreError | null): void {
    this.#answers.push({ done, error });
  }

  // ── Operations ─────────────────────────────────────────────────────────────────────────────────

  /** Takes an operation; it comes back through its owner, exactly once. */
  submit(operation: Operation): void {
    operation.result = 0;
    if (this.#state !== "open") {
      operation.result = this.#state === "failed" ? -EIO : -ENODEV;
      this.#finished.push(operation);
      return;
    }
    switch (operation.kind) {
      case OperationKind.Read:
        if (!this.#isInRange(operation, TRANSFER_BLOCKS_MAX)) return this.#invalid(operation);
        this.#reads!.submit(operation);
        return;
      case OperationKind.Fill:
        // A sequence without a generation says nothing.
        if (operation.generation === 0 && operation.sequence !== 0) return this.#invalid(operation);
        if (operation.blockCount === 0) {
          operation.block = 0;
          if (operation.generation === 0) return this.#invalid(operation);
        }
        /* falls through */
      case OperationKind.Write:
        if (!this.#isWritable(operation, TRANSFER_BLOCKS_MAX)) return this.#invalid(operation);
        this.#userBlocks += operation.blockCount;
        return this.#take(operation);
      case OperationKind.Absorb:
        operation.block = 0;
        operation.blockCount = 1;
        if (!this.#isAbsorbable(operation)) return this.#invalid(operation);
        return this.#take(operation);
      case OperationKind.Stamp:
        operation.block = 0;
        operation.blockCount = 1;
        if (operation.generation === 0 && operation.sequence !== 0) return this.#invalid(operation);
        /* falls through */
      case OperationKind.Free:
      case OperationKind.Zero:
        if (!this.#isWritable(operation, CHUNK_BLOCKS)) return this.#invalid(operation);
        return this.#take(operation);
      case OperationKind.Sync:
        this.#log!.sync(operation);
        return;
    }
  }

  /** Appends a change, or puts it behind what it must not overtake. */
  #take(operation: Operation): void {
    const isNewer = operation.kind === OperationKind.Absorb ||
      operation.kind === OperationKind.Fill;
    if (this.#held.count > 0 || isNewer) {
      const isHeld = isChunkIn(this.#held, operation) || (isNewer && !this.#mayAbsorb(operation));
      if (isHeld) {
        this.#held.push(operation);
        return;
      }
    }
    if (takesSpace(operation)) {
      if (this.#waiting.count > 0 || this.#isFull()) {
        this.#waiting.push(operation);
        return;
      }
      if (this.#queue.count > 0 || !this.#log!.append(operation)) this.#queue.push(operation);
      return;
    }
    if (this.#waiting.count > 0 && isChunkIn(this.#waiting, operation)) {
      this.#waitingOthers++;
      this.#waiting.push(operation);
      return;
    }
    if (this.#queue.count > 0 || !this.#mayFree() || !this.#log!.append(operation)) {
      this.#queue.push(operation);
    }
  }

  /** See the head of the file, at "Order". Once it may it may for good. */
  #mayAbsorb(operation: Operation): boolean {
    const { superblock, imageLayers } = this.#core!;
    return superblock.format >= FORMAT_ABSORB &&
      (imageLayers === null || imageLayers.has(operation.layers[0]));
  }

  /** Lets go what need not be held back any longer. */
  #releaseHeld(): void {
    if (this.#core!.superblock.format < FORMAT_ABSORB) {
      if (this.#raisingFormat) return;
      this.#raisingFormat = true;
      this.#tasks.start((io) => this.#raiseFormat(io));
      return;
    }
    const held = new OperationList();
    held.prepend(this.#held);
    // In order: what is held back again holds back what comes after it.
    while (held.count > 0) this.#take(held.shift());
  }

  /** Writes the superblock that keeps programs away which do not know absorbs and fills. */
  *#raiseFormat(io: TaskIo): Task {
    const core = this.#core!;
    while (core.locked && this.#failure === null) yield Wait.Turn;
    if (this.#failure === null) {
      core.locked = true;
      const superblock = {
        ...core.superblock,
        sequence: core.superblock.sequence + 1,
        format: FORMAT_ABSORB,
      };
      const result = yield* writeSuperblock(io, this.#window, this.#buffers.superblock, superblock);
      core.locked = false;
      if (result >= 0) core.superblock = superblock;
      else this.#fail(`writing the superblock failed (errno ${-result})`);
    }
    this.#raisingFormat = false;
  }

  #isInRange(operation: Operation, countMax: number): boolean {
    const { chunk, block, blockCount, kind } = operation;
    return chunk >= 0 && chunk < CHUNKS_MAX && block >= 0 &&
      blockCount >= (kind === OperationKind.Fill ? 0 : 1) &&
      blockCount <= countMax &&
      block + blockCount <= CHUNK_BLOCKS;
  }

  #isWritable(operation: Operation, countMax: number): boolean {
    return this.#isInRange(operation, countMax) && operation.layers.length > 0 &&
      // More would be a record that no replay believes.
      operation.sequence >= 0 && operation.sequence < 2 ** 53 &&
      this.#core!.applier.layers.get(operation.layers[0]) === LayerState.Live;
  }

  #isAbsorbable(operation: Operation): boolean {
    const { layers, chunk } = operation;
    const known = this.#core!.applier.layers;
    return chunk >= 0 && chunk < CHUNKS_MAX && layers.length === 2 && layers[1] < layers[0] &&
      layers.every((layer) => known.get(layer) === LayerState.Live);
  }

  #invalid(operation: Operation): void {
    operation.result = -EINVAL;
    this.#finished.push(operation);
  }

  /**
   * Takes back changes of which nothing has begun, since they wait for space or behind what does. They come back with −ECANCELED, not
   * from inside this call; the others keep their order.
   */
  withdraw(isWanted: (operation: Operation) => boolean): void {
    // The first in the queue may have begun: a write that does not fit one record.
    const begun = this.#log?.hasPart === true ? this.#queue.first : null;
    for (const list of [this.#queue, this.#waiting, this.#held]) {
      const kept = new OperationList();
      while (list.count > 0) {
        const operation = list.shift();
        if (operation === begun || !isWanted(operation)) {
          kept.push(operation);
          continue;
        }
        if (list === this.#waiting && !takesSpace(operation)) this.#waitingOthers--;
        operation.result = -ECANCELED;
        this.#finished.push(operation);
      }
      list.prepend(kept);
    }
    if (this.#waitingOthers > 0) this.#releaseOthers();
  }

  /** Writes have to wait: what is left is for freeing, cleaning and checkpoints. */
  #isFull(): boolean {
    return !this.#isReadyAbove(this.#writeLimit);
  }

  /**
   * Whether so many bytes of copies that can wait may be written: a {@linkcode COPIES_RESERVE_SHARE} of what fits is left for users then.
   */
  hasRoom(_layer: number, _chunk: number, bytes: number): boolean {
    if (this.#core === null || this.#waiting.count > 0 || this.#isFull()) return false;
    const { segments } = this.#core;
    const usable = this.#usableBytes(segments);
    return segments.liveBlocks * BLOCK_BYTES + bytes <= usable * (1 - COPIES_RESERVE_SHARE);
  }

  #usableBytes({ count, segmentBytes }: Core["segments"]): number {
    const usable = Math.max(0, count - this.#writeLimit - 2 - this.#checkpointReserve);
    // A sixteenth is lost to headers, and to what is too little to be worth cleaning.
    return Math.floor(usable * (segmentBytes - BLOCK_BYTES) * 15 / 16);
  }

  /** Frees, zeroes and META may be appended. */
  #mayFree(): boolean {
    return this.#isReadyAbove(this.#freeLimit);
  }

  /**
   * True when more than `limit` segments are ready, those counted off that what is appended already
   * will take.
   */
  #isReadyAbove(limit: number): boolean {
    const { readyCount, segmentBlocks } = this.#core!.segments;
    return (readyCount - limit) * segmentBlocks > this.#log!.unplacedBlocks;
  }

  /** {@inheritDoc ReadsOwner.completeLater} */
  completeLater(operation: Operation): void {
    this.#finished.push(operation);
  }

  /** {@inheritDoc ReadsOwner.blockDamaged} */
  blockDamaged(
    layer: number,
    chunk: number,
    block: number,
    location: number,
    fault: BlockFault,
  ): void {
    this.#damageFound({
      what: "block",
      layer,
      chunk,
      block,
      offsetBytes: location * BLOCK_BYTES,
      message: faultMessage(fault),
    });
  }

  /** Told of every block that is found damaged or cannot be read, again each time; nothing may be asked of the store in it. */
  damageListener: ((layer: number, chunk: number, block: number) => void) | null = null;

  readonly #damageFound = (found: Damage): void => {
    let damage = found;
    if (found.what === "block") {
      // Whoever found it may have looked it up before another layer absorbed it.
      const location = found.offsetBytes === 0 ? POISON : found.offsetBytes / BLOCK_BYTES;
      const { layer, chunk, block } = found;
      const owner = this.#core!.applier.ownerOf(layer, chunk, block, location);
      if (owner >= 0 && owner !== layer) damage = { ...found, layer: owner };
    }
    if (damage.what === "block") this.damageListener?.(damage.layer, damage.chunk, damage.block);
    if (this.#damage.list.length >= DAMAGE_MAX) this.#damage.prune(this.#isStillThere);
    if (!this.#damage.add(damage)) return;
    this.#logger.error("damaged block", { ...damage });
  };

  /** {@inheritDoc LogOwner.operationApplied} */
  operationApplied(operation: Operation): void {
    if (this.#failure !== null && operation.kind === OperationKind.Sync) operation.result = -EIO;
    operation.owner.operationDone(operation);
  }

  /** {@inheritDoc OperationOwner.operationDone} Syncs of the store's own. */
  operationDone(operation: Operation): void {
    const done = this.#internalSyncs.get(operation);
    this.#internalSyncs.delete(operation);
    done?.(operation.result === 0);
  }

  /** Asks for a sync of everything appended so far. */
  #syncThen(done: (ok: boolean) => void): void {
    const operation = new Operation(this, 0);
    operation.kind = OperationKind.Sync;
    this.#internalSyncs.set(operation, done);
    this.#log!.sync(operation);
  }

  /** {@inheritDoc LogOwner.applyBatch} */
  applyBatch(batch: Batch): void {
    const { segments, applier, cache } = this.#core!;
    const { u32 } = this.#window;
    const headerWord = batch.headerAt >>> 2;
    const { headerBlocks } = batch;
    const location = segments.start(batch.segment) + batch.block;
    let word = headerWord + RECORD_WORD.entries;
    let data = location + headerBlocks;
    let hasRuns = false;
    for (let i = 0; i < batch.entryCount; i++) {
      const kind = entryKind(u32, word);
      if (kind === EntryKind.MetaBatch) this.#applyMeta();
      else applier.apply(word, headerWord, location, data);
      if (kind === EntryKind.LayerDelete) this.#deleting++;
      if (kind === EntryKind.Absorb && this.#damage.list.length > 0) {
        const into = entryLayer(u32, word), from = entryFrom(u32, word);
        this.#damage.absorbed(into, from, entryChunk(u32, word), this.#isStillThere);
      }
      if (hasData(kind)) {
        const count = entryCount(u32, word);
        data += count;
        hasRuns ||= count >= 4;
      }
      word = entryNext(u32, word);
    }
    if (hasRuns) {
      for (let page = 0; page < headerBlocks; page++) {
        cache.put(location + page, u32, headerWord + page * (BLOCK_BYTES / 4));
      }
    }
  }

  #applyMeta(): void {
    const { meta } = this.#core!;
    for (const { key, value } of this.#metaInFlight.shift()!) meta.set(key, value);
  }

  /** {@inheritDoc LogOwner.synced} */
  synced(): void {
    this.#core!.segments.reclaimable = true;
  }

  /** {@inheritDoc LogOwner.logFailed} */
  logFailed(reason: string): void {
    this.#fail(reason);
  }

  #fail(reason: string): void {
    if (this.#failure !== null) return;
    this.#failure = reason;
    this.#state = "failed";
    this.#logger.error("the store has failed: restart the agent once the disk is repaired", {
      reason,
    });
    this.#log!.fail(reason);
    this.#cleaner?.stop();
    this.#scrub?.stop();
    const take = (operation: Operation) => {
      operation.result = -EIO;
      this.#finished.push(operation);
    };
    this.#log!.takeAll(take);
    this.#reads!.takeQueued(take);
    while (this.#queue.count > 0) take(this.#queue.shift());
    this.#failWaiting(EIO);
    this.#internalBytes = 0;
    for (const internal of this.#internals.splice(0)) {
      this.#later(internal.done, new StoreError("IO", reason));
    }
  }

  #failWaiting(errno: number): void {
    this.#waitingOthers = 0;
    for (const list of [this.#waiting, this.#held]) {
      while (list.count > 0) {
        const operation = list.shift();
        operation.result = -errno;
        this.#finished.push(operation);
      }
    }
  }

  // ── Turns ──────────────────────────────────────────────────────────────────────────────────────

  /** {@inheritDoc DiskListener.diskDone} */
  diskDone(token: number, result: number): void {
    const slot = token >>> TOKEN_BITS;
    switch (token & TOKEN_MASK) {
      case Token.Batch:
        this.#log!.batchDone(slot, result);
        if (this.#queue.count > 0) this.#pump();
        return;
      case Token.Read:
        return this.#reads!.runDone(slot, result);
      case Token.Page:
        return this.#reads!.pageDone(slot, result);
      case Token.Sync:
        return this.#log!.syncDone(result);
      case Token.Task:
        return this.#tasks.diskDone(slot, result);
    }
  }

  /** Ends a turn: what was submitted in it goes to the disk, what has finished goes back. */
  endTurn(): void {
    const log = this.#log;
    if (log !== null && this.#failure === null) {
      if (this.#internals.length > 0 || this.#queue.count > 0 || this.#waiting.count > 0) {
        this.#pump();
      }
      if (this.#held.count > 0) this.#releaseHeld();
      if (this.#deleting > 0) this.#dropLayers(DROP_CHUNKS_PER_TURN);
      if (this.#core!.segments.reclaimable) this.#reclaim();
      if (this.#isReserveOld()) this.#updateReserve();
      log.endTurn();
      this.#maintain();
    }
    this.#tasks.endTurn();
    if (log !== null && !log.failed) log.endTurn();
    if (this.#answers.length > 0) {
      for (const { done, error } of this.#answers.splice(0)) done(error);
    }
    // As many as there are now: whoever submits again in the call-back gets the next turn.
    for (let count = this.#finished.count; count > 0; count--) {
      const operation = this.#finished.shift();
      operation.owner.operationDone(operation);
    }
  }

  /** Appends what has been waiting, oldest first. */
  #pump(): void {
    const log = this.#log!;
    if (log.failed) return;
    while (this.#internals.length > 0 && !log.hasPart) {
      if (!this.#mayFree() || !this.#appendInternals()) break;
    }
    if (this.#isFull()) this.#setWritesAside();
    if (!this.#pumpQueue()) return;
    const waiting = this.#waiting.count;
    while (this.#waiting.first !== null) {
      const isWrite = takesSpace(this.#waiting.first);
      if (isWrite ? this.#isFull() : !this.#mayFree()) break;
      const operation = this.#waiting.shift();
      if (!isWrite) this.#waitingOthers--;
      // Begun, perhaps: then it must be finished before anything else.
      if (!log.append(operation)) {
        this.#queue.push(operation);
        break;
      }
    }
    if (this.#waitingOthers > 0 && this.#waiting.count < waiting) this.#releaseOthers();
  }

  /** Appends what found no batch; true when nothing of it is left. */
  #pumpQueue(): boolean {
    const log = this.#log!;
    while (this.#queue.first !== null) {
      const operation = this.#queue.first;
      if (!takesSpace(operation) && !this.#mayFree()) return false;
      // Off the list first: the log links it into another one.
      this.#queue.shift();
      if (log.append(operation)) continue;
      this.#queue.unshift(operation);
      return false;
    }
    return true;
  }

  /**
   * The store is full: moves writes out of the way of frees, but for one that is begun already; and
   * behind a write whatever goes to its chunk.
   */
  #setWritesAside(): void {
    if (this.#queue.count === 0) return;
    const aside = new OperationList();
    const others = new OperationList();
    let isBegun = this.#log!.hasPart;
    while (this.#queue.count > 0) {
      const operation = this.#queue.shift();
      const isWrite = takesSpace(operation);
      if (!isBegun && (isWrite || isChunkIn(aside, operation))) {
        if (!isWrite) this.#waitingOthers++;
        aside.push(operation);
      } else {
        others.push(operation);
      }
      isBegun = false;
    }
    this.#queue.prepend(others);
    this.#waiting.prepend(aside);
  }

  /** Some writes wait no longer: what waits only for those need not wait for the rest. */
  #releaseOthers(): void {
    const kept = new OperationList();
    while (this.#waiting.count > 0) {
      const operation = this.#waiting.shift();
      if (!takesSpace(operation) && !isChunkIn(kept, operation)) {
        this.#waitingOthers--;
        this.#queue.push(operation);
      } else {
        kept.push(operation);
      }
    }
    this.#waiting.prepend(kept);
    this.#pumpQueue();
  }

  /** Appends the oldest slow request, or as many values of META as fit one entry. */
  #appendInternals(): boolean {
    const internal = this.#internals[0];
    if (internal.append === null) return this.#appendMeta();
    if (!internal.append(this.#log!, this.#core!)) return false;
    this.#internals.shift();
    this.#finishSynced([internal]);
    return true;
  }

  /** Calls back once everything appended so far is durable. */
  #finishSynced(internals: readonly Internal[]): void {
    this.#syncThen((ok) => {
      for (const { done } of internals) {
        done(ok ? null : new StoreError("IO", this.#failure ?? "the store has failed"));
      }
    });
  }

  /**
   * Packs values of META from the front of the queue into one entry. A request that fits an entry is
   * never cut; one that does not is cut between two values.
   */
  #appendMeta(): boolean {
    const log = this.#log!;
    // One entry at a time: they share a buffer.
    if (log.appliedNumber < this.#metaNumber) return false;
    const { kernel, bytes } = this.#window;
    const at = this.#buffers.meta;
    const items: MetaItem[] = [];
    let length = 0;
    let finished = 0;
    let taken = 0;
    for (const internal of this.#internals) {
      const fitsWhole = internal.bytes <= META_BATCH_BYTES_MAX;
      if (internal.append !== null) break;
      if (fitsWhole && length + internal.bytes > META_BATCH_BYTES_MAX) break;
      for (taken = internal.taken; taken < internal.items.length; taken++) {
        const item = internal.items[taken];
        if (length + metaItemBytes(item) > META_BATCH_BYTES_MAX) break;
        length += encodeMetaItem(this.#window, at + length, item);
        items.push(item);
      }
      if (taken < internal.items.length) break;
      finished++;
      taken = 0;
    }
    const count = Math.ceil(length / BLOCK_BYTES);
    bytes.fill(0, at + length, at + count * BLOCK_BYTES);
    for (let i = 0; i < count; i++) {
      this.#metaChecksums[i] = kernel.checksum(at + i * BLOCK_BYTES, BLOCK_BYTES);
    }
    if (!log.appendMeta(length, items.length, at, count, this.#metaChecksums)) return false;
    this.#metaNumber = log.number;
    this.#metaInFlight.push(items);
    const done = this.#internals.splice(0, finished);
    for (const internal of done) this.#internalBytes -= internal.bytes;
    if (taken > 0) this.#internals[0].taken = taken;
    if (done.length > 0) this.#finishSynced(done);
    return true;
  }

  /** Frees blocks of deleted layers, a few chunks at a time. */
  #dropLayers(chunkBudget: number): void {
    const { applier, index } = this.#core!;
    for (const [id, state] of applier.layers) {
      if (state !== LayerState.Deleting) continue;
      if (index.dropLayerStep(id, chunkBudget)) {
        applier.layers.delete(id);
        this.#deleting--;
      }
      return;
    }
    this.#deleting = 0;
  }

  #reclaim(): void {
    const { segments, superblock, cache } = this.#core!;
    segments.reclaim(this.#log!.syncedLsn, superblock.replaySequence, (segment) => {
      cache.dropRange(segments.start(segment), segments.start(segment) + segments.segmentBlocks);
      this.#cleaner!.forget(segment);
    });
  }

  /** A single record may make the index's image longer by megabytes: that is not left to the next tick. */
  #isReserveOld(): boolean {
    const { index, segments } = this.#core!;
    return this.#log!.segment !== this.#reserveSegment ||
      index.imageBytes - this.#reserveBytes > segments.segmentBytes / 16;
  }

  #updateReserve(): void {
    const core = this.#core!;
    this.#reserveSegment = this.#log!.segment;
    this.#reserveBytes = core.index.imageBytes;
    const bytes = checkpointPayloadBytes(core);
    const { crashSegments, cleanerSegments } = this.#tunables;
    this.#checkpointReserve = checkpointSegmentsFor(bytes, core.segments.segmentBytes);
    this.#cleanerLimit = this.#checkpointReserve + 2;
    this.#freeLimit = this.#cleanerLimit + crashSegments;
    this.#writeLimit = this.#freeLimit + cleanerSegments;
  }

  /** Starts what is needed: allocation, sync for reclaim, checkpoint, cleaner. */
  #maintain(): void {
    const core = this.#core!;
    const { segments } = core;
    const log = this.#log!;
    const wantedReady = this.#writeLimit + this.#tunables.readySegments;
    if (
      !this.#allocating && this.#nowMs >= this.#allocateAfterMs &&
      (segments.readyCount < wantedReady
        ? segments.freeCount > segments.readyCount
        : segments.readyCount > wantedReady + this.#surplusReady())
    ) {
      this.#allocating = true;
      this.#tasks.start((io) => this.#allocate(io));
    }
    // Whether space is scarce enough to hurry what would free some.
    const isScarce = segments.freeCount <= wantedReady;
    if (isScarce && segments.pending.length > 0) {
      if (!this.#reclaimSyncing && segments.pendingSync(log.syncedLsn) > 0) {
        this.#reclaimSyncing = true;
        this.#syncThen(() => this.#reclaimSyncing = false);
      }
      const blocked = segments.pendingReplay(core.superblock.replaySequence);
      if (blocked > 0 && (blocked >= 4 || segments.readyCount <= this.#writeLimit + 1)) {
        this.#startCheckpoint();
      }
    }
    const logBytes = (log.blocksWritten - this.#checkpointBlocks) * BLOCK_BYTES;
    const { checkpointLogBytes, checkpointLogRatio } = this.#tunables;
    if (logBytes >= Math.max(checkpointLogBytes, checkpointLogRatio * core.checkpointBytes)) {
      this.#startCheckpoint();
    }
    const situation = this.#situation;
    situation.mayTake = this.#isReadyAbove(this.#cleanerLimit);
    situation.headRoom = log.headRoom;
    situation.isFull = this.#isFull();
    situation.writeLimit = this.#writeLimit;
    situation.nowMs = this.#nowMs;
    situation.idleMs = this.#nowMs - this.#quietSinceMs;
    situation.userBlocks = this.#userBlocks;
    situation.isDropping = this.#deleting > 0;
    this.#cleaner!.consider(this.#tasks, situation);
  }

  /** Free segments beyond the wanted ones that are not given back to the host now. */
  #surplusReady(): number {
    const { readySegments, warmSegments, warmMs } = this.#tunables;
    const isInUse = this.#nowMs - this.#quietSinceMs < warmMs;
    return isInUse ? Math.max(readySegments, warmSegments) : readySegments;
  }

  *#allocate(io: TaskIo): Task {
    const { segments } = this.#core!;
    const wanted = () => this.#writeLimit + this.#tunables.readySegments;
    while (this.#state === "open" || this.#state === "closing") {
      if (segments.readyCount < wanted()) {
        const segment = segments.takeBusy(0);
        if (segment === NO_SEGMENT) break;
        const result = yield* io.allocate(segments.offsetBytes(segment), segments.segmentBytes);
        segments.endBusy(segment, result >= 0);
        this.#hostFull = result === -ENOSPC;
        if (result < 0) {
          this.#allocateAfterMs = this.#nowMs + ALLOCATE_RETRY_MS;
          if (!this.#hostFull) this.#logger.warn("allocating a segment failed", { errno: -result });
          break;
        }
      } else if (
        this.#state === "open" && segments.readyCount > wanted() + this.#surplusReady()
      ) {
        const segment = segments.takeBusy(1);
        if (segment === NO_SEGMENT) break;
        const result = yield* io.punch(segments.offsetBytes(segment), segments.segmentBytes);
        // If it cannot be punched it stays allocated, and is left alone for a while.
        segments.endBusy(segment, result < 0);
        if (result < 0) {
          this.#allocateAfterMs = this.#nowMs + ALLOCATE_RETRY_MS;
          break;
        }
      } else {
        break;
      }
    }
    this.#allocating = false;
  }

  #startCheckpoint(): void {
    const core = this.#core!;
    if (this.#checkpointing || core.locked || this.#nowMs < this.#checkpointAfterMs) return;
    if (this.#state !== "open") return;
    this.#checkpointing = true;
    this.#tasks.start((io) => this.#checkpoint(io));
  }

  *#checkpoint(io: TaskIo): Task {
    const error = yield* this.#checkpointNow(io, false);
    this.#checkpointing = false;
    if (error !== null) this.#checkpointAfterMs = this.#nowMs + CHECKPOINT_RETRY_MS;
  }

  *#checkpointNow(io: TaskIo, clean: boolean): Task<StoreError | null> {
    const core = this.#core!;
    const log = this.#log!;
    core.locked = true;
    log.watch();
    const blocks = log.blocksWritten;
    const failure = yield* writeCheckpoint(io, core, {
      clean,
      position: () => log.checkpointPosition(),
      nextSequence: () => ++log.lastSequence,
      appliedLsn: () => log.appliedLsn,
      synced: (lsn) => log.noteSynced(lsn),
    });
    core.locked = false;
    if (failure !== null) {
      if (failure.final) this.#fail(failure.message);
      else this.#logger.warn("no checkpoint", { reason: failure.message });
      return failure.error;
    }
    this.#checkpointBlocks = blocks;
    this.#checkpointsTaken++;
    this.#updateReserve();
    this.#reclaim();
    return null;
  }

  /**
   * Lets time pass: to be called about every 100 ms while there is work, every second otherwise.
   *
   * @param nowMs monotonic
   */
  tick(nowMs: number): void {
    this.#nowMs = nowMs;
    const log = this.#log;
    if (log === null || this.#failure !== null) return this.endTurn();
    if (log.appliedLsn !== this.#lastAppliedLsn || !log.isDrained) {
      this.#lastAppliedLsn = log.appliedLsn;
      this.#quietSinceMs = nowMs;
    } else if (
      this.#state === "open" && nowMs - this.#quietSinceMs >= NOTE_AFTER_MS &&
      log.syncedLsn > log.notedSyncedLsn && this.#mayFree()
    ) {
      // So that a torn tail and a damaged one can be told apart after a crash.
      log.appendNote();
      this.#lastAppliedLsn = log.lastLsn;
    }
    if (log.noSpace) log.retryNoSpace();
    if (this.#deleting > 0) this.#dropLayers(DROP_CHUNKS_PER_TICK);
    this.#updateReserve();
    this.#core!.segments.reclaimable = true;
    if (this.#state === "open") this.#scrub!.tick(this.#tasks, nowMs);
    this.endTurn();
  }

  /** Nothing that a tick would do soon. */
  get idle(): boolean {
    const log = this.#log;
    if (log === null || this.#failure !== null) return this.#tasks.count === 0;
    return log.isDrained && log.isSynced && this.#tasks.count === 0 && this.#deleting === 0 &&
      this.#queue.count === 0 && this.#waiting.count === 0 && this.#held.count === 0 &&
      this.#internals.length === 0 && this.#finished.count === 0 && this.#answers.length === 0 &&
      log.syncedLsn <= log.notedSyncedLsn && !log.noSpace;
  }

  /** Something was submitted that the disk has not written yet. */
  get hasUnwritten(): boolean {
    return this.#queue.count > 0 || this.#log?.isDrained === false;
  }

  // ── Layers, META, size ─────────────────────────────────────────────────────────────────────────

  /** Creates an empty layer. Ids are never used twice. */
  createLayer(id: number, done: Done): void {
    if (!this.#isOpenFor("create a layer", done)) return;
    const { applier } = this.#core!;
    if (!Number.isInteger(id) || id < 0 || id > 0xffffffff) {
      return this.#later(done, new StoreError("INVALID", `layer id ${id} is not a u32`));
    }
    if (applier.layers.has(id) || this.#creating.has(id)) {
      return this.#later(done, new StoreError("LAYER", `layer ${id} exists already`));
    }
    this.#creating.add(id);
    this.#internal(layerEntry(EntryKind.LayerCreate, id), (error) => {
      this.#creating.delete(id);
      done(error);
    });
  }

  /**
   * Deletes a layer: it is gone when this is done; its space comes back soon after. What is under way
   * to it then may be lost, an absorb from it included: it has to have come back before.
   */
  deleteLayer(id: number, done: Done): void {
    if (!this.#isOpenFor("delete a layer", done)) return;
    const { applier } = this.#core!;
    if (applier.layers.get(id) !== LayerState.Live) {
      return this.#later(done, new StoreError("LAYER", `there is no layer ${id}`));
    }
    this.#internal(layerEntry(EntryKind.LayerDelete, id), done);
  }

  /** True when the layer is there and not being deleted. */
  hasLayer(id: number): boolean {
    return this.#opened().applier.layers.get(id) === LayerState.Live;
  }

  /** Ids of all layers, ascending. */
  layers(): number[] {
    const ids: number[] = [];
    for (const [id, state] of this.#opened().applier.layers) {
      if (state === LayerState.Live) ids.push(id);
    }
    return ids.sort((a, b) => a - b);
  }

  /** Bytes of data that a layer holds; 0 when it is not there. */
  layerBytes(id: number): number {
    return this.#opened().index.layerBlockCount(id) * BLOCK_BYTES;
  }

  /**
   * Sets or removes (`null`) a META value; durable when done. See {@linkcode setMetaBatch}.
   *
   * @param key up to 255 bytes of UTF-8
   * @param value up to 64 KiB; copied
   */
  setMeta(key: string, value: Uint8Array | null, done: Done): void {
    this.setMetaBatch([{ key, value }], done);
  }

  /**
   * Sets or removes (`null`) META values, in this order; all of them are durable when done. Several
   * calls of one turn share records and a sync, and take effect in the order of the calls.
   *
   * After a crash before that, none of the values may have changed, or all, or, only if they take
   * more than 68 KiB together (8 bytes, key and value each), the first few of them: never a later one
   * without those before it, in this call and all calls before. What was done at the crash is there.
   * While running, values change one call, or 68 KiB of one, at a time, a little before they are
   * durable. A failure (IO: the store has failed) leaves open whether they are durable.
   *
   * @param entries keys up to 255 bytes of UTF-8; values up to 64 KiB, copied
   */
  setMetaBatch(
    entries: readonly { readonly key: string; readonly value: Uint8Array | null }[],
    done: Done,
  ): void {
    if (!this.#isOpenFor("set META", done)) return;
    const items: MetaItem[] = [];
    let bytes = 0;
    for (const { key, value } of entries) {
      const keyBytes = new TextEncoder().encode(key);
      const fault = metaFault(keyBytes.length, value?.length ?? 0);
      if (fault !== null) return this.#later(done, new StoreError("INVALID", fault));
      const item: MetaItem = { key, keyBytes, value: value === null ? null : value.slice() };
      items.push(item);
      bytes += metaItemBytes(item);
    }
    if (items.length === 0) return this.#later(done, null);
    if (this.#internalBytes + bytes > INTERNAL_BYTES_MAX) {
      return this.#later(done, new StoreError("BUSY", "too much META waits for the store"));
    }
    if (this.#enqueue({ append: null, items, bytes, taken: 0, done })) this.#internalBytes += bytes;
  }

  /** A META value, or null. The caller must not change it. */
  getMeta(key: string): Uint8Array | null {
    return this.#opened().meta.get(key) ?? null;
  }

  /** All META keys, sorted. */
  metaKeys(): string[] {
    return this.#opened().meta.keys();
  }

  #internal(append: (log: RecordLog, core: Core) => boolean, done: Done): void {
    this.#enqueue({ append, items: NO_ITEMS, bytes: 0, taken: 0, done });
  }

  #enqueue(internal: Internal): boolean {
    if (this.#internals.length >= INTERNAL_MAX) {
      this.#later(internal.done, new StoreError("BUSY", "too many requests wait for the store"));
      return false;
    }
    this.#internals.push(internal);
    return true;
  }

  // ── What replication asks for ──────────────────────────────────────────────────────────────────

  /**
   * Tells the stamp of a chunk: what all operations on it that have completed made of it.
   *
   * @param stamp filled; (0, 0) when it is unknown or the layer is not there
   * @returns whether it is known
   */
  stampOf(layer: number, chunk: number, stamp: Stamp): boolean {
    const { stamps } = this.#opened().applier;
    const isKnown = stamps.find(layer, chunk);
    stamp.generation = stamps.generation;
    stamp.sequence = stamps.sequence;
    return isKnown;
  }

  /**
   * Lists chunks that have a known stamp, or content, or both, in rising order.
   *
   * One call looks at a bounded number of places, so it may find few or none and yet have more to
   * go (`next`). What changes between calls is listed or not.
   *
   * @param from where to begin: 0, or what `next` was
   * @param list room for one chunk at least
   * @param step only chunks that are `offset` modulo this power of two: those of one PG
   */
  listChunks(layer: number, from: number, list: ChunkList, step = 1, offset = 0): void {
    const { index, applier: { stamps } } = this.#opened();
    const { chunks, generations, sequences } = list;
    list.count = 0;
    list.next = -1;
    // First one at or after `from` of the residue that is wanted.
    const aligned = (chunk: number) => chunk + (offset - chunk & step - 1);
    let chunk = aligned(from);
    let known = 0;
    for (let steps = LIST_STEPS; chunk < CHUNKS_MAX;) {
      if (list.count === chunks.length || steps <= 0) {
        list.next = chunk;
        return;
      }
      if (chunk >= known) {
        // Past what is known to have leaves.
        const next = Math.min(index.skip(layer, chunk, steps), stamps.skip(layer, chunk, steps));
        steps -= 1 + (next - chunk >>> 8);
        chunk = aligned(next);
        if (chunk >= CHUNKS_MAX) return;
        known = (chunk | 255) + 1;
      }
      steps--;
      const isStamped = stamps.find(layer, chunk);
      if (isStamped || index.hasChunk(layer, chunk)) {
        chunks[list.count] = chunk;
        generations[list.count] = stamps.generation;
        sequences[list.count++] = stamps.sequence;
      }
      chunk += step;
    }
  }

  /**
   * Says what a chunk of one layer holds, block by block: bit b of word w of a map stands for block
   * 32 w + b. A block in none of the maps is a hole: a read of this layer alone gives zeros for it,
   * a read through several shows what is below.
   *
   * @param data 32 words, the caller's, overwritten: blocks with data
   * @param zeros likewise: blocks that read as zeros
   * @param poisoned likewise: blocks whose data is known to be lost; a write heals them
   * @returns blocks with data
   */
  describeChunk(
    layer: number,
    chunk: number,
    data: Uint32Array,
    zeros: Uint32Array,
    poisoned: Uint32Array,
  ): number {
    return this.#opened().index.describe(layer, chunk, data, zeros, poisoned);
  }

  /** Where a block lies in the store's file now, in bytes; −1: the layer has no data there. Cleaning moves it. */
  offsetOf(layer: number, chunk: number, block: number): number {
    const location = this.#opened().index.locate(layer, chunk, block);
    return location >= 0 && location < LOCATION_END ? location * BLOCK_BYTES : -1;
  }

  /** Whether a layer says something of a block itself: data, zeros, or that it is damaged. */
  holds(layer: number, chunk: number, block: number): boolean {
    return this.#opened().index.locate(layer, chunk, block) !== HOLE;
  }

  /** Whether a block of a layer has been found damaged, and is what it was then. What nobody has read since may be damaged all the same. */
  isDamaged(layer: number, chunk: number, block: number): boolean {
    if (this.#opened().index.locate(layer, chunk, block) === POISON) return true;
    return this.#damage.list.some((damage) =>
      damage.what === "block" && damage.layer === layer && damage.chunk === chunk &&
      damage.block === block && this.#isStillThere(damage)
    );
  }

  /**
   * The same as {@linkcode describeChunk} of what a read through several layers comes upon.
   *
   * @param layers newest first; one that is not there holds nothing
   */
  describeChain(
    layers: readonly number[],
    chunk: number,
    data: Uint32Array,
    zeros: Uint32Array,
    poisoned: Uint32Array,
  ): number {
    return this.#opened().index.describeChain(layers, chunk, data, zeros, poisoned);
  }

  /**
   * Frees all blocks of a chunk and forgets its stamp, after everything that was submitted for the
   * chunk before. Durable with the next sync; may be repeated; nothing to do where there is no such
   * layer.
   */
  dropChunk(layer: number, chunk: number, done: Done): void {
    if (!this.#isOpenFor("drop a chunk", done)) return;
    if (!(chunk >= 0 && chunk < CHUNKS_MAX)) {
      return this.#later(done, new StoreError("INVALID", `chunk ${chunk} is out of range`));
    }
    if (!this.hasLayer(layer)) return this.#later(done, null);
    if (this.#drops >= INTERNAL_MAX) {
      return this.#later(done, new StoreError("BUSY", "too many chunks are being dropped"));
    }
    this.#drops++;
    const operationDone = ({ result }: Operation) => {
      this.#drops--;
      done(
        result === 0 ? null : new StoreError("IO", `a chunk was not dropped (errno ${-result})`),
      );
    };
    const operation = new Operation({ operationDone }, 0);
    operation.kind = OperationKind.Free;
    operation.layers = [layer];
    operation.chunk = chunk;
    operation.blockCount = CHUNK_BLOCKS;
    operation.stampUnknown = true;
    this.submit(operation);
  }

  #isOpenFor(what: string, done: Done): boolean {
    if (this.#state === "open") return true;
    this.#later(
      done,
      this.#failure !== null ? new StoreError("IO", this.#failure) : this.#busy(what),
    );
    return false;
  }

  #capacityBytes(): number {
    const { segments } = this.#opened();
    return SEGMENTS_OFFSET_BYTES + segments.count * segments.segmentBytes;
  }

  /**
   * Checks every live block against its checksum, now and without a rate limit.
   *
   * @param layers only these, or null for all
   * @param progress called now and then; returns false to end the scrub early
   */
  scrubNow(
    layers: readonly number[] | null,
    progress: (progress: ScrubProgress) => boolean | void,
    done: Done,
  ): void {
    if (!this.#isOpenFor("scrub", done)) return;
    this.#scrub!.now(this.#tasks, layers, progress, done);
  }

  /** False for a block that has been overwritten, freed or moved since it was found damaged. */
  readonly #isStillThere = (damage: Damage): boolean => {
    if (damage.what !== "block") return true;
    const { index } = this.#core!;
    const location = index.locate(damage.layer, damage.chunk, damage.block);
    return location === POISON || location * BLOCK_BYTES === damage.offsetBytes;
  };

  // ── Telling ────────────────────────────────────────────────────────────────────────────────────

  /** Figures for status and metrics. Makes an object: not for the data path. */
  stats(): StoreStats {
    const { segments, index, cache, superblock, checkpointBytes, applier } = this.#opened();
    const log = this.#log!;
    const reads = this.#reads!;
    const cleaner = this.#cleaner!;
    const scrub = this.#scrub!;
    const usedSegments = segments.count - segments.freeCount;
    const dataBytes = segments.segmentBytes - BLOCK_BYTES;
    const liveBytes = segments.liveBlocks * BLOCK_BYTES;
    const logSegments = usedSegments - this.#core!.checkpointSegments.length;
    return {
      state: this.#state,
      failed: this.#failure,
      capacityBytes: this.#capacityBytes(),
      segmentBytes: segments.segmentBytes,
      segmentCount: segments.count,
      liveBytes,
      usedBytes: usedSegments * segments.segmentBytes,
      freeBytes: segments.freeCount * segments.segmentBytes,
      usableBytes: this.#usableBytes(segments),
      garbageBytes: Math.max(0, logSegments * dataBytes - liveBytes),
      indexBytes: index.memoryBytes + applier.stamps.memoryBytes,
      stampedChunks: applier.stamps.count,
      cacheBytes: cache.count * BLOCK_BYTES,
      cacheHits: cache.hits,
      cacheMisses: cache.misses,
      full: this.#isFull(),
      hostFull: this.#hostFull || log.noSpace,
      waitingWrites: this.#waiting.count - this.#waitingOthers,
      queuedOperations: this.#queue.count + this.#waitingOthers + this.#held.count + reads.queued,
      lsn: log.appliedLsn,
      syncedLsn: log.syncedLsn,
      replayBytes: (log.blocksWritten - this.#checkpointBlocks) * BLOCK_BYTES,
      cleaning: cleaner.running,
      cleanedSegments: cleaner.segmentsCleaned,
      relocatedBlocks: cleaner.blocksRelocated,
      checkpoint: {
        running: this.#checkpointing,
        id: superblock.checkpointId,
        bytes: checkpointBytes,
        taken: this.#checkpointsTaken,
      },
      scrub: {
        running: scrub.running,
        checkedBlocks: scrub.blocksChecked,
        passes: scrub.passes,
      },
      damage: this.#damage.list.filter(this.#isStillThere),
      damageUnlisted: this.#damage.unlisted,
      damageCount: this.#damage.count,
      secondReads: reads.secondReads,
      writeErrors: log.writeErrors,
      records: log.recordsWritten,
      syncs: log.syncs,
      blocksRead: reads.blocksRead,
      userBlocks: this.#userBlocks,
      logBlocks: log.blocksWritten,
      writeAmplification: this.#userBlocks === 0 ? 0 : log.blocksWritten / this.#userBlocks,
      layers: applier.layers.size,
      deletingLayers: this.#deleting,
    };
  }
}

/** True for what brings data: it waits while the store is full. */
function takesSpace({ kind, blockCount }: Operation): boolean {
  return kind === OperationKind.Write || (kind === OperationKind.Fill && blockCount > 0);
}

/** True when the list has an operation on the same chunk of the same layer. */
function isChunkIn(list: OperationList, operation: Operation): boolean {
  const { chunk } = operation;
  for (let other = list.first; other !== null; other = other.next) {
    if (other.chunk === chunk && sharesLayer(other, operation)) return true;
  }
  return false;
}

/** True when both change one layer. An absorb changes two. */
function sharesLayer(a: Operation, b: Operation): boolean {
  const into = a.layers[0], other = b.layers[0];
  if (into === other) return true;
  const isAbsorb = a.kind === OperationKind.Absorb;
  if (isAbsorb && a.layers[1] === other) return true;
  if (b.kind !== OperationKind.Absorb) return false;
  return b.layers[1] === into || (isAbsorb && b.layers[1] === a.layers[1]);
}

/** Why a META value cannot be taken, or null. */
function metaFault(keyBytes: number, valueBytes: number): string | null {
  if (keyBytes === 0 || keyBytes > META_KEY_BYTES_MAX) {
    return `META key of ${keyBytes} bytes: 1 to ${META_KEY_BYTES_MAX}`;
  }
  if (valueBytes > META_VALUE_BYTES_MAX) {
    return `META value of ${valueBytes} bytes: up to ${META_VALUE_BYTES_MAX}`;
  }
  return null;
}

/**
 * Segments that suit a capacity: 256 of them or more, since a dozen or so are kept back, and none
 * longer than the usual ones.
 */
function segmentBytesFor(capacityBytes: number): number {
  const wanted = 2 ** Math.floor(Math.log2(Math.max(1, capacityBytes / 256)));
  return Math.min(Math.max(wanted, SEGMENT_BYTES_MIN), SEGMENT_BYTES_DEFAULT);
}

function layerEntry(kind: EntryKind, layer: number): (log: RecordLog) => boolean {
  return (log) =>
    log.appendEntry({
      kind,
      layer,
      chunk: 0,
      block: 0,
      count: 1,
      generation: 0,
      sequence: 0,
      from: 0,
    });
}
