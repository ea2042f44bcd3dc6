/**
 * `./dev bench`: Kelpie beside `qemu-storage-daemon`, in one run, in turn, on the same file system.
 *
 *     ./dev bench [--quick] [--cache buffered|direct|both] [--json] [--dir DIR] [--binary PATH]
 *                 [--seconds N] [--repetitions N] [--only PATTERN]
 *
 * The table goes to standard output, progress to standard error. The exit code is 0 unless something broke: targets
 * are reported, not asserted, since a shared machine can miss any of them. How the figures come about is
 * told with them (`bench/report.ts`), the patterns and their order are in `bench/plan.ts`.
 *
 * @module
 */
import { parseArgs } from "node:util";
import { resolve } from "node:path";
import { CACHE_MODES, type CacheMode, formatSize } from "../agent/config.ts";
import { benchExitCode, type BenchResult, runBench } from "../cli/bench.ts";
import {
  availableMemoryBytes,
  cpuMs,
  dropCache,
  fileSystem,
  machine,
  pause,
  residentBytes,
  settle,
  writeZeros,
} from "./bench/machine.ts";
import {
  type Cell,
  CELLS,
  FULL,
  neededBytes,
  PREWRITE,
  QUICK,
  type Scale,
  SCATTER,
} from "./bench/plan.ts";
import {
  type CellFigures,
  cellFigures,
  type IdleFigures,
  median,
  METHOD,
  type ModeFigures,
  notesOf,
  type SideFigures,
  tableOf,
} from "./bench/report.ts";
import { AgentServer, type Server, startStorageDaemon } from "./bench/servers.ts";
import { ensurePackages } from "./guest/install.ts";

/** What the page cache should hold besides the two disks, in bytes. */
const MEMORY_TO_SPARE = 2 * 1024 ** 3;

interface Options {
  readonly scale: Scale;
  readonly modes: readonly CacheMode[];
  readonly json: boolean;
  readonly dir: string;
  readonly binary: string | undefined;
  readonly cells: readonly Cell[];
}

function parseOptions(): Options {
  const { values } = parseArgs({
    args: Deno.args,
    options: {
      quick: { type: "boolean", default: false },
      cache: { type: "string", default: "buffered" },
      json: { type: "boolean", default: false },
      dir: { type: "string", default: "/var/tmp" },
      binary: { type: "string" },
      seconds: { type: "string" },
      repetitions: { type: "string" },
      only: { type: "string" },
    },
  });
  const usual = values.quick ? QUICK : FULL;
  const scale = {
    ...usual,
    seconds: positive("--seconds", values.seconds, usual.seconds),
    repetitions: Math.ceil(positive("--repetitions", values.repetitions, usual.repetitions)),
  };
  const modes = values.cache === "both"
    ? CACHE_MODES
    : CACHE_MODES.filter((mode) => mode === values.cache);
  if (modes.length === 0) throw new Error("--cache is buffered, direct or both");
  const { only, binary, json } = values;
  const cells = CELLS.filter(({ name }) => only === undefined || name.includes(only));
  if (cells.length === 0) {
    throw new Error(`--only fits none of: ${CELLS.map(({ name }) => name).join("; ")}`);
  }
  // Relative paths are the caller's, not the checkout's.
  const base = Deno.env.get("INIT_CWD") ?? Deno.cwd();
  return {
    scale,
    modes,
    json,
    dir: resolve(base, values.dir),
    binary: binary && resolve(base, binary),
    cells,
  };
}

function positive(name: string, text: string | undefined, usual: number): number {
  const value = text === undefined ? usual : Number(text);
  if (!(value > 0)) throw new Error(`${name} ${text}: must be a number above 0`);
  return value;
}

function say(text: string): void {
  console.error(`bench: ${text}`);
}

/** What a run needs of the machine, checked before anything is written. */
async function checkMachine({ dir, scale }: Options): Promise<string> {
  const { freeBytes, type } = await fileSystem(dir);
  const needed = neededBytes(scale);
  if (freeBytes < needed) {
    throw new Error(
      `${dir} has ${formatSize(freeBytes)} free, and ${formatSize(needed)} are needed: ` +
        "name another directory with --dir, or use --quick",
    );
  }
  if (type === "tmpfs") say(`${dir} is in memory (tmpfs): the figures say nothing about a disk`);
  if (availableMemoryBytes() < 2 * scale.diskBytes + MEMORY_TO_SPARE) {
    say("the page cache cannot hold both disks: buffered reads will measure the disk below");
  }
  await ensurePackages(["qemu-storage-daemon"]);
  return type;
}

