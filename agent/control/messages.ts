/**
 * What main threads say to each other over the control channel: MessagePack arrays, the kind first.
 *
 *     raft      [ 1, bytes ]                                    a message of consensus
 *     propose   [ 2, [ bytes, … ] ]                             to the leader: proposals, oldest first
 *     join      [ 3, facts ]                                    to any node: take me in
 *     joined    [ 4, node, cluster id ]                         answer: your number
 *     refused   [ 5, message ]                                  answer: not taken in, and why
 *     renew     [ 6, node, incarnation, id, report ]            to the leader: may I go on serving?
 *     renewed   [ 7, id ]                                       answer: yes, as of when you asked
 *     lease     [ 8, node, incarnation, disk ]                  to the leader: this disk's lease, please
 *     ask       [ 9, id ]                                       to the leader: what does everybody report?
 *     reports   [ 10, id, [ [ node, report ], … ] ]             answer
 *     lead      [ 11, node, address ]                           to who asks somebody that does not lead: ask there
 *     restart   [ 12, node, incarnation ]                       to that run of the node: end, to be started anew
 *     removed   [ 13, node, cluster id, epoch ]                 to who asks and was taken out of the cluster: by this epoch's map
 *
 * All of them may be lost or come twice; whoever waits for an answer asks again. The channel has proved that the sender
 * knows the cluster's secret, nothing more: every field is checked.
 *
 * The connection carries the version (its handshake: one that both ends speak). Within it, kinds are only appended, and so are fields
 * at the end of a list: who does not know a kind says so in its log and does nothing, and fields that it does not know are passed over. What
 * must be understood belongs to a level, and is not sent before the map has it (`map/levels.ts`).
 *
 * @module
 */
import { Packr } from "msgpackr";
import type { NodeFacts } from "../map/map.ts";

/** Kinds of messages. Only appended to. */
export const enum ControlKind {
  Raft = 1,
  Propose = 2,
  Join = 3,
  Joined = 4,
  Refused = 5,
  Renew = 6,
  Renewed = 7,
  Lease = 8,
  Ask = 9,
  Reports = 10,
  Lead = 11,
  Restart = 12,
  Removed = 13,
}

/** What a node tells the leader about itself, once a second. */
export interface NodeReport {
  /** Epoch of the map that the node's data worker has: news about nodes that came up later is not in here. */
  readonly epoch: number;
  /** Nodes that this one waits for in vain. */
  readonly unreachable: readonly number[];
  /** Nodes to which this one has no data connection. */
  readonly disconnected: readonly number[];
  readonly usedBytes: number;
  readonly capacityBytes: number;
  /** The store takes no writes for want of room. */
  readonly isFull: boolean;
  /** Groups that catch up here, chunks known to be left, bytes copied since the start. */
  readonly joiningGroups: number;
  readonly chunksLeft: number;
  readonly copiedBytes: number;
  /** Bytes copied in the last second or so. */
  readonly copyBytesPerSecond: number;
  /** What stands in the way of catching up; "" when nothing does. */
  readonly stuck: string;
  /** Disks of which requests wait here, and why. */
  readonly waiting: readonly { readonly disk: number; readonly reason: string }[];
  readonly damagedBlocks: number;
  /** As leader: voters that have come back without a part of the log of consensus that they had acknowledged. */
  readonly lostLogs: readonly number[];
  /** Its data paths. */
  readonly paths: readonly PathReport[];
  /** Another program is installed than the one that runs; null: cannot be said. */
  readonly isProgramNew: boolean | null;
  /** Its log of consensus contradicts the leader's: it cannot take part any more. */
  readonly hasOtherLog: boolean;
  /** What the disks that are open there do; null: it does not say. */
  readonly io: IoReport | null;
  /** How it gets on with disks that are flattened; null: none is left to it, or it does not say. */
  readonly flattening: FlattenReport | null;
}

/** Flattening of disks on a node. */
export interface FlattenReport {
  /** Bytes copied in the last second or so. */
  readonly bytesPerSecond: number;
  /** What stands in the way; "" when nothing does. */
  readonly stuck: string;
}

/** What the disks of a node do, all together, in the last second or so. Whole numbers. */
export interface IoReport {
  readonly readsPerSecond: number;
  readonly writesPerSecond: number;
  readonly readBytesPerSecond: number;
  readonly writtenBytesPerSecond: number;
  /** Requests under way. */
  readonly inFlight: number;
  /** Mean service time of those that were measured, in microseconds; 0: none was. */
  readonly latencyUs: number;
}

/** States of a data path as they travel: `PathState` of `paths/store_set.ts`. Only appended to. */
const PATH_STATES = ["ok", "failed", "missing", "left-out"] as const;

