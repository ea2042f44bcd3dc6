/**
 * The address that a node gives others to reach it. Pure: interfaces in, address out.
 *
 * @module
 */

import { formatAddress, parseAddress } from "./platform/address.ts";

/** An address of an interface of this host: `Deno.networkInterfaces()` has them, in the kernel's order. */
export interface InterfaceAddress {
  readonly name: string;
  readonly family: "IPv4" | "IPv6";
  readonly address: string;
}

/** Bridges and ends of guests and containers: behind them are not the other hosts. */
const INNER = /^(?:virbr|vnet|docker|br-|veth|tap|tun|cni|flannel|cali|podman|lxc|lxd)/;

/**
 * Finds the address to be reached at.
 *
 * The configured one is taken as it is; else where the node listens; where that is everywhere, the first address of
 * a real interface, IPv4 before IPv6, that is neither loopback nor link-local, then those of bridges. A name
 * of the host is not looked up: many hosts know themselves as 127.0.1.1.
 *
 * @param configured `host:port`, or null
 * @param listen `host:port`
 * @param interfaces of this host
 * @returns `host:port`; of the loopback when there is nothing else, which reaches nodes of the same host only
 *
 * @example
 * ```ts
 * import { advertisedAddress } from "./advertise.ts";
 *
 * const interfaces = [
 *   { name: "lo", family: "IPv4", address: "127.0.0.1" },
 *   { name: "eth0", family: "IPv4", address: "192.0.2.7" },
 * ] as const;
 * if (advertisedAddress(null, "0.0.0.0:7460", interfaces) !== "192.0.2.7:7460") throw new Error();
 * ```
 */
export function advertisedAddress(
  configured: string | null,
  listen: string,
  interfaces: readonly InterfaceAddress[],
): string {
  if (configured !== null) return configured;
  const parsed = parseAddress(listen);
  if (parsed === null || !/^(?:0\.0\.0\.0|[0:]+)$/.test(parsed.host)) return listen;
  // Who listens on 0.0.0.0 is not reached by IPv6.
  const isBoth = parsed.host.includes(":");
  const outer = interfaces.filter(({ family, address }) =>
    (isBoth || family === "IPv4") && !isNear(address)
  );
  const rank = ({ name, family }: InterfaceAddress) =>
    (INNER.test(name) ? 2 : 0) + (family === "IPv4" ? 0 : 1);
  const [best] = outer.toSorted((left, right) => rank(left) - rank(right));
  const loopback = isBoth ? "::1" : "127.0.0.1";
  return formatAddress(best?.address ?? loopback, parsed.port);
}

/** Loopback and link-local addresses: others cannot come there. */
function isNear(address: string): boolean {
  return /^(?:127\.|169\.254\.|::1$|fe[89ab][0-9a-f]:)/i.test(address);
}
