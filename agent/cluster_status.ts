/**
 * What a cluster map alone says of its cluster, for the admin API. Pure.
 *
 * Whoever knows more (gossip, consensus, what nodes report) fills in the rest; what is here is honest by itself:
 * what the map cannot know is `unknown` or null.
 *
 * @module
 */

import type { ClusterStatus, NodeStatus, WaitingDisk } from "./http/backend.ts";
import type { ClusterMap, NodeEntry } from "./map/map.ts";

/**
 * The status of a cluster as far as its map goes.
 *
 * @param map the map now
 * @param self id of the node that is asked; 0: none of them
 * @param leader id of the node that leads; 0: none is known, and then there is no quorum
 *
 * @example
 * ```ts
 * import { clusterStatusOf } from "./cluster_status.ts";
 * import { EMPTY_MAP } from "./map/map.ts";
 *
 * if (clusterStatusOf(EMPTY_MAP, 0, 0).nodes.length !== 0) throw new Error("nobody is there yet");
 * ```
 */
export function clusterStatusOf(map: ClusterMap, self: number, leader: number): ClusterStatus {
  return {
    epoch: map.epoch,
    level: map.level,
    leader,
    hasQuorum: leader !== 0,
    voters: [...map.voters],
    nodes: map.nodes.map((node) => nodeStatusOf(map, node, { self, leader })),
    waiting: [],
    joining: [],
    notes: [],
  };
}

/** One node of a map, with nothing but what the map says of it. */
export function nodeStatusOf(
  map: ClusterMap,
  node: NodeEntry,
  { self, leader }: { readonly self: number; readonly leader: number },
): NodeStatus {
  return {
    id: node.id,
    name: node.name,
    address: node.address,
    zone: node.zone,
    state: node.state,
    availability: node.availability,
    witness: node.witness,
    isVoter: map.voters.includes(node.id),
    isLeader: node.id === leader,
    isSelf: node.id === self,
    version: node.version,
    levelMin: node.protocolMin,
    levelMax: node.protocol,
    incarnation: node.incarnation,
    weight: node.weight,
    capacityBytes: node.capacityBytes,
    usedBytes: null,
    paths: [],
    // Who answers is alive.
    gossip: node.id === self ? "alive" : "unknown",
    suspectedBecause: null,
    sinceMs: node.changedMs,
    joiningGroups: 0,
    chunksLeft: 0,
    flattenStuck: null,
    flattenBytesPerSecond: null,
    copyBytesPerSecond: null,
    secondsLeft: null,
    stuck: null,
    damagedBlocks: 0,
    isFull: false,
    hasLostLog: false,
    hasOtherLog: false,
    io: null,
    isProgramNew: null,
  };
}

/**
 * Says of a node that is drained what can be done with it.
 *
 * @param node its name
 */
export function drainedText(node: string): string {
  return `node ${node} is drained: 'kelpie node remove ${node}' takes it out of the cluster, ` +
    `'kelpie node undrain ${node}' gives it data again`;
}

/**
 * The disks of which requests wait, by name. A disk that has been deleted since a node said so is nobody's to wait for any more, and
 * has no name.
 *
 * @param reports by node: the ids of disks, each with a reason in words
 */
export function waitingDisks(
  map: Pick<ClusterMap, "disks">,
  reports: ReadonlyMap<
    number,
    { readonly waiting: readonly { readonly disk: number; readonly reason: string }[] }
  >,
): WaitingDisk[] {
  const names = new Map(map.disks.map(({ id, name }) => [id, name]));
  return [...reports].flatMap(([node, { waiting }]) =>
    waiting.flatMap(({ disk: id, reason }) => {
      const disk = names.get(id);
      return disk === undefined ? [] : [{ disk, node, reason }];
    })
  );
}
