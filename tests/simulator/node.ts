/**
 * One simulated host: a disk that survives, and a process of the real code that does not.
 *
 * @module
 */
import { LEVEL_MAX } from "../../agent/base/levels.ts";
import { Arena } from "../../agent/base/arena.ts";
import { Prng } from "../../agent/base/prng.ts";
import { Raft } from "../../agent/consensus/raft.ts";
import { load, writeInitial } from "../../agent/consensus/storage.ts";
import { Control, type ControlHost } from "../../agent/control/control.ts";
import { Leases } from "../../agent/control/leases.ts";
import { decodeLevel, LEVEL_KEY, storeLevelError } from "../../agent/control/level_record.ts";
import { EMPTY_REPORT } from "../../agent/control/messages.ts";
import { type ClusterMap, foundCluster, type NodeFacts } from "../../agent/map/map.ts";
import { encodeMap } from "../../agent/map/map_codec.ts";
import type { Log, Window } from "../../agent/platform/platform.ts";
import { SimulatedDisk } from "../../agent/platform/simulated/disk.ts";
import { SimulatedMemory } from "../../agent/platform/simulated/memory.ts";
import { DataCore } from "../../agent/replication/data_core.ts";
import { Inspection } from "../../agent/replication/inspection.ts";
import { type StoreError } from "../../agent/store/errors.ts";
import { type Operation, OperationKind, type OperationOwner } from "../../agent/store/operation.ts";
import type { NodeStore } from "../../agent/paths/node_store.ts";
import { openPaths, type PathCandidate } from "../../agent/paths/opening.ts";
import type { StoreSet } from "../../agent/paths/store_set.ts";
import { Store } from "../../agent/store/store.ts";
import { TransferPool } from "../../agent/volume/transfer_pool.ts";
import { Volume } from "../../agent/volume/volume.ts";
import type { LinkEnds, Network, SimulatedLinks, Station } from "./network.ts";
import type { World } from "./world.ts";

/** Bytes of a node's arena; guest memory lies above. */
const ARENA_BYTES = 16 * 1024 * 1024;
export const GUEST_OFFSET = 64 * 1024 * 1024;
const SEGMENT_BYTES = 256 * 1024;
const SEGMENTS = 160;
const DISK_BYTES = 1024 * 1024 + SEGMENTS * SEGMENT_BYTES;
const HOST = new Uint8Array(16).fill(3);
const CLUSTER_ID = "c".repeat(32);

const memories: SimulatedMemory[] = [];
/** Memory of the nth node, made once per process. */
function memoryOf(index: number): SimulatedMemory {
  memories[index] ??= new SimulatedMemory({ sizeBytes: 80 * 1024 * 1024 });
  return memories[index];
}

/** A lease as its holder is told of it. */
export interface SimLease {
  readonly generation: number;
  /** See `LeasesHost.granted` of `control/leases.ts`. */
  readonly byOthers: number;
}

/** What a node tells the simulation. */
export interface NodeWatcher {
  note(node: SimNode, message: string, fields?: Record<string, unknown>): void;
  mapChanged(node: SimNode, map: ClusterMap): void;
  /** A disk's lease was granted to a guest of the node, which writes to this volume. */
  granted(node: SimNode, disk: number, lease: SimLease, volume: Volume): void;
  fenced(node: SimNode, disk: number): void;
  /** The store has failed, or cannot be opened: the process is about to end. */
  failed(node: SimNode, reason: string): void;
  /** A data path has failed; the process goes on. */
  pathFailed(node: SimNode, path: string): void;
  /** A process is put together, and nothing has happened yet: the place to break something on purpose. */
  assembled(node: SimNode, run: Process): void;
}

/** A version of the code that a host runs. */
export interface Build {
  readonly Control: typeof Control;
  readonly version: string;
  /** Newest level that it speaks; the oldest is 1. */
  readonly protocol: number;
  /** Whether a map has something that only this version knows. */
  readonly isUsed: (map: ClusterMap) => boolean;
}

/** The code as it is. */
export const THIS_BUILD: Build = {
  Control,
  version: "1.0.0",
  protocol: LEVEL_MAX,
  isUsed: () => false,
};

/** Disk requests that fail, as probabilities. */
export interface DiskErrors {
  read: number;
  write: number;
  sync: number;
}

