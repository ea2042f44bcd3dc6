/**
 * The agent: the main thread's side. Puts configuration, data worker, cluster and admin API together.
 *
 *     main thread                                       data worker (data_worker.ts, data_plane.ts)
 *     config ─ cluster_node ─ http ─── mailbox + eventfd ──▶ store, replication, volumes, vhost-user sessions
 *              (control/)          ◀── postMessage ────────
 *
 * Invariants:
 * - What the admin API says is done is in the map, durable at a majority, and in force on this node.
 * - The admin API answers from the start, also while the cluster cannot decide anything: then it says so.
 * - No secret leaves the store's metadata, but for whoever may use the admin socket and asks for it.
 *
 * @module
 */
import { join } from "node:path";
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { advertisedAddress } from "./advertise.ts";
import { ClusterNode, type ClusterOptions, SECRET_MISSING } from "./cluster_node.ts";
import { formatClusterSecret, parseClusterSecret } from "./cluster_secret.ts";
import { nodeStatusOf, waitingDisks } from "./cluster_status.ts";
import { allTargets, nameComparison, targetOf } from "./comparison.ts";
import type { AgentConfig } from "./config.ts";
import type { NodeReport } from "./control/messages.ts";
import { DataPlaneClient, type Ready } from "./data_plane_client.ts";
import type {
  AgentInfo,
  BlockPlace,
  CheckReport,
  ClusterStatus,
  CompareOptions,
  ComparisonReport,
  ControlBackend,
  DamagedBlock,
  DiskStatus,
  Extent,
  ExtentsRange,
  GroupSummary,
  LeaseTime,
  NodeIo,
  NodeStatus,
  RemoveNodeOptions,
  StoreStatus,
} from "./http/backend.ts";
import { EXTENT_STATES } from "./http/backend.ts";
import { refuseLivingAgent, serve, type Server } from "./http/server.ts";
import { Logger } from "./logger.ts";
import { bootIdOf, forgetTorn, isMarkedTorn } from "./failure_mark.ts";
import { ControlFailure, unwrap } from "./map/errors.ts";
import { summarizeGroups } from "./map/group_summary.ts";
import {
  type ClusterMap,
  type DiskEntry,
  diskMissing,
  findDisk,
  heldElsewhere,
  isOn,
  type MapCommand,
  type Merge,
  NODE_NAME_LENGTH_MAX,
} from "./map/map.ts";
import { checkSocketPaths } from "./map/names.ts";
import { readerOfBlock } from "./map/readers.ts";
import { BLOCK_BYTES, CHUNK_BYTES } from "./base/limits.ts";
import type { Gossip, MemberView } from "./gossip/gossip.ts";
import { readText } from "./platform/linux/file.ts";
import { clockMs } from "./platform/linux/libc.ts";
import { readProc } from "./platform/linux/proc.ts";
import { notifySystemd } from "./platform/linux/systemd.ts";
import type { Overlap } from "./replication/overlaps.ts";
import { unreachedText } from "./unreached.ts";
import { VERSION } from "./version.ts";
import type {
  WorkerBlock,
  WorkerCheckReport,
  WorkerComparison,
  WorkerDamage,
  WorkerPath,
  WorkerStoreStatus,
} from "./worker_protocol.ts";

/** File in the data directory. */
const STORE_FILE = "kelpie.store";
/** Of a file's mode. */
const READABLE_BY_OTHERS = 0o004;
/** Where other nodes would reach this one: nowhere, when it does not listen. */
const LOCAL_ADDRESS = "127.0.0.1:7460";

/** A running agent. */
export interface Agent {
  info(): AgentInfo;
  /** Resolves after a clean stop; rejects when the agent ends otherwise. */
  readonly finished: Promise<void>;
  /** Drains, flushes, writes a checkpoint and ends. Safe to call twice. */
  stop(): Promise<void>;
}

/**
 * Starts an agent and waits until it serves.
 *
 * @param config see `loadConfig`
 * @returns the agent; its disks can be opened now
 * @throws {ControlFailure} or SystemError with a message that says what to do
 */
