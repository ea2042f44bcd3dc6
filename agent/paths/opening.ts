/**
 * Opening a node's data paths: who they are, what is new, what is missing, and which of them knows best.
 *
 *     open all ─▶ compare ─▶ make stores of what is blank and new ─▶ bring META in line ─▶ remember ─▶ a store, or a set
 *
 * Invariants:
 * - All paths of an agent are of one node. A path of another node, the same store twice, or somebody's data is refused.
 * - Only what is blank is made into a store, and not where a path that is missing was last: there, probably nothing is
 *   mounted.
 * - A path that is known and cannot be opened is missing, and the others go on. A new one that cannot be is refused.
 * - META of the path with the highest count of changes counts; the others are made equal to it before anything else is done.
 *   The count rises with every start by more than could be under way when the one before ended.
 * - One path that never had others is its store alone: there is nothing to remember, and nothing in between.
 *
 * @module
 */
import { isEqual, toHex } from "../base/bytes.ts";
import type { Arena } from "../base/arena.ts";
import type { Log, Random, Window } from "../platform/platform.ts";
import { type Done, StoreError, type StoreErrorCode } from "../store/errors.ts";
import type { Store } from "../store/store.ts";
import type { NodeStore } from "./node_store.ts";
import {
  COUNT_KEY,
  COUNT_STEP,
  decodeRecord,
  encodeCount,
  encodeRecord,
  type KnownPath,
  PARTIAL_KEY,
  type PathRecord,
  PATHS_KNOWN_MAX,
  RECORD_KEY,
} from "./record.ts";
import { NO_PATH, SLOTS } from "./slots.ts";
import { countOf, type SetEvents, type SetPath, StoreSet } from "./store_set.ts";

const ID_BYTES = 16;

/** What is wrong with how an agent was started, not with a disk. */
const FINAL: readonly StoreErrorCode[] = ["OTHER_HOST", "NEWER_FORMAT", "INVALID", "LEVEL"];

/** A path that the agent was given. */
export interface PathCandidate {
  /** As people write it: a directory or a device. */
  readonly location: string;
  /** The store that may be there; null: there is none, or it cannot be reached. */
  readonly store: Store | null;
  /** Nobody's data is there: it may be made into a store. */
  readonly isBlank: boolean;
  /** Why it cannot be reached; "" when it can. */
  readonly reason: string;
  /** Makes ready for a new store at a blank path, and says how large it is to be. Throws what the system says. */
  create(): { store: Store; capacityBytes: number };
}

/** What {@linkcode openPaths} has made of them. */
export interface OpenedPaths {
  readonly store: NodeStore;
  /** The same; null: there is one path, which never had others. */
  readonly set: StoreSet | null;
  /** This is a new node. */
  readonly isNew: boolean;
}

/** See {@linkcode openPaths}. */
export interface OpenPathsOptions {
  readonly candidates: readonly PathCandidate[];
  readonly hostId: Uint8Array;
  readonly adopt?: boolean;
  readonly acceptDamage?: boolean;
  /** Why nothing is made where all is blank, which would be a new node; left out: a new node is made. */
  readonly refuseNew?: string;
  /** Grow each path to this size. */
  readonly capacityBytes?: number;
  /** Of a node's identity and its cluster's, when they are new. */
  readonly random: Random;
  readonly segmentBytes?: number;
  /**
   * What `SetEvents.leftBehind` said last of a node, 0 if that is not known: without a path that has come as far its agent must not
   * start.
   */
  leastCount?(nodeId: string): number;
  /** For copying between paths; left out: groups stay where they are. */
  readonly memory?: { readonly window: Window; readonly arena: Arena };
  /** See `store_set.ts`; left out: its own. */
  readonly differenceMin?: number;
  /** As `mayHaveLost` of `OpenOptions` in `store/open.ts`, of any of the stores. */
  readonly mayHaveLost?: () => void;
  /** As `foundTorn` of `OpenOptions`, of any of the stores. */
  readonly foundTorn?: () => void;
  /** As `admit` of `OpenOptions`, asked of each of the stores. */
  readonly admit?: (meta: (key: string) => Uint8Array | undefined) => string | null;
  readonly log: Log;
  readonly events: SetEvents;
}

/** One path on its way. */
interface Path {
  readonly candidate: PathCandidate;
  readonly location: string;
  store: Store | null;
  error: StoreError | null;
  /** Made in this run. */
  isFresh: boolean;
}

/**
 * Opens the paths of an agent. The caller turns the stores until `done` is called.
 *
 * @param done told the error, or what there is
 */
