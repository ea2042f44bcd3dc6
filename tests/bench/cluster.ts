/**
 * `./dev bench:cluster`: three agents on loopback beside one agent alone, in one run, in turn, on the same file system.
 *
 *     ./dev bench:cluster [--disk MIB] [--seconds N] [--repetitions N] [--only PATTERN,…] [--dir DIR]
 *                         [--against CHECKOUT] [--recovery] [--threads] [--v8-flags FLAGS]
 *
 * Agents run from source. `--against` adds another checkout's agents to every row: the only way to tell a change from what
 * else happens on the machine. `--recovery` kills an agent while its disk is written, and measures how it catches up. `--threads`
 * tells for each row what each thread of each agent used. The table goes to standard output, progress to standard error; targets are
 * reported, not asserted.
 *
 * @module
 */
import { parseArgs } from "node:util";
import { AdminClient } from "../../agent/admin_client.ts";
import { formatClusterSecret } from "../../agent/cluster_secret.ts";
import { CONFIG_DEFAULT } from "../../agent/config.ts";
import { pgOf } from "../../agent/map/hash.ts";
import { benchExitCode, type BenchOptions, type BenchResult } from "../../cli/bench.ts";
import { until, within } from "../guest/deadline.ts";
import { find } from "../guest/install.ts";
import type { AgentOrder, AgentView } from "./cluster_agent.ts";
import type { FromLoadWorker, ToLoadWorker } from "./load_worker.ts";
import { cpuMs, machine, pause, syncFileSystem, writeZeros } from "./machine.ts";
import { median } from "./report.ts";

const KiB = 1024, MiB = 1024 * KiB;
const ROOT = decodeURIComponent(new URL("../..", import.meta.url).pathname);
/** Where the first agent listens; each takes a UDP and two TCP ports. */
const PORT_FIRST = 17460;
const START_TIMEOUT_MS = 60_000;
/** Until every copy is where it shall be, of a disk that is empty. */
const PLACED_TIMEOUT_MS = 120_000;
/** Until a member that was away has caught up. */
const RECOVERED_TIMEOUT_MS = 300_000;
const CHUNK_BYTES = 4 * MiB;
/** Requests of each kind before anything is measured. */
const WARM_OPERATIONS = 20_000;
const IDLE_MS = 3000;
/** A store needs room to spare, as any log. */
const STORE_SHARE = 2.5;

/** One row of the table. */
interface Row {
  readonly name: string;
  readonly load: Pick<BenchOptions, "rw" | "blockBytes" | "depth" | "flushEvery">;
  /** Least part of the one-host rate; null where none is promised. */
  readonly target: number | null;
  /** Only of chunks without a replica on the node that reads. */
  readonly isRemote?: boolean;
}

const ROWS: readonly Row[] = [
  row("randread", 4, 1, 0.9),
  row("randread", 4, 32, 0.9),
  { ...row("randread", 4, 1, 0.3), name: "randread 4K d1 remote", isRemote: true },
  { ...row("randread", 4, 32, null), name: "randread 4K d32 remote", isRemote: true },
  row("write", 1024, 4, null),
  row("randwrite", 64, 8, 0.25),
  row("randwrite", 4, 1, 0.35),
  row("randwrite", 4, 8, null),
  row("randwrite", 4, 32, 0.2),
  {
    name: "randwrite 4K d8 flush/32",
    load: { rw: "randwrite", blockBytes: 4 * KiB, depth: 8, flushEvery: 32 },
    target: null,
  },
];

function row(rw: BenchOptions["rw"], kibibytes: number, depth: number, target: number | null): Row {
  const size = kibibytes < 1024 ? `${kibibytes}K` : `${kibibytes / 1024}M`;
  return {
    name: `${rw} ${size} d${depth}`,
    load: { rw, blockBytes: kibibytes * KiB, depth },
    target,
  };
}

/** An agent's process. */
class AgentProcess implements AsyncDisposable {
  readonly #lines: ReadableStreamDefaultReader<string>;
  readonly #writer: WritableStreamDefaultWriter<Uint8Array>;
  #answer = expectation();

