/**
 * Commands about nodes, and how a cluster begins.
 *
 *     foundCluster ─┐                  ┌── node-up ──┐ (another incarnation)
 *     adopt ────────┴─▶ up, in  ◀──────┘             │
 *     add-node ────────▶   │ ▲ ── node-down, node-leave ──▶ down
 *                          └─┴── drop-member, lose-groups: leaves PGs, stays up
 *     any ── set-availability ──▶ in, out, draining          ── remove-node ──▶ forgotten
 *
 * What happens to PGs is in `groups.ts`. Commands about a run of a node name its incarnation and are
 * stale when it has started again: gossip that confirms the death of the run before, late, changes
 * nothing.
 *
 * `add-node` is idempotent by uuid: who retries it without knowing whether it came through finds itself
 * there. `node-up` is not: it is counted, and made exactly-once by the number of its proposal
 * (`proposals.ts`).
 *
 * Who may become a voter is consensus' business; the map only mirrors it, and keeps voters from being
 * removed.
 *
 * @module
 */

import { changed, stale, unchanged } from "./change.ts";
import { failure, type Result, success } from "./errors.ts";
import {
  checkAddress,
  checkBootId,
  checkCapacity,
  checkFacts,
  checkNodeName,
  checkTime,
  checkUuid,
  checkVersion,
  checkWeight,
  checkZone,
  isLevel,
} from "./fields.ts";
import {
  checkGroupBits,
  isNamed,
  poolOnOneNode,
  poolsAfterLoss,
  poolsAfterStart,
  poolsWithoutMember,
  poolsWithoutNode,
} from "./groups.ts";
import { collectLayers } from "./layers.ts";
import { commonLevel, levelErrorIn } from "./levels.ts";
import {
  type AddNode,
  type Applied,
  type Availability,
  type ClusterMap,
  type DropMember,
  EMPTY_MAP,
  ID_MAX,
  type LoseGroups,
  type LossEntry,
  LOSSES_MAX,
  type MapEffect,
  NODE_ID_MAX,
  NODE_NAME_LENGTH_MAX,
  type NodeCommand,
  type NodeDown,
  type NodeEntry,
  type NodeFacts,
  type NodeLeave,
  NODES_MAX,
  type NodeUp,
  type RaiseLevel,
  type RemoveNode,
  type SetAvailability,
  type SetVoters,
  type SetWeight,
  type SetZone,
  VOTERS_MAX,
} from "./model.ts";
import { findNode, findNodeByName, findNodeByUuid, nodeMissing, withoutLease } from "./queries.ts";

/** Carries out a command about nodes; see `apply`. */
export function applyNodeCommand(map: ClusterMap, command: NodeCommand): Result<Applied> {
  if (command.kind === "add-node") return addNode(map, command);
  if (command.kind === "set-voters") return setVoters(map, command);
  if (command.kind === "raise-level") return raiseLevel(map, command);
  const node = findNode(map, command.node);
  if (node === undefined) return { ok: false, error: nodeMissing(command.node) };
  switch (command.kind) {
    case "node-up":
      return nodeUp(map, node, command);
    case "node-down":
    case "node-leave":
      return nodeDown(map, node, command);
    case "drop-member":
      return dropMember(map, node, command);
    case "lose-groups":
      return loseGroups(map, node, command);
    case "set-availability":
      return setAvailability(map, node, command);
    case "set-weight":
      return setWeight(map, node, command);
    case "set-zone":
      return setZone(map, node, command);
    case "remove-node":
      return removeNode(map, node, command);
  }
}

// --------------------------------------------------------------------------------------- beginning

/** Who founds or adopts a cluster. */
export interface Founder extends NodeFacts {
  /** Identity of the cluster: 32 hexadecimal digits. */
  readonly clusterId: string;
}

/**
 * The map of a new cluster of one: its node has id 1, is up with incarnation 1, and votes alone.
 *
 * @param founder what that node says of itself
 * @returns the map, or an error with code `invalid`
 *
 * @example
 * ```ts
 * import { foundCluster } from "./nodes.ts";
 *
 * const result = foundCluster({
 *   clusterId: "c".repeat(32),
 *   uuid: "a".repeat(32),
 *   name: "host-1",
 *   address: "192.0.2.1:7460",
 *   zone: "",
 *   capacityBytes: 1e12,
 *   witness: false,
 *   version: "1.0.0",
 *   protocol: 1,
 *   bootId: "",
 *   nowMs: 0,
 * });
 * if (!result.ok || result.value.nodes[0].id !== 1) throw new Error("the first node has id 1");
 * ```
 */
export function foundCluster(founder: Founder): Result<ClusterMap> {
  return adopt(EMPTY_MAP, founder);
}

