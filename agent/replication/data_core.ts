/**
 * Replication on one node, put together: what sits between the volumes and the store, and between this node's store and
 * everybody else's volumes.
 *
 *     volume ─▶ router ─┬─▶ replica ─▶ store            links of others ─▶ replica
 *                       └─▶ peers ─▶ transport          map ─▶ view ─▶ everyone
 *     joining, opening, repairer: bring replicas in line
 *
 * A synchronous machine: the map, the right to serve, messages and time go in; messages, store operations and events come
 * out. `data_plane.ts` drives it on Linux, the simulator elsewhere.
 *
 * @module
 */
import type { Arena } from "../base/arena.ts";
import { isOn } from "../map/levels.ts";
import type { ClusterMap } from "../map/map.ts";
import type { PeerListener, PeerTransport } from "../platform/network.ts";
import type { Log, Window } from "../platform/platform.ts";
import type { LocalStore } from "./local_store.ts";
import { Closing } from "./closing.ts";
import { Discards } from "./discards.ts";
import { Absorbing } from "./absorbing.ts";
import type { CheckReport } from "./check_report.ts";
import { Check, type CheckingHost, type CheckOptions } from "./checking.ts";
import { Completer } from "./completing.ts";
import { type BlockFound, describeExtents, findBlock } from "./extents.ts";
import { Flattener, type FlatteningProgress } from "./flattening.ts";
import { Inspector } from "./inspection.ts";
import { Joining, type JoiningEvents, type JoiningProgress } from "./joining.ts";
import { Opening } from "./opening.ts";
import { Pace, REQUEST_BYTES } from "./pace.ts";
import { Peers } from "./peers.ts";
import { Repairer } from "./repair.ts";
import { Replica, type ReplicaCounters } from "./replica.ts";
import { DiskRouter, type RouterHost, WriteSlot } from "./router.ts";
import { Tidier } from "./tidy.ts";
import { ClusterView } from "./view.ts";

/** Milliseconds without an answer after which a node is reported as unreachable from here. */
export const UNREACHABLE_MS = 2000;

/** What replication wants to be known. */
export interface DataCoreEvents extends JoiningEvents {
  /** A map that was given is in force now: its layers are there. */
  mapInstalled(map: ClusterMap): void;
  /** The disk's replicas agree: everything before this lease is settled. */
  reconciled(disk: number, generation: number): void;
  /** Nodes that do not answer this one, though something waits for them; empty when all do. */
  unreachable(nodes: readonly number[]): void;
  /** A connection to a node is there, or is lost. */
  linksChanged?(): void;
  /** A replica answered with an errno: it cannot do its work. */
  memberFailed(node: number, errno: number): void;
  /** The map takes this node to hold groups that a lost data path had: bits as of `LocalPaths.owed`. Told until it does not. */
  groupsLost?(groups: Uint8Array): void;
  /** Nothing is on its way any more into the layer of a snapshot that is being taken, and all of it is synced. Told until the map has it. */
  snapshotDrained?(disk: number, layer: number, generation: number): void;
  /** Layers are absorbed into their children here, durably. Told until the map has it. */
  absorbed?(layers: readonly number[]): void;
  /** Layers have everything here that they were read through to, durably, by a map of this epoch. Told until the map has it. */
  flattened?(layers: readonly number[], epoch: number): void;
}

/** Milliseconds after which a loss that the map has not taken notice of is told again. */
const LOSS_AGAIN_MS = 2000;

/** …and the same for a layer that is drained. */
const DRAINED_AGAIN_MS = 500;

/** Layers that are made at once: the store takes a bounded number of slow requests, and consensus has some of its own. */
const LAYERS_AT_ONCE = 1024;

/** What there is to know about replication on this node. */
export interface DataCoreStatus {
  readonly epoch: number;
  readonly mayServe: boolean;
  readonly joining: JoiningProgress;
  readonly flattening: FlatteningProgress;
  readonly repaired: number;
  readonly replica: ReplicaCounters;
  /** Disks whose requests wait, and why. */
  readonly waiting: readonly { readonly disk: number; readonly reason: string }[];
}

/** See the head of the file. */
export class DataCore implements PeerListener, RouterHost, CheckingHost {
  readonly store: LocalStore;
  readonly window: Window;
  readonly arena: Arena;
  readonly log: Log;
  readonly replica: Replica;
  readonly peers: Peers;
  readonly joining: Joining;
  readonly repairer: Repairer;
  readonly completer: Completer;
  readonly closing: Closing;
  readonly tidier: Tidier;
  readonly absorbing: Absorbing;
  readonly inspector: Inspector;
  /** The check that this node drives; null: none. */
  #check: Check | null = null;
  readonly flattener: Flattener;
  incarnation = 0;
  wantsTick = false;

