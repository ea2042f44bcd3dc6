/**
 * What nodes say to each other about consensus, and how it is written.
 *
 * MessagePack without extensions, version 1; one message:
 *
 *     [ version, kind, from, to, term, … ]                  term: of the sender, but for votes
 *
 *     1 append             prevIndex, prevTerm, commit, [ term, kind, data, … ]  from prevIndex + 1
 *     2 append-response    index, isRejected, agreedIndex, agreedTerm
 *     3 heartbeat          commit, round
 *     4 heartbeat-response round
 *     5 vote               isPre, isTransfer, lastIndex, lastTerm
 *     6 vote-response      isPre, isGranted
 *     7 snapshot           index, snapshotTerm, configuration, totalBytes, checksum, offset, data
 *     8 snapshot-response  index, snapshotTerm, offset
 *     9 timeout-now
 *
 * Numbers are whole, 0…2^52. Kinds are only appended, and fields only with a new version. Decoding
 * trusts nothing: size, types, ranges and what fields mean together are checked, and data is
 * copied.
 *
 * @module
 */

import { Packr } from "msgpackr";
import { failure, type Result, success } from "../map/errors.ts";
import {
  type Configuration,
  decodeConfiguration,
  encodeConfiguration,
  isNodeId,
} from "./configuration.ts";
import {
  APPEND_ENTRIES_MAX,
  COUNTER_MAX,
  ENTRY_BYTES_MAX,
  MESSAGE_BYTES_MAX,
  SNAPSHOT_BYTES_MAX,
  SNAPSHOT_PART_BYTES_MAX,
} from "./limits.ts";
import { type Entry, ENTRY_CONFIGURATION, ENTRY_DATA, ENTRY_EMPTY, type EntryKind } from "./log.ts";

/** Version that {@linkcode encodeMessage} writes, and the only one that is read. */
export const MESSAGE_VERSION = 1;

/** What every message has. */
interface Head {
  /** Sender, 1…65535. */
  readonly from: number;
  /** Receiver, 1…65535. */
  readonly to: number;
  /** The sender's term; of an enquiry before a vote, and its grant, the term that would be next. */
  readonly term: number;
}

/** A leader's entries after `prevIndex`, perhaps none. */
export interface AppendMessage extends Head {
  readonly kind: "append";
  readonly prevIndex: number;
  /** Term of the entry at `prevIndex`. */
  readonly prevTerm: number;
  /** The leader's commit index. */
  readonly commit: number;
  /** Consecutive from `prevIndex + 1`. */
  readonly entries: readonly Entry[];
}

/** Everything up to `index` is durable here, or the entry at `index` is not the leader's. */
export interface AppendResponse extends Head {
  readonly kind: "append-response";
  readonly index: number;
  readonly isRejected: boolean;
  /** Rejected: last index where the logs may agree… */
  readonly agreedIndex: number;
  /** …and the term of that entry here. */
  readonly agreedTerm: number;
}

/** The leader lives. */
export interface HeartbeatMessage extends Head {
  readonly kind: "heartbeat";
  /** What the leader has committed of what the receiver is known to hold. */
  readonly commit: number;
  /** Number of the newest round of reads, counted in the leader's term. */
  readonly round: number;
}

/** The sender follows this leader. */
export interface HeartbeatResponse extends Head {
  readonly kind: "heartbeat-response";
  readonly round: number;
}

/** Asks for a vote, or (`isPre`) whether there would be one. */
export interface VoteMessage extends Head {
  readonly kind: "vote";
  readonly isPre: boolean;
  /** The leader asked for it: that it was heard lately is no reason to refuse. */
  readonly isTransfer: boolean;
  readonly lastIndex: number;
  readonly lastTerm: number;
}

/** Answers a {@linkcode VoteMessage}. */
export interface VoteResponse extends Head {
  readonly kind: "vote-response";
  readonly isPre: boolean;
  readonly isGranted: boolean;
}

/** A part of a snapshot; every part says all about the whole. */
export interface SnapshotMessage extends Head {
  readonly kind: "snapshot";
  /** Last index that the snapshot covers. */
  readonly index: number;
  readonly snapshotTerm: number;
  readonly configuration: Configuration;
  readonly totalBytes: number;
  /** CRC-32C of all bytes. */
  readonly checksum: number;
  /** Where this part begins. */
  readonly offset: number;
  readonly data: Uint8Array;
}

/** So many bytes of that snapshot are here, without gaps. */
export interface SnapshotResponse extends Head {
  readonly kind: "snapshot-response";
  readonly index: number;
  readonly snapshotTerm: number;
  readonly offset: number;
}

/** The leader wants the receiver to stand for election at once. */
export interface TimeoutNowMessage extends Head {
  readonly kind: "timeout-now";
}

/** Everything that nodes say to each other about consensus. */
export type Message =
  | AppendMessage
  | AppendResponse
  | HeartbeatMessage
  | HeartbeatResponse
  | VoteMessage
  | VoteResponse
  | SnapshotMessage
  | SnapshotResponse
  | TimeoutNowMessage;

