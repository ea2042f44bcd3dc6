/**
 * A typed client of the agent's admin API: HTTP with JSON over the Unix socket `RUN_DIR/agent.sock`.
 *
 * Invariants: every failure is an {@linkcode AdminError} with one of the API's codes, whether the
 * agent refused, did not answer or is not there; nothing waits for ever but checks, which say how
 * far they are.
 *
 * @module
 */

import type { LogLevel } from "./config.ts";
import type { CheckReport, ComparisonReport, StoreStatus } from "./http/backend.ts";
import type {
  ChangeDiskRequest,
  ChangeNodeRequest,
  ChangeSettingsRequest,
  ChangeSnapshotRequest,
  CheckEvent,
  ChunkListDocument,
  CloneDiskRequest,
  ClusterDocument,
  CreateDiskRequest,
  CreateSnapshotsRequest,
  DeletedDiskDocument,
  DiskDocument,
  DiskListDocument,
  ExtentsDocument,
  ExtentsRequest,
  LockDocument,
  LockListDocument,
  NodeDocument,
  NodeListDocument,
  ObjectDocument,
  ObjectRequest,
  PlacesDocument,
  PlanDocument,
  PlanRequest,
  RestoreDiskRequest,
  ScheduleDocument,
  ScheduleListDocument,
  ScheduleRequest,
  SecretDocument,
  SettleRequest,
  SnapshotDocument,
  SnapshotListDocument,
  StatusDocument,
  TrashDocument,
  VersionDocument,
} from "./http/documents.ts";
import {
  CONTROL_ERROR_CODES,
  type ControlError,
  type ControlErrorCode,
  ControlFailure,
} from "./map/errors.ts";
import { checkNodeName } from "./map/fields.ts";
import type { Settings } from "./map/map.ts";
import { agentSocket, checkDiskName, checkSnapshotName } from "./map/names.ts";

/** Patience with an agent that took the request, in milliseconds: closing a busy disk takes seconds. */
export const REQUEST_TIMEOUT_MS = 120_000;

/** Longest line of a streamed answer, in characters: a report with its list of damage. */
const LINE_LENGTH_MAX = 16 * 1024 * 1024;

/** A request that failed. */
export class AdminError extends ControlFailure {
  override readonly name: string = "AdminError";

  /** What kind of failure; `unavailable` when no agent answers. */
  get code(): ControlErrorCode {
    return this.error.code;
  }

  /** What to do about it, if that can be said. */
  get hint(): string | undefined {
    return this.error.hint;
  }
}

/** Where the agent is. */
export type AdminClientOptions =
  | { readonly runDir: string; readonly timeoutMs?: number }
  | { readonly socketPath: string; readonly timeoutMs?: number };

/** How a check is followed. */
export interface CheckOptions {
  /** Called now and then. */
  readonly onProgress?: (checkedBytes: number, totalBytes: number) => void;
  /** Ends the check early; the promise then rejects with the signal's reason. */
  readonly signal?: AbortSignal;
}

/** Parts of one request. */
interface RequestParts {
  readonly method: string;
  readonly path: string;
  readonly body?: unknown;
  readonly signal?: AbortSignal;
}

/**
 * Speaks to one agent. Needs `--allow-net`, and `--allow-read` and `--allow-write` for the socket.
 *
 * @example
 * ```ts
 * import { AdminClient, AdminError } from "./admin_client.ts";
 *
 * using client = new AdminClient({ runDir: "/nowhere/kelpie" });
 * try {
 *   const status = await client.status();
 *   console.log(status.summary);
 * } catch (error) {
 *   if (!(error instanceof AdminError) || error.code !== "unavailable") throw error;
 *   console.log(error.message, error.hint);
 * }
 * ```
 */
export class AdminClient implements Disposable {
  /** The socket that this client connects to. */
  readonly socketPath: string;
  readonly #timeoutMs: number;
  readonly #http: Deno.HttpClient;
  #isClosed = false;

