/**
 * The guest's side of {@linkcode Load}, in a thread of its own: requests of random kinds to one disk, as fast as they are
 * answered or at a given rate, and the histories of what they did.
 *
 * Every request is recorded with the times before it was shown to the agent and after its completion was seen, so that the
 * interval is never shorter than it was. The histories are those of the simulator; a block that could not have been
 * answered so by a single disk is a violation.
 *
 * @module
 */
import { Prng } from "../../agent/base/prng.ts";
import { turn } from "../../agent/frontend/back_end_socket.ts";
import { BackEndError } from "../../agent/frontend/error.ts";
import { FrontEnd, typeName } from "../../agent/frontend/front_end.ts";
import { RequestType, SECTOR_BYTES, Status } from "../../agent/frontend/virtio_blk.ts";
import { BlockHistory } from "../simulator/history.ts";
import type { FromLoad, LoadOptions, LoadReport, Pause, ToLoad } from "./load.ts";

const BLOCK_BYTES = 4096;
const BLOCK_WORDS = BLOCK_BYTES / 4;
/** Most blocks of one request. */
const BLOCKS_MAX = 4;
const DEPTH = 8;
/** Looks for completions at least so often. */
const SLICE_MS = 4;
/** Tries to reach a new back end at this interval, as QEMU would every second. */
const RECONNECT_MS = 50;
/** Requests that took longer are remembered one by one. */
const SLOW_MS = 200;
/** Most that are remembered of them, and of violations. */
const SLOW_MAX = 10_000, VIOLATIONS_MAX = 20;
/** Share of requests that write, and that flush; the rest reads. */
const WRITES = 0.55, FLUSHES = 0.06;

interface Slot {
  type: number;
  place: number;
  block: number;
  count: number;
  readonly values: number[];
  startMs: number;
}

/** Milliseconds since 1970, with fractions, that never go back; the same in all threads of a process. */
function nowMs(): number {
  return performance.timeOrigin + performance.now();
}

class LoadThread {
  readonly #options: LoadOptions;
  readonly #random: Prng;
  readonly #histories: BlockHistory[] = [];
  readonly #places: number[] = [];
  readonly #slots = new Map<number, Slot>();
  readonly #report: LoadReport;
  #socket: string;
  #frontEnd: FrontEnd | null = null;
  #isBroken = false;
  #triedMs = 0;
  #nextValue = 1;
  #isIssuing = true;
  #issuedMs = 0;
  #credit = 0;
  /** Called when nothing is in flight any more. */
  #whenIdle: (() => void) | null = null;
  #isEnding = false;

