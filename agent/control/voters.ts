/**
 * Who votes: up to five nodes, an odd number, spread over zones, replaced when they are gone.
 *
 * Two voters are no better than one (each of them can stop both), so their number is odd: one up to two nodes, three up to
 * four, five from five on. Voters change one at a time, each step through a configuration that can decide.
 *
 * Order of preference, so that nothing moves without a reason: who votes already and is up; witnesses, which are there
 * for it; zones that have no voter yet; lower ids.
 *
 * @module
 */
import type { Configuration, ConfigurationChange } from "../consensus/configuration.ts";
import { CAUGHT_UP_ENTRIES } from "../consensus/limits.ts";
import type { MemberStatus } from "../consensus/ready.ts";
import type { ClusterMap, NodeEntry } from "../map/map.ts";

/** Voters that a cluster aims at, at most. */
export const VOTERS_WANTED_MAX = 5;
/** A voter that is down is replaced after this long, in milliseconds, if there is somebody to take its place. */
export const REPLACE_AFTER_MS = 30_000;
/** Who has not been heard for this long is not counted upon to vote. */
const SILENT_MS_MAX = 2000;

/** How many of `count` nodes should vote. */
export function votersWanted(count: number): number {
  const odd = count % 2 === 0 ? count - 1 : count;
  return Math.max(1, Math.min(VOTERS_WANTED_MAX, odd));
}

/**
 * Chooses the voters that there should be.
 *
 * @param isGone nodes that do not count any more: down for long, or about to leave for good
 */
export function chooseVoters(
  map: ClusterMap,
  current: readonly number[],
  isGone: (node: NodeEntry) => boolean,
): number[] {
  // Who is away still counts: a cluster of three stays one of three while a host is being started anew.
  const able = map.nodes.filter((node) => node.availability !== "draining");
  const wanted = votersWanted(able.length);
  const chosen: NodeEntry[] = [];
  const zoneOf = (node: NodeEntry) => node.zone === "" ? `#${node.id}` : node.zone;
  const left = new Set(able);
  while (chosen.length < wanted && left.size > 0) {
    const zones = new Set(chosen.map(zoneOf));
    let best: NodeEntry | null = null;
    let bestScore = -1;
    for (const node of left) {
      // One that is gone is taken only where there is nobody else.
      const score = (isGone(node) ? 0 : 16) + (zones.has(zoneOf(node)) ? 0 : 8) +
        (current.includes(node.id) ? 4 : 0) + (node.witness ? 2 : 0) +
        (node.availability === "in" ? 1 : 0);
      if (score > bestScore || (score === bestScore && node.id < best!.id)) {
        best = node;
        bestScore = score;
      }
    }
    chosen.push(best!);
    left.delete(best!);
  }
  return chosen.map((node) => node.id).sort((a, b) => a - b);
}

/** What is known when the next step is looked for. */
export interface VoterSituation {
  readonly map: ClusterMap;
  readonly self: number;
  readonly configuration: Configuration;
  readonly members: readonly MemberStatus[];
  /** Index of consensus up to which all is decided. */
  readonly commit: number;
  readonly isGone: (node: NodeEntry) => boolean;
}

/**
 * Whether what is decided becomes durable at a member. One whose disk hangs answers heartbeats all the same, and whatever needs
 * its vote is never decided.
 *
 * @param commit index up to which all is decided
 */
export function keepsUp({ match }: MemberStatus, commit: number): boolean {
  return match + CAUGHT_UP_ENTRIES >= commit;
}

/**
 * The next step of the configuration towards what it should be, or null when it is there, or nothing can be done now.
 */
export function nextChange(situation: VoterSituation): ConfigurationChange | null {
  const { map, self, configuration, members, commit, isGone } = situation;
  const { voters, learners } = configuration;
  const known = new Set(map.nodes.map((node) => node.id));
  // Everybody gets the log.
  for (const node of map.nodes) {
    if (!voters.includes(node.id) && !learners.includes(node.id)) {
      return { kind: "add-learner", node: node.id };
    }
  }
  const wanted = chooseVoters(map, voters, isGone);
  const isReady = (node: number) => {
    const member = members.find((candidate) => candidate.node === node);
    return member !== undefined && member.silentMs < SILENT_MS_MAX && keepsUp(member, commit);
  };
  /** Whether a majority is left that decides when a voter goes. */
  const maySpare = (node: number) => {
    const left = voters.filter((voter) => voter !== node);
    const deciding = left.filter((voter) => voter === self || isReady(voter));
    return 2 * deciding.length > left.length;
  };
  const missing = wanted.find((node) => !voters.includes(node) && isReady(node));
  // Nobody is let go for somebody who cannot come.
  const surplus = voters.filter((node) => !wanted.includes(node));
  // One that is down goes first where the others still decide without it; otherwise the new one comes first.
  const gone = surplus.filter((node) => !isReady(node) && node !== self);
  const isEnough = voters.length > wanted.length;
  if (gone.length > 0 && isEnough) return { kind: "demote", node: gone[0] };
  if (missing !== undefined) return { kind: "promote", node: missing };
  if (isEnough) {
    const other = surplus.find((node) => node !== self && maySpare(node));
    if (other !== undefined) return { kind: "demote", node: other };
  }
  const stranger = [...voters, ...learners].find((node) => !known.has(node) && node !== self);
  if (stranger === undefined) return null;
  // Raft wants a node that has voted to hear the end of it (the head of raft.ts).
  return { kind: voters.includes(stranger) ? "demote" : "remove", node: stranger };
}
