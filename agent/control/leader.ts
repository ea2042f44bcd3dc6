/**
 * What the leader looks after: a function of the map, of who is alive and of time, which says what should be proposed.
 *
 *     who is alive     node-down, availability (out after a while, back in)
 *     who holds data   drop-unclean, unsettle, set-targets, start-joining, trim, split-groups, drop-member
 *     copies of disks  finish-copies, when a family's data is where it is to be
 *     who votes        changes of consensus' configuration, set-voters
 *     what is spoken   raise-level, when the last node can speak the next
 *     what has its time   schedules, the trash, snapshots that do not get done: `housekeeping.ts`
 *
 * Invariants:
 * - Nothing here makes anything safe: every command is checked again when it is applied, against the map as it is then. A leader
 *   that is wrong or late costs time, not data.
 * - What a leader remembers (since when, how often) may be lost with it at any time: the next one starts counting.
 *
 * The brake: when a third of the nodes that hold data is down together, it is more likely a switch than so many
 * disks, and nobody is declared out: moving everything would make it worse.
 *
 * @module
 */
import type { ConfigurationChange } from "../consensus/configuration.ts";
import type { MemberStatus, RaftStatus } from "../consensus/ready.ts";
import type { MemberView } from "../gossip/gossip.ts";
import {
  type ClusterMap,
  commonLevel,
  copiesMinOfPool,
  copiesMinToBe,
  findNode,
  isCrowded,
  isInZones,
  type MapCommand,
  maySplit,
  type NodeEntry,
  type PgEntry,
  type Pool,
  reasonAgainstFinish,
  storageNodes,
} from "../map/map.ts";
import { brakeOf, targetChanges } from "../map/targets.ts";
import { Housekeeping } from "./housekeeping.ts";
import type { NodeReport } from "./messages.ts";
import { chooseVoters, keepsUp, nextChange, REPLACE_AFTER_MS } from "./voters.ts";

/** A node of the map that gossip does not know is dead after this long, in milliseconds. */
const UNKNOWN_MS = 5000;
/** PGs that each node should have of a pool, so that shares come out within 3 %. */
const PGS_PER_NODE_MIN = 34;
/** Changes of targets in one command: well below what an entry of the log may hold. */
const TARGETS_PER_COMMAND = 1000;
/** PGs named in one command. */
const PGS_PER_COMMAND = 4096;
/** A node that was dropped because somebody could not reach it does not join again for this long… */
const HOLD_MS_MIN = 5000;
/** …doubled each time up to this. */
const HOLD_MS_MAX = 5 * 60_000;
/** A node that behaved for this long is forgiven. */
const HOLD_FORGIVE_MS = 30 * 60_000;
/** Commands of one look. */
const COMMANDS_MAX = 64;
/** A node that is alive is missed after this time without a word: it renews every second, and serves for four. */
const SILENT_MS = 2000;
/**
 * A holder of leases that has not reported for so long, since a node came up, is not waited for any more: its data worker stands
 * still, on a disk that hangs, and writes nothing that would wait for the node.
 */
const REPORT_MS_MAX = 30_000;
/** From one hand-over to the next. */
export const HAND_OVER_MS = 10_000;
/** A complaint must stand for this long before it is acted upon: the map may be about to say the same. */
const COMPLAINT_MS = 500;

/** What a leader knows when it looks. */
export interface LeaderSituation {
  readonly map: ClusterMap;
  /** The leader's own node. */
  readonly self: number;
  readonly raft: RaftStatus;
  /** A clock that never goes back. */
  readonly nowMs: number;
  /** Milliseconds since 1970. */
  readonly wallMs: number;
  /** Members of gossip by uuid. */
  readonly members: ReadonlyMap<string, MemberView>;
  /** What nodes reported lately. */
  readonly reports: ReadonlyMap<number, NodeReport>;
}

/** What is to be proposed. */
export interface LeaderDecision {
  readonly commands: MapCommand[];
  readonly config: ConfigurationChange | null;
  /** Node to hand leadership to; 0: nobody. */
  readonly transferTo: number;
  /** For the log. */
  readonly notes: string[];
}

interface Hold {
  untilMs: number;
  lengthMs: number;
  lastMs: number;
}

