/**
 * The handshake: who gets through, who does not, and that no byte of it may change.
 *
 * @module
 */
import { assert, assertEquals } from "@std/assert/mod.js";
import { Prng } from "../../agent/base/prng.ts";
import {
  ADDRESS_BYTES_MAX,
  FEATURE,
  Handshake,
  HANDSHAKE_BYTES_MAX,
  type Identity,
  type Purpose,
} from "../../agent/wire/handshake.ts";

const SECRET = new Uint8Array(32).fill(9);
const HELLO_BYTES = 112, WELCOME_BYTES = 416, FINISH_BYTES = 336;

interface EndOptions extends Partial<Identity> {
  secret?: Uint8Array;
  purpose?: Purpose;
  protocols?: [number, number];
  seed?: number;
}

function end(role: "initiator" | "responder", options: EndOptions = {}): Handshake {
  const { secret = SECRET, purpose = "control", protocols, seed, ...self } = options;
  const node = role === "initiator" ? 1 : 2;
  return new Handshake({
    role,
    secret,
    purpose,
    random: new Prng(seed ?? node),
    ...(protocols ? { protocols } : {}),
    self: {
      uuid: `${node}`.repeat(32),
      node,
      incarnation: node * 10,
      clusterId: "c".repeat(32),
      address: `host-${node}:7460`,
      features: 0,
      ...self,
    },
  });
}

/** Runs a handshake; `change` may alter each of the messages 0 (hello), 1 (welcome or refused), 2 (finish). */
function run(
  a: Handshake,
  b: Handshake,
  change: (message: Uint8Array, index: number) => Uint8Array = (message) => message,
): void {
  let index = 0;
  let from = a, to = b;
  for (;;) {
    const output = from.output();
    if (output === null) return;
    to.receive(change(output, index++));
    [from, to] = [to, from];
  }
}

Deno.test("both ends know each other and share a key for each direction", () => {
  const a = end("initiator", { purpose: "data", features: FEATURE.sealBulk });
  const b = end("responder", {
    purpose: "data",
    address: "x".repeat(ADDRESS_BYTES_MAX - 5) + ":7460",
  });
  const sizes: number[] = [];
  run(a, b, (message) => {
    sizes.push(message.length);
    return message;
  });
  assertEquals([a.error, b.error], [null, null]);
  const { result: ra } = a, { result: rb } = b;
  assertEquals(ra!.sealingKey, rb!.openingKey);
  assertEquals(ra!.openingKey, rb!.sealingKey);
  assert(ra!.sealingKey.join() !== ra!.openingKey.join(), "one key for both directions");
  assertEquals([ra!.sealBulk, rb!.sealBulk], [true, true], "either wants it");
  assertEquals(ra!.peer.address.length, ADDRESS_BYTES_MAX);
  assertEquals(rb!.peer, {
    uuid: "1".repeat(32),
    node: 1,
    incarnation: 10,
    clusterId: "c".repeat(32),
    address: "host-1:7460",
    features: 1,
  });
  assertEquals(sizes, [HELLO_BYTES, WELCOME_BYTES, FINISH_BYTES]);
  assert(Math.max(...sizes) <= HANDSHAKE_BYTES_MAX);
});

Deno.test("every handshake has its own nonces, key exchange and keys, on both sides", () => {
  const messages = new Set<string>();
  for (const [seedA, seedB] of [[1, 2], [3, 2], [1, 4]]) {
    const a = end("initiator", { seed: seedA }), b = end("responder", { seed: seedB });
    run(a, b, (bytes, index) => {
      if (index < 2) {
        messages.add(`${index} nonce ${bytes.subarray(16, 48)}`);
        messages.add(`${index} public ${bytes.subarray(48, 80)}`);
      }
      return bytes;
    });
    messages.add(`key ${a.result!.sealingKey}`);
    messages.add(`key ${a.result!.openingKey}`);
  }
  // Two different ones of each kind from each side, and six keys.
  assertEquals(messages.size, 4 * 2 + 6);
});

Deno.test("bytes may come one at a time, and no more is asked for than belongs to the handshake", () => {
  const a = end("initiator"), b = end("responder");
  let from = a, to = b;
  for (let output = from.output(); output !== null; output = from.output()) {
    for (let have = 0; have < output.length; have++) {
      assertEquals(to.receive(output.subarray(0, have)), 0);
      const wanted = to.bytesWanted(output.subarray(0, have));
      assert(wanted > have && wanted <= output.length, `wants ${wanted} of ${output.length}`);
    }
    assertEquals(to.receive(output), output.length);
    [from, to] = [to, from];
  }
  assert(a.result !== null && b.result !== null);
  assertEquals([a.bytesWanted(), b.bytesWanted()], [0, 0]);
  assertEquals(b.receive(new Uint8Array(500)), 0, "what follows is not the handshake's");
});

