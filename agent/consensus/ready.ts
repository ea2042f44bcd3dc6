/**
 * What a {@link Raft} wants done, in the order in which it is to be done.
 *
 *     ready() ──► 1. messages     send, at once
 *                 2. persist      begin to write; when durable: persisted(token), then its messages
 *                 3. snapshot     the state machine becomes this
 *                 4. committed    the state machine applies these
 *                 5. reads        answer
 *
 * Persisting is asynchronous: `ready()` may be called again, and more persists begun, before one is
 * durable. Persists become durable in the order in which they were given.
 *
 * @module
 */

import type { Configuration } from "./configuration.ts";
import type { Entry, Snapshot } from "./log.ts";
import type { Message } from "./messages.ts";
import type { ReadState } from "./reads.ts";

/** What a node must never forget. */
export interface HardState {
  /** The newest term that it has seen. */
  readonly term: number;
  /** Whom it voted for in that term; 0: nobody. */
  readonly vote: number;
}

/** The durable state of a node, as it was written or is to be written first. */
export interface RaftState extends HardState {
  readonly snapshot: Snapshot;
  /** Those after the snapshot. */
  readonly entries: readonly Entry[];
  /** Known to be committed; no need to be the latest. */
  readonly commit: number;
}

/** One step of what is to be made durable. */
export interface Persist {
  /** Names this step in `persisted()`; counts up from 1. */
  readonly token: number;
  /** First: term and vote; null: as before. */
  readonly hardState: HardState | null;
  /** Second: the newest snapshot; null: as before. Entries up to its index are needed no more. */
  readonly snapshot: Snapshot | null;
  /** The snapshot came from the leader: none of the entries written before is to stay. */
  readonly isLogReplaced: boolean;
  /** Third: to be appended. What was written from the first one's index on is to be cut off. */
  readonly entries: readonly Entry[];
  /** The commit index, to be written along with something else; not worth a write of its own. */
  readonly commit: number;
  /**
   * To be sent when all of this is durable, not before; after `persisted(token)`. Where nothing is
   * to be written they still wait for the persists before this one.
   */
  readonly messages: readonly Message[];
}

/** See the file's head. */
export interface Ready {
  readonly messages: readonly Message[];
  readonly persist: Persist | null;
  /** Durable. Comes at the start too, where there is one. */
  readonly snapshot: Snapshot | null;
  /** Committed everywhere, durable here, consecutive after all that came before. */
  readonly committed: readonly Entry[];
  readonly reads: readonly ReadState[];
}

/** What a node takes itself for. */
export type Role = "follower" | "pre-candidate" | "candidate" | "leader";

/** Why a proposal was not taken. */
export type RefusalReason =
  /** Another node leads, or none. */
  | "not-leader"
  /** Too much is proposed and not committed, or too many reads wait: later. */
  | "full"
  /** The log has reached its bound: `compact()` it. */
  | "log-full"
  /** Longer than an entry may be. */
  | "too-large"
  /** Leadership is being handed over: soon again. */
  | "transferring"
  /** No entry of this term is committed yet: soon again. */
  | "term-uncommitted"
  /** Another change of the configuration is not committed yet: later. */
  | "change-pending"
  /** A learner that lacks too much to become a voter: later. */
  | "not-caught-up"
  /** Makes no sense; see `message`. */
  | "invalid";

/** Not taken. */
export interface Refusal {
  readonly ok: false;
  readonly reason: RefusalReason;
  /** For people. */
  readonly message: string;
  /** Who leads, as far as this node knows; 0: nobody. */
  readonly leader: number;
}

/** Taken: this entry, if it is ever committed, with this term. */
export interface Proposed {
  readonly ok: true;
  readonly index: number;
  readonly term: number;
}

/** One member, as the leader sees it. */
export interface MemberStatus {
  readonly node: number;
  readonly isLearner: boolean;
  readonly state: "probe" | "replicate" | "snapshot";
  /** Durable there. */
  readonly match: number;
  /** Milliseconds since it was last heard. */
  readonly silentMs: number;
  /** Of a snapshot that is on its way: bytes that have arrived; 0 otherwise. */
  readonly snapshotBytes: number;
  /**
   * A voter that has lost a part of the log that it had acknowledged: it counts for nothing until
   * enough of the others have what the leader has.
   */
  readonly hasLostLog: boolean;
}

/** For metrics and people. */
export interface RaftStatus {
  readonly id: number;
  readonly role: Role;
  readonly term: number;
  /** 0: unknown. */
  readonly leader: number;
  readonly commit: number;
  /** Handed out to be applied. */
  readonly applied: number;
  readonly lastIndex: number;
  readonly durable: number;
  readonly snapshotIndex: number;
  /** Bytes of entries after the snapshot. */
  readonly logBytes: number;
  readonly configuration: Configuration;
  /** Index of the entry that brought it; committed once `commit` is there. */
  readonly configurationIndex: number;
  /** Other members; empty where this node does not lead. */
  readonly members: readonly MemberStatus[];
  /** It is time to `compact()`. */
  readonly isCompactionDue: boolean;
  /** Messages that contradicted what is committed here; see {@link Raft}. */
  readonly contradictions: number;
  /**
   * This term's leader has another log than what is committed here: this node cannot take part any
   * more, and has to be started anew, with an empty store.
   */
  readonly hasOtherLog: boolean;
}
