/**
 * Scrub: reads all live data now and then and checks it, so that damage is found while there is
 * still a good copy elsewhere.
 *
 *     layers ─▶ chunks ─▶ runs of the index ─▶ read, at most 64 blocks ─▶ checksums ─▶ damage list
 *
 * The background pass goes as fast as `scrubBytesPerSecond` lets it and rests for `scrubPauseMs`
 * after each pass. `now` goes on without a limit, one read at a time. Both yield to the log and to
 * reads after every read.
 *
 * Invariants: what is being read is pinned, so a block that is overwritten or moved meanwhile is
 * checked as it was. A checksum counts only where it is the index's, or of a header that belongs there
 * (header_proof.ts). Layers are visited in rising order: what one absorbs comes from a lower one, so
 * a pass misses nothing by it.
 *
 * @module
 */
import { BLOCK_BYTES, CHUNK_BLOCKS } from "../base/limits.ts";
import { EBADMSG } from "../platform/platform.ts";
import { LayerState } from "./applier.ts";
import { BlockFault, faultMessage } from "./block_fault.ts";
import type { Core, Damage } from "./core.ts";
import { SCRUB_BYTES } from "./core.ts";
import { type Done, StoreError } from "./errors.ts";
import { IndexKind } from "./index.ts";
import { LogReader } from "./log_reader.ts";
import { type Task, type TaskIo, type Tasks, Wait } from "./task.ts";

/** Blocks read at a time. The buffer is for the headers with their checksums first. */
const READ_BLOCKS = SCRUB_BYTES / BLOCK_BYTES;
/** No {@linkcode BlockFault}. */
const NO_FAULT = 0xff;

/** Chunks without data that are passed over before others get their turn. */
const CHUNKS_PER_TURN = 1024;

/** How far a scrub has got. */
export interface ScrubProgress {
  checkedBlocks: number;
  /** Data blocks of the layers when it began. */
  totalBlocks: number;
  damagedBlocks: number;
}

/** Where a pass stands. */
interface Cursor {
  layers: readonly number[];
  layer: number;
  chunk: number;
  block: number;
}

/** See the head of the file. */
export class Scrub {
  /** A pass asked for by {@linkcode now} is under way. */
  running = false;
  blocksChecked = 0;
  blocksDamaged = 0;
  /** Background passes completed. */
  passes = 0;

  readonly #core: Core;
  readonly #damage: (damage: Damage) => void;
  #stopping = false;
  #isBackground = false;
  #cursor: Cursor | null = null;
  /** Blocks that the background may read now. */
  #allowance = 0;
  #lastMs = -1;
  #restUntilMs = -1;
  /** The buffer is in use. */
  #locked = false;

  constructor(core: Core, damage: (damage: Damage) => void) {
    this.#core = core;
    this.#damage = damage;
  }

  /** Ends all scrubbing at its next step. */
  stop(): void {
    this.#stopping = true;
  }

  /** Lets time pass for the background pass. */
  tick(tasks: Tasks, nowMs: number): void {
    const { scrubBytesPerSecond, scrubPauseMs } = this.#core.tunables;
    if (scrubBytesPerSecond <= 0) return;
    if (this.#lastMs < 0) {
      this.#lastMs = nowMs;
      // Not right after a start: there is enough to do.
      this.#restUntilMs = nowMs + Math.min(scrubPauseMs, 60_000);
    }
    const perMs = scrubBytesPerSecond / BLOCK_BYTES / 1000;
    // At most what one second allows, or one read, lest it add up while resting.
    const allowanceMax = Math.max(READ_BLOCKS, perMs * 1000);
    this.#allowance = Math.min(this.#allowance + (nowMs - this.#lastMs) * perMs, allowanceMax);
    this.#lastMs = nowMs;
    if (this.#isBackground || this.#stopping || nowMs < this.#restUntilMs) return;
    if (this.#allowance < READ_BLOCKS) return;
    this.#isBackground = true;
    tasks.start((io) => this.#background(io));
  }

  *#background(io: TaskIo): Task {
    this.#cursor ??= { layers: this.#live(null), layer: 0, chunk: 0, block: 0 };
    const isOver = yield* this.#pass(io, this.#cursor, () => this.#allowance >= 0, (blocks) => {
      this.#allowance -= blocks;
    });
    if (isOver) {
      this.#cursor = null;
      this.passes++;
      this.#restUntilMs = this.#lastMs + this.#core.tunables.scrubPauseMs;
    }
    this.#isBackground = false;
  }

