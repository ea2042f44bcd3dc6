/**
 * A real agent in a process of its own, and the real command line beside it, for tests and the demo.
 *
 *     test --- AgentProcess --- kelpie agent   run from source, or the compiled program
 *                           --- kelpie …       commands of the command line, one process each
 *
 * Ready is what the agent itself says in its log, after its sockets are there. The process dies with the thread that
 * started it, however that ends, so that a test that fails or is interrupted leaves no agent behind:
 *
 * ```ts ignore
 * await using agent = await AgentProcess.start({ runDir, dataDir, capacity: "1G" });
 * await agent.check("disk", "create", "web", "512M");
 * await agent.kill(); // as by `kill -9`
 * ```
 *
 * @module
 */
import { AdminClient } from "../../agent/admin_client.ts";
import { diskSockets } from "../../agent/map/names.ts";
import { within } from "../guest/deadline.ts";
import { find } from "../guest/install.ts";
import { addressFor } from "./ports.ts";
import { programPermissions } from "./permissions.ts";

const ROOT = decodeURIComponent(new URL("../../", import.meta.url).pathname);

/** How long a start may take: the runtime alone takes a second, and replaying a long log some more. */
const START_TIMEOUT_MS = 60_000;

/** How long a clean stop may take. */
const STOP_TIMEOUT_MS = 60_000;

/** How long one command of the command line may take. */
const COMMAND_TIMEOUT_MS = 120_000;

/** Names the compiled program to test in place of the source. */
export const PROGRAM_VARIABLE = "KELPIE_TEST_PROGRAM";

/** How to start an agent. */
export interface AgentOptions {
  readonly runDir: string;
  readonly dataDir: string;
  readonly capacity?: string;
  readonly cache?: "buffered" | "direct";
  /** `host:port` for other agents; by default one on the loopback that the data directory keeps. */
  readonly listen?: string;
  /** More arguments of `kelpie agent`. */
  readonly arguments?: readonly string[];
  /** Added to the environment. */
  readonly env?: Readonly<Record<string, string>>;
  /** The compiled program; by default what {@linkcode PROGRAM_VARIABLE} names, or else the source. */
  readonly program?: string;
  /** What runs the program, such as `nsenter` with its arguments; it has to become the program, by exec. */
  readonly prefix?: readonly string[];
}

/** How a process ended. */
export interface Ended {
  readonly code: number;
  readonly stdout: Uint8Array<ArrayBuffer>;
  readonly stderr: string;
}

/** An agent that ended in place of getting ready, with what it had to say. */
export class AgentRefusal extends Error {
  override readonly name = "AgentRefusal";

  constructor(readonly code: number, readonly stderr: string) {
    super(`the agent ended with status ${code} before it was ready:\n${stderr}`);
  }
}

/** A running agent; see the module's description. */
export class AgentProcess implements AsyncDisposable {
  readonly runDir: string;
  readonly #options: AgentOptions;
  readonly #process: Deno.ChildProcess;
  readonly #ready = Promise.withResolvers<void>();
  readonly #reading: Promise<void>;
  #log = "";

  private constructor(options: AgentOptions, process: Deno.ChildProcess) {
    this.runDir = options.runDir;
    this.#options = options;
    this.#process = process;
    this.#ready.promise.catch(() => {});
    this.#reading = this.#read();
  }

