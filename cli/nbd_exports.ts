/**
 * Which exports `kelpie nbd` has, and the sessions with their disks.
 *
 *     name ─▶ AdminClient: is it there, may it be written to ─▶ FrontEnd on NAME.sock or ro/NAME.sock ─▶ ExportQueue
 *
 * Invariants:
 * - One session per export, whoever uses it: opened for the first client, closed (and the lease given back) behind the last.
 * - What a client asks for is never part of a path before it was checked as a name.
 * - An agent that is away is waited for, however long: it goes on with what is under way. A disk that is gone, or that the agent does not let
 *   this process have any more, ends its clients' connections.
 *
 * @module
 */
import { type AdminClient, AdminError } from "../agent/admin_client.ts";
import { BackEndError } from "../agent/frontend/error.ts";
import { FrontEnd } from "../agent/frontend/front_end.ts";
import {
  FEATURE_DISCARD,
  FEATURE_WRITE_ZEROES,
  SECTOR_BYTES,
} from "../agent/frontend/virtio_blk.ts";
import type { DriverQueue } from "../agent/frontend/driver_queue.ts";
import type { DiskDocument } from "../agent/http/documents.ts";
import { checkDiskName, diskSockets } from "../agent/map/names.ts";
import { ExportQueue } from "../agent/nbd/export.ts";
import { type Extent, ExtentCache } from "../agent/nbd/extents.ts";
import type { ExportInfo, ExportRefusal } from "../agent/nbd/handshake.ts";
import { Answer } from "../agent/nbd/protocol.ts";
import type { EventFdWatcher } from "../agent/platform/linux/eventfd.ts";
import { processName } from "./context.ts";

/** Pieces under way per export, and bytes of each: 32 MiB of memory, of which only what is used is ever touched. */
const SLOTS = 128, PIECE_BYTES = 256 * 1024;

/** Longest discard or write-zeroes where the device names no limit. */
const RANGE_BYTES_MAX = 1024 * 1024 * 1024;

/** Time between two attempts to reach an agent that is away. */
const RETRY_MS = 200;

/** An agent that answers, and does not let this process have a disk for so long, means it. */
const REFUSED_MS = 10_000;

/** A wait that lets the loop go on. */
type Sleep = (milliseconds: number) => Promise<void>;

/** How exports are looked for. */
export interface ExportsOptions {
  readonly client: AdminClient;
  readonly runDir: string;
  readonly eventFds: EventFdWatcher;
  /** Nothing may be written. */
  readonly isReadOnly: boolean;
  /** Only these; empty: all. */
  readonly names: readonly string[];
  readonly sleep: Sleep;
  /** Something that people should know. */
  readonly warn: (message: string) => void;
}

/** An export in use by one more client. */
export interface Acquired {
  readonly session: Session;
  readonly info: ExportInfo;
}

/** All exports of a server. */
export class Exports {
  readonly #options: ExportsOptions;
  readonly #sessions = new Map<string, Session>();
  /** In use, for the loop. */
  readonly open: Session[] = [];

  constructor(options: ExportsOptions) {
    this.#options = options;
  }

  /** Names of all exports, sorted; null: the agent does not answer. */
  async list(): Promise<readonly string[] | null> {
    const { client, names } = this.#options;
    if (names.length > 0) return names;
    try {
      const disks = await client.disks();
      return [...disks.map(({ name }) => name), ...this.#snapshots()].sort();
    } catch {
      return null;
    }
  }

  /** Snapshots have a socket, for reading, of their own name. */
  #snapshots(): string[] {
    try {
      const entries = [...Deno.readDirSync(`${this.#options.runDir}/ro`)];
      return entries.map(({ name }) => name.replace(/\.sock$/, "")).filter((name) =>
        parseName(name)?.isSnapshot === true
      );
    } catch {
      return [];
    }
  }

  /** What can be said of an export without opening it. */
  async describe(name: string): Promise<ExportInfo | ExportRefusal> {
    const found = await this.#find(name);
    if ("answer" in found) return found;
    if (found.sizeBytes !== null) return infoOf(found, found.sizeBytes);
    // Only its device knows how large a snapshot is, which never changes.
    const open = this.#sessions.get(found.name);
    if (open?.isUsable) return open.info;
    const acquired = await this.acquire(name);
    if ("answer" in acquired) return acquired;
    await this.release(acquired.session);
    return acquired.info;
  }

