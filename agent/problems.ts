/**
 * What is wrong, derived from what the parts say of themselves. Pure: status in, problems out.
 *
 * Invariant: an agent is called healthy only when the list is empty, and the list is never empty
 * while a guest waits for anything but its own requests.
 *
 * @module
 */

import { formatSize } from "./config.ts";
import type { DiskStatus, SessionStatus, StoreStatus } from "./http/backend.ts";
import type { ClusterMap } from "./map/map.ts";

/**
 * Kinds of problems, the worst first. Only ever appended to; programs may rely on these.
 *
 * | code | what it means |
 * |---|---|
 * | `store-failed` | the store has stopped for good: every request fails |
 * | `store-unavailable` | the store does not answer |
 * | `disk-unavailable` | one disk's data plane does not answer |
 * | `damage` | blocks whose data does not match its checksum |
 * | `store-full` | no space for new writes |
 * | `writes-waiting` | writes that guests wait for |
 * | `session-broken` | a guest broke the rules and its device stands still |
 * | `lease-waiting` | a guest waits for another to let go of the disk |
 * | `store-nearly-full` | little space is left |
 */
export const PROBLEM_CODES = [
  "store-failed",
  "store-unavailable",
  "disk-unavailable",
  "damage",
  "store-full",
  "writes-waiting",
  "session-broken",
  "lease-waiting",
  "store-nearly-full",
] as const;

/** One of {@linkcode PROBLEM_CODES}. */
export type ProblemCode = typeof PROBLEM_CODES[number];

/** Something that somebody should look at. */
export interface Problem {
  readonly code: ProblemCode;
  /** One line, no full stop at its end. */
  readonly message: string;
  /** What to do about it. */
  readonly hint: string;
  /** The disk that it is about, if it is about one. */
  readonly disk?: string;
}

/** Share of the capacity that live data may take before it is worth a word. */
export const NEARLY_FULL_SHARE = 0.9;

/** Damaged blocks named in one message; the status has the longer list. */
const DAMAGE_NAMED_MAX = 3;

/** What the parts said. */
export interface Observations {
  readonly map: ClusterMap;
  /** Null when the store did not answer. */
  readonly store: StoreStatus | null;
  /** By disk name: its status, or the reason why it did not answer. */
  readonly disks: ReadonlyMap<string, DiskStatus | string>;
}

/**
 * Lists the problems, the worst first.
 *
 * @param seen disks of the map that `seen.disks` lacks count as unobserved, not as broken
 */
export function findProblems(seen: Observations): Problem[] {
  const problems: Problem[] = [...storeProblems(seen.store)];
  for (const { name } of seen.map.disks) {
    const status = seen.disks.get(name);
    if (status === undefined) continue;
    if (typeof status === "string") problems.push(diskUnavailable(name, status));
    else problems.push(...sessionProblems(name, status.sessions));
  }
  const rank = (problem: Problem) => PROBLEM_CODES.indexOf(problem.code);
  return problems.sort((a, b) => rank(a) - rank(b));
}

/**
 * Says in one line how things stand.
 *
 * @param seen the same that {@linkcode findProblems} was given
 * @param problems its answer
 */
export function summarize(seen: Observations, problems: readonly Problem[]): string {
  if (problems.length > 0) {
    const more = problems.length - 1;
    return problems[0].message + (more === 0 ? "" : `; and ${count(more, "more problem")}`);
  }
  const disks = count(seen.map.disks.length, "disk");
  const { store } = seen;
  if (store === null) return disks;
  return `healthy: ${disks}, ${formatSize(store.liveBytes)} of ` +
    `${formatSize(store.capacityBytes)} used`;
}

function storeProblems(store: StoreStatus | null): Problem[] {
  if (store === null) {
    return [{
      code: "store-unavailable",
      message: "the store does not answer",
      hint: "look at the agent's log; restart the agent if it does not recover",
    }];
  }
  const problems: Problem[] = [];
  if (store.failed !== null) {
    problems.push({
      code: "store-failed",
      message: `the store ${store.path} has stopped: ${store.failed}`,
      hint: "look at the disk below it (dmesg, smartctl), then restart the agent",
    });
  }
  if (store.damagedBlocks > 0) problems.push(damage(store));
  const waiting = count(store.waitingWrites, "write");
  const waits = store.waitingWrites === 1 ? "waits" : "wait";
  if (store.full) {
    const also = store.waitingWrites > 0 ? ` and ${waiting} ${waits}` : "";
    problems.push({
      code: "store-full",
      message: `the store ${store.path} is full${also}`,
      hint: "delete disks, discard in guests (fstrim), or give the store a larger --capacity; " +
        "waiting writes go on by themselves",
    });
  } else if (store.waitingWrites > 0) {
    problems.push({
      code: "writes-waiting",
      message: `${waiting} ${waits} for space in the store`,
      hint: "they go on when the cleaner has freed space; if they do not, delete or discard data",
    });
  } else if (store.liveBytes >= store.capacityBytes * NEARLY_FULL_SHARE) {
    problems.push({
      code: "store-nearly-full",
      message: `${formatSize(store.liveBytes)} of the store's ` +
        `${formatSize(store.capacityBytes)} are used`,
      hint: "delete disks, discard in guests (fstrim), or give the store a larger --capacity",
    });
  }
  return problems;
}

function damage(store: StoreStatus): Problem {
  const named = store.damage.slice(0, DAMAGE_NAMED_MAX)
    .map(({ disk, offsetBytes }) => `${disk === "" ? "a deleted disk" : disk} at ${offsetBytes}`);
  const rest = store.damagedBlocks - named.length;
  const where = [...named, ...(rest > 0 && named.length > 0 ? [`${rest} more`] : [])].join(", ");
  const disks = new Set(store.damage.map((each) => each.disk));
  const only = disks.size === 1 && store.damage.length >= store.damagedBlocks ? [...disks][0] : "";
  return {
    code: "damage",
    message: `${count(store.damagedBlocks, "block")} cannot be read` +
      (where === "" ? "" : `: ${where}`),
    hint: "writing the blocks again, or discarding them, repairs them; " +
      "'kelpie disk check' finds all there are",
    ...(only === "" ? {} : { disk: only }),
  };
}

function diskUnavailable(disk: string, reason: string): Problem {
  return {
    code: "disk-unavailable",
    message: `disk ${disk} does not answer: ${reason}`,
    hint: "look at the agent's log; restart the agent if it does not recover",
    disk,
  };
}

function sessionProblems(disk: string, sessions: readonly SessionStatus[]): Problem[] {
  const problems: Problem[] = [];
  const holder = sessions.find((each) => each.active && !each.readOnly);
  for (const session of sessions) {
    if (session.broken !== null) {
      problems.push({
        code: "session-broken",
        message: `disk ${disk}: the device of ${processName(session)} stands still: ` +
          session.broken,
        hint: "reset or restart the guest; other guests are not affected",
        disk,
      });
    }
    if (session.waitingForLease) {
      const from = holder === undefined ? "" : ` that ${processName(holder)} holds`;
      problems.push({
        code: "lease-waiting",
        message: `disk ${disk}: ${processName(session)} waits for the lease${from}`,
        hint: "it gets the disk when the other lets go; use the read-only socket only to look on",
        disk,
      });
    }
  }
  return problems;
}

/** A front end as people know it. */
function processName({ pid, command }: SessionStatus): string {
  if (pid === 0) return command === "" ? "a front end" : command;
  return command === "" ? `pid ${pid}` : `${command} (pid ${pid})`;
}

function count(value: number, noun: string): string {
  return `${value} ${noun}${value === 1 ? "" : "s"}`;
}
