/**
 * A Linux guest in QEMU, with its disks on vhost-user sockets, that a test drives from outside.
 *
 *     test --- Guest --- shell    ttyS1   commands and results (shell.ts)
 *                    --- console  ttyS0   the kernel's messages, kept as a transcript
 *                    --- qmp      QEMU's monitor (qmp.ts)
 *                    --- disks    QEMU connects to each vhost-user socket, and again after a loss
 *
 * The harness listens on its three sockets before it starts QEMU, which connects to them: no polling,
 * and the end of QEMU is the end of all three. QEMU dies with the thread that started it, however
 * that ends, and the temporary directory with the sockets is gone as soon as QEMU runs:
 *
 * ```ts ignore
 * await using guest = await Guest.boot({ disks: [{ socket: "/run/kelpie/web.sock" }] });
 * await guest.check("mkfs.ext4 -q /dev/vda && mount /dev/vda /mnt");
 * ```
 *
 * @module
 */

import { LateError, until, within } from "./deadline.ts";
import { buildInitramfs } from "./initramfs.ts";
import { ensureGuestFiles, ensurePackages, find } from "./install.ts";
import { Qmp, type QmpEvent } from "./qmp.ts";
import { type CommandResult, GuestShell } from "./shell.ts";
import { describeStandstill } from "./standstill.ts";

export type { CommandResult } from "./shell.ts";

/** A disk of a guest. */
export interface GuestDisk {
  /** Path of the backend's vhost-user socket. */
  readonly socket: string;
  /** Name of the QEMU device; by default `disk0`, `disk1`, ... */
  readonly id?: string;
  /** Number of virtqueues, 1 to 1024; by default 1. */
  readonly queues?: number;
  /** More properties of vhost-user-blk-pci, such as `config-wce=off` or `bootindex=1`. */
  readonly properties?: string;
}

/** What a guest is made of. Everything has a default. */
export interface GuestOptions {
  /** Disks; the first is /dev/vda. None by default. */
  readonly disks?: readonly GuestDisk[];
  /** Memory in MiB; 256 by default. */
  readonly memoryMiB?: number;
  /** Room for memory added while the guest runs, in MiB above `memoryMiB`; 0 by default. */
  readonly memoryAddableMiB?: number;
  /** Virtual CPUs; 1 by default. */
  readonly cpus?: number;
  /** `kvm` is much faster where it works; by default KELPIE_TEST_ACCEL, or `tcg`. */
  readonly accel?: "tcg" | "kvm";
  /** QEMU's machine type; by default `pc`, on which every device can be unplugged. */
  readonly machine?: string;
  /**
   * What boots: `kernel` (the default) is Linux with the harness' own init; `disk` leaves it to SeaBIOS,
   * and there is no shell; `incoming` waits for a migration, given in `qemuArguments` by `-incoming`.
   */
  readonly boot?: "kernel" | "disk" | "incoming";
  /** Added to the kernel's command line. */
  readonly kernelArguments?: string;
  /** Added to QEMU's command line. */
  readonly qemuArguments?: readonly string[];
  /** How long a boot may take, in milliseconds; 60 000 by default. */
  readonly bootTimeoutMs?: number;
  /** What runs QEMU, such as `nsenter` with its arguments; it has to become QEMU, by exec. */
  readonly prefix?: readonly string[];
}

/** How a guest is to move; see {@linkcode Guest.beginMigration}. */
export interface MigrationOptions {
  /**
   * `endless`: the guest runs on, and no end comes by itself. `held`: it has stopped, its disks have been let go of, and nothing of
   * what is left is sent before {@linkcode Guest.continueMigration}.
   */
  readonly pace?: "endless" | "held";
}

/** How long a command may take unless it says otherwise: TCG on a busy machine is slow. */
const COMMAND_TIMEOUT_MS = 60_000;

/** How long a guest may take from `poweroff` to the end of QEMU. */
const SHUTDOWN_TIMEOUT_MS = 30_000;

/** How much of the console and of QEMU's own messages an error shows, in lines. */
const REPORT_LINES = 40;

/** How long a migration may take: a few seconds, most of them for comparing memory. */
const MIGRATION_TIMEOUT_MS = 60_000;

