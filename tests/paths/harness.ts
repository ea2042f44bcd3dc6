/**
 * A node with several data paths on simulated disks, for tests of the set: opened, crashed, with paths that are taken away.
 *
 * @module
 */
import { assert } from "@std/assert/mod.js";
import { Arena } from "../../agent/base/arena.ts";
import { ARENA_BYTES, BLOCK_BYTES } from "../../agent/base/limits.ts";
import { Prng } from "../../agent/base/prng.ts";
import { type ClusterMap, type PgEntry } from "../../agent/map/map.ts";
import { openPaths, type PathCandidate } from "../../agent/paths/opening.ts";
import type { NodeStore } from "../../agent/paths/node_store.ts";
import type { StoreSet } from "../../agent/paths/store_set.ts";
import { SimulatedDisk } from "../../agent/platform/simulated/disk.ts";
import { SimulatedMemory } from "../../agent/platform/simulated/memory.ts";
import type { StoreError } from "../../agent/store/errors.ts";
import { Operation, OperationKind } from "../../agent/store/operation.ts";
import { Store } from "../../agent/store/store.ts";
import { clusterWithDisk } from "../map/cluster.ts";

export const HOST = new Uint8Array(16).fill(3);
const SEGMENT_BYTES = 256 * 1024;
export const DISK_BYTES = 1024 * 1024 + 64 * SEGMENT_BYTES;
const STEPS_MAX = 200_000;
/** Of the one operation at a time, above the arena. */
const BUFFER = ARENA_BYTES;
const window = new SimulatedMemory({ sizeBytes: ARENA_BYTES + 1024 * 1024 }).windows[0];

/** A disk somewhere. */
export interface Place {
  location: string;
  /** Null: there is nothing to be reached. */
  disk: SimulatedDisk | null;
  isFormatted: boolean;
}

/** The disks of one node, or of several. */
export class Machine {
  readonly random: Prng;
  readonly places = new Map<string, Place>();
  store!: NodeStore;
  set: StoreSet | null = null;
  isNew = false;
  readonly failures: string[] = [];
  readonly warnings: string[] = [];
  nowMs = 1000;
  /** What is remembered elsewhere of how far a path must have come. */
  leastCount = 0;
  /** Why nothing is made where all is blank. */
  refuseNew: string | undefined;
  /** Groups move between paths that are filled differently. */
  moves = false;
  #given: Place[] = [];
  #disks: SimulatedDisk[] = [];
  #arena = new Arena(ARENA_BYTES);

  constructor(seed: number, ...locations: string[]) {
    this.random = new Prng(seed);
    for (const location of locations) this.add(location);
  }

  add(location: string): Place {
    const disk = new SimulatedDisk({
      bytes: window.bytes,
      random: this.random.fork(),
      sizeBytes: DISK_BYTES,
    });
    const place = { location, disk, isFormatted: false };
    this.places.set(location, place);
    return place;
  }

  /** The same disk once more, as it is after its process has ended. */
  again(disk: SimulatedDisk): SimulatedDisk {
    return disk.crash(this.random, window.bytes, { processOnly: true });
  }

  disk(location: string): SimulatedDisk {
    return this.places.get(location)!.disk!;
  }

  /** Opens some locations; the error, or null. */
  open(...locations: string[]): StoreError | null {
    this.#arena = new Arena(ARENA_BYTES);
    this.#disks = [];
    this.#given = locations.map((location) => this.places.get(location)!);
    let result: { error: StoreError | null } | null = null;
    openPaths({
      candidates: this.#given.map((place) => this.#candidate(place)),
      hostId: HOST,
      random: this.random,
      segmentBytes: SEGMENT_BYTES,
      refuseNew: this.refuseNew,
      ...(this.moves ? { memory: { window, arena: this.#arena }, differenceMin: 0.001 } : {}),
      log: {
        debug() {},
        info() {},
        warn: (message) => this.warnings.push(message),
        error: (message) => this.warnings.push(message),
      },
      leastCount: () => this.leastCount,
      events: {
        pathFailed: (location) => this.failures.push(location),
        leftBehind: (_, count) => this.leastCount = count,
      },
    }, (error, opened) => {
      result = { error };
      if (opened === null) return;
      this.store = opened.store;
      this.set = opened.set;
      this.isNew = opened.isNew;
    });
    this.#until(() => result !== null, "opening", () => {
      for (const store of this.stores) store.endTurn();
    });
    return result!.error;
  }
  /** Of all paths that were reached, in order. */
  stores: Store[] = [];

  #candidate(place: Place): PathCandidate {
    const { location, disk } = place;
    const make = () => {
      const store = new Store({
        disk: disk!,
        window,
        arena: this.#arena,
        random: this.random,
        log: { debug() {}, info() {}, warn() {}, error() {} },
        checksumCacheBytes: 65536,
        readySegments: 2,
        cleanerSegments: 3,
        crashSegments: 4,
      });
      disk!.listener = store;
      this.#disks.push(disk!);
      this.stores.push(store);
      return store;
    };
    return {
      location,
      store: disk !== null && place.isFormatted ? make() : null,
      isBlank: disk !== null && !place.isFormatted,
      reason: disk === null ? "no such device" : "",
      create: () => {
        place.isFormatted = true;
        return { store: make(), capacityBytes: DISK_BYTES };
      },
    };
  }

