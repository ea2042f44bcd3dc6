/**
 * A backend in memory: the real map, and a data plane that says what the test wants.
 *
 * @module
 */
import type {
  AgentInfo,
  BlockPlace,
  CheckReport,
  ClusterStatus,
  ComparisonReport,
  ControlBackend,
  DiskStatus,
  Extent,
  ExtentsRange,
  GroupSummary,
  LeaseTime,
  NodeStatus,
  RemoveNodeOptions,
  SessionStatus,
  StoreStatus,
} from "../../agent/http/backend.ts";
import { clusterStatusOf } from "../../agent/cluster_status.ts";
import { formatClusterSecret } from "../../agent/cluster_secret.ts";
import { ControlFailure, unwrap } from "../../agent/map/errors.ts";
import { summarizeGroups } from "../../agent/map/group_summary.ts";
import {
  apply,
  type ClusterMap,
  commandLevel,
  type DiskEntry,
  diskMissing,
  EMPTY_MAP,
  findDisk,
  isOn,
  type MapCommand,
  type Merge,
} from "../../agent/map/map.ts";
import type { Log } from "../../agent/platform/platform.ts";

export const IDLE_DISK: DiskStatus = {
  allocatedBytes: 0,
  sessions: [],
  counters: {
    reads: 0,
    writes: 0,
    flushes: 0,
    discards: 0,
    readBytes: 0,
    writtenBytes: 0,
    errors: 0,
    timedRequests: 0,
    timedMs: 0,
    heldRequests: 0,
    heldMs: 0,
  },
};

export const HEALTHY_STORE: StoreStatus = {
  path: "/var/lib/kelpie/kelpie.store",
  cache: "buffered",
  capacityBytes: 500 * 1024 ** 3,
  liveBytes: 12 * 1024 ** 3,
  freeBytes: 400 * 1024 ** 3,
  indexBytes: 1024 ** 2,
  full: false,
  waitingWrites: 0,
  failed: null,
  damagedBlocks: 0,
  damage: [],
  damagedRecords: 0,
  paths: [{
    location: "/var/lib/kelpie",
    state: "ok",
    reason: "",
    usedBytes: 12 * 1024 ** 3,
    capacityBytes: 500 * 1024 ** 3,
    isFull: false,
  }],
  counters: { recordsWritten: 7, "odd name": 1.5 },
};

/** A session as QEMU has it. */
export function sessionWith(part: Partial<SessionStatus> = {}): SessionStatus {
  return {
    pid: 4711,
    command: "qemu-system-x86",
    readOnly: false,
    active: true,
    waitingForLease: false,
    queues: 4,
    inFlight: 2,
    connectedMs: 1_700_000_000_000,
    broken: null,
    ...part,
  };
}

/** The secret of the fake cluster. */
export const FAKE_SECRET = formatClusterSecret(new Uint8Array(32).fill(7));

export class FakeBackend implements ControlBackend {
  #map: ClusterMap = EMPTY_MAP;
  #next = Promise.withResolvers<ClusterMap>();
  readonly statuses = new Map<string, DiskStatus>();
  store: StoreStatus = HEALTHY_STORE;
  logLevel = "info";
  isShutDown = false;
  readonly proposed: MapCommand[] = [];
  /** Parts of the cluster's status that differ from a cluster in which all is well. */
  clusterPart: Partial<ClusterStatus> = {};
  /** The same of nodes, by id. */
  readonly nodeParts = new Map<number, Partial<NodeStatus>>();
  /** Runs whenever the cluster is asked for, before it answers. */
  onCluster: () => void = () => {};
  readonly removed: (RemoveNodeOptions & { id: number })[] = [];
  /** Disk names whose status never comes; "" is the store, "*" the cluster. */
  readonly silent = new Set<string>();
  /** Runs instead of a check that finds nothing. */
  onCheck: ControlBackend["check"] | null = null;
  runDir = "/run/kelpie";

