/**
 * This node's part in its cluster, on Linux: control (gossip, consensus, map, leases) with the sockets, the clock and the durable
 * state that it needs.
 *
 *     UDP ── seal ──▶ gossip ─┐                         ┌─▶ map, leases ──▶ data worker
 *     TCP ── channel ────────▶ control ─▶ persist ─▶ META of the store
 *     timer ──────────────────┘                         └─▶ admin API
 *
 * How it begins, by what the store's META holds:
 *
 *     consensus' state             goes on as the node that it is
 *     a map of version 0.1         its disks become those of a new cluster of one
 *     nothing, and --join          asks to be taken in
 *     nothing                      founds a cluster of one
 *
 * @module
 */
import { isEqual, toHex } from "./base/bytes.ts";
import { Reminders } from "./base/reminders.ts";
import { Raft } from "./consensus/raft.ts";
import { recover } from "./consensus/recover.ts";
import { load, writeInitial } from "./consensus/storage.ts";
import type { StorageWrite } from "./consensus/storage.ts";
import { Control, type ControlHost } from "./control/control.ts";
import { LeaseTimes } from "./control/lease_times.ts";
import { Leases } from "./control/leases.ts";
import { decodeLevel, encodeLevel, LEVEL_KEY } from "./control/level_record.ts";
import type { FlattenReport, IoReport, NodeReport } from "./control/messages.ts";
import type { DataPlaneClient, Ready, WorkerEvent } from "./data_plane_client.ts";
import { within } from "./deadline.ts";
import { decide } from "./decision.ts";
import { type JoinProblem, joinProblems } from "./join_problem.ts";
import type { Logger } from "./logger.ts";
import { type ControlError, ControlFailure, unwrap } from "./map/errors.ts";
import {
  adopt,
  type Applied,
  apply,
  type ClusterMap,
  EMPTY_MAP,
  findNode,
  type MapCommand,
  type NodeEntry,
  type NodeFacts,
  type Proposal,
} from "./map/map.ts";
import { decodeMap, encodeMap } from "./map/map_codec.ts";
import { withPortOffset } from "./platform/address.ts";
import { TcpControlChannel } from "./platform/linux/control_channel.ts";
import { UdpDatagrams } from "./platform/linux/datagrams.ts";
import { clockMs } from "./platform/linux/libc.ts";
import { LinuxRandom } from "./platform/linux/random.ts";
import { resolveAddress } from "./platform/linux/resolve.ts";
import { ProgramWatch } from "./program.ts";
import { DATA_PORT_OFFSET } from "./platform/network.ts";
import { DatagramSeal } from "./wire/datagram_seal.ts";
import { FEATURE, type Identity, SECRET_BYTES } from "./wire/handshake.ts";
import { THIS_SPEAKER } from "./version.ts";
import type { WorkerDataStatus, WorkerIo, WorkerStoreStatus } from "./worker_protocol.ts";

/** Keys of the store's META. */
const NODE_KEY = "node";
const SECRET_KEY = "cluster-secret";
/** What version 0.1 had. */
const OLD_MAP_KEY = "map", OLD_SECRET_KEY = "secret";

/** Milliseconds between ticks with other nodes around, and alone. */
const TICK_MS = 40, TICK_ALONE_MS = 250;
/** Milliseconds between looks at what the data worker has to report. */
const REPORT_MS = 500;
/** Over how long the rate of catching up is taken. */
const RATE_MS = 900;
/** How long a start waits for the map to know it: a majority may be away, and then it goes on without. */
const START_MS_MAX = 10_000;
/** How long a stop waits for the map to know it. */
const LEAVE_MS_MAX = 5000;
/** How long a change is waited for that the cluster does not decide. */
const PROPOSE_MS_MAX = 15_000;
/** Bytes of a map, or of writes, in one message to the data worker. */
const MAP_PART_BYTES = 256 * 1024;
/** What a write takes in such a message beside its key and value, at the most. */
const WRITE_HEAD_BYTES = 32;
/** What the leader has refused this node for is of interest for this long: it asks again every second. */
const REFUSAL_VALID_MS = 30_000;
/** The same reason why this node is not in its cluster yet is logged again after this time. */
const JOIN_REMIND_MS = 30 * 60_000;
/** Reasons that are remembered as logged; there is a handful for each node that is asked. */
const JOIN_REASONS_MAX = 256;
/** Names of peers are looked up again at this interval, and at this one those that nobody knew. */
const RESOLVE_MS = 30_000, RESOLVE_AGAIN_MS = 2000;

/** A node that is to join, and neither was given a secret nor has one in its store. */
export const SECRET_MISSING: ControlError = {
  code: "invalid",
  message: "joining a cluster needs its secret",
  hint: "print it on one of its hosts with 'kelpie cluster secret', put it into a file that only " +
    "root can read, and name that with --secret-file",
};

