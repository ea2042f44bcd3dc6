/**
 * Metrics: the text format, held by a small parser, and the values in it.
 *
 * @module
 */
import { assert, assertEquals, assertMatch } from "@std/assert/mod.js";
import { NO_LIMITS } from "../../agent/map/map.ts";
import type { DiskDocument, StatusDocument } from "../../agent/http/documents.ts";
import { formatMetrics } from "../../agent/http/metrics.ts";
import { clusterStatusOf } from "../../agent/cluster_status.ts";
import { summarizeGroups } from "../../agent/map/group_summary.ts";
import { clusterWithDisk, run } from "../map/cluster.ts";
import { FakeBackend, HEALTHY_STORE, IDLE_DISK, sessionWith } from "./fake_backend.ts";

function diskNamed(name: string): DiskDocument {
  return {
    name,
    id: 1,
    sizeBytes: 1024,
    allocatedBytes: 512,
    space: null,
    readOnly: false,
    copies: 1,
    zones: [],
    zonesProblem: null,
    copiesMin: 1,
    copiesInSync: 1,
    copiesChange: null,
    openOn: null,
    createdMs: 0,
    generation: 0,
    family: 1,
    origin: null,
    isShared: false,
    flatten: null,
    snapshots: [],
    schedules: [],
    limits: { ...NO_LIMITS, iops: 500, bytesPerSecond: 2 ** 20 },
    detectZeroes: false,
    layers: [1],
    attributes: {},
    socket: "",
    readOnlySocket: "",
    sessions: [sessionWith({ inFlight: 2 }), sessionWith({ inFlight: 3 })],
    counters: {
      ...IDLE_DISK.counters,
      reads: 12,
      readBytes: 2 ** 53,
      heldRequests: 7,
      heldMs: 1500,
    },
  };
}

function statusWith(part: Partial<StatusDocument> = {}): StatusDocument {
  return {
    healthy: true,
    summary: "",
    problems: [],
    agent: new FakeBackend().info(),
    epoch: 5,
    cluster: null,
    groups: null,
    store: HEALTHY_STORE,
    disks: [diskNamed("web"), diskNamed("db")],
    ...part,
  };
}

