/**
 * A disk whose writes wait for copies, since a host is dead: what becomes of its neighbours on the same host, which have all the copies
 * that they need, and of those who only read it.
 *
 * @module
 */
import { assertEquals } from "@std/assert/mod.js";
import { FrontEnd } from "../../agent/frontend/front_end.ts";
import { within } from "../guest/deadline.ts";
import { Hosts } from "./hosts.ts";

const MIB = 1024 * 1024;

Deno.test("a disk that waits for copies leaves its neighbours going on, and its readers without an error", async () => {
  await using hosts = await Hosts.make({ count: 3, network: "loopback", capacity: "512M" });
  await hosts.startAll();
  const [first, , third] = hosts.list;
  const kelpie = (...words: string[]) => first.running.check(...words);
  await kelpie("disk", "create", "strict", "128M", "--copies", "3", "--copies-min", "3");
  await kelpie("disk", "create", "other", "64M", "--copies", "3");
  await hosts.untilWhole();
  const { running } = first;
  const strict = await FrontEnd.connect({ socket: running.socket("strict"), depth: 64 });
  const other = await FrontEnd.connect({ socket: running.socket("other"), depth: 8 });
  const readers = { socket: running.readOnlySocket("strict"), stallTimeoutMs: 300_000 };
  const reader = await FrontEnd.connect(readers);
  try {
    await strict.write(0, new Uint8Array(4096).fill(1));
    await other.write(0, new Uint8Array(4096).fill(1));
    await third.kill();
    // Over as soon as the dead host is out of the groups.
    const isOut = () => "the dead host is out of the groups";
    await within(other.write(0, new Uint8Array(4096).fill(2)), 60_000, isOut);
    // More than one worker's disks may have under way together.
    const mebibyte = new Uint8Array(MIB).fill(1);
    for (let i = 0; i < 48; i++) strict.write(i * MIB, mebibyte).catch(() => {});
    // It waits behind a write.
    const read = reader.read(0, new Uint8Array(4096)).then(() => "data", String);
    for (let i = 0; i < 50; i++) {
      const what = () => `write ${i} beside a disk that waits`;
      await within(other.write(4096 * i, new Uint8Array(4096).fill(3)), 30_000, what);
    }
    // The guest is killed, and after a while what it has left is given up.
    strict.abort();
    assertEquals(await read, "data");
  } finally {
    for (const each of [strict, other, reader]) each.abort();
  }
});
