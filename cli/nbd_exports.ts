/**
 * Which exports `kelpie nbd` has, and the sessions with their disks.
 *
 *     name ─▶ AdminClient: is it there, may it be written to ─▶ FrontEnd on its socket (`map/names.ts`) ─▶ ExportQueue
 *
 * Invariants:
 * - One session per export, whoever uses it: opened for the first client, closed (and the lease given back) behind the last.
 * - An export is what had its name when it was opened: what is called so later is another one, which no client of the first one ever gets.
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
import type { DiskDocument, SnapshotDocument } from "../agent/http/documents.ts";
import {
  checkDiskName,
  checkSnapshotName,
  diskSockets,
  snapshotSocket,
} from "../agent/map/names.ts";
import { ExportQueue } from "../agent/nbd/export.ts";
import { type Extent, ExtentCache } from "../agent/nbd/extents.ts";
import type { ExportInfo, ExportRefusal } from "../agent/nbd/handshake.ts";
import { Answer } from "../agent/nbd/protocol.ts";
import type { EventFdWatcher } from "../agent/platform/linux/eventfd.ts";
import { processName } from "./context.ts";
import { otherHolder } from "./disk_data.ts";

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
      const [disks, snapshots] = await Promise.all([
        client.disks(),
        client.snapshots({ isBrief: true }),
      ]);
      const complete = snapshots.filter(({ isTaking, socket }) => !isTaking && socket !== null);
      return [
        ...disks.map(({ name }) => name),
        ...complete.map(({ disk, name }) => `${disk}@${name}`),
      ].sort();
    } catch {
      return null;
    }
  }

  /** What can be said of an export without opening it. */
  async describe(name: string): Promise<ExportInfo | ExportRefusal> {
    const found = await this.#find(name);
    if ("answer" in found) return found;
    return infoOf(found);
  }

  /** Opens an export for one more client, who releases it. */
  async acquire(name: string): Promise<Acquired | ExportRefusal> {
    for (;;) {
      const found = await this.#find(name);
      if ("answer" in found) return found;
      let session = this.#sessions.get(found.key);
      if (session?.isClosing || session?.failure) {
        await session.closed;
        continue;
      }
      if (session === undefined) {
        const { document, isWritable } = found;
        const refusal = isWritable && document !== null
          ? await this.#refuseWriting(document)
          : null;
        if (refusal !== null) return refusal;
        if (this.#sessions.has(found.key)) continue; // another client was first
        session = new Session(this, found, this.#options);
        this.#sessions.set(found.key, session);
      }
      // From now on it stays open for this client.
      session.users++;
      try {
        await session.opened;
      } catch (error) {
        session.users--;
        if (this.#sessions.get(found.key) === session) this.#sessions.delete(found.key);
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
    if (this.#sessions.get(session.key) === session) this.#sessions.delete(session.key);
    const at = this.open.indexOf(session);
    if (at >= 0) this.open.splice(at, 1);
  }

  /** Closes all of them. */
  async close(): Promise<void> {
    await Promise.all([...this.#sessions.values()].map((session) => session.close()));
  }

  /** Whether a name is still that of the same export; `unknown` while the agent does not answer. */
  async isThere(name: string, key: string): Promise<"there" | "gone" | "unknown"> {
    const found = await this.#find(name);
    if ("answer" in found) return found.answer === Answer.Unknown ? "gone" : "unknown";
    return found.key === key ? "there" : "gone";
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
      return parsed.snapshot === null
        ? foundDisk(await client.disk(parsed.disk), { runDir, isReadOnly })
        : foundSnapshot(await client.snapshot(parsed.disk, parsed.snapshot), runDir);
    } catch (error) {
      if (!(error instanceof AdminError)) throw error;
      // Of a snapshot: that it is missing, or its disk.
      if (error.code === "missing" || error.code === "invalid") return unknown(error.message);
      return { answer: Answer.Platform, message: error.message };
    }
  }

  /** Two writers would ruin each other's data, and the second would only wait for ever. */
  async #refuseWriting(disk: DiskDocument): Promise<ExportRefusal | null> {
    const { name, sessions } = disk;
    const others = sessions.filter(({ readOnly, pid }) => !readOnly && pid !== Deno.pid);
    const hint = `a server with --read-only gives it out beside that`;
    if (others.length > 0) {
      const users = others.map(processName).join(" and ");
      return { answer: Answer.Policy, message: `disk ${name} is in use by ${users}; ${hint}` };
    }
    const holder = await otherHolder(this.#options.client, disk).catch(() => disk.openOn);
    if (holder === null) return null;
    return { answer: Answer.Policy, message: `disk ${name} is open on ${holder}; ${hint}` };
  }
}

/** An export that is there. */
interface Found {
  readonly name: string;
  /** By which it is known: another disk or snapshot that has this name later is another export. */
  readonly key: string;
  /** null: a snapshot. */
  readonly document: DiskDocument | null;
  readonly isWritable: boolean;
  readonly sizeBytes: number;
  readonly socket: string;
}

function foundDisk(
  document: DiskDocument,
  { runDir, isReadOnly }: Pick<ExportsOptions, "runDir" | "isReadOnly">,
): Found {
  const { name, sizeBytes } = document;
  const isWritable = !isReadOnly && !document.readOnly;
  const { readWrite, readOnly } = diskSockets(runDir, name);
  const socket = isWritable ? readWrite : readOnly;
  return { name, key: `disk ${document.id}`, document, isWritable, sizeBytes, socket };
}

function foundSnapshot(
  { disk, name: snapshot, layer, sizeBytes, isTaking, socket }: SnapshotDocument,
  runDir: string,
): Found | ExportRefusal {
  const name = `${disk}@${snapshot}`;
  if (isTaking) {
    return {
      answer: Answer.Platform,
      message: `snapshot ${name} is being taken: try again in a moment`,
    };
  }
  if (socket === null) {
    return {
      answer: Answer.Platform,
      message: `the path of snapshot ${name}'s socket is too long: rename the snapshot`,
    };
  }
  return {
    name,
    key: `layer ${layer}`,
    document: null,
    isWritable: false,
    sizeBytes,
    socket: snapshotSocket(runDir, disk, snapshot),
  };
}

/** The session with a disk that all clients of an export share. */
export class Session {
  readonly name: string;
  readonly key: string;
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
    this.key = found.key;
    this.#exports = exports;
    this.#found = found;
    this.#options = options;
    this.closed = this.#closed.promise;
    this.opened = this.#open();
  }

  async #open(): Promise<void> {
    this.#frontEnd = await FrontEnd.connect({
      socket: this.#found.socket,
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
    const { warn, sleep } = this.#options;
    let refusedMs = 0;
    let isSaid = false;
    while (!this.isClosing && this.failure === null) {
      // First: another disk or snapshot may have the name, and the socket, by now.
      const answer = await this.#exports.isThere(this.name, this.key);
      if (this.isClosing || this.failure !== null) return;
      if (answer === "gone") {
        const what = this.#found.document === null ? "snapshot" : "disk";
        return this.#fail(`the ${what} was deleted, or has another name now`);
      }
      try {
        if (answer === "unknown") throw new BackEndError("disconnected", "no agent answers");
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
    const { document } = this.#found;
    if (document === null) return [];
    const { client } = this.#options;
    const { disk, extents } = await client.diskExtents(this.name, { offsetBytes, lengthBytes });
    // The session stays with its disk when another one takes the name.
    return disk === document.id ? extents : [];
  }

  /** Clients can be told of it. */
  get isUsable(): boolean {
    return this.#isConnected && !this.isClosing && this.failure === null;
  }
}

function infoOf(found: Found): ExportInfo {
  const canChange = found.isWritable;
  return {
    name: found.name,
    description: descriptionOf(found),
    sizeBytes: found.sizeBytes,
    isReadOnly: !canChange,
    canTrim: canChange,
    canZero: canChange,
  };
}

function descriptionOf({ name, document }: Found): string {
  return document === null ? `Kelpie snapshot ${name}` : `Kelpie disk ${name}`;
}

/** Takes `disk` or `disk@snapshot` apart; null: it is neither. */
function parseName(name: string): { disk: string; snapshot: string | null } | null {
  const [disk, snapshot, ...rest] = name.split("@");
  if (rest.length > 0 || checkDiskName(disk) !== null) return null;
  if (snapshot === undefined) return { disk, snapshot: null };
  return checkSnapshotName(snapshot) === null ? { disk, snapshot } : null;
}

function unknown(message: string): ExportRefusal {
  return { answer: Answer.Unknown, message };
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
