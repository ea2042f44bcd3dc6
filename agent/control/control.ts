/**
 * A node's control: gossip, consensus and the cluster map, as one machine.
 *
 *     datagrams ─▶ gossip ─▶ who is alive ─┐
 *     messages ──▶ raft ──▶ log ─▶ apply ─▶ map ─▶ host (data worker, admin API)
 *     commands ──▶ proposals ─▶ leader ─▶ raft       │
 *                                   duties (leader.ts) ◀┘
 *
 * Invariants:
 * - The map changes by applying committed entries, in their order, and in no other way.
 * - A proposal is carried out exactly once or fails: it is numbered, sent again to whoever leads until this node has
 *   applied an entry with its number, and its result is what this node's own map says then. Taken back, it is sent no more; whether
 *   it can still be in somebody's log is known, because only a leader, or who takes itself for one, has ever been sent it.
 * - Nothing is served before `node-up` of this very start is in the map: everything that was decided before, about leases and
 *   about places, is known then.
 * - The right to serve is renewed only by a leader that a majority has confirmed after it was asked; it counts from the moment of
 *   asking (`SERVE_MS`). A lease is given away only when the holder released it, has started again, or is down in the map and
 *   cannot have been told for longer (`GRANT_MS`) that it may serve, by the clock of whoever leads: not by this leader, which
 *   knows whom it has told, and not by one before, since a majority that elects does not confirm any other any more. One that has
 *   ended otherwise (by force, with its disk) stays free for as long; where this process has not seen how it ended, this long
 *   from when it began to lead. A forced release by the holder itself is a return: it has stopped before (`leases.ts`).
 * - Handing a lease over costs one round of consensus: the leader remembers who waits for a disk, and appends the next holder's
 *   `take-lease` right behind the `release-lease` of the one before. That its holder has asked for the release is what makes
 *   this sound, not that the map shows it: it serves nothing under that generation any more, and never will again. The order
 *   of the log does the rest: nobody applies the taking without having applied the release, and if that is refused because
 *   the lease had ended before, the taking is checked like any other.
 *
 * - A level is durable here before anything of it is written here or sent from here (`level_record.ts`). What this version cannot
 *   read ends it: it would have another map than the others.
 *
 * Time comes in with `tick`; nothing here knows a clock, a socket or a file.
 *
 * @module
 */
import { ENTRY_BYTES_MAX } from "../consensus/limits.ts";
import { type Entry, ENTRY_DATA } from "../consensus/log.ts";
import { decodeMessage, encodeMessage, type Message } from "../consensus/messages.ts";
import { Raft } from "../consensus/raft.ts";
import type { Persist, RaftState, RaftStatus } from "../consensus/ready.ts";
import type { RaftStorage, StorageWrite } from "../consensus/storage.ts";
import { Gossip, type GossipConfig, type MemberView } from "../gossip/gossip.ts";
import type { MemberMeta } from "../gossip/meta.ts";
import { type ControlError, type Result } from "../map/errors.ts";
import {
  type Applied,
  type ClusterMap,
  commandError,
  commandLevel,
  type DiskEntry,
  EMPTY_MAP,
  findNode,
  findNodeByUuid,
  type GroupBits,
  growthOf,
  isOn,
  levelErrorIn,
  MAP_BYTES_FULL,
  MAP_BYTES_MAX,
  type MapCommand,
  type MapEffect,
  mapFullError,
  type NodeEntry,
  type NodeFacts,
  type Proposal,
  type ReleaseLease,
} from "../map/map.ts";
import { decodeMap, encodeMap } from "../map/map_codec.ts";
import { decodeProposal, encodeProposal } from "../map/proposal_codec.ts";
import { applyProposal } from "../map/proposals.ts";
import type { ControlPeer } from "../platform/network.ts";
import type { Log, Random } from "../platform/platform.ts";
import { HAND_OVER_MS, LeaderDuties } from "./leader.ts";
import { encodeLevel, LEVEL_KEY } from "./level_record.ts";
import {
  ControlKind,
  type ControlMessage,
  decodeControl,
  EMPTY_REPORT,
  encodeControl,
  type NodeReport,
  PROPOSALS_PER_MESSAGE_MAX,
} from "./messages.ts";

/** How long a node may serve after it asked whether it may, in milliseconds. */
export const SERVE_MS = 4000;
/**
 * How long a holder that is down must have been told nothing before its leases are given away, or must have been down:
 * longer, whatever the clocks do.
 */
export const GRANT_MS = 6000;
/** How often a node asks. */
const RENEW_MS = 1000;
/** Asked again at this interval while there is no answer. */
const RENEW_RETRY_MS = 300;
/** Proposals and requests for leases are sent again after this time. */
const RETRY_MS = 400;
/** A request for a lease that was not repeated for this long is forgotten: whoever asked has it, or wants it no more. */
const WISH_VALID_MS = 1000;
/** How often a node without a leader asks the voters who leads, which makes them look for it, too. */
const LOOK_MS = 500;
/** Requests to be taken in are sent again after this time. */
const JOIN_RETRY_MS = 1000;
/** Proposals that wait for their result. */
const PROPOSALS_MAX = 1024;
/** Of those, under way at a time. */
const WINDOW = PROPOSALS_PER_MESSAGE_MAX;
/** Bytes of proposals in one message. */
const WINDOW_BYTES = 256 * 1024;
/** A leader whose log has not become durable for this long lets somebody else lead. */
const PERSIST_MS_MAX = 3000;
/** Addresses of nodes that are remembered beside the map. */
const ADDRESSES_MAX = 1024;
/** How often a leader looks after the cluster. */
const DUTIES_MS = 100;
/** Reports older than this say nothing any more. */
const REPORT_VALID_MS = 5000;
/** Waiting for reports of others. */
const ASK_MS = 2000;
/** Reasons that are remembered as logged; each node has a handful at the most. */
const WARNINGS_MAX = 1024;
/** Nodes that are remembered as gone: more than are removed while a message is on its way. */
const GONE_MAX = 1024;

/** What a node that was removed is told, and says. */
const REMOVED =
  "this node was removed from the cluster: what it has stored is not part of it any more. To take " +
  "the host in again, start the agent with an empty data directory";

/** What control needs of the world around it. */
export interface ControlHost {
  readonly log: Log;
  readonly random: Random;
  /** Milliseconds since 1970, for what people read. */
  wallMs(): number;
  /** Sends a control message to `host:port`; it may be lost. */
  sendControl(address: string, bytes: Uint8Array): void;
  /** Sends a gossip packet to `host:port`; it may be lost. */
  sendGossip(address: string, bytes: Uint8Array): void;
  /** Makes these writes durable, in order; `done` in the order of the calls, never from inside this one. */
  persist(writes: readonly StorageWrite[], done: () => void): void;
  /**
   * The map has changed.
   *
   * @param effects what follows; empty after a jump, when maps in between were not seen: then all is to be compared
   * @param isJump see there
   * @param proposal that made the change; null after a jump
   */
  mapChanged(
    map: ClusterMap,
    effects: readonly MapEffect[],
    isJump: boolean,
    proposal: Proposal | null,
  ): void;
  /** `node-up` of this start is in the map: it may take part from here on. */
  started(node: number, incarnation: number): void;
  /** This node may serve until then, by the clock of `tick`. */
  renewed(untilMs: number): void;
  /** This node has been taken in: its number and the cluster must be remembered before anything else. */
  joined(node: number, clusterId: string): void;
  /** It was refused; it goes on asking. */
  joinRefused(message: string): void;
  /** Somebody wants this agent to end in good order, so that whoever looks after it starts it anew. */
  restartWanted(): void;
  /**
   * This version cannot take part (any more): what the others say, or have decided, is not for it. Control has stopped; the
   * agent must end, with this reason. Never from inside a call other than `tick`.
   */
  unfit(message: string): void;
}

/** How control begins. */
export interface ControlOptions {
  readonly host: ControlHost;
  /** This node's number; 0: it has none yet and asks `seeds` for one. */
  readonly node: number;
  readonly facts: NodeFacts;
  /** The run before ended by a clean stop. */
  readonly clean: boolean;
  /** See `NodeUp.torn`. */
  readonly torn?: boolean;
  /** Groups on data paths that are not there; left out: none. */
  readonly lost?: GroupBits;
  readonly raft: { readonly state: RaftState; readonly storage: RaftStorage } | null;
  readonly seeds: readonly string[];
  readonly nowMs: number;
  /** Level that the store remembers (`level_record.ts`); 1 where it is left out. */
  readonly level?: number;
  readonly gossip?: Partial<GossipConfig>;
}

