/**
 * A host for sessions under test: files are byte arrays in the guest area of simulated memory, descriptors are
 * numbers that are counted.
 *
 * A "file" is a fixed range of the guest area, so that mapping it twice shows the same bytes, as MAP_SHARED does.
 *
 * @module
 */
import { SimulatedMemory } from "../../agent/platform/simulated/memory.ts";
import type { Window } from "../../agent/platform/platform.ts";
import type { MappedPiece, VhostHost } from "../../agent/vhost/host.ts";
import type { VhostSession } from "../../agent/vhost/session.ts";
import type { Throttle } from "../../agent/volume/throttle.ts";

/** A shared file: a range of the window. */
export interface MockFile {
  readonly offset: number;
  readonly sizeBytes: number;
}

/** An eventfd. */
export interface MockEvent {
  count: number;
}

type Open = { readonly file: MockFile | null; readonly event: MockEvent | null };

const EINVAL = 22, ENOMEM = 12;

/** One window for all tests of a process: making one costs more than most tests. */
const shared = new SimulatedMemory({ sizeBytes: 128 * 1024 * 1024 });

/** See the top of the file. */
export class MockHost implements VhostHost {
  readonly windows: readonly Window[] = shared.windows;
  readonly bytes: Uint8Array<ArrayBuffer> = shared.windows[0].bytes;
  /** Open descriptors, by number. */
  readonly open = new Map<number, Open>();
  /** Mappings, by the array that `map` returned. */
  readonly mappings = new Set<readonly MappedPiece[]>();
  /** Kick eventfds, by queue. */
  readonly kicks = new Map<number, number>();
  /** Replies, with their descriptors. */
  readonly sent: { bytes: Uint8Array<ArrayBuffer>; fds: number[] }[] = [];
  readonly backendRequests: Uint8Array<ArrayBuffer>[] = [];
  /** What was told to the log, in order. */
  readonly events: string[] = [];
  scheduled: VhostSession | null = null;
  isLeaseWanted = false;
  isHungUp = false;
  isClosed = false;
  /** Cuts mappings into pieces of this many bytes. */
  pieceBytes = Infinity;
  /** Lets the next mappings fail. */
  mapFailure = 0;
  /** Replies until the connection turns out to be gone. */
  sendsLeft = Infinity;
  #nextFd = 10;
  #next = shared.guestOffset;

  /** @param before a host whose files live on */
  constructor(before?: MockHost) {
    if (before !== undefined) this.#next = before.#next;
  }

