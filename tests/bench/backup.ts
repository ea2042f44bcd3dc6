/**
 * `./dev bench:backup`: `kelpie disk backup` and `restore` beside `nbdcopy` from and to a raw file, in one run, in turn, on one
 * file system; and how long the difference of an idle disk takes.
 *
 *     ./dev bench:backup [--size MIB] [--repetitions N] [--dir DIR] [--binary PATH] [--json]
 *
 * Targets are reported, not asserted, since a shared machine can miss any of them. How the figures come about is told with
 * them.
 *
 * Invariants: whatever is timed begins with a synced file system and servers at rest, and ends with its output durable; whatever
 * fails or interrupts, no process and no file of this one is left.
 *
 * @module
 */
import { parseArgs } from "node:util";
import { resolve } from "node:path";
import { Prng } from "../../agent/base/prng.ts";
import { formatSize } from "../../agent/config.ts";
import { FrontEnd } from "../../agent/frontend/front_end.ts";
import { within } from "../guest/deadline.ts";
import { ensurePackages, find } from "../guest/install.ts";
import { NbdProcess, uriOf } from "../nbd/nbd_process.ts";
import { AgentProcess, PROGRAM_VARIABLE, spawnKelpie } from "../tools/agent_process.ts";
import {
  availableMemoryBytes,
  cpuMs,
  endedChildrenCpuMs,
  fileSystem,
  machine,
  pause,
  settle,
} from "./machine.ts";
import { median } from "./report.ts";

const MiB = 1024 * 1024;

/** What was promised: this part of the rate of `nbdcopy`, and a difference in less than this. */
const RATIO_TARGET = 0.8, DIFFERENCE_TARGET_SECONDS = 1;

/** Capacity of the store, in sizes of the disk: the disk, a restored one, and what a log needs to spare. */
const STORE_SHARE = 3;
/** A store is not made smaller than this. */
const STORE_MIB_MIN = 1024;
/** Files that are there at one time: the backup, perhaps no smaller than the disk, and the raw one. */
const FILES_SHARE = 2;
/** Free space that is asked for beyond that: the file system's own, metadata, another program's. */
const SPARE_BYTES = 512 * MiB;

/**
 * The disk is filled with random bytes and text by turns, in pieces of this length: as with files, what lies together is of one
 * kind, longer than the 128 KiB that Zstandard takes as one, and both kinds are in each frame of a backup.
 */
const PIECE_BYTES = 256 * 1024;
/** Most that `getRandomValues` fills at once. */
const RANDOM_BYTES = 64 * 1024;
/** Text that pieces are taken from: long enough that the same part is seldom twice in one frame. */
const TEXT_BYTES = 8 * MiB;
/** Bytes that the disk is filled with at once. */
const FILL_BYTES = 8 * MiB;

/** Slower than this a copy is taken for one that never ends, in bytes per second. */
const RATE_BYTES_MIN = 2 * MiB;
/** What a command may take besides. */
const COMMAND_TIMEOUT_MS = 120_000;

/** The snapshots of the disk: nothing is written between them. */
const FIRST = "web@first", SECOND = "web@second";
/** What is restored to. */
const COPY = "copy";

const { values } = parseArgs({
  options: {
    size: { type: "string", default: "4096" },
    repetitions: { type: "string", default: "3" },
    dir: { type: "string", default: "/var/tmp" },
    binary: { type: "string" },
    json: { type: "boolean", default: false },
  },
});

/** One measurement. */
interface Sample {
  readonly seconds: number;
  /** CPU seconds of the command itself, its start included. */
  readonly client: number;
  /** CPU seconds of `kelpie nbd`, which has nothing to do where Kelpie's own commands run. */
  readonly server: number;
  /** CPU seconds of the agent. */
  readonly agent: number;
}

/** What is measured, in the order of the report. */
const KINDS = {
  backup: "kelpie disk backup",
  plain: "kelpie disk backup --compress none",
  copyOut: "nbdcopy URI FILE",
  restore: "kelpie disk restore",
  copyIn: "nbdcopy --flush FILE URI",
  difference: "kelpie disk backup --since, nothing written",
  version: "kelpie --version",
} as const;
type Kind = keyof typeof KINDS;

