/**
 * `./dev bench:floor`: what this machine allows at depth 1, for figures of `./dev bench:cluster` to be read beside.
 *
 *     ./dev bench:floor [--seconds N] [--repetitions N] [--only CHAIN,…] [--dir DIR]
 *
 * The chains of sleeps and wake-ups between processes are Kelpie's, and nothing else is: plain blocking system calls, no
 * sealing, no checksums, no index. Each arrow wakes a process that sleeps; answers come back the way requests go.
 *
 *     one host, write   load ── eventfd ─▶ server        writes 8 KiB to its file
 *
 *     write to three    load ── eventfd ─▶ sequencer     writes 8 KiB to its file, waits with epoll for both answers
 *                                            ├─ TCP, 4 KiB + 64 ─▶ replica   writes 8 KiB to its file; answers 64 bytes
 *                                            └─ TCP, 4 KiB + 64 ─▶ replica   the same
 *
 *     remote read       load ── eventfd ─▶ sequencer
 *                                            └─ TCP, 64 bytes ─▶ replica     reads 4 KiB of its file; answers 4 KiB + 64
 *
 * Files are written in full beforehand, are gone through from start to end over and over, and stay in the page cache. The chains
 * are measured in turn, each figure is the median of the repetitions; CPU is that of all processes but the load, per operation.
 *
 * Against the same in C, in turn on a busy machine, the least of several runs each: on one host CPU is 1.3 times as much (13.4 µs
 * against 10.4); over TCP each differs more from run to run than they do from each other, and so do the times of all three.
 *
 * This process only watches. It makes every descriptor and each process inherits its own, so a process whose neighbour ends
 * ends as well, or is ended here; the files have lost their names before anything is measured.
 *
 * @module
 */
import { resolve } from "node:path";
import { parseArgs } from "node:util";
import { Poller } from "../../agent/frontend/poller.ts";
import { encodeSocketAddress } from "../../agent/platform/address.ts";
import {
  check,
  closeFd,
  cString,
  libc,
  O_CLOEXEC,
  O_RDWR,
  signalEventFd,
} from "../../agent/platform/linux/libc.ts";
import { find } from "../guest/install.ts";
import { cpuMs, fileSystem, machine, pause, syncFileSystem, writeZeros } from "./machine.ts";
import { median } from "./report.ts";

const KiB = 1024, MiB = 1024 * KiB;
const ROOT = decodeURIComponent(new URL("../..", import.meta.url).pathname);
const BLOCK_BYTES = 4 * KiB;
/** Of a message between hosts, without its data. */
const HEAD_BYTES = 64;
/** What a log writes for one block: the block and its record. */
const WRITE_BYTES = 8 * KiB;
/** More than the processor's caches hold, and a multiple of whatever is read or written. */
const FILE_BYTES = 256 * MiB;
/** Before anything is measured: the runtime has compiled what is run over and over. */
const WARM_SECONDS = 2;
/** At rest between measurements, once the file system is synced. */
const SETTLE_MS = 200;
/** What ends this process from outside, short of SIGKILL. */
const SIGNALS = [["SIGHUP", 1], ["SIGINT", 2], ["SIGTERM", 15]] as const;

const AF_INET = 2, SOCK_STREAM = 1, SOCK_CLOEXEC = 0o2000000;
const IPPROTO_TCP = 6, TCP_NODELAY = 1;
const EFD_CLOEXEC = 0o2000000;
const F_SETFD = 2, FD_CLOEXEC = 1;

/** What a host does with its file for one operation. */
type FileUse = "write" | "read" | "none";

/** One row of the table. */
interface Chain {
  readonly name: string;
  /** Row and column of `./dev bench:cluster` that it is the floor of. */
  readonly beside: string;
  readonly replicas: number;
  readonly requestBytes: number;
  readonly answerBytes: number;
  /** The server's or sequencer's own. */
  readonly file: FileUse;
  readonly replicaFile: FileUse;
}

