/**
 * Why a node that is to join a cluster is not in it yet, and what to do: for the log, `kelpie status` and whoever asks this
 * node to do something meanwhile. Pure: what connections to the nodes that were named say, in words.
 *
 * All that a node with another secret can know is that it gets no answer. So that is taken to mean another secret, and
 * the words say what else it may be.
 *
 * @module
 */

import type { JoiningNode } from "./http/backend.ts";
import { DATA_PORT_OFFSET } from "./platform/network.ts";
import { withPortOffset } from "./platform/address.ts";
import type { HandshakeErrorCode } from "./wire/handshake.ts";

/** A connection to a node that was asked, or is to be. */
export interface JoinConnection {
  /** `host:port` */
  readonly address: string;
  readonly isUp: boolean;
  /** Why the last one ended; empty: none has. */
  readonly lastError: string;
  /** Why its handshake failed; null: it did not, or nobody was reached. */
  readonly refusal: HandshakeErrorCode | null;
}

/** How a node tries to join. */
export interface JoinState {
  /** `host:port` of nodes of the cluster, as they were named; empty: it has joined before. */
  readonly seeds: readonly string[];
  /** `host:port` where others reach this node. */
  readonly address: string;
  readonly connections: readonly JoinConnection[];
  /** `host:port` of who leads, as one of the others has said; empty: none has. */
  readonly leader: string;
  /** Why the leader does not take this node in; null: it has not said so lately. */
  readonly refused: string | null;
  /** Its number; 0: it has not been taken in. Where it has one, it lacks the map. */
  readonly node: number;
}

/** Why this node is not in its cluster yet: of the node that was to take it in, or several. */
export interface JoinProblem extends JoiningNode {
  /** It may be over in a moment: worth a line of the log only when it has lasted. */
  readonly isWaiting: boolean;
}

/**
 * Says why a node has not joined.
 *
 * @returns one for each of the nodes that were named, or one for all
 *
 * @example
 * ```ts
 * import { joinProblems } from "./join_problem.ts";
 *
 * const address = "host-1:7460";
 * const [{ reason }] = joinProblems({
 *   seeds: [address],
 *   address: "host-2:7460",
 *   connections: [{ address, isUp: false, lastError: "Connection refused", refusal: null }],
 *   leader: "",
 *   refused: null,
 *   node: 0,
 * });
 * if (reason !== "it cannot be reached: Connection refused") throw new Error(reason);
 * ```
 */
export function joinProblems(state: JoinState): JoinProblem[] {
  const { seeds, refused, node } = state;
  const all = seeds.join(", ") || "its cluster";
  if (node !== 0) {
    return [{
      address: all,
      reason: `it was taken in as node ${node}, and the map of the cluster has not come yet`,
      hint: howToBeReached(state),
      isWaiting: true,
    }];
  }
  if (refused !== null) {
    return [{
      address: all,
      reason: `the cluster does not take this node in: ${refused}`,
      hint: "it goes on asking",
      isWaiting: false,
    }];
  }
  return seeds.map((seed) => ({ address: seed, ...problemOf(seed, state) }));
}

/** What there is to do where others may be unable to reach this node: their answers come by connections of their own. */
function howToBeReached({ address }: JoinState): string {
  return `nodes of the cluster must reach this one at ${address}, which --address changes, and a majority of ` +
    "its voters must be there: see 'kelpie status' on that host";
}

function problemOf(seed: string, state: JoinState): Omit<JoinProblem, "address"> {
  const connection = state.connections.find(({ address }) => address === seed);
  if (connection === undefined || (!connection.isUp && connection.lastError === "")) {
    return { reason: "it has not answered yet", hint: portsHint(seed), isWaiting: true };
  }
  if (!connection.isUp) return { ...connectionProblem(connection), isWaiting: false };
  const leader = state.connections.find(({ address }) => address === state.leader);
  if (leader === undefined || leader.isUp || leader.lastError === "") {
    const reason = "it has been asked, and no answer has come";
    return { reason, hint: howToBeReached(state), isWaiting: true };
  }
  const { reason, hint } = connectionProblem(leader);
  return { reason: `it names ${state.leader} as leader: ${reason}`, hint, isWaiting: false };
}

function connectionProblem(
  { address, lastError, refusal }: JoinConnection,
): Pick<JoinProblem, "reason" | "hint"> {
  switch (refusal) {
    case "UNANSWERED":
    case "SECRET":
      return {
        reason: "it refuses the cluster secret of this node",
        hint:
          "write what 'kelpie cluster secret' prints on that host into the file of --secret-file, and start this " +
          "agent anew; if it is the same, see what listens there",
      };
    case "PROTOCOL":
      return {
        reason: `it speaks another version: ${lastError.replace(/^handshake: /, "")}`,
        hint: "install the version of the cluster, which 'kelpie node list' shows there",
      };
    case "PURPOSE":
      return {
        reason: "this is its port for data",
        hint: `name ${withPortOffset(address, -DATA_PORT_OFFSET)} in --join`,
      };
    case "SELF":
      return { reason: "this is the node itself", hint: "name another host in --join" };
    case "NOT_KELPIE":
      return {
        reason: "what listens there is no agent of Kelpie",
        hint: "name the host and port at which an agent listens (its --listen) in --join",
      };
    default:
      return { reason: `it cannot be reached: ${lastError}`, hint: portsHint(address) };
  }
}

function portsHint(address: string): string {
  return `see that the address is right, that the agent there runs, and that nothing between the hosts keeps this port ` +
    `(TCP and UDP) and ${withPortOffset(address, DATA_PORT_OFFSET)} (TCP) from it`;
}
