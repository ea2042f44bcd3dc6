/**
 * Snapshots hold one point in time, and never change: the map beside a model of holders, replicas and what guests were told.
 *
 * Every disk is on every node. Holders write through maps that they see late, lose their leases in every way, and are followed by others
 * who fence them and bring the replicas in line. Nodes absorb layers when they like. All of them keep the promises of the heads of
 * `snapshots.ts` and `layers.ts`, and nothing more. Who asks the map for what is random.
 *
 * After every step, on every node:
 *
 * - a disk holds every write that was acknowledged, or a later one, and nothing that it never had: also as a clone, after it
 *   was rolled back, in the trash, and back from there;
 * - a complete snapshot holds what it held at first, the same on all nodes.
 *
 * When snapshots that were taken together are complete, they hold every write that had been acknowledged when they were begun, and for
 * every write that they hold also those that had been acknowledged before it was made, on whichever of their disks.
 *
 * @module
 */
import { assert, assertEquals } from "@std/assert/mod.js";
import { Prng } from "../../agent/base/prng.ts";
import {
  apply,
  chainOf,
  checkMap,
  clonePoint,
  type ClusterMap,
  type DiskEntry,
  drainingLayer,
  findDisk,
  findLayer,
  type MapCommand,
  takingOf,
} from "../../agent/map/map.ts";
import { absorberOf, clusterAtLevelTwo } from "./cluster.ts";

const NODES = 3;
const BLOCKS = 4;
const SEEDS = 170;
const STEPS = 1200;
const DISKS = 6;

interface Write {
  /** Counted over all disks: of two of one disk, the later one has the higher. */
  readonly id: number;
  readonly disk: number;
  readonly generation: number;
  readonly layer: number;
  readonly block: number;
  /** How many writes had been acknowledged when it was made. */
  readonly after: number;
  readonly answers: Set<number>;
}

/** Blocks of one layer on one node: which write, 0 for one that was absorbed from below: a stamp of another disk says nothing here. */
type Blocks = Map<number, { id: number; stamp: number }>;

class Replica {
  readonly layers = new Map<number, Blocks>();
  /** By disk: the newest generation that it knows of. */
  readonly fences = new Map<number, number>();

  of(layer: number): Blocks {
    let blocks = this.layers.get(layer);
    if (blocks === undefined) this.layers.set(layer, blocks = new Map());
    return blocks;
  }

  put(layer: number, block: number, id: number, stamp: number): void {
    const there = this.of(layer).get(block);
    if (there === undefined || there.stamp < stamp) this.of(layer).set(block, { id, stamp });
  }

  read(chain: readonly number[]): number[] {
    return Array.from({ length: BLOCKS }, (_, block) => {
      for (const layer of chain) {
        const entry = this.layers.get(layer)?.get(block);
        if (entry !== undefined) return entry.id;
      }
      return 0;
    });
  }
}

/** One run of a front end, which has or had a lease. */
class Holder {
  isReady = false;
  readonly inFlight = new Set<Write>();

  constructor(readonly id: number, readonly generation: number, public view: ClusterMap) {}

  get entry(): DiskEntry | undefined {
    return this.view.disks.find(({ id }) => id === this.id);
  }
}

/** What a disk has to hold. */
interface Owed {
  /** What it began with. */
  readonly base: readonly number[];
  /** Layers that it has written to since. */
  readonly layers: Set<number>;
  readonly acknowledged: { block: number; id: number; at: number }[];
}

/** Things that go wrong on purpose, to show that it is noticed. */
interface Mistakes {
  readonly acknowledgesEarly?: boolean;
  readonly drainsEarly?: boolean;
  readonly forgetsDrainingLayer?: boolean;
  readonly flattensHalf?: boolean;
}

class World {
  readonly random: Prng;
  map: ClusterMap;
  readonly replicas = Array.from({ length: NODES }, () => new Replica());
  holders: Holder[] = [];
  readonly writes = new Map<number, Write>();
  readonly owed = new Map<number, Owed>();
  /** What complete snapshots hold, by layer. */
  readonly snapshots = new Map<number, readonly number[]>();
  /** How many writes had been acknowledged when they were begun, by layer. */
  readonly begun = new Map<number, number>();
  acknowledged = 0;
  checkedMap: ClusterMap | null = null;
  readonly counts = new Map<string, number>();

