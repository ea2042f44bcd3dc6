/**
 * Members and failures: SWIM over datagrams (A. Das, I. Gupta, A. Motivala, 2002) with Lifeguard's local health,
 * suspicion and nacks (2018), and anti-entropy at a constant rate.
 *
 *     every 500 ms   ping one member, the next of a shuffled round  ── no ack in 200 ms ──▶  ask 3 others to ping it
 *                    ── no ack in 500 ms ──▶  suspect  ── nobody refutes ──▶  dead
 *     every 200 ms   news, where there is some, to 3 members drawn at random; news also rides on pings and acks
 *     every 1 s      digest of the table to one member drawn at random; where digests differ, one slice each way
 *     every 2 s      one dead member, and one seed that is not among the members, are tried again
 *
 * Gossip suspects, it decides nothing: what a death means is for the consensus.
 *
 * Differences to the papers, and why:
 * - A suspicion is probed at once by about six members instead of by whoever comes to it in its round, so that
 *   confirmations come within a second in clusters of any size.
 * - The header of each packet carries run and incarnation of its sender: any packet refutes.
 * - A death that is read from a slice is not taken over: the member is told and probed. Halves of a partition that
 *   meet again hold each other for dead, and must not bury who is well (memberlist suspects it in this case).
 * - Who reaches less than half of the members, or fails with most of its last probes, keeps its deaths to itself and
 *   tells of suspicions only: it is itself that was cut off.
 * - Who did not run for a while (stopped, swapped out, a suspended machine) gives everybody else that time, too.
 *
 * Invariants:
 * - Bytes sent per second do not depend on the number of members: each packet has at most `PACKET_BYTES_MAX`, each
 *   timer sends a fixed number of them, each packet received is answered by one, and what is sent unasked (to
 *   tell a member what is said about it) is drawn from a budget.
 * - Nothing that comes in is thrown at the caller, and nothing grows by it but the tables, which are bounded.
 * - Only a member itself raises its incarnation. Newer claims, by (run, incarnation), replace older ones; of
 *   equal ones suspect replaces alive, dead replaces both, left replaces all.
 *
 * @module
 */
import { isEqual } from "../base/bytes.ts";
import type { Random } from "../platform/platform.ts";
import { Broadcasts } from "./broadcasts.ts";
import { below, isPresent, type Member, MemberTable } from "./members.ts";
import { decodeMeta, encodeMeta, type MemberMeta } from "./meta.ts";
import { PackWriter } from "./pack.ts";
import {
  type Accusation,
  ACCUSATIONS_MAX,
  AGENT_INCARNATION_MAX,
  compareClaims,
  type Content,
  decodePacket,
  DIGEST_PARTS,
  encodeEntry,
  type Entry,
  INCARNATION_MAX,
  isAddress,
  isUuid,
  type MemberState,
  type Packet,
  PACKET_BYTES_MAX,
  PACKET_VERSION,
  type PacketFault,
  PacketKind,
  uuidBytes,
} from "./packet.ts";
import { CONFIRMATIONS_MAX, Health, suspicionTimeoutMs, transmissionsMax } from "./suspicion.ts";

/** How often {@linkcode Gossip.tick} is to be called, in milliseconds. */
export const TICK_MS = 50;

/** Times and counts, all with defaults. Durations in milliseconds. */
export interface GossipConfig {
  /** Between two probes, and until a probe has failed. */
  readonly periodMs: number;
  /** Until others are asked to probe, too. */
  readonly directMs: number;
  /** Until a member that was asked to probe says that it gets no answer. */
  readonly nackMs: number;
  /** Members asked to probe. */
  readonly helpers: number;
  /** Between two rounds of news. */
  readonly newsMs: number;
  /** Members that get the news of one round. */
  readonly newsTargets: number;
  /** Between two digests. */
  readonly digestMs: number;
  /** Between two slices that a newcomer asks for, on average. */
  readonly pullMs: number;
  /** Between two tries to reach a member that is dead, or a seed that is no member. */
  readonly reconnectMs: number;
  /** A gap between calls that is longer than this means that this process did not run. */
  readonly pauseMs: number;
  /** How long a death is passed on in slices. */
  readonly deadNewsMs: number;
  /** How long a dead member is tried to be reached, and kept. */
  readonly deadForgetMs: number;
  /** How long a member that has left is kept, so that stale news does not bring it back. */
  readonly leftForgetMs: number;
  /** Between two new metas of this member: at least this, and 50 ms per member, so that all together stay below 20 a second. */
  readonly metaMs: number;
  /** Most members kept, gone ones among them. */
  readonly membersMax: number;
}

/** What is used where the caller says nothing. */
export const GOSSIP_DEFAULTS: GossipConfig = {
  periodMs: 500,
  directMs: 200,
  nackMs: 150,
  helpers: 3,
  newsMs: 200,
  newsTargets: 3,
  digestMs: 1000,
  pullMs: 20,
  reconnectMs: 2000,
  pauseMs: 400,
  deadNewsMs: 60_000,
  deadForgetMs: 24 * 3_600_000,
  leftForgetMs: 3_600_000,
  metaMs: 5000,
  membersMax: 4096,
};

/** Slices that a newcomer may ask for without a pause. */
const PULL_BURST = 4;
/** Until a slice that was asked for is asked for again, from somebody else. */
const PULL_TIMEOUT_MS = 500;
/** Seeds kept. */
const SEEDS_MAX = 64;
/** Seeds tried at once by a member that knows nobody. */
const SEEDS_AT_ONCE = 4;
/** Probes for others that are under way. Each lasts for {@linkcode RELAY_MS}. */
const RELAYS_MAX = 256;
/** How long an answer is waited for on behalf of somebody else. */
const RELAY_MS = 1000;
/** Suspects that wait to be probed out of turn. */
const URGENT_MAX = 64;
/** Members that probe a suspect out of turn, of all. */
const URGENT_PROBERS = 2 * CONFIRMATIONS_MAX;
/** A probe out of turn begins at least this long after the last one. */
const URGENT_GAP_MS = 100;
/** Suspects of its own that a member pings again in each period. */
const OWN_SUSPECTS_MAX = 8;
/** Unasked packets per round of news, each tells a member what is said about it. */
const TELLS_PER_ROUND = 8;
/** Rounds of news that go to those that accused this member. */
const ACCUSER_ROUNDS = 3;
/** How long the news of leaving is spread at the most. */
const LEAVE_MS = 2000;
/** Packets not taken by the caller. */
const OUTPUT_MAX = 1024;
/** Events not taken by the caller. */
const EVENTS_MAX = 16384;
/** Last probes by turn that tell whether this member is cut off: the majority of them fails then. A bit mask. */
const RECENT_PROBES_MASK = 0b11111;
/** Bytes that are kept free for the head and the fields of a pull answer. */
const PULL_ANSWER_HEAD_BYTES = 96;

