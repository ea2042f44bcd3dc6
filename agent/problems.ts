/**
 * What is wrong, derived from what the parts say of themselves. Pure: status in, problems out.
 *
 * Invariant: an agent is called healthy only when the list is empty, and the list is never empty
 * while a guest waits for anything but its own requests.
 *
 * @module
 */

import { drainedText } from "./cluster_status.ts";
import { formatSize } from "./config.ts";
import { formatDuration } from "./duration.ts";
import type {
  ClusterStatus,
  DiskStatus,
  GroupSummary,
  JoiningNode,
  NodeStatus,
  PathStatus,
  SessionStatus,
  StoreStatus,
} from "./http/backend.ts";
import { groupsOfNodes } from "./map/group_summary.ts";
import { isNamed } from "./map/groups.ts";
import {
  apply,
  type ClusterMap,
  copiesMinOfPool,
  copiesMinToBe,
  type DiskEntry,
  findNode,
  flattenedLayers,
  hasDisks,
  inZonesText,
  isInZones,
  MAP_BYTES_FULL,
  mapFullError,
  moveOf,
  type MoveProgress,
  moveText,
  type NodeEntry,
  percentOf,
  type Pool,
  type Schedule,
  storageNodes,
  takingOf,
  zonesText,
} from "./map/map.ts";
import { dueSlot, lateSince, scheduledName } from "./map/schedules.ts";
import { brakeOf, remakingOf, takersOf, zonesProblem } from "./map/targets.ts";

/**
 * Kinds of problems, the worst first. Kinds are added, and none is taken away or renamed: programs may rely on these.
 *
 * | code | what it means |
 * |---|---|
 * | `store-failed` | the store has stopped for good: every request fails |
 * | `store-unavailable` | the store does not answer |
 * | `cluster-unavailable` | the agent does not say how its cluster is |
 * | `data-unreadable` | data that no node can give now: guests that touch it wait |
 * | `not-joined` | this node is not in the cluster that it is to join |
 * | `no-quorum` | no majority of voters: nothing can be changed, and disks stop being served |
 * | `log-contradicted` | a node's log is not that of its cluster: it takes no part any more until it joins anew |
 * | `log-lost` | a voter came back without a part of what it had acknowledged: it does not count for now |
 * | `disk-unavailable` | one disk's data plane does not answer |
 * | `writes-stalled` | data with too few copies to be written: guests that write it wait |
 * | `requests-waiting` | requests of a disk's guest wait in a node |
 * | `damage` | blocks whose data does not match its checksum |
 * | `node-damage` | the same on another node |
 * | `damage-accepted` | the store was opened without parts of its log, as its agent was told to: what was in them is gone |
 * | `path-lost` | a data path of a node does not work: the node goes on with the others |
 * | `store-full` | no space for new writes |
 * | `writes-waiting` | writes that guests wait for |
 * | `node-full` | no space for new writes on another node |
 * | `node-down` | a node is down |
 * | `node-suspected` | a node that counts as up does not answer |
 * | `degraded` | data with fewer copies than it should have |
 * | `copying-stuck` | a node cannot catch up |
 * | `session-broken` | a guest broke the rules and its device stands still |
 * | `lease-waiting` | a guest waits for another to let go of the disk |
 * | `map-full` | the cluster map is nearly as large as it may be: no disks, snapshots and so on can be made |
 * | `snapshot-waiting` | a snapshot is being taken for long: the node where its disk is open has not finished |
 * | `schedule-late` | a snapshot that a schedule should have taken is not there |
 * | `zones-empty` | disks are kept in zones of which no node takes data: they stay where they are |
 * | `moving` | data is on its way to where it should be; all copies are there |
 * | `layers-waiting` | deleted snapshots cannot be merged, because of nodes that are down |
 * | `flatten-waiting` | a clone cannot be made independent, because of nodes that are down or have no room |
 * | `store-nearly-full` | little space is left |
 * | `node-nearly-full` | little space is left on another node |
 */
export const PROBLEM_CODES = [
  "store-failed",
  "store-unavailable",
  "cluster-unavailable",
  "data-unreadable",
  "not-joined",
  "no-quorum",
  "log-contradicted",
  "log-lost",
  "disk-unavailable",
  "writes-stalled",
  "requests-waiting",
  "damage",
  "node-damage",
  "damage-accepted",
  "path-lost",
  "store-full",
  "writes-waiting",
  "node-full",
  "node-down",
  "node-suspected",
  "degraded",
  "copying-stuck",
  "session-broken",
  "lease-waiting",
  "map-full",
  "snapshot-waiting",
  "schedule-late",
  "zones-empty",
  "moving",
  "layers-waiting",
  "flatten-waiting",
  "store-nearly-full",
  "node-nearly-full",
] as const;

/** One of {@linkcode PROBLEM_CODES}. */
export type ProblemCode = typeof PROBLEM_CODES[number];

/** Something that somebody should look at. */
export interface Problem {
  readonly code: ProblemCode;
  /** One line, no full stop at its end. */
  readonly message: string;
  /** What to do about it. */
  readonly hint: string;
  /** The disk that it is about, if it is about one. */
  readonly disk?: string;
  /** Name of the node that it is about, if it is about one. */
  readonly node?: string;
}