  constructor(seed: number, readonly mistakes: Mistakes) {
    this.random = new Prng(seed);
    this.map = clusterAtLevelTwo(NODES, "d1", "d2", "d3");
    for (const { id, layers } of this.map.disks) {
      const base = Array(BLOCKS).fill(0);
      this.owed.set(id, { base, layers: new Set(layers), acknowledged: [] });
    }
  }

  pick<T>(list: readonly T[]): T {
    return list[this.random.below(list.length)];
  }

  count(what: string): void {
    this.counts.set(what, (this.counts.get(what) ?? 0) + 1);
  }

  step(): void {
    const share = this.random.below(1000);
    if (share < 170) return this.write();
    if (share < 690) return this.deliver();
    if (share < 770) return this.look();
    if (share < 800) return this.begin();
    if (share < 850) return this.settle();
    if (share < 890) return this.drain();
    if (share < 900) return this.end();
    if (share < 930) return this.absorb();
    if (share < 960) return this.flatten();
    return this.ask();
  }

  // ------------------------------------------------------------------------------------ the map

  propose(command: MapCommand): boolean {
    const before = this.map;
    const result = apply(before, command);
    if (!result.ok || result.value.map === before) return false;
    this.map = result.value.map;
    assertEquals(checkMap(this.map), null);
    this.count(command.kind);
    this.account(before, command);
    return true;
  }

  account(before: ClusterMap, command: MapCommand): void {
    const { map } = this;
    if (command.kind === "flattened") {
      for (const { id, parent } of map.layers) {
        const old = findLayer(before.layers, id);
        if (parent === 0 && old?.parent !== 0) this.count("cut");
      }
    }
    for (const { id, layers: [top] } of map.disks) {
      const old = before.disks.find((disk) => disk.id === id);
      const owed = this.owed.get(id);
      if (command.kind === "rollback-disk" && findDisk(before, command.disk)!.id === id) {
        // What it was is a disk in the trash.
        this.owed.set(before.nextDisk, owed!);
        this.owed.set(id, this.afterSnapshot(old!, command.snapshot, top));
      } else if (command.kind === "clone-disk" && owed === undefined) {
        const origin = findDisk(before, command.disk)!;
        this.owed.set(id, this.afterSnapshot(origin, command.snapshot, top));
      } else if (command.kind === "create-snapshots" && old!.layers[0] !== top) {
        owed!.layers.add(top);
        this.begun.set(old!.layers[0], this.acknowledged);
      }
    }
    this.noteComplete(before);
    const layers = new Set(map.layers.map(({ id }) => id));
    for (const replica of this.replicas) {
      for (const layer of replica.layers.keys()) {
        if (!layers.has(layer)) replica.layers.delete(layer);
      }
    }
  }

  afterSnapshot(disk: DiskEntry, name: string, layer: number): Owed {
    const snapshot = disk.snapshots.find((each) => each.name === name)!;
    const base = this.snapshots.get(snapshot.layer)!;
    return { base, layers: new Set([layer]), acknowledged: [] };
  }

  /** Snapshots that are complete from now on. */
  noteComplete(before: ClusterMap): void {
    const isDone = new Set<number>();
    for (const { snapshots } of [...before.disks, ...before.trash.map(({ disk }) => disk)]) {
      for (const { layer, taking } of snapshots) if (taking === 0) isDone.add(layer);
    }
    const group: { disk: DiskEntry; layer: number }[] = [];
    for (const disk of this.map.disks) {
      for (const { layer, taking } of disk.snapshots) {
        if (taking === 0 && !isDone.has(layer)) group.push({ disk, layer });
      }
    }
    let after = 0;
    for (const { layer } of group) {
      const held = this.replicas.map((each) => each.read(chainOf(this.map.layers, layer)));
      for (const each of held) assertEquals(each, held[0], `snapshot ${layer} when it is complete`);
      this.snapshots.set(layer, held[0]);
      this.count("complete");
      after = Math.max(after, this.begun.get(layer)!);
      for (const id of held[0]) after = Math.max(after, this.writes.get(id)?.after ?? 0);
    }
    if (group.length > 1) this.count("complete together");
    for (const { disk, layer } of group) {
      const held = this.snapshots.get(layer)!;
      for (const { block, id, at } of this.owed.get(disk.id)!.acknowledged) {
        assert(
          at > after || held[block] >= id,
          `snapshot ${layer} lacks write ${id}, which was acknowledged before one that it has`,
        );
      }
    }
  }

