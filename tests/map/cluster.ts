/**
 * Small clusters for tests of the map.
 *
 * @module
 */
import { assert, assertEquals } from "@std/assert/mod.js";
import { type ControlError, unwrap } from "../../agent/map/errors.ts";
import {
  type AddNode,
  type Applied,
  apply,
  checkMap,
  type ClusterMap,
  findPool,
  foundCluster,
  type LayerEntry,
  type MapCommand,
  type NodeUp,
  type PgEntry,
} from "../../agent/map/map.ts";

export function run(map: ClusterMap, command: MapCommand): Applied {
  return unwrap(apply(map, command));
}

export function runAll(map: ClusterMap, ...commands: MapCommand[]): ClusterMap {
  return commands.reduce((before, command) => run(before, command).map, map);
}

export function refuse(map: ClusterMap, command: MapCommand): ControlError {
  const result = apply(map, command);
  if (result.ok) throw new Error(`${JSON.stringify(command)} was not refused`);
  return result.error;
}

/** What node `number` says of itself; its boot is "boot". */
export function addNode(number: number, part: Partial<AddNode> = {}): AddNode {
  return {
    kind: "add-node",
    uuid: number.toString(16).padStart(32, "0"),
    name: `host-${number}`,
    address: `192.0.2.${number % 250 + 1}:7460`,
    zone: "",
    capacityBytes: 1e12,
    witness: false,
    version: "1.0.0",
    protocol: 1,
    bootId: "boot",
    nowMs: 1000,
    ...part,
  };
}

/** The next run of a node. */
export function nodeUp(node: number, part: Partial<NodeUp> = {}): NodeUp {
  return {
    kind: "node-up",
    node,
    bootId: "boot",
    clean: false,
    address: `192.0.2.${node % 250 + 1}:7460`,
    version: "1.0.0",
    protocol: 1,
    capacityBytes: 1e12,
    nowMs: 5000,
    ...part,
  };
}

/** A cluster of so many nodes, all up and in, with ids 1… */
export function clusterOf(count: number): ClusterMap {
  let map = unwrap(foundCluster({ ...addNode(1), clusterId: "c".repeat(32) }));
  for (let number = 2; number <= count; number++) map = run(map, addNode(number)).map;
  return map;
}

/** The same with a disk of so many copies, named "web", with id 1. */
export function clusterWithDisk(count: number, copies: number): ClusterMap {
  const create = {
    kind: "create-disk",
    name: "web",
    sizeBytes: 2 ** 30,
    nowMs: 0,
    copies,
  } as const;
  return run(clusterOf(count), create).map;
}

/** New targets by PG, for the map as it is. */
export function setTargets(
  map: ClusterMap,
  pool: number,
  ...changes: (readonly [number, readonly number[]])[]
): MapCommand {
  return { kind: "set-targets", pool, basedOnTargetsEpoch: map.targetsEpoch, changes };
}

/** A PG of a map that has one pool. */
export function group(map: ClusterMap, index = 0): PgEntry {
  return map.pools[0].pgs[index];
}

/** Throws when somebody writes to the map. */
export function freeze(map: ClusterMap): ClusterMap {
  const deep = (value: unknown): void => {
    if (typeof value !== "object" || value === null || Object.isFrozen(value)) return;
    Object.freeze(value);
    for (const each of Object.values(value)) deep(each);
  };
  deep(map);
  return map;
}

/** The same cluster once every node speaks level 2, and the map, too. */
export function atLevelTwo(map: ClusterMap): ClusterMap {
  const nodes = map.nodes.map((node) => ({ ...node, protocol: 2 }));
  return run({ ...map, nodes }, { kind: "raise-level", level: 2 }).map;
}

/** A cluster of so many nodes at level 2, with disks of these names: ids 1…, 1 GiB, two copies or fewer. */
export function clusterAtLevelTwo(count: number, ...names: string[]): ClusterMap {
  const copies = Math.min(count, 2);
  return runAll(
    atLevelTwo(clusterOf(count)),
    ...names.map((name) =>
      ({ kind: "create-disk", name, sizeBytes: 2 ** 30, nowMs: 0, copies }) as const
    ),
  );
}

/**
 * Applies a command to a map that nobody may write to, and checks what holds of every change: the map keeps its invariants, and
 * effects speak of the disks as they are now.
 */
export function step(map: ClusterMap, command: MapCommand): Applied {
  const applied = run(freeze(map), command);
  checkApplied(map, applied);
  return applied;
}

/** See {@linkcode step}. */
export function checkApplied(before: ClusterMap, { map, effects }: Applied): void {
  assertEquals(map.epoch - before.epoch, map === before ? 0 : 1);
  assertEquals(checkMap(map), null);
  const layers = new Set(map.layers.map(({ id }) => id));
  for (const effect of effects) {
    if (effect.kind === "layer-created") assert(layers.has(effect.layer));
    if (effect.kind === "layer-dropped") assert(!layers.has(effect.layer));
    if (!("disk" in effect) || effect.kind === "disk-removed") continue;
    const { disk } = effect;
    assertEquals(disk, map.disks.find(({ id }) => id === disk.id), effect.kind);
  }
  const dropped = effects.flatMap((effect) =>
    effect.kind === "layer-dropped" ? [effect.layer] : []
  );
  const gone = before.layers.filter(({ id }) => !layers.has(id)).map(({ id }) => id);
  assertEquals(dropped, gone, "every layer that is gone is said to be, once");
  const created = effects.flatMap((effect) =>
    effect.kind === "layer-created" ? [effect.layer] : []
  );
  const isNew = map.layers.filter(({ id }) => id >= before.nextLayer).map(({ id }) => id);
  assertEquals(created, isNew, "every layer that is new is said to be, once");
}

/** Everybody who is wanted in a pool and not there joins, and has everything. */
export function filled(map: ClusterMap, pool: number): ClusterMap {
  for (const { id: node, incarnation, state } of map.nodes) {
    if (state === "down") continue;
    const pgs = (isThere: (pg: PgEntry) => boolean) =>
      findPool(map, pool)!.pgs.flatMap((pg, index) => isThere(pg) ? [index] : []);
    const missing = pgs((pg) =>
      pg.target.includes(node) && !pg.inSync.includes(node) && !pg.joining.includes(node)
    );
    if (missing.length > 0) {
      map = step(map, { kind: "start-joining", pool, pgs: missing, node, incarnation }).map;
    }
    const joining = pgs((pg) => pg.joining.includes(node));
    if (joining.length === 0) continue;
    const report = { pool, pgs: joining, node, incarnation, basedOnEpoch: map.epoch } as const;
    map = step(map, { kind: "in-sync", ...report }).map;
  }
  return map;
}

/** The child that a layer is absorbed into; undefined where it is not being absorbed. */
export function absorberOf(map: ClusterMap, id: number): LayerEntry | undefined {
  const layer = map.layers.find((each) => each.id === id);
  return layer?.absorbedBy == null ? undefined : map.layers.find(({ parent }) => parent === id);
}