  readonly #transport: PeerTransport;
  readonly #events: DataCoreEvents;
  #view: ClusterView | null = null;
  #nowMs = 0;
  #serveUntilMs = -Infinity;
  /** False from the moment at which something could have been held back until the right to serve is there again. */
  #didServe = false;
  readonly #routers = new Map<number, DiskRouter>();
  readonly #readers = new Map<number, DiskRouter>();
  readonly #openings = new Map<number, Opening>();
  /** Write slots that are free. */
  readonly #slots: WriteSlot[] = [];
  readonly #addresses = new Map<number, string>();
  /** Nodes that do not answer, though something waits for them. */
  unreachable: readonly number[] = [];
  /** Nodes whose store has failed, and the incarnation in which it did. */
  readonly #failed = new Map<number, number>();
  /** A layer could not be made: again at the next tick. */
  #mustRetryMap = false;
  /** What was done for this node's guests, as {@linkcode Pace} counts it. */
  #guestWork = 0;
  readonly #sourcePace: Pace;
  readonly #release = (offset: number, bytes: number) => this.arena.release(offset, bytes);

  /**
   * @param options.transport its listener must be this core
   * @param options.window its arena holds all buffers
   */
  constructor(options: {
    store: LocalStore;
    window: Window;
    arena: Arena;
    transport: PeerTransport;
    log: Log;
    events: DataCoreEvents;
  }) {
    const { store, window, arena, transport, log, events } = options;
    this.store = store;
    this.window = window;
    this.arena = arena;
    this.log = log;
    this.#transport = transport;
    this.#events = events;
    this.peers = new Peers(transport);
    this.replica = new Replica({ store, window, arena, transport, log });
    const { peers, replica } = this;
    const guestWork = () => this.#guestWork + replica.guestWork;
    const pace = new Pace(guestWork);
    this.#sourcePace = new Pace(guestWork);
    replica.pace = this.#sourcePace;
    const discards = new Discards();
    this.joining = new Joining({
      store,
      discards,
      peers,
      window,
      arena,
      replica,
      log,
      events,
      pace,
    });
    this.repairer = new Repairer({ store, replica, peers, window, arena, log });
    this.completer = new Completer({ store, replica, peers, window, arena, log });
    this.tidier = new Tidier({ store, discards, log });
    this.closing = new Closing(store);
    this.absorbing = new Absorbing({
      store,
      discards,
      joining: this.joining,
      absorbed: (layers) => events.absorbed?.(layers),
    });
    this.flattener = new Flattener({
      store,
      discards,
      window,
      arena,
      pace,
      joining: this.joining,
      flattened: (layers, epoch) => events.flattened?.(layers, epoch),
    });
    replica.joining = this.joining;
    replica.puller = this.joining;
    replica.damaged = (layers, chunk, block, count) =>
      this.repairer.report(layers, chunk, block, count);
    this.inspector = new Inspector({ store, replica, window, arena, pace: this.#sourcePace });
    replica.inspector = this.inspector;
    replica.replacer = this.repairer;
    replica.completer = this.completer;
    store.damageListener = (layer, chunk, block) => {
      if (!this.inspector.isQuiet(layer, chunk)) this.repairer.reportBlock(layer, chunk, block);
    };
  }

  // --------------------------------------------------------------------------------- the control's

  /**
   * The map has changed, or is known for the first time. Every epoch should come, in order; where one is left out,
   * what was under way is judged by the map alone. In force once its layers are made.
   *
   * @param self this node's id
   * @param incarnation of this start of the agent
   */
  setMap(map: ClusterMap, self: number, incarnation: number): void {
    this.#maps.push({ map, self, incarnation, serveUntilMs: null });
    if (this.#maps.length === 1) this.#nextMap();
  }
  /** Maps that are not in force yet; layers of the first are being made. */
  readonly #maps: {
    map: ClusterMap;
    self: number;
    incarnation: number;
    /** Until when this node may serve, once this map is in force; null: as before. */
    serveUntilMs: number | null;
  }[] = [];

  #nextMap(): void {
    while (this.#maps.length > 0) {
      const { map, self } = this.#maps[0];
      const isWitness = map.nodes.some((node) => node.id === self && node.witness);
      const missing = isWitness ? [] : this.#missingLayers(map);
      if (missing.length === 0) {
        if (!this.#isPrepared(map, self)) return;
        const next = this.#maps.shift()!;
        this.#install(next);
        if (next.serveUntilMs !== null) this.#renewed(next.serveUntilMs);
        continue;
      }
      const some = missing.slice(0, LAYERS_AT_ONCE);
      let left = some.length;
      for (const layer of some) {
        this.store.createLayer(layer, (error) => {
          if (error !== null) this.#mustRetryMap = true;
          if (error !== null) {
            this.log.error("a layer could not be made", { layer, reason: error.message });
          } else if (--left === 0) this.#nextMap();
        });
      }
      return;
    }
  }

  /** Whether what the map wants to be here has a place; if not, it goes on when it has. */
  #isPrepared(map: ClusterMap, self: number): boolean {
    const { paths } = this.store;
    if (paths === undefined || map === this.#preparedMap) return true;
    const isReady = paths.prepare(map, self, (error) => {
      if (error === null) {
        this.#preparedMap = map;
        return this.#nextMap();
      }
      this.#mustRetryMap = true;
      this.log.error("places for groups could not be remembered", { reason: error.message });
    });
    if (isReady) this.#preparedMap = map;
    return isReady;
  }
  /** The map that data paths are prepared for. */
  #preparedMap: ClusterMap | null = null;

  #missingLayers(map: ClusterMap): number[] {
    const missing: number[] = [];
    for (const { id } of map.layers) if (!this.store.hasLayer(id)) missing.push(id);
    return missing;
  }

  /** Layers that no disk has any more. Those that this map cannot know are left alone. */
  #dropLayers(view: ClusterView): void {
    for (const layer of this.store.layers()) {
      if (layer >= view.map.nextLayer || view.diskOfLayer(layer) !== undefined) continue;
      this.store.deleteLayer(layer, (error) => {
        if (error !== null) this.log.warn("a layer could not be deleted", { layer });
      });
    }
  }

