/**
 * The documents of the admin API, as the agent writes them and the client reads them.
 *
 * Every size is in bytes, every time in milliseconds since 1970, every name ends in its unit. Fields
 * are only ever added; `openapi.ts` describes the same for other languages and a test holds the two
 * against each other and against what the agent answers.
 *
 * @module
 */

import type { ControlError } from "../map/errors.ts";
import type { GroupSummary } from "../map/group_summary.ts";
import type { Attributes, Limits, LossEntry, Settings, SpaceUsage } from "../map/map.ts";
import type { Problem } from "../problems.ts";
import type {
  AgentInfo,
  BlockState,
  CheckReport,
  ClusterStatus,
  ComparisonReport,
  DiskCounters,
  Extent,
  LockState,
  NodeStatus,
  SessionStatus,
  StoreStatus,
} from "./backend.ts";

/** `GET /v1/version`. */
export interface VersionDocument {
  /** Version of the agent. */
  readonly version: string;
  /** Version of the API: the first part of every path. */
  readonly api: "v1";
}

/**
 * What a disk or a snapshot takes of the store of the node that was asked: that node's own copies, not those of all nodes.
 * `map/space.ts` says what counts.
 */
export type SpaceDocument = SpaceUsage;

/** How far a disk is on its way to another number of copies, or to other zones. */
export interface CopiesChangeDocument {
  /** Copies that it is to have. */
  readonly copies: number;
  /** Zones that it is to be kept in, sorted; empty: any. */
  readonly zones: readonly string[];
  /** It goes back to what it has: the change was taken back. */
  readonly isBack: boolean;
  /** Of the copies that have to be made, how many are complete: 0…100. */
  readonly percent: number;
  /** Until nodes have copied all that they have to, of other disks as well; null: not known, or nothing is being copied. */
  readonly secondsLeft: number | null;
  /** What it waits for, in words; null: it is done in a moment. */
  readonly waitsFor: string | null;
  /** Names of all disks that change together: this one and its relatives. */
  readonly disks: readonly string[];
}

/** One disk, in `GET /v1/disks` and wherever a disk is the answer. */
export interface DiskDocument {
  readonly name: string;
  /** Never used twice. */
  readonly id: number;
  readonly sizeBytes: number;
  /** Bytes of data that the disk's own layers hold in the store. */
  readonly allocatedBytes: number;
  /** With its snapshots; null: the store did not say in time. */
  readonly space: SpaceDocument | null;
  readonly readOnly: boolean;
  /** Copies that it should have; fewer nodes keep fewer. */
  readonly copies: number;
  /** Zones whose nodes hold it, sorted; empty: any. */
  readonly zones: readonly string[];
  /** Why it does not lie as it should in these zones, in words; null: it does, or will by itself. */
  readonly zonesProblem: string | null;
  /** Fewest complete copies with which it can be written. */
  readonly copiesMin: number;
  /** Complete copies that every part of it has now. */
  readonly copiesInSync: number;
  /** Null: it is not getting another number of copies, nor other zones. */
  readonly copiesChange: CopiesChangeDocument | null;
  /** Name of the node where it is open for writing, or null. */
  readonly openOn: string | null;
  readonly createdMs: number;
  /** Fencing number of the newest lease; 0 before the first. */
  readonly generation: number;
  /** Id of the disk that it descends from, or its own: disks of one family share data and places. */
  readonly family: number;
  /** Layer ids, newest first. */
  readonly layers: readonly number[];
  /** `DISK@NAME` of the nearest snapshot of another disk that it goes on from; null: there is none (any more). */
  readonly origin: string | null;
  /** It has layers below its own that belong to others, whether they have a name or not: it can be flattened. */
  readonly isShared: boolean;
  /** How far it is being made independent of those; null: it is not. */
  readonly flatten: FlattenDocument | null;
  /** Names of its snapshots, oldest first. */
  readonly snapshots: readonly string[];
  /** Names of its schedules. */
  readonly schedules: readonly string[];
  /** How fast it may be used. */
  readonly limits: Limits;
  /** Blocks of zeros that guests write are kept as holes. */
  readonly detectZeroes: boolean;
  readonly attributes: Attributes;
  /** Where QEMU connects. */
  readonly socket: string;
  /** The same, to look on without taking the lease. */
  readonly readOnlySocket: string;
  /** Front ends that are connected. */
  readonly sessions: readonly SessionStatus[];
  readonly counters: DiskCounters;
}

