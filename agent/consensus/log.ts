/**
 * The replicated log as one node holds it in memory.
 *
 *            retained         after the snapshot
 *     ┌─────────────────┬──────────────────────────────────────────┐
 *     │ start+1 … snap  │ snap+1 …  applied … commit … … … … last  │
 *     └─────────────────┴──────────────────────────────────────────┘
 *       memory only            │ durable …  handed (being persisted) …
 *
 * - `durable` ≤ `handed` ≤ `last`: what persists have finished, what persists have been given.
 * - `applied` ≤ min(`commit`, `durable`): nothing is applied that a crash of this node could take
 *   back, so the state machine of a node never runs ahead of its own disk.
 * - `commit` never falls, and no entry up to it is ever replaced.
 * - Entries up to the snapshot stay in memory only, bounded, for followers a little behind.
 *
 * Entries are immutable and shared with messages; nobody changes their data.
 *
 * @module
 */

import { type Configuration, decodeConfiguration, EMPTY_CONFIGURATION } from "./configuration.ts";
import {
  APPEND_ENTRIES_MAX,
  ENTRY_OVERHEAD_BYTES,
  RETAINED_BYTES_MAX,
  RETAINED_ENTRIES_MAX,
} from "./limits.ts";

/** An entry without data: a leader's first, which commits what earlier terms left. */
export const ENTRY_EMPTY = 0;
/** An entry with data of the state machine's. */
export const ENTRY_DATA = 1;
/** An entry with a configuration. */
export const ENTRY_CONFIGURATION = 2;

/** What an entry is. Only ever appended to: it is in messages and on disk. */
export type EntryKind = typeof ENTRY_EMPTY | typeof ENTRY_DATA | typeof ENTRY_CONFIGURATION;

/** One entry of the log. */
export interface Entry {
  /** 1…; consecutive. */
  readonly index: number;
  /** Of the leader that made it. */
  readonly term: number;
  readonly kind: EntryKind;
  /** Up to `ENTRY_BYTES_MAX` bytes; belongs to the entry. */
  readonly data: Uint8Array;
}

/** The state machine at an index, in place of the log up to there. */
export interface Snapshot {
  /** Last index that it covers; 0: nothing. */
  readonly index: number;
  /** Term of that entry. */
  readonly term: number;
  /** As of that index. */
  readonly configuration: Configuration;
  /** Of the state machine; up to `SNAPSHOT_BYTES_MAX` bytes; belongs to the snapshot. */
  readonly data: Uint8Array;
}

/** Before the first entry. */
export const EMPTY_SNAPSHOT: Snapshot = {
  index: 0,
  term: 0,
  configuration: EMPTY_CONFIGURATION,
  data: new Uint8Array(0),
};

/** What an entry counts where bytes are bounded. */
export function entryBytes(entry: Entry): number {
  return entry.data.length + ENTRY_OVERHEAD_BYTES;
}

/** The log; see the file's head. */
export class RaftLog {
  #snapshot: Snapshot;
  /** Index and term of the entry before the first in memory. */
  #startIndex: number;
  #startTerm: number;
  #entries: Entry[];
  /** Bytes of the entries after the snapshot. */
  #bytes = 0;
  #commit: number;
  #handed: number;
  #durable: number;
  /** The configurations of the log, oldest first; the first one is the snapshot's. */
  #configurations: { index: number; configuration: Configuration }[];
  /** Last index of each persist under way, oldest first; falls when entries are cut off. */
  readonly #persists: { lastIndex: number }[] = [];

  /**
   * A log that is durable as given.
   *
   * @param snapshot where it begins
   * @param entries those after the snapshot, consecutive
   * @param commit known to be committed
   */
  constructor(snapshot: Snapshot, entries: readonly Entry[], commit: number) {
    this.#snapshot = snapshot;
    this.#startIndex = snapshot.index;
    this.#startTerm = snapshot.term;
    this.#entries = [];
    this.#configurations = [snapshot];
    this.#commit = snapshot.index;
    this.#handed = snapshot.index;
    this.#durable = snapshot.index;
    this.append(entries);
    this.#handed = this.#durable = this.lastIndex;
    this.#commit = Math.min(Math.max(commit, snapshot.index), this.lastIndex);
  }