  /** @param options the agent's run directory, or its socket */
  constructor(options: AdminClientOptions) {
    this.socketPath = "runDir" in options ? agentSocket(options.runDir) : options.socketPath;
    this.#timeoutMs = options.timeoutMs ?? REQUEST_TIMEOUT_MS;
    this.#http = Deno.createHttpClient({ proxy: { transport: "unix", path: this.socketPath } });
  }

  /** Version of the agent and of its API. */
  version(): Promise<VersionDocument> {
    return this.#ask({ method: "GET", path: "/v1/version" });
  }

  /** Everything about the agent, its store and its disks. */
  status(): Promise<StatusDocument> {
    return this.#ask({ method: "GET", path: "/v1/status" });
  }

  /** All disks, sorted by name. */
  async disks(): Promise<readonly DiskDocument[]> {
    return (await this.#ask<DiskListDocument>({ method: "GET", path: "/v1/disks" })).disks;
  }

  /** One disk; fails with `missing` when it is not there. */
  async disk(name: string): Promise<DiskDocument> {
    return await this.#ask({ method: "GET", path: diskPath(name) });
  }

  /** Which parts of a disk hold data, as far as the agent's node knows: see `ExtentsDocument`. */
  async diskExtents(name: string, range: ExtentsRequest): Promise<ExtentsDocument> {
    return await this.#ask({ method: "POST", path: `${diskPath(name)}/extents`, body: range });
  }

  /** On which nodes the chunks of a disk, or of a snapshot of it, are, counted by sets of nodes. */
  async diskPlaces(name: string, snapshot?: string): Promise<PlacesDocument> {
    const path = snapshot === undefined ? diskPath(name) : snapshotPath(name, snapshot);
    return await this.#ask({ method: "GET", path: `${path}/places` });
  }

  /** On which nodes each chunk of a part of a disk is: see `ChunkListDocument`. */
  async diskChunks(name: string, range: ExtentsRequest): Promise<ChunkListDocument> {
    return await this.#ask({ method: "POST", path: `${diskPath(name)}/chunks`, body: range });
  }

  /** Where one byte of a disk, or of a snapshot of it, lives. */
  async diskObject(name: string, byte: ObjectRequest): Promise<ObjectDocument> {
    return await this.#ask({ method: "POST", path: `${diskPath(name)}/object`, body: byte });
  }

  /** Makes an empty disk. */
  createDisk(request: CreateDiskRequest): Promise<DiskDocument> {
    return this.#ask({ method: "POST", path: "/v1/disks", body: request });
  }

  /** Changes size, name, attributes or the like; all of it fits, or nothing is changed. */
  async changeDisk(name: string, request: ChangeDiskRequest): Promise<DiskDocument> {
    return await this.#ask({ method: "PATCH", path: diskPath(name), body: request });
  }

  /**
   * Deletes a disk and its snapshots: into the trash, where the cluster has one (from level 2 on).
   *
   * @param name the disk
   * @param options `force` disconnects the guests that use it first; else they make it `busy`. `now`: for good
   */
  async deleteDisk(
    name: string,
    options: { force?: boolean; now?: boolean } = {},
  ): Promise<void> {
    const path = withFlags(diskPath(name), { force: options.force, now: options.now });
    await this.#ask({ method: "DELETE", path });
  }

  /**
   * Snapshots, each disk's oldest first.
   *
   * @param options.disk only of this one
   * @param options.isBrief without their space, which takes time to count
   */
  async snapshots(
    { disk, isBrief = false }: { readonly disk?: string; readonly isBrief?: boolean } = {},
  ): Promise<readonly SnapshotDocument[]> {
    const list = disk === undefined ? "/v1/snapshots" : `${diskPath(disk)}/snapshots`;
    const path = isBrief ? `${list}?brief=1` : list;
    return (await this.#ask<SnapshotListDocument>({ method: "GET", path })).snapshots;
  }

  /** One snapshot; fails with `missing` when it is not there. */
  async snapshot(disk: string, name: string): Promise<SnapshotDocument> {
    return await this.#ask({ method: "GET", path: snapshotPath(disk, name) });
  }

  /**
   * Takes a snapshot of each disk, at one point in time across all of them. Resolves when they are complete, a moment later where
   * guests write; when it fails there is none, unless the error says that it is not known.
   */
  async createSnapshots(request: CreateSnapshotsRequest): Promise<readonly SnapshotDocument[]> {
    const parts = { method: "POST", path: "/v1/snapshots", body: request };
    return (await this.#ask<SnapshotListDocument>(parts)).snapshots;
  }

  /** Renames a snapshot, protects it or gives it free. */
  async changeSnapshot(
    disk: string,
    name: string,
    request: ChangeSnapshotRequest,
  ): Promise<SnapshotDocument> {
    return await this.#ask({ method: "PATCH", path: snapshotPath(disk, name), body: request });
  }

  /** Deletes a snapshot, for good; what other snapshots and clones need of it stays. */
  async deleteSnapshot(disk: string, name: string): Promise<void> {
    await this.#ask({ method: "DELETE", path: snapshotPath(disk, name) });
  }

  /** Makes a disk that begins as a snapshot is, at once and without copying. */
  async cloneDisk(disk: string, name: string, request: CloneDiskRequest): Promise<DiskDocument> {
    const path = `${snapshotPath(disk, name)}/clone`;
    return await this.#ask({ method: "POST", path, body: request });
  }

  /**
   * Makes a disk that nobody uses as it was when a snapshot was taken. What it held until then goes to the trash, as a disk of the
   * same name.
   */
  async rollbackDisk(disk: string, name: string): Promise<DiskDocument> {
    return await this.#ask({ method: "POST", path: `${snapshotPath(disk, name)}/rollback` });
  }

  /**
   * Begins to make a clone independent of what it was cloned from. It takes time: `flatten` of the disk says how far it is, and is null
   * when it is done. Said again it changes nothing.
   */
  async flattenDisk(disk: string): Promise<DiskDocument> {
    return await this.#ask({
      method: "POST",
      path: `/v1/disks/${encodeURIComponent(disk)}/flatten`,
    });
  }

  /** Ends that before it is done. */
  async cancelFlatten(disk: string): Promise<DiskDocument> {
    return await this.#ask({
      method: "DELETE",
      path: `/v1/disks/${encodeURIComponent(disk)}/flatten`,
    });
  }

  /** Disks that were deleted, and can be had back. */
  async trash(): Promise<readonly DeletedDiskDocument[]> {
    return (await this.#ask<TrashDocument>({ method: "GET", path: "/v1/trash" })).disks;
  }

  /**
   * Takes a disk out of the trash, with its snapshots.
   *
   * @param deleted its name, where only one in the trash has it, or its id; the same below
   */
  async restoreDisk(deleted: string, request: RestoreDiskRequest = {}): Promise<DiskDocument> {
    const path = `${deletedPath(deleted)}/restore`;
    return await this.#ask({ method: "POST", path, body: request });
  }

  /** Ends a disk in the trash for good. */
  async purgeDisk(deleted: string): Promise<void> {
    await this.#ask({ method: "DELETE", path: deletedPath(deleted) });
  }

  /**
   * Schedules of snapshots.
   *
   * @param name of a disk; without it those of all disks
   */
  async schedules(name?: string): Promise<readonly ScheduleDocument[]> {
    const path = name === undefined ? "/v1/schedules" : `${diskPath(name)}/schedules`;
    return (await this.#ask<ScheduleListDocument>({ method: "GET", path })).schedules;
  }

  /** Makes a schedule, or changes the one of this name. */
  async setSchedule(
    disk: string,
    name: string,
    request: ScheduleRequest,
  ): Promise<ScheduleDocument> {
    return await this.#ask({ method: "PUT", path: schedulePath(disk, name), body: request });
  }

  /** Ends a schedule; the snapshots that it has taken stay. */
  async deleteSchedule(disk: string, name: string): Promise<void> {
    await this.#ask({ method: "DELETE", path: schedulePath(disk, name) });
  }

  /**
   * Verifies the checksums of a disk, or of everything.
   *
   * @param name the disk, or null for the whole store
   * @param options how to follow it
   */
  async check(name: string | null, options: CheckOptions = {}): Promise<CheckReport> {
    const path = name === null ? "/v1/check" : `${diskPath(name)}/check`;
    const event = await this.#follow(path, options);
    if (event.kind !== "report") throw this.#cutShort();
    const { checkedBytes, damagedBlocks, damage } = event;
    return { checkedBytes, damagedBlocks, damage };
  }

  /**
   * Reads, verifies and compares all replicas of a disk, or of all disks.
   *
   * @param name the disk, or null for all
   * @param options how to follow it; `repair` false: nothing is changed
   */
  async compare(
    name: string | null,
    options: CheckOptions & { readonly repair?: boolean } = {},
  ): Promise<ComparisonReport> {
    const path = name === null ? "/v1/compare" : `${diskPath(name)}/compare`;
    const flags = { "report-only": options.repair === false };
    return this.#compared(await this.#follow(withFlags(path, flags), options));
  }

  /**
   * The same for a disk, but where replicas differ it is what one node has that counts. What others have is overwritten.
   *
   * @param request names that node
   */
  async settle(
    name: string,
    request: SettleRequest,
    options: CheckOptions = {},
  ): Promise<ComparisonReport> {
    return this.#compared(await this.#follow(`${diskPath(name)}/settle`, options, request));
  }

  #compared(event: CheckEvent): ComparisonReport {
    if (event.kind !== "compared") throw this.#cutShort();
    const { kind: _, ...report } = event;
    return report;
  }

  /** Follows a check to its last event, unless that is an error. */
  async #follow(
    path: string,
    { signal, onProgress }: CheckOptions,
    body?: SettleRequest,
  ): Promise<CheckEvent> {
    const response = await this.#send({ method: "POST", path, body, signal });
    for await (const line of this.#linesOf(response, signal)) {
      const event = JSON.parse(line) as CheckEvent;
      if (event.kind === "progress") onProgress?.(event.checkedBytes, event.totalBytes);
      else if (event.kind === "error") throw new AdminError(event.error);
      else return event;
    }
    throw this.#cutShort();
  }

  /**
   * Takes a disk away from the node where it is open, whatever goes on there: its guest's writes fail to arrive
   * from then on, and the next one to open it waits a few seconds. A disk that is not open stays as it is.
   */
  async releaseDisk(name: string): Promise<DiskDocument> {
    return await this.#ask({ method: "POST", path: `${diskPath(name)}/release` });
  }

  /** Who has which disk open for writing, sorted by the disk's name. */
  async locks(): Promise<readonly LockDocument[]> {
    return (await this.#ask<LockListDocument>({ method: "GET", path: "/v1/locks" })).locks;
  }

  /** What the agent knows of its cluster; answers without a quorum, too. */
  cluster(): Promise<ClusterDocument> {
    return this.#ask({ method: "GET", path: "/v1/cluster" });
  }

  /** Changes settings of the cluster; what is left out stays. */
  changeSettings(request: ChangeSettingsRequest): Promise<Settings> {
    return this.#ask({ method: "PATCH", path: "/v1/cluster/settings", body: request });
  }

  /** The secret that a node needs to join. Whoever has it can read and change everything. */
  async secret(): Promise<string> {
    return (await this.#ask<SecretDocument>({ method: "GET", path: "/v1/cluster/secret" })).secret;
  }

  /** All nodes, sorted by id. */
  async nodes(): Promise<readonly NodeDocument[]> {
    return (await this.#ask<NodeListDocument>({ method: "GET", path: "/v1/nodes" })).nodes;
  }

  /**
   * One node; fails with `missing` when it is not there.
   *
   * @param node its name or id, here and below
   */
  async node(node: string): Promise<NodeDocument> {
    return await this.#ask({ method: "GET", path: nodePath(node) });
  }

  /** Says what a change would move, how much and how long; changes nothing. */
  async planNode(node: string, request: PlanRequest): Promise<PlanDocument> {
    return await this.#ask({ method: "POST", path: `${nodePath(node)}/plan`, body: request });
  }

  /**
   * Drains a node or takes it in again, changes its weight or zone. With the `targetsEpoch` of a plan it fails with
   * `stale` when something that the plan depends on has changed since.
   */
  async changeNode(node: string, request: ChangeNodeRequest): Promise<NodeDocument> {
    return await this.#ask({ method: "PATCH", path: nodePath(node), body: request });
  }

  /**
   * Takes a node out of the cluster for good: one that is drained, or with `force` one that is down and will not come
   * back, and with `acceptLoss` even where it has the only copy of data.
   */
  async removeNode(
    node: string,
    options: { force?: boolean; acceptLoss?: boolean } = {},
  ): Promise<void> {
    const flags = { "force": options.force, "accept-loss": options.acceptLoss };
    await this.#ask({ method: "DELETE", path: withFlags(nodePath(node), flags) });
  }

  /**
   * Asks a node's agent to end in good order, so that whoever looks after it starts it anew. It may be lost: the
   * node's `incarnation` says whether it was heard.
   */
  async restartNode(node: string): Promise<void> {
    await this.#ask({ method: "POST", path: `${nodePath(node)}/restart` });
  }

  /** What the store says of itself. */
  store(): Promise<StoreStatus> {
    return this.#ask({ method: "GET", path: "/v1/store" });
  }

  /** Changes how much the agent logs, until it ends. */
  async setLogLevel(level: LogLevel): Promise<void> {
    await this.#ask({ method: "PUT", path: "/v1/log-level", body: { level } });
  }

  /** See `ControlBackend.recover`: the last way out, after which the agent stops. */
  async recoverCluster(): Promise<void> {
    await this.#ask({ method: "POST", path: "/v1/cluster/recover" });
  }

  /** Begins a clean stop; the agent has not ended yet when this resolves. */
  async shutdown(): Promise<void> {
    await this.#ask({ method: "POST", path: "/v1/shutdown" });
  }

  /** The agent's own description of its API. */
  openapi(): Promise<Record<string, unknown>> {
    return this.#ask({ method: "GET", path: "/v1/openapi.json" });
  }

  /** The agent's metrics in Prometheus' text format. */
  async metrics(): Promise<string> {
    const response = await this.#send({
      method: "GET",
      path: "/metrics",
      signal: this.#deadline(),
    });
    return await response.text();
  }

  /** Closes the connections to the agent. A second time does nothing. */
  close(): void {
    if (!this.#isClosed) this.#http.close();
    this.#isClosed = true;
  }

  /** The same as {@linkcode close}, for `using`. */
  [Symbol.dispose](): void {
    this.close();
  }

  async #ask<T>(parts: Omit<RequestParts, "signal">): Promise<T> {
    const response = await this.#send({ ...parts, signal: this.#deadline() });
    if (response.status === 204) return undefined as T;
    try {
      return await response.json() as T;
    } catch (error) {
      throw this.#translate(error);
    }
  }

  #deadline(): AbortSignal {
    return AbortSignal.timeout(this.#timeoutMs);
  }

  /** Gives the response when the agent took the request. */
  async #send(parts: RequestParts): Promise<Response> {
    const { method, path, body, signal } = parts;
    let response: Response;
    try {
      response = await fetch(`http://agent${path}`, {
        client: this.#http,
        method,
        signal,
        ...(body === undefined
          ? {}
          : { body: JSON.stringify(body), headers: { "content-type": "application/json" } }),
      });
    } catch (error) {
      const isAborted = signal?.aborted === true;
      const reason = isAborted ? signal.reason : error;
      const isTimeout = reason instanceof DOMException && reason.name === "TimeoutError";
      if (isAborted && !isTimeout) throw reason;
      throw this.#translate(reason);
    }
    if (response.ok) return response;
    throw new AdminError(await errorOf(response));
  }

  async *#linesOf(response: Response, signal?: AbortSignal): AsyncGenerator<string> {
    let rest = "";
    try {
      for await (const text of response.body!.pipeThrough(new TextDecoderStream())) {
        const lines = (rest + text).split("\n");
        rest = lines.pop()!;
        if (rest.length > LINE_LENGTH_MAX) throw this.#cutShort();
        yield* lines;
      }
    } catch (error) {
      if (signal?.aborted) throw signal.reason;
      throw this.#translate(error);
    }
  }

  /** Says in the API's terms why there is no answer. */
  #translate(error: unknown): unknown {
    if (error instanceof AdminError || error instanceof Deno.errors.NotCapable) return error;
    const text = error instanceof Error ? error.message : String(error);
    if (error instanceof DOMException && error.name === "TimeoutError") {
      return new AdminError({
        code: "unavailable",
        message: `the agent at ${this.socketPath} did not answer within ` +
          `${this.#timeoutMs / 1000} seconds`,
        hint: "look at the agent's log",
      });
    }
    if (error instanceof DOMException) return error;
    if (text.includes("os error 13")) {
      return new AdminError({
        code: "unavailable",
        message: `not allowed to connect to ${this.socketPath}`,
        hint: "the agent's socket is for its owner only: use the same user, often root",
      });
    }
    if (text.includes("(Connect)")) {
      return new AdminError({
        code: "unavailable",
        message: `no agent answers at ${this.socketPath}: is it running?`,
        hint: "start it with 'kelpie agent', or name its --run-dir (KELPIE_RUN_DIR)",
      });
    }
    return this.#cutShort();
  }

  #cutShort(): AdminError {
    return new AdminError({
      code: "unavailable",
      message: `the agent at ${this.socketPath} ended the connection before its answer was whole`,
      hint: "look at the agent's log",
    });
  }
}

