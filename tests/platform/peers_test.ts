/**
 * Data workers' connections on real loopback sockets: two or more rings in one process.
 *
 * @module
 */
import { Buffer } from "node:buffer";
import { assert, assertEquals, assertThrows } from "@std/assert/mod.js";
import { Prng } from "../../agent/base/prng.ts";
import { decodeSocketAddress, encodeSocketAddress } from "../../agent/platform/address.ts";
import { IN_BYTES, OUT_BYTES, SMALL_BYTES } from "../../agent/platform/linux/tcp.ts";
import { check, closeFd, libc } from "../../agent/platform/linux/libc.ts";
import { nodeCipherSuite } from "../../agent/wire/cipher.ts";
import {
  Handshake,
  HANDSHAKE_MS_MAX,
  HANDSHAKES_MAX,
  HANDSHAKES_PER_SECOND_MAX,
} from "../../agent/wire/handshake.ts";
import { RECORD_OVERHEAD_BYTES, RecordSealer } from "../../agent/wire/sealed_stream.ts";
import {
  connectEnds,
  headOf,
  identity,
  linkOf,
  PeerEnd,
  SECRET,
  tagOf,
  turnUntil,
} from "./peer_ends.ts";

/** Ends for one test, closed after it. */
function withEnds(
  options: (ConstructorParameters<typeof PeerEnd>[1])[],
  test: (...ends: PeerEnd[]) => void,
): void {
  const ends = options.map((option, index) => new PeerEnd(index + 1, option));
  try {
    test(...ends);
  } finally {
    for (const end of ends) end.close();
  }
}

/** A blocking socket of somebody who is no agent. */
class Stranger {
  readonly fd: number;

  /** @param to an address to connect to, or a connected descriptor */
  constructor(to: string | number) {
    if (typeof to === "number") {
      this.fd = to;
      return;
    }
    const encoded = encodeSocketAddress(to)!;
    this.fd = check(libc.socket(encoded[0], 1 | 0o2000000, 0), "socket");
    check(libc.connect(this.fd, encoded, encoded.length), "connect");
  }

  send(bytes: Uint8Array): void {
    libc.send(this.fd, bytes as Uint8Array<ArrayBuffer>, BigInt(bytes.length), 0x4000);
  }

  /** Reads what is there while the ends turn, up to `bytes`. */
  receive(ends: PeerEnd[], bytes: number): Uint8Array {
    const got = new Uint8Array(bytes);
    let have = 0;
    turnUntil(ends, () => {
      const poll = new Uint8Array(new Int32Array([this.fd, 1]).buffer);
      if (libc.poll(poll, 1n, 0) > 0) {
        const part = new Uint8Array(bytes - have);
        const result = libc.read(this.fd, part, BigInt(part.length));
        if (result <= 0) return true;
        got.set(part.subarray(0, result), have);
        have += result;
      }
      return have === bytes;
    }, "stranger receives");
    return got.subarray(0, have);
  }

  /** A whole handshake as node 9; returns what seals for it. */
  authenticate(
    ends: PeerEnd[],
    options = {},
    behind: (sealer: RecordSealer) => Uint8Array = () => new Uint8Array(0),
  ): RecordSealer {
    const handshake = new Handshake({
      role: "initiator",
      secret: SECRET,
      purpose: "data",
      random: new Prng(performance.now()),
      self: identity(9, options),
    });
    this.send(handshake.output()!);
    handshake.receive(this.receive(ends, 416));
    const sealer = new RecordSealer(nodeCipherSuite, handshake.result!.sealingKey, true);
    this.send(Uint8Array.from([...handshake.output()!, ...behind(sealer)]));
    return sealer;
  }

  close(): void {
    closeFd(this.fd);
  }
}

/** A listening socket without an agent behind it. */
class RawServer {
  readonly fd: number;
  readonly address: string;