  /** Opens an export for one more client, who releases it. */
  async acquire(name: string): Promise<Acquired | ExportRefusal> {
    for (;;) {
      const found = await this.#find(name);
      if ("answer" in found) return found;
      let session = this.#sessions.get(found.name);
      if (session?.isClosing || session?.failure) {
        await session.closed;
        continue;
      }
      if (session === undefined) {
        const refusal = found.isWritable ? await this.#refuseWriting(found.document!) : null;
        if (refusal !== null) return refusal;
        if (this.#sessions.has(found.name)) continue; // another client was first
        session = new Session(this, found, this.#options);
        this.#sessions.set(found.name, session);
      }
      // From now on it stays open for this client.
      session.users++;
      try {
        await session.opened;
      } catch (error) {
        session.users--;
        if (this.#sessions.get(found.name) === session) this.#sessions.delete(found.name);
        return { answer: Answer.Platform, message: `${found.name}: ${messageOf(error)}` };
      }
      await session.refresh();
      return { session, info: session.info };
    }
  }

  /** A client is done with it. Resolves when the disk is closed, if it was the last. */
  async release(session: Session): Promise<void> {
    if (--session.users === 0) await session.close();
  }

  /** A session has ended. */
  ended(session: Session): void {
    if (this.#sessions.get(session.name) === session) this.#sessions.delete(session.name);
    const at = this.open.indexOf(session);
    if (at >= 0) this.open.splice(at, 1);
  }

  /** Closes all of them. */
  async close(): Promise<void> {
    await Promise.all([...this.#sessions.values()].map((session) => session.close()));
  }

  async #find(asked: string): Promise<Found | ExportRefusal> {
    const { names, client, runDir, isReadOnly } = this.#options;
    const name = asked === "" && names.length === 1 ? names[0] : asked;
    if (name === "") {
      return unknown("no export was named: ask for a disk by its name, nbd://HOST/DISK");
    }
    const shown = JSON.stringify(name.slice(0, 80));
    const parsed = parseName(name);
    if (parsed === null) return unknown(`${shown} cannot be the name of a disk or snapshot`);
    if (names.length > 0 && !names.includes(name)) return unknown(`no export is called ${shown}`);
    try {
      const document = await client.disk(parsed.disk);
      if (!parsed.isSnapshot) {
        const isWritable = !isReadOnly && !document.readOnly;
        return { name, document, isWritable, sizeBytes: document.sizeBytes };
      }
    } catch (error) {
      if (!(error instanceof AdminError)) throw error;
      if (error.code === "missing" || error.code === "invalid") {
        return unknown(`there is no disk ${JSON.stringify(parsed.disk)}`);
      }
      return { answer: Answer.Platform, message: error.message };
    }
    try {
      await Deno.stat(diskSockets(runDir, name).readOnly);
    } catch {
      return unknown(`there is no snapshot ${shown}`);
    }
    return { name, document: null, isWritable: false, sizeBytes: null };
  }

  /** Two writers would ruin each other's data, and the second would only wait for ever. */
  async #refuseWriting(disk: DiskDocument): Promise<ExportRefusal | null> {
    const { name, sessions, openOn } = disk;
    const others = sessions.filter(({ readOnly, pid }) => !readOnly && pid !== Deno.pid);
    const hint = `a server with --read-only gives it out beside that`;
    if (others.length > 0) {
      const users = others.map(processName).join(" and ");
      return { answer: Answer.Policy, message: `disk ${name} is in use by ${users}; ${hint}` };
    }
    if (openOn === null) return null;
    // Here, and by nobody: it is being given back.
    const nodes = await this.#options.client.nodes().catch(() => []);
    if (nodes.some((node) => node.isSelf && node.name === openOn)) return null;
    return { answer: Answer.Policy, message: `disk ${name} is open on ${openOn}; ${hint}` };
  }
}

/** An export that is there. */
interface Found {
  readonly name: string;
  /** null: a snapshot. */
  readonly document: DiskDocument | null;
  readonly isWritable: boolean;
  /** null: not known before it is opened. */
  readonly sizeBytes: number | null;
}

/** The session with a disk that all clients of an export share. */
export class Session {
  readonly name: string;
  /** Settled when it can be used, or cannot. */
  readonly opened: Promise<void>;
  /** Settled when it is over. */
  readonly closed: Promise<void>;
  readonly extents = new ExtentCache();
  users = 0;
  isClosing = false;
  /** Why it is lost, and its clients have to go. */
  failure: string | null = null;
  info!: ExportInfo;
  queue!: ExportQueue;
  readonly #exports: Exports;
  readonly #found: Found;
  readonly #options: ExportsOptions;
  readonly #closed = Promise.withResolvers<void>();
  #frontEnd!: FrontEnd;
  #driver!: DriverQueue;
  #watch = -1;
  #isConnected = false;
  #refreshing: Promise<void> | null = null;

  constructor(exports: Exports, found: Found, options: ExportsOptions) {
    this.name = found.name;
    this.#exports = exports;
    this.#found = found;
    this.#options = options;
    this.closed = this.#closed.promise;
    this.opened = this.#open();
  }

  async #open(): Promise<void> {
    const sockets = diskSockets(this.#options.runDir, this.name);
    this.#frontEnd = await FrontEnd.connect({
      socket: this.#found.isWritable ? sockets.readWrite : sockets.readOnly,
      depth: SLOTS,
      bufferBytes: PIECE_BYTES,
      inflight: true,
    });
    const frontEnd = this.#frontEnd;
    this.#driver = frontEnd.queues[0];
    const sectorsMax = Math.min(
      frontEnd.config.discardSectorsMax || Infinity,
      frontEnd.config.writeZeroesSectorsMax || Infinity,
      RANGE_BYTES_MAX / SECTOR_BYTES,
    );
    this.queue = new ExportQueue({
      port: this.#driver,
      bytes: frontEnd.memory.bytes,
      rangeBytes: sectorsMax * SECTOR_BYTES,
    });
    this.info = this.#describe();
    this.#watch = this.#options.eventFds.watch(frontEnd.duplicateCallFd(), {
      eventFdSignalled() {}, // what it is about is looked at each turn
    });
    this.#isConnected = true;
    this.#exports.open.push(this);
  }

