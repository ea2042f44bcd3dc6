/**
 * A backend in memory: the real map, and a data plane that says what the test wants.
 *
 * @module
 */
import type {
  AgentInfo,
  CheckReport,
  ControlBackend,
  DiskStatus,
  SessionStatus,
  StoreStatus,
} from "../../agent/http/backend.ts";
import { ControlFailure, unwrap } from "../../agent/map/errors.ts";
import {
  apply,
  type ClusterMap,
  diskMissing,
  EMPTY_MAP,
  findDisk,
  type MapCommand,
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

export class FakeBackend implements ControlBackend {
  clusterMap: ClusterMap = EMPTY_MAP;
  readonly statuses = new Map<string, DiskStatus>();
  store: StoreStatus = HEALTHY_STORE;
  logLevel = "info";
  isShutDown = false;
  readonly proposed: MapCommand[] = [];
  /** Disk names whose status never comes; "" is the store. */
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
      logLevel: this.logLevel,
    };
  }

  map(): ClusterMap {
    return this.clusterMap;
  }

  propose(command: MapCommand): Promise<ClusterMap> {
    try {
      this.proposed.push(command);
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

  diskStatus(name: string): Promise<DiskStatus> {
    if (this.silent.has(name)) return new Promise(() => {});
    if (findDisk(this.clusterMap, name) === undefined) {
      return Promise.reject(new ControlFailure(diskMissing(name)));
    }
    return Promise.resolve(this.statuses.get(name) ?? IDLE_DISK);
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

  setLogLevel(level: string): void {
    this.logLevel = level;
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
