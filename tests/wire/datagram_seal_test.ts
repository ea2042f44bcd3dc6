import { assert, assertEquals, assertThrows } from "@std/assert/mod.js";
import { Prng } from "../../agent/base/prng.ts";
import {
  DATAGRAM_BYTES_MAX,
  DATAGRAM_VERSION,
  DatagramSeal,
  PLAINTEXT_BYTES_MAX,
  REPLAY_WINDOW,
  type SealCounters,
} from "../../agent/wire/datagram_seal.ts";

const SECRET = Uint8Array.from({ length: 32 }, (_, index) => index);

function seal(seed: number, options: { sessionsMax?: number; firstCounter?: number } = {}) {
  return new DatagramSeal({ secret: SECRET, random: new Prng(seed), ...options });
}

function text(content: string): Uint8Array {
  return new TextEncoder().encode(content);
}

function hex(bytes: Uint8Array): string {
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** The counters that are not zero. */
function told(counters: SealCounters): Partial<SealCounters> {
  return Object.fromEntries(Object.entries(counters).filter(([, count]) => count > 0));
}

Deno.test("a sealed datagram of version 1 has the bytes that it always had", () => {
  assertEquals(DATAGRAM_VERSION, 1, "a new version needs golden bytes and a line here");
  const sender = seal(1);
  assertEquals(
    [hex(sender.seal(text("hello"))), hex(sender.seal(new Uint8Array(0)))],
    GOLDEN,
  );
  const golden = Uint8Array.from(GOLDEN[0].match(/../g)!, (pair) => parseInt(pair, 16));
  assertEquals(new Uint8Array(seal(2).open(golden)!), text("hello"));
});

Deno.test("the golden bytes are AES-256-GCM of WebCrypto under the key of HKDF-SHA256", async () => {
  const golden = Uint8Array.from(GOLDEN[0].match(/../g)!, (pair) => parseInt(pair, 16));
  const base = await crypto.subtle.importKey("raw", SECRET, "HKDF", false, ["deriveKey"]);
  const key = await crypto.subtle.deriveKey(
    {
      name: "HKDF",
      hash: "SHA-256",
      salt: new Uint8Array(0),
      info: new TextEncoder().encode("kelpie gossip datagram v1"),
    },
    base,
    { name: "AES-GCM", length: 256 },
    false,
    ["decrypt"],
  );
  const plaintext = await crypto.subtle.decrypt(
    { name: "AES-GCM", iv: golden.subarray(4, 16), additionalData: golden.subarray(0, 16) },
    key,
    golden.subarray(16),
  );
  assertEquals(new TextDecoder().decode(plaintext), "hello");
});

Deno.test("the largest plaintext fits, one byte more is the caller's fault", () => {
  const datagram = seal(1).seal(new Uint8Array(PLAINTEXT_BYTES_MAX));
  assertEquals(datagram.length, DATAGRAM_BYTES_MAX);
  assert(DATAGRAM_BYTES_MAX + 48 <= 1400, "with headers of IPv6 and UDP");
  assertEquals(seal(2).open(datagram)?.length, PLAINTEXT_BYTES_MAX);
  assertThrows(() => seal(1).seal(new Uint8Array(PLAINTEXT_BYTES_MAX + 1)), RangeError);
  assertThrows(() => new DatagramSeal({ secret: new Uint8Array(31), random: new Prng(1) }));
});

Deno.test("a datagram with any bit changed, cut or longer is refused, and counted", () => {
  const datagram = seal(1).seal(text("suspect"));
  const receiver = seal(2);
  for (let bit = 0; bit < datagram.length * 8; bit++) {
    const changed = datagram.slice();
    changed[bit >> 3] ^= 1 << (bit & 7);
    assertEquals(receiver.open(changed), null, `bit ${bit}`);
  }
  assertEquals(told(receiver.counters), { unknownVersion: 32, forged: (datagram.length - 4) * 8 });
  for (let length = 0; length < datagram.length; length++) {
    assertEquals(receiver.open(datagram.subarray(0, length)), null, `${length} bytes`);
  }
  assertEquals(receiver.open(new Uint8Array([...datagram, 0])), null);
  assertEquals(receiver.open(new Uint8Array(DATAGRAM_BYTES_MAX + 1)), null);
  assertEquals(receiver.counters.tooShort, 32);
  assertEquals(receiver.counters.tooLong, 1);
  assertEquals(receiver.sessionCount, 0, "nothing is remembered of what was refused");
  assert(receiver.open(datagram) !== null, "and the packet itself can still be opened");
});

Deno.test("another secret opens nothing", () => {
  const other = new DatagramSeal({ secret: SECRET.toReversed(), random: new Prng(3) });
  const receiver = seal(2);
  assertEquals(receiver.open(other.seal(text("x"))), null);
  assertEquals(told(receiver.counters), { forged: 1 });
});

Deno.test("a datagram is opened once, whatever its order", () => {
  const sender = seal(1);
  const receiver = seal(2);
  const random = new Prng(7);
  const first = sender.seal(text("first"));
  assert(receiver.open(first) !== null);
  const datagrams = Array.from({ length: REPLAY_WINDOW }, () => sender.seal(text("x")));
  for (const datagram of random.shuffle([...datagrams])) assert(receiver.open(datagram) !== null);
  for (const datagram of random.shuffle([...datagrams])) {
    assertEquals(receiver.open(datagram), null);
  }
  assertEquals(receiver.open(first), null);
  assertEquals(told(receiver.counters), {
    opened: REPLAY_WINDOW + 1,
    replayed: REPLAY_WINDOW,
    tooOld: 1,
  });
});

Deno.test("what has left the replay window is refused, and bits are not taken for older packets", () => {
  const sender = seal(1);
  const receiver = seal(2);
  const datagrams = Array.from({ length: 3 * REPLAY_WINDOW }, () => sender.seal(text("x")));
  const open = (index: number) => receiver.open(datagrams[index]) !== null;
  assert(open(0) && open(5));
  assert(open(5 + REPLAY_WINDOW - 1) && open(6 + 0), "6 is the oldest of the window now");
  assert(open(5 + REPLAY_WINDOW), "falls on the bit of 5");
  assert(!open(6) && !open(1), "one was opened, one is too old");
  assert(open(7), "never opened and still in the window");
  assert(open(3 * REPLAY_WINDOW - 1), "a jump over more than the window");
  assert(open(2 * REPLAY_WINDOW) && !open(2 * REPLAY_WINDOW - 1));
  assert(open(5 + 2 * REPLAY_WINDOW), "the jump cleared its bit");
  assertEquals(told(receiver.counters), { opened: 9, replayed: 1, tooOld: 2 });
});

Deno.test("a datagram of this process itself is refused", () => {
  const sender = seal(1);
  assertEquals(sender.open(sender.seal(text("x"))), null);
  assertEquals(sender.counters.ownSession, 1);
});

Deno.test("a new session begins before the counter wraps", () => {
  const sender = seal(1, { firstCounter: 0xffff_ffff });
  const [last, first] = [sender.seal(text("last")), sender.seal(text("first"))];
  assertEquals(hex(last.subarray(12, 16)), "ffffffff");
  assertEquals(hex(first.subarray(12, 16)), "00000001");
  assert(hex(last.subarray(4, 12)) !== hex(first.subarray(4, 12)));
  const receiver = seal(2);
  assert(receiver.open(last) !== null && receiver.open(first) !== null);
  assertEquals(receiver.open(last), null);
});

Deno.test("sessions are bounded: the least recently used makes room, forgeries do not", () => {
  const receiver = seal(2, { sessionsMax: 3 });
  const senders = [11, 12, 13, 14].map((seed) => seal(seed));
  const early = senders[0].seal(text("early"));
  const late = senders[0].seal(text("late"));
  for (const sender of senders.slice(0, 3)) assert(receiver.open(sender.seal(text("x"))) !== null);
  for (let i = 0; i < 50; i++) {
    const forged = seal(100 + i).seal(text("x"));
    forged[20] ^= 1;
    assertEquals(receiver.open(forged), null);
  }
  assertEquals([receiver.sessionCount, receiver.counters.sessionsForgotten], [3, 0]);
  assert(receiver.open(senders[0].seal(text("used again"))) !== null);
  assert(receiver.open(senders[3].seal(text("a fourth"))) !== null);
  assertEquals([receiver.sessionCount, receiver.counters.sessionsForgotten], [3, 1]);
  // The second was forgotten, not the first, of which everything before its first packet is refused.
  assertEquals(receiver.open(early), null);
  assertEquals(receiver.open(late), null);
  assertEquals(receiver.counters.tooOld, 2);
});

Deno.test("rubbish and mutations of real datagrams never throw, open nothing and leave nothing", () => {
  const random = new Prng(42);
  const sender = seal(1);
  const receiver = seal(2);
  let datagram = sender.seal(text("x".repeat(100)));
  for (let round = 0; round < 1000; round++) {
    if (round % 50 === 0) datagram = sender.seal(text("x".repeat(random.below(1300))));
    const bytes = random.chance(0.3)
      ? new Uint8Array(random.below(1500))
      : datagram.slice(0, datagram.length - random.pick([0, 0, 1, random.below(datagram.length)]));
    if (random.chance(0.3)) random.fill(bytes);
    for (let count = random.between(1, 5); count > 0 && bytes.length > 0; count--) {
      bytes[random.below(bytes.length)] ^= random.between(1, 255);
    }
    const isSame = bytes.length === datagram.length &&
      bytes.every((byte, i) => byte === datagram[i]);
    const opened = receiver.open(bytes);
    assert(opened === null || isSame, `seed 42, round ${round}`);
  }
  assert(receiver.sessionCount <= 1);
});

/** Of seed 1 and the secret 00 01 … 1f: "hello", then nothing. */
const GOLDEN = [
  "4b670100d4197117e52d968100000001fb63f67886b7baebb18e855c3c6c34d42b91aec991",
  "4b670100d4197117e52d96810000000208534885e1cbe93005088d32da01b000",
];
