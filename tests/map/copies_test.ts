/**
 * Another number of copies for disks that are in use, as the map sees it: which nodes get the data, when a family is done, and what may
 * happen meanwhile.
 *
 * @module
 */
import { assertEquals, assertMatch, assertNotEquals } from "@std/assert/mod.js";
import {
  type ClusterMap,
  copiesMinOf,
  type DiskEntry,
  findDisk,
  findPool,
  moveOf,
  MOVES_MAX,
  type Pool,
  poolOf,
  poolOfFamily,
  reasonAgainstFinish,
  settledEpochOf,
  TRASH_MAX,
} from "../../agent/map/map.ts";
import { copiesInSync, summarizeGroups } from "../../agent/map/group_summary.ts";
import { decodeMap, encodeMap } from "../../agent/map/map_codec.ts";
import { unwrap } from "../../agent/map/errors.ts";
import { previewNodeChange } from "../../agent/map/preview.ts";
import { targetChanges } from "../../agent/map/targets.ts";
import {
  atLevelTwo,
  clusterOf,
  filled,
  nodeUp,
  refuse,
  runAll,
  setTargets,
  step,
} from "./cluster.ts";

const GIB = 2 ** 30;

function cluster(nodes: number, copies: number): ClusterMap {
  const create = { kind: "create-disk", name: "web", sizeBytes: GIB, nowMs: 0, copies } as const;
  return runAll(atLevelTwo(clusterOf(nodes)), create);
}

function web(map: ClusterMap): DiskEntry {
  return findDisk(map, "web")!;
}

function own(map: ClusterMap): Pool {
  return poolOfFamily(map, web(map).family)!;
}

/** Targets as the leader sets them. */
function placed(map: ClusterMap): ClusterMap {
  for (const { id, family } of map.pools) {
    if (family !== 0) continue;
    const changes = targetChanges(map, findPool(map, id)!);
    if (changes.length > 0) map = step(map, setTargets(map, id, ...changes)).map;
    map = filled(map, id);
  }
  return map;
}

function finish(map: ClusterMap): ClusterMap {
  return step(map, { kind: "finish-copies", pool: own(map).id }).map;
}

function setCopies(map: ClusterMap, copies: number): ClusterMap {
  return step(map, { kind: "set-copies", name: "web", copies }).map;
}

Deno.test("a disk gets more copies, and fewer, by a pool of its family's own", () => {
  for (const [from, to] of [[1, 3], [2, 3], [3, 1], [3, 2], [5, 1], [1, 5]]) {
    const before = placed(cluster(5, from));
    let map = placed(setCopies(before, to));
    const pool = own(map);
    assertEquals([pool.copies, pool.family, web(map).copies], [to, 1, from]);
    assertEquals(poolOf(map, web(map)), pool);
    for (const [index, { target, inSync }] of pool.pgs.entries()) {
      assertEquals(inSync, findPool(before, from)!.pgs[index].inSync);
      const wanted = new Set([from, to].flatMap((id) => findPool(map, id)!.pgs[index].target));
      assertEquals(new Set(target), wanted);
    }
    assertEquals(copiesMinOf(map, web(map)), copiesMinOf(before, web(before)));
    map = finish(filled(map, pool.id));
    assertEquals([web(map).copies, poolOfFamily(map, 1)], [to, undefined]);
    assertEquals(web(map).placedEpoch, map.epoch);
    for (const pg of poolOf(map, web(map))!.pgs) {
      assertEquals([pg.inSync.length, pg.changedEpoch], [to, map.epoch]);
    }
    assertEquals(unwrap(decodeMap(unwrap(encodeMap(map)))), map);
  }
});

