/**
 * Consensus: one node of a Raft group, as a machine.
 *
 *     step(message) ─┐                        ┌─► messages, persist, snapshot, committed, reads
 *     tick(now)      ├─► Raft ──► ready() ────┤   (order and meaning: ready.ts)
 *     propose(data)  │                        │
 *     persisted(t) ──┘ ◄── later, in order ───┘
 *
 * After D. Ongaro, "Consensus: Bridging Theory and Practice" (2014): elections (3.4), with an
 * enquiry before the vote (9.6) and followers that stick to a leader that they hear (4.2.3),
 * leaders that step down without a majority (6.2), replication (3.5), single-server changes of the
 * configuration (4.1, with the correction of 2015: only after an entry of the own term is
 * committed), snapshots (5), reads (6.4), transfer of leadership (3.10). What it promises, and what
 * it relies on:
 *
 * - One leader per term; a committed entry is never lost or replaced; nodes apply the same entries
 *   in the same order; a read sees all that was committed before it was asked for.
 * - **Nothing is said before it is durable**: votes, requests for votes and acknowledgements wait
 *   for the persist of all that was in memory when they were made. A request for a vote waits as
 *   well, because a grant that arrives after a crash must not be taken for a log that the crash has
 *   shortened. Only entries, heartbeats and enquiries go at once: they promise nothing. A leader
 *   counts itself for an entry only when it is durable at home.
 * - Messages may be lost, repeated, reordered and arbitrarily late; forged they may not be (peers
 *   are authenticated).
 * - **A node that has lost its disk, or an older copy of it, must not come back under its id**: it
 *   would have forgotten votes and entries that others count on. Who guarantees it: node ids are
 *   given by the map, each once (`nextNode`), to a node uuid, which is made together with the store
 *   and kept in its superblocks. A new store has a new uuid and so gets a new id, and `storage.ts`
 *   refuses state of another id. Copying stores about is the one thing that the user must not do.
 * - **A node whose store lost the newest part of its log, and comes back**, is the case of this that
 *   its own disk can bring about (store/replay.ts). Nobody is safe from it before it is noticed: until
 *   then it may vote for somebody who lacks what it had acknowledged, or twice in a term. A leader that
 *   had its acknowledgements notices (progress.ts), in term t. It sends again what the node lacks, which
 *   only makes things better. But nothing that the node says counts, no acknowledgement for a commit and
 *   no confirmation for a read, until entry e, which the leader makes then, is so widespread that no
 *   majority of voters with the node in it is without another holder of e. From then on what the node
 *   had promised is kept by others or void, and it is a voter like any other:
 *
 *   - *Acknowledgements.* Holders of e hold all that came before, so nobody is elected who lacks it.
 *   - *Votes in terms up to t.* It votes in no such term again: it has entered t, and whoever follows a
 *     leader without having voted notes that leader as its vote.
 *   - *A vote in a term T > t, forgotten.* It was given before e was made, so to a candidate without e.
 *     Its majority would have to have another holder of e in it, which can have voted in T only after it
 *     took e (in T it takes nothing of t's), and then it refuses who lacks e. So nobody wins T with the
 *     forgotten vote, and another vote in T does no harm.
 *
 *   "Majority" is that of the newest configuration, and that of the one before while the newest is not
 *   committed: so a voter is better demoted before it is removed, since a node that is removed gets no
 *   e, and a leader that waits for it waits for ever. A leader that has not noticed, because it leads only since, takes the node for one that
 *   lags behind.
 * - A follower believes a commit index only as far as it has compared its log with this term's leader in
 *   this life: the leader may go by what an earlier life had acknowledged.
 * - Time stands still between ticks and needs to be right for progress only, never for safety.
 *
 * A message that contradicts what is committed here can only come from a cluster that was recovered
 * without this node (`recover.ts`), or after a voter lost what it had promised. It is not obeyed, and
 * counted as `contradictions`: such a node must join anew, with an empty store. Messages of older terms
 * are not looked at, and each term has one leader: so a single one that contradicts says that the leader
 * of this term has another log, whatever comes later (`hasOtherLog`). In the next term it is found out
 * again.
 *
 * @module
 */

import { type Result, success } from "../map/errors.ts";
import type { Random } from "../platform/platform.ts";
import { crc32c } from "./checksum.ts";
import {
  changeConfiguration,
  type Configuration,
  type ConfigurationChange,
  encodeConfiguration,
  isNodeId,
  majorityOf,
  quorumValue,
} from "./configuration.ts";
import {
  APPEND_BYTES_MAX,
  APPLY_BYTES_MAX,
  CAUGHT_UP_ENTRIES,
  COMPACT_BYTES,
  COMPACT_ENTRIES,
  ELECTION_MS_MAX,
  ELECTION_MS_MIN,
  ENTRY_BYTES_MAX,
  HEARTBEAT_MS,
  LEARNER_HEARTBEAT_MS,
  LEARNER_SILENCE_MS,
  LOG_BYTES_MAX,
  LOG_ENTRIES_MAX,
  MESSAGES_MAX,
  PERSISTS_MAX,
  QUORUM_MS,
  SNAPSHOT_BYTES_MAX,
  SNAPSHOT_PART_BYTES_MAX,
  SNAPSHOT_RETRY_MS,
  STANDS_MAX,
  TRANSFER_MS,
  UNCOMMITTED_BYTES_MAX,
  UNCOMMITTED_ENTRIES_MAX,
} from "./limits.ts";
import {
  EMPTY_SNAPSHOT,
  type Entry,
  ENTRY_CONFIGURATION,
  ENTRY_DATA,
  ENTRY_EMPTY,
  entryBytes,
  type EntryKind,
  RaftLog,
  type Snapshot,
} from "./log.ts";
import type {
  AppendMessage,
  AppendResponse,
  HeartbeatMessage,
  HeartbeatResponse,
  Message,
  SnapshotMessage,
  SnapshotResponse,
  VoteMessage,
  VoteResponse,
} from "./messages.ts";
import { Progress } from "./progress.ts";
import { Reads } from "./reads.ts";
import type {
  Persist,
  Proposed,
  RaftState,
  RaftStatus,
  Ready,
  Refusal,
  RefusalReason,
  Role,
} from "./ready.ts";
import { SnapshotReceiver } from "./snapshot_receiver.ts";

