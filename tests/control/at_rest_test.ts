/**
 * The leader's duties over the real map, under random commands about nodes, disks and copies: once nobody asks for anything any more,
 * everything comes to rest where it belongs, all copies are there, and every disk can be written. What a plan has announced happens.
 *
 * Copying is instantaneous or takes its time, as chance has it; nothing else of a node is here.
 *
 * @module
 */
import { assertEquals } from "@std/assert/mod.js";
import { Prng } from "../../agent/base/prng.ts";
import { LeaderDuties, type LeaderSituation } from "../../agent/control/leader.ts";
import type { MemberView } from "../../agent/gossip/gossip.ts";
import { unwrap } from "../../agent/map/errors.ts";
import { isNamed } from "../../agent/map/groups.ts";
import {
  apply,
  checkMap,
  type ClusterMap,
  copiesMinOf,
  type DiskEntry,
  findNode,
  groupCanWrite,
  hasDisks,
  type MapCommand,
  type NodeEntry,
  type Pool,
  poolOf,
  settlerOf,
} from "../../agent/map/map.ts";
import { type NodeChange, previewNodeChange } from "../../agent/map/preview.ts";
import { takersOf, targetChanges } from "../../agent/map/targets.ts";
import { addNode, atLevelTwo, clusterOf, nodeUp } from "../map/cluster.ts";

const ZONES = ["", "a", "b", "c"] as const;
const NODES_MAX = 9, DISKS_MAX = 5;
/** Few, so that a run is short and every group has a story. */
const PG_BITS = 3;
const SEEDS = 40, ROUNDS = 4, EVENTS = 12;
/** Looks until all is at rest, whatever came before. */
const LOOKS_MAX = 600;
/** Looks in a row with nothing to do that are rest: what waits for a time has it then. */
const QUIET_LOOKS = 4;

/** A leader, the map, and nodes that copy. */
class Run {
  map: ClusterMap;
  duties = new LeaderDuties();
  readonly random: Prng;
  #nowMs = 1e6;

  constructor(seed: number) {
    this.random = new Prng(seed);
    const one = clusterOf(1);
    const settings = { ...one.settings, trashMs: 0 };
    this.map = atLevelTwo({ ...one, pgBits: PG_BITS, settings });
  }