  constructor(address = "127.0.0.1:0") {
    const encoded = encodeSocketAddress(address)!;
    this.fd = check(libc.socket(encoded[0], 1 | 0o2000000, 0), "socket");
    libc.setsockopt(this.fd, 1, 2, Uint8Array.of(1, 0, 0, 0), 4);
    check(libc.bind(this.fd, encoded, encoded.length), "bind");
    check(libc.listen(this.fd, 5), "listen");
    const name = new Uint8Array(28);
    libc.getsockname(this.fd, name, Uint8Array.of(28, 0, 0, 0));
    this.address = decodeSocketAddress(name);
  }

  /** The next connection, which `end` makes. */
  accept(end: PeerEnd): Stranger {
    end.turn();
    return new Stranger(check(libc.accept4(this.fd, null, null, 0o2000000), "accept"));
  }

  close(): void {
    closeFd(this.fd);
  }
}

/** A record with one frame. */
function record(sealer: RecordSealer, head: Uint8Array, dataBytes = 0): Uint8Array {
  const heads = new Uint8Array(8 + head.length);
  new DataView(heads.buffer).setUint32(0, head.length, true);
  new DataView(heads.buffer).setUint32(4, dataBytes, true);
  heads.set(head, 8);
  const to = new Uint8Array(RECORD_OVERHEAD_BYTES + heads.length + dataBytes);
  sealer.seal(heads, dataBytes > 0 ? new Uint8Array(dataBytes) : null, to);
  return to;
}

Deno.test("both ends learn who the other is", () => {
  withEnds([{ self: { incarnation: 5 } }, { self: { incarnation: 7 } }], (a, b) => {
    const [aLink, bLink] = connectEnds(a, b);
    assertEquals(a.events, [`up ${aLink} node 2.7 out`]);
    assertEquals(b.events, [`up ${bLink} node 1.5 in`]);
    assertEquals(a.peers.status()[0].isUp, true);
    assertEquals(a.peers.isIdle && b.peers.isIdle, true);
  });
});

for (const features of [0, 1]) {
  for (const suite of [undefined, nodeCipherSuite]) {
    const mode = `${features ? "sealed" : "trusted"}, ${suite?.name ?? "the fastest cipher"}`;

    Deno.test(`messages of every size arrive whole, in order, block-aligned, both ways: ${mode}`, () => {
      const self = { features };
      withEnds([{ self, ...(suite ? { suite } : {}) }, { self }], (a, b) => {
        const [aLink, bLink] = connectEnds(a, b);
        const seed = 1234;
        const random = new Prng(seed);
        const sizes = [0, 0, 0, 4096, 0, 8192, 1 << 20, 0, 12288, 262144];
        const sent: { from: PeerEnd; tag: number; head: Uint8Array; data: Uint8Array | null }[] =
          [];
        let offsets = 0;
        for (let tag = 0; tag < 70; tag++) {
          const [from, link] = random.chance(0.5) ? [a, aLink] : [b, bLink];
          const headBytes = random.chance(0.1) ? 8192 : random.between(64, 300);
          const head = headOf(tag, headBytes);
          random.fill(head.subarray(4));
          const dataBytes = random.pick(sizes);
          let data: Uint8Array | null = null;
          let offset = 0;
          if (dataBytes > 0) {
            offset = from.arena.allocate(dataBytes);
            from.bytes.fill(tag, offset, offset + dataBytes);
            for (let at = offset; at < offset + dataBytes; at += 512) {
              random.fill(from.bytes.subarray(at, at + 8));
            }
            data = from.bytes.slice(offset, offset + dataBytes);
          }
          turnUntil(
            [a, b],
            () => from.peers.send(link, head, headBytes, offset, dataBytes),
            "sending",
          );
          // Copied before send returned: the buffer is ours again.
          if (dataBytes > 0) {
            from.bytes.fill(0, offset, offset + dataBytes);
            from.arena.release(offset, dataBytes);
          }
          offsets += offset % 4096;
          sent.push({ from, tag, head, data });
          if (random.chance(0.3)) { for (const end of [a, b]) end.turn(); }
        }
        turnUntil([a, b], () => a.got.length + b.got.length === sent.length, "receiving");
        for (const [from, to] of [[a, b], [b, a]]) {
          const expected = sent.filter((message) => message.from === from);
          assertEquals(to.got.map(({ head }) => tagOf(head)), expected.map(({ tag }) => tag));
          for (const [i, { head, data }] of to.got.entries()) {
            assertEquals(head, expected[i].head);
            assert(equalBytes(data, expected[i].data), `data of message ${expected[i].tag}`);
          }
        }
        assertEquals(offsets, 0);
        assertEquals([a.arena.usedBytes, b.arena.usedBytes], [0, 0]);
      });
    });
  }
}

