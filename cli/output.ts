/**
 * How commands speak: tables, JSON, colours, errors and exit codes.
 *
 * @module
 */
import CliTable from "cli-table3";
import { BackEndError, type BackEndErrorKind } from "../agent/frontend/error.ts";
import { type ControlErrorCode, ControlFailure } from "../agent/map/errors.ts";
import { ENOSPC } from "../agent/platform/platform.ts";
import { Interrupted, type Terminal } from "./terminal.ts";

/** Exit codes of `kelpie`, for scripts to rely on. */
export const ExitCode = {
  Ok: 0,
  /** The command could not do what was asked. */
  Failure: 1,
  /** The agent, or the machine, does not work. */
  System: 2,
  /** What was to be made is there already. */
  Exists: 3,
  /** No space left. */
  Full: 4,
  /** What was named is not there. */
  Missing: 5,
  /** The command line is wrong. */
  Usage: 64,
  /** Ended by SIGINT, as shells count. */
  Interrupted: 130,
  /** Ended by SIGTERM, as shells count. */
  Terminated: 143,
} as const;

/** One of {@linkcode ExitCode}. */
export type ExitCode = typeof ExitCode[keyof typeof ExitCode];

/** A command that ends with a message and an exit code. */
export class CommandError extends Error {
  override readonly name = "CommandError";

  /**
   * @param message one line, no full stop at its end
   * @param options.hint what to do about it
   */
  constructor(
    readonly exitCode: ExitCode,
    message: string,
    readonly options: { readonly hint?: string } = {},
  ) {
    super(message);
  }
}

/** Exit codes of what the agent refuses: the table of `map/errors.ts`. */
const CONTROL_EXIT_CODES: Record<ControlErrorCode, ExitCode> = {
  invalid: ExitCode.Usage,
  missing: ExitCode.Missing,
  exists: ExitCode.Exists,
  busy: ExitCode.Failure,
  limit: ExitCode.Failure,
  full: ExitCode.Full,
  unavailable: ExitCode.System,
  corrupt: ExitCode.System,
  internal: ExitCode.System,
  stale: ExitCode.Failure,
};

/** Exit codes of what a disk's socket answers, or does not. */
const BACK_END_EXIT_CODES: Record<BackEndErrorKind, ExitCode> = {
  connect: ExitCode.System,
  protocol: ExitCode.System,
  disconnected: ExitCode.System,
  stalled: ExitCode.System,
  io: ExitCode.Failure,
  unsupported: ExitCode.Failure,
};

/** What there is to say about an error, and the exit code that it leads to. */
export interface ErrorDescription {
  readonly message: string;
  readonly hint?: string;
  readonly exitCode: ExitCode;
}

/**
 * Finds the words and the exit code for anything that a command may throw.
 *
 * @returns null for an error that needs no words: the reader of standard output has gone
 */
export function describeError(error: unknown): ErrorDescription | null {
  if (error instanceof CommandError) {
    return { message: error.message, hint: error.options.hint, exitCode: error.exitCode };
  }
  if (error instanceof Interrupted) {
    const isInterrupt = error.signal === "SIGINT";
    return {
      message: error.message,
      exitCode: isInterrupt ? ExitCode.Interrupted : ExitCode.Terminated,
    };
  }
  if (error instanceof BackEndError) {
    return { message: error.message, exitCode: BACK_END_EXIT_CODES[error.kind] };
  }
  if (!(error instanceof Error)) return { message: String(error), exitCode: ExitCode.System };
  if (error instanceof ControlFailure) {
    const { code, message, hint } = error.error;
    return { message, hint, exitCode: CONTROL_EXIT_CODES[code] ?? ExitCode.System };
  }
  if (error instanceof Deno.errors.BrokenPipe) return null;
  if (error instanceof RangeError) return { message: error.message, exitCode: ExitCode.Usage };
  return { message: error.message, exitCode: systemExitCode(error) };
}

/** For errors of the operating system. */
function systemExitCode(error: Error): ExitCode {
  if (error instanceof Deno.errors.NotFound) return ExitCode.Missing;
  if (error instanceof Deno.errors.AlreadyExists) return ExitCode.Exists;
  const { code } = error as { code?: unknown };
  // Deno has no class of its own for a full file system; our own system calls give the number.
  if (code === "ENOSPC" || code === "EDQUOT" || code === ENOSPC) return ExitCode.Full;
  return ExitCode.System;
}

/** The colours that are used, and what for. */
export type Style = "bold" | "dim" | "good" | "bad" | "warning";

const ESCAPES: Record<Style, readonly [number, number]> = {
  bold: [1, 22],
  dim: [2, 22],
  good: [32, 39],
  bad: [31, 39],
  warning: [33, 39],
};

/** What commands say things with. */
export class Output {
  readonly #colourOut: boolean;
  readonly #colourError: boolean;