const sizeMiB = Number(values.size), repetitions = Number(values.repetitions);
if (
  !(Number.isInteger(sizeMiB) && sizeMiB >= 64 && Number.isInteger(repetitions) && repetitions > 0)
) {
  throw new Error("--size is a whole number of MiB from 64 on, --repetitions one from 1 on");
}
const sizeBytes = sizeMiB * MiB;
const storeMiB = Math.max(STORE_MIB_MIN, STORE_SHARE * sizeMiB);
// Relative paths are the caller's, not the checkout's.
const base = Deno.env.get("INIT_CWD") ?? Deno.cwd();
const parent = resolve(base, values.dir);
if (values.binary !== undefined) Deno.env.set(PROGRAM_VARIABLE, resolve(base, values.binary));
const isCompiled = Deno.env.has(PROGRAM_VARIABLE);

/** Aborted by a signal: whatever is being measured is killed then, and nothing else is begun. */
const interrupt = new AbortController();
for (const name of ["SIGINT", "SIGTERM", "SIGHUP"] as const) {
  Deno.addSignalListener(name, () => interrupt.abort(new Error(`interrupted by ${name}`)));
}

async function main(): Promise<void> {
  const { nbdcopy } = await ensurePackages(["nbdcopy"]);
  const { type } = await checkSpace();
  const directory = await Deno.makeTempDir({ dir: parent, prefix: "kelpie-bench-backup-" });
  // Apart from the data: a socket's path must be short.
  const runDir = await Deno.makeTempDir({ prefix: "kelpie-bench-" });
  try {
    const contest = await run({ nbdcopy, directory, runDir });
    report(contest, type);
  } finally {
    for (const path of [directory, runDir]) await Deno.remove(path, { recursive: true });
  }
}

async function checkSpace(): Promise<{ type: string }> {
  const { freeBytes, type } = await fileSystem(parent);
  const neededBytes = storeMiB * MiB + FILES_SHARE * sizeBytes + SPARE_BYTES;
  if (freeBytes < neededBytes) {
    throw new Error(
      `${parent} has ${formatSize(freeBytes)} free, and ${formatSize(neededBytes)} are needed: ` +
        "name another directory with --dir, or a smaller --size",
    );
  }
  if (type === "tmpfs") say(`${parent} is in memory (tmpfs): the figures say nothing about a disk`);
  if (availableMemoryBytes() < (1 + FILES_SHARE) * sizeBytes) {
    say(
      "the page cache cannot hold the disk and the files: both sides will wait for the disk below",
    );
  }
  return { type };
}

async function run(
  options: { nbdcopy: string; directory: string; runDir: string },
): Promise<Contest> {
  const { directory } = options;
  const socket = `${options.runDir}/nbd.sock`, runDir = `${options.runDir}/run`;
  await using agent = await AgentProcess.start({
    runDir,
    dataDir: `${directory}/data`,
    capacity: `${storeMiB}M`,
  });
  await using server = await NbdProcess.start(agent, "--socket", socket);
  // The second disk is only there to have the store's log go where copies will be restored to: neither side is the first.
  for (const name of ["web", COPY]) {
    await command(agent, "disk", "create", name, `${sizeMiB}M`);
    say(`writing ${formatSize(sizeBytes)} to disk ${name}`);
    await fill(agent.socket(name));
  }
  await forget(agent);
  for (const snapshot of [FIRST, SECOND]) await command(agent, "disk", "snapshot", snapshot);
  const contest = new Contest({ ...options, agent, server, socket });
  for (let i = 0; i < repetitions; i++) await contest.round(i % 2 === 1);
  return contest;
}

/** Runs a command that is not measured. */
async function command(agent: AgentProcess, ...args: string[]): Promise<void> {
  interrupt.signal.throwIfAborted();
  await agent.check(...args);
}

/** Deletes what was restored, for good. */
async function forget(agent: AgentProcess): Promise<void> {
  await command(agent, "disk", "delete", COPY, "--now", "--yes");
}

