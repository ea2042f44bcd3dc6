/**
 * Has replicas that lack writes leave their group and come back, one group at a time; on behalf of a check (`checking.ts`).
 *
 *     begin ─▶ ask the map ─▶ they are out ─▶ they join and copy (joining.ts) ─▶ they are in sync: over
 *                │ asked again                  │ one is down, or takes too long: over
 *                └─▶ the group has changed otherwise, or nothing happens: over
 *
 * Invariants:
 * - The map decides, each time that it is asked, whether they may go; what it is asked names the members under which it was found that
 *   they lack something, and counts for no others.
 * - Being over says nothing about what they have: whoever began it looks again.
 * - It ends, and a group is taken up at most {@linkcode WITHDRAWALS_MAX} times.
 *
 * Nothing here has to be remembered: if this node goes in the middle, those that are out join all the same.
 *
 * @module
 */
import { type ClusterView, type GroupView, keyOf } from "./view.ts";

/** Times that a group is taken up: what comes to the members meanwhile may make one more worth while, and not many. */
export const WITHDRAWALS_MAX = 3;
/** Milliseconds after which the map is asked again, since the question may be lost, and for which it is asked at all. */
const AGAIN_MS = 1000, LEAVE_MS_MAX = 10_000;
/** Longest time for which those that are out are waited for, in milliseconds: they may have much to copy, beside guests. */
const BACK_MS_MAX = 300_000;

interface Withdrawal {
  readonly group: GroupView;
  readonly nodes: readonly number[];
  readonly beganMs: number;
  askedMs: number;
}

/** See the head of the file. */
export class Withdrawals {
  readonly #ask: (group: GroupView, nodes: readonly number[]) => void;
  #current: Withdrawal | null = null;
  readonly #counts = new Map<number, number>();

  /** @param ask asks for the command `withdraw`, on which the members of the group as it is given rest */
  constructor(ask: (group: GroupView, nodes: readonly number[]) => void) {
    this.#ask = ask;
  }

  /** Whether members of this group are on their way out, or back. */
  isUnderWay({ pool, group }: GroupView): boolean {
    return this.#current?.group.pool === pool && this.#current.group.group === group;
  }

  /** Whether the group was taken up as often as it may be. */
  isSpent({ pool, group }: GroupView): boolean {
    return (this.#counts.get(keyOf(pool, group)) ?? 0) >= WITHDRAWALS_MAX;
  }

  /**
   * Begins.
   *
   * @param group as it was when it was found that they lack writes
   * @param nodes of its members in sync
   * @returns false: another group has its turn
   */
  begin(group: GroupView, nodes: readonly number[], nowMs: number): boolean {
    if (this.#current !== null) return false;
    const key = keyOf(group.pool, group.group);
    this.#counts.set(key, (this.#counts.get(key) ?? 0) + 1);
    this.#current = { group, nodes: [...nodes], beganMs: nowMs, askedMs: nowMs };
    this.#ask(group, nodes);
    return true;
  }

  /** Time passes. */
  tick(view: ClusterView, nowMs: number): void {
    const current = this.#current;
    if (current === null) return;
    if (this.#isOver(view, current, nowMs)) this.#current = null;
    else if (nowMs - current.askedMs >= AGAIN_MS) {
      current.askedMs = nowMs;
      if (isAsIs(view, current)) this.#ask(current.group, current.nodes);
    }
  }

  #isOver(view: ClusterView, current: Withdrawal, nowMs: number): boolean {
    const { group, nodes, beganMs } = current;
    const now = view.pool(group.pool)[group.group];
    if (now === undefined) return true;
    if (isAsIs(view, current)) return nowMs - beganMs >= LEAVE_MS_MAX;
    // Either they are back, or others came or went first, and the map has not let them go.
    if (now.isOpen && nodes.every((node) => now.entry.inSync.includes(node))) return true;
    const areComing = nodes.every((node) =>
      view.node(node)?.state === "up" && now.entry.target.includes(node)
    );
    return !areComing || nowMs - beganMs >= BACK_MS_MAX;
  }
}

/** Whether the group has the members that it had. */
function isAsIs(view: ClusterView, { group }: Withdrawal): boolean {
  return view.pool(group.pool)[group.group]?.entry.changedEpoch === group.entry.changedEpoch;
}