/**
 * Makes a map without nodes (version 1: a store of one host) that of a cluster of one. All disks are on
 * that node, in sync and settled.
 *
 * @param map stays as it is; one that has nodes is given back
 * @param founder what the node that has the store says of itself
 * @returns the map, or an error with code `invalid`
 */
export function adopt(map: ClusterMap, founder: Founder): Result<ClusterMap> {
  if (map.nodes.length > 0) return success(map);
  const error = checkUuid(founder.clusterId) ?? checkFacts(founder) ?? checkTime(founder.nowMs);
  if (error !== null) return { ok: false, error };
  if (founder.witness && map.disks.length > 0) {
    return failure("invalid", "a node that has disks cannot be a witness");
  }
  const epoch = map.epoch + 1;
  const node = nodeOf(map, founder);
  const copies = [...new Set(map.disks.map((disk) => disk.copies))].toSorted((a, b) => a - b);
  return success({
    ...map,
    epoch,
    // Alone it speaks what it can.
    level: Math.max(map.level, founder.protocol),
    clusterId: founder.clusterId,
    nextNode: node.id + 1,
    nodes: [node],
    voters: [node.id],
    targetsEpoch: epoch,
    pools: copies.map((each) => poolOnOneNode(each, map.pgBits, node.id, epoch)),
    disks: map.disks.map((disk) => ({ ...disk, lease: null, settled: disk.generation })),
  });
}

// ---------------------------------------------------------------------------------------- commands

function addNode(map: ClusterMap, command: AddNode): Result<Applied> {
  const error = checkFacts(command) ?? checkTime(command.nowMs);
  if (error !== null) return { ok: false, error };
  if (map.nodes.length === 0) {
    return failure("unavailable", "there is no cluster yet that a node could be added to");
  }
  if (findNodeByUuid(map, command.uuid) !== undefined) return unchanged(map);
  const problem = levelErrorIn(map, command);
  if (problem !== null) return { ok: false, error: problem };
  if (map.nodes.length >= NODES_MAX) {
    return failure("limit", `there are ${NODES_MAX} nodes, which is the most`);
  }
  if (map.nextNode > NODE_ID_MAX) {
    return failure("limit", `all ${NODE_ID_MAX} node ids have been used`);
  }
  const node = nodeOf(map, command);
  return changed(map, {
    nextNode: node.id + 1,
    nodes: [...map.nodes, node],
    targetsEpoch: map.epoch + 1,
  });
}

function nodeUp(map: ClusterMap, node: NodeEntry, command: NodeUp): Result<Applied> {
  const name = command.name ?? node.name;
  const lost = command.lost ?? [];
  const error = checkGroupBits(lost) ?? checkBootId(command.bootId) ??
    checkAddress(command.address) ?? checkVersion(command) ??
    checkCapacity(command.capacityBytes) ?? checkNodeName(name) ?? checkTime(command.nowMs) ??
    levelErrorIn(map, command);
  if (error !== null) return { ok: false, error };
  if (node.incarnation >= ID_MAX) {
    return failure("limit", `node ${node.name} has used all ${ID_MAX} incarnations`);
  }
  const { bootId, address, version, protocolMin = 1, protocol, capacityBytes } = command;
  const next: NodeEntry = {
    ...node,
    name: uniqueName(map, name, node.id),
    address,
    version,
    protocolMin,
    protocol,
    capacityBytes,
    bootId,
    state: "up",
    incarnation: node.incarnation + 1,
    changedMs: node.state === "up" ? node.changedMs : command.nowMs,
  };
  const keptAll = command.clean || (bootId !== "" && bootId === node.bootId);
  const isHeavier = capacityBytes !== node.capacityBytes && node.weight === null;
  let before: ClusterMap = { ...map, pools: poolsAfterLoss(map, node.id, lost) };
  // Whoever else is in sync says what those writes are; it takes a comparison of stamps. Otherwise there is nobody to ask.
  if (keptAll && command.torn === true) {
    before = { ...before, pools: poolsWithoutMember(before, node.id, true) };
  }
  return changed(map, {
    nodes: withNode(map, next),
    pools: poolsAfterStart(before, node.id, keptAll),
    targetsEpoch: isHeavier ? map.epoch + 1 : map.targetsEpoch,
  });
}

function nodeDown(
  map: ClusterMap,
  node: NodeEntry,
  command: NodeDown | NodeLeave,
): Result<Applied> {
  const error = checkTime(command.nowMs);
  if (error !== null) return { ok: false, error };
  if (command.incarnation !== node.incarnation) return otherRun(node);
  if (node.state === "down") return unchanged(map);
  return changed(map, {
    nodes: withNode(map, { ...node, state: "down", changedMs: command.nowMs }),
    pools: poolsWithoutMember(map, node.id, false),
  });
}