/** Writes a disk in full: random bytes and text by turns, so about half of it compresses. */
async function fill(socket: string): Promise<void> {
  const random = new Prng(1);
  const text = textOf(random);
  const bytes = new Uint8Array(FILL_BYTES);
  await using disk = await FrontEnd.connect({ socket });
  for (let offset = 0; offset < sizeBytes; offset += bytes.length) {
    for (let piece = 0; piece < bytes.length; piece += 2 * PIECE_BYTES) {
      for (let at = 0; at < PIECE_BYTES; at += RANDOM_BYTES) {
        crypto.getRandomValues(bytes.subarray(piece + at, piece + at + RANDOM_BYTES));
      }
      const from = random.below(text.length - PIECE_BYTES);
      bytes.set(text.subarray(from, from + PIECE_BYTES), piece + PIECE_BYTES);
    }
    await disk.write(offset, bytes.subarray(0, sizeBytes - offset));
    await pause(0); // signals come between turns
    interrupt.signal.throwIfAborted();
  }
  await disk.flush();
}

/** Words of a small vocabulary, some of them more often than others. */
function textOf(random: Prng): Uint8Array {
  const letters = new TextEncoder().encode("etaoinshrdlucmfwypvbgk");
  const words = Array.from({ length: 4096 }, () => {
    const length = random.between(2, 9);
    const word = Uint8Array.from({ length: length + 1 }, () => random.pick([...letters]));
    word[length] = 32;
    return word;
  });
  const text = new Uint8Array(TEXT_BYTES);
  for (let at = 0; at < text.length;) {
    const word = words[Math.min(random.below(words.length), random.below(words.length))];
    text.set(word.subarray(0, text.length - at), at);
    at += word.length;
  }
  return text;
}

/** Starts a process whose output is to be read. */
type Start = () => Promise<Deno.ChildProcess> | Deno.ChildProcess;

class Contest {
  readonly samples: Record<Kind, Sample[]>;
  /** Length of the last backup of each kind, in bytes. */
  readonly fileBytes = { backup: 0, plain: 0 };

  constructor(
    readonly parts: {
      readonly nbdcopy: string;
      readonly directory: string;
      readonly agent: AgentProcess;
      readonly server: NbdProcess;
      readonly socket: string;
    },
  ) {
    const none = Object.keys(KINDS).map((kind) => [kind, [] as Sample[]]);
    this.samples = Object.fromEntries(none);
  }

  /** Measures everything once. Each side goes first in every other round. */
  async round(isReversed: boolean): Promise<void> {
    const { directory, agent, socket } = this.parts;
    const backup = `${directory}/web.kb`, raw = `${directory}/web.raw`;
    const ordered = <T>(...steps: T[]) => isReversed ? steps.reverse() : steps;

    const outward = ordered(
      () => this.#backup("backup", backup),
      () => this.#copy("copyOut", [uriOf(socket, FIRST), raw], raw),
    );
    for (const step of outward) await step();

    const inward = ordered(
      async () => {
        await readAll(backup);
        await this.#kelpie("restore", "disk", "restore", backup, COPY);
        await forget(agent);
      },
      async () => {
        await readAll(raw);
        await command(agent, "disk", "create", COPY, `${sizeMiB}M`);
        await this.#copy("copyIn", ["--flush", raw, uriOf(socket, COPY)], null);
        await forget(agent);
      },
    );
    for (const step of inward) await step();
    for (const path of [backup, raw]) await Deno.remove(path);

    await this.#backup("plain", backup, "--compress", "none");
    await Deno.remove(backup);
    const dataBytes = await this.#written("difference", `${directory}/idle.kb`, SECOND, FIRST);
    if (dataBytes !== 0) throw new Error(`${dataBytes} bytes differ where nothing was written`);
    await Deno.remove(`${directory}/idle.kb`);
    await this.#kelpie("version", "--version");
  }