/** Share of the capacity that live data may take before it is worth a word. */
export const NEARLY_FULL_SHARE = 0.9;

/** Damaged blocks named in one message; the status has the longer list. */
const DAMAGE_NAMED_MAX = 3;

/** Disks whose requests wait that are problems of their own; more are one problem together. */
const WAITING_NAMED_MAX = 8;

/** Disks of a pool that are named; more are counted. */
const DISKS_NAMED_MAX = 4;

/** Schedules that are late, or snapshots that wait, that are problems of their own; more are one problem together. */
const SNAPSHOTS_NAMED_MAX = 8;

/** Time that a snapshot may take before it is worth a word, in milliseconds. */
const TAKING_MS_MAX = 5000;

/** What the parts said. */
export interface Observations {
  readonly map: ClusterMap;
  /** Bytes of the map as it is encoded. */
  readonly mapBytes: number;
  /** Milliseconds since 1970. */
  readonly nowMs: number;
  /** Null when the cluster could not be asked. */
  readonly cluster: ClusterStatus | null;
  /** Null with `cluster`. */
  readonly groups: GroupSummary | null;
  /** Null when the store did not answer. */
  readonly store: StoreStatus | null;
  /** By disk name: its status, or the reason why it did not answer. */
  readonly disks: ReadonlyMap<string, DiskStatus | string>;
}

/**
 * Lists the problems, the worst first.
 *
 * @param seen disks of the map that `seen.disks` lacks count as unobserved, not as broken
 */
export function findProblems(seen: Observations): Problem[] {
  const problems: Problem[] = [
    ...storeProblems(seen.store),
    ...clusterProblems(seen),
    ...snapshotProblems(seen),
    ...mapProblems(seen),
    ...zonesProblems(seen.map),
    ...copiesProblems(seen),
    ...layerProblems(seen.map),
    ...flattenProblems(seen),
  ];
  for (const { name } of seen.map.disks) {
    const status = seen.disks.get(name);
    if (status === undefined) continue;
    if (typeof status === "string") problems.push(diskUnavailable(name, status));
    else problems.push(...sessionProblems(name, status.sessions));
  }
  const rank = (problem: Problem) => PROBLEM_CODES.indexOf(problem.code);
  return problems.sort((a, b) => rank(a) - rank(b));
}

/**
 * Says in one line how things stand.
 *
 * @param seen the same that {@linkcode findProblems} was given
 * @param problems its answer
 */
export function summarize(seen: Observations, problems: readonly Problem[]): string {
  if (problems.length > 0) {
    const more = problems.length - 1;
    return problems[0].message + (more === 0 ? "" : `; and ${count(more, "more problem")}`);
  }
  const disks = count(seen.map.disks.length, "disk");
  const { store, map } = seen;
  if (map.nodes.length > 1) {
    return `healthy: ${map.nodes.length} nodes, ${disks}, ${copiesText(map)}${usedText(seen)}`;
  }
  if (store === null) return disks;
  return `healthy: ${disks}, ${formatSize(store.liveBytes)} of ` +
    `${formatSize(store.capacityBytes)} used`;
}

/** Says how many copies that is where it is fewer than were asked for, of disks that may be anywhere before others. */
function copiesText(map: ClusterMap): string {
  const used = new Set(map.disks.map(({ pool }) => pool));
  const [few] = map.pools.filter((pool) =>
    used.has(pool.id) && pool.copies > copiesPlaced(map, pool)
  )
    .toSorted((a, b) => a.zones.length - b.zones.length || b.copies - a.copies);
  if (few === undefined) return "all copies in place";
  const where = few.zones.length === 0 ? "" : ` ${inZonesText(few.zones)}`;
  const why = nodesFor(map, few).length < few.copies
    ? "there are no more nodes for them"
    : "no more nodes take data";
  return `all copies in place (${copiesPlaced(map, few)} of ${few.copies}${where}: ${why})`;
}

/** Copies that all of a pool's data is to have where it should be, as the targets are now. */
function copiesPlaced(map: ClusterMap, pool: Pool): number {
  const inZones = new Set(nodesFor(map, pool).map(({ id }) => id));
  return pool.pgs.reduce((least, { target }) => {
    const { length } = target.filter((id) => inZones.has(id));
    return Math.min(least, length);
  }, Infinity);
}

/** Nodes that could hold data of a pool, if they were all to take any. */
function nodesFor(map: ClusterMap, { zones }: Pool): readonly NodeEntry[] {
  return storageNodes(map).filter((node) => isInZones(zones, node));
}

/** Why disks that may be anywhere have fewer copies than there are nodes for; null: they do not. */
function takersProblem(map: ClusterMap, pool: Pool): string | null {
  const takers = takersOf(map, pool).length;
  if (takers >= pool.copies || nodesFor(map, pool).length < pool.copies) return null;
  if (takers === 0) return "no node takes data, so all stays where it is";
  return `only ${count(takers, "node")} ${takers === 1 ? "takes" : "take"} data, too few for ` +
    `${pool.copies} copies: the others are drained, out, or of weight 0`;
}

/** What all nodes have together, when all have said. */
function usedText({ cluster }: Observations): string {
  const nodes = cluster?.nodes.filter((node) => !node.witness) ?? [];
  let used = 0;
  let capacity = 0;
  for (const { usedBytes, capacityBytes } of nodes) {
    if (usedBytes === null) return "";
    used += usedBytes;
    capacity += capacityBytes;
  }
  return nodes.length === 0 ? "" : `, ${formatSize(used)} of ${formatSize(capacity)} used`;
}