/** See the head of the file. */
export class LeaderDuties {
  readonly #unknownSince = new Map<number, number>();
  /** Start of each node that is up, and the map with which this leader saw it first. */
  readonly #upSince = new Map<number, { incarnation: number; epoch: number; sinceMs: number }>();
  readonly #holds = new Map<number, Hold>();
  readonly #complaints = new Map<string, number>();
  /** `targetsEpoch` for which all targets are as they should be, with disks and settings that ask for as many copies. */
  #placedEpoch = -1;
  #placedDisks: ClusterMap["disks"] | null = null;
  #placedSettings: ClusterMap["settings"] | null = null;
  #placedGoals = "";
  #placedMinima = "";
  #isBraking = false;
  readonly #housekeeping = new Housekeeping();

  /** A new term: nothing is remembered. */
  reset(): void {
    this.#upSince.clear();
    this.#downSince.clear();
    this.#unknownSince.clear();
    this.#complaints.clear();
    this.#placedEpoch = -1;
    this.#housekeeping.reset();
  }

  /** Says what is to be done now. */
  look(situation: LeaderSituation): LeaderDecision {
    this.#noteUp(situation);
    const commands: MapCommand[] = [];
    const notes: string[] = [];
    this.#lookAtNodes(situation, commands, notes);
    this.#lookAtLevel(situation.map, commands, notes);
    if (commands.length === 0) this.#lookAtComplaints(situation, commands, notes);
    if (commands.length === 0) this.#lookAtTargets(situation, commands);
    const isPlaced = this.#isPlaced(situation.map);
    for (const pool of situation.map.pools) {
      if (commands.length >= COMMANDS_MAX) break;
      this.#lookAtGroups(situation, pool, isPlaced, commands);
      // Nor does a family arrive as long as there are gaps where it goes to.
      if (isPlaced) this.#lookAtMove(situation.map, pool, commands);
    }
    this.#housekeeping.look(situation, commands, notes);
    this.#lookAtLogs(situation, notes);
    const { raft, map } = situation;
    const isGone = (node: NodeEntry) => this.#isGone(situation, node);
    const config = raft.commit >= raft.configurationIndex
      ? nextChange({
        map,
        self: situation.self,
        configuration: raft.configuration,
        members: raft.members,
        commit: raft.commit,
        isGone,
      })
      : null;
    const { voters } = raft.configuration;
    const isShown = voters.length === map.voters.length &&
      voters.every((node) => map.voters.includes(node));
    if (!isShown && config === null && voters.every((node) => findNode(map, node) !== undefined)) {
      commands.push({ kind: "set-voters", voters: voters.toSorted((a, b) => a - b) });
    }
    const transferTo = this.#transferTo(situation, isGone, notes);
    return { commands, config, transferTo, notes };
  }