/** Numbers of the kinds on the wire: place + 1. */
const KINDS: readonly Message["kind"][] = [
  "append",
  "append-response",
  "heartbeat",
  "heartbeat-response",
  "vote",
  "vote-response",
  "snapshot",
  "snapshot-response",
  "timeout-now",
];

const HEAD_FIELDS = 5;
/** Fields of an entry in an append message. */
const ENTRY_FIELDS = 3;

/** Plain MessagePack: no records, no extensions, smallest headers. */
const packr = new Packr({ useRecords: false, variableMapSize: true, moreTypes: false });

/**
 * Encodes a message.
 *
 * @param message as a {@link Raft} makes it
 * @returns up to `MESSAGE_BYTES_MAX` bytes, of the caller's own
 *
 * @example
 * ```ts
 * import { decodeMessage, encodeMessage } from "./messages.ts";
 *
 * const bytes = encodeMessage({ kind: "timeout-now", from: 1, to: 2, term: 7 });
 * const result = decodeMessage(bytes);
 * console.assert(result.ok && result.value.term === 7);
 * ```
 */
export function encodeMessage(message: Message): Uint8Array<ArrayBuffer> {
  const kind = KINDS.indexOf(message.kind) + 1;
  const head = [MESSAGE_VERSION, kind, message.from, message.to, message.term];
  const packed = packr.pack([...head, ...fieldsOf(message)]);
  if (packed.length > MESSAGE_BYTES_MAX) {
    throw new Error(`raft: ${message.kind} of ${packed.length} bytes, up to ${MESSAGE_BYTES_MAX}`);
  }
  // msgpackr returns a slice of its own buffer, which the next call writes again.
  return new Uint8Array(packed);
}

function fieldsOf(message: Message): unknown[] {
  switch (message.kind) {
    case "append":
      return [
        message.prevIndex,
        message.prevTerm,
        message.commit,
        message.entries.flatMap((entry) => [entry.term, entry.kind, entry.data]),
      ];
    case "append-response":
      return [message.index, message.isRejected, message.agreedIndex, message.agreedTerm];
    case "heartbeat":
      return [message.commit, message.round];
    case "heartbeat-response":
      return [message.round];
    case "vote":
      return [message.isPre, message.isTransfer, message.lastIndex, message.lastTerm];
    case "vote-response":
      return [message.isPre, message.isGranted];
    case "snapshot":
      return [
        message.index,
        message.snapshotTerm,
        encodeConfiguration(message.configuration),
        message.totalBytes,
        message.checksum,
        message.offset,
        message.data,
      ];
    case "snapshot-response":
      return [message.index, message.snapshotTerm, message.offset];
    case "timeout-now":
      return [];
  }
}

/**
 * Decodes a message from a peer.
 *
 * @param bytes anything; not kept
 * @returns the message, or an error: `corrupt` for bytes that are none, `limit` for a newer version
 */
export function decodeMessage(bytes: Uint8Array): Result<Message> {
  if (bytes.length > MESSAGE_BYTES_MAX) {
    return corrupt(`it has ${bytes.length} bytes, and ${MESSAGE_BYTES_MAX} is the most`);
  }
  let decoded: unknown;
  try {
    decoded = packr.unpack(bytes);
  } catch {
    return corrupt("it is not MessagePack");
  }
  if (!Array.isArray(decoded) || decoded.length < HEAD_FIELDS) return corrupt("it is no list");
  const [version, kind, from, to, term] = decoded;
  if (!isCounter(version) || version < 1) return corrupt("its version is not a number");
  if (version > MESSAGE_VERSION) {
    return failure(
      "limit",
      `a message of consensus has version ${version}, and this Kelpie reads ${MESSAGE_VERSION}`,
      "use the same version of Kelpie on every node",
    );
  }
  if (!isNodeId(from) || !isNodeId(to) || !isCounter(term) || term < 1) {
    return corrupt("its head is wrong");
  }
  const message = isCounter(kind)
    ? readFields(KINDS[kind - 1], { from, to, term }, decoded.slice(HEAD_FIELDS))
    : null;
  return message === null ? corrupt("a field is wrong") : success(message);
}

function corrupt(reason: string): Result<Message> {
  return failure("corrupt", `a message of consensus is damaged: ${reason}`);
}

function isCounter(value: unknown): value is number {
  return typeof value === "number" && Number.isInteger(value) && value >= 0 &&
    value <= COUNTER_MAX;
}

function isCounters(values: unknown[]): values is number[] {
  return values.every(isCounter);
}

function isFlag(value: unknown): value is boolean {
  return typeof value === "boolean";
}

/** Number of fields behind the head. */
const FIELD_COUNTS: Record<Message["kind"], number> = {
  "append": 4,
  "append-response": 4,
  "heartbeat": 2,
  "heartbeat-response": 1,
  "vote": 4,
  "vote-response": 2,
  "snapshot": 7,
  "snapshot-response": 3,
  "timeout-now": 0,
};

