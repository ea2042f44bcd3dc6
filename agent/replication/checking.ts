/**
 * Checks disks by comparing their replicas: every block of every replica in sync is read and verified, and what it is must be the same on
 * all of them. Driven by one node, whichever was asked; it needs no lease, and guests are not held up.
 *
 *     layers ─▶ chunks that any replica has ─▶ each replica looks at the chunk (inspection.ts) ─▶ compare block by block
 *                                                     ▲                                          │ equal: done
 *                                                     └──── what is left, after a while ◀────────┤ damaged: that node heals it (repair.ts)
 *                                                                                                │ changed meanwhile, or no common stamp
 *                                                                                                │ differs: who is right (deciding.ts)?
 *                                                                                                │   the others replace it (repair.ts)
 *                                                                                                └ lacks writes: it copies the chunk (completing.ts)
 *
 * Invariants:
 * - A block is compared only as of one stamp. Each replica says from which stamp to which its block was what it says, with nothing
 *   coming to it in between; if these spans have a stamp in common, the block was that on all replicas at that stamp, and has to be
 *   equal, since equal stamps are equal content. So chunks can be compared while guests write to them: only blocks that are written
 *   meanwhile are looked at again. Nobody holds writes back; a block that is written each time counts as not checked.
 * - Unknown stamps are compared only with each other, and only where nobody can write and the replicas are known to agree.
 * - Good are only blocks for which all replicas in sync have said so in one round, under one membership of their group. An answer that is
 *   late, refused, or from before a change of the group counts for nothing: the chunk is looked at again, or is reported as not checked.
 *   A replica that is not in sync is named, and not counted as checked.
 * - A look changes nothing. What does not match its own checksum is healed by the node that has it, as after any read, from a replica
 *   whose block does; here it is looked at again until it is good. Where all match and differ, which is looked at twice, what counts is
 *   decided block by block. Each node with something else is told what it has, what it is to have, and whose; it sees to it by itself that
 *   this is still so (`repair.ts`), so it does no harm that it is told late, twice, or by another check as well. Here the block is
 *   looked at again until it is the same everywhere. Where nobody knows what counts it is reported, and nothing is changed.
 * - Layers are looked at from the oldest on, so that what a layer is read through to is settled before it.
 * - A replica in sync whose stamp stands still below others', and into whose store no write is on its way, lacks writes. It is told to
 *   copy the chunk from one that has them; it does if both still stand still (`completing.ts`), and is looked at again, at most
 *   COMPLETIONS_MAX times. If a write comes to the chunk first, its stamp is that of the others, and what it lacks is a difference.
 * - A layer and the one that it absorbs are checked as one. So are a layer that is being flattened and all that it is read through, and any
 *   layer of which something differs, before it counts as that: what only some replicas have copied into it is the same below it.
 * - A hole below which there is no layer reads as zeros, and is equal to them: a flattened layer has either, as it was filled or copied.
 * - It ends: rounds without anything new, and time per chunk, are bounded.
 *
 * @module
 */
import type { Arena } from "../base/arena.ts";
import { BLOCK_BYTES, CHUNK_BLOCKS, CHUNK_BYTES, DISK_BYTES_MAX } from "../base/limits.ts";
import type { Window } from "../platform/platform.ts";
import { add, has, remove, SET_WORDS, sizeOf } from "./block_set.ts";
import {
  type CheckedBlock,
  type CheckReport,
  type DiskCheck,
  NAMED_MAX,
  newDiskCheck,
} from "./check_report.ts";
import { BEHIND, decide, whyNotCompleted } from "./deciding.ts";
import {
  type Findings,
  packReplacements,
  type Replacement,
  REPLACEMENTS_MAX,
  unpackFindings,
  ZEROS_CHECKSUM,
} from "./findings.ts";
import type { Inspector } from "./inspection.ts";
import { chunkList, compareStamps, isKnown, type LocalStore } from "./local_store.ts";
import { type Head, MessageFlag, MessageType, STAMP_ENTRY_BYTES, Status } from "./messages.ts";
import type { PeerRequest, PeerRequestOwner, Peers } from "./peers.ts";
import type { BlockReplacer, ChunkCompleter } from "./replica.ts";
import type { ClusterView, DiskView, GroupView } from "./view.ts";

/** Chunks looked at at a time. */
const JOBS_MAX = 4;
/** Looks at a chunk by which nothing more is compared: something is changed each time, or there is no common stamp. */
const ROUNDS_MAX = 16;
/** Times that a replica is told to copy a chunk of which it lacks writes. */
const COMPLETIONS_MAX = 3;
/** Milliseconds between looks at a chunk: they double up to the second. */
const PAUSE_MS_MIN = 20, PAUSE_MS_MAX = 320;
/** Longest time in which nothing more of a chunk is compared, in milliseconds. */
const JOB_MS_MAX = 60_000;
/** …and for nodes that do not answer, are not up, or have to settle. Who has once been waited for that long is not waited for again. */
const PATIENCE_MS = 15_000;
/** How long a node is asked without an answer, less than `UNREACHABLE_MS`, and for how long it is left alone then; milliseconds. */
const ASK_MS = 1500, REST_MS = 500;
/** Chunks begun in one go. */
const STARTS_MAX = 64;
/** Chunks of this node's own store listed at a time. */
const LIST_MAX = 2048;