/** How this node takes part. */
export interface ClusterOptions {
  /** `host:port` to listen at; null: no network. */
  readonly listen: string | null;
  /** `host:port` where others reach it. */
  readonly address: string;
  /** Addresses of nodes of a cluster to join. */
  readonly join: readonly string[];
  readonly name: string;
  readonly zone: string;
  readonly witness: boolean;
  /** Its weight when it first joins; null: from capacity. */
  readonly weightBytes: number | null;
  /** The cluster's secret, when it was given; null: the store's, or a new one. */
  readonly secret: Uint8Array | null;
  readonly bootId: string;
  /** See `NodeUp.torn`. */
  readonly torn: boolean;
}

/** What the agent wants to know. */
export interface ClusterListener {
  /** The map has this run of the agent. */
  started(): void;
  /** This node cannot take part any more; it has stopped to. */
  failed(error: Error): void;
  /** The agent is to end in good order, so that it is started anew. */
  restartWanted(): void;
  /** `control.map` is another one. */
  mapChanged(map: ClusterMap): void;
}

/** Number and cluster, as META keeps them: node u16, then 16 bytes. */
interface Membership {
  readonly node: number;
  readonly clusterId: string;
}

/** Where another node's data worker is. */
interface NumericAddress {
  /** As the map has it. */
  readonly address: string;
  /** The same in numbers, with the port for data; "": not known. */
  numeric: string;
  /** When it was looked up last. */
  readonly atMs: number;
  isLookedUp: boolean;
}