  /** Who is to lead instead; 0: nobody. One that could not take over is not tried again at once: proposals wait meanwhile. */
  #transferTo(
    situation: LeaderSituation,
    isGone: (node: NodeEntry) => boolean,
    notes: string[],
  ): number {
    if (situation.nowMs - this.#handedOverMs < HAND_OVER_MS) return 0;
    const node = successorOf(situation, isGone) || this.#betterPlaced(situation, notes);
    if (node !== 0) this.#handedOverMs = situation.nowMs;
    return node;
  }
  #handedOverMs = -Infinity;

  /**
   * A node that is alive and that this leader does not hear cannot renew its right to serve: one direction of the network between the
   * two is cut. Somebody who hears every node leads in its place.
   *
   * @returns 0: nobody is missed, or nobody is placed better
   */
  #betterPlaced({ map, raft, members, reports }: LeaderSituation, notes: string[]): number {
    const isAlive = (id: number) => {
      const node = findNode(map, id);
      return node?.state === "up" && members.get(node.uuid)?.state === "alive";
    };
    const missed = raft.members.filter(({ node, silentMs }) =>
      silentMs >= SILENT_MS && isAlive(node)
    );
    if (missed.length === 0) return 0;
    const better = raft.members.find((member) => {
      const report = reports.get(member.node);
      return raft.configuration.voters.includes(member.node) && mayLead(member, raft) &&
        report !== undefined && !report.disconnected.some(isAlive);
    });
    if (better === undefined) return 0;
    const names = missed.map(({ node }) => findNode(map, node)!.name).join(", ");
    const by = findNode(map, better.node)!.name;
    notes.push(`${names} cannot be heard from here, and can from ${by}, which shall lead`);
    return better.node;
  }

  /** Consensus copes by itself; somebody should look at that disk. */
  #lookAtLogs({ map, raft }: LeaderSituation, notes: string[]): void {
    const lost = raft.members.filter(({ hasLostLog }) => hasLostLog).map(({ node }) => node);
    for (const node of lost) {
      if (this.#lostLogs.includes(node)) continue;
      notes.push(
        `node ${
          findNode(map, node)?.name ?? node
        } has lost a part of the log of consensus that it had ` +
          `acknowledged: it counts for nothing until enough others have all of it`,
      );
    }
    this.#lostLogs = lost;
  }
  #lostLogs: number[] = [];

  // ----------------------------------------------------------------------------------------- nodes

  #lookAtNodes(situation: LeaderSituation, commands: MapCommand[], notes: string[]): void {
    const { map, self, wallMs } = situation;
    for (const node of map.nodes) {
      if (node.state === "down") this.#unknownSince.delete(node.id);
      if (node.id === self || node.state === "down") continue;
      if (!this.#isDead(situation, node)) continue;
      commands.push({
        kind: "node-down",
        node: node.id,
        incarnation: node.incarnation,
        nowMs: wallMs,
      });
    }
    const brake = brakeOf(map);
    const isBraking = brake !== null;
    if (isBraking && !this.#isBraking) {
      notes.push(`${brake.down} of ${brake.of} nodes are down together: none is declared out`);
    }
    this.#isBraking = isBraking;
    for (const node of map.nodes) {
      if (node.witness) continue;
      const downMs = this.#downForMs(node, situation);
      const isOut = node.state === "down" && node.availability === "in" && !isBraking &&
        downMs >= map.settings.outAfterMs;
      // Only time puts a node out; when it is back, it is back.
      const isBack = node.state === "up" && node.availability === "out";
      if (!isOut && !isBack) continue;
      const availability = isOut ? "out" : "in";
      commands.push({ kind: "set-availability", node: node.id, availability });
    }
  }

  /**
   * How long a node has been down, by what the map says and by what this leader has seen itself, by the clock that never goes back: whose
   * clock was ahead when it noticed has said a time that is yet to come. 0: it is up.
   */
  #downForMs({ id, state, incarnation, changedMs }: NodeEntry, situation: LeaderSituation): number {
    const { wallMs, nowMs } = situation;
    if (state !== "down") {
      this.#downSince.delete(id);
      return 0;
    }
    let known = this.#downSince.get(id);
    if (known?.incarnation !== incarnation) {
      this.#downSince.set(id, known = { incarnation, sinceMs: nowMs });
    }
    return Math.max(wallMs - changedMs, nowMs - known.sinceMs);
  }
  readonly #downSince = new Map<number, { incarnation: number; sinceMs: number }>();

  /** What is new is switched on as soon as everybody has it: also nodes that are down, which may come back as they are. */
  #lookAtLevel(map: ClusterMap, commands: MapCommand[], notes: string[]): void {
    const level = commonLevel(map);
    if (level <= map.level) return;
    notes.push(`every node speaks level ${level} now: so does the cluster from here on`);
    commands.push({ kind: "raise-level", level });
  }

  #isDead({ members, reports, nowMs }: LeaderSituation, node: NodeEntry): boolean {
    const member = members.get(node.uuid);
    if (member !== undefined) {
      const isGone = member.state === "dead" || member.state === "left";
      const isAbout = member.agentIncarnation === 0 ||
        member.agentIncarnation === node.incarnation;
      if (!isGone || isAbout) {
        this.#unknownSince.delete(node.id);
        return isGone;
      }
      // The end of another start than the one in the map says nothing about this one: of it gossip may never hear.
    }
    // Who reports is alive, whatever its datagrams do.
    if (reports.has(node.id)) this.#unknownSince.delete(node.id);
    const since = this.#unknownSince.get(node.id);
    if (since === undefined) this.#unknownSince.set(node.id, nowMs);
    return since !== undefined && nowMs - since >= UNKNOWN_MS;
  }

  /** Whether a node counts for voting. */
  #isGone(situation: LeaderSituation, node: NodeEntry): boolean {
    if (node.availability === "draining") return true;
    return node.state === "down" && this.#downForMs(node, situation) >= REPLACE_AFTER_MS;
  }

  // ------------------------------------------------------------------------------------ complaints

  /** Whoever cannot be reached by somebody that waits for it leaves its groups, and stays out for a while. */
  #lookAtComplaints(situation: LeaderSituation, commands: MapCommand[], notes: string[]): void {
    const { map, reports, nowMs, wallMs } = situation;
    const standing = new Set<string>();
    for (const [by, report] of reports) {
      if (findNode(map, by)?.state !== "up") continue;
      if (this.#isAlone(situation, by, report, notes)) continue;
      for (const id of report.unreachable) {
        const node = findNode(map, id);
        if (node === undefined || node.id === by || !isMember(map, id)) continue;
        const key = `${by} ${id}`;
        standing.add(key);
        const since = this.#complaints.get(key);
        if (since === undefined) this.#complaints.set(key, nowMs);
        if (since === undefined || nowMs - since < COMPLAINT_MS) continue;
        this.#complaints.delete(key);
        this.#hold(id, nowMs);
        notes.push(`node ${node.name} does not answer node ${findNode(map, by)!.name}`);
        commands.push({
          kind: "drop-member",
          node: id,
          incarnation: node.incarnation,
          by,
          nowMs: wallMs,
        });
        return;
      }
    }
    for (const key of this.#complaints.keys()) {
      if (!standing.has(key)) this.#complaints.delete(key);
    }
  }

  /**
   * Whether a node is the only one to complain, and about several that others reach: then it is its own link that is broken,
   * and the others' copies are not given up for it.
   */
  #isAlone(
    { map, reports }: LeaderSituation,
    by: number,
    report: NodeReport,
    notes: string[],
  ): boolean {
    const isReached = (id: number) =>
      findNode(map, id)?.state === "up" &&
      [...reports].some(([other, { disconnected, unreachable }]) =>
        other !== by && other !== id && !disconnected.includes(id) && !unreachable.includes(id)
      );
    const several = report.unreachable.filter((id) => id !== by && isReached(id)).length > 1;
    if (!several) this.#alone.delete(by);
    else if (!this.#alone.has(by)) {
      this.#alone.add(by);
      notes.push(`node ${findNode(map, by)!.name} cannot reach nodes that others reach`);
    }
    return several;
  }
  readonly #alone = new Set<number>();

  #hold(node: number, nowMs: number): void {
    const before = this.#holds.get(node);
    // Several that complain, or complain of several groups, are one reason: it has not been let in again since.
    if (before !== undefined && nowMs < before.untilMs) {
      before.untilMs = nowMs + before.lengthMs;
      before.lastMs = nowMs;
      return;
    }
    const isRecent = before !== undefined && nowMs - before.lastMs < HOLD_FORGIVE_MS;
    const lengthMs = isRecent ? Math.min(HOLD_MS_MAX, before.lengthMs * 2) : HOLD_MS_MIN;
    this.#holds.set(node, { untilMs: nowMs + lengthMs, lengthMs, lastMs: nowMs });
  }

  /** Remembers with which map each node was seen up first. */
  #noteUp({ map: { epoch, nodes }, nowMs }: LeaderSituation): void {
    for (const { id, state, incarnation } of nodes) {
      if (state !== "up") this.#upSince.delete(id);
      else if (this.#upSince.get(id)?.incarnation !== incarnation) {
        this.#upSince.set(id, { incarnation, epoch, sinceMs: nowMs });
      }
    }
  }

  /**
   * Whether a node may join groups: it is not held back, its store has room, and no holder of leases lacks a connection to it,
   * by what was reported since it came up. Who holds leases and reports nothing is waited for only for a while.
   */
  #mayJoin({ map, reports, nowMs }: LeaderSituation, node: NodeEntry): boolean {
    const hold = this.#holds.get(node.id);
    if (hold !== undefined && nowMs < hold.untilMs) return false;
    if (reports.get(node.id)?.isFull === true) return false;
    const { epoch = map.epoch, sinceMs = nowMs } = this.#upSince.get(node.id) ?? {};
    for (const { lease } of map.disks) {
      if (lease === null || lease.node === node.id || this.#alone.has(lease.node)) continue;
      if (findNode(map, lease.node)?.state !== "up") continue;
      const report = reports.get(lease.node);
      if (report === undefined || report.epoch < epoch) {
        if (nowMs - sinceMs < REPORT_MS_MAX) return false;
      } else if (report.disconnected.includes(node.id)) return false;
    }
    return true;
  }

  // --------------------------------------------------------------------------------------- targets

  /** Whether all targets are as they should be on this map. */
  #isPlaced(map: ClusterMap): boolean {
    return map.targetsEpoch === this.#placedEpoch && map.disks === this.#placedDisks &&
      map.settings === this.#placedSettings && goalsOf(map) === this.#placedGoals;
  }

  #lookAtTargets({ map }: LeaderSituation, commands: MapCommand[]): void {
    if (this.#isPlaced(map)) return;
    const minima = map.pools.map((pool) => copiesMinOfPool(map, pool, copiesMinToBe)).join();
    this.#placedDisks = map.disks;
    this.#placedSettings = map.settings;
    this.#placedGoals = goalsOf(map);
    if (minima === this.#placedMinima && map.targetsEpoch === this.#placedEpoch) return;
    this.#placedMinima = minima;
    this.#placedEpoch = -1;
    const storage = storageNodes(map).filter((node) => node.availability === "in");
    // Those of families follow from the others.
    const shared = map.pools.filter(({ family }) => family === 0);
    for (const pool of shared) {
      const { length } = storage.filter((node) => isInZones(pool.zones, node));
      const copies = Math.min(pool.copies, length);
      const isFew = copies > 0 && pool.pgs.length * copies < length * PGS_PER_NODE_MIN;
      if (isFew && length > copies && maySplit(map)) {
        commands.push({ kind: "split-groups", pgBits: map.pgBits });
        return;
      }
    }
    for (const pool of shared) {
      const changes = targetChanges(map, pool);
      if (changes.length === 0) continue;
      commands.push({
        kind: "set-targets",
        pool: pool.id,
        basedOnTargetsEpoch: map.targetsEpoch,
        changes: changes.slice(0, TARGETS_PER_COMMAND),
      });
      return;
    }
    this.#placedEpoch = map.targetsEpoch;
  }

  // ---------------------------------------------------------------------------------------- groups

  #lookAtGroups(
    situation: LeaderSituation,
    pool: Pool,
    isPlaced: boolean,
    commands: MapCommand[],
  ): void {
    const { map, members } = situation;
    const due = this.#dueOf(pool);
    if (due.length === 0) return;
    const nodes = new Map(map.nodes.map((node) => [node.id, node]));
    const isUp = (id: number) => nodes.get(id)?.state === "up";
    /** Alive, and the very start that the map knows: it has lost nothing since. */
    const isKnownAlive = (id: number) => {
      const node = nodes.get(id);
      if (node?.state !== "up") return false;
      if (id === situation.self) return true;
      const member = members.get(node.uuid);
      return member?.state === "alive" && member.agentIncarnation === node.incarnation;
    };
    const dropped = new Map<number, number[]>();
    const unsettled: number[] = [];
    const joining = new Map<number, number[]>();
    const trimmed: number[] = [];
    const mayJoin = new Map<number, boolean>();
    for (const pg of due) {
      const entry = pool.pgs[pg];
      if (entry.unclean.length > 0) {
        this.#lookAtUnclean(entry, pg, isUp, isKnownAlive, dropped, unsettled);
        continue;
      }
      for (const id of entry.target) {
        if (entry.inSync.includes(id) || entry.joining.includes(id) || !isUp(id)) continue;
        if (isWaitingFor(map, pg, id)) continue;
        let may = mayJoin.get(id);
        if (may === undefined) {
          may = this.#mayJoin(situation, nodes.get(id)!);
          mayJoin.set(id, may);
        }
        if (may && entry.inSync.some(isUp)) add(joining, id, pg);
      }
      // Who has the data does not go as long as targets lack places: a removed node has left gaps, which it may have to fill.
      if (isPlaced && isTrimmable(pool, entry) && entry.inSync.every(isUp)) trimmed.push(pg);
    }
    const { id } = pool;
    for (const [node, pgs] of dropped) {
      for (const part of parts(pgs)) {
        commands.push({ kind: "drop-unclean", pool: id, pgs: part, node });
      }
    }
    for (const part of parts(unsettled)) {
      commands.push({ kind: "unsettle", pool: id, pgs: part });
    }
    for (const [node, pgs] of joining) {
      const { incarnation } = nodes.get(node)!;
      for (const part of parts(pgs)) {
        commands.push({ kind: "start-joining", pool: id, pgs: part, node, incarnation });
      }
    }
    for (const part of parts(trimmed)) commands.push({ kind: "trim", pool: id, pgs: part });
  }

  /** A family that has all the copies which it is to have is done. */
  #lookAtMove(map: ClusterMap, pool: Pool, commands: MapCommand[]): void {
    if (pool.family === 0 || reasonAgainstFinish(map, pool) !== null) return;
    commands.push({ kind: "finish-copies", pool: pool.id });
  }

  /** Numbers of the groups that may have to be changed, whatever becomes of nodes; looked for once in each table. */
  #dueOf(pool: Pool): readonly number[] {
    let due = this.#due.get(pool);
    if (due === undefined) {
      const found: number[] = [];
      pool.pgs.forEach((entry, pg) => {
        if (isDue(pool, entry)) found.push(pg);
      });
      this.#due.set(pool, due = found);
    }
    return due;
  }
  readonly #due = new WeakMap<Pool, readonly number[]>();

  #lookAtUnclean(
    entry: PgEntry,
    pg: number,
    isUp: (id: number) => boolean,
    isKnownAlive: (id: number) => boolean,
    dropped: Map<number, number[]>,
    unsettled: number[],
  ): void {
    const clean = entry.inSync.filter((id) => !entry.unclean.includes(id));
    if (clean.some(isKnownAlive)) {
      for (const id of entry.unclean) add(dropped, id, pg);
      return;
    }
    // Those that are neither known alive nor known dead decide soon: they come back, or are taken for dead.
    if (!clean.some(isUp) && entry.unclean.some(isUp)) unsettled.push(pg);
  }
}