  /** Makes a file of zeros; `guard` bytes behind it belong to no file. */
  createFile(sizeBytes: number, guardBytes = 4096): MockFile {
    const offset = this.#next;
    this.#next += Math.ceil((sizeBytes + guardBytes) / 4096) * 4096;
    if (this.#next > this.bytes.length) throw new Error("the mock's memory is used up");
    this.bytes.fill(0, offset, this.#next);
    return { offset, sizeBytes };
  }

  /** Opens a file. */
  openFile(file: MockFile): number {
    this.open.set(this.#nextFd, { file, event: null });
    return this.#nextFd++;
  }

  /** Opens an eventfd. */
  openEvent(event: MockEvent): number {
    this.open.set(this.#nextFd, { file: null, event });
    return this.#nextFd++;
  }

  /** The file of a descriptor. */
  fileOf(fd: number): MockFile {
    return this.#get(fd).file!;
  }

  #get(fd: number): Open {
    const found = this.open.get(fd);
    if (found === undefined) throw new Error(`descriptor ${fd} is not open`);
    return found;
  }

  map(fd: number, fileOffset: number, lengthBytes: number): readonly MappedPiece[] | number {
    const { file } = this.#get(fd);
    if (this.mapFailure !== 0) return -this.mapFailure;
    if (!(lengthBytes > 0)) throw new Error(`mapping of ${lengthBytes} bytes`);
    if (file === null || fileOffset + lengthBytes > file.sizeBytes) return -EINVAL;
    const pieces: MappedPiece[] = [];
    // A small mapping is whole wherever the seams are, as on Linux it gets a place of its own.
    const pieceBytes = lengthBytes <= 65536 ? Infinity : this.pieceBytes;
    for (let at = 0; at < lengthBytes; at += pieceBytes) {
      const length = Math.min(pieceBytes, lengthBytes - at);
      pieces.push({ window: 0, offset: file.offset + fileOffset + at, length });
    }
    this.mappings.add(pieces);
    return pieces;
  }

  unmap(pieces: readonly MappedPiece[]): void {
    if (!this.mappings.delete(pieces)) throw new Error("unmapped what is not mapped");
  }

  createShared(lengthBytes: number): number {
    if (this.mapFailure !== 0) return -ENOMEM;
    return this.openFile(this.createFile(lengthBytes));
  }

  closeFd(fd: number): void {
    this.#get(fd);
    this.open.delete(fd);
  }

  watchKick(_session: VhostSession, queueIndex: number, fd: number): void {
    this.#get(fd);
    if (this.kicks.has(queueIndex)) throw new Error(`queue ${queueIndex} is watched already`);
    this.kicks.set(queueIndex, fd);
  }

  unwatchKick(_session: VhostSession, queueIndex: number): void {
    const fd = this.kicks.get(queueIndex);
    if (fd === undefined) throw new Error(`queue ${queueIndex} is not watched`);
    this.kicks.delete(queueIndex);
    this.closeFd(fd);
  }

  signal(fd: number): void {
    const { event } = this.#get(fd);
    if (event !== null) event.count++;
  }

  send(session: VhostSession, bytes: Uint8Array<ArrayBuffer>, fds: readonly number[]): void {
    for (const fd of fds) this.#get(fd);
    this.sent.push({ bytes, fds: [...fds] });
    if (--this.sendsLeft < 0) session.disconnected();
  }

  sendBackendRequest(_session: VhostSession, fd: number, bytes: Uint8Array<ArrayBuffer>): void {
    this.#get(fd);
    this.backendRequests.push(bytes);
  }

  isPolling = false;
  readonly polledSessions: VhostSession[] = [];

  polled(session: VhostSession): void {
    this.polledSessions.push(session);
  }

  /** The throttle in front of the device; without it everything is admitted. */
  throttle: Throttle | null = null;
  nowMs = 0;

  admit(session: VhostSession): boolean {
    return this.throttle?.admit(session, this.nowMs) ?? true;
  }

  schedule(session: VhostSession): void {
    if (this.scheduled !== null) throw new Error("scheduled twice");
    this.scheduled = session;
  }

  acquire(_session: VhostSession): void {
    if (this.isLeaseWanted) throw new Error("acquired twice");
    this.isLeaseWanted = true;
    this.events.push("acquire");
  }

  release(_session: VhostSession, isUnclean: boolean): void {
    if (!this.isLeaseWanted) throw new Error("released what was not acquired");
    this.isLeaseWanted = false;
    this.events.push(isUnclean ? "release unclean" : "release");
  }

  noted(_session: VhostSession, what: string): void {
    this.events.push(`noted: ${what}`);
  }

  broken(_session: VhostSession, queueIndex: number, reason: string): void {
    this.events.push(`broken ${queueIndex}: ${reason}`);
  }

  refused(_session: VhostSession, reason: string): void {
    this.events.push(`refused: ${reason}`);
  }

  hangUp(_session: VhostSession, reason: string): void {
    if (this.isHungUp) throw new Error("hung up twice");
    this.isHungUp = true;
    this.events.push(`hang up: ${reason}`);
  }

  closed(_session: VhostSession): void {
    if (this.isClosed) throw new Error("closed twice");
    this.isClosed = true;
    this.events.push("closed");
    if (this.mappings.size > 0) throw new Error(`${this.mappings.size} mappings are left`);
    if (this.open.size > this.heldFds.size) {
      throw new Error(`descriptors left open: ${[...this.open.keys()].join(", ")}`);
    }
  }

  /** Descriptors that the test itself keeps, or that were sent with replies. */
  get heldFds(): Set<number> {
    return new Set(this.sent.flatMap((message) => message.fds).filter((fd) => this.open.has(fd)));
  }

  /** Runs turns until none is due. */
  runTurns(): void {
    for (let count = 0; this.scheduled !== null; count++) {
      if (count > 10000) throw new Error("turns without end");
      const session = this.scheduled;
      this.scheduled = null;
      session.turn();
    }
  }
}