/** A data path of a node, for people. */
export interface PathReport {
  readonly location: string;
  readonly state: typeof PATH_STATES[number];
  /** Why it does not work; "" when it does. */
  readonly reason: string;
  readonly usedBytes: number;
  readonly capacityBytes: number;
  readonly isFull: boolean;
}

/** The report of a node that has nothing to tell. */
export const EMPTY_REPORT: NodeReport = {
  epoch: 0,
  unreachable: [],
  disconnected: [],
  usedBytes: 0,
  capacityBytes: 0,
  isFull: false,
  joiningGroups: 0,
  chunksLeft: 0,
  copiedBytes: 0,
  copyBytesPerSecond: 0,
  stuck: "",
  waiting: [],
  damagedBlocks: 0,
  lostLogs: [],
  paths: [],
  isProgramNew: null,
  hasOtherLog: false,
  io: null,
  flattening: null,
};

/** A control message. */
export type ControlMessage =
  | { readonly kind: ControlKind.Raft; readonly bytes: Uint8Array }
  | { readonly kind: ControlKind.Propose; readonly proposals: readonly Uint8Array[] }
  | { readonly kind: ControlKind.Join; readonly facts: NodeFacts }
  | { readonly kind: ControlKind.Joined; readonly node: number; readonly clusterId: string }
  | { readonly kind: ControlKind.Refused; readonly message: string }
  | {
    readonly kind: ControlKind.Renew;
    readonly node: number;
    readonly incarnation: number;
    readonly id: number;
    readonly report: NodeReport;
  }
  | { readonly kind: ControlKind.Renewed; readonly id: number }
  | {
    readonly kind: ControlKind.Lease;
    readonly node: number;
    readonly incarnation: number;
    readonly disk: number;
  }
  | { readonly kind: ControlKind.Ask; readonly id: number }
  | {
    readonly kind: ControlKind.Reports;
    readonly id: number;
    readonly reports: readonly (readonly [node: number, report: NodeReport])[];
  }
  | { readonly kind: ControlKind.Lead; readonly node: number; readonly address: string }
  | { readonly kind: ControlKind.Restart; readonly node: number; readonly incarnation: number }
  | {
    readonly kind: ControlKind.Removed;
    readonly node: number;
    readonly clusterId: string;
    readonly epoch: number;
  };

/** Proposals of one message. */
export const PROPOSALS_PER_MESSAGE_MAX = 64;
/** Nodes and disks named in one report. */
export const REPORT_LIST_MAX = 64;
/** Longest text in a message. */
const TEXT_LENGTH_MAX = 512;
const LIST_MAX = 1024;

const packr = new Packr({ useRecords: false, variableMapSize: true, moreTypes: false });

/** Encodes a message; bytes of the caller's own. */
export function encodeControl(message: ControlMessage): Uint8Array<ArrayBuffer> {
  return new Uint8Array(packr.pack(fieldsOf(message)));
}

function fieldsOf(message: ControlMessage): unknown[] {
  switch (message.kind) {
    case ControlKind.Raft:
      return [message.kind, message.bytes];
    case ControlKind.Propose:
      return [message.kind, message.proposals];
    case ControlKind.Join: {
      const { facts } = message;
      return [message.kind, [
        facts.uuid,
        facts.name,
        facts.address,
        facts.zone,
        facts.capacityBytes,
        facts.witness,
        facts.version,
        facts.protocol,
        facts.bootId,
        facts.nowMs,
        ...((facts.protocolMin ?? 1) === 1 ? [] : [facts.protocolMin]),
      ]];
    }
    case ControlKind.Joined:
      return [message.kind, message.node, message.clusterId];
    case ControlKind.Refused:
      return [message.kind, message.message];
    case ControlKind.Renew:
      return [
        message.kind,
        message.node,
        message.incarnation,
        message.id,
        reportFields(message.report),
      ];
    case ControlKind.Renewed:
      return [message.kind, message.id];
    case ControlKind.Lease:
      return [message.kind, message.node, message.incarnation, message.disk];
    case ControlKind.Ask:
      return [message.kind, message.id];
    case ControlKind.Reports:
      return [
        message.kind,
        message.id,
        message.reports.map(([node, report]) => [node, reportFields(report)]),
      ];
    case ControlKind.Lead:
      return [message.kind, message.node, message.address];
    case ControlKind.Restart:
      return [message.kind, message.node, message.incarnation];
    case ControlKind.Removed:
      return [message.kind, message.node, message.clusterId, message.epoch];
  }
}

