/**
 * A disk's sockets, the sessions on them, and whose turn it is.
 *
 * A snapshot has one socket, `NAME@SNAPSHOT.sock`, which only reads and needs no lease. A disk has two: `NAME.sock` reads and writes and needs the disk's lease while its rings run;
 * `ro/NAME.sock` only reads and needs none. Any number of front ends may connect. Of those that write, one at a time holds the
 * lease; the others wait in order of arrival, their guests paused. That is also how QEMU hands a disk over in a live migration on
 * one host: the destination waits until the source has stopped its rings.
 *
 * Invariants:
 * - At most one session holds the lease, and none before this node has it, with a generation that no other node ever had.
 * - A lease goes on only when its holder has nothing in flight.
 * - Nothing calls back into a session from inside one of its calls to the host: grants wait for the end of the turn.
 *
 * @module
 */
import { BlockDevice } from "./blk/device.ts";
import type { BlockTarget } from "./blk/target.ts";
import type { DiskStatus, SessionStatus } from "./http/backend.ts";
import type { DiskEntry, SnapshotEntry } from "./map/map.ts";
import { diskSockets, snapshotSocket } from "./map/names.ts";
import type { EventFdWatcher } from "./platform/linux/eventfd.ts";
import { closeFd, libc, signalEventFd } from "./platform/linux/libc.ts";
import { isSealed, type LinuxMemory } from "./platform/linux/memory.ts";
import type { Connection, SocketWatcher } from "./platform/linux/socket.ts";
import { sendWithFds } from "./platform/linux/socket.ts";
import type { Log } from "./platform/platform.ts";
import type { MappedPiece, VhostHost } from "./vhost/host.ts";
import { type GrantedLease, VhostSession } from "./vhost/session.ts";
import { ProgressWatch } from "./volume/progress_watch.ts";
import type { Throttle, ThrottleWaiter } from "./volume/throttle.ts";
import { ReadOnlyVolume, type Volume } from "./volume/volume.ts";

/** Front ends on one socket: one serves a guest, one its migration; the rest is for tools. Readers take no place of writers'. */
const SESSIONS_MAX = 32;

/**
 * How long a front end's rings have run when it is told again that the size has changed, if it has not asked for it since, in
 * milliseconds. The size may have changed while they stood still, or while the agent was away, and QEMU takes no notice of that
 * then: it asks when it starts, and when it is told while its rings run. Not at once: told while it waits for an answer to what
 * starts them, it asks in between, and takes one answer for the other.
 */
const TELL_SIZE_MS = 1000;

/**
 * How long what a front end has left under way may take to come back after it has gone, in milliseconds: longer than a disk takes,
 * and longer than it takes until writes do not wait any more for a host that has died, since the disk would have to be opened
 * and brought in line then before the next snapshot of it, for nothing.
 * What then still waits, for space or for copies, is given up: it was never acknowledged, and a front end that comes back
 * asks for it again. Otherwise nobody could use the disk until there is space, not even to make some by discarding.
 */
const LEFT_BEHIND_MS = 15_000;

/** What a disk server needs of the worker around it. */
export interface DiskServerHost {
  readonly memory: LinuxMemory;
  readonly eventFds: EventFdWatcher;
  readonly sockets: SocketWatcher;
  readonly log: Log;
  readonly runDir: string;
  /** Milliseconds since 1970. */
  nowMs(): number;
  /** Milliseconds since some moment; never goes back. */
  monotonicMs(): number;
  /** Somebody waits for a throttle: `resume()` is called in time, until nobody does. */
  throttled(throttle: Throttle): void;
  /** Runs `session.turn()` at the end of this turn. */
  schedule(session: VhostSession): void;
  /** See `VhostHost.isPolling`. */
  readonly isPolling: boolean;
  /** See `VhostHost.polled`. */
  polled(session: VhostSession): void;
  /** Runs `work` at the end of this turn. */
  later(work: () => void): void;
  /** Asks the main thread for the disk's lease; `DiskServer.leaseGranted` follows, some time. */
  wantLease(disk: number): void;
  /**
   * No session wants the lease any more, or the next one needs another one, and nothing is under way.
   *
   * @param isUnclean requests were given up: replicas may differ
   * @param isUnwritten nothing was written under it
   */
  releaseLease(disk: number, isUnclean: boolean, isUnwritten: boolean): void;
  /** What is under way of a disk fails, as soon as its buffers are free; with `isSparing` not for those that only read. */
  abandonRequests(disk: number, isSparing: boolean): void;
}