  #install(
    { map, self, incarnation }: { map: ClusterMap; self: number; incarnation: number },
  ): void {
    const before = this.#view;
    const isSame = before !== null && map.epoch === before.epoch &&
      incarnation === this.incarnation;
    if (before !== null && (map.epoch < before.epoch || isSame)) {
      return this.#events.mapInstalled(before.map);
    }
    this.store.paths?.installed();
    this.#lossToldMs = -Infinity;
    const view = new ClusterView(map, self, before);
    const isJump = before !== null && map.epoch > before.epoch + 1;
    this.#view = view;
    this.incarnation = incarnation;
    this.peers.epoch = view.epoch;
    this.tidier.mapChanged(view);
    this.joining.mapChanged(view);
    this.absorbing.mapChanged(view);
    this.flattener.mapChanged(view);
    this.repairer.mapChanged(view);
    this.completer.mapChanged(view);
    this.closing.mapChanged(before, view);
    // All of them first, without a completion: what a guest gets back may bring new requests, for any disk.
    for (const router of this.#all()) router.mapChanged(isJump);
    for (const opening of [...this.#openings.values()]) opening.mapChanged(before ?? view);
    this.replica.mapChanged(view, incarnation);
    this.#check?.mapChanged();
    for (const router of this.#all()) router.resume();
    for (const node of [...this.#addresses.keys()]) {
      // Of those that this map cannot know, maps that are to come tell.
      if (node < map.nextNode && view.node(node) === undefined) this.setAddress(node, null);
    }
    for (const [node, incarnation] of this.#failed) {
      if (view.node(node)?.incarnation !== incarnation) this.#failed.delete(node);
    }
    if (before === null || before.map.layers !== map.layers) this.#dropLayers(view);
    this.#events.mapInstalled(map);
  }

  /**
   * Where a node's data worker listens: connections to it are kept from now on.
   *
   * @param address numeric `ip:port`; null: it is not to be reached any more
   */
  setAddress(node: number, address: string | null): void {
    if ((this.#addresses.get(node) ?? null) === address) return;
    // It goes with the first map without it: until that is in force, whoever waits for it holds requests to it.
    if (address === null && this.#view?.node(node) !== undefined) return;
    if (address === null) {
      this.#addresses.delete(node);
      this.peers.forget(node);
    } else this.#addresses.set(node, address);
    this.#transport.setPeer(node, address);
  }

  /**
   * This node may serve until then, by the clock of {@linkcode tick}; `Infinity` where no other could take over. It counts once every
   * map that was given before is in force: one of those may say that a lease is another node's. A right that ends earlier than it did
   * waits for nothing: somebody else may be given what is held here.
   */
  renew(serveUntilMs: number): void {
    for (const each of this.#maps) {
      if (each.serveUntilMs !== null && each.serveUntilMs > serveUntilMs) each.serveUntilMs = null;
    }
    const isNow = serveUntilMs < this.#serveUntilMs || this.#maps.length === 0;
    if (isNow) return this.#renewed(serveUntilMs);
    this.#maps[this.#maps.length - 1].serveUntilMs = serveUntilMs;
  }

  #renewed(serveUntilMs: number): void {
    this.#serveUntilMs = serveUntilMs;
    if (!this.mayServe || this.#didServe) return;
    this.#didServe = true;
    // Also those that wait for nothing else: what was acknowledged without the right to serve has not been given back.
    for (const router of this.#all()) router.resume();
  }

  // ---------------------------------------------------------------------------------------- disks

  /** The way to a disk's replicas, for its volume. */
  router(disk: number): DiskRouter {
    let router = this.#routers.get(disk);
    if (router === undefined) {
      router = new DiskRouter(this, disk);
      this.#routers.set(disk, router);
    }
    return router;
  }

  /**
   * Which parts of a disk or a snapshot hold data, from `startBytes` on: `describeExtents`. Of a disk that is not in the map, nothing.
   *
   * @param startBytes a multiple of 4096
   * @param layer newest layer of a snapshot of the disk; 0: the disk as it is now
   * @param since newest layer of an older snapshot: what is the same as in that one is not looked into; 0: of none
   */
  extentsOf(disk: number, startBytes: number, endBytes: number, layer = 0, since = 0): number[] {
    const view = this.view.disk(disk);
    if (view === undefined) return [];
    return describeExtents({
      view: this.view,
      store: this.store,
      disk: view,
      layer: layer === 0 ? view.entry.layers[0] : layer,
      since,
      // What becomes of the disk's lease on this node is none of a snapshot's business.
      mayRead: layer === 0 ? this.#mayDescribe(disk) : this.mayServe,
      startBytes,
      endBytes,
    });
  }

  /** Reads of a disk would be served now. */
  #mayDescribe(disk: number): boolean {
    const router = this.#routers.get(disk);
    return this.mayServe && (router === undefined || router.generation === 0 || router.isOpen);
  }

  /**
   * What this node's replica holds at a block of a disk; null: there is no such disk.
   *
   * @param chunk of the disk
   * @param block of the chunk
   * @param layer as of {@linkcode extentsOf}
   */
  blockOf(disk: number, chunk: number, block: number, layer = 0): BlockFound | null {
    const view = this.view.disk(disk);
    if (view === undefined) return null;
    const query = {
      view: this.view,
      store: this.store,
      disk: view,
      layer: layer === 0 ? view.entry.layers[0] : layer,
      mayRead: layer === 0 ? this.#mayDescribe(disk) : this.mayServe,
    };
    return findBlock(query, chunk, block);
  }

  /**
   * Begins to compare the replicas of disks; `checking.ts` says how. One at a time.
   *
   * @param done told once, from a later call, unless the check is cancelled
   * @returns null: one is under way, or there is no map yet that speaks level 2
   */
  check(options: CheckOptions, done: (report: CheckReport) => void): Check | null {
    if (this.#check !== null || this.#view === null || !isOn(this.#view.map, 2)) return null;
    const check = new Check(this, options, (report) => {
      this.#check = null;
      done(report);
    });
    this.#check = check;
    return check;
  }

  /** Ends the check that is under way; its `done` is not told. */
  cancelCheck(check: Check): void {
    check.cancel();
    if (this.#check === check) this.#check = null;
  }

  /**
   * The way to what a disk's snapshots hold: it needs no lease, and what becomes of the disk's lease on this node is none of its
   * business.
   */
  reader(disk: number): DiskRouter {
    let reader = this.#readers.get(disk);
    if (reader === undefined) {
      reader = new DiskRouter(this, disk, true);
      this.#readers.set(disk, reader);
    }
    return reader;
  }

  /** All routers that there are, readers as well. */
  #all(): readonly DiskRouter[] {
    return [...this.#routers.values(), ...this.#readers.values()];
  }

  /** All routers that can write. */
  routersInUse(): IterableIterator<DiskRouter> {
    return this.#routers.values();
  }

  /** This node has been given the disk's lease: brings the replicas in line, then lets requests through. */
  openDisk(disk: number, generation: number): void {
    const router = this.router(disk);
    router.begin(generation);
    this.#openings.get(disk)?.stop();
    const opening = new Opening(this, disk, generation, () => {
      this.#openings.delete(disk);
      if (router.generation !== generation) return;
      if (opening.settledChunks > 0) {
        this.log.info("replicas were brought in line after an unclean hand-over", {
          disk: this.view.disk(disk)?.entry.name,
          chunks: opening.settledChunks,
        });
      }
      this.#events.reconciled(disk, generation);
      router.open();
    });
    this.#openings.set(disk, opening);
    opening.begin();
  }

  /** The lease goes back: nothing is under way. */
  closeDisk(disk: number): void {
    this.#openings.get(disk)?.stop();
    this.#openings.delete(disk);
    this.#routers.get(disk)?.end();
  }

  /** The disk is not served here any more. */
  forgetDisk(disk: number): void {
    this.closeDisk(disk);
    this.#routers.delete(disk);
  }

  /** The disk's snapshots are not served here any more: what is still read of them fails. */
  forgetReader(disk: number): void {
    this.#readers.get(disk)?.forget();
    this.#readers.delete(disk);
  }

  // ------------------------------------------------------------------------------------ RouterHost

  /** Whether a map is in force. */
  get hasMap(): boolean {
    return this.#view !== null;
  }

  /** The map as this node knows it. Throws before there is one. */
  get view(): ClusterView {
    if (this.#view === null) throw new Error("data core: there is no map yet");
    return this.#view;
  }

  /** {@inheritDoc RouterHost.mayServe} */
  get mayServe(): boolean {
    return this.#nowMs < this.#serveUntilMs;
  }

  /** {@inheritDoc RouterHost.memberFailed} */
  memberFailed(node: number, errno: number): void {
    if (this.#failed.has(node)) return;
    this.#failed.set(node, this.view.node(node)?.incarnation ?? 0);
    this.#events.memberFailed(node, errno);
  }

  /** {@inheritDoc RouterHost.damaged} */
  damaged(layers: readonly number[], chunk: number, block: number, blockCount: number): void {
    this.repairer.report(layers, chunk, block, blockCount);
  }

  /** {@inheritDoc RouterHost.worked} */
  worked(bytes: number): void {
    this.#guestWork += REQUEST_BYTES + bytes;
  }

  /** {@inheritDoc RouterHost.drained} */
  drained(router: DiskRouter): void {
    this.#drainsToldMs = this.#nowMs;
    this.#events.snapshotDrained?.(router.diskId, router.drainedLayer, router.generation);
  }
  /** When it was told last that layers are drained: what is told may be lost on its way to the map. */
  #drainsToldMs = -Infinity;

  #tellDrained(nowMs: number): void {
    if (nowMs - this.#drainsToldMs < DRAINED_AGAIN_MS) return;
    for (const router of this.#routers.values()) {
      if (router.drainedLayer !== 0) this.drained(router);
    }
  }

  /** {@inheritDoc RouterHost.takeSlot} */
  takeSlot(): WriteSlot {
    // Made when it is needed for the first time and kept: never more than there are transfers that could need one.
    return this.#slots.pop() ?? new WriteSlot();
  }

  /** {@inheritDoc RouterHost.releaseSlot} */
  releaseSlot(slot: WriteSlot): void {
    slot.router = null;
    slot.operation = null;
    this.#slots.push(slot);
  }

  /** {@inheritDoc RouterHost.atEndOfTurn} */
  atEndOfTurn(router: DiskRouter): void {
    if (!this.#atEndOfTurn.includes(router)) this.#atEndOfTurn.push(router);
  }
  /** Routers that have something to give back. */
  readonly #atEndOfTurn: DiskRouter[] = [];

  // ---------------------------------------------------------------------------------------- links

  /** {@inheritDoc PeerListener.linkUp} */
  linkUp(link: number, node: number, isOutgoing: boolean, incarnation: number): void {
    if (isOutgoing) {
      this.peers.linkUp(link, node, incarnation);
      this.#events.linksChanged?.();
    } else this.replica.linkUp(link, node, incarnation);
  }

  /** {@inheritDoc PeerListener.linkDown} */
  linkDown(link: number): void {
    if (this.peers.isOurs(link)) this.#events.linksChanged?.();
    this.peers.linkDown(link);
    this.replica.linkDown(link);
  }

  /** {@inheritDoc PeerListener.linkReady} */
  linkReady(link: number): void {
    if (this.peers.isOurs(link)) this.peers.linkReady(link);
    else this.replica.linkReady(link);
  }

  /** {@inheritDoc PeerListener.received} */
  received(
    link: number,
    head: Uint8Array,
    headBytes: number,
    dataOffset: number,
    dataBytes: number,
  ): void {
    const isGood = this.peers.isOurs(link)
      ? this.peers.received(
        link,
        head,
        headBytes,
        dataOffset,
        dataBytes,
        this.#release,
      )
      : this.replica.received(link, head, headBytes, dataOffset, dataBytes);
    if (isGood) return;
    // What was left out must not be followed by what came behind it.
    this.log.warn("a peer sent a message that cannot be right: its connection ends", { link });
    this.#transport.drop(link);
  }

  // ----------------------------------------------------------------------------------------- time

  /**
   * Beginning of a turn of the loop: what it serves is judged by this time. A process that was stopped for a while so
   * finds out before it does anything.
   */
  advance(nowMs: number): void {
    this.#nowMs = nowMs;
    this.#sourcePace.advance(nowMs);
    // However short it was without the right to serve, whatever came back meanwhile waits to be told that it is there again.
    if (!this.mayServe) this.#didServe = false;
  }

  /** End of a turn of the loop: gives back what needed no work. */
  endTurn(): void {
    this.replica.endTurn();
    for (let count = this.#atEndOfTurn.length; count > 0; count--) {
      this.#atEndOfTurn.shift()!.endTurn();
    }
  }

  /**
   * Time passes; about every 10 ms while {@linkcode isBusy}, otherwise ten times a second.
   *
   * @param nowMs a monotonic clock, the one of {@linkcode renew}
   */
  tick(nowMs: number): void {
    this.advance(nowMs);
    this.wantsTick = false;
    // Also the first one.
    if (this.#mustRetryMap) {
      this.#mustRetryMap = false;
      this.#nextMap();
    }
    if (this.#view === null) return;
    this.#tellLoss(nowMs);
    this.#tellDrained(nowMs);
    this.joining.tick(nowMs);
    this.absorbing.tick(nowMs);
    this.flattener.tick(nowMs);
    this.repairer.tick();
    this.completer.tick();
    this.tidier.tick(nowMs);
    this.inspector.tick(nowMs);
    this.#check?.tick(nowMs);
    for (const router of this.#all()) router.tick();
    for (const opening of [...this.#openings.values()]) opening.tick();
    const silent: number[] = [];
    this.peers.tick(nowMs, (node, forMs) => {
      if (forMs >= UNREACHABLE_MS) silent.push(node);
    });
    for (const node of silent) {
      // Once: the network may have forgotten the connection, and only that a new one is made says that it has not.
      const link = this.unreachable.includes(node) ? -1 : this.peers.linkOf(node);
      if (link >= 0) this.#transport.drop(link);
    }
    // Whoever answers, but cannot do what it is asked, is waited for in vain, too.
    for (const node of this.#failed.keys()) {
      if (node !== this.view.self && !silent.includes(node)) silent.push(node);
    }
    silent.sort((a, b) => a - b);
    const isSame = silent.join() === this.unreachable.join();
    this.unreachable = silent;
    if (!isSame) this.#events.unreachable(silent);
  }

  /** The map must not go on taking this node to hold what a lost path had. */
  #tellLoss(nowMs: number): void {
    const owed = this.store.paths?.owed() ?? null;
    if (owed === null || nowMs - this.#lossToldMs < LOSS_AGAIN_MS) return;
    this.#lossToldMs = nowMs;
    this.#events.groupsLost?.(owed);
  }
  #lossToldMs = -Infinity;

  /** True while something is under way that time moves. */
  get isBusy(): boolean {
    return this.wantsTick || this.joining.isBusy || this.#openings.size > 0 ||
      this.absorbing.isBusy || this.flattener.isBusy || this.inspector.isBusy ||
      this.completer.waiting > 0 || this.#check !== null;
  }

  /** What there is to know. */
  get status(): DataCoreStatus {
    const waiting: { disk: number; reason: string }[] = [];
    for (const router of this.#all()) {
      const reason = router.waitingReason;
      if (reason !== null) waiting.push({ disk: router.diskId, reason });
    }
    return {
      epoch: this.#view?.epoch ?? 0,
      mayServe: this.mayServe,
      joining: this.joining.progress,
      flattening: this.flattener.progress,
      repaired: this.repairer.repaired,
      replica: { ...this.replica.counters },
      waiting,
    };
  }
}
