/**
 * A whole cluster under faults, and everything that must hold: driven by one seed.
 *
 *     set-up ─▶ faults and administration, at random ─▶ all faults end ─▶ the cluster heals by itself ─▶ verification
 *
 * What must hold, always: blocks are linearizable and flushed writes stay (`history.ts`); a write is acknowledged under the newest lease
 * only; no replica serves reads that is not in sync; no guest sees an I/O error, but a flush may fail when all replicas of
 * something have crashed; what is done is given back in the same turn; one epoch of the map is the same everywhere, and is one that
 * `checkMap` lets through; nobody has committed what its leader has not.
 *
 * Once the faults have ended: all nodes come back, every group becomes whole, damaged blocks heal, guests get on, leases go back,
 * another node reads it all, and all replicas have equal bytes and stamps. Disks that were getting other copies have them, and nobody
 * keeps what they have left behind; of disks that are kept in zones nobody has anything outside, as long as there is a node inside.
 *
 * @module
 */
import { Buffer } from "node:buffer";
import { BLOCK_BYTES, CHUNK_BLOCKS, CHUNK_BYTES } from "../../agent/base/limits.ts";
import { Prng } from "../../agent/base/prng.ts";
import type { RaftStatus } from "../../agent/consensus/ready.ts";
import { decodeLevel, LEVEL_KEY } from "../../agent/control/level_record.ts";
import { allTargets } from "../../agent/comparison.ts";
import { pgOf } from "../../agent/map/hash.ts";
import {
  checkMap,
  type ClusterMap,
  type DiskEntry,
  isInZones,
  isOn,
  type MapCommand,
  type NodeEntry,
  type PgEntry,
  poolOf,
  poolOfFamily,
  settledEpochOf,
  zonesOf,
} from "../../agent/map/map.ts";
import { encodeMap } from "../../agent/map/map_codec.ts";
import type { CheckReport, DiskCheck } from "../../agent/replication/check_report.ts";
import type { Check } from "../../agent/replication/checking.ts";
import { chunkList, Stamp } from "../../agent/replication/local_store.ts";
import { Operation, OperationKind } from "../../agent/store/operation.ts";
import type { Volume } from "../../agent/volume/volume.ts";
import { Going } from "./going.ts";
import { DiskOracle, Guest } from "./guest.ts";
import { Network, NO_FAULTS } from "./network.ts";
import {
  type Build,
  NO_DISK_ERRORS,
  type NodeWatcher,
  type Process,
  type SimLease,
  SimNode,
  THIS_BUILD,
} from "./node.ts";
import { Settling } from "./settling.ts";
import { type SnapshotHost, Snapshots } from "./snapshots.ts";
import { headOfTail } from "./tail.ts";
import { World } from "./world.ts";

/** What a run is like. */
export interface SimulationOptions {
  readonly seed: number;
  /** Virtual milliseconds of faults. */
  readonly faultsMs?: number;
  readonly nodes?: number;
  /** Nodes have one to three data paths, which fail, are missing and come back. */
  readonly hasPaths?: boolean;
  readonly isVerbose?: boolean;
  /** Snapshots and clones of the disks are taken, read and deleted, and disks rolled back to them. */
  readonly hasSnapshots?: boolean;
  /** What checks do about replicas that are wrong is done to such as are not: `settling.ts`. */
  readonly isSettling?: boolean;
  /** Guests move while they run, as by live migration, where otherwise they close a disk and another opens it later. */
  readonly areMoving?: boolean;
  /** Guests go with requests under way while their agents live: `going.ts`. */
  readonly areGoing?: boolean;
  /** The version that hosts begin with; by default the code as it is, at level 1. */
  readonly build?: Build;
  /** The next version, to which hosts go over as they start, some of them back again, all of them in the end. */
  readonly upgrade?: Build;
  /** Called for each process that starts, to break something on purpose; see `canary_test.ts`. */
  readonly sabotage?: (run: Process, simulation: Simulation) => void;
}

/** What a run did. */
export interface SimulationReport {
  readonly seed: number;
  readonly nodes: number;
  readonly events: number;
  readonly virtualMs: number;
  readonly writes: number;
  readonly zeroings: number;
  readonly reads: number;
  readonly flushes: number;
  readonly failedFlushes: number;
  /** Runs of blocks that lost all their replicas to crashes. */
  readonly losses: number;
  readonly crashes: number;
  readonly failedStores: number;
  readonly flips: number;
  /** Times that a node came back without the durable tail of its log. */
  readonly tails: number;
  readonly repaired: number;
  readonly replacedNodes: number;
  /** Data paths that failed in use, and starts without one. */
  readonly failedPaths: number;
  readonly missingPaths: number;
  /** Groups that moved from one data path to another. */
  readonly movedGroups: number;
  /** Snapshots that were completed, times that one was read, and those that were deleted. */
  readonly snapshots: number;
  readonly snapshotReads: number;
  readonly deletedSnapshots: number;
  /** Times that replicas were compared, and how often all of that was good. */
  readonly checks: number;
  readonly goodChecks: number;
  /** Chunks that were copied, and times that nodes were told to replace blocks, without need. */
  readonly completions: number;
  readonly replacements: number;
  /** Times that a disk was rolled back to one. */
  readonly rollbacks: number;
  /** Disks that were made independent of others. */
  readonly flattened: number;
  /** Times that disks got other copies, and that they stayed as they were because it was taken back on the way. */
  readonly copiesChanged: number;
  readonly copiesKept: number;
  /** Of the changes those into zones, and disks that were in some in the end. */
  readonly zonesChanged: number;
  readonly zonedDisks: number;
  /** Guests that went with requests under way, and those of them whose requests were given up. */
  readonly gone: number;
  readonly givenUp: number;
  readonly epoch: number;
}

/** Comparisons of all replicas, until no group moves during one. */
const CHECKS_MAX = 16;
/** Virtual time within which a healthy cluster must have done what is asked. */
const QUIET_MS_MAX = 180_000;
/** Virtual time within which the last of what was asked for during the faults has been done. */
const ASKED_MS = 2000;
/** Times that replicas are compared again because the map has changed meanwhile. */
const COMPARISONS_MAX = 20;
/** How long guests run in the cluster that has healed, and how long none of their requests may take there. */
const CALM_MS = 10_000;
const STALL_MS_MAX = 4000;
/** The same for a lease: one that was taken by force is not given away for a while, nor after a start. */
const LEASE_MS_MAX = 9000;
/** Hosts there may be, those included that were replaced: memory of hosts that are gone is used again. */
const HOSTS_MAX = 24;
/** Zones that nodes come to be in, beside one of their own. */
const ZONES = ["zone-0", "zone-1", "zone-2"];
/** Events that are kept for the message of a failure. */
const LOG_LENGTH = 400;
/** One map of so many is compared between nodes, and checked: encoding costs time. */
const MAP_CHECK_EVERY = 16;
/** Guests have written fewer blocks than this. */
const NUMBERS_MAX = 0x01010101;
/** Bits of four groups' numbers of paths, of which there are up to three. */
const PATH_BYTES = 0x03030303;
/** Blocks looked at for one that holds a guest's data. */
const FLIP_TRIES = 60;

const ZEROS = new Uint8Array(BLOCK_BYTES);

type LogLine = readonly [
  atMs: number,
  node: number,
  message: string,
  fields: Record<string, unknown> | undefined,
];

/** See the head of the file. */
export class Simulation implements NodeWatcher {
  readonly world: World;
  readonly network: Network;
  /** Hosts that belong to the cluster, or are about to. */
  readonly nodes: SimNode[] = [];
  readonly oracles: DiskOracle[] = [];
  /** The newest guest of each disk. */
  readonly guests = new Map<number, Guest>();
  /** Guests whose node was cut off when another took over; fenced sooner or later. */
  readonly #leftBehind = new Set<Guest>();
  map: ClusterMap | null = null;
  /** Hash of the map of each epoch, as first seen. */
  readonly #maps = new Map<number, number>();
  crashes = 0;
  failedStores = 0;
  flips = 0;
  tails = 0;
  replacedNodes = 0;
  failedPaths = 0;
  missingPaths = 0;
  movedGroups = 0;
  repaired = 0;
  /** Checks that have come to an end, and those of them that found nothing wrong and left out nothing. */
  checks = 0;
  goodChecks = 0;
  /** Decides when replicas are compared, and nothing else: seeds are what they were before they could be. */
  readonly #checking: Prng;
  /** Decides about data paths, and nothing else: seeds without them are what they were before there were any. */
  readonly #pathRandom: Prng;
  /** Starts that were refused for being too old. */
  refused = 0;
  /** Times that a host was started as another version than before. */
  changes = 0;
  /** Chance of its own: whoever upgrades nothing has the same run as before there were versions. */
  readonly #versions: Prng;
  readonly #log: LogLine[] = [];
  readonly #isVerbose: boolean;
  readonly #faultsMs: number;
  readonly #nodeCount: number;
  readonly #pgBits: number;
  #isOver = false;
  #isHealing = false;
  #hosts = 0;
  readonly #freeMemories: number[] = [];
  /** The one node whose disk loses bits in this run; all faults that could leave it alone with data are left out then. */
  #flipped: SimNode | null = null;
  /** Guests' blocks that have rotted on its disk, oldest first: as they were, and as they are since. */
  #rot: { readonly offset: number; readonly before: Uint8Array; readonly after: Uint8Array }[] = [];
  /** Headers rot in the tail of that node's log, too; null: they do not. Of its own, so that it changes nothing else. */
  readonly #tearing: Prng | null;
  readonly #leaving = new Map<SimNode, symbol>();
  /** Is to be taken out of the cluster, drained or (if it is down) by force. */
  #doomed: SimNode | null = null;
  /** Uuids that were in the map. */
  readonly #known = new Set<string>();
  #disksMade = 0;
  /** Decides about numbers of copies, and nothing else. */
  readonly #copies: Prng;
  #copiesChanged = 0;
  #copiesKept = 0;
  /** Decides about zones, and nothing else. */
  readonly #zones: Prng;
  #zonesChanged = 0;
  #zonedDisks = 0;
  /** Null where none are taken. By chances of their own: seeds without them are what they were before there were any. */
  readonly #snapshots: Snapshots | null;
  readonly #settling: Settling | null;
  readonly #going: Going | null;