  info(): AgentInfo {
    return {
      version: "1.2.3",
      pid: 99,
      startedMs: 1_700_000_000_500,
      nodeId: "0123456789abcdef",
      clusterId: "fedcba9876543210",
      runDir: this.runDir,
      dataPath: "/var/lib/kelpie",
      dataPaths: ["/var/lib/kelpie"],
      logLevel: this.logLevel,
    };
  }

  get clusterMap(): ClusterMap {
    return this.#map;
  }

  /** Whoever waits for the next map has it now. */
  set clusterMap(map: ClusterMap) {
    this.#map = map;
    const next = this.#next;
    this.#next = Promise.withResolvers();
    next.resolve(map);
  }

  map(): ClusterMap {
    return this.clusterMap;
  }

  mapBytes(): number {
    return 1000;
  }

  nextMap(): Promise<ClusterMap> {
    return this.#next.promise;
  }

  inForce(): Promise<void> {
    return Promise.resolve();
  }

  /** As a cluster does, commands of a level that is not on yet are refused, where it has nodes. */
  propose(command: MapCommand): Promise<ClusterMap> {
    try {
      this.proposed.push(command);
      if (this.#map.nodes.length > 0 && !isOn(this.#map, commandLevel(command))) {
        const message = `${command.kind} needs level ${commandLevel(command)}`;
        throw new ControlFailure({ code: "unavailable", message });
      }
      this.clusterMap = unwrap(apply(this.clusterMap, command)).map;
      return Promise.resolve(this.clusterMap);
    } catch (error) {
      return Promise.reject(error);
    }
  }

  /** Puts a disk there without a request. */
  add(name: string, sizeBytes = 1024 ** 3): void {
    const command = { kind: "create-disk", name, sizeBytes, nowMs: 1000 } as const;
    this.clusterMap = unwrap(apply(this.clusterMap, command)).map;
  }

  /** What {@linkcode leaseTime} says, by disk. */
  readonly leaseTimes = new Map<string, LeaseTime>();
  leaseTime({ name }: DiskEntry): LeaseTime | null {
    return this.leaseTimes.get(name) ?? null;
  }

  /** What {@linkcode layerBytes} says, by layer. */
  readonly bytes = new Map<number, number>();
  layerBytes(): Promise<ReadonlyMap<number, number>> {
    return this.silent.has("") ? new Promise(() => {}) : Promise.resolve(this.bytes);
  }

  /** What {@linkcode overlapBytes} says, by the newest of the layers below; null: there was no time. */
  readonly overlaps = new Map<number, number | null>();
  overlapBytes({ below }: Merge): Promise<number | null> {
    const found = this.overlaps.get(below[0]);
    return Promise.resolve(found === undefined ? 0 : found);
  }

  diskStatus(name: string): Promise<DiskStatus> {
    if (this.silent.has(name)) return new Promise(() => {});
    if (findDisk(this.clusterMap, name) === undefined) {
      return Promise.reject(new ControlFailure(diskMissing(name)));
    }
    return Promise.resolve(this.statuses.get(name) ?? IDLE_DISK);
  }

  /** Questions for extents, oldest first. */
  readonly asked: ExtentsRange[] = [];
  /** Answers them; by default one block of data is before a hole. */
  onExtents: ControlBackend["extents"] | null = null;

  extents(name: string, range: ExtentsRange): Promise<Extent[]> {
    const { lengthBytes } = range;
    this.asked.push(range);
    if (this.onExtents !== null) return this.onExtents(name, range);
    if (lengthBytes <= 4096) return Promise.resolve([{ lengthBytes, state: "data" }]);
    return Promise.resolve([
      { lengthBytes: 4096, state: "data" },
      { lengthBytes: lengthBytes - 4096, state: "hole" },
    ]);
  }

