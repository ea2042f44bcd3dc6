/**
 * Cycles of load, SIGKILL, restart and verification, on a real agent.
 *
 *     start ─▶ verify every sector ─▶ load ─▶ SIGKILL at a random moment ─▶ start …
 *                                      │        or SIGTERM, now and then     │ killed again while it starts, now and then
 *                                      └── the front end stays and reconnects, or goes down with it ──┘
 *
 * The load is a vhost-user front end in this process: writes of any size from one sector on, aligned or not, reads,
 * flushes, discards and write-zeroes, many at a time. What it does comes from a seed; when the agent dies in it does not.
 *
 * A SIGKILL leaves the page cache alone. So more must hold than what a power failure would leave: not only what was
 * flushed, but everything that was acknowledged is there.
 *
 * @module
 */
import { BLOCK_BYTES, SECTOR_BYTES } from "../../agent/base/limits.ts";
import { Prng } from "../../agent/base/prng.ts";
import { FrontEnd } from "../../agent/frontend/front_end.ts";
import { RequestType, Status } from "../../agent/frontend/virtio_blk.ts";
import { AgentProcess } from "../tools/agent_process.ts";
import { SectorModel } from "./sector_model.ts";

const MIB = 1024 * 1024;
const DISK = "crash";
const DISK_BYTES = 64 * MIB;
/** Small, so that the log wraps, checkpoints are taken and the cleaner has work within a few cycles. */
const CAPACITY = "450M";
const BLOCK_SECTORS = BLOCK_BYTES / SECTOR_BYTES;
/** Where half of the load goes, so that much is overwritten. */
const HOT_SECTORS = 4 * MIB / SECTOR_BYTES;

const QUEUES = 2;
const DEPTH = 16;
const BUFFER_BYTES = 256 * 1024;
const BUFFER_SECTORS = BUFFER_BYTES / SECTOR_BYTES;

/** The agent dies this long after the load began, in milliseconds. */
const LOAD_MS_MAX = 400;
/** An agent that is killed while it starts gets this long. */
const STARTING_MS_MAX = 700;
/** Longest wait for a completion, and for a sign of one. */
const STALL_MS = 30_000, WAIT_MS = 1000;
/** Attempts to find a range that nothing is under way on. */
const TRIES_MAX = 8;

/** What the cycles did. */
export interface CrashReport {
  readonly cycles: number;
  readonly requests: number;
  readonly kills: number;
  readonly stops: number;
  /** Agents killed before they were ready. */
  readonly killedStarting: number;
  /** Requests that were under way at a kill, and went on after it. */
  readonly resubmitted: number;
  /** Sectors of which a kill left open what they hold. */
  readonly openSectors: number;
}

/** How to run. */
export interface CrashOptions {
  /** An empty directory; what is left in it is the caller's. */
  readonly directory: string;
  readonly cycles: number;
  readonly seed: number;
  /** Called after each cycle. */
  readonly onCycle?: (cycle: number, report: CrashReport) => void;
}

/**
 * Runs cycles.
 *
 * @throws Error that says in which cycle something was wrong, and what
 */
export async function runCrashes(options: CrashOptions): Promise<CrashReport> {
  const run = new CrashRun(options);
  try {
    await run.run();
    return run.report;
  } finally {
    await run.end();
  }
}

class CrashRun {
  readonly report = {
    cycles: 0,
    requests: 0,
    kills: 0,
    stops: 0,
    killedStarting: 0,
    resubmitted: 0,
    openSectors: 0,
  };
  readonly #options: CrashOptions;
  readonly #prng: Prng;
  readonly #model = new SectorModel(DISK_BYTES / SECTOR_BYTES);
  #agent: AgentProcess | null = null;
  #frontEnd: FrontEnd | null = null;
  #load: Load | null = null;

  constructor(options: CrashOptions) {
    this.#options = options;
    this.#prng = new Prng(options.seed);
  }

  async run(): Promise<void> {
    const { cycles, seed, onCycle } = this.#options;
    for (let cycle = 1; cycle <= cycles; cycle++) {
      const cache = cycle % 2 === 0 ? "direct" : "buffered";
      try {
        await this.#cycle(cache);
      } catch (error) {
        const reason = error instanceof Error ? error.stack ?? error.message : String(error);
        throw new Error(
          `cycle ${cycle} (${cache}) of seed ${seed}: ${reason}\n--- agent:\n${this.#agent?.log}`,
        );
      }
      this.report.cycles = cycle;
      onCycle?.(cycle, this.report);
    }
    await this.#restart("buffered");
    await this.#frontEnd!.close();
    await this.#agent!.stop();
  }

