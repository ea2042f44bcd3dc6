/**
 * `./dev bench:nbd`: `kelpie nbd` over one agent beside `qemu-nbd` over a raw file, in one run, in turn, on one file
 * system. The load is fio's NBD engine: libnbd, one connection, a unix socket.
 *
 *     ./dev bench:nbd [--seconds N] [--repetitions N] [--dir DIR] [--size MIB] [--aio threads|io_uring] [--only PATTERN] [--json]
 *
 * Both are written in full beforehand and go through the page cache. Figures are medians of the repetitions; CPU is that of all
 * serving processes (for Kelpie the agent as well) per request, and says more than rates do where a machine has other
 * things to do.
 *
 * @module
 */
import { parseArgs } from "node:util";
import { resolve } from "node:path";
import { until } from "../guest/deadline.ts";
import { ensurePackages, find } from "../guest/install.ts";
import { NbdProcess, tool, uriOf } from "../nbd/nbd_process.ts";
import { AgentProcess } from "../tools/agent_process.ts";
import { cpuMs, machine } from "./machine.ts";
import { median } from "./report.ts";

/** What is measured. */
const CELLS = [
  { name: "4 KiB random read, depth 32", rw: "randread", block: "4k", depth: 32, target: 1 },
  { name: "4 KiB random write, depth 32", rw: "randwrite", block: "4k", depth: 32, target: 1 },
  { name: "4 KiB random read, depth 1", rw: "randread", block: "4k", depth: 1, target: null },
  { name: "4 KiB random write, depth 1", rw: "randwrite", block: "4k", depth: 1, target: null },
  { name: "128 KiB read, depth 8", rw: "read", block: "128k", depth: 8, target: null },
  { name: "128 KiB write, depth 8", rw: "write", block: "128k", depth: 8, target: null },
] as const;

/** Before each measurement, in seconds. */
const RAMP_SECONDS = 1;

interface Side {
  readonly name: "kelpie" | "qemu-nbd";
  readonly uri: string;
  readonly pids: readonly number[];
}

interface Figures {
  readonly iops: number;
  readonly p99Us: number;
  readonly cpuUs: number;
}

const { values } = parseArgs({
  options: {
    seconds: { type: "string", default: "5" },
    repetitions: { type: "string", default: "5" },
    dir: { type: "string", default: "/var/tmp" },
    size: { type: "string", default: "512" },
    aio: { type: "string", default: "threads" },
    only: { type: "string", default: "" },
    json: { type: "boolean", default: false },
  },
});
const seconds = Number(values.seconds), repetitions = Number(values.repetitions);
const sizeMiB = Number(values.size);
if (!(seconds >= 1 && repetitions >= 1 && sizeMiB >= 64)) {
  throw new Error("--seconds and --repetitions are numbers from 1 on, --size from 64 on");
}

await ensurePackages(["fio", "qemu-nbd", "nbdcopy"]);
if (!/^\s+nbd$/m.test(await tool("fio", "--enghelp"))) {
  throw new Error("this fio has no NBD engine: install one that was built with libnbd");
}
// Relative paths are the caller's, not the checkout's.
const parent = resolve(Deno.env.get("INIT_CWD") ?? Deno.cwd(), values.dir);
const directory = await Deno.makeTempDir({ dir: parent, prefix: "kelpie-bench-nbd-" });
try {
  await run();
} finally {
  await Deno.remove(directory, { recursive: true });
}