  /** The newest snapshot. */
  get snapshot(): Snapshot {
    return this.#snapshot;
  }

  /** Index of the last entry; the snapshot's where there is none after it. */
  get lastIndex(): number {
    return this.#startIndex + this.#entries.length;
  }

  /** Term of the last entry. */
  get lastTerm(): number {
    return this.#entries.at(-1)?.term ?? this.#startTerm;
  }

  /** Last index known to be committed. */
  get commit(): number {
    return this.#commit;
  }

  /** Last index that is durable here. */
  get durable(): number {
    return this.#durable;
  }

  /** Bytes of the entries after the snapshot. */
  get bytes(): number {
    return this.#bytes;
  }

  /** The newest configuration, committed or not. */
  get configuration(): Configuration {
    return this.#configurations.at(-1)!.configuration;
  }

  /** Index of the entry that brought it. */
  get configurationIndex(): number {
    return this.#configurations.at(-1)!.index;
  }

  /** The term of an entry; null where it is not known (any more). */
  termOf(index: number): number | null {
    if (index === this.#startIndex) return this.#startTerm;
    return this.#entries[index - this.#startIndex - 1]?.term ?? null;
  }

  /** Is a log that ends like this at least as new as this one (Raft, section 5.4.1)? */
  isUpToDate(lastIndex: number, lastTerm: number): boolean {
    return lastTerm > this.lastTerm || (lastTerm === this.lastTerm && lastIndex >= this.lastIndex);
  }

  /** The last index up to `index` whose term is at most `term`, for finding where logs agree. */
  findAgreement(index: number, term: number): number {
    let candidate = Math.min(index, this.lastIndex);
    while (candidate > this.#startIndex && this.termOf(candidate)! > term) candidate--;
    return candidate;
  }

  /** Appends at the end; consecutive, checked by the caller. */
  append(entries: readonly Entry[]): void {
    for (const entry of entries) {
      if (entry.index !== this.lastIndex + 1) {
        throw new Error(`raft log: entry ${entry.index} cannot follow ${this.lastIndex}`);
      }
      this.#entries.push(entry);
      this.#bytes += entryBytes(entry);
      if (entry.kind === ENTRY_CONFIGURATION) {
        // Decoded when it was proposed, received or loaded: it cannot fail here.
        const configuration = decodeConfiguration(entry.data)!;
        this.#configurations.push({ index: entry.index, configuration });
      }
    }
  }

  /**
   * Takes a leader's entries, which begin right after an entry that both have. What conflicts is
   * cut off; what is there already stays, so that an old message never shortens the log.
   *
   * @returns false where that would replace committed entries: then nothing has changed, and one of
   * the two logs is not what it should be
   */
  accept(entries: readonly Entry[]): boolean {
    let first = 0;
    while (first < entries.length) {
      const term = this.termOf(entries[first].index);
      // Below the start everything is committed, hence the same.
      if (term !== entries[first].term && entries[first].index > this.#startIndex) break;
      first++;
    }
    if (first === entries.length) return true;
    if (entries[first].index <= this.#commit) return false;
    this.#truncateTo(entries[first].index - 1);
    this.append(entries.slice(first));
    return true;
  }

  /** Cuts off what comes after `index`. */
  #truncateTo(index: number): void {
    for (const entry of this.#entries.splice(index - this.#startIndex)) {
      this.#bytes -= entryBytes(entry);
    }
    while (this.configurationIndex > index) this.#configurations.pop();
    this.#handed = Math.min(this.#handed, index);
    this.#durable = Math.min(this.#durable, index);
    for (const persist of this.#persists) persist.lastIndex = Math.min(persist.lastIndex, index);
  }

  /**
   * Entries from `index` on.
   *
   * @param index after the start, up to `lastIndex + 1`
   * @param last last one wanted
   * @param bytesMax bound of their bytes; one entry comes in any case
   */
  slice(index: number, last: number, bytesMax: number): Entry[] {
    const entries: Entry[] = [];
    let bytes = 0;
    for (let next = index; next <= last && entries.length < APPEND_ENTRIES_MAX; next++) {
      const entry = this.#entries[next - this.#startIndex - 1];
      bytes += entryBytes(entry);
      if (bytes > bytesMax && entries.length > 0) break;
      entries.push(entry);
    }
    return entries;
  }

  /** What the entries `first`…`last` count together. */
  bytesOf(first: number, last: number): number {
    let bytes = 0;
    for (let index = first; index <= last; index++) {
      bytes += entryBytes(this.#entries[index - this.#startIndex - 1]);
    }
    return bytes;
  }

  /** Raises the commit index; never lowers it, nor past the end. */
  commitTo(index: number): void {
    this.#commit = Math.max(this.#commit, Math.min(index, this.lastIndex));
  }

  /** Are there entries that no persist has been given? */
  get hasUnhanded(): boolean {
    return this.#handed < this.lastIndex;
  }

  /** Entries for a persist that begins now; with `persisted` later, once for each call. */
  beginPersist(): Entry[] {
    const entries = this.#entries.slice(this.#handed - this.#startIndex);
    this.#handed = this.lastIndex;
    this.#persists.push({ lastIndex: this.lastIndex });
    return entries;
  }

  /** Persists under way. */
  get persistCount(): number {
    return this.#persists.length;
  }

  /** The oldest persist under way is done. */
  persisted(): void {
    this.#durable = Math.max(this.#durable, this.#persists.shift()!.lastIndex);
  }

  /** The configuration before the newest; the newest where the log has no other. */
  get configurationBefore(): Configuration {
    return (this.#configurations.at(-2) ?? this.#configurations.at(-1)!).configuration;
  }

  /** The configuration that holds at an index from the snapshot on. */
  configurationAt(index: number): Configuration {
    return this.#configurations.findLast((each) => each.index <= index)!.configuration;
  }

  /**
   * Puts a snapshot in place of the entries up to its index, some of which stay in memory.
   *
   * @param snapshot of the state machine after it applied `index`
   */
  compact(snapshot: Snapshot): void {
    let retained = 0;
    let bytes = 0;
    for (let index = snapshot.index; index > this.#startIndex; index--) {
      const entry = this.#entries[index - this.#startIndex - 1];
      if (index > this.#snapshot.index) this.#bytes -= entryBytes(entry);
      bytes += entryBytes(entry);
      if (bytes <= RETAINED_BYTES_MAX && retained === snapshot.index - index) retained++;
    }
    retained = Math.min(retained, RETAINED_ENTRIES_MAX);
    this.#dropBefore(snapshot.index - retained);
    this.#snapshot = snapshot;
    this.#configurations = [
      snapshot,
      ...this.#configurations.filter((each) => each.index > snapshot.index),
    ];
  }

  #dropBefore(index: number): void {
    this.#startTerm = this.termOf(index)!;
    this.#entries.splice(0, index - this.#startIndex);
    this.#startIndex = index;
  }

  /** Begins anew with a snapshot from the leader, which this log does not lead up to. */
  restore(snapshot: Snapshot): void {
    this.#snapshot = snapshot;
    this.#startIndex = snapshot.index;
    this.#startTerm = snapshot.term;
    this.#entries = [];
    this.#bytes = 0;
    this.#configurations = [snapshot];
    this.#durable = Math.min(this.#durable, this.#commit);
    this.#commit = snapshot.index;
    this.#handed = snapshot.index;
    for (const persist of this.#persists) {
      persist.lastIndex = Math.min(persist.lastIndex, this.#durable);
    }
  }
}
