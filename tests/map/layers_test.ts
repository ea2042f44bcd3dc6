/**
 * Trees of layers beside a model that knows what every disk and snapshot holds.
 *
 * What a layer holds is a list of names, newest first: its own id, and those of layers that were absorbed into it. What a disk holds is
 * what its chain holds, one after the other, and that never changes but by commands that are meant to change it. Each node has lists of its
 * own, which are other than other nodes' while it has absorbed what they have not.
 *
 * @module
 */
import { assert, assertEquals } from "@std/assert/mod.js";
import { Prng } from "../../agent/base/prng.ts";
import { collectLayers } from "../../agent/map/layers.ts";
import {
  apply,
  chainOf,
  type ClusterMap,
  type DiskEntry,
  findLayer,
  type LayerEntry,
  type MapCommand,
  storageNodes,
} from "../../agent/map/map.ts";
import { absorberOf, addNode, checkApplied, clusterAtLevelTwo, freeze } from "./cluster.ts";

const SEEDS = 40;
const STEPS = 120;

/** What one node has: names by layer. */
type Held = Map<number, readonly number[]>;

/** Everything that has content of its own: the disks, those in the trash, and snapshots, each with its newest layer. */
function owners(map: ClusterMap): Map<string, number> {
  const all = new Map<string, number>();
  for (const disk of [...map.disks, ...map.trash.map((entry) => entry.disk)]) {
    all.set(`disk ${disk.id}`, disk.layers[0]);
    for (const { layer } of disk.snapshots) all.set(`snapshot ${layer}`, layer);
  }
  return all;
}

class World {
  readonly random: Prng;
  map: ClusterMap;
  readonly nodes = new Map<number, Held>();
  /** What each disk and snapshot must hold. */
  readonly expected = new Map<string, readonly number[]>();
  counts = new Map<string, number>();

  constructor(seed: number) {
    this.random = new Prng(seed);
    this.map = clusterAtLevelTwo(1 + this.random.below(3), "d1", "d2");
    for (const { id } of storageNodes(this.map)) this.nodes.set(id, new Map());
    for (const { id } of this.map.layers) this.hold(id);
    for (const [owner, layer] of owners(this.map)) this.expected.set(owner, [layer]);
  }

  /** A new layer is on every node, and holds what is written to it. */
  hold(layer: number): void {
    for (const held of this.nodes.values()) held.set(layer, [layer]);
  }

  pick<T>(list: readonly T[]): T {
    return list[this.random.below(list.length)];
  }

  command(): MapCommand {
    const { map, random } = this;
    const name = map.disks.length > 0 ? this.pick(map.disks).name : "none";
    const disk = map.disks.find((each) => each.name === name);
    const snapshot = disk !== undefined && disk.snapshots.length > 0
      ? this.pick(disk.snapshots).name
      : "none";
    const nowMs = map.epoch;
    const trashed = map.trash.length > 0 ? this.pick(map.trash).disk.id : 0;
    const newName = `d${map.nextDisk}`;
    const share = random.below(100);
    if (share < 4) return { kind: "create-disk", name: newName, sizeBytes: 512, nowMs, copies: 1 };
    if (share < 30) {
      const ids = map.disks.filter(() => random.below(3) === 0).map(({ id }) => id);
      return { kind: "create-snapshots", disks: ids, name: `s${map.epoch}`, nowMs };
    }
    if (share < 42) return { kind: "clone-disk", disk: name, snapshot, name: newName, nowMs };
    if (share < 48) return { kind: "rollback-disk", disk: name, snapshot, nowMs };
    if (share < 75) return { kind: "delete-snapshot", disk: name, name: snapshot };
    if (share < 80) return { kind: "delete-disk", name };
    if (share < 84) return { kind: "delete-disk", name, trashedMs: nowMs };
    if (share < 87) return { kind: "restore-disk", id: trashed, name: newName };
    if (share < 95) return { kind: "purge-disk", id: trashed };
    if (share < 98) {
      const number = map.nextNode;
      return addNode(number, { protocol: 2, witness: random.below(5) === 0 });
    }
    const { id: node } = this.pick(map.nodes);
    return { kind: "remove-node", node, force: random.below(2) === 0, acceptLoss: true, nowMs };
  }

  step(): void {
    if (this.random.below(3) === 0) return this.absorb();
    const command = this.command();
    if (command.kind === "remove-node" && command.force === true) {
      this.apply({ kind: "node-down", node: command.node, incarnation: 1, nowMs: 0 });
      const voters = this.map.nodes.map(({ id }) => id).filter((id) => id !== command.node);
      if (voters.length > 0) this.apply({ kind: "set-voters", voters: voters.slice(0, 3) });
    }
    this.apply(command);
  }