/**
 * What people should know that is no problem.
 *
 * @param map the map now
 * @returns lines, beginning in lower case
 */
export function findNotes(map: ClusterMap): string[] {
  const notes: string[] = [];
  for (const { id, name, availability } of map.nodes) {
    if (availability !== "draining" || isNamed(map, id)) continue;
    notes.push(drainedText(name));
  }
  for (const pool of map.pools) {
    const disks = disksOf(map, pool);
    if (disks === "" || pool.family !== 0) continue;
    const isAnywhere = pool.zones.length === 0;
    const why = isAnywhere ? takersProblem(map, pool) : zonesProblem(map, pool);
    // Zones of which no node takes data are a problem.
    const isNote = isAnywhere || takersOf(map, pool).length > 0;
    if (why !== null && isNote) notes.push(`${disks}: ${why}`);
  }
  const versions = [...new Set(map.nodes.map(({ version }) => version))];
  if (versions.length > 1) {
    notes.push(
      `nodes run different versions (${
        versions.slice(0, 3).join(", ")
      }): what is new in the newest ` +
        "is off until all can do it; 'kelpie cluster upgrade' shows who is behind",
    );
  }
  for (const { nowMs, name, pgs } of map.losses) {
    const date = new Date(nowMs).toISOString().slice(0, 10);
    notes.push(
      `on ${date} the only copy of ${count(pgs, "placement group")} was given up with node ${name}`,
    );
  }
  return notes;
}

// ---------------------------------------------------------------------------------------- cluster

function clusterProblems(seen: Observations): Problem[] {
  const { cluster, groups } = seen;
  if (cluster === null || groups === null) {
    return [{
      code: "cluster-unavailable",
      message: "the agent does not say how its cluster is",
      hint: "look at the agent's log; restart the agent if it does not recover",
    }];
  }
  // It knows nothing of the rest.
  if (cluster.joining.length > 0) return cluster.joining.map(notJoined);
  const problems: Problem[] = [];
  if (!cluster.hasQuorum) problems.push(noQuorum(cluster));
  problems.push(...groupProblems(seen, groups, cluster));
  problems.push(...waitingProblems(cluster));
  for (const node of cluster.nodes) problems.push(...nodeProblems(node, seen));
  problems.push(...drainProblems(seen.map));
  return problems;
}

function notJoined({ address, reason, hint }: JoiningNode): Problem {
  return { code: "not-joined", message: `joining ${address}: ${reason}`, hint };
}

function noQuorum({ nodes, voters }: ClusterStatus): Problem {
  const needed = Math.floor(voters.length / 2) + 1;
  const silent = silentVoters({ nodes });
  const which = silent.length === 0 ? "" : `: ${joined(silent)} ${does(silent.length)} not answer`;
  const voting = count(voters.length, "voter");
  return {
    code: "no-quorum",
    message: `no majority of the ${voting} can be reached${which}; ` +
      "nothing can be changed, and guests wait",
    hint:
      `${needed} of the ${voting} must run and reach each other; then all goes on by itself. Where a majority is gone ` +
      "for good, see 'kelpie cluster recover --help'",
  };
}

/** Names of the voters that do not answer. */
function silentVoters({ nodes }: Pick<ClusterStatus, "nodes">): string[] {
  return nodes.filter(({ isVoter, isSelf, gossip }) => isVoter && !isSelf && gossip !== "alive")
    .map(({ name }) => name);
}

/** Whether copies of nodes that are down are made anew elsewhere after a while. */
function canBeRemade(map: ClusterMap): boolean {
  const isBraking = brakeOf(map) !== null;
  return map.nodes.some(({ id, state, witness, availability }) => {
    const isKept = isBraking && availability === "in";
    const remaking = state !== "down" || witness || isKept ? "nothing" : remakingOf(map, id);
    return remaking === "all" || remaking === "some";
  });
}

function groupProblems(
  { map }: Observations,
  groups: GroupSummary,
  cluster: ClusterStatus,
): Problem[] {
  const problems: Problem[] = [];
  const of = (some: number) => `${some} of ${count(groups.total, "placement group")}`;
  const are = (some: number, one: string, more: string) => some === 1 ? one : more;
  if (groups.unreadableReason !== "") {
    const some = Math.max(groups.unclean, groups.unreachable);
    problems.push({
      code: "data-unreadable",
      message: `${of(some)} cannot be read or written: ${groups.unreadableReason}`,
      hint: "guests that need them wait and see no error; start the nodes that are down, " +
        "and they go on by themselves",
    });
  }
  if (groups.unwritableReason !== "") {
    problems.push({
      code: "writes-stalled",
      message: `${of(groups.belowMin)} cannot be written: ${groups.unwritableReason}`,
      hint: "guests that write to them wait and see no error; start the nodes that are down, or " +
        `'kelpie node remove --force' those that are gone for good${undrainHint(map)}`,
    });
  }
  if (groups.degraded > 0) {
    problems.push({
      code: "degraded",
      message: `${of(groups.degraded)} ${are(groups.degraded, "has", "have")} fewer copies than ` +
        `${are(groups.degraded, "it", "they")} should; ${progressOf(groups, cluster)}`,
      hint: groups.joining > 0
        ? "it goes on by itself, and guests are served meanwhile"
        : map.nodes.every(({ state }) => state === "up")
        ? "all nodes are up: one that could not be reached for a moment is let in again within some minutes; if it is not, " +
          "see that every node reaches the others at both of their ports"
        : canBeRemade(map)
        ? "copies are made when the nodes that are down are back, or have been down for 'out-after'"
        : `copies are made when the nodes that are down are back, or others have joined${
          undrainHint(map)
        }`,
    });
  } else if (groups.joining > 0 || groups.misplaced > 0) {
    const moving = Math.max(groups.misplaced, groups.joining);
    problems.push({
      code: "moving",
      message: `${of(moving)} ${are(moving, "moves", "move")} to where ` +
        `${are(moving, "it", "they")} should be; ${progressOf(groups, cluster)}`,
      hint: "all copies are there; it goes on by itself, and guests are served meanwhile",
    });
  }
  return problems;
}

