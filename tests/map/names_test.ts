/**
 * Names of disks and the sockets that they stand for.
 *
 * @module
 */
import { assert, assertEquals } from "@std/assert/mod.js";
import { Prng } from "../../agent/base/prng.ts";
import {
  agentSocket,
  checkDiskName,
  checkSocketPaths,
  DISK_NAME_LENGTH_MAX,
  diskSockets,
  SOCKET_PATH_BYTES_MAX,
} from "../../agent/map/names.ts";

Deno.test("checkDiskName() takes ordinary names", () => {
  const names = [
    "a",
    "0",
    "web-01",
    "db.example",
    "A_b",
    "x".repeat(DISK_NAME_LENGTH_MAX),
    "agent2",
  ];
  for (const name of names) assertEquals(checkDiskName(name), null, name);
});

Deno.test("checkDiskName() refuses what could leave the directory, hide or collide", () => {
  const names = [
    "",
    ".",
    "..",
    ".hidden",
    "-x",
    "_x",
    "a/b",
    "a\0b",
    "a\n",
    "\na",
    "a b",
    "ä",
    "a@snap",
    "agent",
    "AGENT",
    "a.sock",
    "a.SOCK",
    "a.lock",
    "a.tmp",
    "a.",
    "x".repeat(DISK_NAME_LENGTH_MAX + 1),
    "__proto__",
  ];
  for (const name of names) {
    const error = checkDiskName(name);
    assertEquals(error?.code, "invalid", JSON.stringify(name));
    assertEquals(error!.message.includes("\n"), false);
    assert(error!.message.length < 300);
  }
});

Deno.test("no name that passes leads anywhere but to its own sockets", () => {
  const random = new Prng(11);
  const alphabet = "aZ09._-/@ \0\n~%*äsockagent";
  const sockets = new Set([agentSocket("/run/kelpie")]);
  for (let round = 0; round < 20_000; round++) {
    let name = "";
    for (let length = 1 + random.below(8); length > 0; length--) {
      name += alphabet[random.below(alphabet.length)];
    }
    if (checkDiskName(name) !== null) continue;
    const { readWrite, readOnly } = diskSockets("/run/kelpie", name);
    assertEquals(new URL(`file://${readWrite}`).pathname, `/run/kelpie/${name}.sock`);
    assertEquals(new URL(`file://${readOnly}`).pathname, `/run/kelpie/ro/${name}.sock`);
    assert(!sockets.has(readWrite) && !sockets.has(readOnly));
  }
});

Deno.test("checkSocketPaths() counts bytes, and the longer of the two paths", () => {
  const name = "n".repeat(40);
  const fixed = "/ro/".length + name.length + ".sock".length;
  const fitting = `/${"r".repeat(SOCKET_PATH_BYTES_MAX - fixed - 1)}`;
  assertEquals(new TextEncoder().encode(diskSockets(fitting, name).readOnly).length, 107);
  assertEquals(checkSocketPaths(fitting, name), null);
  assert(checkSocketPaths(`${fitting}r`, name)!.message.includes("1 bytes longer"));
  assert(checkSocketPaths(`${fitting.slice(0, -1)}ä`, name) !== null);
});
