/**
 * Ports on the loopback for agents in tests: two on one machine need different ones, and whatever else runs there has some.
 *
 *     port       UDP: gossip     TCP: control
 *     port + 1                   TCP: data
 *
 * An address is remembered by the data directory, so that an agent that starts again is where it was.
 *
 * @module
 */

/** Below what Linux gives to outgoing connections, and above what is well known. */
const PORT_MIN = 10_000, PORT_MAX = 30_000;
/** Attempts to find two ports in a row that nobody has. */
const TRIES_MAX = 200;

const addresses = new Map<string, string>();

/**
 * The address of the agent on a data directory.
 *
 * @returns `127.0.0.1:port`, free when it was first asked for
 */
export function addressFor(dataDir: string): string {
  let address = addresses.get(dataDir);
  if (address === undefined) addresses.set(dataDir, address = freeAddress());
  return address;
}

/** An address on the loopback of which nobody has the port, nor the one after it. */
export function freeAddress(): string {
  const taken = new Set(addresses.values());
  for (let i = 0; i < TRIES_MAX; i++) {
    // Even ones only: an agent's second port is never another's first.
    const port = PORT_MIN + 2 * Math.floor(Math.random() * ((PORT_MAX - PORT_MIN) / 2));
    const address = `127.0.0.1:${port}`;
    if (!taken.has(address) && isFree(port)) return address;
  }
  throw new Error(`no two free ports between ${PORT_MIN} and ${PORT_MAX} in ${TRIES_MAX} attempts`);
}

function isFree(port: number): boolean {
  const hostname = "127.0.0.1";
  const held: { close(): void }[] = [];
  try {
    held.push(Deno.listen({ hostname, port }), Deno.listen({ hostname, port: port + 1 }));
    return true;
  } catch (error) {
    if (error instanceof Deno.errors.AddrInUse) return false;
    throw error;
  } finally {
    for (const each of held) each.close();
  }
}