export function openPaths(
  options: OpenPathsOptions,
  done: (error: StoreError | null, opened: OpenedPaths | null) => void,
): void {
  new Opener(options, done).begin();
}

class Opener {
  readonly #options: OpenPathsOptions;
  readonly #done: (error: StoreError | null, opened: OpenedPaths | null) => void;
  readonly #paths: Path[];

  constructor(
    options: OpenPathsOptions,
    done: (error: StoreError | null, opened: OpenedPaths | null) => void,
  ) {
    this.#options = options;
    this.#done = done;
    this.#paths = options.candidates.map((candidate) => ({
      candidate,
      location: candidate.location,
      store: null,
      error: null,
      isFresh: false,
    }));
  }

  begin(): void {
    const there = this.#paths.filter(({ candidate }) => candidate.store !== null);
    if (there.length === 0) return this.#compare();
    let left = there.length;
    for (const path of there) {
      const { store } = path.candidate;
      this.#open(store!, (error) => {
        path.error = error;
        if (error === null) path.store = store;
        if (--left === 0) this.#compare();
      });
    }
  }

  #open(store: Store, done: Done): void {
    const { hostId, adopt, acceptDamage, capacityBytes } = this.#options;
    const { mayHaveLost, foundTorn, admit } = this.#options;
    store.open({
      hostId,
      adopt,
      acceptDamage,
      mayHaveLost,
      foundTorn,
      admit,
      ...(capacityBytes === undefined ? {} : { capacityBytes }),
    }, done);
  }

  #fail(code: StoreError["code"], message: string): void {
    this.#done(new StoreError(code, message), null);
  }

  /** What is to be said of a path that could not be opened. */
  #reasonOf({ candidate, error }: Path): string {
    return error?.message ?? (candidate.reason || "there is no store; is it mounted?");
  }

  #compare(): void {
    const opened = this.#paths.filter(({ store }) => store !== null);
    const isAlone = this.#paths.length === 1;
    // What no other path makes up for.
    const final = this.#paths.find(({ error }) =>
      error !== null && (isAlone || FINAL.includes(error.code))
    );
    if (final !== undefined) {
      return this.#fail(final.error!.code, `${final.location}: ${final.error!.message}`);
    }
    if (opened.length === 0) {
      const broken = this.#paths.find(({ candidate }) => !candidate.isBlank);
      if (broken === undefined) return this.#found();
      const code = broken.error?.code ?? "IO";
      return this.#fail(code, `${broken.location}: ${this.#reasonOf(broken)}`);
    }
    const fault = faultOf(opened);
    if (fault !== null) return this.#fail("INVALID", fault);
    this.#complete(opened);
  }

  /** All is blank: a new node. */
  #found(): void {
    const { refuseNew } = this.#options;
    if (refuseNew !== undefined) return this.#fail("INVALID", refuseNew);
    const nodeId = new Uint8Array(ID_BYTES), clusterId = new Uint8Array(ID_BYTES);
    this.#options.random.fill(nodeId);
    this.#options.random.fill(clusterId);
    this.#make(this.#paths, nodeId, clusterId, () => {
      const [path] = this.#paths;
      if (this.#paths.length === 1) {
        return this.#done(null, { store: path.store!, set: null, isNew: true });
      }
      this.#assemble(this.#paths.map(({ store }) => store!), null, true);
    });
  }

  /** Makes stores of blank paths. */
  #make(paths: readonly Path[], nodeId: Uint8Array, clusterId: Uint8Array, done: () => void): void {
    let left = paths.length;
    if (left === 0) return done();
    let isOver = false;
    const failed = (path: Path, error: StoreError) => {
      if (isOver) return;
      isOver = true;
      const isAlone = this.#paths.length === 1;
      this.#fail(error.code, isAlone ? error.message : `${path.location}: ${error.message}`);
    };
    const { hostId, segmentBytes } = this.#options;
    for (const path of paths) {
      let made: ReturnType<PathCandidate["create"]>;
      try {
        made = path.candidate.create();
      } catch (error) {
        const message = error instanceof Error ? error.message : String(error);
        return failed(path, new StoreError("IO", message));
      }
      const { store, capacityBytes } = made;
      store.format({ nodeId, clusterId, hostId, capacityBytes, segmentBytes }, (error) => {
        if (error !== null) return failed(path, error);
        this.#open(store, (error) => {
          if (error !== null) return failed(path, error);
          path.store = store;
          path.isFresh = true;
          if (--left === 0 && !isOver) done();
        });
      });
    }
  }

  /** Some paths are there: what is new is added to them, what is known and not there is missing. */
  #complete(opened: readonly Path[]): void {
    const stores = opened.map(({ store }) => store!);
    const whole = stores.filter((store) => store.getMeta(PARTIAL_KEY) === null);
    if (whole.length === 0) {
      return this.#fail(
        "DAMAGED",
        `${
          opened[0].location
        } was being brought in line with this node's other data paths, which are not there`,
      );
    }
    let best = whole[0];
    for (const store of whole) if (countOf(store) > countOf(best)) best = store;
    const nodeId = toHex(best.identity.nodeId);
    if (countOf(best) < (this.#options.leastCount?.(nodeId) ?? 0)) {
      const names = opened.map(({ location }) => location).join(", ");
      return this.#fail(
        "INVALID",
        `${names} was left behind when the agent went on with other data paths, which are not there now`,
      );
    }
    const bytes = best.getMeta(RECORD_KEY);
    const record = bytes === null ? null : decodeRecord(bytes);
    if (bytes !== null && record === null) {
      return this.#fail("NEWER_FORMAT", "what this node remembers of its data paths is not known");
    }
    if (record === null) {
      // One of them is the node as it was before it had several; others were being added and hold nothing yet.
      const full = whole.filter((store) => !isPristine(store));
      if (full.length > 1) {
        const names = opened.filter(({ store }) => full.includes(store!)).map((path) =>
          path.location
        );
        return this.#fail("INVALID", `${names.join(" and ")} do not know of each other`);
      }
      if (full.length === 1) best = full[0];
      if (this.#paths.length === 1) {
        return this.#done(null, { store: best, set: null, isNew: false });
      }
    }
    const isThere = new Set(stores.map((store) => toHex(store.identity.storeId)));
    const absent = record?.paths.filter(({ storeId }) => !isThere.has(storeId)) ?? [];
    const isKnown = (location: string) => absent.some((path) => path.location === location);
    const stranger = this.#paths.find(({ store, candidate, location }) =>
      store === null && !candidate.isBlank && !isKnown(location)
    );
    if (stranger !== undefined) {
      const code = stranger.error?.code ?? "IO";
      return this.#fail(code, `${stranger.location}: ${this.#reasonOf(stranger)}`);
    }
    const added = this.#paths.filter(({ store, candidate, location }) =>
      store === null && candidate.isBlank && !isKnown(location)
    );
    this.#make(added, best.identity.nodeId, best.identity.clusterId, () => {
      const all = this.#paths.flatMap(({ store }) => store === null ? [] : [store]);
      this.#assemble([best, ...all.filter((store) => store !== best)], record, false);
    });
  }

  /** @param stores all that are open, the one whose META counts first */
  #assemble(stores: readonly Store[], before: PathRecord | null, isNew: boolean): void {
    const [best] = stores;
    const record: PathRecord = before ?? {
      paths: isPristine(best) ? [] : [this.#describe(best, 1)],
      // Whatever it holds, it holds.
      table: new Uint8Array(SLOTS).fill(isPristine(best) ? NO_PATH : 1),
    };
    const paths: SetPath[] = [];
    const used = new Set(record.table);
    for (const known of record.paths) {
      const store = stores.find((each) => toHex(each.identity.storeId) === known.storeId);
      if (store !== undefined) {
        paths.push({ ...this.#describe(store, known.id), store, state: "ok", reason: "" });
        continue;
      }
      const path = this.#paths.find((each) =>
        each.store === null && each.location === known.location
      );
      const isGiven = path !== undefined;
      if (!isGiven && !used.has(known.id)) continue;
      paths.push({
        ...known,
        location: isGiven ? known.location : "",
        store: null,
        state: isGiven ? "missing" : "left-out",
        reason: isGiven ? this.#reasonOf(path) : "the agent was not given it",
      });
    }
    let isSpread = false;
    for (const store of stores) {
      if (paths.some((path) => path.store === store)) continue;
      const id = freeId(paths, used);
      if (id === NO_PATH || paths.length >= PATHS_KNOWN_MAX) {
        return this.#fail("INVALID", `this node has had ${PATHS_KNOWN_MAX} data paths: no more`);
      }
      paths.push({ ...this.#describe(store, id), store, state: "ok", reason: "" });
      isSpread = before !== null || paths.length > 1;
    }
    for (const { location, id, state, reason } of paths) {
      if (state === "ok") continue;
      this.#options.log.error("a data path is not there; the others go on", {
        path: location === "" ? `path ${id}` : location,
        reason,
      });
    }
    const count = Math.max(...stores.map(countOf)) + COUNT_STEP;
    const value = encodeRecord({ paths, table: record.table });
    this.#agree(stores, value, count, (failed) => {
      const set = new StoreSet({
        paths: paths.map((path): SetPath => {
          const error = path.store === null ? undefined : failed.get(path.store);
          if (error === undefined) return path;
          return { ...path, store: null, state: "failed", reason: error.message };
        }),
        table: record.table,
        count,
        isSpread,
        memory: this.#options.memory,
        differenceMin: this.#options.differenceMin,
        log: this.#options.log,
        events: this.#options.events,
      });
      for (const [store, error] of failed) {
        this.#options.log.error("a data path fails; the others go on", {
          path: this.#paths.find((path) => path.store === store)!.location,
          reason: error.message,
        });
      }
      const isWhole = failed.size === 0 && paths.every(({ state }) => state === "ok");
      if (!isWhole) this.#options.events.leftBehind(toHex(best.identity.nodeId), count);
      this.#done(null, { store: set, set, isNew });
    });
  }

  #describe(store: Store, id: number): KnownPath {
    return {
      id,
      storeId: toHex(store.identity.storeId),
      location: this.#paths.find((path) => path.store === store)!.location,
      capacityBytes: store.stats().usableBytes,
    };
  }

  /**
   * Makes META of all stores equal to that of the first, with the new record and count. The first one goes first: it may be one that
   * counts nothing yet, and must not be left behind by those that are added to it.
   *
   * @param done told those that failed in it; not when all have
   */
  #agree(
    stores: readonly Store[],
    record: Uint8Array,
    count: number,
    done: (failed: ReadonlyMap<Store, StoreError>) => void,
  ): void {
    const [best] = stores;
    let left = stores.length;
    const failed = new Map<Store, StoreError>();
    const wanted = new Map(best.metaKeys().map((key) => [key, best.getMeta(key)!]));
    wanted.set(RECORD_KEY, record);
    wanted.delete(COUNT_KEY);
    const write = (store: Store) => {
      const entries: { key: string; value: Uint8Array | null }[] = [];
      // A crash may leave the first of many values: what is neither old nor new must not be gone by.
      if (store !== best) entries.push({ key: PARTIAL_KEY, value: Uint8Array.of(1) });
      for (const key of store.metaKeys()) {
        const isOwn = key === COUNT_KEY || key === PARTIAL_KEY;
        if (!wanted.has(key) && !isOwn) entries.push({ key, value: null });
      }
      for (const [key, value] of wanted) {
        const present = store.getMeta(key);
        if (present === null || !isEqual(present, value)) entries.push({ key, value });
      }
      if (store !== best) entries.push({ key: PARTIAL_KEY, value: null });
      entries.push({ key: COUNT_KEY, value: encodeCount(count) });
      store.setMetaBatch(entries, (error) => {
        if (error !== null) failed.set(store, error);
        if (store === best) stores.slice(1).forEach(write);
        if (--left > 0) return;
        const location = this.#paths.find((path) => path.store === best)!.location;
        if (failed.size < stores.length) return done(failed);
        this.#fail(failed.get(best)!.code, `${location}: ${failed.get(best)!.message}`);
      });
    };
    write(best);
  }
}

