/**
 * The load generator behind `kelpie bench`: it drives any vhost-user-blk back end and measures it, or
 * checks that what it reads is what it wrote.
 *
 * One thread serves all queues. The front end shares the machine with the back end that it measures,
 * so it has to cost little: all queues signal one call eventfd, a turn reaps and refills every
 * queue, kicks each at most once and sleeps in one system call. More threads would compete with the
 * back end for cores and add their own wake-ups to the latency.
 *
 * Nothing is allocated per request. Latency runs from the turn in which a request is queued to the
 * turn in which it is reaped: the clock is read once a turn.
 *
 * @module
 */
import { formatSize } from "../agent/config.ts";
import { readProc } from "../agent/platform/linux/proc.ts";
import { Prng } from "../agent/base/prng.ts";
import { turn } from "../agent/frontend/back_end_socket.ts";
import type { DriverQueue } from "../agent/frontend/driver_queue.ts";
import { BackEndError, type BackEndErrorKind } from "../agent/frontend/error.ts";
import {
  ENDING_MS,
  FrontEnd,
  type FrontEndOptions,
  typeName,
} from "../agent/frontend/front_end.ts";
import { FEATURE_FLUSH, RequestType, SECTOR_BYTES, Status } from "../agent/frontend/virtio_blk.ts";
import { type Latency, LatencyHistogram } from "./bench_latency.ts";
import { VerifyTable } from "./bench_verify.ts";

/** Access patterns. */
export const BENCH_PATTERNS = ["read", "write", "randread", "randwrite", "randrw"] as const;

/** One of {@linkcode BENCH_PATTERNS}. */
export type BenchPattern = typeof BENCH_PATTERNS[number];

/** What load to make. */
export interface BenchOptions {
  /** Path of the back end's socket. */
  readonly socket: string;
  readonly rw: BenchPattern;
  /** Percentage of reads in `randrw`, 0…100; 70 by default. */
  readonly readPercent?: number;
  /** A multiple of 512; 4096 by default. */
  readonly blockBytes?: number;
  /** Requests in flight per queue; 1 by default. */
  readonly depth?: number;
  /** Virtqueues; 1 by default. */
  readonly queues?: number;
  /** Length of the run; 5 by default. */
  readonly seconds?: number;
  /** Requests per queue instead of a time. */
  readonly count?: number;
  /** A flush after every so many writes of a queue; 0, the default, is none. */
  readonly flushEvery?: number;
  /** Part of the disk to use; all of it by default. Multiples of `blockBytes`. */
  readonly offsetBytes?: number;
  readonly sizeBytes?: number;
  /** Stamp what is written, check what is read, and read all of it back at the end. */
  readonly verify?: boolean;
  /** Verify on the ground of an earlier run's table; it is updated. */
  readonly verifyTable?: VerifyTable;
  /** Only read back what the table knows of. */
  readonly verifyOnly?: boolean;
  /** Decides addresses, mix and data; 1 by default. */
  readonly seed?: number;
  readonly segments?: number;
  readonly indirect?: boolean;
  readonly withoutFeatures?: bigint;
  /** Longest time without any completion; 30 s by default. */
  readonly stallTimeoutMs?: number;
  /** Ends the run early; what was measured until then is the result. */
  readonly signal?: AbortSignal;
  /** Told a few times a second. */
  readonly onProgress?: (progress: BenchProgress) => void;
}

/** How far a run is. */
export interface BenchProgress {
  readonly phase: "load" | "read back";
  readonly operations: number;
  /** 0…1. */
  readonly fraction: number;
}