function equalBytes(a: Uint8Array | null, b: Uint8Array | null): boolean {
  if (a === null || b === null) return a === b;
  return Buffer.compare(a, b) === 0;
}

Deno.test("data goes in clear only on a trusted network", () => {
  for (const features of [0, 1]) {
    withEnds([{ self: { features } }], (a) => {
      // A responder that shows the bytes as they came.
      const server = new RawServer();
      a.peers.setPeer(2, server.address);
      const peer = server.accept(a);
      const handshake = new Handshake({
        role: "responder",
        secret: SECRET,
        purpose: "data",
        random: new Prng(1),
        self: identity(2, { features }),
      });
      handshake.receive(peer.receive([a], 112));
      peer.send(handshake.output()!);
      handshake.receive(peer.receive([a], 336));
      turnUntil([a], () => a.events.length === 1, "up");
      const offset = a.arena.allocate(4096);
      a.bytes.fill(0x5a, offset, offset + 4096);
      a.peers.send(linkOf(a.events[0]), headOf(0x5a5a5a5a), 64, offset, 4096);
      const bytes = peer.receive([a], 8 + 72 + 16 + 4096);
      const clear = bytes.filter((byte) => byte === 0x5a).length;
      assertEquals(clear >= 4096, features === 0, `${clear} bytes of 0x5a`);
      // The head is sealed in either case.
      assertEquals(bytes.subarray(16, 20).every((byte) => byte === 0x5a), false);
      peer.close();
      server.close();
    });
  }
});

Deno.test("what one turn sends goes out as one record, short data with it", () => {
  withEnds([{}, {}], (a, b) => {
    const [link] = connectEnds(a, b);
    turnUntil([a], () => a.peers.status()[0].queuedBytes === 0, "the handshake's end");
    for (let tag = 0; tag < 500; tag++) a.peers.send(link, headOf(tag), 64, 0, 0);
    assertEquals(a.peers.status()[0].queuedBytes, 0, "nothing is sealed before the turn ends");
    a.peers.endTurn();
    assertEquals(a.peers.status()[0].queuedBytes, RECORD_OVERHEAD_BYTES + 500 * 72);
    const offset = a.arena.allocate(4096);
    a.peers.send(link, headOf(500), 64, 0, 0);
    a.peers.send(link, headOf(501), 64, offset, 4096);
    a.arena.release(offset, 4096);
    a.peers.send(link, headOf(502), 64, 0, 0);
    a.peers.endTurn();
    assertEquals(
      a.peers.status()[0].queuedBytes,
      2 * RECORD_OVERHEAD_BYTES + 503 * 72 + 4096,
    );
    // Long data is not copied: it closes the record, with the heads before it.
    const long = a.arena.allocate(65536);
    a.peers.send(link, headOf(503), 64, 0, 0);
    a.peers.send(link, headOf(504), 64, long, 65536);
    assertEquals(
      a.peers.status()[0].queuedBytes,
      3 * RECORD_OVERHEAD_BYTES + 505 * 72 + 4096 + 65536,
    );
    // More heads than one record holds: the full one is sealed, the rest follows.
    for (let tag = 505; tag < 1505; tag++) a.peers.send(link, headOf(tag), 64, 0, 0);
    turnUntil([a, b], () => b.got.length === 1505, "receiving");
    assertEquals(b.got.map(({ head }) => tagOf(head)), Array.from({ length: 1505 }, (_, i) => i));
  });
});

