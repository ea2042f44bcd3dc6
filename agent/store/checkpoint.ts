/**
 * Checkpoints: the index, the stamps, the layer table and META, streamed into segments of their own.
 *
 *     superblock ─▶ last segment ─previous─▶ … ─▶ first segment
 *     segment    | header | frame 0 | frame 1 | …     a frame never crosses a segment's end
 *     frames     | layers … | absorbed … | index … | stamps … | times … | lives … | meta … | end |
 *
 * A checkpoint is fuzzy: the index changes while it is written. It is exact together with the log
 * from the position that was noted when it began, since replaying a record twice does no harm (see
 * applier.ts); in stores of format 3 it also says which records it has of each chunk, and those are
 * not replayed (image_times.ts). It holds the layers that were there when it began; what is created
 * later comes from the log alone, and absorbs nothing before the image is complete: the layer that is
 * absorbed may be in it as it was afterwards. The lives of segments are looked at after the index, and
 * hold for all that it refers to (lives.ts).
 *
 * Order on disk, each step durable before the next: data that the index refers to · frames ·
 * superblock · only then are the segments of the checkpoint before, and those that the log before
 * the new replay position needed, given up.
 *
 * Payloads
 *
 *     index    items × (layer u32, chunk u32, what index.ts exports of the chunk)
 *     stamps   items × (layer u32, chunk u32, generation u32, sequence u64), see stamps.ts
 *     layers   items × (id u32, state u32)
 *     absorbed items × (label u32, layer u32), see absorbed.ts
 *     times    items × (what u32, layer u32, chunk u32, lsn u64), see image_times.ts
 *     lives    items × (location u32, sequence u64, lsn u64), see lives.ts
 *     meta     items × (bytes of the key u32, bytes of the value u32, key, value, zeros up to a multiple of 4)
 *     end      nothing; items = frames before it
 *
 * A META value may be longer than what is left of a frame, never longer than a frame: frames are
 * cut accordingly.
 *
 * @module
 */
import { BLOCK_BYTES } from "../base/limits.ts";
import { EIO } from "../platform/platform.ts";
import { ABSORBED_IMAGE_BYTES } from "./absorbed.ts";
import { type Applier, LayerState } from "./applier.ts";
import type { Core, Machine } from "./core.ts";
import { FRAMES } from "./core.ts";
import { StoreError } from "./errors.ts";
import {
  decodeFrame,
  decodeSegmentHeader,
  encodeFrame,
  encodeSegmentHeader,
  FORMAT_ABSORB,
  FRAME_BYTES,
  FRAME_BYTES_MAX,
  FrameHeader,
  FrameKind,
  META_KEY_BYTES_MAX,
  META_VALUE_BYTES_MAX,
  NO_SEGMENT,
  peekFrame,
  SegmentHeader,
  SegmentKind,
  type Superblock,
} from "./format.ts";
import {
  encodeImageTime,
  IMAGE_END,
  type ImageTime,
  ImageTimes,
  Looked,
  TIME_IMAGE_BYTES,
} from "./image_times.ts";
import { CHUNK_EXPORT_WORDS_MAX, type Index, type IndexImage } from "./index.ts";
import { encodeLife, LIFE_IMAGE_BYTES } from "./lives.ts";
import type { LogPosition } from "./log.ts";
import type { MetaTable } from "./meta.ts";
import { type Segments, SegmentState } from "./segments.ts";
import { writeSuperblock } from "./superblock.ts";
import { STAMP_IMAGE_BYTES, type StampImage } from "./stamps.ts";
import { type Task, type TaskIo, Wait } from "./task.ts";

/** Bytes of a layer with its state, and of a pair of absorbed.ts. */
const PAIR_BYTES = ABSORBED_IMAGE_BYTES;
const CHUNK_BYTES_MAX = 8 + 4 * CHUNK_EXPORT_WORDS_MAX;

/** A frame is cut short to fill a segment, unless less than this would be left for it. */
const SHORT_FRAME_BYTES_MIN = 16 * 1024;