/** One front end. */
class FrontEndSession implements VhostHost, ThrottleWaiter {
  readonly session: VhostSession;
  readonly connectedMs: number;
  brokenReason: string | null = null;
  isClosed = false;
  /** When it is told the size again, if it has not asked for it; null: there is no need. */
  #tellSizeMs: number | null = null;
  /** It has gone, and what it has left under way is given up then; null: it has not, or that is done. */
  #giveUpMs: number | null = null;
  readonly #kicks: (number | undefined)[] = [];

  constructor(
    readonly server: DiskServer,
    readonly connection: Connection,
    readonly readOnly: boolean,
    target: BlockTarget,
  ) {
    const { memory } = server.host;
    this.connectedMs = server.host.nowMs();
    this.session = new VhostSession({
      host: this,
      windows: memory.windows,
      device: new BlockDevice(target),
    });
    connection.listener = {
      received: (bytes, fds) => {
        for (const fd of fds) server.noteDescriptor(fd);
        this.session.receive(bytes, fds);
      },
      disconnected: (reason) => {
        server.log("info", "front end disconnected", this, { reason });
        this.#leaves();
        this.session.disconnected();
      },
    };
  }

  /** It is gone, or sent away: what it leaves under way keeps others from the disk for so long. */
  #leaves(): void {
    this.#giveUpMs = this.server.host.monotonicMs() + LEFT_BEHIND_MS;
  }

  /** Ends the connection, as if the front end had gone. */
  cutOff(): void {
    this.connection.close();
    this.session.disconnected();
  }

  map(fd: number, fileOffset: number, lengthBytes: number): readonly MappedPiece[] | number {
    if (!isSealed(fd)) this.#noteUnsealed();
    return this.server.host.memory.mapShared(fd, fileOffset, lengthBytes);
  }

  unmap(pieces: readonly MappedPiece[]): void {
    this.server.host.memory.unmap(pieces);
  }

  createShared(lengthBytes: number): number {
    try {
      return this.server.host.memory.createShared("kelpie-inflight", lengthBytes);
    } catch {
      return -12;
    }
  }

  closeFd(fd: number): void {
    closeFd(fd);
  }

  watchKick(session: VhostSession, queueIndex: number, fd: number): void {
    const watch = this.server.host.eventFds.watch(fd, {
      eventFdSignalled: () => session.kicked(queueIndex),
    });
    if (watch < 0) {
      closeFd(fd);
      this.server.log("warn", "too many queues on this host: a queue will not run", this, {
        queue: queueIndex,
      });
      return;
    }
    this.#kicks[queueIndex] = watch;
  }

  unwatchKick(_session: VhostSession, queueIndex: number): void {
    const watch = this.#kicks[queueIndex];
    this.#kicks[queueIndex] = undefined;
    if (watch !== undefined) this.server.host.eventFds.unwatch(watch);
  }

  signal(fd: number): void {
    this.server.signal(fd);
  }

  send(_session: VhostSession, bytes: Uint8Array<ArrayBuffer>, fds: readonly number[]): void {
    this.connection.send(bytes, fds);
    for (const fd of fds) closeFd(fd);
  }

  sendBackendRequest(_session: VhostSession, fd: number, bytes: Uint8Array<ArrayBuffer>): void {
    sendWithFds(fd, bytes);
  }

  schedule(session: VhostSession): void {
    this.server.host.schedule(session);
  }

  get isPolling(): boolean {
    return this.server.host.isPolling;
  }

  polled(session: VhostSession): void {
    this.server.host.polled(session);
  }

  admit(_session: VhostSession): boolean {
    const { host, volume } = this.server;
    if (volume.admission.admit(this, host.monotonicMs())) return true;
    host.throttled(volume.admission);
    return false;
  }

  resume(): void {
    this.session.resume();
  }

  acquire(_session: VhostSession): void {
    this.server.acquire(this);
  }

  /** The rings may run. */
  granted(lease: GrantedLease = {}): void {
    this.#tellSizeMs = this.server.host.monotonicMs() + TELL_SIZE_MS;
    this.session.leaseGranted(lease);
  }

  tick(nowMs: number): void {
    if (this.#giveUpMs !== null && nowMs >= this.#giveUpMs) {
      this.#giveUpMs = null;
      this.server.giveUp(this);
    }
    if (this.#tellSizeMs === null || nowMs < this.#tellSizeMs) return;
    this.#tellSizeMs = null;
    if (!this.session.isConfigRead) this.session.resized();
  }

  release(_session: VhostSession, isUnclean: boolean): void {
    this.#tellSizeMs = null;
    this.server.release(this, isUnclean);
  }

  broken(_session: VhostSession, queueIndex: number, reason: string): void {
    this.brokenReason = reason;
    this.server.log("warn", "the guest's driver broke the rules; its device stops", this, {
      queue: queueIndex,
      reason,
    });
  }

  refused(_session: VhostSession, reason: string): void {
    this.server.log("warn", "refused a front end's request", this, { reason });
  }

  noted(_session: VhostSession, what: string): void {
    this.server.log("warn", what, this, {});
  }

  hangUp(_session: VhostSession, reason: string): void {
    this.server.log("warn", "hung up on a front end", this, { reason });
    this.#leaves();
    this.connection.close();
  }

  closed(_session: VhostSession): void {
    this.isClosed = true;
    this.connection.close();
    this.server.remove(this);
  }

  #isUnsealedNoted = false;
  /** Says once that the front end could truncate its memory under us. */
  #noteUnsealed(): void {
    if (this.#isUnsealedNoted) return;
    this.#isUnsealedNoted = true;
    this.server.log("debug", "guest memory is not sealed; use memory-backend-memfd", this, {});
  }

  get status(): SessionStatus {
    const description = this.session.description;
    return {
      pid: this.connection.peerPid,
      command: "",
      readOnly: this.readOnly,
      active: description.ringsRunning > 0 && !this.server.isWaiting(this),
      waitingForLease: this.server.isWaiting(this),
      queues: description.ringsRunning,
      inFlight: description.inFlight,
      connectedMs: this.connectedMs,
      broken: description.isBroken ? this.brokenReason ?? "broken" : null,
    };
  }
}

