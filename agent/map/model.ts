/**
 * What the cluster map is made of: its entries, its bounds, the commands that change it and what
 * follows from a change. Types and constants only; `map.ts` hands them on together with what works on
 * them, and is what other folders import.
 *
 *     ClusterMap
 *       nodes    [NodeEntry …]                     by id
 *       pools    [Pool …]                          by id: one for each number of copies, then those of zones and of families that move
 *                  pgs [PgEntry …]                 2^pgBits of them, by number
 *       disks    [DiskEntry …]                     by name; each has a lease or none
 *       settings, voters, losses
 *
 * @module
 */

/**
 * Most disks of one map. Each costs two sockets and some memory while it is idle; with names and
 * attributes of usual length the encoded map stays below {@linkcode MAP_BYTES_MAX}.
 */
export const DISKS_MAX = 4096;

/**
 * Most bytes of an encoded map: it is committed as one value and sent to a node that lags as one
 * snapshot. 4096 disks with usual names and attributes take about 1 MiB, 1,000 nodes 0.2 MiB, each
 * of five pools of 16384 PGs in which no two have the same members 0.2 MiB, those with zones together no more
 * than four of these ({@linkcode ZONED_POOLS_MAX}), those of families that move less than 1 MiB: 4 MiB are enough for
 * that, and still cross a slow network within a second.
 */
export const MAP_BYTES_MAX = 4 * 1024 * 1024;

/**
 * Most layers of one chain: one for each snapshot in use, and those that wait to be absorbed. Each costs a few bytes in the map;
 * the store finds its way through long chains by `store/reads.ts`.
 */
export const LAYERS_MAX = 2048;

/** Most snapshots of one disk. */
export const SNAPSHOTS_PER_DISK_MAX = 1024;

/** Most snapshots of one map, and most layers: with names of usual length they take half of {@linkcode MAP_BYTES_MAX}. */
export const SNAPSHOTS_MAX = 32_768;

/** Most disks that one command takes a snapshot of: all of them, as a backup of a cluster does. */
export const SNAPSHOT_DISKS_MAX = DISKS_MAX;

/** Most disks in the trash. */
export const TRASH_MAX = 4096;

/** Most schedules of one disk. */
export const SCHEDULES_MAX = 8;

/** Shortest time between two snapshots of a schedule, in milliseconds: a minute. */
export const SCHEDULE_EVERY_MS_MIN = 60_000;

/** Longest `trashMs`: ten years. */
export const TRASH_MS_MAX = 10 * 365 * 24 * 3600 * 1000;

/** Most I/O requests, and most bytes, that a limit may allow for each second. */
export const LIMIT_MAX = 1e12;

/** Longest time for which a disk may go as fast as its burst limits, in seconds. */
export const BURST_SECONDS_MAX = 3600;

/** Most copies that a disk may ask for: there is one pool, and one table of PGs, for each number, and for each with zones. */
export const COPIES_MAX = 5;

/**
 * Most families that go from one pool to another at a time: each has a table of PGs of its own, whose PGs may have twice as
 * many members as others (see {@linkcode MAP_BYTES_MAX}). Fewer in maps of more than 4096 PGs: see `copies.ts`.
 */
export const MOVES_MAX = 4;

/**
 * Most pools with zones: pairs of a set of zones and a number of copies that disks have. Fewer in maps of more than 4096 PGs, so that
 * together they have no more PGs than four of the largest pools, which take less than 1 MiB: see `zones.ts`.
 */
export const ZONED_POOLS_MAX = 16;

/** Most zones that a disk's copies may be kept in: more than sites and racks that anybody names one by one. */
export const ZONES_MAX = 16;

/** Most attributes of one disk. */
export const ATTRIBUTES_MAX = 16;

/** Longest key of an attribute, in characters of the same set as a disk's name. */
export const ATTRIBUTE_KEY_LENGTH_MAX = 63;

/** Longest value of an attribute, in UTF-16 code units. */
export const ATTRIBUTE_VALUE_LENGTH_MAX = 255;

/** Layer and disk ids are unsigned 32-bit numbers; 0 is never given. */
export const ID_MAX = 0xffff_ffff;

/** Node ids are unsigned 16-bit numbers; 0 is never given. */
export const NODE_ID_MAX = 0xffff;

/** Most nodes of one map: gossip, learners and placement are made for about a thousand. */
export const NODES_MAX = 1024;

/** Longest name of a node and of a zone, in characters: one DNS label. */
export const NODE_NAME_LENGTH_MAX = 63;

/** Longest address of a node: a name of 253 characters, a colon and a port. */
export const ADDRESS_LENGTH_MAX = 259;

/** Longest id of a kernel's boot (it has 36 characters) and longest version, in characters. */
export const TOKEN_LENGTH_MAX = 64;

/** Newest version of the protocol that fits into a message's head. */
export const PROTOCOL_MAX = 0xffff;

/** Largest weight of a node. Weights only count in relation to each other. */
export const WEIGHT_MAX = 1e15;

/** PGs of a new cluster, as a power of two: 256. */
export const PG_BITS_DEFAULT = 8;

