/**
 * The admin API as an OpenAPI 3.1 document. `GET /v1/openapi.json` serves it; the routes take the
 * shape of their requests from it; tests hold paths, requests and answers against it.
 *
 * @module
 */

import { DISK_BYTES_MAX, SECTOR_BYTES } from "../base/limits.ts";
import { CONTROL_ERROR_CODES } from "../map/errors.ts";
import {
  ATTRIBUTE_KEY_LENGTH_MAX,
  ATTRIBUTE_VALUE_LENGTH_MAX,
  ATTRIBUTES_MAX,
  BURST_SECONDS_MAX,
  COPIES_MAX,
  ID_MAX,
  LAYERS_MAX,
  LIMIT_MAX,
  NODE_ID_MAX,
  NODE_NAME_LENGTH_MAX,
  OUT_AFTER_MS_MAX,
  OUT_AFTER_MS_MIN,
  SCHEDULE_EVERY_MS_MIN,
  SNAPSHOT_DISKS_MAX,
  SNAPSHOTS_PER_DISK_MAX,
  TRASH_MS_MAX,
  WEIGHT_MAX,
  ZONES_MAX,
} from "../map/map.ts";
import { DISK_NAME_LENGTH_MAX, DISK_NAME_PATTERN } from "../map/names.ts";
import { CACHE_MODES, LOG_LEVELS } from "../config.ts";
import { PROBLEM_CODES } from "../problems.ts";
import { BLOCK_STATES, EXTENT_STATES, GOSSIP_STATES, LOCK_STATES, PATH_STATES } from "./backend.ts";

/** The part of JSON Schema 2020-12 that this API uses. */
export interface Schema {
  readonly $ref?: string;
  readonly type?: string | readonly string[];
  readonly description?: string;
  readonly enum?: readonly string[];
  readonly const?: string;
  readonly properties?: Readonly<Record<string, Schema>>;
  readonly required?: readonly string[];
  readonly additionalProperties?: boolean | Schema;
  readonly propertyNames?: Schema;
  readonly minProperties?: number;
  readonly maxProperties?: number;
  readonly items?: Schema;
  readonly minItems?: number;
  readonly maxItems?: number;
  readonly oneOf?: readonly Schema[];
  readonly minimum?: number;
  readonly maximum?: number;
  readonly multipleOf?: number;
  readonly minLength?: number;
  readonly maxLength?: number;
  readonly pattern?: string;
  readonly examples?: readonly unknown[];
}

const text = (description: string): Schema => ({ type: "string", description });
const count = (description: string): Schema => ({ type: "integer", minimum: 0, description });
const flag = (description: string): Schema => ({ type: "boolean", description });
const list = (items: Schema, description: string): Schema => ({
  type: "array",
  items,
  description,
});
const ref = (name: string): Schema => ({ $ref: `#/components/schemas/${name}` });

/** An object of which every property is there, but for those named in `optional`. */
function record(
  description: string,
  properties: Readonly<Record<string, Schema>>,
  optional: readonly string[] = [],
): Schema {
  const required = Object.keys(properties).filter((key) => !optional.includes(key));
  return { type: "object", description, properties, required, additionalProperties: false };
}

const maybeSpace = (description: string): Schema => ({
  oneOf: [ref("Space"), { type: "null" }],
  description: `${description}; null: the store did not say in time`,
});

const diskName: Schema = {
  type: "string",
  pattern: DISK_NAME_PATTERN,
  minLength: 1,
  maxLength: DISK_NAME_LENGTH_MAX,
  description: "Name of a disk",
  examples: ["web-01"],
};

const snapshotName: Schema = {
  ...diskName,
  description: "Name of a snapshot, without its disk's",
  examples: ["before-upgrade"],
};

const scheduleName: Schema = {
  ...diskName,
  description: "Name of a schedule: its snapshots are named after it",
  examples: ["hourly"],
};

const fullSnapshotName = (description: string): Schema => ({
  type: ["string", "null"],
  description: `${description}, as DISK@NAME; null: none`,
});

const diskId: Schema = {
  type: "integer",
  minimum: 1,
  maximum: ID_MAX,
  description: "Never used twice",
};

const trashMs: Schema = {
  type: "integer",
  minimum: 0,
  maximum: TRASH_MS_MAX,
  description: "How long deleted disks stay in the trash; 0: they go at once",
};

const limit = (description: string): Schema => ({
  type: "integer",
  minimum: 0,
  maximum: LIMIT_MAX,
  description: `${description}; 0: no limit`,
});

const kept = (minimum: number, description: string): Schema => ({
  type: "integer",
  minimum,
  maximum: SNAPSHOTS_PER_DISK_MAX,
  description,
});

const SCHEDULE = {
  everyMs: {
    type: "integer",
    minimum: SCHEDULE_EVERY_MS_MIN,
    maximum: OUT_AFTER_MS_MAX,
    description: "Time between two in milliseconds: at multiples of it since 1970",
  },
  keep: kept(1, "How many of the newest are kept"),
  keepDaily: kept(0, "Of so many days (UTC) the newest of those that are older is kept, too"),
  keepWeekly: kept(0, "The same for weeks, which begin on Mondays"),
  keepMonthly: kept(0, "The same for months"),
};

const sizeBytes: Schema = {
  type: "integer",
  minimum: SECTOR_BYTES,
  maximum: DISK_BYTES_MAX,
  multipleOf: SECTOR_BYTES,
  description: "Size of the disk in bytes",
};

const copies: Schema = {
  type: "integer",
  minimum: 1,
  maximum: COPIES_MAX,
  description: "Replicas that the disk should have; a single node keeps one",
};

/** Zones that copies are kept in. */
const zones = (description: string): Schema => ({
  type: "array",
  items: { type: "string", minLength: 1, maxLength: NODE_NAME_LENGTH_MAX },
  maxItems: ZONES_MAX,
  description,
});

const copiesMin: Schema = {
  type: "integer",
  minimum: 1,
  maximum: COPIES_MAX,
  description: "Fewest complete copies with which it may be written",
};

const copiesMinOrDefault: Schema = {
  ...copiesMin,
  type: ["integer", "null"],
  description: "Fewest complete copies with which writing goes on; null: the default",
};

/** A name or an id: whatever is none is not found. */
const nodeName: Schema = {
  type: "string",
  pattern: DISK_NAME_PATTERN,
  minLength: 1,
  maxLength: NODE_NAME_LENGTH_MAX,
  description: "Name of a node, or its id",
  examples: ["host-1"],
};

const nodeId: Schema = {
  type: "integer",
  minimum: 1,
  maximum: NODE_ID_MAX,
  description: "Of the node; never used twice",
};

