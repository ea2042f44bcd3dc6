/**
 * Random histories of a cluster: every kind of command, sensible and not, and after each of them the
 * invariants of the map.
 *
 * @module
 */
import { assert, assertEquals } from "@std/assert/mod.js";
import { Prng } from "../../agent/base/prng.ts";
import { unwrap } from "../../agent/map/errors.ts";
import {
  apply,
  type Availability,
  checkMap,
  type ClusterMap,
  drainingLayer,
  findNode,
  hasDisks,
  type MapCommand,
  members,
  poolOf,
  settlerOf,
  takingOf,
  zonesOf,
} from "../../agent/map/map.ts";
import { decodeMap, encodeMap } from "../../agent/map/map_codec.ts";
import { addNode, atLevelTwo, checkApplied, clusterOf, freeze, nodeUp, runAll } from "./cluster.ts";

const SEEDS = 15;
const STEPS = 350;
/** Zones that nodes come to be in. */
const ZONES = ["a", "b"];

/** The present run of a node that is known, or else the other one. */
function runOf(map: ClusterMap, id: number, node: number, incarnation: number) {
  const known = findNode(map, id);
  return known === undefined ? { node, incarnation } : { node: id, incarnation: known.incarnation };
}

/** Something that could be asked, about what there is or close to it. */
function randomCommand(random: Prng, map: ClusterMap): MapCommand {
  const pick = <T>(list: readonly T[]): T => list[random.below(list.length)];
  const chance = (one: number) => random.below(one) === 0;
  const name = `d${random.below(4)}`;
  const entry = pick(map.nodes);
  const node = chance(30) ? random.below(20) : entry.id;
  const incarnation = entry.incarnation - (chance(8) ? 1 : 0);
  const pool = chance(20) || map.pools.length === 0 ? 1 + random.below(5) : pick(map.pools).id;
  const pgCount = map.pools[0]?.pgs.length ?? 256;
  const pgs = chance(10)
    ? Array.from({ length: pgCount }, (_, index) => index)
    : [random.below(3), random.below(3)];
  const group = map.pools.find((each) => each.id === pool)?.pgs[pgs[0]];
  const id = map.disks.length > 0 ? pick(map.disks).id : 1;
  const generation = (map.disks.find((disk) => disk.id === id)?.generation ?? 1) -
    (chance(6) ? 1 : 0);
  const nowMs = random.u32();
  const list = Array.from({ length: 1 + random.below(3) }, () => pick(map.nodes).id);
  if (chance(3)) return randomSnapshotCommand(random, map);
  const zones = ZONES.filter(() => chance(2));
  if (chance(10) && map.disks.length > 0) {
    const disk = pick(map.disks);
    const { name } = disk;
    if (!chance(3)) {
      const own = map.pools.filter(({ family }) => family !== 0);
      return { kind: "finish-copies", pool: own.length > 0 ? pick(own).id : 9 };
    }
    const copies = chance(2) ? disk.copies : 1 + random.below(3);
    if (chance(3)) return { kind: "set-copies", name, copies };
    return { kind: "set-copies", name, copies, zones: chance(3) ? zonesOf(map, disk) : zones };
  }
  switch (random.below(35)) {
    case 0:
    case 1: {
      const copies = 1 + random.below(3);
      const where = chance(2) ? {} : { zones };
      return { kind: "create-disk", name, sizeBytes: 512, nowMs, copies, ...where };
    }
    case 2:
      return { kind: "delete-disk", name };
    case 3:
      return { kind: "change-disk", name, readOnly: chance(2) };
    case 4:
    case 5:
      return { kind: "take-lease", id, node, incarnation };
    case 6:
      return { kind: "release-lease", id, node, generation };
    case 7:
      return { kind: "force-release-lease", id, generation };
    case 8:
      return { kind: "reconciled", id, generation };
    case 9:
      return { kind: "change-settings", copiesMin: chance(2) ? null : 1 + random.below(6) };
    case 10:
      return addNode(1 + random.below(12), { name: "host", witness: chance(6), protocol: 2 });
    case 11:
    case 12:
    case 13: {
      const down = map.nodes.find((each) => each.state === "down")?.id ?? node;
      const bootId = chance(3) ? `b${random.below(3)}` : "boot";
      return nodeUp(chance(4) ? node : down, { bootId, clean: chance(4), protocol: 2 });
    }
    case 14:
      return { kind: "drop-unclean", pool, pgs, node: group?.unclean[0] ?? node };
    case 15:
      return { kind: "node-down", node, incarnation, nowMs };
    case 16:
      return { kind: "node-leave", node, incarnation, nowMs };
    case 17:
      return { kind: "drop-member", node, incarnation, by: pick(map.nodes).id, nowMs };
    case 18:
      return {
        kind: "set-availability",
        node,
        availability: pick<Availability>(["in", "out", "draining"]),
      };
    case 19:
      return { kind: "set-weight", node, weight: chance(2) ? null : random.below(9) };
    case 20:
      if (!chance(4)) return { kind: "trim", pool, pgs };
      return { kind: "remove-node", node, nowMs, force: !chance(3), acceptLoss: chance(2) };
    case 21:
      return { kind: "set-voters", voters: list };
    case 22:
      return { kind: "drop-unclean", pool, pgs, node: group?.unclean[0] ?? node };
    case 23:
      return { kind: "unsettle", pool, pgs };
    case 24:
    case 25: {
      const settler = group === undefined ? 0 : settlerOf(map, group);
      return { kind: "settled", pool, pgs, ...runOf(map, settler, node, incarnation) };
    }
    case 26:
    case 27: {
      // Now and then fewer of those who are in sync, so that others can be trimmed.
      const wanted = chance(2) && group !== undefined
        ? group.inSync.slice(0, 1)
        : [...new Set(list)].slice(0, pool);
      const changes = pgs.map((pg) => [pg, wanted] as const);
      const basedOnTargetsEpoch = map.targetsEpoch - (chance(10) ? 1 : 0);
      return { kind: "set-targets", pool, basedOnTargetsEpoch, changes };
    }
    case 28:
    case 29: {
      const missing = group?.target.find((each) => !members(group).includes(each)) ?? 0;
      return { kind: "start-joining", pool, pgs, ...runOf(map, missing, node, incarnation) };
    }
    case 30:
    case 31: {
      const basedOnEpoch = map.epoch - (chance(4) ? 5 : 0);
      const joiner = runOf(map, group?.joining[0] ?? 0, node, incarnation);
      return { kind: "in-sync", pool, pgs, ...joiner, basedOnEpoch };
    }
    case 32:
      return { kind: "trim", pool, pgs };
    case 33:
      return { kind: "set-zone", node, zone: pick([...ZONES, ""]) };
    default:
      return { kind: "split-groups", pgBits: chance(10) ? map.pgBits : 9 };
  }
}

