/**
 * The data worker's twin of `agent.ts`: puts the machines of the data path and the Linux platform together, and
 * turns the one loop that drives them.
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
import { Arena } from "./base/arena.ts";
import { CHUNK_BYTES } from "./base/limits.ts";
import { DiskServer, type DiskServerHost } from "./disk_server.ts";
import { Logger } from "./logger.ts";
import type { DiskEntry } from "./map/map.ts";
import {
  availableBytes,
  isBlank,
  LinuxDisk,
  openStoreFile,
  type StoreFile,
} from "./platform/linux/disk.ts";
import { EventFdWatcher } from "./platform/linux/eventfd.ts";
import { MailboxReceiver } from "./platform/linux/mailbox.ts";
import { LinuxMemory } from "./platform/linux/memory.ts";
import { Ring } from "./platform/linux/ring.ts";
import { SocketWatcher } from "./platform/linux/socket.ts";
import { LinuxRandom } from "./platform/linux/random.ts";
import { StoreError } from "./store/errors.ts";
import { Operation, OperationKind } from "./store/operation.ts";
import { Store } from "./store/store.ts";
import type { VhostSession } from "./vhost/session.ts";
import { TransferPool } from "./volume/transfer_pool.ts";
import { Volume } from "./volume/volume.ts";
import type {
  NumberedRequest,
  WorkerCheckReport,
  WorkerMessage,
  WorkerRequest,
  WorkerStart,
  WorkerStoreStatus,
} from "./worker_protocol.ts";

/** Milliseconds between ticks of the store while it has something to do. */
const TICK_BUSY_MS = 100;
/** …and while it has not: an idle agent wakes twice a second. */
const TICK_IDLE_MS = 500;
/**
 * Rounds of deliver and endTurn within one turn. Completions of buffered writes may start more of them; the rest comes
 * in the next turn, after the rings and sockets had theirs.
 */
const ROUNDS_MAX = 4;
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
 * Longest wait for requests in flight when the agent stops. What is not done by then (writes that wait for space) is done by
 * the next agent: the guest's front end keeps the list.
 */