/**
 * Segments that a checkpoint may take.
 *
 * @param bytes payload of small items, and of META values, which are not cut
 */
export function checkpointSegmentsFor(
  bytes: { small: number; meta: number },
  segmentBytes: number,
): number {
  const usable = segmentBytes - BLOCK_BYTES - SHORT_FRAME_BYTES_MIN;
  // A sixteenth more for frame heads, the blocks' rounding and what is added while it is being
  // written. At worst every second META value leaves a gap as long as itself. One for the end.
  return Math.ceil((bytes.small * 1.0625 + bytes.meta * 2) / usable) + 1;
}

/**
 * Payload bytes that a checkpoint would have now, at the most. Not by what the log has brought since the last one: a single write
 * may make a chunk of 62 entries one of 1024, and a thousand may leave it as it is.
 */
export function checkpointPayloadBytes(core: Core): { small: number; meta: number } {
  const { applier, index, meta } = core;
  const small = index.imageBytes + applier.stamps.count * STAMP_IMAGE_BYTES +
    applier.layers.size * PAIR_BYTES + absorbedImageBytes(core) + livesBytes(core);
  return { small, meta: meta.imageBytes };
}

/** Bytes of the lives of segments, at the most: what the last checkpoint had of them may count twice. */
function livesBytes({ segments, superblock }: Core): number {
  if (superblock.format < FORMAT_ABSORB) return 0;
  return segments.lives.itemsMax(segments.count - segments.freeCount) * LIFE_IMAGE_BYTES;
}

/** Bytes of what comes with absorbed layers: the table, and times of as many frames as index and stamps may take. */
function absorbedImageBytes({ applier, index, superblock }: Core): number {
  if (superblock.format < FORMAT_ABSORB) return 0;
  const bytes = index.imageBytes + applier.stamps.count * STAMP_IMAGE_BYTES;
  return applier.absorbed.count * ABSORBED_IMAGE_BYTES +
    (Math.ceil(bytes / SHORT_FRAME_BYTES_MIN) + 4) * TIME_IMAGE_BYTES;
}

/** The same, exactly, by going through the whole index: for start-up. */
export function checkpointPayloadBytesExact(core: Core): { small: number; meta: number } {
  const { index, applier, window, buffers } = core;
  let words = 0;
  for (const layer of index.layers()) {
    for (
      let chunk = index.nextChunk(layer, 0);
      chunk >= 0;
      chunk = index.nextChunk(layer, chunk + 1)
    ) {
      words += 2 + index.exportChunk(layer, chunk, window.u32, buffers.frames >>> 2);
    }
  }
  const stamps = applier.stamps.count * STAMP_IMAGE_BYTES;
  const layers = applier.layers.size * PAIR_BYTES;
  return {
    small: 4 * words + stamps + layers + absorbedImageBytes(core) + livesBytes(core),
    meta: core.meta.imageBytes,
  };
}

/** Why a checkpoint was not taken. */
export class CheckpointFailure extends Error {
  /**
   * @param error what to tell
   * @param final a sync or the superblock failed: nothing that is written from now on can be relied
   *   on
   */
  constructor(readonly error: StoreError, readonly final: boolean) {
    super(error.message);
  }
}

function failure(doing: string, result: number, final: boolean): CheckpointFailure {
  return new CheckpointFailure(new StoreError("IO", `${doing} failed (errno ${-result})`), final);
}

/** Streams frames into segments. */
class FrameWriter {
  readonly segments: number[] = [];
  frames = 0;
  bytes = 0;
  readonly #core: Core;
  readonly #io: TaskIo;
  readonly #id: number;
  readonly #nextSequence: () => number;
  readonly #frame = new FrameHeader();
  #block = 0;
  #writing = 0;
  #buffer = 0;

  constructor(core: Core, io: TaskIo, id: number, nextSequence: () => number) {
    this.#core = core;
    this.#io = io;
    this.#id = id;
    this.#nextSequence = nextSequence;
    this.#block = core.segments.segmentBlocks;
  }

