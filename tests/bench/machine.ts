/**
 * What the benchmark asks of the machine: files written in full, caches in a known state, and what a process
 * has used.
 *
 * @module
 */

const MiB = 1024 * 1024;

/**
 * Writes a file of zeros in full through the page cache and to the disk.
 *
 * Without this the first write of each block would pay for a new page of the page cache and a new block of
 * the file system, which can take many times as long as writing the block again.
 */
export async function writeZeros(path: string, sizeBytes: number): Promise<void> {
  const zeros = new Uint8Array(4 * MiB);
  using file = await Deno.open(path, { write: true, createNew: true, mode: 0o600 });
  for (let at = 0; at < sizeBytes;) {
    at += await file.write(zeros.subarray(0, Math.min(zeros.length, sizeBytes - at)));
  }
  await file.syncData();
}

/** Drops a file's clean pages from the page cache, where direct I/O would only have to get rid of them. */
export async function dropCache(path: string): Promise<void> {
  await run("dd", [`of=${path}`, "conv=notrunc", "oflag=nocache", "count=0", "status=none"]);
}

/** Writes everything that the file system of `directory` has dirty to the disk. */
export async function syncFileSystem(directory: string): Promise<void> {
  await run("sync", ["-f", directory]);
}

/** Bytes that may still be written below a directory, and the type of its file system. */
export async function fileSystem(directory: string): Promise<{ freeBytes: number; type: string }> {
  const output = await run("df", ["-B1", "--output=avail,fstype", directory]);
  const [freeBytes, type] = output.trim().split("\n").at(-1)!.trim().split(/\s+/);
  return { freeBytes: Number(freeBytes), type };
}

/** Memory that programs and page cache may have, in bytes. */
export function availableMemoryBytes(): number {
  const text = Deno.readTextFileSync("/proc/meminfo");
  return Number(/^MemAvailable:\s+(\d+) kB$/m.exec(text)?.[1] ?? 0) * 1024;
}

/** What the machine is, for the head of a report. */
export function machine(): {
  processors: string;
  count: number;
  kernel: string;
  memoryGiB: number;
} {
  const text = Deno.readTextFileSync("/proc/cpuinfo");
  return {
    processors: /^model name\s*:\s*(.*)$/m.exec(text)?.[1] ?? Deno.build.arch,
    count: navigator.hardwareConcurrency,
    kernel: Deno.osRelease(),
    memoryGiB: Math.round(Deno.systemMemoryInfo().total / 1024 ** 3),
  };
}

const libc = Deno.dlopen("libc.so.6", {
  // int clock_gettime(clockid_t, struct timespec *)
  clock_gettime: { parameters: ["i32", "buffer"], result: "i32" },
  // int getrusage(int who, struct rusage *)
  getrusage: { parameters: ["i32", "buffer"], result: "i32" },
});
/** CPUCLOCK_SCHED in the kernel's encoding of a process's CPU clock (clock_getcpuclockid(3)). */
const CPU_CLOCK = 2;

/** CPU time of a process since its start, in ms: all threads, those that have ended included. */
export function cpuMs(pid: number): number {
  const time = new BigInt64Array(2);
  if (libc.symbols.clock_gettime((~pid << 3) | CPU_CLOCK, new Uint8Array(time.buffer)) !== 0) {
    throw new Error(`process ${pid} has ended`);
  }
  return Number(time[0]) * 1000 + Number(time[1]) / 1e6;
}

/** getrusage(2): of children that have ended and been waited for, with theirs. */
const RUSAGE_CHILDREN = -1;
/** struct rusage: two timevals, and 14 longs. */
const RUSAGE_BYTES = 144;

/** CPU time of all children of this process that have ended, in ms: a difference is that of one that ended meanwhile. */
export function endedChildrenCpuMs(): number {
  const bytes = new Uint8Array(RUSAGE_BYTES);
  libc.symbols.getrusage(RUSAGE_CHILDREN, bytes);
  const [userSeconds, userUs, systemSeconds, systemUs] = new BigInt64Array(bytes.buffer, 0, 4);
  return Number(userSeconds + systemSeconds) * 1000 + Number(userUs + systemUs) / 1000;
}

/** Resident memory of a process, in bytes: all of it, and the part that is its own alone. */
export function residentBytes(pid: number): { all: number; anonymous: number } {
  const text = Deno.readTextFileSync(`/proc/${pid}/status`);
  const kilobytes = (key: string) =>
    Number(new RegExp(`^${key}:\\s+(\\d+) kB$`, "m").exec(text)?.[1] ?? 0);
  return { all: kilobytes("VmRSS") * 1024, anonymous: kilobytes("RssAnon") * 1024 };
}

/** A process is at rest when it uses less than this part of one core… */
const QUIET_SHARE = 0.02;
/** …over this long. */
const QUIET_MS = 250;
/** Longest wait for that: a cleaner that has much to do may go on for ever. */
const SETTLE_TIMEOUT_MS = 10_000;

/** Syncs the file system of `directory`, and waits until none of the processes does anything any more. */
export async function settle(directory: string, pids: readonly number[]): Promise<void> {
  await syncFileSystem(directory);
  const deadline = performance.now() + SETTLE_TIMEOUT_MS;
  let busyMs = Infinity;
  while (busyMs > QUIET_MS * QUIET_SHARE && performance.now() < deadline) {
    const before = pids.map(cpuMs);
    await pause(QUIET_MS);
    busyMs = Math.max(...pids.map((pid, index) => cpuMs(pid) - before[index]));
  }
}

/** Passes the time. */
export function pause(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

async function run(program: string, args: string[]): Promise<string> {
  const command = new Deno.Command(program, { args, stdin: "null", env: { LC_ALL: "C" } });
  const { success, stdout, stderr } = await command.output();
  const decoder = new TextDecoder();
  if (!success) throw new Error(`${program} ${args.join(" ")}: ${decoder.decode(stderr).trim()}`);
  return decoder.decode(stdout);
}
