/**
 * What the admin API needs of the agent behind it. `agent.ts` implements it; tests use a fake.
 *
 * Every method runs on the main thread and may reject with a `ControlFailure` (`map/errors.ts`);
 * its code decides the HTTP status and the exit code of the command line.
 *
 * @module
 */
import type { ClusterMap, MapCommand } from "../map/map.ts";

/** One front end connected to a disk's socket. */
export interface SessionStatus {
  /** Process at the other end; 0 when unknown. */
  pid: number;
  /** Command of that process, or "". */
  command: string;
  /** Through `ro/NAME.sock`. */
  readOnly: boolean;
  /** Holds the disk's lease (or needs none) and its rings run. */
  active: boolean;
  /** Waits for another session to give the lease back. */
  waitingForLease: boolean;
  /** Rings that run. */
  queues: number;
  /** Requests under way. */
  inFlight: number;
  connectedMs: number;
  /** Set when the guest broke the rules and its device stands still. */
  broken: string | null;
}

/** Counters of one disk since the agent started; they only rise. */
export interface DiskCounters {
  reads: number;
  writes: number;
  flushes: number;
  discards: number;
  readBytes: number;
  writtenBytes: number;
  errors: number;
}

/** What the data plane knows of one disk. */
export interface DiskStatus {
  /** Bytes of data that the disk's own layers hold in the store. */
  allocatedBytes: number;
  sessions: SessionStatus[];
  counters: DiskCounters;
}

/** A block whose data could not be verified. */
export interface DamagedBlock {
  /** Disk name, or "" when no disk uses the layer any more. */
  disk: string;
  /** Byte offset on the disk. */
  offsetBytes: number;
}

/** What the store says of itself. */
export interface StoreStatus {
  path: string;
  cache: "direct" | "buffered";
  /** Bytes of data that fit: what the store may use, less what it keeps to clean and to recover. */
  capacityBytes: number;
  /** Bytes of live data. */
  liveBytes: number;
  /** Bytes of segments that are free. */
  freeBytes: number;
  /** Memory of the index. */
  indexBytes: number;
  /** No space for new writes. */
  full: boolean;
  /** Writes that wait for space. */
  waitingWrites: number;
  /** Why the store stopped for good, or null. */
  failed: string | null;
  damagedBlocks: number;
  /** The first of them. */
  damage: DamagedBlock[];
  /** Further counters, for `--json` and metrics: flat names to numbers. */
  counters: Record<string, number>;
}

/** Result of a check. */
export interface CheckReport {
  checkedBytes: number;
  damagedBlocks: number;
  damage: DamagedBlock[];
}

/** Facts about the agent. */
export interface AgentInfo {
  version: string;
  pid: number;
  startedMs: number;
  nodeId: string;
  clusterId: string;
  runDir: string;
  dataPath: string;
  logLevel: string;
}

/** See the head of the file. */
export interface ControlBackend {
  info(): AgentInfo;
  /** The map now; never changed in place. */
  map(): ClusterMap;
  /**
   * Applies a command: durable and carried out (sockets, layers) when this resolves.
   * Rejects with the map's own error when the command does not fit, and then nothing has changed.
   */
  propose(command: MapCommand): Promise<ClusterMap>;
  /** Rejects when the disk does not exist. */
  diskStatus(name: string): Promise<DiskStatus>;
  /**
   * Ends every session of a disk: what is under way is finished first, then the front ends are
   * disconnected. Resolves when none is left; rejects when the disk does not exist.
   */
  closeSessions(name: string): Promise<void>;
  storeStatus(): Promise<StoreStatus>;
  /**
   * Verifies the checksums of a disk, or of everything (null).
   *
   * @param onProgress called now and then
   * @param signal ends the check early
   */
  check(
    name: string | null,
    onProgress: (checkedBytes: number, totalBytes: number) => void,
    signal: AbortSignal,
  ): Promise<CheckReport>;
  setLogLevel(level: "debug" | "info" | "warn" | "error"): void;
  /** Begins a clean stop; resolves at once. */
  shutdown(): void;
}