/** Serves one disk, or one snapshot of it. */
export class DiskServer {
  disk: DiskEntry;
  readonly host: DiskServerHost;
  readonly volume: Volume;
  readonly progress: ProgressWatch;
  readonly #readOnlyView: ReadOnlyVolume;
  readonly #sessions = new Set<FrontEndSession>();
  /** Holds the lease, or is about to: the generation is on its way. */
  #holder: FrontEndSession | null = null;
  #isGranted = false;
  /** Requests under the lease were given up. */
  #isUnclean = false;
  /** When the holder came to be next; for the log. */
  #nextSinceMs = 0;
  readonly #waiting: FrontEndSession[] = [];
  /** Why no front end may connect; null: they may. */
  #closedReason: string | null = null;
  /** What the agent itself wants to do with the lease, and whether it is about that. */
  #work: (() => void) | null = null;
  #isWorking = false;
  /** Processes whose guests went on while another host had the disk: never again. */
  readonly #fenced = new Set<number>();
  #stopListening: (() => void)[] = [];
  #whenEmpty: (() => void) | null = null;
  #snapshot: SnapshotEntry | null;

  /**
   * Throws when the sockets cannot be made.
   *
   * @param snapshot of the disk, to be served in its place: `volume` is what it holds
   */
  constructor(
    host: DiskServerHost,
    disk: DiskEntry,
    volume: Volume,
    snapshot: SnapshotEntry | null = null,
  ) {
    this.host = host;
    this.disk = disk;
    this.volume = volume;
    this.#snapshot = snapshot;
    this.progress = new ProgressWatch(volume);
    this.#configure(disk);
    this.#readOnlyView = new ReadOnlyVolume(volume);
    this.#listen();
  }

  /** What is served, for people. */
  get name(): string {
    return this.#snapshot === null ? this.disk.name : `${this.disk.name}@${this.#snapshot.name}`;
  }