/** Fewest PGs that a map may have, as a power of two. Only tests found clusters with fewer than the default. */
export const PG_BITS_MIN = 2;

/** Most PGs of a pool, as a power of two: 16384. */
export const PG_BITS_MAX = 14;

/**
 * Most members of one PG, `inSync` and `joining` together: all copies at the old places, all at the
 * new ones, and as many again for a change of mind on the way.
 */
export const MEMBERS_MAX = 3 * COPIES_MAX;

/** Most voters, while one is being replaced: five, and the one that comes. */
export const VOTERS_MAX = 6;

/** How many accepted losses the map remembers; the oldest goes first. */
export const LOSSES_MAX = 64;

/** Shortest and longest `outAfterMs`: ten seconds (more than finding out takes) and a year. */
export const OUT_AFTER_MS_MIN = 10_000;

/** See {@linkcode OUT_AFTER_MS_MIN}. */
export const OUT_AFTER_MS_MAX = 365 * 24 * 3600 * 1000;

/** Free-form notes of the user about a disk. */
export type Attributes = Readonly<Record<string, string>>;

/** Who holds a disk: one run of the agent on one node. */
export interface Lease {
  readonly node: number;
  /** The node's incarnation when it took the lease. */
  readonly incarnation: number;
}

/**
 * One layer: a part of a disk's content. Layers form trees, one for each family of disks and snapshots: reads of a layer fall
 * through to its parent, and so on. Only the newest layer of a disk is written to; one that has a child never is (see
 * {@linkcode SnapshotEntry.isTaking} for the moment between).
 */
export interface LayerEntry {
  /** 1…{@linkcode ID_MAX}, above its parent's. */
  readonly id: number;
  /** The layer below; 0: none. */
  readonly parent: number;
  /**
   * Nodes that have absorbed it into its child, the only one that it has: null while somebody needs it. The child then stands for
   * both wherever content is copied; when every storage node of the map is here, the layer goes. Sorted.
   */
  readonly absorbedBy: readonly number[] | null;
  /** It is being made independent of its parent: see `flatten.ts`. Left out where it is not. */
  readonly flatten?: Flattening;
}

/** How far a layer is that is being made independent of its parent. */
export interface Flattening {
  /** For which disk: it ends with it. */
  readonly disk: number;
  /** Epoch in which it began, or began anew: what nodes say that rests on an older map does not count. */
  readonly since: number;
  /** Nodes that have copied everything, and are members as they were then. Sorted. */
  readonly by: readonly number[];
}

/** One snapshot of a disk. */
export interface SnapshotEntry {
  /** Of the same form as a disk's name; unique among the disk's. */
  readonly name: string;
  /** Its newest layer, which no other snapshot and no disk has as its newest: it is known by this. */
  readonly layer: number;
  /** Size of the disk when it was taken. */
  readonly sizeBytes: number;
  /** Milliseconds since 1970. */
  readonly createdMs: number;
  /** It cannot be deleted. */
  readonly isProtected: boolean;
  /**
   * Writes that had been given out before are still on their way into it. 0: it is complete; else the epoch of the map in which it
   * was begun, the same for all that were begun together.
   */
  readonly taking: number;
  /** While it is being taken: nothing is on its way into it any more; others that were begun together are still waited for. */
  readonly isDrained: boolean;
  /** While it is being taken: it was given up, and goes as soon as nothing is on its way into it. */
  readonly isAborted: boolean;
}

/** How fast a disk may be used. 0: without a limit. */
export interface Limits {
  /** Requests for each second. */
  readonly iops: number;
  /** Bytes for each second. */
  readonly bytesPerSecond: number;
  /** What is allowed for {@linkcode Limits.burstSeconds} after a time of less use; at least the limit itself, or 0: no bursts. */
  readonly burstIops: number;
  /** The same for bytes. */
  readonly burstBytesPerSecond: number;
  /** 0…{@linkcode BURST_SECONDS_MAX}. */
  readonly burstSeconds: number;
}

/** Snapshots that the cluster takes and deletes by itself. */
export interface Schedule {
  /** Of the same form as a disk's name; its snapshots are named after it: `NAME-20260102T030405Z`. */
  readonly name: string;
  /** Time between two, in milliseconds: at multiples of it since 1970. */
  readonly everyMs: number;
  /** How many of the newest are kept. */
  readonly keep: number;
  /** Of those that are older, the newest one of so many days, weeks and months (UTC) is kept. */
  readonly keepDaily: number;
  readonly keepWeekly: number;
  readonly keepMonthly: number;
  /** When it was made: nothing before is missed. Milliseconds since 1970. */
  readonly createdMs: number;
}

/**
 * Under which leases that are over a disk may have been written, or was changed otherwise: so a guest that was left behind by one of them
 * can be told whether others have had its disk since.
 */
export interface Written {
  /** Node that had the newest of those leases; 0: none, or the disk was rolled back since. */
  readonly node: number;
  /** Generation of that lease; 0: none. After a rollback the one that the next lease will have. */
  readonly generation: number;
  /** Generation of the newest of them that another node had, before; 0: none. */
  readonly before: number;
}