  apply(command: MapCommand): void {
    const before = this.map;
    const result = apply(freeze(before), command);
    if (!result.ok) return;
    const { map } = result.value;
    checkApplied(before, result.value);
    this.map = map;
    if (map !== before) this.counts.set(command.kind, (this.counts.get(command.kind) ?? 0) + 1);
    for (const node of this.nodes.keys()) {
      if (!map.nodes.some(({ id }) => id === node)) this.nodes.delete(node);
    }
    for (const { id } of map.layers) if (id >= before.nextLayer) this.hold(id);
    for (const { id } of storageNodes(map)) if (!this.nodes.has(id)) this.copy(id);
    for (const { id } of before.layers) {
      if (findLayer(map.layers, id) === undefined) {
        for (const held of this.nodes.values()) held.delete(id);
      }
    }
    this.expect(before, command);
  }

  /** A node that is new gets everything from another one: where a layer is being absorbed, its child stands for both. */
  copy(node: number): void {
    const [source] = this.nodes.values();
    const held: Held = new Map();
    for (const { id, parent } of this.map.layers) {
      const below = findLayer(this.map.layers, parent);
      const both = below?.absorbedBy != null ? source.get(parent)! : [];
      held.set(id, [...source.get(id)!, ...both]);
    }
    for (const { id, absorbedBy } of this.map.layers) if (absorbedBy !== null) held.set(id, []);
    this.nodes.set(node, held);
  }

  /** A node absorbs some of what there is to absorb, and says so, or not yet. */
  absorb(): void {
    const nodes = [...this.nodes.keys()];
    if (nodes.length === 0) return;
    const node = this.pick(nodes);
    const held = this.nodes.get(node)!;
    const done: number[] = [];
    for (const { id, absorbedBy } of this.map.layers) {
      if (absorbedBy === null || this.random.below(3) === 0) continue;
      const child = absorberOf(this.map, id)!.id;
      held.set(child, [...held.get(child)!, ...held.get(id)!]);
      held.set(id, []);
      if (!absorbedBy.includes(node) && this.random.below(2) === 0) done.push(id);
    }
    const { incarnation } = this.map.nodes.find(({ id }) => id === node)!;
    this.apply({ kind: "absorbed", node, incarnation, layers: done });
  }

  /** What is held is as before, but for what the command is meant to change. */
  expect(before: ClusterMap, command: MapCommand): void {
    const now = owners(this.map);
    for (const owner of this.expected.keys()) if (!now.has(owner)) this.expected.delete(owner);
    for (const [owner, layer] of now) {
      const isNew = layer >= before.nextLayer;
      const was = this.expected.get(owner);
      if (was !== undefined && !isNew) continue;
      if (command.kind === "rollback-disk" && isNew) {
        const snapshot = before.disks.find(({ name }) => name === command.disk)!.snapshots
          .find(({ name }) => name === command.snapshot)!;
        this.expected.set(owner, [layer, ...this.expected.get(`snapshot ${snapshot.layer}`)!]);
      } else if (command.kind === "clone-disk" && isNew) {
        const snapshot = before.disks.find(({ name }) => name === command.disk)!.snapshots
          .find(({ name }) => name === command.snapshot)!;
        this.expected.set(owner, [layer, ...this.expected.get(`snapshot ${snapshot.layer}`)!]);
      } else if (command.kind === "create-snapshots" && isNew) {
        this.expected.set(owner, [layer, ...was!]);
      } else if (command.kind === "create-disk") {
        this.expected.set(owner, [layer]);
      } else if (owner.startsWith("disk")) {
        // Rolling back has made a disk in the trash of what the disk was.
        const { disk } = this.map.trash.find((entry) => `disk ${entry.disk.id}` === owner)!;
        this.expected.set(owner, this.before.get(disk.layers[0])!);
      } else {
        // A snapshot: what the disk held.
        this.expected.set(owner, this.before.get(layer)!);
      }
    }
    this.before.clear();
    for (const [owner, layer] of now) this.before.set(layer, this.expected.get(owner)!);
  }
  /** By newest layer, what was held before the last command. */
  readonly before = new Map<number, readonly number[]>();

  check(): void {
    for (const [node, held] of this.nodes) {
      for (const [owner, layer] of owners(this.map)) {
        const names = chainOf(this.map.layers, layer).flatMap((id) => held.get(id)!);
        assertEquals(names, this.expected.get(owner), `node ${node}: ${owner}`);
      }
    }
    const inPairs = new Set<number>();
    for (const { id, absorbedBy } of this.map.layers) {
      if (absorbedBy === null) continue;
      for (const each of [id, absorberOf(this.map, id)!.id]) {
        assert(!inPairs.has(each), `layer ${each} is in two pairs`);
        inPairs.add(each);
      }
    }
  }

  /** Once every node says that it has absorbed what there is, round by round, only what is needed is left. */
  settle(): void {
    for (let round = 0;; round++) {
      const layers = this.map.layers.filter(({ absorbedBy }) => absorbedBy !== null);
      if (layers.length === 0) break;
      assert(round < 20, "there is no end of absorbing");
      const ids = layers.map(({ id }) => id);
      for (const [node, held] of this.nodes) {
        for (const id of ids) {
          // The node before this one may have been the last.
          const child = absorberOf(this.map, id)?.id;
          if (child === undefined) continue;
          held.set(child, [...held.get(child)!, ...held.get(id)!]);
          held.set(id, []);
        }
        const { incarnation } = this.map.nodes.find((each) => each.id === node)!;
        this.apply({ kind: "absorbed", node, incarnation, layers: ids });
      }
      this.check();
    }
    const needed = new Set(owners(this.map).values());
    for (const { id } of this.map.layers) {
      const children = this.map.layers.filter(({ parent }) => parent === id).length;
      assert(needed.has(id) || children > 1, `layer ${id} is left over`);
    }
  }
}