/**
 * Unlike `node-down` this takes nobody away from members that are all unclean: the node is alive, and has
 * what they lost.
 */
function dropMember(map: ClusterMap, node: NodeEntry, command: DropMember): Result<Applied> {
  const error = checkTime(command.nowMs);
  if (error !== null) return { ok: false, error };
  const by = findNode(map, command.by);
  if (by === undefined) return { ok: false, error: nodeMissing(command.by) };
  if (by.id === node.id) return failure("invalid", `node ${node.name} cannot drop itself`);
  if (by.state !== "up") return stale(`node ${by.name} is down itself`);
  if (command.incarnation !== node.incarnation) return otherRun(node);
  const pools = poolsWithoutMember(map, node.id, true);
  if (pools === map.pools) return unchanged(map);
  return changed(map, {
    nodes: withNode(map, { ...node, changedMs: command.nowMs }),
    pools,
  });
}

function loseGroups(map: ClusterMap, node: NodeEntry, command: LoseGroups): Result<Applied> {
  const { lost, capacityBytes } = command;
  const error = checkGroupBits(lost) ?? checkCapacity(capacityBytes);
  if (error !== null) return { ok: false, error };
  if (command.incarnation !== node.incarnation) return otherRun(node);
  const pools = poolsAfterLoss(map, node.id, lost);
  const isLighter = capacityBytes !== node.capacityBytes;
  if (pools === map.pools && !isLighter) return unchanged(map);
  return changed(map, {
    nodes: isLighter ? withNode(map, { ...node, capacityBytes }) : map.nodes,
    pools,
    targetsEpoch: isLighter && node.weight === null ? map.epoch + 1 : map.targetsEpoch,
  });
}

function setAvailability(
  map: ClusterMap,
  node: NodeEntry,
  command: SetAvailability,
): Result<Applied> {
  const { availability } = command;
  if (!AVAILABILITIES.includes(availability)) {
    return failure("invalid", `a node cannot be ${JSON.stringify(availability)}`);
  }
  if (availability === node.availability) return unchanged(map);
  return reweighed(map, { ...node, availability }, command);
}

function setWeight(map: ClusterMap, node: NodeEntry, command: SetWeight): Result<Applied> {
  const { weight } = command;
  const error = checkWeight(weight);
  if (error !== null) return { ok: false, error };
  return weight === node.weight ? unchanged(map) : reweighed(map, { ...node, weight }, command);
}

function setZone(map: ClusterMap, node: NodeEntry, command: SetZone): Result<Applied> {
  const { zone } = command;
  const error = checkZone(zone);
  if (error !== null) return { ok: false, error };
  return zone === node.zone ? unchanged(map) : reweighed(map, { ...node, zone }, command);
}

function removeNode(map: ClusterMap, node: NodeEntry, command: RemoveNode): Result<Applied> {
  const error = checkTime(command.nowMs);
  if (error !== null) return { ok: false, error };
  if (map.nodes.length === 1) {
    return failure("invalid", `node ${node.name} is the only one`);
  }
  if (map.voters.includes(node.id)) {
    return failure(
      "busy",
      `node ${node.name} votes`,
      "wait until the cluster has replaced it as a voter",
    );
  }
  return command.force === true ? forgetNode(map, node, command) : dismissNode(map, node);
}

/** Nothing is on it, and nothing is lost. */
function dismissNode(map: ClusterMap, node: NodeEntry): Result<Applied> {
  if (isNamed(map, node.id)) {
    return failure(
      "busy",
      `node ${node.name} still has data, or shall get some`,
      "drain it first, or use --force when it will not come back",
    );
  }
  const held = map.disks.find((disk) => disk.lease?.node === node.id);
  if (held !== undefined) {
    return failure(
      "busy",
      `disk ${held.name} is open on node ${node.name}`,
      "stop the guest first",
    );
  }
  const nodes = map.nodes.filter((each) => each !== node);
  // Layers that only this one had not absorbed yet are done with.
  const collected = collectLayers({ ...map, nodes });
  return changed(map, {
    ...collected.fields,
    nodes,
    targetsEpoch: map.epoch + 1,
  }, collected.effects);
}

