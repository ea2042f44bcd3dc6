/**
 * Who is right where replicas in sync are not the same. Decisions only: `checking.ts` asks, `repair.ts` and `completing.ts` carry out.
 *
 *     all match their checksums, at one stamp, and differ      votes ─▶ the content that counts, who has it, who gets it; or why nobody knows
 *     stamps that stand still, some below the others           ─▶ who copies what it lacks; or why it stays as it is
 *
 * Invariants:
 * - Content counts when more than half of all replicas in sync have it of their own, or when a user has said whose counts. Of two copies
 *   neither is more than half: which one is right only people may know. That a replica says nothing (it lacks writes, it is damaged)
 *   makes no other one right: it counts among all.
 * - A replica that was damaged there when this check came by has what it copied from another one: that is nobody's second opinion. It gets
 *   what counts like others, and what it has itself does not count, not for a user either.
 * - A stamp that is above another one is that of a write which the other replica has not carried out; unknown is below all that is known. So
 *   it is those below who lack something, however few have it, as when a disk is opened (`opening.ts`).
 * - Who lacks writes copies the chunk from one that has them, and loses what it has of its own. So that is done only where those who have
 *   them are the same, and are not fewer than those who lack them, unless a user says that one of them counts: what is right in
 *   other blocks, with more of the replicas than not, must not be lost for it, nor become so by being copied. Of two replicas one lacks
 *   writes and the other one has them, which is clear.
 *
 * @module
 */
/** What one replica has in a block. */
export interface Vote {
  readonly node: number;
  /** Equal numbers are equal content. */
  readonly content: number;
  /** It was not copied from another replica since this check came upon it. */
  readonly isOwn: boolean;
}

/** Which content counts. */
export interface Ruling {
  readonly content: number;
  /** Who has it of their own. */
  readonly sources: readonly number[];
  /** Who has something else. */
  readonly wrong: readonly number[];
}

/** Nobody knows who is right. */
export const NO_MAJORITY = "no content is on more than half of the replicas";
/** Whose content counts has nothing to say. */
export const NOT_THERE = "the node whose content counts has no whole replica in sync of it";
/** …or has only what it has copied since. */
export const NOT_ITS_OWN = "the node whose content counts had it damaged";

/**
 * Decides which content of a block counts.
 *
 * @param votes of replicas in sync, at one stamp
 * @param options.replicas that are in sync, whether they vote or not
 * @param options.preferred whose content counts, whatever others have; 0: nobody was named
 * @returns the content, or why none counts
 */
export function decide(
  votes: readonly Vote[],
  { replicas, preferred }: { readonly replicas: number; readonly preferred: number },
): Ruling | string {
  if (preferred !== 0) {
    const vote = votes.find(({ node }) => node === preferred);
    if (vote === undefined) return NOT_THERE;
    return vote.isOwn ? rulingFor(vote.content, votes, [preferred]) : NOT_ITS_OWN;
  }
  for (const { content } of votes) {
    const sources = votes.filter((vote) => vote.isOwn && vote.content === content);
    if (sources.length <= replicas / 2) continue;
    return rulingFor(content, votes, sources.map(({ node }) => node));
  }
  return NO_MAJORITY;
}

function rulingFor(content: number, votes: readonly Vote[], sources: readonly number[]): Ruling {
  const wrong = votes.filter((vote) => vote.content !== content).map(({ node }) => node);
  return { content, sources, wrong };
}

/** A replica in sync lacks writes. */
export const BEHIND = "it lacks writes that others have";

/**
 * Why replicas that lack writes of a chunk cannot copy them.
 *
 * @param options.behind nodes that lack writes
 * @param options.upToDate the others: nodes that have them
 * @param options.preferred as of {@linkcode decide}
 * @param options.isDisputed those that have them differ among each other
 * @param options.isMerged the layer is being merged with another one, or made independent
 * @returns null when they can, else the reason in words, which begins as {@linkcode BEHIND} does
 */
export function whyNotCompleted(options: {
  readonly behind: readonly number[];
  readonly upToDate: readonly number[];
  readonly preferred: number;
  readonly isDisputed: boolean;
  readonly isMerged: boolean;
}): string | null {
  const { behind, upToDate, preferred, isDisputed, isMerged } = options;
  if (isDisputed) return `${BEHIND}, and those differ themselves: settle that first`;
  if (isMerged) return `${BEHIND}, and its layer is being merged: check again when that is over`;
  if (behind.includes(preferred)) return `${BEHIND}, though its content is the one that counts`;
  if (upToDate.includes(preferred) || behind.length <= upToDate.length) return null;
  return `${BEHIND}, and so do more than have them: whose content counts has to be said`;
}
