/**
 * How fast a disk may be used: holds requests back that are above its limits.
 *
 *     front ends of one disk            throttle                      time
 *       ring ─┐  isOpen? ──── yes ──▶ taken, charge(bytes)            tokens += rate × time, up to the capacity
 *       ring ─┤     └─ no ─▶ admit() ─ no ─▶ stays in the ring        tokens −= 1 for each request, −= bytes for its data
 *       ring ─┘               resume() once there are tokens again    open: no bucket is in debt
 *
 * What is held back stays in the guest's ring: it has no slot, no transfer and no buffer here, it is not in flight (so a disk
 * that is held back is not stuck), and a ring can be stopped at once, as a migration does it. So a request's size is not known
 * before it is taken, and each bucket may go into debt by one request; the next waits until that is paid.
 *
 * Two limits, requests and bytes. Each is one token bucket, or two where bursts are allowed:
 *
 *     without bursts    refilled at the limit; holds SLACK_MS of it
 *     with bursts       refilled at the limit; holds what bursts use up above it: (burst − limit) × burst seconds
 *                       and refilled at the burst's rate; holds SLACK_MS of that
 *
 * A read or write is one request and its bytes. FLUSH, discard and write-zeroes are one request and no bytes.
 *
 * Invariants:
 * - Over any time t, at most limit × (t + SLACK_MS) and one request are taken; with bursts (burst − limit) × burst seconds more,
 *   and never more than burst × (t + SLACK_MS) and one request. As long as requests wait and `resume` is called no later than
 *   SLACK_MS after {@linkcode Throttle.opensMs}, no less than limit × t either.
 * - Who waits is served in turn: while anyone waits, nobody else is admitted.
 * - Without limits it is open, always.
 * - A change of the limits holds from that call on, also for those that wait. It makes no debt larger, and gives no new burst
 *   where there were bursts before.
 *
 * Nothing here allocates per request, and the time is only looked at when there is a reason to wait.
 *
 * @module
 */

/** Limits of a disk, as the cluster map has them; 0: without. */
export interface ThrottleLimits {
  /** Requests for each second. */
  readonly iops: number;
  /** Bytes for each second. */
  readonly bytesPerSecond: number;
  /** What is allowed for `burstSeconds` after a time of less use; at least the limit itself. */
  readonly burstIops: number;
  /** The same for bytes. */
  readonly burstBytesPerSecond: number;
  readonly burstSeconds: number;
}

/** Whoever has requests that are held back: a front end's session. */
export interface ThrottleWaiter {
  /** There is room: takes what it has until the throttle is closed again. */
  resume(): void;
}

/**
 * How much of its limit a bucket without bursts holds, in milliseconds: what the loop may be late without slowing a disk down.
 * Half a per cent of ten seconds.
 */
export const SLACK_MS = 50;

/** Debts below this are none, in requests or bytes: what is lost where fractions are added up. */
const DEBT_MIN = 1e-6;

/** One token bucket. */
class Bucket {
  /** Tokens for each millisecond; 0: no limit. */
  #rate = 0;
  #capacity = 0;
  /** Below zero: debt. */
  #tokens = 0;

  /**
   * Sets rate (tokens for each second) and capacity. A bucket that had no limit is full; one that had keeps its tokens and debts.
   */
  configure(rate: number, capacity: number): void {
    const isNew = this.#rate === 0;
    this.#rate = rate / 1000;
    this.#capacity = capacity;
    this.#tokens = isNew ? capacity : Math.min(this.#tokens, capacity);
  }

  refill(elapsedMs: number): void {
    this.#tokens = Math.min(this.#capacity, this.#tokens + this.#rate * elapsedMs);
  }

  take(tokens: number): void {
    if (this.#rate > 0) this.#tokens -= tokens;
  }

  get isInDebt(): boolean {
    return this.#rate > 0 && this.#tokens < -DEBT_MIN;
  }

  /** Time until the debt is paid, in milliseconds. */
  get debtMs(): number {
    return this.isInDebt ? -this.#tokens / this.#rate : 0;
  }
}

/** One limit with its bursts. */
class Limit {
  readonly #sustained = new Bucket();
  readonly #burst = new Bucket();

  configure(rate: number, burstRate: number, burstSeconds: number): void {
    const slack = rate * SLACK_MS / 1000;
    const hasBursts = rate > 0 && burstRate > 0;
    const credit = hasBursts ? (burstRate - rate) * burstSeconds : 0;
    this.#sustained.configure(rate, Math.max(slack, credit));
    if (hasBursts) this.#burst.configure(burstRate, burstRate * SLACK_MS / 1000);
    else this.#burst.configure(0, 0);
  }

  refill(elapsedMs: number): void {
    this.#sustained.refill(elapsedMs);
    this.#burst.refill(elapsedMs);
  }

  take(tokens: number): void {
    this.#sustained.take(tokens);
    this.#burst.take(tokens);
  }

