/**
 * The data worker's twin of `agent.ts`: puts the machines of the data path and the Linux platform together, and
 * turns the one loop that drives them.
 *
 * The store is one, or a set of them where the agent has several data paths (`paths/`): each has a disk of its own on the one ring.
 *
 *     ┌─▶ ring.enter   submits what was prepared; sleeps until something happens
 *     │   ring.dispatch, disk.deliver    completions: kicks, sockets, disk, mailbox bell
 *     │     └▶ session ▶ queue ▶ device ▶ volume ▶ store
 *     │   pool.endTurn, store.endTurn    closes the batch: one write for all that this turn brought
 *     │   disk.deliver                   buffered writes are done at once
 *     └── session.turn                   used rings, one call per queue
 *
 * Everything here runs on one thread, synchronously; nothing on the data path waits for the runtime. The thread is blocked in
 * the kernel whenever there is nothing to do, so what the main thread wants comes through the mailbox.
 *
 * @module
 */
import { dirname } from "node:path";
import { Arena } from "./base/arena.ts";
import { concatenated, toHex } from "./base/bytes.ts";
import { BLOCK_BYTES, CHUNK_BYTES } from "./base/limits.ts";
import { Reminders } from "./base/reminders.ts";
import { BlockKind, BlockRequest } from "./blk/target.ts";
import { formatSize } from "./config.ts";
import { decodeLevel, LEVEL_KEY, storeLevelError } from "./control/level_record.ts";
import { DiskServer, type DiskServerHost } from "./disk_server.ts";
import type { DiskStatus } from "./http/backend.ts";
import { leastCountOf, markFailure, markTorn, noteLeastCount } from "./failure_mark.ts";
import { Logger } from "./logger.ts";
import {
  apply,
  type ClusterMap,
  type DiskEntry,
  type MapCommand,
  type SnapshotEntry,
} from "./map/map.ts";
import { decodeMap } from "./map/map_codec.ts";
import { unwrap } from "./map/errors.ts";
import {
  availableBytes,
  isBlank,
  LinuxDisk,
  openStoreFile,
  type StoreFile,
} from "./platform/linux/disk.ts";
import { EventFdWatcher } from "./platform/linux/eventfd.ts";
import { clockMs, libc, SystemError } from "./platform/linux/libc.ts";
import { MailboxReceiver } from "./platform/linux/mailbox.ts";
import { LinuxMemory } from "./platform/linux/memory.ts";
import { Peers } from "./platform/linux/peers.ts";
import { Ring } from "./platform/linux/ring.ts";
import { SocketWatcher } from "./platform/linux/socket.ts";
import { LinuxRandom } from "./platform/linux/random.ts";
import { EAGAIN, EIO } from "./platform/platform.ts";
import type { PeerTransport } from "./platform/network.ts";
import type { NodeStore } from "./paths/node_store.ts";
import { openPaths, type PathCandidate } from "./paths/opening.ts";
import { SLOTS } from "./paths/slots.ts";
import type { PathStatus, StoreSet } from "./paths/store_set.ts";
import type { Check, CheckOptions } from "./replication/checking.ts";
import { snapshotSocketOf } from "./map/names.ts";
import { layersAbove } from "./map/readers.ts";
import { DataCore, type DataCoreEvents, type DataCoreStatus } from "./replication/data_core.ts";
import { countOverlap } from "./replication/overlaps.ts";
import { StoreError } from "./store/errors.ts";
import { Operation, OperationKind } from "./store/operation.ts";
import { Store } from "./store/store.ts";
import type { VhostSession } from "./vhost/session.ts";
import type { Throttle } from "./volume/throttle.ts";
import { TransferPool } from "./volume/transfer_pool.ts";
import { Volume, VOLUME_COUNTERS_ZERO } from "./volume/volume.ts";
import { THIS_SPEAKER } from "./version.ts";
import type {
  NumberedRequest,
  WorkerBlock,
  WorkerCheckReport,
  WorkerComparison,
  WorkerDataStatus,
  WorkerIdentity,
  WorkerIo,
  WorkerMessage,
  WorkerPath,
  WorkerRequest,
  WorkerStart,
  WorkerStoreStatus,
} from "./worker_protocol.ts";

/** Milliseconds between ticks while something is under way that time moves, as when a replica catches up. */
const TICK_URGENT_MS = 10;
/** Milliseconds between ticks of the store while it has something to do. */
const TICK_BUSY_MS = 100;
/** …and while it has not: an idle agent wakes twice a second. */
const TICK_IDLE_MS = 500;
/**
 * Rounds of deliver and endTurn within one turn. Completions of buffered writes may start more of them; the rest comes
 * in the next turn, after the rings and sockets had theirs.
 */
const ROUNDS_MAX = 4;
const ENOENT = 2, EBUSY = 16;
/** Share of a file system's free space that a new store takes for its own unless told otherwise. */
const CAPACITY_SHARE = 0.9;
/**
 * Longest look at the rings before sleeping, in milliseconds; 0: none. This is about what a sleep and the wake-ups on both
 * sides cost on a virtual machine, and was measured.
 */
const POLL_MS_MAX = 0.064;
/** Shortest, where looking begins and ends. */
const POLL_MS_MIN = 0.008;
/**
 * Turns in a row without a system call while one makes work for the next. Each call costs more than the turn, above all where
 * the kernel keeps its page tables apart; but only the kernel says what else has come.
 */
const QUICK_TURNS_MAX = 3;
/**
 * Longest wait for requests in flight when the agent stops. What is not done by then (writes that wait for space) is done by
 * the next agent: the guest's front end keeps the list.
 */
const DRAIN_MS_MAX = 5000;
/** Ticks without a request after which buffers are given back: ten seconds of an idle agent. */
const IDLE_TICKS_TO_TRIM = 20;
/**
 * Milliseconds without any request coming back after which a disk counts as stalled, whatever the reason: no disk or peer that
 * works takes that long.
 */
const STALLED_MS = 5000;
/** Milliseconds between reports of a check's progress. */
const PROGRESS_MS = 100;
/** Longest sleep while the stores are being opened, in milliseconds: what they wait for comes from the ring. */
const OPENING_WAIT_MS = 100;
/**
 * Shortest sleep until a disk that is held back may go on, in milliseconds: what is allowed meanwhile is taken together then,
 * which is what makes fast disks cheap to hold back.
 */
const THROTTLE_SLEEP_MS_MIN = 1;
/** Milliseconds until sockets are tried again that could not be made. */
const SERVE_AGAIN_MS = 1000;
/** The same reason for that is logged again after this time, and so many are remembered as logged. */
const SERVE_REMIND_MS = 30 * 60_000, SERVE_REASONS_MAX = 1024;
/** Longest wait for a disk's lease when it is to be shrunk. */
const LEASE_MS_MAX = 10_000;
/** Blocks that are looked up for who reads what is damaged, in one answer: some milliseconds. What is left is named by its layer alone. */
const HOLDER_LOOKS_MAX = 8192;