/** Who is up and could have the copies that are missing, but is not to have any; "": nobody. */
function undrainHint(map: ClusterMap): string {
  const drained = storageNodes(map).filter(({ state, availability }) =>
    state === "up" && availability === "draining"
  );
  if (drained.length === 0) return "";
  const names = drained.map(({ name }) => name);
  const [takes, lets] = names.length === 1 ? ["takes", "lets it"] : ["take", "lets one"];
  return `; ${joined(names)} ${takes} no data because of a drain: ` +
    `'kelpie node undrain ${names[0]}' ${lets}`;
}

/** From where on nothing is taken that makes the map larger. */
function mapProblems({ mapBytes }: Observations): Problem[] {
  if (mapBytes <= MAP_BYTES_FULL) return [];
  const { message, hint = "" } = mapFullError(mapBytes);
  return [{ code: "map-full", message, hint }];
}

/** Disks for which there is no node in their zones. */
function zonesProblems(map: ClusterMap): Problem[] {
  return map.pools.flatMap((pool): Problem[] => {
    const { id, zones } = pool;
    if (zones.length === 0 || !hasDisks(map, id) || takersOf(map, pool).length > 0) return [];
    const disk = map.disks.find((each) => each.pool === id)?.name;
    return [{
      code: "zones-empty",
      message: `${disksOf(map, pool)}: ${zonesProblem(map, pool)}`,
      hint:
        `start or undrain a node of ${
          zonesText(zones)
        }, or give another one its zone ('kelpie node zone')` +
        (disk === undefined ? "" : `; 'kelpie disk set ${disk} --zones any' lets it be anywhere`),
      ...(disk === undefined ? {} : { disk }),
    }];
  });
}

/** The disks that belong to a pool, for people: `disk a`, `disks a, b, c and 4 more`; "": there are none. */
function disksOf(map: ClusterMap, { id }: Pool): string {
  const names = map.disks.filter(({ pool }) => pool === id).map(({ name }) => name);
  if (names.length < 2) {
    const isInTrash = names.length === 0 && map.trash.some(({ disk }) => disk.pool === id);
    return isInTrash ? "disks in the trash" : names.map((name) => `disk ${name}`).join();
  }
  const more = names.length - DISKS_NAMED_MAX;
  return more <= 0
    ? `disks ${joined(names)}`
    : `disks ${names.slice(0, DISKS_NAMED_MAX).join(", ")} and ${more} more`;
}

/** Disks that are getting other copies: no fault, but something that goes on and says how far it is. */
function copiesProblems({ map, cluster }: Observations): Problem[] {
  return map.pools.flatMap(({ family }): Problem[] => {
    const move = family === 0 ? null : moveOf(map, family);
    if (move === null) return [];
    const names = map.disks.filter((disk) => disk.family === family).map(({ name }) => name);
    const [name = "in the trash"] = names;
    const more = names.length > 1 ? ` (with ${count(names.length - 1, "relative")})` : "";
    return [{
      code: "moving",
      message: `disk ${name}${more}: ${progressOfMove(move, cluster)}`,
      hint: move.isBack
        ? "it goes on by itself, and guests are served meanwhile"
        : "it goes on by itself, and guests are served meanwhile; " +
          `'kelpie disk set ${name}${wayBack(move)}' takes it back`,
      ...(names.length > 0 ? { disk: name } : {}),
    }];
  });
}

/** How long the slowest node has still to copy, whatever for; null: not known, or nobody copies. */
export function secondsLeftOf(cluster: Pick<ClusterStatus, "nodes"> | null): number | null {
  return (cluster?.nodes ?? []).reduce<number | null>(
    (most, { secondsLeft }) => secondsLeft === null ? most : Math.max(most ?? 0, secondsLeft),
    null,
  );
}

/** Options that take back what is on its way. */
function wayBack({ from, to }: MoveProgress): string {
  const isSame = from.zones.join() === to.zones.join();
  return (from.copies === to.copies ? "" : ` --copies ${from.copies}`) +
    (isSame ? "" : ` --zones ${from.zones.join() || "any"}`);
}