/** One run of the agent. */
export class Process {
  store!: NodeStore;
  /** The same, where the node has several data paths; null: one. */
  set: StoreSet | null = null;
  /** Of data paths that are being opened. */
  readonly stores: Store[] = [];
  control: Control | null = null;
  leases: Leases | null = null;
  data: DataCore | null = null;
  pool!: TransferPool;
  links!: SimulatedLinks & { transport: { close(): void } };
  readonly volumes = new Map<number, Volume>();
  isDead = false;
  isStarted = false;
  /** Order of what the two threads say to each other. */
  toDataMs = 0;
  toControlMs = 0;
  /** What waits until the data worker hears again; null: it hears. */
  unheard: (() => void)[] | null = null;
  map: ClusterMap | null = null;
  hasFailed = false;
  /** The data worker's loop has ended with the turn in which its store has failed: nobody hears what it still does. */
  isSilent = false;
}

/** A disk that does as it is told. */
export const NO_DISK_ERRORS: DiskErrors = { read: 0, write: 0, sync: 0 };

/** See the head of the file. */
export class SimNode implements Station {
  readonly address: string;
  readonly uuid: string;
  readonly window: Window;
  disk: SimulatedDisk;
  /** Disks of further data paths. */
  moreDisks: SimulatedDisk[] = [];
  /** Paths, from 0, that cannot be reached by whoever starts, and those of which every request fails. */
  readonly missing = new Set<number>();
  readonly broken = new Set<number>();
  /** Paths that had everything when the process ended: one of them at least has to be there when the next one starts. */
  readonly newest = new Set<number>();
  /** How far one of them must have come. */
  #leastCount = 0;
  process: Process | null = null;
  run = 0;
  bootId = "boot-0";
  /** The end of a log did not match, and the map has not heard of it: see `failure_mark.ts`. */
  #isTorn = false;
  /** What it runs from its next start on. */
  build = THIS_BUILD;
  incarnation = 0;
  node = 0;
  /** Factor of its clock. */
  drift = 1;
  /** How long the data worker may take to hear of something, in milliseconds. */
  dataLagMs = 0;
  /** How far its calendar is off, in milliseconds. */
  wallOffsetMs = 0;
  /** Disk requests that fail, and how slow the disk is. */
  diskErrors: DiskErrors = NO_DISK_ERRORS;
  diskDelayMs = 0.3;
  /** The harness itself reads: its reads may see any replica. */
  isLookedAt = false;
  #isPumping = false;
  #isTurning = false;
  #isFormatted = false;
  readonly zone: string;
  readonly isWitness: boolean;
  readonly pgBits: number;
  /** Which memory it uses. */
  readonly index: number;
  #shownEpoch = 0;

  constructor(
    readonly id: number,
    readonly world: World,
    readonly network: Network,
    readonly watcher: NodeWatcher,
    options: {
      zone?: string;
      isWitness?: boolean;
      index: number;
      pgBits?: number;
      /** Data paths beside the first, and what decides about them: nothing else of a run may depend on it. */
      paths?: { readonly more: number; readonly random: Prng };
    } = { index: 0 },
  ) {
    this.address = `node-${id}:7460`;
    this.uuid = id.toString(16).padStart(32, "0");
    this.zone = options.zone ?? "";
    this.isWitness = options.isWitness ?? false;
    this.pgBits = options.pgBits ?? 8;
    this.index = options.index;
    this.window = memoryOf(options.index).windows[0];
    this.disk = new SimulatedDisk({
      bytes: this.window.bytes,
      random: world.random.fork(),
      sizeBytes: DISK_BYTES,
    });
    this.#pathRandom = options.paths?.random ?? null;
    for (let i = 0; i < (options.paths?.more ?? 0); i++) {
      this.moreDisks.push(
        new SimulatedDisk({
          bytes: this.window.bytes,
          random: options.paths!.random.fork(),
          sizeBytes: DISK_BYTES,
        }),
      );
    }
    network.stations.set(this.address, this);
  }
  readonly #pathRandom: Prng | null;
  readonly #formatted = new Set<number>();

  /** Disks of all data paths. */
  get disks(): readonly SimulatedDisk[] {
    return [this.disk, ...this.moreDisks];
  }

  get isRunning(): boolean {
    return this.process !== null && !this.process.isDead;
  }

  get links(): LinkEnds | null {
    return this.process?.isStarted ? this.process.links : null;
  }

  get nowMs(): number {
    return this.world.nowMs * this.drift + 1000;
  }

  // ------------------------------------------------------------------------------------ lifecycle

