/**
 * A member among peers that have gone mad: packets mutated, cut, invented, replayed and out of any order, sealed and
 * not, while time stands still, runs and jumps.
 *
 *     deno run -A tests/gossip/fuzz.ts --seed 1 --minutes 10
 *
 * What must hold, whatever comes:
 * - Nothing is thrown, and every packet is opened or refused, and counted.
 * - Tables stay within their bounds; each packet that comes in brings few out, and none is longer than it may be.
 * - All that goes out can be read by another member.
 * - No member is dead that was not suspected or said to be dead, this one never is for itself, and its own claims only
 *   grow.
 *
 * Iteration `i` of seed `s` is the same as iteration 0 of seed `s + i`.
 *
 * @module
 */
import { Prng } from "../../agent/base/prng.ts";
import { Gossip, TICK_MS } from "../../agent/gossip/gossip.ts";
import { encodeMeta } from "../../agent/gossip/meta.ts";
import { PackWriter } from "../../agent/gossip/pack.ts";
import {
  compareClaims,
  decodePacket,
  encodeEntry,
  type Entry,
  isAddress,
  MEMBER_STATES,
  PACKET_BYTES_MAX,
  uuidBytes,
} from "../../agent/gossip/packet.ts";
import { DATAGRAM_BYTES_MAX, DatagramSeal } from "../../agent/wire/datagram_seal.ts";
import { addressOf, metaOf, uuidOf } from "./network.ts";

/** What happens to a member at the most. */
const STEPS_MAX = 200;
/** Members that packets are about. */
const MEMBERS = 12;
/** Bound of the table, below {@linkcode MEMBERS}, so that it is met. */
const MEMBERS_MAX = 9;
/** Packets that one packet may bring out: an answer, and what members are told. */
const OUT_PER_PACKET_MAX = 20;

/** How often what happened, to see that the fuzzer gets everywhere. */
export type FuzzCounts = Map<string, number>;

/**
 * Runs members until `iterations` are over.
 *
 * @param seed of the first
 * @returns how often what happened
 * @throws when something did not hold, with the seed that shows it
 */
export function runFuzz(seed: number, iterations: number): FuzzCounts {
  const counts: FuzzCounts = new Map();
  for (let i = 0; i < iterations; i++) {
    try {
      new Fuzz(seed + i, counts).run();
    } catch (error) {
      throw new Error(`fuzz: seed ${seed + i} fails`, { cause: error });
    }
  }
  return counts;
}

class Fuzz {
  readonly #random: Prng;
  readonly #counts: FuzzCounts;
  readonly #gossip: Gossip;
  readonly #seal: DatagramSeal;
  readonly #peerSeal: DatagramSeal;
  /** Packets that were sent by this member or to it. */
  readonly #packets: Uint8Array[] = [];
  readonly #datagrams: Uint8Array[] = [];
  #nowMs: number;
  #claim = { run: 0, incarnation: 0 };

