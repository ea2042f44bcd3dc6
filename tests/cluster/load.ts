/**
 * A guest substitute: a front end that writes, reads and flushes one disk from a thread of its own (load_worker.ts), goes on by
 * itself when its agent was killed and is back, and knows whether what it read can be.
 *
 * @module
 */
import { assertEquals } from "@std/assert/mod.js";
import { until, within } from "../guest/deadline.ts";
import type { Host, Hosts } from "./hosts.ts";

/** What the load is to do. */
export interface LoadOptions {
  readonly socket: string;
  readonly sizeBytes: number;
  readonly seed: number;
  /** Runs of four blocks that it uses, spread over the disk. */
  readonly places: number;
  readonly ratePerSecond: number;
}

/** A request that took long, in milliseconds since 1970. */
export interface Pause {
  readonly startMs: number;
  readonly endMs: number;
  readonly what: string;
}

/** What a load has done so far. */
export interface LoadReport {
  writes: number;
  reads: number;
  flushes: number;
  reconnects: number;
  /** Requests that failed. */
  readonly errors: string[];
  /** Blocks whose content cannot be. */
  readonly violations: string[];
  /** Requests that took longer than a fifth of a second. */
  readonly slow: Pause[];
}

/** Requests to the thread. */
export type ToLoad =
  & { readonly id: number }
  & (
    | { readonly kind: "start"; readonly options: LoadOptions }
    | { readonly kind: "report" | "drain" | "resume" | "close" }
    | { readonly kind: "attach" | "read-all"; readonly socket: string }
  );

/** Answers; -1: the thread has failed. */
export type FromLoad = { readonly id: number; readonly value?: unknown; readonly error?: string };

type Asked = ToLoad extends infer T ? T extends { id: number } ? Omit<T, "id"> : never : never;

/** How long it may take until all requests have been answered. */
const DRAIN_TIMEOUT_MS = 60_000;

/** A running load; see the head of the file. */
export class Load implements AsyncDisposable {
  readonly #worker: Worker;
  readonly #waiting = new Map<number, PromiseWithResolvers<unknown>>();
  #nextId = 1;
  #failure: Error | null = null;

  private constructor() {
    this.#worker = new Worker(new URL("load_worker.ts", import.meta.url), { type: "module" });
    this.#worker.onmessage = ({ data }: MessageEvent<FromLoad>) => this.#answered(data);
    this.#worker.onerror = (event) => {
      event.preventDefault();
      this.#answered({ id: -1, error: event.message });
    };
  }

  /** Starts a load; it waits for its disk by itself. */
  static async start(options: LoadOptions): Promise<Load> {
    const load = new Load();
    await load.#ask({ kind: "start", options });
    return load;
  }

  /** Starts a load of another kind each time on a disk, opened on a host; says which, so that it can be had again. */
  static startOn(
    hosts: Hosts,
    host: Host,
    disk: string,
    { sizeBytes, places, ratePerSecond = 200 }:
      & Pick<LoadOptions, "sizeBytes" | "places">
      & Partial<Pick<LoadOptions, "ratePerSecond">>,
  ): Promise<Load> {
    const seed = crypto.getRandomValues(new Uint32Array(1))[0];
    console.log(`      hosts in ${hosts.network}, seed ${seed}`);
    return Load.start({ socket: host.socket(disk), sizeBytes, seed, places, ratePerSecond });
  }

  #answered({ id, value, error }: FromLoad): void {
    if (id < 0) {
      this.#failure = new Error(`the load ended: ${error}`);
      for (const { reject } of this.#waiting.values()) reject(this.#failure);
      this.#waiting.clear();
      return;
    }
    const waiting = this.#waiting.get(id);
    this.#waiting.delete(id);
    if (error === undefined) waiting?.resolve(value);
    else waiting?.reject(new Error(error));
  }

  #ask<T>(request: Asked): Promise<T> {
    if (this.#failure !== null) return Promise.reject(this.#failure);
    const id = this.#nextId++;
    const waiting = Promise.withResolvers<unknown>();
    this.#waiting.set(id, waiting);
    this.#worker.postMessage({ ...request, id });
    return waiting.promise as Promise<T>;
  }

  /** What it has done so far; `waiting` is what has no answer yet. */
  report(): Promise<LoadReport & { readonly waiting: readonly Pause[] }> {
    return this.#ask({ kind: "report" });
  }

  /** Waits until it has had answers to `count` writes more. */
  async progress(
    count: number,
    { timeoutMs, logs }: { timeoutMs: number; logs: () => string },
  ): Promise<void> {
    const { writes } = await this.report();
    let now = writes;
    await until(async () => (now = (await this.report()).writes) >= writes + count, {
      timeoutMs,
      intervalMs: 50,
      what: () => `the guest does not get on: ${now - writes} writes of ${count}\n${logs()}`,
    });
  }

  /** Nothing has failed, and nothing that was read cannot be. */
  async check(logs: () => string): Promise<void> {
    const { errors, violations } = await this.report();
    assertEquals([...errors, ...violations], [], logs());
  }

  /** Stops asking and waits until everything has been answered. */
  async drain(): Promise<void> {
    await within(this.#ask({ kind: "drain" }), DRAIN_TIMEOUT_MS, () => "requests wait");
  }

  /** Asks again. */
  resume(): Promise<void> {
    return this.#ask({ kind: "resume" });
  }

  /** Leaves its agent without a word and goes on at another socket. */
  attach(socket: string): Promise<void> {
    return this.#ask({ kind: "attach", socket });
  }

  /** Reads all blocks that it uses over another socket, checks them, and returns their values. */
  readAll(socket: string): Promise<Uint32Array> {
    return this.#ask({ kind: "read-all", socket });
  }

  /** Reads all blocks that it uses on each of these hosts: what one reads the others do, too. After {@linkcode Load.drain}. */
  async readAlike(hosts: readonly Host[], disk: string): Promise<void> {
    const seen: Uint32Array[] = [];
    for (const host of hosts) seen.push(await this.readAll(host.readOnlySocket(disk)));
    for (const values of seen) assertEquals(values, seen[0]);
  }

  /** Gives the disk back, after {@linkcode Load.drain}. */
  close(): Promise<void> {
    return this.#ask({ kind: "close" });
  }

  [Symbol.asyncDispose](): Promise<void> {
    this.#worker.terminate();
    return Promise.resolve();
  }
}

/** Milliseconds since 1970, as a load counts. */
export function nowMs(): number {
  return performance.timeOrigin + performance.now();
}

/** The longest pause that began or went on after `sinceMs`, in milliseconds. */
export function longestPauseMs(
  report: LoadReport & { readonly waiting: readonly Pause[] },
  sinceMs: number,
): number {
  let longest = 0;
  for (const { startMs, endMs } of [...report.slow, ...report.waiting]) {
    if (endMs > sinceMs) longest = Math.max(longest, endMs - Math.max(startMs, sinceMs));
  }
  return longest;
}
