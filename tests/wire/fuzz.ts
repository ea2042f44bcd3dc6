/**
 * Strangers and faulty members at every state of a connection: mutated, cut, repeated, swapped and invented handshakes; rubbish after it.
 *
 *     deno run -A tests/wire/fuzz.ts --seed 1 --minutes 10
 *
 * What must hold, whatever comes:
 * - Nothing is thrown.
 * - An end accepts the other one only when every message reached it as it was sent to it, in this very handshake.
 * - A stranger costs a kilobyte of buffers; when all are gone, every buffer is free again.
 * - Of an authenticated stream, what is delivered is a beginning of what was sent; impossible content ends that link and no other.
 *
 * Iteration `i` of seed `s` is the same as iteration 0 of seed `s + i`; the loopback part depends on how the kernel cuts the stream as well.
 *
 * @module
 */
import { parseArgs } from "node:util";
import { Prng } from "../../agent/base/prng.ts";
import { encodeSocketAddress } from "../../agent/platform/address.ts";
import { check, closeFd, libc } from "../../agent/platform/linux/libc.ts";
import { IN_BYTES, OUT_BYTES, SMALL_BYTES } from "../../agent/platform/linux/tcp.ts";
import { nodeCipherSuite } from "../../agent/wire/cipher.ts";
import { Handshake, HANDSHAKE_BYTES_MAX } from "../../agent/wire/handshake.ts";
import { RECORD_OVERHEAD_BYTES, RecordSealer } from "../../agent/wire/sealed_stream.ts";
import { connectEnds, headOf, identity, PeerEnd, SECRET, tagOf } from "../platform/peer_ends.ts";

/** How often what happened, to see that the fuzzer gets everywhere. */
export type FuzzCounts = Map<string, number>;

function count(counts: FuzzCounts, what: string): void {
  counts.set(what, (counts.get(what) ?? 0) + 1);
}

function assert(condition: boolean, what: string): void {
  if (!condition) throw new Error(what);
}

/** Messages of earlier handshakes, to be played again. */
const recorded: Uint8Array[] = [];

function end(role: "initiator" | "responder", random: Prng): Handshake {
  return new Handshake({
    role,
    random,
    secret: SECRET,
    purpose: "data",
    self: identity(role === "initiator" ? 1 : 2),
  });
}

/** Makes something else of a message; the result may by chance be the same. */
function mutate(message: Uint8Array, random: Prng): [Uint8Array, string] {
  const copy = message.slice();
  switch (random.below(8)) {
    case 0:
      copy[random.below(copy.length)] ^= 1 << random.below(8);
      return [copy, "bit"];
    case 1:
      return [copy.subarray(0, random.below(copy.length)), "cut"];
    case 2: {
      const from = random.below(copy.length);
      random.fill(copy.subarray(from, from + random.between(1, 64)));
      return [copy, "range"];
    }
    case 3:
      random.fill(copy);
      return [copy, "rubbish"];
    case 4:
      return recorded.length > 0 ? [random.pick(recorded).slice(), "replay"] : [copy, "same"];
    case 5: {
      // The head of this one, the body of another.
      const other = recorded.length > 0 ? random.pick(recorded) : copy;
      copy.set(other.subarray(80, Math.min(other.length, copy.length)), Math.min(80, copy.length));
      return [copy, "splice"];
    }
    case 6: {
      // Fields in the clear: kind, purpose, protocols.
      copy[random.between(4, 13) % copy.length] = random.below(4);
      return [copy, "field"];
    }
    default:
      return [copy, "same"];
  }
}

function equal(a: Uint8Array, b: Uint8Array): boolean {
  return a.length === b.length && a.every((byte, i) => byte === b[i]);
}

