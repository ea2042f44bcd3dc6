/**
 * `qemu-storage-daemon` with one vhost-user-blk export: the reference that the harness proves itself
 * with, and that benchmarks compare with.
 *
 * @module
 */

import { until } from "./deadline.ts";
import { ensurePackages, find } from "./install.ts";

/** What to export, and how. */
export interface StorageDaemonOptions {
  /** The raw image; it must be there. */
  readonly file: string;
  /** Path of the socket to listen on; it must not be there. */
  readonly socket: string;
  /** Number of virtqueues; 1 by default. */
  readonly queues?: number;
  /** How the file is read and written; `threads` by default. */
  readonly aio?: "threads" | "io_uring" | "native";
  /** Whether to bypass the page cache; false by default. */
  readonly direct?: boolean;
}

/** Flag of a socket in /proc/net/unix that takes connections: its name is there a moment before. */
const ACCEPTS = "00010000";

function isListening(path: string): boolean {
  const lines = Deno.readTextFileSync("/proc/net/unix").split("\n");
  return lines.some((line) => {
    const [, , , flags] = line.split(" ");
    return flags === ACCEPTS && line.endsWith(` ${path}`);
  });
}

/** A running daemon. */
export class StorageDaemon {
  readonly #process: Deno.ChildProcess;

  private constructor(process: Deno.ChildProcess) {
    this.#process = process;
  }

  /**
   * Starts the daemon and waits until it listens.
   *
   * @throws Error when it does not come up; its own messages go to stderr
   */
  static async start(options: StorageDaemonOptions): Promise<StorageDaemon> {
    const { "qemu-storage-daemon": program } = await ensurePackages(["qemu-storage-daemon"]);
    const cache = `cache.direct=${options.direct ? "on" : "off"}`;
    const escape = (path: string) => path.replaceAll(",", ",,");
    const args = [
      "--blockdev",
      `driver=file,node-name=file,filename=${escape(options.file)},aio=${
        options.aio ?? "threads"
      },${cache},discard=unmap`,
      ...["--blockdev", `driver=raw,node-name=disk,file=file,${cache},discard=unmap`],
      "--export",
      `type=vhost-user-blk,id=export,node-name=disk,writable=on,num-queues=${
        options.queues ?? 1
      },` +
      `addr.type=unix,addr.path=${escape(options.socket)}`,
    ];
    const daemon = new StorageDaemon(spawn(program, args));
    try {
      let ended = false;
      daemon.#process.status.then(() => ended = true);
      await until(() => ended || isListening(options.socket), {
        timeoutMs: 10_000,
        what: () => "qemu-storage-daemon does not listen",
      });
      if (ended) throw new Error(`qemu-storage-daemon did not start: ${args.join(" ")}`);
      return daemon;
    } catch (error) {
      await daemon.stop();
      throw error;
    }
  }

  /** The daemon's process ID. */
  get pid(): number {
    return this.#process.pid;
  }

  /** Ends the daemon, by SIGTERM unless told otherwise, and waits for it. */
  async stop(signal: Deno.Signal = "SIGTERM"): Promise<void> {
    try {
      this.#process.kill(signal);
    } catch {
      // It has ended by itself.
    }
    await this.#process.status;
  }

  /** Ends the daemon at once; `await using` calls it. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.stop("SIGKILL");
  }
}

/** Starts a program that dies with this thread, where util-linux can arrange that. */
function spawn(program: string, args: string[]): Deno.ChildProcess {
  const setpriv = find("setpriv");
  const [path, prefix] = setpriv === undefined
    ? [program, []]
    : [setpriv, ["--pdeathsig", "KILL", "--", program]];
  const io = { stdin: "null", stdout: "null", stderr: "inherit" } as const;
  return new Deno.Command(path, { args: [...prefix, ...args], ...io }).spawn();
}