Deno.test("it is not done before everybody who will be a member has everything", () => {
  let map = placed(setCopies(placed(cluster(5, 2)), 3));
  const { id: pool } = own(map);
  assertMatch(reasonAgainstFinish(map, own(map))!, /data is being copied to node/);
  assertEquals(refuse(map, { kind: "finish-copies", pool }).code, "busy");
  const move = moveOf(map, 1)!;
  assertEquals([move.from.copies, move.to.copies, move.isBack, move.done], [2, 3, false, 0]);
  // One node of one PG is missing.
  const before = map;
  map = filled(map, pool);
  assertEquals([moveOf(map, 1)!.done, moveOf(map, 1)!.waitsFor], [move.wanted, null]);
  const joined = own(map).pgs[7].inSync.find((id) => !own(before).pgs[7].inSync.includes(id))!;
  const { incarnation } = map.nodes[joined - 1];
  const down = step(map, { kind: "node-down", node: joined, incarnation, nowMs: 0 }).map;
  const back = step(down, nodeUp(joined, { protocol: 2 })).map;
  for (const each of [down, back]) {
    assertEquals(refuse(each, { kind: "finish-copies", pool }).code, "busy");
  }
  assertEquals(
    reasonAgainstFinish(filled(filled(back, 3), pool), own(filled(filled(back, 3), pool))),
    null,
  );
});

Deno.test("who joins where a disk goes to, for the sake of others, has its data or it waits", () => {
  const others = {
    kind: "create-disk",
    name: "other",
    sizeBytes: GIB,
    nowMs: 0,
    copies: 3,
  } as const;
  let map = placed(runAll(placed(cluster(4, 2)), others));
  map = placed(setCopies(map, 3));
  map = filled(map, own(map).id);
  const { pgs } = findPool(map, 3)!;
  const node = [1, 2, 3, 4].find((id) => !own(map).pgs[0].inSync.includes(id))!;
  const target = [...pgs[0].target.slice(0, 2), node];
  map = step(map, setTargets(map, 3, [0, target])).map;
  map = step(map, { kind: "start-joining", pool: 3, pgs: [0], node, incarnation: 1 }).map;
  assertEquals(own(map).pgs[0].target.includes(node), true);
  assertEquals(refuse(map, { kind: "finish-copies", pool: own(map).id }).code, "busy");
  // The same on the way back.
  const two = { kind: "create-disk", name: "two", sizeBytes: GIB, nowMs: 0, copies: 2 } as const;
  let back = setCopies(placed(setCopies(runAll(placed(cluster(3, 2)), two), 1)), 2);
  const [{ target: now }] = findPool(back, 2)!.pgs;
  const other = [1, 2, 3].find((id) => !now.includes(id))!;
  back = step(back, setTargets(back, 2, [0, [now[0], other]])).map;
  back = step(back, { kind: "start-joining", pool: 2, pgs: [0], node: other, incarnation: 1 }).map;
  assertMatch(reasonAgainstFinish(back, own(back))!, /data is being copied/);
});

Deno.test("it is taken back on the way, and what it was is what it is", () => {
  const before = placed(cluster(5, 2));
  let map = placed(setCopies(before, 4));
  const halfway = filled(map, own(map).id);
  map = setCopies(halfway, 2);
  assertEquals([own(map).copies, own(map).id], [2, own(halfway).id]);
  assertEquals(
    own(map).pgs.map(({ target }) => target),
    findPool(map, 2)!.pgs.map((pg) => pg.target),
  );
  map = finish(map);
  assertEquals([web(map).copies, poolOfFamily(map, 1)], [2, undefined]);
  // As thin as it is where it comes from is no reason to stay away.
  const { incarnation } = before.nodes[0];
  const thin =
    step(setCopies(before, 4), { kind: "node-down", node: 1, incarnation, nowMs: 0 }).map;
  assertEquals(web(finish(setCopies(thin, 2))).copies, 2);
  // Another number instead: from where it is.
  const other = placed(setCopies(placed(setCopies(before, 4)), 1));
  assertEquals(web(finish(filled(other, own(other).id))).copies, 1);
  assertEquals(step(before, { kind: "set-copies", name: "web", copies: 2 }).map, before);
});