const DRAIN_MS_MAX = 5000;
/** Ticks without a request after which buffers are given back: ten seconds of an idle agent. */
const IDLE_TICKS_TO_TRIM = 20;
/** Milliseconds between reports of a check's progress. */
const PROGRESS_MS = 100;
/** Part of a value too long for the store's one META record. */
const META_PART_BYTES = 60 * 1024;
/** Chunks zeroed at once when a disk shrinks. */
const ZERO_OPERATIONS_MAX = 16;

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
  readonly #file: StoreFile;
  readonly #disk: LinuxDisk;
  readonly #store: Store;
  readonly #pool: TransferPool;
  readonly #servers = new Map<number, DiskServer>();
  readonly #mailbox: MailboxReceiver;
  readonly #post: Post;
  readonly #start: WorkerStart;
  readonly #random = new LinuxRandom();
  /** Sessions that want a turn: filled while the other list is worked on. */
  #scheduled: VhostSession[] = [];
  #turning: VhostSession[] = [];
  #later: (() => void)[] = [];
  /** Sessions with rings that ask for no kick. */
  readonly #polled: VhostSession[] = [];
  /** How long to look at rings before sleeping. */
  #pollMs = 0;
  readonly #cancelledChecks = new Set<number>();
  /** Transfers that had been taken at the tick before, and ticks since the last. */
  #trimmedAt = 0;
  #idleTicks = 0;
  #stopped = false;
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
    this.#file = openStoreFile({ path: start.storePath, direct: start.direct, create: true });
    this.#disk = new LinuxDisk({
      ring: this.#ring,
      file: this.#file,
      direct: start.direct,
      memory: this.memory,
    });
    this.#store = new Store({
      disk: this.#disk,
      window: this.memory.windows[0],
      arena: this.#arena,
      random: this.#random,
      log: this.log,
      scrubBytesPerSecond: start.scrubRateBytes,
    });
    this.#disk.listener = this.#store;
    this.#pool = new TransferPool(this.#arena);
    this.eventFds.watch(start.bellFd, { eventFdSignalled: () => this.#readMail() });
  }

  /** Opens the store, then serves until told to stop. */
  run(): void {
    this.#open();
    while (!this.#stopped) {
      this.#turn();
      const now = this.monotonicMs();
      if (now >= this.#nextTickMs) {
        this.#store.tick(now);
        for (const server of this.#servers.values()) server.tick();
        this.sockets.resume();
        if (this.#forceStop !== null && now >= this.#stopDeadlineMs) this.#forceStop();
        this.#trimWhenIdle();
        this.#nextTickMs = now + (this.#store.idle ? TICK_IDLE_MS : TICK_BUSY_MS);
        continue;
      }
      const isBusy = this.#scheduled.length > 0 || this.#later.length > 0 ||
        this.#disk.hasReady || this.#ring.ready > 0 ||
        (this.isPolling && this.#ring.unsubmitted > 0);
      if (isBusy || this.#poll() || this.#stopPolling()) this.#ring.enter(0);
      else this.#sleep(Math.max(1, this.#nextTickMs - now));
    }
    this.#disk.close();
    this.#ring.close();
  }

  /**
   * Looks at the rings for a while, instead of paying for a sleep and a wake-up per request where a guest has only one
   * under way.
   *
   * @returns whether something came
   */
  #poll(): boolean {
    if (this.#polled.length === 0 || this.#disk.inFlight > 0) return false;
    const endMs = performance.now() + this.#pollMs;
    do {
      let found = false;
      for (let i = 0; i < this.#polled.length; i++) found = this.#polled[i].poll() || found;
      if (found) return true;
    } while (performance.now() < endMs);
    return false;
  }

  /** Asks for kicks again; true when something had come meanwhile. */
  #stopPolling(): boolean {
    let found = false;
    while (this.#polled.length > 0) found = this.#polled.pop()!.stopPolling() || found;
    return found;
  }

  /**
   * Sleeps, and learns from how long: when work came soon, looking for it would have been cheaper; when it did not, looking is
   * a waste, and less of it is done until there is none. An idle agent only sleeps.
   */
  #sleep(mostMs: number): void {
    const startMs = performance.now();
    this.#ring.enter(mostMs);
    const sleptMs = performance.now() - startMs;
    if (sleptMs < POLL_MS_MAX) {
      this.#pollMs = Math.min(POLL_MS_MAX, this.#pollMs * 2 || POLL_MS_MIN);
    } else if (this.#pollMs > 0) this.#pollMs = this.#pollMs > POLL_MS_MIN ? this.#pollMs / 2 : 0;
  }

  /** After a while without any request the buffers' memory goes back to the system, once. */
  #trimWhenIdle(): void {
    const idleBytes = this.#disk.inFlight === 0 ? this.#arena.idleBytes : 0;
    const requests = this.#pool.taken;
    if (idleBytes === 0 || requests !== this.#trimmedAt) {
      this.#trimmedAt = requests;
      this.#idleTicks = 0;
    } else if (++this.#idleTicks === IDLE_TICKS_TO_TRIM) this.memory.trimArena(idleBytes);
  }

  #turn(): void {
    this.#ring.dispatch();
    this.#disk.deliver();
    for (let round = 0; round < ROUNDS_MAX; round++) {
      this.#pool.endTurn();
      this.#store.endTurn();
      if (this.#disk.deliver() === 0) break;
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
      // A turn may have taken more from the rings: close its batch before sleeping.
      this.#store.endTurn();
    }
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

  /** Milliseconds since some moment; never goes back. */
  monotonicMs(): number {
    return performance.now();
  }

  /** {@inheritDoc DiskServerHost.schedule} */
  schedule(session: VhostSession): void {
    this.#scheduled.push(session);
  }

  /** {@inheritDoc DiskServerHost.later} */
  later(work: () => void): void {
    this.#later.push(work);
  }

  /** {@inheritDoc DiskServerHost.wantLease} */
  wantLease(disk: number, token: number): void {
    this.#post({ kind: "lease-wanted", disk, token });
  }

  // ------------------------------------------------------------------------------------- opening

  #open(): void {
    const start = this.#start;
    const options = {
      hostId: start.hostId,
      adopt: start.adopt,
      acceptDamage: start.acceptDamage,
      ...(start.capacityBytes === null ? {} : { capacityBytes: start.capacityBytes }),
    };
    const opened = (created: boolean) => (error: StoreError | null) => {
      if (error !== null) return this.#fail(error);
      this.#announce(created);
    };
    this.#store.open(options, (error) => {
      if (error === null) return this.#announce(false);
      // Only what is blank is made into a store: anything else may be somebody's data.
      if (error.code !== "NOT_A_STORE" || !isBlank(this.#start.storePath)) return this.#fail(error);
      this.#format(() => this.#store.open(options, opened(true)));
    });
  }

  #format(done: () => void): void {
    const nodeId = new Uint8Array(16), clusterId = new Uint8Array(16);
    this.#random.fill(nodeId);
    this.#random.fill(clusterId);
    this.#store.format(
      {
        nodeId,
        clusterId,
        hostId: this.#start.hostId,
        capacityBytes: this.#start.capacityBytes ?? this.#sensibleCapacity(),
      },
      (error) => error === null ? done() : this.#fail(error),
    );
  }

  /** The whole device, or most of what the file system has left. */
  #sensibleCapacity(): number {
    return this.#file.isBlockDevice
      ? this.#file.sizeBytes
      : Math.floor(availableBytes(this.#file.fd) * CAPACITY_SHARE);
  }

  #announce(created: boolean): void {
    const { storeId, nodeId, clusterId } = this.#store.identity;
    const meta: Record<string, Uint8Array> = {};
    for (const key of this.#store.metaKeys()) {
      if (!key.includes("#")) meta[key] = this.#readValue(key);
    }
    this.#post({
      kind: "ready",
      storeId: hex(storeId),
      nodeId: hex(nodeId),
      clusterId: hex(clusterId),
      created,
      meta,
    });
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
      case "commit":
        return this.#commit(request.key, request.value, this.#done(id));
      case "create-layer":
        if (this.#store.hasLayer(request.layer)) return this.#answer(id);
        return this.#store.createLayer(request.layer, this.#done(id));
      case "delete-layer":
        if (!this.#store.hasLayer(request.layer)) return this.#answer(id);
        return this.#store.deleteLayer(request.layer, this.#done(id));
      case "serve":
        return this.#serve(id, request.disk);
      case "stop-serving":
        return this.#stopServing(id, request.disk);
      case "update":
        this.#server(request.disk.id).update(request.disk);
        return this.#answer(id);
      case "zero":
        return this.#zero(id, request.layer, request.startBytes, request.endBytes);
      case "disk-status": {
        const server = this.#server(request.disk);
        const allocatedBytes = server.disk.layers.reduce(
          (sum, layer) => sum + this.#store.layerBytes(layer),
          0,
        );
        return this.#answer(id, { ...server.status, allocatedBytes });
      }
      case "close-sessions":
        return this.#server(request.disk).closeSessions(() => this.#answer(id));
      case "store-status":
        return this.#answer(id, this.#storeStatus());
      case "check":
        return this.#check(id, request.layers);
      case "cancel-check":
        this.#cancelledChecks.add(request.check);
        return this.#answer(id);
      case "log-level":
        this.log.level = request.level;
        return this.#answer(id);
      case "lease-granted":
        this.#servers.get(request.disk)?.leaseGranted(request.token, request.generation);
        return this.#answer(id);
      case "lease-refused":
        this.#servers.get(request.disk)?.leaseRefused(request.token, request.reason);
        return this.#answer(id);
      case "stop":
        return this.#stop(id);
    }
  }

  #server(disk: number): DiskServer {
    const server = this.#servers.get(disk);
    if (server === undefined) throw new Error(`disk ${disk} is not served`);
    return server;
  }

  #serve(id: number, disk: DiskEntry): void {
    const volume = new Volume({
      sizeBytes: disk.sizeBytes,
      serial: `kelpie-${disk.id}`,
      layers: disk.layers,
      windows: this.memory.windows,
      pool: this.#pool,
      sink: this.#store,
    });
    this.#servers.set(disk.id, new DiskServer(this, disk, volume));
    this.#answer(id);
  }

  #stopServing(id: number, disk: number): void {
    const server = this.#servers.get(disk);
    if (server === undefined) return this.#answer(id);
    server.stop(() => {
      this.#servers.delete(disk);
      this.#answer(id);
    });
  }

  // ---------------------------------------------------------------------------------- the store

  /**
   * Makes a value durable. One that is too long for one record is laid down in parts first, under keys of this
   * epoch's own, and takes effect with the record that names them: a batch of META is kept in order.
   */
  #commit(key: string, value: Uint8Array, done: (error: StoreError | null) => void): void {
    const old = this.#partKeys(key);
    const count = Math.ceil(value.length / META_PART_BYTES);
    const entries: { key: string; value: Uint8Array | null }[] = [];
    if (count <= 1) {
      entries.push({ key, value: concatenated([0, 0, 0, 0], value) });
    } else {
      // Parts alternate between two sets of keys, so that those in force are never overwritten.
      const set = old.some((part) => part.startsWith(`${key}#a`)) ? "b" : "a";
      for (let i = 0; i < count; i++) {
        const part = value.subarray(i * META_PART_BYTES, (i + 1) * META_PART_BYTES);
        entries.push({ key: `${key}#${set}${i}`, value: part });
      }
      entries.push({ key, value: Uint8Array.of(count, count >>> 8, set.charCodeAt(0), 1) });
    }
    for (const part of old) entries.push({ key: part, value: null });
    this.#store.setMetaBatch(entries, done);
  }

  /** Keys of the parts that are in force. */
  #partKeys(key: string): string[] {
    const head = this.#store.getMeta(key);
    if (head === null || head[3] === 0) return [];
    const count = head[0] | head[1] << 8;
    return Array.from({ length: count }, (_, i) => `${key}#${String.fromCharCode(head[2])}${i}`);
  }

  #readValue(key: string): Uint8Array {
    const head = this.#store.getMeta(key)!;
    if (head[3] === 0) return head.slice(4);
    let value: Uint8Array = new Uint8Array(0);
    for (const part of this.#partKeys(key)) {
      value = concatenated(value, this.#store.getMeta(part) ?? new Uint8Array(0));
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
      damagedBlocks: stats.damage.length + stats.damageUnlisted,
      damage: blocks.map(({ layer, chunk, block }) => ({
        layer,
        offsetBytes: chunk * CHUNK_BYTES + block * 4096,
      })),
      counters,
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

  #zero(id: number, layer: number, startBytes: number, endBytes: number): void {
    // Whole blocks only: what the cut leaves of a block can no longer be addressed.
    let block = Math.ceil(startBytes / 4096);
    const end = Math.ceil(endBytes / 4096);
    let pending = 0;
    let failed = 0;
    const issue = (operation: Operation): boolean => {
      if (block >= end || failed !== 0) return false;
      operation.kind = OperationKind.Free;
      operation.layers = [layer];
      operation.chunk = Math.floor(block / 1024);
      operation.block = block % 1024;
      operation.blockCount = Math.min(1024 - operation.block, end - block);
      block += operation.blockCount;
      pending++;
      this.#store.submit(operation);
      return true;
    };
    const owner = {
      operationDone: (operation: Operation) => {
        pending--;
        if (operation.result !== 0) failed = operation.result;
        if (operation.kind === OperationKind.Sync) {
          if (failed === 0) this.#answer(id);
          else this.#refuse(id, new Error(`freeing blocks failed with errno ${-failed}`));
          return;
        }
        if (!issue(operation) && pending === 0) {
          operation.kind = OperationKind.Sync;
          pending++;
          this.#store.submit(operation);
        }
      },
    };
    let started = false;
    for (let i = 0; i < ZERO_OPERATIONS_MAX; i++) {
      started = issue(new Operation(owner, 0)) || started;
    }
    if (!started) this.#answer(id);
  }

  #stop(id: number): void {
    let isClosing = false;
    const close = () => {
      if (isClosing) return;
      isClosing = true;
      this.#forceStop = null;
      this.#store.close((error) => {
        if (error === null) this.#answer(id);
        else this.#refuse(id, error);
        this.#stopped = true;
      });
    };
    let left = this.#servers.size;
    if (left === 0) return close();
    this.#stopDeadlineMs = this.monotonicMs() + DRAIN_MS_MAX;
    this.#forceStop = () => {
      for (const server of this.#servers.values()) server.abandonSessions();
      close();
    };
    for (const server of this.#servers.values()) {
      server.stop(() => {
        if (--left === 0) close();
      });
    }
  }
}

function concatenated(a: ArrayLike<number>, b: Uint8Array): Uint8Array {
  const both = new Uint8Array(a.length + b.length);
  both.set(a);
  both.set(b, a.length);
  return both;
}

/** Hexadecimal digits of an identity. */
export function hex(bytes: Uint8Array): string {
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