/** How far a disk is that is being made independent of what it was cloned from; names of nodes. */
export interface FlattenDocument {
  /** Have copied everything. */
  readonly done: readonly string[];
  /** Have not yet: each with what stands in its way, if anything does. */
  readonly waiting: readonly string[];
}

/** Body of `POST /v1/disks/{name}/extents`, and of `…/chunks`, to which `since` says nothing. */
export interface ExtentsRequest {
  readonly offsetBytes: number;
  readonly lengthBytes: number;
  /** Name of a snapshot of the disk that is meant instead of the disk as it is now. */
  readonly snapshot?: string;
  /** `DISK@NAME` of an older snapshot that this goes on from: only what may differ from that is told apart. */
  readonly since?: string;
}

/** Answer to `POST /v1/disks/{name}/extents`. */
export interface ExtentsDocument {
  /** As it was asked for. */
  readonly offsetBytes: number;
  /** Id of the disk that has the name now: who uses a session that is open compares, since names change. */
  readonly disk: number;
  /** Newest layer of what was asked about, and of the older snapshot; 0: there was none. */
  readonly layer: number;
  readonly sinceLayer: number;
  /** One after the other from there on: all of what was asked for, or as much of it as one answer holds. */
  readonly extents: readonly Extent[];
}

/** Where a placement group is; names of nodes. */
export interface PlaceDocument {
  /** Hold every acknowledged write. */
  readonly inSync: readonly string[];
  /** Get all new writes, and still copy old ones. */
  readonly joining: readonly string[];
  /** Shall hold it. */
  readonly target: readonly string[];
  /** Which one the node that was asked reads from; null: none can be read from now. */
  readonly readFrom: string | null;
  /** Why it cannot be written, or not even read, in words; null: it can. */
  readonly problem: string | null;
}

/** One chunk of a disk, in a {@linkcode ChunkListDocument}. */
export interface ChunkDocument extends PlaceDocument {
  /** Index of the chunk on the disk. */
  readonly chunk: number;
  /** Number of its placement group. */
  readonly group: number;
  /** Of its first byte on the disk. */
  readonly offsetBytes: number;
  /** Of the disk; the last chunk may be shorter than the others. */
  readonly lengthBytes: number;
}

/** Answer to `POST /v1/disks/{name}/chunks`. */
export interface ChunkListDocument {
  /** Version of the cluster map. */
  readonly epoch: number;
  /** One after the other, from the one of the first byte on: all of the range, or as much as one answer holds. */
  readonly chunks: readonly ChunkDocument[];
}

/** All placement groups of a disk that are in one place. */
export interface PlaceSummaryDocument extends PlaceDocument {
  readonly groups: number;
  readonly chunks: number;
  /** Of the disk's address space. */
  readonly sizeBytes: number;
}

/** `GET /v1/disks/{name}/places`. */
export interface PlacesDocument {
  /** Version of the cluster map. */
  readonly epoch: number;
  /** Size of a chunk. */
  readonly chunkBytes: number;
  /** The most chunks first. */
  readonly places: readonly PlaceSummaryDocument[];
}

/** Body of `POST /v1/disks/{name}/object`. */
export interface ObjectRequest {
  readonly offsetBytes: number;
  /** Name of a snapshot of the disk that is meant instead of the disk as it is now. */
  readonly snapshot?: string;
}

/** Answer to `POST /v1/disks/{name}/object`: where one block of a disk lives. */
export interface ObjectDocument extends ChunkDocument {
  /** Of the block on the disk. */
  readonly blockOffsetBytes: number;
  /** In the copy of the node that was asked: see `BlockPlace`, also for those below. */
  readonly state: BlockState;
  readonly layer: number | null;
  /** `DISK@NAME` whose newest layer that is, or the name of the disk; null: of nothing that has a name (any more), or `layer` is. */
  readonly layerOf: string | null;
  readonly path: string | null;
  readonly storeOffsetBytes: number | null;
}