/** What a {@linkcode Raft} is made from. */
export interface RaftOptions {
  /** This node, 1…65535. */
  readonly id: number;
  /** As it is durable: from `RaftStorage.load`. */
  readonly state: RaftState;
  /** For the times of elections. */
  readonly random: Random;
  /** Now; never falls. */
  readonly nowMs: number;
}

/** A message without what every message has. */
type Body<M extends Message = Message> = M extends Message ? Omit<M, "from" | "to" | "term">
  : never;

/** A persist under way. */
interface PersistUnderWay {
  readonly token: number;
  /** Term in which the vote for oneself is durable with it; 0: none. */
  readonly candidacy: number;
}

/**
 * One node of a Raft group; see the file's head.
 *
 * @example A cluster of one leads as soon as its vote is durable.
 * ```ts
 * import { Prng } from "../base/prng.ts";
 * import { Raft } from "./raft.ts";
 *
 * const raft = new Raft({ id: 1, state: Raft.bootstrap(1), random: new Prng(1), nowMs: 0 });
 * for (let ready = raft.ready(); ready !== null; ready = raft.ready()) {
 *   if (ready.persist !== null) raft.persisted(ready.persist.token);
 * }
 * console.assert(raft.status().role === "leader");
 * console.assert(raft.propose(new Uint8Array([7])).ok);
 * ```
 */
export class Raft {
  readonly #id: number;
  readonly #random: Random;
  readonly #log: RaftLog;
  #nowMs: number;

  #term: number;
  #vote: number;
  #role: Role = "follower";
  /** 0: unknown. */
  #leader = 0;
  /** When the leader was last heard. */
  #leaderHeardMs = Number.NEGATIVE_INFINITY;
  #electionMs = 0;
  /** Times that this node has stood since it heard of a leader. */
  #stands = 0;

  /** Candidates: who has answered, and how. */
  readonly #votes = new Map<number, boolean>();

  /** Leaders: the other members. */
  readonly #members = new Map<number, Progress>();
  /** Leaders: index of the first entry of the term. */
  #termStart = 0;
  #uncommittedBytes = 0;
  #transferTo = 0;
  #transferEndMs = 0;
  readonly #reads = new Reads();
  /** Checksum of the newest snapshot that was sent. */
  #checksum: { snapshot: Snapshot; value: number } | null = null;

  readonly #receiver = new SnapshotReceiver();
  #isHardStateDirty = false;
  /** A snapshot that no persist has been given yet. */
  #snapshotToPersist: Snapshot | null = null;
  #isLogReplaced = false;
  /** A snapshot for the state machine, once it is durable. */
  #snapshotToApply: Snapshot | null = null;
  #applied = 0;
  #token = 0;
  readonly #persists: PersistUnderWay[] = [];
  /** May go at once. */
  #messages: Message[] = [];
  /** Wait for the next persist. */
  #held: Message[] = [];
  #contradictions = 0;
  /** The last term whose leader contradicted what is committed here; -1: none did. */
  #contradictedTerm = -1;
  /**
   * Last index up to which this log is known to be that of this term's leader: what it has accepted
   * in this life. Below `commit` that goes without saying.
   */
  #agreed = 0;