for (const features of [0, 1]) {
  Deno.test(`messages with data that were sealed together keep their own: ${features ? "sealed" : "trusted"}`, () => {
    const self = { features };
    withEnds([{ self }, { self }], (a, b) => {
      const [link] = connectEnds(a, b);
      const lengths = [4096, 0, 8192, 16384, 4096, 65536, 4096, 0, 20480, 4096];
      for (let round = 0; round < 20; round++) {
        for (const [i, length] of lengths.entries()) {
          const tag = round * lengths.length + i;
          const offset = length > 0 ? a.arena.allocate(length) : 0;
          a.bytes.fill(tag, offset, offset + length);
          a.peers.send(link, headOf(tag, 64 + 8 * i), 64 + 8 * i, offset, length);
          // Copied: whoever gets the buffer next may write to it.
          a.bytes.fill(0xff, offset, offset + length);
          if (length > 0) a.arena.release(offset, length);
        }
      }
      turnUntil([a, b], () => b.got.length === 20 * lengths.length, "receiving");
      for (const [tag, { head, data }] of b.got.entries()) {
        assertEquals(tagOf(head), tag);
        assertEquals(data?.length ?? 0, lengths[tag % lengths.length]);
        assertEquals(data?.every((byte) => byte === tag % 256) ?? true, true, `data of ${tag}`);
      }
      assertEquals(b.arena.usedBytes, 0);
    });
  });
}

Deno.test("an arena that is full stops a record in its middle, and the rest follows", () => {
  withEnds([{}, { arenaBytes: 1 << 20 }], (a, b) => {
    const [link] = connectEnds(a, b);
    const held: number[] = [];
    const got: number[] = [];
    b.onReceived = (_link, head, offset, bytes) => {
      got.push(tagOf(head));
      if (bytes > 0) held.push(offset);
    };
    // All but three blocks are in use.
    const used = Array.from({ length: 253 }, () => b.arena.allocate(4096));
    const offset = a.arena.allocate(4096);
    for (let tag = 0; tag < 8; tag++) a.peers.send(link, headOf(tag), 64, offset, 4096);
    a.peers.send(link, headOf(8), 64, 0, 0);
    turnUntil([a, b], () => got.length === 3, "the first ones");
    for (let i = 0; i < 20; i++) for (const end of [a, b]) end.turn();
    assertEquals(got, [0, 1, 2]);
    b.arena.release(held.shift()!, 4096);
    turnUntil([a, b], () => got.length === 4, "one more");
    for (const page of used) b.arena.release(page, 4096);
    turnUntil([a, b], () => got.length === 9, "the rest");
    assertEquals(got, [0, 1, 2, 3, 4, 5, 6, 7, 8]);
  });
});

Deno.test("a peer that takes nothing fills the queue, send refuses, and linkReady says when to go on", () => {
  withEnds([{}, {}], (a, b) => {
    const [link, bLink] = connectEnds(a, b);
    b.peers.pause(bLink, true);
    const offset = a.arena.allocate(1 << 20);
    let sent = 0;
    // The sockets' buffers and the other end's take some, then it is full.
    for (let turns = 0; turns < 50; turns++) {
      while (a.peers.send(link, headOf(sent), 64, offset, 1 << 20)) sent++;
      for (const end of [a, b]) end.turn();
    }
    a.ready = 0;
    assert(sent >= 7 && sent < 40, `${sent} MiB went`);
    assertEquals([a.ready, b.got.length], [0, 0]);
    assert(a.peers.status()[0].queuedBytes <= 8 << 20);
    b.peers.pause(bLink, false);
    assertEquals(b.got.length, 0, "nothing is delivered from inside the call");
    turnUntil([a, b], () => a.ready === 1, "ready");
    assertEquals(a.peers.send(link, headOf(sent++), 64, offset, 1 << 20), true);
    turnUntil([a, b], () => b.got.filter(({ data }) => data !== null).length === sent, "rest");
    assertEquals(
      b.got.filter(({ data }) => data !== null).map(({ head }) => tagOf(head)),
      Array.from({ length: sent }, (_, i) => i),
    );
    assertEquals(a.ready, 1, "told once");
  });
});