export async function startAgent(config: AgentConfig): Promise<Agent> {
  const log = new Logger({ level: config.logLevel, format: config.logFormat });
  const secret = config.secretFile === null ? null : readSecret(config.secretFile, log);
  makeDirectory(config.runDir);
  makeDirectory(join(config.runDir, "ro"));
  // Before anything is made there: the sockets of its disks would be taken away from a living agent.
  await refuseLivingAgent(config.runDir);
  const paths = config.dataPaths.map((location) =>
    findDataPath(location, config.dataPaths.length === 1)
  );
  refuseTwins(paths);
  const plane = new DataPlaneClient(log);
  const ready = await plane.start({
    paths,
    direct: config.cache === "direct",
    capacityBytes: config.capacityBytes,
    runDir: config.runDir,
    scrubRateBytes: config.scrubRateBytes,
    adopt: config.adopt,
    acceptDamage: config.acceptDamage,
    refuseNew: config.join.length > 0 && secret === null
      ? `${SECRET_MISSING.message}: ${SECRET_MISSING.hint}`
      : null,
    logLevel: config.logLevel,
    logFormat: config.logFormat,
    hostId: hostIdentity(),
  });
  const agent = new AgentCore({ config, secret, paths, plane, ready, log });
  try {
    await agent.begin();
  } catch (error) {
    await agent.stop().catch(() => {});
    throw error;
  }
  return agent;
}

class AgentCore implements Agent, ControlBackend {
  readonly finished: Promise<void>;
  readonly #config: AgentConfig;
  readonly #secret: Uint8Array | null;
  readonly #paths: readonly WorkerPath[];
  readonly #plane: DataPlaneClient;
  readonly #ready: Ready;
  readonly #log: Logger;
  readonly #startedMs = Date.now();
  #cluster: ClusterNode | null = null;
  #server: Server | null = null;
  #stopping: Promise<void> | null = null;
  #finish!: () => void;
  #fail!: (error: Error) => void;
  #hasFailed = false;
  #nextMap = Promise.withResolvers<ClusterMap>();

