/**
 * Builds that are broken on purpose, so that a test can show that the simulation's checkers see it. Nothing of this is in the product:
 * parts of a process that has just been put together are replaced from outside.
 *
 * @module
 */
import { drainingLayer } from "../../agent/map/map.ts";
import { OperationKind } from "../../agent/store/operation.ts";
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

/** A holder says at once that nothing is on its way any more into the layer of a snapshot. */
export function drainAtOnce(process: Process): void {
  const data = process.data!;
  const setMap = data.setMap.bind(data);
  data.setMap = (map, self, incarnation) => {
    setMap(map, self, incarnation);
    for (const disk of map.disks) {
      const layer = drainingLayer(disk);
      if (layer === 0 || disk.lease?.node !== self) continue;
      const { id, generation } = disk;
      process.control!.propose({ kind: "snapshot-taken", id, layer, generation });
    }
  };
}

/** A node replaces blocks, and does not look at what comes to them meanwhile. */
export function replaceBlindly(process: Process): void {
  process.data!.replica.watch = () => {};
}

/** A node forgets what it is to merge into the layer above. */
export function forgetAbsorbed(process: Process): void {
  const { store } = process.data!;
  const submit = store.submit.bind(store);
  store.submit = (operation) => {
    if (operation.kind === OperationKind.Absorb) {
      store.dropChunk(operation.layers[1], operation.chunk, () => {});
    }
    submit(operation);
  };
}

/** A node goes on with what a disk held before it was rolled back. */
export function forgetRollback(process: Process): void {
  const data = process.data!;
  const setMap = data.setMap.bind(data);
  data.setMap = (map, self, incarnation) => {
    let { disks, layers } = map;
    for (const { disk: old } of map.trash) {
      const at = disks.findIndex(({ name }) => name === old.name);
      if (at < 0 || disks[at].layers.includes(old.layers[0])) continue;
      const [newest] = disks[at].layers;
      disks = disks.with(at, { ...disks[at], layers: [newest, ...old.layers] });
      layers = layers.map((each) => each.id === newest ? { ...each, parent: old.layers[0] } : each);
    }
    setMap(disks === map.disks ? map : { ...map, disks, layers }, self, incarnation);
  };
}

/** A node gives up what a disk held before it was rolled back, as if nobody could want it again. */
export function giveUpLeft(process: Process): void {
  const data = process.data!;
  const setMap = data.setMap.bind(data);
  const gone = new Set<number>();
  data.setMap = (map, self, incarnation) => {
    setMap(map, self, incarnation);
    for (const { disk: { layers: [newest] } } of map.trash) {
      if (gone.has(newest)) continue;
      gone.add(newest);
      data.store.deleteLayer(newest, () => {});
    }
  };
}

/** A replica takes writes of any lease. */
export function forgetLeases(process: Process): void {
  unfence(process, (view, sender, { generation }) => {
    const disk = (id: number) => {
      const known = view.disk(id);
      return known && { ...known, holder: sender, entry: { ...known.entry, generation } };
    };
    return overlaid(view, { disk });
  });
}

/** A replica takes writes of any epoch, whatever has become of the group since. */
export function forgetEpochs(process: Process): void {
  unfence(process, (view) => {
    const groupOf = (disk: DiskView, chunk: number): GroupView => {
      const known = view.groupOf(disk, chunk);
      return { ...known, isOpen: true, entry: { ...known.entry, changedEpoch: 0 } };
    };
    return overlaid(view, { groupOf });
  });
}

/** Has a replica judge each write that comes from another node by another view than its own. */
function unfence(
  process: Process,
  viewFor: (view: ClusterView, sender: number, head: Head) => ClusterView,
): void {
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
    replica.view = viewFor(view, nodes.get(link) ?? 0, head);
    const isGood = received(link, bytes, headBytes, dataOffset, dataBytes);
    replica.view = view;
    return isGood;
  };
}

/** A view of which some methods are others. */
function overlaid(view: ClusterView, methods: Partial<ClusterView>): ClusterView {
  return new Proxy(view, {
    get(target, name) {
      const value = Reflect.get(methods, name) ?? Reflect.get(target, name, target);
      return typeof value === "function" ? value.bind(target) : value;
    },
  });
}

/** A node that begins to join the PGs of a family, as its number of copies is changed, says at once that it has everything. */
export function confirmAtOnce(process: Process): void {
  const data = process.data!;
  const setMap = data.setMap.bind(data);
  data.setMap = (map, self, incarnation) => {
    setMap(map, self, incarnation);
    for (const { id: pool, family, pgs: entries } of map.pools) {
      if (family === 0) continue;
      const pgs = [...entries.keys()].filter((pg) => entries[pg].joining.includes(self));
      if (pgs.length === 0) continue;
      const basedOnEpoch = map.epoch;
      process.control!.propose({
        kind: "in-sync",
        pool,
        pgs,
        node: self,
        incarnation,
        basedOnEpoch,
      });
    }
  };
}

/** A holder does not send its writes to those who join the PGs of a family, as its number of copies is changed. */
export function forgetNewPlaces(process: Process): void {
  const data = process.data!;
  const setMap = data.setMap.bind(data);
  data.setMap = (map, self, incarnation) => {
    setMap(map, self, incarnation);
    if (!data.hasMap) return;
    for (const { id, family } of map.pools) {
      if (family === 0) continue;
      for (const group of data.view.pool(id)) {
        (group as { members: readonly number[] }).members = group.entry.inSync;
      }
    }
  };
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

/** What a guest that has gone has left is given up, and the lease goes back as if replicas were equal. */
export function settleGivenUp(process: Process): void {
  const leases = process.leases!;
  const released = leases.released.bind(leases);
  leases.released = (disk, { done } = {}) => released(disk, { done });
}