Deno.test("memory that a burst used is given back, and the links go on", () => {
  withEnds([{}, {}], (a, b) => {
    const [link, bLink] = connectEnds(a, b);
    const offset = a.arena.allocate(1 << 20);
    let sent = 0;
    const burst = () => {
      b.peers.pause(bLink, true);
      for (let i = 0; i < 20; i++) {
        if (a.peers.send(link, headOf(sent), 64, offset, 1 << 20)) sent++;
        for (const end of [a, b]) end.turn();
      }
      b.peers.pause(bLink, false);
      turnUntil([a, b], () => b.got.filter(({ data }) => data !== null).length === sent, "burst");
      turnUntil([a, b], () => a.peers.status()[0].queuedBytes === 0, "sent");
    };
    burst();
    const before = residentKib();
    for (const end of [a, b]) end.tick(10_000);
    const freed = before - residentKib();
    assert(freed > 4 * 1024, `${freed} KiB were freed`);
    b.got.length = 0;
    sent = 0;
    burst();
    assertEquals(b.got.map(({ head }) => tagOf(head)), Array.from({ length: sent }, (_, i) => i));
  });
});

/** Anonymous memory of this process. */
function residentKib(): number {
  return Number(/RssAnon:\s+(\d+)/.exec(Deno.readTextFileSync("/proc/self/status"))![1]);
}

Deno.test("an arena without room makes the link wait, and nothing is lost", () => {
  withEnds([{}, { arenaBytes: 4 << 20 }], (a, b) => {
    const [link] = connectEnds(a, b);
    const held: number[] = [];
    b.onReceived = (_link, _head, offset) => held.push(offset);
    const offset = a.arena.allocate(1 << 20);
    let sent = 0;
    for (let i = 0; i < 6; i++) if (a.peers.send(link, headOf(i), 64, offset, 1 << 20)) sent++;
    turnUntil([a, b], () => held.length === 4, "the arena is full");
    for (let i = 0; i < 20; i++) for (const end of [a, b]) end.turn();
    assertEquals([held.length, b.arena.freeBytes, b.peers.isIdle], [4, 0, false]);
    b.arena.release(held[0], 1 << 20);
    turnUntil([a, b], () => held.length === 5, "one more");
    b.arena.release(held[1], 1 << 20);
    turnUntil([a, b], () => held.length === sent, "all");
    assertEquals(b.events.length, 1);
  });
});

Deno.test("a paused link delivers nothing more than what was sealed together", () => {
  withEnds([{}, {}], (a, b) => {
    const [link] = connectEnds(a, b);
    b.onReceived = (from, head) => {
      b.got.push({ link: from, head: head.slice(), data: null });
      if (b.got.length === 1) b.peers.pause(from, true);
    };
    for (let i = 0; i < 3; i++) a.peers.send(link, headOf(i), 64, 0, 0);
    a.turn();
    a.peers.send(link, headOf(3), 64, 0, 0);
    a.turn();
    for (let i = 0; i < 20; i++) for (const end of [a, b]) end.turn();
    assertEquals(b.got.length, 3);
    b.peers.pause(b.got[0].link, false);
    turnUntil([a, b], () => b.got.length === 4, "the rest");
  });
});