/** Why stores cannot be those of one node; null: they can. */
function faultOf(opened: readonly Path[]): string | null {
  const [first] = opened;
  for (const [index, path] of opened.entries()) {
    const { storeId, nodeId, clusterId } = path.store!.identity;
    const twin = opened.slice(0, index).find(({ store }) =>
      toHex(store!.identity.storeId) === toHex(storeId)
    );
    if (twin !== undefined) {
      return `${twin.location} and ${path.location} are the same data path, or one is a copy of the other`;
    }
    const { identity } = first.store!;
    const isSameNode = toHex(nodeId) === toHex(identity.nodeId) &&
      toHex(clusterId) === toHex(identity.clusterId);
    if (!isSameNode) {
      return `${path.location} belongs to another node (${toHex(nodeId)}) than ` +
        `${first.location} (${toHex(identity.nodeId)})`;
    }
  }
  return null;
}

/** Nothing was ever put into it. */
function isPristine(store: Store): boolean {
  return store.metaKeys().length === 0 && store.layers().length === 0;
}

/** The lowest id that no path and no slot has; 0: there is none. */
function freeId(paths: readonly SetPath[], used: ReadonlySet<number>): number {
  for (let id = 1; id < 256; id++) {
    if (!used.has(id) && !paths.some((path) => path.id === id)) return id;
  }
  return NO_PATH;
}