  private constructor(
    readonly order: AgentOrder,
    readonly process: Deno.ChildProcess,
  ) {
    this.#lines = process.stdout.pipeThrough(new TextDecoderStream()).pipeThrough(linesOf())
      .getReader();
    this.#writer = process.stdin.getWriter();
    void this.#listen();
  }

  static async start(order: AgentOrder): Promise<AgentProcess> {
    const script = new URL("cluster_agent.ts", import.meta.url).pathname;
    const command = [Deno.execPath(), "run", "-A", "--no-check"];
    if (values["v8-flags"] !== undefined) command.push(`--v8-flags=${values["v8-flags"]}`);
    command.push("--config", `${ROOT}deno.json`, script, JSON.stringify(order));
    // It dies with this process.
    const setpriv = find("setpriv");
    if (setpriv !== undefined) command.unshift(setpriv, "--pdeathsig", "KILL", "--");
    const process = new Deno.Command(command[0], {
      args: command.slice(1),
      stdin: "piped",
      stdout: "piped",
      stderr: "inherit",
    }).spawn();
    const agent = new AgentProcess(order, process);
    await agent.#next();
    return agent;
  }

  get pid(): number {
    return this.process.pid;
  }

  get runDir(): string {
    return this.order.config.runDir;
  }

  /** Reads all that it says as it says it: a full pipe would stop it. */
  async #listen(): Promise<void> {
    for (;;) {
      const { value, done } = await this.#lines.read();
      if (done) break;
      // The rest is what --v8-flags made the runtime write.
      if (/^["{]/.test(value)) this.#answer.resolve(JSON.parse(value));
      else if (value !== "") console.error(value);
    }
    this.#answer.reject(new Error(`the agent in ${this.runDir} has ended`));
  }

  /** Its next answer. */
  async #next(): Promise<unknown> {
    const value = await within(this.#answer.promise, START_TIMEOUT_MS, () => this.runDir);
    this.#answer = expectation();
    return value;
  }

  /** Its view of the cluster. */
  async view(): Promise<AgentView> {
    await this.#writer.write(new Uint8Array([10]));
    return await this.#next() as AgentView;
  }

  kill(signal: Deno.Signal = "SIGKILL"): void {
    try {
      this.process.kill(signal);
    } catch {
      // It has ended already.
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.kill();
    await this.process.status;
    await this.#lines.cancel().catch(() => {});
    await this.#writer.abort().catch(() => {});
  }
}

/** An answer that may never be asked for. */
function expectation(): PromiseWithResolvers<unknown> {
  const resolvers = Promise.withResolvers<unknown>();
  resolvers.promise.catch(() => {});
  return resolvers;
}

function linesOf(): TransformStream<string, string> {
  let rest = "";
  return new TransformStream({
    transform(text, controller) {
      const parts = (rest + text).split("\n");
      rest = parts.pop()!;
      for (const part of parts) controller.enqueue(part);
    },
  });
}

/** Runs loads, one at a time, always on the same thread: the runtime has compiled them there. */
class Loads {
  readonly #worker = new Worker(new URL("load_worker.ts", import.meta.url), { type: "module" });

  /** Ends early when the signal says so, with what was measured until then. Throws when there is nothing to show. */
  async run({ signal, ...options }: BenchOptions): Promise<BenchResult> {
    const answer = Promise.withResolvers<BenchResult>();
    this.#worker.onmessage = ({ data }: MessageEvent<FromLoadWorker>) => {
      if ("error" in data) answer.reject(new Error(data.error));
      else answer.resolve(data.result);
    };
    this.#worker.onerror = (event) => answer.reject(new Error(event.message));
    const stop = () => this.#say("stop");
    signal?.addEventListener("abort", stop);
    this.#say({ options });
    return await answer.promise.finally(() => signal?.removeEventListener("abort", stop));
  }

  #say(message: ToLoadWorker): void {
    this.#worker.postMessage(message);
  }
}

const loads = new Loads();