  constructor(readonly options: SimulationOptions) {
    this.world = new World(options.seed);
    this.#versions = new Prng(options.seed ^ 0x5eed);
    this.network = new Network(this.world);
    this.#isVerbose = options.isVerbose ?? false;
    this.#faultsMs = options.faultsMs ?? 30_000;
    const tearing = new Prng(options.seed ^ 0x7ea2);
    this.#tearing = tearing.chance(0.5) ? tearing : null;
    this.#checking = new Prng(options.seed ^ 0x63686563);
    this.#pathRandom = new Prng(options.seed ^ 0x70617468);
    this.#copies = new Prng(options.seed ^ 0x636f7069);
    this.#zones = new Prng(options.seed ^ 0x7a6f6e65);
    const { random } = this.world;
    this.#snapshots = options.hasSnapshots === true ? this.#makeSnapshots() : null;
    this.#settling = options.isSettling === true ? this.#makeSettling() : null;
    this.#going = options.areGoing === true ? this.#makeGoing() : null;
    this.#nodeCount = options.nodes ?? random.pick([1, 2, 3, 3, 3, 4, 4, 5, 5, 6, 7, 9]);
    this.#pgBits = random.pick([2, 3, 4, 5, 8]);
  }

  #makeSnapshots(): Snapshots {
    // deno-lint-ignore no-this-alias
    const run = this;
    const host: SnapshotHost = {
      get map() {
        return run.map;
      },
      get nowMs() {
        return run.world.nowMs;
      },
      oracles: run.oracles,
      running: () => run.#running(),
      propose: (command, done) => run.propose(command, done),
      close: ({ id }) => {
        const guest = run.guests.get(id);
        if (guest !== undefined) run.#close(guest);
      },
      sweep: (oracle) => run.#sweep(oracle, `${oracle.name} is read`),
      until: (what, isDone, mostMs) => run.until(what, isDone, mostMs),
      note: (message) => run.note(null, message),
    };
    const { seed } = this.options;
    return new Snapshots(host, new Prng(seed ^ 0x736e6170), new Prng(seed ^ 0x726f6c6c));
  }

  #makeSettling(): Settling {
    // deno-lint-ignore no-this-alias
    const run = this;
    const host = {
      get map() {
        return run.map;
      },
      oracles: run.oracles,
      running: () => run.#running(),
      note: (node: SimNode, message: string, fields: Record<string, unknown>) =>
        run.note(node, message, fields),
    };
    return new Settling(host, new Prng(this.options.seed ^ 0x73657474));
  }

  #makeGoing(): Going {
    const host = {
      guests: this.guests,
      after: (delayMs: number, run: () => void) => this.world.after(delayMs, run),
      open: (oracle: DiskOracle) => void this.#startGuest(oracle),
      note: (node: SimNode, message: string) => this.note(node, message),
    };
    return new Going(host, new Prng(this.options.seed ^ 0x676f6e65));
  }

  /** Runs it all. Throws with the seed and the last events when something does not hold. */
  run(): SimulationReport {
    try {
      this.#setUp();
      this.#misbehave();
      this.#heal();
      this.#verify();
    } catch (error) {
      const tail = this.#log.slice(-60).map(textOf).join("\n");
      const message = error instanceof Error ? error.stack ?? error.message : String(error);
      throw new Error(`seed ${this.options.seed}: ${message}\n--- the last events\n${tail}`);
    } finally {
      this.#isOver = true;
    }
    const sum = (of: (oracle: DiskOracle) => number) =>
      this.oracles.reduce((total, oracle) => total + of(oracle), 0);
    return {
      seed: this.options.seed,
      nodes: this.nodes.length,
      events: this.world.count,
      virtualMs: this.world.nowMs,
      writes: sum((oracle) => oracle.writes),
      zeroings: sum((oracle) => oracle.zeroings),
      reads: sum((oracle) => oracle.reads),
      flushes: sum((oracle) => oracle.flushes),
      failedFlushes: sum((oracle) => oracle.failedFlushes),
      losses: sum((oracle) => oracle.losses),
      crashes: this.crashes,
      failedStores: this.failedStores,
      flips: this.flips,
      tails: this.tails,
      repaired: this.repaired,
      replacedNodes: this.replacedNodes,
      failedPaths: this.failedPaths,
      missingPaths: this.missingPaths,
      movedGroups: this.nodes.reduce(
        (sum, { process }) => sum + (process?.set?.movedGroups ?? 0),
        this.movedGroups,
      ),
      snapshots: this.#snapshots?.taken ?? 0,
      snapshotReads: this.#snapshots?.read ?? 0,
      flattened: this.#snapshots?.flattened ?? 0,
      deletedSnapshots: this.#snapshots?.deleted ?? 0,
      checks: this.checks,
      goodChecks: this.goodChecks,
      completions: this.#settling?.completed ?? 0,
      replacements: this.#settling?.told ?? 0,
      rollbacks: this.#snapshots?.rolledBack ?? 0,
      copiesChanged: this.#copiesChanged,
      copiesKept: this.#copiesKept,
      zonesChanged: this.#zonesChanged,
      zonedDisks: this.#zonedDisks,
      gone: this.#going?.gone ?? 0,
      givenUp: this.#going?.givenUp ?? 0,
      epoch: this.map?.epoch ?? 0,
    };
  }

  // -------------------------------------------------------------------------------------- watching

  /** {@inheritDoc NodeWatcher.note} */
  note(node: SimNode | null, message: string, fields?: Record<string, unknown>): void {
    if (this.#isOver) return;
    const line: LogLine = [this.world.nowMs, node?.id ?? 0, message, fields];
    if (this.#isVerbose) console.log(textOf(line));
    this.#log.push(line);
    if (this.#log.length > LOG_LENGTH) this.#log.splice(0, LOG_LENGTH / 2);
  }

  /** {@inheritDoc NodeWatcher.mapChanged} */
  mapChanged(node: SimNode, map: ClusterMap): void {
    if (map.epoch % MAP_CHECK_EVERY === 0) this.#compareMaps(node, map);
    if (this.map !== null && map.epoch <= this.map.epoch) return;
    if (this.options.upgrade !== undefined) this.#checkLevel(map, this.options.upgrade);
    const { map: old } = this;
    this.map = map;
    this.#snapshots?.look();
    for (const { uuid } of map.nodes) this.#known.add(uuid);
    if (this.#flipped !== null && this.#isAlone(this.#flipped)) this.#unrot(this.#flipped);
    for (const oracle of [...this.oracles, ...this.#snapshots?.left ?? []]) {
      const disk = dataOf(map, oracle);
      const pool = disk === undefined ? undefined : poolOf(map, disk);
      if (disk === undefined || pool === undefined || old?.pools.includes(pool)) continue;
      if (this.oracles.includes(oracle)) this.#noteMove(old, map, disk);
      const lost = new Set<number>();
      pool.pgs.forEach((entry, pg) => {
        if (settledEpochOf(disk, entry, pool.family) > (old?.epoch ?? 0)) lost.add(pg);
      });
      if (lost.size === 0) continue;
      oracle.lost(
        this.world.nowMs,
        (chunk) => lost.has(pgOf(disk.family, chunk, pool.pgs.length)),
      );
    }
  }

  /** Counts what has become of copies that were to change. */
  #noteMove(old: ClusterMap | null, map: ClusterMap, disk: DiskEntry): void {
    const before = old?.disks.find(({ id }) => id === disk.id);
    if (old === null || before === undefined || map.level < 2) return;
    if (poolOfFamily(old, disk.family) === undefined) return;
    if (poolOfFamily(map, disk.family) !== undefined) return;
    if (before.pool === disk.pool) return void this.#copiesKept++;
    this.#copiesChanged++;
    const zones = zonesOf(map, disk);
    if (zones.length > 0 && zones.join() !== zonesOf(old, before).join()) this.#zonesChanged++;
  }

  /** The level never falls, is what all can speak, and what is new has waited for it. */
  #checkLevel(map: ClusterMap, upgrade: Build): void {
    const { level } = map;
    if (level < (this.map?.level ?? 1)) throw new Error(`the level fell to ${level}`);
    if (upgrade.isUsed(map) && level < upgrade.protocol) {
      throw new Error(`what is new in level ${upgrade.protocol} is in a map of level ${level}`);
    }
    for (const { uuid, name, protocol } of map.nodes) {
      if (protocol < level) throw new Error(`${name} does not speak level ${level}`);
      const node = this.nodes.find((each) => each.uuid === uuid);
      if (node === undefined || node.incarnation === 0 || node.build.protocol >= level) continue;
      // Its next start is in the log behind this: it finds out there.
      if (node.incarnation > map.nodes.find((each) => each.uuid === uuid)!.incarnation) continue;
      throw new Error(`${name} serves at level ${level}, and speaks ${node.build.protocol}`);
    }
  }

  /** One epoch is one map, whoever applies it. */
  #compareMaps(node: SimNode, map: ClusterMap): void {
    const known = this.#maps.get(map.epoch);
    const encoded = encodeMap(map);
    if (!encoded.ok) throw new Error(encoded.error.message);
    let hash = 1;
    for (const byte of encoded.value) hash = Math.imul(hash ^ byte, 0x01000193);
    if (known === undefined) {
      const error = checkMap(map);
      if (error !== null) throw new Error(`epoch ${map.epoch}: ${error.message}`);
      this.#maps.set(map.epoch, hash);
    } else if (known !== hash) {
      throw new Error(`node ${node.id} has another map of epoch ${map.epoch} than others`);
    }
  }

  /** {@inheritDoc NodeWatcher.granted} */
  granted(node: SimNode, disk: number, lease: SimLease, volume: Volume): void {
    if (this.map !== null && isOn(this.map, 2)) this.#checkWritten(node, disk, lease, volume);
    const guest = this.guests.get(disk);
    if (guest?.node === node) guest.begin();
    for (const other of this.#leftBehind) {
      if (other.node === node && other.oracle.id === disk) other.begin();
    }
  }

  /** Whoever gets a lease hears of the newest one of another node under which something was written. */
  #checkWritten(
    { node }: SimNode,
    disk: number,
    { generation, byOthers }: SimLease,
    volume: Volume,
  ): void {
    let grants = this.#grants.get(disk);
    if (grants === undefined) this.#grants.set(disk, grants = []);
    for (const [at, grant] of grants.entries()) {
      const next = grants.slice(at + 1).find((later) => later.volume === grant.volume);
      const hasWritten = (next?.before ?? grant.volume.sequence) > grant.before;
      // A grant that comes late, when another node has the disk, knows nothing of that one.
      const isBefore = grant.generation < generation;
      if (grant.node === node || !isBefore || !hasWritten) continue;
      if (byOthers >= grant.generation) continue;
      throw new Error(
        `node ${node} has disk ${disk} under generation ${generation} and is told that others wrote until ${byOthers}, ` +
          `but node ${grant.node} has under ${grant.generation}`,
      );
    }
    grants.push({ node, generation, volume, before: volume.sequence });
  }
  /** By disk: what was granted, to whom, and how much that one had written before. */
  readonly #grants = new Map<
    number,
    { node: number; generation: number; volume: Volume; before: number }[]
  >();

  /** {@inheritDoc NodeWatcher.fenced} */
  fenced(node: SimNode, disk: number): void {
    this.note(node, `fenced off disk ${disk}`);
    const guest = this.guests.get(disk);
    const fenced = [...this.#leftBehind].filter((other) =>
      other.node === node && other.oracle.id === disk
    );
    if (guest?.node === node) {
      this.guests.delete(disk);
      fenced.push(guest);
    }
    for (const each of fenced) {
      this.#leftBehind.delete(each);
      each.isFenced = true;
      each.drain(() => node.detach(disk, each.volume));
    }
  }

  /** {@inheritDoc NodeWatcher.failed} */
  failed(node: SimNode, reason: string): void {
    this.note(node, `its process ends: ${reason}`);
    if (this.options.upgrade !== undefined && reason.includes("it is too old")) this.refused++;
    else this.failedStores++;
    const { process } = node;
    this.world.after(this.world.random.fraction() * 50, () => {
      if (node.process !== process || process === null) return;
      // What a sync could not write may be gone, though the machine has not started anew.
      this.#crash(node, false);
      node.bootId = `boot-${this.world.random.u32()}`;
      if (this.#isHealing) this.world.after(1000, () => this.#restart(node));
    });
  }

  /** {@inheritDoc NodeWatcher.pathFailed} */
  pathFailed(node: SimNode, path: string): void {
    this.note(node, `its data path ${path} has failed`);
    this.failedPaths++;
  }

  /** {@inheritDoc NodeWatcher.assembled} */
  assembled(node: SimNode, process: Process): void {
    if (this.options.upgrade !== undefined) this.#watchLevel(node, process);
    this.options.sabotage?.(process, this);
  }

  /** What only a level's versions can read is not given to a store that does not remember the level. */
  #watchLevel(node: SimNode, { store }: Process): void {
    let level = decodeLevel(store.getMeta(LEVEL_KEY) ?? undefined)!.level;
    const set = store.setMetaBatch.bind(store);
    store.setMetaBatch = (writes, done) => {
      for (const { key, value } of writes) {
        if (value === null) continue;
        if (key === LEVEL_KEY) level = decodeLevel(value)!.level;
        const at = Buffer.from(value).indexOf("kelpie.map");
        // Versions 1 and 2 are those of level 1, version 4 that of level 2, and so on.
        if (at < 0 || level >= Math.max(1, value[at + 10] - 2)) continue;
        throw new Error(`node ${node.id} keeps a map of a level that its store does not know of`);
      }
      set(writes, done);
    };
  }

  // -------------------------------------------------------------------------------------- helpers

  /** Lets time pass until something holds; throws when it does not come to that. */
  until(what: string, isDone: () => boolean, mostMs = 60_000): void {
    const endMs = this.world.nowMs + mostMs;
    while (!isDone()) {
      if (this.world.nowMs >= endMs) {
        this.#checkHistory();
        throw new Error(`${what}: not within ${mostMs} ms`);
      }
      this.world.run(this.world.nowMs + 50);
    }
  }

  #running(): SimNode[] {
    return this.nodes.filter((node) => node.isRunning && node.incarnation > 0);
  }

  /** Proposes something at a random node; whether it happens is up to the cluster. */
  propose(command: MapCommand, done: (ok: boolean) => void = () => {}): void {
    const running = this.#running();
    if (running.length === 0) return done(false);
    const node = this.world.random.pick(running);
    this.note(node, "asks for", { ...command });
    node.process!.control!.propose(command, (result) => {
      if (!result.ok) this.note(node, `${command.kind} refused: ${result.error.message}`);
      done(result.ok);
    });
  }

  #addNode(): SimNode {
    const { random } = this.world;
    const index = this.#freeMemories.pop() ?? this.nodes.length;
    const id = ++this.#hosts;
    const node = new SimNode(id, this.world, this.network, this, {
      index,
      zone: random.chance(0.3) ? `zone-${id % 3}` : "",
      isWitness: id > 2 && random.chance(0.1),
      pgBits: this.#pgBits,
      ...(this.options.hasPaths === true
        ? { paths: { more: this.#pathRandom.below(3), random: this.#pathRandom.fork() } }
        : {}),
    });
    node.build = this.options.build ?? THIS_BUILD;
    node.drift = 1 + (random.fraction() - 0.5) * 0.05;
    if (random.chance(0.3)) node.wallOffsetMs = random.fraction() * 7_200_000;
    this.nodes.push(node);
    return node;
  }

  #nodeIdOf(node: SimNode): number {
    return this.map?.nodes.find((entry) => entry.uuid === node.uuid)?.id ?? 0;
  }

  #seeds(): string[] {
    return this.nodes.map((node) => node.address);
  }

  #entryOf(oracle: DiskOracle): DiskEntry | undefined {
    return this.map?.disks.find((disk) => disk.id === oracle.id);
  }

  // --------------------------------------------------------------------------------------- set-up

  #setUp(): void {
    const { random } = this.world;
    this.#addNode().start([]);
    this.until("the first node leads", () => this.nodes[0].incarnation > 0);
    const disks = random.between(1, 2);
    const make = (i: number) => {
      const sizeBytes = random.between(2, 600) * 4 * 1024 * 1024;
      let isDone = false;
      const copies = random.pick([1, 2, 3, 3, 3, 5]);
      this.propose(
        { kind: "create-disk", name: `disk-${i}`, sizeBytes, nowMs: 0, copies },
        (ok) => isDone = ok,
      );
      this.until("a disk is made", () => isDone);
      const entry = this.map!.disks.find((disk) => disk.name === `disk-${i}`)!;
      this.oracles.push(new DiskOracle(entry.id, entry.name, sizeBytes, random.fork()));
    };
    // Some disks are older than the cluster.
    for (let i = 0; i < disks; i++) if (random.chance(0.3)) make(i);
    for (let i = 1; i < this.#nodeCount; i++) {
      this.#start(this.#addNode(), this.#seeds().slice(0, 1));
      if (random.chance(0.5)) this.world.run(this.world.nowMs + random.below(2000));
    }
    this.until("all nodes belong", () => this.nodes.every((node) => node.incarnation > 0));
    for (let i = 0; i < disks; i++) {
      if (!this.oracles.some((oracle) => oracle.name === `disk-${i}`)) make(i);
    }
    for (const oracle of this.oracles) this.#startGuest(oracle);
    this.world.run(this.world.nowMs + random.below(5000));
  }

  #startGuest(oracle: DiskOracle): boolean {
    if (this.guests.has(oracle.id) || this.#snapshots?.isResting(oracle) === true) return false;
    const able = this.#running().filter((node) =>
      !node.isWitness && !node.isAttached(oracle.id) && !this.#leaving.has(node)
    );
    const entry = this.#entryOf(oracle);
    if (able.length === 0 || entry === undefined) return false;
    const node = this.world.random.pick(able);
    const volume = node.attach(oracle.id, oracle.sizeBytes, entry.layers);
    if (volume === null) return false;
    const at = this.oracles.indexOf(oracle);
    const memory = (at < 0 ? this.oracles.length : at) * 1024 * 1024;
    const guest = new Guest(node, volume, oracle, this.world.random.fork(), memory);
    this.guests.set(oracle.id, guest);
    this.note(node, `a guest opens ${oracle.name}`);
    return true;
  }

  // --------------------------------------------------------------------------------------- faults

  #misbehave(): void {
    const { random } = this.world;
    const endMs = this.world.nowMs + this.#faultsMs;
    this.network.faults = {
      loss: random.chance(0.5) ? random.fraction() * 0.3 : 0,
      repeat: random.chance(0.5) ? random.fraction() * 0.5 : 0,
      delayMs: random.pick([1, 2, 5, 20]),
      breakage: random.chance(0.3) ? random.fraction() * 0.01 : 0,
      refusal: random.chance(0.3) ? 0.02 : 0,
    };
    const isFlipping = random.chance(0.2) && this.nodes.length > 1 &&
      this.map!.disks.every((disk) => disk.copies > 1) && !this.nodes[1].isWitness;
    if (isFlipping) this.#flipped = this.nodes[random.below(2)];
    if (random.chance(0.3)) this.#breakDisks(isFlipping);
    this.note(null, "faults", { ...this.network.faults, flipped: this.#flipped?.id ?? 0 });
    if (!isFlipping) this.#stallThreads(endMs);
    for (const [each, mostMs] of [[this.#settling, 60], [this.#going, 1500]] as const) {
      if (each !== null) this.#repeat(endMs, () => each.random.below(mostMs), () => each.step());
    }
    while (this.world.nowMs < endMs) {
      this.world.run(this.world.nowMs + random.below(random.pick([200, 1000, 4000])));
      this.#checkHistory();
      this.#retire();
      if (this.#doomed !== null && random.chance(0.5)) this.#remove(this.#doomed);
      if (this.options.hasPaths === true && this.#flipped === null) this.#stepPaths();
      this.#snapshots?.step();
      if (this.#flipped === null) this.#step();
      else this.#stepFlipping(this.#flipped);
      if (this.#flipped === null) {
        this.#stepCopies();
        this.#stepZones();
      }
    }
  }

  /** A disk is to have another number of copies, or what was asked for before is taken back, or is another one. */
  #stepCopies(): void {
    if (!this.#copies.chance(0.25) || this.map!.level < 2) return;
    const oracle = this.#copies.pick(this.oracles);
    const entry = this.#entryOf(oracle);
    if (entry === undefined) return;
    const isMoving = poolOfFamily(this.map!, entry.family) !== undefined;
    const copies = isMoving && this.#copies.chance(0.5) ? entry.copies : this.#copies.between(1, 5);
    this.propose({ kind: "set-copies", name: oracle.name, copies });
  }

  /** A disk is to be kept in some zones, or anywhere, or a node is of another zone. */
  #stepZones(): void {
    const random = this.#zones;
    const { map } = this;
    if (!random.chance(0.3) || map === null || map.level < 2) return;
    if (random.chance(0.4)) {
      const { id: node } = random.pick(map.nodes);
      return this.propose({ kind: "set-zone", node, zone: random.pick([...ZONES, ""]) });
    }
    const oracle = random.pick(this.oracles);
    const entry = this.#entryOf(oracle);
    if (entry === undefined) return;
    const there = ZONES.filter((zone) => map.nodes.some((node) => node.zone === zone));
    const isBack = poolOfFamily(map, entry.family) !== undefined && random.chance(0.4);
    const zones = isBack ? zonesOf(map, entry) : there.filter(() => random.chance(0.5));
    const copies = isBack ? entry.copies : random.between(1, 5);
    const isBoth = isBack || random.chance(0.3);
    this.propose({ kind: "set-copies", name: oracle.name, zones, ...(isBoth ? { copies } : {}) });
  }

  /** Now and then a main thread stands still. By chances of its own: what else happens in a seed does not depend on it. */
  #stallThreads(endMs: number): void {
    const random = new Prng(this.options.seed ^ 0x5374616c);
    if (random.chance(0.5)) return;
    this.#repeat(endMs, () => 500 + random.below(6000), () => {
      const node = random.pick(this.nodes);
      const ms = random.pick([200, 1500, 4500, 9000]);
      this.note(node, "its main thread stands still", { ms });
      node.stallControl(ms);
    });
  }

  /** Does something again and again until the faults end, each time after another while. */
  #repeat(endMs: number, delayMs: () => number, step: () => void): void {
    this.world.after(delayMs(), () => {
      if (this.world.nowMs >= endMs) return;
      step();
      this.#repeat(endMs, delayMs, step);
    });
  }

  #breakDisks(isReadOnly: boolean): void {
    const { random } = this.world;
    for (const node of this.nodes) {
      if (random.chance(0.4)) continue;
      const canFail = !isReadOnly || node === this.#flipped;
      node.diskErrors = {
        read: random.pick([0, 0.01, 0.05]),
        write: canFail ? random.pick([0, 0.001, 0.02]) : 0,
        sync: canFail ? random.pick([0, 0, 0.005]) : 0,
      };
      this.note(node, "its disk has faults", { ...node.diskErrors });
    }
  }

  /** Some node compares all replicas while things happen: what it says is different must not be said of sound replicas. */
  #compareSometimes(): void {
    if (!this.#checking.chance(0.1)) return;
    const node = this.#checking.pick(this.nodes);
    const data = node.isRunning ? node.process!.data : null;
    if (data === null || !data.hasMap || this.map === null) return;
    this.note(node, "compares replicas");
    const targets = allTargets(this.map);
    const repair = this.#checking.chance(0.8);
    const check = data.check({ targets, repair }, (report) => this.#compared(node, report));
    if (check === null || !this.#checking.chance(0.1)) return;
    this.world.after(this.#checking.between(1, 500), () => data.cancelCheck(check));
  }

  #compared(node: SimNode, report: CheckReport): void {
    this.checks++;
    if (report.blocks.length === 0 && report.unchecked.length === 0) this.goodChecks++;
    const differing = report.blocks.filter(({ kind }) => kind === "differs");
    if (differing.length === 0) return;
    throw new Error(`node ${node.id} says that replicas differ: ${JSON.stringify(differing)}`);
  }

  /** Once every group is whole: a node that can compare replicas. Who has just started has the map before its data worker has it. */
  #wholeAnd(what: string): SimNode {
    const able = () => this.nodes.find((each) => each.process?.data?.hasMap === true);
    const isReady = () => this.isWhole() && able() !== undefined;
    this.until(`every group is whole to be ${what}`, isReady, QUIET_MS_MAX);
    return able()!;
  }

  /** Replicas that have lost stamps get them back: where layers are being merged, when that is over. */
  #completeAll(): void {
    for (let round = 0;; round++) {
      const node = this.#wholeAnd("completed");
      if (this.map!.level < 2) return;
      const found = this.beginCheck(node, true);
      this.until("replicas are completed", () => found.report !== null, QUIET_MS_MAX);
      const { disks, unchecked } = found.report!;
      const isLeft = ({ laggingChunks, caughtUpChunks }: DiskCheck) =>
        laggingChunks > caughtUpChunks;
      if (!disks.some(isLeft)) return;
      if (round === CHECKS_MAX) {
        throw new Error(`replicas lack writes: ${JSON.stringify(unchecked)}`);
      }
      this.world.run(this.world.nowMs + 1000);
    }
  }

  /** Once all is calm, a node finds all replicas to be good, or makes them so. */
  #checkAll(): void {
    let report: CheckReport | null = null;
    // Groups may still move, now that nodes have more room again; a chunk whose group moves meanwhile is not checked.
    for (let round = 0; report === null; round++) {
      if (round === CHECKS_MAX) throw new Error("groups move whenever replicas are compared");
      const node = this.#wholeAnd("checked");
      const { level, pools } = this.map!;
      if (level < 2) return;
      const found = this.beginCheck(node, true);
      this.until("replicas are compared", () => found.report !== null, QUIET_MS_MAX);
      this.#compared(node, found.report!);
      const isSame = this.map!.pools.every((pool, at) => pool === pools[at]);
      if (isSame) report = found.report!;
    }
    const { disks, unchecked, blocks } = report;
    for (const disk of disks) {
      // What a holder that crashed has left is brought in line when the disk is opened again.
      const entry = this.map!.disks.find(({ id }) => id === disk.disk);
      if (entry === undefined || entry.settled < entry.generation) continue;
      const isGood = disk.damagedBlocks === disk.repairedBlocks && disk.uncheckedChunks === 0;
      if (!isGood) {
        throw new Error(
          `not all is good: ${JSON.stringify(disk)} ${JSON.stringify(unchecked)} ` +
            JSON.stringify(blocks),
        );
      }
    }
  }

  #step(): void {
    const { random } = this.world;
    this.#compareSometimes();
    const up = this.nodes.filter((node) => node.isRunning);
    const down = this.nodes.filter((node) => !node.isRunning && node !== this.#doomed);
    const node = random.pick(this.nodes);
    switch (random.below(20)) {
      case 0:
      case 1:
        if (up.length > 0) this.#crash(random.pick(up), random.chance(0.5));
        return;
      case 2:
      case 3:
      case 4:
        if (down.length > 0) this.#restart(random.pick(down));
        return;
      case 5: {
        if (!random.chance(0.4)) return;
        const isPower = random.chance(0.7);
        const share = random.pick([0.5, 1, 1]);
        this.note(null, isPower ? "power cut" : "processes are killed");
        for (const each of up) if (random.chance(share)) this.#crash(each, isPower);
        return;
      }
      case 6:
        return this.#partition();
      case 7:
        return this.#cutLink(node);
      case 8:
      case 9:
        if (this.network.cut.size > 0) this.note(null, "the network is whole again");
        this.network.cut.clear();
        return;
      case 10:
        node.diskDelayMs = random.pick([0.1, 0.3, 2, 20, 100]);
        node.dataLagMs = random.pick([0, 0, 30, 300]);
        return;
      case 11:
      case 12:
        return this.options.areMoving === true ? this.#migrate() : this.#moveGuest();
      case 13:
        return this.#takeOver();
      case 14:
        for (const oracle of this.oracles) this.#startGuest(oracle);
        return;
      case 15:
        if (up.length > 0) this.#stop(random.pick(up));
        return;
      default:
        return this.#administer(node);
    }
  }

  /** Data paths fail, are away when the next process starts, and are back for one after that. */
  #stepPaths(): void {
    const random = this.#pathRandom;
    const node = random.pick(this.nodes);
    if (node.moreDisks.length === 0 || random.chance(0.2)) return;
    const path = random.below(node.disks.length);
    switch (random.below(6)) {
      case 0:
        this.note(node, `data path ${path} breaks`);
        node.broken.add(path);
        return;
      case 1:
        if (node.isRunning) this.#crash(node, random.chance(0.5));
        this.note(node, `data path ${path} is away`);
        node.missing.add(path);
        return;
      case 2:
        node.missing.add(path);
        return;
      default:
        if (node.missing.size + node.broken.size === 0) return;
        this.note(node, "all its data paths are back");
        node.missing.clear();
        node.broken.clear();
        // Only a start finds them.
        if (node.isRunning && random.chance(0.5)) this.#crash(node, random.chance(0.3));
    }
  }

  /**
   * Only faults that leave every group somebody in sync whose disk is sound. The network is as bad as ever, and may cost a group
   * its sound replicas: nothing rots while the disk that rots has the only one left, and what has rotted before is readable again.
   */
  #stepFlipping(flipped: SimNode): void {
    const { random } = this.world;
    switch (random.below(12)) {
      case 0:
        if (flipped.isRunning) {
          const isPower = random.chance(0.5);
          const isKept = this.#isKeptByOthers(flipped);
          this.#crash(flipped, isPower);
          if (isPower && isKept) this.#loseTail(flipped);
        }
        return;
      case 1:
      case 2:
        if (!flipped.isRunning) this.#restart(flipped);
        return;
      case 3:
        flipped.diskDelayMs = random.pick([0.1, 0.3, 2, 20]);
        return;
      case 4:
      case 5:
        return this.#moveGuest();
      case 6:
        for (const oracle of this.oracles) this.#startGuest(oracle);
        return;
      default:
        for (let i = random.below(8); i >= 0; i--) this.#flip(flipped);
    }
  }

  /** Whether there is a group with guests' data that nobody else has in sync: nobody could heal it. */
  #isAlone(node: SimNode): boolean {
    const id = this.#nodeIdOf(node);
    const { map } = this;
    return id !== 0 && map !== null && this.oracles.some((oracle) => {
      const disk = this.#entryOf(oracle);
      const pool = disk === undefined ? undefined : poolOf(map, disk);
      return disk !== undefined && pool !== undefined && oracle.places.some((place) => {
        const { pgs } = pool;
        const { inSync, unclean } =
          pgs[pgOf(disk.family, Math.floor(place / CHUNK_BYTES), pgs.length)];
        return inSync.includes(id) &&
          !inSync.some((other) => other !== id && !unclean.includes(other));
      });
    });
  }

  /** The medium gives again what it should, wherever nothing else was written since. */
  #unrot(node: SimNode): void {
    for (const { offset, before, after } of this.#rot.reverse()) {
      const now = node.disk.peek(offset, BLOCK_BYTES);
      if (Buffer.compare(now, after) === 0) node.disk.poke(offset, before);
    }
    this.#rot = [];
  }

  /** Inverts a bit of a guest's block, somewhere on the disk. */
  #flip(node: SimNode): void {
    const { random } = this.world;
    if (this.#isAlone(node)) return;
    for (let i = 0; i < FLIP_TRIES; i++) {
      const offset = random.below(node.disk.sizeBytesMax / BLOCK_BYTES) * BLOCK_BYTES;
      const words = new Uint32Array(node.disk.peek(offset, BLOCK_BYTES).buffer);
      // Guests' blocks are the ones that are full of one number, of which they have not written many. So is what a node
      // remembers of where groups are, one byte for each: nobody has another copy of that, and its path is not opened then.
      if (words[0] === 0 || words[0] >= NUMBERS_MAX) continue;
      if (words.some((word) => word !== words[0])) continue;
      if (node.moreDisks.length > 0 && (words[0] & ~PATH_BYTES) === 0) continue;
      // A medium loses what is on it. In the tail of the log, not synced, it would pass for a write that was cut short.
      if (!node.disk.isDurable(offset, BLOCK_BYTES)) continue;
      const before = node.disk.peek(offset, BLOCK_BYTES);
      node.disk.flipBit(offset + random.below(BLOCK_BYTES), random.below(8));
      this.#rot.push({ offset, before, after: node.disk.peek(offset, BLOCK_BYTES) });
      this.flips++;
      return;
    }
  }

  /**
   * The power has failed, and in what the node had made durable last there is a header that does not match: nothing says that
   * it was durable, so the log ends there, and with it go entries of consensus. Only for what the others keep
   * ({@linkcode #isKeptByOthers}).
   */
  #loseTail(node: SimNode): void {
    const { map } = this;
    if (this.#tearing === null || map === null || map.voters.length < 3) return;
    if (this.#isAlone(node)) return;
    const at = headOfTail(node.disk, this.#tearing);
    if (at < 0) return;
    node.disk.flipBit(at + this.#tearing.below(64), this.#tearing.below(8));
    this.tails++;
    this.note(node, "has lost the tail of its log");
  }

  /**
   * Whether the others keep whatever the node has promised to consensus. Nobody is safe from a voter that forgets more than that,
   * before it is noticed (the head of `consensus/raft.ts`): an entry that only it and one more of three have, and that is
   * committed, would not be where the two that are left elect a leader, and the third would be shut out for good.
   *
   * So a majority without it must have all that is in its log, and every other voter must follow its leader in its very term: then
   * the vote that it may forget could only be given again to somebody who stands in that term no more.
   */
  #isKeptByOthers(node: SimNode): boolean {
    const states = new Map<number, RaftStatus>();
    for (const each of this.nodes) {
      const raft = each.isRunning ? each.process!.control?.status.raft ?? null : null;
      if (raft !== null) states.set(raft.id, raft);
    }
    const own = states.get(node.process?.control?.node ?? 0);
    const leader = states.get(own?.leader ?? 0);
    if (own === undefined || leader?.role !== "leader" || leader.term !== own.term) return false;
    if (leader.configurationIndex > leader.commit) return false;
    const { voters } = leader.configuration;
    const others = voters.filter((voter) => voter !== own.id);
    const isFollowing = (voter: number) => {
      const state = states.get(voter);
      return state?.term === leader.term && state.leader === leader.id;
    };
    // The leader knows of whom it has compared the log with its own.
    const has = (voter: number) => {
      const member = leader.members.find((each) => each.node === voter);
      return (voter === leader.id ? leader.durable : member?.match ?? 0) >= own.lastIndex;
    };
    return others.every(isFollowing) && others.filter(has).length > voters.length / 2;
  }

  /** No node's committed log contradicts that of its leader: there is one history. */
  #checkHistory(): void {
    for (const node of this.nodes) {
      const raft = node.process?.control?.status.raft ?? null;
      if (raft === null || raft.contradictions === 0) continue;
      throw new Error(
        `node ${node.id} has committed what others have not: ${JSON.stringify(raft)}`,
      );
    }
  }

  /** A partition of any shape, perhaps in one direction only. */
  #partition(): void {
    const { random } = this.world;
    const side = new Set(this.nodes.filter(() => random.chance(0.5)).map((each) => each.id));
    const isOneWay = random.chance(0.3);
    for (const from of this.nodes) {
      for (const to of this.nodes) {
        if (!side.has(from.id) || side.has(to.id)) continue;
        this.network.cut.add(`${from.id}>${to.id}`);
        if (!isOneWay) this.network.cut.add(`${to.id}>${from.id}`);
      }
    }
    this.note(null, `partition ${[...side].join()} from the others${isOneWay ? ", one way" : ""}`);
    this.network.breakCut();
  }

  #cutLink(node: SimNode): void {
    const { random } = this.world;
    const other = random.pick(this.nodes);
    if (other === node) return;
    this.network.cut.add(`${node.id}>${other.id}`);
    if (random.chance(0.6)) this.network.cut.add(`${other.id}>${node.id}`);
    this.note(null, `link ${node.id}-${other.id} is cut`);
    this.network.breakCut();
  }

  #crash(node: SimNode, isPower: boolean): void {
    if (!node.isRunning) return;
    this.crashes++;
    this.movedGroups += node.process?.set?.movedGroups ?? 0;
    this.repaired += node.process?.data?.status.repaired ?? 0;
    this.note(node, isPower ? "loses power" : "is killed");
    for (const [disk, guest] of [...this.guests]) {
      if (guest.node !== node) continue;
      guest.isStopped = true;
      this.guests.delete(disk);
    }
    for (const guest of [...this.#leftBehind]) {
      if (guest.node !== node) continue;
      guest.isStopped = true;
      this.#leftBehind.delete(guest);
    }
    node.crash(isPower);
  }

  #restart(node: SimNode): void {
    if (node.process !== null || !this.nodes.includes(node)) return;
    this.note(node, "starts");
    this.#start(node, this.#seeds());
  }

  /** Starts a host, as another version perhaps. */
  #start(node: SimNode, seeds: readonly string[]): void {
    const { upgrade } = this.options;
    if (upgrade !== undefined) {
      const before = node.build;
      // Back is possible as long as the level has not risen; that it may rise meanwhile is what it finds out.
      const isBound = this.#isHealing || this.map?.level === upgrade.protocol;
      node.build = isBound || this.#versions.chance(0.6)
        ? upgrade
        : this.options.build ?? THIS_BUILD;
      if (node.build !== before) {
        this.changes++;
        this.note(node, `runs version ${node.build.version} from here on`);
      }
    }
    node.start(seeds);
    if (node.missing.size > 0) this.missingPaths++;
  }

  /** Ends an agent in good order, as `systemctl stop` does; its guests go first. */
  #stop(node: SimNode): void {
    if (node.incarnation === 0 || this.#leaving.has(node)) return;
    this.note(node, "is to stop");
    // Of this stop, and of none that comes after it.
    const stop = Symbol();
    this.#leaving.set(node, stop);
    let left = 1;
    const gone = () => {
      if (--left > 0) return;
      // Nobody waits for a guest that is elsewhere by now: its front end is cut off.
      for (const guest of [...this.#leftBehind]) {
        if (guest.node !== node) continue;
        guest.isFenced = true;
        guest.isStopped = true;
        this.#leftBehind.delete(guest);
      }
      node.stop(() => {
        this.#leaving.delete(node);
        this.note(node, "has stopped");
      });
    };
    for (const guest of [...this.guests.values()]) {
      if (guest.node !== node) continue;
      left++;
      this.#close(guest, gone);
    }
    left += this.#going?.whenOver(node, gone) ?? 0;
    // A guest that cannot end is cut off.
    const { process } = node;
    this.world.after(5000, () => {
      if (this.#leaving.get(node) !== stop) return;
      if (node.process === process && process !== null) this.#crash(node, false);
      this.#leaving.delete(node);
    });
    gone();
  }

  #close(guest: Guest, done: () => void = () => {}): void {
    if (guest.isStopped) return;
    guest.drain(() => {
      const disk = guest.oracle.id;
      if (this.guests.get(disk) !== guest || guest.isFenced) return;
      this.guests.delete(disk);
      guest.node.detach(disk, guest.volume);
      this.note(guest.node, `its guest closes ${guest.oracle.name}`);
      done();
    });
  }

  #moveGuest(): void {
    const oracle = this.world.random.pick(this.oracles);
    const guest = this.guests.get(oracle.id);
    if (guest === undefined) this.#startGuest(oracle);
    else this.#close(guest);
  }

  /** The other end is there and waits before this one gives the disk back, if it comes to that. */
  #migrate(): void {
    const { random } = this.world;
    const oracle = random.pick(this.oracles);
    const guest = this.guests.get(oracle.id);
    if (guest === undefined) return void this.#startGuest(oracle);
    const isAlone = ![...this.#leftBehind].some((other) => other.oracle === oracle);
    if (guest.isStopped || !isAlone) return;
    this.guests.delete(oracle.id);
    if (!this.#startGuest(oracle)) return void this.guests.set(oracle.id, guest);
    this.#leftBehind.add(guest);
    this.world.after(random.below(1000), () => {
      guest.drain(() => {
        if (guest.isFenced || !this.#leftBehind.delete(guest)) return;
        guest.node.detach(oracle.id, guest.volume);
        this.note(guest.node, `its guest has moved away with ${oracle.name}`);
      });
    });
  }

  /** A guest is started elsewhere though the old one still runs, perhaps cut off: only one of them gets on. */
  #takeOver(): void {
    const { random } = this.world;
    const oracle = random.pick(this.oracles);
    const guest = this.guests.get(oracle.id);
    const isAlone = ![...this.#leftBehind].some((other) => other.oracle === oracle);
    if (guest === undefined || guest.isStopped || !isAlone) return;
    if (random.chance(0.6)) {
      for (const other of this.nodes) {
        if (other === guest.node) continue;
        this.network.cut.add(`${guest.node.id}>${other.id}`);
        this.network.cut.add(`${other.id}>${guest.node.id}`);
      }
      this.note(guest.node, "is cut off");
      this.network.breakCut();
    }
    this.guests.delete(oracle.id);
    this.#leftBehind.add(guest);
    if (!this.#startGuest(oracle)) {
      this.#leftBehind.delete(guest);
      this.guests.set(oracle.id, guest);
      return;
    }
    const entry = this.#entryOf(oracle);
    if (entry !== undefined && entry.lease !== null && random.chance(0.3)) {
      this.propose({ kind: "force-release-lease", id: entry.id, generation: entry.generation });
    }
  }

  // --------------------------------------------------------------------------------- administration

  #administer(node: SimNode): void {
    const { random } = this.world;
    const id = this.#nodeIdOf(node);
    if (id === 0) return;
    switch (random.below(12)) {
      case 0:
      case 1: {
        const availability = random.pick(["in", "draining"] as const);
        return this.propose({ kind: "set-availability", node: id, availability });
      }
      case 2:
        return this.propose({
          kind: "set-weight",
          node: id,
          weight: random.pick([null, 1e9, 4e9]),
        });
      case 3:
        return this.propose({
          kind: "set-zone",
          node: id,
          zone: random.pick(["", "zone-0", "zone-1"]),
        });
      case 4:
      case 5:
        if (this.#doomed !== null || this.nodes.length < 3) return;
        this.#doomed = node;
        if (random.chance(0.5)) this.#crash(node, true);
        return;
      case 6:
        return this.#resize();
      case 7:
        return this.#forceRelease();
      case 8: {
        if (this.#disksMade > 3) return;
        const name = `scratch-${this.#disksMade++}`;
        const copies = random.between(1, 5);
        const there = ZONES.filter((zone) => this.map!.nodes.some((each) => each.zone === zone));
        const isZoned = this.map!.level >= 2 && there.length > 0 && this.#zones.chance(0.5);
        const where = isZoned ? { zones: [this.#zones.pick(there)] } : {};
        const disk = { sizeBytes: 1 << 30, nowMs: 0, copies, ...where } as const;
        return this.propose({ kind: "create-disk", name, ...disk });
      }
      case 9: {
        const scratch = this.map!.disks.find(({ name }) => name.startsWith("scratch"));
        if (scratch !== undefined) this.propose({ kind: "delete-disk", name: scratch.name });
        return;
      }
      case 10: {
        const { name } = random.pick(this.oracles);
        const copies = random.between(1, 5);
        const kind = this.map!.level < 2 ? "change-disk" : "set-copies";
        return this.propose({ kind, name, copies });
      }
      case 11:
        if (this.nodes.length < 9 && random.chance(0.3)) this.#join();
    }
  }

  #resize(): void {
    const oracle = this.world.random.pick(this.oracles);
    const isOpen = this.guests.has(oracle.id) ||
      [...this.#leftBehind].some((guest) => guest.oracle === oracle);
    if (isOpen) return;
    const sizeBytes = oracle.sizeBytes + 4096 * this.world.random.between(1, 5000);
    oracle.sizeBytes = sizeBytes;
    this.propose({ kind: "resize-disk", name: oracle.name, sizeBytes });
  }

  #forceRelease(): void {
    const entry = this.#entryOf(this.world.random.pick(this.oracles));
    if (entry === undefined || entry.lease === null) return;
    this.propose({ kind: "force-release-lease", id: entry.id, generation: entry.generation });
  }

  /** Takes a node out for good: drained if it lives, by force (but not at the price of data) if it is dead. */
  #remove(node: SimNode): void {
    const entry = this.map!.nodes.find((each) => each.uuid === node.uuid);
    if (entry === undefined) return;
    const nowMs = Math.floor(this.world.nowMs);
    if (entry.state === "down") {
      this.propose({ kind: "remove-node", node: entry.id, nowMs, force: true });
    } else if (entry.availability === "draining") {
      this.propose({ kind: "remove-node", node: entry.id, nowMs });
    } else {
      this.propose({ kind: "set-availability", node: entry.id, availability: "draining" });
    }
  }

  #join(): SimNode | null {
    if (this.#hosts >= HOSTS_MAX) return null;
    const seeds = this.#seeds();
    const node = this.#addNode();
    this.note(node, "is new");
    this.#start(node, seeds);
    return node;
  }

  /** Hosts that the map has forgotten go; somebody comes in their place. */
  #retire(): void {
    for (const node of [...this.nodes]) {
      if (!this.#known.has(node.uuid) || this.#nodeIdOf(node) !== 0) continue;
      if (node.isRunning && !this.#isHealing && this.world.random.chance(0.7)) continue;
      this.#crash(node, true);
      this.nodes.splice(this.nodes.indexOf(node), 1);
      this.network.stations.delete(node.address);
      this.#freeMemories.push(node.index);
      this.replacedNodes++;
      if (this.#doomed === node) this.#doomed = null;
      this.note(node, "is gone for good");
      if (this.world.random.chance(0.8) || this.nodes.length < 2) this.#join();
    }
  }

  // ----------------------------------------------------------------------------------------- end

  #heal(): void {
    this.note(null, "all faults end");
    this.#isHealing = true;
    this.#doomed = null;
    this.#snapshots?.end();
    this.network.cut.clear();
    this.network.faults = { ...NO_FAULTS };
    for (const node of this.nodes) {
      node.diskDelayMs = 0.3;
      node.dataLagMs = 0;
      node.diskErrors = NO_DISK_ERRORS;
      node.missing.clear();
      node.broken.clear();
      if (node.isRunning && node.workingPaths < node.disks.length) this.#crash(node, false);
    }
    // What was asked for last is on its way yet, the removal of a node for one.
    this.world.run(this.world.nowMs + ASKED_MS);
    this.#retire();
    for (const node of this.nodes) if (!node.isRunning) this.#restart(node);
    this.until(
      "all nodes are back",
      () => {
        for (const node of this.nodes) {
          if (node.process === null && !this.#leaving.has(node)) this.#restart(node);
        }
        this.#retire();
        return this.nodes.every((node) => node.incarnation > 0) && this.#leaving.size === 0;
      },
      QUIET_MS_MAX,
    );
    this.until("every group is whole", () => this.isWhole(), QUIET_MS_MAX);
    if (this.options.upgrade !== undefined) this.#upgradeRest(this.options.upgrade);
  }

  /** Nobody is drained any more, whatever was asked for and comes late: who was asked may have stood still for a while. */
  #undrain(): void {
    for (const { id, availability } of this.map!.nodes) {
      if (availability !== "draining" || this.#undrained.has(id)) continue;
      this.#undrained.add(id);
      this.world.after(ASKED_MS, () => this.#undrained.delete(id));
      this.propose({ kind: "set-availability", node: id, availability: "in" });
    }
  }
  readonly #undrained = new Set<number>();

  /** What still runs the old version starts as the new one, one after the other, and then it is all switched on. */
  #upgradeRest(upgrade: Build): void {
    for (const node of [...this.nodes]) {
      if (node.build === upgrade || !this.nodes.includes(node)) continue;
      if (this.map!.level >= upgrade.protocol) throw new Error(`the level rose without ${node.id}`);
      this.#stop(node);
      this.until("an old one has stopped", () => node.process === null, QUIET_MS_MAX);
      this.#restart(node);
      this.until("every group is whole again", () => this.isWhole(), QUIET_MS_MAX);
    }
    const isInUse = ({ process }: SimNode) => {
      const map = process?.map ?? null;
      return map !== null && map.level === upgrade.protocol && upgrade.isUsed(map);
    };
    this.until("what is new is used", () => this.nodes.every(isInUse));
    this.until("every group is whole at last", () => this.isWhole(), QUIET_MS_MAX);
  }

  /** Every node is up, every group has its replicas where they belong, in sync, and every node has the newest map. */
  isWhole(): boolean {
    this.#retire();
    if (this.#isHealing) this.#undrain();
    const { map } = this;
    // What a story drains is as it should be.
    const isServing = ({ state, availability }: NodeEntry) =>
      state === "up" && !(this.#isHealing && availability === "draining");
    if (map === null || !map.nodes.every(isServing)) return false;
    const isGood = (entry: PgEntry) =>
      entry.unclean.length === 0 && !entry.unsettled && entry.joining.length === 0 &&
      entry.inSync.length === entry.target.length &&
      entry.target.every((node) => entry.inSync.includes(node));
    const takers = map.nodes.filter((node) => !node.witness && node.availability === "in");
    // Nobody is on the way to other copies.
    const isPlaced = map.pools.every(({ copies, zones, family, pgs }) => {
      const places = takers.filter((node) => isInZones(zones, node)).map(({ id }) => id);
      // Where a zone has no node all stays where it is.
      if (places.length === 0 && zones.length > 0) return family === 0;
      return family === 0 &&
        pgs.every(({ target }) =>
          target.length === Math.min(copies, places.length) &&
          (zones.length === 0 || target.every((id) => places.includes(id)))
        );
    });
    return isPlaced && map.pools.every((pool) => pool.pgs.every(isGood)) &&
      this.nodes.every((node) => node.process?.map?.epoch === map.epoch);
  }

  #verify(): void {
    // Whoever still has the disk goes in good order.
    for (const guest of this.#leftBehind) {
      guest.drain(() => {
        this.#leftBehind.delete(guest);
        guest.node.detach(guest.oracle.id, guest.volume);
      });
    }
    this.until("those that were left behind go", () => this.#leftBehind.size === 0, QUIET_MS_MAX);
    // As the faults have left it, before guests write over what may be wrong.
    for (const guest of [...this.guests.values()]) this.#close(guest);
    this.until("guests end", () => this.guests.size === 0, QUIET_MS_MAX);
    if (this.#settling !== null) this.#completeAll();
    if (this.#checking.chance(0.5)) this.#checkAll();
    if (this.flips > 0) this.until("damaged blocks heal", () => this.#isSound(), QUIET_MS_MAX);
    this.compareReplicas();
    // What guests write from here on is what a disk is rolled back from.
    this.#snapshots?.takeNow();
    // Guests that are there must get on.
    for (const oracle of this.oracles) this.#startGuest(oracle);
    this.world.run(this.world.nowMs + CALM_MS);
    for (const guest of this.guests.values()) {
      const { oldestMs } = guest;
      const mostMs = guest.isBegun ? STALL_MS_MAX : LEASE_MS_MAX;
      if (oldestMs < 0 || this.world.nowMs - oldestMs <= mostMs) continue;
      const reason = guest.node.process?.data?.router(guest.oracle.id).waitingReason;
      const { lease, generation } = this.#entryOf(guest.oracle)!;
      throw new Error(
        `${guest.oracle.name} on node ${guest.node.id} stalls in a healthy cluster: ${reason}; its lease is ` +
          `${JSON.stringify(lease)}, generation ${generation}; ${guest.describe()}`,
      );
    }
    for (const guest of [...this.guests.values()]) this.#close(guest);
    this.until("guests end", () => this.guests.size === 0, QUIET_MS_MAX);
    this.until(
      "leases are given back",
      () => this.map!.disks.every((disk) => disk.lease === null),
      QUIET_MS_MAX,
    );
    // Somebody else reads it all.
    for (const oracle of this.oracles) this.#sweep(oracle, `${oracle.name} is read`);
    this.until("every group is whole still", () => this.isWhole(), QUIET_MS_MAX);
    if (this.#snapshots !== null) this.#verifySnapshots(this.#snapshots);
    this.#checkHistory();
    for (const node of this.nodes) this.repaired += node.process!.data!.status.repaired;
    this.compareReplicas();
    this.until("what is kept elsewhere is dropped", () => this.#isTidy(), QUIET_MS_MAX);
    this.#checkZones();
  }

  /** Nothing of a guest's is on a node outside of the zones that its disk is kept in, where there is one inside. */
  #checkZones(): void {
    const map = this.map!;
    for (const oracle of this.oracles) {
      const disk = this.#entryOf(oracle)!;
      const zones = zonesOf(map, disk);
      if (zones.length === 0) continue;
      this.#zonedDisks++;
      const isInside = ({ zone, witness }: NodeEntry) => !witness && zones.includes(zone);
      if (!map.nodes.some(isInside)) continue;
      for (const entry of map.nodes.filter((each) => !isInside(each))) {
        const node = this.nodes.find(({ uuid }) => uuid === entry.uuid)!;
        const chunks = oracle.places.map((place) => Math.floor(place / CHUNK_BYTES));
        const chunk = chunks.find((each) => disk.layers.some((id) => hasChunk(node, id, each)));
        if (chunk === undefined) continue;
        throw new Error(
          `node ${entry.id} of zone "${entry.zone}" has chunk ${chunk} of ${disk.name}, which is kept in ${zones}`,
        );
      }
    }
  }

  /** Whether nobody has anything of a guest's chunk but the members of its group. */
  #isTidy(): boolean {
    const map = this.map!;
    return this.oracles.every((oracle) => {
      const disk = this.#entryOf(oracle)!;
      const { pgs } = poolOf(map, disk)!;
      const chunks = new Set(oracle.places.map((place) => Math.floor(place / CHUNK_BYTES)));
      return this.nodes.every((node) => {
        const id = this.#nodeIdOf(node);
        return [...chunks].every((chunk) =>
          pgs[pgOf(disk.family, chunk, pgs.length)].inSync.includes(id) ||
          disk.layers.every((layer) => !hasChunk(node, layer, chunk))
        );
      });
    });
  }

  /** A guest opens a disk, reads all of it once, and closes it. */
  #sweep(oracle: DiskOracle, what: string): void {
    if (!this.#startGuest(oracle)) throw new Error(`${oracle.name} cannot be opened`);
    const guest = this.guests.get(oracle.id)!;
    let isDone = false;
    guest.sweep(() => isDone = true);
    this.until(what, () => isDone, QUIET_MS_MAX);
    this.guests.delete(oracle.id);
    guest.node.detach(oracle.id, guest.volume);
  }

  /** Snapshots are what they were, and once they are deleted nothing is left of them. */
  #verifySnapshots(snapshots: Snapshots): void {
    snapshots.verify();
    this.compareReplicas();
    snapshots.deleteAll();
    const isMerged = () =>
      this.map!.disks.every((disk) => disk.snapshots.length === 0) &&
      this.map!.layers.length === this.map!.disks.length;
    this.until("deleted snapshots are merged", isMerged, QUIET_MS_MAX);
    this.until("every group is whole without snapshots", () => this.isWhole(), QUIET_MS_MAX);
    for (const oracle of this.oracles) {
      this.#sweep(oracle, `${oracle.name} is read without its snapshots`);
    }
    this.until("every group is whole at the very end", () => this.isWhole(), QUIET_MS_MAX);
    for (const node of this.nodes) {
      const layers = node.process!.store.layers();
      const known = this.map!.layers.map(({ id }) => id);
      const stray = layers.find((layer) => !known.includes(layer));
      if (stray !== undefined) throw new Error(`node ${node.id} still has layer ${stray}`);
    }
  }

  /** A scrub of everything finds nothing that is damaged. */
  #isSound(): boolean {
    const { store } = this.#flipped!.process!;
    const before = store.stats().damageCount;
    let isDone = false;
    store.scrubNow(null, () => true, () => isDone = true);
    this.#flipped!.turn();
    this.until("a scrub ends", () => isDone, QUIET_MS_MAX);
    this.world.run(this.world.nowMs + 2000);
    return store.stats().damageCount === before && store.stats().damage.length === 0;
  }

  /**
   * Has a node compare the replicas of all disks, when it is done with an earlier time; null in place of the report until it is
   * there. Throws where it cannot.
   */
  beginCheck(
    node: SimNode,
    repair: boolean,
    preferred = 0,
  ): { check: Check; report: CheckReport | null } {
    const found: { check: Check; report: CheckReport | null } = { check: null!, report: null };
    const targets = allTargets(this.map!);
    const done = (report: CheckReport) => found.report = report;
    this.until(`node ${node.id} can compare replicas`, () => {
      found.check = node.process!.data!.check({ targets, repair, preferred }, done)!;
      return found.check !== null;
    }, QUIET_MS_MAX);
    return found;
  }

  /** Throws unless all replicas of all chunks of disks that were closed in good order hold equal bytes and equal stamps. */
  compareReplicas(): void {
    for (let tries = 1;; tries++) {
      this.until("every group is whole to be compared", () => this.isWhole(), QUIET_MS_MAX);
      const { epoch } = this.map!;
      let complaint: unknown = null;
      try {
        this.#compareUnder(this.map!);
      } catch (error) {
        complaint = error;
      }
      // Reading takes time, in which chunks may go elsewhere: what was found counts when it was found under one map.
      if (this.map!.epoch !== epoch && tries < COMPARISONS_MAX) continue;
      if (complaint !== null) throw complaint;
      return;
    }
  }

  #compareUnder(map: ClusterMap): void {
    for (const oracle of this.oracles) {
      this.#compareDisk(map, this.#entryOf(oracle)!, oracle);
      for (const clone of this.#snapshots?.clonesOf(oracle) ?? []) {
        this.#compareDisk(map, clone, oracle);
      }
    }
    for (const left of this.#snapshots?.left ?? []) {
      this.#compareDisk(map, dataOf(map, left)!, left);
    }
  }

  #compareDisk(map: ClusterMap, disk: DiskEntry, oracle: DiskOracle): void {
    // What a holder that crashed has left is brought in line when the disk is opened again.
    if (disk.settled < disk.generation) return;
    const pool = poolOf(map, disk)!;
    const chunks = new Set(oracle.places.map((place) => Math.floor(place / CHUNK_BYTES)));
    for (const chunk of chunks) {
      const entry = pool.pgs[pgOf(disk.family, chunk, pool.pgs.length)];
      // Layers that are becoming one differ as long as some have merged them and others have not.
      const pairs = new Set(
        map.layers.flatMap(({ id, absorbedBy }) =>
          absorbedBy === null ? [] : [id, map.layers.find(({ parent }) => parent === id)!.id]
        ),
      );
      for (const layer of disk.layers.filter((each) => !pairs.has(each))) {
        let first: { node: number; content: Map<number, Uint8Array>; stamp: string } | null = null;
        for (const id of entry.inSync) {
          const { uuid } = map.nodes.find((node) => node.id === id)!;
          const node = this.nodes.find((candidate) => candidate.uuid === uuid)!;
          // What some replicas have copied into it from below, and others have not, is in what it is read through.
          const isHalf = this.#snapshots?.half.has(layer) === true ||
            map.layers.some(({ id, flatten }) => id === layer && flatten !== undefined);
          const layers = isHalf ? disk.layers.slice(disk.layers.indexOf(layer)) : [layer];
          const content = this.#readRaw(node, layers, chunk);
          const found = new Stamp();
          if (!isHalf) node.process!.store.stampOf(layer, chunk, found);
          const stamp = `${found.generation}.${found.sequence}`;
          if (first === null) {
            first = { node: id, content, stamp };
            continue;
          }
          this.#compareContent(
            `${disk.name}, layer ${layer}, chunk ${chunk}`,
            first,
            { node: id, content, stamp },
          );
        }
      }
    }
  }

  #compareContent(
    what: string,
    a: { node: number; content: Map<number, Uint8Array>; stamp: string },
    b: { node: number; content: Map<number, Uint8Array>; stamp: string },
  ): void {
    const who = `nodes ${a.node} (${a.stamp}) and ${b.node} (${b.stamp})`;
    for (const block of new Set([...a.content.keys(), ...b.content.keys()])) {
      const [one, other] = [a.content.get(block), b.content.get(block)];
      const isEqual = one !== undefined && other !== undefined && Buffer.compare(one, other) === 0;
      if (!isEqual) {
        throw new Error(`${what}, block ${block}: ${who} differ: ${one?.[0]} and ${other?.[0]}`);
      }
    }
    if (a.stamp !== b.stamp) throw new Error(`${what}: ${who} have different stamps`);
  }

  /** Blocks of a chunk, read through some layers, that are not zeros. */
  #readRaw(
    node: SimNode,
    layers: readonly number[],
    chunk: number,
  ): Map<number, Uint8Array> {
    const { store, pool } = node.process!;
    const content = new Map<number, Uint8Array>();
    const maps = [0, 1, 2].map(() => new Uint32Array(CHUNK_BLOCKS / 32));
    store.describeChain(layers, chunk, maps[0], maps[1], maps[2]);
    const buffer = pool.buffers.allocate(BLOCK_BYTES);
    node.isLookedAt = true;
    for (let block = 0; block < CHUNK_BLOCKS; block++) {
      if (((maps[0][block >>> 5] | maps[2][block >>> 5]) >>> (block & 31) & 1) === 0) continue;
      let isDone = false;
      const operation = new Operation({ operationDone: () => isDone = true }, 0);
      operation.kind = OperationKind.Read;
      operation.layers = layers;
      operation.chunk = chunk;
      operation.block = block;
      operation.blockCount = 1;
      operation.buffer = buffer;
      store.submit(operation);
      node.turn();
      this.until("a block is read", () => isDone);
      if (operation.result !== 0) {
        throw new Error(`node ${node.id}, chunk ${chunk}, block ${block}: ${operation.result}`);
      }
      const bytes = node.window.bytes.slice(buffer, buffer + BLOCK_BYTES);
      if (Buffer.compare(bytes, ZEROS) !== 0) content.set(block, bytes);
    }
    node.isLookedAt = false;
    pool.buffers.release(buffer, BLOCK_BYTES);
    return content;
  }
}

/** The disk of an oracle, also in the trash. */
function dataOf(map: ClusterMap, { id }: DiskOracle): DiskEntry | undefined {
  return map.disks.find((disk) => disk.id === id) ??
    map.trash.find(({ disk }) => disk.id === id)?.disk;
}

/** Whether a node's store has a stamp or a block of a chunk. */
function hasChunk({ process }: SimNode, layer: number, chunk: number): boolean {
  if (process?.store.hasLayer(layer) !== true) return false;
  const list = chunkList(1);
  process.store.listChunks(layer, chunk, list);
  return list.count > 0 && list.chunks[0] === chunk;
}

function textOf([atMs, node, message, fields]: LogLine): string {
  const who = node === 0 ? "--" : `node ${node}`;
  const more = fields === undefined ? "" : ` ${JSON.stringify(fields)}`;
  return `${(atMs / 1000).toFixed(3)} ${who} ${message}${more}`;
}