/** `copies 2 → 3, 37 %, about 2 min left; data is being copied to node c`. */
function progressOfMove(move: MoveProgress, cluster: ClusterStatus | null): string {
  const { from, to, isBack, done, wanted, waitsFor } = move;
  const seconds = done < wanted ? secondsLeftOf(cluster) : null;
  const back = `back to ${from.copies} ${from.copies === 1 ? "copy" : "copies"} ${
    inZonesText(from.zones)
  }`;
  return (isBack ? back.trimEnd() : `copies ${moveText(from, to)}`) +
    `, ${percentOf(move)} %` +
    (seconds === null ? "" : `, about ${formatDuration(seconds * 1000)} left`) +
    (waitsFor === null ? "" : `; ${waitsFor}`);
}

/** How far the copying is, and how long it will take. */
function progressOf(groups: GroupSummary, { nodes }: ClusterStatus): string {
  if (groups.joining === 0) return "nothing is being copied";
  const busy = nodes.filter((node) => node.joiningGroups > 0);
  if (busy.length === 0) return `${groups.joining} are being copied, how far is not known yet`;
  const shown = busy.slice(0, 3).map((node) => {
    const rate = node.copyBytesPerSecond;
    const seconds = node.secondsLeft;
    return `${node.name} copies ${count(node.joiningGroups, "group")}, ` +
      `${count(node.chunksLeft, "chunk")} left` +
      (rate === null ? "" : ` at ${formatSize(rate)}/s`) +
      (seconds === null ? "" : `, about ${formatDuration(seconds * 1000)}`);
  });
  const more = busy.length - shown.length;
  return shown.join("; ") + (more > 0 ? `; and ${count(more, "more node")}` : "");
}

/** Drains that are not at their end, also while nothing has begun to move. */
function drainProblems(map: ClusterMap): Problem[] {
  const draining = map.nodes.filter((node) => node.availability === "draining");
  if (draining.length === 0) return [];
  const groups = groupsOfNodes(map);
  return draining.flatMap(({ id, name }): Problem[] => {
    const left = groups.get(id)?.named ?? 0;
    if (left === 0) return [];
    const held = holding(map, id);
    return [{
      code: "moving",
      message: `node ${name} is being drained: ${count(left, "placement group")} left`,
      hint: held !== undefined
        ? `too few other nodes${
          held.zones.length === 0 ? "" : ` of ${zonesText(held.zones)}`
        } take data: ` +
          "add a node, undrain one with 'kelpie node undrain', or take out those that are drained with 'kelpie node remove'" +
          (held.zones.length === 0
            ? ""
            : "; or keep the disks elsewhere ('kelpie disk set --zones')")
        : `it goes on by itself; 'kelpie node undrain ${name}' takes it back`,
      node: name,
    }];
  });
}

/** A pool of which a node that is being drained keeps data that disks could not be written without (`map/targets.ts`). */
function holding(map: ClusterMap, node: number): Pool | undefined {
  const isNeeded = (id: number) => hasDisks(map, id) || map.pools.some(({ to }) => to === id);
  return map.pools.find((pool) =>
    isNeeded(pool.id) && takersOf(map, pool).length < copiesMinOfPool(map, pool, copiesMinToBe) &&
    pool.pgs.some(({ target }) => target.includes(node))
  );
}

function waitingProblems({ waiting, nodes }: ClusterStatus): Problem[] {
  const hint = "the guest sees a pause and no error; it goes on by itself when the reason is gone";
  const problems = waiting.slice(0, WAITING_NAMED_MAX).map(({ disk, node, reason }): Problem => {
    const name = nodes.find(({ id }) => id === node)?.name ?? `node ${node}`;
    return {
      code: "requests-waiting",
      message: `disk ${disk}: requests on ${name} wait: ${reason}`,
      hint,
      disk,
      node: name,
    };
  });
  const rest = waiting.length - problems.length;
  if (rest > 0) {
    const message = `requests of ${count(rest, "more disk")} wait`;
    problems.push({ code: "requests-waiting", message, hint });
  }
  return problems;
}

function nodeProblems(node: NodeStatus, seen: Observations): Problem[] {
  const { name } = node;
  const problems: Problem[] = [];
  const add = (code: ProblemCode, message: string, hint: string) =>
    problems.push({ code, message, hint, node: name });
  if (node.state === "down") {
    const since = formatDuration(Math.max(0, seen.nowMs - node.sinceMs));
    add("node-down", `node ${name} is down, for ${since}`, downHint(node, seen));
  } else if (node.gossip !== "alive" && !node.isSelf) {
    const why = node.suspectedBecause ?? GOSSIP_WORDS[node.gossip];
    add("node-suspected", `node ${name} does not answer: ${why}`, "look at it, and at the network");
  }
  if (node.hasOtherLog) add("log-contradicted", otherLogText(node), otherLogHint(node));
  if (node.hasLostLog) add("log-lost", lostLogText(node, seen), lostLogHint(seen));
  if (node.stuck !== null) {
    add("copying-stuck", `node ${name} cannot catch up: ${node.stuck}`, "look at its agent's log");
  }
  // What this node has of itself is said of its store.
  if (node.isSelf) return problems;
  for (const path of node.paths) problems.push(...pathProblems(path, name));
  if (node.damagedBlocks > 0) {
    const blocks = count(node.damagedBlocks, "block");
    add(
      "node-damage",
      `${blocks} of node ${name} cannot be read`,
      `they are repaired from other copies where there are any; 'kelpie status' on ${name} names them`,
    );
  }
  const { usedBytes, capacityBytes } = node;
  if (node.isFull) {
    add(
      "node-full",
      `the store of node ${name} is full`,
      "delete disks for good (--now, or purge the trash), discard in guests (fstrim), or add nodes; waiting writes go on by themselves",
    );
  } else if (
    usedBytes !== null && usedBytes > 0 && usedBytes >= capacityBytes * NEARLY_FULL_SHARE
  ) {
    add(
      "node-nearly-full",
      `${formatSize(usedBytes)} of the ${formatSize(capacityBytes)} of node ${name} are used`,
      "delete disks for good (--now, or purge the trash), discard in guests (fstrim), or add nodes",
    );
  }
  return problems;
}

