/**
 * Seeds over several workers: each runs one simulation at a time, and gets the next seed when it is done.
 *
 * What a seed does depends on the seed and the options alone, never on which worker runs it or what ran there before. Workers are
 * threads: they end with the process, whatever ends it.
 *
 * @module
 */
import { Simulation, type SimulationOptions, type SimulationReport } from "./cluster.ts";

/** What came of a seed. */
export interface Outcome {
  readonly seed: number;
  /** Null: the seed has failed. */
  readonly report: SimulationReport | null;
  /** Why it has failed, with the last events; "" when it has not. */
  readonly complaint: string;
}

/** Options that a worker can be sent. */
export type SeedOptions = Omit<SimulationOptions, "sabotage">;

/** Runs one seed here. Never throws. */
export function outcomeOf(options: SimulationOptions): Outcome {
  const { seed } = options;
  try {
    return { seed, report: new Simulation(options).run(), complaint: "" };
  } catch (error) {
    return { seed, report: null, complaint: error instanceof Error ? error.message : `${error}` };
  }
}

/**
 * Runs simulations in `jobs` workers at a time.
 *
 * @param next the next simulation; null when there are no more
 * @param done told of each as it ends, in any order
 * @throws {Error} a worker has ended by itself: a fault of the harness, or no memory
 */
export async function runJobs(
  jobs: number,
  next: () => SeedOptions | null,
  done: (outcome: Outcome) => void,
): Promise<void> {
  const workers: Worker[] = [];
  const work = () =>
    new Promise<void>((resolve, reject) => {
      let options = next();
      if (options === null) return resolve();
      const worker = new Worker(new URL("./job_worker.ts", import.meta.url), { type: "module" });
      workers.push(worker);
      worker.onerror = (event) => {
        event.preventDefault();
        reject(new Error(`the worker of seed ${options!.seed} has ended: ${event.message}`));
      };
      worker.onmessage = ({ data }: MessageEvent<Outcome>) => {
        done(data);
        options = next();
        if (options === null) resolve();
        else worker.postMessage(options);
      };
      worker.postMessage(options);
    });
  try {
    await Promise.all(Array.from({ length: jobs }, work));
  } finally {
    for (const worker of workers) worker.terminate();
  }
}