/** Both sides, in turn. */
class Contest {
  /** CPU that each has used in timed parts, in ms. */
  readonly #timedMs = { qsd: 0, kelpie: 0 };
  readonly #servers: readonly Server[];

  constructor(
    readonly qsd: Server,
    readonly kelpie: Server,
    readonly scale: Scale,
    readonly dir: string,
  ) {
    this.#servers = [qsd, kelpie];
  }

  /** Writes both disks once in full. */
  async prewrite(): Promise<void> {
    for (const server of this.#servers) {
      say(`writing ${formatSize(this.scale.diskBytes)} to ${server.name}`);
      await load(server, PREWRITE, { count: this.scale.diskBytes / PREWRITE.blockBytes });
      await this.#settle();
    }
  }

  /** Writes both disks at random for as long as a pattern takes. */
  async scatter(): Promise<void> {
    for (const server of this.#servers) {
      await load(server, SCATTER, { seconds: this.scale.seconds });
    }
  }

  /** Waits until the file system is synced and both sides are at rest. */
  async #settle(): Promise<void> {
    await settle(this.dir, this.#servers.map(({ pid }) => pid));
  }

  /** Measures one pattern: all repetitions, the sides in turn. */
  async measure(cell: Cell): Promise<CellFigures> {
    const results = { qsd: [] as BenchResult[], kelpie: [] as BenchResult[] };
    for (let repetition = 0; repetition < this.scale.repetitions; repetition++) {
      const order = repetition % 2 === 0 ? this.#servers : this.#servers.toReversed();
      for (const server of order) {
        await this.#settle();
        const before = cpuMs(server.pid);
        // The same addresses and data for both, others in each repetition.
        const settings = { seconds: this.scale.seconds, seed: repetition + 1 };
        results[server.name].push(await load(server, cell.load, settings));
        this.#timedMs[server.name] += cpuMs(server.pid) - before;
      }
    }
    const figures = cellFigures(cell, sideFigures(results.qsd), sideFigures(results.kelpie));
    const { name, qsd, kelpie, ratio } = figures;
    say(
      `${name}: qsd ${qsd.iops.toFixed(0)}, kelpie ${kelpie.iops.toFixed(0)}, ${ratio.toFixed(2)}x`,
    );
    return figures;
  }