/** A command of this node that has no result yet. */
interface Pending {
  /** Its own for ever, whatever number it has. */
  readonly id: number;
  readonly command: MapCommand;
  /** Proposed as leader: of no use when somebody else leads. */
  readonly isDuty: boolean;
  /** How much larger it makes the map; see `growthOf`. */
  readonly growthBytes: number;
  bytes: Uint8Array<ArrayBuffer> | null;
  sequence: number;
  /** May be in somebody's log. */
  isSent: boolean;
  readonly done: (result: Result<Applied>) => void;
}

/** A proposal that was made, for whoever may not want to wait for its result. */
export interface Proposed {
  /** It may be in somebody's log: what is there may happen whatever its node does. */
  readonly isSent: boolean;
  /**
   * Takes it back: it is not sent again, and its result is told no more, unless that was about to be.
   *
   * @returns true: it never happens; false: it has happened, or may still when the log that it may be in is the one that counts
   */
  withdraw(): boolean;
}

/** A disk's lease that a session of this node wants. */
interface LeaseWish {
  askedMs: number;
}

/** As leader: a node that waits for a disk's lease. */
interface Waiter {
  readonly node: number;
  readonly incarnation: number;
  /** When it asked last. */
  askedMs: number;
}

/** What there is to know of control. */
export interface ControlStatus {
  readonly node: number;
  readonly incarnation: number;
  readonly raft: RaftStatus | null;
  readonly isLeader: boolean;
  readonly leader: number;
  readonly pendingProposals: number;
  /** Until when this node may serve, by the clock of `tick`. */
  readonly serveUntilMs: number;
  /** `host:port` of who leads, as another node has said last; empty: none has. */
  readonly namedLeader: string;
}

/** See the head of the file. */
export class Control {
  readonly gossip: Gossip;
  readonly #host: ControlHost;
  readonly #duties: LeaderDuties;
  #facts: NodeFacts;
  readonly #clean: boolean;
  readonly #torn: boolean;
  readonly #seeds: readonly string[];
  #node: number;
  /** Of this start, once the map has it; 0 before. */
  #incarnation = 0;
  #raft: Raft | null = null;
  #storage: RaftStorage | null = null;
  #map: ClusterMap = EMPTY_MAP;
  #nowMs: number;
  /** Where nodes say that they listen, by node. */
  readonly #addresses = new Map<number, string>();

  readonly #pending: Pending[] = [];
  /** Ids of this run's proposals are above this, and no other run's are. */
  readonly #idBase: number;
  #idCount = 0;
  #nextSequence = 0;
  #sentMs = -Infinity;
  #sentTo = "";
  #isUpProposed = false;
  /** As leader: highest number taken from each node in this term, and whose it is. */
  readonly #taken = new Map<number, { sequence: number; id: number }>();
  #term = 0;

  #renewId = 0;
  readonly #renewSent = new Map<number, number>();
  #renewAskedMs = -Infinity;
  #renewedMs = -Infinity;
  #serveUntilMs = -Infinity;
  #report: NodeReport = EMPTY_REPORT;
  /** Epoch at which a node came up last. */
  #upEpoch = 0;
  /** As leader: what others report, and renewals that wait for a majority. */
  readonly #reports = new Map<number, { report: NodeReport; atMs: number }>();
  readonly #reads = new Map<
    number,
    { node: number; incarnation: number; id: number; address: string }
  >();
  #readContext = 0;

  readonly #wishes = new Map<number, LeaseWish>();
  /** As leader: who waits for a disk, in the order in which they asked first. */
  readonly #waiters = new Map<number, Waiter[]>();
  /** As leader: generations of disks whose release by their holder is in the log, and not applied yet. */
  readonly #releasing = new Map<number, number>();
  /** When this node saw nodes go down, and leases end that their holders had not given back. */
  readonly #downSince = new Map<number, number>();
  readonly #forcedSince = new Map<number, number>();
  /** Nodes that this node saw go, by uuid, oldest first: what they asked for before may come late. */
  readonly #gone = new Set<string>();
  /** Generations of disks that this node saw given back by their holders, and nobody has taken since. */
  readonly #returned = new Map<number, number>();
  /** As leader: since when it leads, and when it told nodes last that they may serve. */
  #ledSince = NaN;
  readonly #toldMs = new Map<number, number>();
  /** Epochs of the maps in which a lease was taken from a node that had not given it back. */
  readonly #takenEpoch = new Map<number, number>();
  /** Epoch from which on this process has applied every change; −1: none yet. */
  #firstEpoch = -1;
  #joinAskedMs = -Infinity;
  #joinAt = 0;
  #leaderHint = "";
  #namedLeader = "";
  #dutiesMs = -Infinity;
  readonly #asks = new Map<
    number,
    { done: (reports: ReadonlyMap<number, NodeReport>) => void; untilMs: number }
  >();
  #askId = 0;
  #isStopped = false;
  /** What the store remembers, or is about to: levels up to this one may be used. */
  #level: number;
  /** Reasons that were logged once. */
  readonly #warned = new Set<string>();

  constructor(options: ControlOptions) {
    const { host, facts, raft, nowMs } = options;
    this.#host = host;
    this.#facts = facts;
    this.#clean = options.clean;
    this.#torn = options.torn ?? false;
    if (this.#torn) {
      host.log.info(
        "the end of the log was torn: what others hold is compared with theirs",
      );
    }
    this.#lost = options.lost ?? [];
    this.#seeds = options.seeds;
    this.#node = options.node;
    this.#nowMs = nowMs;
    this.#level = options.level ?? 1;
    this.#duties = new LeaderDuties();
    this.#idBase = host.random.u32() * 2 ** 20;
    this.gossip = new Gossip({
      self: {
        uuid: facts.uuid,
        address: facts.address,
        agentIncarnation: 0,
        meta: metaOf(facts, 0),
      },
      seeds: options.seeds,
      random: host.random,
      config: options.gossip,
    });
    if (raft !== null) this.#begin(raft.state, raft.storage);
  }

