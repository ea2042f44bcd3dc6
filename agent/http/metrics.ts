/**
 * The agent's metrics in Prometheus' text format 0.0.4. Pure.
 *
 *     # HELP kelpie_disk_reads_total Reads since the agent started.
 *     # TYPE kelpie_disk_reads_total counter
 *     kelpie_disk_reads_total{disk="web"} 12
 *
 * Invariant: every family is there once, with HELP and TYPE before its samples; label values are
 * escaped, whatever stands in them.
 *
 * @module
 */

import { type Problem, PROBLEM_CODES } from "../problems.ts";
import type {
  AgentInfo,
  ClusterStatus,
  GroupSummary,
  NodeStatus,
  PathStatus,
  StoreStatus,
} from "./backend.ts";
import type { DiskDocument, StatusDocument } from "./documents.ts";

/** Content type of the format. */
export const METRICS_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8";

/** Most counters of the store that become metrics: what has more is a mistake. */
const STORE_COUNTERS_MAX = 256;

type FamilyType = "counter" | "gauge" | "untyped";

/** A family: one gauge per disk, say. */
interface Family<T> {
  readonly name: string;
  readonly type: FamilyType;
  readonly help: string;
  readonly value: (of: T) => number;
}

const STORE_FAMILIES: readonly Family<StoreStatus>[] = [
  gauge("store_capacity_bytes", "Bytes that the store may use.", (store) => store.capacityBytes),
  gauge("store_live_bytes", "Bytes of live data.", (store) => store.liveBytes),
  gauge("store_free_bytes", "Bytes of free segments.", (store) => store.freeBytes),
  gauge("store_index_bytes", "Memory of the index.", (store) => store.indexBytes),
  gauge("store_full", "1 when there is no space for new writes.", (store) => Number(store.full)),
  gauge("store_waiting_writes", "Writes that wait for space.", (store) => store.waitingWrites),
  gauge("store_failed", "1 when the store has stopped.", (store) => Number(store.failed !== null)),
  gauge("store_damaged_blocks", "Blocks that cannot be read.", (store) => store.damagedBlocks),
];

/** Of each data path of this node. */
const PATH_FAMILIES: readonly Family<PathStatus>[] = [
  gauge("path_up", "1 when the data path works.", (path) => Number(path.state === "ok")),
  gauge("path_capacity_bytes", "Bytes of data that fit.", (path) => path.capacityBytes),
  gauge("path_used_bytes", "Bytes of live data.", (path) => path.usedBytes),
  gauge("path_full", "1 when it takes no new writes.", (path) => Number(path.isFull)),
];

const DISK_FAMILIES: readonly Family<DiskDocument>[] = [
  gauge("disk_size_bytes", "Size of the disk.", (disk) => disk.sizeBytes),
  gauge("disk_allocated_bytes", "Bytes of data of the disk.", (disk) => disk.allocatedBytes),
  gauge("disk_sessions", "Front ends that are connected.", (disk) => disk.sessions.length),
  gauge(
    "disk_requests_in_flight",
    "Requests under way.",
    (disk) => disk.sessions.reduce((sum, session) => sum + session.inFlight, 0),
  ),
  counter("disk_reads_total", "Reads.", (disk) => disk.counters.reads),
  counter("disk_writes_total", "Writes.", (disk) => disk.counters.writes),
  counter("disk_flushes_total", "Flushes.", (disk) => disk.counters.flushes),
  counter("disk_discards_total", "Discards.", (disk) => disk.counters.discards),
  counter("disk_read_bytes_total", "Bytes read.", (disk) => disk.counters.readBytes),
  counter("disk_written_bytes_total", "Bytes written.", (disk) => disk.counters.writtenBytes),
  counter("disk_errors_total", "Requests that failed.", (disk) => disk.counters.errors),
  counter(
    "disk_timed_requests_total",
    "Requests whose service time was measured: some of them.",
    (disk) => disk.counters.timedRequests,
  ),
  counter(
    "disk_timed_seconds_total",
    "Sum of the service times that were measured.",
    (disk) => disk.counters.timedMs / 1000,
  ),
  counter(
    "disk_held_requests_total",
    "Requests that the disk's limits held back.",
    (disk) => disk.counters.heldRequests,
  ),
  counter(
    "disk_held_seconds_total",
    "Time for which the disk's limits held requests back.",
    (disk) => disk.counters.heldMs / 1000,
  ),
  gauge("disk_limit_iops", "Limit of requests per second; 0: none.", (disk) => disk.limits.iops),
  gauge(
    "disk_limit_bytes_per_second",
    "Limit of bytes per second; 0: none.",
    (disk) => disk.limits.bytesPerSecond,
  ),
];