/** The same about snapshots and what belongs to them. */
function randomSnapshotCommand(random: Prng, map: ClusterMap): MapCommand {
  const pick = <T>(list: readonly T[]): T => list[random.below(list.length)];
  const chance = (one: number) => random.below(one) === 0;
  const entry = map.disks.length > 0 ? pick(map.disks) : undefined;
  const disk = entry?.name ?? "d0";
  const snapshot = entry !== undefined && entry.snapshots.length > 0
    ? pick(entry.snapshots).name
    : "none";
  const trashed = map.trash.length > 0 ? pick(map.trash).disk.id : 1;
  const name = `d${random.below(6)}`;
  const nowMs = random.u32();
  const begun = map.disks.map(takingOf).filter((each) => each !== undefined);
  switch (random.below(20)) {
    case 0:
    case 1:
    case 2: {
      const ids = map.disks.filter(() => chance(2)).map(({ id }) => id);
      return { kind: "create-snapshots", disks: ids, name: `s${random.below(9)}`, nowMs };
    }
    case 3: {
      const waiting = map.disks.filter((each) => drainingLayer(each) !== 0);
      const { id, generation } = waiting.length > 0 ? pick(waiting) : { id: 1, generation: 1 };
      const layer = map.disks.find((each) => each.id === id)?.layers[1] ?? 0;
      return { kind: "snapshot-taken", id, layer, generation: generation - (chance(8) ? 1 : 0) };
    }
    case 4:
      return { kind: "abort-snapshots", taking: begun.length > 0 ? pick(begun)!.taking : 1 };
    case 5:
    case 6:
      return { kind: "delete-snapshot", disk, name: snapshot };
    case 7:
      return { kind: "change-snapshot", disk, name: snapshot, isProtected: chance(4) };
    case 8:
      return { kind: "clone-disk", disk, snapshot, name, nowMs };
    case 9:
      return { kind: "rollback-disk", disk, snapshot, nowMs };
    case 10:
      return { kind: "change-snapshot", disk, name: snapshot, isProtected: false };
    case 11: {
      // Mostly one of which a snapshot is being taken.
      const victims = map.disks.filter((each) => takingOf(each) !== undefined);
      const victim = victims.length > 0 && !chance(3) ? pick(victims).name : disk;
      return chance(2)
        ? { kind: "delete-disk", name: victim, trashedMs: nowMs }
        : chance(4)
        ? { kind: "delete-disk", name: victim }
        : { kind: "restore-disk", id: trashed, name };
    }
    case 12:
      return chance(2) ? { kind: "purge-disk", id: trashed } : {
        kind: "set-schedule",
        disk,
        name: `s${random.below(9)}`,
        everyMs: 60_000,
        keep: 1 + random.below(3),
        keepDaily: 0,
        keepWeekly: 0,
        keepMonthly: 0,
        nowMs,
      };
    case 13:
      return { kind: "delete-schedule", disk, name: `s${random.below(9)}` };
    case 14:
    case 15:
      return { kind: "flatten-disk", disk, ...(chance(6) ? { cancel: true } : {}) };
    case 16:
    case 17: {
      const { id: node, incarnation } = pick(map.nodes);
      const layers = map.layers.filter(({ flatten }) => flatten !== undefined)
        .map(({ id }) => id);
      return { kind: "flattened", node, incarnation, layers, epoch: map.epoch - random.below(3) };
    }
    default: {
      const { id: node, incarnation } = pick(map.nodes);
      const layers = map.layers.filter(({ absorbedBy }) => absorbedBy !== null);
      return { kind: "absorbed", node, incarnation, layers: layers.map(({ id }) => id) };
    }
  }
}