/** A packet to be sealed and sent. */
export interface OutgoingPacket {
  /** `host:port`. */
  readonly address: string;
  /** The caller's own. */
  readonly bytes: Uint8Array<ArrayBuffer>;
}

/** Why a member is suspected or was, by one that accuses it. */
export interface AccusationView extends Accusation {
  /** When this member heard of it, in the caller's milliseconds. */
  readonly atMs: number;
}

/** A member at one moment. Its own copy; nothing in it changes later. */
export interface MemberView {
  /** 32 hex digits. */
  readonly uuid: string;
  readonly address: string;
  readonly state: MemberState;
  /** Number of this start of its agent in the map; 0: it has none yet. */
  readonly agentIncarnation: number;
  /** How often it has refuted or told news about itself since. */
  readonly incarnation: number;
  readonly meta: MemberMeta;
  /** When its state changed, in the caller's milliseconds. */
  readonly changedMs: number;
  /** Suspect or dead: who probed it in vain, when, and what helpers said. */
  readonly accusations: readonly AccusationView[];
  /** Suspect: when it will be dead if it does not answer and nobody else accuses it; else 0. */
  readonly deadlineMs: number;
  /** Dead: uuid of who confirmed it; else "". */
  readonly confirmedBy: string;
  readonly isSelf: boolean;
}

/** What happened to a member. `changed`: alive as before, with another address, meta or agent incarnation. */
export type MemberEventKind =
  | "joined"
  | "alive"
  | "changed"
  | "suspect"
  | "dead"
  | "left"
  | "forgotten";

/** A change of the table. */
export interface MemberEvent {
  readonly kind: MemberEventKind;
  readonly member: MemberView;
}

/** Numbers since the start. */
export interface GossipCounters {
  packetsSent: number;
  bytesSent: number;
  packetsReceived: number;
  bytesReceived: number;
  probes: number;
  probesFailed: number;
  /** Times that others were asked to probe. */
  indirectProbes: number;
  suspicions: number;
  /** Deaths that were confirmed here, not heard of. */
  deaths: number;
  /** Times that this member refuted what was said about it. */
  refutations: number;
  /** Times that this process did not run. */
  pauses: number;
  /** Packets dropped because the caller did not take them. */
  packetsDropped: number;
  /** Events dropped because the caller did not take them. */
  eventsDropped: number;
  /** Packets that were refused, by reason. */
  refused: Record<PacketFault | "ownUuid" | "misdirected" | "membersFull" | "busy", number>;
}

/** This member, as it begins. */
export interface GossipSelf {
  /** 32 hex digits. */
  readonly uuid: string;
  /** `host:port` where others reach it. */
  readonly address: string;
  /** Number of this start in the map; 0: not known yet. */
  readonly agentIncarnation: number;
  /** That of the last start, if it is known: spares a refutation where `agentIncarnation` is 0. */
  readonly lastAgentIncarnation?: number;
  readonly meta: MemberMeta;
}

/**
 * A member that is known without having heard of it, from the map. Taken to be alive until probes say otherwise. Made by
 * {@linkcode knownMember}; machines may share it.
 */
export interface KnownMember {
  readonly uuid: string;
  readonly run: number;
  readonly content: Content;
}

/** What the machine is made from. */
export interface GossipOptions {
  readonly self: GossipSelf;
  /** Addresses that are asked for members, as {@linkcode Gossip.join} does. */
  readonly seeds?: readonly string[];
  readonly known?: readonly KnownMember[];
  readonly random: Random;
  readonly config?: Partial<GossipConfig>;
}

interface Probe {
  readonly member: Member;
  readonly number: number;
  /** In its turn, and so of a member drawn at random. */
  readonly isByTurn: boolean;
  startMs: number;
  indirectMs: number;
  endMs: number;
  /** Helpers that have not answered. */
  readonly waiting: Set<string>;
  asked: number;
  nacks: number;
}

/** A probe on behalf of another member. */
interface Relay {
  readonly address: string;
  readonly number: number;
  readonly subject: string;
  nackMs: number;
  endMs: number;
  isNacked: boolean;
}

interface Seed {
  readonly address: string;
  /** Of the last pull that was sent to it. */
  number: number;
  /** Of the member that answered, "" for none so far. */
  uuid: string;
}

/**
 * The machine of one member. The caller opens what comes, seals and sends what goes, and gives the time of one clock
 * that never goes back.
 *
 * @example
 * ```ts
 * import { Gossip, TICK_MS } from "./gossip.ts";
 * import { EMPTY_META } from "./meta.ts";
 * import { Prng } from "../base/prng.ts";
 *
 * const member = (digit: string, seeds: string[]) =>
 *   new Gossip({
 *     self: { uuid: digit.repeat(32), address: `host-${digit}:7460`, agentIncarnation: 1, meta: EMPTY_META },
 *     seeds,
 *     random: new Prng(Number(digit)),
 *   });
 * const one = member("1", []);
 * const two = member("2", ["host-1:7460"]);
 * for (let nowMs = 0; nowMs < 3000; nowMs += TICK_MS) {
 *   one.tick(nowMs);
 *   two.tick(nowMs);
 *   for (const { bytes } of one.takePackets()) two.receive("host-1:7460", bytes, nowMs);
 *   for (const { bytes } of two.takePackets()) one.receive("host-2:7460", bytes, nowMs);
 * }
 * console.assert(one.takeEvents()[0].kind === "joined");
 * console.assert(two.members().length === 2);
 * ```
 */
