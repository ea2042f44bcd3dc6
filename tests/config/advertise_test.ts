/**
 * Which address a node gives others.
 *
 * @module
 */
import { assertEquals } from "@std/assert/mod.js";
import { advertisedAddress, type InterfaceAddress } from "../../agent/advertise.ts";

const [lo, lo6, bridge, eth, eth6, local6, local4] = [
  ["lo", "127.0.0.1"],
  ["lo", "::1"],
  ["virbr0", "192.168.122.1"],
  ["eth0", "192.0.2.7"],
  ["eth0", "2001:db8::7"],
  ["eth0", "fe80::1"],
  ["eth1", "169.254.3.4"],
].map(([name, address]): InterfaceAddress => ({
  name,
  address,
  family: address.includes(":") ? "IPv6" : "IPv4",
}));

Deno.test("a node is reached where it was told, where it listens, or at its first outer address", () => {
  const all = [lo, lo6, bridge, local6, local4, eth6, eth];
  const cases: [string | null, string, InterfaceAddress[], string][] = [
    ["host-1:7500", "0.0.0.0:7460", all, "host-1:7500"],
    [null, "127.0.0.1:7470", all, "127.0.0.1:7470"],
    [null, "[2001:db8::9]:7460", all, "[2001:db8::9]:7460"],
    [null, "0.0.0.0:7460", all, "192.0.2.7:7460"],
    [null, "[::]:7461", all, "192.0.2.7:7461"],
    [null, "[::]:7460", [lo, lo6, local6, eth6], "[2001:db8::7]:7460"],
    [null, "0.0.0.0:7460", [lo, bridge], "192.168.122.1:7460"],
    // Nobody reaches an IPv4 socket by IPv6.
    [null, "0.0.0.0:7460", [lo, eth6], "127.0.0.1:7460"],
    [null, "0.0.0.0:7460", [lo, local4], "127.0.0.1:7460"],
    [null, "[::]:7460", [], "[::1]:7460"],
  ];
  for (const [configured, listen, interfaces, expected] of cases) {
    assertEquals(advertisedAddress(configured, listen, interfaces), expected);
  }
});
