/**
 * What the main thread and the data worker say to each other.
 *
 * Requests go through the mailbox (the worker is blocked in the kernel and gets no messages of the runtime),
 * answers and events come back by `postMessage`. Every request is answered once.
 *
 * @module
 */
import type { DamagedBlock, DiskStatus } from "./http/backend.ts";
import type { MapCommand } from "./map/map.ts";
import type { PathStatus } from "./paths/store_set.ts";
import type { CheckReport, FoundBlock } from "./replication/check_report.ts";
import type { CheckOptions } from "./replication/checking.ts";
import type { DataCoreStatus } from "./replication/data_core.ts";
import type { Overlap } from "./replication/overlaps.ts";

/** How the worker is started; the one message that it gets by `postMessage`. */
export interface WorkerStart {
  mailbox: SharedArrayBuffer;
  /** Eventfd that rings when the mailbox has something. */
  bellFd: number;
  /** One or more. */
  paths: WorkerPath[];
  direct: boolean;
  /** Of each path; null: what fits. */
  capacityBytes: number | null;
  runDir: string;
  scrubRateBytes: number;
  adopt: boolean;
  acceptDamage: boolean;
  /** Why no new node is made; null: it is, where nothing is there. */
  refuseNew: string | null;
  logLevel: "debug" | "info" | "warn" | "error";
  logFormat: "text" | "json";
  /** Hash of what identifies this host, 16 bytes. */
  hostId: Uint8Array;
}

/** A data path. */
export interface WorkerPath {
  /** As the user wrote it. */
  location: string;
  /** The store's file or device. */
  storePath: string;
  /** Why it cannot be used; "": nothing is known to be in the way. */
  reason: string;
}

/** What the main thread may ask. */
export type WorkerRequest =
  /** Make values durable, in order: consensus' state, and what else must be known at a start. */
  | { kind: "persist"; writes: { key: string; value: Uint8Array | null }[] }
  /** What was made durable. */
  | { kind: "read-meta" }
  /** Connect to peers. `address`: numeric, where to listen for them; null: nowhere. */
  | { kind: "network"; secret: Uint8Array; self: WorkerIdentity; address: string | null }
  /** Who this node is has changed. */
  | { kind: "identity"; self: WorkerIdentity }
  /** Where a node's data worker listens, numeric; null: not to be reached. */
  | { kind: "peer"; node: number; address: string | null }
  /** The cluster map, encoded, in parts; `part` counts from 0. */
  | { kind: "map"; part: number; parts: number; bytes: Uint8Array }
  /** The next map is what this command makes of the one before. */
  | { kind: "map-command"; epoch: number; command: MapCommand }
  /** This start of the agent is in the map: take part. */
  | { kind: "take-part"; node: number; incarnation: number }
  /** May serve until then, by the clock of all threads. */
  | { kind: "renew"; untilMs: number }
  /** The disk's lease is this node's: see `LeasesHost.granted` of `control/leases.ts`. */
  | {
    kind: "lease-granted";
    disk: number;
    generation: number;
    isUnclean: boolean;
    byOthers: number;
  }
  /** A `lease-released` has been heard: what is granted from here on is for whoever wanted the disk since. */
  | { kind: "release-noted"; disk: number }
  /** Another node has had the disk: its sessions end for good. */
  | { kind: "fenced"; disk: number; generation: number }
  /** Forget a range of an idle disk's blocks, on all replicas: what a shrink cuts off must not come back. */
  | { kind: "zero"; disk: number; startBytes: number; endBytes: number }
  | { kind: "disk-status"; disk: number }
  /** How much each layer holds. */
  | { kind: "layer-bytes" }
  /** Which parts of a disk hold data: `DataCore.extentsOf`. */
  | {
    kind: "extents";
    disk: number;
    startBytes: number;
    endBytes: number;
    layer: number;
    since: number;
  }
  /** What lies at one block of a disk, and where. */
  | { kind: "block"; disk: number; chunk: number; block: number; layer: number }
  /** How much of what some layers hold others hide, from a chunk on: `countOverlap`. */
  | { kind: "overlap"; above: number[]; below: number[]; from: number }
  | { kind: "close-sessions"; disk: number }
  | { kind: "store-status" }
  | { kind: "data-status" }
  /** Verify layers, or everything (null). Progress comes as events. */
  | { kind: "check"; layers: number[] | null }
  /** Compare the replicas of disks. Progress comes as the same events. */
  | { kind: "compare"; options: CheckOptions }
  /** Ends either. */
  | { kind: "cancel-check"; check: number }
  | { kind: "log-level"; level: "debug" | "info" | "warn" | "error" }
  /** Drain, and give leases back; answered when no disk is served any more. */
  | { kind: "drain" }
  /** Flush, checkpoint, close. */
  | { kind: "stop" };

/** Who a node is, on its way between threads; see `wire/handshake.ts`. */
export interface WorkerIdentity {
  uuid: string;
  node: number;
  incarnation: number;
  clusterId: string | null;
  address: string;
  features: number;
}

