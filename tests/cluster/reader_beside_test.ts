/**
 * Who only reads a disk beside its guest, while a host is dead and that guest is killed.
 *
 * @module
 */
import { assertEquals } from "@std/assert/mod.js";
import { FrontEnd } from "../../agent/frontend/front_end.ts";
import { Hosts } from "./hosts.ts";

Deno.test("who reads a disk beside a guest that is killed while writes wait gets no error", async () => {
  await using hosts = await Hosts.make({ count: 3, network: "loopback", capacity: "512M" });
  await hosts.startAll();
  const [first, , third] = hosts.list;
  const kelpie = (...words: string[]) => first.running.check(...words);
  await kelpie("disk", "create", "web", "64M", "--copies", "3", "--copies-min", "3");
  await hosts.untilWhole();
  const guest = await FrontEnd.connect({ socket: first.running.socket("web") });
  const options = { socket: first.running.readOnlySocket("web"), stallTimeoutMs: 300_000 };
  const reader = await FrontEnd.connect(options);
  try {
    await guest.write(0, new Uint8Array(4096).fill(1));
    await third.kill();
    guest.write(0, new Uint8Array(4096).fill(2)).catch(() => {});
    await new Promise((resolve) => setTimeout(resolve, 1000));
    const read = reader.read(0, new Uint8Array(4096))
      .then(() => "data", (error: Error) => error.message);
    await new Promise((resolve) => setTimeout(resolve, 1000));
    guest.abort();
    assertEquals(await read, "data");
  } finally {
    guest.abort();
    reader.abort();
  }
});