/** What is known of a disk before its first lease, and of one of level 1. */
export const UNWRITTEN: Written = { node: 0, generation: 0, before: 0 };

/** One disk. */
export interface DiskEntry {
  /** 1…{@linkcode ID_MAX}, never used twice. */
  readonly id: number;
  /** Passes `checkDiskName`. */
  readonly name: string;
  /** A multiple of 512, up to `DISK_BYTES_MAX`. */
  readonly sizeBytes: number;
  /** Layer ids, newest first: writes go to the first, reads fall through. Follows from {@linkcode ClusterMap.layers}. */
  readonly layers: readonly number[];
  /** Milliseconds since 1970. */
  readonly createdMs: number;
  /** Guests may only read. */
  readonly readOnly: boolean;
  /**
   * Replicas that the disk should have; fewer nodes keep fewer. All disks of a family have the same, because they share layers and so
   * places. While its family gets another number of them: as many as it had (`copies.ts`).
   */
  readonly copies: number;
  /**
   * Id of the pool that it belongs to, which is one of so many copies and none of a family's: it has the zones that the disk is kept in.
   * Its data is there, unless its family has a pool of its own: then it comes from there. The same for all of a family.
   */
  readonly pool: number;
  /** Epoch in which it came into its pool from another one; 0: it was made there. The same for all of a family. */
  readonly placedEpoch: number;
  /** Newest epoch in which any of the PGs where it was before was settled; 0: none was. The same for all of a family. */
  readonly settledBefore: number;
  /** Fewest replicas in sync with which it may be written; null: see `copiesMinOf`. */
  readonly copiesMin: number | null;
  /** Id of the disk that it descends from, or its own: all of a family share placement. */
  readonly family: number;
  /**
   * Fencing number of the newest lease; 0 before the first. Each {@link TakeLease} raises it.
   */
  readonly generation: number;
  /** Null while nobody has the disk open for writing. */
  readonly lease: Lease | null;
  /** All writes of this generation and of older ones are the same on all members. */
  readonly settled: number;
  readonly written: Written;
  readonly attributes: Attributes;
  /** Oldest first. At most one is being taken, the newest. */
  readonly snapshots: readonly SnapshotEntry[];
  readonly limits: Limits;
  /** Sorted by name. */
  readonly schedules: readonly Schedule[];
  /** Blocks of zeros that guests write are kept as holes. */
  readonly detectZeroes: boolean;
}

/** A disk that was deleted, and can be had back. */
export interface TrashEntry {
  /** As it was. Its name may be another disk's by now; nobody holds its lease. */
  readonly disk: DiskEntry;
  /** Milliseconds since 1970. */
  readonly deletedMs: number;
  /** When it goes for good. */
  readonly expiresMs: number;
}

/** What holds for the whole cluster. */
export interface Settings {
  /** `copies` of a disk that does not say. */
  readonly copies: number;
  /** `copiesMin` of a disk that does not say; null: the default, see `copiesMinOf`. */
  readonly copiesMin: number | null;
  /** How long a node may be down before its share is made anew elsewhere. */
  readonly outAfterMs: number;
  /** Data between nodes is authenticated but not encrypted. */
  readonly trustedNetwork: boolean;
  /** How long deleted disks stay in the trash, in milliseconds; 0: they go at once. */
  readonly trashMs: number;
}

/** Whether a node takes part: known to be running, or not. */
export type NodeState = "up" | "down";

/**
 * Where data belongs: `in`: takes its share; `out`: gets none, what it has is made anew elsewhere;
 * `draining`: gets none, what it has moves away while it still serves it.
 */
export type Availability = "in" | "out" | "draining";

/** One node. */
export interface NodeEntry {
  /** 1…{@linkcode NODE_ID_MAX}, never used twice. */
  readonly id: number;
  /** Of its store: 32 hexadecimal digits. */
  readonly uuid: string;
  /** For people; unique. */
  readonly name: string;
  /** `host:port`; UDP and TCP at that port, and TCP at the one after it. */
  readonly address: string;
  /** Copies go to different zones; "" is a zone of its own. */
  readonly zone: string;
  /** Bytes that its store may hold. */
  readonly capacityBytes: number;
  /** Its share in relation to others; null: from its capacity. */
  readonly weight: number | null;
  /** Votes, and stores nothing. */
  readonly witness: boolean;
  readonly state: NodeState;
  readonly availability: Availability;
  /** Counts its starts, from 1. */
  readonly incarnation: number;
  /** The kernel boot of its last start; "" when unknown, which is the same as no other. */
  readonly bootId: string;
  readonly version: string;
  /** Oldest and newest level that it speaks: see `levels.ts`. */
  readonly protocolMin: number;
  readonly protocol: number;
  /** Number of its last proposal that was applied: see `proposals.ts`. */
  readonly requestSequence: number;
  /** When `state` changed, or it was dropped by {@link DropMember}: the leader's clock. */
  readonly changedMs: number;
}