/** One snapshot, in `GET /v1/snapshots` and wherever a snapshot is the answer. */
export interface SnapshotDocument {
  /** Name of its disk. */
  readonly disk: string;
  /** Without the disk's. */
  readonly name: string;
  /** Id of its newest layer, by which it is known: never used twice. */
  readonly layer: number;
  /** Size of the disk when it was taken. */
  readonly sizeBytes: number;
  /** Null: the store did not say in time. */
  readonly space: SpaceDocument | null;
  readonly createdMs: number;
  /** It cannot be deleted. */
  readonly isProtected: boolean;
  /** Writes that were given out before are still on their way into it: it cannot be used yet. */
  readonly isTaking: boolean;
  /** `DISK@NAME` of the snapshot that it goes on from, of this or of another disk; null: none. */
  readonly parent: string | null;
  /** Names of the disks that were cloned from it, sorted. */
  readonly clones: readonly string[];
  /** Name of the schedule that took it; null: none that there still is. */
  readonly schedule: string | null;
  /** Where it can be read; null: the path would be too long for a socket. */
  readonly socket: string | null;
}

/** `GET /v1/snapshots` and its like. */
export interface SnapshotListDocument {
  /** By disk, and each disk's oldest first. */
  readonly snapshots: readonly SnapshotDocument[];
}

/** Body of `POST /v1/snapshots`. */
export interface CreateSnapshotsRequest {
  /** Names of disks, each once: one point in time across all of them. */
  readonly disks: readonly string[];
  /** What the snapshot of each of them is called. */
  readonly name: string;
}

/** Body of `PATCH /v1/disks/{name}/snapshots/{snapshot}`: what is left out stays as it is. */
export interface ChangeSnapshotRequest {
  /** The new name, without the disk's. */
  readonly name?: string;
  readonly isProtected?: boolean;
}

/** Body of `POST /v1/disks/{name}/snapshots/{snapshot}/clone`. */
export interface CloneDiskRequest {
  /** Name of the new disk. */
  readonly name: string;
  readonly readOnly?: boolean;
  readonly attributes?: Attributes;
}

/** A disk that was deleted, and can be had back. */
export interface DeletedDiskDocument {
  readonly id: number;
  /** As it was called; another disk, or others in the trash, may have the same name. */
  readonly name: string;
  readonly sizeBytes: number;
  readonly createdMs: number;
  readonly deletedMs: number;
  /** When it goes for good. */
  readonly expiresMs: number;
  /** Names of its snapshots, oldest first. */
  readonly snapshots: readonly string[];
  readonly attributes: Attributes;
}

/** `GET /v1/trash`. */
export interface TrashDocument {
  /** Sorted by id. */
  readonly disks: readonly DeletedDiskDocument[];
}

/** Body of `POST /v1/trash/{deleted}/restore`. */
export interface RestoreDiskRequest {
  /** What it is called from now on; left out: as it was. */
  readonly name?: string;
}

/** Snapshots of a disk that the cluster takes and deletes by itself. */
export interface ScheduleDocument {
  /** Name of the disk. */
  readonly disk: string;
  /** Its snapshots are called `NAME-20260102T030405Z`. */
  readonly name: string;
  /** Time between two, in milliseconds: at multiples of it since 1970. */
  readonly everyMs: number;
  /** How many of the newest are kept. */
  readonly keep: number;
  /** Of those that are older, the newest one of so many days, weeks and months (UTC) is kept. */
  readonly keepDaily: number;
  readonly keepWeekly: number;
  readonly keepMonthly: number;
  readonly createdMs: number;
  /** How many of its snapshots are there. */
  readonly snapshots: number;
  /** When the newest of them was taken; null: there is none. */
  readonly lastMs: number | null;
  /** When the next one is due. */
  readonly nextMs: number;
  /** It has been without the newest for more than a period and a minute: `problems` of the status say why. */
  readonly isLate: boolean;
}

/** `GET /v1/schedules` and its like. */
export interface ScheduleListDocument {
  /** By disk, and each disk's by name. */
  readonly schedules: readonly ScheduleDocument[];
}

/** Body of `PUT /v1/disks/{name}/schedules/{schedule}`; see {@linkcode ScheduleDocument}. */
export interface ScheduleRequest {
  readonly everyMs: number;
  readonly keep: number;
  /** 0 where it is left out, and so for those below. */
  readonly keepDaily?: number;
  readonly keepWeekly?: number;
  readonly keepMonthly?: number;
}

