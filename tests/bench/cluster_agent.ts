/**
 * One agent as a process of its own, for `cluster.ts`: told what to be by one argument in JSON, asked for its view of the
 * cluster by lines on standard input, each answered by one line of JSON.
 *
 * @module
 */
import type { Agent } from "../../agent/agent.ts";
import type { AgentConfig } from "../../agent/config.ts";
import type { ClusterMap } from "../../agent/map/map.ts";

/** What the process is told. */
export interface AgentOrder {
  /** Checkout whose code is run. */
  readonly root: string;
  readonly config: AgentConfig;
}

/** What the process answers: the parts of its map that the benchmark looks at. */
export interface AgentView {
  /** undefined: of a version without clusters. */
  readonly nodes: ClusterMap["nodes"] | undefined;
  readonly pools: ClusterMap["pools"];
  readonly disks: ClusterMap["disks"];
}

if (import.meta.main) {
  const order: AgentOrder = JSON.parse(Deno.args[0]);
  const { startAgent } = await import(`file://${order.root}/agent/agent.ts`);
  const agent: Agent & { map(): ClusterMap } = await startAgent(order.config);
  Deno.addSignalListener("SIGTERM", () => void agent.stop());
  const say = (value: unknown) =>
    Deno.stdout.writeSync(new TextEncoder().encode(`\n${JSON.stringify(value)}\n`));
  say("ready");
  void (async () => {
    for await (const _ of Deno.stdin.readable) {
      const { nodes, pools, disks } = agent.map();
      say({ nodes, pools, disks });
    }
  })();
  await agent.finished;
  Deno.exit(0);
}
