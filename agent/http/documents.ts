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
import type { Attributes } from "../map/map.ts";
import type { Problem } from "../problems.ts";
import type {
  AgentInfo,
  CheckReport,
  DiskCounters,
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

/** One disk, in `GET /v1/disks` and wherever a disk is the answer. */
export interface DiskDocument {
  readonly name: string;
  /** Never used twice. */
  readonly id: number;
  readonly sizeBytes: number;
  /** Bytes of data that the disk's own layers hold in the store. */
  readonly allocatedBytes: number;
  readonly readOnly: boolean;
  readonly copies: number;
  readonly createdMs: number;
  /** Fencing number of the newest lease; 0 before the first. */
  readonly generation: number;
  /** Layer ids, newest first. */
  readonly layers: readonly number[];
  readonly attributes: Attributes;
  /** Where QEMU connects. */
  readonly socket: string;
  /** The same, to look on without taking the lease. */
  readonly readOnlySocket: string;
  /** Front ends that are connected. */
  readonly sessions: readonly SessionStatus[];
  readonly counters: DiskCounters;
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
  readonly attributes?: Attributes;
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
  readonly copies?: number;
  /** Replaces all attributes. */
  readonly attributes?: Attributes;
}

/** Body and answer of `PUT /v1/log-level`. */
export interface LogLevelDocument {
  readonly level: "debug" | "info" | "warn" | "error";
}

/**
 * One line of the answer to a check: any number of `progress`, then one `report` or one `error`.
 */
export type CheckEvent =
  | {
    readonly kind: "progress";
    readonly checkedBytes: number;
    readonly totalBytes: number;
  }
  | { readonly kind: "report" } & CheckReport
  | { readonly kind: "error"; readonly error: ControlError };

/** Every answer with a status of 400 or more. */
export interface ErrorDocument {
  readonly error: ControlError;
}