  /**
   * Arena offset where the payload of the next frame goes: up to `FRAME_BYTES_MAX − FRAME_BYTES`.
   */
  get payloadAt(): number {
    return this.#core.buffers.frames + this.#buffer * FRAME_BYTES_MAX + FRAME_BYTES;
  }

  /** Most bytes for the payload of the next frame, so that it fills what is left of the segment. */
  payloadBytesMax(bytesMin: number): number {
    const left = (this.#core.segments.segmentBlocks - this.#block) * BLOCK_BYTES;
    const isWorth = left >= Math.max(SHORT_FRAME_BYTES_MIN, bytesMin + FRAME_BYTES);
    return Math.min(isWorth ? left : FRAME_BYTES_MAX, FRAME_BYTES_MAX) - FRAME_BYTES;
  }

  /** Writes the frame whose payload lies at `payloadAt`. */
  *write(kind: FrameKind, payloadBytes: number, items: number): Task {
    const { window, storeWords, segments } = this.#core;
    const at = this.payloadAt - FRAME_BYTES;
    const frame = this.#frame;
    frame.kind = kind;
    frame.checkpointId = this.#id;
    frame.number = this.frames++;
    frame.payloadBytes = payloadBytes;
    frame.items = items;
    encodeFrame(window, at, storeWords, frame);
    const blocks = frame.frameBytes / BLOCK_BYTES;
    if (this.#block + blocks > segments.segmentBlocks) yield* this.#nextSegment();
    const location = segments.start(this.segments[this.segments.length - 1]) + this.#block;
    this.#block += blocks;
    this.bytes += frame.frameBytes;
    this.#io.beginWrite(location * BLOCK_BYTES, at, frame.frameBytes);
    this.#writing++;
    this.#buffer = (this.#buffer + 1) % FRAMES;
    // The buffer that is filled next must not be with the disk. Completions come in any order, so
    // all go first.
    if (this.#writing === FRAMES) yield* this.settle();
  }

  /** Waits until nothing is being written. */
  *settle(): Task {
    let failed = 0;
    while (this.#writing > 0) {
      const result = yield Wait.Disk;
      this.#writing--;
      if (result < 0) failed = result;
    }
    if (failed < 0) throw failure("writing a checkpoint", failed, false);
  }

  *#nextSegment(): Task {
    yield* this.settle();
    const { segments, window, storeId, buffers } = this.#core;
    const segment = segments.take(SegmentState.Checkpoint);
    if (segment === NO_SEGMENT) {
      throw new CheckpointFailure(
        new StoreError("FULL", "no free segment is left for the checkpoint"),
        false,
      );
    }
    const header = new SegmentHeader();
    header.kind = SegmentKind.Checkpoint;
    header.sequence = segments.sequence[segment] = this.#nextSequence();
    header.previous = this.segments.length > 0
      ? this.segments[this.segments.length - 1]
      : NO_SEGMENT;
    header.checkpointId = this.#id;
    this.segments.push(segment);
    this.#block = 1;
    encodeSegmentHeader(window, buffers.superblock, storeId, header);
    const result = yield* this.#io.write(
      segments.offsetBytes(segment),
      buffers.superblock,
      BLOCK_BYTES,
    );
    if (result < 0) throw failure("writing a checkpoint", result, false);
  }
}

/** What {@linkcode writeCheckpoint} needs to know beside the core. */
export interface CheckpointOptions {
  /** The store is being closed: nothing will be appended after this. */
  readonly clean: boolean;
  /**
   * Where replay starts from; asked after all that the checkpoint refers to is durable. null: ask
   * again after the next turn.
   */
  position(): LogPosition | null;
  /** Hands out segment sequences. */
  nextSequence(): number;
  /** All applied records are durable up to here once a sync issued now completes. */
  appliedLsn(): number;
  /** That sync has completed. */
  synced(lsn: number): void;
}

/** Ids of checkpoints rise by up to 2^20 at a time: 2^33 of them fit into a number. */
const ID_SHIFT = 12;

/**
 * Writes a checkpoint and the superblock that brings it into force. The caller holds `core.locked`.
 *
 * @returns null, or why it failed
 */
export function* writeCheckpoint(
  io: TaskIo,
  core: Core,
  options: CheckpointOptions,
): Task<CheckpointFailure | null> {
  const { segments } = core;
  segments.checkpointEpoch++;
  segments.checkpointRunning = true;
  // No attempt has the number of an earlier one, which may have been cut off: a frame of that, where the disk loses the write of this
  // one's over it, would be taken for it.
  const id = core.superblock.checkpointId + 1 + (core.random.u32() >>> ID_SHIFT);
  const writer = new FrameWriter(core, io, id, options.nextSequence);
  let failed: CheckpointFailure | null = null;
  try {
    yield* writeFrames(writer, core, options.appliedLsn);
    core.imageLayers = null;
    yield* commit(io, core, options, writer, id);
  } catch (thrown) {
    if (!(thrown instanceof CheckpointFailure)) throw thrown;
    failed = thrown;
  }
  core.imageLayers = null;
  segments.checkpointRunning = false;
  segments.reclaimable = true;
  if (failed !== null) {
    // What was written counts for nothing: no superblock names it (or, after a final failure,
    // nobody goes on).
    if (!failed.final) { for (const segment of writer.segments) segments.giveBack(segment); }
    return failed;
  }
  for (const segment of core.checkpointSegments) segments.giveBack(segment);
  core.checkpointSegments = writer.segments;
  core.checkpointBytes = writer.bytes;
  return null;
}

function* writeFrames(writer: FrameWriter, core: Core, appliedLsn: () => number): Task {
  const { applier, superblock } = core;
  // The layers of this moment, and no others: one that is created while this is written would have
  // frames of its own but not be in the table.
  const layers = [...applier.layers];
  const absorbed = applier.absorbed.pairs();
  const ids = layers.map(([id]) => id).sort((a, b) => a - b);
  core.imageLayers = new Set(ids);
  const times: ImageTime[] | null = superblock.format >= FORMAT_ABSORB ? [] : null;
  // First, so that whoever loads them knows every layer that another frame can name.
  yield* writePairs(writer, core, FrameKind.Layers, layers);
  yield* writePairs(writer, core, FrameKind.Absorbed, absorbed);
  const index = core.index.beginImage(ids);
  yield* writeImage(writer, core, FrameKind.Index, index, CHUNK_BYTES_MAX, (layer, chunk) => {
    times?.push({ what: Looked.Index, layer, chunk, lsn: appliedLsn() });
  });
  const stamps = applier.stamps.beginImage(ids);
  yield* writeImage(writer, core, FrameKind.Stamps, stamps, STAMP_IMAGE_BYTES, (layer, chunk) => {
    times?.push({ what: Looked.Stamps, layer, chunk, lsn: appliedLsn() });
  });
  if (times !== null) yield* writeTimes(writer, core, times);
  if (superblock.format >= FORMAT_ABSORB) yield* writeLives(writer, core);
  yield* writeMeta(writer, core);
  yield* writer.write(FrameKind.End, 0, writer.frames);
  yield* writer.settle();
}

/**
 * Writes an image part by part.
 *
 * @param bytesMin room that `image.fill` needs
 * @param looked told, right after it looked, how far it has got: see image_times.ts
 */
function* writeImage(
  writer: FrameWriter,
  core: Core,
  kind: FrameKind,
  image: IndexImage | StampImage,
  bytesMin: number,
  looked: (layer: number, chunk: number) => void,
): Task {
  for (;;) {
    const bytesMax = writer.payloadBytesMax(bytesMin);
    const bytes = image.fill(core.window.u32, writer.payloadAt, bytesMax);
    if (image.layer < 0) looked(IMAGE_END, IMAGE_END);
    else looked(image.layer, image.chunk);
    if (bytes === 0) break;
    yield* writer.write(kind, bytes, image.items);
    if (image.layer < 0) break;
  }
}

/** Writes frames of items of two words. */
function* writePairs(
  writer: FrameWriter,
  core: Core,
  kind: FrameKind,
  pairs: readonly (readonly [number, number])[],
): Task {
  const { u32 } = core.window;
  let bytes = 0;
  for (const [first, second] of pairs) {
    if (bytes + PAIR_BYTES > writer.payloadBytesMax(PAIR_BYTES)) {
      yield* writer.write(kind, bytes, bytes / PAIR_BYTES);
      bytes = 0;
    }
    const word = writer.payloadAt + bytes >>> 2;
    u32[word] = first;
    u32[word + 1] = second;
    bytes += PAIR_BYTES;
  }
  if (bytes > 0) yield* writer.write(kind, bytes, bytes / PAIR_BYTES);
}

function* writeTimes(writer: FrameWriter, core: Core, times: readonly ImageTime[]): Task {
  let bytes = 0;
  for (const time of times) {
    if (bytes + TIME_IMAGE_BYTES > writer.payloadBytesMax(TIME_IMAGE_BYTES)) {
      yield* writer.write(FrameKind.Times, bytes, bytes / TIME_IMAGE_BYTES);
      bytes = 0;
    }
    encodeImageTime(core.window.u32, writer.payloadAt + bytes >>> 2, time);
    bytes += TIME_IMAGE_BYTES;
  }
  yield* writer.write(FrameKind.Times, bytes, bytes / TIME_IMAGE_BYTES);
}

function* writeLives(writer: FrameWriter, core: Core): Task {
  const { segments, window: { u32 } } = core;
  const { lives } = segments;
  let bytes = 0;
  for (let segment = 0; segment < segments.count; segment++) {
    if (!segments.isOfLog(segment)) continue;
    for (const life of lives.itemsOf(segment)) {
      if (bytes + LIFE_IMAGE_BYTES > writer.payloadBytesMax(LIFE_IMAGE_BYTES)) {
        yield* writer.write(FrameKind.Lives, bytes, bytes / LIFE_IMAGE_BYTES);
        bytes = 0;
      }
      encodeLife(u32, writer.payloadAt + bytes >>> 2, segments.start(segment), life);
      bytes += LIFE_IMAGE_BYTES;
    }
  }
  yield* writer.write(FrameKind.Lives, bytes, bytes / LIFE_IMAGE_BYTES);
}

function* writeMeta(writer: FrameWriter, core: Core): Task {
  const { bytes, u32 } = core.window;
  let used = 0;
  let items = 0;
  for (const [name, value] of core.meta.entries()) {
    const key = new TextEncoder().encode(name);
    const length = 8 + Math.ceil((key.length + value.length) / 4) * 4;
    if (used > 0 && used + length > writer.payloadBytesMax(used)) {
      yield* writer.write(FrameKind.Meta, used, items);
      used = items = 0;
    }
    const at = writer.payloadAt + used;
    bytes.fill(0, at, at + length);
    u32[at >>> 2] = key.length;
    u32[(at >>> 2) + 1] = value.length;
    bytes.set(key, at + 8);
    bytes.set(value, at + 8 + key.length);
    used += length;
    items++;
  }
  if (items > 0) yield* writer.write(FrameKind.Meta, used, items);
}

/** Makes the frames and all they refer to durable, then writes the superblock. */
function* commit(
  io: TaskIo,
  core: Core,
  options: CheckpointOptions,
  writer: FrameWriter,
  id: number,
): Task {
  const syncedLsn = options.appliedLsn();
  const result = yield* io.sync();
  if (result < 0) throw failure("syncing a checkpoint", result, true);
  // Where another sync has failed meanwhile, the success of this one may be about what was dropped.
  if (core.log.failed) throw failure("the log, and with it the checkpoint,", -EIO, true);
  options.synced(syncedLsn);
  let position = options.position();
  while (position === null) {
    if (core.log.failed) throw failure("the log, and with it the checkpoint,", -EIO, true);
    yield Wait.Turn;
    position = options.position();
  }
  const superblock: Superblock = {
    ...core.superblock,
    sequence: core.superblock.sequence + 1,
    clean: options.clean,
    checkpointId: id,
    checkpointLast: writer.segments[writer.segments.length - 1],
    checkpointCount: writer.segments.length,
    checkpointFrames: writer.frames,
    replaySegment: position.segment,
    replaySequence: position.sequence,
    replayBlock: position.block,
    replayLsn: position.lsn,
    syncedLsn,
    nextSequence: options.nextSequence(),
    previousEndLsn: position.previousEndLsn,
  };
  const written = yield* writeSuperblock(io, core.window, core.buffers.superblock, superblock);
  if (written < 0) throw failure("writing the superblock", written, true);
  core.superblock = superblock;
}

/** What {@linkcode loadCheckpoint} fills. */
export interface CheckpointTarget {
  readonly machine: Machine;
  readonly storeId: Uint8Array;
  readonly storeWords: Uint32Array;
  readonly segments: Segments;
  readonly index: Index;
  readonly applier: Applier;
  readonly meta: MetaTable;
}

/** A checkpoint that was read. */
export interface LoadedCheckpoint {
  readonly segments: number[];
  readonly bytes: number;
  /** Highest segment sequence in it. */
  readonly sequenceMax: number;
}

/** Reads the checkpoint that `superblock` names; a string says why it cannot be read. */
export function* loadCheckpoint(
  io: TaskIo,
  target: CheckpointTarget,
  superblock: Superblock,
): Task<LoadedCheckpoint | string> {
  if (superblock.checkpointId === 0) return { segments: [], bytes: 0, sequenceMax: 0 };
  const { machine, segments, storeId, storeWords } = target;
  const { window, buffers } = machine;
  const chain: number[] = [];
  let sequenceMax = 0;
  const header = new SegmentHeader();
  let segment = superblock.checkpointLast;
  for (let i = 0; i < superblock.checkpointCount; i++) {
    if (segment >= segments.count || chain.includes(segment)) {
      return "its chain of segments is broken";
    }
    const result = yield* io.read(segments.offsetBytes(segment), buffers.superblock, BLOCK_BYTES);
    if (result < 0) return `the disk cannot read segment ${segment} (errno ${-result})`;
    const valid = decodeSegmentHeader(window, buffers.superblock, storeId, header) &&
      header.kind === SegmentKind.Checkpoint && header.checkpointId === superblock.checkpointId;
    if (!valid) return `the header of segment ${segment} is damaged`;
    chain.unshift(segment);
    sequenceMax = Math.max(sequenceMax, header.sequence);
    segment = header.previous;
  }
  if (segment !== NO_SEGMENT) return "its chain of segments is broken";
  const frame = new FrameHeader();
  let number = 0;
  let bytes = 0;
  let ended = false;
  for (const at of chain) {
    let block = 1;
    while (block < segments.segmentBlocks && !ended) {
      const blocks = Math.min(FRAME_BYTES_MAX / BLOCK_BYTES, segments.segmentBlocks - block);
      const offset = segments.offsetBytes(at) + block * BLOCK_BYTES;
      const result = yield* io.read(offset, buffers.frames, blocks * BLOCK_BYTES);
      if (result < 0) return `the disk cannot read segment ${at} (errno ${-result})`;
      const frameBytes = peekFrame(
        window,
        buffers.frames,
        storeWords,
        superblock.checkpointId,
        number,
      );
      // No frame: the rest of the segment was too short for the next one. If it was damaged
      // instead, the next segment will not go on with this number.
      if (frameBytes === 0 || frameBytes > blocks * BLOCK_BYTES) break;
      if (!decodeFrame(window, buffers.frames, frame)) return `frame ${number} is damaged`;
      const fault = loadFrame(target, frame, buffers.frames + FRAME_BYTES);
      if (fault !== null) return `frame ${number}: ${fault}`;
      ended = frame.kind === FrameKind.End;
      number++;
      bytes += frameBytes;
      block += frameBytes / BLOCK_BYTES;
    }
  }
  if (!ended || number !== superblock.checkpointFrames) {
    return `frame ${number} is missing or damaged`;
  }
  return { segments: chain, bytes, sequenceMax };
}

function loadFrame(target: CheckpointTarget, frame: FrameHeader, at: number): string | null {
  const { u32 } = target.machine.window;
  switch (frame.kind) {
    case FrameKind.Index:
      return loadIndex(target, frame, at);
    case FrameKind.Layers: {
      if (frame.payloadBytes !== frame.items * PAIR_BYTES) return "layer table of a wrong length";
      for (let i = 0; i < frame.items; i++) {
        const word = (at >>> 2) + 2 * i;
        const state = u32[word + 1];
        if (state !== LayerState.Live && state !== LayerState.Deleting) {
          return "unknown layer state";
        }
        target.applier.layers.set(u32[word], state);
        if (target.index.hasLayer(u32[word])) return "a layer is there twice";
        target.index.createLayer(u32[word]);
      }
      return null;
    }
    case FrameKind.Stamps: {
      const { applier } = target;
      if (frame.payloadBytes !== frame.items * STAMP_IMAGE_BYTES) return "stamps of a wrong length";
      return applier.stamps.loadImage(u32, at >>> 2, frame.items, (id) => applier.layers.has(id));
    }
    case FrameKind.Absorbed: {
      const { applier } = target;
      if (frame.payloadBytes !== frame.items * PAIR_BYTES) {
        return "absorbed layers of a wrong length";
      }
      const isLive = (id: number) => applier.layers.get(id) === LayerState.Live;
      return applier.absorbed.loadImage(u32, at >>> 2, frame.items, isLive);
    }
    case FrameKind.Times: {
      if (frame.payloadBytes !== frame.items * TIME_IMAGE_BYTES) return "times of a wrong length";
      const times = target.applier.times ??= new ImageTimes(target.applier.layers.keys());
      return times.loadImage(u32, at >>> 2, frame.items);
    }
    case FrameKind.Lives: {
      const { segments } = target;
      if (frame.payloadBytes !== frame.items * LIFE_IMAGE_BYTES) return "lives of a wrong length";
      return segments.lives.loadImage(u32, at >>> 2, frame.items, (location) => {
        if (!segments.isDataRange(location, 1)) return null;
        const segment = segments.of(location);
        return { segment, block: location - segments.start(segment) };
      });
    }
    case FrameKind.Meta:
      return loadMeta(target, frame, at);
    case FrameKind.End:
      return frame.payloadBytes === 0 && frame.items === frame.number ? null : "wrong end";
  }
}

function loadIndex(target: CheckpointTarget, frame: FrameHeader, at: number): string | null {
  const { u32 } = target.machine.window;
  const { segments, index } = target;
  const locationEnd = segments.start(segments.count - 1) + segments.segmentBlocks;
  const end = at + frame.payloadBytes >>> 2;
  let word = at >>> 2;
  for (let i = 0; i < frame.items; i++) {
    if (word + 2 > end) return "index entries leave the frame";
    const layer = u32[word];
    if (!index.hasLayer(layer)) return "an index entry names no layer";
    const words = index.importChunk(layer, u32[word + 1], u32, word + 2, end, locationEnd);
    if (words < 0) return "an index entry is not valid";
    word += 2 + words;
  }
  return word === end ? null : "index entries of a wrong length";
}

function loadMeta(target: CheckpointTarget, frame: FrameHeader, at: number): string | null {
  const { bytes, u32 } = target.machine.window;
  const end = at + frame.payloadBytes;
  for (let i = 0; i < frame.items; i++) {
    if (at + 8 > end) return "META leaves the frame";
    const keyBytes = u32[at >>> 2];
    const valueBytes = u32[(at >>> 2) + 1];
    if (keyBytes > META_KEY_BYTES_MAX || valueBytes > META_VALUE_BYTES_MAX) return "META too long";
    const length = 8 + Math.ceil((keyBytes + valueBytes) / 4) * 4;
    if (at + length > end) return "META leaves the frame";
    const value = at + 8 + keyBytes;
    target.meta.set(
      new TextDecoder().decode(bytes.slice(at + 8, value)),
      bytes.slice(value, value + valueBytes),
    );
    at += length;
  }
  return at === end ? null : "META of a wrong length";
}