  constructor(parts: {
    config: AgentConfig;
    /** The cluster's, when it was given. */
    secret: Uint8Array | null;
    paths: readonly WorkerPath[];
    plane: DataPlaneClient;
    ready: Ready;
    log: Logger;
  }) {
    this.#config = parts.config;
    this.#secret = parts.secret;
    this.#paths = parts.paths;
    this.#plane = parts.plane;
    this.#ready = parts.ready;
    this.#log = parts.log;
    this.finished = new Promise((resolve, reject) => {
      this.#finish = resolve;
      this.#fail = (error) => {
        this.#hasFailed = true;
        reject(error);
      };
    });
    // Whoever waits for `finished` hears of it; until then it is not an unhandled rejection.
    this.finished.catch(() => {});
    this.#plane.onFailure = (error) => {
      this.#log.error("the data plane ended", { reason: error.message });
      this.#cluster?.stop();
      void this.#server?.close();
      this.#fail(error);
    };
  }

  /** Becomes a node of its cluster, serves what the map says, opens the admin API. */
  async begin(): Promise<void> {
    const cluster = await ClusterNode.start({
      plane: this.#plane,
      ready: this.#ready,
      log: this.#log,
      options: clusterOptions(this.#config, this.#secret),
      listener: {
        failed: (error) => {
          void this.#server?.close();
          this.#fail(error);
        },
        started: () => this.#forgetTorn(),
        restartWanted: () => this.shutdown(),
        mapChanged: (map) => {
          const next = this.#nextMap;
          this.#nextMap = Promise.withResolvers();
          next.resolve(map);
        },
      },
    });
    this.#cluster = cluster;
    for (const disk of cluster.control.map.disks) {
      const error = checkSocketPaths(this.#config.runDir, disk.name);
      if (error !== null) {
        this.#log.error("a disk cannot be served here", { reason: error.message });
      }
    }
    // Alone there is nobody to wait for, and whoever finds the socket finds the disks as well. In a cluster it may take a
    // majority to begin, and people want to see what is missing.
    const serving = () => serve({ backend: this, log: this.#log, runDir: this.#config.runDir });
    if (!cluster.isAlone) this.#server = await serving();
    const isIn = await cluster.started();
    // It cannot take part; `finished` says why. Not a clean stop: the map does not know of this run.
    if (this.#hasFailed) return;
    if (isIn) await cluster.delivered();
    this.#server ??= await serving();
    if (!isIn && cluster.joinProblems.length === 0) {
      this.#log.warn("the cluster cannot decide anything yet; disks wait until it can", {
        reason: "no majority of its voters is there",
      });
    }
    if (cluster.joinNote !== null) this.#log.warn(cluster.joinNote);
    this.#log.info(
      this.#ready.created ? "made a new store; the agent is ready" : "the agent is ready",
      {
        version: VERSION,
        node: this.#ready.nodeId,
        data: this.#paths.map(({ storePath }) => storePath).join(" "),
        runDir: this.#config.runDir,
        disks: cluster.control.map.disks.length,
        nodes: cluster.control.map.nodes.length,
      },
    );
    notifySystemd("READY=1");
  }

  #forgetTorn(): void {
    try {
      forgetTorn(this.#config.runDir);
    } catch (error) {
      // The next start asks others once more.
      this.#log.warn("a mark in the runtime directory cannot be removed", {
        reason: error instanceof Error ? error.message : String(error),
      });
    }
  }

  /** The cluster; there from the moment that the admin API answers. */
  get #node(): ClusterNode {
    if (this.#cluster === null) throw new Error("the agent has not begun");
    return this.#cluster;
  }

  // ------------------------------------------------------------------------------ ControlBackend

  /** {@inheritDoc ControlBackend.info} */
  info(): AgentInfo {
    return {
      version: VERSION,
      pid: Deno.pid,
      startedMs: this.#startedMs,
      nodeId: this.#ready.nodeId,
      clusterId: this.map().clusterId || this.#ready.clusterId,
      runDir: this.#config.runDir,
      dataPath: this.#paths[0].storePath,
      dataPaths: this.#paths.map(({ storePath }) => storePath),
      logLevel: this.#log.level,
    };
  }

  /** {@inheritDoc ControlBackend.map} */
  map(): ClusterMap {
    return this.#node.control.map;
  }

  /** {@inheritDoc ControlBackend.mapBytes} */
  mapBytes(): number {
    return this.#node.control.mapBytes;
  }

  /** {@inheritDoc ControlBackend.nextMap} */
  nextMap(): Promise<ClusterMap> {
    return this.#nextMap.promise;
  }

  /** {@inheritDoc ControlBackend.inForce} */
  inForce(): Promise<void> {
    return this.#node.delivered();
  }

  /** {@inheritDoc ControlBackend.propose} */
  async propose(command: MapCommand, gone?: AbortSignal): Promise<ClusterMap> {
    // What was begun is brought to an end: the cluster is left last.
    if (this.#stopping !== null && command.kind !== "abort-snapshots") {
      throw new ControlFailure({ code: "unavailable", message: "the agent is stopping" });
    }
    await this.#checkCommand(command);
    if (gone?.aborted) {
      throw new ControlFailure({ code: "unavailable", message: "nobody waited for the change" });
    }
    const isZeroed = await this.#shrinkFirst(command);
    // The disk that is meant is the one that has the name now, whenever the cluster gets to it.
    const isDelete = command.kind === "delete-disk";
    const id = isDelete ? findDisk(this.map(), command.name)?.id : undefined;
    try {
      const { map } = await this.#node.propose(
        id === undefined ? command : { ...command, id } as MapCommand,
        // What was begun with the disk's data is brought to an end, whoever has gone.
        isZeroed ? undefined : gone,
      );
      return map;
    } catch (error) {
      if (!isZeroed || !(error instanceof ControlFailure)) throw error;
      const { message } = error.error;
      throw new ControlFailure({
        ...error.error,
        message: `${message}; what the disk held behind the new size has been taken away already`,
      });
    }
  }

  /** What the map alone cannot know. */
  async #checkCommand(command: MapCommand): Promise<void> {
    const newName = newNameOf(command);
    if (newName !== null) {
      const error = checkSocketPaths(this.#config.runDir, newName);
      if (error !== null) throw new ControlFailure(error);
    }
    const name = this.#nameUnused(command);
    const disk = name === null ? undefined : findDisk(this.map(), name);
    if (disk === undefined) return;
    const { sessions } = await this.diskStatus(disk.name);
    if (sessions.length > 0) {
      throw new ControlFailure({
        code: "busy",
        message: `disk ${disk.name} is in use by process ${
          sessions.map((session) => session.pid).join(", ")
        }`,
        hint: command.kind === "delete-disk"
          ? "stop the guest, or use --force to disconnect it"
          : "stop the guest first",
      });
    }
    const error = heldElsewhere(this.map(), disk, this.#ready.nodeId);
    if (error !== null) throw new ControlFailure(error);
  }

  /** The disk that a command takes something away from, so that nobody may use it; null: there is none. */
  #nameUnused(command: MapCommand): string | null {
    if (command.kind === "delete-disk") return command.name;
    if (command.kind === "rollback-disk") return command.disk;
    return this.#isShrink(command) ? command.name : null;
  }

  #isShrink(command: MapCommand): command is Extract<MapCommand, { kind: "resize-disk" }> {
    return command.kind === "resize-disk" &&
      command.sizeBytes < (findDisk(this.map(), command.name)?.sizeBytes ?? 0);
  }

  /**
   * What a shrink cuts off is forgotten on all replicas before the map says so: then nothing can bring it back, whatever
   * crashes in between.
   *
   * @returns whether there was something to cut off
   */
  async #shrinkFirst(command: MapCommand): Promise<boolean> {
    if (!this.#isShrink(command) || command.shrink !== true) return false;
    const disk = findDisk(this.map(), command.name)!;
    await this.#plane.request({
      kind: "zero",
      disk: disk.id,
      startBytes: command.sizeBytes,
      endBytes: disk.sizeBytes,
    });
    return true;
  }

  #find(name: string): DiskEntry {
    const disk = findDisk(this.map(), name);
    if (disk === undefined) throw new ControlFailure(diskMissing(name));
    return disk;
  }

  /** {@inheritDoc ControlBackend.leaseTime} */
  leaseTime(disk: DiskEntry): LeaseTime | null {
    return this.#node.leaseTimes.of(disk);
  }

  /** {@inheritDoc ControlBackend.diskStatus} */
  async diskStatus(name: string): Promise<DiskStatus> {
    const status = await this.#plane.request<DiskStatus>({
      kind: "disk-status",
      disk: this.#find(name).id,
    });
    for (const session of status.sessions) session.command = commandOf(session.pid);
    return status;
  }

  /** {@inheritDoc ControlBackend.layerBytes} */
  async layerBytes(): Promise<ReadonlyMap<number, number>> {
    const pairs = await this.#plane.request<number[]>({ kind: "layer-bytes" });
    const bytes = new Map<number, number>();
    for (let i = 0; i < pairs.length; i += 2) bytes.set(pairs[i], pairs[i + 1]);
    return bytes;
  }

  /** {@inheritDoc ControlBackend.overlapBytes} */
  async overlapBytes({ above, below }: Merge, isWanted: () => boolean): Promise<number | null> {
    let blocks = 0;
    for (let from = 0; from >= 0;) {
      if (!isWanted()) return null;
      // Each does as much as guests may have to wait for; they are served before the next one.
      const found = await this.#plane.request<Overlap>({
        kind: "overlap",
        above: [...above],
        below: [...below],
        from,
      });
      blocks += found.blocks;
      from = found.next;
    }
    return blocks * BLOCK_BYTES;
  }

  /** {@inheritDoc ControlBackend.extents} */
  async extents(
    name: string,
    { offsetBytes, lengthBytes, layer = 0, since = 0 }: ExtentsRange,
  ): Promise<Extent[]> {
    const startBytes = offsetBytes - offsetBytes % BLOCK_BYTES;
    const endBytes = Math.ceil((offsetBytes + lengthBytes) / BLOCK_BYTES) * BLOCK_BYTES;
    const disk = this.#find(name).id;
    const request = { kind: "extents", disk, startBytes, endBytes, layer, since } as const;
    const runs = await this.#plane.request<number[]>(request);
    // The store knows blocks; what is too much at either end is cut off.
    const extents: Extent[] = [];
    let at = startBytes;
    for (let i = 0; i < runs.length; i += 2) {
      const end = Math.min(at + runs[i], offsetBytes + lengthBytes);
      const extentBytes = end - Math.max(at, offsetBytes);
      if (extentBytes > 0) {
        extents.push({ lengthBytes: extentBytes, state: EXTENT_STATES[runs[i + 1]] });
      }
      at += runs[i];
    }
    return extents;
  }

  /** {@inheritDoc ControlBackend.block} */
  async block(name: string, offsetBytes: number, newest = 0): Promise<BlockPlace> {
    const chunk = Math.floor(offsetBytes / CHUNK_BYTES);
    const block = Math.floor(offsetBytes % CHUNK_BYTES / BLOCK_BYTES);
    const disk = this.#find(name).id;
    const request = { kind: "block", disk, chunk, block, layer: newest } as const;
    const found = await this.#plane.request<WorkerBlock | null>(request);
    if (found === null) {
      return { state: "unknown", layer: null, path: null, storeOffsetBytes: null };
    }
    const { layer, kind, isDamaged, location, storeOffsetBytes } = found;
    return {
      state: isDamaged ? "damaged" : EXTENT_STATES[kind],
      layer: layer === 0 ? null : layer,
      path: location,
      storeOffsetBytes: location === null ? null : storeOffsetBytes,
    };
  }

  /** {@inheritDoc ControlBackend.closeSessions} */
  async closeSessions(name: string): Promise<void> {
    await this.#plane.request({ kind: "close-sessions", disk: this.#find(name).id });
  }

  /** {@inheritDoc ControlBackend.storeStatus} */
  async storeStatus(): Promise<StoreStatus> {
    const status = await this.#plane.request<WorkerStoreStatus>({ kind: "store-status" });
    return {
      ...status,
      path: this.#paths[0].storePath,
      cache: this.#config.cache,
      paths: status.paths.map(({ slots: _, ...path }) => path),
      damage: this.#nameDamage(status.damage),
    };
  }

  /** @param preferred name of the disk to name where several share a layer */
  #nameDamage(damage: readonly WorkerDamage[], preferred: string | null = null): DamagedBlock[] {
    const map = this.map();
    const names = new Map<string, string>();
    return damage.map(({ layer, offsetBytes, holders }) => {
      const key = `${layer} ${holders.join()}`;
      let disk = names.get(key);
      if (disk === undefined) {
        names.set(key, disk = readerOfBlock(map, layer, holders, preferred));
      }
      return { disk, offsetBytes };
    });
  }

  /** {@inheritDoc ControlBackend.check} */
  async check(
    name: string | null,
    onProgress: (checkedBytes: number, totalBytes: number) => void,
    signal: AbortSignal,
  ): Promise<CheckReport> {
    // Those of snapshots, too: after a rollback the disk is not read through all of them.
    const layers = name === null ? null : [...targetOf(this.map(), this.#find(name)).layers];
    const report = await this.#plane.request<WorkerCheckReport>(
      { kind: "check", layers },
      { onProgress, signal },
    );
    const damage = this.#nameDamage(report.damage, name).filter(({ disk }) =>
      name === null || disk === name || disk.startsWith(`${name}@`)
    );
    return {
      checkedBytes: report.checkedBytes,
      damagedBlocks: name === null ? report.damagedBlocks : damage.length,
      damage,
    };
  }

  /** {@inheritDoc ControlBackend.compare} */
  async compare(
    name: string | null,
    options: CompareOptions,
    onProgress: (checkedBytes: number, totalBytes: number) => void,
    signal: AbortSignal,
  ): Promise<ComparisonReport> {
    const map = this.map();
    if (!isOn(map, 2)) {
      throw new ControlFailure({
        code: "limit",
        message: `replicas are compared at level 2, and the cluster speaks ${map.level}`,
        hint:
          "upgrade every node first ('kelpie cluster upgrade'), or verify the checksums of one " +
          "node: 'kelpie disk check --local'",
      });
    }
    const targets = name === null ? allTargets(map) : [targetOf(map, this.#find(name))];
    const report = await this.#plane.request<WorkerComparison>(
      { kind: "compare", options: { targets, ...options } },
      { onProgress, signal },
    );
    const named = nameComparison(this.map(), map, report);
    this.#log.info("replicas were compared", {
      disks: named.disks.length,
      good: named.good,
      blocks: named.blocks.length,
    });
    return named;
  }

  /** {@inheritDoc ControlBackend.cluster} */
  async cluster(): Promise<ClusterStatus> {
    const { control } = this.#node;
    const reports = await this.#node.reports();
    const map = this.map();
    const { node: self, leader, serveUntilMs } = control.status;
    const hasQuorum = leader !== 0 && clockMs() < serveUntilMs;
    const lostLogs = [...reports.values()].flatMap((report) => report.lostLogs);
    const nodes = map.nodes.map((node): NodeStatus => {
      const status = nodeStatusOf(map, node, { self, leader });
      const report = reports.get(node.id);
      const member = control.gossip.member(node.uuid);
      const rate = report?.copyBytesPerSecond ?? 0;
      const bytesLeft = (report?.chunksLeft ?? 0) * CHUNK_BYTES;
      return {
        ...status,
        gossip: member?.state ?? "unknown",
        suspectedBecause: member === null ? null : suspicionOf(member, control.gossip),
        usedBytes: report?.usedBytes ?? null,
        capacityBytes: report?.capacityBytes || node.capacityBytes,
        joiningGroups: report?.joiningGroups ?? 0,
        chunksLeft: report?.chunksLeft ?? 0,
        copyBytesPerSecond: report !== undefined && report.joiningGroups > 0 ? rate : null,
        secondsLeft: rate > 0 && bytesLeft > 0 ? Math.ceil(bytesLeft / rate) : null,
        stuck: report?.stuck || unreachedText(map, node, reports),
        flattenStuck: report?.flattening?.stuck || null,
        flattenBytesPerSecond: report?.flattening?.bytesPerSecond ?? null,
        damagedBlocks: report?.damagedBlocks ?? 0,
        isFull: report?.isFull ?? false,
        hasLostLog: lostLogs.includes(node.id),
        // Of itself a node knows it, whomever it reaches.
        hasOtherLog: node.id === self
          ? control.status.raft?.hasOtherLog ?? false
          : report?.hasOtherLog ?? false,
        paths: [...report?.paths ?? []],
        io: ioOf(report),
        isProgramNew: report?.isProgramNew ?? null,
      };
    });
    return {
      epoch: map.epoch,
      level: map.level,
      leader,
      hasQuorum,
      voters: [...map.voters],
      nodes,
      waiting: waitingDisks(map, reports),
      joining: this.#node.joinProblems.map(({ address, reason, hint }) => ({
        address,
        reason,
        hint,
      })),
      notes: this.#node.joinNote === null ? [] : [this.#node.joinNote],
    };
  }

  /** {@inheritDoc ControlBackend.groups} */
  groups(): Promise<GroupSummary> {
    return Promise.resolve(summarizeGroups(this.map()));
  }

  /** {@inheritDoc ControlBackend.secret} */
  secret(): Promise<string> {
    return Promise.resolve(formatClusterSecret(this.#node.secret));
  }

  /** {@inheritDoc ControlBackend.recover} */
  async recover(): Promise<void> {
    const { leader, serveUntilMs } = this.#node.control.status;
    if (leader !== 0 && clockMs() < serveUntilMs) {
      throw new ControlFailure({
        code: "busy",
        message: "the cluster has a majority and can decide: there is nothing to recover",
        hint: "take single nodes out with 'kelpie node remove NODE --force'",
      });
    }
    await this.#node.recover();
    this.shutdown();
  }

  /** {@inheritDoc ControlBackend.removeNode} */
  removeNode(node: number, options: RemoveNodeOptions, gone?: AbortSignal): Promise<void> {
    return this.#node.removeNode(node, options, gone);
  }

  /** {@inheritDoc ControlBackend.restartNode} */
  restartNode(node: number): void {
    this.#node.control.askRestart(node);
  }

  /** {@inheritDoc ControlBackend.setLogLevel} */
  setLogLevel(level: "debug" | "info" | "warn" | "error"): void {
    this.#log.level = level;
    void this.#plane.request({ kind: "log-level", level });
  }

  /** {@inheritDoc ControlBackend.shutdown} */
  shutdown(): void {
    void this.stop().catch(() => {});
  }

  /** {@inheritDoc Agent.stop} */
  stop(): Promise<void> {
    this.#stopping ??= this.#stop();
    return this.#stopping;
  }

  async #stop(): Promise<void> {
    this.#log.info("stopping");
    notifySystemd("STOPPING=1");
    try {
      await this.#server?.close();
      // Guests first, then the map (what is left has to be durable by then), then the store.
      await this.#plane.drain();
      await this.#cluster?.leave();
      this.#cluster?.stop();
      await this.#plane.stop();
      this.#log.info("stopped");
      this.#finish();
    } catch (error) {
      this.#cluster?.stop();
      const failure = error instanceof Error ? error : new Error(String(error));
      this.#fail(failure);
      throw failure;
    }
  }
}