/** What to check: a disk, with the layers of it and of its snapshots that are its share of the report. */
export interface CheckTarget {
  readonly disk: number;
  readonly layers: readonly number[];
}

/** What a check needs around it. */
export interface CheckingHost {
  readonly store: LocalStore;
  readonly peers: Peers;
  readonly arena: Arena;
  readonly window: Window;
  readonly inspector: Inspector;
  readonly repairer: BlockReplacer;
  readonly completer: Pick<ChunkCompleter, "complete">;
  readonly view: ClusterView;
}

/** What a check is to do. */
export interface CheckOptions {
  readonly targets: readonly CheckTarget[];
  /** What is found is put right, as far as it is clear how. */
  readonly repair: boolean;
  /** Whose content counts where replicas differ; 0 or left out: that of more than half of them. Only with `repair`. */
  readonly preferred?: number;
}

/** A block that differs, as it was seen last. */
interface Difference {
  readonly nodes: readonly number[];
  readonly contents: readonly number[];
  /** Why it stays so, if it does. */
  readonly reason: string;
}

/** What nodes are to be told to replace: by node and by whose content it is. */
type Plan = Map<number, Map<number, Replacement[]>>;

/** A look of several nodes at one chunk. */
class Job implements PeerRequestOwner {
  /** Blocks that are still to be compared. */
  readonly left = new Uint32Array(SET_WORDS).fill(0xffff_ffff);
  /** Blocks that have differed once. */
  readonly differed = new Uint32Array(SET_WORDS);
  /** Blocks that have differed twice, and are still to be compared. */
  readonly differences = new Map<number, Difference>();
  /** Blocks of each node that were damaged. */
  readonly damaged = new Map<number, Uint32Array>();
  /** Nodes that lacked writes. */
  readonly lagging = new Set<number>();
  /** Those that lack none differ in ways that nobody can decide. */
  isDisputed = false;
  /** Times that these nodes were told to copy the chunk. */
  completions = 0;
  readonly requests = new Set<PeerRequest>();
  readonly answers = new Map<number, Findings>();
  group: GroupView | null = null;
  /** Layers that are looked at as one. */
  pair: readonly number[] = [];
  /** Those are all that the layer is read through. */
  isThroughChain = false;
  /** What was looked at last has no layer below it. */
  isWhole = false;
  /** Nodes that are still to answer in this round. */
  pending = 0;
  /** Of the round: what comes late counts for nothing. */
  token = 0;
  rounds = 0;
  pauseMs = PAUSE_MS_MIN;
  /** Why this round counts for nothing; null: it does. */
  trouble: string | null = null;
  /** Nodes that the trouble is about. */
  troubled: number[] = [];
  /** An answer was made under a newer map than this node's. */
  isNewer = false;
  /** Some of its blocks differ. */
  isDiffering = false;
  againMs = 0;
  /** When this round was begun. */
  askedMs = 0;

  constructor(
    readonly owner: Check,
    readonly target: CheckTarget,
    readonly layer: number,
    readonly chunk: number,
    /** Since when nothing more of it was compared. */
    public sinceMs: number,
  ) {}

  answered(
    request: PeerRequest,
    head: Head,
    extra: Uint8Array,
    dataOffset: number,
    dataBytes: number,
  ): void {
    this.requests.delete(request);
    const isLook = (request.head.type as MessageType) === MessageType.Inspect;
    if (isLook) this.owner.inspected(this, request.node, head, extra, dataOffset, dataBytes);
    else this.owner.told(dataOffset, dataBytes);
  }
}

/** The chunks of a layer, some at a time, as all replicas have them. */
class Scan implements PeerRequestOwner {
  /** Everything before was given out. */
  from = 0;
  readonly requests = new Set<PeerRequest>();
  readonly chunks = new Set<number>();
  /** First chunk of which not everybody has said something. */
  end = Infinity;
  pending = 0;
  isFailed = false;
  isUnderWay = false;
  /** When the list was begun that is under way. */
  askedMs = 0;
  /** Since when no list has come to an end. */
  sinceMs = 0;

  constructor(readonly owner: Check, readonly target: CheckTarget, readonly layer: number) {}

  answered(
    request: PeerRequest,
    head: Head,
    _extra: Uint8Array,
    dataOffset: number,
    dataBytes: number,
  ): void {
    this.requests.delete(request);
    this.owner.listed(this, request.node, head, dataOffset, dataBytes);
  }
}

const NO_ANSWER = "it does not answer";
const NOT_UP = "it is not up";
const WRITTEN = "guests write to it all the time";
const BUSY = "it is busy with guests";
/** Why blocks that are not right stay so. */
const ONLY_REPORTED = "nothing was to be changed";
const NOT_IN_TIME = "it was not put right in time";
const DAMAGED_EVERYWHERE = "no replica has it whole";

/** One check; see the head of the file. */
export class Check {
  readonly #host: CheckingHost;
  readonly #isRepairing: boolean;
  readonly #preferred: number;
  readonly #done: (report: CheckReport) => void;
  readonly #report: CheckReport = { disks: [], blocks: [], unchecked: [] };
  readonly #todo: { target: CheckTarget; layer: number }[] = [];
  readonly #jobs = new Set<Job>();
  /** Chunks of the scan that are not begun. */
  #queue: number[] = [];
  #scan: Scan | null = null;
  #nowMs = 0;
  #isOver = false;
  #isStepping = false;
  /** Nodes that are not waited for any more, and why. */
  readonly #absent = new Map<number, string>();
  /** Since when nodes do not answer, and until when they are left alone. */
  readonly #silentSince = new Map<number, number>();
  readonly #restUntil = new Map<number, number>();
  /** Groups were waited for once that have to settle. */
  #isUnsettled = false;
  #bytesBefore = 0;
  #bytesTotal = 0;