Deno.test("after a loss it connects again, later and later, and at once after a good link", () => {
  withEnds([{}], (a) => {
    // Nobody listens there.
    const server = new RawServer();
    const address = server.address;
    server.close();
    a.peers.setPeer(2, address);
    const failed = () => turnUntil([a], () => a.peers.status()[0].lastError !== "", "failing");
    failed();
    assert(a.peers.status()[0].lastError.includes("ECONNREFUSED"), a.peers.status()[0].lastError);
    const waits: number[] = [];
    for (let attempt = 0; attempt < 9; attempt++) {
      let waited = 0;
      // A new attempt shows by its connection.
      while (a.peers.isIdle || !a.ring.unsubmitted) {
        a.tick(5);
        waited += 5;
        assert(waited <= 2500, "no attempt");
      }
      waits.push(waited);
      for (let i = 0; i < 5; i++) a.turn(1);
    }
    for (const [i, waited] of waits.entries()) {
      const most = Math.min(2000, 50 * 2 ** i);
      assert(waited >= most / 2 && waited <= most + 5, `wait ${i} is ${waited}, most ${most}`);
    }
    assert(new Set(waits.slice(6)).size > 1, `no jitter: ${waits}`);
    const b = new PeerEnd(2, { listen: address });
    try {
      for (let i = 0; i < 500 && a.events.length === 0; i++) {
        a.tick(10);
        for (const end of [a, b]) end.turn();
      }
      turnUntil([a, b], () => a.events.length === 1, "connected in the end");
    } finally {
      b.close();
    }
    a.tick(2000);
    turnUntil([a], () => a.events.length === 2, "down");
    assertEquals(a.events[1], `down ${linkOf(a.events[0])}`);
    a.tick(50);
    assertEquals(a.ring.unsubmitted > 0, true, "the first wait is the shortest again");
  });
});

Deno.test("messages right behind the handshake are not lost", () => {
  withEnds([{}], (b) => {
    const stranger = new Stranger(b.address);
    stranger.authenticate([b], {}, (sealer) => record(sealer, headOf(5)));
    turnUntil([b], () => b.got.length === 1, "the message behind the finish");
    assertEquals(tagOf(b.got[0].head), 5);
    stranger.close();
  });
});

Deno.test("a peer that dies in the middle of a record takes only the link with it", () => {
  withEnds([{}, {}], (b, c) => {
    const stranger = new Stranger(b.address);
    const sealer = stranger.authenticate([b]);
    turnUntil([b], () => b.events.length === 1, "up");
    stranger.send(record(sealer, headOf(1)));
    const whole = record(sealer, headOf(2), 1 << 20);
    stranger.send(whole.subarray(0, 50000));
    turnUntil([b], () => b.got.length === 1, "the first message");
    for (let i = 0; i < 10; i++) b.turn(1);
    stranger.close();
    turnUntil([b], () => b.events.length === 2, "down");
    assertEquals([b.got.length, b.arena.usedBytes], [1, 0]);
    // The other links go on.
    const [link] = connectEnds(c, b);
    c.peers.send(link, headOf(3), 64, 0, 0);
    turnUntil([b, c], () => b.got.length === 2, "another link");
  });
});

Deno.test("a changed record and impossible messages end the link and deliver nothing of it", () => {
  const cases: [string, (sealer: RecordSealer) => Uint8Array][] = [
    ["changed on the way", (sealer) => {
      const bytes = record(sealer, headOf(1), 4096);
      bytes[200] ^= 1;
      return bytes;
    }],
    ["changed on the way", (sealer) => {
      record(sealer, headOf(1));
      return record(sealer, headOf(1), 4096);
    }],
    ["impossible size", () => new Uint8Array(8).fill(255)],
    ["impossible messages", (sealer) => record(sealer, headOf(1, 32))],
    ["impossible messages", (sealer) => {
      const to = new Uint8Array(RECORD_OVERHEAD_BYTES + 72 + 4096);
      const heads = new Uint8Array(72);
      heads[0] = 64; // Its data bytes say 0, the record says 4096.
      sealer.seal(heads, new Uint8Array(4096), to);
      return to;
    }],
  ];
  for (const [reason, bytesOf] of cases) {
    withEnds([{}], (b) => {
      const stranger = new Stranger(b.address);
      const bytes = bytesOf(stranger.authenticate([b]));
      turnUntil([b], () => b.events.length === 1, "up");
      stranger.send(bytes);
      turnUntil([b], () => b.events.length === 2, reason);
      assertEquals([b.got.length, b.arena.usedBytes], [0, 0], reason);
      stranger.close();
    });
  }
});