Deno.test("all of a family change together, those in the trash and those made meanwhile as well", () => {
  let map = placed(cluster(3, 2));
  const clone = (name: string) =>
    ({ kind: "clone-disk", disk: "web", snapshot: "s", name, nowMs: 0 }) as const;
  map = runAll(
    map,
    { kind: "create-snapshots", disks: [1], name: "s", nowMs: 0 },
    clone("a"),
    clone("b"),
    { kind: "delete-disk", name: "b", trashedMs: 1 },
  );
  map = runAll(placed(setCopies(map, 3)), clone("c"));
  map = finish(filled(map, own(map).id));
  assertEquals(map.disks.map(({ name, copies }) => `${name} ${copies}`), ["a 3", "c 3", "web 3"]);
  assertEquals(map.trash.map(({ disk }) => disk.copies), [3]);
  assertEquals(TRASH_MAX > 0, true);
  // A family without disks has no pool.
  map = setCopies(map, 1);
  assertNotEquals(poolOfFamily(map, 1), undefined);
  map = runAll(
    map,
    ...["a", "c", "web"].map((name) => ({ kind: "delete-disk", name }) as const),
    { kind: "purge-disk", id: map.trash[0].disk.id },
  );
  assertEquals(map.pools.filter(({ family }) => family !== 0), []);
});

Deno.test("what cannot be is refused, and says what to do", () => {
  let map = placed(cluster(3, 3));
  assertEquals(refuse(map, { kind: "set-copies", name: "web", copies: 6 }).code, "invalid");
  assertEquals(refuse(map, { kind: "set-copies", name: "wbe", copies: 2 }).code, "missing");
  assertEquals(refuse(map, { kind: "change-disk", name: "web", copies: 2 }).code, "invalid");
  assertEquals(refuse(map, { kind: "finish-copies", pool: 3 }).code, "stale");
  assertEquals(refuse(map, { kind: "finish-copies", pool: 99 }).code, "stale");
  const strict = step(map, { kind: "change-disk", name: "web", copiesMin: 3 }).map;
  const refused = refuse(strict, { kind: "set-copies", name: "web", copies: 2 });
  assertMatch(`${refused.message} ${refused.hint}`, /wait for 3 copies.*--copies-min 2/);
  map = setCopies(map, 2);
  assertEquals(refuse(map, { kind: "change-disk", name: "web", copiesMin: 3 }).code, "invalid");
  assertEquals(refuse(map, setTargets(map, own(map).id, [0, [1]])).code, "invalid");
  for (let i = 1; i <= MOVES_MAX; i++) {
    const name = `d${i}`;
    map = runAll(map, { kind: "create-disk", name, sizeBytes: 512, nowMs: 0, copies: 3 });
    const command = { kind: "set-copies", name, copies: 1 } as const;
    if (i < MOVES_MAX) map = step(map, command).map;
    else assertMatch(refuse(map, command).message, /^4 disks are getting/);
  }
  // More PGs, fewer at a time.
  let large = cluster(3, 3);
  for (let pgBits = 8; pgBits < 14; pgBits++) {
    large = runAll(large, { kind: "split-groups", pgBits });
  }
  large = runAll(
    setCopies(large, 2),
    { kind: "create-disk", name: "d", sizeBytes: 512, nowMs: 0, copies: 3 },
  );
  const refusedToo = refuse(large, { kind: "set-copies", name: "d", copies: 2 });
  assertMatch(refusedToo.message, /^one disk is getting/);
});