/** One handshake between two honest ends with somebody between them. */
function fuzzHandshake(random: Prng, counts: FuzzCounts): void {
  const ends = [end("initiator", random), end("responder", random)];
  /** What reached each end is what the other one sent. */
  const isTrue = [true, true];
  let at = 0;
  for (let message = 0; message < 4; message++) {
    const output = ends[at].output();
    at = 1 - at;
    if (output === null) break;
    if (recorded.length < 64) recorded.push(output.slice());
    else recorded[random.below(64)] = output.slice();
    const [bytes, how] = random.chance(0.4) ? mutate(output, random) : [output, "same"];
    if (!equal(bytes, output)) isTrue[at] = false;
    const to = ends[at];
    count(counts, `handshake ${message} ${how}`);
    // In pieces, and with rubbish behind.
    let have = new Uint8Array(0);
    for (let from = 0; from < bytes.length && to.bytesWanted(have) > 0;) {
      const wanted = to.bytesWanted(have);
      assert(wanted <= HANDSHAKE_BYTES_MAX, `${wanted} bytes wanted`);
      const piece = random.between(1, wanted);
      have = Uint8Array.from([...have, ...bytes.subarray(from, from + piece)]);
      from += piece;
      const consumed = to.receive(have);
      assert(consumed <= have.length, "consumed more than there was");
      have = have.slice(consumed);
    }
    // A replay may by chance be what was sent.
    assert(!(to.error !== null && to.result !== null), "failed and succeeded");
  }
  const [a, b] = ends;
  // The responder's finish covers everything, the initiator's welcome what it saw of it.
  if (a.result !== null) assert(isTrue[0], "the initiator accepted a changed welcome");
  if (b.result !== null) {
    assert(isTrue[0] && isTrue[1], "the responder accepted a changed message");
    assert(a.result !== null, "only the responder succeeded");
    assert(equal(a.result!.sealingKey, b.result.openingKey), "other keys");
    count(counts, "handshake done");
  }
}

/** A blocking socket to `address`. */
function connect(address: string): number {
  const encoded = encodeSocketAddress(address)!;
  const fd = check(libc.socket(encoded[0], 1 | 0o2000000, 0), "socket");
  check(libc.connect(fd, encoded, encoded.length), "connect");
  return fd;
}

function send(fd: number, bytes: Uint8Array): void {
  // Non-blocking: what the victim does not take is not sent.
  libc.send(fd, bytes as Uint8Array<ArrayBuffer>, BigInt(bytes.length), 0x4040);
}

/** A record whose frames are right or not. */
function invent(sealer: RecordSealer, random: Prng, tag: number): [Uint8Array, boolean] {
  const isRight = random.chance(0.7);
  const dataBytes = random.pick([0, 0, 4096, 8192, 65536]);
  const headBytes = isRight ? random.pick([64, 65, 200]) : random.pick([0, 1, 63, 8193, 64]);
  const heads = new Uint8Array(8 + ((headBytes + 7) & ~7));
  const view = new DataView(heads.buffer);
  view.setUint32(0, headBytes, true);
  view.setUint32(4, isRight ? dataBytes : dataBytes + random.pick([1, 4096, 0xfffff000]), true);
  if (heads.length >= 12) view.setUint32(8, tag, true);
  const to = new Uint8Array(RECORD_OVERHEAD_BYTES + heads.length + dataBytes);
  sealer.seal(heads, dataBytes > 0 ? new Uint8Array(dataBytes).fill(tag) : null, to);
  return [to, isRight];
}

/** Strangers and a faulty member at a real end, while an honest member works. */
class Loopback {
  readonly #victim = new PeerEnd(1);
  readonly #honest = new PeerEnd(2);
  readonly #link: number;
  readonly #counts: FuzzCounts;
  #sent = 0;
  #got = 0;
  #fromFaulty: number[] = [];

