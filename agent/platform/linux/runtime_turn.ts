/**
 * A turn for the runtime, from a loop that otherwise blocks its thread.
 *
 * Timers of no length and immediates are not enough: as long as there is something of that kind to do, the runtime looks at
 * its own sockets and signals only every so many turns. It looks at all of them when it has to wait for another thread, which
 * a call that does nothing on a thread of the runtime's pool makes it do: 60 to 100 µs.
 *
 * @module
 */
const { symbols } = Deno.dlopen("libc.so.6", {
  sched_yield: { parameters: [], result: "i32", nonblocking: true },
});

/** Resolves when the runtime has looked at everything that it waits for. */
export async function runtimeTurn(): Promise<void> {
  await symbols.sched_yield();
}