Deno.test("what disks and snapshots hold never changes, on no node, and what nobody needs goes in the end", () => {
  const counts = new Map<string, number>();
  for (let seed = 1; seed <= SEEDS; seed++) {
    const world = new World(seed);
    world.expect(world.map, { kind: "trim", pool: 1, pgs: [] });
    for (let step = 0; step < STEPS; step++) {
      try {
        world.step();
        world.check();
        if (step % 40 === 39) world.settle();
      } catch (error) {
        throw new Error(`seed ${seed} step ${step}: ${(error as Error).message}`, { cause: error });
      }
    }
    for (const [kind, count] of world.counts) counts.set(kind, (counts.get(kind) ?? 0) + count);
  }
  for (
    const kind of [
      "create-disk",
      "create-snapshots",
      "clone-disk",
      "rollback-disk",
      "delete-snapshot",
      "delete-disk",
      "restore-disk",
      "purge-disk",
      "absorbed",
      "add-node",
      "remove-node",
    ]
  ) {
    assert((counts.get(kind) ?? 0) > 20, `${kind}: ${counts.get(kind)}`);
  }
});

/** What has to be left of a tree: what is needed, and what lies below two or more of that; each above the next one below it. */
function contracted(
  layers: readonly LayerEntry[],
  needed: ReadonlySet<number>,
): [id: number, parent: number][] {
  const isKept = (id: number): boolean => needed.has(id) || branches(id) > 1;
  const branches = (id: number) =>
    layers.filter((layer) => layer.parent === id && isUsed(layer.id)).length;
  const isUsed = (id: number): boolean =>
    needed.has(id) || layers.some((layer) => layer.parent === id && isUsed(layer.id));
  const below = (id: number): number => {
    const parent = layers.find((layer) => layer.id === id)!.parent;
    return parent === 0 || isKept(parent) ? parent : below(parent);
  };
  return layers.filter(({ id }) => isKept(id)).map(({ id }) => [id, below(id)]);
}

Deno.test("collectLayers() leaves of any tree what a naive contraction leaves", () => {
  const [web] = clusterAtLevelTwo(1, "web").disks;
  for (let seed = 1; seed <= 400; seed++) {
    const random = new Prng(seed);
    const { nodes } = clusterAtLevelTwo(1 + random.below(3));
    const count = 1 + random.below(24);
    const straight = random.below(4);
    let layers: readonly LayerEntry[] = Array.from({ length: count }, (_, index) => ({
      id: index + 1,
      parent: random.below(4) < straight ? index : random.below(index + 1),
      absorbedBy: null,
    }));
    const needed = new Set(layers.map(({ id }) => id).filter(() => random.below(3) === 0));
    let disks: readonly DiskEntry[] = [...needed].map((id) => ({
      ...web,
      id,
      layers: chainOf(layers, id),
    }));
    const expected = contracted(layers, needed);
    let trash = disks.filter(() => random.below(4) === 0).map((disk) => ({
      disk,
      deletedMs: 0,
      expiresMs: 0,
    }));
    disks = disks.filter((disk) => trash.every((entry) => entry.disk !== disk));
    const what = `seed ${seed}`;
    for (let round = 0; round < 30; round++) {
      const before = { disks, trash, layers, nodes };
      const { fields, effects } = collectLayers(before);
      ({ disks, layers } = fields);
      trash = [...fields.trash];
      for (const id of needed) assert(findLayer(layers, id) !== undefined, `${what}: layer ${id}`);
      for (const disk of [...disks, ...trash.map((entry) => entry.disk)]) {
        assertEquals(disk.layers, chainOf(layers, disk.id), what);
      }
      const gone = before.layers.filter(({ id }) => findLayer(layers, id) === undefined);
      assertEquals(effects, gone.map(({ id: layer }) => ({ kind: "layer-dropped", layer })), what);
      for (const { id, absorbedBy } of layers) {
        if (absorbedBy === null) continue;
        const children = layers.filter(({ parent }) => parent === id);
        assertEquals([children.length, children[0].absorbedBy], [1, null], `${what}: layer ${id}`);
      }
      // Nothing is other where nothing has happened since.
      assertEquals(collectLayers({ disks, trash, layers, nodes }).fields.layers, layers, what);
      const absorbing = layers.filter(({ absorbedBy }) => absorbedBy !== null);
      if (absorbing.length === 0) break;
      layers = layers.map((layer) =>
        layer.absorbedBy === null || random.below(3) === 0
          ? layer
          : { ...layer, absorbedBy: nodes.map(({ id }) => id) }
      );
    }
    assertEquals(layers.map(({ id, parent }) => [id, parent]), expected, what);
  }
});