const CHAINS: readonly Chain[] = [
  {
    name: "one host, write",
    beside: "randwrite 4K d1, one",
    replicas: 0,
    requestBytes: 0,
    answerBytes: 0,
    file: "write",
    replicaFile: "none",
  },
  {
    name: "write to three",
    beside: "randwrite 4K d1, three",
    replicas: 2,
    requestBytes: BLOCK_BYTES + HEAD_BYTES,
    answerBytes: HEAD_BYTES,
    file: "write",
    replicaFile: "write",
  },
  {
    name: "remote read",
    beside: "randread 4K d1 remote, three",
    replicas: 1,
    requestBytes: HEAD_BYTES,
    answerBytes: BLOCK_BYTES + HEAD_BYTES,
    file: "none",
    replicaFile: "read",
  },
];

/** Files that a chain's hosts have together. */
function filesOf({ replicas, file, replicaFile }: Chain): number {
  return (file === "none" ? 0 : 1) + (replicaFile === "none" ? 0 : replicas);
}

/** What a process is told, as JSON after `--role`. Descriptors are those that it has inherited. */
interface Order {
  readonly role: "load" | "sequencer" | "replica";
  readonly chain: Chain;
  /** Eventfds of the load and the sequencer; none for a replica. */
  readonly eventFds: readonly [kick: number, call: number] | readonly [];
  /** TCP connections: one to each replica, or the replica's own. */
  readonly peers: readonly number[];
  /** At most one. */
  readonly files: readonly number[];
}

/** What the load answers. */
interface LoadResult {
  readonly operations: number;
  readonly seconds: number;
}

// The processes of a chain.

/** Memory for system calls; the pointer is made once, which a call on the way of each operation must not do. */
class Memory {
  readonly bytes: Uint8Array<ArrayBuffer>;
  readonly length: bigint;
  readonly #pointer: Deno.PointerObject;

  constructor(lengthBytes: number) {
    this.bytes = new Uint8Array(lengthBytes);
    this.length = BigInt(lengthBytes);
    this.#pointer = Deno.UnsafePointer.of(this.bytes)!;
  }