/** One placement group: who holds its chunks. See `groups.ts` for how it may change. */
export interface PgEntry {
  /** Where its replicas shall be; the leader computes it. Never empty, no node twice. */
  readonly target: readonly number[];
  /** Hold every acknowledged write. Never empty, no node twice. */
  readonly inSync: readonly number[];
  /** Get all new writes and still pull the old ones. Not in `inSync`. */
  readonly joining: readonly number[];
  /**
   * Beside `joining`, one for each: epoch of the map in which it began. Who was out in between and is
   * back has another one, also for those who have not seen every map.
   */
  readonly joinedEpochs: readonly number[];
  /** Those of `inSync` that lost unsynced writes in a crash. */
  readonly unclean: readonly number[];
  /** Every member that is left is unclean: they have to agree first. */
  readonly unsettled: boolean;
  /**
   * Epoch in which it was last settled (or its data given up); 0: never. Writes that were acknowledged under
   * older maps and not flushed may be gone: a FLUSH that owes them fails, or they are written again.
   */
  readonly settledEpoch: number;
  /** Epoch of the last change of `inSync`, `joining`, `unclean` or `unsettled`. */
  readonly changedEpoch: number;
}

/**
 * All disks with the same number of copies that are kept in the same zones, or one family that goes from one of those pools to
 * another.
 */
export interface Pool {
  /**
   * What it is known by. That of all disks with as many copies, in whichever zones, has their number; that of disks that are kept in
   * some zones, and that of a family, has a number above {@linkcode COPIES_MAX} which is never given twice.
   */
  readonly id: number;
  /** Replicas that its PGs are to have; of a family's: those that the family is to have in the end. */
  readonly copies: number;
  /** Only nodes of these zones are to hold its PGs, see `zones.ts`; sorted. Empty: all nodes may; and in a family's. */
  readonly zones: readonly string[];
  /** The family that has it for itself while it goes from one pool to another, see `copies.ts`; 0: none. */
  readonly family: number;
  /** Of a family's: id of the pool that the family goes to; else 0. */
  readonly to: number;
  /** Copies that all of its data has had, where there could be more since nodes have come: see `growth.ts`. Else left out. */
  readonly reached?: number;
  /** 2^`pgBits` of them. Entries that are equal may be one object. */
  readonly pgs: readonly PgEntry[];
}

/** Data that was given up by command: see {@link RemoveNode}. */
export interface LossEntry {
  /** Epoch of the map in which it happened. */
  readonly epoch: number;
  readonly nowMs: number;
  /** The node that had the only copy, and its name then. */
  readonly node: number;
  readonly name: string;
  /** Copies that the disks concerned should have. */
  readonly pool: number;
  /** How many PGs of the pool. */
  readonly pgs: number;
}

/** The cluster map. */
export interface ClusterMap {
  /** Version: 0 for the empty map, and one more with every change that a command makes. */
  readonly epoch: number;
  /** What the cluster speaks: see `levels.ts`. */
  readonly level: number;
  /** 32 hexadecimal digits; "" only in a map that has no nodes. */
  readonly clusterId: string;
  /** Id of the next disk. */
  readonly nextDisk: number;
  /** Id of the next layer. */
  readonly nextLayer: number;
  /** Id of the next node. */
  readonly nextNode: number;
  readonly settings: Settings;
  /** Sorted by id. Empty only before `foundCluster` or `adopt`. */
  readonly nodes: readonly NodeEntry[];
  /** Mirror of the consensus' configuration, for people and placement; sorted. */
  readonly voters: readonly number[];
  /** Every pool has 2^`pgBits` PGs. */
  readonly pgBits: number;
  /**
   * Epoch of the last change of what targets are computed from, or of a target: a computation that is
   * based on an older one is refused.
   */
  readonly targetsEpoch: number;
  /** Sorted by id. Once made, those of all nodes stay; those of zones go with their last disk, and those of families when they are there. */
  readonly pools: readonly Pool[];
  /** Sorted by name. */
  readonly disks: readonly DiskEntry[];
  /** Sorted by id. See `layers.ts`. */
  readonly layers: readonly LayerEntry[];
  /** Sorted by the disks' ids. */
  readonly trash: readonly TrashEntry[];
  /** The newest {@linkcode LOSSES_MAX}, oldest first. */
  readonly losses: readonly LossEntry[];
}

/** Settings of a new cluster. */
export const DEFAULT_SETTINGS: Settings = {
  copies: 3,
  copiesMin: null,
  outAfterMs: 600_000,
  trustedNetwork: false,
  trashMs: 24 * 3600 * 1000,
};

/** Limits of a disk that has none. */
export const NO_LIMITS: Limits = {
  iops: 0,
  bytesPerSecond: 0,
  burstIops: 0,
  burstBytesPerSecond: 0,
  burstSeconds: 0,
};