  /** Whatever still runs ends. */
  async end(): Promise<void> {
    this.#frontEnd?.abort();
    await this.#agent?.kill();
  }

  async #cycle(cache: "buffered" | "direct"): Promise<void> {
    await this.#restart(cache);
    const load = new Load(this.#frontEnd!, this.#model, this.#prng.fork());
    this.#load = load;
    load.run(this.#prng.below(LOAD_MS_MAX));
    this.report.requests += load.requests;
    const agent = this.#agent!;
    if (this.#prng.chance(0.1)) {
      this.report.stops++;
      await agent.stop();
    } else {
      this.report.kills++;
      agent.killNow();
      await agent.kill();
    }
    // Acknowledged is acknowledged, even if nobody has looked yet.
    load.reapAll();
    if (this.#prng.chance(0.5)) {
      this.#frontEnd!.abort();
      this.#frontEnd = null;
    }
  }

  /** A new agent and a front end on it, and every sector verified. */
  async #restart(cache: "buffered" | "direct"): Promise<void> {
    const { directory } = this.#options;
    const isFirst = this.#agent === null;
    const options = {
      runDir: `${directory}/run`,
      dataDir: `${directory}/data`,
      capacity: CAPACITY,
      cache,
    } as const;
    if (!isFirst && this.#prng.chance(0.2)) {
      this.report.killedStarting++;
      await using starting = AgentProcess.launch(options);
      await new Promise((resolve) => setTimeout(resolve, this.#prng.below(STARTING_MS_MAX)));
      await starting.kill();
    }
    this.#agent = await AgentProcess.start(options);
    if (isFirst) {
      using client = this.#agent.client();
      await client.createDisk({ name: DISK, sizeBytes: DISK_BYTES });
    }
    await this.#connect();
    await this.#verify();
  }

  async #connect(): Promise<void> {
    if (this.#frontEnd !== null) {
      // The agent goes on where the one before it was.
      this.report.resubmitted += this.#frontEnd.inFlight;
      await this.#frontEnd.reconnect();
      this.#load!.finish();
      return;
    }
    this.report.openSectors += this.#model.openCount;
    this.#model.abandon();
    this.#frontEnd = await FrontEnd.connect({
      socket: this.#agent!.socket(DISK),
      queues: QUEUES,
      depth: DEPTH,
      bufferBytes: BUFFER_BYTES,
      inflight: true,
    });
  }

  async #verify(): Promise<void> {
    const bytes = new Uint8Array(4 * MIB);
    const words = new Uint32Array(bytes.buffer);
    for (let at = 0; at < DISK_BYTES; at += bytes.length) {
      await this.#frontEnd!.read(at, bytes);
      const count = bytes.length / SECTOR_BYTES;
      this.#model.verify(at / SECTOR_BYTES, count, words, 0, { settle: true });
    }
  }
}

/** A request under way; one per slot of each queue, used again and again. */
interface Request {
  type: number;
  sector: number;
  count: number;
  /** Of a flush: see `SectorModel.beginFlush`. */
  begun: number;
}

/** Requests without end, as many at a time as fit. */
class Load {
  requests = 0;
  readonly #frontEnd: FrontEnd;
  readonly #model: SectorModel;
  readonly #prng: Prng;
  readonly #underWay: Request[][];

