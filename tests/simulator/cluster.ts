/**
 * A whole cluster under faults, and everything that must hold: driven by one seed.
 *
 * @module
 */
import { BLOCK_BYTES, CHUNK_BLOCKS } from "../../agent/base/limits.ts";
import { pgOf } from "../../agent/map/hash.ts";
import { type ClusterMap, type MapCommand, type PgEntry } from "../../agent/map/map.ts";
import { Operation, OperationKind } from "../../agent/store/operation.ts";
import { DiskOracle, Guest } from "./guest.ts";
import { Network } from "./network.ts";
import { type NodeWatcher, SimNode } from "./node.ts";
import { World } from "./world.ts";

/** What a run is like. */
export interface SimulationOptions {
  readonly seed: number;
  /** Virtual milliseconds of faults. */
  readonly faultsMs?: number;
  readonly nodes?: number;
  readonly isVerbose?: boolean;
  /** Called when all is set up, to break something on purpose. */
  readonly sabotage?: (simulation: Simulation) => void;
}

/** What a run did. */
export interface SimulationReport {
  readonly seed: number;
  readonly nodes: number;
  readonly events: number;
  readonly virtualMs: number;
  readonly writes: number;
  readonly reads: number;
  readonly flushes: number;
  readonly failedFlushes: number;
  readonly crashes: number;
  readonly epoch: number;
}

/** Virtual time within which a healthy cluster must have done what is asked. */
const QUIET_MS_MAX = 180_000;

/** See the head of the file. */
export class Simulation implements NodeWatcher {
  readonly world: World;
  readonly network: Network;
  readonly nodes: SimNode[] = [];
  readonly oracles: DiskOracle[] = [];
  readonly guests = new Map<number, Guest>();
  map: ClusterMap | null = null;
  crashes = 0;
  readonly #log: string[] = [];
  readonly #isVerbose: boolean;
  readonly #faultsMs: number;
  readonly #nodeCount: number;
  readonly #settledEpochs = new Map<string, number>();
  #isOver = false;
  readonly #seeds = ["node-1:7460", "node-2:7460", "node-3:7460"];
  readonly #sabotage: ((simulation: Simulation) => void) | undefined;

  constructor(readonly options: SimulationOptions) {
    this.world = new World(options.seed);
    this.network = new Network(this.world);
    this.#isVerbose = options.isVerbose ?? false;
    this.#faultsMs = options.faultsMs ?? 30_000;
    this.#nodeCount = options.nodes ?? this.world.random.between(1, 6);
    this.#sabotage = options.sabotage;
  }

  /** Runs it all. Throws with the seed and the last events when something does not hold. */
  run(): SimulationReport {
    try {
      this.#setUp();
      this.#sabotage?.(this);
      this.#misbehave();
      this.#heal();
      this.#verify();
    } catch (error) {
      const tail = this.#log.slice(-60).join("\n");
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
      reads: sum((oracle) => oracle.reads),
      flushes: sum((oracle) => oracle.flushes),
      failedFlushes: sum((oracle) => oracle.failedFlushes),
      crashes: this.crashes,
      epoch: this.map?.epoch ?? 0,
    };
  }

  // -------------------------------------------------------------------------------------- watching