/** Nobody is left "taking": one who gets each disk and says that it has drained is all that it needs. */
function finishSnapshots(map: ClusterMap): ClusterMap {
  const node = map.nodes.find((each) => each.state === "up" && !each.witness);
  if (node === undefined) return map;
  for (const { id } of map.disks) {
    const disk = map.disks.find((each) => each.id === id)!;
    const layer = drainingLayer(disk);
    if (layer === 0) continue;
    map = runAll(
      map,
      { kind: "force-release-lease", id, generation: disk.generation },
      { kind: "take-lease", id, node: node.id, incarnation: node.incarnation },
      { kind: "snapshot-taken", id, layer, generation: disk.generation + 1 },
    );
    assertEquals(checkMap(map), null);
  }
  assertEquals(map.disks.map(takingOf).filter((each) => each !== undefined), []);
  return map;
}

/**
 * Of every PG of a pool with disks somebody who was in sync still is, unless the loss was accepted, or who was is down and another
 * one has come in sync; and nobody is in sync who was no member.
 */
function checkGroups(before: ClusterMap, after: ClusterMap, command: MapCommand): void {
  const isAccepted = after.losses.length > 0 && after.losses.at(-1)!.epoch === after.epoch;
  checkMoves(before, after);
  for (const { id, pgs } of before.pools) {
    const next = after.pools.find((pool) => pool.id === id);
    if (next === undefined || next.pgs === pgs || !hasDisks(before, id)) continue;
    for (const [index, pg] of next.pgs.entries()) {
      const old = pgs[index % pgs.length];
      if (pg === old) continue;
      const what = `PG ${index} of pool ${id}`;
      const strangers = pg.inSync.filter((id) =>
        !old.inSync.includes(id) &&
        !(command.kind === "in-sync" && command.node === id && old.joining.includes(id))
      );
      const isDown = (id: number) => before.nodes.find((node) => node.id === id)?.state === "down";
      // Who has just come in sync has all that the one had that is down.
      const isKept = pg.inSync.some((id) => old.inSync.includes(id)) ||
        (command.kind === "in-sync" && old.inSync.every(isDown));
      assert(isKept && strangers.length === 0 || isAccepted, what);
      const isSame = ["inSync", "joining", "unclean", "unsettled"].every((field) =>
        String(pg[field as "inSync"]) === String(old[field as "inSync"])
      );
      assert(isSame || pg.changedEpoch === after.epoch, `${what} changed without an epoch`);
    }
  }
}

