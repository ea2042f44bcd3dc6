/**
 * What the admin API needs of the agent behind it. `agent.ts` implements it; tests use a fake.
 *
 * Every method runs on the main thread and may reject with a `ControlFailure` (`map/errors.ts`);
 * its code decides the HTTP status and the exit code of the command line.
 *
 * @module
 */
import type { GroupSummary } from "../map/group_summary.ts";
import type {
  Availability,
  ClusterMap,
  DiskEntry,
  MapCommand,
  Merge,
  NodeState,
} from "../map/map.ts";
import type { DiskCheck, NamedReport } from "../replication/check_report.ts";

export type { GroupSummary } from "../map/group_summary.ts";

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
  /**
   * Requests whose service time was measured, and the sum of those times in milliseconds, with fractions: from where limits let them go
   * to their coming back. Up to 32 requests of each disk a few times a second.
   */
  timedRequests: number;
  timedMs: number;
  /** Requests that the disk's limits held back. */
  heldRequests: number;
  /** For how long they held any back, in milliseconds. */
  heldMs: number;
}

/** What the data plane knows of one disk. */
export interface DiskStatus {
  /** Bytes of data that the disk's own layers hold in the store. */
  allocatedBytes: number;
  sessions: SessionStatus[];
  counters: DiskCounters;
}

/** What a part of a disk is. */
export const EXTENT_STATES = ["data", "zero", "hole", "unknown", "same"] as const;
/** One of {@linkcode EXTENT_STATES}. */
export type ExtentState = typeof EXTENT_STATES[number];

/** A part of a disk that is all of one kind. */
export interface Extent {
  /** Bytes, > 0. */
  readonly lengthBytes: number;
  /**
   * `data`; `zero`: zeros that were put there; `hole`: nothing was; `unknown`: this node cannot say; `same`: as in the snapshot that
   * it is compared with.
   */
  readonly state: ExtentState;
}

/** What a block is: as an extent, or `damaged`: it was data, and could not be verified here. */
export const BLOCK_STATES = [...EXTENT_STATES, "damaged"] as const;
/** One of {@linkcode BLOCK_STATES}. */
export type BlockState = typeof BLOCK_STATES[number];

/** What a node's own copy holds at a block of a disk. */
export interface BlockPlace {
  readonly state: BlockState;
  /** Id of the layer that a read comes upon; null: none holds anything there, or this node cannot say. */
  readonly layer: number | null;
  /** The data path, as it was given to the agent; null: no data is here. */
  readonly path: string | null;
  /** Bytes from the start of the store's file or device, for now: cleaning moves blocks. Null with `path`. */
  readonly storeOffsetBytes: number | null;
}

/** A part of a disk, or of a snapshot of it. */
export interface ExtentsRange {
  readonly offsetBytes: number;
  readonly lengthBytes: number;
  /** Newest layer of the snapshot; by default the disk as it is now. */
  readonly layer?: number;
  /** Newest layer of an older snapshot to compare with; by default none. */
  readonly since?: number;
}

/** A block whose data could not be verified. */
export interface DamagedBlock {
  /** Who reads it: a disk; `DISK@NAME` of a snapshot where no disk does any more; or "" when neither does. */
  disk: string;
  /** Byte offset on the disk. */
  offsetBytes: number;
}

/** How a data path is: `ok`; `failed` since the start; `missing` at the start; `left-out` by whoever started the agent. */
export const PATH_STATES = ["ok", "failed", "missing", "left-out"] as const;

/** One data path of a node. */
export interface PathStatus {
  /** As it was given to the agent. */
  readonly location: string;
  readonly state: typeof PATH_STATES[number];
  /** Why it does not work, in words; "" when it does. */
  readonly reason: string;
  /** Bytes of live data; 0 when it does not work. */
  readonly usedBytes: number;
  /** Bytes of data that fit; of a path that does not work, what fitted when it did. */
  readonly capacityBytes: number;
  readonly isFull: boolean;
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
  /** Records of the log that were damaged when the store was opened all the same (`--accept-damage`): what was in them is gone. */
  damagedRecords: number;
  /** The data paths that the store is made of, one or more. */
  paths: PathStatus[];
  /** Further counters, for `--json` and metrics: flat names to numbers. */
  counters: Record<string, number>;
}

/** Result of a check. */
export interface CheckReport {
  checkedBytes: number;
  damagedBlocks: number;
  damage: DamagedBlock[];
}

/** What became of one disk when its replicas were compared. */
export interface ComparedDisk extends DiskCheck<string> {
  /** It is in the trash: `disk` is what it was called. */
  readonly inTrash: boolean;
}

/** Result of comparing replicas. */
export interface ComparisonReport extends NamedReport<string> {
  /** Everything was checked, and is good or was made so. */
  readonly good: boolean;
  readonly disks: ComparedDisk[];
}

