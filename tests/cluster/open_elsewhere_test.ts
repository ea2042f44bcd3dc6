/**
 * Commands that write to a disk that is open on another host.
 *
 * @module
 */
import { assert, assertEquals, assertMatch, assertRejects } from "@std/assert/mod.js";
import { BackEndError } from "../../agent/frontend/error.ts";
import { FrontEnd } from "../../agent/frontend/front_end.ts";
import { until } from "../guest/deadline.ts";
import { type Host, Hosts } from "./hosts.ts";

const DISK_BYTES = 4 * 1024 * 1024;

const NAME = "web";

async function read(host: Host): Promise<Uint8Array> {
  const { code, stdout, stderr } = await host.running.run("disk", "read", NAME);
  assertEquals(code, 0, stderr);
  return stdout;
}

Deno.test("a command refuses a disk that is open on another host, and has it when that one is down", async () => {
  await using hosts = await Hosts.make({ network: "loopback" });
  await hosts.startAll();
  const [here, there] = hosts.list;
  await here.running.check("disk", "create", NAME, String(DISK_BYTES));
  await hosts.untilWhole();
  const guest = await FrontEnd.connect({ socket: here.socket(NAME) });
  try {
    await guest.write(0, new Uint8Array(DISK_BYTES).fill(7));
    const data = { stdin: new Uint8Array(4096).fill(9) };
    for (
      const words of ["write web", "discard web --yes", "import - web --yes", "preallocate web"]
    ) {
      const { code, stderr } = await there.running.runWith(data, "disk", ...words.split(" "));
      assertEquals({ words, code }, { words, code: 1 }, stderr);
      assertMatch(stderr, /disk web is open on node host1\n/);
    }
    await guest.flush();
  } finally {
    guest.abort();
  }
  // What was refused was not put off either.
  await until(async () => (await there.running.check("disk", "lock", "list")) === "", {
    timeoutMs: 30_000,
    what: () => "the disk is still open",
  });
  assert((await read(there)).every((byte) => byte === 7), "the disk was written to");

  const lost = await FrontEnd.connect({ socket: here.socket(NAME), inflight: true });
  try {
    await lost.flush();
    await here.kill();
    const data = { stdin: new Uint8Array(DISK_BYTES).fill(8) };
    await until(async () => {
      const { code, stderr } = await there.running.runWith(data, "disk", "write", NAME);
      // As long as it is not known to be down, it may serve.
      if (code !== 0) assertMatch(stderr, /disk web is open on node host1\n/);
      return code === 0;
    }, { timeoutMs: 60_000, what: () => there.running.log });
    assert((await read(there)).every((byte) => byte === 8), "the disk was not written to");

    // Its agent is back, and its guest knows of nothing.
    await here.start();
    const goOn = async () => {
      await lost.reconnect();
      await lost.write(0, new Uint8Array(4096).fill(7));
    };
    await until(async () => {
      await assertRejects(goOn, BackEndError);
      return here.running.log.includes("others have had its disk open since: end this guest");
    }, { timeoutMs: 60_000, what: () => here.running.log });
    assert((await read(there)).every((byte) => byte === 8), "a guest went on from what is no more");
  } finally {
    lost.abort();
  }
});
