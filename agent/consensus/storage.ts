/**
 * The durable state of a node as small named values, as the store's META keeps them.
 *
 *     raft/state                     term and vote, id of the node
 *     raft/snapshot                  head: which of two places holds the snapshot, all about it
 *     raft/part/P/NNNN               place P (0, 1), part NNNN: its data, up to PART_BYTES each
 *     raft/log/IIIIIIIIIIIIII        a run of entries; the first one's index, 14 hexadecimal digits
 *
 * A value, little-endian:
 *
 *      0  magic      4 bytes "KRFT"
 *      4  version    u8, 1
 *      5  kind       u8: 1 state, 2 snapshot head, 3 part, 4 run
 *      6  reserved   u16, 0
 *      8  checksum   u32, CRC-32C of the key (UTF-8) and of the value without these four bytes
 *     12  body       part: the data; otherwise MessagePack:
 *                      state    [ id, term, vote ]
 *                      head     [ place, index, term, configuration, bytes, checksum of the data ]
 *                      run      [ index before, term before, commit, [ term, kind, data, … ] ]
 *
 * The entries of one persist make one run (or more, where they are long): a value costs the store a
 * block for its head and one for each 4 KiB, so that entries under load share both, and a lone one
 * costs 8 KiB. Nothing is written for a commit index alone: each run carries what was known then,
 * and a leader tells the rest.
 *
 * Writes become durable in their order, and a crash may come between any two of them:
 *
 * - term and vote come before anything that was done in that term;
 * - a snapshot goes to the place that is not in use, then the head makes it the one, then what it
 *   replaces is removed: the other place's parts, and runs, newest first;
 * - entries that conflict are removed from the end, newest first, before others take their place; a
 *   run that is cut in two is written anew, shorter. So runs never overlap, and what is there is
 *   always a log that this node once had.
 *
 * After a crash there may be runs that do not fit the snapshot (it replaced them), and parts in the
 * other place. Both are recognised, ignored, and removed with the next writes. Everything else that
 * does not fit is damage, and said to be.
 *
 * @module
 */

import { Packr } from "msgpackr";
import { failure, type Result, success } from "../map/errors.ts";
import { crc32c } from "./checksum.ts";
import { decodeConfiguration, encodeConfiguration, isNodeId } from "./configuration.ts";
import { APPEND_ENTRIES_MAX, COUNTER_MAX, SNAPSHOT_BYTES_MAX, VALUE_BYTES_MAX } from "./limits.ts";
import { EMPTY_SNAPSHOT, type Entry, entryBytes, type Snapshot } from "./log.ts";
import { readEntries } from "./messages.ts";
import type { HardState, Persist, RaftState } from "./ready.ts";

/** Version that is written, and the only one that is read. */
export const STORAGE_VERSION = 1;

/** All keys begin with it, and no other part's keys do. */
export const STORAGE_PREFIX = "raft/";

/** One write: a value to set, or `null` to remove the key. */
export interface StorageWrite {
  readonly key: string;
  /** Up to `VALUE_BYTES_MAX` bytes, of the receiver's own. */
  readonly value: Uint8Array<ArrayBuffer> | null;
}

/** What was read at the start. */
export interface Loaded {
  /** For the {@link Raft}. */
  readonly state: RaftState;
  /** Knows what is written, for what is to be. */
  readonly storage: RaftStorage;
}

const STATE_KEY = `${STORAGE_PREFIX}state`;
const HEAD_KEY = `${STORAGE_PREFIX}snapshot`;
const PART_PREFIX = `${STORAGE_PREFIX}part/`;
const LOG_PREFIX = `${STORAGE_PREFIX}log/`;
/** Enough for COUNTER_MAX, so that keys sort like indexes. */
const INDEX_DIGITS = 14;
const PART_DIGITS = 4;

const MAGIC = 0x5446524b; // "KRFT"
const HEAD_BYTES = 12;
const CHECKSUM_OFFSET = 8;
const KIND_STATE = 1;
const KIND_HEAD = 2;
const KIND_PART = 3;
const KIND_RUN = 4;

/** Bytes of a snapshot in one part: 14 whole blocks of the store together with the part's head. */
const PART_BYTES = 56 * 1024 - HEAD_BYTES;