/** The map in which nothing has happened yet and that nobody has founded: see `foundCluster`. */
export const EMPTY_MAP: ClusterMap = {
  epoch: 0,
  level: 1,
  clusterId: "",
  nextDisk: 1,
  nextLayer: 1,
  nextNode: 1,
  settings: DEFAULT_SETTINGS,
  nodes: [],
  voters: [],
  pgBits: PG_BITS_DEFAULT,
  targetsEpoch: 0,
  pools: [],
  disks: [],
  layers: [],
  trash: [],
  losses: [],
};

// ------------------------------------------------------------------------------------ disk commands

/** Makes an empty disk, and its pool when it is the first with so many copies, or the first in these zones. */
export interface CreateDisk {
  readonly kind: "create-disk";
  readonly name: string;
  /** A multiple of 512, 512…`DISK_BYTES_MAX`. */
  readonly sizeBytes: number;
  /** Now, in milliseconds since 1970: machines have no clock. */
  readonly nowMs: number;
  readonly readOnly?: boolean;
  readonly copies?: number;
  readonly copiesMin?: number | null;
  /** Its copies lie on nodes of these zones only. Empty, or left out: on any. */
  readonly zones?: readonly string[];
  readonly attributes?: Attributes;
  readonly detectZeroes?: boolean;
}

/** Deletes a disk and its snapshots, whoever holds its lease. */
export interface DeleteDisk {
  readonly kind: "delete-disk";
  readonly name: string;
  /** The disk that was meant; another one that has got its name meanwhile stays. */
  readonly id?: number;
  /** It goes to the trash, as long as the settings say. Now, in milliseconds since 1970. Left out: for good. */
  readonly trashedMs?: number;
}

/** Takes a disk out of the trash. */
export interface RestoreDisk {
  readonly kind: "restore-disk";
  readonly id: number;
  /** What it is called from now on. */
  readonly name: string;
}

/** Ends a disk in the trash for good. */
export interface PurgeDisk {
  readonly kind: "purge-disk";
  readonly id: number;
  /** When it was put there: one that has been restored and deleted again since stays. */
  readonly deletedMs?: number;
}

/**
 * Takes a snapshot of each disk, all of them or none, at one point in time: where somebody has one of them open for writing,
 * the snapshots are complete only when every holder has said {@link SnapshotTaken}.
 */
export interface CreateSnapshots {
  readonly kind: "create-snapshots";
  /** Ids, each once; 1…{@linkcode SNAPSHOT_DISKS_MAX} of them. */
  readonly disks: readonly number[];
  readonly name: string;
  readonly nowMs: number;
}

/** The holder of a disk has given every write of before the snapshot back. */
export interface SnapshotTaken {
  readonly kind: "snapshot-taken";
  readonly id: number;
  readonly layer: number;
  readonly generation: number;
}

/** Gives up snapshots that are not complete yet: those that were begun together, by the epoch in which they were. */
export interface AbortSnapshots {
  readonly kind: "abort-snapshots";
  readonly taking: number;
}

/** Deletes a snapshot. What other snapshots and disks need stays. */
export interface DeleteSnapshot {
  readonly kind: "delete-snapshot";
  readonly disk: string;
  readonly name: string;
  /** The one that was meant. */
  readonly layer?: number;
}

/** Renames, protects or gives free a snapshot. */
export interface ChangeSnapshot {
  readonly kind: "change-snapshot";
  readonly disk: string;
  readonly name: string;
  readonly newName?: string;
  readonly isProtected?: boolean;
}

/** Makes a disk that begins as a snapshot is. */
export interface CloneDisk {
  readonly kind: "clone-disk";
  readonly disk: string;
  readonly snapshot: string;
  readonly name: string;
  readonly nowMs: number;
  readonly readOnly?: boolean;
  readonly attributes?: Attributes;
}

/**
 * Makes a disk that nobody has open as it was when a snapshot was taken; what it holds now goes to the trash, as a disk of the same
 * name.
 */
export interface RollbackDisk {
  readonly kind: "rollback-disk";
  readonly disk: string;
  readonly snapshot: string;
  readonly nowMs: number;
}

/** A node has, synced, absorbed these layers into their children. */
export interface Absorbed {
  readonly kind: "absorbed";
  readonly node: number;
  readonly incarnation: number;
  readonly layers: readonly number[];
}

/**
 * Makes a clone independent of what it was cloned from: in the end it holds everything itself. Said twice it changes nothing.
 */
export interface FlattenDisk {
  readonly kind: "flatten-disk";
  readonly disk: string;
  /** Ends it before it is done. */
  readonly cancel?: boolean;
}

/** A node has, synced, copied everything into these layers that they were read through to. */
export interface Flattened {
  readonly kind: "flattened";
  readonly node: number;
  readonly incarnation: number;
  readonly layers: readonly number[];
  /** Of the map that it knew: its places in groups were in it what they had been when it began. */
  readonly epoch: number;
}

/** Makes a schedule, or changes the one of this name. */
export interface SetSchedule {
  readonly kind: "set-schedule";
  readonly disk: string;
  readonly name: string;
  readonly everyMs: number;
  readonly keep: number;
  readonly keepDaily: number;
  readonly keepWeekly: number;
  readonly keepMonthly: number;
  readonly nowMs: number;
}