  /** {@inheritDoc NodeWatcher.note} */
  note(node: SimNode | null, message: string): void {
    if (this.#isOver) return;
    const line = `${(this.world.nowMs / 1000).toFixed(3)} ${
      node === null ? "--" : `node ${node.id}`
    } ${message}`;
    if (this.#isVerbose) console.log(line);
    this.#log.push(line);
    if (this.#log.length > 400) this.#log.splice(0, 200);
  }

  /** {@inheritDoc NodeWatcher.mapChanged} */
  mapChanged(_node: SimNode, map: ClusterMap): void {
    if (this.map !== null && map.epoch <= this.map.epoch) return;
    this.map = map;
    for (const pool of map.pools) {
      const lost = new Set<number>();
      pool.pgs.forEach((entry, pg) => {
        const key = `${pool.copies} ${pg}`;
        const before = this.#settledEpochs.get(key) ?? 0;
        if (entry.settledEpoch <= before) return;
        this.#settledEpochs.set(key, entry.settledEpoch);
        lost.add(pg);
      });
      if (lost.size === 0) continue;
      for (const oracle of this.oracles) {
        const disk = map.disks.find((candidate) => candidate.id === oracle.id);
        if (disk?.copies !== pool.copies) continue;
        oracle.lost(
          this.world.nowMs,
          (chunk) => lost.has(pgOf(disk.family, chunk, pool.pgs.length)),
        );
      }
    }
  }

  /** {@inheritDoc NodeWatcher.granted} */
  granted(_node: SimNode, _disk: number): void {}

  /** {@inheritDoc NodeWatcher.fenced} */
  fenced(node: SimNode, disk: number): void {
    this.note(node, `fenced off disk ${disk}`);
    const guest = this.guests.get(disk);
    if (guest === undefined || guest.node !== node) return;
    guest.isFenced = true;
    guest.isStopped = true;
    this.guests.delete(disk);
  }

  // -------------------------------------------------------------------------------------- helpers

  /** Lets time pass until something holds; throws when it does not come to that. */
  until(what: string, isDone: () => boolean, mostMs = 60_000): void {
    const endMs = this.world.nowMs + mostMs;
    while (!isDone()) {
      if (this.world.nowMs >= endMs) throw new Error(`${what}: not within ${mostMs} ms`);
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
    this.note(node, `asks for ${JSON.stringify(command)}`);
    node.process!.control!.propose(command, (result) => {
      if (!result.ok) this.note(node, `${command.kind} refused: ${result.error.message}`);
      done(result.ok);
    });
  }

  #addNode(): SimNode {
    const index = this.nodes.length;
    const node = new SimNode(index + 1, this.world, this.network, this, {
      index,
      zone: this.world.random.chance(0.3) ? `zone-${index % 3}` : "",
    });
    node.drift = 1 + (this.world.random.fraction() - 0.5) * 0.02;
    this.nodes.push(node);
    return node;
  }

  #nodeIdOf(node: SimNode): number {
    return this.map?.nodes.find((entry) => entry.uuid === node.uuid)?.id ?? 0;
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
        {
          kind: "create-disk",
          name: `disk-${i}`,
          sizeBytes,
          nowMs: 0,
          copies,
        },
        (ok) => isDone = ok,
      );
      this.until("a disk is made", () => isDone);
      const entry = this.map!.disks.find((disk) => disk.name === `disk-${i}`)!;
      this.oracles.push(new DiskOracle(entry.id, entry.name, sizeBytes, random.fork()));
    };
    // Some disks are older than the cluster.
    for (let i = 0; i < disks; i++) if (random.chance(0.3)) make(i);
    for (let i = 1; i < this.#nodeCount; i++) {
      this.#addNode().start(this.#seeds.slice(0, 1));
      if (random.chance(0.5)) this.world.run(this.world.nowMs + random.below(2000));
    }
    this.until("all nodes belong", () => this.nodes.every((node) => node.incarnation > 0));
    for (let i = 0; i < disks; i++) {
      if (!this.oracles.some((oracle) => oracle.name === `disk-${i}`)) make(i);
    }
    for (const oracle of this.oracles) this.#startGuest(oracle);
    this.world.run(this.world.nowMs + random.below(5000));
  }

