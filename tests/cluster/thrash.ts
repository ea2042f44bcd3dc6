/**
 * Hosts under random changes, one every few seconds, while two loads write: what `./dev thrash` runs.
 *
 * Anything may be broken at any time, also so much that nothing can be written; then the loads have to wait. At the end
 * everything is mended, and then nothing may be wrong, missing or different on any host.
 *
 * @module
 */
import { Prng } from "../../agent/base/prng.ts";
import { until } from "../guest/deadline.ts";
import { type Host, Hosts } from "./hosts.ts";
import { Load, longestPauseMs, nowMs } from "./load.ts";
import { compareReplicas } from "./replicas.ts";

const MIB = 1024 * 1024;
const DISK_BYTES = 128 * MIB;
/** How long a cluster that was mended may take until all copies are there again: a node that kept failing is held back. */
const MEND_TIMEOUT_MS = 400_000;

/** How to thrash. */
export interface ThrashOptions {
  readonly seed: number;
  /** Milliseconds of changes. */
  readonly durationMs: number;
  /** Milliseconds from one change to the next. */
  readonly everyMs: number;
  readonly hosts?: number;
  readonly say: (text: string) => void;
}

/** What came out; every other end is an error. */
export interface ThrashResult {
  readonly changes: number;
  readonly writes: number;
  readonly reads: number;
  readonly flushes: number;
  /** Longest wait of any request, in milliseconds. */
  readonly longestMs: number;
  /** From the last repair to all copies, in milliseconds. */
  readonly mendedMs: number;
  readonly blocks: number;
}

interface Change {
  readonly name: string;
  readonly weight: number;
  run(): Promise<void>;
}

class Thrasher {
  readonly #random: Prng;
  readonly #unplugged = new Set<Host>();
  readonly #deaf = new Map<Host, Host>();
  /** Index of the host at which each load is. */
  readonly #places: number[];

  constructor(
    readonly options: ThrashOptions,
    readonly hosts: Hosts,
    readonly loads: readonly Load[],
  ) {
    this.#random = new Prng(options.seed);
    this.#places = loads.map((_, index) => index);
  }

  #pick<T>(list: readonly T[]): T {
    return list[this.#random.below(list.length)];
  }

  /** What can be done now. */
  #changes(): Change[] {
    const { list, network } = this.hosts;
    const up = list.filter(({ agent }) => agent !== null);
    const down = list.filter(({ agent }) => agent === null);
    const changes: Change[] = [];
    const add = (name: string, weight: number, run: () => Promise<void>) =>
      changes.push({ name, weight, run });
    for (const host of up) {
      add(`kill -9 of ${host.name}`, down.length === 0 ? 4 : 1, () => host.kill());
      add(`a clean stop of ${host.name}`, down.length === 0 ? 2 : 0.3, () => stop(host));
      add(`${host.name} hangs now and then`, 1, () => this.#stutter(host));
    }
    for (const host of down) {
      add(`a start of ${host.name}`, 12, async () => void await host.launch());
    }
    add("kill -9 of all, and their start", 0.7, async () => {
      await this.hosts.killAll();
      for (const host of list) await host.launch();
    });
    for (const [index, load] of this.loads.entries()) {
      const to = this.#pick(list);
      const isSame = list[this.#places[index]] === to;
      if (isSame) continue;
      add(`load ${index + 1} goes to ${to.name}`, 1, async () => {
        this.#places[index] = list.indexOf(to);
        await load.attach(to.socket(diskOf(index)));
      });
    }
    if (network !== "namespaces") return changes;
    for (const host of list) {
      if (this.#unplugged.has(host)) {
        add(`the cable of ${host.name} is in again`, 12, async () => {
          this.#unplugged.delete(host);
          await host.plugIn();
        });
        continue;
      }
      add(`the cable of ${host.name} is out`, this.#unplugged.size === 0 ? 3 : 0.5, async () => {
        this.#unplugged.add(host);
        await host.unplug();
      });
      const to = this.#deaf.get(host);
      if (to !== undefined) {
        add(`${to.name} hears ${host.name} again`, 8, async () => {
          this.#deaf.delete(host);
          await host.heal(to);
        });
      } else {
        const other = this.#pick(list.filter((each) => each !== host));
        add(`${other.name} does not hear ${host.name} any more`, 1.5, async () => {
          this.#deaf.set(host, other);
          await host.deafen(other);
        });
      }
    }
    return changes;
  }