/** It will not come back, whatever is on it. */
function forgetNode(map: ClusterMap, node: NodeEntry, command: RemoveNode): Result<Applied> {
  if (node.state === "up") {
    return failure("busy", `node ${node.name} is up`, "stop its agent first, or drain it");
  }
  const forgotten = poolsWithoutNode(map, node.id);
  if (forgotten === null) {
    return failure("unavailable", `no node that is up could take over from node ${node.name}`);
  }
  if (forgotten.lost.length > 0 && command.acceptLoss !== true) {
    const count = forgotten.lost.reduce((sum, each) => sum + each.pgs, 0);
    return failure(
      "invalid",
      `node ${node.name} has the only complete copy of ${count} placement groups, ` +
        "whose data would be lost",
      "start the node again; only if that cannot be done, accept the loss with 'acceptLoss'",
    );
  }
  const losses = forgotten.lost.map((each): LossEntry => ({
    ...each,
    epoch: map.epoch + 1,
    nowMs: command.nowMs,
    node: node.id,
    name: node.name,
  }));
  const nodes = map.nodes.filter((each) => each !== node);
  const disks = map.disks.map((disk) =>
    disk.lease?.node === node.id ? withoutLease(map, disk) : disk
  );
  // Layers that only this one had not absorbed yet are done with.
  const collected = collectLayers({ ...map, nodes, disks });
  const effects: MapEffect[] = [];
  for (const [index, { lease }] of map.disks.entries()) {
    if (lease?.node !== node.id) continue;
    effects.push({ kind: "lease-released", disk: collected.fields.disks[index], previous: lease });
  }
  for (const loss of losses) effects.push({ kind: "groups-lost", loss });
  effects.push(...collected.effects);
  return changed(map, {
    ...collected.fields,
    nodes,
    targetsEpoch: map.epoch + 1,
    pools: forgotten.pools,
    losses: [...map.losses, ...losses].slice(-LOSSES_MAX),
  }, effects);
}

function raiseLevel(map: ClusterMap, { level }: RaiseLevel): Result<Applied> {
  if (!isLevel(level)) return failure("invalid", `${level} cannot be a level`);
  if (level <= map.level) return unchanged(map);
  const common = commonLevel(map);
  return level <= common
    ? changed(map, { level })
    : stale(`not every node speaks level ${level}: ${common} is the newest that all do`);
}

function setVoters(map: ClusterMap, command: SetVoters): Result<Applied> {
  if (command.voters.length < 1 || command.voters.length > VOTERS_MAX) {
    return failure("invalid", `there cannot be ${command.voters.length} voters`);
  }
  const stranger = command.voters.find((id) => findNode(map, id) === undefined);
  if (stranger !== undefined) return { ok: false, error: nodeMissing(stranger) };
  const voters = command.voters.toSorted((a, b) => a - b);
  if (new Set(voters).size < voters.length) return failure("invalid", "a voter is named twice");
  const isSame = voters.length === map.voters.length &&
    voters.every((id, index) => id === map.voters[index]);
  return isSame ? unchanged(map) : changed(map, { voters });
}

// ------------------------------------------------------------------------------------------- parts

const AVAILABILITIES: readonly Availability[] = ["in", "out", "draining"];

function nodeOf(map: ClusterMap, facts: NodeFacts): NodeEntry {
  return {
    id: map.nextNode,
    uuid: facts.uuid,
    name: uniqueName(map, facts.name, 0),
    address: facts.address,
    zone: facts.zone,
    capacityBytes: facts.capacityBytes,
    weight: null,
    witness: facts.witness,
    state: "up",
    availability: "in",
    incarnation: 1,
    bootId: facts.bootId,
    version: facts.version,
    protocolMin: facts.protocolMin ?? 1,
    protocol: facts.protocol,
    requestSequence: 0,
    changedMs: facts.nowMs,
  };
}

/** The name, or with the lowest number behind it that nobody else has: at most all others have one. */
function uniqueName(map: ClusterMap, name: string, ownId: number): string {
  let candidate = name;
  for (let number = 2; number <= NODES_MAX + 2; number++) {
    const other = findNodeByName(map, candidate);
    if (other === undefined || other.id === ownId) return candidate;
    const ending = `-${number}`;
    candidate = name.slice(0, NODE_NAME_LENGTH_MAX - ending.length) + ending;
  }
  return candidate;
}

function withNode(map: ClusterMap, next: NodeEntry): readonly NodeEntry[] {
  return map.nodes.map((node) => node.id === next.id ? next : node);
}

/** Something changed that targets are computed from; only as it was planned, where the command says so. */
function reweighed(
  map: ClusterMap,
  next: NodeEntry,
  { basedOnTargetsEpoch = map.targetsEpoch }: SetAvailability | SetWeight | SetZone,
): Result<Applied> {
  if (basedOnTargetsEpoch !== map.targetsEpoch) {
    return stale("nodes or places have changed since the plan was made: nothing was changed");
  }
  return changed(map, { nodes: withNode(map, next), targetsEpoch: map.epoch + 1 });
}

function otherRun(node: NodeEntry): Result<Applied> {
  return stale(`node ${node.name} has started again since (incarnation ${node.incarnation})`);
}