async function run(): Promise<void> {
  const runDir = `${directory}/run`, file = `${directory}/raw`;
  const sockets = { kelpie: `${directory}/k`, qemu: `${directory}/q` };
  // Room for the log to be cleaned without haste, as a store in use has it.
  const capacity = `${Math.max(1024, sizeMiB * 4)}M`;
  await using agent = await AgentProcess.start({ runDir, dataDir: `${directory}/data`, capacity });
  await agent.check("disk", "create", "bench", `${sizeMiB}M`);
  await using server = await NbdProcess.start(agent, "--socket", sockets.kelpie);
  say(`writing ${sizeMiB} MiB to both`);
  await fillFile(file);
  await tool("nbdcopy", "--flush", file, uriOf(sockets.kelpie, "bench"));
  await using qemu = await startQemuNbd(file, sockets.qemu);
  const sides: Side[] = [
    { name: "qemu-nbd", uri: uriOf(sockets.qemu, ""), pids: [qemu.pid] },
    { name: "kelpie", uri: uriOf(sockets.kelpie, "bench"), pids: [server.pid, agent.pid] },
  ];
  const rows = [];
  for (const cell of CELLS.filter(({ name }) => name.includes(values.only))) {
    say(cell.name);
    const samples: Record<string, Figures[]> = { "kelpie": [], "qemu-nbd": [] };
    for (let i = 0; i < repetitions; i++) {
      // Each goes first as often as the other.
      for (const side of i % 2 === 0 ? sides : [...sides].reverse()) {
        samples[side.name].push(await measure(side, cell));
      }
    }
    const figures = (name: string) => ({
      iops: median(samples[name].map(({ iops }) => iops)),
      p99Us: median(samples[name].map(({ p99Us }) => p99Us)),
      cpuUs: median(samples[name].map(({ cpuUs }) => cpuUs)),
      samples: samples[name].map(({ iops }) => Math.round(iops)),
    });
    const kelpie = figures("kelpie"), reference = figures("qemu-nbd");
    const ratio = kelpie.iops / reference.iops;
    rows.push({ name: cell.name, target: cell.target, ratio, kelpie, qemuNbd: reference });
  }
  if (values.json) {
    return console.log(JSON.stringify({ machine: machine(), aio: values.aio, rows }, null, 2));
  }
  const { processors, count, kernel } = machine();
  console.log(`${processors}, ${count} processors, Linux ${kernel}`);
  console.log(`${repetitions} times ${seconds} s each, in turn; qemu-nbd with aio=${values.aio}\n`);
  const line = (...cells: (string | number)[]) =>
    console.log(
      cells.map((each, i) => i === 0 ? `${each}`.padEnd(30) : `${each}`.padStart(12)).join(""),
    );
  line(
    "",
    "qemu-nbd",
    "kelpie",
    "ratio",
    "target",
    "qemu CPU µs",
    "kelpie",
    "qemu p99 µs",
    "kelpie",
  );
  for (const { name, ratio, target, kelpie, qemuNbd } of rows) {
    const whole = [qemuNbd.iops, kelpie.iops].map(Math.round);
    const cpu = [qemuNbd.cpuUs, kelpie.cpuUs].map((each) => each.toFixed(1));
    const p99 = [qemuNbd.p99Us, kelpie.p99Us].map(Math.round);
    line(
      name,
      ...whole,
      `${ratio.toFixed(2)}x`,
      target === null ? "-" : `${target}x`,
      ...cpu,
      ...p99,
    );
  }
}

/** Data that nobody can take for zeros. */
async function fillFile(path: string): Promise<void> {
  const bytes = new Uint8Array(1024 * 1024);
  using file = await Deno.open(path, { write: true, createNew: true, mode: 0o600 });
  for (let i = 0; i < sizeMiB; i++) {
    for (let at = 0; at < bytes.length; at += 65536) {
      crypto.getRandomValues(bytes.subarray(at, at + 65536));
    }
    for (let at = 0; at < bytes.length;) at += await file.write(bytes.subarray(at));
  }
  await file.syncData();
}

/** Dies with this process, where util-linux can arrange that. */
async function startQemuNbd(file: string, socket: string) {
  const { "qemu-nbd": program } = await ensurePackages(["qemu-nbd"]);
  const setpriv = find("setpriv");
  const args = ["-f", "raw", "-k", socket, "-t", "--cache=writeback", `--aio=${values.aio}`, file];
  const command = setpriv === undefined
    ? [program]
    : [setpriv, "--pdeathsig", "KILL", "--", program];
  const child = new Deno.Command(command[0], {
    args: [...command.slice(1), ...args],
    stdin: "null",
    stdout: "null",
    stderr: "inherit",
  }).spawn();
  let hasEnded = false;
  child.status.then(() => hasEnded = true);
  await until(() => {
    if (hasEnded) throw new Error("qemu-nbd did not start; it has said why");
    return Deno.lstat(socket).then(() => true, () => false);
  }, { timeoutMs: 20_000, what: () => "qemu-nbd does not listen" });
  return {
    pid: child.pid,
    async [Symbol.asyncDispose]() {
      if (!hasEnded) child.kill("SIGTERM");
      await child.status;
    },
  };
}

async function measure(side: Side, cell: typeof CELLS[number]): Promise<Figures> {
  const before = cpuOf(side);
  const output = await tool(
    "fio",
    ...["--name=bench", "--ioengine=nbd", `--uri=${side.uri}`, `--rw=${cell.rw}`],
    ...[`--bs=${cell.block}`, `--iodepth=${cell.depth}`, "--time_based", "--norandommap"],
    ...[`--runtime=${seconds}`, `--ramp_time=${RAMP_SECONDS}`, "--output-format=json"],
  );
  const cpu = cpuOf(side) - before;
  // The engine greets in front of the document.
  const { jobs: [job] } = JSON.parse(output.slice(output.indexOf("{")));
  const { iops, clat_ns: { percentile } } = cell.rw.endsWith("read") ? job.read : job.write;
  return {
    iops,
    p99Us: percentile["99.000000"] / 1000,
    // The time to warm up is in it as well, at the same rate.
    cpuUs: 1000 * cpu / (iops * (seconds + RAMP_SECONDS)),
  };
}

function cpuOf({ pids }: Side): number {
  return pids.reduce((sum, pid) => sum + cpuMs(pid), 0);
}

function say(text: string): void {
  console.error(`bench:nbd: ${text}`);
}
