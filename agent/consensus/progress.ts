/**
 * What a leader knows about one other member.
 *
 *     probe      its log is not known yet: one message at a time, until one is accepted
 *     replicate  messages follow each other without waiting, APPENDS_IN_FLIGHT_MAX at most
 *     snapshot   it needs entries that are gone: it gets the snapshot, part by part
 *
 *     probe ──accepted──► replicate ──rejected──► probe ──entries are gone──► snapshot
 *       ▲                     ▲                                                  │
 *       └─────────────────────┴──────────────── installed ───────────────────────┘
 *
 * `match` only rises, whatever old messages say: what a member once had of this leader's log it
 * keeps. Unless its disk has lost it. Then it refuses what follows, again and again, and acknowledges
 * nothing: an old message does not look like that for long, since whoever has the entries
 * acknowledges the next one that it gets. So after `LOSS_MS` it counts as lost, and all begins anew
 * from where the member says that its log ends ({@linkcode Progress.hasLost}).
 *
 * @module
 */

import { APPENDS_IN_FLIGHT_MAX, LOSS_MS, LOSS_REFUSALS } from "./limits.ts";
import type { Snapshot } from "./log.ts";

/** A snapshot on its way to a member. */
export interface SnapshotTransfer {
  /** Stays the same when the leader compacts meanwhile. */
  readonly snapshot: Snapshot;
  /** Of its data. */
  readonly checksum: number;
  /** Bytes that the member has confirmed. */
  offset: number;
  /** A lower offset that the member has named since; believed when the part is sent again. */
  restartOffset: number;
  /** When the last part was sent. */
  sentMs: number;
}

/** See the file's head. */
export class Progress {
  /** Last index that the member is known to hold durably. */
  match = 0;
  /** Next index to send. */
  next: number;
  state: "probe" | "replicate" | "snapshot" = "probe";
  /** In `probe`: a message was sent and not answered. */
  isPaused = false;
  /** Last index of each message with entries under way, ascending. */
  readonly inFlight: number[] = [];
  /** Highest commit index that was sent in state `replicate`. */
  commitSent = 0;
  /** Even a message without news is due: it shows whether one was lost. */
  isCheckDue = false;
  /** When the member was last heard. */
  heardMs: number;
  /** When it last got a heartbeat. */
  heartbeatMs = Number.NEGATIVE_INFINITY;
  /** Last round of reads that it has confirmed. */
  round = 0;
  transfer: SnapshotTransfer | null = null;
  /**
   * Above 0: it has lost what it had acknowledged, as a voter, and what it says counts only once this
   * entry is widespread. See the head of `raft.ts`.
   */
  trustedFrom = 0;
  /** Times that it has refused what it had acknowledged, since it acknowledged something. */
  refusals = 0;
  /** When that began. */
  #refusedMs = 0;
  /** Last index where the logs may agree, as it said last. */
  #agreed = 0;

  /**
   * @param next first guess: the end of the leader's log
   * @param nowMs counts as heard
   * @param isLearner elects and commits nothing
   */
  constructor(next: number, nowMs: number, public isLearner: boolean) {
    this.next = next;
    this.heardMs = nowMs;
  }

  /** Does nothing that it says count for a decision? */
  get isDistrusted(): boolean {
    return this.trustedFrom > 0;
  }

  /** May a message with entries go now? */
  get isBlocked(): boolean {
    if (this.state === "probe") return this.isPaused;
    return this.state === "snapshot" || this.inFlight.length >= APPENDS_IN_FLIGHT_MAX;
  }

  /** Goes back to one message at a time, from what is certain. */
  becomeProbe(): void {
    this.state = "probe";
    this.transfer = null;
    this.inFlight.length = 0;
    this.isPaused = false;
    this.next = this.match + 1;
  }

  /** Messages may follow each other. */
  becomeReplicate(): void {
    this.state = "replicate";
    this.transfer = null;
    this.inFlight.length = 0;
    this.isPaused = false;
    this.commitSent = 0;
    this.next = this.match + 1;
  }

  /** A snapshot goes first. */
  becomeSnapshot(transfer: SnapshotTransfer): void {
    this.state = "snapshot";
    this.transfer = transfer;
    this.inFlight.length = 0;
    this.isPaused = false;
  }

  /**
   * The member holds everything up to `index`.
   *
   * @returns whether that is news
   */
  accepted(index: number): boolean {
    const isNews = index > this.match;
    if (index >= this.match) this.refusals = 0;
    this.match = Math.max(this.match, index);
    this.next = Math.max(this.next, this.match + 1);
    while (this.inFlight.length > 0 && this.inFlight[0] <= index) this.inFlight.shift();
    return isNews;
  }

  /**
   * The member has no such entry before those that were sent.
   *
   * @param index of the entry that it lacks
   * @param agreed last index where the logs may agree
   * @returns false where that is old news
   */
  rejected(index: number, agreed: number, nowMs: number): boolean {
    if (this.state === "snapshot") return false;
    if (index <= this.match) {
      if (this.refusals++ === 0) {
        this.#refusedMs = nowMs;
        // Whoever has the entries says so now.
        this.isCheckDue = true;
      }
      this.#agreed = agreed;
      return false;
    }
    if (this.state === "replicate") {
      this.becomeProbe();
      return true;
    }
    if (index !== this.next - 1) return false;
    this.next = Math.max(this.match, Math.min(agreed, index - 1)) + 1;
    this.isPaused = false;
    return true;
  }

  /** Whether the member has lost what it had acknowledged; see the file's head. */
  hasLost(nowMs: number): boolean {
    return this.refusals >= LOSS_REFUSALS && nowMs - this.#refusedMs >= LOSS_MS;
  }

  /** What it had acknowledged is lost: goes on from where its log ends. */
  beginAnew(): void {
    this.match = 0;
    this.refusals = 0;
    this.becomeProbe();
    this.next = this.#agreed + 1;
  }
}