  /** Starts the agent: founds a cluster, joins one, or goes on. */
  start(seeds: readonly string[]): void {
    if (this.process !== null) throw new Error(`node ${this.id} runs already`);
    const process = new Process();
    this.process = process;
    this.run++;
    this.incarnation = 0;
    const random = this.world.random.fork();
    const arena = new Arena(ARENA_BYTES);
    process.pool = new TransferPool(arena);
    if (this.moreDisks.length > 0) return this.#startPaths(process, arena, random, seeds);
    const single = this.#makeStore(this.disk, arena, random, this.#log("store"));
    process.store = single;
    this.#breakDisk(this.disk, 0, random);
    const opened = (error: StoreError | null) => {
      if (process.isDead) return;
      if (error !== null) {
        return this.#failed(process, `its store cannot be opened: ${error.message}`);
      }
      this.#opened(process, arena, random, seeds);
    };
    const mayHaveLost = () => {
      this.watcher.note(this, "may have lost what it had acknowledged: its disk cannot be read");
      this.bootId = `boot-${this.world.random.u32()}`;
    };
    if (this.#isFormatted) {
      single.open({
        hostId: HOST,
        mayHaveLost,
        foundTorn: () => this.#isTorn = true,
        admit: (meta) => this.#refusalOf(meta),
      }, opened);
    } else {
      single.format({
        nodeId: new Uint8Array(16).fill(this.id),
        clusterId: new Uint8Array(16).fill(2),
        hostId: HOST,
        segmentBytes: SEGMENT_BYTES,
        capacityBytes: DISK_BYTES,
      }, (error) => {
        if (process.isDead) return;
        if (error !== null) return this.#failed(process, error.message);
        this.#isFormatted = true;
        single.open({ hostId: HOST }, opened);
      });
    }
    this.#guardReads(process);
    this.turn();
    this.#tickStore(process);
  }