/** A disk that goes to another pool comes to nobody who lacks its data, and nobody who knows no better is believed there. */
function checkMoves(before: ClusterMap, after: ClusterMap): void {
  for (const disk of before.disks) {
    const now = after.disks.find(({ id }) => id === disk.id);
    const [old, next] = [poolOf(before, disk)!, now === undefined ? undefined : poolOf(after, now)];
    if (next === undefined || next.id === old.id) continue;
    assertEquals(next.pgs.length, old.pgs.length);
    for (const [index, { inSync, joining, changedEpoch }] of next.pgs.entries()) {
      const had = old.pgs[index];
      const heirs = next.family === 0 ? [...inSync, ...joining] : inSync;
      assert(heirs.every((id) => had.inSync.includes(id)), `PG ${index} of ${disk.name}`);
      assertEquals(changedEpoch, after.epoch);
    }
  }
}

Deno.test("random histories of a cluster keep every invariant after every command", () => {
  const counts = new Map<string, number>();
  let [zoned, moving] = [0, 0];
  for (let seed = 1; seed <= SEEDS; seed++) {
    const random = new Prng(seed);
    let map = freeze(runAll(atLevelTwo(clusterOf(4)), { kind: "set-zone", node: 1, zone: "a" }));
    for (let step = 0; step < STEPS; step++) {
      const command = randomCommand(random, map);
      try {
        const result = apply(map, command);
        if (!result.ok) continue;
        const { map: next, effects } = result.value;
        assertEquals(next.epoch - map.epoch, next === map ? 0 : 1);
        if (next === map) {
          assertEquals(effects, []);
          continue;
        }
        counts.set(command.kind, (counts.get(command.kind) ?? 0) + 1);
        zoned += next.disks.filter((disk) => zonesOf(next, disk).length > 0).length;
        moving += next.pools.filter(({ family }) => family !== 0).length;
        checkApplied(map, result.value);
        checkGroups(map, next, command);
        map = freeze(next);
      } catch (error) {
        const what = `seed ${seed} step ${step} ${JSON.stringify(command).slice(0, 200)}`;
        throw new Error(`${what}: ${(error as Error).message}`, { cause: error });
      }
    }
    assertEquals(unwrap(decodeMap(unwrap(encodeMap(map)))), map, `seed ${seed}`);
    finishSnapshots(map);
  }
  // Every kind of command that is made here has changed something, or the test would have shown less than it says.
  assertEquals(counts.size, 42, [...counts.keys()].toSorted().join());
  assert(zoned > 300 && moving > 200, `${zoned} ${moving}`);
});