const VERDICTS: [string, EndOptions, EndOptions, string | null, string | null][] = [
  ["the same secret", {}, {}, null, null],
  ["no cluster yet, and one", { clusterId: null, node: 0, incarnation: 0 }, {}, null, null],
  ["no cluster on both sides", { clusterId: null }, { clusterId: null }, null, null],
  [
    "no cluster and data",
    { clusterId: null, purpose: "data" },
    { purpose: "data" },
    null,
    "MALFORMED",
  ],
  ["no number and data", { node: 0, purpose: "data" }, { purpose: "data" }, null, "MALFORMED"],
  ["no uuid", { uuid: "0".repeat(32) }, {}, null, "MALFORMED"],
  ["another secret", { secret: new Uint8Array(32).fill(8) }, {}, null, "SECRET"],
  ["another cluster", { clusterId: "d".repeat(32) }, {}, "CLUSTER", null],
  ["itself", { uuid: "2".repeat(32) }, {}, "SELF", null],
  ["the wrong port", { purpose: "data" }, {}, "PURPOSE", "PURPOSE"],
  ["only newer protocols", { protocols: [2, 3] }, { protocols: [1, 1] }, "PROTOCOL", "PROTOCOL"],
  ["only older protocols", { protocols: [1, 1] }, { protocols: [2, 3] }, "PROTOCOL", "PROTOCOL"],
  ["an odd address", { address: "a\nb:1" }, {}, null, "MALFORMED"],
];

for (const [name, optionsA, optionsB, codeA, codeB] of VERDICTS) {
  Deno.test(`${name}: initiator ${codeA ?? "fine"}, responder ${codeB ?? "fine"}`, () => {
    const a = end("initiator", optionsA), b = end("responder", optionsB);
    run(a, b);
    assertEquals([a.error?.code ?? null, b.error?.code ?? null], [codeA, codeB]);
    assert(!(a.error && a.result) && !(b.error && b.result));
    if (codeB !== null || codeA !== null) {
      assertEquals(b.result, null, "the responder accepts nobody");
    }
  });
}

Deno.test("the newest protocol that both speak is chosen", () => {
  for (const [of, at, chosen] of [[[1, 5], [2, 3], 3], [[2, 3], [1, 9], 3], [[4, 4], [1, 4], 4]]) {
    const a = end("initiator", { protocols: of as [number, number] });
    const b = end("responder", { protocols: at as [number, number] });
    run(a, b);
    assertEquals([a.result?.protocol, b.result?.protocol], [chosen, chosen]);
  }
});

Deno.test("who does not know the secret gets no answer", () => {
  const b = end("responder");
  b.receive(end("initiator", { secret: new Uint8Array(32).fill(8) }).output()!);
  assertEquals(b.output(), null);
  const c = end("responder");
  c.receive(new TextEncoder().encode("GET / HTTP/1.1\r\nHost: x\r\n\r\n".padEnd(200)));
  assertEquals([c.error?.code, c.output()], ["NOT_KELPIE", null]);
});

Deno.test("a change of any single bit of any message is noticed", () => {
  const lengths = [HELLO_BYTES, WELCOME_BYTES, FINISH_BYTES];
  const random = new Prng(11);
  for (let message = 0; message < 3; message++) {
    for (let at = 0; at < lengths[message]; at++) {
      // Every byte of the heads, a sample of the sealed parts: each costs two key exchanges.
      if (at >= 112 && at % 16 !== 0) continue;
      if (message === 2 && at % 16 !== 3) continue;
      const a = end("initiator"), b = end("responder");
      const bit = 1 << random.below(8);
      run(a, b, (bytes, index) => {
        if (index === message) bytes[at] ^= bit;
        return bytes;
      });
      const failed = message === 1 ? a : b;
      // A bit of the kind may turn a welcome into a message that is never complete.
      const isCut = message === 1 && at === 4 && a.result === null;
      assert(failed.error !== null || isCut, `message ${message}, byte ${at}, bit ${bit}`);
      assertEquals(b.result, null, `message ${message}, byte ${at}: the responder accepted`);
    }
  }
});