/** The name that a disk gets by a command; null: none does. */
function newNameOf(command: MapCommand): string | null {
  switch (command.kind) {
    case "create-disk":
    case "clone-disk":
    case "restore-disk":
      return command.name;
    case "rename-disk":
      return command.newName;
    default:
      return null;
  }
}

/** What the configuration says of the cluster. */
function clusterOptions(config: AgentConfig, secret: Uint8Array | null): ClusterOptions {
  const { listen } = config;
  return {
    listen,
    address: listen === null
      ? LOCAL_ADDRESS
      : advertisedAddress(config.address, listen, Deno.networkInterfaces()),
    join: config.join,
    name: config.name ?? hostName(),
    zone: config.zone,
    witness: config.witness,
    weightBytes: config.weightBytes,
    secret,
    bootId: bootIdOf(readProc("/proc/sys/kernel/random/boot_id"), config.runDir),
    torn: isMarkedTorn(config.runDir),
  };
}

/** Who probed a member in vain, and since when, in words; null: nobody suspects it. */
function suspicionOf(member: MemberView, gossip: Gossip): string | null {
  const [first] = member.accusations;
  if (first === undefined || member.state === "alive") return null;
  const by = gossip.member(first.by)?.meta.name ?? first.by.slice(0, 8);
  const seconds = Math.max(0, Math.round((clockMs() - first.atMs) / 1000));
  const others = member.accusations.length - 1;
  return `${by} has probed it in vain, ${seconds} s ago` +
    (others > 0 ? `, and ${others} ${others === 1 ? "other" : "others"} since` : "");
}