  /** Writes all of it; sockets that block take all or fail. */
  write(fd: number, what: string): void {
    const written = check(libc.writePointer(fd, this.#pointer, this.length), what);
    if (written !== this.bytes.length) throw new Error(`${what}: ${written} bytes written`);
  }

  /** Fills it. */
  read(fd: number, what: string): void {
    let at = check(libc.read(fd, this.bytes, this.length), what);
    while (at < this.bytes.length) {
      const rest = this.bytes.subarray(at);
      const count = check(libc.read(fd, rest, BigInt(rest.length)), what);
      if (count === 0) throw new Error(`${what}: the other end is gone`);
      at += count;
    }
  }
}

/** What a host does with its file, as a function that does it once. */
function fileUser(use: FileUse, [fd]: readonly number[]): () => void {
  if (use === "none") return () => {};
  const memory = new Memory(use === "write" ? WRITE_BYTES : BLOCK_BYTES);
  let at = 0;
  return () => {
    if (use === "write") memory.write(fd, "write to the file");
    else memory.read(fd, "read of the file");
    at += memory.bytes.length;
    if (at < FILE_BYTES) return;
    // At the descriptor's own position, so that no 64-bit offset goes through each call.
    libc.lseek(fd, 0n, 0);
    at = 0;
  };
}

function serveSequencer({ chain, eventFds, peers, files }: Order): void {
  const [kick, call] = eventFds as readonly [number, number];
  const kicks = new Memory(8), request = new Memory(chain.requestBytes);
  const answer = new Memory(chain.answerBytes);
  const useFile = fileUser(chain.file, files);
  const poller = new Poller();
  peers.forEach((fd, token) => poller.addSocket(fd, token));
  const receive = (fd: number) => answer.read(fd, "answer of a replica");
  const receiveAll = () => {
    for (let missing = peers.length; missing > 0;) {
      const ready = poller.wait(-1);
      for (let token = 0; token < peers.length; token++) {
        if ((ready & 1 << token) === 0) continue;
        receive(peers[token]);
        missing--;
      }
    }
  };
  const turn = () => {
    kicks.read(kick, "kick");
    for (let i = 0; i < peers.length; i++) request.write(peers[i], "message to a replica");
    useFile();
    // Only of several is it unknown which answers first.
    if (peers.length === 1) receive(peers[0]);
    else receiveAll();
    signalEventFd(call);
  };
  for (;;) turn();
}

function serveReplica({ chain, peers: [sequencer], files }: Order): void {
  const request = new Memory(chain.requestBytes), answer = new Memory(chain.answerBytes);
  const useFile = fileUser(chain.replicaFile, files);
  const turn = () => {
    request.read(sequencer, "message to a replica");
    useFile();
    answer.write(sequencer, "answer of a replica");
  };
  for (;;) turn();
}

/** Runs for as many seconds as each line of standard input says, and answers with a line; until the input ends. */
function load({ eventFds }: Order): void {
  const [kick, call] = eventFds as readonly [number, number];
  const calls = new Memory(8), line = new Uint8Array(64);
  const operate = () => {
    signalEventFd(kick);
    calls.read(call, "call");
  };
  for (;;) {
    const length = Deno.stdin.readSync(line);
    if (length === null) return;
    const startMs = performance.now();
    const endMs = startMs + Number(new TextDecoder().decode(line.subarray(0, length))) * 1000;
    let operations = 0, nowMs = startMs;
    for (; nowMs < endMs; nowMs = performance.now()) {
      operate();
      operations++;
    }
    const result: LoadResult = { operations, seconds: (nowMs - startMs) / 1000 };
    Deno.stdout.writeSync(new TextEncoder().encode(`${JSON.stringify(result)}\n`));
  }
}

function runRole(order: Order): void {
  if (order.role === "load") load(order);
  else if (order.role === "sequencer") serveSequencer(order);
  else serveReplica(order);
}

// The process that watches.

/** Every process that was started, and the directory of a file that still has its name: what must not be left behind. */
const processes: Deno.ChildProcess[] = [];
let directory: string | null = null;

/** Ends all processes and removes all files. At once, since a signal may ask for it anywhere. */
function end(): void {
  for (const process of processes) {
    try {
      process.kill("SIGKILL");
    } catch {
      // It has ended already.
    }
  }
  if (directory !== null) Deno.removeSync(directory, { recursive: true });
  directory = null;
}

/** Starts one process of a chain, which inherits its descriptors and dies with this one, where util-linux can arrange that. */
function spawn(order: Order): Deno.ChildProcess {
  const command = [Deno.execPath(), "run", "-A", "--no-check", "--config", `${ROOT}deno.json`];
  command.push(`${ROOT}tests/bench/floor.ts`, "--role", JSON.stringify(order));
  const setpriv = find("setpriv");
  if (setpriv !== undefined) command.unshift(setpriv, "--pdeathsig", "KILL", "--");
  const io = order.role === "load" ? "piped" : "null";
  const inherited = [...order.eventFds, ...order.peers, ...order.files];
  // Only while this one starts, which it does before anything else is done here.
  for (const fd of inherited) check(libc.fcntl(fd, F_SETFD, 0), "fcntl");
  const process = new Deno.Command(command[0], {
    args: command.slice(1),
    stdin: io,
    stdout: io,
    stderr: "inherit",
  }).spawn();
  processes.push(process);
  for (const fd of inherited) check(libc.fcntl(fd, F_SETFD, FD_CLOEXEC), "fcntl");
  return process;
}

/** Two ends of a TCP connection over loopback. */
function connectedPair(): [near: number, far: number] {
  const socket = () => check(libc.socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), "socket");
  const listening = socket(), near = socket();
  const address = encodeSocketAddress("127.0.0.1:0")!;
  check(libc.bind(listening, address, address.length), "bind 127.0.0.1");
  check(libc.listen(listening, 1), "listen");
  const length = new Uint8Array(new Uint32Array([address.length]).buffer);
  check(libc.getsockname(listening, address, length), "getsockname");
  check(libc.connect(near, address, address.length), "connect");
  const far = check(libc.accept4(listening, null, null, SOCK_CLOEXEC), "accept4");
  closeFd(listening);
  const one = new Uint8Array(new Int32Array([1]).buffer);
  for (const fd of [near, far]) {
    check(libc.setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, one, one.length), "TCP_NODELAY");
  }
  return [near, far];
}