/** Agents of one checkout that are one cluster. */
class Side implements AsyncDisposable {
  readonly agents: AgentProcess[] = [];
  /** CPU of every thread of every agent at the last look. */
  readonly rates = new Map<string, number[]>();
  readonly cpu = new Map<string, number[]>();
  readonly p99 = new Map<string, number[]>();
  readonly worst = new Map<string, number[]>();
  #remote: { offsetBytes: number; sizeBytes: number } | null = null;

  constructor(
    readonly name: string,
    readonly root: string,
    readonly hosts: number,
    readonly dir: string,
    readonly port: number,
    readonly diskBytes: number,
  ) {}

  async start(): Promise<void> {
    const storeBytes = Math.ceil(this.diskBytes * STORE_SHARE + 1024 * MiB);
    for (let i = 0; i < this.hosts; i++) {
      const data = `${this.dir}/${this.name}${i}`;
      await Deno.mkdir(data);
      await writeZeros(`${data}/kelpie.store`, Math.ceil(this.diskBytes * 1.5 + 512 * MiB));
      this.agents.push(await AgentProcess.start(this.#order(i, data, storeBytes)));
    }
    using client = new AdminClient({ runDir: this.agents[0].runDir });
    const copies = Math.min(3, this.hosts);
    await client.createDisk({ name: "bench", sizeBytes: this.diskBytes, copies });
    if (this.hosts > 1) {
      await client.createDisk({ name: "single", sizeBytes: this.diskBytes, copies: 1 });
    }
    await this.placed(PLACED_TIMEOUT_MS);
  }

  #order(i: number, data: string, storeBytes: number): AgentOrder {
    return {
      root: this.root,
      config: {
        ...CONFIG_DEFAULT,
        dataPaths: [data],
        capacityBytes: storeBytes,
        runDir: `${this.dir}/run-${this.name}${i}`,
        cache: "buffered",
        logLevel: "warn",
        logFormat: "text",
        scrubRateBytes: 0,
        adopt: false,
        acceptDamage: false,
        listen: `127.0.0.1:${this.port + 10 * i}`,
        secretFile: `${this.dir}/secret`,
        join: i === 0 ? [] : [`127.0.0.1:${this.port}`],
        name: `host-${i}`,
      },
    };
  }

  /** Starts an agent again that was killed. */
  async restart(i: number): Promise<void> {
    this.agents[i] = await AgentProcess.start({
      ...this.agents[i].order,
      config: { ...this.agents[i].order.config, join: [] },
    });
  }

  /** Waits until every copy of every disk is where it shall be. */
  async placed(timeoutMs: number): Promise<void> {
    let missing = "";
    await until(async () => {
      const view = await this.agents[0].view();
      missing = unplaced(view, this.hosts);
      return missing === "";
    }, { timeoutMs, intervalMs: 50, what: () => missing });
  }

  get socket(): string {
    return `${this.agents[0].runDir}/bench.sock`;
  }

  cpuMs(): number {
    return this.agents.reduce((sum, { pid }) => sum + cpuMs(pid), 0);
  }

  /** Runs a load, all of which must succeed. */
  async load(
    pattern: Row["load"],
    settings: Partial<BenchOptions>,
    isRemote = false,
  ): Promise<BenchResult> {
    const single = isRemote && this.hosts > 1;
    const part = single ? await this.#remotePart() : {};
    const socket = single ? `${this.agents[0].runDir}/single.sock` : this.socket;
    const result = await loads.run({ socket, queues: 1, ...pattern, ...part, ...settings });
    if (benchExitCode(result) !== 0) {
      const reason = result.failure?.message ?? result.messages[0];
      throw new Error(`${this.name}: ${pattern.rw} failed: ${reason}`);
    }
    return result;
  }

  /** The longest run of chunks of the disk with one copy that are not on the first host; written once. */
  async #remotePart(): Promise<{ offsetBytes: number; sizeBytes: number }> {
    if (this.#remote !== null) return this.#remote;
    const view = await this.agents[0].view();
    const self = view.nodes!.find(({ name }) => name === "host-0")!.id;
    const disk = view.disks.find(({ name }) => name === "single")!;
    const pgs = view.pools.find(({ copies }) => copies === 1)!.pgs;
    let best = { first: 0, count: 0 }, first = 0;
    const chunks = Math.floor(this.diskBytes / CHUNK_BYTES);
    for (let chunk = 0; chunk < chunks; chunk++) {
      if (pgs[pgOf(disk.family, chunk, pgs.length)].inSync.includes(self)) first = chunk + 1;
      else if (chunk + 1 - first > best.count) best = { first, count: chunk + 1 - first };
    }
    const { count } = best;
    const part = { offsetBytes: best.first * CHUNK_BYTES, sizeBytes: count * CHUNK_BYTES };
    this.#remote = part;
    await this.load(
      { rw: "write", blockBytes: MiB, depth: 4 },
      { count: part.sizeBytes / MiB },
      true,
    );
    return part;
  }

  /** CPU per thread since the start, in ms, by `agent/thread`. */
  threads(): Map<string, number> {
    const used = new Map<string, number>();
    this.agents.forEach(({ pid }, i) => {
      for (const { name: thread } of Deno.readDirSync(`/proc/${pid}/task`)) {
        try {
          const task = `/proc/${pid}/task/${thread}`;
          const name = Deno.readTextFileSync(`${task}/comm`).trim();
          const [ns] = Deno.readTextFileSync(`${task}/schedstat`).split(" ");
          used.set(`${i}/${name}/${thread}`, Number(ns) / 1e6);
        } catch {
          // It has ended.
        }
      }
    });
    return used;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const agent of this.agents) await agent[Symbol.asyncDispose]();
  }
}