/** What comparing replicas is to do. */
export interface CompareOptions {
  /** What is found is put right, as far as it is clear how. */
  readonly repair: boolean;
  /** Id of the node whose content counts where replicas differ; left out: that of more than half of them. Only with `repair`. */
  readonly preferred?: number;
}

/** Facts about the agent. */
export interface AgentInfo {
  version: string;
  pid: number;
  startedMs: number;
  nodeId: string;
  clusterId: string;
  runDir: string;
  /** The first of the next. */
  dataPath: string;
  dataPaths: string[];
  logLevel: string;
}

/** What gossip thinks of a node; `unknown`: gossip does not know it (yet). */
export const GOSSIP_STATES = ["alive", "suspect", "dead", "left", "unknown"] as const;
/** One of {@linkcode GOSSIP_STATES}. */
export type GossipState = typeof GOSSIP_STATES[number];

/** What the disks of a node do. */
export interface NodeIo {
  readonly readsPerSecond: number;
  readonly writesPerSecond: number;
  readonly readBytesPerSecond: number;
  readonly writtenBytesPerSecond: number;
  /** Requests under way. */
  readonly inFlight: number;
  /** Mean service time of the requests that were measured, in milliseconds; null: none was. */
  readonly latencyMs: number | null;
}

/** One node, as the node that was asked sees it. */
export interface NodeStatus {
  /** Of the map, never used twice. */
  id: number;
  name: string;
  /** `host:port` */
  address: string;
  /** "": a zone of its own. */
  zone: string;
  /** As the map has it: what everybody goes by. */
  state: NodeState;
  availability: Availability;
  witness: boolean;
  isVoter: boolean;
  isLeader: boolean;
  /** The node that was asked. */
  isSelf: boolean;
  version: string;
  /** Oldest and newest level that its agent speaks: see `base/levels.ts`. */
  levelMin: number;
  levelMax: number;
  /** Counts its starts, from 1. */
  incarnation: number;
  /** Set by hand; null: from capacity. */
  weight: number | null;
  /** Bytes of data that its store may hold. */
  capacityBytes: number;
  /** Bytes of live data; null: it has not reported for a while. */
  usedBytes: number | null;
  gossip: GossipState;
  /** Who probed it in vain, since when, in words; null: nobody suspects it. */
  suspectedBecause: string | null;
  /** When `state` changed, in milliseconds since 1970. */
  sinceMs: number;
  /** PGs that catch up on this node. */
  joiningGroups: number;
  /** Chunks that they are known to need. */
  chunksLeft: number;
  /** What stands in the way of flattening disks there; null: nothing, or none is flattened. */
  flattenStuck: string | null;
  /** Rate at which it does; null: none is flattened there. */
  flattenBytesPerSecond: number | null;
  /** Rate at which it catches up; null: it does not, or has not reported. */
  copyBytesPerSecond: number | null;
  /** Time until it has caught up, at that rate; null: cannot be said. */
  secondsLeft: number | null;
  /** What stands in the way of catching up, in words; null: nothing. */
  stuck: string | null;
  /** Blocks of its store that could not be verified. */
  damagedBlocks: number;
  /** Its store takes no new writes. */
  isFull: boolean;
  /**
   * It votes, and has come back without a part of the log of consensus that it had acknowledged: it
   * does not count for any decision until enough other voters have all of it.
   */
  hasLostLog: boolean;
  /**
   * Its log of consensus contradicts that of the cluster, which has been recovered without it: it takes
   * no part any more, and has to join anew with an empty store.
   */
  hasOtherLog: boolean;
  /** Its data paths; empty: it has not reported. */
  paths: PathStatus[];
  /** What the disks that are open there do, all together, in the last second or so; null: it has not reported. */
  io: NodeIo | null;
  /** Another program is installed there than the one that runs; null: cannot be said. */
  isProgramNew: boolean | null;
}

/** A disk of which requests wait, on the node where it is open. */
export interface WaitingDisk {
  /** Name of the disk. */
  disk: string;
  /** Id of the node. */
  node: number;
  /** Why, in words, beginning in lower case. */
  reason: string;
}

/** A node of the cluster that the node that was asked is to join, and why it has not. */
export interface JoiningNode {
  /** `host:port`, or several. */
  readonly address: string;
  /** In words, beginning in lower case. */
  readonly reason: string;
  /** What to do about it. */
  readonly hint: string;
}

/** What the node that was asked knows of the cluster. */
export interface ClusterStatus {
  /** Version of its map. */
  epoch: number;
  /** What the cluster speaks: see `base/levels.ts`. */
  level: number;
  /** Id of the node that leads; 0: none is known. */
  leader: number;
  /** A leader that a majority of voters follows can be reached: changes are possible, leases are renewed. */
  hasQuorum: boolean;
  /** Ids of nodes. */
  voters: number[];
  /** By id. */
  nodes: NodeStatus[];
  waiting: WaitingDisk[];
  /** Why this node is not in its cluster yet; empty: it is. */
  joining: JoiningNode[];
  /** What else people should know, in words: the brake on moving data, say. Beginning in lower case. */
  notes: string[];
}