  constructor(options: LoadOptions) {
    this.#options = options;
    this.#random = new Prng(options.seed);
    this.#socket = options.socket;
    this.#report = {
      writes: 0,
      reads: 0,
      flushes: 0,
      reconnects: 0,
      errors: [],
      violations: [],
      slow: [],
    };
    const chunkBytes = 4 * 1024 * 1024;
    const chunks = Math.floor(options.sizeBytes / chunkBytes);
    for (let place = 0; place < options.places; place++) {
      const chunk = Math.floor(place * chunks / options.places);
      const at = this.#random.below(chunkBytes / BLOCK_BYTES - BLOCKS_MAX) * BLOCK_BYTES;
      this.#places.push(chunk * chunkBytes + at);
      for (let block = 0; block < BLOCKS_MAX; block++) {
        this.#histories.push(
          new BlockHistory(`block at ${chunk * chunkBytes + at + block * BLOCK_BYTES}`),
        );
      }
    }
  }

  async run(): Promise<void> {
    while (!this.#isEnding) {
      try {
        if (this.#frontEnd === null || this.#isBroken) await this.#connect();
        else this.#turn(this.#frontEnd);
      } catch (error) {
        if (!(error instanceof BackEndError) || error.kind !== "disconnected") throw error;
        this.#isBroken = true;
      }
      await turn();
    }
    this.#frontEnd?.abort();
  }

  // ---------------------------------------------------------------------------------- connections

  async #connect(): Promise<void> {
    const sinceMs = nowMs() - this.#triedMs;
    if (sinceMs < RECONNECT_MS) {
      await new Promise((resolve) => setTimeout(resolve, RECONNECT_MS - sinceMs));
    }
    this.#triedMs = nowMs();
    try {
      if (this.#frontEnd !== null) {
        await this.#frontEnd.reconnect();
        this.#report.reconnects++;
      } else {
        this.#frontEnd = await FrontEnd.connect({
          socket: this.#socket,
          depth: DEPTH,
          bufferBytes: BLOCKS_MAX * BLOCK_BYTES,
          inflight: true,
          replyTimeoutMs: 30_000,
        });
      }
      this.#isBroken = false;
    } catch (error) {
      if (!(error instanceof BackEndError)) throw error;
      // Not there (yet).
    }
  }

  /** Goes on at another host: what was in flight is never answered. */
  attach(socket: string): void {
    this.#frontEnd?.abort();
    this.#frontEnd = null;
    this.#isBroken = false;
    this.#slots.clear();
    this.#socket = socket;
  }

  // ------------------------------------------------------------------------------------- requests

  #turn(frontEnd: FrontEnd): void {
    const [queue] = frontEnd.queues;
    this.#earn();
    while (this.#isIssuing && this.#credit >= 1) {
      const slot = queue.takeSlot();
      if (slot < 0) break;
      this.#credit--;
      this.#issue(frontEnd, slot);
    }
    queue.publish();
    frontEnd.wait(SLICE_MS);
    for (let slot = queue.reap(); slot >= 0; slot = queue.reap()) {
      this.#done(frontEnd, slot);
      queue.releaseSlot(slot);
    }
    if (this.#slots.size === 0 && !this.#isIssuing) {
      this.#whenIdle?.();
      this.#whenIdle = null;
    }
  }

  #earn(): void {
    const now = nowMs();
    const { ratePerSecond } = this.#options;
    this.#credit = Math.min(DEPTH, this.#credit + (now - this.#issuedMs) * ratePerSecond / 1000);
    this.#issuedMs = now;
  }

  #issue(frontEnd: FrontEnd, index: number): void {
    const random = this.#random;
    const at = random.fraction();
    const type = at < WRITES
      ? RequestType.Out
      : at < WRITES + FLUSHES
      ? RequestType.Flush
      : RequestType.In;
    const block = random.below(BLOCKS_MAX);
    const count = 1 + random.below(BLOCKS_MAX - block);
    const place = random.below(this.#places.length);
    const slot = { type, place, block, count, values: [] as number[], startMs: nowMs() };
    this.#slots.set(index, slot);
    const [queue] = frontEnd.queues;
    if (type === RequestType.Flush) return queue.submit(index, type, 0, 0);
    if (type === RequestType.Out) {
      const words = frontEnd.memory.u32;
      for (let i = 0; i < count; i++) {
        const value = this.#nextValue++;
        const first = (queue.dataOffset(index) + i * BLOCK_BYTES) >>> 2;
        words.fill(value, first, first + BLOCK_WORDS);
        slot.values.push(value);
        this.#historyOf(place, block + i).writeStarts(value, slot.startMs);
      }
    }
    const offsetBytes = this.#places[place] + block * BLOCK_BYTES;
    queue.submit(index, type, offsetBytes / SECTOR_BYTES, count * BLOCK_BYTES);
  }

  #historyOf(place: number, block: number): BlockHistory {
    return this.#histories[place * BLOCKS_MAX + block];
  }

  #done(frontEnd: FrontEnd, index: number): void {
    const slot = this.#slots.get(index)!;
    this.#slots.delete(index);
    const endMs = nowMs();
    const [queue] = frontEnd.queues;
    const report = this.#report;
    const what = `${typeName(slot.type)} at ${this.#places[slot.place] + slot.block * BLOCK_BYTES}`;
    if (endMs - slot.startMs > SLOW_MS && report.slow.length < SLOW_MAX) {
      report.slow.push({ startMs: slot.startMs, endMs, what });
    }
    const status = queue.status(index);
    if (status !== Status.Ok) {
      report.errors.push(`${what}: status ${status} after ${(endMs - slot.startMs).toFixed(0)} ms`);
      return;
    }
    if (slot.type === RequestType.Flush) report.flushes++;
    else if (slot.type === RequestType.Out) {
      report.writes++;
      slot.values.forEach((value, i) =>
        this.#historyOf(slot.place, slot.block + i).writeEnds(value, endMs)
      );
    } else {
      report.reads++;
      for (let i = 0; i < slot.count; i++) {
        const first = (queue.dataOffset(index) + i * BLOCK_BYTES) >>> 2;
        this.#check(frontEnd.memory.u32, first, slot.place, slot.block + i, slot.startMs, endMs);
      }
    }
  }

  /** Checks one block that was read; returns its value. */
  #check(
    words: Uint32Array,
    first: number,
    place: number,
    block: number,
    startMs: number,
    endMs: number,
  ): number {
    const history = this.#historyOf(place, block);
    const value = words[first];
    try {
      for (let word = 1; word < BLOCK_WORDS; word++) {
        if (words[first + word] === value) continue;
        throw new Error(`${history.name} mixes ${value} and ${words[first + word]}`);
      }
      history.read(value, startMs, endMs);
    } catch (error) {
      const { violations } = this.#report;
      const text = `${(error as Error).message}; read from ${startMs.toFixed(1)} to ${
        endMs.toFixed(1)
      }`;
      if (violations.length < VIOLATIONS_MAX) violations.push(text);
    }
    return value;
  }

  // ------------------------------------------------------------------------------------- commands

  /** Stops asking; resolves when all has been answered. */
  drain(): Promise<void> {
    this.#isIssuing = false;
    return new Promise((resolve) => this.#whenIdle = resolve);
  }

  resume(): void {
    this.#isIssuing = true;
  }

  /** Gives the disk back in good order, after {@linkcode drain}. */
  async close(): Promise<void> {
    this.#isEnding = true;
    const frontEnd = this.#frontEnd;
    this.#frontEnd = null;
    await frontEnd?.close();
  }

  /** Reads every block by a front end of its own, and checks it; the values, in order. */
  async readAll(socket: string): Promise<Uint32Array> {
    await using frontEnd = await FrontEnd.connect({
      socket,
      bufferBytes: BLOCKS_MAX * BLOCK_BYTES,
    });
    const values = new Uint32Array(this.#histories.length);
    const bytes = new Uint8Array(BLOCKS_MAX * BLOCK_BYTES);
    const words = new Uint32Array(bytes.buffer);
    for (let place = 0; place < this.#places.length; place++) {
      const startMs = nowMs();
      await frontEnd.read(this.#places[place], bytes);
      for (let block = 0; block < BLOCKS_MAX; block++) {
        const at = place * BLOCKS_MAX + block;
        values[at] = this.#check(words, block * BLOCK_WORDS, place, block, startMs, nowMs());
      }
    }
    return values;
  }

  /** What has happened so far, and what has not been answered for how long. */
  report(): LoadReport & { readonly waiting: readonly Pause[] } {
    const now = nowMs();
    const waiting = [...this.#slots.values()].map((slot) => ({
      startMs: slot.startMs,
      endMs: now,
      what: typeName(slot.type),
    }));
    return { ...this.#report, waiting };
  }
}

let thread: LoadThread | null = null;
/** This thread as a worker's, which the types of the main thread do not know. */
const port = globalThis as unknown as {
  onmessage: ((event: MessageEvent<ToLoad>) => void) | null;
  postMessage(message: FromLoad): void;
};
const post = (message: FromLoad) => port.postMessage(message);

port.onmessage = async ({ data }: MessageEvent<ToLoad>) => {
  const { id } = data;
  try {
    post({ id, value: await answer(data) });
  } catch (error) {
    post({ id, error: String((error as Error).stack ?? error) });
  }
};

async function answer(request: ToLoad): Promise<unknown> {
  if (request.kind === "start") {
    thread = new LoadThread(request.options);
    thread.run().catch((error) => post({ id: -1, error: String(error.stack ?? error) }));
    return null;
  }
  switch (request.kind) {
    case "report":
      return thread!.report();
    case "drain":
      return await thread!.drain();
    case "resume":
      return thread!.resume();
    case "attach":
      return thread!.attach(request.socket);
    case "read-all":
      return await thread!.readAll(request.socket);
    case "close":
      return await thread!.close();
  }
}