/** Ends a schedule; its snapshots stay. */
export interface DeleteSchedule {
  readonly kind: "delete-schedule";
  readonly disk: string;
  readonly name: string;
}

/** Changes a disk's size. */
export interface ResizeDisk {
  readonly kind: "resize-disk";
  readonly name: string;
  /** A multiple of 512, 512…`DISK_BYTES_MAX`. */
  readonly sizeBytes: number;
  /** Must be true for the new size to be smaller than the old one: data is lost. Refused while the disk is open. */
  readonly shrink?: boolean;
}

/** Gives a disk another name. */
export interface RenameDisk {
  readonly kind: "rename-disk";
  readonly name: string;
  readonly newName: string;
}

/**
 * Changes what else there is to change about a disk; what is left out stays. Another number of copies
 * is another pool: only at level 1, where everybody in sync there holds the data already. See {@linkcode SetCopies}.
 */
export interface ChangeDisk {
  readonly kind: "change-disk";
  readonly name: string;
  readonly readOnly?: boolean;
  readonly copies?: number;
  readonly copiesMin?: number | null;
  /** Replaces all attributes. */
  readonly attributes?: Attributes;
  /** Limits, in the order of {@linkcode Limits}: all of them. */
  readonly limits?: readonly number[];
  readonly detectZeroes?: boolean;
}

/**
 * Has a disk's family get another number of copies, or copies in other zones, while it is used; see `copies.ts`. Where that is under
 * way already: what it is to have in the end is this, also what it had before. What is left out stays as it is to be.
 */
export interface SetCopies {
  readonly kind: "set-copies";
  readonly name: string;
  readonly copies?: number;
  /** Its copies lie on nodes of these zones only; empty: on any. */
  readonly zones?: readonly string[];
}

/** A family's data is where disks with the copies that it is to have are: it becomes one of them. */
export interface FinishCopies {
  readonly kind: "finish-copies";
  /** Id of the family's own pool. */
  readonly pool: number;
}

/**
 * Gives a disk's lease to a node and raises the generation. Refused while another holder is alive: up,
 * in the incarnation that took it. When the holder is down, the leader proposes this only T_GRANT after
 * it has applied the {@link NodeDown}.
 */
export interface TakeLease {
  readonly kind: "take-lease";
  /** By id, not by name: the disk may be renamed meanwhile. */
  readonly id: number;
  readonly node: number;
  readonly incarnation: number;
  /** The disk's generation when it was decided; refused as stale when it is another by now. */
  readonly generation?: number;
}

/** The holder has drained: every write of its generation is on all members, or was never acknowledged. */
export interface ReleaseLease {
  readonly kind: "release-lease";
  readonly id: number;
  readonly node: number;
  /** The generation that it held. */
  readonly generation: number;
  /** It has written nothing. */
  readonly unwritten?: boolean;
}

/**
 * Takes a lease away from a holder that does not give it back, by a user's will. Nothing is known about
 * its last writes, so the next holder reconciles. Whoever proposes it waits T_GRANT before the next
 * {@link TakeLease}; replicas refuse the old generation from then on.
 */
export interface ForceReleaseLease {
  readonly kind: "force-release-lease";
  readonly id: number;
  readonly generation: number;
  /** Said by the holder: it has written nothing. */
  readonly unwritten?: boolean;
}

/** A holder has made all members equal in what generations before its own had left. */
export interface Reconciled {
  readonly kind: "reconciled";
  readonly id: number;
  /** The holder's own generation. */
  readonly generation: number;
}

/** Changes settings of the cluster; what is left out stays. */
export interface ChangeSettings {
  readonly kind: "change-settings";
  readonly copies?: number;
  readonly copiesMin?: number | null;
  readonly outAfterMs?: number;
  readonly trustedNetwork?: boolean;
  readonly trashMs?: number;
}

// ------------------------------------------------------------------------------------ node commands

/** What a node says of itself when it asks to belong. */
export interface NodeFacts {
  /** Of its store: 32 hexadecimal digits. */
  readonly uuid: string;
  /** What it would like to be called. */
  readonly name: string;
  /** `host:port`. */
  readonly address: string;
  readonly zone: string;
  readonly capacityBytes: number;
  readonly witness: boolean;
  readonly version: string;
  /** Oldest and newest level that it speaks; 1 where the oldest is left out. */
  readonly protocolMin?: number;
  readonly protocol: number;
  /** The kernel's boot; "" when unknown. */
  readonly bootId: string;
  readonly nowMs: number;
}

/** Takes a node in: up, with incarnation 1. A node that is there already stays as it is. */
export interface AddNode extends NodeFacts {
  readonly kind: "add-node";
}