/** A path with those flags that are set as its query. */
function withFlags(path: string, flags: Readonly<Record<string, boolean | undefined>>): string {
  const set = Object.keys(flags).filter((key) => flags[key] === true).map((key) => `${key}=1`);
  return set.length === 0 ? path : `${path}?${set.join("&")}`;
}

function diskPath(name: string): string {
  throwIfWrong(checkDiskName(name));
  return `/v1/disks/${name}`;
}

function snapshotPath(disk: string, name: string): string {
  throwIfWrong(checkSnapshotName(name));
  return `${diskPath(disk)}/snapshots/${name}`;
}

function schedulePath(disk: string, name: string): string {
  throwIfWrong(checkSnapshotName(name));
  return `${diskPath(disk)}/schedules/${name}`;
}

/** An id is of the same form as a name. */
function deletedPath(deleted: string): string {
  throwIfWrong(checkDiskName(deleted));
  return `/v1/trash/${deleted}`;
}

function throwIfWrong(error: ControlError | null): void {
  if (error !== null) throw new AdminError(error);
}

function nodePath(node: string): string {
  throwIfWrong(checkNodeName(node));
  return `/v1/nodes/${node}`;
}

/** The error that an answer carries, whatever stands in it. */
async function errorOf(response: Response): Promise<ControlError> {
  const text = await response.text().catch(() => "");
  try {
    const { error } = JSON.parse(text);
    if (typeof error.message === "string" && CONTROL_ERROR_CODES.includes(error.code)) return error;
  } catch {
    // Not from this API; said below.
  }
  return {
    code: "internal",
    message: `what answers is no agent of this version: HTTP status ${response.status}`,
  };
}