/** The cluster secret in a file. No part of it appears in a message. */
function readSecret(path: string, log: Logger): Uint8Array {
  let text: string;
  try {
    text = readText(path);
    // Its group may be the agent's, to which root gives it to read.
    if (((Deno.statSync(path).mode ?? 0) & READABLE_BY_OTHERS) !== 0) {
      log.warn(
        "everybody on this host can read the cluster secret, and so everything in the cluster",
        {
          file: path,
          do: `chmod 600 ${path}`,
        },
      );
    }
  } catch (error) {
    throw new ControlFailure({
      code: "invalid",
      message: `cannot read the secret file ${path}: ${
        error instanceof Error ? error.message : error
      }`,
    });
  }
  return unwrap(parseClusterSecret(text));
}

/** Makes a directory that only its owner may enter. */
function makeDirectory(path: string): void {
  try {
    Deno.mkdirSync(path, { recursive: true, mode: 0o700 });
  } catch (error) {
    throw new ControlFailure({
      code: "unavailable",
      message: `cannot make the directory ${path}: ${
        error instanceof Error ? error.message : error
      }`,
      hint: "run as root, or choose another one with --run-dir",
    });
  }
}

/**
 * The store's file for a data path: a directory gets one, anything else is it. The worker makes what is new.
 *
 * @param isOnly there is no other that could go on without it; of several, one that cannot be reached is said to be so
 */
