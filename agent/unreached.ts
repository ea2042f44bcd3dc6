/**
 * Nodes that are up and have no copies because a host where disks are open cannot reach them, in words.
 *
 * @module
 */
import { type ClusterMap, hasDisks, type NodeEntry, type PgEntry } from "./map/map.ts";
import { withPortOffset } from "./platform/address.ts";
import { DATA_PORT_OFFSET } from "./platform/network.ts";

/**
 * Why a node that is up does not get what it should hold: the leader lets nobody join whom a holder of leases cannot reach.
 *
 * @param reports by node: ids of the nodes to which it has no connection for data
 * @returns in words, beginning in lower case; null: it has all, or that is not what it waits for
 */
export function unreachedText(
  map: ClusterMap,
  node: NodeEntry,
  reports: ReadonlyMap<number, { readonly disconnected: readonly number[] }>,
): string | null {
  const lacks = ({ target, inSync, joining }: PgEntry) =>
    target.includes(node.id) && !inSync.includes(node.id) && !joining.includes(node.id);
  if (node.state !== "up") return null;
  if (!map.pools.some(({ id, pgs }) => hasDisks(map, id) && pgs.some(lacks))) return null;
  const holders = new Set(map.disks.map(({ lease }) => lease?.node ?? 0));
  const by = map.nodes.filter(({ id, state }) =>
    id !== node.id && state === "up" && holders.has(id) &&
    reports.get(id)?.disconnected.includes(node.id) === true
  );
  if (by.length === 0) return null;
  const address = withPortOffset(node.address, DATA_PORT_OFFSET);
  return `${by.map(({ name }) => name).join(", ")}, where disks are open, ` +
    `${by.length === 1 ? "has" : "have"} no connection to ${address} (TCP)`;
}