/** What was measured. Plain data, ready for JSON. */
export interface BenchResult {
  readonly rw: BenchPattern;
  readonly blockBytes: number;
  readonly depth: number;
  readonly queues: number;
  readonly ringSize: number;
  readonly indirect: boolean;
  readonly flushEvery: number;
  readonly seed: number;
  /** Time that the figures are about. */
  readonly seconds: number;
  /** Completed reads and writes. */
  readonly operations: number;
  readonly iops: number;
  /** 10^6 bytes. */
  readonly megabytesPerSecond: number;
  /** Microseconds; `all` is reads and writes. */
  readonly latencyUs: {
    readonly all: Latency;
    readonly read: Latency;
    readonly write: Latency;
    readonly flush: Latency;
  };
  /** CPU of this process, in per cent of one core. */
  readonly frontEndCpuPercent: number;
  /** null where the back end's process cannot be seen. */
  readonly backEnd: {
    readonly pid: number;
    readonly cpuPercent: number;
    readonly cpuUsPerOperation: number;
  } | null;
  /** Times that the back end was woken, and that it woke us. */
  readonly kicks: number;
  readonly wakeUps: number;
  /** Turns that reaped something. */
  readonly turns: number;
  readonly ioErrors: number;
  readonly unsupported: number;
  /** Requests whose used length was wrong: harmless to this front end, but a fault of the back end. */
  readonly usedLengthMismatches: number;
  readonly verify: {
    readonly checkedBlocks: number;
    readonly wrongBlocks: number;
  } | null;
  /** The first few complaints. */
  readonly messages: readonly string[];
  /** Why the run ended early, if it did. */
  readonly failure:
    | { readonly kind: BackEndErrorKind | "aborted"; readonly message: string }
    | null;
}

/** Time between two turns of the event loop: progress and signals. */
const SLICE_MS = 250;
/** Longest sleep before the event loop turns and the stall timer is looked at. */
const WAIT_MS = 10;
/** Complaints that are kept. */
const MESSAGES_MAX = 16;
/** /proc/PID/stat counts CPU in ticks of 10 ms. */
const TICK_MS = 10;

const enum Phase {
  Load,
  Flush,
  ReadBack,
  Done,
}

/** Checks options before anything is connected. Throws a RangeError. */
function checkOptions(options: Settings): void {
  const { blockBytes, depth, queues, readPercent, flushEvery, seconds, count } = options;
  const check = (name: string, value: number, min: number, max: number, unit = 1) => {
    if (value >= min && value <= max && value % unit === 0) return;
    const multiple = unit > 1 ? `, in steps of ${unit}` : "";
    throw new RangeError(`bench: ${name} ${value} is not within ${min}…${max}${multiple}`);
  };
  check("block size", blockBytes, SECTOR_BYTES, 64 * 1024 * 1024, SECTOR_BYTES);
  check("depth", depth, 1, 32768);
  check("queues", queues, 1, 256);
  check("read percentage", readPercent, 0, 100, 1);
  check("flush interval", flushEvery, 0, 2 ** 31, 1);
  if (count === 0 && !(seconds > 0)) throw new RangeError(`bench: ${seconds} s is no time to run`);
}

type Settings =
  & Required<
    Pick<
      BenchOptions,
      | "socket"
      | "rw"
      | "readPercent"
      | "blockBytes"
      | "depth"
      | "queues"
      | "seconds"
      | "count"
      | "flushEvery"
      | "offsetBytes"
      | "seed"
      | "stallTimeoutMs"
      | "verifyOnly"
    >
  >
  & Pick<BenchOptions, "signal" | "onProgress">;

/**
 * Runs a load.
 *
 * A back end that dies or hangs during the run, failed requests and wrong data do not throw: they are in
 * the result. See {@linkcode benchExitCode}.
 *
 * @throws RangeError for options that do not fit the disk; BackEndError when the run cannot start
 *
 * @example
 * ```ts ignore
 * import { runBench } from "./bench.ts";
 * const { iops } = await runBench({ socket: "/run/kelpie/web.sock", rw: "randread", depth: 32 });
 * ```
 */
export async function runBench(options: BenchOptions): Promise<BenchResult> {
  const settings: Settings = {
    socket: options.socket,
    rw: options.rw,
    readPercent: options.readPercent ?? 70,
    blockBytes: options.blockBytes ?? options.verifyTable?.blockBytes ?? 4096,
    depth: options.depth ?? 1,
    queues: options.queues ?? 1,
    seconds: options.seconds ?? 5,
    count: options.count ?? 0,
    flushEvery: options.flushEvery ?? 0,
    offsetBytes: options.offsetBytes ?? options.verifyTable?.offsetBytes ?? 0,
    seed: (options.verifyTable?.seed ?? options.seed ?? 1) >>> 0,
    stallTimeoutMs: options.stallTimeoutMs ?? 30_000,
    verifyOnly: options.verifyOnly ?? false,
    signal: options.signal,
    onProgress: options.onProgress,
  };
  checkOptions(settings);
  const frontEndOptions: FrontEndOptions = {
    socket: settings.socket,
    queues: settings.queues,
    depth: settings.depth,
    bufferBytes: settings.blockBytes,
    segments: options.segments,
    indirect: options.indirect,
    withoutFeatures: options.withoutFeatures,
    stallTimeoutMs: settings.stallTimeoutMs,
  };
  const frontEnd = await FrontEnd.connect(frontEndOptions);
  try {
    const blockCount = blockCountOf(frontEnd, settings, options);
    const isVerifying = options.verify || settings.verifyOnly || options.verifyTable !== undefined;
    const { seed, blockBytes, offsetBytes } = settings;
    const table = options.verifyTable ??
      (isVerifying ? new VerifyTable({ seed, blockBytes, offsetBytes, blockCount }) : null);
    checkAgainstDisk(frontEnd, settings, table, blockCount);
    const load = new Load(frontEnd, settings, table, blockCount);
    await load.run();
    await load.close();
    return load.result();
  } finally {
    frontEnd.abort(); // does nothing when it has been closed
  }
}

