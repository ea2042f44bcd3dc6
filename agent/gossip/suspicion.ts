/**
 * How long a suspect has to answer, and how far a member trusts its own judgement.
 *
 * Both follow "Lifeguard: Local Health Awareness for More Accurate Failure Detection" (A. Dadgar, J. Phillips,
 * J. Currey, 2018):
 *
 * - A suspicion that nobody confirms takes long, because then the fault is likely with the one that suspects. Each
 *   independent confirmation shortens it, logarithmically, down to a minimum.
 * - A member whose probes fail while the nacks of its helpers do not come, or that has to refute, takes it that it is
 *   slow itself: it probes less often and waits longer.
 *
 * Pure functions and one counter.
 *
 * @module
 */

/** Confirmations that bring a suspicion to its minimum. The paper's K. */
export const CONFIRMATIONS_MAX = 3;

/** How much longer an unconfirmed suspicion takes than a confirmed one. The paper's beta. */
const UNCONFIRMED_FACTOR = 5;

/** Shortest time for a suspect to answer where {@linkcode CONFIRMATIONS_MAX} members agree, up to ten members. */
const TIMEOUT_MS = 800;

/** Added per factor of ten above ten members: news takes more hops. */
const TIMEOUT_PER_DECADE_MS = 1500;

/** Added per confirmation that a small cluster cannot give. */
const TIMEOUT_PER_MISSING_MS = 250;

/**
 * Time from the suspicion to the confirmation of the death.
 *
 * | members | unconfirmed | 1 | 2 | 3 confirmations |
 * |---|---|---|---|---|
 * | 2 | 1.55 s | | | |
 * | 3 | 6.5 s | 1.3 s | | |
 * | 5 | 4 s | 2.4 s | 1.46 s | 0.8 s |
 * | 1000 | 19 s | 11.4 s | 6.96 s | 3.8 s |
 *
 * @param members alive and suspect, with the suspect and the one that asks; 2 or more
 * @param confirmations members that accuse it besides the first; 0 or more
 * @returns milliseconds
 *
 * @example
 * ```ts
 * import { suspicionTimeoutMs } from "./suspicion.ts";
 *
 * console.assert(suspicionTimeoutMs(5, 3) === 800);
 * console.assert(suspicionTimeoutMs(5, 0) === 4000);
 * ```
 */
export function suspicionTimeoutMs(members: number, confirmations: number): number {
  const possible = Math.min(CONFIRMATIONS_MAX, Math.max(0, members - 2));
  const shortest = TIMEOUT_MS + TIMEOUT_PER_MISSING_MS * (CONFIRMATIONS_MAX - possible) +
    TIMEOUT_PER_DECADE_MS * Math.max(0, Math.log10(members) - 1);
  if (confirmations >= possible) return shortest;
  const share = Math.log(confirmations + 1) / Math.log(possible + 1);
  return shortest * (UNCONFIRMED_FACTOR - (UNCONFIRMED_FACTOR - 1) * share);
}

/**
 * How often a news is put into packets by each member that has it: λ log n.
 *
 * @param members alive and suspect, with this one
 */
export function transmissionsMax(members: number): number {
  return 4 * Math.ceil(Math.log10(members + 1));
}

/** The local health multiplier: 0 is healthy. */
export class Health {
  /** Its largest value; the paper's S. Periods and timeouts are at most nine times as long then. */
  static readonly SCORE_MAX = 8;
  #score = 0;

  /** 0 (healthy) to {@linkcode Health.SCORE_MAX}. */
  get score(): number {
    return this.#score;
  }

  /** @param by above zero for signs that this member is slow, below for signs that it is not */
  change(by: number): void {
    this.#score = Math.min(Health.SCORE_MAX, Math.max(0, this.#score + by));
  }

  /** A duration as it has to be now. */
  scale(durationMs: number): number {
    return durationMs * (this.#score + 1);
  }
}