  constructor(options: RaftOptions) {
    const { id, state } = options;
    if (!isNodeId(id)) throw new RangeError(`raft: ${id} is no node id`);
    this.#id = id;
    this.#random = options.random;
    this.#nowMs = options.nowMs;
    this.#term = state.term;
    this.#vote = state.vote;
    this.#log = new RaftLog(state.snapshot, state.entries, state.commit);
    if (state.snapshot.index > 0) this.#snapshotToApply = state.snapshot;
    this.#drawElection();
    if (this.#isAlone()) this.#stand(false);
  }

  /**
   * The state of a new cluster of one.
   *
   * @param id the one node
   * @param data state to begin with, as from {@linkcode compact}; without it the state machine
   * begins with nothing
   */
  static bootstrap(id: number, data?: Uint8Array): RaftState {
    const configuration: Configuration = { voters: [id], learners: [] };
    if (data !== undefined) {
      const snapshot = { index: 1, term: 1, configuration, data };
      return { term: 1, vote: 0, snapshot, entries: [], commit: 1 };
    }
    const entry: Entry = {
      index: 1,
      term: 1,
      kind: ENTRY_CONFIGURATION,
      data: encodeConfiguration(configuration),
    };
    return { term: 1, vote: 0, snapshot: EMPTY_SNAPSHOT, entries: [entry], commit: 1 };
  }

  /** The state of a node that is to join: it knows nothing and takes what a leader sends. */
  static joining(): RaftState {
    return { term: 0, vote: 0, snapshot: EMPTY_SNAPSHOT, entries: [], commit: 0 };
  }

  // ── What the caller says ───────────────────────────────────────────────────────────────────────

  /**
   * Takes a message from a peer.
   *
   * @param message passed `decodeMessage`; anything that does not fit is ignored
   */
  step(message: Message): void {
    if (message.to !== this.#id || message.from === this.#id) return;
    if (this.#role === "leader" && isResponse(message) && !this.#members.has(message.from)) return;
    if (message.term > this.#term && !this.#meetHigherTerm(message)) return;
    if (message.term < this.#term) {
      this.#answerLowerTerm(message);
      return;
    }
    switch (message.kind) {
      case "vote":
        return this.#stepVote(message);
      case "vote-response":
        return this.#stepVoteResponse(message);
      case "append":
        if (this.#follow(message.from)) this.#stepAppend(message);
        return;
      case "heartbeat":
        if (this.#follow(message.from)) this.#stepHeartbeat(message);
        return;
      case "snapshot":
        if (this.#follow(message.from)) this.#stepSnapshot(message);
        return;
      case "timeout-now":
        if (message.from === this.#leader && this.#mayStand()) this.#stand(true);
        return;
      case "append-response":
      case "heartbeat-response":
      case "snapshot-response":
        if (this.#role === "leader") this.#stepResponse(message);
        return;
    }
  }

  /**
   * Lets time pass. Every 20 to 50 ms is often enough.
   *
   * @param nowMs of a clock that never falls; an earlier time than before is ignored
   */
  tick(nowMs: number): void {
    this.#nowMs = Math.max(this.#nowMs, nowMs);
    if (this.#role === "leader") {
      this.#tickLeader();
    } else if (this.#nowMs >= this.#electionMs) {
      this.#drawElection();
      if (this.#mayStand()) {
        // Nothing that it could say would be heard before that is durable; and whoever it has voted for, itself or not, waits for it.
        if (this.#persists.length === 0) this.#enquire();
        else this.#leader = 0;
      } else if (this.#nowMs - this.#leaderHeardMs >= LEARNER_SILENCE_MS) this.#leader = 0;
    }
  }

  /**
   * Proposes an entry. It is committed once `ready()` hands it out with the same index and term; an
   * entry with that index and another term means that it never will be.
   *
   * @param data up to `ENTRY_BYTES_MAX` bytes; belongs to the log from now on
   */
  propose(data: Uint8Array): Proposed | Refusal {
    if (data.length > ENTRY_BYTES_MAX) {
      return this.#refuse("too-large", `${data.length} bytes, up to ${ENTRY_BYTES_MAX}`);
    }
    return this.#refusal(data.length) ?? this.#append(ENTRY_DATA, data);
  }

  /**
   * Proposes a change of the configuration. It takes effect at once where the entry arrives and is
   * for good once the entry is committed; then a leader that is no voter any more steps down.
   */
  proposeConfig(change: ConfigurationChange): Proposed | Refusal {
    const refusal = this.#refusal(0) ?? this.#changeRefusal(change);
    if (refusal !== null) return refusal;
    const changed = changeConfiguration(this.#log.configuration, change);
    if (!changed.ok) return this.#refuse("invalid", changed.error.message);
    const proposed = this.#append(ENTRY_CONFIGURATION, encodeConfiguration(changed.value));
    this.#configurationChanged();
    return proposed;
  }

  /**
   * Asks for an index at which the state machine may answer; see `reads.ts`. The answer comes with
   * `ready()`.
   *
   * @param context of the caller's own, comes back with the answer
   * @returns null, or why there will be no answer
   */
  readIndex(context: number): Refusal | null {
    if (this.#role !== "leader") return this.#refuse("not-leader", "this node does not lead");
    if (this.#reads.isFull) return this.#refuse("full", "too many reads are waiting");
    this.#reads.add(context);
    this.#beginReads();
    return null;
  }

  /**
   * Hands leadership over to another voter, which must first have all entries; proposals are
   * refused meanwhile. It may fail, after `TRANSFER_MS` for good, counted
   * from when this node was asked first.
   *
   * @returns null, or why not
   */
  transferLeadership(to: number): Refusal | null {
    if (this.#role !== "leader") return this.#refuse("not-leader", "this node does not lead");
    if (to === this.#id || !this.#log.configuration.voters.includes(to)) {
      return this.#refuse("invalid", `node ${to} is no other voter`);
    }
    // Asked again and again it would never end, and nothing could be proposed.
    if (to === this.#transferTo) return null;
    this.#transferTo = to;
    this.#transferEndMs = this.#nowMs + TRANSFER_MS;
    this.#continueTransfer();
    return null;
  }

  /**
   * Puts a snapshot in the place of the log up to an index. Durable with one of the next persists.
   *
   * @param index handed out to be applied, above the last snapshot's
   * @param data the state machine after it applied `index`; up to `SNAPSHOT_BYTES_MAX` bytes;
   * belongs to the log from now on
   */
  compact(index: number, data: Uint8Array): Result<void> {
    const isInLog = Number.isInteger(index) && index > this.#log.snapshot.index &&
      index <= this.#applied;
    if (!isInLog || data.length > SNAPSHOT_BYTES_MAX) {
      const message = isInLog
        ? `a snapshot has ${data.length} bytes, and ${SNAPSHOT_BYTES_MAX} is the most`
        : `there can be no snapshot at ${index}: ${this.#log.snapshot.index} is compacted, ` +
          `${this.#applied} applied`;
      return { ok: false, error: { code: isInLog ? "limit" : "invalid", message } };
    }
    const snapshot: Snapshot = {
      index,
      term: this.#log.termOf(index)!,
      configuration: this.#log.configurationAt(index),
      data,
    };
    this.#log.compact(snapshot);
    this.#snapshotToPersist = snapshot;
    return success(undefined);
  }

  /**
   * A persist is durable. Then its messages may be sent, and there may be more that is ready.
   *
   * @param token of the oldest persist that is under way
   */
  persisted(token: number): void {
    const persist = this.#persists.shift();
    if (persist?.token !== token) {
      throw new Error(`raft: persist ${token} is done, but ${persist?.token ?? "none"} is next`);
    }
    this.#log.persisted();
    if (this.#role === "leader") {
      this.#trustAgain();
      this.#advanceCommit();
    }
    if (this.#role === "candidate" && persist.candidacy === this.#term) {
      this.#votes.set(this.#id, true);
      // The others are asked only now.
      this.#waitForVotes();
      this.#countVotes();
    }
  }

  /**
   * What is to be done now; see `ready.ts`. Call it after anything else, until it returns null.
   */
  ready(): Ready | null {
    if (this.#role === "leader") this.#sendAppends();
    const persist = this.#takePersist();
    const messages = this.#messages;
    this.#messages = [];
    const snapshot = this.#takeSnapshot();
    const committed = this.#takeCommitted();
    const reads = this.#reads.take(this.#applied);
    const isEmpty = messages.length === 0 && persist === null && snapshot === null &&
      committed.length === 0 && reads.length === 0;
    return isEmpty ? null : { messages, persist, snapshot, committed, reads };
  }

  /** What this node is in its term. */
  get role(): Role {
    return this.#role;
  }

  /** The term that it is in. */
  get term(): number {
    return this.#term;
  }

  /** The leader of the term; 0: unknown. */
  get leader(): number {
    return this.#leader;
  }

  /** Whether this term's leader has another log than this node; see {@linkcode RaftStatus.hasOtherLog}. */
  get hasOtherLog(): boolean {
    return this.#contradictedTerm === this.#term;
  }

  /** Index of the last entry that was handed out to be applied. */
  get applied(): number {
    return this.#applied;
  }

  /** Index of the last entry of the log. */
  get lastIndex(): number {
    return this.#log.lastIndex;
  }

  /** Who votes, by the newest entry that says so. */
  get configuration(): Configuration {
    return this.#log.configuration;
  }

  /** All of it, for metrics and people; a leader's costs something for every member. */
  status(): RaftStatus {
    const log = this.#log;
    const isLeader = this.#role === "leader";
    return {
      id: this.#id,
      role: this.#role,
      term: this.#term,
      leader: this.#leader,
      commit: log.commit,
      applied: this.#applied,
      lastIndex: log.lastIndex,
      durable: log.durable,
      snapshotIndex: log.snapshot.index,
      logBytes: log.bytes,
      configuration: log.configuration,
      configurationIndex: log.configurationIndex,
      members: isLeader ? [...this.#members].map(([node, each]) => this.#describe(node, each)) : [],
      isCompactionDue: this.#applied - log.snapshot.index >= COMPACT_ENTRIES ||
        (log.bytes >= COMPACT_BYTES && this.#applied > log.snapshot.index),
      contradictions: this.#contradictions,
      hasOtherLog: this.hasOtherLog,
    };
  }

  #describe(node: number, progress: Progress): RaftStatus["members"][number] {
    return {
      node,
      isLearner: progress.isLearner,
      state: progress.state,
      match: progress.match,
      silentMs: this.#nowMs - progress.heardMs,
      snapshotBytes: progress.transfer?.offset ?? 0,
      hasLostLog: progress.isDistrusted,
    };
  }

  // ── Terms and roles ────────────────────────────────────────────────────────────────────────────

  /** @returns whether the message is still of interest */
  #meetHigherTerm(message: Message): boolean {
    if (message.kind === "vote") {
      if (!message.isTransfer && this.#isSticky()) return false;
      // An enquiry names a term that nobody has entered yet.
      if (message.isPre) {
        this.#answerEnquiry(message);
        return false;
      }
    }
    if (message.kind === "vote-response" && message.isPre && message.isGranted) {
      if (this.#role === "pre-candidate" && message.term === this.#term + 1) {
        this.#votes.set(message.from, true);
        this.#countVotes();
      }
      return false;
    }
    this.#becomeFollower(message.term, isLeaders(message) ? message.from : 0);
    return true;
  }

  #answerLowerTerm(message: Message): void {
    // Lets a leader that was away know, or a node that enquires without knowing the term.
    if (isLeaders(message)) {
      const { commit } = this.#log;
      this.#hold(message.from, {
        kind: "append-response",
        index: commit,
        isRejected: true,
        agreedIndex: commit,
        agreedTerm: 0,
      });
    } else if (message.kind === "vote" && message.isPre) {
      this.#hold(message.from, { kind: "vote-response", isPre: true, isGranted: false });
    }
  }

  /** Has this node a leader that it should not help to replace? */
  #isSticky(): boolean {
    return this.#role === "leader" ||
      (this.#leader !== 0 && this.#nowMs - this.#leaderHeardMs < ELECTION_MS_MIN);
  }

  #isVoter(): boolean {
    return this.#log.configuration.voters.includes(this.#id);
  }

  /**
   * May this node stand for election? A voter may; and one that is none any more by an entry that
   * is not committed: it may be the only one that has the entry, and then nobody else could win
   * (4.2.2).
   */
  #mayStand(): boolean {
    if (this.#isVoter()) return true;
    const log = this.#log;
    return log.configurationIndex > log.commit &&
      log.configurationBefore.voters.includes(this.#id);
  }

  #isAlone(): boolean {
    return this.#isVoter() && this.#log.configuration.voters.length === 1;
  }

  #drawElection(): void {
    const spread = ELECTION_MS_MAX - ELECTION_MS_MIN;
    this.#electionMs = this.#nowMs + ELECTION_MS_MIN + this.#random.u32() % (spread + 1);
  }

  /** Votes are durable before they are told: however long that takes, one of the next candidacies lasts for longer. */
  #waitForVotes(): void {
    const times = 2 ** Math.min(this.#stands - 1, STANDS_MAX);
    this.#electionMs = Math.max(this.#electionMs, this.#nowMs + ELECTION_MS_MIN * times);
  }

  #becomeFollower(term: number, leader: number): void {
    if (term !== this.#term) {
      this.#term = term;
      this.#vote = 0;
      this.#agreed = 0;
      this.#isHardStateDirty = true;
    }
    this.#role = "follower";
    this.#leader = leader;
    if (leader !== 0) this.#leaderHeardMs = this.#nowMs;
    this.#votes.clear();
    this.#members.clear();
    this.#transferTo = 0;
    this.#reads.reset();
    this.#drawElection();
  }

  /**
   * Hears a leader of this term.
   *
   * @returns false where it cannot be one
   */
  #follow(from: number): boolean {
    if (this.#role === "leader") return false;
    if (this.#leader !== 0 && this.#leader !== from) return false;
    if (this.#role !== "follower" || this.#leader === 0) this.#becomeFollower(this.#term, from);
    this.#stands = 0;
    if (this.#vote === 0) {
      // It has been elected: another vote could only be for one that was not.
      this.#vote = from;
      this.#isHardStateDirty = true;
    }
    this.#leaderHeardMs = this.#nowMs;
    this.#drawElection();
    return true;
  }

  // ── Elections ──────────────────────────────────────────────────────────────────────────────────

  /** Asks whether there would be a majority, without disturbing anybody. */
  #enquire(): void {
    this.#role = "pre-candidate";
    this.#leader = 0;
    this.#votes.clear();
    this.#votes.set(this.#id, true);
    const { lastIndex, lastTerm } = this.#log;
    this.#toVoters((to) => {
      const term = this.#term + 1;
      const body = { kind: "vote", isPre: true, isTransfer: false, lastIndex, lastTerm } as const;
      this.#push(this.#messages, { ...body, from: this.#id, to, term });
    });
    this.#countVotes();
  }

  /** Stands for election in the next term. */
  #stand(isTransfer: boolean): void {
    this.#becomeFollower(this.#term + 1, 0);
    this.#role = "candidate";
    this.#stands++;
    // Counted when it is durable, in `persisted`.
    this.#vote = this.#id;
    const { lastIndex, lastTerm } = this.#log;
    this.#toVoters((to) => {
      this.#hold(to, { kind: "vote", isPre: false, isTransfer, lastIndex, lastTerm });
    });
  }

  #toVoters(send: (to: number) => void): void {
    for (const voter of this.#log.configuration.voters) {
      if (voter !== this.#id) send(voter);
    }
  }

  #answerEnquiry(message: VoteMessage): void {
    const isGranted = this.#log.isUpToDate(message.lastIndex, message.lastTerm);
    // A grant promises nothing, so it need not wait; it carries the term that was asked about.
    const term = isGranted ? message.term : this.#term;
    if (term === 0) return;
    this.#push(this.#messages, {
      kind: "vote-response",
      isPre: true,
      isGranted,
      from: this.#id,
      to: message.from,
      term,
    });
  }

  /** A request of this very term; an enquiry of this term comes from one that lags behind. */
  #stepVote(message: VoteMessage): void {
    const { isPre } = message;
    const isFree = this.#vote === message.from || (this.#vote === 0 && this.#leader === 0);
    const isGranted = !isPre && isFree &&
      this.#log.isUpToDate(message.lastIndex, message.lastTerm);
    if (isGranted) {
      if (this.#vote === 0) this.#isHardStateDirty = true;
      this.#vote = message.from;
      this.#drawElection();
    }
    this.#hold(message.from, { kind: "vote-response", isPre, isGranted });
  }

  #stepVoteResponse(message: VoteResponse): void {
    const isAsked = message.isPre
      ? this.#role === "pre-candidate" && !message.isGranted
      : this.#role === "candidate";
    // An old answer of a voter never takes back another: grants of a term are for good.
    if (!isAsked || this.#votes.get(message.from) === true) return;
    this.#votes.set(message.from, message.isGranted);
    this.#countVotes();
  }

  #countVotes(): void {
    const { voters } = this.#log.configuration;
    const majority = majorityOf(voters.length);
    const granted = voters.filter((voter) => this.#votes.get(voter) === true).length;
    const refused = voters.filter((voter) => this.#votes.get(voter) === false).length;
    if (granted >= majority) {
      if (this.#role === "pre-candidate") this.#stand(false);
      else this.#becomeLeader();
    } else if (refused > voters.length - majority) {
      this.#becomeFollower(this.#term, 0);
    }
  }

  #becomeLeader(): void {
    this.#role = "leader";
    this.#stands = 0;
    this.#leader = this.#id;
    this.#votes.clear();
    this.#reads.reset();
    const { commit, lastIndex } = this.#log;
    this.#uncommittedBytes = this.#log.bytesOf(commit + 1, lastIndex);
    this.#termStart = lastIndex + 1;
    this.#configurationChanged();
    // Going out at once, it says as well who leads.
    this.#append(ENTRY_EMPTY, new Uint8Array(0));
  }

  // ── Followers ──────────────────────────────────────────────────────────────────────────────────

  #stepAppend(message: AppendMessage): void {
    const { prevIndex, prevTerm, entries, from } = message;
    const log = this.#log;
    const knownTerm = log.termOf(prevIndex);
    if (prevIndex <= log.commit) {
      if (knownTerm !== null && knownTerm !== prevTerm) return this.#contradicted();
    } else if (knownTerm !== prevTerm) {
      this.#rejectAppend(message);
      return;
    }
    if (entries.length > 0 && this.#isLogFull()) return;
    // Where the log begins after prevIndex, what is between is committed, hence the same.
    if (!log.accept(entries)) return this.#contradicted();
    this.#configurationChanged();
    const last = Math.max(log.commit, prevIndex + entries.length);
    this.#agreed = Math.max(this.#agreed, last);
    log.commitTo(Math.min(message.commit, last));
    this.#receiver.passed(log.commit);
    this.#holdAccepted(from, last);
  }

  /** What this term's leader has is not what is committed here. */
  #contradicted(): void {
    this.#contradictions++;
    this.#contradictedTerm = this.#term;
  }

  #rejectAppend(message: AppendMessage): void {
    const { prevIndex, prevTerm, from } = message;
    this.#holdRejected(from, prevIndex, this.#log.findAgreement(prevIndex - 1, prevTerm));
  }

  #holdRejected(to: number, index: number, agreedIndex: number): void {
    const agreedTerm = this.#log.termOf(agreedIndex) ?? 0;
    this.#hold(to, { kind: "append-response", index, isRejected: true, agreedIndex, agreedTerm });
  }

  #holdAccepted(to: number, index: number): void {
    this.#hold(to, {
      kind: "append-response",
      index,
      isRejected: false,
      agreedIndex: 0,
      agreedTerm: 0,
    });
  }