/** Entries beyond this begin another run; with one longest entry more it is still a value. */
const RUN_BYTES = VALUE_BYTES_MAX - 64;

const packr = new Packr({ useRecords: false, variableMapSize: true, moreTypes: false });

/** A run of entries that is written. */
interface Run {
  readonly firstIndex: number;
  readonly entries: readonly Entry[];
  /** Term of the entry before. */
  readonly previousTerm: number;
  readonly commit: number;
}

/** Where a snapshot is. */
interface SnapshotHead {
  readonly place: number;
  readonly index: number;
  readonly term: number;
  readonly configuration: Snapshot["configuration"];
  readonly bytes: number;
  readonly checksum: number;
}

/**
 * Turns persists into writes. It keeps in mind what is written, so there is one for each node, from
 * {@linkcode load} on, and every write that it returns is carried out, in order.
 *
 * @example
 * ```ts
 * import { Raft } from "./raft.ts";
 * import { load, writeInitial } from "./storage.ts";
 *
 * const values = new Map<string, Uint8Array>();
 * for (const { key, value } of writeInitial(1, Raft.bootstrap(1))) values.set(key, value!);
 * const result = load(values, 1);
 * console.assert(result.ok && result.value?.state.term === 1);
 * ```
 */
export class RaftStorage {
  readonly #id: number;
  /** Index of the snapshot, and the place where it is; none: 0. */
  #snapshotIndex: number;
  #place: number;
  #partCount: number;
  #runs: Run[];
  #lastTerm: number;
  /** Keys that a crash has left behind. */
  #garbage: string[];

  /** From {@linkcode load} and {@linkcode writeInitial} only. */
  constructor(
    id: number,
    head: SnapshotHead | null,
    runs: readonly Run[],
    garbage: readonly string[],
  ) {
    this.#id = id;
    this.#snapshotIndex = head?.index ?? 0;
    this.#place = head?.place ?? 1;
    this.#partCount = head === null ? 0 : partCountOf(head.bytes);
    this.#runs = [...runs];
    this.#lastTerm = runs.at(-1)?.entries.at(-1)?.term ?? head?.term ?? 0;
    this.#garbage = [...garbage];
  }

