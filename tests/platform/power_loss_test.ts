/**
 * A host that loses its power says goodbye to nobody: its old connections stay where it had some.
 *
 * @module
 */
import { assertEquals } from "@std/assert/mod.js";
import { TcpControlChannel } from "../../agent/platform/linux/control_channel.ts";
import { LinuxRandom } from "../../agent/platform/linux/random.ts";
import { parseAddress } from "../../agent/platform/address.ts";
import { Handshake } from "../../agent/wire/handshake.ts";
import { nodeCipherSuite } from "../../agent/wire/cipher.ts";
import { RECORD_OVERHEAD_BYTES, RecordSealer } from "../../agent/wire/sealed_stream.ts";
import { identity, SECRET, TestLog } from "./peer_ends.ts";

Deno.test("a host that was cut off without a word is let in again at once, before it knows its incarnation", async () => {
  const random = new LinuxRandom();
  const channelOf = (node: number, incarnation: number) =>
    new TcpControlChannel({
      secret: SECRET,
      self: identity(node, { incarnation }),
      random,
      log: new TestLog(),
      nowMs: () => performance.now(),
    });
  const leader = channelOf(1, 4);
  const got: number[] = [];
  leader.listener = { controlReceived: (peer) => got.push(peer.incarnation) };
  const address = leader.listen("127.0.0.1:0");
  const until = async (isDone: () => boolean, what: string) => {
    for (let i = 0; !isDone(); i++) {
      if (i > 400) throw new Error(`${what}: does not happen`);
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
  };
  // Run 5 of node 2: its connection is there, and nothing comes over it any more, not even its end.
  const { host, port } = parseAddress(address)!;
  const old = await Deno.connect({ hostname: host, port });
  const shake = new Handshake({
    role: "initiator",
    secret: SECRET,
    purpose: "control",
    random,
    self: identity(2, { incarnation: 5 }),
  });
  await old.write(shake.output()!);
  let have = new Uint8Array(0);
  while (shake.result === null) {
    const part = new Uint8Array(shake.bytesWanted(have) - have.length);
    const bytes = await old.read(part);
    have = new Uint8Array([...have, ...part.subarray(0, bytes!)]);
    have = have.slice(shake.receive(have));
  }
  await old.write(shake.output()!);
  const sealer = new RecordSealer(nodeCipherSuite, shake.result.sealingKey, true);
  const record = new Uint8Array(RECORD_OVERHEAD_BYTES + 3);
  sealer.seal(Uint8Array.of(1, 2, 3), null, record);
  await old.write(record);
  // The host is back: its agent has no incarnation before `node-up` is in the map, for which it has to get through to the leader.
  const again = channelOf(2, 0);
  try {
    await until(() => got.length === 1, "the old run is heard");
    const timer = setInterval(() => again.send(address, Uint8Array.of(7)), 100);
    try {
      await until(
        () => got.length >= 2,
        `the new run is heard (${JSON.stringify(again.status())})`,
      );
    } finally {
      clearInterval(timer);
    }
    assertEquals(got.slice(0, 2), [5, 0]);
  } finally {
    again.close();
    leader.close();
    old.close();
    for (let i = 0; i < 20; i++) await new Promise((resolve) => setTimeout(resolve, 0));
  }
});