  #listen(): void {
    if (this.#snapshot !== null) {
      const path = snapshotSocket(this.host.runDir, this.disk.name, this.#snapshot.name);
      const stop = this.host.sockets.listen(path, (connection) => this.#accept(connection, true));
      this.#stopListening = [stop];
      return;
    }
    const paths = diskSockets(this.host.runDir, this.disk.name);
    const stops: (() => void)[] = [];
    try {
      stops.push(
        this.host.sockets.listen(
          paths.readWrite,
          (connection) => this.#accept(connection, this.disk.readOnly),
        ),
      );
      stops.push(
        this.host.sockets.listen(paths.readOnly, (connection) => this.#accept(connection, true)),
      );
    } catch (error) {
      for (const stop of stops) stop();
      throw error;
    }
    this.#stopListening = stops;
  }

  #unlisten(): void {
    for (const stop of this.#stopListening) stop();
    this.#stopListening = [];
  }

  #accept(connection: Connection, readOnly: boolean): void {
    const isFenced = !readOnly && this.#fenced.has(connection.peerPid);
    if (this.#closedReason !== null || isFenced) {
      this.host.log.warn("a front end was sent away", {
        disk: this.name,
        pid: connection.peerPid,
        reason: this.#closedReason ?? "another host has opened the disk since: end this guest",
      });
      connection.close();
      return;
    }
    const alike = [...this.#sessions].filter((session) => session.readOnly === readOnly);
    if (alike.length >= SESSIONS_MAX) {
      this.host.log.warn("too many front ends on one disk", {
        disk: this.name,
        pid: connection.peerPid,
        readOnly,
        limit: SESSIONS_MAX,
      });
      connection.close();
      return;
    }
    const target = readOnly ? this.#readOnlyView : this.volume;
    const session = new FrontEndSession(this, connection, readOnly, target);
    this.#sessions.add(session);
    this.log("info", "front end connected", session, {});
  }

  /** Logs with the disk and the front end named. */
  log(
    level: "debug" | "info" | "warn" | "error",
    message: string,
    session: FrontEndSession,
    fields: Record<string, unknown>,
  ): void {
    this.host.log[level](message, {
      disk: this.name,
      pid: session.connection.peerPid,
      readOnly: session.readOnly,
      ...fields,
    });
  }

  // ------------------------------------------------------------------------------------- lease

  /** A session's rings want to run. */
  acquire(session: FrontEndSession): void {
    if (session.readOnly) {
      this.host.later(() => {
        if (!session.isClosed) session.granted();
      });
      return;
    }
    this.#waiting.push(session);
    this.#next();
  }

  /**
   * A session's rings stand still, or it no longer waits.
   *
   * @param isLeftUnknown see {@linkcode VhostHost.release}
   */
  release(session: FrontEndSession, isLeftUnknown = false): void {
    const at = this.#waiting.indexOf(session);
    if (at >= 0) this.#waiting.splice(at, 1);
    if (this.#holder !== session) return;
    if (this.#isGranted) this.#noteWriter(session.connection.peerPid);
    this.#holder = null;
    this.#isGranted = false;
    const isUnclean = this.#isUnclean || isLeftUnknown;
    this.#isUnclean = false;
    // Under the same lease nobody would look whether replicas are equal, and a guest that comes back could not be told from which
    // moment on others have written.
    const mustEnd = isUnclean || session.session.wasLeftRunning || this.#waiting.length === 0;
    if (mustEnd) this.#releaseLease(isUnclean);
    this.#next();
  }

  #releaseLease(isUnclean: boolean): void {
    const { sequence } = this.volume;
    this.host.releaseLease(this.disk.id, isUnclean, sequence === this.#sequenceBefore);
    this.#sequenceBefore = sequence;
  }
  /** Number of the volume's last write when the last lease ended. */
  #sequenceBefore = 0;

  /** What a front end that has gone has under way under the lease is to fail. */
  giveUp(session: FrontEndSession): void {
    if (session.isClosed || this.#holder !== session || !this.#isGranted) return;
    this.log("warn", "gave up what a front end has left under way", session, {});
    this.#isUnclean = true;
    this.host.abandonRequests(this.disk.id, true);
  }

  #next(): void {
    if (this.#holder !== null || this.#waiting.length === 0) return;
    this.#holder = this.#waiting.shift()!;
    this.#isGranted = false;
    this.#nextSinceMs = this.host.nowMs();
    this.host.wantLease(this.disk.id);
  }

  /** Whether anything here uses the lease, or waits for it. */
  get wantsLease(): boolean {
    return this.#holder !== null || this.#isWorking;
  }

  /**
   * This node has the lease: with a higher generation than before when it was lost and got back under a guest.
   *
   * @param lease see `LeasesHost.granted` of `control/leases.ts`
   */
  leaseGranted(lease: Required<GrantedLease>): void {
    const { generation, isUnclean } = lease;
    this.volume.generation = generation;
    const work = this.#work;
    this.#work = null;
    work?.();
    if (this.#holder === null) return;
    if (this.#isGranted) return this.#holder.session.leaseRenewed(generation);
    this.#isGranted = true;
    const waitedMs = this.host.nowMs() - this.#nextSinceMs;
    this.log("debug", "lease granted", this.#holder, { generation, isUnclean, waitedMs });
    const byOthers = this.#writtenByOthers(this.#holder.connection.peerPid);
    this.#holder.granted({ ...lease, byOthers: Math.max(lease.byOthers, byOthers) });
  }

  /**
   * Whoever has had the lease since this was called last has done what was written since.
   *
   * @param pid of the process; 0: the agent itself
   */
  #noteWriter(pid: number): void {
    const { sequence, generation } = this.volume;
    if (sequence === this.#sequenceNoted) return;
    this.#sequenceNoted = sequence;
    this.#lastWriter = { pid, generation };
  }

  /**
   * Guests that were left running, and wait for somebody who has written since, must not go on. They are cut off at once: another start of
   * this agent would not know who has written here.
   */
  #cutOffLeftBehind(): void {
    for (const waiting of [...this.#waiting]) {
      const { session, connection } = waiting;
      const byOthers = this.#writtenByOthers(connection.peerPid);
      if (session.leftGeneration === 0 || session.leftGeneration >= byOthers) continue;
      this.log("error", "others have written to its disk since: cut off for good", waiting, {});
      session.fence();
      waiting.cutOff();
    }
  }

  /** The newest generation under which other processes have written here since this agent has started; 0: none. */
  #writtenByOthers(pid: number): number {
    const writers = [this.#lastWriter];
    if (this.#isGranted && this.volume.sequence !== this.#sequenceNoted) {
      const { generation } = this.volume;
      writers.push({ pid: this.#holder!.connection.peerPid, generation });
    }
    const others = writers.filter((writer) => writer.pid !== pid);
    return Math.max(0, ...others.map(({ generation }) => generation));
  }

  /** Which process has written here last, and under which lease, since this agent has started; 0: the agent itself, or none. */
  #lastWriter = { pid: 0, generation: 0 };
  /** Number of the last write of which that is noted. */
  #sequenceNoted = 0;

  /** Another node has had the disk, or may have it: whoever writes here is cut off, and its process is not let in again. */
  fence(): void {
    const holder = this.#holder;
    if (holder === null) return;
    this.log(
      "error",
      "another host has opened the disk, or may: this guest is cut off for good",
      holder,
      {},
    );
    this.#fenced.add(holder.connection.peerPid);
    holder.session.fence();
    holder.cutOff();
  }

  /**
   * Has the agent itself work on the disk, with its lease and without front ends: those that come meanwhile are sent away.
   *
   * @param reason what they are told in the log
   * @param work called once this node has the lease; calls its argument when it is done
   * @returns what gives it up as long as `work` was not called; null when front ends are connected, or something works already
   */
  workAlone(reason: string, work: (done: () => void) => void): (() => void) | null {
    if (this.#sessions.size > 0 || this.#closedReason !== null) return null;
    this.#closedReason = reason;
    this.#isWorking = true;
    const done = () => {
      this.#work = null;
      this.#isWorking = false;
      this.#noteWriter(0);
      this.#closedReason = null;
      const isUnclean = this.#isUnclean;
      this.#isUnclean = false;
      this.#releaseLease(isUnclean);
      this.#lookWhetherEmpty();
    };
    this.#work = () => work(done);
    this.host.wantLease(this.disk.id);
    return done;
  }

  /** True for a session that waits for another to finish. */
  isWaiting(session: FrontEndSession): boolean {
    return this.#waiting.includes(session) || (this.#holder === session && !this.#isGranted);
  }

  // ------------------------------------------------------------------------------- descriptors

  /** Descriptors that may block when written to; see {@linkcode signal}. */
  static readonly #blocking = new Set<number>();

  /** A descriptor came in: remember whether writing to it could block us. */
  noteDescriptor(fd: number): void {
    const F_GETFL = 3, O_NONBLOCK = 0o4000;
    const flags = libc.fcntl(fd, F_GETFL, 0);
    if (flags >= 0 && (flags & O_NONBLOCK) === 0) DiskServer.#blocking.add(fd);
    else DiskServer.#blocking.delete(fd);
  }

  /**
   * Signals a call eventfd. One that is not O_NONBLOCK (setting that would change it for the front end too) could block us for
   * ever when its counter is full: then the write is left out, since a full counter already wakes its reader.
   */
  signal(fd: number): void {
    if (DiskServer.#blocking.size > 0 && DiskServer.#blocking.has(fd) && !isWritable(fd)) return;
    signalEventFd(fd);
  }

  // ---------------------------------------------------------------------------- administration

  /**
   * The disk's entry changed. Throws when a new name's sockets cannot be made; then nothing has changed.
   *
   * @param snapshot the entry of the snapshot that is served, where one is
   */
  update(disk: DiskEntry, snapshot: SnapshotEntry | null = null): void {
    const old = this.disk;
    const oldName = this.name;
    const oldSnapshot = this.#snapshot;
    this.disk = disk;
    this.#snapshot = snapshot;
    if (this.name !== oldName) {
      const stops = this.#stopListening;
      try {
        this.#listen();
      } catch (error) {
        this.disk = old;
        this.#snapshot = oldSnapshot;
        this.#stopListening = stops;
        throw error;
      }
      for (const stop of stops) stop();
    }
    // Snapshots are read under the limits of their disk.
    this.#configure(disk);
    if (snapshot !== null) return;
    this.volume.layers = disk.layers;
    if (disk.sizeBytes !== old.sizeBytes) {
      this.volume.sizeBytes = disk.sizeBytes;
      for (const session of this.#sessions) session.session.resized();
    }
  }

  /** Called a few times a second, with a monotonic clock in milliseconds. */
  tick(nowMs: number): void {
    this.progress.look(nowMs);
    this.#cutOffLeftBehind();
    this.volume.timeSome();
    for (const session of this.#sessions) session.tick(nowMs);
  }

  /** What of the entry the volume goes by at any time. */
  #configure({ detectZeroes, limits }: DiskEntry): void {
    this.volume.detectZeroes = detectZeroes;
    this.volume.admission.setLimits(limits, this.host.monotonicMs());
  }

  /** Ends all sessions in good order; `done` follows when the last is gone, and what the agent itself does with the disk is over. */
  closeSessions(done: () => void): void {
    this.#whenNoneIsLeft(done);
    for (const session of [...this.#sessions]) session.session.drainAndClose();
  }

  /** Cuts all front ends off. What they have in flight is theirs to ask for again. */
  abandonSessions(): void {
    for (const session of [...this.#sessions]) session.cutOff();
  }

  /**
   * Cuts all front ends off and gives up what they, and the agent itself, have in flight; `done` follows when nothing of it is under
   * way any more.
   */
  dropSessions(done: () => void): void {
    this.#whenNoneIsLeft(done);
    this.abandonSessions();
    if (!this.#isUsed) return;
    this.#isUnclean = this.#isGranted || this.#isWorking;
    this.host.abandonRequests(this.disk.id, false);
  }

  #whenNoneIsLeft(done: () => void): void {
    if (!this.#isUsed) return done();
    const before = this.#whenEmpty;
    this.#whenEmpty = () => {
      before?.();
      done();
    };
  }

  /** Stops listening and ends all sessions. */
  stop(done: () => void): void {
    this.#unlisten();
    this.closeSessions(done);
  }

  /** A session is over. */
  remove(session: FrontEndSession): void {
    this.release(session);
    this.volume.admission.leave(session, this.host.monotonicMs());
    this.#sessions.delete(session);
    this.#lookWhetherEmpty();
  }

  get #isUsed(): boolean {
    return this.#sessions.size > 0 || this.#isWorking;
  }

  #lookWhetherEmpty(): void {
    if (this.#isUsed) return;
    const done = this.#whenEmpty;
    this.#whenEmpty = null;
    if (done !== null) this.host.later(done);
  }

  /** What there is to know, but for the bytes that only the store knows. */
  get status(): Omit<DiskStatus, "allocatedBytes"> {
    const { counters, admission } = this.volume;
    return {
      sessions: [...this.#sessions].map((session) => session.status),
      counters: {
        ...counters,
        heldRequests: admission.heldRequests,
        heldMs: Math.round(admission.heldMs(this.host.monotonicMs())),
      },
    };
  }
}

const pollEntry = new Int32Array(2);
const pollBytes = new Uint8Array(pollEntry.buffer);
const POLLOUT = 4;

function isWritable(fd: number): boolean {
  pollEntry[0] = fd;
  pollEntry[1] = POLLOUT;
  return libc.poll(pollBytes, 1n, 0) > 0;
}