  constructor(frontEnd: FrontEnd, model: SectorModel, prng: Prng) {
    this.#frontEnd = frontEnd;
    this.#model = model;
    this.#prng = prng;
    this.#underWay = frontEnd.queues.map((queue) =>
      Array.from({ length: queue.slotCount }, () => ({ type: 0, sector: 0, count: 0, begun: 0 }))
    );
  }

  /** Keeps the queues filled for so long, and returns with them filled. */
  run(durationMs: number): void {
    const end = performance.now() + durationMs;
    for (;;) {
      this.#submitAll();
      if (performance.now() >= end) return;
      this.#wait();
      this.reapAll();
    }
  }

  /** Waits for all that is under way, and submits no more. */
  finish(): void {
    for (;;) {
      this.reapAll();
      if (this.#frontEnd.inFlight === 0) return;
      this.#wait();
    }
  }

  /** Waits for a completion. */
  #wait(): void {
    const start = performance.now();
    // It also wakes up for a call that has been answered already.
    while (!this.#frontEnd.wait(WAIT_MS)) {
      const elapsedMs = performance.now() - start;
      if (elapsedMs > STALL_MS) throw this.#frontEnd.stalledError(elapsedMs);
    }
  }

  /** Takes what has completed. */
  reapAll(): void {
    for (const queue of this.#frontEnd.queues) {
      for (let slot = queue.reap(); slot >= 0; slot = queue.reap()) {
        const request = this.#underWay[queue.index][slot];
        const { type, sector, count } = request;
        if (queue.status(slot) !== Status.Ok) {
          throw new Error(`request type ${type} at sector ${sector}: status ${queue.status(slot)}`);
        }
        if (type === RequestType.Flush) this.#model.flushed(request.begun);
        else if (type === RequestType.In) {
          const first = queue.dataOffset(slot) / 4;
          this.#model.verify(sector, count, this.#frontEnd.memory.u32, first);
          this.#model.endRead(sector, count);
        } else this.#model.acknowledge(sector, count);
        queue.releaseSlot(slot);
      }
    }
  }

  #submitAll(): void {
    for (const queue of this.#frontEnd.queues) {
      for (let slot = queue.takeSlot(); slot >= 0; slot = queue.takeSlot()) {
        if (this.#submit(queue.index, slot)) continue;
        queue.releaseSlot(slot);
        break;
      }
      queue.publish();
    }
  }

  /** False when no free range was found. */
  #submit(queueIndex: number, slot: number): boolean {
    const queue = this.#frontEnd.queues[queueIndex];
    const request = this.#underWay[queueIndex][slot];
    if (!this.#choose(request)) return false;
    const { type, sector, count } = request;
    this.requests++;
    switch (type) {
      case RequestType.Flush:
        request.begun = this.#model.beginFlush();
        queue.submit(slot, type, 0, 0);
        break;
      case RequestType.In:
        this.#model.beginRead(sector, count);
        queue.submit(slot, type, sector, count * SECTOR_BYTES);
        break;
      case RequestType.Out:
        this.#model.beginWrite(
          sector,
          count,
          this.#frontEnd.memory.u32,
          queue.dataOffset(slot) / 4,
        );
        queue.submit(slot, type, sector, count * SECTOR_BYTES);
        break;
      case RequestType.Discard:
      case RequestType.WriteZeroes:
        this.#model.beginZero(sector, count);
        queue.submitRange(slot, type, {
          sector,
          sectorCount: count,
          unmap: type === RequestType.WriteZeroes && this.#prng.chance(0.5),
        });
    }
    return true;
  }

  #choose(request: Request): boolean {
    const prng = this.#prng;
    const kind = prng.fraction();
    if (kind < 0.08) {
      request.type = RequestType.Flush;
      return true;
    }
    for (let i = 0; i < TRIES_MAX; i++) {
      let unit = 1;
      let countMax: number;
      if (kind < 0.5) {
        request.type = RequestType.Out;
        countMax = 2 * BLOCK_SECTORS;
      } else if (kind < 0.7) {
        request.type = RequestType.Out;
        unit = BLOCK_SECTORS;
        countMax = 16 * BLOCK_SECTORS;
      } else if (kind < 0.75) {
        request.type = RequestType.Out;
        countMax = BUFFER_SECTORS;
      } else if (kind < 0.88) {
        request.type = RequestType.In;
        countMax = 8 * BLOCK_SECTORS;
      } else if (kind < 0.94) {
        // What a discard leaves of a block is up to the device: whole blocks only.
        request.type = RequestType.Discard;
        unit = BLOCK_SECTORS;
        countMax = 64 * BLOCK_SECTORS;
      } else {
        request.type = RequestType.WriteZeroes;
        countMax = 20 * BLOCK_SECTORS;
      }
      const limit = prng.chance(0.5) ? HOT_SECTORS : this.#model.sectorCount;
      request.count = prng.between(1, countMax / unit) * unit;
      request.sector = prng.below((limit - request.count) / unit + 1 | 0) * unit;
      if (!this.#model.isBusy(request.sector, request.count)) return true;
    }
    return false;
  }
}