/** Sends a message to the main thread. */
export type Post = (message: WorkerMessage) => void;

/** See the head of the file. */
export class DataPlane implements DiskServerHost {
  readonly memory = new LinuxMemory();
  readonly #ring = new Ring();
  readonly eventFds: EventFdWatcher = new EventFdWatcher(this.#ring);
  readonly sockets: SocketWatcher = new SocketWatcher(this.#ring);
  readonly log: Logger;
  readonly runDir: string;
  readonly #arena = new Arena();
  /** One for each data path that can be reached. */
  readonly #disks: LinuxDisk[] = [];
  /** Stores that are being opened. */
  readonly #stores: Store[] = [];
  /** What the data lies in; there once it is open. */
  #store!: NodeStore;
  /** The same, where there are several paths. */
  #set: StoreSet | null = null;
  readonly #pool: TransferPool;
  readonly #servers = new Map<number, DiskServer>();
  /** Of snapshots, by their layers. */
  readonly #snapshots = new Map<number, DiskServer>();
  #data!: DataCore;
  #peers: Peers | null = null;
  /** Where peers are to be reached, before there is a network to reach them by. */
  readonly #peerAddresses = new Map<number, string | null>();
  /** The newest map that has come, and who this node is in it; in force later, see `DataCore.setMap`. */
  #map: ClusterMap | null = null;
  #mapParts: Uint8Array[] = [];
  #self = 0;
  #incarnation = 0;
  /** The map that sockets are served by. */
  #servedMap: ClusterMap | null = null;
  /** Told when maps up to an epoch are in force. */
  readonly #mapWaits: { epoch: number; done: () => void }[] = [];
  readonly #mailbox: MailboxReceiver;
  readonly #post: Post;
  readonly #start: WorkerStart;
  readonly #random = new LinuxRandom();
  /** Sessions that want a turn: filled while the other list is worked on. */
  #scheduled: VhostSession[] = [];
  #turning: VhostSession[] = [];
  #later: (() => void)[] = [];
  /** Those that somebody waits for. */
  readonly #throttled: Throttle[] = [];
  /** Sessions with rings that ask for no kick. */
  readonly #polled: VhostSession[] = [];
  /** How long to look at rings before sleeping. */
  #pollMs = 0;
  readonly #cancelledChecks = new Set<number>();
  /** The comparison of replicas that was asked for here; null: none. */
  #comparison: { readonly id: number; readonly check: Check; nextPostMs: number } | null = null;
  /** Transfers that had been taken at the tick before, and ticks since the last. */
  #trimmedAt = 0;
  #idleTicks = 0;
  #stopped = false;
  /** Sessions end, and none begins. */
  #isDraining = false;
  /** The store is being closed. */
  #isClosing = false;
  /** Ends what does not drain; set while stopping. */
  #forceStop: (() => void) | null = null;
  #stopDeadlineMs = 0;
  #nextTickMs = 0;

  /** Opens file, ring and memory. Throws SystemError. */
  constructor(start: WorkerStart, post: Post) {
    this.#start = start;
    this.#post = post;
    this.runDir = start.runDir;
    this.log = new Logger({ level: start.logLevel, format: start.logFormat });
    this.#mailbox = new MailboxReceiver(start.mailbox);
    this.#candidates = start.paths.map((path) => this.#candidate(path));
    this.#pool = new TransferPool(this.#arena);
  }
  readonly #candidates: PathCandidate[];

  /** What can be said of a data path before it is opened. Throws SystemError where another program has it. */
  #candidate({ location, storePath, reason }: WorkerPath): PathCandidate {
    const isOnly = this.#start.paths.length === 1;
    const create = () => {
      if (!storePath.startsWith("/dev/")) makeDirectory(dirname(storePath));
      const file = openStoreFile({ path: storePath, direct: this.#start.direct, create: true });
      const capacityBytes = this.#start.capacityBytes ?? sensibleCapacity(file);
      return { store: this.#makeStore(file), capacityBytes };
    };
    const blank = { location, store: null, isBlank: true, reason: "", create };
    if (reason !== "") return { ...blank, isBlank: false, reason };
    try {
      if (isBlank(storePath)) return blank;
      const file = openStoreFile({ path: storePath, direct: this.#start.direct, create: false });
      return { ...blank, store: this.#makeStore(file), isBlank: false };
    } catch (error) {
      if (!(error instanceof SystemError)) throw error;
      const isDevice = storePath.startsWith("/dev/");
      if (error.code === ENOENT && !isDevice) return blank;
      // Somebody else has it, or there is no other that could go on.
      if (isOnly || error.code === EAGAIN || error.code === EBUSY) throw error;
      return { ...blank, isBlank: false, reason: error.message };
    }
  }

  #makeStore(file: StoreFile): Store {
    const disk = new LinuxDisk({
      ring: this.#ring,
      file,
      direct: this.#start.direct,
      memory: this.memory,
    });
    const store = new Store({
      disk,
      window: this.memory.windows[0],
      arena: this.#arena,
      random: this.#random,
      log: this.log,
      scrubBytesPerSecond: this.#start.scrubRateBytes,
    });
    disk.listener = store;
    this.#disks.push(disk);
    this.#stores.push(store);
    return store;
  }

  /** Opens the store, then serves until told to stop. */
  run(): void {
    this.#open();
    let quickTurns = 0;
    while (!this.#stopped) {
      this.#turn();
      if (this.#stopped) break;
      const now = this.monotonicMs();
      if (now >= this.#nextTickMs) {
        this.#tick(now);
        continue;
      }
      if (this.#data.wantsTick) this.#nextTickMs = Math.min(this.#nextTickMs, now + TICK_URGENT_MS);
      const isBusy = this.#scheduled.length > 0 || this.#later.length > 0 ||
        this.#hasReady() || this.#ring.ready > 0 || this.#peers?.hasWork === true;
      if (isBusy && ++quickTurns < QUICK_TURNS_MAX) continue;
      // What waits for peers goes to them with the call that sleeps: there is nothing to look for meanwhile.
      const isWanted = isBusy ||
        (this.#polled.length > 0 && this.#ring.unsubmitted > 0 && this.#data.peers.count === 0);
      const isFound = !isWanted && (this.#poll() || this.#stopPolling());
      // What guests want of peers, or the log, goes out at the end of a turn, and the kernel has nothing to tell.
      const isQuick = isFound && this.#ring.unsubmitted === 0 && !this.#ring.isSignalled;
      if (isQuick && ++quickTurns < QUICK_TURNS_MAX) continue;
      quickTurns = 0;
      // A guest that keeps this loop busy must not hide those that have been told to send no kicks.
      if (isBusy) this.#lookAround();
      if (isWanted || isFound) this.#ring.enter(0);
      else {
        this.#sleep(Math.max(1, Math.min(this.#nextTickMs - now, this.#throttledMs(now))));
      }
    }
    for (const disk of this.#disks) disk.close();
    this.#ring.close();
  }

  #tick(now: number): void {
    this.#store.tick(now);
    // Paths are closed one by one: what is there no more must not be looked for, nor taken for empty.
    if (!this.#isClosing) this.#data.tick(clockMs());
    this.#tellComparison(now);
    this.#peers?.tick(now);
    this.sockets.resume();
    if (this.#forceStop !== null && now >= this.#stopDeadlineMs) this.#forceStop();
    this.#trimWhenIdle();
    this.#giveUpUnleased(now);
    if (this.#unserved.size > 0 && now >= this.#serveAgainMs && !this.#isDraining) {
      this.#serveDisks(this.#servedMap!);
    }
    for (const server of this.#servers.values()) server.tick(now);
    this.#nextTickMs = now + this.#tickMs();
  }

  #tickMs(): number {
    if (this.#data.isBusy) return TICK_URGENT_MS;
    const isIdle = this.#store.idle && (this.#peers === null || this.#peers.isIdle);
    return isIdle ? TICK_IDLE_MS : TICK_BUSY_MS;
  }

  /**
   * Looks at the rings for a while, instead of paying for a sleep and a wake-up per request where a guest has only one
   * under way.
   *
   * @returns whether something came, or the kernel has something to tell
   */
  #poll(): boolean {
    // What guests wait for comes from elsewhere, whose processor this one may be.
    if (this.#polled.length === 0 || this.#inFlight() > 0 || this.#data.peers.count > 0) {
      return false;
    }
    const endMs = performance.now() + this.#pollMs;
    // Whom a reply of ours has just woken may have been put behind us on this processor.
    libc.schedYield();
    do {
      if (this.#lookAround() || this.#ring.isSignalled) return true;
    } while (performance.now() < endMs);
    return false;
  }

  /** Takes what there is on the rings that ask for no kicks. */
  #lookAround(): boolean {
    this.#data.advance(clockMs());
    let found = false;
    for (let i = 0; i < this.#polled.length; i++) found = this.#polled[i].poll() || found;
    return found;
  }

  /** Asks for kicks again; true when something had come meanwhile. */
  #stopPolling(): boolean {
    if (this.#polled.length > 0) this.#data.advance(clockMs());
    let found = false;
    while (this.#polled.length > 0) found = this.#polled.pop()!.stopPolling() || found;
    return found;
  }

  /**
   * Sleeps, and learns from how long: when work came soon, looking for it would have been cheaper; when it did not, looking is
   * a waste, and less of it is done until there is none. An idle agent only sleeps.
   */
  #sleep(mostMs: number): void {
    // A peer's answer ends this sleep, which says nothing about guests.
    if (this.#data.peers.count > 0) return this.#ring.enter(mostMs);
    const startMs = performance.now();
    this.#ring.enter(mostMs);
    const sleptMs = performance.now() - startMs;
    if (sleptMs < POLL_MS_MAX) {
      this.#pollMs = Math.min(POLL_MS_MAX, this.#pollMs * 2 || POLL_MS_MIN);
    } else if (this.#pollMs > 0) this.#pollMs = this.#pollMs > POLL_MS_MIN ? this.#pollMs / 2 : 0;
  }

  /** After a while without any request the buffers' memory goes back to the system, once. */
  #trimWhenIdle(): void {
    const idleBytes = this.#inFlight() === 0 ? this.#arena.idleBytes : 0;
    const requests = this.#pool.taken;
    if (idleBytes === 0 || requests !== this.#trimmedAt) {
      this.#trimmedAt = requests;
      this.#idleTicks = 0;
    } else if (++this.#idleTicks === IDLE_TICKS_TO_TRIM) this.memory.trimArena(idleBytes);
  }

  /** Lets requests go on that limits have held back. */
  #resumeThrottled(): void {
    const now = this.monotonicMs();
    for (let i = this.#throttled.length - 1; i >= 0; i--) {
      const throttle = this.#throttled[i];
      throttle.resume(now);
      if (throttle.isHolding) continue;
      this.#throttled[i] = this.#throttled[this.#throttled.length - 1];
      this.#throttled.pop();
    }
  }

  /** Time until the first of them may go on, in milliseconds. */
  #throttledMs(nowMs: number): number {
    let first = Infinity;
    for (let i = 0; i < this.#throttled.length; i++) {
      first = Math.min(first, this.#throttled[i].opensMs - nowMs);
    }
    return Math.max(THROTTLE_SLEEP_MS_MIN, first);
  }

  #hasReady(): boolean {
    for (let i = 0; i < this.#disks.length; i++) if (this.#disks[i].hasReady) return true;
    return false;
  }

  /** Disk requests under way. */
  #inFlight(): number {
    let count = 0;
    for (let i = 0; i < this.#disks.length; i++) count += this.#disks[i].inFlight;
    return count;
  }

  /** Delivers what finished without the ring; how many that were. */
  #deliver(): number {
    let count = 0;
    for (let i = 0; i < this.#disks.length; i++) count += this.#disks[i].deliver();
    return count;
  }

  #turn(): void {
    this.#data.advance(clockMs());
    // Before anybody new comes: those that wait are first.
    if (this.#throttled.length > 0) this.#resumeThrottled();
    this.#ring.dispatch();
    this.#deliver();
    // They have ended with that: no turn for it.
    if (this.#sendFirst()) this.#ring.dispatch();
    for (let round = 0; round < ROUNDS_MAX; round++) {
      this.#pool.endTurn();
      this.#data.endTurn();
      this.#store.endTurn();
      if (this.#deliver() === 0) break;
    }
    if (this.#later.length > 0) {
      const later = this.#later;
      this.#later = [];
      for (const work of later) work();
    }
    if (this.#scheduled.length > 0) {
      const sessions = this.#scheduled;
      this.#scheduled = this.#turning;
      this.#turning = sessions;
      for (let i = 0; i < sessions.length; i++) sessions[i].turn();
      sessions.length = 0;
      // A turn may have taken more from the rings: give them room and back what needs no work, and close the batch, before sleeping.
      this.#pool.endTurn();
      this.#data.endTurn();
      this.#sendFirst();
      this.#store.endTurn();
    }
    this.#peers?.endTurn();
    if (this.#store.state === "failed" && !this.#stopped) this.#storeFailed();
  }

  /**
   * A disk that could not sync may have dropped what it had acknowledged: this run is over. The next one must not say that it
   * lost nothing because the machine has not started anew, so it finds a mark where such marks end with the machine's run.
   */
  #storeFailed(): void {
    const reason = this.#store.stats().failed ?? "the store has failed";
    this.#mark(markFailure);
    this.#fail(new StoreError("IO", reason));
  }

  #noteLeftBehind(nodeId: string, count: number): void {
    try {
      noteLeastCount(this.#start.runDir, nodeId, count);
    } catch (error) {
      this.log.error("that data paths were left behind cannot be noted", {
        reason: error instanceof Error ? error.message : String(error),
      });
    }
  }

  /** Leaves a mark for the next start, that what this run of the machine has acknowledged may not all be there: see `failure_mark.ts`. */
  #mark(mark: typeof markFailure): void {
    try {
      mark(this.#start.runDir);
    } catch (error) {
      this.log.error("what has happened to the store cannot be noted", {
        reason: error instanceof Error ? error.message : String(error),
      });
    }
  }

  /**
   * Requests for other nodes go out before this node's own part of the work, which theirs then runs beside. Where there is
   * none, they go with the call that sleeps.
   *
   * @returns whether there were any
   */
  #sendFirst(): boolean {
    if (this.#peers?.hasGathered !== true || !this.#store.hasUnwritten) return false;
    this.#peers.endTurn();
    this.#ring.submit();
    return true;
  }

  // ------------------------------------------------------------------------------ DiskServerHost

  /** {@inheritDoc DiskServerHost.nowMs} */
  nowMs(): number {
    return Date.now();
  }

  /** {@inheritDoc DiskServerHost.isPolling} */
  get isPolling(): boolean {
    return this.#pollMs > 0;
  }

  /** {@inheritDoc DiskServerHost.polled} */
  polled(session: VhostSession): void {
    this.#polled.push(session);
  }

  /** {@inheritDoc DiskServerHost.monotonicMs} */
  monotonicMs(): number {
    return performance.now();
  }

  /** {@inheritDoc DiskServerHost.schedule} */
  schedule(session: VhostSession): void {
    this.#scheduled.push(session);
  }

  /** {@inheritDoc DiskServerHost.throttled} */
  throttled(throttle: Throttle): void {
    if (!this.#throttled.includes(throttle)) this.#throttled.push(throttle);
  }

  /** {@inheritDoc DiskServerHost.later} */
  later(work: () => void): void {
    this.#later.push(work);
  }

  /** {@inheritDoc DiskServerHost.wantLease} */
  wantLease(disk: number): void {
    this.#post({ kind: "lease-wanted", disk });
  }

  /** {@inheritDoc DiskServerHost.releaseLease} */
  releaseLease(disk: number, isUnclean: boolean, isUnwritten: boolean): void {
    this.#data.closeDisk(disk);
    this.#releasing.set(disk, (this.#releasing.get(disk) ?? 0) + 1);
    this.#post({ kind: "lease-released", disk, isUnclean, isUnwritten });
  }
  /** Leases given back of which the main thread has not said that it knows, by disk. */
  readonly #releasing = new Map<number, number>();

  #releaseNoted(disk: number): void {
    const left = this.#releasing.get(disk)! - 1;
    if (left > 0) this.#releasing.set(disk, left);
    else this.#releasing.delete(disk);
  }

  /** {@inheritDoc DiskServerHost.abandonRequests} */
  abandonRequests(disk: number, isSparing: boolean): void {
    const router = this.#data.router(disk);
    router.abandon(-EIO, isSparing);
    // Only reads were under way, for which there is no lease that could end: those that come later are none of this.
    if (router.generation === 0) router.end();
  }

  // --------------------------------------------------------------------------------- replication

  /** Connections to peers, once there is a network; before that nobody can be reached. */
  #transport(): PeerTransport {
    return {
      setPeer: (node, address) => {
        if (this.#peers !== null) this.#peers.setPeer(node, address);
        else this.#peerAddresses.set(node, address);
      },
      send: (link, head, headBytes, dataOffset, dataBytes) =>
        this.#peers !== null && this.#peers.send(link, head, headBytes, dataOffset, dataBytes),
      drop: (link) => this.#peers?.drop(link),
      pause: (link, paused) => this.#peers?.pause(link, paused),
    };
  }

  #events(): DataCoreEvents {
    return {
      mapInstalled: (map) => this.#mapInstalled(map),
      inSync: (pool, groups, epoch) =>
        this.#post({ kind: "in-sync", pool, groups: [...groups], epoch }),
      settled: (pool, groups) => this.#post({ kind: "settled", pool, groups: [...groups] }),
      reconciled: (disk, generation) => this.#post({ kind: "reconciled", disk, generation }),
      unreachable: () => this.#post({ kind: "reachability" }),
      linksChanged: () => this.#post({ kind: "reachability" }),
      snapshotDrained: (disk, layer, generation) =>
        this.#post({ kind: "snapshot-drained", disk, layer, generation }),
      absorbed: (layers) => this.#post({ kind: "absorbed", layers: [...layers] }),
      flattened: (layers, epoch) => this.#post({ kind: "flattened", layers: [...layers], epoch }),
      groupsLost: (groups) =>
        this.#post({
          kind: "groups-lost",
          lost: [...groups],
          capacityBytes: this.#store.stats().usableBytes,
        }),
      memberFailed: (node, errno) => {
        this.log.error("a replica cannot do its work", { node, errno: -errno });
        this.#post({ kind: "reachability" });
      },
    };
  }

  #startNetwork(secret: Uint8Array, self: WorkerIdentity, address: string | null): void {
    const peers = new Peers({
      ring: this.#ring,
      arenaBytes: this.memory.windows[0].bytes,
      arena: this.#arena,
      random: this.#random,
      log: this.log,
      secret,
      self,
      listenAddress: address,
      nowMs: this.monotonicMs(),
    });
    peers.listener = this.#data;
    this.#peers = peers;
    for (const [node, at] of this.#peerAddresses) peers.setPeer(node, at);
    this.#peerAddresses.clear();
  }

  /** A part of a whole map, or all of it. */
  #mapPart(id: number, request: Extract<WorkerRequest, { kind: "map" }>): void {
    if (request.part === 0) this.#mapParts = [];
    this.#mapParts.push(request.bytes);
    if (request.part + 1 < request.parts) return this.#answer(id);
    let bytes: Uint8Array = new Uint8Array(0);
    for (const part of this.#mapParts) bytes = concatenated(bytes, part);
    this.#mapParts = [];
    this.#newMap(id, unwrap(decodeMap(bytes)));
  }

  /** The same command makes the same map here as everywhere. */
  #mapCommand(id: number, epoch: number, command: MapCommand): void {
    if (this.#map === null) throw new Error("a change of the map came before the map");
    const { map } = unwrap(apply(this.#map, command));
    if (map.epoch !== epoch) {
      throw new Error(`the map has epoch ${map.epoch} here and ${epoch} elsewhere`);
    }
    this.#newMap(id, map);
  }

  #newMap(id: number, map: ClusterMap): void {
    this.#map = map;
    if (this.#incarnation === 0) return this.#answer(id);
    this.#mapWaits.push({ epoch: map.epoch, done: () => this.#answer(id) });
    this.#data.setMap(map, this.#self, this.#incarnation);
  }

  #takePart(id: number, node: number, incarnation: number): void {
    this.#self = node;
    this.#incarnation = incarnation;
    // When it is back, what it had is not what it was: the next start must not say that nothing was lost.
    const isMissing = this.#set?.pathStatus().some(({ state }) => state !== "ok") === true;
    if (isMissing) this.#mark(markFailure);
    if (this.#map === null) return this.#answer(id);
    this.#newMap(id, this.#map);
  }

  /** Serves what the map says: sockets are a consequence of the map, on every node that holds data. */
  #mapInstalled(map: ClusterMap): void {
    const before = this.#servedMap;
    this.#servedMap = map;
    const isWitness = map.nodes.some((node) => node.id === this.#self && node.witness);
    if (before?.disks !== map.disks && !isWitness) this.#serveDisks(map);
    while (this.#mapWaits.length > 0 && this.#mapWaits[0].epoch <= map.epoch) {
      this.#mapWaits.shift()!.done();
    }
  }

  #serveDisks(map: ClusterMap): void {
    this.#unserved.clear();
    const wanted = new Map(map.disks.map((disk) => [disk.id, disk]));
    for (const [id, server] of [...this.#servers]) {
      if (wanted.has(id)) continue;
      this.#servers.delete(id);
      // Their sockets go below. In the trash a disk keeps its layers, so that nothing else ends what waits for a host that is away.
      this.#data.forgetReader(id);
      server.dropSessions(() => {});
      server.stop(() => this.#data.forgetDisk(id));
    }
    this.#serveSnapshots(map);
    for (const disk of map.disks) {
      const server = this.#servers.get(disk.id);
      try {
        if (server === undefined) this.#serve(disk);
        else if (server.disk !== disk) this.#update(server, disk);
      } catch (error) {
        this.#noteUnserved("a disk cannot be served here", disk, { disk: disk.name }, error);
      }
    }
  }

  /** It is tried again: whatever is in the way may go. */
  #noteUnserved(
    message: string,
    { id }: DiskEntry,
    fields: Readonly<Record<string, string>>,
    error: unknown,
  ): void {
    const reason = error instanceof Error ? error.message : String(error);
    this.#unserved.set(id, reason);
    this.#serveAgainMs = this.monotonicMs() + SERVE_AGAIN_MS;
    const what = `${Object.values(fields).join("@")} ${reason}`;
    if (!this.#unservedSaid.isDue(what, this.monotonicMs())) return;
    this.log.error(message, { ...fields, reason });
  }
  /** Disks of which not all sockets are there, and why. */
  readonly #unserved = new Map<number, string>();
  readonly #unservedSaid = new Reminders({ againMs: SERVE_REMIND_MS, most: SERVE_REASONS_MAX });
  #serveAgainMs = 0;

  #serve(disk: DiskEntry): void {
    const volume = new Volume({
      sizeBytes: disk.sizeBytes,
      serial: `kelpie-${disk.id}`,
      layers: disk.layers,
      windows: this.memory.windows,
      pool: this.#pool,
      sink: this.#data.router(disk.id),
      clock: () => this.monotonicMs(),
    });
    this.#servers.set(disk.id, new DiskServer(this, disk, volume));
  }

  /**
   * Every complete snapshot has a socket of its own, for reading. One whose path would be too long has none, which whoever asks for it is
   * told: nobody waits for it.
   */
  #serveSnapshots(map: ClusterMap): void {
    const wanted = new Map<number, { disk: DiskEntry; snapshot: SnapshotEntry }>();
    for (const disk of map.disks) {
      for (const snapshot of disk.snapshots) {
        const hasSocket = snapshot.taking === 0 &&
          snapshotSocketOf(this.runDir, disk.name, snapshot.name) !== null;
        if (hasSocket) wanted.set(snapshot.layer, { disk, snapshot });
      }
    }
    for (const [layer, server] of [...this.#snapshots]) {
      if (wanted.get(layer)?.disk.id === server.disk.id) continue;
      this.#snapshots.delete(layer);
      server.abandonSessions();
      server.stop(() => {});
    }
    for (const [layer, { disk, snapshot }] of wanted) {
      const server = this.#snapshots.get(layer);
      const layers = this.#data.view.chain(layer);
      try {
        if (server === undefined) this.#serveSnapshot(disk, snapshot, layers);
        else {
          if (server.disk !== disk) server.update(disk, snapshot);
          server.volume.layers = layers;
        }
      } catch (error) {
        const fields = { disk: disk.name, snapshot: snapshot.name };
        this.#noteUnserved("a snapshot cannot be served here", disk, fields, error);
      }
    }
  }

  #serveSnapshot(disk: DiskEntry, snapshot: SnapshotEntry, layers: readonly number[]): void {
    const volume = new Volume({
      sizeBytes: snapshot.sizeBytes,
      serial: `kelpie-${disk.id}-${snapshot.layer}`,
      layers,
      windows: this.memory.windows,
      pool: this.#pool,
      sink: this.#data.reader(disk.id),
    });
    this.#snapshots.set(snapshot.layer, new DiskServer(this, disk, volume, snapshot));
  }

  #update(server: DiskServer, disk: DiskEntry): void {
    const { readOnly } = server.disk;
    server.update(disk);
    // Front ends learn of it only by connecting anew.
    if (readOnly !== disk.readOnly) server.closeSessions(() => {});
  }

  #leaseGranted(
    { disk, generation, isUnclean, byOthers }: WorkerRequest & { kind: "lease-granted" },
  ): void {
    // It was for whoever has gone since, and goes back: who is next must not begin under it, since nobody would fence it off.
    if (this.#releasing.has(disk)) return;
    const server = this.#servers.get(disk);
    // Whoever wanted it has gone meanwhile: it goes back by itself.
    if (server === undefined || !server.wantsLease) return;
    if (this.#data.router(disk).generation !== generation) this.#data.openDisk(disk, generation);
    server.leaseGranted({ generation, isUnclean, byOthers });
  }

  #fenced(disk: number, generation: number): void {
    // A lease that has been had again since is another matter.
    if (this.#data.router(disk).generation !== generation) return;
    // Cut off first: what fails then is not told to the guest.
    this.#servers.get(disk)?.fence();
    this.#data.router(disk).abandon(-EIO, true);
  }

  #dataStatus(): WorkerDataStatus {
    const disconnected: number[] = [];
    for (const node of this.#map?.nodes ?? []) {
      // Those that are down too: when one of them is up again, it must not be taken for connected.
      if (node.id === this.#self || node.witness) continue;
      if (!this.#data.peers.isConnected(node.id)) disconnected.push(node.id);
    }
    const unreachable = [...this.#data.unreachable];
    const { status } = this.#data;
    const waiting = this.#waitingDisks(status);
    return { ...status, waiting, unreachable, disconnected, io: this.#io() };
  }

  /** Disks whose requests wait: those that are known to wait for something, and those of which no request comes back. */
  #waitingDisks({ waiting }: DataCoreStatus): DataCoreStatus["waiting"] {
    const now = this.monotonicMs();
    const all = [...waiting];
    for (const [disk, reason] of this.#unserved) {
      if (!waiting.some((entry) => entry.disk === disk)) {
        all.push({ disk, reason: `its sockets cannot be made there: ${reason}` });
      }
    }
    for (const [disk, server] of this.#servers) {
      const stalledMs = server.progress.stalledMs(now);
      if (stalledMs < STALLED_MS || all.some((entry) => entry.disk === disk)) continue;
      const seconds = Math.floor(stalledMs / 1000);
      all.push({ disk, reason: `no request has come back for ${seconds} s` });
    }
    return all;
  }

  // ------------------------------------------------------------------------------------- opening

  /** Opens the data paths; the loop begins with what they are. */
  #open(): void {
    const start = this.#start;
    let isOver = false;
    openPaths({
      candidates: this.#candidates,
      hostId: start.hostId,
      adopt: start.adopt,
      acceptDamage: start.acceptDamage,
      admit: refusalOf,
      ...(start.refuseNew === null ? {} : { refuseNew: start.refuseNew }),
      ...(start.capacityBytes === null ? {} : { capacityBytes: start.capacityBytes }),
      random: this.#random,
      mayHaveLost: () => this.#mark(markFailure),
      foundTorn: () => this.#mark(markTorn),
      leastCount: (nodeId) => leastCountOf(start.runDir, nodeId),
      memory: { window: this.memory.windows[0], arena: this.#arena },
      log: this.log,
      events: {
        pathFailed: () => {
          this.#mark(markFailure);
          // The others must hear of it at once: requests wait for them to.
          this.#nextTickMs = 0;
        },
        leftBehind: (nodeId, count) => this.#noteLeftBehind(nodeId, count),
      },
    }, (error, opened) => {
      isOver = true;
      if (opened === null) return this.#fail(error!);
      this.#store = opened.store;
      this.#set = opened.set;
      this.#noteCapacity();
      this.#data = new DataCore({
        store: this.#store,
        window: this.memory.windows[0],
        arena: this.#arena,
        transport: this.#transport(),
        log: this.log,
        events: this.#events(),
      });
      this.eventFds.watch(start.bellFd, { eventFdSignalled: () => this.#readMail() });
      this.#announce(opened.isNew);
    });
    while (!isOver) {
      this.#ring.dispatch();
      this.#deliver();
      for (const store of this.#stores) store.endTurn();
      if (isOver) break;
      this.#ring.enter(this.#hasReady() || this.#ring.ready > 0 ? 0 : OPENING_WAIT_MS);
    }
  }

  /** Says of stores that are larger than was asked for that they stay so. */
  #noteCapacity(): void {
    const wantedBytes = this.#start.capacityBytes;
    for (const { location, store } of this.#candidates) {
      if (wantedBytes === null || store?.state !== "open") continue;
      const { capacityBytes } = store.stats();
      if (wantedBytes >= capacityBytes) continue;
      this.log.warn("a store does not shrink: a smaller --capacity changes nothing", {
        path: location,
        capacity: formatSize(capacityBytes),
        wanted: formatSize(wantedBytes),
        instead:
          "'kelpie node weight' gives the host less data; a smaller store is a new one, of a node that was drained " +
          "and removed, and joins again with an empty data path",
      });
    }
  }

  #announce(created: boolean): void {
    const { storeId, nodeId, clusterId } = this.#store.identity;
    this.#post({
      kind: "ready",
      storeId: toHex(storeId),
      nodeId: toHex(nodeId),
      clusterId: toHex(clusterId),
      created,
      clean: this.#store.wasClean,
      lost: [...this.#set?.lost() ?? []],
      meta: this.#readMeta(),
    });
  }

  #readMeta(): Record<string, Uint8Array> {
    const meta: Record<string, Uint8Array> = {};
    for (const key of this.#store.metaKeys()) {
      const value = this.#store.getMeta(key)!;
      if (!key.includes("#")) meta[key] = isOldValue(key) ? this.#readOldValue(value, key) : value;
    }
    return meta;
  }

  #fail(error: StoreError): void {
    this.#post({ kind: "failed", code: error.code, message: error.message });
    this.#stopped = true;
  }

  // ------------------------------------------------------------------------------------- mailbox

  #readMail(): void {
    for (;;) {
      const message = this.#mailbox.receive() as NumberedRequest | undefined;
      if (message === undefined) return;
      try {
        this.#handle(message.id, message.request);
      } catch (error) {
        this.#refuse(message.id, error);
      }
    }
  }

  #answer(id: number, value: unknown = null): void {
    this.#post({ kind: "answer", id, value });
  }

  #refuse(id: number, error: unknown): void {
    const code = error instanceof StoreError ? error.code : "SYSTEM";
    const message = error instanceof Error ? error.message : String(error);
    this.#post({ kind: "refusal", id, code, message });
  }

  #done(id: number): (error: StoreError | null) => void {
    return (error) => error === null ? this.#answer(id) : this.#refuse(id, error);
  }

  #handle(id: number, request: WorkerRequest): void {
    switch (request.kind) {
      case "persist":
        return this.#store.setMetaBatch(request.writes, this.#done(id));
      case "read-meta":
        return this.#answer(id, this.#readMeta());
      case "network":
        this.#startNetwork(request.secret, request.self, request.address);
        return this.#answer(id, this.#peers!.address);
      case "identity":
        this.#peers?.setSelf(request.self);
        return this.#answer(id);
      case "peer":
        this.#data.setAddress(request.node, request.address);
        return this.#answer(id);
      case "map":
        return this.#mapPart(id, request);
      case "map-command":
        return this.#mapCommand(id, request.epoch, request.command);
      case "take-part":
        return this.#takePart(id, request.node, request.incarnation);
      case "renew":
        this.#data.renew(request.untilMs);
        return this.#answer(id);
      case "data-status":
        return this.#answer(id, this.#dataStatus());
      case "zero":
        return this.#zero(id, request.disk, request.startBytes, request.endBytes);
      case "disk-status":
        return this.#answer(id, this.#diskStatus(request.disk));
      case "layer-bytes":
        return this.#answer(
          id,
          this.#store.layers().flatMap((layer) => [layer, this.#store.layerBytes(layer)]),
        );
      case "extents": {
        const { disk, startBytes, endBytes, layer, since } = request;
        const runs = this.#servers.has(disk)
          ? this.#data.extentsOf(disk, startBytes, endBytes, layer, since)
          : [];
        return this.#answer(id, runs);
      }
      case "block":
        return this.#answer(id, this.#block(request));
      case "overlap":
        return this.#answer(id, countOverlap(this.#store, request, request.from));
      case "close-sessions":
        return this.#server(request.disk).dropSessions(() => this.#answer(id));
      case "store-status":
        return this.#answer(id, this.#storeStatus());
      case "check":
        return this.#check(id, request.layers);
      case "compare":
        return this.#compare(id, request.options);
      case "cancel-check":
        if (this.#comparison?.id === request.check) this.#endComparison();
        else this.#cancelledChecks.add(request.check);
        return this.#answer(id);
      case "log-level":
        this.log.level = request.level;
        return this.#answer(id);
      case "lease-granted":
        this.#leaseGranted(request);
        return this.#answer(id);
      case "release-noted":
        this.#releaseNoted(request.disk);
        return this.#answer(id);
      case "fenced":
        this.#fenced(request.disk, request.generation);
        return this.#answer(id);
      case "drain":
        return this.#drain(id);
      case "stop":
        if (this.#comparison !== null) this.#endComparison();
        return this.#stop(id);
    }
  }

  /** Of a disk that is not served here (yet, or because this is a witness) there is nothing to say. */
  #diskStatus(disk: number): DiskStatus {
    const server = this.#servers.get(disk);
    if (server === undefined) {
      return { sessions: [], counters: { ...VOLUME_COUNTERS_ZERO }, allocatedBytes: 0 };
    }
    const allocatedBytes = server.disk.layers.reduce(
      (sum, layer) => sum + this.#store.layerBytes(layer),
      0,
    );
    return { ...server.status, allocatedBytes };
  }

  /** What all disks that are served here have done. */
  #io(): WorkerIo {
    const io = {
      reads: 0,
      writes: 0,
      readBytes: 0,
      writtenBytes: 0,
      timedRequests: 0,
      timedMs: 0,
      inFlight: 0,
    };
    for (const { volume } of this.#servers.values()) {
      const { counters } = volume;
      io.reads += counters.reads;
      io.writes += counters.writes;
      io.readBytes += counters.readBytes;
      io.writtenBytes += counters.writtenBytes;
      io.timedRequests += counters.timedRequests;
      io.timedMs += counters.timedMs;
      io.inFlight += volume.inFlight;
    }
    return io;
  }

  #block(
    { disk, chunk, block, layer: newest }: WorkerRequest & { kind: "block" },
  ): WorkerBlock | null {
    const found = this.#servers.has(disk) ? this.#data.blockOf(disk, chunk, block, newest) : null;
    if (found === null) return null;
    const { layer } = found;
    const isDamaged = layer !== 0 && this.#store.isDamaged(layer, chunk, block);
    const storeOffsetBytes = layer === 0 ? -1 : this.#store.offsetOf(layer, chunk, block);
    const location = this.#set === null
      ? this.#start.paths[0].location
      : this.#set.locationOf(layer, chunk);
    return {
      ...found,
      isDamaged,
      location: storeOffsetBytes < 0 ? null : location,
      storeOffsetBytes,
    };
  }

  #server(disk: number): DiskServer {
    const server = this.#servers.get(disk);
    if (server === undefined) throw new Error(`disk ${disk} is not served`);
    return server;
  }

  // ---------------------------------------------------------------------------------- the store

  /** Values of version 0.1: a head of four bytes, and parts of their own where they were long. */
  #readOldValue(head: Uint8Array, key: string): Uint8Array {
    if (head[3] === 0) return head.slice(4);
    const count = head[0] | head[1] << 8;
    let value: Uint8Array = new Uint8Array(0);
    for (let i = 0; i < count; i++) {
      const part = this.#store.getMeta(`${key}#${String.fromCharCode(head[2])}${i}`);
      value = concatenated(value, part ?? new Uint8Array(0));
    }
    return value;
  }

  #storeStatus(): WorkerStoreStatus {
    const stats = this.#store.stats();
    const blocks = stats.damage.filter((damage) => damage.what === "block");
    const counters: Record<string, number> = {};
    for (const [name, value] of Object.entries(stats)) {
      if (typeof value === "number") counters[name] = value;
    }
    return {
      capacityBytes: stats.usableBytes,
      liveBytes: stats.liveBytes,
      freeBytes: stats.freeBytes,
      indexBytes: stats.indexBytes,
      full: stats.full,
      waitingWrites: stats.waitingWrites,
      failed: stats.failed,
      // The list leaves out what has been written again since; past its end nobody knows.
      damagedBlocks: blocks.length + stats.damageUnlisted,
      damage: this.#withHolders(blocks.map(({ layer, chunk, block }) => ({
        layer,
        offsetBytes: chunk * CHUNK_BYTES + block * BLOCK_BYTES,
      }))),
      damagedRecords: stats.damage.length - blocks.length,
      counters,
      paths: this.#set?.pathStatus() ?? [this.#onlyPath()],
    };
  }

  /** Finds who hides blocks from those that are read through newer layers, as far as that is little work. */
  #withHolders<Found extends { readonly layer: number; readonly offsetBytes: number }>(
    found: readonly Found[],
  ): (Found & { holders: number[] })[] {
    const layers = this.#map?.layers ?? [];
    // What is damaged lies in few layers, and there may be tens of thousands to look through.
    const aboves = new Map<number, number[]>();
    let looks = HOLDER_LOOKS_MAX;
    return found.map((each) => {
      if (looks < 0) return { ...each, holders: [] };
      let above = aboves.get(each.layer);
      if (above === undefined) aboves.set(each.layer, above = layersAbove(layers, each.layer));
      looks -= above.length;
      if (looks < 0) return { ...each, holders: [] };
      const chunk = Math.floor(each.offsetBytes / CHUNK_BYTES);
      const block = each.offsetBytes % CHUNK_BYTES / BLOCK_BYTES;
      const holders = above.filter((layer) => this.#store.holds(layer, chunk, block));
      return { ...each, holders };
    });
  }

  /** Of a store that is not one of several. */
  #onlyPath(): PathStatus {
    const { liveBytes, usableBytes, full, failed } = this.#store.stats();
    return {
      location: this.#start.paths[0].location,
      state: failed === null ? "ok" : "failed",
      reason: failed ?? "",
      usedBytes: liveBytes,
      capacityBytes: usableBytes,
      isFull: full,
      slots: SLOTS,
    };
  }

  #check(id: number, layers: number[] | null): void {
    const before = this.#store.stats().damageCount;
    let checkedBlocks = 0;
    let nextPostMs = 0;
    this.#store.scrubNow(
      layers,
      (progress) => {
        checkedBlocks = progress.checkedBlocks;
        const now = this.monotonicMs();
        if (now >= nextPostMs) {
          nextPostMs = now + PROGRESS_MS;
          this.#post({
            kind: "check-progress",
            id,
            checkedBytes: progress.checkedBlocks * 4096,
            totalBytes: progress.totalBlocks * 4096,
          });
        }
        return !this.#cancelledChecks.has(id);
      },
      (error) => {
        this.#cancelledChecks.delete(id);
        if (error !== null) return this.#refuse(id, error);
        const after = this.#storeStatus();
        const report: WorkerCheckReport = {
          checkedBytes: checkedBlocks * 4096,
          damagedBlocks: after.damagedBlocks,
          damage: after.damage,
        };
        this.log.info("check finished", {
          checkedBytes: report.checkedBytes,
          newDamage: this.#store.stats().damageCount - before,
        });
        this.#answer(id, report);
      },
    );
  }

  #compare(id: number, options: CheckOptions): void {
    const check = this.#data.check(options, (report) => {
      this.#comparison = null;
      const blocks = this.#withHolders(report.blocks);
      this.#answer(id, { ...report, blocks } satisfies WorkerComparison);
    });
    if (check === null) {
      return this.#refuse(id, new StoreError("BUSY", "this node compares replicas already"));
    }
    this.#comparison = { id, check, nextPostMs: 0 };
  }

  /** Nobody waits for it any more. */
  #endComparison(): void {
    const { id, check } = this.#comparison!;
    this.#comparison = null;
    this.#data.cancelCheck(check);
    this.#refuse(id, new StoreError("BUSY", "cancelled"));
  }

  #tellComparison(nowMs: number): void {
    const comparison = this.#comparison;
    if (comparison === null || nowMs < comparison.nextPostMs) return;
    comparison.nextPostMs = nowMs + PROGRESS_MS;
    const { doneBytes, totalBytes } = comparison.check.progress;
    this.#post({
      kind: "check-progress",
      id: comparison.id,
      checkedBytes: doneBytes,
      totalBytes,
    });
  }

  /**
   * Makes a part of a disk read as zeros, durably: through its volume, as a guest would, with the disk's lease and no front
   * end. Whole blocks first, which gives room back even where there is none, then what is left of the first one.
   */
  #zero(id: number, disk: number, startBytes: number, endBytes: number): void {
    const server = this.#server(disk);
    const alignedBytes = Math.ceil(startBytes / BLOCK_BYTES) * BLOCK_BYTES;
    const ranges = [
      { from: alignedBytes, to: Math.ceil(endBytes / BLOCK_BYTES) * BLOCK_BYTES },
      { from: startBytes, to: Math.min(alignedBytes, endBytes) },
    ].filter(({ from, to }) => from < to);
    const cancelWork = server.workAlone("its size is being changed", (done) => {
      this.#unleased.delete(id);
      const next = () => {
        const range = ranges.shift();
        if (range === undefined) {
          done();
          return this.#answer(id);
        }
        const request = new BlockRequest({
          requestDone: ({ result }) => {
            if (result === 0) return next();
            done();
            this.#refuse(id, new Error(`zeroing failed with errno ${-result}`));
          },
        }, 0);
        request.kind = BlockKind.WriteZeroes;
        request.unmap = true;
        request.forceUnitAccess = true;
        request.offsetBytes = range.from;
        request.lengthBytes = range.to - range.from;
        server.volume.submit(request);
      };
      next();
    });
    if (cancelWork === null) throw new StoreError("BUSY", `disk ${server.disk.name} is in use`);
    this.#unleased.set(id, {
      deadlineMs: this.monotonicMs() + LEASE_MS_MAX,
      cancel: () => {
        cancelWork();
        const message = `disk ${server.disk.name} could not be opened here within ${
          LEASE_MS_MAX / 1000
        } s`;
        this.#refuse(id, new StoreError("BUSY", message));
      },
    });
  }

  /** Gives up what has waited for a lease for too long: whoever asked for it has gone, and must not be surprised later. */
  #giveUpUnleased(nowMs: number): void {
    for (const [id, { deadlineMs, cancel }] of this.#unleased) {
      if (nowMs < deadlineMs) continue;
      this.#unleased.delete(id);
      cancel();
    }
  }
  /** Requests that wait for the lease of a disk. */
  readonly #unleased = new Map<number, { deadlineMs: number; cancel: () => void }>();

  /** Ends all sessions in good order, and makes everything durable that was acknowledged here. */
  #drain(id: number): void {
    this.#isDraining = true;
    let isDrained = false;
    const drained = () => {
      if (isDrained) return;
      isDrained = true;
      this.#forceStop = null;
      const owner = { operationDone: () => this.#answer(id) };
      const sync = new Operation(owner, 0);
      sync.kind = OperationKind.Sync;
      this.#store.submit(sync);
    };
    const servers = [...this.#servers.values(), ...this.#snapshots.values()];
    let left = servers.length;
    if (left === 0) return drained();
    this.#stopDeadlineMs = this.monotonicMs() + DRAIN_MS_MAX;
    this.#forceStop = () => {
      for (const server of servers) server.abandonSessions();
      drained();
    };
    for (const server of servers) {
      server.stop(() => {
        if (--left === 0) drained();
      });
    }
  }

  #stop(id: number): void {
    for (const server of this.#snapshots.values()) server.abandonSessions();
    for (const [disk, server] of this.#servers) {
      server.abandonSessions();
      this.#data.router(disk).abandon(-EIO);
    }
    this.#peers?.close();
    if (!this.#store.wasClean && this.#incarnation === 0) {
      // Nobody has been told that the run before this one did not end in good order: the next start has to find that, too.
      this.#answer(id);
      this.#stopped = true;
      return;
    }
    this.#isClosing = true;
    this.#store.close((error) => {
      if (error === null) this.#answer(id);
      else this.#refuse(id, error);
      this.#stopped = true;
    });
  }
}

/** Makes the directory of a new store, which only its owner may enter. */
function makeDirectory(path: string): void {
  try {
    Deno.mkdirSync(path, { recursive: true, mode: 0o700 });
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    throw new Error(
      `cannot make the directory ${path}: ${reason}; run as root, or choose another one with --data`,
    );
  }
}

/** The whole device, or most of what the file system has left. */
function sensibleCapacity(file: StoreFile): number {
  return file.isBlockDevice ? file.sizeBytes : Math.floor(availableBytes(file.fd) * CAPACITY_SHARE);
}

/** Why this agent must not open a store that remembers this, in a line; null: it may. */
function refusalOf(meta: (key: string) => Uint8Array | undefined): string | null {
  const value = meta(LEVEL_KEY);
  const error = storeLevelError(value, THIS_SPEAKER);
  if (error === null) return null;
  const sinceMs = decodeLevel(value)?.sinceMs ?? 0;
  const since = sinceMs === 0 ? "" : ` (since ${new Date(sinceMs).toISOString()})`;
  return `this store is not opened: ${error.message}${since}; ${error.hint}`;
}

/** Keys that version 0.1 wrote with a head of their own. */
function isOldValue(key: string): boolean {
  return key === "map" || key === "secret";
}