/** The agent of a node has started: the next incarnation. */
export interface NodeUp {
  readonly kind: "node-up";
  readonly node: number;
  readonly bootId: string;
  /**
   * The run before had ended by a clean stop: everything that it had acknowledged is synced. Only a run
   * whose own `node-up` was applied may leave such a mark: one that the map never knew, and that stopped
   * cleanly after a crash, would hide the crash.
   */
  readonly clean: boolean;
  /**
   * What the log's end holds is not all that it should be. In the boot that it was in before, that was cut short
   * by the end of the run, and never acknowledged, or it has rotted: where others are in sync they are to be asked.
   */
  readonly torn?: boolean;
  readonly address: string;
  readonly version: string;
  /** As in {@linkcode NodeFacts}. */
  readonly protocolMin?: number;
  readonly protocol: number;
  readonly capacityBytes: number;
  /** Another name, made unique; its present one stays when left out. */
  readonly name?: string;
  /** PGs, of all pools, of which it has nothing: the data path that holds them is not there. */
  readonly lost?: GroupBits;
  readonly nowMs: number;
}

/**
 * Numbers of PGs as a set of bits, in bytes: bit b of byte B stands for every PG that is 8 B + b modulo the number of bits,
 * which is a power of two. So it means the same after a split, and fits maps with fewer PGs, too: there a PG is among
 * them when any of the numbers is the PG's modulo theirs. Empty: none.
 */
export type GroupBits = readonly number[];

/**
 * A node has lost a data path while it runs: it leaves the PGs that were on it. Where it is the only one in sync, it stays, as
 * unclean, and settles when the path is back.
 */
export interface LoseGroups {
  readonly kind: "lose-groups";
  readonly node: number;
  readonly incarnation: number;
  readonly lost: GroupBits;
  /** Of what is left. */
  readonly capacityBytes: number;
}

/** A node is dead, as gossip has confirmed: it leaves every PG that has somebody else in sync. */
export interface NodeDown {
  readonly kind: "node-down";
  readonly node: number;
  /** The run that died; an answer to an older one is refused as stale. */
  readonly incarnation: number;
  readonly nowMs: number;
}

/** A node stops cleanly, of its own will: everything is synced. */
export interface NodeLeave {
  readonly kind: "node-leave";
  readonly node: number;
  readonly incarnation: number;
  readonly nowMs: number;
}

/** A holder of leases cannot reach a node: it leaves PGs as after {@link NodeDown}, and stays up. */
export interface DropMember {
  readonly kind: "drop-member";
  readonly node: number;
  readonly incarnation: number;
  /** The node that asks. */
  readonly by: number;
  readonly nowMs: number;
}

/** What may be made only as it was planned: on the map whose targets, and what they are computed from, are of an epoch. */
interface Planned {
  /** `targetsEpoch` of the map that the plan is of; left out: whatever has changed since. */
  readonly basedOnTargetsEpoch?: number;
}

/** See {@linkcode Availability}. */
export interface SetAvailability extends Planned {
  readonly kind: "set-availability";
  readonly node: number;
  readonly availability: Availability;
}

/** See `weight` of {@linkcode NodeEntry}. */
export interface SetWeight extends Planned {
  readonly kind: "set-weight";
  readonly node: number;
  /** 0…{@linkcode WEIGHT_MAX}, or null. */
  readonly weight: number | null;
}

/** See `zone` of {@linkcode NodeEntry}. */
export interface SetZone extends Planned {
  readonly kind: "set-zone";
  readonly node: number;
  readonly zone: string;
}

/**
 * Takes a node out of the map for good. Without `force`: only one that no PG names, that is no voter
 * and holds no lease.
 *
 * With `force`: one that is down and no voter; it leaves every list, and its leases end (the leader
 * proposes it only T_GRANT after the node-down, as with {@link TakeLease}). Where it is the only member
 * in sync of a PG of a pool with disks, the data of that PG is lost: refused unless `acceptLoss` says
 * so. Then another node takes over with what it happens to have (older data, or zeros), and the map
 * remembers it ({@linkcode LossEntry}).
 */
export interface RemoveNode {
  readonly kind: "remove-node";
  readonly node: number;
  readonly force?: boolean;
  /** Only with `force`. */
  readonly acceptLoss?: boolean;
  readonly nowMs: number;
}

/** What every node of the map speaks becomes what the cluster speaks. There is no way back. */
export interface RaiseLevel {
  readonly kind: "raise-level";
  /** Refused as stale when some node does not speak it; nothing happens when the map has it already. */
  readonly level: number;
}

/** Tells everybody who votes. */
export interface SetVoters {
  readonly kind: "set-voters";
  /** Node ids, at most {@linkcode VOTERS_MAX}. */
  readonly voters: readonly number[];
}

// ----------------------------------------------------------------------------------- group commands

/**
 * PGs of one pool. Of every command that has it: PGs to which it does not apply (any more) are left as
 * they are; it is an error only when the command cannot be meant.
 */
export interface Groups {
  /** Its id. */
  readonly pool: number;
  /** Numbers of PGs. */
  readonly pgs: readonly number[];
}

/** An unclean member leaves, where another one that is up is clean. */
export interface DropUnclean extends Groups {
  readonly kind: "drop-unclean";
  readonly node: number;
}

/** All members are unclean: their settler shall make them agree. */
export interface Unsettle extends Groups {
  readonly kind: "unsettle";
}