  /** @param done told once, unless it is cancelled; never from inside a call of this check's maker */
  constructor(host: CheckingHost, options: CheckOptions, done: (report: CheckReport) => void) {
    this.#host = host;
    this.#isRepairing = options.repair;
    this.#preferred = options.preferred ?? 0;
    this.#done = done;
    for (const target of options.targets) {
      for (const layer of target.layers) {
        this.#todo.push({ target, layer });
        this.#bytesTotal += this.#sizeOf(target);
      }
      this.#report.disks.push(newDiskCheck(target.disk));
    }
    // The oldest first, from the end: a layer has a higher number than those below it.
    this.#todo.sort((a, b) => b.layer - a.layer);
  }

  /** How much of the disks' layers was looked through, in bytes of their address spaces. */
  get progress(): { readonly doneBytes: number; readonly totalBytes: number } {
    const within = this.#scan === null
      ? 0
      : Math.min(this.#sizeOf(this.#scan.target), this.#scan.from * CHUNK_BYTES);
    const doneBytes = Math.min(this.#bytesTotal, this.#bytesBefore + within);
    return { doneBytes, totalBytes: this.#bytesTotal };
  }

  #sizeOf({ disk }: CheckTarget): number {
    return this.#host.view.disk(disk)?.entry.sizeBytes ?? 0;
  }

  /** Ends it; nothing is told. */
  cancel(): void {
    this.#isOver = true;
    for (const job of this.#jobs) this.#abandon(job);
    this.#jobs.clear();
    if (this.#scan !== null) this.#abandonScan(this.#scan);
  }

  /** Time passes. */
  tick(nowMs: number): void {
    this.#nowMs = nowMs;
    if (this.#isOver) return;
    this.#findSilent();
    for (const job of [...this.#jobs]) {
      if (job.pending > 0) continue;
      if (nowMs - job.sinceMs > JOB_MS_MAX) this.#giveUp(job);
      else if (nowMs >= job.againMs) this.#begin(job);
    }
    const scan = this.#scan;
    // As long as what was listed is compared, nobody waits for the next list.
    if (scan !== null && this.#queue.length > 0) scan.sinceMs = nowMs;
    if (scan !== null && nowMs - scan.sinceMs > JOB_MS_MAX) {
      this.#abandonScan(scan);
      this.#unchecked(scan.target, "its chunks cannot be listed", []);
      this.#scanned(scan);
    }
    this.#step();
  }

  /**
   * Takes back what nodes do not answer, before anybody takes them for dead because of it: that nobody answers who compares is no reason
   * to leave a node out. They are asked again after a rest, for a while.
   */
  #findSilent(): void {
    const silent = new Set<number>();
    const scan = this.#scan;
    for (const job of this.#jobs) {
      if (this.#nowMs - job.askedMs < ASK_MS) continue;
      for (const { node } of job.requests) silent.add(node);
    }
    if (scan !== null && this.#nowMs - scan.askedMs >= ASK_MS) {
      for (const { node } of scan.requests) silent.add(node);
    }
    for (const node of silent) {
      this.#restUntil.set(node, this.#nowMs + REST_MS);
      this.#noteSilent(node);
    }
    const isSilent = ({ node }: PeerRequest) => silent.has(node);
    for (const job of silent.size > 0 ? this.#jobs : []) {
      const request = [...job.requests].find(isSilent);
      if (request === undefined) continue;
      this.#abandon(job);
      job.trouble = NO_ANSWER;
      job.troubled = [request.node];
      this.#again(job);
    }
    if (scan === null || ![...scan.requests].some(isSilent)) return;
    this.#abandonScan(scan);
    scan.isFailed = true;
  }

  #noteSilent(node: number): void {
    const since = this.#silentSince.get(node);
    if (since === undefined) this.#silentSince.set(node, this.#nowMs);
    else if (this.#nowMs - since >= PATIENCE_MS) this.#absent.set(node, NO_ANSWER);
  }

  /** Whether a node can be asked now. */
  #mayAsk(node: number): boolean {
    const { view, peers } = this.#host;
    if (node === view.self) return true;
    const isConnected = peers.isConnected(node);
    if (!isConnected) this.#noteSilent(node);
    return isConnected && this.#nowMs >= (this.#restUntil.get(node) ?? -Infinity);
  }

  /** The map has changed: what was asked under another membership counts for nothing. */
  mapChanged(): void {
    const { view } = this.#host;
    for (const job of this.#jobs) {
      if (job.pending === 0 || job.group === null) continue;
      const disk = view.diskOfLayer(job.layer);
      const isSame = disk !== undefined &&
        view.groupOf(disk, job.chunk).entry.changedEpoch === job.group.entry.changedEpoch;
      if (isSame) continue;
      this.#abandon(job);
      job.trouble = "replicas came or went meanwhile";
      this.#again(job);
    }
    if (this.#scan?.isUnderWay === true) this.#abandonScan(this.#scan);
  }

  // --------------------------------------------------------------------------------- what there is

  /** Begins what there is room for. */
  #step(): void {
    if (this.#isStepping) return;
    this.#isStepping = true;
    for (let starts = 0; starts < STARTS_MAX && !this.#isOver;) {
      if (this.#queue.length > 0) {
        if (this.#jobs.size >= JOBS_MAX) break;
        starts++;
        this.#startJob();
      } else if (this.#scan !== null) {
        if (this.#scan.isUnderWay) break;
        this.#list(this.#scan);
        // A list that failed is asked for again when time has passed.
        if (this.#scan?.isFailed === true) break;
      } else if (this.#todo.length > 0) {
        const { target, layer } = this.#todo.pop()!;
        this.#scan = new Scan(this, target, layer);
        this.#scan.sinceMs = this.#nowMs;
      } else {
        if (this.#jobs.size > 0) break;
        this.#isOver = true;
        this.#done(this.#report);
      }
    }
    this.#isStepping = false;
  }

  /** Asks everyone who may have chunks of the layer for the next of them. */
  #list(scan: Scan): void {
    const { view, store } = this.#host;
    const disk = view.diskOfLayer(scan.layer);
    // What is absorbed is looked at with the layer that it goes into.
    if (disk === undefined || view.absorberOf(scan.layer) !== 0) return this.#scanned(scan);
    const nodes = disk.nodes.filter((node) =>
      view.node(node)?.state === "up" && !this.#absent.has(node)
    );
    if (nodes.some((node) => !this.#mayAsk(node))) {
      scan.isFailed = true;
      return;
    }
    if (scan.from === 0) this.#nameAbsent(scan, disk);
    scan.askedMs = this.#nowMs;
    scan.chunks.clear();
    scan.end = Infinity;
    scan.isFailed = false;
    scan.isUnderWay = true;
    // Counted once more, so that answers cannot end it before all are asked.
    scan.pending = 1;
    for (const layer of view.pair(scan.layer)) {
      for (const node of nodes) {
        scan.pending++;
        if (node !== view.self) this.#askForChunks(scan, disk, layer, node);
        else {
          const list = chunkList(LIST_MAX);
          store.listChunks(layer, scan.from, list);
          for (let i = 0; i < list.count; i++) {
            const { entry } = view.groupOf(disk, list.chunks[i]);
            if (entry.inSync.includes(view.self)) scan.chunks.add(list.chunks[i]);
          }
          if (list.next >= 0) scan.end = Math.min(scan.end, list.next);
          scan.pending--;
        }
      }
    }
    this.#listIsOver(scan);
  }

  /** Groups of which nobody is there: not even their chunks are known. */
  #nameAbsent({ target }: Scan, disk: DiskView): void {
    const { view } = this.#host;
    for (const { entry } of disk.groups) {
      if (entry.inSync.length === 0) continue;
      if (entry.inSync.some((node) => view.node(node)?.state === "up")) continue;
      this.#unchecked(target, "none of the nodes that have it is up", entry.inSync);
    }
  }

  #askForChunks(scan: Scan, disk: DiskView, layer: number, node: number): void {
    const request = this.#host.peers.take(MessageType.Chunks, scan);
    if (request === null) {
      scan.pending--;
      scan.isFailed = true;
      return;
    }
    request.head.disk = disk.entry.id;
    request.head.layer = layer;
    request.head.chunk = scan.from;
    scan.requests.add(request);
    this.#host.peers.submit(node, request);
  }

  /** From a scan: a node has said which chunks it has. */
  listed(scan: Scan, node: number, head: Head, dataOffset: number, dataBytes: number): void {
    const { arena, window } = this.#host;
    this.#silentSince.delete(node);
    const count = head.argument;
    if (head.status === Status.Ok && count * STAMP_ENTRY_BYTES <= dataBytes) {
      const words = window.u32;
      for (let i = 0; i < count; i++) {
        const chunk = words[(dataOffset + i * STAMP_ENTRY_BYTES + 4) >>> 2];
        if (chunk < DISK_BYTES_MAX / CHUNK_BYTES) scan.chunks.add(chunk);
      }
      if ((head.flags & MessageFlag.More) !== 0) {
        // Always further on, whatever it says.
        scan.end = Math.min(scan.end, Math.max(head.chunk, scan.from + 1));
      }
    } else scan.isFailed = true;
    if (dataBytes > 0) arena.release(dataOffset, dataBytes);
    this.#listIsOver(scan);
    // One that failed is asked for again when time has passed.
    if (!scan.isFailed) this.#step();
  }

  #listIsOver(scan: Scan): void {
    if (--scan.pending > 0) return;
    scan.isUnderWay = false;
    if (scan.isFailed) return;
    this.#queue = [...scan.chunks].filter((chunk) => chunk >= scan.from && chunk < scan.end)
      .sort((a, b) => a - b);
    this.#disk(scan.target).chunks += this.#queue.length;
    this.#queueOf = scan;
    if (scan.end === Infinity) this.#scanned(scan);
    else {
      scan.from = scan.end;
      scan.sinceMs = this.#nowMs;
    }
  }
  #queueOf: Scan | null = null;

  #abandonScan(scan: Scan): void {
    for (const request of scan.requests) this.#host.peers.cancel(request);
    scan.requests.clear();
    scan.isUnderWay = false;
    scan.pending = 0;
  }

  #scanned(scan: Scan): void {
    this.#bytesBefore += this.#sizeOf(scan.target);
    this.#scan = null;
  }

  // ------------------------------------------------------------------------------------ one chunk

  #startJob(): void {
    const { target, layer } = this.#queueOf!;
    const job = new Job(this, target, layer, this.#queue.shift()!, this.#nowMs);
    this.#jobs.add(job);
    this.#begin(job);
  }

  /** Asks all replicas in sync about what is left of a chunk. */
  #begin(job: Job): void {
    const { view } = this.#host;
    const disk = view.diskOfLayer(job.layer);
    // The layer is gone: deleted, or merged into another one, which had its own turn or still has.
    if (disk === undefined) {
      this.#jobs.delete(job);
      this.#disk(job.target).chunks--;
      return;
    }
    const layer = view.absorberOf(job.layer) || job.layer;
    job.isThroughChain ||= view.isFlattened(layer);
    const pair = job.isThroughChain ? view.chain(layer) : view.pair(layer);
    if (pair.join() !== job.pair.join()) job.left.fill(0xffff_ffff);
    job.pair = pair;
    job.group = view.groupOf(disk, job.chunk);
    job.trouble = null;
    job.troubled = [];
    job.isNewer = false;
    job.answers.clear();
    const { entry, isOpen } = job.group;
    const away = entry.inSync.filter((node) =>
      view.node(node)?.state !== "up" || this.#absent.has(node)
    );
    if (away.length > 0) return this.#isAway(job, away);
    const silent = entry.inSync.find((node) => !this.#mayAsk(node));
    if (silent !== undefined) {
      job.trouble = NO_ANSWER;
      job.troubled = [silent];
      return this.#again(job);
    }
    if (!isOpen) {
      job.trouble = "replicas are being settled after a crash";
      if (!this.#isUnsettled && this.#nowMs - job.sinceMs < PATIENCE_MS) return this.#again(job);
      this.#isUnsettled = true;
      return this.#giveUp(job);
    }
    this.#isUnsettled = false;
    job.askedMs = this.#nowMs;
    const token = ++job.token;
    // Counted once more, so that answers cannot end the round before all are asked.
    job.pending = 1 + entry.inSync.length;
    for (const node of entry.inSync) {
      if (node !== view.self) this.#ask(job, disk, node);
      else this.#lookHere(job, token);
    }
    this.#answerIsIn(job);
  }

  /** Nodes in sync that cannot be asked now. */
  #isAway(job: Job, away: readonly number[]): void {
    const node = away[0];
    const absent = this.#absent.get(node);
    job.trouble = absent ?? NOT_UP;
    job.troubled = [node];
    if (absent === undefined && this.#nowMs - job.sinceMs < PATIENCE_MS) return this.#again(job);
    if (absent === undefined) this.#absent.set(node, NOT_UP);
    this.#giveUp(job);
  }

  #lookHere(job: Job, token: number): void {
    const { inspector, store, view } = this.#host;
    const { pair, chunk, left: wanted } = job;
    const isLost = store.paths?.isLost(pair[0], chunk) === true;
    const query = { pair, chunk, wanted, isQuiet: !this.#isRepairing };
    const isTaken = !isLost && inspector.inspect(query, (result, findings) => {
      if (token !== job.token || job.pending === 0 || this.#isOver) return;
      if (result === 0) job.answers.set(view.self, findings);
      else if (result > 0) this.#fail(job, view.self, BUSY);
      else this.#fail(job, view.self, `its store fails (errno ${-result})`);
      this.#answerIsIn(job);
      this.#step();
    });
    if (isTaken) return;
    this.#fail(job, view.self, isLost ? "a data path is lost" : BUSY);
    job.pending--;
  }

  #ask(job: Job, disk: DiskView, node: number): void {
    const request = this.#host.peers.take(MessageType.Inspect, job);
    if (request === null) {
      this.#fail(job, node, "too much is under way");
      job.pending--;
      return;
    }
    const { head } = request;
    head.flags = MessageFlag.Recovery | (job.isThroughChain ? MessageFlag.Chain : 0);
    head.disk = disk.entry.id;
    head.layer = job.pair[0];
    head.chunk = job.chunk;
    head.argument = this.#isRepairing ? 0 : 1;
    const extra = new Uint32Array(2 + SET_WORDS);
    extra.set(job.pair.slice(0, job.isThroughChain ? 1 : 2));
    extra.set(job.left, 2);
    request.extra = extra;
    request.extraWords = extra.length;
    job.requests.add(request);
    this.#host.peers.submit(node, request);
  }

  #fail(job: Job, node: number, reason: string): void {
    job.trouble = reason;
    job.troubled.push(node);
  }

  /** From a job: a node has looked. */
  inspected(
    job: Job,
    node: number,
    head: Head,
    extra: Uint8Array,
    dataOffset: number,
    dataBytes: number,
  ): void {
    const { arena, window, view } = this.#host;
    this.#silentSince.delete(node);
    if (head.status === Status.Ok) {
      const sums = window.u32.subarray(dataOffset >>> 2, (dataOffset + dataBytes) >>> 2);
      const findings = unpackFindings(head, extra, sums);
      if (findings !== null) job.answers.set(node, findings);
      else this.#fail(job, node, "its answer makes no sense");
    } else if (head.status < 0) this.#fail(job, node, `its store fails (errno ${-head.status})`);
    else {
      this.#fail(
        job,
        node,
        head.status === Status.Busy ? BUSY : "its map is another one",
      );
    }
    job.isNewer ||= head.epoch > view.epoch;
    if (dataBytes > 0) arena.release(dataOffset, dataBytes);
    this.#answerIsIn(job);
    this.#step();
  }

  /** From a job: a node knows what to copy, or does not want to hear of it; the next look tells. */
  told(dataOffset: number, dataBytes: number): void {
    if (dataBytes > 0) this.#host.arena.release(dataOffset, dataBytes);
  }

  #answerIsIn(job: Job): void {
    if (--job.pending > 0) return;
    // Whatever else comes of the round: it may be healed before the next one.
    this.#noteDamage(job);
    if (job.trouble === null) this.#compare(job);
    else this.#again(job);
  }

  #abandon(job: Job): void {
    for (const request of job.requests) this.#host.peers.cancel(request);
    job.requests.clear();
    job.pending = 0;
    job.token++;
  }

  #again(job: Job): void {
    job.againMs = this.#nowMs + job.pauseMs;
    job.pauseMs = Math.min(PAUSE_MS_MAX, job.pauseMs * 2);
  }

  // ------------------------------------------------------------------------------------- compare

  #compare(job: Job): void {
    const answers = [...job.answers];
    job.rounds++;
    const isSingle = answers.length === 1;
    const common = isSingle ? null : this.#whyNoStamp(job, answers.map(([, each]) => each));
    const behind = common === BEHIND ? nodesBehind(answers) : [];
    // Those that lack no writes have a stamp in common, and must not differ either.
    const compared = common === null || common === BEHIND
      ? answers.filter(([node]) => !behind.includes(node))
      : [];
    const { view } = this.#host;
    const chain = view.chain(job.pair[0]);
    // What some replicas have copied into a layer from below, and others have not, is the same in what the layer is read through.
    job.isWhole = job.isThroughChain || chain.length <= job.pair.length;
    const mayBeCopied = !job.isWhole;
    let isHealing = false, isCopied = false;
    const plan: Plan = new Map();
    const before = sizeOf(job.left);
    for (let block = 0; block < CHUNK_BLOCKS; block++) {
      if (!has(job.left, block)) continue;
      const damaged = answers.filter(([, each]) => has(each.damaged, block));
      if (damaged.length > 0) {
        // Whoever has it damaged heals it, if somebody has it whole; who lacks writes copies the chunk.
        isHealing ||= this.#isRepairing && damaged.length < answers.length &&
          damaged.some(([node]) => !behind.includes(node));
        continue;
      }
      const isChanged = compared.some(([, { changed }]) => has(changed, block));
      if (compared.length === 0 || (isChanged && !isSingle)) continue;
      if (areEqual(compared, block, job.isWhole)) {
        if (common === null) this.#isGood(job, answers, block);
      } else if (!has(job.differed, block)) add(job.differed, block);
      else if (mayBeCopied) isCopied = true;
      else this.#differs(job, compared, block, plan);
    }
    const isLast = () => job.rounds >= ROUNDS_MAX && !isHealing && plan.size === 0;
    // What was copied brings its stamp, too: who has copied nothing looks as if it lacked something.
    if (behind.length > 0 && mayBeCopied && isLast()) isCopied = true;
    if (isCopied) {
      job.isThroughChain = true;
      job.pair = chain;
      job.differed.fill(0);
    }
    if (sizeOf(job.left) < before || isCopied) {
      job.pauseMs = PAUSE_MS_MIN;
      job.rounds = 0;
      job.sinceMs = this.#nowMs;
    }
    this.#replace(job, plan);
    job.trouble = common;
    job.troubled = behind;
    const hasOnlyDamage = !isHealing && common === null && this.#isAllDamaged(job, answers);
    if (sizeOf(job.left) === 0) this.#end(job);
    else if (isCopied) this.#again(job);
    else if (behind.length > 0 && isLast()) this.#isBehind(job, behind);
    else if (isLast() || hasOnlyDamage) this.#giveUp(job);
    else this.#again(job);
  }

  /** Nodes have lacked writes for long enough: they copy the chunk from one that does not. */
  #isBehind(job: Job, behind: readonly number[]): void {
    for (const node of behind) job.lagging.add(node);
    if (!this.#isRepairing) return this.#giveUp(job);
    const { view, completer } = this.#host;
    const [layer] = job.pair;
    const preferred = this.#preferred;
    const upToDate = [...job.answers.keys()].filter((node) => !behind.includes(node));
    job.trouble = job.completions >= COMPLETIONS_MAX
      ? `${BEHIND}, also after it was told to copy them`
      : whyNotCompleted({
        behind,
        upToDate,
        preferred,
        isDisputed: job.isDisputed,
        isMerged: view.absorbedInto(layer) !== 0 || view.isFlattened(layer),
      });
    if (job.trouble !== null) return this.#giveUp(job);
    job.completions++;
    job.rounds = 0;
    job.sinceMs = this.#nowMs;
    const source = upToDate.includes(preferred) ? preferred : upToDate[0];
    for (const node of behind) {
      if (node === view.self) completer.complete(layer, job.chunk, source);
      else this.#tell(job, node, source, MessageType.Complete);
    }
    this.#again(job);
  }

  #noteDamage(job: Job): void {
    for (const [node, { damaged }] of job.answers) {
      let known = job.damaged.get(node);
      if (known === undefined) job.damaged.set(node, known = new Uint32Array(SET_WORDS));
      for (let i = 0; i < SET_WORDS; i++) known[i] |= damaged[i] & job.left[i];
    }
  }

