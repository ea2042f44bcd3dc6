/**
 * A whole Raft group in one seed: real machines, real storage layout, a network and disks that
 * fail.
 *
 * Messages are lost, repeated, reordered and replayed from long ago; links are cut one way or both;
 * nodes crash and lose what is not durable, in the middle of a persist as well; clocks run fast and
 * slow; members come and go; logs are compacted. An {@link Oracle} looks on. At the end faults
 * stop, and the group must get on with its work.
 *
 * Now and then a member comes back without the newest part of what it had made durable. Not even
 * then may a promise be broken, provided that nothing rested on that member: what it had
 * acknowledged is on a majority of voters without it, and it has not forgotten a vote. (Otherwise
 * all bets are off, and no machine could do anything about it.)
 *
 * `flaw` breaks the surroundings of the machine on purpose, to show that the oracle sees it.
 *
 * @module
 */
import { Prng } from "../../agent/base/prng.ts";
import { PERSISTS_MAX } from "../../agent/consensus/limits.ts";
import { Raft } from "../../agent/consensus/raft.ts";
import type { Configuration, ConfigurationChange } from "../../agent/consensus/configuration.ts";
import { decodeConfiguration, majorityOf } from "../../agent/consensus/configuration.ts";
import { ENTRY_CONFIGURATION } from "../../agent/consensus/log.ts";
import type { Message } from "../../agent/consensus/messages.ts";
import { decodeMessage, encodeMessage } from "../../agent/consensus/messages.ts";
import type { Persist, RaftState, Ready } from "../../agent/consensus/ready.ts";
import { load, type RaftStorage, writeInitial } from "../../agent/consensus/storage.ts";
import type { StorageWrite } from "../../agent/consensus/storage.ts";
import { unwrap } from "../../agent/map/errors.ts";
import { applyTo, LogView, Oracle, Violation } from "./oracle.ts";

/** A deliberate break of what surrounds the machine. */
export type Flaw =
  /** Persists are acknowledged before they are durable. */
  | "early-persist"
  /** A restart forgets whom the node voted for. */
  | "forgotten-vote"
  /** Messages that have to wait for a persist do not. */
  | "early-messages";

/** How a run goes. */
export interface SimulationOptions {
  readonly seed: number;
  readonly flaw?: Flaw;
  /** Simulated milliseconds with faults. */
  readonly faultsMs?: number;
  /** Three voters and one contested election after another. */
  readonly isContested?: boolean;
}

/** What happened in a run, to see that it was worth something. */
export interface SimulationResult {
  elections: number;
  committed: number;
  crashes: number;
  messages: number;
  reads: number;
  changes: number;
  snapshots: number;
  transfers: number;
  /** Members that came back without something that they had made durable. */
  losses: number;
  /** Times that somebody noticed. */
  noticed: number;
}

const NODES_MAX = 9;
const TICK_MS = 20;
/** Without faults the group has its size within this time. */
const GROWTH_MS = 10_000;
/** Faults are over; within this time the group must have done its work. */
const RECOVERY_MS = 30_000;
const ARCHIVE_MAX = 300;
/** States of its disk that a host may fall back to. */
const HISTORY_MAX = 12;
/** Some states are padded so that they need several messages. */
const LARGE_SNAPSHOT_BYTES = 600 * 1024;

interface Event {
  readonly atMs: number;
  readonly order: number;
  readonly run: () => void;
}

/** Events by time, then by order of their making. */
class EventQueue {
  readonly #heap: Event[] = [];
  #order = 0;