  /**
   * Scrubs some or all (null) layers at full speed.
   *
   * @param progress told now and then; returns false to end the scrub early
   */
  now(
    tasks: Tasks,
    layers: readonly number[] | null,
    progress: (progress: ScrubProgress) => boolean | void,
    done: Done,
  ): void {
    if (this.running) {
      tasks.start(function* () {
        yield Wait.Turn;
        done(new StoreError("BUSY", "a scrub is under way already"));
      });
      return;
    }
    this.running = true;
    tasks.start((io) => this.#now(io, layers, progress, done));
  }

  *#now(
    io: TaskIo,
    layers: readonly number[] | null,
    progress: (progress: ScrubProgress) => boolean | void,
    done: Done,
  ): Task {
    const { index } = this.#core;
    const cursor: Cursor = { layers: this.#live(layers), layer: 0, chunk: 0, block: 0 };
    const damagedBefore = this.blocksDamaged;
    const state: ScrubProgress = { checkedBlocks: 0, totalBlocks: 0, damagedBlocks: 0 };
    for (const layer of cursor.layers) state.totalBlocks += index.layerBlockCount(layer);
    let isWanted = true;
    const isOver = yield* this.#pass(io, cursor, () => isWanted, (blocks) => {
      state.checkedBlocks += blocks;
      state.damagedBlocks = this.blocksDamaged - damagedBefore;
      if (progress(state) === false) isWanted = false;
    });
    this.running = false;
    const reason = isWanted ? "the store was closed before the scrub was over" : "cancelled";
    done(isOver ? null : new StoreError("BUSY", reason));
  }

  /** Layers to scrub: those asked for, or all that are not being deleted. */
  #live(layers: readonly number[] | null): number[] {
    const { applier, index } = this.#core;
    return [...layers ?? index.layers()].sort((a, b) => a - b).filter((id) =>
      applier.layers.get(id) === LayerState.Live
    );
  }

  /**
   * Goes on from the cursor.
   *
   * @param mayGoOn asked before each read
   * @param read told of each read
   * @returns true when all layers are through
   */
  *#pass(
    io: TaskIo,
    cursor: Cursor,
    mayGoOn: () => boolean,
    read: (blocks: number) => void,
  ): Task<boolean> {
    const { index } = this.#core;
    let passedOver = 0;
    for (; cursor.layer < cursor.layers.length; cursor.layer++) {
      const layer = cursor.layers[cursor.layer];
      for (;;) {
        const chunk = index.nextChunk(layer, cursor.chunk);
        if (chunk < 0) break;
        if (chunk !== cursor.chunk) cursor.block = 0;
        cursor.chunk = chunk;
        while (cursor.block < CHUNK_BLOCKS) {
          if (this.#stopping || !mayGoOn()) return false;
          const run = index.find(layer, chunk, cursor.block, CHUNK_BLOCKS - cursor.block);
          const count = Math.min(run, READ_BLOCKS);
          const block = cursor.block;
          if (index.kind === IndexKind.Direct || index.kind === IndexKind.Run) {
            while (this.#locked) yield Wait.Turn;
            this.#locked = true;
            const checked = yield* this.#check(io, layer, chunk, block, count);
            this.#locked = false;
            read(checked);
            cursor.block = block + count;
          } else {
            if (index.kind === IndexKind.Poison) {
              this.#bad(layer, chunk, block, 0, BlockFault.Mismatch);
            }
            cursor.block = block + run;
            if (++passedOver % CHUNKS_PER_TURN === 0) yield Wait.Turn;
          }
        }
        cursor.block = 0;
        cursor.chunk = chunk + 1;
      }
      cursor.chunk = cursor.block = 0;
    }
    return true;
  }

  /** Reads and checks up to `wanted` blocks of one run; returns how many. */
  *#check(io: TaskIo, layer: number, chunk: number, block: number, wanted: number): Task<number> {
    const { index, applier, segments, window: { kernel }, buffers, damage } = this.#core;
    const count = index.find(layer, chunk, block, wanted);
    if (index.kind !== IndexKind.Direct && index.kind !== IndexKind.Run) return 0;
    const { location } = index;
    const segment = segments.of(location);
    segments.pins[segment]++;
    const { sums, faults } = yield* this.#sums(io, count);
    const bytes = count * BLOCK_BYTES;
    const result = yield* io.read(location * BLOCK_BYTES, buffers.scrub, bytes);
    for (let i = 0; i < count; i++) {
      const at = buffers.scrub + i * BLOCK_BYTES;
      let fault = faults[i];
      if (fault === NO_FAULT) {
        let isRead = result >= 0;
        if (!isRead || kernel.checksum(at, BLOCK_BYTES) !== sums[i]) {
          isRead = (yield* io.read((location + i) * BLOCK_BYTES, at, BLOCK_BYTES)) >= 0;
        }
        if (isRead && kernel.checksum(at, BLOCK_BYTES) === sums[i]) {
          damage.matches((location + i) * BLOCK_BYTES);
          continue;
        }
        fault = isRead ? BlockFault.Mismatch : BlockFault.Unread;
      }
      // If it was overwritten meanwhile, nobody needs it any more.
      const owner = applier.ownerOf(layer, chunk, block + i, location + i);
      if (owner >= 0) this.#bad(owner, chunk, block + i, location + i, fault);
    }
    segments.unpin(segment);
    this.blocksChecked += count;
    return count;
  }

  /** Checksums of the run that `find` has just found, and why one cannot be known. */
  *#sums(io: TaskIo, count: number): Task<{ sums: Uint32Array; faults: Uint8Array }> {
    const { index, window, segments, storeId, storeWords, buffers, cache } = this.#core;
    const sums = new Uint32Array(count);
    const faults = new Uint8Array(count).fill(NO_FAULT);
    if (index.kind === IndexKind.Direct) {
      for (let i = 0; i < count; i++) sums[i] = i === 0 ? index.checksum : index.checksumAt(i);
      return { sums, faults };
    }
    let { page, word } = index;
    const reader = new LogReader({
      io,
      window,
      segments,
      storeId,
      storeWords,
      buffer: buffers.scrub,
      bufferBytes: SCRUB_BYTES,
    });
    for (let i = 0; i < count;) {
      const cached = cache.find(page);
      const at = cached < 0 ? yield* reader.headerPage(page) : 0;
      const fault = at === -EBADMSG ? BlockFault.NoHeader : BlockFault.Unread;
      for (; i < count && word < BLOCK_BYTES / 4; word++, i++) {
        if (at < 0) faults[i] = fault;
        else sums[i] = cached < 0 ? window.u32[(at >>> 2) + word] : cache.word(cached, word);
      }
      word = 0;
      page++;
    }
    return { sums, faults };
  }

  #bad(layer: number, chunk: number, block: number, location: number, fault: BlockFault): void {
    this.blocksDamaged++;
    this.#damage({
      what: "block",
      layer,
      chunk,
      block,
      offsetBytes: location * BLOCK_BYTES,
      message: `${faultMessage(fault)}; found by scrub`,
    });
  }
}