/** How a disk's lease is: `LockDocument.state` says what each means. */
export const LOCK_STATES = ["serving", "waiting", "suspect", "down"] as const;
/** One of {@linkcode LOCK_STATES}. */
export type LockState = typeof LOCK_STATES[number];

/** Since when a disk is open under its present generation. */
export interface LeaseTime {
  /** Milliseconds since 1970. */
  readonly sinceMs: number;
  /** It was taken then; false: it had been taken by then. */
  readonly isExact: boolean;
}

/** See {@linkcode ControlBackend.removeNode}. */
export interface RemoveNodeOptions {
  readonly force: boolean;
  /** Only with `force`. */
  readonly acceptLoss: boolean;
}

/** See the head of the file. */
export interface ControlBackend {
  info(): AgentInfo;
  /** The map now; never changed in place. */
  map(): ClusterMap;
  /** Bytes of the map as it is encoded: exact where it is nearly too large, and rather too many otherwise. */
  mapBytes(): number;
  /** Resolves with the map that follows the one now; stays open while nothing changes. */
  nextMap(): Promise<ClusterMap>;
  /** Resolves when the map now has been carried out on this node, too: sockets, layers. */
  inForce(): Promise<void>;
  /**
   * Applies a command: durable and carried out (sockets, layers) when this resolves.
   * Rejects with the map's own error when the command does not fit, and then nothing has changed.
   *
   * @param gone nobody waits for it any more: what no leader has been sent by then is taken back
   */
  propose(command: MapCommand, gone?: AbortSignal): Promise<ClusterMap>;
  /** Since when a disk is open, as far as this agent has seen it; null: it is not open. */
  leaseTime(disk: DiskEntry): LeaseTime | null;
  /** Bytes of data that each layer holds in the store of this node; layers that hold none may be left out. */
  layerBytes(): Promise<ReadonlyMap<number, number>>;
  /**
   * Bytes of data in the store of this node that merging layers frees: {@linkcode Merge}.
   *
   * @param isWanted asked between small parts of the work
   * @returns null: it was not wanted any more
   */
  overlapBytes(merge: Merge, isWanted: () => boolean): Promise<number | null>;
  /** Rejects when the disk does not exist. */
  diskStatus(name: string): Promise<DiskStatus>;
  /**
   * Which parts of a disk hold data, or differ, as far as this node's own copies tell. Rejects when the disk does not exist.
   *
   * @param range within the disk or the snapshot
   * @returns one after the other from the range's first byte on: all of the range, or as much as one answer holds
   */
  extents(
    name: string,
    range: ExtentsRange,
  ): Promise<Extent[]>;
  /**
   * What lies at a byte of a disk in this node's own copy, and where. Rejects when the disk does not exist.
   *
   * @param offsetBytes within the disk, or the snapshot
   * @param layer newest layer of a snapshot of it; left out: the disk as it is now
   */
  block(name: string, offsetBytes: number, layer?: number): Promise<BlockPlace>;
  /**
   * Ends every session of a disk: the front ends are disconnected, and what they have under way is given up. Resolves when none
   * is left; rejects when the disk does not exist.
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
  /**
   * Reads and verifies all replicas of a disk, or of all disks (null), and compares them.
   *
   * @param onProgress called now and then, with bytes of address space
   * @param signal ends it early
   */
  compare(
    name: string | null,
    options: CompareOptions,
    onProgress: (checkedBytes: number, totalBytes: number) => void,
    signal: AbortSignal,
  ): Promise<ComparisonReport>;
  /** What this node knows of the cluster; answers without a quorum, and without waiting for the data plane. */
  cluster(): Promise<ClusterStatus>;
  /** How the PGs of this node's map are: `summarizeGroups`. */
  groups(): Promise<GroupSummary>;
  /** The cluster secret as `formatClusterSecret` writes it; never logged. */
  secret(): Promise<string>;
  /**
   * Takes a node out of the cluster for good: off the voters first, then out of the map. Resolves when the map has
   * forgotten it; rejects with the map's own error when it may not be removed.
   *
   * @param id of the node
   * @param options `force`: it is down and will not come back; `acceptLoss`: even where it has the only copy of data
   * @param gone nobody waits for it any more: what no leader has been sent by then is taken back
   */
  removeNode(id: number, options: RemoveNodeOptions, gone?: AbortSignal): Promise<void>;
  /**
   * The way out when a majority of the voters is gone for good: from its next start on this node decides alone with what it
   * has. The agent stops afterwards. Rejects with `busy` while the cluster can decide.
   */
  recover(): Promise<void>;
  /**
   * Asks a node's agent to end in good order, so that whoever looks after it starts it anew, perhaps as another version. The
   * question may be lost; when it was heard, the node's `incarnation` is another soon.
   */
  restartNode(id: number): void;
  setLogLevel(level: "debug" | "info" | "warn" | "error"): void;
  /** Begins a clean stop; resolves at once. */
  shutdown(): void;
}
