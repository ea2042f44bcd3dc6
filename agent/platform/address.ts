/**
 * Addresses: `host:port` as people write them, `ip:port` as sockets take them. Names become numbers in `linux/resolve.ts`.
 *
 * @module
 */

const AF_INET = 2, AF_INET6 = 10;

/** A host and a port, taken apart. */
export interface HostPort {
  /** Name or numeric address, IPv6 without its brackets. */
  readonly host: string;
  /** 0…65535 */
  readonly port: number;
}

/**
 * Takes `host:port` or `[ipv6]:port` apart.
 *
 * @returns null when it is neither
 *
 * @example
 * ```ts
 * import { parseAddress } from "./address.ts";
 * console.assert(parseAddress("[::1]:7460")?.host === "::1");
 * console.assert(parseAddress("host")?.port === undefined);
 * ```
 */
export function parseAddress(address: string): HostPort | null {
  const match = /^(?:\[([0-9a-fA-F:.]+)\]|([A-Za-z0-9._-]{1,253})):([0-9]{1,5})$/.exec(address);
  if (match === null) return null;
  const port = Number(match[3]);
  return port > 65535 ? null : { host: match[1] ?? match[2], port };
}

/** `host:port`, with brackets where IPv6 needs them. */
export function formatAddress(host: string, port: number): string {
  return host.includes(":") ? `[${host}]:${port}` : `${host}:${port}`;
}

/** The same host, `offset` ports up. Throws RangeError when it is no address or there is no such port. */
export function withPortOffset(address: string, offset: number): string {
  const parsed = parseAddress(address);
  if (parsed === null || parsed.port + offset > 65535) {
    throw new RangeError(`"${address}" is not host:port with a port up to ${65535 - offset}`);
  }
  return formatAddress(parsed.host, parsed.port + offset);
}

/**
 * struct sockaddr_in or sockaddr_in6 of a numeric address (ip(7), ipv6(7)).
 *
 * @returns null when the host is not numeric
 */
export function encodeSocketAddress(address: string): Uint8Array<ArrayBuffer> | null {
  const parsed = parseAddress(address);
  if (parsed === null) return null;
  const v4 = parseIpv4(parsed.host);
  if (v4 !== null) {
    const bytes = new Uint8Array(16);
    bytes[0] = AF_INET;
    bytes[2] = parsed.port >> 8;
    bytes[3] = parsed.port;
    bytes.set(v4, 4);
    return bytes;
  }
  const v6 = parseIpv6(parsed.host);
  if (v6 === null) return null;
  const bytes = new Uint8Array(28);
  bytes[0] = AF_INET6;
  bytes[2] = parsed.port >> 8;
  bytes[3] = parsed.port;
  bytes.set(v6, 8);
  return bytes;
}

/** The `ip:port` of a struct sockaddr_in or sockaddr_in6. */
export function decodeSocketAddress(bytes: Uint8Array): string {
  const port = (bytes[2] << 8) | bytes[3];
  if (bytes[0] === AF_INET) return `${bytes.subarray(4, 8).join(".")}:${port}`;
  const groups = Array.from(
    { length: 8 },
    (_, i) => ((bytes[8 + 2 * i] << 8) | bytes[9 + 2 * i]).toString(16),
  );
  return `[${groups.join(":")}]:${port}`;
}

function parseIpv4(host: string): number[] | null {
  const parts = host.split(".");
  if (parts.length !== 4 || !parts.every((part) => /^(0|[1-9][0-9]{0,2})$/.test(part))) return null;
  const numbers = parts.map(Number);
  return numbers.every((number) => number <= 255) ? numbers : null;
}

function parseIpv6(host: string): number[] | null {
  const halves = host.split("::");
  if (!host.includes(":") || halves.length > 2) return null;
  const sides: number[][] = [];
  for (const half of halves) {
    const bytes: number[] = [];
    const groups = half === "" ? [] : half.split(":");
    for (let i = 0; i < groups.length; i++) {
      const v4 = i === groups.length - 1 ? parseIpv4(groups[i]) : null;
      if (v4 !== null) bytes.push(...v4);
      else if (/^[0-9a-fA-F]{1,4}$/.test(groups[i])) {
        const value = parseInt(groups[i], 16);
        bytes.push(value >> 8, value & 255);
      } else return null;
    }
    sides.push(bytes);
  }
  const missing = 16 - sides.reduce((sum, side) => sum + side.length, 0);
  if (halves.length === 1) return missing === 0 ? sides[0] : null;
  if (missing < 2) return null;
  return [...sides[0], ...new Array(missing).fill(0), ...sides[1]];
}