function reportFields(report: NodeReport): unknown[] {
  return [
    report.unreachable.slice(0, REPORT_LIST_MAX),
    report.disconnected.slice(0, REPORT_LIST_MAX),
    report.usedBytes,
    report.capacityBytes,
    report.isFull,
    report.joiningGroups,
    report.chunksLeft,
    report.copiedBytes,
    report.stuck.slice(0, TEXT_LENGTH_MAX),
    report.waiting.slice(0, REPORT_LIST_MAX).map(({ disk, reason }) => [
      disk,
      reason.slice(0, TEXT_LENGTH_MAX),
    ]),
    report.damagedBlocks,
    report.copyBytesPerSecond,
    report.epoch,
    ...laterFields(report),
  ];
}

/** What came later: only where there is something to say. */
function laterFields(report: NodeReport): unknown[] {
  const { lostLogs, paths, isProgramNew, hasOtherLog, io, flattening } = report;
  const isMore = lostLogs.length + paths.length > 0 || isProgramNew !== null || hasOtherLog ||
    io !== null || flattening !== null;
  if (!isMore) return [];
  return [
    lostLogs.slice(0, REPORT_LIST_MAX),
    paths.slice(0, REPORT_LIST_MAX).map(pathFields),
    isProgramNew,
    ...(hasOtherLog || io !== null || flattening !== null ? [hasOtherLog] : []),
    ...(io !== null || flattening !== null ? [io === null ? null : ioFields(io)] : []),
    ...(flattening !== null ? [flatteningFields(flattening)] : []),
  ];
}

function flatteningFields({ bytesPerSecond, stuck }: FlattenReport): unknown[] {
  return [bytesPerSecond, stuck.slice(0, TEXT_LENGTH_MAX)];
}

function ioFields(io: IoReport): unknown[] {
  return [
    io.readsPerSecond,
    io.writesPerSecond,
    io.readBytesPerSecond,
    io.writtenBytesPerSecond,
    io.inFlight,
    io.latencyUs,
  ];
}

function pathFields(path: PathReport): unknown[] {
  return [
    path.location.slice(0, TEXT_LENGTH_MAX),
    PATH_STATES.indexOf(path.state),
    path.reason.slice(0, TEXT_LENGTH_MAX),
    path.usedBytes,
    path.capacityBytes,
    path.isFull,
  ];
}

/**
 * Decodes a message.
 *
 * @returns null for bytes that are none
 */
export function decodeControl(bytes: Uint8Array): ControlMessage | null {
  let fields: unknown;
  try {
    fields = packr.unpack(bytes);
  } catch {
    return null;
  }
  if (!Array.isArray(fields)) return null;
  const [kind, a, b, c, d] = fields;
  switch (kind) {
    case ControlKind.Raft:
      return a instanceof Uint8Array ? { kind, bytes: a } : null;
    case ControlKind.Propose:
      return isList(a, PROPOSALS_PER_MESSAGE_MAX) && a.every((each) => each instanceof Uint8Array)
        ? { kind, proposals: a as Uint8Array[] }
        : null;
    case ControlKind.Join: {
      const facts = readFacts(a);
      return facts === null ? null : { kind, facts };
    }
    case ControlKind.Joined:
      return isCount(a) && isText(b) ? { kind, node: a, clusterId: b } : null;
    case ControlKind.Refused:
      return isText(a) ? { kind, message: a } : null;
    case ControlKind.Renew: {
      const report = readReport(d);
      return isCount(a) && isCount(b) && isCount(c) && report !== null
        ? { kind, node: a, incarnation: b, id: c, report }
        : null;
    }
    case ControlKind.Renewed:
      return isCount(a) ? { kind, id: a } : null;
    case ControlKind.Lease:
      return isCount(a) && isCount(b) && isCount(c)
        ? { kind, node: a, incarnation: b, disk: c }
        : null;
    case ControlKind.Ask:
      return isCount(a) ? { kind, id: a } : null;
    case ControlKind.Reports:
      return isCount(a) && isList(b, LIST_MAX) ? readReports(a, b) : null;
    case ControlKind.Lead:
      return isCount(a) && isText(b) ? { kind, node: a, address: b } : null;
    case ControlKind.Restart:
      return isCount(a) && isCount(b) ? { kind, node: a, incarnation: b } : null;
    case ControlKind.Removed:
      return isCount(a) && isText(b) && isCount(c)
        ? { kind, node: a, clusterId: b, epoch: c }
        : null;
    default:
      return null;
  }
}

function readReports(id: number, list: readonly unknown[]): ControlMessage | null {
  const reports: [number, NodeReport][] = [];
  for (const item of list) {
    if (!Array.isArray(item) || !isCount(item[0])) return null;
    const report = readReport(item[1]);
    if (report === null) return null;
    reports.push([item[0], report]);
  }
  return { kind: ControlKind.Reports, id, reports };
}

