/**
 * Waiting with a limit. Everything that the harness waits for is in another process, which may
 * never answer: a wait without a limit would hang a test run and say nothing.
 *
 * @module
 */
import { within as waitWithin } from "../../agent/deadline.ts";

/** The time was up. */
export class LateError extends Error {}

/**
 * Waits for `promise`, `timeoutMs` milliseconds at most.
 *
 * @param what describes what was waited for; it is called only when the time is up, so that it can
 * report what is known by then
 * @throws LateError with the text of `what` when the time is up; `promise` itself goes on, and its
 * later failure is swallowed
 */
export async function within<T>(
  promise: Promise<T>,
  timeoutMs: number,
  what: () => string,
): Promise<T> {
  return await waitWithin(promise, timeoutMs, () => {
    throw new LateError(`no result in ${timeoutMs} ms: ${what()}`);
  });
}

/**
 * Calls `probe` every `intervalMs` milliseconds until it answers true.
 *
 * @throws LateError with the text of `what` after `timeoutMs` milliseconds
 */
export async function until(
  probe: () => boolean | Promise<boolean>,
  { timeoutMs, intervalMs = 20, what }: {
    timeoutMs: number;
    intervalMs?: number;
    what: () => string;
  },
): Promise<void> {
  const end = performance.now() + timeoutMs;
  while (!(await probe())) {
    if (performance.now() > end) throw new LateError(`no result in ${timeoutMs} ms: ${what()}`);
    await new Promise((resolve) => setTimeout(resolve, intervalMs));
  }
}