/** Who is to lead in the place of a leader that shall not vote any more; 0: nobody, or nobody yet. */
function successorOf(
  { map, self, raft }: LeaderSituation,
  isGone: (node: NodeEntry) => boolean,
): number {
  const { voters } = raft.configuration;
  const wanted = chooseVoters(map, voters, isGone);
  if (!voters.includes(self) || wanted.includes(self)) return 0;
  const ready = raft.members.find((member) =>
    wanted.includes(member.node) && voters.includes(member.node) && mayLead(member, raft)
  );
  return ready?.node ?? 0;
}

/** Whether a voter is there, and has or soon has all that is decided. */
function mayLead(member: MemberStatus, { commit }: RaftStatus): boolean {
  return member.silentMs < 1000 && keepsUp(member, commit);
}

/** What families that are on their way ask for counts where they go. */
function goalsOf({ pools }: ClusterMap): string {
  return pools.map(({ to }) => to).join();
}

/** Whether a group is not as it should be, and not being settled. */
function isDue(pool: Pool, entry: PgEntry): boolean {
  if (entry.unsettled) return false;
  return entry.unclean.length > 0 || isTrimmable(pool, entry) ||
    !entry.target.every((id) => entry.inSync.includes(id) || entry.joining.includes(id));
}

/** Whether members outside the target may go, when all members are up. */
function isTrimmable(pool: Pool, { target, inSync }: PgEntry): boolean {
  const isComplete = target.every((id) => inSync.includes(id));
  return inSync.some((id) => !target.includes(id)) &&
    (isComplete || isCrowded(pool, inSync.length));
}

/**
 * Whether a node is all that is left of the group of the same number in another pool, and has yet to settle it: the data
 * path that it keeps for both may be missing.
 */
function isWaitingFor(map: ClusterMap, pg: number, id: number): boolean {
  return map.pools.some(({ pgs }) => {
    const { unclean, inSync } = pgs[pg];
    return unclean.length > 0 && inSync.length === 1 && inSync[0] === id;
  });
}

function isMember(map: ClusterMap, id: number): boolean {
  for (const pool of map.pools) {
    for (const entry of pool.pgs) {
      if (entry.joining.includes(id)) return true;
      if (entry.inSync.length > 1 && entry.inSync.includes(id)) return true;
    }
  }
  return false;
}

function add(lists: Map<number, number[]>, key: number, value: number): void {
  const list = lists.get(key);
  if (list === undefined) lists.set(key, [value]);
  else list.push(value);
}

function* parts(pgs: readonly number[]): Generator<number[]> {
  for (let i = 0; i < pgs.length; i += PGS_PER_COMMAND) yield pgs.slice(i, i + PGS_PER_COMMAND);
}