  push(atMs: number, run: () => void): void {
    const heap = this.#heap;
    heap.push({ atMs, order: this.#order++, run });
    for (let at = heap.length - 1; at > 0;) {
      const parent = (at - 1) >> 1;
      if (!isBefore(heap[at], heap[parent])) break;
      [heap[at], heap[parent]] = [heap[parent], heap[at]];
      at = parent;
    }
  }

  pop(): Event | undefined {
    const heap = this.#heap;
    const top = heap[0];
    const last = heap.pop();
    if (heap.length === 0 || last === undefined) return top;
    heap[0] = last;
    for (let at = 0;;) {
      const left = 2 * at + 1;
      let least = at;
      if (left < heap.length && isBefore(heap[left], heap[least])) least = left;
      if (left + 1 < heap.length && isBefore(heap[left + 1], heap[least])) least = left + 1;
      if (least === at) return top;
      [heap[at], heap[least]] = [heap[least], heap[at]];
      at = least;
    }
  }
}

function isBefore(a: Event, b: Event): boolean {
  return a.atMs < b.atMs || (a.atMs === b.atMs && a.order < b.order);
}

/** A persist on its way to the disk. */
interface Pending {
  readonly persist: Persist;
  readonly writes: readonly StorageWrite[];
}

/** One host: a disk that stays, and a machine that comes and goes. */
class Host {
  disk = new Map<string, Uint8Array>();
  /** What the disk held before, oldest first: all with the same term and vote, and the same snapshot. */
  history: Map<string, Uint8Array>[] = [];
  raft: Raft | null = null;
  storage!: RaftStorage;
  /** Counts lives: what belongs to an earlier one is over. */
  life = 0;
  pending: Pending[] = [];
  diskFreeMs = 0;
  view = new LogView();
  applied = 0;
  state = 0;
  commit = 0;
  /** What was applied before the last crash. */
  appliedEver = 0;
  rate = 1;
  clockMs = 0;
  clockReadMs = 0;
  /** By context: what was committed when it was asked for. */
  readonly reads = new Map<number, number>();
  /** As leader: members that have lost their log. */
  distrusted: number[] = [];

  constructor(readonly id: number) {}
}

/** See the file's head. */
export class Simulation {
  readonly #random: Prng;
  readonly #flaw: Flaw | undefined;
  readonly #faultsMs: number;
  readonly #isContested: boolean;
  readonly #events = new EventQueue();
  readonly #oracle = new Oracle();
  readonly #hosts: Host[] = [];
  readonly #cut = new Set<string>();
  readonly #archive: Message[] = [];
  readonly #loss: number;
  readonly #repeat: number;
  readonly #replay: number;
  readonly #slowDisk: number;
  /** Of its own, so that losses do not change what else is drawn. */
  readonly #lossRandom: Prng;
  /** Members lose parts of their logs while everything else goes wrong, too; otherwise only at the end. */
  readonly #hasLosses: boolean;
  /** Has come back without something, and has not caught up yet. */
  #forgetful: { host: Host; lastIndex: number } | null = null;
  readonly #memberTarget: number;
  readonly #voterTarget: number;
  #isFaulty = true;
  #nowMs = 0;
  #context = 0;
  #payload = 0;
  readonly result: SimulationResult = {
    elections: 0,
    committed: 0,
    crashes: 0,
    messages: 0,
    reads: 0,
    changes: 0,
    snapshots: 0,
    transfers: 0,
    losses: 0,
    noticed: 0,
  };

  constructor(options: SimulationOptions) {
    const random = this.#random = new Prng(options.seed);
    this.#lossRandom = new Prng(options.seed ^ 0x1055e5);
    this.#hasLosses = options.isContested !== true && this.#lossRandom.chance(0.5);
    this.#flaw = options.flaw;
    this.#faultsMs = options.faultsMs ?? 8_000;
    this.#loss = random.fraction() * 0.3;
    this.#repeat = random.fraction() * 0.5;
    this.#replay = random.pick([0, 0.01, 0.05]);
    this.#slowDisk = random.pick([0, 0.05, 0.3]);
    this.#isContested = options.isContested ?? false;
    this.#memberTarget = this.#isContested
      ? 3
      : random.pick([1, 2, 3, 3, 3, 3, 4, 5, 5, 7, NODES_MAX]);
    this.#voterTarget = random.between(
      Math.min(this.#memberTarget, 3),
      Math.min(this.#memberTarget, 7),
    );
    for (let id = 1; id <= NODES_MAX; id++) {
      const host = new Host(id);
      this.#hosts.push(host);
      const initial = id === 1 ? Raft.bootstrap(id) : Raft.joining();
      writeTo(host.disk, writeInitial(id, initial));
    }
  }

  /**
   * Runs to the end.
   *
   * @throws {Violation} when a promise is broken
   */
  run(): SimulationResult {
    for (const host of this.#hosts.slice(0, this.#memberTarget)) this.#start(host);
    this.#grow();
    this.#every(10, 100, () => this.#proposeSome());
    this.#every(20, 100, () => this.#readSome());
    if (this.#isContested) this.#every(100, 500, () => this.#storm());
    else this.#every(50, 800, () => this.#fault());
    if (!this.#isContested) this.#every(100, 400, () => this.#changeMembers());
    if (this.#hasLosses) {
      this.#every(50, 400, () => this.#loseTail());
    }
    this.#runUntil(this.#nowMs + this.#faultsMs, () => false);
    this.#isFaulty = false;
    this.#recover();
    if (!this.#isContested) this.#loseInPeace();
    this.result.elections = this.#oracle.elections;
    this.result.committed = this.#oracle.commit;
    return this.result;
  }

  /** Begins with a group of the size that is aimed at. */
  #grow(): void {
    const isGrown = () => {
      const configuration = this.#hosts[0].raft?.status().configuration;
      return configuration?.voters.length === this.#voterTarget;
    };
    this.#isFaulty = false;
    const grow = () => {
      if (isGrown()) return;
      this.#changeMembers();
      this.#events.push(this.#nowMs + 10, grow);
    };
    grow();
    this.#runUntil(GROWTH_MS, isGrown);
    if (!isGrown()) throw new Violation(this.#stuck(0));
    this.#isFaulty = true;
  }

  #runUntil(endMs: number, isDone: () => boolean): void {
    while (!isDone()) {
      const event = this.#events.pop();
      if (event === undefined) return;
      this.#nowMs = event.atMs;
      event.run();
      if (this.#nowMs >= endMs) return;
    }
  }

  /** Again and again while there are faults. */
  #every(leastMs: number, mostMs: number, run: () => void): void {
    const again = () => {
      if (!this.#isFaulty) return;
      run();
      this.#events.push(this.#nowMs + this.#random.between(leastMs, mostMs), again);
    };
    this.#events.push(this.#nowMs + this.#random.between(leastMs, mostMs), again);
  }

  // ── Hosts ──────────────────────────────────────────────────────────────────────────────────────

  #start(host: Host): void {
    const loaded = unwrap(load(host.disk, host.id))!;
    const { storage } = loaded;
    const state = this.#flaw === "forgotten-vote" ? { ...loaded.state, vote: 0 } : loaded.state;
    host.storage = storage;
    host.life++;
    host.pending = [];
    host.diskFreeMs = this.#nowMs;
    host.applied = host.state = host.commit = 0;
    host.reads.clear();
    host.view.begin(state.snapshot.index, state.snapshot.term);
    for (const entry of state.entries) this.#append(host, entry);
    if (host.view.last < host.appliedEver) {
      throw new Violation(
        `durability: ${host.id} applied ${host.appliedEver}, has ${host.view.last}`,
      );
    }
    host.clockReadMs = this.#nowMs;
    const random = this.#random.fork();
    host.raft = new Raft({ id: host.id, state, random, nowMs: host.clockMs });
    this.#serve(host);
    const { life } = host;
    const tick = () => {
      if (host.life !== life || host.raft === null) return;
      host.raft.tick(this.#clock(host));
      this.#serve(host);
      this.#events.push(this.#nowMs + TICK_MS, tick);
    };
    this.#events.push(this.#nowMs + this.#random.below(TICK_MS), tick);
  }

  #clock(host: Host): number {
    host.clockMs += (this.#nowMs - host.clockReadMs) * host.rate;
    host.clockReadMs = this.#nowMs;
    return host.clockMs;
  }

  /** Everything that is not durable is gone; of what was being written some first part is there. */
  #crash(host: Host): void {
    this.result.crashes++;
    host.appliedEver = Math.max(host.appliedEver, host.applied);
    const writes = host.pending.flatMap((each) => each.writes);
    writeTo(host.disk, writes.slice(0, this.#random.below(writes.length + 1)));
    host.raft = null;
    host.pending = [];
    host.life++;
  }

  #append(host: Host, entry: Parameters<LogView["append"]>[0]): void {
    this.#oracle.holds(entry, host.view.termOf(entry.index - 1));
    host.view.append(entry);
  }

  /** Does what the machine wants done. */
  #serve(host: Host): void {
    const raft = host.raft!;
    for (let ready = raft.ready(); ready !== null; ready = raft.ready()) {
      for (const message of ready.messages) this.#send(message);
      if (ready.persist !== null) this.#persist(host, ready.persist);
      this.#look(host);
      this.#apply(host, ready);
    }
  }

  /** Lets the oracle see the node. */
  #look(host: Host): void {
    const status = host.raft!.status();
    if (status.role === "leader") {
      this.#oracle.leads(host.id, status.term, host.view);
      this.#notice(host, status.members.filter(({ hasLostLog }) => hasLostLog));
    }
    if (status.commit < host.commit) throw new Violation(`${host.id} takes back a commit`);
    if (status.contradictions > 0) throw new Violation(`${host.id} met a contradiction`);
    // With so many persists under way there may be changes of the log that have not been seen yet
    // (seeds 170 and 11366); they are looked at when they have.
    if (host.pending.length >= PERSISTS_MAX) return;
    this.#oracle.commits(host.id, host.commit, status.commit, host.view);
    host.commit = status.commit;
  }

  #notice(host: Host, lost: readonly { node: number }[]): void {
    const isNew = lost.some(({ node }) => !host.distrusted.includes(node));
    if (isNew) this.result.noticed++;
    host.distrusted = lost.map(({ node }) => node);
  }

  #apply(host: Host, ready: Ready): void {
    if (ready.snapshot !== null) {
      const { index, data } = ready.snapshot;
      host.state = new DataView(data.buffer, data.byteOffset).getUint32(0, true);
      this.#oracle.restores(host.id, index, host.state);
      host.applied = index;
      this.result.snapshots++;
    }
    for (const entry of ready.committed) {
      if (entry.index !== host.applied + 1) throw new Violation(`${host.id} applies out of order`);
      host.state = applyTo(host.state, entry);
      host.applied = entry.index;
      this.#oracle.applies(host.id, entry, host.state);
    }
    for (const { context, index } of ready.reads) {
      if (index === null) continue;
      if (index > host.applied) throw new Violation(`${host.id} answers before it has applied`);
      this.#oracle.reads(host.id, host.reads.get(context)!, index);
      this.result.reads++;
    }
  }

  #persist(host: Host, persist: Persist): void {
    if (persist.isLogReplaced) {
      host.view.begin(persist.snapshot!.index, persist.snapshot!.term);
    } else if (persist.snapshot !== null) {
      host.view.snapshotTerm = persist.snapshot.term;
      host.view.snapshotIndex = persist.snapshot.index;
    }
    for (const entry of persist.entries) this.#append(host, entry);
    const pending: Pending = { persist, writes: host.storage.write(persist) };
    host.pending.push(pending);
    const isSlow = this.#isFaulty && this.#random.chance(this.#slowDisk);
    const takesMs = isSlow ? this.#random.below(400) : this.#random.fraction() * 10;
    host.diskFreeMs = Math.max(host.diskFreeMs, this.#nowMs) + takesMs * 0.3;
    const doneMs = host.diskFreeMs + takesMs * 0.7;
    host.diskFreeMs = Math.max(host.diskFreeMs, doneMs - 5);
    if (this.#flaw === "early-messages") persist.messages.forEach((each) => this.#send(each));
    if (this.#flaw === "early-persist") this.#acknowledge(host, persist);
    const { life } = host;
    this.#crashAroundVote(host, persist, { takesMs, doneMs });
    // In order: whatever is due later than what follows it waits for this one.
    this.#events.push(doneMs, () => {
      if (host.life !== life) return;
      while (host.pending.length > 0) {
        const done = host.pending.shift()!;
        this.#remember(host, done.persist);
        writeTo(host.disk, done.writes);
        if (this.#flaw !== "early-persist") this.#acknowledge(host, done.persist);
        if (done === pending) break;
      }
      this.#serve(host);
    });
  }

  /** Around a vote: before it is durable, or when it has just been heard of. */
  #crashAroundVote(host: Host, persist: Persist, disk: { takesMs: number; doneMs: number }): void {
    const vote = persist.hardState?.vote ?? 0;
    if (!this.#isFaulty || vote === 0) return;
    const random = this.#random;
    const chance = this.#isContested ? (vote === host.id ? 0 : 0.4) : 0.15;
    if (random.chance(chance)) this.#crashLater(host, random.fraction() * disk.takesMs);
    else if (random.chance(chance * 2)) this.#crashLater(host, disk.doneMs - this.#nowMs + 0.1);
  }

  #acknowledge(host: Host, persist: Persist): void {
    host.raft!.persisted(persist.token);
    if (this.#flaw !== "early-messages") persist.messages.forEach((each) => this.#send(each));
  }

  // ── The network ────────────────────────────────────────────────────────────────────────────────

  #send(message: Message): void {
    this.result.messages++;
    const random = this.#random;
    if (!this.#isFaulty) return this.#deliver(message, random.fraction() * 5);
    if (this.#archive.length < ARCHIVE_MAX) this.#archive.push(message);
    else if (random.chance(0.1)) this.#archive[random.below(ARCHIVE_MAX)] = message;
    if (random.chance(this.#replay)) this.#deliver(random.pick(this.#archive), 1);
    if (this.#cut.has(`${message.from}>${message.to}`) || random.chance(this.#loss)) return;
    this.#deliver(message, this.#delay());
    if (random.chance(this.#repeat)) this.#deliver(message, this.#delay());
  }

  #delay(): number {
    const random = this.#random;
    return random.chance(0.05) ? random.fraction() * 500 : random.fraction() * 20;
  }

  #deliver(message: Message, delayMs: number): void {
    this.#events.push(this.#nowMs + delayMs, () => {
      const host = this.#hosts[message.to - 1];
      if (host.raft === null) return;
      const isCoded = this.#random.chance(0.1);
      host.raft.step(isCoded ? unwrap(decodeMessage(encodeMessage(message))) : message);
      this.#serve(host);
    });
  }

  // ── Work ───────────────────────────────────────────────────────────────────────────────────────

  /** Those that take themselves for leaders. */
  #leaders(): Host[] {
    return this.#hosts.filter((host) => host.raft?.status().role === "leader");
  }

  #proposeSome(): void {
    const leaders = this.#leaders();
    if (leaders.length === 0) return;
    const host = this.#random.pick(leaders);
    const bytes = this.#random.chance(0.02) ? 20_000 : 8;
    for (let count = this.#random.between(1, 5); count > 0; count--) {
      const data = new Uint8Array(bytes);
      new DataView(data.buffer).setFloat64(0, ++this.#payload);
      host.raft!.propose(data);
    }
    this.#serve(host);
  }

  #readSome(): void {
    for (const host of this.#leaders()) {
      const context = ++this.#context;
      host.reads.set(context, this.#oracle.commit);
      if (host.raft!.readIndex(context) !== null) host.reads.delete(context);
      this.#serve(host);
    }
  }

  #changeMembers(): void {
    const leaders = this.#leaders();
    if (leaders.length === 0) return;
    const host = this.#random.pick(leaders);
    const { voters, learners } = host.raft!.status().configuration;
    const size = voters.length + learners.length;
    const change = this.#chooseChange(size, voters, learners);
    if (change === null) return;
    if (host.raft!.proposeConfig(change).ok) this.result.changes++;
    this.#serve(host);
    const member = this.#hosts[change.node - 1];
    if (member.raft === null && change.kind === "add-learner") this.#start(member);
  }

  #chooseChange(
    size: number,
    voters: readonly number[],
    learners: readonly number[],
  ): ConfigurationChange | null {
    const random = this.#random;
    const outside = this.#hosts.map((host) => host.id)
      .filter((id) => !voters.includes(id) && !learners.includes(id));
    if (size < this.#memberTarget && outside.length > 0) {
      return { kind: "add-learner", node: random.pick(outside) };
    }
    if (learners.length > 0 && voters.length < this.#voterTarget) {
      return { kind: "promote", node: random.pick(learners) };
    }
    if (!this.#isFaulty || !random.chance(0.3)) return null;
    const node = random.pick([...voters, ...learners]);
    if (!voters.includes(node)) return { kind: "remove", node };
    // Where somebody may lose its log voters are not removed outright; control never does that.
    return { kind: random.chance(0.4) || this.#hasLosses ? "demote" : "remove", node };
  }

  // ── Faults ─────────────────────────────────────────────────────────────────────────────────────

  #fault(): void {
    const random = this.#random;
    const host = random.pick(this.#hosts.filter((each) => each.life > 0));
    switch (random.below(12)) {
      case 0:
      case 1:
      case 2:
        return this.#crashAndStart(host);
      case 9:
      case 10:
      case 11:
        return this.#storm();
      case 3:
        this.#healLater();
        return this.#partition();
      case 4:
        this.#healLater();
        for (const other of this.#hosts) {
          if (random.chance(0.5)) this.#cut.add(`${host.id}>${other.id}`);
          if (random.chance(0.2)) this.#cut.add(`${other.id}>${host.id}`);
        }
        return;
      case 5:
        return this.#cut.clear();
      case 6:
        this.#clock(host);
        host.rate = random.pick([0.8, 0.9, 1, 1.1, 1.25]);
        if (random.chance(0.1)) host.clockMs += 3000;
        return;
      case 7:
        for (const each of this.#hosts) if (random.chance(0.5)) this.#compact(each);
        return;
      case 8:
        return this.#transfer();
    }
  }

  #crashAndStart(host: Host, afterMs = this.#random.pick([1, 50, 300, 2000])): void {
    if (host.raft !== null) this.#crash(host);
    this.#events.push(this.#nowMs + afterMs, () => {
      if (host.raft === null) this.#start(host);
    });
  }

  /** Before a persist: what the disk would fall back to without it. */
  #remember(host: Host, { hardState, snapshot, entries }: Persist): void {
    if (hardState !== null || snapshot !== null) host.history = [];
    else if (entries.length > 0) host.history.push(new Map(host.disk));
    if (host.history.length > HISTORY_MAX) host.history.shift();
  }

  /** A host crashes and comes back without the newest part of what it had made durable. */
  #loseTail(): void {
    const random = this.#lossRandom;
    const { host: before, lastIndex } = this.#forgetful ?? { host: null, lastIndex: 0 };
    if (before !== null && before.view.last < lastIndex) return;
    this.#lose(random.pick(this.#hosts.filter((each) => each.life > 0)));
  }

  /** @returns false where there is nothing that it may lose now */
  #lose(host: Host): boolean {
    const random = this.#lossRandom;
    if (host.history.length === 0) return false;
    const lost = this.#stateOf(host);
    if (!this.#isKeptByOthers(host, lost)) return false;
    if (host.raft !== null) this.#crash(host);
    host.disk = random.pick(host.history);
    host.history = [];
    // It may apply again what it had applied.
    host.appliedEver = 0;
    this.#forgetful = { host, lastIndex: lastOf(lost).index };
    this.result.losses++;
    this.#events.push(this.#nowMs + random.pick([1, 50, 300]), () => {
      if (host.raft === null) this.#start(host);
    });
    return true;
  }

  /** What is durable. */
  #stateOf(host: Host): RaftState {
    return unwrap(load(host.disk, host.id))!.state;
  }

  /**
   * Whether all that a host has is durable on a majority without it, whichever of the configurations
   * holds that are in any log.
   */
  #isKeptByOthers(host: Host, state: RaftState): boolean {
    const last = lastOf(state);
    const states = new Map<number, RaftState>();
    for (const each of this.#hosts) if (each.life > 0) states.set(each.id, this.#stateOf(each));
    const holds = (id: number) => {
      const other = states.get(id);
      if (other === undefined || id === host.id) return false;
      if (other.snapshot.index >= last.index) return true;
      return other.entries.some(({ index, term }) => index === last.index && term === last.term);
    };
    return [...states.values()].flatMap(configurationsOf).every(({ voters }) =>
      !voters.includes(host.id) || voters.filter(holds).length >= majorityOf(voters.length)
    );
  }

  #healLater(): void {
    const afterMs = this.#random.pick([100, 500, 1500, 4000]);
    this.#events.push(this.#nowMs + afterMs, () => this.#cut.clear());
  }

  /** Leaders crash or are cut off, and several others stand for election at once. */
  #storm(): void {
    this.#cut.clear();
    this.#healLater();
    for (const leader of this.#leaders()) {
      if (this.#random.chance(0.5)) {
        this.#crashAndStart(leader);
      } else {
        for (const { id } of this.#hosts) this.#cut.add(`${leader.id}>${id}`);
      }
    }
    for (const host of this.#hosts) {
      if (this.#random.chance(0.7)) host.clockMs += 1000;
    }
  }

  /** Crashes a host at a moment that matters, and starts it again at once. */
  #crashLater(host: Host, delayMs: number): void {
    const { life } = host;
    this.#events.push(this.#nowMs + delayMs, () => {
      if (host.life === life && this.#isFaulty) {
        this.#crashAndStart(host, this.#random.pick([1, 5, 20]));
      }
    });
  }

  #partition(): void {
    this.#cut.clear();
    const side = new Set(this.#hosts.filter(() => this.#random.chance(0.5)).map(({ id }) => id));
    for (const { id: from } of this.#hosts) {
      for (const { id: to } of this.#hosts) {
        if (side.has(from) !== side.has(to)) this.#cut.add(`${from}>${to}`);
      }
    }
  }

  #compact(host: Host): void {
    if (host.raft === null || host.applied === 0) return;
    const isLarge = host.state % 8 === 0;
    const data = new Uint8Array(isLarge ? LARGE_SNAPSHOT_BYTES : 64);
    new DataView(data.buffer).setUint32(0, host.state, true);
    host.raft.compact(host.applied, data);
    this.#serve(host);
  }

  #transfer(): void {
    for (const host of this.#leaders()) {
      const { voters } = host.raft!.status().configuration;
      if (host.raft!.transferLeadership(this.#random.pick(voters)) === null) {
        this.result.transfers++;
      }
      this.#serve(host);
    }
  }

  // ── The end ────────────────────────────────────────────────────────────────────────────────────

  /** Faults are over: the group commits something new, and all its members apply it. */
  #recover(): void {
    this.#cut.clear();
    for (const host of this.#hosts) {
      this.#clock(host);
      host.rate = 1;
      if (host.life > 0 && host.raft === null) this.#start(host);
    }
    this.#commitEverywhere();
  }

  /** A member comes back without what it had acknowledged while all else is well: it is noticed, and gets it all again. */
  #loseInPeace(): void {
    const leader = this.#leaders()[0];
    const { voters, learners } = leader.raft!.status().configuration;
    const others = [...voters, ...learners].filter((id) => id !== leader.id);
    if (others.length === 0) return;
    const host = this.#hosts[this.#lossRandom.pick(others) - 1];
    const before = this.result.noticed;
    if (!this.#lose(host)) return;
    this.#commitEverywhere();
    if (voters.includes(host.id) && this.result.noticed === before) {
      throw new Violation(`nobody notices that ${host.id} has lost what it had acknowledged`);
    }
  }

  /** Something new is committed, and all members apply it. */
  #commitEverywhere(): void {
    const endMs = this.#nowMs + RECOVERY_MS;
    const first = this.#oracle.commit + 1;
    let goal = 0;
    let isDone = false;
    const propose = () => {
      if (isDone) return;
      if (goal === 0 || this.#oracle.commit < goal) {
        const leader = this.#leaders().at(0);
        const proposed = leader?.raft?.propose(new Uint8Array(1));
        if (proposed?.ok) goal = Math.max(first, proposed.index);
        if (leader !== undefined) this.#serve(leader);
      }
      this.#events.push(this.#nowMs + 500, propose);
    };
    propose();
    this.#runUntil(endMs, () => goal > 0 && this.#haveAllApplied(goal));
    isDone = true;
    if (goal === 0 || !this.#haveAllApplied(goal)) throw new Violation(this.#stuck(goal));
  }

  #haveAllApplied(index: number): boolean {
    if (this.#oracle.commit < index) return false;
    const leader = this.#leaders().find((host) => host.applied >= index);
    if (leader === undefined) return false;
    const { configuration: { voters, learners }, members } = leader.raft!.status();
    if (members.some(({ hasLostLog }) => hasLostLog)) return false;
    return [...voters, ...learners].every((id) => this.#hosts[id - 1].applied >= index);
  }

  #stuck(goal: number): string {
    const lines = this.#hosts.filter((host) => host.raft !== null).map((host) => {
      const { role, term, leader, commit, lastIndex, configuration, members } = host.raft!.status();
      return `\n  ${host.id}: ${role} term ${term} leader ${leader} applied ${host.applied} ` +
        `commit ${commit} last ${lastIndex} voters ${configuration.voters} ` +
        `learners ${configuration.learners} ` +
        members.map((each) => `${each.node}:${each.state}:${each.match}`).join(" ");
    });
    return `progress: entry ${goal} is not everywhere after ${RECOVERY_MS} ms${lines.join("")}`;
  }
}

function writeTo(disk: Map<string, Uint8Array>, writes: readonly StorageWrite[]): void {
  for (const { key, value } of writes) {
    if (value === null) disk.delete(key);
    else disk.set(key, value);
  }
}

/** Index and term of the last entry. */
function lastOf({ snapshot, entries }: RaftState): { index: number; term: number } {
  return entries.at(-1) ?? snapshot;
}

/** All configurations of a log. */
function configurationsOf({ snapshot, entries }: RaftState): Configuration[] {
  const changes = entries.filter(({ kind }) => kind === ENTRY_CONFIGURATION);
  return [snapshot.configuration, ...changes.map(({ data }) => decodeConfiguration(data)!)];
}