function otherLogText({ name }: NodeStatus): string {
  return `node ${name} has another log than its cluster, which has decided otherwise than ${name} ` +
    "knows: nothing that is decided gets there any more";
}

function otherLogHint({ name }: NodeStatus): string {
  return `the cluster was recovered without ${name}, or a voter lost what it had made durable; stop the agent of ${name}, ` +
    `'kelpie node remove ${name} --force' on another node, and let it join anew with an empty store; ` +
    "keep the old one until all data can be read without it";
}

function lostLogText({ name }: NodeStatus, seen: Observations): string {
  const silent = silentVoters(seen.cluster!).length;
  return `node ${name} has lost a part of the cluster's log that it had acknowledged: ` +
    (silent === 0 ? "it counts again in a moment" : "it does not count for any decision");
}

function lostLogHint(seen: Observations): string {
  const silent = silentVoters(seen.cluster!);
  const first = silent.length === 0
    ? "the cluster mends it by itself"
    : `start ${joined(silent)}: the cluster mends it by itself as soon as enough voters are there`;
  return `${first}; look at that node's disk, which has lost what it had made durable`;
}

const GOSSIP_WORDS: Readonly<Record<NodeStatus["gossip"], string>> = {
  alive: "it answers",
  suspect: "it is suspected",
  dead: "it has been found dead",
  left: "it has said that it stops",
  unknown: "nothing has been heard of it yet",
};

function downHint(node: NodeStatus, { map, nowMs }: Observations): string {
  const remove = `'kelpie node remove ${node.name} --force' if it is gone for good`;
  const remaking = node.witness ? "nothing" : remakingOf(map, node.id);
  if (remaking === "nothing") return `start it, or ${remove}`;
  if (remaking === "none") {
    return `start it, or add a node: no other one takes its copies, which are missing until then; ${remove}`;
  }
  const copies = remaking === "all"
    ? "its copies are made anew elsewhere"
    : "its copies are made anew elsewhere where other nodes take them";
  if (node.availability !== "in") return `${copies}; start it, or ${remove}`;
  const brake = brakeOf(map);
  if (brake !== null) {
    return `start it, or ${remove}; ${brake.down} of ${brake.of} nodes are down together: until they are fewer ` +
      "no copies are made anew elsewhere";
  }
  const leftMs = node.sinceMs + map.settings.outAfterMs - nowMs;
  return leftMs > 0
    ? `start it; without it, ${copies} in ${formatDuration(leftMs)}`
    : `start it, or ${remove}`;
}

/** `a`, `a and b`, `a, b and c`. */
function joined(names: readonly string[]): string {
  if (names.length < 2) return names.join();
  return `${names.slice(0, -1).join(", ")} and ${names[names.length - 1]}`;
}

function does(number: number): string {
  return number === 1 ? "does" : "do";
}

// ------------------------------------------------------------------------------------------ store

function storeProblems(store: StoreStatus | null): Problem[] {
  if (store === null) {
    return [{
      code: "store-unavailable",
      message: "the store does not answer",
      hint: "look at the agent's log; restart the agent if it does not recover",
    }];
  }
  const problems: Problem[] = [];
  if (store.failed !== null) {
    problems.push({
      code: "store-failed",
      message: `the store ${store.path} has stopped: ${store.failed}`,
      hint: "look at the disk below it (dmesg, smartctl), then restart the agent",
    });
  }
  if (store.failed === null) {
    for (const path of store.paths) problems.push(...pathProblems(path, null));
  }
  if (store.damagedBlocks > 0) problems.push(damage(store));
  if (store.damagedRecords > 0) problems.push(acceptedDamage(store));
  const waiting = count(store.waitingWrites, "write");
  const waits = store.waitingWrites === 1 ? "waits" : "wait";
  if (store.full) {
    const also = store.waitingWrites > 0 ? ` and ${waiting} ${waits}` : "";
    const full = store.paths.filter((path) => path.isFull).map(({ location }) => location);
    const what = store.paths.length > 1 && full.length > 0
      ? `of the store's data paths ${full.join(", ")} ${full.length === 1 ? "is" : "are"} full`
      : `the store ${store.path} is full`;
    problems.push({
      code: "store-full",
      message: `${what}${also}`,
      hint:
        "delete disks for good (--now, or purge the trash), discard in guests (fstrim), or give the store a larger --capacity; " +
        "waiting writes go on by themselves",
    });
  } else if (store.waitingWrites > 0) {
    problems.push({
      code: "writes-waiting",
      message: `${waiting} ${waits} for space in the store`,
      hint: "they go on when the cleaner has freed space; if they do not, delete or discard data",
    });
  } else if (store.liveBytes >= store.capacityBytes * NEARLY_FULL_SHARE) {
    problems.push({
      code: "store-nearly-full",
      message: `${formatSize(store.liveBytes)} of the store's ` +
        `${formatSize(store.capacityBytes)} are used`,
      hint:
        "delete disks for good (--now, or purge the trash), discard in guests (fstrim), or give the store a larger --capacity",
    });
  }
  return problems;
}

