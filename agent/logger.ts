/**
 * The agent's log: one line per event on standard error, for people or for programs.
 *
 *     text   2026-11-23T04:05:06.789Z info  disk opened disk=web queues=4
 *     json   {"time":"2026-11-23T04:05:06.789Z","level":"info","message":"disk opened","disk":"web"}
 *
 * Invariants: one event is one line, whatever its texts hold; logging never throws and never waits;
 * a line is at most about {@linkcode VALUE_LENGTH_MAX} characters per value long.
 *
 * Secrets (keys, the cluster secret, guests' data) are never passed in: nothing here could tell them
 * from other values, so callers name what they log field by field and log no whole objects.
 *
 * @module
 */

import { LOG_LEVELS, type LogFormat, type LogLevel } from "./config.ts";
import { libc } from "./platform/linux/libc.ts";
import type { Log } from "./platform/platform.ts";

/** Longest text of one value, in UTF-16 code units; the rest is cut. */
export const VALUE_LENGTH_MAX = 4096;

/** Bytes that a pipe or socket takes without waiting when poll(2) says that it can be written to: PIPE_BUF. */
const WRITE_BYTES = 4096;

/** Most attempts to write the rest of a line. */
const WRITES_MAX = 64;

/** Details of an event. Errors show their message. */
export type Fields = Readonly<Record<string, unknown>>;

/** What a logger is made with. */
export interface LoggerOptions {
  readonly level: LogLevel;
  readonly format: LogFormat;
  /** Takes one line with its line feed; standard error by default. */
  readonly write?: (line: string) => void;
  /** Milliseconds since 1970; the system's clock by default. */
  readonly now?: () => number;
}

/** What a logger and its children share. */
interface Sink {
  level: LogLevel;
  readonly format: LogFormat;
  readonly write: (line: string) => void;
  readonly now: () => number;
}

/**
 * A {@linkcode Log} that writes lines.
 *
 * @example
 * ```ts
 * import { Logger } from "./logger.ts";
 *
 * const lines: string[] = [];
 * const log = new Logger({
 *   level: "info",
 *   format: "text",
 *   write: (line) => lines.push(line),
 *   now: () => 0,
 * });
 * log.child({ disk: "web" }).info("disk opened", { queues: 4 });
 * log.debug("not written");
 * if (lines.join("") !== "1970-01-01T00:00:00.000Z info  disk opened disk=web queues=4\n") {
 *   throw new Error(lines.join(""));
 * }
 * ```
 */
export class Logger implements Log {
  readonly #sink: Sink;
  readonly #fields: Fields;

  /** @param options what to write and where to; a {@linkcode child} is made from its parent */
  constructor(options: LoggerOptions | { readonly parent: Logger; readonly fields: Fields }) {
    if ("parent" in options) {
      this.#sink = options.parent.#sink;
      this.#fields = { ...options.parent.#fields, ...options.fields };
      return;
    }
    const { level, format, write = writeToStandardError, now = Date.now } = options;
    this.#sink = { level, format, write, now };
    this.#fields = {};
  }

  /** How much is logged now. */
  get level(): LogLevel {
    return this.#sink.level;
  }

  /** Changes it, for all children too. */
  set level(level: LogLevel) {
    this.#sink.level = level;
  }

  /** A logger whose every line has these fields before its own; it shares the level. */
  child(fields: Fields): Logger {
    return new Logger({ parent: this, fields });
  }

  /** For those who look into how the agent works. */
  debug(message: string, fields?: Fields): void {
    this.log("debug", message, fields);
  }

  /** What an operator expects to happen. */
  info(message: string, fields?: Fields): void {
    this.log("info", message, fields);
  }

  /** What an operator should know of, though all goes on. */
  warn(message: string, fields?: Fields): void {
    this.log("warn", message, fields);
  }

  /** What does not go on. */
  error(message: string, fields?: Fields): void {
    this.log("error", message, fields);
  }

  /** Writes one event when its level is logged. */
  log(level: LogLevel, message: string, fields: Fields = {}): void {
    const sink = this.#sink;
    if (LOG_LEVELS.indexOf(level) < LOG_LEVELS.indexOf(sink.level)) return;
    const all = { ...this.#fields, ...fields };
    const time = new Date(sink.now()).toISOString();
    const line = sink.format === "json"
      ? jsonLine({ time, level, message }, all)
      : textLine(time, level, message, all);
    sink.write(line);
  }
}

function textLine(time: string, level: LogLevel, message: string, fields: Fields): string {
  const pairs = Object.entries(fields).filter(([, value]) => value !== undefined)
    .map(([key, value]) => ` ${plain(key)}=${textValue(value)}`);
  return `${time} ${level.padEnd(5)} ${plain(message)}${pairs.join("")}\n`;
}

/** A value as one word, in quotes when it would not be one. */
function textValue(value: unknown): string {
  const text = toText(value);
  return /^[^\s"=\p{C}]+$/u.test(text) ? text : plain(JSON.stringify(text));
}

function toText(value: unknown): string {
  if (typeof value === "string") return cut(value);
  if (value instanceof Error) return cut(value.message);
  if (typeof value !== "object" || value === null) return String(value);
  return cut(encode(value));
}

/** Text that stays in its line and does nothing to a terminal. */
function plain(text: string): string {
  return cut(text).replaceAll(/[\p{C}\p{Zl}\p{Zp}]/gu, (character) => {
    const code = character.codePointAt(0)!.toString(16);
    return code.length > 4 ? `\\u{${code}}` : `\\u${code.padStart(4, "0")}`;
  });
}

function cut(text: string): string {
  return text.length > VALUE_LENGTH_MAX ? `${text.slice(0, VALUE_LENGTH_MAX)}…` : text;
}

function jsonLine(head: Readonly<Record<string, string>>, fields: Fields): string {
  const body = Object.entries(fields).filter(([key]) => !Object.hasOwn(head, key))
    .map(([key, value]) => [key, jsonValue(value)]);
  return `${encode({ ...head, message: cut(head.message), ...Object.fromEntries(body) })}\n`;
}

function jsonValue(value: unknown): unknown {
  if (value === null || ["number", "boolean", "undefined"].includes(typeof value)) return value;
  return toText(value);
}

function encode(value: unknown): string {
  try {
    return JSON.stringify(
      value,
      (_, each) => typeof each === "bigint" ? String(each) : each,
    ) ?? "nothing";
  } catch {
    return '"(cannot be shown)"';
  }
}

/**
 * Writes a line; when nobody takes it, it is lost, and the agent goes on: a reader that hangs (a terminal that is held, a
 * log daemon whose disk does not answer) must not hold up guests, nor gossip.
 */
function writeToStandardError(line: string): void {
  const bytes = new TextEncoder().encode(isLineCut ? `\n${line}` : line);
  let written = 0;
  try {
    for (let attempt = 0; written < bytes.length && attempt < WRITES_MAX; attempt++) {
      if (libc.poll(standardError, 1n, 0) <= 0) break;
      written += Deno.stderr.writeSync(bytes.subarray(written, written + WRITE_BYTES));
    }
  } catch {
    // A closed pipe or a full disk behind it: there is nobody left to tell.
  }
  if (written > 0) isLineCut = written < bytes.length;
}

/** What was written last is not a whole line. */
let isLineCut = false;

/** struct pollfd of standard error, asked for POLLOUT. */
const standardError = new Uint8Array(new Int32Array([2, 4]).buffer);
