/**
 * Counts of PGs for people: each kind by itself, and what a disk and a node have.
 *
 * @module
 */
import { assertEquals, assertMatch } from "@std/assert/mod.js";
import {
  copiesInSync,
  groupsOfNodes,
  type GroupSummary,
  summarizeGroups,
} from "../../agent/map/group_summary.ts";
import { pgOf } from "../../agent/map/hash.ts";
import { type ClusterMap, EMPTY_MAP, type PgEntry } from "../../agent/map/map.ts";
import { clusterOf, clusterWithDisk, group, run, runAll } from "./cluster.ts";

/** The map with PG 0 of its only pool changed. */
function withGroup(map: ClusterMap, part: Partial<PgEntry>): ClusterMap {
  const [pool] = map.pools;
  return { ...map, pools: [{ ...pool, pgs: pool.pgs.with(0, { ...pool.pgs[0], ...part }) }] };
}

/** Counts that are not as when all is well. */
function oddities(map: ClusterMap): Partial<GroupSummary> {
  const well = summarizeGroups(clusterWithDisk(3, 3));
  const summary = summarizeGroups(map);
  const keys = Object.keys(well) as (keyof GroupSummary)[];
  return Object.fromEntries(
    keys.filter((key) => summary[key] !== well[key]).map((key) => [key, summary[key]]),
  );
}

Deno.test("a new disk's PGs are whole, and pools without disks do not count", () => {
  const map = clusterWithDisk(3, 3);
  assertEquals(summarizeGroups(map).total, 256);
  assertEquals(summarizeGroups(map).whole, 256);
  const without = run(map, { kind: "delete-disk", name: "web" }).map;
  assertEquals(summarizeGroups(without).total, 0);
  assertEquals(summarizeGroups(EMPTY_MAP).total, 0);
});

Deno.test("each thing that can be wrong with a PG is counted, with its reason", () => {
  const map = clusterWithDisk(3, 3);
  const [first, second, third] = group(map).target;
  const one = { kind: "node-down", node: 1, incarnation: 1, nowMs: 1 } as const;
  const two = { kind: "node-down", node: 2, incarnation: 1, nowMs: 1 } as const;
  const three = { kind: "node-down", node: 3, incarnation: 1, nowMs: 1 } as const;
  assertEquals(oddities(withGroup(map, { inSync: [first, second], joining: [third] })), {
    whole: 255,
    degraded: 1,
    joining: 1,
  });
  assertEquals(oddities(withGroup(map, { inSync: [first], joining: [] })), {
    whole: 255,
    degraded: 1,
    belowMin: 1,
    unwritableReason: `only host-${first} has a complete copy, ` +
      "and 2 copies are the fewest to write to",
  });
  assertEquals(oddities(withGroup(map, { target: [first, second] })), { misplaced: 1 });
  assertEquals(oddities(withGroup(map, { unclean: [second] })), {
    whole: 255,
    unclean: 1,
    unreadableReason: `host-${second} crashed, and has not left yet or has to be settled`,
  });
  assertEquals(oddities(runAll(map, one)), { whole: 0, degraded: 256 });
  const all = oddities(runAll(map, one, two, three));
  assertEquals([all.whole, all.unreachable, all.belowMin], [0, 256, 256]);
  assertMatch(all.unreadableReason!, /^the only complete copy is on host-\d, which is down$/);
});

Deno.test("a disk has as many copies as the worst of its own PGs", () => {
  const map = clusterWithDisk(3, 3);
  const [disk] = map.disks;
  assertEquals(copiesInSync(map).get(disk.id), 3);
  // A disk of one chunk is in one PG only.
  const small = { ...map, disks: [{ ...disk, sizeBytes: 4 * 1024 ** 2 }] };
  for (const [pg, expected] of [[pgOf(disk.family, 0, 256), 1], [pgOf(disk.family, 1, 256), 3]]) {
    const pgs = map.pools[0].pgs.with(pg, { ...map.pools[0].pgs[pg], inSync: [1] });
    const pools = [{ ...map.pools[0], pgs }];
    assertEquals(copiesInSync({ ...small, pools }).get(disk.id), expected);
    assertEquals(copiesInSync({ ...map, pools }).get(disk.id), 1);
  }
  assertEquals(copiesInSync({ ...EMPTY_MAP, disks: [disk] }).get(disk.id), 1);
});

Deno.test("a node's PGs are counted by what it has to do with them", () => {
  const map = clusterWithDisk(3, 3);
  assertEquals(groupsOfNodes(map).get(1), { held: 256, wanted: 256, named: 256, only: 0 });
  const leaving = withGroup(map, { target: [2, 3] });
  assertEquals(groupsOfNodes(leaving).get(1), { held: 256, wanted: 255, named: 256, only: 0 });
  const only = withGroup(map, { inSync: [1], joining: [2] });
  assertEquals(groupsOfNodes(only).get(1)!.only, 1);
  assertEquals(groupsOfNodes(only).get(2), { held: 256, wanted: 256, named: 256, only: 0 });
  assertEquals(groupsOfNodes(clusterOf(2)).get(1), undefined);
});