  /** A full backup, which has to have all of the disk in it. */
  async #backup(kind: "backup" | "plain", file: string, ...options: string[]): Promise<void> {
    const dataBytes = await this.#written(kind, file, FIRST, null, ...options);
    if (dataBytes !== sizeBytes) throw new Error(`a backup has ${dataBytes} bytes of ${sizeBytes}`);
    this.fileBytes[kind] = (await Deno.stat(file)).size;
  }

  /** @returns bytes of data that are in the backup */
  async #written(
    kind: Kind,
    file: string,
    snapshot: string,
    since: string | null,
    ...options: string[]
  ): Promise<number> {
    if (since !== null) options.push("--since", since);
    const args = ["disk", "backup", snapshot, file, "--json", ...options];
    return JSON.parse(await this.#kelpie(kind, ...args)).dataBytes;
  }

  #kelpie(kind: Kind, ...args: string[]): Promise<string> {
    const line = ["--run-dir", this.parts.agent.runDir, ...args];
    return this.#measure(kind, () => spawnKelpie(line, { stdin: "null", stdout: "piped" }), null);
  }

  async #copy(kind: Kind, args: string[], output: string | null): Promise<void> {
    const setpriv = find("setpriv");
    const dying = setpriv === undefined ? [] : [setpriv, "--pdeathsig", "KILL", "--"];
    const [program, ...rest] = [...dying, this.parts.nbdcopy, ...args];
    const io = { stdin: "null", stdout: "piped", stderr: "piped" } as const;
    await this.#measure(
      kind,
      () => new Deno.Command(program, { args: rest, ...io }).spawn(),
      output,
    );
  }

  /**
   * Measures a command that must succeed.
   *
   * @param output what is to be synced after its end, as part of it; null: it does that itself
   * @returns its standard output
   */
  async #measure(kind: Kind, start: Start, output: string | null): Promise<string> {
    const { agent, server, directory } = this.parts;
    await settle(directory, [agent.pid, server.pid]);
    interrupt.signal.throwIfAborted();
    const cpu = () => [endedChildrenCpuMs(), cpuMs(server.pid), cpuMs(agent.pid)];
    const before = cpu(), startMs = performance.now();
    const text = await toEnd(await start(), KINDS[kind]);
    if (output !== null) {
      using file = await Deno.open(output, { write: true });
      await file.sync();
    }
    const seconds = (performance.now() - startMs) / 1000;
    const [client, nbd, serving] = cpu().map((ms, i) => (ms - before[i]) / 1000);
    this.samples[kind].push({ seconds, client, server: nbd, agent: serving });
    say(`${KINDS[kind]}: ${seconds.toFixed(2)} s`);
    return text;
  }
}

/**
 * Waits until a process has ended, which must be well.
 *
 * @returns its standard output
 */
async function toEnd(child: Deno.ChildProcess, what: string): Promise<string> {
  const kill = () => {
    try {
      child.kill("SIGKILL");
    } catch {
      // It has ended.
    }
  };
  interrupt.signal.addEventListener("abort", kill);
  if (interrupt.signal.aborted) kill();
  try {
    const { success, stdout, stderr } = await within(
      child.output(),
      COMMAND_TIMEOUT_MS + 1000 * sizeBytes / RATE_BYTES_MIN,
      () => `${what} does not end`,
    );
    interrupt.signal.throwIfAborted();
    const [output, messages] = [stdout, stderr].map((bytes) => new TextDecoder().decode(bytes));
    if (!success) throw new Error(`${what} failed:\n${messages}`);
    return output;
  } finally {
    kill();
    await child.status;
    interrupt.signal.removeEventListener("abort", kill);
  }
}

/** Has a file in the page cache, as far as there is room: `nbdcopy` takes what it writes out of there, Kelpie does not. */
async function readAll(path: string): Promise<void> {
  const bytes = new Uint8Array(MiB);
  using file = await Deno.open(path);
  while (await file.read(bytes) !== null) interrupt.signal.throwIfAborted();
}

/** One row: Kelpie's command, and what it is compared with. */
const ROWS = [
  { name: "backup", kelpie: "backup", nbdcopy: "copyOut" },
  { name: "backup --compress none", kelpie: "plain", nbdcopy: "copyOut" },
  { name: "restore", kelpie: "restore", nbdcopy: "copyIn" },
] as const;