  /**
   * Starts an agent and waits until it is ready.
   *
   * @throws AgentRefusal when it ends instead
   */
  static async start(options: AgentOptions): Promise<AgentProcess> {
    const agent = AgentProcess.launch(options);
    try {
      await within(agent.#ready.promise, START_TIMEOUT_MS, () => `not ready:\n${agent.log}`);
      return agent;
    } catch (error) {
      await agent.kill();
      throw error;
    }
  }

  /** Starts an agent and does not wait: for those who want to kill it while it starts. */
  static launch(options: AgentOptions): AgentProcess {
    const args = ["--run-dir", options.runDir, "agent", "--data", options.dataDir];
    args.push("--listen", options.listen ?? addressFor(options.dataDir));
    if (options.capacity !== undefined) args.push("--capacity", options.capacity);
    if (options.cache !== undefined) args.push("--cache", options.cache);
    args.push(...options.arguments ?? []);
    const process = spawnKelpie(args, { ...options, stdin: "null", stdout: "null" });
    return new AgentProcess(options, process);
  }

  /** The agent's process ID. */
  get pid(): number {
    return this.#process.pid;
  }

  /** What it has written to standard error so far. */
  get log(): string {
    return this.#log;
  }

  /** Its exit, which may have happened already. */
  get exited(): Promise<Deno.CommandStatus> {
    return this.#process.status;
  }

  /** Path of a disk's socket. */
  socket(disk: string): string {
    return diskSockets(this.runDir, disk).readWrite;
  }

  /** Path of a disk's socket for reading only. */
  readOnlySocket(disk: string): string {
    return diskSockets(this.runDir, disk).readOnly;
  }

  /** A client of its admin API, to be closed. */
  client(): AdminClient {
    return new AdminClient({ runDir: this.runDir });
  }

  /** Resolves when it is ready; rejects when it ends instead. */
  get ready(): Promise<void> {
    return this.#ready.promise;
  }

  /** Sends any signal and returns at once; SIGSTOP makes a host that hangs. */
  signal(name: Deno.Signal): void {
    signal(this.#process, name);
  }

  /** Sends SIGKILL and returns at once, for the moment to be exact. */
  killNow(): void {
    signal(this.#process, "SIGKILL");
  }

  /** Ends it as `kill -9` does, and waits until it is gone. Does nothing when it has ended. */
  async kill(): Promise<void> {
    signal(this.#process, "SIGKILL");
    await this.#process.status;
    await this.#reading;
  }

  /**
   * Stops it as systemd does, by SIGTERM, and waits until it is gone.
   *
   * @throws Error with its log when it does not end, or not with status 0
   */
  async stop(): Promise<void> {
    signal(this.#process, "SIGTERM");
    const status = await within(
      this.#process.status,
      STOP_TIMEOUT_MS,
      () => `the agent does not stop:\n${this.#log}`,
    );
    await this.#reading;
    if (status.code === 0) return;
    throw new Error(`the agent ended with status ${status.code}:\n${this.#log}`);
  }

  /** Runs a command of the command line against this agent, to its end. */
  run(...args: readonly string[]): Promise<Ended> {
    return this.runWith({}, ...args);
  }

  /** Same, with data for its standard input. */
  async runWith(
    { stdin, program, env }: {
      stdin?: Uint8Array<ArrayBuffer>;
      program?: string;
      env?: Record<string, string>;
    },
    ...args: readonly string[]
  ): Promise<Ended> {
    return await kelpie(args, {
      stdin,
      program: program ?? this.#options.program,
      env: { KELPIE_RUN_DIR: this.runDir, ...env },
    });
  }

  /**
   * Runs a command that must succeed.
   *
   * @returns its standard output, without white space at the ends
   */
  async check(...args: readonly string[]): Promise<string> {
    const { code, stdout, stderr } = await this.run(...args);
    if (code !== 0) throw new Error(`kelpie ${args.join(" ")} ended with ${code}:\n${stderr}`);
    return new TextDecoder().decode(stdout).trim();
  }

  /** Same as {@linkcode AgentProcess.kill}; `await using` calls it. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.kill();
  }

  async #read(): Promise<void> {
    for await (const text of this.#process.stderr.pipeThrough(new TextDecoderStream())) {
      this.#log += text;
      // With what follows on the line, in either of the log's formats.
      if (/the agent is ready\b.*\n/.test(this.#log)) this.#ready.resolve();
    }
    const { code } = await this.#process.status;
    this.#ready.reject(new AgentRefusal(code, this.#log));
  }
}

/**
 * Runs the command line to its end.
 *
 * @param options.program the compiled program; the source by default
 * @param options.prefix what runs the program, as in {@linkcode AgentOptions}
 */
export async function kelpie(
  args: readonly string[],
  options: {
    readonly stdin?: Uint8Array<ArrayBuffer>;
    readonly program?: string;
    readonly prefix?: readonly string[];
    readonly env?: Readonly<Record<string, string>>;
  } = {},
): Promise<Ended> {
  const { stdin } = options;
  const process = spawnKelpie(args, {
    ...options,
    stdin: stdin === undefined ? "null" : "piped",
    stdout: "piped",
  });
  // A command that ends early does not read all; its status says what there is to say.
  const feeding = stdin === undefined
    ? Promise.resolve()
    : new Response(stdin).body!.pipeTo(process.stdin).catch(() => {});
  try {
    const [stdout, stderr, { code }] = await within(
      Promise.all([
        new Response(process.stdout).bytes(),
        new Response(process.stderr).text(),
        process.status,
        feeding,
      ]),
      COMMAND_TIMEOUT_MS,
      () => `kelpie ${args.join(" ")} does not end`,
    );
    return { code, stdout, stderr };
  } catch (error) {
    signal(process, "SIGKILL");
    await process.status;
    throw error;
  }
}

/**
 * Starts the program with the permissions that its task gives it. It dies with this thread, where that can be arranged.
 *
 * @returns the process, whose standard error is to be read
 */
export function spawnKelpie(
  args: readonly string[],
  options: {
    readonly program?: string;
    readonly prefix?: readonly string[];
    readonly env?: Readonly<Record<string, string>>;
    readonly stdin: "null" | "piped";
    readonly stdout: "null" | "piped";
  },
): Deno.ChildProcess {
  const program = options.program ?? Deno.env.get(PROGRAM_VARIABLE);
  const line = program === undefined ? sourceCommand() : [program];
  const setpriv = find("setpriv");
  const dying = setpriv === undefined ? [] : [setpriv, "--pdeathsig", "KILL", "--"];
  const [path, ...rest] = [...dying, ...options.prefix ?? [], ...line, ...args];
  return new Deno.Command(path, {
    args: rest,
    env: { NO_COLOR: "1", ...options.env },
    stdin: options.stdin,
    stdout: options.stdout,
    stderr: "piped",
  }).spawn();
}

/** The line that the task `kelpie` runs, up to the program's own arguments. */
function sourceCommand(): string[] {
  return [Deno.execPath(), "run", "--quiet", ...programPermissions(), `${ROOT}cli/main.ts`];
}

function signal(process: Deno.ChildProcess, name: Deno.Signal): void {
  try {
    process.kill(name);
  } catch {
    // It has ended by itself.
  }
}

/** A temporary directory that is removed with all that is in it; its path is short enough for sockets. */
export class WorkDirectory implements AsyncDisposable {
  private constructor(readonly path: string) {}

  static async make(prefix = "kelpie-e2e-"): Promise<WorkDirectory> {
    return new WorkDirectory(await Deno.makeTempDir({ prefix }));
  }

  /** Options of one of several agents, in a directory of its own that is made if need be; it has that name in its cluster. */
  agent(name: string, more: readonly string[] = []): AgentOptions {
    const directory = `${this.path}/${name}`;
    Deno.mkdirSync(directory, { recursive: true });
    return {
      runDir: `${directory}/run`,
      dataDir: `${directory}/data`,
      capacity: "256M",
      arguments: ["--name", name, ...more],
    };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Deno.remove(this.path, { recursive: true }).catch(() => {});
  }
}