  /** CPU that a side has used outside the timed parts. */
  untimedCpuSeconds({ name, pid }: Server): number {
    return (cpuMs(pid) - this.#timedMs[name]) / 1000;
  }

  /** The agent at rest. */
  async idle(): Promise<IdleFigures> {
    await this.#settle();
    const { pid } = this.kelpie;
    const [beforeMs, startMs] = [cpuMs(pid), performance.now()];
    await pause(this.scale.idleSeconds * 1000);
    const cpuPercent = 100 * (cpuMs(pid) - beforeMs) / (performance.now() - startMs);
    const { all, anonymous } = residentBytes(pid);
    return { cpuPercent, residentMiB: all / 1024 ** 2, anonymousMiB: anonymous / 1024 ** 2 };
  }
}

/** Runs a load, all of which must succeed. */
async function load(
  server: Server,
  pattern: Cell["load"],
  settings: { seconds?: number; count?: number; seed?: number },
): Promise<BenchResult> {
  const result = await runBench({ socket: server.socket, queues: 1, ...pattern, ...settings });
  if (benchExitCode(result) !== 0) {
    const reason = result.failure?.message ?? result.messages[0];
    throw new Error(`${server.name}: ${pattern.rw} failed: ${reason}`);
  }
  return result;
}

function sideFigures(results: readonly BenchResult[]): SideFigures {
  const middle = (value: (result: BenchResult) => number) => median(results.map(value));
  const hasCpu = results.every(({ backEnd }) => backEnd !== null);
  return {
    iops: middle(({ iops }) => iops),
    megabytesPerSecond: middle(({ megabytesPerSecond }) => megabytesPerSecond),
    p50Us: middle(({ latencyUs }) => latencyUs.all.p50),
    p99Us: middle(({ latencyUs }) => latencyUs.all.p99),
    cpuUs: hasCpu ? middle(({ backEnd }) => backEnd!.cpuUsPerOperation) : null,
    samples: results.map(({ iops }) => iops),
  };
}

/** Directories to remove whatever happens. */
const temporary = new Set<string>();

function removeTemporary(): void {
  for (const directory of temporary) Deno.removeSync(directory, { recursive: true });
  temporary.clear();
}

/** One run with one cache mode, in a directory of its own that is gone afterwards. */
async function runMode(cache: CacheMode, options: Options): Promise<ModeFigures> {
  const { scale, cells } = options;
  const dataDir = await Deno.makeTempDir({ dir: options.dir, prefix: "kelpie-bench-" });
  // Apart from the data: a socket's path must be short.
  const runDir = await Deno.makeTempDir({ prefix: "kelpie-bench-" });
  for (const directory of [dataDir, runDir]) temporary.add(directory);
  try {
    const raw = `${dataDir}/disk.raw`;
    const store = `${dataDir}/kelpie.store`;
    say(`${cache}: writing ${formatSize(scale.diskBytes + scale.storeBytes)} in ${dataDir}`);
    await writeZeros(raw, scale.diskBytes);
    await writeZeros(store, scale.storeBytes);
    if (cache === "direct") { for (const file of [raw, store]) await dropCache(file); }
    await using qsd = await startStorageDaemon({ file: raw, socket: `${runDir}/qsd`, cache });
    await using kelpie = await AgentServer.start({
      binary: options.binary,
      dataPath: dataDir,
      runDir: `${runDir}/run`,
      cache,
      storeBytes: scale.storeBytes,
      diskBytes: scale.diskBytes,
    });
    const contest = new Contest(qsd, kelpie, scale, dataDir);
    const idleBefore = await contest.idle();
    await contest.prewrite();
    const figures: CellFigures[] = [];
    let hasWritten = false;
    let isScattered = false;
    for (const cell of cells) {
      const isWriting = cell.load.rw.includes("write");
      if (isWriting && !hasWritten) await contest.prewrite();
      hasWritten ||= isWriting;
      if (cell.isScattered && !isScattered) await contest.scatter();
      isScattered ||= cell.load.rw === "randwrite";
      figures.push(await contest.measure(cell));
    }
    return {
      cache,
      cells: figures,
      idleBefore,
      idleAfter: await contest.idle(),
      untimedCpuSeconds: {
        qsd: contest.untimedCpuSeconds(qsd),
        kelpie: contest.untimedCpuSeconds(kelpie),
      },
    };
  } finally {
    removeTemporary();
  }
}

async function main(): Promise<void> {
  const options = parseOptions();
  const { scale, json, dir } = options;
  const fileSystemType = await checkMachine(options);
  const here = machine();
  const setting =
    `${here.count} × ${here.processors}, ${here.memoryGiB} GiB, Linux ${here.kernel}; ` +
    `${fileSystemType} at ${dir}; disk ${formatSize(scale.diskBytes)}, store ` +
    `${
      formatSize(scale.storeBytes)
    }, ${scale.repetitions} × ${scale.seconds} s per pattern and side; ` +
    `kelpie ${options.binary === undefined ? "from source" : "compiled"}`;
  say(setting);
  const modes: ModeFigures[] = [];
  for (const cache of options.modes) {
    const figures = await runMode(cache, options);
    modes.push(figures);
    if (!json) console.log(`\ncache ${cache}\n\n${tableOf(figures)}\n\n${notesOf(figures)}`);
  }
  if (json) console.log(JSON.stringify({ setting, scale, modes, method: METHOD }, null, 2));
  else console.log(`\n${setting}\n\n${METHOD}`);
}

if (import.meta.main) {
  for (const signal of ["SIGINT", "SIGTERM"] as const) {
    // Both sides die with this process.
    Deno.addSignalListener(signal, () => {
      removeTemporary();
      Deno.exit(130);
    });
  }
  try {
    await main();
    Deno.exit(0); // the listeners would keep the process
  } catch (error) {
    say(error instanceof Error ? error.message : String(error));
    Deno.exitCode = 1;
  }
}
