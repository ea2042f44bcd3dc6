/**
 * Waits that have an end.
 *
 * @module
 */

/**
 * Waits for `work`, but no longer than a while. The work goes on all the same; how it ends then is nobody's concern.
 *
 * @param late called when the time is over: what it returns is the result, what it throws the error
 */
export async function within<T>(
  work: Promise<T>,
  milliseconds: number,
  late: () => T,
): Promise<T> {
  const { promise: over, resolve } = Promise.withResolvers<void>();
  const timer = setTimeout(resolve, milliseconds);
  try {
    return await Promise.race([work, over.then(late)]);
  } finally {
    clearTimeout(timer);
  }
}