function report({ samples, fileBytes }: Contest, type: string): void {
  const middle = (kind: Kind, value: keyof Sample) =>
    median(samples[kind].map((sample) => sample[value]));
  const gibibytes = sizeMiB / 1024;
  const figures = (kind: Kind) => ({
    mibPerSecond: sizeMiB / middle(kind, "seconds"),
    cpuSecondsPerGiB: {
      client: middle(kind, "client") / gibibytes,
      server: middle(kind, "server") / gibibytes,
      agent: middle(kind, "agent") / gibibytes,
    },
    seconds: samples[kind].map(({ seconds }) => seconds),
  });
  const rows = ROWS.map(({ name, ...kinds }) => {
    const kelpie = figures(kinds.kelpie), nbdcopy = figures(kinds.nbdcopy);
    const ratio = kelpie.mibPerSecond / nbdcopy.mibPerSecond;
    return { name, target: RATIO_TARGET, ratio, kelpie, nbdcopy };
  });
  const difference = {
    seconds: middle("difference", "seconds"),
    targetSeconds: DIFFERENCE_TARGET_SECONDS,
    startSeconds: middle("version", "seconds"),
  };
  const here = machine();
  const setting = { sizeMiB, repetitions, storeMiB, fileSystem: type, isCompiled, fileBytes };
  if (values.json) {
    return console.log(JSON.stringify({ machine: here, setting, rows, difference }, null, 2));
  }
  console.log(`${here.processors}, ${here.count} processors, Linux ${here.kernel}`);
  console.log(
    `${type} at ${parent}; disk ${formatSize(sizeBytes)}, store ${formatSize(storeMiB * MiB)}, ` +
      `${repetitions} times each, in turn; kelpie ${isCompiled ? "compiled" : "from source"}\n`,
  );
  const line = (...cells: string[]) =>
    console.log(
      cells.map((cell, i) => i === 0 ? cell.padEnd(26) : cell.padStart(14)).join("").trimEnd(),
    );
  line("MiB/s", "nbdcopy", "kelpie", "ratio", "target");
  for (const { name, ratio, target, kelpie, nbdcopy } of rows) {
    const rates = [nbdcopy, kelpie].map(({ mibPerSecond }) => mibPerSecond.toFixed(0));
    line(name, ...rates, `${ratio.toFixed(2)}x`, `${target}x`);
  }
  console.log();
  line("CPU seconds per GiB", "nbdcopy", "kelpie nbd", "agent", "kelpie", "agent");
  for (const { name, kelpie, nbdcopy } of rows) {
    const [theirs, ours] = [nbdcopy.cpuSecondsPerGiB, kelpie.cpuSecondsPerGiB];
    const cpu = [theirs.client, theirs.server, theirs.agent, ours.client, ours.agent];
    line(name, ...cpu.map((seconds) => seconds.toFixed(2)));
  }
  console.log(
    `\ndifference of an idle disk: ${difference.seconds.toFixed(2)} s ` +
      `(target: less than ${DIFFERENCE_TARGET_SECONDS} s), of which the start of the program ` +
      `takes ${difference.startSeconds.toFixed(2)} s`,
  );
  console.log(
    `files: ${formatSize(fileBytes.backup)} compressed, ${
      formatSize(fileBytes.plain)
    } not\n\n${METHOD}`,
  );
}

/** Part of every report, since the figures mean little without it. */
const METHOD = `\
How this is measured. A disk is written in full with random bytes and text by turns, ${
  formatSize(PIECE_BYTES)
} each, so about half of
it compresses, and a snapshot of it taken. nbdcopy reads that from, and writes a new disk of the same size to, 'kelpie nbd'
over the same agent, with as many connections as it takes by itself. Figures are medians of the repetitions, the sides in turn.
- Everything counts from the start of the process to its output being durable: Kelpie syncs its file and flushes its disk by
  itself, nbdcopy has --flush to a disk, and its raw file is synced after its end. Making the disk and the snapshot of it counts
  for Kelpie's restore; for nbdcopy the disk is there before.
- Data goes through the page cache. Both inputs of a restore are read once before, so neither side waits for the disk there.
- Before each timed part the file system is synced, and agent and server are left alone until they use no CPU. The store has
  written once before where it writes later.
- CPU is that of all threads, children included.`;

function say(text: string): void {
  console.error(`bench:backup: ${text}`);
}

let code = 0;
try {
  await main();
} catch (error) {
  // An agent that gets the same signal, from a terminal, may have failed first.
  const reason = interrupt.signal.aborted ? interrupt.signal.reason : error;
  say(reason instanceof Error ? reason.message : String(reason));
  code = interrupt.signal.aborted ? 130 : 1;
}
Deno.exit(code); // the listeners would keep the process