  constructor(counts: FuzzCounts) {
    this.#counts = counts;
    [this.#link] = connectEnds(this.#honest, this.#victim);
    this.#victim.onReceived = (_link, head, offset, bytes) => {
      const tag = tagOf(head);
      for (let at = offset; at < offset + bytes; at += 1021) {
        assert(this.#victim.bytes[at] === tag % 256, "data of another message");
      }
      if (bytes > 0) this.#victim.arena.release(offset, bytes);
      if (tag < 1_000_000) {
        assert(tag === this.#got, `message ${tag} instead of ${this.#got}`);
        this.#got++;
      } else this.#fromFaulty.push(tag);
    };
  }

  #turn(times: number): void {
    for (let i = 0; i < times; i++) for (const end of [this.#victim, this.#honest]) end.turn();
  }

  round(random: Prng): void {
    this.#victim.tick(1000);
    this.#honest.peers.send(this.#link, headOf(this.#sent++), 64, 0, 0);
    const fd = connect(this.#victim.address);
    if (random.chance(0.4)) this.#stranger(fd, random);
    else this.#member(fd, random);
    closeFd(fd);
    this.#settle();
  }

  #stranger(fd: number, random: Prng): void {
    const handshake = end("initiator", random);
    const hello = handshake.output()!;
    const [bytes, how] = mutate(hello, random);
    send(fd, bytes);
    count(this.#counts, `stranger ${how}`);
    this.#turn(random.below(4));
    const rubbish = new Uint8Array(random.pick([0, 1, 336, 100_000]));
    random.fill(rubbish);
    if (rubbish.length > 0) send(fd, rubbish);
    this.#turn(random.between(1, 5));
    const most = 2 * (2 * SMALL_BYTES) + IN_BYTES + OUT_BYTES;
    assert(this.#victim.peers.bufferBytes <= most, "a stranger has large buffers");
    assert(this.#victim.arena.usedBytes === 0, "a stranger has arena memory");
  }

  #member(fd: number, random: Prng): void {
    const handshake = new Handshake({
      role: "initiator",
      random,
      secret: SECRET,
      purpose: "data",
      self: identity(random.between(3, 5)),
    });
    send(fd, handshake.output()!);
    const welcome = new Uint8Array(416);
    for (let have = 0; have < welcome.length;) {
      this.#turn(1);
      const part = new Uint8Array(welcome.length - have);
      const poll = new Uint8Array(new Int32Array([fd, 1]).buffer);
      if (libc.poll(poll, 1n, 0) <= 0) continue;
      const bytes = libc.read(fd, part, BigInt(part.length));
      assert(bytes > 0, "an honest hello is refused");
      welcome.set(part.subarray(0, bytes), have);
      have += bytes;
    }
    handshake.receive(welcome);
    send(fd, handshake.output()!);
    const sealer = new RecordSealer(nodeCipherSuite, handshake.result!.sealingKey, true);
    this.#fromFaulty = [];
    const expected: number[] = [];
    let isWhole = true;
    for (let i = random.below(12); i > 0; i--) {
      const tag = 1_000_000 + random.below(1_000_000);
      let [bytes, isRight] = invent(sealer, random, tag);
      if (random.chance(0.15)) {
        const [changed] = mutate(bytes, random);
        if (!equal(changed, bytes)) isRight = false;
        bytes = changed;
      }
      count(this.#counts, `record ${isRight ? "right" : "wrong"}`);
      isWhole &&= isRight;
      if (isWhole) expected.push(tag);
      send(fd, bytes);
      this.#turn(random.below(3));
    }
    this.#settle();
    const got = this.#fromFaulty;
    assert(got.every((tag, i) => tag === expected[i]), `${got} was delivered of ${expected}`);
    if (expected.length > 0 && got.length === expected.length) count(this.#counts, "stream whole");
    sealer.close();
  }

  /** Lets everything that was sent arrive: the kernel's loopback is at once. */
  #settle(): void {
    for (let i = 0; i < 200 && (this.#got < this.#sent || i < 3); i++) this.#turn(1);
    assert(this.#got === this.#sent, "the honest member's link has suffered");
  }

  close(): void {
    for (let i = 0; i < 20; i++) this.#turn(1);
    const { peers, arena } = this.#victim;
    assert(arena.usedBytes === 0, `${arena.usedBytes} bytes of the arena are lost`);
    assert(
      peers.bufferBytes === 2 * SMALL_BYTES + IN_BYTES + OUT_BYTES,
      `buffers of ${peers.bufferBytes} bytes are left`,
    );
    this.#victim.close();
    this.#honest.close();
  }
}

/**
 * Runs handshakes and loopback rounds.
 *
 * @param seed of the first
 * @returns how often what happened
 * @throws when something did not hold, with the seed that shows it
 */
export function runFuzz(seed: number, iterations: number, untilMs = Infinity): FuzzCounts {
  const counts: FuzzCounts = new Map();
  const loopback = new Loopback(counts);
  for (let i = 0; i < iterations && performance.now() < untilMs; i++) {
    const random = new Prng(seed + i);
    try {
      fuzzHandshake(random, counts);
      loopback.round(random);
    } catch (error) {
      throw new Error(`fuzz: seed ${seed + i} (of a run from ${seed}) fails`, { cause: error });
    }
  }
  loopback.close();
  return counts;
}

if (import.meta.main) {
  const { values } = parseArgs({
    options: { seed: { type: "string" }, minutes: { type: "string", default: "1" } },
  });
  const seed = Number(values.seed ?? Math.floor(Math.random() * 2 ** 31));
  console.log(`seed ${seed}`);
  const counts = runFuzz(seed, Infinity, performance.now() + Number(values.minutes) * 60_000);
  for (const [what, times] of [...counts].sort()) console.log(`${what}: ${times}`);
}