  #makeStore(disk: SimulatedDisk, arena: Arena, random: Prng, log: Log): Store {
    const store = new Store({
      disk,
      window: this.window,
      arena,
      random,
      log,
      checksumCacheBytes: 65536,
      checkpointLogBytes: 2 * 1024 * 1024,
      readySegments: 4,
      cleanerSegments: 4,
      crashSegments: 4,
      scrubBytesPerSecond: 1024 * 1024,
      scrubPauseMs: 5000,
    });
    disk.listener = store;
    disk.isGivenUp = () => store.state === "failed";
    return store;
  }

  #breakDisk(disk: SimulatedDisk, path: number, random: Prng): void {
    disk.faults = {
      fail: (kind) => {
        // What cannot be read where there is no other copy is an error for the guest, whatever comes later.
        if (this.broken.has(path) && kind !== "read") return -5;
        const { read, write, sync } = this.diskErrors;
        const share = kind === "read"
          ? read
          : kind === "write"
          ? write
          : kind === "sync"
          ? sync
          : 0;
        return share > 0 && random.chance(share) ? -5 : 0;
      },
    };
  }

  /** Why the version that runs here must not open a store that remembers this; null: it may. */
  #refusalOf(meta: (key: string) => Uint8Array | undefined): string | null {
    const { version, protocol } = this.build;
    return storeLevelError(meta(LEVEL_KEY), { version, protocol })?.message ?? null;
  }

  /** The same with several data paths, some of which may be missing. */
  #startPaths(process: Process, arena: Arena, random: Prng, seeds: readonly string[]): void {
    const isLeft = (path: number) => !this.missing.has(path) && !this.broken.has(path);
    if (this.newest.size > 0 && ![...this.newest].some(isLeft)) {
      // All that know what this node has promised are gone: a node of which that is so must not start.
      const [path] = this.newest;
      this.missing.delete(path);
      this.broken.delete(path);
    }
    const quiet = (message: string, fields?: Record<string, unknown>) =>
      this.watcher.note(this, `store: ${message}`, fields);
    const log: Log = { debug() {}, info: quiet, warn: quiet, error: quiet };
    const candidates = this.disks.map((disk, path): PathCandidate => {
      const make = () => {
        this.#breakDisk(disk, path, random);
        const store = this.#makeStore(disk, arena, random, log);
        process.stores.push(store);
        return store;
      };
      const isMissing = this.missing.has(path);
      const isFormatted = this.#formatted.has(path);
      return {
        location: `/disk${path}`,
        store: !isMissing && isFormatted ? make() : null,
        isBlank: !isMissing && !isFormatted,
        reason: isMissing ? "it is away" : "",
        create: () => {
          const store = make();
          // A process that dies before leaves what is blank still.
          const format = store.format.bind(store);
          store.format = (options, done) =>
            format(options, (error) => {
              if (error === null) this.#formatted.add(path);
              done(error);
            });
          return { store, capacityBytes: DISK_BYTES };
        },
      };
    });
    openPaths({
      candidates,
      hostId: HOST,
      random,
      leastCount: () => this.#leastCount,
      segmentBytes: SEGMENT_BYTES,
      memory: { window: this.window, arena },
      admit: (meta) => this.#refusalOf(meta),
      mayHaveLost: () => {
        this.watcher.note(this, "may have lost what it had acknowledged: a disk cannot be read");
        this.bootId = `boot-${this.#pathRandom!.u32()}`;
      },
      foundTorn: () => this.#isTorn = true,
      // Guests write little here.
      differenceMin: 0.0005,
      log: this.#log("paths"),
      events: {
        pathFailed: (path) => {
          // The next start must not say that nothing was lost: see failure_mark.ts.
          this.bootId = `boot-${this.#pathRandom!.u32()}`;
          this.watcher.pathFailed(this, path);
        },
        leftBehind: (_, count) => this.#leastCount = count,
      },
    }, (error, opened) => {
      if (process.isDead) return;
      if (opened === null) {
        return this.#failed(process, `its paths cannot be opened: ${error!.message}`);
      }
      process.store = opened.store;
      process.set = opened.set;
      this.uuidOf(opened.store.identity.nodeId);
      this.#guardReads(process);
      this.#opened(process, arena, random, seeds);
    });
    this.turn();
    this.#tickStore(process);
  }

  /** The store's identity has to stay what it is. */
  uuidOf(nodeId: Uint8Array): void {
    const now = nodeId.join();
    this.#nodeId ??= now;
    if (this.#nodeId !== now) throw new Error(`node ${this.id} has another identity`);
  }
  #nodeId: string | null = null;

  /** How many of its data paths work; 1 where there is one. */
  get workingPaths(): number {
    const { process } = this;
    if (process?.set === undefined || process.set === null) return 1;
    return process.set.pathStatus().filter(({ state }) => state === "ok").length;
  }

  #failed(process: Process, reason: string): void {
    if (process.hasFailed || process.isDead) return;
    process.hasFailed = true;
    this.watcher.failed(this, reason);
  }

  /**
   * Every read of a guest goes to a replica that is in sync by the map of the node that it is on. A look at a chunk may go on under
   * another map: whoever has asked for it knows that it counts for nothing.
   */
  #guardReads(process: Process): void {
    const { store } = process;
    const submit = store.submit.bind(store);
    store.submit = (operation: Operation) => {
      const { data } = process;
      const isGuests = operation.kind === OperationKind.Read && data !== null && data.hasMap &&
        !this.isLookedAt && operation.owner !== (data.repairer as OperationOwner) &&
        !(operation.owner instanceof Inspection);
      if (isGuests) {
        const disk = data.view.diskOfLayer(operation.layers[0]);
        const group = disk && data.view.groupOf(disk, operation.chunk);
        if (group !== undefined && !group.entry.inSync.includes(data.view.self)) {
          throw new Error(
            `node ${this.id} serves a read of chunk ${operation.chunk} though it is not in sync`,
          );
        }
      }
      submit(operation);
    };
  }

  #facts(): NodeFacts {
    return {
      uuid: this.uuid,
      name: `node-${this.id}`,
      address: this.address,
      zone: this.zone,
      capacityBytes: DISK_BYTES * this.workingPaths,
      witness: this.isWitness,
      version: this.build.version,
      protocol: this.build.protocol,
      bootId: this.bootId,
      nowMs: this.#wallMs(),
    };
  }

  #wallMs(): number {
    return Math.floor(this.nowMs + this.wallOffsetMs);
  }

  #opened(process: Process, arena: Arena, random: Prng, seeds: readonly string[]): void {
    const { store } = process;
    const values = new Map<string, Uint8Array>();
    for (const key of store.metaKeys()) values.set(key, store.getMeta(key)!);
    const begin = (node: number, isFounder: boolean) => {
      if (process.isDead) return;
      this.#begin(process, arena, random, seeds, node, isFounder, values);
    };
    const known = values.get("node");
    if (known !== undefined) return begin(known[0] | known[1] << 8, false);
    if (seeds.length > 0) return begin(0, false);
    const founded = foundCluster({ ...this.#facts(), clusterId: CLUSTER_ID });
    if (!founded.ok) throw new Error(founded.error.message);
    const map = encodeMap({ ...founded.value, pgBits: this.pgBits });
    if (!map.ok) throw new Error(map.error.message);
    const writes = [
      { key: "node", value: Uint8Array.of(1, 0) },
      ...writeInitial(1, Raft.bootstrap(1, map.value)),
    ];
    store.setMetaBatch(writes, (error) => {
      if (error !== null) return;
      for (const { key, value } of writes) if (value !== null) values.set(key, value);
      begin(1, true);
      this.turn();
    });
    this.turn();
  }

  #begin(
    process: Process,
    arena: Arena,
    random: Prng,
    seeds: readonly string[],
    node: number,
    isFounder: boolean,
    values: ReadonlyMap<string, Uint8Array>,
  ): void {
    const { store } = process;
    let raft = null;
    if (node !== 0) {
      const loaded = load(values, node);
      if (!loaded.ok) throw new Error(`node ${this.id}: ${loaded.error.message}`);
      raft = loaded.value;
    }
    const links: SimulatedLinks & { transport: { close(): void } } = {
      listener: null as never,
      allocate: (bytes) => arena.allocate(bytes),
      memory: this.window.bytes,
      turn: () => this.turn(),
      ends: new Map(),
      reconnect: () => {},
      transport: null as never,
    };
    process.links = links;
    const transport = this.#transport(process);
    links.transport = transport;
    const data = new DataCore({
      store,
      window: this.window,
      arena,
      transport,
      log: this.#log("data"),
      events: {
        mapInstalled: () => {
          for (const [disk, volume] of process.volumes) {
            volume.layers = data.view.disk(disk)?.entry.layers ?? volume.layers;
          }
        },
        snapshotDrained: (id, layer, generation) =>
          this.#toControl(process, () => {
            process.control!.propose({ kind: "snapshot-taken", id, layer, generation });
          }),
        absorbed: (layers) =>
          this.#toControl(process, () => {
            const { node, incarnation } = process.control!;
            process.control!.propose({ kind: "absorbed", node, incarnation, layers });
          }),
        flattened: (layers, epoch) =>
          this.#toControl(process, () => {
            const { node, incarnation } = process.control!;
            process.control!.propose({ kind: "flattened", node, incarnation, layers, epoch });
          }),
        inSync: (pool, pgs, epoch) =>
          this.#toControl(process, () => {
            process.control!.propose({
              kind: "in-sync",
              pool,
              pgs,
              node: process.control!.node,
              incarnation: process.control!.incarnation,
              basedOnEpoch: epoch,
            });
          }),
        settled: (pool, pgs) =>
          this.#toControl(process, () => {
            const { node, incarnation } = process.control!;
            process.control!.propose({ kind: "settled", pool, pgs, node, incarnation });
          }),
        reconciled: (disk, generation) =>
          this.#toControl(process, () => {
            process.leases!.opened(disk, generation);
            process.control!.propose({ kind: "reconciled", id: disk, generation });
          }),
        unreachable: (nodes) => {
          for (const each of nodes) {
            this.watcher.note(this, `waits for node ${each}: ${data.peers.describe(each)}`);
          }
          this.#toControl(process, () => this.#report(process));
        },
        groupsLost: (lost) => {
          const bits = [...lost];
          const capacityBytes = DISK_BYTES * this.workingPaths;
          this.#toControl(process, () => process.control!.loseGroups(bits, capacityBytes));
        },
        memberFailed: () => this.#toControl(process, () => this.#report(process)),
      },
    });
    process.data = data;
    (links as { listener: unknown }).listener = data;
    const host: ControlHost = {
      log: this.#log("control"),
      random,
      wallMs: () => this.#wallMs(),
      sendControl: (address, bytes) =>
        this.network.send(this, address, bytes, (to, from, copy) => to.controlArrived(from, copy)),
      sendGossip: (address, bytes) =>
        this.network.send(this, address, bytes, (to, from, copy) => to.gossipArrived(from, copy)),
      persist: (writes, done) => {
        this.#toData(process, () => {
          store.setMetaBatch(writes, (error) => {
            if (error !== null) return; // The store has failed: the process is about to end.
            this.#toControl(process, done);
          });
        });
      },
      mapChanged: (map) => this.#mapChanged(process, map),
      started: (node, incarnation) => this.#started(process, node, incarnation),
      renewed: (untilMs) => this.#toData(process, () => data.renew(untilMs)),
      joined: (node) => {
        const writes = [
          { key: "node", value: Uint8Array.of(node & 255, node >>> 8) },
          ...writeInitial(node, Raft.joining()),
        ];
        store.setMetaBatch(writes, (error) => {
          if (error !== null || process.isDead) return;
          const all = new Map<string, Uint8Array>();
          for (const { key, value } of writes) if (value !== null) all.set(key, value);
          const loaded = load(all, node);
          if (!loaded.ok || loaded.value === null) throw new Error("nothing was written");
          const { state, storage } = loaded.value;
          this.#toControl(process, () => {
            process.control!.markNewcomer();
            process.control!.beginJoined(state, storage);
          });
        });
        this.turn();
      },
      joinRefused: (message) => this.watcher.note(this, `refused: ${message}`),
      restartWanted: () => {},
      unfit: (message) => this.#failed(process, message),
    };
    process.leases = new Leases({
      wantLease: (disk) => process.control!.wantLease(disk),
      forgetLease: (disk) => process.control!.forgetLease(disk),
      propose: (command, done) => process.control!.propose(command, () => done?.()),
      granted: (disk, lease) => this.#granted(process, disk, lease),
      fenced: (disk) => {
        this.#toData(process, () => data.router(disk).abandon(-5));
        this.watcher.fenced(this, disk);
      },
    });
    process.control = new this.build.Control({
      host,
      node,
      facts: this.#facts(),
      clean: store.wasClean,
      torn: this.#isTorn,
      ...(process.set === null ? {} : { lost: [...process.set.lost()] }),
      raft,
      seeds,
      nowMs: this.nowMs,
      level: decodeLevel(values.get(LEVEL_KEY))?.level,
    });
    this.watcher.assembled(this, process);
    if (isFounder) process.control.markNewcomer();
    this.#tickControl(process);
    this.#tickData(process);
    this.turn();
  }

  #transport(process: Process) {
    // The network wants the station's links in place.
    const before = this.process!.isStarted;
    process.isStarted = true;
    const transport = this.network.transport(this);
    process.isStarted = before;
    return transport;
  }

  #report(process: Process): void {
    const { data, control } = process;
    if (data === null || control === null) return;
    const { status } = data;
    const { map } = control;
    const disconnected = map.nodes.filter((node) =>
      node.id !== control.node && !node.witness && node.state === "up" &&
      !data.peers.isConnected(node.id)
    ).map((node) => node.id);
    control.report({
      ...EMPTY_REPORT,
      epoch: status.epoch,
      unreachable: data.unreachable,
      disconnected,
      joiningGroups: status.joining.groups,
      chunksLeft: status.joining.chunksLeft,
      copiedBytes: status.joining.copiedBytes,
      stuck: status.joining.stuck ?? "",
      waiting: status.waiting,
    });
  }

  #mapChanged(process: Process, map: ClusterMap): void {
    process.map = map;
    if (map.epoch > this.#shownEpoch) {
      this.#shownEpoch = map.epoch;
      this.watcher.mapChanged(this, map);
    }
    if (this.incarnation > 0) this.#giveMap(process, map);
  }

  #started(process: Process, node: number, incarnation: number): void {
    this.incarnation = incarnation;
    process.isStarted = true;
    this.#isTorn = false;
    // What is missing now may have lost something when it is back.
    const isMissing = process.set !== null && this.workingPaths < this.disks.length;
    if (isMissing) this.bootId = `boot-${this.#pathRandom!.u32()}`;
    this.node = node;
    if (process.map !== null) this.#giveMap(process, process.map);
    process.leases!.started(node, incarnation);
  }

  #giveMap(process: Process, map: ClusterMap): void {
    const { incarnation } = this;
    const { node } = process.control!;
    this.#toData(process, () => {
      for (const each of map.nodes) {
        if (each.id !== node && !each.witness) process.data!.setAddress(each.id, each.address);
      }
      process.data!.setMap(map, node, incarnation);
    });
    process.leases!.mapChanged(map);
  }

  #granted(process: Process, disk: number, lease: SimLease): void {
    const { generation } = lease;
    const volume = process.volumes.get(disk);
    this.#toData(process, () => {
      // Not for one that came meanwhile: see `DataPlane.#leaseGranted`.
      if (volume === undefined || process.volumes.get(disk) !== volume) return;
      volume.generation = generation;
      process.data!.openDisk(disk, generation);
      this.watcher.granted(this, disk, lease, volume);
    });
  }

  // -------------------------------------------------------------------------------------- threads

  /** The control thread is busy: what it has to say, maps above all, does not get to the data worker until {@linkcode hear}. */
  deafen(): void {
    this.process!.unheard ??= [];
  }

  /** What was to be said to the data worker meanwhile is said, in order. */
  hear(): void {
    const process = this.process!;
    const unheard = process.unheard ?? [];
    process.unheard = null;
    for (const run of unheard) this.#toData(process, run);
  }

  /** To the data worker: in order, a moment later. */
  #toData(process: Process, run: () => void): void {
    if (process.unheard !== null) {
      process.unheard.push(run);
      return;
    }
    const lagMs = this.world.random.fraction() * (1 + this.dataLagMs);
    process.toDataMs = Math.max(process.toDataMs, this.world.nowMs + lagMs);
    this.world.after(process.toDataMs - this.world.nowMs, () => {
      if (process.isDead) return;
      run();
      this.turn();
    });
  }

  #toControl(process: Process, run: () => void): void {
    process.toControlMs = Math.max(
      process.toControlMs,
      this.world.nowMs + this.world.random.fraction() / 2,
      this.#stalledUntilMs,
    );
    this.world.after(process.toControlMs - this.world.nowMs, () => {
      if (!process.isDead && process.control !== null) run();
    });
  }

  /** The main thread stands still for a while, and everything else goes on: a log that blocks, a page that is swapped in. */
  stallControl(ms: number): void {
    this.#stalledUntilMs = Math.max(this.#stalledUntilMs, this.world.nowMs + ms);
  }
  #stalledUntilMs = 0;

  /** Whether the main thread stands still; then `later` follows when it does not any more, unless the process has ended. */
  #isStalled(process: Process | null, later: () => void): boolean {
    if (this.world.nowMs >= this.#stalledUntilMs) return false;
    this.world.after(this.#stalledUntilMs - this.world.nowMs, () => {
      if (process === this.process && process?.isDead === false) later();
    });
    return true;
  }

  controlArrived(from: Station, bytes: Uint8Array): void {
    const { process } = this;
    if (process === null || process.control === null) return;
    if (this.#isStalled(process, () => this.controlArrived(from, bytes))) return;
    const sender = from as SimNode;
    process.control.received({
      uuid: sender.uuid,
      node: sender.process?.control?.node ?? 0,
      incarnation: sender.incarnation,
      clusterId: CLUSTER_ID,
      address: sender.address,
    }, bytes);
  }

  gossipArrived(from: Station, bytes: Uint8Array): void {
    if (this.#isStalled(this.process, () => this.gossipArrived(from, bytes))) return;
    this.process?.control?.gossipReceived(from.address, bytes);
  }

  #tickControl(process: Process): void {
    this.world.after(25 + this.world.random.below(10), () => {
      if (process.isDead) return;
      if (this.#isStalled(process, () => this.#tickControl(process))) return;
      process.control!.tick(this.nowMs);
      process.leases!.tick();
      if (this.world.random.chance(0.1)) this.#report(process);
      this.#tickControl(process);
    });
  }

  #tickData(process: Process): void {
    const isBusy = process.data!.isBusy;
    this.world.after(isBusy ? 10 : 50, () => {
      if (process.isDead) return;
      process.data!.tick(this.nowMs);
      this.turn();
      this.#tickData(process);
    });
  }

  #tickStore(process: Process): void {
    this.world.after(100, () => {
      if (process.isDead) return;
      process.store?.tick(this.nowMs);
      if (process.store === undefined) {
        for (const store of process.stores) store.tick(this.nowMs);
      }
      this.turn();
      this.#tickStore(process);
    });
  }

  /** A turn of the data worker's loop. */
  turn(): void {
    const { process } = this;
    if (process === null || process.isDead || this.#isTurning) return;
    this.#isTurning = true;
    process.data?.advance(this.nowMs);
    process.pool.endTurn();
    process.data?.endTurn();
    if (process.store === undefined) { for (const store of process.stores) store.endTurn(); }
    else process.store.endTurn();
    this.#isTurning = false;
    this.#checkTurn(process);
    if (process.set?.state === "failed") this.#failed(process, "all its data paths have failed");
    process.isSilent = process.hasFailed;
    this.#pumpDisk(process);
  }

  /** Whatever is done has been given back: nobody looks at it again before something else happens. */
  #checkTurn({ data }: Process): void {
    if (data === null) return;
    for (const { diskId, overdue } of data.routersInUse()) {
      if (overdue === 0) continue;
      throw new Error(
        `node ${this.id}: ${overdue} writes of disk ${diskId} are done and held back`,
      );
    }
  }

  #pumpDisk(process: Process): void {
    const { disks } = this;
    const inFlight = this.moreDisks.length === 0
      ? this.disk.inFlight
      : disks.reduce((sum, disk) => sum + disk.inFlight, 0);
    if (this.#isPumping || inFlight === 0) return;
    this.#isPumping = true;
    const delayMs = this.diskDelayMs * (0.2 + this.world.random.fraction());
    this.world.after(delayMs, () => {
      this.#isPumping = false;
      if (process.isDead) {
        if (this.process !== null) this.#pumpDisk(this.process);
        return;
      }
      for (let i = this.world.random.below(6); i >= 0; i--) {
        if (disks.length === 1) this.disk.pump();
        else this.#pathRandom!.pick(disks).pump();
      }
      this.turn();
    });
  }

  // --------------------------------------------------------------------------------------- crashes

  /**
   * Ends the process at once.
   *
   * @param isPower the machine lost power: what was not synced may be gone
   */
  crash(isPower: boolean): void {
    const { process } = this;
    if (process === null) return;
    process.isDead = true;
    this.process = null;
    this.network.died(this, isPower);
    if (isPower) this.bootId = `boot-${this.world.random.u32()}`;
    this.disk = this.disk.crash(this.world.random, this.window.bytes, { processOnly: !isPower });
    this.moreDisks = this.moreDisks.map((disk) =>
      disk.crash(this.#pathRandom!, this.window.bytes, { processOnly: !isPower })
    );
    const working = process.set?.pathStatus().filter(({ state }) => state === "ok") ?? [];
    if (working.length > 0) this.newest.clear();
    for (const { location } of working) this.newest.add(Number(location.slice("/disk".length)));
  }

  /** A volume for a guest of this node, which waits for the lease. */
  attach(disk: number, sizeBytes: number, layers: readonly number[]): Volume | null {
    const { process } = this;
    if (process === null || process.data === null || process.leases === null) return null;
    // There is a socket when there is a map.
    if (!process.data.hasMap) return null;
    const volume = new Volume({
      sizeBytes,
      serial: `kelpie-${disk}`,
      layers,
      windows: [this.window],
      pool: process.pool,
      sink: process.data.router(disk),
    });
    process.volumes.set(disk, volume);
    process.leases.wanted(disk);
    return volume;
  }

  /** Whether a guest here has the disk open, or had it until it was fenced and has not gone yet. */
  isAttached(disk: number): boolean {
    return this.process?.volumes.has(disk) === true;
  }

  /** What a guest that has gone has under way fails: nobody is told. */
  giveUp(disk: number): void {
    this.process!.data!.router(disk).abandon(-5);
    this.turn();
  }

  /**
   * The guest is done with the disk, with nothing under way.
   *
   * @param isUnclean something was given up
   */
  detach(disk: number, volume: Volume, isUnclean = false): void {
    const { process } = this;
    if (process === null || process.volumes.get(disk) !== volume) return;
    process.volumes.delete(disk);
    this.#toData(process, () => process.data!.closeDisk(disk));
    process.leases!.released(disk, { isUnclean, isUnwritten: volume.sequence === 0 });
  }

  /** Ends the process in good order; its guests have gone. */
  stop(done: () => void): void {
    const { process } = this;
    if (process === null || process.isDead || process.data === null) return done();
    const finished = () => {
      if (process.isDead) return done();
      process.store.close(() => {
        if (process.isDead) return done();
        this.crash(false);
        done();
      });
      this.turn();
    };
    let isLeaving = true;
    const left = () => {
      if (!isLeaving) return;
      isLeaving = false;
      process.control!.stop();
      this.#toData(process, finished);
    };
    process.control!.leave(left);
    this.world.after(2000, left);
  }

  #log(part: string): Log {
    const note = (message: string, fields?: Record<string, unknown>) => {
      this.watcher.note(this, `${part}: ${message}`, fields);
      if (message.startsWith("the store has failed")) this.#failed(this.process!, message);
    };
    return { debug() {}, info: note, warn: note, error: note };
  }
}