  // -------------------------------------------------------------------------------- the holders

  /** Somebody opens a disk, or takes it over from whoever cannot have it any more. */
  begin(): void {
    if (this.map.disks.length === 0) return;
    const disk = this.pick(this.map.disks);
    if (disk.lease !== null) {
      const isAlive = this.holders.some(({ id, generation }) =>
        id === disk.id && generation === disk.generation
      );
      if (isAlive && this.random.below(12) > 0) return;
      // Its holder may live on, and write, until it is fenced.
      const { id, generation } = disk;
      this.propose({ kind: "force-release-lease", id, generation });
      if (this.random.below(3) === 0) return;
    }
    const node = 1 + this.random.below(NODES);
    if (!this.propose({ kind: "take-lease", id: disk.id, node, incarnation: 1 })) return;
    this.holders.push(new Holder(disk.id, disk.generation + 1, this.map));
  }

  /** A new holder fences the one before it on every node, and brings them in line. */
  settle(): void {
    const waiting = this.holders.filter((holder) => !holder.isReady);
    if (waiting.length === 0) return;
    const holder = this.pick(waiting);
    const { id, generation, entry } = holder;
    if (entry === undefined) return this.drop(holder);
    if (this.replicas.some(({ fences }) => (fences.get(id) ?? 0) > generation)) {
      return this.drop(holder);
    }
    for (const { fences } of this.replicas) fences.set(id, generation);
    const layers = [entry.layers[0]];
    const draining = drainingLayer(entry);
    if (draining !== 0 && this.mistakes.forgetsDrainingLayer !== true) layers.push(draining);
    for (const layer of layers) {
      for (let block = 0; block < BLOCKS; block++) {
        const found = this.replicas.map((replica) => replica.of(layer).get(block))
          .filter((each) => each !== undefined);
        const newest = found.toSorted((a, b) => b!.stamp - a!.stamp)[0];
        if (newest === undefined) continue;
        for (const replica of this.replicas) replica.put(layer, block, newest.id, newest.stamp);
      }
    }
    holder.isReady = true;
    this.propose({ kind: "reconciled", id, generation });
  }

  drop(holder: Holder): void {
    this.holders = this.holders.filter((each) => each !== holder);
  }

  write(): void {
    const ready = this.holders.filter(({ isReady }) => isReady);
    if (ready.length === 0) return;
    const holder = this.pick(ready);
    const { id, generation, entry } = holder;
    const write: Write = {
      id: this.writes.size + 1,
      disk: id,
      generation,
      layer: entry!.layers[0],
      block: this.random.below(BLOCKS),
      after: this.acknowledged,
      answers: new Set(),
    };
    this.writes.set(write.id, write);
    holder.inFlight.add(write);
  }

  /** A write reaches a node, or its guest. */
  deliver(): void {
    const busy = this.holders.filter(({ inFlight }) => inFlight.size > 0);
    if (busy.length === 0) return;
    const holder = this.pick(busy);
    const write = this.pick([...holder.inFlight]);
    const { id, disk, generation, layer, block, answers } = write;
    if (answers.size < NODES) {
      const at = this.pick([0, 1, 2].filter((each) => !answers.has(each)));
      const replica = this.replicas[at];
      if ((replica.fences.get(disk) ?? 0) > generation) return this.drop(holder);
      if (findLayer(this.map.layers, layer) !== undefined) replica.put(layer, block, id, id);
      answers.add(at);
      return;
    }
    // What goes to the new layer is not given back before the snapshot is complete.
    const isNew = takingOf(holder.entry!) !== undefined && layer === holder.entry!.layers[0];
    if (isNew && this.mistakes.acknowledgesEarly !== true) return;
    holder.inFlight.delete(write);
    this.acknowledged++;
    for (const entry of [...this.map.disks, ...this.map.trash.map(({ disk }) => disk)]) {
      const owed = this.owed.get(entry.id)!;
      if (!owed.layers.has(layer)) continue;
      owed.acknowledged.push({ block, id, at: this.acknowledged });
      this.count("acknowledged");
    }
  }

