/**
 * Who takes part: voters, who elect and commit, and learners, who only receive.
 *
 * A configuration takes effect at a node as soon as its log has the entry, committed or not, and
 * stops doing so when the entry is cut off (Ongaro, "Consensus: Bridging Theory and Practice",
 * chapter 4). One change moves one node, so any majority of the old voters and any of the new share
 * a node.
 *
 * As bytes (data of a configuration entry, part of a snapshot), little-endian:
 *
 *     0  version    u8, 1
 *     1  voters     u8, their number, up to VOTERS_MAX
 *     2  learners   u16, their number, up to LEARNERS_MAX
 *     4  ids        u16 each: voters, then learners, each ascending; none twice
 *
 * @module
 */

import { failure, type Result, success } from "../map/errors.ts";
import { LEARNERS_MAX, NODE_ID_MAX, VOTERS_MAX } from "./limits.ts";

/** Voters and learners: ascending node ids, none in both. */
export interface Configuration {
  readonly voters: readonly number[];
  readonly learners: readonly number[];
}

/** Nobody: what a node that is to join starts with. */
export const EMPTY_CONFIGURATION: Configuration = { voters: [], learners: [] };

/**
 * One step from one configuration to the next. Every node starts as a learner; only one that has
 * caught up is promoted.
 */
export interface ConfigurationChange {
  readonly kind: "add-learner" | "promote" | "demote" | "remove";
  /** 1…65535. */
  readonly node: number;
}

const VERSION = 1;
const HEAD_BYTES = 4;

/** Most bytes of an encoded configuration. */
export const CONFIGURATION_BYTES_MAX = HEAD_BYTES + 2 * (VOTERS_MAX + LEARNERS_MAX);

/** Is it a node id? */
export function isNodeId(value: unknown): value is number {
  return typeof value === "number" && Number.isInteger(value) && value >= 1 && value <= NODE_ID_MAX;
}

/**
 * The configuration after a change.
 *
 * @param configuration stays as it is
 * @param change its node is checked
 * @returns another configuration, or an error with code `invalid`, `exists`, `missing` or `limit`
 *
 * @example
 * ```ts
 * import { changeConfiguration } from "./configuration.ts";
 *
 * const one = { voters: [1], learners: [] };
 * const result = changeConfiguration(one, { kind: "add-learner", node: 2 });
 * console.assert(result.ok && result.value.learners[0] === 2);
 * ```
 */
export function changeConfiguration(
  configuration: Configuration,
  change: ConfigurationChange,
): Result<Configuration> {
  const { voters, learners } = configuration;
  const { kind, node } = change;
  if (!isNodeId(node)) return failure("invalid", `${node} is no node id (1 to ${NODE_ID_MAX})`);
  const isVoter = voters.includes(node);
  const isLearner = learners.includes(node);
  switch (kind) {
    case "add-learner":
      if (isVoter || isLearner) return failure("exists", `node ${node} is a member already`);
      if (learners.length >= LEARNERS_MAX) {
        return failure("limit", `there are ${LEARNERS_MAX} learners, which is the most`);
      }
      return success({ voters, learners: having(learners, node) });
    case "promote":
      if (!isLearner) return failure("missing", `node ${node} is no learner`);
      if (voters.length >= VOTERS_MAX) {
        return failure("limit", `there are ${VOTERS_MAX} voters, which is the most`);
      }
      return success({ voters: having(voters, node), learners: lacking(learners, node) });
    case "demote":
    case "remove": {
      if (!isVoter && (kind === "demote" || !isLearner)) {
        return failure("missing", `node ${node} is no ${kind === "demote" ? "voter" : "member"}`);
      }
      if (isVoter && voters.length === 1) {
        return failure("invalid", `node ${node} is the only voter`, "promote another node first");
      }
      const rest = lacking(learners, node);
      return success({
        voters: lacking(voters, node),
        learners: kind === "demote" ? having(rest, node) : rest,
      });
    }
  }
}

/** Bytes of a configuration, of the caller's own. */
export function encodeConfiguration(configuration: Configuration): Uint8Array<ArrayBuffer> {
  const { voters, learners } = configuration;
  const bytes = new Uint8Array(HEAD_BYTES + 2 * (voters.length + learners.length));
  const view = new DataView(bytes.buffer);
  bytes[0] = VERSION;
  bytes[1] = voters.length;
  view.setUint16(2, learners.length, true);
  [...voters, ...learners].forEach((id, place) => view.setUint16(HEAD_BYTES + 2 * place, id, true));
  return bytes;
}

/**
 * Reads a configuration from a peer or the disk.
 *
 * @returns null where the bytes are none
 */
export function decodeConfiguration(bytes: Uint8Array): Configuration | null {
  if (bytes.length < HEAD_BYTES || bytes[0] !== VERSION) return null;
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const voterCount = bytes[1];
  const learnerCount = view.getUint16(2, true);
  if (voterCount > VOTERS_MAX || learnerCount > LEARNERS_MAX) return null;
  if (bytes.length !== HEAD_BYTES + 2 * (voterCount + learnerCount)) return null;
  const ids = Array.from(
    { length: voterCount + learnerCount },
    (_, place) => view.getUint16(HEAD_BYTES + 2 * place, true),
  );
  const voters = ids.slice(0, voterCount);
  const learners = ids.slice(voterCount);
  const isSound = isAscending(voters) && isAscending(learners) && new Set(ids).size === ids.length;
  return isSound ? { voters, learners } : null;
}

/** Nodes that make a majority of `count`. */
export function majorityOf(count: number): number {
  return Math.floor(count / 2) + 1;
}

/**
 * The highest value that a majority of the voters has reached.
 *
 * @param voters at least one
 * @param valueOf what a voter has reached
 */
export function quorumValue(
  voters: readonly number[],
  valueOf: (voter: number) => number,
): number {
  const values = voters.map(valueOf).sort((a, b) => b - a);
  return values[majorityOf(values.length) - 1];
}

function isAscending(ids: readonly number[]): boolean {
  return ids.every((id, place) => id > (place === 0 ? 0 : ids[place - 1]));
}

function having(ids: readonly number[], id: number): readonly number[] {
  return [...ids, id].sort((a, b) => a - b);
}

function lacking(ids: readonly number[], id: number): readonly number[] {
  return ids.filter((each) => each !== id);
}
