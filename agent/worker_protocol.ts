/**
 * What the main thread and the data worker say to each other.
 *
 * Requests go through the mailbox (the worker is blocked in the kernel and gets no messages of the runtime),
 * answers and events come back by `postMessage`. Every request is answered once.
 *
 * @module
 */
import type { DamagedBlock, DiskStatus } from "./http/backend.ts";
import type { DiskEntry } from "./map/map.ts";

/** How the worker is started; the one message that it gets by `postMessage`. */
export interface WorkerStart {
  mailbox: SharedArrayBuffer;
  /** Eventfd that rings when the mailbox has something. */
  bellFd: number;
  storePath: string;
  direct: boolean;
  /** null: what fits. */
  capacityBytes: number | null;
  runDir: string;
  scrubRateBytes: number;
  adopt: boolean;
  acceptDamage: boolean;
  logLevel: "debug" | "info" | "warn" | "error";
  logFormat: "text" | "json";
  /** Hash of what identifies this host, 16 bytes. */
  hostId: Uint8Array;
}

/** What the main thread may ask. */
export type WorkerRequest =
  /** Make the value durable under the key. */
  | { kind: "commit"; key: string; value: Uint8Array }
  /** Make empty layers. */
  | { kind: "create-layer"; layer: number }
  | { kind: "delete-layer"; layer: number }
  /** Listen on a disk's sockets. */
  | { kind: "serve"; disk: DiskEntry }
  /** Stop listening and end all sessions, in good order. */
  | { kind: "stop-serving"; disk: number }
  /** Size, name or flags have changed. */
  | { kind: "update"; disk: DiskEntry }
  /** Zero a range of the disk: what a shrink cut off must not come back. */
  | { kind: "zero"; layer: number; startBytes: number; endBytes: number }
  | { kind: "disk-status"; disk: number }
  | { kind: "close-sessions"; disk: number }
  | { kind: "store-status" }
  /** Verify layers, or everything (null). Progress comes as events. */
  | { kind: "check"; layers: number[] | null }
  | { kind: "cancel-check"; check: number }
  | { kind: "log-level"; level: "debug" | "info" | "warn" | "error" }
  | { kind: "lease-granted"; disk: number; token: number; generation: number }
  | { kind: "lease-refused"; disk: number; token: number; reason: string }
  /** Drain, flush, checkpoint, close. */
  | { kind: "stop" };

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
    meta: Record<string, Uint8Array>;
  }
  /** The worker cannot go on; the last thing it says. */
  | { kind: "failed"; code: string; message: string }
  | { kind: "answer"; id: number; value: unknown }
  | { kind: "refusal"; id: number; code: string; message: string }
  | { kind: "check-progress"; id: number; checkedBytes: number; totalBytes: number }
  /** A session wants the disk's lease. */
  | { kind: "lease-wanted"; disk: number; token: number };

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
  damage: { layer: number; offsetBytes: number }[];
  counters: Record<string, number>;
}

/** Answer to `check`. */
export interface WorkerCheckReport {
  checkedBytes: number;
  damagedBlocks: number;
  damage: { layer: number; offsetBytes: number }[];
}

/** Answers by kind of request; requests that are not named answer null. */
export interface WorkerAnswers {
  "disk-status": DiskStatus;
  "store-status": WorkerStoreStatus;
  "check": WorkerCheckReport;
}

export type { DamagedBlock };