/** Exit code of the command for a result: 0 good, 1 failed requests or wrong data, 2 a broken back end. */
export function benchExitCode(result: BenchResult): number {
  if (result.failure !== null && result.failure.kind !== "aborted") return 2;
  const wrong = result.ioErrors + result.unsupported + (result.verify?.wrongBlocks ?? 0);
  return wrong > 0 ? 1 : 0;
}

function blockCountOf(disk: FrontEnd, settings: Settings, options: BenchOptions): number {
  const { offsetBytes, blockBytes } = settings;
  const { capacityBytes } = disk;
  if (offsetBytes % blockBytes !== 0 || !(offsetBytes >= 0)) {
    throw new RangeError(
      `bench: offset ${offsetBytes} is not a multiple of the block size, ${blockBytes}`,
    );
  }
  if (offsetBytes >= capacityBytes) {
    throw new RangeError(
      `bench: offset ${bytesText(offsetBytes)} is past the end of the disk, which has ` +
        bytesText(capacityBytes),
    );
  }
  const tableBytes = options.verifyTable && options.verifyTable.blockCount * blockBytes;
  const sizeBytes = options.sizeBytes ?? tableBytes ?? capacityBytes - offsetBytes;
  if (!(sizeBytes > 0 && offsetBytes + sizeBytes <= capacityBytes)) {
    throw new RangeError(
      `bench: ${bytesText(sizeBytes)} from offset ${
        bytesText(offsetBytes)
      } on are more than the disk ` +
        `has, ${bytesText(capacityBytes)}`,
    );
  }
  return Math.floor(sizeBytes / blockBytes);
}

/** `134217728 bytes (128M)` */
function bytesText(bytes: number): string {
  return `${bytes} bytes (${formatSize(bytes)})`;
}

function checkAgainstDisk(
  disk: FrontEnd,
  settings: Settings,
  table: VerifyTable | null,
  blockCount: number,
): void {
  const { rw, flushEvery, queues, blockBytes, offsetBytes, verifyOnly } = settings;
  const writes = rw === "write" || rw === "randwrite" || rw === "randrw";
  if (writes && !verifyOnly && disk.isReadOnly) {
    throw new RangeError(`bench: ${rw} needs a disk that is not read-only`);
  }
  if (flushEvery > 0 && !disk.has(FEATURE_FLUSH)) {
    throw new RangeError("bench: the back end does not offer FLUSH, so there is no flush interval");
  }
  if (blockCount < queues) {
    throw new RangeError(`bench: ${blockCount} blocks are too few for ${queues} queues`);
  }
  if (
    table !== null &&
    (table.blockBytes !== blockBytes || table.offsetBytes !== offsetBytes ||
      table.blockCount !== blockCount)
  ) throw new RangeError("bench: the verify table is of another block size, offset or size");
}

/** One queue's share of the load. */
class Lane {
  readonly random: Prng;
  phase: Phase;
  issued = 0;
  writesSinceFlush = 0;
  wantsFlush = false;
  /** Next block of a sequential pattern, and of the reading back. */
  cursor: number;
  readBackCursor: number;
  /** Per slot: whether it counts, when it was queued, its block, the generation that it writes. */
  readonly isMeasured: Uint8Array;
  readonly startedMs: Float64Array;
  readonly blocks: Float64Array;
  readonly generations: Uint32Array;