/** A file that is written in full and has lost its name; none where none is used. */
async function hiddenFiles(use: FileUse, parent: string): Promise<number[]> {
  if (use === "none") return [];
  directory = Deno.makeTempDirSync({ dir: parent, prefix: "kelpie-floor-" });
  const path = `${directory}/file`;
  await writeZeros(path, FILE_BYTES);
  const fd = check(libc.open(cString(path), O_RDWR | O_CLOEXEC, 0), `open ${path}`);
  Deno.removeSync(directory, { recursive: true });
  directory = null;
  return [fd];
}

/** A chain whose processes run. */
class Side {
  readonly rates: number[] = [];
  readonly cpuUs: number[] = [];
  readonly #answers: ReadableStreamDefaultReader<string>;
  readonly #orders: WritableStreamDefaultWriter<Uint8Array>;
  readonly #serverPids: readonly number[];
  /** Rejects when a process ends, as none does by itself. */
  readonly #failure: Promise<never>;

  private constructor(
    readonly chain: Chain,
    load: Deno.ChildProcess,
    servers: readonly Deno.ChildProcess[],
  ) {
    this.#answers = load.stdout.pipeThrough(new TextDecoderStream()).getReader();
    this.#orders = load.stdin.getWriter();
    this.#serverPids = servers.map(({ pid }) => pid);
    this.#failure = Promise.race([load, ...servers].map(({ status }) => status))
      .then(({ signal, code }) => {
        throw new Error(`a process of "${chain.name}" has ended: ${signal ?? `exit code ${code}`}`);
      });
    this.#failure.catch(() => {});
  }

  /** @param parent directory in which files are made */
  static async start(chain: Chain, parent: string): Promise<Side> {
    const eventFd = () => check(libc.eventfd(0, EFD_CLOEXEC), "eventfd");
    const eventFds = [eventFd(), eventFd()] as const;
    const servers: Order[] = [], peers: number[] = [];
    for (let i = 0; i < chain.replicas; i++) {
      const [near, far] = connectedPair();
      peers.push(near);
      const files = await hiddenFiles(chain.replicaFile, parent);
      servers.push({ role: "replica", chain, eventFds: [], peers: [far], files });
    }
    const files = await hiddenFiles(chain.file, parent);
    servers.push({ role: "sequencer", chain, eventFds, peers, files });
    const load = spawn({ role: "load", chain, eventFds, peers: [], files: [] });
    const side = new Side(chain, load, servers.map(spawn));
    for (
      const fd of [...eventFds, ...servers.flatMap(({ peers, files }) => [...peers, ...files])]
    ) {
      closeFd(fd);
    }
    return side;
  }