export class Gossip {
  /** Live numbers; read them, never write. */
  readonly counters: GossipCounters = {
    packetsSent: 0,
    bytesSent: 0,
    packetsReceived: 0,
    bytesReceived: 0,
    probes: 0,
    probesFailed: 0,
    indirectProbes: 0,
    suspicions: 0,
    deaths: 0,
    refutations: 0,
    pauses: 0,
    packetsDropped: 0,
    eventsDropped: 0,
    refused: {
      tooLong: 0,
      version: 0,
      malformed: 0,
      ownUuid: 0,
      misdirected: 0,
      membersFull: 0,
      busy: 0,
    },
  };
  readonly #config: GossipConfig;
  readonly #random: Random;
  readonly #table: MemberTable;
  readonly #self: Member;
  readonly #selfBytes: Uint8Array;
  /** The newest claim of this member, encoded. */
  #selfEntry: Uint8Array = new Uint8Array(0);
  readonly #health = new Health();
  readonly #broadcasts = new Broadcasts();
  readonly #writer = new PackWriter(PACKET_BYTES_MAX);
  readonly #relays = new Map<number, Relay>();
  /** Uuids of suspects that are probed out of turn. */
  readonly #urgent = new Set<string>();
  readonly #seeds: Seed[] = [];
  #packets: OutgoingPacket[] = [];
  #events: MemberEvent[] = [];
  #probe: Probe | null = null;
  /** The slice that a newcomer waits for. */
  #pull: { after: string; sentMs: number } | null = null;
  #pullTokens = PULL_BURST;
  #tells = TELLS_PER_ROUND;
  /** Uuids of those that accused this member, and for how many rounds they still get the news first. */
  #accusers: string[] = [];
  #accuserRounds = 0;
  #number: number;
  #nextSeed = 0;
  #pendingMeta: MemberMeta | null = null;
  #metaMs = -Infinity;
  #leftMs = -1;
  /** Time of the last call; −1 before the first. */
  #nowMs = -1;
  #isStarted = false;
  /** Results of the last probes by turn; 1: failed. */
  #recentProbes = 0;
  #probeMs = 0;
  #againMs = 0;
  #newsMs = 0;
  #digestMs = 0;
  #reconnectMs = 0;
  #cleanMs = 0;
  #pulledMs = 0;

