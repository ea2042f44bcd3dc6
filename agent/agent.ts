/**
 * The agent: the main thread's side. Puts configuration, data worker, cluster map and admin API together.
 *
 *     main thread                                   data worker (data_worker.ts, data_plane.ts)
 *     config ─ map ─ http ─── mailbox + eventfd ──▶ store, volumes, vhost-user sessions
 *                         ◀── postMessage ────────
 *
 * Invariants:
 * - A change of the map is durable before its effects are carried out, and both before it is acknowledged. A start does what
 *   effects of a change that was cut short would have done, so that a crash in between leaves nothing half-made.
 * - Changes are made one after the other, in the order in which they were asked for.
 * - The cluster secret leaves the store's metadata only for whoever asks the admin API for it.
 *
 * @module
 */
import { join } from "node:path";
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { formatClusterSecret } from "./cluster_secret.ts";
import { clusterStatusOf } from "./cluster_status.ts";
import type { AgentConfig } from "./config.ts";
import type {
  AgentInfo,
  CheckReport,
  ClusterStatus,
  ControlBackend,
  DamagedBlock,
  DiskStatus,
  GroupSummary,
  RemoveNodeOptions,
  StoreStatus,
} from "./http/backend.ts";
import { serve, type Server } from "./http/server.ts";
import { Logger } from "./logger.ts";
import { ControlFailure, unwrap } from "./map/errors.ts";
import { summarizeGroups } from "./map/group_summary.ts";
import {
  adopt,
  apply,
  type ClusterMap,
  type DiskEntry,
  diskMissing,
  EMPTY_MAP,
  findDisk,
  findNodeByUuid,
  type Founder,
  type MapCommand,
  type MapEffect,
  NODE_NAME_LENGTH_MAX,
  type NodeEntry,
} from "./map/map.ts";
import { decodeMap, encodeMap } from "./map/map_codec.ts";
import { checkSocketPaths } from "./map/names.ts";
import { createEventFd, cString, libc, O_CLOEXEC, O_RDONLY } from "./platform/linux/libc.ts";
import { createMailbox, MailboxSender } from "./platform/linux/mailbox.ts";
import { notifySystemd } from "./platform/linux/systemd.ts";
import { PROTOCOL, VERSION } from "./version.ts";
import type {
  NumberedRequest,
  WorkerCheckReport,
  WorkerMessage,
  WorkerRequest,
  WorkerStart,
  WorkerStoreStatus,
} from "./worker_protocol.ts";