const weight: Schema = {
  type: ["number", "null"],
  minimum: 0,
  maximum: WEIGHT_MAX,
  description: "Its share in relation to others, usually in bytes; null: from its capacity",
};

const zone: Schema = {
  type: "string",
  maxLength: NODE_NAME_LENGTH_MAX,
  description: "Copies go to different zones; empty: a zone of its own",
};

const maybeText = (description: string): Schema => ({ type: ["string", "null"], description });
const maybeCount = (description: string): Schema => ({
  type: ["integer", "null"],
  minimum: 0,
  description,
});
const maybeNumber = (description: string): Schema => ({
  type: ["number", "null"],
  minimum: 0,
  description,
});

const milliseconds = (description: string): Schema =>
  count(`${description}, in milliseconds since 1970`);

const logLevel: Schema = { type: "string", enum: LOG_LEVELS, description: "How much is logged" };

const NODE_STATUS = {
  id: nodeId,
  name: nodeName,
  address: text("Where it is reached, host:port"),
  zone,
  state: { type: "string", enum: ["up", "down"], description: "As the map has it" },
  availability: {
    type: "string",
    enum: ["in", "out", "draining"],
    description: "Takes its share; gets no data; its data moves away",
  },
  witness: flag("Votes, and stores nothing"),
  isVoter: flag("Votes on the cluster map"),
  isLeader: flag("Leads the cluster"),
  isSelf: flag("The node that was asked"),
  version: text("Version of its agent"),
  levelMin: count("Oldest level of the cluster's protocol that its agent speaks"),
  levelMax: count("The newest"),
  incarnation: count("Counts the starts of its agent"),
  weight,
  capacityBytes: count("Bytes of data that its store may hold"),
  usedBytes: maybeCount("Bytes of live data; null: it has not reported for a while"),
  gossip: { type: "string", enum: GOSSIP_STATES, description: "What gossip thinks of it" },
  suspectedBecause: maybeText("Who probed it in vain, and since when; null: nobody suspects it"),
  sinceMs: milliseconds("When its state changed"),
  joiningGroups: count("Placement groups that catch up on it"),
  chunksLeft: count("Chunks that they are known to need"),
  copyBytesPerSecond: maybeNumber("Rate at which it catches up, or null"),
  secondsLeft: maybeNumber("Time until it has caught up; null: cannot be said"),
  stuck: maybeText("What stands in the way of catching up, or null"),
  flattenStuck: maybeText("What stands in the way of flattening disks, or null"),
  flattenBytesPerSecond: maybeNumber("Rate at which it flattens disks; null: it does not"),
  damagedBlocks: count("Blocks of its store that could not be verified"),
  isFull: flag("Its store takes no new writes"),
  hasLostLog: flag("Came back without a part of the log of consensus: does not count for now"),
  hasOtherLog: flag(
    "Its log of consensus is not the cluster's: has to join anew, with an empty store",
  ),
  paths: list(ref("DataPath"), "Its data paths; empty: it has not reported"),
  io: {
    oneOf: [ref("NodeIo"), { type: "null" }],
    description: "What the disks that are open there do; null: it has not reported",
  },
  isProgramNew: {
    type: ["boolean", "null"],
    description: "Another program is installed there than the one that runs; null: not known",
  },
};

const CLUSTER_STATUS = {
  epoch: count("Version of the cluster map"),
  level: count("Level of the protocol that the cluster speaks"),
  leader: count("Id of the node that leads; 0: none is known"),
  hasQuorum: flag("A majority of the voters can be reached: changes are possible"),
  voters: list(nodeId, "Ids of the nodes that vote"),
  nodes: list(ref("NodeStatus"), "By id"),
  waiting: list(ref("WaitingDisk"), "Disks of which requests wait"),
  joining: list(ref("JoiningNode"), "Why this node is not in its cluster yet; empty: it is"),
  notes: list(text("One line"), "What else people should know"),
};

const LIMITS = {
  iops: limit("Requests per second"),
  bytesPerSecond: limit("Bytes per second that are read and written"),
  burstIops: limit("Requests per second for burstSeconds after a time of less use"),
  burstBytesPerSecond: limit("Bytes per second for burstSeconds after a time of less use"),
  burstSeconds: {
    type: "integer",
    minimum: 0,
    maximum: BURST_SECONDS_MAX,
    description: "How long bursts may be, at their full rate; 0: there are none",
  },
} satisfies Readonly<Record<string, Schema>>;

const detectZeroes = flag("Blocks of zeros that guests write are kept as holes");

const CHANGE_NODE = {
  availability: {
    type: "string",
    enum: ["in", "draining"],
    description: "Takes its share; its data moves away",
  },
  weight,
  zone,
  targetsEpoch: count("The change is made only if the map still has this one"),
};

/** Every document of the API by its name. */
const PLACE = {
  inSync: list(text("Name of a node"), "Nodes that hold every acknowledged write"),
  joining: list(text("Name of a node"), "Nodes that get new writes, and still copy old ones"),
  target: list(text("Name of a node"), "Nodes that shall hold it"),
  readFrom: maybeText("The node that this one reads from; null: there is none now"),
  problem: maybeText("Why it cannot be written, or not even read; null: it can"),
};

const CHUNK = {
  ...PLACE,
  chunk: count("Index of the chunk on the disk"),
  group: count("Number of its placement group"),
  offsetBytes: count("Of its first byte on the disk"),
  lengthBytes: { type: "integer", minimum: 1, description: "Of the disk" },
};