Deno.test("a node that connects again replaces its older link; an older incarnation does not", () => {
  withEnds([{}], (b) => {
    const first = new Stranger(b.address);
    first.authenticate([b], { incarnation: 3 });
    turnUntil([b], () => b.events.length === 1, "first");
    const second = new Stranger(b.address);
    const sealer = second.authenticate([b], { incarnation: 3 });
    turnUntil([b], () => b.events.length === 3, "second");
    const link = linkOf(b.events[0]);
    assertEquals(b.events.slice(0, 2), [`up ${link} node 9.3 in`, `down ${link}`]);
    const stale = new Stranger(b.address);
    stale.authenticate([b], { incarnation: 2 });
    turnUntil([b], () => b.log.lines.length > 0, "refused");
    assert(b.log.lines[0].includes("incarnation 3, this is 2"), b.log.lines[0]);
    second.send(record(sealer, headOf(1)));
    turnUntil([b], () => b.got.length === 1, "the second link lives");
    const newer = new Stranger(b.address);
    newer.authenticate([b], { incarnation: 4 });
    turnUntil([b], () => b.events.length === 5, "newer");
    assertEquals(b.events[4].slice(5), "node 9.4 in");
    for (const stranger of [first, second, stale, newer]) stranger.close();
    turnUntil([b], () => b.events.length === 6, "down");
  });
});

Deno.test("another node than expected is not taken, nor one with another secret", () => {
  withEnds([{}, {}, { secret: new Uint8Array(32).fill(1) }], (a, b, c) => {
    a.peers.setPeer(7, b.address);
    turnUntil([a, b], () => a.peers.status()[0].lastError !== "", "wrong node");
    assert(a.peers.status()[0].lastError.includes("node 7 was expected"));
    assertEquals(a.events, []);
    a.peers.setPeer(7, null);
    a.peers.setPeer(3, c.address);
    turnUntil([a, c], () => a.peers.status()[0].lastError !== "", "wrong secret");
    assertEquals([a.events, c.events], [[], []]);
    assert(c.log.lines[0].includes("another cluster secret"), c.log.lines[0]);
  });
});

Deno.test("a peer that is given up, moves or is renamed is told as down, from the loop", () => {
  withEnds([{}, {}, { self: { node: 2 } }], (a, b, c) => {
    const [link] = connectEnds(a, b);
    a.peers.setPeer(2, b.address);
    for (let i = 0; i < 5; i++) a.turn();
    assertEquals(a.events.length, 1, "the same address changes nothing");
    a.peers.setPeer(2, c.address);
    assertEquals(a.peers.send(link, headOf(1), 64, 0, 0), false);
    assertEquals(a.events.length, 1);
    turnUntil([a, b, c], () => a.events.length === 2, "down");
    a.tick(50);
    turnUntil([a, b, c], () => a.events.length === 3 && c.events.length === 1, "moved");
    a.peers.setPeer(2, null);
    turnUntil([a, b, c], () => a.events.length === 4 && c.events.length === 2, "given up");
    a.tick(5000);
    for (let i = 0; i < 5; i++) a.turn();
    assertEquals([a.events.length, a.peers.status()], [4, []]);
  });
});

Deno.test("links are made anew when encryption of bulk data changes", () => {
  withEnds([{ self: { features: 0 } }, { self: { features: 0 } }], (a, b) => {
    connectEnds(a, b);
    a.peers.setSelf(identity(1, { features: 0, incarnation: 2 }));
    for (let i = 0; i < 5; i++) a.turn();
    assertEquals(a.events.length, 1);
    a.peers.setSelf(identity(1, { features: 1 }));
    turnUntil([a, b], () => a.events.length === 2, "down");
    a.tick(50);
    turnUntil([a, b], () => a.events.length === 3, "up again");
  });
});