/** See the head of the file. */
export class ClusterNode {
  readonly control: Control;
  readonly leases: Leases;
  readonly leaseTimes = new LeaseTimes();
  readonly #plane: DataPlaneClient;
  readonly #log: Logger;
  readonly #options: ClusterOptions;
  readonly #facts: NodeFacts;
  readonly #secret: Uint8Array;
  readonly #channel: TcpControlChannel | null;
  readonly #datagrams: UdpDatagrams | null;
  readonly #seal: DatagramSeal;
  readonly #listener: ClusterListener;
  readonly #random = new LinuxRandom();
  readonly #program = ProgramWatch.ofThisProcess();
  #membership: Membership | null;
  #incarnation = 0;
  #isTakingPart = false;
  /** It has been told once that it may serve. */
  #mayServe = false;
  /** Whether bulk data may go in clear, as the others were told last. */
  #isTrusting = false;
  #timer: ReturnType<typeof setTimeout> | null = null;
  #isStopped = false;
  #reportedMs = -Infinity;
  /** The last message about the map that the worker was sent. */
  #delivered: Promise<unknown> = Promise.resolve();
  readonly #started: Promise<void>;
  #markStarted!: () => void;
  readonly #numeric = new Map<number, NumericAddress>();
  readonly #begunMs = clockMs();
  /** Why the leader did not take this node in, and when it said so last. */
  #refused: { readonly message: string; readonly atMs: number } | null = null;
  /** Reasons for not being in the cluster that were logged. */
  readonly #joinReasons = new Reminders({ againMs: JOIN_REMIND_MS, most: JOIN_REASONS_MAX });
  /** Bytes copied while catching up, and when, of a while ago. */
  #copied = { bytes: 0, atMs: 0, rate: 0 };
  /** What disks had done, and when, of a while ago. */
  #io: { before: WorkerIo | null; atMs: number; rates: IoReport | null } = {
    before: null,
    atMs: 0,
    rates: null,
  };

  private constructor(parts: {
    plane: DataPlaneClient;
    log: Logger;
    options: ClusterOptions;
    facts: NodeFacts;
    secret: Uint8Array;
    channel: TcpControlChannel | null;
    datagrams: UdpDatagrams | null;
    membership: Membership | null;
    meta: ReadonlyMap<string, Uint8Array>;
    clean: boolean;
    lost: readonly number[];
    level: number;
    isFounder: boolean;
    listener: ClusterListener;
  }) {
    this.#plane = parts.plane;
    this.#log = parts.log;
    this.#options = parts.options;
    this.#facts = parts.facts;
    this.#secret = parts.secret;
    this.#channel = parts.channel;
    this.#datagrams = parts.datagrams;
    this.#membership = parts.membership;
    this.#listener = parts.listener;
    this.#seal = new DatagramSeal({ secret: parts.secret, random: this.#random });
    this.#started = new Promise((resolve) => this.#markStarted = resolve);
    const node = parts.membership?.node ?? 0;
    const loaded = node === 0 ? null : unwrap(load(parts.meta, node));
    this.leases = new Leases({
      wantLease: (disk) => this.control.wantLease(disk),
      forgetLease: (disk) => this.control.forgetLease(disk),
      propose: (command, done) => this.control.propose(command, () => done?.()),
      granted: (disk, { generation, isUnclean, byOthers }) =>
        this.#tell({ kind: "lease-granted", disk, generation, isUnclean, byOthers }),
      fenced: (disk, generation) => {
        this.#fencing = this.#plane.request({ kind: "fenced", disk, generation });
        this.#fencing.catch(() => {});
      },
    });
    this.control = new Control({
      host: this.#host(),
      node,
      facts: parts.facts,
      clean: parts.clean,
      torn: parts.options.torn,
      lost: parts.lost,
      raft: loaded,
      seeds: parts.options.join,
      nowMs: clockMs(),
      level: parts.level,
    });
    if (parts.isFounder) this.control.markNewcomer();
    parts.plane.onEvent = (event) => this.#event(event);
  }

  /**
   * Begins. Throws a `ControlFailure` when this store cannot be what was asked for.
   */
  static async start(parts: {
    plane: DataPlaneClient;
    ready: Ready;
    log: Logger;
    options: ClusterOptions;
    listener: ClusterListener;
  }): Promise<ClusterNode> {
    const { plane, ready, log, options, listener } = parts;
    const meta = new Map(Object.entries(ready.meta));
    const { capacityBytes } = await plane.request<WorkerStoreStatus>({ kind: "store-status" });
    const facts: NodeFacts = {
      uuid: ready.nodeId,
      name: options.name,
      address: options.address,
      zone: options.zone,
      capacityBytes,
      witness: options.witness,
      ...THIS_SPEAKER,
      bootId: options.bootId,
      nowMs: Date.now(),
    };
    const stored = meta.get(SECRET_KEY) ?? meta.get(OLD_SECRET_KEY);
    const secret = secretOf(stored, options);
    let membership = membershipOf(meta.get(NODE_KEY));
    const oldMap = meta.get(OLD_MAP_KEY);
    if (membership !== null) refuseOtherSecret(stored, options);
    const level = decodeLevel(meta.get(LEVEL_KEY))?.level ?? 1;
    const writes: StorageWrite[] = [];
    if (stored === undefined || meta.get(SECRET_KEY) === undefined || !isEqual(stored, secret)) {
      writes.push({ key: SECRET_KEY, value: secret.slice() });
    }
    let isFounder = false;
    if (membership === null && options.join.length > 0 && oldMap !== undefined) {
      refuseOldDisks(oldMap);
    }
    if (membership === null && options.join.length === 0) {
      isFounder = true;
      membership = { node: 1, clusterId: ready.clusterId };
      const before = oldMap === undefined ? EMPTY_MAP : unwrap(decodeMap(oldMap));
      const map = unwrap(adopt(before, { ...facts, clusterId: ready.clusterId }));
      const raft = Raft.bootstrap(1, unwrap(encodeMap(map)));
      const { version } = facts;
      writes.push(
        { key: LEVEL_KEY, value: encodeLevel({ level: map.level, sinceMs: Date.now(), version }) },
        ...writeInitial(1, raft),
        { key: NODE_KEY, value: membershipBytes(membership) },
      );
    }
    if (writes.length > 0) {
      await plane.request({ kind: "persist", writes });
      for (const { key, value } of writes) if (value !== null) meta.set(key, value);
    }
    const identity = identityOf(facts, membership, 0, false);
    const network = await openNetwork(plane, log, options, secret, identity);
    const node = new ClusterNode({
      plane,
      log,
      options,
      facts,
      secret,
      ...network,
      membership,
      meta,
      clean: ready.clean,
      lost: ready.lost,
      level: isFounder ? facts.protocol : level,
      isFounder,
      listener,
    });
    node.#begin();
    return node;
  }

  #begin(): void {
    if (this.#channel !== null) {
      this.#channel.listener = {
        controlReceived: (peer, bytes) => this.control.received(peer, bytes),
      };
    }
    if (this.#datagrams !== null) {
      this.#datagrams.listener = {
        datagramReceived: (from, bytes) => {
          const plaintext = this.#seal.open(bytes);
          if (plaintext !== null) this.control.gossipReceived(from, plaintext);
        },
      };
    }
    this.#tick();
  }

  /** Resolves when the map knows this start, or will not, or after a while in which it could not. */
  async started(): Promise<boolean> {
    await within(this.#started, START_MS_MAX, () => {});
    return this.#incarnation > 0;
  }

  // ------------------------------------------------------------------------------------------ host

  #host(): ControlHost {
    return {
      log: this.#log,
      random: this.#random,
      wallMs: () => Date.now(),
      sendControl: (address, bytes) => {
        this.#channel?.send(address, bytes);
      },
      sendGossip: (address, bytes) => this.#datagrams?.send(address, this.#seal.seal(bytes)),
      persist: (writes, done) => {
        const parts = partsOf(writes).map((part) =>
          this.#plane.request({ kind: "persist", writes: part })
        );
        Promise.all(parts).then(done, (error) => this.#persistFailed(error));
      },
      mapChanged: (map, _effects, isJump, proposal) => this.#mapChanged(map, isJump, proposal),
      started: (node, incarnation) => this.#start(node, incarnation),
      renewed: (untilMs) => {
        this.#tell({ kind: "renew", untilMs });
        this.#mayServe = true;
        this.#markStarted();
      },
      joined: (node, clusterId) => {
        this.#joined(node, clusterId).catch((error) => this.#persistFailed(error));
      },
      joinRefused: (message) => this.#refused = { message, atMs: clockMs() },
      restartWanted: () => this.#listener.restartWanted(),
      unfit: (message) => {
        this.stop();
        this.#listener.failed(new ControlFailure({ code: "limit", message }));
        this.#markStarted();
      },
    };
  }

  /**
   * What consensus must not forget cannot be made durable: a node among others must not go on as if it could, and
   * its guests' disks are better off elsewhere. Alone it stays to say what is wrong.
   */
  #persistFailed(error: unknown): void {
    const reason = error instanceof Error ? error.message : String(error);
    if (this.#isStopped) return;
    this.#log.error("the store does not take what the cluster has decided", { reason });
    if (this.isAlone) return;
    this.stop();
    this.#listener.failed(new Error(`the store has failed: ${reason}`));
  }

  #tell(request: Parameters<DataPlaneClient["request"]>[0]): void {
    this.#plane.request(request).catch((error) => {
      this.#log.debug("the data plane did not take a message", { reason: String(error) });
    });
  }

  #mapChanged(map: ClusterMap, isJump: boolean, proposal: Proposal | null): void {
    this.leaseTimes.mapChanged(map, this.#isTakingPart && !isJump, Date.now());
    if (isJump || proposal === null || !this.#isMapSent) this.#sendMap(map);
    else {
      const { command } = proposal;
      this.#delivered = this.#plane.request({ kind: "map-command", epoch: map.epoch, command });
      this.#delivered.catch((error) => {
        this.#log.error("the data plane cannot follow the map; sending it whole", {
          reason: error instanceof Error ? error.message : String(error),
        });
        this.#sendMap(this.control.map);
      });
    }
    if (this.#isTakingPart) {
      this.leases.mapChanged(map);
      if (map.settings.trustedNetwork !== this.#isTrusting) this.#introduce();
    }
    this.#listener.mapChanged(map);
    this.#addresses(map);
    // Whether the node is connected is what the leader waits for.
    if (proposal?.command.kind === "node-up") void this.#report();
  }
  #isMapSent = false;

  #sendMap(map: ClusterMap): void {
    this.#isMapSent = true;
    const bytes = unwrap(encodeMap(map));
    const parts = Math.ceil(bytes.length / MAP_PART_BYTES);
    for (let part = 0; part < parts; part++) {
      this.#delivered = this.#plane.request({
        kind: "map",
        part,
        parts,
        bytes: bytes.slice(part * MAP_PART_BYTES, (part + 1) * MAP_PART_BYTES),
      });
      this.#delivered.catch(() => {});
    }
  }

  /** Resolves when the data worker has the newest map in force. */
  async delivered(): Promise<void> {
    for (let last = null; last !== this.#delivered;) {
      last = this.#delivered;
      await last;
    }
  }

  #start(node: number, incarnation: number): void {
    this.#incarnation = incarnation;
    const isFirst = !this.#isTakingPart;
    this.#isTakingPart = true;
    if (isFirst) this.#listener.started();
    this.#introduce();
    this.#delivered = this.#plane.request({ kind: "take-part", node, incarnation });
    this.#delivered.catch(() => {});
    this.leases.started(node, incarnation);
    this.leases.mapChanged(this.control.map);
    this.#addresses(this.control.map);
    // Alone it leads in a moment, and may serve then.
    if (isFirst && !this.isAlone) this.#markStarted();
    const { weightBytes } = this.#options;
    if (isFirst && incarnation === 1 && weightBytes !== null) {
      this.control.propose({ kind: "set-weight", node, weight: weightBytes });
    }
  }

  /** Tells both kinds of connections who this node is now. */
  #introduce(): void {
    this.#isTrusting = this.control.map.settings.trustedNetwork;
    const seals = !this.#isTrusting;
    const self = identityOf(this.#facts, this.#membership, this.#incarnation, seals);
    this.#channel?.setSelf(self, { reconnect: true });
    this.#tell({ kind: "identity", self });
  }

  async #joined(node: number, clusterId: string): Promise<void> {
    this.#membership = { node, clusterId };
    const state = Raft.joining();
    const writes = [
      { key: NODE_KEY, value: membershipBytes(this.#membership) },
      ...writeInitial(node, state),
      // What version 0.1 left, without disks.
      { key: OLD_MAP_KEY, value: null },
    ];
    await this.#plane.request({ kind: "persist", writes });
    this.#log.info("this node has been taken in", { node, cluster: clusterId });
    const values = new Map<string, Uint8Array>();
    for (const { key, value } of writes) if (value !== null) values.set(key, value);
    const loaded = unwrap(load(values, node))!;
    this.#introduce();
    this.control.markNewcomer();
    this.control.beginJoined(loaded.state, loaded.storage);
  }

  /** Tells the data worker where the others are, in numbers. */
  #addresses(map: ClusterMap): void {
    const nowMs = clockMs();
    this.#lookedUpMs = nowMs;
    for (const node of map.nodes) {
      if (node.id === this.#membership?.node || node.witness) continue;
      const known = this.#numeric.get(node.id);
      const validMs = known?.numeric === "" ? RESOLVE_AGAIN_MS : RESOLVE_MS;
      const isSame = known?.address === node.address;
      if (isSame && (known.isLookedUp || nowMs - known.atMs < validMs)) continue;
      const next = {
        address: node.address,
        numeric: known?.numeric ?? "",
        atMs: nowMs,
        isLookedUp: true,
      };
      this.#numeric.set(node.id, next);
      void this.#lookUp(node, next);
    }
    for (const node of [...this.#numeric.keys()]) {
      if (map.nodes.some((entry) => entry.id === node)) continue;
      this.#numeric.delete(node);
      this.#tell({ kind: "peer", node, address: null });
    }
  }
  #lookedUpMs = -Infinity;

  async #lookUp({ id, name }: NodeEntry, known: NumericAddress): Promise<void> {
    try {
      const numeric = withPortOffset(await resolveAddress(known.address), DATA_PORT_OFFSET);
      // The node has gone meanwhile, or has another address.
      if (this.#numeric.get(id) !== known || numeric === known.numeric) return;
      known.numeric = numeric;
      this.#tell({ kind: "peer", node: id, address: numeric });
    } catch (error) {
      const reason = error instanceof Error ? error.message : String(error);
      if (!this.#unknown.isDue(reason, clockMs())) return;
      this.#log.warn("a node's address is not known", { node: name, reason });
    } finally {
      known.isLookedUp = false;
    }
  }
  /** Reasons why addresses are not known that were logged. */
  readonly #unknown = new Reminders({ againMs: JOIN_REMIND_MS, most: JOIN_REASONS_MAX });

  #event(event: WorkerEvent): void {
    switch (event.kind) {
      case "lease-wanted":
        return this.leases.wanted(event.disk);
      case "lease-released":
        this.leases.released(event.disk, event);
        return this.#tell({ kind: "release-noted", disk: event.disk });
      case "reconciled":
        this.leases.opened(event.disk, event.generation);
        this.control.propose({
          kind: "reconciled",
          id: event.disk,
          generation: event.generation,
        });
        return;
      case "in-sync": {
        const { node, incarnation } = this.control.status;
        this.control.propose({
          kind: "in-sync",
          pool: event.pool,
          pgs: event.groups,
          node,
          incarnation,
          basedOnEpoch: event.epoch,
        });
        return;
      }
      case "snapshot-drained":
        this.control.propose({
          kind: "snapshot-taken",
          id: event.disk,
          layer: event.layer,
          generation: event.generation,
        });
        return;
      case "absorbed": {
        const { node, incarnation } = this.control.status;
        this.control.propose({ kind: "absorbed", node, incarnation, layers: event.layers });
        return;
      }
      case "flattened": {
        const { node, incarnation } = this.control.status;
        const { layers, epoch } = event;
        this.control.propose({ kind: "flattened", node, incarnation, layers, epoch });
        return;
      }
      case "groups-lost":
        this.control.loseGroups(event.lost, event.capacityBytes);
        return;
      case "settled": {
        const { node, incarnation } = this.control.status;
        this.control.propose({
          kind: "settled",
          pool: event.pool,
          pgs: event.groups,
          node,
          incarnation,
        });
        return;
      }
      case "reachability":
        void this.#report();
    }
  }

  // ------------------------------------------------------------------------------------------ time

  /** Whether this node is all of its cluster, and asks for no other. */
  get isAlone(): boolean {
    return this.control.map.nodes.length <= 1 && this.#options.join.length === 0;
  }

  /** It is to join others and never will: its store is a cluster of its own. Null: that is not so, or they may still join this one. */
  get joinNote(): string | null {
    const { join } = this.#options;
    if (this.control.node === 0 || this.control.map.nodes.length !== 1 || join.length === 0) {
      return null;
    }
    return `this node is all of its cluster, so it does not join ${
      join.join(", ")
    }: its store has belonged to this cluster since ` +
      "before; to have it join another one, start its agent with an empty data directory and that one's secret";
  }

  /** Why this node is not in its cluster yet, or knows nothing of it; empty: it is a node of it. */
  get joinProblems(): readonly JoinProblem[] {
    const { node } = this.control;
    if (node !== 0 && this.control.map.nodes.length > 0) return [];
    const isRefused = clockMs() - (this.#refused?.atMs ?? -Infinity) < REFUSAL_VALID_MS;
    return joinProblems({
      seeds: this.#options.join,
      address: this.#options.address,
      connections: this.#channel?.status() ?? [],
      leader: this.control.status.namedLeader,
      refused: isRefused ? this.#refused!.message : null,
      node,
    });
  }

  /** Logs why this node is not in its cluster: each reason once, and rarely again. */
  #logJoinProblems(): void {
    const nowMs = clockMs();
    const problems = this.joinProblems;
    const mayEnd = problems.some(({ isWaiting }) => isWaiting);
    if (mayEnd && nowMs - this.#begunMs < START_MS_MAX) return;
    for (const { address, reason, hint } of problems) {
      if (!this.#joinReasons.isDue(`${address} ${reason}`, nowMs)) continue;
      this.#log.warn("this node is not in the cluster yet, and goes on trying", {
        joining: address,
        reason: `${reason}; ${hint}`,
      });
    }
  }

  #tick(): void {
    if (this.#isStopped) return;
    this.control.tick(clockMs());
    this.leases.tick();
    this.#logJoinProblems();
    // The map may not change for days.
    if (clockMs() - this.#lookedUpMs >= RESOLVE_AGAIN_MS) this.#addresses(this.control.map);
    // Alone there is nobody to tell, once control knows that the data worker has the map: before that it lets nothing be served
    // where the log says that a lease was taken away here.
    const isReportWanted = !this.isAlone || !this.#mayServe;
    if (clockMs() - this.#reportedMs >= REPORT_MS && isReportWanted) void this.#report();
    this.#timer = setTimeout(
      () => this.#tick(),
      this.isAlone && this.#mayServe ? TICK_ALONE_MS : TICK_MS,
    );
  }

  /** Gathers what the leader is to know. */
  async #report(): Promise<void> {
    this.#reportedMs = clockMs();
    try {
      const data = await this.#plane.request<WorkerDataStatus>({ kind: "data-status" });
      const store = await this.#plane.request<WorkerStoreStatus>({ kind: "store-status" });
      const rate = rateOf(this.#copied, data.joining.copiedBytes);
      const isProgramNew = this.#program.isNew(clockMs());
      const io = this.#ioRates(data.io);
      const flattening = this.#flattenReport(data);
      this.control.report({ ...reportOf(data, store, rate), isProgramNew, io, flattening });
    } catch {
      // The data plane is about to end; whoever waits for it hears of it.
    }
  }

  /** What disks did lately; null until that can be said. A disk that is deleted takes its counts with it: then it is too little. */
  #ioRates(now: WorkerIo): IoReport | null {
    const nowMs = clockMs();
    const { before, atMs } = this.#io;
    const elapsedMs = nowMs - atMs;
    if (before !== null && elapsedMs < RATE_MS) return this.#io.rates;
    const since = (key: keyof WorkerIo) => Math.max(0, now[key] - (before?.[key] ?? 0));
    const perSecond = (key: keyof WorkerIo) => Math.round(since(key) * 1000 / elapsedMs);
    const timed = since("timedRequests");
    const rates = before === null ? null : {
      readsPerSecond: perSecond("reads"),
      writesPerSecond: perSecond("writes"),
      readBytesPerSecond: perSecond("readBytes"),
      writtenBytesPerSecond: perSecond("writtenBytes"),
      inFlight: now.inFlight,
      latencyUs: timed === 0 ? 0 : Math.max(1, Math.round(since("timedMs") * 1000 / timed)),
    };
    this.#io = { before: now, atMs: nowMs, rates };
    return rates;
  }

  #flattenReport({ flattening }: WorkerDataStatus): FlattenReport | null {
    const bytesPerSecond = rateOf(this.#flattened, flattening.copiedBytes);
    return flattening.layers === 0 ? null : { bytesPerSecond, stuck: flattening.stuck ?? "" };
  }
  readonly #flattened = { bytes: 0, atMs: 0, rate: 0 };

  // ---------------------------------------------------------------------------------- what it does

  /**
   * Proposes a change of the map; resolves when it is in force here.
   *
   * @param gone whoever asked has gone: see `decision.ts`
   * @throws ControlFailure `unavailable` when it was taken back, or not decided for long; the hint says whether it can still happen
   */
  async propose(command: MapCommand, gone?: AbortSignal): Promise<Applied> {
    // Nothing moves time any more: control would say so, and never get to it.
    if (this.#isStopped) {
      throw new ControlFailure({ code: "unavailable", message: "the agent is stopping" });
    }
    const problems = this.joinProblems;
    // What may be over in a moment is waited for.
    if (problems.length > 0 && problems.every(({ isWaiting }) => !isWaiting)) {
      throw new ControlFailure(this.#undecided(true));
    }
    // What was open here is closed for it: only when it is decided may it be opened again.
    const onDecided = command.kind === "force-release-lease"
      ? await this.#stopServing(command) ?? undefined
      : undefined;
    const decision = await decide(this.control, command, {
      timeoutMs: PROPOSE_MS_MAX,
      gone,
      onDecided,
    });
    if (decision.kind === "undecided") {
      throw new ControlFailure(
        decision.isUnwanted
          ? { code: "unavailable", message: "nobody waited for the change: it was not made" }
          : this.#undecided(decision.isOver),
      );
    }
    const { result } = decision;
    if (!result.ok) throw new ControlFailure(result.error);
    await this.delivered();
    return result.value;
  }

  /**
   * Why a change of the map has not been decided.
   *
   * @param isOver it never will be
   */
  #undecided(isOver: boolean): ControlError {
    const problems = this.joinProblems;
    const joining = problems.find(({ isWaiting }) => !isWaiting) ?? problems.at(0);
    if (joining !== undefined) {
      return {
        code: "unavailable",
        message:
          `this node is not in its cluster yet: joining ${joining.address}: ${joining.reason}`,
        hint: joining.hint,
      };
    }
    return {
      code: "unavailable",
      message: "the cluster does not decide: no majority of its voters can be reached from here",
      hint: isOver
        ? "the change was not made, and will not be; 'kelpie status' says how the cluster is"
        : "it may have reached a leader: the change may still happen; see 'kelpie status'",
    };
  }

  /**
   * A lease that is to be taken from this very node: nothing here uses the disk any more when this resolves.
   *
   * @returns see {@linkcode Leases.revoked}
   */
  async #stopServing(
    { id, generation }: Extract<MapCommand, { kind: "force-release-lease" }>,
  ): Promise<(() => void) | null> {
    const decided = this.leases.revoked(id, generation);
    if (decided === null) return null;
    const fencing = this.#fencing;
    try {
      await within(fencing, PROPOSE_MS_MAX, () => {
        throw new Error("it does not answer");
      });
    } catch (error) {
      // Only when it has answered after all is it sure that nobody here uses the disk, and the lease goes back.
      fencing.then(decided, () => {});
      throw new ControlFailure({
        code: "unavailable",
        message: `whether the disk is still used here cannot be said: ${
          error instanceof Error ? error.message : String(error)
        }`,
        hint: "take it away on another node; this one gives it back when its data plane answers",
      });
    }
    return decided;
  }
  /** The data plane stops what was fenced last. */
  #fencing: Promise<unknown> = Promise.resolve();

  /** The cluster's secret. */
  get secret(): Uint8Array {
    return this.#secret.slice();
  }

  /**
   * Takes a node out of the cluster for good: off the voters first, which the leader does for nodes that are draining.
   *
   * @param gone nobody waits for it any more: what no leader has been sent by then is taken back
   */
  async removeNode(
    node: number,
    options: { readonly force: boolean; readonly acceptLoss: boolean },
    gone?: AbortSignal,
  ): Promise<void> {
    const isWanted = () => gone?.aborted !== true;
    const { map } = this.control;
    // What would be refused in the end must not cost the node its vote, nor its data, on the way.
    const voters = map.voters.filter((voter) => voter !== node);
    unwrap(
      apply({ ...map, voters }, { kind: "remove-node", node, ...options, nowMs: Date.now() }),
    );
    const before = findNode(map, node)!.availability;
    try {
      await this.#removeNode(node, options, isWanted, gone);
    } catch (error) {
      const now = findNode(this.control.map, node)?.availability;
      // Nobody waits for this: it follows whatever of the above may still be decided.
      if (before !== "draining" && now !== undefined) {
        this.control.propose({ kind: "set-availability", node, availability: before });
      }
      throw error;
    }
  }

  async #removeNode(
    node: number,
    options: { readonly force: boolean; readonly acceptLoss: boolean },
    isWanted: () => boolean,
    gone: AbortSignal | undefined,
  ): Promise<void> {
    if (this.control.map.voters.includes(node)) {
      await this.propose({ kind: "set-availability", node, availability: "draining" }, gone);
      const endMs = clockMs() + PROPOSE_MS_MAX;
      while (this.control.map.voters.includes(node) && clockMs() < endMs && isWanted()) {
        await new Promise((resolve) => setTimeout(resolve, 100));
      }
    }
    // A node that is down may serve its guests for some seconds more.
    const isDown = () => findNode(this.control.map, node)?.state === "down";
    while (options.force && isDown() && !this.control.isSurelyDown(node) && isWanted()) {
      await new Promise((resolve) => setTimeout(resolve, 200));
    }
    await this.propose({ kind: "remove-node", node, ...options, nowMs: Date.now() }, gone);
  }

  /** What all nodes have reported to the leader lately; empty when it cannot be asked. */
  async reports(): Promise<ReadonlyMap<number, NodeReport>> {
    // Alone it reports to nobody but when it is asked.
    if (this.isAlone) {
      await this.#report();
      this.control.tick(clockMs());
    }
    return await new Promise((resolve) => this.control.askReports(resolve));
  }

  /**
   * The way out when a majority of the voters is gone for good: this node goes on alone with what it has. Its agent must be started
   * anew afterwards. See `consensus/recover.ts` for what may be lost.
   */
  async recover(): Promise<void> {
    const { node } = this.control.status;
    if (this.joinProblems.length > 0) {
      throw new ControlFailure({
        code: "missing",
        message: "this node is not in its cluster yet: there is nothing here to go on with",
        hint: "see 'kelpie status'; recover on a node of the cluster",
      });
    }
    this.stop();
    const values = await this.#plane.request<Record<string, Uint8Array>>({ kind: "read-meta" });
    const { writes } = unwrap(recover(Object.entries(values), node));
    await this.#plane.request({ kind: "persist", writes: [...writes] });
    this.#log.warn("consensus was recovered: this node decides alone from its next start on", {
      node,
    });
  }

  /** Leaves in good order: everything is durable, and no session has a disk any more. */
  async leave(): Promise<void> {
    if (this.#isStopped) return;
    await new Promise<void>((resolve) => {
      const timer = setTimeout(resolve, LEAVE_MS_MAX);
      this.control.leave(() => {
        clearTimeout(timer);
        resolve();
      });
    });
    this.control.handOver();
  }

  /** Ends the network and the timer; once, however often it is asked. */
  stop(): void {
    if (this.#isStopped) return;
    this.#isStopped = true;
    if (this.#timer !== null) clearTimeout(this.#timer);
    this.control.stop();
    this.#channel?.close();
    this.#datagrams?.close();
  }
}

/** Bytes per second that a count has risen by lately. */
function rateOf(counted: { bytes: number; atMs: number; rate: number }, bytes: number): number {
  const nowMs = clockMs();
  const elapsedMs = nowMs - counted.atMs;
  if (elapsedMs < RATE_MS) return counted.rate;
  counted.rate = Math.round((bytes - counted.bytes) * 1000 / elapsedMs);
  counted.bytes = bytes;
  counted.atMs = nowMs;
  return counted.rate;
}

function reportOf(
  data: WorkerDataStatus,
  store: WorkerStoreStatus,
  copyBytesPerSecond: number,
): Omit<NodeReport, "isProgramNew" | "io" | "flattening"> {
  return {
    epoch: data.epoch,
    unreachable: data.unreachable,
    disconnected: data.disconnected,
    usedBytes: store.liveBytes,
    capacityBytes: store.capacityBytes,
    isFull: store.full,
    joiningGroups: data.joining.groups,
    chunksLeft: data.joining.chunksLeft,
    copiedBytes: data.joining.copiedBytes,
    copyBytesPerSecond,
    stuck: data.joining.stuck ?? "",
    waiting: data.waiting,
    damagedBlocks: store.damagedBlocks,
    // What consensus knows, control adds by itself.
    lostLogs: [],
    hasOtherLog: false,
    paths: store.paths.map(({ slots: _, ...path }) => path),
  };
}

async function openNetwork(
  plane: DataPlaneClient,
  log: Logger,
  options: ClusterOptions,
  secret: Uint8Array,
  self: Identity,
): Promise<{ channel: TcpControlChannel | null; datagrams: UdpDatagrams | null }> {
  if (options.listen === null) return { channel: null, datagrams: null };
  const random = new LinuxRandom();
  const channel = new TcpControlChannel({ secret, self, random, log, nowMs: clockMs });
  const datagrams = new UdpDatagrams({ log, nowMs: clockMs });
  try {
    channel.listen(options.listen);
    await datagrams.listen(options.listen);
    const address = withPortOffset(await resolveAddress(options.listen), DATA_PORT_OFFSET);
    await plane.request({ kind: "network", secret, self, address });
  } catch (error) {
    channel.close();
    datagrams.close();
    throw new ControlFailure({
      code: "unavailable",
      message: `cannot listen at ${options.listen}: ${
        error instanceof Error ? error.message : error
      }`,
      hint: "choose another address with --listen; the port and the one after it must be free",
    });
  }
  return { channel, datagrams };
}

/** Parts of writes, in their order, that each fit one message to the data worker: a snapshot of a large map does not. */
function partsOf(writes: readonly StorageWrite[]): StorageWrite[][] {
  const parts: StorageWrite[][] = [[]];
  let bytes = 0;
  for (const write of writes) {
    const size = WRITE_HEAD_BYTES + write.key.length + (write.value?.length ?? 0);
    if (bytes + size > MAP_PART_BYTES && bytes > 0) {
      parts.push([]);
      bytes = 0;
    }
    parts.at(-1)!.push(write);
    bytes += size;
  }
  return parts;
}

function identityOf(
  facts: NodeFacts,
  membership: Membership | null,
  incarnation: number,
  seals: boolean,
): Identity {
  return {
    uuid: facts.uuid,
    node: membership?.node ?? 0,
    incarnation,
    clusterId: membership?.clusterId ?? null,
    address: facts.address,
    features: seals ? FEATURE.sealBulk : 0,
  };
}

function secretOf(stored: Uint8Array | undefined, options: ClusterOptions): Uint8Array {
  if (options.secret !== null) return options.secret;
  if (stored !== undefined) return stored.slice();
  if (options.join.length > 0) throw new ControlFailure(SECRET_MISSING);
  return crypto.getRandomValues(new Uint8Array(SECRET_BYTES));
}

/** A member keeps the secret of its cluster: another one would cut it off without a word. */
function refuseOtherSecret(stored: Uint8Array | undefined, options: ClusterOptions): void {
  if (options.secret === null || stored === undefined || isEqual(stored, options.secret)) return;
  throw new ControlFailure({
    code: "invalid",
    message: "this store belongs to a cluster with another secret",
    hint: "leave --secret-file out, or give the agent a new --data to join another cluster",
  });
}

function refuseOldDisks(oldMap: Uint8Array): void {
  const map = unwrap(decodeMap(oldMap));
  if (map.disks.length === 0) return;
  throw new ControlFailure({
    code: "invalid",
    message: `this store has ${map.disks.length} disks of its own, and a node joins with none`,
    hint: "start the first node of the cluster with this store, and join the others to it",
  });
}

function membershipOf(bytes: Uint8Array | undefined): Membership | null {
  if (bytes === undefined) return null;
  return { node: bytes[0] | bytes[1] << 8, clusterId: toHex(bytes.subarray(2)) };
}

function membershipBytes({ node, clusterId }: Membership): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(2 + clusterId.length / 2);
  bytes[0] = node & 255;
  bytes[1] = node >>> 8;
  for (let i = 0; i < clusterId.length / 2; i++) {
    bytes[2 + i] = parseInt(clusterId.slice(2 * i, 2 * i + 2), 16);
  }
  return bytes;
}