/**
 * How a guest moves under TCG, whose tracking of dirty pages cannot be trusted (see {@linkcode Guest.migrate}): so few bytes
 * a second while it runs that QEMU sends next to nothing, and so much downtime allowed, in milliseconds, that it stops
 * the guest as soon as it has measured that, a tenth of a second later. The rest then goes at full speed.
 */
const MIGRATION_TCG = { "max-bandwidth": 512 * 1024, "downtime-limit": 2_000_000 };

/** A migration of which no end comes: what a guest writes is more than that in a second. */
const MIGRATION_ENDLESS = { "max-bandwidth": 512 * 1024, "downtime-limit": 1 };

/** How many of the pages that a migration lost an error names. */
const PAGES_NAMED_MAX = 8;

/**
 * Kernel messages that mean that a guest saw a disk fail. `blk_update_request` covers older kernels;
 * the rest is what the block layer, the page cache and ext4 say.
 */
const IO_ERROR =
  /I\/O error|blk_update_request|critical (?:target|medium|space) error|lost (?:async|sync) page write|EXT4-fs (?:error|\(\w+\): (?:failed|Remounting))|Aborting journal|Remounting filesystem read-only/i;

/** The lines of a console or a kernel log that tell of a failed disk. */
export function ioErrorsIn(log: string): string[] {
  const lines = log.split("\n").map((line) => line.trim());
  return [...new Set(lines.filter((line) => IO_ERROR.test(line)))];
}

/** A command that runs in the background of a guest. */
export interface GuestJob {
  /** Its result, when it ends; rejects when the guest ends first. Need not be awaited. */
  readonly done: Promise<CommandResult>;
  /** What it has written so far; fails once it has ended. */
  output(): Promise<string>;
  /** Kills it and all it started, and waits until nothing of that is left: a process in the middle of a write ends after it. */
  kill(): Promise<void>;
}

/** Memory of a guest unless told otherwise. */
const MEMORY_MIB = 256;

let initramfs: Promise<Uint8Array> | undefined;

/** A running guest; see the module's description. */
export class Guest {
  readonly #dir: string;
  readonly #process: Deno.ChildProcess;
  readonly #console: Deno.Conn;
  readonly #shell: GuestShell;
  readonly #qmp: Qmp;
  readonly #hasShell: boolean;
  readonly #disks: readonly GuestDisk[];
  readonly #bootTimeoutMs: number;
  readonly #memoryBytes: number;
  readonly #isTcg: boolean;
  /** Readers of the console and of QEMU's stderr. */
  readonly #readers: Promise<unknown>[];
  readonly #qemuLog: { text: string; reading: Promise<unknown> };
  #consoleText = "";
  #consoleWaiters: { pattern: RegExp; from: number; found: (match: RegExpExecArray) => void }[] =
    [];
  #negotiated = false;
  readonly #panic = Promise.withResolvers<never>();
  #disposed: Promise<void> | undefined;

  private constructor(parts: {
    dir: string;
    process: Deno.ChildProcess;
    connections: Record<ChannelName, Deno.Conn>;
    qemuLog: { text: string; reading: Promise<unknown> };
    options: GuestOptions;
  }) {
    this.#dir = parts.dir;
    this.#process = parts.process;
    this.#console = parts.connections.console;
    this.#shell = new GuestShell(parts.connections.shell);
    this.#qmp = new Qmp(parts.connections.qmp);
    this.#qemuLog = parts.qemuLog;
    this.#hasShell = parts.options.boot !== "disk";
    this.#disks = parts.options.disks ?? [];
    this.#bootTimeoutMs = parts.options.bootTimeoutMs ?? 60_000;
    this.#memoryBytes = (parts.options.memoryMiB ?? MEMORY_MIB) * 1024 * 1024;
    this.#isTcg = accelerator(parts.options.accel) === "tcg";
    this.#panic.promise.catch(() => {});
    this.#readers = [this.#readConsole(), parts.qemuLog.reading];
  }

  /**
   * Starts QEMU and waits until the guest takes commands: 3 to 6 s under TCG. With `boot: "disk"` or
   * `"incoming"` it waits only until QEMU answers.
   *
   * The disks' backends should be there. QEMU waits for those that are not, up to `bootTimeoutMs`.
   *
   * @throws Error with QEMU's messages and the console when it does not come up; nothing is left then
   */
  static async boot(options: GuestOptions = {}): Promise<Guest> {
    const { "qemu-system-x86_64": qemu } = await ensurePackages(["qemu-system-x86_64"]);
    const dir = await Deno.makeTempDir({ prefix: "kelpie-guest-" });
    let guest: Guest | undefined;
    try {
      guest = await launch(qemu, dir, options, (parts) => new Guest(parts));
      await guest.#waitBooted(options.boot ?? "kernel");
      return guest;
    } catch (error) {
      await guest?.kill();
      await Deno.remove(dir, { recursive: true }).catch(() => {});
      throw error;
    }
  }

