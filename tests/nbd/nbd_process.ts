/**
 * `kelpie nbd` as a process beside an agent, the tools that speak NBD, and a client that speaks it byte by byte.
 *
 * @module
 */
import { assertEquals } from "@std/assert/mod.js";
import { within } from "../guest/deadline.ts";
import { ensurePackages, type ProgramName } from "../guest/install.ts";
import { AgentProcess, spawnKelpie, WorkDirectory } from "../tools/agent_process.ts";
import {
  bytesOf,
  goData,
  option,
  parseAnswers,
  type Reply,
  ReplyReader,
  request,
} from "./client.ts";

const START_TIMEOUT_MS = 60_000;
const TOOL_TIMEOUT_MS = 120_000;

/** A running server. */
export class NbdProcess implements AsyncDisposable {
  readonly #process: Deno.ChildProcess;
  readonly #ready = Promise.withResolvers<void>();
  readonly #reading: Promise<void>;
  #log = "";

  private constructor(process: Deno.ChildProcess) {
    this.#process = process;
    this.#ready.promise.catch(() => {});
    this.#reading = this.#read();
  }

  /** Starts a server for an agent and waits until it listens. Throws an Error with what it said when it ends instead. */
  static async start(agent: AgentProcess, ...args: readonly string[]): Promise<NbdProcess> {
    const process = spawnKelpie(["--run-dir", agent.runDir, "nbd", ...args], {
      stdin: "null",
      stdout: "null",
    });
    const server = new NbdProcess(process);
    try {
      await within(server.#ready.promise, START_TIMEOUT_MS, () => `not ready:\n${server.log}`);
    } catch (error) {
      await server.kill();
      throw error;
    }
    return server;
  }

  /** What it has said so far. */
  get log(): string {
    return this.#log;
  }

  /** Process ID. */
  get pid(): number {
    return this.#process.pid;
  }

  /** Ends it in good order; its exit code. */
  async stop(): Promise<number> {
    this.#process.kill("SIGTERM");
    const { code } = await within(this.#process.status, START_TIMEOUT_MS, () => "it does not stop");
    await this.#reading;
    return code;
  }

  async kill(): Promise<void> {
    try {
      this.#process.kill("SIGKILL");
    } catch {
      // It has ended.
    }
    await this.#process.status;
    await this.#reading;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.kill();
  }

  async #read(): Promise<void> {
    for await (const text of this.#process.stderr.pipeThrough(new TextDecoderStream())) {
      this.#log += text;
      if (/^serving NBD on .*\n/m.test(this.#log)) this.#ready.resolve();
    }
    this.#ready.reject(new Error(`kelpie nbd has ended:\n${this.#log}`));
  }
}

/** An agent with disks in a directory of its own, for one test. */
export async function withAgent(
  disks: Readonly<Record<string, string>>,
  test: (agent: AgentProcess, path: string) => Promise<void>,
): Promise<void> {
  await using work = await WorkDirectory.make("kelpie-nbd-");
  const options = { runDir: `${work.path}/run`, dataDir: `${work.path}/data`, capacity: "1G" };
  await using agent = await AgentProcess.start(options);
  for (const [name, size] of Object.entries(disks)) await agent.check("disk", "create", name, size);
  await test(agent, work.path);
}

/** How a tool ended. */
export interface ToolEnd {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

/** Runs a tool to its end. */
export async function runTool(name: ProgramName, ...args: readonly string[]): Promise<ToolEnd> {
  const { [name]: program } = await ensurePackages([name]);
  const child = new Deno.Command(program, {
    args: [...args],
    env: { LC_ALL: "C" },
    stdin: "null",
    stdout: "piped",
    stderr: "piped",
  }).spawn();
  try {
    const { code, stdout, stderr } = await within(
      child.output(),
      TOOL_TIMEOUT_MS,
      () => `${name} ${args.join(" ")} does not end`,
    );
    const text = (bytes: Uint8Array) => new TextDecoder().decode(bytes);
    return { code, stdout: text(stdout), stderr: text(stderr) };
  } catch (error) {
    child.kill("SIGKILL");
    throw error;
  }
}

/** Runs a tool that must succeed; its standard output. */
export async function tool(name: ProgramName, ...args: readonly string[]): Promise<string> {
  const { code, stdout, stderr } = await runTool(name, ...args);
  if (code !== 0) {
    throw new Error(`${name} ${args.join(" ")} ended with ${code}:\n${stdout}${stderr}`);
  }
  return stdout;
}

/** URI of an export on a unix socket. */
export function uriOf(socket: string, name: string): string {
  return `nbd+unix:///${name}?socket=${socket}`;
}

/** A client that speaks the protocol itself. */
export class RawClient implements Disposable {
  readonly #reader: ReplyReader;
  readonly #lengths = new Map<number, number>();
  #cookie = 0;

  private constructor(readonly connection: Deno.Conn) {
    this.#reader = new ReplyReader((cookie) => this.#lengths.get(cookie) ?? 0);
  }

  /** Connects and goes through the handshake, without structured replies. Throws an Error with the server's refusal. */
  static async open(path: string, name: string): Promise<RawClient> {
    const client = await RawClient.connect(path);
    await client.send(bytesOf([4, 3], option(7, goData(name))));
    let answers: ReturnType<typeof parseAnswers> = [];
    let bytes: Uint8Array<ArrayBuffer> = new Uint8Array(0);
    while (answers.at(-1)?.type !== 1) {
      bytes = bytesOf(bytes, await client.receive());
      try {
        answers = parseAnswers(bytes);
      } catch {
        continue; // the rest is on its way
      }
      const refusal = answers.find(({ type }) => type >= 0x8000_0000);
      if (refusal !== undefined) {
        client[Symbol.dispose]();
        throw new Error(new TextDecoder().decode(refusal.data));
      }
    }
    return client;
  }

  /** Connects, and reads the greeting. */
  static async connect(path: string): Promise<RawClient> {
    const client = new RawClient(await Deno.connect({ transport: "unix", path }));
    let greeting: Uint8Array<ArrayBuffer> = new Uint8Array(0);
    try {
      while (greeting.length < 18) greeting = bytesOf(greeting, await client.receive());
    } catch (error) {
      client[Symbol.dispose]();
      throw error;
    }
    assertEquals(greeting, bytesOf("NBDMAGICIHAVEOPT", [2, 3]));
    return client;
  }

  async send(bytes: Uint8Array): Promise<void> {
    for (let at = 0; at < bytes.length;) at += await this.connection.write(bytes.subarray(at));
  }

  /** What comes next; throws an Error at the end. */
  async receive(): Promise<Uint8Array<ArrayBuffer>> {
    const bytes = new Uint8Array(65536);
    const count = await this.connection.read(bytes);
    if (count === null) throw new Error("the server has closed the connection");
    return bytes.slice(0, count);
  }

  /** One request and its reply. */
  async ask(fields: Omit<Parameters<typeof request>[0], "cookie">): Promise<Reply> {
    const cookie = ++this.#cookie;
    if (fields.command === 0) this.#lengths.set(cookie, fields.length ?? 0);
    await this.send(request({ ...fields, cookie }));
    for (;;) {
      const [reply] = this.#reader.push(await this.receive());
      if (reply !== undefined) return reply;
    }
  }

  /** Whether the server closes the connection, whatever it says before. */
  async isClosed(): Promise<void> {
    while (await this.connection.read(new Uint8Array(65536)).catch(() => null) !== null);
  }

  [Symbol.dispose](): void {
    try {
      this.connection.close();
    } catch {
      // It is closed.
    }
  }
}