  constructor(readonly terminal: Terminal) {
    // https://no-color.org: present and not empty, whatever its value.
    const isPlain = (terminal.environment("NO_COLOR") ?? "") !== "" ||
      terminal.environment("TERM") === "dumb";
    this.#colourOut = terminal.isOutTerminal && !isPlain;
    this.#colourError = terminal.isErrorTerminal && !isPlain;
  }

  /** Whether standard error may show what moves and shines. */
  get isErrorFancy(): boolean {
    return this.terminal.isErrorTerminal && this.terminal.environment("TERM") !== "dumb";
  }

  /** Text for standard output, in a colour where that makes sense. */
  styled(style: Style, text: string): string {
    return this.#colourOut ? styled(style, text) : text;
  }

  /** One line of data. */
  line(text: string): void {
    this.terminal.print(`${text}\n`);
  }

  /** A value as JSON, one document. */
  json(value: unknown): void {
    this.terminal.print(`${JSON.stringify(value, null, 2)}\n`);
  }

  /**
   * Rows under headings, in columns without borders.
   *
   * @param columns headings; those that begin with `>` stand at the right of their column
   */
  table(columns: readonly string[], rows: readonly (readonly string[])[]): void {
    this.terminal.print(this.tableText(columns, rows));
  }

  /** The text that {@linkcode table} prints. */
  tableText(columns: readonly string[], rows: readonly (readonly string[])[]): string {
    const none = ["top", "top-mid", "top-left", "top-right", "bottom", "bottom-mid", "bottom-left"]
      .concat(["bottom-right", "left", "left-mid", "mid", "mid-mid", "right", "right-mid"]);
    const table = new CliTable({
      head: columns.map((column) => this.styled("bold", column.replace(/^>/, ""))),
      colAligns: columns.map((column) => column.startsWith(">") ? "right" : "left"),
      chars: { ...Object.fromEntries(none.map((name) => [name, ""])), middle: "  " },
      style: { head: [], border: [], "padding-left": 0, "padding-right": 0 },
    });
    table.push(...rows.map((row) => [...row]));
    return table.toString().split("\n").map((line) => `${line.trimEnd()}\n`).join("");
  }

  /** Names and values, one pair per line. */
  fields(pairs: readonly (readonly [name: string, value: string])[]): void {
    const width = Math.max(...pairs.map(([name]) => name.length));
    for (const [name, value] of pairs) {
      const label = `${name}:`.padEnd(width + 2);
      this.line(`${this.styled("dim", label)}${value}`);
    }
  }

  /** Something for people; not data. */
  say(text: string): void {
    this.terminal.printError(`${text}\n`);
  }

  warn(text: string): void {
    const label = this.#colourError ? styled("warning", "warning") : "warning";
    this.terminal.printError(`kelpie: ${label}: ${text}\n`);
  }

  /** An error and what to do about it. */
  error({ message, hint }: { readonly message: string; readonly hint?: string }): void {
    const label = this.#colourError ? styled("bad", "error") : "error";
    this.terminal.printError(`kelpie: ${label}: ${message}\n`);
    if (hint !== undefined) this.terminal.printError(`        ${hint}\n`);
  }

  /**
   * Makes sure that something may be destroyed, or that something else with consequences may be done.
   *
   * @param options.yes whether `--yes` was given
   * @param options.action in the infinitive: `delete disk web`
   * @param options.loss what is lost by it: `its 3G of data`
   * @param options.consequence where nothing is lost, what else there is to know: `its data moves away`
   * @param options.refusal exit code when nobody is there to answer; 64 by default
   * @throws CommandError when the answer is no, or nobody is there to answer
   */
  confirm(
    options: {
      readonly yes: boolean;
      readonly action: string;
      readonly refusal?: ExitCode;
    } & ({ readonly loss: string } | { readonly consequence: string }),
  ): void {
    if (options.yes) return;
    const { isInputTerminal, isErrorTerminal } = this.terminal;
    const loses = "loss" in options ? `this destroys ${options.loss}` : options.consequence;
    if (!isInputTerminal || !isErrorTerminal) {
      throw new CommandError(
        options.refusal ?? ExitCode.Usage,
        `will not ${options.action} unasked: ${loses}`,
        {
          hint: "add --yes if that is what you want",
        },
      );
    }
    const answer = this.terminal.ask(`${upperFirst(options.action)}? ${upperFirst(loses)}. [y/N] `);
    if (/^\s*y(es)?\s*$/i.test(answer ?? "")) return;
    throw new CommandError(ExitCode.Failure, "nothing was changed");
  }
}

function styled(style: Style, text: string): string {
  const [on, off] = ESCAPES[style];
  return `\x1b[${on}m${text}\x1b[${off}m`;
}

function upperFirst(text: string): string {
  return text.charAt(0).toUpperCase() + text.slice(1);
}

/** Text from elsewhere (a process's name, a log line), safe for a terminal: no control characters. */
export function printable(text: string): string {
  // deno-lint-ignore no-control-regex
  return text.replace(/[\x00-\x1f\x7f-\x9f]/g, "?");
}