export const SCHEMAS: Readonly<Record<string, Schema>> = {
  Version: record("Versions of agent and API", {
    version: text("Version of the agent"),
    api: { type: "string", const: "v1" },
  }),
  Attributes: {
    type: "object",
    description: "Free-form notes of the user",
    additionalProperties: { type: "string", maxLength: ATTRIBUTE_VALUE_LENGTH_MAX },
    propertyNames: { pattern: DISK_NAME_PATTERN, maxLength: ATTRIBUTE_KEY_LENGTH_MAX },
    maxProperties: ATTRIBUTES_MAX,
  },
  Session: record("A front end that is connected to a disk's socket", {
    pid: count("Process at the other end; 0 when unknown"),
    command: text("Command of that process, or empty"),
    readOnly: flag("Through the read-only socket"),
    active: flag("Holds the lease, or needs none, and its rings run"),
    waitingForLease: flag("Waits for another session to give the lease back"),
    queues: count("Rings that run"),
    inFlight: count("Requests under way"),
    connectedMs: milliseconds("When it connected"),
    broken: {
      type: ["string", "null"],
      description: "Why its device stands still, or null",
    },
  }),
  DiskCounters: record("Counters since the agent started", {
    reads: count("Reads"),
    writes: count("Writes"),
    flushes: count("Flushes"),
    discards: count("Discards"),
    readBytes: count("Bytes read"),
    writtenBytes: count("Bytes written"),
    errors: count("Requests that failed"),
    timedRequests: count("Requests whose service time was measured: some of them"),
    timedMs: {
      type: "number",
      minimum: 0,
      description: "Sum of those times in milliseconds, without what limits held them back for",
    },
    heldRequests: count("Requests that the disk's limits held back"),
    heldMs: count("For how long they held any back, in milliseconds"),
  }),
  Limits: record("How fast a disk may be used, by all its front ends together", LIMITS),
  ChangeLimits: record(
    "New limits of a disk; what is left out is 0: no limit",
    LIMITS,
    Object.keys(LIMITS),
  ),
  Space: record("Space in the store of the node that was asked, not that of all nodes", {
    usedBytes: count("Data that it is read through; of a disk also what its snapshots are"),
    exclusiveBytes: count(
      "Of these what nothing else needs: comes back when it is deleted; of a disk at least that",
    ),
    sharedBytes: count("The rest"),
  }),
  Disk: record("A disk", {
    name: diskName,
    id: diskId,
    sizeBytes,
    allocatedBytes: count("Bytes of data that the disk's own layers hold in the store"),
    space: maybeSpace("With its snapshots"),
    readOnly: flag("Guests may only read"),
    copies,
    zones: zones("Zones whose nodes hold it, sorted; empty: any"),
    zonesProblem: maybeText(
      "Why it does not lie as it should in these zones, in words; null: it does, or will by itself",
    ),
    copiesMin: { ...copiesMin, description: "Fewest complete copies with which it can be written" },
    copiesInSync: count("Complete copies that every part of it has now"),
    copiesChange: {
      oneOf: [ref("CopiesChange"), { type: "null" }],
      description:
        "How far it is on its way to another number of copies, or to other zones; null: it is not",
    },
    openOn: maybeText("Name of the node where it is open for writing, or null"),
    createdMs: milliseconds("When it was made"),
    generation: count("Fencing number of the newest lease; 0 before the first"),
    family: {
      ...diskId,
      description: "Id of the disk that it descends from, or its own: relatives share data",
    },
    layers: {
      type: "array",
      items: { type: "integer", minimum: 1, maximum: ID_MAX },
      minItems: 1,
      maxItems: LAYERS_MAX,
      description: "Layer ids, newest first",
    },
    origin: fullSnapshotName("Nearest snapshot of another disk that it goes on from"),
    isShared: flag("It goes on from layers that belong to others, and can be flattened"),
    flatten: {
      oneOf: [ref("Flatten"), { type: "null" }],
      description: "How far it is being made independent of those; null: it is not",
    },
    snapshots: list(snapshotName, "Oldest first"),
    schedules: list(scheduleName, "By name"),
    attributes: ref("Attributes"),
    limits: ref("Limits"),
    detectZeroes,
    socket: text("Where QEMU connects"),
    readOnlySocket: text("The same, to look on without taking the lease"),
    sessions: list(ref("Session"), "Front ends that are connected"),
    counters: ref("DiskCounters"),
  }),
  ExtentsRequest: record("A part of a disk", {
    offsetBytes: count("Its first byte"),
    lengthBytes: { type: "integer", minimum: 1, description: "How many bytes" },
    snapshot: { ...snapshotName, description: "A snapshot of the disk, in place of the disk" },
    since: {
      type: "string",
      maxLength: 2 * DISK_NAME_LENGTH_MAX + 1,
      description: "An older snapshot below that, as DISK@NAME: what holds the same is only that",
    },
  }, ["snapshot", "since"]),
  Extent: record("A part of a disk that is all of one kind", {
    lengthBytes: { type: "integer", minimum: 1, description: "How many bytes" },
    state: {
      type: "string",
      enum: EXTENT_STATES,
      description: "data; zero: zeros that were put there; hole: nothing was; unknown: this node " +
        "has no copy of it, or none that could be read now; same: as in the snapshot of 'since'",
    },
  }),
  Extents: record("What a part of a disk is made of", {
    offsetBytes: count("First byte, as it was asked for"),
    disk: count("Id of the disk that has the name"),
    layer: count("Newest layer of what was asked about"),
    sinceLayer: count("Layer of the older snapshot; 0: none was named"),
    extents: list(
      ref("Extent"),
      "One after the other; all of what was asked for, or as much of it as one answer holds",
    ),
  }),
  Chunk: record("A chunk of a disk, and where it is", CHUNK),
  ChunkList: record("Chunks of a disk", {
    epoch: count("Version of the cluster map"),
    chunks: list(
      ref("Chunk"),
      "One after the other; all of what was asked for, or as much of it as one answer holds",
    ),
  }),
  Places: record("Where the chunks of a disk are", {
    epoch: count("Version of the cluster map"),
    chunkBytes: count("Size of a chunk"),
    places: list(
      record("All placement groups of a disk that are in one place", {
        ...PLACE,
        groups: count("Placement groups"),
        chunks: count("Chunks of the disk"),
        sizeBytes: count("Bytes of the disk's address space"),
      }),
      "The most chunks first",
    ),
  }),
  ObjectRequest: record("A byte of a disk", {
    offsetBytes: count("Where it is"),
    snapshot: { ...snapshotName, description: "A snapshot of the disk, in place of the disk" },
  }, ["snapshot"]),
  Object: record("Where a block of a disk lives", {
    ...CHUNK,
    blockOffsetBytes: count("Of the block on the disk"),
    state: {
      type: "string",
      enum: BLOCK_STATES,
      description: "In this node's copy: as an extent, or damaged: data that could not be verified",
    },
    layer: maybeCount("Layer that a read comes upon; null: none holds it, or it is not known"),
    layerOf: maybeText(
      "Disk, or DISK@NAME, whose newest layer it is; null: of nothing with a name",
    ),
    path: maybeText("Data path of this node; null: no data is here"),
    storeOffsetBytes: maybeCount("From the start of the store, for now; null with path"),
  }),
  Flatten: record("How far a disk is that is being made independent of others", {
    done: list(text("Name of a node"), "Nodes that have copied everything"),
    waiting: list(text("Name of a node, and whether it is down"), "Nodes that have not yet"),
  }),
  DiskList: record("All disks", { disks: list(ref("Disk"), "Sorted by name") }),
  Snapshot: record("A snapshot of a disk", {
    disk: diskName,
    name: snapshotName,
    layer: { ...diskId, description: "Id of its newest layer; never used twice" },
    sizeBytes: { ...sizeBytes, description: "Size of the disk when it was taken" },
    space: maybeSpace("Its disk is something else that may need what it needs"),
    createdMs: milliseconds("When it was taken"),
    isProtected: flag("It cannot be deleted"),
    isTaking: flag("Writes of before are still on their way into it: it cannot be used yet"),
    parent: fullSnapshotName("Snapshot that it goes on from"),
    clones: list(diskName, "Disks that were cloned from it"),
    schedule: maybeText("Name of the schedule that took it; null: none that there still is"),
    socket: maybeText("Where it can be read; null: the path would be too long for a socket"),
  }),
  SnapshotList: record("Snapshots", {
    snapshots: list(ref("Snapshot"), "By disk, and each disk's oldest first"),
  }),
  CreateSnapshots: record("Snapshots to take, all of them at one point in time, or none", {
    disks: {
      ...list(diskName, "Names of disks, each once"),
      minItems: 1,
      maxItems: SNAPSHOT_DISKS_MAX,
    },
    name: { ...snapshotName, description: "What the snapshot of each of them is called" },
  }),
  ChangeSnapshot: {
    ...record("What to change about a snapshot", {
      name: { ...snapshotName, description: "The new name, without the disk's" },
      isProtected: flag("It cannot be deleted"),
    }, ["name", "isProtected"]),
    minProperties: 1,
  },
  CloneDisk: record("A disk to make that begins as a snapshot is", {
    name: { ...diskName, description: "Name of the new disk" },
    readOnly: flag("Guests may only read"),
    attributes: ref("Attributes"),
  }, ["readOnly", "attributes"]),
  DeletedDisk: record("A disk in the trash", {
    id: diskId,
    name: { ...diskName, description: "As it was called; others may have the same name" },
    sizeBytes,
    createdMs: milliseconds("When it was made"),
    deletedMs: milliseconds("When it was deleted"),
    expiresMs: milliseconds("When it goes for good"),
    snapshots: list(snapshotName, "Oldest first"),
    attributes: ref("Attributes"),
  }),
  Trash: record("Disks that were deleted, and can be had back", {
    disks: list(ref("DeletedDisk"), "Sorted by id"),
  }),
  RestoreDisk: record("How to bring a disk back", {
    name: { ...diskName, description: "What it is called from now on; left out: as it was" },
  }, ["name"]),
  Schedule: record("Snapshots of a disk that the cluster takes and deletes by itself", {
    disk: diskName,
    name: scheduleName,
    ...SCHEDULE,
    createdMs: milliseconds("When it was made: nothing before is missed"),
    snapshots: count("How many of its snapshots are there"),
    lastMs: {
      ...milliseconds("When the newest of them was taken; null: there is none"),
      type: ["integer", "null"],
    },
    nextMs: milliseconds("When the next one is due"),
    isLate: flag("It has been without the newest for more than a period and a minute"),
  }),
  ScheduleList: record("Schedules", {
    schedules: list(ref("Schedule"), "By disk, and each disk's by name"),
  }),
  SetSchedule: record(
    "A schedule to make, or to change",
    SCHEDULE,
    ["keepDaily", "keepWeekly", "keepMonthly"],
  ),
  Lock: record("Who has a disk open for writing", {
    disk: diskName,
    node: text("Name of the node"),
    generation: count("Fencing number of the lease"),
    sinceMs: {
      ...milliseconds("When it was taken; null: the node that was asked cannot say"),
      type: ["integer", "null"],
    },
    isSinceExact: flag("False: it had been taken by then, before the node that was asked saw it"),
    state: {
      type: "string",
      enum: LOCK_STATES,
      description:
        "serving: all is well; waiting: requests wait there; suspect: the node does not " +
        "answer; down: it is off the map, or its agent has been started anew, and the disk can be " +
        "had as soon as it surely serves nothing",
    },
    reason: maybeText("Why it is not well, in words; null: it is"),
  }),
  LockList: record("All disks that are open for writing", {
    locks: list(ref("Lock"), "Sorted by the disk's name"),
  }),
  CreateDisk: record("A disk to make", {
    name: diskName,
    sizeBytes,
    readOnly: flag("Guests may only read"),
    copies,
    copiesMin,
    zones: zones("Only nodes of these zones are to hold it; empty: any may"),
    attributes: ref("Attributes"),
    detectZeroes,
  }, ["readOnly", "copies", "copiesMin", "zones", "attributes", "detectZeroes"]),
  CopiesChange: record(
    "How far a disk is on its way to another number of copies, or to other zones",
    {
      copies: { ...copies, description: "Copies that it is to have" },
      zones: zones("Zones that it is to be kept in, sorted; empty: any"),
      isBack: flag("It goes back to what it has: the change was taken back"),
      percent: count("How many of the copies that have to be made are complete, in percent"),
      secondsLeft: maybeNumber(
        "Until nodes have copied all that they have to, of other disks as well; null: not known, or nothing is being copied",
      ),
      waitsFor: maybeText("What it waits for, in words; null: it is done in a moment"),
      disks: {
        type: "array",
        description: "Names of all disks that change together: it and its relatives",
        items: diskName,
      },
    },
  ),
  ChangeDisk: {
    ...record(
      "What to change about a disk; all of it fits, or nothing is changed",
      {
        name: { ...diskName, description: "The new name" },
        sizeBytes: { ...sizeBytes, description: "The new size in bytes" },
        shrink: flag("Allows the new size to be smaller than the old one: data is lost"),
        readOnly: flag("Guests may only read"),
        copies: {
          ...copies,
          description:
            "Copies that it is to have, and its relatives with it; they are made while it is used, and `copiesChange` of " +
            "the disk tells how far that is. What it has now takes a change back",
        },
        zones: zones(
          "Only nodes of these zones are to hold it, and its relatives with it; empty: any may. As with `copies`",
        ),
        copiesMin: copiesMinOrDefault,
        attributes: ref("Attributes"),
        setAttributes: {
          type: "object",
          description: "Changes single attributes: their new values, or null for those that go",
          additionalProperties: {
            type: ["string", "null"],
            maxLength: ATTRIBUTE_VALUE_LENGTH_MAX,
          },
        },
        limits: ref("ChangeLimits"),
        detectZeroes,
      },
      [
        "name",
        "sizeBytes",
        "shrink",
        "readOnly",
        "copies",
        "zones",
        "copiesMin",
        "attributes",
        "setAttributes",
        "limits",
        "detectZeroes",
      ],
    ),
    minProperties: 1,
  },
  DamagedBlock: record("A block whose data could not be verified", {
    disk: text(
      "Who reads it: a disk, DISK@NAME where only a snapshot does, or empty when nobody does",
    ),
    offsetBytes: count("Byte offset on the disk"),
  }),
  DataPath: record("A data path of a node", {
    location: text("Directory or block device, as it was given to the agent"),
    state: {
      type: "string",
      enum: PATH_STATES,
      description: "It works; has failed; was missing at the start; was not given to the agent",
    },
    reason: text("Why it does not work; empty when it does"),
    usedBytes: count("Bytes of live data; 0 when it does not work"),
    capacityBytes: count("Bytes of data that fit"),
    isFull: flag("It takes no new writes"),
  }),
  Store: record("The store", {
    path: text("File or block device; the first of them"),
    cache: { type: "string", enum: CACHE_MODES, description: "How the file is reached" },
    capacityBytes: count("Bytes that the store may use"),
    liveBytes: count("Bytes of live data"),
    freeBytes: count("Bytes of free segments"),
    indexBytes: count("Memory of the index"),
    full: flag("No space for new writes"),
    waitingWrites: count("Writes that wait for space"),
    failed: { type: ["string", "null"], description: "Why the store stopped for good, or null" },
    damagedBlocks: count("Blocks whose data could not be verified"),
    damage: list(ref("DamagedBlock"), "The first of them"),
    damagedRecords: count(
      "Records of the log that were damaged when the store was opened all the same: what was in them is gone",
    ),
    paths: list(ref("DataPath"), "The data paths that it is made of"),
    counters: {
      type: "object",
      description: "Further counters; names may come and go",
      additionalProperties: { type: "number" },
    },
  }),
  Agent: record("The agent", {
    version: text("Version of the agent"),
    pid: count("Its process"),
    startedMs: milliseconds("When it started"),
    nodeId: text("Identity of this node"),
    clusterId: text("Identity of the cluster"),
    runDir: text("Directory of the sockets"),
    dataPath: text("Where the data is; the first of dataPaths"),
    dataPaths: list(text("File or block device"), "Where the data is"),
    logLevel,
  }),
  Problem: record("Something that somebody should look at", {
    code: { type: "string", enum: PROBLEM_CODES, description: "Kind of problem" },
    message: text("One line for people"),
    hint: text("What to do about it"),
    disk: text("The disk that it is about"),
    node: text("Name of the node that it is about"),
  }, ["disk", "node"]),
  Status: record("Everything about one agent", {
    healthy: flag("True when there is no problem at all"),
    summary: text("One line for people"),
    problems: list(ref("Problem"), "What is wrong, the worst first"),
    agent: ref("Agent"),
    epoch: count("Version of the cluster map"),
    cluster: {
      oneOf: [ref("ClusterStatus"), { type: "null" }],
      description: "Null: it could not be put together in time",
    },
    groups: { oneOf: [ref("Groups"), { type: "null" }], description: "Null with cluster" },
    store: { oneOf: [ref("Store"), { type: "null" }], description: "Null: it does not answer" },
    disks: list(ref("Disk"), "Sorted by name, without those that do not answer"),
  }),
  NodeIo: record("What the disks of a node do, all together, in the last second or so", {
    readsPerSecond: count("Reads"),
    writesPerSecond: count("Writes"),
    readBytesPerSecond: count("Bytes read"),
    writtenBytesPerSecond: count("Bytes written"),
    inFlight: count("Requests under way"),
    latencyMs: maybeNumber("Mean service time of those that were measured; null: none was"),
  }),
  NodeStatus: record("A node, as the node that was asked sees it", NODE_STATUS),
  WaitingDisk: record("A disk of which requests wait", {
    disk: text("Name of the disk"),
    node: { ...nodeId, description: "Id of the node where it is open" },
    reason: text("Why"),
  }),
  JoiningNode: record("A node that is to take this one in, and why it has not", {
    address: text("Its host:port, or several"),
    reason: text("Why"),
    hint: text("What to do about it"),
  }),
  ClusterStatus: record("What a node knows of its cluster", CLUSTER_STATUS),
  Groups: record("Counts of placement groups of disks", {
    total: count("All of them"),
    whole: count("Have every copy, and can be read and written"),
    degraded: count("Have fewer complete copies than they should"),
    belowMin: count("Have too few complete copies to be written"),
    unclean: count("Wait until copies that crashed have been settled"),
    unreachable: count("Have no complete copy on a node that is up"),
    joining: count("Have copies that catch up"),
    misplaced: count("Have copies where they should not stay"),
    unreadableReason: text("Why the first that cannot be read cannot, or empty"),
    unwritableReason: text("Why the first that cannot be written cannot, or empty"),
  }),
  Settings: record("What holds for the whole cluster", {
    copies: { ...copies, description: "Copies of a disk that does not say" },
    copiesMin: copiesMinOrDefault,
    outAfterMs: count("How long a node may be down before its data is made anew elsewhere"),
    trustedNetwork: flag("Data between nodes is authenticated, and not encrypted"),
    trashMs,
  }),
  ChangeSettings: {
    ...record("Settings to change", {
      copies: { ...copies, description: "Copies of a disk that does not say" },
      copiesMin: copiesMinOrDefault,
      outAfterMs: {
        type: "integer",
        minimum: OUT_AFTER_MS_MIN,
        maximum: OUT_AFTER_MS_MAX,
        description: "How long a node may be down before its data is made anew elsewhere",
      },
      trustedNetwork: flag("Data between nodes is authenticated, and not encrypted"),
      trashMs,
    }, ["copies", "copiesMin", "outAfterMs", "trustedNetwork", "trashMs"]),
    minProperties: 1,
  },
  Loss: record("Data that was given up by command", {
    epoch: count("Version of the map in which it happened"),
    nowMs: milliseconds("When"),
    node: nodeId,
    name: text("Name of the node that had the only copy"),
    pool: count("Copies of the disks that lost data"),
    pgs: count("How many placement groups"),
  }),
  Cluster: record("What a node knows of its cluster, and its settings", {
    ...CLUSTER_STATUS,
    clusterId: text("Identity of the cluster"),
    groups: ref("Groups"),
    settings: ref("Settings"),
    losses: list(ref("Loss"), "Data that was given up by command, the oldest first"),
  }),
  Node: record("A node", {
    ...NODE_STATUS,
    groups: count("Placement groups that it holds, or catches up with"),
    groupsWanted: count("Placement groups that it shall hold"),
    groupsLeft: count("Placement groups that name it; a node with none can be removed"),
    onlyCopies: count("Placement groups of which it has the only complete copy"),
    openDisks: list(text("Name of a disk"), "Disks that are open there"),
  }),
  NodeList: record("All nodes", { nodes: list(ref("Node"), "Sorted by id") }),
  ChangeNode: {
    ...record("What to change about a node", CHANGE_NODE, Object.keys(CHANGE_NODE)),
    minProperties: 1,
  },
  PlanRequest: {
    ...record(
      "A change about a node",
      { ...CHANGE_NODE, remove: flag("The node is removed") },
      [...Object.keys(CHANGE_NODE), "remove"],
    ),
    minProperties: 1,
  },
  Plan: record("What a change would do", {
    targetsEpoch: count("Of the map that it was made from"),
    movedReplicas: count("Copies of placement groups that are made where there were none"),
    minimumReplicas: count("The fewest that any balanced placement would move"),
    movedBytes: maybeCount("An estimate; null: nobody has reported how much there is"),
    seconds: maybeNumber("Time that the slowest node needs; null: not known"),
    rateBytesPerSecond: { type: "number", description: "Rate that the time was computed with" },
    isRateMeasured: flag("The rate is that of the copying that goes on now; else it is assumed"),
    replicasWithoutSource: count("Copies that nobody who is there can give"),
    groupsWithFewer: count("Placement groups that will have fewer copies than now"),
    groupsImmovable: count("Placement groups that stay: too few nodes take data"),
    onlyCopies: count("Placement groups of which the node has the only complete copy"),
    openDisks: list(text("Name of a disk"), "Disks that are open on the node"),
    nodes: list(
      record("What it means for a node", {
        id: nodeId,
        name: text("Its name"),
        comes: count("Copies of placement groups that come"),
        goes: count("Copies of placement groups that leave"),
        receivesBytes: maybeCount("An estimate, or null"),
        sendsBytes: maybeCount("An estimate, or null"),
      }),
      "Nodes that have to do with it, by id",
    ),
  }),
  Secret: record("The cluster secret", {
    secret: text("Whoever has it can join the cluster and read its data"),
  }),
  LogLevel: record("How much the agent logs", { level: logLevel }),
  SettleRequest: record("Whose content counts where replicas of a disk differ", { node: nodeName }),
  CheckEvent: {
    description:
      "One line of a check: any number of progress, then one report (or compared) or one error",
    oneOf: [
      record("How far the check is", {
        kind: { type: "string", const: "progress" },
        checkedBytes: count("Bytes checked so far"),
        totalBytes: count("Bytes to check"),
      }),
      record("What the check found", {
        kind: { type: "string", const: "report" },
        checkedBytes: count("Bytes checked"),
        damagedBlocks: count("Blocks whose data could not be verified"),
        damage: list(ref("DamagedBlock"), "The first of them"),
      }),
      record("What comparing replicas has found", {
        kind: { type: "string", const: "compared" },
        good: flag("Everything was checked, and is good or was made so"),
        disks: list(
          record("A disk, with its snapshots; a block of several replicas counts as several", {
            disk: text("Its name"),
            inTrash: flag("It is in the trash: `disk` is what it was called"),
            chunks: count("Chunks of 4 MiB of its layers that any replica has"),
            comparedChunks: count("Of those, how many are the same on two or more replicas"),
            singleChunks: count("Of those, how many have one replica in sync only"),
            verifiedBlocks: count("Blocks of 4 KiB that were read and match their checksums"),
            damagedBlocks: count("Blocks that did not, at first"),
            repairedBlocks: count("Of those, how many do now"),
            differingBlocks: count(
              "Blocks that matched their checksums on all replicas, and were not the same",
            ),
            settledBlocks: count("Of those, how many are the same now"),
            laggingChunks: count("Replicas of chunks that were in sync and lacked writes"),
            caughtUpChunks: count("Of those, how many have them now"),
            uncheckedChunks: count("Replicas of chunks that were not, or not wholly, checked"),
          }),
          "What became of each disk",
        ),
        blocks: list(
          record("A block that is not right", {
            kind: { type: "string", enum: ["damaged", "differs"] },
            disk: text("Who reads it: a disk, or DISK@NAME where only a snapshot does"),
            offsetBytes: count("Where it lies in the disk, or in a snapshot of it"),
            nodes: list(text("A node"), "Who has it damaged, or who differ"),
            contents: list(
              count("Equal numbers are equal content"),
              "For each node, which content it has",
            ),
            reason: text("Why it is left so: one line for people"),
          }),
          "The first 256",
        ),
        unchecked: list(
          record("Why something was not checked", {
            disk: text("The disk"),
            reason: text("One line for people"),
            nodes: list(text("A node"), "The nodes that it is about"),
            chunks: count("Chunks"),
          }),
          "What was not checked, by reason",
        ),
      }),
      record("Why the check ended early", {
        kind: { type: "string", const: "error" },
        error: ref("ErrorDetail"),
      }),
    ],
  },
  ErrorDetail: record("What went wrong", {
    code: { type: "string", enum: CONTROL_ERROR_CODES, description: "For programs" },
    message: text("One line for people"),
    hint: text("What to do about it"),
  }, ["hint"]),
  Error: record("A request that failed", { error: ref("ErrorDetail") }),
};