  /** A holder sees the map as it is. */
  look(): void {
    if (this.holders.length === 0) return;
    const holder = this.pick(this.holders);
    holder.view = this.map;
    const { entry } = holder;
    if (entry === undefined || entry.lease === null || entry.generation !== holder.generation) {
      this.drop(holder);
    }
  }

  drain(): void {
    const waiting = this.holders.filter(({ isReady, entry }) =>
      isReady && drainingLayer(entry!) !== 0
    );
    if (waiting.length === 0) return;
    const { id, generation, entry, inFlight } = this.pick(waiting);
    const layer = drainingLayer(entry!);
    const isDrained = [...inFlight].every((write) => write.layer !== layer);
    if (!isDrained && this.mistakes.drainsEarly !== true) return;
    this.propose({ kind: "snapshot-taken", id, layer, generation });
  }

  /** A holder gives its disk back in good order, or is gone without a word. */
  end(): void {
    if (this.holders.length === 0) return;
    const holder = this.pick(this.holders);
    const { id, generation, isReady, inFlight } = holder;
    if (this.random.below(3) === 0) return this.drop(holder);
    if (!isReady || inFlight.size > 0) return;
    const lease = this.map.disks.find((disk) => disk.id === id)?.lease;
    if (lease == null) return;
    if (this.propose({ kind: "release-lease", id, node: lease.node, generation })) {
      this.drop(holder);
    }
  }

  // ---------------------------------------------------------------------------------- the nodes

  absorb(): void {
    const at = this.random.below(NODES);
    const replica = this.replicas[at];
    const done: number[] = [];
    for (const { id, absorbedBy } of this.map.layers) {
      if (absorbedBy === null || this.random.below(3) === 0) continue;
      const child = absorberOf(this.map, id)!.id;
      for (const [block, entry] of replica.of(id)) replica.put(child, block, entry.id, 0);
      replica.layers.delete(id);
      done.push(id);
    }
    if (done.length > 0 && this.random.below(2) === 0) {
      this.propose({ kind: "absorbed", node: at + 1, incarnation: 1, layers: done });
    }
  }

  /** A node copies what it finds below layers that are flattened, all of it or some; who has not copied all of it says nothing. */
  flatten(): void {
    const at = this.random.below(NODES);
    const replica = this.replicas[at];
    const done: number[] = [];
    for (const { id, flatten } of this.map.layers) {
      if (flatten === undefined || this.random.below(3) === 0) continue;
      const below = chainOf(this.map.layers, id).slice(1);
      let isAll = true;
      for (const [block, write] of replica.read(below).entries()) {
        if (write === 0 || replica.of(id).has(block)) continue;
        if (this.mistakes.flattensHalf !== true && this.random.below(4) === 0) isAll = false;
        else if (this.mistakes.flattensHalf !== true || block > 0) replica.put(id, block, write, 0);
      }
      if (isAll) done.push(id);
    }
    const { epoch } = this.map;
    if (done.length > 0) {
      this.propose({ kind: "flattened", node: at + 1, incarnation: 1, layers: done, epoch });
    }
  }

  // ---------------------------------------------------------------------------------- the users

  ask(): void {
    const { map, random } = this;
    const entry = map.disks.length > 0 ? this.pick(map.disks) : undefined;
    const disk = entry?.name ?? "none";
    const snapshot = entry !== undefined && entry.snapshots.length > 0
      ? this.pick(entry.snapshots).name
      : "none";
    const trashed = map.trash.length > 0 ? this.pick(map.trash).disk.id : 0;
    const name = `n${map.nextDisk}`;
    const nowMs = map.epoch;
    const isFull = map.disks.length >= DISKS;
    const share = random.below(100);
    if (share < 8) {
      const cancel = random.below(6) === 0;
      const clones = map.disks.filter((each) => clonePoint(map, each).parent !== 0);
      const clone = clones.length > 0 ? this.pick(clones).name : disk;
      const isDone = this.propose({ kind: "flatten-disk", disk: clone, cancel });
      if (isDone && cancel) this.count("cancel");
    } else if (share < 45) {
      const disks = map.disks.filter(() => random.below(2) === 0).map(({ id }) => id);
      this.propose({ kind: "create-snapshots", disks, name: `s${nowMs}`, nowMs });
    } else if (share < 50) {
      const begun = map.disks.map(takingOf).filter((each) => each !== undefined);
      if (begun.length === 0) return;
      this.propose({ kind: "abort-snapshots", taking: this.pick(begun)!.taking });
    } else if (share < 65) {
      this.propose({ kind: "delete-snapshot", disk, name: snapshot });
    } else if (share < 75) {
      if (!isFull) this.propose({ kind: "clone-disk", disk, snapshot, name, nowMs });
    } else if (share < 83) {
      this.propose({ kind: "rollback-disk", disk, snapshot, nowMs });
    } else if (share < 87) {
      this.propose({ kind: "delete-disk", name: disk, trashedMs: nowMs });
    } else if (share < 89) {
      if (map.disks.length > 2) this.propose({ kind: "delete-disk", name: disk });
    } else if (share < 96) {
      if (!isFull) this.propose({ kind: "restore-disk", id: trashed, name });
    } else {
      this.propose({ kind: "purge-disk", id: trashed });
    }
  }