function readFields(
  kind: Message["kind"] | undefined,
  head: Head,
  fields: unknown[],
): Message | null {
  if (kind === undefined || fields.length !== FIELD_COUNTS[kind]) return null;
  switch (kind) {
    case "append":
      return readAppend(head, fields);
    case "append-response": {
      const [index, isRejected, agreedIndex, agreedTerm] = fields;
      if (!isCounter(index) || !isFlag(isRejected)) return null;
      if (!isCounter(agreedIndex) || !isCounter(agreedTerm)) return null;
      return { kind, ...head, index, isRejected, agreedIndex, agreedTerm };
    }
    case "heartbeat":
      if (!isCounters(fields)) return null;
      return { kind, ...head, commit: fields[0], round: fields[1] };
    case "heartbeat-response":
      return isCounters(fields) ? { kind, ...head, round: fields[0] } : null;
    case "vote": {
      const [isPre, isTransfer, lastIndex, lastTerm] = fields;
      if (!isFlag(isPre) || !isFlag(isTransfer)) return null;
      if (!isCounter(lastIndex) || !isCounter(lastTerm) || lastTerm >= head.term) return null;
      return { kind, ...head, isPre, isTransfer, lastIndex, lastTerm };
    }
    case "vote-response": {
      const [isPre, isGranted] = fields;
      return isFlag(isPre) && isFlag(isGranted) ? { kind, ...head, isPre, isGranted } : null;
    }
    case "snapshot":
      return readSnapshot(head, fields);
    case "snapshot-response":
      if (!isCounters(fields)) return null;
      return { kind, ...head, index: fields[0], snapshotTerm: fields[1], offset: fields[2] };
    case "timeout-now":
      return { kind, ...head };
  }
}

function readAppend(head: Head, fields: unknown[]): AppendMessage | null {
  const [prevIndex, prevTerm, commit, list] = fields;
  if (!isCounter(prevIndex) || !isCounter(prevTerm) || !isCounter(commit)) return null;
  if ((prevIndex === 0) !== (prevTerm === 0)) return null;
  const entries = readEntries(list, { index: prevIndex, term: prevTerm });
  if (entries === null) return null;
  if ((entries.at(-1)?.term ?? prevTerm) > head.term) return null;
  return { kind: "append", ...head, prevIndex, prevTerm, commit, entries };
}

/**
 * Reads a flat list of entries, `[ term, kind, data, … ]`, as messages and durable values have it.
 *
 * @param list anything
 * @param previous the entry before the first
 * @returns entries with copies of their data and sound configurations; null where the list is none
 */
export function readEntries(
  list: unknown,
  previous: { index: number; term: number },
): Entry[] | null {
  if (!Array.isArray(list) || list.length % ENTRY_FIELDS !== 0) return null;
  if (list.length > APPEND_ENTRIES_MAX * ENTRY_FIELDS) return null;
  const entries: Entry[] = [];
  let lastTerm = previous.term;
  for (let place = 0; place < list.length; place += ENTRY_FIELDS) {
    const [term, kind, data] = list.slice(place, place + ENTRY_FIELDS);
    const index = previous.index + 1 + entries.length;
    if (!isCounter(index) || !isCounter(term) || term < Math.max(1, lastTerm)) return null;
    if (!isKind(kind) || !isBytes(data, ENTRY_BYTES_MAX)) return null;
    if (kind === ENTRY_EMPTY && data.length > 0) return null;
    if (kind === ENTRY_CONFIGURATION && decodeConfiguration(data) === null) return null;
    entries.push({ index, term, kind, data: new Uint8Array(data) });
    lastTerm = term;
  }
  return entries;
}

function isKind(value: unknown): value is EntryKind {
  return value === ENTRY_EMPTY || value === ENTRY_DATA || value === ENTRY_CONFIGURATION;
}

function isBytes(value: unknown, lengthMax: number): value is Uint8Array {
  return value instanceof Uint8Array && value.length <= lengthMax;
}

function readSnapshot(head: Head, fields: unknown[]): SnapshotMessage | null {
  const [index, snapshotTerm, packed, totalBytes, checksum, offset, data] = fields;
  if (!isCounter(index) || !isCounter(snapshotTerm) || index < 1 || snapshotTerm < 1) return null;
  if (snapshotTerm > head.term || !isBytes(packed, MESSAGE_BYTES_MAX)) return null;
  if (!isCounter(totalBytes) || totalBytes > SNAPSHOT_BYTES_MAX) return null;
  if (!isCounter(checksum) || checksum > 0xffff_ffff || !isCounter(offset)) return null;
  if (!isBytes(data, SNAPSHOT_PART_BYTES_MAX) || offset + data.length > totalBytes) return null;
  const configuration = decodeConfiguration(packed);
  if (configuration === null) return null;
  return {
    kind: "snapshot",
    ...head,
    index,
    snapshotTerm,
    configuration,
    totalBytes,
    checksum,
    offset,
    data: new Uint8Array(data),
  };
}
