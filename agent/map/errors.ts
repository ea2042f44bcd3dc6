/**
 * The one error that control operations give: as a value between parts, as JSON over HTTP, and as an
 * exit code of the command line.
 *
 * @module
 */

/**
 * What kind of thing went wrong. Only ever appended to; programs may rely on these.
 *
 * | code | meaning | HTTP | exit code |
 * |---|---|---|---|
 * | `invalid` | the request itself is wrong | 400 | 64 |
 * | `missing` | what it names is not there | 404 | 5 |
 * | `exists` | what it would make is there already | 409 | 3 |
 * | `busy` | in use by a guest or a program | 409 | 1 |
 * | `limit` | a bound of this version of Kelpie | 422 | 1 |
 * | `full` | no space left in the store | 507 | 4 |
 * | `unavailable` | starting, stopping or failed; may work later | 503 | 2 |
 * | `corrupt` | bytes that do not decode | 500 | 2 |
 * | `internal` | anything else | 500 | 2 |
 * | `stale` | what it was based on has changed meanwhile | 409 | 1 |
 */
export type ControlErrorCode =
  | "invalid"
  | "missing"
  | "exists"
  | "busy"
  | "limit"
  | "full"
  | "unavailable"
  | "corrupt"
  | "internal"
  | "stale";

/** All codes, in the order of the table above. */
export const CONTROL_ERROR_CODES: readonly ControlErrorCode[] = [
  "invalid",
  "missing",
  "exists",
  "busy",
  "limit",
  "full",
  "unavailable",
  "corrupt",
  "internal",
  "stale",
];

/** An operating error. Never thrown by pure parts; they return it. */
export interface ControlError {
  readonly code: ControlErrorCode;
  /** Names the thing, the value and the limit. One line, no full stop at its end. */
  readonly message: string;
  /** What to do about it, if that can be said. */
  readonly hint?: string;
}

/** Either what was asked for or why not. */
export type Result<T> =
  | { readonly ok: true; readonly value: T }
  | { readonly ok: false; readonly error: ControlError };

/** A {@linkcode Result} that went well. */
export function success<T>(value: T): Result<T> {
  return { ok: true, value };
}

/** A {@linkcode Result} that did not. */
export function failure<T>(code: ControlErrorCode, message: string, hint?: string): Result<T> {
  return { ok: false, error: hint === undefined ? { code, message } : { code, message, hint } };
}

/** An error with code `invalid`, as the checks of single fields give it. */
export function invalid(message: string, hint?: string): ControlError {
  return hint === undefined ? { code: "invalid", message } : { code: "invalid", message, hint };
}

/**
 * A {@linkcode ControlError} on its way through code that throws and awaits: HTTP handlers, the
 * agent, the command line. The pure parts never throw it.
 */
export class ControlFailure extends Error {
  override readonly name: string = "ControlFailure";

  /** @param error what went wrong; its message becomes the exception's */
  constructor(readonly error: ControlError) {
    super(error.message);
  }
}

/**
 * The value of a {@linkcode Result}.
 *
 * @throws {ControlFailure} when there is none
 */
export function unwrap<T>(result: Result<T>): T {
  if (!result.ok) throw new ControlFailure(result.error);
  return result.value;
}