/** The settler has, synced, the newest of what the members had: it alone is in sync now. */
export interface Settled extends Groups {
  readonly kind: "settled";
  readonly node: number;
  readonly incarnation: number;
}

/** New places for replicas, all at once or not at all. */
export interface SetTargets {
  readonly kind: "set-targets";
  /** Not that of a family: its targets follow from those of others. */
  readonly pool: number;
  /** `targetsEpoch` of the map that it was computed from; refused as stale when it has another. */
  readonly basedOnTargetsEpoch: number;
  /** PG and its new target: 1…copies storage nodes. */
  readonly changes: readonly (readonly [pg: number, target: readonly number[]])[];
}

/** A node that is up, and in the target, begins to get the PGs' writes. */
export interface StartJoining extends Groups {
  readonly kind: "start-joining";
  readonly node: number;
  readonly incarnation: number;
}

/** A joining node has everything, synced. */
export interface InSync extends Groups {
  readonly kind: "in-sync";
  readonly node: number;
  readonly incarnation: number;
  /** Epoch of its own map when it found so; PGs that it joined anew after that are left out. */
  readonly basedOnEpoch: number;
}

/** Members outside the target leave, where the whole target is in sync. */
export interface Trim extends Groups {
  readonly kind: "trim";
}

/** Twice as many PGs in every pool: p becomes p and p + 2^`pgBits`, with the same members. */
export interface SplitGroups {
  readonly kind: "split-groups";
  /** `pgBits` before; refused as stale when it is another. */
  readonly pgBits: number;
}

/** Everything that can be asked of the map about disks, their leases, and settings. */
export type DiskCommand =
  | CreateDisk
  | DeleteDisk
  | ResizeDisk
  | RenameDisk
  | ChangeDisk
  | SetCopies
  | FinishCopies
  | TakeLease
  | ReleaseLease
  | ForceReleaseLease
  | Reconciled
  | ChangeSettings;

/** Everything that can be asked of the map about snapshots, clones, the trash and schedules. */
export type SnapshotCommand =
  | CreateSnapshots
  | SnapshotTaken
  | AbortSnapshots
  | DeleteSnapshot
  | ChangeSnapshot
  | CloneDisk
  | RollbackDisk
  | RestoreDisk
  | PurgeDisk
  | Absorbed
  | FlattenDisk
  | Flattened
  | SetSchedule
  | DeleteSchedule;

/** Everything that can be asked of the map about nodes. */
export type NodeCommand =
  | AddNode
  | NodeUp
  | NodeDown
  | NodeLeave
  | DropMember
  | LoseGroups
  | SetAvailability
  | SetWeight
  | SetZone
  | RemoveNode
  | RaiseLevel
  | SetVoters;

/** Everything that can be asked of the map about PGs. */
export type GroupCommand =
  | DropUnclean
  | Unsettle
  | Settled
  | SetTargets
  | StartJoining
  | InSync
  | Trim
  | SplitGroups;

/** Everything that can be asked of the map. */
export type MapCommand = DiskCommand | SnapshotCommand | NodeCommand | GroupCommand;

/**
 * What has to be done because the map changed, in the order in which it has to be done. What can be
 * seen by comparing two maps (nodes, members of PGs, settings) is not among it.
 *
 * `disk-resized`: when the disk shrank, the blocks of `layers[0]` from the new end to the old one are
 * to be zeroed; when it grew, the blocks from the old end to the new one as well, before a guest may
 * see the new size. Each alone would do but for crashes between commit and effect.
 *
 * `groups-lost`: to be told to people.
 */
export type MapEffect =
  | { readonly kind: "layer-created"; readonly layer: number }
  | { readonly kind: "disk-added"; readonly disk: DiskEntry }
  | { readonly kind: "disk-removed"; readonly disk: DiskEntry }
  | { readonly kind: "layer-dropped"; readonly layer: number }
  | { readonly kind: "disk-resized"; readonly disk: DiskEntry; readonly previousBytes: number }
  | { readonly kind: "disk-renamed"; readonly disk: DiskEntry; readonly previousName: string }
  | { readonly kind: "disk-changed"; readonly disk: DiskEntry }
  | { readonly kind: "lease-taken"; readonly disk: DiskEntry }
  | { readonly kind: "lease-released"; readonly disk: DiskEntry; readonly previous: Lease }
  | { readonly kind: "disk-reconciled"; readonly disk: DiskEntry }
  | { readonly kind: "snapshots-changed"; readonly disk: DiskEntry }
  | { readonly kind: "groups-lost"; readonly loss: LossEntry };

/** The next map and what follows from it. */
export interface Applied {
  readonly map: ClusterMap;
  /** Not every change has any. A command that changed nothing gives the very map that was given. */
  readonly effects: readonly MapEffect[];
}

/** A command in the consensus' log: see `proposals.ts`. */
export interface Proposal {
  /** Whose it is. */
  readonly node: number;
  /** Counted by that node, from 1, over all its incarnations. */
  readonly sequence: number;
  /** The proposal's own, whatever number it has by now: what its proposer knows it by. 0 or left out: none. */
  readonly id?: number;
  readonly command: MapCommand;
}
