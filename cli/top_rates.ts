/**
 * What went on between two looks at an agent: its counters only rise, so rates are differences.
 *
 * Invariants: a rate is never below 0; where a counter is lower than before, the agent has started anew, and all of it is new. Disks
 * are told apart by id: one of the same name that was made meanwhile is another one.
 *
 * @module
 */
import type { DiskDocument, NodeDocument } from "../agent/http/documents.ts";

/** One look. */
export interface Sample {
  /** By a clock that only rises. */
  readonly atMs: number;
  readonly disks: readonly DiskDocument[];
  readonly nodes: readonly NodeDocument[];
}

/** What there is to know of requests per second. */
export interface IoRates {
  readonly readsPerSecond: number;
  readonly writesPerSecond: number;
  readonly readBytesPerSecond: number;
  readonly writtenBytesPerSecond: number;
  /** Requests under way now. */
  readonly inFlight: number;
  /** Mean service time of the requests that were measured, in milliseconds; null: none was. */
  readonly latencyMs: number | null;
}

/** A disk that somebody has open here. */
export interface DiskRates extends IoRates {
  readonly name: string;
  /** Flushes and discards. */
  readonly othersPerSecond: number;
  readonly errorsPerSecond: number;
}

/** A node. */
export interface NodeRates {
  readonly name: string;
  readonly state: NodeDocument["state"];
  readonly isSelf: boolean;
  /** Of the disks that are open there: of this node between the looks, of others as they reported last. Null: not known. */
  readonly io: IoRates | null;
  readonly usedBytes: number | null;
  readonly capacityBytes: number;
  /** Rate at which it catches up; null: it does not, or has not reported. */
  readonly copyBytesPerSecond: number | null;
  readonly openDisks: number;
}

/** One frame of `kelpie top`. */
export interface TopFrame {
  readonly seconds: number;
  /** The busiest first. */
  readonly disks: readonly DiskRates[];
  /** By id. */
  readonly nodes: readonly NodeRates[];
}

/** Compares two looks. */
export function frameOf(before: Sample, now: Sample): TopFrame {
  const seconds = Math.max(0.001, (now.atMs - before.atMs) / 1000);
  const known = new Map(before.disks.map((disk) => [disk.id, disk.counters]));
  const changes = now.disks.map((disk) => changeOf(known.get(disk.id), disk));
  const isShown = ({ isOpen, requests, errors }: Change) => isOpen || requests + errors > 0;
  const disks = changes.filter(isShown).map((change): DiskRates => ({
    name: change.name,
    ...ratesOf([change], seconds),
    othersPerSecond: (change.requests - change.reads - change.writes) / seconds,
    errorsPerSecond: change.errors / seconds,
  }));
  const busy = (disk: DiskRates) =>
    disk.readsPerSecond + disk.writesPerSecond + disk.othersPerSecond;
  disks.sort((a, b) => busy(b) - busy(a) || (a.name < b.name ? -1 : 1));
  const nodes = now.nodes.map((node): NodeRates => ({
    name: node.name,
    state: node.state,
    isSelf: node.isSelf,
    io: node.isSelf ? ratesOf(changes, seconds) : node.io,
    usedBytes: node.usedBytes,
    capacityBytes: node.capacityBytes,
    copyBytesPerSecond: node.copyBytesPerSecond,
    openDisks: node.openDisks.length,
  }));
  return { seconds, disks, nodes };
}

/** What happened to one disk. */
interface Change {
  readonly name: string;
  readonly isOpen: boolean;
  readonly inFlight: number;
  /** All requests, whatever they are. */
  readonly requests: number;
  readonly reads: number;
  readonly writes: number;
  readonly readBytes: number;
  readonly writtenBytes: number;
  readonly errors: number;
  readonly timedRequests: number;
  readonly timedMs: number;
}

function changeOf(before: DiskDocument["counters"] | undefined, disk: DiskDocument): Change {
  const { name, sessions, counters } = disk;
  // Of a disk that was not there before, all is new; and so it is after a new start.
  const isSame = before !== undefined &&
    (Object.keys(counters) as (keyof typeof counters)[]).every((key) =>
      counters[key] >= before[key]
    );
  const since = (key: keyof typeof counters) => counters[key] - (isSame ? before[key] : 0);
  const [reads, writes] = [since("reads"), since("writes")];
  return {
    name,
    isOpen: sessions.length > 0,
    inFlight: sessions.reduce((sum, session) => sum + session.inFlight, 0),
    requests: reads + writes + since("flushes") + since("discards"),
    reads,
    writes,
    readBytes: since("readBytes"),
    writtenBytes: since("writtenBytes"),
    errors: since("errors"),
    timedRequests: since("timedRequests"),
    timedMs: since("timedMs"),
  };
}

/** The rates of several disks together. */
function ratesOf(changes: readonly Change[], seconds: number): IoRates {
  const sum = (of: (change: Change) => number) =>
    changes.reduce((total, change) => total + of(change), 0);
  // Each disk's mean counts as often as it has requests: all are measured equally often, however busy they are.
  const measured = changes.filter(({ timedRequests }) => timedRequests > 0);
  const weight = measured.reduce((total, { requests }) => total + Math.max(1, requests), 0);
  const latency = measured.reduce(
    (total, { timedMs, timedRequests, requests }) =>
      total + Math.max(1, requests) * timedMs / timedRequests,
    0,
  );
  return {
    readsPerSecond: sum(({ reads }) => reads) / seconds,
    writesPerSecond: sum(({ writes }) => writes) / seconds,
    readBytesPerSecond: sum(({ readBytes }) => readBytes) / seconds,
    writtenBytesPerSecond: sum(({ writtenBytes }) => writtenBytes) / seconds,
    inFlight: sum(({ inFlight }) => inFlight),
    latencyMs: weight > 0 ? latency / weight : null,
  };
}