/** What is not where it shall be, in words; empty: nothing. */
function unplaced(view: AgentView, hosts: number): string {
  // A version without clusters serves at once.
  if (view.nodes === undefined) return "";
  const up = view.nodes.filter(({ state }) => state === "up").length;
  if (up < hosts) return `${up} of ${hosts} nodes are up`;
  for (const { copies, pgs } of view.pools) {
    for (const pg of pgs) {
      const isPlaced = pg.inSync.length === Math.min(copies, hosts) && pg.joining.length === 0 &&
        pg.unclean.length === 0 && !pg.unsettled && pg.target.length === pg.inSync.length;
      if (!isPlaced) {
        return `a group of ${copies} copies is in sync on ${pg.inSync}, and joined by ${pg.joining}`;
      }
    }
  }
  return view.disks.every(({ copies }) => view.pools.some((pool) => pool.copies === copies))
    ? ""
    : "a disk has no groups yet";
}

function say(text: string): void {
  console.error(`bench: ${text}`);
}

const { values } = parseArgs({
  options: {
    disk: { type: "string", default: "1024" },
    seconds: { type: "string", default: "2" },
    repetitions: { type: "string", default: "3" },
    only: { type: "string", default: "" },
    dir: { type: "string", default: "/var/tmp" },
    against: { type: "string" },
    recovery: { type: "boolean", default: false },
    threads: { type: "boolean", default: false },
    "v8-flags": { type: "string" },
  },
});

/** Measures one row: all repetitions, the sides in turn. */
async function measure(sides: readonly Side[], { name, load, isRemote }: Row): Promise<void> {
  for (let repetition = 0; repetition < Number(values.repetitions); repetition++) {
    for (const side of repetition % 2 === 0 ? sides : sides.toReversed()) {
      await settle(sides);
      const before = side.cpuMs(), threads = side.threads();
      const settings = { seconds: Number(values.seconds), seed: repetition + 1 };
      const result = await side.load(load, settings, isRemote);
      const cpuSeconds = (side.cpuMs() - before) / result.operations;
      note(side.rates, name, result.iops);
      note(side.cpu, name, cpuSeconds);
      note(side.p99, name, result.latencyUs.all.p99);
      note(side.worst, name, result.latencyUs.all.max);
      const { p50, p99, max } = result.latencyUs.all;
      say(
        `${name}, ${side.name}: ${result.iops.toFixed(0)}/s, ${cpuSeconds.toFixed(4)} s/1000, ` +
          `p50 ${p50.toFixed(0)} p99 ${p99.toFixed(0)} max ${max.toFixed(0)} µs`,
      );
      if (!values.threads) continue;
      for (const [thread, ms] of side.threads()) {
        const used = ms - (threads.get(thread) ?? 0);
        const percent = used / result.seconds / 10;
        if (percent >= 2) say(`    ${side.name}${thread}: ${percent.toFixed(0)} %`);
      }
    }
  }
}

