/**
 * Kelpie for programs: the client of an agent's admin API, and the agent itself.
 *
 * The client needs a running agent and the permission to connect to its socket. Sizes are numbers of
 * bytes; `parseSize` reads `20G` and `formatSize` writes it.
 *
 * @example Look how an agent is
 * ```ts
 * import { AdminClient, AdminError, findRunDir, formatSize } from "./mod.ts";
 *
 * using client = new AdminClient({ runDir: findRunDir({ flags: { runDir: "/nowhere/kelpie" } }) });
 * try {
 *   const { summary, disks } = await client.status();
 *   console.log(summary);
 *   for (const disk of disks) console.log(disk.name, formatSize(disk.sizeBytes), disk.socket);
 * } catch (error) {
 *   if (!(error instanceof AdminError)) throw error;
 *   console.error(error.message, error.hint ?? "");
 * }
 * ```
 *
 * @example Make a disk unless it is there
 * ```ts
 * import { AdminClient, AdminError, type DiskDocument, parseSize } from "./mod.ts";
 *
 * async function ensureDisk(client: AdminClient, name: string): Promise<DiskDocument> {
 *   try {
 *     return await client.createDisk({ name, sizeBytes: parseSize("20G") });
 *   } catch (error) {
 *     if (error instanceof AdminError && error.code === "exists") return client.disk(name);
 *     throw error;
 *   }
 * }
 *
 * console.log(typeof ensureDisk);
 * ```
 *
 * @module
 */

import type { Agent } from "./agent/agent.ts";
import type { AgentConfig } from "./agent/config.ts";

export {
  AdminClient,
  type AdminClientOptions,
  AdminError,
  type CheckOptions,
} from "./agent/admin_client.ts";
export {
  type AgentConfig,
  type CacheMode,
  CONFIG_DEFAULT,
  type ConfigFlags,
  type ConfigSources,
  findRunDir,
  formatSize,
  loadConfig,
  type LogFormat,
  type LogLevel,
  parseSize,
} from "./agent/config.ts";
export { formatClusterSecret, parseClusterSecret } from "./agent/cluster_secret.ts";
export type {
  AgentInfo,
  CheckReport,
  ClusterStatus,
  ComparedDisk,
  ComparisonReport,
  DamagedBlock,
  DiskCounters,
  Extent,
  GroupSummary,
  JoiningNode,
  NodeStatus,
  SessionStatus,
  StoreStatus,
  WaitingDisk,
} from "./agent/http/backend.ts";
export type { CheckedBlock, DiskCheck, UncheckedChunks } from "./agent/replication/check_report.ts";
export type {
  ChangeDiskRequest,
  ChangeNodeRequest,
  ChangeSettingsRequest,
  ChangeSnapshotRequest,
  ChunkListDocument,
  CloneDiskRequest,
  ClusterDocument,
  CreateDiskRequest,
  CreateSnapshotsRequest,
  DeletedDiskDocument,
  DiskDocument,
  ExtentsDocument,
  ExtentsRequest,
  LockDocument,
  NodeDocument,
  ObjectDocument,
  PlacesDocument,
  PlanDocument,
  PlanNode,
  PlanRequest,
  RestoreDiskRequest,
  ScheduleDocument,
  ScheduleRequest,
  SettleRequest,
  SnapshotDocument,
  SpaceDocument,
  StatusDocument,
  VersionDocument,
} from "./agent/http/documents.ts";
export { type ControlError, type ControlErrorCode, ControlFailure } from "./agent/map/errors.ts";
export type { Attributes, Limits, LossEntry, Settings } from "./agent/map/map.ts";
export type { Problem, ProblemCode } from "./agent/problems.ts";
export { VERSION } from "./agent/version.ts";
export type { Agent } from "./agent/agent.ts";

/**
 * Starts an agent in this process. It is ready when this resolves, and has let go of its data when
 * `finished` does. Its parts are loaded only now: the client needs none of them, nor `--allow-ffi`.
 *
 * @param config from {@linkcode loadConfig}
 * @throws {ControlFailure} that says why it cannot start
 *
 * @example
 * ```ts
 * import { AdminClient, loadConfig, startAgent } from "./mod.ts";
 *
 * async function withAgent(data: string, use: (client: AdminClient) => Promise<void>) {
 *   const runDir = `${data}/run`;
 *   const agent = await startAgent(loadConfig({ flags: { data, runDir, capacity: "10G" } }));
 *   try {
 *     using client = new AdminClient({ runDir });
 *     await use(client);
 *   } finally {
 *     await agent.stop();
 *   }
 * }
 *
 * console.log(typeof withAgent);
 * ```
 */
export async function startAgent(config: AgentConfig): Promise<Agent> {
  const { startAgent } = await import("./agent/agent.ts");
  return await startAgent(config);
}
