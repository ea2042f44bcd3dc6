// Until the command line has the flags.
import { readFileSync } from "node:fs";
import { parseArgs } from "node:util";
import { parseClusterSecret } from "../../agent/cluster_secret.ts";
import { loadConfig } from "../../agent/config.ts";
import { startAgent } from "../../agent/agent.ts";
import { ClusterNode } from "../../agent/cluster_node.ts";
import { summarizeGroups } from "../../agent/map/group_summary.ts";
import { unwrap } from "../../agent/map/errors.ts";

const { values } = parseArgs({
  args: Deno.args.filter((arg) => arg !== "agent"),
  options: Object.fromEntries(
    ["run-dir", "data", "capacity", "listen", "name", "join", "secret-file", "log-level"].map((
      name,
    ) => [name, { type: "string" as const }]),
  ),
});
const v = values as Record<string, string>;
const config = {
  ...loadConfig({
    flags: {
      data: v.data,
      capacity: v.capacity,
      runDir: v["run-dir"],
      listen: v.listen,
      logLevel: v["log-level"],
    },
  }),
  join: v.join === undefined ? [] : [v.join],
  name: v.name,
  secret: unwrap(parseClusterSecret(readFileSync(v["secret-file"], "utf8"))),
};
let node: ClusterNode;
const original = ClusterNode.start;
ClusterNode.start = async (parts) => node = await original.call(ClusterNode, parts);
Deno.mkdirSync(v["run-dir"], { recursive: true, mode: 0o700 });
try {
  Deno.removeSync(`${v["run-dir"]}/probe.sock`);
} catch { /* none */ }
Deno.serve({ path: `${v["run-dir"]}/probe.sock`, onListen: () => {} }, () => {
  const { map, status } = node.control;
  return Response.json({
    epoch: map.epoch,
    leader: status.leader,
    self: status.node,
    voters: map.voters,
    nodes: map.nodes.map((n) => ({ id: n.id, name: n.name, state: n.state, incarnation: n.incarnation })),
    groups: summarizeGroups(map),
    targets: map.pools.map((p) => Math.min(...p.pgs.map((pg) => pg.target.length))),
    pg0: map.pools[0]?.pgs[0],
    disks: map.disks,
    waiting: node.lastStatus,
    raft: status.raft,
  });
});
const agent = await startAgent(config);
Deno.addSignalListener("SIGTERM", () => void agent.stop().catch(() => {}));
await agent.finished;
Deno.exit(0);
