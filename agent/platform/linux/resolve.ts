/**
 * Names of hosts become numbers here, on the main thread: a look-up waits for the runtime's thread pool, which the data worker never
 * does. The worker is given numeric addresses only. The main thread resolves again whenever it tells the worker about a peer, so a
 * name that has moved is found at the latest with that peer's next change in the map, or when the main thread looks again at peers that
 * stay unreachable.
 *
 * @module
 */
import { lookup } from "node:dns";
import { encodeSocketAddress, formatAddress, parseAddress } from "../address.ts";

/**
 * Resolves the host of an address with the system's resolver (/etc/hosts, DNS). Numeric ones come back as they are.
 * Rejects when the name is not known.
 */
export function resolveAddress(address: string): Promise<string> {
  return new Promise((resolve, reject) => {
    const parsed = parseAddress(address);
    if (parsed === null) {
      return reject(new RangeError(`"${address}" is not host:port or [ipv6]:port`));
    }
    if (encodeSocketAddress(address) !== null) return resolve(address);
    lookup(parsed.host, (error, numeric) => {
      if (error) reject(new Error(`the host of ${address} is not known: ${error.message}`));
      else resolve(formatAddress(numeric, parsed.port));
    });
  });
}
