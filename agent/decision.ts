/**
 * What the cluster decides about a proposal, for whoever waits for it, and no longer than they do.
 *
 *     propose ─┬─ applied here ───────────────────────────▶ its result
 *              ├─ nobody waits any more ─┬─ not sent yet ─▶ taken back: it never happens
 *              │                         └─ sent ─────────▶ goes on: it is about to be decided, and what follows from it is to be done
 *              └─ nothing for too long ───────────────────▶ taken back; where it was sent it may still happen, and that is said
 *
 * @module
 */
import type { Result } from "./map/errors.ts";
import type { Applied, MapCommand } from "./map/map.ts";
import type { Control } from "./control/control.ts";

/** A proposal that nobody waits for any more. */
export interface Undecided {
  readonly kind: "undecided";
  /** It never happens. */
  readonly isOver: boolean;
  /** Whoever asked has gone; otherwise it has taken too long. */
  readonly isUnwanted: boolean;
}

/** What has become of a proposal. */
export type Decision = { readonly kind: "decided"; readonly result: Result<Applied> } | Undecided;

/** How long a proposal is waited for. */
export interface Patience {
  readonly timeoutMs: number;
  /** Aborts when whoever asked has gone. */
  readonly gone?: AbortSignal;
  /** It has to be decided though nobody waits: it is not taken back. Called when it is, however late. */
  readonly onDecided?: () => void;
}

/** Proposes a change of the map and waits for what becomes of it. */
export function decide(
  control: Pick<Control, "propose">,
  command: MapCommand,
  { timeoutMs, gone, onDecided }: Patience,
): Promise<Decision> {
  const isKept = onDecided !== undefined;
  if (gone?.aborted && !isKept) {
    return Promise.resolve({ kind: "undecided", isOver: true, isUnwanted: true });
  }
  return new Promise((resolve) => {
    const end = (decision: Decision) => {
      clearTimeout(timer);
      gone?.removeEventListener("abort", hungUp);
      resolve(decision);
    };
    const giveUp = (isUnwanted: boolean) => {
      const isOver = !isKept && proposed.withdraw();
      end({ kind: "undecided", isOver, isUnwanted });
    };
    const hungUp = () => {
      if (!isKept && !proposed.isSent) giveUp(true);
    };
    const timer = setTimeout(() => giveUp(false), timeoutMs);
    gone?.addEventListener("abort", hungUp);
    const proposed = control.propose(command, (result) => {
      onDecided?.();
      end({ kind: "decided", result });
    });
  });
}