/** @param node name; null: the node that is asked */
function pathProblems(path: PathStatus, node: string | null): Problem[] {
  if (path.state === "ok") return [];
  const whose = node === null ? "" : ` of node ${node}`;
  const what = path.state === "failed"
    ? `has failed: ${path.reason}`
    : path.state === "missing"
    ? `is missing: ${path.reason}`
    : "was left out by whoever started its agent";
  return [{
    code: "path-lost",
    message: `data path ${path.location}${whose} ${what}`,
    hint:
      "what it held is copied anew from other nodes, and where nobody else has it guests wait: " +
      "mend or mount it, and restart the agent",
    ...(node === null ? {} : { node }),
  }];
}

function damage(store: StoreStatus): Problem {
  const named = store.damage.slice(0, DAMAGE_NAMED_MAX)
    .map(({ disk, offsetBytes }) => `${disk === "" ? "a deleted disk" : disk} at ${offsetBytes}`);
  const rest = store.damagedBlocks - named.length;
  const where = [...named, ...(rest > 0 && named.length > 0 ? [`${rest} more`] : [])].join(", ");
  const disks = new Set(store.damage.map((each) => each.disk));
  const only = disks.size === 1 && store.damage.length >= store.damagedBlocks ? [...disks][0] : "";
  return {
    code: "damage",
    message: `${count(store.damagedBlocks, "block")} cannot be read` +
      (where === "" ? "" : `: ${where}`),
    hint: "writing the blocks again, or discarding them, repairs them; " +
      "'kelpie disk check' finds all there are",
    ...(only === "" ? {} : { disk: only }),
  };
}

/** No block is known to be wrong: those that the records had written are as they were before, or as other nodes have them. */
function acceptedDamage({ path, damagedRecords }: StoreStatus): Problem {
  return {
    code: "damage-accepted",
    message: `the store ${path} was opened without ${
      count(damagedRecords, "record")
    } of its log that ${damagedRecords === 1 ? "is" : "are"} damaged: what was written with ${
      damagedRecords === 1 ? "it" : "them"
    } is gone here`,
    hint:
      "what other nodes have is copied from them; where there are none, check file systems and restore what is wrong from a " +
      "backup; it is said until the agent starts anew",
  };
}

// -------------------------------------------------------------------------------------- snapshots

function snapshotProblems({ map, nowMs }: Observations): Problem[] {
  const waiting: Problem[] = [];
  const late: Problem[] = [];
  for (const disk of map.disks) {
    const snapshot = takingOf(disk);
    if (snapshot !== undefined && nowMs - snapshot.createdMs > TAKING_MS_MAX) {
      waiting.push(snapshotWaiting(map, disk, nowMs - snapshot.createdMs));
    }
    for (const schedule of disk.schedules) {
      const sinceMs = lateSince(disk, schedule, nowMs);
      if (sinceMs !== null) late.push(scheduleLate(map, disk, schedule, { sinceMs, nowMs }));
    }
  }
  return [
    ...bounded(waiting, (rest) => `${count(rest, "more snapshot")} ${does(rest)} not get complete`),
    ...bounded(late, (rest) => `${count(rest, "more schedule")} ${rest === 1 ? "is" : "are"} late`),
  ];
}

/** The first of several problems of one kind, and one for the others. */
function bounded(problems: readonly Problem[], restOf: (rest: number) => string): Problem[] {
  const shown = problems.slice(0, SNAPSHOTS_NAMED_MAX);
  const rest = problems.length - shown.length;
  if (rest === 0) return shown;
  const { code, hint } = problems[0];
  return [...shown, { code, message: restOf(rest), hint }];
}

function snapshotWaiting(map: ClusterMap, disk: DiskEntry, forMs: number): Problem {
  const { name, isAborted } = takingOf(disk)!;
  const what = isAborted
    ? `a snapshot of disk ${disk.name} was given up, and another one has to wait`
    : `snapshot ${disk.name}@${name} is being taken for ${formatDuration(forMs)}`;
  return {
    code: "snapshot-waiting",
    message: `${what}: ${takingReason(map, disk)}`,
    hint: isAborted
      ? "it is over when that is done; nothing is lost"
      : "guests that write may wait for it; it is given up after half a minute, and can be taken again",
    disk: disk.name,
  };
}

/** What a snapshot that is being taken waits for. */
function takingReason(map: ClusterMap, disk: DiskEntry): string {
  const { isDrained, taking } = takingOf(disk)!;
  if (isDrained) {
    const others = map.disks.filter((each) => {
      const other = takingOf(each);
      return other?.taking === taking && !other.isDrained;
    });
    const [first] = others;
    return first === undefined ? "it ends in a moment" : `it was begun with that of ${first.name}`;
  }
  if (disk.lease === null) {
    return "the disk was not closed in good order; it ends when the disk is opened again";
  }
  const node = findNode(map, disk.lease.node);
  return `node ${
    node?.name ?? disk.lease.node
  }, where it is open, has yet to finish what came before`;
}

