/**
 * The table of slots: where groups go, and that nothing that counts is lost sight of.
 *
 * @module
 */
import { assert, assertEquals } from "@std/assert/mod.js";
import type { PgEntry } from "../../agent/map/map.ts";
import { NO_PATH, type PlannedPath, planSlots, SLOTS, slotsOf } from "../../agent/paths/slots.ts";
import { mapWith } from "./harness.ts";

const EMPTY = new Uint8Array(SLOTS);
const works = (id: number, capacityBytes = 1e12): PlannedPath => ({
  id,
  capacityBytes,
  lostEpoch: -1,
});
const lost = (id: number, lostEpoch = 0): PlannedPath => ({ id, capacityBytes: 1e12, lostEpoch });

/** Groups of 256 on each path. */
function counts(table: Uint8Array): Record<number, number> {
  const counts: Record<number, number> = {};
  for (let group = 0; group < 256; group++) {
    counts[table[group]] = (counts[table[group]] ?? 0) + 1;
    for (let slot = group; slot < SLOTS; slot += 256) assertEquals(table[slot], table[group]);
  }
  return counts;
}

function joining(pg: PgEntry, epoch: number): PgEntry {
  return { ...pg, inSync: [2], joining: [1], joinedEpochs: [epoch], changedEpoch: epoch };
}

Deno.test("groups go to paths by their capacity, all slots of a group to one", () => {
  const map = mapWith(1, 1);
  const { table, owed } = planSlots(map, 1, EMPTY, [works(1, 3e12), works(2, 1e12)]);
  assertEquals(counts(table!), { 1: 192, 2: 64 });
  assertEquals(owed.size, 0);
  assertEquals(planSlots(map, 1, table!, [works(1, 3e12), works(2, 1e12)]).table, null);
});

Deno.test("groups of other nodes, and of pools without disks, get no path", () => {
  const map = mapWith(1, 2, (pg, index) => index < 10 ? pg : { ...pg, target: [2], inSync: [2] });
  const mine = planSlots(map, 1, EMPTY, [works(1)]).table!;
  const held = map.pools[0].pgs.slice(0, 10).filter(({ inSync }) => inSync.includes(1)).length;
  assertEquals(counts(mine)[1], held);
  assertEquals(planSlots({ ...map, disks: [] }, 1, EMPTY, [works(1)]).table, null);
});

Deno.test("a lost path keeps what this node is in sync for, and owes it until the map has noticed", () => {
  const map = mapWith(1, 1);
  const table = planSlots(map, 1, EMPTY, [works(1), works(2)]).table!;
  const after = planSlots(map, 1, table, [works(1), lost(2)]);
  assertEquals([after.table, [...after.owed]], [null, [2]]);
  const noticed = mapWith(1, 1, (pg) => ({ ...pg, unclean: [1] }));
  const waits = planSlots(noticed, 1, table, [works(1), lost(2)]);
  assertEquals([waits.table, waits.owed.size], [null, 0], "the only copy waits for its path");
});

Deno.test("a lost path is given up for groups that are joined anew, and not for joins from before", () => {
  const table = planSlots(mapWith(1, 1), 1, EMPTY, [works(1), works(2)]).table!;
  const before = planSlots(mapWith(1, 2, (pg) => joining(pg, 40)), 1, table, [
    works(1),
    lost(2, 50),
  ]);
  assertEquals([before.table, [...before.owed]], [null, [2]]);
  const anew = planSlots(mapWith(1, 2, (pg) => joining(pg, 51)), 1, table, [
    works(1),
    lost(2, 50),
  ]);
  assertEquals([counts(anew.table!), anew.owed.size], [{ 1: 256 }, 0]);
  const gone = planSlots(mapWith(1, 2, (pg) => ({ ...pg, target: [2], inSync: [2] })), 1, table, [
    works(1),
    lost(2, 50),
  ]);
  assertEquals(counts(gone.table!), { [NO_PATH]: 128, 1: 128 });
});

Deno.test("a group that another pool waits for on a lost path stays there, and whoever joins it is sent away", () => {
  const map = mapWith(2, 2);
  const [pool] = map.pools;
  const both = {
    ...map,
    pools: [
      {
        id: 1,
        copies: 1,
        zones: [],
        family: 0,
        to: 0,
        pgs: pool.pgs.map((pg) => ({ ...pg, inSync: [1], unclean: [1] })),
      },
      { ...pool, pgs: pool.pgs.map((pg) => joining(pg, 99)) },
    ],
    disks: [{ ...map.disks[0], name: "a", id: 7, copies: 1, pool: 1 }, ...map.disks],
  };
  const table = new Uint8Array(SLOTS).fill(2);
  const plan = planSlots(both, 1, table, [works(1), lost(2)]);
  assertEquals([plan.table, [...plan.owed]], [null, [2]]);
});

Deno.test("after a split both halves stay where they are, and lose a path by themselves", () => {
  const map = mapWith(1, 2, (pg) => joining(pg, 9));
  const table = planSlots(map, 1, EMPTY, [works(1), works(2)]).table!;
  const [{ pgs }] = map.pools;
  const split = {
    ...map,
    pgBits: 9,
    pools: [{ ...map.pools[0], pgs: [...pgs, ...pgs.map((pg) => ({ ...pg, inSync: [1, 2] }))] }],
  };
  assertEquals(planSlots(split, 1, table, [works(1), works(2)]).table, null);
  const after = planSlots(split, 1, table, [works(1), lost(2, 5)]).table!;
  for (let slot = 0; slot < SLOTS; slot++) {
    const isHeld = (slot & 511) >= 256;
    assertEquals(after[slot], isHeld ? table[slot] : 1, `slot ${slot}`);
  }
});

Deno.test("what holds nothing is spread anew, what holds something stays", () => {
  const map = mapWith(1, 1);
  const table = new Uint8Array(SLOTS).fill(1);
  const paths = [works(1), works(2)];
  assertEquals(planSlots(map, 1, table, paths).table, null);
  const spread = planSlots(map, 1, table, paths, -1, (group) => group >= 100).table!;
  const { 1: first, 2: second } = counts(spread);
  assertEquals([first, second], [128, 128]);
  assert(spread.subarray(0, 100).every((id) => id === 1));
});

Deno.test("the slots of paths are told in as few bits as say it", () => {
  const table = planSlots(mapWith(1, 1), 1, EMPTY, [works(1), works(2)]).table!;
  assertEquals(slotsOf(table, new Set([9])), new Uint8Array(0));
  assertEquals(slotsOf(table, new Set([1, 2])), Uint8Array.of(255));
  const bits = slotsOf(table, new Set([2]));
  for (let slot = 0; slot < SLOTS; slot++) {
    const bit = slot % (8 * bits.length);
    assertEquals((bits[bit >>> 3] >>> (bit & 7) & 1) === 1, table[slot] === 2);
  }
  const odd = new Uint8Array(SLOTS);
  odd[SLOTS - 1] = 3;
  assertEquals(slotsOf(odd, new Set([3])).length, SLOTS / 8);
});