const json = (name: string) => ({ "application/json": { schema: ref(name) } });

const failed = {
  default: { description: "It failed; the code in the body says why", content: json("Error") },
};

const answer = (status: number, name: string, description: string) => ({
  [status]: { description, content: json(name) },
  ...failed,
});

const nothing = (description: string) => ({ 204: { description }, ...failed });

const body = (name: string) => ({ required: true, content: json(name) });

const events = (description: string) => ({
  200: { description, content: { "application/x-ndjson": { schema: ref("CheckEvent") } } },
  ...failed,
});

const nameParameter = { name: "name", in: "path", required: true, schema: diskName };

const nodeParameter = { name: "node", in: "path", required: true, schema: nodeName };

const snapshotParameter = { name: "snapshot", in: "path", required: true, schema: snapshotName };

const scheduleParameter = { name: "schedule", in: "path", required: true, schema: scheduleName };

const deletedParameter = {
  name: "deleted",
  in: "path",
  required: true,
  schema: { ...diskName, description: "Name of a disk in the trash, or its id" },
};

const queryFlag = (name: string, description: string) => ({
  name,
  in: "query",
  required: false,
  schema: { type: "string", enum: ["0", "1"] },
  description,
});

/** Space takes time to count. */
const BRIEF = queryFlag("brief", "1: without their space");

