/**
 * Small clusters for tests of the map.
 *
 * @module
 */
import { type ControlError, unwrap } from "../../agent/map/errors.ts";
import {
  type AddNode,
  type Applied,
  apply,
  type ClusterMap,
  foundCluster,
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
