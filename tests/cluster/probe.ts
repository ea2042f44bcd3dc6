import type { GroupSummary } from "../../agent/map/group_summary.ts";
import type { Host } from "./hosts.ts";

/** What a host's agent knows of the cluster. */
export interface View {
  epoch: number;
  leader: number;
  self: number;
  voters: number[];
  nodes: { id: number; name: string; state: string; incarnation: number }[];
  groups: GroupSummary;
  targets: number[];
  // deno-lint-ignore no-explicit-any
  [more: string]: any;
}

export async function view(host: Host): Promise<View> {
  using client = Deno.createHttpClient({
    proxy: { transport: "unix", path: `${host.runDir}/probe.sock` },
  });
  const response = await fetch("http://probe/", { client, signal: AbortSignal.timeout(3000) });
  return await response.json();
}