Deno.test("nobody can talk two ends down to an older protocol", () => {
  for (const max of [1, 2]) {
    const a = end("initiator", { protocols: [1, 3] }), b = end("responder", { protocols: [1, 3] });
    run(a, b, (bytes, index) => {
      if (index === 0) bytes[8] = max;
      return bytes;
    });
    assertEquals([a.result, b.result], [null, null]);
    const c = end("initiator", { protocols: [1, 3] }), d = end("responder", { protocols: [1, 3] });
    run(c, d, (bytes, index) => {
      if (index === 1) bytes[8] = bytes[10] = max;
      return bytes;
    });
    assertEquals([c.error?.code, c.result, d.result], ["SECRET", null, null]);
  }
  // Who knows the secret and still chooses worse than it could is caught as well.
  const a = end("initiator", { protocols: [1, 3] });
  const b = end("responder", { protocols: [1, 2] });
  run(a, b);
  assertEquals(a.result?.protocol, 2);
});

Deno.test("a refusal counts only for the hello that it answers", () => {
  const refusal = (seed: number) => {
    const a = end("initiator", { seed, protocols: [3, 3] }), b = end("responder");
    b.receive(a.output()!);
    return b.output()!;
  };
  const a = end("initiator", { seed: 5, protocols: [3, 3] });
  a.receive(refusal(6));
  assertEquals(a.error?.code, "SECRET");
  const b = end("initiator", { seed: 5, protocols: [3, 3] });
  b.receive(refusal(5));
  assertEquals(b.error?.code, "PROTOCOL");
});

Deno.test("a recorded handshake cannot be played again to either end", () => {
  const recorded: Uint8Array[] = [];
  run(end("initiator"), end("responder"), (bytes) => {
    recorded.push(bytes.slice());
    return bytes;
  });
  const b = end("responder", { seed: 77 });
  b.receive(recorded[0]);
  assert(b.output() !== null, "a hello may be replayed");
  b.receive(recorded[2]);
  assertEquals([b.error?.code, b.result], ["SECRET", null]);
  const a = end("initiator", { seed: 78 });
  a.output();
  a.receive(recorded[1]);
  assertEquals([a.error?.code, a.result], ["SECRET", null]);
});

Deno.test("what an end sends, sent back to it, leads nowhere", () => {
  const a = end("initiator");
  const hello = a.output()!;
  a.receive(hello.slice());
  assertEquals(a.result, null);
  assert(a.error !== null);
  // Back to another connection of the same node: it talks to itself, and notices.
  const b = end("initiator");
  const c = end("responder", { uuid: "1".repeat(32) });
  run(b, c);
  assertEquals([b.error?.code, c.result], ["SELF", null]);
  // A responder's welcome back to it as a finish.
  const d = end("responder");
  d.receive(end("initiator").output()!);
  const welcome = d.output()!;
  d.receive(welcome.slice(80));
  assertEquals([d.error?.code, d.result], ["SECRET", null]);
});

Deno.test("an end of the stream without an answer is told from one in the middle", () => {
  const a = end("initiator");
  a.output();
  a.ended();
  assertEquals([a.error?.code, a.result, a.bytesWanted()], ["UNANSWERED", null, 0]);
  const b = end("initiator");
  b.ended(Uint8Array.of(1));
  assertEquals(b.error?.code, "ENDED");
  // Whoever waits for a hello has asked nothing.
  const c = end("responder");
  c.ended();
  assertEquals(c.error?.code, "ENDED");
  const d = end("initiator"), e = end("responder");
  run(d, e);
  d.ended();
  assertEquals([d.error, d.result !== null], [null, true], "it was done before");
});

Deno.test("a handshake that is cut off ends in nobody", () => {
  for (let message = 0; message < 3; message++) {
    for (const keep of [0, 1, 50, 111]) {
      const a = end("initiator"), b = end("responder");
      run(a, b, (bytes, index) => index === message ? bytes.subarray(0, keep) : bytes);
      assertEquals(b.result, null);
      if (message < 2) assertEquals(a.result, null);
    }
  }
});

Deno.test("a key of low order is refused by both ends", () => {
  const low = [new Uint8Array(32), Uint8Array.of(1, ...new Uint8Array(31))];
  for (const key of low) {
    // Only somebody with the secret gets so far; the welcome's key is looked at before the tag can be.
    const a = end("initiator");
    const b = end("responder");
    run(a, b, (bytes, index) => {
      if (index === 1) bytes.set(key, 48);
      return bytes;
    });
    assertEquals([a.error?.code, a.result, b.result], ["MALFORMED", null, null]);
  }
});

Deno.test("faults of the agent itself are told by name", () => {
  const message = (options: EndOptions) => {
    try {
      end("initiator", options);
      return "";
    } catch (error) {
      return (error as Error).message;
    }
  };
  assert(message({ secret: new Uint8Array(31) }).includes("31 bytes"));
  assert(message({ uuid: "xyz" }).includes('"xyz"'));
  assert(message({ address: "x".repeat(256) }).includes("256 bytes"));
  assert(message({ node: 70000 }).includes("70000"));
});