  async #stutter(host: Host): Promise<void> {
    for (let burst = 0; burst < 6; burst++) {
      host.freeze();
      await sleep(50 + this.#random.below(400));
      host.thaw();
      await sleep(50 + this.#random.below(200));
    }
  }

  /** Makes one random change; says which. */
  async change(): Promise<string> {
    const changes = this.#changes();
    let at = this.#random.fraction() * changes.reduce((sum, { weight }) => sum + weight, 0);
    const change = changes.find(({ weight }) => (at -= weight) < 0) ?? changes[0];
    await change.run();
    return change.name;
  }

  /** Mends everything that is broken. */
  async mend(): Promise<void> {
    for (const host of this.#unplugged) await host.plugIn();
    for (const [host, to] of this.#deaf) await host.heal(to);
    this.#unplugged.clear();
    this.#deaf.clear();
    for (const host of this.hosts.list) if (host.agent === null) await host.launch();
  }
}

const sleep = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));
const diskOf = (index: number) => `disk${index + 1}`;

/** A stop that may take its time where nobody can be told of it. */
async function stop(host: Host): Promise<void> {
  await host.stop();
}

/**
 * Runs it.
 *
 * @throws Error that names what was wrong, with the agents' logs
 */
export async function thrash(options: ThrashOptions): Promise<ThrashResult> {
  const { say } = options;
  await using hosts = await Hosts.make({ count: options.hosts ?? 3, capacity: "1G" });
  await hosts.startAll();
  const first = hosts.host(1).running;
  const loads: Load[] = [];
  try {
    for (let index = 0; index < 2; index++) {
      await first.check("disk", "create", diskOf(index), `${DISK_BYTES}`);
      loads.push(
        await Load.start({
          socket: hosts.list[index % hosts.list.length].socket(diskOf(index)),
          sizeBytes: DISK_BYTES,
          seed: options.seed + index,
          places: 12,
          ratePerSecond: 150,
        }),
      );
    }
    await hosts.untilWhole();
    say(`${hosts.list.length} hosts in ${hosts.network}, seed ${options.seed}`);
    return await run(options, hosts, loads);
  } catch (error) {
    throw new Error(`${(error as Error).stack}\n${hosts.lastLogs(6000)}`);
  } finally {
    for (const load of loads) await load[Symbol.asyncDispose]();
  }
}

async function run(
  options: ThrashOptions,
  hosts: Hosts,
  loads: readonly Load[],
): Promise<ThrashResult> {
  const { say } = options;
  const thrasher = new Thrasher(options, hosts, loads);
  const startMs = nowMs();
  let changes = 0;
  while (nowMs() - startMs < options.durationMs) {
    const began = nowMs();
    const what = await thrasher.change();
    changes++;
    const reports = await Promise.all(loads.map((load) => load.report()));
    say(`${what}; ${reports.map(({ writes }) => writes).join(" and ")} writes so far`);
    failOn(reports);
    await sleep(Math.max(0, options.everyMs - (nowMs() - began)));
  }
  say("everything is mended");
  const mendMs = nowMs();
  await thrasher.mend();
  await hosts.untilWhole({ timeoutMs: MEND_TIMEOUT_MS });
  const mendedMs = nowMs() - mendMs;
  const before = await Promise.all(loads.map((load) => load.report()));
  await until(async () => {
    const now = await Promise.all(loads.map((load) => load.report()));
    return now.every(({ writes }, index) => writes > before[index].writes + 20);
  }, { timeoutMs: 30_000, intervalMs: 100, what: () => "the loads do not go on" });
  for (const [index, load] of loads.entries()) {
    await load.drain();
    const seen: string[] = [];
    for (const host of hosts.list) {
      seen.push((await load.readAll(host.readOnlySocket(diskOf(index)))).join());
    }
    if (new Set(seen).size > 1) throw new Error(`${diskOf(index)} differs from host to host`);
    await load.close();
  }
  const reports = await Promise.all(loads.map((load) => load.report()));
  failOn(reports);
  for (const host of hosts.list) await host.stop();
  const { blocks } = compareReplicas(hosts.list.map((host) => `${host.dataDir}/kelpie.store`));
  const sum = (of: "writes" | "reads" | "flushes") =>
    reports.reduce((total, report) => total + report[of], 0);
  return {
    changes,
    writes: sum("writes"),
    reads: sum("reads"),
    flushes: sum("flushes"),
    longestMs: Math.max(...reports.map((report) => longestPauseMs(report, startMs))),
    mendedMs,
    blocks,
  };
}

function failOn(reports: readonly { errors: string[]; violations: string[] }[]): void {
  const wrong = reports.flatMap(({ errors, violations }) => [...errors, ...violations]);
  if (wrong.length > 0) throw new Error(wrong.join("\n"));
}
