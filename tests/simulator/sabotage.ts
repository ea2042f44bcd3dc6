/**
 * Builds that are broken on purpose, so that a test can show that the simulation's checkers see it. Nothing of this is in the product:
 * parts of a process that has just been put together are replaced from outside.
 *
 * @module
 */
import { Head, HEAD_BYTES, MessageType } from "../../agent/replication/messages.ts";
import type { PeerRequest } from "../../agent/replication/peers.ts";
import type { ClusterView, DiskView, GroupView } from "../../agent/replication/view.ts";
import type { Simulation } from "./cluster.ts";
import type { Process } from "./node.ts";

function isChange(type: number): boolean {
  return type === MessageType.Write || type === MessageType.Free || type === MessageType.Zero;
}

/** Takes a write for acknowledged by another node as soon as it has been given to the network. */
export function acknowledgeEarly(process: Process, simulation: Simulation): void {
  const { peers } = process.data!;
  const submit = peers.submit.bind(peers);
  peers.submit = (node: number, request: PeerRequest) => {
    submit(node, request);
    const { owner, use } = request;
    if (!isChange(request.head.type)) return;
    simulation.world.after(0, () => {
      const isGone = process.isDead || !request.isQueued || request.owner !== owner ||
        request.use !== use;
      if (isGone) return;
      owner!.answered(request, new Head(), new Uint8Array(0), 0, 0);
      if (request.isQueued && request.use === use) peers.cancel(request);
    });
  };
}

/** A replica takes writes of any lease and any epoch. */
export function forgetToFence(process: Process): void {
  const { replica } = process.data!;
  const nodes = new Map<number, number>();
  const linkUp = replica.linkUp.bind(replica);
  replica.linkUp = (link, node, incarnation) => {
    nodes.set(link, node);
    linkUp(link, node, incarnation);
  };
  const received = replica.received.bind(replica);
  const head = new Head();
  replica.received = (link, bytes, headBytes, dataOffset, dataBytes) => {
    const { view } = replica;
    const isWrite = headBytes >= HEAD_BYTES &&
      head.decode(bytes.subarray(0, headBytes)) && isChange(head.type);
    if (view === null || !isWrite) return received(link, bytes, headBytes, dataOffset, dataBytes);
    replica.view = unfenced(view, nodes.get(link) ?? 0, head);
    const isGood = received(link, bytes, headBytes, dataOffset, dataBytes);
    replica.view = view;
    return isGood;
  };
}

/** A view by which whoever sent a write holds the lease, and nothing has changed since. */
function unfenced(view: ClusterView, sender: number, { generation }: Head): ClusterView {
  const open = (disk: DiskView | undefined) =>
    disk && { ...disk, holder: sender, entry: { ...disk.entry, generation } };
  return new Proxy(view, {
    get(target, name) {
      if (name === "disk") return (id: number) => open(target.disk(id));
      if (name === "groupOf") {
        return (disk: DiskView, chunk: number): GroupView => {
          const group = target.groupOf(disk, chunk);
          return { ...group, isOpen: true, entry: { ...group.entry, changedEpoch: 0 } };
        };
      }
      const value = Reflect.get(target, name, target);
      return typeof value === "function" ? value.bind(target) : value;
    },
  });
}

/** A replica that lacks writes, since it was away, takes itself for one that may be read. */
export function readOutOfSync(process: Process): void {
  const data = process.data!;
  const setMap = data.setMap.bind(data);
  data.setMap = (map, self, incarnation) => {
    setMap(map, self, incarnation);
    if (!data.hasMap) return;
    for (const groups of data.view.pools()) {
      for (const group of groups) {
        const { target, inSync } = group.entry;
        if (!target.includes(self) || inSync.includes(self)) continue;
        (group as { readFrom: number }).readFrom = self;
      }
    }
  };
}