  /** What {@linkcode block} says. */
  blockPlace: BlockPlace = {
    state: "hole",
    layer: null,
    path: null,
    storeOffsetBytes: null,
  };
  /** Layers of which a block was asked for; undefined: a disk as it is. */
  readonly askedBlocks: (number | undefined)[] = [];
  block(_name: string, _offsetBytes: number, layer?: number): Promise<BlockPlace> {
    this.askedBlocks.push(layer);
    return Promise.resolve(this.blockPlace);
  }

  closeSessions(name: string): Promise<void> {
    this.statuses.delete(name);
    return Promise.resolve();
  }

  storeStatus(): Promise<StoreStatus> {
    return this.silent.has("") ? new Promise(() => {}) : Promise.resolve(this.store);
  }

  check(...parameters: Parameters<ControlBackend["check"]>): Promise<CheckReport> {
    if (this.onCheck !== null) return this.onCheck(...parameters);
    return Promise.resolve({ checkedBytes: 4096, damagedBlocks: 0, damage: [] });
  }

  /** What was asked to be compared: name, whether it is repaired, and whose content counts. */
  readonly compared: [string | null, boolean, number?][] = [];
  comparison: ComparisonReport = { good: true, disks: [], blocks: [], unchecked: [] };
  onCompare: ControlBackend["compare"] | null = null;

  compare(...parameters: Parameters<ControlBackend["compare"]>): Promise<ComparisonReport> {
    const [name, { repair, preferred }] = parameters;
    this.compared.push(preferred === undefined ? [name, repair] : [name, repair, preferred]);
    if (this.onCompare !== null) return this.onCompare(...parameters);
    return Promise.resolve(this.comparison);
  }

  cluster(): Promise<ClusterStatus> {
    if (this.silent.has("*")) return new Promise(() => {});
    this.onCluster();
    const self = this.clusterMap.nodes[0]?.id ?? 0;
    const status = clusterStatusOf(this.clusterMap, self, self);
    const nodes = status.nodes.map((node) => ({
      ...node,
      gossip: node.state === "up" ? "alive" as const : "dead" as const,
      usedBytes: 2 ** 30,
      ...this.nodeParts.get(node.id),
    }));
    return Promise.resolve({ ...status, hasQuorum: true, nodes, ...this.clusterPart });
  }

  groups(): Promise<GroupSummary> {
    return Promise.resolve(summarizeGroups(this.clusterMap));
  }

  secret(): Promise<string> {
    return Promise.resolve(FAKE_SECRET);
  }

  async removeNode(id: number, options: RemoveNodeOptions): Promise<void> {
    this.removed.push({ id, ...options });
    await this.propose({ kind: "remove-node", node: id, ...options, nowMs: 1000 });
  }

  /** Ids of nodes that were asked to start anew. */
  readonly restarts: number[] = [];
  /** Runs when a node was asked to. */
  onRestart: (id: number) => void = () => {};
  restartNode(id: number): void {
    this.restarts.push(id);
    this.onRestart(id);
  }

  setLogLevel(level: string): void {
    this.logLevel = level;
  }

  /** Times that recovery was asked for. */
  recoveries = 0;
  recover(): Promise<void> {
    this.recoveries++;
    return Promise.resolve();
  }

  shutdown(): void {
    this.isShutDown = true;
  }
}

/** A log that keeps what it was told. */
export class FakeLog implements Log {
  readonly lines: string[] = [];

  debug(message: string, fields: Record<string, unknown> = {}): void {
    this.lines.push(`debug ${message} ${JSON.stringify(fields)}`);
  }

  info(message: string, fields: Record<string, unknown> = {}): void {
    this.lines.push(`info ${message} ${JSON.stringify(fields)}`);
  }

  warn(message: string, fields: Record<string, unknown> = {}): void {
    this.lines.push(`warn ${message} ${JSON.stringify(fields)}`);
  }

  error(message: string, fields: Record<string, unknown> = {}): void {
    this.lines.push(`error ${message} ${JSON.stringify(fields)}`);
  }
}