function scheduleLate(
  map: ClusterMap,
  disk: DiskEntry,
  schedule: Schedule,
  { sinceMs, nowMs }: { readonly sinceMs: number; readonly nowMs: number },
): Problem {
  const since = new Date(sinceMs).toISOString();
  return {
    code: "schedule-late",
    message:
      `schedule ${schedule.name} of disk ${disk.name} has taken no snapshot since ${since}: ` +
      lateReason(map, disk, schedule, nowMs),
    hint:
      `it is tried again by itself; 'kelpie disk schedule list ${disk.name}' shows how it is set`,
    disk: disk.name,
  };
}

/** Why the snapshot of a schedule is not there: what the map says of it now. */
function lateReason(
  map: ClusterMap,
  disk: DiskEntry,
  schedule: Schedule,
  nowMs: number,
): string {
  if (takingOf(disk) !== undefined) return takingReason(map, disk);
  const slotMs = dueSlot(disk, schedule, nowMs);
  if (slotMs === null) return "it is due in a moment";
  const name = scheduledName(schedule, slotMs);
  const tried = apply(map, { kind: "create-snapshots", disks: [disk.id], name, nowMs });
  return tried.ok ? "no leader has got to it, or holders were not ready" : tried.error.message;
}

/** Layers that nobody needs, and that are still there only because nodes that are down have not absorbed them. */
function layerProblems(map: ClusterMap): Problem[] {
  const storage = storageNodes(map);
  const missing = new Set<string>();
  let layers = 0;
  for (const { absorbedBy } of map.layers) {
    if (absorbedBy === null) continue;
    const left = storage.filter(({ id }) => !absorbedBy.includes(id));
    if (left.length === 0 || left.some(({ state }) => state === "up")) continue;
    layers++;
    for (const { name } of left) missing.add(name);
  }
  if (layers === 0) return [];
  const names = [...missing];
  const which = names.length === 1 ? `node ${names[0]} is` : `nodes ${joined(names)} are`;
  return [{
    code: "layers-waiting",
    message: `${count(layers, "deleted snapshot")} cannot be merged until ${which} back or removed`,
    hint: "guests are served meanwhile, and space has been given back; start the node, or " +
      "'kelpie node remove NODE --force' if it is gone for good",
    ...(names.length === 1 ? { node: names[0] } : {}),
  }];
}

/** Disks that are being flattened and cannot be, because of nodes that are down or that something stands in the way of. */
function flattenProblems({ map, cluster }: Observations): Problem[] {
  const problems: Problem[] = [];
  for (const [id, layer] of flattenedLayers(map)) {
    const disk = map.disks.find((each) => each.id === id)!;
    const left = storageNodes(map).filter(({ id }) => !layer.flatten.by.includes(id));
    const reasons = left.map(({ id: self, name, state }) => {
      const stuck = cluster?.nodes.find((node) => node.id === self)?.flattenStuck ?? null;
      if (state !== "up") return `node ${name} is down`;
      return stuck === null ? "" : `node ${name}: ${stuck}`;
    });
    // As long as one gets on there is nothing to be done.
    if (left.length === 0 || reasons.includes("")) continue;
    problems.push({
      code: "flatten-waiting",
      message: `disk ${disk.name} cannot be made independent: ${reasons.join("; ")}`,
      hint:
        "guests are served meanwhile; make room, start the nodes or remove those that are gone " +
        `for good, or 'kelpie disk flatten ${disk.name} --cancel'`,
      disk: disk.name,
    });
  }
  return problems;
}

function diskUnavailable(disk: string, reason: string): Problem {
  return {
    code: "disk-unavailable",
    message: `disk ${disk} does not answer: ${reason}`,
    hint: "look at the agent's log; restart the agent if it does not recover",
    disk,
  };
}

function sessionProblems(disk: string, sessions: readonly SessionStatus[]): Problem[] {
  const problems: Problem[] = [];
  const holder = sessions.find((each) => each.active && !each.readOnly);
  for (const session of sessions) {
    if (session.broken !== null) {
      problems.push({
        code: "session-broken",
        message: `disk ${disk}: the device of ${processName(session)} stands still: ` +
          session.broken,
        hint: "reset or restart the guest; other guests are not affected",
        disk,
      });
    }
    if (session.waitingForLease) {
      const from = holder === undefined ? "" : ` that ${processName(holder)} holds`;
      problems.push({
        code: "lease-waiting",
        message: `disk ${disk}: ${processName(session)} waits for the lease${from}`,
        hint: "it gets the disk when the other lets go; use the read-only socket only to look on",
        disk,
      });
    }
  }
  return problems;
}

/** A front end as people know it. */
function processName({ pid, command }: SessionStatus): string {
  if (pid === 0) return command === "" ? "a front end" : command;
  return command === "" ? `pid ${pid}` : `${command} (pid ${pid})`;
}

function count(value: number, noun: string): string {
  return `${value} ${noun}${value === 1 ? "" : "s"}`;
}