  /** @param first, end the blocks that belong to this queue when it matters */
  constructor(
    readonly queue: DriverQueue,
    readonly first: number,
    readonly end: number,
    settings: Settings,
  ) {
    this.random = new Prng(settings.seed * 256 + queue.index);
    this.phase = settings.verifyOnly ? Phase.ReadBack : Phase.Load;
    this.cursor = first;
    this.readBackCursor = first;
    this.isMeasured = new Uint8Array(queue.slotCount);
    this.startedMs = new Float64Array(queue.slotCount);
    this.blocks = new Float64Array(queue.slotCount);
    this.generations = new Uint32Array(queue.slotCount);
  }
}

class Load {
  readonly #frontEnd: FrontEnd;
  readonly #settings: Settings;
  readonly #table: VerifyTable | null;
  readonly #blockCount: number;
  readonly #lanes: Lane[];
  readonly #sectorsPerBlock: number;
  readonly #firstSector: number;
  readonly #isSequential: boolean;
  /** Reads per hundred. */
  readonly #readPercent: number;
  readonly #reads = new LatencyHistogram();
  readonly #writes = new LatencyHistogram();
  readonly #flushes = new LatencyHistogram();
  /** Times in ms, in an array because numbers in fields are boxed; see the constants below. */
  readonly #times = new Float64Array(6);

  /** Requests of the measured part in flight. */
  #loadInFlight = 0;
  #operations = 0;
  #wakeUps = 0;
  #turns = 0;
  #ioErrors = 0;
  #unsupported = 0;
  #checked = 0;
  #wrong = 0;
  #messages: string[] = [];
  #failure: BenchResult["failure"] = null;
  #cpuBefore: CpuSample = { own: 0, backEnd: null };
  #cpuAfter: CpuSample | null = null;