  constructor(seed: number, counts: FuzzCounts) {
    const random = new Prng(seed);
    this.#random = random;
    this.#counts = counts;
    this.#nowMs = random.below(1e6);
    this.#gossip = new Gossip({
      self: {
        uuid: uuidOf(0),
        address: addressOf(0),
        agentIncarnation: random.below(3),
        meta: metaOf(0),
      },
      seeds: random.chance(0.5) ? [addressOf(1), addressOf(2)] : [],
      random: random.fork(),
      config: { membersMax: MEMBERS_MAX, deadForgetMs: 20_000, leftForgetMs: 20_000 },
    });
    const secret = new Uint8Array(32).fill(seed);
    this.#seal = new DatagramSeal({ secret, random: random.fork(), sessionsMax: 4 });
    this.#peerSeal = new DatagramSeal({ secret, random: random.fork() });
  }

  run(): void {
    const steps = this.#random.between(1, STEPS_MAX);
    for (let step = 0; step < steps; step++) {
      this.#step();
      this.#check();
    }
  }

  #note(what: string): void {
    this.#counts.set(what, (this.#counts.get(what) ?? 0) + 1);
  }

  #step(): void {
    const random = this.#random;
    const chance = random.fraction();
    if (chance < 0.35) return this.#receive(this.#invented());
    if (chance < 0.5) return this.#receive(this.#mutated());
    if (chance < 0.55) return this.#receive(this.#rubbish());
    if (chance < 0.65) return this.#receiveDatagram();
    if (chance < 0.9) return this.#tick();
    const what = random.below(40);
    if (what < 20) this.#gossip.update({ ...metaOf(0), freeBytes: random.below(1e6) });
    else if (what < 30) this.#gossip.renumber(random.below(6));
    else if (what < 35) this.#gossip.forget(uuidOf(random.below(MEMBERS)));
    else if (what < 39) this.#gossip.join([addressOf(random.below(MEMBERS)), "no address"]);
    else this.#gossip.leave(this.#nowMs);
  }

  #tick(): void {
    const random = this.#random;
    this.#nowMs += random.pick([0, TICK_MS, TICK_MS, TICK_MS, 200, 1000, 30_000, -50]);
    this.#gossip.tick(this.#nowMs);
    this.#drain(1000);
  }

  #receive(bytes: Uint8Array): void {
    const { counters } = this.#gossip;
    const before = { ...counters.refused };
    const copy = bytes.slice();
    this.#gossip.receive(addressOf(this.#random.below(MEMBERS)), bytes, this.#nowMs);
    bytes.fill(0xff); // must not be kept
    for (const [reason, count] of Object.entries(counters.refused)) {
      if (count > before[reason as keyof typeof before]) this.#note(`refused ${reason}`);
    }
    this.#keep(this.#packets, copy);
    this.#drain(OUT_PER_PACKET_MAX);
  }

  #keep(list: Uint8Array[], bytes: Uint8Array): void {
    if (list.length < 50) list.push(bytes);
    else list[this.#random.below(50)] = bytes;
  }

  #drain(limit: number): void {
    const packets = this.#gossip.takePackets();
    if (packets.length > limit) throw new Error(`${packets.length} packets at once`);
    for (const { address, bytes } of packets) {
      if (!isAddress(address)) throw new Error(`packet to ${address}`);
      if (bytes.length > PACKET_BYTES_MAX) throw new Error(`packet of ${bytes.length} bytes`);
      const packet = decodePacket(bytes);
      if (typeof packet === "string") throw new Error(`its own packet is ${packet}`);
      this.#note(`sends kind ${packet.kind}`);
      this.#keep(this.#packets, bytes);
      this.#keep(this.#datagrams, this.#seal.seal(bytes));
    }
    for (const { kind } of this.#gossip.takeEvents()) this.#note(kind);
  }

  // ----------------------------------------------------------------------------------------- packets

  #uuid(): string {
    return uuidOf(this.#random.below(MEMBERS));
  }

  #entry(): Entry {
    const random = this.#random;
    const index = random.below(MEMBERS);
    const state = random.pick(MEMBER_STATES);
    const hasContent = state === "alive" && random.chance(0.7);
    const accuser = uuidOf((index + 1 + random.below(MEMBERS - 1)) % MEMBERS);
    return {
      state,
      uuid: uuidOf(index),
      run: random.below(8),
      incarnation: random.chance(0.02) ? 2 ** 48 : random.below(6),
      content: hasContent
        ? {
          address: addressOf(random.below(MEMBERS)),
          meta: metaOf(index),
          metaBytes: encodeMeta(metaOf(index)),
        }
        : null,
      accusations: [{ by: accuser, asked: random.below(4), nacks: random.below(4) }],
      by: accuser,
    };
  }

  /** A packet as another member might write it, with anything in it. */
  #invented(): Uint8Array {
    const random = this.#random;
    const writer = new PackWriter(4 * PACKET_BYTES_MAX);
    const kind = random.below(10);
    writer.array(5);
    writer.uint(1);
    writer.uint(kind);
    writer.array(3);
    writer.binary(uuidBytes(this.#uuid()));
    writer.uint(random.below(8));
    writer.uint(random.below(6));
    const number = () => writer.uint(this.#someNumber());
    const uuid = () => writer.binary(uuidBytes(random.chance(0.2) ? "" : this.#uuid()));
    const digest = () => {
      const bytes = new Uint8Array(64);
      if (random.chance(0.5)) random.fill(bytes);
      writer.binary(bytes);
    };
    const rest = [
      [number, uuid],
      [number, uuid, () => writer.uint(random.below(8)), () => writer.uint(random.below(6))],
      [number, uuid, () => writer.text(addressOf(random.below(MEMBERS)))],
      [number],
      [],
      [digest],
      [digest],
      [],
      [number, uuid],
      [number, uuid, uuid],
    ][kind];
    writer.array(rest.length);
    for (const write of rest) write();
    const count = random.below(8);
    writer.array(count);
    for (let i = 0; i < count; i++) writer.raw(encodeEntry(this.#entry()));
    return writer.take();
  }

  /** A number that this member waits for, or any. */
  #someNumber(): number {
    const random = this.#random;
    if (this.#packets.length === 0 || random.chance(0.3)) return random.u32();
    const packet = decodePacket(random.pick(this.#packets));
    return typeof packet === "string" ? random.u32() : packet.number;
  }

  #mutated(): Uint8Array {
    const random = this.#random;
    if (this.#packets.length === 0) return this.#rubbish();
    const bytes = random.pick(this.#packets).slice();
    for (let count = random.below(4); count > 0 && bytes.length > 0; count--) {
      const at = random.below(bytes.length);
      bytes[at] = random.pick([0, 0xff, 0x90, 0xc4, 0xdc, 0xdd, bytes[at] ^ 1, random.below(256)]);
    }
    return random.chance(0.8) ? bytes : bytes.slice(0, random.below(bytes.length + 1));
  }

  #rubbish(): Uint8Array {
    const bytes = new Uint8Array(this.#random.below(1500));
    this.#random.fill(bytes);
    if (this.#random.chance(0.3)) bytes.fill(this.#random.pick([0x91, 0xdd, 0xdc, 0x81, 0xc1]));
    return bytes;
  }

  /** Sealed by a peer, maybe changed on the way or sent before; what opens is received. */
  #receiveDatagram(): void {
    const random = this.#random;
    const fresh = this.#peerSeal.seal(this.#mutated().subarray(0, PACKET_BYTES_MAX));
    this.#keep(this.#datagrams, fresh);
    const datagram = random.chance(0.5) ? fresh.slice() : random.pick(this.#datagrams).slice();
    const isChanged = random.chance(0.5);
    if (isChanged) datagram[random.below(datagram.length)] ^= random.between(1, 255);
    if (datagram.length > DATAGRAM_BYTES_MAX) throw new Error(`${datagram.length} bytes sealed`);
    const before = { ...this.#seal.counters };
    const opened = this.#seal.open(datagram);
    const changes = Object.entries(this.#seal.counters).filter(([name, count]) =>
      count !== before[name as keyof typeof before] && name !== "sessionsForgotten"
    );
    if (changes.length !== 1) throw new Error(`counted ${changes}`);
    this.#note(`seal ${changes[0][0]}`);
    if (opened === null) return;
    if (isChanged) throw new Error("a changed datagram was opened");
    if (this.#seal.open(datagram) !== null) throw new Error("a datagram was opened twice");
    this.#receive(opened);
  }

  // ------------------------------------------------------------------------------------------ checks

  #check(): void {
    const members = this.#gossip.members();
    if (members.length > MEMBERS_MAX) throw new Error(`${members.length} members`);
    const self = this.#gossip.member(uuidOf(0))!;
    if (self.state !== "alive" && self.state !== "left") throw new Error(`it is ${self.state}`);
    const present = members.filter(({ state }) => state === "alive" || state === "suspect");
    const size = self.state === "left" ? present.length + 1 : present.length;
    if (size !== this.#gossip.size) throw new Error(`${present.length} of ${this.#gossip.size}`);
    for (const { uuid, state, accusations, deadlineMs, changedMs } of members) {
      if (state === "suspect" && !(accusations.length > 0 && deadlineMs > changedMs)) {
        throw new Error(`${uuid} is suspected by ${accusations.length}`);
      }
      if (accusations.length > 5) throw new Error(`${uuid} has ${accusations.length} accusers`);
    }
    // An agent incarnation of 0 hides the run; the incarnation alone may begin again with a new one.
    const claim = { run: self.agentIncarnation, incarnation: self.incarnation };
    if (claim.run === this.#claim.run && claim.run > 0 && compareClaims(claim, this.#claim) < 0) {
      throw new Error(`it took back ${this.#claim.incarnation} for ${claim.incarnation}`);
    }
    this.#claim = claim;
  }
}

if (import.meta.main) {
  const option = (name: string, otherwise: number) => {
    const at = Deno.args.indexOf(`--${name}`);
    return at < 0 ? otherwise : Number(Deno.args[at + 1]);
  };
  const end = performance.now() + option("minutes", 1) * 60_000;
  let seed = option("seed", 1);
  const first = seed;
  for (; performance.now() < end; seed += 100) runFuzz(seed, 100);
  console.log(`fuzz: seeds ${first} to ${seed - 1} hold`);
}
