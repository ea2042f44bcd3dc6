/**
 * Why a node is not in the cluster that it is to join, in words.
 *
 * @module
 */
import { assertEquals, assertStringIncludes } from "@std/assert/mod.js";
import { type JoinConnection, joinProblems, type JoinState } from "../../agent/join_problem.ts";
import type { HandshakeErrorCode } from "../../agent/wire/handshake.ts";

const SEED = "host-1:7460", LEADER = "host-3:7460";

function connection(part: Partial<JoinConnection> = {}): JoinConnection {
  return { address: SEED, isUp: false, lastError: "", refusal: null, ...part };
}

/** A node that was told to join one host. */
function state(connections: readonly JoinConnection[], part: Partial<JoinState> = {}): JoinState {
  return {
    seeds: [SEED],
    address: "host-2:7460",
    connections,
    leader: "",
    refused: null,
    node: 0,
    ...part,
  };
}

Deno.test("each way of not being let in has its reason, and what to do", () => {
  const failed = (lastError: string, refusal: HandshakeErrorCode | null = null) =>
    connection({ lastError, refusal });
  const up = connection({ isUp: true, lastError: "the other end closed the connection" });
  const leader = { ...failed("no answer within 5 s"), address: LEADER };
  const cases: [JoinState, boolean, string, string][] = [
    [state([]), true, "it has not answered yet", "7461 (TCP)"],
    [state([connection()]), true, "it has not answered yet", "7461 (TCP)"],
    [
      state([failed("Connection refused (os error 111)")]),
      false,
      "it cannot be reached: Connection refused (os error 111)",
      "that the agent there runs",
    ],
    [
      state([failed("handshake: …", "UNANSWERED")]),
      false,
      "it refuses the cluster secret of this node",
      "'kelpie cluster secret' prints",
    ],
    [
      state([failed("handshake: …", "SECRET")]),
      false,
      "it refuses the cluster secret of this node",
      "--secret-file",
    ],
    [
      state([failed("handshake: the peer speaks protocols 3 to 4", "PROTOCOL")]),
      false,
      "it speaks another version: the peer speaks protocols 3 to 4",
      "install the version of the cluster",
    ],
    [
      state([{ ...failed("handshake: …", "PURPOSE"), address: "host-1:7461" }], {
        seeds: ["host-1:7461"],
      }),
      false,
      "this is its port for data",
      "name host-1:7460 in --join",
    ],
    [state([failed("handshake: …", "SELF")]), false, "this is the node itself", "another host"],
    [state([failed("…", "NOT_KELPIE")]), false, "no agent of Kelpie", "--listen"],
    [state([up]), true, "no answer has come", "reach this one at host-2:7460"],
    [state([up], { leader: LEADER }), true, "no answer has come", "--address"],
    [
      state([up, leader], { leader: LEADER }),
      false,
      "it names host-3:7460 as leader: it cannot be reached: no answer within 5 s",
      "7461 (TCP)",
    ],
    [
      state([up], { refused: "the name is taken" }),
      false,
      "the cluster does not take this node in: the name is taken",
      "goes on asking",
    ],
    [state([up], { node: 3 }), true, "it was taken in as node 3", "reach this one at host-2:7460"],
  ];
  for (const [seen, isWaiting, reason, hint] of cases) {
    const [problem, ...more] = joinProblems(seen);
    assertStringIncludes(problem.reason, reason);
    assertStringIncludes(problem.hint, hint);
    assertEquals([problem.address, problem.isWaiting, more], [seen.seeds[0], isWaiting, []]);
  }
});

Deno.test("of several hosts that were named each has its own reason, and what the cluster says is said once", () => {
  const seeds = [SEED, LEADER];
  const connections = [
    connection({ lastError: "Connection refused" }),
    connection({ address: LEADER, lastError: "handshake: …", refusal: "UNANSWERED" }),
  ];
  assertEquals(
    joinProblems(state(connections, { seeds })).map(({ address, reason }) => [
      address,
      reason,
    ]),
    [
      [SEED, "it cannot be reached: Connection refused"],
      [LEADER, "it refuses the cluster secret of this node"],
    ],
  );
  const refused = joinProblems(state(connections, { seeds, refused: "it is too old" }));
  assertEquals(refused.map(({ address }) => address), [`${SEED}, ${LEADER}`]);
  const again = joinProblems(state([], { seeds: [], node: 2 }));
  assertEquals(again.map(({ address }) => address), ["its cluster"]);
});
