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
  COPIES_MAX,
  ID_MAX,
  LAYERS_MAX,
} from "../map/map.ts";
import { DISK_NAME_LENGTH_MAX, DISK_NAME_PATTERN } from "../map/names.ts";
import { CACHE_MODES, LOG_LEVELS } from "../config.ts";
import { PROBLEM_CODES } from "../problems.ts";

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

const diskName: Schema = {
  type: "string",
  pattern: DISK_NAME_PATTERN,
  minLength: 1,
  maxLength: DISK_NAME_LENGTH_MAX,
  description: "Name of a disk",
  examples: ["web-01"],
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

const milliseconds = (description: string): Schema =>
  count(`${description}, in milliseconds since 1970`);

const logLevel: Schema = { type: "string", enum: LOG_LEVELS, description: "How much is logged" };

/** Every document of the API by its name. */
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
  }),
  Disk: record("A disk", {
    name: diskName,
    id: { type: "integer", minimum: 1, maximum: ID_MAX, description: "Never used twice" },
    sizeBytes,
    allocatedBytes: count("Bytes of data that the disk's own layers hold in the store"),
    readOnly: flag("Guests may only read"),
    copies,
    createdMs: milliseconds("When it was made"),
    generation: count("Fencing number of the newest lease; 0 before the first"),
    layers: {
      type: "array",
      items: { type: "integer", minimum: 1, maximum: ID_MAX },
      minItems: 1,
      maxItems: LAYERS_MAX,
      description: "Layer ids, newest first",
    },
    attributes: ref("Attributes"),
    socket: text("Where QEMU connects"),
    readOnlySocket: text("The same, to look on without taking the lease"),
    sessions: list(ref("Session"), "Front ends that are connected"),
    counters: ref("DiskCounters"),
  }),
  DiskList: record("All disks", { disks: list(ref("Disk"), "Sorted by name") }),
  CreateDisk: record("A disk to make", {
    name: diskName,
    sizeBytes,
    readOnly: flag("Guests may only read"),
    copies,
    attributes: ref("Attributes"),
  }, ["readOnly", "copies", "attributes"]),
  ChangeDisk: {
    ...record(
      "What to change about a disk; all of it fits, or nothing is changed",
      {
        name: { ...diskName, description: "The new name" },
        sizeBytes: { ...sizeBytes, description: "The new size in bytes" },
        shrink: flag("Allows the new size to be smaller than the old one: data is lost"),
        readOnly: flag("Guests may only read"),
        copies,
        attributes: ref("Attributes"),
      },
      ["name", "sizeBytes", "shrink", "readOnly", "copies", "attributes"],
    ),
    minProperties: 1,
  },
  DamagedBlock: record("A block whose data could not be verified", {
    disk: text("Name of the disk, or empty when no disk uses the data any more"),
    offsetBytes: count("Byte offset on the disk"),
  }),
  Store: record("The store", {
    path: text("File or block device"),
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
    dataPath: text("Where the data is"),
    logLevel,
  }),
  Problem: record("Something that somebody should look at", {
    code: { type: "string", enum: PROBLEM_CODES, description: "Kind of problem" },
    message: text("One line for people"),
    hint: text("What to do about it"),
    disk: text("The disk that it is about"),
  }, ["disk"]),
  Status: record("Everything about one agent", {
    healthy: flag("True when there is no problem at all"),
    summary: text("One line for people"),
    problems: list(ref("Problem"), "What is wrong, the worst first"),
    agent: ref("Agent"),
    epoch: count("Version of the cluster map"),
    store: { oneOf: [ref("Store"), { type: "null" }], description: "Null: it does not answer" },
    disks: list(ref("Disk"), "Sorted by name, without those that do not answer"),
  }),
  LogLevel: record("How much the agent logs", { level: logLevel }),
  CheckEvent: {
    description: "One line of a check: any number of progress, then one report or one error",
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
        summary: "Changes size, name or attributes",
        requestBody: body("ChangeDisk"),
        responses: answer(200, "Disk", "The disk as it is now"),
      },
      delete: {
        operationId: "deleteDisk",
        summary: "Deletes a disk and its data",
        parameters: [{
          name: "force",
          in: "query",
          required: false,
          schema: { type: "string", enum: ["0", "1"] },
          description: "1 disconnects the guests that use the disk first",
        }],
        responses: nothing("The disk is gone"),
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