/** The whole document. */
export const OPENAPI = {
  openapi: "3.1.0",
  info: {
    title: "Kelpie agent",
    version: "1.0.0",
    description: "Administration of one Kelpie agent, on the Unix socket agent.sock in its run " +
      "directory. Sizes are in bytes, times in milliseconds since 1970.",
  },
  servers: [{ url: "http://agent", description: "Over the socket; the host name does not matter" }],
  paths: {
    "/v1/version": {
      get: {
        operationId: "getVersion",
        summary: "Versions of agent and API",
        responses: answer(200, "Version", "The versions"),
      },
    },
    "/v1/status": {
      get: {
        operationId: "getStatus",
        summary: "Agent, store, disks and problems in one document",
        responses: answer(200, "Status", "The status"),
      },
    },
    "/v1/disks": {
      get: {
        operationId: "listDisks",
        summary: "All disks",
        responses: answer(200, "DiskList", "The disks"),
      },
      post: {
        operationId: "createDisk",
        summary: "Makes an empty disk",
        requestBody: body("CreateDisk"),
        responses: answer(201, "Disk", "The new disk"),
      },
    },
    "/v1/disks/{name}": {
      parameters: [nameParameter],
      get: {
        operationId: "getDisk",
        summary: "One disk",
        responses: answer(200, "Disk", "The disk"),
      },
      patch: {
        operationId: "changeDisk",
        summary: "Changes size, name, attributes or the like",
        requestBody: body("ChangeDisk"),
        responses: answer(200, "Disk", "The disk as it is now"),
      },
      delete: {
        operationId: "deleteDisk",
        summary: "Deletes a disk and its snapshots, into the trash where the cluster has one",
        parameters: [
          queryFlag("force", "1 disconnects the guests that use the disk first"),
          queryFlag("now", "1: for good, not into the trash"),
        ],
        responses: nothing("The disk is gone"),
      },
    },
    "/v1/snapshots": {
      get: {
        operationId: "listSnapshots",
        summary: "Snapshots of all disks",
        parameters: [BRIEF],
        responses: answer(200, "SnapshotList", "The snapshots"),
      },
      post: {
        operationId: "createSnapshots",
        summary:
          "Takes a snapshot of each of several disks, at one point in time; waits until they are complete, " +
          "or else leaves none",
        requestBody: body("CreateSnapshots"),
        responses: answer(
          201,
          "SnapshotList",
          "The snapshots, complete, in the order of the disks",
        ),
      },
    },
    "/v1/disks/{name}/snapshots": {
      parameters: [nameParameter],
      get: {
        operationId: "listSnapshotsOfDisk",
        summary: "Snapshots of a disk",
        parameters: [BRIEF],
        responses: answer(200, "SnapshotList", "The snapshots"),
      },
    },
    "/v1/disks/{name}/snapshots/{snapshot}": {
      parameters: [nameParameter, snapshotParameter],
      get: {
        operationId: "getSnapshot",
        summary: "One snapshot",
        responses: answer(200, "Snapshot", "The snapshot"),
      },
      patch: {
        operationId: "changeSnapshot",
        summary: "Renames a snapshot, protects it or gives it free",
        requestBody: body("ChangeSnapshot"),
        responses: answer(200, "Snapshot", "The snapshot as it is now"),
      },
      delete: {
        operationId: "deleteSnapshot",
        summary: "Deletes a snapshot; what others need of it stays",
        responses: nothing("The snapshot is gone"),
      },
    },
    "/v1/disks/{name}/snapshots/{snapshot}/clone": {
      parameters: [nameParameter, snapshotParameter],
      post: {
        operationId: "cloneDisk",
        summary: "Makes a disk that begins as a snapshot is",
        requestBody: body("CloneDisk"),
        responses: answer(201, "Disk", "The new disk"),
      },
    },
    "/v1/disks/{name}/snapshots/{snapshot}/rollback": {
      parameters: [nameParameter, snapshotParameter],
      post: {
        operationId: "rollbackDisk",
        summary:
          "Makes a disk that nobody uses as it was; what it holds now goes into the trash, as a disk of its name",
        responses: answer(200, "Disk", "The disk as it is now"),
      },
    },
    "/v1/disks/{name}/flatten": {
      parameters: [nameParameter],
      post: {
        operationId: "flattenDisk",
        summary:
          "Begins to make a clone independent of what it was cloned from, while guests use both; the disk says how far it is",
        responses: answer(200, "Disk", "The disk as it is now"),
      },
      delete: {
        operationId: "cancelFlatten",
        summary: "Ends that before it is done",
        responses: answer(200, "Disk", "The disk as it is now"),
      },
    },
    "/v1/disks/{name}/schedules": {
      parameters: [nameParameter],
      get: {
        operationId: "listSchedulesOfDisk",
        summary: "Schedules of a disk",
        responses: answer(200, "ScheduleList", "The schedules"),
      },
    },
    "/v1/disks/{name}/schedules/{schedule}": {
      parameters: [nameParameter, scheduleParameter],
      put: {
        operationId: "setSchedule",
        summary: "Makes a schedule, or changes the one of this name",
        requestBody: body("SetSchedule"),
        responses: answer(200, "Schedule", "The schedule as it is now"),
      },
      delete: {
        operationId: "deleteSchedule",
        summary: "Ends a schedule; its snapshots stay",
        responses: nothing("The schedule is gone"),
      },
    },
    "/v1/schedules": {
      get: {
        operationId: "listSchedules",
        summary: "Schedules of all disks",
        responses: answer(200, "ScheduleList", "The schedules"),
      },
    },
    "/v1/trash": {
      get: {
        operationId: "listTrash",
        summary: "Disks that were deleted, and can be had back",
        responses: answer(200, "Trash", "The disks"),
      },
    },
    "/v1/trash/{deleted}": {
      parameters: [deletedParameter],
      delete: {
        operationId: "purgeDisk",
        summary: "Ends a disk in the trash for good",
        responses: nothing("The disk is gone"),
      },
    },
    "/v1/trash/{deleted}/restore": {
      parameters: [deletedParameter],
      post: {
        operationId: "restoreDisk",
        summary: "Takes a disk out of the trash, with its snapshots",
        requestBody: body("RestoreDisk"),
        responses: answer(201, "Disk", "The disk"),
      },
    },
    "/v1/disks/{name}/release": {
      parameters: [nameParameter],
      post: {
        operationId: "releaseDisk",
        summary: "Takes a disk away from the node where it is open, whatever goes on there",
        responses: answer(200, "Disk", "The disk as it is now"),
      },
    },
    "/v1/disks/{name}/extents": {
      parameters: [nameParameter],
      post: {
        operationId: "findExtents",
        summary:
          "Which parts of a disk or a snapshot hold data, or differ from an older snapshot, as far as this node " +
          "knows; changes nothing",
        requestBody: body("ExtentsRequest"),
        responses: answer(200, "Extents", "The extents"),
      },
    },
    "/v1/disks/{name}/places": {
      parameters: [nameParameter],
      get: {
        operationId: "listPlaces",
        summary: "On which nodes the chunks of a disk are, counted",
        responses: answer(200, "Places", "Sets of nodes"),
      },
    },
    "/v1/disks/{name}/snapshots/{snapshot}/places": {
      parameters: [nameParameter, snapshotParameter],
      get: {
        operationId: "listSnapshotPlaces",
        summary: "On which nodes the chunks of a snapshot are, counted",
        responses: answer(200, "Places", "Sets of nodes"),
      },
    },
    "/v1/disks/{name}/chunks": {
      parameters: [nameParameter],
      post: {
        operationId: "findChunks",
        summary: "On which nodes each chunk of a part of a disk or a snapshot is; changes nothing",
        requestBody: body("ExtentsRequest"),
        responses: answer(200, "ChunkList", "The chunks"),
      },
    },
    "/v1/disks/{name}/object": {
      parameters: [nameParameter],
      post: {
        operationId: "findObject",
        summary: "Where one byte of a disk or a snapshot lives; changes nothing",
        requestBody: body("ObjectRequest"),
        responses: answer(200, "Object", "The block"),
      },
    },
    "/v1/locks": {
      get: {
        operationId: "listLocks",
        summary: "Who has which disk open for writing",
        responses: answer(200, "LockList", "The leases"),
      },
    },
    "/v1/disks/{name}/check": {
      parameters: [nameParameter],
      post: {
        operationId: "checkDisk",
        summary: "Verifies the checksums of a disk",
        responses: events("Lines of JSON while it goes on"),
      },
    },
    "/v1/check": {
      post: {
        operationId: "checkStore",
        summary: "Verifies the checksums of everything",
        responses: events("Lines of JSON while it goes on"),
      },
    },
    "/v1/disks/{name}/compare": {
      parameters: [nameParameter],
      post: {
        operationId: "compareDisk",
        summary:
          "Reads, verifies and compares all replicas of a disk, heals what is damaged, and makes the same what differs " +
          "from more than half of them",
        parameters: [queryFlag("report-only", "1: nothing is changed")],
        responses: events("Lines of JSON while it goes on"),
      },
    },
    "/v1/disks/{name}/settle": {
      parameters: [nameParameter],
      post: {
        operationId: "settleDisk",
        summary:
          "The same, but where replicas differ it is what one node has that counts; others' is overwritten",
        requestBody: body("SettleRequest"),
        responses: events("Lines of JSON while it goes on"),
      },
    },
    "/v1/compare": {
      post: {
        operationId: "compareDisks",
        summary: "The same for all disks, also those in the trash",
        parameters: [queryFlag("report-only", "1: nothing is changed")],
        responses: events("Lines of JSON while it goes on"),
      },
    },
    "/v1/cluster": {
      get: {
        operationId: "getCluster",
        summary: "What this node knows of its cluster",
        responses: answer(200, "Cluster", "The cluster"),
      },
    },
    "/v1/cluster/settings": {
      patch: {
        operationId: "changeSettings",
        summary: "Changes settings of the cluster",
        requestBody: body("ChangeSettings"),
        responses: answer(200, "Settings", "The settings as they are now"),
      },
    },
    "/v1/cluster/secret": {
      get: {
        operationId: "getSecret",
        summary: "The secret that a node needs to join",
        responses: answer(200, "Secret", "The secret"),
      },
    },
    "/v1/nodes": {
      get: {
        operationId: "listNodes",
        summary: "All nodes",
        responses: answer(200, "NodeList", "The nodes"),
      },
    },
    "/v1/nodes/{node}": {
      parameters: [nodeParameter],
      get: {
        operationId: "getNode",
        summary: "One node",
        responses: answer(200, "Node", "The node"),
      },
      patch: {
        operationId: "changeNode",
        summary: "Drains a node or takes it in again; changes its weight or zone",
        requestBody: body("ChangeNode"),
        responses: answer(200, "Node", "The node as it is now"),
      },
      delete: {
        operationId: "removeNode",
        summary: "Takes a node out of the cluster for good",
        parameters: [
          queryFlag("force", "1: it is down and will not come back"),
          queryFlag("accept-loss", "1, with force: even where it has the only copy of data"),
        ],
        responses: nothing("The node is forgotten"),
      },
    },
    "/v1/nodes/{node}/plan": {
      parameters: [nodeParameter],
      post: {
        operationId: "planNode",
        summary:
          "Says what a change about a node would move, how much and how long; changes nothing",
        requestBody: body("PlanRequest"),
        responses: answer(200, "Plan", "The plan"),
      },
    },
    "/v1/nodes/{node}/restart": {
      parameters: [nodeParameter],
      post: {
        operationId: "restartNode",
        summary:
          "Asks a node's agent to end in good order, so that whoever looks after it starts it anew; may be lost",
        responses: nothing("It was asked; when it has started anew, its incarnation is another"),
      },
    },
    "/v1/store": {
      get: {
        operationId: "getStore",
        summary: "What the store says of itself",
        responses: answer(200, "Store", "The store"),
      },
    },
    "/v1/log-level": {
      put: {
        operationId: "setLogLevel",
        summary: "Changes how much is logged, until the agent ends",
        requestBody: body("LogLevel"),
        responses: answer(200, "LogLevel", "The level now"),
      },
    },
    "/v1/cluster/recover": {
      post: {
        operationId: "recoverCluster",
        summary:
          "Let this node decide alone from its next start on, when a majority is gone for good",
        responses: nothing("It will; the agent stops"),
      },
    },
    "/v1/shutdown": {
      post: {
        operationId: "shutdown",
        summary: "Begins a clean stop",
        responses: nothing("The stop has begun"),
      },
    },
    "/v1/openapi.json": {
      get: {
        operationId: "getOpenapi",
        summary: "This document",
        responses: {
          200: {
            description: "This document",
            content: { "application/json": { schema: { type: "object" } } },
          },
          ...failed,
        },
      },
    },
    "/metrics": {
      get: {
        operationId: "getMetrics",
        summary: "Metrics for Prometheus",
        responses: {
          200: {
            description: "Prometheus text format",
            content: { "text/plain": { schema: { type: "string" } } },
          },
          ...failed,
        },
      },
    },
  },
  components: { schemas: SCHEMAS },
} as const;