  #isAllDamaged(job: Job, answers: readonly (readonly [number, Findings])[]): boolean {
    for (let i = 0; i < SET_WORDS; i++) {
      let damaged = 0;
      for (const [, each] of answers) damaged |= each.damaged[i];
      if ((job.left[i] & ~damaged) !== 0) return false;
    }
    return true;
  }

  /** Why the answers say nothing about one stamp; null: they do. */
  #whyNoStamp(job: Job, answers: readonly Findings[]): string | null {
    const { view } = this.#host;
    const disk = view.diskOfLayer(job.pair[0]);
    if (disk === undefined) return "it is being deleted";
    const isNoneKnown = answers.every(({ begin, end }) => !isKnown(begin) && !isKnown(end));
    if (isNoneKnown) {
      return !job.isNewer && view.isAtRest(disk, job.pair)
        ? null
        : "it was written before replicas could be compared, and the disk is open";
    }
    const isAllKnown = answers.every(({ begin, end }) => isKnown(begin) && isKnown(end));
    let [from, to] = [answers[0].begin, answers[0].end];
    for (const { begin, end } of answers) {
      if (compareStamps(begin, from) > 0) from = begin;
      if (compareStamps(end, to) < 0) to = end;
    }
    if (isAllKnown && compareStamps(from, to) <= 0) return null;
    if (!view.isInOrder(disk)) {
      return "its last host has left writes on some replicas only: opening the disk settles that";
    }
    // What is on its way, or waits for space, is not lacking.
    const isStill = answers.every(({ begin, end, isIdle }) =>
      isIdle && compareStamps(begin, end) === 0
    );
    return isStill ? BEHIND : WRITTEN;
  }

  #isGood(job: Job, answers: readonly (readonly [number, Findings])[], block: number): void {
    remove(job.left, block);
    const disk = this.#disk(job.target);
    if (job.differences.delete(block)) {
      disk.differingBlocks++;
      disk.settledBlocks++;
    }
    for (const [node, { data }] of answers) {
      if (has(data, block)) disk.verifiedBlocks++;
      if (has(job.damaged.get(node)!, block)) {
        disk.damagedBlocks++;
        disk.repairedBlocks++;
      }
    }
  }

  /** A block differs for the second time. Whoever has to replace it comes into the plan. */
  #differs(
    job: Job,
    compared: readonly (readonly [number, Findings])[],
    block: number,
    plan: Plan,
  ): void {
    const nodes = compared.map(([node]) => node);
    const votes = compared.map(([node, findings]) => ({
      node,
      content: contentOf(findings, block, job.isWhole),
      isOwn: !has(job.damaged.get(node)!, block),
    }));
    const kinds = [...new Set(votes.map(({ content }) => content))];
    const contents = votes.map(({ content }) => kinds.indexOf(content));
    const ruling = this.#isRepairing
      ? decide(votes, { replicas: job.answers.size, preferred: this.#preferred })
      : ONLY_REPORTED;
    const reason = typeof ruling === "string" ? ruling : NOT_IN_TIME;
    job.differences.set(block, { nodes, contents, reason });
    if (typeof ruling !== "string") {
      for (const { node, content: wrong } of votes) {
        if (!ruling.wrong.includes(node)) continue;
        addTo(plan, node, ruling.sources[0], { block, wrong, right: ruling.content });
      }
    } else if (compared.length === job.answers.size) this.#staysDifferent(job, block);
    else job.isDisputed = true;
  }

  #staysDifferent(job: Job, block: number): void {
    const { nodes, contents, reason } = job.differences.get(block)!;
    job.differences.delete(block);
    remove(job.left, block);
    job.isDiffering = true;
    const disk = this.#disk(job.target);
    disk.differingBlocks++;
    for (const node of nodes) {
      const data = job.answers.get(node)?.data;
      if (data !== undefined && has(data, block)) disk.verifiedBlocks++;
    }
    this.#name("differs", job, block, { nodes, contents, reason });
  }

  /** Tells nodes what to replace. Whatever does not come to them, or to nothing there, is found different again. */
  #replace(job: Job, plan: Plan): void {
    const { view, repairer } = this.#host;
    for (const [node, sources] of plan) {
      for (const [source, all] of sources) {
        const list = all.slice(0, REPLACEMENTS_MAX);
        if (node === view.self) repairer.replace(job.pair[0], job.chunk, source, list);
        else this.#tell(job, node, source, MessageType.Replace, packReplacements(list));
      }
    }
  }

  /** What a node is to copy, from whom. */
  #tell(job: Job, node: number, source: number, type: MessageType, extra?: Uint32Array): void {
    const { peers, view } = this.#host;
    const [layer] = job.pair;
    const disk = view.diskOfLayer(layer);
    const request = disk === undefined ? null : peers.take(type, job);
    if (request === null) return;
    const { head } = request;
    head.disk = disk!.entry.id;
    head.layer = layer;
    head.chunk = job.chunk;
    head.argument = source;
    request.extra = extra ?? null;
    request.extraWords = extra?.length ?? 0;
    job.requests.add(request);
    peers.submit(node, request);
  }

  #name(
    kind: CheckedBlock["kind"],
    { target, chunk, pair: [layer] }: Job,
    block: number,
    { nodes, contents, reason }: Difference,
  ): void {
    const { blocks } = this.#report;
    const offsetBytes = chunk * CHUNK_BYTES + block * BLOCK_BYTES;
    const isKnown = blocks.some((each) =>
      each.kind === kind && each.disk === target.disk && each.offsetBytes === offsetBytes &&
      each.nodes.join() === nodes.join()
    );
    if (blocks.length >= NAMED_MAX || isKnown) return;
    blocks.push({ kind, disk: target.disk, layer, offsetBytes, nodes, contents, reason });
  }

  /** Everything of the chunk was compared. */
  #end(job: Job): void {
    // Some node may still be told what has come to be right by itself.
    this.#abandon(job);
    this.#jobs.delete(job);
    const disk = this.#disk(job.target);
    this.#nameOutOfSync(job);
    disk.laggingChunks += job.lagging.size;
    for (const node of job.lagging) if (job.answers.has(node)) disk.caughtUpChunks++;
    if (job.answers.size === 1) disk.singleChunks++;
    else if (!job.isDiffering) disk.comparedChunks++;
  }

  /** What is left of the chunk stays as it is: damaged, different, or not checked. */
  #giveUp(job: Job): void {
    this.#abandon(job);
    this.#jobs.delete(job);
    const disk = this.#disk(job.target);
    this.#nameOutOfSync(job);
    disk.laggingChunks += job.lagging.size;
    let unchecked = 0;
    for (let block = 0; block < CHUNK_BLOCKS; block++) {
      if (!has(job.left, block)) continue;
      const nodes = [...job.damaged].filter(([, set]) => has(set, block)).map(([node]) => node);
      disk.damagedBlocks += nodes.length;
      if (nodes.length > 0) this.#staysDamaged(job, block, nodes);
      else if (job.differences.has(block)) this.#staysDifferent(job, block);
      else unchecked++;
    }
    if (unchecked === 0) return;
    const reason = job.trouble ?? WRITTEN;
    this.#unchecked(job.target, reason, job.troubled);
  }

  #staysDamaged(job: Job, block: number, nodes: readonly number[]): void {
    const isWhole = nodes.length < (job.group?.entry.inSync.length ?? 0);
    const reason = !this.#isRepairing ? ONLY_REPORTED : isWhole ? NOT_IN_TIME : DAMAGED_EVERYWHERE;
    this.#name("damaged", job, block, { nodes, contents: nodes.map(() => 0), reason });
  }

  /** Those that should have the chunk, and are not in sync. */
  #nameOutOfSync({ group, target }: Job): void {
    if (group === null) return;
    const { inSync, joining, target: wanted } = group.entry;
    for (const node of new Set([...wanted, ...joining])) {
      if (inSync.includes(node)) continue;
      const isUp = this.#host.view.node(node)?.state === "up";
      this.#unchecked(target, isUp ? "it is not in sync yet" : NOT_UP, [node]);
    }
  }

  #unchecked({ disk }: CheckTarget, reason: string, nodes: readonly number[]): void {
    const list = this.#report.unchecked;
    const sorted = [...nodes].sort((a, b) => a - b);
    let entry = list.find((each) =>
      each.disk === disk && each.reason === reason && each.nodes.join() === sorted.join()
    );
    if (entry === undefined) list.push(entry = { disk, reason, nodes: sorted, chunks: 0 });
    entry.chunks++;
    this.#disk({ disk, layers: [] }).uncheckedChunks++;
  }

  #disk({ disk }: CheckTarget): DiskCheck {
    return this.#report.disks.find((each) => each.disk === disk)!;
  }
}