  /** QEMU's process ID. */
  get pid(): number {
    return this.#process.pid;
  }

  /** QEMU's exit, which may have happened already. */
  get exited(): Promise<Deno.CommandStatus> {
    return this.#process.status;
  }

  /** All that the console has printed since QEMU started. */
  get console(): string {
    return this.#consoleText;
  }

  /**
   * Runs a command in the guest: a script for busybox's `sh`, in a shell of its own.
   *
   * @throws Error with the console's last lines when it takes longer than `timeoutMs` (60 000 by
   * default; the command goes on in the guest), and with what the guest stands at; or when the guest ends or panics
   */
  async run(
    command: string,
    { timeoutMs = COMMAND_TIMEOUT_MS }: { timeoutMs?: number } = {},
  ): Promise<CommandResult> {
    try {
      const { result } = this.#shell.send(command);
      const ended = Promise.race([result, this.#panic.promise]);
      return await within(ended, timeoutMs, () => "the guest has not answered");
    } catch (error) {
      const isLate = error instanceof LateError;
      const standstill = isLate ? `\n${await this.#standstill()}` : "";
      throw this.#error(`in the guest, \`${command}\`: ${(error as Error).message}${standstill}`);
    }
  }

  async #standstill(): Promise<string> {
    const disks = this.#disks.map(deviceOf);
    const type = async (text: string) => {
      await this.#console.write(new TextEncoder().encode(text));
    };
    return await describeStandstill({ qmp: (...call) => this.qmp(...call), type, disks });
  }

  /**
   * Runs a command that must succeed.
   *
   * @returns its output, without white space at the ends
   * @throws Error with its output when its status is not 0, and as {@linkcode Guest.run} does
   */
  async check(command: string, options?: { timeoutMs?: number }): Promise<string> {
    const { status, output } = await this.run(command, options);
    if (status !== 0) {
      throw this.#error(`in the guest, \`${command}\` ended with status ${status}:\n${output}`);
    }
    return output.trim();
  }

  /** Starts a command in the background of the guest; it may run while others do. */
  start(command: string): GuestJob {
    const { id, result } = this.#shell.send(command);
    return {
      done: result,
      output: () => this.check(`cat /run/${id}.out`),
      kill: async () => void await this.run(killScript(id)),
    };
  }

  /**
   * Waits until the console has printed something.
   *
   * @param from where in {@linkcode Guest.console} to begin; 0, by default, is all of it
   * @throws Error with the console's last lines when `timeoutMs` (60 000 by default) are over
   */
  async waitConsole(
    pattern: RegExp,
    { timeoutMs = COMMAND_TIMEOUT_MS, from = 0 }: { timeoutMs?: number; from?: number } = {},
  ): Promise<RegExpExecArray> {
    const { promise, resolve } = Promise.withResolvers<RegExpExecArray>();
    const plain = new RegExp(pattern.source, pattern.flags.replace(/[gy]/g, ""));
    this.#consoleWaiters.push({ pattern: plain, from, found: resolve });
    this.#answerConsoleWaiters();
    const ended = this.exited.then(() => {
      throw new Error("QEMU has ended");
    });
    try {
      return await within(Promise.race([promise, ended]), timeoutMs, () => "the console is silent");
    } catch (error) {
      throw this.#error(`waiting for ${pattern} on the console: ${(error as Error).message}`);
    }
  }

  /** The kernel's messages, from its own ring buffer. */
  kernelLog(): Promise<string> {
    return this.check("dmesg");
  }

  /** The lines of console and kernel log that tell of a failed disk: none, when all went well. */
  async ioErrors(): Promise<string[]> {
    const log = this.#hasShell ? await this.kernelLog() : "";
    return ioErrorsIn(`${this.#consoleText}\n${log}`);
  }

  /**
   * Runs a command of QEMU's monitor, such as `device_del` with `{ id: "disk0" }`.
   *
   * @throws Error with QEMU's description when it refuses; with how it ended, and its last words, when it has
   */
  async qmp(command: string, args?: Record<string, unknown>): Promise<unknown> {
    try {
      return await this.#qmp.execute(command, args);
    } catch (error) {
      if (!this.#qmp.isClosed) throw error;
      const { code, signal } = await within(
        this.exited,
        SHUTDOWN_TIMEOUT_MS,
        () => "QEMU has left its monitor, and runs on",
      );
      await this.#qemuLog.reading;
      const how = signal ?? `status ${code}`;
      throw this.#error(`${(error as Error).message}, with ${how}`);
    }
  }

  /** Waits for an event of QEMU's monitor, among those seen and those to come. */
  async qmpEvent(
    name: string,
    { timeoutMs = COMMAND_TIMEOUT_MS, matches }: {
      timeoutMs?: number;
      matches?: (event: QmpEvent) => boolean;
    } = {},
  ): Promise<QmpEvent> {
    return await within(this.#qmp.event(name, matches), timeoutMs, () => `QMP event ${name}`);
  }

  /**
   * Moves to a QEMU that was started for that, on the same disks, by `boot: "incoming"` and
   * `qemuArguments: ["-S", "-incoming", uri]`. This one stands still from then on; the guest goes on in the other, once the
   * memory of both has been found equal.
   *
   * QEMU's TCG loses stores of a guest that runs while its memory is sent: of 22 moves of a busy guest with two processors
   * and no disk at all, under QEMU 7.2.22, 5 lost between one page and fifteen; with one processor it was 2 of 24. What is
   * lost may be anything: a counter, a list of the kernel. The guest panics, hangs or seems well. So under TCG nearly
   * everything is sent after the guest has stopped, which is when a disk's back end must be done with it.
   *
   * @param uri where `target` listens, `unix:PATH` or `tcp:HOST:PORT`
   * @throws Error when it fails, takes longer than 60 s, or the target's memory is not as it was here
   */
  async migrate(target: Guest, uri: string): Promise<void> {
    await this.beginMigration(uri);
    await this.finishMigration(target);
    await target.qmp("cont");
  }

  /**
   * Begins to move, and returns as soon as QEMU has begun, or holds it; see {@linkcode Guest.migrate}. It may be cancelled by
   * `migrate_cancel`; then the guest goes on here.
   *
   * Begun is what has told the agents to log: QEMU before 10.0.4 aborts where one ends while it is told (`vhost_log_global_start`).
   */
  async beginMigration(uri: string, { pace }: MigrationOptions = {}): Promise<void> {
    const isHeld = pace === "held";
    if (this.#isTcg || pace !== undefined) {
      const parameters = pace === "endless" ? MIGRATION_ENDLESS : MIGRATION_TCG;
      await this.qmp("migrate-set-parameters", parameters);
    }
    await this.qmp("migrate-set-capabilities", {
      capabilities: [{ capability: "pause-before-switchover", state: isHeld }],
    });
    await this.qmp("migrate", { uri });
    if (isHeld) await this.migrationIs("pre-switchover");
    else if (pace === "endless") await this.migrationIs("active");
  }

  /** Sends the rest of what {@linkcode MigrationOptions.pace} `held` holds. */
  async continueMigration(): Promise<void> {
    await this.qmp("migrate-continue", { state: "pre-switchover" });
  }

  /** Waits until a migration has come to its end. The other QEMU has everything then, as it was here, and does not run yet. */
  async finishMigration(target: Guest): Promise<void> {
    await this.migrationIs("completed");
    await target.statusIs("paused");
    await this.#assertSameMemory(target);
  }

  /** Waits until the migration has come so far; throws when it fails and that is not what is waited for. */
  async migrationIs(wanted: string): Promise<void> {
    await this.#reaches("query-migrate", wanted);
  }

  /**
   * Waits until QEMU has noticed that its disks' agent has gone. Before that QEMU 7.2 must not be told to end a migration: it would ask
   * the agent to stop logging, and `vhost_log_global_stop` aborts where that fails.
   */
  async agentIsGone(): Promise<void> {
    let last = "";
    await until(async () => {
      const devices = await this.qmp("query-chardev") as { label: string; filename: string }[];
      const sockets = devices.filter(({ label }) => label.endsWith("-socket"));
      last = sockets.map(({ filename }) => filename).join(", ");
      return sockets.length > 0 &&
        sockets.every((each) => each.filename.startsWith("disconnected"));
    }, { timeoutMs: MIGRATION_TIMEOUT_MS, what: () => `QEMU's sockets are ${last}` });
  }

  /** Waits until QEMU's state is that: `running`, `paused`, `postmigrate`, … */
  async statusIs(wanted: string): Promise<void> {
    await this.#reaches("query-status", wanted);
  }

  async #reaches(command: string, wanted: string): Promise<void> {
    let last = "";
    await until(async () => {
      last = (await this.qmp(command) as { status?: string }).status ?? "none";
      if (last === "failed" && wanted !== last) throw this.#error("the migration failed");
      return last === wanted;
    }, { timeoutMs: MIGRATION_TIMEOUT_MS, what: () => `${command} says ${last}, not ${wanted}` });
  }

  async #assertSameMemory(target: Guest): Promise<void> {
    const dir = await Deno.makeTempDir({ prefix: "kelpie-guest-" });
    try {
      const [ours, theirs] = await Promise.all([this, target].map(async (guest, index) => {
        const filename = `${dir}/${index}`;
        await guest.qmp("pmemsave", { val: 0, size: this.#memoryBytes, filename });
        return new Uint32Array((await Deno.readFile(filename)).buffer);
      }));
      const pages = new Set<number>();
      for (let word = 0; word < ours.length; word++) {
        if (ours[word] !== theirs[word]) pages.add(word >>> 10);
      }
      if (pages.size === 0) return;
      const named = [...pages].slice(0, PAGES_NAMED_MAX)
        .map((page) => `0x${(page * 4096).toString(16)}`);
      throw new Error(`the migration lost ${pages.size} pages of memory: ${named.join(", ")}…`);
    } finally {
      await Deno.remove(dir, { recursive: true });
    }
  }

  /** Presses the reset button and waits until the guest takes commands again. */
  async reset(): Promise<void> {
    this.#shell.expectReset();
    await this.qmp("system_reset");
    await this.#waitBooted(this.#hasShell ? "kernel" : "disk");
  }

  /**
   * Shuts the guest down as its user would: file systems unmounted, caches written, power off.
   *
   * @throws Error with the console's last lines when QEMU has not ended by then, or not with status 0
   */
  async shutdown(): Promise<void> {
    if (this.#hasShell) this.start("cd /; umount -a -r -t ext2,ext3,ext4; sync; poweroff -f");
    else await this.qmp("quit");
    try {
      const { code } = await within(this.exited, SHUTDOWN_TIMEOUT_MS, () => "QEMU still runs");
      if (code !== 0) throw new Error(`QEMU ended with status ${code}`);
    } catch (error) {
      throw this.#error(`shutting the guest down: ${(error as Error).message}`);
    }
    await this.kill();
  }

  /** Pulls the plug: ends QEMU at once and removes everything. Does nothing the second time. */
  kill(): Promise<void> {
    this.#disposed ??= this.#dispose();
    return this.#disposed;
  }

  /** Same as {@linkcode Guest.kill}; `await using` calls it. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.kill();
  }

  async #waitBooted(boot: "kernel" | "disk" | "incoming"): Promise<void> {
    const booting = this.#booting(boot);
    try {
      await within(booting, this.#bootTimeoutMs, () => "the guest has not come up");
    } catch (error) {
      throw this.#error(`booting the guest: ${(error as Error).message}`);
    }
  }

  async #booting(boot: "kernel" | "disk" | "incoming"): Promise<void> {
    if (!this.#negotiated) {
      await this.#qmp.negotiate();
      this.#negotiated = true;
      // QEMU has connected to what is in there and mapped the rest: gone now, it cannot be left behind.
      await Deno.remove(this.#dir, { recursive: true });
    }
    if (boot === "kernel") await Promise.race([this.#shell.ready(), this.#panic.promise]);
  }
  async #readConsole(): Promise<void> {
    const [buffer, decoder] = [new Uint8Array(65536), new TextDecoder()];
    try {
      for (;;) {
        const sizeBytes = await this.#console.read(buffer);
        if (sizeBytes === null) break;
        this.#consoleText += decoder.decode(buffer.subarray(0, sizeBytes), { stream: true })
          .replaceAll("\r", "");
        this.#answerConsoleWaiters();
        if (/Kernel panic/.test(this.#consoleText)) {
          this.#panic.reject(new Error("the guest's kernel panicked"));
        }
      }
    } catch {
      // Closed by #dispose(), or reset by QEMU's end: nothing more to read.
    }
  }

  #answerConsoleWaiters(): void {
    this.#consoleWaiters = this.#consoleWaiters.filter(({ pattern, from, found }) => {
      const match = pattern.exec(this.#consoleText.slice(from));
      if (match !== null) found(match);
      return match === null;
    });
  }

  async #dispose(): Promise<void> {
    end(this.#process);
    await this.#process.status;
    await this.#shell.close();
    await this.#qmp.close();
    this.#console.close();
    await Promise.all(this.#readers);
    await Deno.remove(this.#dir, { recursive: true }).catch(() => {}); // Gone since the boot.
  }

  #error(message: string): Error {
    return new Error(report(message, { console: this.#consoleText, qemu: this.#qemuLog.text }));
  }
}

/**
 * Kills a command's session, whose ID is that of its process, as soon as there is one. Those that have ended and that nobody has asked
 * for (state Z) have nothing open any more. (proc_pid_stat(5): PID (NAME) STATE PARENT GROUP …)
 */
function killScript(id: string): string {
  return `
    while [ -e /run/${id}.out ] && [ ! -s /run/${id}.pid ]; do sleep 0.02; done
    pid=$(cat /run/${id}.pid 2>/dev/null) || exit 0
    kill -KILL -- -$pid 2>/dev/null
    while grep -qsE "^[0-9]+ \\(.*\\) [^Z] [0-9]+ $pid " /proc/[0-9]*/stat; do sleep 0.02; done`;
}

const CHANNELS = ["console", "shell", "qmp"] as const;
type ChannelName = typeof CHANNELS[number];

/** Starts QEMU and accepts its connections; leaves nothing behind when it throws. */
async function launch<T>(
  qemu: string,
  dir: string,
  options: GuestOptions,
  make: (parts: {
    dir: string;
    process: Deno.ChildProcess;
    connections: Record<ChannelName, Deno.Conn>;
    qemuLog: { text: string; reading: Promise<unknown> };
    options: GuestOptions;
  }) => T,
): Promise<T> {
  const args = await qemuArguments(dir, options);
  const listeners = CHANNELS.map((name) =>
    Deno.listen({ transport: "unix", path: `${dir}/${name}` })
  );
  const process = spawn([...options.prefix ?? [], qemu, ...args]);
  const qemuLog = readLog(process.stderr);
  const accepted: Deno.Conn[] = [];
  const closeAll = () => listeners.forEach((listener) => listener.close());
  try {
    const accepting = Promise.all(listeners.map(async (listener) => {
      const connection = await listener.accept();
      accepted.push(connection);
      return connection;
    }));
    const ended = process.status.then(async () => {
      await qemuLog.reading;
      throw new Error("QEMU did not start");
    });
    ended.catch(() => {});
    const timeoutMs = options.bootTimeoutMs ?? 60_000;
    const [consoleEnd, shell, qmp] = await within(
      Promise.race([accepting, ended]),
      timeoutMs,
      () => "QEMU has not connected",
    );
    closeAll();
    return make({
      dir,
      process,
      connections: { console: consoleEnd, shell, qmp },
      qemuLog,
      options,
    });
  } catch (error) {
    end(process);
    closeAll();
    accepted.forEach((connection) => connection.close());
    await process.status;
    await qemuLog.reading;
    throw new Error(report(`${(error as Error).message}`, { console: "", qemu: qemuLog.text }));
  }
}

/** Starts a program that dies with this thread, where util-linux can arrange that. */
function spawn(line: readonly string[]): Deno.ChildProcess {
  const setpriv = find("setpriv");
  const dying = setpriv === undefined ? [] : [setpriv, "--pdeathsig", "KILL", "--"];
  const [path, ...args] = [...dying, ...line];
  const io = { stdin: "null", stdout: "null", stderr: "piped" } as const;
  return new Deno.Command(path, { args, ...io }).spawn();
}

/** QEMU's command line. Writes the initramfs to `dir` when the guest boots from it. */
async function qemuArguments(dir: string, options: GuestOptions): Promise<string[]> {
  const boot = options.boot ?? "kernel";
  const memoryMiB = options.memoryMiB ?? MEMORY_MIB;
  const addableMiB = options.memoryAddableMiB ?? 0;
  const room = addableMiB === 0 ? "" : `,slots=8,maxmem=${memoryMiB + addableMiB}M`;
  const channel = (name: ChannelName) => `socket,id=${name},path=${dir}/${name}`;
  return [
    ...["-nodefaults", "-no-user-config", "-display", "none"],
    ...["-machine", `${options.machine ?? "pc"},memory-backend=ram`],
    ...accelArguments(options.accel),
    ...["-smp", `${options.cpus ?? 1}`, "-m", `${memoryMiB}M${room}`],
    // vhost-user backends map the guest's memory: it has to be a shared file.
    ...["-object", `memory-backend-memfd,id=ram,size=${memoryMiB}M,share=on`],
    ...["-chardev", channel("console"), "-serial", "chardev:console"],
    ...["-chardev", channel("shell"), "-serial", "chardev:shell"],
    ...["-chardev", channel("qmp"), "-mon", "chardev=qmp,mode=control"],
    ...(options.disks ?? []).flatMap(diskArguments),
    ...(boot === "disk" ? [] : await kernelArguments(dir, options)),
    ...(options.qemuArguments ?? []),
  ];
}

function accelerator(option: "tcg" | "kvm" | undefined): string {
  return option ?? Deno.env.get("KELPIE_TEST_ACCEL") ?? "tcg";
}

function accelArguments(option: "tcg" | "kvm" | undefined): string[] {
  const accel = accelerator(option);
  // Without rdrand the guest gathers randomness for 19 s, and until then mkfs takes 4 s, not 0.2 s.
  if (accel === "tcg") return ["-accel", "tcg", "-cpu", "qemu64,+rdrand,+rdseed"];
  if (accel === "kvm") return ["-accel", "kvm", "-cpu", "host"];
  throw new Error(`KELPIE_TEST_ACCEL is "${accel}": it may be "tcg" or "kvm"`);
}

/** QEMU's device of a disk, with what it is by default. */
function deviceOf({ id, queues = 1 }: GuestDisk, index: number): { id: string; queues: number } {
  return { id: id ?? `disk${index}`, queues };
}

function diskArguments(disk: GuestDisk, index: number): string[] {
  const { id, queues } = deviceOf(disk, index);
  const properties = disk.properties === undefined ? "" : `,${disk.properties}`;
  const socket = disk.socket.replaceAll(",", ",,"); // QEMU's way to escape a comma.
  return [
    ...["-chardev", `socket,id=${id}-socket,path=${socket},reconnect=1`],
    "-device",
    `vhost-user-blk-pci,id=${id},chardev=${id}-socket,num-queues=${queues}${properties}`,
  ];
}

async function kernelArguments(dir: string, options: GuestOptions): Promise<string[]> {
  const files = await ensureGuestFiles();
  initramfs ??= buildInitramfs(files);
  await Deno.writeFile(`${dir}/initramfs`, await initramfs);
  // Quiet until init says otherwise: each character on the console is an exit from the guest.
  // What standstill.ts types is taken, whatever the kernel was built with.
  // On a busy machine TCG's timer may not tick while the kernel looks whether it does, which is a panic.
  const line = "console=ttyS0 quiet panic=0 mitigations=off no_timer_check " +
    "sysrq_always_enabled " +
    (options.kernelArguments ?? "");
  return ["-kernel", files.kernel, "-initrd", `${dir}/initramfs`, "-append", line.trim()];
}

function readLog(
  stream: ReadableStream<Uint8Array<ArrayBuffer>>,
): { text: string; reading: Promise<unknown> } {
  const log: { text: string; reading: Promise<unknown> } = { text: "", reading: Promise.resolve() };
  log.reading = stream.pipeThrough(new TextDecoderStream())
    .pipeTo(new WritableStream({ write: (text) => void (log.text += text) }));
  return log;
}

function end(process: Deno.ChildProcess): void {
  try {
    process.kill("SIGKILL");
  } catch {
    // It has ended by itself.
  }
}

function report(message: string, sources: { console: string; qemu: string }): string {
  const tail = (text: string) => text.trimEnd().split("\n").slice(-REPORT_LINES).join("\n");
  const parts = [message];
  if (sources.qemu !== "") parts.push(`--- QEMU:\n${tail(sources.qemu)}`);
  if (sources.console !== "") parts.push(`--- console:\n${tail(sources.console)}`);
  return parts.join("\n");
}