const CLUSTER_FAMILIES: readonly Family<ClusterStatus>[] = [
  gauge("cluster_has_quorum", "1 when a majority of voters answers.", (of) => Number(of.hasQuorum)),
  gauge("cluster_level", "Level of the protocol that the cluster speaks.", (of) => of.level),
  gauge("cluster_leader", "Id of the node that leads; 0 when none is known.", (of) => of.leader),
  gauge("cluster_nodes", "Nodes of the cluster.", (of) => of.nodes.length),
  gauge("cluster_voters", "Nodes that vote.", (of) => of.voters.length),
  gauge("cluster_waiting_disks", "Disks of which requests wait.", (of) => of.waiting.length),
];

const GROUP_FAMILIES: readonly Family<GroupSummary>[] = [
  gauge("groups", "Placement groups of disks.", (of) => of.total),
  gauge("groups_whole", "Placement groups with every copy.", (of) => of.whole),
  gauge(
    "groups_degraded",
    "Placement groups with fewer copies than they should.",
    (of) => of.degraded,
  ),
  gauge(
    "groups_below_min",
    "Placement groups with too few copies to be written.",
    (of) => of.belowMin,
  ),
  gauge("groups_unclean", "Placement groups that wait for crashed copies.", (of) => of.unclean),
  gauge(
    "groups_unreachable",
    "Placement groups without a copy that is up.",
    (of) => of.unreachable,
  ),
  gauge("groups_joining", "Placement groups with copies that catch up.", (of) => of.joining),
  gauge("groups_misplaced", "Placement groups with copies that shall leave.", (of) => of.misplaced),
];

/** What a node did not report is -1: 0 would be an answer. */
const NODE_FAMILIES: readonly Family<NodeStatus>[] = [
  gauge("node_up", "1 when the cluster counts it as up.", (of) => Number(of.state === "up")),
  gauge(
    "node_suspected",
    "1 when gossip does not find it alive.",
    (of) => Number(of.gossip !== "alive"),
  ),
  gauge(
    "node_draining",
    "1 when its data moves away.",
    (of) => Number(of.availability === "draining"),
  ),
  gauge(
    "node_out",
    "1 when its data is made anew elsewhere.",
    (of) => Number(of.availability === "out"),
  ),
  gauge("node_voter", "1 when it votes.", (of) => Number(of.isVoter)),
  gauge("node_leader", "1 when it leads.", (of) => Number(of.isLeader)),
  gauge("node_capacity_bytes", "Bytes that its store may hold.", (of) => of.capacityBytes),
  gauge("node_used_bytes", "Bytes of live data; -1 when not reported.", (of) => of.usedBytes ?? -1),
  gauge("node_full", "1 when it takes no new writes.", (of) => Number(of.isFull)),
  gauge("node_level_max", "Newest level that its agent speaks.", (of) => of.levelMax),
  gauge("node_damaged_blocks", "Blocks that cannot be read.", (of) => of.damagedBlocks),
  gauge("node_joining_groups", "Placement groups that catch up on it.", (of) => of.joiningGroups),
  gauge("node_chunks_left", "Chunks that it still needs.", (of) => of.chunksLeft),
  gauge(
    "node_copy_bytes_per_second",
    "Rate at which it catches up.",
    (of) => of.copyBytesPerSecond ?? 0,
  ),
  gauge(
    "node_stuck",
    "1 when something stands in the way of that.",
    (of) => Number(of.stuck !== null),
  ),
  gauge(
    "node_lost_log",
    "1 when it came back without a part of the log of consensus, and does not count for now.",
    (of) => Number(of.hasLostLog),
  ),
  gauge(
    "node_other_log",
    "1 when its log of consensus is not the cluster's: it has to join anew, with an empty store.",
    (of) => Number(of.hasOtherLog),
  ),
];

function gauge<T>(name: string, help: string, value: (of: T) => number): Family<T> {
  return { name: `kelpie_${name}`, type: "gauge", help, value };
}

function counter<T>(name: string, help: string, value: (of: T) => number): Family<T> {
  return { name: `kelpie_${name}`, type: "counter", help, value };
}

/**
 * Writes the metrics.
 *
 * @param status what `GET /v1/status` would answer
 * @returns text that ends in a line feed
 */
