/**
 * Commands on their way through the consensus' log, each carried out exactly once.
 *
 *     a node numbers its proposals:   … 7 ── 8 ── 9 …       whoever retries, whatever the log has twice
 *     its entry in the map has:       requestSequence = 7   ──▶ only 8 is applied, then only 9
 *
 * A proposal is applied when its number is the next one of its node, and ignored otherwise: lower ones
 * were applied before, higher ones wait for those that are missing (their proposer sends them again, in
 * order). A command that the map refuses uses its number up as well, so that those behind it can follow.
 * So proposals may be pipelined, lost, repeated, and retried by another leader.
 *
 * The proposer learns the result when it applies the entry itself, as everybody does. It compares the
 * command with its own: after a restart an entry of its last run may come late and use up a number that
 * the new run has given to something else, which then gets the next one.
 *
 * `requestSequence` is bookkeeping of the log, not something that anybody acts on: it does not raise the
 * epoch. Maps of equal epochs are equal but for it.
 *
 * @module
 */

import { failure, type Result, success } from "./errors.ts";
import { apply } from "./map.ts";
import type { Applied, ClusterMap, MapEffect, Proposal } from "./model.ts";
import { findNode } from "./queries.ts";

/** What became of a proposal. */
export interface Decided {
  /** The next map; the very one that was given when the proposal was ignored. */
  readonly map: ClusterMap;
  /**
   * `applied`: its number was the next one, and `result` is the command's; `repeated`: it was applied
   * before; `early`: others are missing before it; `stranger`: its node is not in the map.
   */
  readonly outcome: "applied" | "repeated" | "early" | "stranger";
  /** For the proposer: of an ignored proposal an error with code `stale`. */
  readonly result: Result<Applied>;
  /** Empty but for a command that was applied and changed something. */
  readonly effects: readonly MapEffect[];
}

/**
 * Applies a committed entry of the log. Everybody who applies the same entries in the same order gets the
 * same maps and the same outcomes.
 *
 * @param map stays as it is
 * @param proposal whose fields have the right types (`decodeProposal`); their values are checked
 */
export function applyProposal(map: ClusterMap, proposal: Proposal): Decided {
  const { sequence, command } = proposal;
  const node = findNode(map, proposal.node);
  if (node === undefined) return ignored(map, "stranger", proposal);
  if (sequence !== node.requestSequence + 1) {
    return ignored(map, sequence <= node.requestSequence ? "repeated" : "early", proposal);
  }
  const result = apply(map, command);
  const next = result.ok ? result.value.map : map;
  const counted: ClusterMap = {
    ...next,
    nodes: next.nodes.map((each) =>
      each.id === node.id ? { ...each, requestSequence: sequence } : each
    ),
  };
  if (!result.ok) return { map: counted, outcome: "applied", result, effects: [] };
  const { effects } = result.value;
  return { map: counted, outcome: "applied", result: success({ map: counted, effects }), effects };
}

function ignored(
  map: ClusterMap,
  outcome: "repeated" | "early" | "stranger",
  { node, sequence }: Proposal,
): Decided {
  const result = failure<Applied>("stale", `proposal ${sequence} of node ${node} is ${outcome}`);
  return { map, outcome, result, effects: [] };
}
