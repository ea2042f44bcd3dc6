/**
 * A load on a thread of its own, for `cluster.ts`: a load leaves its thread no time for anything else, such as what agents have
 * to say, and they would wait until they are heard.
 *
 *     { options }  ─▶ runs it ─▶ { result } or { error }
 *     "stop"       ─▶ ends it early
 *
 * @module
 */
import { type BenchOptions, type BenchResult, runBench } from "../../cli/bench.ts";

/** What the thread is told; only one load at a time. */
export type ToLoadWorker = "stop" | { readonly options: Omit<BenchOptions, "signal"> };

/** What it answers, once per load. */
export type FromLoadWorker = { readonly result: BenchResult } | { readonly error: string };

const scope = self as unknown as {
  onmessage: (event: MessageEvent<ToLoadWorker>) => void;
  postMessage(message: FromLoadWorker): void;
};

let stop: AbortController | null = null;

scope.onmessage = ({ data }) => {
  if (data === "stop") stop?.abort();
  else void run(data.options);
};

async function run(options: Omit<BenchOptions, "signal">): Promise<void> {
  const controller = new AbortController();
  stop = controller;
  try {
    const result = await runBench({ ...options, signal: controller.signal });
    scope.postMessage({ result });
  } catch (error) {
    scope.postMessage({ error: error instanceof Error ? error.message : String(error) });
  }
}