Deno.test("strangers hold a kilobyte each, make room for one another, and are sent away in time", () => {
  withEnds([{}, {}], (b, a) => {
    const strangers: Stranger[] = [];
    for (let i = 0; i < HANDSHAKES_MAX + 3; i++) {
      strangers.push(new Stranger(b.address));
      for (let turn = 0; turn < 3; turn++) b.turn();
    }
    for (const stranger of strangers.slice(10)) stranger.send(new Uint8Array(100));
    for (let i = 0; i < 10; i++) b.turn();
    assertEquals(b.peers.bufferBytes, HANDSHAKES_MAX * 2 * SMALL_BYTES);
    for (const first of strangers.slice(0, 3)) {
      assertEquals(first.receive([b], 1).length, 0, "the oldest made room");
    }
    const [link] = connectEnds(a, b);
    assertEquals(a.peers.send(link, headOf(1), 64, 0, 0), true, "members get through all the same");
    turnUntil([a, b], () => b.got.length === 1, "a message");
    b.tick(HANDSHAKE_MS_MAX);
    for (const stranger of strangers) assertEquals(stranger.receive([b], 1).length, 0);
    for (const stranger of strangers) stranger.close();
    b.turn();
    assertEquals([b.peers.isIdle, b.events.length], [true, 1]);
  });
});

Deno.test("whatever a stranger sends, no more than one message of the handshake is taken from it", () => {
  withEnds([{}], (b) => {
    // A true hello, then nothing of what it should be: the finish is waited for, the rest stays in the kernel.
    const stranger = new Stranger(b.address);
    const handshake = new Handshake({
      role: "initiator",
      secret: SECRET,
      purpose: "data",
      random: new Prng(5),
      self: identity(9),
    });
    stranger.send(handshake.output()!);
    stranger.receive([b], 416);
    assertEquals(b.peers.bufferBytes, 2 * SMALL_BYTES);
    stranger.send(new Uint8Array(335));
    for (let i = 0; i < 10; i++) b.turn(1);
    assertEquals([b.peers.bufferBytes, b.arena.usedBytes], [2 * SMALL_BYTES, 0]);
    stranger.send(new Uint8Array(100_000));
    turnUntil([b], () => b.log.lines.length > 0, "refused");
    b.turn();
    assertEquals([b.peers.bufferBytes, b.events], [0, []]);
    stranger.close();
    const member = new Stranger(b.address);
    member.authenticate([b]);
    turnUntil([b], () => b.events.length === 1, "up");
    assertEquals(b.peers.bufferBytes, 2 * SMALL_BYTES + IN_BYTES + OUT_BYTES);
    member.close();
  });
});

Deno.test("only so many strangers are looked at in a second", () => {
  withEnds([{}], (b) => {
    const strangers: Stranger[] = [];
    let answered = 0;
    for (let i = 0; i < HANDSHAKES_PER_SECOND_MAX + 20; i++) {
      const stranger = new Stranger(b.address);
      stranger.send(new Uint8Array(112));
      strangers.push(stranger);
      for (let turn = 0; turn < 3; turn++) b.turn();
    }
    const count = () => {
      answered = 0;
      for (const stranger of strangers) {
        const poll = new Uint8Array(new Int32Array([stranger.fd, 1]).buffer);
        if (libc.poll(poll, 1n, 0) > 0) answered++;
      }
      return answered;
    };
    turnUntil([b], () => count() >= HANDSHAKES_PER_SECOND_MAX, "the first hundred");
    for (let i = 0; i < 20; i++) b.turn(1);
    assertEquals(count(), HANDSHAKES_PER_SECOND_MAX);
    b.tick(1000);
    turnUntil([b], () => count() === strangers.length, "the rest");
    for (const stranger of strangers) stranger.close();
  });
});

Deno.test("IPv6 works, and an address that is no number is an error of that peer", () => {
  withEnds([{ listen: "[::1]:0" }, {}], (b, a) => {
    connectEnds(a, b);
    a.peers.setPeer(5, "host.example:7461");
    assert(a.peers.status().some((peer) => peer.lastError.includes("not numeric")));
    a.tick(10000);
    assertThrows(() => a.peers.send(0, headOf(1), 32, 0, 0), RangeError);
  });
});