/** File in the data directory. */
const STORE_FILE = "kelpie.store";
/** Keys of the store's metadata. */
const MAP_KEY = "map";
const SECRET_KEY = "secret";
/** Bytes of the cluster secret. */
const SECRET_BYTES = 32;
/** Where other nodes would reach this one: nowhere, as long as it is alone. */
const LOCAL_ADDRESS = "127.0.0.1:7460";
/** Longest wait for the data plane's last words after a stop: draining, a sync and a checkpoint. */
const STOP_TIMEOUT_MS = 120_000;

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
  makeDirectory(config.runDir);
  makeDirectory(join(config.runDir, "ro"));
  const storePath = prepareDataPath(config.dataPath);
  const plane = new DataPlaneClient(log);
  const ready = await plane.start({
    storePath,
    direct: config.cache === "direct",
    capacityBytes: config.capacityBytes,
    runDir: config.runDir,
    scrubRateBytes: config.scrubRateBytes,
    adopt: config.adopt,
    acceptDamage: config.acceptDamage,
    logLevel: config.logLevel,
    logFormat: config.logFormat,
    hostId: hostIdentity(),
  });
  const agent = new AgentCore(config, storePath, plane, ready, log);
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
  readonly #storePath: string;
  readonly #plane: DataPlaneClient;
  readonly #ready: Ready;
  readonly #log: Logger;
  readonly #startedMs = Date.now();
  #map: ClusterMap = EMPTY_MAP;
  #secret: Uint8Array = new Uint8Array(0);
  #server: Server | null = null;
  /** The change under way, after which the next may begin. */
  #changes: Promise<unknown> = Promise.resolve();
  #stopping: Promise<void> | null = null;
  #finish!: () => void;
  #fail!: (error: Error) => void;

  constructor(
    config: AgentConfig,
    storePath: string,
    plane: DataPlaneClient,
    ready: Ready,
    log: Logger,
  ) {
    this.#config = config;
    this.#storePath = storePath;
    this.#plane = plane;
    this.#ready = ready;
    this.#log = log;
    this.finished = new Promise((resolve, reject) => {
      this.#finish = resolve;
      this.#fail = reject;
    });
    // Whoever waits for `finished` hears of it; until then it is not an unhandled rejection.
    this.finished.catch(() => {});
    plane.onFailure = (error) => {
      this.#log.error("the data plane ended", { reason: error.message });
      void this.#server?.close();
      this.#fail(error);
    };
    plane.onLeaseWanted = (disk, token) => void this.#lease(disk, token);
  }

  /** Reads the map, repairs what a crash left half done, serves all disks, opens the admin API. */
  async begin(): Promise<void> {
    const { meta, created, nodeId } = this.#ready;
    this.#secret = meta[SECRET_KEY] ?? crypto.getRandomValues(new Uint8Array(SECRET_BYTES));
    if (meta[SECRET_KEY] === undefined) {
      await this.#plane.request({ kind: "commit", key: SECRET_KEY, value: this.#secret });
    }
    await this.#enter(meta[MAP_KEY]);
    const used = new Set(this.#map.disks.flatMap((disk) => disk.layers));
    for (let layer = 1; layer < this.#map.nextLayer; layer++) {
      const kind = used.has(layer) ? "create-layer" : "delete-layer";
      await this.#plane.request({ kind, layer });
    }
    for (const disk of this.#map.disks) {
      const error = checkSocketPaths(this.#config.runDir, disk.name);
      if (error !== null) throw new ControlFailure(error);
      await this.#plane.request({ kind: "serve", disk });
    }
    this.#server = await serve({ backend: this, log: this.#log, runDir: this.#config.runDir });
    this.#log.info(created ? "made a new store; the agent is ready" : "the agent is ready", {
      version: VERSION,
      node: nodeId,
      data: this.#storePath,
      runDir: this.#config.runDir,
      disks: this.#map.disks.length,
    });
    notifySystemd("READY=1");
  }

  /**
   * Becomes a node of the map: founds a cluster of one, adopts a map that has no nodes, or starts its next
   * incarnation.
   */
  async #enter(stored: Uint8Array | undefined): Promise<void> {
    const { capacityBytes } = await this.#plane.request<WorkerStoreStatus>({
      kind: "store-status",
    });
    const founder: Founder = {
      clusterId: this.#ready.clusterId,
      uuid: this.#ready.nodeId,
      name: hostName(),
      address: LOCAL_ADDRESS,
      zone: "",
      capacityBytes,
      witness: false,
      version: VERSION,
      protocol: PROTOCOL,
      bootId: readLine("/proc/sys/kernel/random/boot_id"),
      nowMs: this.#startedMs,
    };
    const before = stored === undefined ? EMPTY_MAP : unwrap(decodeMap(stored));
    const map = before.nodes.length === 0
      ? unwrap(adopt(before, founder))
      : startAgain(before, founder);
    const value = unwrap(encodeMap(map));
    await this.#plane.request({ kind: "commit", key: MAP_KEY, value });
    this.#map = map;
  }

  /** This node's entry in the map. */
  #self(): NodeEntry {
    return requireSelf(this.#map, this.#ready.nodeId);
  }

  // ------------------------------------------------------------------------------ ControlBackend

  /** {@inheritDoc ControlBackend.info} */
  info(): AgentInfo {
    return {
      version: VERSION,
      pid: Deno.pid,
      startedMs: this.#startedMs,
      nodeId: this.#ready.nodeId,
      clusterId: this.#ready.clusterId,
      runDir: this.#config.runDir,
      dataPath: this.#storePath,
      logLevel: this.#log.level,
    };
  }

  /** {@inheritDoc ControlBackend.map} */
  map(): ClusterMap {
    return this.#map;
  }

  /** {@inheritDoc ControlBackend.propose} */
  propose(command: MapCommand): Promise<ClusterMap> {
    const change = this.#changes.then(() => this.#change(command));
    this.#changes = change.catch(() => {});
    return change;
  }

  async #change(command: MapCommand): Promise<ClusterMap> {
    if (this.#stopping !== null) {
      throw new ControlFailure({ code: "unavailable", message: "the agent is stopping" });
    }
    await this.#checkCommand(command);
    const { map, effects } = unwrap(apply(this.#map, command));
    if (map === this.#map) return map;
    const value = unwrap(encodeMap(map));
    await this.#plane.request({ kind: "commit", key: MAP_KEY, value });
    const before = this.#map;
    this.#map = map;
    for (const effect of effects) await this.#carryOut(effect, before);
    return map;
  }

  /** What the map alone cannot know. */
  async #checkCommand(command: MapCommand): Promise<void> {
    const newName = command.kind === "create-disk"
      ? command.name
      : command.kind === "rename-disk"
      ? command.newName
      : null;
    if (newName !== null) {
      const error = checkSocketPaths(this.#config.runDir, newName);
      if (error !== null) throw new ControlFailure(error);
    }
    const isShrink = command.kind === "resize-disk" &&
      command.sizeBytes < (findDisk(this.#map, command.name)?.sizeBytes ?? 0);
    if (command.kind === "delete-disk" || isShrink) {
      if (findDisk(this.#map, command.name) === undefined) return;
      const { sessions } = await this.diskStatus(command.name);
      if (sessions.length > 0) {
        throw new ControlFailure({
          code: "busy",
          message: `disk ${command.name} is in use by process ${
            sessions.map((session) => session.pid).join(", ")
          }`,
          hint: "stop the guest, or use --force to disconnect it",
        });
      }
    }
  }

  async #carryOut(effect: MapEffect, before: ClusterMap): Promise<void> {
    switch (effect.kind) {
      case "layer-created":
        await this.#plane.request({ kind: "create-layer", layer: effect.layer });
        return;
      case "layer-dropped":
        await this.#plane.request({ kind: "delete-layer", layer: effect.layer });
        return;
      case "disk-added":
        await this.#plane.request({ kind: "serve", disk: effect.disk });
        return;
      case "disk-removed":
        await this.#plane.request({ kind: "stop-serving", disk: effect.disk.id });
        return;
      case "disk-resized": {
        const { disk, previousBytes } = effect;
        const isGrowing = disk.sizeBytes > previousBytes;
        if (!isGrowing) await this.#plane.request({ kind: "update", disk });
        await this.#plane.request({
          kind: "zero",
          layer: disk.layers[0],
          startBytes: Math.min(disk.sizeBytes, previousBytes),
          endBytes: Math.max(disk.sizeBytes, previousBytes),
        });
        if (isGrowing) await this.#plane.request({ kind: "update", disk });
        return;
      }
      case "disk-changed": {
        const old = before.disks.find((disk) => disk.id === effect.disk.id);
        if (old !== undefined && old.readOnly !== effect.disk.readOnly) {
          // Front ends learn of it only by connecting anew.
          await this.#plane.request({ kind: "update", disk: effect.disk });
          await this.#plane.request({ kind: "close-sessions", disk: effect.disk.id });
          return;
        }
        await this.#plane.request({ kind: "update", disk: effect.disk });
        return;
      }
      case "groups-lost":
        this.#log.error("data was given up", { ...effect.loss });
        return;
      case "disk-renamed":
      case "lease-taken":
      case "lease-released":
      case "disk-reconciled":
        await this.#plane.request({ kind: "update", disk: effect.disk });
    }
  }

  /** A session wants to write: raise the disk's generation, durably, then grant. */
  async #lease(disk: number, token: number): Promise<void> {
    try {
      const { id: node, incarnation } = this.#self();
      const map = await this.propose({ kind: "take-lease", id: disk, node, incarnation });
      const entry = map.disks.find((candidate) => candidate.id === disk);
      if (entry === undefined) throw new Error("the disk is gone");
      const { generation } = entry;
      await this.#plane.request({ kind: "lease-granted", disk, token, generation });
    } catch (error) {
      const reason = error instanceof Error ? error.message : String(error);
      await this.#plane.request({ kind: "lease-refused", disk, token, reason }).catch(() => {});
    }
  }

  #find(name: string): DiskEntry {
    const disk = findDisk(this.#map, name);
    if (disk === undefined) throw new ControlFailure(diskMissing(name));
    return disk;
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

  /** {@inheritDoc ControlBackend.closeSessions} */
  async closeSessions(name: string): Promise<void> {
    await this.#plane.request({ kind: "close-sessions", disk: this.#find(name).id });
  }

  /** {@inheritDoc ControlBackend.storeStatus} */
  async storeStatus(): Promise<StoreStatus> {
    const status = await this.#plane.request<WorkerStoreStatus>({ kind: "store-status" });
    return {
      ...status,
      path: this.#storePath,
      cache: this.#config.cache,
      damage: this.#nameDamage(status.damage),
    };
  }

  #nameDamage(damage: readonly { layer: number; offsetBytes: number }[]): DamagedBlock[] {
    return damage.map(({ layer, offsetBytes }) => ({
      disk: this.#map.disks.find((disk) => disk.layers.includes(layer))?.name ?? "",
      offsetBytes,
    }));
  }

  /** {@inheritDoc ControlBackend.check} */
  async check(
    name: string | null,
    onProgress: (checkedBytes: number, totalBytes: number) => void,
    signal: AbortSignal,
  ): Promise<CheckReport> {
    const layers = name === null ? null : [...this.#find(name).layers];
    const report = await this.#plane.request<WorkerCheckReport>(
      { kind: "check", layers },
      { onProgress, signal },
    );
    const damage = this.#nameDamage(report.damage).filter((block) =>
      name === null || block.disk === name
    );
    return {
      checkedBytes: report.checkedBytes,
      damagedBlocks: name === null ? report.damagedBlocks : damage.length,
      damage,
    };
  }

  /** {@inheritDoc ControlBackend.cluster} */
  cluster(): Promise<ClusterStatus> {
    const { id } = this.#self();
    return Promise.resolve(clusterStatusOf(this.#map, id, id));
  }

  /** {@inheritDoc ControlBackend.groups} */
  groups(): Promise<GroupSummary> {
    return Promise.resolve(summarizeGroups(this.#map));
  }

  /** {@inheritDoc ControlBackend.secret} */
  secret(): Promise<string> {
    return Promise.resolve(formatClusterSecret(this.#secret));
  }

  /** {@inheritDoc ControlBackend.removeNode} */
  async removeNode(node: number, options: RemoveNodeOptions): Promise<void> {
    await this.propose({ kind: "remove-node", node, ...options, nowMs: Date.now() });
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
      await this.#changes;
      await this.#plane.stop();
      this.#log.info("stopped");
      this.#finish();
    } catch (error) {
      const failure = error instanceof Error ? error : new Error(String(error));
      this.#fail(failure);
      throw failure;
    }
  }
}

type Ready = Extract<WorkerMessage, { kind: "ready" }>;

interface Pending {
  resolve(value: unknown): void;
  reject(error: Error): void;
  onProgress?: (checkedBytes: number, totalBytes: number) => void;
}

/** The main thread's end of the conversation with the data worker. */
class DataPlaneClient {
  onFailure: (error: Error) => void = () => {};
  onLeaseWanted: (disk: number, token: number) => void = () => {};
  readonly #log: Logger;
  readonly #pending = new Map<number, Pending>();
  #worker: Worker | null = null;
  #mailbox: MailboxSender | null = null;
  #nextId = 1;
  #failure: Error | null = null;

  constructor(log: Logger) {
    this.#log = log;
  }

  /** Starts the worker and waits until its store is open. */
  start(options: Omit<WorkerStart, "mailbox" | "bellFd">): Promise<Ready> {
    const mailbox = createMailbox();
    const bellFd = createEventFd();
    this.#mailbox = new MailboxSender(mailbox, bellFd);
    // Beside this file, with its ending: .ts from source, .js in the compiled program.
    const url = new URL("./data_worker" + import.meta.url.slice(-3), import.meta.url);
    const worker = new Worker(url, { type: "module", name: "kelpie-data" });
    this.#worker = worker;
    return new Promise((resolve, reject) => {
      worker.onmessage = (event: MessageEvent<WorkerMessage>) => {
        if (event.data.kind === "ready") resolve(event.data);
        else this.#receive(event.data, reject);
      };
      worker.onerror = (event) => {
        event.preventDefault();
        this.#fail(new Error(`the data worker failed: ${event.message}`), reject);
      };
      const start: WorkerStart = { ...options, mailbox, bellFd };
      worker.postMessage(start);
    });
  }

  #receive(message: Exclude<WorkerMessage, Ready>, reject: (error: Error) => void): void {
    switch (message.kind) {
      case "failed":
        this.#fail(failureOf(message.code, message.message), reject);
        return;
      case "answer":
        this.#take(message.id)?.resolve(message.value);
        return;
      case "refusal":
        this.#take(message.id)?.reject(failureOf(message.code, message.message));
        return;
      case "check-progress":
        this.#pending.get(message.id)?.onProgress?.(message.checkedBytes, message.totalBytes);
        return;
      case "lease-wanted":
        this.onLeaseWanted(message.disk, message.token);
    }
  }

  #take(id: number): Pending | undefined {
    const pending = this.#pending.get(id);
    this.#pending.delete(id);
    return pending;
  }

  #fail(error: Error, reject: (error: Error) => void): void {
    if (this.#failure !== null) return;
    this.#failure = error;
    reject(error);
    for (const pending of this.#pending.values()) pending.reject(error);
    this.#pending.clear();
    this.onFailure(error);
  }

  /** Asks the worker. Rejects with what it says, or when it is gone. */
  request<T = void>(
    request: WorkerRequest,
    options: {
      onProgress?: (checkedBytes: number, totalBytes: number) => void;
      signal?: AbortSignal;
    } = {},
  ): Promise<T> {
    if (this.#failure !== null) return Promise.reject(this.#failure);
    const id = this.#nextId++;
    return new Promise<T>((resolve, reject) => {
      this.#pending.set(id, {
        resolve: resolve as (value: unknown) => void,
        reject,
        onProgress: options.onProgress,
      });
      options.signal?.addEventListener("abort", () => {
        if (this.#take(id) === undefined) return;
        void this.request({ kind: "cancel-check", check: id }).catch(() => {});
        reject(new ControlFailure({ code: "unavailable", message: "the check was cancelled" }));
      }, { once: true });
      const numbered: NumberedRequest = { id, request };
      try {
        this.#mailbox!.send(numbered);
      } catch (error) {
        this.#pending.delete(id);
        reject(error);
      }
    });
  }

  /** Lets the worker finish everything and end. */
  async stop(): Promise<void> {
    if (this.#worker === null || this.#failure !== null) return;
    let timer: ReturnType<typeof setTimeout> | undefined;
    const late = new Promise<never>((_, reject) => {
      timer = setTimeout(
        () => reject(new Error(`the data plane did not stop within ${STOP_TIMEOUT_MS / 1000} s`)),
        STOP_TIMEOUT_MS,
      );
    });
    try {
      await Promise.race([this.request({ kind: "stop" }), late]);
    } finally {
      clearTimeout(timer);
      this.#log.debug("the data plane has stopped");
    }
  }
}

/** Words a refusal of the worker for people. */
function failureOf(code: string, message: string): ControlFailure {
  switch (code) {
    case "FULL":
      return new ControlFailure({
        code: "full",
        message,
        hint: "delete or discard something, or give the store more capacity",
      });
    case "LAYER":
    case "INVALID":
      return new ControlFailure({ code: "invalid", message });
    case "BUSY":
      return new ControlFailure({ code: "busy", message });
    case "OTHER_HOST":
      return new ControlFailure({
        code: "corrupt",
        message,
        hint: "if it was moved here for good, start the agent once with --adopt",
      });
    case "DAMAGED":
      return new ControlFailure({
        code: "corrupt",
        message,
        hint: "restore it from a backup, or start the agent once with --accept-damage",
      });
    case "NOT_A_STORE":
    case "NEWER_FORMAT":
      return new ControlFailure({ code: "corrupt", message });
    default:
      return new ControlFailure({ code: "internal", message });
  }
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
      hint: "run as root, or choose other directories with --run-dir and --data",
    });
  }
}

/** The store's file for a data path: a directory gets one, anything else is it. */
function prepareDataPath(dataPath: string): string {
  // Devices are not for the runtime's own stat, which would need more permissions than the program has.
  if (dataPath.startsWith("/dev/")) return dataPath;
  let info: Deno.FileInfo | null = null;
  try {
    info = Deno.statSync(dataPath);
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
  }
  if (info?.isFile) {
    throw new ControlFailure({
      code: "invalid",
      message: `--data ${dataPath} is a file`,
      hint: `name a directory (it gets the file ${STORE_FILE}) or a block device`,
    });
  }
  makeDirectory(dataPath);
  return join(dataPath, STORE_FILE);
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

/**
 * The map after this agent's start. A crash may have lost unsynced writes, and then the node's copies are
 * unclean; a node that is alone in its cluster has nobody to agree with, so they are settled as they are.
 */
function startAgain(before: ClusterMap, founder: Founder): ClusterMap {
  const { id: node } = requireSelf(before, founder.uuid);
  const { address, version, protocol, capacityBytes, bootId, nowMs } = founder;
  const facts = { address, version, protocol, capacityBytes, bootId, nowMs };
  let map = unwrap(apply(before, { kind: "node-up", node, clean: false, ...facts })).map;
  if (map.nodes.length > 1) return map;
  const { incarnation } = requireSelf(map, founder.uuid);
  for (const { copies: pool, pgs: groups } of map.pools) {
    const pgs = [...groups.keys()].filter((pg) => groups[pg].unclean.length > 0);
    map = unwrap(apply(map, { kind: "unsettle", pool, pgs })).map;
    map = unwrap(apply(map, { kind: "settled", pool, pgs, node, incarnation })).map;
  }
  return map;
}

/** The entry of the node that has the store. */
function requireSelf(map: ClusterMap, uuid: string): NodeEntry {
  const node = findNodeByUuid(map, uuid);
  if (node !== undefined) return node;
  throw new ControlFailure({
    code: "corrupt",
    message: `the cluster map does not know the store's node ${uuid}`,
    hint: "the node was removed from its cluster; give the agent a new --data",
  });
}

/** This host's name as a node's: other characters become '-'. */
function hostName(): string {
  const name = readLine("/proc/sys/kernel/hostname").replace(/[^a-zA-Z0-9._-]/g, "-")
    .replace(/^[^a-zA-Z0-9]+/, "").slice(0, NODE_NAME_LENGTH_MAX);
  return name === "" ? "node" : name;
}

/** Name of a process, or "". */
function commandOf(pid: number): string {
  return pid <= 0 ? "" : readLine(`/proc/${pid}/comm`);
}

/** A short file of /proc, or "". The runtime may not read there with the permissions that the program has. */
function readLine(path: string): string {
  const fd = libc.open(cString(path), O_RDONLY | O_CLOEXEC, 0);
  if (fd < 0) return "";
  const bytes = new Uint8Array(64);
  const length = libc.read(fd, bytes, 64n);
  libc.close(fd);
  return length > 0 ? new TextDecoder().decode(bytes.subarray(0, length)).trim() : "";
}