function findDataPath(location: string, isOnly: boolean): WorkerPath {
  // Devices are not for the runtime's own stat, which would need more permissions than the program has.
  if (location.startsWith("/dev/")) return { location, storePath: location, reason: "" };
  const path = { location, storePath: join(location, STORE_FILE), reason: "" };
  let info: Deno.FileInfo | null = null;
  try {
    info = Deno.statSync(location);
  } catch (error) {
    const isMissing = error instanceof Deno.errors.NotFound;
    if (!isMissing && isOnly) throw error;
    if (!isMissing) return { ...path, reason: error instanceof Error ? error.message : `${error}` };
  }
  if (info?.isFile) {
    throw new ControlFailure({
      code: "invalid",
      message: `--data ${location} is a file`,
      hint: `name a directory (it gets the file ${STORE_FILE}) or a block device`,
    });
  }
  return path;
}

/** Two names of one directory would be two stores of which one is not there. */
function refuseTwins(paths: readonly WorkerPath[]): void {
  const known = new Map<string, string>();
  for (const { location } of paths) {
    if (location.startsWith("/dev/")) continue;
    let real = location;
    try {
      real = Deno.realPathSync(location);
    } catch {
      // It is not there, or cannot be reached: whatever opens it says so.
      continue;
    }
    const twin = known.get(real);
    if (twin !== undefined) {
      throw new ControlFailure({
        code: "invalid",
        message: `--data ${twin} and --data ${location} are the same directory`,
      });
    }
    known.set(real, location);
  }
}

/** What tells this host from others: a hash of its machine id; zeros where it has none. */
function hostIdentity(): Uint8Array {
  try {
    const id = readFileSync("/etc/machine-id", "utf8").trim();
    if (id.length === 0) return new Uint8Array(16);
    return new Uint8Array(
      createHash("sha256").update(`kelpie host ${id}`).digest().subarray(0, 16),
    );
  } catch {
    return new Uint8Array(16);
  }
}

/** This host's name as a node's: other characters become '-'. */
function hostName(): string {
  const name = readProc("/proc/sys/kernel/hostname").replace(/[^a-zA-Z0-9._-]/g, "-")
    .replace(/^[^a-zA-Z0-9]+/, "").slice(0, NODE_NAME_LENGTH_MAX);
  return name === "" ? "node" : name;
}

/** Name of a process, or "". */
function commandOf(pid: number): string {
  return pid <= 0 ? "" : readProc(`/proc/${pid}/comm`);
}

/** What a node has reported of its disks. */
function ioOf(report: NodeReport | undefined): NodeIo | null {
  if (report === undefined || report.io === null) return null;
  const { latencyUs, ...io } = report.io;
  return { ...io, latencyMs: latencyUs === 0 ? null : latencyUs / 1000 };
}