  /**
   * @throws {RangeError} when uuid, address, agent incarnation or meta of this member are not what they should be:
   * the caller checks its configuration first
   */
  constructor(options: GossipOptions) {
    const { self, random } = options;
    this.#config = { ...GOSSIP_DEFAULTS, ...options.config };
    this.#random = random;
    this.#number = random.u32();
    this.#table = new MemberTable(self.uuid);
    this.#selfBytes = uuidBytes(self.uuid);
    const run = runOf(self.agentIncarnation, self.lastAgentIncarnation ?? 0);
    this.#self = this.#table.add(self.uuid, { run, incarnation: 0, content: contentOf(self) }, 0);
    this.#announce(this.#self);
    for (const known of options.known ?? []) {
      const { run, content } = known;
      if (this.#table.get(known.uuid) !== undefined) continue;
      this.#table.add(known.uuid, { run, incarnation: 0, content }, 0);
    }
    this.join(options.seeds ?? []);
  }

  // ------------------------------------------------------------------------------------------ caller

  /** Uuid of this member. */
  get uuid(): string {
    return this.#self.uuid;
  }

  /** Members that are alive or suspect, with this one. */
  get size(): number {
    return this.#table.peers.length + 1;
  }

  /** Local health multiplier: 0 is healthy, 8 is the worst. */
  get health(): number {
    return this.#health.score;
  }

  /** True once nobody needs to be told any more that this member has left. */
  get hasLeft(): boolean {
    if (this.#leftMs < 0) return false;
    return !this.#broadcasts.has(this.uuid) || this.#table.peers.length === 0 ||
      this.#nowMs - this.#leftMs >= LEAVE_MS;
  }

  /** True while the list of members is being fetched. */
  get isJoining(): boolean {
    return this.#pull !== null;
  }

  /** All members, gone ones among them, in order of their uuids. */
  members(): MemberView[] {
    return this.#table.sorted.map((member) => this.#view(member));
  }

  /** One member, or null where it is not known. */
  member(uuid: string): MemberView | null {
    const member = this.#table.get(uuid);
    return member === undefined ? null : this.#view(member);
  }

  /** Packets to be sent. They are the caller's afterwards. */
  takePackets(): OutgoingPacket[] {
    const packets = this.#packets;
    if (packets.length > 0) this.#packets = [];
    return packets;
  }

  /** What happened to members, in order. They are the caller's afterwards. */
  takeEvents(): MemberEvent[] {
    const events = this.#events;
    if (events.length > 0) this.#events = [];
    return events;
  }

  /**
   * Fetches the list of members from these addresses, and keeps trying them for as long as no member is there.
   *
   * @param addresses `host:port`; what is no address is left out, as is this member's own
   */
  join(addresses: readonly string[]): void {
    for (const address of addresses) {
      const isKnown = this.#seeds.some((seed) => seed.address === address);
      if (isKnown || !isAddress(address) || address === this.#self.content.address) continue;
      if (this.#seeds.length >= SEEDS_MAX) break;
      this.#seeds.push({ address, number: -1, uuid: "" });
    }
    if (this.#seeds.length === 0 || this.#leftMs >= 0) return;
    this.#pull ??= { after: "", sentMs: -Infinity };
    this.#reconnectMs = 0;
  }

  /** Tells all others that this member goes. Call `tick` until {@linkcode Gossip.hasLeft}. */
  leave(nowMs: number): void {
    this.#advance(nowMs);
    if (this.#leftMs >= 0) return;
    this.#leftMs = this.#nowMs;
    const { run, incarnation } = this.#self;
    this.#probe = null;
    this.#pull = null;
    this.#table.place(this.#self, { run, incarnation: incarnation + 1 }, "left", this.#nowMs);
    this.#announce(this.#self);
    this.#newsMs = 0;
  }

  /**
   * Tells news about this member. Where it comes often, the newest is told after a while
   * ({@linkcode GossipConfig.metaMs}).
   *
   * @throws {RangeError} as {@linkcode encodeMeta}
   */
  update(meta: MemberMeta): void {
    encodeMeta(meta);
    this.#pendingMeta = meta;
  }

  /**
   * The map has numbered this start of the agent.
   *
   * @param agentIncarnation greater than that of every start before; what is not is left out, since others would
   * take it for one of those
   */
  renumber(agentIncarnation: number): void {
    const run = runOf(agentIncarnation, 0);
    if (run <= this.#self.run || this.#leftMs >= 0) return;
    this.#claim({ run, incarnation: 0 }, this.#self.content);
  }

  /**
   * Forgets a member that is dead or has left, because it was removed from the cluster for good.
   *
   * @returns false where it is not known, or not gone
   */
  forget(uuid: string): boolean {
    const member = this.#table.get(uuid);
    if (member === undefined || isPresent(member) || member === this.#self) return false;
    this.#broadcasts.drop(uuid);
    this.#table.remove(member);
    this.#report("forgotten", member);
    return true;
  }

  /**
   * Does what is due.
   *
   * @param nowMs to be called every {@linkcode TICK_MS}
   */
  tick(nowMs: number): void {
    this.#advance(nowMs);
    const now = this.#nowMs;
    if (!this.#isStarted) this.#schedule();
    if (this.#leftMs >= 0) {
      if (!this.hasLeft) this.#sendNews();
      return;
    }
    this.#followProbe();
    this.#followRelays();
    this.#confirmSuspects();
    if (this.#probe === null && now >= this.#probeMs) this.#startProbe();
    if (now >= this.#againMs) this.#probeOwnSuspects();
    if (this.#pendingMeta !== null) this.#tellMeta();
    if (now >= this.#newsMs) this.#sendNews();
    if (now >= this.#digestMs) this.#sendDigest(null);
    if (this.#pull !== null) this.#followPull();
    if (now >= this.#reconnectMs) this.#reconnect();
    if (now >= this.#cleanMs) this.#clean();
  }

  /**
   * Takes in one packet.
   *
   * @param fromAddress where it came from, as `host:port`; answers go there
   * @param plaintext what was opened; not kept. May be anything: what is no packet is counted and dropped
   */
  receive(fromAddress: string, plaintext: Uint8Array, nowMs: number): void {
    this.#advance(nowMs);
    const { counters } = this;
    counters.packetsReceived++;
    counters.bytesReceived += plaintext.length;
    const packet = decodePacket(plaintext);
    if (typeof packet === "string") return void counters.refused[packet]++;
    if (packet.from === this.uuid) return void counters.refused.ownUuid++;
    if (this.#leftMs >= 0) return;
    this.#hearClaim(packet.from, packet);
    const isSlice = packet.kind >= PacketKind.DigestAnswer && packet.kind !== PacketKind.Pull;
    for (const entry of packet.entries) {
      if (entry.uuid === this.uuid) this.#hearOfSelf(entry);
      else this.#hear(entry, isSlice);
    }
    this.#answer(fromAddress, packet);
  }

  #answer(address: string, packet: Packet): void {
    switch (packet.kind) {
      case PacketKind.Ping:
        return this.#receivePing(address, packet);
      case PacketKind.Ack:
        return this.#receiveAck(packet);
      case PacketKind.PingRequest:
        return this.#receivePingRequest(address, packet);
      case PacketKind.Nack:
        return this.#receiveNack(packet);
      case PacketKind.Digest:
      case PacketKind.DigestAnswer:
        return this.#receiveDigest(address, packet);
      case PacketKind.Pull:
        return this.#receivePull(address, packet);
      case PacketKind.PullAnswer:
        return this.#receivePullAnswer(address, packet);
    }
  }

  // -------------------------------------------------------------------------------------------- time

  /** Takes note of the time. Where this process did not run, everybody else gets that time, too. */
  #advance(nowMs: number): void {
    const gapMs = nowMs - this.#nowMs;
    const isPaused = this.#nowMs >= 0 && gapMs > this.#config.pauseMs;
    this.#nowMs = Math.max(this.#nowMs, nowMs);
    if (!isPaused) return;
    const lostMs = gapMs - TICK_MS;
    this.counters.pauses++;
    this.#health.change(1);
    // A probe that was under way says nothing: its answer may have been dropped while nobody read it.
    this.#probe = null;
    this.#probeMs = this.#nowMs;
    for (const member of this.#table.suspects) member.suspectedMs += lostMs;
    for (const relay of this.#relays.values()) {
      relay.nackMs += lostMs;
      relay.endMs += lostMs;
    }
  }

  /** Members that start together do not all send in the same millisecond. */
  #schedule(): void {
    this.#isStarted = true;
    const { periodMs, newsMs, digestMs, reconnectMs } = this.#config;
    const later = (durationMs: number) => this.#nowMs + below(this.#random, durationMs);
    this.#probeMs = later(periodMs);
    this.#againMs = later(periodMs);
    this.#newsMs = later(newsMs);
    this.#digestMs = later(digestMs);
    this.#cleanMs = later(1000);
    this.#reconnectMs = this.#pull === null ? later(reconnectMs) : this.#nowMs;
    this.#pulledMs = this.#nowMs;
  }

  /** Forgets who is gone for long, and looks again at deaths that were decided while this member was cut off. */
  #clean(): void {
    this.#cleanMs = this.#nowMs + 1000;
    const { deadForgetMs, leftForgetMs } = this.#config;
    const isCutOff = this.#isCutOff();
    for (const member of this.#table.gone) {
      const keptMs = member.state === "dead" ? deadForgetMs : leftForgetMs;
      if (this.#nowMs - member.changedMs >= keptMs) this.forget(member.uuid);
      else if (member.isDoubtful && !isCutOff) {
        this.#suspect(member, member, [{ by: this.uuid, asked: 0, nacks: 0 }]);
      }
    }
  }

  /**
   * Half of the members or more do not answer: then it is this one that cannot be reached. The last probes tell it
   * before half of many members have been probed.
   */
  #isCutOff(): boolean {
    let failedCount = 0;
    for (let bits = this.#recentProbes; bits > 0; bits >>>= 1) failedCount += bits & 1;
    if (failedCount >= 3) return true;
    const { suspects, gone, peers } = this.#table;
    const aliveCount = 1 + peers.length - suspects.size;
    let lostCount = suspects.size;
    for (const member of gone) {
      if (member.state !== "dead") continue;
      const isRecent = this.#nowMs - member.changedMs < this.#config.deadNewsMs;
      if (isRecent || member.isDoubtful) lostCount++;
    }
    return lostCount >= aliveCount;
  }

  // ------------------------------------------------------------------------------------------ probes

  #startProbe(): void {
    const now = this.#nowMs;
    this.#probeMs = now + this.#health.scale(this.#config.periodMs);
    const urgent = this.#takeUrgent();
    const member = urgent ?? this.#table.nextProbe(this.#random);
    if (member === null) return;
    this.counters.probes++;
    this.#probe = {
      member,
      number: this.#nextNumber(),
      isByTurn: urgent === null,
      startMs: now,
      indirectMs: now + this.#health.scale(this.#config.directMs),
      endMs: this.#probeMs,
      waiting: new Set(),
      asked: 0,
      nacks: 0,
    };
    this.#sendPing(member.content.address, member, this.#probe.number);
  }

  #takeUrgent(): Member | null {
    for (const uuid of this.#urgent) {
      this.#urgent.delete(uuid);
      const member = this.#table.get(uuid);
      if (member !== undefined && isPresent(member)) return member;
    }
    return null;
  }

  /** Probes a member out of turn. */
  #hurry(member: Member): void {
    if (this.#urgent.size >= URGENT_MAX) return;
    this.#urgent.add(member.uuid);
    if (this.#probe !== null) return;
    const lastMs = this.#probeMs - this.#health.scale(this.#config.periodMs);
    this.#probeMs = Math.min(this.#probeMs, Math.max(this.#nowMs, lastMs + URGENT_GAP_MS));
  }

  #followProbe(): void {
    const probe = this.#probe;
    if (probe === null) return;
    if (!isPresent(probe.member)) this.#probe = null;
    else if (this.#nowMs >= probe.endMs) this.#failProbe(probe);
    else if (this.#nowMs >= probe.indirectMs) this.#probeIndirectly(probe);
  }

  #probeIndirectly(probe: Probe): void {
    probe.indirectMs = Infinity;
    const { member } = probe;
    const helpers = this.#table.draw(
      this.#random,
      this.#config.helpers,
      (each) => each !== member && each.state === "alive",
    );
    if (helpers.length > 0) this.counters.indirectProbes++;
    for (const helper of helpers) {
      probe.waiting.add(helper.uuid);
      probe.asked++;
      const writer = this.#open(PacketKind.PingRequest, 3);
      writer.uint(probe.number);
      writer.binary(uuidBytes(member.uuid));
      writer.text(member.content.address);
      this.#close(helper.content.address, this.#about(helper), { isNews: true });
    }
  }

  #failProbe(probe: Probe): void {
    this.#probe = null;
    if (probe.isByTurn) this.#recentProbes = (this.#recentProbes << 1 | 1) & RECENT_PROBES_MASK;
    this.counters.probesFailed++;
    // Helpers that say nothing may mean that this member hears nothing.
    if (probe.nacks < probe.asked || probe.asked === 0) this.#health.change(1);
    const { member, asked, nacks } = probe;
    this.#suspect(member, member, [{ by: this.uuid, asked, nacks }]);
    this.#sendPing(member.content.address, member, this.#nextNumber());
  }

  /** Pings again whom this member accuses: the ping tells of it, the ack refutes it. */
  #probeOwnSuspects(): void {
    this.#againMs = this.#nowMs + this.#config.periodMs;
    let count = 0;
    for (const member of this.#table.suspects) {
      if (!member.accusations.some(({ by }) => by === this.uuid)) continue;
      if (count++ >= OWN_SUSPECTS_MAX) break;
      this.#sendPing(member.content.address, member, this.#nextNumber());
    }
  }

  #receivePing(address: string, packet: Packet): void {
    const isForThis = packet.subject === this.uuid || packet.subject === "";
    if (!isForThis) return void this.counters.refused.misdirected++;
    this.#sendAck(address, packet.number, {
      uuid: this.uuid,
      run: this.#self.run,
      incarnation: this.#self.incarnation,
    }, this.#about(this.#table.get(packet.from), packet));
  }

  #receiveAck(packet: Packet): void {
    const subject = {
      uuid: packet.subject,
      run: packet.subjectRun,
      incarnation: packet.subjectIncarnation,
    };
    this.#hearClaim(subject.uuid, subject);
    const probe = this.#probe;
    if (probe?.number === packet.number && probe.member.uuid === packet.subject) {
      this.#probe = null;
      if (probe.isByTurn) this.#recentProbes = (this.#recentProbes << 1) & RECENT_PROBES_MASK;
      this.#health.change(-1);
      this.#probeMs = probe.startMs + this.#health.scale(this.#config.periodMs);
      return;
    }
    const relay = this.#relays.get(packet.number);
    if (relay === undefined || relay.subject !== packet.subject) return;
    this.#relays.delete(packet.number);
    this.#sendAck(relay.address, relay.number, subject, null);
  }

  #receivePingRequest(address: string, packet: Packet): void {
    if (packet.subject === this.uuid) return this.#receivePing(address, packet);
    if (this.#relays.size >= RELAYS_MAX) return void this.counters.refused.busy++;
    const number = this.#nextNumber();
    this.#relays.set(number, {
      address,
      number: packet.number,
      subject: packet.subject,
      nackMs: this.#nowMs + this.#config.nackMs,
      endMs: this.#nowMs + RELAY_MS,
      isNacked: false,
    });
    const member = this.#table.get(packet.subject);
    const writer = this.#open(PacketKind.Ping, 2);
    writer.uint(number);
    writer.binary(uuidBytes(packet.subject));
    const target = member?.content.address ?? packet.address;
    this.#close(target, this.#about(member), { isOwn: true, isNews: true });
  }

  #followRelays(): void {
    for (const [number, relay] of this.#relays) {
      if (this.#nowMs >= relay.endMs) this.#relays.delete(number);
      else if (!relay.isNacked && this.#nowMs >= relay.nackMs) {
        relay.isNacked = true;
        this.#open(PacketKind.Nack, 1).uint(relay.number);
        this.#close(relay.address, null, { isNews: true });
      }
    }
  }

  #receiveNack(packet: Packet): void {
    const probe = this.#probe;
    if (probe?.number !== packet.number || !probe.waiting.delete(packet.from)) return;
    probe.nacks++;
  }

  // ---------------------------------------------------------------------------------------- hearing

  /** A packet of the member itself, or an ack that was passed on: it lives in this incarnation. */
  #hearClaim(uuid: string, claim: { run: number; incarnation: number }): void {
    const member = this.#table.get(uuid);
    if (member === undefined || member === this.#self) return;
    if (compareClaims(claim, member) > 0) {
      this.#revive(member, claim);
      this.#announce(member);
    }
  }

  /** @param isSlice read from a table, not told as news */
  #hear(entry: Entry, isSlice: boolean): void {
    const member = this.#table.get(entry.uuid);
    if (member === undefined) return this.#hearOfUnknown(entry, isSlice);
    const order = compareClaims(entry, member);
    switch (entry.state) {
      case "alive":
        return this.#hearAlive(member, entry, isSlice);
      case "suspect":
        if (order < 0 || (order === 0 && !isPresent(member))) return;
        return this.#suspect(member, entry, entry.accusations);
      case "dead":
        if (order < 0) return;
        if (order === 0 && !isPresent(member)) return this.#hearConfirmed(member, entry);
        if (isSlice && isPresent(member)) return this.#doubt(member, entry);
        return this.#bury(member, entry, entry.by, false);
      case "left":
        if (order < 0 || (order === 0 && member.state === "left")) return;
        this.#table.place(member, entry, "left", this.#nowMs);
        this.#announce(member);
        this.#report("left", member);
    }
  }

  #hearOfUnknown(entry: Entry, isSlice: boolean): void {
    if (entry.state !== "alive" || entry.content === null) return;
    if (this.#table.sorted.length >= this.#config.membersMax) {
      const longest = this.#table.gone.values().next();
      if (longest.done || !this.forget(longest.value.uuid)) {
        return void this.counters.refused.membersFull++;
      }
    }
    const { run, incarnation, content } = entry;
    const member = this.#table.add(entry.uuid, { run, incarnation, content }, this.#nowMs);
    // Whoever reads it from a table is a newcomer, or the others have heard of it by themselves.
    if (!isSlice) this.#announce(member);
    this.#report("joined", member);
  }

  #hearAlive(member: Member, entry: Entry, isSlice: boolean): void {
    const { run, incarnation, content } = entry;
    const order = compareClaims(entry, member);
    const told = { run: member.contentRun, incarnation: member.contentIncarnation };
    const isFuller = content !== null && compareClaims(entry, told) > 0;
    if (isFuller) this.#table.describe(member, { run, incarnation, content });
    if (order > 0) this.#revive(member, entry, isFuller);
    else if (isFuller && isPresent(member)) this.#report("changed", member);
    if (order > 0 || (isFuller && order === 0)) {
      if (!isSlice) this.#announce(member);
      else if (order > 0) this.#broadcasts.drop(member.uuid);
    } else if (member.state === "dead") this.#tell(member, this.#entryOf(member));
  }

  /** A newer claim of a member: whatever was said about it before is over. */
  #revive(
    member: Member,
    claim: { run: number; incarnation: number },
    isChanged: boolean = false,
  ): void {
    const { state, run } = member;
    this.#table.place(member, claim, "alive", this.#nowMs);
    member.accusations = [];
    member.confirmedBy = "";
    member.isDoubtful = false;
    if (state !== "alive") this.#report("alive", member);
    else if (isChanged || run !== claim.run) this.#report("changed", member);
    if (state === "dead") this.#sendDigest(member);
  }

  #suspect(
    member: Member,
    claim: { run: number; incarnation: number },
    accusations: readonly Accusation[],
  ): void {
    const isNew = member.state !== "suspect" || compareClaims(claim, member) > 0;
    if (isNew) {
      const wasSuspect = member.state === "suspect";
      this.#table.place(member, claim, "suspect", this.#nowMs);
      member.accusations = [];
      member.suspectedMs = this.#nowMs;
      member.isDoubtful = false;
      member.confirmedBy = "";
      this.counters.suspicions++;
      const isOwn = accusations.some(({ by }) => by === this.uuid);
      if (!isOwn && below(this.#random, this.size) < URGENT_PROBERS) this.#hurry(member);
      this.#accuse(member, accusations);
      if (!wasSuspect) this.#report("suspect", member);
      this.#announce(member);
    } else if (this.#accuse(member, accusations)) this.#announce(member);
  }

  /** Adds accusations of members that have not accused it. */
  #accuse(member: Member, accusations: readonly Accusation[]): boolean {
    const countBefore = member.accusations.length;
    for (const { by, asked, nacks } of accusations) {
      const isFull = member.accusations.length >= ACCUSATIONS_MAX;
      if (isFull || by === member.uuid || member.accusations.some((each) => each.by === by)) {
        continue;
      }
      member.accusations = [...member.accusations, { by, asked, nacks, atMs: this.#nowMs }];
    }
    return member.accusations.length > countBefore;
  }

  #confirmSuspects(): void {
    for (const member of this.#table.suspects) {
      if (this.#nowMs < this.#deadlineMs(member)) continue;
      this.counters.deaths++;
      this.#bury(member, member, this.uuid, this.#isCutOff());
    }
  }

  #deadlineMs(member: Member): number {
    return member.suspectedMs + suspicionTimeoutMs(this.size, member.accusations.length - 1);
  }

  #bury(
    member: Member,
    claim: { run: number; incarnation: number },
    by: string,
    isDoubtful: boolean,
  ): void {
    const wasDead = member.state === "dead";
    this.#table.place(member, claim, "dead", this.#nowMs);
    member.confirmedBy = by;
    member.isDoubtful = isDoubtful;
    this.#announce(member);
    if (!wasDead) this.#report("dead", member);
  }

  /** What was decided here while cut off, others have decided, too. */
  #hearConfirmed(member: Member, entry: Entry): void {
    if (!member.isDoubtful) return;
    member.isDoubtful = false;
    member.confirmedBy = entry.by;
    this.#announce(member);
  }

  /** Somebody's table says that a member is dead which is not so here: ask it. */
  #doubt(member: Member, entry: Entry): void {
    this.#tell(member, entry);
    this.#hurry(member);
  }