/** What a side at rest uses. */
async function idle(side: Side): Promise<void> {
  await settle([side]);
  await pause(1000);
  const before = side.cpuMs(), threads = side.threads(), startMs = performance.now();
  await pause(IDLE_MS);
  const passedMs = performance.now() - startMs;
  const percent = 100 * (side.cpuMs() - before) / passedMs;
  console.log(`${side.name} at rest: ${percent.toFixed(1)} % of a core`);
  if (!values.threads) return;
  for (const [thread, ms] of side.threads()) {
    const used = 100 * (ms - (threads.get(thread) ?? 0)) / passedMs;
    if (used >= 0.1) say(`    ${side.name}${thread}: ${used.toFixed(1)} %`);
  }
}

function note(figures: Map<string, number[]>, name: string, value: number): void {
  const list = figures.get(name);
  if (list === undefined) figures.set(name, [value]);
  else list.push(value);
}

async function settle(sides: readonly Side[]): Promise<void> {
  await syncFileSystem(sides[0].dir);
  await pause(200);
}

/** The table: rates, the part of the one-host rate, CPU. */
function table(rows: readonly Row[], sides: readonly Side[]): string {
  const head = ["pattern"];
  for (const side of sides) {
    head.push(side.name, side === sides[0] ? "" : "ratio", "s/1000", "p99 µs");
  }
  head.push("target");
  const lines = [head];
  for (const { name, target } of rows) {
    const first = median(sides[0].rates.get(name)!);
    const line = [name];
    for (const side of sides) {
      const rate = median(side.rates.get(name)!);
      const ratio = side === sides[0] ? "" : `${(rate / first).toFixed(2)}×`;
      line.push(rate.toFixed(0), ratio, median(side.cpu.get(name)!).toFixed(4));
      line.push(median(side.p99.get(name)!).toFixed(0));
    }
    line.push(target === null ? "" : `${target}×`);
    lines.push(line);
  }
  const widths = head.map((_, i) => Math.max(...lines.map((line) => line[i].length)));
  return lines.map((line) => line.map((cell, i) => cell.padEnd(widths[i])).join("  ")).join("\n");
}

/** Kills the last agent, writes meanwhile, starts it again, and sees how it catches up. */
async function recovery(side: Side): Promise<void> {
  const last = side.hosts - 1;
  const fill = { rw: "write", blockBytes: MiB, depth: 4 } as const;
  const count = side.diskBytes / MiB;
  const start = performance.now();
  await side.load(fill, { count });
  await syncFileSystem(side.dir);
  const writeRate = count / (performance.now() - start) * 1000;
  say(
    `${side.name}: the disk is written at ${
      writeRate.toFixed(0)
    } MiB/s, synced, by ${side.hosts} hosts`,
  );
  const alone = await side.load({ rw: "randwrite", blockBytes: 4 * KiB, depth: 8 }, { seconds: 2 });
  for (const withGuest of [false, true]) {
    await side.agents[last][Symbol.asyncDispose]();
    await side.load(fill, { count, stallTimeoutMs: 60_000 });
    const startedMs = performance.now();
    await side.restart(last);
    const readyMs = performance.now();
    let isDone = false;
    let guest: Promise<BenchResult> | null = null;
    const stop = new AbortController();
    if (withGuest) {
      const load = { rw: "randwrite", blockBytes: 4 * KiB, depth: 8 } as const;
      guest = side.load(load, { seconds: 300, signal: stop.signal, stallTimeoutMs: 60_000 });
    }
    await side.placed(RECOVERED_TIMEOUT_MS).finally(() => isDone = true);
    const endMs = performance.now();
    stop.abort();
    const during = await guest;
    const rate = count / (endMs - readyMs) * 1000;
    const guestText = during === null
      ? "guests idle"
      : `a guest's randwrite 4K d8 at ${during.iops.toFixed(0)}/s, ${
        (during.iops / alone.iops).toFixed(2)
      }× of ` +
        `${alone.iops.toFixed(0)}, p99 ${during.latencyUs.all.p99.toFixed(0)} µs`;
    console.log(
      `${side.name}: caught up with ${count} MiB at ${rate.toFixed(0)} MiB/s (${
        ((endMs - readyMs) / 1000).toFixed(1)
      } s ` +
        `after a start of ${
          ((readyMs - startedMs) / 1000).toFixed(1)
        } s), ${guestText}; done: ${isDone}`,
    );
  }
  // A few writes only.
  await side.agents[last][Symbol.asyncDispose]();
  await side.load({ rw: "randwrite", blockBytes: 4 * KiB, depth: 1 }, {
    count: 10,
    stallTimeoutMs: 60_000,
  });
  await side.restart(last);
  const readyMs = performance.now();
  await side.placed(RECOVERED_TIMEOUT_MS);
  console.log(
    `${side.name}: in sync ${
      ((performance.now() - readyMs) / 1000).toFixed(2)
    } s after a start, 10 writes behind`,
  );
}