  /**
   * The writes of a persist.
   *
   * @param persist the next one of the node's {@link Raft}
   * @returns to be carried out in this order; the persist is durable when the last one is. Empty:
   * when everything before is
   */
  write(persist: Persist): StorageWrite[] {
    const writes: StorageWrite[] = this.#garbage.map((key) => ({ key, value: null }));
    this.#garbage = [];
    if (persist.hardState !== null) writes.push(this.#writeState(persist.hardState));
    if (persist.snapshot !== null) this.#writeSnapshot(persist.snapshot, persist, writes);
    if (persist.entries.length > 0) this.#writeEntries(persist, writes);
    return writes;
  }

  #writeState({ term, vote }: HardState): StorageWrite {
    return {
      key: STATE_KEY,
      value: seal(STATE_KEY, KIND_STATE, packr.pack([this.#id, term, vote])),
    };
  }

  #writeSnapshot(snapshot: Snapshot, persist: Persist, writes: StorageWrite[]): void {
    const place = 1 - this.#place;
    const { data, index, term } = snapshot;
    const partCount = partCountOf(data.length);
    for (let part = 0; part < partCount; part++) {
      const key = partKey(place, part);
      const body = data.subarray(part * PART_BYTES, (part + 1) * PART_BYTES);
      writes.push({ key, value: seal(key, KIND_PART, body) });
    }
    const configuration = encodeConfiguration(snapshot.configuration);
    const fields = [place, index, term, configuration, data.length, crc32c(data)];
    writes.push({ key: HEAD_KEY, value: seal(HEAD_KEY, KIND_HEAD, packr.pack(fields)) });
    for (let part = 0; part < this.#partCount; part++) {
      writes.push({ key: partKey(this.#place, part), value: null });
    }
    this.#place = place;
    this.#partCount = partCount;
    this.#snapshotIndex = index;
    this.#dropRuns(persist.isLogReplaced, writes);
    if (this.#runs.length === 0) this.#lastTerm = term;
  }

  /** Removes the runs that the snapshot covers, or all of them. */
  #dropRuns(isAll: boolean, writes: StorageWrite[]): void {
    const isDropped = (run: Run) => isAll || lastIndexOf(run) <= this.#snapshotIndex;
    // Newest first: what a crash leaves of a replaced log has no gap between it and the snapshot.
    for (const run of this.#runs.toReversed()) {
      if (isDropped(run)) writes.push({ key: runKey(run.firstIndex), value: null });
    }
    this.#runs = this.#runs.filter((run) => !isDropped(run));
  }

  #writeEntries(persist: Persist, writes: StorageWrite[]): void {
    this.#truncate(persist.entries[0].index, persist.commit, writes);
    let first = 0;
    while (first < persist.entries.length) {
      let end = first;
      for (let bytes = 0; end < persist.entries.length && end - first < APPEND_ENTRIES_MAX; end++) {
        bytes += entryBytes(persist.entries[end]);
        if (bytes > RUN_BYTES && end > first) break;
      }
      this.#writeRun(persist.entries.slice(first, end), persist.commit, writes);
      first = end;
    }
  }

  #writeRun(entries: readonly Entry[], commit: number, writes: StorageWrite[]): void {
    const run = {
      firstIndex: entries[0].index,
      entries,
      previousTerm: this.#lastTerm,
      commit,
    };
    writes.push({ key: runKey(run.firstIndex), value: packRun(run) });
    this.#runs.push(run);
    this.#lastTerm = entries.at(-1)!.term;
  }

  /** Removes what is written from `index` on. */
  #truncate(index: number, commit: number, writes: StorageWrite[]): void {
    while (this.#runs.length > 0 && lastIndexOf(this.#runs.at(-1)!) >= index) {
      const run = this.#runs.pop()!;
      this.#lastTerm = run.previousTerm;
      if (run.firstIndex < index) {
        this.#writeRun(run.entries.slice(0, index - run.firstIndex), commit, writes);
      } else {
        writes.push({ key: runKey(run.firstIndex), value: null });
      }
    }
  }
}

/**
 * The writes of a new node's state, for a store without any.
 *
 * @param id of the node, 1…65535
 * @param state from `Raft.bootstrap` or `Raft.joining`
 */
export function writeInitial(id: number, state: RaftState): StorageWrite[] {
  const storage = new RaftStorage(id, null, [], []);
  return storage.write({
    token: 0,
    hardState: { term: state.term, vote: state.vote },
    snapshot: state.snapshot.index > 0 ? state.snapshot : null,
    isLogReplaced: false,
    entries: state.entries,
    commit: state.commit,
    messages: [],
  });
}

/**
 * Reads a node's state.
 *
 * @param values everything whose key begins with {@linkcode STORAGE_PREFIX}; other keys are ignored
 * @param id of the node: state of another one is refused
 * @returns null where there is none; or an error: `corrupt` for damage, `invalid` for another
 * node's state, `limit` for a newer version
 */
export function load(
  values: Iterable<readonly [string, Uint8Array]>,
  id: number,
): Result<Loaded | null> {
  const own = new Map([...values].filter(([key]) => key.startsWith(STORAGE_PREFIX)));
  const packed = own.get(STATE_KEY);
  if (packed === undefined) {
    return own.size === 0 ? success(null) : corrupt(STATE_KEY, "it is missing");
  }
  const hardState = readState(packed);
  if (!hardState.ok) return hardState;
  if (hardState.value.id !== id) {
    return failure(
      "invalid",
      `the store holds the consensus state of node ${hardState.value.id}, and this is node ${id}`,
      "start the node with its own store",
    );
  }
  const head = readHead(own.get(HEAD_KEY));
  if (!head.ok) return head;
  const snapshot = readSnapshot(own, head.value);
  if (!snapshot.ok) return snapshot;
  const runs = readRuns(own);
  if (!runs.ok) return runs;
  const live = connect(runs.value, snapshot.value);
  if (!live.ok) return live;
  const { term, vote } = hardState.value;
  const entries = live.value.flatMap((run) => run.entries)
    .filter((entry) => entry.index > snapshot.value.index);
  if ((entries.at(-1)?.term ?? snapshot.value.term) > term) {
    return corrupt(STATE_KEY, `term ${term} is older than the log`);
  }
  const last = entries.at(-1)?.index ?? snapshot.value.index;
  const known = live.value.reduce((most, run) => Math.max(most, run.commit), snapshot.value.index);
  const used = new Set([STATE_KEY, HEAD_KEY, ...live.value.map((run) => runKey(run.firstIndex))]);
  for (let part = 0; part < partCountOf(head.value?.bytes ?? 0); part++) {
    used.add(partKey(head.value!.place, part));
  }
  const garbage = [...own.keys()].filter((key) => !used.has(key)).sort().reverse();
  return success({
    state: { term, vote, snapshot: snapshot.value, entries, commit: Math.min(known, last) },
    // What a crash has left is removed as it was going to be, newest first.
    storage: new RaftStorage(id, head.value, live.value, garbage),
  });
}

function readState(value: Uint8Array): Result<HardState & { id: number }> {
  const fields = openList(STATE_KEY, KIND_STATE, value, 3);
  if (!fields.ok) return fields;
  const [id, term, vote] = fields.value;
  if (!isNodeId(id) || !isCounter(term) || !(vote === 0 || isNodeId(vote))) {
    return corrupt(STATE_KEY, "a field is wrong");
  }
  return success({ id, term, vote });
}

function readHead(value: Uint8Array | undefined): Result<SnapshotHead | null> {
  if (value === undefined) return success(null);
  const fields = openList(HEAD_KEY, KIND_HEAD, value, 6);
  if (!fields.ok) return fields;
  const [place, index, term, packed, bytes, checksum] = fields.value;
  const configuration = packed instanceof Uint8Array ? decodeConfiguration(packed) : null;
  const isSound = (place === 0 || place === 1) && isCounter(index) && index >= 1 &&
    isCounter(term) && term >= 1 && configuration !== null && isCounter(bytes) &&
    bytes <= SNAPSHOT_BYTES_MAX && isCounter(checksum);
  return isSound
    ? success({ place, index, term, configuration, bytes, checksum })
    : corrupt(HEAD_KEY, "a field is wrong");
}

function readSnapshot(
  values: ReadonlyMap<string, Uint8Array>,
  head: SnapshotHead | null,
): Result<Snapshot> {
  if (head === null) return success(EMPTY_SNAPSHOT);
  const { index, term, configuration, place, bytes } = head;
  const data = new Uint8Array(bytes);
  for (let part = 0; part < partCountOf(bytes); part++) {
    const key = partKey(place, part);
    const body = open(key, KIND_PART, values.get(key));
    if (!body.ok) return body;
    const offset = part * PART_BYTES;
    if (body.value.length !== Math.min(PART_BYTES, bytes - offset)) {
      return corrupt(key, `it has ${body.value.length} bytes`);
    }
    data.set(body.value, offset);
  }
  if (crc32c(data) !== head.checksum) return corrupt(HEAD_KEY, "the parts are not its own");
  return success({ index, term, configuration, data });
}

function readRuns(values: ReadonlyMap<string, Uint8Array>): Result<Run[]> {
  const runs: Run[] = [];
  for (const key of [...values.keys()].filter((each) => each.startsWith(LOG_PREFIX)).sort()) {
    const fields = openList(key, KIND_RUN, values.get(key), 4);
    if (!fields.ok) return fields;
    const [previousIndex, previousTerm, commit, list] = fields.value;
    if (!isCounter(previousIndex) || !isCounter(previousTerm) || !isCounter(commit)) {
      return corrupt(key, "a field is wrong");
    }
    const entries = readEntries(list, { index: previousIndex, term: previousTerm });
    if (entries === null || entries.length === 0 || runKey(previousIndex + 1) !== key) {
      return corrupt(key, "an entry is wrong");
    }
    runs.push({ firstIndex: previousIndex + 1, entries, previousTerm, commit });
  }
  return success(runs);
}

/** The runs that follow the snapshot and each other. */
function connect(runs: readonly Run[], snapshot: Snapshot): Result<Run[]> {
  const live = runs.filter((run) => lastIndexOf(run) > snapshot.index);
  for (const [place, run] of live.entries()) {
    const key = runKey(run.firstIndex);
    if (place > 0) {
      const previous = live[place - 1];
      const isNext = lastIndexOf(previous) + 1 === run.firstIndex &&
        previous.entries.at(-1)!.term === run.previousTerm;
      if (!isNext) return corrupt(key, `it does not follow entry ${lastIndexOf(previous)}`);
    } else if (run.firstIndex > snapshot.index + 1) {
      return corrupt(key, `entries ${snapshot.index + 1} to ${run.firstIndex - 1} are missing`);
    } else {
      const within = run.entries[snapshot.index - run.firstIndex];
      // The snapshot replaced this log, and the crash came before its runs were removed.
      if ((within?.term ?? run.previousTerm) !== snapshot.term) return success([]);
    }
  }
  return success(live);
}

function packRun(run: Run): Uint8Array<ArrayBuffer> {
  const list = run.entries.flatMap((entry) => [entry.term, entry.kind, entry.data]);
  const fields = [run.firstIndex - 1, run.previousTerm, run.commit, list];
  return seal(runKey(run.firstIndex), KIND_RUN, packr.pack(fields));
}

function seal(key: string, kind: number, body: Uint8Array): Uint8Array<ArrayBuffer> {
  const value = new Uint8Array(HEAD_BYTES + body.length);
  if (value.length > VALUE_BYTES_MAX) {
    throw new Error(`raft storage: ${key} of ${value.length} bytes, up to ${VALUE_BYTES_MAX}`);
  }
  const view = new DataView(value.buffer);
  view.setUint32(0, MAGIC, true);
  value[4] = STORAGE_VERSION;
  value[5] = kind;
  value.set(body, HEAD_BYTES);
  view.setUint32(CHECKSUM_OFFSET, checksumOf(key, value), true);
  return value;
}

function checksumOf(key: string, value: Uint8Array): number {
  const head = crc32c(value.subarray(0, CHECKSUM_OFFSET), crc32c(new TextEncoder().encode(key)));
  return crc32c(value.subarray(HEAD_BYTES), head);
}

/** The body of a value. */
function open(key: string, kind: number, value: Uint8Array | undefined): Result<Uint8Array> {
  if (value === undefined) return corrupt(key, "it is missing");
  if (value.length < HEAD_BYTES || value.length > VALUE_BYTES_MAX) {
    return corrupt(key, `it has ${value.length} bytes`);
  }
  const view = new DataView(value.buffer, value.byteOffset, value.length);
  if (view.getUint32(0, true) !== MAGIC) return corrupt(key, "it does not begin with KRFT");
  if (view.getUint32(CHECKSUM_OFFSET, true) !== checksumOf(key, value)) {
    return corrupt(key, "its checksum is wrong");
  }
  if (value[4] > STORAGE_VERSION) {
    return failure(
      "limit",
      `${key} has version ${value[4]}, and this Kelpie reads ${STORAGE_VERSION}`,
      "use the Kelpie that wrote it, or a newer one",
    );
  }
  if (value[4] !== STORAGE_VERSION || value[5] !== kind || view.getUint16(6, true) !== 0) {
    return corrupt(key, "its head is wrong");
  }
  return success(value.subarray(HEAD_BYTES));
}

function openList(
  key: string,
  kind: number,
  value: Uint8Array | undefined,
  length: number,
): Result<unknown[]> {
  const body = open(key, kind, value);
  if (!body.ok) return body;
  let fields: unknown;
  try {
    fields = packr.unpack(body.value);
  } catch {
    return corrupt(key, "it is not MessagePack");
  }
  if (!Array.isArray(fields) || fields.length !== length) return corrupt(key, "it is no such list");
  return success(fields);
}

function corrupt<T>(key: string, reason: string): Result<T> {
  return failure("corrupt", `the consensus state is damaged: ${key}: ${reason}`);
}

function isCounter(value: unknown): value is number {
  return typeof value === "number" && Number.isInteger(value) && value >= 0 && value <= COUNTER_MAX;
}

function partCountOf(bytes: number): number {
  return Math.ceil(bytes / PART_BYTES);
}

function partKey(place: number, part: number): string {
  return `${PART_PREFIX}${place}/${part.toString().padStart(PART_DIGITS, "0")}`;
}

function runKey(firstIndex: number): string {
  return LOG_PREFIX + firstIndex.toString(16).padStart(INDEX_DIGITS, "0");
}

function lastIndexOf(run: Run): number {
  return run.firstIndex + run.entries.length - 1;
}
