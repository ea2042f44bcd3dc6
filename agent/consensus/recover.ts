/**
 * Brings a cluster back whose majority is gone for good (`kelpie cluster recover`): one survivor
 * goes on alone with what it has, and others join it anew.
 *
 * **This may lose the last commits**: those that the lost majority had acknowledged and the
 * survivor had not received. It may also bring to life entries that were never committed. Choose
 * the survivor whose last entry has the highest term and, among those, the highest index
 * ({@linkcode standingOf}). No other member may run any more, nor come back with its old store: its
 * log may go on where this one ends, otherwise.
 *
 * @module
 */

import { failure, type Result, success } from "../map/errors.ts";
import { encodeConfiguration } from "./configuration.ts";
import { RECOVERY_TERMS } from "./limits.ts";
import { ENTRY_CONFIGURATION } from "./log.ts";
import { load, type StorageWrite } from "./storage.ts";

/** How far a survivor's log goes, for choosing among survivors. */
export interface Standing {
  /** Term of the last entry; compared first. */
  readonly lastTerm: number;
  /** Index of the last entry; compared second. */
  readonly lastIndex: number;
  /** What it knows to be committed. */
  readonly commit: number;
}

/** What recovery would do. */
export interface Recovery {
  /** To be carried out in this order; after a crash between two of them, begin again. */
  readonly writes: readonly StorageWrite[];
  readonly standing: Standing;
}

/**
 * How far the log in a store goes.
 *
 * @param values as for {@linkcode load}
 * @param id of the node
 * @returns an error as from {@linkcode load}, or with code `missing` where there is no state
 */
export function standingOf(
  values: Iterable<readonly [string, Uint8Array]>,
  id: number,
): Result<Standing> {
  const recovery = recover(values, id);
  return recovery.ok ? success(recovery.value.standing) : recovery;
}

/**
 * Rewrites the durable state of a survivor, whose agent does not run, so that it is the only voter,
 * in a term that no other member can have reached. At its next start it leads at once and commits
 * all it has.
 *
 * @param values as for {@linkcode load}
 * @param id of the survivor
 * @returns an error as from {@linkcode load}, or with code `missing` where there is no state
 */
export function recover(
  values: Iterable<readonly [string, Uint8Array]>,
  id: number,
): Result<Recovery> {
  const loaded = load(values, id);
  if (!loaded.ok) return loaded;
  if (loaded.value === null) return failure("missing", "the store holds no consensus state");
  const { state, storage } = loaded.value;
  const last = state.entries.at(-1) ?? state.snapshot;
  const term = state.term + RECOVERY_TERMS;
  const configuration = encodeConfiguration({ voters: [id], learners: [] });
  const writes = storage.write({
    token: 0,
    hardState: { term, vote: 0 },
    snapshot: null,
    isLogReplaced: false,
    // The entry is of the term before the one in which the node will lead; nobody else has one of
    // it.
    entries: [{ index: last.index + 1, term, kind: ENTRY_CONFIGURATION, data: configuration }],
    commit: state.commit,
    messages: [],
  });
  return success({
    writes,
    standing: { lastTerm: last.term, lastIndex: last.index, commit: state.commit },
  });
}