  #begin(state: RaftState, storage: RaftStorage): void {
    this.#storage = storage;
    this.#raft = new Raft({
      id: this.#node,
      state,
      random: this.#host.random,
      nowMs: this.#nowMs,
    });
    this.#pump();
  }

  // ---------------------------------------------------------------------------------------- state

  /** The map as this node knows it; empty before it has one. */
  get map(): ClusterMap {
    return this.#map;
  }

  /** This node in the map. */
  get self(): NodeEntry | undefined {
    return findNode(this.#map, this.#node);
  }

  /** This node's number; 0: it has none yet. */
  get node(): number {
    return this.#node;
  }

  /** Incarnation of this start; 0: the map does not have it yet. */
  get incarnation(): number {
    return this.#incarnation;
  }

  /** Whether this node leads. */
  get isLeader(): boolean {
    return this.#raft?.role === "leader";
  }

  /** What there is to know. */
  get status(): ControlStatus {
    const raft = this.#raft?.status() ?? null;
    return {
      node: this.#node,
      incarnation: this.#incarnation,
      raft,
      isLeader: raft?.role === "leader",
      leader: raft?.leader ?? 0,
      pendingProposals: this.#pending.length,
      serveUntilMs: this.#serveUntilMs,
      namedLeader: this.#namedLeader,
    };
  }

  /** What this node tells the leader from now on. What others may wait for is told at once. */
  report(report: NodeReport): void {
    const before = this.#report;
    this.#report = report;
    const isUrgent = report.unreachable.join() !== before.unreachable.join() ||
      report.disconnected.join() !== before.disconnected.join() ||
      (before.epoch < this.#upEpoch && report.epoch >= this.#upEpoch);
    if (isUrgent) this.#renewAskedMs = -Infinity;
  }

  // ------------------------------------------------------------------------------------ proposals

  /**
   * Proposes a change of the map.
   *
   * @param done told the result when this node has applied it, never from inside this call; `unavailable` when control stops
   * first, or too many wait
   * @returns for whoever does not want to wait any longer
   */
  propose(command: MapCommand, done: (result: Result<Applied>) => void = () => {}): Proposed {
    // What takes leases away with the node that holds them waits until it serves nothing any more.
    const isForced = command.kind === "remove-node" && command.force === true;
    if (isForced && findNode(this.#map, command.node)?.state === "down") {
      if (!this.isSurelyDown(command.node)) {
        const message = "the node has not been down for long enough: it may still serve its guests";
        return this.#refuseSoon(done, { code: "busy", message });
      }
    }
    return this.#propose(command, done, false);
  }

  #propose(
    command: MapCommand,
    done: (result: Result<Applied>) => void,
    isDuty: boolean,
  ): Proposed {
    if (this.#isStopped || this.#pending.length >= PROPOSALS_MAX) {
      const message = this.#isStopped ? "the agent is stopping" : "too many changes are waiting";
      return this.#refuseSoon(done, { code: "unavailable", message });
    }
    const level = commandLevel(command);
    if (this.self !== undefined && !isOn(this.#map, level)) {
      return this.#refuseSoon(done, commandError(this.#map, command));
    }
    const growthBytes = growthOf(this.#map, command);
    if (growthBytes > 0 && !this.#hasRoomFor(growthBytes)) {
      return this.#refuseSoon(done, mapFullError(this.mapBytes));
    }
    const id = this.#idBase + ++this.#idCount;
    const pending: Pending = {
      id,
      command,
      isDuty,
      growthBytes,
      bytes: null,
      sequence: 0,
      isSent: false,
      done,
    };
    this.#pending.push(pending);
    this.#number();
    this.#sentMs = -Infinity;
    this.#hurry();
    return {
      get isSent() {
        return pending.isSent;
      },
      withdraw: () => this.#withdraw(pending),
    };
  }

  #refuseSoon(done: (result: Result<Applied>) => void, error: ControlError): Proposed {
    this.#soon.push(() => done({ ok: false, error }));
    return { isSent: false, withdraw: () => true };
  }

  #withdraw(pending: Pending): boolean {
    const at = this.#pending.indexOf(pending);
    if (at < 0) return false;
    this.#pending.splice(at, 1);
    this.#renumber(at);
    return !pending.isSent;
  }

  /**
   * Some of what waits has gone from between the rest: an entry that has its number already is noticed when it is applied.
   *
   * @param from what waits before this one keeps its number
   */
  #renumber(from = 0): void {
    for (let i = from; i < this.#pending.length; i++) this.#pending[i].bytes = null;
    this.#number();
    this.#sentMs = -Infinity;
  }

  /** Whether the map stays small enough with what waits, and with this many bytes more. */
  #hasRoomFor(bytes: number): boolean {
    const waiting = this.#pending.reduce((sum, { growthBytes }) => sum + growthBytes, bytes);
    // What is known may be more than there is, and all of the map is counted only where that matters.
    if (this.#mapBytes + this.#grownBytes + waiting > MAP_BYTES_FULL) this.#measure();
    return this.#mapBytes + waiting <= MAP_BYTES_FULL;
  }

  /** Bytes of the map as it is encoded: exact above `MAP_BYTES_FULL`, and below it rather too many. */
  get mapBytes(): number {
    if (this.#mapBytes + this.#grownBytes > MAP_BYTES_FULL) this.#measure();
    return this.#mapBytes + this.#grownBytes;
  }

  #measure(): void {
    if (this.#measuredEpoch !== this.#map.epoch) this.#encode();
  }

  #encode(): Result<Uint8Array<ArrayBuffer>> {
    const encoded = encodeMap(this.#map);
    this.#noteSize(encoded.ok ? encoded.value.length : MAP_BYTES_MAX);
    return encoded;
  }

  #noteSize(bytes: number): void {
    this.#mapBytes = bytes;
    this.#grownBytes = 0;
    this.#measuredEpoch = this.#map.epoch;
  }
  /** Of the map when it was encoded last, and what has come since at the most. */
  #mapBytes = 0;
  #grownBytes = 0;
  #measuredEpoch = -1;

  /** Does at once what would otherwise wait for the next tick. */
  #hurry(): void {
    if (this.#isPumping) return;
    this.#sendProposals();
    this.#pump();
  }
  #isPumping = false;
  readonly #soon: (() => void)[] = [];

  /** Numbers what has no number yet. A command that cannot be encoded is refused. */
  #number(): void {
    const self = this.self;
    if (self === undefined) return;
    if (this.#nextSequence <= self.requestSequence) {
      this.#nextSequence = self.requestSequence + 1;
      this.#forgetPassed(self.requestSequence);
      for (const pending of this.#pending) pending.bytes = null;
    }
    let sequence = this.#nextSequence;
    for (let i = 0; i < this.#pending.length; i++) {
      const pending = this.#pending[i];
      if (pending.bytes !== null) {
        sequence = pending.sequence + 1;
        continue;
      }
      const encoded = encodeProposal({
        node: this.#node,
        sequence,
        id: pending.id,
        command: pending.command,
      });
      const error = !encoded.ok ? encoded.error : encoded.value.length > ENTRY_BYTES_MAX
        ? {
          code: "limit",
          message: `a change of ${encoded.value.length} bytes is too large`,
        } as const
        : null;
      if (error !== null || !encoded.ok) {
        this.#pending.splice(i--, 1);
        this.#soon.push(() => pending.done({ ok: false, error: error! }));
        continue;
      }
      pending.bytes = encoded.value;
      pending.sequence = sequence++;
    }
  }

  /** A whole map has come in which these numbers are used up: whether by these proposals, nobody can say. */
  #forgetPassed(sequence: number): void {
    for (let i = 0; i < this.#pending.length; i++) {
      const pending = this.#pending[i];
      if (pending.bytes === null || pending.sequence > sequence) continue;
      this.#pending.splice(i--, 1);
      const message = "whether the change has happened is not known";
      this.#soon.push(() => pending.done({ ok: false, error: { code: "stale", message } }));
    }
  }

  /** Sends what waits to the leader, or takes it into the log. */
  #sendProposals(): void {
    const raft = this.#raft;
    if (raft === null || this.#pending.length === 0 || this.self === undefined) return;
    const { leader, role } = raft;
    if (role === "leader" && !this.#isCaughtUp()) return;
    const to = role === "leader" ? "self" : this.#addressOf(leader);
    if (to === "" || (to === this.#sentTo && this.#nowMs - this.#sentMs < RETRY_MS)) return;
    this.#sentTo = to;
    this.#sentMs = this.#nowMs;
    const proposals: Uint8Array[] = [];
    let bytes = 0;
    for (const pending of this.#pending) {
      bytes += pending.bytes!.length;
      if (proposals.length >= WINDOW || (proposals.length > 0 && bytes > WINDOW_BYTES)) break;
      proposals.push(pending.bytes!);
      pending.isSent = true;
    }
    if (role === "leader") this.#takeProposals(proposals, this.#node);
    else this.#send(to, { kind: ControlKind.Propose, proposals });
  }

  /** As leader: appends what has not been appended in this term, and right behind it what follows from it. */
  #takeProposals(list: readonly Uint8Array[], from: number): void {
    const released: number[] = [];
    this.#append(list, from, released);
    for (const disk of released) this.#grant(disk);
  }

  /** @param released gets the disks whose holders give them back */
  #append(list: readonly Uint8Array[], from: number, released: number[]): void {
    const raft = this.#raft!;
    if (!this.#isCaughtUp()) return;
    for (const bytes of list) {
      const decoded = decodeProposal(bytes);
      if (!decoded.ok) return this.#warnOnce(from, decoded.error.message);
      const { node, sequence, id = 0, command } = decoded.value;
      if (node !== from) return;
      // Who does not know it would have to stop.
      if (!isOn(this.#map, commandLevel(command))) {
        return this.#warnOnce(from, `${command.kind} is above level ${this.#map.level}`);
      }
      const entry = findNode(this.#map, node);
      if (entry === undefined) continue;
      if (sequence <= entry.requestSequence) {
        // It has been carried out; or its number was used up by what its node has taken back since, or by a run before, and what comes
        // behind it must not go before it: its node counts anew as soon as it hears of that.
        if (id !== 0 && this.#applied.get(node)?.includes(id) !== true) return;
        continue;
      }
      const taken = this.#taken.get(node);
      const last = Math.max(taken?.sequence ?? 0, entry.requestSequence);
      // A number that another run of that node has used: it finds out when it applies it, and counts anew.
      if (taken?.sequence === sequence && taken.id !== id) return;
      if (sequence <= last) continue;
      // It was carried out under another number, which that node has yet to find out.
      if (id !== 0 && this.#applied.get(node)?.includes(id) === true) return;
      // In order: what is missing in between comes again.
      if (sequence !== last + 1) return;
      const proposed = raft.propose(new Uint8Array(bytes));
      if (!proposed.ok) return;
      this.#taken.set(node, { sequence, id });
      if (this.#noteReleasing(node, command)) {
        released.push((command as ReleaseLease).id);
      }
    }
  }

  /** Whether a node has been down for so long that it serves nothing, whatever it believes. */
  isSurelyDown(node: number): boolean {
    const since = this.#downSince.get(node);
    return since !== undefined && this.#nowMs - since >= GRANT_MS;
  }

  /**
   * As leader: whether the map has everything that was in the log when it began to lead. Until then nobody can say which
   * numbers are used up: what is in the log already would come into it a second time under another number.
   */
  #isCaughtUp(): boolean {
    const { term, applied, lastIndex } = this.#raft!;
    if (this.#leadTerm !== term) {
      this.#leadTerm = term;
      this.#leadIndex = lastIndex;
    }
    return applied >= this.#leadIndex;
  }
  /** Per node: ids of its proposals that were applied last, oldest first. */
  readonly #applied = new Map<number, number[]>();

  #noteApplied({ node, id = 0 }: Proposal): void {
    if (id === 0) return;
    let ids = this.#applied.get(node);
    if (ids === undefined) this.#applied.set(node, ids = []);
    ids.push(id);
    if (ids.length > WINDOW) ids.shift();
  }
  #leadTerm = 0;
  #leadIndex = 0;

  // ---------------------------------------------------------------------------------------- leases

  /** A session wants the disk's lease: asks until the map says that this node has it. */
  wantLease(disk: number): void {
    if (this.#wishes.has(disk)) return;
    this.#wishes.set(disk, { askedMs: -Infinity });
    if (this.#isPumping) return;
    this.#sendWishes();
    this.#hurry();
  }

  /** No session wants the lease any more. */
  forgetLease(disk: number): void {
    this.#wishes.delete(disk);
  }

  #sendWishes(): void {
    if (this.#incarnation === 0 || this.#wishes.size === 0) return;
    const { isLeader } = this;
    for (const [id, wish] of this.#wishes) {
      if (this.#nowMs - wish.askedMs < RETRY_MS) continue;
      const disk = this.#map.disks.find((candidate) => candidate.id === id);
      if (disk === undefined || this.#holds(disk.lease)) {
        this.#wishes.delete(id);
        continue;
      }
      wish.askedMs = this.#nowMs;
      if (isLeader) this.#leaseWanted(this.#node, this.#incarnation, id);
      else {
        this.#sendToLeader({
          kind: ControlKind.Lease,
          node: this.#node,
          incarnation: this.#incarnation,
          disk: id,
        });
      }
    }
  }

  #holds(lease: { node: number; incarnation: number } | null): boolean {
    return lease?.node === this.#node && lease.incarnation === this.#incarnation;
  }

  /** As leader: somebody wants a lease, and is remembered for when it can be had. */
  #leaseWanted(node: number, incarnation: number, id: number): void {
    let waiters = this.#waiters.get(id);
    if (waiters === undefined) this.#waiters.set(id, waiters = []);
    const known = waiters.find((waiter) =>
      waiter.node === node && waiter.incarnation === incarnation
    );
    if (known === undefined) waiters.push({ node, incarnation, askedMs: this.#nowMs });
    else known.askedMs = this.#nowMs;
    this.#grant(id);
  }

  /** As leader: proposes that whoever waits longest for the disk has it, when it is free, or surely given up. */
  #grant(id: number): void {
    const disk = this.#map.disks.find((candidate) => candidate.id === id);
    const waiters = (this.#waiters.get(id) ?? []).filter(({ node, incarnation, askedMs }) => {
      const entry = findNode(this.#map, node);
      const { lease = null } = disk ?? {};
      const hasIt = lease?.node === node && lease.incarnation === incarnation &&
        this.#releasing.get(id) !== disk?.generation;
      return entry?.state === "up" && entry.incarnation === incarnation && !hasIt &&
        this.#nowMs - askedMs < WISH_VALID_MS;
    });
    if (disk === undefined || waiters.length === 0) return void this.#waiters.delete(id);
    this.#waiters.set(id, waiters);
    if (!this.#mayGrant(disk) || this.#isProposed("take-lease", id)) return;
    const [{ node, incarnation }] = waiters;
    const { generation } = disk;
    this.#propose({ kind: "take-lease", id, node, incarnation, generation }, () => {}, true);
  }

  /** Gives what can be given. */
  #grantAll(): void {
    if (this.#waiters.size === 0 || !this.isLeader) return;
    for (const id of [...this.#waiters.keys()]) this.#grant(id);
  }

  /**
   * As leader: a command of that node has come into the log.
   *
   * @returns whether it gives back a lease that the node holds by the map
   */
  #noteReleasing(node: number, command: MapCommand): boolean {
    if (command.kind !== "release-lease" || command.node !== node) return false;
    const disk = this.#map.disks.find((candidate) => candidate.id === command.id);
    if (disk?.lease?.node !== node || disk.generation !== command.generation) return false;
    this.#releasing.set(disk.id, disk.generation);
    return true;
  }

  #isProposed(kind: MapCommand["kind"], id: number): boolean {
    return this.#pending.some(({ command }) =>
      command.kind === kind && (command as { id?: number }).id === id
    );
  }

  /** Whether whoever held the lease has surely stopped serving. */
  #mayGrant({ id, generation, lease, settled }: DiskEntry): boolean {
    if (this.#forcedSince.has(id)) return false;
    if (lease === null && settled < generation && this.#returned.get(id) !== generation) {
      // It ended without a release, before this process has seen it: nobody can say how long ago.
      return this.#nowMs - this.#ledSince >= GRANT_MS;
    }
    if (lease === null || this.#releasing.get(id) === generation) return true;
    const holder = findNode(this.#map, lease.node);
    if (holder === undefined || holder.incarnation !== lease.incarnation) return true;
    return holder.state !== "up" && (this.isSurelyDown(lease.node) || this.#isSilenced(lease.node));
  }

  /** As leader: whether nobody can have told the node for so long that it may serve that it does not, whatever it believes. */
  #isSilenced(node: number): boolean {
    const sinceMs = Math.max(this.#ledSince, this.#toldMs.get(node) ?? -Infinity);
    return this.#nowMs - sinceMs >= GRANT_MS;
  }

  // ------------------------------------------------------------------------------------- messages

  /** A control message came. */
  received(peer: ControlPeer, bytes: Uint8Array): void {
    if (this.#isStopped) return;
    const message = decodeControl(bytes);
    if (message === null) {
      return this.#warnOnce(peer.node, "a control message that cannot be right, or is newer");
    }
    if (this.#isRemoved(peer.node)) this.#tellRemoved(peer, message.kind);
    else if (peer.node > 0 && peer.address !== "") this.#noteAddress(peer.node, peer.address);
    this.#handle(peer, message);
    this.#pump();
  }

  /** Whether a node was taken out of the cluster. However old this map is: numbers are given once. */
  #isRemoved(node: number): boolean {
    return node > 0 && node < this.#map.nextNode && findNode(this.#map, node) === undefined;
  }

  /** Nobody else would tell it: it gets no entries any more, and it would ask for ever. */
  #tellRemoved({ node, address }: ControlPeer, asked: ControlKind): void {
    if (asked === ControlKind.Raft || asked === ControlKind.Removed) return;
    const { clusterId, epoch } = this.#map;
    this.#send(address, { kind: ControlKind.Removed, node, clusterId, epoch });
  }

  /** Its own map, in which it is, may be older than that of whoever says so, never newer. */
  #toldRemoved(
    { node, clusterId, epoch }: Extract<ControlMessage, { kind: ControlKind.Removed }>,
  ): void {
    const isOurs = node !== 0 && node === this.#node && clusterId === this.#map.clusterId;
    if (isOurs && epoch > this.#map.epoch) this.#endRemoved(epoch);
  }

  #endRemoved(epoch: number): void {
    this.#quit(REMOVED, REMOVED, { epoch });
  }

  #handle(peer: ControlPeer, message: ControlMessage): void {
    switch (message.kind) {
      case ControlKind.Raft:
        return this.#stepRaft(peer, message.bytes);
      case ControlKind.Propose:
        if (this.isLeader) this.#takeProposals(message.proposals, peer.node);
        else this.#pointToLeader(peer);
        return;
      case ControlKind.Join:
        return this.#joinAsked(peer, message.facts);
      case ControlKind.Joined:
        return this.#joined(message.node, message.clusterId);
      case ControlKind.Refused:
        if (this.#node === 0) this.#host.joinRefused(message.message);
        return;
      case ControlKind.Renew:
        return this.#renewAsked(peer, message);
      case ControlKind.Renewed:
        return this.#renewed(message.id);
      case ControlKind.Lease:
        if (this.isLeader && message.node === peer.node) {
          this.#leaseWanted(message.node, message.incarnation, message.disk);
        }
        return;
      case ControlKind.Ask:
        if (this.isLeader) {
          const reports = [...this.#validReports()];
          this.#send(peer.address, { kind: ControlKind.Reports, id: message.id, reports });
        } else this.#pointToLeader(peer);
        return;
      case ControlKind.Reports: {
        const ask = this.#asks.get(message.id);
        this.#asks.delete(message.id);
        ask?.done(new Map(message.reports));
        return;
      }
      case ControlKind.Lead:
        this.#leaderHint = message.address;
        this.#namedLeader = message.address;
        this.#noteAddress(message.node, message.address);
        return;
      case ControlKind.Restart:
        if (message.node === this.#node) this.#restartAsked(message.incarnation, peer.node);
        return;
      case ControlKind.Removed:
        this.#toldRemoved(message);
    }
  }

  /** A message that comes late or twice is about a run that is over. */
  #restartAsked(incarnation: number, by: number): void {
    const asker = findNode(this.#map, by);
    if (incarnation === 0 || incarnation !== this.#incarnation || asker === undefined) return;
    this.#host.log.info("asked to end, to be started anew", { by: asker.name });
    this.#host.restartWanted();
  }

  /**
   * Asks a node's agent to end in good order, so that it is started anew. It may be lost: whoever wants it looks at the map,
   * which has another incarnation of the node then.
   */
  askRestart(node: number): void {
    const entry = findNode(this.#map, node);
    if (entry === undefined || this.#isStopped) return;
    const { incarnation } = entry;
    if (node === this.#node) this.#soon.push(() => this.#restartAsked(incarnation, node));
    else this.#send(this.#addressOf(node), { kind: ControlKind.Restart, node, incarnation });
  }

  /** Logs why something that came is not taken: once per node and reason, since it may come again and again. */
  #warnOnce(node: number, reason: string): void {
    const key = `${node} ${reason}`;
    if (this.#warned.has(key) || this.#warned.size >= WARNINGS_MAX) return;
    this.#warned.add(key);
    const name = findNode(this.#map, node)?.name ?? node;
    this.#host.log.warn("something that came from a node is not taken", { node: name, reason });
  }

  #noteAddress(node: number, address: string): void {
    if (this.#addresses.size < ADDRESSES_MAX || this.#addresses.has(node)) {
      this.#addresses.set(node, address);
    }
  }

  #stepRaft(peer: ControlPeer, bytes: Uint8Array): void {
    const raft = this.#raft;
    if (raft === null) return;
    const message = decodeMessage(bytes);
    if (!message.ok) return this.#warnOnce(peer.node, message.error.message);
    // Who speaks is what the channel has proved, not what the message says.
    if (message.value.from !== peer.node) return;
    raft.step(message.value);
  }

  #pointToLeader(peer: ControlPeer): void {
    const leader = this.#raft?.leader ?? 0;
    const address = this.#addressOf(leader);
    if (address !== "") this.#send(peer.address, { kind: ControlKind.Lead, node: leader, address });
  }

  #send(address: string, message: ControlMessage): void {
    if (address !== "") this.#host.sendControl(address, encodeControl(message));
  }

  #sendToLeader(message: ControlMessage): void {
    const leader = this.#raft?.leader ?? 0;
    this.#send(this.#addressOf(leader), message);
  }

  /** Where a node listens: as it says itself, as gossip knows, or as the map has it. */
  #addressOf(node: number): string {
    if (node === 0) return "";
    const entry = findNode(this.#map, node);
    const member = entry === undefined ? null : this.gossip.member(entry.uuid);
    return member?.address ?? this.#addresses.get(node) ?? entry?.address ?? "";
  }

  /** A gossip packet came, opened. */
  gossipReceived(from: string, plaintext: Uint8Array): void {
    const { refused } = this.gossip.counters;
    const before = refused.version;
    this.gossip.receive(from, plaintext, this.#nowMs);
    if (refused.version > before) this.#warnOnce(0, `a gossip packet of another version: ${from}`);
    this.#takeGossip();
  }

  #takeGossip(): void {
    for (const { address, bytes } of this.gossip.takePackets()) {
      this.#host.sendGossip(address, bytes);
    }
    for (const { kind, member } of this.gossip.takeEvents()) {
      const level = kind === "suspect" || kind === "dead" ? "warn" : "debug";
      this.#host.log[level](`member ${kind}`, {
        name: member.meta.name,
        address: member.address,
      });
    }
  }

  // ---------------------------------------------------------------------------------------- joining

  #askToJoin(): void {
    if (this.#node !== 0 || this.#nowMs - this.#joinAskedMs < JOIN_RETRY_MS) return;
    this.#joinAskedMs = this.#nowMs;
    const members = this.gossip.members().filter((member) => !member.isSelf);
    const places = [...this.#seeds, ...members.map((member) => member.address)];
    const address = this.#leaderHint || places[this.#joinAt++ % places.length];
    this.#leaderHint = "";
    if (address === undefined) return;
    const facts = { ...this.#facts, nowMs: this.#host.wallMs() };
    this.#send(address, { kind: ControlKind.Join, facts });
  }

  #joinAsked(peer: ControlPeer, facts: NodeFacts): void {
    if (!this.isLeader) return this.#pointToLeader(peer);
    const known = findNodeByUuid(this.#map, facts.uuid);
    if (known !== undefined) {
      const { clusterId } = this.#map;
      // It has run before: an empty store under an old number would have forgotten what others count on.
      if (known.incarnation > 1 || known.requestSequence > 0) {
        const message = `a node with the same identity is in the cluster already (${known.name})`;
        this.#send(peer.address, { kind: ControlKind.Refused, message });
        return;
      }
      this.#send(peer.address, { kind: ControlKind.Joined, node: known.id, clusterId });
      return;
    }
    if (this.#gone.has(facts.uuid)) {
      // Not taken in once more by what it had asked for while it was in the cluster: nobody would be behind that node.
      this.#send(peer.address, { kind: ControlKind.Refused, message: REMOVED });
      return;
    }
    const isWaiting = this.#pending.some(({ command }) =>
      command.kind === "add-node" && command.uuid === facts.uuid
    );
    if (isWaiting) return;
    this.#propose({ kind: "add-node", ...facts }, (result) => {
      if (!result.ok) {
        const message = wordsOf(result.error);
        this.#host.log.warn("a node was not taken in", { name: facts.name, reason: message });
        this.#send(peer.address, { kind: ControlKind.Refused, message });
        return;
      }
      const added = findNodeByUuid(this.#map, facts.uuid);
      if (added === undefined) return;
      const { clusterId } = this.#map;
      this.#send(peer.address, { kind: ControlKind.Joined, node: added.id, clusterId });
    }, true);
  }

  #joined(node: number, clusterId: string): void {
    if (this.#node !== 0) return;
    this.#node = node;
    this.#host.joined(node, clusterId);
  }

  /** What {@linkcode ControlHost.joined} asked for is durable: consensus may begin. */
  beginJoined(state: RaftState, storage: RaftStorage): void {
    this.#begin(state, storage);
  }

  // ------------------------------------------------------------------------------- right to serve

  #renew(): void {
    const raft = this.#raft;
    if (raft === null || this.#incarnation === 0) return;
    const isDue = this.#nowMs - this.#renewedMs >= RENEW_MS;
    const isLate = this.#nowMs - this.#renewAskedMs >= RENEW_RETRY_MS;
    if (!isLate || (!isDue && this.#renewAskedMs > -Infinity)) return;
    this.#renewAskedMs = this.#nowMs;
    const id = ++this.#renewId;
    this.#renewSent.set(id, this.#nowMs);
    for (const old of this.#renewSent.keys()) {
      if (this.#renewSent.size <= 32) break;
      this.#renewSent.delete(old);
    }
    const { role, leader, hasOtherLog } = raft;
    const [node, incarnation] = [this.#node, this.#incarnation];
    const report = { ...this.#report, hasOtherLog };
    if (role === "leader") {
      this.#reports.set(node, { report, atMs: this.#nowMs });
      this.#read({ node, incarnation, id, address: "" });
    } else if (leader !== 0) {
      this.#sendToLeader({ kind: ControlKind.Renew, node, incarnation, id, report });
    }
  }

  #renewAsked(
    peer: ControlPeer,
    message: Extract<ControlMessage, { kind: ControlKind.Renew }>,
  ): void {
    if (!this.isLeader) return this.#pointToLeader(peer);
    const { node, incarnation, id, report } = message;
    if (node !== peer.node) return;
    this.#reports.set(node, { report, atMs: this.#nowMs });
    // By its map it may hold what is another node's here.
    if (report.hasOtherLog) return;
    this.#read({ node, incarnation, id, address: peer.address });
  }

  #read(read: { node: number; incarnation: number; id: number; address: string }): void {
    const context = ++this.#readContext;
    if (this.#raft!.readIndex(context) !== null) return;
    this.#reads.set(context, read);
    for (const old of this.#reads.keys()) {
      if (this.#reads.size <= 4096) break;
      this.#reads.delete(old);
    }
  }

  /** A majority has confirmed this leader since the question: what the map says now is true as of then. */
  #readDone(context: number): void {
    const read = this.#reads.get(context);
    this.#reads.delete(context);
    if (read === undefined) return;
    const entry = findNode(this.#map, read.node);
    if (entry?.state !== "up" || entry.incarnation !== read.incarnation) return;
    if (!entry.witness && !this.#knowsItsLeases(read.node)) return;
    // As in `#noteStates`: the next tick knows what time it is.
    this.#toldMs.set(read.node, NaN);
    if (read.node === this.#node) this.#renewed(read.id);
    else this.#send(read.address, { kind: ControlKind.Renewed, id: read.id });
  }

  /**
   * Whether a node's data worker has the map in which a lease was taken from it last. Until then it would go on where it has to stop:
   * it may have been out of reach meanwhile, and hear that it may serve before it hears what.
   *
   * What this process has not seen happen may have happened just before it began.
   */
  #knowsItsLeases(node: number): boolean {
    const isOwn = node === this.#node;
    const known = isOwn ? this.#report.epoch : this.#reports.get(node)?.report.epoch ?? 0;
    return known >= (this.#takenEpoch.get(node) ?? (isOwn ? 0 : this.#firstEpoch));
  }

  #renewed(id: number): void {
    const sentMs = this.#renewSent.get(id);
    if (sentMs === undefined || this.#raft!.hasOtherLog) return;
    this.#renewSent.delete(id);
    this.#renewedMs = Math.max(this.#renewedMs, sentMs);
    // Where this node alone decides, nobody can give its leases away behind its back.
    const untilMs = this.#isSoleVoter ? Infinity : sentMs + SERVE_MS;
    if (untilMs <= this.#serveUntilMs) return;
    this.#serveUntilMs = untilMs;
    this.#host.renewed(untilMs);
  }

  get #isSoleVoter(): boolean {
    const { voters } = this.#raft!.configuration;
    return voters.length === 1 && voters[0] === this.#node;
  }

  #validReports(): Map<number, NodeReport> {
    const valid = new Map<number, NodeReport>();
    for (const [node, { report, atMs }] of this.#reports) {
      if (this.#nowMs - atMs < REPORT_VALID_MS) valid.set(node, report);
    }
    const own = valid.get(this.#node);
    const members = this.#raft?.status().members ?? [];
    const lostLogs = members.filter(({ hasLostLog }) => hasLostLog).map(({ node }) => node);
    if (own !== undefined && lostLogs.length > 0) valid.set(this.#node, { ...own, lostLogs });
    return valid;
  }

  /** Another voter has come: from now on the right to serve has an end. */
  #endForever(): void {
    if (this.#serveUntilMs !== Infinity || this.#isSoleVoter) return;
    this.#serveUntilMs = this.#nowMs + SERVE_MS;
    this.#host.renewed(this.#serveUntilMs);
  }

  /** Asks the leader what all nodes report; an empty answer when there is none in time. */
  askReports(done: (reports: ReadonlyMap<number, NodeReport>) => void): void {
    if (this.isLeader) return void this.#soon.push(() => done(this.#validReports()));
    const id = ++this.#askId;
    this.#asks.set(id, { done, untilMs: this.#nowMs + ASK_MS });
    this.#sendToLeader({ kind: ControlKind.Ask, id });
  }

  // ----------------------------------------------------------------------------------------- raft

  /** Carries out what consensus wants done, until there is nothing. */
  #pump(): void {
    const raft = this.#raft;
    if (raft === null || this.#isPumping) return;
    this.#isPumping = true;
    try {
      this.#work(raft);
    } finally {
      this.#isPumping = false;
    }
    this.#endForever();
    const { term, role } = raft;
    if (role !== "leader") this.#forgetDuties();
    if (term === this.#term) return;
    this.#term = term;
    this.#taken.clear();
    this.#waiters.clear();
    this.#releasing.clear();
    this.#toldMs.clear();
    this.#ledSince = NaN;
    this.#sentTo = "";
    this.#duties.reset();
  }

  /** What was proposed as leader is of no use when somebody else leads. */
  #forgetDuties(): void {
    let isAny = false;
    for (let i = 0; i < this.#pending.length; i++) {
      if (!this.#pending[i].isDuty) continue;
      const [{ done }] = this.#pending.splice(i--, 1);
      isAny = true;
      const message = "this node does not lead any more";
      this.#soon.push(() => done({ ok: false, error: { code: "unavailable", message } }));
    }
    if (isAny) this.#renumber();
  }

  #work(raft: Raft): void {
    for (let ready = raft.ready(); ready !== null; ready = raft.ready()) {
      for (const message of ready.messages) this.#sendRaft(message);
      if (ready.persist !== null) this.#persist(ready.persist);
      if (ready.snapshot !== null && !this.#isStopped) this.#install(ready.snapshot.data);
      for (const entry of ready.committed) {
        if (this.#isStopped) return;
        this.#apply(entry);
      }
      if (this.#isStopped) return;
      for (const read of ready.reads) {
        if (read.index === null) this.#reads.delete(read.context);
        else this.#readDone(read.context);
      }
      // What was proposed meanwhile goes on at once.
      this.#sendWishes();
      this.#sendProposals();
    }
  }

  #sendRaft(message: Message): void {
    this.#send(this.#addressOf(message.to), {
      kind: ControlKind.Raft,
      bytes: encodeMessage(message),
    });
  }

  #persist(persist: Persist): void {
    // Another node's map, at a level that this store may not know: it remembers that first.
    if (persist.snapshot !== null && persist.isLogReplaced) this.#foresee(persist.snapshot.data);
    if (this.#isStopped) return;
    const writes = this.#storage!.write(persist);
    const underWay = { persist, isDone: false, sinceMs: this.#nowMs };
    this.#persists.push(underWay);
    this.#host.persist(writes, () => {
      underWay.isDone = true;
      if (!this.#isStopped) this.#persisted();
    });
  }

  /** In the order in which they were given: one with nothing to write may be done before those that it waits for. */
  #persisted(): void {
    while (this.#persists.length > 0 && this.#persists[0].isDone) {
      const { persist } = this.#persists.shift()!;
      this.#raft!.persisted(persist.token);
      for (const message of persist.messages) this.#sendRaft(message);
    }
    this.#pump();
  }
  readonly #persists: { readonly persist: Persist; isDone: boolean; readonly sinceMs: number }[] =
    [];

  #foresee(data: Uint8Array): void {
    const map = decodeMap(data);
    if (map.ok) this.#noteLevel(map.value);
    else if (map.error.code === "limit") this.#end(wordsOf(map.error));
  }

  /**
   * Makes the level of a map durable before anything that follows from it is: writes become durable in the order in which they
   * are given. Ends this agent when it does not speak it.
   */
  #noteLevel(map: ClusterMap): void {
    if (map.level <= this.#level || map.nodes.length === 0) return;
    const error = levelErrorIn(map, this.#facts);
    if (error !== null && map.level > this.#facts.protocol) return this.#end(wordsOf(error));
    this.#level = map.level;
    const { version } = this.#facts;
    const value = encodeLevel({ level: map.level, sinceMs: this.#host.wallMs(), version });
    this.#host.persist([{ key: LEVEL_KEY, value }], () => {});
    this.#host.log.info("the cluster speaks another level", { level: map.level });
  }

  /** This version cannot go on: nothing more is applied, sent or proposed. */
  #end(reason: string): void {
    this.#quit(reason, "this version of Kelpie cannot take part in the cluster", { reason });
  }

  /** Ends this agent, once, with a message for its log. */
  #quit(reason: string, message: string, fields: Record<string, unknown>): void {
    if (this.#isStopped) return;
    this.#host.log.error(message, fields);
    this.stop();
    this.#soon.push(() => this.#host.unfit(reason));
  }

  #install(data: Uint8Array): void {
    const map = decodeMap(data);
    if (!map.ok && map.error.code === "limit") return this.#end(wordsOf(map.error));
    if (!map.ok) {
      // Made by a leader's encoder and carried under a checksum: an error of the program.
      this.#host.log.error("the cluster map of a snapshot cannot be read", {
        reason: map.error.message,
      });
      return;
    }
    this.#noteLevel(map.value);
    if (this.#isStopped) return;
    const before = this.#map;
    this.#map = map.value;
    this.#noteSize(data.length);
    this.#noteStates(before);
    this.#noteGone(before);
    // What was taken from whom in maps that were not seen may have been taken just now.
    this.#takenEpoch.clear();
    this.#firstEpoch = this.#map.epoch;
    this.#host.mapChanged(this.#map, [], true, null);
    this.#mapIsNew();
  }

  #apply(entry: Entry): void {
    if (entry.kind !== ENTRY_DATA) return;
    const decoded = decodeProposal(entry.data);
    // What this node left out, others apply: it would have another map than they.
    if (!decoded.ok && decoded.error.code === "limit") return this.#end(wordsOf(decoded.error));
    if (!decoded.ok) {
      this.#host.log.error("an entry of the log cannot be read and is left out", {
        index: entry.index,
        reason: decoded.error.message,
      });
      return;
    }
    const before = this.#map;
    const decided = applyProposal(before, decoded.value);
    this.#noteLevel(decided.map);
    if (this.#isStopped) return;
    this.#map = decided.map;
    const { command } = decoded.value;
    if (command.kind === "release-lease") this.#releasing.delete(command.id);
    // Taken off the list before anybody is told: whoever hears of it may propose something.
    if (decided.outcome === "applied") this.#noteApplied(decoded.value);
    const isOurs = decoded.value.node === this.#node && decided.outcome === "applied";
    const own = isOurs ? this.#takeOwn(decoded.value) : null;
    if (decided.map.epoch !== before.epoch) {
      this.#grownBytes += growthOf(before, command);
      if (command.kind === "node-up") this.#upEpoch = decided.map.epoch;
      this.#noteStates(before);
      this.#noteGone(before);
      this.#noteForced(before, decoded.value);
      this.#host.mapChanged(decided.map, decided.effects, false, decoded.value);
    }
    own?.done(decided.result);
    this.#mapIsNew();
  }

  /** When nodes went down, by this node's clock: what a leader waits for counts from here. */
  #noteStates(before: ClusterMap): void {
    for (const node of this.#map.nodes) {
      const known = findNode(before, node.id);
      // Where maps in between were not seen it may have been up meanwhile: in another run.
      const isSame = known?.state === "down" && known.incarnation === node.incarnation;
      if (node.state === "up") this.#downSince.delete(node.id);
      else if (!isSame || !this.#downSince.has(node.id)) {
        // The next tick knows what time it is: since the last one this process may have been stopped for long.
        this.#downSince.set(node.id, NaN);
      }
    }
  }

  /** Who is in the cluster no more. */
  #noteGone({ nodes }: ClusterMap): void {
    if (nodes === this.#map.nodes) return;
    for (const { id, uuid } of nodes) {
      if (findNode(this.#map, id) !== undefined) continue;
      this.#gone.add(uuid);
      const [oldest] = this.#gone;
      if (this.#gone.size > GONE_MAX) this.#gone.delete(oldest);
    }
  }

  /** Whose leases have ended, and how. */
  #noteForced(before: ClusterMap, { node, command }: Proposal): void {
    if (this.#firstEpoch < 0) this.#firstEpoch = before.epoch;
    if (before.disks === this.#map.disks) return;
    const now = new Map(this.#map.disks.map((disk) => [disk.id, disk.lease]));
    for (const { id, generation, lease } of before.disks) {
      const next = now.get(id) ?? null;
      if (next !== null) this.#returned.delete(id);
      if (lease === null || next?.node === lease.node) continue;
      const isReturn = command.kind === "release-lease";
      if (!isReturn) this.#takenEpoch.set(lease.node, this.#map.epoch);
      if (next !== null) continue;
      // Who gives it up by itself serves nothing any more; who loses it otherwise, with the disk or not, may for a while.
      const isOwn = isReturn || (command.kind === "force-release-lease" && lease.node === node);
      if (isOwn) this.#returned.set(id, generation);
      else this.#forcedSince.set(id, NaN);
    }
    for (const id of this.#returned.keys()) if (!now.has(id)) this.#returned.delete(id);
  }

  /** An entry with a number of ours was applied: that of a proposal that waits, or (null) of an earlier run of this agent. */
  #takeOwn(proposal: Proposal): Pending | null {
    this.#nextSequence = proposal.sequence + 1;
    const at = this.#pending.findIndex(({ id }) => id === proposal.id);
    const own = at < 0 ? null : this.#pending.splice(at, 1)[0];
    if (at === 0 && own!.sequence === proposal.sequence) return own;
    // It has used up a number that was given to something else: what waits counts anew.
    if (this.#pending.length > 0 && this.#pending[0].sequence <= proposal.sequence) {
      this.#renumber();
    }
    return own;
  }

  /** What this node does because the map has changed. */
  #mapIsNew(): void {
    const { self } = this;
    if (self === undefined && this.#isRemoved(this.#node)) this.#endRemoved(this.#map.epoch);
    if (self === undefined) return;
    if (!this.#isIntroduced) {
      this.#isIntroduced = true;
      this.gossip.join(this.#map.nodes.map((node) => node.address));
    }
    this.#number();
    for (const [id, wish] of this.#wishes) {
      const disk = this.#map.disks.find((candidate) => candidate.id === id);
      if (disk?.lease === null) wish.askedMs = -Infinity;
    }
    this.#grantAll();
    if (self.incarnation > this.#incarnation && this.#isOurStart(self)) {
      this.#incarnation = self.incarnation;
      this.#renewedMs = -Infinity;
      this.#serveUntilMs = -Infinity;
      this.gossip.renumber(self.incarnation);
      this.#host.started(this.#node, self.incarnation);
    }
  }

  /** The incarnation in the map is that of this start, not of one before. */
  #isOurStart(self: NodeEntry): boolean {
    return this.#ownIncarnation === self.incarnation ||
      (this.#isNewcomer && self.incarnation === 1);
  }
  #ownIncarnation = 0;
  #isNewcomer = false;
  /** Gossip has been told of the nodes in the map. */
  #isIntroduced = false;

  /** This run was taken in, or has founded the cluster: incarnation 1 is its own. */
  markNewcomer(): void {
    this.#isNewcomer = true;
    this.#isUpProposed = true;
    this.#mapIsNew();
  }

  /** Proposes `node-up` at the start, and again when the map takes this node for dead. */
  #proposeUp(): void {
    const { self } = this;
    // Whoever goes is down: that others have noticed it first is no reason to come back.
    if (this.#isLeaving) return;
    if (self === undefined || this.#isUpProposed) {
      if (self === undefined || self.state === "up" || this.#isUpWaiting) return;
      if (this.#incarnation === 0) return;
    }
    const isAgain = this.#incarnation > 0;
    // Its leases go to whoever wants them as soon as the map has its next incarnation.
    if (isAgain) this.#host.renewed(-Infinity);
    this.#isUpProposed = true;
    this.#isUpWaiting = true;
    const { bootId, address, version, protocolMin, protocol, capacityBytes, name } = this.#facts;
    this.propose({
      kind: "node-up",
      node: this.#node,
      bootId,
      // Taken for dead while it ran on: it has lost nothing.
      clean: isAgain || this.#clean,
      ...(this.#torn && !isAgain && isOn(this.#map, 2) ? { torn: true } : {}),
      address,
      version,
      // A field that all have to know belongs to the level that they speak.
      protocolMin: protocolMin === 1 ? undefined : protocolMin,
      protocol,
      capacityBytes: this.#capacityBytes ?? capacityBytes,
      name,
      ...(this.#lost.length > 0 ? { lost: this.#lost } : {}),
      nowMs: this.#host.wallMs(),
    }, (result) => {
      this.#isUpWaiting = false;
      if (!result.ok) {
        const unfit = levelErrorIn(this.#map, this.#facts);
        if (unfit !== null) return this.#end(wordsOf(unfit));
        this.#isUpProposed = false;
        this.#host.log.warn("this node was not let in again", { reason: result.error.message });
        return;
      }
      this.#ownIncarnation = findNode(result.value.map, this.#node)!.incarnation;
    });
  }
  #isUpWaiting = false;
  #isLeaving = false;

  /**
   * A data path is lost: what was on it is not held here any more. To be said again until the map has taken notice.
   *
   * @param lost groups on all paths that are lost
   * @param capacityBytes of the others
   */
  loseGroups(lost: GroupBits, capacityBytes: number): void {
    this.#lost = lost;
    this.#capacityBytes = capacityBytes;
    const incarnation = this.#incarnation;
    // Before this run is in the map, its `node-up` says so.
    if (incarnation === 0 || this.#isUpWaiting) return;
    this.propose({ kind: "lose-groups", node: this.#node, incarnation, lost, capacityBytes });
  }
  #lost: GroupBits;
  #capacityBytes: number | null = null;

  // ----------------------------------------------------------------------------------------- time

  /**
   * Time passes; every 20 to 50 ms.
   *
   * @param nowMs of a clock that never goes back
   */
  tick(nowMs: number): void {
    this.#nowMs = Math.max(this.#nowMs, nowMs);
    for (const work of this.#soon.splice(0)) work();
    if (this.#isStopped) return;
    this.gossip.tick(this.#nowMs);
    this.#takeGossip();
    this.#askToJoin();
    for (const [id, ask] of this.#asks) {
      if (this.#nowMs < ask.untilMs) continue;
      this.#asks.delete(id);
      ask.done(new Map());
    }
    const raft = this.#raft;
    for (const since of [this.#downSince, this.#forcedSince, this.#toldMs]) {
      for (const [id, atMs] of since) if (Number.isNaN(atMs)) since.set(id, this.#nowMs);
    }
    for (const [id, atMs] of this.#forcedSince) {
      if (this.#nowMs - atMs >= GRANT_MS) this.#forcedSince.delete(id);
    }
    if (this.isLeader && Number.isNaN(this.#ledSince)) this.#ledSince = this.#nowMs;
    if (raft === null) return;
    raft.tick(this.#nowMs);
    this.#lookForLeader();
    this.#lookAtOwnLog(raft);
    this.#proposeUp();
    if (this.#nowMs - this.#dutiesMs >= DUTIES_MS) {
      this.#dutiesMs = this.#nowMs;
      this.#lead();
      this.#compact();
    }
    this.#sendWishes();
    this.#renew();
    this.#sendProposals();
    this.#pump();
  }

  /** After a start, nobody knows yet that this node is back: whoever it speaks to does. */
  #lookForLeader(): void {
    if (this.#raft!.leader !== 0 || this.#nowMs - this.#lookedMs < LOOK_MS) return;
    this.#lookedMs = this.#nowMs;
    for (const voter of this.#map.voters) {
      if (voter !== this.#node) {
        this.#send(this.#addressOf(voter), { kind: ControlKind.Ask, id: 0 });
      }
    }
  }
  #lookedMs = -Infinity;

  /** Nothing that the cluster decides gets here any more: said once per term, and shown in every status. */
  #lookAtOwnLog({ hasOtherLog, term, leader }: Raft): void {
    if (!hasOtherLog || this.#otherLogTerm === term) return;
    this.#otherLogTerm = term;
    this.#host.log.error(
      "this node has another log of consensus than its cluster, and takes no part any more: take it out, and start it " +
        "with an empty store ('kelpie status' says how)",
      { leader: findNode(this.#map, leader)?.name ?? leader, term },
    );
  }
  #otherLogTerm = 0;

  /** What a leader looks after. */
  #lead(): void {
    const raft = this.#raft!;
    // What is decided from a map that is not the newest is refused when it is applied.
    if (raft.role !== "leader") return;
    if (this.#persists.length > 0 && this.#nowMs - this.#persists[0].sinceMs >= PERSIST_MS_MAX) {
      // Whoever could not take over is not tried again at once: proposals wait meanwhile.
      if (this.#nowMs - this.#handedOverMs < HAND_OVER_MS) return;
      this.#handedOverMs = this.#nowMs;
      this.#host.log.error("this node's store does not keep up: somebody else shall lead");
      return this.handOver();
    }
    this.#grantAll();
    if (this.#pending.some(({ isDuty }) => isDuty)) return;
    const members = new Map<string, MemberView>();
    for (const member of this.gossip.members()) members.set(member.uuid, member);
    const reports = this.#validReports();
    const decided = this.#duties.look({
      map: this.#map,
      self: this.#node,
      raft: raft.status(),
      nowMs: this.#nowMs,
      wallMs: this.#host.wallMs(),
      members,
      reports,
    });
    for (const note of decided.notes) this.#host.log.warn(note);
    for (const command of decided.commands) this.#propose(command, () => {}, true);
    if (decided.config !== null) {
      const refused = raft.proposeConfig(decided.config);
      if (!refused.ok && refused.reason === "invalid") {
        this.#host.log.warn("a change of the voters was refused", { reason: refused.message });
      }
    }
    if (decided.transferTo !== 0) raft.transferLeadership(decided.transferTo);
  }

  #handedOverMs = -Infinity;

  #compact(): void {
    const status = this.#raft!.status();
    if (!status.isCompactionDue || status.applied === 0) return;
    const encoded = this.#encode();
    if (!encoded.ok) {
      this.#host.log.error("the cluster map is too large", { reason: encoded.error.message });
      return;
    }
    this.#raft!.compact(status.applied, encoded.value);
  }

  // ------------------------------------------------------------------------------------------ end

  /** Tells others that this node goes; `done` when it is in the map, or cannot be. */
  leave(done: () => void): void {
    this.#isLeaving = true;
    this.gossip.leave(this.#nowMs);
    const others = this.#map.nodes.some((node) => node.id !== this.#node && node.state === "up");
    if (this.#incarnation === 0 || !others) return void this.#soon.push(done);
    this.propose({
      kind: "node-leave",
      node: this.#node,
      incarnation: this.#incarnation,
      nowMs: this.#host.wallMs(),
    }, done);
  }

  /** Hands leadership over, if there is somebody to take it. */
  handOver(): void {
    const status = this.#raft?.status();
    if (status?.role !== "leader") return;
    const best = status.members
      .filter((member) => !member.isLearner && member.silentMs < 1000)
      .toSorted((a, b) => b.match - a.match)[0];
    if (best !== undefined) this.#raft!.transferLeadership(best.node);
    this.#pump();
  }

  /** Nothing more happens; waiting proposals fail. */
  stop(): void {
    this.#isStopped = true;
    const error: ControlError = { code: "unavailable", message: "the agent is stopping" };
    for (const { done } of this.#pending.splice(0)) done({ ok: false, error });
  }

  /** What this node tells others about itself. */
  updateMeta(facts: NodeFacts, freeBytes: number): void {
    this.#facts = facts;
    this.gossip.update(metaOf(facts, freeBytes));
  }
}

/** An error for people, with what to do about it. */
function wordsOf({ message, hint }: ControlError): string {
  return hint === undefined ? message : `${message}; ${hint}`;
}

function metaOf(facts: NodeFacts, freeBytes: number): MemberMeta {
  return {
    name: facts.name,
    zone: facts.zone,
    version: facts.version,
    protocol: facts.protocol,
    capacityBytes: facts.capacityBytes,
    freeBytes,
    flags: facts.witness ? 1 : 0,
  };
}