  get isInDebt(): boolean {
    return this.#sustained.isInDebt || this.#burst.isInDebt;
  }

  get debtMs(): number {
    return Math.max(this.#sustained.debtMs, this.#burst.debtMs);
  }
}

/** See the head of the file. Times are milliseconds of one monotonic clock. */
export class Throttle {
  /** A request may be taken, as far as is known without looking at the time; else ask {@linkcode admit}. */
  isOpen = true;
  /** Requests that were taken after they had been held back; only rises. */
  heldRequests = 0;

  #limits: ThrottleLimits | null = null;
  #isLimited = false;
  readonly #requests = new Limit();
  readonly #bytes = new Limit();
  /** When the buckets were refilled last. */
  #refilledMs = 0;
  /** In turn. */
  readonly #waiters: ThrottleWaiter[] = [];
  #isResuming = false;
  /** When the first of those that wait came, and for how long anyone had waited before. */
  #heldSinceMs = 0;
  #heldMs = 0;

  /** Sets the limits: {@linkcode resume} follows for those that wait. */
  setLimits(limits: ThrottleLimits, nowMs: number): void {
    if (this.#limits !== null && sameLimits(this.#limits, limits)) return;
    this.#refill(nowMs);
    this.#limits = limits;
    this.#isLimited = limits.iops > 0 || limits.bytesPerSecond > 0;
    const { burstSeconds } = limits;
    this.#requests.configure(limits.iops, limits.burstIops, burstSeconds);
    this.#bytes.configure(limits.bytesPerSecond, limits.burstBytesPerSecond, burstSeconds);
    this.#look();
  }

  /**
   * A request is taken.
   *
   * @param bytes of data that it moves; 0 for FLUSH, discard and write-zeroes
   */
  charge(bytes: number): void {
    if (this.#isResuming) this.heldRequests++;
    if (!this.#isLimited) return;
    this.#requests.take(1);
    this.#bytes.take(bytes);
    this.#look();
  }

  /**
   * Asks whether a request may be taken when {@linkcode isOpen} says no.
   *
   * @returns false: `waiter.resume()` follows, from inside {@linkcode resume}
   */
  admit(waiter: ThrottleWaiter, nowMs: number): boolean {
    // Within its turn a waiter takes what was there when the turn began, and no more.
    if (!this.#isResuming && this.#waiters.length === 0) {
      this.#refill(nowMs);
      this.#look();
      if (this.isOpen) return true;
      this.#heldSinceMs = nowMs;
    }
    if (!this.#waiters.includes(waiter)) this.#waiters.push(waiter);
    return false;
  }

  /** Lets those that wait go on, in turn, as far as there is room. */
  resume(nowMs: number): void {
    if (this.#waiters.length === 0) return;
    this.#refill(nowMs);
    this.#look();
    this.#isResuming = true;
    for (let left = this.#waiters.length; left > 0 && this.isOpen; left--) {
      this.#waiters.shift()!.resume();
    }
    this.#isResuming = false;
    this.#noteNobody(nowMs);
  }

  /** The waiter, if it is one, waits no more. */
  leave(waiter: ThrottleWaiter, nowMs: number): void {
    const at = this.#waiters.indexOf(waiter);
    if (at < 0) return;
    this.#waiters.splice(at, 1);
    this.#noteNobody(nowMs);
  }

  /** Somebody waits. */
  get isHolding(): boolean {
    return this.#waiters.length > 0;
  }

  /** When it is open again if nothing is taken until then. */
  get opensMs(): number {
    return this.#refilledMs + Math.max(this.#requests.debtMs, this.#bytes.debtMs);
  }

  /** For how long requests have been held back so far, in milliseconds; only rises. */
  heldMs(nowMs: number): number {
    return this.#heldMs + (this.isHolding ? Math.max(0, nowMs - this.#heldSinceMs) : 0);
  }

  #noteNobody(nowMs: number): void {
    if (this.isHolding) return;
    this.#heldMs += Math.max(0, nowMs - this.#heldSinceMs);
    this.#heldSinceMs = nowMs;
  }

  #refill(nowMs: number): void {
    const elapsedMs = nowMs - this.#refilledMs;
    if (elapsedMs <= 0) return;
    this.#refilledMs = nowMs;
    this.#requests.refill(elapsedMs);
    this.#bytes.refill(elapsedMs);
  }

  #look(): void {
    this.isOpen = !this.#requests.isInDebt && !this.#bytes.isInDebt;
  }
}

function sameLimits(a: ThrottleLimits, b: ThrottleLimits): boolean {
  return a.iops === b.iops && a.bytesPerSecond === b.bytesPerSecond &&
    a.burstIops === b.burstIops && a.burstBytesPerSecond === b.burstBytesPerSecond &&
    a.burstSeconds === b.burstSeconds;
}