export function formatMetrics(status: StatusDocument): string {
  const out: string[] = [];
  writeAgent(out, status);
  writeCluster(out, status);
  if (status.store !== null) {
    for (const family of STORE_FAMILIES) {
      writeHead(out, family);
      writeSample(out, family.name, {}, family.value(status.store));
    }
    for (const family of PATH_FAMILIES) {
      writeHead(out, family);
      for (const path of status.store.paths) {
        writeSample(out, family.name, { path: path.location }, family.value(path));
      }
    }
    writeStoreCounters(out, status.store);
  }
  for (const family of DISK_FAMILIES) {
    if (status.disks.length > 0) writeHead(out, family);
    for (const disk of status.disks) {
      writeSample(out, family.name, { disk: disk.name }, family.value(disk));
    }
  }
  return out.join("");
}

function writeCluster(out: string[], { cluster, groups }: StatusDocument): void {
  if (cluster === null || groups === null) return;
  for (const family of CLUSTER_FAMILIES) {
    writeHead(out, family);
    writeSample(out, family.name, {}, family.value(cluster));
  }
  for (const family of GROUP_FAMILIES) {
    writeHead(out, family);
    writeSample(out, family.name, {}, family.value(groups));
  }
  for (const family of NODE_FAMILIES) {
    if (cluster.nodes.length > 0) writeHead(out, family);
    for (const node of cluster.nodes) {
      writeSample(out, family.name, { node: node.name }, family.value(node));
    }
  }
}

function writeAgent(out: string[], { agent, epoch, problems, healthy }: StatusDocument): void {
  const families: Family<AgentInfo>[] = [
    gauge("start_time_seconds", "When the agent started, since 1970.", (of) => of.startedMs / 1000),
    gauge("map_epoch", "Version of the cluster map.", () => epoch),
    gauge("healthy", "1 when there is no problem.", () => Number(healthy)),
  ];
  const info = gauge<AgentInfo>("info", "Facts about the agent.", () => 1);
  const { version, nodeId, clusterId } = agent;
  writeHead(out, info);
  writeSample(out, info.name, { version, node_id: nodeId, cluster_id: clusterId }, 1);
  for (const family of families) {
    writeHead(out, family);
    writeSample(out, family.name, {}, family.value(agent));
  }
  writeProblems(out, problems);
}

function writeProblems(out: string[], problems: readonly Problem[]): void {
  const family = gauge<null>("problems", "Problems of each kind.", () => 0);
  writeHead(out, family);
  for (const code of PROBLEM_CODES) {
    const found = problems.filter((problem) => problem.code === code).length;
    writeSample(out, family.name, { code }, found);
  }
}

/** The store's further counters: nothing is known of them but their names. */
function writeStoreCounters(out: string[], { counters }: StoreStatus): void {
  const seen = new Set(STORE_FAMILIES.map((family) => family.name));
  for (const [key, value] of Object.entries(counters).slice(0, STORE_COUNTERS_MAX)) {
    const name = `kelpie_store_${snakeCase(key)}`;
    if (seen.has(name)) continue;
    seen.add(name);
    writeHead(out, { name, type: "untyped", help: `The store's counter ${key}.` });
    writeSample(out, name, {}, value);
  }
}

function snakeCase(name: string): string {
  return name.replaceAll(/([a-z0-9])([A-Z])/g, "$1_$2").toLowerCase()
    .replaceAll(/[^a-z0-9_]/g, "_");
}

function writeHead(
  out: string[],
  { name, type, help }: { name: string; type: FamilyType; help: string },
): void {
  out.push(`# HELP ${name} ${escapeHelp(help)}\n# TYPE ${name} ${type}\n`);
}

function writeSample(
  out: string[],
  name: string,
  labels: Readonly<Record<string, string>>,
  value: number,
): void {
  const pairs = Object.entries(labels).map(([key, text]) => `${key}="${escapeLabel(text)}"`);
  out.push(`${name}${pairs.length === 0 ? "" : `{${pairs.join(",")}}`} ${formatValue(value)}\n`);
}

function escapeHelp(text: string): string {
  return text.replaceAll("\\", "\\\\").replaceAll("\n", "\\n");
}

function escapeLabel(text: string): string {
  return escapeHelp(text).replaceAll('"', '\\"');
}

function formatValue(value: number): string {
  if (value === Infinity) return "+Inf";
  return value === -Infinity ? "-Inf" : String(value);
}
