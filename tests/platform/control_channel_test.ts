/**
 * Control messages and datagrams between main threads, on loopback.
 *
 * @module
 */
import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert/mod.js";
import { LinuxRandom } from "../../agent/platform/linux/random.ts";
import {
  QUEUE_BYTES_MAX,
  QUEUE_MESSAGES_MAX,
  TcpControlChannel,
} from "../../agent/platform/linux/control_channel.ts";
import { UdpDatagrams } from "../../agent/platform/linux/datagrams.ts";
import { formatAddress, parseAddress, withPortOffset } from "../../agent/platform/address.ts";
import { resolveAddress } from "../../agent/platform/linux/resolve.ts";
import type { ControlPeer } from "../../agent/platform/network.ts";
import {
  Handshake,
  type HandshakeResult,
  HANDSHAKES_MAX,
  type Identity,
} from "../../agent/wire/handshake.ts";
import { nodeCipherSuite } from "../../agent/wire/cipher.ts";
import { RECORD_OVERHEAD_BYTES, RecordSealer } from "../../agent/wire/sealed_stream.ts";
import { identity, SECRET, TestLog } from "./peer_ends.ts";

/** One end, and everything it received; `next` waits for more. */
class ControlEnd {
  readonly log = new TestLog();
  readonly channel: TcpControlChannel;
  readonly got: { peer: ControlPeer; bytes: Uint8Array }[] = [];
  readonly address: string;
  #waiting: { count: number; resolve: () => void } | null = null;

  constructor(
    node: number,
    options: {
      self?: Partial<Identity>;
      secret?: Uint8Array;
      countMsMax?: number;
      listen?: string;
    } = {},
  ) {
    this.channel = new TcpControlChannel({
      secret: options.secret ?? SECRET,
      self: identity(node, options.self),
      random: new LinuxRandom(),
      log: this.log,
      nowMs: () => performance.now(),
      ...(options.countMsMax ? { countMsMax: options.countMsMax } : {}),
    });
    this.channel.listener = {
      controlReceived: (peer, bytes) => {
        this.got.push({ peer, bytes });
        if (this.#waiting !== null && this.got.length >= this.#waiting.count) {
          this.#waiting.resolve();
        }
      },
    };
    this.address = this.channel.listen(options.listen ?? "127.0.0.1:0");
  }