  // --------------------------------------------------------------------------------- the checks

  check(): void {
    // What is wrong stays so for a while: looking now and then, and at every new map, finds it.
    if (this.map === this.checkedMap && this.random.below(6) > 0) return;
    this.checkedMap = this.map;
    for (const replica of this.replicas) {
      for (const disk of [...this.map.disks, ...this.map.trash.map((entry) => entry.disk)]) {
        const { base, layers, acknowledged } = this.owed.get(disk.id)!;
        const held = replica.read(disk.layers);
        for (const [block, id] of held.entries()) {
          const isOwn = id === base[block] || layers.has(this.writes.get(id)?.layer ?? 0);
          assert(isOwn, `disk ${disk.id} holds write ${id}, which it never had`);
        }
        for (const { block, id } of acknowledged) {
          assert(held[block] >= id, `disk ${disk.id} lacks write ${id}`);
        }
        for (const { layer, taking } of disk.snapshots) {
          if (taking !== 0) continue;
          const seen = replica.read(chainOf(this.map.layers, layer));
          assertEquals(seen, this.snapshots.get(layer), `snapshot ${layer} has changed`);
        }
      }
    }
  }
}

function runWorlds(mistakes: Mistakes = {}, seeds = SEEDS): Map<string, number> {
  const counts = new Map<string, number>();
  for (let seed = 1; seed <= seeds; seed++) {
    const world = new World(seed, mistakes);
    for (let step = 0; step < STEPS; step++) {
      try {
        world.step();
        world.check();
      } catch (error) {
        throw new Error(`seed ${seed} step ${step}: ${(error as Error).message}`, { cause: error });
      }
    }
    for (const [what, count] of world.counts) counts.set(what, (counts.get(what) ?? 0) + count);
  }
  return counts;
}

Deno.test("snapshots hold one point in time and never change, nor do clones, disks rolled back, and those of the trash", () => {
  const counts = runWorlds();
  const least = {
    "acknowledged": 2000,
    "complete": 500,
    "complete together": 100,
    "snapshot-taken": 200,
    "abort-snapshots": 20,
    "delete-snapshot": 100,
    "absorbed": 100,
    "flatten-disk": 100,
    "flattened": 150,
    "cancel": 3,
    "cut": 30,
    "clone-disk": 50,
    "rollback-disk": 15,
    "delete-disk": 50,
    "restore-disk": 50,
    "purge-disk": 20,
    "release-lease": 30,
    "force-release-lease": 100,
  };
  for (const [what, count] of Object.entries(least)) {
    assert((counts.get(what) ?? 0) >= count, `${what}: ${JSON.stringify([...counts])}`);
  }
});

Deno.test("holders that do not keep their promises are noticed", () => {
  const noticed = (mistakes: Mistakes): string => {
    try {
      runWorlds(mistakes);
    } catch (error) {
      return (error as Error).message;
    }
    return "nothing was noticed";
  };
  for (
    const mistakes of [
      { acknowledgesEarly: true },
      { drainsEarly: true },
      { forgetsDrainingLayer: true },
    ]
  ) {
    const complaint = noticed(mistakes);
    assert(/snapshot \d+/.test(complaint), `${JSON.stringify(mistakes)}: ${complaint}`);
  }
  const complaint = noticed({ flattensHalf: true });
  assert(/(disk|snapshot) \d+ (lacks|holds|has)/.test(complaint), complaint);
});