  /** Runs the load. Throws when a process of the chain ends. */
  async run(seconds: number): Promise<LoadResult & { readonly cpuUs: number }> {
    const beforeMs = this.#cpuMs();
    await this.#orders.write(new TextEncoder().encode(`${seconds}\n`));
    // A line this short arrives whole.
    const { value } = await Promise.race([this.#answers.read(), this.#failure]);
    const result: LoadResult = value === undefined ? await this.#failure : JSON.parse(value);
    return { ...result, cpuUs: (this.#cpuMs() - beforeMs) * 1000 / result.operations };
  }

  #cpuMs(): number {
    return this.#serverPids.reduce((sum, pid) => sum + cpuMs(pid), 0);
  }
}

function say(text: string): void {
  console.error(`bench:floor: ${text}`);
}

const { values } = parseArgs({
  options: {
    seconds: { type: "string", default: "2" },
    repetitions: { type: "string", default: "5" },
    only: { type: "string", default: "" },
    dir: { type: "string", default: "/var/tmp" },
    role: { type: "string" },
  },
});

async function measure(side: Side, seconds: number): Promise<void> {
  const { operations, seconds: passed, cpuUs } = await side.run(seconds);
  const rate = operations / passed;
  side.rates.push(rate);
  side.cpuUs.push(cpuUs);
  say(
    `${side.chain.name}: ${rate.toFixed(0)}/s, ${(1e6 / rate).toFixed(1)} µs each, ` +
      `servers' CPU ${cpuUs.toFixed(1)} µs each`,
  );
}

function table(sides: readonly Side[]): string {
  const lines = [[
    "chain",
    "operations/s",
    "µs each",
    "servers' CPU µs each",
    "floor of, in bench:cluster",
  ]];
  for (const { chain, rates, cpuUs } of sides) {
    const rate = median(rates);
    const figures = [rate.toFixed(0), (1e6 / rate).toFixed(1), median(cpuUs).toFixed(1)];
    lines.push([chain.name, ...figures, chain.beside]);
  }
  const widths = lines[0].map((_, i) => Math.max(...lines.map((line) => line[i].length)));
  return lines.map((line) => line.map((cell, i) => cell.padEnd(widths[i])).join("  ").trimEnd())
    .join("\n");
}

async function main(): Promise<void> {
  const seconds = Number(values.seconds), repetitions = Number(values.repetitions);
  if (!(seconds > 0 && repetitions >= 1)) {
    throw new Error("--seconds is a number above 0, --repetitions one from 1 on");
  }
  const only = values.only.split(",");
  const chains = CHAINS.filter(({ name }) => only.some((part) => name.includes(part)));
  if (chains.length === 0) {
    const names = CHAINS.map(({ name }) => name).join('", "');
    throw new Error(`--only ${values.only} is part of no chain's name: "${names}"`);
  }
  // Relative paths are the caller's, not the checkout's.
  const parent = resolve(Deno.env.get("INIT_CWD") ?? Deno.cwd(), values.dir);
  const { freeBytes } = await fileSystem(parent).catch((error) => {
    throw new Error(`--dir ${parent} cannot be used, name another: ${error.message}`);
  });
  const neededBytes = FILE_BYTES * chains.reduce((sum, chain) => sum + filesOf(chain), 0);
  if (freeBytes < neededBytes) {
    throw new Error(
      `${parent} has ${Math.floor(freeBytes / MiB)} MiB free, and files take ` +
        `${neededBytes / MiB} MiB: name another directory with --dir`,
    );
  }
  const sides: Side[] = [];
  for (const chain of chains) {
    say(`starting ${chain.name}`);
    sides.push(await Side.start(chain, parent));
  }
  for (const side of sides) await side.run(WARM_SECONDS);
  for (let repetition = 0; repetition < repetitions; repetition++) {
    for (const side of repetition % 2 === 0 ? sides : sides.toReversed()) {
      await syncFileSystem(parent);
      await pause(SETTLE_MS);
      await measure(side, seconds);
    }
  }
  const { count, processors, memoryGiB, kernel } = machine();
  console.log(
    `${table(sides)}\n\n${count} × ${processors}, ${memoryGiB} GiB, Linux ${kernel}; ` +
      `files in ${parent}, ${repetitions} × ${seconds} s, medians`,
  );
}

/** Runs all of it and leaves nothing behind, also when it fails or a signal ends it. */
async function watch(): Promise<number> {
  for (const [signal, number] of SIGNALS) {
    Deno.addSignalListener(signal, () => {
      end();
      Deno.exit(128 + number);
    });
  }
  try {
    await main();
    return 0;
  } catch (error) {
    say(error instanceof Error ? error.message : String(error));
    return 1;
  } finally {
    end();
  }
}

if (import.meta.main) {
  if (values.role !== undefined) runRole(JSON.parse(values.role));
  // The listeners would keep the process.
  else Deno.exit(await watch());
}