/** A request as it travels. */
export interface NumberedRequest {
  id: number;
  request: WorkerRequest;
}

/** What the worker sends. */
export type WorkerMessage =
  /** The store is open; `meta` is what was committed. */
  | {
    kind: "ready";
    storeId: string;
    nodeId: string;
    clusterId: string;
    created: boolean;
    /** The store was closed in good order: everything that was acknowledged is in it. */
    clean: boolean;
    /** Groups on data paths that are not there: `GroupBits` of `map/model.ts`. */
    lost: number[];
    meta: Record<string, Uint8Array>;
  }
  /** The worker cannot go on; the last thing it says. */
  | { kind: "failed"; code: string; message: string }
  | { kind: "answer"; id: number; value: unknown }
  | { kind: "refusal"; id: number; code: string; message: string }
  | { kind: "check-progress"; id: number; checkedBytes: number; totalBytes: number }
  /** A session wants the disk's lease. */
  | { kind: "lease-wanted"; disk: number }
  /** No session wants it any more, and nothing is under way. */
  | { kind: "lease-released"; disk: number; isUnclean: boolean; isUnwritten: boolean }
  /** The disk's replicas agree: it is open under this generation. */
  | { kind: "reconciled"; disk: number; generation: number }
  | { kind: "in-sync"; pool: number; groups: number[]; epoch: number }
  | { kind: "settled"; pool: number; groups: number[] }
  /** A data path is lost, and with it these groups; `capacityBytes` of those that are left. */
  | { kind: "groups-lost"; lost: number[]; capacityBytes: number }
  /** Nothing is on its way any more into the layer that a snapshot is taken of, and all of it is synced. */
  | { kind: "snapshot-drained"; disk: number; layer: number; generation: number }
  /** Layers are absorbed into their children here, durably. */
  | { kind: "absorbed"; layers: number[] }
  /** Layers have everything here that they were read through to, durably, by a map of this epoch. */
  | { kind: "flattened"; layers: number[]; epoch: number }
  /** Something that others should know of has changed: see `data-status`. */
  | { kind: "reachability" };

/** Answer to `data-status`. */
export interface WorkerDataStatus extends DataCoreStatus {
  /** Nodes that this one waits for in vain, and those that it has no connection to. */
  unreachable: number[];
  disconnected: number[];
  /** What all disks have done here, as far as they are still served, and requests under way. */
  io: WorkerIo;
}

/** Sums over the disks of a node: `VolumeCounters`. */
export interface WorkerIo {
  reads: number;
  writes: number;
  readBytes: number;
  writtenBytes: number;
  timedRequests: number;
  timedMs: number;
  inFlight: number;
}

/** Answer to `store-status`: what the store says, without names that only the map knows. */
export interface WorkerStoreStatus {
  capacityBytes: number;
  liveBytes: number;
  freeBytes: number;
  indexBytes: number;
  full: boolean;
  waitingWrites: number;
  failed: string | null;
  damagedBlocks: number;
  damage: WorkerDamage[];
  damagedRecords: number;
  counters: Record<string, number>;
  paths: PathStatus[];
}

/** A block that could not be verified. */
export interface WorkerDamage {
  layer: number;
  offsetBytes: number;
  /** Of the layers above that one, those that say something of the block themselves in this node's store. */
  holders: number[];
}

/** Answer to `compare`: for each block that is not right also the holders, as in {@linkcode WorkerDamage}. */
export interface WorkerComparison extends CheckReport {
  readonly blocks: (FoundBlock & { readonly holders: readonly number[] })[];
}

/** Answer to `block`: `BlockFound` of `replication/extents.ts`, and its place. */
export interface WorkerBlock {
  /** Index into `EXTENT_STATES`. */
  kind: number;
  /** 0: none. */
  layer: number;
  /** It has been found damaged here, and has not been written since. */
  isDamaged: boolean;
  /** The data path, as it was given to the agent; null: there is no data here. */
  location: string | null;
  /** Bytes from the start of the store's file. */
  storeOffsetBytes: number;
}

/** Answer to `check`. */
export interface WorkerCheckReport {
  checkedBytes: number;
  damagedBlocks: number;
  damage: WorkerDamage[];
}

/** Answers by kind of request; requests that are not named answer null. */
export interface WorkerAnswers {
  "disk-status": DiskStatus;
  /** Pairs: layer, bytes. */
  "layer-bytes": number[];
  /** `describeExtents` of `replication/extents.ts`. */
  "extents": number[];
  /** Null: the disk is not served here. */
  "block": WorkerBlock | null;
  /** `countOverlap` of `replication/overlaps.ts`. */
  "overlap": Overlap;
  "store-status": WorkerStoreStatus;
  "data-status": WorkerDataStatus;
  "check": WorkerCheckReport;
  "compare": WorkerComparison;
}

export type { DamagedBlock };