  get #wallMs(): number {
    return 1e12 + this.#nowMs;
  }

  /** What is refused is so for good reasons, and changes nothing. */
  ask(command: MapCommand): void {
    const result = apply(this.map, command);
    if (!result.ok) return;
    assertEquals(checkMap(result.value.map), null, JSON.stringify(command));
    this.map = result.value.map;
  }

  look(): void {
    this.#nowMs += 100;
    const { map } = this;
    const members = map.nodes.map(({ uuid, address, state, incarnation }) => {
      const view: Partial<MemberView> = {
        uuid,
        address,
        state: state === "up" ? "alive" : "dead",
        agentIncarnation: incarnation,
      };
      return [uuid, view as MemberView] as const;
    });
    const learners = map.nodes.map(({ id }) => id).filter((id) => !map.voters.includes(id));
    const raft = {
      commit: 5,
      configurationIndex: 1,
      configuration: { voters: map.voters, learners },
      members: [],
    } as unknown as LeaderSituation["raft"];
    const { commands } = this.duties.look({
      map,
      self: map.nodes.find(({ state }) => state === "up")!.id,
      nowMs: this.#nowMs,
      wallMs: this.#wallMs,
      members: new Map(members),
      reports: new Map(),
      raft,
    });
    for (const command of commands) this.ask(command);
  }

  /** Who is to settle groups or copies them has done so for some: of each with this chance. */
  copy(chance: number): void {
    const { random } = this;
    for (const { id: pool, pgs } of this.map.pools) {
      const settled = new Map<number, number[]>(), copied = new Map<number, number[]>();
      const note = (of: Map<number, number[]>, node: number, pg: number) => {
        if (random.chance(chance)) of.set(node, [...of.get(node) ?? [], pg]);
      };
      for (const [at, pg] of pgs.entries()) {
        const settler = settlerOf(this.map, pg);
        if (settler !== 0) note(settled, settler, at);
        const hasSource = pg.inSync.some((id) => findNode(this.map, id)?.state === "up");
        if (hasSource) { for (const node of pg.joining) note(copied, node, at); }
      }
      const run = (node: number) => ({ node, incarnation: findNode(this.map, node)!.incarnation });
      for (const [node, pgs] of settled) this.ask({ kind: "settled", pool, pgs, ...run(node) });
      for (const [node, pgs] of copied) {
        this.ask({ kind: "in-sync", pool, pgs, ...run(node), basedOnEpoch: this.map.epoch });
      }
    }
  }

  /** Something that an administrator, or fate, does. */
  event(): void {
    const { random, map } = this;
    const node = random.pick(map.nodes);
    const disk = map.disks.length === 0 ? null : random.pick(map.disks);
    const ups = map.nodes.filter(({ state }) => state === "up").length;
    switch (random.below(13)) {
      case 0:
      case 1:
        if (map.nodes.length < NODES_MAX) this.#join();
        return;
      case 2: {
        const availability = random.pick(["draining", "in"] as const);
        return this.ask({ kind: "set-availability", node: node.id, availability });
      }
      case 3: {
        const weight = random.pick([null, 0, 1, 1e12, 1e15]);
        return this.ask({ kind: "set-weight", node: node.id, weight });
      }
      case 4:
        return this.ask({ kind: "set-zone", node: node.id, zone: random.pick(ZONES) });
      case 5: {
        const { id, state, incarnation } = node;
        if (state === "down" || ups < 3) return;
        return this.ask({ kind: "node-down", node: id, incarnation, nowMs: this.#wallMs });
      }
      case 6:
      case 7:
        if (node.state === "down") this.#start(node);
        return;
      case 8:
        if (map.disks.length < DISKS_MAX) this.#create();
        return;
      case 9:
        if (disk !== null) this.#move(disk);
        return;
      case 10: {
        if (disk === null) return;
        const { name } = disk;
        if (random.chance(0.3)) return this.ask({ kind: "delete-disk", name });
        const copiesMin = random.pick([null, null, 1, 2, 3]);
        return this.ask({ kind: "change-disk", name, copiesMin });
      }
      case 11: {
        if (node.state === "up" && ups < 3) return;
        const force = random.chance(0.4);
        const how = force ? { force, acceptLoss: random.chance(0.3) } : {};
        return this.ask({ kind: "remove-node", node: node.id, nowMs: 1e12, ...how });
      }
      case 12:
        if (random.chance(0.4)) this.#nowMs += map.settings.outAfterMs;
    }
  }

  #join(): void {
    const { random } = this;
    this.ask(addNode(this.map.nextNode + 1, {
      protocol: 2,
      zone: random.pick(ZONES),
      witness: random.chance(0.1),
      capacityBytes: random.pick([1e12, 1e12, 5e12, 1e9]),
    }));
  }

  /** A node's next run: what it had may be as it was, or may lack what was not synced. */
  #start({ id, bootId }: NodeEntry): void {
    const clean = this.random.chance(0.5);
    this.ask(nodeUp(id, {
      bootId: clean ? bootId : `boot-${this.map.epoch}`,
      clean,
      protocol: 2,
      nowMs: this.#wallMs,
    }));
  }

  #create(): void {
    const { random } = this;
    const zones = random.chance(0.4) ? { zones: [random.pick(ZONES.slice(1))] } : {};
    const name = `disk-${this.map.nextDisk}`;
    const copies = random.between(1, 5);
    this.ask({ kind: "create-disk", name, sizeBytes: 2 ** 30, nowMs: 0, copies, ...zones });
  }

  #move({ name }: DiskEntry): void {
    const { random } = this;
    const copies = random.chance(0.6) ? { copies: random.between(1, 5) } : {};
    const zones = random.chance(0.5)
      ? { zones: random.chance(0.3) ? [] : [random.pick(ZONES.slice(1))] }
      : {};
    this.ask({ kind: "set-copies", name, ...copies, ...zones });
  }

  /** Everybody is back, and nobody asks for anything: until nothing is left to do. */
  rest(): void {
    for (const node of this.map.nodes) if (node.state === "down") this.#start(node);
    for (let looks = 0, quiet = 0; looks < LOOKS_MAX; looks++) {
      const { epoch } = this.map;
      this.look();
      this.copy(1);
      quiet = this.map.epoch === epoch ? quiet + 1 : 0;
      if (quiet === QUIET_LOOKS) return;
      // What is held back for a while has that while.
      if (quiet > 0) this.#nowMs += 5000;
    }
    throw new Error("there is always something to do");
  }

  /** What is not as it should be at rest, in words. */
  faults(): string[] {
    return [
      ...this.map.pools.flatMap((pool) => this.#faultsOfPool(pool)),
      ...this.map.disks.flatMap((disk) => this.#faultsOfDisk(disk)),
      ...this.map.nodes.flatMap((node) => this.#faultsOfNode(node)),
    ];
  }

  #faultsOfPool(pool: Pool): string[] {
    const { map } = this;
    // On its way to where too few nodes take data it waits for them.
    if (pool.family !== 0) return [];
    const faults: string[] = [];
    if (targetChanges(map, pool).length > 0) faults.push(`pool ${pool.id}: targets to change`);
    const places = Math.min(pool.copies, takersOf(map, pool).length);
    for (const [at, { target, inSync, joining, unclean }] of pool.pgs.entries()) {
      const isWhole = target.toSorted().join() === inSync.toSorted().join() &&
        joining.length === 0 && unclean.length === 0;
      if (!isWhole) faults.push(`pool ${pool.id}, group ${at}: ${inSync} of ${target}`);
      if (target.length < places) faults.push(`pool ${pool.id}, group ${at}: ${target} is short`);
    }
    return faults;
  }

  #faultsOfDisk(disk: DiskEntry): string[] {
    // Who asks for more than the nodes that take data can have has to wait, and is told so.
    if (disk.copiesMin !== null) return [];
    const { map } = this;
    const copiesMin = copiesMinOf(map, disk);
    const able = takersOf(map, poolOf(map, disk)!).length;
    if (able < copiesMin) return [];
    return poolOf(map, disk)!.pgs.map((pg) => groupCanWrite(map, pg, copiesMin))
      .filter((reason) => reason !== null).map((reason) => `disk ${disk.name}: ${reason}`);
  }

  #faultsOfNode({ id, availability }: NodeEntry): string[] {
    if (availability !== "draining" || !isNamed(this.map, id)) return [];
    return this.map.pools
      .filter((pool) => pool.family === 0 && takersOf(this.map, pool).length >= pool.copies)
      .filter(({ pgs }) => pgs.some(({ target }) => target.includes(id)))
      .map((pool) => `node ${id} is drained, and shall keep what it has of pool ${pool.id}`);
  }

  /** Carries out what was planned at rest: it moves what was said to move. */
  planned(): void {
    const { random, map } = this;
    if (map.pools.some(({ family }) => family !== 0)) return;
    const { id: node } = random.pick(map.nodes);
    const change = random.pick<NodeChange>([
      { availability: "draining" },
      { availability: "draining" },
      { weight: random.pick([0, 1e9, 5e12]) },
      { zone: random.pick(ZONES) },
    ]);
    const conditions = { usedBytes: new Map(), rateBytesPerSecond: null };
    const plan = unwrap(previewNodeChange(map, node, change, conditions));
    const { availability, weight, zone } = change;
    if (availability !== undefined) this.ask({ kind: "set-availability", node, availability });
    if (weight !== undefined) this.ask({ kind: "set-weight", node, weight });
    if (zone !== undefined) this.ask({ kind: "set-zone", node, zone });
    for (let epoch = -1; epoch !== this.map.epoch;) {
      epoch = this.map.epoch;
      this.look();
    }
    if (this.map.pgBits === map.pgBits) {
      const moved = map.pools.filter(({ id }) => hasDisks(map, id)).reduce((sum, { id, pgs }) => {
        const after = this.map.pools.find((pool) => pool.id === id)!;
        const added = (at: number) =>
          after.pgs[at].target.filter((id) => !pgs[at].target.includes(id)).length;
        return pgs.reduce((count, _, at) => count + added(at), sum);
      }, 0);
      assertEquals(moved, plan.movedReplicas, JSON.stringify({ node, change }));
    }
    this.rest();
  }
}

Deno.test("whatever is asked of nodes and disks, all comes to rest where it belongs, as plans have it", () => {
  let disks = 0;
  for (let seed = 1; seed <= SEEDS; seed++) {
    const run = new Run(seed);
    for (let round = 0; round < ROUNDS; round++) {
      for (let event = 0; event < EVENTS; event++) {
        run.event();
        for (let looks = run.random.below(4); looks > 0; looks--) {
          run.look();
          run.copy(0.4);
        }
      }
      run.rest();
      assertEquals(run.faults(), [], `seed ${seed}, round ${round}`);
      disks += run.map.disks.length;
      run.planned();
      // Another leader knows nothing of what this one has seen.
      if (run.random.chance(0.5)) run.duties = new LeaderDuties();
    }
  }
  assertEquals(disks > SEEDS, true, "hardly any disks");
});