function readReport(value: unknown): NodeReport | null {
  if (!Array.isArray(value) || value.length < 13) return null;
  const [
    unreachable,
    disconnected,
    usedBytes,
    capacityBytes,
    isFull,
    joiningGroups,
    chunksLeft,
    copiedBytes,
    stuck,
    waiting,
    damagedBlocks,
    copyBytesPerSecond,
    epoch,
    lostLogs = [],
    paths = [],
    isProgramNew = null,
    hasOtherLog = false,
    io = null,
    flattening = null,
  ] = value;
  const isRight = isCounts(unreachable) && isCounts(disconnected) && isCount(usedBytes) &&
    isCount(capacityBytes) && typeof isFull === "boolean" && isCount(joiningGroups) &&
    isCount(chunksLeft) && isCount(copiedBytes) && isText(stuck) &&
    isList(waiting, REPORT_LIST_MAX) && isCount(damagedBlocks) &&
    isCount(copyBytesPerSecond) && isCount(epoch) &&
    isCounts(lostLogs) && isList(paths, REPORT_LIST_MAX) &&
    (isProgramNew === null || typeof isProgramNew === "boolean") &&
    typeof hasOtherLog === "boolean";
  if (!isRight) return null;
  const knownIo = io === null ? null : readIo(io);
  if (knownIo === undefined) return null;
  const knownFlattening = flattening === null ? null : readFlattening(flattening);
  if (knownFlattening === undefined) return null;
  const known = paths.map(readPath);
  if (known.some((path) => path === null)) return null;
  const waits: { disk: number; reason: string }[] = [];
  for (const item of waiting) {
    if (!Array.isArray(item) || !isCount(item[0]) || !isText(item[1])) return null;
    waits.push({ disk: item[0], reason: item[1] });
  }
  return {
    epoch,
    unreachable,
    disconnected,
    usedBytes,
    capacityBytes,
    isFull,
    joiningGroups,
    chunksLeft,
    copiedBytes,
    copyBytesPerSecond,
    stuck,
    waiting: waits,
    damagedBlocks,
    lostLogs,
    paths: known as PathReport[],
    isProgramNew,
    hasOtherLog,
    io: knownIo,
    flattening: knownFlattening,
  };
}

/** Undefined: it is none. */
function readFlattening(value: unknown): FlattenReport | undefined {
  if (!Array.isArray(value)) return undefined;
  const [bytesPerSecond, stuck] = value;
  return isCount(bytesPerSecond) && isText(stuck) ? { bytesPerSecond, stuck } : undefined;
}

/** Undefined: it is none. */
function readIo(value: unknown): IoReport | undefined {
  if (!isCounts(value) || value.length < 6) return undefined;
  const [
    readsPerSecond,
    writesPerSecond,
    readBytesPerSecond,
    writtenBytesPerSecond,
    inFlight,
    latencyUs,
  ] = value;
  return {
    readsPerSecond,
    writesPerSecond,
    readBytesPerSecond,
    writtenBytesPerSecond,
    inFlight,
    latencyUs,
  };
}

function readPath(value: unknown): PathReport | null {
  if (!Array.isArray(value)) return null;
  const [location, number, reason, usedBytes, capacityBytes, isFull] = value;
  const state = isCount(number) ? PATH_STATES[number] : undefined;
  const isRight = isText(location) && state !== undefined && isText(reason) &&
    isCount(usedBytes) && isCount(capacityBytes) && typeof isFull === "boolean";
  return isRight ? { location, state, reason, usedBytes, capacityBytes, isFull } : null;
}

/** Types only: the map checks the values. */
function readFacts(value: unknown): NodeFacts | null {
  if (!Array.isArray(value)) return null;
  const [uuid, name, address, zone, capacityBytes, witness, version, protocol, bootId, nowMs] =
    value;
  const protocolMin = value[10] ?? 1;
  const isRight = isText(uuid) && isText(name) && isText(address) && isText(zone) &&
    isCount(capacityBytes) && typeof witness === "boolean" && isText(version) &&
    isCount(protocol) && isText(bootId) && isCount(nowMs) && isCount(protocolMin);
  if (!isRight) return null;
  return {
    ...{ uuid, name, address, zone, capacityBytes, witness, version, protocol, bootId, nowMs },
    ...(protocolMin === 1 ? {} : { protocolMin }),
  };
}

function isCount(value: unknown): value is number {
  return Number.isSafeInteger(value) && (value as number) >= 0;
}

function isCounts(value: unknown): value is number[] {
  return isList(value, REPORT_LIST_MAX) && value.every(isCount);
}

function isText(value: unknown): value is string {
  return typeof value === "string" && value.length <= TEXT_LENGTH_MAX;
}

function isList(value: unknown, most: number): value is unknown[] {
  return Array.isArray(value) && value.length <= most;
}