async function main(): Promise<void> {
  const here = machine();
  const diskBytes = Number(values.disk) * MiB;
  const dir = await Deno.makeTempDir({ dir: values.dir, prefix: "kelpie-cluster-" });
  const secret = formatClusterSecret(crypto.getRandomValues(new Uint8Array(32)));
  await Deno.writeTextFile(`${dir}/secret`, `${secret}\n`, { mode: 0o600 });
  Deno.addSignalListener("SIGINT", () => {
    Deno.removeSync(dir, { recursive: true });
    Deno.exit(130);
  });
  await using sides = new AsyncDisposableStack();
  sides.defer(() => Deno.remove(dir, { recursive: true }));
  let port = PORT_FIRST;
  const start = async (name: string, root: string, hosts: number) => {
    say(`starting ${name}`);
    const side = new Side(name, root, hosts, dir, port, diskBytes);
    port += 100;
    sides.use(side);
    await side.start();
    return side;
  };
  const all = [await start("one", ROOT, 1), await start("three", ROOT, 3)];
  if (values.against !== undefined) {
    const root = await Deno.realPath(values.against);
    all.push(await start("one-other", root, 1));
    const hasCluster = find(`${root}/agent/cluster_node.ts`) !== undefined ||
      await Deno.stat(`${root}/agent/cluster_node.ts`).then(() => true, () => false);
    if (hasCluster) all.push(await start("three-other", root, 3));
  }
  const rows = ROWS.filter(({ name }) =>
    values.only.split(",").some((part) => name.includes(part))
  );
  const fill = { rw: "write", blockBytes: MiB, depth: 4 } as const;
  for (const side of all) {
    await side.load(fill, { count: diskBytes / MiB });
    // Until the runtime has compiled what is measured: a cluster does less a second, and so takes longer.
    for (const rw of ["randread", "randwrite"] as const) {
      await side.load({ rw, blockBytes: 4 * KiB, depth: 32 }, { count: WARM_OPERATIONS });
    }
  }
  for (const side of all) await idle(side);
  for (const each of rows) await measure(all, each);
  const setting =
    `${here.count} × ${here.processors}, ${here.memoryGiB} GiB, Linux ${here.kernel}; ` +
    `disk ${values.disk} MiB in ${values.dir}, ${values.repetitions} × ${values.seconds} s, medians`;
  if (rows.length > 0) console.log(`\n${table(rows, all)}\n\n${setting}\n`);
  if (values.recovery) { for (const side of all) if (side.hosts > 1) await recovery(side); }
}

if (import.meta.main) {
  try {
    await main();
    Deno.exit(0); // the listener would keep the process
  } catch (error) {
    say(error instanceof Error ? error.stack ?? error.message : String(error));
    Deno.exit(1);
  }
}