  mustOpen(...locations: string[]): void {
    const error = this.open(...locations);
    if (error !== null) throw error;
  }

  #until(isDone: () => boolean, what: string, turn: () => void): void {
    for (let step = 0; !isDone(); step++) {
      if (step > STEPS_MAX) throw new Error(`${what} does not end`);
      turn();
      let didAny = false;
      for (const disk of this.#disks) didAny = disk.pump() || didAny;
      if (!didAny && step % 16 === 15) {
        this.nowMs += 100;
        if (what !== "opening") this.store.tick(this.nowMs);
      }
    }
  }

  until(isDone: () => boolean, what: string): void {
    this.#until(isDone, what, () => this.store.endTurn());
  }

  /** Lets time pass. */
  pass(ticks: number): void {
    for (let tick = 0; tick < ticks; tick++) {
      const end = this.nowMs + 100;
      this.until(() => this.nowMs >= end, "time");
    }
  }

  call(start: (done: (error: Error | null) => void) => void): Error | null {
    let result: { error: Error | null } | null = null;
    start((error) => result = { error });
    this.until(() => result !== null, "a call");
    return result!.error;
  }

  /** Puts a map in force. */
  install(map: ClusterMap, self = 1): void {
    for (const disk of map.disks) {
      for (const layer of disk.layers) {
        if (!this.store.hasLayer(layer)) {
          const error = this.call((done) => this.store.createLayer(layer, done));
          if (error !== null) throw error;
        }
      }
    }
    const { set } = this;
    if (set === null) return;
    let isReady = false;
    const error = this.call((done) => {
      isReady = set.prepare(map, self, done);
      if (isReady) done(null);
    });
    if (error !== null) throw error;
    set.installed();
  }

  run(
    kind: OperationKind,
    layer: number,
    chunk: number,
    fill = 0,
    sequence = 1,
  ): Operation {
    let finished = false;
    const operation = new Operation({ operationDone: () => finished = true }, 1);
    operation.kind = kind;
    operation.layers = [layer];
    operation.chunk = chunk;
    operation.blockCount = 1;
    operation.buffer = BUFFER;
    operation.generation = 1;
    operation.sequence = sequence;
    if (kind === OperationKind.Write) {
      window.bytes.fill(fill, BUFFER, BUFFER + BLOCK_BYTES);
      operation.checksums[0] = window.kernel.checksum(BUFFER, BLOCK_BYTES);
    }
    this.store.submit(operation);
    assert(!finished, "an operation came back from inside submit");
    this.until(() => finished, "an operation");
    return operation;
  }

  /** Submits a write of a chunk's first block and does not wait; `done` gets 0 or an errno. Up to 200 at a time. */
  submit(
    layer: number,
    chunk: number,
    fill: number,
    sequence: number,
    done: (result: number) => void,
  ): void {
    const buffer = this.#buffers.pop() ?? BUFFER + BLOCK_BYTES * ++this.#buffersMade;
    assert(this.#buffersMade <= 200, "too many writes");
    const owner = {
      operationDone: ({ result }: Operation) => {
        this.#buffers.push(buffer);
        done(result);
      },
    };
    const operation = new Operation(owner, 1);
    operation.kind = OperationKind.Write;
    operation.layers = [layer];
    operation.chunk = chunk;
    operation.blockCount = 1;
    operation.buffer = buffer;
    operation.generation = 1;
    operation.sequence = sequence;
    window.bytes.fill(fill, buffer, buffer + BLOCK_BYTES);
    operation.checksums[0] = window.kernel.checksum(buffer, BLOCK_BYTES);
    this.store.submit(operation);
  }
  readonly #buffers: number[] = [];
  #buffersMade = 0;

  /** One step: a turn, one completion of some disk, and time now and then. */
  step(random: Prng, disk = random.pick(this.#disks)): void {
    this.store.endTurn();
    disk.pump();
    if (!random.chance(0.02)) return;
    this.nowMs += 100;
    this.store.tick(this.nowMs);
  }

  /** Writes a chunk's first block; 0 or an errno. */
  write(layer: number, chunk: number, fill: number, sequence = 1): number {
    return this.run(OperationKind.Write, layer, chunk, fill, sequence).result;
  }

  /** What a chunk's first block is full of, or an errno. */
  read(layer: number, chunk: number): number {
    const { result } = this.run(OperationKind.Read, layer, chunk);
    return result < 0 ? result : window.bytes[BUFFER];
  }

  sync(): number {
    return this.run(OperationKind.Sync, 0, 0).result;
  }

  close(): void {
    const error = this.call((done) => this.store.close(done));
    if (error !== null) throw error;
    this.stores = [];
  }

  /** The machine loses power: what was not synced is gone. */
  crash(): void {
    for (const place of this.places.values()) {
      if (place.disk === null) continue;
      place.disk = place.disk.crash(this.random, window.bytes, { keep: 0, lose: 1 });
    }
    this.stores = [];
  }
}

/** A map of one disk with one layer; `edit` makes its groups. */
export function mapWith(
  copies: number,
  nodes: number,
  edit: (pg: PgEntry, index: number) => PgEntry = (pg) => pg,
): ClusterMap {
  const map = clusterWithDisk(nodes, copies);
  return {
    ...map,
    pools: map.pools.map((pool) => ({ ...pool, pgs: pool.pgs.map(edit) })),
  };
}