/** Who has a disk open, in `GET /v1/locks`. */
export interface LockDocument {
  /** Name of the disk. */
  readonly disk: string;
  /** Name of the node. */
  readonly node: string;
  /** Fencing number of the lease. */
  readonly generation: number;
  /** In milliseconds since 1970; null: the node that was asked cannot say. */
  readonly sinceMs: number | null;
  /** It was taken then; false: it had been taken by then, before the node that was asked saw it. */
  readonly isSinceExact: boolean;
  /**
   * `serving`: all is well. `waiting`: requests wait there. `suspect`: the node does not answer, and it may be a matter of
   * seconds. `down`: it is off the map, or its agent has been started anew, and whoever wants the disk has it as soon as it surely
   * serves nothing any more.
   */
  readonly state: LockState;
  /** Why it is not well, in words; null: it is. */
  readonly reason: string | null;
}

/** `GET /v1/locks`. */
export interface LockListDocument {
  /** Of disks that are open for writing, sorted by name. */
  readonly locks: readonly LockDocument[];
}

/** `GET /v1/disks`. */
export interface DiskListDocument {
  /** Sorted by name. */
  readonly disks: readonly DiskDocument[];
}

/** `GET /v1/status`: everything about one agent. */
export interface StatusDocument {
  /** True when there is no problem at all. */
  readonly healthy: boolean;
  /** One line for people. */
  readonly summary: string;
  /** What is wrong, the worst first. */
  readonly problems: readonly Problem[];
  readonly agent: AgentInfo;
  /** Version of the cluster map. */
  readonly epoch: number;
  /** Null when it could not be put together in time; `problems` says so. */
  readonly cluster: ClusterStatus | null;
  /** Null with `cluster`. */
  readonly groups: GroupSummary | null;
  /** Null when the store does not answer; `problems` says why. */
  readonly store: StoreStatus | null;
  /** Sorted by name; without those that do not answer, which `problems` names. */
  readonly disks: readonly DiskDocument[];
}

/** Body of `POST /v1/disks`. */
export interface CreateDiskRequest {
  readonly name: string;
  /** A multiple of 512. */
  readonly sizeBytes: number;
  readonly readOnly?: boolean;
  readonly copies?: number;
  /** Fewest copies with which it may be written. */
  readonly copiesMin?: number;
  /** Only nodes of these zones are to hold it; empty, or left out: any may. */
  readonly zones?: readonly string[];
  readonly attributes?: Attributes;
  readonly detectZeroes?: boolean;
}

/** Body of `PATCH /v1/disks/{name}`: what is left out stays as it is. */
export interface ChangeDiskRequest {
  /** The new name. */
  readonly name?: string;
  /** The new size, a multiple of 512. */
  readonly sizeBytes?: number;
  /** Must be true for the new size to be smaller than the old one: data is lost. */
  readonly shrink?: boolean;
  readonly readOnly?: boolean;
  /**
   * Copies that it is to have, and all its relatives with it: they are made, and those that are too many dropped, while it is used. The
   * answer does not wait for that; `copiesChange` of the disk tells. Back to what it has takes it back.
   */
  readonly copies?: number;
  /** Only nodes of these zones are to hold it, and all its relatives with it; empty: any may. As with `copies`. */
  readonly zones?: readonly string[];
  /** Fewest copies with which it may be written; null: as the cluster's settings say. */
  readonly copiesMin?: number | null;
  /** Replaces all attributes. */
  readonly attributes?: Attributes;
  /** Changes single attributes, after `attributes`: their new values, or null for those that go. */
  readonly setAttributes?: Readonly<Record<string, string | null>>;
  /** Replaces all limits; what is left out is 0: none. */
  readonly limits?: Partial<Limits>;
  readonly detectZeroes?: boolean;
}

/** `GET /v1/cluster`: what the node that was asked knows of its cluster. */
export interface ClusterDocument extends ClusterStatus {
  readonly clusterId: string;
  readonly groups: GroupSummary;
  readonly settings: Settings;
  /** Data that was given up by command, the oldest first. */
  readonly losses: readonly LossEntry[];
}

/** One node, in `GET /v1/nodes` and wherever a node is the answer. */
export interface NodeDocument extends NodeStatus {
  /** PGs that it is a member of, in sync or catching up. */
  readonly groups: number;
  /** PGs that it shall hold. */
  readonly groupsWanted: number;
  /** PGs that name it in any way; one with none can be removed. */
  readonly groupsLeft: number;
  /** PGs of which it has the only complete copy. */
  readonly onlyCopies: number;
  /** Names of the disks that are open there. */
  readonly openDisks: readonly string[];
}