  #describe(): ExportInfo {
    const frontEnd = this.#frontEnd;
    const isReadOnly = !this.#found.isWritable || frontEnd.isReadOnly;
    return {
      name: this.name,
      description: descriptionOf(this.#found),
      sizeBytes: frontEnd.capacityBytes,
      isReadOnly,
      canTrim: !isReadOnly && frontEnd.has(FEATURE_DISCARD),
      canZero: !isReadOnly && frontEnd.has(FEATURE_WRITE_ZEROES),
    };
  }

  /** Asks how large the disk is by now: it may have been resized. One question at a time goes over the socket. */
  refresh(): Promise<void> {
    this.#refreshing ??= this.#refresh().finally(() => this.#refreshing = null);
    return this.#refreshing;
  }

  async #refresh(): Promise<void> {
    if (!this.isUsable) return;
    try {
      await this.#frontEnd.readConfig();
      this.info = this.#describe();
    } catch (error) {
      this.#lost(error);
    }
  }

  /** Shows the back end what was queued. */
  publish(): void {
    this.#driver.publish();
  }

  /** Hands out what is done; how many pieces that were. */
  reap(): number {
    if (this.failure !== null) return 0;
    try {
      return this.queue.reap();
    } catch (error) {
      this.#lost(error);
      return 0;
    }
  }

  /** Before sleeping: asks to be woken. True: something is done already. */
  arm(): boolean {
    if (this.queue.inFlight === 0) return false;
    this.#driver.arm();
    return this.#driver.hasUsed();
  }

  /** Asks for no more calls. */
  disarm(): void {
    this.#driver.disarm();
  }

  /** Whether something is done. */
  hasUsed(): boolean {
    return this.#driver.hasUsed();
  }

  /** Looks whether the agent is still there. Once in a while. */
  check(): void {
    // A reply that is waited for would be taken for a message that nobody has asked for.
    if (!this.isUsable || this.#refreshing !== null) return;
    try {
      this.#frontEnd.checkAlive();
    } catch (error) {
      this.#lost(error);
    }
  }

  #lost(error: unknown): void {
    if (!(error instanceof BackEndError)) throw error;
    if (!this.#isConnected || this.isClosing) return;
    this.#isConnected = false;
    if (error.kind === "disconnected" || error.kind === "stalled") void this.#reconnect();
    else this.#fail(error.message);
  }

  /** The agent is away: requests wait, and go on where they were. */
  async #reconnect(): Promise<void> {
    const { warn, client, sleep } = this.#options;
    let refusedMs = 0;
    let isSaid = false;
    while (!this.isClosing && this.failure === null) {
      try {
        await this.#frontEnd.reconnect();
        this.#isConnected = true;
        if (isSaid) warn(`${this.name}: the agent is back`);
        return;
      } catch (error) {
        if (!(error instanceof BackEndError)) throw error;
        if (error.kind === "protocol" || error.kind === "unsupported") {
          return this.#fail(error.message);
        }
        if (!isSaid) warn(`${this.name}: the agent is away; clients wait for it`);
        isSaid = true;
      }
      const answer = await client.disk(this.#found.document?.name ?? this.name.split("@")[0])
        .then(() => "there", (error) => error instanceof AdminError ? error.code : "unavailable");
      if (answer === "missing") return this.#fail("the disk was deleted, or has another name now");
      refusedMs = answer === "there" ? refusedMs + RETRY_MS : 0;
      if (refusedMs >= REFUSED_MS) {
        return this.#fail(
          "the agent does not let this process have the disk any more (its log says why): " +
            "restart kelpie nbd",
        );
      }
      await sleep(RETRY_MS);
    }
  }

  #fail(reason: string): void {
    if (this.failure !== null) return;
    this.failure = reason;
    this.#options.warn(`${this.name}: ${reason}`);
  }

  /** Ends it: what is under way is finished first, if the agent is there. */
  async close(): Promise<void> {
    if (this.isClosing) return await this.closed;
    this.isClosing = true;
    try {
      await this.opened;
      await this.#refreshing;
      if (this.#isConnected && this.failure === null) await this.#frontEnd.close();
    } catch (error) {
      if (!(error instanceof BackEndError)) throw error;
    } finally {
      if (this.#watch >= 0) {
        this.#options.eventFds.unwatch(this.#watch);
        this.#frontEnd.abort(); // does nothing when it has been closed
      }
      this.#exports.ended(this);
      this.#closed.resolve();
    }
  }

  /** Extents that were told stay true until something is written through this server. */
  get canRemember(): boolean {
    return !this.info.isReadOnly;
  }

  /** What a range is made of, from its first byte on, as the agent knows it. Throws AdminError. */
  async findExtents(offsetBytes: number, lengthBytes: number): Promise<readonly Extent[]> {
    if (this.#found.document === null) return [];
    const { client } = this.#options;
    return (await client.diskExtents(this.name, { offsetBytes, lengthBytes })).extents;
  }

  /** Clients can be told of it. */
  get isUsable(): boolean {
    return this.#isConnected && !this.isClosing && this.failure === null;
  }
}

function infoOf(found: Found, sizeBytes: number): ExportInfo {
  const canChange = found.isWritable;
  return {
    name: found.name,
    description: descriptionOf(found),
    sizeBytes,
    isReadOnly: !canChange,
    canTrim: canChange,
    canZero: canChange,
  };
}

function descriptionOf({ name, document }: Found): string {
  return document === null ? `Kelpie snapshot ${name}` : `Kelpie disk ${name}`;
}

/** Takes `disk` or `disk@snapshot` apart; null: it is neither. */
function parseName(name: string): { disk: string; isSnapshot: boolean } | null {
  const [disk, snapshot, ...rest] = name.split("@");
  if (rest.length > 0 || checkDiskName(disk) !== null) return null;
  if (snapshot === undefined) return { disk, isSnapshot: false };
  return checkDiskName(snapshot) === null ? { disk, isSnapshot: true } : null;
}

function unknown(message: string): ExportRefusal {
  return { answer: Answer.Unknown, message };
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