/** Reads the format strictly: families once, HELP and TYPE first, samples together. */
function parse(text: string): Map<string, number> {
  const samples = new Map<string, number>();
  const families = new Set<string>();
  let family = "";
  const lines = text.split("\n");
  assertEquals(lines.pop(), "", "the last line must end");
  for (let index = 0; index < lines.length; index++) {
    const help = lines[index].match(/^# HELP ([a-z_0-9]+) \S.*$/);
    if (help !== null) {
      family = help[1];
      assert(!families.has(family), `${family} is there twice`);
      families.add(family);
      assertMatch(lines[++index], new RegExp(`^# TYPE ${family} (counter|gauge|untyped)$`));
      assertEquals(lines[index].endsWith("counter"), family.endsWith("_total"));
      continue;
    }
    const label = '[a-z_]+="(?:[^"\\\\\\n]|\\\\[\\\\"n])*"';
    const sample = lines[index].match(
      new RegExp(`^([a-z_0-9]+)(\\{${label}(?:,${label})*\\})? (\\S+)$`),
    );
    if (sample === null) throw new Error(`not a sample: ${lines[index]}`);
    assertEquals(sample[1], family);
    const key = sample[1] + (sample[2] ?? "");
    assert(!samples.has(key), `${key} is there twice`);
    samples.set(key, Number(sample[3].replace("Inf", "Infinity")));
  }
  return samples;
}

Deno.test("metrics have the values of the status", () => {
  const samples = parse(formatMetrics(statusWith()));
  const expected: Record<string, number> = {
    'kelpie_info{version="1.2.3",node_id="0123456789abcdef",cluster_id="fedcba9876543210"}': 1,
    "kelpie_start_time_seconds": 1_700_000_000.5,
    "kelpie_map_epoch": 5,
    "kelpie_healthy": 1,
    'kelpie_problems{code="damage"}': 0,
    "kelpie_store_capacity_bytes": HEALTHY_STORE.capacityBytes,
    "kelpie_store_failed": 0,
    "kelpie_store_records_written": 7,
    "kelpie_store_odd_name": 1.5,
    'kelpie_disk_reads_total{disk="web"}': 12,
    'kelpie_disk_read_bytes_total{disk="db"}': 2 ** 53,
    'kelpie_disk_sessions{disk="web"}': 2,
    'kelpie_disk_requests_in_flight{disk="web"}': 5,
    'kelpie_disk_held_requests_total{disk="web"}': 7,
    'kelpie_disk_held_seconds_total{disk="web"}': 1.5,
    'kelpie_disk_limit_iops{disk="web"}': 500,
    'kelpie_disk_limit_bytes_per_second{disk="db"}': 2 ** 20,
  };
  for (const [key, value] of Object.entries(expected)) assertEquals(samples.get(key), value, key);
});

Deno.test("metrics count problems by kind", () => {
  const problem = { code: "lease-waiting", message: "", hint: "" } as const;
  const samples = parse(
    formatMetrics(statusWith({ healthy: false, problems: [problem, problem] })),
  );
  assertEquals(samples.get('kelpie_problems{code="lease-waiting"}'), 2);
  assertEquals(samples.get("kelpie_healthy"), 0);
});

Deno.test("metrics stay well-formed whatever stands in names and counters", () => {
  const odd = 'a"b\\c\nd';
  const status = statusWith({
    disks: [diskNamed(odd)],
    agent: { ...new FakeBackend().info(), version: odd },
    store: {
      ...HEALTHY_STORE,
      counters: { "liveBytes": 1, "a b": 2, "a_b": 3, "x\ny": Infinity, "nan": NaN, "Ü": -1 },
    },
  });
  const samples = parse(formatMetrics(status));
  assertEquals(samples.get('kelpie_disk_reads_total{disk="a\\"b\\\\c\\nd"}'), 12);
  assertEquals(samples.get("kelpie_store_live_bytes"), HEALTHY_STORE.liveBytes);
  assertEquals(samples.get("kelpie_store_a_b"), 2);
  assertEquals(samples.get("kelpie_store_x_y"), Infinity);
  assertEquals(samples.get("kelpie_store_nan"), NaN);
});

Deno.test("metrics have every node and the counts of placement groups", () => {
  const map = run(clusterWithDisk(3, 2), {
    kind: "node-down",
    node: 3,
    incarnation: 1,
    nowMs: 1,
  }).map;
  const cluster = clusterStatusOf(map, 1, 1);
  cluster.nodes[1].usedBytes = 4096;
  cluster.nodes[1].copyBytesPerSecond = 100;
  cluster.hasQuorum = false;
  const groups = summarizeGroups(map);
  const samples = parse(formatMetrics(statusWith({ cluster, groups })));
  const expected: Record<string, number> = {
    kelpie_cluster_has_quorum: 0,
    kelpie_cluster_nodes: 3,
    kelpie_groups: 256,
    kelpie_groups_degraded: groups.degraded,
    'kelpie_node_up{node="host-2"}': 1,
    'kelpie_node_up{node="host-3"}': 0,
    'kelpie_node_suspected{node="host-1"}': 0,
    'kelpie_node_suspected{node="host-2"}': 1,
    'kelpie_node_leader{node="host-1"}': 1,
    'kelpie_node_used_bytes{node="host-1"}': -1,
    'kelpie_node_used_bytes{node="host-2"}': 4096,
    'kelpie_node_copy_bytes_per_second{node="host-2"}': 100,
  };
  for (const [key, value] of Object.entries(expected)) assertEquals(samples.get(key), value, key);
  assert(groups.degraded > 0);
});

Deno.test("metrics without store and disks are whole", () => {
  const samples = parse(formatMetrics(statusWith({ store: null, disks: [] })));
  assertEquals([...samples.keys()].some((key) => key.startsWith("kelpie_disk_")), false);
});