/** Who has fewer writes than somebody else. */
function nodesBehind(answers: readonly (readonly [number, Findings])[]): number[] {
  return answers.filter(([, { end }]) =>
    answers.some(([, other]) => compareStamps(other.end, end) > 0)
  ).map(([node]) => node);
}

/** In place of a content: what lies below, if anything does. */
const HOLE = -1;

/**
 * What a block is, as a number: equal numbers are equal content. But for {@linkcode HOLE} it is the checksum of what is read: zeros are
 * zeros, whether they were written or not.
 *
 * @param isWhole there is no layer below
 */
function contentOf(
  { data, zeros, checksums }: Findings,
  block: number,
  isWhole: boolean,
): number {
  if (has(data, block)) return checksums[block];
  return isWhole || has(zeros, block) ? ZEROS_CHECKSUM : HOLE;
}

function addTo(plan: Plan, node: number, source: number, replacement: Replacement): void {
  let sources = plan.get(node);
  if (sources === undefined) plan.set(node, sources = new Map());
  const list = sources.get(source);
  if (list === undefined) sources.set(source, [replacement]);
  else list.push(replacement);
}

function areEqual(
  answers: readonly (readonly [number, Findings])[],
  block: number,
  isWhole: boolean,
): boolean {
  const content = contentOf(answers[0][1], block, isWhole);
  return answers.every(([, findings]) => contentOf(findings, block, isWhole) === content);
}
