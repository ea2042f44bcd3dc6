/**
 * The two that are compared: an agent with one disk, and `qemu-storage-daemon` with one raw file, on the same
 * file system.
 *
 * @module
 */
import { AdminClient } from "../../agent/admin_client.ts";
import type { CacheMode } from "../../agent/config.ts";
import { until } from "../guest/deadline.ts";
import { find } from "../guest/install.ts";
import { StorageDaemon } from "../guest/storage_daemon.ts";
import { programPermissions } from "../tools/permissions.ts";

const ROOT = decodeURIComponent(new URL("../..", import.meta.url).pathname);
const DISK_NAME = "bench";
/** From source the agent is ready within a second; a loaded machine may take longer. */
const START_TIMEOUT_MS = 60_000;
/** A clean stop syncs what the page cache still holds: gigabytes, at the worst. */
const STOP_TIMEOUT_MS = 120_000;

/** Something that serves a disk on a socket. */
export interface Server extends AsyncDisposable {
  readonly name: "kelpie" | "qsd";
  readonly socket: string;
  readonly pid: number;
}

/** The reference: 7.2 or whatever Debian has. */
export async function startStorageDaemon(options: {
  readonly file: string;
  readonly socket: string;
  readonly cache: CacheMode;
}): Promise<Server> {
  const daemon = await StorageDaemon.start({
    file: options.file,
    socket: options.socket,
    aio: "io_uring",
    direct: options.cache === "direct",
    queues: 1,
  });
  return {
    name: "qsd",
    socket: options.socket,
    pid: daemon.pid,
    [Symbol.asyncDispose]: () => daemon.stop(),
  };
}

/** A real agent process on a store file that is there already, blank; with one new disk. */
export class AgentServer implements Server {
  readonly name = "kelpie";
  readonly #process: Deno.ChildProcess;
  #hasEnded = false;

  private constructor(process: Deno.ChildProcess, readonly socket: string) {
    this.#process = process;
    void process.status.then(() => this.#hasEnded = true);
  }

  /** @param options.binary the compiled program; from source without it */
  static async start(options: {
    readonly binary: string | undefined;
    readonly dataPath: string;
    readonly runDir: string;
    readonly cache: CacheMode;
    readonly storeBytes: number;
    readonly diskBytes: number;
  }): Promise<AgentServer> {
    const { runDir } = options;
    const args = [
      ...["--run-dir", runDir, "agent", "--data", options.dataPath],
      ...["--capacity", `${options.storeBytes / 1024 ** 2}M`],
      ...["--cache", options.cache, "--log-level", "warn"],
    ];
    const server = new AgentServer(spawn(options.binary, args), `${runDir}/${DISK_NAME}.sock`);
    try {
      using client = new AdminClient({ runDir });
      await until(async () => server.#hasEnded || await answers(client), {
        timeoutMs: START_TIMEOUT_MS,
        what: () => "the agent does not answer",
      });
      if (server.#hasEnded) throw new Error("the agent did not start; it has said why");
      await client.createDisk({ name: DISK_NAME, sizeBytes: options.diskBytes });
      return server;
    } catch (error) {
      await server[Symbol.asyncDispose]();
      throw error;
    }
  }

  /** The agent's process. */
  get pid(): number {
    return this.#process.pid;
  }

  /** Stops the agent cleanly, or at once when that takes too long. */
  async [Symbol.asyncDispose](): Promise<void> {
    const kill = (signal: Deno.Signal) => {
      if (!this.#hasEnded) this.#process.kill(signal);
    };
    kill("SIGTERM");
    const timer = setTimeout(() => kill("SIGKILL"), STOP_TIMEOUT_MS);
    await this.#process.status;
    clearTimeout(timer);
  }
}

async function answers(client: AdminClient): Promise<boolean> {
  try {
    await client.version();
    return true;
  } catch {
    return false;
  }
}

/** Starts Kelpie so that it dies with this process, where util-linux can arrange that. */
function spawn(binary: string | undefined, args: readonly string[]): Deno.ChildProcess {
  const command = binary === undefined
    ? [Deno.execPath(), "run", ...programPermissions(), `${ROOT}cli/main.ts`, ...args]
    : [binary, ...args];
  const setpriv = find("setpriv");
  if (setpriv !== undefined) command.unshift(setpriv, "--pdeathsig", "KILL", "--");
  const io = { stdin: "null", stdout: "null", stderr: "inherit" } as const;
  return new Deno.Command(command[0], { args: command.slice(1), ...io }).spawn();
}