/** `GET /v1/nodes`. */
export interface NodeListDocument {
  /** Sorted by id. */
  readonly nodes: readonly NodeDocument[];
}

/** Body of `PATCH /v1/nodes/{node}`, and of the plan for it: what is left out stays. */
export interface ChangeNodeRequest {
  /** `draining`: its data moves away, then it can be removed; `in`: it takes its share again. */
  readonly availability?: "in" | "draining";
  /** Its share in relation to others; null: from its capacity. */
  readonly weight?: number | null;
  /** "": a zone of its own. */
  readonly zone?: string;
  /** The change is made only if the map still has this `targetsEpoch`: that of the plan that was shown. */
  readonly targetsEpoch?: number;
}

/** Body of `POST /v1/nodes/{node}/plan`. */
export interface PlanRequest extends ChangeNodeRequest {
  /** The node is removed; nothing else may be given. */
  readonly remove?: boolean;
}

/** What a change means for one node. */
export interface PlanNode {
  readonly id: number;
  readonly name: string;
  /** Copies of PGs that come. */
  readonly comes: number;
  /** Copies of PGs that leave. */
  readonly goes: number;
  /** Estimates in bytes; null: nobody has reported how much there is. */
  readonly receivesBytes: number | null;
  readonly sendsBytes: number | null;
}

/** Answer of `POST /v1/nodes/{node}/plan`: what moves, how much, how long. Nothing is changed by it. */
export interface PlanDocument {
  /** Of the map that it was made from; goes into {@linkcode ChangeNodeRequest}. */
  readonly targetsEpoch: number;
  /** Copies of PGs that are made on nodes which did not have them. */
  readonly movedReplicas: number;
  /** The fewest that any balanced placement would move. */
  readonly minimumReplicas: number;
  /** An estimate; null: nobody has reported how much there is. */
  readonly movedBytes: number | null;
  /** Time that the slowest node needs at the rate; null: not known. */
  readonly seconds: number | null;
  readonly rateBytesPerSecond: number;
  /** The rate is that of the copying that goes on now; else it is assumed. */
  readonly isRateMeasured: boolean;
  /** Copies of PGs that nobody who is there can give. */
  readonly replicasWithoutSource: number;
  /** PGs that will have fewer copies than now: there are not enough nodes for them. */
  readonly groupsWithFewer: number;
  /** PGs that stay where they are, because no node takes data, or too few do to be written to. */
  readonly groupsImmovable: number;
  /** PGs of which the node has the only complete copy. */
  readonly onlyCopies: number;
  /** Names of the disks that are open on the node. */
  readonly openDisks: readonly string[];
  /** Nodes that have to do with it, by id. */
  readonly nodes: readonly PlanNode[];
}

/** Body of `PATCH /v1/cluster/settings`: what is left out stays. */
export interface ChangeSettingsRequest {
  /** Of new disks that do not say. */
  readonly copies?: number;
  /** Of disks that do not say; null: a majority, or 1 of two copies. */
  readonly copiesMin?: number | null;
  /** How long a node may be down before its data is made anew elsewhere. */
  readonly outAfterMs?: number;
  /** Data between nodes is authenticated, and not encrypted. */
  readonly trustedNetwork?: boolean;
  /** How long disks that are deleted from now on stay in the trash; 0: they go at once. */
  readonly trashMs?: number;
}

/** Answer of `GET /v1/cluster/secret`. */
export interface SecretDocument {
  readonly secret: string;
}

/** Body and answer of `PUT /v1/log-level`. */
export interface LogLevelDocument {
  readonly level: "debug" | "info" | "warn" | "error";
}

/** Body of `POST /v1/disks/{name}/settle`. */
export interface SettleRequest {
  /** Name or id of the node whose content counts where replicas differ. */
  readonly node: string;
}

/**
 * One line of the answer to a check: any number of `progress`, then one `report` (or `compared`) or one `error`.
 */
export type CheckEvent =
  | {
    readonly kind: "progress";
    readonly checkedBytes: number;
    readonly totalBytes: number;
  }
  | { readonly kind: "report" } & CheckReport
  /** In place of `report`, where replicas are compared. */
  | { readonly kind: "compared" } & ComparisonReport
  | { readonly kind: "error"; readonly error: ControlError };

/** Every answer with a status of 400 or more. */
export interface ErrorDocument {
  readonly error: ControlError;
}