  /** Tells a member what is said about it, within the budget. */
  #tell(member: Member, entry: Entry): void {
    if (this.#tells <= 0) return;
    this.#tells--;
    this.#open(PacketKind.News, 0);
    this.#close(member.content.address, entry, { isOwn: true });
  }

  #hearOfSelf(entry: Entry): void {
    const order = compareClaims(entry, this.#self);
    if (order < 0 || (order === 0 && entry.state === "alive")) return;
    if (entry.incarnation >= INCARNATION_MAX) return; // nobody would take what is greater
    this.counters.refutations++;
    if (entry.state === "suspect" || entry.state === "dead") this.#health.change(1);
    // A greater run is that of an earlier start, which this one had not heard of.
    const run = entry.run > this.#self.run ? entry.run | 1 : this.#self.run;
    const incarnation = run === entry.run ? entry.incarnation + 1 : 0;
    this.#claim({ run, incarnation }, this.#self.content);
    this.#accusers = entry.accusations.map(({ by }) => by);
    if (entry.state === "dead") this.#accusers = [entry.by];
    this.#accuserRounds = ACCUSER_ROUNDS;
    this.#newsMs = Math.min(this.#newsMs, this.#nowMs);
  }

  /** A new claim about this member itself. */
  #claim(claim: { run: number; incarnation: number }, content: Content): void {
    this.#table.place(this.#self, claim, "alive", this.#nowMs);
    this.#table.describe(this.#self, { ...claim, content });
    this.#announce(this.#self);
  }

  // ------------------------------------------------------------------------------------ anti-entropy

  /** @param member that just came back, or null for one drawn at random */
  #sendDigest(member: Member | null): void {
    const { digestMs } = this.#config;
    // Members that come back many together do not cost more than the news about them.
    if (member !== null && this.#tells-- <= 0) return;
    if (member === null) this.#digestMs = this.#nowMs + digestMs;
    const target = member ?? this.#table.draw(this.#random, 1, () => true)[0];
    if (target === undefined) return;
    this.#open(PacketKind.Digest, 1).binary(this.#digestBytes());
    this.#close(target.content.address, this.#about(target), { isOwn: true, isNews: true });
  }

  #digestBytes(): Uint8Array {
    const bytes = new Uint8Array(4 * DIGEST_PARTS);
    const view = new DataView(bytes.buffer);
    this.#table.digest.forEach((part, index) => view.setUint32(4 * index, part));
    return bytes;
  }

  /** Answers a digest with a slice of where it differs, and the answer with another slice. */
  #receiveDigest(address: string, packet: Packet): void {
    const view = new DataView(packet.digest.buffer);
    const parts: number[] = [];
    this.#table.digest.forEach((part, index) => {
      if (part !== view.getUint32(4 * index)) parts.push(index);
    });
    if (parts.length === 0) return;
    const isAnswer = packet.kind === PacketKind.DigestAnswer;
    const writer = isAnswer
      ? this.#open(PacketKind.Slice, 0)
      : this.#open(PacketKind.DigestAnswer, 1);
    if (!isAnswer) writer.binary(this.#digestBytes());
    const about = this.#about(this.#table.get(packet.from), packet);
    this.#close(address, about, { members: this.#membersOf(parts) });
  }

  /** Members of these parts of the digest, beginning anywhere, so that each comes first now and then. */
  #membersOf(parts: readonly number[]): Member[] {
    const members: Member[] = [];
    for (const part of parts) {
      const end = this.#table.indexOfPart(part + 1);
      for (let at = this.#table.indexOfPart(part); at < end; at++) {
        if (this.#isTold(this.#table.sorted[at])) members.push(this.#table.sorted[at]);
      }
    }
    if (members.length === 0) return members;
    const start = below(this.#random, members.length);
    return [...members.slice(start), ...members.slice(0, start)];
  }

  /** Members that slices tell of: the dead for a while only. */
  #isTold(member: Member): boolean {
    return isPresent(member) || this.#nowMs - member.changedMs < this.#config.deadNewsMs;
  }

  #receivePull(address: string, packet: Packet): void {
    const entries: Uint8Array[] = [];
    let room = PACKET_BYTES_MAX - PULL_ANSWER_HEAD_BYTES;
    let next = "";
    let last = packet.after;
    if (packet.after === "") {
      entries.push(this.#selfEntry);
      room -= this.#selfEntry.length;
    }
    const { sorted } = this.#table;
    for (let at = this.#table.indexBehind(packet.after); at < sorted.length; at++) {
      const member = sorted[at];
      const isFirst = packet.after === "" && member === this.#self;
      if (!this.#isTold(member) || isFirst) continue;
      const entry = encodeEntry(this.#entryOf(member));
      if (entry.length > room) {
        next = last;
        break;
      }
      room -= entry.length;
      last = member.uuid;
      entries.push(entry);
    }
    const about = this.#about(this.#table.get(packet.from), packet);
    const writer = this.#open(PacketKind.PullAnswer, 3);
    writer.uint(packet.number);
    writer.binary(uuidBytes(packet.after));
    writer.binary(uuidBytes(next));
    this.#close(address, null, { entries });
    if (about !== null && this.#tells-- > 0) {
      this.#open(PacketKind.News, 0);
      this.#close(address, about, {});
    }
  }

  #receivePullAnswer(address: string, packet: Packet): void {
    const seed = this.#seeds.find(({ number }) => number === packet.number);
    if (seed !== undefined) seed.uuid = packet.from;
    const pull = this.#pull;
    if (pull === null || packet.after !== pull.after) return;
    // An end, or a peer that would lead in circles.
    if (packet.next <= packet.after) return void (this.#pull = null);
    this.#pull = { after: packet.next, sentMs: -Infinity };
    this.#refillPull();
    if (this.#pullTokens >= 1) this.#sendPull(address);
  }

  #followPull(): void {
    this.#refillPull();
    const pull = this.#pull!;
    if (this.#pullTokens < 1 || this.#nowMs - pull.sentMs < PULL_TIMEOUT_MS) return;
    const [member] = this.#table.draw(this.#random, 1, ({ state }) => state === "alive");
    if (member !== undefined) this.#sendPull(member.content.address);
  }

  #refillPull(): void {
    const earned = (this.#nowMs - this.#pulledMs) / this.#config.pullMs;
    this.#pulledMs = this.#nowMs;
    this.#pullTokens = Math.min(PULL_BURST, this.#pullTokens + earned);
  }

  #sendPull(address: string): void {
    this.#pullTokens--;
    this.#pull!.sentMs = this.#nowMs;
    this.#writePull(address, this.#nextNumber(), this.#pull!.after);
  }

  #writePull(address: string, number: number, after: string): void {
    const writer = this.#open(PacketKind.Pull, 2);
    writer.uint(number);
    writer.binary(uuidBytes(after));
    this.#close(address, null, { isOwn: true });
  }

  /** Looks for the other half of a partition, and for a cluster to join. */
  #reconnect(): void {
    const { reconnectMs } = this.#config;
    const { peers, gone } = this.#table;
    const isAlone = peers.length === 0;
    this.#reconnectMs = this.#nowMs + (isAlone ? reconnectMs / 2 : reconnectMs);
    const dead = [...gone].filter(({ state }) => state === "dead");
    if (dead.length > 0) {
      const member = dead[below(this.#random, dead.length)];
      const isTaken = peers.some(({ content }) => content.address === member.content.address);
      if (!isTaken) this.#sendPing(member.content.address, member, this.#nextNumber());
    }
    let left = isAlone || this.#pull !== null ? SEEDS_AT_ONCE : 1;
    for (let tries = this.#seeds.length; tries > 0 && left > 0; tries--) {
      const seed = this.#seeds[this.#nextSeed++ % this.#seeds.length];
      if (this.#isMet(seed)) continue;
      left--;
      seed.number = this.#nextNumber();
      this.#writePull(seed.address, seed.number, this.#pull?.after ?? "");
    }
  }

  #isMet(seed: Seed): boolean {
    const member = this.#table.get(seed.uuid);
    if (member !== undefined && isPresent(member)) return true;
    if (seed.address === this.#self.content.address) return true;
    return this.#table.peers.some(({ content }) => content.address === seed.address);
  }

  // --------------------------------------------------------------------------------------------- news

  #tellMeta(): void {
    const intervalMs = Math.max(this.#config.metaMs, 50 * this.size);
    if (this.#nowMs - this.#metaMs < intervalMs) return;
    const metaBytes = encodeMeta(this.#pendingMeta!);
    this.#pendingMeta = null;
    const { address, metaBytes: before } = this.#self.content;
    if (isEqual(metaBytes, before)) return;
    this.#metaMs = this.#nowMs;
    const { run, incarnation } = this.#self;
    const content = { address, meta: decodeMeta(metaBytes)!, metaBytes };
    this.#claim({ run, incarnation: incarnation + 1 }, content);
  }

  #announce(member: Member): void {
    const entry = encodeEntry(this.#entryOf(member));
    if (member === this.#self) this.#selfEntry = entry;
    this.#broadcasts.put(member.uuid, entry);
  }

  #sendNews(): void {
    this.#newsMs = this.#nowMs + this.#config.newsMs;
    this.#tells = TELLS_PER_ROUND;
    const targets = this.#accuserRounds-- > 0 ? this.#knownAccusers() : [];
    if (this.#broadcasts.length === 0 && targets.length === 0) return;
    const accuserCount = targets.length;
    targets.push(
      ...this.#table.draw(
        this.#random,
        this.#config.newsTargets,
        (member) => !targets.includes(member),
      ),
    );
    targets.forEach((member, index) => {
      this.#open(PacketKind.News, 0);
      this.#close(member.content.address, this.#about(member), {
        isOwn: index < accuserCount,
        isNews: true,
        isNeeded: false,
      });
    });
  }

  #knownAccusers(): Member[] {
    return this.#accusers
      .map((uuid) => this.#table.get(uuid))
      .filter((member) => member !== undefined && isPresent(member)) as Member[];
  }

  #entryOf(member: Member): Entry {
    const { uuid, run, incarnation } = member;
    const isFull = member.contentRun === run && member.contentIncarnation === incarnation;
    const isDoubtful = member.state === "dead" && member.isDoubtful;
    return {
      state: isDoubtful ? "suspect" : member.state,
      uuid,
      run,
      incarnation,
      content: isFull ? member.content : null,
      accusations: member.accusations,
      by: member.confirmedBy,
    };
  }

  /**
   * What a member has to be told about itself, or null: that it is suspected, or that there are newer claims than its
   * own, from before its restart.
   *
   * @param claim of the packet that is answered
   */
  #about(
    member: Member | undefined,
    claim: { run: number; incarnation: number } | null = null,
  ): Entry | null {
    if (member === undefined) return null;
    const isBehind = claim !== null && compareClaims(claim, member) < 0;
    return member.state !== "alive" || isBehind ? this.#entryOf(member) : null;
  }

  // ------------------------------------------------------------------------------------------ packets

  #sendPing(address: string, member: Member, number: number): void {
    const writer = this.#open(PacketKind.Ping, 2);
    writer.uint(number);
    writer.binary(uuidBytes(member.uuid));
    this.#close(address, this.#about(member), { isOwn: true, isNews: true });
  }

  #sendAck(
    address: string,
    number: number,
    subject: { uuid: string; run: number; incarnation: number },
    about: Entry | null,
  ): void {
    const writer = this.#open(PacketKind.Ack, 4);
    writer.uint(number);
    writer.binary(uuidBytes(subject.uuid));
    writer.uint(subject.run);
    writer.uint(subject.incarnation);
    this.#close(address, about, { isNews: true });
  }

  /** Begins a packet; its fields are written next, then it is closed. */
  #open(kind: PacketKind, fieldCount: number): PackWriter {
    const writer = this.#writer;
    writer.array(5);
    writer.uint(PACKET_VERSION);
    writer.uint(kind);
    writer.array(3);
    writer.binary(this.#selfBytes);
    writer.uint(this.#self.run);
    writer.uint(this.#self.incarnation);
    writer.array(fieldCount);
    return writer;
  }

  /**
   * Appends entries and puts the packet out.
   *
   * @param about what the receiver has to be told about itself
   * @param options.isOwn with the claim of this member
   * @param options.isNews with as many news as fit
   * @param options.members with as many of these as fit
   * @param options.entries with all of these, which fit
   * @param options.isNeeded false: not sent where no entry is in it
   */
  #close(
    address: string,
    about: Entry | null,
    options: {
      isOwn?: boolean;
      isNews?: boolean;
      members?: readonly Member[];
      entries?: readonly Uint8Array[];
      isNeeded?: boolean;
    },
  ): void {
    const writer = this.#writer;
    const countAt = writer.openArray();
    let count = 0;
    const append = (entry: Uint8Array): boolean => {
      if (entry.length > writer.room) return false;
      writer.raw(entry);
      count++;
      return true;
    };
    if (about !== null) append(encodeEntry(about));
    if (options.isOwn) append(this.#selfEntry);
    for (const entry of options.entries ?? []) append(entry);
    for (const member of options.members ?? []) {
      if (!append(encodeEntry(this.#entryOf(member)))) break;
    }
    if (options.isNews) {
      const limit = transmissionsMax(this.size);
      const isTold = (uuid: string) =>
        uuid === about?.uuid || (options.isOwn === true && uuid === this.uuid);
      count += this.#broadcasts.write(writer, limit, isTold);
    }
    writer.setCount(countAt, count);
    const bytes = writer.take();
    if (count === 0 && options.isNeeded === false) return;
    if (this.#packets.length >= OUTPUT_MAX) {
      this.counters.packetsDropped++;
      return;
    }
    this.counters.packetsSent++;
    this.counters.bytesSent += bytes.length;
    this.#packets.push({ address, bytes });
  }

  /** Begins anywhere, so that answers to another start of this member are none. */
  #nextNumber(): number {
    this.#number = (this.#number + 1) >>> 0;
    return this.#number;
  }

  // ------------------------------------------------------------------------------------------- events

  #report(kind: MemberEventKind, member: Member): void {
    if (this.#events.length >= EVENTS_MAX) {
      this.counters.eventsDropped++;
      return;
    }
    this.#events.push({ kind, member: this.#view(member) });
  }

  #view(member: Member): MemberView {
    const { uuid, run, incarnation, state, content, changedMs } = member;
    return {
      uuid,
      address: content.address,
      state,
      agentIncarnation: run % 2 === 0 ? run / 2 : 0,
      incarnation,
      meta: content.meta,
      changedMs,
      accusations: member.accusations,
      deadlineMs: state === "suspect" ? this.#deadlineMs(member) : 0,
      confirmedBy: member.confirmedBy,
      isSelf: member === this.#self,
    };
  }
}

/**
 * A member that is known from elsewhere.
 *
 * @param member.agentIncarnation as the map has it; 0: unknown
 * @throws {RangeError} where a field is not what it should be
 */
export function knownMember(
  member: { uuid: string; address: string; agentIncarnation: number; meta: MemberMeta },
): KnownMember {
  return {
    uuid: member.uuid,
    run: runOf(member.agentIncarnation, 0),
    content: contentOf(member),
  };
}

/** The run that a claim carries, see `packet.ts`. */
function runOf(agentIncarnation: number, lastAgentIncarnation: number): number {
  for (const each of [agentIncarnation, lastAgentIncarnation]) {
    if (!Number.isInteger(each) || each < 0 || each > AGENT_INCARNATION_MAX) {
      throw new RangeError(`gossip: agent incarnation ${each} is not from 0 to 2^32 - 1`);
    }
  }
  return agentIncarnation > 0 ? 2 * agentIncarnation : 2 * lastAgentIncarnation + 1;
}

function contentOf(member: { uuid: string; address: string; meta: MemberMeta }): Content {
  if (!isUuid(member.uuid)) throw new RangeError(`gossip: '${member.uuid}' is no uuid`);
  if (!isAddress(member.address)) {
    throw new RangeError(`gossip: '${member.address}' is no host:port`);
  }
  return { address: member.address, meta: member.meta, metaBytes: encodeMeta(member.meta) };
}