  constructor(
    frontEnd: FrontEnd,
    settings: Settings,
    table: VerifyTable | null,
    blockCount: number,
  ) {
    this.#frontEnd = frontEnd;
    this.#settings = settings;
    this.#table = table;
    this.#blockCount = blockCount;
    this.#sectorsPerBlock = settings.blockBytes / SECTOR_BYTES;
    this.#firstSector = settings.offsetBytes / SECTOR_BYTES;
    this.#isSequential = settings.rw === "read" || settings.rw === "write";
    this.#readPercent = settings.rw === "randrw"
      ? settings.readPercent
      : settings.rw === "read" || settings.rw === "randread"
      ? 100
      : 0;
    const share = (index: number) => Math.floor(blockCount * index / settings.queues);
    this.#lanes = frontEnd.queues.map((queue, index) =>
      new Lane(queue, share(index), share(index + 1), settings)
    );
    this.#fillBuffers();
  }

  /** Data that nobody can compress, deduplicate or take for a hole. */
  #fillBuffers(): void {
    const random = new Prng(this.#settings.seed);
    const words = this.#frontEnd.memory.u32;
    const first = this.#frontEnd.memory.dataOffset >> 2;
    for (let word = first; word < words.length; word++) words[word] = random.u32();
  }

  /** Runs to the end, or to the failure. */
  async run(): Promise<void> {
    const { seconds, count, verifyOnly, signal } = this.#settings;
    this.#cpuBefore = sampleCpu(this.#frontEnd.backEndPid);
    const now = performance.now();
    this.#times[START] = now;
    this.#times[NOW] = now;
    this.#times[DEADLINE] = count > 0 || verifyOnly ? Infinity : now + seconds * 1000;
    this.#times[PROGRESS] = now;
    this.#times[REPORTED] = now;
    try {
      while (this.#slice()) {
        await turn();
        if (signal?.aborted) this.#abort();
        this.#report();
      }
    } catch (error) {
      if (!(error instanceof BackEndError)) throw error;
      this.#failure = { kind: error.kind, message: error.message };
    }
    this.#times[NOW] = performance.now();
    this.#endLoad();
  }

  /** Disconnects; a back end that fails at that is noted. */
  async close(): Promise<void> {
    const hasFailed = this.#failure !== null && this.#failure.kind !== "aborted";
    if (hasFailed || this.#frontEnd.inFlight > 0) return this.#frontEnd.abort();
    try {
      await this.#frontEnd.close();
    } catch (error) {
      if (!(error instanceof BackEndError)) throw error;
      this.#failure = { kind: error.kind, message: `at the end: ${error.message}` };
    }
    for (const warning of this.#frontEnd.warnings) this.#complain(warning);
  }

  /** The hot loop. Returns true when it wants to be called again. */
  #slice(): boolean {
    const frontEnd = this.#frontEnd;
    const times = this.#times;
    times[NOW] = performance.now();
    const sliceEnd = times[NOW] + SLICE_MS;
    for (;;) {
      if (times[NOW] >= times[DEADLINE]) this.#endLoad();
      let inFlight = 0;
      for (let index = 0; index < this.#lanes.length; index++) {
        const lane = this.#lanes[index];
        this.#fill(lane);
        lane.queue.publish();
        inFlight += lane.queue.inFlight;
      }
      if (this.#settings.count > 0 && this.#loadInFlight === 0 && this.#areLanesPast(Phase.Load)) {
        this.#endLoad();
      }
      if (inFlight === 0 && this.#areLanesPast(Phase.ReadBack)) return false;
      if (inFlight > 0 && !frontEnd.hasUsed()) {
        this.#wakeUps++;
        if (!frontEnd.wait(WAIT_MS)) {
          if (this.#isGivenUp()) return false;
          return true; // idle: a good time for the event loop
        }
      }
      times[NOW] = times[PROGRESS] = performance.now();
      this.#turns++;
      for (let index = 0; index < this.#lanes.length; index++) this.#reapAll(this.#lanes[index]);
      if (times[NOW] >= sliceEnd) return true;
    }
  }

  #areLanesPast(phase: Phase): boolean {
    for (let index = 0; index < this.#lanes.length; index++) {
      if (this.#lanes[index].phase <= phase) return false;
    }
    return true;
  }

  /** Whether what is in flight is not waited for any more, since the load was stopped. */
  #isGivenUp(): boolean {
    const elapsedMs = performance.now() - this.#times[PROGRESS];
    if (this.#failure !== null) return elapsedMs > ENDING_MS;
    if (elapsedMs > this.#settings.stallTimeoutMs) throw this.#frontEnd.stalledError(elapsedMs);
    return false;
  }

  /** Ends the measured part, once. */
  #endLoad(): void {
    if (this.#times[END] !== 0) return;
    this.#times[END] = this.#times[NOW];
    this.#cpuAfter = sampleCpu(this.#frontEnd.backEndPid);
  }

  /** Stops the load and skips the reading back. */
  #abort(): void {
    if (this.#failure !== null) return;
    this.#failure = { kind: "aborted", message: "stopped before its end" };
    this.#times[NOW] = performance.now();
    this.#endLoad();
    for (const lane of this.#lanes) lane.phase = Phase.Done;
  }

  // Queueing -----------------------------------------------------------------------------------

  #fill(lane: Lane): void {
    while (lane.queue.freeCount > 0 && this.#next(lane)) { /* until it is full */ }
  }

  /** Queues one request; false when there is none to queue now. */
  #next(lane: Lane): boolean {
    switch (lane.phase) {
      case Phase.Load:
        return this.#nextOfLoad(lane);
      case Phase.Flush:
        if (lane.queue.inFlight > 0) return false;
        lane.phase = Phase.ReadBack;
        if (!this.#frontEnd.has(FEATURE_FLUSH)) return true;
        this.#submit(lane, RequestType.Flush, 0);
        return true;
      case Phase.ReadBack:
        return this.#nextOfReadBack(lane);
      case Phase.Done:
        return false;
    }
  }

  #nextOfLoad(lane: Lane): boolean {
    const { count, flushEvery } = this.#settings;
    if (this.#times[END] !== 0 || count > 0 && lane.issued >= count) {
      lane.phase = this.#table === null ? Phase.Done : Phase.Flush;
      return lane.phase === Phase.Flush;
    }
    if (lane.wantsFlush) {
      lane.wantsFlush = false;
      this.#submit(lane, RequestType.Flush, 0);
      return true;
    }
    const percent = this.#readPercent;
    const isRead = percent === 100 || percent > 0 && lane.random.below(100) < percent;
    const block = this.#chooseBlock(lane);
    if (block < 0) return false;
    lane.issued++;
    this.#submit(lane, isRead ? RequestType.In : RequestType.Out, block);
    if (!isRead && flushEvery > 0 && ++lane.writesSinceFlush >= flushEvery) {
      lane.writesSinceFlush = 0;
      lane.wantsFlush = true;
    }
    return true;
  }

  #chooseBlock(lane: Lane): number {
    if (this.#isSequential) return this.#nextInOrder(lane);
    if (this.#table === null) return lane.random.below(this.#blockCount);
    const { isBusy } = this.#table;
    let block = lane.first + lane.random.below(lane.end - lane.first);
    for (let tries = lane.end - lane.first; isBusy[block] !== 0; tries--) {
      if (tries === 0) return -1; // the range is smaller than the depth
      if (++block >= lane.end) block = lane.first;
    }
    return block;
  }

  #nextInOrder(lane: Lane): number {
    const block = lane.cursor;
    if (this.#table !== null && this.#table.isBusy[block] !== 0) return -1;
    lane.cursor = block + 1 >= lane.end ? lane.first : block + 1;
    return block;
  }

  #nextOfReadBack(lane: Lane): boolean {
    const table = this.#table!;
    while (lane.readBackCursor < lane.end && table.acknowledged[lane.readBackCursor] === 0) {
      lane.readBackCursor++;
    }
    if (lane.readBackCursor >= lane.end) {
      lane.phase = Phase.Done;
      return false;
    }
    this.#submit(lane, RequestType.In, lane.readBackCursor++);
    return true;
  }

  #submit(lane: Lane, type: RequestType, block: number): void {
    const { queue } = lane;
    const slot = queue.takeSlot();
    lane.startedMs[slot] = this.#times[NOW];
    lane.blocks[slot] = block;
    lane.isMeasured[slot] = lane.phase === Phase.Load || this.#settings.verifyOnly ? 1 : 0;
    this.#loadInFlight += lane.isMeasured[slot];
    if (type === RequestType.Flush) {
      queue.submit(slot, type, 0, 0);
      return;
    }
    const table = this.#table;
    if (table !== null) {
      table.isBusy[block] = 1;
      if (type === RequestType.Out) {
        const generation = ++table.issued[block];
        lane.generations[slot] = generation;
        const words = this.#frontEnd.memory.u32;
        table.stamp(words, queue.dataOffset(slot) >> 2, block, generation);
      }
    }
    const sector = this.#firstSector + block * this.#sectorsPerBlock;
    queue.submit(slot, type, sector, this.#settings.blockBytes);
  }

  // Reaping ------------------------------------------------------------------------------------

  #reapAll(lane: Lane): void {
    const { queue } = lane;
    for (let slot = queue.reap(); slot >= 0; slot = queue.reap()) {
      const type = queue.type(slot);
      const isOk = queue.status(slot) === Status.Ok;
      this.#loadInFlight -= lane.isMeasured[slot];
      if (!isOk) this.#countError(queue, slot, type);
      else if (lane.isMeasured[slot] === 1 && this.#times[END] === 0) {
        this.#measure(type, slot, lane);
      }
      if (this.#table !== null && type !== RequestType.Flush) {
        this.#verify(lane, slot, type, isOk);
      }
      queue.releaseSlot(slot);
    }
  }

  #measure(type: number, slot: number, lane: Lane): void {
    const us = (this.#times[NOW] - lane.startedMs[slot]) * 1000;
    if (type === RequestType.Flush) {
      this.#flushes.add(us);
      return;
    }
    this.#operations++;
    (type === RequestType.In ? this.#reads : this.#writes).add(us);
  }

  #countError(queue: DriverQueue, slot: number, type: number): void {
    const status = queue.status(slot);
    if (status === Status.Unsupported) this.#unsupported++;
    else this.#ioErrors++;
    this.#complain(
      `queue ${queue.index}: ${typeName(type)} of sector ${queue.sector(slot)} failed with ` +
        `status ${status}`,
    );
  }

  #verify(lane: Lane, slot: number, type: number, isOk: boolean): void {
    const table = this.#table!;
    const block = lane.blocks[slot];
    table.isBusy[block] = 0;
    if (!isOk) return;
    if (type === RequestType.Out) {
      table.acknowledged[block] = lane.generations[slot];
      return;
    }
    if (table.acknowledged[block] === 0) return;
    const words = this.#frontEnd.memory.u32;
    const at = lane.queue.dataOffset(slot) >> 2;
    const sector = table.check(words, at, block);
    this.#checked++;
    if (sector < 0) return;
    this.#wrong++;
    this.#complain(`queue ${lane.queue.index}: ${table.describe(words, at, block, sector)}`);
  }

  #complain(message: string): void {
    if (this.#messages.length < MESSAGES_MAX) this.#messages.push(message);
  }

  // Reporting ----------------------------------------------------------------------------------

  #report(): void {
    const { onProgress, count, queues, verifyOnly } = this.#settings;
    if (onProgress === undefined || this.#times[NOW] < this.#times[REPORTED] + SLICE_MS) return;
    this.#times[REPORTED] = this.#times[NOW];
    const isReadBack = verifyOnly || this.#times[END] !== 0;
    const elapsed = performance.now() - this.#times[START];
    const fraction = isReadBack
      ? sum(this.#lanes, ({ readBackCursor, first }) => readBackCursor - first) / this.#blockCount
      : count > 0
      ? this.#operations / (count * queues)
      : elapsed / (this.#times[DEADLINE] - this.#times[START]);
    onProgress({
      phase: isReadBack ? "read back" : "load",
      operations: this.#operations,
      fraction: Math.min(fraction, 1),
    });
  }

  /** The figures; after {@linkcode run}. */
  result(): BenchResult {
    const { rw, blockBytes, depth, flushEvery, seed } = this.#settings;
    const { queues } = this.#frontEnd;
    const elapsedMs = Math.max(this.#times[END] - this.#times[START], 1e-3);
    const operations = this.#operations;
    const all = new LatencyHistogram();
    all.merge(this.#reads);
    all.merge(this.#writes);
    const perSecond = operations / (elapsedMs / 1000);
    return {
      rw,
      blockBytes,
      depth,
      queues: queues.length,
      ringSize: queues[0].size,
      indirect: queues[0].isIndirect,
      flushEvery,
      seed,
      seconds: elapsedMs / 1000,
      operations,
      iops: perSecond,
      megabytesPerSecond: perSecond * blockBytes / 1e6,
      latencyUs: {
        all: all.summary(),
        read: this.#reads.summary(),
        write: this.#writes.summary(),
        flush: this.#flushes.summary(),
      },
      ...this.#cpuFigures(elapsedMs),
      kicks: sum(queues, ({ kicks }) => kicks),
      wakeUps: this.#wakeUps,
      turns: this.#turns,
      ioErrors: this.#ioErrors,
      unsupported: this.#unsupported,
      usedLengthMismatches: sum(queues, ({ usedLengthMismatches }) => usedLengthMismatches),
      verify: this.#table && { checkedBlocks: this.#checked, wrongBlocks: this.#wrong },
      messages: this.#messages,
      failure: this.#failure,
    };
  }

  #cpuFigures(elapsedMs: number): Pick<BenchResult, "frontEndCpuPercent" | "backEnd"> {
    const [before, after] = [this.#cpuBefore, this.#cpuAfter ?? this.#cpuBefore];
    const backEndMs = before.backEnd === null || after.backEnd === null
      ? null
      : after.backEnd - before.backEnd;
    return {
      frontEndCpuPercent: 100 * (after.own - before.own) / elapsedMs,
      backEnd: backEndMs === null ? null : {
        pid: this.#frontEnd.backEndPid,
        cpuPercent: 100 * backEndMs / elapsedMs,
        cpuUsPerOperation: this.#operations === 0 ? 0 : backEndMs * 1000 / this.#operations,
      },
    };
  }
}

/** Places in `Load.#times`. NOW is the time of the turn; END is 0 until the measured part is over. */
const START = 0, DEADLINE = 1, END = 2, PROGRESS = 3, NOW = 4, REPORTED = 5;

/** CPU used so far, in ms. */
interface CpuSample {
  readonly own: number;
  /** null when it cannot be read. */
  readonly backEnd: number | null;
}

function sampleCpu(backEndPid: number): CpuSample {
  return {
    own: cpuMs("self") ?? 0,
    backEnd: backEndPid > 0 ? cpuMs(`${backEndPid}`) : null,
  };
}

/** User and system time of a process, all threads (proc(5)). */
function cpuMs(pid: string): number | null {
  const text = readProc(`/proc/${pid}/stat`);
  if (text === "") return null; // it has gone, or is in another PID namespace
  // The name in parentheses may hold anything; utime and stime are the 12th and 13th field after it.
  const fields = text.slice(text.lastIndexOf(")") + 2).split(" ");
  return (Number(fields[11]) + Number(fields[12])) * TICK_MS;
}

function sum<T>(items: readonly T[], value: (item: T) => number): number {
  return items.reduce((total, item) => total + value(item), 0);
}