  #startGuest(oracle: DiskOracle, on?: SimNode): boolean {
    if (this.guests.has(oracle.id)) return false;
    const running = this.#running();
    const node = on ?? (running.length > 0 ? this.world.random.pick(running) : undefined);
    const entry = this.map?.disks.find((disk) => disk.id === oracle.id);
    if (node === undefined || entry === undefined || !node.isRunning) return false;
    const volume = node.attach(oracle.id, oracle.sizeBytes, entry.layers);
    if (volume === null) return false;
    const memory = this.oracles.indexOf(oracle) * 1024 * 1024;
    this.guests.set(
      oracle.id,
      new Guest(node, volume, oracle, this.world.random.fork(), memory),
    );
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
    };
    this.note(null, `faults ${JSON.stringify(this.network.faults)}`);
    while (this.world.nowMs < endMs) {
      this.world.run(this.world.nowMs + random.below(random.pick([200, 1000, 4000])));
      this.#step();
    }
  }

  #step(): void {
    const { random } = this.world;
    const up = this.nodes.filter((node) => node.isRunning);
    const down = this.nodes.filter((node) => !node.isRunning);
    const node = random.pick(this.nodes);
    switch (random.below(16)) {
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
        if (!random.chance(0.3)) return;
        this.note(null, "power cut of all");
        for (const each of up) this.#crash(each, true);
        return;
      }
      case 6: {
        // A partition of any shape, perhaps in one direction only.
        const side = new Set(this.nodes.filter(() => random.chance(0.5)).map((each) => each.id));
        const isOneWay = random.chance(0.3);
        for (const from of this.nodes) {
          for (const to of this.nodes) {
            if (side.has(from.id) && !side.has(to.id)) {
              this.network.cut.add(`${from.id}>${to.id}`);
              if (!isOneWay) this.network.cut.add(`${to.id}>${from.id}`);
            }
          }
        }
        this.note(
          null,
          `partition ${[...side].join()} from the others${isOneWay ? ", one way" : ""}`,
        );
        this.network.breakCut();
        return;
      }
      case 7: {
        const other = random.pick(this.nodes);
        if (other === node) return;
        this.network.cut.add(`${node.id}>${other.id}`);
        if (random.chance(0.6)) this.network.cut.add(`${other.id}>${node.id}`);
        this.note(null, `link ${node.id}-${other.id} is cut`);
        this.network.breakCut();
        return;
      }
      case 8:
      case 9:
        if (this.network.cut.size > 0) this.note(null, "the network is whole again");
        this.network.cut.clear();
        return;
      case 10:
        node.diskDelayMs = random.pick([0.1, 0.3, 2, 20]);
        return;
      case 11:
      case 12:
        return this.#moveGuest();
      case 13: {
        const id = this.#nodeIdOf(node);
        if (id === 0) return;
        const availability = random.pick(["in", "draining"] as const);
        return this.propose({ kind: "set-availability", node: id, availability });
      }
      case 14: {
        const id = this.#nodeIdOf(node);
        if (id === 0) return;
        const weight = random.pick([null, 1e9, 4e9]);
        return this.propose({ kind: "set-weight", node: id, weight });
      }
      case 15:
        for (const oracle of this.oracles) this.#startGuest(oracle);
    }
  }

  #crash(node: SimNode, isPower: boolean): void {
    if (!node.isRunning) return;
    this.crashes++;
    this.note(node, isPower ? "loses power" : "is killed");
    for (const [disk, guest] of [...this.guests]) {
      if (guest.node !== node) continue;
      guest.isStopped = true;
      this.guests.delete(disk);
    }
    node.crash(isPower);
  }

  #restart(node: SimNode): void {
    this.note(node, "starts");
    node.start(this.#seeds);
  }

  #moveGuest(): void {
    const { random } = this.world;
    const oracle = random.pick(this.oracles);
    const guest = this.guests.get(oracle.id);
    if (guest === undefined) return void this.#startGuest(oracle);
    if (guest.isStopped) return;
    guest.drain(() => {
      if (this.guests.get(oracle.id) !== guest || guest.isFenced) return;
      this.guests.delete(oracle.id);
      guest.node.detach(oracle.id);
      this.note(guest.node, `its guest closes ${oracle.name}`);
    });
  }

  // ----------------------------------------------------------------------------------------- end

  #heal(): void {
    this.note(null, "all faults end");
    this.network.cut.clear();
    this.network.faults = { loss: 0, repeat: 0, delayMs: 1, breakage: 0 };
    for (const node of this.nodes) {
      node.diskDelayMs = 0.3;
      node.diskFaults = 0;
      if (!node.isRunning) this.#restart(node);
    }
    this.until(
      "all nodes are back",
      () => this.nodes.every((node) => node.incarnation > 0),
      QUIET_MS_MAX,
    );
    for (const entry of this.map!.nodes) {
      if (entry.availability === "draining") {
        this.propose({ kind: "set-availability", node: entry.id, availability: "in" });
      }
    }
    this.until("every group is whole", () => this.#isWhole(), QUIET_MS_MAX);
  }

  #isWhole(): boolean {
    const { map } = this;
    if (map === null || map.nodes.some((node) => node.state !== "up")) return false;
    const isGood = (entry: PgEntry) =>
      entry.unclean.length === 0 && !entry.unsettled && entry.joining.length === 0 &&
      entry.inSync.length === entry.target.length &&
      entry.target.every((node) => entry.inSync.includes(node));
    return map.pools.every((pool) => pool.pgs.every(isGood)) &&
      this.nodes.every((node) => node.process?.map?.epoch === map.epoch);
  }

  #verify(): void {
    // Guests that are there must get on.
    const startMs = this.world.nowMs;
    for (const oracle of this.oracles) this.#startGuest(oracle);
    this.world.run(this.world.nowMs + 15_000);
    for (const guest of this.guests.values()) {
      const { oldestMs } = guest;
      if (oldestMs >= 0 && this.world.nowMs - oldestMs > 10_000) {
        const reason = guest.node.process?.data?.router(guest.oracle.id).waitingReason;
        throw new Error(
          `${guest.oracle.name} on node ${guest.node.id} stalls in a healthy cluster: ${reason}`,
        );
      }
    }
    void startMs;
    let left = 0;
    for (const [disk, guest] of [...this.guests]) {
      left++;
      guest.drain(() => {
        this.guests.delete(disk);
        guest.node.detach(disk);
        left--;
      });
    }
    this.until("guests end", () => left === 0, QUIET_MS_MAX);
    this.until(
      "leases are given back",
      () => this.map!.disks.every((disk) => disk.lease === null),
      QUIET_MS_MAX,
    );
    // Somebody else reads it all.
    for (const oracle of this.oracles) {
      if (!this.#startGuest(oracle)) throw new Error(`${oracle.name} cannot be opened`);
      const guest = this.guests.get(oracle.id)!;
      let isDone = false;
      guest.sweep(() => isDone = true);
      this.until(`${oracle.name} is read`, () => isDone, QUIET_MS_MAX);
      this.guests.delete(oracle.id);
      guest.node.detach(oracle.id);
    }
    this.until("every group is whole still", () => this.#isWhole(), QUIET_MS_MAX);
    this.#compareReplicas();
  }

  /** All replicas of all chunks hold equal bytes and equal stamps. */
  #compareReplicas(): void {
    const map = this.map!;
    for (const disk of map.disks) {
      const oracle = this.oracles.find((candidate) => candidate.id === disk.id)!;
      const pool = map.pools.find((candidate) => candidate.copies === disk.copies)!;
      const chunks = new Set(oracle.places.map((place) => Math.floor(place / 4194304)));
      for (const chunk of chunks) {
        const entry = pool.pgs[pgOf(disk.family, chunk, pool.pgs.length)];
        let first: { node: number; bytes: Uint8Array; stamp: string } | null = null;
        for (const id of entry.inSync) {
          const entryNode = map.nodes.find((node) => node.id === id)!;
          const node = this.nodes.find((candidate) => candidate.uuid === entryNode.uuid)!;
          const bytes = this.#readRaw(node, disk.layers[0], chunk);
          const stamp = { generation: 0, sequence: 0 };
          node.process!.store.stampOf(disk.layers[0], chunk, stamp);
          const text = `${stamp.generation}.${stamp.sequence}`;
          if (first === null) {
            first = { node: id, bytes, stamp: text };
            continue;
          }
          for (let i = 0; i < bytes.length; i++) {
            if (bytes[i] === first.bytes[i]) continue;
            throw new Error(
              `${disk.name}, chunk ${chunk}, byte ${i}: nodes ${first.node} (${first.stamp}) and ` +
                `${id} (${text}) differ: ${first.bytes[i]} and ${bytes[i]}`,
            );
          }
          if (text !== first.stamp && text !== "0.0" && first.stamp !== "0.0") {
            throw new Error(
              `${disk.name}, chunk ${chunk}: stamps ${first.stamp} on node ${first.node} and ${text} on ${id}`,
            );
          }
        }
      }
    }
  }

  #readRaw(node: SimNode, layer: number, chunk: number): Uint8Array {
    const { store, pool } = node.process!;
    const all = new Uint8Array(CHUNK_BLOCKS * BLOCK_BYTES);
    const buffer = pool.buffers.allocate(256 * BLOCK_BYTES);
    for (let block = 0; block < CHUNK_BLOCKS; block += 256) {
      let isDone = false;
      const operation = new Operation({ operationDone: () => isDone = true }, 0);
      operation.kind = OperationKind.Read;
      operation.layers = [layer];
      operation.chunk = chunk;
      operation.block = block;
      operation.blockCount = 256;
      operation.buffer = buffer;
      store.submit(operation);
      node.turn();
      this.until("a chunk is read", () => isDone);
      if (operation.result !== 0) throw new Error(`a replica cannot be read: ${operation.result}`);
      all.set(node.window.bytes.subarray(buffer, buffer + 256 * BLOCK_BYTES), block * BLOCK_BYTES);
    }
    pool.buffers.release(buffer, 256 * BLOCK_BYTES);
    return all;
  }
}