  received(count: number): Promise<void> {
    if (this.got.length >= count) return Promise.resolve();
    return new Promise((resolve) => this.#waiting = { count, resolve });
  }
}

async function withEnds(
  ends: ControlEnd[],
  test: (...ends: ControlEnd[]) => Promise<void>,
): Promise<void> {
  try {
    await test(...ends);
  } finally {
    for (const end of ends) end.channel.close();
    await settled();
  }
}

/** Lets what was closed come to its end, so that nothing of it reaches into the next test. */
async function settled(): Promise<void> {
  for (let i = 0; i < 20; i++) await new Promise((resolve) => setTimeout(resolve, 0));
}

/** Waits for something that shows by looking only. */
async function until(isDone: () => boolean, what: string): Promise<void> {
  const endMs = performance.now() + 30_000;
  while (!isDone()) {
    if (performance.now() > endMs) throw new Error(`${what}: does not happen`);
    await new Promise((resolve) => setTimeout(resolve, 1));
  }
}

/** The handshake of somebody who is no agent. */
async function shake(
  connection: Deno.Conn,
  role: "initiator" | "responder",
): Promise<HandshakeResult> {
  const handshake = new Handshake({
    role,
    secret: SECRET,
    purpose: "control",
    self: identity(2),
    random: new LinuxRandom(),
  });
  let have = new Uint8Array(0);
  for (;;) {
    const output = handshake.output();
    if (output !== null) await connection.write(output);
    if (handshake.result !== null) return handshake.result;
    const part = new Uint8Array(handshake.bytesWanted(have) - have.length);
    const bytes = await connection.read(part);
    if (bytes === null || handshake.error !== null) throw new Error("no handshake");
    have = new Uint8Array([...have, ...part.subarray(0, bytes)]);
    have = have.slice(handshake.receive(have));
  }
}

function bytesOf(length: number, seed: number): Uint8Array {
  return Uint8Array.from({ length }, (_, i) => i * 7 + seed);
}

Deno.test("messages arrive in order with who sent them, both ways, on a connection for each direction", async () => {
  const a = new ControlEnd(1, { self: { incarnation: 3 } });
  const b = new ControlEnd(2, { self: { node: 0, clusterId: null, incarnation: 0 } });
  await withEnds([a, b], async () => {
    for (let i = 1; i <= 50; i++) {
      assertEquals(a.channel.send(b.address, bytesOf(i * 100, i)), true);
    }
    b.channel.send(a.address, bytesOf(1 << 20, 5));
    await Promise.all([b.received(50), a.received(1)]);
    assertEquals(
      b.got.map(({ bytes }) => bytes),
      Array.from({ length: 50 }, (_, i) => {
        return bytesOf((i + 1) * 100, i + 1);
      }),
    );
    assertEquals(a.got[0].bytes, bytesOf(1 << 20, 5));
    const { uuid, node, incarnation, clusterId, address } = b.got[0].peer;
    assertEquals(
      { uuid, node, incarnation, clusterId, address },
      {
        uuid: "1".padStart(32, "0"),
        node: 1,
        incarnation: 3,
        clusterId: "c".repeat(32),
        address: "127.0.0.1:7001",
      },
    );
    assertEquals([a.got[0].peer.node, a.got[0].peer.clusterId], [0, null]);
    assertEquals([a.channel.incomingCount, b.channel.incomingCount], [1, 1]);
    assertEquals(a.channel.status().map(({ isUp }) => isUp), [true]);
  });
});

Deno.test("a queue is bounded in messages and bytes, and what is too long is a fault of the caller", async () => {
  const a = new ControlEnd(1);
  await withEnds([a], async () => {
    let count = 0;
    // Nobody is there: all of it waits for the connection.
    while (a.channel.send("127.0.0.1:1", Uint8Array.of(1))) count++;
    assertEquals(count, QUEUE_MESSAGES_MAX);
    let bytes = 0;
    while (a.channel.send("127.0.0.1:2", new Uint8Array(1 << 20))) bytes += 1 << 20;
    assertEquals(bytes, QUEUE_BYTES_MAX);
    assertEquals(a.channel.send("no address", Uint8Array.of(1)), false);
    assertThrows(() => a.channel.send(a.address, new Uint8Array((1 << 20) + 1)), RangeError);
    assertThrows(() => a.channel.send(a.address, new Uint8Array(0)), RangeError);
    await until(() => a.channel.status().every(({ lastError }) => lastError !== ""), "refused");
    assertEquals(a.channel.status().map(({ queuedBytes }) => queuedBytes), [0, 0]);
  });
});

Deno.test("after the other end was restarted messages get through again", async () => {
  const a = new ControlEnd(1);
  let b = new ControlEnd(2);
  const address = b.address;
  await withEnds([a], async () => {
    a.channel.send(address, bytesOf(10, 1));
    await b.received(1);
    b.channel.close();
    await until(() => a.channel.status().every(({ isUp }) => !isUp), "down");
    b = new ControlEnd(2, { listen: address, self: { incarnation: 2 } });
    await until(() => {
      a.channel.send(address, bytesOf(10, 2));
      return b.got.length > 0;
    }, "again");
    assertEquals(b.got[0].bytes, bytesOf(10, 2));
    b.channel.close();
  });
});

Deno.test("a peer that takes nothing any more is found out and connected to again", async () => {
  const a = new ControlEnd(1, { countMsMax: 60 });
  // Shakes hands, then reads nothing and never counts.
  const server = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const address = formatAddress("127.0.0.1", server.addr.port);
  let connections = 0;
  const held: Deno.Conn[] = [];
  const serving = (async () => {
    for await (const connection of server) {
      connections++;
      held.push(connection);
      // The last of them is cut off when the test ends.
      await shake(connection, "responder").catch(() => {});
    }
  })();
  await withEnds([a], async () => {
    await until(() => {
      a.channel.send(address, bytesOf(10, 1));
      return connections >= 2;
    }, "a second connection");
    assert(a.channel.status()[0].lastError.includes("takes nothing"));
  });
  server.close();
  for (const connection of held) connection.close();
  await serving.catch(() => {});
});

Deno.test("a member that sends rubbish loses its connection, and the others go on", async () => {
  const a = new ControlEnd(1), b = new ControlEnd(3);
  await withEnds([a, b], async () => {
    const { host, port } = parseAddress(b.address)!;
    const record = (result: HandshakeResult) => {
      const sealer = new RecordSealer(nodeCipherSuite, result.sealingKey, true);
      const bytes = new Uint8Array(RECORD_OVERHEAD_BYTES + 10);
      sealer.seal(bytesOf(10, 1), null, bytes);
      return bytes;
    };
    const rubbish: ((result: HandshakeResult) => Uint8Array)[] = [
      () => new Uint8Array(100).fill(255),
      () => new Uint8Array(new Uint32Array([(1 << 20) + 1, 0, 0]).buffer),
      () => new Uint8Array(new Uint32Array([10, 4096, 0]).buffer),
      (result) => record(result).map((byte, i) => i === 20 ? byte ^ 1 : byte),
      // The same record twice: the second time it is not the next one.
      (result) => Uint8Array.from([...record(result), ...record(result)]),
    ];
    for (const bytesFor of rubbish) {
      const connection = await Deno.connect({ hostname: host, port });
      await connection.write(bytesFor(await shake(connection, "initiator")));
      while (await connection.read(new Uint8Array(100)).catch(() => null) !== null);
      connection.close();
    }
    assertEquals(b.got.map(({ peer }) => peer.node), [2], "only the record that was right");
    a.channel.send(b.address, bytesOf(10, 2));
    await b.received(2);
  });
});

Deno.test("who counts more than it was sent is not believed", async () => {
  const a = new ControlEnd(1);
  const server = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  await withEnds([a], async () => {
    a.channel.send(formatAddress("127.0.0.1", server.addr.port), bytesOf(10, 1));
    const connection = await server.accept();
    const { sealingKey } = await shake(connection, "responder");
    const bytes = new Uint8Array(RECORD_OVERHEAD_BYTES + 4);
    new RecordSealer(nodeCipherSuite, sealingKey, true).seal(
      Uint8Array.of(2, 0, 0, 0),
      null,
      bytes,
    );
    await connection.write(bytes);
    await until(() => a.channel.status()[0].lastError !== "", "closed");
    assert(a.channel.status()[0].lastError.includes("counted more"));
    connection.close();
  });
  server.close();
});

Deno.test("who does not know the secret, or is of another cluster, says nothing to anybody", async () => {
  const a = new ControlEnd(1, { secret: new Uint8Array(32) });
  const b = new ControlEnd(2);
  const c = new ControlEnd(3, { self: { clusterId: "d".repeat(32) } });
  await withEnds([a, b, c], async () => {
    a.channel.send(b.address, bytesOf(10, 1));
    c.channel.send(b.address, bytesOf(10, 1));
    await until(() => [a, c].every((end) => end.channel.status()[0].lastError !== ""), "refused");
    assertEquals([b.got.length, b.channel.incomingCount], [0, 0]);
    assert(c.channel.status()[0].lastError.includes("belongs to cluster"));
    assert(b.log.lines[0].includes("secret"), b.log.lines[0]);
  });
});

Deno.test("who is not let in knows why, as far as its secret goes, and says nothing while it has no number", async () => {
  const member = new ControlEnd(2);
  const stranger = { node: 0, incarnation: 0, clusterId: null };
  const other = new ControlEnd(1, { secret: new Uint8Array(32), self: stranger });
  const itself = new ControlEnd(2, { self: stranger });
  const alone = new ControlEnd(3, { self: stranger });
  await withEnds([member, other, itself, alone], async () => {
    const refusalOf = async (end: ControlEnd, address: string) => {
      end.channel.send(address, bytesOf(10, 1));
      const status = () => end.channel.status().find((each) => each.address === address)!;
      await until(() => status().lastError !== "", "refused");
      return status().refusal;
    };
    assertEquals(await refusalOf(other, member.address), "UNANSWERED");
    assertEquals(await refusalOf(itself, member.address), "SELF");
    assertEquals(await refusalOf(alone, "127.0.0.1:1"), null);
    assertEquals([other, itself, alone].map(({ log }) => log.lines), [[], [], []]);
  });
});

Deno.test("a node that connects again takes the place of its older connection", async () => {
  const b = new ControlEnd(9);
  const a1 = new ControlEnd(1, { self: { incarnation: 1 } });
  const a2 = new ControlEnd(1, { self: { incarnation: 2 } });
  const a0 = new ControlEnd(1, { self: { incarnation: 1 } });
  await withEnds([b, a1, a2, a0], async () => {
    a1.channel.send(b.address, bytesOf(10, 1));
    await b.received(1);
    a2.channel.send(b.address, bytesOf(10, 2));
    await b.received(2);
    assertEquals(b.channel.incomingCount, 1);
    await until(() => a1.channel.status().every(({ isUp }) => !isUp), "the old one is closed");
    a0.channel.send(b.address, bytesOf(10, 3));
    await until(() => a0.channel.status()[0].lastError !== "", "the older incarnation is refused");
    a2.channel.send(b.address, bytesOf(10, 4));
    await b.received(3);
    assertEquals(b.got.map(({ peer }) => peer.incarnation), [1, 2, 2]);
  });
});

Deno.test("strangers make room for one another, and members get through", async () => {
  const a = new ControlEnd(1), b = new ControlEnd(2);
  await withEnds([a, b], async () => {
    const { host, port } = parseAddress(b.address)!;
    const strangers: Deno.Conn[] = [];
    for (let i = 0; i < HANDSHAKES_MAX + 4; i++) {
      const stranger = await Deno.connect({ hostname: host, port });
      await stranger.write(new Uint8Array(50));
      strangers.push(stranger);
    }
    for (const first of strangers.slice(0, 4)) {
      assertEquals(await first.read(new Uint8Array(1)).catch(() => null), null);
    }
    a.channel.send(b.address, bytesOf(10, 1));
    await b.received(1);
    const rubbish = await Deno.connect({ hostname: host, port });
    await rubbish.write(new Uint8Array(4000).fill(7));
    assertEquals(await rubbish.read(new Uint8Array(1)).catch(() => null), null);
    for (const stranger of [...strangers, rubbish]) stranger.close();
    assertEquals([b.got.length, b.channel.incomingCount], [1, 1]);
  });
});

Deno.test("datagrams arrive with the address they came from", async () => {
  for (const host of ["127.0.0.1", "[::1]", "localhost"]) {
    const log = new TestLog();
    const ends = [1, 2].map(() => new UdpDatagrams({ log, nowMs: () => performance.now() }));
    const addresses = await Promise.all(ends.map((end) => end.listen(`${host}:0`)));
    const arrived = new Promise<[string, Uint8Array]>((resolve) =>
      ends[1].listener = { datagramReceived: (from, bytes) => resolve([from, bytes]) }
    );
    ends[0].send(addresses[1], bytesOf(1400, 3));
    assertEquals(await arrived, [addresses[0], bytesOf(1400, 3)]);
    assertThrows(() => ends[0].send(addresses[1], new Uint8Array(1401)), RangeError);
    for (const end of ends) end.close();
    ends[0].send(addresses[1], bytesOf(1, 1));
    assertEquals(ends[0].dropped, 1);
    await settled();
  }
});

Deno.test("a datagram to a name goes once the name is known, and an unknown one is dropped", async () => {
  const log = new TestLog();
  const [a, b] = [1, 2].map(() => new UdpDatagrams({ log, nowMs: () => performance.now() }));
  await a.listen("127.0.0.1:0");
  const { port } = parseAddress(await b.listen("127.0.0.1:0"))!;
  let got = 0;
  b.listener = { datagramReceived: () => got++ };
  await until(() => {
    a.send(`localhost:${port}`, bytesOf(10, 1));
    return got > 0;
  }, "by name");
  a.send("no-such-host.invalid:1", bytesOf(10, 1));
  await until(() => log.lines.length > 0, "unknown");
  assert(log.lines[0].includes("is not known"), log.lines[0]);
  await assertRejects(() => a.listen("192.0.2.1:0"), Error, "EADDRNOTAVAIL");
  a.close();
  b.close();
  await settled();
});

Deno.test("what keeps datagrams from being sent is logged, and rarely again as long as it stays the same", async () => {
  const log = new TestLog();
  let nowMs = 0;
  const end = new UdpDatagrams({ log, nowMs: () => nowMs });
  await end.listen("127.0.0.1:0");
  const lines = async (address: string, atMs: number) => {
    nowMs = atMs;
    const before = end.dropped;
    end.send(address, bytesOf(10, 1));
    await until(() => end.dropped > before, "dropped");
    return log.lines.length;
  };
  // The kernel sends nothing from the loopback to other hosts.
  const [one, other] = ["192.0.2.1:9", "192.0.2.1:10"];
  assertEquals(await lines(one, 0), 1);
  assertEquals(await lines(one, 60_000), 1);
  assertEquals(await lines(other, 120_000), 2);
  assertEquals(await lines(one, 180_000), 2);
  assertEquals(await lines(one, 40 * 60_000), 3);
  end.close();
  await settled();
});

Deno.test("addresses are taken apart, put together and resolved", async () => {
  for (
    const [text, host, port] of [
      ["10.0.0.1:7460", "10.0.0.1", 7460],
      ["[::1]:1", "::1", 1],
      ["host-1.example:65535", "host-1.example", 65535],
    ] as const
  ) {
    assertEquals(parseAddress(text), { host, port });
    assertEquals(formatAddress(host, port), text);
  }
  for (const wrong of ["", "host", "host:65536", "::1:5", "[::1]", "a b:1", ":1", "h:-1"]) {
    assertEquals(parseAddress(wrong), null, wrong);
  }
  assertEquals(withPortOffset("[::1]:7460", 1), "[::1]:7461");
  assertThrows(() => withPortOffset("host:65535", 1), RangeError);
  assert(["127.0.0.1:5", "[::1]:5"].includes(await resolveAddress("localhost:5")));
  assertEquals(await resolveAddress("[::1]:5"), "[::1]:5");
  await assertRejects(() => resolveAddress("no-such-host.invalid:5"), Error, "is not known");
});
