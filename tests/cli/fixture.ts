/**
 * The command line in this process: a terminal in memory, and an agent whose data plane is a fake.
 *
 * @module
 */
import { assertEquals } from "@std/assert/mod.js";
import type { CommandUnknownOpts } from "@commander-js/extra-typings";
// Loaded here, since commands that load it late would look as if they leaked a library.
import "../../agent/frontend/front_end.ts";
import { Interrupted, type Terminal } from "../../cli/terminal.ts";
import { runCommandLine } from "../../cli/main.ts";
import { serve, type Server } from "../../agent/http/server.ts";
import { FakeBackend, FakeLog } from "../http/fake_backend.ts";

/** Waits of one command, after which it will not end by itself. */
const SLEEPS_MAX = 100;

/** A terminal that remembers. */
export class FakeTerminal implements Terminal {
  isInputTerminal = false;
  isOutTerminal = false;
  isErrorTerminal = false;
  variables: Record<string, string> = {};
  width = 80;
  height = 24;
  timeMs = 0;
  /** Whoever takes the keys. */
  onKey: ((text: string) => void) | null = null;
  /** Runs when somebody waits, before the time passes. */
  onSleep: () => void = () => {};
  /** Answers to questions, in order. */
  answers: string[] = [];
  /** What standard input has. */
  input = new Uint8Array(0);
  /** Most bytes of one read: pipes give little at a time. */
  readBytesMax = Infinity;
  stderr = "";
  readonly questions: string[] = [];
  readonly controller = new AbortController();
  readonly #chunks: Uint8Array[] = [];
  #sleeps = 0;

  environment(name: string): string | undefined {
    return this.variables[name];
  }

  columns(): number {
    return this.width;
  }

  rows(): number {
    return this.height;
  }

  takeKeys(onKey: (text: string) => void): () => void {
    this.onKey = onKey;
    return () => {
      this.onKey = null;
    };
  }

  nowMs(): number {
    return this.timeMs;
  }

  /** Time passes at once, but not for ever. */
  sleep(milliseconds: number, signal: AbortSignal): Promise<void> {
    if (signal.aborted) return Promise.reject(signal.reason);
    if (++this.#sleeps > SLEEPS_MAX) return Promise.reject(new Error("it waits for ever"));
    this.onSleep();
    if (signal.aborted) return Promise.reject(signal.reason);
    this.timeMs += milliseconds;
    return Promise.resolve();
  }

  print(text: string): void {
    this.#chunks.push(new TextEncoder().encode(text));
  }

  printError(text: string): void {
    this.stderr += text;
  }

  write(bytes: Uint8Array): Promise<void> {
    this.#chunks.push(bytes.slice());
    return Promise.resolve();
  }

  read(bytes: Uint8Array): Promise<number> {
    const length = Math.min(bytes.length, this.input.length, this.readBytesMax);
    bytes.set(this.input.subarray(0, length));
    this.input = this.input.subarray(length);
    return Promise.resolve(length);
  }

  ask(question: string): string | null {
    this.questions.push(question);
    return this.answers.shift() ?? null;
  }

  interrupted(): AbortSignal {
    return this.controller.signal;
  }

  interrupt(signal: "SIGINT" | "SIGTERM" = "SIGINT"): void {
    this.controller.abort(new Interrupted(signal));
  }

  get bytes(): Uint8Array<ArrayBuffer> {
    const bytes = new Uint8Array(this.#chunks.reduce((sum, { length }) => sum + length, 0));
    let at = 0;
    for (const chunk of this.#chunks) {
      bytes.set(chunk, at);
      at += chunk.length;
    }
    return bytes;
  }

  get stdout(): string {
    return new TextDecoder().decode(this.bytes);
  }
}

/** What a command line did. */
export interface Ran {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
  readonly terminal: FakeTerminal;
}

/** Runs a command line; `words` are split at spaces when they are one string. */
export async function run(
  words: string | readonly string[],
  prepare: (terminal: FakeTerminal) => void = () => {},
): Promise<Ran> {
  const terminal = new FakeTerminal();
  prepare(terminal);
  const args = typeof words === "string" ? words.split(" ").filter((word) => word !== "") : words;
  const code = await runCommandLine(args, terminal);
  return { code, stdout: terminal.stdout, stderr: terminal.stderr, terminal };
}

/** Runs a command line that must end well. */
export async function runWell(
  words: string | readonly string[],
  prepare?: (terminal: FakeTerminal) => void,
): Promise<Ran> {
  const ran = await run(words, prepare);
  assertEquals(ran.code, 0, ran.stderr);
  return ran;
}

/** An agent with a fake data plane, and the command line that knows where it is. */
export class FakeAgent implements AsyncDisposable {
  private constructor(
    readonly backend: FakeBackend,
    readonly runDir: string,
    readonly server: Server,
  ) {}

  static async start(): Promise<FakeAgent> {
    const runDir = await Deno.makeTempDir({ prefix: "kelpie-cli-" });
    const backend = new FakeBackend();
    backend.runDir = runDir;
    return new FakeAgent(backend, runDir, await serve({ backend, log: new FakeLog(), runDir }));
  }

  run(
    words: string | readonly string[],
    prepare: (terminal: FakeTerminal) => void = () => {},
  ): Promise<Ran> {
    return run(words, (terminal) => {
      terminal.variables.KELPIE_RUN_DIR = this.runDir;
      prepare(terminal);
    });
  }

  async runWell(
    words: string | readonly string[],
    prepare?: (terminal: FakeTerminal) => void,
  ): Promise<Ran> {
    const ran = await this.run(words, prepare);
    assertEquals(ran.code, 0, ran.stderr);
    return ran;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.server.close();
    await Deno.remove(this.runDir, { recursive: true });
  }
}

/** A command, and the words that lead to it. */
export interface Found {
  readonly command: CommandUnknownOpts;
  readonly path: readonly string[];
}

/** A command and all below it, each before what is below that. */
export function allCommands(command: CommandUnknownOpts, path: readonly string[] = []): Found[] {
  const below = command.commands.flatMap((each) => allCommands(each, [...path, each.name()]));
  return [{ command, path }, ...below];
}