Deno.test("while the replicas are brought in line after an unclean end, it waits", () => {
  let map = placed(setCopies(placed(cluster(3, 2)), 3));
  const lease = { kind: "take-lease", id: 1, node: 1, incarnation: 1 } as const;
  map = runAll(map, lease, { kind: "force-release-lease", id: 1, generation: 1 }, lease);
  map = filled(map, own(map).id);
  assertMatch(reasonAgainstFinish(map, own(map))!, /brought in line/);
  assertEquals(refuse(map, { kind: "finish-copies", pool: own(map).id }).code, "busy");
  const done = step(map, { kind: "reconciled", id: 1, generation: 2 }).map;
  assertEquals(web(finish(done)).copies, 3);
  // Who has started again does not go on with it: whoever opens the disk next does.
  const again = step(map, nodeUp(1, { protocol: 2 })).map;
  assertEquals(web(finish(again)).copies, 3);
});

Deno.test("what was settled before a disk came, or while it was elsewhere, is not held against it", () => {
  const crashed = (map: ClusterMap, pool: number) => {
    for (const { id } of map.nodes) {
      map = step(map, nodeUp(id, { bootId: `b${map.epoch}`, protocol: 2 })).map;
    }
    const pgs = findPool(map, pool)!.pgs.map((_, index) => index);
    for (const each of map.pools.map(({ id }) => id)) {
      map = step(map, { kind: "unsettle", pool: each, pgs }).map;
      for (const { id: node, incarnation } of map.nodes) {
        map = step(map, { kind: "settled", pool: each, pgs, node, incarnation }).map;
      }
      map = filled(map, each);
    }
    return map;
  };
  const others = {
    kind: "create-disk",
    name: "other",
    sizeBytes: GIB,
    nowMs: 0,
    copies: 3,
  } as const;
  const settledOf = (map: ClusterMap) => {
    const { family, pgs } = poolOf(map, web(map))!;
    return settledEpochOf(web(map), pgs[0], family);
  };
  // All crash while it is on its way: it is held against it, also when it is there.
  let map = placed(setCopies(placed(runAll(placed(cluster(3, 2)), others)), 3));
  assertEquals(settledOf(map), 0);
  map = filled(crashed(map, own(map).id), own(map).id);
  const during = settledOf(map);
  assertEquals(during > 0, true);
  map = finish(map);
  // The newest of all its PGs stands for each.
  assertEquals([settledOf(map) >= during, settledOf(map)], [true, web(map).settledBefore]);
  const after = crashed(map, 3);
  assertEquals(settledOf(after), findPool(after, 3)!.pgs[0].settledEpoch);
  // Others had lost something where it comes to: that is their business.
  map = crashed(placed(runAll(placed(cluster(3, 2)), others)), 3);
  map = runAll(map, { kind: "delete-disk", name: "web" });
  const again = { kind: "create-disk", name: "web", sizeBytes: GIB, nowMs: 0, copies: 1 } as const;
  map = placed(setCopies(placed(runAll(map, again)), 3));
  map = finish(filled(map, own(map).id));
  assertEquals([settledOf(map), web(map).settledBefore], [web(map).settledBefore, 0]);
  assertEquals(findPool(map, 3)!.pgs[0].settledEpoch > 0, true);
});

Deno.test("more copies than nodes are as they are at the beginning: fewer nodes keep fewer", () => {
  let map = placed(setCopies(placed(cluster(2, 1)), 5));
  map = finish(filled(map, own(map).id));
  assertEquals([web(map).copies, copiesInSync(map).get(1)], [5, 2]);
  map = placed(setCopies(placed(cluster(1, 3)), 1));
  assertEquals(web(finish(map)).copies, 1);
});

Deno.test("counts and previews see where the data is and goes", () => {
  const map = placed(setCopies(placed(cluster(4, 2)), 3));
  const { total, degraded, belowMin, whole } = summarizeGroups(map);
  assertEquals([total, degraded, belowMin, whole], [256, 0, 0, 256]);
  assertEquals(copiesInSync(map).get(1), 2);
  const conditions = { usedBytes: new Map([[1, 1000]]), rateBytesPerSecond: null };
  const preview = unwrap(previewNodeChange(map, 4, { availability: "draining" }, conditions));
  assertEquals([preview.groupsImmovable, preview.movedReplicas > 0], [0, true]);
});
