/**
 * Where a command reads and writes: the process's own streams, or those of a test.
 *
 * Data goes to `out`, everything else to `error`, so that a command can stand in a pipe.
 *
 * @module
 */

/** What a command needs of the process that it runs in. */
export interface Terminal {
  /** Whether a person may answer questions. */
  readonly isInputTerminal: boolean;
  readonly isOutTerminal: boolean;
  readonly isErrorTerminal: boolean;
  /** Value of an environment variable. */
  environment(name: string): string | undefined;
  /** Width of the terminal in characters. */
  columns(): number;
  /** Height of the terminal in lines. */
  rows(): number;
  /**
   * Has the terminal give every key at once and show none; SIGINT still comes from Ctrl-C. Only where standard input is a terminal.
   *
   * @param onKey told of what was typed
   * @returns makes the terminal as it was
   */
  takeKeys(onKey: (text: string) => void): () => void;
  /** Milliseconds that only rise. */
  nowMs(): number;
  /** Waits; rejects with the signal's reason when it aborts. */
  sleep(milliseconds: number, signal: AbortSignal): Promise<void>;
  /** Writes text to standard output. */
  print(text: string): void;
  /** Writes text to standard error. */
  printError(text: string): void;
  /** Writes all of `bytes` to standard output. */
  write(bytes: Uint8Array): Promise<void>;
  /** Reads into `bytes` from standard input; 0 at its end. */
  read(bytes: Uint8Array): Promise<number>;
  /** Shows a question on standard error and reads a line; null at the end of input. */
  ask(question: string): string | null;
  /** From now on SIGINT and SIGTERM do not end the process: they abort this signal. */
  interrupted(): AbortSignal;
}

/** Why an {@linkcode Terminal.interrupted} signal aborted. */
export class Interrupted extends Error {
  override readonly name = "Interrupted";

  constructor(readonly signal: "SIGINT" | "SIGTERM") {
    super(`interrupted by ${signal}`);
  }
}

/** Width where there is no terminal, or it does not say. */
const COLUMNS_USUAL = 80;

/** Height, likewise. */
const ROWS_USUAL = 24;

const encoder = new TextEncoder();

/** The terminal of this process. */
export function systemTerminal(): Terminal {
  let controller: AbortController | undefined;
  // Rejects when a signal comes: standard input and output may keep one waiting for ever.
  let aborted: Promise<never> | undefined;
  const unlessAborted = <T>(work: Promise<T>): Promise<T> =>
    aborted === undefined ? work : Promise.race([work, aborted]);
  return {
    isInputTerminal: Deno.stdin.isTerminal(),
    isOutTerminal: Deno.stdout.isTerminal(),
    isErrorTerminal: Deno.stderr.isTerminal(),
    environment: (name) => Deno.env.get(name),
    columns() {
      try {
        return Deno.consoleSize().columns || COLUMNS_USUAL;
      } catch {
        return COLUMNS_USUAL;
      }
    },
    rows() {
      try {
        return Deno.consoleSize().rows || ROWS_USUAL;
      } catch {
        return ROWS_USUAL;
      }
    },
    takeKeys(onKey) {
      Deno.stdin.setRaw(true, { cbreak: true });
      let isTaken = true;
      (async () => {
        const bytes = new Uint8Array(64);
        for (let count; isTaken && (count = await Deno.stdin.read(bytes)) !== null;) {
          if (isTaken) onKey(new TextDecoder().decode(bytes.subarray(0, count)));
        }
      })().catch(() => {}); // a terminal that is gone types nothing
      return () => {
        isTaken = false;
        Deno.stdin.setRaw(false);
      };
    },
    nowMs: () => performance.now(),
    sleep(milliseconds, signal) {
      return new Promise((resolve, reject) => {
        if (signal.aborted) return reject(signal.reason);
        const end = () => {
          signal.removeEventListener("abort", abort);
          resolve();
        };
        const timer = setTimeout(end, milliseconds);
        const abort = () => {
          clearTimeout(timer);
          reject(signal.reason);
        };
        signal.addEventListener("abort", abort, { once: true });
      });
    },
    print: (text) => writeAllSync(Deno.stdout, encoder.encode(text)),
    printError: (text) => writeAllSync(Deno.stderr, encoder.encode(text)),
    async write(bytes) {
      for (let at = 0; at < bytes.length;) {
        at += await unlessAborted(Deno.stdout.write(bytes.subarray(at)));
      }
    },
    read: async (bytes) => await unlessAborted(Deno.stdin.read(bytes)) ?? 0,
    ask(question) {
      writeAllSync(Deno.stderr, encoder.encode(question));
      return readLine();
    },
    interrupted() {
      if (controller === undefined) {
        const { signal } = controller = abortedBySignals();
        const { promise, reject } = Promise.withResolvers<never>();
        promise.catch(() => {}); // nobody may be waiting
        signal.addEventListener("abort", () => reject(signal.reason), { once: true });
        aborted = promise;
      }
      return controller.signal;
    },
  };
}

function abortedBySignals(): AbortController {
  const controller = new AbortController();
  for (const signal of ["SIGINT", "SIGTERM"] as const) {
    Deno.addSignalListener(signal, () => {
      // The first one asks for an orderly end, which may take time: the second one need not wait.
      if (controller.signal.aborted) Deno.exit(signal === "SIGINT" ? 130 : 143);
      controller.abort(new Interrupted(signal));
    });
  }
  return controller;
}

function writeAllSync(file: { writeSync(bytes: Uint8Array): number }, bytes: Uint8Array): void {
  for (let at = 0; at < bytes.length;) at += file.writeSync(bytes.subarray(at));
}

/** Longest answer to a question, in bytes. */
const LINE_BYTES_MAX = 1024;

function readLine(): string | null {
  const line: number[] = [];
  const byte = new Uint8Array(1);
  while (line.length < LINE_BYTES_MAX) {
    if ((Deno.stdin.readSync(byte) ?? 0) === 0) {
      if (line.length === 0) return null;
      break;
    }
    if (byte[0] === 0x0a) break;
    line.push(byte[0]);
  }
  return new TextDecoder().decode(new Uint8Array(line));
}