  #stepHeartbeat(message: HeartbeatMessage): void {
    const { commit, round, from } = message;
    const agreed = Math.max(this.#agreed, this.#log.commit);
    this.#log.commitTo(Math.min(commit, agreed));
    this.#send(from, { kind: "heartbeat-response", round });
    // Acknowledged in an earlier life, or so the leader says. What is here in its place is another matter.
    if (commit > agreed) this.#holdRejected(from, commit, agreed);
  }

  #stepSnapshot(message: SnapshotMessage): void {
    const { index, snapshotTerm, from } = message;
    const log = this.#log;
    if (index <= log.commit || log.termOf(index) === snapshotTerm) {
      this.#agreed = Math.max(this.#agreed, index);
      log.commitTo(index);
      this.#receiver.passed(log.commit);
      this.#holdAccepted(from, Math.max(index, log.commit));
      return;
    }
    const received = this.#receiver.receive(message);
    if (received === null) return;
    if (received.snapshot === null) {
      const { offset } = received;
      this.#send(from, { kind: "snapshot-response", index, snapshotTerm, offset });
      return;
    }
    log.restore(received.snapshot);
    this.#snapshotToPersist = received.snapshot;
    this.#isLogReplaced = true;
    this.#snapshotToApply = received.snapshot;
    this.#configurationChanged();
    this.#holdAccepted(from, index);
  }

  // ── Leaders ────────────────────────────────────────────────────────────────────────────────────

  #refuse(reason: RefusalReason, message: string): Refusal {
    return { ok: false, reason, message, leader: this.#leader };
  }

  #isLogFull(): boolean {
    const count = this.#log.lastIndex - this.#log.snapshot.index;
    return count >= LOG_ENTRIES_MAX || this.#log.bytes >= LOG_BYTES_MAX;
  }

  /** Why nothing can be proposed; null: it can. */
  #refusal(bytes: number): Refusal | null {
    if (this.#role !== "leader") return this.#refuse("not-leader", "this node does not lead");
    if (this.#transferTo !== 0) {
      return this.#refuse("transferring", `node ${this.#transferTo} is about to lead`);
    }
    if (this.#isLogFull()) return this.#refuse("log-full", "the log must be compacted first");
    const { lastIndex, commit } = this.#log;
    const isFull = lastIndex - commit >= UNCOMMITTED_ENTRIES_MAX ||
      this.#uncommittedBytes + bytes > UNCOMMITTED_BYTES_MAX;
    return isFull ? this.#refuse("full", `${lastIndex - commit} entries are uncommitted`) : null;
  }

  #changeRefusal(change: ConfigurationChange): Refusal | null {
    const { commit, lastIndex, configurationIndex } = this.#log;
    if (commit < this.#termStart) {
      return this.#refuse("term-uncommitted", "no entry of this term is committed yet");
    }
    if (configurationIndex > commit) {
      return this.#refuse("change-pending", "the last change is not committed yet");
    }
    const progress = this.#members.get(change.node);
    const isBehind = change.kind === "promote" && progress !== undefined &&
      (progress.state !== "replicate" || progress.match + CAUGHT_UP_ENTRIES < lastIndex ||
        this.#nowMs - progress.heardMs > QUORUM_MS);
    return isBehind
      ? this.#refuse("not-caught-up", `node ${change.node} is at ${progress.match} of ${lastIndex}`)
      : null;
  }

  #append(kind: EntryKind, data: Uint8Array): Proposed {
    const entry: Entry = { index: this.#log.lastIndex + 1, term: this.#term, kind, data };
    this.#log.append([entry]);
    this.#uncommittedBytes += entryBytes(entry);
    return { ok: true, index: entry.index, term: entry.term };
  }

  /** The log's newest configuration may be another one than before. */
  #configurationChanged(): void {
    const { voters, learners } = this.#log.configuration;
    if (this.#role !== "leader") {
      const isStanding = this.#role === "candidate" || this.#role === "pre-candidate";
      if (isStanding && !this.#mayStand()) this.#becomeFollower(this.#term, 0);
      return;
    }
    const members = new Set([...voters, ...learners]);
    members.delete(this.#id);
    for (const node of this.#members.keys()) {
      if (!members.has(node)) this.#members.delete(node);
    }
    for (const node of members) {
      const isLearner = !voters.includes(node);
      const progress = this.#members.get(node);
      if (progress === undefined) {
        this.#members.set(node, new Progress(this.#log.lastIndex + 1, this.#nowMs, isLearner));
      } else {
        progress.isLearner = isLearner;
        if (isLearner) progress.trustedFrom = 0;
      }
    }
    if (!voters.includes(this.#transferTo)) this.#transferTo = 0;
  }

  #tickLeader(): void {
    if (!this.#hasQuorum()) {
      this.#becomeFollower(this.#term, 0);
      return;
    }
    if (this.#transferTo !== 0 && this.#nowMs >= this.#transferEndMs) this.#transferTo = 0;
    this.#beat();
    for (const [node, { transfer }] of this.#members) {
      if (transfer === null || this.#nowMs - transfer.sentMs < SNAPSHOT_RETRY_MS) continue;
      transfer.offset = transfer.restartOffset;
      this.#sendPart(node, transfer);
    }
  }

  #hasQuorum(): boolean {
    const oldestMs = this.#nowMs - QUORUM_MS;
    return quorumValue(this.#log.configuration.voters, (voter) => {
      return voter === this.#id ? Infinity : this.#members.get(voter)!.heardMs;
    }) >= oldestMs;
  }

  /** Sends the heartbeats that are due. */
  #beat(): void {
    for (const [node, progress] of this.#members) {
      const isSlow = progress.isLearner && progress.match === this.#log.lastIndex;
      const intervalMs = isSlow ? LEARNER_HEARTBEAT_MS : HEARTBEAT_MS;
      if (this.#nowMs - progress.heartbeatMs >= intervalMs) this.#sendHeartbeat(node, progress);
    }
  }

  #sendHeartbeat(node: number, progress: Progress): void {
    progress.heartbeatMs = this.#nowMs;
    this.#send(node, {
      kind: "heartbeat",
      // Not more than the member is known to have: it cannot tell how far its log is the leader's.
      commit: Math.min(progress.match, this.#log.commit),
      round: this.#reads.round,
    });
  }

  #stepResponse(message: AppendResponse | HeartbeatResponse | SnapshotResponse): void {
    const progress = this.#members.get(message.from)!;
    progress.heardMs = this.#nowMs;
    switch (message.kind) {
      case "append-response":
        return this.#stepAppendResponse(message, progress);
      case "heartbeat-response":
        return this.#stepHeartbeatResponse(message, progress);
      case "snapshot-response":
        return this.#stepSnapshotResponse(message, progress);
    }
  }

  #stepAppendResponse(message: AppendResponse, progress: Progress): void {
    const { index, isRejected, agreedIndex, agreedTerm, from } = message;
    if (index > this.#log.lastIndex) {
      this.#contradictions++;
      return;
    }
    if (isRejected) {
      const agreed = this.#log.findAgreement(agreedIndex, agreedTerm);
      progress.rejected(index, agreed, this.#nowMs);
      if (!progress.hasLost(this.#nowMs)) return;
      return this.#lostLog(progress);
    }
    const isNews = progress.accepted(index);
    if (progress.state === "probe") {
      if (isNews || index >= progress.next - 1) progress.becomeReplicate();
    } else if (progress.state === "snapshot") {
      if (this.#log.termOf(progress.match) !== null) progress.becomeReplicate();
      // It is there, and what follows it is gone from the log meanwhile: a newer one is due.
      else if (progress.match >= progress.transfer!.snapshot.index) progress.becomeProbe();
    }
    if (isNews) {
      this.#trustAgain();
      this.#advanceCommit();
    }
    if (this.#role === "leader" && from === this.#transferTo) this.#continueTransfer();
  }

  /** A member has lost what it had acknowledged: see the file's head. */
  #lostLog(progress: Progress): void {
    progress.beginAnew();
    // A learner has promised nothing.
    if (progress.isLearner) return;
    progress.trustedFrom = this.#append(ENTRY_EMPTY, new Uint8Array(0)).index;
    this.#trustAgain();
  }

  /** Ends distrust of voters of which no promise matters any more. */
  #trustAgain(): void {
    for (const [node, progress] of this.#members) {
      if (!progress.isDistrusted) continue;
      const { configuration, configurationBefore, configurationIndex, commit } = this.#log;
      const isOver = configurationIndex <= commit ||
        this.#isVoid(node, progress.trustedFrom, configurationBefore.voters);
      if (isOver && this.#isVoid(node, progress.trustedFrom, configuration.voters)) {
        progress.trustedFrom = 0;
      }
    }
  }

  /** Whether no majority of these voters with `node` in it is without another holder of entry `index`. */
  #isVoid(node: number, index: number, voters: readonly number[]): boolean {
    if (!voters.includes(node)) return true;
    const others = voters.filter((voter) => {
      if (voter === node) return false;
      const held = voter === this.#id ? this.#log.durable : this.#members.get(voter)?.match ?? 0;
      return held < index;
    });
    return others.length + 1 < majorityOf(voters.length);
  }

  #stepHeartbeatResponse(message: HeartbeatResponse, progress: Progress): void {
    progress.isPaused = false;
    // It has read what was sent before the heartbeat, or that is lost: let one more go in any case.
    if (progress.isBlocked) progress.inFlight.shift();
    if (progress.match < this.#log.lastIndex || progress.refusals > 0) progress.isCheckDue = true;
    if (message.round > progress.round && message.round <= this.#reads.round) {
      progress.round = message.round;
      this.#confirmReads();
    }
  }

  #stepSnapshotResponse(message: SnapshotResponse, progress: Progress): void {
    const { transfer } = progress;
    if (transfer === null || transfer.snapshot.index !== message.index) return;
    if (transfer.snapshot.term !== message.snapshotTerm) return;
    if (message.offset > transfer.snapshot.data.length) return;
    // Only progress is answered at once. A lower offset may be old; were it answered, every
    // repeated message would make one more of them (the sorcerer's apprentice).
    transfer.restartOffset = message.offset;
    if (message.offset <= transfer.offset) return;
    transfer.offset = message.offset;
    if (transfer.offset < transfer.snapshot.data.length) this.#sendPart(message.from, transfer);
  }

  #advanceCommit(): void {
    const log = this.#log;
    const { voters } = log.configuration;
    const before = log.commit;
    const reached = quorumValue(voters, (voter) => {
      if (voter === this.#id) return log.durable;
      const progress = this.#members.get(voter)!;
      return progress.isDistrusted ? 0 : progress.match;
    });
    // Only entries of the own term are committed by counting (Raft, section 5.4.2).
    if (reached <= before || log.termOf(reached) !== this.#term) return;
    this.#uncommittedBytes -= log.bytesOf(before + 1, reached);
    log.commitTo(reached);
    this.#trustAgain();
    this.#beginReads();
    if (log.configurationIndex <= reached && !voters.includes(this.#id)) this.#resign();
  }

  /** Steps down because this node is no voter any more, and lets the best one stand at once. */
  #resign(): void {
    this.#sendAppends();
    const { voters } = this.#log.configuration;
    const matchOf = (voter: number) => this.#members.get(voter)!.match;
    const best = voters.reduce((a, b) => matchOf(b) > matchOf(a) ? b : a);
    this.#send(best, { kind: "timeout-now" });
    this.#becomeFollower(this.#term, 0);
  }

  #continueTransfer(): void {
    if (this.#members.get(this.#transferTo)!.match === this.#log.lastIndex) {
      this.#send(this.#transferTo, { kind: "timeout-now" });
    }
  }

  // ── Reads ──────────────────────────────────────────────────────────────────────────────────────

  #beginReads(): void {
    const reads = this.#reads;
    if (!reads.isWaiting || reads.isAsking || this.#log.commit < this.#termStart) return;
    reads.begin(this.#log.commit);
    this.#toVoters((to) => this.#sendHeartbeat(to, this.#members.get(to)!));
    this.#confirmReads();
  }

  #confirmReads(): void {
    if (!this.#reads.isAsking) return;
    const { round } = this.#reads;
    const confirmed = quorumValue(this.#log.configuration.voters, (voter) => {
      if (voter === this.#id) return round;
      const progress = this.#members.get(voter)!;
      return progress.isDistrusted ? 0 : progress.round;
    });
    if (confirmed < round) return;
    this.#reads.confirm(round);
    this.#beginReads();
  }

  // ── Entries and snapshots on their way ─────────────────────────────────────────────────────────

  #sendAppends(): void {
    for (const [node, progress] of this.#members) {
      while (this.#isAppendDue(progress) && this.#sendAppend(node, progress));
    }
  }

  #isAppendDue(progress: Progress): boolean {
    if (progress.isBlocked) return false;
    if (progress.state === "probe" || progress.isCheckDue) return true;
    return progress.next <= this.#log.lastIndex || progress.commitSent < this.#log.commit;
  }

  /** @returns whether it was an append message */
  #sendAppend(node: number, progress: Progress): boolean {
    const log = this.#log;
    const prevIndex = progress.next - 1;
    const prevTerm = log.termOf(prevIndex);
    if (prevTerm === null) {
      this.#beginSnapshot(node, progress);
      return false;
    }
    const entries = log.slice(progress.next, log.lastIndex, APPEND_BYTES_MAX);
    this.#send(node, { kind: "append", prevIndex, prevTerm, commit: log.commit, entries });
    progress.isCheckDue = false;
    if (progress.state === "probe") {
      progress.isPaused = true;
    } else {
      progress.commitSent = log.commit;
      progress.next += entries.length;
      if (entries.length > 0) progress.inFlight.push(progress.next - 1);
    }
    return true;
  }

  #beginSnapshot(node: number, progress: Progress): void {
    const { snapshot } = this.#log;
    if (this.#checksum?.snapshot !== snapshot) {
      this.#checksum = { snapshot, value: crc32c(snapshot.data) };
    }
    const checksum = this.#checksum.value;
    progress.becomeSnapshot({ snapshot, checksum, offset: 0, restartOffset: 0, sentMs: 0 });
    this.#sendPart(node, progress.transfer!);
  }

  #sendPart(node: number, transfer: NonNullable<Progress["transfer"]>): void {
    const { snapshot, checksum, offset } = transfer;
    transfer.sentMs = this.#nowMs;
    this.#send(node, {
      kind: "snapshot",
      index: snapshot.index,
      snapshotTerm: snapshot.term,
      configuration: snapshot.configuration,
      totalBytes: snapshot.data.length,
      checksum,
      offset,
      data: snapshot.data.subarray(offset, offset + SNAPSHOT_PART_BYTES_MAX),
    });
  }

  // ── What is ready ──────────────────────────────────────────────────────────────────────────────

  #send(to: number, body: Body): void {
    this.#push(this.#messages, { ...body, from: this.#id, to, term: this.#term } as Message);
  }

  /** For after the next persist. */
  #hold(to: number, body: Body): void {
    const message = { ...body, from: this.#id, to, term: this.#term } as Message;
    const last = this.#held.at(-1);
    // A later acknowledgement says all that an earlier one does.
    if (last !== undefined && isSuperseded(last, message)) this.#held.pop();
    this.#push(this.#held, message);
  }

  #push(messages: Message[], message: Message): void {
    if (messages.length < MESSAGES_MAX) messages.push(message);
  }

  #takePersist(): Persist | null {
    const hasNews = this.#isHardStateDirty || this.#snapshotToPersist !== null ||
      this.#log.hasUnhanded;
    if (!hasNews && this.#persists.length === 0) {
      for (const message of this.#held) this.#push(this.#messages, message);
      this.#held = [];
      return null;
    }
    if (!hasNews && this.#held.length === 0) return null;
    if (this.#persists.length >= PERSISTS_MAX) return null;
    const persist: Persist = {
      token: ++this.#token,
      hardState: this.#isHardStateDirty ? { term: this.#term, vote: this.#vote } : null,
      snapshot: this.#snapshotToPersist,
      isLogReplaced: this.#isLogReplaced,
      entries: this.#log.beginPersist(),
      commit: this.#log.commit,
      messages: this.#held,
    };
    const candidacy = this.#role === "candidate" && this.#vote === this.#id ? this.#term : 0;
    this.#persists.push({ token: persist.token, candidacy });
    this.#isHardStateDirty = false;
    this.#snapshotToPersist = null;
    this.#isLogReplaced = false;
    this.#held = [];
    return persist;
  }

  #takeSnapshot(): Snapshot | null {
    const snapshot = this.#snapshotToApply;
    if (snapshot === null || snapshot.index > this.#log.durable) return null;
    this.#snapshotToApply = null;
    this.#applied = snapshot.index;
    return snapshot;
  }

  #takeCommitted(): Entry[] {
    if (this.#snapshotToApply !== null) return [];
    const last = Math.min(this.#log.commit, this.#log.durable);
    if (last <= this.#applied) return [];
    const entries = this.#log.slice(this.#applied + 1, last, APPLY_BYTES_MAX);
    this.#applied += entries.length;
    return entries;
  }
}

/** Is it said by leaders only? */
function isLeaders(message: Message): boolean {
  return message.kind === "append" || message.kind === "heartbeat" ||
    message.kind === "snapshot" || message.kind === "timeout-now";
}

/** Is it said by followers to their leader? */
function isResponse(message: Message): boolean {
  return message.kind === "append-response" || message.kind === "heartbeat-response" ||
    message.kind === "snapshot-response";
}

function isSuperseded(earlier: Message, later: Message): boolean {
  return earlier.kind === "append-response" && later.kind === "append-response" &&
    !earlier.isRejected && !later.isRejected && earlier.to === later.to &&
    earlier.term === later.term && earlier.index <= later.index;
}
